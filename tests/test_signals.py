"""The few numbers against the training step in a logger, and how little a logger gets by default."""

from __future__ import annotations

import itertools
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from lightning_glassy import AgingMonitor, AgingRecord, FabricAgingMonitor, LogTimeSchedule
from lightning_glassy.analysis import aging_exponent, verdict
from lightning_glassy.loggers import signals as module
from lightning_glassy.loggers import sinks as sinks_module
from lightning_glassy.loggers.signals import Signals
from lightning_glassy.loggers.sinks import Sinks
from lightning_glassy.loggers.tensorboard import TensorBoardSink
from lightning_glassy.observables import over_last_decade
from lightning_glassy.record import MOMENTS
from tests.helpers import SmallNet, data, quiet_trainer


def scaling(last: int = 100_000, mu: float = 0.5, groups: dict[str, int] | None = None) -> AgingRecord:
    """Return curves of a slowing clock. The displacement is the advance of the clock t^(1-mu), as in diffusion."""
    record = AgingRecord(groups or {"all": 100}, overlap_thresholds=(5e-4, 5e-3))
    for waiting_time, lag in sorted(LogTimeSchedule.logspaced(last).pairs, key=sum):
        sums = np.ones((len(record.groups), len(MOMENTS) + 2))
        sums[:, 0] = (waiting_time + lag) ** (1 - mu) - waiting_time ** (1 - mu)
        record.append(waiting_time, lag, sums)
    return record


def scalars(logger: TensorBoardLogger) -> dict[str, dict[int, float]]:
    events = EventAccumulator(logger.log_dir, size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("glassy/")]
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in tags}


class Remembers(Logger):
    """A logger that this package does not know."""

    name, version = "remembers", 0

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, dict[int, float]] = defaultdict(dict)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            if name.startswith("glassy/"):
                assert step not in self.seen[name]
                self.seen[name][step] = value


# ------------------------------------------------------------------ over the last decade


def test_a_measured_pair_is_taken_as_it_is_and_nothing_is_extrapolated() -> None:
    times, lags = [0, 10, 30], [1, 90, 270]
    values = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, np.nan, 9.0]]
    assert over_last_decade(times, lags, values, [100, 300]).tolist() == [5.0, 9.0]
    assert np.isnan(over_last_decade(times, lags, values, [1, 5, 301, 10_000])).all()


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_between_measured_pairs_a_power_law_is_met(power: float) -> None:
    """A displacement that is a power of the lag has its exact value, at steps that no pair has."""
    schedule = LogTimeSchedule.logspaced(100_000)
    times, lags = sorted({t for t, _ in schedule.pairs}), sorted({lag for _, lag in schedule.pairs})
    values = np.array([[float(lag) ** power for lag in lags] for _ in times])
    steps = np.array([777, 12_345, 99_999])
    assert over_last_decade(times, lags, values, steps) == pytest.approx((0.9 * steps) ** power, rel=0.02)


def test_weights_that_do_not_move_have_moved_by_nothing() -> None:
    assert over_last_decade([7, 15], [1, 85, 93, 120], np.zeros((2, 4)), [100]).tolist() == [0.0]


# ------------------------------------------------------------------ the numbers


def test_the_signals_of_a_slowing_clock_are_the_exact_ones() -> None:
    record = scaling()
    found = Signals()
    found.look(record)
    found.complete(record)
    moved = {signal.step: signal.value for signal in found.found if signal.name == "moved_percent"}
    assert list(moved) == sorted(moved)
    assert max(moved) == 79_433  # the last waiting time that is a tenth of the step has no later lag
    for step, value in moved.items():
        exact = 100 * np.sqrt(step**0.5 - (step / 10) ** 0.5)
        assert value == pytest.approx(exact, rel=0.05 if step < 100 else 0.01)
    assert [signal[1:] for signal in found.found if signal.name == "aging_rate"] == [
        (record.last_step, verdict(record).rates[0].rate)
    ]
    fit = aging_exponent(record)
    assert fit.mu is not None
    assert [signal for signal in found.found if signal.name == "mu"] == [("mu", record.last_step, fit.mu)]


def test_the_exponent_is_there_even_if_the_last_rate_was_known_before_the_end() -> None:
    record, found = scaling(), Signals()
    found._expected = 0.0  # leaves time for a rate at once
    found.look(record)
    assert [signal.name for signal in found.found if signal.name != "moved_percent"] == ["aging_rate"]
    for _ in range(2):
        found.complete(record)
        assert [signal.name for signal in found.found if signal.name != "moved_percent"] == ["aging_rate", "mu"]


def test_an_error_in_the_numbers_of_a_logger_costs_no_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the numbers cannot be computed from the record."""
    monkeypatch.setattr(AgingRecord, "relative_displacement", lambda *_: 1 / 0)
    written: list[int] = []

    class Counts(sinks_module.Sink):
        takes_signals = True

        def update(self, record: AgingRecord, pairs: Any, step: int) -> None:
            written.append(len(pairs))

        def close(self, record: AgingRecord) -> None:
            pass

        def where(self) -> None:
            return None

    sinks, record = Sinks(), scaling(1000)
    sinks.add("counts", Counts)
    sinks.update(record, [(0, 1)], 1000)
    sinks.draw(record)
    assert written[0] == 1


def test_each_step_is_there_once_however_the_record_grows() -> None:
    whole = scaling(10_000)
    at_once = Signals()
    at_once.look(whole)
    found, part = Signals(), AgingRecord(whole.n_parameters, overlap_thresholds=whole.overlap_thresholds)
    pairs = list(zip(*(axis.tolist() for axis in whole.pairs), strict=True))
    rows = dict(zip(pairs, whole.moments, strict=True))
    for number, pair in enumerate(sorted(pairs, key=sum)):
        part.append(*pair, rows[pair])
        if number % 7 == 0:
            found.look(part)
    found.look(part)
    assert [signal for signal in found.found if signal.name == "moved_percent"] == at_once.found


def test_rates_during_a_training_take_a_small_share_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, calls=0)

    def rates(self: Signals, record: AgingRecord, step: int) -> None:
        self._rated, clock.calls = step, clock.calls + 1
        clock.now += 2.0

    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(Signals, "_add_rates", rates)
    found, record = Signals(), AgingRecord({"all": 1})
    for lag in range(1, 5000):
        record.append(0, lag, np.ones((1, len(MOMENTS))))
        found.look(record)
        clock.now += 1.0
    assert clock.calls >= 1
    assert 2.0 * clock.calls <= 0.006 * clock.now


# ------------------------------------------------------------------ how many tags


def test_by_default_a_logger_gets_a_handful_of_tags_whatever_the_groups(tmp_path: Path) -> None:
    logger, other, monitor = TensorBoardLogger(tmp_path), Remembers(), AgingMonitor(groups="layer", summary=False)
    quiet_trainer(tmp_path, callbacks=[monitor], logger=[logger, other], max_steps=1200).fit(SmallNet(), data())
    tags = EventAccumulator(logger.log_dir).Reload().Tags()
    ours = [tag for kind in ("scalars", "images") for tag in tags[kind] if tag.startswith("glassy")]
    assert {"glassy/moved_percent", "glassy/aging_rate", "glassy_figures/msd"} <= set(ours)
    assert len(ours) <= 8
    shown, record = scalars(logger), monitor.record
    (exact,) = over_last_decade(record.waiting_times, record.lags, record.relative_displacement(), [1000])
    assert shown["glassy/moved_percent"][1000] == pytest.approx(100 * exact, rel=1e-6)
    assert {tag: list(curve) for tag, curve in other.seen.items()} == {tag: list(curve) for tag, curve in shown.items()}


def test_groups_that_are_asked_for_have_their_own_and_no_others(tmp_path: Path) -> None:
    logger, monitor = TensorBoardLogger(tmp_path), AgingMonitor(groups="layer", log_groups=["net.0"], summary=False)
    quiet_trainer(tmp_path, callbacks=[monitor], logger=logger, max_steps=1200).fit(SmallNet(), data())
    shown, record = scalars(logger), monitor.record
    assert {tag.split("/")[2] for tag in shown if tag.count("/") > 1} == {"net.0"}
    (exact,) = over_last_decade(record.waiting_times, record.lags, record.relative_displacement("net.0"), [1000])
    assert shown["glassy/moved_percent/net.0"][1000] == pytest.approx(100 * exact, rel=1e-6)
    assert shown["glassy/aging_rate/net.0"][1200] == pytest.approx(verdict(record, group="net.0").rates[0].rate)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_run_that_goes_on_in_its_logger_has_each_number_once(tmp_path: Path) -> None:
    class Saves(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 300:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    options: dict[str, Any] = {"summary": False, "dirpath": tmp_path / "files"}
    for steps, path in ((300, None), (1200, tmp_path / "a.ckpt")):
        logger, monitor = TensorBoardLogger(tmp_path, name="a", version=0), AgingMonitor(**options)
        trainer = quiet_trainer(tmp_path, callbacks=[monitor, Saves()], logger=logger, max_steps=steps)
        trainer.fit(SmallNet(), data(), ckpt_path=path)
    events = EventAccumulator(logger.log_dir, size_guidance={"scalars": 0}).Reload()
    steps = [event.step for event in events.Scalars("glassy/moved_percent")]
    assert steps == sorted(set(steps))
    assert {10, 100, 1000} <= set(steps)
    fresh = TensorBoardLogger(tmp_path, name="b", version=0)
    quiet_trainer(tmp_path, callbacks=[AgingMonitor(**options)], logger=fresh, max_steps=1200).fit(
        SmallNet(), data(), ckpt_path=tmp_path / "a.ckpt"
    )
    assert set(scalars(fresh)["glassy/moved_percent"]) == set(steps)


@pytest.mark.parametrize(
    ("option", "error", "words"),
    [
        ({"curves": "all"}, ValueError, "curves='all' is neither 'figures' nor 'scalars'"),
        ({"log_groups": "net.0"}, TypeError, "log_groups='net.0' must be a list of names of groups"),
        ({"log_groups": [1]}, TypeError, r"log_groups=\[1\] must be a list"),
        ({"log_groups": ["a", "a"]}, ValueError, "names a group twice"),
    ],
)
@pytest.mark.parametrize("monitor", [AgingMonitor, FabricAgingMonitor])
def test_an_option_that_means_nothing_is_refused_at_once(
    monitor: Any, option: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        monitor(**option)


def test_a_group_that_is_not_there_is_refused_at_the_start(tmp_path: Path) -> None:
    monitor = AgingMonitor(groups="layer", log_groups=["encoder"])
    with pytest.raises(ValueError, match=r"log_groups names 'encoder', .* there are \('all', 'net.0', 'net.3'\)"):
        quiet_trainer(tmp_path, callbacks=[monitor]).fit(SmallNet(), data())


def test_without_scipy_the_displacement_is_logged_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning_glassy.analysis", "lightning_glassy.analysis.latest"):
        monkeypatch.setitem(sys.modules, name, None)
    found = Signals()
    found.look(scaling(10_000))
    found.complete(scaling(10_000))
    assert {signal.name for signal in found.found} == {"moved_percent"}


def test_the_event_file_of_a_long_run_is_at_most_three_times_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million steps at two milliseconds each need at most 400 writes, and the figures."""
    record, clock = AgingRecord({"all": 100}, overlap_thresholds=(5e-4, 5e-3)), SimpleNamespace(now=0.0)
    writer, random = SummaryWriter(tmp_path / "events"), np.random.default_rng(0)
    logger = SimpleNamespace(experiment=writer, log_dir=str(tmp_path / "events"))
    for one in (sinks_module, module):
        monkeypatch.setattr(one.time, "monotonic", lambda: clock.now)
    sinks = Sinks()
    sinks.add("TensorBoard", lambda: TensorBoardSink(logger, "glassy"))
    pairs = sorted(LogTimeSchedule.logspaced(1_000_000).pairs, key=sum)
    for step, due in itertools.groupby(pairs, key=sum):
        clock.now, new = 0.002 * step, list(due)
        for waiting_time, lag in new:
            # The digits do not compress, like measured digits, and the overlaps are between 0 and 1.
            sums = (1 + 0.1 * random.random((1, len(MOMENTS) + 2))) * (lag / (1 + waiting_time) ** 0.5) ** 0.8
            sums[:, len(MOMENTS) :] = 100 * np.exp(-0.001 * sums[:, :2])
            record.append(waiting_time, lag, sums)
        sinks.update(record, new, step)
    sinks.close(record)
    sinks.draw(record)
    writer.close()
    written = sum(file.stat().st_size for file in (tmp_path / "events").iterdir())
    size = record.save(tmp_path / "aging_record.npz").stat().st_size
    assert written <= 3 * size, (written, size)
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"scalars": 0}).Reload()
    assert len([tag for kind in ("scalars", "images") for tag in events.Tags()[kind]]) <= 8


def test_the_relative_displacement_is_that_of_the_weights() -> None:
    weights = np.cumsum(np.random.default_rng(3).normal(size=(2, 31, 50)), axis=1)
    record = AgingRecord.from_trajectory(weights, LogTimeSchedule([1, 10], [5, 20]))
    for replica, path in enumerate(weights):
        for i, waiting_time in enumerate((1, 10)):
            for j, lag in enumerate((5, 20)):
                moved = np.linalg.norm(path[waiting_time + lag] - path[waiting_time])
                exact = moved / np.linalg.norm(path[waiting_time])
                assert record.relative_displacement()[replica, i, j] == pytest.approx(exact, rel=1e-12)
    resting = AgingRecord.from_trajectory(np.zeros((3, 4)), LogTimeSchedule([0], [1]))
    assert np.isnan(resting.relative_displacement()).all()
    assert resting.rms_weight() is None
    assert record.rms_weight() == pytest.approx(np.sqrt((weights[:, 1] ** 2).mean()))

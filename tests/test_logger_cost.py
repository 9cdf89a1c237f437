"""Loggers cost less than the measurement: the size, number and moments of their writes, in counts and not in times."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow
from torch.utils.tensorboard import SummaryWriter

from lightning_glassy import AgingMonitor, AgingRecord, LogTimeSchedule, cli
from lightning_glassy.loggers.csv import CSVSink
from lightning_glassy.loggers.dispatch import MetricsSink
from lightning_glassy.loggers.figures import Figures
from lightning_glassy.loggers.files import FileSink
from lightning_glassy.loggers.sinks import MOST_GROUPS, Pairs, Sink, Sinks, scalars
from lightning_glassy.loggers.tensorboard import TensorBoardSink
from lightning_glassy.record.tables import Table
from lightning_glassy.tensorboard.checksums import masked_crc32c
from lightning_glassy.tensorboard.event_files import records_in
from lightning_glassy.tensorboard.parts import Written, assemble, next_part
from tests.helpers import SmallNet, data, environment, quiet_trainer


class Clock:
    """A monotonic clock that the test moves by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Notes(Sink):
    """A sink that notes its input, takes some time, and can fail."""

    def __init__(self, clock: Clock | None = None, seconds: float = 0.0) -> None:
        self.clock, self.seconds = clock, seconds
        self.times: list[float] = []
        self.got: list[tuple[int, int]] = []
        self.fails = False

    def update(self, record: AgingRecord, pairs: Pairs, step: int) -> None:
        if self.clock is not None:
            self.times.append(self.clock.now - 1000)
            self.clock.now += self.seconds
        if self.fails:
            raise OSError("full")
        self.got += pairs

    def close(self, record: AgingRecord) -> None:
        pass

    def where(self) -> str | None:
        return None


def grown(record: AgingRecord, lag: int) -> list[tuple[int, int]]:
    record.append(0, lag, np.full(record.row_shape, float(lag)))
    return [(0, lag)]


def held(*made: Sink) -> Sinks:
    held = Sinks()
    for sink in made:
        held.add("a test", lambda sink=sink: sink)  # type: ignore[misc]
    return held


# ---------------------------------------------------------------------- when sinks write


def test_a_sink_pauses_for_one_to_five_seconds_and_loses_no_pair(clock: Clock) -> None:
    sink, record = Notes(clock), AgingRecord({"all": 1})
    sinks = held(sink)
    for lag in range(1, 30_001):  # a millisecond each
        sinks.update(record, grown(record, lag), lag)
        clock.now += 0.001
    sinks.close(record)
    pauses = np.diff(sink.times[:-1])
    assert sink.times[0] == 0
    assert len(sink.times) == 10  # the last one at the end
    assert pauses.min() >= 1.0
    assert pauses.max() <= 5.01
    assert sink.got == [(0, lag) for lag in range(1, 30_001)]


def test_a_slow_sink_takes_a_hundredth_of_the_time_and_holds_up_no_other(clock: Clock) -> None:
    slow, quick, record = Notes(clock, 0.5), Notes(clock), AgingRecord({"all": 1})
    sinks = held(slow, quick)
    for lag in range(1, 6001):
        sinks.update(record, grown(record, lag), lag)
        clock.now += 0.1
    assert 0.5 * len(slow.times) < 0.015 * 600
    assert len(quick.times) > 100
    sinks.close(record)
    assert slow.got == quick.got == [(0, lag) for lag in range(1, 6001)]


def test_a_record_file_is_written_every_30_seconds_however_long_a_write_takes(clock: Clock) -> None:
    sink, record = Notes(clock, 3.0), AgingRecord({"all": 1})
    sink.longest, sink.is_whole = FileSink.longest, True
    sinks = held(sink)
    for lag in range(1, 1001):
        sinks.update(record, grown(record, lag), lag)
        clock.now += 1
    assert np.diff(sink.times).max() <= 34.0
    assert len(sink.times) > 25


def test_pairs_that_could_not_be_written_come_again_with_the_next(clock: Clock) -> None:
    sink, other, record = Notes(clock), Notes(clock), AgingRecord({"all": 1})
    sinks = held(sink, other)
    for lag in range(1, 21):
        sink.fails = 5 < lag < 15
        sinks.update(record, grown(record, lag), lag)
        clock.now += 10
    assert sink.got == other.got == [(0, lag) for lag in range(1, 21)]


def test_a_checkpoint_finds_all_points_written(tmp_path: Path) -> None:
    logged: list[str] = []

    class Other(Logger):
        name, version, save_dir = "other", 0, None

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            logged.extend(tag for tag in metrics if "/msd/" in tag)

        def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    class Saves(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 30:
                trainer.save_checkpoint(tmp_path / "a.ckpt")
                at_checkpoint.extend(logged)
                raise KeyError("the run is killed here, and writes nothing more")

    at_checkpoint: list[str] = []
    monitor = AgingMonitor(summary=False, curves="scalars")
    with pytest.raises(KeyError):
        quiet_trainer(tmp_path, callbacks=[monitor, Saves()], logger=Other()).fit(SmallNet(), data())
    assert len(at_checkpoint) == len(monitor.record) == len(logged)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_run_that_goes_on_in_its_logger_has_each_point_once(tmp_path: Path) -> None:
    """Interrupt a run after its checkpoint, and continue it in the same event files."""

    class Saves(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 30:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    options: dict[str, Any] = {"summary": False, "dirpath": tmp_path / "files", "curves": "scalars"}
    quiet_trainer(
        tmp_path,
        callbacks=[AgingMonitor(**options), Saves()],
        logger=TensorBoardLogger(tmp_path, name="a", version=0),
        max_steps=30,
    ).fit(SmallNet(), data())
    logger, monitor = TensorBoardLogger(tmp_path, name="a", version=0), AgingMonitor(**options)
    quiet_trainer(tmp_path, callbacks=[monitor], logger=logger, max_steps=60).fit(
        SmallNet(), data(), ckpt_path=tmp_path / "a.ckpt"
    )
    record, events = monitor.record, EventAccumulator(logger.log_dir, size_guidance={"scalars": 0}).Reload()
    for waiting_time, row in zip(record.waiting_times, record.msd(), strict=True):
        steps = [event.step for event in events.Scalars(f"glassy/msd/tw_{waiting_time}")]
        assert steps == record.lags[np.isfinite(row)].tolist()


def test_a_training_that_goes_back_writes_no_abandoned_pair(clock: Clock, tmp_path: Path) -> None:
    table, notes, record = (
        CSVSink(SimpleNamespace(log_dir=str(tmp_path)), "glassy"),
        Notes(clock),
        AgingRecord({"all": 1}),
    )
    sinks = held(table, notes)
    for lag in range(1, 10):  # the first is written at once, and the others wait
        sinks.update(record, grown(record, lag), lag)
    record = record.before(6)
    sinks.go_back(record)
    for lag in range(6, 13):
        sinks.update(record, grown(record, lag), lag)
    sinks.close(record)
    assert notes.got == [(0, lag) for lag in range(1, 13)]
    lines = list(csv.reader((tmp_path / "glassy.csv").read_text().splitlines()))
    assert [line[1] for line in lines] == ["lag", *(str(lag) for lag in range(1, 13))]


def test_a_pair_that_is_measured_again_before_the_first_update_is_there_once(tmp_path: Path) -> None:
    """Set the weights in a hook after the measurement of lag 0."""

    class Sets(SmallNet):
        def on_train_batch_start(self, *_: Any) -> None:
            if self.global_step == 0:
                with torch.no_grad():
                    self.net[0].weight += 1

    logger = [TensorBoardLogger(tmp_path, "tb"), CSVLogger(tmp_path, "csv")]
    monitor = AgingMonitor(LogTimeSchedule([0, 2], [0, 1, 2]), summary=False, dirpath=tmp_path / "files")
    quiet_trainer(tmp_path, callbacks=[monitor], logger=logger, max_steps=5).fit(Sets(), data())
    assert (0, 0) in monitor.record
    lines = (Path(logger[1].log_dir) / "glassy.csv").read_text().splitlines()
    assert len(lines) == 1 + len(monitor.record)
    found = [one.record for one in records_in(list(Path(logger[0].log_dir).glob("*tfevents*")))]
    assert found == [monitor.record]


def test_a_table_that_could_not_be_corrected_is_corrected_later(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, sink = AgingRecord({"all": 1}), CSVSink(SimpleNamespace(log_dir=str(tmp_path)), "glassy")
    sinks = held(sink)
    for lag in range(1, 10):
        sinks.update(record, grown(record, lag), lag)
        clock.now += 10
    record = record.before(6)
    sinks.go_back(record)
    with monkeypatch.context() as patch:
        patch.setattr("lightning_glassy.loggers.csv.write_atomically", lambda *_: os.open("/nowhere", os.O_RDONLY))
        sinks.update(record, grown(record, 6), 6)
    sinks.close(record)
    lines = (tmp_path / "glassy.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in lines[1:]] == list("123456")


def test_steps_never_decrease_when_an_unknown_logger_comes_back(clock: Clock) -> None:
    steps: list[int] = []

    class Down(SimpleNamespace):
        room = 10**9

        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            self.room -= 1
            if self.room < 0:
                raise ConnectionError("no network")
            steps.append(step)

    logger, record = Down(), AgingRecord({"all": 1})
    sinks = held(MetricsSink(logger, "glassy", curves=True))
    for lag in range(1, 41):
        if lag == 20:
            logger.room = 3
        elif lag == 30:
            logger.room = 10**9
        sinks.update(record, grown(record, lag), lag)
        clock.now += 0.5
    sinks.close(record)
    assert steps == list(range(1, 41))


def test_scalars_that_a_full_disk_took_are_in_tensorboard_at_the_end(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, writer = AgingRecord({"all": 1}), SummaryWriter(tmp_path)
    logger = SimpleNamespace(experiment=writer, log_dir=str(tmp_path))
    sinks, flush = held(TensorBoardSink(logger, "glassy", curves=True)), SummaryWriter.flush
    for lag in range(1, 31):
        full = 10 <= lag < 20
        monkeypatch.setattr(SummaryWriter, "flush", (lambda self: os.open("/nowhere", 0)) if full else flush)
        sinks.update(record, grown(record, lag), lag)
        clock.now += 6
    sinks.close(record)
    writer.close()
    files = sorted(tmp_path.iterdir())
    found = [EventAccumulator(str(file)).Reload() for file in files]
    steps = {event.step for events in found for event in events.Scalars("glassy/msd/tw_0")}
    assert steps == set(range(1, 31))


# ---------------------------------------------------------------------- nothing inside the training


class Watches(Callback):
    """Counts the writes until the last step, and at the end."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.during: Counter[str] = Counter()
        self.loaded: set[str] = set()

    def on_train_end(self, *_: Any) -> None:
        self.during = self.counts.copy()


@contextlib.contextmanager
def counting(watches: Watches, **methods: tuple[Any, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, (owner, method) in methods.items():
            original = getattr(owner, method)

            def call(*arguments: Any, name: str = name, original: Callable[..., Any] = original, **options: Any) -> Any:
                watches.counts[name] += 1
                return original(*arguments, **options)

            patch.setattr(owner, method, call)
        yield


def test_a_training_draws_no_figure_and_writes_a_few_times(tmp_path: Path, clock: Clock) -> None:
    watches, monitor = Watches(), AgingMonitor(summary=False, curves="scalars")
    logger = [TensorBoardLogger(tmp_path), CSVLogger(tmp_path)]
    trainer = quiet_trainer(tmp_path, callbacks=[watches, monitor], logger=logger, max_steps=400)
    with counting(
        watches,
        figures=(Figures, "draw"),
        records=(AgingRecord, "save"),
        flushes=(TensorBoardSink, "_write"),
        tables=(CSVSink, "_append"),
        tables_of_values=(AgingRecord, "mean_table"),
    ):
        trainer.fit(SmallNet(), data())
    assert len(monitor.record) > 150
    assert watches.during["figures"] == 0
    assert watches.counts["figures"] == 1
    # This is the first event. The clock stands still, and later writes would come after a second, two, four and so on.
    assert all(watches.during[name] == 1 for name in ("records", "flushes", "tables", "tables_of_values"))
    images = EventAccumulator(logger[0].log_dir, size_guidance={"images": 0}).Reload().Tags()["images"]
    assert "glassy_figures/msd" in images


def test_no_plotting_library_is_imported_before_the_training_has_ended(tmp_path: Path) -> None:
    """If matplotlib is there, torchmetrics imports it, so the test hides it from all code but the figures."""
    code = f"""
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "matplotlib" else find(name, *more)
from pathlib import Path
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
import torchmetrics.utilities.imports
from lightning_glassy import AgingMonitor
from tests.helpers import SmallNet, data, quiet_trainer
heavy = ("matplotlib", "plotly", "pandas", "lightning_glassy.plotting", "lightning_glassy.analysis")
def loaded():
    return [name for name in heavy if name in sys.modules]
class Watches(Callback):
    def on_train_start(self, *_): self.before = set(sys.modules)
    def on_train_end(self, *_): print(sorted(set(loaded()) - self.before), sorted(loaded()))
logger, root = TensorBoardLogger({str(tmp_path)!r}), Path({str(tmp_path)!r})
callbacks = [AgingMonitor(summary=False), Watches()]
quiet_trainer(root, callbacks=callbacks, logger=logger, max_steps=1200).fit(SmallNet(), data())
print("lightning_glassy.plotting" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr[-2000:]
    first, last = [line for line in done.stdout.splitlines() if line[0] in "[TF"][:2]
    assert first.startswith("[] ")
    assert last == "True"


def test_each_figure_is_drawn_once_for_all_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(
        "lightning_glassy.loggers.figures.png", lambda figure: drawn.append(1) or SimpleNamespace(getvalue=bytes)
    )

    class Shows(Notes):
        place = "a logger"

        def log_figure(self, picture: Any) -> None:
            names.append((picture.name, picture.step, picture.png))

    names: list[Any] = []
    record = AgingRecord.from_trajectory(np.cumsum(np.ones((200, 5)), axis=0), LogTimeSchedule.logspaced(150))
    sinks = held(Shows(), Notes(), Shows())
    sinks.update(record, [], 7)
    sinks.draw(record)
    assert len(names) == 2 * len(drawn) > 4
    assert names[::2] == names[1::2]
    assert names[0] == ("msd", 7, b"")


@pytest.mark.parametrize("failing", [False, True])
def test_the_figures_of_a_training_come_after_all_callbacks_or_after_an_error(tmp_path: Path, failing: bool) -> None:
    order: list[str] = []

    class Ends(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if failing and trainer.global_step == 30:
                raise KeyError("an error")

        def on_train_end(self, *_: Any) -> None:
            order.append("end")

    logger = TensorBoardLogger(tmp_path)
    trainer = quiet_trainer(tmp_path, callbacks=[AgingMonitor(summary=False), Ends()], logger=logger)
    with pytest.MonkeyPatch.context() as patch:
        draw = Sinks.draw
        patch.setattr(Sinks, "draw", lambda *arguments: order.append("figures") or draw(*arguments))
        with pytest.raises(KeyError) if failing else contextlib.nullcontext():
            trainer.fit(SmallNet(), data())
    assert order == (["figures"] if failing else ["end", "figures"])
    assert "glassy_figures/msd" in EventAccumulator(logger.log_dir).Reload().Tags()["images"]


def test_a_killed_run_has_its_first_events_in_every_file(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning_glassy import AgingMonitor
from tests.helpers import SmallNet, data, quiet_trainer
class Kill(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 50:
            os.kill(os.getpid(), signal.SIGKILL)
root = Path({str(tmp_path)!r})
loggers = [TensorBoardLogger(root, "tb"), CSVLogger(root, "csv")]
quiet_trainer(root, callbacks=[AgingMonitor(dirpath=root / "files"), Kill()], logger=loggers).fit(SmallNet(), data())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment())
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    record = AgingRecord.load(tmp_path / "files" / "aging_record.npz")
    (found,) = records_in(list((tmp_path / "tb").rglob("*tfevents*")))
    (table,) = tmp_path.rglob("glassy.csv")
    assert (0, 1) in record
    assert found.record is not None
    assert (0, 1) in found.record
    assert "\n0,1,1,all," in table.read_text()


# ---------------------------------------------------------------------- many groups


def many(n: int = 500) -> AgingRecord:
    sizes = {"all": 20 * n, **{f"layers.{i}.weight": 20 + i for i in range(n)}}
    return AgingRecord(sizes, overlap_thresholds=[1e-3, 1e-2], meta={"module": "Net"})


def test_the_events_of_500_groups_take_little_more_than_their_record(tmp_path: Path, clock: Clock) -> None:
    record, rng, writer = many(), np.random.default_rng(0), SummaryWriter(tmp_path / "events")
    sinks = held(TensorBoardSink(SimpleNamespace(experiment=writer), "glassy"))
    for event in LogTimeSchedule.logspaced(300).events:
        for waiting_time in event.waiting_times:
            record.append(waiting_time, event.step - waiting_time, rng.random(record.row_shape))
        record.append_one_time("learning_rate", event.step, 0.05)
        sinks.update(
            record, [(waiting_time, event.step - waiting_time) for waiting_time in event.waiting_times], event.step
        )
        clock.now += 5.5  # one part for each event
    sinks.close(record)
    writer.close()
    (events,) = (tmp_path / "events").iterdir()
    assert events.stat().st_size < 1.5 * len(record.to_bytes())
    (found,) = records_in([events])
    assert found.record == record


def test_loggers_of_scalars_get_the_largest_groups_and_the_user_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = many()
    grown(record, 1)
    points = scalars(record, [(0, 1)], "glassy")
    groups = {tag.split("/")[2] if tag.count("/") == 3 else "all" for tag, *_ in points}
    assert groups == {"all", *(f"layers.{i}.weight" for i in range(500 - MOST_GROUPS, 500))}
    told: list[str] = []
    monkeypatch.setattr("lightning_glassy.callbacks.recorder.rank_zero_info", told.append)
    names = {f"group {i}": "net.0.*" for i in range(MOST_GROUPS + 1)}
    logger, monitor = (
        CSVLogger(tmp_path),
        AgingMonitor(groups=names, summary=False, schedule=LogTimeSchedule([0], [1]), curves="scalars"),
    )
    quiet_trainer(tmp_path, callbacks=[monitor], logger=logger, max_steps=2).fit(SmallNet(), data())
    assert sum(f"the {MOST_GROUPS} largest of {MOST_GROUPS + 1} groups" in words for words in told) == 1
    assert len((Path(logger.log_dir) / "glassy.csv").read_text().splitlines()) == 1 + MOST_GROUPS + 2


def test_scalars_are_the_values_of_the_record() -> None:
    walk = np.cumsum(np.random.default_rng(1).normal(size=(101, 30)), axis=0)
    record = AgingRecord.from_trajectory(walk, LogTimeSchedule.logspaced(100), groups={"a": range(10), "b": range(20)})
    pairs = list(zip(*(axis.tolist() for axis in record.pairs), strict=True))
    points = {(tag, lag): value for tag, _, lag, value in scalars(record, pairs, "glassy")}
    assert len({tag.split("/")[1] for tag, _ in points}) == 5
    assert len(points) == 5 * 3 * len(record)
    for (tag, lag), value in points.items():
        _, name, *group, last = tag.split("/")
        at = record.waiting_times.tolist().index(int(last[3:])), record.lags.tolist().index(lag)
        eps = float(name.removeprefix("overlap_")) if name.startswith("overlap") else None
        assert value == record.observable(name.split("_0")[0], *group, eps=eps)[at]


def test_the_mean_table_of_some_groups_has_their_lines() -> None:
    record = many(3)
    grown(record, 1)
    whole, some = record.mean_table(), record.mean_table(groups=["all", "layers.1.weight"])
    assert some == {name: [column[0], column[2]] for name, column in whole.items()}
    with pytest.raises(KeyError, match=r"no group 'layers\.9\.weight'"):
        record.mean_table(groups=["layers.9.weight"])


def test_a_part_looks_at_the_new_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    record, written, found = many(3), Written(), []
    for lag in range(1, 1001):
        grown(record, lag)
        record.append_profile("weights", 0, lag % 100, [0.0, 1.0], [lag, lag, lag])
    content, written = next_part(record, written)
    found.append(content)
    stacked: list[int] = []
    arrays = Table._arrays
    monkeypatch.setattr(Table, "_arrays", lambda table: stacked.append(len(table)) or arrays(table))
    monkeypatch.setattr(Table, "_at", lambda *_: pytest.fail("all rows are compared"))
    grown(record, 1001)
    record.append_profile("weights", 0, 7, [0.0, 1.0], [0, 0, 0])  # replaces an earlier one
    content, written = next_part(record, written)
    found.append(content)
    assert set(stacked) == {1}
    monkeypatch.undo()
    assert next_part(record, written) == (None, written)
    head = json.loads(content.split(b"\n")[0])
    assert (head["rows"], head["profiles"]["weights"][0]) == (1, 1)
    assert assemble(found) == record


def test_a_table_knows_the_rows_since_a_mark_whatever_happened_to_them() -> None:
    table = Table(("step",), ())
    for step in range(10):
        table.put((step,), np.array(float(step)))
    mark, other = table.mark(), Table(("step",), ())
    assert len(table.since(mark)) == 0
    assert table.since(None) is table
    table.put((3,), np.array(30.0))
    table.put((3,), np.array(31.0))
    table.extend(np.array([[4], [12]]), np.array([40.0, 12.0]), replace=True)
    table.put((11,), np.array(11.0))
    since = table.since(mark)
    assert since.keys[:, 0].tolist() == [3, 4, 11, 12]
    assert since.values.tolist() == [31.0, 40.0, 11.0, 12.0]
    # Take a mark of another table with the same content, as after a reload.
    for step in range(10):
        other.put((step,), np.array(float(step)))
    assert table.since(other.mark()) == since


def test_a_long_header_is_written_once_and_its_metadata_again() -> None:
    record, written, found = many(2000), Written(), []
    for lag in range(1, 6):
        grown(record, lag)
        record.meta["costs"] = {"seconds": lag}
        content, written = next_part(record, written)
        found.append(content)
    heads = [json.loads(content.split(b"\n")[0]) for content in found]
    assert ["header" in head for head in heads] == [True, False, False, False, False]
    assert [head["meta"]["costs"]["seconds"] for head in heads[1:]] == [2, 3, 4, 5]
    joined = assemble(found)
    assert joined == record
    assert joined.meta == record.meta
    assert next_part(record, written) == (None, written)


@pytest.mark.parametrize("n", [*range(10), 63, 64, 511, 512, 513, 1024, 70_000])
def test_the_checksum_is_that_of_tensorboard(n: int) -> None:
    content = np.random.default_rng(n).bytes(n)
    assert masked_crc32c(content) == pywrap_tensorflow.masked_crc32c(content)


def test_the_writer_of_tensorboard_computes_no_long_checksum_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    update = pywrap_tensorflow.crc_update
    monkeypatch.setattr(
        pywrap_tensorflow, "crc_update", lambda crc, data: lengths.append(len(data)) or update(crc, data)
    )
    record, writer = many(), SummaryWriter(tmp_path)
    TensorBoardSink(SimpleNamespace(experiment=writer), "glassy").update(record, grown(record, 1), 1)
    writer.close()
    assert lengths
    assert max(lengths) < 300  # the first event of the file is written before


def test_show_names_a_few_of_very_many_groups_and_counts_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = many(2000)
    grown(record, 1)
    for i in range(100):
        record.append_one_time(f"gradient_noise/layers.{i}.weight", 1, 1.0)
    copies: list[int] = []
    sizes = AgingRecord.n_sampled.fget
    monkeypatch.setattr(AgingRecord, "n_sampled", property(lambda record: copies.append(1) or sizes(record)))  # type: ignore[misc]
    path = record.save(tmp_path / "record.npz")
    assert cli.main(["show", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 100
    assert len(copies) < 5
    groups = [line for line in lines if line.startswith("  group ")]
    assert groups[0].endswith("'all': N = 40,000")
    assert groups[-1].endswith("'layers.1999.weight': N = 2,019")
    assert sum("and 1,961 more groups, none of them larger: --json lists all" in line for line in lines) == 1
    assert sum("and 60 more series: --json lists all" in line for line in lines) == 1
    assert cli.main(["show", str(path), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["n_parameters"]) == 2001


def test_what_a_few_quick_events_have_left_is_written_before_the_next_event(clock: Clock) -> None:
    """In a long run, events are far apart."""
    sink, record = Notes(clock), AgingRecord({"all": 1})
    sinks, look = held(sink), 0
    for step in range(1, 20_001):  # a millisecond each, with events at steps 1 to 20 alone
        pairs = grown(record, step) if step <= 20 else []
        if pairs or step >= look:
            sinks.update(record, pairs, step)
            look = sinks.next_look(step)
        clock.now += 0.001
    assert sink.got == [(0, lag) for lag in range(1, 21)]
    assert len(sink.times) == 2
    assert look == sys.maxsize


def test_a_training_writes_what_waits_although_its_next_event_is_far_away(clock: Clock, tmp_path: Path) -> None:
    tables: list[str] = []

    class Looks(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            clock.now += 0.1
            if trainer.global_step == 200:
                tables.extend(path.read_text() for path in tmp_path.rglob("glassy.csv"))

    monitor = AgingMonitor(LogTimeSchedule([0], [*range(1, 21), 10_000]), summary=False)
    logger = CSVLogger(tmp_path, "csv")
    quiet_trainer(tmp_path, callbacks=[monitor, Looks()], logger=logger, max_steps=201).fit(SmallNet(), data())
    (table,) = tables
    assert len(table.splitlines()) == 1 + 20

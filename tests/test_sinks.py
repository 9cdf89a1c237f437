"""What TensorBoard and the files show of a run, read back as a user would see it."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_glassy import (
    AgingMonitor,
    AgingRecord,
    BarrierMonitor,
    CurvatureMonitor,
    DisplacementDistribution,
    GradientNoiseMonitor,
    LogTimeEvaluator,
    LogTimeSchedule,
)
from lightning_glassy.loggers.dispatch import log_directory
from lightning_glassy.loggers.figures import Figures
from lightning_glassy.loggers.files import FileSink
from lightning_glassy.loggers.tensorboard import TensorBoardSink
from lightning_glassy.observables import OBSERVABLES
from lightning_glassy.plotting import plot_two_time, two_time_figure
from tests.helpers import SmallNet, data, quiet_trainer


@pytest.fixture
def record() -> AgingRecord:
    walk = np.cumsum(np.random.default_rng(1).normal(size=(2001, 300)), axis=0)
    return AgingRecord.from_trajectory(walk, LogTimeSchedule.logspaced(2000))


def test_tensorboard_has_one_tag_per_waiting_time_with_the_lag_as_its_step(tmp_path: Path) -> None:
    logger, monitor = TensorBoardLogger(tmp_path), AgingMonitor(groups="layer")
    quiet_trainer(tmp_path, callbacks=[monitor], logger=logger, max_steps=1200).fit(SmallNet(), data())
    events = EventAccumulator(logger.log_dir, size_guidance={"scalars": 0, "images": 0}).Reload()
    record = monitor.record
    eps = record.overlap_thresholds[0]
    for tag, values in (
        ("glassy/msd/tw_{}", record.msd()),
        ("glassy/msd/net.0/tw_{}", record.msd("net.0")),
        ("glassy/decorrelation/tw_{}", record.decorrelation()),
        ("glassy/non_gaussian/tw_{}", record.non_gaussian()),
        (f"glassy/overlap_{eps:.6g}/tw_{{}}", record.overlap(eps)),
    ):
        for waiting_time, row in zip(record.waiting_times, values, strict=True):
            shown = events.Scalars(tag.format(waiting_time))
            measured = np.isfinite(row)
            assert [event.step for event in shown] == record.lags[measured].tolist()
            assert np.allclose([event.value for event in shown], row[measured], rtol=1e-6)
    figures = [tag for tag in events.Tags()["images"] if tag.startswith("glassy_figures/")]
    assert set(figures) == {
        "glassy_figures/msd",
        "glassy_figures/non_gaussian",
        *(f"glassy_figures/overlap_{eps:.6g}" for eps in record.overlap_thresholds),
    }
    for tag in figures:
        assert [image.step for image in events.Images(tag)] == [1000, 1200]
        assert all(image.width > 500 for image in events.Images(tag))


def test_without_matplotlib_the_curves_are_there_and_the_extra_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    logger, monitor = TensorBoardLogger(tmp_path), AgingMonitor()
    with caplog.at_level(logging.WARNING):
        quiet_trainer(tmp_path, callbacks=[monitor], logger=logger, max_steps=1200).fit(SmallNet(), data())
    told = [message for message in caplog.messages if "lightning-glassy[plot]" in message]
    assert len(told) == 1
    events = EventAccumulator(logger.log_dir).Reload()
    assert "glassy/msd/tw_10" in events.Tags()["scalars"]


def test_without_the_package_tensorboard_the_rest_is_written_and_the_tab_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where Lightning writes by tensorboardX."""
    logger, monitor = TensorBoardLogger(tmp_path), AgingMonitor()
    assert logger.experiment  # imported before it is taken away
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.summary_pb2", None)
    with caplog.at_level(logging.WARNING):
        quiet_trainer(tmp_path, callbacks=[monitor], logger=logger).fit(SmallNet(), data())
    assert len([message for message in caplog.messages if "no tab in TensorBoard" in message]) == 1
    tags = EventAccumulator(logger.log_dir).Reload().Tags()
    assert "glassy/msd/tw_10" in tags["scalars"]
    assert not any(tag.startswith("glassy_record/") for tag in tags["tensors"])


def test_the_msd_alone_is_logged_without_the_rest(tmp_path: Path) -> None:
    logger, monitor = TensorBoardLogger(tmp_path), AgingMonitor(moments="msd")
    quiet_trainer(tmp_path, callbacks=[monitor], logger=logger).fit(SmallNet(), data())
    tags = EventAccumulator(logger.log_dir).Reload().Tags()
    assert {tag.split("/")[1] for tag in tags["scalars"] if tag.startswith("glassy/")} == {"msd"}
    assert list(tags["images"]) == ["glassy_figures/msd"]


def test_figures_are_drawn_at_every_decade_and_at_the_end(record: AgingRecord) -> None:
    drawn: list[tuple[str, int]] = []
    experiment = SimpleNamespace(
        add_scalar=lambda *_, **__: None,
        add_figure=lambda tag, figure, global_step: drawn.append((tag, global_step)),
        flush=lambda: None,
        _get_file_writer=lambda: SimpleNamespace(add_summary=lambda *_: None),
    )
    sink = TensorBoardSink(SimpleNamespace(experiment=experiment), "glassy")
    events = LogTimeSchedule.logspaced(20_000).events
    for event in events:
        sink.update(record, [], event.step)
    sink.close(record)
    first, second, last = (step for tag, step in drawn if tag == "glassy_figures/msd")
    assert 1000 <= first < 1100  # the first event from there on
    assert 10_000 <= second < 12_000
    assert last == events[-1].step


def test_tensorboard_shows_what_other_callbacks_have_measured(tmp_path: Path) -> None:
    logger, options = TensorBoardLogger(tmp_path), {"save": False, "summary": False}
    probes = [
        LogTimeEvaluator(loaders={"test": data(n=24, shuffle=False)}, **options),
        GradientNoiseMonitor(**options),
        BarrierMonitor(**options),
        DisplacementDistribution(**options),
        CurvatureMonitor(n_nodes=8, **options),
    ]
    callbacks = [AgingMonitor(groups="layer", **options), *probes]
    quiet_trainer(tmp_path, callbacks=callbacks, logger=logger, max_steps=60).fit(SmallNet(), data())
    tags = EventAccumulator(logger.log_dir).Reload().Tags()["images"]
    wanted = {"loss", "gradient_noise", "displacement_over_noise", "noise_clock"}
    wanted |= {"barriers", "distributions", "curvature"}
    assert wanted == {tag.removeprefix("glassy_figures/") for tag in tags} - {
        *("msd", "non_gaussian"),
        *(f"overlap_{eps:.6g}" for eps in callbacks[0].record.overlap_thresholds),
    }


def test_a_figure_that_cannot_be_drawn_is_said_once_and_leaves_the_others(
    record: AgingRecord, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 10, 100):
        record.append_one_time("train_loss", step, 1 / step)
        record.append_one_time("gradient_noise", step, 1 / step)
    figures = Figures("TensorBoard")
    every = [name for name, _ in figures.draw(record)]
    assert every[:2] == ["msd", "non_gaussian"]
    assert every[-4:] == ["loss", "gradient_noise", "displacement_over_noise", "noise_clock"]
    monkeypatch.setattr("lightning_glassy.plotting.panels.plot_gradient_noise", lambda *_, **__: 1 / 0)
    for _ in range(2):
        assert [name for name, _ in figures.draw(record)] == [name for name in every if name != "gradient_noise"]
    assert caplog.messages == ["lightning_glassy: no figure 'gradient_noise' in TensorBoard: division by zero"]


def test_losses_alone_have_a_figure_without_pairs_and_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = AgingRecord({"all": 1}, meta={})
    assert list(Figures("TensorBoard").draw(alone)) == []
    for step in range(1, 40):
        alone.append_one_time("train_loss", step, 1 / step)
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    ((name, figure),) = Figures("TensorBoard").draw(alone)
    assert name == "loss"
    assert len(figure.axes[0].get_lines()[0].get_xdata()) == 39


def test_without_scipy_the_figures_that_need_it_are_named_and_the_others_drawn(
    record: AgingRecord, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 10, 100):
        record.append_one_time("gradient_noise", step, 1 / step)
    for module in [name for name in sys.modules if name.split(".")[0] == "scipy" or ".analysis" in name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "scipy", None)
    names = [name for name, _ in Figures("TensorBoard").draw(record)]
    assert {"msd", "gradient_noise"} <= set(names)
    assert "displacement_over_noise" not in names
    assert any("no figure 'displacement_over_noise'" in words and "[analysis]" in words for words in caplog.messages)
    assert not any("no figures" in words for words in caplog.messages)


def test_what_never_moved_can_be_drawn() -> None:
    still = AgingRecord.from_trajectory(np.ones((50, 5)), LogTimeSchedule.logspaced(49))
    for quantity in ("msd", "non_gaussian", "overlap"):
        assert two_time_figure(still, quantity).axes[0].get_xlabel()


def test_files_are_rewritten_as_the_run_grows_by_a_tenth(tmp_path: Path, record: AgingRecord) -> None:
    sink, path, written = FileSink(tmp_path), tmp_path / "aging_record.npz", []
    for step in range(1001):
        before = path.stat().st_mtime_ns if path.exists() else 0
        sink.update(record, [], step)
        if path.stat().st_mtime_ns != before:
            written.append(step)
    late = [b / a for a, b in itertools.pairwise(written) if a > 100]
    assert 40 < len(written) < 60
    assert all(1.08 < ratio < 1.12 for ratio in late)


def test_what_killed_runs_have_left_is_removed_after_an_hour(tmp_path: Path, record: AgingRecord) -> None:
    source = record.save(tmp_path / "source.npz")
    directory = tmp_path / "glassy"
    code = (
        "import os, sys, signal\n"
        "from lightning_glassy import AgingRecord\n"
        "record = AgingRecord.load(sys.argv[1])\n"
        "os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)\n"
        "getattr(record, sys.argv[2])(sys.argv[3])"
    )
    for method, name in (("save", "aging_record.npz"), ("save", "aging_record-1.npz"), ("to_csv", "aging_record.csv")):
        subprocess.run([sys.executable, "-c", code, source, method, directory / name], check=False)
    left = list(directory.iterdir())
    assert len(left) == 3
    others = [directory / name for name in (".aging_record.npz", ".aging_record.npz.backup", ".model.npz.0123456789ab")]
    for path in others:
        path.touch()
    FileSink(directory).update(record, [], 0)
    assert all(path.exists() for path in left)  # a write may be under way
    for path in left + others:
        os.utime(path, (0, time.time() - 4000))
    FileSink(directory).update(record, [], 0)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)
    assert AgingRecord.load(directory / "aging_record-1.npz") == record


def test_logger_directories_are_those_of_checkpoints(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="a", version=3)
    assert log_directory([logger], "elsewhere") == tmp_path / "a" / "version_3"
    assert log_directory([], "elsewhere") == Path("elsewhere")


@pytest.mark.parametrize(
    "quantity", [n for n, entry in OBSERVABLES.items() if not entry.over_replicas and "noise" not in entry.inputs]
)
def test_every_quantity_has_a_curve_per_waiting_time(record: AgingRecord, quantity: str) -> None:
    axes = two_time_figure(record, quantity).axes[0]
    assert len(axes.get_lines()) == len(record.waiting_times)
    assert axes.get_xscale() == "log"
    line = axes.get_lines()[3]
    row = record.observable(quantity)[3]
    row = np.where((row > 0) | (axes.get_yscale() != "log"), row, np.nan)
    assert line.get_xdata().tolist() == record.lags[np.isfinite(row)].tolist()
    assert np.array_equal(line.get_ydata(), row[np.isfinite(row)])


def test_plots_that_cannot_be_are_refused(record: AgingRecord) -> None:
    with pytest.raises(ValueError, match="quantity='entropy'"):
        plot_two_time(record, "entropy")
    with pytest.raises(ValueError, match="no measured pair"):
        plot_two_time(AgingRecord({"all": 3}))


def test_a_file_system_without_links_has_the_files_all_the_same(
    tmp_path: Path, record: AgingRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    sinks = [FileSink(tmp_path), FileSink(tmp_path)]
    for sink in sinks:
        sink.update(record, [], 1)
        sink.close(record)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"aging_record{number}{suffix}" for number in ("", "-1") for suffix in (".npz", ".csv")}
    assert all(AgingRecord.load(path) == record for path in tmp_path.glob("*.npz"))

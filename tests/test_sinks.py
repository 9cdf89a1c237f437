"""The content of TensorBoard and of the files, read back as a user would see it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import fsspec
import numpy as np
import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
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
from lightning_glassy.loggers.dispatch import log_directory, sink_for
from lightning_glassy.loggers.figures import Figures
from lightning_glassy.loggers.files import FileSink
from lightning_glassy.loggers.remote import RemoteSink
from lightning_glassy.observables import OBSERVABLES
from lightning_glassy.plotting import plot_two_time, two_time_figure
from lightning_glassy.tensorboard.events import place_of
from lightning_glassy.tensorboard.parts import assemble
from tests.helpers import SmallNet, data, quiet_trainer


@pytest.fixture
def record() -> AgingRecord:
    walk = np.cumsum(np.random.default_rng(1).normal(size=(2001, 300)), axis=0)
    return AgingRecord.from_trajectory(walk, LogTimeSchedule.logspaced(2000))


def test_tensorboard_has_one_tag_per_waiting_time_with_the_lag_as_its_step(tmp_path: Path) -> None:
    logger, monitor = TensorBoardLogger(tmp_path), AgingMonitor(groups="layer", curves="scalars")
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
        assert [image.step for image in events.Images(tag)] == [1200]
        assert all(image.width > 500 for image in events.Images(tag))


def test_without_matplotlib_the_curves_are_there_and_the_extra_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    logger, monitor = TensorBoardLogger(tmp_path), AgingMonitor(curves="scalars")
    with caplog.at_level(logging.WARNING):
        quiet_trainer(tmp_path, callbacks=[monitor], logger=logger, max_steps=1200).fit(SmallNet(), data())
    told = [message for message in caplog.messages if "lightning-glassy[plot]" in message]
    assert len(told) == 1
    events = EventAccumulator(logger.log_dir).Reload()
    assert "glassy/msd/tw_10" in events.Tags()["scalars"]


def test_without_the_package_tensorboard_the_rest_is_written_and_the_tab_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Remove the package, as if Lightning wrote by tensorboardX."""
    logger, monitor = TensorBoardLogger(tmp_path), AgingMonitor(curves="scalars")
    assert logger.experiment  # imported before it is removed
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.summary_pb2", None)
    with caplog.at_level(logging.WARNING):
        quiet_trainer(tmp_path, callbacks=[monitor], logger=logger).fit(SmallNet(), data())
    assert len([message for message in caplog.messages if "no tab in TensorBoard" in message]) == 1
    tags = EventAccumulator(logger.log_dir).Reload().Tags()
    assert "glassy/msd/tw_10" in tags["scalars"]
    assert not any(tag.startswith("glassy_record/") for tag in tags["tensors"])


def test_the_msd_alone_is_logged_without_the_rest(tmp_path: Path) -> None:
    logger, monitor = TensorBoardLogger(tmp_path), AgingMonitor(moments="msd", curves="scalars")
    quiet_trainer(tmp_path, callbacks=[monitor], logger=logger).fit(SmallNet(), data())
    tags = EventAccumulator(logger.log_dir).Reload().Tags()
    assert {tag.split("/")[1] for tag in tags["scalars"] if tag.count("/") == 2} == {"msd"}
    assert list(tags["images"]) == ["glassy_figures/msd"]


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
    assert all(path.exists() for path in left)  # a write may still be running
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


@pytest.mark.parametrize("given", ["file://{}", "file:{}", "local://{}", "{}"])
def test_an_address_of_a_local_directory_is_local(tmp_path: Path, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = given.format(tmp_path / "root")
    for n, (options, logger) in enumerate((({"dirpath": root}, False), ({}, False), ({}, CSVLogger(root))), 1):
        monitor = AgingMonitor(**options)
        quiet_trainer(root, callbacks=[monitor], logger=logger, max_steps=3).fit(SmallNet(), data())
        written = list(tmp_path.rglob("aging_record*.npz"))
        assert len(written) == n
        assert all(path.is_relative_to(tmp_path / "root") for path in written)
        assert monitor.record in list(map(AgingRecord.load, written))
    assert (tmp_path / "root" / "lightning_logs" / "version_0" / "glassy.csv").is_file()


def test_a_training_that_changes_the_working_directory_leaves_one_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wanders(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            (tmp_path / "elsewhere").mkdir(exist_ok=True)
            os.chdir(tmp_path / "elsewhere")

    for n, options in enumerate(({"dirpath": "here"}, {}, {"logger": True})):
        monkeypatch.chdir(tmp_path)
        logger = CSVLogger("here") if options.pop("logger", None) else False
        callbacks = [AgingMonitor(**options), Wanders()]
        quiet_trainer(Path("here"), callbacks=callbacks, logger=logger).fit(SmallNet(), data())
        written = [path for path in tmp_path.rglob("*") if path.suffix == ".npz" or path.name == "glassy.csv"]
        assert len(written) == (1, 2, 4)[n]
        assert all(path.is_relative_to(tmp_path / "here") for path in written)


# ---------------------------------------------------------------------- other file systems


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/runs", recursive=True)


def load_remote(system: Any, path: str, tmp_path: Path) -> AgingRecord:
    system.get_file(path, str(tmp_path / "loaded.npz"))
    return AgingRecord.load(tmp_path / "loaded.npz")


def test_a_remote_directory_has_the_complete_files_and_nothing_else(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first, second = AgingMonitor(), AgingMonitor(dirpath="memory://runs/glassy")
    quiet_trainer("memory://runs", callbacks=[first]).fit(SmallNet(), data())
    quiet_trainer(tmp_path, callbacks=[second]).fit(SmallNet(), data())
    names = [f"/runs/glassy/aging_record{n}.{suffix}" for n in ("-1", "") for suffix in ("csv", "npz")]
    assert memory.find("/runs") == names
    assert load_remote(memory, names[3], tmp_path) == first.record
    assert load_remote(memory, names[1], tmp_path) == second.record
    assert memory.cat(names[2]) == first.record.to_csv(tmp_path / "table.csv").read_bytes()
    assert not list(tmp_path.glob("lightning_glassy_*"))


@pytest.mark.filterwarnings("ignore:AgingMonitor.*without earlier snapshots")
def test_a_resumed_training_goes_on_with_its_remote_file(tmp_path: Path, memory: Any) -> None:
    def train(steps: int, **options: Any) -> AgingRecord:
        callbacks: list[Any] = [AgingMonitor()]
        trainer = quiet_trainer("memory://runs", callbacks=callbacks, max_steps=steps)
        trainer.fit(SmallNet(), data(), **options)
        trainer.save_checkpoint(tmp_path / f"step={steps}.ckpt")
        return callbacks[0].record

    train(12)
    record = train(24, ckpt_path=tmp_path / "step=12.ckpt")
    assert [path for path in memory.find("/runs") if path.endswith("npz")] == ["/runs/glassy/aging_record.npz"]
    assert load_remote(memory, "/runs/glassy/aging_record.npz", tmp_path) == record


def test_a_remote_file_system_that_fails_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    monitor = AgingMonitor(dirpath="nowhere://runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path))
        quiet_trainer(tmp_path, callbacks=[monitor]).fit(SmallNet(), data())
    (told,) = [message for message in caplog.messages if "RemoteSink failed" in message]
    (local,) = tmp_path.glob("lightning_glassy_*/aging_record.npz")
    assert "nowhere://runs cannot be written (ValueError: Protocol not known: nowhere" in told
    assert f"The files of the record are in {local.parent}" in told
    assert AgingRecord.load(local) == monitor.record


@pytest.mark.parametrize("failing", ["makedirs", "ls", "put_file", "mv"])
def test_a_remote_file_system_that_comes_back_gets_the_record(
    tmp_path: Path, memory: Any, record: AgingRecord, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("the network is down")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    memory.pipe("/runs/aging_record.csv", b"another")
    sink = RemoteSink("memory://runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(memory), failing, fail)
        with pytest.raises(OSError, match="the network is down"):
            sink.update(record, [], 1)
        sink.update(record, [], 2)  # no other try so soon
        with pytest.raises(OSError, match="the network is down"):
            sink.close(record)
    (local,) = tmp_path.glob("lightning_glassy_*/aging_record*.npz")
    assert AgingRecord.load(local) == record
    assert sink.where() == f"record     {local} (and .csv)"
    assert memory.find("/runs") == ["/runs/aging_record.csv"]
    sink.close(record)
    assert sink.where() == "record     memory://runs/aging_record-1.npz (and .csv)"
    assert load_remote(memory, "/runs/aging_record-1.npz", tmp_path) == record
    assert memory.cat("/runs/aging_record.csv") == b"another"


def test_the_prefix_of_a_logger_is_in_all_that_it_gets(tmp_path: Path) -> None:
    logger, callbacks = TensorBoardLogger(tmp_path, prefix="fold"), [AgingMonitor(), LogTimeEvaluator(3)]
    quiet_trainer(tmp_path, callbacks=callbacks, logger=logger).fit(SmallNet(), data())
    events = EventAccumulator(logger.log_dir).Reload()
    tags = [tag for kind in ("scalars", "images", "tensors") for tag in events.Tags()[kind]]
    tags += events.PluginTagToContent("glassy")
    ours = [tag for tag in tags if "glassy" in tag]
    assert {tag.split("/")[0] for tag in ours} == {
        f"fold-glassy{kind}" for kind in ("", "_figures", "_series", "_record")
    }
    (place, *_) = {place_of(tag) for tag in events.PluginTagToContent("glassy")}
    assert place is not None
    assert place.monitor == "fold-glassy"  # the tab shows the record under this name
    parts = [events.PluginTagToContent("glassy")[tag] for tag in sorted(events.PluginTagToContent("glassy"))]
    assert len(assemble(parts)) == len(callbacks[0].record)


@pytest.mark.parametrize(
    ("kind", "join", "expected"),
    [
        ("WandbLogger", "-", "fold-glassy"),
        ("MLFlowLogger", "/", "fold/glassy"),
        ("CometLogger", None, "fold_glassy"),
        ("CSVLogger", "-", "glassy"),
        ("AnyLogger", "-", "glassy"),
    ],
)
def test_each_kind_of_logger_has_its_prefix_once(tmp_path: Path, kind: str, join: str | None, expected: str) -> None:
    members = {"_prefix": "fold", "log_dir": str(tmp_path), "experiment": MagicMock()}
    members |= {} if join is None else {"LOGGER_JOIN_CHAR": join}
    sink = sink_for(type(kind, (), members)(), "glassy")
    assert (sink._wanted.stem if kind == "CSVLogger" else sink._prefix) == expected


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

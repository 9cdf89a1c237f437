"""Test the callback in real Trainers: ordinary uses, and trainings in which something goes wrong."""

from __future__ import annotations

import ast
import copy
import gc
import logging
import pickle
import re
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

import lightning_glassy
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
from tests.brute_force import BruteForce
from tests.helpers import Recomputing, SmallNet, data, environment, quiet_trainer
from tests.processes import launch


def expected_pairs(max_step: int) -> set[tuple[int, int]]:
    return set(LogTimeSchedule.logspaced(max_step).pairs)


def pairs(record: AgingRecord) -> set[tuple[int, int]]:
    return set(zip(*(axis.tolist() for axis in record.pairs), strict=True))


class Weights(Callback):
    """Copies the weights at every optimiser step. The record is checked against this trajectory."""

    def __init__(self) -> None:
        self.steps: dict[int, np.ndarray] = {}

    def _copy(self, trainer: Any, module: LightningModule) -> None:
        flat = torch.cat([p.detach().double().flatten() for p in module.parameters()])
        self.steps[trainer.global_step] = flat.numpy().copy()

    def on_train_start(self, trainer: Any, pl_module: LightningModule) -> None:
        self._copy(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
        self._copy(trainer, pl_module)

    def check(self, record: AgingRecord, rtol: float = 1e-6) -> None:
        msd = record.msd()
        for i, waiting_time in enumerate(record.waiting_times.tolist()):
            for j, lag in enumerate(record.lags.tolist()):
                if np.isfinite(msd[i, j]):
                    d = self.steps[waiting_time + lag] - self.steps[waiting_time]
                    assert msd[i, j] == pytest.approx(np.mean(d**2), rel=rtol)


def test_one_callback_gives_the_whole_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor, weights = AgingMonitor(), Weights()
    quiet_trainer(tmp_path, callbacks=[monitor, weights]).fit(SmallNet(), data())
    record = monitor.record
    assert pairs(record) == expected_pairs(60)
    weights.check(record)
    assert record.n_parameters == {"all": 8 * 16 + 16 + 16 * 3 + 3}
    path = tmp_path / "glassy" / "aging_record.npz"
    assert AgingRecord.load(path) == record
    assert path.with_suffix(".csv").read_text().count("\n") == len(record) + 1
    printed = capsys.readouterr().out
    assert "Aging of 195 parameters" in printed
    assert str(path) in printed


def test_the_verdict_and_the_exponent_are_told_at_the_end(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def train(max_steps: int) -> str:
        trainer = quiet_trainer(tmp_path, callbacks=[AgingMonitor(save=False)], max_steps=max_steps)
        trainer.fit(SmallNet(), data())
        return capsys.readouterr().out

    long = train(400)
    assert re.search(r"^verdict: (aging throughout|aging that stops|no aging|cannot tell)", long, flags=re.MULTILINE)
    assert "no aging exponent: the curves of the MSD " in long
    assert "no interval: 1 replica" in long
    short = train(8)
    assert "Aging of 195 parameters" in short
    assert "verdict" not in short
    # Without scipy, or if the analysis fails, the table is printed and the training is not affected.
    monkeypatch.setattr("lightning_glassy.analysis.verdict", lambda record: 1 / 0)
    assert "verdict" not in train(100)
    assert "could not be analysed (ZeroDivisionError" in caplog.text
    monkeypatch.setitem(sys.modules, "lightning_glassy.analysis", None)
    assert "no verdict and no aging exponent: " in train(100)


def test_the_record_knows_the_run(tmp_path: Path) -> None:
    seed_everything(11)
    monitor = AgingMonitor()
    trainer = quiet_trainer(tmp_path, callbacks=[monitor], accumulate_grad_batches=2, max_steps=20)
    trainer.fit(SmallNet(lr=0.25), data(batch_size=6))
    meta = AgingRecord.load(tmp_path / "glassy" / "aging_record.npz").meta
    assert meta["schedule"].startswith("LogTimeSchedule.logspaced(")
    assert meta["max_step"] == 20
    assert meta["module"] == "SmallNet"
    assert meta["optimizers"][0]["name"] == "SGD"
    assert meta["optimizers"][0]["parameter_groups"][0]["lr"] == 0.25
    assert meta["batch_size"] == 6
    assert meta["sampler"] == "RandomSampler"
    assert meta["accumulate_grad_batches"] == 2
    assert meta["seed"] == "11"
    assert meta["dtypes"]["net.0.weight"] == "float32"
    assert meta["versions"]["torch"].startswith(torch.__version__.split("+")[0])


def test_the_order_and_size_of_the_batches_are_known_however_the_loader_is_made(tmp_path: Path) -> None:
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler

    dataset = data().dataset
    batches = BatchSampler(RandomSampler(dataset), 6, drop_last=False)
    for loader, size, order in (
        (DataLoader(dataset, batch_sampler=batches), 6, "RandomSampler"),
        (DataLoader(dataset, sampler=batches, batch_size=None), 6, "RandomSampler"),
        (DataLoader(dataset, batch_size=8), 8, "SequentialSampler"),
    ):
        monitor = AgingMonitor(save=False)
        quiet_trainer(tmp_path, callbacks=[monitor], max_steps=2).fit(SmallNet(), loader)
        assert (monitor.record.meta["batch_size"], monitor.record.meta["sampler"]) == (size, order)


def test_training_is_the_same_to_the_bit(tmp_path: Path) -> None:
    def run(callbacks: list[Callback]) -> tuple[list[torch.Tensor], torch.Tensor]:
        seed_everything(3)
        model = SmallNet()
        trainer = quiet_trainer(tmp_path, callbacks=callbacks, max_steps=-1, max_epochs=4)
        trainer.fit(model, data(), data(shuffle=False))
        return list(model.state_dict().values()), torch.random.get_rng_state()

    with_it, state_with = run([AgingMonitor(groups="layer", sample=50), AgingMonitor(sample=None)])
    without, state_without = run([])
    assert all(torch.equal(a, b) for a, b in zip(with_it, without, strict=True))
    assert torch.equal(state_with, state_without)


def test_accumulation_counts_optimiser_steps(tmp_path: Path) -> None:
    monitor, weights = AgingMonitor(), Weights()
    trainer = quiet_trainer(tmp_path, callbacks=[monitor, weights], accumulate_grad_batches=5, max_steps=13)
    trainer.fit(SmallNet(), data())
    assert pairs(monitor.record) == expected_pairs(13)
    weights.check(monitor.record)


class TwoOptimisers(SmallNet):
    """Optimises by hand with two optimisers, so that the count of steps grows by two per batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self._loss(batch))
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.net[0].parameters(), lr=0.1), torch.optim.Adam(self.net[3].parameters())]


def test_manual_optimisation_with_two_optimisers(tmp_path: Path) -> None:
    monitor, weights = AgingMonitor(), Weights()
    trainer = quiet_trainer(tmp_path, callbacks=[monitor, weights], max_steps=-1, max_epochs=5)
    trainer.fit(TwoOptimisers(), data())  # 60 batches, 120 steps: an estimate by batches would stop half-way
    record = monitor.record
    assert set(record.waiting_times.tolist()) >= {0, 2, 10, 22, 46, 100}
    assert (record.lags % 2 == 0).all()
    assert max(record.lags) == 100
    weights.check(record)
    assert {"learning_rate", "learning_rate_1_0"} <= set(record.one_time_names)


def test_validation_in_between_is_not_measured(tmp_path: Path) -> None:
    monitor, weights = AgingMonitor(), Weights()
    trainer = quiet_trainer(tmp_path, callbacks=[monitor, weights], val_check_interval=3, num_sanity_val_steps=2)
    trainer.fit(SmallNet(), data(), data(shuffle=False))
    assert pairs(monitor.record) == expected_pairs(60)
    weights.check(monitor.record)


def test_a_run_of_unknown_length_is_open_ended(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= 150

    monitor = AgingMonitor()
    quiet_trainer(tmp_path, callbacks=[monitor, Stop()], max_steps=-1, max_epochs=-1).fit(SmallNet(), data())
    assert pairs(monitor.record) == {(tw, lag) for tw, lag in expected_pairs(150)}
    assert monitor.record.meta["max_step"] is None


def test_fast_dev_run_measures_and_writes_nothing(tmp_path: Path) -> None:
    monitor = AgingMonitor(schedule="baity-jesi")
    quiet_trainer(tmp_path, callbacks=[monitor], fast_dev_run=True, max_steps=-1).fit(SmallNet(), data())
    assert pairs(monitor.record) == {(0, 1)}
    assert list(tmp_path.iterdir()) == []


def test_presets_take_the_length_of_the_run(tmp_path: Path) -> None:
    monitor = AgingMonitor(schedule="baity-jesi")
    quiet_trainer(tmp_path, callbacks=[monitor], max_steps=100).fit(SmallNet(), data())
    assert pairs(monitor.record) == set(LogTimeSchedule.preset("baity-jesi", 100).pairs)
    with pytest.raises(ValueError, match="'subaging' needs a run of known length"):
        quiet_trainer(tmp_path, callbacks=[AgingMonitor("subaging")], max_steps=-1, max_epochs=-1).fit(
            SmallNet(), data()
        )


def test_learning_rates_are_recorded_at_events(tmp_path: Path) -> None:
    class Scheduled(SmallNet):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 / (1 + n))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    monitor = AgingMonitor()
    quiet_trainer(tmp_path, callbacks=[monitor]).fit(Scheduled(), data())
    steps, rates = monitor.record.one_time("learning_rate")
    assert np.allclose(rates, 1 / (1 + steps))  # the rate of the update after the step
    assert steps.tolist() == [event.step for event in LogTimeSchedule.logspaced(60).events]


def test_several_loggers_and_two_monitors(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path, name="tb"), CSVLogger(tmp_path, name="csv")]
    monitors = [AgingMonitor(), AgingMonitor(groups="layer", schedule=LogTimeSchedule([0], [1, 10]))]
    quiet_trainer(tmp_path, callbacks=monitors, logger=loggers).fit(SmallNet(), data())
    directory = Path(loggers[0].log_dir)
    for monitor, name in zip(monitors, ("glassy", "glassy_2"), strict=True):
        assert AgingRecord.load(directory / name / "aging_record.npz") == monitor.record
        lines = (Path(loggers[1].log_dir) / f"{name}.csv").read_text().splitlines()
        assert len(lines) == 1 + len(monitor.record) * len(monitor.record.groups)


def test_two_monitors_never_share_a_file_or_a_name(tmp_path: Path) -> None:
    monitors = [AgingMonitor(dirpath=tmp_path), AgingMonitor(dirpath=tmp_path, sample=20)]
    quiet_trainer(tmp_path, callbacks=monitors).fit(SmallNet(), data())
    assert AgingRecord.load(tmp_path / "aging_record.npz") == monitors[0].record
    assert AgingRecord.load(tmp_path / "aging_record-1.npz") == monitors[1].record
    monitors = [AgingMonitor(), AgingMonitor(name="glassy_2"), AgingMonitor()]
    quiet_trainer(tmp_path, callbacks=monitors).fit(SmallNet(), data())
    assert {path.parent.name for path in tmp_path.glob("*/aging_record.npz")} == {"glassy", "glassy_2", "glassy_3"}


def test_other_loggers_get_the_training_step_and_every_value(tmp_path: Path) -> None:
    class Remembers(Logger):
        name, version = "remembers", 0

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[int, dict[str, float]]] = []

        def log_hyperparams(self, *_: Any, **__: Any) -> None:
            pass

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.seen.append((step, metrics))

    logger, monitor = Remembers(), AgingMonitor(curves="scalars")
    quiet_trainer(tmp_path, callbacks=[monitor], logger=logger).fit(SmallNet(), data())
    record = monitor.record
    seen = {(key, step): value for step, metrics in logger.seen for key, value in metrics.items() if "glassy" in key}
    for waiting_time, lag in expected_pairs(60):
        i, j = record.waiting_times.tolist().index(waiting_time), record.lags.tolist().index(lag)
        assert seen[f"glassy/msd/tw_{waiting_time}", waiting_time + lag] == record.msd()[i, j]
    steps = [step for step, metrics in logger.seen if any("glassy" in key for key in metrics)]
    assert steps == sorted(steps)


def test_a_second_fit_goes_on_with_the_record(tmp_path: Path) -> None:
    monitor, weights, model = AgingMonitor(), Weights(), SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=[monitor, weights], max_steps=-1, max_epochs=2)
    trainer.fit(model, data())
    assert pairs(monitor.record) == expected_pairs(24)
    trainer.fit_loop.max_epochs = 20
    trainer.fit(model, data())
    assert pairs(monitor.record) == expected_pairs(240)
    weights.check(monitor.record)
    assert AgingRecord.load(tmp_path / "glassy" / "aging_record.npz") == monitor.record


def test_the_end_of_a_first_fit_can_be_a_waiting_time_of_the_second(tmp_path: Path) -> None:
    monitor, weights, model = AgingMonitor(LogTimeSchedule([0, 24, 30], [1, 5])), Weights(), SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=[monitor, weights], max_steps=-1, max_epochs=2)
    trainer.fit(model, data())
    assert pairs(monitor.record) == {(0, 1), (0, 5)}
    trainer.fit_loop.max_epochs = 4
    trainer.fit(model, data())
    assert pairs(monitor.record) == {(tw, lag) for tw in (0, 24, 30) for lag in (1, 5)}
    assert monitor.record.meta["resumed"] == [
        {"step": 24, "schedule": "LogTimeSchedule([0, 24, 30], [1, 5])", "max_step": 48}
    ]
    weights.check(monitor.record)


def test_another_model_or_trainer_never_enters_the_same_record(tmp_path: Path) -> None:
    monitor, trainer = AgingMonitor(), quiet_trainer(tmp_path, max_steps=-1, max_epochs=2)
    trainer.callbacks.append(monitor)
    trainer.fit(SmallNet(), data())
    first = monitor.record
    trainer.fit_loop.max_epochs = 4
    with pytest.warns(UserWarning, match="a new record starts here"):
        trainer.fit(SmallNet(), data())  # the Trainer counts on, but the weights are new
    assert monitor.record is not first
    assert monitor.record.waiting_times.tolist()[0] == 24
    assert AgingRecord.load(tmp_path / "glassy" / "aging_record.npz") == first
    assert AgingRecord.load(tmp_path / "glassy" / "aging_record-1.npz") == monitor.record


def test_a_resumed_training_starts_where_it_is_and_says_so(tmp_path: Path) -> None:
    model = SmallNet()
    trainer = quiet_trainer(tmp_path, max_steps=24)
    trainer.fit(model, data())
    trainer.save_checkpoint(tmp_path / "at24.ckpt")
    monitor, weights = AgingMonitor(), Weights()
    with pytest.warns(UserWarning, match="starts at step 24 without earlier snapshots; a new record starts here"):
        quiet_trainer(tmp_path, callbacks=[monitor, weights]).fit(SmallNet(), data(), ckpt_path=tmp_path / "at24.ckpt")
    assert monitor.record.waiting_times.tolist() == [24, 46]
    weights.check(monitor.record)


def test_a_new_training_gets_a_new_record_and_keeps_the_old_file(tmp_path: Path) -> None:
    monitor = AgingMonitor()
    quiet_trainer(tmp_path, callbacks=[monitor]).fit(SmallNet(), data())
    first = monitor.record
    quiet_trainer(tmp_path, callbacks=[monitor], max_steps=30).fit(SmallNet(), data())
    assert pairs(monitor.record) == expected_pairs(30)
    assert AgingRecord.load(tmp_path / "glassy" / "aging_record.npz") == first
    assert AgingRecord.load(tmp_path / "glassy" / "aging_record-1.npz") == monitor.record


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_keeps_what_was_measured(tmp_path: Path, interruption: type[BaseException]) -> None:
    class Interrupt(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 41:
                raise interruption("now")

    monitor = AgingMonitor()
    trainer = quiet_trainer(tmp_path, callbacks=[monitor, Interrupt()])
    # Lightning ends the process after Ctrl-C, once its loggers are closed.
    with pytest.raises((SystemExit, KeyboardInterrupt, RuntimeError)):
        trainer.fit(SmallNet(), data())
    saved = AgingRecord.load(tmp_path / "glassy" / "aging_record.npz")
    assert saved == monitor.record
    assert pairs(saved) == {(tw, lag) for tw, lag in expected_pairs(60) if tw + lag <= 41}


def test_a_killed_run_keeps_what_it_had(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from lightning.pytorch import Callback
from lightning_glassy import AgingMonitor
from tests.brute_force import BruteForce
from tests.helpers import Recomputing, SmallNet, data, quiet_trainer, write_at_every_event
class Kill(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 50:
            os.kill(os.getpid(), signal.SIGKILL)
write_at_every_event()
quiet_trainer(Path({str(tmp_path)!r}), callbacks=[AgingMonitor(), Kill()]).fit(SmallNet(), data())
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment()).returncode == -9
    saved = AgingRecord.load(tmp_path / "glassy" / "aging_record.npz")
    last = max(tw + lag for tw, lag in pairs(saved))
    assert 45 <= last <= 50
    assert pairs(saved) == {(tw, lag) for tw, lag in expected_pairs(60) if tw + lag <= last}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_are_measured_with_a_warning_near_their_resolution(
    tmp_path: Path, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    monitor, weights = AgingMonitor(), Weights()
    with caplog.at_level(logging.WARNING):
        quiet_trainer(tmp_path, callbacks=[monitor, weights]).fit(SmallNet(dtype, lr=1e-4), data())
    weights.check(monitor.record)
    assert sum("within the rounding" in message for message in caplog.messages) == 1
    (doubt,) = monitor.record.doubts
    assert "within the rounding of the weights' own dtype: a plateau there is not physics" in doubt
    caplog.clear()
    quiet_trainer(tmp_path, callbacks=[AgingMonitor(moments="msd")]).fit(SmallNet(dtype, lr=1e-4), data())
    assert sum("within the rounding" in message for message in caplog.messages) == 1
    assert monitor.record.meta["dtypes"]["net.0.weight"] == str(dtype).removeprefix("torch.")


def test_float32_training_is_not_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quiet_trainer(tmp_path, callbacks=[AgingMonitor(groups="layer")]).fit(SmallNet(), data())
    assert not [message for message in caplog.messages if "lightning_glassy" in message]


def test_nan_weights_are_recorded_as_nan_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    monitor, trainer = AgingMonitor(), quiet_trainer(tmp_path, logger=TensorBoardLogger(tmp_path))
    trainer.callbacks += [monitor, AtStep20(lambda module: module.net[0].weight.data.fill_(torch.nan))]
    with caplog.at_level(logging.WARNING):
        trainer.fit(SmallNet(), data())
    record = monitor.record
    late = np.add.outer(record.waiting_times, record.lags) > 20
    assert pairs(record) == expected_pairs(60)
    assert np.isnan(record.msd()[late]).all()
    assert np.isfinite(record.msd()[~late]).all()
    assert [message for message in caplog.messages if "glassy" in message.lower() and "tracking" not in message] == [
        message for message in caplog.messages if "not finite" in message
    ]
    assert sum("not finite" in message for message in caplog.messages) == 1


class Broken(Logger):
    """A logger that fails in every way it can."""

    name, version, save_dir = "broken", 0, None

    def log_metrics(self, *_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


def test_a_failing_logger_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    monitor = AgingMonitor()
    with caplog.at_level(logging.WARNING):
        quiet_trainer(
            tmp_path, callbacks=[monitor], logger=[Broken(), CSVLogger(tmp_path)], log_every_n_steps=10**6
        ).fit(SmallNet(), data())
    assert pairs(monitor.record) == expected_pairs(60)
    assert sum("MetricsSink failed (ConnectionError: no network)" in message for message in caplog.messages) == 1
    # The other logger and the files have all rows.
    assert "\n46,10,56,all," in (tmp_path / "lightning_logs" / "version_0" / "glassy.csv").read_text()
    assert AgingRecord.load(tmp_path / "broken" / "version_0" / "glassy" / "aging_record.npz") == monitor.record


@pytest.mark.parametrize("broken", ["name", "version"])
def test_a_logger_without_a_place_moves_the_files_to_that_of_the_trainer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    def fail(self: Any) -> str:
        raise ConnectionError("no network")

    logger = type("Lost", (Broken,), {broken: property(fail)})()
    monitor = AgingMonitor()
    quiet_trainer(tmp_path, callbacks=[monitor], logger=[logger], log_every_n_steps=10**6).fit(SmallNet(), data())
    assert pairs(monitor.record) == expected_pairs(60)
    told = "Lost cannot say where its files are (ConnectionError: no network)"
    assert any(told in message and str(tmp_path) in message for message in caplog.messages)
    assert AgingRecord.load(tmp_path / "glassy" / "aging_record.npz") == monitor.record


def test_a_broken_logger_leaves_the_chosen_directory(tmp_path: Path) -> None:
    monitor = AgingMonitor(dirpath=tmp_path / "here")
    quiet_trainer(tmp_path, callbacks=[monitor], logger=Broken()).fit(SmallNet(), data())
    assert AgingRecord.load(tmp_path / "here" / "aging_record.npz") == monitor.record
    logger = SimpleNamespace(save_dir="s3://bucket/runs", name="a", version=0)
    assert log_directory([logger], "elsewhere") == "s3://bucket/runs/a/version_0"


def test_a_failing_disk_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "glassy").write_text("a file where the directory should be")
    monitor = AgingMonitor()
    with caplog.at_level(logging.WARNING):
        quiet_trainer(tmp_path, callbacks=[monitor]).fit(SmallNet(), data())
    assert pairs(monitor.record) == expected_pairs(60)
    assert sum("FileSink failed" in message for message in caplog.messages) == 1


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("none left"), RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()],
)
def test_running_out_of_memory_ends_the_record_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    from lightning_glassy.measure.snapshots import SnapshotBank

    add = SnapshotBank.add

    def scarce(self: SnapshotBank, step: int) -> Any:
        if step >= 22:
            raise error
        return add(self, step)

    monkeypatch.setattr(SnapshotBank, "add", scarce)
    monitor, trainer = AgingMonitor(), quiet_trainer(tmp_path)
    trainer.callbacks.append(monitor)
    trainer.fit(SmallNet(), data())
    assert trainer.global_step == 60
    assert sum("no more is measured from step 22" in message for message in caplog.messages) == 1
    assert pairs(monitor.record) == {(tw, lag) for tw, lag in expected_pairs(60) if tw + lag < 22}
    assert AgingRecord.load(tmp_path / "glassy" / "aging_record.npz") == monitor.record


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_activation_checkpointing_changes_nothing(precision: str, tmp_path: Path) -> None:
    def run(kind: type[SmallNet]) -> AgingRecord:
        torch.manual_seed(0)
        monitor = AgingMonitor(save=False, summary=False)
        quiet_trainer(tmp_path, callbacks=[monitor], precision=precision).fit(kind(), data())
        return monitor.record

    recomputed, plain = run(Recomputing), run(SmallNet)
    assert np.array_equal(recomputed.moments, plain.moments, equal_nan=True)


class AtStep20(Callback):
    """Changes the module at step 20."""

    def __init__(self, change: Any) -> None:
        self.change = change

    def on_train_batch_start(self, trainer: Any, pl_module: SmallNet, *_: Any) -> None:
        if trainer.global_step == 20:
            self.change(pl_module)


def replace(module: SmallNet) -> None:
    module.net[3] = nn.Linear(16, 3)


def widen(module: SmallNet) -> None:
    for parameter in module.parameters():
        parameter.data = parameter.data.double()


def prune(module: SmallNet) -> None:
    module.net[0].weight.data, module.net[0].bias.data = torch.randn(9, 8), torch.randn(9)
    module.net[3].weight.data = torch.randn(3, 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace, "'net.3.weight' of the module has been replaced"),
        (widen, "'net.0.weight' was .* torch.float32 on cpu at first and is .* torch.float64"),
        (prune, r"'net.0.weight' was \(16, 8\) .* is \(9, 8\)"),
    ],
)
def test_parameters_that_are_no_longer_the_same_end_the_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Any, message: str
) -> None:
    monitor, weights, trainer = AgingMonitor(), Weights(), quiet_trainer(tmp_path)
    trainer.callbacks += [monitor, weights, AtStep20(change)]
    trainer.fit(SmallNet(), data())
    assert trainer.global_step == 60
    told = [text for text in caplog.messages if "no more is measured" in text]
    assert len(told) == 1
    assert re.search(message, told[0])
    assert pairs(monitor.record) == {(tw, lag) for tw, lag in expected_pairs(60) if tw + lag <= 20}
    weights.check(monitor.record)


def test_parameters_that_move_in_memory_are_followed(tmp_path: Path) -> None:
    def move(module: SmallNet) -> None:
        module.net[0].weight.data = module.net[0].weight.data.t().contiguous().t()

    monitor, weights, trainer = AgingMonitor(), Weights(), quiet_trainer(tmp_path)
    trainer.callbacks += [monitor, weights, AtStep20(move)]
    trainer.fit(SmallNet(), data())
    assert pairs(monitor.record) == expected_pairs(60)
    weights.check(monitor.record)


def test_unfreezing_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = SmallNet()
    model.net[0].requires_grad_(False)
    monitor, trainer = AgingMonitor(), quiet_trainer(tmp_path)
    trainer.callbacks += [monitor, AtStep20(lambda module: module.net[0].requires_grad_(True))]
    trainer.fit(model, data())
    assert monitor.record.n_parameters["all"] == 51
    assert sum("2 parameters have become trainable" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("early", ["stopped", "failed"])
def test_snapshots_and_weights_are_let_go_after_training(tmp_path: Path, early: str) -> None:
    class End(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= 30
            if trainer.global_step == 29:
                trackers.append(weakref.ref(monitor.recorder.tracker))
            if early == "failed" and trainer.global_step == 30:
                raise ValueError("the user's own")

    monitor, model, trackers = AgingMonitor(), SmallNet(), []
    trainer = quiet_trainer(tmp_path, callbacks=[monitor, End()], max_steps=-1, max_epochs=-1)
    if early == "failed":
        with pytest.raises(ValueError, match="the user's own"):
            trainer.fit(model, data())
    else:
        trainer.fit(model, data())
    assert pairs(monitor.record) == {(tw, lag) for tw, lag in expected_pairs(60) if tw + lag <= 30}
    gc.collect()
    assert len(trackers) == 1
    assert trackers[0]() is None  # all tensors are freed with it, and only the record is left


def test_a_device_that_fails_does_not_hide_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 30:
                raise ValueError("the real problem")

    def broken(self: Any, timeout: float | None = None) -> None:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr("lightning_glassy.measure.tracker.AgingTracker.drain", broken)
    monitor = AgingMonitor()
    with (
        pytest.warns(UserWarning, match="could not be read from the device: CUDA error"),
        pytest.raises(ValueError, match="the real problem"),
    ):
        quiet_trainer(tmp_path, callbacks=[monitor, Fails()]).fit(SmallNet(), data())
    assert AgingRecord.load(tmp_path / "glassy" / "aging_record.npz") == monitor.record
    assert (tmp_path / "glassy" / "aging_record.csv").exists()


class Endless(torch.utils.data.IterableDataset):
    """Data without a length."""

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(1)
        for _ in range(100):
            yield torch.randn(8, generator=generator), 1


def test_data_without_a_length(tmp_path: Path) -> None:
    monitor = AgingMonitor()
    loader = torch.utils.data.DataLoader(Endless(), batch_size=4)
    quiet_trainer(tmp_path, callbacks=[monitor], max_steps=-1, max_epochs=2).fit(SmallNet(), loader)
    assert pairs(monitor.record) == expected_pairs(50)
    with pytest.raises(ValueError, match="needs a run of known length"):
        quiet_trainer(tmp_path, callbacks=[AgingMonitor("subaging")], max_steps=-1, max_epochs=2).fit(
            SmallNet(), loader
        )


def test_strategies_that_cannot_be_measured_are_refused_by_name() -> None:
    from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

    class StubTrainer(SimpleNamespace):
        """A Trainer that can have weak references."""

    class PipelineStrategy:
        """A strategy that the package does not know."""

    strategy: Any = PipelineStrategy()
    with pytest.raises(MisconfigurationException, match="under PipelineStrategy, which may shard"):
        AgingMonitor().setup(StubTrainer(strategy=strategy, callbacks=[]), SmallNet(), "fit")
    AgingMonitor().setup(
        StubTrainer(strategy=strategy, callbacks=[]), SmallNet(), "validate"
    )  # validation measures nothing
    for strategy in (DDPStrategy(), SingleDeviceStrategy(), ModelParallelStrategy(), FSDPStrategy()):
        AgingMonitor().setup(StubTrainer(strategy=strategy, callbacks=[]), SmallNet(), "fit")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_spawn"])
def test_data_parallel_runs_record_once_on_rank_0(tmp_path: Path, strategy: str) -> None:
    code = f"""
from pathlib import Path
from lightning.pytorch import seed_everything
from lightning_glassy import AgingMonitor
from lightning.pytorch import Callback
from tests.brute_force import BruteForce
from tests.helpers import Recomputing, SmallNet, data, quiet_trainer
class Tell(Callback):
    def on_train_end(self, trainer, pl_module):
        measuring = trainer.callbacks[-2].recorder.tracker is not None
        Path({str(tmp_path)!r}, f"rank{{trainer.global_rank}}-{{measuring}}").touch()
if __name__ == "__main__":
    seed_everything(1)
    trainer = quiet_trainer(Path({str(tmp_path)!r}), devices=2, strategy={strategy!r})
    trainer.callbacks += [AgingMonitor(), Tell()]
    trainer.fit(SmallNet(), data())
"""
    script = tmp_path / "train.py"
    script.write_text(code)
    launch(script)
    saved = AgingRecord.load(tmp_path / "glassy" / "aging_record.npz")
    assert pairs(saved) == expected_pairs(60)
    assert saved.meta["world_size"] == 2
    assert {path.name for path in tmp_path.glob("rank*")} == {"rank0-True", "rank1-False"}
    assert [path.name for path in (tmp_path / "glassy").iterdir() if path.suffix == ".npz"] == ["aging_record.npz"]


@pytest.mark.needs("jsonargparse")
def test_the_command_line_interface_takes_it_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        f"""
trainer:
  default_root_dir: {tmp_path}
  max_steps: 30
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_glassy.AgingMonitor
      init_args:
        schedule:
          class_path: lightning_glassy.LogTimeSchedule
          init_args: {{waiting_times: [0, 10], lags: [1, 5, 20]}}
        groups: {{first: "net.0.*", biases: ["*.bias"]}}
        overlap_thresholds: [0.01, 0.1]
        sample: null
    - class_path: lightning_glassy.AgingMonitor
      init_args: {{schedule: baity-jesi, groups: layer, sample: 100, name: sampled}}
"""
    )
    (tmp_path / "main.py").write_text(
        "import torch\n"
        "from lightning.pytorch.cli import LightningCLI\n"
        "from lightning.pytorch.demos.boring_classes import BoringDataModule\n"
        "from lightning.pytorch.demos.boring_classes import BoringModel\n"
        "class Net(BoringModel):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.net = torch.nn.Sequential(self.layer)\n"
        "LightningCLI(Net, BoringDataModule, save_config_callback=None)\n"
    )
    arguments = [sys.executable, "main.py", "fit", "--config", "config.yaml"]
    result = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, env=environment())
    assert result.returncode == 0, result.stderr[-3000:]
    record = AgingRecord.load(tmp_path / "glassy" / "aging_record.npz")
    assert pairs(record) == set(LogTimeSchedule([0, 10], [1, 5, 20], 30).pairs)
    assert record.groups == ("all", "first", "biases")
    assert record.overlap_thresholds == (0.01, 0.1)
    assert AgingRecord.load(tmp_path / "sampled" / "aging_record.npz").n_sampled["all"] <= 100


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"schedule": "papers"}, ValueError, "schedule='papers' is not a preset"),
        ({"schedule": [1, 2]}, TypeError, "is not a LogTimeSchedule"),
        ({"name": "../up"}, ValueError, "name='../up'"),
        ({"name": ""}, ValueError, "name=''"),
        ({"name": 3}, ValueError, "name=3"),
        ({"groups": "layers"}, ValueError, "groups='layers'"),
        ({"groups": {"x": []}}, ValueError, r"groups\['x'\]=\[\]"),
        ({"groups": {"x": 3}}, ValueError, r"groups\['x'\]=3"),
        ({"include": 3}, ValueError, "include=3"),
        ({"exclude": []}, ValueError, r"exclude=\[\]"),
        ({"sample": 10.5}, ValueError, "sample=10.5"),
        ({"sample": float("nan")}, ValueError, "sample=nan"),
        ({"max_memory": "1GB"}, ValueError, "max_memory='1GB'"),
        ({"moments": "some"}, ValueError, "moments='some'"),
        ({"overlap_thresholds": 0.1}, TypeError, "overlap_thresholds=0.1"),
        ({"overlap_thresholds": [True]}, TypeError, r"overlap_thresholds\[0\]=True"),
        ({"overlap_thresholds": [1e200]}, ValueError, r"overlap_thresholds\[0\]=1e\+200"),
        ({"snapshot_device": "gpu"}, ValueError, "snapshot_device='gpu'"),
    ],
)
def test_bad_arguments_are_refused_at_construction(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AgingMonitor(**options)


def test_bad_arguments_are_refused_before_the_first_step(tmp_path: Path) -> None:
    for options, error, message in (
        ({"include": "decoder.*"}, ValueError, "'decoder.\\*' matches no trainable parameter"),
        ({"sample": None, "max_memory": 100}, MemoryError, "max_memory=100 B"),
        ({"schedule": LogTimeSchedule([1000], [1])}, ValueError, "max_step=60 ends before the first pair"),
    ):
        with pytest.raises(error, match=message):
            quiet_trainer(tmp_path, callbacks=[AgingMonitor(**options)]).fit(SmallNet(), data())


def test_a_run_that_outlasts_its_estimate_is_measured_to_its_end(tmp_path: Path) -> None:
    class Longer(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            trainer.fit_loop.max_epochs = 4

    monitor, weights = AgingMonitor(), Weights()
    trainer = quiet_trainer(tmp_path, callbacks=[monitor, weights, Longer()], max_steps=-1, max_epochs=2)
    trainer.fit(SmallNet(), data())
    assert monitor.record.meta["max_step"] == 24
    assert pairs(monitor.record) == expected_pairs(48)
    weights.check(monitor.record)


def test_a_monitor_can_be_copied_and_pickled_at_any_time(tmp_path: Path) -> None:
    copies: list[AgingMonitor] = []
    monitor = AgingMonitor(groups="layer")

    class Copies(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 30:
                copies.append(pickle.loads(pickle.dumps(monitor)))

    before = pickle.loads(pickle.dumps(monitor))
    quiet_trainer(tmp_path, callbacks=[monitor, Copies()], logger=TensorBoardLogger(tmp_path)).fit(SmallNet(), data())
    copies += [before, pickle.loads(pickle.dumps(monitor)), copy.deepcopy(monitor)]
    assert copies[2].record == monitor.record
    for other in copies:
        quiet_trainer(tmp_path, callbacks=[other], max_steps=20).fit(SmallNet(), data())
        assert pairs(other.record) == expected_pairs(20)


def test_there_is_no_record_before_training() -> None:
    with pytest.raises(RuntimeError, match="training has not started"):
        _ = AgingMonitor().record


def test_a_module_without_parameters_is_an_error(tmp_path: Path) -> None:
    class Empty(SmallNet):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Identity()
            self.requires_grad_(False)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            return None

        def configure_optimizers(self) -> None:
            return None

    with (
        pytest.warns(UserWarning, match="will run with no optimizer"),
        pytest.raises(ValueError, match="no trainable parameter to track"),
    ):
        quiet_trainer(tmp_path, callbacks=[AgingMonitor()]).fit(Empty(), data())


class Autoencoder(SmallNet):
    """An autoencoder. Its decoder has the weights of its encoder, in a Parameter object of its own."""

    def __init__(self, tie: Any) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 8))
        self.net[2].weight = nn.Parameter(tie(self.net[0].weight.data))

    def _loss(self, batch: Any) -> torch.Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[0])


@pytest.mark.parametrize("tie", [torch.t, torch.detach], ids=["transposed", "same shape"])
def test_weights_that_are_tied_through_their_memory_count_once(tmp_path: Path, tie: Any) -> None:
    monitor, judge = AgingMonitor(groups={"decoder": "net.2.*"}), BruteForce(["net.0.weight", "net.2.bias"])
    quiet_trainer(tmp_path, max_epochs=2, callbacks=[monitor, judge]).fit(Autoencoder(tie), data())
    assert monitor.record.n_parameters == {"all": 72, "decoder": 72}
    judge.check(monitor.record, at_least=20)


@pytest.mark.parametrize("odd", [torch.ones(3, dtype=torch.complex64).conj(), torch.ones(1).expand(5)])
def test_an_odd_parameter_that_is_left_out_disturbs_no_callback(tmp_path: Path, odd: torch.Tensor) -> None:
    net, judge = SmallNet(), BruteForce(["net.0.weight", "net.0.bias", "net.3.weight", "net.3.bias"])
    net.odd = nn.Parameter(odd)
    with pytest.raises(ValueError, match=r"'odd' .*exclude='odd'"):
        quiet_trainer(tmp_path, callbacks=[AgingMonitor()]).fit(net, data())
    monitor = AgingMonitor(exclude="odd")
    callbacks = [LogTimeEvaluator(3), monitor, GradientNoiseMonitor(3), DisplacementDistribution(1), judge]
    quiet_trainer(tmp_path, max_steps=12, callbacks=callbacks).fit(net, data())
    judge.check(monitor.record, at_least=20)
    assert {"train_loss", "gradient_noise"} <= set(monitor.record.one_time_names)


@pytest.mark.parametrize("kind", [GradientNoiseMonitor, CurvatureMonitor])
def test_a_derivative_by_weights_of_two_objects_is_refused(tmp_path: Path, kind: Any) -> None:
    callbacks = [LogTimeEvaluator([0]), kind([0])]
    with pytest.raises(MisconfigurationException, match=r"'net.0.weight' and 'net.2.weight' are two Parameter"):
        quiet_trainer(tmp_path, max_epochs=1, callbacks=callbacks).fit(Autoencoder(torch.t), data())


def test_a_monitor_that_the_module_has_replaced_says_so(tmp_path: Path) -> None:
    class Configured(SmallNet):
        def configure_callbacks(self) -> list[Callback]:
            return [AgingMonitor()]

    monitor, trainer = AgingMonitor(), quiet_trainer(tmp_path, max_steps=2)
    trainer.callbacks.append(monitor)
    trainer.fit(Configured(), data())
    with pytest.raises(RuntimeError, match=r"configure_callbacks\(\) of the module has replaced this AgingMonitor"):
        _ = monitor.record
    (other,) = (callback for callback in trainer.callbacks if isinstance(callback, AgingMonitor))
    assert len(other.record) > 0


# ---------------------------------------------------------------------- devices and dtypes that the user has set

_FACTORIES = {
    "Generator", "arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "logspace", "normal", "ones",
    "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros",
}  # fmt: skip


def test_each_tensor_that_the_package_makes_has_a_device_of_its_own() -> None:
    for path in Path(lightning_glassy.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute) and called.attr in _FACTORIES and ast.unparse(called.value) == "torch":
                named = called.attr == "Generator" and node.args
                assert named or "device" in [keyword.arg for keyword in node.keywords], f"{path}:{node.lineno}"


@pytest.mark.parametrize("sample", [None, 50])
def test_a_default_device_or_dtype_of_the_user_changes_nothing(
    tmp_path: Path, sample: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = DataLoader.__iter__

    def read_on_the_cpu(loader: Any) -> Any:
        with torch.device("cpu"):  # torch draws the seed of a loader on the default device
            return read(loader)

    monkeypatch.setattr(DataLoader, "__iter__", read_on_the_cpu)

    def train(device: str | None, dtype: torch.dtype) -> AgingRecord:
        torch.manual_seed(0)
        monitor, net, loader = AgingMonitor(sample=sample), SmallNet(), data(shuffle=False)
        others = [] if sample else [LogTimeEvaluator(3), GradientNoiseMonitor(3), BarrierMonitor(1)]
        others += [] if sample else [CurvatureMonitor([3], n_probes=2), DisplacementDistribution(1)]
        trainer = quiet_trainer(tmp_path, max_steps=8, callbacks=[monitor, *others])
        torch.set_default_device(device)
        torch.set_default_dtype(dtype)
        try:
            trainer.fit(net, loader)
        finally:
            torch.set_default_device(None)
            torch.set_default_dtype(torch.float32)
        return monitor.record

    plain, other = train(None, torch.float32), train("meta", torch.float64)
    np.testing.assert_array_equal(plain.msd(), other.msd())
    assert plain.one_time_names == other.one_time_names
    assert plain.profile_names == other.profile_names
    for name in plain.one_time_names:
        for mine, theirs in zip(plain.one_time(name), other.one_time(name), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6)

"""Faults that a training survives: the table of "When something goes wrong" in docs/guarantees.md.

All faults have the same promises: we end no training, the user sees their own error, ``monitor.record`` can be used,
and a record on disk can be loaded. If a process dies in a test, it is a child. It is forked from a server that has
imported everything once.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import pkgutil
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, EarlyStopping
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from lightning_glassy import AgingMonitor, AgingRecord, LogTimeSchedule
from lightning_glassy.report import report
from tests.guarantees import FAULTS
from tests.helpers import SmallNet, data, quiet_trainer, write_at_every_event
from tests.processes import children
from tests.test_tensorboard_plugin import runs_in

# This schedule measures at nearly every step, for longer than any of these trainings.
DENSE = LogTimeSchedule(range(0, 50_000, 5), [1, 2, 5, 10])


def pairs(record: AgingRecord) -> set[tuple[int, int]]:
    return set(zip(*(axis.tolist() for axis in record.pairs), strict=True))


def pairs_until(step: int, schedule: LogTimeSchedule | None = None) -> set[tuple[int, int]]:
    schedule = LogTimeSchedule.logspaced(60) if schedule is None else schedule
    return {(waiting_time, lag) for waiting_time, lag in schedule.until(60_000).pairs if waiting_time + lag <= step}


def rows(record: AgingRecord, until: int = 2**62) -> dict[tuple[int, int], bytes]:
    """Return the bytes of each row that was measured until a step."""
    keys = zip(*(axis.tolist() for axis in record.pairs), strict=True)
    return {key: row.tobytes() for key, row in zip(keys, record.moments, strict=True) if sum(key) <= until}


def last_step(record: AgingRecord) -> int:
    return int(np.add(*record.pairs).max())


def on_disk(directory: Path) -> list[AgingRecord]:
    """Load all files that a user would take for a record. Each must load, whatever happened."""
    return [AgingRecord.load(path) for path in sorted(directory.glob("*.npz"))]


def train(root: Path, *callbacks: Callback, model: LightningModule | None = None, **options: Any) -> Trainer:
    torch.manual_seed(0)
    trainer = quiet_trainer(root, **options)
    trainer.callbacks += callbacks
    trainer.fit(SmallNet() if model is None else model, data(), data(shuffle=False))
    return trainer


def undisturbed(root: Path, steps: int, schedule: LogTimeSchedule | None = None, **options: Any) -> AgingRecord:
    monitor = AgingMonitor(schedule, save=False, summary=False)
    train(root, monitor, max_steps=steps, **options)
    return monitor.record


class At(Callback):
    """Calls a function when so many steps are completed, before or after the other callbacks."""

    def __init__(self, *steps: int, do: Callable[[Trainer], Any]) -> None:
        self.steps, self.do = steps, do

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step in self.steps:
            self.do(trainer)


# ------------------------------------------------------------------ children


def start(run: Callable[..., None], root: Path, *arguments: Any) -> Any:
    root.mkdir(exist_ok=True)
    context = children()
    output, in_child = context.Pipe(duplex=False)  # no file, because the disk may be full
    child = context.Process(target=_in_child, args=(in_child, run, root, *arguments), daemon=True)
    child.start()
    in_child.close()
    child.output = io.BytesIO()
    child.reader = threading.Thread(target=_read, args=(output, child.output), daemon=True)
    child.reader.start()
    return child


def _read(output: Any, into: io.BytesIO) -> None:
    while part := os.read(output.fileno(), 65536):
        into.write(part)


def _in_child(output: Any, run: Callable[..., None], root: Path, *arguments: Any) -> None:
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    output.close()
    torch.set_num_threads(1)
    run(root, *arguments)


def end_of(child: Any) -> int:
    """Return the exit status of a child, or minus the signal that ended it."""
    child.join(120)
    if child.exitcode is None:
        child.kill()
        pytest.fail("the training hangs")
    return int(child.exitcode)


def output_of(child: Any) -> str:
    child.reader.join(120)
    return str(child.output.getvalue().decode())


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# ------------------------------------------------------------------ kill -9


def train_for_ever(root: Path) -> None:
    write_at_every_event()
    train(root, AgingMonitor(DENSE), max_steps=-1, max_epochs=-1, limit_val_batches=0)


def test_a_run_killed_at_any_moment_leaves_the_rows_of_an_undisturbed_one(tmp_path: Path) -> None:
    roots = [tmp_path / str(i) for i in range(6)]
    children = [start(train_for_ever, root) for root in roots]
    for child, root, delay in zip(children, roots, np.random.default_rng(5).uniform(0, 0.3, len(roots)), strict=True):
        # Half of the children may be killed in their first write, which begins with the directory.
        awaited = root / "glassy" / ("aging_record.npz" if int(root.name) % 2 else "")
        while child.exitcode is None and not awaited.exists():
            time.sleep(0.001)
        time.sleep(delay)
        child.kill()
    assert [end_of(child) for child in children] == [-signal.SIGKILL] * len(children)
    found = [record for root in roots for record in on_disk(root / "glassy")]
    assert len(found) >= len(roots) / 2
    whole = undisturbed(tmp_path, max(map(last_step, found)), DENSE, limit_val_batches=0)
    for record in found:
        assert rows(record) == rows(whole, until=last_step(record))


def train_and_die_in_a_write(root: Path, instant: str, number: int) -> None:
    write_at_every_event()
    calls = itertools.count(1)

    def dying(original: Callable[..., Any], before: bool) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            last = next(calls) == number
            if last and before:
                die()
            result = original(*arguments, **options)
            if last:
                die()
            return result

        return call

    def half(file: Any, **arrays: Any) -> None:
        content = io.BytesIO()
        savez(content, **arrays)
        file.write(content.getvalue()[: content.tell() // 2] if next(calls) == number else content.getvalue())
        if file.tell() < content.tell():
            file.flush()
            die()

    savez = np.savez
    if instant == "half of it written":
        np.savez = half
    elif instant == "written, not in its place":
        os.fsync = dying(os.fsync, before=False)
    elif instant == "before it gets its name":
        os.link = dying(os.link, before=True)
    else:
        Path.replace = dying(Path.replace, before=False)  # type: ignore[method-assign]
    train(root, AgingMonitor(DENSE))


def test_a_run_killed_in_the_middle_of_a_write_leaves_the_record_before_it(tmp_path: Path) -> None:
    instants = ["half of it written", "written, not in its place", "in its place"]
    cases = [*itertools.product(instants, (1, 20)), ("before it gets its name", 1)]
    roots = [tmp_path / str(i) for i in range(len(cases))]
    children = [start(train_and_die_in_a_write, root, *case) for root, case in zip(roots, cases, strict=True)]
    assert [end_of(child) for child in children] == [-signal.SIGKILL] * len(cases)
    whole = undisturbed(tmp_path, 60, DENSE)
    events = sorted({waiting_time + lag for waiting_time, lag in pairs(whole)})
    for root, (instant, number) in zip(roots, cases, strict=True):
        # The twentieth write is for the twentieth event. The first write has no file before it.
        written = number if instant == "in its place" else number - 1
        expected = [rows(whole, until=events[written - 1])] if number > 1 else []
        assert [rows(record) for record in on_disk(root / "glassy")] == expected, (instant, number)


class HalfACheckpoint(TorchCheckpointIO):
    """Dies with half of a checkpoint on disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        super().save_checkpoint(checkpoint, path, storage_options)
        os.truncate(path, Path(path).stat().st_size // 2)
        die()


def train_and_die_in_a_checkpoint(root: Path) -> None:
    write_at_every_event()
    save = At(31, do=lambda trainer: trainer.save_checkpoint(root / "half.ckpt"))
    train(root, AgingMonitor(DENSE), save, plugins=[HalfACheckpoint()])


def test_a_run_killed_while_a_checkpoint_is_written_leaves_its_record(tmp_path: Path) -> None:
    root = tmp_path / "run"
    assert end_of(start(train_and_die_in_a_checkpoint, root)) == -signal.SIGKILL
    (record,) = on_disk(root / "glassy")
    assert rows(record) == rows(undisturbed(tmp_path, 60, DENSE), until=31)


# ------------------------------------------------------------------ disks


def table_of(root: Path) -> Path:
    return root / "table" / "version_0" / "glassy.csv"


def limit_files(root: Path, on: bool) -> None:
    """Limit the size of files, as a quota does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    table = table_of(root)
    # The limit is in the middle of a line of the table.
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    limit = (table.stat().st_size if table.exists() else 20) + 37 if on else hard
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))


def fill(root: Path, on: bool) -> None:
    filler = root / "filler"
    if not on:
        filler.unlink()
        return
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 1024)


def forbid_writing(root: Path, on: bool) -> None:
    subprocess.run(["mount", "-o", f"remount,{'ro' if on else 'rw'}", str(root)], check=True)


def train_on_a_bad_disk(root: Path, fault: Callable[[Path, bool], None], first: int, last: int) -> None:
    """Train on a disk that is bad from one step to another. The Trainer's own loggers have nothing to write then."""
    write_at_every_event()
    loggers = [TensorBoardLogger(root), CSVLogger(root, name="table")]
    monitor = AgingMonitor(dirpath=root / "files")
    breaks = At(first, do=lambda trainer: fault(root, True))
    mends = At(last, do=lambda trainer: fault(root, False))
    trainer = train(root, breaks, monitor, mends, logger=loggers, log_every_n_steps=10**6, limit_val_batches=0)
    assert trainer.global_step == 60
    assert pairs(monitor.record) == pairs_until(60)
    if last > 60:
        fault(root, False)
    print("the training has ended by itself")


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[Path], Path]]:
    mounted = []

    def mount(path: Path) -> Path:
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(path)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"a small disk cannot be mounted here: {error}")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("fault", [limit_files, fill, forbid_writing])
def test_a_full_or_read_only_disk_costs_warnings_and_the_files_are_whole_before_and_after(
    tmp_path: Path, fault: Callable[[Path, bool], None], request: pytest.FixtureRequest
) -> None:
    names = {"from the start": (1, 61), "in the middle": (20, 46), "to the end": (20, 61)}
    roots = {name: tmp_path / name.replace(" ", "_") for name in names}
    if fault is not limit_files:
        for root in roots.values():
            request.getfixturevalue("small_disk")(root)
    children = {name: start(train_on_a_bad_disk, roots[name], fault, *names[name]) for name in names}
    ends = {name: end_of(child) for name, child in children.items()}
    assert ends == dict.fromkeys(names, 0), "\n".join(output_of(child)[-3000:] for child in children.values())
    whole = undisturbed(tmp_path, 60, limit_val_batches=0)
    tables: dict[str, list[str]] = {}
    for name, root in roots.items():
        told = output_of(children[name])
        assert "the training has ended by itself" in told
        assert told.count("FileSink failed (OSError") == 1
        assert told.count("the record stays in memory: AgingMonitor.record.save(path) writes it") == 3  # one a sink
        assert ("aging_record.npz (and .csv)" in told) == (name == "in the middle")
        found = on_disk(root / "files")
        assert len(found) == (name != "from the start")
        for record in found:
            assert last_step(record) >= (17 if name == "to the end" else 60)  # the last write that succeeded
            assert rows(record) == rows(whole, until=last_step(record))
        # At the end the event files also have the rows that were lost while the disk was bad.
        if name == "in the middle":
            (in_tab,) = runs_in(root)
            assert rows(in_tab) == rows(whole)
        table = table_of(root)
        tables[name] = table.read_text().splitlines(keepends=True) if table.exists() else []
        assert all(line.endswith("\n") for line in tables[name])
    assert tables["from the start"] == []
    assert len(tables["in the middle"]) == 1 + len(whole)
    cut = len(tables["to the end"])
    assert len(rows(whole, until=19)) < cut < len(whole)
    assert tables["to the end"] == tables["in the middle"][:cut]


class FullPipe(io.StringIO):
    """A standard output whose disk is full, or whose reader has gone."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_an_output_that_takes_no_more_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", FullPipe())
    trainer = train(tmp_path, AgingMonitor())
    assert trainer.global_step == 60


# ------------------------------------------------------------------ loggers


class Nasty(Logger):
    """Raises an error at each access from this package, even for its class. For the Trainer it works."""

    name, version, save_dir = "nasty", 0, None

    def __getattribute__(self, name: str) -> Any:
        if sys._getframe(1).f_globals["__name__"].startswith("lightning_glassy"):
            raise ConnectionError(f"no network, and no {name}")
        return super().__getattribute__(name)

    def log_metrics(self, *_: Any, **__: Any) -> None: ...

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


@pytest.mark.needs("mlflow")  # otherwise its sink fails at the import of mlflow
def test_loggers_that_raise_whatever_is_asked_cost_a_warning_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = ["TensorBoardLogger", "WandbLogger", "MLFlowLogger", "CometLogger", "LitLogger", "CSVLogger", "Unknown"]
    good, monitor = CSVLogger(tmp_path), AgingMonitor()
    with caplog.at_level(logging.WARNING):
        trainer = train(tmp_path, monitor, logger=[*(type(kind, (Nasty,), {})() for kind in kinds), good])
    assert trainer.global_step == 60
    told = [message for message in caplog.messages if "no network" in message]
    assert len(told) == len(kinds) + 1
    # The files would go beside the first logger's files. It does not answer, so they go to the Trainer's directory, and
    # so do the snapshots.
    assert "TensorBoardLogger cannot say where its files are (ConnectionError" in told[0]
    assert AgingRecord.load(tmp_path / "glassy" / "aging_record.npz") == monitor.record
    assert pairs(monitor.record) == pairs_until(60)
    assert len((Path(good.log_dir) / "glassy.csv").read_text().splitlines()) == 1 + len(monitor.record)


# ------------------------------------------------------------------ weights


def spoil(value: float) -> At:
    def change(trainer: Trainer) -> None:
        trainer.lightning_module.net[0].weight.data[0, 0] = value

    return At(110, do=change)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e12])
def test_weights_that_are_not_finite_are_in_the_record_and_the_rows_before_are_right(
    tmp_path: Path, value: float, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = AgingMonitor(groups="layer")
    with caplog.at_level(logging.WARNING):
        train(tmp_path, monitor, spoil(value), max_steps=200, logger=TensorBoardLogger(tmp_path))
    assert "Aging of 195 parameters" in capsys.readouterr().out
    told = [message for message in caplog.messages if "glassy" in message.lower() and "tracking" not in message]
    assert len(told) == (not np.isfinite(value))
    whole = AgingMonitor(groups="layer", save=False, summary=False)
    train(tmp_path, whole, max_steps=200)
    (record,) = on_disk(next(tmp_path.glob("lightning_logs/*/glassy")))
    assert record == monitor.record
    assert rows(record, until=110) == rows(whole.record, until=110)
    assert pairs(record) == pairs(whole.record)
    late = np.add.outer(record.waiting_times, record.lags) > 110
    measured = np.isfinite(whole.record.msd())
    if abs(value) < float("inf"):
        assert (record.msd()[late & measured] > 1e20).any()
    else:
        assert not np.isfinite(record.msd()[late & measured]).any()


@pytest.mark.needs("plotly")
@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        1e12,
        float("inf"),
    ],
)
def test_a_record_with_weights_that_are_not_finite_has_a_report(tmp_path: Path, value: float) -> None:
    monitor = AgingMonitor(save=False, summary=False)
    train(tmp_path, monitor, spoil(value), max_steps=400)
    said = report(monitor.record)
    assert "verdict" in str(said)
    assert {path.suffix for path in said.write(tmp_path / "report")} == {".html", ".txt", ".json", ".png"}


class Finetuning(BaseFinetuning):
    """Unfreezes parameters by Lightning's own callback."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 2:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer, lr=0.01)


class Head(SmallNet):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=self.lr)


def test_finetuning_measures_what_was_trained_at_the_start_and_says_what_was_unfrozen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monitor, only = AgingMonitor(), AgingMonitor(include="net.3.*", save=False)
    with caplog.at_level(logging.WARNING):
        train(tmp_path, Finetuning(), monitor, only, model=Head())
    assert sum("2 parameters have become trainable" in message for message in caplog.messages) == 2  # one by each
    (record,) = on_disk(tmp_path / "glassy")
    assert record.n_parameters == {"all": 51}
    assert pairs(record) == pairs_until(60)
    assert rows(record) == rows(only.record)
    steps, rates = record.one_time("learning_rate_0_1")
    assert steps.min() >= 24
    assert rates == pytest.approx(0.01)


def test_a_parameter_that_is_removed_ends_the_record_not_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def remove(trainer: Trainer) -> None:
        trainer.lightning_module.net[0].bias = None

    monitor = AgingMonitor()
    with caplog.at_level(logging.WARNING):
        trainer = train(tmp_path, monitor, At(20, do=remove))
    assert trainer.global_step == 60
    told = [message for message in caplog.messages if "no more is measured" in message]
    assert len(told) == 1
    assert "'net.0.bias'" in told[0]
    (record,) = on_disk(tmp_path / "glassy")
    assert record == monitor.record
    assert rows(record) == rows(undisturbed(tmp_path, 60), until=20)


# ------------------------------------------------------------------ the user's own errors


class Own(Exception):
    """An error of the user."""


def fail(*_: Any) -> Any:
    raise Own


class FailsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        fail()


class Failing(SmallNet):
    """Fails in one method when 41 steps are completed."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def at(self, where: str) -> None:
        if self.where == where and self.trainer.global_step >= 41:
            fail()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.at("training_step")
        loss = super().training_step(batch, batch_idx)
        broken = self.where == "backward" and self.trainer.global_step >= 41
        return FailsInBackward.apply(loss) if broken else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.at("validation_step")

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        self.at("optimizer_step")
        super().optimizer_step(*arguments, **options)


@pytest.mark.parametrize("where", ["training_step", "backward", "optimizer_step", "validation_step"])
def test_an_error_in_the_module_is_the_one_seen_and_all_that_was_measured_is_kept(tmp_path: Path, where: str) -> None:
    monitor = AgingMonitor()
    with pytest.raises(Own):
        train(tmp_path, monitor, model=Failing(where), val_check_interval=1.0)
    (record,) = on_disk(tmp_path / "glassy")
    assert record == monitor.record
    assert pairs(record) == pairs_until(48 if where == "validation_step" else 41)  # the end of an epoch


@pytest.mark.parametrize("order", ["before ours", "after ours"])
@pytest.mark.parametrize(
    ("hook", "until"),
    [
        ("setup", None),
        ("on_train_start", 0),
        ("on_before_zero_grad", 0),
        ("on_train_batch_start", 41),
        ("on_train_batch_end", 41),
        ("on_train_epoch_end", 48),
        ("on_train_end", 60),
        ("on_fit_end", 60),
        ("teardown", 60),
    ],
)
def test_an_error_in_another_callback_is_the_one_seen_and_all_that_was_measured_is_kept(
    tmp_path: Path, hook: str, until: int | None, order: str
) -> None:
    def at(self: Any, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step >= (until or 0):
            fail()

    monitor, other = AgingMonitor(), type("Other", (Callback,), {hook: at})()
    with pytest.raises(Own):
        train(tmp_path, *((other, monitor) if order == "before ours" else (monitor, other)))
    if (hook, order) == ("on_train_batch_end", "before ours"):
        until = 40  # we do not see the step at which it fails
    if until is None or (hook, order) == ("on_train_start", "before ours"):
        assert on_disk(tmp_path / "glassy") == []
    else:
        assert on_disk(tmp_path / "glassy") == [monitor.record]
        assert pairs(monitor.record) == pairs_until(until)


@pytest.mark.usefixtures("every_event")
def test_a_callback_that_fails_while_an_error_is_handled_costs_what_was_not_written_yet(tmp_path: Path) -> None:
    """After this, Lightning calls neither the other callbacks nor the loggers."""
    other = type("Other", (Callback,), {"on_exception": fail})()
    monitor = AgingMonitor()
    with pytest.raises(Own):
        train(tmp_path, other, monitor, model=Failing("training_step"))
    assert pairs(monitor.record) == pairs_until(41)
    (record,) = on_disk(tmp_path / "glassy")
    assert last_step(record) == 41
    assert rows(record) == rows(monitor.record, until=last_step(record))


# ------------------------------------------------------------------ early ends


@pytest.mark.parametrize("end", ["should_stop", "early stopping", "max_time"])
def test_a_training_that_ends_early_has_all_until_there(tmp_path: Path, end: str) -> None:
    def stop(trainer: Trainer) -> None:
        trainer.should_stop = True

    # This ends in the middle of an accumulation. The 12 batches of an epoch are 2 steps of 5 and one of 2.
    how: dict[str, tuple[list[Callback], dict[str, Any]]] = {
        "should_stop": ([At(7, do=stop)], {"accumulate_grad_batches": 5, "min_epochs": 0, "val_check_interval": 1}),
        "early stopping": ([EarlyStopping("val_loss", patience=1, mode="max")], {}),
        "max_time": ([], {"max_time": {"seconds": 0.5}}),
    }
    callbacks, options = how[end]
    monitor = AgingMonitor()
    trainer = train(tmp_path, monitor, *callbacks, **({"max_steps": -1, "max_epochs": -1} | options))
    assert trainer.global_step > 0
    assert pairs(monitor.record) == pairs_until(trainer.global_step, LogTimeSchedule.logspaced())
    assert on_disk(tmp_path / "glassy") == [monitor.record]


# ------------------------------------------------------------------ signals and SLURM


def train_with_signals(root: Path, signals: dict[int, signal.Signals], slurm: bool) -> None:
    write_at_every_event()
    # A shell turns this off for background jobs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if slurm:
        task = {"JOB_ID": "123", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
        os.environ |= {f"SLURM_{key}": value for key, value in task.items()}
        scontrol = root / "bin" / "scontrol"
        scontrol.parent.mkdir(exist_ok=True)
        scontrol.write_text(f"#!/bin/sh\necho requeued: $@ >> {root}/requeued\n")
        scontrol.chmod(0o755)
        os.environ["PATH"] = f"{scontrol.parent}:{os.environ['PATH']}"
    senders = [At(step, do=lambda _, it=it: os.kill(os.getpid(), it)) for step, it in signals.items()]
    train(root, *senders, AgingMonitor())


def test_a_signal_leaves_the_record(tmp_path: Path) -> None:
    cases = {signal.SIGTERM: 0, signal.SIGINT: 1, signal.SIGUSR1: -signal.SIGUSR1}
    children = {sent: start(train_with_signals, tmp_path / sent.name, {41: sent}, False) for sent in cases}
    assert {sent: end_of(child) for sent, child in children.items()} == cases
    whole = undisturbed(tmp_path, 60)
    for sent in cases:
        (record,) = on_disk(tmp_path / sent.name / "glassy")
        assert rows(record) == rows(whole, until=last_step(record))
        if sent == signal.SIGUSR1:  # nobody handles it, so it is like kill -9
            assert 40 <= last_step(record) <= 41
        else:
            assert 40 <= last_step(record) <= 41
            assert (tmp_path / sent.name / "glassy" / "aging_record.csv").exists()


@pytest.mark.parametrize(
    "place",
    ["os.fsync", "lightning_glassy.record.AgingRecord.append", "lightning_glassy.measure.snapshots.SnapshotBank.add"],
)
@pytest.mark.usefixtures("every_event")
def test_ctrl_c_in_the_middle_of_our_work_leaves_a_whole_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    calls = itertools.count(1)
    original = pkgutil.resolve_name(place)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(place, interrupted)
    monitor = AgingMonitor()
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        train(tmp_path, monitor)
    assert on_disk(tmp_path / "glassy") == [monitor.record]
    assert {path.name for path in (tmp_path / "glassy").iterdir()} == {"aging_record.npz", "aging_record.csv"}
    assert len(monitor.record) > 3
    assert rows(monitor.record) == {
        pair: row for pair, row in rows(undisturbed(tmp_path, 60)).items() if pair in pairs(monitor.record)
    }


def test_a_job_that_slurm_requeues_keeps_its_record_and_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "job"
    assert end_of(start(train_with_signals, root, {30: signal.SIGUSR1, 36: signal.SIGTERM}, True)) == 0
    assert (root / "hpc_ckpt_1.ckpt").exists()
    assert (root / "requeued").read_text() == "requeued: requeue 123\n"
    whole = undisturbed(tmp_path, 60)
    (record,) = on_disk(root / "glassy")
    assert 35 <= last_step(record) <= 36  # the training goes on until SLURM ends it
    assert rows(record) == rows(whole, until=last_step(record))
    # Start the same job again, from its checkpoint.
    assert end_of(start(train_with_signals, root, {}, True)) == 0
    (resumed,) = on_disk(root / "glassy")
    assert pairs(resumed) == pairs_until(60)
    assert rows(resumed, until=30) == rows(whole, until=30)


# ------------------------------------------------------------------ the table


def test_every_test_here_holds_a_row_of_the_table() -> None:
    here = set(re.findall(r"^def (test_\w+)\(", Path(__file__).read_text(), flags=re.MULTILINE))
    missing = here - {name for names in FAULTS.values() for name in names}
    assert missing == {"test_every_test_here_holds_a_row_of_the_table"}

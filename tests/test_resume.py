"""An interrupted and resumed training has the record of an uninterrupted one, to the bit."""

from __future__ import annotations

import contextlib
import os
import shutil
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from lightning_glassy import AgingMonitor, AgingRecord, AgingTracker, LogTimeSchedule
from lightning_glassy.loggers.dispatch import MetricsSink
from lightning_glassy.measure.resume import StateError
from lightning_glassy.measure.snapshots import SnapshotBank
from tests.helpers import SmallNet, data, quiet_trainer
from tests.processes import launch

# Two warnings are Lightning's, about loaders without a state and about checkpoint callbacks. The third is ours, for
# tests that do not expect it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:AgingMonitor. training starts at step"),
]


class Repeatable(SmallNet):
    """A training that a checkpoint determines to the bit. Its data follow from a counter, and its gradients are saved.

    Lightning saves neither the place in an epoch nor the gradients of micro-batches.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, width: int = 16) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 3)).to(dtype)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        generator = torch.Generator().manual_seed(int(self.count))
        self.count += 1
        x = torch.randn(4, 8, generator=generator)
        return self._loss((x, torch.randint(3, (4,), generator=generator)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1, momentum=0.9)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["gradients"] = [p.grad for p in self.parameters()]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.gradients = checkpoint["gradients"]

    def on_train_start(self) -> None:
        for parameter, gradient in zip(self.parameters(), getattr(self, "gradients", []), strict=False):
            parameter.grad = gradient


class At(Callback):
    """Saves a checkpoint after so many batches, and ends the training there by an exception."""

    def __init__(self, n_batches: int, path: Path | None = None) -> None:
        self.n_batches, self.path = n_batches, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.n_batches:
            if self.path is not None:
                trainer.save_checkpoint(self.path)
            raise ZeroDivisionError


def train(
    tmp_path: Path, monitor: AgingMonitor, *callbacks: Callback, module: Any = Repeatable, **options: Any
) -> AgingRecord:
    """Fit until the end, or until an interruption by :class:`At`."""
    torch.manual_seed(5)
    ckpt_path, first = options.pop("ckpt_path", None), options.pop("first", False)
    order = [*callbacks, monitor] if first else [monitor, *callbacks]
    with contextlib.suppress(ZeroDivisionError):
        quiet_trainer(tmp_path, callbacks=order, **options).fit(module(), data(), ckpt_path=ckpt_path)
    return monitor.record


def monitor(**options: Any) -> AgingMonitor:
    return AgingMonitor(**({"save": False, "summary": False} | options))


def pairs(record: AgingRecord) -> set[tuple[int, int]]:
    return set(zip(*(axis.tolist() for axis in record.pairs), strict=True))


# The checkpoint may be saved before the monitor sees the step.
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("in_files", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"groups": "layer", "sample": 50},
        {"schedule": LogTimeSchedule([0, 7, 20, 33], [0, 1, 5, 26])},
        {"moments": "msd", "snapshot_device": "cpu", "schedule": LogTimeSchedule.logspaced(max_lag=9)},
    ],
)
def test_the_record_of_an_interrupted_training_has_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], in_files: bool, first: bool
) -> None:
    if in_files:
        monkeypatch.setattr("lightning_glassy.measure.resume.INLINE_BYTES", 0)
    whole = train(tmp_path, monitor(**options), accumulate_grad_batches=3)
    # Save at a waiting time, between it and its lags, between micro-batches, and before the first or the last update.
    for n_batches in (2, 3, 30, 31, 60, 62, 99, 101, 178, 179):
        path = tmp_path / f"{n_batches}.ckpt"
        at = At(n_batches, path)
        train(tmp_path, monitor(**options), at, accumulate_grad_batches=3, first=first)
        again = train(tmp_path, monitor(**options), accumulate_grad_batches=3, ckpt_path=path)
        assert again == whole, n_batches
    assert (tmp_path / "glassy" / "glassy_snapshots").exists() == in_files


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_every_dtype_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    for limit in (0, 1 << 30):
        monkeypatch.setattr("lightning_glassy.measure.resume.INLINE_BYTES", limit)
        whole = train(tmp_path, monitor(), module=partial(Repeatable, dtype))
        train(tmp_path, monitor(), At(25, tmp_path / "a.ckpt"), module=partial(Repeatable, dtype))
        assert train(tmp_path, monitor(), module=partial(Repeatable, dtype), ckpt_path=tmp_path / "a.ckpt") == whole


SCRIPT = """
import os, random, signal, sys, torch
from pathlib import Path
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_glassy import AgingMonitor, AgingRecord
import lightning_glassy.measure.resume
from tests.test_resume import Repeatable, train
torch.set_num_threads(1)
root = Path(sys.argv[1])
class Kill(Callback):
    def __init__(self, moment):
        self.moment = moment
    def on_train_batch_end(self, trainer, *_):
        if trainer.fit_loop.total_batch_idx == self.moment:
            os.kill(os.getpid(), signal.SIGKILL)
def fit(place, *callbacks, ckpt_path=None):
    child = os.fork()
    if not child:
        options = dict(enable_checkpointing=True, accumulate_grad_batches=2, max_steps=60, ckpt_path=ckpt_path)
        save = ModelCheckpoint(place / "ckpt", every_n_train_steps=4, save_last=True, save_top_k=1)
        train(place, AgingMonitor(summary=False), save, *callbacks, **options)
        os._exit(0)
    return os.waitpid(child, 0)[1]
assert fit(root / "whole") == 0
whole = AgingRecord.load(root / "whole" / "glassy" / "aging_record.npz")
chance = random.Random(6)
for trial in range(20):
    place = root / str(trial)
    lightning_glassy.measure.resume.INLINE_BYTES = 0 if trial % 2 else 1 << 30
    moment = chance.randrange(12, 119)
    assert fit(place, Kill(moment)) == signal.SIGKILL
    last = place / "ckpt" / "last.ckpt"
    assert fit(place, ckpt_path=last) == 0
    files = list((place / "glassy").glob("*.npz"))
    assert len(files) == 1, files
    assert AgingRecord.load(files[0]) == whole, (trial, moment)
print("the same", len(whole))
"""


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_bit(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    assert "the same 97" in launch(tmp_path / "script.py", tmp_path, timeout=300)


@pytest.mark.parametrize(
    ("module", "of", "method"),
    [
        ("measure.snapshots", "SnapshotBank", "add"),
        ("measure.snapshots", "SnapshotBank", "release"),
        pytest.param("measure.moments.cpu", "CompiledMoments", "__call__", marks=pytest.mark.needs("numba")),
        ("record", "AgingRecord", "append"),
        ("record", "AgingRecord", "append_one_time"),
    ],
)
def test_a_checkpoint_in_the_middle_of_an_event_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, of: str, method: str
) -> None:
    """Save in the middle of an event, as a signal handler does before SLURM starts the job again."""
    schedule = LogTimeSchedule.logspaced(max_lag=20)
    whole = train(tmp_path, monitor(schedule=schedule))
    mine, path = monitor(schedule=schedule), tmp_path / "a.ckpt"
    owner = getattr(import_module(f"lightning_glassy.{module}"), of)
    original = getattr(owner, method)

    def interrupted(self: Any, *arguments: Any, **options: Any) -> Any:
        result, trainer = original(self, *arguments, **options), mine._recorder and mine._recorder._home()
        if trainer and trainer.global_step == 22 and not path.exists():
            path.touch()
            trainer.save_checkpoint(path)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, interrupted)
        train(tmp_path, mine, At(30))
    assert train(tmp_path, monitor(schedule=schedule), ckpt_path=path) == whole


@pytest.mark.filterwarnings("ignore:.*fit\\(ckpt_path=")
def test_ctrl_c_in_the_middle_of_a_capture_leaves_nothing_unfilled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, add = train(tmp_path, monitor()), SnapshotBank.add

    def interrupted(bank: SnapshotBank, step: int) -> Any:
        snapshot = add(bank, step)
        if step == 10:
            for flat in snapshot.flats:
                flat.fill_(1e3)
            raise KeyboardInterrupt
        return snapshot

    class Keep(OnExceptionCheckpoint):
        def teardown(self, *_: Any, **__: Any) -> None:
            pass

    with monkeypatch.context() as patch:
        patch.setattr(SnapshotBank, "add", interrupted)
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            train(tmp_path, monitor(), Keep(tmp_path), enable_checkpointing=True)
    assert train(tmp_path, monitor(), ckpt_path=tmp_path / "on_exception.ckpt") == whole


def test_what_is_still_on_its_way_is_in_a_state_that_is_asked_for_in_an_event() -> None:
    """On CUDA, measurements land later. A signal handler may come in the middle of the next event."""
    path = torch.cumsum(torch.randn(31, 20, generator=torch.Generator().manual_seed(3)), 0)

    def run(steps: range, **options: Any) -> AgingTracker:
        parameter = nn.Parameter(path[steps[0]].clone())
        tracker = AgingTracker([("w", parameter)], LogTimeSchedule([0, 5], [1, 2, 3, 4, 20]), **options)
        tracker._readback.landed = lambda: iter(())  # type: ignore[method-assign]
        measure = tracker._moments.__call__
        for step in steps:
            parameter.data.copy_(path[step])
            if step == 4 and not options:
                tracker._moments = lambda *a: (states.append(tracker.state_dict()), measure(*a))[1]  # type: ignore
                tracker._moments.streams = {}  # type: ignore[attr-defined]
            tracker.update(step)
        tracker.drain()
        return tracker

    states: list[Any] = []
    whole = run(range(31))
    again = run(range(4, 31), state=states[0])
    assert again.record == whole.record


def test_snapshots_are_written_once_for_all_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_glassy.measure import resume as module

    write, written = module.write_snapshot, []
    monkeypatch.setattr(module, "INLINE_BYTES", 0)
    monkeypatch.setattr(module, "write_snapshot", lambda *a: (written.append(a[1]), write(*a))[1])
    tracker = AgingTracker(Repeatable(), LogTimeSchedule([0, 2, 4], [1, 100]))
    for step in range(6):
        tracker.update(step)
        state = tracker.state_dict(tmp_path)
    assert written == [0, 2, 4]
    again = AgingTracker(Repeatable(), LogTimeSchedule([0, 2, 4, 7], [1, 100]), state=state, directory=tmp_path)
    again.update(7)
    again.state_dict(tmp_path)
    assert written == [0, 2, 4, 7]
    # Snapshots without a further lag in the schedule are dropped.
    other = AgingTracker(Repeatable(), LogTimeSchedule([20], [1]), state=state)
    assert other.n_snapshots == 0
    left = tmp_path / f".{next(tmp_path.glob('tw_0*')).name[:40]}.0123456789ab"
    left.touch()
    os.utime(left, (0, 0))
    again.update(8)
    for file in tmp_path.glob("tw_7*"):
        file.unlink()
    again.state_dict(tmp_path)
    assert not left.exists()


def test_another_trainer_or_an_earlier_checkpoint_never_gets_the_sinks_of_before(tmp_path: Path) -> None:
    mine = monitor(save=True)
    first = train(tmp_path / "a", mine, At(24, tmp_path / "a.ckpt"), logger=CSVLogger(tmp_path / "a"))
    lines = (tmp_path / "a" / "lightning_logs" / "version_0" / "glassy.csv").read_text()
    second = train(tmp_path / "b", mine, logger=CSVLogger(tmp_path / "b"), ckpt_path=tmp_path / "a.ckpt")
    assert (tmp_path / "a" / "lightning_logs" / "version_0" / "glassy.csv").read_text() == lines
    table = (tmp_path / "b" / "lightning_logs" / "version_0" / "glassy.csv").read_text().splitlines()
    assert len(table) == len(set(table)) == 1 + len(second)
    (there,) = (tmp_path / "a").rglob("aging_record.npz")
    assert AgingRecord.load(there) == first
    (there,) = (tmp_path / "b").rglob("aging_record.npz")
    assert AgingRecord.load(there) == second


def test_a_checkpoint_never_has_the_state_of_another_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = monitor()
    train(tmp_path, mine, max_steps=24)
    with monkeypatch.context() as patch:
        patch.setattr(AgingTracker, "state_dict", lambda *_, **__: 1 / 0)
        train(tmp_path, mine, At(10, tmp_path / "a.ckpt"))
    assert "lightning_glassy" not in torch.load(tmp_path / "a.ckpt", weights_only=True)


def test_metadata_that_cannot_be_saved_does_not_end_the_training(tmp_path: Path) -> None:
    class Spoil(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            mine.record.meta["tensor"] = torch.ones(3)

    mine = monitor()
    assert len(train(tmp_path, mine, Spoil())) == 97


def test_a_new_logger_is_told_of_the_earlier_steps_in_their_order(tmp_path: Path) -> None:
    steps: list[int] = []

    class Unknown(CSVLogger):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            if any("glassy" in name for name in metrics):
                steps.append(step or 0)

    train(tmp_path, monitor(), At(24, tmp_path / "a.ckpt"))
    sink = MetricsSink(Unknown(tmp_path), "glassy")
    record = train(tmp_path, monitor(), ckpt_path=tmp_path / "a.ckpt")
    sink.update(record, sorted(pairs(record)), 60)
    assert steps == sorted(steps)


def test_a_longer_training_goes_on_from_the_end_of_a_shorter_one(tmp_path: Path) -> None:
    # The schedule has a waiting time at the end of the shorter training, and a lag that is longer than its rest.
    schedule = LogTimeSchedule([0, 20, 30, 35], [5, 25])
    whole = train(tmp_path, monitor(schedule=schedule))
    ends = ModelCheckpoint(tmp_path / "c", save_last=True, every_n_train_steps=30)
    train(tmp_path, monitor(schedule=schedule), ends, max_steps=30, enable_checkpointing=True)
    assert train(tmp_path, monitor(schedule=schedule), ckpt_path=tmp_path / "c" / "last.ckpt") == whole
    preset = train(tmp_path, monitor(schedule="baity-jesi"), max_steps=-1, max_epochs=4)
    train(tmp_path, monitor(schedule="baity-jesi"), At(20, tmp_path / "b.ckpt"), max_steps=-1, max_epochs=4)
    again = train(tmp_path, monitor(schedule="baity-jesi"), max_steps=-1, max_epochs=4, ckpt_path=tmp_path / "b.ckpt")
    assert again == preset


def test_large_snapshots_are_written_once_beside_the_checkpoints(tmp_path: Path) -> None:
    """Snapshots of a million parameters have 4 MB each."""

    def fit(*callbacks: Callback, **options: Any) -> AgingRecord:
        mine = monitor(schedule=LogTimeSchedule([0, 1, 3, 5, 7], [1, 2, 4, 20]))
        return train(tmp_path, mine, *callbacks, module=partial(Repeatable, width=90_000), max_steps=12, **options)

    whole = fit()
    every = ModelCheckpoint(tmp_path / "here", every_n_train_steps=1, save_top_k=-1)
    fit(every, At(9), enable_checkpointing=True)
    # The checkpoint has the weights, the momentum and the gradients. It has at most 16 MiB of snapshots.
    others = 3 * 12 * 90_000 * 4
    assert len(list((tmp_path / "here").glob("*.ckpt"))) == 8
    assert others < next((tmp_path / "here").glob("*step=8*")).stat().st_size < others + 100_000
    files = sorted(path.name for path in (tmp_path / "here" / "glassy_snapshots").iterdir())
    assert [name.split("-")[0] for name in files] == ["tw_0", "tw_1", "tw_3", "tw_5", "tw_7"]
    shutil.move(tmp_path / "here", tmp_path / "there")
    path = next((tmp_path / "there").glob("*step=8*"))
    assert fit(ckpt_path=path) == whole


@pytest.mark.parametrize("harm", ["missing", "damaged", "short", "foreign"])
def test_a_lost_snapshot_costs_its_own_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    monkeypatch.setattr("lightning_glassy.measure.resume.INLINE_BYTES", 0)
    whole = train(tmp_path, monitor())
    train(tmp_path, monitor(), At(25, tmp_path / "a.ckpt"))
    [file] = (tmp_path / "glassy" / "glassy_snapshots").glob("tw_10-*")
    content = file.read_bytes()
    if harm == "missing":
        file.unlink()
    elif harm == "damaged":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "short":
        file.write_bytes(content[:50])
    else:
        np.save(file, np.array([{"an": "object"}], dtype=object), allow_pickle=True)
    record = train(tmp_path, monitor(), ckpt_path=tmp_path / "a.ckpt")
    assert pairs(record) == {(tw, lag) for tw, lag in pairs(whole) if tw != 10 or tw + lag <= 25}
    told = [message for message in caplog.messages if "is lost" in message]
    assert len(told) == 1
    assert "the snapshot of step 10 is lost: SnapshotFileError: " in told[0]
    assert file.name in told[0]


def test_a_full_disk_costs_the_snapshots_of_a_checkpoint_not_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_glassy.measure.resume.INLINE_BYTES", 0)
    whole = train(tmp_path, monitor())
    with monkeypatch.context() as patch:
        patch.setattr("lightning_glassy.measure.snapshot_files.write_atomically", full)
        train(tmp_path, monitor(), At(25, tmp_path / "a.ckpt"))
    told = sum("could not be written beside the checkpoint (OSError" in message for message in caplog.messages)
    assert told == 6  # one for each snapshot
    record = train(tmp_path, monitor(), ckpt_path=tmp_path / "a.ckpt")
    assert pairs(record) == {(tw, lag) for tw, lag in pairs(whole) if tw > 25 or tw + lag <= 25}


def test_a_checkpoint_is_tensors_and_plain_values(tmp_path: Path) -> None:
    whole = train(tmp_path, monitor())
    train(tmp_path, monitor(), At(25, tmp_path / "a.ckpt"))
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["lightning_glassy"]["glassy"]

    def check(value: object) -> None:
        if isinstance(value, dict):
            for key, entry in value.items():
                assert type(key) is str
                check(entry)
        elif isinstance(value, list):
            for entry in value:
                check(entry)
        else:
            assert type(value) in (torch.Tensor, int, str, float, bool, type(None))

    check(state)
    again = monitor()
    trainer = quiet_trainer(tmp_path, callbacks=[again])
    trainer.fit(Repeatable(), data(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert again.record == whole


def test_each_of_two_monitors_gets_its_own_state(tmp_path: Path) -> None:
    def both() -> list[AgingMonitor]:
        return [monitor(), monitor(sample=20), monitor(name="third", groups="layer")]

    def fit(monitors: list[AgingMonitor], *callbacks: Callback, **options: Any) -> list[AgingRecord]:
        train(tmp_path, monitors[0], *monitors[1:], *callbacks, **options)
        return [each.record for each in monitors]

    whole = fit(both())
    fit(both(), At(31, tmp_path / "a.ckpt"))
    assert fit(both(), ckpt_path=tmp_path / "a.ckpt") == whole


@pytest.mark.parametrize("kind", ["without a monitor", "weights only"])
def test_without_a_state_a_new_record_starts(tmp_path: Path, kind: str) -> None:
    trainer = quiet_trainer(tmp_path, max_steps=24, callbacks=[monitor()] if kind == "weights only" else [])
    trainer.fit(Repeatable(), data())
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=kind == "weights only")
    if kind == "weights only":
        record = train(tmp_path, monitor(), module=lambda: Repeatable.load_from_checkpoint(tmp_path / "a.ckpt"))
        assert record.waiting_times[0] == 0  # to Lightning it is a new training
        return
    with pytest.warns(UserWarning, match="starts at step 24 without earlier snapshots; a new record starts here"):
        record = train(tmp_path, monitor(), ckpt_path=tmp_path / "a.ckpt")
    assert record.waiting_times[0] == 24


class Wider(Repeatable):
    """The same network with one more layer. A checkpoint of the smaller network lacks the weights of this layer."""

    strict_loading = False

    def __init__(self) -> None:
        super().__init__()
        self.net[2] = nn.Sequential(self.net[2], nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({}, {"overlap_thresholds": [0.5]}, r"overlap_thresholds=\[0\.5\], and they were"),
        ({}, {"sample": 20}, "sample=20, and it was None before"),
        ({"sample": 30}, {"sample": None}, "sample=None, and it was 30 before"),
        ({}, {"moments": "msd"}, "moments='msd', and it was 'full' before"),
        ({}, {"exclude": "net.0.*"}, "the parameter 'net.0.weight' was tracked, and is gone, frozen or excluded now"),
        ({}, {"groups": "layer"}, r"'net.0.weight' had the shape .* and the groups \[\], and has .*\['net.0'\]"),
    ],
)
def test_what_has_changed_is_named_and_a_new_record_starts(
    tmp_path: Path, options: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    train(tmp_path, monitor(**options), At(24, tmp_path / "a.ckpt"))
    with pytest.warns(UserWarning, match=f"the record of the checkpoint cannot go on: .*{message}"):
        record = train(tmp_path, monitor(**(options | change)), ckpt_path=tmp_path / "a.ckpt")
    assert record.waiting_times[0] == 24


CRAFTED = {
    "no list": lambda parts: 5,
    "no part": lambda parts: [{}],
    "a waiting time in words": lambda parts: parts[0]["snapshots"][0].update(waiting_time="one"),
    "no last lag": lambda parts: parts[0]["snapshots"][0].update(last_lag=None),
    "no tensors": lambda parts: parts[0]["snapshots"][0].update(flats=[1, 2]),
    "twice the same": lambda parts: parts[0]["snapshots"][0].update(waiting_time=1),
    "another parameter": lambda parts: parts[0]["layout"][0][0].__setitem__(0, "else"),
    "a block beyond it": lambda parts: parts[0]["layout"][0][0].__setitem__(2, [10**9, 10**9]),
    "an order out of range": lambda parts: parts[0]["layout"][0][0].__setitem__(3, [0, 7]),
    "a dtype that is none": lambda parts: parts[0]["dtypes"].__setitem__(0, "torch.nn"),
    "a number of replicas": lambda parts: parts[0].update(n_replica=10**12),
}


@pytest.mark.parametrize("change", CRAFTED.values(), ids=CRAFTED)
def test_snapshots_that_somebody_made_up_are_refused(change: Any) -> None:
    tracker = AgingTracker(Repeatable())
    for step in range(3):
        tracker.update(step)
    state = tracker.state_dict()
    state["parts"] = change(state["parts"]) or state["parts"]
    with pytest.raises(StateError):
        AgingTracker(Repeatable(), state=state)


def test_whatever_a_file_of_a_snapshot_holds_it_costs_its_own_curve(tmp_path: Path) -> None:
    tracker = AgingTracker(Repeatable())
    monkey = pytest.MonkeyPatch()
    monkey.setattr("lightning_glassy.measure.resume.INLINE_BYTES", 0)
    for step in range(3):
        tracker.update(step)
    state = tracker.state_dict(tmp_path)
    monkey.undo()
    [file] = tmp_path.glob("tw_1-*")
    content, generator = file.read_bytes(), np.random.default_rng(4)
    broken = [b"", b"PK\x03\x04" + content[4:], content[: len(content) // 2], content + b"0"]
    for _ in range(200):
        harmed = bytearray(content)
        for place in generator.integers(128 if generator.random() < 0.9 else len(content), size=3):
            harmed[place] ^= 1 << generator.integers(8)
        broken.append(bytes(harmed))
    for harmed in broken:
        if harmed != content:
            file.write_bytes(harmed)
            again = AgingTracker(Repeatable(), state=state)
            assert list(again.lost) == [1]
            assert again.n_snapshots == 2


@pytest.mark.parametrize(
    "state", [3, {}, {"version": 2}, {"version": 1, "record": torch.zeros(9, dtype=torch.uint8)}, "crafted"]
)
def test_what_is_no_state_is_refused(tmp_path: Path, state: Any) -> None:
    train(tmp_path, monitor(), At(24, tmp_path / "a.ckpt"))
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    if state == "crafted":
        state = checkpoint["lightning_glassy"]["glassy"]
        state["parts"][0]["snapshots"][2]["flats"] = [torch.zeros(10**6)]
        expected: Any = {(2, lag) for lag in LogTimeSchedule.logspaced(60).lags if 24 < 2 + lag <= 60}
    else:
        expected = None
    checkpoint["lightning_glassy"]["glassy"] = state
    torch.save(checkpoint, tmp_path / "b.ckpt")
    if expected is None:
        with pytest.warns(UserWarning, match="cannot go on: "):
            assert train(tmp_path, monitor(), ckpt_path=tmp_path / "b.ckpt").waiting_times[0] == 24
    else:
        whole, less = train(tmp_path, monitor()), train(tmp_path, monitor(), ckpt_path=tmp_path / "b.ckpt")
        assert pairs(whole) - pairs(less) == expected


def test_another_schedule_takes_over_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before, after = LogTimeSchedule([0, 10], [1, 10, 40]), LogTimeSchedule([30], [4, 15])
    train(tmp_path, monitor(schedule=before), At(24, tmp_path / "a.ckpt"))
    record = train(tmp_path, monitor(schedule=after), ckpt_path=tmp_path / "a.ckpt")
    assert pairs(record) == {(0, 1), (0, 10), (10, 1), (10, 10), (10, 15), (0, 24), (30, 4), (30, 15)}
    assert any(f"the schedule was {before!r}, and is {after!r} from step" in message for message in caplog.messages)


def test_parameters_unfrozen_before_the_checkpoint_do_not_stop_the_record(tmp_path: Path) -> None:
    def module(frozen: bool) -> Repeatable:
        made = Repeatable()
        made.net[0].requires_grad_(not frozen)
        return made

    class Unfreeze(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 12 and not pl_module.net[0].weight.requires_grad:
                pl_module.net[0].requires_grad_(True)
                trainer.optimizers[0].add_param_group({"params": list(pl_module.net[0].parameters()), "lr": 0.1})

    whole = train(tmp_path, monitor(), Unfreeze(), module=partial(module, True))
    train(tmp_path, monitor(), Unfreeze(), At(24, tmp_path / "a.ckpt"), module=partial(module, True))

    class AsItWas(Callback):
        """Restores the parameter groups at a resume, as a finetuning callback does."""

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            def configure_optimizers() -> Any:
                head, body = pl_module.net[2].parameters(), pl_module.net[0].parameters()
                return torch.optim.SGD([{"params": list(head)}, {"params": list(body)}], lr=0.1, momentum=0.9)

            pl_module.configure_optimizers = configure_optimizers

    again = train(tmp_path, monitor(), AsItWas(), module=partial(module, False), ckpt_path=tmp_path / "a.ckpt")
    assert again.n_parameters["all"] == 51
    assert np.array_equal(again.moments, whole.moments, equal_nan=True)


@pytest.mark.filterwarnings("ignore:.*fit\\(ckpt_path=")
def test_an_exception_can_be_gone_on_from(tmp_path: Path) -> None:
    class Keep(OnExceptionCheckpoint):
        def teardown(self, *_: Any, **__: Any) -> None:
            pass

    whole = train(tmp_path, monitor())
    train(tmp_path, monitor(), At(33), Keep(tmp_path), enable_checkpointing=True)
    assert train(tmp_path, monitor(), ckpt_path=tmp_path / "on_exception.ckpt") == whole


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_a_checkpoint_after_the_training_goes_on_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr("lightning_glassy.measure.resume.INLINE_BYTES", limit)
    whole = train(tmp_path / "whole", monitor())
    torch.manual_seed(5)  # as in `train`
    trainer = quiet_trainer(tmp_path, callbacks=[monitor()], max_steps=24)
    trainer.fit(Repeatable(), data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert (tmp_path / "glassy" / "glassy_snapshots").exists() == (limit == 0)
    assert train(tmp_path, monitor(), ckpt_path=tmp_path / "a.ckpt") == whole


def test_the_file_of_the_same_record_is_gone_on_with_and_no_other(tmp_path: Path) -> None:
    def fit(*callbacks: Callback, **options: Any) -> AgingRecord:
        return train(tmp_path, monitor(save=True), *callbacks, **options)

    def files() -> list[str]:
        return sorted(path.name for path in (tmp_path / "glassy").glob("*.npz"))

    fit(At(20, tmp_path / "a.ckpt"))
    fit(At(40), ckpt_path=tmp_path / "a.ckpt")  # ahead of the checkpoint
    whole = fit(ckpt_path=tmp_path / "a.ckpt")
    assert files() == ["aging_record.npz"]
    assert AgingRecord.load(tmp_path / "glassy" / "aging_record.npz") == whole
    # The first file is complete, so another continuation of the checkpoint is another run.
    other = fit(ckpt_path=tmp_path / "a.ckpt", max_steps=50)
    assert files() == ["aging_record-1.npz", "aging_record.npz"]
    assert AgingRecord.load(tmp_path / "glassy" / "aging_record.npz") == whole
    assert AgingRecord.load(tmp_path / "glassy" / "aging_record-1.npz") == other


def test_loggers_of_the_resumed_run_get_the_whole_record(tmp_path: Path) -> None:
    train(tmp_path, monitor(), At(20, tmp_path / "a.ckpt"), logger=CSVLogger(tmp_path, version=0))
    record = train(tmp_path, monitor(), ckpt_path=tmp_path / "a.ckpt", logger=CSVLogger(tmp_path, version=1))
    lines = (tmp_path / "lightning_logs" / "version_1" / "glassy.csv").read_text().splitlines()
    assert len(lines) == 1 + len(record)


def test_a_tracker_goes_on_in_a_loop_of_ones_own(tmp_path: Path) -> None:
    path = torch.cumsum(torch.randn(61, 50, generator=torch.Generator().manual_seed(3)), 0)

    def run(steps: range, state: Any = None, directory: Path | None = None) -> AgingTracker:
        parameter = nn.Parameter(path[steps[0]].clone())
        tracker = AgingTracker([("w", parameter)], state=state, directory=directory)
        for step in steps:
            parameter.data.copy_(path[step])
            tracker.update(step)
        return tracker

    whole = run(range(61))
    whole.drain()
    for directory in (None, tmp_path / "snapshots"):
        torch.save(run(range(31)).state_dict(directory), tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        again = run(range(31, 61), state, directory)
        again.drain()
        assert again.record == whole.record

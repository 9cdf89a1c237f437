"""The loss along a line: known barriers, no barrier if the loss is convex, and an undisturbed training."""

from __future__ import annotations

import contextlib
import copy
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_glassy import (
    AgingMonitor,
    AgingRecord,
    BarrierMonitor,
    DisplacementDistribution,
    LogTimeSchedule,
    ReplicaEnsemble,
)
from lightning_glassy import observables as obs
from tests.helpers import SmallNet, data, quiet_trainer
from tests.processes import launch
from tests.test_probes import End, Heard, Noisy, assert_same

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:Found . module.s. in eval mode"),
]

QUIET: dict[str, Any] = {"save": False, "summary": False}


class DoubleWell(LightningModule):
    r"""The mean of :math:`h\,(1 - (w/a)^2)^2` over the weights, which jump to given places at given steps."""

    def __init__(self, height: float, places: dict[int, float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((6, 2), -2.0, dtype=torch.float64))
        self.height, self.places = height, places

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.height * ((1 - (self.w / 2.0) ** 2) ** 2).mean()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        place = self.places.get(self.trainer.global_step + 1)  # this step is not counted yet
        if place is not None:
            self.w.data.fill_(place)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_a_double_well_has_the_barrier_that_it_has(tmp_path: Path) -> None:
    schedule = LogTimeSchedule([0], [1, 2, 3])
    barrier, heard = BarrierMonitor(schedule, points=13, **QUIET), Heard()
    # Jump to the other well, then halfway up its inner side, then back to the start.
    module = DoubleWell(0.7, {1: 2.0, 2: 1.0, 3: -2.0})
    quiet_trainer(tmp_path, callbacks=[barrier], max_steps=4, logger=heard).fit(module, data())
    profile = barrier.record.profile("loss_path")
    assert (profile.waiting_times.tolist(), profile.lags.tolist()) == ([0, 0, 0], [1, 2, 3])
    assert profile.grid == pytest.approx(np.arange(13) / 12)
    side = 0.7 * (1 - 0.25) ** 2
    heights = obs.barrier_height(profile.values)
    assert heights == pytest.approx([0.7, 0.7 - side, 0.0], abs=1e-12)
    assert profile.values[0] == pytest.approx(0.7 * (1 - (2 * profile.grid - 1) ** 2) ** 2, abs=1e-12)
    # The record holds the distance of the two ends.
    assert np.sqrt(12 * barrier.record.msd()[0]) == pytest.approx(np.sqrt(12) * np.array([4.0, 3.0, 0.0]))
    logged = {
        (step, key.removeprefix("glassy_series/")): value
        for step, metrics in heard.metrics
        for key, value in metrics.items()
        if "_series/" in key
    }
    assert logged == pytest.approx(
        {(lag, "barrier/tw_0"): heights[lag - 1] for lag in (1, 2, 3)}
        | {(lag, "loss_difference/tw_0"): value for lag, value in ((1, 0.0), (2, side), (3, 0.0))},
        abs=1e-12,
    )


class Line(LightningModule):
    """Linear regression: the loss is convex."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 1, dtype=torch.float64)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0].double())[:, 0], batch[1].double())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.2)


@pytest.mark.parametrize("snapshot_device", [None, "cpu"])
def test_a_convex_problem_has_none_and_its_losses_are_those_of_the_whole_set(
    tmp_path: Path, snapshot_device: str | None
) -> None:
    kept: dict[int, Tensor] = {}

    class Keep(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            kept[0] = nn.utils.parameters_to_vector(pl_module.parameters()).detach().clone()

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            kept[trainer.global_step] = nn.utils.parameters_to_vector(pl_module.parameters()).detach().clone()

    barrier = BarrierMonitor(3, max_batches=None, **QUIET)
    monitor = AgingMonitor(sample=None, snapshot_device=snapshot_device, **QUIET)
    quiet_trainer(tmp_path, callbacks=[barrier, monitor, Keep()]).fit(Line(), data())
    profile = barrier.record.profile("loss_path")
    assert len(profile.values) > 20
    assert obs.barrier_height(profile.values).max() < 1e-12
    x, y = (part.double() for part in data().dataset.tensors)  # type: ignore[attr-defined]
    for waiting_time, lag, losses in zip(profile.waiting_times, profile.lags, profile.values, strict=True):
        for alpha, loss in zip(profile.grid, losses, strict=True):
            w = (1 - alpha) * kept[waiting_time] + alpha * kept[waiting_time + lag]
            assert loss == pytest.approx(float(((x @ w[:8] + w[8] - y) ** 2).mean()), rel=1e-12)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("snapshot_device", [None, "cpu", "alone"])
def test_training_is_the_same_to_the_bit(tmp_path: Path, precision: Any, snapshot_device: str | None) -> None:
    def train(callbacks: list[Callback]) -> dict[str, Any]:
        seed_everything(4)
        module, heard = Noisy(), Heard()
        trainer = quiet_trainer(tmp_path, callbacks=callbacks, precision=precision, logger=heard)
        trainer.fit(module, data(), data(shuffle=False))
        return {
            "weights and buffers": module.state_dict(),
            "momenta": [state["momentum_buffer"] for state in trainer.optimizers[0].state.values()],
            "modes": [(part.training, getattr(part, "track_running_stats", None)) for part in module.modules()],
            "gradients": [parameter.grad for parameter in module.parameters()],
            "attributes": [module.average, module.calls, module.losses, module.rng.random(), module.dice.random()],
            "random numbers": [torch.rand(3), torch.rand(3, generator=module.generator)],
            "logged": [
                (step, found)
                for step, metrics in heard.metrics
                if (found := {k: v for k, v in metrics.items() if "glassy" not in k})
            ],
        }

    followers: list[Callback] = [BarrierMonitor(points=4, **QUIET), DisplacementDistribution(**QUIET)]
    monitors = [AgingMonitor(snapshot_device=snapshot_device, **QUIET)] if snapshot_device != "alone" else []
    assert_same(train([*followers, *monitors]), train([]))
    record = followers[0].record  # type: ignore[attr-defined]
    assert np.isfinite(record.profile("loss_path").values).all()
    assert len(record.profile("displacement").values) >= len(record.profile("loss_path").values) > 5


@pytest.mark.parametrize("frozen", [False, True])
def test_normalisations_are_by_the_statistics_of_the_batch_unless_they_are_frozen(tmp_path: Path, frozen: bool) -> None:
    """The loss is the same at the same weights, however far the running statistics have moved in between."""

    class Still(Noisy):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    module = Still()
    module.net[1].running_mean += 0.3  # type: ignore[operator]
    module.net[1].train(not frozen)
    barrier = BarrierMonitor(LogTimeSchedule([0, 10], [1, 30]), points=3, batch_size=48, **QUIET)
    quiet_trainer(tmp_path, callbacks=[barrier]).fit(module, data())
    values = barrier.record.profile("loss_path").values
    assert values.shape == (4, 3)
    assert len(np.unique(values)) == 1
    module.eval()
    module.net[1].train(not frozen)
    with torch.no_grad():
        assert values[0, 0] == pytest.approx(float(module.training_step(data().dataset.tensors, 0)), rel=1e-6)  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [RuntimeError("it does not work today"), KeyboardInterrupt()])
def test_weights_are_put_back_after_a_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    states: list[dict[str, Tensor]] = []

    class Keep(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            states[:] = [copy.deepcopy(pl_module.state_dict())]

    def loss(module: Any, batch: Any) -> Tensor:
        moved = states and not torch.equal(module.net[0].weight, states[0]["net.0.weight"])
        if module.global_step == 10 and moved:
            raise error
        return module._loss(batch)

    module = SmallNet()
    barrier, monitor = BarrierMonitor(loss=loss, **QUIET), AgingMonitor(**QUIET)
    trainer = quiet_trainer(tmp_path, callbacks=[Keep(), monitor, barrier], max_steps=10)
    interrupted = isinstance(error, KeyboardInterrupt)
    with (
        caplog.at_level(logging.WARNING, "lightning_glassy"),
        pytest.raises(SystemExit) if interrupted else contextlib.nullcontext(),
    ):
        trainer.fit(module, data())
    assert_same(dict(module.state_dict()), dict(states[0]))
    assert module.training or interrupted
    if not interrupted:
        assert caplog.text.count("BarrierMonitor failed (RuntimeError: it does not work today)") == 1
        assert (0, 10) in monitor.record
    assert [0, 1] in np.stack(monitor.record.profile("loss_path")[:2], axis=1).tolist()


def test_a_checkpoint_saved_on_the_line_has_the_weights_of_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before: dict[str, Tensor] = {}

    class Keep(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            if trainer.global_step == 10:
                before.update(copy.deepcopy(pl_module.state_dict()))

    def loss(module: Any, batch: Any) -> Tensor:
        """Save a checkpoint, as the handler of a signal may."""
        path = tmp_path / "middle.ckpt"
        if module.global_step == 10 and not torch.equal(module.net[0].weight, before["net.0.weight"]):
            assert not path.exists()
            module.trainer.save_checkpoint(path)
        return nn.functional.cross_entropy(module(batch[0]), batch[1])

    module, barrier, monitor = Noisy(), BarrierMonitor(loss=loss, **QUIET), AgingMonitor(**QUIET)
    with caplog.at_level(logging.WARNING, "lightning_glassy"):
        quiet_trainer(tmp_path, callbacks=[Keep(), monitor, barrier], max_steps=12).fit(module, data())
    checkpoint = torch.load(tmp_path / "middle.ckpt", weights_only=True)
    assert_same(dict(checkpoint["state_dict"]), before)
    assert "a checkpoint was saved in the middle of a line" in caplog.text
    profile = barrier.record.profile("loss_path")
    assert 10 not in (profile.waiting_times + profile.lags).tolist()
    assert 11 in (profile.waiting_times + profile.lags).tolist()


def test_profiles_go_on_in_a_resumed_training(tmp_path: Path) -> None:
    def fit(place: Path, *more: Callback, **options: Any) -> AgingRecord:
        """Train on one batch with all data. Then the order of the samples, which no checkpoint has, does not matter."""
        torch.manual_seed(1)
        module = SmallNet()
        module.net[2] = nn.Identity()
        followers = [BarrierMonitor(2, points=3, batch_size=8, summary=False), DisplacementDistribution(summary=False)]
        trainer = quiet_trainer(place, callbacks=[*more, *followers], max_steps=40)
        with contextlib.suppress(ZeroDivisionError):
            trainer.fit(module, data(batch_size=48, shuffle=False), **options)
        return followers[1].record

    whole = fit(tmp_path / "whole")
    for step in (9, 11):
        path, place = tmp_path / f"{step}.ckpt", tmp_path / f"again_{step}"
        fit(place, End(step, path))
        torch.load(path, weights_only=True)  # nothing but tensors and plain values
        resumed = fit(place, ckpt_path=path)
        assert resumed.profile_names
        assert resumed == whole
        (file,) = place.rglob("aging_record*.npz")
        assert AgingRecord.load(file) == resumed


def test_the_number_of_evaluations_is_as_said(tmp_path: Path) -> None:
    count = 0

    def loss(module: Any, batch: Any) -> Tensor:
        nonlocal count
        count += 1
        return module._loss(batch)

    barrier = BarrierMonitor(points=7, max_batches=5, loss=loss, **QUIET)
    quiet_trainer(tmp_path, callbacks=[barrier]).fit(SmallNet(), data())
    profile = barrier.record.profile("loss_path")
    steps, n_pairs = np.unique(profile.waiting_times + profile.lags, return_counts=True)
    assert count == sum(5 * (1 + 6 * n) for n in n_pairs)
    meta = barrier.record.meta["BarrierMonitor"]
    assert (meta["batches"], meta["samples"], meta["points"], meta["measurements"]) == (5, 20, 7, len(profile.lags))
    assert len(steps) == 5


class Twin(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        self.net = ReplicaEnsemble(lambda: nn.Linear(8, 3), 2)  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("module", "callbacks", "message"),
    [
        (
            SmallNet,
            [AgingMonitor(sample=50, **QUIET), BarrierMonitor(**QUIET)],
            r"50 of 195: give AgingMonitor\(sample=",
        ),
        (
            SmallNet,
            [BarrierMonitor(**QUIET), AgingMonitor(sample=50, **QUIET)],
            r"50 of 195: give AgingMonitor\(sample=",
        ),
        (Twin, [BarrierMonitor(**QUIET)], "ReplicaEnsemble"),
        (SmallNet, [BarrierMonitor(batch_size=100, **QUIET)], "BarrierMonitor: the loader of the training data"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_training(
    tmp_path: Path, module: Any, callbacks: list[Callback], message: str
) -> None:
    trainer = quiet_trainer(tmp_path, callbacks=callbacks)
    with pytest.raises(MisconfigurationException, match=message):
        trainer.fit(module(), data())
    assert trainer.global_step == 0


def test_what_would_wait_for_other_processes_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match="SyncBatchNorm"):
        BarrierMonitor().prepare(SimpleNamespace(world_size=2), nn.Sequential(nn.SyncBatchNorm(3)))  # type: ignore[arg-type]


def test_bad_arguments_are_named() -> None:
    for points in (2, 1001, 3.0, True):
        with pytest.raises(ValueError, match="points="):
            BarrierMonitor(points=points)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="schedule='log' is not a preset"):
        BarrierMonitor("log")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_batches=0"):
        BarrierMonitor(max_batches=0)


def test_weights_of_any_layout_are_moved_and_put_back(tmp_path: Path) -> None:
    class Strange(Line):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.randn(5, 4, dtype=torch.float64).t())
            self.b = nn.Parameter(torch.randn(4, 6)[:, ::2])
            self.c = nn.Parameter(torch.randn(3, dtype=torch.complex64))
            self.d = nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return sum((p.abs() ** 2).sum() * (1 + i) for i, p in enumerate(self.parameters()))  # type: ignore[return-value]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    def fit(*callbacks: Callback) -> list[Tensor]:
        torch.manual_seed(3)
        module = Strange()
        quiet_trainer(tmp_path, callbacks=list(callbacks), max_steps=3).fit(module, data())
        return [parameter.detach() for parameter in module.parameters()]

    barrier = BarrierMonitor(LogTimeSchedule([0], [2]), points=3, **QUIET)
    assert_same(fit(barrier), fit())
    # The loss is quadratic, so every part of it is known on the line from w to (1 - 0.02 k)^2 w.
    ((start, middle, end),) = barrier.record.profile("loss_path").values
    torch.manual_seed(3)
    parts = [
        (float((p.detach().abs().double() ** 2).sum()) * k, (1 - 0.02 * k) ** 2)
        for k, p in enumerate(Strange().parameters(), 1)
    ]
    expected = [sum(a * (1 - alpha + alpha * f) ** 2 for a, f in parts) for alpha in (0.0, 0.5, 1.0)]
    assert [start, middle, end] == pytest.approx(expected, rel=1e-5)


def test_data_that_a_batch_norm_cannot_do_with_are_left_out(tmp_path: Path) -> None:
    x, y = data().dataset.tensors  # type: ignore[attr-defined]
    loader = DataLoader(TensorDataset(x[:9], y[:9]), batch_size=4, drop_last=True)  # one sample is left over
    barrier = BarrierMonitor(LogTimeSchedule([0], [1]), points=3, max_batches=None, **QUIET)
    quiet_trainer(tmp_path, callbacks=[barrier], max_steps=2).fit(Noisy(), loader)
    assert barrier.record.meta["BarrierMonitor"]["samples"] == 8


@pytest.mark.slow
def test_one_of_two_processes_measures_what_a_single_one_does(tmp_path: Path) -> None:
    for n in ("1", "2"):
        launch("tests/followers_in_parallel.py", tmp_path / n, n, processes=int(n))
    single, double = (AgingRecord.load(tmp_path / n / "measured" / "glassy" / "aging_record.npz") for n in "12")
    assert set(single.profile_names) == {"weights", "displacement", "loss_path"}
    for name in single.profile_names:
        for ours, theirs in zip(double.profile(name), single.profile(name), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-9), name
    for rank in range(2):
        measured, alone = (torch.load(tmp_path / "2" / way / f"weights{rank}.pt") for way in ("measured", "alone"))
        assert all(torch.equal(measured[key], alone[key]) for key in alone)

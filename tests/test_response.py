"""The response to a random field: exact answers, clones that equal the training to the bit, and a resumed training."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import pickle
import random
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import BaseFinetuning, StochasticWeightAveraging
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from lightning_glassy import AgingMonitor, AgingRecord, LogTimeSchedule, ReplicaEnsemble, ResponseMonitor
from lightning_glassy.analysis import NotEnoughDataError, fluctuation_dissipation
from lightning_glassy.glasses import RandomWalk, SGDQuadratic, SphericalP2, SphericalPSpin
from lightning_glassy.glasses.modules import RandomWalkModule, SGDQuadraticModule, SphericalPSpinModule
from lightning_glassy.langevin import Langevin
from lightning_glassy.observables.arrays import over_replicas
from lightning_glassy.record.tables import RESPONSE_TABLE
from lightning_glassy.replicas import ReplicaTraining
from lightning_glassy.tensorboard.parts import Written, assemble, next_part
from tests.helpers import SmallNet, data, quiet_trainer
from tests.test_probes import End, Ensemble, Heard, Noisy, assert_same

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:Found . module.s. in eval mode"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:`training_step` returned `None`"),
]

QUIET: dict[str, Any] = {"save": False, "summary": False}
SCHEDULE = LogTimeSchedule([0, 3, 10], [1, 2, 5, 9, 20])
LAGS = [1, 2, 5, 9, 20]


def response_of(record: AgingRecord, *, tw: list[int] | None = None, lags: list[int] | None = None) -> Any:
    """Return the measured responses at some pairs of times, ``[(n_replica,) n_tw, n_lag]``."""
    rows = [record.waiting_times.tolist().index(t) for t in tw or [0, 3, 10]]
    columns = [record.lags.tolist().index(lag) for lag in lags or LAGS]
    return record.response()[..., rows, :][..., columns]


# ---------------------------------------------------------------------- exact answers

GLASSES = [
    (RandomWalk(0.5), RandomWalkModule),
    (SGDQuadratic(0.1, 1.0, 2.0, initial_variance=0.3), SGDQuadraticModule),
    (SGDQuadratic(0.1, 1.0, 2.0, momentum=0.5, initial_variance=0.3), SGDQuadraticModule),
]


@pytest.mark.parametrize(("glass", "kind"), GLASSES)
@pytest.mark.parametrize(("double", "field"), [(False, 0.3), (True, 1e-4)])
def test_linear_systems_have_their_exact_response(
    tmp_path: Path, glass: Any, kind: Any, double: bool, field: float
) -> None:
    module = kind(glass, 500, 40)
    monitor = ResponseMonitor(field, SCHEDULE, **QUIET)
    quiet_trainer(tmp_path, callbacks=[monitor], max_steps=32).fit(module.double() if double else module, None)
    exact = glass.integrated_response(np.array([[0], [3], [10]]), np.array([LAGS]))
    assert response_of(monitor.record) == pytest.approx(exact, rel=1e-9 if double else 1e-6)
    assert len(monitor.record.tables[RESPONSE_TABLE]) == 15
    # The error over fields vanishes, because no weight responds to the field on another weight.
    assert np.nanmax(monitor.record.response_error()) < 1e-3


def test_in_equilibrium_the_response_is_the_lost_correlation_over_the_temperature(tmp_path: Path) -> None:
    glass, n, schedule = SGDQuadratic(0.1, 1.0, 2.0), 20_000, LogTimeSchedule([120], [1, 3, 10, 30])
    monitor = ResponseMonitor(0.1, schedule, **QUIET)
    module = SGDQuadraticModule(glass, n, 160)
    quiet_trainer(tmp_path, callbacks=[monitor], max_steps=150).fit(module)
    record, lags, start = monitor.record, np.array([1, 3, 10, 30]), np.full(5, 120)
    chi = response_of(record, tw=[120], lags=lags.tolist())[0]
    columns = [record.lags.tolist().index(lag) for lag in lags]
    squares = record.moments[0, 0, record.sums.index("s2")] / n
    lost = squares - record.observable("correlation_raw")[0, columns]
    # The variance of a difference of two correlations, of lag 0 and of the lag.
    covariance = glass.correlation_covariance(start, np.array([0, *lags]), n)
    error = np.sqrt(covariance[0, 0] + np.diag(covariance)[1:] - 2 * covariance[0, 1:])
    assert np.abs((chi * glass.temperature - lost) / error).max() < 4
    half = record.msd()[0, columns] / 2
    error = np.sqrt(np.diag(glass.msd_covariance(start[1:], lags, n))) / 2
    assert np.abs((chi * glass.temperature - half) / error).max() < 4


@pytest.mark.parametrize(("p", "temperature", "seeds"), [(2, 0.5, 6), (3, 0.3, 6), (3, 0.7, 6)])
def test_spherical_glasses_respond_like_the_solution(tmp_path: Path, p: int, temperature: float, seeds: int) -> None:
    """Extrapolate from N and 2N, with a step of 2/N, so that the terms of first order in 1/N and in the step cancel.

    At N = 32, the terms of first order are -0.02 to -0.04. The terms of second order are near 1/N**2 = 0.001, and the
    statistical errors are 0.01 to 0.05.
    """
    found = []
    for n in (32, 64):
        unit, records = n // 2, []  # steps in a unit of time
        for seed in range(seeds):
            schedule = LogTimeSchedule([unit], [unit // 2, unit, 2 * unit])
            monitor = ResponseMonitor(0.05, schedule, seed=seed, **QUIET)
            module = SphericalPSpinModule(SphericalPSpin(p, temperature), n, 3 * unit, 1 / unit, n_replica=8, seed=seed)
            quiet_trainer(tmp_path, callbacks=[monitor], max_steps=3 * unit).fit(module)
            records.append(monitor.record)
        joined = AgingRecord.concat(records)
        lags = [unit // 2, unit, 2 * unit]
        columns = [joined.lags.tolist().index(lag) for lag in lags]
        mean, error = over_replicas(joined.response())
        found.append((mean[0, columns], error[0, columns]))
    (one, one_error), (two, two_error) = found
    glass: Any = SphericalP2(temperature) if p == 2 else SphericalPSpin(3, temperature).solve(3.0, 384)
    z = (2 * two - one - glass.integrated_response(1.0, [0.5, 1.0, 2.0])) / np.hypot(2 * two_error, one_error)
    assert np.abs(z).max() < 4
    assert two_error.max() < 0.03


@pytest.mark.parametrize(("temperature", "one", "five"), [(0.3, 0.459818, 0.650565), (0.7, 0.475108, 0.781872)])
def test_the_solver_has_the_known_responses(temperature: float, one: float, five: float) -> None:
    solution = SphericalPSpin(3, temperature).solve(10.0, 800)
    assert solution.integrated_response([1.0, 5.0], [1.0, 5.0]) == pytest.approx([one, five], abs=1e-5)
    if temperature > SphericalPSpin(3).transition:  # equilibrium
        lags = np.array([0.5, 1.0, 2.0])
        exact = (1 - solution.correlation[solution.index(6.0), solution.index(6.0 + lags)]) / temperature
        assert solution.integrated_response(6.0, lags) == pytest.approx(exact, abs=0.01)
    assert SphericalPSpin(3, 0.3).violation == pytest.approx(0.239, abs=5e-4)
    assert SphericalPSpin(3, 0.7).violation == 1


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.5])
def test_the_two_solutions_of_p_2_respond_alike(temperature: float) -> None:
    lags = np.array([0.25, 1.0, 2.0])
    solution = SphericalPSpin(2, temperature).solve(3.0, 384)
    exact = SphericalP2(temperature).integrated_response(1.0, lags)
    assert solution.integrated_response(1.0, lags) == pytest.approx(exact, abs=1e-4)
    # A response over no time is none, and at first it grows like the time.
    assert SphericalP2(temperature).integrated_response(1.0, [0.0, 1e-4]) == pytest.approx([0, 1e-4], rel=1e-3)


# ---------------------------------------------------------------------- the training is the same


class Whole(Noisy):
    """A noisy module with a schedule of the learning rate, and with hooks that change its weights."""

    net: Any

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            self.net[0].weight.mul_(1 - 1e-3 * float(torch.rand(())))
        self.losses.append(float(outputs["loss"]))
        self.trainer.optimizers[0].param_groups[0]["lr"] *= 0.99

    def on_train_epoch_end(self) -> None:
        self.lr_schedulers().step()  # type: ignore[union-attr]
        self.trainer.should_stop = False

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [StepLR(optimizer, 1, 0.7)]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}, {"precision": "bf16-mixed"}]
)
def test_training_is_the_same_to_the_bit(tmp_path: Path, options: dict[str, Any], first: bool) -> None:
    def train(callbacks: list[Callback]) -> dict[str, Any]:
        seed_everything(4, verbose=False)
        module, heard = Whole(), Heard()
        defaults: dict[str, Any] = {"max_steps": -1, "max_epochs": 3, "logger": heard, "callbacks": callbacks}
        trainer = quiet_trainer(tmp_path, **defaults, **options)
        trainer.fit(module, data(), data(shuffle=False))
        return {
            "weights and buffers": dict(module.state_dict()),
            "optimiser": trainer.optimizers[0].state_dict(),
            "schedule": trainer.lr_scheduler_configs[0].scheduler.get_last_lr(),
            "gradients": [parameter.grad for parameter in module.parameters()],
            "attributes": [module.average, module.calls, module.losses, module.rng.random(), module.dice.random()],
            "random numbers": [torch.rand(3), np.random.rand(), random.random()],  # noqa: NPY002
            "logged": [(step, metrics) for step, metrics in heard.metrics if not any("glassy" in k for k in metrics)],
        }

    monitor, aging = ResponseMonitor(1e-3, SCHEDULE, **QUIET), AgingMonitor(SCHEDULE, **QUIET)
    assert_same(train([monitor, aging] if first else [aging, monitor]), train([]))
    n_step = 18 if "accumulate_grad_batches" in options else 36
    n_pair = sum(lag + t_w <= n_step for t_w in (0, 3, 10) for lag in LAGS)
    assert len(monitor.record.tables[RESPONSE_TABLE]) == n_pair
    assert np.isfinite(response_of(monitor.record, tw=[0], lags=LAGS[:4])).all()


# ---------------------------------------------------------------------- a clone without a field


class Overriding(SmallNet):
    """A module with its own schedule, noise, clipping and hooks."""

    net: Any

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.scale, self.seen = torch.Generator().manual_seed(3), 1.0, 0
        self.net[0].weight.register_hook(lambda gradient: gradient.clamp(-0.02, 0.02))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 8:
            return None
        loss = self._loss(batch) + 0.1 * torch.randn((), generator=self.generator) * self.net[0].weight.sum()
        return {"loss": self.scale * loss, "more": batch_idx}

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + self.global_step)
        optimizer.step(closure=optimizer_closure)
        with torch.no_grad():
            self.net[0].weight.clamp_(-0.3, 0.3)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(0.9)

    def on_after_backward(self) -> None:
        self.scale = 1 + 0.1 * float(self.net[0].weight.grad.abs().mean())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 7 else None  # skip the rest of the epoch

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            self.net[3].weight.add_(1e-3 * torch.randn(()) * float(outputs.get("loss", 0)))

    def on_train_epoch_start(self) -> None:
        self.scale *= 1.1


class Tied(SmallNet):
    """Two layers with one weight, and a layer that is frozen."""

    net: Any

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 8), nn.Linear(8, 3))
        self.net[2].weight = self.net[0].weight
        self.net[3].requires_grad_(False)


class ClippedReplicas(ReplicaTraining, LightningModule):
    """Replicas with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = ReplicaEnsemble(lambda: nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.2), nn.Linear(4, 3)), 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return sum(nn.functional.cross_entropy(scores, y) for scores in self.nets(x))  # type: ignore[return-value]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def with_optimizer(make: Any, base: Any = SmallNet) -> Any:
    class Module(base):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            return make(self.parameters())

    return Module


def scheduled(parameters: Any) -> Any:
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": StepLR(optimizer, 3, 0.7), "interval": "step"}}


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (Noisy, {"accumulate_grad_batches": 2}),
        (with_optimizer(lambda p: torch.optim.Adam(p, lr=0.01)), {"gradient_clip_val": 0.1}),
        (with_optimizer(scheduled), {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
        (with_optimizer(lambda p: Langevin(p, lr=0.1, kT=0.01)), {}),
        (ClippedReplicas, {"gradient_clip_val": 0.1}),
        (Overriding, {}),
        (Overriding, {"accumulate_grad_batches": 3}),
        (Tied, {}),
        (lambda: torch.compile(SmallNet(), backend="eager"), {}),
    ],
    ids=["noisy", "adam", "schedule", "langevin", "replicas", "overriding", "accumulated", "tied", "compiled"],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_clone_without_a_field_is_the_training(tmp_path: Path, make: Any, options: Any, first: bool) -> None:
    class Still(ResponseMonitor):
        """A monitor whose fields are zero."""

        made: frozenset[int] = frozenset()

        def _made(self, *args: Any, **kwargs: Any) -> Any:
            clone = super()._made(*args, **kwargs)
            self.made = self.made | {clone.waiting_time}
            for field in clone._fields.values():
                field.zero_()
            return clone

    class Compare(Callback):
        n = 0

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            for clone in monitor._clones.values():
                assert clone.step == trainer.global_step
                assert_same(dict(clone.module.state_dict()), dict(pl_module.state_dict()))
                theirs = trainer.optimizers[0].state_dict()
                assert_same(clone.optimizer.state_dict()["state"], theirs["state"])
                self.n += 1

    monitor, compare = Still(1.0, SCHEDULE, **QUIET), Compare()
    aging = AgingMonitor(SCHEDULE, **QUIET)
    pair = [monitor, aging] if first else [aging, monitor]
    trainer = quiet_trainer(tmp_path, callbacks=[*pair, compare], max_epochs=3, max_steps=-1, **options)
    trainer.fit(make(), data(), data(shuffle=False) if make is Noisy else None)
    reached = trainer.global_step
    assert monitor.made == {t_w for t_w in (0, 3, 10) if t_w <= reached}
    assert compare.n > 20
    of_pairs = {(t_w, lag) for t_w in (0, 3, 10) for lag in LAGS if t_w + lag <= reached}
    assert {tuple(key) for key in monitor.record.tables[RESPONSE_TABLE].keys.tolist()} == of_pairs
    assert (monitor.record.tables[RESPONSE_TABLE].values[..., :2] == 0).all()


# ---------------------------------------------------------------------- going on


def quadratic(seed: int = 0, momentum: float = 0.5) -> SGDQuadraticModule:
    """A quadratic valley whose checkpoints hold the random numbers of its noise."""

    class Saved(SGDQuadraticModule):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["noise"] = self.generator.get_state()

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self.generator.set_state(checkpoint["noise"])

        def on_train_start(self) -> None:
            self.started = True

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            assert self.started  # also in the clones of a resumed training
            return super().training_step(batch, batch_idx) + 0.1 * (self.w**4).sum()

    return Saved(SGDQuadratic(0.1, 1.0, 2.0, momentum=momentum, initial_variance=0.3), 40, 100, seed)


def same_responses(one: AgingRecord, other: AgingRecord) -> None:
    assert one.tables[RESPONSE_TABLE] == other.tables[RESPONSE_TABLE]
    assert one == other


@pytest.mark.parametrize("first", [True, False])
def test_the_response_goes_on_in_a_resumed_training(tmp_path: Path, first: bool) -> None:
    def fit(place: Path, *more: Callback, **options: Any) -> ResponseMonitor:
        monitor, aging = ResponseMonitor(0.1, SCHEDULE, summary=False), AgingMonitor(SCHEDULE, summary=False)
        pair = [monitor, aging] if first else [aging, monitor]
        with contextlib.suppress(ZeroDivisionError):
            quiet_trainer(place, callbacks=[*more, *pair], max_steps=32).fit(quadratic(), **options)
        return monitor

    whole = fit(tmp_path / "whole")
    for step in (1, 7, 10, 12):
        path, place = tmp_path / f"{step}.ckpt", tmp_path / f"again_{step}"
        fit(place, End(step, path))
        state = torch.load(path, weights_only=True)["lightning_glassy_response"]["glassy"]
        # At step 10, the checkpoint is saved before the clone is made.
        assert [clone["waiting_time"] for clone in state["clones"]] == [t for t in (0, 3, 10) if t < step]
        resumed = fit(place, ckpt_path=path)
        same_responses(resumed.record, whole.record)
        counts = [monitor.record.meta["ResponseMonitor"]["clone_passes"] for monitor in (resumed, whole)]
        assert counts == [60, 60]
        (file,) = place.rglob("aging_record*.npz")
        same_responses(AgingRecord.load(file), whole.record)


def test_replicas_and_a_checkpoint_of_the_end_go_on_too(tmp_path: Path) -> None:
    def fit(last: int, **options: Any) -> tuple[Trainer, ResponseMonitor]:
        torch.manual_seed(2)
        monitor = ResponseMonitor([0.1, 0.2], SCHEDULE, **QUIET)
        trainer = quiet_trainer(tmp_path, callbacks=[monitor], max_steps=last)
        trainer.fit(ReplicasOnOneBatch([1, 2, 3, 4]), data(batch_size=48, shuffle=False), **options)
        return trainer, monitor

    _, whole = fit(32)
    trainer, _ = fit(12)
    trainer.save_checkpoint(tmp_path / "end.ckpt")  # three clones are under way
    _, resumed = fit(32, ckpt_path=tmp_path / "end.ckpt")
    same_responses(resumed.record, whole.record)
    assert whole.record.response().shape[0] == 4


class ReplicasOnOneBatch(Ensemble):
    """Replicas that share their batches."""

    def __init__(self, seeds: list[int]) -> None:
        super().__init__(len(seeds), seeds)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return sum(nn.functional.cross_entropy(s, batch[1]) for s in self(batch[0]))  # type: ignore[return-value]


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_second_fit_goes_on_and_another_module_starts_anew(tmp_path: Path, momentum: float) -> None:
    whole = ResponseMonitor(0.1, SCHEDULE, **QUIET)
    quiet_trainer(tmp_path, callbacks=[whole], max_steps=32).fit(quadratic(momentum=momentum))
    monitor, module = ResponseMonitor(0.1, SCHEDULE, **QUIET), quadratic(momentum=momentum)
    trainer = quiet_trainer(tmp_path, callbacks=[monitor], max_steps=5)
    for last in (5, 12, 32):
        trainer.fit_loop.epoch_loop.max_steps = last
        trainer.fit(module)
        assert not monitor._clones
    if momentum:  # a second fit starts without the momentum, and so do its clones
        assert 0 < response_of(monitor.record).min() < response_of(monitor.record).max() < 1.2
    else:
        assert monitor.record.tables[RESPONSE_TABLE] == whole.record.tables[RESPONSE_TABLE]
    trainer.fit_loop.epoch_loop.max_steps = 35
    with pytest.warns(UserWarning, match="a new record starts here"):
        trainer.fit(quadratic(1))
    assert RESPONSE_TABLE not in monitor.record.before(32).tables


@pytest.mark.parametrize("other", [{"field": 0.2}, {"field": 0.1, "seed": 1}])
def test_clones_of_another_field_do_not_go_on(tmp_path: Path, other: dict[str, Any]) -> None:
    path = tmp_path / "some.ckpt"
    with contextlib.suppress(ZeroDivisionError):
        callbacks = [End(5, path), ResponseMonitor(0.1, SCHEDULE, **QUIET)]
        quiet_trainer(tmp_path, callbacks=callbacks).fit(quadratic())
    monitor = ResponseMonitor(schedule=SCHEDULE, **other, **QUIET)
    with pytest.warns(UserWarning, match=r"field=\[0.1\] and seed=0, .* the response to the earlier field ends here"):
        quiet_trainer(tmp_path, callbacks=[monitor], max_steps=32).fit(quadratic(), ckpt_path=path)
    keys = monitor.record.tables[RESPONSE_TABLE].keys
    assert sorted({t_w for t_w, lag in keys.tolist() if t_w + lag > 5}) == [10]


@pytest.mark.filterwarnings("ignore:AgingMonitor. the training has gone back")
def test_a_training_that_goes_back_ends_the_clones(tmp_path: Path) -> None:
    class Back(Callback):
        went = False

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 7 and not self.went:
                trainer.save_checkpoint(tmp_path / "seven.ckpt")
            if trainer.global_step == 15 and not self.went:
                self.went = True
                trainer._checkpoint_connector.restore(tmp_path / "seven.ckpt")

    monitor = ResponseMonitor(0.1, SCHEDULE, **QUIET)
    with pytest.warns(UserWarning, match=r"the training is at step 7, and its clone of waiting time \d+ is at step 15"):
        quiet_trainer(tmp_path, callbacks=[Back(), monitor], max_steps=32).fit(quadratic())
    found = {tuple(key) for key in monitor.record.tables[RESPONSE_TABLE].keys.tolist()}
    assert found == {(0, 1), (0, 2), (0, 5), (3, 1), (3, 2), *((10, lag) for lag in LAGS)}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_keeps_the_record_and_frees_the_clones(tmp_path: Path, error: type[BaseException]) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 14:
                clones.extend(weakref.ref(clone.module) for clone in monitor._clones.values())
                raise error

    clones: list[Any] = []
    monitor = ResponseMonitor(0.1, SCHEDULE, **QUIET)
    with pytest.raises((SystemExit, error)):
        quiet_trainer(tmp_path, callbacks=[monitor, Stop()]).fit(quadratic())
    gc.collect()
    assert [clone() for clone in clones] == [None] * 3
    assert len(monitor.record.tables[RESPONSE_TABLE]) == 4 + 4 + 2
    again = pickle.loads(pickle.dumps(copy.deepcopy(monitor)))
    same_responses(again.record, monitor.record)


# ---------------------------------------------------------------------- strengths, doubts and cost


class Wells(LightningModule):
    """Independent weights in a quadratic or a quartic valley, with noise. Each replica is a row."""

    def __init__(self, power: int, lr: float = 0.05, adam: bool = False) -> None:
        super().__init__()
        self.nets = ReplicaEnsemble(lambda: Row(64), 8)
        self.power, self.lr, self.adam = power, lr, adam

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        w = self.nets(torch.zeros(1))
        loss: Tensor = (w**self.power / self.power).sum() + (torch.randn(w.shape) * w).sum()
        return loss

    def configure_optimizers(self) -> Any:
        return (torch.optim.Adam if self.adam else torch.optim.SGD)(self.parameters(), lr=self.lr)


class Row(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(n))

    def forward(self, x: Tensor) -> Tensor:
        return self.w + 0 * x.sum()


def trained(tmp_path: Path, module: LightningModule, monitor: Any, steps: int = 40, **options: Any) -> AgingRecord:
    quiet_trainer(tmp_path, callbacks=[monitor], max_steps=steps, **options).fit(module, data())
    return monitor.record  # type: ignore[no-any-return]


def test_strengths_take_turns_and_a_nonlinear_response_is_doubted(tmp_path: Path) -> None:
    linear = trained(tmp_path, Wells(2), ResponseMonitor([0.1, 2.0], SCHEDULE, **QUIET))
    assert linear.tables[RESPONSE_TABLE].values[0, :, 2].tolist() == [0.1, 2.0] * 4
    exact = (1 - 0.95 ** np.array(LAGS)) / 1.0
    assert response_of(linear, tw=[3])[:, 0] == pytest.approx(np.tile(exact, (8, 1)), rel=1e-4)
    found = fluctuation_dissipation(linear)
    assert (found.fields, found.n_replica) == ((0.1, 2.0), 8)
    assert not any("linear" in doubt or "few fields" in doubt or "adaptive" in doubt for doubt in found.doubts)
    quartic = trained(tmp_path, Wells(4), ResponseMonitor([0.1, 5.0], SCHEDULE, **QUIET))
    assert any(doubt.startswith("nonlinear: at lag") for doubt in fluctuation_dissipation(quartic).doubts)


def test_other_doubts_have_their_reasons(tmp_path: Path) -> None:
    doubts = fluctuation_dissipation(
        trained(tmp_path, Wells(2, 0.01, adam=True), ResponseMonitor(0.1, SCHEDULE, **QUIET))
    ).doubts
    assert any(doubt.startswith("Adam is adaptive") for doubt in doubts)
    assert any(doubt.startswith("linearity was not tested: give several strengths") for doubt in doubts)
    assert not any("few fields" in doubt for doubt in doubts)
    single = fluctuation_dissipation(trained(tmp_path, quadratic(), ResponseMonitor(1e-9, SCHEDULE, **QUIET)))
    assert single.n_replica == 1
    assert np.isfinite(single.response_error).any()
    assert any("one random field" in doubt for doubt in single.doubts)
    assert any("near the rounding of float32 weights" in doubt for doubt in single.doubts)
    double = fluctuation_dissipation(trained(tmp_path, quadratic().double(), ResponseMonitor(1e-9, SCHEDULE, **QUIET)))
    assert not any("rounding" in doubt for doubt in double.doubts)
    with pytest.raises(ValueError, match="temperature=-1 must be positive"):
        fluctuation_dissipation(AgingRecord({"all": 1}), temperature=-1)
    with pytest.raises(NotEnoughDataError, match="train with a ResponseMonitor"):
        fluctuation_dissipation(AgingRecord({"all": 1}))


@pytest.mark.parametrize("sums", ["full", "msd"])
def test_the_monitor_chooses_the_weights_and_the_response_takes_all_of_them(tmp_path: Path, sums: Any) -> None:
    options: Any = {"include": "net.0.*", "sample": 20, "moments": sums, "name": "first"} | QUIET
    aging = AgingMonitor(LogTimeSchedule([0, 4], [3, 6]), **options)
    monitor = ResponseMonitor(0.1, LogTimeSchedule([2], [1]), name="first", **QUIET)
    quiet_trainer(tmp_path, callbacks=[aging, monitor], max_steps=12).fit(SmallNet(), data())
    assert aging.record is monitor.record
    assert monitor.record.tables[RESPONSE_TABLE].keys.tolist() == [[4, 3], [4, 6]]  # the first waiting time from 2 on
    (total, _, h) = monitor.record.tables[RESPONSE_TABLE].values[0]
    assert response_of(monitor.record, tw=[4], lags=[3])[0, 0] == pytest.approx(total / (h * 144))
    assert len(fluctuation_dissipation(monitor.record).waiting_times) == 1


def test_the_number_of_passes_is_as_promised(tmp_path: Path) -> None:
    calls = [0]

    class Counted(SmallNet):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            calls[0] += 1
            return super().training_step(batch, batch_idx)

    monitor = ResponseMonitor(0.1, LogTimeSchedule([1, 5, 10], [1, 4, 100]), **QUIET)
    record = trained(tmp_path, Counted(), monitor, 30)
    passes = record.meta["ResponseMonitor"]["clone_passes"]
    assert passes == 29 + 25 + 20 <= 3 * 30
    assert calls[0] == 30 + passes
    # A clone ends with its last lag.
    calls[0] = 0
    trained(tmp_path, Counted(), ResponseMonitor(0.1, LogTimeSchedule([1, 5, 10], [1, 4]), **QUIET), 30)
    assert calls[0] == 30 + 3 * 4


# ---------------------------------------------------------------------- the record


def test_joined_runs_with_one_field_are_doubted(tmp_path: Path) -> None:
    seeds = (0, 0, 1)
    runs = [
        trained(tmp_path, quadratic(run), ResponseMonitor(0.1, SCHEDULE, seed=seed, **QUIET))
        for run, seed in enumerate(seeds)
    ]

    def doubted(record: AgingRecord) -> list[str]:
        return [doubt for doubt in fluctuation_dissipation(record).doubts if "the same random field" in doubt]

    (doubt,) = doubted(AgingRecord.concat(runs))
    assert doubt.startswith("2 runs had the same random field (seed=0)")
    assert doubted(AgingRecord.concat([AgingRecord.concat(runs[::2]), runs[1]])) == [doubt]
    assert doubted(AgingRecord.concat(runs[1:])) == doubted(runs[0]) == []


def made(n_replica: int | None, seed: int = 0) -> AgingRecord:
    """Return a record with a response, made of random numbers."""
    rng = np.random.default_rng(seed)
    record = AgingRecord({"all": 100, "head": 10}, n_replica=n_replica)
    for t_w in (10, 100):
        for lag in (0, 1, 3, 10, 30, 100):
            record.append(t_w, lag, rng.uniform(1, 2, record.row_shape))
            if lag:
                record.append_response(t_w, lag, rng.uniform(0.1, 0.2, record.response_shape))
    return record


@pytest.mark.parametrize("n_replica", [None, 3])
def test_the_record_keeps_the_response(tmp_path: Path, n_replica: int | None) -> None:
    record = made(n_replica)
    same_responses(AgingRecord.load(record.save(tmp_path / "record.npz")), record)
    parts, written = [], Written()
    half = record.before(105)
    for stage in (half, record):
        part, written = next_part(stage, written)
        parts.append(part)
    same_responses(assemble(part for part in parts if part is not None), record)
    assert len(half.tables[RESPONSE_TABLE]) == 6
    with pytest.raises(ValueError, match="train with a ResponseMonitor"):
        half.before(1).response()
    with pytest.raises(ValueError, match=r"a response of shape \(2,\) where"):
        record.append_response(10, 7, [1.0, 2.0])
    of_row = record.tables[RESPONSE_TABLE][(10, 3)]
    column = record.lags.tolist().index(3)
    assert record.response()[..., 0, column] == pytest.approx(of_row[..., 0] / of_row[..., 2] / 100)
    assert np.array_equal(record.response_columns()[1][..., 0, column], of_row[..., 1])
    assert record.response().shape == record.response_error().shape == record.msd().shape
    assert np.isnan(record.response()[..., 0]).all()  # at lag 0, nothing is measured


def test_replicas_join_their_responses() -> None:
    one, two, three = made(None, 1), made(2, 2), made(None, 3)
    joined = AgingRecord.concat([one, two, three])
    assert joined.n_replica == 4
    assert np.array_equal(joined.response()[1:3], two.response(), equal_nan=True)
    assert np.array_equal(joined.response()[3], three.response(), equal_nan=True)
    lacking = AgingRecord({"all": 100, "head": 10})
    for (t_w, lag), row in zip(np.stack(one.pairs, axis=1).tolist(), three.moments, strict=True):
        lacking.append(t_w, lag, row)
    assert RESPONSE_TABLE not in AgingRecord.concat([one, lacking]).tables
    broken = made(3)
    for key in broken.tables[RESPONSE_TABLE].keys.tolist():
        row = np.array(broken.tables[RESPONSE_TABLE][tuple(key)])
        row[1] = np.nan
        broken.append_response(key[0], key[1], row)
    values = broken.moments
    values[:, 1] = np.nan
    diverged = AgingRecord(broken.n_parameters, n_replica=3)
    for (t_w, lag), row in zip(np.stack(broken.pairs, axis=1).tolist(), values, strict=True):
        diverged.append(t_w, lag, row)
    for key in broken.tables[RESPONSE_TABLE].keys.tolist():
        diverged.append_response(key[0], key[1], broken.tables[RESPONSE_TABLE][tuple(key)])
    kept, doubts = diverged.independent()
    assert kept.n_replica == 2
    assert np.array_equal(kept.response(), broken.response()[[0, 2]], equal_nan=True)
    found = fluctuation_dissipation(diverged)
    assert found.n_replica == 2
    assert doubts[0] in found.doubts


def test_files_without_a_response_open() -> None:
    for name in ("msd_v1.npz", "replicas_v1.npz"):
        record = AgingRecord.load(Path(__file__).parent / "formats" / name)
        assert RESPONSE_TABLE not in record.tables


# ---------------------------------------------------------------------- refusals and failures


class Iterating(SmallNet):
    def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
        return self._loss(next(dataloader_iter)[0])


class ByHand(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter`")
@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (ByHand, {}, "cannot clone the manual optimisation of ByHand: use automatic optimisation"),
        (with_optimizer(torch.optim.LBFGS), {}, "cannot clone LBFGS, .*: use SGD"),
        (SmallNet, {"field": [0.1, 0.2]}, r"2 strengths for 1 replica: give one strength, or train a ReplicaEns"),
        (lambda: ClippedReplicas(), {"field": [0.1, 0.2, 0.3, 0.4]}, "4 strengths for 3 replica"),
        (lambda: SmallNet(torch.bfloat16), {}, r"'net.0.weight' are torch.bfloat16, .*: train with precision='32-t"),
        (Iterating, {}, "cannot give a clone the batches that Iterating takes from an iterator: take a batch"),
    ],
)
def test_trainings_that_cannot_be_cloned_are_refused(tmp_path: Path, make: Any, options: Any, message: str) -> None:
    monitor = ResponseMonitor(**({"field": 0.1} | options), **QUIET)
    trainer = quiet_trainer(tmp_path, callbacks=[monitor])
    with pytest.raises(MisconfigurationException, match=message):
        trainer.fit(make(), data())
    assert trainer.global_step == 0


def test_several_processes_and_gradient_scalers_are_refused(tmp_path: Path) -> None:
    class Scaled:
        scaler = object()

    for changes, message in (
        ({"world_size": 2}, "cannot clone a training of 2 processes: train in one process"),
        ({"precision_plugin": Scaled()}, r"gradient scaler \(precision='16-mixed'\): use 'bf16-mixed'"),
    ):
        monitor = ResponseMonitor(0.1, **QUIET)
        trainer = quiet_trainer(tmp_path, callbacks=[monitor])
        fake = SimpleNamespace(
            callbacks=trainer.callbacks,  # type: ignore[attr-defined]
            strategy=trainer.strategy,
            world_size=1,
            precision_plugin=None,
            precision="16-mixed",
        )
        fake.__dict__.update(changes)
        fake_trainer: Any = type("Fake", (), {})()
        fake_trainer.__dict__.update(vars(fake))
        with pytest.raises(MisconfigurationException, match=message):
            monitor.setup(fake_trainer, SmallNet(), "fit")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"field": 0.0}, ValueError, "field=0.0 must be positive"),
        ({"field": float("nan")}, ValueError, "field=nan must be positive"),
        ({"field": [0.1, 0.1]}, ValueError, "a strength twice"),
        ({"field": []}, TypeError, r"field=\[\] must be a positive number"),
        ({"field": "0.1"}, TypeError, "field='0.1' must be a positive number"),
        ({"field": True}, TypeError, "field=True must be"),
        ({"field": 0.1, "seed": -1}, ValueError, "seed=-1 must be a whole number"),
        ({"field": 0.1, "seed": 1.0}, ValueError, "seed=1.0 must be a whole number"),
        ({"field": 0.1, "schedule": "soon"}, (TypeError, ValueError), "soon"),
        ({"field": 0.1, "max_share": 0.1}, ValueError, "max_share=0.1: a clone cannot leave out steps"),
        ({"field": 0.1, "colour": 1}, TypeError, "ResponseMonitor has no option 'colour'"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        ResponseMonitor(**options)
    assert ResponseMonitor(0.1, max_share=None).field == (0.1,)


def test_a_clone_that_fails_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Fragile(SmallNet):
        copied = False

        def __deepcopy__(self, memo: Any) -> Any:
            new = object.__new__(type(self))
            memo[id(self)] = new
            new.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
            new.copied = True
            return new

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if self.copied and self.global_step == 7:
                raise ValueError("not today")
            return super().training_step(batch, batch_idx)

    plain = SmallNet()
    quiet_trainer(tmp_path, max_steps=32).fit(plain, data(shuffle=False))
    torch.manual_seed(0)
    module, monitor = Fragile(), ResponseMonitor(0.1, SCHEDULE, **QUIET)
    with caplog.at_level(logging.WARNING, "lightning_glassy"):
        trained_on = quiet_trainer(tmp_path, callbacks=[monitor], max_steps=32)
        trained_on.fit(module, data(shuffle=False))
    assert "the clone of waiting time 0 has failed, and is given up (ValueError: not today)" in caplog.text
    found = {tuple(key) for key in monitor.record.tables[RESPONSE_TABLE].keys.tolist()}
    assert found == {(0, 1), (0, 2), (0, 5), (3, 1), (3, 2), *((10, lag) for lag in LAGS)}
    assert trained_on.global_step == 32


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        (threading.Lock(), "cannot be copied, and the response after step 0 is not measured"),
        (lambda module: lambda batch: module._loss(batch), "refers to them. Use a method instead"),
    ],
)
def test_a_module_that_cannot_be_copied_is_trained_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, attribute: Any, message: str
) -> None:
    class Odd(SmallNet):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return (self.step_of if callable(self.step_of) else self._loss)(batch)

    def train(*callbacks: Callback) -> Any:
        torch.manual_seed(0)
        module = Odd()
        module.step_of = attribute(module) if callable(attribute) else attribute
        trainer = quiet_trainer(tmp_path, callbacks=list(callbacks), max_steps=20, accumulate_grad_batches=2)
        trainer.fit(module, data())
        return dict(module.state_dict())

    monitor = ResponseMonitor(0.1, SCHEDULE, **QUIET)
    with caplog.at_level(logging.WARNING, "lightning_glassy"):
        assert_same(train(monitor), train())
    assert message in caplog.text
    assert RESPONSE_TABLE not in monitor.record.tables
    assert len(monitor.record) > 10


def test_tensors_in_a_graph_iterators_of_data_and_the_trainer_do_not_disturb_a_copy(tmp_path: Path) -> None:
    class Holding(SmallNet):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.held = {"losses": [loss * 2], "trainer": self.trainer, "data": self.trainer.train_dataloader}
            self.me = self.trainer
            return loss

    record = trained(tmp_path, Holding(), ResponseMonitor(1e-3, SCHEDULE, **QUIET), 32)
    assert len(record.tables[RESPONSE_TABLE]) == 15
    nan = trained(
        tmp_path, with_optimizer(lambda p: torch.optim.SGD(p, lr=1e30))(), ResponseMonitor(1.0, SCHEDULE, **QUIET), 32
    )
    assert len(nan.tables[RESPONSE_TABLE]) == 15


class Unfreeze(BaseFinetuning):
    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer, lr=0.05)


class Warmup(Callback):
    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = 0.1 * (1 + trainer.global_step) / 20


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [Unfreeze, Warmup, lambda: StochasticWeightAveraging(0.01, swa_epoch_start=1)])
@pytest.mark.parametrize("last", [True, False])
def test_clones_follow_other_callbacks(tmp_path: Path, make: Any, last: bool) -> None:
    class Normalised(SmallNet):
        def __init__(self) -> None:
            super().__init__()
            self.net.insert(1, nn.BatchNorm1d(16))

    def train(*callbacks: Callback) -> Any:
        torch.manual_seed(0)
        module = Normalised()
        others = [make(), *callbacks] if last else [*callbacks, make()]
        trainer = quiet_trainer(tmp_path, callbacks=others, max_epochs=3, max_steps=-1)
        trainer.fit(module, data())
        return dict(module.state_dict())

    monitor = ResponseMonitor(1e-3, SCHEDULE, **QUIET)
    assert_same(train(monitor), train())
    assert len(monitor.record.tables[RESPONSE_TABLE]) == 15
    # A clone that had not followed would be far away.
    assert np.abs(response_of(monitor.record)).max() < 5


# ---------------------------------------------------------------------- temperatures


def in_sectors(n_replica: int | None, temperatures: dict[str, float], noise: float, seed: int = 0) -> AgingRecord:
    """Return a record whose response has a known slope in each sector.

    The displacement grows like a logarithm, and the weights keep their size.
    """
    rng, n, h = np.random.default_rng(seed), 1000, 0.1
    record = AgingRecord({"all": n}, n_replica=n_replica)
    for t_w in (100, 1000):
        lags = np.unique(np.geomspace(1, 10 * t_w, 31).astype(int))
        half, chi, before = 0.0, np.zeros(n_replica or 1), 0.0
        for lag in lags.tolist():
            half = 0.1 * np.log1p(lag)
            sector = "early" if lag <= 0.1 * t_w else "middle" if lag <= t_w else "late"
            chi = chi + (half - before) / temperatures[sector]
            before = half
            scatter = noise * rng.normal(size=chi.shape)
            row = np.zeros((n_replica or 1, *record.row_shape[-2:]))
            for name, value in (("d2", 2 * half), ("s2", 1.0), ("w2", 1.0), ("ws", 1 - half)):
                row[:, 0, record.sums.index(name)] = n * value * (1 + 1e-4 * rng.normal(size=chi.shape))
            response = np.stack([h * n * (chi + scatter), 0 * chi + 1.0, 0 * chi + h], axis=-1)
            record.append(t_w, lag, row if n_replica else row[0])
            record.append_response(t_w, lag, response if n_replica else response[0])
    return record


def test_temperatures_of_sectors_come_out_within_their_errors() -> None:
    true = {"early": 0.5, "middle": 0.8, "late": 2.0}
    z = []
    for seed in range(20):
        found = fluctuation_dissipation(in_sectors(8, true, 0.02, seed))
        assert [(s.waiting_time, s.name) for s in found.sectors] == [(t, name) for t in (100, 1000) for name in true]
        z += [[(s.slope - 1 / true[s.name]) / s.slope_error for s in found.sectors]]
        for s in found.sectors:
            assert s.ratio == pytest.approx(0.5 / true[s.name], abs=max(6 * s.ratio_error, 1e-12))
    scores = np.array(z)
    # The jackknife over 8 replicas gives Student's t with 7 degrees of freedom, of variance 7/5.
    assert np.abs(scores.mean(axis=0)).max() < 4 * (1.4 / 20) ** 0.5
    assert scores.var() == pytest.approx(1.4, abs=0.8)
    fixed = fluctuation_dissipation(in_sectors(8, true, 0.02), temperature=1.0)
    assert fixed.temperature == 1.0
    for s in fixed.sectors:
        assert (s.ratio, s.ratio_error) == pytest.approx((s.slope, s.slope_error))
        assert s.temperature == pytest.approx(1 / s.slope)
    assert "early  (lags 1 ... 10) T_eff = 0.5" in str(fixed)
    assert not any("change their size" in doubt for doubt in fixed.doubts)


def test_one_exact_run_has_the_slope_and_no_error() -> None:
    found = fluctuation_dissipation(in_sectors(None, {"early": 0.5, "middle": 0.5, "late": 0.5}, 0.0))
    for s in found.sectors:
        assert s.slope == pytest.approx(2.0, rel=0.01)
        assert s.correlation_slope == pytest.approx(2.0, rel=0.05)
        assert np.isnan(s.slope_error)
        assert s.temperature == pytest.approx(0.5, rel=0.01)
    noisy = fluctuation_dissipation(in_sectors(8, {"early": 1e4, "middle": 1e4, "late": 1e4}, 0.1))
    assert any(np.isnan(s.temperature) for s in noisy.sectors)
    assert "not resolved" in str(noisy)


@pytest.mark.needs("matplotlib")
@pytest.mark.parametrize("n_replica", [None, 8])
@pytest.mark.parametrize("against", ["msd", "correlation"])
def test_the_response_is_drawn_against_the_fluctuations(n_replica: int | None, against: Any) -> None:
    import matplotlib.pyplot as plt

    from lightning_glassy.plotting import plot_fluctuation_dissipation

    record = in_sectors(n_replica, {"early": 0.5, "middle": 0.8, "late": 2.0}, 0.01)
    ax = plot_fluctuation_dissipation(record, against=against)
    assert len(ax.containers) == 2  # a line with bars for each waiting time
    assert any("T = 0.5" in label for label in ax.get_legend_handles_labels()[1])
    ax.figure.canvas.draw()
    result = fluctuation_dissipation(record, temperature=0.7)
    ax = plot_fluctuation_dissipation(result, against=against, ax=plt.figure().subplots(), colorbar=False)
    assert any("T = 0.7" in label for label in ax.get_legend_handles_labels()[1])
    # The legend tells the slope of the line: its sign is that of the line on the screen.
    (x0, x1), (y0, y1) = ax.get_lines()[-1].get_data()
    slope = (y1 - y0) / (x1 - x0)
    assert slope == pytest.approx(1 / 0.7 if against == "msd" else -1 / 0.7)
    assert ax.get_legend().get_texts()[0].get_text().startswith("slope 1/T" if slope > 0 else "slope −1/T")
    with pytest.raises(ValueError, match="against='time' is neither 'correlation' nor 'msd'"):
        plot_fluctuation_dissipation(record, against="time")  # type: ignore[arg-type]
    plt.close("all")

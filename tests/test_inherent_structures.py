"""The inherent structures of valleys and double wells, whose minima are known."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_glassy import AgingRecord
from lightning_glassy.analysis.inherent import inherent_jumps
from lightning_glassy.callbacks.inherent_structures import InherentStructures
from lightning_glassy.replicas import replica_loader
from tests.helpers import SmallNet, data, quiet_trainer
from tests.test_probes import Ensemble, Noisy, losses
from tests.test_resume import At, Repeatable

# These are Lightning's warnings about loaders without a state.
pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode"),
]


def structures(schedule: Any = 1, **options: Any) -> InherentStructures:
    return InherentStructures(schedule, **({"save": False, "summary": False, "max_share": None} | options))


def samples(n: int = 4, batch_size: int = 2) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(float(n))), batch_size=batch_size)


class Valley(LightningModule):
    """A quadratic valley. The energy of sample k is higher by k."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.w = nn.Parameter(torch.randn(50, generator=generator).to(dtype))
        self.register_buffer("bottom", torch.randn(50, generator=generator).to(dtype))
        self.register_buffer("curvature", torch.linspace(0.2, 2, 50).to(dtype))

    def energy(self) -> Tensor:
        bottom, curvature = self.get_buffer("bottom"), self.get_buffer("curvature")
        energy: Tensor = 0.5 * (curvature * (self.w - bottom).square()).sum()
        return energy

    def training_step(self, batch: Any) -> Tensor:
        return self.energy() + batch[0].mean()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Wells(Valley):
    """A double well in each coordinate, with minima at -1 and 1. The training leaves the weights where they are."""

    def energy(self) -> Tensor:
        return (self.w.square() - 1).square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Weights(Callback):
    """Copies the weights at every step, before other callbacks change them."""

    def __init__(self) -> None:
        self.of: dict[int, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.of[0] = pl_module.w.detach().clone()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.of[trainer.global_step] = pl_module.w.detach().clone()


class Flip(Callback):
    """Changes the signs of the first weights after a step."""

    def __init__(self, step: int, n: int) -> None:
        self.step, self.n = step, n

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            pl_module.w[: self.n] *= -1


def values(record: AgingRecord, name: str) -> list[float]:
    return [float(value) for value in record.one_time(f"inherent_{name}")[1]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_bottom_of_a_valley_is_found(tmp_path: Path, dtype: torch.dtype) -> None:
    module, weights = Valley(dtype), Weights()
    found = structures(tolerance=1e-8 if dtype == torch.float64 else 1e-6)
    quiet_trainer(tmp_path, callbacks=[weights, found], max_steps=30).fit(module, samples())
    record, close = found.record, 1e-9 if dtype == torch.float64 else 1e-5
    assert record.one_time("inherent_energy")[0].tolist() == [0, 1, 10, 30]
    assert values(record, "energy") == pytest.approx([1.5] * 4, abs=close)
    bottom: Any = module.bottom
    expected = [float((weights.of[step] - bottom).square().mean()) for step in (0, 1, 10, 30)]
    assert values(record, "distance") == pytest.approx(expected, rel=100 * close)
    assert record.one_time("inherent_step")[0].tolist() == [1, 10, 30]
    assert max(values(record, "step")) < close
    assert values(record, "overlap") == [1, 1, 1]
    assert values(record, "converged") == [1, 1, 1, 1]
    assert max(values(record, "gradient")) <= found.describe().get("tolerance", 1e-6)
    assert min(values(record, "gradients")) > 10
    assert record.meta["InherentStructures"].items() >= {"batches": 2, "samples": 4, "max_gradients": 3000}.items()
    jumps = inherent_jumps(record)
    assert (jumps.jump.tolist(), jumps.decided.tolist()) == ([False] * 3, [True] * 3)


def test_a_weight_decay_moves_the_bottom(tmp_path: Path) -> None:
    module, found = Valley(), structures(weight_decay=0.5, tolerance=1e-9)
    start = module.w.detach().clone()
    quiet_trainer(tmp_path, callbacks=[found], max_steps=1).fit(module, samples())
    c, k = module.bottom, module.curvature
    bottom: Any = k * c / (k + 0.5)  # type: ignore[operator]
    energy = 1.5 + 0.5 * float((k * (bottom - c).square()).sum()) + 0.25 * float(bottom.square().sum())
    assert values(found.record, "energy")[0] == pytest.approx(energy, rel=1e-10)
    assert values(found.record, "distance")[0] == pytest.approx(float((start - bottom).square().mean()), rel=1e-7)


def test_each_coordinate_of_a_double_well_goes_to_its_own_side(tmp_path: Path) -> None:
    module, weights = Wells(), Weights()
    with torch.no_grad():
        module.w.mul_(2)  # far beyond the wells, from where a long step would reach the other side
    found = structures([0, 4, 8, 12], tolerance=1e-9, batch_size=4)
    callbacks = [Flip(6, 10), weights, found]
    quiet_trainer(tmp_path, callbacks=callbacks, max_steps=12).fit(module, samples())
    record, w = found.record, weights.of[0]
    distance = float((w.abs() - 1).square().mean())
    assert values(record, "energy") == pytest.approx([1.5] * 4)
    assert values(record, "distance") == pytest.approx([distance] * 4, rel=1e-7)
    assert values(record, "step") == pytest.approx([0, 4 * 10 / 50, 0], rel=1e-8, abs=1e-12)
    assert values(record, "overlap") == pytest.approx([1, 40 / 50, 1])
    jumps = inherent_jumps(record)
    assert (jumps.before.tolist(), jumps.steps.tolist()) == ([0, 4, 8], [4, 8, 12])
    assert jumps.ratio == pytest.approx([0, 0.8 / (2 * distance), 0], rel=1e-6, abs=1e-9)
    assert jumps.jump.tolist() == [False, 2 * distance < 0.8, False]


def test_a_jump_is_seen_and_vibration_is_not(tmp_path: Path) -> None:
    module = Wells()
    with torch.no_grad():
        module.w.copy_(module.w.sign() * (1 + 0.1 * module.w))
    found = structures([0, 4, 8, 12], tolerance=1e-3, batch_size=4)
    quiet_trainer(tmp_path, callbacks=[Flip(6, 10), found], max_steps=12).fit(module, samples())
    assert inherent_jumps(found.record).jump.tolist() == [False, True, False]
    assert "steps 4 ... 8: jump, ratio" in str(inherent_jumps(found.record))


def test_a_descent_that_does_not_converge_is_reported_and_gives_no_verdict(tmp_path: Path) -> None:
    found = structures(max_gradients=14)
    quiet_trainer(tmp_path, callbacks=[found], max_steps=10).fit(Valley(), samples())
    record = found.record
    assert values(record, "converged") == [0, 0, 0]
    assert values(record, "gradients") == [11, 11, 11]  # steps take five gradients each, after the first
    assert min(values(record, "gradient")) > 1e-5
    jumps = inherent_jumps(record)
    assert np.isnan(jumps.ratio).all()
    assert not jumps.jump.any()
    assert not jumps.decided.any()
    assert jumps.reasons[1] == "the descent from step 1 and 10 did not converge"


def test_weights_that_diverge_have_no_structure(tmp_path: Path) -> None:
    class Break(Callback):
        @torch.no_grad()
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            pl_module.w.fill_(torch.nan if trainer.global_step == 2 else 1.0)

    found = structures([0, 1, 2, 3, 4], tolerance=1e-2, batch_size=4)
    quiet_trainer(tmp_path, callbacks=[Break(), found], max_steps=4).fit(Valley(), samples())
    assert np.isnan(values(found.record, "energy")).tolist() == [False, False, True, False, False]
    assert values(found.record, "converged") == [1, 1, 0, 1, 1]
    assert found.record.one_time("inherent_distance")[0].tolist() == [0, 1, 3, 4]
    assert found.record.one_time("inherent_step")[0].tolist() == [1, 4]
    assert "inherent_overlap" not in found.record.one_time_names  # all weights are equal after step 0


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_training_is_the_same_to_the_bit(tmp_path: Path, mode: Any) -> None:
    def train(callbacks: list[Callback]) -> list[Any]:
        seed_everything(4)
        module = Noisy()
        trainer = quiet_trainer(tmp_path, callbacks=callbacks, max_steps=13)
        trainer.fit(module, data(), data(shuffle=False))
        momenta = [state["momentum_buffer"] for state in trainer.optimizers[0].state.values()]
        numbers = [torch.rand(3, generator=module.generator), torch.rand(3), torch.tensor(np.random.rand(3))]  # noqa: NPY002
        gradients = [parameter.grad for parameter in module.parameters()]
        modes = torch.tensor([part.training for part in module.modules()])
        return [*module.state_dict().values(), *momenta, *numbers, *gradients, modes, torch.tensor(module.losses)]

    found = structures(2, mode=mode, max_gradients=16)
    with_it, without = train([found]), train([])
    assert len(with_it) == len(without)
    assert all(torch.equal(a, b) for a, b in zip(with_it, without, strict=True))
    energies, distances = values(found.record, "energy"), values(found.record, "distance")
    assert len(energies) == 5
    assert min(distances) > 0


def test_an_energy_with_dropout_is_one_function_of_the_weights(tmp_path: Path) -> None:
    # The dropout draws the same numbers at each gradient, or the energy would not fall.
    found = structures(mode="train", max_gradients=101, batch_size=24)
    quiet_trainer(tmp_path, callbacks=[found], max_steps=1).fit(SmallNet(), data())
    start = structures(mode="train", max_gradients=1, batch_size=24)
    torch.manual_seed(0)
    quiet_trainer(tmp_path, callbacks=[start], max_steps=1).fit(SmallNet(), data())
    assert values(found.record, "energy")[1] < values(start.record, "energy")[1] - 0.01


# The first checkpoint is saved at a measured step, the second between two measured steps.
@pytest.mark.parametrize("at", [10, 17])
def test_a_resumed_training_has_the_same_values_to_the_bit(tmp_path: Path, at: int) -> None:
    def train(*callbacks: Callback, **options: Any) -> AgingRecord:
        torch.manual_seed(5)
        found = structures(2, max_gradients=26, batch_size=24, loss=lambda module, batch: module._loss(batch))
        trainer = quiet_trainer(tmp_path, callbacks=[found, *callbacks], max_steps=40)
        with contextlib.suppress(ZeroDivisionError):
            trainer.fit(Repeatable(), data(shuffle=False), **options)
        return found.record

    whole, path = train(), tmp_path / "at.ckpt"
    train(At(at, path))
    assert torch.load(path, weights_only=True)["lightning_glassy_inherent_structures"]["glassy"]["step"] <= at
    resumed = train(ckpt_path=path)
    assert resumed.one_time_names == whole.one_time_names
    for name in whole.one_time_names:
        assert np.array_equal(resumed.one_time(name), whole.one_time(name)), name


def test_a_spoilt_structure_costs_a_warning(tmp_path: Path) -> None:
    first, path = structures(3, max_gradients=6), tmp_path / "spoilt.ckpt"
    with contextlib.suppress(ZeroDivisionError):
        quiet_trainer(tmp_path, callbacks=[first, At(5, path)]).fit(Valley(), samples())
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["lightning_glassy_inherent_structures"]["glassy"] = {"step": "five"}
    torch.save(checkpoint, path)
    found = structures(3, max_gradients=6)
    trainer = quiet_trainer(tmp_path, callbacks=[found], max_steps=22)
    with pytest.warns(UserWarning, match="InherentStructures: the last structure of the checkpoint is lost"):
        trainer.fit(Valley(), samples(), ckpt_path=path)
    assert found.record.one_time("inherent_step")[0].tolist() == [1, 2, 5, 22]
    assert trainer.global_step == 22


def test_a_new_training_and_a_copy_begin_without_a_structure(tmp_path: Path) -> None:
    found = structures([0, 5], max_gradients=6)
    for _ in range(2):
        quiet_trainer(tmp_path, callbacks=[found], max_steps=5).fit(Valley(), samples())
        assert found.record.one_time("inherent_step")[0].tolist() == [5]
    copied = pickle.loads(pickle.dumps(found))
    assert copied._previous is None
    assert copied.record == found.record


def test_a_training_that_goes_back_has_no_step_from_the_abandoned_branch(tmp_path: Path) -> None:
    class Back(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.fit_loop.total_batch_idx == 7:
                progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
                progress.total.ready = progress.total.completed = 4

    found = structures([0, 2, 6, 7, 9], max_batches=1, max_gradients=6)
    with pytest.warns(UserWarning, match="the training has gone back"):
        quiet_trainer(tmp_path, callbacks=[Back(), found], max_steps=12).fit(Valley(), samples(20, batch_size=1))
    assert found.record.one_time("inherent_energy")[0].tolist()[:2] == [0, 2]
    first = next(step for step in found.record.one_time("inherent_energy")[0].tolist() if step > 2)
    assert first not in found.record.one_time("inherent_step")[0].tolist()


def test_of_replicas_it_is_the_mean_of_each_alone_with_its_error(tmp_path: Path) -> None:
    def train(seeds: list[int]) -> AgingRecord:
        found = structures(1, loss=losses, weight_decay=1.0, tolerance=1e-2, batch_size=48)
        trainer = quiet_trainer(tmp_path, callbacks=[found], max_steps=3, precision="64-true")
        trainer.fit(Ensemble(len(seeds), seeds), replica_loader(data().dataset, 4, seeds))
        return found.record

    seeds = [5, 2, 9]
    record, alone = train(seeds), [train([seed]) for seed in seeds]
    assert values(record, "converged") == [1] * 3
    assert "inherent_energy_error" not in alone[0].one_time_names
    for name in ("energy", "distance", "step", "overlap", "gradients"):
        lone = np.array([values(each, name) for each in alone])
        assert values(record, name) == pytest.approx(lone.mean(axis=0), rel=1e-4, abs=1e-12)
        assert values(record, f"{name}_error") == pytest.approx(lone.std(axis=0, ddof=1) / 3**0.5, rel=1e-3, abs=1e-10)
    assert record.n_parameters["all"] == 195


def test_the_batches_are_fixed_and_as_many_as_asked_for(tmp_path: Path) -> None:
    seen: list[float] = []

    def loss(module: Any, batch: Any) -> Tensor:
        seen.append(float(batch[0].sum()))
        batch[0].zero_()  # a loss may write into its batch
        return module.energy()  # type: ignore[no-any-return]

    found = structures(max_batches=2, max_gradients=6, loss=loss)
    quiet_trainer(tmp_path, callbacks=[found], max_steps=1).fit(Valley(), samples(20, batch_size=1))
    assert len(seen) == 2 * 2 * 6
    assert seen == seen[:2] * 12
    facts = found.record.meta["InherentStructures"]
    assert (facts["batches"], facts["batches_available"], facts["samples"]) == (2, 20, 2)


def test_frozen_and_complex_parameters_are_in_their_places(tmp_path: Path) -> None:
    class Mixed(Valley):
        def __init__(self) -> None:
            super().__init__()
            self.z = nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]))
            self.frozen = nn.Parameter(torch.ones(3))

        def training_step(self, batch: Any) -> Tensor:
            return super().training_step(batch) + (self.z - 1j).abs().square().sum() + self.frozen.square().sum()

    class Freeze(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            pl_module.frozen.requires_grad_(False)

    module, found = Mixed(), structures([0, 1], tolerance=1e-6)
    start = float((module.w.detach() - module.bottom).square().sum())  # type: ignore[operator]
    quiet_trainer(tmp_path, callbacks=[Freeze(), found], max_steps=1).fit(module, samples())
    assert values(found.record, "energy")[0] == pytest.approx(1.5 + 3, rel=1e-4)
    # z goes from 1 + 2j and 3 - 1j to 1j
    assert values(found.record, "distance")[0] == pytest.approx((start + 2 + 13) / 57, rel=1e-4)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (lambda: Valley(torch.bfloat16), {}, "'w' has the dtype torch.bfloat16.*keep the weights in float32"),
        (Valley, {"loss": lambda *_: torch.zeros(())}, r"gave a tensor without a gradient: give InherentStructures\(l"),
        (Ensemble, {}, r"give InherentStructures\(loss=...\) a function .* that returns the loss of each"),
    ],
)
def test_unsuitable_modules_are_refused_before_the_training(
    tmp_path: Path, module: Any, options: dict[str, Any], message: str
) -> None:
    trainer = quiet_trainer(tmp_path, callbacks=[structures(**options)], max_steps=3)
    with pytest.raises(MisconfigurationException, match=message):
        trainer.fit(module(), samples())
    assert trainer.global_step == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0}, "tolerance=0 must be a positive number"),
        ({"tolerance": "small"}, "tolerance='small' must be a positive number"),
        ({"overlap_factor": float("nan")}, "overlap_factor=nan must be a positive number"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 must be a number of at least 0"),
        ({"max_gradients": 0}, "max_gradients=0 must be an integer of at least 1"),
        ({"max_gradients": 1.5}, "max_gradients=1.5 must be an integer of at least 1"),
        ({"max_batches": 0}, "max_batches=0 must be a positive integer, or None"),
        ({"mode": "test"}, "mode='test' is neither 'train' nor 'eval'"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InherentStructures(**options)


def test_a_record_without_pairs_has_no_jumps(tmp_path: Path) -> None:
    found = structures([0])
    quiet_trainer(tmp_path, callbacks=[found], max_steps=1, limit_train_batches=1).fit(Valley(), samples())
    early = found.record.before(1)
    assert inherent_jumps(early).steps.tolist() == []
    with pytest.raises(KeyError, match="inherent_converged"):
        inherent_jumps(AgingRecord({"all": 1}))

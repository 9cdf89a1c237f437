"""The curvature along a training: correct for known spectra, and without effect on the training."""

from __future__ import annotations

import builtins
import contextlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_glassy import (
    AgingMonitor,
    AgingRecord,
    BarrierMonitor,
    CurvatureMonitor,
    DisplacementDistribution,
    GradientNoiseMonitor,
    LogTimeEvaluator,
    Steps,
)
from tests.helpers import SmallNet, data, quiet_trainer
from tests.processes import launch
from tests.test_probes import End, Manual, Noisy, NoLoss, assert_same, weights_after

pytestmark = [
    # These are Lightning's warnings about loaders without a state, and about a part of the network in eval mode.
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode"),
    pytest.mark.filterwarnings("ignore:AgingMonitor. training starts at step"),
]


def monitor(**options: Any) -> CurvatureMonitor:
    return CurvatureMonitor(**({"save": False, "summary": False} | options))


class Quadratic(LightningModule):
    """A loss of known curvature. For a sample x it is x/2 times a quadratic form, and the mean of all x is 1."""

    def __init__(self, spectrum: np.ndarray) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.values = torch.as_tensor(spectrum)
        self.w = nn.Parameter(torch.randn(len(spectrum), generator=generator, dtype=torch.float64))
        self.mirror = nn.functional.normalize(
            torch.randn(len(spectrum), generator=generator, dtype=torch.float64), dim=0
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        turned = self.w - 2 * self.mirror * (self.mirror @ self.w)
        return batch[0].mean() / 2 * (self.values * turned**2).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self) -> DataLoader[Any]:
        # The batches have 4, 4 and 2 samples, so they have different weights in the mean.
        return DataLoader(TensorDataset(torch.linspace(0, 2, 10, dtype=torch.float64)), batch_size=4, shuffle=True)


def test_the_known_spectrum_of_a_quadratic_loss_is_found_at_every_step(tmp_path: Path) -> None:
    ends = np.array([9.0, 6.0, 4.0, -0.8, -1.0, -1.5])
    bulk = np.random.default_rng(0).uniform(0.2, 1, 94)
    truth = np.sort(np.concatenate([ends, bulk, -bulk[:30] / 2, np.zeros(270)]))
    # There are 400 parameters. Fewer products give estimates, and 400 products give the exact spectrum.
    estimated = monitor(eps=0.05, max_batches=None)
    exact = monitor(eps=0.05, max_batches=None, max_products=400, name="exact")
    quiet_trainer(tmp_path, callbacks=[estimated, exact], max_steps=12).fit(Quadratic(truth))
    true = {
        "hessian_trace": truth.sum(),
        "flat_fraction": (np.abs(truth) < 0.05).mean(),
        "hessian_index": (truth < -0.05).mean(),
    }
    for name, value in true.items():
        steps, found = estimated.record.one_time(name)
        error = estimated.record.one_time(f"{name}_error")[1]
        assert steps.tolist() == [0, 1, 3, 10, 12]
        assert (error > 0).all()
        assert (np.abs(found - value) < 3 * error).all(), name
        assert exact.record.one_time(name)[1] == pytest.approx([value] * 5)
        assert not exact.record.one_time(f"{name}_error")[1].any()
    for probe in (estimated, exact):
        for name, value in (("max", 9), ("max_2", 6), ("max_3", 4), ("min", -1.5), ("min_2", -1), ("min_3", -0.8)):
            assert probe.record.one_time(f"hessian_{name}")[1] == pytest.approx([value] * 5, rel=1e-4)
    for level in (1, 5, 25, 50, 75, 95, 99):
        quantile = truth[int(np.ceil(level / 100 * 400)) - 1]
        assert exact.record.one_time(f"hessian_q{level:02d}")[1] == pytest.approx([quantile] * 5, abs=1e-9)
        # The fraction of directions below is right, to within the scatter of the probe and one of the 100 nodes.
        scatter, node = 3 * np.sqrt(2 * level / 100 * (1 - level / 100) / 400), 1.4 / 100
        for value in estimated.record.one_time(f"hessian_q{level:02d}")[1]:
            assert (truth <= value - node).mean() - scatter <= level / 100 <= (truth <= value + node).mean() + scatter
    meta = estimated.record.meta["CurvatureMonitor"]
    assert (meta["matrix"], meta["eps"], meta["batches"], meta["samples"]) == ("hessian", 0.05, 3, 10)
    assert 0 < meta["products"] <= meta["max_products"] == 200
    assert exact.record.meta["CurvatureMonitor"]["products"] == 400
    assert exact.spectrum is not None
    assert exact.spectrum.exact


class Smooth(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        self.net[2] = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


def criterion(outputs: Tensor, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(outputs, batch[1])


class Dense(Callback):
    """Computes all eigenvalues of the Hessian and the Gauss-Newton matrix at the end, over all data, by torch.func."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.x, self.y = loader.dataset.tensors  # type: ignore[attr-defined]

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        names = dict(pl_module.named_parameters())
        weights = torch.cat([p.detach().flatten() for p in names.values()]).double()

        def outputs(flat: Tensor) -> Tensor:
            parts = flat.split([p.numel() for p in names.values()])
            parameters = {name: part.view(p.shape) for (name, p), part in zip(names.items(), parts, strict=True)}
            return torch.func.functional_call(pl_module, parameters, (self.x.double(),))

        def loss(found: Tensor) -> Tensor:
            return nn.functional.cross_entropy(found, self.y)

        self.hessian = torch.linalg.eigvalsh(torch.func.hessian(lambda flat: loss(outputs(flat)))(weights)).numpy()
        jacobian = torch.func.jacrev(outputs)(weights).flatten(0, 1)
        curved = torch.func.hessian(loss)(outputs(weights)).reshape(len(jacobian), len(jacobian))
        self.gauss_newton = torch.linalg.eigvalsh(jacobian.T @ curved @ jacobian).numpy()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_network_has_the_eigenvalues_of_the_dense_matrix(tmp_path: Path, precision: Any) -> None:
    """The matrix is in full precision, even if the training is not."""
    loader = data(batch_size=24)
    dense, options = Dense(loader), {"max_batches": None, "schedule": 1}
    hessian, gauss_newton = monitor(**options), monitor(**options, criterion=criterion, name="gauss_newton")
    quiet_trainer(tmp_path, callbacks=[dense, hessian, gauss_newton], max_steps=10, precision=precision).fit(
        Smooth(), loader
    )
    for probe, values in ((hessian, dense.hessian), (gauss_newton, dense.gauss_newton)):
        matrix = "hessian" if probe is hessian else "gauss_newton"
        assert probe.record.meta["CurvatureMonitor"]["matrix"] == matrix
        (step, largest), (_, least) = (
            [part[-1] for part in probe.record.one_time(f"{matrix}_{end}")] for end in ("max", "min")
        )
        assert step == 10
        assert largest == pytest.approx(values[-1], rel=1e-4)
        assert least == pytest.approx(values[0], abs=1e-5)
        assert probe.record.one_time(f"{matrix}_trace")[1][-1] == pytest.approx(values.sum(), rel=1e-4)
        flat = (np.abs(values) < 1e-2).mean()
        assert probe.record.one_time("flat_fraction")[1][-1] == pytest.approx(flat, abs=1.5 / len(values))
    assert gauss_newton.record.one_time("gauss_newton_index")[1][-1] == 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_is_the_same_to_the_bit_with_all_callbacks(tmp_path: Path, precision: Any) -> None:
    def train(callbacks: list[Callback]) -> dict[str, Any]:
        seed_everything(4)
        module = Noisy()
        trainer = quiet_trainer(tmp_path, callbacks=callbacks, precision=precision, max_steps=12)
        trainer.fit(module, data())
        return {
            "weights and buffers": module.state_dict(),
            "momenta": [state["momentum_buffer"] for state in trainer.optimizers[0].state.values()],
            "modes": [part.training for part in module.modules()],
            "gradients": [parameter.grad for parameter in module.parameters()],
            "attributes": [module.average, module.calls, module.losses],
            "own random numbers": [torch.rand(3, generator=module.generator), module.rng.random()],
            "random numbers": [torch.rand(3), np.random.rand()],  # noqa: NPY002
        }

    without = train([])
    cheap = {"n_nodes": 8, "n_probes": 1, "max_batches": 2}
    probes = [monitor(**cheap), monitor(**cheap, mode="train", name="other")]
    quiet: dict[str, Any] = {"save": False, "summary": False}
    more = [LogTimeEvaluator(**quiet), GradientNoiseMonitor(**quiet), BarrierMonitor(max_batches=2, **quiet)]
    assert_same(train([*probes, *more, DisplacementDistribution(), AgingMonitor(**quiet)]), without)
    record = probes[0].record
    assert {"loss_path", "displacement", "weights"} <= set(record.profile_names)
    assert {"hessian_trace", "train_loss", "gradient_noise"} <= set(record.one_time_names)
    assert len(record) > 0


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_training_on_a_gpu_is_the_same_to_the_bit(tmp_path: Path, precision: Any) -> None:
    options: dict[str, Any] = {"accelerator": "gpu", "precision": precision}
    probe = monitor(mode="train", n_nodes=8)
    assert_same(weights_after(tmp_path, [probe], **options), weights_after(tmp_path, [], **options))
    assert probe.record.one_time("hessian_max")[0].tolist() == [0, 1, 3, 10]


def test_what_a_module_changes_in_itself_does_not_change_from_product_to_product(tmp_path: Path) -> None:
    """In training mode this loss has dropout, a moving average and random numbers. Its matrix is still fixed."""
    found = [monitor(schedule=1, mode="train", max_batches=2, max_products=n, n_nodes=8) for n in (400, 200)]
    for probe in found:
        seed_everything(4)
        quiet_trainer(tmp_path, callbacks=[probe], max_steps=1).fit(Noisy(), data())
    dense, sparse = found
    assert dense.spectrum is not None
    assert sparse.spectrum is not None
    assert (dense.spectrum.exact, sparse.spectrum.exact) == (True, False)
    # Lanczos, one product after another, sees the same matrix that was made column by column.
    assert sparse.record.one_time("hessian_max")[1] == pytest.approx(dense.record.one_time("hessian_max")[1], rel=1e-4)


@pytest.mark.parametrize("alone", [True, False])
def test_series_go_on_in_a_resumed_training(tmp_path: Path, alone: bool) -> None:
    def fit(place: Path, *more: Callback, **options: Any) -> AgingRecord:
        torch.manual_seed(1)
        probe = monitor(save=True, n_nodes=8, n_probes=1)
        aging = [] if alone else [AgingMonitor(summary=False)]
        trainer = quiet_trainer(place, callbacks=[*more, probe, *aging], max_steps=12)
        with contextlib.suppress(ZeroDivisionError):
            trainer.fit(Smooth(), data(batch_size=48, shuffle=False), **options)
        return probe.record

    whole = fit(tmp_path / "whole")
    fit(tmp_path / "again", End(5, tmp_path / "5.ckpt"))
    torch.load(tmp_path / "5.ckpt", weights_only=True)  # nothing but tensors and plain values
    resumed = fit(tmp_path / "again", ckpt_path=tmp_path / "5.ckpt")
    assert resumed.one_time("hessian_max")[0].tolist() == [0, 1, 3, 10, 12]
    assert resumed.one_time_names == whole.one_time_names
    for name in whole.one_time_names:
        assert np.array_equal(resumed.one_time(name), whole.one_time(name)), name
    (file,) = (tmp_path / "again").rglob("aging_record*.npz")
    assert AgingRecord.load(file) == resumed


def test_an_eigenvalue_that_does_not_converge_is_a_bound(tmp_path: Path) -> None:
    """An even spectrum of 3,000 has ends that are too dense for so few products."""
    probe = monitor(schedule=1, max_products=102, n_nodes=20)
    quiet_trainer(tmp_path, callbacks=[probe], max_steps=1).fit(Quadratic(np.linspace(-1, 2, 3000)))
    assert not {"hessian_max", "hessian_max_error", "hessian_min"} & set(probe.record.one_time_names)
    assert 1.9 < probe.record.one_time("hessian_max_at_least")[1][0] <= 2
    assert -1 <= probe.record.one_time("hessian_min_at_most")[1][0] < -0.9


def test_the_fixed_part_of_the_data_is_the_same_at_all_steps_and_no_more_than_asked_for(tmp_path: Path) -> None:
    seen: list[Any] = []

    def loss(module: Any, batch: Any) -> Tensor:
        seen.append(batch[0])
        return module._loss(batch)  # type: ignore[no-any-return]

    class Augmented(TensorDataset):
        """A data set that returns another sample at each access."""

        def __getitem__(self, index: Any) -> Any:
            x, y = super().__getitem__(index)
            return x + torch.randn(x.shape), y

    probe = monitor(schedule=1, max_batches=2, batch_size=6, loss=loss, n_nodes=8)
    loader = DataLoader(Augmented(*data().dataset.tensors), batch_size=4, shuffle=True)  # type: ignore[attr-defined]
    quiet_trainer(tmp_path, callbacks=[probe], max_steps=10).fit(Smooth(), loader)
    meta = probe.record.meta["CurvatureMonitor"]
    assert (meta["batches"], meta["batches_available"], meta["samples"]) == (2, 8, 12)
    assert len(seen) == 3 * 2 * meta["products"]  # three steps
    assert all(torch.equal(x, first) for i in range(2) for first in [seen[i]] for x in seen[i::2])


def test_weights_that_diverge_cost_a_warning_and_no_training(tmp_path: Path, caplog: Any) -> None:
    class Break(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                with torch.no_grad():
                    pl_module.net[0].weight.fill_(torch.nan)

    probe = monitor(n_nodes=8)
    trainer = quiet_trainer(tmp_path, callbacks=[Break(), probe], max_steps=12)
    trainer.fit(Smooth(), data())
    assert trainer.global_step == 12
    assert probe.record.one_time("hessian_max")[0].tolist() == [0, 1]
    (told,) = [line.message for line in caplog.records if "training goes on" in line.message]
    assert "nothing is measured at step 3 (FloatingPointError: a product with the curvature is not finite" in told


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (NoLoss, {}, r"training_step has returned None under 'loss' .* give CurvatureMonitor\(loss=...\)"),
        (Manual, {}, r"Manual optimises manually.*give CurvatureMonitor\(loss=...\)"),
        (SmallNet, {"max_products": 100}, "max_products=100 does not suffice for n_probes=1, n_nodes=100"),
        (SmallNet, {"loss": lambda module, batch: torch.zeros(())}, "loss gave a tensor without a gradient"),
        (SmallNet, {"criterion": criterion, "outputs": lambda module, batch: None}, "outputs gave a NoneType"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_training(
    tmp_path: Path, module: Any, options: dict[str, Any], message: str
) -> None:
    trainer = quiet_trainer(tmp_path, callbacks=[monitor(**options)], max_steps=3)
    with pytest.raises(MisconfigurationException, match=message):
        trainer.fit(module(), data())
    assert trainer.global_step == 0


def test_a_criterion_asks_for_no_loss_of_the_module(tmp_path: Path) -> None:
    class Both(Smooth):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer: Any = self.optimizers()
            self.manual_backward(self._loss(batch))
            optimizer.step()

    probe = monitor(criterion=criterion, n_nodes=8)
    probe = pickle.loads(pickle.dumps(probe))
    quiet_trainer(tmp_path, callbacks=[probe], max_steps=2).fit(Both(), data())
    assert probe.record.one_time("gauss_newton_max")[1].min() > 0


@pytest.mark.needs("jsonargparse")
@pytest.mark.filterwarnings("ignore")  # jsonargparse warns about names that not all versions have
def test_it_can_be_configured_from_a_file() -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_argument("--callback", type=Callback)
    wanted = {
        "class_path": "lightning_glassy.CurvatureMonitor",
        "init_args": {"schedule": 1, "eps": 0.1, "mode": "train"},
    }
    found = parser.instantiate_classes(parser.parse_args(["--callback", json.dumps(wanted)])).callback
    assert found.schedule == Steps.logspaced(1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eps": 0}, ValueError, "eps=0 must be a positive number"),
        ({"eps": "small"}, ValueError, "eps='small' must be a positive number"),
        ({"n_eigenvalues": 0}, ValueError, "n_eigenvalues=0 must be an integer of at least 1"),
        ({"n_probes": 1.5}, ValueError, "n_probes=1.5 must be an integer"),
        ({"n_nodes": 3}, ValueError, "n_nodes=3 must be an integer of at least 4"),
        ({"max_products": None}, ValueError, "max_products=None must be an integer"),
        ({"criterion": "mse"}, TypeError, "criterion='mse' is not a function"),
        ({"criterion": criterion, "loss": criterion}, ValueError, "are two losses: give one of them"),
        ({"outputs": criterion}, ValueError, "needs a criterion"),
        ({"mode": "test"}, ValueError, "mode='test'"),
        ({"schedule": 0}, ValueError, "schedule=0"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CurvatureMonitor(**options)


def test_without_scipy_the_remedy_is_named_before_the_training(tmp_path: Path, monkeypatch: Any) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'lightning-glassy\[curvature\]'"):
        quiet_trainer(tmp_path, callbacks=[monitor()], max_steps=3).fit(Smooth(), data())


@pytest.mark.filterwarnings("ignore:CurvatureMonitor. weights of 16 bits")
def test_weights_of_16_bits_are_measured_with_a_warning(tmp_path: Path) -> None:
    probe = monitor(n_nodes=8, schedule=1)
    with pytest.warns(UserWarning, match="weights of 16 bits have two or three digits"):
        quiet_trainer(tmp_path, callbacks=[probe], max_steps=1, precision="bf16-true").fit(SmallNet(), data())
    assert probe.record.one_time("hessian_trace")[1][0] > 0


@pytest.mark.slow
def test_of_two_processes_one_measures_what_a_single_one_does(tmp_path: Path) -> None:
    for devices in ("1", "2"):
        launch("tests/curvature_in_parallel.py", tmp_path / devices, devices, processes=int(devices))
    single, double = (AgingRecord.load(tmp_path / n / "measured" / "glassy" / "aging_record.npz") for n in "12")
    assert double.one_time_names == single.one_time_names
    for name in single.one_time_names:
        steps, values = double.one_time(name)
        assert steps.tolist() == [0, 1, 3, 4]
        assert values[0] == single.one_time(name)[1][0]  # before the first update the weights are the same
    for rank in range(2):
        measured, alone = (torch.load(tmp_path / "2" / way / f"weights{rank}.pt") for way in ("measured", "alone"))
        assert all(torch.equal(measured[key], alone[key]) for key in alone)


def test_what_would_wait_for_other_processes_is_refused() -> None:
    class OfTwo:
        """Stands for a Trainer with two processes, because torch has no such layer on a CPU."""

        world_size = 2

    module = SmallNet()
    module.net[2] = nn.SyncBatchNorm(16)
    with pytest.raises(MisconfigurationException, match=r"rank 0 measures alone.*use mode='eval'"):
        monitor(mode="train").prepare(OfTwo(), module)  # type: ignore[arg-type]

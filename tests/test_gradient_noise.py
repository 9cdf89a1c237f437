"""The gradient noise against exact values, and against all gradients."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_glassy import AgingMonitor, GradientNoiseMonitor
from lightning_glassy.glasses.modules import SGDQuadraticModule
from lightning_glassy.glasses.sgd_quadratic import SGDQuadratic
from tests.helpers import SmallNet, data, quiet_trainer


def monitor(**options: Any) -> GradientNoiseMonitor:
    return GradientNoiseMonitor(**({"save": False, "summary": False} | options))


class ByHand(Callback):
    """Computes D and the norm of the mean at every step, from the gradients of all batches in float64."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.found: dict[int, dict[str, float]] = {}

    def look(self, trainer: Trainer, module: Any) -> None:
        module = copy.deepcopy(module.net).double()
        rows: dict[str, list[Tensor]] = {"": [], "/net.0": [], "/net.3": []}
        for x, y in self.loader:
            loss = nn.functional.cross_entropy(module(x.double()), y)
            gradients = torch.autograd.grad(loss, list(module.parameters()))
            first, last = (torch.cat([g.flatten() for g in pair]) for pair in (gradients[:2], gradients[2:]))
            for key, row in (("", torch.cat([first, last])), ("/net.0", first), ("/net.3", last)):
                rows[key].append(row)
        self.found[trainer.global_step] = values = {}
        for key, found in rows.items():
            stacked, n = torch.stack(found), len(found)
            norm2 = float(stacked.mean(0).square().sum())
            d = n / (n - 1) * (float(stacked.square().sum(1).mean()) - norm2)
            values |= {f"gradient_noise{key}": d, f"gradient_norm2{key}": norm2}
            values[f"gradient_signal_to_noise{key}"] = norm2 / d

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.look(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.look(trainer, pl_module)


@pytest.mark.parametrize("with_monitor", [False, True])
def test_it_is_the_scatter_of_the_gradients_of_all_batches(tmp_path: Path, with_monitor: bool) -> None:
    module, loader = SmallNet(), data(shuffle=False)
    module.net[2] = nn.Identity()
    # Use the groups of the AgingMonitor, or ask for groups.
    noise = monitor() if with_monitor else monitor(groups="layer")
    aging = [AgingMonitor(groups="layer", summary=False)] if with_monitor else []
    by_hand = ByHand(loader)
    quiet_trainer(tmp_path, callbacks=[noise, by_hand, *aging]).fit(module, loader)
    for name in by_hand.found[0]:
        steps, values = noise.record.one_time(name)
        assert len(steps) == 12
        assert values == pytest.approx([by_hand.found[step][name] for step in steps], rel=2e-6)
    steps, temperatures = noise.record.one_time("noise_temperature/net.3")
    expected = [0.1 / 2 * by_hand.found[step]["gradient_noise/net.3"] / 51 for step in steps]
    assert temperatures == pytest.approx(expected, rel=2e-6)


def test_it_is_not_lost_beside_a_large_mean_gradient(tmp_path: Path) -> None:
    class Steep(LightningModule):
        """A module in which the gradient of a sample is 1000 plus a thousandth of its values."""

        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(50))

        def training_step(self, batch: Any) -> Tensor:
            return ((1000 + batch[0]) * self.w).sum(1).mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    # The values are exact in float32, in which the numbers near 1000 are 2^-14 apart.
    x = torch.randint(-64, 64, (40, 50)) / 2**13
    noise = monitor()
    quiet_trainer(tmp_path, callbacks=[noise], max_steps=1).fit(Steep(), DataLoader(TensorDataset(x), batch_size=1))
    expected = float(x.double().var(0).sum())
    assert noise.record.one_time("gradient_noise")[1][0] == pytest.approx(expected, rel=1e-2)
    assert noise.record.one_time("gradient_signal_to_noise")[1][0] > 1e9


class Samples(LightningModule):
    """A module in which the gradient of the loss on a sample is the sample itself."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(n))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (batch[0] @ self.w).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("max_batches", [None, 4])
def test_minibatches_without_replacement_scatter_as_they_must(tmp_path: Path, max_batches: int | None) -> None:
    m, size, n = 48, 4, 4000
    x = torch.randn(m, n) ** 3
    noise = monitor(max_batches=max_batches)
    loader = DataLoader(TensorDataset(x), batch_size=size, shuffle=True)
    quiet_trainer(tmp_path, callbacks=[noise], max_steps=1).fit(Samples(n), loader)
    sigma = float(x.double().var(0, correction=0).sum())  # one sample, over the data set
    exact = sigma / size * (m - size) / (m - 1)
    n_used = max_batches or m // size
    error = exact * math.sqrt(2 / (n * (n_used - 1)))  # n independent coordinates
    measured = noise.record.one_time("gradient_noise")[1][0]
    assert measured * (1 - size / m) == pytest.approx(exact, abs=4 * error)
    assert noise.record.meta["GradientNoiseMonitor"]["batches"] == n_used
    assert noise.record.meta["GradientNoiseMonitor"]["batch_size"] == size


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_noise_and_the_temperature_of_a_quadratic_valley_are_known(tmp_path: Path, momentum: float) -> None:
    glass = SGDQuadratic(learning_rate=0.01, curvature=0.5, noise=2.0, momentum=momentum, initial_variance=1.0)
    n, n_batches = 3000, 40
    noise = monitor(schedule=1, max_batches=n_batches)
    module = SGDQuadraticModule(glass, n, steps=200)
    quiet_trainer(tmp_path, callbacks=[noise], max_steps=100).fit(module)
    steps, values = noise.record.one_time("gradient_noise")
    assert steps.tolist() == [0, 1, 10, 100]
    error = math.sqrt(2 / (n * (n_batches - 1)))
    assert values / (n * glass.noise**2) == pytest.approx(1, abs=4 * error)
    # The mean of n gradients has an nth of their noise, beside the slope of the valley.
    w2 = glass.covariance(steps, steps)
    expected = n * (glass.curvature**2 * w2 + glass.noise**2 / n_batches)
    assert noise.record.one_time("gradient_norm2")[1] == pytest.approx(expected, rel=4 * math.sqrt(2 / n) + 0.02)
    # <w^2> = T / lambda, up to the size of a step.
    _, temperatures = noise.record.one_time("noise_temperature")
    late = float(glass.covariance([3000], [3000])[0])
    assert temperatures / (glass.curvature * late) == pytest.approx(1, abs=4 * error + 0.01)


def test_the_temperature_is_that_of_an_update(tmp_path: Path) -> None:
    def ratio(optimizer: Any, **options: Any) -> float | None:
        class Module(Samples):
            def configure_optimizers(self) -> Any:
                return optimizer(self.parameters())

        noise = monitor()
        loader = DataLoader(TensorDataset(torch.randn(40, 10)), batch_size=4)
        quiet_trainer(tmp_path, callbacks=[noise], max_steps=2, **options).fit(Module(10), loader)
        if "noise_temperature" not in noise.record.one_time_names:
            return None
        d, t = (noise.record.one_time(name)[1][0] for name in ("gradient_noise", "noise_temperature"))
        return float(t / (d / 10))

    assert ratio(lambda p: torch.optim.SGD(p, lr=0.3)) == pytest.approx(0.15)
    assert ratio(lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.5)) == pytest.approx(0.3)
    assert ratio(lambda p: torch.optim.SGD(p, lr=0.3), accumulate_grad_batches=3) == pytest.approx(0.05)
    # It is not defined without a mobility that all coordinates share.
    assert ratio(lambda p: torch.optim.Adam(p, lr=0.3)) is None
    assert ratio(lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.5, dampening=0.1)) is None


@pytest.mark.filterwarnings("ignore:.*accumulate_grad_batches")
def test_the_temperature_has_the_settings_at_the_time_of_the_measurement(tmp_path: Path) -> None:
    class Settings(Callback):
        def __init__(self) -> None:
            self.found: dict[int, float] = {}

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            self.found.setdefault(trainer.global_step, rate / (2 * trainer.accumulate_grad_batches))

    class Decaying(SmallNet):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)]

    noise, settings = monitor(schedule=list(range(12))), Settings()
    accumulation = GradientAccumulationScheduler({0: 4, 1: 2, 2: 1})
    trainer = quiet_trainer(tmp_path, callbacks=[settings, accumulation, noise], max_epochs=3, max_steps=-1)
    trainer.fit(Decaying(), data(n=16))
    steps, temperatures = noise.record.one_time("noise_temperature")
    _, values = noise.record.one_time("gradient_noise")
    assert steps.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    found = temperatures * sum(p.numel() for p in SmallNet().parameters()) / values
    assert found == pytest.approx([settings.found[step] for step in steps.tolist()], rel=1e-6)
    assert len(set(settings.found.values())) > 3


def test_without_noise_there_is_no_ratio(tmp_path: Path) -> None:
    noise = monitor()
    loader = DataLoader(TensorDataset(torch.ones(12, 5)), batch_size=3)
    quiet_trainer(tmp_path, callbacks=[noise], max_steps=1).fit(Samples(5), loader)
    assert noise.record.one_time("gradient_noise")[1].tolist() == [0, 0]
    assert noise.record.one_time("gradient_norm2")[1].tolist() == [5, 5]
    assert "gradient_signal_to_noise" not in noise.record.one_time_names


def test_what_is_not_finite_is_shown(tmp_path: Path) -> None:
    x = torch.ones(12, 5)
    x[7, 0] = math.inf
    noise = monitor()
    loader = DataLoader(TensorDataset(x), batch_size=3)
    quiet_trainer(tmp_path, callbacks=[noise], max_steps=1).fit(Samples(5), loader)
    assert not np.isfinite(noise.record.one_time("gradient_noise")[1]).any()


def test_frozen_and_unused_parameters_have_no_noise(tmp_path: Path) -> None:
    class Freeze(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            pl_module.net[0].requires_grad_(trainer.global_step < 2)

    module = SmallNet()
    module.unused = nn.Parameter(torch.ones(4))
    noise = monitor(groups={"first": "net.0.*", "unused": "unused"})
    quiet_trainer(tmp_path, callbacks=[Freeze(), noise], max_steps=5).fit(module, data())
    assert noise.record.one_time("gradient_noise/unused")[1].tolist() == [0] * 5
    first = noise.record.one_time("gradient_noise/first")
    assert first[0].tolist() == [0, 1, 2, 3, 5]
    assert (first[1] > 0).tolist() == [True, True, True, False, False]


def test_the_data_may_be_others_and_must_be_enough(tmp_path: Path) -> None:
    noise = monitor(loader=lambda: data(n=40, batch_size=8))
    quiet_trainer(tmp_path, callbacks=[noise], max_steps=1).fit(SmallNet(), data())
    assert noise.record.meta["GradientNoiseMonitor"]["batches"] == 5
    trainer = quiet_trainer(tmp_path, callbacks=[monitor()], max_steps=1)
    with pytest.raises(MisconfigurationException, match="1 whole batch of 32 samples, and a scatter needs two"):
        trainer.fit(SmallNet(), data(batch_size=32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": "layers"}, "groups='layers' is not 'all', 'layer'"),
        ({"include": "*.weight"}, r"include='\*\.weight', exclude=None need groups"),
        ({"max_batches": 1}, "max_batches=1: a scatter needs at least 2"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientNoiseMonitor(**options)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "bf16-true"])
def test_it_is_measured_on_the_device_in_any_precision(tmp_path: Path, precision: Any) -> None:
    def measure(**options: Any) -> float:
        torch.manual_seed(1)
        module, noise = SmallNet(dtype=options.pop("dtype", torch.float32)), monitor()
        module.net[2] = nn.Identity()
        quiet_trainer(tmp_path, callbacks=[noise], max_steps=1, **options).fit(module, data(shuffle=False))
        return float(noise.record.one_time("gradient_noise")[1][0])

    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    found = measure(accelerator="gpu", precision=precision, dtype=dtype)
    assert found == pytest.approx(measure(), rel=1e-4 if precision == "32-true" else 0.05)

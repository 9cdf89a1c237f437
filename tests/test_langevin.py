"""Langevin dynamics as an optimiser: exact variances, free diffusion, and the same noise in copies and resumed runs."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_glassy import AgingMonitor, LogTimeSchedule
from lightning_glassy.langevin import Langevin
from tests.helpers import SmallNet, data, quiet_trainer

KT = 0.3


class Quadratic(LightningModule):
    """Independent coordinates ``w [n_curvature, n]`` in quadratic valleys, with exact gradients or additive noise."""

    def __init__(self, curvatures: list[float], n: int, steps: int, noise: float = 0.0, **options: Any) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(len(curvatures), n))
        self.curvatures, self.steps = torch.tensor(curvatures)[:, None], steps
        self.noise, self.generator, self.options = noise, torch.Generator().manual_seed(5), options

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = 0.5 * (self.curvatures * self.w**2).sum()
        if self.noise:
            loss = loss + self.noise * (torch.randn(self.w.shape, generator=self.generator) * self.w).sum()
        return loss

    def train_dataloader(self) -> Any:
        return DataLoader(torch.zeros(self.steps), batch_size=1)  # type: ignore[arg-type]

    def configure_optimizers(self) -> Any:
        return Langevin(self.parameters(), **self.options)


def trained(tmp_path: Path, module: Quadratic, *callbacks: Callback) -> Langevin:
    trainer = quiet_trainer(tmp_path, max_steps=module.steps, callbacks=list(callbacks))
    trainer.fit(module)
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, Langevin)
    return optimizer


def z_of_mean(products: Tensor, exact: NDArray[np.float64], variance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the deviation of the mean of ``products [..., n]`` from the exact mean, in units of its exact error."""
    n = products.shape[-1]
    return np.asarray((products.double().mean(-1).detach().numpy() - exact) / np.sqrt(variance / n))


def symplectic(h: float, curvature: float, friction: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the matrix of a step on the quadratic for (w, v), and the covariance of its noise at kT = 1."""
    c = math.exp(-friction * h)
    kick, drift = np.array([[1, 0], [-h * curvature, 1]]), np.array([[1, h / 2], [0, 1]])
    noise = drift @ np.array([0, math.sqrt(1 - c * c)])
    return drift @ np.diag([1, c]) @ drift @ kick, np.outer(noise, noise)


def stationary(matrix: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve P = A P A^T + B."""
    n = len(matrix)
    return np.asarray(np.linalg.solve(np.eye(n * n) - np.kron(matrix, matrix), noise.ravel()).reshape(n, n))


# ---------------------------------------------------------------------- exact variances


def test_euler_has_the_exact_variance_of_its_finite_step(tmp_path: Path) -> None:
    """The variance of weights that start at 0 is S (1 - a^2n), with S = (kT/lambda)/(1 - h lambda/2)."""
    h, rates, steps = 0.5, np.array([0.1, 0.3, 1.0, 1.6]), 60
    module = Quadratic((rates / h).tolist(), 60_000, steps, lr=h, kT=KT, seed=3)
    trained(tmp_path, module)
    grown = 1 - (1 - rates) ** (2 * steps)
    exact, continuous = (KT * h / rates / correction * grown for correction in (1 - rates / 2, 1))
    z = z_of_mean(module.w**2, exact, 2 * exact**2)
    assert np.abs(z).max() < 4, z
    without = z_of_mean(module.w**2, continuous, 2 * continuous**2)
    assert without.min() > 6, f"the test would not see the O(lr) term: {without}"


def test_the_symplectic_step_has_exact_variances(tmp_path: Path) -> None:
    """<w^2> = kT/lambda, <v^2> = kT and <wv> = h kT/2 at every stable step. Euler's correction is excluded."""
    h, rates, friction = 0.8, np.array([0.1, 0.5, 1.5, 3.0]), 1.0  # rates h^2 lambda, stable below 4
    module = Quadratic((rates / h**2).tolist(), 60_000, 100, lr=h, kT=KT, scheme="symplectic", friction=friction)
    optimizer = trained(tmp_path, module)
    velocity = optimizer.state[module.w]["velocity"]
    position, kinetic = KT * h**2 / rates, np.full(4, KT)
    assert np.abs(z_of_mean(module.w**2, position, 2 * position**2)).max() < 4
    assert np.abs(z_of_mean(velocity**2, kinetic, 2 * kinetic**2)).max() < 4
    cross = np.full(4, h * KT / 2)
    assert np.abs(z_of_mean(module.w * velocity, cross, position * kinetic + cross**2)).max() < 4
    wrong = position / (1 - rates / 4)  # a velocity Verlet without the splitting of Leimkuhler and Matthews
    assert z_of_mean(module.w**2, wrong, 2 * wrong**2).max() < -6
    gradient = module.curvatures * module.w
    whole, lagging = velocity - h / 2 * gradient, KT * (1 - rates / 4)
    assert np.abs(z_of_mean(whole**2, lagging, 2 * lagging**2)).max() < 4


@pytest.mark.parametrize("friction", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("rate", [0.01, 1.0, 3.9])
def test_the_formulas_solve_the_linear_recursion(rate: float, friction: float) -> None:
    h = 0.7
    curvature = rate / h**2
    matrix, noise = symplectic(h, curvature, friction)
    exact = np.array([[1 / curvature, h / 2], [h / 2, 1]])
    assert stationary(matrix, noise) == pytest.approx(exact, rel=1e-9)
    assert np.abs(np.linalg.eigvals(matrix)).max() < 1
    assert np.abs(np.linalg.eigvals(symplectic(h, 4.01 / h**2, 0.0)[0])).max() > 1
    assert np.abs(np.linalg.eigvals(symplectic(h, 3.99 / h**2, 0.0)[0])).max() == pytest.approx(1)


def step_matrix(h: float, curvature: float, friction: float) -> Tensor:
    """Return the matrix of a step of the optimiser without noise, from its action on (1, 0) and (0, 1)."""
    w = nn.Parameter(torch.tensor([1.0, 0.0], dtype=torch.float64))
    optimizer = Langevin([w], lr=h, kT=0, scheme="symplectic", friction=friction)
    optimizer.state[w]["velocity"] = torch.tensor([0.0, 1.0], dtype=torch.float64)
    w.grad = curvature * w.detach()
    optimizer.step()
    return torch.stack([w.detach(), optimizer.state[w]["velocity"]])


def test_without_friction_the_step_preserves_areas() -> None:
    h, curvature = 0.6, 2.0
    assert float(torch.linalg.det(step_matrix(h, curvature, 0.0))) == pytest.approx(1, abs=1e-14)
    assert step_matrix(h, curvature, 0.9).numpy() == pytest.approx(symplectic(h, curvature, 0.9)[0], abs=1e-14)
    assert float(torch.linalg.det(step_matrix(h, curvature, 0.9))) == pytest.approx(math.exp(-0.9 * h))


def test_minibatch_noise_adds_to_the_temperature(tmp_path: Path) -> None:
    """Noise of strength sigma in each weight is D/N = sigma^2: T = kT + h D/(2N), or h D/(2N gamma)."""
    h, sigma, curvature, friction, n = 0.05, 2.0, 1.0, 0.5, 60_000
    module = Quadratic([curvature], n, 150, noise=sigma, lr=h, kT=KT)
    trained(tmp_path, module)
    exact = (KT + h * sigma**2 / 2) / (1 - h / 2) * np.ones(1)
    exact *= 1 - (1 - h * curvature) ** 300
    assert np.abs(z_of_mean(module.w**2, exact, 2 * exact**2)).max() < 4
    assert exact > 1.3 * KT
    # The symplectic scheme, by its recursion: the noise of the gradient enters with the kick.
    matrix, noise = symplectic(h, curvature, friction)
    c = math.exp(-friction * h)
    kick = np.array([[1, h / 2], [0, 1]]) @ np.diag([1, c]) @ np.array([[1, h / 2], [0, 1]]) @ np.array([0, h * sigma])
    variance = stationary(matrix, KT * noise + np.outer(kick, kick))[0, 0]
    assert variance == pytest.approx((KT + h * sigma**2 / (2 * friction)) / curvature, rel=0.02)
    module = Quadratic([curvature], n, 400, noise=sigma, lr=h, kT=KT, scheme="symplectic", friction=friction)
    trained(tmp_path, module)
    assert np.abs(z_of_mean(module.w**2, np.array([variance]), 2 * variance**2 * np.ones(1))).max() < 4


# ---------------------------------------------------------------------- free diffusion, through a record


def test_free_diffusion_of_euler_is_2_kT_h_n(tmp_path: Path) -> None:
    h, n, schedule = 0.2, 40_000, LogTimeSchedule([0, 20], [1, 5, 20, 60])
    module, monitor = Quadratic([0.0], n, 80, lr=h, kT=KT, seed=1), AgingMonitor(schedule, summary=False)
    trained(tmp_path, module, monitor)
    delta = monitor.record.msd()
    z = (delta / (2 * KT * h * monitor.record.lags) - 1) / math.sqrt(2 / n)
    assert np.isfinite(z).sum() == 8
    assert np.nanmax(np.abs(z)) < 4


def free_displacement(h: float, friction: float, lags: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the MSD of free motion at equilibrium with kT = 1, by the correlation c^m of the velocities."""
    c = math.exp(-friction * h)
    found = []
    for n in lags.tolist():
        m = np.arange(1, n)
        found.append(h**2 / 4 * (n * (2 + 2 * c) + 2 * ((n - m) * c ** (m - 1.0)).sum() * (1 + c) ** 2))
    return np.array(found)


def test_free_motion_is_ballistic_and_then_diffusive(tmp_path: Path) -> None:
    h, friction, n = 0.1, 1.0, 40_000
    module = Quadratic([0.0], n, 400, lr=h, kT=KT, scheme="symplectic", friction=friction)
    monitor = AgingMonitor(LogTimeSchedule([100], [1, 3, 10, 30, 100, 300]), summary=False)
    optimizer = trained(tmp_path, module, monitor)  # at step 100 the velocities have forgotten their start
    record, lags = monitor.record, monitor.record.lags
    exact = KT * free_displacement(h, friction, lags)
    z = (record.msd()[0] / exact - 1) / math.sqrt(2 / n)
    assert np.abs(z).max() < 4, z
    assert exact[0] == pytest.approx(KT * h**2, rel=0.06)  # ballistic
    diffusive = h**2 * KT * lags / math.tanh(friction * h / 2)
    assert exact[-1] == pytest.approx(diffusive[-1], rel=0.05)
    far = free_displacement(h, friction, np.array([2000, 4000]))
    assert KT * (far[1] - far[0]) == pytest.approx(h**2 * KT * 2000 / math.tanh(friction * h / 2), rel=1e-9)
    velocity, kinetic = optimizer.state[module.w]["velocity"], np.array([KT])
    assert np.abs(z_of_mean(velocity**2, kinetic, 2 * kinetic**2)).max() < 4


# ---------------------------------------------------------------------- the same bits


class Warm(SmallNet):
    """The small network, at a temperature. It has dropout and shuffled data, which draw random numbers."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options: dict[str, Any] = {"lr": 0.05, "kT": 1e-3} | options

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return Langevin(self.parameters(), **self.options)


SCHEMES: list[dict[str, Any]] = [{}, {"scheme": "symplectic", "friction": 2.0}]


@pytest.mark.parametrize("options", SCHEMES, ids=["euler", "symplectic"])
def test_a_resumed_training_has_the_same_bits(options: dict[str, Any], tmp_path: Path) -> None:
    def module() -> Warm:
        torch.manual_seed(0)
        return Warm(**options)

    whole = module()
    quiet_trainer(tmp_path, max_epochs=4, max_steps=-1).fit(whole, data(shuffle=False))
    torch.manual_seed(0)
    first = module()
    trainer = quiet_trainer(tmp_path, max_epochs=2, max_steps=-1)
    trainer.fit(first, data(shuffle=False))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)["optimizer_states"][0]
    assert [(one["device"], one["state"].dtype) for one in saved["noise"]] == [("cpu", torch.uint8)]
    random = torch.get_rng_state()  # dropout goes on, too
    second = Warm(**options)
    torch.set_rng_state(random)
    trainer = quiet_trainer(tmp_path, max_epochs=4, max_steps=-1)
    trainer.fit(second, data(shuffle=False), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert trainer.global_step == 48
    for one, other, start in zip(whole.parameters(), second.parameters(), first.parameters(), strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, start)


def test_global_random_numbers_are_untouched(tmp_path: Path) -> None:
    after = []
    for kT in (0.0, 1e-3):
        torch.manual_seed(4)
        module = Warm(kT=kT)
        quiet_trainer(tmp_path, max_steps=30).fit(module, data())
        after.append((torch.get_rng_state(), next(module.parameters()).detach().clone()))
    assert torch.equal(after[0][0], after[1][0])
    assert not torch.equal(after[0][1], after[1][1])


def test_without_temperature_euler_is_sgd_to_the_bit(tmp_path: Path) -> None:
    class Plain(SmallNet):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05, weight_decay=0.01)

    weights = []
    for make in (Plain, lambda: Warm(kT=0, weight_decay=0.01)):
        torch.manual_seed(4)
        module = make()
        quiet_trainer(tmp_path, max_steps=30).fit(module, data())
        weights.append(next(module.parameters()).detach())
    assert torch.equal(*weights)


def clone(weights: list[nn.Parameter], optimizer: Langevin) -> tuple[list[nn.Parameter], Langevin]:
    """Copy an optimiser onto copies of its weights."""
    others = [nn.Parameter(w.detach().clone()) for w in weights]
    memo: dict[int, Any] = {id(w): other for w, other in zip(weights, others, strict=True)}
    return others, copy.deepcopy(optimizer, memo)


@pytest.mark.parametrize("options", SCHEMES, ids=["euler", "symplectic"])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_copied_optimiser_draws_the_same_noise(steps: int, options: dict[str, Any]) -> None:
    def train(weights: list[nn.Parameter], optimizer: Langevin, n: int) -> None:
        for _ in range(n):
            for w in weights:
                w.grad = 2 * w.detach()
            optimizer.step()

    weights = [nn.Parameter(torch.ones(5, dtype=torch.float64)), nn.Parameter(torch.ones(2, 3))]
    optimizer = Langevin(weights, lr=0.1, kT=1.0, **options)
    train(weights, optimizer, steps)
    others, copied = clone(weights, optimizer)
    assert [w for group in copied.param_groups for w in group["params"]] == others
    assert set(copied.state) == (set(others) if optimizer.state else set())
    whole = copy.deepcopy(optimizer)  # with weights of its own, that nobody else holds
    train(others, copied, 4)  # the copy does not move the stream of the original
    train(weights, optimizer, 2)
    train(whole.param_groups[0]["params"], whole, 4)
    train(weights, optimizer, 2)
    for one, other, third in zip(weights, others, whole.param_groups[0]["params"], strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, third)


def draw(**options: Any) -> Tensor:
    w = nn.Parameter(torch.zeros(1000))
    w.grad = torch.zeros(1000)
    Langevin([w], lr=0.5, kT=1.0, **options).step()
    return w.detach()


def test_seeds_decide_the_noise() -> None:
    assert torch.equal(draw(seed=1), draw(seed=1))
    correlation = torch.corrcoef(torch.stack([draw(seed=seed) for seed in range(4)])) - torch.eye(4)
    assert float(correlation.abs().max()) < 4 / math.sqrt(1000)


def test_a_state_before_its_next_step_is_the_state_that_was_loaded() -> None:
    optimizers = [Langevin([nn.Parameter(torch.zeros(3))], lr=0.1, kT=1.0, seed=seed) for seed in (1, 2)]
    (w,) = optimizers[0].param_groups[0]["params"]
    w.grad = torch.zeros(3)
    optimizers[0].step()
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    again = optimizers[1].state_dict()
    assert torch.equal(again["noise"][0]["state"], optimizers[0].state_dict()["noise"][0]["state"])
    optimizers[0].load_state_dict(Langevin([nn.Parameter(torch.zeros(3))], lr=0.1, kT=1.0).state_dict())
    assert optimizers[0].state_dict()["noise"] == []


def test_noise_of_another_kind_of_device_starts_anew_with_a_warning() -> None:
    w = nn.Parameter(torch.zeros(3))
    optimizer = Langevin([w], lr=0.5, kT=1.0, seed=1)
    state = optimizer.state_dict() | {"noise": [{"device": "cuda", "state": torch.zeros(16, dtype=torch.uint8)}]}
    optimizer.load_state_dict(state)
    w.grad = torch.zeros(3)
    with pytest.warns(UserWarning, match="drawn on 'cuda' and cannot go on on 'cpu'"):
        optimizer.step()


@pytest.mark.cuda
def test_cuda_draws_on_the_device_without_waiting() -> None:
    w = nn.Parameter(torch.zeros(100_000, device="cuda"))
    optimizer = Langevin([w], lr=0.5, kT=KT, seed=1)
    w.grad = torch.zeros_like(w)
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert float(w.detach().var()) == pytest.approx(2 * KT, rel=4 * math.sqrt(2 / 100_000))
    (other,), copied = clone([w], optimizer)
    for one, its in ((w, optimizer), (other, copied)):
        one.grad = torch.zeros_like(one)
        its.step()
    assert torch.equal(w, other)


# ---------------------------------------------------------------------- use


def test_groups_and_schedulers_have_temperatures_of_their_own() -> None:
    weights = [nn.Parameter(torch.zeros(50_000)) for _ in range(3)]
    optimizer = Langevin([{"params": weights[:1]}, {"params": weights[1:], "kT": 0.5}], lr=1.0, kT=0.1)
    for w in weights[:2]:  # the third has no gradient
        w.grad = torch.zeros_like(w)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0 if n == 0 else 0.0)
    optimizer.step()
    for w, kT in zip(weights, (0.1, 0.5, 0.0), strict=True):
        assert float(w.detach().var()) == pytest.approx(2 * kT, rel=4 * math.sqrt(2 / 50_000))
    before = weights[1].detach().clone()
    scheduler.step()
    optimizer.step()
    assert torch.equal(weights[1], before)
    optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["kT"] = 1.0, 0.0
    before = weights[0].detach().clone()
    optimizer.step()
    assert torch.equal(weights[0], before)


def test_a_closure_is_called_with_gradients() -> None:
    w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = Langevin([w], lr=0.1, kT=0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert w.tolist() == pytest.approx([0.8, 0.8])
    assert optimizer.step() is None


@pytest.mark.parametrize("options", SCHEMES, ids=["euler", "symplectic"])
def test_the_record_names_the_optimiser_and_its_temperature(options: dict[str, Any], tmp_path: Path) -> None:
    monitor = AgingMonitor(summary=False)
    quiet_trainer(tmp_path, callbacks=[monitor], max_steps=30).fit(Warm(**options), data())
    ((entry,),) = (monitor.record.meta["optimizers"],)
    (group,) = entry["parameter_groups"]
    assert entry["name"] == "Langevin"
    assert group["kT"] == 1e-3
    assert group["scheme"] == options.get("scheme", "euler")
    assert group["friction"] == options.get("friction")
    assert set(monitor.record.one_time("learning_rate")[1].tolist()) == {0.05}
    assert np.isfinite(monitor.record.msd()).any()


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"kT": -1.0}, ValueError, r"kT=-1.0 must be finite and not negative: .* kT=1e-4"),
        ({"kT": math.nan}, ValueError, "kT=nan must be finite"),
        ({"kT": "hot"}, TypeError, "kT='hot' must be a number"),
        ({"lr": 0.0}, ValueError, "lr=0 makes no step"),
        ({"lr": torch.tensor(0.1)}, TypeError, r"lr=tensor\(0.1000\) must be a number"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay=-0.1 must be"),
        ({"scheme": "heun"}, ValueError, "scheme='heun' is not one of 'euler', 'symplectic'"),
        ({"friction": 1.0}, ValueError, "friction=1.0: scheme='euler' has none. Leave it out"),
        ({"scheme": "symplectic"}, TypeError, "friction=None must be a number: scheme='symplectic' needs it"),
        ({"scheme": "symplectic", "friction": 0.0}, ValueError, "friction=0 with kT=0.1: without friction"),
        ({"seed": 1.5}, TypeError, "seed=1.5 must be an integer"),
        ({"seed": -1}, ValueError, "seed=-1 must be between 0"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Langevin([nn.Parameter(torch.zeros(2))], **({"lr": 0.1, "kT": 0.1} | options))


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        (torch.bfloat16, r"shape \(2,\) has torch.bfloat16 weights, .* precision='bf16-mixed'"),
        (torch.float16, "torch.float16 weights"),
        (torch.complex64, "complex weights .* torch.view_as_complex"),
    ],
)
def test_weights_of_other_types_are_refused(dtype: torch.dtype, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Langevin([nn.Parameter(torch.zeros(2, dtype=dtype))], lr=0.1, kT=0.1)


def test_16_bit_training_and_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision='bf16-mixed' instead of 'bf16-true'"):
        quiet_trainer(tmp_path, precision="bf16-true").fit(Warm(), data())
    quiet_trainer(tmp_path, precision="bf16-mixed", max_steps=2).fit(Warm(), data())
    shard = nn.Parameter(torch.zeros(2))
    shard._fsdp_flattened = True  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"is a shard .* use a single device, or strategy='ddp'"):
        Langevin([shard], lr=0.1, kT=0.1)


def test_a_refused_group_is_not_added() -> None:
    optimizer = Langevin([nn.Parameter(torch.zeros(2))], lr=0.1, kT=0.1)
    with pytest.raises(ValueError, match="kT=-1"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "kT": -1})
    assert len(optimizer.param_groups) == 1


def test_what_cannot_be_stepped_is_refused() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = Langevin(table.parameters(), lr=0.1, kT=0.1)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"shape \(4, 2\) is sparse, .* sparse=False"):
        optimizer.step()
    optimizer.param_groups[0]["kT"] = -1.0
    with pytest.raises(ValueError, match=r"lr=0.1, kT=-1.0 of a param group must not be negative"):
        optimizer.step()
    w = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="not the state of a Langevin optimiser: load the weights"):
        Langevin([w], lr=0.1, kT=0.1).load_state_dict(torch.optim.SGD([w], lr=0.1).state_dict())
    optimizer = Langevin([w], lr=0.1, kT=0.1, scheme="symplectic", friction=1.0)
    optimizer.param_groups[0]["friction"] = -1.0
    with pytest.raises(ValueError, match=r"friction=-1.0 of a param group must not be negative"):
        optimizer.step()

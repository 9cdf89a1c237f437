"""Curvature against known spectra, against dense matrices, and in units of its own error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from scipy.stats import chi2
from torch import Tensor, nn

from lightning_glassy.curvature import CurvatureOperator, GaussNewtonOperator, HessianOperator, measure_spectrum
from tests.helpers import SmallNet, data

N = 3000
ENDS = np.array([40.0, 25.0, 15.0, 9.0, 6.0, -1.0, -1.3, -1.8, -2.5, -3.5])


def glassy_spectrum() -> np.ndarray:
    """Return a spectrum with outliers at both ends of a bulk, and two thirds of all directions exactly flat."""
    bulk = np.random.default_rng(5).uniform(-0.5, 1.5, N // 3 - len(ENDS))
    return np.sort(np.concatenate([ENDS, bulk[np.abs(bulk) > 0.2], np.zeros(N)])[:N])


def quadratic(spectrum: np.ndarray, dtype: torch.dtype = torch.float64) -> HessianOperator:
    """Return a quadratic loss of known curvature. Its axes are turned away from the axes of the weights."""
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(len(spectrum), generator=generator, dtype=dtype).requires_grad_()
    mirror = nn.functional.normalize(torch.randn(len(spectrum), generator=generator, dtype=dtype), dim=0)
    values = torch.as_tensor(spectrum, dtype=dtype)
    # The loss is the mean of two batches.
    batches = [torch.full((1, 1), 0.5, dtype=dtype), torch.full((3, 1), 3.5 / 3, dtype=dtype)]
    return HessianOperator(lambda b: b.mean() * (values * (w - 2 * mirror * (mirror @ w)) ** 2).sum() / 2, [w], batches)


def smooth(spectrum: np.ndarray, grid: np.ndarray, width: float) -> np.ndarray:
    return np.exp(-(((grid[:, None] - spectrum) / width) ** 2) / 2).mean(axis=1) / (width * np.sqrt(2 * np.pi))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_ends_of_a_known_spectrum_are_recovered(dtype: torch.dtype) -> None:
    operator = quadratic(glassy_spectrum(), dtype)
    spectrum = measure_spectrum(operator)
    np.testing.assert_allclose(spectrum.leading, ENDS[:5], rtol=1e-4)
    np.testing.assert_allclose(spectrum.lowest, ENDS[:4:-1], rtol=1e-4)
    assert spectrum.n_products == operator.n_products <= 400
    assert not spectrum.exact
    # A residual is an upper bound for the distance to an eigenvalue.
    slack = spectrum.residuals + (1e-10 if dtype == torch.float64 else 1e-4)
    assert (np.abs(spectrum.eigenvalues - np.sort(ENDS)) <= slack).all()


def test_estimates_of_a_known_spectrum_are_within_three_errors_of_it() -> None:
    truth = glassy_spectrum()
    for seed in range(12):
        spectrum = measure_spectrum(quadratic(truth), eps=0.1, seed=seed)
        for estimate, exact in [
            (spectrum.trace, truth.sum()),
            (spectrum.flat_fraction, (np.abs(truth) < 0.1).mean()),
            (spectrum.index, (truth < -0.1).mean()),
        ]:
            assert abs(estimate.value - exact) < 3 * estimate.error
        # The errors cover the truth, and they are also small.
        assert spectrum.flat_fraction.error < 0.02
        assert spectrum.index.error < 0.02
        grid, density, error = spectrum.density(np.linspace(-1, 2, 25), width=0.1)
        assert (np.abs(density - smooth(truth, grid, 0.1)) < 3 * error + 1e-6 * density.max()).all()


def test_the_error_of_a_trace_is_its_scatter() -> None:
    truth = np.random.default_rng(5).uniform(-1, 2, 500)
    z = []
    for seed in range(60):
        spectrum = measure_spectrum(
            quadratic(truth), n_eigenvalues=1, n_probes=2, n_nodes=20, max_products=150, seed=seed
        )
        z.append((spectrum.trace.value - truth.sum()) / spectrum.trace.error)
    p = chi2.sf(np.square(z).sum(), len(z))
    assert 1e-3 < p < 1 - 1e-3


def test_a_density_that_is_resolved_integrates_to_one() -> None:
    spectrum = measure_spectrum(quadratic(glassy_spectrum()))
    grid, density, _ = spectrum.density(np.linspace(-10, 50, 6001), width=0.1)
    assert trapezoid(density, grid) == pytest.approx(1, abs=1e-9)
    # By default the grid spans the bulk: all eigenvalues but the ten known ones.
    grid, density, _ = spectrum.density()
    assert trapezoid(density, grid) == pytest.approx(1 - len(ENDS) / N, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_few_parameters_give_the_exact_spectrum(dtype: torch.dtype) -> None:
    truth = np.sort(np.concatenate([ENDS, np.linspace(-0.5, 0.5, 90), np.zeros(100)]))
    spectrum = measure_spectrum(quadratic(truth, dtype), eps=1e-3)
    assert spectrum.exact
    assert spectrum.n_products == len(truth)
    np.testing.assert_allclose(spectrum.eigenvalues, truth, atol=1e-4 if dtype == torch.float32 else 1e-12)
    assert spectrum.flat_fraction == ((np.abs(truth) < 1e-3).mean(), 0)
    assert spectrum.index == ((truth < -1e-3).mean(), 0)
    assert replace(spectrum, eps=0.2).index == ((truth < -0.2).mean(), 0)
    assert spectrum.trace.error == 0
    assert spectrum.trace.value == pytest.approx(truth.sum(), rel=1e-4)
    grid, density, error = spectrum.density(width=0.1)
    np.testing.assert_allclose(density, smooth(truth, grid, 0.1), atol=1e-3)
    assert not error.any()


@pytest.mark.parametrize("max_products", [282, 350])
def test_no_more_products_are_made_than_allowed_and_nothing_wrong_is_claimed(max_products: int) -> None:
    """An even spectrum has ends that are too dense for so few products to resolve."""
    truth = np.linspace(-1, 2, N)
    for seed in range(6):
        operator, passes = quadratic(truth), []
        loss = operator._loss
        operator._loss = lambda batch, loss=loss, passes=passes: (passes.append(1), loss(batch))[1]
        spectrum = measure_spectrum(operator, max_products=max_products, seed=seed)
        assert len(passes) / 2 == spectrum.n_products <= max_products  # two batches
        for found, true in [(spectrum.leading, truth[::-1]), (spectrum.lowest, truth)]:
            np.testing.assert_allclose(found, true[: len(found)], atol=3e-3)
        low, high = spectrum.bounds
        assert -1 - 1e-9 <= low < -0.9
        assert 1.9 < high <= 2 + 1e-9
        assert len(spectrum.leading) < 5
        if not len(spectrum.leading):
            assert f"leading: at least {high:.4g} (did not converge)" in str(spectrum)


def test_what_the_quadrature_does_not_resolve_is_in_the_error() -> None:
    """Put a threshold in the middle of an even spectrum. There a few nodes change the result by a few percent."""
    truth = np.linspace(-1, 2, N)
    for seed in range(3):
        for eps in (0.03, 0.1, 0.3):
            spectrum = measure_spectrum(quadratic(truth), eps=eps, seed=seed)
            for estimate, exact in [
                (spectrum.flat_fraction, (np.abs(truth) < eps).mean()),
                (spectrum.index, (truth < -eps).mean()),
            ]:
                assert abs(estimate.value - exact) < 3 * estimate.error
                assert estimate.error < 0.04


def test_of_a_degenerate_end_only_what_is_certain_is_claimed() -> None:
    """With fewer samples than weights, all but 30 directions are flat, and ARPACK sees few of the zeros."""
    truth = np.concatenate([np.linspace(0.5, 2, 30), np.zeros(N - 30)])
    spectrum = measure_spectrum(quadratic(truth))
    assert len(spectrum.lowest) >= 1
    np.testing.assert_allclose(spectrum.lowest, 0, atol=1e-6)
    assert abs(spectrum.flat_fraction.value - 0.99) < 3 * spectrum.flat_fraction.error


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_multiple_of_the_unit_matrix_is_no_special_case(value: float) -> None:
    spectrum = measure_spectrum(quadratic(np.full(N, value)))
    assert spectrum.trace.value == pytest.approx(N * value)
    assert spectrum.flat_fraction.value == pytest.approx(float(value == 0))
    grid, density, _ = spectrum.density()
    assert grid[density.argmax()] == pytest.approx(value, abs=0.1)


def net(dtype: torch.dtype, outputs: int = 3) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs)).to(dtype)


def samples(dtype: torch.dtype, n: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(n, 4, generator=generator).to(dtype), torch.randint(3, (n,), generator=generator)


def squares(outputs: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    return nn.functional.mse_loss(outputs, nn.functional.one_hot(labels, 3).to(outputs), reduction=reduction)


LOSSES = pytest.mark.parametrize("criterion", [squares, nn.functional.cross_entropy])
DTYPES = pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
Criterion = Callable[..., Tensor]


def matrix(operator: CurvatureOperator) -> np.ndarray:
    return np.array([operator.product(row) for row in np.eye(operator.n_parameters)])


def functional(module: nn.Module) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
    """Return the module as a function of its weights in one vector, and this vector."""
    names, shapes = zip(*((name, p.shape) for name, p in module.named_parameters()), strict=True)

    def call(flat: Tensor, x: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        weights = {name: part.view(shape) for name, shape, part in zip(names, shapes, parts, strict=True)}
        return torch.func.functional_call(module, weights, x)

    return call, torch.cat([p.detach().flatten() for p in module.parameters()])


@LOSSES
@DTYPES
def test_the_hessian_of_a_net_is_that_of_torch_func(criterion: Criterion, dtype: torch.dtype, accuracy: float) -> None:
    module, (x, y) = net(dtype), samples(dtype)
    call, flat = functional(module)
    dense = torch.func.hessian(lambda w: criterion(call(w, x), y))(flat).numpy()
    operator = HessianOperator(lambda batch: criterion(module(batch[0]), batch[1]), module, [(x, y)])
    np.testing.assert_allclose(matrix(operator), dense, atol=accuracy)
    values = np.linalg.eigvalsh(dense)
    spectrum = measure_spectrum(operator, eps=1e-4)
    np.testing.assert_allclose(spectrum.eigenvalues, values, atol=accuracy)
    assert values[0] < -1e-4  # not convex
    assert spectrum.index == ((values < -1e-4).mean(), 0)


@LOSSES
@DTYPES
def test_gauss_newton_leaves_out_the_curvature_of_the_outputs(
    criterion: Criterion, dtype: torch.dtype, accuracy: float
) -> None:
    module, (x, y) = net(dtype), samples(dtype)
    call, flat = functional(module)
    jacobian = torch.func.jacrev(lambda w: call(w, x).flatten())(flat)
    outer = torch.func.hessian(lambda f: criterion(f.view(-1, 3), y))(call(flat, x).flatten())
    operator = GaussNewtonOperator(
        lambda batch: module(batch[0]), lambda outputs, batch: criterion(outputs, batch[1]), module, [(x, y)]
    )
    np.testing.assert_allclose(matrix(operator), (jacobian.T @ outer @ jacobian).detach().numpy(), atol=accuracy)
    assert measure_spectrum(operator, eps=1e-4).index == (0, 0)


@LOSSES
def test_gauss_newton_of_a_linear_model_is_its_hessian(criterion: Criterion) -> None:
    module, batch = nn.Linear(4, 3).double(), samples(torch.float64)
    hessian = HessianOperator(lambda b: criterion(module(b[0]), b[1]), module, [batch])
    gauss_newton = GaussNewtonOperator(lambda b: module(b[0]), lambda f, b: criterion(f, b[1]), module, [batch])
    np.testing.assert_allclose(matrix(gauss_newton), matrix(hessian), atol=1e-14)


@LOSSES
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("form", [list, dict])
def test_uneven_batches_are_one_large_batch(criterion: Criterion, reduction: Any, form: type) -> None:
    module, (x, y) = net(torch.float64), samples(torch.float64)

    def batches(*sizes: int) -> list[Any]:
        pairs = zip(x.split(sizes), y.split(sizes), strict=True)
        return [dict(zip((0, 1), pair, strict=True)) if form is dict else list(pair) for pair in pairs]

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        return criterion(outputs, batch[1], reduction=reduction)

    def outputs(batch: Any) -> Tensor:
        return module(batch[0])

    def both(data: list[Any]) -> list[np.ndarray]:
        hessian = HessianOperator(lambda batch: loss(outputs(batch), batch), module, data, reduction=reduction)
        return [matrix(o) for o in (hessian, GaussNewtonOperator(outputs, loss, module, data, reduction=reduction))]

    for whole, parts in zip(both(batches(20)), both(batches(9, 8, 3)), strict=True):
        np.testing.assert_allclose(parts, whole, atol=1e-13)


def test_nothing_of_the_training_is_touched() -> None:
    """Random numbers, gradients and weights stay the same, and so does dropout in each product."""
    module, loader = SmallNet(), data(10, batch_size=4, shuffle=True)
    module.training_step(next(iter(loader)), 0).backward()
    before = [(p.detach().clone(), p.grad.clone()) for p in module.parameters()]
    random, np_random = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    with torch.no_grad():
        operator = HessianOperator(lambda batch: module.training_step(batch, 0), module, loader)
        dense = matrix(operator)
        measure_spectrum(operator, n_eigenvalues=1, n_probes=1, n_nodes=10, max_products=100)
    assert torch.equal(torch.get_rng_state(), random)
    assert np.array_equal(np.random.get_state()[1], np_random)  # noqa: NPY002
    assert all(
        torch.equal(p, w) and torch.equal(p.grad, g) for p, (w, g) in zip(module.parameters(), before, strict=True)
    )
    assert np.array_equal(matrix(operator), dense)
    np.testing.assert_allclose(dense, dense.T, atol=1e-6)
    module.eval()
    assert np.abs(matrix(operator) - dense).max() > 1e-3  # there was dropout


def test_the_same_seed_gives_the_same_spectrum() -> None:
    first, again, other = (measure_spectrum(quadratic(glassy_spectrum()), seed=seed) for seed in (4, 4, 5))
    assert str(first) == str(again)
    np.testing.assert_array_equal(first.diagonals, again.diagonals)
    assert first.trace != other.trace


def test_tied_parameters_count_once_and_frozen_ones_not() -> None:
    module, (x, _) = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)).double(), samples(torch.float64)
    module[1].weight = module[0].weight
    module[2].requires_grad_(False)
    operator = HessianOperator(lambda b: module(b).square().mean(), module, [x])
    listed = [module[0].weight, module[0].bias, module[1].weight, module[1].bias, module[2].weight]
    again = HessianOperator(lambda b: module(b).square().mean(), listed, [x])
    assert operator.n_parameters == again.n_parameters == 16 + 4 + 4

    def loss(flat: Tensor) -> Tensor:
        tied, first, second = flat[:16].view(4, 4), flat[16:20], flat[20:]
        return module[2](nn.functional.linear(nn.functional.linear(x, tied, first), tied, second)).square().mean()

    flat = torch.cat([p.detach().flatten() for p in (module[0].weight, module[0].bias, module[1].bias)])
    dense = torch.func.hessian(loss)(flat).detach().numpy()
    np.testing.assert_allclose(matrix(operator), dense, atol=1e-13)
    np.testing.assert_allclose(matrix(again), dense, atol=1e-13)


def test_two_parameters_in_one_memory_are_refused() -> None:
    weight = torch.ones(3, 2)
    for other in (weight.t(), weight[1:]):
        with pytest.raises(ValueError, match="two objects that share memory"):
            HessianOperator(lambda b: b, [nn.Parameter(weight), nn.Parameter(other)], [torch.ones(1)])


def test_a_parameter_that_the_loss_does_not_know_is_flat() -> None:
    used, unused = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    operator = HessianOperator(lambda b: (b * used**2).sum(), [used, unused], [torch.ones(1, 3)])
    assert measure_spectrum(operator).eigenvalues.tolist() == [0, 0, 2, 2, 2]
    linear = HessianOperator(lambda b: (b * used).sum(), [used], [torch.ones(1, 3)])
    assert measure_spectrum(linear).eigenvalues.tolist() == [0, 0, 0]


def test_attention_has_a_curvature() -> None:
    """The fused kernels have no second derivative."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(4, 2, batch_first=True)
    operator = HessianOperator(
        lambda b: layer(b, b, b, need_weights=False)[0].square().mean(), layer, [torch.randn(2, 5, 4)]
    )
    dense = matrix(operator)
    assert np.abs(dense).max() > 0
    np.testing.assert_allclose(dense, dense.T, atol=1e-6)


def test_the_result_prints_readably() -> None:
    lines = str(measure_spectrum(quadratic(glassy_spectrum()))).splitlines()
    assert lines[0].startswith("curvature of 3,000 parameters (2 probes, ")
    assert lines[1] == "  leading: 40, 25, 15, 9, 6"
    assert lines[2] == "  lowest: -3.5, -2.5, -1.8, -1.3, -1"
    assert all(" +- " in line for line in lines[3:])
    small = str(measure_spectrum(quadratic(ENDS), eps=0.5)).splitlines()
    assert small[0] == "curvature of 10 parameters (exact, 10 products)"
    assert small[3:] == ["  trace: 84.9", "  flat, |lambda| < 0.5: 0", "  index, lambda < -0.5: 0.5"]


def test_weights_that_have_diverged_are_said_to_be_so() -> None:
    w = torch.tensor([1.0, torch.inf], requires_grad=True)
    with pytest.raises(FloatingPointError, match="may have diverged"):
        measure_spectrum(HessianOperator(lambda b: (b * w**3).sum(), [w], [torch.ones(1, 2)]))


ONE = torch.ones(1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0}, "eps=0 must be positive"),
        ({"tol": -1}, "tol=-1 must be positive"),
        ({"n_probes": 0}, "n_probes=0 must be at least 1"),
        ({"n_nodes": 3}, "n_nodes=3 must be at least 4"),
        ({"max_products": 281}, "max_products=281 does not suffice .* allow 282"),
    ],
)
def test_bad_input_to_a_spectrum_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_spectrum(quadratic(glassy_spectrum()), **options)


def test_bad_input_to_an_operator_is_refused() -> None:
    w = torch.ones(2, requires_grad=True)

    def hessian(
        loss: Any = lambda b: (b * w**2).sum(), parameters: Any = (w,), batches: Any = (ONE,), **options: Any
    ) -> None:
        HessianOperator(loss, parameters, batches, **options).product(np.ones(2))

    for options, message in [
        ({"parameters": [w.detach()]}, "parameters has none that requires a gradient"),
        ({"parameters": [torch.ones(2, dtype=torch.complex64, requires_grad=True)]}, "complex, of shape"),
        ({"reduction": "median"}, "reduction='median' is not one of"),
        ({"batches": iter([ONE])}, "batches can be read only once"),
        ({"batches": []}, "batches is empty"),
        ({"batches": ["text"]}, "batches has a str without a tensor"),
        ({"loss": lambda b: b * w**2}, r"loss gave \(1, 2\): it must give a tensor with one element"),
        ({"loss": lambda b: None}, "loss gave NoneType"),
        ({"loss": lambda b: (b * w.detach()).sum()}, "loss gave a tensor without a gradient"),
    ]:
        with pytest.raises(ValueError, match=message):
            hessian(**options)
    with pytest.raises(ValueError, match=r"vector has the shape \(3,\): give one of shape \(2,\)"):
        HessianOperator(lambda b: (b * w**2).sum(), [w], [ONE]).product(np.ones(3))
    with pytest.raises(ValueError, match="outputs gave a tuple"):
        GaussNewtonOperator(lambda b: (w, w), lambda f, b: f[0].sum(), [w], [ONE]).product(np.ones(2))
    with pytest.raises(ValueError, match="width=0 must be positive"):
        measure_spectrum(quadratic(ENDS)).density(width=0)


def test_without_scipy_the_extra_is_named_and_the_exact_spectrum_still_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    assert measure_spectrum(quadratic(ENDS)).exact
    with pytest.raises(ImportError, match=r"pip install 'lightning-glassy\[curvature\]'"):
        measure_spectrum(quadratic(glassy_spectrum()))


@pytest.mark.cuda
def test_on_cuda_it_is_the_same_curvature_and_random_numbers_stay() -> None:
    module = SmallNet().cuda()
    batch = (torch.randn(10, 8).cuda(), torch.randint(3, (10,)).cuda())
    operator = HessianOperator(lambda b: module.training_step(b, 0), module, [batch])
    before = torch.cuda.get_rng_state()
    dense = matrix(operator)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    np.testing.assert_allclose(dense, dense.T, atol=1e-6)
    module.eval()
    on_gpu = matrix(operator)
    module.cpu()
    on_cpu = matrix(HessianOperator(lambda b: module.training_step(b, 0), module, [tuple(t.cpu() for t in batch)]))
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-5)

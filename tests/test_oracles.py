"""Reference systems with exact answers, trained by a real Trainer and measured by the callback.

Compare each measured point in units of its own exact sampling error, and all points of a run together by the chi^2 of
their exact covariance. A bias of a few errors would show, and so would a wrong error bar.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2

from lightning_glassy import AgingMonitor, AgingRecord, LogTimeSchedule
from lightning_glassy.glasses import BetaDescent, RandomWalk, SGDQuadratic, SubagingClock
from lightning_glassy.glasses.modules import (
    BetaDescentModule,
    GlassModule,
    RandomWalkModule,
    SGDQuadraticModule,
    SubagingClockModule,
)
from tests.helpers import quiet_trainer

N = 20_000


def train(module: GlassModule, tmp_path: Path, schedule: LogTimeSchedule | None = None) -> AgingRecord:
    monitor = AgingMonitor(schedule, sample=None, save=False, summary=False)
    quiet_trainer(tmp_path, callbacks=[monitor], max_steps=module.steps).fit(module)
    return monitor.record


def rows(record: AgingRecord, matrix: np.ndarray) -> np.ndarray:
    """Return the values of a matrix at the measured pairs."""
    waiting_times, lags = record.pairs
    return matrix[np.searchsorted(record.waiting_times, waiting_times), np.searchsorted(record.lags, lags)]


def assert_plausible(measured: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> None:
    """Check that |z| < 4 for each point, and that chi^2 of all points is neither too large nor too small."""
    z = (measured - mean) / np.sqrt(np.diag(covariance))
    assert np.abs(z).max() < 4, f"largest |z| = {np.abs(z).max():.1f}"
    # In units of the single errors, this is the spectrum of the correlation matrix. Directions in which the points
    # hardly vary carry no information, and would only amplify rounding.
    scale = np.sqrt(np.diag(covariance))
    values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    kept = values > 1e-4 * values.max()
    total = np.sum((vectors[:, kept].T @ z) ** 2 / values[kept])
    p = chi2.sf(total, kept.sum())
    assert 1e-4 < p < 1 - 1e-4, f"chi^2 = {total:.1f} for {kept.sum()} degrees of freedom"


SYSTEMS = [
    pytest.param(RandomWalkModule, RandomWalk(sigma=0.3), id="random walk"),
    pytest.param(
        SGDQuadraticModule, SGDQuadratic(0.05, curvature=0.4, noise=1.5, initial_variance=2.0), id="quadratic SGD"
    ),
    pytest.param(
        SGDQuadraticModule,
        SGDQuadratic(0.02, curvature=0.4, noise=1.5, momentum=0.9, initial_variance=2.0),
        id="quadratic SGD with momentum",
    ),
    pytest.param(SubagingClockModule, SubagingClock(mu=0.6, kappa=0.3), id="subaging clock"),
    pytest.param(SubagingClockModule, SubagingClock(mu=1.0, kappa=0.3), id="full aging clock"),
]


@pytest.mark.parametrize(("module", "glass"), SYSTEMS)
def test_gaussian_systems_have_their_exact_msd_and_correlation(module, glass, tmp_path: Path) -> None:
    first = 1 if isinstance(glass, SubagingClock) and glass.mu == 1 else 0
    schedule = LogTimeSchedule.logspaced(1000, lags_per_decade=6, zero=first == 0)
    record = train(module(glass, N, 1000, seed=1), tmp_path, schedule)
    waiting_times, lags = record.pairs
    assert len(lags) > 100
    exact, covariance = glass.msd(waiting_times, lags), glass.msd_covariance(waiting_times, lags, N)
    assert_plausible(rows(record, record.msd()), exact, covariance)
    # A walk from 0 has no raw correlation with the waiting time 0.
    some = glass.covariance(waiting_times, waiting_times) > 0
    correlation = glass.covariance(waiting_times, waiting_times + lags)
    errors = glass.correlation_covariance(waiting_times, lags, N)
    assert_plausible(rows(record, record.correlation())[some], correlation[some], errors[np.ix_(some, some)])
    # Displacements of a Gaussian process are Gaussian: N Var(alpha_2) = 24/9 to leading order.
    alpha = rows(record, record.non_gaussian())
    assert np.abs(alpha).max() < 4.5 * np.sqrt(24 / 9 / N)


def test_descent_into_flat_directions_has_its_exact_full_aging(tmp_path: Path) -> None:
    glass = BetaDescent(a=0.7, b=1.5, initial_variance=1.3)
    module = BetaDescentModule(glass, N, 1000, seed=2)
    u, w = module.factors.double().numpy(), module.w.detach().double().numpy()
    record = train(module, tmp_path, LogTimeSchedule.logspaced(1000, lags_per_decade=6))
    waiting_times, lags = record.pairs
    measured = rows(record, record.msd())
    # Compare with the ensemble, within its sampling error.
    assert_plausible(measured, glass.msd(waiting_times, lags), glass.msd_covariance(waiting_times, lags, N))
    # Compare with this realisation, which is deterministic, to the rounding of the float32 training.
    own = [
        np.mean(w**2 * (u**i - u ** (i + t)) ** 2) for i, t in zip(waiting_times.tolist(), lags.tolist(), strict=True)
    ]
    assert np.allclose(measured, own, rtol=2e-4)
    # In full aging, late cosine overlaps depend on the ratio of the two times alone.
    cosine = glass.covariance(500, 1000) / np.sqrt(glass.covariance(500, 500) * glass.covariance(1000, 1000))
    assert cosine == pytest.approx((4 * 2 / 9) ** 0.35, rel=2e-3)


def test_the_test_would_see_a_bias_of_five_percent_of_one_and_wrong_error_bars(tmp_path: Path) -> None:
    glass = RandomWalk(sigma=0.3)
    record = train(RandomWalkModule(glass, N, 300, seed=1), tmp_path)
    waiting_times, lags = record.pairs
    measured, exact = rows(record, record.msd()), glass.msd(waiting_times, lags)
    covariance = glass.msd_covariance(waiting_times, lags, N)
    assert_plausible(measured, exact, covariance)
    for wrong, error in ((1.05 * measured, covariance), (measured, covariance / 4), (measured, covariance * 4)):
        with pytest.raises(AssertionError):
            assert_plausible(wrong, exact, error)


# ---------------------------------------------------------------------- the exact answers themselves


def simulate(step, n_steps: int, n: int, start: np.ndarray) -> np.ndarray:
    path = [start]
    for k in range(1, n_steps + 1):
        path.append(step(k, path[-1]))
    return np.stack(path)


def test_exact_answers_agree_with_a_plain_simulation() -> None:
    rng = np.random.default_rng(8)
    schedule = LogTimeSchedule.logspaced(200, lags_per_decade=4)
    clock = SubagingClock(mu=0.5, kappa=0.4)
    quadratic = SGDQuadratic(0.1, curvature=0.5, noise=1.0, initial_variance=1.0)

    def slow(k: int, w: np.ndarray) -> np.ndarray:
        a = clock.factor(k)
        return a * w + np.sqrt(1 - a * a) * rng.normal(size=len(w))

    def descend(k: int, w: np.ndarray) -> np.ndarray:
        return w - 0.1 * (0.5 * w + rng.normal(size=len(w)))

    for glass, step in ((clock, slow), (quadratic, descend)):
        record = AgingRecord.from_trajectory(simulate(step, 200, N, rng.normal(size=N)), schedule)
        waiting_times, lags = record.pairs
        exact, covariance = glass.msd(waiting_times, lags), glass.msd_covariance(waiting_times, lags, N)
        assert_plausible(rows(record, record.msd()), exact, covariance)


def test_closed_forms_of_the_quadratic_valley() -> None:
    eta, lam, sigma, start = 0.1, 0.5, 1.0, 3.0
    glass = SGDQuadratic(eta, lam, sigma, initial_variance=start)
    a, stationary = 1 - eta * lam, eta * sigma**2 / (lam * (2 - eta * lam))
    n, m = np.array([0, 1, 7, 40]), np.array([1, 3, 20, 0])
    variance = a ** (2 * n) * start + stationary * (1 - a ** (2 * n))
    assert np.allclose(glass.covariance(n, n + m), a**m * variance, rtol=1e-12)
    assert np.allclose(glass.msd(n, m), (1 - a**m) ** 2 * variance + stationary * (1 - a ** (2 * m)), rtol=1e-10)
    beta = 0.9
    heavy = SGDQuadratic(eta, lam, sigma, momentum=beta)
    stationary = eta * sigma**2 * (1 + beta) / (lam * (1 - beta) * (2 * (1 + beta) - eta * lam))
    assert float(heavy.covariance(3000, 3000)) == pytest.approx(stationary, rel=1e-9)


def test_the_slowing_clock_relaxes_where_its_formula_says() -> None:
    for mu in (0.0, 0.4, 1.0):
        glass = SubagingClock(mu=mu, kappa=0.2)
        lag = glass.lag_to_correlation(0.5, np.array([10.0, 1000.0]))
        start = np.array([10.0, 1000.0])
        assert np.allclose(np.exp(-(glass.clock(start + lag) - glass.clock(start))), 0.5, rtol=1e-9)
    for bad in ({"mu": 1.2, "kappa": 1.0}, {"mu": 0.5, "kappa": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            SubagingClock(**bad)


def test_moments_of_the_flat_directions() -> None:
    u = np.random.default_rng(4).beta(1.5, 0.7, size=400_000)
    glass = BetaDescent(a=0.7, b=1.5)
    for m in (1, 2, 10, 100):
        assert float(glass.moment(m)) == pytest.approx(np.mean(u**m), rel=5 * np.std(u**m) / np.mean(u**m) / 632)

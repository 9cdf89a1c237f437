"""The reference systems: their known numbers, their limits, and a glass in a Trainer beside its equations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import ive

from lightning_glassy import AgingMonitor, AgingRecord, LogTimeSchedule
from lightning_glassy.analysis import aging_exponent
from lightning_glassy.glasses import (
    BetaDescent,
    BouchaudTrap,
    FractionalBrownianMotion,
    LogClock,
    ScaledBrownianMotion,
    SGDQuadratic,
    SphericalP2,
    SphericalPSpin,
)
from lightning_glassy.glasses.modules import SphericalPSpinModule
from tests.helpers import quiet_trainer
from tests.test_oracles import assert_plausible, rows

# ---------------------------------------------------------------------- spherical p = 2


def test_spherical_p2_has_its_known_numbers() -> None:
    cold = SphericalP2(temperature=0.0)
    assert cold.correlation(10, 20) == pytest.approx(0.916188, abs=5e-7)
    assert np.allclose(cold.energy([1, 10]), [-0.658047, -0.962740], rtol=0, atol=5e-7)
    warm = SphericalP2(temperature=0.5)
    assert np.allclose(warm.correlation([10, 10, 40], [11, 20, 80]), [0.75473, 0.50930, 0.47904], rtol=0, atol=5e-6)
    assert np.allclose(warm.msd(10, [1, 10]), 2 * (1 - np.array([0.75473, 0.50930])), rtol=0, atol=1e-5)


def test_spherical_p2_is_a_ratio_of_bessel_functions_without_temperature() -> None:
    # I_1(2u)/u without its exponential, which cancels in the ratio.
    def k(u: np.ndarray) -> np.ndarray:
        return ive(1, 2 * u) / u

    s, t = np.array([0.01, 1.0, 30.0, 500.0])[:, None], np.array([0.02, 2.0, 40.0, 2000.0])
    assert np.allclose(SphericalP2().correlation(s, t), k(s + t) / np.sqrt(k(2 * s) * k(2 * t)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 0.99, 1.0, 1.01, 2.0])
def test_the_length_is_kept_which_is_the_equation_of_the_multiplier(temperature: float) -> None:
    times = np.array([0.0, 0.3, 10.0, 300.0])
    assert np.allclose(SphericalP2(temperature).correlation(times, times), 1.0, rtol=0, atol=1e-10)


def test_spherical_p2_ages_below_its_transition_and_equilibrates_above() -> None:
    # Below the transition, the correlation that remains after the fast decay to 1 - T depends on the ratio of the
    # times. It is the same for flat directions of a density with exponent 3/2, which is the edge of the semicircle.
    glass, ratio = SphericalP2(temperature=0.5), 4.0
    late = glass.correlation([1000, 4000], [ratio * 1000, ratio * 4000])
    assert np.allclose(late, 0.5 * (4 * ratio / (1 + ratio) ** 2) ** 0.75, rtol=3e-3)
    assert glass.correlation(10, 20) - glass.correlation(10, 40) > 0.1
    # Above the transition, nothing depends on the waiting time, and the energy is the energy of the paramagnet.
    glass = SphericalP2(temperature=2.0)
    assert glass.correlation(30, 31) == pytest.approx(float(glass.correlation(60, 61)), abs=1e-9)
    assert glass.energy(60) == pytest.approx(-1 / (2 * 2.0), abs=1e-9)


def test_a_projected_step_is_off_in_proportion_to_its_length() -> None:
    """A simulation, and the module below, may differ from the exact answer by this much: 0.008 at a step of 0.02."""

    def euler(step: float) -> float:
        angle = (np.arange(400) + 0.5) * np.pi / 400
        eigenvalue, weight = 2 * np.cos(angle), np.sin(angle) ** 2 / 200
        variance, covariance = np.ones(400), np.zeros(400)
        start, end = round(10 / step), round(11 / step)
        for n in range(end):
            if n == start:
                covariance = variance
            variance = (1 + step * eigenvalue) ** 2 * variance + 2 * 0.5 * step
            length = np.sqrt(weight @ variance)
            variance, covariance = variance / length**2, (1 + step * eigenvalue) * covariance / length
        return float(weight @ covariance)

    exact = float(SphericalP2(0.5).correlation(10, 11))
    coarse, fine = euler(0.02) - exact, euler(0.01) - exact
    assert coarse == pytest.approx(0.008, abs=5e-4)
    assert coarse / fine == pytest.approx(2, abs=0.1)


# ---------------------------------------------------------------------- spherical p-spin


def test_spherical_p3_has_its_known_numbers() -> None:
    solution = SphericalPSpin(p=3, temperature=0.0).solve(t_max=10, steps=1600)
    at = solution.index
    for s, t, known in ((1, 2, 0.935271), (5, 10, 0.904516), (2, 8, 0.745067)):
        assert solution.correlation[at(s), at(t)] == pytest.approx(known, abs=3e-6)
    assert np.allclose(solution.energy[at([1, 10])], [-0.782508, -1.081598], rtol=0, atol=3e-6)
    assert solution.msd(5, [3, 5])[1] == pytest.approx(2 * (1 - 0.904516), abs=6e-6)
    assert SphericalPSpin(p=3).threshold == pytest.approx(-1.154701, abs=5e-7)
    assert SphericalPSpin(p=3).transition == pytest.approx(0.612372, abs=5e-7)
    assert SphericalPSpin(p=2).transition == 1


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.5])
def test_the_equations_of_the_pspin_give_the_bessel_functions_at_p_2(temperature: float) -> None:
    solution, exact = SphericalPSpin(2, temperature).solve(t_max=4, steps=400), SphericalP2(temperature)
    some = slice(None, None, 20)
    times = solution.times[some]
    assert np.allclose(solution.correlation[some, some], exact.correlation(times[:, None], times), rtol=0, atol=2e-5)
    assert np.allclose(solution.energy[some], exact.energy(times), rtol=0, atol=2e-5)


@pytest.mark.parametrize("p", [3, 4])
def test_without_a_glass_the_pspin_relaxes_to_equilibrium(p: int) -> None:
    temperature = 1.5
    solution = SphericalPSpin(p, temperature).solve(t_max=12, steps=720)
    assert solution.energy[-1] == pytest.approx(-1 / (2 * temperature), abs=1e-4)
    # There is no aging, and the fluctuation-dissipation theorem holds: R = -dC/dt / T.
    at = solution.index
    assert solution.correlation[at(8), at(9)] == pytest.approx(solution.correlation[at(11), at(12)], abs=1e-4)
    slope = np.gradient(solution.correlation[at(8)], solution.times)
    late = slice(at(8.3), at(11))
    assert np.allclose(solution.response[late, at(8)], -slope[late] / temperature, rtol=0, atol=2e-3)


def test_after_a_quench_the_p3_glass_ages_and_its_energy_goes_to_the_threshold() -> None:
    glass = SphericalPSpin(p=3, temperature=0.0)
    solution = glass.solve(t_max=20, steps=800)
    displacement = solution.msd([2, 4, 8], 8)
    assert (np.diff(displacement) < 0).all()
    assert displacement[0] > 2 * displacement[-1]
    late = solution.times >= 10
    limit = np.polynomial.Polynomial.fit(solution.times[late] ** (-2 / 3), solution.energy[late], 1)(0)
    assert limit == pytest.approx(glass.threshold, rel=5e-3)
    assert (solution.energy > glass.threshold).all()


@pytest.mark.parametrize("p", [3, 4, 6])
def test_the_ground_state_is_that_of_the_replica_method(p: int) -> None:
    """Compare with one step of replica symmetry breaking at T -> 0, with 1 - q = chi T and m = y T."""
    r = brentq(lambda r: r**2 / (p * (1 + r)) + r / (1 + r) - np.log1p(r), 0.5, 100)
    chi = np.sqrt(2 / (p * (1 + r)))
    y = r * chi
    assert SphericalPSpin(p).ground_state == pytest.approx(-(p * chi + y) / 4 - np.log1p(r) / (2 * y), abs=1e-9)
    assert SphericalPSpin(2).ground_state == SphericalPSpin(2).threshold


def test_the_plateau_is_where_the_equations_linger() -> None:
    glass = SphericalPSpin(3, temperature=0.3)
    q = glass.plateau
    assert q == pytest.approx(0.807219, abs=5e-7)
    # The final energy follows from q and from the violation of the fluctuation-dissipation theorem below q. Here the
    # violation is (1 - q)/q. The energy depends on q four times as much.
    solution = glass.solve(t_max=20, steps=800)
    late = solution.times >= 8
    limit = np.polynomial.Polynomial.fit(solution.times[late] ** (-2 / 3), solution.energy[late], 1)(0)
    assert limit == pytest.approx(-(1 - q**3 + (1 - q) / q * q**3) / (2 * 0.3), rel=2e-3)
    # A curve stays near the plateau for longer at later waiting times.
    slowest = []
    for waiting_time in (2, 4, 8):
        lags = solution.times[10 : solution.index(waiting_time)]
        displacement = solution.msd(waiting_time, lags)
        exponents = np.gradient(np.log(displacement), np.log(lags))
        slowest.append(exponents.min())
    assert (np.diff(slowest) < 0).all()
    assert 0.8 < displacement[exponents.argmin()] / (2 * (1 - q)) < 1
    # Without a temperature, for p = 2, and at the transition.
    assert SphericalPSpin(3, 0.0).plateau == 1
    assert SphericalPSpin(2, 0.4).plateau == pytest.approx(0.6)
    for p in (3, 4):
        assert SphericalPSpin(p, SphericalPSpin(p).transition).plateau == pytest.approx((p - 2) / (p - 1))
        assert np.isnan(SphericalPSpin(p, 1.0).plateau)


def test_the_solver_is_of_second_order_and_says_its_error_and_a_long_step_fakes_a_low_energy() -> None:
    glass = SphericalPSpin(p=3)
    errors = [glass.solve(5, steps).error for steps in (100, 200, 400)]
    assert np.allclose(np.array(errors[:-1]) / errors[1:], 4, rtol=0.25)
    reference, rough = glass.solve(5, 800).energy[-1], glass.solve(5, 100)
    assert abs(rough.energy[-1] - reference) < rough.error
    coarse = glass.solve(40, 200)
    assert coarse.energy.min() < glass.threshold - 0.01
    assert coarse.error > 0.01


def test_wrong_arguments_of_the_glasses_are_named() -> None:
    solution = SphericalPSpin().solve(1, 20)
    for call, message in (
        (lambda: SphericalP2(-1.0), "temperature=-1.0"),
        (lambda: SphericalPSpin(p=1), "p=1 must be 2"),
        (lambda: SphericalPSpin(3, -0.5), "temperature=-0.5"),
        (lambda: SphericalPSpin().solve(0, 10), "t_max=0"),
        (lambda: SphericalPSpin().solve(1, 7), "steps=7 must be an even"),
        (lambda: SphericalPSpin().solve(40, 80), "steps=80 diverged, .* take 160 or more"),
        (lambda: solution.index(0.25), "time=0.25 is not on the grid of steps of 0.1 up to 1"),
        (lambda: solution.msd(0.5, [0.2, 0.6]), "time=1.1 is not on the grid"),
        (lambda: BouchaudTrap(1.0), "x=1.0"),
        (lambda: FractionalBrownianMotion(1.2), "hurst=1.2"),
        (lambda: FractionalBrownianMotion(0.5, 0.0), "coefficient=0.0"),
        (lambda: ScaledBrownianMotion(0.0), "alpha=0.0"),
        (lambda: LogClock(tau0=-1.0), "tau0=-1.0"),
        (lambda: BetaDescent(a=0.0), "a=0.0 must be positive"),
        (lambda: SGDQuadratic(0.0, 1.0, 1.0), "learning_rate=0.0 must be positive"),
        (lambda: SGDQuadratic(0.1, 1.0, 1.0, momentum=1.0), "momentum=1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# ---------------------------------------------------------------------- traps


def test_the_trap_model_has_its_exact_persistence_at_every_step() -> None:
    n, glass = 40_000, BouchaudTrap(x=0.4)
    path = glass.trajectory(n, 300, seed=3)
    record = AgingRecord.from_trajectory(path, LogTimeSchedule.logspaced(300, lags_per_decade=5))
    waiting_times, lags = record.pairs
    exact = glass.persistence(waiting_times, lags)
    stayed = np.array([np.mean(path[s] == path[s + t]) for s, t in zip(waiting_times, lags, strict=True)])
    assert np.abs((stayed - exact) / np.sqrt(exact * (1 - exact) / n)).max() < 4
    # A displacement is 0, or has the variance 2. Its square has the variance 12(1 - Pi) - 4(1 - Pi)^2.
    error = np.sqrt((12 * (1 - exact) - 4 * (1 - exact) ** 2) / n)
    assert np.abs((rows(record, record.msd()) - glass.msd(waiting_times, lags)) / error).max() < 4


@pytest.mark.parametrize("x", [0.2, 0.5, 0.8])
def test_persistence_in_traps_tends_to_the_arcsine_law_of_the_ratio_of_times(x: float) -> None:
    glass, ratio = BouchaudTrap(x), np.array([0.1, 1.0, 10.0])
    distance = [
        np.abs(glass.persistence(t_w, (ratio * t_w).astype(int)) - glass.arcsine_law(ratio)).max()
        for t_w in (100, 1000, 10_000)
    ]
    assert distance[-1] < 1e-3
    assert np.allclose(np.divide(distance[:-1], distance[1:]), 10, rtol=0.1)  # falls as 1/t_w
    if x == 0.5:  # Lévy's own law
        assert np.allclose(glass.arcsine_law(ratio), 2 / np.pi * np.arcsin(np.sqrt(1 / (1 + ratio))), rtol=1e-12)


# ---------------------------------------------------------------------- clocks


def motion(glass, steps: int, n: int) -> np.ndarray:
    """Return independent coordinates, ``[steps + 1, n]``."""
    rng, times = np.random.default_rng(5), np.arange(1, steps + 1)
    if isinstance(glass, FractionalBrownianMotion):  # correlated increments: from the whole covariance
        path = np.linalg.cholesky(glass.covariance(times[:, None], times)) @ rng.normal(size=(steps, n))
    else:  # independent increments, with the advance of the clock as variance
        variance = 2 * glass.coefficient * np.diff(glass.clock([0, *times]))
        path = np.cumsum(np.sqrt(variance)[:, None] * rng.normal(size=(steps, n)), axis=0)
    return np.vstack([np.zeros(n), path])


@pytest.mark.parametrize(
    "glass",
    [
        pytest.param(FractionalBrownianMotion(hurst=0.3), id="fractional, slow"),
        pytest.param(FractionalBrownianMotion(hurst=0.8, coefficient=2.0), id="fractional, fast"),
        pytest.param(ScaledBrownianMotion(alpha=0.4, coefficient=1.5), id="scaled"),
        pytest.param(LogClock(tau0=3.0, coefficient=0.7), id="logarithmic"),
    ],
)
def test_motions_with_a_clock_have_their_exact_msd(glass) -> None:
    n, steps = 20_000, 60
    record = AgingRecord.from_trajectory(motion(glass, steps, n), LogTimeSchedule.logspaced(steps, lags_per_decade=5))
    waiting_times, lags = record.pairs
    errors = glass.msd_covariance(waiting_times, lags, n)
    assert_plausible(rows(record, record.msd()), glass.msd(waiting_times, lags), errors)


def test_the_formulas_of_the_clocks() -> None:
    s, t = np.array([0, 10, 1000]), np.array([1, 50, 700])
    assert np.allclose(FractionalBrownianMotion(hurst=0.3).msd(s, t), t**0.6, rtol=1e-12)
    slow = ScaledBrownianMotion(alpha=0.4, coefficient=1.5)
    assert np.allclose(slow.msd(s, t), 2 * 1.5 * ((s + t) ** 0.4 - s**0.4), rtol=1e-12)
    logarithmic = LogClock(tau0=3.0, coefficient=0.7)
    assert np.allclose(logarithmic.msd(s, t), 2 * 0.7 * np.log(1 + t / (s + 3.0)), rtol=1e-12)
    # At the lag to a threshold the displacement has this value. The lag grows with the exponent of the clock.
    t_w = np.array([1e6, 1e7])
    for glass, mu in ((slow, 1 - 0.4), (logarithmic, 1.0)):
        lag = glass.lag_to_msd(1e-2, t_w)
        assert np.allclose(glass.msd(t_w, lag), 1e-2, rtol=1e-9)
        assert np.log10(lag[1] / lag[0]) == pytest.approx(mu, abs=2e-3)


@pytest.mark.parametrize(
    ("glass", "origin", "mu"),
    [
        pytest.param(FractionalBrownianMotion(hurst=0.3), 0.0, 0.0, id="fractional: the negative control"),
        pytest.param(ScaledBrownianMotion(alpha=0.4), 0.0, 0.6, id="scaled"),
        pytest.param(LogClock(tau0=1.0), 1.0, 1.0, id="logarithmic"),
    ],
)
def test_the_exponent_of_a_clock_is_found_in_a_measurement_of_it(glass, origin: float, mu: float) -> None:
    n_replica, n = 8, 1000
    path = motion(glass, 1000, n_replica * n).reshape(1001, n_replica, n).swapaxes(0, 1)
    record = AgingRecord.from_trajectory(path, LogTimeSchedule.logspaced(1000))
    assert aging_exponent(record, t0=origin).estimates["collapse, effective time"] == pytest.approx(mu, abs=0.015)


# ---------------------------------------------------------------------- the spherical p-spin model in a Trainer


@pytest.mark.parametrize("p", [2, 3, 4])
def test_the_trained_pspin_has_the_energy_and_the_couplings_of_its_definition(p: int) -> None:
    n = 16
    module = SphericalPSpinModule(SphericalPSpin(p), n, steps=1, learning_rate=0.1, n_replica=5, seed=4)
    w, couplings = module.w.detach(), module.couplings
    assert torch.allclose(w.square().sum(1), torch.full((5,), float(n)))
    # The tensor is full, without symmetry or zeros on the diagonals. Each entry has the variance 1/(2 N^(p-1)).
    assert couplings.shape == (n,) * p
    variance = float(couplings.double().square().mean()) * 2 * n ** (p - 1)
    assert abs(variance - 1) < 4 * (2 / couplings.numel()) ** 0.5
    for replica in range(5):
        contracted = couplings
        for _ in range(p):
            contracted = contracted @ w[replica]
        assert float(module.energy()[replica].detach()) == pytest.approx(-float(contracted) / n, abs=1e-5)


def test_a_step_of_the_trained_pspin_is_a_step_of_descent_back_to_the_sphere(tmp_path: Path) -> None:
    module = SphericalPSpinModule(SphericalPSpin(3), n=9, steps=1, learning_rate=0.1, n_replica=2, seed=4)
    w = module.w.detach().clone()
    gradient = -sum(
        torch.einsum(term, module.couplings, w, w) for term in ("ijk,rj,rk->ri", "jik,rj,rk->ri", "jki,rj,rk->ri")
    )
    expected = w - 0.1 * gradient
    quiet_trainer(tmp_path, max_steps=1).fit(module)
    assert torch.allclose(module.w, expected * 3 / expected.norm(dim=1, keepdim=True), atol=1e-5)


@pytest.mark.parametrize(
    ("glass", "n"),
    [
        pytest.param(SphericalPSpin(3, 0.0), 32, id="p=3, gradient descent"),
        pytest.param(SphericalPSpin(3, 0.3), 32, id="p=3, Langevin"),
        pytest.param(SphericalPSpin(2, 0.5), 128, id="p=2, Langevin"),
    ],
)
def test_a_glass_in_a_trainer_follows_the_equations_of_its_infinite_size(glass, n: int, tmp_path: Path) -> None:
    """Compare within the scatter of samples. 1/N and the step are both halved, so first-order errors in them cancel."""
    times, t_max, n_seed = ([1.0, 2.0], [1.0, 2.0]), 4.0, 12

    def measure(n: int, step: float) -> np.ndarray:
        """Return the correlations at the pairs of times and the last energy, ``[n_seed, 5]``."""
        schedule = LogTimeSchedule(*([round(t / step) for t in group] for group in times))
        found = []
        for seed in range(n_seed):
            module = SphericalPSpinModule(glass, n, round(t_max / step), step, n_replica=16, seed=seed)
            monitor = AgingMonitor(schedule, sample=None, save=False, summary=False)
            quiet_trainer(tmp_path, callbacks=[monitor], max_steps=module.steps).fit(module)
            found.append([*monitor.record.correlation().ravel(), float(module.energy().detach().mean())])
        return np.array(found)

    exact = glass.solve(t_max, 400)
    start, lag = (np.array(group) for group in times)
    expected = [*exact.correlation[exact.index(start)[:, None], exact.index(start[:, None] + lag)].ravel()]
    expected.append(exact.energy[-1])
    small, large = measure(n, 0.04), measure(2 * n, 0.02)
    extrapolated = 2 * large.mean(0) - small.mean(0)
    error = np.sqrt(4 * large.var(0, ddof=1) + small.var(0, ddof=1)) / n_seed**0.5
    assert error.max() < 0.02
    assert np.abs((extrapolated - expected) / error).max() < 4

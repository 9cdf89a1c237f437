"""Relaxation times of records with known relaxation."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expi

from lightning_glassy import AgingMonitor, AgingRecord, DisplacementDistribution, LogTimeSchedule, plotting
from lightning_glassy.analysis import overlap_at, relaxation_curves, relaxation_times
from lightning_glassy.analysis.collapse import CollapseQuality, log_errors
from lightning_glassy.analysis.growth import compare_growth
from lightning_glassy.callbacks.distribution import DISPLACEMENT_EDGES
from lightning_glassy.glasses import SubagingClock
from lightning_glassy.observables import relative_overlap_thresholds
from lightning_glassy.record import MOMENTS
from lightning_glassy.report import report
from tests.helpers import SmallNet, data, quiet_trainer

SCHEDULE = LogTimeSchedule.logspaced(
    100_000, first_waiting_time=10, waiting_times_per_decade=4, lags_per_decade=6, zero=False
)
CLOCK = SubagingClock(mu=0.6, kappa=0.3)
EPS = 0.5


def record_of(correlation: Callable, n_replica: int | None = None) -> AgingRecord:
    """Return a record with a given correlation of waiting time and lag. The weights have the variance 1."""
    record = AgingRecord({"all": 1000}, n_replica=n_replica)
    for waiting_time, lag in SCHEDULE.pairs:
        c = np.asarray(correlation(float(waiting_time), float(lag)))
        moments = np.zeros((*c.shape, 1, len(MOMENTS)))
        moments[..., 0, :5] = 1000 * np.stack([2 * (1 - c), 0 * c, c, 0 * c + 1, 0 * c + 1], axis=-1)
        record.append(waiting_time, lag, moments)
    return record


def gaussian_record(paths: np.ndarray, steps: np.ndarray) -> AgingRecord:
    """Return a record of replicas ``[n_replica, n, n_step]`` that were drawn at the steps of the schedule."""
    place = {int(step): i for i, step in enumerate(steps)}
    record = AgingRecord({"all": paths.shape[1]}, n_replica=len(paths), overlap_thresholds=[EPS])
    for waiting_time, lag in SCHEDULE.pairs:
        new, old = paths[..., place[waiting_time + lag]], paths[..., place[waiting_time]]
        d = new - old
        sums = [d**2, d**4, new * old, new**2, old**2, new, old, np.abs(d) <= EPS]
        record.append(waiting_time, lag, np.stack([term.sum(axis=1) for term in sums], axis=-1)[:, None, :])
    return record


@functools.cache
def clock_record(clock: Callable, seed: int, n: int = 300, n_replica: int = 16) -> AgingRecord:
    """Draw replicas of N coordinates with C = exp(-h(t_w + t) + h(t_w)), exactly at the steps of the schedule."""
    rng, steps = np.random.default_rng(seed), np.array(sorted({event.step for event in SCHEDULE.events}))
    paths = rng.normal(size=(n_replica, n, len(steps)))
    factors = np.exp(-np.diff(clock(steps.astype(float))))
    for i, a in enumerate(factors):
        paths[..., i + 1] = a * paths[..., i] + np.sqrt(1 - a**2) * paths[..., i + 1]
    return gaussian_record(paths, steps)


def kohlrausch_record(beta: float, tau: float, n: int, n_replica: int, seed: int) -> AgingRecord:
    """Draw replicas of a stationary Gaussian process with a stretched exponential as its correlation."""
    steps = np.array(sorted({event.step for event in SCHEDULE.events}))
    values, vectors = np.linalg.eigh(np.exp(-((np.abs(steps[:, None] - steps) / tau) ** beta)))
    root = vectors * np.sqrt(np.maximum(values, 0))
    return gaussian_record(np.random.default_rng(seed).normal(size=(n_replica, n, len(steps))) @ root.T, steps)


def steady(t: np.ndarray) -> np.ndarray:
    """A clock of constant speed: tau = 30."""
    return t / 30


def fading(t: np.ndarray) -> np.ndarray:
    """A clock that slows down exponentially: tau = 30 exp(t_w/20000) as long as tau is short."""
    return 20_000 / 30 * -np.expm1(-t / 20_000)


def logarithmic(t: np.ndarray) -> np.ndarray:
    """A clock of the speed 1/(20 ln t): tau = 20 ln t_w as long as tau is short."""
    return expi(np.log(np.maximum(t, 2))) / 20


def turning(t: np.ndarray) -> np.ndarray:
    """A clock that slows down as a power law until step 1000, and then no more."""
    return np.where(
        t < 1000, 0.3 * np.minimum(t, 1000) ** 0.4 / 0.4, 0.3 * 1000**0.4 / 0.4 + (t - 1000) * 0.3 / 1000**0.6
    )


# ---------------------------------------------------------------------- by threshold, 1/e and 90 %


def test_the_times_to_1_over_e_and_to_90_percent_are_those_of_the_exact_clock() -> None:
    found = relaxation_times(record_of(lambda t_w, t: CLOCK.covariance(t_w, t_w + t)))
    for name, level in (("1/e", np.exp(-1)), ("90 %", 0.9)):
        one = found.methods[name]
        exact = CLOCK.lag_to_correlation(level, found.waiting_times)
        measured = np.isfinite(one.times)
        assert measured.sum() >= 12
        # Between the first two lags, the interpolation is less certain.
        assert np.allclose(one.times[measured], exact[measured], rtol=2e-3)
        # The censored times are outside of the measured lags.
        assert (exact[one.early] < 1).all()
        assert (exact[one.late] + found.waiting_times[one.late] > 100_000).all()
        assert (measured | one.early | one.late).all()
        assert [bool(words) for words in one.why_not] == (~measured).tolist()
        assert one.errors is None


def test_the_local_slopes_are_those_of_the_exact_clock_and_not_mu() -> None:
    found = relaxation_times(record_of(lambda t_w, t: CLOCK.covariance(t_w, t_w + t)), window=(10, 100_000))
    one = found.methods["1/e"]
    power, length = 1 - CLOCK.mu, 1 / CLOCK.kappa
    small = power * length / one.slope_at**power
    exact = ((1 + small) ** (CLOCK.mu / power) - 1) / ((1 + small) ** (1 / power) - 1)
    assert np.allclose(one.slopes, exact, atol=3e-3)
    assert exact.min() < 0.56
    assert 0.01 < one.drift < 0.1


@pytest.mark.parametrize("name", ["1/e", "90 %", "stretched exponential"])
def test_the_errors_of_the_times_are_those_of_the_trials(name: str) -> None:
    z = []
    for seed in range(6):
        one = relaxation_times(clock_record(steady, seed)).methods[name]
        exact = {"90 %": -30 * np.log(0.9)}.get(name, 30.0)
        z.append(((one.times - exact) / one.errors)[np.isfinite(one.times)])
    each = np.concatenate(z)
    assert len(each) > 80
    assert abs(each.mean()) < 3 / np.sqrt(len(each))
    assert 0.8 < each.std() < 1.3


def test_a_time_that_hangs_on_one_replica_is_not_reported() -> None:
    # The mean falls to 0.15. Without the first replica it falls only to 0.2.
    ends = np.array([0, 0.2, 0.201, 0.202])
    record = record_of(lambda t_w, t: ends + (1 - ends) * np.exp(-t / 100), 4)
    one = relaxation_times(record, thresholds=[0.82]).methods["threshold 0.82"]
    assert not np.isfinite(one.times).any()
    assert one.late.all()


@pytest.mark.parametrize("observable", ["msd", "normalised_msd"])
def test_a_displacement_has_thresholds_only(observable: str) -> None:
    record = record_of(lambda t_w, t: CLOCK.covariance(t_w, t_w + t))
    for step in SCHEDULE.waiting_times:
        record.append_one_time("gradient_noise", int(step), 4.0)
    found = relaxation_times(record, observable)
    assert found.methods
    assert all(name.startswith("threshold ") for name in found.methods)
    scale = 1.0 if observable == "msd" else 4.0
    one = relaxation_times(record, observable, thresholds=[0.5 / scale]).methods[f"threshold {0.5 / scale:.3g}"]
    exact = CLOCK.lag_to_correlation(0.75, found.waiting_times)
    measured = np.isfinite(one.times)
    assert np.allclose(one.times[measured], exact[measured], rtol=1e-3)


def test_the_default_is_the_decorrelation_or_else_the_displacement() -> None:
    assert relaxation_times(clock_record(CLOCK.clock, 0)).observable == "decorrelation"
    only = AgingRecord({"all": 10}, sums=("d2",))
    for waiting_time, lag in SCHEDULE.pairs:
        only.append(waiting_time, lag, [[lag / waiting_time]])
    found = relaxation_times(only)
    assert found.observable == "msd"
    assert found.main.mu == pytest.approx(1)


def test_a_curve_that_swings_through_the_threshold_is_doubted() -> None:
    found = relaxation_times(record_of(lambda t_w, t: np.exp(-t / 300) * np.cos(t / 10)))
    assert any(words.startswith("1/e: ") and "pass it several times" in words for words in found.warnings)
    assert not relaxation_times(record_of(lambda t_w, t: np.exp(-t / 300))).warnings


@pytest.mark.parametrize("n_replica", [None, 1, 2, 3])
def test_two_replicas_have_no_errors_and_three_have(n_replica: int | None) -> None:
    scales = np.float64(1) if n_replica is None else 1 + 0.001 * np.arange(n_replica)
    found = relaxation_times(record_of(lambda t_w, t: np.exp(-t / t_w**0.7 / scales), n_replica))
    for one in found.methods.values():
        errors = (one.errors, one.slope_errors, one.drift_error, one.mu_error)
        assert all((error is None) == (n_replica != 3) for error in errors)
        assert all((law.errors == {}) == (n_replica != 3) for law in one.growth)
    assert found.preferred == "power law"


@pytest.mark.parametrize("waiting_times", [[0], [7], [0, 7], [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]])
def test_records_of_few_or_sparse_pairs_have_an_answer(waiting_times: list[int]) -> None:
    record = AgingRecord({"all": 10})
    ends = [*waiting_times, 1024, 2048] if len(waiting_times) > 2 else [8, 10, 100]
    for t_w in waiting_times:
        for end in ends:
            if end > t_w:  # checkpoints at powers of two, which share no lag
                c = np.exp(-((end - t_w) / 5))
                record.append(t_w, end - t_w, [[20 * (1 - c), 0, 10 * c, 10, 10, 0, 0]])
    found = relaxation_times(record)
    assert found.preferred in (None, "constant")
    assert str(found)
    left, _ = plotting.plot_relaxation_times(found)
    left.figure.savefig(io.BytesIO())


# ---------------------------------------------------------------------- stretched exponentials


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.8])
def test_a_stretched_exponential_is_found_exactly(beta: float) -> None:
    found = relaxation_times(record_of(lambda t_w, t: np.exp(-((t / t_w**0.7 / 5) ** beta))))
    one = found.methods["stretched exponential"]
    good = np.isfinite(one.times)
    assert good.sum() > 8
    assert np.allclose(one.times[good], 5 * found.waiting_times[good] ** 0.7, rtol=1e-6)
    assert one.shape is not None
    assert np.allclose(one.shape.betas[good], beta, rtol=1e-6)
    assert (one.shape.amplitudes[good] == 1).all()
    assert one.mu == pytest.approx(0.7, abs=1e-6)


def test_a_fast_process_gives_the_stretched_exponential_an_amplitude() -> None:
    found = relaxation_times(record_of(lambda t_w, t: 0.15 * np.exp(-t) + 0.85 * np.exp(-((t / 3000) ** 0.8))))
    one = found.methods["stretched exponential"]
    good = np.isfinite(one.times)
    assert good.sum() > 8
    assert one.shape is not None
    # The fast process contributes to the first points, so the fit is not exact.
    assert np.allclose(one.shape.amplitudes[good], 0.85, atol=0.015)
    assert np.allclose(one.times[good], 3000, rtol=0.03)
    assert np.allclose(one.shape.betas[good], 0.8, atol=0.03)


def test_beta_of_a_gaussian_process_is_found_within_its_error() -> None:
    z = []
    for seed in range(4):
        one = relaxation_times(kohlrausch_record(0.6, 200.0, 200, 12, seed)).methods["stretched exponential"]
        assert one.shape is not None
        assert one.shape.beta_errors is not None
        good = np.isfinite(one.times)
        z += [(one.shape.betas[good] - 0.6) / one.shape.beta_errors[good], (one.times[good] - 200) / one.errors[good]]
    each = np.concatenate(z)
    assert len(each) > 80
    assert abs(each.mean()) < 3 * 1.2 / np.sqrt(len(each) / 3)  # neighbours share noise
    assert 0.7 < each.std() < 1.4


@pytest.mark.parametrize(
    ("correlation", "words"),
    [
        pytest.param(lambda t_w, t: np.exp(-t / 1e6), "longer than the last lag", id="falls by a tenth"),
        pytest.param(lambda t_w, t: 0.5 + 0.5 * np.exp(-t / 100), "", id="falls by a half, and stays there"),
        pytest.param(lambda t_w, t: np.exp(-t / 1.5), "shorter than the first lag", id="has fallen at the first lag"),
        pytest.param(lambda t_w, t: np.exp(-((t / 300) ** 6)), "at a bound", id="falls like a step"),
        pytest.param(
            lambda t_w, t: 0.5 * np.exp(-t / 3) + 0.5 * np.exp(-t / 2000), "misses the curve", id="falls in two steps"
        ),
        pytest.param(lambda t_w, t: np.nan, "fewer than 6 lags", id="is not finite"),
    ],
)
def test_a_fit_that_the_curve_does_not_determine_is_refused(correlation: Callable, words: str) -> None:
    one = relaxation_times(record_of(correlation)).methods["stretched exponential"]
    assert not np.isfinite(one.times).any()
    assert one.shape is not None
    assert not np.isfinite(one.shape.betas).any()
    assert all(one.why_not)
    assert all(words in reason for reason, t_w in zip(one.why_not, SCHEDULE.waiting_times, strict=True) if t_w < 50_000)


# ---------------------------------------------------------------------- growth


@pytest.mark.parametrize(
    ("clock", "law"),
    [(CLOCK.clock, "power law"), (fading, "exponential"), (steady, "constant")],
    ids=["subaging", "exponential", "no aging"],
)
@pytest.mark.parametrize("observable", ["decorrelation", "overlap"])
def test_the_law_of_growth_of_exact_clocks_is_found(clock: Callable, law: str, observable: str) -> None:
    for seed in range(3):
        found = relaxation_times(clock_record(clock, seed), observable)
        assert found.preferred == law, found
        assert found.growth == found.main.growth
        assert law in found.main.reason
        assert found.growth[0].criterion <= found.growth[1].criterion


def test_a_logarithmic_growth_is_found_with_small_errors_and_else_not_taken_for_a_power_law() -> None:
    for seed in range(4):
        found = relaxation_times(clock_record(logarithmic, seed))
        assert all(one.preferred in (None, "logarithmic") for one in found.methods.values()), found
    wide = relaxation_times(record_of(lambda t_w, t: exact_with_noise(t_w, t), 16), window=(10, 100_000))
    assert wide.methods["90 %"].preferred == "logarithmic"


def exact_with_noise(t_w: float, t: float) -> np.ndarray:
    """Return the correlation of the logarithmic clock in 16 replicas. Their speeds differ by half a percent."""
    speeds = 1 + 0.005 * np.random.default_rng(int(t_w)).normal(size=16)
    return np.exp(-speeds * (logarithmic(np.array(t_w + t)) - logarithmic(np.array(t_w))))


def test_mu_and_its_error_are_those_of_the_trials() -> None:
    z = []
    for seed in range(8):
        one = relaxation_times(clock_record(steady, seed)).methods["1/e"]
        assert one.mu_error is not None
        assert one.drift_error is not None
        z += [one.mu / one.mu_error, one.drift / one.drift_error]
    assert np.abs(z).max() < 4
    assert 0.5 < np.std(z) < 1.6


def test_a_clock_that_stops_aging_has_no_law_and_a_drifting_slope() -> None:
    found = relaxation_times(clock_record(turning, 0), window=(10, 100_000))
    one = found.methods["90 %"]
    assert one.preferred is None
    assert "no law fits" in one.reason
    assert one.drift < -5 * one.drift_error


def test_noise_shared_by_all_waiting_times_does_not_choose_a_law() -> None:
    # This is a power law. In each of 8 replicas, the curvature of ln(tau) is noise.
    times, x = np.geomspace(10, 1e4, 25), np.linspace(-1, 1, 25)
    by_the_criterion_alone = 0
    for seed in range(20):
        noise = 0.2 * np.random.default_rng(seed).normal(size=(8, 1))
        curves = 0.3 * x + noise * (x**2 - 1 / 3)
        choice = compare_growth(times, np.concatenate([curves.mean(axis=0)[None], (curves.sum(axis=0) - curves) / 7]))
        assert choice.preferred is None or choice.preferred == "power law"
        best, second = choice.growth[:2]
        by_the_criterion_alone += best.name != "power law" and second.criterion > best.criterion + 10
    assert by_the_criterion_alone >= 3


def test_a_single_run_prefers_a_law_only_if_it_is_plain() -> None:
    exact = relaxation_times(record_of(lambda t_w, t: np.exp(-t / t_w**0.7)))
    assert exact.preferred == "power law"
    assert exact.main.mu == pytest.approx(0.7, abs=1e-3)
    assert exact.main.mu_error is None
    assert exact.main.drift == pytest.approx(0, abs=1e-3)
    rng = np.random.default_rng(0)
    noisy = relaxation_times(record_of(lambda t_w, t: np.exp(-t / t_w**0.7 * np.exp(0.1 * rng.normal()))))
    assert noisy.preferred is None
    assert "without 3 replicas there is no error" in noisy.main.reason


def test_few_relaxation_times_prefer_no_law() -> None:
    record = record_of(lambda t_w, t: np.exp(-t / t_w**0.7))
    few = relaxation_times(record, window=(10, 30))
    assert few.growth == []
    assert "are needed for a fit" in few.main.reason
    short = relaxation_times(record, window=(100, 600))
    assert short.preferred is None
    assert short.growth
    assert "6 over a decade are needed" in short.main.reason


@pytest.mark.parametrize(
    ("law", "parameters"),
    [
        (lambda t: 7.0 + 0 * t, {"a": 7.0}),
        (lambda t: 3 * t**0.4, {"a": 3.0, "mu": 0.4}),
        (lambda t: 3 * np.log(t) - 6, {"a": -6.0, "b": 3.0}),
        (lambda t: 20 * np.exp(-t / 4000), {"a": 20.0, "b": -1 / 4000}),
    ],
    ids=["constant", "power law", "logarithmic", "exponential"],
)
def test_every_law_has_the_parameters_that_made_it(law: Callable, parameters: dict, request) -> None:
    times = np.geomspace(10, 10_000, 13)
    choice = compare_growth(times, np.log(law(times))[None])
    name = request.node.callspec.id
    found = next(one for one in choice.growth if one.name == name)
    assert found.parameters == pytest.approx(parameters, rel=1e-6)
    assert found.misfit < 1e-9
    assert np.allclose(found.line(times), law(times), rtol=1e-6)
    assert choice.preferred == name


# ---------------------------------------------------------------------- the table, and arguments


def test_the_table_has_at_most_ten_lines_and_says_what_is_not_known() -> None:
    for observable in ("decorrelation", "overlap", "msd"):
        text = str(relaxation_times(clock_record(CLOCK.clock, 0), observable))
        assert len(text.splitlines()) <= 10
        assert "+-" in text
        assert "power law" in text
    text = str(relaxation_times(record_of(lambda t_w, t: np.exp(-t / 1e7))))
    assert "1/e                    none: longer than the last lag" in text
    assert "1 run, no errors with fewer than 3" in text


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"observable": "non_gaussian"}, ValueError, "does not relax"),
        ({"thresholds": [0.1, -1.0]}, ValueError, r"thresholds\[1\]=-1.0 must be a positive number"),
        ({"window": (100, 10)}, ValueError, "window="),
        ({"t0": -1e9}, ValueError, "t0=-1000000000.0"),
        ({"group": "x"}, KeyError, "no group 'x'"),
        ({"eps": 0.1}, ValueError, "eps=0.1"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        relaxation_times(clock_record(CLOCK.clock, 0), **arguments)


# ---------------------------------------------------------------------- residuals of a collapse


def test_the_squares_of_the_residuals_over_their_errors_have_the_mean_s() -> None:
    rng = np.random.default_rng(0)
    waiting_times, lags = np.unique(np.geomspace(10, 1e4, 9).astype(np.int64)), 2 ** np.arange(12)
    curves = rng.lognormal(sigma=0.1, size=(2, 3, 9, 12)) * lags**0.7
    curves[1, 2, 4, 6] = np.nan  # left out of all sets
    errors = rng.uniform(0.05, 0.2, size=(9, 12))
    quality = CollapseQuality(waiting_times, lags, curves, errors, scatter=0.01)
    for mu, variable, t0 in ((0.4, "effective", 0.0), (0.8, "plain", 5.0)):
        misfits, uncertain = quality.residuals(mu, variable, t0)
        assert misfits.shape == (2, 3, 9, 12)
        assert uncertain.shape == (9, 12)
        assert np.array_equal(np.isnan(misfits[0, 0]), np.isnan(uncertain))
        assert np.isnan(uncertain[4, 6])
        assert (uncertain[np.isfinite(uncertain)] > 0.05).all()
        squares = (misfits / uncertain) ** 2
        assert np.allclose(np.nanmean(squares, axis=(-2, -1)), quality(mu, variable, t0), rtol=1e-12)


def test_the_residual_of_a_point_off_a_perfect_collapse_is_its_distance() -> None:
    waiting_times, lags = 2 ** np.arange(5, 11), 2 ** np.arange(12)
    curves = (lags / waiting_times[:, None] ** 0.5) ** 0.8
    curves[2, 5] *= np.exp(0.3)
    quality = CollapseQuality(waiting_times, lags, curves, np.full(curves.shape, 0.01))
    misfits, errors = quality.residuals(0.5, "plain")
    assert misfits[2, 5] == pytest.approx(0.3)
    assert np.abs(misfits[2, np.arange(12) != 5]).max() < 1e-12  # a curve is no neighbour of itself
    # Each of the five other curves has two neighbours with the error 0.01.
    assert 0.01 * np.sqrt(1 + 1 / 10) <= errors[2, 5] < 0.01 * np.sqrt(1 + 1 / 5)


# ---------------------------------------------------------------------- figures and the report


def test_the_figure_shows_every_time_with_its_error_and_the_local_slopes() -> None:
    found = relaxation_times(clock_record(turning, 0), window=(10, 100_000))
    left, right = plotting.plot_relaxation_times(found)
    assert len(left.containers) == len(right.containers) == len(found.methods) == 3
    for bars, one in zip(left.containers, found.methods.values(), strict=True):
        points, _, (stems,) = bars
        assert points.get_ydata().tolist() == one.times[np.isfinite(one.times)].tolist()
        low, high = np.array(stems.get_segments())[:, :, 1].T
        assert np.allclose((high - low) / 2, one.errors[np.isfinite(one.times)])
        assert one.method in bars.get_label()
        assert f"drift {one.drift:.2f}" in bars.get_label()
    assert right.containers[0][0].get_ydata().tolist() == found.methods["1/e"].slopes.tolist()
    assert "cannot tell" in right.get_title()
    assert left.get_xscale() == left.get_yscale() == right.get_xscale() == "log"
    left.figure.savefig(io.BytesIO())


@pytest.mark.parametrize("correlation", [lambda t_w, t: 1 - t / 1e9, lambda t_w, t: np.nan, lambda t_w, t: 0.0])
def test_the_figure_of_a_record_without_relaxation_times_says_so(correlation: Callable) -> None:
    left, _ = plotting.plot_relaxation_times(relaxation_times(record_of(correlation)))
    assert "no relaxation time" in left.texts[0].get_text()
    left.figure.savefig(io.BytesIO())


def test_the_figure_of_residuals_is_flat_for_a_collapse_and_has_a_pattern_without_one() -> None:
    for clock, mu, largest in ((CLOCK.clock, 0.6, 6), (turning, 0.3, 100)):
        curves = relaxation_curves(clock_record(clock, 0))
        left, right = plotting.plot_collapse_residuals(curves, mu)
        quality = CollapseQuality(curves.waiting_times, curves.lags, curves.mean(), log_errors(curves.values))
        misfits, errors = quality.residuals(mu)
        lines = [line for line in left.get_lines() if str(line.get_label()).startswith("$t_w")]
        drawn = np.concatenate([line.get_ydata() for line in lines])
        assert np.allclose(drawn, (misfits / errors)[np.isfinite(misfits)])
        assert largest / 6 < np.abs(drawn).max() < largest
        shown = np.ma.filled(right.collections[0].get_array(), np.nan)
        assert np.allclose(shown, misfits.T, equal_nan=True)
        left.figure.savefig(io.BytesIO())


def test_the_residuals_of_a_single_run_are_not_divided_by_an_unknown_error() -> None:
    curves = relaxation_curves(record_of(lambda t_w, t: np.exp(-t / t_w**0.7)))
    left, _ = plotting.plot_collapse_residuals(curves, 0.7, "plain")
    assert left.get_ylabel() == "misfit (difference of logarithms)"
    assert np.abs(np.concatenate([line.get_ydata() for line in left.get_lines()])).max() < 0.05


def test_the_report_has_relaxation_times_in_text_numbers_and_figures() -> None:
    found = report(clock_record(CLOCK.clock, 0), n_bootstrap=10)
    assert found.relaxation is not None
    assert found.relaxation.observable == "decorrelation"
    assert str(found.relaxation) in str(found)
    numbers = json.loads(json.dumps(found.to_dict(), allow_nan=False))["relaxation_times"]
    assert numbers["methods"]["1/e"]["preferred"] == "power law"
    assert numbers["methods"]["1/e"]["growth"][0]["parameters"]["mu"] == pytest.approx(0.6, abs=0.05)
    assert {"relaxation_times", "collapse_residuals"} <= set(found.figures())
    overlap = report(clock_record(CLOCK.clock, 0), observable="overlap", eps=EPS, n_bootstrap=10).relaxation
    assert overlap is not None
    assert (overlap.observable, overlap.eps) == ("overlap", EPS)
    assert report(clock_record(CLOCK.clock, 0), observable="non_gaussian").relaxation is None


# ---------------------------------------------------------------------- the overlap at any threshold


@functools.cache
def walk_record() -> tuple[AgingRecord, np.ndarray]:
    """Return a record of weights that make three Gaussian steps, with histograms, and overlaps at four thresholds."""
    rng, times = np.random.default_rng(0), [0, 1, 3, 10]
    path = np.cumsum(rng.normal(size=(4, 20_000)) * [[0.05], [1e-3], [3e-3], [1e-2]], axis=0)
    path[:, :200] *= 5  # a few weights move more
    eps = [1e-5, 1.3e-3, 4.4e-3, 0.03]
    record = AgingRecord.from_trajectory(path, times=times, overlap_thresholds=eps)
    for t_w, lag in zip(*record.pairs, strict=True):
        d = path[times.index(t_w + lag)] - path[times.index(t_w)]
        counts = np.histogram(d / np.sqrt((d**2).mean()), [-np.inf, *DISPLACEMENT_EDGES, np.inf])[0]
        record.append_profile("displacement", int(t_w), int(lag), DISPLACEMENT_EDGES, counts)
    return record, path


def test_the_overlap_from_histograms_is_the_counted_one_within_its_bounds() -> None:
    record, _ = walk_record()
    for eps in record.overlap_thresholds:
        found, exact = overlap_at(record, eps), record.overlap(eps)
        assert found.waiting_times.tolist() == record.waiting_times.tolist()
        assert found.lags.tolist() == record.lags.tolist()
        there = np.isfinite(exact)
        assert np.array_equal(np.isnan(found.values), ~there)
        assert (found.low[there] <= exact[there]).all()
        assert (exact[there] <= found.high[there]).all()
        assert np.abs(found.values - exact)[there].max() < 2e-3
        assert found.curves.values == pytest.approx(1 - found.values[None], nan_ok=True)


def test_the_overlap_from_histograms_is_exact_at_the_edges_of_the_bins() -> None:
    record, path = walk_record()
    for edge in DISPLACEMENT_EDGES[[65, 85, 91, 95]]:
        found = overlap_at(record, edge * np.sqrt(record.msd()[0, 0]))
        assert found.low[0, 0] == found.values[0, 0] == found.high[0, 0]
        assert found.values[0, 0] == (np.abs(path[1] - path[0]) <= found.eps).mean()


def test_a_threshold_relative_to_the_weights_compares_networks_of_different_size() -> None:
    record, path = walk_record()
    found = overlap_at(record, factor=300)
    assert found.eps == pytest.approx(path[0].std() / 300)
    assert np.array_equal(found.values, overlap_at(record, found.eps).values, equal_nan=True)
    assert relative_overlap_thresholds(path[0].std())[-1] == pytest.approx(found.eps)
    assert [round(0.06 / eps) for eps in relative_overlap_thresholds(0.06)] == [6000, 1000, 500, 400, 300]
    assert relative_overlap_thresholds(0.1, [100]) == (0.001,)
    for arguments in ((0.0,), (np.nan,), (0.1, [100, -1]), (0.1, [100, 100])):
        with pytest.raises(ValueError, match="must be a positive number"):
            relative_overlap_thresholds(*arguments)


def test_an_overlap_from_histograms_is_refused_or_not_a_number_without_data() -> None:
    record, _ = walk_record()
    for arguments in ({}, {"eps": 0.1, "factor": 100}):
        with pytest.raises(ValueError, match="give one of them"):
            overlap_at(record, **arguments)
    for name in ("eps", "factor"):
        with pytest.raises(ValueError, match=f"{name}=-1.0 must be a positive number"):
            overlap_at(record, **{name: -1.0})
    with pytest.raises(KeyError, match="DisplacementDistribution"):
        overlap_at(AgingRecord({"all": 2}), 0.1)
    with pytest.raises(ValueError, match="n_replica=16"):
        overlap_at(clock_record(CLOCK.clock, 0), 0.1)
    odd = AgingRecord({"all": 2})
    for lag, moved in ((1, 0.0), (2, np.inf)):
        odd.append(5, lag, [[moved, 0, 1, 1, 1, 0, 0]])
    for lag in (1, 2, 3):
        odd.append_profile("displacement", 5, lag, [-1.0, 1.0], [0, 2, 0])
    # Either nothing has moved, or the displacement is infinite, or it was not measured.
    assert overlap_at(odd, 0.1).values[0] == pytest.approx([1.0, np.nan, np.nan], nan_ok=True)


def test_the_histograms_of_a_training_give_the_overlaps_that_it_counted(tmp_path: Path) -> None:
    eps = [1e-4, 1e-3, 1e-2]
    monitor = AgingMonitor(overlap_thresholds=eps, save=False, summary=False)
    trainer = quiet_trainer(tmp_path, callbacks=[monitor, DisplacementDistribution(save=False, summary=False)])
    torch.manual_seed(0)
    trainer.fit(SmallNet(), data())
    for threshold in eps:
        found, exact = overlap_at(monitor.record, threshold), monitor.record.overlap(threshold)
        rows = np.searchsorted(monitor.record.waiting_times, found.waiting_times)
        counted = exact[np.ix_(rows, np.searchsorted(monitor.record.lags, found.lags))]
        there = np.isfinite(found.values)
        assert there.sum() > 5
        assert (found.low - 1e-9 <= counted)[there].all()
        assert (counted <= found.high + 1e-9)[there].all()


def test_a_time_of_step_0_alone_is_no_point_on_a_logarithmic_axis(tmp_path: Path) -> None:
    frames = np.cumsum(np.random.default_rng(0).normal(size=(301, 50)), axis=0) * 0.05 + 1
    record = AgingRecord.from_trajectory(frames, LogTimeSchedule([0, 200], [1, 3, 10, 30, 100, 300]))
    left, right = plotting.plot_relaxation_times(relaxation_times(record))
    left.figure.savefig(tmp_path / "drawn.png")
    assert left.get_xscale() == right.get_xscale() == "linear"
    assert "no relaxation time after step 0" in left.texts[0].get_text()

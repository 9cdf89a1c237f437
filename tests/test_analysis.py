"""Exponents from records whose exponent is known."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import betainc

from lightning_glassy import AgingRecord, LogTimeSchedule
from lightning_glassy.analysis import (
    aging_exponent,
    collapse,
    diffusion,
    lag_to_threshold,
    reconcile,
    relaxation_curves,
    verdict,
)
from lightning_glassy.analysis.collapse import CollapseQuality, collapse_quality, lag_of, log_errors, scaled_lag
from lightning_glassy.analysis.plateaus import common_level, fast_levels
from lightning_glassy.glasses import BetaDescent, RandomWalk, SGDQuadratic, SubagingClock
from lightning_glassy.record import MOMENTS

SCHEDULE = LogTimeSchedule.logspaced(
    100_000, first_waiting_time=10, waiting_times_per_decade=4, lags_per_decade=6, zero=False
)
EPS = 0.5
CLOCK = SubagingClock(mu=0.6, kappa=0.3)
WHOLE = (10, 100_000)  # early waiting times, with lags far above them, tell the scaling variables apart


@functools.lru_cache
def root_of(covariance: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps that the schedule needs, and a square root of the covariance matrix at these steps."""
    steps = np.array(sorted({event.step for event in SCHEDULE.events}), dtype=np.int64)
    values, vectors = np.linalg.eigh(covariance(steps[:, None], steps[None, :]))
    return steps, vectors * np.sqrt(np.maximum(values, 0))


def gaussian_record(covariance: Callable, n: int, n_replica: int, seed: int) -> AgingRecord:
    """Draw replicas of N coordinates of a Gaussian process exactly, at the steps that the schedule needs."""
    steps, root = root_of(covariance)
    w = np.random.default_rng(seed).normal(size=(n_replica, n, len(steps))) @ root.T
    place = {int(step): i for i, step in enumerate(steps)}
    record = AgingRecord({"all": n}, n_replica=n_replica, overlap_thresholds=[EPS])
    for waiting_time, lag in SCHEDULE.pairs:
        new, old = w[..., place[waiting_time + lag]], w[..., place[waiting_time]]
        d = new - old
        sums = [d**2, d**4, new * old, new**2, old**2, new, old, np.abs(d) <= EPS]
        record.append(waiting_time, lag, np.stack([term.sum(axis=1) for term in sums], axis=-1)[:, None, :])
    assert len(sums) == len(MOMENTS) + 1
    return record


@functools.cache
def clock_record(seed: int) -> AgingRecord:
    """Draw eight replicas of an exactly slowing clock with mu = 0.6. Several tests share them."""
    return gaussian_record(CLOCK.covariance, 500, 8, seed)


def curves_record(msd: Callable, n_replica: int = 1, noise: float = 0.0) -> AgingRecord:
    """Return a record whose MSD is a given function of waiting time and lag, with independent relative noise."""
    rng = np.random.default_rng(0)
    record = AgingRecord({"all": 1}, n_replica=n_replica)
    for waiting_time, lag in SCHEDULE.pairs:
        moments = np.full((n_replica, 1, len(MOMENTS)), np.nan)
        moments[:, 0, 0] = msd(waiting_time, lag) * np.exp(noise * rng.normal(size=n_replica))
        record.append(waiting_time, lag, moments)
    return record


def test_the_effective_time_is_unbiased_on_an_exactly_slowing_clock() -> None:
    fits = [aging_exponent(clock_record(seed), window=WHOLE, n_bootstrap=20) for seed in range(12)]
    effective = np.array([fit.estimates["collapse, effective time"] for fit in fits])
    assert abs(effective.mean() - 0.6) < 3 * effective.std(ddof=1) / np.sqrt(12)
    assert effective.std() < 0.02
    # The stated error agrees with the spread of the 12 trials, which is itself known to a fifth.
    assert 0.5 < np.mean([fit.standard_error for fit in fits]) / np.std([fit.estimate for fit in fits], ddof=1) < 1.7
    # The plain variable must give a lower exponent and a worse collapse.
    assert np.mean([fit.estimates["collapse, plain"] for fit in fits]) < 0.6
    assert all(fit.method == "collapse, effective time" for fit in fits)


@pytest.mark.parametrize("observable", ["decorrelation", "overlap"])
def test_correlation_and_overlap_have_the_exponent_of_the_clock(observable: str) -> None:
    fits = [aging_exponent(clock_record(seed), observable, n_bootstrap=20) for seed in range(4)]
    z = [
        (fit.estimates["collapse, effective time"] - 0.6) / fit.standard_errors["collapse, effective time"]
        for fit in fits
    ]
    assert abs(np.mean(z)) < 2.5
    assert np.abs(z).max() < 5  # Student's t with 7 degrees of freedom
    assert all(fit.standard_error < 0.03 for fit in fits)


def test_the_threshold_slope_is_the_one_the_clock_predicts() -> None:
    glass = SubagingClock(mu=0.6, kappa=0.3)
    record = curves_record(lambda t_w, t: float(glass.msd(t_w, t)))
    fit = aging_exponent(record, thresholds=[0.2, 0.5, 1.0])
    for threshold in fit.thresholds:
        t_w = np.array([t for t in SCHEDULE.waiting_times if t >= fit.window[0]], dtype=float)
        exact = glass.lag_to_correlation(1 - threshold.crossings.threshold / 2, t_w)
        found = np.isfinite(threshold.crossings.lags)
        assert found.sum() >= 5
        # Interpolation between six lags per decade changes the lag by less than one part in a thousand.
        assert np.allclose(threshold.crossings.lags[found], exact[found], rtol=1e-3)
        assert threshold.mu == pytest.approx(np.polyfit(np.log(t_w[found]), np.log(exact[found]), 1)[0], abs=1e-4)


@pytest.mark.parametrize(
    ("mu", "msd"),
    [
        pytest.param(0.0, lambda t_w, t: 0.01 * t**0.7, id="no aging: fractional Brownian motion"),
        pytest.param(1.0, lambda t_w, t: np.log1p(t / t_w), id="full aging: the logarithmic clock"),
        pytest.param(0.6, lambda t_w, t: (t_w + t) ** 0.4 - t_w**0.4, id="scaled Brownian motion, 1 - alpha"),
        pytest.param(1.0, lambda t_w, t: 1 - betainc(0.6, 0.4, 1 / (1 + t / t_w)), id="full aging: the trap model"),
    ],
)
def test_clocks_that_are_known_have_their_exponent(mu: float, msd: Callable) -> None:
    fit = aging_exponent(curves_record(msd))
    assert fit.estimates["collapse, effective time"] == pytest.approx(mu, abs=0.01)


def test_the_origin_of_the_clock_can_be_given_or_fitted() -> None:
    record = curves_record(lambda t_w, t: np.log1p(t / (t_w + 300)), 8, 0.01)
    assert aging_exponent(record, window=WHOLE).estimate < 0.95
    assert aging_exponent(record, window=WHOLE, t0=300).estimate == pytest.approx(1, abs=0.01)
    fit = aging_exponent(record, window=WHOLE, t0="fit", n_bootstrap=20)
    assert fit.t0 == pytest.approx(300, rel=0.2)
    assert fit.interval[0] < 1 < fit.interval[1]
    assert f"clock from {fit.t0:.3g} steps before" in str(fit)
    # The origin of a clock that starts at step 0 stays there.
    assert aging_exponent(curves_record(lambda t_w, t: np.log1p(t / t_w)), t0="fit").t0 < 5


def test_displacements_over_the_gradient_noise() -> None:
    # A noise that fades as t_w^-1 drives a system that does not age. Only the normalised curves show this.
    record = curves_record(lambda t_w, t: 1e-3 * t / t_w)
    with pytest.raises(KeyError, match="gradient_noise"):
        aging_exponent(record, "normalised_msd")
    for step in (1, 100, 10_000, 1_000_000):
        record.append_one_time("gradient_noise", step, 5.0 * (1 + step) / step / (1 + step))
    assert aging_exponent(record).estimate == pytest.approx(1, abs=0.02)
    normalised = aging_exponent(record, "normalised_msd")
    assert normalised.estimate == pytest.approx(0, abs=0.02)
    assert "MSD over the noise strength" in str(normalised)
    assert record.msd(normalise="noise")[0, 4, 0] == pytest.approx(1e-3 / 5, rel=1e-3)


def test_curves_that_do_not_collapse_are_said_not_to() -> None:
    rng = np.random.default_rng(3)
    wild = {t_w: np.exp(rng.normal()) for t_w in SCHEDULE.waiting_times}
    fit = aging_exponent(curves_record(lambda t_w, t: wild[t_w] * (t / t_w**0.5) ** 0.8, 8, 0.01), n_bootstrap=20)
    assert fit.scatter[fit.method] > 0.2
    assert fit.mu is None
    assert re.match("the curves of the MSD do not collapse: they miss a common curve by [0-9]+%$", fit.why_not)
    good = aging_exponent(curves_record(lambda t_w, t: (t / t_w**0.5) ** 0.8, 8, 0.01), n_bootstrap=20)
    assert good.scatter[good.method] < 0.01
    assert good.mu == good.estimate
    assert good.why_not is None


def test_descent_into_flat_directions_ages_fully_as_a_correlation() -> None:
    # The weights themselves shrink, so their displacement fades faster than their direction turns.
    record = gaussian_record(BetaDescent(0.7, 1.5).covariance, 2000, 8, 0)
    fit = aging_exponent(record, "decorrelation", n_bootstrap=50)
    assert fit.interval[0] < 1 < fit.interval[1]
    assert fit.standard_error < 0.05
    assert re.match(r"the exponent of the MSD is above 1, at 1\..*the motion itself fades", fit.about("msd").why_not)


def test_data_that_scale_with_the_plain_variable_are_right_in_it() -> None:
    def msd(t_w: float, t: float) -> float:
        x = t / t_w**0.6
        return x / (1 + 0.2 * x)

    fit = aging_exponent(curves_record(msd), window=WHOLE)
    assert fit.estimate == fit.estimates["collapse, plain"]
    assert fit.estimate == pytest.approx(0.6, abs=0.005)
    assert fit.estimates["collapse, effective time"] > 0.61
    assert fit.systematic == pytest.approx(fit.estimates["collapse, effective time"] - fit.estimate)


def test_one_run_has_no_interval_and_says_so() -> None:
    fit = aging_exponent(curves_record(lambda t_w, t: (t / t_w**0.5) ** 0.8))
    assert fit.interval is None
    assert fit.standard_error is None
    assert "no interval: 1 replica, 8 are needed" in str(fit)
    assert "in t/t_w^mu" in str(fit)


def test_replicas_give_an_interval_that_is_reproducible_and_scales_with_the_noise() -> None:
    def fit(noise: float) -> object:
        return aging_exponent(curves_record(lambda t_w, t: (t / t_w**0.5) ** 0.8, 8, noise), n_bootstrap=40)

    quiet, loud = fit(0.01), fit(0.1)
    assert quiet.interval == fit(0.01).interval
    assert quiet.interval[0] < quiet.estimate < quiet.interval[1]
    assert 4 < loud.standard_error / quiet.standard_error < 25


def test_thresholds_in_a_fast_plateau_are_avoided_and_told_of() -> None:
    def msd(t_w: float, t: float) -> float:
        return 0.01 * (1 - np.exp(-t)) + (t / t_w**0.6) ** 1.2 * 1e-3

    record = curves_record(msd)
    fit = aging_exponent(record)
    assert min(threshold.crossings.threshold for threshold in fit.thresholds) > 0.02
    assert not [warning for warning in fit.warnings if "lie in the fast plateau" in warning]
    trapped = aging_exponent(record, thresholds=[0.009, 0.1])
    assert [warning for warning in trapped.warnings if "thresholds 0.009 lie in the fast plateau" in warning]


def test_what_a_training_did_is_a_reason_to_doubt() -> None:
    record = curves_record(lambda t_w, t: (t / t_w**0.5) ** 0.8)
    record.meta.update(
        sampler="SequentialSampler",
        optimizers=[{"name": "AdamW", "parameter_groups": [{"lr": 0.1, "weight_decay": 0.01}]}],
    )
    record.append_one_time("learning_rate", 0, 0.1)
    record.append_one_time("learning_rate", 10, 0.2)
    told = " ".join(aging_exponent(record).warnings)
    for words in ("learning rate changed", "order of the batches is fixed", "AdamW rescales", "weight decay"):
        assert words in told


def test_windows_and_arguments_that_make_no_sense_are_refused() -> None:
    record = curves_record(lambda t_w, t: t)
    with pytest.raises(ValueError, match=r"1 waiting times from 20 to 50 have curves, 3 are needed"):
        aging_exponent(record, window=(20, 50))
    for wrong, message in (
        ({"window": (50, 20)}, r"window=\(50, 20\) must be the first and the last"),
        ({"thresholds": [0.1, -1.0]}, r"thresholds\[1\]=-1.0 must be"),
        ({"t0": float("nan")}, "t0=nan must be between"),
        ({"t0": 1e9}, "t0=1000000000.0 must be between"),
        ({"t0": "soon"}, "t0='soon' is neither"),
        ({"n_bootstrap": 10**9}, "n_bootstrap=1000000000 must be between"),
        ({"eps": 0.1}, "eps=0.1 belongs to the overlap"),
    ):
        with pytest.raises(ValueError, match=message):
            aging_exponent(record, **wrong)
    with pytest.raises(ValueError, match="hardly rise"):
        aging_exponent(curves_record(lambda t_w, t: 1e-9))
    with pytest.raises(ValueError, match="confidence=95"):
        aging_exponent(record, confidence=95)
    with pytest.raises(ValueError, match="observable='loss'"):
        aging_exponent(record, "loss")
    with pytest.raises(ValueError, match="variable='linear'"):
        scaled_lag(1, 1, 0.5, "linear")
    with pytest.raises(ValueError, match="is not after the origin"):
        scaled_lag(0, 1, 0.5)


def test_crossings_are_first_ones_and_censored_ones_are_not_invented() -> None:
    lags = [1, 2, 4, 8]
    found = lag_to_threshold(lags, [[1, 2, 4, 8], [5, 6, 7, 8], [1, 1, 1, 1], [1, 4, 2, 9], [0, 6, 6, 6]], threshold=3)
    assert found.lags[0] == pytest.approx(3)
    assert np.isnan(found.lags[1])
    assert found.early.tolist() == [False, True, False, False, False]
    assert found.late.tolist() == [False, False, True, False, False]
    assert found.counts.tolist() == [1, 1, 0, 2, 1]
    assert 1 < found.lags[3] < 2
    assert found.lags[4] == pytest.approx(2**0.5)  # from a value of exactly 0: half-way between the values
    with pytest.raises(ValueError, match="threshold=0"):
        lag_to_threshold(lags, [lags], 0)


@pytest.mark.parametrize("variable", ["effective", "plain"])
@pytest.mark.parametrize("mu", [-0.3, 0.0, 0.7, 1.0, 1.5])
def test_the_scaling_variable_can_be_inverted(variable: str, mu: float) -> None:
    t_w, t = np.array([3.0, 50.0, 1000.0]), np.array([2.0, 70.0, 9000.0])
    assert np.allclose(lag_of(t_w, scaled_lag(t_w, t, mu, variable), mu, variable, 0.0), t, rtol=1e-9)


def test_a_perfect_collapse_has_a_smaller_s_than_any_other() -> None:
    curves = relaxation_curves(curves_record(lambda t_w, t: (t / t_w**0.5) ** 0.8))
    quality = CollapseQuality(curves.waiting_times, curves.lags, curves.mean(), log_errors(curves.values))
    best = quality(0.5, "plain")
    assert best < 1e-20
    assert all(quality(mu, "plain") > 1e-6 for mu in (0.3, 0.45, 0.55, 0.8))
    assert np.argmin(collapse_quality(curves, [0.3, 0.45, 0.5, 0.55], "plain")) == 2
    collapsed = collapse(curves, 0.5, "plain")
    measured = np.isfinite(collapsed.values)
    assert np.allclose(collapsed.values[measured], (collapsed.scaled_lags**0.8)[measured], rtol=1e-10)
    assert collapsed.quality == best


# ---------------------------------------------------------------------- verdict and diffusion


def fractional(hurst: float) -> Callable:
    return lambda s, t: 0.5 * (s ** (2 * hurst) + t ** (2 * hurst) - np.abs(s - t) ** (2.0 * hurst))


def brownian(clock: Callable) -> Callable:
    return lambda s, t: clock(np.minimum(s, t).astype(float))


SLOW_VALLEY = SGDQuadratic(0.05, curvature=0.2, noise=1.0, initial_variance=2000.0)


@pytest.mark.parametrize(
    ("kind", "covariance"),
    [
        pytest.param("no aging", RandomWalk(0.3).covariance, id="random walk"),
        pytest.param("no aging", lambda s, t: fractional(0.35)(s.astype(float), t.astype(float)), id="fractional"),
        pytest.param("no aging", SubagingClock(0.0, 0.003).covariance, id="stationary"),
        pytest.param("aging throughout", brownian(lambda n: n**0.4), id="scaled Brownian"),
        pytest.param("aging throughout", brownian(lambda n: np.log1p(n / 50)), id="logarithmic clock"),
        pytest.param("aging throughout", SubagingClock(0.6, 0.3).covariance, id="subaging"),
        pytest.param("aging that stops", SLOW_VALLEY.covariance, id="a valley that is reached"),
    ],
)
def test_verdicts_on_systems_that_are_known(kind: str, covariance: Callable) -> None:
    found = [verdict(gaussian_record(covariance, 1000, 8, seed)).kind for seed in range(2)]
    assert found == [kind] * 2


def test_no_aging_is_an_exponent_compatible_with_zero() -> None:
    for covariance in (RandomWalk(0.3).covariance, lambda s, t: fractional(0.7)(s.astype(float), t.astype(float))):
        fits = [aging_exponent(gaussian_record(covariance, 500, 8, seed), n_bootstrap=50) for seed in range(4)]
        z = [fit.estimate / fit.standard_error for fit in fits]
        assert np.abs(z).max() < 4.5  # Student's t with 7 degrees of freedom
        assert max(abs(fit.estimate) for fit in fits) < 0.03


def test_a_single_run_is_judged_by_its_own_scatter() -> None:
    assert verdict(gaussian_record(RandomWalk(0.3).covariance, 500, 1, 0)).kind in ("no aging", "cannot tell")
    assert verdict(gaussian_record(SubagingClock(0.6, 0.3).covariance, 500, 1, 0)).kind == "aging throughout"
    rng = np.random.default_rng(1)
    wild = {t_w: np.exp(rng.normal()) for t_w in SCHEDULE.waiting_times}
    assert verdict(curves_record(lambda t_w, t: wild[t_w] * t)).kind == "cannot tell"


def test_where_the_aging_stops_and_what_it_speaks_for() -> None:
    record = gaussian_record(SLOW_VALLEY.covariance, 500, 8, 0)
    bare = verdict(record)
    assert bare.phase is None
    # 1/(eta lambda) = 100 steps. After 5 times as many, the initial 2,000 is below the final variance.
    assert 200 <= bare.stops_at <= 2000
    record.append_one_time("train_loss", 100_000, 0.01)
    record.append_one_time("train_accuracy", 100_000, 1.0)
    assert verdict(record).phase == "over-parametrised"
    assert "100.00% of the training data are learnt" in str(verdict(record))
    glass = curves_record(lambda t_w, t: (t / t_w**0.6) ** 0.9)
    glass.append_one_time("train_accuracy", 100_000, 0.8)
    assert (verdict(glass).kind, verdict(glass).phase) == ("aging throughout", None)
    assert "whether learning has come to an end is not in the record" in str(verdict(glass))
    for loss, phase in ((0.2, None), (0.9, "glassy")):  # still learning, then stuck
        glass.append_one_time("train_loss", 10_000, 1.0)
        glass.append_one_time("train_loss", 100_000, loss)
        assert verdict(glass).phase == phase
    glass.append_one_time("train_accuracy", 100_000, 0.99)
    assert verdict(glass).phase is None
    glass.append_one_time("train_accuracy", 100_000, 1.0)
    assert verdict(glass).phase is None
    assert "flat directions or fading gradient noise" in str(verdict(glass))
    glass.append_one_time("train_accuracy", 100_000, 97.3)
    assert "97.3, is not a fraction" in str(verdict(glass))


def test_what_was_noted_early_is_not_the_end() -> None:
    glass = curves_record(lambda t_w, t: (t / t_w**0.6) ** 0.9)
    glass.append_one_time("train_accuracy", 10, 0.1)
    assert verdict(glass).train_accuracy is None
    for step in (1, 100, 1000):
        glass.append_one_time("gradient_noise", step, 5.0)
    assert verdict(glass).kind == "aging throughout"
    assert "not measured at late enough waiting times" in str(verdict(glass))


@pytest.mark.parametrize("kappa", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("mu", [0.2, 0.4, 0.6])
def test_relaxation_far_within_the_waiting_time_is_seen_to_age(mu: float, kappa: float) -> None:
    record = gaussian_record(SubagingClock(mu, kappa).covariance, 300, 8, 1)
    assert verdict(record).kind == "aging throughout"


@pytest.mark.parametrize("height", [0.03, 0.1, 0.3, 0.5])
def test_a_plateau_below_a_bounded_relaxation_does_not_pass_for_the_relaxation(height: float) -> None:
    def two_steps(t_w: float, t: float) -> float:
        return height * (1 - np.exp(-t / 3)) + (1 - height) * (1 - (1 + t / t_w) ** -0.5)

    fit = aging_exponent(curves_record(two_steps, 8, 0.01), n_bootstrap=20)
    assert fit.estimate == pytest.approx(1, abs=0.01)
    assert min(threshold.mu for threshold in fit.thresholds) > 0.95


def test_the_noise_of_a_saturated_curve_is_no_plateau() -> None:
    lags = np.unique(np.round(np.geomspace(1, 10_000, 25)).astype(np.int64))
    rng = np.random.default_rng(0)
    curves = 2 * (1 - np.exp(-lags / 50)) * np.exp(0.02 * rng.normal(size=(300, len(lags))))
    assert (fast_levels(lags, curves) == 0).all()


@pytest.mark.parametrize("height", [0.1, 0.3, 0.5])
def test_where_a_plateau_cannot_be_told_there_is_no_confident_answer(height: float) -> None:
    def two_steps(t_w: float, t: float) -> float:  # the true exponent is 0.5
        return height * (1 - np.exp(-t / 3)) + (1 - height) * (1 - np.exp(-((t / (3 * t_w**0.5)) ** 0.7)))

    record = curves_record(two_steps, 8, 0.01)
    fit = aging_exponent(record, n_bootstrap=20)
    assert fit.interval is None or fit.interval[1] > 0.45
    assert fit.mu is None
    assert "relax in two steps" in fit.why_not or "do not collapse" in fit.why_not
    assert verdict(record).kind in ("aging throughout", "cannot tell")


def test_a_verdict_that_the_exponent_contradicts_is_none() -> None:
    record = gaussian_record(SubagingClock(0.6, 0.3).covariance, 300, 8, 1)
    fit, judged = aging_exponent(record, n_bootstrap=20), verdict(record)
    assert reconcile(judged, fit) is judged
    wrong = replace(judged, kind="no aging")
    assert reconcile(wrong, fit).kind == "cannot tell"
    assert "a contradiction" in str(reconcile(wrong, fit))


def test_fading_noise_is_told_from_aging() -> None:
    record = curves_record(lambda t_w, t: 1e-3 * t / t_w, 8, 0.01)
    assert verdict(record).kind == "aging throughout"
    assert "no gradient noise" in str(verdict(record))
    for step in (1, 100, 10_000, 1_000_000):
        record.append_one_time("gradient_noise", step, 5.0 / (1 + step))
    found = verdict(record)
    assert (found.kind, found.observable) == ("no aging", "normalised_msd")
    assert "over the strength D(t_w) of the gradient noise" in str(found)


def test_too_little_to_judge_is_said() -> None:
    short = curves_record(lambda t_w, t: t if t_w < 60 else np.nan)
    assert verdict(short).kind == "cannot tell"
    assert "4 over a decade are needed" in str(verdict(short))
    faster = verdict(curves_record(lambda t_w, t: t * t_w**0.5))
    assert faster.kind == "cannot tell"
    assert "faster the later" in str(faster)


def test_a_random_walk_diffuses_at_half_its_variance_per_step() -> None:
    found = diffusion(gaussian_record(RandomWalk(0.3).covariance, 500, 8, 0))
    assert found.coefficient == pytest.approx(0.045, abs=4.5 * found.standard_error)
    assert found.standard_error < 0.002
    assert {window.motion for window in found.windows} == {"diffusive"}
    assert "diffusion at the bottom: K = 0.04" in str(found)


def test_a_floor_below_the_diffusion_does_not_bias_its_coefficient() -> None:
    found = diffusion(curves_record(lambda t_w, t: 1 + 1e-3 * t, 8, 0.001))
    assert found.coefficient == pytest.approx(5e-4, abs=4.5 * found.standard_error)
    assert found.standard_error < 1e-5


def test_diverged_replicas_are_named() -> None:
    record = curves_record(lambda t_w, t: (t / t_w**0.5) ** 0.8, 9, 0.01)

    def diverged(after: int) -> AgingRecord:
        """Return the same record, but with no finite number in one replica after a waiting time."""
        other = AgingRecord(record.n_parameters, n_replica=9)
        for t_w, t, row in zip(*record.pairs, record.moments, strict=True):
            if t_w > after:
                row[3] = np.nan
            other.append(t_w, t, row)
        return other

    assert "the replicas [3] are not finite" in str(verdict(diverged(after=10_000)))
    assert "of 9 replicas, 3 (counted from 0) have no finite value: they have diverged" in str(
        verdict(diverged(after=-1))
    )


def test_kinds_of_motion_follow_each_other() -> None:
    found = diffusion(curves_record(lambda t_w, t: 1e-6 * t**2 if t < 100 else 1e-2 * (t / 100) ** 0.01))
    first = [window for window in found.windows if window.waiting_time == 10]
    assert (first[0].motion, first[-1].motion) == ("ballistic", "arrested")
    assert found.coefficient is None
    assert "no diffusion at the bottom" in str(found)
    aging = diffusion(curves_record(lambda t_w, t: t / t_w))
    assert {window.motion for window in aging.windows} == {"diffusive"}
    assert aging.coefficient is None  # it diffuses, but not at a common rate


def test_levels_that_noise_has_made_are_no_fast_process() -> None:
    times = np.geomspace(500, 50_000, 9)
    noise = np.exp(np.random.default_rng(0).normal(size=9)) * 0.02
    assert common_level(times, noise) == 0
    assert common_level(times, 1e-4 * times**0.4) == pytest.approx(1e-4 * 50_000**0.4)
    half = np.where(np.arange(9) < 5, 0.0, 0.3)
    assert common_level(times, half) == 0
    assert common_level(times[1:], half[1:]) == 0.3
    assert common_level(times[:0], noise[:0]) == 0

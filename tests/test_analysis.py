"""Exponents from records whose exponent is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lightning_glassy import AgingRecord, LogTimeSchedule
from lightning_glassy.analysis import aging_exponent, collapse, lag_to_threshold, relaxation_curves
from lightning_glassy.analysis.collapse import CollapseQuality, _lag_of, scaled_lag
from lightning_glassy.glasses import SubagingClock
from lightning_glassy.record import MOMENTS

SCHEDULE = LogTimeSchedule.logspaced(
    100_000, first_waiting_time=10, waiting_times_per_decade=4, lags_per_decade=6, zero=False
)
WHOLE = (10, 100_000)  # early waiting times, with lags far above them, tell the scaling variables apart


def gaussian_record(covariance: Callable, n: int, n_replica: int, seed: int) -> AgingRecord:
    """Replicas of N coordinates of a Gaussian process, drawn exactly at the steps that the schedule needs."""
    steps = np.array(sorted({event.step for event in SCHEDULE.events}), dtype=np.int64)
    matrix = covariance(steps[:, None], steps[None, :])
    values, vectors = np.linalg.eigh(matrix)
    root = vectors * np.sqrt(np.maximum(values, 0))
    w = np.random.default_rng(seed).normal(size=(n_replica, n, len(steps))) @ root.T
    place = {int(step): i for i, step in enumerate(steps)}
    record = AgingRecord({"all": n}, n_replica=n_replica)
    for waiting_time, lag in SCHEDULE.pairs:
        new, old = w[..., place[waiting_time + lag]], w[..., place[waiting_time]]
        d = new - old
        sums = [d**2, d**4, new * old, new**2, old**2, new, old]
        record.append(waiting_time, lag, np.stack([term.sum(axis=1) for term in sums], axis=-1)[:, None, :])
    assert len(sums) == len(MOMENTS)
    return record


def curves_record(msd: Callable, n_replica: int = 1, noise: float = 0.0) -> AgingRecord:
    """A record whose MSD is a given function of waiting time and lag, with independent relative noise."""
    rng = np.random.default_rng(0)
    record = AgingRecord({"all": 1}, n_replica=n_replica)
    for waiting_time, lag in SCHEDULE.pairs:
        moments = np.full((n_replica, 1, len(MOMENTS)), np.nan)
        moments[:, 0, 0] = msd(waiting_time, lag) * np.exp(noise * rng.normal(size=n_replica))
        record.append(waiting_time, lag, moments)
    return record


def test_the_effective_time_is_unbiased_on_an_exactly_slowing_clock() -> None:
    glass = SubagingClock(mu=0.6, kappa=0.3)
    records = [gaussian_record(glass.covariance, 500, 8, seed) for seed in range(12)]
    fits = [aging_exponent(record, window=WHOLE, n_bootstrap=20) for record in records]
    effective = np.array([fit.estimates["collapse, effective time"] for fit in fits])
    assert abs(effective.mean() - 0.6) < 3 * effective.std(ddof=1) / np.sqrt(12)
    assert effective.std() < 0.02
    # The stated error is that of the trials: 12 of them know their spread to a fifth.
    assert 0.5 < np.mean([fit.standard_error for fit in fits]) / np.std([fit.mu for fit in fits], ddof=1) < 1.7
    # The plain variable is low, as it must be, and its collapse the worse one.
    assert np.mean([fit.estimates["collapse, plain"] for fit in fits]) < 0.6
    assert all(fit.qualities["collapse, plain"] > fit.qualities["collapse, effective time"] for fit in fits)


def test_the_threshold_slope_is_the_one_the_clock_predicts() -> None:
    glass = SubagingClock(mu=0.6, kappa=0.3)
    record = curves_record(lambda t_w, t: float(glass.msd(t_w, t)))
    fit = aging_exponent(record, thresholds=[0.2, 0.5, 1.0])
    for threshold in fit.thresholds:
        t_w = np.array([t for t in SCHEDULE.waiting_times if t >= fit.window[0]], dtype=float)
        exact = glass.lag_to_correlation(1 - threshold.crossings.threshold / 2, t_w)
        found = np.isfinite(threshold.crossings.lags)
        assert found.sum() >= 5
        # Interpolating between six lags per decade costs some per mille of a lag.
        assert np.allclose(threshold.crossings.lags[found], exact[found], rtol=0.01)
        assert threshold.mu == pytest.approx(np.polyfit(np.log(t_w[found]), np.log(exact[found]), 1)[0], abs=0.003)


@pytest.mark.parametrize(
    ("mu", "msd"),
    [
        pytest.param(0.0, lambda t_w, t: 0.01 * t**0.7, id="no aging: fractional Brownian motion"),
        pytest.param(1.0, lambda t_w, t: np.log1p(t / t_w), id="full aging: the logarithmic clock"),
        pytest.param(0.6, lambda t_w, t: (t_w + t) ** 0.4 - t_w**0.4, id="scaled Brownian motion, 1 - alpha"),
    ],
)
def test_clocks_that_are_known_have_their_exponent(mu: float, msd: Callable) -> None:
    fit = aging_exponent(curves_record(msd))
    assert fit.estimates["collapse, effective time"] == pytest.approx(mu, abs=0.01)


def test_data_that_scale_with_the_plain_variable_are_right_in_it() -> None:
    def msd(t_w: float, t: float) -> float:
        x = t / t_w**0.6
        return x / (1 + 0.2 * x)

    fit = aging_exponent(curves_record(msd), window=WHOLE)
    assert fit.mu == fit.estimates["collapse, plain"]
    assert fit.mu == pytest.approx(0.6, abs=0.005)
    assert fit.estimates["collapse, effective time"] > 0.61
    assert fit.systematic == pytest.approx(fit.estimates["collapse, effective time"] - fit.mu)


def test_one_run_has_no_interval_and_says_so() -> None:
    fit = aging_exponent(curves_record(lambda t_w, t: (t / t_w**0.5) ** 0.8))
    assert fit.interval is None
    assert fit.standard_error is None
    assert "no interval: 1 replica, 8 are needed" in str(fit)
    assert "collapse, plain" in str(fit)


def test_replicas_give_an_interval_that_is_reproducible_and_scales_with_the_noise() -> None:
    def fit(noise: float) -> object:
        return aging_exponent(curves_record(lambda t_w, t: (t / t_w**0.5) ** 0.8, 8, noise), n_bootstrap=40)

    quiet, loud = fit(0.01), fit(0.1)
    assert quiet.interval == fit(0.01).interval
    assert quiet.interval[0] < quiet.mu < quiet.interval[1]
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
    with pytest.raises(ValueError, match=r"window=\(20, 50\) holds 1 waiting times, 3 are needed"):
        aging_exponent(record, window=(20, 50))
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
    assert found.lags[3] == pytest.approx(np.exp(np.log(2) * np.log(3) / np.log(4)))
    assert found.lags[4] == pytest.approx(2**0.5)  # from exactly 0: half-way in the value
    with pytest.raises(ValueError, match="threshold=0"):
        lag_to_threshold(lags, [lags], 0)


@pytest.mark.parametrize("variable", ["effective", "plain"])
@pytest.mark.parametrize("mu", [-0.3, 0.0, 0.7, 1.0, 1.5])
def test_the_scaling_variable_can_be_inverted(variable: str, mu: float) -> None:
    t_w, t = np.array([3.0, 50.0, 1000.0]), np.array([2.0, 70.0, 9000.0])
    assert np.allclose(_lag_of(t_w, scaled_lag(t_w, t, mu, variable), mu, variable, 0.0), t, rtol=1e-9)


def test_a_perfect_collapse_has_a_smaller_s_than_any_other() -> None:
    curves = relaxation_curves(curves_record(lambda t_w, t: (t / t_w**0.5) ** 0.8))
    quality = CollapseQuality(curves.waiting_times, curves.lags, curves.values)
    best = quality(0.5, "plain")
    assert best < 1e-20
    assert all(quality(mu, "plain") > 1e-6 for mu in (0.3, 0.45, 0.55, 0.8))
    collapsed = collapse(curves, 0.5, "plain")
    measured = np.isfinite(collapsed.values)
    assert np.allclose(collapsed.values[measured], (collapsed.scaled_lags**0.8)[measured], rtol=1e-10)
    assert collapsed.quality == best

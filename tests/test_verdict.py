"""The verdict on known clocks, on many grids of checkpoints, and every sentence that it can print."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lightning_glassy import AgingRecord, LogTimeSchedule
from lightning_glassy.analysis import (
    AgingRate,
    Verdict,
    aging_exponent,
    loss_regimes,
    reconcile,
    relaxation_curves,
    verdict,
)
from lightning_glassy.analysis.curves import too_short
from lightning_glassy.analysis.phase import _rate_of
from lightning_glassy.analysis.regimes import rest
from lightning_glassy.callbacks.summary import summary
from lightning_glassy.glasses import SubagingClock
from lightning_glassy.record import MOMENTS
from lightning_glassy.report import report

Msd = Callable[[float, float], float]


def per_decade(n: int) -> list[int]:
    return [0, *sorted({round(10 ** (k / n)) for k in range(int(n * np.log10(2**17)) + 1)})]


GRIDS = {
    "powers of two": [0, *(2**k for k in range(18))],
    "1-2-5": [0, *(m * 10**k for k in range(6) for m in (1, 2, 5))],
    "3 per decade": per_decade(3),
    "4 per decade": per_decade(4),
    "5 per decade": per_decade(5),
    "10 per decade": per_decade(10),
    "Pythia": [0, *(2**k for k in range(10)), *range(1000, 143_001, 1000)],
    "every 100 steps": list(range(0, 5001, 100)),
    "epochs": list(range(51)),
}
CORNER = {"every 100 steps": 800, "epochs": 8}  # the step at which a clock stops or starts: elsewhere 1,000
SCHEDULE = LogTimeSchedule.logspaced(
    100_000, first_waiting_time=10, waiting_times_per_decade=4, lags_per_decade=6, zero=False
)


def clock(kind: str, corner: int) -> Callable[[np.ndarray], np.ndarray]:
    return {
        "stops": lambda t: np.where(t < corner, np.log1p(t), np.log1p(corner) + (t - corner) / (corner + 1)),
        "starts": lambda t: np.where(t < corner, t, corner + corner * np.log(np.maximum(t, 1) / corner)),
        "ages": np.log1p,
        "subages": np.sqrt,
        "never ages": lambda t: t,
    }[kind]


def walk_record(steps: Sequence[int], clock: Callable, n_replica: int | None = None, seed: int = 0) -> AgingRecord:
    """Return a random walk of 2,000 coordinates on a clock, at checkpoints."""
    times = clock(np.asarray(steps, dtype=np.float64))
    rng, count = np.random.default_rng(seed), n_replica or 1
    moves = np.sqrt(np.diff(times, prepend=0.0))[:, None] * rng.normal(size=(count, len(steps), 2000))
    w = np.cumsum(moves, axis=1)
    products = w @ w.transpose(0, 2, 1)
    squares = np.diagonal(products, axis1=1, axis2=2)
    record = AgingRecord({"all": 2000}, n_replica=n_replica)
    for i, j in zip(*np.triu_indices(len(steps), 1), strict=True):
        moments = np.full((count, 1, len(MOMENTS)), np.nan)
        moments[:, 0, 0] = squares[:, i] + squares[:, j] - 2 * products[:, i, j]
        record.append(steps[i], steps[j] - steps[i], moments if n_replica else moments[0])
    return record


def exact_record(
    msd: Msd, pairs: Sequence[tuple[int, int]], n_replica: int | None = None, noise: float = 0.0, seed: int = 0
) -> AgingRecord:
    """Return a record of a known MSD. The noise is one factor for each waiting time and replica."""
    rng, count = np.random.default_rng(seed), n_replica or 1
    record, factors = AgingRecord({"all": 1}, n_replica=n_replica), {}
    for t_w, t in pairs:
        moments = np.full((count, 1, len(MOMENTS)), np.nan)
        factor = factors.setdefault(t_w, np.exp(noise * rng.normal(size=count)))
        moments[:, 0, 0] = msd(t_w, t) * factor
        record.append(t_w, t, moments if n_replica else moments[0])
    return record


def checkpoints(steps: Sequence[int]) -> list[tuple[int, int]]:
    return [(a, b - a) for i, a in enumerate(steps) for b in steps[i + 1 :]]


def of_clock(kind: str, corner: int = 1000) -> Msd:
    function = clock(kind, corner)
    return lambda t_w, t: float(function(np.array(t_w + t, dtype=float)) - function(np.array(t_w, dtype=float)))


# ---------------------------------------------------------------------- grids of checkpoints

TRUTH = {
    "stops": "aging that stops",
    "starts": "aging throughout",
    "ages": "aging throughout",
    "subages": "aging throughout",
    "never ages": "no aging",
}


@pytest.mark.parametrize("n_replica", [None, 8], ids=["one run", "8 replicas"])
@pytest.mark.parametrize("kind", TRUTH)
@pytest.mark.parametrize("grid", GRIDS)
def test_on_every_grid_of_checkpoints_the_verdict_is_true_or_none(grid: str, kind: str, n_replica: int | None) -> None:
    corner = CORNER.get(grid, 1000)
    found = verdict(walk_record(GRIDS[grid], clock(kind, corner), n_replica, seed=1))
    short = grid in CORNER and kind == "stops"  # it stops within the last decade
    assert found.kind in ({TRUTH[kind], "cannot tell"} if n_replica is None or short else {TRUTH[kind]})
    if found.stops_at is not None:
        after = [step for step in GRIDS[grid] if step >= corner]
        before = [step for step in GRIDS[grid] if step <= corner]
        assert before[-3] <= found.stops_at <= after[2]


@pytest.mark.parametrize("grid", ["powers of two", "1-2-5", "3 per decade", "Pythia"])
def test_the_waiting_times_are_compared_up_to_the_last_one(grid: str) -> None:
    found = verdict(walk_record(GRIDS[grid], clock("ages", 1000), seed=1))
    assert found.rates[0].last == GRIDS[grid][-2]
    assert found.rates[1].first >= GRIDS[grid][-2] / 10.01


@pytest.mark.parametrize("grid", ["powers of two", "1-2-5", "3 per decade", "5 per decade", "Pythia"])
@pytest.mark.parametrize(
    "msd",
    [
        pytest.param(of_clock("ages"), id="full aging"),
        pytest.param(of_clock("subages"), id="subaging"),
        pytest.param(of_clock("never ages"), id="random walk"),
        pytest.param(lambda t_w, t: float(SubagingClock(0.3, 0.01).msd(t_w, t)), id="bounded"),
    ],
)
def test_the_error_of_the_interpolation_covers_the_true_error(grid: str, msd: Msd) -> None:
    curves = relaxation_curves(exact_record(msd, checkpoints(GRIDS[grid])))
    assert curves.interpolation.shape == curves.values.shape[1:]
    there = np.isfinite(curves.values[0])
    assert (np.isfinite(curves.interpolation) == there).all()
    exact = np.array([[msd(t_w, t) for t in curves.lags] for t_w in curves.waiting_times])
    off, stated = np.abs(np.log(curves.values[0] / exact))[there], curves.interpolation[there]
    assert (off <= stated + 1e-3).mean() > 0.98
    assert (off - stated).max() < 0.004
    assert np.median(stated) < 0.01
    # A measured value is exact, and its error is 0.
    assert (curves.interpolation == 0).any()
    pairs = set(zip(*(part.tolist() for part in exact_record(msd, checkpoints(GRIDS[grid])).pairs), strict=True))
    for i, t_w in enumerate(curves.waiting_times.tolist()):
        for j, t in enumerate(curves.lags.tolist()):
            assert ((t_w, t) not in pairs) or curves.interpolation[i, j] == 0


@pytest.mark.parametrize("grid", ["powers of two", "1-2-5", "3 per decade", "5 per decade", "Pythia", "epochs"])
@pytest.mark.parametrize("mu", [0.0, 0.5, 1.0])
def test_the_exponent_is_right_on_every_grid(grid: str, mu: float) -> None:
    # At 0, the first clock step does not follow t_w^(1 - mu), so use a clock without an offset.
    msd = {
        0.0: lambda t_w, t: t,
        0.5: lambda t_w, t: (t_w + t) ** 0.5 - t_w**0.5,
        1.0: lambda t_w, t: np.log1p(t / t_w),
    }
    record = exact_record(msd[mu], checkpoints(GRIDS[grid][1:]))
    fit = aging_exponent(record)
    assert fit.estimate == pytest.approx(mu, abs=0.005)
    if mu == 0:
        assert "no aging" in fit.why_not
    elif grid == "epochs":  # all lags are longer than most waiting times, so that both scaling variables fit
        assert fit.why_not.startswith("the methods ")
    else:
        assert fit.mu == fit.estimate


@pytest.mark.parametrize("grid", ["powers of two", "1-2-5", "3 per decade"])
def test_the_interval_of_a_rate_has_the_error_of_the_interpolation(grid: str) -> None:
    exact = verdict(exact_record(of_clock("ages"), checkpoints(GRIDS[grid]))).rates[1]
    assert exact.low < 1 < exact.high
    assert 0.14 < exact.high - exact.low < 0.3  # there is no other error in this record
    dense = verdict(exact_record(lambda t_w, t: np.log1p(t / t_w), SCHEDULE.pairs)).rates[1]
    assert dense.high - dense.low < 0.03


def test_a_record_of_common_lags_is_not_interpolated() -> None:
    record = exact_record(of_clock("ages"), SCHEDULE.pairs)
    curves = relaxation_curves(record)
    assert curves.interpolation is None
    assert np.array_equal(curves.lags, record.lags)
    assert curves.between(10, 1000).thinned(40, 60).interpolation is None


def test_thinned_curves_keep_the_errors_of_their_interpolation() -> None:
    curves = relaxation_curves(exact_record(of_clock("ages"), checkpoints(GRIDS["Pythia"])))
    thin = curves.thinned(40, 60).after(100)
    assert thin.interpolation.shape == thin.values.shape[1:]
    rows = np.isin(curves.waiting_times, thin.waiting_times)
    assert np.array_equal(thin.interpolation, curves.interpolation[rows], equal_nan=True)


def test_a_value_that_is_not_finite_is_never_bridged() -> None:
    def msd(t_w: float, t: float) -> float:
        return np.nan if 1000 <= t <= 3000 else np.log1p(t / (t_w + 1))

    curves = relaxation_curves(exact_record(msd, checkpoints(GRIDS["powers of two"])))
    gap = (curves.lags > 1100) & (curves.lags < 2000)
    assert gap.any()
    assert np.isnan(curves.values[..., gap]).all()
    assert np.isfinite(curves.values[0, 1]).sum() > 25


def test_without_a_curve_of_three_lags_nothing_is_interpolated() -> None:
    pairs = [(1, 10), (1, 100), (10, 20), (10, 60), (20, 30), (20, 200)]
    curves = relaxation_curves(exact_record(lambda t_w, t: t, pairs))
    assert np.isfinite(curves.values).sum() == len(pairs)


# ---------------------------------------------------------------------- every sentence of the verdict


def told(record: AgingRecord, **options: str) -> str:
    return " | ".join(verdict(record, **options).evidence)


STEPS = sorted({t_w for t_w, _ in SCHEDULE.pairs})


def law(height: Callable[[float], float], slope: float = 1.0) -> Msd:
    """Return an MSD that is a power of the lag, times exp of a function of ln t_w."""
    return lambda t_w, t: float(t**slope * np.exp(height(np.log(max(t_w, 1)))))


def bend(*pieces: tuple[float, float]) -> Callable[[float], float]:
    """Return a continuous function of straight pieces. Each piece has its first waiting time and its aging rate."""
    starts, rates = np.log([p[0] for p in pieces]), [p[1] for p in pieces]
    ends = np.append(starts[1:], np.inf)
    return lambda x: -sum(rate * np.clip(x - a, 0, b - a) for a, b, rate in zip(starts, ends, rates, strict=True))


def test_it_still_ages_in_the_last_decade() -> None:
    found = verdict(exact_record(law(bend((1, 0.6))), SCHEDULE.pairs, 8, 0.01))
    assert found.kind == "aging throughout"
    assert re.match(r"MSD still ages in the last decade: aging rate 0\.[56]\d \(", found.evidence[0])
    assert len(found.evidence) == 2  # the second is the missing gradient noise
    assert "whose fading would slow the motion without any glass" in found.evidence[1]


def test_it_did_not_age_before() -> None:
    found = verdict(exact_record(law(bend((1, 0.0), (2000, 0.8))), SCHEDULE.pairs, 8, 0.01))
    assert found.kind == "aging throughout"
    assert re.match(r"before, its curves coincide: aging rate -?0\.0", found.evidence[1])


def test_few_waiting_times_are_called_the_end_and_not_the_last_decade() -> None:
    pairs = [(t_w, t) for t_w in (10, 100, 1000, 10_000, 100_000) for t in (3, 10, 30, 100, 300, 1000)]
    assert "MSD still ages at the end: " in told(exact_record(law(bend((1, 0.6))), pairs, 8, 0.01))


def test_it_relaxes_faster_the_later_it_is_looked_at() -> None:
    found = verdict(exact_record(law(bend((1, -0.4))), SCHEDULE.pairs, 8, 0.01))
    assert found.kind == "cannot tell"
    assert "MSD relaxes faster the later it is looked at: aging rate -0.4" in found.evidence[0]


def test_the_last_decade_is_not_decided() -> None:
    found = verdict(exact_record(law(bend((1, 0.1))), SCHEDULE.pairs, 8, 0.5))
    assert found.kind == "cannot tell"
    assert "MSD: the aging in the last decade is not decided: aging rate" in found.evidence[0]
    # The last decade as a whole ages, but its later half may not.
    late = verdict(exact_record(law(bend((1, 1.0), (15_000, 0.05))), SCHEDULE.pairs, 8, 0.15, seed=2))
    assert late.kind == "cannot tell"
    assert re.search(r"in the last decade is not decided: aging rate .* \.\.\. .*, but aging rate", late.evidence[0])


def test_aging_can_stop_within_the_last_decade() -> None:
    found = verdict(exact_record(law(bend((1, 0.8), (10_000, 0.0))), SCHEDULE.pairs, 8, 0.002))
    assert (found.kind, found.stops_at) == ("aging that stops", 10_000)


@pytest.mark.parametrize("grid", ["2 per decade", "powers of two"])
@pytest.mark.parametrize("corner", [30, 100])
def test_an_early_stop_is_not_lost_in_a_long_flat_part(grid: str, corner: int) -> None:
    steps = GRIDS.get(grid, per_decade(2))
    found = verdict(walk_record(steps, clock("stops", corner), 8))
    assert found.kind == "aging that stops"
    assert corner / 4 < found.stops_at < corner * 4


def test_at_long_lags_a_smaller_rate_is_aging() -> None:
    # With one checkpoint per decade, the lags are nine waiting times. There a clock with the exponent 0.5 has 0.24.
    found = verdict(exact_record(lambda t_w, t: (t_w + t) ** 0.5 - t_w**0.5, checkpoints(per_decade(1))))
    assert found.kind == "aging throughout"
    assert found.rates[-1].lag_ratio == pytest.approx(9, rel=0.1)
    assert found.rates[-1].least < 0.05
    assert replace(found.rates[-1], lag_ratio=0.1).least == pytest.approx(0.1)


def test_curves_coincide() -> None:
    found = verdict(exact_record(law(bend((1, 0.0))), SCHEDULE.pairs, 8, 0.01))
    assert (found.kind, found.evidence[0][:26]) == ("no aging", "curves of the MSD coincide")


def test_it_ages_at_first() -> None:
    found = verdict(exact_record(law(bend((1, 0.8), (1000, 0.0))), SCHEDULE.pairs, 8, 0.01))
    assert (found.kind, found.stops_at) == ("aging that stops", 1000)
    assert re.match(r"MSD ages at first: aging rate 0\.[78].*; then its curves coincide: ", found.evidence[0])
    assert "aging that stops (at step 1,000)" in str(found)


def test_before_they_coincide_they_shift_without_a_trend() -> None:
    found = verdict(exact_record(law(bend((1, -0.8), (1000, 0.0))), SCHEDULE.pairs, 8, 0.01))
    assert found.kind == "cannot tell"
    assert "coincide at the end: " in found.evidence[0]
    assert "; before, they shift without a trend: aging rate -" in found.evidence[0]


def test_a_slow_process_that_ages_below_a_fast_one_is_seen() -> None:
    found = verdict(exact_record(lambda t_w, t: t if t > 300 else t * t_w**-0.1, SCHEDULE.pairs, 8, 0.001))
    assert found.kind == "cannot tell"
    assert re.search(r"where they rise most \(.*\), but at lags .* they change as t_w\^-0\.1", found.evidence[0])


def test_four_waiting_times_over_a_decade_are_needed() -> None:
    short = exact_record(lambda t_w, t: t, [(t_w, t) for t_w in (10, 20, 40) for t in (1, 3, 10)])
    assert told(short) == "3 waiting times from 10 to 40 can be compared; 4 over a decade are needed"
    none = exact_record(lambda t_w, t: t, [(0, 1), (0, 2)])
    assert told(none) == "0 waiting times can be compared; 4 over a decade are needed"


def test_later_waiting_times_that_share_no_lags_leave_it_open() -> None:
    early = [(t_w, t) for t_w in (1, 2, 5, 10, 20, 50) for t in (1, 3, 10)]
    late = [(t_w, t) for t_w in (100, 200, 500, 1000) for t in (30, 100, 300)]
    found = verdict(exact_record(of_clock("ages"), [*early, *late]))
    assert found.kind == "cannot tell"
    assert found.evidence == [
        "waiting times after step 50 cannot be compared, because they share no range of lags with earlier ones: more "
        "lags in common are needed, for example from checkpoints at ten steps per decade"
    ]
    # If the rest reaches far enough, it decides.
    assert verdict(exact_record(of_clock("ages"), [*early, *late[:3]])).kind == "aging throughout"
    # Too few waiting times can be compared at all, and the sentence gives the reason.
    alone = told(exact_record(of_clock("ages"), [*early[:6], *late]))
    assert "2 waiting times from 1 to 2 can be compared" in alone
    assert "waiting times after step 2 cannot be compared" in alone


def test_two_lags_are_enough_and_a_curve_with_other_lags_stops_no_comparison() -> None:
    times = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    pairs = [(t_w, t) for t_w in times for t in ((1, 10) if t_w == 50 else (10, 30) if t_w < 50 else (30, 100))]
    found = verdict(exact_record(of_clock("ages"), pairs))
    assert found.kind == "aging throughout"
    assert (found.rates[0].first, found.rates[0].last) == (1, 1000)


def test_lags_far_beyond_the_waiting_time_do_not_decide() -> None:
    record = exact_record(of_clock("ages"), [(t_w, t) for t_w in (1, 2, 5, 10, 20, 50) for t in (1000, 3000, 9000)])
    assert "because the lags that they share with earlier ones are more than 10 times the waiting time" in told(record)


def test_the_gradient_noise_decides_or_is_said_not_to() -> None:
    record = exact_record(lambda t_w, t: 1e-3 * t / t_w, SCHEDULE.pairs, 8, 0.01)
    for step in (1, 100, 1000):
        record.append_one_time("gradient_noise", step, 5.0)
    assert "the gradient noise was not measured at late enough waiting times to compare with it" in told(record)
    record.append_one_time("gradient_noise", 1_000_000, 5.0)
    assert "over the gradient noise D(t_w), the MSD over the noise strength still ages" in told(record)
    fading = exact_record(lambda t_w, t: 1e-3 * t / t_w, SCHEDULE.pairs, 8, 0.01)
    for step in (1, 100, 10_000, 1_000_000):
        fading.append_one_time("gradient_noise", step, 5.0 / (1 + step))
    assert verdict(fading).observable == "normalised_msd"
    assert "over the strength D(t_w) of the gradient noise, which changes, too:" in told(fading)


AGING = law(bend((1, 0.6)))
STOPPING = law(bend((1, 0.8), (1000, 0.0)))


@functools.cache
def trained(msd: Msd, accuracy: float | None, losses: tuple[tuple[int, float], ...]) -> Verdict:
    record = exact_record(msd, SCHEDULE.pairs, 8, 0.01)
    for step, loss in losses:
        record.append_one_time("train_loss", step, loss)
    if accuracy is not None:
        record.append_one_time("train_accuracy", 100_000, accuracy)
    return verdict(record)


STUCK = ((10_000, 1.0), (100_000, 0.9))
FALLING = ((10_000, 1.0), (100_000, 0.2))
BELOW_ZERO = ((10_000, 1.0), (100_000, -0.2))


@pytest.mark.parametrize(
    ("msd", "accuracy", "losses", "phase", "words"),
    [
        (AGING, None, STUCK, None, "training loss is 0.9, the accuracy is not in the record: the curves alone do not"),
        (AGING, None, (), None, "whose fading would slow the motion"),
        (AGING, 97.3, STUCK, None, "at the end the training loss is 0.9; the accuracy in the record, 97.3, is not a"),
        (AGING, 0.8, (), None, "at the end of training, 80.00% of the training data are learnt"),
        (AGING, 0.8, (), None, "whether learning has come to an end is not in the record: a glass, or a short run"),
        (AGING, 0.8, STUCK[1:], None, "whether learning has come to an end is not in the record"),
        (AGING, 0.8, FALLING, None, "it is still learning (its loss falls by a factor of 5 per decade): a glass, or a"),
        (AGING, 0.8, BELOW_ZERO, None, "it is still learning (its loss still falls): a glass, or a short run"),
        (AGING, 0.8, STUCK, "glassy", "it ages on without the rest, and its loss hardly falls any more, as in a glass"),
        (AGING, 0.99, STUCK, None, "so nearly all that the phase is not clear"),
        (AGING, 1.0, STUCK, None, "it ages although all is learnt: flat directions or fading gradient noise"),
        (STOPPING, 1.0, STUCK, "over-parametrised", "it has learnt all, and moves on without aging"),
        (STOPPING, 1.0, FALLING, "over-parametrised", "moves on without aging: its loss falls by a factor of 5 per"),
        (STOPPING, 0.8, STUCK, None, "it has stopped aging without having learnt the training data"),
        (STOPPING, 0.8, FALLING, None, "it has stopped aging, but is still learning (its loss falls by a factor of 5"),
    ],
)
def test_the_phase_and_its_reason(
    msd: Msd, accuracy: float | None, losses: tuple, phase: str | None, words: str
) -> None:
    found = trained(msd, accuracy, losses)
    assert found.phase == phase
    assert words in str(found)


def test_an_open_verdict_does_not_speak_of_the_phase() -> None:
    record = exact_record(law(bend((1, -0.4))), SCHEDULE.pairs, 8, 0.01)
    record.append_one_time("train_loss", 100_000, 0.5)
    assert verdict(record).evidence[-1] == "at the end the training loss is 0.5, the accuracy is not in the record"


def test_replicas_that_diverge_are_named() -> None:
    record = exact_record(AGING, SCHEDULE.pairs, 9, 0.01)
    other = AgingRecord(record.n_parameters, n_replica=9)
    for t_w, t, row in zip(*record.pairs, record.moments, strict=True):
        row = row.copy()
        row[3] = np.nan if t_w > 10_000 else row[3]
        other.append(t_w, t, row)
    assert verdict(other).warnings[0] == "the replicas [3] are not finite where others are: those pairs are left out"
    assert aging_exponent(other, n_bootstrap=10).warnings.count(verdict(other).warnings[0]) == 1


# ---------------------------------------------------------------------- the loss is at the bottom, or still falls

FAMILY = {
    "three pieces": lambda t: 2.3 - 2.2 * np.clip(np.log(t / 50) / np.log(100), 0, 1),
    "a power": lambda t: 2.3 / (1 + t / 100) ** 2,
    "a slow power": lambda t: 2.3 / (1 + t / 100) ** 0.3,
    "a floor": lambda t: 0.4 + 1.9 / (1 + t / 300),
    "a late floor": lambda t: 0.4 + 1.9 / (1 + (t / 20_000) ** 3),
    "exponential": lambda t: 0.01 + 2.3 * np.exp(-t / 3000),
    "logarithm": lambda t: 2.3 - 0.18 * np.log(t),
    "flat": lambda t: 2.3 + 0 * t,
    "negative": lambda t: -np.log(t),
}


@pytest.mark.parametrize("loss", FAMILY.values(), ids=FAMILY)
def test_at_the_bottom_and_still_learning_never_stand_side_by_side(loss: Callable) -> None:
    record = exact_record(AGING, SCHEDULE.pairs, 8, 0.01)
    for step in STEPS:
        record.append_one_time("train_loss", step, float(loss(step)))
    record.append_one_time("train_accuracy", STEPS[-1], 0.8)
    regimes, judged = loss_regimes(record), verdict(record)
    assert rest(record)[1] == regimes.at_rest
    learning = "still learning" in str(judged)
    assert learning == (regimes.at_rest is False)
    assert (judged.phase == "glassy") == (regimes.at_rest is True)
    if learning and regimes.bottom_from is not None:
        assert "(iii) at the bottom on a linear scale" in str(regimes)
        assert "but still falling by a factor of" in str(regimes)
    elif regimes.bottom_from is not None:
        assert "(iii) at the bottom, " in str(regimes)


def test_a_power_law_is_no_headline_of_a_bottom() -> None:
    record = exact_record(AGING, SCHEDULE.pairs)
    for step in STEPS:
        record.append_one_time("train_loss", step, FAMILY["a power"](step))
    assert loss_regimes(record).fall == pytest.approx(100, rel=0.1)
    assert not [name for _, name in report(record).headline if "at the bottom" in name and "loss" in name]
    record = exact_record(AGING, SCHEDULE.pairs)
    for step in STEPS:
        record.append_one_time("train_loss", step, FAMILY["three pieces"](step))
    assert [value for value, name in report(record).headline if "loss is at the bottom" in name] == ["step 4,869"]


def test_whether_training_is_at_rest_needs_half_a_decade() -> None:
    record = AgingRecord({"all": 1})
    assert rest(record)[1] is None
    for step in (80_000, 100_000):
        record.append_one_time("train_loss", step, 1.0)
    assert rest(record)[1] is None
    zero = AgingRecord({"all": 1})
    for step, loss in ((100, 1.0), (1000, 0.0)):
        zero.append_one_time("train_loss", step, loss)
    assert rest(zero)[1] is True


# ---------------------------------------------------------------------- verdict and exponent


WINDOW = (1000, 100_000)


def fitted(estimate: float, interval: tuple[float, float] | None = None, *, headline: bool = True, **other: Any) -> Any:
    """Return the part of an exponent that is compared with a verdict."""
    mu = estimate if headline else None
    fit = {"estimate": estimate, "mu": mu, "interval": interval, "observable": "msd", "group": "all", "window": WINDOW}
    found = SimpleNamespace(**{**fit, **other})
    found.table = other.get("table", [found])
    return found


def judged(kind: str, rate: float = 0.0, ratio: float = 0.03, stops_at: int | None = None) -> Verdict:
    late = AgingRate(10_000, 100_000, rate, rate - 0.05, rate + 0.05, ratio)
    return Verdict(kind, stops_at, "glassy", "msd", "all", [late, late], None, None, ["evidence"])


AGES = judged("aging throughout", 0.6)
REST = judged("no aging")
EARLY, LATE = judged("aging that stops", stops_at=2000), judged("aging that stops", stops_at=20_000)


@pytest.mark.parametrize(
    ("found", "fit", "words"),
    [
        (AGES, fitted(-0.23), "has the exponent -0.23: a contradiction to aging"),
        (AGES, fitted(-0.23, headline=False), "has the exponent -0.23: a contradiction to aging"),
        (AGES, fitted(0.02, (-0.02, 0.06)), "has the exponent 0.02 (-0.02 ... 0.06): a contradiction to aging"),
        (AGES, fitted(0.1, (0.05, 0.15)), "a contradiction to the aging rate 0.60 (0.55 ... 0.65) for waiting times"),
        (AGES, fitted(1.2, (1.1, 1.3)), "a contradiction to the aging rate 0.60"),
        (AGES, fitted(1.5), "a contradiction to the aging rate 0.60"),
        (REST, fitted(0.6, (0.5, 0.7)), "has the exponent 0.60 (0.50 ... 0.70): a contradiction to curves that"),
        (REST, fitted(1.01), "has the exponent 1.01: a contradiction to curves that coincide"),
        (REST, fitted(-0.5, (-0.6, -0.4)), "a contradiction to curves that coincide"),
        (REST, fitted(-0.4), "a contradiction to curves that coincide"),
        (EARLY, fitted(0.6, (0.5, 0.7), headline=False), "a contradiction to curves that coincide"),
        (EARLY, fitted(0.9), "a contradiction to curves that coincide"),
    ],
)
def test_a_contradiction_between_verdict_and_exponent_is_one_sentence(found: Verdict, fit: Any, words: str) -> None:
    open_ = reconcile(found, fit)
    assert (open_.kind, open_.stops_at, open_.phase) == ("cannot tell", None, None)
    assert len(open_.evidence) == len(found.evidence) + 1
    assert words in open_.evidence[-1]


@pytest.mark.parametrize(
    ("found", "fit"),
    [
        (AGES, fitted(0.6, (0.5, 0.7))),
        (AGES, fitted(0.6)),
        (AGES, fitted(0.4, (-0.2, 1.0))),  # a wide interval contradicts nothing
        (AGES, fitted(np.nan, headline=False)),
        (AGES, fitted(1.2, (1.1, 1.3), headline=False)),  # without a collapse, the size of an exponent has no meaning
        (AGES, fitted(-0.5, observable="overlap")),
        (AGES, fitted(-0.5, group="fc1")),
        (judged("aging throughout", 0.33, ratio=3.0), fitted(0.5, (0.48, 0.52))),  # rates at long lags are lower
        (REST, fitted(0.02, (0.01, 0.03))),
        (REST, fitted(0.2)),
        (EARLY, fitted(0.0, (-0.02, 0.02))),
        (LATE, fitted(0.6, (0.5, 0.7))),  # aging that stops within the fitted window has an exponent of its own
        (judged("cannot tell"), fitted(0.6, (0.5, 0.7))),
    ],
)
def test_an_exponent_that_agrees_leaves_the_verdict(found: Verdict, fit: Any) -> None:
    assert reconcile(found, fit) is found


def test_the_table_of_an_exponent_has_the_observable_of_the_verdict() -> None:
    other = fitted(0.6, observable="overlap", table=[fitted(0.6, observable="overlap"), fitted(-0.5)])
    assert reconcile(AGES, other).kind == "cannot tell"


@pytest.mark.parametrize("mu", [0.2, 0.5, 0.9])
def test_the_rate_at_long_lags_is_that_of_the_clock(mu: float) -> None:
    assert _rate_of(mu, 1e-6) == pytest.approx(mu, abs=1e-3)
    assert _rate_of(mu, np.nan) == mu
    glass = of_power(mu)
    t_w, t, d = 1000.0, 700.0, 1e-4
    by_time = np.log(glass(t_w * (1 + d), t) / glass(t_w, t))
    by_lag = np.log(glass(t_w, t * (1 + d)) / glass(t_w, t))
    assert _rate_of(mu, 0.7) == pytest.approx(-by_time / by_lag, abs=1e-3)


def of_power(mu: float) -> Msd:
    return lambda t_w, t: (t_w + t) ** (1 - mu) - t_w ** (1 - mu)


def test_a_report_and_the_end_of_a_training_reconcile(monkeypatch: pytest.MonkeyPatch) -> None:
    record = exact_record(AGING, SCHEDULE.pairs)
    monkeypatch.setattr("lightning_glassy.analysis.verdict", lambda record: REST)
    text = "\n".join(summary(record, "AgingMonitor"))
    assert "verdict: cannot tell" in text
    assert "a contradiction to curves that coincide" in text


# ---------------------------------------------------------------------- short runs


def short_record(first: int = 1, last: int = 20, msd: Msd = AGING) -> AgingRecord:
    times = [t for t in (1, 2, 5, 10, 20, 50) if first <= t <= last]
    record = exact_record(msd, [(t_w, t) for t_w in [0, *times] for t in (1, 2, 5, 10)])
    record.meta.update(
        sampler="SequentialSampler",
        optimizers=[{"name": "AdamW", "parameter_groups": [{"lr": 0.1, "weight_decay": 0.01}]}],
    )
    return record


def test_a_short_run_is_too_short_for_an_exponent_in_one_line() -> None:
    lines = summary(short_record(msd=law(bend((1, 0.6)), 0.1)), "AgingMonitor")
    assert "Aging of 1 parameters" in lines[0]
    assert lines[-1] == (
        "too short for an exponent: 5 waiting times span 1.3 decades (1 ... 20); at least 4 over 1.6 decades are needed"
    )
    assert "!" not in "\n".join(lines)


def test_a_short_run_has_a_verdict_only_if_it_is_decided() -> None:
    decided, open_ = summary(short_record(), "AgingMonitor"), summary(short_record(5), "AgingMonitor")
    assert decided[1].startswith("verdict: aging throughout")
    assert (len(decided), len(open_)) == (3, 2)
    assert open_[1].startswith("too short for an exponent: 3 waiting times span 0.6 decades (5 ... 20)")


def test_a_short_run_keeps_the_doubts_about_its_numbers() -> None:
    record = short_record()
    record.add_doubt("the weights were rounded")
    assert summary(record, "AgingMonitor")[-1] == "  ! the weights were rounded"


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([(0, 1)], "no waiting time after step 0 has a positive value"),
        ([(0, 1), (7, 1)], "1 waiting time (7); at least 4 over 1.6 decades are needed"),
        ([(1, 1), (100, 1), (1000, 1)], "3 waiting times span 3.0 decades (1 ... 1,000)"),
        ([(1, 1), (2, 1), (5, 1), (39, 1)], "4 waiting times span 1.6 decades (1 ... 39)"),
        ([(1, 1), (2, 1), (5, 1), (40, 1)], None),
    ],
)
def test_how_long_a_run_must_be(pairs: list[tuple[int, int]], words: str | None) -> None:
    found = too_short(relaxation_curves(exact_record(lambda t_w, t: t, pairs)))
    assert (found is None) == (words is None)
    assert words is None or f"too short for an exponent: {words}" in str(found)


def test_a_long_run_has_verdict_and_exponent_at_its_end() -> None:
    text = "\n".join(summary(exact_record(AGING, SCHEDULE.pairs), "AgingMonitor"))
    assert "verdict: aging throughout" in text
    assert "aging exponent mu = 0.6" in text
    record = exact_record(AGING, SCHEDULE.pairs)
    record.add_doubt("the weights were rounded")
    assert "\n".join(summary(record, "AgingMonitor")).count("the weights were rounded") == 1
    still = "\n".join(summary(exact_record(lambda t_w, t: 1e-9, SCHEDULE.pairs), "AgingMonitor"))
    assert "no aging exponent: the curves hardly rise" in still

r"""The statements of Baity-Jesi et al. 2018 (arXiv 1803.06969) on networks and on a glass, compared with measurements.

One function decides each statement. It returns "seen", "not seen" or "not testable here", with the numbers that decide.
Its docstring is the rule, and the tables show this docstring. :mod:`examples.studies.comparing_dynamics` measures and
writes the tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lightning_glassy import AgingRecord
from lightning_glassy.analysis import (
    LossRegimes,
    NotEnoughDataError,
    loss_regimes,
    noise_clock,
    relaxation_curves,
    verdict,
)
from lightning_glassy.analysis.headline import AGES
from lightning_glassy.observables import Array, barrier_height

SEEN, NOT_SEEN, UNTESTABLE = "seen", "not seen", "not testable here"
FITTED, MISFIT = 0.999, 0.98  # learnt fraction of the training data: smallest if all is learnt, largest if trapped
DIFFUSIVE = (0.85, 1.15)  # local exponents, as in lightning_glassy.analysis.diffusion
STRAIGHT = 0.2  # largest rms deviation of ln(displacement) from a straight line
BENT = 0.1  # largest deviation of a loss from three straight pieces, as part of its fall
DRIFTS, BETTER = 1.5, 0.8  # smallest change of D that separates the two clocks, and largest ratio of their scatters
RESOLVED = 0.01  # largest error of the flat fraction at which "no change" is a result
BARRIER = 0.05  # smallest height of a barrier, as part of the loss at the higher end
NEAR_PLATEAU = 0.2  # largest relative distance from the plateau
NEAR_THRESHOLD = 0.005  # largest relative distance from the energy of the threshold
SHORT_LAG = 0.1  # as a time of the glass
SLOWER = 0.1  # smallest difference of two local exponents
COINCIDE = 0.05  # largest trend with the waiting time of curves that coincide

Finding = dict[str, str]
"""The entries ``"verdict"``, and ``"words"`` with the numbers."""

Glassy = dict[str, Any]
"""The result of :func:`examples.studies.comparing_dynamics.analysed_glass` for one temperature, as in the JSON."""

ALL, MANY_WEIGHTS, FEW_WEIGHTS = "all", "many weights", "few weights"


class Statement(NamedTuple):
    """A statement of the paper, the function that decides it, and the networks that it is about."""

    text: str
    decide: Callable[..., Finding]
    of: str


OF_NETWORKS: dict[str, Statement] = {}
OF_GLASS: dict[str, Statement] = {}
"""The statements by their keys in the JSON. Those on the glass have a check of the callback, too."""


def statement(where: dict[str, Statement], key: str, text: str, of: str = ALL) -> Callable[..., Statement]:
    """Return a decorator that makes a statement from a function, and adds it to the others."""
    return lambda decide: where.setdefault(key, Statement(text, decide, of))


def finding(seen: bool | None, words: str) -> Finding:
    """Return a finding. ``seen`` is None if the statement cannot be tested."""
    return {"verdict": UNTESTABLE if seen is None else SEEN if seen else NOT_SEEN, "words": words}


@dataclass(frozen=True)
class Ages:
    r"""The shift of curves with the waiting time, between two steps.

    Attributes:
        rate: :math:`-\frac{\partial\ln\Delta}{\partial\ln t_w}/\frac{\partial\ln\Delta}{\partial\ln t}`. 0 means no
            aging, and 1 means full aging.
        error: standard error of the rate, by leaving out one waiting time after the other.
        exponent: :math:`\partial\ln\Delta/\partial\ln t`.
    """

    rate: float
    error: float
    exponent: float

    @property
    def depends(self) -> bool | None:
        """Whether the curves depend on the waiting time, None if the error leaves this open.

        :class:`~lightning_glassy.analysis.AgingRate` has the same rule. The curves depend on the waiting time if the
        rate is above 0.1 in size and two errors away from 0. They do not if the rate is at most 0.1 in size, and at
        most 0.2 with two errors.
        """
        size = abs(self.rate)
        if size > AGES:
            return True if size > 2 * self.error else None
        return False if size + 2 * self.error <= 2 * AGES else None

    def __str__(self) -> str:
        return f"{self.rate:.2f} ± {self.error:.2f}"


def ages(record: AgingRecord, first: float, last: float = np.inf, over_noise: bool = False) -> Ages | None:
    """Fit the shift of curves to all pairs of times between two steps, by least squares.

    A lag is used if at least three waiting times have it, and if they span a factor of two. Return None if there are
    fewer than four waiting times over half a decade, or fewer than three lags.
    """
    curves = relaxation_curves(record, "normalised_msd" if over_noise else "msd")
    times, lags = np.maximum(curves.waiting_times, 1), curves.lags.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.log(curves.mean())
    inside = (curves.waiting_times >= max(first, 1))[:, None] & (curves.waiting_times[:, None] + curves.lags <= last)
    inside &= np.isfinite(y)
    compared = _compared(times, inside)
    rows = np.flatnonzero(compared.any(axis=1))
    if len(rows) < 4 or times[rows[-1]] < 10**0.5 * times[rows[0]] or compared.any(axis=0).sum() < 3:
        return None
    rate, exponent = _rate(times, lags, y, compared)
    others = []
    for row in rows:
        rest = inside.copy()
        rest[row] = False
        others.append(_rate(times, lags, y, _compared(times, rest))[0])
    # The error is NaN if the rest cannot be compared, because one waiting time decides all.
    error = float(np.sqrt((len(rows) - 1) * np.var(others)))
    return Ages(rate, error if np.isfinite(error) else np.inf, exponent)


def _compared(times: Array, inside: Any) -> Any:
    """Return the pairs inside at the lags that have at least three waiting times over a factor of two."""
    kept = np.zeros_like(inside)
    for j in range(inside.shape[1]):
        there = times[inside[:, j]]
        kept[:, j] = inside[:, j] & (len(there) >= 3 and there[-1] >= 2 * there[0])
    return kept


def _rate(times: Array, lags: Array, y: Array, compared: Any) -> tuple[float, float]:
    x, z = np.log(times)[:, None] + np.zeros_like(y), np.log(lags) + np.zeros_like(y)
    slope, exponent = _slope(x, y, compared, axis=0), _slope(z, y, compared, axis=1)
    return -slope / np.fmax(exponent, 0.25), exponent


def _slope(x: Array, y: Array, used: Any, axis: int) -> float:
    """Return the slope of y against x. Each line along the axis has its own constant."""
    n = np.maximum(used.sum(axis=axis, keepdims=True), 1)
    dx, dy = (np.where(used, a - np.where(used, a, 0).sum(axis=axis, keepdims=True) / n, 0) for a in (x, y))
    spread = float((dx**2).sum())
    return float((dx * dy).sum()) / spread if spread else np.nan


def off_line(record: AgingRecord, first: float) -> tuple[float, float] | None:
    r"""Return the distance of the displacements from one straight line through 0, for waiting times from a step on.

    These are the root mean square deviations of :math:`\ln(\Delta/D(t_w)t)` and of :math:`\ln(\Delta/\int D\,dt')` from
    their means, over the pairs for which D was measured until the end of the lag. A factor of 1.2 gives 0.18. Return
    None if there are fewer than three waiting times.
    """
    times = record.waiting_times
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = np.log(record.msd() / (record.gradient_noise(times)[:, None] * record.lags))
        drifting = np.log(record.msd() / noise_clock(record))
    known = np.isfinite(plain) & np.isfinite(drifting) & (times >= max(first, 1))[:, None]
    known &= known.sum(axis=1, keepdims=True) >= 3
    return (float(plain[known].std()), float(drifting[known].std())) if known.any(axis=1).sum() >= 3 else None


# ------------------------------------------------------------------ of networks


def regimes(record: AgingRecord) -> LossRegimes | None:
    """Return the regimes of the training loss, None if the record is too short."""
    try:
        return loss_regimes(record)
    except NotEnoughDataError:
        return None


class Network:
    """A record of one network, with the quantities that several statements need.

    Attributes:
        learnt: learnt fraction of the training data at the end.
        bottom: first step at the bottom of the loss, None if the network has not learnt all.
        why_not: reason why nothing is known about the bottom.
    """

    def __init__(self, record: AgingRecord) -> None:
        self.record, self.regimes = record, regimes(record)
        self.learnt = float(record.one_time("train_accuracy")[1][-1])
        self.bottom = self.regimes.bottom_from if self.regimes is not None and self.learnt >= FITTED else None
        self.why_not = f"{self.learnt:.1%} learnt" if self.learnt < FITTED else "too short at the bottom"


@statement(OF_NETWORKS, "regimes", "the loss has three regimes in log time")
def three_regimes(net: Network) -> Finding:
    """The fit of three straight pieces finds a high, a falling and a lowest part of the loss."""
    if net.regimes is None:
        return finding(None, "too short")
    falls, bottom = net.regimes.falls_from, net.regimes.bottom_from
    words = f"falls from step {_step(falls)}, bottom from {_step(bottom)}"
    if bottom is None and net.learnt < FITTED:
        return finding(None, f"{words}; {net.learnt:.1%} learnt")
    return finding(falls is not None and bottom is not None, words)


@statement(OF_NETWORKS, "first", "(i) loss high: Δ does not depend on t_w")
def no_aging_at_first(net: Network) -> Finding:
    """Before the loss falls, the aging rate between all pairs of times is at most 0.1 in size."""
    end = None if net.regimes is None else net.regimes.falls_from
    found = None if end is None else ages(net.record, 0, end)
    if found is None:
        return finding(None, "too few pairs of times before it falls")
    return finding(None if found.depends is None else not found.depends, f"rate {found}")


@statement(OF_NETWORKS, "second", "(ii) loss falls about linearly in log t: clear aging")
def ages_while_it_falls(net: Network) -> Finding:
    """The loss is within 10 % of its fall of three straight pieces, and while it falls the aging rate is above 0.1."""
    if net.regimes is None or not net.regimes.falls:
        return finding(None, "too short")
    found = ages(net.record, net.regimes.falls_from or 0, net.regimes.bottom_from or np.inf)
    if found is None:
        return finding(None, "too few pairs of times while it falls")
    words = f"rate {found}, loss off by {net.regimes.deviation:.0%}"
    clear = None if found.depends is None else found.depends and found.rate > 0
    return finding(clear if net.regimes.deviation <= BENT else False, words)


@statement(OF_NETWORKS, "stops", "(iii) loss at the bottom: the aging stops", MANY_WEIGHTS)
def aging_stops(net: Network) -> Finding:
    """At the bottom (99.9 % are learnt) the aging rate of Δ/D(t_w) is at most 0.1 in size."""
    start = np.inf if net.bottom is None else net.bottom
    plain, over_noise = (ages(net.record, start, over_noise=noise) for noise in (False, True))
    if plain is None or over_noise is None:
        return finding(None, net.why_not)
    words = f"Δ/D ages at a rate of {over_noise}, Δ of {plain}"
    return finding(None if over_noise.depends is None else not over_noise.depends, words)


@statement(OF_NETWORKS, "line", "(iii) Δ/D(t_w) is one straight diffusive line", MANY_WEIGHTS)
def one_diffusive_line(net: Network) -> Finding:
    """At the bottom ln(Δ/(D(t_w) t)) scatters by at most 0.2, and the local exponent is 0.85 ... 1.15."""
    off = None if net.bottom is None else off_line(net.record, net.bottom)
    found = None if net.bottom is None else ages(net.record, net.bottom, over_noise=True)
    if off is None or found is None:
        return finding(None, net.why_not)
    straight = DIFFUSIVE[0] <= found.exponent <= DIFFUSIVE[1]
    return finding(off[0] <= STRAIGHT and straight, f"off by {off[0]:.2f}, exponent {found.exponent:.2f}")


@statement(OF_NETWORKS, "clock", "where D drifts, its integral is the better clock", MANY_WEIGHTS)
def noise_is_the_clock(net: Network) -> Finding:
    """At the bottom, where D changes 1.5-fold or more, ln(Δ/∫D dt') scatters by at most 0.8 of ln(Δ/(D(t_w) t))."""
    if net.bottom is None:
        return finding(None, net.why_not)
    off = off_line(net.record, net.bottom)
    steps, noise = net.record.one_time("gradient_noise")
    late = noise[(steps >= net.bottom) & (noise > 0)]
    if off is None or len(late) < 2:
        return finding(None, net.why_not)
    drift = late.max() / late.min()
    if drift < DRIFTS:
        return finding(None, f"D changes {drift:.2f}-fold")
    return finding(
        off[1] <= BETTER * off[0], f"off by {off[1]:.2f} instead of {off[0]:.2f}; D changes {drift:.1f}-fold"
    )


@statement(OF_NETWORKS, "flat", "more and more flat directions", MANY_WEIGHTS)
def flatter_and_flatter(net: Network) -> Finding:
    """The fraction of directions with a curvature below ε is larger at the end than at step 0, by twice its error."""
    if "flat_fraction" not in net.record.one_time_names:
        return finding(None, "no Hessian was measured")
    flat, error = (net.record.one_time(name)[1] for name in ("flat_fraction", "flat_fraction_error"))
    grown, twice = flat[-1] - flat[0], 2 * np.hypot(error[-1], error[0])
    words = f"{flat[0]:.2%} to {flat[-1]:.2%} ± {twice / 2:.2%} (lowest {flat.min():.2%})"
    return finding(None if -twice < grown <= twice and twice > RESOLVED else bool(grown > twice), words)


@statement(OF_NETWORKS, "barriers", "no barriers")
def no_barriers(net: Network) -> Finding:
    """No straight line between two times, at 11 points, has a barrier of 5 % of the loss at its higher end."""
    heights = barriers(net.record)
    words = f"{int((heights > BARRIER).sum())} of {len(heights)}, highest {heights.max():.1%}"
    return finding(bool((heights <= BARRIER).all()), words)


@statement(OF_NETWORKS, "trapped", "few hidden units: trapped in a bad minimum, ages on", FEW_WEIGHTS)
def trapped(net: Network) -> Finding:
    """At most 98 % are learnt, the loss is above 0.7 of that a decade before, and the verdict is aging throughout."""
    loss, judged = float(net.record.one_time("train_loss")[1][-1]), verdict(net.record)
    words = f"{judged.kind}; {net.learnt:.1%} learnt, loss {loss:.2g}"
    if net.learnt > MISFIT or judged.kind == "cannot tell":
        return finding(None, words)
    if judged.kind == "aging throughout" and judged.phase is None:
        return finding(None, f"{words}, which still falls")
    return finding(judged.phase == "glassy", words)


def barriers(record: AgingRecord) -> Array:
    """Return the heights of the barriers, each as part of the loss at the higher end of its line."""
    paths = record.profile("loss_path")
    return np.asarray(barrier_height(paths.values) / np.maximum(paths.values[:, 0], paths.values[:, -1]))


def _step(at: float | None) -> str:
    return "-" if at is None else f"{at:,.0f}"


def decide_network(record: AgingRecord, few_weights: bool) -> dict[str, Finding]:
    """Decide all statements that are about such a network."""
    net, other = Network(record), MANY_WEIGHTS if few_weights else FEW_WEIGHTS
    return {key: each.decide(net) for key, each in OF_NETWORKS.items() if each.of != other}


# ------------------------------------------------------------------ of the glass


@statement(OF_GLASS, "never stops", "p-spin: aging never stops")
def never_stops(cold: Glassy, warm: Glassy) -> Finding:
    """The verdict is aging throughout, at both temperatures."""
    kinds = [glass["verdict"] for glass in (cold, warm)]
    words = []
    for glass in (cold, warm):
        rate = glass["rates"][-1] if glass["rates"] else None
        numbers = f", rate {rate['rate']:.2f} ({rate['low']:.2f} ... {rate['high']:.2f})" if rate else ""
        words.append(f"T = {glass['temperature']:g}: {glass['verdict']}{numbers}")
    return finding(None if "cannot tell" in kinds else set(kinds) == {"aging throughout"}, "; ".join(words))


@statement(OF_GLASS, "short lags", "p-spin: short-lag curves coincide for all t_w")
def short_lags_coincide(cold: Glassy, warm: Glassy) -> Finding:
    """At T > 0, Δ at the lag 0.1 goes with t_w as a power of at most 0.05, and falls faster at the longest lag."""
    known = {row["lag"]: row["trend"] for row in warm["trends"]}
    if SHORT_LAG not in known:
        return finding(None, "too few waiting times")
    short, longest = known[SHORT_LAG], max(known)
    words = f"t_w^{short:.3f} at the lag {SHORT_LAG:g}, t_w^{known[longest]:.2f} at {longest:g}"
    return finding(abs(short) <= COINCIDE and known[longest] < -COINCIDE, words)


@statement(OF_GLASS, "plateau", "p-spin: a plateau at the Edwards-Anderson parameter")
def plateau_is_known(cold: Glassy, warm: Glassy) -> Finding:
    """At T > 0 a curve is slowest in its middle, the slower the later it starts, at last within 20 % of 2(1 - q)."""
    ours, theirs = (
        {row["time"]: row for row in warm["lingers"] if row["whose"] == whose and row["exponent"] is not None}
        for whose in ("callback", "exact")
    )
    if len(ours) < 3:
        return finding(None, "curves are slowest at their end: too short")
    first, last = min(ours), max(ours)
    exact = theirs.get(last, {"displacement": np.nan, "exponent": np.nan})
    words = (
        f"for t_w = {last:g} slowest at Δ = {ours[last]['displacement']:.3f} (exact {exact['displacement']:.3f}), "
        f"plateau {warm['plateau']:.3f}; exponent there {ours[last]['exponent']:.2f} (exact {exact['exponent']:.2f}), "
        f"for t_w = {first:g} {ours[first]['exponent']:.2f}"
    )
    slower = ours[last]["exponent"] < ours[first]["exponent"] - SLOWER
    return finding(slower and abs(ours[last]["displacement"] / warm["plateau"] - 1) <= NEAR_PLATEAU, words)


@statement(OF_GLASS, "threshold", "p-spin: energy stuck at the threshold, above the ground state")
def stuck_at_the_threshold(cold: Glassy, warm: Glassy) -> Finding:
    """At T = 0 the exact energy, as a constant and t^(-2/3), tends to within 0.5 % of the threshold."""
    limit, threshold, free = (cold[name] for name in ("energy_limit", "threshold", "energy_free_limit"))
    words = (
        f"{limit:.4f}; threshold {threshold:.4f} ({limit / threshold - 1:+.2%}), ground state "
        f"{cold['ground_state']:.4f}; with a free exponent, {cold['energy_exponent']:.2f}, {free:.4f} "
        f"({free / threshold - 1:+.2%})"
    )
    return finding(abs(limit / threshold - 1) <= NEAR_THRESHOLD, words)


@statement(OF_GLASS, "agrees", "the callback agrees with the equations of Cugliandolo and Kurchan")
def agrees(cold: Glassy, warm: Glassy) -> Finding:
    """All correlations and energies of the callback, extrapolated, are within 3 errors and the 2nd order."""
    rows = [row for glass in (cold, warm) for row in glass["numbers"]]
    z = np.array([row["z"] for row in rows])
    off = [abs(row["extrapolated"] - row["exact"]) > 3 * row["error"] + abs(row["second_order"]) for row in rows]
    words = (
        f"{sum(off)} of {len(z)} are not; by the statistical errors alone the largest z is {np.abs(z).max():.1f} in "
        f"size, and {(np.abs(z) > 2).mean():.1%} are above 2"
    )
    return finding(not any(off), words)


def decide_glass(cold: Glassy, warm: Glassy) -> dict[str, Finding]:
    """Decide all statements on a quench to T = 0 and a quench to a temperature below the transition."""
    return {key: each.decide(cold, warm) for key, each in OF_GLASS.items()}

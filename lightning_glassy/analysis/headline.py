r"""The rules for a headline: the conditions to state an aging exponent, and the sentence that replaces it otherwise.

An exponent is a headline if the curves of all waiting times fall on one curve, by every method and along the whole
window. No other observable may have another exponent. The rules are the same for one run and for replicas. The errors
of replicas only make the last rules less strict.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_glassy.analysis.curves import too_few
from lightning_glassy.analysis.exponent_result import DISAGREE, NO_COLLAPSE, AgingExponent

COLLAPSED = 0.05
"""Largest relative distance of curves from a common curve, beyond the errors of the replicas, for a collapse."""

AGES = 0.1
"""The smallest exponent or rate that is called aging: the lag to relax grows by a quarter per decade."""

_AGREE = 0.1  # a smaller difference of two exponents is no contradiction
_PART = 0.2  # and a drift along the run must be a smaller part of a small exponent
_ERRORS = 3.0  # nor is a difference of less than so many standard errors
_ALIKE, _SLOPES = 0.02, 0.2  # curves that miss a common one by more need thresholds whose slopes differ by less
_SMALL = 0.15  # over two decades, a smaller power looks like a logarithm
_FULL = 1.1  # an exponent above this, beyond its error, is not aging: the motion itself fades


def why_no_headline(fit: AgingExponent, others: Sequence[AgingExponent] = ()) -> str | None:
    """Return the first reason why the estimate of an exponent is no headline, in one sentence, or None.

    Args:
        fit: the fitted exponent.
        others: the fitted exponents of other observables of the same record.
    """
    return _by_itself(fit) or next((words for other in others if (words := _contradicted(fit, other))), None)


def _by_itself(fit: AgingExponent) -> str | None:
    """Return the first rule that the fit of one observable breaks, in words."""
    short = too_few(np.asarray(fit.waiting_times + fit.t0, dtype=np.float64))
    if short is not None:
        return short
    curves = f"the curves of the {fit.label}"
    if np.isnan(fit.estimate):
        return f"{curves} have their best collapse at the end of the range of exponents that was searched"
    if fit.plateau > 0 and fit.miss <= COLLAPSED:
        slow = "" if _slow_part(fit) else f", and for the slow one it would be {fit.stated()}"
        return f"{curves} relax in two steps, a fast one up to {fit.plateau:.2g}: no exponent describes both{slow}"
    return _slow_part(fit)


def _slow_part(fit: AgingExponent) -> str | None:
    """Return the first rule that the curves above their fast process break, in words."""
    curves, error = f"the curves of the {fit.label}", fit.standard_error or 0.0
    # Without errors, curves of one exponent are as far apart as their noise.
    noisy = fit.standard_error is None and COLLAPSED < fit.miss <= 2 * COLLAPSED and abs(fit.estimate) < AGES
    if fit.miss > COLLAPSED and not noisy:
        return f"{curves} {NO_COLLAPSE} by {fit.miss:.0%}"
    if fit.estimate < -AGES:
        return f"{curves} relax faster the later the waiting time, mu = {fit.stated()}: this is not aging"
    if fit.estimate < AGES:
        within = f" within {fit.miss:.0%}" if noisy else ""
        return f"{curves} coincide{within} for all waiting times, mu = {fit.stated()}: no aging"
    if fit.estimate < _SMALL:
        return f"the exponent of the {fit.label}, {fit.stated()}, is too small: so slow a growth may be a logarithm"
    if fit.estimate - error > _FULL:
        return (
            f"the exponent of the {fit.label} is above 1, at {fit.stated()}: the motion itself fades, which is "
            "not aging"
        )
    if abs(fit.drift) > max(min(_AGREE, _PART * fit.estimate), _ERRORS * np.nan_to_num(fit.drift_error)):
        return (
            f"the exponent of the {fit.label} drifts along the waiting times: it is {abs(fit.drift):.2f} "
            f"{'larger' if fit.drift > 0 else 'smaller'} in the later half than in the earlier"
        )
    if np.isnan(fit.drift) or np.isnan(fit.estimates["threshold"]):
        return (
            f"the methods cannot be compared: {curves} reach too few common values at the earlier and at the later "
            "waiting times"
        )
    return _methods_disagree(fit)


def _methods_disagree(fit: AgingExponent) -> str | None:
    slope = fit.estimates["threshold"]
    error = fit.standard_errors.get("threshold", 0.0)
    if abs(slope - fit.expected_slope) > max(_AGREE, _ERRORS * error):
        return (
            f"the methods disagree: the thresholds of the {fit.label} have a slope of {slope:.2f}, and the collapse "
            f"expects {fit.expected_slope:.2f}"
        )
    slopes = [law.mu for law in fit.thresholds]
    if fit.miss > _ALIKE and max(slopes) - min(slopes) > _SLOPES:
        return (
            f"the methods disagree: the thresholds of the {fit.label} have slopes of {min(slopes):.2f} ... "
            f"{max(slopes):.2f}"
        )
    for name, mu in fit.estimates.items():
        # Ignore a scaling variable in which the curves do not collapse.
        if fit.scatter.get(name, np.inf) > COLLAPSED:
            continue
        if not abs(mu - fit.estimate) <= max(_AGREE, _ERRORS * fit.standard_errors.get(name, 0.0)):
            return f"the methods disagree: the {name} of the {fit.label} gives {mu:.2f}, not {fit.estimate:.2f}"
    return None


def _contradicted(fit: AgingExponent, other: AgingExponent) -> str | None:
    """Return in words that another observable has another exponent, if it has one that can be trusted by itself."""
    both = float(np.hypot(fit.standard_error or 0.0, other.standard_error or 0.0))
    if not abs(other.estimate - fit.estimate) > max(_AGREE, _ERRORS * both):
        return None
    # No aging is a result, too.
    if _by_itself(other) is not None and not (other.miss <= COLLAPSED and abs(other.estimate) < AGES):
        return None
    return f"{DISAGREE}: the {fit.label} gives {fit.stated()}, and the {other.label} {other.stated()}"

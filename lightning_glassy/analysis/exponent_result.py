r"""The result of :func:`~lightning_glassy.analysis.aging_exponent`: values, the table of all observables, and text."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_glassy.analysis.collapse import Variable
from lightning_glassy.analysis.crossings import Crossings
from lightning_glassy.observables import Array, relaxation_of

MIN_REPLICAS = 8
"""Fewer replicas give no interval, because a bootstrap over them would be too narrow."""

COLLAPSES: dict[str, Variable] = {"collapse, effective time": "effective", "collapse, plain": "plain"}
THRESHOLD = "threshold"


class NotEnoughDataError(ValueError):
    """A record, or a window of it, has too few curves for an exponent."""


@dataclass(frozen=True)
class ThresholdFit:
    r"""The slope of :math:`\ln t^*` against :math:`\ln t_w` for one threshold.

    Attributes:
        mu: the slope, by least squares.
        intercept: the logarithm of the lag at time 1.
        crossings: the lags :math:`t^*`. Some may be censored.
        local_slopes: slope between neighbouring waiting times that are not censored. If it drifts, there is no power
            law yet.
    """

    mu: float
    intercept: float
    crossings: Crossings
    local_slopes: Array

    def line(self, times: ArrayLike) -> Array:
        """Return the fitted power law at given times, in steps since the origin of the clock."""
        return np.asarray(np.exp(self.intercept) * np.asarray(times, dtype=np.float64) ** self.mu)


@dataclass(frozen=True)
class AgingExponent:
    r"""An aging exponent, the methods behind it, and the same of all other observables. ``print`` shows a table.

    The headline ``mu`` is None unless the answer is safe: see :mod:`lightning_glassy.analysis.headline`. The table
    always has the fitted values.

    Attributes:
        estimate: the exponent from the scaling variable with the better collapse. NaN if it lies at a bound of the
            search.
        interval: confidence interval of ``estimate``. None with fewer than 8 replicas, or if thresholds contradict each
            other.
        confidence: level of the interval.
        why_not: the reason why the estimate is no headline, in one sentence. None if it is one.
        method: name of the estimate in ``estimate``.
        estimates: mu by method: ``"collapse, effective time"``, ``"collapse, plain"``, ``"threshold"`` (median over
            thresholds). NaN without a fit, or if the value lies at a bound of the search.
        standard_errors: standard error of each estimate, over replicas. Empty with fewer than 8.
        systematic: difference of the two collapse estimates.
        qualities: by collapse method, the Houdayer-Hartmann S that the fit minimised, at its minimum.
        scatter: by collapse method, the relative rms distance of the curves from a common curve beyond the errors of
            the replicas. It enters the fit as a further error of every point, so that S is 1 at the minimum.
        thresholds: one fit per threshold.
        drift: the exponent of the later half of the waiting times minus the exponent of the earlier half. NaN with
            fewer than four waiting times.
        drift_error: standard error of ``drift``, over replicas. NaN with fewer than 8.
        expected_slope: the median slope of the thresholds that a perfect collapse at ``estimate`` would have.
        plateau: the highest level of a fast process before the relaxation, in the units of the curves. 0 unless half of
            the curves have one. The fit uses the curves above it.
        observable: name of the observable.
        eps: threshold of the overlap, None for other observables.
        group: name of the group.
        window: first and last waiting time used, in steps.
        waiting_times: all waiting times used, ``[n_tw]``. The lags of ``thresholds`` belong to them.
        t0: origin of the clock, in steps before step 0.
        n_replica: number of replicas.
        warnings: reasons for doubt, in words.
        others: the exponents of the other observables that relax.
        unfitted: the other observables without a fit: the reason, by their label.
    """

    estimate: float
    interval: tuple[float, float] | None
    confidence: float
    why_not: str | None
    method: str
    estimates: dict[str, float]
    standard_errors: dict[str, float]
    systematic: float
    qualities: dict[str, float]
    scatter: dict[str, float]
    thresholds: list[ThresholdFit]
    drift: float
    drift_error: float
    expected_slope: float
    plateau: float
    observable: str
    eps: float | None
    group: str
    window: tuple[int, int]
    waiting_times: NDArray[np.int64]
    t0: float
    n_replica: int
    warnings: list[str] = field(default_factory=list)
    others: list[AgingExponent] = field(default_factory=list)
    unfitted: dict[str, str] = field(default_factory=dict)

    @property
    def mu(self) -> float | None:
        """The headline: ``estimate`` if all is well with it, otherwise None, and ``why_not`` says what is wrong."""
        return self.estimate if self.why_not is None else None

    @property
    def standard_error(self) -> float | None:
        """Standard error of ``estimate`` over replicas, None with fewer than 8."""
        return self.standard_errors.get(self.method)

    @property
    def variable(self) -> Variable:
        """The scaling variable with the better collapse, from which ``estimate`` comes."""
        return COLLAPSES[self.method]

    @property
    def miss(self) -> float:
        """The relative rms distance of the curves from a common curve, beyond the errors of the replicas."""
        return self.scatter[self.method]

    @property
    def label(self) -> str:
        """The name of the quantity, with its threshold, such as ``"overlap 1 - Q, eps = 0.001"``."""
        return label_of(self.observable, self.eps)

    @property
    def table(self) -> list[AgingExponent]:
        """Itself and the exponents of the other observables."""
        return [self, *self.others]

    def about(self, observable: str, eps: float | None = None) -> AgingExponent:
        """Return the same table, about another of its observables.

        Args:
            observable: name of the observable.
            eps: threshold of the overlap, default the first.

        Raises:
            NotEnoughDataError: there is no such fit. The message has the reason.
        """
        rows = self.table
        for row in rows:
            if row.observable == observable and (row.eps == eps or eps is None):
                others = [replace(other, others=[], unfitted={}) for other in rows if other is not row]
                return replace(row, others=others, unfitted=self.unfitted)
        label = label_of(observable, eps)
        raise NotEnoughDataError(self.unfitted.get(label, f"the {label} was not fitted"))

    def to_dict(self) -> dict[str, Any]:
        """Return all attributes, with ``mu``, as dictionaries, lists and arrays."""
        return {"mu": self.mu} | asdict(self) | {"others": [other.to_dict() for other in self.others]}

    def stated(self) -> str:
        """Return the estimate with its interval, in words."""
        if not np.isfinite(self.estimate):
            return "no value within the bounds of the search"
        if self.interval is None:
            return f"{self.estimate:.3f} (no interval)"
        return f"{self.estimate:.3f} ({self.interval[0]:.3f} ... {self.interval[1]:.3f})"

    def __str__(self) -> str:
        replicas = f"{self.n_replica} replica{'s' if self.n_replica > 1 else ''}"
        of = self.label + ("" if self.group == "all" else f" of {self.group!r}")
        if self.mu is None:
            lines = [f"no aging exponent: {self.why_not}"]
        elif self.interval is None:
            need = f"{MIN_REPLICAS} are needed" if self.n_replica < MIN_REPLICAS else "see below"
            lines = [f"aging exponent mu = {self.mu:.3f}   (no interval: {replicas}, {need})"]
        else:
            interval = f"{self.confidence:.0%} interval {self.interval[0]:.3f} ... {self.interval[1]:.3f}"
            lines = [f"aging exponent mu = {self.mu:.3f}   ({interval}, {replicas})"]
        origin = f", clock from {self.t0:.3g} steps before the start" if self.t0 else ""
        lines.append(f"  from the {of}, waiting times {self.window[0]:,} ... {self.window[1]:,}{origin}")
        lines += [f"  {line}" for line in self._rows()]
        lines += [f"  {row.label}: {row.why_not}" for row in self.others if row.why_not is not None]
        lines += [f"  {label}: not fitted, {reason}" for label, reason in self.unfitted.items()]
        return "\n".join([*lines, *(f"  ! {warning}" for warning in self.warnings)])

    def _rows(self) -> list[str]:
        """Return the lines of the table of all observables and methods."""
        head = ("", "mu", f"{self.confidence:.0%} interval", "missed by", "in lambda", "in t/t_w^mu", "threshold")
        rows: list[tuple[str, ...]] = [head]
        for row in self.table:
            interval = "" if row.interval is None else f"{row.interval[0]:.3f} ... {row.interval[1]:.3f}"
            methods = (_with_error(row.estimates[name], row.standard_errors.get(name)) for name in row.estimates)
            name = row.label + ("" if row.window == self.window else f", t_w {row.window[0]:,} ... {row.window[1]:,}")
            rows.append((name, _number(row.estimate), interval, f"{row.miss:.1%}", *methods))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return ["  ".join([row[0].ljust(widths[0]), *(map(str.rjust, row[1:], widths[1:]))]).rstrip() for row in rows]


def label_of(observable: str, eps: float | None) -> str:
    """Return the name of a relaxing quantity, with its threshold if it has one."""
    return relaxation_of(observable).label + ("" if eps is None else f", eps = {eps:g}")


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "-"


def _with_error(value: float, error: float | None) -> str:
    return _number(value) + (f" +- {error:.3f}" if error is not None else "")

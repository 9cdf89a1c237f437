r"""The result of :func:`~lightning_glassy.analysis.aging_exponent`: values, the table of all observables, and text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from textwrap import wrap
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_glassy.analysis.collapse import Variable
from lightning_glassy.analysis.crossings import Crossings
from lightning_glassy.analysis.curves import TOO_SHORT
from lightning_glassy.observables import Array, relaxation_of

MIN_REPLICAS = 8
"""Fewer replicas give no interval, because a bootstrap over them would be too narrow."""

COLLAPSES: dict[str, Variable] = {"collapse, effective time": "effective", "collapse, plain": "plain"}
THRESHOLD = "threshold"

DISAGREE = "the observables disagree"
NO_COLLAPSE = "do not collapse: they miss a common curve"
ONLY_NOISE = "only the gradient noise fades"
CONTRADICTORY = "the slopes of the thresholds contradict each other"
"""Words of some sentences of :mod:`lightning_glassy.analysis.headline`, and of a doubt."""

WIDTH = 100  # of the text
_COLUMNS = {**dict(zip(COLLAPSES, ("h", "t/t_w^mu"), strict=True)), THRESHOLD: THRESHOLD}
_LEGEND = (
    "missed by: rms distance of the curves from a common one; then mu by method: collapse in h, the effective "
    "time, or in t/t_w^mu, slope of the threshold lags; 0.605(2) is 0.605 +- 0.002",
)


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
    r"""An aging exponent, its methods, and the exponents of all other observables. ``print`` shows a table.

    The headline ``mu`` is None unless the answer is safe: see :mod:`lightning_glassy.analysis.headline`. The table
    always has the fitted values.

    Attributes:
        estimate: the exponent from the scaling variable with the better collapse. NaN if it lies at a bound of the
            search.
        interval: confidence interval of ``estimate``. None with fewer than 8 replicas, or if thresholds contradict each
            other.
        confidence: level of the interval.
        why_not: the reason why the estimate is no headline, in one sentence. None if it is a headline.
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
            the curves have one, at levels that follow a power of the waiting time. The fit uses the curves above it.
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
        """The headline: ``estimate`` if it passes all checks, otherwise None. ``why_not`` then has the reason."""
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

    def has(self, observable: str, eps: float | None) -> bool:
        """Return whether the table has this observable, with a fit or with the reason why there is none."""
        fitted = any((row.observable, row.eps) == (observable, eps) for row in self.table)
        return fitted or label_of(observable, eps) in self.unfitted

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
        raise NotEnoughDataError(self.unfitted.get(label, f"the {label} is not in the table"))

    def to_dict(self) -> dict[str, Any]:
        """Return all attributes and the properties ``mu``, ``label``, ``miss`` and ``too_short`` as plain values."""
        more = {"mu": self.mu, "label": self.label, "miss": self.miss, "too_short": self.too_short}
        return more | asdict(replace(self, others=[])) | {"others": [other.to_dict() for other in self.others]}

    def stated(self) -> str:
        """Return the estimate with its interval, in words."""
        return f"{_number(self.estimate)} ({'no interval' if self.interval is None else self._interval()})"

    def _interval(self) -> str:
        return "" if self.interval is None else " ... ".join(map(_number, self.interval))

    def __str__(self) -> str:
        doubts = [f"  ! {warning}" for warning in self.warnings]  # one line each, as in the text of a verdict
        if self.too_short:
            return "\n".join([*wrapped([str(self.why_not)]), *doubts])
        replicas = f"{self.n_replica} replica{'s' if self.n_replica > 1 else ''}"
        if self.mu is None:
            headline, replicas = f"no aging exponent: {self.why_not}", f", {replicas}"
        else:
            need = f", {MIN_REPLICAS} are needed" if self.n_replica < MIN_REPLICAS else ""
            interval = f"{self.confidence:.0%} interval {self._interval()}, {replicas}"
            without = f"no interval: {replicas}{need}"
            headline = f"aging exponent mu = {self.mu:.3f}   ({without if self.interval is None else interval})"
            replicas = ""
        of = "" if self.group == "all" else f" of {self.group!r}"
        origin = f", clock from {self.t0:.3g} steps before the start" if self.t0 else ""
        source = f"from the {self.label}{of}, waiting times {self.window[0]:,} ... {self.window[1]:,}{origin}{replicas}"
        return "\n".join(
            [
                *wrapped([headline]),
                *wrapped([source], indent=2),
                *self._rows(),
                *wrapped([*_LEGEND, *self._notes()], indent=2),
                *doubts,
            ]
        )

    @property
    def too_short(self) -> bool:
        """Whether the waiting times are too few for any exponent. The text then has no table."""
        return self.why_not is not None and self.why_not.startswith(TOO_SHORT)

    def _rows(self) -> list[str]:
        """Return the lines of the table of all observables and methods."""
        head = ("", "mu", f"{self.confidence:.0%} interval", "missed by", *_COLUMNS.values())
        rows: list[tuple[str, ...]] = [head]
        for row in self.table:
            methods = (_with_error(row.estimates[name], row.standard_errors.get(name)) for name in _COLUMNS)
            rows.append((row.label, _number(row.estimate), row._interval(), f"{row.miss:.1%}", *methods))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        cells = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
        return [f"  {'  '.join(row)}".rstrip() for row in cells]

    def _notes(self) -> list[str]:
        """Return the remarks on the rows of other observables. A reason that concerns all observables comes once."""
        windows: dict[tuple[int, int], list[str]] = {}
        notes = []
        told = [reason for reason in (DISAGREE, ONLY_NOISE) if (self.why_not or "").startswith(reason)]
        for row in self.others:
            windows.setdefault(row.window, []).append(row.label)
            words = row.why_not
            if words is None or NO_COLLAPSE in words or words.startswith(tuple(told)):
                continue
            told += [reason for reason in (DISAGREE, ONLY_NOISE) if words.startswith(reason)]
            notes.append(words if row.label in words else f"{row.label}: {words}")
        windows.pop(self.window, None)
        of = [f"waiting times {w[0]:,} ... {w[1]:,}: {', '.join(labels)}" for w, labels in windows.items()]
        apart = [row.label for row in self.others if NO_COLLAPSE in str(row.why_not)]
        if apart:
            notes.append(f"curves that do not collapse: {'; '.join(apart)}")
        for row in self.others:
            contradictory = any(warning.startswith(CONTRADICTORY) for warning in row.warnings)
            if row.interval is None and contradictory and self.n_replica >= MIN_REPLICAS:
                notes.append(f"{row.label}: no interval, {CONTRADICTORY}")
        return [*of, *notes, *(f"{label}: not fitted, {reason}" for label, reason in self.unfitted.items())]


def label_of(observable: str, eps: float | None) -> str:
    """Return the name of a relaxing quantity, with its threshold if it has one."""
    return relaxation_of(observable).label + ("" if eps is None else f", eps = {eps:g}")


def _number(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}" if np.isfinite(value) else "-"  # + 0.0 because of -0.0


def _with_error(value: float, error: float | None) -> str:
    """Return a number with its error in brackets, in units of the last digit, such as ``0.605(2)``."""
    if error is None or not np.isfinite([value, error]).all():
        return _number(value)
    return f"{value:.3f}({max(round(1000 * error), 1)})" if error < 0.1 else f"{value:.2f}({error:.2f})"


def wrapped(lines: Iterable[str], indent: int = 0) -> list[str]:
    """Return lines that are broken at the width of a page (``WIDTH``). A continued line is indented further."""
    parts = []
    for line in lines:
        first, rest = " " * indent, " " * (indent + len(line) - len(line.lstrip()) + 4)
        for joint in (" ... ", " = ", " +- "):  # not a place to break
            line = line.replace(joint, joint.replace(" ", "\xa0"))
        parts += wrap(line, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
    return [part.replace("\xa0", " ") for part in parts]

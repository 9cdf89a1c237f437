r"""Aging by group of parameters: which layer ages, how fast, and when.

Each group is analysed by itself, as in :func:`~lightning_glassy.analysis.aging_exponent` and
:func:`~lightning_glassy.analysis.verdict`. The results stand side by side in one table, the strongest aging first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_glassy.analysis.crossings import lag_to_threshold
from lightning_glassy.analysis.curves import Curves, relaxation_curves
from lightning_glassy.analysis.diffusion import smooth_exponent
from lightning_glassy.analysis.exponent_result import MIN_REPLICAS, NotEnoughDataError
from lightning_glassy.analysis.exponents import aging_exponent
from lightning_glassy.analysis.phase import AgingRate, verdict
from lightning_glassy.analysis.plateaus import above_plateaus
from lightning_glassy.observables import Array, relaxation_of
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.text import plain

MOST_GROUPS = 40
"""Groups that are analysed by default. The time for the analysis grows with their number."""

_APART = 2.0  # neighbouring waiting times of a local rate differ by at least this factor
_STEEP = 0.3  # a curve with a smaller local exponent is close to saturation
_LEAST_EXPONENT = 0.25  # the vertical shift of a flatter curve hardly determines its horizontal shift
_FEWEST = 4  # fewest replicas for an error from their scatter
_UNCERTAIN = 0.5  # a local rate with a larger standard error is not shown
_CANDIDATES = 41  # thresholds that are tried for the common threshold


# The exponent of a group, the fitted value, its interval, and the reason why there is no exponent.
Fitted = tuple[float | None, float | None, tuple[float, float] | None, str | None]


@dataclass(frozen=True)
class GroupRow:
    r"""Aging of one group of parameters.

    Attributes:
        group: name of the group.
        n_parameters: number of parameters.
        mu: aging exponent, None if there is none.
        estimate: fitted value, None without a fit. If ``mu`` is None, ``why_not`` gives the reason why the value is no
            exponent.
        interval: confidence interval of ``estimate``. None with fewer than 8 replicas, or without a fit.
        why_not: the reason why there is no exponent, None if there is an exponent.
        rate: aging rate over all waiting times, with its 95 % interval. None if ``kind`` is "cannot tell" for lack of
            curves.
        kind: the verdict on the group.
        lag: lag :math:`t^*` to the common threshold at the common waiting time, in steps. NaN if it was not measured.
        early: whether the curve passes the threshold before its first lag.
        late: whether the curve does not reach the threshold.
        local_rates: aging rate between neighbouring waiting times, float64 ``[n_tw - 1]``. NaN if it is not known.
        local_errors: standard errors over replicas of ``local_rates``, NaN with fewer than four replicas.
    """

    group: str
    n_parameters: int
    mu: float | None
    estimate: float | None
    interval: tuple[float, float] | None
    why_not: str | None
    rate: AgingRate | None
    kind: str
    lag: float
    early: bool
    late: bool
    local_rates: Array
    local_errors: Array


@dataclass(frozen=True)
class GroupAging:
    r"""Aging of the groups of a record side by side. ``print`` shows a table.

    Attributes:
        observable: name of the observable.
        whole: the row of all parameters.
        rows: one row per group, the largest aging rate first. Groups without a rate are last, the largest first.
        n_groups: number of groups of the record besides ``"all"``. If it is larger than the number of rows, the groups
            with the most parameters were analysed.
        waiting_times: waiting times of the local rates, at least a factor of 2 apart, int64 ``[n_tw]``.
        threshold: the common threshold. As many curves of the groups as possible cross it. NaN if no curve rises.
        waiting_time: the waiting time of ``lag`` in the rows: the latest at which most groups cross the threshold.
        n_replica: number of replicas, 1 for a single run.
        confidence: level of the intervals of the exponents.
    """

    observable: str
    whole: GroupRow
    rows: list[GroupRow]
    n_groups: int
    waiting_times: NDArray[np.int64]
    threshold: float
    waiting_time: int
    n_replica: int
    confidence: float

    def __str__(self) -> str:
        label, left_out = relaxation_of(self.observable).label, self.n_groups - len(self.rows)
        lines = [f"aging of {len(self.rows)} groups, from the {label}, the largest aging rate first"]
        if left_out > 0:
            lines.append(f"  ! of {self.n_groups} groups, the {len(self.rows)} with the most parameters are analysed")
        if self.n_replica < MIN_REPLICAS:
            runs = "one run" if self.n_replica == 1 else f"{self.n_replica} replicas"
            lines.append(f"  ! {runs}: no interval of mu, at least {MIN_REPLICAS} replicas are needed")
        known = np.isfinite(self.threshold)
        cells = [("group", "N", "aging rate (95%)", f"mu ({self.confidence:.0%})", *(["t*"] if known else []))]
        names = self.names(32)
        for name, row in zip(names, (self.whole, *self.rows), strict=True):
            mu = "-" if row.mu is None else _with_interval(row.mu, row.interval)
            rate = "-" if row.rate is None else _with_interval(row.rate.rate, (row.rate.low, row.rate.high))
            lag = "at once" if row.early else "not reached" if row.late else "-"
            lag = f"{row.lag:,.0f}" if np.isfinite(row.lag) else lag
            cells.append((name, f"{row.n_parameters:,}", rate, mu, *([lag] if known else [])))
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        for line in cells:
            rest = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
            lines.append("  ".join(["", line[0].ljust(widths[0]), *rest]).rstrip())
        if known:
            lines.append(
                f"  t*: lag to {label} = {self.threshold:.3g} after the waiting time {self.waiting_time:,} "
                "(at once: before the first lag)"
            )
        return "\n".join([*lines, *self._reasons(names)])

    def names(self, most: int) -> list[str]:
        """Return different names of ``whole`` and ``rows`` of at most so many characters, in this order."""
        return [self.whole.group, *short_names([row.group for row in self.rows], most)]

    def _reasons(self, names: list[str]) -> list[str]:
        """Return a line for each reason why groups have no exponent."""
        groups: dict[str, list[str]] = {}
        for name, row in zip(names, (self.whole, *self.rows), strict=True):
            if row.why_not is not None:
                groups.setdefault(row.why_not, []).append(name)
        lines = []
        for reason, of in groups.items():
            more = f" and {len(of) - 3} more" if len(of) > 4 else ""
            lines.append(f"  - no mu of {', '.join(of[:3] if more else of)}{more}: {reason}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers and texts as plain values, with None for a number that is not finite."""
        return plain(asdict(self))  # type: ignore[no-any-return]


def _with_interval(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:.2f}" if interval is None else f"{value:.2f} ({interval[0]:.2f} ... {interval[1]:.2f})"


def short_names(names: Sequence[str], most: int) -> list[str]:
    """Return different names of groups in one line of at most ``most`` characters each.

    Long names lose their common beginning and end, then their middle. Names that are alike after this get a number.

    Example:
        >>> short_names(["model.layers.0.attention.query", "model.layers.11.attention.query"], 24)
        ['...0.attention.query', '...11.attention.query']
        >>> short_names(["a_name_that_is_long"], 12)
        ['a_na...long']
    """
    short = [" ".join(name.split()) or "?" for name in names]
    for end in (1, -1):
        if max(map(len, short), default=0) > most:
            parts = [name.split(".")[::end] for name in short]
            alike = takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
            same = min(len(list(alike)), min(map(len, parts)) - 1)
            if same and len(parts) > 1:
                short = [_joined(part[same:][::end], end) for part in parts]
    short = [_without_middle(name, most) for name in short]
    seen = Counter(short)
    numbers: Counter[str] = Counter()
    for k, name in enumerate(short):
        if seen[name] > 1:
            numbers[name] += 1
            tail = f" #{numbers[name]}"
            short[k] = f"{_without_middle(name, most - len(tail))}{tail}"
    return short


def _joined(parts: list[str], end: int) -> str:
    """Return a dotted name, with dots for the part that is left out at its beginning (1) or end (-1)."""
    return f"...{'.'.join(parts)}" if end == 1 else f"{'.'.join(parts)}..."


def _without_middle(name: str, most: int) -> str:
    half = (most - 3) // 2
    return name if len(name) <= most else f"{name[: most - 3 - half]}...{name[-half:]}"


@quiet()
def aging_by_group(
    record: AgingRecord,
    observable: str = "msd",
    *,
    eps: float | None = None,
    window: tuple[int, int] | None = None,
    confidence: float = 0.95,
    n_bootstrap: int = 50,
    most: int = MOST_GROUPS,
    exponents: bool = True,
) -> GroupAging:
    r"""Analyse the aging of every group of parameters, and sort the groups by it.

    The exponent, its interval and the reason against it come from :func:`~lightning_glassy.analysis.aging_exponent`.
    The aging rate comes from :func:`~lightning_glassy.analysis.verdict`. A group that cannot be analysed, because it is
    frozen or was measured at too few times, has a row with the reason.

    The *local aging rate* between neighbouring waiting times a < b is
    :math:`-\langle\ln\Delta(b,b+t)-\ln\Delta(a,a+t)\rangle/(\langle\gamma\rangle\ln(b/a))`, with the local exponent
    :math:`\gamma = \partial\ln\Delta/\partial\ln t`. The averages are over the common lags t between a/30 and a at
    which both curves rise, above fast plateaus. The rate is 0 without aging. It is :math:`\mu` for lags much shorter
    than the waiting time, and a little smaller otherwise. It is NaN if the curves share no such lag, if
    :math:`\langle\gamma\rangle < 0.25` (the curve is saturated), or if its standard error is above 0.5.

    Args:
        record: one run, or (for intervals of the exponents) at least 8 replicas, with groups of parameters.
        observable: one of :func:`lightning_glassy.observables.relaxing`, such as ``"msd"``.
        eps: threshold of the overlap.
        window: first and last waiting time of the exponents.
        confidence: level of the intervals of the exponents.
        n_bootstrap: number of resampled fits of each group.
        most: largest number of groups. If there are more, the groups with the most parameters are analysed.
        exponents: whether exponents are fitted. They take most of the time. Without them, each row has the reason.

    Raises:
        ValueError: an argument is out of its range, there is no such observable, or the record has no group besides
            ``"all"``, or no pair at a positive lag.
    """
    names = [group for group in record.groups if group != "all"]
    if not names:
        raise ValueError("the record has no group besides 'all': measure with groups='layer', or groups of your own")
    if most < 1:
        raise ValueError(f"most={most} must be at least 1")
    relaxation_of(observable)  # raises for an observable that does not relax
    sizes = record.n_parameters
    largest = set(sorted(names, key=lambda group: -sizes[group])[:most])
    chosen = ["all", *(group for group in names if group in largest)]
    curves = {group: _curves(record, observable, group, eps) for group in chosen}
    threshold, waiting_time = _common_threshold([one for one in curves.values() if isinstance(one, Curves)])
    times = _apart(record.waiting_times)
    options: dict[str, Any] = {"window": window, "confidence": confidence, "n_bootstrap": n_bootstrap}
    rows = [
        _row(
            record,
            observable,
            group,
            eps,
            curves[group],
            times,
            threshold,
            waiting_time,
            options if exponents else None,
        )
        for group in chosen
    ]
    ordered = sorted(rows[1:], key=lambda row: (-np.inf if row.rate is None else row.rate.rate, row.n_parameters))
    return GroupAging(
        observable=observable,
        whole=rows[0],
        rows=ordered[::-1],
        n_groups=len(names),
        waiting_times=times,
        threshold=threshold,
        waiting_time=waiting_time,
        n_replica=record.n_replica or 1,
        confidence=confidence,
    )


def _curves(record: AgingRecord, observable: str, group: str, eps: float | None) -> Curves | str:
    """Return the curves of a group after step 0, or the reason why there are none."""
    try:
        curves = relaxation_curves(record, observable, group=group, eps=eps)
    except (KeyError, ValueError) as error:
        if group == "all":  # the record or the arguments are wrong, not the group
            raise
        return _words(error)
    mean, used = curves.mean(), curves.after(0)
    if not np.isfinite(mean).any():
        return f"the {curves.label} is not finite"
    if not (mean[np.isfinite(mean)] > 0).any():
        return f"the {curves.label} is 0 at all times: these parameters do not move"
    return used if len(used.waiting_times) else "there is no waiting time after step 0"


def _row(
    record: AgingRecord,
    observable: str,
    group: str,
    eps: float | None,
    curves: Curves | str,
    times: NDArray[np.int64],
    threshold: float,
    waiting_time: int,
    options: dict[str, Any] | None,
) -> GroupRow:
    """Return the row of one group, from its curves or the reason why there are none."""
    unknown = np.full(max(len(times) - 1, 0), np.nan)
    n = record.n_parameters[group]
    if isinstance(curves, str):
        return GroupRow(group, n, None, None, None, curves, None, "cannot tell", np.nan, False, False, unknown, unknown)
    if options is None:
        fitted: Fitted = (None, None, None, "the exponent was not fitted")
    else:
        fitted = _exponent(record, observable, group, eps, options)
    mu, estimate, interval, why_not = fitted
    judged = verdict(record, group=group, observable=observable, eps=eps)
    lag, early, late = np.nan, False, False
    at = np.flatnonzero(curves.waiting_times == waiting_time)
    if len(at) and np.isfinite(threshold):
        crossing = lag_to_threshold(curves.lags, curves.mean()[at], threshold)
        lag, early, late = float(crossing.lags[0]), bool(crossing.early[0]), bool(crossing.late[0])
    rates, errors = _local_rates(curves, times)
    return GroupRow(
        group=group,
        n_parameters=n,
        mu=mu,
        estimate=estimate,
        interval=interval,
        why_not=why_not,
        rate=judged.rates[0] if judged.rates else None,
        kind=judged.kind,
        lag=lag,
        early=early,
        late=late,
        local_rates=rates,
        local_errors=errors,
    )


def _exponent(record: AgingRecord, observable: str, group: str, eps: float | None, options: dict[str, Any]) -> Fitted:
    """Return the exponent of a group, the fitted value, its interval, and the reason why there is no exponent."""
    try:
        fit = aging_exponent(record, observable, group=group, eps=eps, **options)
    except NotEnoughDataError as error:
        return None, None, None, _words(error)
    return fit.mu, fit.estimate if np.isfinite(fit.estimate) else None, fit.interval, fit.why_not


def _words(error: Exception) -> str:
    return str(error.args[0] if error.args else error)


def _common_threshold(found: list[Curves]) -> tuple[float, int]:
    """Return the threshold that most curves cross, and the latest waiting time at which most groups cross it."""
    means = [curves.mean() for curves in found]
    values = np.concatenate([mean[np.isfinite(mean) & (mean > 0)] for mean in means]) if means else np.array([])
    if len(values) == 0 or not values.max() > values.min():
        return np.nan, 0
    candidates = np.geomspace(values.min(), values.max(), _CANDIDATES)[1:-1]
    crossed = [  # for each threshold, which curves of which group cross it
        [np.isfinite(lag_to_threshold(curves.lags, mean, aim).lags) for curves, mean in zip(found, means, strict=True)]
        for aim in candidates
    ]
    counts = np.array([sum(int(mask.sum()) for mask in masks) for masks in crossed])
    if counts.max() == 0:
        return np.nan, 0
    best = np.flatnonzero(counts == counts.max())
    place = int(best[len(best) // 2])
    times = found[0].waiting_times
    groups = sum(mask.astype(np.int64) for mask in crossed[place])
    return float(f"{candidates[place]:.2g}"), int(times[np.flatnonzero(groups == np.max(groups))[-1]])


def _apart(waiting_times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the waiting times after step 0, from the last one back, that are at least a factor of 2 apart."""
    kept: list[int] = []
    for step in waiting_times[waiting_times > 0][::-1]:
        if not kept or step * _APART <= kept[-1]:
            kept.append(int(step))
    return np.array(kept[::-1], dtype=np.int64)


def _local_rates(curves: Curves, times: NDArray[np.int64]) -> tuple[Array, Array]:
    """Return the aging rate between neighbouring waiting times and its standard error, ``[n_tw - 1]`` each."""
    rates, errors = (np.full(max(len(times) - 1, 0), np.nan) for _ in range(2))
    rows = np.searchsorted(curves.waiting_times, times)
    chosen = curves.only(np.isin(curves.waiting_times, times))
    if len(chosen.waiting_times) != len(times) or len(rows) < 2:
        return rates, errors
    slopes, slow = smooth_exponent(chosen.lags, chosen.mean()), np.isfinite(above_plateaus(chosen).mean())
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(chosen.values)
    usable = np.isfinite(logs).all(axis=0) & np.isfinite(slopes)
    for i, first in enumerate(times[:-1]):
        both = usable[i] & usable[i + 1] & (chosen.lags <= first)
        rise = np.minimum(slopes[i], slopes[i + 1])
        steep = rise >= min(_STEEP, 0.5 * rise[both].max(initial=0))
        for part in (slow[i] & slow[i + 1], steep, chosen.lags >= first / 30):
            both = both & part if (both & part).sum() >= min(3, both.sum()) else both
        if not both.any():
            continue
        gamma = float(np.mean([slopes[i, both], slopes[i + 1, both]]))
        if gamma < _LEAST_EXPONENT:
            continue
        shift = (logs[:, i + 1, both] - logs[:, i, both]).mean(axis=-1)  # [n_replica]
        own = -shift / (gamma * np.log(times[i + 1] / first))
        rates[i] = own.mean()
        if len(own) >= _FEWEST:
            errors[i] = own.std(ddof=1) / np.sqrt(len(own))
            if errors[i] > _UNCERTAIN:
                rates[i] = np.nan
    return rates, errors

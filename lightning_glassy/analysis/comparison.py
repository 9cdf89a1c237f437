"""Several records side by side: one row for each, in units that do not depend on the size of the weights."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_glassy.analysis.exponent_result import AgingExponent, NotEnoughDataError, wrapped
from lightning_glassy.analysis.exponents import aging_exponent
from lightning_glassy.analysis.phase import Verdict, reconcile, verdict
from lightning_glassy.analysis.words import Slowdown, last_slowdown, moved_in_last_decade
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.text import plain, printable

_COLUMNS = ("", "N", "replicas", "verdict", "mu", "slower by", "moved", "loss")
_LEGEND = (
    "mu: exponent of the relaxation lag, with its 95% interval if there are 8 replicas; slower by: how much longer it "
    "takes to move as far after the later of two waiting times; moved: rms displacement in the last decade of steps, "
    "relative to the rms weight; loss: training loss at the end"
)


@dataclass(frozen=True)
class ComparedRecord:
    """One row of a :class:`Comparison`.

    Attributes:
        name: the name that the caller gave.
        record: the record.
        verdict: whether it ages.
        exponent: its aging exponent, None if it has too few curves.
        why_not: the reason why there is no headline exponent, None if there is one.
        slowdown: how much longer the weights take to move as far, None if it is not known.
        moved: last step with a known displacement, and the displacement over the last decade of steps before it, in %
            of the rms weight. None if it is not known.
    """

    name: str
    record: AgingRecord
    verdict: Verdict
    exponent: AgingExponent | None
    why_not: str | None
    slowdown: Slowdown | None
    moved: tuple[int, float] | None

    def cells(self) -> list[str]:
        """Return the cells of the row as text."""
        fit, slower, judged = self.exponent, self.slowdown, self.verdict
        mu = "-"
        if fit is not None and fit.mu is not None:
            mu = f"{fit.mu:.3f}" + ("" if fit.interval is None else " ({:.3f} ... {:.3f})".format(*fit.interval))
        stop = "" if judged.stops_at is None else f" at {judged.stops_at:,}"
        times = (
            "-"
            if slower is None
            else f"{slower.factor:.3g} +- {slower.error:.1g} ({slower.first:,} to {slower.last:,})"
        )
        return [
            printable(self.name),
            f"{self.record.n_parameters[judged.group]:,}",
            str(self.record.n_replica or 1),
            judged.kind + stop,
            mu,
            times,
            "-" if self.moved is None else f"{self.moved[1]:.3g}%",
            "-" if judged.train_loss is None else f"{judged.train_loss:.3g}",
        ]


@dataclass(frozen=True, repr=False)
class Comparison:
    """Several records side by side. ``print`` shows a table, a notebook shows it as HTML.

    :func:`lightning_glassy.plotting.plot_comparison` draws it.

    Attributes:
        rows: one row for each record, in the order given.
        group: name of the group of parameters.
    """

    rows: list[ComparedRecord]
    group: str

    def __str__(self) -> str:
        table = [list(_COLUMNS), *(row.cells() for row in self.rows)]
        widths = [max(len(line[i]) for line in table) for i in range(len(_COLUMNS))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
        ]
        reasons = [f"{printable(row.name)}: {row.why_not}" for row in self.rows if row.why_not is not None]
        return "\n".join([*lines, *wrapped([_LEGEND, *reasons], indent=2)])

    def __repr__(self) -> str:
        return f"Comparison({', '.join(repr(row.name) for row in self.rows)})"

    def _repr_html_(self) -> str:
        def line(cells: list[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        rows = "".join(line(row.cells(), "td") for row in self.rows)
        return f"<table>{line(list(_COLUMNS), 'th')}{rows}</table><small>{html.escape(_LEGEND)}</small>"

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values, by the names of the records."""
        content = {
            row.name: {
                "n_parameters": row.record.n_parameters[self.group],
                "n_replica": row.record.n_replica or 1,
                "verdict": row.verdict.kind,
                "stops_at": row.verdict.stops_at,
                "aging_exponent": None if row.exponent is None else row.exponent.mu,
                "interval": None if row.exponent is None else row.exponent.interval,
                "why_no_exponent": row.why_not,
                "slowdown": None if row.slowdown is None else vars(row.slowdown),
                "moved_percent": None if row.moved is None else row.moved[1],
                "moved_until": None if row.moved is None else row.moved[0],
                "train_loss": row.verdict.train_loss,
            }
            for row in self.rows
        }
        return plain(content)  # type: ignore[no-any-return]


def compare(records: Mapping[str, AgingRecord], *, group: str = "all") -> Comparison:
    """Compare several records, such as networks of different size: verdict, exponent, slowdown and displacement.

    Args:
        records: the records by name. The names are the rows of the table.
        group: name of the group of parameters.

    Raises:
        TypeError: ``records`` is not a mapping from names to records.
        ValueError: there is no record, or a record has no pair at a positive lag.
        KeyError: a record does not have the group.

    Example:
        >>> import numpy as np
        >>> from lightning_glassy import LogTimeSchedule
        >>> walks = np.cumsum(np.random.default_rng(0).normal(size=(2, 1001, 1000)), axis=1)
        >>> records = [AgingRecord.from_trajectory(walk, LogTimeSchedule.logspaced(1000)) for walk in walks]
        >>> found = compare({"first": records[0], "second": records[1]})
        >>> [row.verdict.kind for row in found.rows]
        ['no aging', 'no aging']
    """
    if not isinstance(records, Mapping) or not all(isinstance(one, AgingRecord) for one in records.values()):
        raise TypeError(
            f"records={type(records).__name__} must be a mapping from names to records, such as "
            '{"small": first, "large": second}'
        )
    if not records:
        raise ValueError("records={}: there is nothing to compare")
    return Comparison([_compared(str(name), record, group) for name, record in records.items()], group)


def _compared(name: str, record: AgingRecord, group: str) -> ComparedRecord:
    try:
        judged, fit, why_not = verdict(record, group=group), None, None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    try:
        fit = aging_exponent(record, group=group)
        judged, why_not = reconcile(judged, fit), fit.why_not
    except NotEnoughDataError as error:
        why_not = str(error)
    found = last_slowdown(record, judged, fit)
    return ComparedRecord(name, record, judged, fit, why_not, found, moved_in_last_decade(record, group))

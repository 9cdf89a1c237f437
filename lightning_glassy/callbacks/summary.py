"""The summary of a record at the end of training, for people at a terminal."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from lightning_glassy.observables.arrays import quiet
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.text import few

log = logging.getLogger(__name__)


def print_lines(write: Callable[[str], object], lines: Sequence[str]) -> None:
    """Print lines, unless the output is closed or full."""
    if lines:
        with contextlib.suppress(OSError, ValueError):
            write("\n".join(lines))


@quiet()
def summary(record: AgingRecord, who: str) -> list[str]:
    """Return a table of the displacement, and the verdict and the aging exponent of a long enough record.

    A record that is too short for an exponent (:func:`~lightning_glassy.analysis.curves.too_short`) has the verdict
    only if it is decided, one line with the reason, and the doubts about its numbers.

    Args:
        record: the record.
        who: name of the callback, for messages.
    """
    if not len(record):
        return [f"{who}: training ended before a pair could be measured"]
    return [_table(record), *_findings(record, who)]


def _table(record: AgingRecord) -> str:
    """Return a table of the displacement for a few waiting times and lags. With replicas, it is the mean over them."""
    waiting_times, lags, msd = record.waiting_times, record.lags, record.msd()
    if record.n_replica is not None:
        msd = msd.mean(axis=0)
    rows = few(range(len(waiting_times)), 6)
    columns = few([j for j, lag in enumerate(lags) if lag > 0 or len(lags) == 1], 7)  # at lag 0 nothing has moved
    lines = [
        f"Aging of {record.n_parameters['all']:,} parameters: mean squared displacement at lag t after step t_w",
        f"{'t_w':>10} |" + "".join(f"{f't={lags[j]:,}':>12}" for j in columns),
    ]
    for i in rows:
        cells = ("" if msd[i, j] != msd[i, j] else f"{msd[i, j]:.2e}" for j in columns)
        lines.append(f"{waiting_times[i]:>10,} |" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def _findings(record: AgingRecord, who: str) -> list[str]:
    """Return the verdict and the aging exponent in words, or the reason why the record is too short for them."""
    try:
        from lightning_glassy.analysis import NotEnoughDataError, aging_exponent, reconcile, relaxation_curves, verdict
        from lightning_glassy.analysis.curves import too_short
    except ImportError as error:
        return [f"no verdict and no aging exponent: {error}"]
    try:
        curves, judged = relaxation_curves(record), verdict(record)
        short = too_short(curves)
        if short is not None:
            decided = [] if judged.kind == "cannot tell" else [str(replace(judged, warnings=[]))]
            return [*decided, short, *(f"  ! {doubt}" for doubt in [*curves.doubts, *record.doubts])]
        try:
            fit = aging_exponent(record)
        except NotEnoughDataError as error:
            return [str(judged), f"no aging exponent: {error}"]
        # Print a doubt of both only once.
        doubts = [warning for warning in judged.warnings if warning not in fit.warnings]
        return [str(replace(reconcile(judged, fit), warnings=doubts)), str(fit)]
    except Exception as error:
        log.warning("%s: the record could not be analysed (%s: %s)", who, type(error).__name__, str(error))
        return []

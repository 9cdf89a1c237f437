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

_SHORT = 2000  # steps of a run with a short summary
_VISIBLE = 2  # doubts that are printed


def print_lines(write: Callable[[str], object], lines: Sequence[str]) -> None:
    """Print lines, unless the output is closed or full."""
    if lines:
        with contextlib.suppress(OSError, ValueError):
            write("\n".join(lines))


@quiet()
def summary(record: AgingRecord, who: str) -> list[str]:
    """Return the answer in plain words, a table of the displacement, and the verdict and the aging exponent.

    A record that is too short for an exponent (:func:`~lightning_glassy.analysis.curves.too_short`) has the verdict
    only if it is decided, and one line with the reason. Two doubts are printed, the most serious first, and the number
    of the others. A run of less than 2,000 steps has a short table, and one line about its exponent.

    Args:
        record: the record.
        who: name of the callback, for messages.
    """
    if not len(record):
        return [f"{who}: training ended before a pair could be measured"]
    words, findings = _findings(record, who)
    return [*words, _table(record), *findings]


def _table(record: AgingRecord) -> str:
    """Return a table of the displacement for a few waiting times and lags. With replicas, it is the mean over them."""
    waiting_times, lags, msd = record.waiting_times, record.lags, record.msd()
    if record.n_replica is not None:
        msd = msd.mean(axis=0)
    most = (3, 4) if record.last_step < _SHORT else (6, 7)
    rows = few(range(len(waiting_times)), most[0])
    # At lag 0 nothing has moved.
    columns = few([j for j, lag in enumerate(lags) if lag > 0 or len(lags) == 1], most[1])
    lines = [
        f"Aging of {record.n_parameters['all']:,} parameters: mean squared displacement at lag t after step t_w",
        f"{'t_w':>10} |" + "".join(f"{f't={lags[j]:,}':>12}" for j in columns),
    ]
    for i in rows:
        cells = ("" if msd[i, j] != msd[i, j] else f"{msd[i, j]:.2e}" for j in columns)
        lines.append(f"{waiting_times[i]:>10,} |" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def _findings(record: AgingRecord, who: str) -> tuple[list[str], list[str]]:
    """Return the answer in plain words, and the verdict and the aging exponent, or the reason why there are none."""
    try:
        from lightning_glassy.analysis import NotEnoughDataError, reconcile, relaxation_curves, verdict
        from lightning_glassy.analysis.curves import too_short
        from lightning_glassy.analysis.latest import latest_exponent
        from lightning_glassy.analysis.words import doubts_of, in_words
    except ImportError as error:
        return [], [f"no verdict and no aging exponent: {error}"]
    try:
        curves, judged = relaxation_curves(record), verdict(record)
        short = too_short(curves)
        if short is not None:
            decided = [] if judged.kind == "cannot tell" else [str(replace(judged, warnings=[]))]
            doubts = list(dict.fromkeys([*record.doubts, *curves.doubts]))
            return [], [*decided, short, *_few_doubts(doubts)]
        fit, missing = None, []
        try:
            fit = latest_exponent(record)
            judged = reconcile(judged, fit)
        except NotEnoughDataError as error:
            missing = [f"no aging exponent: {error}"]
        doubts = doubts_of(record, judged, fit)
        # The exponent of a short run is seldom reliable, so its first line is enough.
        lines = [] if fit is None else str(replace(fit, warnings=[])).split("\n")
        lines = lines[:1] if record.last_step < _SHORT else lines
        told = [str(replace(judged, warnings=[])), *missing, *(["\n".join(lines)] if lines else [])]
        return in_words(record, judged, fit), [*told, *_few_doubts(doubts)]
    except Exception as error:
        log.warning("%s: the record could not be analysed (%s: %s)", who, type(error).__name__, str(error))
        return [], []


def _few_doubts(doubts: Sequence[str]) -> list[str]:
    """Return the lines of the most serious doubts, and one line for the others."""
    lines = [f"  ! {doubt}" for doubt in doubts[:_VISIBLE]]
    more = len(doubts) - _VISIBLE
    return [*lines, f"  ! {more} more in 'lightning-glassy report'"] if more > 0 else lines

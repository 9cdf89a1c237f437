"""The aging exponent of the record that was analysed last, so that loggers and the summary compute it once."""

from __future__ import annotations

import weakref

from lightning_glassy.analysis.exponent_result import AgingExponent, NotEnoughDataError
from lightning_glassy.analysis.exponents import aging_exponent
from lightning_glassy.record import AgingRecord

_latest: tuple[weakref.ref[AgingRecord], int, AgingExponent | str] | None = None


def latest_exponent(record: AgingRecord) -> AgingExponent:
    """Return the aging exponent of the displacement of all parameters.

    Args:
        record: the record. A call with the same record, without new pairs, returns the earlier result.

    Raises:
        NotEnoughDataError: the record has too few curves for an exponent.
    """
    global _latest
    known = _latest
    if known is None or known[0]() is not record or known[1] != len(record):
        found: AgingExponent | str
        try:
            found = aging_exponent(record)
        except NotEnoughDataError as error:
            found = str(error)
        known = _latest = weakref.ref(record), len(record), found
    if isinstance(known[2], str):
        raise NotEnoughDataError(known[2])
    return known[2]

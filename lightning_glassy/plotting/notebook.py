"""A record as a notebook shows it."""

from __future__ import annotations

import base64
import html
import io
import logging

from lightning_glassy.observables.arrays import quiet
from lightning_glassy.plotting.two_time import two_time_figure
from lightning_glassy.record import AgingRecord

log = logging.getLogger(__name__)


@quiet()
def html_of(record: AgingRecord) -> str:
    """Return the size of a record, the answer in plain words, and a picture of the curves of the displacement.

    The words are left out without scipy, and the picture without matplotlib. An error in either leaves it out, too.
    """
    parts = [f"<p><b>{html.escape(repr(record))}</b></p>"]
    for make in (_words, _picture):
        try:
            parts += make(record) if len(record) else []
        except ImportError as error:
            parts.append(f"<p><small>{html.escape(str(error))}</small></p>")
        except Exception as error:  # a notebook must show the record in any case
            log.debug("lightning_glassy: a record is shown without a part: %s", error)
    return "".join(parts)


def _words(record: AgingRecord) -> list[str]:
    from lightning_glassy.analysis import in_words, verdict

    return [f"<p>{html.escape(' '.join(in_words(record, verdict(record))))}</p>"]


def _picture(record: AgingRecord) -> list[str]:
    content = io.BytesIO()
    two_time_figure(record).savefig(content, format="png")
    data = base64.b64encode(content.getvalue()).decode()
    return [f'<img alt="mean squared displacement against the lag" width="640" src="data:image/png;base64,{data}">']

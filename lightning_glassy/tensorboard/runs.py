"""Read the records in a log directory from the event files that TensorBoard has loaded."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_glassy.record import AgingRecord, RecordError
from lightning_glassy.tensorboard.events import PLUGIN_NAME, Place, place_of
from lightning_glassy.tensorboard.parts import assemble

_USUAL_MONITOR = "glassy"  # the default name of an AgingMonitor, left out of the names of runs


@dataclass(frozen=True)
class Run:
    """One record, or the reason why it cannot be read.

    Attributes:
        name: the name of the run in TensorBoard, the monitor if its name is not the default, and a number if the
            monitor has several records.
        version: a text that changes when the record grows.
        record: the record, None if there is an error.
        error: the reason why the record cannot be read, None if there is a record.
        answers: answers computed from this version of the record, by question.
    """

    name: str
    version: str
    record: AgingRecord | None
    error: str | None
    answers: dict[Any, Any] = field(default_factory=dict)


class Runs:
    """Reader of the records of all runs. It keeps each record until the record grows.

    Args:
        provider: a ``tensorboard.data.provider.DataProvider``, for the fast or the slow loading.
    """

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._lock = threading.Lock()
        self._known: dict[str, dict[str, Run]] = {}  # by experiment
        # Keys are experiment, run, monitor and token. Values are the number of parts, and the record or its error.
        self._records: dict[tuple[str, str, str, str], tuple[int, AgingRecord | str]] = {}

    def refresh(self, context: Any, experiment: str) -> dict[str, Run]:
        """Return all runs by name, as the data provider has them now."""
        series = self._series(context, experiment)
        with self._lock:
            before, now = self._known.get(experiment, {}), {}
            for run in self._read(experiment, series):
                old = before.get(run.name)
                now[run.name] = old if old is not None and old.version == run.version else run
            self._known[experiment] = now
            return now

    def known(self, context: Any, experiment: str) -> dict[str, Run]:
        """Return all runs by name as of the last refresh, so that a page shows one version of a record."""
        known = self._known.get(experiment)
        return self.refresh(context, experiment) if known is None else known

    def _series(self, context: Any, experiment: str) -> Mapping[str, Mapping[str, Any]]:
        """Return the series with their metadata, by run and tag."""
        question = {"experiment_id": experiment, "plugin_name": PLUGIN_NAME}
        try:
            return self._provider.list_tensors(context, **question)  # type: ignore[no-any-return]
        except Exception:
            # The metadata of very many large records may not fit into one message of the data server. Ask run by run.
            from tensorboard.data.provider import RunTagFilter

            found: dict[str, Mapping[str, Any]] = {}
            for run in self._provider.list_runs(context, experiment_id=experiment):
                one = RunTagFilter(runs=[run.run_name])
                found |= self._provider.list_tensors(context, **question, run_tag_filter=one)
            return found

    def _read(self, experiment: str, series: Mapping[str, Mapping[str, Any]]) -> Iterable[Run]:
        for name in sorted(series):
            parts: dict[tuple[str, str], dict[int, bytes]] = {}
            for tag, content in series[name].items():
                place = place_of(tag) or Place(tag, "", 0)
                parts.setdefault((place.monitor, place.token), {})[place.number] = content.plugin_content
            found: dict[str, list[tuple[str, AgingRecord | str]]] = {}
            for (monitor, token), numbered in sorted(parts.items()):
                record = self._record((experiment, name, monitor, token), numbered)
                found.setdefault(monitor, []).append((f"{token}.{len(numbered)}", record))
            for monitor, versions in found.items():
                # The record of a resumed run can continue an earlier record and hold all its rows. Drop the earlier.
                kept = [v for i, v in enumerate(versions) if not any(_within(v[1], w[1]) for w in versions[i + 1 :])]
                for number, (version, record) in enumerate(kept, start=1):
                    own = name if monitor == _USUAL_MONITOR else f"{name} · {monitor}"
                    own = own if len(kept) == 1 else f"{own} ({number})"
                    broken = isinstance(record, str)
                    yield Run(own, version, None if broken else record, record if broken else None)  # type: ignore[arg-type]

    def _record(self, key: tuple[str, str, str, str], parts: dict[int, bytes]) -> AgingRecord | str:
        known = self._records.get(key)
        if known is None or known[0] != len(parts):
            try:
                record: AgingRecord | str = assemble(parts[number] for number in sorted(parts))
            except RecordError as error:
                record = str(error)
            known = self._records[key] = (len(parts), record)
        return known[1]


def _within(one: AgingRecord | str, other: AgingRecord | str) -> bool:
    """Return whether all rows of one record are in the other."""
    return not isinstance(one, str) and not isinstance(other, str) and len(one) > 0 and one.is_part_of(other)

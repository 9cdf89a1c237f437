"""Read the records in a log directory from the event files that TensorBoard has loaded."""

from __future__ import annotations

import re
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from lightning_glassy.record import AgingRecord, RecordError, without_replaced
from lightning_glassy.report import answers
from lightning_glassy.tensorboard.events import PLUGIN_NAME, by_record
from lightning_glassy.tensorboard.once import Once
from lightning_glassy.tensorboard.parts import join

_USUAL_MONITOR = "glassy"  # the default name of an AgingMonitor, left out of the names of runs
_OURS = re.compile(r"[^/]*_(series|figures|record)/|.*/(moved_percent|aging_rate|mu)(/|$)|.*/tw_\d+$")
_INTERESTING = re.compile("loss|acc|error|perplexity|score|f1", re.IGNORECASE)
_UNINTERESTING = ("epoch", "hp_metric")
_MOST_SCALARS, _MOST_POINTS = 12, 500  # of one run
_MOST_EXPERIMENTS = 4  # an address can name any experiment, and a TensorBoard of a log directory has only one


@dataclass(frozen=True)
class Run:
    """One record, or the reason why it cannot be read.

    Attributes:
        name: the name of the run in TensorBoard, the monitor if its name is not the default, and a number if the
            monitor has several records.
        version: a text that changes when the record changes.
        record: the record, None if there is an error.
        description: the groups and observables of the record, or the reason why it cannot be read under ``error``. If
            parts of the record are missing, ``note`` is a sentence about this.
        place: name of the run of TensorBoard, empty for several runs together.
    """

    name: str
    version: str
    record: AgingRecord | None
    description: dict[str, Any]
    place: str = ""


@dataclass(frozen=True)
class _Reading:
    """Parts of a record as they were read.

    Attributes:
        version: a text that changes when the parts change.
        record: the record, None if there is an error.
        description: as in :class:`Run`.
    """

    version: str
    record: AgingRecord | None
    description: dict[str, Any]


class Runs:
    """Reader of the records of all runs. It keeps each record until the record changes.

    Args:
        provider: a ``tensorboard.data.provider.DataProvider``, for the fast or the slow loading.
    """

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._lock = threading.Lock()
        self._once: Once[dict[str, Run]] = Once()
        self._known: OrderedDict[str, dict[str, Run]] = OrderedDict()  # by experiment
        self._readings: dict[tuple[str, str, str], _Reading] = {}  # by run, monitor and token

    def refresh(self, context: Any, experiment: str) -> dict[str, Run]:
        """Return all runs by name, as the data provider has them now."""
        return self._once(experiment, partial(self._refresh, context, experiment))

    def known(self, context: Any, experiment: str) -> dict[str, Run]:
        """Return all runs by name as of the last refresh, so that a page shows one version of a record."""
        known = self._known.get(experiment)
        return self.refresh(context, experiment) if known is None else known

    def _refresh(self, context: Any, experiment: str) -> dict[str, Run]:
        series = self._series(context, experiment)
        with self._lock:
            readings: dict[tuple[str, str, str], _Reading] = {}
            now = {run.name: run for run in self._read(series, readings)}
            self._readings = readings
            self._known[experiment] = now
            self._known.move_to_end(experiment)
            while len(self._known) > _MOST_EXPERIMENTS:
                self._known.popitem(last=False)
        return now

    def scalars(self, context: Any, experiment: str, run: str) -> dict[str, dict[str, list[float]]]:
        """Return the scalars of a run that other callbacks and the user have logged: steps and values by tag.

        The tags of this package are left out, because the record has their values. Losses and accuracies come first.
        There are at most 12 tags, of at most 500 values each.
        """
        from tensorboard.data.provider import RunTagFilter

        question: dict[str, Any] = {"experiment_id": experiment, "plugin_name": "scalars"}
        one = RunTagFilter(runs=[run])
        there = self._provider.list_scalars(context, **question, run_tag_filter=one).get(run, {})
        foreign = [tag for tag in there if not _OURS.match(tag) and tag not in _UNINTERESTING]
        tags = sorted(foreign, key=lambda tag: (not _INTERESTING.search(tag), tag))[:_MOST_SCALARS]
        if not tags:
            return {}
        wanted = RunTagFilter(runs=[run], tags=tags)
        read = self._provider.read_scalars(context, **question, downsample=_MOST_POINTS, run_tag_filter=wanted)
        content = read.get(run, {})
        return {
            tag: {"steps": [one.step for one in content[tag]], "values": [float(one.value) for one in content[tag]]}
            for tag in tags
            if tag in content
        }

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

    def _read(
        self, series: Mapping[str, Mapping[str, Any]], readings: dict[tuple[str, str, str], _Reading]
    ) -> Iterable[Run]:
        """Yield all runs, and collect their records in ``readings``."""
        for name in sorted(series):
            parts = by_record((tag, content.plugin_content) for tag, content in series[name].items())
            found: dict[str, list[_Reading]] = {}
            for (monitor, token), numbered in sorted(parts.items()):
                key = (name, monitor, token)
                readings[key] = _reading(token, numbered, self._readings.get(key))
                found.setdefault(monitor, []).append(readings[key])
            for monitor, all_of_it in found.items():
                # The clock may have been set back, so the order of the readings has no meaning.
                kept = [all_of_it[i] for i in without_replaced([one.record for one in all_of_it])]
                for number, one in enumerate(kept, start=1):
                    own = name if monitor == _USUAL_MONITOR else f"{name} · {monitor}"
                    own = own if len(kept) == 1 else f"{own} ({number})"
                    yield Run(own, one.version, one.record, one.description, name)


def _reading(token: str, parts: Mapping[int, bytes], known: _Reading | None) -> _Reading:
    """Return the known reading of some parts, or read them if it is not of these parts."""
    numbers, checksum = sorted(parts), 0
    for number in numbers:
        checksum = zlib.crc32(parts[number], checksum)
    version = f"{token}.{len(numbers)}.{checksum:08x}"
    if known is not None and known.version == version:
        return known
    try:
        record, note = join(parts)
    except RecordError as error:
        return _Reading(version, None, {"error": str(error)})
    return _Reading(version, record, answers.describe(record) | ({"note": note} if note else {}))

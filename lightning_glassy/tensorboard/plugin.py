"""The TensorBoard plugin of the tab "Glassy": files of the page, and answers as JSON.

TensorBoard imports this module at every start, and does not start if the import fails. This module therefore imports
neither torch nor lightning. It imports scipy, which takes time, only if the page needs it for an answer.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

from tensorboard.backend import http_util
from tensorboard.plugin_util import context, experiment_id
from tensorboard.plugins import base_plugin
from werkzeug.wrappers import Request

from lightning_glassy.observables import OBSERVABLES, find
from lightning_glassy.record import AgingRecord, without_cut_short
from lightning_glassy.record.combine import REMEDY
from lightning_glassy.record.text import plain
from lightning_glassy.report import answers
from lightning_glassy.report.page import STATIC
from lightning_glassy.tensorboard.events import PLUGIN_NAME
from lightning_glassy.tensorboard.once import Answers, BusyError
from lightning_glassy.tensorboard.runs import Run, Runs

Answer = Callable[[Request], str]
"""A function that answers a request with JSON."""

_TYPES = {"js": "text/javascript", "css": "text/css"}
_MOST_SERIES = 200  # largest number of runs times groups in one question
_LONGEST_QUESTION = 1 << 16  # bytes, as long as an address that TensorBoard's server takes
_LONGEST_ANSWER = 64 << 20  # bytes
_SECONDS = 30.0  # for one request
_KEPT = 64 << 20  # bytes of answers that are kept
_AT_ONCE = 4  # computations at the same time
_MOST_WAITING = 64  # questions at the same time
_MOST_JOINED = 2  # sets of runs joined as replicas that are kept
_REMEDY = (
    "Choose runs of one length, or show them side by side; 'lightning-glassy report --common' uses the pairs that all "
    "runs have"
)
_YEAR = 365 * 24 * 3600


class QuestionError(ValueError):
    """A question that cannot be answered. The text gives the reason."""


class GlassyPlugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """Plugin that shows the aging curves of the runs in a log directory.

    Answers are JSON. A question that cannot be answered gets status 400 and ``{"error": sentence}``. Each answer is
    computed once and kept, up to 64 MiB of answers. A request takes about 30 seconds at most, and its answer 64 MiB. A
    series beyond these limits has ``{"error": sentence}`` in its place. If parts of a record are missing in the event
    files, each answer about the run has ``note``, a sentence about this.

    ================  ===================================================================================
    path              answer
    ================  ===================================================================================
    ``/observables``  every observable of the registry: its name, title, symbol, axis, and how it relaxes
    ``/runs``         every record: its groups, observables, one-time series, and last step
    ``/curves``       two-time curves of an observable, for runs and groups
    ``/fits``         aging exponent, verdict and doubts, as in ``lightning-glassy report``
    ``/exponents``    local exponent of the displacement
    ``/groups``       aging rates of all groups side by side
    ``/noise``        the displacement against the gradient noise that has acted
    ``/response``     the response to a field against half the displacement, and effective temperatures
    ``/replicas``     overlaps between replicas, and their distribution
    ``/regimes``      the regimes of the training loss
    ``/scalars``      scalars that the user has logged
    ``/series``       one-time series
    ``/profiles``     functions on a grid, such as histograms
    ================  ===================================================================================

    Args:
        context: the context that TensorBoard gives to plugins. The plugin reads only from its data provider.
    """

    plugin_name = PLUGIN_NAME

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._runs = Runs(context.data_provider)
        self._answers = Answers(most_bytes=_KEPT, at_once=_AT_ONCE, most_waiting=_MOST_WAITING)
        self._joining = threading.Lock()
        self._joined: OrderedDict[str, Run] = OrderedDict()

    def is_active(self) -> bool:
        """Return False. TensorBoard activates the tab by itself if there are data for it."""
        return False

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """Return the first module of the page, and the name of the tab."""
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="Glassy")

    def get_plugin_apps(self) -> dict[str, Any]:
        """Return the applications by path: the files of the page, plotly.js, and the answers."""
        names = [file.name for file in STATIC.iterdir() if file.name.rsplit(".", 1)[-1] in _TYPES]
        apps = {f"/{name}": _file(name, (STATIC / name).read_bytes()) for name in names}
        apps["/plotly.min.js"] = _plotly
        questions: dict[str, Answer] = {
            "/observables": self._observables,
            "/runs": self._all_runs,
            "/curves": self._of_choice(answers.curves),
            "/fits": self._of_choice(_fit),
            "/exponents": self._of_group(answers.exponents),
            "/groups": self._of_choice(_groups),
            "/noise": self._of_group(answers.noise),
            "/response": self._of_run(answers.response),
            "/replicas": self._of_run(answers.replicas),
            "/regimes": self._of_run(answers.regimes),
            "/scalars": self._scalars,
            "/series": self._of_run(answers.series),
            "/profiles": self._of_run(answers.profiles),
        }
        return apps | {path: _json(answer) for path, answer in questions.items()}

    # ------------------------------------------------------------------ answers

    def _observables(self, request: Request) -> str:
        _check_names(request, ())
        return json.dumps({"observables": answers.observables(), "symbols": answers.SYMBOLS})

    def _all_runs(self, request: Request) -> str:
        _check_names(request, ())
        runs = self._runs.refresh(context(request.environ), experiment_id(request.environ))
        found = [{"name": run.name, "version": run.version, **run.description} for run in runs.values()]
        return json.dumps({"runs": found}, allow_nan=False)

    def _of_choice(self, answer: Callable[..., dict[str, Any]]) -> Answer:
        """Answer a question about an observable, for each run and group."""

        def respond(request: Request) -> str:
            _check_names(request, _CHOICE)
            observable, eps = _observable(request)
            asked = self._runs_and_groups(request)
            eps = _threshold((run for run, _ in asked), eps)
            return self._series(
                answer, [(_head(run, group=group), run, observable, group, eps) for run, group in asked]
            )

        return respond

    def _of_group(self, answer: Callable[..., dict[str, Any]]) -> Answer:
        """Answer a question about each run and group."""

        def respond(request: Request) -> str:
            _check_names(request, ("run", "group", "together"))
            asked = self._runs_and_groups(request)
            return self._series(answer, [(_head(run, group=group), run, group) for run, group in asked])

        return respond

    def _of_run(self, answer: Callable[..., dict[str, Any]]) -> Answer:
        """Answer a question about each run."""

        def respond(request: Request) -> str:
            _check_names(request, ("run", "together"))
            return self._series(answer, [(_head(run), run) for run in self._chosen(request)])

        return respond

    def _scalars(self, request: Request) -> str:
        """Answer with the scalars that the user has logged beside each record, such as losses."""
        _check_names(request, ("run", "together"))
        experiment, found = experiment_id(request.environ), []
        for run in self._chosen(request):
            kept = self._runs.scalars(context(request.environ), experiment, run.place) if run.place else {}
            found.append({**_head(run), "one_time": kept})
        return json.dumps({"series": plain(found)}, allow_nan=False)

    # ------------------------------------------------------------------ inside

    def _series(self, answer: Callable[..., dict[str, Any]], asked: Iterable[tuple[Any, ...]]) -> str:
        """Return the answers for some series as JSON, in the time and the length of one request.

        Args:
            answer: function of a record and of the arguments of a question.
            asked: for each series its head, its run, and the arguments.
        """
        deadline, room, found = time.monotonic() + _SECONDS, _LONGEST_ANSWER, []
        for head, run, *question in asked:
            text = self._answer(run, answer, question, deadline)
            if len(text) > room:
                text = _wrong("the answer would be too long: ask for less at a time")
            room -= len(text)
            found.append(f"{json.dumps(head)[:-1]}, {text[1:]}")  # one object of JSON from two
        return f'{{"series": [{", ".join(found)}]}}'

    def _answer(self, run: Run, answer: Callable[..., dict[str, Any]], question: Sequence[Any], deadline: float) -> str:
        """Return the answer to one question about one run as JSON."""
        if run.record is None:
            return _wrong(f"{run.name}: {run.description['error']}")
        try:
            compute = partial(_text, answer, run.record, *question)
            return self._answers.get((run.name, run.version, answer, *question), compute, deadline)
        except BusyError as error:
            return _wrong(f"{run.name}: {error}")

    def _runs_and_groups(self, request: Request) -> list[tuple[Run, str]]:
        """Return every requested run with every requested group that the run has."""
        runs, groups = self._chosen(request), _several(request, "group")
        missing = [g for g in groups if not any(run.record is None or g in run.record.groups for run in runs)]
        if missing:
            raise QuestionError(f"group={missing[0]!r} is in none of the runs")
        if len(runs) * len(groups) > _MOST_SERIES:
            raise QuestionError(f"{len(runs)} runs times {len(groups)} groups: ask for {_MOST_SERIES} at a time")
        return [(run, group) for run in runs for group in groups if run.record is None or group in run.record.groups]

    def _chosen(self, request: Request) -> list[Run]:
        """Return the requested runs. With ``together=1`` join them as replicas into one run."""
        names = _several(request, "run")
        known = self._runs.known(context(request.environ), experiment_id(request.environ))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise QuestionError(f"run={unknown[0]!r} is not known; /runs lists those that are")
        runs = [known[name] for name in names]
        if request.args.get("together", "0") == "0":
            return runs
        _one(request, "together", ("0", "1"))
        if len(runs) < 2:
            raise QuestionError("together=1 needs two or more runs")
        return [self._as_replicas(runs)]

    def _as_replicas(self, runs: Sequence[Run]) -> Run:
        """Return some runs joined as replicas, in the order of their names. One set of runs is joined at a time."""
        runs = sorted(runs, key=lambda run: run.name)
        version = hashlib.sha256(json.dumps([(run.name, run.version) for run in runs]).encode()).hexdigest()
        with self._joining:
            if version not in self._joined:
                self._joined[version] = _together(runs, version)
                while len(self._joined) > _MOST_JOINED:
                    self._joined.popitem(last=False)
            return self._joined[version]


def _together(runs: Sequence[Run], version: str) -> Run:
    """Join runs as replicas, without the runs that were cut short."""
    used, records = runs, [_record(run) for run in runs]
    try:
        kept, sentence = without_cut_short(records)
        used = [runs[i] for i in kept]
        merged = AgingRecord.concat([records[i] for i in kept])
    except ValueError as error:
        names = ", ".join(f"records[{i}] is {run.name!r}" for i, run in enumerate(used[:4]))
        text = re.sub(r"In Python, .*? there\. ", "", str(error)).replace(REMEDY, _REMEDY)
        raise QuestionError(f"these runs are not replicas of each other: {text} ({names})") from None
    notes = [f"{run.name}: {run.description['note']}" for run in used if "note" in run.description]
    if sentence is not None:
        named = re.sub(r"records\[(\d+)\]", lambda found: runs[int(found[1])].name, sentence)
        notes.append(f"{named}; 'lightning-glassy report --common' uses the pairs that all runs have")
        merged.add_doubt(notes[-1])
    return Run(f"{len(used)} runs together", version, merged, {"note": "\n".join(notes)} if notes else {})


# ---------------------------------------------------------------------- arguments

_CHOICE = ("run", "group", "together", "observable", "eps")


def _check_names(request: Request, known: Sequence[str]) -> None:
    unknown = [name for name in request.args if name not in known]
    if unknown:
        raise QuestionError(f"{unknown[0]!r} is not an argument of this; there are {', '.join(known) or 'none'}")


def _several(request: Request, name: str) -> list[str]:
    values = list(dict.fromkeys(request.args.getlist(name)))
    if not values:
        raise QuestionError(f"{name} is missing: name at least one")
    if len(values) > _MOST_SERIES:
        raise QuestionError(f"{len(values)} values of {name}: ask for {_MOST_SERIES} at a time")
    return values


def _one(request: Request, name: str, allowed: Sequence[str]) -> str:
    values = request.args.getlist(name)
    if len(values) != 1 or values[0] not in allowed:
        raise QuestionError(f"{name}={', '.join(values) or 'nothing'} is not one of {', '.join(allowed)}")
    return values[0]


def _number(request: Request, name: str) -> float:
    values = request.args.getlist(name)
    try:
        (text,) = values
        number = float(text)
    except ValueError:
        raise QuestionError(f"{name}={', '.join(values) or 'nothing'} is not a number") from None
    if not math.isfinite(number):
        raise QuestionError(f"{name}={number} is not a finite number")
    return number


def _observable(request: Request) -> tuple[str, float | None]:
    observable = _one(request, "observable", list(OBSERVABLES))
    if "eps" not in request.args:
        return observable, None
    if not find(observable).has_threshold:
        raise QuestionError(f"eps belongs to the overlap, not to observable={observable}")
    return observable, _number(request, "eps")


def _threshold(runs: Iterable[Run], eps: float | None) -> float | None:
    """Return the threshold of the runs that a number means. Numbers that mean one threshold are then one question."""
    if eps is None:
        return None
    there = sorted({one for run in runs if run.record is not None for one in run.record.overlap_thresholds})
    found = [one for one in there if math.isclose(one, eps, rel_tol=1e-9)]
    if not found:
        raise QuestionError(f"eps={eps} was not counted in any of the runs; there are {there}")
    return found[0]


# ---------------------------------------------------------------------- answering


def _record(run: Run) -> AgingRecord:
    if run.record is None:
        raise QuestionError(f"{run.name}: {run.description['error']}")
    return run.record


def _head(run: Run, **group: str) -> dict[str, str]:
    """Return the beginning of an answer about a run: its name, the group, and a note on the run if there is one."""
    return {"run": run.name, **group, **{key: run.description[key] for key in ("note",) if key in run.description}}


def _wrong(sentence: str) -> str:
    return json.dumps({"error": sentence})


def _text(answer: Callable[..., dict[str, Any]], record: AgingRecord, *question: Any) -> str:
    """Return the answer to a question as JSON, or the reason why there is none."""
    text = json.dumps(answers.shielded(partial(answer, record, *question)), allow_nan=False)
    return (
        text if len(text) <= _LONGEST_ANSWER else _wrong("the answer is too long for a page: analyse the record itself")
    )


def _fit(record: AgingRecord, observable: str, group: str, eps: float | None) -> dict[str, Any]:
    from lightning_glassy.report import report

    return answers.fit(report(record, observable=observable, group=group, eps=eps))


def _groups(record: AgingRecord, observable: str, group: str, eps: float | None) -> dict[str, Any]:
    return answers.groups(record, observable, eps)


def _json(answer: Answer) -> Any:
    """Return a WSGI application that answers a GET with JSON."""

    @Request.application
    def respond(request: Request) -> Any:
        if request.method != "GET":
            return _error(request, f"{request.method} is not answered here, GET is", 405)
        if len(request.query_string) > _LONGEST_QUESTION:
            return _error(request, "the question is longer than 64 KiB: ask for less at a time", 400)
        try:
            # Respond with a text. TensorBoard would check every number of a dictionary once more.
            content = answer(request)
        except QuestionError as error:
            return _error(request, str(error), 400)
        except ImportError as error:
            return _error(request, str(error), 500)
        return http_util.Respond(request, content, "application/json")

    return respond


def _error(request: Request, sentence: str, code: int) -> Any:
    return http_util.Respond(request, {"error": sentence}, "application/json", code=code)


# ---------------------------------------------------------------------- files


def _file(name: str, content: bytes) -> Any:
    @Request.application
    def respond(request: Request) -> Any:
        return http_util.Respond(request, content, _TYPES[name.rsplit(".", 1)[-1]])

    return respond


@Request.application
def _plotly(request: Request) -> Any:
    """Respond with plotly.js from the installed plotly package."""
    try:
        with _COMPRESSING:
            content = _compressed_plotly()
    except (ImportError, OSError):
        return _error(request, "the charts need plotly: pip install 'lightning-glassy[tensorboard]'", 404)
    return http_util.Respond(request, content, "text/javascript", content_encoding="gzip", expires=_YEAR)


_COMPRESSING = threading.Lock()


@functools.cache
def _compressed_plotly() -> bytes:
    return gzip.compress((files("plotly") / "package_data" / "plotly.min.js").read_bytes(), compresslevel=6)

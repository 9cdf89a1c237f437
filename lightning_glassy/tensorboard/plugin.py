"""The TensorBoard plugin of the tab "Glassy": files of the page, and answers as JSON.

TensorBoard imports this module at every start, and does not start if the import fails. This module therefore imports
neither torch nor lightning. It imports scipy, which takes time, only if the page needs it for an answer.
"""

from __future__ import annotations

import functools
import gzip
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

from tensorboard.backend import http_util
from tensorboard.plugin_util import context, experiment_id
from tensorboard.plugins import base_plugin
from werkzeug.wrappers import Request

from lightning_glassy.observables import OBSERVABLES, find
from lightning_glassy.record import AgingRecord
from lightning_glassy.report import answers
from lightning_glassy.report.page import STATIC
from lightning_glassy.tensorboard.events import PLUGIN_NAME
from lightning_glassy.tensorboard.runs import Run, Runs

Answer = Callable[[Request], dict[str, Any]]

_TYPES = {"js": "text/javascript", "css": "text/css"}
_MOST_SERIES = 200  # largest number of runs times groups in one question
_YEAR = 365 * 24 * 3600


class QuestionError(ValueError):
    """A question that cannot be answered. The text gives the reason."""


class GlassyPlugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """Plugin that shows the aging curves of the runs in a log directory.

    Answers are JSON. A question that cannot be answered gets status 400 and ``{"error": sentence}``.

    ================  ===================================================================================
    path              answer
    ================  ===================================================================================
    ``/observables``  every observable of the registry: its name, title, symbol, axis, and how it relaxes
    ``/runs``         every record: its groups, observables, one-time series, and last step
    ``/curves``       two-time curves of an observable, for runs and groups
    ``/fits``         aging exponent, verdict and doubts, as in ``lightning-glassy report``
    ``/exponents``    local exponent of the displacement
    ``/series``       one-time series
    ``/profiles``     functions on a grid, such as histograms
    ================  ===================================================================================

    Args:
        context: the context that TensorBoard gives to plugins. The plugin reads only from its data provider.
    """

    plugin_name = PLUGIN_NAME

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._runs = Runs(context.data_provider)
        self._replicas: dict[tuple[str, ...], Run] = {}

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
            "/series": self._of_run(answers.series),
            "/profiles": self._of_run(answers.profiles),
        }
        return apps | {path: _json(answer) for path, answer in questions.items()}

    # ------------------------------------------------------------------ answers

    def _observables(self, request: Request) -> dict[str, Any]:
        _check_names(request, ())
        return {"observables": answers.observables()}

    def _all_runs(self, request: Request) -> dict[str, Any]:
        _check_names(request, ())
        runs = self._runs.refresh(context(request.environ), experiment_id(request.environ))
        return {
            "runs": [
                {"name": run.name, "version": run.version}
                | ({"error": run.error} if run.record is None else answers.describe(run.record))
                for run in runs.values()
            ]
        }

    def _of_choice(self, answer: Callable[..., dict[str, Any]]) -> Answer:
        """Answer a question about an observable, for each run and group."""

        def respond(request: Request) -> dict[str, Any]:
            _check_names(request, _CHOICE)
            observable, eps = _observable(request)
            return self._each(request, lambda run, group: _once(run, answer, observable, group, eps))

        return respond

    def _of_group(self, answer: Callable[..., dict[str, Any]]) -> Answer:
        """Answer a question about each run and group."""

        def respond(request: Request) -> dict[str, Any]:
            _check_names(request, ("run", "group", "together"))
            return self._each(request, lambda run, group: _once(run, answer, group))

        return respond

    def _of_run(self, answer: Callable[..., dict[str, Any]]) -> Answer:
        """Answer a question about each run."""

        def respond(request: Request) -> dict[str, Any]:
            _check_names(request, ("run", "together"))
            chosen = self._chosen(request)
            return {"series": [{"run": run.name, **answers.shielded(partial(_once, run, answer))} for run in chosen]}

        return respond

    # ------------------------------------------------------------------ inside

    def _each(self, request: Request, answer: Callable[[Run, str], dict[str, Any]]) -> dict[str, Any]:
        """Return one answer for every requested run and every requested group that the run has."""
        runs, groups = self._chosen(request), _several(request, "group")
        missing = [g for g in groups if not any(run.record is None or g in run.record.groups for run in runs)]
        if missing:
            raise QuestionError(f"group={missing[0]!r} is in none of the runs")
        if len(runs) * len(groups) > _MOST_SERIES:
            raise QuestionError(f"{len(runs)} runs times {len(groups)} groups: ask for {_MOST_SERIES} at a time")
        return {"series": [
            {"run": run.name, "group": group, **answers.shielded(partial(answer, run, group))}
            for run in runs
            for group in groups
            if run.record is None or group in run.record.groups
        ]}  # fmt: skip

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
        key = tuple(f"{run.name}\n{run.version}" for run in runs)
        if key not in self._replicas:
            try:
                merged = AgingRecord.concat([_record(run) for run in runs])
            except ValueError as error:
                names = ", ".join(f"records[{i}] is {run.name!r}" for i, run in enumerate(runs[:4]))
                raise QuestionError(f"these runs are not replicas of each other: {error} ({names})") from None
            self._replicas = {key: Run(f"{len(runs)} runs together", "", merged, None)}
        return self._replicas[key]


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


# ---------------------------------------------------------------------- answering


def _record(run: Run) -> AgingRecord:
    if run.record is None:
        raise QuestionError(f"{run.name}: {run.error}")
    return run.record


def _once(run: Run, answer: Callable[..., dict[str, Any]], *question: Any) -> dict[str, Any]:
    """Return the answer to a question about one version of a run. Compute it only once."""
    key = (answer, *question)
    if key not in run.answers:
        run.answers[key] = answer(_record(run), *question)
    return run.answers[key]  # type: ignore[no-any-return]


def _fit(record: AgingRecord, observable: str, group: str, eps: float | None) -> dict[str, Any]:
    from lightning_glassy.report import report

    return answers.fit(report(record, observable=observable, group=group, eps=eps))


def _json(answer: Answer) -> Any:
    """Return a WSGI application that answers a GET with JSON."""

    @Request.application
    def respond(request: Request) -> Any:
        if request.method != "GET":
            return _error(request, f"{request.method} is not answered here, GET is", 405)
        try:
            # Respond with a text. TensorBoard would check every number of a dictionary once more.
            content = json.dumps(answer(request), allow_nan=False)
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
        content = _compressed_plotly()
    except (ImportError, OSError):
        return _error(request, "the charts need plotly: pip install 'lightning-glassy[tensorboard]'", 404)
    return http_util.Respond(request, content, "text/javascript", content_encoding="gzip", expires=_YEAR)


@functools.cache
def _compressed_plotly() -> bytes:
    return gzip.compress((files("plotly") / "package_data" / "plotly.min.js").read_bytes(), compresslevel=6)

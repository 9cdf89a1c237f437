"""The page of the TensorBoard tab as one HTML file, with the answers to its questions inside.

The file needs neither a server nor a network. A browser imports no modules from files, so :func:`bundle` joins them.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_glassy.observables import find
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.tables import RESPONSE_TABLE
from lightning_glassy.report import answers

if TYPE_CHECKING:
    from lightning_glassy.report.findings import Findings

STATIC = files("lightning_glassy.report") / "static"
"""The modules and the style of the page."""

_MOST_FITS = 40  # fits in one file, because a fit takes up to a second
_FEW_FITS, _MANY_PAIRS = 10, 4000  # fits of a record with more pairs of times than this, which take longer
_MOST_BYTES = 8 << 20  # curves in one file: the groups beyond are left out

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; \
style-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<script type="application/json" id="answers">{answers}</script>
<script>{plotly}</script>
<script type="module">
{modules}
</script>
</body>
</html>
"""

_IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./([a-z]+\.js)";$', flags=re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async function|function|const|class) (\w+))", flags=re.MULTILINE)


class Choice(NamedTuple):
    """A choice that a reader of the page can make. The threshold is None for an observable without a threshold."""

    observable: str
    group: str
    eps: float | None


Progress = Callable[[int, int], None]
"""A function that takes the number of analyses that are done, and the number of all."""


def page(found: Findings, analyse: Callable[[Choice], Findings], progress: Progress | None = None) -> str:
    """Return the page with plotly.js and all answers inside. The page loads no other file.

    Args:
        found: the findings that the page shows first.
        analyse: a function that returns the findings for another choice.
        progress: called with the number of finished analyses, and of all.

    Raises:
        ImportError: plotly is missing. The message names the extra.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError("the interactive page needs plotly: pip install 'lightning-glassy[report]'") from error
    content = json.dumps(embedded(found, analyse, progress), allow_nan=False, separators=(",", ":"))
    return _PAGE.format(
        title=html.escape(found.title),
        style=(STATIC / "style.css").read_text(encoding="utf-8"),
        # A name in a record could otherwise end the script with "</script>".
        answers=content.replace("<", "\\u003c"),
        plotly=get_plotlyjs(),
        modules=bundle("file.js"),
    )


def bundle(entry: str) -> str:
    """Join a module of the page with all modules that it imports.

    Each module becomes a function that returns its exports. A module comes after the modules that it imports.
    """
    done: dict[str, str] = {}

    def add(name: str) -> None:
        text = (STATIC / name).read_text(encoding="utf-8")
        for _, imported in _IMPORT.findall(text):
            if imported not in done:
                add(imported)
        exports = ", ".join(_EXPORT.findall(text))
        text = _EXPORT.sub("", _IMPORT.sub(r'const \1 = modules["\2"];', text))
        done[name] = f'modules["{name}"] = (() => {{\n{text}\nreturn {{{exports}}};\n}})();'

    add(entry)
    return "\n".join(["const modules = {};", *done.values()])


def embedded(
    found: Findings, analyse: Callable[[Choice], Findings], progress: Progress | None = None
) -> dict[str, Any]:
    """Return the answers to the questions of the page about one record.

    Groups are left out if the answers before them exceed 8 MiB. At most 40 choices are fitted, and at most 10 of a
    record with more than 4000 pairs of times. The choices that share the group or the observable of the report come
    first.
    """
    record = found.record
    described = answers.describe(record)
    own = Choice(found.observable, found.group, _threshold(record, found.observable, found.eps))
    groups = [own.group, *(group for group in record.groups if group != own.group)]
    content: list[dict[str, Any]] = []
    choices: list[Choice] = []
    size = 0
    for i, group in enumerate(groups):
        of_group = list(_choices(record, described["observables"], group))
        entries = [_entry("exponents", partial(answers.exponents, record, group), group=group)]
        entries += [_entry("curves", partial(answers.curves, record, *one), **one._asdict()) for one in of_group]
        size += len(json.dumps(entries))
        if i and size > _MOST_BYTES:
            groups = groups[:i]
            break
        content += entries
        choices += of_group
    choices.sort(key=lambda one: one.group != own.group and one.observable != own.observable)

    def fit(choice: Choice) -> dict[str, Any]:
        return answers.fit(found if choice == own else analyse(choice))

    n_fits = _FEW_FITS if len(record) > _MANY_PAIRS else _MOST_FITS
    fitted = [own, *(one for one in choices if one != own)][:n_fits]
    for i, choice in enumerate(fitted):
        if progress is not None:
            progress(i, len(fitted))
        content.append(_entry("fits", partial(fit, choice), **choice._asdict()))
    more = [_entry("noise", partial(answers.noise, record, group), group=group) for group in groups]
    more += [_entry("replicas", partial(answers.replicas, record)), _entry("regimes", partial(answers.regimes, record))]
    if RESPONSE_TABLE in record.tables:
        more.append(_entry("response", partial(answers.response, record)))
    if own.group == "all":
        more.append(_entry("groups", partial(_groups, found), **own._asdict()))
    content.append(_entry("series", partial(answers.series, record)))
    content.append(_entry("profiles", partial(answers.profiles, record)))
    described["groups"] = [group for group in described["groups"] if group["name"] in groups]
    return {
        "observables": answers.observables(),
        "symbols": answers.SYMBOLS,
        "runs": [{"name": found.title, "version": "", "left_out": len(record.groups) - len(groups)} | described],
        "choice": {"observable": own.observable, "groups": [own.group], "eps": own.eps},
        "answers": content,
        "more": more,
    }


def _groups(found: Findings) -> dict[str, Any]:
    """Return the groups of a report side by side, with their exponents."""
    empty = {"rows": [], "waiting_times": [], "n_groups": 0}
    return empty if found.groups is None else answers.of_groups(found.groups)


def _entry(path: str, answer: Callable[[], dict[str, Any]], **question: Any) -> dict[str, Any]:
    return {"path": path, **question, "answer": answers.shielded(answer)}


def _choices(record: AgingRecord, observables: list[str], group: str) -> Iterator[Choice]:
    for observable in observables:
        for eps in record.overlap_thresholds if find(observable).has_threshold else (None,):
            yield Choice(observable, group, eps)


def _threshold(record: AgingRecord, observable: str, eps: float | None) -> float | None:
    """Return the threshold of the record that an argument ``eps`` means."""
    if not find(observable).has_threshold:
        return None
    return min(record.overlap_thresholds, key=lambda one: 0 if eps is None else abs(one - eps))

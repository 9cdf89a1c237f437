"""Keep the results of the parts in a JSON file, written at once, and in a page of tables made from this file."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import table

EPS = (5e-4, 5e-3)
NO_GPU = "a CPU, dry run"


def load(folder: Path) -> dict[str, Any]:
    """Return the results in a folder: ``machine``, ``parts`` and ``verdict``."""
    path = folder / "results.json"
    empty: dict[str, Any] = {"machine": {}, "parts": {}, "verdict": []}
    return empty | (json.loads(path.read_text()) if path.exists() else {})


def store(folder: Path, results: dict[str, Any]) -> None:
    """Write the results and their page. A reader never sees half a file."""
    for name, text in (
        ("results.json", json.dumps(results, indent=1, default=str) + "\n"),
        ("summary.md", page(results)),
    ):
        fresh = folder / f"{name}.new"
        fresh.write_text(text)
        fresh.replace(folder / name)


def page(results: dict[str, Any]) -> str:
    """Return all tables as Markdown. The title of each names the device."""
    where = results["machine"]
    lines = [f"# Measured on {where.get('gpu') or NO_GPU}", ""]
    if where:
        lines += [
            f"Measured {where['date']} on {where['gpu'] or NO_GPU}; {where['cpu']}, {where['threads']} threads. Python "
            f"{where['python']}, torch {where['torch']}, lightning_glassy {where['lightning_glassy']}.",
        ]
    states = []
    for name, part in results["parts"].items():
        states.append(
            [name, part.get("state", "under way"), part.get("seconds", ""), "; ".join(part.get("failed", []))]
        )
        for each in part.get("tables", {}).values():
            lines += ["", f"## {each['title']} ({part.get('gpu') or NO_GPU})", "", table(each["header"], each["rows"])]
            lines += ["", each["note"]] if each["note"] else []
    lines += ["", "## Parts", "", table(["part", "state", "seconds", "error"], states)]
    if results["verdict"]:
        gpus = sorted({str(part.get("gpu") or NO_GPU) for part in results["parts"].values()})
        rows = [[row["promise"], row["measured"], row["verdict"]] for row in results["verdict"]]
        lines += ["", f"## Verdict ({', '.join(gpus)})", "", table(["promised", "measured", "verdict"], rows)]
    return "\n".join(lines) + "\n"


@dataclass
class Findings:
    """The settings of a part, and the files for its results.

    Attributes:
        folder: folder of all files.
        part: name of the part.
        dry: whether everything is small.
        limit: seconds that the part may take.
        device: "cuda", or "cpu" in a dry run.
        variants: folder of other versions of the kernels, if any.
    """

    folder: Path
    part: str
    dry: bool = False
    limit: float = 60.0
    device: str = "cuda"
    variants: Path | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def cuda(self) -> bool:
        """Whether a GPU is measured."""
        return self.device == "cuda"

    @property
    def left(self) -> float:
        """Seconds until the part is ended."""
        return self.started + self.limit - time.monotonic()

    def say(self, *words: object) -> None:
        """Print a line, and append it to the log."""
        line = f"[{self.part}] {' '.join(map(str, words))}"
        print(line, flush=True)
        with (self.folder / "log.txt").open("a") as file:
            file.write(line + "\n")

    def keep(self, **found: Any) -> None:
        """Write figures at once, under their names."""
        results = load(self.folder)
        results["parts"].setdefault(self.part, {}).update(found)
        store(self.folder, results)

    def failed(self, what: str, error: BaseException) -> None:
        """Write an error to the log and to the results."""
        self.say("FAILED", what, "\n" + traceback.format_exc()[-3000:])
        words = f"{what}: {type(error).__name__}: {error}"[:400].replace("\n", " ").replace("|", "/")
        self.keep(failed=[*load(self.folder)["parts"].get(self.part, {}).get("failed", []), words])

    @contextmanager
    def attempt(self, what: object) -> Iterator[None]:
        """Write an error that is raised in this context, and go on."""
        try:
            yield
        except Exception as error:
            self.failed(str(what), error)

    def machine(self, where: dict[str, Any]) -> None:
        """Write the machine of all results, and the GPU of this part."""
        results = load(self.folder)
        results["machine"] = where
        results["parts"].setdefault(self.part, {})["gpu"] = where["gpu"]
        store(self.folder, results)

    def table(self, title: str, header: Sequence[str], note: str = "") -> Table:
        """Start a table. Each of its rows is written at once."""
        return Table(self, title, list(header), note)


class Table:
    """A table that is written again after each new row."""

    def __init__(self, findings: Findings, title: str, header: list[str], note: str) -> None:
        self._findings = findings
        self.rows: list[list[object]] = []
        self._content = {"title": title, "header": header, "note": note, "rows": self.rows}
        findings.say(title, "|", *header)

    def add(self, *row: object) -> None:
        """Add a row, and write it."""
        self.rows.append([str(cell) for cell in row])
        findings = self._findings
        findings.say(" | ".join(str(cell) for cell in row))
        results = load(findings.folder)
        tables = results["parts"].setdefault(findings.part, {}).setdefault("tables", {})
        tables[self._content["title"]] = self._content
        store(findings.folder, results)

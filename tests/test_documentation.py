"""README and site: short, in plain English, with code that runs, links that lead somewhere, and no network."""

from __future__ import annotations

import ast
import html
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.metadata import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from sybil import Example
from sybil.document import Document
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

import lightning_glassy
from lightning_glassy import cli
from tests import prose
from tests.guarantees import FAULTS, SITUATIONS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
WITH_CODE = [str(page.relative_to(ROOT)) for page in PAGES if re.search("```(python|sh|yaml)", page.read_text())]


# ------------------------------------------------------------------ code


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a directory with the files that the pages name: two runs, a record, and checkpoints."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import TensorBoardLogger

    from tests.helpers import SmallNet, data

    folder = tmp_path_factory.mktemp("workplace")
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    for _ in range(2):
        monitor = lightning_glassy.AgingMonitor(summary=False)
        callbacks = [monitor, lightning_glassy.DisplacementDistribution(summary=False)]
        logger = TensorBoardLogger(str(folder / "runs"))
        Trainer(accelerator="cpu", max_steps=600, callbacks=callbacks, logger=logger, **quiet).fit(SmallNet(), data())
    monitor.record.save(folder / "aging_record.npz")
    net, places = torch.nn.Linear(4, 4), ["step0", "step1", "step2", "runs/my_model/step=0", "runs/my_model/step=10"]
    for place in places:
        torch.nn.init.normal_(net.weight)
        path = folder / (f"{place}.pt" if "=" in place else f"{place}/pytorch_model.bin")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), path)
    return folder


def run_shell(example: Example) -> None:
    """Run each line: our own commands in this process. Programs that the tests run elsewhere only have to exist."""
    for line in str(example.parsed).splitlines():
        command, *arguments = shlex.split(line, comments=True)
        if command == "lightning-glassy" and arguments[0] == "tensorboard":
            assert Path(cli._parser().parse_args(arguments).logdir).is_dir(), line
        elif command == "lightning-glassy" and "--help" in arguments:
            with pytest.raises(SystemExit, match="0"):
                cli.main(arguments)
        elif command == "lightning-glassy":
            assert cli.main(arguments) == 0, line
        elif command == "pip":
            (wanted,) = re.findall(r"\[(.*)\]", arguments[-1])
            extras = metadata("lightning-glassy").get_all("Provides-Extra")
            assert arguments[:-1] == ["install"]
            assert arguments[-1].startswith("lightning-glassy[")
            assert set(wanted.split(",")) <= set(extras or []), line
        elif command == "make":
            assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), line
        else:
            assert (command, arguments[0]) == ("python", "-m"), line
            assert find_spec(arguments[1]), line


def run_yaml(example: Example) -> None:
    """Make the callbacks of a configuration file."""
    import yaml

    for callback in yaml.safe_load(str(example.parsed))["trainer"]["callbacks"]:
        module, _, name = callback["class_path"].rpartition(".")
        getattr(importlib.import_module(module), name)(**callback["init_args"])


PARSERS = [
    PythonCodeBlockParser(),
    CodeBlockParser("sh", run_shell),
    CodeBlockParser("yaml", run_yaml),
]


# Lightning's advice, the picture that nobody looks at, and the end of a W&B run without a network.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.needs("tensorboard", "matplotlib", "sklearn", "wandb", "mlflow", "pandas", "plotly", "scipy")
@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_CODE)
def test_the_code_of_a_page_runs(
    name: str, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = Document.parse(str(ROOT / name), *PARSERS)
    examples = list(document.examples())
    assert examples
    from matplotlib import pyplot

    shutil.copytree(workplace, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    for example in examples:
        example.evaluate()
    pyplot.close("all")


def test_every_block_of_code_is_in_a_language_that_is_run() -> None:
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"^ *```(.*)$", text, flags=re.MULTILINE)[::2]
        assert set(blocks) <= {"python", "sh", "yaml", "text"}, page
        assert not re.search(r"\n\n    (pip|make|python|lightning-glassy) ", text), f"{page}: a command in no block"


def test_the_first_program_of_the_readme_has_a_dozen_lines() -> None:
    program = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert program
    lines = [line for line in program.group(1).splitlines() if line.strip()]
    imports = [line for line in lines if re.match(r"import|from", line)]
    assert len(lines) - len(imports) <= 12


# ------------------------------------------------------------------ text


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 120
    assert len(text.split()) <= 900


@pytest.mark.parametrize("folder", ["lightning_glassy", "tests", "examples", "benchmarks", "docs", "."])
def test_prose_is_plain(folder: str) -> None:
    """Generated blocks are no prose of anybody, so the results of the benchmarks are left out."""
    root = ROOT / folder
    files = [file for end in ("py", "md", "js") for file in (root.glob if folder == "." else root.rglob)(f"*.{end}")]
    files = [file for file in files if file.parent != ROOT / "benchmarks" / "results" and "runs" not in file.parts]
    assert files
    assert prose.too_many(files) == []


def test_the_measure_of_prose_finds_each_habit(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("What it is; the size of this is that of those. " * 9)
    assert len([line for line in prose.too_many([page]) if "are allowed" in line]) == len(prose.HABITS)
    page.write_text(
        "The callback measures the weights. It writes a record.\n\n```python\nwhat; what; what; what\n```\n"
    )
    assert prose.too_many([page]) == []
    code = tmp_path / "code.py"
    code.write_text('"""What; what; what; what."""\nx = "what"  # what\n')
    assert prose.measure([code])[1]["what"] == 5


def test_each_quoted_line_of_a_report_is_in_that_report() -> None:
    page = (DOCS / "reports" / "reading.md").read_text()
    reports = {file.stem: file.read_text() for file in (DOCS / "reports").glob("*.txt")}
    assert set(reports) == set(re.findall(r'--8<-- "docs/reports/(\w+)\.txt"', page))
    sections = re.split(r"^## ", page, flags=re.MULTILINE)
    quoted = 0
    for section in sections:
        names = re.findall(r'--8<-- "docs/reports/(\w+)\.txt"', section)
        for block in re.findall(r"```text\n(.*?)```", section, flags=re.DOTALL):
            if "--8<--" in block:
                continue
            assert len(names) == 1
            assert block.strip("\n") in reports[names[0]], block
            quoted += 1
    assert quoted >= 12


# ------------------------------------------------------------------ guarantees


@pytest.mark.parametrize(("rows", "columns"), [(SITUATIONS, {1}), (FAULTS, {2})], ids=["situations", "faults"])
def test_each_row_of_the_guarantees_has_a_test(rows: dict[str, list[str]], columns: set[int]) -> None:
    there = {
        name
        for file in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", file.read_text(), flags=re.MULTILINE)
    }
    assert {name for names in rows.values() for name in names} <= there
    assert all(rows.values())
    lines = [
        line
        for line in (DOCS / "guarantees.md").read_text().splitlines()
        if re.match(r"\| (?!situation|what goes)", line)
    ]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert {row[0] for row in cells} == {*SITUATIONS, *FAULTS}
    assert {row[0] for row in cells if len(row) - 1 in columns} == set(rows)


# ------------------------------------------------------------------ the site


class Links(HTMLParser):
    """Collects the links, the sources and the names of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.sources: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.names.add(str(found["id"]))
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        elif found.get("src"):
            self.sources.append(str(found["src"]))
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon"):
            self.sources.append(str(found["href"]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Path, Links]]:
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {page: Links(page.read_text()) for page in folder.rglob("*.html")}


@pytest.mark.slow
def test_the_site_is_built_strictly_and_each_link_leads_somewhere(site: dict[Path, Links]) -> None:
    assert len(site) > 30
    for page, found in site.items():
        for link in [*found.links, *found.sources]:
            address, _, name = html.unescape(link).partition("#")
            if re.match(r"[a-z]+:", address):
                assert link in found.links, f"{page.name} loads {link} from the network"
                continue
            target = (page.parent / address).resolve() if address else page
            assert target.is_file() or page.name == "404.html", f"{page.name}: {link}"
            if name and target.suffix == ".html" and page.name != "404.html":
                assert name in site[target].names or name == "__top", f"{page.name}: {link}"


@pytest.mark.slow
def test_the_reference_has_every_public_name(site: dict[Path, Links]) -> None:
    names = set().union(*(found.names for found in site.values()))
    public = {f"lightning_glassy.{name}" for name in lightning_glassy.__all__ if not name.startswith("__")}
    for part in ("analysis", "glasses", "observables", "plotting", "report"):
        module = importlib.import_module(f"lightning_glassy.{part}")
        public |= {f"lightning_glassy.{part}.{name}" for name in module.__all__}
    # A function with the name of its module stands there with both. An alias of a type has no entry.
    functions = {name for name in public if f"{name}.{name.rpartition('.')[2]}" in names}
    types = {f"lightning_glassy.observables.{name}" for name in ("Array", "CorrelationKind", "Formula")}
    assert public - names - functions == types


@pytest.mark.slow
def test_formulas_and_tables_of_docstrings_are_drawn(site: dict[Path, Links]) -> None:
    texts = {page.name: page.read_text() for page in site}
    assert texts["callbacks.html"].count("<math") > 30
    assert not [name for name, text in texts.items() if re.search(r":(math|class|func|meth):`", text)]
    assert not [name for name, text in texts.items() if "\\(" in re.sub(r"(?s)<(script|pre|code).*?</\1>", "", text)]
    assert "<td><code>glassy/mu</code></td>" in texts["tags.html"]
    assert "====" not in texts["tags.html"]


def test_every_picture_is_shown_and_every_shown_picture_is_there() -> None:
    shown = set()
    for page in PAGES:
        for picture in re.findall(r"\]\(([^)]*\.png)\)", page.read_text()):
            target = (page.parent / picture).resolve()
            assert target.is_file(), f"{page.name}: {picture}"
            shown.add(target)
    assert set((DOCS).rglob("*.png")) - shown == set()


def test_every_picture_of_the_gallery_is_drawn_by_its_page() -> None:
    for name in ("reports/gallery", "concepts"):
        page = (DOCS / f"{name}.md").read_text()
        blocks = "".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL))
        texts = {node.value for node in ast.walk(ast.parse(blocks)) if isinstance(node, ast.Constant)}
        drawn = {text for text in texts if isinstance(text, str) and text.endswith(".png")}
        assert drawn == {file.name for file in (DOCS / "pictures" / Path(name).name).iterdir()}

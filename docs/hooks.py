"""Hooks of the site.

Formulas become MathML, which browsers draw without a script and without a network. Results and pictures of the studies
stay in their folder, and the site gets copies.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_STUDIES = Path(__file__).parents[1] / "examples" / "studies"

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', flags=re.DOTALL)


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> None:
    """Add the results of the studies: a page, and its pictures."""
    results = (_STUDIES / "RESULTS.md").read_text(encoding="utf-8").replace("](results/", "](studies/")
    files.append(File.generated(config, "studies.md", content=results))
    for picture in sorted((_STUDIES / "results").glob("*.png")):
        files.append(File.generated(config, f"studies/{picture.name}", abs_src_path=str(picture)))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let the pictures of the studies point to their copies in the site."""
    return re.sub(r"\]\((?:\.\./)((?:\.\./)*)examples/studies/results/", r"](\1studies/", markdown)


def on_page_content(html_of_page: str, **_: Any) -> str:
    """Convert the formulas of a page. The extension arithmatex has marked them."""
    return _FORMULA.sub(_mathml, html_of_page)


def _mathml(match: re.Match[str]) -> str:
    formula, display = html.unescape(match.group(3)), "block" if match.group(2) == "[" else "inline"
    return str(convert(formula, display=display))

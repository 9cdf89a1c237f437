"""Convert the docstrings of the package from reStructuredText to Markdown, for the reference pages of the site.

They use roles such as :math: and :class:, double backquotes, simple tables, ``.. math::`` blocks and examples.
mkdocstrings loads this file as an extension of Griffe.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(math|class|meth|func|attr|mod|data|exc|obj):`([^`]+)`", flags=re.DOTALL)
_BLOCK = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +.*|\s*))*)", flags=re.MULTILINE)
_EXAMPLE = re.compile(r"^( *)>>> .*(?:\n(?! *$).*)*", flags=re.MULTILINE)
_PIPE = re.compile(r"(?<!\\)\|")
_RULE = re.compile(r"^ *=+(?: +=+)+ *$")


def markdown(text: str) -> str:
    """Return a docstring in Markdown."""
    text = _BLOCK.sub(_display, text)
    text = "\n".join(_tables(text.split("\n")))
    text = _ROLE.sub(_inline, text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    return _EXAMPLE.sub(r"\1```pycon\n\g<0>\n\1```", text)


def _inline(match: re.Match[str]) -> str:
    role, content = match.groups()
    if role == "math":
        return f"${' '.join(content.split())}$"
    if titled := re.fullmatch(r"(.*?)\s*<(.*)>", content, flags=re.DOTALL):
        shown, name = titled.groups()
    else:
        name = content.lstrip("~")
        shown = name.split(".")[-1] if content.startswith("~") else name
    # A name without the package is found if the reference has a page for it at the top level.
    target = name if name.startswith("lightning_glassy") else f"lightning_glassy.{name}"
    return f'<autoref identifier="{target}" optional>`{shown}`</autoref>'


def _display(match: re.Match[str]) -> str:
    formula = " ".join(textwrap.dedent(match.group(2)).split())
    return f"{match.group(1)}$${formula}$$\n\n"


def _tables(lines: list[str]) -> list[str]:
    """Replace each simple table by a Markdown table."""
    found: list[str] = []
    i = 0
    while i < len(lines):
        rules = [j for j in range(i, len(lines)) if _RULE.match(lines[j])][:3]
        if not _RULE.match(lines[i]) or len(rules) < 3:
            found.append(lines[i])
            i += 1
            continue
        spans = [match.span() for match in re.finditer("=+", lines[i])]
        ends = [start for start, _ in spans[1:]] + [None]
        rows: list[list[str]] = []
        for line in lines[i + 1 : rules[2]]:
            if line == lines[rules[1]]:
                rows.append(["---"] * len(spans))
                continue
            cells = [line[start:end].strip() for (start, _), end in zip(spans, ends, strict=True)]
            if cells[0] or not rows:
                rows.append(cells)
            else:  # a line that continues the row above
                rows[-1] = [f"{above} {cell}".strip() for above, cell in zip(rows[-1], cells, strict=True)]
        indent = " " * spans[0][0]
        cells = [" | ".join(_PIPE.sub(r"\|", cell) for cell in row) for row in rows]
        found += [f"{indent}| {row} |" for row in cells]
        i = rules[2] + 1
    return found


class Docstrings(Extension):
    """Converts each docstring that Griffe reads."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Convert the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)

"""Measure habits of prose that are hard to read: ``python tests/prose.py FILE...``.

The prose of a file is its docstrings, comments or paragraphs.

Prints each sentence with such a habit, and fails if the rate of a habit is above its limit. A few words are not enough
for a rate: up to ``FREE`` cases of a habit are always allowed.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

HABITS = {
    "semicolon": (re.compile(r";"), 3.0),
    "what": (re.compile(r"\bwhat\b", re.IGNORECASE), 1.5),
    "that of, those of": (re.compile(r"\b(?:that|those) of\b", re.IGNORECASE), 0.3),
    "starts with What, Who, Where or Which": (re.compile(r"(?:^|(?<=[.:?!] ))(?:What|Who|Whose|Where|Which)\b"), 4.0),
}
"""The habits, and their largest rates in 1,000 words. The last rate is one in 1,000 sentences."""

FREE = 3

_SENTENCE_END = re.compile(r"(?<=[.:?!])\s+")
_QUOTED = re.compile(r":\w+:`[^`]*`|``[^`]*``|`[^`]*`|\$[^$]*\$|\]\([^)]*\)")


def passages(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of each docstring, comment or paragraph of a file."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield getattr(node, "lineno", 1), re.sub(r"(?s)>>>.*?(?:\n\n|$)", " ", ast.get_docstring(node) or "")
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT and not re.match(r"#!|#\s*(?:noqa|type:|fmt:|ruff:|-{4})", token.string):
                yield token.start[0], token.string.lstrip("# ")
        return
    if path.suffix == ".js":
        for line, text in enumerate(source.splitlines(), 1):
            if comment := re.search(r"(?:^|\s)//\s*(.*)", text):
                yield line, comment.group(1)
        return
    source = re.sub(r"(?ms)^ *```.*?^ *```", lambda block: "\n" * block.group().count("\n"), source)
    line = 1
    for block in re.split(r"(\n\s*\n)", source):
        if block.strip() and not block.lstrip("\n").startswith(("|", "    ", "<!--", "![")):
            yield line, block
        line += block.count("\n")


def measure(paths: Iterable[Path]) -> tuple[dict[str, float], Counter[str], list[str]]:
    """Return the rates, the numbers, and the sentences with a habit."""
    found: Counter[str] = Counter()
    words = sentences = 0
    listed = []
    for path in paths:
        for line, text in passages(path):
            plain = " ".join(_QUOTED.sub("X", text).split())
            words += len(re.findall(r"[A-Za-z']+", plain))
            for sentence in _SENTENCE_END.split(plain):
                sentences += len(sentence.split()) > 2
                for habit, (pattern, _) in HABITS.items():
                    if number := len(pattern.findall(sentence)):
                        found[habit] += number
                        listed.append(f"{path}:{line}: {habit}: {sentence}")
    rates = {habit: 1000 * found[habit] / max(sentences if "start" in habit else words, 1) for habit in HABITS}
    return rates, found, listed


def too_many(paths: Iterable[Path]) -> list[str]:
    """Return one line for each habit above its limit, and the sentences behind it."""
    rates, found, listed = measure(paths)
    lines = []
    for habit, (_, limit) in HABITS.items():
        if found[habit] > FREE and rates[habit] > limit:
            lines += [line for line in listed if f": {habit}: " in line]
            lines.append(f"{habit}: {rates[habit]:.1f} in 1,000, at most {limit} are allowed")
    return lines


if __name__ == "__main__":
    lines = too_many(path for name in sys.argv[1:] if (path := Path(name)).suffix in (".py", ".md", ".js"))
    print(*lines, sep="\n")
    sys.exit(bool(lines))

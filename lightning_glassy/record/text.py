"""Convert values to JSON, shorten lists, and escape untrusted text for terminals and spreadsheets."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO, TypeVar

import numpy as np

T = TypeVar("T")


def plain(value: Any) -> Any:
    """Convert dictionaries, lists and arrays of numbers and texts to values for :mod:`json`.

    NaN and infinity become None.

    Example:
        >>> plain({"lags": np.array([1, 2]), "msd": (0.5, float("nan"))})
        {'lags': [1, 2], 'msd': [0.5, None]}
    """
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and np.isfinite(value).all():
        return value.tolist()
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(entry) for entry in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def printable(text: str) -> str:
    r"""Return a text that cannot control a terminal.

    Every character that is not printable becomes its escape, except line breaks.

    Example:
        >>> print(printable("\x1b[2J\ud800\u2028"))
        \x1b[2J\ud800\u2028
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def print_lines(*parts: object, file: TextIO | None = None) -> None:
    """Print lines, with escapes for control characters and for characters that the terminal cannot show.

    Names in records and names of files can come from anyone, and must not send commands to the terminal.
    """
    stream = file or sys.stdout
    encoding = stream.encoding or "utf-8"
    for line in "\n".join(map(str, parts)).split("\n"):
        print(printable(line).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def quoted(values: Iterable[object]) -> str:
    """Return values with commas, with quotes around texts.

    Example:
        >>> quoted(["all", "head"]), quoted([0.1, 1.0]), quoted([])
        ("'all', 'head'", '0.1, 1.0', 'none')
    """
    return ", ".join(map(repr, values)) or "none"


def listed(names: Iterable[str], most: int = 8) -> str:
    """Return names with commas. Names beyond ``most`` are counted.

    Example:
        >>> listed(["a", "b", "c", "d"], most=2)
        'a, b and 2 more'
    """
    several = list(names)
    rest = len(several) - most
    return ", ".join(several) if rest <= 0 else f"{', '.join(several[:most])} and {rest:,} more"


def few(values: Sequence[T], most: int) -> list[T]:
    """Return at most ``most`` of some values, spread evenly, with the first and the last.

    Example:
        >>> few(range(101), 3)
        [0, 50, 100]
    """
    if len(values) <= most:
        return list(values)
    return [values[round(k * (len(values) - 1) / (most - 1))] for k in range(most)]


def csv_cell(value: Any) -> Any:
    r"""Return a value for a table that a spreadsheet may open.

    A text that begins like a formula gets an apostrophe in front. A carriage return becomes its escape. Otherwise a
    carriage return would begin a new line, because :mod:`csv` does not quote it if lines end with another character.

    Example:
        >>> csv_cell("=1+1"), csv_cell("a\r=1"), csv_cell("net.0"), csv_cell(-0.5)
        ("'=1+1", 'a\\r=1', 'net.0', -0.5)
    """
    if not isinstance(value, str):
        return value
    text = value.replace("\r", r"\r")
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


def duration(seconds: float) -> str:
    """Return a duration in its two largest units.

    Example:
        >>> duration(11_400)
        '3 h 10 min'
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for unit, size, smaller, part in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole // 60} min {whole % 60} s"

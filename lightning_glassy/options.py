"""Convert messages of the library to the options of the command line: ``--exclude 'a*'`` for ``exclude='a*'``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

# Words for arguments of Python that no option of the command has by its name.
_ALIASES = {
    "n_bootstrap": "--bootstrap",
    "n_parameters": "number of parameters",
    "n_replica": "replicas",
    "n_sampled": "number of sampled parameters",
    "overlap_thresholds": "--overlap-thresholds",
    "paths": "CHECKPOINT",
    "records": "the runs",
    "series": "the series",
}
# Values for "[...]", which stands for any list.
_EXAMPLES = {"steps": "0,10,...", "overlap_thresholds": "0.001,0.01"}

_QUOTED = r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\""""
_WORD = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?[A-Za-z_]\w*"
_VALUE = rf"(?:{_QUOTED}|\[[^\]\n]*\]|\([^)\n]*\)|\{{[^}}\n]*\}}|\.\.\.|{_WORD})"
_END = r"(?=[\s,;:)]|\.(?:\s|$)|$)"


def in_options(text: str, command: argparse.ArgumentParser, paths: Iterable[Path] = ()) -> str:
    """Return a message with the options of a command in place of arguments of Python.

    An argument is a whole word before ``=``, a whole word with an underscore, or a whole message or sentence before a
    colon. Quoted names and paths stay as they are.

    Args:
        text: the message.
        command: the parser of the command.
        paths: the paths that the user has named, which may look like arguments.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> _ = parser.add_argument("--exclude", action="append")
        >>> _ = parser.add_argument("--force-steps", action="store_true")
        >>> in_options("'exclude=1' differs: leave it out with exclude='a*', or give force_steps=True", parser)
        "'exclude=1' differs: leave it out with --exclude 'a*', or give --force-steps"
    """
    actions = {action.dest: action for action in command._actions if action.dest != "help"}
    aliases = {name: words for name, words in _ALIASES.items() if name not in actions}
    names = "|".join(map(re.escape, sorted({*actions, *aliases}, key=len, reverse=True)))
    known = "|".join(re.escape(path) for path in sorted(map(str, paths), key=len, reverse=True) if path != ".")
    kept = [
        *([rf"(?<![\w./\\-])(?:{known})\S*"] if known else []),  # first, because these paths may have spaces
        rf"(?<!\w)(?:{_QUOTED})(?!\w)",
        r"(?<!\S)[^\s=]*[/\\]\S*",
    ]
    found = re.compile(
        rf"(?P<kept>{'|'.join(kept)})"
        rf"|(?<![\w./\\-])(?P<name>{names})(?:\[\d+\])?=(?P<value>{_VALUE}){_END}"
        rf"|(?:^|(?<=: ))(?P<label>{names})(?:\[(?P<entry>{_QUOTED})\])?(?=: )"
        rf"|(?<![\w./\\-])(?P<word>{names})(?:\[\d+\])?{_END}"
    )

    def said(match: re.Match[str]) -> str:
        name, label, word = match["name"], match["label"], match["word"]
        if name is not None:
            return _option(name, match["value"], actions, aliases)
        if label is not None:
            return " ".join(filter(None, (_words(label, actions, aliases), match["entry"])))
        return _words(word, actions, aliases) if word is not None and "_" in word else match[0]

    return found.sub(said, text)


def _words(name: str, actions: Mapping[str, argparse.Action], aliases: Mapping[str, str]) -> str:
    """Return the option of an argument, or the name of a positional argument."""
    if name in aliases:
        return aliases[name]
    action = actions[name]
    return max(action.option_strings, key=len) if action.option_strings else str(action.metavar or name)


def _option(name: str, value: str, actions: Mapping[str, argparse.Action], aliases: Mapping[str, str]) -> str:
    """Return the option for an argument with a value."""
    option, action = _words(name, actions, aliases), actions.get(name)
    if value in ("True", "False", "None"):
        return option if value == "True" else f"no {option}"
    inner = value[1:-1].rstrip(",") if value[:1] in ("[", "(") else None
    if value == "..." and action is not None:
        return f"{option} {action.metavar or name.upper()}"
    if inner is None:
        return f"{option} {value}"
    each = isinstance(action, argparse._AppendAction)
    if inner == "...":
        inner = _EXAMPLES.get(name, "'...'" if each else "...")
    parts = [part.strip() for part in inner.split(",")]
    if each:
        return " ".join(f"{option} {part}" for part in parts)
    return f"{option} {(' ' if action is not None and action.nargs else ',').join(parts)}"

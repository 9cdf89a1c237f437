"""Run benchmarks and write their results to ``benchmarks/results``: ``python -m benchmarks [name ...] [options]``."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from importlib import import_module

# `device` runs only if it is named. It needs a folder for its results, and a GPU or --dry.
BY_NAME = ("device",)
USUAL = (
    "start",
    "growth",
    "hook",
    "host",
    "event",
    "histogram",
    "moments",
    "scaling",
    "training",
    "replicas",
    "response",
    "tab",
    "finish",
    "measure",
    "costs",
)
NAMES = USUAL + BY_NAME


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the named benchmarks, or the usual ones. A single named benchmark gets the first option and all after it."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    n = next((index for index, word in enumerate(given) if word.startswith("-")), len(given))
    names, options = given[:n], given[n:]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure what lightning_glassy costs.", allow_abbrev=False
    )
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"which: {', '.join(NAMES)} (default all but {', '.join(BY_NAME)})"
    )
    parser.add_argument("options", nargs="*", metavar="option", help="options of the benchmark, if one is named")
    if options and len(names) != 1:
        if not names:
            parser.parse_args(options)  # prints the help or the error
        parser.error(f"options {' '.join(options)!r}: name the one benchmark that takes them")
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}")
    for name in names or USUAL:
        run = import_module(f"benchmarks.{name}").main
        if inspect.signature(run).parameters:
            run(options)
        elif options:
            parser.error(f"the benchmark {name!r} takes no options: {' '.join(options)!r}")
        else:
            run()


if __name__ == "__main__":
    main()

"""``python -m benchmarks [name ...]``: run benchmarks and write their results to ``benchmarks/results``."""

from __future__ import annotations

import argparse
from importlib import import_module

NAMES = ("growth", "hook", "event", "histogram", "moments", "scaling", "training", "replicas", "tab")


def main() -> None:
    """Run the named benchmarks, or all."""
    parser = argparse.ArgumentParser(description="Measure what lightning_glassy costs.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"which: {', '.join(NAMES)} (default all)")
    names = parser.parse_args().names or NAMES
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}")
    for name in names:
        import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()

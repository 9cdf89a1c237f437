"""Run the Python code of pages, and keep the pictures that it saves: ``python docs/draw.py PAGE...``."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser


def main() -> None:
    """Run the pages that the command line names."""
    parser = argparse.ArgumentParser(description="Draw the pictures of pages with the code of these pages.")
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE", help="a Markdown file")
    pictures = Path(__file__).with_name("pictures").resolve()
    for page in [page.resolve() for page in parser.parse_args().pages]:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            for example in Document.parse(str(page), PythonCodeBlockParser()).examples():
                example.evaluate()
            kept = pictures / page.stem
            kept.mkdir(parents=True, exist_ok=True)
            for drawn in sorted(Path(folder).glob("*.png")):
                shutil.copy(drawn, kept)
                print(kept / drawn.name)


if __name__ == "__main__":
    import matplotlib

    matplotlib.use("Agg")
    main()

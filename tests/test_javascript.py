"""The JavaScript of the page: its unit tests, in the test runner of node."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
STATIC = HERE.parent / "lightning_glassy" / "report" / "static"
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="node is not installed")
@pytest.mark.parametrize(
    "path", sorted((HERE / "javascript").glob("*.test.mjs")), ids=lambda path: path.name.split(".")[0]
)
def test_the_modules_of_the_page(path: Path, tmp_path: Path) -> None:
    """Copy the modules beside their test. For node, a file .js is a module only beside a package.json that says so."""
    for module in STATIC.glob("*.js"):
        shutil.copy(module, tmp_path)
    shutil.copy(path, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    done = subprocess.run([str(NODE), "--test", path.name], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# fail 0" in done.stdout or "ℹ fail 0" in done.stdout
    assert "pass 0" not in done.stdout

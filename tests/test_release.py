"""The release: what is in wheel and sdist, and what works where only they are installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import metadata
from pathlib import Path

import pytest

import lightning_glassy

ROOT = Path(__file__).parents[1]
EXTRAS = ["tensorboard", "plot", "curvature", "analysis", "report", "safetensors", "cpu"]
EXTRAS += ["wandb", "mlflow", "comet", "litlogger", "all"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build wheel and sdist with the packages that are installed, without a network."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_the_wheel_has_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"lightning_glassy-{lightning_glassy.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        facts = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
        ends = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    here = {str(path.relative_to(ROOT)) for path in (ROOT / "lightning_glassy").rglob("*") if path.is_file()}
    here = {name for name in here if "__pycache__" not in name}
    assert {name for name in names if not name.startswith("lightning_glassy-")} == here
    assert {"lightning_glassy/py.typed", "lightning_glassy/report/static/page.js"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "tensorboard_plugins" in ends
    assert "lightning-glassy = lightning_glassy.cli:main" in ends
    assert "License-Expression: Apache-2.0" in facts
    assert "How does your network move" in facts  # the README


@pytest.mark.slow
def test_the_sdist_can_be_tested_and_has_no_results_of_studies(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "tests/helpers.py"} <= names
    assert not [name for name in names if name.startswith(("examples/studies", "docs/pictures", ".venv", "runs"))]
    assert sdist.stat().st_size < 2_000_000


@pytest.fixture(scope="module")
def uv(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the installer, if it reaches the registry."""
    pytest.importorskip("uv")
    from uv import find_uv_bin

    found, empty = find_uv_bin(), tmp_path_factory.mktemp("empty")
    subprocess.run([found, "venv", "--quiet", "--python", sys.executable, str(empty / "env")], check=True)
    tried = [found, "pip", "install", "--quiet", "--dry-run", "--python", str(empty / "env"), "iniconfig"]
    if subprocess.run(tried, capture_output=True).returncode:
        pytest.skip("the package registry cannot be reached")
    return str(found)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the environments are made as on Linux")
@pytest.mark.parametrize("extra", ["core", *(pytest.param(extra, marks=pytest.mark.install) for extra in EXTRAS)])
def test_an_empty_environment_with_one_extra_works(extra: str, built: Path, uv: str, tmp_path: Path) -> None:
    if extra == "litlogger" and sys.version_info < (3, 11):
        pytest.skip("litlogger needs Python 3.11")
    (wheel,) = built.glob("*.whl")
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "PYTEST"))
    }
    environment, wanted = str(tmp_path / "env"), str(wheel) if extra == "core" else f"{wheel}[{extra}]"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, environment], check=True, env=clean)
    install = [uv, "pip", "install", "--quiet", "--python", environment, wanted]
    done = subprocess.run(install, capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr
    work = tmp_path / "work"
    work.mkdir()
    command = [f"{environment}/bin/python", str(ROOT / "tests" / "installed.py"), extra]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.endswith(f"works: {extra}\n")


def test_every_extra_is_tried() -> None:
    declared = set(metadata("lightning-glassy").get_all("Provides-Extra") or [])
    assert declared - {"dev", "demo", "examples"} == set(EXTRAS)


def test_the_version_is_the_same_everywhere() -> None:
    version = lightning_glassy.__version__
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)
    newest = re.search(r"^## (\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert newest
    assert newest[1] == version
    assert f"date-released: {newest[2]}" in (ROOT / "CITATION.cff").read_text()


def test_importing_the_package_and_help_import_nothing_large() -> None:
    """benchmarks/results/start.md has the times of both. Machines are noisy, so a test looks at the modules."""
    tell = "print(sorted({name.split('.')[0] for name in sys.modules}))"
    of_help = f"from lightning_glassy.cli import main\ntry: main(['--help'])\nexcept SystemExit: {tell}"
    for code in (f"import sys, lightning_glassy; {tell}", f"import sys; {of_help}"):
        command = [sys.executable, "-W", "error", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        large = {"numpy", "torch", "lightning", "scipy", "matplotlib"}
        assert not [name for name in large if repr(name) in done.stdout]
    assert "report" in done.stdout

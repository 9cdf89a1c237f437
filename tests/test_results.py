"""The studies in ``examples``: they run, and the page of results says what their files say."""

from __future__ import annotations

import json
import re
import struct
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from examples import subaging_mnist
from examples.common import PAGE, RESULTS, as_json, load, marks, with_block

STUDIES = ("subaging_mnist",)


@pytest.mark.parametrize("name", STUDIES)
def test_the_tables_of_the_page_are_those_of_the_committed_numbers(name: str) -> None:
    begin, end = marks(name)
    block = PAGE.read_text().split(begin)[1].split(end)[0]
    assert block.strip() == import_module(f"examples.{name}").tables(load(name)).strip()


def test_every_picture_of_the_page_and_the_readme_is_there_and_is_drawn_by_an_example() -> None:
    for page in (PAGE, PAGE.parents[1] / "README.md"):
        pictures = re.findall(r"\]\(([^)]*\.png)\)", page.read_text())
        assert pictures
        for picture in pictures:
            assert (page.parent / picture).stat().st_size > 10_000


def test_json_is_small_and_knows_no_nan(tmp_path: Path) -> None:
    text = as_json({"a": np.array([1 / 3, np.nan]), "b": {"c": [np.int64(3), "x"], "d": np.float32(0.1)}, "e": [[1.0]]})
    assert json.loads(text) == {"a": [0.33333, None], "b": {"c": [3, "x"], "d": 0.1}, "e": [[1.0]]}
    assert "[ 0.33333, null ]" in text or "[0.33333, null]" in text


def test_a_block_of_a_page_is_replaced_and_a_page_without_its_marks_is_refused() -> None:
    begin, end = marks("study")
    page = f"before\n{begin}\nold\n{end}\nafter"
    once = with_block(page, "study", "new")
    assert once == with_block(once, "study", "new")
    assert "old" not in once
    assert once.startswith("before")
    assert once.endswith("after")
    with pytest.raises(ValueError, match="no lines"):
        with_block("nothing", "study", "new")


def fake_mnist(directory: Path, n: int = 6000) -> None:
    """The 1,797 digits of scikit-learn, enlarged, over and over, in the files of MNIST."""
    images, labels = load_digits(return_X_y=True)
    large = np.kron(images.reshape(-1, 8, 8), np.ones((3, 3)))
    large = np.pad(large * 255 / 16, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    picked = np.arange(n) % len(large)
    raw = directory / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        header = struct.pack(">4B3I", 0, 0, 8, 3, n, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + large[picked].tobytes())
        header = struct.pack(">4BI", 0, 0, 8, 1, n)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + labels[picked].astype(np.uint8).tobytes())


@pytest.mark.slow
def test_subaging_on_mnist_runs_in_short_and_leaves_the_results_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_mnist(tmp_path / "data")
    before = {path: path.read_bytes() for path in (PAGE, *RESULTS.iterdir())}
    arguments = ["--quick", "--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["subaging_mnist", *arguments])
    subaging_mnist.main()
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [(run["layers"], run["order"]) for run in result["runs"]] == [
        ("784-5-5-5-10", "file order"),
        ("784-5-5-5-10", "reshuffled"),
        ("784-5-10", "file order"),
    ]
    for run in result["runs"]:
        assert np.isfinite(np.array(run["msd"], dtype=float)).all()
        assert run["series"]["train_loss"]["values"][-1] < run["series"]["train_loss"]["values"][0]
    assert result["runs"][0]["n_parameters"] == 4045
    assert subaging_mnist.tables(result) in printed
    assert (tmp_path / "out" / "subaging_mnist_mu.png").stat().st_size > 20_000
    assert before == {path: path.read_bytes() for path in (PAGE, *RESULTS.iterdir())}
    # The records are there for another analysis.
    monkeypatch.setattr(sys, "argv", ["subaging_mnist", "--analyse", *arguments])
    subaging_mnist.main()
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result


def test_the_network_of_the_paper_and_those_beside_it() -> None:
    runs = [subaging_mnist.Run(hidden, False) for hidden in subaging_mnist.SAME_SIZE]
    assert runs[0].n_parameters == 4045
    assert len(runs) == 5
    assert all(abs(run.n_parameters / 4045 - 1) < 0.05 for run in runs)
    assert len({subaging_mnist.Run(hidden, False).n_parameters for hidden in subaging_mnist.SIZES}) == 4
    assert len(subaging_mnist.RUNS) == 16

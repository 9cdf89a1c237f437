"""The studies in ``examples/studies``: they run, and the page of results agrees with their files."""

from __future__ import annotations

import json
import re
import struct
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import lightning_glassy as lg
from examples.studies import common, landscape, subaging, subaging_mnist, subaging_teacher
from examples.studies.common import PAGE, RESULTS, as_json, load_record, marks, mnist, with_block
from lightning_glassy import AgingRecord

STUDIES = ("subaging_mnist", "subaging_teacher", "comparing_dynamics", "effective_temperature", "released_protocol")


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo the seed and the number of threads of a study, which the next test would see."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)


@pytest.mark.parametrize("name", STUDIES)
def test_the_tables_of_the_page_are_those_of_the_committed_numbers(name: str) -> None:
    begin, end = marks(name)
    result = json.loads((RESULTS / f"{name}.json").read_text())
    block = PAGE.read_text().split(begin)[1].split(end)[0]
    assert block.strip() == import_module(f"examples.studies.{name}").tables(result).strip()


def test_every_picture_of_the_page_and_the_readme_is_there_and_is_drawn_by_an_example() -> None:
    for page in (PAGE, PAGE.parents[2] / "README.md"):
        pictures = re.findall(r"\]\(([^)]*\.png)\)", page.read_text())
        assert pictures
        for picture in pictures:
            assert (page.parent / picture).stat().st_size > 10_000


def test_every_script_that_a_page_names_is_there() -> None:
    root = PAGE.parents[2]
    for page in (PAGE, root / "docs" / "findings.md", root / "docs" / "guides" / "loops.md", root / "Makefile"):
        named = re.findall(r"python -m\s+(examples[\w.]+)", page.read_text())
        assert named
        assert [name for name in named if find_spec(name) is None] == []


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
    with pytest.raises(ValueError, match="not enough values"):
        with_block("nothing", "study", "new")


def fake_mnist(directory: Path, n: int = 6000) -> None:
    """Write the 1,797 digits of scikit-learn, enlarged, over and over, to the files of MNIST."""
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
    monkeypatch.setattr(common, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))  # starts faster
    monkeypatch.setattr(subaging_mnist, "QUICK_STEPS", 400)
    monkeypatch.setattr(subaging_mnist, "QUICK_IMAGES", 1000)
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


def test_the_network_of_the_paper_and_those_beside_it() -> None:
    runs = [subaging_mnist.run_of(hidden) for hidden in subaging_mnist.SAME_SIZE]
    assert runs[0].n_parameters == 4045
    assert len(runs) == 5
    assert all(abs(run.n_parameters / 4045 - 1) < 0.05 for run in runs)
    assert len({subaging_mnist.run_of(hidden).n_parameters for hidden in subaging_mnist.SIZES}) == 4
    assert len(subaging_mnist.RUNS) == 16


@pytest.mark.slow
def test_subaging_of_students_runs_in_short_and_leaves_the_results_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in (PAGE, *RESULTS.iterdir())}
    monkeypatch.setattr(common, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))  # starts faster
    monkeypatch.setattr(subaging_teacher, "QUICK_STEPS", 400)
    arguments = ["--quick", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["subaging_teacher", *arguments])
    subaging_teacher.main()
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert [(run["layers"], run["n_parameters"]) for run in result["runs"]] == [("20-4-4-2", 114), ("20-32-32-2", 1794)]
    for run in result["runs"]:
        assert run["series"]["train_loss"]["values"][-1] < run["series"]["train_loss"]["values"][0]
        # The labels of the test set are all right.
        assert run["series"]["test_accuracy"]["values"][-1] > 0.7
    assert subaging_teacher.tables(result) in printed
    for picture in ("subaging_teacher.png", "subaging_teacher_n.png"):
        assert (tmp_path / picture).stat().st_size > 20_000
    assert before == {path: path.read_bytes() for path in (PAGE, *RESULTS.iterdir())}
    # The records are there for another analysis.
    monkeypatch.setattr(sys, "argv", ["subaging_teacher", "--analyse", *arguments])
    subaging_teacher.main()
    assert json.loads((tmp_path / "result.json").read_text()) == result


def test_the_students_have_few_and_many_weights_for_a_fifth_of_wrong_labels() -> None:
    learnt, test = subaging_teacher.problem()
    x, y = learnt.tensors
    assert x.shape == (1000, 20)
    assert x.norm(dim=1).numpy() == pytest.approx(20**0.5)
    assert 0.4 < y.float().mean() < 0.6
    assert len(test) == 10_000
    sizes = [run.n_parameters for run in subaging_teacher.RUNS if run.l2]
    assert sizes == sorted(set(sizes))
    assert len(sizes) == 8
    assert sizes[0] < 100 < 1000 < sizes[-1]


@pytest.mark.needs("plotly")
@pytest.mark.slow
def test_the_landscape_of_two_networks_is_told_and_in_their_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(landscape, "QUICK_STEPS", 200)
    monkeypatch.setattr(sys, "argv", ["landscape", "--quick", "--out", str(tmp_path)])
    landscape.main()
    printed = capsys.readouterr().out
    for name in ("under-parametrised", "over-parametrised"):
        (path,) = (tmp_path / name).rglob("aging_record.npz")
        record = AgingRecord.load(path)
        assert {"train_loss", "test_accuracy", "gradient_noise", "flat_fraction"} <= set(record.one_time_names)
        assert record.one_time("flat_fraction")[0].tolist() == [0, 1, 10, 100, 200]
        assert {"loss_path", "displacement"} <= set(record.profile_names)
        report = tmp_path / "report" / name
        assert {"barriers.png", "curvature.png", "loss.png"} <= {path.name for path in report.iterdir()}
        assert f"THE LANDSCAPE OF ONE {name.upper()} NETWORK" in printed
    assert printed.count("directions (|curvature| < 0.01) on 300 digits") == 2
    assert printed.count("barriers on the straight line between the weights at") == 2


def test_what_a_study_lacks_is_said_and_what_is_old_is_not_taken_for_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["subaging_teacher", "--quick", "--analyse"])
    with pytest.raises(SystemExit):
        subaging_teacher.main()
    assert "no finished run in runs/subaging_teacher-quick: run without --analyse first" in capsys.readouterr().err
    # Run a second training in the same place, and a training that does not reach its end.
    monkeypatch.setattr(subaging_teacher, "QUICK_RUNS", (run := subaging_teacher.run_of(4),))
    monkeypatch.setattr(sys, "argv", ["subaging_teacher", "--quick", "--out", str(tmp_path)])
    for steps, pool in ((200, lambda *_, **__: ThreadPoolExecutor(1)), (220, ProcessPoolExecutor)):
        monkeypatch.setattr(common, "ProcessPoolExecutor", pool)
        monkeypatch.setattr(subaging_teacher, "QUICK_STEPS", steps)
        subaging_teacher.main()
    assert load_record(run.name, tmp_path, 220).meta["completed"] == 220
    with pytest.raises(SystemExit, match="ends at step 220, not at step 3000: with --quick, or without"):
        load_record(run.name, tmp_path, 3000)

    def fails(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.MNIST", fails)
    with pytest.raises(SystemExit, match=r"MNIST is not in nowhere and cannot be downloaded \(no network\)"):
        mnist(Path("nowhere"))


def test_the_authors_run_stands_beside_ours_with_the_spread_of_single_runs() -> None:
    result = json.loads((RESULTS / "subaging_mnist.json").read_text())
    run = result["runs"][0]
    assert (run["layers"], run["order"]) == (subaging_mnist.AUTHORS, "file order")
    theirs = subaging_mnist.NOTEBOOK
    slope = np.polyfit(np.log(run["waiting_times"]), np.log(theirs["lag_to_threshold"]), 1)[0]
    assert round(float(slope), 3) == theirs["slope"] == 0.770
    # Curves that are power laws with one exponent and one relative error have this spread of ln t*.
    lags = np.array([10.0, 100.0, 1000.0])
    law = {"lags": lags, "msd": [1e-5 * lags**1.5], "msd_error": [1e-6 * lags**1.5], "n_replica": 16}
    law["lag_to_threshold"] = [100.0 ** (2 / 1.5)]
    assert np.allclose(subaging_mnist._spread_of_lags(law), 4 * 0.1 / 1.5)
    # The table is left out if the protocol is another.
    assert subaging_mnist._beside_the_notebook(result | {"steps": 4000}, run) == []


def test_a_study_says_if_its_records_have_another_grid_than_the_preset() -> None:
    preset = list(lg.LogTimeSchedule.preset("subaging", 200_000).lags)
    assert subaging.grid_note({"steps": 200_000, "runs": [{"lags": preset}]}) == []
    (words,) = subaging.grid_note({"steps": 200_000, "runs": [{"lags": [10, 16, *preset[2:]]}]})
    assert words == "These records have the lags 16 where the authors, and the preset of today, have 17."

"""A record in a notebook: one line for a figure, the axes of the caller, and the directory of a run."""

from __future__ import annotations

import json
import runpy
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_glassy import AgingRecord, LogTimeSchedule, RecordError, plotting
from lightning_glassy.analysis import (
    aging_by_group,
    aging_exponent,
    collapse,
    compare,
    diffusion,
    heterogeneity,
    relaxation_curves,
    relaxation_times,
)
from lightning_glassy.plotting.axes import log_axis

pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def _close() -> object:
    yield
    pyplot.close("all")


def made(n_replica: int = 1, seed: int = 0, **meta: object) -> AgingRecord:
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(n_replica, 3001, 40)) * np.arange(1, 3002)[:, None] ** -0.25
    walks = np.cumsum(steps, axis=1)
    weights = walks if n_replica > 1 else walks[0]
    groups = {"first": range(20), "second": range(20, 40)}
    return AgingRecord.from_trajectory(
        weights, LogTimeSchedule.logspaced(3000), groups=groups, overlap_thresholds=(0.1, 1.0), meta=meta
    )


def test_one_line_draws_any_observable_on_new_or_given_axes() -> None:
    record = made()
    for name in record.available():
        axes = record.plot(name)
        assert axes.figure.number in pyplot.get_fignums()  # a notebook shows it
        assert axes.get_ylabel()
    given = pyplot.figure().subplots()
    assert record.plot("msd", group="first", ax=given) is given
    assert len(given.get_lines()) == len(record.waiting_times)


def test_without_a_name_the_overview_is_drawn_with_the_answer() -> None:
    record = made()
    left, right = record.plot()
    assert left.figure is right.figure
    assert "times longer to move as far" in left.get_title()
    assert right.get_xlabel() == "waiting time $t_w$ (steps)"
    pair = pyplot.figure().subplots(1, 2)
    assert record.plot(ax=tuple(pair)) == tuple(pair)
    short = AgingRecord.from_trajectory(np.cumsum(np.ones((6, 2)), axis=0), LogTimeSchedule([0, 1], [1, 2]))
    left, right = short.plot()
    assert any("waiting times" in text.get_text() for text in right.texts)


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("plot_curves", relaxation_curves),
        ("plot_collapse", lambda r: collapse(relaxation_curves(r).after(0), 0.5)),
        ("plot_threshold_lags", aging_exponent),
        ("plot_local_exponent", diffusion),
        ("plot_relaxation_times", relaxation_times),
        ("plot_groups", aging_by_group),
        ("plot_chi4", heterogeneity),
    ],
)
def test_a_plot_takes_a_record_or_what_was_computed_from_it(name: str, result: object) -> None:
    record, draw = made(n_replica=4), getattr(plotting, name)
    from_record, from_result = draw(record), draw(result(record))
    for one, other in zip(np.atleast_1d(from_record), np.atleast_1d(from_result), strict=True):
        assert one.get_xlabel().split(",")[0] == other.get_xlabel().split(",")[0]
        assert len(one.get_lines()) > 0 or len(one.collections) > 0


def test_a_choice_belongs_to_a_record_and_not_to_a_result() -> None:
    record = made()
    lines = plotting.plot_curves(record, observable="decorrelation", group="first").get_lines()
    expected = relaxation_curves(record, "decorrelation", group="first").mean()[0]
    assert lines[0].get_ydata().tolist() == expected[: len(lines[0].get_ydata())].tolist()
    with pytest.raises(ValueError, match="group='first' chooses from a record"):
        plotting.plot_curves(relaxation_curves(record), group="first")
    assert plotting.plot_collapse(record).get_ylabel() == "MSD"
    left, _ = plotting.plot_collapse_residuals(record)
    assert left.get_xlabel().endswith(f"{aging_exponent(record).estimate:.3f}$")


def test_a_name_that_is_no_plot_is_refused_with_the_names() -> None:
    with pytest.raises(ValueError, match=r"name='mds' is no plot; there are \['msd', "):
        made().plot("mds")
    with pytest.raises(ValueError, match="loss"):
        made().plot("mds")
    with pytest.raises(KeyError, match="nowhere"):
        made().plot(group="nowhere")


def test_records_are_compared_in_one_figure_with_the_same_axes() -> None:
    small, large = made(), made(seed=1)
    axes = plotting.plot_comparison({"small": small, "large": large})
    assert [ax.get_title() for ax in axes] == ["small", "large"]
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in axes}) == 1
    titled = plotting.plot_comparison(compare({"small": small, "large": large}))
    assert all("aging" in ax.get_title() or "tell" in ax.get_title() for ax in titled)
    with pytest.raises(ValueError, match="1 to 6"):
        plotting.plot_comparison({str(i): small for i in range(7)})


def test_a_notebook_shows_words_and_a_picture_and_runs_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = made()._repr_html_()
    assert "times longer to move as far" in shown
    assert '<img alt="mean squared displacement' in shown
    assert "AgingRecord(" in AgingRecord({"all": 3})._repr_html_()
    assert "<script>" not in made(module="<script>")._repr_html_()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    without = made()._repr_html_()
    assert "lightning-glassy[plot]" in without
    assert "times longer to move as far" in without


def test_the_directory_of_a_run_is_enough_to_load_its_record(tmp_path: Path) -> None:
    record = made()
    path = record.save(tmp_path / "runs" / "version_0" / "glassy" / "aging_record.npz")
    for place in (path, path.parent, path.parent.parent, tmp_path):
        assert AgingRecord.load(place) == record
    record.save(tmp_path / "runs" / "version_1" / "glassy" / "aging_record.npz")
    with pytest.raises(RecordError, match=r"holds several records: .*version_0.*version_1.*Name one of them"):
        AgingRecord.load(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(IsADirectoryError, match=r"have no aging_record\.npz"):
        AgingRecord.load(tmp_path / "empty")


@pytest.mark.parametrize(("low", "high"), [(1, 1e6), (3, 200), (30, 70), (100, 120), (1e-9, 1e-3), (0.97, 1.02)])
def test_labels_of_a_logarithmic_axis_are_a_few_and_do_not_overlap(low: float, high: float) -> None:
    figure = pyplot.figure(figsize=(4, 3), dpi=100)
    ax = figure.subplots()
    ax.plot([low, high], [low, high])
    log_axis(ax, "x", "y")
    ax.set_xlim(low, high)
    figure.canvas.draw()
    labels = [label for label in ax.get_xticklabels() if label.get_text() and low <= label.get_position()[0] <= high]
    assert 2 <= len(labels) <= 8
    boxes = sorted((box.x0, box.x1) for box in (label.get_window_extent() for label in labels))
    assert all(after[0] > before[1] for before, after in pairwise(boxes))
    assert not any(label.get_text() for label in ax.get_xticklabels(minor=True))


def test_a_record_that_knows_its_epochs_has_a_second_axis() -> None:
    (top,) = made(steps_per_epoch=100).plot("msd").child_axes
    assert top.get_xlabel() == "epochs"
    top.figure.canvas.draw()
    assert top.get_xlim()[1] == pytest.approx(top._parent.get_xlim()[1] / 100)
    for meta in ({}, {"steps_per_epoch": 0}, {"steps_per_epoch": "x"}, {"steps_per_epoch": 10**9}):
        assert not made(**meta).plot("msd").child_axes


def test_the_notebook_of_the_documentation_runs_as_it_stands(tmp_path: Path) -> None:
    """Run the notebook with fewer steps. Each cell with stored output has output again."""
    folder = Path(__file__).parents[1] / "docs"
    executor = runpy.run_path(str(folder / "execute_notebook.py"))
    notebook = json.loads((folder / "notebook.ipynb").read_text(encoding="utf-8"))
    stored = [_kinds(cell) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell in notebook["cells"]:
        cell["source"] = [line.replace("max_steps=3000", "max_steps=300") for line in cell["source"]]
    threads = torch.get_num_threads()
    try:
        names = executor["execute"](notebook)
    finally:
        torch.set_num_threads(threads)
    assert names["small"].last_step == 300
    assert [_kinds(cell) for cell in notebook["cells"] if cell["cell_type"] == "code"] == stored
    assert sum("image/png" in kinds for kinds in stored) == 3
    assert sum("text/html" in kinds for kinds in stored) == 2


def _kinds(cell: dict[str, Any]) -> set[str]:
    return {kind for output in cell["outputs"] for kind in output.get("data", {output["output_type"]: ""})}

"""The work at the end of a training and in a report is bounded, however large the record is."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from lightning_glassy import AgingRecord, plotting
from lightning_glassy.analysis import aging_exponent, collapse_quality, diffusion, loss_regimes, relaxation_curves
from lightning_glassy.analysis import exponents as exponents_module
from lightning_glassy.callbacks.summary import summary
from lightning_glassy.observables import log_spaced
from lightning_glassy.record import MOMENTS
from lightning_glassy.report import answers, report
from lightning_glassy.report import page as page_module

MU = 0.7
collapse_module = import_module("lightning_glassy.analysis.collapse")  # the package has a function of this name


def record_of(waiting_times: np.ndarray, lags: np.ndarray, n_replica: int | None = None) -> AgingRecord:
    """Curves that scale with t/t_w^0.7, with 2 % of independent noise, at all pairs."""
    rng, record = np.random.default_rng(0), AgingRecord({"all": 100}, n_replica=n_replica)
    shape = (1, len(MOMENTS)) if n_replica is None else (n_replica, 1, len(MOMENTS))
    for waiting_time in waiting_times.tolist():
        for lag in lags.tolist():
            moments = np.ones(shape)
            moments[..., 0] = (lag / waiting_time**MU) ** 0.5 * np.exp(0.02 * rng.normal(size=shape[:-1]))
            record.append(waiting_time, lag, moments)
    return record


def grid(first: float, last: float, n: int) -> np.ndarray:
    return np.unique(np.geomspace(first, last, n).round().astype(np.int64))


@pytest.fixture(scope="module")
def large() -> AgingRecord:
    return record_of(grid(1e3, 1e5, 150), grid(1e2, 1e6, 150))


@contextmanager
def at_most(megabytes: float) -> Iterator[None]:
    """Fail if the code inside takes more memory at its peak."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
    assert peak < megabytes


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the curves that enter fits."""
    shapes: list[tuple[int, ...]] = []

    class Counted(collapse_module.CollapseQuality):
        def __init__(self, waiting_times, lags, *rest) -> None:
            shapes.append((len(waiting_times), len(lags)))
            super().__init__(waiting_times, lags, *rest)

    monkeypatch.setattr(exponents_module, "CollapseQuality", Counted)
    monkeypatch.setattr(collapse_module, "CollapseQuality", Counted)
    return shapes


def test_the_summary_of_a_large_record_fits_a_few_of_its_curves_and_says_so(large, fitted) -> None:
    with at_most(50):
        text = "\n".join(summary(large, "AgingMonitor"))
    assert fitted
    assert all(n_tw <= 25 and n_lag <= 60 for n_tw, n_lag in fitted)
    assert "of 150 waiting times and 150 lags, 40 and 60 are analysed" in text  # the verdict
    assert "of 150 waiting times and 150 lags, 25 and 60 are analysed" in text  # the exponent


def test_a_thinned_record_has_the_exponent_of_the_whole(large) -> None:
    fit = aging_exponent(large)
    assert fit.method == "collapse, plain"
    assert abs(fit.mu - MU) < 0.01
    assert fit.window == (1000, 100_000)
    curves = relaxation_curves(large)
    assert curves.values.shape == (1, 150, 150)  # the curves themselves stay whole
    near = MU + np.linspace(-0.02, 0.02, 5)
    assert np.argmin(collapse_quality(curves, near, "plain")) == 2


def test_a_record_of_ordinary_size_is_not_thinned() -> None:
    record = record_of(grid(1e3, 1e5, 40), grid(1e2, 1e6, 100))
    used = exponents_module.windowed(relaxation_curves(record), None)
    assert used.values.shape == (1, 40, 100)
    assert not used.doubts
    assert diffusion(record).exponents.shape == (40, 100)


def test_replicas_are_thinned_alike_and_keep_their_interval(fitted) -> None:
    fit = aging_exponent(record_of(grid(1e3, 1e5, 50), grid(1e2, 1e6, 50), n_replica=8), n_bootstrap=20)
    assert set(fitted) == {(25, 50)}
    assert fit.interval is not None
    assert fit.interval[0] < MU < fit.interval[1]


def test_the_page_and_the_figures_show_the_curves_that_were_fitted(large, fitted) -> None:
    found = report(large)
    scan = answers.fit(found)["scan"]
    at = scan["mus"].index(found.exponent.mu)
    assert scan["plain"][at] == pytest.approx(found.exponent.qualities["collapse, plain"], rel=1e-12)
    assert found.figures().keys() >= {"curves", "collapse", "threshold_lags", "local_exponent"}
    assert all(n_tw <= 25 and n_lag <= 60 for n_tw, n_lag in fitted)
    moving = found.to_dict()["diffusion"]
    assert (len(moving["waiting_times"]), len(moving["lags"])) == np.shape(moving["exponents"]) == (40, 60)


def test_the_page_of_a_large_record_has_fewer_fits(large, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "_FEW_FITS", 1)
    content = page_module.embedded(report(large), lambda choice: pytest.fail(f"{choice} is fitted"))
    assert [one["observable"] for one in content["answers"] if one["path"] == "fits"] == ["msd"]


def test_the_quality_of_a_collapse_needs_memory_for_a_block_of_points_only(
    large, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves = relaxation_curves(large)
    with at_most(20):  # 150 x 150 x 150 numbers are 27 MB
        in_blocks = collapse_quality(curves, MU, "plain")
    few = curves.thinned(25, 60)
    small = collapse_quality(few, MU)
    monkeypatch.setattr(collapse_module, "_BLOCK", 10**9)
    assert collapse_quality(few, MU) == small
    assert collapse_quality(curves, MU, "plain") == in_blocks


def test_a_long_loss_curve_is_averaged_before_its_regimes_are_fitted() -> None:
    record, rng = AgingRecord({"all": 1}), np.random.default_rng(0)
    steps = np.arange(1, 30_001)
    loss = 2 - np.clip(np.log(steps / 100) / np.log(100), 0, 1) + 0.02 * rng.normal(size=len(steps))
    for step, value in zip(steps.tolist(), loss.tolist(), strict=True):
        record.append_one_time("train_loss", step, value)
    with at_most(50):
        found = loss_regimes(record)
    assert found.falls_interval[0] <= 100 <= found.falls_interval[1]
    assert found.bottom_from == pytest.approx(10_000, rel=0.1)
    assert len(found.fitted) == len(steps)
    assert found.deviation == pytest.approx(0.02, rel=0.1)
    assert "30,000 values of the loss are averaged to 500 for the fit" in found.warnings
    series = answers.series(record)["one_time"]["train_loss"]
    assert len(series["steps"]) == 10_000
    assert series["n"] == 30_000
    assert series["steps"][-1] == 30_000
    assert len(plotting.plot_loss(record).get_lines()[0].get_xdata()) == 1000


@pytest.mark.parametrize(
    "draw",
    [lambda record: plotting.plot_two_time(record), lambda record: plotting.plot_curves(relaxation_curves(record))],
)
def test_a_figure_has_a_bounded_number_of_curves_and_points(large, draw: Callable) -> None:
    lines = draw(large).get_lines()
    assert len(lines) == 40
    assert max(len(line.get_xdata()) for line in lines) == 100
    assert {lines[0].get_label(), lines[-1].get_label()} == {"$t_w = 1,000$", "$t_w = 100,000$"}
    assert [lines[0].get_xdata()[i] for i in (0, -1)] == [100, 1_000_000]


def test_the_table_is_written_in_parts(tmp_path: Path) -> None:
    record = record_of(grid(1, 1e5, 60), grid(1, 1e6, 60), n_replica=10)
    with at_most(20):  # as numbers of Python, 45 MB
        path = record.to_csv(tmp_path / "table.csv")
    lines, table = path.read_text().splitlines(), record.table()
    assert lines[0].split(",") == list(table)
    assert len(lines) == 1 + len(table["lag"])
    assert lines[-1] == ",".join(str(column[-1]) if column[-1] == column[-1] else "nan" for column in table.values())


@pytest.mark.parametrize(
    "values", [np.arange(1000), np.array([0, *range(10**6, 10**6 + 300)]), np.arange(500) ** 3, np.array([0, 1, 2**62])]
)
def test_thinning_keeps_the_ends_and_is_even_in_the_logarithm(values: np.ndarray) -> None:
    for most in (2, 7, 40):
        kept = log_spaced(values, most)
        assert len(kept) <= most
        assert kept[0] == 0
        assert kept[-1] == len(values) - 1
        assert (np.diff(kept) > 0).all()
        assert len(kept) > most / 2 or len(kept) == len(values)

"""The work at the end of a training and in a report is bounded, however large the record is."""

from __future__ import annotations

import os
import re
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from lightning_glassy import AgingRecord, cli, plotting
from lightning_glassy.analysis import aging_exponent, collapse_quality, diffusion, loss_regimes, relaxation_curves
from lightning_glassy.analysis import exponents as exponents_module
from lightning_glassy.callbacks.summary import summary
from lightning_glassy.observables import log_spaced
from lightning_glassy.record import MOMENTS
from lightning_glassy.report import answers, report
from lightning_glassy.report import page as page_module
from lightning_glassy.sources import find_records

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
    """Fail if the code inside takes more memory than this at its peak."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
    assert peak < megabytes


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return the list of the shapes of all curves that enter fits."""
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
    assert abs(fit.estimate - MU) < 0.01
    assert fit.window == (1000, 100_000)
    curves = relaxation_curves(large)
    assert curves.values.shape == (1, 150, 150)  # the curves themselves stay whole
    near = MU + np.linspace(-0.02, 0.02, 5)
    assert np.argmin(collapse_quality(curves, near, "plain")) == 2


def test_a_record_of_ordinary_size_is_not_thinned() -> None:
    record = record_of(grid(1e3, 1e5, 25), grid(1e2, 1e6, 100))
    used = exponents_module.windowed(relaxation_curves(record), None)
    assert used.values.shape == (1, 25, 100)
    assert not used.doubts
    assert diffusion(record).exponents.shape == (25, 100)


def test_replicas_are_thinned_alike_and_keep_their_interval(fitted) -> None:
    fit = aging_exponent(record_of(grid(1e3, 1e5, 50), grid(1e2, 1e6, 50), n_replica=8), n_bootstrap=20)
    assert set(fitted) == {(25, 50), (13, 50)}  # and both halves, for the drift of the exponent
    assert fit.interval is not None
    assert fit.interval[0] < MU < fit.interval[1]


def test_the_page_and_the_figures_show_the_curves_that_were_fitted(large, fitted) -> None:
    found = report(large)
    scan = answers.fit(found)["scan"]
    at = scan["mus"].index(found.exponent.estimate)
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
    lines, table = path.read_text().splitlines(), record.table(sem=True)
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


# ---------------------------------------------------------------------- numbers beyond the range of floats

GARBAGE = [1e300, 1e308, 1e154, np.inf, -np.inf, np.nan, 0.0, -1e-20, -1e308, 1e-300, 1e-320]


def garbage(value: float, n_replica: int | None = None, late: bool = False) -> AgingRecord:
    """Return a record with one bad number in every table, at all pairs and steps or at the late half of them."""
    rng = np.random.default_rng(0)
    record = AgingRecord({"all": 100}, n_replica=n_replica, overlap_thresholds=[0.1])
    shape = (1, len(MOMENTS) + 1) if n_replica is None else (n_replica, 1, len(MOMENTS) + 1)
    steps = [1, 3, 10, 30, 100, 300, 1000, 3000]
    for step in steps:
        for lag in steps:
            moments = np.full(shape, 10.0)
            moments[..., 0] = (lag / step**MU) ** 0.5 * np.exp(0.02 * rng.normal(size=shape[:-1]))
            record.append(step, lag, np.full(shape, value) if not late or step > 50 else moments)
            record.append_profile("loss_path", step, lag, [0.0, 0.5, 1.0], [1.0, value, 2.0])
            record.append_profile("displacement", step, lag, [-1.0, 1.0], [2.0, value, 2.0])
        record.append_profile("weights", step, 0, [-1.0, 1.0], [value, 1.0, value])
        for name in ("train_loss", "train_loss_error", "gradient_noise", "flat_fraction", "hessian_max"):
            record.append_one_time(name, step, 1 / step if late and step < 50 else value)
        for name in ("weight_product", "weight_distance") if n_replica else ():
            record.append_between(name, step, np.full((n_replica, n_replica), value))
    return record


@pytest.mark.needs("plotly")
@pytest.mark.parametrize(
    ("value", "n_replica", "late"),
    [(value, None, True) for value in GARBAGE]
    + [(value, None, False) for value in (1e300, np.nan, 0.0)]
    + [(value, 8, True) for value in (1e308, np.inf, -1e-20)],
)
def test_a_record_of_garbage_still_gives_a_report(
    value: float, n_replica: int | None, late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that neither a traceback nor a warning of a package reaches the user. Warnings are errors here."""
    monkeypatch.setattr(page_module, "_MOST_FITS", 1)
    record = garbage(value, n_replica, late)
    summary(record, "AgingMonitor")
    record.to_csv(tmp_path / "table.csv")
    found = report(record, n_bootstrap=10)
    names = {path.stem for path in found.write(tmp_path)}
    assert {"report", "curves", "local_exponent", "loss", "barriers", "distributions", "curvature"} <= names


# ---------------------------------------------------------------------- directories


def test_links_that_lead_in_circles_do_not_stop_the_search(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run" / "glassy"
    written = record_of(np.array([1, 2]), np.array([1, 2])).save(run / "aging_record.npz")
    (run / "loop").symlink_to(".")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (run / "up").symlink_to(tmp_path, target_is_directory=True)
    (run / "aging_record-1.npz").symlink_to("aging_record-1.npz")
    (run / "aging_record-2.npz").symlink_to("is_gone.npz")
    (run / "aging_record-3.npz").mkdir()
    assert find_records([tmp_path]) == [written]
    assert find_records([run / "loop", tmp_path]) == [run / "loop" / written.name]  # the same file, once
    assert cli.main(["show", str(tmp_path)]) == 0
    for arguments in (["report"], ["show"], ["measure", "-o", str(tmp_path / "x.npz"), "y.pt"], ["tensorboard"]):
        capsys.readouterr()
        assert cli.main([*arguments, str(tmp_path / "self")]) == 2
        assert "no such file" in capsys.readouterr().err or arguments == ["tensorboard"]


def test_a_directory_that_cannot_be_read_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    written = record_of(np.array([1, 2]), np.array([1, 2])).save(tmp_path / "run" / "aging_record.npz")
    (tmp_path / "secret").mkdir()
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "secret":  # permissions would not stop root
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert find_records([tmp_path]) == [written]
    assert "secret cannot be read: left out (Permission denied)" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path / "secret")]) == 2
    assert "Permission denied" in capsys.readouterr().err


def test_a_very_deep_directory_does_not_stop_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = record_of(np.array([1, 2]), np.array([1, 2])).save(tmp_path / "aging_record.npz")
    monkeypatch.chdir(tmp_path)
    for _ in range(1500):  # deeper than Python's recursion goes
        Path("d").mkdir()
        os.chdir("d")
    os.chdir(tmp_path)
    try:
        assert find_records([tmp_path]) == [written]
        assert find_records([Path()]) == [Path("aging_record.npz")]
    finally:
        # pytest cannot remove a tree so deep.
        for _ in range(1500):
            os.chdir("d")
        for _ in range(1500):
            os.chdir("..")
            Path("d").rmdir()


# ---------------------------------------------------------------------- optional packages


def _figure() -> object:
    return plotting.new_figure(1)


def _analysis() -> object:
    return import_module("lightning_glassy.analysis")


def _report() -> object:
    return import_module("lightning_glassy.report").report


def _page() -> object:
    return report(record_of(np.array([1, 2]), np.array([1, 2]))).page()


def _xarray() -> object:
    return record_of(np.array([1]), np.array([1])).to_xarray()


def _pandas() -> object:
    return record_of(np.array([1]), np.array([1])).to_pandas()


def _tensorboard() -> object:
    options = cli._parser().parse_args(["tensorboard", "."])
    return options.run(options)


@pytest.mark.parametrize(
    ("package", "extra", "use"),
    [
        ("matplotlib", "plot", _figure),
        ("scipy", "analysis", _analysis),
        ("scipy", "report", _report),
        ("plotly", "report", _page),
        ("xarray", "analysis", _xarray),
        ("pandas", "analysis", _pandas),
        ("tensorboard", "tensorboard", _tensorboard),
    ],
)
def test_a_missing_package_names_the_extra_that_brings_it(
    package: str, extra: str, use: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    tomllib = pytest.importorskip("tomllib")
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    if package == "scipy":
        for name in [name for name in sys.modules if name.startswith("lightning_glassy.analysis")]:
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=re.escape(f"pip install 'lightning-glassy[{extra}]'")):
        use()
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(line.startswith(package) for line in extras[extra])

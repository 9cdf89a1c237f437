"""The registry: an observable is declared once, and everything that shows observables finds it there."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lightning_glassy
from lightning_glassy import AgingRecord, LogTimeSchedule, cli
from lightning_glassy.analysis import aging_exponent, relaxation_curves
from lightning_glassy.loggers.figures import Figures
from lightning_glassy.loggers.sinks import scalars
from lightning_glassy.observables import OBSERVABLES, Observable, Relaxation, registry
from lightning_glassy.plotting import plot_two_time
from lightning_glassy.record.combine import moments_of
from lightning_glassy.report import answers, report
from tests.helpers import PageAnswers


@pytest.fixture
def walk() -> np.ndarray:
    return np.cumsum(np.random.default_rng(1).normal(size=(1001, 40)), axis=0)


@pytest.fixture
def record(walk: np.ndarray) -> AgingRecord:
    return AgingRecord.from_trajectory(walk, LogTimeSchedule.logspaced(1000))


@pytest.fixture
def added() -> Iterator[Callable[[Observable], Observable]]:
    """Register an observable until the end of a test."""
    names = []

    def add(entry: Observable) -> Observable:
        registry.register(entry)
        names.append(entry.name)
        return entry

    yield add
    for name in names:
        del registry._ENTRIES[name]


@pytest.fixture
def fourth_moment(added: Callable[[Observable], Observable]) -> Observable:
    """Register an observable as a user does, by its entry alone."""
    entry = Observable(
        name="fourth_moment",
        title="fourth moment",
        symbol=r"\Delta_4(t_w, t_w+t)",
        formula=lambda d4, n: np.asarray(d4 / n),
        inputs=("d4", "n"),
        log=True,
        relaxation=Relaxation("fourth moment", r"\Delta_4"),
        logged=True,
        drawn=True,
    )
    return added(entry)


@pytest.mark.needs("pandas", "xarray", "plotly")
def test_an_entry_is_all_that_a_new_observable_needs(
    record: AgingRecord, walk: np.ndarray, fourth_moment: Observable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, (i, j) = fourth_moment.name, (list(record.waiting_times).index(10), list(record.lags).index(50))
    values = record.observable(name)
    assert values[i, j] == pytest.approx(np.mean((walk[60] - walk[10]) ** 4), rel=1e-13)
    with record.to_csv(tmp_path / "table.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["waiting_time"], row["lag"]) == ("10", "50")]
    assert float(rows[0][name]) == values[i, j]
    assert np.array_equal(record.to_xarray()[name].values[0], values, equal_nan=True)
    assert name in record.to_pandas()
    assert (f"glassy/{name}/tw_10", 10, 50, values[i, j]) in scalars(record, [(10, 50)], "glassy")
    assert name in dict(Figures("a test").draw(record))
    axes = plot_two_time(record, name)
    assert (axes.get_ylabel(), axes.get_yscale()) == (r"fourth moment $\Delta_4(t_w, t_w+t)$", "log")
    assert np.array_equal(relaxation_curves(record, name).values[0], values[:, record.lags > 0], equal_nan=True)
    assert "from the fourth moment" in str(aging_exponent(record, name))
    found = report(record, observable=name, n_bootstrap=10)
    page = PageAnswers(found.page())
    assert page.content["choice"]["observable"] == name
    assert page.ask("curves", observable=name, group="all") == answers.curves(record, name, "all", None)
    assert page.ask("fits", observable=name, group="all")["aging_exponent"]["estimate"] == found.exponent.estimate
    (told,) = (one for one in answers.observables() if one["name"] == name)
    assert page.observables[name] == told
    assert told == {
        "name": name,
        "title": "Fourth moment",
        "symbol": "Δ_4(t_w, t_w+t)",
        "log": True,
        "has_threshold": False,
        "relaxing": "Δ_4",
        "falls": False,
        "band": "one standard error of the mean over replicas",
    }
    assert name in answers.describe(record)["observables"]
    curves = answers.curves(record, name, "all", None)
    assert curves["values"][i][curves["lags"][i].index(50)] == values[i, j]
    assert answers.fit(found)["aging_exponent"]["estimate"] == found.exponent.estimate
    with pytest.raises(SystemExit):
        cli.main(["report", "--help"])
    assert name in capsys.readouterr().out
    path = record.save(tmp_path / "record.npz")
    assert cli.main(["show", str(path)]) == 0
    assert name in capsys.readouterr().out


@pytest.mark.parametrize("name", OBSERVABLES)
def test_every_observable_is_a_formula_of_named_inputs(name: str) -> None:
    """Use each observable on a record that has everything. Every use gives a matrix, and shows its name."""
    walks = np.cumsum(np.random.default_rng(2).normal(size=(4, 301, 30)), axis=1)
    record = AgingRecord.from_trajectory(walks, LogTimeSchedule.logspaced(300))
    for step in (0, 300):
        record.append_one_time("gradient_noise", step, 2.0)
    entry, values = OBSERVABLES[name], record.observable(name)
    shape = (len(record.waiting_times), len(record.lags))
    assert values.shape == (shape if entry.over_replicas else (4, *shape))
    assert np.isfinite(values).any()
    assert name in record.available()
    assert plot_two_time(record, name).get_ylabel().startswith(entry.title)
    assert answers.curves(record, name, "all", None)["band"] is not None
    assert report(record, observable=name, n_bootstrap=10).to_dict()["observable"] == name
    if entry.error is not None:
        assert record.standard_error(name).shape == values.shape
    if entry.pairwise:
        columns = [column for column, (e, _) in record.columns().items() if e is entry]
        assert columns[0] == (f"{name}_{record.overlap_thresholds[0]:.6g}" if entry.has_threshold else name)
        rows = np.array(record.table(columns=columns)[columns[0]]).reshape(4, -1)
        assert np.array_equal(values[:, np.isfinite(values).all(axis=0)], rows[:, np.isfinite(rows).all(axis=0)])


@pytest.mark.needs("xarray", "plotly")
@pytest.mark.parametrize(
    ("inputs", "over_replicas", "formula"),
    [
        (("d2", "n", "noise"), False, lambda d2, n, noise: d2 / n / noise),
        (("d2", "msd", "lags"), False, lambda d2, msd, lags: d2 / msd + 0 * lags),
        (("count", "overlap"), False, lambda count, overlap: count - overlap),
        (("d2", "n"), True, lambda d2, n: (d2 / n).var(axis=0)),
        (("d2", "msd"), True, lambda d2, msd: (d2 - msd).mean(axis=0)),
    ],
)
def test_a_formula_may_mix_all_kinds_of_inputs(
    added: Callable[[Observable], Observable],
    inputs: tuple[str, ...],
    over_replicas: bool,
    formula: Callable[..., np.ndarray],
) -> None:
    walks = np.cumsum(np.random.default_rng(2).normal(size=(4, 301, 30)), axis=1)
    record = AgingRecord.from_trajectory(walks, LogTimeSchedule([0, 3, 20], [1, 5, 30]))
    for step in (0, 300):
        record.append_one_time("gradient_noise", step, 2.0)
    added(
        Observable(
            name="mixed",
            title="mixed",
            symbol=r"\kappa_\mathrm{mix}",
            formula=formula,
            inputs=inputs,
            over_replicas=over_replicas,
        )
    )
    places = {"d2": record.msd() * 30, "n": 30, "noise": 2.0, "lags": record.lags, "msd": record.msd()}
    places |= {"count": record.overlap() * 30, "overlap": record.overlap()}
    expected = formula(*(places[name] for name in inputs))
    np.testing.assert_allclose(record.observable("mixed"), expected, rtol=1e-13, atol=1e-12)
    assert "mixed" in record.to_xarray()
    assert "mixed" not in record.table()
    assert len(answers.curves(record, "mixed", "all", None)["values"]) == expected.shape[-2]
    page = PageAnswers(report(record, n_bootstrap=10).page())
    assert "mixed" in page.run["observables"]
    assert page.observables["mixed"]["symbol"] == "κ_mix"
    assert page.ask("curves", observable="mixed") == answers.curves(record, "mixed", "all", None)


def test_loggers_cannot_be_promised_more_than_a_pair_of_times() -> None:
    for flags in ({"logged": True}, {"drawn": True}):
        with pytest.raises(ValueError, match="the observable 'another' needs more than one pair of times"):
            registry.register(replace(OBSERVABLES["local_exponent"], name="another", **flags))


def test_an_observable_that_does_not_relax_takes_no_argument_of_an_exponent(record: AgingRecord) -> None:
    for arguments in ({"window": (1, 100)}, {"thresholds": [0.1]}, {"t0": "fit"}):
        with pytest.raises(
            ValueError, match=f"{next(iter(arguments))}=.*: observable='non_gaussian' has no aging exponent"
        ):
            report(record, observable="non_gaussian", **arguments)


@pytest.mark.needs("plotly")
def test_the_page_has_the_measured_lags_of_each_curve_and_no_others() -> None:
    """Checkpoints share hardly any lags. The plane of all times would be a hundred times larger."""
    walk = np.cumsum(np.random.default_rng(6).normal(size=(2000, 20)), axis=0)
    steps = np.unique(np.geomspace(1, 1999, 40).astype(int))
    record = AgingRecord({"all": 20}, overlap_thresholds=[1.0])
    for i, first in enumerate(steps):
        for step in steps[i:]:
            record.append(first, step - first, moments_of(walk[step], walk[first], [1.0], [np.arange(20)]))
    page = PageAnswers(report(record, n_bootstrap=10).page())
    for name in record.available():
        found = page.ask("curves", observable=name, group="all")
        values = record.observable(name)
        for lags, shown, row in zip(found["lags"], found["values"], values, strict=True):
            kept = np.isfinite(row) & (record.lags > 0)  # a logarithmic axis has no lag 0
            assert (lags, shown) == (record.lags[kept].tolist(), row[kept].tolist())
    found = page.ask("curves", observable="msd", group="all")
    assert found["lags"] == [(steps[i + 1 :] - first).tolist() for i, first in enumerate(steps)]
    # The lag to a threshold comes from the analysis, which interpolates to common lags.
    curves = relaxation_curves(record)
    assert found["relaxing"]["lags"] == [curves.lags[np.isfinite(row)].tolist() for row in curves.mean()]


@pytest.mark.needs("plotly")
def test_the_binder_cumulant_is_that_of_the_displacements(
    record: AgingRecord, walk: np.ndarray, tmp_path: Path
) -> None:
    i, j = list(record.waiting_times).index(10), list(record.lags).index(50)
    d = walk[60] - walk[10]
    expected = 1 - np.mean(d**4) / (3 * np.mean(d**2) ** 2)
    assert record.binder_cumulant()[i, j] == pytest.approx(expected, rel=1e-12)
    assert np.array_equal(record.binder_cumulant(), -record.non_gaussian(), equal_nan=True)
    # It is 2/3 if all coordinates move by the same distance. For Gaussian displacements it is 0 +- sqrt(8/(3 N)).
    steps = np.cumsum(np.ones((11, 7)), axis=0)
    rigid = AgingRecord.from_trajectory(steps, LogTimeSchedule([0], [1, 5]))
    assert rigid.binder_cumulant() == pytest.approx(2 / 3)
    many = AgingRecord.from_trajectory(
        np.random.default_rng(0).normal(size=(2, 100_000)).cumsum(axis=0), LogTimeSchedule([0], [1])
    )
    assert abs(many.binder_cumulant()[0, 0]) < 3 * np.sqrt(8 / 3 / 100_000)
    with record.to_csv(tmp_path / "table.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["waiting_time"], row["lag"]) == ("10", "50")]
    assert float(rows[0]["binder_cumulant"]) == record.binder_cumulant()[i, j]
    found = report(record, observable="binder_cumulant")
    assert "no aging exponent: the Binder cumulant does not relax" in str(found)
    written = found.write(tmp_path / "report")
    assert tmp_path / "report" / "curves.png" in written
    page = PageAnswers((tmp_path / "report" / "report.html").read_text())
    assert page.content["choice"]["observable"] == "binder_cumulant"
    assert page.observables["binder_cumulant"]["symbol"] == "U(t_w, t_w+t)"
    assert page.observables["binder_cumulant"]["log"] is False
    assert page.ask("fits", observable="binder_cumulant")["text"] == str(found)


def test_a_name_means_the_same_everywhere(record: AgingRecord) -> None:
    """A correlation is named by its kind. The overlap is Q, and the relaxing observable is 1 - Q."""
    for kind in ("raw", "cosine", "centred", "pearson"):
        drawn = plot_two_time(record, f"correlation_{kind}").get_lines()[3].get_ydata()
        row = record.correlation(kind=kind)[3]
        assert np.array_equal(drawn, row[np.isfinite(row)])
    with pytest.raises(ValueError, match=r"quantity='correlation' is not one of .*'correlation_raw', 'correlation_cos"):
        plot_two_time(record, "correlation")
    positive = record.lags > 0
    curves = relaxation_curves(record, "overlap")
    assert curves.label == "overlap 1 - Q"
    assert np.array_equal(curves.values[0], 1 - record.overlap()[:, positive], equal_nan=True)
    drawn = plot_two_time(record, "overlap")
    assert r"Q_\epsilon" in drawn.get_ylabel()
    row = record.overlap()[3]
    assert np.array_equal(drawn.get_lines()[3].get_ydata(), row[np.isfinite(row)])
    (told,) = (one for one in answers.observables() if one["name"] == "overlap")
    assert (told["symbol"], told["relaxing"], told["falls"]) == ("Q_ε(t_w, t_w+t)", "1 − Q_ε", True)


def test_what_does_not_relax_or_is_not_there_is_refused_by_name(record: AgingRecord) -> None:
    with pytest.raises(
        ValueError, match="observable='non_gaussian' does not relax: choose from 'msd', 'normalised_msd'"
    ):
        aging_exponent(record, "non_gaussian")
    with pytest.raises(ValueError, match="observable='entropy' is not one of 'msd'"):
        report(record, observable="entropy")
    with pytest.raises(ValueError, match=r"eps=0\.1 belongs to the overlap, not to observable='msd'"):
        record.observable("msd", eps=0.1)
    with pytest.raises(TypeError, match="eps='all' is not a number; a group is named by group='all'"):
        record.overlap("all")
    with pytest.raises(ValueError, match="n_replica=None: chi4 is a variance between replicas, and needs at least two"):
        report(record, observable="chi4")
    with pytest.raises(KeyError, match="no one-time series 'gradient_noise'"):
        record.observable("normalised_msd")
    with pytest.raises(ValueError, match="the observable 'msd' is registered already"):
        registry.register(OBSERVABLES["msd"])


@pytest.mark.parametrize("name", ["n", "noise", "d2", "s2", "itself"])
def test_an_observable_cannot_have_the_name_of_an_input(name: str) -> None:
    entry = replace(OBSERVABLES["msd"], name=name, inputs=("itself", "n"))
    with pytest.raises(ValueError, match=f"the observable '{name}' has the name of an input of a formula"):
        registry.register(entry)
    assert name not in OBSERVABLES


@pytest.mark.needs("xarray")
def test_only_the_groups_with_noise_have_the_displacement_over_it(walk: np.ndarray) -> None:
    record = AgingRecord.from_trajectory(walk, LogTimeSchedule([0, 10], [1, 5]), groups={"head": [0, 1]})
    for step in (0, 10):
        record.append_one_time("gradient_noise/head", step, 2.0)
    assert "normalised_msd" in record.available("head")
    assert "normalised_msd" not in record.available()
    dataset = record.to_xarray()
    assert np.isnan(dataset.normalised_msd.sel(group="all")).all()
    assert np.array_equal(dataset.normalised_msd.sel(group="head"), record.msd("head") / 2)
    assert "normalised_msd" in answers.describe(record)["observables"]


def test_no_list_of_observables_is_left_elsewhere() -> None:
    """Names of observables stand in the registry and in the methods of a record.

    The test leaves out the names that the analysis needs for their physics. It leaves out "local_exponent", too,
    because this is also a figure.
    """
    package = Path(lightning_glassy.__file__).parent
    names = set(OBSERVABLES) - {"msd", "normalised_msd", "overlap", "chi4", "local_exponent"}
    for path in [*package.rglob("*.py"), *package.rglob("*.js")]:
        if "observables" in path.parts or path == package / "record" / "record.py":
            continue
        code = re.sub(r'"""[\s\S]*?"""|#.*|//.*', "", path.read_text())
        found = [name for name in names if re.search(rf"[\"'`]{name}[\"'`]", code)]
        assert found == [], path


def test_type_checkers_see_the_public_names() -> None:
    source = Path(lightning_glassy.__file__).read_text()
    pairs = re.findall(r"from lightning_glassy\.([\w.]+) import \w+ as (\w+)", source)
    assert {name: home for home, name in pairs} == lightning_glassy._HOMES
    for name in lightning_glassy.__all__:
        assert getattr(lightning_glassy, name) is not None

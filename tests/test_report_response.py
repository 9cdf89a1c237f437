"""The response to a field in the report, on its page and in the tab."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_glassy import AgingRecord, LogTimeSchedule
from lightning_glassy.analysis import fluctuation_dissipation
from lightning_glassy.record import MOMENTS
from lightning_glassy.record.tables import RESPONSE_TABLE
from lightning_glassy.record.text import plain
from lightning_glassy.report import answers, report
from tests import browser as browsing
from tests.browser import complaints, resize, wait_for
from tests.helpers import PageAnswers
from tests.test_report_browser import File
from tests.test_tab_shows import in_browser
from tests.test_tensorboard_browser import Tab
from tests.test_tensorboard_plugin import Page, slow, write

N, TEMPERATURE, RATIO = 100, 1e-3, 0.4
SCHEDULE = LogTimeSchedule.logspaced(3000, waiting_times_per_decade=1, lags_per_decade=4)


def record_of(seed: int = 0, n_replica: int = 8, **meta: Any) -> AgingRecord:
    """Return weights of constant size with T_eff = T at early lags and T/X at late lags, with 2 % of noise."""
    rng = np.random.default_rng(seed)
    record = AgingRecord({"all": N, "layer": 40}, n_replica=n_replica, meta=meta)
    for waiting_time, lag in SCHEDULE.pairs:
        early = min(lag, 0.1 * waiting_time)
        msd = 1e-3 * (lag / (1 + waiting_time)) ** 0.7 * np.exp(0.02 * rng.normal(size=n_replica)) * (lag > 0)
        slope = (1 + (RATIO - 1) * (1 - (early / max(lag, 1)) ** 0.7)) / TEMPERATURE
        sums = dict.fromkeys(MOMENTS, np.full(n_replica, N)) | {"d2": N * msd, "ws": N * (1 - msd / 2)}
        row = np.stack([sums[name] for name in MOMENTS], axis=-1)
        record.append(waiting_time, lag, np.stack([row, 0.4 * row], axis=1))
        if waiting_time >= 10:
            chi = slope * msd / 2 * np.exp(0.02 * rng.normal(size=n_replica))
            field = np.where(np.arange(n_replica) % 2, 1e-3, 2e-3)
            record.append_response(waiting_time, lag, np.stack([N * field * chi, N * (field * chi) ** 2, field], -1))
    return record


@pytest.fixture(scope="module")
def record() -> AgingRecord:
    return record_of(module="Net", optimizers=[{"name": "Adam"}])


# ---------------------------------------------------------------------- the report


@pytest.mark.needs("plotly")
def test_text_numbers_and_figure_have_the_effective_temperatures(record: AgingRecord, tmp_path: Path) -> None:
    found = report(record, n_bootstrap=10)
    assert str(found.response) in str(found)
    assert "X = 0.40 +- 0.004" in str(found)
    assert "fluctuation_dissipation.png" in {path.name for path in found.write(tmp_path)}
    content = json.loads((tmp_path / "report.json").read_text())["fluctuation_dissipation"]
    expected = fluctuation_dissipation(record)
    assert content["fields"] == [1e-3, 2e-3]
    assert content["waiting_times"] == expected.waiting_times.tolist()
    names = ("name", "waiting_time", "temperature", "temperature_error", "ratio")
    assert [[one[name] for name in names] for one in content["sectors"]] == plain(
        [[getattr(one, name) for name in names] for one in expected.sectors]
    )
    (late,) = [one for one in content["sectors"] if (one["name"], one["waiting_time"]) == ("late", 100)]
    assert abs(late["ratio"] - RATIO) < 5 * late["ratio_error"]
    # The doubts about the response are not doubts about the aging.
    assert any("Adam" in doubt for doubt in content["doubts"])
    assert not set(content["doubts"]) & set(found.doubts)


def test_one_group_and_a_record_without_a_response_have_no_temperature(record: AgingRecord) -> None:
    found = report(record, group="layer", n_bootstrap=10)
    assert found.response is None
    assert found.to_dict()["fluctuation_dissipation"] is None
    assert "fluctuation_dissipation" not in found.figures()
    walk = np.cumsum(np.random.default_rng(0).normal(size=(301, 40)), axis=0)
    bare = AgingRecord.from_trajectory(walk, LogTimeSchedule.logspaced(300))
    assert report(bare, n_bootstrap=10).response is None
    assert answers.response(bare) == {
        **{name: [] for name in ("waiting_times", "lags", "x", "values", "correlation", "sectors", "doubts")},
        "band": None,
        "slope": None,
    }


def test_a_response_that_is_nowhere_finite_costs_neither_the_report_nor_its_figures() -> None:
    record = record_of()
    for pair in record.tables[RESPONSE_TABLE].keys.tolist():
        record.append_response(*pair, np.full((8, 3), np.nan))
    found = report(record, n_bootstrap=10)
    assert found.response is None
    assert "fluctuation_dissipation" not in found.figures()
    assert answers.response(record)["waiting_times"] == []


# ---------------------------------------------------------------------- the answers


@pytest.mark.needs("plotly")
def test_page_and_tab_have_the_curves_and_the_sectors(record: AgingRecord, tmp_path: Path) -> None:
    inside = PageAnswers(report(record, n_bootstrap=10).page())
    (answer,) = [entry["answer"] for entry in inside.content["more"] if entry["path"] == "response"]
    expected, late = fluctuation_dissipation(record), -1
    assert answer["waiting_times"] == expected.waiting_times.tolist()
    there = np.isfinite(expected.response[late]) & (expected.lags > 0)
    assert answer["lags"][late] == expected.lags[there].tolist()
    assert answer["x"][late] == (expected.msd[late, there] / 2).tolist()
    assert answer["values"][late] == expected.response[late, there].tolist()
    low, high = (np.array(answer["band"][edge][late]) for edge in ("low", "high"))
    assert np.allclose((high - low) / 2, expected.response_error[late, there])
    assert np.allclose(answer["correlation"][late], np.nanmean(record.correlation(kind="raw")[:, -1][:, there], axis=0))
    early = [one for one in expected.sectors if one.name == "early"][-1]
    assert answer["slope"] == early.slope
    assert len(answer["sectors"]) == len(expected.sectors)
    assert answer["doubts"] == list(expected.doubts)
    write(tmp_path / "run", record)
    page = Page(slow(tmp_path))
    page.runs()
    (shown,) = page.ask("response", run="run")["series"]
    assert {key: value for key, value in shown.items() if key != "run"} == answer


def test_runs_shown_together_have_the_response_of_all_replicas(tmp_path: Path) -> None:
    records = [record_of(seed, n_replica=4) for seed in (1, 2)]
    for name, record in zip("ab", records, strict=True):
        write(tmp_path / name, record)
    page = Page(slow(tmp_path))
    page.runs()
    (shown,) = page.ask("response", run=["a", "b"], together="1")["series"]
    expected = fluctuation_dissipation(AgingRecord.concat(records))
    assert [one["temperature"] for one in shown["sectors"]] == plain([one.temperature for one in expected.sectors])


def test_both_meanings_of_chi_are_explained() -> None:
    assert "field" in answers.SYMBOLS["χ"]
    assert "susceptibility" in answers.SYMBOLS["χ_4"]
    assert "X" in answers.SYMBOLS
    assert "T_eff" in answers.SYMBOLS


# ---------------------------------------------------------------------- the page


@in_browser
def test_the_card_of_a_file_has_curves_a_line_a_table_and_doubts(
    request: pytest.FixtureRequest, record: AgingRecord, tmp_path: Path
) -> None:
    file = File(request.getfixturevalue("browser"))
    file.browser.switch_to.default_content()
    resize(file.browser, 1280, 800)
    file.browser.get_log("browser")
    file.open(report(record, n_bootstrap=10), tmp_path / "report.html")
    file.drawn("lag,msd,1,over")
    wait_for(lambda: file.find(".card.response").is_displayed())
    expected = fluctuation_dissipation(record)
    curves = [line for line in file.lines("response") if line["named"]]
    assert [len(line["x"]) for line in curves] == [
        int((np.isfinite(row) & (expected.lags > 0)).sum()) for row in expected.response
    ]
    dashed = "return document.querySelector('.response .plot').data.filter((one) => one.line.dash === 'dash')[0]"
    line = file.run(dashed)
    early = [one for one in expected.sectors if one.name == "early"][-1]
    assert np.allclose(np.divide(line["y"], line["x"]), early.slope)
    axes = "const {xaxis, yaxis} = document.querySelector('.response .plot').layout; return [xaxis.type, yaxis.type]"
    assert file.run(axes) == ["log", "log"]
    rows = file.run("return [...document.querySelectorAll('.response tbody tr')].map((one) => one.textContent)")
    assert len(rows) == len(expected.sectors)
    assert all(
        f"{one.first_lag:,} … {one.last_lag:,} {one.name}" in row
        for one, row in zip(expected.sectors, rows, strict=True)
    )
    shown = file.run(
        "return [...document.querySelectorAll('.response .doubts :is(li, p)')].map((one) => one.textContent)"
    )
    assert shown == list(expected.doubts)
    titles = "return [...document.querySelectorAll('.response thead var')].map((one) => one.title)"
    assert all(file.run(titles))
    assert complaints(file.browser) == []


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("runs")
    walk = np.cumsum(np.random.default_rng(0).normal(size=(3001, N)), axis=0)
    write(folder / "bare", AgingRecord.from_trajectory(walk, SCHEDULE))
    for seed, name in enumerate(("one", "two")):
        write(folder / name, record_of(seed))
    with browsing.tensorboard(folder) as started:
        yield started


@in_browser
def test_the_card_of_the_tab_is_hidden_without_a_response_and_compares_runs(request: pytest.FixtureRequest) -> None:
    browser = request.getfixturevalue("browser")
    resize(browser, 1280, 800)
    browser.get_log("browser")
    tab = Tab(browser, request.getfixturevalue("address"))
    tab.open(runs=json.dumps(["bare"]))
    tab.drawn("lag,msd,1,over")
    tab.browser.execute_async_script("setTimeout(arguments[0], 1000)")
    assert not tab.find(".card.response").is_displayed()
    tab.open(runs=json.dumps(["bare", "one", "two"]), layout="side")
    tab.drawn("lag,msd,3,side")
    axes = "Object.keys(document.querySelector('.response .plot')?.layout ?? {}).filter((key) => /^xaxis/.test(key))"
    wait_for(lambda: tab.run(f"return {axes}.length") == 2)
    names = "return [...new Set([...document.querySelectorAll('.response tbody th')].map((one) => one.textContent))]"
    assert tab.run(names) == ["one", "two"]
    tab.open(runs=json.dumps(["one", "two"]), layout="over")
    tab.drawn("lag,msd,2,over")
    dashed = "[...(document.querySelector('.response .plot')?.data ?? [])].filter((one) => one.line.dash === 'dash')"
    colours = wait_for(lambda: tab.run(f"return {dashed}.map((one) => one.line.color)"))
    assert len(set(colours)) == 2
    assert complaints(browser) == []

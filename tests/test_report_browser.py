"""The page of a report as a reader sees it: one file in a real browser, without a server."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_glassy import AgingRecord, LogTimeSchedule
from lightning_glassy.analysis import lag_to_threshold, relaxation_curves, scaled_lag
from lightning_glassy.analysis.exponents import threshold_fit, windowed
from lightning_glassy.observables import OBSERVABLES
from lightning_glassy.record.combine import moments_of
from lightning_glassy.report import Report, report
from tests import browser as browsing
from tests.browser import Shown, assert_curves, complaints, resize, wait_for
from tests.helpers import PageAnswers
from tests.test_headline import CASES, record_of, saturating, subaging

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("plotly"),
    pytest.mark.skipif(not browsing.available(), reason=browsing.MISSING),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's own sockets
]

ODD = "</script><img src=x onerror=document.pwned=1>"


class File(Shown):
    """The page of a report."""

    def open(self, found: Report, path: Path, hash_: str = "") -> None:
        path.write_text(found.page(), encoding="utf-8")
        self.load(path.as_uri() + hash_)

    def load(self, address: str) -> None:
        self.browser.get("about:blank")
        self.browser.get(address)
        wait_for(lambda: self.run("return document.body && document.body.dataset.ready"))

    def fitted(self) -> Any:
        return wait_for(lambda: self.browser.find_elements("css selector", ".use"))


@pytest.fixture
def file(browser: Any) -> Iterator[File]:
    browser.switch_to.default_content()
    browser.get_log("browser")
    resize(browser, 1280, 800)
    shown = File(browser)
    yield shown
    assert complaints(browser) == []
    # The page has asked for nothing, not even for another file.
    assert shown.run("return performance.getEntriesByType('resource').map((entry) => entry.name)") == []
    assert shown.run("return document.pwned || null") is None


@pytest.fixture(scope="module")
def found() -> Report:
    """Return the report of a random walk with hostile names, and with a series and a profile of a user."""
    walk = np.cumsum(np.random.default_rng(1).normal(size=(2001, 100)), axis=0)
    record = AgingRecord.from_trajectory(
        walk,
        LogTimeSchedule.logspaced(2000),
        groups={ODD: range(10)},
        overlap_thresholds=[0.01, 0.1],
        meta={"module": ODD},
    )
    for step in (0, 1, 10, 100, 1000):
        record.append_one_time("weight_norm", step, 1.0 + step)
        record.append_one_time(ODD, step, 2.0)
        record.append_profile(ODD, step, 0, [0.0, 1.0, 2.0], [3.0, 2.0, 1.0 / (1 + step)])
    return report(record)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page") / "report.html"


def test_the_file_shows_the_charts_and_the_findings(file: File, found: Report, path: Path) -> None:
    file.open(found, path)
    record = found.record
    file.drawn("lag,msd,1,over")
    assert_curves(file, record, record.msd())
    assert file.fitted()[0].text.replace("\u2212", "-") == f"{found.exponent.estimate:.3f}"
    assert file.find("h1").text == found.title
    cards = [card.text.split("\n") for card in file.browser.find_elements("css selector", ".answer")]
    assert cards == [list(one) for one in found.headline]
    assert file.find(".words pre").text == str(found)
    assert file.find(".message").text == ""
    # Two lines show S as a function of mu, one for each variable.
    scans = wait_for(lambda: file.lines("fit"))
    assert [len(line["x"]) for line in scans] == [127, 127]
    # All series and profiles of the record are shown. Their names are only text.
    names = "return [...document.querySelectorAll('.{} figure')].map((one) => one.dataset.name)"
    assert wait_for(lambda: file.run(names.format("along"))) == ["weight_norm", ODD]
    (line,) = file.lines("along")
    assert (line["x"], line["y"]) == ([1, 10, 100, 1000], [2.0, 11.0, 101.0, 1001.0])
    assert wait_for(lambda: file.run(names.format("profiles"))) == [ODD]
    assert [line["y"] for line in file.lines("profiles")] == record.profile(ODD).values.tolist()
    assert ODD in file.find(".side").text
    assert file.run("return document.querySelectorAll('img').length") == 0


def test_every_choice_works_without_a_server(file: File, found: Report, path: Path) -> None:
    file.open(found, path)
    record = found.record
    answers = PageAnswers(path.read_text(encoding="utf-8"))
    options = file.browser.find_elements("css selector", "[data-key='observable'] option")
    assert [option.get_attribute("value") for option in options] == record.available()
    for name in record.available():
        file.find(f"[data-key='observable'] option[value='{name}']").click()
        file.drawn(f"lag,{name},1,over")
        fit = answers.ask("fits", observable=name, group="all")
        wait_for(lambda fit=fit: file.find(".words pre").text == fit["text"])
        assert file.find(".message").text == ""
        relaxes = OBSERVABLES[name].relaxation is not None
        exponents = [button.text for button in file.browser.find_elements("css selector", ".use")]
        assert len(exponents) == (fit["aging_exponent"] is not None)
        assert file.find(".card.threshold").is_displayed() == relaxes
    eps = record.overlap_thresholds[1]
    file.find("[data-key='observable'] option[value='overlap']").click()
    file.find(f"[data-key='eps'] option[value='{eps!r}']").click()
    wait_for(lambda: f"{eps:.3g}" in file.find(".curves .formula").text)
    kept = np.isfinite(record.overlap(eps)) & (record.lags > 0)
    shown = [row[mask].tolist() for row, mask in zip(record.overlap(eps), kept, strict=True)]
    assert [line["y"] for line in file.lines()] == shown
    file.browser.find_elements("css selector", ".groups input")[1].click()
    file.drawn("lag,overlap,2,side")
    wait_for(lambda: len(file.browser.find_elements("css selector", ".use")) == 2)
    # The address holds the choice, so a reader can send it with the file.
    address = wait_for(lambda: "groups" in (now := file.run("return location.href")) and now)
    file.load(address)
    file.drawn("lag,overlap,2,side")
    # The last chosen run can be left out. The page then shows the next thing to do.
    file.find(".runs input").click()
    wait_for(lambda: "Choose one or several" in file.find(".nothing").text)


def test_the_sliders_give_the_numbers_of_the_analysis(file: File, found: Report, path: Path) -> None:
    file.open(found, path)
    record, fit = found.record, found.exponent
    used = np.isin(record.waiting_times, fit.waiting_times)
    file.fitted()
    for variable in ("effective", "plain"):
        file.find(f"input[name='x'][value='{variable}']").click()
        for mu in (-0.25, 1.0, 1.3):
            file.set("#mu", mu)
            places = np.full(record.msd().shape, np.nan)
            places[used] = scaled_lag(record.waiting_times[used, None], record.lags, mu, variable)
            wait_for(lambda places=places: file.lines()[0]["x"][0] == pytest.approx(places[used][0, 0]))
            assert_curves(file, record, np.where(np.isfinite(places), record.msd(), np.nan), places)
    assert file.find(".quality").text.startswith("S = ")
    for aim in (20.0, 150.0, 400.0):
        file.set(".threshold .number", aim, "change")
        lags = lag_to_threshold(record.lags[record.lags > 0], record.msd()[:, record.lags > 0], aim).lags[used]
        expected = pytest.approx(lags[np.isfinite(lags)].tolist(), rel=1e-9)
        wait_for(lambda expected=expected: (now := file.lines("threshold")) and now[0]["y"] == expected)
        law = threshold_fit(windowed(relaxation_curves(record), None), aim)
        assert file.lines("threshold")[1]["y"] == pytest.approx(law.line(file.lines("threshold")[1]["x"]), rel=1e-9)
        assert file.find(".slopes b").text.replace("\u2212", "-") == f"{law.mu:.2f}"
    downloads = Path(file.browser.capabilities["chrome"]["userDataDir"]).parent / "downloads"
    file.button("threshold", "CSV").click()
    table = wait_for(lambda: next(downloads.glob("glassy_threshold_lags*.csv"), None))
    rows = list(csv.DictReader(table.open()))
    assert [int(row["waiting_time"]) for row in rows] == fit.waiting_times.tolist()


def test_checkpoints_that_share_no_lags_reach_thresholds_as_in_the_analysis(file: File, tmp_path: Path) -> None:
    walk = np.cumsum(np.random.default_rng(6).normal(size=(1000, 20)), axis=0)
    steps = np.unique(np.geomspace(1, 999, 25).astype(int))
    record = AgingRecord({"all": 20})
    for i, first in enumerate(steps):
        for step in steps[i + 1 :]:
            record.append(first, step - first, moments_of(walk[step], walk[first], [], [np.arange(20)]))
    t0 = 2.0
    found = report(record, n_bootstrap=10, window=(3, 300), t0=t0)
    file.open(found, tmp_path / "report.html")
    file.fitted()
    curves = windowed(relaxation_curves(record), (3, 300), t0)
    for aim in (10.0, 100.0):
        file.set(".threshold .number", aim, "change")
        law = threshold_fit(curves, aim, t0=t0)
        reached = np.isfinite(law.crossings.lags)
        expected = pytest.approx(law.crossings.lags[reached].tolist(), rel=1e-9)
        wait_for(lambda expected=expected: (now := file.lines("threshold")) and now[0]["y"] == expected)
        assert file.lines("threshold")[0]["x"] == (curves.waiting_times + t0)[reached].tolist()
        assert file.find(".slopes b").text.replace("\u2212", "-") == f"{law.mu:.2f}"


def test_the_file_is_readable_in_the_dark_and_on_a_phone(file: File, found: Report, path: Path) -> None:
    file.open(found, path)
    file.drawn("lag,msd,1,over")
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    paper = "return document.querySelector('.curves-plot').layout.paper_bgcolor"
    light = file.run(paper)
    file.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    wait_for(lambda: file.run(paper) != light)
    file.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    resize(file.browser, 390, 844)
    file.load(path.as_uri())
    file.fitted()
    assert file.run("return document.documentElement.scrollWidth <= window.innerWidth")
    # No card lies on another one.
    cards = "[...document.querySelectorAll('.card:not([hidden])')]"
    boxes = file.run(f"return {cards}.map((one) => one.getBoundingClientRect().toJSON())")
    boxes.sort(key=lambda box: box["top"])
    assert all(one["bottom"] <= other["top"] for one, other in itertools.pairwise(boxes))


def test_doubts_are_beside_the_curves_of_every_observable(file: File, tmp_path: Path) -> None:
    walk = np.cumsum(np.random.default_rng(1).normal(size=(201, 100)), axis=0)
    doubts = ["the checkpoints hold averages", ODD]
    record = AgingRecord.from_trajectory(walk, LogTimeSchedule.logspaced(200), meta={"doubts": doubts})
    file.open(report(record, n_bootstrap=10), tmp_path / "page.html")
    shown = "return [...document.querySelectorAll('.doubts li')].map((one) => one.textContent)"
    assert file.run(shown) == doubts


def table(file: File) -> list[str]:
    """Return the lines of the table of exponents."""
    return wait_for(
        lambda: (
            "fitting" not in file.find(".fit table").text
            and [row.text for row in file.browser.find_elements("css selector", ".fit tbody tr")]
        )
    )


@pytest.mark.parametrize("name", ["no collapse", "observables", "no aging"])
def test_an_estimate_that_is_no_headline_has_a_hollow_mark_and_the_sentence(
    file: File, tmp_path: Path, name: str
) -> None:
    found = report(CASES[name][1](16), n_bootstrap=10)
    fit = found.exponent
    file.open(found, tmp_path / "report.html")
    rows = table(file)
    assert f"no headline: {fit.why_not}" in rows
    cards = [card.text.split("\n") for card in file.browser.find_elements("css selector", ".answer")]
    assert ["no aging exponent", fit.why_not] in cards
    assert not [card for card in cards if card[0].startswith("μ")]
    assert len(file.browser.find_elements("css selector", ".mark.hollow")) == 1
    assert f"dashed mark, no headline: {fit.why_not}" in file.find("#mu").get_attribute("title")
    # The button leads to the mark, and S has its minimum there.
    file.fitted()[0].click()
    wait_for(lambda: file.find(".quality").text.startswith("S = "))

    def quality(mu: float) -> float:
        file.set("#mu", mu)
        return float(file.find(".quality").text.removeprefix("S = ").replace(",", ""))

    at = quality(round(fit.estimate / 0.005) * 0.005)
    assert all(quality(fit.estimate + by) > at for by in (-0.3, -0.1, -0.04, 0.04, 0.1, 0.3))


def test_a_headline_has_a_solid_mark_and_the_other_observables_can_be_chosen(file: File, tmp_path: Path) -> None:
    found = report(record_of(subaging, 16, overlap=saturating(0.5)), n_bootstrap=10)
    file.open(found, tmp_path / "report.html")
    rows = table(file)
    labels = ("MSD", "overlap 1 - Q, eps = 0.01", "decorrelation 1 - C")
    assert all(row.startswith(label) for row, label in zip(rows, labels, strict=True))
    assert "not fitted: " in rows[2]
    assert not [row for row in rows if "no headline" in row]
    assert len(file.browser.find_elements("css selector", ".mark:not(.hollow)")) == 1
    assert "solid mark" in file.find("#mu").get_attribute("title")
    file.find(".fit tbody .link").click()
    file.drawn("lag,overlap,1,over")
    wait_for(lambda: table(file)[0].startswith("overlap 1 - Q, eps = 0.01"))
    assert file.find(".fit tbody .link").text == "MSD"


def test_a_value_at_a_bound_of_the_search_is_not_on_the_page(file: File, tmp_path: Path) -> None:
    file.open(report(CASES["bound"][1](1)), tmp_path / "report.html")
    assert [row for row in table(file) if "at the end of the range of exponents" in row]
    assert file.browser.find_elements("css selector", ".use") == []
    assert file.browser.find_elements("css selector", ".mark") == []
    assert file.find(".fitted").get_attribute("disabled")
    file.find("input[name='x'][value='effective']").click()
    file.drawn("effective,msd,1,over")


def test_a_short_record_has_one_sentence_instead_of_a_table(file: File, tmp_path: Path) -> None:
    file.open(report(CASES["short"][1](16), n_bootstrap=10), tmp_path / "report.html")
    (row,) = table(file)
    assert "too short for an exponent: 5 waiting times span 1.0 decades" in row
    assert file.browser.find_elements("css selector", ".use, .mark") == []

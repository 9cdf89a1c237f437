"""The tab Glassy as a reader sees it: a real TensorBoard over a real training, in a real browser."""

from __future__ import annotations

import contextlib
import csv
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_glassy import AgingMonitor, AgingRecord
from lightning_glassy.analysis import aging_exponent, lag_to_threshold, scaled_lag
from lightning_glassy.loggers import tensorboard as sink_module
from lightning_glassy.observables import OBSERVABLES
from tests import browser as browsing
from tests.browser import Shown, assert_curves, complaints, open_tab, resize, wait_for
from tests.helpers import SmallNet, data, quiet_trainer
from tests.test_report import record_of
from tests.test_tensorboard_plugin import parts_of, write, write_parts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not browsing.available(), reason=browsing.MISSING),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's own sockets
]

ODD = "<img src=x onerror=document.pwned=1>"


def trained(folder: Path, **options: Any) -> tuple[AgingRecord, str]:
    logger, monitor = TensorBoardLogger(folder, name="digits"), AgingMonitor(groups="layer", summary=False)
    callbacks = [*options.pop("callbacks", []), monitor]
    quiet_trainer(folder, callbacks=callbacks, logger=logger, **options).fit(SmallNet(), data())
    return monitor.record, f"digits/{Path(logger.log_dir).name}"


class Tab(Shown):
    """The page in TensorBoard."""

    def __init__(self, browser: Any, address: str) -> None:
        super().__init__(browser)
        self.address = address

    def open(self, query: str = "", **state: Any) -> None:
        hash_ = "".join(f"&p.glassy.{key}={quote(str(value))}" for key, value in state.items())
        open_tab(self.browser, f"{self.address}{query}#glassy{hash_}")


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AgingRecord, str]:
    folder = tmp_path_factory.mktemp("runs")
    return folder, *trained(folder, max_steps=1500)


@pytest.fixture(scope="module")
def address(training: tuple[Path, AgingRecord, str]) -> Iterator[str]:
    write(training[0] / ODD, record_of(module=ODD))
    # The tab is behind a prefix, as on a server with many services.
    with browsing.tensorboard(training[0], "--path_prefix", "/of/many") as started:
        yield started


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Tab]:
    browser.get_log("browser")
    resize(browser, 1280, 800)
    yield Tab(browser, address)
    assert complaints(browser) == []


@contextlib.contextmanager
def own_tab(browser: Any, *arguments: object) -> Iterator[Tab]:
    """Yield the tab of a separate TensorBoard."""
    browser.get_log("browser")
    with browsing.tensorboard(*arguments) as address:
        yield Tab(browser, address)
        assert complaints(browser) == []
        browser.get("about:blank")  # no more requests to a stopped server


def test_the_tab_shows_the_curves_of_a_training(tab: Tab, training: tuple[Path, AgingRecord, str]) -> None:
    _, record, name = training
    tab.open(runs=json.dumps([name]))
    tab.drawn("lag,msd,1,over")
    assert tab.run("return window.parent.location.pathname") == "/of/many/"
    assert tab.find(".curves h2").text == "Mean squared displacement"
    assert len(record.waiting_times) > 8
    assert_curves(tab, record, record.msd())

    tab.find("option[value='decorrelation']").click()
    tab.drawn("lag,decorrelation,1,over")
    assert_curves(tab, record, record.decorrelation())
    tab.find("[data-key='group net.0']").click()
    tab.drawn("lag,decorrelation,2,side")
    assert len(tab.lines()) == 2 * len(record.waiting_times)
    assert tab.lines()[-1]["y"] == [v for v in record.decorrelation("net.0")[-1] if np.isfinite(v)]

    # A chip hides its curve, and the address remembers all of it.
    chip = tab.find(".chip[data-time='1000']")
    chip.send_keys(" ")
    wait_for(lambda: len(tab.lines()) == 2 * len(record.waiting_times) - 2)
    before = wait_for(lambda: "hidden=" in (found := tab.hash()) and found)
    tab.browser.switch_to.default_content()
    open_tab(tab.browser, tab.address + before)
    tab.drawn("lag,decorrelation,2,side")
    assert len(tab.lines()) == 2 * len(record.waiting_times) - 2
    assert tab.hash() == before

    # All series of the record are shown along the run, here the learning rate.
    (line,) = wait_for(lambda: tab.lines("along"))
    steps, rates = record.one_time("learning_rate")
    assert (line["x"], line["y"]) == (steps[steps > 0].tolist(), rates[steps > 0].tolist())


def test_the_server_says_which_observables_there_are_and_how_they_look(
    tab: Tab, training: tuple[Path, AgingRecord, str]
) -> None:
    """The list has the observables of the registry that the record has. The page itself has no list."""
    _, record, name = training
    tab.open(runs=json.dumps([name]), observable="binder_cumulant")
    tab.drawn("lag,binder_cumulant,1,over")
    options = tab.browser.find_elements("css selector", "[data-key='observable'] option")
    assert [option.get_attribute("value") for option in options] == record.available()
    titles = {name: entry.title[0].upper() + entry.title[1:] for name, entry in OBSERVABLES.items()}
    assert [option.text for option in options] == [titles[name] for name in record.available()]
    assert tab.find(".curves h2").text == "Binder cumulant"
    assert tab.find(".curves .formula").text.startswith("U(tw, tw+t), one curve per waiting time tw")
    axis = "return document.querySelector('.curves .plot').layout.yaxis"
    assert tab.run(f"return ({axis.removeprefix('return ')}).title.text") == (
        "<i>U</i>(<i>t</i><sub>w</sub>, <i>t</i><sub>w</sub>+<i>t</i>)"
    )
    assert tab.run(f"{axis}.type") == "linear"
    for line, row in zip(tab.lines(), record.binder_cumulant(), strict=True):
        good = np.isfinite(row) & (record.lags > 0)
        assert (line["x"], line["y"]) == (record.lags[good].tolist(), row[good].tolist())
    # This observable does not relax, so it has no exponent, and no threshold to reach.
    assert not tab.find(".card.threshold").is_displayed()
    wait_for(lambda: "it has no lag to a threshold" in tab.find(".fit table").text)
    assert not tab.find(".scan-plot").is_displayed()
    for name in record.available():
        tab.find(f"[data-key='observable'] option[value='{name}']").click()
        tab.drawn(f"lag,{name},1,over")
        assert tab.find(".curves h2").text == titles[name]
        assert tab.find(".message").text == ""


def test_the_slider_collapses_the_curves_with_the_exponent_it_shows(
    tab: Tab, training: tuple[Path, AgingRecord, str]
) -> None:
    _, record, name = training
    fit = aging_exponent(record)
    tab.open(runs=json.dumps([name]))
    fitted = wait_for(lambda: [b for b in tab.browser.find_elements("css selector", ".fitted") if b.is_enabled()])
    wait_for(lambda: tab.browser.find_elements("css selector", ".use"))
    assert tab.find(".use").text.replace("\u2212", "-") == f"{fit.estimate:.3f}"
    assert len(tab.browser.find_elements("css selector", ".marks .mark")) == 1

    def places(mu: float) -> np.ndarray:
        result = np.full(record.msd().shape, np.nan)
        used = (record.waiting_times >= fit.window[0]) & (record.waiting_times <= fit.window[1])
        result[used] = scaled_lag(record.waiting_times[used, None], record.lags, mu, fit.variable)
        return result

    def shown(mu: float) -> np.ndarray:
        return np.where(np.isfinite(places(mu)), record.msd(), np.nan)

    fitted[0].click()
    tab.drawn(f"{fit.variable},msd,1,over")
    assert_curves(tab, record, shown(fit.estimate), places(fit.estimate))
    quality = tab.find(".quality").text

    # The arrow keys move the slider, and the curves with it.
    slider = tab.find("#mu")
    slider.send_keys("\ue014" * 40)  # arrow right
    mu = float(slider.get_attribute("value"))
    assert mu > fit.estimate + 0.1
    wait_for(lambda: f"p.glassy.mu={mu:g}" in tab.hash())
    wait_for(lambda: tab.lines()[-1]["x"][0] == pytest.approx(places(mu)[-1][0]))
    assert_curves(tab, record, shown(mu), places(mu))
    assert tab.find(".quality").text != quality

    # They move the axis, too, which keeps the focus.
    tab.find("input[name='x']:checked").send_keys("\ue012" * (1 if fit.variable == "plain" else 2))  # arrow left
    wait_for(lambda: tab.run("return document.activeElement.value + document.activeElement.checked") == "lagtrue")
    tab.drawn("lag,msd,1,over")
    assert_curves(tab, record, record.msd())


def test_the_threshold_is_dragged_and_typed(tab: Tab, training: tuple[Path, AgingRecord, str]) -> None:
    _, record, name = training
    tab.open(runs=json.dumps([name]))
    box = wait_for(lambda: (found := tab.find(".threshold .number")).get_attribute("value") and found)
    middle = float(np.nanmedian(record.msd()[4:]))
    tab.run("arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change'))", box, f"{middle:.3g}")
    aim = float(f"{middle:.3g}")

    def crossings() -> Any:
        found = lag_to_threshold(record.lags[record.lags > 0], record.msd()[:, record.lags > 0], aim).lags
        used = record.waiting_times >= aging_exponent(record).window[0]
        return pytest.approx(found[used & np.isfinite(found)].tolist(), rel=1e-9)

    wait_for(lambda: tab.lines("threshold") and tab.lines("threshold")[0]["y"] == crossings())
    shape = "return document.querySelector('.curves-plot').layout.shapes[0].y0"
    wait_for(lambda: tab.run(shape) == aim)

    # Drag the line on the chart upwards with the mouse.
    from selenium.webdriver import ActionChains

    line = wait_for(lambda: tab.find(".curves-plot .shapelayer path"))
    ActionChains(tab.browser).move_to_element(line).click_and_hold().move_by_offset(0, -40).release().perform()
    wait_for(lambda: tab.run(shape) != aim)
    aim = float(tab.find(".threshold .number").get_attribute("value"))
    assert aim > middle
    wait_for(lambda: tab.lines("threshold") and tab.lines("threshold")[0]["y"] == crossings())


def test_pictures_and_numbers_are_exported(tab: Tab, training: tuple[Path, AgingRecord, str]) -> None:
    _, record, name = training
    downloads = Path(tab.browser.capabilities["chrome"]["userDataDir"]).parent / "downloads"
    tab.open(runs=json.dumps([name]))
    tab.drawn("lag,msd,1,over")
    for format_ in ("PNG", "SVG", "CSV"):
        tab.button("curves", format_).click()
    stem = downloads / "glassy_mean_squared_displacement"
    for suffix in (".png", ".svg", ".csv"):
        wait_for(lambda suffix=suffix: stem.with_suffix(suffix).exists())
    assert stem.with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert stem.with_suffix(".png").stat().st_size > 20_000
    svg = stem.with_suffix(".svg").read_text()
    assert svg.startswith("<svg")
    assert svg.count("js-line") == len(record.waiting_times)
    rows = list(csv.DictReader(stem.with_suffix(".csv").open()))
    waiting_times, lags = record.pairs
    assert [(int(row["waiting_time"]), int(row["lag"])) for row in rows] == list(zip(waiting_times, lags, strict=True))
    assert [float(row["msd"]) for row in rows] == record.msd()[np.isfinite(record.msd())].tolist()
    assert {row["run"] for row in rows} == {name}


def test_names_are_text_wherever_they_are_shown(tab: Tab) -> None:
    tab.open(groups=json.dumps(["all", "<b>layer</b>"]))
    tab.drawn("lag,msd,3,side")
    titles = tab.run("return [...document.querySelectorAll('.curves-plot .annotation-text')].map((e) => e.textContent)")
    assert ODD in titles
    assert f"{ODD} · <b>layer</b>" in titles
    assert ODD in tab.find(".runs").text
    wait_for(lambda: ODD in tab.find(".fit table").text)
    tab.run("Plotly.Fx.hover(document.querySelector('.curves-plot'), [{curveNumber: 0, pointNumber: 3}], 'xy')")
    hover = wait_for(lambda: tab.find(".curves-plot .hovertext").get_attribute("textContent"))
    assert hover.startswith(ODD)
    assert tab.run("return document.querySelectorAll('img, b.layer').length") == 0
    assert tab.run("return document.pwned || window.parent.document.pwned || null") is None


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_it_is_readable_in_light_and_dark_on_a_desk_and_on_a_phone(tab: Tab, width: int, height: int) -> None:
    resize(tab.browser, width, height)
    tab.open()
    tab.drawn("lag,msd,2,side")
    assert tab.run("return document.documentElement.scrollWidth <= window.innerWidth")
    for element in tab.browser.find_elements("css selector", ".card, .plot, .chip"):
        if element.is_displayed():
            assert element.rect["x"] >= 0
            assert element.rect["x"] + element.rect["width"] <= width
    # Do the same as TensorBoard's button for the dark theme.
    light = tab.run("return document.querySelector('.curves-plot').layout.paper_bgcolor")
    tab.run("window.parent.document.body.classList.add('dark-mode')")
    wait_for(lambda: tab.run("return document.querySelector('.curves-plot').layout.paper_bgcolor") != light)
    assert tab.run("return document.documentElement.dataset.theme") == "dark"
    tab.run("window.parent.document.body.classList.remove('dark-mode')")
    wait_for(lambda: tab.run("return document.querySelector('.curves-plot').layout.paper_bgcolor") == light)


class Pause(Callback):
    """Stops a training at some steps until a test lets it go on."""

    def __init__(self, *steps: int) -> None:
        self.gates = {step: threading.Event() for step in steps}

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step in self.gates:
            assert self.gates[trainer.global_step].wait(120)


def test_a_series_and_a_profile_of_anybody_are_drawn_and_an_error_with_its_series(browser: Any, tmp_path: Path) -> None:
    record = record_of()
    for step in (0, 1, 10, 100):
        record.append_one_time("flat_fraction", step, 0.5 + step / 1000)
    for step in (1, 10):
        record.append_one_time("flat_fraction_error", step, step / 100)
    record.append_one_time("alone_error", 10, 1.0)
    record.append_one_time("weight_norm", 10, 3.0)
    record.append_profile("singular_values", 10, 5, [1.0, 2.0], [7.0, 8.0])
    write(tmp_path / "run", record)
    with own_tab(browser, tmp_path) as tab:
        tab.open(runs=json.dumps(["run"]))
        names = "return [...document.querySelectorAll('.along figure')].map((one) => one.dataset.name)"
        assert wait_for(lambda: tab.run(names)) == ["flat_fraction", "alone_error", "weight_norm"]
        drawn = "return document.querySelector(`.along figure[data-name='flat_fraction'] .plot`)?.data?.[0]"
        line = wait_for(lambda: tab.run(drawn))
        assert line["y"] == [0.501, 0.51, 0.6]  # after step 0
        assert line["error_y"]["array"] == [0.01, 0.1, 0]
        (line,) = wait_for(lambda: tab.lines("profiles"))
        assert (line["x"], line["y"]) == ([1.0, 2.0], [7.0, 8.0])
        assert line["named"][0] == ["run", "10", "5"]


def test_names_that_every_object_has_are_series_of_one_run_alone_and_lost_parts_are_told(
    browser: Any, tmp_path: Path
) -> None:
    names = ["constructor", "__proto__", "toString", "hasOwnProperty", "weight_norm"]
    odd, plain = record_of(), record_of(seed=1)
    for i, name in enumerate(names):
        odd.append_one_time(name, 10, float(i))
        odd.append_profile(name, 10, 5, [1.0, 2.0], [float(i), 8.0])
    plain.append_one_time("weight_norm", 10, 9.0)
    plain.append_profile("weight_norm", 10, 5, [1.0, 2.0], [9.0, 8.0])
    write(tmp_path / "odd", odd)
    write(tmp_path / "plain", plain)
    _, content = parts_of(5)
    write_parts(tmp_path / "torn", {0: content[0], 2: content[2]})
    with own_tab(browser, tmp_path) as tab:
        tab.open()
        shown = "return [...document.querySelectorAll('.{} figure')].map((one) => one.dataset.name)"
        first = (
            "return [...document.querySelectorAll('.{} figure')].map((one) => one.querySelector('.plot').data[0].y[0])"
        )
        for card in ("along", "profiles"):
            assert wait_for(lambda card=card: len(tab.run(shown.format(card))) >= 5)
            found = dict(zip(tab.run(shown.format(card)), tab.run(first.format(card)), strict=True))
            assert {name: found[name] for name in names} == {name: float(i) for i, name in enumerate(names)}
        message = tab.find(".message").text
        assert message.startswith("torn: 1 of 3 parts of the record are missing or damaged in the event files")
        assert message.count("\n") == 0


def test_a_running_training_grows_on_the_page(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start from an empty page with TensorBoard's slow loading. Use the page's own refresh and the Reload button."""
    monkeypatch.setattr(sink_module, "_SECONDS", 0.0)
    pause, records = Pause(150, 300), []
    thread = threading.Thread(
        target=lambda: records.append(trained(tmp_path, max_steps=600, callbacks=[pause])[0]), daemon=True
    )
    options = ("--load_fast", "false", "--reload_interval", "1")
    with own_tab(browser, tmp_path, *options) as tab:
        tab.open()
        assert "No aging curves here yet" in tab.find(".nothing").text
        assert "AgingMonitor()" in tab.find(".nothing pre").text
        thread.start()
        steps = (
            "const number = (text) => Number(text.replace(/,/g, ''));"
            "const lines = [...document.querySelector('.curves-plot').data ?? []];"
            "return Math.max(0, ...lines.flatMap((line) => line.customdata.map((d) => number(d[1]) + number(d[2]))))"
        )
        wait_for(lambda: 100 < tab.run(steps) <= 150)  # by itself
        pause.gates[150].set()
        wait_for(lambda: 150 < tab.run(steps) <= 300)
        # A hidden page sends no requests, so only the button is left.
        tab.run("Object.defineProperty(document, 'hidden', {get: () => true})")
        pause.gates[300].set()
        thread.join(60)
        (record,) = records
        tab.browser.switch_to.default_content()
        reload = tab.browser.find_element("css selector", "app-header-reload button, button[title*='eload']")

        def reloaded() -> bool:
            tab.browser.switch_to.default_content()
            reload.click()
            tab.browser.switch_to.frame(tab.find("iframe"))
            return bool(tab.run(steps) == max(np.add(*record.pairs)))

        # Reload until all of it is there, because the server may have read only a part at the first request.
        wait_for(reloaded)
        assert_curves(tab, record, record.msd())

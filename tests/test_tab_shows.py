"""Contents of the tab besides the curves: groups, distributions, the scalars of the user, and plain words."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from lightning_glassy import AgingRecord, LogTimeSchedule
from lightning_glassy.analysis import aging_by_group, aging_exponent, heterogeneity, loss_regimes, noise_clock
from lightning_glassy.analysis.words import doubts_of
from lightning_glassy.loggers.tensorboard import TensorBoardSink
from lightning_glassy.report import report
from tests import browser as browsing
from tests.browser import complaints, resize, wait_for
from tests.helpers import PageAnswers
from tests.test_tensorboard_browser import Tab
from tests.test_tensorboard_plugin import Page, slow


def in_browser(test: Any) -> Any:
    """Mark a test that needs a browser."""
    for mark in (
        pytest.mark.slow,
        pytest.mark.skipif(not browsing.available(), reason=browsing.MISSING),
        pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's own sockets
    ):
        test = mark(test)
    return test


T = 2000


def made(size: float = 1.0, seed: int = 0, n: int = 120, n_replica: int | None = None) -> AgingRecord:
    """Return a slowing walk of weights of a given size, with groups, noise, distributions, a loss and thresholds."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(n_replica or 1, T, n)) * np.arange(1, T + 1)[:, None] ** -0.25 * 0.01
    start = rng.normal(size=(n_replica or 1, 1, n))
    walks = size * np.cumsum(np.concatenate([start, steps], axis=1), axis=1)
    groups = {f"layer.{i}.{kind}": range(10 * i, 10 * i + 10) for i in range(10) for kind in ("weight", "bias")}
    record = AgingRecord.from_trajectory(
        walks if n_replica else walks[0],
        LogTimeSchedule.logspaced(T),
        groups=groups,
        overlap_thresholds=(0.005 * size, 0.05 * size),
    )
    record.meta["steps_per_epoch"] = 100
    for step in (0, 1, 3, 10, 30, 100, 300, 1000, T):
        record.append_one_time("gradient_noise", step, 1.0 / (1 + step))
        record.append_one_time("train_loss", step, 0.1 + 2.2 / (1 + (step / 30) ** 2))
    edges = np.linspace(-4, 4, 33)
    for waiting_time in (1, 10, 100):
        for lag in (1, 10, 100, 1000):
            counts = np.histogram(rng.normal(size=1000), [-np.inf, *edges, np.inf])[0]
            record.append_profile("displacement", waiting_time, lag, edges, counts)
            record.append_profile("loss_path", waiting_time, lag, [0.0, 0.5, 1.0], [1.0, 1.0 + lag / 1000, 0.5])
        record.append_profile("weights", waiting_time, 0, edges, counts)
    return record


def write(folder: Path, record: AgingRecord) -> None:
    """Write a record, and scalars of the user beside it."""
    writer = SummaryWriter(folder)
    TensorBoardSink(SimpleNamespace(experiment=writer, log_dir=str(folder)), "glassy").update(record, [], T)
    for step in range(0, T, 50):
        writer.add_scalar("val_loss", 2.0 / (1 + step), step)
        writer.add_scalar("epoch", step // 100, step)
        writer.add_scalar("lr-SGD", 0.1, step)
        writer.add_scalar("glassy/moved_percent", 1.0, step)
        writer.add_scalar("glassy_series/train_loss", 1.0, step)
    writer.add_scalar("broken", float("nan"), 7)
    writer.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, AgingRecord]]:
    folder = tmp_path_factory.mktemp("runs")
    records = {"large": made(30.0, seed=1), "small": made(), "tiny": made(n=110)}
    for name, record in records.items():
        write(folder / name, record)
    return folder, records


# ---------------------------------------------------------------------- the answers


def test_the_answers_are_those_of_the_analysis(runs: tuple[Path, dict[str, AgingRecord]]) -> None:
    folder, records = runs
    page, record = Page(slow(folder)), records["small"]
    page.runs()
    (answer,) = page.ask("groups", run="small", group="all", observable="msd")["series"]
    found = aging_by_group(record)
    rates = {row["group"]: row["rate"] for row in answer["rows"]}
    assert rates == {row.group: [row.rate.rate, row.rate.low, row.rate.high] for row in (found.whole, *found.rows)}
    assert answer["waiting_times"] == found.waiting_times.tolist()
    assert answer["n_groups"] == 20
    (answer,) = page.ask("noise", run="small", group="all")["series"]
    clock = noise_clock(record, "all")
    assert answer["clock"][4] == clock[4][np.isfinite(clock[4]) & (record.lags > 0)].tolist()
    (answer,) = page.ask("regimes", run="small")["series"]
    regimes = loss_regimes(record)
    assert answer["fitted"] == regimes.fitted.tolist()
    assert [one["step"] for one in answer["crossovers"]] == [
        at for at in (regimes.falls_from, regimes.bottom_from) if at is not None
    ]
    (described,) = [run for run in page.ask("runs")["runs"] if run["name"] == "small"]
    assert described["rms_weight"]["all"] == record.rms_weight()
    assert described["steps_per_epoch"] == 100
    fit = report(record)
    (answer,) = page.ask("fits", run="small", group="all", observable="msd")["series"]
    assert (answer["words"], answer["confidence"], answer["doubts"]) == (fit.words, fit.confidence, fit.doubts)


def test_the_scalars_of_the_user_are_there_and_ours_are_not(runs: tuple[Path, dict[str, AgingRecord]]) -> None:
    page = Page(slow(runs[0]))
    page.runs()
    first, _ = page.ask("scalars", run=["small", "large"])["series"]
    assert list(first["one_time"]) == ["val_loss", "broken", "lr-SGD"]
    assert first["one_time"]["val_loss"]["steps"] == list(range(0, T, 50))
    assert first["one_time"]["val_loss"]["values"][1] == pytest.approx(2 / 51, rel=1e-6)
    assert first["one_time"]["broken"]["values"] == [None]
    assert page.get("scalars", run="small", group="all").status_code == 400


def test_replicas_that_were_compared_have_the_distribution_of_their_overlap() -> None:
    record = made(n_replica=5)
    for step in (0, 100, T):
        matrix = np.full((5, 5), 0.3) + 0.7 * np.eye(5)
        record.append_between("weight_product", step, 120 * matrix)
        record.append_between("weight_distance", step, 240 * (1 - matrix))
    inside = PageAnswers(report(record, n_bootstrap=10).page())
    found = heterogeneity(record)
    assert len(found.steps) == 3
    (answer,) = [entry["answer"] for entry in inside.content["more"] if entry["path"] == "replicas"]
    assert answer["steps"] == found.steps.tolist()
    assert answer["mean"] == pytest.approx(found.overlaps.mean(axis=1).tolist())
    width = answer["grid"][1] - answer["grid"][0]
    assert sum(answer["density"]) * width == pytest.approx(1)
    paths = {entry["path"] for entry in inside.content["more"]}
    assert paths == {"noise", "replicas", "regimes", "groups"}
    (groups,) = [entry["answer"] for entry in inside.content["more"] if entry["path"] == "groups"]
    rows = aging_by_group(record)
    assert [row["mu"] for row in groups["rows"]] == [row.mu for row in (rows.whole, *rows.rows)]


# ---------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def address(runs: tuple[Path, dict[str, AgingRecord]]) -> Iterator[str]:
    with browsing.tensorboard(runs[0]) as started:
        yield started


@pytest.fixture
def tab(request: pytest.FixtureRequest) -> Iterator[Tab]:
    browser = request.getfixturevalue("browser")
    browser.get_log("browser")
    resize(browser, 1280, 800)
    shown = Tab(browser, request.getfixturevalue("address"))
    yield shown
    with contextlib.suppress(Exception):
        browser.get("about:blank")
    assert [words for words in complaints(browser) if "status of 400" not in words] == []


def texts(tab: Tab, selector: str) -> list[str]:
    return tab.run(f"return [...document.querySelectorAll(`{selector}`)].map((one) => one.textContent)")


def visible(tab: Tab, selector: str) -> bool:
    return bool(tab.run(f"return (document.querySelector(`{selector}`)?.offsetHeight ?? 0) > 0"))


@in_browser
def test_runs_that_are_no_replicas_are_told_in_the_words_of_the_server(tab: Tab) -> None:
    tab.open(runs=json.dumps(["small", "tiny"]), layout="together")
    message = wait_for(lambda: tab.find(".message").text)
    assert message.startswith("these runs are not replicas of each other: ")
    assert "120 and 110" in message or "110 and 120" in message
    assert not visible(tab, ".card.curves")
    # No later part of the page has replaced the sentence by another error.
    tab.browser.execute_async_script("setTimeout(arguments[0], 1000)")
    assert tab.find(".message").text == message
    # Back in the other layout, the runs can be shown side by side.
    tab.run("document.querySelector(`[data-key='layout side']`).click()")
    tab.drawn("lag,msd,2,side")
    assert visible(tab, ".card.curves")
    assert not tab.find(".message").is_displayed()


@in_browser
def test_overlaps_of_networks_of_different_size_are_shown_at_comparable_thresholds(
    tab: Tab, runs: tuple[Path, dict[str, AgingRecord]]
) -> None:
    records = runs[1]
    tab.open(runs=json.dumps(["large", "small"]), observable="overlap", layout="side")
    tab.drawn("lag,overlap,2,side")
    shown = [line["y"] for line in tab.lines()]
    expected = [
        row[np.isfinite(row)].tolist()
        for name, eps in (("large", 0.15), ("small", 0.005))
        for row in records[name].overlap(eps)
    ]
    assert shown == expected
    formula = tab.find(".curves .formula").text
    for name, eps in (("large", 0.15), ("small", 0.005)):
        assert f"{name}: ε = {eps} = {100 * eps / records[name].rms_weight():.2g} % of the rms weight" in formula


@in_browser
def test_groups_are_filtered_chosen_together_and_seen_in_one_map(
    tab: Tab, runs: tuple[Path, dict[str, AgingRecord]]
) -> None:
    record = runs[1]["small"]
    tab.open(runs=json.dumps(["small"]))
    tab.drawn("lag,msd,1,over")
    heat = "return document.querySelector('.by-group .plot')?.data?.[0]?.z?.length ?? 0"
    wait_for(lambda: tab.run(heat) == 21)
    tab.set("[data-key='group filter']", "layer.3")
    items = "[...document.querySelectorAll('.groups li')]"
    assert tab.run(f"return {items}.filter((one) => !one.hidden).map((one) => one.dataset.name)") == [
        "layer.3.weight",
        "layer.3.bias",
    ]

    def press(text: str) -> None:
        tab.run(f"document.querySelector(`[data-key='groups {text}']`).click()")

    def chosen() -> list[str]:
        return tab.run(f"return {items}.filter((one) => one.querySelector(':checked')).map((one) => one.dataset.name)")

    press("all")
    tab.drawn("lag,msd,2,side")
    assert chosen() == ["layer.3.weight", "layer.3.bias"]
    tab.set("[data-key='group filter']", "")
    press("weights only")
    tab.drawn("lag,msd,10,over")
    assert chosen() == [f"layer.{i}.weight" for i in range(10)]
    press("none")
    tab.drawn("lag,msd,1,over")
    assert chosen() == ["all"]

    # The table is sorted by the rate, and by a pressed column.
    rows = aging_by_group(record)
    column = "return [...document.querySelectorAll('.by-group tbody th')].map((one) => one.textContent)"
    wait_for(lambda: len(tab.run(column)) == 21)
    order = sorted((rows.whole, *rows.rows), key=lambda row: -row.rate.rate)
    assert tab.run(column)[:3] == [row.group for row in order[:3]]
    tab.run("document.querySelectorAll('.by-group thead button')[0].click()")
    assert tab.run(column)[:3] == ["all", "layer.0.bias", "layer.0.weight"]
    # The exponents are fitted on demand.
    tab.run("[...document.querySelectorAll('.by-group .fitted')][0].click()")
    cells = "return [...document.querySelectorAll('.by-group tbody tr')].map((one) => one.children[3].textContent)"
    wait_for(lambda: "–" not in tab.run(cells), 120)
    fit = aging_exponent(record)
    assert tab.run(cells)[0] == ("none" if fit.mu is None else f"{fit.mu:.2f}")


@in_browser
def test_the_losses_of_the_user_stand_on_the_axis_of_the_record(tab: Tab) -> None:
    tab.open(runs=json.dumps(["small"]))
    names = "return [...document.querySelectorAll('.along figure')].map((one) => one.dataset.name)"
    assert "val_loss" in wait_for(lambda: tab.run(names))
    assert not [name for name in tab.run(names) if "moved" in name or "series" in name]
    drawn = "return document.querySelector(`.along figure[data-name='val_loss'] .plot`).data[0]"
    line = wait_for(lambda: tab.run(drawn))
    assert line["x"] == list(range(50, T, 50))
    axis = "return document.querySelector(`.along figure[data-name='val_loss'] .plot`).layout.xaxis.type"
    assert tab.run(axis) == "log"
    # The regimes of the training loss are drawn with it.
    dashed = "return document.querySelector(`.along figure[data-name='train_loss'] .plot`).data.length"
    assert wait_for(lambda: tab.run(dashed) == 2)
    caption = "return document.querySelector(`.along figure[data-name='train_loss'] figcaption`)"
    assert tab.run(f"{caption}.scrollWidth <= {caption[7:]}.clientWidth")
    assert "at step 0: 2.3" in tab.run(f"{caption}.textContent")


@in_browser
def test_distributions_follow_the_slider_of_the_lag_beside_a_gaussian(
    tab: Tab, runs: tuple[Path, dict[str, AgingRecord]]
) -> None:
    profile = runs[1]["small"].profile("displacement")
    tab.open(runs=json.dumps(["small"]))
    plot = "document.querySelector(`.profiles figure[data-name='displacement'] .plot`)"
    lines = wait_for(lambda: tab.run(f"return {plot}?.data?.map((one) => one.customdata?.[0])"))
    assert lines[:3] == [["small", "1", "1,000"], ["small", "10", "1,000"], ["small", "100", "1,000"]]
    assert tab.run(f"return {plot}.layout.yaxis.type") == "log"
    gaussian = tab.run(f"return {plot}.data[3]")
    middle = gaussian["x"].index(0) if 0 in gaussian["x"] else len(gaussian["x"]) // 2
    assert gaussian["y"][middle] == pytest.approx(1 / np.sqrt(2 * np.pi), rel=1e-6)
    tab.set("#lag", 1)
    wait_for(lambda: tab.run(f"return {plot}.data[0].customdata[0][2]") == "10")
    shown = tab.run(f"return {plot}.data[1].y")
    (at,) = np.flatnonzero((profile.waiting_times == 10) & (profile.lags == 10))
    counts = profile.values[at]
    density = counts[1:-1] / counts.sum() / np.diff(profile.grid)
    assert shown == pytest.approx(density[density > 0].tolist(), rel=1e-6)
    path = "document.querySelector(`.profiles figure[data-name='loss_path'] .plot`)"
    assert tab.run(f"return {path}.data[0].y") == [1.0, 1.01, 0.5]
    assert visible(tab, ".card.noise")


@in_browser
def test_plain_words_come_first_and_two_doubts_are_seen(tab: Tab, runs: tuple[Path, dict[str, AgingRecord]]) -> None:
    found = report(runs[1]["small"])
    tab.open(runs=json.dumps(["small"]))
    wait_for(lambda: texts(tab, ".sentences span"))
    assert texts(tab, ".sentences span") == found.words
    assert texts(tab, ".doubts li") == found.doubts[:2]
    assert texts(tab, ".doubts details p") == found.doubts[2:]
    assert doubts_of(found.record, found.verdict, found.exponent) == found.doubts
    assert found.confidence in tab.find(".headline .answer").get_attribute("class").split()
    # Every symbol has an explanation.
    assert "waiting time" in tab.run("return document.querySelector('.curves .formula sub').title")
    assert tab.run("return document.querySelectorAll('.glossary dt').length") > 15
    # The text at the mouse has the displacement relative to the size of the weights, and the time in epochs.
    text = tab.run("return document.querySelector('.curves-plot').data[5].text[0]")
    assert "% of the rms weight" in text
    assert "epochs" in text


@in_browser
def test_narrow_logarithmic_axes_have_several_labels(tab: Tab) -> None:
    tab.open(runs=json.dumps(["small"]))
    script = """
        const [values, done] = arguments, address = `${location.origin}/data/plugin/glassy/look.js`;
        import(address).then(({labelled}) => {
          const figure = {yaxis: {type: "log"}, xaxis: {type: "linear"}};
          labelled(figure, [{x: [1], y: values}]);
          done(figure.yaxis);
        });
    """

    def labels(*values: float) -> dict[str, Any]:
        return tab.browser.execute_async_script(script, list(values))

    assert labels(1, 1000) == {"type": "log"}
    assert labels(3, 40) == {"type": "log", "dtick": "D2"}
    narrow = labels(100, 118)
    assert narrow["tickvals"][0] <= 100
    assert narrow["tickvals"][-1] >= 118
    assert 3 <= len(narrow["tickvals"]) <= 8
    assert labels(3000)["ticktext"] == ["3000"]


@in_browser
def test_each_run_is_collapsed_with_its_own_exponent_until_the_slider_is_moved(
    tab: Tab, runs: tuple[Path, dict[str, AgingRecord]]
) -> None:
    tab.open(runs=json.dumps(["large", "small"]), x="plain", layout="side")
    tab.drawn("plain,msd,2,side")
    fits = {name: aging_exponent(runs[1][name]) for name in ("large", "small")}
    mus = {name: fit.estimate for name, fit in fits.items()}
    assert mus["large"] != mus["small"]

    def places() -> bool:
        lines = tab.lines()
        first = {line["named"][0][0]: line for line in reversed(lines)}
        times = {name: float(line["named"][0][1].replace(",", "")) for name, line in first.items()}
        lags = {name: float(line["named"][0][2].replace(",", "")) for name, line in first.items()}
        return all(first[name]["x"][0] == pytest.approx(lags[name] / times[name] ** mus[name]) for name in mus)

    wait_for(places, 60)

"""Measure start, drawing and share of event files of the tab Glassy: ``python -m benchmarks tab``.

The drawing needs selenium, chromium and chromedriver. It is left out without them.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from benchmarks.report import table, write
from lightning_glassy import AgingRecord, LogTimeSchedule
from lightning_glassy.loggers import signals as signals_module
from lightning_glassy.loggers import sinks as sinks_module
from lightning_glassy.loggers.figures import Figures, Picture
from lightning_glassy.loggers.signals import Signals
from lightning_glassy.loggers.sinks import Pairs, Sinks
from lightning_glassy.loggers.tensorboard import TensorBoardSink
from tests.browser import MISSING, available, chromium, open_tab, tensorboard, wait_for

RUNS, WAITING_TIMES, LAGS = 20, 20, 60
REPEATS = 7
PACE = 0.01  # seconds of a step

START = """
import time
from tensorboard import default, program  # what TensorBoard itself imports
from tensorboard.plugins.base_plugin import TBContext
start = time.perf_counter()
from lightning_glassy.tensorboard.plugin import GlassyPlugin
GlassyPlugin(TBContext()).get_plugin_apps()
print(time.perf_counter() - start)
"""

LAYOUTS = {
    "overlaid, coloured by run": {},
    "overlaid, coloured by waiting time": {"colour": "time"},
    "side by side": {"layout": "side"},
}


def start_seconds() -> float:
    """Return the median time to import the plugin and set it up, each time in a fresh process."""
    run = [sys.executable, "-c", START]
    return statistics.median(
        float(subprocess.run(run, capture_output=True, check=True, text=True).stdout) for _ in range(REPEATS)
    )


def aged(seed: int) -> AgingRecord:
    """Return a record of all waiting times and lags. Its curves scale with t/t_w^0.6, with 2 % of noise."""
    rng = np.random.default_rng(seed)
    record = AgingRecord({"all": 1000}, overlap_thresholds=[1e-3, 1e-2], meta={"seed": seed})
    for waiting_time in grid(1e5, WAITING_TIMES):
        for lag in grid(1e6, LAGS):
            moments = np.ones((1, 9))
            moments[0, 0] = (lag / (1 + waiting_time) ** 0.6) ** 0.8 * np.exp(0.02 * rng.normal())
            record.append(waiting_time, lag, moments)
    return record


def grid(last: float, n: int) -> list[int]:
    """Return ``n`` log-spaced integers."""
    points, k = np.array([], dtype=np.int64), n
    while len(points) < n:
        points, k = np.unique(np.round(np.geomspace(1, last, k)).astype(np.int64)), k + 1
    return [int(point) for point in points[:n]]


def page_times(folder: Path) -> dict[str, dict[str, float]]:
    """Return median milliseconds from loading the page to the drawn curves, and from moving mu to the moved curves."""
    for i in range(RUNS):
        writer = SummaryWriter(folder / "runs" / f"seed_{i:02d}")
        TensorBoardSink(SimpleNamespace(experiment=writer), "glassy")._write_part(aged(i))
        writer.close()
    found = {}
    with tensorboard(folder / "runs") as address, chromium(folder) as browser:
        for name, state in LAYOUTS.items():
            tab = address + "#glassy" + "".join(f"&p.glassy.{key}={quote(value)}" for key, value in state.items())
            opened, moved = [], []
            for _ in range(REPEATS):
                opened.append(_opened(browser, tab))
                moved.append(_moved(browser))
            found[name] = {"shown": statistics.median(opened), "moved": statistics.median(moved)}
    return found


def _opened(browser: Any, tab: str) -> float:
    open_tab(browser, tab)
    wait_for(lambda: _marks(browser, "glassy-drawn"))
    n_points = browser.execute_script(
        "const lines = [...document.querySelector('.curves-plot').data];"
        "return lines.reduce((n, line) => n + line.y.filter((y) => y).length, 0)"
    )
    assert n_points == RUNS * WAITING_TIMES * LAGS
    return float(_marks(browser, "glassy-drawn")[0] - _marks(browser, "glassy-loaded")[0])


def _moved(browser: Any) -> float:
    # Wait until the page has drawn all that follows the curves. It would compete with the slider for the two cores.
    wait_for(lambda: len(browser.find_elements("css selector", ".use")) == RUNS)
    wait_for(lambda: browser.find_elements("css selector", ".slopes li"))
    times = []
    for mu in (0.5, 0.55, 0.6, 0.65):
        browser.execute_script(
            "performance.clearMarks('glassy-drawn'); performance.mark('moved');"
            "const slider = document.querySelector('#mu'); slider.value = arguments[0];"
            "slider.dispatchEvent(new Event('input'))",
            mu,
        )
        drawn = wait_for(lambda: _marks(browser, "glassy-drawn"))[-1]
        times.append(drawn - _marks(browser, "moved")[-1])
    return statistics.median(times[1:])


def _marks(browser: Any, name: str) -> list[float]:
    script = "return performance.getEntriesByName(arguments[0]).map((entry) => entry.startTime)"
    times: list[float] = browser.execute_script(script, name)
    return times


def event_bytes(
    folder: Path,
    *,
    figures: bool = False,
    signals: bool = False,
    curves: bool = False,
    parts: bool = False,
    pace: float = 0.0,
) -> tuple[int, int]:
    """Return the bytes of the event file and of the record of a million steps, if the sink writes only some parts.

    Every event is a part of its own, as in a slow training with at most one event between two writes. With ``pace``,
    the sink is written to as in a training of ``pace`` seconds a step.
    """
    writer = SummaryWriter(folder)
    sink, found = TensorBoardSink(SimpleNamespace(experiment=writer), "glassy", curves), Signals()
    record = AgingRecord({"all": 1000}, overlap_thresholds=[1e-3, 1e-2], meta={"notes": "x" * 1000})
    rng, clock, sinks = np.random.default_rng(0), SimpleNamespace(monotonic=lambda: 0.0), Sinks()
    sinks.add("TensorBoard", lambda: sink)
    with contextlib.ExitStack() as changed:
        for module in (sinks_module, signals_module) if pace else ():
            changed.enter_context(patch.object(module, "time", clock))
        if not parts:
            changed.enter_context(patch.object(sink, "_write_part"))
        for event in LogTimeSchedule.logspaced(10**6).events:
            pairs: Pairs = [(waiting_time, event.step - waiting_time) for waiting_time in event.waiting_times]
            for pair in pairs:
                # Digits that do not compress, on curves as smooth as measured curves.
                sums = 1 + 0.02 * rng.random((1, 9))
                sums[:, :7] *= (pair[1] / (1 + pair[0]) ** 0.6) ** 0.8
                sums[:, 7:] = 1000 * np.exp(-sums[:, :2])
                record.append(*pair, sums)
            record.append_one_time("learning_rate", event.step, 0.05)
            if pace:
                clock.monotonic = partial(float, event.step * pace)
                sinks.update(record, pairs, event.step)
                continue
            sink.update(record, pairs, event.step)
            if signals:
                n = len(found.found)
                found.look(record)
                sink.log_signals(found.found[n:])
        if pace:
            sinks.close(record)
        sink.close(record)
        for name, figure in Figures("").draw(record) if figures else ():
            sink.log_figure(Picture(name, figure, 10**6))
    writer.close()
    (events,) = folder.iterdir()
    return events.stat().st_size, record.save(folder / "record.npz").stat().st_size


def main() -> None:
    """Measure, and write ``results/tab.md``."""
    start = start_seconds()
    with tempfile.TemporaryDirectory() as folder:
        times = page_times(Path(folder)) if available() else {}
        growth = {}
        for name, on in (
            ("the tab", ["parts"]),
            ("numbers against the step", ["signals"]),
            ("figures", ["figures"]),
            ("all of these, the default", ["parts", "signals", "figures"]),
            ("curves as scalars, if wanted", ["curves"]),
        ):
            growth[name], record = event_bytes(Path(folder) / "_".join(on), **dict.fromkeys(on, True))
        name = f"the default, at {1000 * PACE:.0f} ms a step"
        growth[name], _ = event_bytes(Path(folder) / "paced", parts=True, figures=True, pace=PACE)
    rows = [[name, f"{t['shown'] / 1000:.2f} s", f"{t['moved'] / 1000:.2f} s"] for name, t in times.items()]
    points = f"{RUNS} runs x {WAITING_TIMES} waiting times x {LAGS} lags"
    drawing = f"The drawing was not measured: it {MISSING}."
    if times:
        drawing = table([points, "shown after the page has loaded", "drawn after a move of mu"], rows)
    sizes = [[name, f"{size / 1000:,.0f} kB", f"{size / record:.2f}"] for name, size in growth.items()]
    text = "\n\n".join(
        [
            f"The plugin is imported and set up in {start:.2f} s (median of {REPEATS} fresh processes).",
            drawing,
            "Medians, in headless Chromium without a GPU; the server, the browser and its driver share the cores.",
            table(["written by a run of 10^6 steps, default schedule", "size", "records"], sizes),
            f"The record has {record / 1000:,.0f} kB. Counted at worst, every event is a part of its own. "
            "In a faster training, several events share a part.",
        ]
    )
    results = {"start": start, "page": times, "bytes": growth, "record": record}
    write("tab", "The TensorBoard tab", text, json.loads(json.dumps(results)))


if __name__ == "__main__":
    main()

"""A headless Chromium in front of the page, in a TensorBoard process or in a file."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from lightning_glassy import AgingRecord

T = TypeVar("T")

MISSING = "needs selenium and Debian's packages chromium and chromium-driver (apt-get install chromium chromium-driver)"

# Options of a browser that sends no requests except for the page.
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,800",
)


def available() -> bool:
    """Whether there is a browser to be driven."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return False
    return shutil.which("chromium") is not None and shutil.which("chromedriver") is not None


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Any]:
    """A browser, of 1280 x 800 pixels, whose profile and downloads lie in a folder."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for option in (*_OPTIONS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(option)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # Name the driver, so that selenium does not look for a driver on the network.
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        resize(browser, 1280, 800)
        yield browser
    finally:
        browser.quit()


def resize(browser: Any, width: int, height: int) -> None:
    """Set the size of the page. The size of the window is only an upper limit."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@contextlib.contextmanager
def tensorboard(*arguments: object) -> Iterator[str]:
    """Start TensorBoard with ``lightning-glassy tensorboard``, and yield its address."""
    command = [sys.executable, "-m", "lightning_glassy", "tensorboard", *map(str, arguments), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            lines = []
            for line in server.stderr:
                lines.append(line)
                if found := re.search(r"at (http://\S+)", line):
                    yield found[1]
                    break
            else:
                raise RuntimeError("TensorBoard did not start:\n" + "".join(lines))
        finally:
            # TensorBoard says a last word when it is asked to stop. Its words are read up to the end, because a closed
            # pipe is an error that its server can swallow while it answers, and then it never stops.
            server.terminate()
            try:
                server.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()


def wait_for(condition: Callable[[], T], seconds: float = 40) -> T:
    """Wait until a condition returns a true value, and return this value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} seconds")
        time.sleep(0.1)
    return value


def open_tab(browser: Any, address: str) -> None:
    """Open TensorBoard at the tab, and step into its frame."""
    browser.get("about:blank")
    browser.get(address)
    (frame,) = wait_for(lambda: browser.find_elements("css selector", "iframe"))
    browser.switch_to.frame(frame)
    wait_for(lambda: browser.execute_script("return document.body && document.body.dataset.ready"))


class Shown:
    """The page in a browser."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def button(self, card: str, text: str) -> Any:
        (found,) = [b for b in self.browser.find_elements("css selector", f".{card} button") if b.text == text]
        return found

    def lines(self, card: str = "curves", plot: str = ".plot") -> list[dict[str, Any]]:
        """Return the lines in a card: the points, and the texts of a point under the mouse."""
        return self.run(
            f"return [...(document.querySelector(`.{card} {plot}`)?.data ?? [])].map(({{x, y, customdata}}) =>"
            " ({x: Array.from(x), y: Array.from(y), named: customdata}))"
        )

    def drawn(self, wanted: str) -> None:
        """Wait until the page has drawn the wanted picture: axis, observable, number of series and layout."""
        wait_for(lambda: self.run("return document.querySelector('.curves-plot').dataset.drawn") == wanted)

    def set(self, selector: str, value: Any, event: str = "input") -> None:
        """Set an input as a reader does, and send its event to the page."""
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event(arguments[2]))"
        self.run(script, self.find(selector), value, event)

    def hash(self) -> str:
        return self.run("return window.parent.location.hash")


def complaints(browser: Any) -> list[str]:
    """Return the errors in the console, but not the errors about TensorBoard's own fonts behind a prefix."""
    errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    return [message for message in errors if "/font-roboto/" not in message]


def assert_curves(shown: Shown, record: AgingRecord, values: np.ndarray, abscissa: Any = None) -> None:
    """Check that the curves on the screen have the values and the lags of the record, to the last digit."""
    curves = [i for i in range(len(values)) if np.isfinite(values[i]).any()]
    for line, i in zip(shown.lines(), curves, strict=True):
        x = record.lags if abscissa is None else abscissa[i]
        good = np.isfinite(values[i]) & (values[i] > 0) & np.isfinite(x) & (record.lags > 0)
        assert line["x"] == (x[good].tolist() if abscissa is None else pytest.approx(x[good].tolist(), rel=1e-12))
        assert line["y"] == values[i][good].tolist()
        assert line["named"][0][1] == f"{record.waiting_times[i]:,}"

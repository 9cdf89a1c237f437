"""A headless Chromium in front of a real TensorBoard process, for the tests and the benchmark of the tab."""

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

T = TypeVar("T")

MISSING = "needs selenium and Debian's packages chromium and chromium-driver (apt-get install chromium chromium-driver)"

# A browser that talks to nobody but the page.
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
    # Named, so that selenium does not look for one on the network.
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        resize(browser, 1280, 800)
        yield browser
    finally:
        browser.quit()


def resize(browser: Any, width: int, height: int) -> None:
    """The page's size, which that of the window only limits."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@contextlib.contextmanager
def tensorboard(*arguments: object) -> Iterator[str]:
    """A TensorBoard that ``lightning-glassy tensorboard`` has started, as its address."""
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
            server.terminate()


def wait_for(condition: Callable[[], T], seconds: float = 40) -> T:
    """The first true value of a condition."""
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

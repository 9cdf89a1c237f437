"""Use the installed package with only the core or one extra: ``python installed.py EXTRA`` in an empty directory.

The test of the release runs this outside of the checkout, so that the installed package is used.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path


def train(*callbacks: object) -> None:
    """Train a small network with some callbacks."""
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader

    class Net(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 2)

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            return self.layer(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer = Trainer(max_steps=60, callbacks=list(callbacks), **quiet)
    trainer.fit(Net(), DataLoader(torch.randn(64, 4), batch_size=8))


def core() -> None:
    """Train, save and read, without any extra."""
    import lightning_glassy

    assert "torch" not in sys.modules
    monitor = lightning_glassy.AgingMonitor(dirpath="run/glassy")
    train(monitor)
    assert lightning_glassy.AgingRecord.load("run") == monitor.record
    command = str(Path(sys.executable).with_name("lightning-glassy"))
    assert "msd" in subprocess.run([command, "show", "run"], capture_output=True, text=True, check=True).stdout


def refused(extra: str, use: Callable[[], object]) -> None:
    """Check that a use without its extra names the extra."""
    message = ""
    try:
        use()
    except ImportError as error:
        message = str(error)
    assert f"lightning-glassy[{extra}]" in message, f"{extra}: {message}"


def record() -> object:
    """Return the record of :func:`core`."""
    from lightning_glassy import AgingRecord

    return AgingRecord.load("run")


def plot() -> None:
    """Draw."""
    record().plot("msd").figure.savefig("msd.png")  # type: ignore[attr-defined]


def report() -> None:
    """Write a report with its page."""
    from lightning_glassy.report import report

    assert any(path.suffix == ".html" for path in report(record()).write("report"))  # type: ignore[arg-type]


def analysis() -> None:
    """Fit, and make tables."""
    from lightning_glassy.analysis import verdict

    assert verdict(record()).kind  # type: ignore[arg-type]
    assert len(record().to_pandas())  # type: ignore[attr-defined]
    assert record().to_xarray()  # type: ignore[attr-defined]


def tensorboard() -> None:
    """Find the tab."""
    from importlib.metadata import entry_points

    (tab,) = [found for found in entry_points(group="tensorboard_plugins") if found.name == "glassy"]
    assert tab.load().plugin_name == "glassy"


def cpu() -> None:
    """Measure by the compiled loop."""
    import torch

    from lightning_glassy import AgingTracker

    tracker = AgingTracker([("w", torch.nn.Parameter(torch.zeros(9)))], max_step=9)
    for step in range(10):
        tracker.update(step)
    tracker.drain()
    assert "numba" in sys.modules
    assert len(tracker.record)


def curvature() -> None:
    """Measure the spectrum of the Hessian."""
    from lightning_glassy import AgingRecord, CurvatureMonitor

    train(CurvatureMonitor(dirpath="curvature"))
    assert "hessian_max" in AgingRecord.load("curvature").one_time_names


def safetensors() -> None:
    """Measure checkpoints in this format."""
    import numpy as np
    from safetensors.numpy import save_file

    from lightning_glassy import measure_checkpoints

    for step in (1, 2):
        save_file({"w": np.full(5, step, dtype=np.float32)}, f"step={step}.safetensors")
    assert len(measure_checkpoints(["step=1.safetensors", "step=2.safetensors"])) == 1


def logger(package: str) -> Callable[[], None]:
    """Return a check that a logger can be imported, and that its figures can be drawn."""

    def check() -> None:
        importlib.import_module(package)
        plot()

    return check


USES: dict[str, Callable[[], None]] = {
    "tensorboard": tensorboard,
    "plot": plot,
    "curvature": curvature,
    "analysis": analysis,
    "report": report,
    "safetensors": safetensors,
    "cpu": cpu,
    "wandb": logger("wandb"),
    "mlflow": logger("mlflow"),
    "comet": logger("comet_ml"),
    "litlogger": logger("litlogger"),
}

if __name__ == "__main__":
    extra = sys.argv[1]
    assert "site-packages" in str(importlib.import_module("lightning_glassy").__file__)
    assert version("lightning-glassy") == importlib.import_module("lightning_glassy").__version__
    core()
    if extra == "core":
        refused("plot", plot)
        refused("report", report)
        refused("analysis", analysis)
        refused("curvature", curvature)
    elif extra == "all":
        for name, use in USES.items():
            if name != "litlogger" or sys.version_info >= (3, 11):
                use()
    else:
        USES[extra]()
    print("works:", extra)

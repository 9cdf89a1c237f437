"""Code that people write without this package: the same measurement by other means, for comparison."""

from __future__ import annotations

import shutil
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from numpy.typing import NDArray
from torch.nn.utils import parameters_to_vector

from lightning_glassy import LogTimeSchedule

EPS = (5e-4, 5e-3)


def numpy_weights(parameters: list[torch.nn.Parameter]) -> NDArray[np.float32]:
    """Return all weights as one NumPy vector on the host."""
    return parameters_to_vector(parameters).detach().cpu().numpy()


def numpy_moments(w: NDArray[np.float32], s: NDArray[np.float32]) -> list[float]:
    """Return the moments of one pair, in the most obvious code.

    The fourth power is a product. NumPy computes ``d**4`` as a general power of each element, many times more slowly.
    """
    d = w - s
    d2 = d * d
    quantities = [d2, d2 * d2, w * s, w**2, s**2, w, s, *(np.abs(d) <= eps for eps in EPS)]
    return [float(quantity.mean()) for quantity in quantities]


def numpy_pair(w: NDArray[np.float32], s: NDArray[np.float32]) -> list[float]:
    """Return five sums of one pair by dot products, as in a first script."""
    d = w - s
    return [float(d @ d), float(w @ w), float(s @ s), float(w @ s), float((np.abs(d) <= EPS[0]).sum())]


def numpy_msd(w: NDArray[np.float32], s: NDArray[np.float32]) -> float:
    """Return the mean squared displacement of one pair, in the most obvious code."""
    return float(((w - s) ** 2).mean())


class AtEvents(Callback, ABC):
    """Base class of callbacks that act at the events of a schedule."""

    def __init__(self, schedule: LogTimeSchedule, steps: int) -> None:
        self.events = {event.step: event for event in schedule.until(steps).events}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Act if an event is due."""
        if trainer.global_step in self.events:
            self.act(pl_module, self.events[trainer.global_step])

    @abstractmethod
    def act(self, module: Any, event: Any) -> None:
        """Act at an event."""


class NumpyCopies(AtEvents):
    """Copies the weights to NumPy in the hook, and compares them there with earlier copies."""

    def __init__(self, schedule: LogTimeSchedule, steps: int) -> None:
        super().__init__(schedule, steps)
        self.copies: dict[int, NDArray[np.float32]] = {}
        self.results: list[list[float]] = []

    def act(self, module: Any, event: Any) -> None:
        """Copy and compare."""
        w = numpy_weights(list(module.parameters()))
        for waiting_time in event.waiting_times:
            if waiting_time in self.copies:  # no copy of step 0 exists: a small advantage for NumPy
                self.results.append(numpy_moments(w, self.copies[waiting_time]))
        if event.capture:
            self.copies[event.step] = w.copy()


class Checkpoints(AtEvents):
    """Saves a state_dict at every event for a later analysis. The cost of the analysis is not counted."""

    def __init__(self, schedule: LogTimeSchedule, steps: int) -> None:
        super().__init__(schedule, steps)
        self.directory = Path(tempfile.mkdtemp())

    def act(self, module: Any, event: Any) -> None:
        """Save."""
        torch.save(module.state_dict(), self.directory / f"step={event.step}.pt")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Delete the saved files."""
        shutil.rmtree(self.directory, ignore_errors=True)

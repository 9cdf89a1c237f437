"""The cost of an event beside the sums, in calls and in memory. The benchmarks measure times."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable
from statistics import mean
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lightning_glassy import AgingMonitor, AgingTracker, LogTimeSchedule
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.select import Selected


def calls(function: Callable[[], Any]) -> int:
    """Return the number of functions that a call runs, of Python and of C."""
    n = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal n
        n += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return n - 1  # without the last call of setprofile


def layers(n: int) -> list[tuple[str, nn.Parameter]]:
    return [(f"layer{i}.weight", nn.Parameter(torch.ones(2, 2) + i)) for i in range(n)]


class ReadySums:
    """Moments that are there already, so that only the event around them is counted."""

    streams: ClassVar[dict[torch.device, torch.cuda.Stream]] = {}

    def __init__(self, tracker: AgingTracker) -> None:
        n_cell, n_moment = tracker.parameters.n_cells, len(tracker.record.sums) + len(tracker.record.overlap_thresholds)
        self._ready = [torch.ones(n_cell, n, n_moment, dtype=torch.float64) for n in range(6)]

    def __call__(self, snapshots: Any, capture: Any = None) -> list[torch.Tensor]:
        return [self._ready[len(snapshots)]]


def full_tracker(n_live: int, n_layers: int = 1, groups: Any = "all") -> AgingTracker:
    """Return a tracker after step 3 n_live - 1. From then on one of its snapshots is due at each step."""
    schedule = LogTimeSchedule(range(n_live), range(n_live, 1000 * n_live, n_live))
    tracker = AgingTracker(layers(n_layers), schedule, groups, sample=None, overlap_thresholds=(0.01, 0.1))
    tracker._moments = ReadySums(tracker)
    for step in range(3 * n_live):
        tracker.update(step)
    assert tracker.n_snapshots == n_live
    assert len(tracker.new_pairs()) == 2 * n_live
    return tracker


def calls_of_event(n_live: int, n_due: int = 1, n_layers: int = 1, groups: Any = "all") -> int:
    tracker = full_tracker(n_live, n_layers, groups)
    n = calls(lambda: tracker.update(3 * n_live - 1 + n_due))
    assert len(tracker.new_pairs()) == n_due
    return n


def test_an_event_makes_few_calls() -> None:
    few = calls_of_event(5)
    assert few <= 76
    assert calls_of_event(5, n_due=5) - few <= 4 * 19  # for each further row


def test_the_calls_of_an_event_do_not_grow_with_snapshots_groups_and_tensors() -> None:
    few = calls_of_event(5)
    assert calls_of_event(100) == few
    assert calls_of_event(5, n_layers=300) == few
    assert calls_of_event(5, n_layers=300, groups="layer") <= few + 10


def test_a_step_without_an_event_makes_no_calls_but_its_own() -> None:
    tracker = AgingTracker(layers(1), LogTimeSchedule([0], [1, 100]))
    for step in range(2):
        tracker.update(step)
    assert calls(lambda: tracker.update(7)) <= 4


def test_the_memory_of_an_event_is_its_row() -> None:
    tracker = full_tracker(20, n_layers=50, groups="layer")
    row = 8 * int(np.prod(tracker.record.row_shape))
    first, n = 60, 400
    gc.collect()
    tracemalloc.start()
    try:
        for step in range(first, first + 100):
            tracker.update(step)
        tracker.new_pairs()
        before = tracemalloc.get_traced_memory()[0]
        for step in range(first + 100, first + 100 + n):
            tracker.update(step)
        tracker.new_pairs()
        tracemalloc.reset_peak()
        after = tracemalloc.get_traced_memory()[0]
        tracker.update(first + 100 + n)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert after - before < n * (row + 500)  # 500: the key, the array around the row, and its place in the table
    assert peak - after < 5 * row + 5000


@pytest.mark.parametrize("groups", ["layer", "mapping"])
def test_the_calls_of_the_set_up_grow_with_the_groups(groups: str) -> None:
    def made(n: int) -> int:
        mapping = {f"group{i}": f"layer{i}.*" for i in range(n)}
        named = layers(n)
        return calls(lambda: AgingTracker(named, groups="layer" if groups == "layer" else mapping, sample=None))

    made(1)  # imports
    assert made(400) < 10 * made(50)


def test_groups_have_the_sums_of_their_cells_to_the_bit() -> None:
    names = ["ab", "a", "b", "abc", "c", "", "bc", "d", "ad"]
    selected = [Selected(str(i), torch.zeros(2), tuple(name)) for i, name in enumerate(names)]
    tracked = TrackedParameters(selected)
    cells = np.random.default_rng(0).normal(size=(2, tracked.n_cells, 3, 9))
    cells[0, 4, :, 0] = np.nan, np.inf, 1.0
    sums = tracked.by_group(list(cells))
    for place, members in enumerate(tracked.cells_of.values()):
        one_by_one = sum((cells[0] + cells[1])[member] for member in members)
        assert np.array_equal(sums[place], one_by_one, equal_nan=True)
    assert mean(map(len, tracked.cells_of.values())) > 2


class Counted(AgingMonitor):
    """Counts the calls of its hook at steps with an event, and at steps without."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.at_events: list[int] = []
        self.between: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, *others: Any) -> None:
        self.recorder.tracker._moments = ReadySums(self.recorder.tracker)
        due = trainer.global_step >= self._next_event
        n = calls(lambda: super(Counted, self).on_train_batch_end(trainer, *others))
        (self.at_events if due else self.between).append(n)


class Layers(LightningModule):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(2, 2) for _ in range(n)])

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        return self.layers[0](batch).square().mean()

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.ones(40, 2))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.layers[0].parameters(), lr=0.1)


def hook_calls(n: int, groups: Any = "all") -> tuple[int, int]:
    """Return the most calls of the hook at events with one due snapshot, and at steps without events."""
    schedule = LogTimeSchedule([0], range(1, 40, 2))
    monitor = Counted(schedule, groups, save=False, summary=False, overlap_thresholds=(0.01, 0.1))
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    Trainer(max_steps=30, accelerator="cpu", logger=False, callbacks=[monitor], **quiet).fit(Layers(n))
    assert min(len(monitor.at_events), len(monitor.between)) >= 14
    return max(monitor.at_events[1:]), max(monitor.between[1:])


@pytest.mark.filterwarnings("ignore")
def test_the_hook_of_a_monitor_makes_few_calls_whatever_the_number_of_tensors() -> None:
    at_event, between = hook_calls(2)
    assert at_event <= 152
    assert hook_calls(100)[0] == at_event
    assert hook_calls(100, "layer")[0] <= at_event + 10
    assert between <= 15  # nearly all for the number of steps, which Lightning computes

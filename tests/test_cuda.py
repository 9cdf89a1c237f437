"""What only a GPU can show. Skipped, and said so, where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_glassy import AgingMonitor, AgingTracker, LogTimeSchedule
from tests.helpers import SmallNet, data, quiet_trainer

pytestmark = pytest.mark.cuda


def track(device: str, **options: object) -> AgingTracker:
    generator = torch.Generator().manual_seed(1)
    path = torch.cumsum(torch.randn(101, 5000, generator=generator) * 0.01, 0).to(device)
    parameter = nn.Parameter(path[0].clone())
    tracker = AgingTracker([("w", parameter)], LogTimeSchedule.logspaced(100), **options)
    for step in range(101):
        with torch.no_grad():
            parameter.copy_(path[step])
        tracker.update(step)
    tracker.drain()
    return tracker


@pytest.mark.parametrize("options", [{}, {"snapshot_device": "cpu"}, {"sample": 700}], ids=str)
def test_the_record_is_that_of_the_cpu(options: dict) -> None:
    here, there = track("cuda", **options).record, track("cpu", **options).record
    assert np.array_equal(here.pairs, there.pairs)
    assert np.allclose(here.msd(), there.msd(), rtol=1e-6, atol=0, equal_nan=True)
    assert np.allclose(here.correlation(kind="cosine"), there.correlation(kind="cosine"), atol=1e-6, equal_nan=True)


def test_no_update_waits_for_the_device() -> None:
    parameter = nn.Parameter(torch.randn(100_000, device="cuda"))
    tracker = AgingTracker([("w", parameter)], LogTimeSchedule.logspaced(500))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(501):
            tracker.update(step)
            with torch.no_grad():
                parameter.mul_(0.999)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    tracker.drain()
    assert len(tracker.record) == len(LogTimeSchedule.logspaced(500).pairs)


def test_a_training_on_the_gpu_is_recorded(tmp_path: Path) -> None:
    monitor = AgingMonitor()
    quiet_trainer(tmp_path, callbacks=[monitor], accelerator="gpu").fit(SmallNet(), data())
    assert len(monitor.record) == len(LogTimeSchedule.logspaced(60).pairs)
    assert np.isfinite(monitor.record.msd()[0]).all()

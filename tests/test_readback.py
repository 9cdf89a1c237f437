"""The transfer of the sums to the host, with a pretended GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from lightning_glassy.measure import readback as module
from lightning_glassy.measure.readback import Readback

GPU = torch.device("cuda", 0)


class Event:
    """A CUDA event that happens when the test sets it."""

    def __init__(self) -> None:
        self.happened, self.waits = False, 0

    def query(self) -> bool:
        return self.happened

    def synchronize(self) -> None:
        self.waits += 1
        self.happened = True


class Landing:
    """Ordinary memory instead of pinned memory."""

    made: ClassVar[list[Landing]] = []

    def __init__(self, n_bytes: int) -> None:
        self.event, self.host = Event(), torch.zeros(0)
        self.made.append(self)

    def copy(self, tensor: SimpleNamespace) -> None:
        self.event.happened = False
        self.host = tensor.values.clone()


def on_gpu(*values: float) -> SimpleNamespace:
    return SimpleNamespace(is_cuda=True, device=GPU, nbytes=8 * len(values), values=torch.tensor(values))


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_Landing", Landing)
    monkeypatch.setattr(Landing, "made", [])


def test_a_copy_that_has_ended_is_taken_without_waiting() -> None:
    queue: Readback[str] = Readback([GPU], 64)
    queue.push("a", [on_gpu(1.0, 2.0)])
    assert list(queue.landed()) == []
    landing = queue.queue[0].landings[0][1]
    landing.event.happened = True
    ((tag, (values,)),) = queue.landed()
    assert (tag, values.tolist()) == ("a", [1.0, 2.0])
    assert values.dtype == np.float64
    assert landing.event.waits == 0
    assert not queue.queue


def test_only_drain_waits_and_only_for_a_copy_under_way() -> None:
    queue: Readback[str] = Readback([GPU], 64)
    queue.push("a", [on_gpu(1.0)])
    queue.push("b", [on_gpu(2.0)])
    first, second = (batch.landings[0][1] for batch in queue.queue)
    first.event.happened = True
    assert [tag for tag, _ in queue.drain()] == ["a", "b"]
    assert (first.event.waits, second.event.waits) == (0, 1)


def test_memory_and_events_are_made_at_the_start_and_used_again() -> None:
    queue: Readback[int] = Readback([GPU, torch.device("cpu")], 64)
    n = len(Landing.made)
    assert n > 1
    for step in range(3 * n):
        queue.push(step, [on_gpu(float(step))])
        queue.queue[0].landings[0][1].event.happened = True
        assert [values.tolist() for _, (values,) in queue.landed()] == [[float(step)]]
    assert len(Landing.made) == n
    for step in range(n + 2):  # more than usual are under way
        queue.push(step, [on_gpu(float(step))])
    assert len(Landing.made) == n + 2
    assert [(tag, values.tolist()) for tag, (values,) in queue.drain()] == [(k, [float(k)]) for k in range(n + 2)]


def test_values_are_a_copy_of_memory_that_is_used_again() -> None:
    queue: Readback[str] = Readback([GPU], 64)
    queue.push("a", [on_gpu(1.0)])
    landing = queue.queue[0].landings[0][1]
    ((_, (values,)),) = queue.drain()
    landing.host.fill_(7.0)
    assert values.tolist() == [1.0]


def test_a_batch_that_is_being_taken_can_still_be_read() -> None:
    # A signal handler may drain while the caller enters the batch into the record.
    queue: Readback[str] = Readback([GPU], 64)
    queue.push("a", [on_gpu(1.0)])
    batches = queue.drain()
    next(batches)
    assert [tag for tag, _ in queue.drain()] == ["a"]
    assert list(batches) == []
    free = queue._free[GPU]
    assert len(free) == len(set(map(id, free))) == len(Landing.made)  # given back once

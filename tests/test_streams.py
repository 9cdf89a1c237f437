"""Work on several CUDA streams, simulated on a CPU. ``test_cuda.py`` has the same on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lightning_glassy import AgingTracker, LogTimeSchedule
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.moments import EagerMoments, OffloadedMoments
from lightning_glassy.measure.select import select_parameters
from lightning_glassy.measure.snapshots import SnapshotBank
from lightning_glassy.measure.streams import FixedStreams, queued_on
from lightning_glassy.measure.tracker import Finding, TrackerEvent
from tests.streams import FakeStreams


def run(world: FakeStreams, *, training_too: bool, n_replica: int | None = None) -> AgingTracker:
    """Report steps in turn from three streams. The caller orders the streams only if the training is there, too."""
    parameters = [nn.Parameter(torch.randn(3, 500)), nn.Parameter(torch.randn(3, 7).double())]
    named = [(f"w{i}", parameter) for i, parameter in enumerate(parameters)]
    streams = [world.default, world.make(), world.make()]

    def listener(event: TrackerEvent) -> list[Finding]:
        kept.copy_(parameters[0].detach())
        return [Finding("mean", event.step, 0, np.zeros(1), kept.double().mean()[None].expand(2).clone())]

    with world:
        tracker = AgingTracker(
            named, LogTimeSchedule([0, 1, 3], [1, 2, 4]), overlap_thresholds=[0.1], n_replica=n_replica
        )
        kept = torch.empty(3, 500)
        tracker.listeners = {"a listener": listener}
        for step in range(9):
            stream = streams[step % 3]
            if training_too:
                stream.wait_stream(streams[(step - 1) % 3])
            with world.on(stream):
                tracker.update(step)
                if step == 5:
                    tracker.state_dict()
                if training_too:
                    for parameter in parameters:
                        parameter.data.add_(1.0)
        tracker.drain()
        tracker.close()
    assert len(tracker.record) == 9
    return tracker


@pytest.mark.parametrize("n_replica", [None, 3])
@pytest.mark.parametrize("training_too", [False, True])
def test_events_on_any_streams_are_ordered(
    training_too: bool, n_replica: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = FakeStreams(monkeypatch)
    tracker = run(world, training_too=training_too, n_replica=n_replica)
    assert not world.races
    # All memory of the tracker belongs to one stream, so it can be freed at any time.
    assert not world.unrecorded()
    if training_too and n_replica is None:
        lag = tracker.record.pairs[1].astype(float)
        assert np.allclose(tracker.record.moments[:, 0, 0] / 1521, lag**2)


def test_the_simulation_finds_events_that_are_not_ordered(monkeypatch: pytest.MonkeyPatch) -> None:
    def left_where_it_is(self: FixedStreams) -> AbstractContextManager[None]:
        return nullcontext()

    monkeypatch.setattr(FixedStreams, "entered", left_where_it_is)
    world = FakeStreams(monkeypatch)
    run(world, training_too=False)
    assert world.races
    assert world.unrecorded()


def test_the_fixed_stream_is_not_touched_if_it_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    world = FakeStreams(monkeypatch)
    there = world.make()
    with world.on(there):
        fixed = FixedStreams([torch.device("cpu"), torch.device("meta")])
        assert isinstance(fixed.entered(), nullcontext)

    def fail() -> None:
        with fixed.entered():
            assert world.current is there
            there.clock[there] += 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert world.current is world.default
    assert world.default.clock[there] == 1  # it has waited in spite of the error
    monkeypatch.undo()
    assert isinstance(FixedStreams([torch.device("cpu")]).entered(), nullcontext)


@pytest.mark.parametrize("msd_only", [False, True])
def test_memory_for_snapshots_in_host_memory_belongs_to_the_stream_that_uses_it(
    msd_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = FakeStreams(monkeypatch)
    parameters = [nn.Parameter(torch.randn(500)), nn.Parameter(torch.randn(7).bfloat16())]
    tracked = TrackedParameters(select_parameters([(f"w{i}", p) for i, p in enumerate(parameters)]))
    made_on = []

    def make(copied: TrackedParameters) -> EagerMoments:
        made_on.append(world.current)
        return EagerMoments(copied, [0.1], msd_only=msd_only)

    with world:
        bank, moments = SnapshotBank(tracked), OffloadedMoments(tracked, make)
        (side,) = world.made
        restored = bank.add(-1)  # its sums come from a checkpoint, and no capture writes them
        for tensor in (*restored.flats, *restored.own_sums):
            tensor.fill_(0.5)
        for step in range(4):
            sums = moments(list(bank.live.values()), bank.add(step))
            for parameter in parameters:
                parameter.data.add_(1.0)
        world.default.wait_stream(side)
        for tensor in sums:
            tensor.record_stream(world.default)
            tensor.clone()
    assert made_on == [side]
    assert not world.races
    # The allocator of host memory knows the streams.
    host = [flat for snapshot in bank.live.values() for flat in snapshot.flats]
    assert not world.unrecorded(but=host)
    assert sums[0][0, 1:, 0].tolist() == pytest.approx([500 * lag**2 for lag in (3.0, 2.0, 1.0)], rel=1e-5)


def test_the_current_device_stays_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in torch, a stream makes its device the current one.
    devices, now = [torch.device("cuda", index) for index in (0, 1)], [0]

    @contextmanager
    def on(device: torch.device | int) -> Iterator[None]:
        before, now[0] = now[0], device if isinstance(device, int) else device.index
        yield
        now[0] = before

    streams = {device: SimpleNamespace(device=device, wait_stream=lambda other: None) for device in devices}
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: on(stream.device))
    monkeypatch.setattr(torch.cuda, "device", on)
    with queued_on(streams):
        assert now == [0]
    assert now == [0]

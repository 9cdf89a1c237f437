"""Tests that need a GPU. Without a GPU they are reported as skipped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_glassy import AgingMonitor, AgingTracker, LogTimeSchedule
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.moments import EagerMoments, capture, moments_for
from lightning_glassy.measure.select import select_parameters
from lightning_glassy.measure.snapshots import SnapshotBank
from lightning_glassy.record import AgingRecord
from tests.helpers import Recomputing, SmallNet, data, quiet_trainer

pytestmark = pytest.mark.cuda

EPS = (1e-3, 1e-1)

# Calls with which a host waits for a device, as the profiler names them.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def track(device: str, dtype: torch.dtype = torch.float32, **options: Any) -> AgingTracker:
    generator = torch.Generator().manual_seed(1)
    path = torch.cumsum(torch.randn(101, 5000, generator=generator) * 0.01, 0).to(dtype).to(device)
    parameters = [nn.Parameter(path[0, :3000].clone()), nn.Parameter(path[0, 3000:].view(40, 50).clone())]
    named = [(f"layer{i}.w", parameter) for i, parameter in enumerate(parameters)]
    tracker = AgingTracker(named, LogTimeSchedule.logspaced(100), overlap_thresholds=EPS, **options)
    for step in range(101):
        with torch.no_grad():
            parameters[0].copy_(path[step, :3000])
            parameters[1].copy_(path[step, 3000:].view(40, 50))
        tracker.update(step)
    tracker.drain()
    return tracker


def implementation(tracker: AgingTracker) -> object:
    """Return the object that makes the sums on the device, also for snapshots that are in host memory."""
    return getattr(tracker._moments, "inner", tracker._moments)


def assert_same(here: AgingRecord, there: AgingRecord) -> None:
    assert np.array_equal(here.pairs, there.pairs)
    assert here.groups == there.groups
    for group in here.groups:
        assert np.allclose(here.msd(group), there.msd(group), rtol=1e-6, atol=0, equal_nan=True)
        assert np.allclose(
            here.correlation(group, "cosine"), there.correlation(group, "cosine"), atol=1e-6, equal_nan=True
        )
        for eps in EPS:
            assert np.allclose(here.overlap(eps, group), there.overlap(eps, group), atol=1e-3, equal_nan=True)


@contextmanager
def no_waiting(monitor: type[AgingMonitor] | type[AgingTracker], *hooks: str) -> Iterator[list[str]]:
    """Raise an error if these methods, and only these, wait for the device. Yield the list of their calls."""
    calls: list[str] = []

    def strict(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            torch.cuda.set_sync_debug_mode("error")
            try:
                return method(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in hooks:
            patch.setattr(monitor, name, strict(name, getattr(monitor, name)))
        yield calls


# ---------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"snapshot_device": "cpu"}, {"sample": 700}, {"groups": "layer"}, {"moments": "msd", "groups": "layer"}],
    ids=str,
)
def test_the_record_is_that_of_the_cpu(
    options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels, there = track("cuda", dtype, **options), track("cpu", dtype, **options)
    assert type(implementation(kernels)).__name__ == "TritonMoments"
    monkeypatch.setenv("LIGHTNING_GLASSY_EAGER", "1")
    eager = track("cuda", dtype, **options)
    assert isinstance(implementation(eager), EagerMoments)
    if options.get("moments") == "msd":
        for tracker in (kernels, eager):
            for group in there.record.groups:
                assert np.allclose(
                    tracker.record.msd(group), there.record.msd(group), rtol=1e-6, atol=0, equal_nan=True
                )
        return
    assert_same(kernels.record, there.record)
    assert_same(eager.record, there.record)


@pytest.mark.parametrize("sample", [None, 3000])
@pytest.mark.parametrize("msd_only", [False, True])
def test_kernels_and_plain_torch_give_the_same_sums(msd_only: bool, sample: int | None) -> None:
    tensors = [
        torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
        torch.randn(7, dtype=torch.float64),
        torch.tensor(2.0),
        torch.randn(30, 20).t(),
        torch.randn(6, 40)[:, ::2],
        torch.randn(5, dtype=torch.complex64),
        torch.randn(50_001).bfloat16(),
        torch.randn(4097)[1:],
        torch.randn(300, 1024),
        torch.randn(2_000_003),
        *(torch.randn(n) for n in (1, 2, 3, 10, 16, 64) * 50),
    ]
    # Take the views on the device, because a copy to the device would make them dense.
    parameters = [nn.Parameter(tensor.cuda()) for tensor in tensors]
    parameters[4] = nn.Parameter(torch.randn(6, 40, device="cuda")[:, ::2])
    parameters[7] = nn.Parameter(torch.randn(4097, device="cuda")[1:])
    named = [(f"{i % 7}.{i}", parameter) for i, parameter in enumerate(parameters)]
    tracked = TrackedParameters(select_parameters(named, groups="layer"), sample)
    ours, plain = moments_for(tracked, EPS, msd_only=msd_only), EagerMoments(tracked, EPS, msd_only=msd_only)
    assert type(ours).__name__ == "TritonMoments"
    bank = SnapshotBank(tracked)
    for step in range(35):
        snapshot = capture(bank, step, ours)
        other = capture(SnapshotBank(tracked), step, plain)
        assert all(torch.equal(*flats) for flats in zip(snapshot.flats, other.flats, strict=True))
        for sums in zip(snapshot.own_sums, other.own_sums, strict=True):
            assert torch.allclose(*sums, rtol=1e-6, atol=1e-2)
        with torch.no_grad():
            for parameter in parameters:
                parameter += 0.01 * torch.randn_like(parameter)
    for n_due in (1, 2, 9, 32, 35):
        due = list(bank.live.values())[:n_due]
        for first, again, other in zip(ours(due), ours(due), plain(due), strict=True):
            assert np.array_equal(first.cpu().numpy(), again.cpu().numpy(), equal_nan=True)  # to the last bit
            assert torch.allclose(first[..., :2], other[..., :2], rtol=1e-6, atol=0, equal_nan=True)
            assert torch.allclose(first[..., 2:7], other[..., 2:7], rtol=1e-6, atol=1e-2, equal_nan=True)
            assert torch.allclose(first[..., 7:], other[..., 7:], rtol=0, atol=1, equal_nan=True)


@pytest.mark.parametrize(("radial", "turn"), [(1e-5, 1e-5), (1e-4, 1e-5), (0.0, 1e-6)])
def test_decorrelation_keeps_its_digits(radial: float, turn: float) -> None:
    start = torch.randn(500_000, device="cuda") * 0.05
    parameter = nn.Parameter(start.clone())
    tracker = AgingTracker([("w", parameter)], LogTimeSchedule([0], [1]))
    tracker.update(0)
    with torch.no_grad():
        parameter.copy_(start * (1 + radial) + turn * 0.05 * torch.randn_like(start))
    tracker.update(1)
    tracker.drain()
    s, w = start.double(), parameter.detach().double()
    across = w - (s @ w) / (s @ s) * s
    exact = float(0.5 * (across @ across) / (w @ w))
    assert tracker.record.decorrelation()[0, 0] == pytest.approx(exact, rel=1e-2)


# ---------------------------------------------------------------------- no waiting


@pytest.mark.parametrize("options", [{}, {"snapshot_device": "cpu"}, {"sample": 700}, {"moments": "msd"}], ids=str)
def test_no_update_waits_for_the_device(options: dict[str, Any]) -> None:
    parameters = [nn.Parameter(torch.randn(n, device="cuda")) for n in (100_000, 7, 64)]
    named = [(f"w{i}", parameter) for i, parameter in enumerate(parameters)]
    tracker = AgingTracker(named, LogTimeSchedule.logspaced(500), **options)
    with no_waiting(AgingTracker, "update"):
        for step in range(501):
            tracker.update(step)
            with torch.no_grad():
                for parameter in parameters:
                    parameter.mul_(0.999)
    tracker.drain()
    assert len(tracker.record) == len(LogTimeSchedule.logspaced(500).pairs)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_no_hook_of_a_training_waits_for_the_device(precision: str, tmp_path: Path) -> None:
    # An event at every step. Watch the hook alone, because Lightning itself may wait for the device.
    monitor = AgingMonitor(LogTimeSchedule(list(range(0, 60, 7)), list(range(60))), save=False, summary=False)
    with no_waiting(AgingMonitor, "on_train_batch_end") as calls:
        trainer = quiet_trainer(tmp_path, callbacks=[monitor], accelerator="gpu", precision=precision)
        trainer.fit(SmallNet(), data())
    assert calls == ["on_train_batch_end"] * 60
    assert len(monitor.record) == len(LogTimeSchedule(list(range(0, 60, 7)), list(range(60))).until(60).pairs)
    assert np.isfinite(monitor.record.moments[:, :, 0]).all()


class NoWaiting(Callback):
    """Makes every wait for the device an error, from the first batch to the end of training. Put it first."""

    def on_train_batch_start(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def on_train_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    on_exception = on_train_end


@pytest.mark.parametrize("options", [{}, {"snapshot_device": "cpu"}, {"groups": "layer"}], ids=str)
def test_a_whole_training_waits_for_the_device_nowhere(options: dict[str, Any], tmp_path: Path) -> None:
    schedule = LogTimeSchedule(list(range(0, 60, 7)), list(range(60)))  # an event at every step
    monitor = AgingMonitor(schedule, save=False, summary=False, **options)
    loader = data()
    # Put the batches on the device beforehand, because this test does not look for copies of batches.
    loader = DataLoader(
        TensorDataset(*(tensor.cuda() for tensor in loader.dataset.tensors)), batch_size=4, shuffle=True
    )
    trainer = quiet_trainer(tmp_path, callbacks=[NoWaiting(), monitor], accelerator="gpu", limit_val_batches=0)
    trainer.fit(SmallNet(), loader)
    assert trainer.global_step == 60
    assert len(monitor.record) == len(schedule.until(60).pairs)


def profiled(run: Callable[[], object]) -> tuple[list[str], list[str]]:
    """Return the names of the work on the device, and of the host calls within spans called "ours"."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()  # so that the profiler sees the kernels
    on_device = torch.autograd.DeviceType.CUDA
    host = [event for event in profile.events() if event.device_type != on_device]
    spans = [event.time_range for event in host if event.name == "ours"]
    inside = [e.name for e in host if any(span.start <= e.time_range.start <= span.end for span in spans)]
    assert spans
    return [event.name for event in profile.events() if event.device_type == on_device], inside


def test_no_hook_of_a_profiled_training_synchronises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = AgingMonitor.on_train_batch_end

    def marked(*args: Any) -> None:
        with torch.profiler.record_function("ours"):
            hook(*args)

    monkeypatch.setattr(AgingMonitor, "on_train_batch_end", marked)
    monitor = AgingMonitor(save=False, summary=False)
    trainer = quiet_trainer(tmp_path, callbacks=[monitor], accelerator="gpu")
    _, inside = profiled(lambda: trainer.fit(SmallNet(), data()))
    assert not set(inside) & set(WAITS)
    assert len(monitor.record)


@pytest.mark.parametrize("dtypes", [[torch.float32], [torch.float32, torch.bfloat16, torch.float64]], ids=str)
@pytest.mark.parametrize("step", [13, 14])  # four snapshots are due, and at 14 the weights are captured
def test_an_event_takes_few_launches_and_no_synchronisation(step: int, dtypes: list[torch.dtype]) -> None:
    sizes = [4096] * 40 + [10] * 22
    parameters = [nn.Parameter(torch.randn(n, device="cuda").to(dtypes[i % len(dtypes)])) for i, n in enumerate(sizes)]
    named = [(f"{i}.w", parameter) for i, parameter in enumerate(parameters)]
    schedule = LogTimeSchedule([0, 1, 2, 3, 14], [1, 2, 10, 11, 12, 13, 14])
    tracker = AgingTracker(named, schedule, groups="layer")
    for earlier in range(step):  # compile, allocate and load everything once
        tracker.update(earlier)

    def event() -> None:
        with torch.profiler.record_function("ours"):
            assert tracker.update(step)

    launched, inside = profiled(event)
    assert not set(inside) & set(WAITS)
    kernels = [name for name in launched if not name.startswith(("Memcpy", "Memset", "ours"))]
    assert 1 <= len(kernels) <= 3, kernels
    tracker.drain()


def test_nothing_is_allocated_once_the_events_have_been_seen() -> None:
    parameter = nn.Parameter(torch.randn(1_000_000, device="cuda"))
    tracker = AgingTracker([("w", parameter)], LogTimeSchedule(range(0, 200, 10), [1, 5, 15]))
    for step in range(60):
        tracker.update(step)
    torch.cuda.synchronize()
    reserved = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    peak = torch.cuda.memory_allocated()
    for step in range(60, 200):
        tracker.update(step)
    torch.cuda.synchronize()
    assert torch.cuda.memory_reserved() == reserved
    assert torch.cuda.max_memory_allocated() <= peak + 2 * parameter.nbytes  # the number of live ones varies by so much
    tracker.drain()


# ---------------------------------------------------------------------- beside other work


def test_a_training_on_the_gpu_is_recorded(tmp_path: Path) -> None:
    monitor = AgingMonitor()
    quiet_trainer(tmp_path, callbacks=[monitor], accelerator="gpu").fit(SmallNet(), data())
    assert len(monitor.record) == len(LogTimeSchedule.logspaced(60).pairs)
    assert np.isfinite(monitor.record.msd()[0]).all()


@pytest.mark.parametrize("options", [{}, {"snapshot_device": "cpu"}], ids=str)
def test_a_training_is_the_same_with_and_without(options: dict[str, Any], tmp_path: Path) -> None:
    def train(*callbacks: AgingMonitor) -> list[torch.Tensor]:
        torch.manual_seed(3)
        model: LightningModule = SmallNet()
        trainer: Trainer = quiet_trainer(tmp_path, callbacks=list(callbacks), accelerator="gpu")
        trainer.fit(model, data())
        return [parameter.detach().cpu() for parameter in model.parameters()]

    monitor = AgingMonitor(save=False, summary=False, **options)
    assert all(torch.equal(a, b) for a, b in zip(train(), train(monitor), strict=True))


def test_a_compiled_module_is_followed(caplog: pytest.LogCaptureFixture) -> None:
    def run(compiled: bool) -> AgingRecord:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4)).cuda()
        step_of = torch.compile(model) if compiled else model
        # At a larger rate the last steps are so small that they are rounding errors.
        optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
        tracker = AgingTracker(step_of.named_parameters(), LogTimeSchedule.logspaced(20), overlap_thresholds=EPS)
        for step in range(21):
            tracker.update(step)
            optimizer.zero_grad()
            step_of(torch.ones(8, 16, device="cuda")).square().mean().backward()
            optimizer.step()
        tracker.drain()
        return tracker.record

    with caplog.at_level(logging.WARNING, "lightning_glassy"):
        here, there = run(True), run(False)
    assert here.groups == there.groups
    assert np.allclose(here.msd(), there.msd(), rtol=1e-2, atol=0, equal_nan=True)  # arithmetic of two compilers
    assert not [message for message in caplog.messages if "kernels" in message]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_activation_checkpointing_changes_nothing(precision: str, tmp_path: Path) -> None:
    def run(kind: type[SmallNet]) -> AgingRecord:
        torch.manual_seed(0)
        monitor = AgingMonitor(save=False, summary=False, overlap_thresholds=EPS)
        quiet_trainer(tmp_path, callbacks=[monitor], accelerator="gpu", precision=precision).fit(kind(), data())
        return monitor.record

    assert_same(run(Recomputing), run(SmallNet))


def test_weights_that_a_replayed_graph_updates_are_followed() -> None:
    parameter = nn.Parameter(torch.randn(5000, device="cuda"))
    start, by = parameter.detach().clone(), torch.full((5000,), 0.01, device="cuda")
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            parameter.add_(by)  # once outside, because a capture needs it
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            parameter.add_(by)
        parameter.copy_(start)
    tracker = AgingTracker([("w", parameter)], LogTimeSchedule([0], [1, 2, 5, 20]))
    for step in range(21):
        tracker.update(step)
        graph.replay()
    tracker.drain()
    lags = tracker.record.lags
    assert np.allclose(tracker.record.msd()[0], (0.01 * lags) ** 2, rtol=1e-4)


def test_a_model_on_another_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    with torch.cuda.device(0):
        there = track("cuda:1").record
    assert_same(there, track("cpu").record)


def test_snapshots_in_host_memory_are_used_again_and_stay_right() -> None:
    parameter = nn.Parameter(torch.zeros(300_000, device="cuda"))
    tracker = AgingTracker([("w", parameter)], LogTimeSchedule(range(40), [1, 2]), snapshot_device="cpu")
    for step in range(43):
        tracker.update(step)
        with torch.no_grad():
            parameter += 1.0
    tracker.drain()
    waiting_times, lags = tracker.record.pairs
    assert len(waiting_times) == 80
    assert np.allclose(tracker.record.moments[:, 0, 0] / 300_000, lags.astype(float) ** 2, rtol=1e-6)


# ---------------------------------------------------------------------- several streams

LATE = 50_000_000  # cycles: tens of milliseconds. An event that is not held back ends within this time.


@pytest.mark.parametrize("eager", ["0", "1"])
@pytest.mark.parametrize("options", [{}, {"snapshot_device": "cpu"}, {"n_replica": 2}], ids=str)
def test_an_event_does_not_overtake_an_event_on_another_stream(
    options: dict[str, Any], eager: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_GLASSY_EAGER", eager)
    path = torch.cumsum(torch.randn(9, 2, 400_000, device="cuda"), 0)

    def run(streams: list[torch.cuda.Stream]) -> AgingRecord:
        parameter = nn.Parameter(path[0])
        tracker = AgingTracker([("w", parameter)], LogTimeSchedule(range(6), [1, 2]), sample=None, **options)
        torch.cuda.synchronize()
        for step in range(9):
            stream = streams[step % len(streams)]
            parameter.data = path[step]  # no work on the device, so the caller has nothing to order
            with torch.cuda.stream(stream):
                if step % len(streams) == 0:
                    torch.cuda._sleep(LATE)
                tracker.update(step)
        tracker.drain()
        return tracker.record

    alone = run([torch.cuda.current_stream()])
    for streams in ([torch.cuda.Stream(), torch.cuda.Stream()], [torch.cuda.Stream(), torch.cuda.current_stream()]):
        record = run(streams)
        assert np.array_equal(record.moments, alone.moments, equal_nan=True)
        if "n_replica" in options:
            for a, b in zip(record.between("weight_distance"), alone.between("weight_distance"), strict=True):
                assert np.array_equal(a, b)


def test_weights_that_change_on_another_stream_right_after_an_event_are_those_before() -> None:
    parameter = nn.Parameter(torch.zeros(300_000, device="cuda"))
    tracker = AgingTracker([("w", parameter)], LogTimeSchedule(range(6), [1, 2]), sample=None)
    there = torch.cuda.Stream()
    there.wait_stream(torch.cuda.current_stream())
    for step in range(8):
        torch.cuda._sleep(LATE)  # on the stream on which the tracker was made
        with torch.cuda.stream(there), torch.no_grad():
            tracker.update(step)
            parameter += 1.0
            if step == 4:
                state = tracker.state_dict()
    tracker.drain()
    assert np.allclose(tracker.record.moments[:, 0, 0] / 300_000, tracker.record.pairs[1].astype(float) ** 2)
    for snapshot in state["parts"][0]["snapshots"]:
        assert (snapshot["flats"][0] == snapshot["waiting_time"]).all()


@pytest.mark.parametrize("eager", ["0", "1"])
def test_memory_that_is_freed_before_the_side_stream_is_done_is_not_reused(
    eager: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_GLASSY_EAGER", eager)
    parameter = nn.Parameter(torch.ones(100_000, device="cuda"))
    tracked = TrackedParameters(select_parameters([("w", parameter)]))
    bank, moments = SnapshotBank(tracked, "cpu"), moments_for(tracked, EPS, snapshot_device="cpu")
    snapshot = capture(bank, 0, moments)
    with torch.no_grad():
        parameter += 1.0
    (side,) = moments.streams.values()
    (sums,) = moments([snapshot])
    side.synchronize()
    expected = sums.cpu()
    with torch.cuda.stream(side):
        torch.cuda._sleep(LATE)
    (sums,) = moments([snapshot])
    own = [tensor.data_ptr() for tensor in snapshot.own_sums]
    host = snapshot.flats  # only the host's memory is still needed
    del moments, bank, snapshot
    # The training takes all the memory that is free, in blocks of many sizes.
    taken = [
        torch.full((n,), torch.nan, device="cuda") for n in (16, 128, 1 << 10, 100_000, 1 << 20) for _ in range(64)
    ]
    assert not set(own) & {tensor.data_ptr() for tensor in taken}
    torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(sums.cpu().nan_to_num(), expected.nan_to_num())
    assert host[0].eq(1).all()

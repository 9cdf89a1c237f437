"""The compiled pass on a CPU: against plain torch, against float64 NumPy, and its use of threads and the disk."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_glassy import AgingTracker, LogTimeSchedule
from lightning_glassy.callbacks.distribution import DISPLACEMENT_EDGES, WEIGHT_EDGES
from lightning_glassy.measure import moments as implementations
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.moments import EagerMoments, capture, counts_for, distances_for, moments_for
from lightning_glassy.measure.moments.replicas import BetweenReplicas, as_matrices
from lightning_glassy.measure.select import as_replicas, select_parameters
from lightning_glassy.measure.snapshots import SnapshotBank
from tests.kernel_checks import EPS, KernelChecks, exact, move, track

needs_numba = pytest.mark.needs("numba")


def in_order(x: np.ndarray[Any, Any]) -> float:
    """Add numbers as the compiled loops do: 64 bytes at once, 16 times, and 2048 numbers in their own precision."""
    total = 0.0
    for block in (x[at : at + 2048] for at in range(0, len(x), 2048)):
        step = 64 // x.itemsize
        whole = len(block) - len(block) % step
        lanes, rest = np.zeros(step, x.dtype), x.dtype.type(0)
        for start in range(0, whole, 16 * step):
            run = np.zeros(step, x.dtype)
            for at in range(start, min(start + 16 * step, whole), step):
                run = run + block[at : at + step]
            lanes = lanes + run
        while len(lanes) > 1:
            lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
        for number in block[whole:]:
            rest += number
        total += float(lanes[0] + rest)
    return total


def tasks_of_this_process() -> set[int]:
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


@needs_numba
class TestCompiled(KernelChecks):
    @staticmethod
    def implementation() -> Any:
        from lightning_glassy.measure.moments.cpu import CompiledMoments

        return CompiledMoments

    @staticmethod
    def tables(ours: Any) -> object:
        return ours._plans[0].chunks.table

    @pytest.mark.parametrize("exponent", [-24, -17, -15, -14, -1, 0, 15])
    def test_every_number_of_16_bits_is_read_exactly(self, exponent: int) -> None:
        values = torch.tensor([1.0, -1.0, 1.5]).double() * 2.0**exponent
        for dtype in (torch.float16, torch.bfloat16):
            (w,), tracked = track(values.to(dtype))
            ours = self.kernels(tracked)
            snapshot = capture(SnapshotBank(tracked), 0, ours)
            assert snapshot.own_sums[0][0, 1].item() == w.double().sum().item()
            assert torch.equal(snapshot.flats[0], w)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("n", [1, 7, 8, 9, 15, 16, 17, 195, 256, 259, 1001, 5001])
    def test_numbers_are_added_in_the_order_that_is_written_down(self, n: int, dtype: torch.dtype) -> None:
        from lightning_glassy.measure.moments.cpu import SCALE

        (w,), tracked = track((torch.randn(n) * 0.05).to(dtype))
        ours, alone = self.kernels(tracked, [1e-3, 1e-2]), self.kernels(tracked, msd_only=True)
        snapshot, start = capture(SnapshotBank(tracked), 0, ours), w.detach().clone()
        move([w], 0.01)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        now, then = w.detach().to(wide).numpy(), start.to(wide).numpy()
        scale = now.dtype.type(SCALE)
        square = np.square((now - then) * scale)
        d2, d4 = (in_order(x) / SCALE**power for x, power in ((square, 2), (np.square(square), 4)))
        w2, w1, s2, s1 = (in_order(x) for x in (np.square(now), now, np.square(then), then))
        counts = [np.sum(square <= np.square(np.multiply(SCALE, eps)).astype(now.dtype)) for eps in (1e-3, 1e-2)]
        assert ours([snapshot])[0][0, 0].tolist() == [d2, d4, (w2 + s2 - d2) / 2, w2, s2, w1, s1, *counts]
        assert alone([snapshot])[0][0, 0, 0] == d2

    def test_equal_numbers_whose_errors_of_rounding_add_up(self) -> None:
        for value, by in np.random.default_rng(0).uniform(0.5, 2.0, (100, 2)):
            (w,), tracked = track(torch.full((10_000,), 0.05 * value))
            ours, start = self.kernels(tracked), w.detach().clone()
            snapshot = capture(SnapshotBank(tracked), 0, ours)
            with torch.no_grad():
                w += 1e-3 * by
            assert np.allclose(ours([snapshot])[0][0, 0, :7], exact(w, start)[:7], rtol=1e-6, atol=0)

    def test_a_tensor_that_begins_and_ends_within_a_block(self) -> None:
        for n in (1, 511, 512, 513, 2047, 2048, 2049, 65_535, 65_537, 131_073):
            (w,), tracked = track(torch.randn(n))
            ours, start = self.kernels(tracked), w.detach().clone()
            snapshot = capture(SnapshotBank(tracked), 0, ours)
            move([w], 0.1)
            assert np.allclose(ours([snapshot])[0][0, 0, :5], exact(w, start)[:5], rtol=1e-6, atol=1e-6)

    def test_snapshots_that_take_more_passes_than_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lightning_glassy.measure.moments.cpu._SUM_BYTES", 100)
        parameters, tracked = track(torch.randn(50), torch.randn(70), groups="layer")
        ours, bank = self.kernels(tracked), SnapshotBank(tracked)
        assert ours._plans[0]._limit == 1
        for step in range(4):
            capture(bank, step, ours)
            move(parameters, 0.1)
        due = list(bank.live.values())
        self.check(tracked, due)
        ours(due, bank.add(9))
        assert torch.equal(bank.live[9].flats[0], torch.cat([w.detach() for w in parameters]))

    def test_the_sums_have_the_same_bits_for_any_number_of_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lightning_glassy.measure.moments.cpu._SHARED_BYTES", 1 << 18)
        parameters, tracked = track(torch.randn(400_000), torch.randn(9000).double(), torch.randn(300_000).bfloat16())
        ours, bank = self.kernels(tracked), SnapshotBank(tracked)
        due = [capture(bank, 0, ours)]
        move(parameters, 0.1)
        found, before = [], torch.get_num_threads()
        try:
            for n in (1, 2, 5):
                torch.set_num_threads(n)
                found.append((ours(due, bank.add(n)), bank.live[n]))
        finally:
            torch.set_num_threads(before)
        (alone, first), *others = found
        for sums, snapshot in others:
            assert all(torch.equal(*pair) for pair in zip(sums, alone, strict=True))
            assert all(torch.equal(*pair) for pair in zip(snapshot.flats, first.flats, strict=True))
            assert all(torch.equal(*pair) for pair in zip(snapshot.own_sums, first.own_sums, strict=True))

    def test_an_event_calls_no_operation_of_torch(self) -> None:
        class Operations(TorchDispatchMode):
            seen: ClassVar[list[str]] = []

            def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                self.seen.append(str(function))
                return function(*args, **(kwargs or {}))

        _, tracked = track(*(torch.randn(30) for _ in range(50)), groups="layer")
        ours, bank = self.kernels(tracked), SnapshotBank(tracked)
        due = [capture(bank, step, ours) for step in range(3)]
        new = bank.add(9)
        with Operations():
            ours(due, new)
        assert set(Operations.seen) <= {"aten.lift_fresh.default"}  # it creates the array of the result

    def test_a_small_event_wakes_no_thread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from lightning_glassy.measure.moments import cpu

        _, tracked = track(torch.randn(1_000_000))
        ours = self.kernels(tracked)
        due, runs = [capture(SnapshotBank(tracked), 0, ours)], []
        monkeypatch.setattr(cpu._team, "run", lambda work: runs.append(work) or work())
        ours(due)
        assert not runs
        ours(due * 8)  # 36 MB, with the weights
        assert len(runs) == 1

    @pytest.mark.parametrize("n", [1, 2, 5])
    def test_a_large_event_is_shared_with_the_threads_of_torch(self, n: int) -> None:
        from lightning_glassy.measure.moments import cpu

        if cpu._team._parallel is None:
            pytest.skip("torch has no threads of OpenMP here")
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(n)
            torch.ones(1_000_000).sum()
            seen: list[set[int]] = []
            for _ in range(3):
                met, turns = threading.Barrier(n, timeout=60), []
                cpu._team.run(lambda met=met, turns=turns: (met.wait(), turns.append(threading.get_native_id())))
                seen.append(set(turns))
                assert len(turns) == n
            if sys.platform == "linux":  # a team of OpenMP, whose threads stay
                tasks = tasks_of_this_process()
                assert seen[0] == seen[1] == seen[2]
                assert seen[0] <= tasks
                assert threading.get_native_id() in seen[0]
                torch.ones(1_000_000).sum()
                assert tasks_of_this_process() <= tasks  # torch has started no further threads
        finally:
            torch.set_num_threads(before)

    def test_what_fails_on_a_thread_is_raised(self) -> None:
        from lightning_glassy.measure.moments import cpu

        if cpu._team._parallel is None:
            pytest.skip("torch has no threads of OpenMP here")
        before = torch.get_num_threads()
        calling = threading.get_ident()
        met = threading.Barrier(2, timeout=60)

        def fail(on_calling: bool, error: BaseException) -> None:
            met.wait()
            if (threading.get_ident() == calling) is on_calling:
                raise error

        try:
            torch.set_num_threads(2)
            for on_calling, error in ((True, KeyboardInterrupt()), (False, MemoryError())):
                with pytest.raises(type(error)):
                    cpu._team.run(lambda case=(on_calling, error): fail(*case))
        finally:
            torch.set_num_threads(before)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
    def test_a_forked_process_measures_without_the_threads_that_it_has_lost(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("lightning_glassy.measure.moments.cpu._SHARED_BYTES", 1 << 18)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        _, tracked = track(torch.randn(400_000))
        ours = self.kernels(tracked)
        due = [capture(SnapshotBank(tracked), 0, ours)]
        expected = ours(due)[0].tolist()
        child = os.fork()
        if not child:
            os._exit(0 if ours(due)[0].tolist() == expected else 1)
        assert os.waitpid(child, 0)[1] == 0

    def test_an_event_takes_at_most_8_mib(self) -> None:
        for tensors in ([torch.zeros(3_000_000)], [torch.zeros(3)] * 2000):
            parameters, tracked = track(*(tensor.clone() for tensor in tensors), groups="layer")
            ours, bank = self.kernels(tracked), SnapshotBank(tracked)
            due = [capture(bank, step, ours) for step in range(12)]
            results = sum(sums.nbytes for sums in ours(due))
            ours = self.kernels(tracked)
            tracemalloc.start()
            try:
                ours(due, bank.add(20))
                assert tracemalloc.get_traced_memory()[1] - results <= 8 << 20
            finally:
                tracemalloc.stop()
            assert not parameters[0].grad_fn

    def test_nothing_is_compiled_after_the_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from lightning_glassy.measure.moments import compiled, cpu

        monkeypatch.setattr(cpu, "_SHARED_BYTES", 1 << 18)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        dispatchers = [value for value in vars(compiled).values() if hasattr(value, "signatures")]
        assert len(dispatchers) > 5
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            for options in ({}, {"sample": 30}, {"moments": "msd"}, {"overlap_thresholds": [0.1, 0.2, 0.3]}):
                parameter = torch.nn.Parameter(torch.randn(200_000).to(dtype))
                tracker = AgingTracker([("w", parameter)], LogTimeSchedule([0, 1, 2], [0, 1, 2]), **options)
                assert type(tracker._moments) is self.implementation()
                before = [list(dispatcher.signatures) for dispatcher in dispatchers]
                for step in range(4):
                    tracker.update(step)
                assert [list(dispatcher.signatures) for dispatcher in dispatchers] == before


@needs_numba
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sample", [None, 400])
def test_distances_between_replicas_are_exact_even_of_clones_that_hardly_moved(
    dtype: torch.dtype, sample: int | None
) -> None:
    from lightning_glassy.measure.moments.cpu import CompiledDistances

    wide = [(torch.randn(5, *shape) * 0.05).to(dtype) for shape in ((30, 20), (7,), (1,))]
    for tensor in wide:
        tensor[1] = (tensor[0].double() * (1 + (1e-6 if dtype.itemsize > 2 else 1e-2))).to(dtype)
    named = [(f"layer{i}.w", torch.nn.Parameter(tensor)) for i, tensor in enumerate(wide)]
    tracked = TrackedParameters(as_replicas(select_parameters(named, groups="layer"), 5), sample)
    ours, plain = distances_for(tracked), BetweenReplicas(tracked)
    assert isinstance(ours, CompiledDistances)
    for _ in range(2):
        w = torch.cat([flat.double() for flat in capture(SnapshotBank(tracked), 0, EagerMoments(tracked)).flats], -1)
        distances, products = as_matrices(ours().numpy(), 5)
        exactly = (w[:, None] - w[None]).square().sum(-1).numpy()
        apart = ~np.eye(5, dtype=bool)
        assert np.abs(distances[apart] / exactly[apart] - 1).max() < 1e-6
        assert np.abs(products - (w @ w.T).numpy()).max() < 1e-6 * float(w.square().sum(-1).max())
        assert ours().shape == plain().shape
        named[0][1].data = named[0][1].data.clone().mul_(1.5)  # at another place in memory


@needs_numba
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sample", [None, 4000])
def test_counts_are_those_of_numpy(dtype: torch.dtype, sample: int | None) -> None:
    tensors = (torch.randn(10_001) * 0.05, torch.randn(30, 40)[:, ::2], torch.randn(7) * 1e-5)
    parameters, tracked = track(*(tensor.to(dtype) for tensor in tensors), sample=sample, groups="layer")
    bank, plain = SnapshotBank(tracked), EagerMoments(tracked)
    start = capture(bank, 0, plain)
    move(parameters, 1e-2)
    now = capture(bank, 1, plain).flats[0]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for edges, count, values in (
        (WEIGHT_EDGES, counts_for(tracked, WEIGHT_EDGES)(None, 1.0), now.to(wide)),
        (DISPLACEMENT_EDGES, counts_for(tracked, DISPLACEMENT_EDGES)(start.flats, 100.0),
         (now.to(wide) - start.flats[0].to(wide)) * 100.0),
    ):  # fmt: skip
        bins = np.concatenate([[-np.inf], edges.astype(values.numpy().dtype), [np.inf]])
        assert count.tolist() == np.histogram(values.numpy(), bins)[0].tolist()


@needs_numba
def test_counts_at_the_edges_and_of_what_is_no_number() -> None:
    edges = np.array([-10.0, -1.0, 1.0, 10.0])
    values = [0.0, -0.0, 0.5, 1.0, 9.999, 10.0, 1e30, torch.inf, torch.nan, -0.5, -1.5, -10.5, -1e30, -torch.inf]
    for dtype in (torch.float32, torch.float64):
        _, tracked = track(torch.tensor(values, dtype=dtype))
        assert counts_for(tracked, edges)(None, 1.0).tolist() == [3, 1, 4, 2, 4]


PROCESS = """
import sys, torch
from lightning_glassy import AgingTracker, LogTimeSchedule
tracker = AgingTracker(torch.nn.Linear(20, 20), LogTimeSchedule([0], [1, 2]))
for step in range(3):
    tracker.update(step)
from lightning_glassy.measure.moments import compiled
print(type(tracker._moments).__name__, tracker.record.msd().tolist(), sum(compiled.walk.stats.cache_hits.values()))
"""


def run(directory: Path, code: str = PROCESS, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=300,
        cwd=directory,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip() + done.stderr.strip()


@needs_numba
@pytest.mark.slow
def test_a_second_process_reads_the_compiled_pass_from_disk(tmp_path: Path) -> None:
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert run(tmp_path, **cache) == "CompiledMoments [[0.0, 0.0]] 0"
    assert list((tmp_path / "cache").rglob("*.nbc"))
    assert run(tmp_path, **cache) == "CompiledMoments [[0.0, 0.0]] 1"


ANY_PROCESSOR = """
import numpy as np
import torch
from lightning_glassy import AgingRecord, AgingTracker, LogTimeSchedule
torch.manual_seed(0)
net = torch.nn.Sequential(*(torch.nn.Linear(20, n) for n in (20, 7, 33)))
tracker = AgingTracker(net, LogTimeSchedule([0], [1, 2]), overlap_thresholds=[0.01])
for step in range(3):
    tracker.update(step)
    with torch.no_grad():
        for w in net.parameters():
            w += torch.arange(w.numel()).reshape(w.shape) * 1e-5 - w * 0.01
print(type(tracker._moments).__name__, tracker.record.moments.tobytes().hex())
walk = AgingRecord.from_trajectory(np.cumsum(np.random.default_rng(0).normal(size=(3, 1000)), axis=0))
print(walk.moments.tobytes().hex())
"""


@needs_numba
@pytest.mark.slow
def test_another_processor_measures_the_same_bits(tmp_path: Path) -> None:
    for name in ("here", "any"):
        (tmp_path / name).mkdir()
    here = run(tmp_path, ANY_PROCESSOR, NUMBA_CACHE_DIR=str(tmp_path / "here"))
    # Use only the instructions that every processor of this kind has. This one has more.
    features = " ".join(np.show_config(mode="dicts")["SIMD Extensions"].get("found", []))
    any_one = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NPY_DISABLE_CPU_FEATURES": features}
    assert here.startswith("CompiledMoments ")
    assert run(tmp_path, ANY_PROCESSOR, NUMBA_CACHE_DIR=str(tmp_path / "any"), **any_one) == here


@needs_numba
@pytest.mark.slow
def test_without_a_directory_to_write_to_the_pass_is_compiled_again(tmp_path: Path) -> None:
    code = (
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = []\n"  # as if neither the package nor the home can be written
        + PROCESS.replace("sum(compiled.walk.stats.cache_hits.values())", "len(compiled.walk.signatures)")
    )
    assert run(tmp_path, code) == "CompiledMoments [[0.0, 0.0]] 1"


def test_without_numba_plain_torch_measures_and_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    implementations._tell_once.cache_clear()
    tracked = track(torch.randn(3))[1]
    with caplog.at_level(logging.INFO):
        assert isinstance(moments_for(tracked, EPS), EagerMoments)
        assert isinstance(moments_for(tracked, EPS), EagerMoments)
    assert len(caplog.messages) == 1
    assert "pip install 'lightning-glassy[cpu]'" in caplog.messages[0]


@needs_numba
def test_the_environment_can_ask_for_plain_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LIGHTNING_GLASSY_EAGER", "1")
    with caplog.at_level(logging.INFO):
        assert isinstance(moments_for(track(torch.randn(3))[1]), EagerMoments)
    assert not caplog.messages


@needs_numba
def test_a_pass_that_gives_wrong_sums_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from lightning_glassy.measure.moments.cpu import CompiledMoments

    right = CompiledMoments.__call__
    monkeypatch.setattr(CompiledMoments, "__call__", lambda self, *due: [1.001 * sums for sums in right(self, *due)])
    assert isinstance(moments_for(track(torch.randn(3))[1]), EagerMoments)
    assert "differ from the sums of plain torch" in caplog.text

"""The CUDA kernels, run by Triton's interpreter on a CPU: against plain torch, and against float64 NumPy.

The interpreter has to be chosen before triton is imported, and for the whole process. So
``test_the_kernels_in_tritons_interpreter`` starts a separate process for these tests.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_glassy.measure import moments as implementations
from lightning_glassy.measure.memory import plan_sample
from lightning_glassy.measure.moments import EagerMoments, OffloadedMoments, capture, moments_for
from lightning_glassy.measure.snapshots import SnapshotBank
from tests.kernel_checks import EPS, KernelChecks, move, track

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is the process that it starts")
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_kernels_in_tritons_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr


class CountedKernel:
    """A kernel that notes each launch."""

    def __init__(self, kernel: object, launches: list[object]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: object) -> Callable[..., object]:
        self.launches.append(grid)
        return self.kernel[grid]


class TestInterpreted(KernelChecks):
    __test__ = INTERPRETED

    @staticmethod
    def implementation() -> Any:
        from lightning_glassy.measure.moments.triton import TritonMoments

        return TritonMoments

    def test_one_launch_takes_all_dtypes_and_up_to_32_snapshots(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from lightning_glassy.measure.moments import triton as module

        _, tracked = track(torch.randn(50), torch.randn(20).double(), torch.randn(9).half(), torch.randn(70).bfloat16())
        ours, bank, launches = self.kernels(tracked), SnapshotBank(tracked), []
        due = [capture(bank, step, ours) for step in range(33)]
        for name in ("_sum_jobs", "_add_jobs"):
            monkeypatch.setattr(module, name, CountedKernel(getattr(module, name), launches))
        ours(due[:32], bank.add(40))
        assert len(launches) == 2
        ours(due)
        assert len(launches) == 6

    def test_more_chunks_than_jobs_and_more_rows_than_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lightning_glassy.measure.moments.triton._resident_warps", lambda device: 5)
        monkeypatch.setattr("lightning_glassy.measure.moments.triton._CHUNKS_PER_JOB", 2)
        parameters, tracked = track(torch.randn(40_000), torch.randn(33), torch.randn(6000), groups="layer")
        ours = self.kernels(tracked)
        assert len(ours._plans[0].chunks) == 8 + 1 + 2  # 5120 coordinates each
        assert ours._plans[0].jobs.tolist() == [[0, 8, 3], [1, 8, 3], [2, 8, 3], [8, 9, 1], [9, 11, 1]]
        assert ours._plans[0].cells.tolist() == [0, 3, 4, 5]
        snapshot = capture(SnapshotBank(tracked), 0, ours)
        move(parameters, 0.1)
        self.check(tracked, [snapshot])

    @pytest.mark.parametrize(
        ("n", "dtype", "vector"),
        [
            (1000, torch.float32, 1000),  # one masked row, 16 bytes at a time
            (3000, torch.bfloat16, 3000),  # after two whole rows
            (1001, torch.float32, 0),  # its length is no multiple of 16 bytes
            (2049, torch.bfloat16, 2048),
            (700, torch.float64, 700),
            (701, torch.float64, 512),
        ],
    )
    def test_rows_are_read_16_bytes_at_a_time_where_their_length_allows(
        self, n: int, dtype: torch.dtype, vector: int
    ) -> None:
        parameters, tracked = track(torch.randn(n, dtype=torch.float64).to(dtype))
        ours = self.kernels(tracked)
        assert ours._plans[0].chunks[:, 3].sum() == vector
        snapshot = capture(SnapshotBank(tracked), 0, ours)
        assert torch.equal(snapshot.flats[0], parameters[0])
        move(parameters, 0.1)
        self.check(tracked, [snapshot])

    def test_addresses_are_sent_only_if_a_snapshot_lies_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from lightning_glassy.measure.moments import triton as module

        parameters, tracked = track(torch.randn(1100), torch.randn(40).double())
        ours, plain, bank, sent = self.kernels(tracked), EagerMoments(tracked, EPS), SnapshotBank(tracked), []
        send = module._send
        monkeypatch.setattr(module, "_send", lambda values, device: sent.append(1) or send(values, device))
        bank.reserve(3)
        for step in range(9):  # each memory is captured three times
            due = list(bank.live.values())
            ours(due, bank.add(step))
            assert len(sent) == min(step + 1, 3)
            self.check_sums(ours(due[::-1]), plain(due[::-1]))
            move(parameters, 0.1)
            if step >= 2:
                bank.release(step - 2)
        assert len(sent) == 3

    def test_more_snapshots_than_the_table_has_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lightning_glassy.measure.moments.triton._SLOTS", 5)
        parameters, tracked = track(torch.randn(50))
        ours, plain, bank = self.kernels(tracked), EagerMoments(tracked, EPS), SnapshotBank(tracked)
        for step in range(9):
            capture(bank, step, ours)
            move(parameters, 0.1)
        every = list(bank.live.values())
        for due in (every[:4], every[5:9], every[2:6], [every[0], every[0]]):
            self.check_sums(ours(due), plain(due))

    def test_scratch_and_tables_stay_small_and_nothing_is_attached_to_autograd(self) -> None:
        parameters, tracked = track(torch.zeros(30_000_000), *(torch.randn(3) for _ in range(100)), groups="layer")
        ours = self.kernels(tracked)
        plan = ours._plans[0]
        tables = sum(t.nbytes for t in (plan.chunks, plan.jobs, plan.cells, plan.thresholds))
        assert ours._limit == 32
        assert tables + sum(scratch.nbytes for scratch in ours._scratch) <= 8 * 2**20
        few, tracked = track(torch.randn(10))
        assert not capture(SnapshotBank(tracked), 0, self.kernels(tracked)).flats[0].requires_grad
        assert all(parameter.grad_fn is None for parameter in parameters + few)


# ---------------------------------------------------------------------- the choice of the implementation


@pytest.mark.skipif(INTERPRETED, reason="of the choice, not of the kernels")
class TestChoice:
    def test_on_a_cpu_triton_is_not_imported(self) -> None:
        code = (
            "import sys, torch\n"
            "from lightning_glassy import AgingTracker, LogTimeSchedule\n"
            "tracker = AgingTracker(torch.nn.Linear(2, 2).named_parameters(), LogTimeSchedule([0], [1]))\n"
            "assert type(tracker._moments).__name__ in ('CompiledMoments', 'EagerMoments')\n"
            "assert 'triton' not in sys.modules and 'lightning_glassy.measure.moments.triton' not in sys.modules\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=300)

    def test_kernels_that_do_not_work_are_replaced_with_one_message(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fails(*args: object) -> None:
            raise RuntimeError("no compiler here")

        monkeypatch.setattr(implementations, "_rehearse", fails)
        monkeypatch.setattr(implementations, "EagerMoments", lambda *args, **options: "plain torch")
        on_cuda = SimpleNamespace(buckets=[SimpleNamespace(device=torch.device("cuda"))])
        with caplog.at_level(logging.WARNING):
            assert moments_for(on_cuda) == "plain torch"
        assert len(caplog.messages) == 1
        assert "plain torch" in caplog.messages[0]
        caplog.clear()
        monkeypatch.setenv("LIGHTNING_GLASSY_EAGER", "1")
        assert moments_for(on_cuda) == "plain torch"
        assert not caplog.messages


def compiled_for(architecture: int, kinds: int, **constants: object) -> tuple[Any, Any]:
    """Return both kernels, compiled for a GPU that is not here."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lightning_glassy.measure.moments import triton as module

    constants = {"OWN": True, "CAPTURE": True, "MEASURE": True, "N_PAIR": 4, "N_THRESHOLD": 2, "PTX": True} | constants
    constants |= {"KINDS": kinds, "INDEXED": kinds == 15, "DEPENDENT": architecture >= 90}
    types = {"chunks": "*i64", "jobs": "*i64", "cells": "*i64", "table": "*i64", "thresholds": "*fp64"}
    types |= {"partial": "*fp64", "out": "*fp64"} | {f"due{i}": "i64" for i in range(4)}

    def compiled(kernel: Any, options: dict[str, Any], n_line: int) -> Any:
        used = {name: value for name, value in (constants | {"N_LINE": n_line}).items() if name in kernel.arg_names}
        signature = {name: types.get(name, "i32") for name in kernel.arg_names} | dict.fromkeys(used, "constexpr")
        source = ASTSource(kernel, signature, constexprs=used)
        return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)

    return compiled(module._sum_jobs, module._WALK, 4), compiled(module._add_jobs, {"num_warps": 8}, 8)


def spilled_bytes(ptx: str, directory: Path) -> int:
    """Return the bytes of registers that are kept in memory, as the assembler reports."""
    import triton

    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    (directory / "kernel.ptx").write_text(ptx)
    target = re.search(r"\.target (\w+)", ptx)
    assert target is not None
    command = [assembler, "-v", f"--gpu-name={target[1]}", "kernel.ptx", "-o", "kernel.cubin"]
    said = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True, timeout=300).stderr
    return sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", said))


@pytest.mark.skipif(INTERPRETED, reason="of the compiled kernels")
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
class TestCompiled:
    @pytest.mark.parametrize(
        ("architecture", "kinds"),
        # float32, float64, bfloat16, float32 beside bfloat16, all four dtypes with samples
        [(80, 1), (80, 4), (90, 1), (90, 2), (90, 4), (90, 5), (90, 15)],
    )
    def test_16_bytes_to_a_load_and_no_register_is_kept_in_memory(
        self, architecture: int, kinds: int, tmp_path: Path
    ) -> None:
        first, second = compiled_for(architecture, kinds)
        assert first.asm["cubin"]
        assert second.asm["cubin"]
        wide = r"\.(v4\.b32|v2\.b64) "
        ptx = first.asm["ptx"]
        assert re.search(r"ld\.global" + wide, ptx)  # the weights
        assert re.search(r"ld\.global\.L1::evict_first\S*" + wide, ptx)  # a snapshot
        assert re.search(r"st\.global\S*" + wide, ptx)  # the new snapshot
        # On older GPUs, and for all four dtypes at once with samples, a few values of a whole chunk may not fit.
        assert spilled_bytes(ptx, tmp_path) <= (64 if architecture < 90 or kinds == 15 else 0)
        assert spilled_bytes(second.asm["ptx"], tmp_path) == 0

    def test_only_the_first_events_compile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from benchmarks.fake_driver import fake_driver
        from lightning_glassy.measure.moments import triton as module

        with fake_driver() as seen:
            parameters, tracked = track(torch.randn(5000), torch.randn(7))
            ours, bank = module.TritonMoments(tracked, EPS), SnapshotBank(tracked)
            ours([], bank.add(0))
            ours([bank.live[0]])
            ours([bank.live[0]], bank.add(1))
            n = len(seen.compiled)
            assert n == 5  # the first kernel does not know whether anything is due
            # Check the way of a first launch, too. The numbers of rows have the same type for any number of rows.
            monkeypatch.setattr(module, "_COMPILED_TAKES_ALL", False)
            ours._plans[0].compiled.clear()
            for step in range(2, 250):
                capture(bank, step, ours)
            for due in ([100], [249], [7] * 8, range(200, 232), range(2, 250)):
                ours([bank.live[step] for step in due], bank.add(1000))
                ours([bank.live[step] for step in due])
            parameters[0].data = parameters[0].data.clone()
            ours([bank.live[0]])
            assert len(seen.compiled) == n

    def test_the_second_kernel_waits_for_the_first_before_it_reads_its_sums(self) -> None:
        first, second = (kernel.asm["ptx"] for kernel in compiled_for(90, 1))
        assert "griddepcontrol.launch_dependents" in first
        waits = second.index("griddepcontrol.wait")
        # Before, it reads the first job of a cell and the end. The sums of the jobs are float64 and come after.
        assert len(re.findall(r"ld\.global", second[:waits])) == 2
        assert "griddepcontrol" not in "".join(kernel.asm["ptx"] for kernel in compiled_for(80, 1))


# ---------------------------------------------------------------------- the place of snapshots


@pytest.mark.skipif(INTERPRETED, reason="of the bank, not of the kernels")
class TestBank:
    def test_a_capture_takes_the_memory_of_the_snapshot_that_was_given_up(self) -> None:
        parameters, tracked = track(torch.randn(100), torch.randn(3).double())
        bank, plain = SnapshotBank(tracked), EagerMoments(tracked)
        first = [flat.data_ptr() for flat in capture(bank, 0, plain).flats]
        capture(bank, 1, plain)
        bank.release(0)
        move(parameters, 1.0)
        third = capture(bank, 2, plain)
        assert [flat.data_ptr() for flat in third.flats] == first
        assert torch.equal(third.flats[0], parameters[0])
        assert list(bank.live) == [1, 2]
        bank.release(1)
        bank.release(2, reuse=False)
        assert not bank._spare

    @pytest.mark.parametrize("options", [{}, {"msd_only": True}], ids=str)
    @pytest.mark.parametrize("sample", [None, 300])
    def test_offloaded_snapshots_are_measured_as_those_on_the_device(
        self, sample: int | None, options: dict[str, bool]
    ) -> None:
        # A CPU has no streams, but the copies, their places and their order are the same.
        parameters, tracked = track(
            torch.randn(400), torch.randn(30, 20).t(), torch.randn(7).double(), sample=sample, groups="layer"
        )
        plain = EagerMoments(tracked, EPS, **options)
        beside = OffloadedMoments(tracked, lambda copied: EagerMoments(copied, EPS, **options))
        here, there = SnapshotBank(tracked), SnapshotBank(tracked)
        for step in range(4):
            sums = plain(list(here.live.values()), here.add(step))
            others = beside(list(there.live.values()), there.add(step))
            assert [s.shape for s in sums] == [s.shape for s in others]
            for a, b in zip(sums, others, strict=True):
                assert torch.allclose(a, b, rtol=1e-12, atol=1e-12, equal_nan=True)
            for a, b in zip(here.live[step].flats, there.live[step].flats, strict=True):
                assert torch.equal(a, b)
            move(parameters, 0.1)

    def test_a_sample_of_what_is_not_dense_is_that_of_a_dense_copy(self) -> None:
        strided = [torch.randn(6, 40)[:, ::2], torch.randn(3, 9, 11)[:2, 1:5, 2:]]
        flats = []
        for tensors in (strided, [tensor.contiguous() for tensor in strided]):
            _, tracked = track(*tensors, sample=100)
            flats.append(capture(SnapshotBank(tracked), 0, EagerMoments(tracked)).flats[0])
        assert torch.equal(*flats)

    def test_pinned_memory_is_planned_as_it_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        free = {"cuda": 16_000, "cpu": 1 << 40}
        monkeypatch.setattr("lightning_glassy.measure.memory.free_memory", lambda device: free[device.type])
        on_cuda = SimpleNamespace(device=torch.device("cuda"), is_cuda=True)
        selected = [SimpleNamespace(numel=1000, n_counted=1000, n_replica=None, dtype=torch.float32, tensor=on_cuda)]
        assert plan_sample(selected, 3, sample=None, device="cpu") == (None, 3 * 4096)
        assert plan_sample(selected, 3, sample=100, device="cpu") == (100, 3 * 512 + 800)
        n, n_bytes = plan_sample(selected, 3, device="cpu", max_memory=10_000)
        assert n is not None
        assert n_bytes <= 10_000
        # The tensors in passing have to fit on the device, beside a copy of the weights.
        assert plan_sample(selected, 3, device="cpu")[0] == 1600 // 8
        free["cuda"] = 7000
        with pytest.raises(MemoryError, match=r"two copies of 1,000 coordinates pass through cuda, 7\.8 KiB"):
            plan_sample(selected, 3, sample=None, device="cpu")

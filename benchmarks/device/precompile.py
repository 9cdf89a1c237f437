"""Fill a cache of compiled kernels without a GPU, so that the run on the GPU need not compile.

Triton finds a compiled kernel by its source, the versions of Python and Triton, and the kind of the GPU. Use the same
versions here as on the machine with the GPU. Set ``TRITON_CACHE_DIR`` to the folder that you will copy there.
"""

from __future__ import annotations

import os
import time
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.device.findings import EPS
from benchmarks.fake_driver import fake_driver
from benchmarks.pretend_cuda import on_cuda, pretend_cuda
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.select import select_parameters
from lightning_glassy.measure.snapshots import SnapshotBank

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16

# Dtypes, whether some tensors are sampled or not dense, and a pair (overlap thresholds, displacement only). These are
# the kernels of this command and of the tests for the GPU.
CASES = [
    *product(((F32,), (BF16,), (F64,), (F16,)), (False, True), ((EPS, False), ((), True))),
    *product(((F32, F64, BF16),), (False, True), ((EPS, False), (EPS, True), ((), True))),
]


def precompile(cases: Any = CASES) -> None:
    """Compile the kernels of all cases, and print how many there are."""
    if not os.environ.get("TRITON_CACHE_DIR"):
        raise SystemExit("TRITON_CACHE_DIR is not set: name the folder that shall hold the kernels")
    with fake_driver() as seen, pretend_cuda():
        for dtypes, scattered, (thresholds, msd_only) in cases:
            start, before = time.perf_counter(), len(seen.compiled)
            _launch_all([_tensor(dtype, scattered) for dtype in dtypes], thresholds, msd_only)
            names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
            what = f"{'+'.join(names)}{', scattered' if scattered else ''}{', msd only' if msd_only else ''}"
            print(f"{what}: {len(seen.compiled) - before} kernels, {time.perf_counter() - start:.1f} s", flush=True)
    known = sum(hit for _, hit in seen.compiled)
    print(f"{len(seen.compiled)} kernels, of which {known} were there; in {os.environ['TRITON_CACHE_DIR']}", flush=True)


def _tensor(dtype: torch.dtype, scattered: bool) -> Tensor:
    tensor = torch.randn(4096).to(dtype)
    return tensor[::2] if scattered else tensor


def _launch_all(tensors: list[Tensor], thresholds: Any, msd_only: bool) -> None:
    """Capture alone, measure alone, and do both at once."""
    from lightning_glassy.measure.moments.triton import TritonMoments

    named = [(f"{index}.w", nn.Parameter(tensor)) for index, tensor in enumerate(tensors)]
    tracked = on_cuda(TrackedParameters(select_parameters(named)))
    ours, bank = TritonMoments(tracked, thresholds, msd_only=msd_only), SnapshotBank(tracked)
    first = bank.add(0)
    ours((), first)
    ours([first])
    ours([first], bank.add(1))

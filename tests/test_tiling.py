"""Plain torch with the tiles of a GPU: few operations, the same sums. The GPU is pretended, the arithmetic is real."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_glassy.callbacks.distribution import DISPLACEMENT_EDGES, _count
from lightning_glassy.measure import tiling
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.moments import EagerMoments, capture
from lightning_glassy.measure.moments.replicas import BetweenReplicas, as_matrices
from lightning_glassy.measure.select import as_replicas, select_parameters
from lightning_glassy.measure.snapshots import SnapshotBank

EPS = (1e-3, 1e-1)

# These are the sizes of the tensors of a ResNet-18 for ten classes, largest first.
RESNET = [2359296] * 3 + [1179648] + [589824] * 3 + [294912] + [147456] * 3 + [131072, 73728] + [36864] * 4
RESNET += [32768, 9408, 8192, 5120] + [512] * 10 + [256] * 10 + [128] * 10 + [64] * 10 + [10]

VIEWS = {
    "view",
    "slice",
    "select",
    "unsqueeze",
    "expand",
    "alias",
    "detach",
    "permute",
    "transpose",
    "unbind",
    "_unsafe_view",
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "few_operations", lambda device: True)


class Operations(TorchDispatchMode):
    """Counts the operations that a GPU would launch."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += function.__name__.split(".")[0] not in VIEWS
        return function(*args, **(kwargs or {}))


def operations(run: Callable[[], object]) -> int:
    with Operations() as seen:
        run()
    return seen.n


def networks(
    *sizes: int, n_replica: int | None = None, dtype: torch.dtype = torch.float32, groups: str = "all"
) -> TrackedParameters:
    shape = () if n_replica is None else (n_replica,)
    named = [(f"layer{i}.w", nn.Parameter((torch.randn(*shape, n) * 0.05).to(dtype))) for i, n in enumerate(sizes)]
    selected = select_parameters(named, groups=groups)
    return TrackedParameters(selected if n_replica is None else as_replicas(selected, n_replica))


def move(tracked: TrackedParameters, by: float) -> None:
    with torch.no_grad():
        for parameter in tracked.tensors.values():
            parameter += (by * torch.randn(parameter.shape, dtype=torch.float64)).to(parameter.dtype)


def flat(tracked: TrackedParameters) -> torch.Tensor:
    return torch.cat([parameter.detach().double() for parameter in tracked.tensors.values()], dim=-1)


@pytest.mark.usefixtures("gpu")
def test_an_event_of_a_resnet_takes_few_operations() -> None:
    tracked = networks(*RESNET)
    assert tracked.n_parameters["all"] == 11_181_642
    plain, bank = EagerMoments(tracked, EPS), SnapshotBank(tracked)
    due = [capture(bank, step, plain) for step in range(4)]
    assert operations(lambda: plain(due)) < 200  # 2,084 with the tiles of a CPU
    assert sum(scratch.nbytes for scratch in plain._scratch.values()) <= 64 << 20


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("groups", ["all", "layer"])
def test_a_histogram_of_a_resnet_takes_few_operations(groups: str) -> None:
    tracked = networks(*RESNET, groups=groups)
    snapshot = capture(SnapshotBank(tracked), 0, EagerMoments(tracked))
    assert operations(lambda: _count(tracked, DISPLACEMENT_EDGES, snapshot.flats, torch.tensor(1.0))) < 200


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("displacement", [1e-1, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_over_a_large_tile_keep_their_precision(displacement: float, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and displacement < 1e-3:
        pytest.skip("bfloat16 weights cannot move so little")
    tracked = networks(3_000_017, 5000, 7, dtype=dtype)
    plain, start = EagerMoments(tracked, EPS), flat(tracked)
    snapshot = capture(SnapshotBank(tracked), 0, plain)
    assert [len(plan.tiles) for plan in plain._plans] == [1 + (dtype == torch.float64)]
    move(tracked, 0.05 * displacement)
    now = flat(tracked)
    d, found = now - start, plain([snapshot])[0][0, 0]
    exact = torch.stack([d.square().sum(), d.pow(4).sum(), now @ start, now.square().sum(), start.square().sum()])
    assert (found[:5] / exact - 1).abs().max() < 1e-6
    counts = torch.tensor([(d.abs() <= eps).sum() for eps in EPS])
    assert (found[7:] - counts).abs().max() <= 3  # |d| may round to eps itself


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the largest memory that a call has taken at once."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sample", [None, 2_900_000])
def test_the_memory_of_a_tile_is_bounded(sample: int | None, dtype: torch.dtype) -> None:
    # A sample of a tensor that is not dense needs the most memory.
    weights = torch.randn(6000, 1000).to(dtype) if sample is None else torch.randn(3000, 2000).to(dtype)[:, ::2]
    tracked = TrackedParameters(select_parameters([("w", nn.Parameter(weights))]), sample)
    plain = EagerMoments(tracked, EPS)
    due = [capture(SnapshotBank(tracked), step, plain) for step in range(2)]
    plain._scratch.clear()
    assert peak_bytes(lambda: plain(due)) <= 64 << 20
    assert peak_bytes(lambda: _count(tracked, DISPLACEMENT_EDGES, due[0].flats, torch.tensor(1.0))) <= 64 << 20


def test_counts_in_float32_stay_exact() -> None:
    assert tiling._GPU_BYTES // 8 < 1 << 24


@pytest.mark.parametrize("sizes", [(4096,), (62_500,), (5000, 9001, 3)], ids=str)
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_replicas_are_compared_to_the_same_precision_with_large_tiles(
    sizes: tuple[int, ...], large: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiling, "few_operations", lambda device: large)
    tracked = networks(*sizes, n_replica=5, dtype=dtype)
    with torch.no_grad():  # clones that have hardly moved apart
        for parameter in tracked.tensors.values():
            parameter[1] = parameter[0] * (1 + 1e-6)
    before, compare = flat(tracked), BetweenReplicas(tracked)
    distances, products = as_matrices(compare().numpy(), 5)
    assert torch.equal(flat(tracked), before)  # only read
    w = before.numpy()
    exact = ((w[:, None] - w[None]) ** 2).sum(-1)
    apart = ~np.eye(5, dtype=bool)
    assert np.abs(distances[apart] / exact[apart] - 1).max() < 1e-6
    assert np.abs(products - w @ w.T).max() < 1e-6 * (w**2).sum(-1).max()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("n", "most"), [(62_500, 25), (1_000_000, 80)])
def test_comparing_replicas_takes_few_operations(n: int, most: int) -> None:
    compare = BetweenReplicas(networks(n, n_replica=16))
    assert operations(compare) < most  # 145 and 2,206 with the tiles of a CPU
    assert sum(plan.scratch.nbytes for plan in compare._plans) <= 16 << 20


@pytest.mark.usefixtures("gpu")
def test_histograms_do_not_depend_on_the_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    tracked = networks(700_001, 300_000)
    snapshot = capture(SnapshotBank(tracked), 0, EagerMoments(tracked))
    move(tracked, 0.01)
    run = lambda: _count(tracked, DISPLACEMENT_EDGES, snapshot.flats, torch.tensor(100.0))  # noqa: E731
    large = run()
    monkeypatch.setattr(tiling, "few_operations", lambda device: False)
    assert torch.equal(run(), large)
    assert large.sum() == 1_000_001

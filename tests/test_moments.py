"""The moments on the device against float64 NumPy, and the choice of tracked parameters."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import nn

from lightning_glassy import AgingTracker, LogTimeSchedule
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.memory import free_memory, plan_sample
from lightning_glassy.measure.moments import EagerMoments, capture
from lightning_glassy.measure.select import select_parameters
from lightning_glassy.measure.snapshots import SnapshotBank
from lightning_glassy.record import MOMENTS

EPS = (1e-3, 1e-1)


def measure(
    parameters: list[tuple[str, nn.Parameter]], moved: list[torch.Tensor], **options: object
) -> tuple[np.ndarray, TrackedParameters]:
    """Return the moments [n_group, n_moment] between the parameters now and after ``moved`` replaces them."""
    tracked = TrackedParameters(select_parameters(parameters, **options))
    bank, moments = SnapshotBank(tracked), EagerMoments(tracked, EPS)
    snapshot = capture(bank, 0, moments)
    with torch.no_grad():
        for (_, parameter), value in zip(parameters, moved, strict=True):
            parameter.copy_(value)
    cells = sum(part.double().numpy() for part in moments([snapshot]))
    return np.stack([cells[c, 0] for c in range(tracked.n_cells)]).sum(0, keepdims=True), tracked


def exact(w: list[torch.Tensor], s: list[torch.Tensor]) -> np.ndarray:
    new = np.concatenate([t.detach().double().numpy().ravel() for t in w])
    old = np.concatenate([t.detach().double().numpy().ravel() for t in s])
    d = new - old
    counts = [(np.abs(d) <= eps).sum() for eps in EPS]
    return np.array([(d**2).sum(), (d**4).sum(), new @ old, new @ new, old @ old, new.sum(), old.sum(), *counts])


@pytest.mark.parametrize("displacement", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_float32_moments_agree_with_float64_to_1e_6(displacement: float) -> None:
    # The size is more than two tiles, and a remainder.
    start = torch.randn(2_500_001) * 0.05
    moved = start + displacement * 0.05 * torch.randn(len(start))
    result, _ = measure([("w", nn.Parameter(start.clone()))], [moved])
    reference = exact([moved], [start])
    relative = np.abs(result[0] / reference - 1)
    positive = [MOMENTS.index(name) for name in ("d2", "d4", "ws", "w2", "s2")]
    assert relative[positive].max() < 1e-6
    # Sums that cancel are exact to the same part of the sum of absolute terms.
    assert abs(result[0, 5] - reference[5]) < 1e-6 * start.abs().sum()
    assert np.abs(result[0, 7:] - reference[7:]).max() <= 2  # a count may differ where |d| rounds to eps itself


@pytest.mark.parametrize("displacement", [1e-10, 1e-12])
def test_fourth_moment_does_not_underflow(displacement: float) -> None:
    start = torch.zeros(1000)
    moved = displacement * torch.randn(1000)
    result, _ = measure([("w", nn.Parameter(start.clone()))], [moved])
    assert result[0, 1] == pytest.approx(exact([moved], [start])[1], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_are_measured_as_they_are(dtype: torch.dtype) -> None:
    start = (torch.randn(1_200_001) * 0.05).to(dtype)
    moved = (start.double() + 0.01 * torch.randn(len(start))).to(dtype)
    result, _ = measure([("w", nn.Parameter(start.clone()))], [moved])
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    assert np.allclose(result[0, :5], exact([moved], [start])[:5], rtol=tolerance, atol=0)


def test_many_shapes_dtypes_and_memory_formats_at_once() -> None:
    base = torch.randn(6, 40)
    parameters = [
        ("conv", nn.Parameter(torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last))),
        ("double", nn.Parameter(torch.randn(7, dtype=torch.float64))),
        ("scalar", nn.Parameter(torch.tensor(2.0))),
        ("transposed", nn.Parameter(torch.randn(30, 20).t())),
        ("strided", nn.Parameter(base[:, ::2])),
        ("complex", nn.Parameter(torch.randn(5, dtype=torch.complex64))),
        ("empty", nn.Parameter(torch.empty(0, 3))),
        ("half", nn.Parameter(torch.randn(50).bfloat16())),
    ]
    start = [p.detach().clone() for _, p in parameters]
    moved = [p + 0.01 * torch.randn_like(p) for p in start]
    result, tracked = measure(parameters, moved)
    moved = [p.detach() for _, p in parameters]  # after rounding to each dtype

    def real(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.view_as_real(t) if t.is_complex() else t for t in tensors]

    assert np.allclose(result[0, :7], exact(real(moved), real(start))[:7], rtol=1e-6, atol=1e-6)
    assert tracked.n_parameters["all"] == 300 + 7 + 1 + 600 + 120 + 10 + 50


def test_weights_that_are_put_elsewhere_are_still_followed() -> None:
    parameter = nn.Parameter(torch.randn(4, 3, 5, 5))
    tracked = TrackedParameters(select_parameters([("w", parameter)]))
    bank, moments = SnapshotBank(tracked), EagerMoments(tracked)
    start = parameter.detach().clone()
    snapshot = capture(bank, 0, moments)
    moved = start + 0.5 * torch.randn_like(start)
    parameter.data = moved.to(memory_format=torch.channels_last)  # another address and another order in memory
    assert moments([snapshot])[0][0, 0, 0].item() == pytest.approx(((moved - start) ** 2).sum().item(), rel=1e-6)


def test_msd_only_is_the_same_msd_and_no_other_number() -> None:
    parameter = nn.Parameter(torch.randn(1000))
    tracked = TrackedParameters(select_parameters([("w", parameter)]))
    bank, full, alone = SnapshotBank(tracked), EagerMoments(tracked, EPS), EagerMoments(tracked, EPS, msd_only=True)
    snapshot = capture(bank, 0, full)
    with torch.no_grad():
        parameter += 0.1
    every, one = full([snapshot])[0][0, 0], alone([snapshot])[0][0, 0]
    assert one[0] == every[0]
    assert torch.isnan(one[[1, 2, 3, 5, 7, 8]]).all()
    assert torch.equal(one[[4, 6]], every[[4, 6]])  # sums of the snapshot, which cost nothing


@pytest.mark.parametrize("sample", [None, 4_000_000])
@pytest.mark.parametrize("dtypes", [[torch.float32], [torch.bfloat16], [torch.bfloat16, torch.float32, torch.float64]])
def test_an_event_takes_at_most_8_mib_beyond_the_snapshots(dtypes: list[torch.dtype], sample: int | None) -> None:
    sizes = [3_000_000, 1_000, 2_000_000]
    parameters = [(f"{n}.{dtype}", nn.Parameter(torch.randn(n).to(dtype))) for n in sizes for dtype in dtypes]
    tracked = TrackedParameters(select_parameters(parameters), sample)
    bank, moments = SnapshotBank(tracked), EagerMoments(tracked, EPS)
    snapshots = [capture(bank, step, moments) for step in range(3)]
    fresh = EagerMoments(tracked, EPS)  # its scratch is not there yet
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        fresh(snapshots)
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert 2 * 2**20 < peak <= 8 * 2**20  # a smaller peak would not include the scratch


def test_measuring_draws_no_random_number_and_leaves_no_trace_in_autograd() -> None:
    model = nn.Linear(50, 50)
    state = torch.random.get_rng_state()
    tracker = AgingTracker(model.named_parameters(), LogTimeSchedule([0], [1]), sample=500)
    tracker.update(0)
    loss = model(torch.ones(3, 50)).sum()
    tracker.update(1)
    loss.backward()  # an in-place change of a saved weight would raise here
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(not t.requires_grad for s in tracker._bank.live.values() for t in s.flats)


def test_autocast_does_not_change_the_numbers() -> None:
    def run(inside: torch.autocast | None) -> float:
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(1000))
        tracker = AgingTracker([("w", parameter)], LogTimeSchedule([0], [1]))
        if inside is not None:
            inside.__enter__()
        tracker.update(0)
        with torch.no_grad():
            parameter += 1e-3 * torch.randn(1000)
        tracker.update(1)
        if inside is not None:
            inside.__exit__(None, None, None)
        return float(tracker.record.msd()[0, 0])

    assert run(torch.autocast("cpu", torch.bfloat16)) == run(None)


# ---------------------------------------------------------------------- tracked parameters


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(()))


def names(**options: object) -> list[str]:
    return [p.name for p in select_parameters(Tied().named_parameters(remove_duplicate=False), **options)]


def test_tied_parameters_count_once_frozen_ones_and_buffers_never() -> None:
    selected = select_parameters(Tied().named_parameters(remove_duplicate=False))
    assert [p.name for p in selected] == [
        "scale", "embed.weight", "block.0.weight", "block.0.bias", "block.1.weight", "block.1.bias",
    ]  # fmt: skip
    assert TrackedParameters(selected).n_parameters["all"] == 1 + 44 + 16 + 4 + 4 + 4
    shared = torch.randn(5)
    twice = [("a", nn.Parameter(shared)), ("b", nn.Parameter(shared))]  # two objects, one memory
    assert TrackedParameters(select_parameters(twice)).n_parameters["all"] == 5


_BASE = torch.arange(48.0).view(6, 8)
_COMPLEX = torch.ones(3, dtype=torch.complex64)


@pytest.mark.parametrize(
    ("tensors", "n"),
    [
        ([_BASE, _BASE.t()], 48),
        ([_BASE, _BASE.view(2, 24)], 48),
        ([_BASE[:, 2:5], _BASE[:, 2:5].t()], 18),
        ([_COMPLEX, torch.view_as_real(_COMPLEX)], 6),
        ([_COMPLEX.real, _COMPLEX.imag], 6),
        # These views of one storage share no element, as FSDP and apex make them.
        ([_BASE[:2], _BASE[2:]], 48),
        ([_BASE[:, :3], _BASE[:, 3:]], 48),
        ([_BASE[::2], _BASE[1::2].t()], 48),
        ([*_BASE.flatten().split(7)], 48),
        ([torch.ones(20).as_strided((2, 3), (3, 2))], 6),
    ],
)
def test_each_place_in_memory_counts_once_whatever_the_shapes(tensors: list[torch.Tensor], n: int) -> None:
    tracked = TrackedParameters(select_parameters([(f"p{i}", nn.Parameter(t)) for i, t in enumerate(tensors)]))
    assert tracked.n_parameters == {"all": n}


def test_replicas_of_a_tied_weight_count_once() -> None:
    weights = torch.randn(3, 4, 5)
    named = [("a", nn.Parameter(weights.transpose(1, 2))), ("b", nn.Parameter(weights))]
    tracker = AgingTracker(named, LogTimeSchedule([0], [1]), {"b": "b"}, n_replica=3)
    tracker.update(0)
    before = weights.double()
    with torch.no_grad():
        named[1][1].add_(torch.randn(3, 4, 5))
    tracker.update(1)
    assert tracker.record.n_parameters == {"all": 20, "b": 20}
    exactly = (weights.double() - before).square().mean(dim=(1, 2))
    assert np.allclose(tracker.record.msd()[:, 0, 0], exactly, rtol=1e-6)


def test_patterns_include_and_exclude_and_know_both_names_of_a_tied_one() -> None:
    assert names(include="head.*") == ["embed.weight"]
    assert names(include=["block.*", "scale"], exclude="*.bias") == ["scale", "block.0.weight", "block.1.weight"]


def test_groups_by_layer_and_by_pattern_sum_to_all() -> None:
    model = Tied()
    layers = TrackedParameters(select_parameters(model.named_parameters(), groups="layer"))
    assert layers.groups == ("all", "scale", "embed", "block.0", "block.1")
    assert layers.n_parameters["all"] == sum(n for g, n in layers.n_parameters.items() if g != "all")
    overlapping = {"weights": "*.weight", "block": ["block.*"]}
    groups = TrackedParameters(select_parameters(model.named_parameters(), groups=overlapping))
    assert groups.n_parameters == {"all": 73, "weights": 64, "block": 28}


def test_each_group_has_its_own_moments() -> None:
    model = Tied()
    tracker = AgingTracker(
        model.named_parameters(), LogTimeSchedule([0], [1]), groups={"weights": "*.weight", "block": "block.*"}
    )
    tracker.update(0)
    with torch.no_grad():
        model.block[0].bias += 2.0  # in "block", not in "weights"
        model.embed.weight += 1.0  # the other way round
    tracker.update(1)
    assert tracker.record.msd("block")[0, 0] == pytest.approx(16 / 28)
    assert tracker.record.msd("weights")[0, 0] == pytest.approx(44 / 64)
    assert tracker.record.msd("all")[0, 0] == pytest.approx(60 / 73)


def test_a_nan_in_one_group_stays_there(caplog: pytest.LogCaptureFixture) -> None:
    model = Tied()
    tracker = AgingTracker(model.named_parameters(), LogTimeSchedule([0], [1, 2]), groups="layer")
    tracker.update(0)
    with torch.no_grad():
        model.scale += torch.nan
        model.embed.weight += 1.0
    with caplog.at_level(logging.WARNING):
        tracker.update(1)
        tracker.update(2)
    record = tracker.record
    assert np.isnan(record.msd("scale")).all()
    assert np.isnan(record.msd("all")).all()
    assert np.isnan(record.overlap(group="all")).all()
    assert np.allclose(record.msd("embed"), 1.0)
    assert sum("not finite" in message for message in caplog.messages) == 1


def test_compiled_and_wrapped_names_are_those_of_the_user() -> None:
    model = torch.compile(nn.Linear(2, 2))
    assert [p.name for p in select_parameters(model.named_parameters())] == ["weight", "bias"]


@pytest.mark.parametrize(
    ("parameters", "options", "message"),
    [
        ([], {}, "no trainable parameter to track \\(the module has none"),
        ([("w", nn.Parameter(torch.ones(1), requires_grad=False))], {}, "all are frozen"),
        ([("w", nn.Parameter(torch.ones(1)))], {"exclude": "*"}, "all are excluded"),
        ([("w", nn.Parameter(torch.ones(1)))], {"include": "v*"}, "include: the pattern 'v\\*' matches no trainable"),
        ([("w", nn.Parameter(torch.ones(1)))], {"exclude": "v*"}, "exclude: the pattern 'v\\*'"),
        ([("w", nn.Parameter(torch.ones(1)))], {"groups": {"g": "v"}}, "groups\\['g'\\]: the pattern 'v'"),
        ([("w", nn.Parameter(torch.ones(1)))], {"groups": {"all": "w"}}, "'all' always exists"),
        ([("w", nn.Parameter(torch.ones(1)))], {"groups": "layers"}, "groups='layers' is not"),
        ([("all.w", nn.Parameter(torch.ones(1)))], {"groups": "layer"}, "a layer is called 'all'"),
        ([("w", nn.Parameter(torch.ones(1, device="meta")))], {}, "'w' is on the meta device"),
        ([("w", nn.UninitializedParameter())], {}, "'w' has no shape yet"),
    ],
)
def test_nothing_to_track_is_an_error_that_says_why(parameters, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        AgingTracker(parameters, **options)


class Listed(Sequence):
    """A list of a configuration package, such as OmegaConf's ListConfig."""

    def __init__(self, *items: object) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Bare:
    """A mapping that is not registered as one."""

    def __init__(self, **items: object) -> None:
        self.keys, self.get = items.keys, items.__getitem__

    def __getitem__(self, key: str) -> object:
        return self.get(key)


@pytest.mark.parametrize("mapping", [dict, Bare, lambda **items: MappingProxyType(items)])
def test_lists_and_mappings_of_any_class_are_taken(mapping) -> None:
    tracker = AgingTracker(
        Tied(),
        LogTimeSchedule(Listed(0, 1), Listed(1, 2)),
        mapping(norms=Listed("*.bias", "scale")),
        include=Listed("block.*", "scale"),
        exclude=Listed("block.1.*"),
        overlap_thresholds=Listed(0.1, 0.2),
    )
    assert tracker.record.n_parameters == {"all": 21, "norms": 5}
    assert tracker.record.overlap_thresholds == (0.1, 0.2)


@pytest.mark.parametrize("patterns", [Listed(), Listed("w", 1), iter(["w"]), {"w": 1}, b"w", 3])
def test_a_pattern_of_another_kind_is_refused(patterns) -> None:
    with pytest.raises(ValueError, match=r"include=.* must be a name pattern or a non-empty list of some"):
        AgingTracker([("w", nn.Parameter(torch.ones(1)))], include=patterns)


def test_waiting_times_beyond_any_run_can_wait() -> None:
    tracker = AgingTracker(nn.Linear(2, 2), LogTimeSchedule([2 * 10**9], [1]))
    assert not tracker.update(0)
    assert tracker.next_event == 2 * 10**9
    assert tracker.update(2 * 10**9)
    assert tracker.update(2 * 10**9 + 1)
    assert len(tracker.record) == 1


class Wrapped(torch.Tensor):
    """A tensor that keeps its values in another tensor, as the quantised tensors of torchao do."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapped:
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        plain = [a.inner if isinstance(a, Wrapped) else a for a in args]
        result = func(*plain, **(kwargs or {}))
        return Wrapped(result) if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default) else result


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (Wrapped(torch.ones(3)), "'odd' is a Wrapped, which has no memory of its own: .*dequantize"),
        (_COMPLEX.conj(), "'odd' is a lazy conjugate of its memory: .*resolve_conj"),
        (_COMPLEX.conj().imag, "'odd' is a lazy negative of its memory: .*resolve_neg"),
        (torch.ones(1).expand(5), "'odd' has several elements at one place in memory: clone it"),
        (torch.ones(9).unfold(0, 3, 1), "'odd' has several elements at one place in memory: clone it"),
        (torch.ones(2, device="meta"), "'odd' is on the meta device"),
        (torch.eye(2).to_sparse(), "'odd' has the layout torch.sparse_coo"),
        (_BASE[1:3], "'all' and 'odd' share a part of their memory, which would be counted twice"),
        (_BASE.view(torch.int32).view(torch.bfloat16), "'all' and 'odd' share a part of their memory"),
    ],
)
def test_an_odd_parameter_is_refused_by_name_and_can_be_left_out(tensor: torch.Tensor, message: str) -> None:
    named = [("all", nn.Parameter(_BASE)), ("odd", nn.Parameter(tensor))]
    with pytest.raises(ValueError, match=message + ".* with exclude='odd'"):
        AgingTracker(named)
    assert AgingTracker(named, exclude="odd").record.n_parameters == {"all": 48}


# ---------------------------------------------------------------------- samples and memory


def test_a_sample_is_unbiased_with_the_error_it_states() -> None:
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(5000, generator=generator), torch.randn(7000, generator=generator)]
    moved = [t + torch.rand(len(t), generator=generator) * (1 + i) for i, t in enumerate(start)]
    z, truth = [], None
    for seed in range(60):
        parameters = [(f"w{i}", nn.Parameter(t.clone())) for i, t in enumerate(start)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lightning_glassy.measure.layout._SAMPLE_SEED", seed)
            tracker = AgingTracker(parameters, LogTimeSchedule([0], [1]), sample=400)
        tracker.update(0)
        with torch.no_grad():
            for (_, parameter), value in zip(parameters, moved, strict=True):
                parameter.copy_(value)
        tracker.update(1)
        record = tracker.record
        assert record.n_sampled == {"all": 400}
        assert record.n_parameters == {"all": 12000}
        truth = exact(moved, start)[0] / 12000
        z.append((record.msd()[0, 0] - truth) / record.standard_error("msd")[0, 0])
    assert abs(np.mean(z)) < 3 / np.sqrt(60)
    assert 0.75 < np.std(z) < 1.3


def test_every_coordinate_is_sampled_equally_often() -> None:
    from lightning_glassy.measure.layout import _sample_coordinates

    for n in (5, 30):  # by rejection, and by permutation
        counts = np.zeros(100)
        for seed in range(2000):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("lightning_glassy.measure.layout._SAMPLE_SEED", seed)
                drawn = _sample_coordinates(100, n).numpy()
            assert len(set(drawn.tolist())) == n
            assert (np.diff(drawn) > 0).all()
            counts[drawn] += 1
        p = n / 100
        z = (counts - 2000 * p) / np.sqrt(2000 * p * (1 - p))
        assert np.abs(z).max() < 4.5
        assert (z**2).sum() < 160  # chi^2 of about 99 degrees of freedom


def test_a_sample_of_everything_is_everything() -> None:
    tracker = AgingTracker([("w", nn.Parameter(torch.ones(7)))], LogTimeSchedule([0], [1]), sample=100)
    assert tracker.record.n_sampled == {"all": 7}


def selected(n: int) -> list:
    return select_parameters([("w", nn.Parameter(torch.empty(n)))])


def test_auto_is_exact_where_the_bank_fits_and_the_largest_sample_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_glassy.measure.memory.free_memory", lambda device: 4_000_000)
    assert plan_sample(selected(10_000), capacity=10) == (None, 400_000)  # exactly a tenth
    n, n_bytes = plan_sample(selected(10_001), capacity=10)
    assert n == 400_000 // 48
    assert n_bytes == 48 * n
    n, n_bytes = plan_sample(selected(10_000), capacity=10, max_memory=48_000)
    assert (n, n_bytes) == (1000, 48_000)


def test_auto_makes_any_model_safe_and_says_so() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_glassy.measure.memory.free_memory", lambda device: 10_000)
        tracker = AgingTracker([("w", nn.Parameter(torch.randn(5000)))], LogTimeSchedule.logspaced(1000))
    capacity = tracker.schedule.max_live_snapshots
    assert tracker.record.n_sampled["all"] == 1000 // (4 * capacity + 8)
    assert "a sample of 20 of 5,000 parameters" in tracker.description
    assert "KiB" in tracker.description or " B" in tracker.description


def test_too_much_is_refused_before_it_is_taken_with_the_three_remedies() -> None:
    parameter = nn.Parameter(torch.zeros(1000))
    with pytest.raises(MemoryError, match=r"10 snapshots .* 39.1 KiB, more than max_memory=9.8 KiB.*") as caught:
        AgingTracker([("w", parameter)], LogTimeSchedule.logspaced(1000), sample=None, max_memory=10_000)
    for remedy in ("fewer waiting times", "sample=", "snapshot_device='cpu'"):
        assert remedy in str(caught.value)
    with pytest.raises(ValueError, match="max_memory=0"):
        AgingTracker([("w", parameter)], max_memory=0)
    for bad in (0, "all", True, -5):
        with pytest.raises(ValueError, match="sample="):
            AgingTracker([("w", parameter)], sample=bad)


def test_the_footprint_that_is_said_is_what_is_taken() -> None:
    parameter = nn.Parameter(torch.randn(1000))
    schedule = LogTimeSchedule.logspaced(100, max_lag=10)
    tracker = AgingTracker([("w", parameter)], schedule, sample=None)
    held, n_bytes = [], []
    for step in range(101):
        tracker.update(step)
        held.append(len(tracker._bank.live))
        n_bytes.append(sum(flat.nbytes for snapshot in tracker._bank.live.values() for flat in snapshot.flats))
    # A snapshot is released right after its last lag. While an event runs, there is one more.
    assert max(held) <= schedule.max_live_snapshots
    assert held[-1] == 0
    assert f"at most {schedule.max_live_snapshots} snapshots" in tracker.description
    _, planned = plan_sample(selected(1000), schedule.max_live_snapshots, sample=None)
    assert planned == 4000 * schedule.max_live_snapshots
    assert planned - 4000 <= max(n_bytes) <= planned


@pytest.mark.parametrize(("radial", "turn"), [(1e-5, 1e-5), (1e-4, 1e-5), (0.0, 1e-6)])
def test_decorrelation_of_device_moments_keeps_its_digits(radial: float, turn: float) -> None:
    start = torch.randn(500_000) * 0.05
    parameter = nn.Parameter(start.clone())
    tracker = AgingTracker([("w", parameter)], LogTimeSchedule([0], [1]))
    tracker.update(0)
    with torch.no_grad():
        parameter.copy_(start * (1 + radial) + turn * 0.05 * torch.randn_like(start))
    tracker.update(1)
    s, w = start.double(), parameter.detach().double()
    across = w - (s @ w) / (s @ s) * s
    exact = float(0.5 * (across @ across) / (w @ w))  # 1 - cos of a small angle
    assert tracker.record.decorrelation()[0, 0] == pytest.approx(exact, rel=1e-2)


def test_a_container_leaves_less_than_the_machine(tmp_path: Path) -> None:
    from lightning_glassy.measure.memory import _cgroup_memory

    for name, text in (("max", "1000\n"), ("current", "700\n"), ("stat", "anon 100\ninactive_file 250\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert _cgroup_memory(tmp_path) == 550
    (tmp_path / "memory.max").write_text("max\n")
    assert _cgroup_memory(tmp_path) is None


def test_free_memory_is_a_number_of_bytes_of_this_machine() -> None:
    assert 10**7 < free_memory(torch.device("cpu")) < 10**14

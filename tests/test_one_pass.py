"""All pairs of many checkpoints in one pass: the sums, the memory, the threads, and interrupted runs."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_glassy.checkpoints import fused, one_pass, unfinished
from lightning_glassy.checkpoints.one_pass import Sums, memory_needed, plan, spread, sum_pairs, usable_memory
from lightning_glassy.checkpoints.pairs import choose_pairs
from lightning_glassy.checkpoints.progress import Progress
from lightning_glassy.checkpoints.stored import InMemory
from lightning_glassy.checkpoints.unfinished import Unfinished
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.moments import EagerMoments, capture
from lightning_glassy.measure.moments.eager import own_sums, pair_sums
from lightning_glassy.measure.select import choose_names, select_parameters
from lightning_glassy.measure.snapshots import SnapshotBank
from tests.processes import children

EPS = (1e-2, 1e-1)
N_FILE = 5
PAIRS = list(combinations(range(N_FILE), 2))

# More than two tiles, a part of a tile, two tensors in one tile, a scalar, and a tensor without coordinates.
SHAPES = {"a.weight": (140, 130), "a.bias": (7,), "b.weight": (33, 3), "b.scale": (), "none": (0, 4)}


def weights(
    k: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(k)
    return {name: (torch.randn(shape, generator=generator) * 0.05).to(dtype) for name, shape in shapes.items()}


def stored(tensors: Mapping[str, Tensor]) -> dict[str, InMemory]:
    return {name: InMemory(tensor) for name, tensor in tensors.items()}


FILES = [stored(weights(k)) for k in range(N_FILE)]
MIXED = [
    stored(
        weights(k)
        | {
            "half": weights(k, {"x": (9000,)}, torch.bfloat16)["x"],
            "double": weights(k, {"x": (50,)}, torch.float64)["x"],
        }
        | {"complex": torch.view_as_complex(weights(k, {"x": (20, 2)})["x"])}
    )
    for k in range(N_FILE)
]


def flat(file: Mapping[str, InMemory], names: Sequence[str]) -> np.ndarray:
    return np.concatenate([file[name]._flat.double().numpy() for name in names])


def exact(w: np.ndarray, s: np.ndarray) -> np.ndarray:
    d = w - s
    return np.array(
        [d @ d, (d**4).sum(), w @ s, w @ w, s @ s, w.sum(), s.sum(), *((abs(d) <= eps).sum() for eps in EPS)]
    )


@pytest.fixture(params=["torch", "numba"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Sum any number of coordinates by torch, or by numba."""
    if request.param == "numba":
        pytest.importorskip("numba")
    monkeypatch.setattr(one_pass, "_FEWEST_FUSED", 0 if request.param == "numba" else 1 << 60)
    return str(request.param)


# ---------------------------------------------------------------------- sums


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("files", [FILES, MIXED], ids=["float32", "mixed"])
def test_all_pairs_agree_with_float64(files: list[dict[str, InMemory]]) -> None:
    parameters = plan(files[0], groups={"a": "a.*", "rest": ["b.*", "half", "double", "complex"][: len(files[0]) - 4]})
    moments = sum_pairs(parameters, files, PAIRS, EPS).moments
    members = {"all": list(files[0]), "a": ["a.weight", "a.bias"]}
    members["rest"] = [name for name in files[0] if name not in members["a"]]
    for (i, j), of_pair in zip(PAIRS, moments, strict=True):
        for group, row in zip(parameters.groups, of_pair, strict=True):
            w, s = flat(files[j], members[group]), flat(files[i], members[group])
            reference = exact(w, s)
            ws = (reference[3] + reference[4]) / 2
            scale = np.array([*reference[:2], ws, *reference[3:5], abs(w).sum(), abs(s).sum()])
            assert parameters.n_parameters[group] == len(w)
            assert (abs(row[:7] - reference[:7]) <= 1e-6 * scale).all()
            assert (abs(row[7:] - reference[7:]) <= 2).all()  # |d| may round to eps itself


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("groups", ["all", "layer"])
@pytest.mark.parametrize("files", [FILES, MIXED], ids=["float32", "mixed"])
def test_a_pair_has_the_bits_that_it_has_alone(files: list[dict[str, InMemory]], groups: Any) -> None:
    parameters = plan(files[0], groups=groups)
    together = sum_pairs(parameters, files, PAIRS, EPS).moments
    for (i, j), moments in zip(PAIRS, together, strict=True):
        assert np.array_equal(sum_pairs(parameters, [files[i], files[j]], [(0, 1)], EPS).moments[0], moments)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("memory", [0, 2 << 20, None])
@pytest.mark.parametrize("rows", [2, 3, 64])
def test_bits_depend_on_neither_memory_nor_threads_nor_the_order_of_pairs(
    threads: int, memory: int | None, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = plan(MIXED[0], groups="layer")
    usual = sum_pairs(parameters, MIXED, PAIRS, EPS).moments
    monkeypatch.setattr(one_pass, "_ROWS", rows)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    some = [(2, 4), (0, 1), (0, 4), (0, 2)]
    moments = sum_pairs(parameters, MIXED, some, EPS, memory=memory).moments
    assert np.array_equal(moments, usual[[PAIRS.index(pair) for pair in some]])


@pytest.mark.parametrize("thresholds", [(), (0.05,), (0.01, 0.05, 0.2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_compiled_loop_counts_any_number_of_thresholds(thresholds: tuple[float, ...], dtype: torch.dtype) -> None:
    pytest.importorskip("numba")
    rows = (torch.randn(5, 2, 2500) * 0.05).to(dtype).numpy()
    earlier, later = (np.array([pair[end] for pair in PAIRS]) for end in (0, 1))
    found = fused.pair_sums(rows, earlier, later, thresholds, 2.0**40)
    d = rows[later].astype(np.float64) - rows[earlier]
    assert found.shape == (len(PAIRS), 2, 2 + len(thresholds))
    assert np.allclose(found[..., 0], (d**2).sum(-1), rtol=3e-7, atol=0)
    assert np.allclose(found[..., 1], 2.0**40 * (d**4).sum(-1), rtol=3e-7, atol=0)
    for k, eps in enumerate(thresholds):
        assert np.abs(found[..., 2 + k] - (np.abs(d) <= eps).sum(-1)).max() <= 1
    rows[1, 0, 3] = np.nan
    again = fused.pair_sums(rows, earlier, later, thresholds, 2.0**40)
    touched = (earlier == 1) | (later == 1)
    assert np.isnan(again[touched, 0, 0]).all()
    assert np.array_equal(again[~touched], found[~touched])


def test_many_coordinates_are_summed_by_a_compiled_loop_and_few_as_the_monitor_sums_them() -> None:
    pytest.importorskip("numba")
    few, many = ([stored(weights(k, {"w": (n,)})) for k in range(2)] for n in (1000, 1 << 18))
    fused.compiled.cache_clear()
    assert [one_pass._Work(plan(files[0]), files, [(0, 1)], ()).is_fused for files in (few, many)] == [False, True]
    assert fused.compiled.cache_info().currsize == 1  # one loop for all threads


def test_a_numba_that_does_not_fit_the_numpy_at_hand_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 2.3 or less')")
    monkeypatch.delitem(sys.modules, "numba", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    files = [stored(weights(k, {"w": (1 << 18,)})) for k in range(2)]
    assert not one_pass._Work(plan(files[0]), files, [(0, 1)], ()).is_fused


@pytest.mark.parametrize("n", [1, 2, 5, 8, 31, 1024, 1025, 5000, 8192])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_of_a_matrix_has_the_sums_of_a_vector(n: int, dtype: torch.dtype) -> None:
    rows, zero = (torch.randn(40, n + 3) * 0.05).to(dtype)[:, 1 : n + 1], torch.zeros((), dtype=dtype)
    x, y = torch.empty(2, 40, n, dtype=dtype)
    together = torch.stack(pair_sums(rows, rows[7].expand_as(rows), EPS, x, y, zero), dim=-1)
    own = own_sums(rows, x)
    for row, pair, sums in zip(rows, together, own, strict=True):
        alone = torch.stack(pair_sums(row.clone(), rows[7].clone(), EPS, x[0], y[0], zero), dim=-1)
        assert torch.equal(alone, pair)
        assert torch.equal(own_sums(row.clone(), x[0]), sums)


@pytest.mark.parametrize("groups", ["all", "layer", {"weights": "*.weight", "a": "a.*"}])
def test_a_small_net_has_the_bits_of_the_monitor(groups: Any) -> None:
    shapes = {"a.weight": (16, 8), "a.bias": (16,), "b.weight": (3, 16), "b.bias": (3,)}
    early, late = weights(0, shapes), weights(1, shapes)
    module = {name: nn.Parameter(tensor.clone()) for name, tensor in early.items()}
    tracked = TrackedParameters(select_parameters(module.items(), groups=groups))
    moments = EagerMoments(tracked, EPS)
    snapshot = capture(SnapshotBank(tracked), 0, moments)
    with torch.no_grad():
        for name, parameter in module.items():
            parameter.copy_(late[name])
    theirs = tracked.by_group([part.numpy() for part in moments([snapshot])])[:, 0]
    parameters = plan(stored(early), groups=groups)
    assert np.array_equal(sum_pairs(parameters, [stored(early), stored(late)], [(0, 1)], EPS).moments[0], theirs)
    assert parameters.groups == tracked.groups
    assert parameters.n_parameters == tracked.n_parameters
    assert parameters.resolution == tracked.resolution


@pytest.mark.parametrize("sample", [1, 100, 9000])
def test_a_sample_has_the_coordinates_of_the_monitor(sample: int) -> None:
    module = {name: nn.Parameter(tensor) for name, tensor in weights(0).items()}
    module["complex"] = nn.Parameter(torch.view_as_complex(torch.randn(600, 2)))
    tracked = TrackedParameters(select_parameters(module.items(), groups="layer"), sample)
    parameters = plan(stored(module), groups="layer", sample=sample)
    assert parameters.n_sampled == tracked.n_sampled
    for ours, theirs in zip(parameters.layout(), tracked.layout(), strict=True):
        assert [stretch.name for stretch in ours] == [stretch.name for stretch in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(parameters.positions(a), tracked.positions(b))
    files = [stored(weights(k) | {"complex": torch.randn(600, dtype=torch.complex64)}) for k in range(2)]
    moments = sum_pairs(parameters, files, [(0, 1)], EPS).moments
    drawn = [
        np.concatenate([file[s.name]._flat[parameters.positions(s)].double().numpy() for s in parameters.layout()[0]])
        for file in files
    ]
    assert np.allclose(moments[0, 0, :2], exact(drawn[1], drawn[0])[:2], rtol=1e-6)


def test_other_names_of_a_tensor_can_match() -> None:
    files = [{"embed": file["a.weight"], "bias": file["a.bias"]} for file in FILES]
    parameters = plan(files[0], {"embed": ["head"]}, groups={"heads": "head*"})
    assert parameters.n_parameters == {"all": 140 * 130 + files[0]["bias"].shape[0], "heads": 140 * 130}
    with pytest.raises(ValueError, match=r"'tail' matches no trainable parameter. The names are embed, head, bias"):
        plan(files[0], {"embed": ["head"]}, groups={"a": "tail"})
    with pytest.raises(ValueError, match="there is no trainable parameter to track"):
        plan({"none": FILES[0]["none"]})
    assert choose_names([["a", "b"], ["c"]], exclude="b") == [(1, ())]


@pytest.mark.usefixtures("way")
def test_a_value_that_is_not_finite_is_named_with_its_tensor_and_its_checkpoint() -> None:
    files = []
    for k in range(4):
        state = weights(k)
        if k == 2:
            state["b.weight"][1, 1] = torch.nan
            state["a.weight"][139, 129] = -torch.inf
        if k == 3:
            state["b.weight"][2, 2] = torch.inf
            state["a.bias"][:2] = 3e38  # finite, though their sum is not
        files.append(stored(state))
    sums = sum_pairs(plan(files[0], groups="layer"), files, [(0, 1), (0, 2), (1, 3)], EPS)
    assert sums.not_finite == {"a.weight": [2], "b.weight": [2, 3]}
    assert np.isfinite(sums.moments[0]).all()
    assert not np.isfinite(sums.moments[1, :, 0]).any()


def test_the_spread_is_the_standard_deviation() -> None:
    parameters = plan(MIXED[0])
    assert spread(parameters, MIXED[0]) == pytest.approx(flat(MIXED[0], list(MIXED[0])).std(), rel=1e-6)
    assert spread(plan({"x": FILES[0]["b.scale"]}), {"x": FILES[0]["b.scale"]}) == 0
    assert math.isnan(
        spread(plan({"x": InMemory(torch.tensor([torch.nan, 1]))}), {"x": InMemory(torch.tensor([torch.nan, 1]))})
    )


# ---------------------------------------------------------------------- reading


class Watched(InMemory):
    """A tensor that counts how often each coordinate is read."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor)
        self.reads: Counter[int] = Counter()

    def read(self, start: int, out: Tensor) -> None:
        assert out.is_contiguous()
        self.reads.update(range(start, start + len(out)))
        super().read(start, out)

    def gather(self, positions: Tensor, out: Tensor) -> None:
        self.reads.update(positions.tolist())
        super().gather(positions, out)


@pytest.mark.parametrize("sample", [None, 500])
def test_each_coordinate_is_read_once_and_only_of_checkpoints_in_a_pair(sample: int | None) -> None:
    files = [{name: Watched(tensor) for name, tensor in weights(k).items()} for k in range(N_FILE)]
    sum_pairs(plan(files[0], sample=sample), files, [(0, 2), (0, 4), (2, 4)], memory=0)
    for k, file in enumerate(files):
        reads = Counter[int]()
        for tensor in file.values():
            reads.update(tensor.reads.values())
        total = sum(tensor._flat.numel() for tensor in file.values()) if sample is None else sample
        assert reads == ({1: total} if k in (0, 2, 4) else {})


def test_without_pairs_nothing_is_read() -> None:
    files = [{name: Watched(tensor) for name, tensor in weights(k).items()} for k in range(2)]
    sums = sum_pairs(plan(files[0]), files, [], EPS)
    assert sums.moments.shape == (0, 1, 9)
    assert not any(tensor.reads for tensor in files[0].values())


class Made:
    """A tensor that makes its values when they are read."""

    shape, dtype, place, problem = (1 << 22,), torch.float32, None, None

    def read(self, start: int, out: Tensor) -> None:
        out.fill_(start)

    def gather(self, positions: Tensor, out: Tensor) -> None:
        raise NotImplementedError


def _peak(memory: int, queue: Any) -> None:
    import resource

    files = [{"w": Made()} for _ in range(30)]
    parameters, pairs = plan(files[0]), [(0, k) for k in range(1, 30)]
    sum_pairs(plan({"w": InMemory(torch.ones(9))}), [{"w": InMemory(torch.ones(9))}] * 2, [(0, 1)])  # imports
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if fused.available():
        fused.pair_sums(np.zeros((2, 1, 9), dtype=np.float32), np.array([0]), np.array([1]), (), 1.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sum_pairs(parameters, files, pairs, memory=memory)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    compiler = fused.MEMORY if fused.available() else 0
    queue.put((grown, memory_needed(parameters, pairs, 0, memory) - compiler, 1024 * (before - start), compiler))


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss")
def test_the_peak_of_memory_is_as_announced() -> None:
    # All tensors together take 480 MiB.
    context = children()
    queue = context.SimpleQueue()
    process = context.Process(target=_peak, args=(48 << 20, queue))
    process.start()
    grown, needed, of_compiler, expected = queue.get()
    process.join()
    assert 40 << 20 < needed <= 49 << 20
    assert 0.5 * needed < grown < needed + (12 << 20)
    assert of_compiler <= expected


def test_the_memory_is_a_quarter_of_the_free_memory_and_at_most_half_a_gibibyte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(one_pass, "free_memory", lambda _: 100 << 20)
    assert usable_memory() == 25 << 20
    monkeypatch.setattr(one_pass, "free_memory", lambda _: 100 << 30)
    assert usable_memory() == 512 << 20
    # A small model takes no more than it needs.
    assert memory_needed(plan({"w": InMemory(torch.ones(1000))}), [(0, 1)], 2) < 200_000


def test_sums_that_do_not_fit_in_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_pass, "free_memory", lambda _: 20 << 20)
    parameters = plan({f"{k}.weight": InMemory(torch.ones(1)) for k in range(1000)}, groups="layer")
    with pytest.raises(MemoryError, match=r"the sums of 499,500 pairs of checkpoints in 1,001 groups take .* GiB"):
        sum_pairs(parameters, [], list(combinations(range(1000), 2)))


def test_the_smallest_precisions_are_widened() -> None:
    files = [{"w": InMemory((torch.randn(9000) * 0.05).to(torch.float8_e5m2))} for _ in range(2)]
    w, s = (file["w"]._flat.double().numpy() for file in (files[1], files[0]))
    moments = sum_pairs(plan(files[0]), files, [(0, 1)], EPS).moments
    assert np.allclose(moments[0, 0], exact(w, s), rtol=1e-6, atol=1e-4)


class Broken(InMemory):
    """A tensor that cannot be read."""

    error: BaseException = ValueError("the file x has changed")

    def read(self, start: int, out: Tensor) -> None:
        raise self.error


def torch_threads_elsewhere() -> int:
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return seen[0]


def test_a_failing_read_ends_all_threads_and_torch_keeps_its_number_of_threads() -> None:
    before, n_torch = threading.active_count(), torch.get_num_threads()
    files = [*FILES[:-1], FILES[-1] | {"b.weight": Broken(torch.ones(33, 3))}]
    try:
        torch.set_num_threads(3)
        with pytest.raises(ValueError, match="the file x has changed"):
            sum_pairs(plan(FILES[0]), files, PAIRS, EPS, memory=0)
        assert (threading.active_count(), torch.get_num_threads(), torch_threads_elsewhere()) == (before, 3, 3)
        sum_pairs(plan(FILES[0]), FILES, PAIRS, EPS)
        assert (threading.active_count(), torch.get_num_threads(), torch_threads_elsewhere()) == (before, 3, 3)
    finally:
        torch.set_num_threads(n_torch)


def test_an_interrupt_ends_all_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*arguments: Any) -> list[Tensor]:
        time.sleep(0.1)
        return pair_sums(*arguments)

    monkeypatch.setattr(one_pass, "pair_sums", slow)
    monkeypatch.setattr(one_pass, "_ROWS", 1)
    files = FILES * 4  # a tile of all pairs takes 19 seconds
    before, sent = threading.active_count(), []
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # an earlier training may have left its own

    def interrupt() -> None:
        sent.append(time.monotonic())
        signal.raise_signal(signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt):
            sum_pairs(
                plan(FILES[0]),
                files,
                list(combinations(range(len(files)), 2)),
                progress=lambda *_: threading.Timer(0.1, interrupt).start(),
            )
    finally:
        signal.signal(signal.SIGINT, handler)
    assert time.monotonic() - sent[0] < 5
    assert threading.active_count() == before


# ---------------------------------------------------------------------- unfinished runs


def paths(folder: Path) -> list[Path]:
    files = [folder / f"{k}.pt" for k in range(N_FILE)]
    for file in files:
        if not file.exists():
            file.write_bytes(b"weights")
    return files


def run(folder: Path, files: Sequence[Mapping[str, InMemory]] = FILES, **options: Any) -> Sums:
    parameters = plan(FILES[0], groups=options.pop("groups", "layer"), sample=options.pop("sample", None))
    steps = options.pop("steps", range(N_FILE))
    kept = Unfinished(folder / "record.unfinished", paths(folder), steps)
    pairs, eps = options.pop("pairs", PAIRS), options.pop("eps", EPS)
    return sum_pairs(parameters, files, pairs, eps, memory=0, unfinished=kept, **options)


class Stops(InMemory):
    """A tensor that can be read only a few times."""

    def __init__(self, tensor: InMemory, left: list[int]) -> None:
        self.shape, self.dtype, self.place, self._flat, self._left = tensor.shape, tensor.dtype, 0, tensor._flat, left

    def read(self, start: int, out: Tensor) -> None:
        self._left[0] -= 1
        if self._left[0] < 0:
            raise KeyboardInterrupt
        super().read(start, out)


def stopping(n: int) -> list[dict[str, InMemory]]:
    left = [n]
    return [*FILES[:2], {name: Stops(tensor, left) for name, tensor in FILES[2].items()}, *FILES[3:]]


@pytest.fixture
def expected() -> np.ndarray:
    return sum_pairs(plan(FILES[0], groups="layer"), FILES, PAIRS, EPS).moments


@pytest.mark.usefixtures("way")
def test_an_interrupted_run_goes_on_and_gives_the_same_bits(
    tmp_path: Path, expected: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    stopped, saved = 0, 0
    for n in range(12):
        try:
            run(tmp_path, stopping(n))
        except KeyboardInterrupt:
            stopped += 1
            saved += (tmp_path / "record.unfinished").exists()
        calls: list[tuple[int, int]] = []
        result = run(tmp_path, progress=lambda *call, calls=calls: calls.append(call))
        assert np.array_equal(result.moments, expected)
        assert not (tmp_path / "record.unfinished").exists()
        assert calls == sorted(calls)
        assert calls[-1][0] == calls[-1][1]
    assert 4 < stopped < 12
    assert saved > 1
    assert "record.unfinished holds the sums so far: the same call or command goes on from there" in caplog.text


def test_what_was_summed_is_not_read_again(tmp_path: Path) -> None:
    files = [{name: Watched(tensor) for name, tensor in weights(k).items()} for k in range(N_FILE)]
    watched = [dict(file) for file in files]
    watched[2] |= {name: Stops(tensor, left) for left in [[3]] for name, tensor in FILES[2].items()}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, watched)
    first = files[0]["a.weight"].reads.copy()
    progress: list[tuple[int, int]] = []
    run(tmp_path, files, progress=lambda *call: progress.append(call))
    assert files[0]["a.weight"].reads[0] == first[0] == 1
    assert progress[0][0] > 0


def test_tensors_that_are_not_finite_are_remembered(tmp_path: Path) -> None:
    state = weights(2)
    state["a.weight"][0, 0] = torch.nan
    files = [*FILES[:2], stored(state), *FILES[3:]]
    left = [2]
    stops = [*files[:2], {name: Stops(tensor, left) for name, tensor in files[2].items()}, *files[3:]]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stops)
    assert (tmp_path / "record.unfinished").exists()
    assert run(tmp_path, files).not_finite == {"a.weight": [2]}


def test_half_a_tile_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*_: object) -> Iterator[tuple[int, int]]:
        if (tmp_path / "record.unfinished").exists():
            raise KeyboardInterrupt  # between two sums of the second tile
        yield 0, 0

    monkeypatch.setattr(one_pass._Work, "_find_not_finite", found)
    monkeypatch.setattr(unfinished, "_SAVE_EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert json.loads((tmp_path / "record.unfinished").read_bytes().split(b"\n")[0])["done"] == 1


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"groups": "all"}, "tensors or groups"),
        ({"sample": 9000}, "tensors or groups"),
        ({"eps": (1e-3, 1e-1)}, "overlap thresholds"),
        ({"pairs": [(0, 1)]}, "pairs"),
        ({"steps": [0, 1, 2, 3, 5]}, "steps"),
        ({}, "files"),
    ],
)
def test_sums_of_another_measurement_are_not_used(
    tmp_path: Path, options: dict[str, Any], word: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stopping(3))
    if word == "files":
        (tmp_path / "1.pt").write_bytes(b"other weights")
    caplog.clear()
    moments = run(tmp_path, **options).moments
    assert f"is of a measurement with other {word}. It is not used" in caplog.text
    (tmp_path / "record.unfinished").unlink(missing_ok=True)
    assert np.array_equal(moments, run(tmp_path, **options).moments)


def _damage(content: bytes) -> dict[str, bytes]:
    line, _, rest = content.partition(b"\n")
    header = json.loads(line)
    changed = {
        "another version": {"version": 2},
        "done too large": {"done": 10**9},
        "done negative": {"done": -1},
        "done true": {"done": True},
        "done huge": {"done": 10**400},
        "another digest": {"sha256": "0" * 64},
        "of a list": {"of": [1]},
        "of text": {"of": "text"},
    }
    files = {name: json.dumps(header | change).encode() + b"\n" + rest for name, change in changed.items()}
    return files | {
        "half": content[: len(content) // 2],
        "longer": content + b"0",
        "bit": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        "nan": line.replace(b'"done": ', b'"done": NaN, "x": ') + b"\n" + rest,
    }


def test_a_damaged_or_hostile_file_is_not_used(
    tmp_path: Path, expected: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stopping(3))
    file = tmp_path / "record.unfinished"
    for name, content in _damage(file.read_bytes()).items():
        file.write_bytes(content)
        caplog.clear()
        assert np.array_equal(run(tmp_path).moments, expected), name
        assert "It is not used, and everything is read from the beginning" in caplog.text, name
        assert not file.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x" * 100_000,
        b"[" * 60_000,
        b"7\n",
        bytes(range(256)),
        b'{"format": ["lightning_glassy.unfinished"]}\n',
        None,
    ],
    ids=["empty", "long", "deep", "number", "binary", "json", "directory"],
)
def test_a_file_of_somebody_else_is_kept(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "record.unfinished"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(ValueError, match=r"record.unfinished is there already and holds no sums of an interrupted"):
        run(tmp_path)
    assert file.is_dir() if content is None else file.read_bytes() == content


def test_a_full_disk_does_not_stop_the_measurement(
    tmp_path: Path, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(unfinished, "write_atomically", full)
    monkeypatch.setattr(unfinished, "_SAVE_EVERY", 0.0)
    assert np.array_equal(run(tmp_path).moments, expected)
    assert caplog.text.count("cannot be written (No space left on device)") == 1


class Slow(InMemory):
    """A tensor that is read slowly in the second half."""

    def read(self, start: int, out: Tensor) -> None:
        if start > 9000:
            time.sleep(60)
        super().read(start, out)


def _never_ends(folder: Path) -> None:
    unfinished._SAVE_EVERY = 0.0
    run(folder, [*FILES[:2], {name: Slow(tensor) for name, tensor in weights(2).items()}, *FILES[3:]])


def test_a_killed_run_goes_on_from_its_last_save(tmp_path: Path, expected: np.ndarray) -> None:
    process = children().Process(target=_never_ends, args=(tmp_path,))
    process.start()
    end = time.monotonic() + 30
    while not (tmp_path / "record.unfinished").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    progress: list[tuple[int, int]] = []
    assert np.array_equal(run(tmp_path, progress=lambda *call: progress.append(call)).moments, expected)
    assert progress[0][0] > 0


# ---------------------------------------------------------------------- progress


def test_progress_counts_the_bytes_that_are_read() -> None:
    calls: list[tuple[int, int]] = []
    sum_pairs(plan(MIXED[0]), MIXED, PAIRS, progress=lambda *call: calls.append(call))
    n_bytes = N_FILE * sum(tensor._flat.nbytes for tensor in MIXED[0].values())
    assert (calls[0], calls[-1]) == ((0, n_bytes), (n_bytes, n_bytes))
    assert calls == sorted(calls)


def test_progress_says_how_far_it_is_and_how_long_it_takes() -> None:
    now = [100.0]
    progress = Progress(clock=lambda: now[0])
    assert progress.line(0, 3_000_000_000) == "  0 %   0.0 of 3.0 GB"
    now[0] += 20
    assert progress.line(600_000_000, 3_000_000_000) == " 20 %   0.6 of 3.0 GB   1 min 20 s left"
    now[0] += 1
    assert progress.line(2_999_999_999, 3_000_000_000).startswith(" 99 %   3.0 of 3.0 GB   1 s left")
    now[0] += 1
    assert progress.line(3_000_000_000, 3_000_000_000) == "100 %   3.0 of 3.0 GB   22 s"


def test_the_estimate_counts_only_what_was_read_since_the_run_went_on() -> None:
    now = [0.0]
    progress = Progress(clock=lambda: now[0])
    progress.line(400, 800)
    now[0] = 7200.0
    assert progress.line(600, 800) == " 75 %   600 of 800 B   2 h 0 min left"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (59.6, "1 min 0 s"), (11_400, "3 h 10 min"), (90_000 * 10, "10 d 10 h"), (math.inf, "")],
)
def test_times_are_in_words(seconds: float, words: str) -> None:
    now = [0.0]
    progress = Progress(clock=lambda: now[0])
    progress.line(0, 2)
    now[0] = seconds
    assert progress.line(1, 2).endswith(f"{words} left" if words else "B")


def test_a_run_without_bytes_divides_by_nothing() -> None:
    progress = Progress(clock=lambda: 0.0)
    assert progress.line(0, 0) == "100 %   0 of 0 B   0 s"
    assert progress.line(0, 0) == "100 %   0 of 0 B   0 s"


# ---------------------------------------------------------------------- pairs


def test_pairs_near_a_log_grid_are_few_and_reach_the_end() -> None:
    steps = list(range(0, 100_000, 500))
    pairs = choose_pairs(steps, "log")
    assert pairs == sorted(set(pairs))
    assert all(i < j for i, j in pairs)
    waiting = sorted({i for i, _ in pairs})
    assert [steps[i] for i in waiting] == [0, 500, 1000, 2000, 4500, 10_000, 21_500, 46_500]
    assert all((i, len(steps) - 1) in pairs for i in waiting)
    lags = [steps[j] for i, j in pairs if i == 0]
    assert lags == [500, 1000, 1500, 2000, 2500, 3000, 4000, 5000, 6500, 8000, 10_000, 12_500, 16_000, 20_000, 25_000,
                    31_500, 40_000, 50_000, 63_000, 79_500, 99_500]  # fmt: skip


def test_few_checkpoints_have_all_pairs_near_a_log_grid() -> None:
    steps = [0, 1, 10, 100, 1000]
    assert choose_pairs(steps, "log") == choose_pairs(steps, "all") == list(combinations(range(5), 2))
    assert choose_pairs([7], "log") == choose_pairs([], "all") == []
    assert choose_pairs([2**52, 2**53], "log") == [(0, 1)]
    with pytest.raises(ValueError, match="pairs='some' must be 'all' or 'log'"):
        choose_pairs(steps, "some")  # type: ignore[arg-type]

"""The same training in one process and in several has the same record. Each weight counts once, and nobody waits."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_glassy import AgingRecord
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.memory import plan_sample
from lightning_glassy.measure.select import Selected, share_out
from lightning_glassy.measure.shards import Block, ParametersChangedError, Processes, Shard, UnmeasurableError
from tests.processes import launch as run_script

NAMES = ("glassy", "sampled", "displacement")


def launch(place: Path, kind: str, *tasks: str) -> str:
    """Run the script for a strategy, and return the output of all processes."""
    # Lightning itself starts the other processes for the two kinds of DDP.
    processes = {"single": 1, "ddp": 1, "ddp_fork": 1, "hsdp": 4, "fsdp1_hybrid": 4, "2x2": 4}.get(kind, 2)
    return run_script("tests/parallel.py", kind, place, *tasks, processes=processes, DS_ACCELERATOR="cpu")


def record(place: Path, *parts: str) -> AgingRecord:
    return AgingRecord.load(place.joinpath(*parts) / "aging_record.npz")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory with the record and the checkpoint of a single process."""
    directory = tmp_path_factory.mktemp("parallel")
    launch(directory, "single", "whole", "resume")
    return directory


def assert_the_same(ours: AgingRecord, single: AgingRecord) -> None:
    assert [axis.tolist() for axis in ours.pairs] == [axis.tolist() for axis in single.pairs]
    assert ours.n_parameters == single.n_parameters
    assert ours.n_sampled == single.n_sampled
    assert np.allclose(ours.overlap_thresholds, single.overlap_thresholds, rtol=1e-12)
    # The sums of w and of ws may cancel. The other sums have positive terms.
    assert np.allclose(ours.moments, single.moments, rtol=1e-6, atol=1e-9, equal_nan=True)
    assert np.allclose(ours.msd(), single.msd(), rtol=1e-6, atol=0, equal_nan=True)


def held(place: Path, kind: str) -> list[int]:
    """Return the bytes of the snapshots in each process at the end."""
    paths = sorted((place / kind).glob("rank*"))
    return [int(path.read_text().split()[0]) for path in paths]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "ddp_fork", "tp", "hsdp", "fsdp1_grad", "fsdp1_whole", "fsdp1_hybrid"])
def test_the_record_does_not_depend_on_the_strategy(place: Path, kind: str) -> None:
    launch(place, kind, "whole")
    for name in NAMES:
        assert_the_same(record(place, kind, name), record(place, "single", name))
        if kind.startswith("ddp"):
            assert record(place, kind, name) == record(place, "single", name)  # the arithmetic is the same


@pytest.mark.slow
def test_sharded_weights_are_measured_resumed_and_never_waited_for(place: Path) -> None:
    printed = launch(place, "fsdp2", "whole", "resume", "from_single", "broken")
    for name in NAMES:
        whole = record(place, "fsdp2", name)
        assert_the_same(whole, record(place, "single", name))
        # An interrupted and resumed training is the same to the bit.
        assert record(place, "fsdp2", "again", name) == whole
        # The snapshots in a checkpoint of one process are distributed.
        assert_the_same(record(place, "fsdp2", "from_single", name), whole)
        # One process could not measure from step 22 on. The training still ended, and the record ends there.
        broken, step = record(place, "fsdp2", "broken", name), np.add(*whole.pairs)
        assert np.add(*broken.pairs).max() < 22
        assert np.array_equal(broken.moments, whole.moments[step < 22], equal_nan=True)
    assert printed.count("no more is measured from step 22 on (MemoryError: none left)") == 3
    assert printed.count("no more is measured from step 22 on (RuntimeError: 1 of 2 processes could not") == 3
    # Each process keeps half of the snapshots, except for odd sizes: 5 x 6 and 5 are cut into 3 and 2.
    single, halves = sum(held(place, "single")), held(place, "fsdp2")
    assert sum(halves) == single
    assert max(halves) <= 0.57 * single

    # Start four processes, with tensor parallelism, from the checkpoint of two processes.
    launch(place, "2x2", "whole", "from_fsdp2")
    for name in NAMES:
        assert_the_same(record(place, "2x2", name), record(place, "single", name))
        assert_the_same(record(place, "2x2", "from_fsdp2", name), record(place, "single", name))
    assert sum(held(place, "2x2")) == single


@pytest.mark.slow
def test_fsdp1_is_measured_and_resumed(place: Path) -> None:
    launch(place, "fsdp1", "whole", "resume", "from_single")
    for name in NAMES:
        whole = record(place, "fsdp1", name)
        assert_the_same(whole, record(place, "single", name))
        assert record(place, "fsdp1", "again", name) == whole
        assert_the_same(record(place, "fsdp1", "from_single", name), whole)
    assert sum(held(place, "fsdp1")) == sum(held(place, "single"))
    with pytest.raises(AssertionError, match="use_orig_params=True keeps them apart, so that they can be measured"):
        launch(place, "fsdp1_flat", "whole")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("kind", ["zero1", "zero2", "zero3", "zero1bf16", "zero2bf16", "zero3bf16"])
def test_zero_is_measured_in_its_float32_weights_and_resumed(place: Path, kind: str) -> None:
    assert "agrees with 75 pairs of 118 parameters" in launch(place, kind, "full", "whole", "resume")
    for name in NAMES:
        assert record(place, kind, "again", name) == record(place, kind, name)


class Pretended(Processes):
    """Processes whose gathered values the test chooses."""

    def __init__(self, rank: int, everywhere: list) -> None:
        self.rank, self.size, self.everywhere = rank, len(everywhere), everywhere

    def gather(self, thing: object) -> list:
        return self.everywhere


def halves(*rows: tuple[int, int]) -> list[dict[str, Block]]:
    return [{"w": Block((6, 2), (first, 0), (n, 2))} for first, n in rows]


def test_a_block_that_several_hold_is_counted_by_the_first() -> None:
    held = halves((0, 4), (0, 4), (4, 2), (4, 2), (6, 0))
    assert [Pretended(rank, held).claim(held[rank]) for rank in range(5)] == [{"w"}, set(), {"w"}, set(), set()]


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (halves((0, 3), (2, 4)), "'w' have 14 coordinates in all, and it has 12"),
        (halves((0, 3), (0, 3)), "'w' have 6 coordinates in all, and it has 12"),
        ([*halves((0, 6)), {}], "'w' is not the same in all processes"),
        ([*halves((0, 6)), {"w": Block((3, 2), (0, 0), (3, 2))}], "'w' is not the same in all processes"),
    ],
)
def test_blocks_that_do_not_make_up_a_parameter_are_refused_everywhere(held: list, message: str) -> None:
    for rank in range(2):
        with pytest.raises(UnmeasurableError, match=message):
            Pretended(rank, held).claim(held[rank])


def test_an_error_in_one_process_is_one_in_all() -> None:
    def fail() -> None:
        raise KeyError("mine")

    with pytest.raises(MemoryError, match="process 1: none left"):
        Pretended(0, [None, ("MemoryError", "none left")]).together(lambda: 3)
    with pytest.raises(KeyError, match="mine"):
        Pretended(0, [("KeyError", "mine"), None]).together(fail)
    assert Pretended(0, [None, None]).together(lambda: 3) == 3


def test_positions_in_a_block_and_in_the_parameter_agree() -> None:
    logical = torch.arange(60).view(5, 4, 3)
    block = Block((5, 4, 3), (1, 0, 1), (3, 4, 2))
    part = logical[1:4, :, 1:3]
    assert torch.equal(block.within(torch.arange(60)), torch.arange(24))
    assert torch.equal(block.positions([0, 1, 2]), part.reshape(-1))
    assert torch.equal(block.positions([2, 0, 1]), part.permute(2, 0, 1).reshape(-1))
    chosen = torch.tensor([3, 13, 14, 40, 59])
    inside = [int(x) for x in chosen if x in part]
    assert part.reshape(-1)[block.within(chosen)].tolist() == inside


def test_shards_sample_the_same_coordinates_as_the_whole() -> None:
    whole = torch.randn(6, 10)
    taken = TrackedParameters([Selected("w", whole, ())], 25)
    values = torch.empty(25)
    taken.buckets[0].copy_to(values)
    parts = []
    for first, n in ((0, 2), (2, 4)):
        part = whole[first : first + n]
        shard = Shard(part, whole.shape, Block((6, 10), (first, 0), (n, 10)), part.clone)
        tracked = TrackedParameters([Selected("w", shard, ())], 25)
        assert tracked.n_sampled == {"all": 25}
        parts.append(torch.empty(tracked.buckets[0].numel))
        tracked.buckets[0].copy_to(parts[-1])
    assert torch.equal(torch.cat(parts), values)


def test_a_shard_that_has_changed_is_noticed() -> None:
    part = [torch.zeros(3, 2)]
    shard = Shard(part[0], (6, 2), Block((6, 2), (0, 0), (3, 2)), lambda: part[0])
    assert shard.held().shape == (3, 2)
    for other in (torch.zeros(6, 2), torch.zeros(3, 2).double()):
        part[0] = other
        with pytest.raises(ParametersChangedError, match=r"was \(3, 2\) torch.float32 .* at first and is"):
            shard.held()


def test_parameters_of_one_process_need_no_other() -> None:
    selected = [Selected("w", torch.ones(3), ())]
    assert share_out(selected) == (selected, None)


def test_the_smallest_room_decides_for_all() -> None:
    selected = [Selected("w", torch.ones(1000), ())]

    class Smaller(Pretended):
        def gather(self, thing: object) -> list:
            return [thing, 10] if isinstance(thing, int) else [thing, None]

    assert plan_sample(selected, 2, processes=Smaller(0, [0, 0]))[0] == 10

"""Which part of each parameter this process holds, and which of it is counted here: each coordinate once, over all.

Under data parallelism alone every process holds all the weights, one of them measures, and nothing of this is needed.
Under FSDP2 and tensor parallelism a parameter is a ``DTensor``: each process holds a block of it, some blocks are held
by several processes, and some processes hold nothing. Every process says at the start which blocks it holds; a block is
counted by the first that has it, and the blocks that are counted must make up the whole parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class UnmeasurableError(ValueError):
    """Parameters are spread over processes in a way that cannot be measured rightly."""


@dataclass(frozen=True)
class Block:
    """A block of a parameter: where it begins in it, and its size, for each dimension.

    Attributes:
        shape: of the whole parameter; of a complex one with a last dimension of 2, real and imaginary part.
        offsets: of the first coordinate.
        sizes: of the block.
    """

    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of coordinates in the block."""
        return math.prod(self.sizes)

    @property
    def whole(self) -> bool:
        """Whether it is all of the parameter."""
        return self.sizes == self.shape

    def within(self, positions: Tensor) -> Tensor:
        """Those of some flat positions in the parameter (row-major, int64) that the block has, as positions in it."""
        if self.whole:
            return positions
        left, inside, place, stride = positions, torch.ones_like(positions, dtype=torch.bool), 0 * positions, 1
        for size, offset, extent in zip(*map(reversed, (self.shape, self.offsets, self.sizes)), strict=True):
            index = left % size - offset
            inside &= (index >= 0) & (index < extent)
            place, left, stride = place + index * stride, left // size, stride * extent
        return place[inside]

    def positions(self, order: Sequence[int]) -> Tensor:
        """The flat position in the parameter of each coordinate of the block, its dimensions walked in ``order``."""
        strides = [math.prod(self.shape[dim + 1 :]) for dim in range(len(self.shape))]
        result = torch.zeros((), dtype=torch.int64, device="cpu")
        for dim in order:
            steps = torch.arange(self.offsets[dim], self.offsets[dim] + self.sizes[dim], device="cpu") * strides[dim]
            result = result[..., None] + steps
        return result.reshape(-1)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor may be a part of one that is spread over processes: a ``DTensor``."""
    return hasattr(tensor, "placements") and hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a parameter, as a plain tensor that autograd does not see.

    To be asked for at each event: FSDP2 may put the shard elsewhere in memory, before the first forward pass, say.
    """
    if is_sharded(tensor):
        with torch.no_grad():
            tensor = tensor.to_local()  # type: ignore[attr-defined]
    return tensor.detach()


def block_of(tensor: Tensor) -> Block:
    """The block of a parameter that this process holds.

    Raises:
        UnmeasurableError: what it holds is not one block.
    """
    shape = tuple(tensor.shape)
    offsets, sizes = (0,) * len(shape), shape
    if is_sharded(tensor):
        # What `torch.distributed.checkpoint` asks for, too. It knows uneven, empty and strided shards.
        chunks = tensor.__create_chunk_list__()  # type: ignore[attr-defined]
        held = tuple(local(tensor).shape)
        if len(chunks) != 1 or tuple(chunks[0].sizes) != held:
            raise UnmeasurableError(
                f"the placements {tensor.placements} of a parameter of shape {shape} give this process "  # type: ignore[attr-defined]
                f"{[tuple(chunk.sizes) for chunk in chunks]}, and it holds {held}: not one block"
            )
        offsets, sizes = tuple(chunks[0].offsets), held
    pair = (2,) if tensor.is_complex() else ()
    return Block((*shape, *pair), (*offsets, *(0 for _ in pair)), (*sizes, *pair))


def reshard(module: nn.Module) -> None:
    """Have FSDP2 put back what a forward pass without a backward pass (a validation) has left gathered.

    Otherwise ``named_parameters`` gives buffers that are freed later, in place of the shards.
    """
    for part in module.modules():
        if callable(getattr(part, "reshard", None)) and callable(getattr(part, "unshard", None)):
            part.reshard()  # type: ignore[operator]


class Processes:
    """The processes that train one sharded model together; each makes the same calls in the same order.

    Attributes:
        rank: of this process.
        size: their number.
    """

    def __init__(self) -> None:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise UnmeasurableError(
                "a parameter is a DTensor, but torch.distributed is not initialised in this process"
            )
        self.rank = torch.distributed.get_rank()
        self.size = torch.distributed.get_world_size()

    def gather(self, thing: T) -> list[T]:
        """What each process has given, by rank. Waits for all: for the start of a run and for checkpoints."""
        everything: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(everything, thing)
        return everything

    def together(self, make: Callable[[], T]) -> T:
        """``make()``, unless it fails in any of the processes: then in all of them, so that none waits for another.

        Raises:
            Exception: what it raised here; elsewhere a MemoryError, TypeError or ValueError with the words of the first
                process where it failed.
        """
        result, error = None, None
        try:
            result = make()
        except Exception as raised:
            error = raised
        failures = self.gather(None if error is None else (type(error).__name__, str(error)))
        if error is not None:
            raise error
        for rank, failure in enumerate(failures):
            if failure is not None:
                kind = {"MemoryError": MemoryError, "TypeError": TypeError}.get(failure[0], ValueError)
                raise kind(f"process {rank}: {failure[1]}")
        return result  # type: ignore[return-value]

    def start_sum(self, vector: Tensor) -> torch.distributed.Work:
        """Begin to add up a vector over all processes, in place; the training does not wait for it."""
        work = torch.distributed.all_reduce(vector, async_op=True)
        assert work is not None
        return work

    def claim(self, blocks: dict[str, Block]) -> set[str]:
        """Names of the parameters whose block is counted here, by the first of the processes that hold it.

        Args:
            blocks: the block of each parameter that this process holds.

        Raises:
            UnmeasurableError: in all processes: they have other parameters, or blocks that do not make up a parameter.
        """
        everywhere = self.gather(blocks)
        mine: set[str] = set()
        for name in dict.fromkeys(name for held in everywhere for name in held):
            shapes = [held[name].shape if name in held else None for held in everywhere]
            if len(set(shapes)) > 1:
                raise UnmeasurableError(
                    f"the parameter {name!r} is not the same in all processes (by rank, its shapes are {shapes}): only "
                    "models with the same parameters in all processes can be measured"
                )
            seen: dict[Block, int] = {}
            for rank, held in enumerate(everywhere):
                if held[name].numel:
                    seen.setdefault(held[name], rank)
            total, numel = sum(block.numel for block in seen), math.prod(shapes[0] or ())
            if total != numel:
                raise UnmeasurableError(
                    f"the blocks of the parameter {name!r} have {total} coordinates in all, and it has {numel}: its "
                    "placement cannot be measured rightly"
                )
            if self.rank in seen.values():
                mine.add(name)
        return mine

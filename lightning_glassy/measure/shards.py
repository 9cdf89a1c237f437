"""Which part of each parameter this process holds, and which of it is counted here: each coordinate once, over all.

Under data parallelism alone every process holds all the weights, one of them measures, and nothing of this is needed.
Under FSDP, tensor parallelism and ZeRO a process holds a block of a parameter, some blocks are held by several
processes, and some processes hold nothing. Every process says at the start which blocks it holds; a block is counted by
the first that has it, and the blocks that are counted must make up the whole parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class ParametersChangedError(RuntimeError):
    """The tracked parameters are no longer those that the snapshots are of."""


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


class Shard:
    """A parameter that is spread over processes, and the block of it that is in this one.

    It stands for the parameter where that tells too little: of its own, a shard may have any shape.

    Attributes:
        parameter: the object that the module has.
        shape: of the whole parameter.
        block: what is here; of sharding that cuts the flattened parameter, an interval of that.
        dtype: of what is here, which may be more precise than the parameter.
        device: where it is.
    """

    layout = torch.strided
    is_meta = False

    def __init__(self, parameter: Tensor, shape: Sequence[int], block: Block, read: Callable[[], Tensor]) -> None:
        self.parameter, self.shape, self.block, self._read = parameter, tuple(shape), block, read
        held = self._now()
        self.dtype, self.device, self._held_shape = held.dtype, held.device, held.shape
        if block.numel != held.numel() * (2 if held.is_complex() else 1):
            raise UnmeasurableError(
                f"a parameter of shape {self.shape} should have {block.numel} coordinates in this process and has "
                f"{held.numel()}"
            )

    def held(self) -> Tensor:
        """What is here, as a plain tensor that autograd does not see.

        Raises:
            ParametersChangedError: it has another shape, dtype or device than at first.

        To be asked for at each event: the shard may be put elsewhere in memory, as by FSDP2 in the first forward pass.
        """
        held = self._now()
        if (held.shape, held.dtype, held.device) != (self._held_shape, self.dtype, self.device):
            raise ParametersChangedError(
                f"a shard of a parameter of shape {self.shape} was {tuple(self._held_shape)} {self.dtype} on "
                f"{self.device} at first and is {tuple(held.shape)} {held.dtype} on {held.device} now"
            )
        return held

    def _now(self) -> Tensor:
        with torch.no_grad():
            return self._read().detach()

    def numel(self) -> int:
        """Number of entries of the whole parameter."""
        return math.prod(self.shape)

    def dim(self) -> int:
        """Number of dimensions of the whole parameter."""
        return len(self.shape)

    def is_complex(self) -> bool:
        """Whether its entries are complex."""
        return self.dtype.is_complex


def block_of(tensor: Tensor | Shard) -> Block:
    """The block of a parameter that is here: all of it, unless it is a shard."""
    if isinstance(tensor, Shard):
        return tensor.block
    shape = (*tensor.shape, 2) if tensor.is_complex() else tuple(tensor.shape)
    return Block(shape, (0,) * len(shape), shape)


def shards_of(module: nn.Module | None, named_parameters: Iterable[tuple[str, Tensor]]) -> dict[int, Shard]:
    """The shards among some parameters, by the ``id`` of the parameter: of FSDP, tensor parallelism and ZeRO.

    Args:
        module: which the parameters are of; without it the shards of FSDP1 cannot be told from whole parameters.
        named_parameters: of it.

    Raises:
        UnmeasurableError: a parameter that is spread in a way that cannot be measured rightly; the message names it.
    """
    flat = {} if module is None else _fsdp1(module)
    found: dict[int, Shard] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad or id(parameter) in found:
            continue
        try:
            shard = flat.get(id(parameter)) or _dtensor(parameter) or _zero(parameter)
        except UnmeasurableError as error:
            raise UnmeasurableError(f"{name}: {error}") from None
        if shard is not None:
            found[id(parameter)] = shard
        elif getattr(parameter, "_fsdp_flattened", False):
            raise UnmeasurableError(
                f"{name} is a shard of FullyShardedDataParallel: give the wrapped module itself, not its parameters"
            )
    return found


def spread(module: nn.Module) -> bool:
    """Whether parameters of a module are spread over processes, so that all of them have to measure."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel

    wrapped = bool(FullyShardedDataParallel.fsdp_modules(module))
    return wrapped or any(hasattr(p, "placements") or hasattr(p, "ds_id") or _masters(p) for p in module.parameters())


def _dtensor(parameter: Tensor) -> Shard | None:
    """Of FSDP2 and of tensor parallelism."""
    if not hasattr(parameter, "placements"):
        return None
    # What `torch.distributed.checkpoint` asks for, too. It knows uneven, empty and strided shards.
    chunks = parameter.__create_chunk_list__()  # type: ignore[attr-defined]
    if len(chunks) != 1:
        raise UnmeasurableError(
            f"its placements {parameter.placements} put {len(chunks)} blocks of it into one process"
        )
    pair = (2,) if parameter.is_complex() else ()
    block = Block((*parameter.shape, *pair), (*chunks[0].offsets, *(0 for _ in pair)), (*chunks[0].sizes, *pair))
    return Shard(parameter, parameter.shape, block, parameter.to_local)  # type: ignore[attr-defined]


def _fsdp1(module: nn.Module) -> dict[int, Shard]:
    """Of FullyShardedDataParallel: intervals of the flattened parameters, as they are once a step is completed.

    Where the intervals begin is in its flat parameters alone, in the same attributes from torch 2.5 to 2.14.
    """
    if not torch.distributed.is_available():
        return {}
    from torch.distributed.fsdp import FullyShardedDataParallel

    found: dict[int, Shard] = {}
    for unit in FullyShardedDataParallel.fsdp_modules(module):
        handle: Any = getattr(unit, "_handle", None)
        if handle is None:
            continue
        flat = handle.flat_param
        if not handle._use_orig_params:
            raise UnmeasurableError(
                f"{flat._fqns[0]}: FullyShardedDataParallel(use_orig_params=False) makes one padded parameter of many: "
                "use_orig_params=True keeps them apart, so that they can be measured"
            )
        if any(extension is not None for extension in flat._param_extensions):
            raise UnmeasurableError(f"{flat._fqns[0]}: FullyShardedDataParallel over tensor parallelism: use FSDP2")
        for parameter, shape, info in zip(flat._params, flat._shapes, flat._shard_param_infos, strict=True):
            start, n = (info.intra_param_start_idx, info.numel_in_shard) if info.in_shard else (0, 0)
            block = Block((math.prod(shape),), (start,), (n,))
            found[id(parameter)] = Shard(parameter, shape, block, partial(torch.flatten, parameter))
    return found


def _masters(parameter: Tensor) -> bool:
    """Whether ZeRO 1 or 2 keeps the weights in float32, in parts, and gives the module rounded copies."""
    rounded = parameter.is_floating_point() and torch.finfo(parameter.dtype).bits < 32
    return rounded and parameter.requires_grad and hasattr(parameter, "_hp_mapping")


def _zero(parameter: Any) -> Shard | None:
    """Of DeepSpeed: what each process updates, an interval of the flattened parameter in float32."""
    if getattr(parameter, "allreduce", True) is False:
        raise UnmeasurableError("it is an expert's, which not every process has")
    if hasattr(parameter, "ds_id"):
        from deepspeed.utils import safe_get_local_fp32_param

        if safe_get_local_fp32_param(parameter) is None:
            raise UnmeasurableError("DeepSpeed has its weights neither on a device nor in memory")
        # The same number in all processes; what goes beyond the end is no weight.
        size, total = parameter.ds_tensor.ds_numel, parameter.ds_numel
        start = min(size * torch.distributed.get_rank(parameter.ds_process_group), total)
        n = min(size, total - start)
        block = Block((total,), (start,), (n,))
        return Shard(parameter, parameter.ds_shape, block, lambda: safe_get_local_fp32_param(parameter).flatten()[:n])
    if _masters(parameter):
        mapping, total = parameter._hp_mapping, parameter.numel()
        if mapping is None:  # no part of it is here
            nothing = torch.empty(0, dtype=torch.float32, device=parameter.device)
            return Shard(parameter, parameter.shape, Block((total,), (0,), (0,)), lambda: nothing)
        address = mapping.lp_fragment_address
        block = Block((total,), (address.start,), (address.numel,))
        return Shard(parameter, parameter.shape, block, lambda: parameter._hp_mapping.hp_fragment.flatten())
    return None


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
        # A group of its own: in the one of the training, its next collective would wait for our sums.
        self._group: Any = torch.distributed.new_group()

    def gather(self, thing: T) -> list[T]:
        """What each process has given, by rank. Waits for all: for the start of a run and for checkpoints."""
        everything: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(everything, thing, group=self._group)
        return everything

    def close(self) -> None:
        """Give up the group, whose threads should not outlive a training; all that was begun must have ended."""
        if self._group is not None and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group(self._group)
        self._group = None

    def place(self, devices: Iterable[torch.device]) -> torch.device:
        """Where to add up what is on some devices: NCCL alone adds nothing that is on a CPU."""
        found = max(devices, key=lambda device: (device.type == "cuda", str(device)))
        if found.type == "cpu" and torch.distributed.get_backend(self._group) == "nccl":
            return torch.device("cuda", torch.cuda.current_device())
        return found

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
        work = torch.distributed.all_reduce(vector, group=self._group, async_op=True)
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

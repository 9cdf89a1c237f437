"""Find the block of each parameter that this process holds, and count each coordinate once over all processes.

Under data parallelism alone, every process holds all the weights. One process measures, and this module is not needed.
Under FSDP, tensor parallelism and ZeRO, a process holds a block of a parameter. Several processes may hold the same
block, and some processes hold nothing. At the start, every process reports the blocks it holds. The first process that
holds a block counts it. The counted blocks must make up the whole parameter.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class ParametersChangedError(RuntimeError):
    """The tracked parameters no longer match the snapshots."""


class UnmeasurableError(ValueError):
    """Parameters are spread over processes in a way that cannot be measured correctly."""


@dataclass(frozen=True)
class Block:
    """Block of a parameter, with its offset in the parameter and its size along each dimension.

    Attributes:
        shape: shape of the whole parameter. For a complex parameter, a last dimension of 2 holds the real and the
            imaginary part.
        offsets: offsets of the first coordinate in the parameter.
        sizes: sizes of the block.
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
        """Whether the block is the whole parameter."""
        return self.sizes == self.shape

    def within(self, positions: Tensor) -> Tensor:
        """Select the positions that are inside the block, and return them as flat positions in the block.

        Args:
            positions: flat positions in the parameter (row-major, int64).
        """
        if self.whole:
            return positions
        left, inside, place, stride = positions, torch.ones_like(positions, dtype=torch.bool), 0 * positions, 1
        for size, offset, extent in zip(*map(reversed, (self.shape, self.offsets, self.sizes)), strict=True):
            index = left % size - offset
            inside &= (index >= 0) & (index < extent)
            place, left, stride = place + index * stride, left // size, stride * extent
        return place[inside]

    def positions(self, order: Sequence[int]) -> Tensor:
        """Return the flat position in the parameter of each coordinate of the block.

        Args:
            order: dimensions of the block, from the one that varies slowest to the one that varies fastest.
        """
        strides = [math.prod(self.shape[dim + 1 :]) for dim in range(len(self.shape))]
        result = torch.zeros((), dtype=torch.int64, device="cpu")
        for dim in order:
            steps = torch.arange(self.offsets[dim], self.offsets[dim] + self.sizes[dim], device="cpu") * strides[dim]
            result = result[..., None] + steps
        return result.reshape(-1)


class Shard:
    """Parameter that is spread over processes, with the block that this process holds.

    A shard replaces the parameter in ``Selected.tensor``, because its local tensor may have any shape.

    Attributes:
        parameter: the parameter object of the module.
        shape: shape of the whole parameter.
        block: the block that this process holds. If sharding cuts the flattened parameter, the block is an interval of
            the flattened parameter.
        dtype: dtype of the block, which may be more precise than the parameter.
        device: device of the block.
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
        """Return the block that this process holds, as a plain tensor that autograd does not see.

        Call this at each event, because a shard may move in memory. FSDP2 moves it in the first forward pass.

        Raises:
            ParametersChangedError: the block has another shape, dtype or device than at first.
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
        """Whether the entries are complex."""
        return self.dtype.is_complex


def block_of(tensor: Tensor | Shard) -> Block:
    """Return the block of a parameter that this process holds: the whole parameter, unless it is a shard."""
    if isinstance(tensor, Shard):
        return tensor.block
    shape = (*tensor.shape, 2) if tensor.is_complex() else tuple(tensor.shape)
    return Block(shape, (0,) * len(shape), shape)


def shards_of(module: nn.Module | None, named_parameters: Iterable[tuple[str, Tensor]]) -> dict[int, Shard]:
    """Return the shards of FSDP, tensor parallelism and ZeRO among some parameters, by the ``id`` of the parameter.

    Args:
        module: module that owns the parameters. Without it, a shard of FSDP1 raises an error.
        named_parameters: names and parameters of the module.

    Raises:
        UnmeasurableError: a parameter is spread in a way that cannot be measured correctly. The message names it.
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
    """Return whether parameters of a module are spread over processes, so that all processes must measure."""
    if not torch.distributed.is_available():
        return False
    wrapped = bool(_fsdp1_units(module))
    return wrapped or any(hasattr(p, "placements") or hasattr(p, "ds_id") or _masters(p) for p in module.parameters())


def _dtensor(parameter: Tensor) -> Shard | None:
    """Return the shard of a parameter of FSDP2 or tensor parallelism, or ``None`` for another parameter."""
    if not hasattr(parameter, "placements"):
        return None
    # `torch.distributed.checkpoint` calls this method, too. It handles uneven, empty and strided shards.
    chunks = parameter.__create_chunk_list__()  # type: ignore[attr-defined]
    if len(chunks) != 1:
        raise UnmeasurableError(
            f"its placements {parameter.placements} put {len(chunks)} blocks of it into one process"
        )
    pair = (2,) if parameter.is_complex() else ()
    block = Block((*parameter.shape, *pair), (*chunks[0].offsets, *(0 for _ in pair)), (*chunks[0].sizes, *pair))
    return Shard(parameter, parameter.shape, block, parameter.to_local)  # type: ignore[attr-defined]


def _fsdp1_units(module: nn.Module) -> list[Any]:
    """Return the parts of a module that FullyShardedDataParallel wraps. Its import takes a second, and is not ours."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return [] if fsdp is None else list(fsdp.FullyShardedDataParallel.fsdp_modules(module))


def _fsdp1(module: nn.Module) -> dict[int, Shard]:
    """Return the shards of FullyShardedDataParallel, by the ``id`` of the parameter.

    A shard is an interval of the flattened parameter, as it is after a completed step. Only the flat parameters store
    the starts of the intervals, in the same attributes from torch 2.5 to 2.14.
    """
    found: dict[int, Shard] = {}
    for unit in _fsdp1_units(module):
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
    """Return whether ZeRO 1 or 2 keeps the weights in parts in float32 and gives the module rounded copies."""
    rounded = parameter.is_floating_point() and torch.finfo(parameter.dtype).bits < 32
    return rounded and parameter.requires_grad and hasattr(parameter, "_hp_mapping")


def _zero(parameter: Any) -> Shard | None:
    """Return the shard of a DeepSpeed parameter, or ``None`` for another parameter.

    The shard is the interval of the flattened float32 parameter that this process updates.
    """
    if getattr(parameter, "allreduce", True) is False:
        raise UnmeasurableError("it is an expert's, which not every process has")
    if hasattr(parameter, "ds_id"):
        from deepspeed.utils import safe_get_local_fp32_param

        if safe_get_local_fp32_param(parameter) is None:
            raise UnmeasurableError("DeepSpeed has its weights neither on a device nor in memory")
        # `size` is equal in all processes. Entries past the end of the parameter are no weights.
        size, total = parameter.ds_tensor.ds_numel, parameter.ds_numel
        start = min(size * torch.distributed.get_rank(parameter.ds_process_group), total)
        n = min(size, total - start)
        block = Block((total,), (start,), (n,))
        return Shard(parameter, parameter.ds_shape, block, lambda: safe_get_local_fp32_param(parameter).flatten()[:n])
    if _masters(parameter):
        mapping, total = parameter._hp_mapping, parameter.numel()
        if mapping is None:  # this process holds no part of the parameter
            nothing = torch.empty(0, dtype=torch.float32, device=parameter.device)
            return Shard(parameter, parameter.shape, Block((total,), (0,), (0,)), lambda: nothing)
        address = mapping.lp_fragment_address
        block = Block((total,), (address.start,), (address.numel,))
        return Shard(parameter, parameter.shape, block, lambda: parameter._hp_mapping.hp_fragment.flatten())
    return None


def reshard(module: nn.Module) -> None:
    """Reshard the parameters that FSDP2 left gathered after a forward pass without a backward pass (a validation).

    Otherwise ``named_parameters`` returns buffers that are freed later, instead of the shards.
    """
    for part in module.modules():
        if callable(getattr(part, "reshard", None)) and callable(getattr(part, "unshard", None)):
            part.reshard()  # type: ignore[operator]


class Processes:
    """Processes that train one sharded model together. All of them must make the same calls in the same order.

    Attributes:
        rank: rank of this process.
        size: number of processes.
    """

    def __init__(self) -> None:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise UnmeasurableError(
                "a parameter is a DTensor, but torch.distributed is not initialised in this process"
            )
        self.rank = torch.distributed.get_rank()
        self.size = torch.distributed.get_world_size()
        # A separate group. In the group of the training, the next collective of the training would wait for our sums.
        self._group: Any = torch.distributed.new_group()

    def gather(self, thing: T) -> list[T]:
        """Return the objects that the processes pass, by rank.

        The call waits for all processes. Use it only at the start of a run and for checkpoints.
        """
        everything: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(everything, thing, group=self._group)
        return everything

    def close(self) -> None:
        """Destroy the group, so that its threads do not outlive the training. No operation may still be running."""
        if self._group is not None and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group(self._group)
        self._group = None

    def place(self, devices: Iterable[torch.device]) -> torch.device:
        """Return the device on which to add up tensors that are on ``devices``.

        This is a GPU if there is one among them, or if the backend is NCCL, which adds no tensors on a CPU.
        """
        found = max(devices, key=lambda device: (device.type == "cuda", str(device)))
        if found.type == "cpu" and torch.distributed.get_backend(self._group) == "nccl":
            return torch.device("cuda", torch.cuda.current_device())
        return found

    def together(self, make: Callable[[], T]) -> T:
        """Return ``make()``. If it fails in any process, raise in all processes, so that none waits for another.

        Raises:
            Exception: the error of ``make()``, if it fails in this process. Otherwise a MemoryError, TypeError or
                ValueError with the message of the first process in which it fails.
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
        """Start to add up a vector over all processes, in place. The training does not wait for the sum."""
        work = torch.distributed.all_reduce(vector, group=self._group, async_op=True)
        assert work is not None
        return work

    def claim(self, blocks: dict[str, Block]) -> set[str]:
        """Return the names of the parameters whose block this process counts, as the first process that holds it.

        Args:
            blocks: the block of each parameter that this process holds.

        Raises:
            UnmeasurableError: the processes have different parameters, or the blocks do not make up a parameter. Raised
                in all processes.
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

"""Remember the state of objects, and restore it in place."""

from __future__ import annotations

import array
import io
import operator
import random
import threading
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset

from lightning_glassy.measure.memory import free_memory, human_bytes

# Objects of these packages do not affect a loss, or other threads and processes use them.
_LEFT_ALONE = {
    "asyncio",
    "comet_ml",
    "concurrent",
    "inspect",
    "io",
    "lightning",
    "lightning_fabric",
    "logging",
    "mlflow",
}
_LEFT_ALONE |= {"multiprocessing", "pytorch_lightning", "queue", "socket", "subprocess", "tensorboard", "tensorboardX"}
_LEFT_ALONE |= {"threading", "torch", "wandb", "weakref"}
_LIVE = (io.IOBase, threading.Thread, type(threading.Lock()), type(threading.RLock()))
_CONSTANT = (type(None), bool, int, float, complex, str, bytes, torch.device, torch.dtype)
_SMALL = 1 << 28  # bytes that any machine has
_LITTLE = 1 << 20  # bytes of a counter or an average in a data set, unlike the data
_MOST = 200_000  # objects to remember, which takes about a second


class Kept:
    """The state of objects, and of everything that their attributes refer to, directly or indirectly.

    These are modules, tensors, arrays, generators of random numbers, containers, plain objects, and the classes of all
    of them. They are restored in place, so references to them stay valid. Some objects are not restored: a Trainer,
    loggers, loaders, data sets, files, locks, objects that hold a file, a lock or a thread, global variables, and the
    state of compiled code (such as the cells of a ``pandas.DataFrame``). The nearest 200,000 objects are remembered.

    Args:
        roots: the objects.
        content: whether to copy the content of all tensors and arrays, which may be written in place. If False, only
            tensors and arrays up to 1 MiB are copied, and data sets are restored, too.

    Attributes:
        tensors: the copies of tensors, by the ``id`` of the tensor.
        optimizers: the optimisers that were found.
        iterators: iterators that cannot be restored, each with the dictionary or list, and the key, that refer to it.
        leaves: the tensors that can have a gradient.

    Raises:
        MemoryError: there is no memory for the copies.
    """

    def __init__(self, roots: Iterable[Any], *, content: bool = True) -> None:
        self._content = content
        self._seen: dict[int, Any] = {}
        self._next: deque[Any] = deque(roots)
        self._forced = {id(root) for root in self._next}
        self._restore: list[Callable[[], object]] = []
        self._found: list[Tensor] = []
        self.tensors: dict[int, Tensor] = {}
        self.optimizers: list[Optimizer] = []
        self.iterators: list[tuple[Any, Any]] = []
        self.leaves: list[Tensor] = []
        while self._next and len(self._seen) < _MOST:
            value = self._next.popleft()
            if not isinstance(value, _CONSTANT) and id(value) not in self._seen:
                self._seen[id(value)] = value
                self._keep(value)
        self._next.clear()
        self._copy_tensors()

    @torch.no_grad()
    def put_back(self) -> None:
        """Restore the state."""
        failure: Exception | None = None
        for restore in self._restore:
            try:
                restore()
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure

    # ------------------------------------------------------------------ inside

    def _keep(self, value: Any) -> None:
        """Remember one object, and queue the objects that it refers to."""
        if isinstance(value, Tensor):
            if self._content or value.nbytes <= _LITTLE:
                self._found.append(value)
            if value.__dict__:
                self._keep_attributes(value)
        elif isinstance(value, np.ndarray):
            little = self._content or value.nbytes <= _LITTLE
            if little and value.flags.writeable and not isinstance(value, np.memmap):
                self._restore.append(partial(np.copyto, value, value.copy()))
        elif isinstance(value, (dict, list, bytearray, array.array, set, deque, tuple, frozenset)):
            self._keep_members(value)
            self._keep_attributes(value)
        elif (state := _state_of(value)) is not None:
            self._restore.append(state)
        elif isinstance(value, (types.MethodType, types.BuiltinFunctionType)):
            self._next.append(value.__self__)
        elif isinstance(value, types.FunctionType):
            self._keep_closure(value)
        elif isinstance(value, partial):
            self._next.extend((value.func, value.args, value.keywords))
        elif isinstance(value, Optimizer):
            self.optimizers.append(value)
            self._keep_entries(vars(value), queue=False)
            self._next.append(value.param_groups)
            self._keep_entries(value.state, queue=False)
            for of_parameter in value.state.values():
                # Only an update writes the tensors, and no update is allowed.
                if isinstance(of_parameter, dict):
                    self._keep_entries(of_parameter, queue=False)
        elif id(value) in self._forced or self._takes(value):
            self._keep_attributes(value)

    def _keep_members(self, value: Any) -> None:
        if isinstance(value, dict):
            self._keep_entries(value)
        elif isinstance(value, (list, bytearray, array.array)):
            items = value[:]
            self._restore.append(partial(_refill_list, value, items))
            if isinstance(value, list):
                self._next.extend(items)
                self.iterators += [(value, i) for i, item in enumerate(items) if self._cannot_go_back(item)]
        else:
            members = list(value)
            if isinstance(value, (set, deque)):
                self._restore.append(partial(_refill, value, members))
            self._next.extend(members)

    def _takes(self, value: Any) -> bool:
        if isinstance(value, (nn.Module, LRScheduler)) or (isinstance(value, Dataset) and not self._content):
            return True
        held = getattr(value, "__dict__", {}).values()
        return not _left_alone(value.__class__) and not any(isinstance(v, _LIVE) for v in held)

    def _keep_entries(self, entries: dict[Any, Any], queue: bool = True) -> None:
        items = list(entries.items())
        self._restore.append(partial(_refill_dict, entries, items))
        if queue:
            self._next.extend(value for _, value in items)
            self.iterators += [(entries, key) for key, value in items if self._cannot_go_back(value)]

    def _cannot_go_back(self, value: Any) -> bool:
        return isinstance(value, Iterator) and not isinstance(value, io.IOBase) and _left_alone(value.__class__)

    def _keep_attributes(self, value: Any) -> None:
        own = getattr(value, "__dict__", None)
        if isinstance(own, dict):
            self._keep_entries(own)
        for cls in type(value).__mro__:
            if _of_others(cls):
                continue
            slots = vars(cls).get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                if not slot.startswith("__") and (member := vars(cls).get(slot)) is not None and hasattr(value, slot):
                    held = getattr(value, slot)
                    self._restore.append(partial(member.__set__, value, held))
                    self._next.append(held)
            if id(cls) not in self._seen:
                self._seen[id(cls)] = cls
                self._keep_class(cls)

    def _keep_class(self, cls: type) -> None:
        """Remember the numbers and containers that a class shares between its objects."""
        shared = [
            (name, held)
            for name, held in vars(cls).items()
            if not (name.startswith("__") or callable(held) or hasattr(type(held), "__get__"))
        ]
        self._restore.append(partial(_restore_class, cls, shared))
        self._next.extend(held for _, held in shared)

    def _keep_closure(self, function: types.FunctionType) -> None:
        for cell in function.__closure__ or ():
            try:
                held = cell.cell_contents
            except ValueError:  # not filled yet
                continue
            self._restore.append(partial(setattr, cell, "cell_contents", held))
            self._next.append(held)

    def _copy_tensors(self) -> None:
        written = [tensor for tensor in self._found if _can_be_written(tensor)]
        needed: dict[torch.device, int] = {}
        for tensor in written:
            needed[tensor.device] = needed.get(tensor.device, 0) + tensor.numel() * tensor.itemsize
        # A measurement needs memory, too.
        away = {place for place, size in needed.items() if place.type == "cuda" and 2 * size > free_memory(place)}
        on_host = sum(size for place, size in needed.items() if place in away or place.type == "cpu")
        if on_host > _SMALL and on_host > (free := free_memory(torch.device("cpu"))):
            raise MemoryError(
                f"a copy of the weights and buffers, from which a measurement restores them, takes "
                f"{human_bytes(on_host)}, and {human_bytes(free)} of host memory are free: leave the measurement out"
            )
        for tensor in written:
            # A parameter is an alias of its data. Writing to the data does not change the version that a graph sees.
            alias = tensor.data
            copied = alias.to("cpu", copy=True) if tensor.device in away else alias.clone()
            self.tensors[id(tensor)] = copied
            self._restore.append(partial(_put_back, tensor, alias, copied))
        for tensor in self._found:
            if tensor.is_leaf:
                self.leaves.append(tensor)
                self._restore.append(partial(_put_back_gradient, tensor, tensor.grad, tensor.requires_grad))


def _put_back(tensor: Tensor, alias: Tensor, copied: Tensor) -> None:
    if tensor.data_ptr() != alias.data_ptr() or tensor.shape != alias.shape or tensor.stride() != alias.stride():
        tensor.grad = None
        tensor.data = alias  # something else was assigned to `.data`
    alias.copy_(copied)


def _put_back_gradient(tensor: Tensor, gradient: Tensor | None, trainable: bool) -> None:
    if not tensor.is_leaf:
        tensor.detach_()  # a loss has been added in place
    if tensor.requires_grad != trainable:
        tensor.requires_grad_(trainable)
    if tensor.grad is not gradient:
        tensor.grad = gradient


def _can_be_written(tensor: Tensor) -> bool:
    """Return whether each number has its own place in memory, unlike after ``expand``."""
    if nn.parameter.is_lazy(tensor) or tensor.layout != torch.strided or tensor.is_meta:
        return False
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return False  # its memory is of another kind, as for quantised weights, which nobody trains
    return all(stride or size == 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _state_of(value: Any) -> Callable[[], object] | None:
    """Return a function that restores a generator of random numbers, or ``None`` for another object."""
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, np.random.BitGenerator):
        return partial(setattr, value, "state", value.state)
    if isinstance(value, np.random.RandomState):
        return partial(value.set_state, value.get_state())
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return partial(value.setstate, value.getstate())
    return None


@lru_cache(maxsize=4096)
def _left_alone(cls: type) -> bool:
    if issubclass(cls, (type, types.ModuleType)):
        return True
    return any(_of_others(base) for base in cls.__mro__ if base is not object)


@lru_cache(maxsize=4096)
def _of_others(cls: type) -> bool:
    package = cls.__module__.partition(".")[0].lstrip("_")
    return package in _LEFT_ALONE or package in ("builtins", "itertools")


def _same(now: Iterable[Any], before: list[Any]) -> bool:
    return len(now) == len(before) and all(map(operator.is_, now, before))  # type: ignore[arg-type]


def _restore_class(cls: type, shared: list[tuple[str, Any]]) -> None:
    for name, held in shared:
        if vars(cls).get(name) is not held:
            setattr(cls, name, held)


def _refill_list(value: Any, items: Any) -> None:
    if not isinstance(value, list) or not _same(value, items):
        value[:] = items


def _refill(value: Any, members: list[Any]) -> None:
    if not _same(value, members):
        value.clear()
        (value.update if isinstance(value, set) else value.extend)(members)


def _refill_dict(entries: dict[Any, Any], items: list[tuple[Any, Any]]) -> None:
    if len(entries) == len(items) and all(
        k is a and v is b for (k, v), (a, b) in zip(entries.items(), items, strict=True)
    ):
        return
    # The method of a subclass may do more than set an entry, as in a Counter.
    plain: Any = OrderedDict if isinstance(entries, OrderedDict) else dict
    plain.clear(entries)
    for key, value in items:
        plain.__setitem__(entries, key, value)


class Unreadable(Iterator[Any]):
    """Stands for an iterator that cannot be restored, and refuses to be read."""

    def __init__(self, name: Any) -> None:
        self._name = name

    def __next__(self) -> Any:
        raise MisconfigurationException(
            f"the loss or the data set reads the iterator {self._name!r}, which cannot be put back for the training: "
            "give the measurement a loss=... or a loader that does not"
        )

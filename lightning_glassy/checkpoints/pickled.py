"""Describe the tensors in files of ``torch.save`` and read everything else, without running code from the files.

Files are archives since torch 1.6. Earlier files were a sequence of pickles and numbers. Both formats have one pickle
whose tensors refer to memory elsewhere in the file.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from lightning_glassy.checkpoints.archive import Archive
from lightning_glassy.checkpoints.handles import File
from lightning_glassy.checkpoints.strided import Memory, StridedTensor, Unreadable
from lightning_glassy.checkpoints.unpickle import Damaged, Function, Later, Opaque, Short, Unpickler, check_tree, is_key
from lightning_glassy.record.text import listed

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch before 1.6
_FIRST_WINDOW = 2**20

_DTYPE_OF_STORAGE = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
    "QUInt4x2Storage": torch.quint4x2,
    "QUInt2x4Storage": torch.quint2x4,
    "UntypedStorage": torch.uint8,
    "_UntypedStorage": torch.uint8,
}
# Objects of these classes hold no weights, and are left out. A user can allow more with
# torch.serialization.add_safe_globals.
_HARMLESS = (
    "_io.",
    "accelerate.",
    "builtins.object",
    "builtins.range",
    "builtins.slice",
    "collections.deque",
    "copyreg.",
    "datetime.",
    "decimal.",
    "fractions.",
    "lightning.",
    "lightning_fabric.",
    "numpy.random.",
    "omegaconf.",
    "pathlib.",
    "pytorch_lightning.",
    "torch.device",
    "torch.distributed.",
    "torch.optim.",
    "torch.storage.",
    "transformers.integrations.",
    "transformers.trainer_",
    "transformers.training_args",
    "typing.",
    "uuid.",
)
# Classes of tensors that need no code beyond torch's own.
_PLAIN_TENSORS = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")


class Storage:
    """The memory of tensors, as a pickle names it."""

    def __init__(self, memory: Memory, dtype: torch.dtype, shift: int = 0) -> None:
        self.memory, self.dtype, self.shift = memory, dtype, shift


def read_torch(file: File) -> dict[str, Any]:
    """Return the dict in a file of ``torch.save``, with a :class:`StridedTensor` in the place of each tensor.

    Raises:
        ValueError: the file is damaged, holds no dict, or holds objects that can only be made by running code. The
            message names the file.
    """
    content = read_object(file, 0, None)
    if not isinstance(content, dict):
        kind = "Tensor" if isinstance(content, (StridedTensor, Unreadable)) else type(content).__name__
        kind = content.name if isinstance(content, Opaque) else kind
        raise ValueError(f"{file.path} holds a {kind}, not a state_dict: save model.state_dict()")
    return content


def read_object(file: File, start: int, length: int | None) -> Any:
    """Return the content that ``torch.save`` wrote at a position of a file, or raise as :func:`read_torch`."""
    names: dict[str, None] = {}
    try:
        try:
            if file.read(start, 4) == b"PK\3\4":
                content = _read_archive(file, Archive(file, start, length), names)
            elif file.read(start + 257, 5) == b"ustar":
                raise _refuse(file, "is a tar archive, which is not read: save model.state_dict() with torch.save")
            else:
                content = _read_before_1_6(file, start, length, names)
        except Damaged:
            _refuse_code(file, names)
            raise
        _refuse_code(file, names)
        check_tree(content)
    except Damaged as error:
        raise ValueError(
            f"{file.path} is not a readable checkpoint: {error}. Leave it out, or save model.state_dict() with "
            "torch.save"
        ) from None
    return content


def _refuse(file: File, why: str) -> ValueError:
    return ValueError(f"{file.path} {why}")


def _read_archive(file: File, archive: Archive, names: dict[str, None]) -> Any:
    if archive.record("constants.pkl") is not None:
        raise _refuse(file, "is a program (TorchScript), which is not run: save model.state_dict() with torch.save")
    if archive.compressed:
        name = file.path.name
        raise _refuse(
            file,
            "is a compressed archive, which cannot be read block by block. Write it anew: "
            f"torch.save(torch.load({name!r}), {name!r})",
        )
    if archive.read("byteorder") not in (None, b"little"):
        raise _refuse(file, "has its bytes in big-endian order: save it again on a machine of today")
    data = archive.read("data.pkl")
    assert data is not None
    storages: dict[str, Storage] = {}

    def storage_of(kind: str, key: str, n: int, _: object = None) -> Storage:
        dtype = _DTYPE_OF_STORAGE[kind]
        if key not in storages:
            memory = archive.record(f"data/{key}")
            if memory is None:
                if n:
                    raise Damaged(f"its record 'data/{key}' is missing")
                memory = Memory(file, key, 0, 0)
            if memory.size != n * dtype.itemsize:
                raise Damaged(f"its record 'data/{key}' has {memory.size} bytes for {n} numbers of {dtype}")
            storages[key] = Storage(memory, dtype)
        return storages[key]

    return _unpickle(data, 0, storage_of, names)[0]


def _read_before_1_6(file: File, start: int, length: int | None, names: dict[str, None]) -> Any:
    size = file.size - start if length is None else length
    window = _FIRST_WINDOW
    while True:
        data = file.read(start, min(window, size))
        names.clear()
        try:
            return _read_row(file, start, data, size, names)
        except Short:
            if window >= size:
                raise
        window *= 4


def _read_row(file: File, start: int, data: bytes, size: int, names: dict[str, None]) -> Any:
    """Read the parts of a file before torch 1.6: magic number, version, machine, content, list of storages."""
    if data[:1] != b"\x80":
        raise _refuse(file, f"is not a checkpoint{_kind(data)}")
    magic, at = _unpickle(data, 0, _no_storage, names)
    if magic != _MAGIC:
        raise Damaged("it is a pickle that torch.save has not written")
    protocol, at = _unpickle(data, at, _no_storage, names)
    machine, at = _unpickle(data, at, _no_storage, names)
    if protocol != _PROTOCOL or not isinstance(machine, dict):
        raise Damaged("it is of a version that is not known")
    if machine.get("little_endian") is not True:
        raise _refuse(file, "has its bytes in big-endian order: save it again on a machine of today")
    memories: dict[str, tuple[Memory, torch.dtype, int]] = {}
    storages: dict[tuple[str, Any], Storage] = {}

    def storage_of(kind: str, key: str, n: int, view: Any = None) -> Storage:
        dtype, shift = _DTYPE_OF_STORAGE[kind], 0
        if view is not None:  # a part of another storage, in files of the first versions
            if not isinstance(view, tuple) or len(view) != 3 or not _is_size(view[1]):
                raise Damaged("its pickle is damaged")
            shift = view[1]
        if key not in memories:
            # Its position is known at the end of the pickle.
            memories[key] = Memory(file, key, n * dtype.itemsize, 0), dtype, n
        memory, first_dtype, _ = memories[key]
        if first_dtype != dtype:
            raise Damaged(f"its storage {key!r} has two dtypes")
        return storages.setdefault((key, shift), Storage(memory, dtype, shift))

    content, at = _unpickle(data, at, storage_of, names)
    keys, at = _unpickle(data, at, _no_storage, names)
    if not isinstance(keys, list) or {*map(str, keys)} != {*memories} or len(keys) != len(memories):
        raise Damaged("its list of storages is damaged")
    for key in map(str, keys):
        memory, _, n = memories[key]
        head = file.read(start + at, 8)
        if len(head) < 8 or struct.unpack("<q", head)[0] != n or at + 8 + memory.size > size:
            raise Damaged(f"its storage {key!r} is cut short")
        memory.start = start + at + 8
        at += 8 + memory.size
    return content


def _no_storage(*_: object) -> Storage:
    raise Damaged("its pickle is damaged")


def _kind(data: bytes) -> str:
    """Describe the kind of file that begins with these bytes."""
    if data.startswith(b"version https://git-lfs"):
        return " but a pointer of Git LFS to it. Fetch the file itself: git lfs pull"
    if data.lstrip()[:1] == b"<":
        return " but a page of the web or a text in XML. Fetch the file again"
    if data[:2] == b"\x1f\x8b":
        return " but a file that was compressed with gzip: unpack it first"
    if not data:
        return ": it is empty"
    return ": save model.state_dict() with torch.save"


def _unpickle(data: bytes, at: int, storage_of: Function, names: dict[str, None]) -> tuple[Any, int]:
    """Read one pickle, and return its content and its end."""

    def persistent(key: Any) -> Any:
        if isinstance(key, tuple) and len(key) > 1 and _word(key[0]) == "module":
            return key[1]  # a class with its source, in files of the first versions
        if not isinstance(key, tuple) or len(key) not in (5, 6) or _word(key[0]) != "storage":
            raise Damaged("its pickle refers to a thing that is no storage")
        _, kind, name, _, n, *view = key
        name = _word(name) if isinstance(name, (str, bytes)) else str(name) if type(name) is int else None
        kind = kind.name.rpartition(".")[2] if isinstance(kind, Opaque) else None
        if kind not in _DTYPE_OF_STORAGE or name is None or not _is_size(n):
            raise Damaged("its pickle has a storage that is not known")
        return storage_of(kind, name, n, *view)

    unpickler = Unpickler(data, _FUNCTIONS, _unknown, persistent, at)
    unpickler.names = names
    return unpickler.load(), unpickler.position


def _unknown(name: str, args: tuple[Any, ...]) -> Any:
    """Return the substitute for an object that is not made. A tensor stays visible as a tensor."""
    last = name.rpartition(".")[2]
    return Unreadable(f"is a {last}") if last.endswith(("Tensor", "Parameter")) else Opaque(name, args, called=True)


def _word(value: object) -> object:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value


# ---------------------------------------------------------------------- names that need no code


# Many programs keep their arguments beside the weights. Such an object is left out. A message lists it, because
# `torch.load` refuses it.
_SETTINGS = {"argparse.Namespace", "types.SimpleNamespace"}


def _refuse_code(file: File, names: Iterable[str]) -> None:
    """Refuse a file with names that are neither known nor allowed by the user."""
    allowed = _allowed_by_user()
    unknown = sorted(name for name in names if not _is_known(name) and name not in allowed)
    if not _SETTINGS.issuperset(unknown):
        shown = [name.removeprefix("builtins.") for name in unknown]
        all_names = listed(shown, 20)
        raise ValueError(
            f"{file.path} holds more than tensors and plain values: to read it, {all_names} would have to be run. "
            "Nothing was executed. Save model.state_dict() alone, or, if you trust the file, allow them in Python: "
            f"torch.serialization.add_safe_globals([{all_names}])"
        )


def _is_known(name: str) -> bool:
    module, _, last = name.rpartition(".")
    if name in _FUNCTIONS or name in _PLAIN_TENSORS or name.startswith(_HARMLESS):
        return True
    if module.split(".")[0] == "torch":
        return last in _DTYPE_OF_STORAGE or isinstance(getattr(torch, last, None), (torch.dtype, torch.qscheme))
    kind = getattr(np, last, None) if module == "numpy" else None
    return isinstance(kind, type) and issubclass(kind, (np.generic, np.ndarray))


def _allowed_by_user() -> set[str]:
    """Return the names that the user has allowed. Their objects are not made either, but left out."""
    allowed: Any = torch.serialization.get_safe_globals()
    return {entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}" for entry in allowed}


# ---------------------------------------------------------------------- functions by name


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def sizes_of(value: Any) -> tuple[int, ...]:
    """Return a tuple of sizes, after checking that it is one."""
    if not isinstance(value, (tuple, list)) or len(value) > 64 or not all(map(_is_size, value)):
        raise Damaged("a tensor has a shape or strides that are no sizes")
    return tuple(value)


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None, problem: str | None = None
) -> StridedTensor:
    shape, strides = sizes_of(size), sizes_of(stride)
    if not isinstance(storage, Storage) or not _is_size(offset) or len(shape) != len(strides):
        raise Damaged("a tensor has no storage")
    dtype = dtype or storage.dtype
    try:
        return StridedTensor(storage.memory, dtype, shape, strides, offset + storage.shift, problem)
    except ValueError as error:
        raise Damaged(str(error)) from None


def _tensor_v2(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> Any:
    return _tensor(storage, offset, size, stride, problem=_view_problem(metadata))


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> Any:
    return _tensor(storage, offset, size, stride, dtype_of(dtype), _view_problem(metadata))


def _view_problem(metadata: Any) -> str | None:
    views = [kind for kind in ("conj", "neg") if isinstance(metadata, dict) and metadata.get(kind)]
    return f"is a view of other numbers ({views[0]}): save tensor.resolve_{views[0]}()" if views else None


def dtype_of(value: Any) -> torch.dtype:
    """Return the dtype of a name in a pickle."""
    found = getattr(torch, value.name.rpartition(".")[2], None) if isinstance(value, Opaque) else value
    if not isinstance(found, torch.dtype):
        raise Damaged("a tensor has a dtype that this torch does not know")
    return found


def plain_pickle(data: bytes) -> Any:
    """Return the content of a pickle without tensors. Objects of all classes are :class:`Opaque`.

    Raises:
        Damaged: the bytes are no pickle.
    """
    return Unpickler(data, _FUNCTIONS).load()


def _quantised(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    return _tensor(storage, offset, size, stride)


def _sparse(layout: Any, data: Any) -> Unreadable:
    values = [item for item in data if isinstance(item, (StridedTensor, Unreadable))] if isinstance(data, tuple) else []
    shapes = [item for item in data if isinstance(item, tuple)] if isinstance(data, tuple) else []
    dtype = values[-1].dtype if values else torch.float32
    return Unreadable(f"is a {layout} tensor", sizes_of(shapes[0]) if shapes else (), dtype)


def _meta(dtype: Any, size: Any, *_: Any) -> Unreadable:
    return Unreadable("is a tensor on the meta device, without values", sizes_of(size), dtype_of(dtype))


def _wrapper(_: Any, dtype: Any, size: Any, *__: Any) -> Unreadable:
    return Unreadable("keeps its values in other tensors", sizes_of(size), dtype_of(dtype))


def _nested(*_: Any) -> Unreadable:
    return Unreadable("is a nested tensor")


def _from_device(data: Any, dtype: Any, *_: Any) -> Any:
    if isinstance(data, (StridedTensor, Unreadable)) and data.dtype == dtype_of(dtype):
        return data
    return Unreadable("was saved on a device that keeps tensors apart: save it from the CPU", np.shape(data))


def _of_type(function: Any, kind: Any, args: Any, state: Any = None) -> Any:
    """Rebuild a tensor of a subclass. One of torch's own classes is a plain tensor."""
    if not isinstance(function, Opaque) or not isinstance(kind, Opaque) or not isinstance(args, tuple):
        raise Damaged("a tensor is damaged")
    known = _FUNCTIONS.get(function.name)
    tensor = known(*args) if known is not None and function.name.startswith("torch._") else None
    if kind.name in _PLAIN_TENSORS and isinstance(tensor, (StridedTensor, Unreadable)):
        return tensor
    shape, dtype = (tensor.shape, tensor.dtype) if isinstance(tensor, (StridedTensor, Unreadable)) else ((), None)
    return Unreadable(f"is a {kind.name.rpartition('.')[2]}", shape, dtype or torch.float32)


def _first(data: Any, *_: Any) -> Any:
    return data


def _dict(items: Any = (), *_: Any) -> dict[Any, Any]:
    pairs = items.items() if isinstance(items, dict) else items
    if not isinstance(items, (dict, list, tuple)) or not all(len(pair) == 2 for pair in pairs):
        raise Damaged("a dict is damaged")
    return {key: value for key, value in pairs if is_key(key)}


def _set(items: Any = ()) -> set[Any]:
    return {item for item in _sequence(items) if is_key(item)}


def _sequence(items: Any = ()) -> list[Any]:
    if not isinstance(items, (list, tuple, set)):
        raise Damaged("a list is damaged")
    return list(items)


def _bytes(text: Any = "", encoding: Any = "latin1") -> bytes:
    if isinstance(text, (bytes, str)) and encoding in ("latin1", "latin-1", "ascii", "utf-8"):
        return text if isinstance(text, bytes) else text.encode(encoding)
    raise Damaged("bytes are damaged")


def _complex(real: Any = 0.0, imag: Any = 0.0) -> complex:
    return complex(float(real), float(imag))


def _text(value: Any = "", *_: Any) -> str:
    if not isinstance(value, str):
        raise Damaged("a text is damaged")
    return value


def _number(value: Any = 0) -> Any:
    if not isinstance(value, (bool, int, float)):
        raise Damaged("a number is damaged")
    return value


class NumpyType(Later):
    """A dtype of NumPy in a pickle."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.dtype = None
        if isinstance(code, str) and re.fullmatch("[fiubcSUMmV?][0-9]*", code):
            self.dtype = np.dtype(code)

    def complete(self, state: Any) -> None:
        """Take the byte order."""
        if self.dtype is None or not isinstance(state, tuple) or len(state) < 5:
            self.dtype = None
        elif state[1] in ("<", ">"):  # records have fields and no order, and stay bytes
            self.dtype = self.dtype.newbyteorder(state[1])


class NumpyArray(Later):
    """An array of NumPy in a pickle."""

    def __init__(self, *_: Any) -> None:
        self.value = None

    def complete(self, state: Any) -> None:
        """Take the values."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise Damaged("an array is damaged")
        _, shape, dtype, fortran, raw = state
        self.value = _array(shape, dtype, raw, "F" if fortran else "C")


def _array(shape: Any, dtype: Any, raw: Any, order: Any = "C") -> np.ndarray[Any, Any]:
    if not isinstance(dtype, NumpyType) or dtype.dtype is None or isinstance(raw, list):
        raise Damaged("it holds an array of NumPy with objects in it, which would have to be run")
    data = raw.encode("latin1") if isinstance(raw, str) else raw
    sizes = sizes_of(shape)
    if not isinstance(data, bytes) or math.prod(sizes) * dtype.dtype.itemsize != len(data) or order not in ("C", "F"):
        raise Damaged("an array of NumPy is damaged")
    return np.frombuffer(data, dtype.dtype).reshape(sizes, order=order)


def _scalar(dtype: Any, raw: Any) -> Any:
    value = _array((), dtype, raw).item()
    return value if isinstance(value, (bool, int, float, complex, str, bytes)) else None


def _layout(name: Any) -> str:
    return str(name)


_FUNCTIONS: dict[str, Function] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch.nn.parameter.Parameter": _first,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_qtensor": _quantised,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_nested_tensor": _nested,
    "torch._utils._rebuild_wrapper_subclass": _wrapper,
    "torch._utils._rebuild_xla_tensor": _from_device,
    "torch._utils._rebuild_device_tensor_from_numpy": _from_device,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _from_device,
    "torch._tensor._rebuild_from_type": _of_type,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.serialization._get_layout": _layout,
    "torch.Size": lambda sizes=(): sizes_of(sizes),
    "torch.device": lambda kind, index=None: f"{kind}" if index is None else f"{kind}:{index}",
    "torch.torch_version.TorchVersion": _text,
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "collections.defaultdict": lambda *_: {},
    "builtins.dict": _dict,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.list": _sequence,
    "builtins.tuple": lambda items=(): tuple(_sequence(items)),
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "builtins.complex": _complex,
    "builtins.str": _text,
    "builtins.int": _number,
    "builtins.float": _number,
    "builtins.bool": _number,
    "_codecs.encode": _bytes,
    "numpy.dtype": NumpyType,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": NumpyArray,
    "numpy.core.numeric._frombuffer": lambda raw, dtype, shape, order="C": _array(shape, dtype, raw, order),
}
_FUNCTIONS |= {name.replace(".core.", "._core."): run for name, run in _FUNCTIONS.items() if ".core." in name}

"""Describe the tensors in ``.safetensors`` files."""

from __future__ import annotations

import json
from typing import Any

import torch

from lightning_glassy.checkpoints.handles import File
from lightning_glassy.checkpoints.stored import Stored
from lightning_glassy.checkpoints.strided import Memory, StridedTensor, Unreadable

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
}


def looks_like_safetensors(head: bytes, size: int) -> bool:
    """Return whether a file may be one of safetensors, from its first bytes and its size."""
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size


def read_safetensors(file: File) -> tuple[dict[str, Stored], dict[str, str]]:
    """Return the tensors of a file and its metadata. No value is read.

    Raises:
        ImportError: the package safetensors is missing.
        ValueError: the file is damaged. The message names it.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(
            f"reading {file.path} needs the package safetensors: pip install 'lightning-glassy[safetensors]'"
        ) from error
    if file.read(0, 19) == b"version https://git":
        raise ValueError(
            f"{file.path} is not a checkpoint but a pointer of Git LFS to it. Fetch the file itself: git lfs pull"
        )
    try:
        with safe_open(file.path, framework="pt", device="cpu") as opened:  # checks that all parts fit together
            metadata = dict(opened.metadata() or {})
        length = int.from_bytes(file.read(0, 8), "little")
        header = json.loads(file.read(8, length))
    except (SafetensorError, ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"{file.path} is not a readable safetensors file: {error}") from None
    return {
        name: _tensor(file, name, 8 + length, entry) for name, entry in header.items() if name != "__metadata__"
    }, metadata


def _tensor(file: File, name: str, begin: int, entry: dict[str, Any]) -> Stored:
    shape, (start, end) = entry["shape"], entry["data_offsets"]
    dtype = getattr(torch, _DTYPES.get(entry["dtype"], ""), None)
    if dtype is None:
        return Unreadable(f"has the dtype {entry['dtype']}, which this torch does not have", shape, torch.uint8)
    strides, stride = [], 1
    for size in reversed(shape):
        strides.append(stride)
        stride *= size
    return StridedTensor(Memory(file, name, end - start, begin + start), dtype, shape, strides[::-1])

"""Snapshots in files of their own, beside the checkpoints that refer to them by name and checksum.

A snapshot never changes, so that its file is written once, however many checkpoints refer to it. The name has a part of
the checksum: two continuations of one run never overwrite each other's files, and whoever finds a file of that name
finds its content. A file is an array of bytes in NumPy's format, read without pickle: the weights of one waiting time
that one process holds, one dtype after the other.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_glassy.record.atomic import remove_left, write_atomically

_NAME = re.compile(r"tw_\d+-rank_\d+-[0-9a-f]{16}\.npy")
_PIECE = 64 << 20


class Stored(NamedTuple):
    """A file that holds a snapshot.

    Attributes:
        name: of the file, without its directory.
        checksum: SHA-256 of the content, in hexadecimal digits.
    """

    name: str
    checksum: str


class SnapshotFileError(OSError):
    """A file with a snapshot is missing, or does not hold what the checkpoint says."""


def write_snapshot(directory: Path, waiting_time: int, rank: int, flats: Sequence[Tensor]) -> Stored:
    """Write the flat weights of a snapshot atomically, unless their file is there already. Waits for their device.

    Raises:
        OSError: the file cannot be written.
    """
    hosts = [flat.detach().cpu().reshape(-1).view(torch.uint8).numpy() for flat in flats]
    digest = hashlib.sha256()
    for part in _pieces(hosts):
        digest.update(part)
    stored = Stored(f"tw_{waiting_time}-rank_{rank}-{digest.hexdigest()[:16]}.npy", digest.hexdigest())
    path = directory / stored.name
    header, size = _header(hosts), sum(host.nbytes for host in hosts)

    def write(file: BinaryIO) -> None:
        file.write(header)
        for part in _pieces(hosts):
            file.write(part)

    # A file of this name and length was written whole: see `write_atomically`.
    if not is_stored(directory, stored) or path.stat().st_size != len(header) + size:
        remove_left(directory, r"tw_\d+-rank_\d+-[0-9a-f]*(\.npy|\.np|\.n|\.)?")  # of names that were cut
        write_atomically(path, write)
    return stored


def is_stored(directory: Path, stored: Stored) -> bool:
    """Whether a directory has the file of a snapshot."""
    return (directory / stored.name).is_file()


def _header(arrays: Sequence[NDArray[np.uint8]] | Sequence[int]) -> bytes:
    """The beginning of a file in NumPy's format that holds so many bytes."""
    file = io.BytesIO()
    size = sum(array if isinstance(array, int) else array.nbytes for array in arrays)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (size,)})
    return file.getvalue()


def read_snapshot(directories: Sequence[Path], stored: Stored, sizes: Sequence[int]) -> list[NDArray[np.uint8]]:
    """The bytes of a snapshot, mapped into memory, after comparing them with their checksum.

    Args:
        directories: where the file may be; the first that has it.
        stored: the file.
        sizes: number of bytes of each flat tensor.

    Raises:
        SnapshotFileError: no directory has it, or it is damaged; the message says where it was looked for.
    """
    if not _NAME.fullmatch(stored.name):
        raise SnapshotFileError(f"{stored.name!r} is not the name of a file with a snapshot")
    path = next((found for where in directories if (found := where / stored.name).is_file()), None)
    if path is None:
        raise SnapshotFileError(f"there is no {stored.name} in {' or '.join(map(str, dict.fromkeys(directories)))}")
    # What is read is what is written, byte by byte: no parser sees the file.
    header = _header(sizes)
    with path.open("rb") as file:
        if path.stat().st_size != len(header) + sum(sizes) or file.read(len(header)) != header:
            raise SnapshotFileError(f"{path} is damaged, or of other weights: {sum(sizes)} bytes of them are expected")
    content = np.memmap(path, np.uint8, mode="r", offset=len(header))
    digest = hashlib.sha256()
    for part in _pieces([content]):
        digest.update(part)
    if digest.hexdigest() != stored.checksum:
        raise SnapshotFileError(f"{path} is damaged: its checksum is not the one in the checkpoint")
    return [content[a:b] for a, b in itertools.pairwise(np.cumsum([0, *sizes]))]


def _pieces(arrays: Sequence[NDArray[np.uint8]]) -> Iterator[memoryview]:
    for array in arrays:
        for start in range(0, len(array), _PIECE):
            yield np.ascontiguousarray(array[start : start + _PIECE]).data

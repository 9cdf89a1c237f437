"""Write and read snapshots in separate files, beside the checkpoints that refer to them by name and checksum.

A snapshot never changes. Its file is therefore written once, for any number of checkpoints that refer to it. The file
name contains a part of the checksum, so that the name determines the content. Two continuations of one run therefore
never overwrite each other's files. A file is an array of bytes in NumPy's format and is read without pickle. It holds
the weights of one waiting time in one process, one dtype after the other.
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
        name: name of the file, without its directory.
        checksum: SHA-256 of the weights, in hexadecimal digits.
    """

    name: str
    checksum: str


class SnapshotFileError(OSError):
    """A file with a snapshot is missing, or its content does not match the checkpoint."""


def write_snapshot(directory: Path, waiting_time: int, rank: int, flats: Sequence[Tensor]) -> Stored:
    """Write the flat weights of a snapshot atomically, unless their file exists. Wait for their device first.

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

    # A file of this name and length is complete, because `write_atomically` leaves no partial file.
    if not is_stored(directory, stored) or path.stat().st_size != len(header) + size:
        # `write_atomically` cuts the names of its temporary files, so the pattern allows for a part of the name.
        remove_left(directory, r"tw_\d+-rank_\d+-[0-9a-f]*(\.npy|\.np|\.n|\.)?")
        write_atomically(path, write)
    return stored


def is_stored(directory: Path, stored: Stored) -> bool:
    """Return whether a directory has the file of a snapshot."""
    return (directory / stored.name).is_file()


def _header(arrays: Sequence[NDArray[np.uint8]] | Sequence[int]) -> bytes:
    """Return the header of a NumPy file that holds the bytes of ``arrays`` (arrays, or their sizes in bytes)."""
    file = io.BytesIO()
    size = sum(array if isinstance(array, int) else array.nbytes for array in arrays)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (size,)})
    return file.getvalue()


def read_snapshot(directories: Sequence[Path], stored: Stored, sizes: Sequence[int]) -> list[NDArray[np.uint8]]:
    """Check the bytes of a snapshot against the checksum, and return them mapped into memory.

    Args:
        directories: directories that may have the file. The first one that has the file is used.
        stored: the file.
        sizes: number of bytes of each flat tensor.

    Returns:
        The bytes of each flat tensor.

    Raises:
        SnapshotFileError: the name is not the name of a snapshot file, no directory has the file, or the file is
            damaged. The message names the directories or the file.
    """
    if not _NAME.fullmatch(stored.name):
        raise SnapshotFileError(f"{stored.name!r} is not the name of a file with a snapshot")
    path = next((found for where in directories if (found := where / stored.name).is_file()), None)
    if path is None:
        raise SnapshotFileError(f"there is no {stored.name} in {' or '.join(map(str, dict.fromkeys(directories)))}")
    # Compare the header byte by byte with the header that `write_snapshot` writes, so that no parser reads the file.
    header = _header(sizes)
    with path.open("rb") as file:
        if path.stat().st_size != len(header) + sum(sizes) or file.read(len(header)) != header:
            raise SnapshotFileError(f"{path} is damaged or holds other weights: expected {sum(sizes)} bytes of weights")
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

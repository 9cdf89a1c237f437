"""Snapshots in files of their own, beside the checkpoints that refer to them by name and checksum.

A snapshot never changes, so that its file is written once, however many checkpoints refer to it. The name has a part of
the checksum: two continuations of one run never overwrite each other's files, and whoever finds a file of that name
finds its content. A file is an array of bytes in NumPy's format, read without pickle: the weights of one waiting time
that one process holds, one dtype after the other.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_glassy.record import write_atomically

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
    hosts = [flat.detach().cpu().view(torch.uint8).numpy() for flat in flats]
    digest = hashlib.sha256()
    for part in _pieces(hosts):
        digest.update(part)
    stored = Stored(f"tw_{waiting_time}-rank_{rank}-{digest.hexdigest()[:16]}.npy", digest.hexdigest())
    path = directory / stored.name
    size = sum(host.nbytes for host in hosts)

    def write(file: object) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (size,)}
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
        for part in _pieces(hosts):
            file.write(part)  # type: ignore[attr-defined]

    # A file of this name and more bytes than that was written whole: see `write_atomically`.
    if not (path.is_file() and path.stat().st_size > size):
        write_atomically(path, write)
    return stored


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
    try:
        content = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise SnapshotFileError(f"{path} is damaged: {error}") from error
    if content.dtype != np.uint8 or content.shape != (sum(sizes),):
        raise SnapshotFileError(f"{path} has {content.shape} of {content.dtype} where {sum(sizes)} bytes are expected")
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

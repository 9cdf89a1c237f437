"""Keep the sums of a run that was interrupted, so that the next run goes on from there.

The file is one line of JSON, followed by arrays whose sizes the arguments of the run determine. A reader does not trust
the file. It is useful only for the same arguments and the same files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.record.atomic import remove_left, write_atomically

log = logging.getLogger(__name__)

_FORMAT, _VERSION = "lightning_glassy.unfinished", 1
_LONGEST_HEADER = 1 << 16
_FOREIGN = "{} is there already and holds no sums of an interrupted measurement: remove it, or choose another name"

# Seconds between saves. The interval is longer if a save takes longer than a fiftieth of this.
_SAVE_EVERY = 30.0
_SAVE_SHARE = 0.02


@dataclass
class State:
    """The sums of the first tiles.

    Attributes:
        own: sums of w^2 and of w, ``[n_bucket, n_cell, n_row, 2]``.
        pair: sums of each pair, ``[n_bucket, n_cell, n_pair, 2 + n_threshold]``.
        not_finite: whether a tensor has a value that is not finite, ``[n_tensor, n_row]``.
        done: number of tiles.
        whole: whether the sums are of exactly ``done`` tiles. An interrupt may come between two sums.
    """

    own: NDArray[np.float64]
    pair: NDArray[np.float64]
    not_finite: NDArray[np.bool_]
    done: int = 0
    whole: bool = True

    @classmethod
    def empty(cls, cells: tuple[int, int], n_row: int, n_pair: int, n_threshold: int, n_tensor: int) -> State:
        """Return the state before the first tile. ``cells`` is ``(n_bucket, n_cell)``."""
        own = np.zeros((*cells, n_row, 2))
        pair = np.zeros((*cells, n_pair, 2 + n_threshold))
        return cls(own, pair, np.zeros((n_tensor, n_row), dtype=np.bool_))

    def add(
        self,
        bucket: int,
        cell: int,
        own: NDArray[np.float64],
        pair: NDArray[np.floating],
        not_finite: Sequence[tuple[int, int]],
    ) -> None:
        """Add the sums of the next tiles, one tile after the other.

        Args:
            bucket: the bucket of the tiles.
            cell: the cell of the tiles.
            own: sums of w^2 and of w, ``[n_row, n_tile, 2]``.
            pair: sums of each pair, ``[n_pair, n_tile, 2 + n_threshold]``.
            not_finite: (tensor, row) of each tensor with a value that is not finite.
        """
        self.whole = False
        for tile in range(own.shape[1]):
            self.own[bucket, cell] += own[:, tile]
            self.pair[bucket, cell] += pair[:, tile]
        for place in not_finite:
            self.not_finite[place] = True
        self.done += own.shape[1]
        self.whole = True

    def arrays(self) -> list[NDArray[np.generic]]:
        """Return all arrays, in the order of the file."""
        return [self.own, self.pair, self.not_finite]


class Unfinished:
    """A file for the sums of an interrupted run.

    Args:
        path: the file. It exists only between an interrupted run and the next run that ends.
        files: all files that are read. Another size or time of one of them makes the sums useless.
        steps: the step of each checkpoint.
        keys: key of the weights of each checkpoint in its files, if the files hold several sets of weights.
    """

    def __init__(
        self, path: str | os.PathLike[str], files: Iterable[Path], steps: Sequence[int], keys: Sequence[str] = ()
    ) -> None:
        self.path = Path(path)
        stats = [(str(file.absolute()), file.stat()) for file in files]
        self._of = {
            "files": _digest([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]),
            "steps": _digest(list(steps)),
            "keys": _digest(list(keys)),
        }
        self._saved, self._wait = time.monotonic(), _SAVE_EVERY

    def expect(
        self,
        parameters: TrackedParameters,
        pairs: Sequence[tuple[int, int]],
        thresholds: Sequence[float],
        method: tuple[int, bool],
    ) -> None:
        """Set the arguments of the run. A file that was written for other arguments is not used.

        Args:
            parameters: the coordinates.
            pairs: the pairs of checkpoints.
            thresholds: the thresholds of the overlap.
            method: the facts that decide the last bits of a sum: the size of a tile, and whether a compiled loop sums
                it.
        """
        layout = [
            [str(bucket.dtype), [[p.source.name, p.start, p.stop, cell] for p, cell in zip(*both, strict=True)]]
            for bucket in parameters.buckets
            for both in [(bucket.pieces, bucket.cells)]
        ]
        shapes = {name: list(tensor.shape) for name, tensor in parameters.tensors.items()}
        self._of |= {
            "pairs": _digest(pairs),
            "overlap thresholds": _digest(list(thresholds)),
            "tensors or groups": _digest([layout, shapes, parameters.cells_of, method]),
        }

    def load(self, state: State, n_tile: Callable[[], int]) -> None:
        """Fill the state with the sums of the file, if the file exists and is for the same arguments.

        Args:
            state: the state before the first tile.
            n_tile: called for the number of all tiles.

        Raises:
            ValueError: there is something else at the path, which would be replaced, and removed in the end.
            OSError: the file cannot be read.
        """
        if not self.path.exists():
            return
        problem = self._problem_of_loading(state, n_tile)
        if problem is None:
            log.info("going on from %s", self.path)
        else:
            log.warning("%s %s. It is not used, and everything is read from the beginning", self.path, problem)

    def _problem_of_loading(self, state: State, n_tile: Callable[[], int]) -> str | None:
        """Fill the state, or return the reason why the file cannot be used."""
        if not self.path.is_file():
            raise ValueError(_FOREIGN.format(self.path))
        with self.path.open("rb") as file:
            line = file.readline(_LONGEST_HEADER)
            try:
                header = json.loads(line)
            except (ValueError, RecursionError):
                header = None
            if not isinstance(header, dict) or header.get("format") != _FORMAT:
                raise ValueError(_FOREIGN.format(self.path))
            if header.get("version") != _VERSION:
                return "is from another version of lightning_glassy"
            theirs, done = header.get("of"), header.get("done")
            if not isinstance(theirs, dict):
                return "is damaged"
            others = [part for part, digest in self._of.items() if theirs.get(part) != digest]
            if others:
                return f"is of a measurement with other {' and '.join(others)}"
            # The arguments determine the length. Read nothing before it is right.
            length = sum(array.nbytes for array in state.arrays())
            if os.fstat(file.fileno()).st_size != len(line) + length:
                return "is truncated"
            content = file.read(length)
        if _sha256(content) != header.get("sha256") or type(done) is not int or not 0 <= done <= n_tile():
            return "is damaged"
        start = 0
        for array in state.arrays():
            array[...] = np.frombuffer(content, array.dtype, array.size, start).reshape(array.shape)
            start += array.nbytes
        state.done = done
        return None

    def save_sometimes(self, state: State) -> None:
        """Save the state if the last save is long ago."""
        if time.monotonic() - self._saved >= self._wait:
            self._save(state)

    def save_at_a_stop(self, state: State, share: float) -> None:
        """Save the state because the run stops, and log how to go on."""
        if state.done and state.whole and self._save(state):
            log.warning(
                "stopped at %d %%. %s holds the sums so far: the same call or command goes on from there",
                int(100 * share),
                self.path,
            )

    def _save(self, state: State) -> bool:
        start = time.monotonic()
        content = b"".join(array.tobytes() for array in state.arrays())
        header = {
            "format": _FORMAT,
            "version": _VERSION,
            "of": self._of,
            "done": state.done,
            "sha256": _sha256(content),
        }

        def write(file: BinaryIO) -> None:
            file.write(json.dumps(header).encode() + b"\n")
            file.write(content)

        try:
            write_atomically(self.path, write)
        except OSError as error:
            log.warning("%s cannot be written (%s): an interrupted run would begin anew", self.path, error)
            self._wait = float("inf")
            return False
        self._saved = time.monotonic()
        self._wait = max(_SAVE_EVERY, (self._saved - start) / _SAVE_SHARE)
        return True

    def remove(self) -> None:
        """Remove the file, because the run has ended."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed (%s). It is of no use any more", self.path, error)
        remove_left(self.path.parent, re.escape(self.path.name[:40]))


def _digest(value: object) -> str:
    return _sha256(json.dumps(value).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

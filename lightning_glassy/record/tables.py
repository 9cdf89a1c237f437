"""Tables: rows of float64 arrays of one shape under integer keys. A record is a set of named tables."""

from __future__ import annotations

import operator
import struct
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_glassy.observables import Array

Key = tuple[int, ...]

MOMENTS = ("d2", "d4", "ws", "w2", "s2", "w", "s")
"""The measured sums over the coordinates: of d^2, d^4, w s, w^2, s^2, w and s, with ``d = w - s``."""

MSD_MOMENTS = ("d2", "s2", "s")
"""The sums that are measured with ``moments="msd"``."""

LARGEST = 2**62
"""Upper bound of steps and sizes, so that they fit into an int64."""

KINDS = {
    "moments": ("waiting_time", "lag"),
    "one_time": ("step",),
    "between": ("step",),
    "profiles": ("waiting_time", "lag"),
    "responses": ("waiting_time", "lag"),
}
"""The kinds of tables in a record, and the names of the integers in their keys. The integers are steps.

``moments`` is one table: the sums and the counts of near coordinates at each pair of times. ``one_time`` tables hold
numbers along the run. ``between`` tables hold matrices between replicas along the run. ``profiles`` tables hold
functions at pairs of times. ``responses`` tables hold the response of each replica to a field at pairs of times.
"""

NAMED_KINDS = tuple(kind for kind in KINDS if kind != "moments")
"""The kinds of which a record can have any number of tables, each under a name."""


class TableName(NamedTuple):
    """Name of a table in a record: its kind, and its name among the tables of this kind."""

    kind: str
    name: str


MOMENTS_TABLE = TableName("moments", "moments")
"""Name of the table of moments, the only table of its kind."""

RESPONSE_TABLE = TableName("responses", "response")
"""Name of the table of the response to a random field."""

RESPONSES = ("field_displacement", "d2", "field")
"""The columns of a response: the sums over the coordinates of e d and of d^2, and the strength h of the field.

``d`` is the difference between the weights with the field and without it. ``e`` is the sign of the field.
"""


class Mark(NamedTuple):
    """The content of a table at one time: its first rows, and how many rows had been replaced until then."""

    table: Table
    n_row: int
    n_replaced: int


class Table:
    """Rows of float64 arrays of one shape, sorted by their integer keys.

    Args:
        key_names: names of the integers of a key, in messages and in files.
        shape: shape of the array in each row.
        grid: the points at which a function is known, for a table of functions.
    """

    def __init__(self, key_names: tuple[str, ...], shape: tuple[int, ...], grid: Array | None = None) -> None:
        self.key_names, self.shape, self.grid = key_names, shape, grid
        # Keys are packed as bytes: Python salts the hash of bytes, so that no file can make all keys collide.
        self._rows: dict[bytes, Array] = {}  # in the order in which the keys came, and no row is ever removed
        self._replaced: list[bytes] = []  # key of each row that was set again
        self._format = f"<{len(key_names)}q"
        self._sorted: tuple[NDArray[np.int64], Array] | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def __contains__(self, key: object) -> bool:
        """Return whether there is a row of this key."""
        try:
            return struct.pack(self._format, *key) in self._rows  # type: ignore[misc]
        except (TypeError, struct.error):  # no integers, or another number of them
            return False

    def __getitem__(self, key: Key) -> Array:
        """Return the row of a key. Do not write to it."""
        return self._rows[struct.pack(self._format, *key)]

    def add(self, key: Key, row: Array) -> bool:
        """Set the row of a new key, and return whether it is new. The row is kept and not copied."""
        packed = struct.pack(self._format, *key)
        if packed in self._rows:
            return False
        # The order matters: an interruption between these two lines must not leave a cache without the row.
        self._sorted = None
        self._rows[packed] = row
        return True

    def put(self, key: Key, row: Array) -> None:
        """Set the row of a key, and replace an earlier row. The row is kept and not copied."""
        if not self.add(key, row):
            packed = struct.pack(self._format, *key)
            self._sorted = None  # first, as in `add`
            self._replaced.append(packed)
            self._rows[packed] = row

    def extend(self, keys: NDArray[np.int64], rows: Array, *, replace: bool = False) -> None:
        """Set many rows.

        Args:
            keys: ``[n, n_key]``.
            rows: ``[n, *shape]``, kept and not copied.
            replace: whether the rows may replace earlier rows of the same keys.

        Raises:
            ValueError: a key is out of range, a key is repeated, or a shape is wrong.
        """
        if rows.shape != (len(keys), *self.shape) or keys.shape != (len(keys), len(self.key_names)):
            raise ValueError(f"{len(keys)} keys and rows of shape {rows.shape[1:]} where {self.shape} is expected")
        if ((keys < 0) | (keys >= LARGEST)).any():
            raise ValueError(f"a {' or a '.join(self.key_names)} is negative, or 2**62 and more")
        packed = np.ascontiguousarray(keys, dtype="<i8").view(f"V{8 * len(self.key_names)}").ravel().tolist()
        new = dict(zip(packed, rows, strict=True))
        if len(new) < len(keys) or not (replace or self._rows.keys().isdisjoint(new)):
            raise ValueError(f"a key ({', '.join(self.key_names)}) is there twice")
        self._sorted = None
        self._replaced += [key for key in new if key in self._rows]
        self._rows |= new

    @property
    def keys(self) -> NDArray[np.int64]:
        """The keys, sorted, int64 ``[n, n_key]``. Do not write to them."""
        return self._arrays()[0]

    @property
    def values(self) -> Array:
        """The rows in the order of the keys, float64 ``[n, *shape]``. Do not write to them."""
        return self._arrays()[1]

    def _arrays(self) -> tuple[NDArray[np.int64], Array]:
        if self._sorted is None:
            known = dict(self._rows)
            keys, rows = self._unpacked(known), list(known.values())
            order = np.lexsort(keys.T[::-1])
            stacked = np.array([rows[i] for i in order], dtype=np.float64).reshape(len(keys), *self.shape)
            if len(known) < len(self._rows):  # a signal handler has added a row meanwhile
                return keys[order], stacked
            self._sorted = (keys[order], stacked)
        return self._sorted

    def _unpacked(self, keys: Iterable[bytes]) -> NDArray[np.int64]:
        return np.frombuffer(b"".join(keys), dtype="<i8").astype(np.int64).reshape(-1, len(self.key_names))

    def _part(self, keys: Iterable[bytes]) -> Table:
        part = self.empty()
        part._rows = {key: self._rows[key] for key in keys}
        return part

    def empty(self, shape: tuple[int, ...] | None = None) -> Table:
        """Return a table without rows, with the key names and the grid of this table. The default shape is the same."""
        return Table(self.key_names, self.shape if shape is None else shape, self.grid)

    def only(self, keys: Iterable[Key]) -> Table:
        """Return a table with the rows of some keys.

        Raises:
            KeyError: there is no row of a key.
        """
        wanted = list(keys)
        for key in wanted:
            if key not in self:
                raise KeyError(key)
        return self._part(struct.pack(self._format, *key) for key in wanted)

    def before(self, step: int) -> Table:
        """Return the rows measured before a step. The integers of a key add up to the step of the measurement."""
        earlier = self._unpacked(self._rows).sum(axis=1) < step
        return self._part(key for key, is_earlier in zip(self._rows, earlier, strict=True) if is_earlier)

    @property
    def last_step(self) -> int:
        """The last step of a measurement, or -1 without rows. The integers of a key add up to this step."""
        return int(self._unpacked(self._rows).sum(axis=1).max(initial=-1))

    def mark(self) -> Mark:
        """Return a mark of the present content, to use with :meth:`since`."""
        return Mark(self, len(self._rows), len(self._replaced))

    def since(self, mark: Mark | None) -> Table:
        """Return the rows that were set after a mark of this table. The cost grows with the number of these rows.

        Without a mark, these are all rows. For a mark of another table, they are the rows that differ from its rows.
        """
        if mark is None:
            return self
        if mark.table is not self:
            earlier = mark.table._at(mark)
            return self._part(
                key
                for key, row in self._rows.items()
                if (old := earlier.get(key)) is None or not np.array_equal(old, row, equal_nan=True)
            )
        # One call that no signal handler can interrupt, because a handler may add a row.
        new = list(islice(reversed(self._rows), len(self._rows) - mark.n_row))
        return self._part(dict.fromkeys([*reversed(new), *self._replaced[mark.n_replaced :]]))

    def _at(self, mark: Mark) -> dict[bytes, Array]:
        """Return the rows at a mark that are still there."""
        rows = dict(islice(self._rows.items(), mark.n_row))
        for key in self._replaced[mark.n_replaced :]:
            rows.pop(key, None)
        return rows

    def same_keys(self, other: Table) -> bool:
        """Return whether two tables have rows of the same keys."""
        return self._rows.keys() == other._rows.keys()

    def common_keys(self, others: Iterable[Table]) -> list[Key]:
        """Return the keys that this table and all others have, sorted."""
        common = set(self._rows).intersection(*(other._rows for other in others))
        return sorted(map(tuple, self._unpacked(common).tolist()))

    def odd_keys(self, other: Table) -> list[Key]:
        """Return the keys that only one of two tables has, sorted."""
        return sorted(map(tuple, self._unpacked(self._rows.keys() ^ other._rows.keys()).tolist()))

    def within(self, other: Table) -> bool:
        """Return whether another table has every row of this table, with the same bits."""
        return self.shape == other.shape and all(
            key in other._rows and row.tobytes() == other._rows[key].tobytes() for key, row in self._rows.items()
        )

    def __eq__(self, other: object) -> bool:
        """Return whether two tables have equal keys, rows and grids. NaN equals NaN."""
        if not isinstance(other, Table):
            return NotImplemented
        mine, others = (
            (table.keys, table.values, np.zeros(0) if table.grid is None else table.grid) for table in (self, other)
        )
        return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(mine, others, strict=True))

    __hash__ = None  # type: ignore[assignment]  # a table grows


def key_of(key_names: tuple[str, ...], *steps: int) -> Key:
    """Return the key of a row.

    Raises:
        TypeError: a step is not an integer.
        ValueError: a step is below 0, or is 2**62 or more.
    """
    key = tuple(map(operator.index, steps))
    for step in key:
        if not 0 <= step < LARGEST:
            named = ", ".join(f"{name}={step}" for name, step in zip(key_names, steps, strict=True))
            raise ValueError(f"{named}: steps lie between 0 and 2**62")
    return key


def check_grid(name: str, grid: ArrayLike) -> Array:
    """Return the points at which a function is known, as a float64 array.

    Raises:
        ValueError: ``grid`` is not a list of finite numbers that increase.
    """
    points = np.array(grid, dtype=np.float64)
    if points.ndim != 1 or not len(points) or not np.isfinite(points).all() or (np.diff(points) <= 0).any():
        raise ValueError(f"grid of profile {name!r:.80} is not a list of finite numbers that increase")
    return points


def same_points(one: Array | None, other: Array | None) -> bool:
    """Return whether two grids are the same but for rounding, or both tables have none.

    If another processor computes a grid of powers, it differs by a few units in the last place. A resumed run may use
    another processor.
    """
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and bool((np.abs(one - other) <= 8 * np.spacing(np.abs(one))).all())

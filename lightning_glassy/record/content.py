"""The content of a record: named tables and a header. This module fills, saves and reads them."""

from __future__ import annotations

import io
import operator
import os
import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_glassy.observables import Array
from lightning_glassy.record import file
from lightning_glassy.record.atomic import write_atomically
from lightning_glassy.record.checks import check_meta, check_name, check_plane, check_sums, check_thresholds
from lightning_glassy.record.file import FORMAT, FORMAT_VERSION, RecordError
from lightning_glassy.record.tables import (
    KINDS,
    LARGEST,
    MOMENTS,
    MOMENTS_TABLE,
    RESPONSE_TABLE,
    RESPONSES,
    Key,
    Table,
    TableName,
    check_grid,
    key_of,
    same_points,
)
from lightning_glassy.record.text import quoted

R = TypeVar("R", bound="RecordContent")

_MOST_DOUBTS = 100
_LONGEST_DOUBT = 2000  # characters


class Profile(NamedTuple):
    """A function measured at several pairs of times: a histogram, or the loss along a line.

    Attributes:
        waiting_times: steps, int64 ``[n]``.
        lags: steps, int64 ``[n]``. A lag is 0 for a function of the waiting time alone.
        grid: the points at which the function is known, increasing, float64 ``[n_point]``. For a histogram, these
            points are the edges of the bins.
        values: float64 ``[n, n_value]``. A histogram has ``n_value = n_point + 1`` counts: below the first edge, in
            each bin (including its lower edge), and from the last edge on.
    """

    waiting_times: NDArray[np.int64]
    lags: NDArray[np.int64]
    grid: Array
    values: Array


class RecordContent:
    """Named tables of raw measurements, and the header that describes them.

    The subclass :class:`~lightning_glassy.AgingRecord` documents the arguments, and adds the observables.
    """

    def __init__(
        self,
        n_parameters: Mapping[str, int],
        *,
        n_sampled: Mapping[str, int] | None = None,
        overlap_thresholds: Sequence[float] = (),
        meta: Mapping[str, Any] | None = None,
        n_replica: int | None = None,
        sums: Sequence[str] = MOMENTS,
    ) -> None:
        self._n_parameters = {str(group): operator.index(n) for group, n in n_parameters.items()}
        sampled = {str(group): n for group, n in (n_parameters if n_sampled is None else n_sampled).items()}
        if len(self._n_parameters) < len(n_parameters) or sampled.keys() != self._n_parameters.keys():
            raise ValueError(
                f"n_sampled has the groups {list(sampled)}: name those of n_parameters, {list(n_parameters)}"
            )
        self._n_sampled = {group: operator.index(sampled[group]) for group in self._n_parameters}
        self.overlap_thresholds = check_thresholds(overlap_thresholds)
        self.meta: dict[str, Any] = dict(meta or {})
        check_meta(self.meta)  # check now, because the record is saved only after the run
        self.n_replica = None if n_replica is None else operator.index(n_replica)
        self.sums = check_sums(sums)
        if "all" not in self._n_parameters:
            raise ValueError(f"n_parameters has no group 'all', only {sorted(self._n_parameters)}")
        self._places = {group: i for i, group in enumerate(self._n_parameters)}
        for group, n in self._n_parameters.items():
            check_name("a group", group)
            if not 0 <= self._n_sampled[group] <= n or not 1 <= n < LARGEST:
                raise ValueError(f"group {group!r}: {self._n_sampled[group]} of {n} coordinates is impossible")
        if isinstance(n_replica, bool) or (self.n_replica is not None and not 1 <= self.n_replica <= 10**6):
            raise ValueError(f"n_replica={n_replica} must be between 1 and a million")
        self._tables: dict[TableName, Table] = {MOMENTS_TABLE: Table(KINDS["moments"], self.row_shape)}

    # ------------------------------------------------------------------ filling

    def append(self, waiting_time: int, lag: int, moments: ArrayLike) -> None:
        """Add the measurement of one pair.

        Args:
            waiting_time: step of the reference.
            lag: steps since the reference.
            moments: ``[n_group, n_moment]`` (with replicas ``[n_replica, n_group, n_moment]``). The last axis holds the
                :attr:`sums`, and then one count per overlap threshold. Groups are in the order of :attr:`groups`.

        Raises:
            TypeError: a step is not an integer.
            ValueError: the shape is wrong, a step is negative, or the record already has the pair.
        """
        # Do not use `_table`, because an event appends a row for each due snapshot.
        table, row = self._tables[MOMENTS_TABLE], np.array(moments, dtype=np.float64)
        if row.shape != table.shape:
            raise ValueError(f"moments of shape {row.shape} where {table.shape} are expected")
        key = key_of(table.key_names, waiting_time, lag)
        if not table.add(key, row):
            raise ValueError(f"the pair (waiting time, lag) = {key} has been measured already")

    def append_one_time(self, name: str, step: int, value: float) -> None:
        """Add one value of a quantity that belongs to a single step, and replace an earlier value at the same step.

        Raises:
            TypeError: the name is not a string, or the step is not an integer.
            ValueError: the step is negative.
        """
        table = self._tables.get(TableName("one_time", name)) if isinstance(name, str) else None
        if table is None:
            self._put(TableName("one_time", name), (step,), np.array(float(value)))
        else:
            table.put(key_of(table.key_names, step), np.array(float(value)))

    def append_between(self, name: str, step: int, values: ArrayLike) -> None:
        """Add a matrix between replicas at one step, and replace an earlier matrix at the same step.

        Args:
            name: ``"weight_distance"`` for the sums of :math:`(w_a - w_b)^2` over the coordinates,
                ``"weight_product"`` for the sums of :math:`w_a w_b`, or another name, such as the
                ``"prediction_overlap"`` of :class:`ReplicaOverlap`.
            step: number of completed optimiser updates.
            values: ``[n_replica, n_replica]``.

        Raises:
            TypeError: the name is not a string, or the step is not an integer.
            ValueError: the step is negative, the shape is wrong, or the record has no replicas.
        """
        self._put(TableName("between", name), (step,), np.array(values, dtype=np.float64))

    def append_profile(self, name: str, waiting_time: int, lag: int, grid: ArrayLike, values: ArrayLike) -> None:
        """Add a function measured at one pair of times, and replace earlier values of the same pair.

        Args:
            name: ``"displacement"`` or ``"weights"`` for the histograms of :class:`DisplacementDistribution`,
                ``"loss_path"`` for the losses of :class:`BarrierMonitor`, or another name.
            waiting_time: step of the reference.
            lag: steps since the reference, 0 for a function of the waiting time alone.
            grid: the points at which the function is known, ``[n_point]``, the same for all pairs. Points that differ
                by a rounding error count as equal: another processor rounds powers differently.
            values: ``[n_value]``, with the same length for all pairs. See :class:`Profile`.

        Raises:
            TypeError: the name is not a string, or a step is not an integer.
            ValueError: a step is negative, the grid is not finite and increasing, or the grid or the number of values
                has changed.
        """
        self._put(TableName("profiles", name), (waiting_time, lag), np.array(values, dtype=np.float64), grid)

    def append_response(self, waiting_time: int, lag: int, values: ArrayLike) -> None:
        r"""Add the response to a random field at one pair of times, and replace an earlier row of the same pair.

        Args:
            waiting_time: step from which the field acts.
            lag: steps since the waiting time.
            values: ``[(n_replica,) 3]``: the sum of :math:`\epsilon_i(w^h_i - w_i)` over the coordinates, the sum of
                :math:`(w^h_i - w_i)^2`, and the strength h of the field.

        Raises:
            TypeError: a step is not an integer.
            ValueError: a step is negative, or the shape is wrong.
        """
        self._put(RESPONSE_TABLE, (waiting_time, lag), np.array(values, dtype=np.float64))

    def _put(self, name: TableName, steps: Key, row: Array, grid: ArrayLike | None = None) -> None:
        if not isinstance(name.name, str):
            raise TypeError(f"name={name.name!r} must be a string")
        key = key_of(KINDS[name.kind], *steps)
        self._table(name, row.shape, grid).put(key, row)

    def _table(self, name: TableName, shape: tuple[int, ...], grid: ArrayLike | None) -> Table:
        """Return the table of a name, for rows of a shape. Make the table if it does not exist.

        Raises:
            ValueError: rows of this kind cannot have this shape, or the table has another shape or grid.
        """
        kind, of_kind = name.kind, name.name
        points = None if kind != "profiles" else check_grid(of_kind, () if grid is None else grid)
        if kind == "moments" and shape != self.row_shape:
            raise ValueError(f"moments of shape {shape} where {self.row_shape} are expected")
        if kind == "one_time" and shape != ():
            raise ValueError(f"values of shape {shape} of the series {of_kind!r} are not numbers")
        if kind == "between" and (self.n_replica is None or shape != (self.n_replica, self.n_replica)):
            raise ValueError(f"values of shape {shape} between n_replica={self.n_replica} replicas")
        if kind == "responses" and shape != self.response_shape:
            raise ValueError(f"a response of shape {shape} where {self.response_shape} is expected")
        if kind == "profiles" and (len(shape) != 1 or not shape[0]):
            raise ValueError(f"values of shape {shape} of profile {of_kind!r} are not a list of numbers")
        if name not in self._tables:
            self._tables[name] = Table(KINDS[kind], shape, points)
        table = self._tables[name]
        if table.shape != shape or not same_points(table.grid, points):
            raise ValueError(f"profile {of_kind!r} has another grid, or number of values: use another name for these")
        return table

    # ------------------------------------------------------------------ axes and raw content

    def __len__(self) -> int:
        """Number of pairs measured so far."""
        return len(self._tables[MOMENTS_TABLE])

    def __contains__(self, pair: object) -> bool:
        """Return whether a pair (waiting time, lag) has been measured."""
        return pair in self._tables[MOMENTS_TABLE]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of the sums of one pair, as :meth:`append` takes them: ``[(n_replica,) n_group, n_moment]``."""
        shape = (len(self._n_parameters), len(self.sums) + len(self.overlap_thresholds))
        return shape if self.n_replica is None else (self.n_replica, *shape)

    @property
    def response_shape(self) -> tuple[int, ...]:
        """Shape of the response at one pair, as :meth:`append_response` takes it: ``[(n_replica,) 3]``."""
        return (len(RESPONSES),) if self.n_replica is None else (self.n_replica, len(RESPONSES))

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of parameters, including ``"all"``."""
        return tuple(self._n_parameters)

    @property
    def n_parameters(self) -> dict[str, int]:
        """Number N of scalar parameters of each group, each parameter counted once."""
        return dict(self._n_parameters)

    @property
    def n_sampled(self) -> dict[str, int]:
        """Number of coordinates summed over in each group. It is N unless a sample was drawn."""
        return dict(self._n_sampled)

    @property
    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``(waiting_times, lags)`` of every row, each int64 ``[n_row]``, sorted by waiting time, then by lag."""
        waiting_times, lags = self._tables[MOMENTS_TABLE].keys.T.copy()
        return waiting_times, lags

    @property
    def moments(self) -> Array:
        """The raw sums, float64 ``[n_row, (n_replica,) n_group, n_moment]``, in the order of :attr:`pairs`.

        The last axis holds the :attr:`sums`, and then one count per overlap threshold.
        """
        return np.array(self._tables[MOMENTS_TABLE].values)

    @property
    def waiting_times(self) -> NDArray[np.int64]:
        """Steps of the references that have been measured at least once, increasing, int64 ``[n_tw]``."""
        return np.unique(self._tables[MOMENTS_TABLE].keys[:, 0])

    @property
    def lags(self) -> NDArray[np.int64]:
        """Lags that have been measured for at least one waiting time, increasing, int64 ``[n_lag]``."""
        return np.unique(self._tables[MOMENTS_TABLE].keys[:, 1])

    @property
    def tables(self) -> dict[TableName, Table]:
        """All tables of the record, by kind and name. Do not write to them."""
        return dict(self._tables)

    def _names(self, kind: str) -> tuple[str, ...]:
        return tuple(name for of_kind, name in self._tables if of_kind == kind)

    def _known(self, kind: str, name: str, what: str) -> Table:
        table = self._tables.get(TableName(kind, name))
        if table is None:
            raise KeyError(f"{what} {name!r}; there are {quoted(self._names(kind))}")
        return table

    @property
    def one_time_names(self) -> tuple[str, ...]:
        """Names that :meth:`one_time` accepts."""
        return self._names("one_time")

    def one_time(self, name: str) -> tuple[NDArray[np.int64], Array]:
        """Return a quantity that belongs to single steps, such as ``"learning_rate"``.

        Returns:
            Steps (int64) and values (float64), both ``[n]``, by increasing step.

        Raises:
            KeyError: the record does not have this name. The message lists the names it has.
        """
        table = self._known("one_time", name, "no one-time series")
        return table.keys[:, 0].copy(), table.values.copy()

    @property
    def between_names(self) -> tuple[str, ...]:
        """Names that :meth:`between` accepts."""
        return self._names("between")

    def between(self, name: str) -> tuple[NDArray[np.int64], Array]:
        """Return the matrices between replicas that :meth:`append_between` has added.

        Returns:
            Steps (int64 ``[n]``, increasing) and values (float64 ``[n, n_replica, n_replica]``).

        Raises:
            KeyError: the record does not have this name. The message lists the names it has.
        """
        table = self._known("between", name, "no matrix between replicas")
        return table.keys[:, 0].copy(), table.values.copy()

    @property
    def profile_names(self) -> tuple[str, ...]:
        """Names that :meth:`profile` accepts."""
        return self._names("profiles")

    def profile(self, name: str) -> Profile:
        """Return a function measured at pairs of times, sorted by waiting time, then by lag.

        Raises:
            KeyError: the record does not have this name. The message lists the names it has.
        """
        table = self._known("profiles", name, "no profile")
        assert table.grid is not None
        waiting_times, lags = table.keys.T.copy()
        return Profile(waiting_times, lags, table.grid.copy(), table.values.copy())

    def _group_index(self, group: str) -> int:
        if group not in self._places:
            raise KeyError(f"no group {group!r}; there are {quoted(self._n_parameters)}")
        return self._places[group]

    # ------------------------------------------------------------------ as a value

    def _shape(self) -> dict[str, Any]:
        """Return the arguments that describe the measurement. Records can be joined only if these agree."""
        return {
            "n_parameters": self._n_parameters,
            "n_sampled": self._n_sampled,
            "overlap_thresholds": self.overlap_thresholds,
            "sums": self.sums,
        }

    def _with(self: R, tables: Mapping[TableName, Table], meta: Mapping[str, Any]) -> R:
        other = type(self)(**self._shape(), meta=meta, n_replica=self.n_replica)
        other._tables |= tables
        return other

    def before(self: R, step: int) -> R:
        """Return the record as it was before the event at ``step``, without rows measured at ``step`` or later."""
        earlier = {name: table.before(step) for name, table in self._tables.items()}
        return self._with({name: table for name, table in earlier.items() if len(table)}, self.meta)

    def is_part_of(self, other: RecordContent) -> bool:
        """Return whether ``other`` measures the same, and holds each pair of this record with the same bits."""
        return self._measures_as(other) and self._tables[MOMENTS_TABLE].within(other._tables[MOMENTS_TABLE])

    def start_branch(self, **entry: Any) -> None:
        """Note in the metadata that the training goes on from here, in a branch with a new random name.

        Args:
            **entry: facts about the start of the branch, as JSON values.
        """
        self.meta.pop("completed", None)
        self.meta["resumed"] = [*_listed(self.meta, "resumed"), entry]
        # A draw from a global generator would change the random numbers of the training.
        self.meta["branches"] = [*_listed(self.meta, "branches"), secrets.token_hex(4)]

    @property
    def doubts(self) -> list[str]:
        """Reasons to doubt the numbers, in words: the sentences in ``meta["doubts"]``, each once.

        The metadata of a file can be anything, and each choice of a page repeats the doubts. Therefore a sentence is
        cut after 2,000 characters, and sentences after the first hundred are only counted.
        """
        texts = [doubt for doubt in _listed(self.meta, "doubts") if isinstance(doubt, str)]
        cut = [text[:_LONGEST_DOUBT] + " ..." * (len(text) > _LONGEST_DOUBT) for text in texts]
        found = list(dict.fromkeys(filter(None, (" ".join(text.split()) for text in cut))))
        more = len(found) - _MOST_DOUBTS
        return found if more <= 0 else [*found[:_MOST_DOUBTS], f"there are {more:,} more doubts in the metadata"]

    def add_doubt(self, doubt: str) -> None:
        """Add a sentence to :attr:`doubts`, unless it is there already. Report, page and tab show it with numbers."""
        if doubt not in self.doubts:
            self.meta["doubts"] = [*_listed(self.meta, "doubts"), doubt]

    @property
    def last_step(self) -> int:
        """The last step at which something in the record was measured, or -1."""
        return max(table.last_step for table in self._tables.values())

    def goes_on_from(self, other: RecordContent) -> bool:
        """Return whether this record continues another record: the same record at a later time, or after a resumption.

        A training has an identity, ``meta["id"]``, and each resumption starts a branch (:meth:`start_branch`). Two
        resumptions from one checkpoint do not continue each other.
        """
        before = _listed(other.meta, "branches")
        return self.same_training(other) and before == _listed(self.meta, "branches")[: len(before)]

    def _has_all_rows_of(self, other: RecordContent) -> bool:
        tables = {name: table for name, table in other._tables.items() if len(table)}
        return bool(tables) and all(
            name in self._tables and table.within(self._tables[name]) for name, table in tables.items()
        )

    def same_training(self, other: RecordContent) -> bool:
        """Return whether two records belong to the same training, perhaps to different branches of it."""
        return self.meta.get("id") is not None and self.meta["id"] == other.meta.get("id")

    def replaces(self, other: RecordContent) -> bool:
        """Return whether this record has the content of another record of the same training, and is at least as long.

        A killed run can be ahead of its last checkpoint. The run that continues from this checkpoint measures the same
        steps again, on some devices with other rounding errors. The rows of a completed run, or of another branch, must
        be equal bit for bit.
        """
        if self.meta.get("id") != other.meta.get("id") or other.last_step > self.last_step:
            return False
        measured_again = "completed" not in other.meta and self.goes_on_from(other)
        return measured_again or (self._measures_as(other) and self._has_all_rows_of(other))

    def _measures_as(self, other: RecordContent) -> bool:
        same = self._shape() == other._shape() and self.n_replica == other.n_replica
        return same and self.groups == other.groups  # dictionaries are equal in any order, but columns are not

    def __eq__(self, other: object) -> bool:
        """Return whether two records hold equal numbers. NaN equals NaN, and metadata is not compared."""
        if not isinstance(other, RecordContent):
            return NotImplemented
        return self._measures_as(other) and self._tables == other._tables

    __hash__ = None  # type: ignore[assignment]  # a record grows

    def __repr__(self) -> str:
        replicas = "" if self.n_replica is None else f", {self.n_replica} replicas"
        return (
            f"AgingRecord({len(self)} pairs: {len(self.waiting_times)} waiting times x {len(self.lags)} lags, "
            f"{len(self.groups)} group{'s' if len(self.groups) > 1 else ''}, N={self._n_parameters['all']:,}{replicas})"
        )

    # ------------------------------------------------------------------ the file

    def header(self) -> dict[str, Any]:
        """Return everything but the tables as JSON values. A file begins with this header."""
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "n_parameters": self._n_parameters,
            "n_sampled": self._n_sampled,
            "overlap_thresholds": list(self.overlap_thresholds),
            "n_replica": self.n_replica,
            "sums": list(self.sums),
            "meta": self.meta,
        }

    @classmethod
    def from_header(cls: type[R], header: Mapping[str, Any]) -> R:
        """Make an empty record from a header of the present version.

        Raises:
            RecordError: a value in the header has the wrong type.
            ValueError: as in the constructor.
            Exception: any other error that a crafted header can cause, such as KeyError.
        """
        n_parameters, n_sampled, numbers = (header[k] for k in ("n_parameters", "n_sampled", "overlap_thresholds"))
        sizes = [*n_parameters.values(), *n_sampled.values(), header["n_replica"] or 1]
        lists = (numbers, header["sums"])
        if (
            not all(type(size) is int for size in sizes)
            or not all(type(part) is list for part in lists)
            or not all(type(number) is float for number in numbers)
            or not all(type(name) is str for name in header["sums"])
        ):
            raise RecordError("its header holds something else where numbers and names are expected")
        if not isinstance(header["meta"], dict):
            raise RecordError("its header holds no metadata")
        arguments = ("n_sampled", "overlap_thresholds", "meta", "n_replica", "sums")
        return cls(n_parameters, **{name: header[name] for name in arguments})

    def extend(self, part: file.Part, *, replace: bool = False) -> None:
        """Add the stored rows of one table.

        Args:
            part: the rows.
            replace: whether the rows may replace rows that are already there.

        Raises:
            ValueError: the rows have another shape or negative steps, or a row already exists.
        """
        self._table(part.table, part.rows.shape[1:], part.grid).extend(part.keys, part.rows, replace=replace)

    def upgraded(self: R, version: int) -> R:
        """Return the record in the present format, after it was read from a file of format ``version``.

        Format 1 stored all columns, with NaN in the columns that ``moments="msd"`` does not measure. The upgrade leaves
        out these columns.
        """
        if version > 1 or self.meta.get("moments") != "msd":
            return self
        table = self._tables[MOMENTS_TABLE]
        measured = [self.sums.index(name) for name in file.MSD_SUMS_V1]
        if not np.isnan(np.delete(table.values, measured, axis=-1)).all():
            return self  # the metadata is the user's, who may call anything "msd"
        return self._with_columns(measured, sums=file.MSD_SUMS_V1, overlap_thresholds=())

    def with_thresholds(self: R, thresholds: Sequence[float]) -> R:
        """Return the record with some of its overlap thresholds."""
        counts = [len(self.sums) + self.overlap_thresholds.index(eps) for eps in thresholds]
        return self._with_columns([*range(len(self.sums)), *counts], overlap_thresholds=tuple(thresholds))

    def _with_columns(self: R, columns: Sequence[int], **shape: Any) -> R:
        """Return the record with some columns of its moments, and the arguments that describe them."""
        table = self._tables[MOMENTS_TABLE]
        other = type(self)(**self._shape() | shape, meta=self.meta, n_replica=self.n_replica)
        kept = table.empty(other.row_shape)
        kept.extend(table.keys, table.values[..., columns])
        other._tables = {**self._tables, MOMENTS_TABLE: kept}
        return other

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the record to one file atomically. Readers never see half of a file, and a crash never leaves one.

        The format is an uncompressed ``.npz`` of plain arrays and one JSON text, without pickle. The file is written
        exactly at ``path``, with any suffix. :mod:`lightning_glassy.record.file` describes the format.

        Returns:
            The path.

        Raises:
            TypeError: ``meta`` holds a value that JSON cannot hold.
            ValueError: ``meta`` is nested too deep, or two of its keys are the same in JSON.
            OSError: the file cannot be written. An earlier version of the file stays unchanged.
        """
        check_meta(self.meta)
        return write_atomically(Path(path), partial(file.write, header=self.header(), tables=self._tables))

    def to_bytes(self) -> bytes:
        """Return the content of the file that :meth:`save` writes.

        Raises:
            TypeError: ``meta`` holds a value that JSON cannot hold.
            ValueError: ``meta`` is nested too deep, or two of its keys are the same in JSON.
        """
        check_meta(self.meta)
        content = io.BytesIO()
        file.write(content, self.header(), self._tables)
        return content.getvalue()

    @classmethod
    def load(cls: type[R], path: str | os.PathLike[str]) -> R:
        """Read a record from its file, or from the directory of a run.

        The file is not trusted: nothing in it is executed, unpickled or decompressed. A directory must hold one record,
        here or below: ``aging_record.npz``. An AgingMonitor writes it to the directory ``glassy`` of a run.

        A record can be read if it has sums that this version does not know. The unknown sums are kept. A record can
        also be read if it lacks known sums: :meth:`available` lists the observables that can be computed. Files of the
        earlier format can be read, too.

        Observables are matrices of waiting times and lags. If no two pairs in a file share a time, these matrices would
        be larger than the file by orders of magnitude. No training writes such a file, so it is refused.

        Raises:
            OSError: there is no such file, it cannot be read, or a directory holds no record.
            RecordError: a directory holds several records, or the file is truncated, foreign, malformed, or from a
                newer version of this package. The message names the records or the reason.
        """
        path = Path(path)
        if path.is_dir():
            path = file.only_record(path)
        if path.exists() and not path.is_file() and not path.is_dir():
            raise RecordError(f"{path}: not a file but a device or a pipe, which may never end")
        with path.open("rb") as opened:  # the system raises its own error for a missing file or a directory
            content = opened.read()
        try:
            return cls.from_bytes(content)
        except RecordError as error:
            raise RecordError(f"{path}: {error}") from error.__cause__

    @classmethod
    def from_bytes(cls: type[R], content: bytes) -> R:
        """Read a record from the content of a file. The content is not trusted, as in :meth:`load`.

        Raises:
            RecordError: as in :meth:`load`.
        """
        try:
            header, parts = file.read(content)
            record = cls.from_header(header)
            for part in parts:
                if part.table == MOMENTS_TABLE:
                    check_plane(part.keys, record.n_replica)
                record.extend(part)
        except RecordError:
            raise
        except Exception as error:  # a crafted file can make the parsers of zip, npy and JSON raise any error
            raise RecordError(f"not a well-formed record: {type(error).__name__}: {error}") from error
        return record.upgraded(header["version"])


def without_replaced(records: Sequence[RecordContent | None]) -> list[int]:
    """Return the places of the records that no other record replaces, in their order.

    Two equal records both stay. ``None`` stands for a record that cannot be read.
    """
    known = [record for record in records if record is not None]

    def gone(record: RecordContent) -> bool:
        return any(other.replaces(record) and not record.replaces(other) for other in known)

    return [i for i, record in enumerate(records) if record is None or not gone(record)]


def _listed(meta: Mapping[str, Any], name: str) -> list[Any]:
    """Return a list in the metadata. The metadata of a file can be anything."""
    found = meta.get(name)
    return found if isinstance(found, list) else []

"""The door between training and analysis: raw two-time moments with labelled axes, in one safe file.

Left of it everything is tensors, ranks and streams; right of it everything is NumPy. A record stores sums over
parameters, never a derived curve, so that an observable can be defined, or mended, after the run. Reading one
needs neither torch nor lightning.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import operator
import os
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_glassy import observables
from lightning_glassy.observables import Array, CorrelationKind
from lightning_glassy.record.atomic import write_atomically
from lightning_glassy.record.text import csv_cell

if TYPE_CHECKING:
    import pandas
    import xarray

    from lightning_glassy.schedule import LogTimeSchedule

MOMENTS = ("d2", "d4", "ws", "w2", "s2", "w", "s")
"""Order of the sums in the last axis of :attr:`AgingRecord.moments`: with ``d = w - s``, the sums of
d^2, d^4, w s, w^2, s^2, w and s. After them come the numbers of coordinates with ``|d| <= eps``, one per threshold."""

_LARGEST = 2**62  # steps and sizes beyond are nobody's, and would not fit into an int64
_LONGEST_NAME = 1000  # characters of the name of a group, which every line of a table repeats
_DEEPEST = 50  # levels of lists and dictionaries in the metadata, well below where Python's own recursion ends
_SMALL_PLANE = 4_000_000  # cells, 32 MB: a plane that may be as sparse as it likes

# What the metadata of runs that are replicas of each other agree in, where both have it.
_SAME_IN_REPLICAS = (
    "module",
    "optimizers",
    "lr_schedulers",
    "batch_size",
    "sampler",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "precision",
    "world_size",
)

FORMAT = "lightning_glassy.AgingRecord"
FORMAT_VERSION = 1


class RecordError(ValueError):
    """A file that is not a readable record: truncated, foreign, written by a newer version, or malformed."""


class Profile(NamedTuple):
    """What was measured as a function at several pairs of times: a histogram, or the loss along a line.

    Attributes:
        waiting_times: steps, int64 ``[n]``.
        lags: steps, int64 ``[n]``; 0 for what belongs to the waiting time alone.
        grid: where the function is known, increasing, float64 ``[n_point]``: of a histogram the edges of its bins.
        values: float64 ``[n, n_value]``. Of a histogram the counts, ``n_value = n_point + 1``: those below the first
            edge, in each bin (its lower edge belongs to it), and from the last edge on.
    """

    waiting_times: NDArray[np.int64]
    lags: NDArray[np.int64]
    grid: Array
    values: Array


class AgingRecord:
    r"""Two-time moments of one run (or of several replicas of it), with everything needed to interpret them.

    Every row is one pair :math:`(t_w, t)` that was really measured: the weights at step :math:`t_w + t` against
    those at step :math:`t_w`, both in completed optimiser updates. The observables arrange the rows as matrices
    ``[n_tw, n_lag]`` over :attr:`waiting_times` and :attr:`lags` (with replicas ``[n_replica, n_tw, n_lag]``), NaN
    where a pair was not measured.

    Args:
        n_parameters: for each group the number N of its scalar parameters; the group ``"all"`` must be there.
        n_sampled: for each group the number of coordinates that are summed over, where only a sample of them is.
        overlap_thresholds: the :math:`\epsilon` of the overlaps, positive and increasing.
        meta: what is known of the run; only what JSON can hold.
        n_replica: number of replicas; ``None`` for a single run without that axis.

    Raises:
        TypeError: ``meta`` holds something that JSON cannot, or a size is not an integer.
        ValueError: no group ``"all"``, a size that is not positive, thresholds that are not increasing, a name of more
            than 1000 characters or with a lone surrogate in it, or metadata that is nested more than 50 levels deep.

    Example:
        >>> from lightning_glassy import LogTimeSchedule
        >>> walk = np.cumsum(np.ones((101, 4)), axis=0)
        >>> record = AgingRecord.from_trajectory(walk, LogTimeSchedule([0, 50], [1, 10, 50]))
        >>> record.msd().tolist()
        [[1.0, 100.0, 2500.0], [1.0, 100.0, 2500.0]]
    """

    def __init__(
        self,
        n_parameters: Mapping[str, int],
        *,
        n_sampled: Mapping[str, int] | None = None,
        overlap_thresholds: Sequence[float] = (),
        meta: Mapping[str, Any] | None = None,
        n_replica: int | None = None,
    ) -> None:
        self._n_parameters = {str(group): operator.index(n) for group, n in n_parameters.items()}
        sampled = self._n_parameters if n_sampled is None else n_sampled
        self._n_sampled = {group: operator.index(sampled[group]) for group in self._n_parameters}
        self.overlap_thresholds = check_thresholds(overlap_thresholds)
        self.meta: dict[str, Any] = dict(meta or {})
        _check_meta(self.meta)  # what cannot be saved had better be known before the run than after it
        self.n_replica = n_replica
        if "all" not in self._n_parameters:
            raise ValueError(f"n_parameters has no group 'all', only {sorted(self._n_parameters)}")
        self._places = {group: i for i, group in enumerate(self._n_parameters)}
        for group, n in self._n_parameters.items():
            if len(group) > _LONGEST_NAME:
                raise ValueError(
                    f"a group has a name of {len(group):,} characters, {group[:40]!r}...: give it one of at most "
                    f"{_LONGEST_NAME:,}"
                )
            if any("\ud800" <= letter <= "\udfff" for letter in group):
                raise ValueError(
                    f"group {group!r} has a lone surrogate in its name, which files cannot hold: rename it"
                )
            if not 0 <= self._n_sampled[group] <= n or not 1 <= n < _LARGEST:
                raise ValueError(f"group {group!r}: {self._n_sampled[group]} of {n} coordinates is impossible")
        if n_replica is not None and not 1 <= operator.index(n_replica) <= 10**6:
            raise ValueError(f"n_replica={n_replica} must be between 1 and a million")
        self._rows: dict[tuple[int, int], Array] = {}
        self._one_time: dict[str, dict[int, float]] = {}
        self._between: dict[str, dict[int, Array]] = {}
        self._profiles: dict[str, tuple[Array, dict[tuple[int, int], Array]]] = {}
        self._cache: tuple[NDArray[np.int64], NDArray[np.int64], Array] | None = None

    # ------------------------------------------------------------------ filling

    def append(self, waiting_time: int, lag: int, moments: ArrayLike) -> None:
        """Add the measurement of one pair.

        Args:
            waiting_time: step of the reference.
            lag: steps elapsed since.
            moments: ``[n_group, n_moment]`` (with replicas ``[n_replica, n_group, n_moment]``), the sums named in
                ``MOMENTS`` and then one count per overlap threshold, groups in the order of :attr:`groups`.

        Raises:
            TypeError: a step that is not an integer.
            ValueError: another shape, a negative step, or a pair that is already there.
        """
        row = np.array(moments, dtype=np.float64)
        if row.shape != self.row_shape:
            raise ValueError(f"moments of shape {row.shape} where {self.row_shape} are expected")
        key = (operator.index(waiting_time), operator.index(lag))
        if not (0 <= key[0] < _LARGEST and 0 <= key[1] < _LARGEST):
            raise ValueError(f"waiting_time={waiting_time}, lag={lag}: steps lie between 0 and 2**62")
        if key in self._rows:
            raise ValueError(f"the pair (waiting time, lag) = {key} has been measured already")
        # In this order: an interruption between the two must not leave a cache that lacks the row.
        self._cache = None
        self._rows[key] = row

    def append_one_time(self, name: str, step: int, value: float) -> None:
        """Add one value of a quantity that belongs to a single step (a later value for the same step wins).

        Raises:
            TypeError: a name that is not a string, or a step that is not an integer.
            ValueError: a negative step.
        """
        if not isinstance(name, str):
            raise TypeError(f"name={name!r} must be a string")
        if not 0 <= operator.index(step) < _LARGEST:
            raise ValueError(f"step={step} lies between 0 and 2**62")
        self._one_time.setdefault(name, {})[operator.index(step)] = float(value)

    def append_between(self, name: str, step: int, values: ArrayLike) -> None:
        """Add what replicas are to each other at one step (later values for the same step win).

        Args:
            name: ``"weight_distance"``, the sums of :math:`(w_a - w_b)^2` over the coordinates; ``"weight_product"``,
                those of :math:`w_a w_b`; or another, such as the ``"prediction_overlap"`` of :class:`ReplicaOverlap`.
            step: number of completed optimiser updates.
            values: ``[n_replica, n_replica]``.

        Raises:
            TypeError: a name that is not a string, or a step that is not an integer.
            ValueError: a negative step, another shape, or a record without replicas.
        """
        matrix = np.array(values, dtype=np.float64)
        if not isinstance(name, str):
            raise TypeError(f"name={name!r} must be a string")
        if self.n_replica is None or matrix.shape != (self.n_replica, self.n_replica):
            raise ValueError(f"values of shape {matrix.shape} between n_replica={self.n_replica} replicas")
        if not 0 <= operator.index(step) < _LARGEST:
            raise ValueError(f"step={step} lies between 0 and 2**62")
        self._between.setdefault(name, {})[operator.index(step)] = matrix

    def append_profile(self, name: str, waiting_time: int, lag: int, grid: ArrayLike, values: ArrayLike) -> None:
        """Add what was measured as a function at one pair of times (later values for the same pair win).

        Args:
            name: ``"displacement"`` or ``"weights"``, the histograms of :class:`DisplacementDistribution`;
                ``"loss_path"``, the losses of :class:`BarrierMonitor`; or another.
            waiting_time: step of the reference.
            lag: steps elapsed since; 0 for what belongs to the waiting time alone.
            grid: where the function is known, ``[n_point]``, the same for all pairs.
            values: ``[n_value]``, as many for all pairs; see :class:`Profile`.

        Raises:
            TypeError: a name that is not a string, or a step that is not an integer.
            ValueError: a negative step, a grid that is not finite and increasing, or another grid or number of values
                than before.
        """
        if not isinstance(name, str):
            raise TypeError(f"name={name!r} must be a string")
        pair = (operator.index(waiting_time), operator.index(lag))
        if not (0 <= pair[0] < _LARGEST and 0 <= pair[1] < _LARGEST):
            raise ValueError(f"waiting_time={waiting_time}, lag={lag}: steps lie between 0 and 2**62")
        points, row = np.array(grid, dtype=np.float64), np.array(values, dtype=np.float64)
        if points.ndim != 1 or not len(points) or not np.isfinite(points).all() or (np.diff(points) <= 0).any():
            raise ValueError(f"grid of profile {name!r} is not a list of finite numbers that increase")
        if row.ndim != 1 or not len(row):
            raise ValueError(f"values of shape {row.shape} of profile {name!r} are not a list of numbers")
        first, rows = self._profiles.get(name, (points, {pair: row}))
        if not np.array_equal(first, points) or len(next(iter(rows.values()))) != len(row):
            raise ValueError(f"profile {name!r} has another grid, or number of values: use another name for these")
        rows[pair] = row
        self._profiles[name] = (first, rows)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of the sums of one pair, as :meth:`append` takes them: ``[(n_replica,) n_group, n_moment]``."""
        shape = (len(self._n_parameters), len(MOMENTS) + len(self.overlap_thresholds))
        return shape if self.n_replica is None else (self.n_replica, *shape)

    # ------------------------------------------------------------------ axes and raw content

    def __len__(self) -> int:
        """Number of pairs measured so far."""
        return len(self._rows)

    def __contains__(self, pair: object) -> bool:
        """Whether a pair (waiting time, lag) has been measured."""
        return pair in self._rows

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of parameters, ``"all"`` among them."""
        return tuple(self._n_parameters)

    @property
    def n_parameters(self) -> dict[str, int]:
        """For each group the number N of its scalar parameters, each counted once."""
        return dict(self._n_parameters)

    @property
    def n_sampled(self) -> dict[str, int]:
        """For each group the number of coordinates summed over; N unless a sample was drawn."""
        return dict(self._n_sampled)

    @property
    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``(waiting_times, lags)`` of every row, each int64 ``[n_row]``, sorted by waiting time, then lag."""
        waiting_times, lags, _ = self._arrays()
        return waiting_times.copy(), lags.copy()

    @property
    def moments(self) -> Array:
        """The raw sums, float64 ``[n_row, n_group, n_moment]``, with replicas ``[n_replica, n_row, ...]``."""
        return np.array(self._arrays()[2])

    @property
    def waiting_times(self) -> NDArray[np.int64]:
        """Steps of the references that have been measured at least once, increasing, int64 ``[n_tw]``."""
        return np.unique(self._arrays()[0])

    @property
    def lags(self) -> NDArray[np.int64]:
        """Lags that have been measured for at least one waiting time, increasing, int64 ``[n_lag]``."""
        return np.unique(self._arrays()[1])

    @property
    def one_time_names(self) -> tuple[str, ...]:
        """Names that :meth:`one_time` knows."""
        return tuple(self._one_time)

    def one_time(self, name: str) -> tuple[NDArray[np.int64], Array]:
        """A quantity that belongs to single steps, such as ``"learning_rate"``.

        Returns:
            Steps (int64) and values (float64), both ``[n]``, by increasing step.

        Raises:
            KeyError: a name the record does not have; the message lists those it has.
        """
        if name not in self._one_time:
            raise KeyError(f"no one-time series {name!r}; there are {list(self._one_time)}")
        items = sorted(self._one_time[name].items())
        return np.array([s for s, _ in items], dtype=np.int64), np.array([v for _, v in items], dtype=np.float64)

    @property
    def between_names(self) -> tuple[str, ...]:
        """Names that :meth:`between` knows."""
        return tuple(self._between)

    def between(self, name: str) -> tuple[NDArray[np.int64], Array]:
        """What replicas are to each other, as :meth:`append_between` was given it.

        Returns:
            Steps (int64 ``[n]``, increasing) and values (float64 ``[n, n_replica, n_replica]``).

        Raises:
            KeyError: a name the record does not have; the message lists those it has.
        """
        if name not in self._between:
            raise KeyError(f"nothing is known between replicas of {name!r}; there are {list(self._between)}")
        items = sorted(self._between[name].items())
        return np.array([s for s, _ in items], dtype=np.int64), np.stack([v for _, v in items])

    @property
    def profile_names(self) -> tuple[str, ...]:
        """Names that :meth:`profile` knows."""
        return tuple(self._profiles)

    def profile(self, name: str) -> Profile:
        """What was measured as a function at pairs of times, sorted by waiting time, then lag.

        Raises:
            KeyError: a name the record does not have; the message lists those it has.
        """
        if name not in self._profiles:
            raise KeyError(f"no profile {name!r}; there are {list(self._profiles)}")
        grid, rows = self._profiles[name]
        pairs = sorted(rows)
        times = np.array(pairs, dtype=np.int64)
        return Profile(times[:, 0], times[:, 1], grid.copy(), np.stack([rows[pair] for pair in pairs]))

    def replica_distance(self) -> tuple[NDArray[np.int64], Array]:
        r"""Mean squared distance between replicas, :math:`d_{ab}(t) = \frac{1}{N}\sum_i [w_{a,i}(t) - w_{b,i}(t)]^2`.

        Of clones (:meth:`ReplicaEnsemble.clone_from`) it grows from 0 with the time since they were made: how far equal
        states are driven apart by different noise.

        Returns:
            Steps ``[n]`` and values ``[n, n_replica, n_replica]``.

        Raises:
            KeyError: the record has not got it: only replicas that are trained together are compared.
        """
        steps, sums = self.between("weight_distance")
        return steps, observables.msd(sums, self._n_sampled["all"])

    def replica_overlap(self) -> tuple[NDArray[np.int64], Array]:
        r"""Overlap of replicas a and b, :math:`q_{ab}(t) = \sum_i w_{a,i} w_{b,i} / (|w_a| |w_b|)` at the same step.

        Hidden units may be permuted without a change of the function, so that networks that do the same may have an
        overlap near 0: see :class:`ReplicaOverlap` for that of their predictions.

        Returns:
            Steps ``[n]`` and values ``[n, n_replica, n_replica]``, 1 on the diagonal.

        Raises:
            KeyError: as of :meth:`replica_distance`.
        """
        steps, products = self.between("weight_product")
        return steps, observables.replica_overlap(products)

    def _arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
        if self._cache is None:
            keys = sorted(self._rows)
            pairs = np.array(keys, dtype=np.int64).reshape(-1, 2)
            stacked = np.array([self._rows[key] for key in keys], dtype=np.float64).reshape(-1, *self.row_shape)
            if self.n_replica is not None:
                stacked = np.moveaxis(stacked, 1, 0)
            self._cache = (pairs[:, 0], pairs[:, 1], stacked)
        return self._cache

    def _group_index(self, group: str) -> int:
        if group not in self._places:
            raise KeyError(f"no group {group!r}; there are {list(self._n_parameters)}")
        return self._places[group]

    def _sums(self, group: str) -> dict[str, Array]:
        """The sums of one group by name, each ``[(n_replica,) n_row]``, and ``n``."""
        values = self._arrays()[2][..., self._group_index(group), :]
        sums = {name: values[..., i] for i, name in enumerate(MOMENTS)}
        return sums | {"n": np.float64(self._n_sampled[group])}

    def _count(self, group: str, eps: float | None) -> Array:
        return self._arrays()[2][..., self._group_index(group), len(MOMENTS) + self._threshold_index(eps)]

    def _threshold_index(self, eps: float | None) -> int:
        if not self.overlap_thresholds:
            raise ValueError("no overlap thresholds were counted in this record")
        if eps is None:
            return 0
        if isinstance(eps, str):
            raise TypeError(f"eps={eps!r} is not a number; a group is named by group={eps!r}")
        for i, threshold in enumerate(self.overlap_thresholds):
            if math.isclose(eps, threshold, rel_tol=1e-9):
                return i
        raise ValueError(f"eps={eps} was not counted during the run; there are {list(self.overlap_thresholds)}")

    def _matrix(self, rows: Array) -> Array:
        """Rows ``[(n_replica,) n_row]`` as ``[(n_replica,) n_tw, n_lag]``, NaN where not measured."""
        waiting_times, lags, _ = self._arrays()
        i = np.searchsorted(self.waiting_times, waiting_times)
        j = np.searchsorted(self.lags, lags)
        matrix = np.full((*rows.shape[:-1], len(self.waiting_times), len(self.lags)), np.nan)
        matrix[..., i, j] = rows
        return matrix

    # ------------------------------------------------------------------ observables

    def msd(self, group: str = "all", *, normalise: Literal["noise"] | None = None) -> Array:
        r"""Mean squared displacement :math:`\Delta(t_w, t_w+t)`: see :func:`lightning_glassy.observables.msd`.

        Args:
            group: name of the group.
            normalise: ``"noise"`` for :math:`\Delta(t_w, t_w+t)/D(t_w)`, which curves of a system that diffuses at the
                bottom of its landscape share (Baity-Jesi et al. 2018). D is :meth:`gradient_noise`.

        Returns:
            float64 ``[n_tw, n_lag]`` (with replicas ``[n_replica, n_tw, n_lag]``), NaN where not measured.

        Raises:
            KeyError: a group the record does not have; with ``normalise``, no gradient noise of it.
            ValueError: another ``normalise``.
        """
        sums = self._sums(group)
        values = self._matrix(observables.msd(sums["d2"], sums["n"]))
        if normalise is None:
            return values
        if normalise != "noise":
            raise ValueError(f"normalise={normalise!r} is neither 'noise' nor None")
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(values / self.gradient_noise(self.waiting_times, group)[:, None])

    def gradient_noise(self, steps: ArrayLike, group: str = "all") -> Array:
        r"""Strength of the gradient noise D at given steps, from the one-time series ``"gradient_noise"``.

        :math:`D = \langle\|g_b\|^2\rangle - \|\langle g_b\rangle\|^2` over minibatches at fixed weights, summed over
        the parameters of the group (Baity-Jesi et al. 2018). Between the steps at which it was measured, ln D is
        interpolated linearly in ln(1 + step); outside of them it is NaN. Other groups than ``"all"`` have the series
        ``"gradient_noise/<group>"``.

        Returns:
            float64, of the shape of ``steps``.

        Raises:
            KeyError: the record has no such series.
        """
        self._group_index(group)
        measured, noise = self.one_time("gradient_noise" if group == "all" else f"gradient_noise/{group}")
        positive = noise > 0
        if not positive.any():
            return np.full(np.shape(steps), np.nan)
        x, y = np.log1p(measured[positive]), np.log(noise[positive])
        wanted = np.log1p(np.asarray(steps, dtype=np.float64))
        return np.exp(np.interp(wanted, x, y, left=np.nan, right=np.nan))

    def correlation(self, group: str = "all", kind: CorrelationKind = "raw") -> Array:
        """Two-time correlation, ``"raw"``, ``"cosine"``, ``"centred"`` or ``"pearson"``.

        See :func:`lightning_glassy.observables.correlation`; shapes and errors as :meth:`msd`.

        Raises:
            ValueError: another ``kind``.
        """
        sums = self._sums(group)
        values = observables.correlation(sums["ws"], sums["w2"], sums["s2"], sums["w"], sums["s"], sums["n"], kind=kind)
        return self._matrix(values)

    def decorrelation(self, group: str = "all") -> Array:
        """One minus the cosine correlation, with its digits at short lags; shapes and errors as :meth:`msd`.

        See :func:`lightning_glassy.observables.decorrelation`.
        """
        sums = self._sums(group)
        return self._matrix(observables.decorrelation(sums["d2"], sums["w2"], sums["s2"]))

    def overlap(self, eps: float | None = None, group: str = "all") -> Array:
        r"""Fraction of coordinates with :math:`|w - s| \le \epsilon`; shapes and errors as :meth:`msd`.

        See :func:`lightning_glassy.observables.overlap`.

        Args:
            eps: one of :attr:`overlap_thresholds`; default the first (smallest).
            group: name of the group.

        Raises:
            ValueError: a threshold that was not counted during the run.
        """
        sums = self._sums(group)
        return self._matrix(observables.overlap(self._count(group, eps), sums["d2"], sums["n"]))

    def non_gaussian(self, group: str = "all") -> Array:
        r"""Non-Gaussian parameter :math:`\alpha_2`; shapes and errors as :meth:`msd`.

        See :func:`lightning_glassy.observables.non_gaussian`.
        """
        sums = self._sums(group)
        return self._matrix(observables.non_gaussian(sums["d2"], sums["d4"], sums["n"]))

    def local_exponent(self, group: str = "all") -> Array:
        r"""Local exponent :math:`\partial\ln\Delta/\partial\ln t`; shapes and errors as :meth:`msd`.

        See :func:`lightning_glassy.observables.local_exponent`.
        """
        return observables.local_exponent(self.lags, self.msd(group))

    def standard_error(self, name: Literal["msd", "overlap"], group: str = "all", *, eps: float | None = None) -> Array:
        """Standard error made by summing over a sample of the coordinates instead of all; 0 without a sample.

        It concerns this run alone: the scatter between runs needs replicas.

        Args:
            name: ``"msd"`` or ``"overlap"``, the two whose variance follows from the stored moments.
            group: name of the group.
            eps: threshold of the overlap, as in :meth:`overlap`.

        Returns:
            As :meth:`msd`. NaN where the group has fewer than two sampled coordinates.

        Raises:
            ValueError: another name.
        """
        sums, population = self._sums(group), self._n_parameters[group]
        if name == "msd":
            rows = observables.msd_standard_error(sums["d2"], sums["d4"], sums["n"], population)
        elif name == "overlap":
            count = self._count(group, eps)
            rows = observables.overlap_standard_error(count, sums["d2"], sums["n"], population)
        else:
            raise ValueError(f"name={name!r}: the moments hold the sampling error of 'msd' and 'overlap' only")
        return self._matrix(rows)

    def chi4(
        self, group: str = "all", *, quantity: Literal["overlap", "correlation"] = "overlap", eps: float | None = None
    ) -> Array:
        r"""Dynamical susceptibility :math:`\chi_4(t_w, t_w+t) = N\,\mathrm{Var}_{replicas}(Q)`, of the overlap or C.

        How much replicas differ in how far they have relaxed: of the order of 1 where coordinates move independently of
        each other, and as large as the number of those that move together. See :func:`observables.chi4`.

        Args:
            group: name of the group.
            quantity: ``"overlap"`` for :math:`Q_\epsilon`, ``"correlation"`` for the raw correlation C.
            eps: threshold of the overlap, as in :meth:`overlap`.

        Returns:
            float64 ``[n_tw, n_lag]``. N is the number of coordinates that were measured.

        Raises:
            ValueError: a record of fewer than two replicas, or another quantity.
        """
        return observables.chi4(self._of_replicas(group, quantity, eps), self._n_sampled[group])

    def chi4_error(
        self, group: str = "all", *, quantity: Literal["overlap", "correlation"] = "overlap", eps: float | None = None
    ) -> Array:
        """Standard error of :meth:`chi4`, by the jackknife over replicas; arguments, shapes and errors as of that.

        NaN with two replicas: from them a variance can be estimated, but not its error.
        """
        return observables.chi4_error(self._of_replicas(group, quantity, eps), self._n_sampled[group])

    def _of_replicas(self, group: str, quantity: str, eps: float | None) -> Array:
        if self.n_replica is None or self.n_replica < 2:
            raise ValueError(
                f"n_replica={self.n_replica}: chi_4 is a variance between replicas, of which two are needed"
            )
        if quantity == "overlap":
            return self.overlap(eps, group)
        if quantity == "correlation":
            return self.correlation(group)
        raise ValueError(f"quantity={quantity!r} is neither 'overlap' nor 'correlation'")

    # ------------------------------------------------------------------ from a trajectory

    @classmethod
    def from_trajectory(
        cls,
        weights: ArrayLike,
        schedule: LogTimeSchedule,
        *,
        groups: Mapping[str, ArrayLike] | None = None,
        overlap_thresholds: Sequence[float] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> AgingRecord:
        """A record computed from weights that are all at hand, in plain float64 NumPy.

        For simulations and for testing: it shares no code with the on-device moments, so that each can be
        checked against the other.

        Args:
            weights: ``[n_steps + 1, N]`` (row k after k updates), or ``[n_replica, n_steps + 1, N]``.
            schedule: what to measure; pairs beyond the last step are left out.
            groups: for each name the coordinates (indices or a mask) that belong to it; ``"all"`` is added.
            overlap_thresholds: positive and increasing; default about a hundredth and a tenth of the standard deviation
                of the first row.
            meta: stored as it is.

        Raises:
            ValueError: another number of axes, a trajectory of one row, an empty group or one called ``"all"``, or a
                schedule that has no pair within it.
        """
        trajectory = np.asarray(weights, dtype=np.float64)
        if trajectory.ndim not in (2, 3):
            raise ValueError(f"weights of shape {trajectory.shape}: [n_steps+1, N] or [n_replica, n_steps+1, N]")
        n_steps, n = trajectory.shape[-2] - 1, trajectory.shape[-1]
        if n_steps < 1 or n < 1:
            raise ValueError(f"weights of shape {trajectory.shape} hold no step, or no coordinate")
        members = {g: np.arange(n)[_indices(g, member)] for g, member in (groups or {}).items()}
        if "all" in members:
            raise ValueError("groups: 'all' is always there and means every coordinate; choose another name")
        for group, member in members.items():
            if len(member) == 0 or len(np.unique(member)) < len(member):
                raise ValueError(f"groups[{group!r}] is empty, or names a coordinate twice")
        members = {"all": np.arange(n)} | members
        if overlap_thresholds is None:
            overlap_thresholds = observables.default_overlap_thresholds(float(np.std(trajectory[..., 0, :])))
        record = cls(
            {group: len(member) for group, member in members.items()},
            overlap_thresholds=overlap_thresholds,
            meta={"schedule": repr(schedule), **(meta or {})},
            n_replica=trajectory.shape[0] if trajectory.ndim == 3 else None,
        )
        for waiting_time, lag in schedule.until(n_steps).pairs:
            w, s = trajectory[..., waiting_time + lag, :], trajectory[..., waiting_time, :]
            near = [np.abs(w - s) <= eps for eps in record.overlap_thresholds]
            terms = np.stack([(w - s) ** 2, (w - s) ** 4, w * s, w**2, s**2, w, s, *near], axis=-1)
            record.append(waiting_time, lag, np.stack([terms[..., m, :].sum(-2) for m in members.values()], axis=-2))
        return record

    # ------------------------------------------------------------------ replicas

    @classmethod
    def concat(cls, records: Sequence[AgingRecord], dim: Literal["replica"] = "replica") -> AgingRecord:
        """Independent runs of the same model and schedule as one record with a replica axis.

        Args:
            records: runs, or sets of replicas, in the order in which they shall be numbered.
            dim: the axis along which they are put together; there is only ``"replica"``.

        Returns:
            A record whose observables are ``[n_replica, n_tw, n_lag]``. Its metadata is that of the first run, with all
            of them under ``"replicas"``; a one-time series is kept where all runs have the same steps, as their mean.
            What is known between the replicas of one record, and profiles, are left out.

        Raises:
            TypeError: something else than a list of records.
            ValueError: no records, another ``dim``, runs that do not match (the message says in what: the parameters,
                what was measured, or the module, the optimisers, the batches in their metadata), or one run twice.
        """
        if dim != "replica":
            raise ValueError(f"dim={dim!r} is not 'replica'")
        if not isinstance(records, (list, tuple)) or not all(isinstance(record, AgingRecord) for record in records):
            raise TypeError("records must be a list of AgingRecord")
        if not records:
            raise ValueError("records is empty: give at least one")
        first = records[0]
        for i, other in enumerate(records):
            for what, a, b in (
                ("n_parameters", first.n_parameters, other.n_parameters),
                ("n_sampled", first.n_sampled, other.n_sampled),
                ("overlap_thresholds", first.overlap_thresholds, other.overlap_thresholds),
            ):
                if a != b:
                    raise ValueError(f"records[{i}] does not match records[0] in {what}: {b} and {a}")
            for key in _SAME_IN_REPLICAS:
                if key in first.meta and key in other.meta and first.meta[key] != other.meta[key]:
                    raise ValueError(
                        f"records[{i}] does not match records[0] in {key}: {other.meta[key]!r} and {first.meta[key]!r}"
                    )
            if first._rows.keys() != other._rows.keys():
                odd = sorted(first._rows.keys() ^ other._rows.keys())
                raise ValueError(
                    f"records[{i}] does not match records[0] in the pairs (waiting time, lag) that were measured: "
                    f"{len(odd)} are in one of them only, {odd[0]} for example"
                )
        seen: dict[bytes, int] = {}
        for i, other in enumerate(records if len(first) else []):
            moments = other._arrays()[2]
            for replica in moments if other.n_replica is not None else moments[None]:
                digest = hashlib.sha256(replica.tobytes()).digest()
                if digest in seen:
                    raise ValueError(
                        f"records[{i}] and records[{seen[digest]}] hold the same run to the bit: it is no two replicas"
                    )
                seen[digest] = i
        merged = cls(
            first.n_parameters,
            n_sampled=first.n_sampled,
            overlap_thresholds=first.overlap_thresholds,
            meta={**first.meta, "replicas": [record.meta for record in records]},
            n_replica=sum(record.n_replica or 1 for record in records),
        )
        for pair in first._rows:
            rows = [record._rows[pair] if record.n_replica else record._rows[pair][None] for record in records]
            merged._rows[pair] = np.concatenate(rows)
        for name in first.one_time_names:
            if all(name in record.one_time_names for record in records):
                series = [record.one_time(name) for record in records]
                if all(np.array_equal(series[0][0], steps) for steps, _ in series):
                    mean = np.mean([values for _, values in series], axis=0)
                    merged._one_time[name] = dict(zip(series[0][0].tolist(), mean.tolist(), strict=True))
        return merged

    def before(self, step: int) -> AgingRecord:
        """The record as it was before the event at ``step``, without what was measured then or later."""
        earlier = self._part([pair for pair in self._rows if sum(pair) < step])
        earlier.meta = dict(self.meta)
        for name, values in self._one_time.items():
            kept = {at: value for at, value in values.items() if at < step}
            earlier._one_time |= {name: kept} if kept else {}
        for name, matrices in self._between.items():
            known = {at: matrix for at, matrix in matrices.items() if at < step}
            earlier._between |= {name: known} if known else {}
        for name, (grid, rows) in self._profiles.items():
            measured = {pair: row for pair, row in rows.items() if sum(pair) < step}
            earlier._profiles |= {name: (grid, measured)} if measured else {}
        return earlier

    def is_part_of(self, other: AgingRecord) -> bool:
        """Whether each pair was measured in ``other`` as well, with the same bits: an earlier part of the same run."""
        return self.row_shape == other.row_shape and all(
            pair in other._rows and row.tobytes() == other._rows[pair].tobytes() for pair, row in self._rows.items()
        )

    # ------------------------------------------------------------------ to other formats

    def table(self, pairs: Sequence[tuple[int, int]] | None = None) -> dict[str, list[Any]]:
        """The record in long form: one entry per replica, group and pair, every observable a column.

        Args:
            pairs: the ``(waiting time, lag)`` wanted; default all of them, sorted.

        Returns:
            For each column its values: (replica,) waiting_time, lag, step, group, n_parameters, then the observables.

        Raises:
            KeyError: a pair that was not measured.
        """
        part = self if pairs is None else self._part(pairs)
        waiting_times, lags, _ = part._arrays()
        n_replica = self.n_replica or 1
        columns: dict[str, list[Any]] = {}
        for group in self.groups:
            sums = part._sums(group)
            raw = (sums["ws"], sums["w2"], sums["s2"], sums["w"], sums["s"], sums["n"])
            values = {
                "msd": observables.msd(sums["d2"], sums["n"]),
                **{
                    f"correlation_{kind}": observables.correlation(*raw, kind=kind)
                    for kind in get_args(CorrelationKind)
                },
                "decorrelation": observables.decorrelation(sums["d2"], sums["w2"], sums["s2"]),
                "non_gaussian": observables.non_gaussian(sums["d2"], sums["d4"], sums["n"]),
            }
            for eps in self.overlap_thresholds:
                values[f"overlap_{eps:.6g}"] = observables.overlap(part._count(group, eps), sums["d2"], sums["n"])
            axes = {"waiting_time": waiting_times, "lag": lags, "step": waiting_times + lags}
            if self.n_replica is not None:
                columns.setdefault("replica", []).extend(np.repeat(np.arange(n_replica), len(part)).tolist())
            for name, axis in axes.items():
                columns.setdefault(name, []).extend(np.tile(axis, n_replica).tolist())
            columns.setdefault("group", []).extend([group] * (len(part) * n_replica))
            columns.setdefault("n_parameters", []).extend([self._n_parameters[group]] * (len(part) * n_replica))
            for name, rows in values.items():
                columns.setdefault(name, []).extend(rows.ravel().tolist())
        return columns

    def mean_table(self, pairs: Sequence[tuple[int, int]] | None = None) -> dict[str, list[Any]]:
        """As :meth:`table`, with the mean over the replicas in place of a line for each."""
        table = self.table(pairs)
        if self.n_replica is None:
            return table
        n = len(self if pairs is None else pairs)
        axes = ("waiting_time", "lag", "step", "group", "n_parameters")
        # A block of lines for each group, in it one for each replica.
        shape = (len(self.groups), self.n_replica, n)
        return {
            name: (np.array(column, dtype=object).reshape(shape)[:, 0] if name in axes else _mean(column, shape))
            .ravel()
            .tolist()
            for name, column in table.items()
            if name != "replica"
        }

    def _part(self, pairs: Sequence[tuple[int, int]]) -> AgingRecord:
        part = AgingRecord(
            self._n_parameters,
            n_sampled=self._n_sampled,
            overlap_thresholds=self.overlap_thresholds,
            n_replica=self.n_replica,
        )
        part._rows = {pair: self._rows[pair] for pair in pairs}
        return part

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write one line per replica, group and pair, with every observable, atomically. Returns the path.

        The name of a group that begins like a formula of a spreadsheet (``=``, ``+``, ``-``, ``@``) gets an apostrophe.
        """
        columns = self.table()

        def write(file: BinaryIO) -> None:
            # A group name is the user's: quoting keeps commas and line breaks inside their cell.
            text = _TextOver(file)
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(map(csv_cell, row) for row in zip(*columns.values(), strict=True))

        return write_atomically(Path(path), write)

    def to_pandas(self) -> pandas.DataFrame:
        """One row per replica, group and pair, the observables as columns.

        Raises:
            ImportError: pandas is missing; it is in the extra ``analysis``.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas() needs pandas: pip install 'lightning-glassy[analysis]'") from error
        return pandas.DataFrame(self.table())

    def to_xarray(self) -> xarray.Dataset:
        """The observables over the dimensions ``(replica,) group, waiting_time, lag`` (and ``eps``).

        Raises:
            ImportError: xarray is missing; it is in the extra ``analysis``.
        """
        try:
            import xarray
        except ImportError as error:
            raise ImportError("to_xarray() needs xarray: pip install 'lightning-glassy[analysis]'") from error
        dims: tuple[str, ...] = ("waiting_time", "lag")
        if self.n_replica is not None:
            dims = ("replica", *dims)

        def over_groups(observable: Any) -> tuple[tuple[str, ...], Array]:
            return ("group", *dims), np.stack([observable(group) for group in self.groups])

        data: dict[str, Any] = {
            "msd": over_groups(self.msd),
            "decorrelation": over_groups(self.decorrelation),
            "non_gaussian": over_groups(self.non_gaussian),
            "local_exponent": over_groups(self.local_exponent),
            "n_parameters": (("group",), list(self._n_parameters.values())),
        }
        for kind in get_args(CorrelationKind):
            data[f"correlation_{kind}"] = over_groups(lambda group, kind=kind: self.correlation(group, kind))
        if self.overlap_thresholds:
            by_threshold = [over_groups(lambda g, e=e: self.overlap(e, g))[1] for e in self.overlap_thresholds]
            data["overlap"] = (("eps", "group", *dims), np.stack(by_threshold))
        coords = {"waiting_time": self.waiting_times, "lag": self.lags, "group": list(self.groups)}
        coords |= {"eps": list(self.overlap_thresholds)} if self.overlap_thresholds else {}
        return xarray.Dataset(data, coords=coords, attrs={"meta": json.dumps(self.meta)})

    # ------------------------------------------------------------------ the file

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the record to one file, atomically: a reader, or a crash, never sees half of it.

        The format is an uncompressed ``.npz`` of plain arrays and one JSON text, without pickle; it is written
        exactly at ``path``, whatever its suffix.

        Returns:
            The path.

        Raises:
            TypeError: ``meta`` holds something that JSON cannot.
            OSError: the file cannot be written; an earlier version of it is left as it was.
        """
        return write_atomically(Path(path), self._write)

    def to_bytes(self) -> bytes:
        """The content of the file that :meth:`save` writes.

        Raises:
            TypeError: ``meta`` holds something that JSON cannot.
        """
        content = io.BytesIO()
        self._write(content)
        return content.getvalue()

    def _write(self, file: BinaryIO) -> None:
        waiting_times, lags, moments = self._arrays()
        header = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "n_parameters": self._n_parameters,
            "n_sampled": self._n_sampled,
            "overlap_thresholds": list(self.overlap_thresholds),
            "n_replica": self.n_replica,
            "one_time": list(self._one_time),
            "between": list(self._between),
            "profiles": list(self._profiles),
            "meta": self.meta,
        }
        arrays: dict[str, NDArray[Any]] = {
            "header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8),
            "waiting_time": waiting_times,
            "lag": lags,
            "moments": moments,
        }
        for i, name in enumerate(self._one_time):
            arrays[f"one_time_{i}_step"], arrays[f"one_time_{i}_value"] = self.one_time(name)
        for i, name in enumerate(self._between):
            arrays[f"between_{i}_step"], arrays[f"between_{i}_value"] = self.between(name)
        for i, name in enumerate(self._profiles):
            profile = self.profile(name)
            arrays |= {
                f"profile_{i}_waiting_time": profile.waiting_times,
                f"profile_{i}_lag": profile.lags,
                f"profile_{i}_grid": profile.grid,
                f"profile_{i}_value": profile.values,
            }
        np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AgingRecord:
        """Read a record. The file is not trusted: nothing in it is executed, unpickled or decompressed.

        Its observables are matrices of waiting times and lags: a file in which no two pairs share a time, and which
        no training leaves, would make them larger than itself by orders of magnitude, and is refused.

        Raises:
            OSError: there is no such file, or it cannot be read.
            RecordError: it is truncated, foreign, from a newer version of this package, or malformed; the message
                says which.
        """
        path = Path(path)
        if path.exists() and not path.is_file() and not path.is_dir():
            raise RecordError(f"{path}: not a file but a device or a pipe, which may never end")
        with path.open("rb") as file:  # what the system says of a missing file, or a directory, stays as it is
            content = file.read()
        try:
            return cls.from_bytes(content)
        except RecordError as error:
            raise RecordError(f"{path}: {error}") from error.__cause__

    @classmethod
    def from_bytes(cls, content: bytes) -> AgingRecord:
        """The record in the content of a file; trusted as little as one by :meth:`load`.

        Raises:
            RecordError: as of :meth:`load`.
        """
        try:
            return cls._from_arrays(_read_arrays(io.BytesIO(content)))
        except RecordError:
            raise
        except Exception as error:  # whatever a crafted file makes the parsers of zip, npy and JSON raise
            raise RecordError(f"not a well-formed record: {type(error).__name__}: {error}") from error

    @classmethod
    def _from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> AgingRecord:
        if "header" not in arrays or arrays["header"].dtype != np.uint8:
            raise RecordError("not a lightning_glassy record: it has no header")
        header = json.loads(arrays["header"].tobytes().decode(), object_pairs_hook=_without_repetition)
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise RecordError("not a lightning_glassy record: its header says something else")
        version = header.get("version")
        if type(version) is not int or version < 1:
            raise RecordError(f"its format version is {version!r}")
        if version > FORMAT_VERSION:
            raise RecordError(
                f"written in format {version}, this version of lightning_glassy reads up to {FORMAT_VERSION}: "
                "upgrade lightning_glassy"
            )
        n_parameters, n_sampled, meta, names = (header[k] for k in ("n_parameters", "n_sampled", "meta", "one_time"))
        # Not in the files of the first versions.
        between, profiles = header.get("between", []), header.get("profiles", [])
        sizes = [*n_parameters.values(), *n_sampled.values(), header["n_replica"] or 1]
        numbers = header["overlap_thresholds"]
        if (
            not all(type(size) is int for size in sizes)
            or not all(type(part) is list for part in (names, between, profiles, numbers))
            or not all(type(name) is str for name in (*names, *between, *profiles))
            or not all(type(number) is float for number in numbers)
        ):
            raise RecordError("its header holds something else where numbers and names are expected")
        if not isinstance(meta, dict) or any(len(set(part)) != len(part) for part in (names, between, profiles)):
            raise RecordError("its header holds a repeated name, or no metadata")
        record = cls(
            n_parameters,
            n_sampled=n_sampled,
            overlap_thresholds=header["overlap_thresholds"],
            meta=meta,
            n_replica=header["n_replica"],
        )
        waiting_times = _column(arrays, "waiting_time", np.int64)
        lags = _column(arrays, "lag", np.int64)
        moments = arrays["moments"]
        shape: tuple[int, ...] = (len(lags), *record.row_shape)
        if record.n_replica is not None:
            shape = (record.n_replica, len(lags), *record.row_shape[1:])
        if moments.dtype != np.float64 or len(waiting_times) != len(lags) or moments.shape != shape:
            raise RecordError("its rows do not have one waiting time, one lag and float64 moments each")
        _check_plane(waiting_times, lags, record.n_replica)
        rows_first = moments if record.n_replica is None else np.moveaxis(moments, 0, 1)
        for waiting_time, lag, row in zip(waiting_times, lags, rows_first, strict=True):
            record.append(waiting_time, lag, row)
        for i, name in enumerate(names):
            steps = _column(arrays, f"one_time_{i}_step", np.int64)
            values = _column(arrays, f"one_time_{i}_value", np.float64)
            for step, value in zip(steps, values, strict=True):
                record.append_one_time(name, step, value)
        for i, name in enumerate(between):
            steps, matrices = _column(arrays, f"between_{i}_step", np.int64), arrays[f"between_{i}_value"]
            if matrices.dtype != np.float64 or len(matrices) != len(steps):
                raise RecordError(f"{f'between_{i}_value'!r} is not one float64 matrix for each of its steps")
            for step, matrix in zip(steps, matrices, strict=True):
                record.append_between(name, step, matrix)
        for i, name in enumerate(profiles):
            times = [_column(arrays, f"profile_{i}_{axis}", np.int64) for axis in ("waiting_time", "lag")]
            grid, profile = _column(arrays, f"profile_{i}_grid", np.float64), arrays[f"profile_{i}_value"]
            if profile.dtype != np.float64 or profile.ndim != 2:
                raise RecordError(f"{f'profile_{i}_value'!r} is not one row of float64 for each of its pairs")
            for waiting_time, lag, row in zip(*times, profile, strict=True):
                record.append_profile(name, waiting_time, lag, grid, row)
        return record

    # ------------------------------------------------------------------ as a value

    def __eq__(self, other: object) -> bool:
        """Whether two records hold the same numbers to the bit; metadata is not compared."""
        if not isinstance(other, AgingRecord):
            return NotImplemented
        return (
            self._n_parameters == other._n_parameters
            and self._n_sampled == other._n_sampled
            and self.overlap_thresholds == other.overlap_thresholds
            and self.n_replica == other.n_replica
            and self._one_time.keys() == other._one_time.keys()
            and all(
                np.array_equal(a, b, equal_nan=True)
                for name in self._one_time
                for a, b in zip(self.one_time(name), other.one_time(name), strict=True)
            )
            and self._between.keys() == other._between.keys()
            and all(
                np.array_equal(a, b, equal_nan=True)
                for name in self._between
                for a, b in zip(self.between(name), other.between(name), strict=True)
            )
            and self._profiles.keys() == other._profiles.keys()
            and all(
                np.array_equal(a, b, equal_nan=True)
                for name in self._profiles
                for a, b in zip(self.profile(name), other.profile(name), strict=True)
            )
            and all(np.array_equal(a, b, equal_nan=True) for a, b in zip(self._arrays(), other._arrays(), strict=True))
        )

    __hash__ = None  # type: ignore[assignment]  # a record grows

    def __repr__(self) -> str:
        replicas = "" if self.n_replica is None else f", {self.n_replica} replicas"
        return (
            f"AgingRecord({len(self)} pairs: {len(self.waiting_times)} waiting times x {len(self.lags)} lags, "
            f"{len(self.groups)} group{'s' if len(self.groups) > 1 else ''}, N={self._n_parameters['all']:,}{replicas})"
        )


def check_thresholds(thresholds: Sequence[float]) -> tuple[float, ...]:
    """The overlap thresholds as a tuple of floats.

    Raises:
        TypeError: something else than a list of numbers.
        ValueError: one that is not a positive number whose square float32 can hold, or not larger than the one before.
    """
    if isinstance(thresholds, (str, bytes, Mapping)) or not isinstance(thresholds, Iterable):
        raise TypeError(f"overlap_thresholds={thresholds!r} is not a list of numbers")
    for i, eps in enumerate(thresholds := tuple(thresholds)):
        if isinstance(eps, (bool, np.bool_)) or not isinstance(eps, (int, float, np.number)):
            raise TypeError(f"overlap_thresholds[{i}]={eps!r} is not a number")
    values = tuple(float(eps) for eps in thresholds)
    for i, eps in enumerate(values):
        if not 1e-18 <= eps <= 1e18:
            raise ValueError(f"overlap_thresholds[{i}]={eps} must be a positive number between 1e-18 and 1e18")
        if i and eps <= values[i - 1]:
            raise ValueError(f"overlap_thresholds must increase, but {eps} follows {values[i - 1]}")
    return values


def _check_plane(waiting_times: NDArray[np.int64], lags: NDArray[np.int64], n_replica: int | None) -> None:
    """Refuse rows whose matrices would be far larger than what was measured: a file of 2 MB could ask for 7 GB.

    The sparsest records there are hold all pairs of n checkpoints at irregular steps: r = n (n - 1) / 2 of them, with
    n - 1 waiting times and at most r lags, so that their matrix has less than 2 r**1.5 cells. Schedules are far denser,
    unless a training of a few pairs jumps over their steps: that costs no memory to speak of.
    """
    cells = len(np.unique(waiting_times)) * len(np.unique(lags))
    if cells * (n_replica or 1) > _SMALL_PLANE and cells > 2 * len(lags) ** 1.5:
        raise RecordError(
            f"its {len(lags):,} pairs of times would make a matrix of {cells:,} cells (waiting times x lags); of more "
            f"than {_SMALL_PLANE:,} cells over all replicas, no training leaves more than 2 * pairs**1.5"
        )


def _check_meta(meta: dict[str, Any]) -> None:
    try:
        json.dumps(meta)
        level: list[Any] = [meta]
        for _ in range(_DEEPEST):
            parts = [part.values() if isinstance(part, dict) else part for part in level]
            level = [part for outer in parts for part in outer if isinstance(part, (dict, list, tuple))]
    except RecursionError:
        level = [meta]
    if level:
        raise ValueError(f"meta is nested more than {_DEEPEST} levels deep: give the record something flatter")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise RecordError("its header names something twice")
    return dict(pairs)


def _mean(column: list[float], shape: tuple[int, int, int]) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.array(column, dtype=np.float64).reshape(shape).mean(axis=1))


def _indices(group: str, member: ArrayLike) -> NDArray[Any]:
    indices = np.asarray(member)
    if indices.size == 0 or indices.dtype.kind not in "iub":
        raise ValueError(f"groups[{group!r}] must be a non-empty list of indices, or a mask")
    return indices


def _column(arrays: dict[str, NDArray[Any]], name: str, dtype: type[np.generic]) -> NDArray[Any]:
    column = arrays[name]
    if column.ndim != 1 or column.dtype != dtype:
        raise RecordError(f"{name!r} is {column.dtype} of shape {column.shape}, not a column of {dtype.__name__}")
    return column


class _TextOver:
    """The one method that :func:`csv.writer` needs, on a binary file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(text.encode(errors="backslashreplace"))


def _read_arrays(file: io.BytesIO) -> dict[str, NDArray[Any]]:
    """The arrays of an ``.npz`` that may have been made to harm.

    NumPy's own reader allocates what a header claims, and inflates what is compressed, before it looks at what is
    there. Here each member must be stored uncompressed, and as long as its header says.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise RecordError("not a lightning_glassy record: it is compressed")
            if len({member.filename.removesuffix(".npy") for member in members}) < len(members):
                raise RecordError("it names a part twice")
            if sum(member.file_size for member in members) > len(file.getbuffer()):
                raise RecordError("its parts claim to be longer than the file")
            return {
                member.filename.removesuffix(".npy"): _parse_npy(archive.read(member), member.filename)
                for member in members
            }
    except (zipfile.BadZipFile, EOFError, struct.error, NotImplementedError, RuntimeError) as error:
        raise RecordError(f"truncated, or not a lightning_glassy record ({error})") from error


def _parse_npy(content: bytes, name: str) -> NDArray[Any]:
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise RecordError(f"{name}: unknown array format {version}")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read_header(file)
    if dtype.hasobject or dtype.kind not in "uif" or fortran_order:
        raise RecordError(f"{name}: arrays of {dtype} are not part of a record")
    data = content[file.tell() :]
    if any(extent < 0 for extent in shape) or math.prod(shape) * dtype.itemsize != len(data):
        raise RecordError(f"{name}: {len(data)} bytes where its header promises {shape} of {dtype}")
    return np.frombuffer(data, dtype=dtype).reshape(shape)

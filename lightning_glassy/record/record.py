"""The record of a run: raw two-time moments with labelled axes, and the observables they make."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_glassy import observables
from lightning_glassy.observables import NOT_SUMS, OBSERVABLES, Array, CorrelationKind, Formula, Observable
from lightning_glassy.record import combine, convert
from lightning_glassy.record.content import RecordContent
from lightning_glassy.record.tables import MOMENTS_TABLE

if TYPE_CHECKING:
    import pandas
    import xarray

    from lightning_glassy.schedule import LogTimeSchedule


class AgingRecord(RecordContent):
    r"""Two-time moments of one run (or of several replicas of it), with everything needed to interpret them.

    Every row is one pair :math:`(t_w, t)` that was measured: the weights at step :math:`t_w + t` against those at step
    :math:`t_w`, both in completed optimiser updates. An observable arranges the rows as a matrix ``[n_tw, n_lag]`` over
    :attr:`waiting_times` and :attr:`lags` (with replicas ``[n_replica, n_tw, n_lag]``), NaN where a pair was not
    measured. Every observable is in :data:`lightning_glassy.observables.OBSERVABLES`.

    Args:
        n_parameters: for each group the number N of its scalar parameters; the group ``"all"`` must be there.
        n_sampled: for each group the number of coordinates that are summed over, if only a sample of them is.
        overlap_thresholds: the :math:`\epsilon` of the overlaps, positive and increasing.
        meta: what is known of the run; only what JSON can hold.
        n_replica: number of replicas; ``None`` for a single run without that axis.
        sums: names of the sums that are measured; default the seven of ``MOMENTS``.

    Raises:
        TypeError: ``meta`` holds something that JSON cannot, or a size is not an integer.
        ValueError: no group ``"all"``, a size that is not positive, thresholds that are not increasing, a name of more
            than 1000 characters or with a lone surrogate in it, a sum named twice, or metadata that is nested more than
            50 levels deep.

    Example:
        >>> from lightning_glassy import LogTimeSchedule
        >>> walk = np.cumsum(np.ones((101, 4)), axis=0)
        >>> record = AgingRecord.from_trajectory(walk, LogTimeSchedule([0, 50], [1, 10, 50]))
        >>> record.msd().tolist()
        [[1.0, 100.0, 2500.0], [1.0, 100.0, 2500.0]]
    """

    # ------------------------------------------------------------------ observables

    def observable(self, name: str, group: str = "all", *, eps: float | None = None) -> Array:
        r"""Any observable of :data:`lightning_glassy.observables.OBSERVABLES`, by name.

        Args:
            name: of the observable.
            group: name of the group.
            eps: threshold :math:`\epsilon`, one of :attr:`overlap_thresholds`, for an observable that depends on one;
                default the first (smallest).

        Returns:
            float64 ``[n_tw, n_lag]``, NaN where not measured. With replicas ``[n_replica, n_tw, n_lag]``, unless the
            observable compares the replicas.

        Raises:
            KeyError: a group the record does not have, or no gradient noise of it.
            ValueError: another name, a threshold that was not counted or does not belong to this observable, or sums,
                thresholds or replicas that the record does not have.
        """
        entry = observables.find(name)
        return self._evaluate(entry, entry.formula, entry.inputs, group, eps)

    def available(self, group: str = "all") -> list[str]:
        """Names of the observables that this record has all sums, thresholds, replicas and series for.

        Raises:
            KeyError: a group the record does not have.
        """
        self._group_index(group)
        return [name for name, entry in OBSERVABLES.items() if self._lack(entry, entry.inputs, group) is None]

    def _evaluate(
        self, entry: Observable, formula: Formula, inputs: Sequence[str], group: str, eps: float | None
    ) -> Array:
        self._check(entry, inputs, group, eps)
        values = formula(*(self._input(name, group, eps) for name in inputs))
        return self._matrix(values) if entry.pairwise else np.asarray(values)

    def _check(self, entry: Observable, inputs: Sequence[str], group: str, eps: float | None) -> None:
        self._group_index(group)
        if isinstance(eps, str):
            raise TypeError(f"eps={eps!r} is not a number; a group is named by group={eps!r}")
        if eps is not None and not entry.has_threshold:
            raise ValueError(f"eps={eps} belongs to the overlap, not to observable={entry.name!r}")
        lack = self._lack(entry, inputs, group)
        if lack is not None:
            raise lack

    def _lack(self, entry: Observable, inputs: Sequence[str], group: str) -> Exception | None:
        """The error of asking for an observable, or for its standard error, if the record lacks one of its inputs."""
        for name in inputs:
            if name in OBSERVABLES:
                found = self._lack(OBSERVABLES[name], OBSERVABLES[name].inputs, group)
                if found is not None:
                    return found
            elif name == "noise" and _noise_name(group) not in self.one_time_names:
                return KeyError(f"no one-time series {_noise_name(group)!r}; there are {list(self.one_time_names)}")
            elif name == "count" and not self.overlap_thresholds:
                return ValueError("no overlap thresholds were counted in this record")
            elif name not in (*NOT_SUMS, *self.sums):
                return ValueError(
                    f"{entry.name} is made of the sum {name!r}, which this record does not have: its sums are "
                    f"{', '.join(self.sums)}"
                )
        if entry.over_replicas and (self.n_replica is None or self.n_replica < 2):
            return ValueError(
                f"n_replica={self.n_replica}: {entry.name} is a variance between replicas, of which two are needed"
            )
        return None

    def _input(self, name: str, group: str, eps: float | None) -> Any:
        """An input of a formula: rows ``[n_row(, n_replica)]``, a matrix, or a number."""
        if name in OBSERVABLES:
            return self.observable(name, group, eps=eps if OBSERVABLES[name].has_threshold else None)
        if name == "n":
            return np.float64(self._n_sampled[group])
        if name == "population":
            return self._n_parameters[group]
        if name == "lags":
            return self.lags
        if name == "noise":
            return self.gradient_noise(self.waiting_times, group)[:, None]
        column = len(self.sums) + self._threshold_index(eps) if name == "count" else self.sums.index(name)
        return self._tables[MOMENTS_TABLE].values[..., self._group_index(group), column]

    def _threshold_index(self, eps: float | None) -> int:
        if eps is None:
            return 0
        for i, threshold in enumerate(self.overlap_thresholds):
            if math.isclose(eps, threshold, rel_tol=1e-9):
                return i
        raise ValueError(f"eps={eps} was not counted during the run; there are {list(self.overlap_thresholds)}")

    def _matrix(self, rows: Array) -> Array:
        """Rows ``[n_row(, n_replica)]`` as ``[(n_replica,) n_tw, n_lag]``, NaN where not measured."""
        keys = self._tables[MOMENTS_TABLE].keys
        waiting_times, lags = self.waiting_times, self.lags
        matrix = np.full((*rows.shape[1:], len(waiting_times), len(lags)), np.nan)
        matrix[..., np.searchsorted(waiting_times, keys[:, 0]), np.searchsorted(lags, keys[:, 1])] = rows.T
        return matrix

    def msd(self, group: str = "all", *, normalise: Literal["noise"] | None = None) -> Array:
        r"""Mean squared displacement :math:`\Delta(t_w, t_w+t)`: see :func:`lightning_glassy.observables.msd`.

        Args:
            group: name of the group.
            normalise: ``"noise"`` for :func:`lightning_glassy.observables.normalised_msd`,
                :math:`\Delta(t_w, t_w+t)/D(t_w)`. D is :meth:`gradient_noise`.

        Returns:
            float64 ``[n_tw, n_lag]`` (with replicas ``[n_replica, n_tw, n_lag]``), NaN where not measured.

        Raises:
            KeyError: a group the record does not have; with ``normalise``, no gradient noise of it.
            ValueError: another ``normalise``.
        """
        if normalise not in (None, "noise"):
            raise ValueError(f"normalise={normalise!r} is neither 'noise' nor None")
        return self.observable("msd" if normalise is None else "normalised_msd", group)

    def correlation(self, group: str = "all", kind: CorrelationKind = "raw") -> Array:
        """Two-time correlation, ``"raw"``, ``"cosine"``, ``"centred"`` or ``"pearson"``.

        See :func:`lightning_glassy.observables.correlation`; shapes and errors as :meth:`msd`.

        Raises:
            ValueError: another ``kind``.
        """
        if kind not in get_args(CorrelationKind):
            raise ValueError(f"kind={kind!r} is not one of {', '.join(map(repr, get_args(CorrelationKind)))}")
        return self.observable(f"correlation_{kind}", group)

    def decorrelation(self, group: str = "all") -> Array:
        """One minus the cosine correlation, with its digits at short lags; shapes and errors as :meth:`msd`.

        See :func:`lightning_glassy.observables.decorrelation`.
        """
        return self.observable("decorrelation", group)

    def overlap(self, eps: float | None = None, group: str = "all") -> Array:
        r"""Fraction of coordinates with :math:`|w - s| \le \epsilon`; shapes and errors as :meth:`msd`.

        See :func:`lightning_glassy.observables.overlap`.

        Args:
            eps: one of :attr:`overlap_thresholds`; default the first (smallest).
            group: name of the group.

        Raises:
            ValueError: a threshold that was not counted during the run.
        """
        return self.observable("overlap", group, eps=eps)

    def non_gaussian(self, group: str = "all") -> Array:
        r"""Non-Gaussian parameter :math:`\alpha_2`; shapes and errors as :meth:`msd`.

        See :func:`lightning_glassy.observables.non_gaussian`.
        """
        return self.observable("non_gaussian", group)

    def binder_cumulant(self, group: str = "all") -> Array:
        r"""Binder cumulant of the displacements, :math:`-\alpha_2`; shapes and errors as :meth:`msd`.

        See :func:`lightning_glassy.observables.binder_cumulant`.
        """
        return self.observable("binder_cumulant", group)

    def local_exponent(self, group: str = "all") -> Array:
        r"""Local exponent :math:`\partial\ln\Delta/\partial\ln t`; shapes and errors as :meth:`msd`.

        See :func:`lightning_glassy.observables.local_exponent`.
        """
        return self.observable("local_exponent", group)

    def chi4(
        self, group: str = "all", *, quantity: Literal["overlap", "correlation"] = "overlap", eps: float | None = None
    ) -> Array:
        r"""Dynamical susceptibility :math:`\chi_4(t_w, t_w+t) = N\,\mathrm{Var}_{replicas}(Q)`.

        It says how much replicas differ in how far they have relaxed: of the order of 1 if coordinates move
        independently of each other, and as large as the number of coordinates that move together. See
        :func:`lightning_glassy.observables.chi4`.

        Args:
            group: name of the group.
            quantity: ``"overlap"`` for :math:`Q_\epsilon`, ``"correlation"`` for the raw correlation C.
            eps: threshold of the overlap, as in :meth:`overlap`.

        Returns:
            float64 ``[n_tw, n_lag]``. N is the number of coordinates that were measured.

        Raises:
            ValueError: a record of fewer than two replicas, or another quantity.
        """
        return self.observable(_chi4_name(quantity), group, eps=eps)

    def chi4_error(
        self, group: str = "all", *, quantity: Literal["overlap", "correlation"] = "overlap", eps: float | None = None
    ) -> Array:
        """Standard error of :meth:`chi4`, by the jackknife over replicas; arguments, shapes and errors as there.

        NaN with two replicas: a variance can be estimated from them, but not its error.
        """
        return self.standard_error(_chi4_name(quantity), group, eps=eps)

    def standard_error(self, name: str, group: str = "all", *, eps: float | None = None) -> Array:
        """Standard error of an observable that has a formula for it.

        For ``"msd"`` and ``"overlap"`` it is the error from summing over a sample of the coordinates instead of all: 0
        without a sample. It concerns each run alone: the scatter between runs needs replicas. For ``"chi4"`` it is
        :meth:`chi4_error`.

        Args:
            name: of the observable.
            group: name of the group.
            eps: threshold of the overlap, as in :meth:`observable`.

        Returns:
            As :meth:`observable`. NaN if the group has fewer than two sampled coordinates.

        Raises:
            KeyError: as :meth:`observable`.
            ValueError: as :meth:`observable`, or an observable without such a formula.
        """
        entry = observables.find(name, argument="name")
        if entry.error is None:
            known = [repr(o.name) for o in OBSERVABLES.values() if o.error is not None]
            raise ValueError(f"name={name!r}: there is a formula for the error of {', '.join(known)} only")
        return self._evaluate(entry, *entry.error, group, eps)

    # ------------------------------------------------------------------ between replicas, and along the run

    def gradient_noise(self, steps: ArrayLike, group: str = "all") -> Array:
        r"""Strength of the gradient noise D at given steps, from the one-time series ``"gradient_noise"``.

        :math:`D = \langle\|g_b\|^2\rangle - \|\langle g_b\rangle\|^2` over minibatches at fixed weights, summed over
        the parameters of the group (Baity-Jesi et al. 2018). Between the steps at which it was measured, ln D is
        interpolated linearly in ln(1 + step). Outside of them it is NaN. The series of another group than ``"all"`` is
        ``"gradient_noise/<group>"``.

        Returns:
            float64, of the shape of ``steps``.

        Raises:
            KeyError: the record has no such series.
        """
        self._group_index(group)
        measured, noise = self.one_time(_noise_name(group))
        positive = noise > 0
        if not positive.any():
            return np.full(np.shape(steps), np.nan)
        x, y = np.log1p(measured[positive]), np.log(noise[positive])
        wanted = np.log1p(np.asarray(steps, dtype=np.float64))
        return np.exp(np.interp(wanted, x, y, left=np.nan, right=np.nan))

    def replica_distance(self) -> tuple[NDArray[np.int64], Array]:
        r"""Mean squared distance between replicas, :math:`d_{ab}(t) = \frac{1}{N}\sum_i [w_{a,i}(t) - w_{b,i}(t)]^2`.

        Between clones (:meth:`ReplicaEnsemble.clone_from`) it grows from 0 with the time since they were made. It shows
        how far different noise drives equal states apart.

        Returns:
            Steps ``[n]`` and values ``[n, n_replica, n_replica]``.

        Raises:
            KeyError: the record has not got it: only replicas that are trained together are compared.
        """
        steps, sums = self.between("weight_distance")
        return steps, observables.msd(sums, self._n_sampled["all"])

    def replica_overlap(self) -> tuple[NDArray[np.int64], Array]:
        r"""Overlap of replicas a and b, :math:`q_{ab}(t) = \sum_i w_{a,i} w_{b,i} / (|w_a| |w_b|)` at the same step.

        Hidden units may be permuted without a change of the function. Networks that do the same may therefore have an
        overlap near 0: see :class:`ReplicaOverlap` for the overlap of their predictions.

        Returns:
            Steps ``[n]`` and values ``[n, n_replica, n_replica]``, 1 on the diagonal.

        Raises:
            KeyError: as of :meth:`replica_distance`.
        """
        steps, products = self.between("weight_product")
        return steps, observables.replica_overlap(products)

    # ------------------------------------------------------------------ from a trajectory, and from several runs

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
        """Make a record from weights that are all at hand, in plain float64 NumPy.

        It is for simulations and for testing: it shares no code with the moments on the device, so that each can be
        checked against the other.

        Args:
            weights: ``[n_steps + 1, N]`` (row k after k updates), or ``[n_replica, n_steps + 1, N]``.
            schedule: the pairs to measure; pairs beyond the last step are left out.
            groups: for each name the coordinates (indices or a mask) that belong to it; ``"all"`` is added.
            overlap_thresholds: positive and increasing; default about a hundredth and a tenth of the standard deviation
                of the first row.
            meta: stored as it is.

        Raises:
            ValueError: another number of axes, a trajectory of one row, an empty group or one called ``"all"``, or a
                schedule that has no pair within it.
        """
        steps = combine.trajectory(weights)
        members = combine.members_of(groups or {}, steps.shape[-1])
        if overlap_thresholds is None:
            overlap_thresholds = observables.default_overlap_thresholds(float(np.std(steps[..., 0, :])))
        record = cls(
            {group: len(member) for group, member in members.items()},
            overlap_thresholds=overlap_thresholds,
            meta={"schedule": repr(schedule), **(meta or {})},
            n_replica=steps.shape[0] if steps.ndim == 3 else None,
        )
        for waiting_time, lag in schedule.until(steps.shape[-2] - 1).pairs:
            w, s = steps[..., waiting_time + lag, :], steps[..., waiting_time, :]
            moments = combine.moments_of(w, s, record.overlap_thresholds, members.values())
            record.append(waiting_time, lag, moments)
        return record

    @classmethod
    def concat(cls, records: Sequence[AgingRecord], dim: Literal["replica"] = "replica") -> AgingRecord:
        """Join independent runs of the same model and schedule to one record with a replica axis.

        Args:
            records: runs, or sets of replicas, in the order of their numbers.
            dim: the axis along which they are joined; there is only ``"replica"``.

        Returns:
            A record whose observables are ``[n_replica, n_tw, n_lag]``. Its metadata are those of the first run, with
            all of them under ``"replicas"``. A one-time series is kept if all runs have the same steps, as their mean.
            Matrices between the replicas of one record, and profiles, are left out.

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
        combine.check_replicas([record._shape() for record in records], [record.meta for record in records])
        first = records[0]
        merged = cls(
            **first._shape(),
            meta={**first.meta, "replicas": [record.meta for record in records]},
            n_replica=sum(record.n_replica or 1 for record in records),
        )
        merged._tables = combine.concatenated(
            [
                record._tables if record.n_replica is not None else combine.with_replica_axis(record._tables)
                for record in records
            ]
        )
        return merged

    # ------------------------------------------------------------------ other formats

    def table(
        self, pairs: Sequence[tuple[int, int]] | None = None, columns: Iterable[str] | None = None
    ) -> dict[str, list[Any]]:
        """The record in long form: one entry per replica, group and pair, every observable of a pair a column.

        Args:
            pairs: the ``(waiting time, lag)`` wanted; default all of them, sorted.
            columns: the observables wanted, by the names of their columns; default all of :meth:`columns`.

        Returns:
            For each column its values: (replica,) waiting_time, lag, step, group, n_parameters, then the observables.

        Raises:
            KeyError: a pair that was not measured.
        """
        moments = self._tables[MOMENTS_TABLE]
        part = self if pairs is None else self._with({MOMENTS_TABLE: moments.only(pairs)}, {})
        wanted = self.columns()
        if columns is not None:
            wanted = {name: wanted[name] for name in columns}
        waiting_times, lags = part.pairs
        axes = {"waiting_time": waiting_times, "lag": lags, "step": waiting_times + lags}
        n_replica = self.n_replica or 1
        result: dict[str, list[Any]] = {}
        for group in self.groups:
            if self.n_replica is not None:
                result.setdefault("replica", []).extend(np.repeat(np.arange(n_replica), len(part)).tolist())
            for name, axis in axes.items():
                result.setdefault(name, []).extend(np.tile(axis, n_replica).tolist())
            result.setdefault("group", []).extend([group] * (len(part) * n_replica))
            result.setdefault("n_parameters", []).extend([self._n_parameters[group]] * (len(part) * n_replica))
            for name, (entry, eps) in wanted.items():
                rows = entry.formula(*(part._input(i, group, eps) for i in entry.inputs))
                result.setdefault(name, []).extend(rows.T.ravel().tolist())
        return result

    def columns(self) -> dict[str, tuple[Observable, float | None]]:
        """The observables that a :meth:`table` has, and their thresholds, by the names of their columns.

        An observable with a threshold has a column for each, such as ``overlap_0.001``.
        """
        return {
            name if eps is None else f"{name}_{eps:.6g}": (entry, eps)
            for name, entry in OBSERVABLES.items()
            if entry.pairwise and self._lack(entry, entry.inputs, "all") is None
            for eps in (self.overlap_thresholds if entry.has_threshold else (None,))
        }

    def mean_table(
        self, pairs: Sequence[tuple[int, int]] | None = None, columns: Iterable[str] | None = None
    ) -> dict[str, list[Any]]:
        """As :meth:`table`, with the mean over the replicas in place of a line for each."""
        table = self.table(pairs, columns)
        if self.n_replica is None:
            return table
        axes = ("waiting_time", "lag", "step", "group", "n_parameters")
        # A block of lines for each group, in it a line for each replica.
        shape = (len(self.groups), self.n_replica, len(self if pairs is None else pairs))
        return {
            name: (np.array(column, dtype=object).reshape(shape)[:, 0] if name in axes else _mean(column, shape))
            .ravel()
            .tolist()
            for name, column in table.items()
            if name != "replica"
        }

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the :meth:`table` to a CSV file, atomically. Returns the path.

        The name of a group that begins like a formula of a spreadsheet (``=``, ``+``, ``-``, ``@``) gets an apostrophe.
        """
        return convert.write_csv(self.table(), Path(path))

    def to_pandas(self) -> pandas.DataFrame:
        """The :meth:`table` as a pandas data frame.

        Raises:
            ImportError: pandas is missing; it is in the extra ``analysis``.
        """
        return convert.data_frame(self.table())

    def to_xarray(self) -> xarray.Dataset:
        """All observables over the dimensions ``(eps,) group, (replica,) waiting_time, lag``.

        An observable that only some groups have is NaN for the others.

        Raises:
            ImportError: xarray is missing; it is in the extra ``analysis``.
        """
        data: dict[str, Any] = {"n_parameters": (("group",), list(self._n_parameters.values()))}
        there = {group: self.available(group) for group in self.groups}
        for name in (name for name in OBSERVABLES if any(name in names for names in there.values())):
            entry = OBSERVABLES[name]
            dims: tuple[str, ...] = ("group", "waiting_time", "lag")
            if self.n_replica is not None and not entry.over_replicas:
                dims = ("group", "replica", "waiting_time", "lag")

            def over_groups(eps: float | None, name: str = name) -> Array:
                found = {group: self.observable(name, group, eps=eps) for group in self.groups if name in there[group]}
                nothing = np.full_like(next(iter(found.values())), np.nan)
                return np.stack([found.get(group, nothing) for group in self.groups])

            if entry.has_threshold:
                data[name] = (("eps", *dims), np.stack([over_groups(eps) for eps in self.overlap_thresholds]))
            else:
                data[name] = (dims, over_groups(None))
        coords = {"waiting_time": self.waiting_times, "lag": self.lags, "group": list(self.groups)}
        coords |= {"eps": list(self.overlap_thresholds)} if self.overlap_thresholds else {}
        return convert.dataset(data, coords, json.dumps(self.meta))


def _chi4_name(quantity: str) -> str:
    names = {"overlap": "chi4", "correlation": "chi4_correlation"}
    if quantity not in names:
        raise ValueError(f"quantity={quantity!r} is neither 'overlap' nor 'correlation'")
    return names[quantity]


def _noise_name(group: str) -> str:
    return "gradient_noise" if group == "all" else f"gradient_noise/{group}"


def _mean(column: list[float], shape: tuple[int, int, int]) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.array(column, dtype=np.float64).reshape(shape).mean(axis=1))

"""The record of a run: raw two-time moments with labelled axes, and the observables computed from them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_glassy import observables
from lightning_glassy.observables import NOT_SUMS, OBSERVABLES, Array, CorrelationKind, Formula, Observable
from lightning_glassy.observables.arrays import jackknife_error, over_replicas
from lightning_glassy.record import combine, convert
from lightning_glassy.record.content import RecordContent
from lightning_glassy.record.tables import MOMENTS_TABLE, RESPONSE_TABLE, RESPONSES, TableName
from lightning_glassy.record.text import quoted

if TYPE_CHECKING:
    import pandas
    import xarray

    from lightning_glassy.schedule import LogTimeSchedule


class AgingRecord(RecordContent):
    r"""Two-time moments of one run or of several replicas, with everything needed to interpret them.

    Every row is one measured pair :math:`(t_w, t)`. It compares the weights at step :math:`t_w + t` with the weights at
    step :math:`t_w`. Both steps count completed optimiser updates. An observable arranges the rows as a matrix
    ``[n_tw, n_lag]`` over :attr:`waiting_times` and :attr:`lags` (with replicas ``[n_replica, n_tw, n_lag]``). The
    matrix is NaN at pairs that were not measured. Every observable is in
    :data:`lightning_glassy.observables.OBSERVABLES`.

    Args:
        n_parameters: for each group the number N of its scalar parameters. The group ``"all"`` is required.
        n_sampled: for each group the number of coordinates summed over, if only a sample is measured.
        overlap_thresholds: the :math:`\epsilon` of the overlaps, positive and increasing.
        meta: metadata of the run, in values that JSON can hold.
        n_replica: number of replicas, ``None`` for a single run without a replica axis.
        sums: names of the measured sums, default the seven of ``MOMENTS``.

    Raises:
        TypeError: ``meta`` holds a value that JSON cannot hold, or a size is not an integer.
        ValueError: there is no group ``"all"``, a size is not positive, the thresholds do not increase, a name has more
            than 1000 characters or a lone surrogate, a sum is named twice, or the metadata is nested more than 50
            levels deep.

    Example:
        >>> from lightning_glassy import LogTimeSchedule
        >>> walk = np.cumsum(np.ones((101, 4)), axis=0)
        >>> record = AgingRecord.from_trajectory(walk, LogTimeSchedule([0, 50], [1, 10, 50]))
        >>> record.msd().tolist()
        [[1.0, 100.0, 2500.0], [1.0, 100.0, 2500.0]]
    """

    _compared: tuple[Array, list[tuple[int, int]]] | None = None  # the rows whose copies are known, and the copies

    # ------------------------------------------------------------------ figures

    def plot(self, name: str | None = None, *, group: str = "all", ax: Any = None, **options: Any) -> Any:
        """Draw a figure by its name, with matplotlib. A notebook shows it automatically.

        Args:
            name: name of an observable (see :meth:`available`), or ``"collapse"``, ``"threshold_lags"``, ``"groups"``,
                ``"relaxation_times"``, ``"loss"``, ``"distributions"`` and so on. The default is an overview: the
                curves of the displacement, and the lags at which it reaches some thresholds, against the waiting time.
            group: name of the group of parameters.
            ax: axes to draw on, or two axes for a figure of two. Default: new axes of pyplot.
            **options: further arguments of the plot, such as ``eps``. See :mod:`lightning_glassy.plotting`.

        Returns:
            The axes, or two axes.

        Raises:
            ImportError: matplotlib is missing. The message names the extra to install.
            KeyError: the record does not have the group, or not the data of the figure.
            ValueError: there is no figure of this name, or the record has no measured pair.
        """
        from lightning_glassy.plotting import plot

        choice = {} if group == "all" else {"group": group}
        return plot(self, name, ax=ax, **choice, **options)

    def _repr_html_(self) -> str:
        """Return the answer in plain words and the curves of the displacement, for a notebook."""
        from lightning_glassy.plotting.notebook import html_of

        return html_of(self)

    @property
    def steps_per_epoch(self) -> int | None:
        """Number of optimiser updates in an epoch, None if the record does not have it."""
        size = self.meta.get("steps_per_epoch")
        return size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None

    def rms_weight(self, group: str = "all") -> float | None:
        r"""Compute the rms weight :math:`\sqrt{\langle w^2\rangle}` at the first waiting time.

        With replicas, the average is over the weights of all replicas.

        Returns:
            The rms weight. None if the record has no pair, or lacks the sum of squares.

        Raises:
            KeyError: the record does not have the group.
        """
        index = self._group_index(group)
        if "s2" not in self.sums or not len(self):
            return None
        table = self._tables[MOMENTS_TABLE]
        squares = table.values[np.argmin(table.keys[:, 0]), ..., index, self.sums.index("s2")]
        n = self._n_sampled[group]
        mean = float(np.mean(squares)) / n if n else np.nan
        return math.sqrt(mean) if np.isfinite(mean) and mean > 0 else None

    # ------------------------------------------------------------------ observables

    def observable(self, name: str, group: str = "all", *, eps: float | None = None) -> Array:
        r"""Compute any observable of :data:`lightning_glassy.observables.OBSERVABLES`, by name.

        Args:
            name: name of the observable.
            group: name of the group.
            eps: threshold :math:`\epsilon`, one of :attr:`overlap_thresholds`, for an observable that depends on a
                threshold. The default is the first (smallest).

        Returns:
            float64 ``[n_tw, n_lag]``, NaN if not measured. With replicas it is ``[n_replica, n_tw, n_lag]``, unless the
            observable compares the replicas.

        Raises:
            KeyError: the record does not have the group, or no gradient noise of the group.
            ValueError: there is no such observable, the threshold was not counted, the observable has no threshold, or
                the record lacks its sums, thresholds or replicas.
        """
        entry = observables.find(name)
        return self._evaluate(entry, entry.formula, entry.inputs, group, eps)

    def available(self, group: str = "all") -> list[str]:
        """Return the names of the observables that can be computed from this record.

        The record has all sums, thresholds, replicas and series that they need.

        Raises:
            KeyError: the record does not have the group.
        """
        self._group_index(group)
        return [name for name, entry in OBSERVABLES.items() if self._lack(entry, entry.inputs, group) is None]

    def _evaluate(
        self,
        entry: Observable,
        formula: Formula,
        inputs: Sequence[str],
        group: str,
        eps: float | None,
        of_replicas: Callable[[Array], Array] | None = None,
    ) -> Array:
        self._group_index(group)
        if isinstance(eps, str):
            raise TypeError(f"eps={eps!r} is not a number; a group is named by group={eps!r}")
        if eps is not None and not entry.has_threshold:
            raise ValueError(f"eps={eps} belongs to the overlap, not to observable={entry.name!r}")
        lack = self._lack(entry, inputs, group)
        if lack is not None:
            raise lack
        by_row = entry.of_one_pair(inputs)
        arguments = [self._input(name, group, eps, by_row) for name in inputs]
        if of_replicas is not None:
            arguments = [of_replicas(x) if np.ndim(x) == 3 else x for x in arguments]
        values = formula(*arguments)
        return self._matrix(values) if by_row else np.asarray(values)

    def _lack(self, entry: Observable, inputs: Sequence[str], group: str) -> Exception | None:
        """Return the error to raise if the record lacks an input of an observable or of its error, else None."""
        noise = series_name("gradient_noise", group)
        for name in inputs:
            if name in OBSERVABLES:
                found = self._lack(OBSERVABLES[name], OBSERVABLES[name].inputs, group)
                if found is not None:
                    return found
            elif name == "noise" and TableName("one_time", noise) not in self._tables:
                return KeyError(f"no one-time series {noise!r}; there are {quoted(self.one_time_names)}")
            elif name == "count" and not self.overlap_thresholds:
                return ValueError("no overlap thresholds were counted in this record")
            elif name not in (*NOT_SUMS, *self.sums):
                of = entry.name if inputs == entry.inputs else f"the standard error of {entry.name}"
                return ValueError(
                    f"{of} is made of the sum {name!r}, which this record does not have: its sums are "
                    f"{', '.join(self.sums)}"
                )
        if entry.over_replicas and (self.n_replica is None or self.n_replica < 2):
            return ValueError(
                f"n_replica={self.n_replica}: {entry.name} is a variance between replicas, and needs at least two"
            )
        return None

    def _input(self, name: str, group: str, eps: float | None, by_row: bool) -> Any:
        """Return an input of a formula. A sum has rows ``[n_row(, n_replica)]``, or is arranged as a matrix."""
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
        rows = self._tables[MOMENTS_TABLE].values[..., self._group_index(group), self._column(name, eps)]
        return rows if by_row else self._matrix(rows)

    def _column(self, name: str, eps: float | None) -> int:
        """Return the place of a sum, or of the count of a threshold, in the rows of the moments."""
        return len(self.sums) + self._threshold_index(eps) if name == "count" else self.sums.index(name)

    def _threshold_index(self, eps: float | None) -> int:
        if eps is None:
            return 0
        if eps in self.overlap_thresholds:
            return self.overlap_thresholds.index(eps)
        for i, threshold in enumerate(self.overlap_thresholds):
            if math.isclose(eps, threshold, rel_tol=1e-9):
                return i
        raise ValueError(f"eps={eps} was not counted; this record has {quoted(self.overlap_thresholds)}")

    def _matrix(self, rows: Array, keys: NDArray[np.int64] | None = None) -> Array:
        """Arrange rows ``[n_row(, n_replica)]`` as ``[(n_replica,) n_tw, n_lag]``, NaN if not measured."""
        keys = self._tables[MOMENTS_TABLE].keys if keys is None else keys
        waiting_times, lags = self.waiting_times, self.lags
        matrix = np.full((*rows.shape[1:], len(waiting_times), len(lags)), np.nan)
        matrix[..., np.searchsorted(waiting_times, keys[:, 0]), np.searchsorted(lags, keys[:, 1])] = rows.T
        return matrix

    def msd(self, group: str = "all", *, normalise: Literal["noise"] | None = None) -> Array:
        r"""Compute the mean squared displacement :math:`\Delta(t_w, t_w+t)`.

        See :func:`lightning_glassy.observables.msd`.

        Args:
            group: name of the group.
            normalise: ``"noise"`` for :func:`lightning_glassy.observables.normalised_msd`,
                :math:`\Delta(t_w, t_w+t)/D(t_w)`. D is :meth:`gradient_noise`.

        Returns:
            float64 ``[n_tw, n_lag]`` (with replicas ``[n_replica, n_tw, n_lag]``), NaN if not measured.

        Raises:
            KeyError: the record does not have the group or, with ``normalise``, no gradient noise of the group.
            ValueError: ``normalise`` is neither ``"noise"`` nor None.
        """
        if normalise not in (None, "noise"):
            raise ValueError(f"normalise={normalise!r} is neither 'noise' nor None")
        return self.observable("msd" if normalise is None else "normalised_msd", group)

    def relative_displacement(self, group: str = "all") -> Array:
        r"""Compute the rms displacement over the rms weight at the waiting time, a plain number.

        See :func:`lightning_glassy.observables.relative_displacement`. Shapes and errors are as in :meth:`msd`.
        """
        return self.observable("relative_displacement", group)

    def correlation(self, group: str = "all", kind: CorrelationKind = "raw") -> Array:
        """Compute the two-time correlation, ``"raw"``, ``"cosine"``, ``"centred"`` or ``"pearson"``.

        See :func:`lightning_glassy.observables.correlation`. Shapes and errors are as in :meth:`msd`.

        Raises:
            ValueError: ``kind`` is none of the four.
        """
        if kind not in get_args(CorrelationKind):
            raise ValueError(f"kind={kind!r} is not one of {', '.join(map(repr, get_args(CorrelationKind)))}")
        return self.observable(f"correlation_{kind}", group)

    def decorrelation(self, group: str = "all") -> Array:
        """Compute one minus the cosine correlation, without loss of digits at short lags.

        See :func:`lightning_glassy.observables.decorrelation`. Shapes and errors are as in :meth:`msd`.
        """
        return self.observable("decorrelation", group)

    def overlap(self, eps: float | None = None, group: str = "all") -> Array:
        r"""Compute the fraction of coordinates with :math:`|w - s| \le \epsilon`.

        See :func:`lightning_glassy.observables.overlap`. Shapes and errors are as in :meth:`msd`.

        Args:
            eps: one of :attr:`overlap_thresholds`, default the first (smallest).
            group: name of the group.

        Raises:
            ValueError: the threshold was not counted during the run.
        """
        return self.observable("overlap", group, eps=eps)

    def non_gaussian(self, group: str = "all") -> Array:
        r"""Compute the non-Gaussian parameter :math:`\alpha_2`.

        See :func:`lightning_glassy.observables.non_gaussian`. Shapes and errors are as in :meth:`msd`.
        """
        return self.observable("non_gaussian", group)

    def binder_cumulant(self, group: str = "all") -> Array:
        r"""Compute the Binder cumulant of the displacements, :math:`-\alpha_2`.

        See :func:`lightning_glassy.observables.binder_cumulant`. Shapes and errors are as in :meth:`msd`.
        """
        return self.observable("binder_cumulant", group)

    def local_exponent(self, group: str = "all") -> Array:
        r"""Compute the local exponent :math:`\partial\ln\Delta/\partial\ln t`.

        See :func:`lightning_glassy.observables.local_exponent`. Shapes and errors are as in :meth:`msd`.
        """
        return self.observable("local_exponent", group)

    def response(self) -> Array:
        r"""Compute the integrated response :math:`\chi(t_w+t, t_w)` of all parameters to a field since :math:`t_w`.

        :class:`~lightning_glassy.ResponseMonitor` measures it. See :func:`lightning_glassy.observables.response`.

        Returns:
            float64 ``[(n_replica,) n_tw, n_lag]``, NaN if not measured.

        Raises:
            ValueError: the record has no response.
        """
        total, _, h = self.response_columns()
        return observables.response(total, h, self._n_parameters["all"])

    def response_error(self) -> Array:
        """Compute a bound of the error of each response over random fields.

        See :func:`lightning_glassy.observables.response_error`. It does not include the scatter between runs.

        Raises:
            ValueError: the record has no response.
        """
        total, d2, h = self.response_columns()
        return observables.response_error(total, d2, h, self._n_parameters["all"])

    def response_columns(self) -> tuple[Array, Array, Array]:
        r"""Return the measured sums of the response, each ``[(n_replica,) n_tw, n_lag]``, NaN if not measured.

        They are :math:`\sum_i\epsilon_i(w^h_i - w_i)`, :math:`\sum_i(w^h_i - w_i)^2`, and the strength h of the field.

        Raises:
            ValueError: the record has no response.
        """
        if RESPONSE_TABLE not in self._tables:
            raise ValueError("no response to a field was measured in this record: train with a ResponseMonitor")
        table = self._tables[RESPONSE_TABLE]
        measured = [tuple(key) in self for key in table.keys.tolist()]
        rows, keys = table.values[measured], table.keys[measured]
        total, d2, h = (self._matrix(rows[..., column], keys) for column in range(len(RESPONSES)))
        return total, d2, h

    def chi4(
        self, group: str = "all", *, quantity: Literal["overlap", "correlation"] = "overlap", eps: float | None = None
    ) -> Array:
        r"""Compute the dynamical susceptibility :math:`\chi_4(t_w, t_w+t) = N\,\mathrm{Var}_{replicas}(Q)`.

        It measures how much the relaxation differs between replicas. It is of the order of 1 if coordinates move
        independently of each other. Otherwise it is of the order of the number of coordinates that move together. See
        :func:`lightning_glassy.observables.chi4`.

        Args:
            group: name of the group.
            quantity: ``"overlap"`` for :math:`Q_\epsilon`, ``"correlation"`` for the raw correlation C.
            eps: threshold of the overlap, as in :meth:`overlap`.

        Returns:
            float64 ``[n_tw, n_lag]``. N is the number of coordinates that were measured.

        Raises:
            ValueError: the record has fewer than two replicas, or there is no such quantity.
        """
        return self.observable(_chi4_name(quantity), group, eps=eps)

    def chi4_error(
        self, group: str = "all", *, quantity: Literal["overlap", "correlation"] = "overlap", eps: float | None = None
    ) -> Array:
        """Compute the standard error of :meth:`chi4`, by the jackknife over replicas.

        Arguments, shapes and errors are as in :meth:`chi4`. The error is NaN with two replicas: they give a variance,
        but not the error of the variance.
        """
        return self.standard_error(_chi4_name(quantity), group, eps=eps)

    def mean(self, name: str, group: str = "all", *, eps: float | None = None) -> Array:
        r"""Compute the mean of any observable over the replicas, by name. :meth:`sem` is its standard error.

        An observable is defined for one run, as an average over the coordinates. This method averages the values of the
        replicas, even for a ratio such as the cosine correlation, the decorrelation, :math:`\alpha_2` or
        :math:`\Delta/D`. The mean is the expected value in one run. An observable of sums that are pooled over replicas
        differs from the mean by a term of the order 1/N. There are two exceptions:

        * The local exponent is computed from the mean MSD, because the logarithm of a noisy curve is biased.
        * :math:`\chi_4` compares the replicas, and has one value.

        There is no median. Theory predicts means, a fit uses means, and the error of a median of a few replicas is
        poorly known. ``np.median(record.observable(name), axis=0)`` is the median of the replicas.

        Args:
            name: name of the observable.
            group: name of the group.
            eps: threshold of the overlap, as in :meth:`observable`.

        Returns:
            float64 ``[n_tw, n_lag]``. For a single run, it is the value itself. It is NaN at a pair that was not
            measured. It is not finite at a pair if a replica has diverged and is not finite there.

        Raises:
            KeyError: as in :meth:`observable`.
            ValueError: as in :meth:`observable`.

        Example:
            >>> walks = np.cumsum(np.random.default_rng(0).normal(size=(8, 11, 100)), axis=1)
            >>> record = AgingRecord.from_trajectory(walks, times=range(11))
            >>> bool(abs(record.mean("msd")[0, 0] - 1) < 3 * record.sem("msd")[0, 0])
            True
        """
        entry = observables.find(name, argument="name")
        if self.n_replica is None or entry.over_replicas:
            return self.observable(name, group, eps=eps)
        if entry.of_mean:
            return self._at_replicas(entry, group, eps, lambda values: values.mean(axis=0))
        return over_replicas(self.observable(name, group, eps=eps))[0]

    def sem(self, name: str, group: str = "all", *, eps: float | None = None) -> Array:
        r"""Compute the standard error of :meth:`mean` from the scatter of the replicas.

        It is :math:`s/\sqrt{R}` with the standard deviation s over R replicas. For the local exponent and for
        :math:`\chi_4`, it is the jackknife over replicas. For a mean over the replicas, both formulas agree.

        If runs of one model sample the same number of coordinates, they sample the same coordinates. The scatter of the
        replicas then lacks the shared part of the sampling error. :meth:`standard_error` is the sampling error of one
        run. The error of the mean over all coordinates is at most
        :math:`\sqrt{\mathrm{sem}^2 + \mathrm{standard\_error}^2}`. Without a sample, ``sem`` is the whole error.

        Replicas that start from the same weights (clones) differ by their noise alone. Their scatter then lacks the
        scatter of the starts. The error of :math:`\Delta/D` lacks the error of D, because a record keeps the mean of D.

        Args:
            name: name of the observable.
            group: name of the group.
            eps: threshold of the overlap, as in :meth:`observable`.

        Returns:
            float64 ``[n_tw, n_lag]``, NaN where :meth:`mean` is not finite. The error of :math:`\chi_4` is NaN with two
            replicas.

        Raises:
            KeyError: as in :meth:`observable`.
            ValueError: as in :meth:`observable`, there is a single run, or two replicas are :attr:`copies`.
        """
        entry = observables.find(name, argument="name")
        if self.n_replica is None or self.n_replica < 2:
            raise ValueError(
                f"n_replica={self.n_replica}: one run has no scatter between replicas, so {name} has no error from it. "
                "Train several runs, with ReplicaEnsemble or joined by AgingRecord.concat"
            )
        self._refuse_copies()
        if entry.over_replicas and entry.error is not None:
            return self.standard_error(name, group, eps=eps)
        if entry.over_replicas or entry.of_mean:

            def without(values: Array, replica: int) -> Array:
                others = np.delete(values, replica, axis=0)
                return others.mean(axis=0) if entry.of_mean else others

            return jackknife_error(
                [self._at_replicas(entry, group, eps, partial(without, replica=r)) for r in range(self.n_replica)]
            )
        return over_replicas(self.observable(name, group, eps=eps))[1]

    def _at_replicas(
        self, entry: Observable, group: str, eps: float | None, of_replicas: Callable[[Array], Array]
    ) -> Array:
        """Evaluate an observable after a function of each input that has an axis of replicas."""
        with np.errstate(all="ignore"):
            return self._evaluate(entry, entry.formula, entry.inputs, group, eps, of_replicas)

    def _refuse_copies(self) -> None:
        if found := self.copies:
            raise ValueError(
                f"{combine.copies_in_words(found)}: their scatter is no error. Train each replica with a seed of its "
                "own, or use record.independent()"
            )

    @property
    def copies(self) -> list[tuple[int, int]]:
        r"""Pairs of replicas that are one run: the numbers of a replica, and of an earlier replica that it repeats.

        All measured sums of the two agree to 1 in 100,000 of their largest value. The sums of independent networks of N
        weights differ by about :math:`\sqrt{2/N}` of their value. Copies come from equal seeds, or from one run that
        was given twice.
        """
        if self.n_replica is None:
            return []
        values = self._tables[MOMENTS_TABLE].values  # the same array until a row is added
        if self._compared is None or self._compared[0] is not values:
            self._compared = values, combine.copies(self._tables[MOMENTS_TABLE])
        return list(self._compared[1])

    @property
    def clones(self) -> list[tuple[int, int]]:
        """Pairs of replicas that have the same weights at a waiting time, or nearly so, and are no :attr:`copies`.

        They come from :meth:`ReplicaEnsemble.clone_from`, from a ready network, or from equal seeds with batches in
        another order. The scatter of clones comes from their noise alone. Only neighbours in the order of their sums
        are paired. A system that conserves its sum of squares, such as a spin glass, has no clones here.
        """
        if self.n_replica is None or not len(self):
            return []
        n = np.array(list(self._n_sampled.values()), dtype=np.float64)
        repeated = {replica for replica, _ in self.copies}
        found = combine.clones(self._tables[MOMENTS_TABLE], self.sums, n)
        return [pair for pair in found if repeated.isdisjoint(pair)]

    @property
    def has_errors(self) -> bool:
        """Whether :meth:`sem` can be computed: there are at least two replicas, and no copies."""
        return self.n_replica is not None and self.n_replica > 1 and not self.copies

    def independent(self: AgingRecord) -> tuple[AgingRecord, list[str]]:
        """Leave out replicas that are :attr:`copies` of others, and replicas that have diverged from the start.

        A replica has diverged from the start if its displacement is finite at no pair. Such replicas are left out only
        if another replica has a finite displacement.

        Returns:
            The record of the other replicas, and a sentence for each reason. If there is nothing to leave out: the
            record itself and an empty list.
        """
        if self.n_replica is None or not len(self):
            return self, []
        table, doubts = self._tables[MOMENTS_TABLE], []
        repeated, broken = self.copies, combine.broken(table, self.sums)
        if repeated:
            doubts.append(f"{combine.copies_in_words(repeated)}: copies are left out")
        if broken:
            doubts.append(combine.broken_in_words(broken, self.n_replica))
        left_out = {replica for replica, _ in repeated} | set(broken)
        if not left_out:
            return self, []
        kept = [replica for replica in range(self.n_replica) if replica not in left_out]
        other = type(self)(**self._shape(), meta=self.meta, n_replica=len(kept))
        other._tables = {**self._tables, **combine.of_replicas(self._tables, kept)}
        return other, doubts

    def standard_error(self, name: str, group: str = "all", *, eps: float | None = None) -> Array:
        """Compute the sampling error of each run, or the error of chi_4. The error over replicas is :meth:`sem`.

        The error of ``"msd"`` and ``"overlap"`` is the *sampling error*: the sums are over a sample of the coordinates,
        and not over all. It is 0 without a sample. It describes each run alone, and not the scatter between runs. The
        error of ``"chi4"`` and ``"chi4_correlation"`` is the jackknife over replicas, :meth:`chi4_error`.

        Args:
            name: name of the observable.
            group: name of the group.
            eps: threshold of the overlap, as in :meth:`observable`.

        Returns:
            An array as from :meth:`observable`. It is NaN if the sample has fewer than two coordinates of the group.

        Raises:
            KeyError: as in :meth:`observable`.
            ValueError: as in :meth:`observable`, the observable has no formula for its error, or two of the replicas
                that it compares are one run (:attr:`copies`).
        """
        entry = observables.find(name, argument="name")
        if entry.error is None:
            known = [repr(o.name) for o in OBSERVABLES.values() if o.error is not None]
            raise ValueError(
                f"name={name!r}: there is a formula for the error of {', '.join(known)} only. The error of the mean "
                f"over replicas, of any observable, is record.sem({name!r})"
            )
        if entry.over_replicas:
            self._refuse_copies()
        elif self._n_sampled.get(group) == self._n_parameters.get(group):
            self.observable(name, group, eps=eps)  # raises as documented
            return self._matrix(np.zeros(self._tables[MOMENTS_TABLE].values.shape[:-2]))
        return self._evaluate(entry, *entry.error, group, eps)

    # ------------------------------------------------------------------ between replicas, and along the run

    def gradient_noise(self, steps: ArrayLike, group: str = "all") -> Array:
        r"""Return the strength of the gradient noise D at given steps, from the series ``"gradient_noise"``.

        :math:`D = \langle\|g_b\|^2\rangle - \|\langle g_b\rangle\|^2` over minibatches at fixed weights, summed over
        the parameters of the group (Baity-Jesi et al. 2018). Between measured steps, ln D is interpolated linearly in
        ln(1 + step). D is NaN before the first measured step and after the last. For a group other than ``"all"``, the
        series is ``"gradient_noise/<group>"``.

        Returns:
            float64, of the shape of ``steps``.

        Raises:
            KeyError: the record has no such series.
        """
        self._group_index(group)
        measured, noise = self.one_time(series_name("gradient_noise", group))
        positive = noise > 0
        if not positive.any():
            return np.full(np.shape(steps), np.nan)
        x, y = np.log1p(measured[positive]), np.log(noise[positive])
        wanted = np.log1p(np.asarray(steps, dtype=np.float64))
        return np.exp(np.interp(wanted, x, y, left=np.nan, right=np.nan))

    def replica_distance(self) -> tuple[NDArray[np.int64], Array]:
        r"""Mean squared distance between replicas, :math:`d_{ab}(t) = \frac{1}{N}\sum_i [w_{a,i}(t) - w_{b,i}(t)]^2`.

        The distance between clones (:meth:`ReplicaEnsemble.clone_from`) grows from 0 with the time since cloning. It
        shows how fast different noise drives apart networks that start with equal weights.

        Returns:
            Steps ``[n]`` and values ``[n, n_replica, n_replica]``.

        Raises:
            KeyError: the record has no such matrices. Only replicas that are trained together are compared.
        """
        steps, sums = self.between("weight_distance")
        return steps, observables.msd(sums, self._n_sampled["all"])

    def replica_overlap(self) -> tuple[NDArray[np.int64], Array]:
        r"""Overlap of replicas a and b, :math:`q_{ab}(t) = \sum_i w_{a,i} w_{b,i} / (|w_a| |w_b|)` at the same step.

        A permutation of hidden units does not change the function of a network. Two networks with equal functions may
        therefore have an overlap near 0. See :class:`ReplicaOverlap` for the overlap of their predictions.

        Returns:
            Steps ``[n]`` and values ``[n, n_replica, n_replica]``, 1 on the diagonal.

        Raises:
            KeyError: as in :meth:`replica_distance`.
        """
        steps, products = self.between("weight_product")
        return steps, observables.replica_overlap(products)

    # ------------------------------------------------------------------ from a trajectory, and from several runs

    @classmethod
    def from_trajectory(
        cls,
        weights: ArrayLike,
        schedule: LogTimeSchedule | None = None,
        *,
        times: ArrayLike | None = None,
        n_replica: int | None = None,
        groups: Mapping[str, ArrayLike] | None = None,
        overlap_thresholds: Sequence[float] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> AgingRecord:
        """Make a record from a trajectory of weights in memory, in plain float64 NumPy.

        Use it for simulations and for testing. The method shares no code with the moments on the device, so that each
        can be checked against the other. NaN stays NaN.

        Args:
            weights: ``[n_frames, N]``, or ``[n_replica, n_frames, N]``. Reshape the coordinates of particles
                ``[n_frames, n_particle, 3]`` to ``[n_frames, 3 * n_particle]``.
            schedule: the pairs to measure. Pairs beyond the last frame, and pairs without two frames, are left out.
                ``None`` measures all pairs of frames.
            times: the step of each frame, increasing integers ``[n_frames]``. By default, frame k is at step k.
            n_replica: the number of replicas. It is needed only if N is 3 or less, because an array with three axes may
                then also hold the coordinates of particles.
            groups: for each name the coordinates of the group, as indices or a mask. ``"all"`` is added.
            overlap_thresholds: positive and increasing. The default is about a hundredth and a tenth of the standard
                deviation of the first frame.
            meta: metadata, stored unchanged beside the schedule.

        Raises:
            TypeError: the weights are masked, complex, or no numbers, or the times are not integers.
            ValueError: the shape is wrong or may mean coordinates of particles, the trajectory has one frame, a group
                is empty or called ``"all"``, the times do not increase, or no pair of the schedule has two frames.

        Example:
            >>> frames = np.array([[0.0], [1.0], [5.0]])
            >>> AgingRecord.from_trajectory(frames, times=[0, 10, 50]).msd().tolist()
            [[1.0, nan, 25.0], [nan, 16.0, nan]]
        """
        if not hasattr(schedule, "until") and schedule is not None:
            raise TypeError(
                f"schedule={schedule!r:.80} is not a LogTimeSchedule; the steps of the frames are times=..."
            )
        steps = combine.trajectory(weights, n_replica)
        frames = combine.frame_times(times, steps.shape)
        pairs = combine.frame_pairs(frames, None if schedule is None else schedule.until(int(frames[-1])).pairs)
        members = combine.members_of(groups or {}, steps.shape[-1])
        if overlap_thresholds is None:
            overlap_thresholds = observables.default_overlap_thresholds(float(np.std(steps[..., 0, :])))
        record = cls(
            {group: len(member) for group, member in members.items()},
            overlap_thresholds=overlap_thresholds,
            meta={**({} if schedule is None else {"schedule": repr(schedule)}), **(meta or {})},
            n_replica=steps.shape[0] if steps.ndim == 3 else None,
        )
        for (waiting_time, lag), (early, late) in pairs:
            w, s = steps[..., late, :], steps[..., early, :]
            record.append(waiting_time, lag, combine.moments_of(w, s, record.overlap_thresholds, members.values()))
        return record

    @classmethod
    def concat(cls, records: Sequence[AgingRecord], *, common: bool = False) -> AgingRecord:
        """Join independent runs of the same model and schedule into one record with a replica axis.

        Args:
            records: runs, or sets of replicas, in the order of the replica axis.
            common: use only the pairs of times and the steps of series that all runs have. Use it if a run was cut
                short. By default, all runs must have the same pairs.

        Returns:
            A record whose observables are ``[n_replica, n_tw, n_lag]``. It has the metadata of the first run, the
            metadata of all runs under ``"replicas"``, and the :attr:`doubts` of all runs. A one-time series is kept, as
            the mean over the replicas, if all runs have it at the same steps. The standard error of this mean is the
            series ``<name>_error``, unless the runs have a series of this name. A response is kept if
            all runs have it at the same pairs. The method leaves out profiles, matrices between the replicas of one
            record, and overlap thresholds that not all runs have.

        Raises:
            TypeError: ``records`` is not a list of records.
            ValueError: there are no records, runs do not match, or one run is given twice (:attr:`copies`). The message
                names the mismatch: the parameters, the measured sums or pairs, the thresholds (no common one), or an
                entry of the metadata, such as the module, the optimisers or the batches.
        """
        if not isinstance(records, (list, tuple)) or not all(isinstance(record, AgingRecord) for record in records):
            raise TypeError("records must be a list of AgingRecord")
        if not records:
            raise ValueError("records is empty: give at least one")
        shared = set(records[0].overlap_thresholds).intersection(*(record.overlap_thresholds for record in records))
        if shared:  # otherwise the check below names the mismatch
            records = [r if shared == set(r.overlap_thresholds) else r.with_thresholds(sorted(shared)) for r in records]
        combine.check_replicas([record._shape() for record in records], [record.meta for record in records])
        first = records[0]
        merged = cls(
            **first._shape(),
            meta={**first.meta, "replicas": [record.meta for record in records]},
            n_replica=sum(record.n_replica or 1 for record in records),
        )
        for doubt in (doubt for record in records for doubt in record.doubts):
            merged.add_doubt(doubt)
        runs = [
            record._tables if record.n_replica is not None else combine.with_replica_axis(record._tables)
            for record in records
        ]
        merged._tables = combine.concatenated(combine.in_common(runs) if common else runs)
        combine.check_trainings([record.meta for record in records])
        return merged

    # ------------------------------------------------------------------ other formats

    def table(
        self,
        pairs: Iterable[tuple[int, int]] | None = None,
        columns: Iterable[str] | None = None,
        *,
        sem: bool = False,
    ) -> dict[str, list[Any]]:
        """Return the record in long form: one line per group, replica and pair, in this order.

        There is one column per observable, or one per threshold. An observable of more than one pair of times, or of
        more than one replica, has no column.

        Args:
            pairs: the pairs ``(waiting time, lag)`` to include, default all, sorted.
            columns: names of the columns of observables to include, default all of :meth:`columns`.
            sem: whether the standard error of each observable over the replicas follows as ``<name>_sem``, the same in
                the lines of all replicas of a pair (:meth:`sem`).

        Returns:
            The values of each column: (replica,) waiting_time, lag, step, group, n_parameters, then the observables.

        Raises:
            KeyError: a pair was not measured, or there is no such column.
        """
        return {name: column.ravel().tolist() for name, column in self._long_form(pairs, columns, sem=sem).items()}

    def mean_table(
        self,
        pairs: Iterable[tuple[int, int]] | None = None,
        columns: Iterable[str] | None = None,
        groups: Iterable[str] | None = None,
    ) -> dict[str, list[Any]]:
        """Return the :meth:`table` with one line for the mean over the replicas, instead of one line per replica.

        Without ``columns``, the standard error of each mean follows as ``<name>_sem``, as in :meth:`sem`. These columns
        are left out for a single run, and if replicas are :attr:`copies`. The table has the lines of ``groups``,
        default all.

        Raises:
            KeyError: as in :meth:`table`, or there is no such group.
        """
        sem = columns is None and self.has_errors
        found = self._long_form(pairs, columns, groups, mean=True, sem=sem)
        return {name: column.ravel().tolist() for name, column in found.items()}

    def _long_form(
        self,
        pairs: Iterable[tuple[int, int]] | None,
        columns: Iterable[str] | None,
        groups: Iterable[str] | None = None,
        *,
        mean: bool = False,
        sem: bool = False,
    ) -> dict[str, NDArray[Any]]:
        table = self._tables[MOMENTS_TABLE]
        part = table if pairs is None else table.only(map(tuple, pairs))
        wanted = self.columns()
        if columns is not None:
            wanted = {name: wanted[name] for name in columns}
        rows = part.values if self.n_replica is not None else part.values[:, None]
        names = list(self._n_parameters if groups is None else groups)
        if groups is not None:
            rows = rows[:, :, [self._group_index(group) for group in names]]
        moments = rows.T  # [n_moment, n_group, n_replica, n_row], for lines in this order
        sizes = {
            "n": np.array([self._n_sampled[group] for group in names], dtype=np.float64)[:, None, None],
            "population": np.array([self._n_parameters[group] for group in names])[:, None, None],
        }
        (n_group, n_replica), (waiting_times, lags) = moments.shape[1:3], part.keys.T
        axes: dict[str, Any] = {} if self.n_replica is None or mean else {"replica": np.arange(n_replica)[:, None]}
        axes |= {"waiting_time": waiting_times, "lag": lags, "step": waiting_times + lags}
        axes |= {"group": np.array(names, dtype=object)[:, None, None], "n_parameters": sizes["population"]}
        values: dict[str, Array] = {}
        errors: dict[str, Array] = {}
        for name, (entry, eps) in wanted.items():
            of = (sizes[i] if i in sizes else moments[self._column(i, eps)] for i in entry.inputs)
            values[name] = np.ascontiguousarray(entry.formula(*of))
            if self.n_replica is not None and (mean or sem):
                average, error = (part[:, None] for part in over_replicas(values[name].swapaxes(0, 1)))
                values |= {name: average} if mean else {}
                errors |= {f"{name}_sem": error} if sem else {}
        values |= errors
        shape = (n_group, 1 if mean else n_replica, len(part))
        return {name: np.broadcast_to(column, shape) for name, column in (axes | values).items()}

    def columns(self) -> dict[str, tuple[Observable, float | None]]:
        """Return the observables in a :meth:`table` and their thresholds, by the names of their columns.

        An observable with a threshold has one column per threshold, such as ``overlap_0.001``. Observables of more than
        one pair of times, or of more than one replica, are left out.
        """
        short = {f"{eps:.6g}" for eps in self.overlap_thresholds}
        available = self.available()
        form = ".6g" if len(short) == len(self.overlap_thresholds) else ""  # in full if rounding made two equal
        return {
            name if eps is None else f"{name}_{eps:{form}}": (entry, eps)
            for name, entry in OBSERVABLES.items()
            if entry.pairwise and name in available
            for eps in (self.overlap_thresholds if entry.has_threshold else (None,))
        }

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the :meth:`table` to a CSV file atomically, with the errors over replicas. Return the path.

        If the name of a group begins like a formula of a spreadsheet (``=``, ``+``, ``-``, ``@`` or a tab), it gets an
        apostrophe in front.
        """
        return convert.write_csv(self._long_form(None, None, sem=self.has_errors), Path(path))

    def to_pandas(self) -> pandas.DataFrame:
        """Return the :meth:`table` as a pandas data frame.

        Raises:
            ImportError: pandas is missing. The extra ``analysis`` installs it.
        """
        return convert.data_frame(self.table())

    def to_xarray(self) -> xarray.Dataset:
        """Return all observables over the dimensions ``(eps,) group, (replica,) waiting_time, lag``.

        An observable that only some groups have is NaN for the other groups. The error of a mean over the replicas is
        :meth:`sem`.

        Raises:
            ImportError: xarray is missing. The extra ``analysis`` installs it.
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


def without_cut_short(records: Sequence[AgingRecord]) -> tuple[list[int], str | None]:
    """Find the runs that were cut short, for example killed early, among runs that are to be joined as replicas.

    A run is cut short if it has all pairs of the complete runs up to its last step, and none after it. It is left out
    if two or more complete runs remain. The complete runs end at the same step and have the same pairs. Otherwise
    :meth:`AgingRecord.concat` decides whether the runs match.

    Args:
        records: at least one.

    Returns:
        The places of the runs to join, and a sentence about the runs that are left out, with ``records[i]`` for their
        names, or None.

    Raises:
        ValueError: a run to leave out is of another model or training than the others.
    """
    moments = [record._tables[MOMENTS_TABLE] for record in records]
    kept = combine.complete(moments)
    if len(kept) == len(records):
        return kept, None
    shapes = [{key: value for key, value in r._shape().items() if key != "overlap_thresholds"} for r in records]
    combine.check_replicas(shapes, [record.meta for record in records])
    return kept, combine.left_out_in_words(moments, kept)


def _chi4_name(quantity: str) -> str:
    names = {"overlap": "chi4", "correlation": "chi4_correlation"}
    if quantity not in names:
        raise ValueError(f"quantity={quantity!r} is neither 'overlap' nor 'correlation'")
    return names[quantity]


def series_name(name: str, group: str) -> str:
    """Return the name of the one-time series of a quantity that each group has, such as ``"gradient_noise/<group>"``.

    The series of the group ``"all"`` has the name of the quantity.
    """
    return name if group == "all" else f"{name}/{group}"

"""The two-time moments of a training that is over, from the checkpoints it left: each file against each later one.

A file is read as data. Nothing in it is executed; its tensors are mapped into memory, not loaded.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_glassy.measure.checkpoint_files import (
    NOT_FLOATING,
    Checkpoint,
    Content,
    Forms,
    existing_files,
    forms_of,
    given_steps,
    survey,
)
from lightning_glassy.measure.layout import TrackedParameters, within_rounding
from lightning_glassy.measure.moments import EagerMoments, capture
from lightning_glassy.measure.select import Groups, select_parameters
from lightning_glassy.measure.snapshots import Snapshot, SnapshotBank
from lightning_glassy.measure.tracker import check_options
from lightning_glassy.observables import default_overlap_thresholds
from lightning_glassy.record import MOMENTS, AgingRecord

log = logging.getLogger(__name__)


def measure_checkpoints(
    paths: Sequence[str | os.PathLike[str]],
    *,
    steps: Sequence[int] | None = None,
    groups: Groups = "all",
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    overlap_thresholds: Sequence[float] | Literal["auto"] = "auto",
    key: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> AgingRecord:
    r"""Measure how the weights moved between the checkpoints of one training, as ``AgingMonitor`` does while it runs.

    With :math:`w(n)` the weights saved at step :math:`n`, the moments of :math:`w(t_w + t)` against :math:`w(t_w)` are
    summed for every pair of checkpoints: the earlier one's step is the waiting time :math:`t_w`, the difference the
    lag :math:`t`, both in completed optimiser updates. They are the sums that a tracker would have made at these
    steps, :math:`\Delta(t_w, t_w+t) = \frac{1}{N}\sum_i [w_i(t_w+t) - w_i(t_w)]^2` among them. For aging curves the
    steps should be spaced logarithmically.

    Read are Lightning checkpoints, files that ``torch.save`` made of a ``state_dict`` (bare, or one level below a key
    such as ``"model"``), and ``.safetensors``. n checkpoints are n(n-1)/2 pairs; one copy of the weights is in memory,
    compared with one file at a time, which must not change meanwhile.

    A checkpoint does not tell parameters from other floating-point tensors, nor trained from frozen ones. The running
    statistics of normalisation layers and tensors of integers are left out (counted in ``meta["left_out"]``); other
    buffers, and what was frozen, should be named by ``exclude``, lest they count as weights that do not move.

    Args:
        paths: the files, at least two, in any order.
        steps: the step of each file. Default: the ``global_step`` in it (Lightning); else the number in its name
            (``step=400``, ``iter400``, ``checkpoint-400``, or the only integer there), or after such a word in the name
            of its directory. An epoch is no step.
        groups: ``"all"``, ``"layer"`` (one group per module), or a mapping of group names to name patterns.
        include: measure only tensors whose name matches one of these shell patterns; default all.
        exclude: do not measure tensors whose name matches one of these.
        overlap_thresholds: the epsilons of the overlap, positive and increasing; ``"auto"`` for about a hundredth and a
            tenth of the standard deviation of the weights in the earliest checkpoint.
        key: where in each file the ``state_dict`` is, if there are several.
        progress: called with the number of pairs done and that of all: ``(0, total)``, ..., ``(total, total)``.

    Returns:
        A record of all pairs. ``meta`` has the names of the files and their steps; of Lightning checkpoints also the
        version and the options of the optimisers, and the record has the one-time series ``learning_rate``
        (``learning_rate_<i>_<j>`` for the parameter group j of the optimiser i where there are several).

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a ``.safetensors`` file, and the package safetensors is missing.
        TypeError: an argument of another type.
        ValueError: fewer than two files, a step that is unknown, negative or there twice, a file that is damaged, that
            is no checkpoint, that is sharded or that needs code to be run, tensors that differ in name, shape or dtype
            between the files, or an argument out of its range. The message names the file and the remedy.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     files = [f"{folder}/model_step={step}.pt" for step in (0, 10, 100)]
        ...     for i, file in enumerate(files):
        ...         torch.save({"weight": torch.full((3, 2), float(i))}, file)
        ...     record = measure_checkpoints(files)
        >>> record.waiting_times, record.lags
        (array([ 0, 10]), array([ 10,  90, 100]))
        >>> record.msd()
        array([[ 1., nan,  4.],
               [nan,  1., nan]])
    """
    check_options(groups, include, exclude, None, None, None, overlap_thresholds, "full")
    if not isinstance(key, (str, type(None))):
        raise TypeError(f"key={key!r} is not a name or None")
    if progress is not None and not callable(progress):
        raise TypeError(f"progress={progress!r} is not a function of the pairs done and of all")
    files = existing_files(paths)
    given = given_steps(steps, files)
    found = [survey(file, key, None if given is None else given[i]) for i, file in enumerate(files)]
    checkpoints = sorted(found, key=lambda checkpoint: checkpoint.step)
    for a, b in itertools.pairwise(checkpoints):
        if a.step == b.step:
            raise ValueError(f"{a.path} and {b.path} are both of step {a.step}: leave one out, or give steps=[...]")

    layout = _Layout(checkpoints[0], key, groups, include, exclude)
    for checkpoint in checkpoints:
        layout.check(checkpoint.path, checkpoint.forms)
    record = _new_record(checkpoints, layout, overlap_thresholds)
    done, total = 0, len(checkpoints) * (len(checkpoints) - 1) // 2
    if progress is not None:
        progress(done, total)
    for i, earlier in enumerate(checkpoints[:-1]):
        snapshot = _capture(layout.read(earlier.path), earlier.step)
        for later in checkpoints[i + 1 :]:
            moments = _moments(layout.read(later.path), snapshot, record.overlap_thresholds)
            record.append(earlier.step, later.step - earlier.step, moments)
            done += 1
            if progress is not None:
                progress(done, total)
        del snapshot  # before the next file is opened
    _warn(record, layout.resolution)
    return record


def _capture(parameters: TrackedParameters, step: int) -> Snapshot:
    return capture(SnapshotBank(parameters), step, EagerMoments(parameters))


def _moments(parameters: TrackedParameters, snapshot: Snapshot, thresholds: Sequence[float]) -> NDArray[np.float64]:
    """The sums of one pair, ``[n_group, n_moment]``."""
    buckets = [sums.numpy() for sums in EagerMoments(parameters, thresholds)([snapshot])]
    return parameters.by_group(buckets)[:, 0]


def _warn(record: AgingRecord, resolution: float) -> None:
    """Say in words what a curve would not show by itself."""
    d2, s2 = (record.moments[:, 0, MOMENTS.index(name)] for name in ("d2", "s2"))
    finite = np.isfinite(d2)
    if not finite.all():
        log.warning("the weights are not finite in %d of %d pairs; recorded as they are", (~finite).sum(), len(d2))
    hidden = finite & within_rounding(d2, s2, resolution)
    if hidden.any():
        log.warning(
            "in %d of %d pairs the mean squared displacement is within the rounding of the weights' own dtype: a "
            "plateau there is not physics",
            hidden.sum(),
            len(d2),
        )


def _new_record(
    checkpoints: list[Checkpoint], layout: _Layout, overlap_thresholds: Sequence[float] | str
) -> AgingRecord:
    first, parameters = checkpoints[0], layout.read(checkpoints[0].path)
    if isinstance(overlap_thresholds, str):
        overlap_thresholds = default_overlap_thresholds(parameters.standard_deviation())
    meta: dict[str, Any] = {
        "source": "checkpoints",
        "files": [checkpoint.path.name for checkpoint in checkpoints],
        "steps": [checkpoint.step for checkpoint in checkpoints],
        "max_step": checkpoints[-1].step,
        "dtypes": {name: str(dtype).removeprefix("torch.") for name, dtype in parameters.dtypes.items()},
        "moments": "full",
        "left_out": first.left_out,
    }
    if first.lightning_version is not None:
        meta["versions"] = {"lightning": first.lightning_version}
    if first.optimizers:
        meta["optimizers"] = first.optimizers
    record = AgingRecord(parameters.n_parameters, overlap_thresholds=overlap_thresholds, meta=meta)
    for checkpoint in checkpoints:
        for name, rate in checkpoint.learning_rates.items():
            record.append_one_time(name, checkpoint.step, rate)
    return record


# ---------------------------------------------------------------------- which tensors


class _Layout:
    """Which tensors are measured, in which groups: that of the earliest checkpoint, which the others must share.

    Tied tensors (of one memory in this file) are counted once.
    """

    def __init__(
        self,
        first: Checkpoint,
        key: str | None,
        groups: Groups,
        include: str | Sequence[str] | None,
        exclude: str | Sequence[str] | None,
    ) -> None:
        self._path, self._names, self._key = first.path, set(first.forms), key
        self._include = ["*"] if include is None else [include] if isinstance(include, str) else list(include)
        self._exclude = [] if exclude is None else [exclude] if isinstance(exclude, str) else list(exclude)
        weights = Content(first.path, key).weights
        try:
            selected = select_parameters(
                ((name, tensor.requires_grad_()) for name, tensor in weights.items()),
                groups=groups,
                include=include,
                exclude=exclude,
            )
        except ValueError as error:
            raise ValueError(f"{first.path}: {error}") from None
        # Without their memory.
        meta = {p.name: torch.empty_like(weights[p.name], device="meta") for p in selected}
        self._selected = [replace(p, tensor=meta[p.name]) for p in selected]
        self._forms = forms_of(meta)
        self.resolution = TrackedParameters(self._selected).resolution["all"]
        n = sum(p.numel for p in self._selected)
        if first.n_not_floating > n:
            log.warning(
                "%s: %d coordinates are %s and left out; only %d are measured",
                first.path,
                first.n_not_floating,
                NOT_FLOATING,
                n,
            )

    def read(self, path: Path) -> TrackedParameters:
        """The tensors of another checkpoint, in the same order."""
        weights = Content(path, self._key).weights
        self.check(path, forms_of(weights))
        # Contiguous, since coordinates are walked as they lie in memory, which may differ between files.
        return TrackedParameters([replace(p, tensor=weights[p.name].contiguous()) for p in self._selected])

    def check(self, path: Path, forms: Forms) -> None:
        """Refuse a checkpoint that is of other tensors."""
        for name, form in self._forms.items():
            if name not in forms:
                raise ValueError(
                    f"the tensor {name!r} is in {self._path} and not in {path}: measure checkpoints of one model, or "
                    f"leave it out with exclude={name!r}"
                )
            if forms[name] != form:
                (a, dtype_a), (b, dtype_b) = form, forms[name]
                raise ValueError(
                    f"the tensor {name!r} is {a} {dtype_a} in {self._path} and {b} {dtype_b} in {path}: measure "
                    f"checkpoints of one model and one precision, or leave it out with exclude={name!r}"
                )
        for name in forms:
            if name not in self._names and _matches(name, self._include) and not _matches(name, self._exclude):
                raise ValueError(
                    f"the tensor {name!r} is in {path} and not in {self._path}: measure checkpoints of one model, or "
                    "name what they share with include=[...]"
                )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)

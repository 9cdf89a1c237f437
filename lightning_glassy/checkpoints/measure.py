"""Measure the two-time moments of a finished training from its checkpoints: each file against each later file.

A file is read as data, and nothing in it is executed. Its tensors are mapped into memory, not loaded. Files that torch
wrote before version 1.6 cannot be mapped and are loaded.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_glassy.checkpoints.files import (
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
from lightning_glassy.measure.select import Groups, matches, patterns_of, select_parameters
from lightning_glassy.measure.snapshots import Snapshot, SnapshotBank
from lightning_glassy.measure.tracker import TrackerOptions, check_options
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
    r"""Measure how the weights moved between the checkpoints of one training.

    The record holds the sums that ``AgingMonitor`` would have made at these steps during the training. Let :math:`w(n)`
    be the weights saved at step :math:`n`. For every pair of checkpoints, the moments of :math:`w(t_w + t)` against
    :math:`w(t_w)` are summed. The waiting time :math:`t_w` is the step of the earlier checkpoint, and the lag :math:`t`
    is the difference of the two steps. Both count completed optimiser updates. One of the moments gives the mean
    squared displacement, :math:`\Delta(t_w, t_w+t) = \frac{1}{N}\sum_i [w_i(t_w+t) - w_i(t_w)]^2`. For aging curves,
    use checkpoints at logarithmically spaced steps.

    The function reads Lightning checkpoints, ``.safetensors`` files, and files in which ``torch.save`` stored a
    ``state_dict`` (bare, or one level below a key such as ``"model"``). n checkpoints give n(n-1)/2 pairs. Memory holds
    one copy of the weights, which is compared with one file at a time. Do not change the files meanwhile.

    Integer tensors and the running statistics of normalisation layers are left out, and ``meta["left_out"]`` counts
    them. Name other buffers and frozen parameters in ``exclude``. Otherwise they count as weights that do not move,
    because a checkpoint does not show which floating-point tensors are parameters, and which parameters were trained.

    Args:
        paths: the files, at least two, in any order.
        steps: the step of each file. Default: the ``global_step`` in the file (Lightning), else the number in its name
            (``step=400``, ``iter400``, ``checkpoint-400``, or the only integer in it), else the number after such a
            word in the name of its directory. An epoch is no step.
        groups: ``"all"``, ``"layer"`` (one group per module), or a mapping of group names to name patterns.
        include: measure only tensors whose name matches one of these shell patterns. Default: all tensors.
        exclude: do not measure tensors whose name matches one of these shell patterns.
        overlap_thresholds: the epsilons of the overlap, positive and increasing. ``"auto"`` takes about a hundredth and
            a tenth of the standard deviation of the weights in the earliest checkpoint.
        key: the key of the ``state_dict`` in each file, if a file has several.
        progress: called with the number of finished pairs and the number of all pairs: ``(0, total)``, ...,
            ``(total, total)``.

    Returns:
        A record of all pairs. ``meta`` has the names of the files and their steps. If the earliest file is a Lightning
        checkpoint, ``meta`` also has its Lightning version and the options of its optimisers. The learning rates in
        Lightning checkpoints become one-time series: ``learning_rate`` for the first parameter group of the first
        optimiser, ``learning_rate_<i>_<j>`` for any other parameter group j of the optimiser i.

    Raises:
        FileNotFoundError: a file does not exist.
        ImportError: there is a ``.safetensors`` file, but the package safetensors is missing.
        TypeError: an argument has the wrong type.
        ValueError: there are fewer than two files, or another argument is out of its range. A step is unknown, negative
            or there twice. A file is damaged, is sharded, is no checkpoint, or needs code to be run. Tensors differ in
            name, shape or dtype between the files. The message names the file and the remedy.

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
    options: TrackerOptions = {"include": include, "exclude": exclude, "overlap_thresholds": overlap_thresholds}
    check_options(groups, options)
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
        del snapshot  # frees its memory before the next file is opened
    _warn(record, layout.resolution)
    return record


def _capture(parameters: TrackedParameters, step: int) -> Snapshot:
    return capture(SnapshotBank(parameters), step, EagerMoments(parameters))


def _moments(parameters: TrackedParameters, snapshot: Snapshot, thresholds: Sequence[float]) -> NDArray[np.float64]:
    """Return the sums of one pair, ``[n_group, n_moment]``."""
    buckets = [sums.numpy() for sums in EagerMoments(parameters, thresholds)([snapshot])]
    return parameters.by_group(buckets)[:, 0]


def _warn(record: AgingRecord, resolution: float) -> None:
    """Log the doubts that a curve does not show: weights that are not finite, displacements within rounding."""
    d2, s2 = (record.moments[:, 0, MOMENTS.index(name)] for name in ("d2", "s2"))
    finite = np.isfinite(d2)
    if not finite.all():
        log.warning(
            "the weights are not finite in %d of %d pairs. They are recorded as they are", (~finite).sum(), len(d2)
        )
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
    """The measured tensors and their groups, taken from the earliest checkpoint. Later checkpoints must match them.

    Tied tensors, which share memory in the earliest file, are counted once.
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
        self._include = ["*"] if include is None else patterns_of(include)
        self._exclude = patterns_of(exclude)
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
        # Meta tensors keep shape and dtype, but no memory.
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
        """Return the measured tensors of a checkpoint, in the order of the earliest checkpoint."""
        weights = Content(path, self._key).weights
        self.check(path, forms_of(weights))
        # Coordinates are read in the order of memory. Contiguous tensors have the same order in all files.
        return TrackedParameters([replace(p, tensor=weights[p.name].contiguous()) for p in self._selected])

    def check(self, path: Path, forms: Forms) -> None:
        """Refuse a checkpoint with tensors of other names, shapes or dtypes."""
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
            if name not in self._names and matches([name], self._include) and not matches([name], self._exclude):
                raise ValueError(
                    f"the tensor {name!r} is in {path} and not in {self._path}: measure checkpoints of one model, or "
                    "name the common tensors with include=[...]"
                )

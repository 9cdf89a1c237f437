"""Measure the two-time moments of a finished training from its checkpoints, and read each checkpoint once."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_glassy.checkpoints.content import Content, short_names
from lightning_glassy.checkpoints.doubts import doubts_of_pairs
from lightning_glassy.checkpoints.handles import Handles
from lightning_glassy.checkpoints.layouts import find_checkpoints, open_checkpoint
from lightning_glassy.checkpoints.one_pass import plan, spread, sum_pairs
from lightning_glassy.checkpoints.pairs import Pairs, choose_pairs
from lightning_glassy.checkpoints.steps import Dated, doubts_of_steps, find_steps
from lightning_glassy.checkpoints.stored import Stored
from lightning_glassy.checkpoints.strided import overlapping
from lightning_glassy.checkpoints.unfinished import Unfinished
from lightning_glassy.checkpoints.weights import NOT_FLOATING, Agreed, Weights, agree, choose, same_weights
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.select import Groups
from lightning_glassy.measure.tracker import TrackerOptions, check_options
from lightning_glassy.observables import default_overlap_thresholds
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.text import listed

log = logging.getLogger(__name__)


def measure_checkpoints(
    paths: Sequence[str | os.PathLike[str]],
    *,
    steps: Sequence[int] | None = None,
    force_steps: bool = False,
    pairs: Pairs = "all",
    groups: Groups = "all",
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    keep_constant: bool = False,
    sample: int | None = None,
    overlap_thresholds: Sequence[float] | Literal["auto"] = "auto",
    key: str | None = None,
    unfinished: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> AgingRecord:
    r"""Measure how the weights moved between the checkpoints of one training.

    The record holds the sums that ``AgingMonitor`` would have made at these steps during the training. Let :math:`w(n)`
    be the weights saved at step :math:`n`. For every pair of checkpoints, the moments of :math:`w(t_w + t)` against
    :math:`w(t_w)` are summed. The waiting time :math:`t_w` is the step of the earlier checkpoint, and the lag :math:`t`
    is the difference of the two steps. Both count completed optimiser updates. One of the moments gives the mean
    squared displacement, :math:`\Delta(t_w, t_w+t) = \frac{1}{N}\sum_i [w_i(t_w+t) - w_i(t_w)]^2`. For aging curves,
    use checkpoints at logarithmically spaced steps.

    Each checkpoint is read once, block by block, and all pairs of a block are summed while it is in memory. Before this
    pass, the earliest checkpoint is read for the overlap thresholds, and tensors that may be constant or tied are
    compared. No code in a file is executed. Do not change the files during the call.

    The guide to checkpoints in the documentation lists the layouts of files and directories, and explains the choice of
    steps and weights.

    Args:
        paths: files or directories with at least two checkpoints, in any order. A path is a checkpoint, a shard of one,
            or a directory of checkpoints.
        steps: the step of each checkpoint, in the order of ``paths``. Default: the step inside the checkpoint, else a
            labelled number in its name (``step=400``, ``iter400``, ``checkpoint-400``), else a labelled number in the
            name of its branch or directory, else a bare number, if all names have one pattern. An epoch is not a step.
        force_steps: take ``steps`` even if they contradict the checkpoints or their names.
        pairs: ``"all"``, or ``"log"`` for the pairs nearest to a logarithmic grid with 3 waiting times and 10 lags per
            decade.
        groups: ``"all"``, ``"layer"`` (one group per module), or a mapping of group names to name patterns.
        include: measure only tensors whose name matches one of these shell patterns. Default: all tensors.
        exclude: do not measure tensors whose name matches one of these shell patterns.
        keep_constant: keep tensors that are bit-identical in all checkpoints. By default they are left out, because
            published checkpoints hold constants such as masks, which hide the motion of the weights.
        sample: number of coordinates to draw, the same ones in each checkpoint. Default: all coordinates.
        overlap_thresholds: the epsilons of the overlap, positive and increasing. ``"auto"`` takes about a hundredth and
            a tenth of the standard deviation of the weights in the earliest checkpoint. The function
            :func:`~lightning_glassy.observables.relative_overlap_thresholds` makes the thresholds of Winter and Janssen
            2024.
        key: the key of the ``state_dict`` in each file, if a file has several. Dots lead to nested ones.
        unfinished: a file that keeps the sums if the measurement is interrupted. The next call with the same arguments
            goes on from there, to the bit, and removes the file at its end.
        progress: called with the bytes that are summed and the bytes of all checkpoints: ``(0, total)``, ...,
            ``(total, total)``.

    Returns:
        A record of all pairs. ``meta`` has the checkpoints, their steps, the sources of the steps, and ``"doubts"``, in
        words. If the earliest file is a Lightning checkpoint, ``meta`` also has its Lightning version and the options
        of its optimisers. The learning rates in Lightning checkpoints become one-time series: ``learning_rate`` for the
        first parameter group of the first optimiser, ``learning_rate_<i>_<j>`` for any other parameter group j of the
        optimiser i.

    Raises:
        FileNotFoundError: a file does not exist.
        ImportError: there is a ``.safetensors`` file, but the package safetensors is missing.
        MemoryError: the sums of all pairs and groups do not fit in the free memory.
        OSError: a file cannot be read.
        TypeError: an argument has the wrong type.
        ValueError: there are fewer than two checkpoints, or another argument is out of its range. A step is unknown,
            negative or repeated. A file is damaged, is a part of a checkpoint, is no checkpoint, or needs code to be
            run. Tensors differ in name, shape or dtype between the files. The message names the file and the remedy.

    Example:
        >>> import torch
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
    chosen = Options(
        pairs=pairs,
        groups=groups,
        include=include,
        exclude=exclude,
        keep_constant=keep_constant,
        sample=sample,
        overlap_thresholds=overlap_thresholds,
        key=key,
    )
    if progress is not None and not callable(progress):
        raise TypeError(f"progress={progress!r} is not a function of the bytes done and of all bytes")
    with Checkpoints(paths, steps=steps, force_steps=force_steps) as checkpoints:
        return checkpoints.measure(chosen, unfinished=unfinished, progress=progress)


@dataclass(frozen=True)
class Options:
    """The options of :func:`measure_checkpoints` that define the measurement. They are checked when they are set."""

    pairs: Pairs = "all"
    groups: Groups = "all"
    include: str | Sequence[str] | None = None
    exclude: str | Sequence[str] | None = None
    keep_constant: bool = False
    sample: int | None = None
    overlap_thresholds: Sequence[float] | Literal["auto"] = "auto"
    key: str | None = None

    def __post_init__(self) -> None:
        options: TrackerOptions = {
            "include": self.include,
            "exclude": self.exclude,
            "sample": self.sample,
            "overlap_thresholds": self.overlap_thresholds,
        }
        check_options(self.groups, options)
        if isinstance(self.sample, str):
            raise ValueError(f"sample={self.sample!r} is not a number of coordinates or None")
        if not isinstance(self.key, (str, type(None))):
            raise TypeError(f"key={self.key!r} is not a name or None")
        if not isinstance(self.keep_constant, bool):
            raise TypeError(f"keep_constant={self.keep_constant!r} is not True or False")
        choose_pairs([], self.pairs)


class Checkpoints:
    """The checkpoints that some paths lead to, in the order of their steps. No tensor is read before :meth:`measure`.

    ``print`` shows the step of each checkpoint and where it was found.

    Args:
        paths: as in :func:`measure_checkpoints`.
        steps: as in :func:`measure_checkpoints`.
        force_steps: as in :func:`measure_checkpoints`.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        steps: Sequence[int] | None = None,
        force_steps: bool = False,
    ) -> None:
        if not isinstance(force_steps, bool):
            raise TypeError(f"force_steps={force_steps!r} is not True or False")
        found = find_checkpoints(paths)
        self._handles = Handles()
        try:
            contents = [open_checkpoint(one, self._handles) for one in found]
            dated = find_steps(contents, steps, force_steps)
        except BaseException:
            self._handles.close()
            raise
        both = sorted(zip(dated, contents, strict=True), key=lambda one: one[0].step)
        self._dated, self._contents = [one for one, _ in both], [content for _, content in both]

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._handles.close()

    def __str__(self) -> str:
        """Return a table of the steps, the checkpoints, and where each step was found."""
        names = short_names([content.path for content in self._contents])
        width, longest = len(f"{self._dated[-1].step:,}"), max(map(len, names))
        lines = [
            f"  step {one.step:>{width},}   {name:<{longest}}   {one.source}"
            for one, name in zip(self._dated, names, strict=True)
        ]
        return "\n".join([f"{len(lines)} checkpoints:", *lines])

    def measure(
        self,
        options: Options,
        *,
        unfinished: str | os.PathLike[str] | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> AgingRecord:
        """Measure the pairs of checkpoints. See :func:`measure_checkpoints`."""
        chosen = [choose(content, options.key) for content in self._contents]
        kept = self._without_copies(chosen)
        dated, contents = [self._dated[i] for i in kept], [self._contents[i] for i in kept]
        weights = [chosen[i] for i in kept]
        if len(kept) < 2:
            raise ValueError(
                f"paths={[str(content.path) for content in self._contents]}: they are copies of one checkpoint, and a "
                "displacement needs at least two"
            )
        agreed = agree(weights, options.include, options.exclude, options.keep_constant)
        for one, tensors in zip(weights, agreed.tensors, strict=True):
            _check_overlap(one.path, tensors)
        parameters = plan(agreed.tensors[0], agreed.aliases, groups=options.groups, sample=options.sample)
        n = parameters.n_parameters["all"]
        if weights[0].n_not_floating > n:
            log.warning(
                "%s: %d coordinates are %s and left out; only %d are measured",
                weights[0].path,
                weights[0].n_not_floating,
                NOT_FLOATING,
                n,
            )
        steps = [one.step for one in dated]
        pairs = choose_pairs(steps, options.pairs)
        thresholds = options.overlap_thresholds
        if isinstance(thresholds, str):
            thresholds = default_overlap_thresholds(spread(parameters, agreed.tensors[0]))
        left = None
        if unfinished is not None:
            files = [file for content in contents for file in content.files]
            left = Unfinished(unfinished, files, steps, [one.key for one in weights])
        sums = sum_pairs(parameters, agreed.tensors, pairs, thresholds, progress=progress, unfinished=left)

        record = AgingRecord(
            parameters.n_parameters,
            n_sampled=parameters.n_sampled,
            overlap_thresholds=thresholds,
            meta=_meta(dated, contents, weights[0], agreed, parameters),
        )
        for (i, j), moments in zip(pairs, sums.moments, strict=True):
            record.append(steps[i], steps[j] - steps[i], moments)
        for step, one in zip(steps, weights, strict=True):
            for name, rate in one.learning_rates.items():
                record.append_one_time(name, step, rate)
        if sums.not_finite:
            names = listed(list(sums.not_finite))
            places = sorted({i for several in sums.not_finite.values() for i in several})
            where = listed([f"{steps[i]:,}" for i in places])
            record.add_doubt(f"values of {names} are not finite at step {where}")
        paths = [content.path for content in contents]
        for doubt in (
            *doubts_of_steps(dated, paths),
            *agreed.doubts,
            *doubts_of_pairs(record, parameters.resolution),
        ):
            record.add_doubt(doubt)
        for doubt in record.doubts:
            log.warning("%s", doubt)
        return record

    def _without_copies(self, weights: Sequence[Weights]) -> list[int]:
        """Return the places of the checkpoints, without copies (same step, same weights) such as ``last.ckpt``.

        Raises:
            ValueError: two checkpoints of one step have different weights.
        """
        kept: list[int] = []
        for i, one in enumerate(self._dated):
            if not kept or self._dated[kept[-1]].step != one.step:
                kept.append(i)
                continue
            a, b = self._contents[kept[-1]].path, self._contents[i].path
            if not same_weights(weights[kept[-1]], weights[i]):
                raise ValueError(
                    f"{a} and {b} are both of step {one.step}: leave one out, or give steps=[...]. If they are of two "
                    "trainings, measure each training alone"
                )
            log.warning("%s is a copy of %s and counts once", b, a)
        return kept


def _check_overlap(path: Path, tensors: Mapping[str, Stored]) -> None:
    overlap = overlapping(tensors.items())
    if overlap is not None:
        raise ValueError(
            f"{path}: the parameters {overlap[0]!r} and {overlap[1]!r} share a part of their memory, which would be "
            f"counted twice: leave one out with exclude={overlap[1]!r}"
        )


def _meta(
    dated: Sequence[Dated],
    contents: Sequence[Content],
    first: Weights,
    agreed: Agreed,
    parameters: TrackedParameters,
) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "source": "checkpoints",
        "files": short_names([content.path for content in contents]),
        "steps": [one.step for one in dated],
        "steps_found": list(dict.fromkeys(one.source for one in dated)),
        "max_step": dated[-1].step,
        "dtypes": {name: str(dtype).removeprefix("torch.") for name, dtype in parameters.dtypes.items()},
        "moments": "full",
        "left_out": agreed.left_out,
    }
    if agreed.aliases:
        meta["tied"] = {name: list(others) for name, others in agreed.aliases.items()}
    if first.key:
        meta["key"] = first.key
    if first.lightning_version is not None:
        meta["versions"] = {"lightning": first.lightning_version}
    if first.optimizers:
        meta["optimizers"] = first.optimizers
    return meta

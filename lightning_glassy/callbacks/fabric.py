"""The same for a loop of one's own: from the steps of Fabric's optimisers to an ``AgingTracker`` and its sinks."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning.fabric import Fabric, is_wrapped
from lightning.fabric.utilities import rank_zero_info
from torch.nn import Module
from torch.optim import Optimizer

from lightning_glassy.callbacks.shared import (
    SNAPSHOTS,
    check_name,
    check_parameters,
    check_strategy,
    describe_optimizers,
)
from lightning_glassy.loggers.dispatch import log_directory, sink_for
from lightning_glassy.loggers.files import FileSink
from lightning_glassy.loggers.sinks import Sinks
from lightning_glassy.measure.optimizers import learning_rates
from lightning_glassy.measure.shards import ParametersChangedError, reshard, spread
from lightning_glassy.measure.tracker import AgingTracker, check_options
from lightning_glassy.record import AgingRecord
from lightning_glassy.schedule import LogTimeSchedule

log = logging.getLogger(__name__)

_NEVER = sys.maxsize


class FabricAgingMonitor:
    r"""Measures how the weights move in a loop of Lightning Fabric, as :class:`AgingMonitor` does in a Trainer.

    Give it to ``Fabric(callbacks=[...])``, tell it with :meth:`start` which module and optimisers it is about, and
    when training has ended say so with ``fabric.call("on_train_end")`` or :meth:`finish`. Fabric tells it of every step
    of an optimiser in between.

    A step is a completed call of ``step()`` of one of those optimisers: one for as many micro-batches as gradients were
    accumulated over, one whatever a closure did, and with two optimisers one each, as ``Trainer.global_step`` counts.
    An update that the gradient scaler of ``precision="16-mixed"`` has skipped counts, too, as it does there: to know of
    it would mean to wait for the GPU. Steps of other optimisers, of a discriminator say, are not counted.

    What is written, and under which keys, is what :class:`AgingMonitor` writes: the record in files, and the curves in
    the loggers of ``Fabric(loggers=...)``. The one-time series ``learning_rate`` (``learning_rate_<i>_<j>`` for the
    parameter group j of the optimiser i where there are several) is the rate of the update after the step. Under DDP
    rank 0 measures, since all ranks hold the same weights; where they are spread over the ranks (FSDP, tensor
    parallelism, DeepSpeed) all do. Whatever fails after the start costs a warning.

    ``fabric.save(path, {..., "monitor": monitor})`` puts in what a later run needs to go on with the record:
    ``fabric.load(path, {..., "monitor": monitor})`` before :meth:`start`.

    Args:
        schedule: when to measure; default ``LogTimeSchedule.logspaced()``.
        groups: ``"all"``, ``"layer"`` (one more group per module), or a mapping of group names to name patterns.
        max_step: last step of the run, if known: memory is planned for it.
        include: track only parameters whose name matches one of these shell patterns; default all trainable ones.
        exclude: do not track parameters whose name matches one of these.
        sample: coordinates to measure, drawn at random; ``None`` for all; ``"auto"`` for as many as fit.
        snapshot_device: ``"cpu"`` keeps the snapshots in host memory; default with the weights.
        max_memory: most bytes that the snapshots may take; default what is free.
        overlap_thresholds: the epsilons of the overlap; ``"auto"`` for two that fit the weights at the start.
        moments: ``"full"``, or ``"msd"`` for the mean squared displacement alone. No overlaps are counted then,
            whatever ``overlap_thresholds``.
        name: prefix of the keys, and name of the directory. Two monitors of one Fabric need two names.
        dirpath: where the files go; default the directory ``name`` beside the first logger's files, or in the working
            directory. A file that is there already is never overwritten: the new one gets a number.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of its range.

    Example:
        >>> import torch
        >>> monitor = FabricAgingMonitor(LogTimeSchedule([0], [1, 2]), dirpath=getfixture("tmp_path"))
        >>> fabric = Fabric(accelerator="cpu", devices=1, callbacks=[monitor])
        >>> model = torch.nn.Linear(2, 1)
        >>> model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> monitor.start(model, optimizer, fabric=fabric)
        >>> for _ in range(2):
        ...     fabric.backward(model(torch.ones(1, 2)).sum())
        ...     optimizer.step()
        >>> fabric.call("on_train_end")
        >>> monitor.record.msd().round(4).tolist()  # the gradients add up: 1, then 2 more
        [[0.01, 0.09]]
    """

    def __init__(
        self,
        schedule: LogTimeSchedule | None = None,
        groups: Literal["all", "layer"] | Mapping[str, str | Sequence[str]] = "all",
        *,
        max_step: int | None = None,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        sample: int | Literal["auto"] | None = "auto",
        snapshot_device: str | None = None,
        max_memory: int | None = None,
        overlap_thresholds: Sequence[float] | Literal["auto"] = "auto",
        moments: Literal["full", "msd"] = "full",
        name: str = "glassy",
        dirpath: str | os.PathLike[str] | None = None,
    ) -> None:
        if not isinstance(schedule, (LogTimeSchedule, type(None))):
            raise TypeError(f"schedule={schedule!r} is not a LogTimeSchedule or None")
        check_options(groups, include, exclude, sample, snapshot_device, max_memory, overlap_thresholds, moments)
        self._options: dict[str, Any] = {
            "schedule": schedule,
            "max_step": max_step,
            "groups": groups,
            "include": include,
            "exclude": exclude,
            "sample": sample,
            "snapshot_device": snapshot_device,
            "max_memory": max_memory,
            "overlap_thresholds": overlap_thresholds,
            "moments": moments,
        }
        self.name = check_name(name)
        self._dirpath = None if dirpath is None else Path(dirpath).expanduser()
        self._record: AgingRecord | None = None
        self._sinks = Sinks()
        self._restored: Mapping[str, Any] | None = None
        self._ended: dict[str, Any] = {}
        self._directory: Path | None = None
        self._forget()

    def _forget(self) -> None:
        """Let go of whatever refers to the weights."""
        self._module: Module | None = None
        self._optimizers: list[Optimizer] = []
        self._tracker: AgingTracker | None = None
        self._step = 0
        self._next_event = _NEVER
        self._event_without_rate: int | None = None

    @property
    def record(self) -> AgingRecord:
        """What has been measured so far; complete once the training is finished.

        Raises:
            RuntimeError: :meth:`start` has not been called, or this process is not the one that measures.
        """
        if self._record is None:
            raise RuntimeError(
                "there is no record in this process: start(module, optimizer, fabric=fabric) has not been called, or "
                "this is a rank other than 0; those read the file with AgingRecord.load"
            )
        return self._record

    def where(self) -> list[str]:
        """Lines that tell a person where the record and the curves are."""
        return self._sinks.where()

    def start(self, module: Module, *optimizers: Optimizer, fabric: Fabric, step: int | None = None) -> None:
        """Plan and allocate, and measure the state before the first update; on every rank, after ``fabric.setup``.

        Args:
            module: whose parameters to track.
            optimizers: those whose steps are counted; as ``fabric.setup`` has returned them.
            fabric: the one with this callback.
            step: updates completed already, in a run that goes on: the record begins there, unless a state has been
                loaded that goes on with an earlier one. Default: as many as that had seen, or none.

        Raises:
            MisconfigurationException: a strategy of which it is not known where the weights are.
            StateError: the state that was loaded is of other parameters or options.
            TypeError: a step that is not an integer.
            ValueError: no optimiser, one that Fabric did not set up, a Fabric without this callback, or nothing to
                track.
            MemoryError: snapshots that would not fit; the message names the remedies.
        """
        check_strategy(fabric.strategy, "FabricAgingMonitor")
        strangers = [type(optimizer).__name__ for optimizer in optimizers if not is_wrapped(optimizer)]
        if strangers or not optimizers:
            raise ValueError(
                f"optimizers={strangers}: give start() the optimisers whose steps are to be counted, as fabric.setup() "
                "returned them"
            )
        if not all(any(told is self for told in optimizer._callbacks) for optimizer in optimizers):  # type: ignore[attr-defined]
            raise ValueError("this monitor is not in Fabric(callbacks=[...]): it would not be told of any step")
        self.finish()
        restored, self._restored = self._restored, None
        whole: Any = module.module if is_wrapped(module) else module
        # What has the shards of FSDP1 is what it has wrapped the module in.
        held: Any = getattr(module, "_forward_module", whole) if "FSDP" in type(fabric.strategy).__name__ else whole
        reshard(whole)
        if not (fabric.is_global_zero or spread(held)):
            return
        inner = [optimizer.optimizer for optimizer in optimizers]  # type: ignore[attr-defined]
        self._tracker = AgingTracker(
            held,
            meta=_describe_run(whole, inner, fabric),
            state=None if restored is None else restored["tracker"],
            **self._options,
        )
        self._module, self._optimizers = whole, inner
        self._step = step if step is not None else 0 if restored is None else restored["step"]
        self._record, self._ended = self._tracker.record, {}
        self._sinks = Sinks()
        directory = self._dirpath or log_directory(fabric.loggers, ".") / self.name
        self._directory = fabric.broadcast(directory / SNAPSHOTS) if spread(held) else directory / SNAPSHOTS
        if fabric.is_global_zero:
            self._sinks.add("files", lambda: FileSink(directory))
            for logger in fabric.loggers:
                self._sinks.add(type(logger).__name__, partial(sink_for, logger, self.name))  # type: ignore[arg-type]
            if len(self._record):
                pairs = list(zip(*(axis.tolist() for axis in self._record.pairs), strict=True))
                self._sinks.update(self._record, pairs, self._step)
        rank_zero_info(f"FabricAgingMonitor: {self._tracker.description}")
        self._event()

    def on_after_optimizer_step(self, strategy: Any, optimizer: Any) -> None:
        """Count a step, and capture and measure what is due. Fabric calls this."""
        if not any(optimizer is counted for counted in self._optimizers):
            return
        if self._event_without_rate is not None:
            self._note_rates(self._event_without_rate, optimizer)
        self._step += 1
        if self._step >= self._next_event:
            self._event()

    def state_dict(self) -> dict[str, Any]:
        """What a later run needs to go on with the record: tensors and plain values; every rank calls it.

        Large snapshots are in files beside the record: keep them as long as the checkpoint.
        """
        if self._tracker is not None:
            try:
                return {"step": self._step, "tracker": self._tracker.state_dict(self._directory)}
            except Exception as error:
                log.warning(
                    "FabricAgingMonitor: this checkpoint has no record to go on with (%s: %s)",
                    type(error).__name__,
                    error,
                )
                return {}
        return self._ended

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next :meth:`start` go on from there."""
        self._restored = state or None

    def on_train_end(self) -> None:
        """The same as :meth:`finish`, for ``fabric.call("on_train_end")``."""
        self.finish()

    def finish(self) -> None:
        """Complete the record, write it, and free the snapshots. A second call does nothing."""
        tracker = self._tracker
        if tracker is not None:
            try:
                tracker.drain()
            except RuntimeError as error:  # a device that failed: its own error is the one to be seen
                log.warning("FabricAgingMonitor: the last measurements could not be read from the device: %s", error)
            self._hand_over(tracker)
            self._sinks.close(tracker.record)
            # What is saved after this goes on from the record at least.
            with contextlib.suppress(RuntimeError, TypeError):  # a device that failed, metadata that is no JSON
                self._ended = {"step": self._step, "tracker": tracker.state_dict(snapshots=False)}
            with contextlib.suppress(RuntimeError):  # a connection that has failed already
                tracker.close()
        self._forget()

    # ------------------------------------------------------------------ inside

    def _event(self) -> None:
        tracker = self._tracker
        assert tracker is not None  # no event is ever due without one
        assert self._module is not None
        # Parameters that have changed, or out of memory: better a record that ends here than a training that does.
        try:
            if self._step >= tracker.next_event:  # the same for all processes
                check_parameters(tracker, self._module)
        except ParametersChangedError as error:
            tracker.give_up(error, self._step)
        try:
            if tracker.update(self._step):
                self._event_without_rate = self._step
        except Exception as error:
            tracker.give_up(error, self._step)
        self._hand_over(tracker)
        # While measurements are on their way from the device, look again at the next step.
        self._next_event = self._step + 1 if tracker.pending else tracker.next_event

    def _hand_over(self, tracker: AgingTracker) -> None:
        pairs = tracker.new_pairs()
        if pairs:
            self._sinks.update(tracker.record, pairs, max(waiting_time + lag for waiting_time, lag in pairs))

    def _note_rates(self, step: int, optimizer: Optimizer) -> None:
        """Record the rates of the update after an event: only when it is done has a scheduler had its turn."""
        self._event_without_rate = None
        i = next(i for i, counted in enumerate(self._optimizers) if counted is optimizer)
        for name, rate in learning_rates(i, optimizer.param_groups).items():
            self.record.append_one_time(name, step, rate)


def _describe_run(module: Any, optimizers: Sequence[Optimizer], fabric: Fabric) -> dict[str, Any]:
    """What a reader of the record will want to know of the run, in the words of :class:`AgingMonitor`."""
    return {
        "module": type(module).__qualname__,
        "optimizers": describe_optimizers(optimizers),
        "precision": str(fabric.strategy.precision.precision),
        "world_size": fabric.world_size,
    }

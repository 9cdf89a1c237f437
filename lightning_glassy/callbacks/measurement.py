"""Base class of the measurements along a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities import rank_zero_info
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import Unpack

from lightning_glassy.callbacks.recorder import NEVER, MeasurementOptions
from lightning_glassy.callbacks.recording import Recording, of_kind
from lightning_glassy.callbacks.run import describe_run, makes_no_updates, max_step
from lightning_glassy.callbacks.undisturbed import random_numbers_of
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.text import duration
from lightning_glassy.schedule import StepsLike, as_steps

_LONG = 1.0  # seconds of a measurement after which an estimate of all of them is printed


class Measurement(Recording, ABC):
    """Measures numbers along a run, at given steps and at its last step.

    A subclass writes :meth:`measure`. The numbers become one-time series of the record. They appear in the files, the
    report and the tab, and loggers get them as ``<name>_series/<series>`` against the step. They enter the record of
    the :class:`AgingMonitor` of the same ``name`` in the same Trainer. Without such an AgingMonitor, all measurements
    of this name share a record.

    :meth:`measure` must leave the training as it is. The base class restores the random numbers. A measurement that
    runs the network derives from :class:`~lightning_glassy.callbacks.NetworkMeasurement`, which restores everything
    else.

    A failure of :meth:`measure` gives only a warning. An error in :meth:`prepare`, or a MisconfigurationException in
    the first measurement, ends the training before its first update.

    Args:
        schedule: :class:`Steps`, a list of steps, or a number of steps per decade. A :class:`LogTimeSchedule` stands
            for its waiting times. If a step is never reached, for example because the step grows by two, the next step
            is measured. The last step of the run is always measured, unless another callback has replaced the trained
            weights (as weight averaging does at the end).
        **options: ``name``, ``dirpath``, ``save``, ``summary`` and ``max_share``, see
            :class:`~lightning_glassy.callbacks.recorder.MeasurementOptions`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range.

    Example:
        >>> class WeightNorm(Measurement):
        ...     def measure(self, trainer, module):
        ...         return {"weight_norm": sum(float(p.square().sum()) for p in module.parameters()) ** 0.5}
        >>> trainer = Trainer(callbacks=[WeightNorm(3)], logger=False)
    """

    def __init__(self, schedule: StepsLike = 6, **options: Unpack[MeasurementOptions]) -> None:
        super().__init__(as_steps(schedule), **options)
        self._sizes: dict[str, int] = {}
        self._left_out_at = -1  # the last step that was left out

    # ------------------------------------------------------------------ for subclasses

    @abstractmethod
    def measure(self, trainer: Trainer, module: LightningModule) -> Any:
        """Return the values of the series by their names.

        Every process calls this method, without gradients. It must not wait for other processes. A method that returns
        something else needs a :meth:`combine`.
        """

    def prepare(self, trainer: Trainer, module: LightningModule) -> None:
        """Find data and other needs when training starts.

        Raises:
            MisconfigurationException: something is missing. The message names the remedy.
        """

    def combine(self, trainer: Trainer, measured: Any) -> dict[str, Any]:
        """Return the values of the series from the results of :meth:`measure`.

        Every process calls this method, if none of them failed, and may communicate with the others. A value that is a
        matrix ``[n_replica, n_replica]`` is recorded by :meth:`AgingRecord.append_between`.
        """
        if not isinstance(measured, Mapping):
            raise TypeError(f"measure() returned {measured!r}, and not a mapping of names to numbers")
        return dict(measured)

    def sizes(self, module: LightningModule) -> dict[str, int]:
        """Return the number of parameters of each group, for a record without an AgingMonitor."""
        return {"all": sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)}

    def release(self) -> None:
        """Free everything that refers to data or weights."""

    @contextmanager
    def undisturbed(self, trainer: Trainer, module: LightningModule, seed: int) -> Iterator[None]:
        """Restore the training after the block. The random numbers inside depend on the seed alone."""
        with random_numbers_of(seed), torch.no_grad():
            yield

    # ------------------------------------------------------------------ hooks

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on from a checkpoint, and find the data."""
        super().on_train_start(trainer, pl_module)
        with self.undisturbed(trainer, pl_module, seed=0):
            self.prepare(trainer, pl_module)
        self._sizes = self.sizes(pl_module)

    def measure_now(self, trainer: Trainer, pl_module: LightningModule, *, first: bool = False) -> None:
        """Make the measurement if it is due at the present step."""
        self._plan()
        if trainer.global_step >= self._next_event and not makes_no_updates(trainer) and not self.recorder.given_up:
            if self._affords(trainer, pl_module):
                self._event(trainer, pl_module, at_start=first)
                self._estimate(trainer, pl_module)
            else:
                self._left_out_at = trainer.global_step
                self.note_event(trainer.global_step)
                self.progress.last_step = trainer.global_step
                self._plan()
        self._enter(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the last step of the run, and complete the record."""
        left_out = self._left_out_at == trainer.global_step
        if (self.progress.last_step < trainer.global_step or left_out) and not self.recorder.given_up:
            if not self.trained.are_in_place(trainer):
                why = RuntimeError("another callback has replaced the trained weights, perhaps by their average")
                self.recorder.warn("the last step is not measured", why, type(self).__name__)
            else:
                self.progress.left_out -= int(left_out)
                self._event(trainer, pl_module)
        self._next_event = NEVER
        self._enter(trainer, pl_module)
        super().on_train_end(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free the data."""
        super().teardown(trainer, pl_module, stage)
        self.release()

    # ------------------------------------------------------------------ inside

    def _affords(self, trainer: Trainer, module: LightningModule) -> bool:
        """Return whether a measurement stays within its share of the time. Count the measurements that do not."""
        who = type(self).__name__
        found = self.recorder.affords(who, self.max_share, trainer.global_step, max_step(trainer, module))
        # All processes decide as the first one does, because their clocks differ.
        affordable = bool(trainer.strategy.broadcast(found))
        if not affordable:
            self.recorder.leave_out(who, self.max_share)
        return affordable

    def _estimate(self, trainer: Trainer, module: LightningModule) -> None:
        """After the first measurement, report how long all measurements will take if it is long."""
        progress, end = self.progress, max_step(trainer, module)
        if progress.count != 1 or progress.latest < _LONG or end is None:
            return
        more = sum(step > trainer.global_step for step in self.schedule.upto(end))
        limit = "" if self.max_share is None else f", of which at most {self.max_share:.0%} of the training are taken"
        rank_zero_info(
            f"{type(self).__name__}: a measurement takes {progress.latest:.2g} s, and {more} more are due until step "
            f"{end:,}: about {duration(more * progress.latest)}{limit}"
        )

    def _plan(self) -> None:
        due = self.schedule.after(self.progress.last_step)
        self._next_event = NEVER if due is None else due

    def _event(self, trainer: Trainer, module: LightningModule, at_start: bool = False) -> None:
        step, progress = trainer.global_step, self.progress
        self.note_event(step)
        measured, failure = None, None
        with progress.timed(trainer.strategy.root_device):
            try:
                # The random numbers depend on the step, so a resumed training has the same numbers. Each process has
                # its own numbers.
                with self.undisturbed(trainer, module, step * trainer.world_size + trainer.global_rank):
                    measured = self.measure(trainer, module)
            except Exception as error:
                failure = error
            n_failed = _total(trainer, int(failure is not None))
            if n_failed:
                failure = failure or RuntimeError(
                    f"{n_failed} of {trainer.world_size} processes could not measure, and log the reason"
                )
                if at_start and isinstance(failure, MisconfigurationException):
                    raise failure  # nothing has been trained yet
            else:
                try:
                    values = self.combine(trainer, measured)
                    self.recorder.add(step, values, type(self).__name__)
                    progress.count += 1
                except Exception as error:
                    failure = error
            if failure is not None:
                self.recorder.warn(f"nothing is measured at step {step}", failure, type(self).__name__)
            # Its traceback refers to the copies of the weights, and to this frame.
            failure = None
            progress.last_step = step
        self._plan()

    def _enter(self, trainer: Trainer, module: LightningModule) -> None:
        """Put new values into the record. Make the record if there is no AgingMonitor for it."""
        colleagues = [other for other in of_kind(trainer, Recording) if other._recorder is self._recorder]
        tracked = any(other.tracks for other in colleagues)
        self.recorder.enter(None if tracked else partial(_new_record, trainer, module, colleagues))


def _new_record(
    trainer: Trainer, module: LightningModule, members: list[Recording], meta: dict[str, Any]
) -> AgingRecord:
    sizes: dict[str, int] = {}
    for member in members:
        sizes |= member._sizes if isinstance(member, Measurement) else {}
    return AgingRecord(sizes, meta={**describe_run(trainer, module), **meta})


def add_up(trainer: Trainer, tensor: Tensor) -> Tensor:
    """Add up a tensor over all processes, in place. Every process calls this function."""
    if trainer.world_size > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


def _total(trainer: Trainer, number: int) -> int:
    if trainer.world_size == 1:
        return number
    return int(add_up(trainer, torch.tensor(number, device=trainer.strategy.root_device)))

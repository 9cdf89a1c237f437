"""What the callbacks have in common that measure the network itself: the loss, the gradient noise."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from lightning_glassy.callbacks.aging import AgingMonitor, describe_run
from lightning_glassy.callbacks.batches import Batches
from lightning_glassy.callbacks.shared import check_name
from lightning_glassy.callbacks.undisturbed import undisturbed
from lightning_glassy.loggers.dispatch import log_directory, sink_for
from lightning_glassy.loggers.files import FileSink
from lightning_glassy.loggers.sinks import Sinks
from lightning_glassy.measure.select import Selected, as_replicas, select_parameters
from lightning_glassy.record import AgingRecord
from lightning_glassy.replicas.ensemble import ReplicaEnsemble
from lightning_glassy.schedule import LogTimeSchedule

log = logging.getLogger(__name__)

_NEVER = sys.maxsize

# In a checkpoint, the states of all callbacks of this package.
_KEY = "lightning_glassy"

# Twice as many as AgingMonitor has waiting times: each of those is among them.
_PER_DECADE = 6

Loss = Callable[[LightningModule, Any], Tensor]
"""The loss of a module on a batch, a tensor of one number; of a ReplicaEnsemble, one for each replica."""


class Probe(Callback, ABC):
    """Measures the network at log-spaced steps and leaves no trace in the training, which is the same to the bit.

    A subclass says what it needs in :meth:`prepare`, measures on this process in :meth:`measure`, and makes numbers of
    what all processes have measured in :meth:`combine`. The numbers become one-time series of the record of the
    :class:`AgingMonitor` of the same ``name`` in the same Trainer; without one, of a record that all probes of that
    name share, in files as those of the monitor are. Loggers get them as ``<name>_series/<series>`` against the step.

    Args:
        schedule: a :class:`LogTimeSchedule`, whose waiting times are the steps, or the number of steps per decade, with
            step 0. A schedule with a ``max_step`` ends before it, as the waiting times do.
        mode: ``"train"`` leaves the modes of all submodules as the training has them; ``"eval"`` is that of evaluation.
        max_batches: most batches to use; default all.
        batch_size: number of samples in a batch; default that of the training.
        loss: gives the loss of a module on a batch; default what ``training_step`` returns. Of a
            :class:`ReplicaEnsemble` it is needed, and gives the loss of each replica, ``[n_replica]``.
        name: of the :class:`AgingMonitor` whose record it shares, else the prefix of the keys and of the directory.
        dirpath: where the files go if there is no such monitor; default the directory ``name`` beside the logger's.
        save: whether to write these files.
        summary: whether to print a line at the end on the time it took.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of its range.
    """

    takes_replicas = False
    """Whether it can measure a :class:`ReplicaEnsemble`, with ``loss`` given."""

    def __init__(
        self,
        schedule: LogTimeSchedule | int | None,
        *,
        mode: Literal["train", "eval"],
        max_batches: int | None,
        batch_size: int | None,
        loss: Loss | None,
        name: str,
        dirpath: str | os.PathLike[str] | None,
        save: bool,
        summary: bool,
    ) -> None:
        super().__init__()
        if schedule is None or (isinstance(schedule, int) and not isinstance(schedule, bool)):
            per_decade = _PER_DECADE if schedule is None else schedule
            if not 1 <= per_decade <= 1000:
                raise ValueError(f"schedule={schedule!r} points per decade must lie between 1 and 1000")
            schedule = LogTimeSchedule.logspaced(waiting_times_per_decade=per_decade)
        if not isinstance(schedule, LogTimeSchedule):
            raise TypeError(f"schedule={schedule!r} is not a LogTimeSchedule, a number of points per decade or None")
        if mode not in ("train", "eval"):
            raise ValueError(f"mode={mode!r} is neither 'train' nor 'eval'")
        for what, number in (("max_batches", max_batches), ("batch_size", batch_size)):
            if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
                raise ValueError(f"{what}={number!r} must be a positive integer, or None")
        if loss is not None and not callable(loss):
            raise TypeError(f"loss={loss!r} is not a function of a module and a batch")
        self.schedule = schedule
        self.name = check_name(name)
        self._mode = mode
        self._max_batches = max_batches
        self._batch_size = batch_size
        self._loss = loss
        self._dirpath = None if dirpath is None else Path(dirpath).expanduser()
        self._save = save
        self._summary = summary
        self._n_replica: int | None = None
        self._record: AgingRecord | None = None
        self._restored: Mapping[str, Any] | None = None
        self._forget()
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._series: dict[str, dict[int, float]] = {}
        self._last_step = -1
        self._n_measured = 0
        self._own_seconds = self._seconds = 0.0
        self._id = secrets.token_hex(8)  # not from the global generators, whose numbers are the training's
        self._resumed: list[dict[str, Any]] = []
        self._record = None
        self._sinks = Sinks()

    def _forget(self) -> None:
        """Let go of what belongs to a training that is under way."""
        self._fitted: tuple[weakref.ref[Trainer], weakref.ref[LightningModule]] | None = None
        self._next_event = _NEVER
        self._started = 0.0
        self._pending: list[tuple[str, int, float]] = []
        self._n_parameters: dict[str, int] = {}
        self._warned: set[str] = set()
        self._buffers: dict[str, Tensor] = {}
        self.release()

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: the settings and what was measured."""
        there = type(self).__new__(type(self))
        there.__dict__ = dict(self.__dict__)
        there._forget()
        return there.__dict__ | {"_sinks": Sinks(), "_restored": None}

    @property
    def record(self) -> AgingRecord:
        """What the series are in.

        Raises:
            RuntimeError: training has not started, or this process is not the one that writes.
        """
        if self._record is None:
            raise RuntimeError(
                "there is no record yet: training has not started in this process; on ranks other than 0, and after "
                "ddp_spawn, read the file with AgingRecord.load"
            )
        return self._record

    # ------------------------------------------------------------------ what a subclass does

    @abstractmethod
    def prepare(self, trainer: Trainer, module: LightningModule) -> None:
        """Find the data, and whatever else is needed, when training starts.

        Raises:
            MisconfigurationException: something is missing; the message names the remedy.
        """

    @abstractmethod
    def measure(self, trainer: Trainer, module: LightningModule) -> Any:
        """Measure what this process has a part in. It must not wait for other processes."""

    @abstractmethod
    def combine(self, trainer: Trainer, measured: Any) -> dict[str, float]:
        """The values of the series from what all processes have measured; all of them call it."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a reader of the record will want to know: plain values that JSON can hold."""

    @abstractmethod
    def release(self) -> None:
        """Let go of what :meth:`prepare` has found."""

    # ------------------------------------------------------------------ what it has for that

    def batches(
        self, trainer: Trainer, loader: Any, name: str, *, shuffled: bool | None = None, whole: bool = False
    ) -> Batches:
        """The batches of a loader that this process measures; of the training's own if ``loader`` is None.

        Where the mode is that of training all processes get as many: synchronised normalisations wait for all of them.
        """
        combined = trainer.fit_loop._combined_loader
        return Batches(
            trainer.train_dataloader if loader is None else loader,
            name,
            mode=combined._mode if combined is not None else "max_size_cycle",
            batch_size=self._batch_size,
            max_batches=self._max_batches,
            shuffled=shuffled,
            whole=whole,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            equal=self._mode == "train",
        )

    def parameters_of(self, module: LightningModule, **selection: Any) -> list[Selected]:
        """The parameters that are trained, or those selected; of replicas with their axis."""
        selected = select_parameters(module, **selection)
        return selected if self._n_replica is None else as_replicas(selected, self._n_replica)

    def loss_of(self, trainer: Trainer, module: LightningModule, batch: Any, i: int) -> Tensor:
        """The loss on a batch, in the precision of the training; with its graph where gradients are on.

        One number; of replicas ``[n_replica]``.

        Raises:
            MisconfigurationException: there is no number to be had.
        """
        with trainer.precision_plugin.forward_context():
            if self._loss is not None:
                found: Any = self._loss(module, batch)
            elif is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2):
                found = module.training_step(batch, i)
            else:
                found = module.training_step(batch)
        loss = found.get("loss") if isinstance(found, Mapping) else found
        if self._n_replica is not None and isinstance(loss, Tensor) and loss.shape == (self._n_replica,):
            return loss
        if not isinstance(loss, Tensor) or loss.numel() != 1 or self._n_replica is not None:
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)[:60]
            what += " under 'loss'" if isinstance(found, Mapping) else ""
            source = "training_step" if self._loss is None else "loss"
            expected = "a loss, a tensor of one number"
            if self._n_replica is not None:
                expected = f"the losses of the replicas, a tensor [{self._n_replica}]"
            raise MisconfigurationException(
                f"{type(self).__name__}: {source} has returned {what} instead of {expected}: give "
                f"{type(self).__name__}(loss=...) a function of a module and a batch that does"
            )
        return loss.reshape(())

    # ------------------------------------------------------------------ hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse, before anything is moved, what cannot be measured."""
        if stage != "fit":
            return
        who = type(self).__name__
        same = [probe for probe in _probes(trainer) if type(probe) is type(self) and probe.name == self.name]
        if len(same) > 1:
            raise MisconfigurationException(f"there are {len(same)} {who} called {self.name!r}: give each another name")
        bases = {cls.__name__ for cls in type(trainer.strategy).__mro__}
        if not bases & {"SingleDeviceStrategy", "DDPStrategy"} or "DeepSpeedStrategy" in bases:
            raise MisconfigurationException(
                f"{who} cannot run the module outside of its training under {type(trainer.strategy).__name__}, which "
                "spreads the weights over processes: use a single device or 'ddp'"
            )
        self._n_replica = self._find_replicas(trainer, pl_module)
        if self._loss is None:
            why = None
            if not pl_module.automatic_optimization:
                why = "optimises manually, and its training_step need not return a loss"
            elif not is_overridden("training_step", pl_module):
                why = "has no training_step"
            elif is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
                why = "takes an iterator over the training data itself"
            if why is not None:
                raise MisconfigurationException(
                    f"{who}: {type(pl_module).__name__} {why}: give {who}(loss=...) a function of a module and a batch "
                    "that returns the loss"
                )

    def _find_replicas(self, trainer: Trainer, module: LightningModule) -> int | None:
        """The number of replicas of the module; None if it has none."""
        who = type(self).__name__
        sizes = {part.n_replica for part in module.modules() if isinstance(part, ReplicaEnsemble)}
        if not sizes:
            return None
        if not self.takes_replicas:
            raise MisconfigurationException(
                f"{who} cannot measure a ReplicaEnsemble, whose loss is that of all replicas together: train and "
                "measure a single network"
            )
        if len(sizes) > 1 or trainer.world_size > 1:
            what = f"ensembles of {sorted(sizes)} replicas" if len(sizes) > 1 else "replicas in several processes"
            raise MisconfigurationException(f"{who} cannot measure {what}: leave it out, or measure one ensemble alone")
        if self._loss is None:
            raise MisconfigurationException(
                f"{who}: the loss of a ReplicaEnsemble is that of all replicas together: give {who}(loss=...) a "
                "function of the module and a batch, the same one for all replicas, that returns the loss of each, "
                "[n_replica]"
            )
        return sizes.pop()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on from a checkpoint, find the data, and measure the state before the first update."""
        step, restored = trainer.global_step, self._restored
        continued = self._fitted is not None and self._fitted[0]() is trainer and self._fitted[1]() is pl_module
        self._forget()
        if restored is not None:
            self._go_on(restored)
        elif not (continued and 0 < self._last_step <= step):
            self._start_afresh()
        self._fitted = (weakref.ref(trainer), weakref.ref(pl_module))
        self._started = time.perf_counter()
        self._n_parameters = {"all": sum(p.numel for p in self.parameters_of(pl_module))}
        with undisturbed(trainer, pl_module, seed=0):
            self.prepare(trainer, pl_module)
        # In the record that is made now, what was measured before is not.
        self._pending = [(name, at, value) for name, values in self._series.items() for at, value in values.items()]
        self._plan_next()
        if step >= self._next_event:
            self._event(trainer, pl_module, step, at_start=True)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Enter what was measured at the start: only now the record of an AgingMonitor that comes later is there."""
        if self._pending:
            self._enter(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Nothing, at most steps; otherwise measure."""
        step = trainer.global_step
        if step >= self._next_event:
            self._event(trainer, pl_module, step)
            self._enter(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time it took: at the end of the training the record may have been written before this is asked."""
        if self._record is not None:
            self._record.meta[type(self).__name__] = self._meta()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the record, if it is no other callback's, and say what the measurements have cost."""
        self._close()
        if self._summary and trainer.is_global_zero:
            meta = self._meta()
            line = (
                f"{type(self).__name__}: {meta['measurements']} measurements took {meta['seconds']:.3g} s, "
                f"{meta['fraction_of_training']:.1%} of the time of the training"
            )
            with contextlib.suppress(OSError, ValueError):  # an output that is closed, or takes no more
                trainer.print("\n".join([line, *self._sinks.where()]))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what was measured: after this, neither ``on_train_end`` nor ``teardown`` may come."""
        self._close()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put in what a resumed training needs to go on with the series: tensors and plain values only."""
        # A handler of a signal may save in the middle of a measurement, and shall get the buffers of before.
        weights = checkpoint.get("state_dict", {})
        weights.update({name: buffer for name, buffer in self._buffers.items() if name in weights})
        checkpoint.setdefault(_KEY, {})[self._state_name()] = {
            "series": {
                name: {
                    "steps": torch.tensor(list(values), dtype=torch.int64),
                    "values": torch.tensor(list(values.values()), dtype=torch.float64),
                }
                for name, values in self._series.items()
            },
            "last_step": self._last_step,
            "n_measured": self._n_measured,
            "own_seconds": self._own_seconds,
            "seconds": self._training_seconds(),
            "id": self._id,
            "resumed": self._resumed,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take out what :meth:`on_save_checkpoint` put in; it is used when training starts."""
        states = checkpoint.get(_KEY)
        if trainer.training and isinstance(states, dict):
            self._restored = states.get(self._state_name())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free the data, and whatever else refers to the weights."""
        self._seconds, self._started = self._training_seconds(), 0.0
        self._next_event = _NEVER
        self.release()

    # ------------------------------------------------------------------ inside

    def _state_name(self) -> str:
        return f"{self.name}/{type(self).__name__}"  # no monitor's name has a slash

    def _go_on(self, state: Mapping[str, Any]) -> None:
        self._restored = None
        self._start_afresh()
        try:
            for name, series in state["series"].items():
                steps, values = series["steps"].tolist(), series["values"].tolist()
                self._series[str(name)] = dict(zip(steps, values, strict=True))
            self._last_step, self._n_measured = int(state["last_step"]), int(state["n_measured"])
            self._own_seconds, self._seconds = float(state["own_seconds"]), float(state["seconds"])
            self._id, self._resumed = str(state["id"]), [*state["resumed"], {"step": self._last_step}]
        except Exception as error:
            self._start_afresh()
            rank_zero_warn(
                f"{type(self).__name__}: the series of the checkpoint cannot go on ({type(error).__name__}: {error})"
            )

    def _plan_next(self) -> None:
        following = self.schedule.next_waiting_time(self._last_step)
        self._next_event = _NEVER if following is None else following

    def _event(self, trainer: Trainer, module: LightningModule, step: int, at_start: bool = False) -> None:
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # what is under way is the training's
        started = time.perf_counter()
        measured, failure = None, None
        try:
            # The random numbers are those of the step, in a resumed training, too; each process has its own.
            seed = step * trainer.world_size + trainer.global_rank
            with undisturbed(trainer, module, seed) as self._buffers:
                if self._mode == "eval":
                    module.eval()
                measured = self.measure(trainer, module)
        except Exception as error:
            failure = error
        finally:
            self._buffers = {}
        n_failed = _total(trainer, int(failure is not None))
        if n_failed:
            failure = failure or RuntimeError(f"{n_failed} of {trainer.world_size} processes could not, and say why")
            if at_start and isinstance(failure, MisconfigurationException):
                raise failure  # nothing has been trained yet: better now than a training without what was wanted
        else:
            try:
                values = self.combine(trainer, measured)
            except Exception as error:
                failure = error
            else:
                for name, value in values.items():
                    self._series.setdefault(name, {})[step] = value
                    self._pending.append((name, step, value))
                self._n_measured += 1
                self._log(trainer, step, values)
        if failure is not None:
            self._warn(f"nothing is measured at step {step}", failure)
        self._last_step = step
        self._plan_next()
        self._own_seconds += time.perf_counter() - started

    def _warn(self, what: str, error: Exception) -> None:
        words = f"{type(error).__name__}: {error}"
        if words not in self._warned:
            self._warned.add(words)
            log.warning("%s: %s (%s); training goes on", type(self).__name__, what, words)

    def _log(self, trainer: Trainer, step: int, values: Mapping[str, float]) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for logger in trainer.loggers:
            try:
                logger.log_metrics({f"{self.name}_series/{name}": value for name, value in values.items()}, step=step)
            except Exception as error:
                self._warn(f"{type(logger).__name__} takes no series", error)

    def _enter(self, trainer: Trainer, module: LightningModule) -> None:
        """Put what is pending into the record, which another callback may have."""
        if not trainer.is_global_zero:
            self._pending = []
            return
        try:
            host = _host(trainer, self.name)
            if isinstance(host, Probe):
                self._record = host._make_record(trainer, module)
            else:
                self._record = host.record
            for name, step, value in self._pending:
                self._record.append_one_time(name, step, value)
            self._pending = []
            self._record.meta[type(self).__name__] = self._meta()
            if isinstance(host, Probe):
                host._sinks.update(self._record, [], self._last_step)
        except Exception as error:
            self._warn("the record could not take the series", error)

    def _make_record(self, trainer: Trainer, module: LightningModule) -> AgingRecord:
        """The record that all probes of this name share, and its sinks."""
        if self._record is None:
            sizes: dict[str, int] = {}
            for probe in _probes(trainer):
                sizes |= probe._n_parameters if probe.name == self.name else {}
            resumed = {"resumed": self._resumed} if self._resumed else {}
            self._record = AgingRecord(sizes, meta={"id": self._id, **describe_run(trainer, module), **resumed})
            self._sinks = Sinks()
            if self._save and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                place = self._dirpath or log_directory(trainer.loggers, trainer.default_root_dir) / self.name
                self._sinks.add("files", lambda: FileSink(place))
            for logger in trainer.loggers:
                self._sinks.add(type(logger).__name__, partial(sink_for, logger, self.name))
        return self._record

    def _close(self) -> None:
        if self._record is not None:
            self._record.meta[type(self).__name__] = self._meta()
            self._sinks.close(self._record)  # none, if the record is another callback's

    def _training_seconds(self) -> float:
        return self._seconds + (time.perf_counter() - self._started if self._started else 0.0)

    def _meta(self) -> dict[str, Any]:
        seconds = self._training_seconds()
        return {
            **self.describe(),
            "mode": self._mode,
            "measurements": self._n_measured,
            "seconds": round(self._own_seconds, 6),
            "fraction_of_training": round(self._own_seconds / seconds, 6) if seconds else 0.0,
        }


def _probes(trainer: Trainer) -> list[Probe]:
    return [callback for callback in trainer.callbacks if isinstance(callback, Probe)]  # type: ignore[attr-defined]


def _host(trainer: Trainer, name: str) -> AgingMonitor | Probe:
    """Whose the record is: the monitor of that name, else the first probe."""
    monitor = monitor_of(trainer, name)
    return monitor if monitor is not None else next(probe for probe in _probes(trainer) if probe.name == name)


def monitor_of(trainer: Trainer, name: str) -> AgingMonitor | None:
    """The first AgingMonitor of that name in the Trainer."""
    monitors = (callback for callback in trainer.callbacks if isinstance(callback, AgingMonitor))  # type: ignore[attr-defined]
    return next((monitor for monitor in monitors if monitor.name == name), None)


def add_up(trainer: Trainer, tensor: Tensor) -> Tensor:
    """Add up a tensor over all processes, in place; every process calls it."""
    if trainer.world_size > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


def _total(trainer: Trainer, number: int) -> int:
    if trainer.world_size == 1:
        return number
    return int(add_up(trainer, torch.tensor(number, device=trainer.strategy.root_device)))

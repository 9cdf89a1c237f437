"""The AgingMonitor for a training loop of Lightning Fabric."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import Unpack

from lightning_glassy.callbacks.aging import MonitorOptions, split_options
from lightning_glassy.callbacks.recorder import NEVER, Place, Recorder, check_logged, check_name
from lightning_glassy.callbacks.recording import Recording
from lightning_glassy.callbacks.run import check_strategy, describe_optimizers, is_wrapped, same_weights, weight_sums
from lightning_glassy.callbacks.summary import print_lines, summary
from lightning_glassy.loggers.places import directory_of
from lightning_glassy.measure.optimizers import learning_rates
from lightning_glassy.measure.resume import StateError
from lightning_glassy.measure.select import Groups
from lightning_glassy.measure.shards import reshard, spread
from lightning_glassy.measure.tracker import AgingTracker, check_options
from lightning_glassy.record import AgingRecord
from lightning_glassy.schedule import ScheduleLike, as_schedule


class FabricAgingMonitor:
    r"""Measures how the weights move in a loop of Lightning Fabric, as :class:`AgingMonitor` does in a Trainer.

    Pass it to ``Fabric(callbacks=[...])``. Call :meth:`start` with the module and the optimisers before training. Call
    ``fabric.call("on_train_end")`` or :meth:`finish` at the end. Fabric reports every step of an optimiser in between.

    A step is a completed call of ``step()`` of one of these optimisers, as in ``Trainer.global_step``. All
    micro-batches whose gradients are accumulated count as one step. A closure counts as one step, however often it
    runs. With two optimisers, each call counts as one step. An update that the gradient scaler of
    ``precision="16-mixed"`` skips is also a step, because the monitor would have to wait for the GPU to notice it.
    Steps of other optimisers, for example of a discriminator, are not counted.

    The record, the files and the curves are as with :class:`AgingMonitor`. The loggers of ``Fabric(loggers=...)`` get
    the curves. The one-time series ``learning_rate`` is the rate of the update after the step. If there are several
    parameter groups, ``learning_rate_<i>_<j>`` is the rate of group j of optimiser i. Under DDP rank 0 measures,
    because all ranks hold the same weights. If the weights are spread over the ranks (FSDP, tensor parallelism,
    DeepSpeed), all ranks measure. After the start, a failure gives only a warning.

    To continue the record in a later run, save the state with ``fabric.save(path, {..., "monitor": monitor})``. The
    later run calls ``fabric.load(path, {..., "monitor": monitor})`` before :meth:`start`.

    Args:
        schedule: when to measure: a :class:`LogTimeSchedule`, a number of waiting times and of lags per decade, or the
            name of a preset (with ``max_step``). Default: ``LogTimeSchedule.logspaced()``.
        groups: ``"all"``, ``"layer"`` (one more group per module), or a mapping of group names to name patterns.
        max_step: last step of the run, if known. Memory is planned for it.
        **options: the options of :class:`AgingMonitor`. Two monitors of one Fabric need different names. ``summary`` is
            False by default: print :meth:`where` in the loop if you want it.

    Raises:
        TypeError: an argument has the wrong type, or there is no such option.
        ValueError: an argument is out of its range.

    Example:
        >>> import torch
        >>> from lightning_glassy import LogTimeSchedule
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
        schedule: ScheduleLike | None = None,
        groups: Groups = "all",
        *,
        max_step: int | None = None,
        **options: Unpack[MonitorOptions],
    ) -> None:
        self.schedule = as_schedule(schedule, max_step)
        self.groups, self.max_step = groups, max_step
        ours, of_tracker = split_options(options, type(self).__name__)
        self.options = check_options(groups, of_tracker)
        self.name = check_name(ours.get("name", "glassy"))
        dirpath = ours.get("dirpath")
        self.dirpath = None if dirpath is None else directory_of(dirpath)
        self.save = ours.get("save", True)
        self.summary = ours.get("summary", False)
        self.logged = check_logged(ours)
        self._recorder = Recorder(self.name)
        self._state: Mapping[str, Any] = {}
        self._step = 0
        self._is_global_zero = False
        self._forget()

    def _forget(self) -> None:
        """Free everything that refers to the weights."""
        for hook in getattr(self, "_hooks", []):
            hook.remove()
        self._optimizers: list[Optimizer] = []
        self._hooks: list[RemovableHandle] = []
        self._waits = False  # for the first update
        self._fabric: Fabric | None = None  # if several processes measure
        self._started: tuple[int, dict[str, Tensor]] | None = None  # the first step, and sums of its weights
        self._module: weakref.ref[Module] | None = None
        self._next_event = NEVER
        self._event_without_rate: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings and the record for pickle and copy, without the training that is under way."""
        forgotten: dict[str, Any] = {"_optimizers": [], "_hooks": [], "_waits": False, "_fabric": None}
        forgotten |= {"_started": None, "_module": None, "_next_event": NEVER, "_event_without_rate": None}
        return self.__dict__ | forgotten

    def facts(self) -> None:
        """Return nothing. The record itself describes the tracker."""

    def report(self, record: AgingRecord) -> list[str]:
        """Return the displacements, the verdict and the aging exponent."""
        return summary(record, type(self).__name__)

    @property
    def record(self) -> AgingRecord:
        """The record so far. It is complete at the end of training.

        Raises:
            RuntimeError: :meth:`start` has not been called, or this process does not measure.
        """
        if self._recorder.record is None:
            raise RuntimeError(
                "there is no record in this process: start(module, optimizer, fabric=fabric) has not been called, or "
                "this is a rank other than 0, which reads the file with AgingRecord.load"
            )
        return self._recorder.record

    def where(self) -> list[str]:
        """Return lines with the places of the record and the curves."""
        return self._recorder.where()

    def start(self, module: Module, *optimizers: Optimizer, fabric: Fabric, step: int | None = None) -> None:
        """Plan, allocate, and measure the state before the first update. Every rank calls it after ``fabric.setup``.

        Args:
            module: module whose parameters are tracked.
            optimizers: optimisers whose steps are counted, as ``fabric.setup`` returned them.
            fabric: the Fabric with this callback.
            step: number of completed updates, if the run goes on from an earlier run. The record begins there, unless a
                loaded state goes on with an earlier record. Default: the step of the loaded state, or 0.

        Raises:
            MisconfigurationException: the weights cannot be found under the strategy, or another callback needs a
                Trainer.
            StateError: the loaded state has other parameters or options.
            TypeError: the step is not an integer.
            ValueError: there is no optimiser, Fabric did not set up an optimiser, Fabric does not have this callback,
                or there is nothing to track.
            MemoryError: the snapshots do not fit in memory. The message names the remedies.
        """
        who = type(self).__name__
        check_strategy(fabric.strategy, who)
        strangers = [type(optimizer).__name__ for optimizer in optimizers if not is_wrapped(optimizer)]
        if strangers or not optimizers:
            raise ValueError(
                f"optimizers={strangers}: give start() the optimisers whose steps are to be counted, as fabric.setup() "
                "returned them"
            )
        if not all(any(told is self for told in optimizer._callbacks) for optimizer in optimizers):  # type: ignore[attr-defined]
            raise ValueError("this monitor is not in Fabric(callbacks=[...]): it would not be told of any step")
        others = [type(callback).__name__ for callback in fabric._callbacks if isinstance(callback, Recording)]
        if others:
            raise MisconfigurationException(f"{others[0]} is a callback for a Trainer: leave it out of the Fabric")
        self.finish()
        state, self._state = self._state, {}
        if not self._recorder.belongs_to(fabric, self.name):
            self._recorder = Recorder(self.name, fabric)
        recorder = self._recorder
        whole: Any = module.module if is_wrapped(module) else module
        # Under FSDP1, the wrapper of the module holds the shards.
        held: Any = getattr(module, "_forward_module", whole) if "FSDP" in type(fabric.strategy).__name__ else whole
        reshard(whole)
        sharded = spread(held)
        if not (fabric.is_global_zero or sharded):
            return
        self._step = step if step is not None else state.get("step", 0)
        if state:
            if self._step != (saved := state.get("step", 0)):
                raise StateError(
                    f"step={step}, and the loaded state is of step {saved}: load the state of this training, "
                    "or start a new record without a state"
                )
            recorder.load_state_dict(state["tracker"])
        place = Place(who, fabric.loggers, ".", self.dirpath, self.save, fabric.is_global_zero, self.logged)
        inner = [optimizer.optimizer for optimizer in optimizers]  # type: ignore[attr-defined]
        recorder.begin(place, {who: self}, whole, self._step)
        recorder.count_updates(inner, self._step)
        meta = _describe_run(whole, inner, fabric)

        def make(state: Mapping[str, Any] | None, directory: Path | None) -> AgingTracker:
            return AgingTracker(
                held,
                self.schedule,
                self.groups,
                max_step=self.max_step,
                meta=meta,
                state=state,
                directory=directory,
                **self.options,
            )

        recorder.track(make, whole, self._step, strict=True)
        snapshots = recorder.find_snapshots()
        recorder.snapshots = fabric.broadcast(snapshots) if sharded else snapshots
        self._optimizers, self._is_global_zero = inner, fabric.is_global_zero
        self._started = self._step, weight_sums(whole)
        self._module = weakref.ref(whole)
        # The weights may still be set after `start`. The state before the first update is measured.
        hookable = [optimizer for optimizer in inner if isinstance(optimizer, Optimizer)]
        self._hooks = [optimizer.register_step_pre_hook(self._before_first) for optimizer in hookable]
        self._fabric = fabric if sharded else None
        self._waits = True
        if not self._hooks:
            self._before_first()

    def _before_first(self, *_: Any) -> None:
        """Measure the state before the first update."""
        if self._waits:
            self._waits = False
            self._event()

    def on_after_optimizer_step(self, strategy: Any, optimizer: Any) -> None:
        """Count a step, take a snapshot and measure if either is due. Fabric calls this method."""
        if not any(optimizer is counted for counted in self._optimizers):
            return
        if self._hooks:
            self._before_first()  # if the gradient scaler has skipped the first update
            for hook in self._hooks:
                hook.remove()
            self._hooks = []
        if self._event_without_rate is not None:
            self._note_rates(self._event_without_rate, optimizer)
        self._step += 1
        if self._step >= self._next_event:
            self._event()

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a later run needs, as tensors and plain values. Every rank calls this method.

        Large snapshots are in files beside the record. Keep these files as long as the checkpoint.
        """
        state = self._recorder.state_dict(self._step)
        return {} if state is None else {"step": self._step, "tracker": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next :meth:`start` go on from a state.

        During a training, the state must be an earlier state of this training. The record then goes back to this state.
        Set the weights back at the same time: ``fabric.load`` does both.

        Raises:
            StateError: a training is under way, and the state is not an earlier state of it.
        """
        if not self._recorder.running:
            self._state = state
            return
        step, known = state.get("step", -1), self._recorder.knows(state.get("tracker", {}))
        if (
            self._fabric is not None
        ):  # the first process wrote the state, and the other processes do not have its random names
            known = self._fabric.broadcast(known)
        if not (known and 0 <= step <= self._step):
            raise StateError(
                f"the state (step {step}) is not an earlier state of the training under way (step {self._step}): load "
                "it before start(), or call finish() first"
            )
        self._recorder.go_back(step + 1)  # the measurements at the step itself are correct
        self._step, self._event_without_rate = step, None
        if self._recorder.tracker is not None:
            self._next_event = self._recorder.tracker.next_event

    def on_train_end(self) -> None:
        """Call :meth:`finish`, for ``fabric.call("on_train_end")``."""
        self.finish()

    def finish(self) -> None:
        """Complete the record, write it, and free the snapshots. A second call does nothing."""
        if self._recorder.running:
            self._recorder.drain()
            self._warn_of_standstill()
            self._recorder.leave(type(self).__name__, self._step, completed=True)
            print_lines(print, self._recorder.summary() if self._is_global_zero else [])
            self._recorder.let_go()
        self._forget()

    # ------------------------------------------------------------------ inside

    def _warn_of_standstill(self) -> None:
        """Warn if the weights have moved but no step was counted."""
        module = None if self._module is None else self._module()
        if module is None or self._started is None or self._step > self._started[0]:
            return
        if not same_weights(module, self._started[1]):
            self._recorder.tell(
                "the weights have changed, and no step was counted, so nothing was measured: call step() of the "
                "optimisers that fabric.setup() returned, not of the optimisers inside them"
            )

    def _event(self) -> None:
        tracker = self._recorder.tracker
        assert tracker is not None  # no event is due without a tracker
        due = self._step >= tracker.next_event
        self._next_event = self._recorder.event(self._step)
        if due:
            self._event_without_rate = self._step

    def _note_rates(self, step: int, optimizer: Optimizer) -> None:
        """Record the rates of the update after an event. A scheduler changes them until this update."""
        self._event_without_rate = None
        i = next(i for i, counted in enumerate(self._optimizers) if counted is optimizer)
        for name, rate in learning_rates(i, optimizer.param_groups).items():
            self.record.append_one_time(name, step, rate)


def _describe_run(module: Any, optimizers: Sequence[Optimizer], fabric: Fabric) -> dict[str, Any]:
    """Return the facts of the run for the metadata of a record, with the keys of :class:`AgingMonitor`."""
    return {
        "module": type(module).__qualname__,
        "optimizers": describe_optimizers(optimizers),
        "precision": str(fabric.strategy.precision.precision),
        "world_size": fabric.world_size,
    }

"""Base class of the callbacks of a Trainer that write to a record."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import Unpack

from lightning_glassy.callbacks.recorder import (
    NEVER,
    SNAPSHOTS,
    MeasurementOptions,
    Place,
    Progress,
    Recorder,
    check_known,
    check_logged,
    check_name,
    check_share,
)
from lightning_glassy.callbacks.run import BeforeUpdate, Standstill, TrainedWeights, check_strategy, is_a
from lightning_glassy.callbacks.summary import print_lines
from lightning_glassy.loggers.places import directory_of
from lightning_glassy.measure.tracker import Finding, TrackerEvent
from lightning_glassy.record import AgingRecord

# Key of a checkpoint. Its value holds the states of all recorders by their names.
_KEY = "lightning_glassy"

R = TypeVar("R", bound="Recording")


class Recording(Callback):
    """Base class of the callbacks of a Trainer that write to a record: an AgingMonitor, and all measurements.

    Callbacks with the same name in one Trainer share a recorder. The first callback makes it.

    Args:
        schedule: the steps or pairs of times of the callback.
        **options: see :class:`~lightning_glassy.callbacks.recorder.MeasurementOptions`.

    Raises:
        TypeError: there is no such option.
        ValueError: ``name`` cannot be the name of a directory, or another option is out of its range.
    """

    tracks = False
    """Whether the callback makes the record, with an AgingTracker, which can measure shards of the weights.

    Its options then apply to the record.
    """

    def __init__(self, schedule: Any, **options: Unpack[MeasurementOptions]) -> None:
        super().__init__()
        check_known(type(self).__name__, options, MeasurementOptions)
        self.max_share = check_share(options.get("max_share", 0.05))
        self.schedule = schedule
        self.name = check_name(options.get("name", "glassy"))
        dirpath = options.get("dirpath")
        self.dirpath = None if dirpath is None else directory_of(dirpath)
        self.save = options.get("save", True)
        self.summary = options.get("summary", True)
        self.logged = check_logged(options)
        self._recorder: Recorder | None = None
        self._forget()

    def _forget(self) -> None:
        """Forget the training that is under way."""
        for watcher in (getattr(self, "_standstill", None), getattr(self, "_before_update", None)):
            if watcher is not None:
                watcher.close()
        self._next_event, self._waits = NEVER, True
        self._seen = self._updates = -1  # step of the last event, and number of updates before it
        self._automatic = self._exact = False
        self._standstill: Standstill | None = None
        self._before_update: BeforeUpdate | None = None
        self.trained = TrainedWeights()
        # Lightning adds these methods of the module to each callback.
        vars(self).pop("log", None)
        vars(self).pop("log_dict", None)

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings and the record for pickle and copy, without the training that is under way."""
        forgotten: dict[str, Any] = {"_next_event": NEVER, "_waits": True, "_seen": -1, "_updates": -1}
        forgotten |= {"_exact": False, "_standstill": None, "_before_update": None, "trained": TrainedWeights()}
        kept = {name: value for name, value in self.__dict__.items() if name not in ("log", "log_dict")}
        return kept | forgotten

    @property
    def recorder(self) -> Recorder:
        """The recorder of the record, from the start of training on."""
        assert self._recorder is not None
        return self._recorder

    @property
    def record(self) -> AgingRecord:
        """The record so far. It is complete at the end of training.

        Raises:
            RuntimeError: training has not started, or this process does not measure.
        """
        if self._recorder is None or self._recorder.record is None:
            who = type(self).__name__
            raise RuntimeError(
                "there is no record yet: training has not started in this process, or configure_callbacks() of the "
                f"module has replaced this {who} (then find the other one in trainer.callbacks). Under ddp_spawn, and "
                "on ranks other than 0, read the file: AgingRecord.load('<log dir>/glassy/aging_record.npz')"
            )
        return self._recorder.record

    @property
    def progress(self) -> Progress:
        """Number and time of the measurements so far."""
        return self.recorder.progress(type(self).__name__)

    def describe(self) -> dict[str, Any]:
        """Return facts for the metadata of the record, as JSON values."""
        return {}

    def facts(self) -> dict[str, Any] | None:
        """Return the entry of the callback in the metadata of the record, without its cost, or ``None``."""
        return self.describe()

    def follower(self, trainer: Trainer, module: LightningModule) -> Callable[[TrackerEvent], Iterable[Finding]] | None:
        """Return a function that runs at each event of an AgingMonitor of the same name, or ``None``."""
        return None

    def report(self, record: AgingRecord) -> list[str]:
        """Return the lines to print at the end of training: the number of measurements, and their time."""
        cost = self.recorder.cost(type(self).__name__)
        return [
            f"{type(self).__name__}: {cost['measurements']} measurements took {cost['seconds']:.3g} s, "
            f"{cost['fraction_of_training']:.1%} of the time of the training"
            + (f"; {cost['left_out']} were left out (max_share={self.max_share})" if "left_out" in cost else "")
        ]

    # ------------------------------------------------------------------ hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse an unsuitable strategy before anything is moved or sharded. Find or make the recorder."""
        if stage != "fit":
            return
        check_strategy(trainer.strategy, type(self).__name__, whole=not self.tracks)
        if self._recorder is not None and self._recorder.busy_elsewhere(trainer):
            raise MisconfigurationException(
                f"this {type(self).__name__} measures the training of another Trainer, which is under way: give this "
                "Trainer a callback of its own"
            )
        self._forget()
        self._join(trainer).expect(pl_module)

    def _join(self, trainer: Trainer) -> Recorder:
        """Find or make the recorder of the name of this callback in a Trainer."""
        who, name = type(self).__name__, unique_name(trainer, self)
        others = of_kind(trainer, Recording)
        twins = [other for other in others if type(other).__name__ == who and unique_name(trainer, other) == name]
        if len(twins) > 1:
            raise MisconfigurationException(
                f"there are {len(twins)} {who} called {self.name!r}: give each another name"
            )
        found = (other._recorder for other in others)
        known = (recorder for recorder in found if recorder is not None and recorder.belongs_to(trainer, name))
        self._recorder = next(known, None) or Recorder(name, trainer)
        return self._recorder

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the record, or go on with it."""
        if self._join(trainer).running:
            return
        members = [member for member in of_kind(trainer, Recording) if member._join(trainer) is self._recorder]
        first = next((member for member in members if member.tracks), members[0])
        place = Place(
            who=type(first).__name__,
            loggers=trainer.loggers,
            root=trainer.default_root_dir,
            dirpath=first.dirpath,
            save=first.save and not trainer.fast_dev_run,  # type: ignore[attr-defined]
            here=trainer.is_global_zero,
            logged=first.logged,
        )
        followers = {type(member).__name__: member.follower(trainer, pl_module) for member in members}
        self.recorder.begin(
            place,
            {type(member).__name__: member for member in members},
            pl_module,
            trainer.global_step,
            {who: follower for who, follower in followers.items() if follower is not None},
        )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check whether the epoch updates the weights."""
        self.trained.look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember some weights, which another callback may replace before the end."""
        self.trained.look(trainer)
        self.trained.remember(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measure the state right before the first update, after all hooks that may set the weights."""
        if self._waits:
            self._begin(trainer, pl_module, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Make the measurements that are due. At most steps this only compares two numbers."""
        step = trainer.global_step
        if not self._seen < step < self._next_event:
            self._look(trainer, pl_module, step)

    def _begin(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        """Measure the first step of a fit. In manual optimisation, check whether the steps are counted."""
        if self._standstill is None:
            self._automatic = pl_module.automatic_optimization
            self.recorder.count_updates(trainer.optimizers, step)
            self.recorder.check_weights()
            self.note_event(step)
            self.measure_now(trainer, pl_module, first=True)
            self._before_update = BeforeUpdate(trainer.optimizers, pl_module, partial(self._again, trainer, pl_module))
            # Lightning counts the steps of manual optimisation only if they go through its own optimisers.
            self._waits = not self._automatic
            self._standstill = Standstill(pl_module, step) if self._waits else None
            return
        why = self._standstill.reason(step)
        if why:
            self.recorder.tell(why)
        self._waits = not why and step == self._standstill.step
        if not self._waits:
            self._standstill.close()

    def _again(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the state before the first update once more, because the weights have been set since then."""
        self.recorder.go_back(trainer.global_step, noted=False)
        self.measure_now(trainer, pl_module, first=True)

    def _look(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        """Make the measurements that are due. Cut the record if the training has gone back to an earlier step."""
        again = step == self._seen and self._exact and self.recorder.updates > self._updates
        gone_back = (step < self._seen or again) and not self.recorder.given_up
        if gone_back:
            self.recorder.go_back(step)
            self.note_event(step)
        if gone_back or step >= self._next_event:
            self.measure_now(trainer, pl_module)

    def measure_now(self, trainer: Trainer, pl_module: LightningModule, *, first: bool = False) -> None:
        """Make the measurements that are due at the present step.

        Args:
            trainer: the Trainer.
            pl_module: its module.
            first: whether this is before the first update of a fit.
        """

    def note_event(self, step: int) -> None:
        """Remember the step of an event, and the number of updates before it."""
        self._seen, self._updates = step, self.recorder.updates
        # In manual optimisation, there may be updates that are no steps.
        self._exact = self._automatic or self.recorder.counts_all
        if self._before_update is not None and self._before_update.done:
            self._before_update.close()
            self._before_update = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the record after the last callback that writes to it, and print the summaries."""
        # All processes make the same decision, also processes that hold no weights.
        if not trainer.strategy.reduce_boolean_decision(self.trained.are_in_place(trainer)):
            self.recorder.end_trajectory()
        self._end_standstill(trainer)
        if self.recorder.leave(type(self).__name__, trainer.global_step, completed=True) and trainer.is_global_zero:
            print_lines(trainer.print, self.recorder.summary())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep the measurements so far. Lightning may call neither ``on_train_end`` nor ``teardown`` after this."""
        if not self._is_ours(trainer):
            return
        # Averages are in the place of the weights during a validation.
        if not trainer.training and any(is_a(callback, "WeightAveraging") for callback in trainer.callbacks):  # type: ignore[attr-defined]
            self.recorder.end_trajectory()
        self._forget()
        if self.recorder.leave(type(self).__name__, trainer.global_step):
            self.recorder.draw()

    def _is_ours(self, trainer: Trainer) -> bool:
        """Return whether this callback measures the training of this Trainer, and not an enclosing training."""
        return self._recorder is not None and self._recorder.belongs_to(trainer, unique_name(trainer, self))

    def _end_standstill(self, trainer: Trainer) -> None:
        if self._standstill is not None:
            why = self._standstill.reason(trainer.global_step, at_end=True)
            if why:
                self.recorder.tell(why)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the state that a resumed training needs, as tensors and plain values."""
        if not self._is_ours(trainer) or self.recorder.name in checkpoint.get(_KEY, {}):
            return
        state = self.recorder.state_dict(trainer.global_step, pl_module)
        if state is not None:
            checkpoint.setdefault(_KEY, {})[self.recorder.name] = state

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the state that :meth:`on_save_checkpoint` added. It is used when training starts."""
        states = checkpoint.get(_KEY)
        if not trainer.training or not isinstance(states, dict):
            return
        recorder = self._join(trainer)
        if recorder.running:
            # A callback goes back to a checkpoint. If the checkpoint is of this training, the next batch detects it.
            state = states.get(recorder.name)
            # The first process wrote the state, with random names that the others do not have.
            if state is not None and not trainer.strategy.broadcast(recorder.knows(state)):
                recorder.give_up("the checkpoint of another training has been restored in the middle of this one")
            return
        checkpoint_path = None if trainer.ckpt_path is None else directory_of(trainer.ckpt_path)
        near = checkpoint_path.parent / SNAPSHOTS if isinstance(checkpoint_path, Path) else None
        recorder.load_state_dict(states.get(recorder.name), near)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free the snapshots, and everything that refers to the weights."""
        if stage != "fit" or not self._is_ours(trainer):
            return
        self._forget()
        self.recorder.let_go()

    def on_after_setup(self) -> NoReturn:
        """Refuse a Fabric, which calls this method. A Trainer does not call it.

        Raises:
            MisconfigurationException: always.
        """
        raise MisconfigurationException(
            f"{type(self).__name__} is a callback for a Trainer. In Fabric(callbacks=[...]), use FabricAgingMonitor"
        )

    def on_after_optimizer_step(self, strategy: Any, optimizer: Any) -> NoReturn:
        """Refuse a Fabric whose module and optimisers are set up separately."""
        self.on_after_setup()


def of_kind(trainer: Trainer, kind: type[R]) -> list[R]:
    """Return the callbacks of a Trainer that are instances of a class."""
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]


def unique_name(trainer: Trainer, callback: Recording) -> str:
    """Return the name of the record of a callback. AgingMonitors of the same name have separate records."""
    names: dict[int, str] = {}
    for monitor in of_kind(trainer, Recording):
        if monitor.tracks:
            candidates = (f"{monitor.name}_{i}" if i > 1 else monitor.name for i in itertools.count(1))
            names[id(monitor)] = next(name for name in candidates if name not in names.values())
    return names.get(id(callback), callback.name)

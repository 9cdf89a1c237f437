"""Measure the response of a training to a small random field, with clones that feel the field."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.data import DataLoader, Dataset
from typing_extensions import Unpack

from lightning_glassy.callbacks.pairs import PairMeasurement
from lightning_glassy.callbacks.recorder import MeasurementOptions
from lightning_glassy.callbacks.run import is_a, makes_no_updates, overrides, schedule_of
from lightning_glassy.measure.select import plain_name
from lightning_glassy.measure.snapshots import Snapshot
from lightning_glassy.measure.tracker import Finding, TrackerEvent
from lightning_glassy.record.tables import RESPONSE_TABLE
from lightning_glassy.replicas.ensemble import ReplicaEnsemble
from lightning_glassy.schedule import LogTimeSchedule, ScheduleLike

_KEY = "lightning_glassy_response"
"""Key of the clones in a checkpoint."""

DEFAULT_SCHEDULE = LogTimeSchedule.logspaced(waiting_times_per_decade=1, first_waiting_time=10, zero=False)
"""Waiting times 10, 100, 1000 and so on."""


class ResponseMonitor(PairMeasurement):
    r"""Measures the response of the weights to a small random field, from chosen waiting times on.

    At a waiting time :math:`t_w` the callback makes a clone of the training: the same weights, optimiser state,
    minibatches and random numbers from there on. The loss of the clone has the additional term
    :math:`-h\sum_i\epsilon_i w_i` with random signs :math:`\epsilon_i = \pm 1`. The integrated response is

    .. math:: \chi(t_w+t, t_w) = \frac{1}{hN}\sum_i \epsilon_i\,[w^h_i(t_w+t) - w_i(t_w+t)] .

    In equilibrium at the temperature T, the fluctuation-dissipation theorem is :math:`\chi = \Delta/(2T)`. Out of
    equilibrium, the slope of :math:`\chi` against the correlation, or against half the displacement, defines an
    effective temperature. In a glass it depends on the time sector (Cugliandolo and Kurchan 1993, Phys. Rev. Lett. 71,
    173). :func:`lightning_glassy.analysis.fluctuation_dissipation` computes it, with its errors and doubts.

    The response is in the record, ``record.response()``, at the pairs of times of the :class:`AgingMonitor` with the
    same ``name``. The field acts on all weights that this AgingMonitor tracks (``include``, ``exclude``), even if it
    measures the displacements of a sample. It appears in the report and the tab. If there is no such
    AgingMonitor, the callback adds one with its own schedule.

    Replicas of a :class:`ReplicaEnsemble` are cloned together, and each replica has its own signs. The scatter of the
    replicas is then the error of the response. Several strengths h test whether the response is linear. The replicas
    take them in turn, so that more strengths cost no more clones. A strength is small enough if the responses to
    different strengths agree. It is too small if :math:`h\chi` is near the rounding of the weights.

    Cost: a clone makes one pass forward and backward for each pass of the training, from its waiting time to the last
    lag of this waiting time. With K waiting times, the run makes at most K + 1 times the passes of the training
    (``benchmarks/results/response.md`` has the times). It needs the memory of K copies of the module, its gradients and
    its optimiser, and of the signs.
    A checkpoint contains the clones, so that a resumed training has the same response.

    The training is the same, bit for bit, with the callback and without it. A clone without a field is equal to the
    training, bit for bit. Its training step logs nothing. Random numbers of torch, NumPy and Python, and generators
    among the attributes of the module, are the same in the training and its clones. Generators elsewhere cannot be
    cloned. A clone runs the hooks of the module, but no callbacks. Therefore, other callbacks must not change the
    gradients. A callback that draws random numbers or changes the batch in ``on_train_batch_start`` must be before this
    callback in the list of the Trainer. Functions and hooks that the module keeps must not refer to the module from
    outside of their arguments.

    Args:
        field: h, in units of the loss per weight, or several strengths for the replicas in turn.
        schedule: a :class:`LogTimeSchedule`, a number per decade, or the name of a preset. Its waiting times are used,
            each at the first waiting time of the AgingMonitor at or after it. All lags of the AgingMonitor are
            measured. Default: the waiting times 10, 100, 1000 and so on.
        seed: seed of the signs. Runs that are averaged need different seeds.
        **options: ``name``, ``dirpath``, ``save`` and ``summary``, see
            :class:`~lightning_glassy.callbacks.recorder.MeasurementOptions`. A clone cannot leave out steps, so
            ``max_share`` has no effect here and is refused.

    Raises:
        TypeError: at construction, an argument has the wrong type.
        ValueError: at construction, an argument is out of its range.
        MisconfigurationException: before training, the strengths are more than the replicas, there are several
            processes, the optimisation is manual, the optimiser is LBFGS, ``training_step`` takes an iterator, the
            gradients are scaled (precision 16-mixed), or the weights are complex or have 16 bits. The message names
            the remedy.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ResponseMonitor(field=1e-3)], logger=False)
    """

    profile = RESPONSE_TABLE.name

    def __init__(
        self,
        field: float | Sequence[float],
        schedule: ScheduleLike = DEFAULT_SCHEDULE,
        *,
        seed: int = 0,
        **options: Unpack[MeasurementOptions],
    ) -> None:
        if options.get("max_share") is not None:
            raise ValueError(
                f"max_share={options['max_share']!r}: a clone cannot leave out steps, and costs a training from its "
                "waiting time on. Leave out max_share, and choose fewer waiting times"
            )
        options["max_share"] = None
        super().__init__(schedule, **options)
        self.field = _strengths(field)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed={seed!r} must be a whole number, 0 or more")
        self.seed = seed
        self._clear()

    def _clear(self) -> None:
        self._clones: dict[int, _Clone] = {}  # by their waiting times
        self._batch: _Batch | None = None
        self._over: _Over | None = None  # the last batch, until the clones have had their hook of its end
        self._waiting: LogTimeSchedule | None = None
        self._latest = -1  # the last waiting time with a clone
        self._passes = 0  # of clones that have ended
        self._restored: Mapping[str, Any] | None = None  # clones of a checkpoint, or of the last fit

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings and the record for pickle and copy, without the training that is under way."""
        nothing: dict[str, Any] = {
            "_clones": {},
            "_batch": None,
            "_over": None,
            "_waiting": None,
            "_latest": -1,
            "_passes": 0,
            "_restored": None,
        }
        return super().__getstate__() | nothing

    # ------------------------------------------------------------------ hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a training that cannot be cloned, before anything is moved."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        sizes = {part.n_replica for part in pl_module.modules() if isinstance(part, ReplicaEnsemble)}
        n_replica = sizes.pop() if len(sizes) == 1 else 1
        who, why = type(self).__name__, None
        if len(self.field) > n_replica:
            why = (
                f"has field={list(self.field)}, {len(self.field)} strengths for {n_replica} replica: give one "
                f"strength, or train a ReplicaEnsemble of at least {len(self.field)} replicas, which take them in turn"
            )
        elif trainer.world_size > 1:
            why = f"cannot clone a training of {trainer.world_size} processes: train in one process"
        elif not pl_module.automatic_optimization:
            why = (
                f"cannot clone the manual optimisation of {type(pl_module).__name__}: use automatic optimisation, or "
                "leave it out"
            )
        elif getattr(trainer.precision_plugin, "scaler", None) is not None:
            why = (
                f"cannot clone a training with a gradient scaler (precision={trainer.precision!r}): use 'bf16-mixed' "
                "or '32-true'"
            )
        elif is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
            why = (
                f"cannot give a clone the batches that {type(pl_module).__name__} takes from an iterator: take a batch"
            )
        if why is not None:
            raise MisconfigurationException(f"{who} {why}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse weights and optimisers that cannot be cloned."""
        super().on_train_start(trainer, pl_module)
        who = type(self).__name__
        if any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers):
            raise MisconfigurationException(
                f"{who} cannot clone LBFGS, which evaluates the loss several times in a step: use SGD, for example"
            )
        for name, weights in pl_module.named_parameters():
            if weights.requires_grad and weights.dtype not in (torch.float32, torch.float64):
                raise MisconfigurationException(
                    f"{who}: the weights {name!r} are {weights.dtype}, whose rounding would hide a small response: "
                    "train with precision='32-true' or 'bf16-mixed'"
                )
        restored = self._restored
        self._clear()
        self._waiting, self._restored = schedule_of(self.schedule, trainer, pl_module), restored

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Call the hook of the clones."""
        super().on_train_epoch_start(trainer, pl_module)
        for clone in list(self._clones.values()):
            self._attempt(trainer, clone, clone.module.on_train_epoch_start)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Call the hook of the clones."""
        super().on_train_epoch_end(trainer, pl_module)
        self._finish_batch(trainer)
        for clone in list(self._clones.values()):
            self._attempt(trainer, clone, clone.module.on_train_epoch_end)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Call the hook of the clones at the end of the last batch."""
        self._finish_batch(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Compute the gradients of the clones on the batch, with the random numbers that the training will draw."""
        self._finish_batch(trainer)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._resume(trainer, pl_module)
        if makes_no_updates(trainer):
            return
        self._batch = _Batch(batch, batch_idx, trainer.global_step)
        for clone in list(self._clones.values()):
            if self.recorder.given_up:
                self._end(clone)
            elif clone.step != trainer.global_step:
                self._end(clone)
                self.recorder.tell(
                    f"the training is at step {trainer.global_step}, and its clone of waiting time "
                    f"{clone.waiting_time} is at step {clone.step}: the response after this waiting time ends there"
                )
            else:
                self._attempt(trainer, clone, partial(clone.differentiate, trainer, pl_module, self._batch))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Update the clones, with the settings of this update of the training."""
        for clone in list(self._clones.values()):
            self._attempt(trainer, clone, partial(clone.update, trainer, pl_module, optimizer, self._batch))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Forget the batch. The hook of the clones comes later, because the module has its own after all callbacks."""
        self._batch = None
        if overrides(pl_module, "on_train_batch_end"):
            self._over = _Over(outputs, batch, batch_idx, _random_numbers())
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the clones with the state of the record."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if not self._is_ours(trainer):
            return
        # The clones of a checkpoint are made at the first batch. After a fit, there is only their state.
        under_way = self._waiting is not None and self._restored is None
        state = self._state(trainer.global_step) if under_way else self._restored
        if state is not None:
            checkpoint.setdefault(_KEY, {})[self.recorder.name] = state

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the clones of a checkpoint. They are made at the first batch."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        states = checkpoint.get(_KEY)
        if trainer.training and not self.recorder.running:
            self._restored = states.get(self.recorder.name) if isinstance(states, dict) else None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Free the clones, and keep their state for a checkpoint."""
        super().on_exception(trainer, pl_module, exception)
        self._let_go(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free the clones, and keep their state for a fit that goes on from here."""
        super().teardown(trainer, pl_module, stage)
        if stage == "fit":
            self._let_go(trainer)

    # ------------------------------------------------------------------ measuring

    def describe(self) -> dict[str, Any]:
        """Return the strengths of the field, the seed, and the number of passes of all clones through the network."""
        return {"field": list(self.field), "seed": self.seed, "clone_passes": self._count()}

    def follow(self, trainer: Trainer, module: LightningModule, event: TrackerEvent) -> list[Finding]:
        """Measure the clones, and make a new clone if the weights of a wanted waiting time are captured."""
        self._resume(trainer, module)
        found: list[Finding] = []
        clones = {t_w: clone for t_w, clone in self._clones.items() if clone.step == event.step > t_w}
        due = [snapshot for snapshot in event.due if snapshot.waiting_time in clones]
        if due:
            with self.progress.timed():
                found = self.measure(trainer, module, event, due)
            self.progress.count += len(found)
            self.recorder.note()
        for snapshot in due:
            tracker, lag = self.recorder.tracker, event.step - snapshot.waiting_time
            if tracker is not None and tracker.schedule.next_lag(lag, snapshot.waiting_time) is None:
                self._end(clones[snapshot.waiting_time])
        if event.captured is not None and self._waiting is not None:
            # The measurement before the first update may be repeated.
            wanted = self._waiting.next_waiting_time(min(self._latest, event.step - 1))
            if wanted is not None and wanted <= event.step:
                self._latest = event.step
                self._begin_clone(trainer, module, event.step)
        return found

    @torch.no_grad()
    def measure(
        self, trainer: Trainer, module: LightningModule, event: TrackerEvent, snapshots: list[Snapshot]
    ) -> list[Finding]:
        """Return the responses of the clones of some waiting times."""
        weights = _by_name(module)
        found = []
        for snapshot in snapshots:
            t_w, values = snapshot.waiting_time, self._clones[snapshot.waiting_time].response(weights)
            found.append(Finding(self.profile, t_w, event.step - t_w, None, values))
        return found

    # ------------------------------------------------------------------ inside

    def _count(self) -> int:
        """Return the number of passes of all clones through the network, forward and backward."""
        return self._passes + sum(clone.passes for clone in self._clones.values())

    def _begin_clone(self, trainer: Trainer, module: LightningModule, waiting_time: int) -> None:
        """Make the clone of a waiting time, and let it see the batch under way. A failure costs a warning."""
        try:
            clone = self._made(trainer, module, waiting_time)
        except Exception as error:
            self.recorder.warn(
                f"{type(module).__name__} or its optimiser cannot be copied, and the response after step "
                f"{waiting_time} is not measured",
                error,
                type(self).__name__,
            )
            return
        if self._batch is not None and self._batch.step == waiting_time:  # the hook of this batch is over
            self._attempt(trainer, clone, partial(clone.differentiate, trainer, module, self._batch))

    def _made(self, trainer: Trainer, module: LightningModule, waiting_time: int) -> _Clone:
        """Make the clone of a waiting time."""
        tracker = self.recorder.tracker
        assert tracker is not None  # it calls this callback
        n_replica = tracker.record.n_replica
        strengths = [self.field[r % len(self.field)] for r in range(n_replica or 1)]
        h = torch.tensor(strengths, dtype=torch.float64, device="cpu")
        generator = torch.Generator("cpu").manual_seed((1_000_003 * self.seed + waiting_time) % 2**63)
        fields: dict[str, Tensor] = {}
        for name, tensor in tracker.parameters.tensors.items():
            signs = torch.randint(2, tensor.shape, generator=generator, device="cpu").mul_(2).sub_(1)
            axes = (-1, *[1] * (signs.dim() - 1)) if n_replica is not None else ()
            fields[name] = (signs * h.view(axes)).to(tensor.device, tensor.dtype)
        clone = _Clone(waiting_time, *_copies(trainer, module), fields, strengths, n_replica is not None)
        self._clones[waiting_time] = clone
        return clone

    def _finish_batch(self, trainer: Trainer) -> None:
        """Call the hook of the clones at the end of a batch, with the random numbers that the module had."""
        over, self._over = self._over, None
        if over is None:
            return

        def call(clone: _Clone) -> None:
            _set_random_numbers(over.random_numbers)
            outputs = over.outputs if clone.outputs is None else clone.outputs
            clone.module.on_train_batch_end(outputs, over.content, over.place)
            clone.outputs = None

        for clone in list(self._clones.values()):
            self._attempt(trainer, clone, partial(call, clone))

    def _end(self, clone: _Clone) -> None:
        """Free a clone."""
        if self._clones.get(clone.waiting_time) is clone:
            self._passes += clone.passes
            del self._clones[clone.waiting_time]

    def _attempt(self, trainer: Trainer, clone: _Clone, action: Callable[[], object]) -> None:
        """Do something with a clone, and leave the training as it is. End a clone that fails."""
        with self.progress.timed():
            try:
                with _apart(trainer, clone.optimizer):
                    action()
            except Exception as error:
                self._end(clone)
                self.recorder.warn(
                    f"the clone of waiting time {clone.waiting_time} has failed, and is given up",
                    error,
                    type(self).__name__,
                )

    def _state(self, step: int) -> dict[str, Any]:
        """Return the state for a checkpoint. A clone without a state is ended."""
        states = []
        for clone in list(self._clones.values()):
            try:
                states.append(clone.state())
            except Exception as error:
                self._end(clone)
                self.recorder.warn(
                    f"the clone of waiting time {clone.waiting_time} cannot be saved, and is given up",
                    error,
                    type(self).__name__,
                )
        return {
            "step": step,
            "record": self._record_id(),
            "field": list(self.field),
            "seed": self.seed,
            "latest": self._latest,
            "passes": self._passes,
            "clones": states,
        }

    def _record_id(self) -> Any:
        return None if self.recorder.record is None else self.recorder.record.meta.get("id")

    def _let_go(self, trainer: Trainer) -> None:
        """Free the clones, and keep their state in host memory."""
        if self._waiting is not None and self._is_ours(trainer):
            state = self._restored
            if state is None:
                state = tree_map_only(Tensor, lambda t: t.detach().cpu().clone(), self._state(trainer.global_step))
            self._clear()
            self._restored = state

    def _resume(self, trainer: Trainer, module: LightningModule) -> None:
        """Make the clones of a checkpoint or of the last fit, if the record goes on from there."""
        state, self._restored = self._restored, None
        if state is None:
            return
        try:
            if state["record"] == self._record_id() and state["step"] == trainer.global_step:
                self._restore(trainer, module, state)
            elif state["clones"]:
                self.recorder.tell(
                    f"the clones of step {state['step']} do not belong to this record and step {trainer.global_step}: "
                    "the response after their waiting times ends there"
                )
        except Exception as error:
            self.recorder.warn("the clones of the checkpoint cannot go on", error, type(self).__name__)

    def _restore(self, trainer: Trainer, module: LightningModule, state: Mapping[str, Any]) -> None:
        self._latest, self._passes = state["latest"], state["passes"]
        theirs, mine = (state["field"], state["seed"]), (list(self.field), self.seed)
        if theirs != mine:
            self._passes += sum(of_clone["passes"] for of_clone in state["clones"])
            self.recorder.tell(
                f"the clones of the checkpoint have field={theirs[0]} and seed={theirs[1]}, and this "
                f"{type(self).__name__} has {mine[0]} and {mine[1]}: the response to the earlier field ends here"
            )
            return
        for of_clone in state["clones"]:
            clone = self._made(trainer, module, of_clone["waiting_time"])
            self._attempt(trainer, clone, partial(clone.load, of_clone))


class _Batch(NamedTuple):
    """A batch, its number in the epoch, and the number of updates before it."""

    content: Any
    place: int
    step: int


class _Over(NamedTuple):
    """A batch at its end: the outputs of the training, the batch, its number, and the states of the random numbers."""

    outputs: Any
    content: Any
    place: int
    random_numbers: tuple[Any, ...]


class _Clone:
    """A copy of a module and its optimiser that is trained with a field.

    Args:
        waiting_time: step of the copy.
        module: the copy of the module.
        optimizer: the copy of its optimiser.
        fields: strength times signs for each parameter, by name.
        strengths: strength of each replica.
        stacked: whether the first axis of the parameters runs over replicas.
    """

    def __init__(
        self,
        waiting_time: int,
        module: LightningModule,
        optimizer: Optimizer,
        fields: dict[str, Tensor],
        strengths: list[float],
        stacked: bool,
    ) -> None:
        self.waiting_time, self.module, self.optimizer = waiting_time, module, optimizer
        self._fields, self._strengths, self._stacked = fields, strengths, stacked
        self._weights = _by_name(module)
        self.step, self.passes = waiting_time, 0
        self.outputs: Any = None
        self._seen: _Batch | None = None  # the last batch with gradients

    def differentiate(self, trainer: Trainer, original: LightningModule, batch: _Batch) -> None:
        """Add the gradient of a batch, in the modes of the training, as Lightning does it."""
        module, optimizer = self.module, self.optimizer
        for part, of in zip(module.modules(), original.modules(), strict=True):
            part.training = of.training
        for weights, of_original in zip(module.parameters(), original.parameters(), strict=True):
            if weights.requires_grad != of_original.requires_grad:  # a callback has frozen it, or the reverse
                weights.requires_grad_(of_original.requires_grad)
        content = copy.deepcopy(batch.content)  # a step may write into its batch
        with torch.enable_grad(), _untouched(original):
            if module.on_train_batch_start(content, batch.place) == -1:  # skip the rest of the epoch
                return
            with trainer.precision_plugin.forward_context():
                indexed = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
                outputs = module.training_step(content, batch.place) if indexed else module.training_step(content)
            if batch.place % trainer.accumulate_grad_batches == 0:
                module.on_before_zero_grad(optimizer)
                module.optimizer_zero_grad(trainer.current_epoch, batch.place, optimizer)
            extra = dict(outputs) if isinstance(outputs, Mapping) else {"loss": outputs}
            loss, self.outputs = extra["loss"], {}
            if loss is not None:
                loss = loss / trainer.accumulate_grad_batches
                self.outputs = extra | {"loss": loss.detach().clone()}
                module.on_before_backward(loss)
                module.backward(loss)
                module.on_after_backward()
        self._seen = batch
        self.passes += 1

    def update(self, trainer: Trainer, original: LightningModule, optimizer: Optimizer, batch: _Batch | None) -> None:
        """Make an update like the training, with its present settings, and with the field."""
        if batch is None or self._seen is not batch:
            return
        mine = dict(zip(original.parameters(), self.module.parameters(), strict=True))
        for of_original in optimizer.param_groups[len(self.optimizer.param_groups) :]:  # added by a callback
            self.optimizer.add_param_group(of_original | {"params": [mine[p] for p in of_original["params"]]})
        for group, of_original in zip(self.optimizer.param_groups, optimizer.param_groups, strict=True):
            group.update({name: value for name, value in of_original.items() if name != "params"})
        with torch.no_grad():
            for name, field in self._fields.items():
                gradient = self._weights[name].grad
                if gradient is not None:  # an optimiser leaves weights without a gradient in place
                    gradient.sub_(field)

        def closure() -> Any:
            self.module.on_before_optimizer_step(self.optimizer)
            self.module.configure_gradient_clipping(
                self.optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm
            )
            return self.outputs.get("loss")

        step, self.step = self.step, -1  # an interruption in the middle of the update leaves no valid clone
        self.module.optimizer_step(trainer.current_epoch, batch.place, self.optimizer, closure)
        self.step = step + 1

    def response(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the row of a record: ``[3]``, or ``[n_replica, 3]``, on the device of the weights."""
        total: Tensor | None = None
        n = len(self._strengths)
        for name, field in self._fields.items():
            exact = torch.float32 if field.device.type == "mps" else torch.float64
            d = (self._weights[name].detach().to(exact) - weights[name].detach().to(exact)).reshape(n, -1)
            sums = torch.stack([(d * field.reshape(n, -1)).sum(1), (d * d).sum(1)], dim=1)
            total = sums if total is None else total + sums.to(total.device)
        assert total is not None  # nothing to track is refused
        h = torch.tensor(self._strengths, dtype=total.dtype, device=total.device)
        rows = torch.stack([total[:, 0] / h, total[:, 1], h], dim=1)
        return rows if self._stacked else rows[0]

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        of_module: dict[str, Any] = {"state_dict": self.module.state_dict()}
        self.module.on_save_checkpoint(of_module)
        return {
            "waiting_time": self.waiting_time,
            "step": self.step,
            "passes": self.passes,
            "module": of_module,
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take the state of a checkpoint."""
        self.module.on_load_checkpoint(state["module"])
        self.module.load_state_dict(state["module"]["state_dict"])
        if self.optimizer.state:  # a second fit starts with a new optimiser, without momentum
            self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.passes = state["step"], state["passes"]


def _by_name(module: LightningModule) -> dict[str, Tensor]:
    """Return the parameters by the names that the record has for them."""
    return {plain_name(name): weights for name, weights in module.named_parameters(remove_duplicate=False)}


def _copies(trainer: Trainer, module: LightningModule) -> tuple[LightningModule, Optimizer]:
    """Return a copy of the module that logs nothing, and a copy of its optimiser for the copied weights.

    Raises:
        Exception: an attribute of the module cannot be copied, or parameters share memory in a way that a copy loses.
    """
    context = getattr(module, "_compiler_ctx", None)
    shared = (trainer, trainer.datamodule, context)  # type: ignore[attr-defined]
    memo: dict[int, Any] = {id(thing): thing for thing in shared}
    for part in module.modules():
        for value in tree_flatten(list(vars(part).values()))[0]:
            if isinstance(value, (Dataset, DataLoader)):
                memo[id(value)] = value  # a clone reads no data, and data may be large
            elif isinstance(value, Tensor) and value.grad_fn is not None:
                memo[id(value)] = value.detach().clone()  # torch copies no tensor in a graph
    copied = copy.deepcopy(module, memo)
    optimizer = copy.deepcopy(trainer.optimizers[0], memo)
    copied.trainer = trainer
    own = {
        "log": _log_nowhere,
        "log_dict": _log_nowhere,
        "optimizers": partial(_optimizer_of_clone, optimizer),
        "lr_schedulers": partial(_schedulers_of_clone, trainer.optimizers[0], trainer.lr_scheduler_configs, optimizer),
    }
    for part in copied.modules():
        if is_a(part, "LightningModule"):
            vars(part).update(own)
    if context is not None:  # compiled methods are functions of the original
        for name in _COMPILED:
            vars(copied).pop(name, None)
            setattr(copied, name, context["dynamo_ctx"](getattr(copied, name)))
    for weights, of_original in zip(copied.parameters(), module.parameters(), strict=True):
        weights.grad = None if of_original.grad is None else of_original.grad.clone()  # of accumulated batches
        for hook in (of_original._backward_hooks or {}).values():
            weights.register_hook(hook)
        for hook in (of_original._post_accumulate_grad_hooks or {}).values():
            weights.register_post_accumulate_grad_hook(hook)
    places, before = (len({weights.data_ptr() for weights in one.parameters()}) for one in (copied, module))
    if places != before:
        raise RuntimeError("different parameters share memory, and a copy would separate them")
    return copied, optimizer


_COMPILED = ("forward", "training_step", "validation_step", "test_step", "predict_step")
"""The methods that Lightning compiles if the module is compiled."""


def _log_nowhere(*_: Any, **__: Any) -> None:
    """Replace ``LightningModule.log``. The values belong to the clone, not to the training."""


def _optimizer_of_clone(optimizer: Optimizer, use_pl_optimizer: bool = True) -> Optimizer:
    """Replace ``LightningModule.optimizers``."""
    return optimizer


def _schedulers_of_clone(original: Optimizer, configs: Sequence[Any], optimizer: Optimizer) -> Any:
    """Replace ``LightningModule.lr_schedulers``. Return copies, because a clone must not step the originals."""
    copies = [copy.deepcopy(config.scheduler, {id(original): optimizer}) for config in configs]
    return copies[0] if len(copies) == 1 else copies or None


@contextmanager
def _untouched(module: LightningModule) -> Iterator[None]:
    """Keep the gradients of the training, and refuse a clone whose loss depends on weights of the training.

    Raises:
        RuntimeError: with the reason and the remedy.
    """
    weights = list(module.parameters())
    gradients = [one.grad for one in weights]
    for one in weights:
        one.grad = None
    try:
        yield
        if any(one.grad is not None for one in weights):
            raise RuntimeError(
                f"the loss of the copy depends on weights of the original: a function among the attributes of "
                f"{type(module).__name__} refers to them. Use a method instead"
            )
    finally:
        for one, gradient in zip(weights, gradients, strict=True):
            one.grad = gradient


def _random_numbers() -> tuple[Any, ...]:
    """Return the states of the random numbers of torch (CPU and CUDA), NumPy and Python."""
    of_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), of_cuda, np.random.get_state(), random.getstate()  # noqa: NPY002


def _set_random_numbers(states: tuple[Any, ...]) -> None:
    """Restore states of the random numbers."""
    of_torch, of_cuda, of_numpy, of_python = states
    torch.set_rng_state(of_torch)
    if of_cuda:
        torch.cuda.set_rng_state_all(of_cuda)
    np.random.set_state(of_numpy)  # noqa: NPY002
    random.setstate(of_python)


@contextmanager
def _apart(trainer: Trainer, optimizer: Optimizer) -> Iterator[None]:
    """Restore the training after the block, in which a clone has the Trainer with its own optimiser and no logger.

    The block draws the random numbers that the training will draw.
    """
    states, loggers, stops, strategy = _random_numbers(), trainer.loggers, trainer.should_stop, trainer.strategy
    of_training = strategy._optimizers, strategy.lr_scheduler_configs
    try:
        trainer.loggers = [DummyLogger() for _ in loggers]
        strategy._optimizers, strategy.lr_scheduler_configs = [optimizer], []
        yield
    finally:
        strategy._optimizers, strategy.lr_scheduler_configs = of_training
        trainer.loggers, trainer.should_stop = loggers, stops
        _set_random_numbers(states)


def _strengths(field: float | Sequence[float]) -> tuple[float, ...]:
    """Return the strengths of the field.

    Raises:
        TypeError: the field is neither a number nor a list of numbers.
        ValueError: a strength is not a positive number, or two are equal.
    """
    found = tuple(field) if isinstance(field, (list, tuple)) else (field,)
    if not found or any(isinstance(h, bool) or not isinstance(h, (int, float)) for h in found):
        raise TypeError(f"field={field!r} must be a positive number, or a list of some")
    if not all(math.isfinite(h) and h > 0 for h in found):
        raise ValueError(f"field={field!r} must be positive: it is a strength, in units of the loss per weight")
    if len(set(found)) < len(found):
        raise ValueError(f"field={field!r} has a strength twice: give each once")
    return tuple(float(h) for h in found)

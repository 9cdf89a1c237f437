"""How alike replicas predict: the overlap of functions, which does not care how hidden units are numbered."""

from __future__ import annotations

import logging
import sys
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_glassy.callbacks.probe import monitor_of
from lightning_glassy.callbacks.shared import check_name
from lightning_glassy.callbacks.undisturbed import undisturbed
from lightning_glassy.replicas.ensemble import ReplicaEnsemble
from lightning_glassy.schedule import LogTimeSchedule

log = logging.getLogger(__name__)

_NEVER = sys.maxsize


class ReplicaOverlap(Callback):
    r"""Compares what the replicas of a :class:`ReplicaEnsemble` predict on a fixed batch, at log-spaced steps.

    Two networks with permuted hidden units have different weights and the same outputs. So the outputs
    :math:`f_a(x)` are compared, in evaluation mode:

    ============================  =========================================================================
    name                          what is in the record, for each pair of replicas a and b
    ============================  =========================================================================
    ``prediction_overlap``        correlation of :math:`f_a` and :math:`f_b` over the samples, each output
                                  minus its mean over the samples. It is 1 if they differ by a constant and a
                                  positive factor
    ``prediction_agreement``      fraction of the samples for which the same output is the largest. It needs
                                  two outputs or more
    ============================  =========================================================================

    The record of the :class:`AgingMonitor` with the same name gets both as matrices (:meth:`AgingRecord.between`), and
    their means over pairs as one-time series. Training is the same, bit for bit, with the callback and without it.
    Under DDP rank 0 compares all replicas.

    Args:
        inputs: the batch, ``[n_sample, ...]``, as one network takes it.
        schedule: a :class:`LogTimeSchedule`, whose waiting times are the steps; default 3 per decade, and step 0.
        name: of the :class:`AgingMonitor`.

    Raises:
        TypeError: at construction, inputs that are no tensor, or a schedule that is none.
        ValueError: at construction, fewer than two samples.
        MisconfigurationException: at the start of training, no :class:`AgingMonitor` of that name, or not one ensemble.

    Example:
        >>> callbacks = [ReplicaOverlap(torch.zeros(10, 784))]
    """

    def __init__(self, inputs: Tensor, schedule: LogTimeSchedule | None = None, *, name: str = "glassy") -> None:
        super().__init__()
        if not isinstance(inputs, Tensor):
            raise TypeError(f"inputs={type(inputs).__name__} is not a tensor, a batch of what one network takes")
        if not inputs.dim() or len(inputs) < 2:
            raise ValueError(f"inputs of shape {tuple(inputs.shape)} are no batch of two samples or more")
        if not isinstance(schedule, (LogTimeSchedule, type(None))):
            raise TypeError(f"schedule={schedule!r} is not a LogTimeSchedule or None")
        self.schedule = LogTimeSchedule.logspaced() if schedule is None else schedule
        self.name = check_name(name)
        self._inputs = inputs
        self._next_event = _NEVER

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the ensemble and the monitor; the first comparison comes before the first batch."""
        self._next_event = _NEVER
        if monitor_of(trainer, self.name) is None:
            raise MisconfigurationException(
                f"ReplicaOverlap: there is no AgingMonitor(name={self.name!r}) whose record it could write to: add one"
            )
        _ensemble(pl_module)
        if trainer.is_global_zero:
            following = self.schedule.next_waiting_time(trainer.global_step - 1)
            self._next_event = _NEVER if following is None else following

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Nothing, at most steps; otherwise compare the networks of so many completed updates."""
        if trainer.global_step >= self._next_event:
            self._event(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What falls on the end of the training."""
        if trainer.global_step >= self._next_event:
            self._event(trainer, pl_module)
        self._next_event = _NEVER

    def _event(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        following = self.schedule.next_waiting_time(step)
        self._next_event = _NEVER if following is None else following
        try:
            with (
                undisturbed(trainer, pl_module, seed=step),
                torch.no_grad(),
                trainer.precision_plugin.forward_context(),
            ):
                pl_module.eval()
                outputs = _ensemble(pl_module)(self._inputs.to(pl_module.device))
            monitor = monitor_of(trainer, self.name)
            assert monitor is not None
            for what, values in compared(outputs).items():
                monitor.record.append_between(what, step, values.double().cpu().numpy())
                pairs = torch.triu_indices(len(values), len(values), 1)
                if pairs.numel():
                    mean = values.cpu()[pairs[0], pairs[1]].mean()
                    monitor.record.append_one_time(what, step, float(mean))
        except Exception as error:
            log.warning(
                "ReplicaOverlap: the replicas are not compared from step %d on (%s: %s); training goes on",
                step,
                type(error).__name__,
                error,
            )
            self._next_event = _NEVER


def _ensemble(module: LightningModule) -> ReplicaEnsemble:
    found = [part for part in module.modules() if isinstance(part, ReplicaEnsemble)]
    if len(found) != 1:
        raise MisconfigurationException(
            f"ReplicaOverlap: {type(module).__name__} has {len(found)} ReplicaEnsembles, and one is needed"
        )
    return found[0]


def compared(outputs: Tensor) -> dict[str, Tensor]:
    """The matrices ``[n_replica, n_replica]`` of :class:`ReplicaOverlap`, from outputs ``[n_replica, n_sample, ...]``.

    Raises:
        TypeError: outputs that are no tensor.
    """
    if not isinstance(outputs, Tensor):
        raise TypeError(f"the networks return {type(outputs).__name__}, and tensors can be compared")
    f = outputs.double().flatten(2) if outputs.dim() > 2 else outputs.double().unsqueeze(-1)
    centred = (f - f.mean(1, keepdim=True)).flatten(1)
    products = centred @ centred.T
    lengths = products.diagonal().sqrt()
    found = {"prediction_overlap": products / (lengths[:, None] * lengths[None, :])}
    if f.shape[-1] > 1:
        best = f.argmax(-1)
        found["prediction_agreement"] = (best[:, None] == best[None, :]).double().mean(-1)
    return found

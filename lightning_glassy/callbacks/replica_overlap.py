"""Compare the predictions of replicas. The overlap of functions does not depend on the order of hidden units."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import Unpack

from lightning_glassy.callbacks.measurement import Measurement
from lightning_glassy.callbacks.recorder import MeasurementOptions
from lightning_glassy.callbacks.recording import Recording, of_kind
from lightning_glassy.callbacks.undisturbed import undisturbed
from lightning_glassy.replicas.ensemble import ReplicaEnsemble
from lightning_glassy.schedule import StepsLike


class ReplicaOverlap(Measurement):
    r"""Compares the predictions of the replicas of a :class:`ReplicaEnsemble` on a fixed batch, at log-spaced steps.

    Two networks with permuted hidden units have different weights and the same outputs. Therefore the outputs
    :math:`f_a(x)` are compared, in evaluation mode:

    ============================  =========================================================================
    name                          matrix in the record, for each pair of replicas a and b
    ============================  =========================================================================
    ``prediction_overlap``        correlation of :math:`f_a` and :math:`f_b` over the samples, each output
                                  minus its mean over the samples. It is 1 if they differ by a constant and a
                                  positive factor
    ``prediction_agreement``      fraction of the samples for which the same output is the largest. It needs
                                  two outputs or more
    ============================  =========================================================================

    The record of the :class:`AgingMonitor` with the same name gets both as matrices (:meth:`AgingRecord.between`), and
    their means over pairs as one-time series, which loggers get as ``glassy_series/<name>``. Training is the same, bit
    for bit, with the callback and without it. Under DDP all ranks hold all replicas, and the values of rank 0 are
    recorded.

    Args:
        inputs: the batch, ``[n_sample, ...]``, in the form for one network.
        schedule: :class:`Steps`, a list of steps, or a number of steps per decade. The last step of the run is
            measured, too (see :class:`Measurement`).
        **options: ``name``, ``dirpath``, ``save`` and ``summary``, see
            :class:`~lightning_glassy.callbacks.recorder.MeasurementOptions`.

    Raises:
        TypeError: at construction, the inputs are no tensor, or the schedule has the wrong type.
        ValueError: at construction, there are fewer than two samples, or an argument is out of its range.
        MisconfigurationException: at the start of training, there is no :class:`AgingMonitor` of this name, or the
            module does not have one ensemble.

    Example:
        >>> callbacks = [ReplicaOverlap(torch.zeros(10, 784))]
    """

    def __init__(self, inputs: Tensor, schedule: StepsLike = 3, **options: Unpack[MeasurementOptions]) -> None:
        super().__init__(schedule, **options)
        if not isinstance(inputs, Tensor):
            raise TypeError(f"inputs={type(inputs).__name__} is not a tensor, a batch of inputs for one network")
        if not inputs.dim() or len(inputs) < 2:
            raise ValueError(f"inputs of shape {tuple(inputs.shape)} are no batch of two samples or more")
        self._inputs = inputs

    def prepare(self, trainer: Trainer, module: LightningModule) -> None:
        """Find the ensemble and the AgingMonitor."""
        if not any(other.tracks and other._recorder is self.recorder for other in of_kind(trainer, Recording)):
            raise MisconfigurationException(
                f"ReplicaOverlap: there is no AgingMonitor(name={self.name!r}) whose record it could write to: add one"
            )
        _ensemble(module)

    @contextmanager
    def undisturbed(self, trainer: Trainer, module: LightningModule, seed: int) -> Iterator[None]:
        """Restore the training after the block, which runs in evaluation mode."""
        with undisturbed(trainer, module, seed, mode="eval"), torch.no_grad():
            yield

    def measure(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        """Return the matrices of the present networks."""
        with trainer.precision_plugin.forward_context():
            inputs = trainer.precision_plugin.convert_input(self._inputs)
            outputs = _ensemble(module)(inputs.to(module.device))
        return {name: matrix.double().cpu().numpy() for name, matrix in compared(outputs).items()}


def _ensemble(module: LightningModule) -> ReplicaEnsemble:
    found = [part for part in module.modules() if isinstance(part, ReplicaEnsemble)]
    if len(found) != 1:
        raise MisconfigurationException(
            f"ReplicaOverlap: {type(module).__name__} has {len(found)} ReplicaEnsembles, and one is needed"
        )
    return found[0]


def compared(outputs: Tensor) -> dict[str, Tensor]:
    """Return the matrices ``[n_replica, n_replica]`` of :class:`ReplicaOverlap`.

    Args:
        outputs: outputs of the networks, ``[n_replica, n_sample, ...]``.

    Raises:
        TypeError: the outputs are no tensor.
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

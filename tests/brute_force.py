"""Check the records of trainings by brute force: keep all weights in float64 at every step, and use the definition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lightning_glassy import AgingRecord


def flat_weights(module: nn.Module, names: Sequence[str] | None = None) -> torch.Tensor:
    """Return the named parameters in float64, one after the other (default: all trainable ones)."""
    chosen = [
        parameter.detach()
        for name, parameter in module.named_parameters()
        if (parameter.requires_grad if names is None else name in names)
    ]
    real = [torch.view_as_real(w.resolve_conj()) if w.is_complex() else w for w in chosen]
    return torch.cat([w.double().reshape(-1).clone() for w in real])


class BruteForce(Callback):
    """Keeps the weights right before the first update of a fit, and after each batch in which the step changed.

    If the step goes back, the weights of later steps are deleted, because they belong to no trajectory any more. Put
    this callback last in the list of callbacks. It reads the weights at other hooks than the callbacks under test.

    Attributes:
        weights: the weights by step.
        trainer_steps: the step after each batch.
    """

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self.names = names
        self.weights: dict[int, torch.Tensor] = {}
        self.trainer_steps: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._look(trainer.global_step, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.trainer_steps.append(trainer.global_step)
        self._look(trainer.global_step, pl_module)

    def _look(self, step: int, module: LightningModule) -> None:
        if step < max(self.weights, default=step):
            self.weights = {at: weights for at, weights in self.weights.items() if at < step}
        if step not in self.weights:
            self.weights[step] = flat_weights(module, self.names)

    def msd(self, waiting_time: int, lag: int) -> float:
        """Return the mean squared displacement between two steps."""
        return float((self.weights[waiting_time + lag] - self.weights[waiting_time]).square().mean())

    def check(self, record: AgingRecord, *, tolerance: float = 1e-5, at_least: int = 1) -> None:
        """Compare every pair of a record.

        Raises:
            AssertionError: a pair is of a step that was never seen, or its displacement differs by more than the
                tolerance, or there are fewer pairs than ``at_least``.
        """
        msd, wrong = record.msd(), []
        for i, waiting_time in enumerate(record.waiting_times.tolist()):
            for j, lag in enumerate(record.lags.tolist()):
                if np.isnan(msd[i, j]):
                    continue
                pair = (waiting_time, lag)
                if waiting_time not in self.weights or waiting_time + lag not in self.weights:
                    wrong.append((*pair, float(msd[i, j]), "a step that was never seen"))
                elif not np.isclose(msd[i, j], self.msd(*pair), rtol=tolerance, atol=1e-300):
                    wrong.append((*pair, float(msd[i, j]), self.msd(*pair)))
        assert not wrong, f"{len(wrong)} of {len(record)} pairs are wrong (t_w, t, record, brute force): {wrong[:5]}"
        assert len(record) >= at_least, f"the record has {len(record)} pairs"

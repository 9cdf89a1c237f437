"""Turn the loss of one network into the losses of all replicas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from lightning_glassy.replicas.ensemble import check_axis


def per_replica(function: Callable[..., Tensor], *, shared: bool = True, loop: bool = False) -> Callable[..., Tensor]:
    """A loss or a metric of one network, made one of all replicas.

    Args:
        function: of the outputs of one network and whatever else (labels), such as
            ``torch.nn.functional.cross_entropy``.
        shared: whether what else it takes is the same for all replicas; ``False`` where it has their axis.
        loop: ``False`` evaluates all replicas in one go (``torch.func.vmap``); ``True`` one after the other, for
            functions that do not permit that, such as most of torchmetrics.

    Returns:
        A function of ``outputs [n_replica, ...]`` and the rest, which returns ``[n_replica, ...]``. The sum of a loss
        is what to minimise, its mean what to log.

    Raises:
        ValueError: from the function returned, if ``shared=False`` and something has no axis of replicas.

    Example:
        >>> outputs, y = torch.zeros(8, 5, 2), torch.zeros(5, dtype=torch.int64)
        >>> per_replica(nn.functional.cross_entropy)(outputs, y)[:2]
        tensor([0.6931, 0.6931])
    """

    def of_all(outputs: Tensor, *others: Any) -> Tensor:
        if not shared:
            check_axis(len(outputs), others)
        if loop:
            each = (others if shared else [other[r] for other in others] for r in range(len(outputs)))
            return torch.stack([torch.as_tensor(function(out, *own)) for out, own in zip(outputs, each, strict=True)])
        if function is nn.functional.cross_entropy and outputs.dim() == 3 and len(others) == 1:
            return _cross_entropy(outputs, others[0], shared)
        axes = (0, *(None if shared else 0 for _ in others))
        values: Tensor = vmap(function, in_dims=axes, randomness="different")(outputs, *others)
        return values

    return of_all


def _cross_entropy(logits: Tensor, y: Tensor, shared: bool) -> Tensor:
    """Cross-entropy of ``logits [R, B, class]``, mean over B, with the classes first: vmap makes a slow one of it."""
    target = y.expand(len(logits), *y.shape) if shared else y
    if y.is_floating_point():
        return nn.functional.cross_entropy(logits.mT, target.mT, reduction="none").mean(-1)
    losses = nn.functional.cross_entropy(logits.mT, target, reduction="none")
    return losses.sum(-1) / (target != -100).sum(-1)  # -100 marks a sample without a label

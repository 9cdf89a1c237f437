"""Turn the loss of one network into the losses of all replicas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from lightning_glassy.replicas.ensemble import check_axis


def per_replica(function: Callable[..., Tensor], *, shared: bool = True, loop: bool = False) -> Callable[..., Tensor]:
    """Turn a loss or a metric of one network into a function of all replicas.

    Minimise the sum of the losses over the replicas, and log their mean.

    Args:
        function: a function of the outputs of one network and of further arguments (labels), such as
            ``torch.nn.functional.cross_entropy``.
        shared: ``True`` if the further arguments are the same for all replicas, ``False`` if each of them has the
            replicas as its first axis.
        loop: ``False`` evaluates all replicas at once (``torch.func.vmap``). ``True`` evaluates one replica after the
            other, for functions that vmap cannot run, such as most of torchmetrics.

    Returns:
        A function of ``outputs [n_replica, ...]`` and the further arguments. It returns ``[n_replica, ...]``.

    Raises:
        ValueError: raised by the returned function if ``shared=False`` and an argument has no replica axis.

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
            losses = [function(out, *own) for out, own in zip(outputs, each, strict=True)]
            return torch.stack([torch.as_tensor(loss, device=outputs.device) for loss in losses])
        if _is_cross_entropy(function) and outputs.dim() == 3 and len(others) == 1:
            return _cross_entropy(outputs, others[0], shared)
        axes = (0, *(None if shared else 0 for _ in others))
        values: Tensor = vmap(function, in_dims=axes, randomness="different")(outputs, *others)
        return values

    return of_all


def _is_cross_entropy(function: Callable[..., Tensor]) -> bool:
    """Return whether this is the cross-entropy with its defaults, as a function or as a module without hooks."""
    if type(function) is not nn.CrossEntropyLoss:
        return function is nn.functional.cross_entropy
    default = nn.CrossEntropyLoss()
    names = ("weight", "ignore_index", "reduction", "label_smoothing", "_forward_hooks", "_forward_pre_hooks")
    return all(getattr(function, name) == getattr(default, name) for name in names)


def _cross_entropy(logits: Tensor, y: Tensor, shared: bool) -> Tensor:
    """Return the cross-entropy of ``logits [R, B, class]``, mean over B, without vmap, which is slow here.

    Move the class axis before the batch axis, as ``torch.nn.functional.cross_entropy`` expects.
    """
    target = y.expand(len(logits), *y.shape) if shared else y
    if y.is_floating_point():
        return nn.functional.cross_entropy(logits.mT, target.mT, reduction="none").mean(-1)
    losses = nn.functional.cross_entropy(logits.mT, target, reduction="none")
    return losses.sum(-1) / (target != -100).sum(-1)  # -100 marks a sample without a label

"""The options of optimisers, for the metadata and the series of a record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

ParameterGroups = Sequence[Mapping[Any, Any]]
"""The ``param_groups`` of an optimiser, or of its state in a checkpoint."""


def learning_rates(i: int, groups: ParameterGroups) -> dict[str, float]:
    """Return the learning rates of optimiser number ``i``, by their names in a record.

    The name is ``learning_rate_<i>_<j>`` for parameter group j, and ``learning_rate`` for the first group of the first
    optimiser. A rate that is not a number on the host is left out, because reading it would wait for the device.
    """
    rates: dict[str, float] = {}
    for j, group in enumerate(groups):
        rate = group.get("lr")
        on_host = isinstance(rate, Tensor) and rate.device.type == "cpu" and rate.numel() == 1
        if isinstance(rate, (int, float)) or on_host:
            # The groups can come from a file, with an integer or a tensor that is no float.
            with contextlib.suppress(OverflowError, RuntimeError, TypeError):
                rates["learning_rate" if i == j == 0 else f"learning_rate_{i}_{j}"] = float(rate)  # type: ignore[arg-type]
    return rates


def options_of(groups: ParameterGroups) -> list[dict[str, Any]]:
    """Return the options of each parameter group that JSON can hold."""
    return [
        {name: value for name, value in group.items() if name != "params" and isinstance(name, str) and is_plain(value)}
        for group in groups
    ]


class UpdateCounter:
    """Counts the steps of optimisers that were updates.

    A step is no update if the gradient scaler of ``precision="16-mixed"`` skips it, or if there is no gradient, for
    example because ``training_step`` returned ``None``. Optimisers of other kinds than torch's are not seen.

    Args:
        optimizers: the optimisers whose steps are counted.
        step: number of steps before.

    Attributes:
        count: number of updates so far.
    """

    def __init__(self, optimizers: Iterable[Any], step: int) -> None:
        self.count, self._start = 0, step
        self._skipped_on_device: Tensor | None = None
        known = [optimizer for optimizer in optimizers if isinstance(optimizer, Optimizer)]
        self._hooks = [optimizer.register_step_post_hook(self._count) for optimizer in known]

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def _count(self, optimizer: Optimizer, *_: Any) -> None:
        # A fused optimiser takes the decision of the gradient scaler on the device.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None:
            skipped = found_inf.detach().sum().double()
            self._skipped_on_device = skipped if self._skipped_on_device is None else self._skipped_on_device + skipped
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.count += 1
                    return

    def go_back(self, before: int, step: int) -> None:
        """Keep the count of skipped steps if the training goes back from one step to another."""
        self._start -= before - step

    def skipped(self, step: int) -> int:
        """Return the number of steps up to ``step`` that were no updates. Wait for the device if it has counted."""
        if not self._hooks:
            return 0
        on_device = 0 if self._skipped_on_device is None else int(self._skipped_on_device)
        return max(step - self._start - self.count, 0) + on_device


def is_plain(value: object) -> bool:
    """Return whether a value is a number, a text, a truth value or None, or a list or tuple of these."""
    plain = (bool, int, float, str, type(None))
    return isinstance(value, plain) or (isinstance(value, (tuple, list)) and all(isinstance(v, plain) for v in value))

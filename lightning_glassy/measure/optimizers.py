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
        rate, name = group.get("lr"), "learning_rate" if i == j == 0 else f"learning_rate_{i}_{j}"
        if isinstance(rate, float):  # as nearly always
            rates[name] = float(rate)
            continue
        on_host = isinstance(rate, Tensor) and rate.device.type == "cpu" and rate.numel() == 1
        if isinstance(rate, int) or on_host:
            # The groups can come from a file, with an integer or a tensor that is no float.
            with contextlib.suppress(OverflowError, RuntimeError, TypeError):
                rates[name] = float(rate)  # type: ignore[arg-type]
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
    example because ``training_step`` returned ``None``. Optimisers that are not torch optimisers are not seen.

    Args:
        optimizers: the optimisers whose steps are counted.
        step: number of steps before.

    Attributes:
        count: number of updates so far.
        optimizers: as above.
    """

    def __init__(self, optimizers: Iterable[Any], step: int) -> None:
        self.count, self._start = 0, step
        self._skipped_on_device: Tensor | None = None
        self._known = 0  # steps that were no updates, up to the last event
        self.optimizers = list(optimizers)
        seen = [o for o in self.optimizers if isinstance(o, Optimizer) and _calls_hooks_once(o)]
        self._hooks = [o.register_step_post_hook(self._count) for o in seen if len(seen) == len(self.optimizers)]

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

    def note(self, step: int) -> None:
        """Remember the count at an event."""
        self._known = step - self._start - self.count

    def go_back(self, step: int) -> None:
        """Go on from the count at the last event, because the training has gone back to this step."""
        self._start = step - self.count - self._known

    @property
    def counts_all(self) -> bool:
        """Whether there were steps before the last event, and each was one update."""
        return self.count > 0 and self._known == 0

    def skipped(self, step: int) -> int:
        """Return the number of steps up to ``step`` that were no updates. Wait for the device if it has counted."""
        if not self._hooks:
            return 0
        on_device = 0 if self._skipped_on_device is None else int(self._skipped_on_device)
        return max(step - self._start - self.count, 0) + on_device


def _calls_hooks_once(optimizer: Optimizer) -> bool:
    """Return whether one step calls the hooks once. torch adds the calls to ``step`` of a class and of its base."""
    return sum(hasattr(vars(cls).get("step"), "hooked") for cls in type(optimizer).__mro__) <= 1


def is_plain(value: object) -> bool:
    """Return whether a value is a number, a text, a truth value or None, or a list or tuple of these."""
    plain = (bool, int, float, str, type(None))
    return isinstance(value, plain) or (isinstance(value, (tuple, list)) and all(isinstance(v, plain) for v in value))

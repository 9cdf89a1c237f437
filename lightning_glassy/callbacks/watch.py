"""Notice changes of the parameters of a module during a training, at little cost per event."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from operator import attrgetter, is_, methodcaller

from torch import Tensor, nn

from lightning_glassy.measure.shards import ParametersChangedError, reshard

_inside, _values = attrgetter("_modules", "_parameters"), methodcaller("values")
_trainable = attrgetter("requires_grad")


class ParameterWatch:
    """Checks whether the tracked parameters are still parameters of a module, and whether others have become trainable.

    A walk through all modules of a large model would take longer than the measurement of an event. The watch therefore
    keeps the contents of the modules, and compares them one by one in C. It walks again only after a change.

    Args:
        module: the module.
        tracked: the tracked parameters, by name.
    """

    def __init__(self, module: nn.Module, tracked: Mapping[str, Tensor]) -> None:
        self._module, self._tracked = module, tracked
        self._modules: list[nn.Module] = []
        self._content: list[object] = []
        self._frozen: list[Tensor] = []
        self._known: dict[int, Tensor] | None = None  # trainable parameters, by identity

    def check(self) -> int:
        """Check the parameters.

        Returns:
            The number of parameters that are not tracked and have become trainable since the last call.

        Raises:
            ParametersChangedError: a tracked parameter has been replaced. The message has its name.
        """
        content = self._content_now()
        same = len(content) == len(self._content) and all(map(is_, content, self._content))
        if same and self._known is not None and not any(map(_trainable, self._frozen)):
            return 0
        return self._walk()

    def _content_now(self) -> list[object]:
        """Return the submodules and the parameters of all modules that the last walk has seen."""
        inside = chain.from_iterable(map(_inside, self._modules))
        return list(chain.from_iterable(map(_values, filter(None, inside))))

    def _walk(self) -> int:
        """Walk through all modules, and return the number of parameters that have become trainable."""
        gone = self._gone()
        if gone:
            # FSDP2 may have left buffers in place of the parameters, after a forward pass without a backward pass.
            reshard(self._module)
            gone = self._gone()
        if gone:
            raise ParametersChangedError(f"the parameter {gone[0]!r} of the module has been replaced by another object")
        known, self._modules = self._known, list(self._module.modules())
        self._known, self._frozen = {id(tensor): tensor for tensor in self._tracked.values()}, []
        for parameter in self._module.parameters():
            if parameter.requires_grad:
                self._known[id(parameter)] = parameter
            elif id(parameter) not in self._known:
                self._frozen.append(parameter)
        self._content = self._content_now()
        return 0 if known is None else len(self._known.keys() - known.keys())

    def _gone(self) -> list[str]:
        """Return the names of the tracked parameters that the module does not have."""
        now = set(map(id, self._module.parameters()))
        return [name for name, tensor in self._tracked.items() if id(tensor) not in now]

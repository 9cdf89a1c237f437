"""The watch over the parameters of a module. It walks through the module only after a change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_glassy.callbacks.watch import ParameterWatch
from lightning_glassy.measure.shards import ParametersChangedError


def model() -> nn.Sequential:
    made = nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 1))
    made[2].requires_grad_(False)
    return made


def watch_of(module: nn.Module) -> ParameterWatch:
    watch = ParameterWatch(module, {name: p for name, p in module.named_parameters() if p.requires_grad})
    assert watch.check() == watch.check() == 0
    return watch


def other(module: nn.Module) -> nn.Parameter:
    return nn.Parameter(module.weight.detach().clone())


REPLACEMENTS: dict[str, Callable[[nn.Sequential], object]] = {
    "by an attribute": lambda m: setattr(m[1][0], "weight", other(m[1][0])),
    "in the dictionary": lambda m: m[1][0]._parameters.update(weight=other(m[1][0])),
    "by a buffer": lambda m: (delattr(m[1][0], "weight"), m[1][0].register_buffer("weight", torch.ones(2, 2))),
    "with its module": lambda m: m.__setitem__(1, nn.Sequential(nn.Linear(2, 2), nn.ReLU())),
    "deleted with its module": lambda m: m.__delitem__(1),
    "by a parametrization": lambda m: nn.utils.parametrizations.weight_norm(m[1][0]),
    "for one that is equal": lambda m: setattr(m[0], "bias", nn.Parameter(m[0].bias.detach().clone())),
}


@pytest.mark.parametrize("how", REPLACEMENTS)
def test_a_tracked_parameter_that_is_replaced_is_noticed(how: str) -> None:
    module = model()
    watch = watch_of(module)
    REPLACEMENTS[how](module)
    for _ in range(2):
        with pytest.raises(
            ParametersChangedError, match=r"the parameter '(0|1\.0)\.(weight|bias)' of the module has been"
        ):
            watch.check()


ADDITIONS: dict[str, tuple[int, Callable[[nn.Sequential], object]]] = {
    "unfrozen": (2, lambda m: m[2].requires_grad_(True)),
    "one of two unfrozen": (1, lambda m: m[2].bias.requires_grad_(True)),
    "a new module": (2, lambda m: m.append(nn.Linear(1, 1))),
    "a module in a leaf": (2, lambda m: m[0].add_module("adapter", nn.Linear(1, 1))),
    "a new parameter": (1, lambda m: m[1].register_parameter("scale", nn.Parameter(torch.ones(1)))),
    "a frozen module": (0, lambda m: m.append(nn.Linear(1, 1).requires_grad_(False))),
    "tracked ones frozen": (0, lambda m: m[0].requires_grad_(False)),
    "one unfrozen, tracked ones frozen": (
        1,
        lambda m: [m[2].bias.requires_grad_(True), m[0].requires_grad_(False)],
    ),
}


@pytest.mark.parametrize("what", ADDITIONS)
def test_parameters_that_become_trainable_are_counted_once(what: str) -> None:
    module = model()
    watch = watch_of(module)
    n, change = ADDITIONS[what]
    change(module)
    assert watch.check() == n
    assert watch.check() == 0


def test_tracked_parameters_that_are_frozen_and_unfrozen_are_not_counted() -> None:
    module = model()
    watch = watch_of(module)
    for trainable in (False, True):
        module[0].requires_grad_(trainable)
        module.append(nn.ReLU())  # the watch walks again
        assert watch.check() == 0


def test_parameters_that_are_left_out_are_not_new() -> None:
    module = model()
    watch = ParameterWatch(module, {"0.bias": module[0].bias})
    assert [watch.check() for _ in range(3)] == [0, 0, 0]


def test_the_watch_walks_only_after_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[nn.Module] = []
    modules = nn.Module.modules
    monkeypatch.setattr(nn.Module, "modules", lambda module: (walks.append(module), modules(module))[1])
    module = model()
    watch = watch_of(module)
    n = len(walks)
    with torch.no_grad():
        module[0].weight.add_(1.0)
        module[0].weight.data = module[0].weight.data.clone()
    watch.check()
    assert len(walks) == n
    module[1][1] = nn.Tanh()
    watch.check()
    assert len(walks) > n

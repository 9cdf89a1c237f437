"""Layers that run on all replicas at once against a loop over the replicas, and networks that need vmap."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import register_parametrization
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from lightning_glassy.replicas import ReplicaEnsemble, per_replica

R = 3


class Net(nn.Module):
    """A network with its own forward. Nobody can predict its behaviour without running it."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


def alone(ensemble: ReplicaEnsemble, x: Tensor, shared: bool) -> tuple[Tensor, list[Tensor]]:
    """Return outputs and gradients of a loop over the replicas."""
    nets = [ensemble.replica(r).train(ensemble.training) for r in range(ensemble.n_replica)]
    outs = [net(x if shared else x[r]) for r, net in enumerate(nets)]
    for out in outs:
        out.abs().square().sum().backward()
    each = [[torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()] for net in nets]
    return torch.stack([out.detach() for out in outs]), [torch.stack(g) for g in zip(*each, strict=True)]


def check(ensemble: ReplicaEnsemble, x: Tensor, shared: bool, tolerance: float = 1e-12) -> None:
    expected, gradients = alone(ensemble, x, shared)
    for _ in range(2):  # the second call repeats the path that the first has found
        ensemble.zero_grad()
        out = ensemble(x, shared=shared)
        out.abs().square().sum().backward()
        torch.testing.assert_close(out.detach(), expected, rtol=tolerance, atol=tolerance)
        for parameter, gradient in zip(ensemble.parameters(), gradients, strict=True):
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(
                found, gradient, rtol=tolerance, atol=tolerance * (1 + gradient.abs().max().item())
            )


@pytest.fixture
def no_vmap(monkeypatch: pytest.MonkeyPatch) -> None:
    def vmap(*_: Any) -> None:
        raise AssertionError("vmap ran this network")

    monkeypatch.setattr(ReplicaEnsemble, "_vmap", vmap)


@pytest.fixture
def vmapped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    original = ReplicaEnsemble._vmap
    monkeypatch.setattr(ReplicaEnsemble, "_vmap", lambda *args: (calls.append(1), original(*args))[1])
    return calls


def images(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *layers, nn.Flatten(), nn.LazyLinear(3))


def of_images(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net = images(*(layer() for layer in layers))
        net(torch.zeros(2, 2, 8, 8))
        return net

    return make


IMAGES: dict[str, Callable[[], nn.Module]] = {
    "convolution": of_images(),
    "strides, dilation, circular": of_images(lambda: nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, bias=False)),
    "groups": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=4), nn.Flatten(), nn.Linear(128, 3)
    ),
    "same padding": of_images(lambda: nn.Conv2d(4, 4, 3, padding="same")),
    "max pool": of_images(lambda: nn.MaxPool2d(2), lambda: nn.ReLU(inplace=True)),
    "pool first": lambda: nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(2, 3, 3), nn.Flatten(1), nn.Linear(12, 3)),
    "mean pools": of_images(lambda: nn.AvgPool2d(2), nn.GELU, lambda: nn.AdaptiveAvgPool2d(2)),
    "group norm": of_images(lambda: nn.GroupNorm(2, 4), nn.ReLU),
    "batch norm without statistics": of_images(lambda: nn.BatchNorm2d(4, track_running_stats=False), nn.Tanh),
    "unflatten": of_images(nn.Flatten, lambda: nn.Unflatten(1, (4, 8, 8)), lambda: nn.Conv2d(4, 2, 3)),
    "batch norm of features": of_images(
        nn.Flatten, lambda: nn.Linear(256, 5), lambda: nn.BatchNorm1d(5, track_running_stats=False), nn.Sigmoid
    ),
    "dropout in evaluation": of_images(nn.Dropout, nn.SiLU),
    "own forward": lambda: Net(
        lambda n, x: n.c(F.relu(n.b(F.max_pool2d(F.relu(n.a(x)), 2)).view(x.size(0), -1))),
        a=nn.Conv2d(2, 4, 3), b=nn.Conv2d(4, 4, 2), c=nn.Linear(16, 3)),
    "residual": lambda: Net(
        lambda n, x: n.c(torch.flatten(F.relu(n.a(x) + n.b(x)) * 0.5 - 1, 1)),
        a=nn.Conv2d(2, 2, 3, padding=1), b=nn.Conv2d(2, 2, 1), c=nn.Linear(128, 3)),
    "residual, in place": lambda: Net(
        lambda n, x: n.c(n.add(n.a(x), x).flatten(1)) if x.shape[1:] == (2, 8, 8) else None,
        a=nn.Conv2d(2, 2, 3, padding=1), c=nn.Linear(128, 3), add=Net(lambda n, y, x: y.__iadd__(x))),
    "layer norm and scales": lambda: Net(
        lambda n, x: F.log_softmax(n.norm(n.a(x.reshape(x.shape[0], 128))) * n.scale + n.shift, dim=1),
        a=nn.Linear(128, 4), norm=nn.LayerNorm(4), scale=nn.Parameter(torch.randn(4)),
        shift=nn.Parameter(torch.randn(()))),
    "reused layer": lambda: Net(
        lambda n, x: n.a(torch.tanh(n.a(n.b(x.flatten(1))))), a=nn.Linear(4, 4), b=nn.Linear(128, 4)),
}  # fmt: skip


@pytest.mark.usefixtures("no_vmap")
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("kind", IMAGES)
def test_layers_of_all_replicas_are_those_of_each(kind: str, shared: bool) -> None:
    ensemble = ReplicaEnsemble(lambda: IMAGES[kind]().double(), R)
    ensemble.train("evaluation" not in kind)
    x = torch.randn(*(() if shared else (R,)), 5, 2, 8, 8, dtype=torch.float64)
    before = x.clone()
    check(ensemble, x, shared)
    assert torch.equal(x, before)


@pytest.mark.usefixtures("no_vmap")
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("dims", [1, 3])
def test_convolutions_and_pools_of_other_dimensions_too(dims: int, shared: bool) -> None:
    conv, pool, mean = (getattr(nn, f"{name}{dims}d") for name in ("Conv", "MaxPool", "AdaptiveAvgPool"))
    ensemble = ReplicaEnsemble(
        lambda: nn.Sequential(conv(2, 3, 2), nn.ELU(), pool(2), conv(3, 4, 1), mean(1), nn.Flatten()).double(), R
    )
    check(ensemble, torch.randn(*(() if shared else (R,)), 4, 2, *[5] * dims, dtype=torch.float64), shared)


@pytest.mark.usefixtures("no_vmap")
def test_complex_weights_are_as_good_as_real_ones() -> None:
    ensemble = ReplicaEnsemble(
        lambda: nn.Sequential(
            nn.Linear(4, 3, dtype=torch.complex128), nn.Tanh(), nn.Linear(3, 2, dtype=torch.complex128)
        ),
        R,
    )
    check(ensemble, torch.randn(5, 4, dtype=torch.complex128), True)


@pytest.mark.usefixtures("no_vmap")
def test_autocast_computes_in_the_dtype_in_which_each_replica_would() -> None:
    ensemble = ReplicaEnsemble(of_images(nn.ReLU), R)
    x = torch.randn(5, 2, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = ensemble(x)
        each = torch.stack([ensemble.replica(r)(x) for r in range(R)])
    assert out.dtype == each.dtype == torch.bfloat16
    torch.testing.assert_close(out, each, rtol=0.05, atol=0.02)


@pytest.mark.usefixtures("no_vmap")
def test_second_derivatives_are_those_of_each_replica() -> None:
    ensemble = ReplicaEnsemble(lambda: nn.Sequential(*of_images(nn.Tanh)()).double(), R)
    x = torch.randn(4, 2, 8, 8, dtype=torch.float64)

    def curvature(out: Tensor, parameters: list[Tensor]) -> list[Tensor]:
        first = torch.autograd.grad(out.square().sum(), parameters, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), parameters))

    ours = curvature(ensemble(x), list(ensemble.parameters()))
    for r in range(R):
        lone = ensemble.replica(r)
        for all_, own in zip(ours, curvature(lone(x), list(lone.parameters())), strict=True):
            torch.testing.assert_close(all_[r], own, rtol=1e-10, atol=1e-10)


def test_functional_calls_and_transforms_see_the_parameters_that_they_are_given() -> None:
    ensemble = ReplicaEnsemble(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double(), R)
    x = torch.randn(5, 4, dtype=torch.float64)
    other = {name: p.detach() + 1 for name, p in ensemble.named_parameters()}
    twin = copy.deepcopy(ensemble)
    twin.load_state_dict(other)
    for _ in range(2):
        torch.testing.assert_close(torch.func.functional_call(ensemble, other, x), twin(x))
    gradients = torch.func.grad(lambda p: torch.func.functional_call(ensemble, p, x).square().sum())(other)
    twin(x).square().sum().backward()
    for name, p in twin.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad)


class Through(torch.autograd.Function):
    """Rounds in the forward pass, and passes gradients on unchanged."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return F.relu(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * grad


def swallowing(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    try:
        y = y.cumsum(1)
    except Exception:
        y = y * 0
    return y


def bare_swallowing(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    try:
        y = y.cumsum(1)
    except:  # noqa: E722
        y = y * 0
    return y


def through_a_view(net: Any, x: Tensor) -> Tensor:
    y = net.a(x) * 1
    F.relu(y.unflatten(1, (2, 2)), inplace=True)
    return y * 2


def of_a_view(net: Any, x: Tensor) -> Tensor:
    y = net.a(x) * 1
    view = y.view(x.shape[0], 2, 2)
    F.relu(y, inplace=True)
    return view * 2


def counting(net: Any, x: Tensor) -> Tensor:
    net.calls = getattr(net, "calls", 0) + 1
    return net.a(x).cumsum(1) * net.calls


def counting_with_rules(net: Any, x: Tensor) -> Tensor:
    net.calls = getattr(net, "calls", 0) + 1
    return net.a(x) * net.calls


def a() -> nn.Module:
    return nn.Linear(4, 4)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + weight


def doubled(layer: nn.Module) -> nn.Module:
    return register_parametrization(layer, "weight", Doubled())


FALLBACKS: dict[str, Callable[[], nn.Module]] = {
    "no rule": lambda: Net(lambda n, x: n.a(x).cumsum(1), a=a()),
    "errors caught": lambda: Net(swallowing, a=a()),
    "all errors caught": lambda: Net(bare_swallowing, a=a()),
    "comparison": lambda: Net(lambda n, x: torch.where(n.a(x) > 0, n.a(x), 0.0), a=a()),
    "indices": lambda: Net(lambda n, x: n.a(x)[:, 1:], a=a()),
    "gradient of its own": lambda: Net(lambda n, x: Through.apply(n.a(x)), a=a()),
    "gradients switched off": lambda: Net(lambda n, x: n.a(x) * no_grad(n.a, x), a=a()),
    "in place through a view": lambda: Net(through_a_view, a=a()),
    "in place under a view": lambda: Net(of_a_view, a=a()),
    "parametrised": lambda: nn.Sequential(doubled(a()), nn.Tanh()),
    "slice of a parameter": lambda: Net(lambda n, x: F.linear(x, n.a.weight[:2]), a=a()),
    "shape of a parameter": lambda: Net(lambda n, x: n.a(x) * n.a.weight.shape[0], a=a()),
    "function of a parameter": lambda: Net(lambda n, x: n.a(x) * torch.tanh(n.a.bias), a=a()),
    "other dtype": lambda: Net(lambda n, x: n.a(x) * n.s, a=a(), s=nn.Parameter(torch.ones((), dtype=torch.float32))),
    "subclass with a forward of its own": lambda: Scaled(4, 4),
    "no axis of batches": lambda: Net(lambda n, x: n.c(x.unflatten(1, (1, 4))).flatten(1), c=nn.Conv1d(1, 2, 2)),
}


def no_grad(layer: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        return layer(x)


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 2, self.bias)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("kind", [kind for kind in FALLBACKS if "axis" not in kind])
def test_what_has_no_rule_is_run_by_vmap(kind: str, shared: bool, vmapped: list[int]) -> None:
    def make() -> nn.Module:
        net = FALLBACKS[kind]()
        for name, parameter in net.named_parameters():
            if name != "s":
                parameter.data = parameter.data.double()
        return net

    ensemble = ReplicaEnsemble(make, R)
    check(ensemble, torch.randn(*(() if shared else (R,)), 5, 4, dtype=torch.float64), shared)
    assert len(vmapped) == 2


def test_hooks_are_not_passed_over(vmapped: list[int]) -> None:
    ensemble = ReplicaEnsemble(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh()), R)
    x = torch.randn(5, 4)
    ensemble(x)
    assert not vmapped
    handle = ensemble.network[0].register_forward_hook(lambda *args: args[-1] * 2)
    torch.testing.assert_close(ensemble(x)[1], ensemble.replica(1)(x))
    handle.remove()
    assert len(vmapped) == 1
    ensemble(x)
    with nn.modules.module.register_module_forward_hook(lambda *args: args[-1].cos()):
        torch.testing.assert_close(ensemble(x)[1], ensemble.replica(1)(x).cos())
    assert len(vmapped) == 2


@pytest.mark.parametrize("forward", [counting, counting_with_rules])
def test_the_code_of_a_network_runs_once_per_call(forward: Callable[..., Tensor]) -> None:
    ensemble, x = ReplicaEnsemble(lambda: Net(forward, a=a()), R), torch.randn(5, 4)
    single = ensemble.replica(1)
    for calls in (1, 2, 3):
        torch.testing.assert_close(ensemble(x)[1], single(x))
        assert ensemble.network.calls == calls


def test_attributes_that_change_are_read_at_every_call() -> None:
    ensemble, x = ReplicaEnsemble(lambda: Net(lambda n, x: n.a(x) * n.factor, a=a()), R), torch.randn(5, 4)
    for factor in (1.0, 2.0):
        ensemble.network.factor = factor
        torch.testing.assert_close(ensemble(x)[1], ensemble.replica(1)(x))


def test_a_network_that_changes_its_way_changes_to_vmap(vmapped: list[int]) -> None:
    net = Net(lambda n, x: n.a(x).cumsum(1) if n.late else n.a(x), a=a())
    net.late = False
    ensemble, x = ReplicaEnsemble(net, R), torch.randn(5, 4)
    ensemble(x)
    ensemble.network.late = True
    torch.testing.assert_close(ensemble(x)[1], ensemble.replica(1)(x))
    assert len(vmapped) == 1


def test_inputs_of_a_wrong_shape_do_not_make_an_ensemble_slow(vmapped: list[int]) -> None:
    ensemble = ReplicaEnsemble(lambda: nn.Sequential(nn.Linear(4, 3)), R)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        ensemble(torch.randn(5, 3))
    vmapped.clear()
    ensemble(torch.randn(5, 4))
    assert not vmapped


def test_activation_checkpoints_recompute_what_they_did(vmapped: list[int]) -> None:
    ensemble = ReplicaEnsemble(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double(), R)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    _, gradients = alone(ensemble, x, True)
    checkpoint(ensemble, x, use_reentrant=False).square().sum().backward()
    for p, g in zip(ensemble.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, g)
    assert not vmapped
    ensemble = ReplicaEnsemble(of_images(nn.Tanh), R)
    checkpoint(ensemble, torch.randn(5, 2, 8, 8, requires_grad=True), use_reentrant=False).sum().backward()
    assert not vmapped
    # vmap fails here, too. An error in the backward pass is better than a wrong gradient.
    inside = ReplicaEnsemble(lambda: Net(lambda n, x: checkpoint(n.a, x, use_reentrant=False), a=a()), R)
    with pytest.raises(RuntimeError):
        inside(torch.randn(5, 4)).sum().backward()
    assert vmapped


def test_random_numbers_are_drawn_as_if_nothing_had_been_tried() -> None:
    def draw(warm: bool) -> Tensor:
        ensemble = ReplicaEnsemble(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)), R)
        if warm:
            ensemble(torch.ones(5, 4))
        torch.manual_seed(1)
        return ensemble(torch.ones(5, 4))

    assert torch.equal(draw(True), draw(False))


class Operations(TorchDispatchMode):
    """Counts the operations that torch really computes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not any(name in str(func) for name in ("view", "transpose", "expand", "squeeze", "detach", "permute")):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def operations(make: Callable[[], nn.Module], n_replica: int, x: Tensor, shared: bool) -> list[str]:
    ensemble = ReplicaEnsemble(make, n_replica)
    y = torch.zeros(x.shape[: 1 if shared else 2], dtype=torch.int64)
    loss = per_replica(nn.CrossEntropyLoss(), shared=shared)
    ensemble(x, shared=shared)
    with Operations() as counted:
        loss(ensemble(x, shared=shared), y).sum().backward()
    return counted.names


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_a_step_of_all_replicas_is_one_product_per_layer_and_no_more_operations_than_of_one(shared: bool) -> None:
    def mlp() -> nn.Module:
        return nn.Sequential(nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 4))

    def written() -> nn.Module:
        return Net(lambda n, x: n.net(x), net=mlp())

    def of(n: int, make: Callable[[], nn.Module] = mlp) -> list[str]:
        return operations(make, n, torch.randn(*(() if shared else (n,)), 6, 12), shared)

    names = of(16)
    assert len(names) == len(of(2)) == len(of(16, written))
    assert sum("mm" in name for name in names) == 3 + 5  # forward, and backward without the gradient of the inputs
    lone = mlp()
    with Operations() as counted:
        F.cross_entropy(lone(torch.randn(6, 12)), torch.zeros(6, dtype=torch.int64)).backward()
    assert len(names) <= len(counted.names) + 8


def test_a_convolution_of_all_replicas_is_one() -> None:
    names = operations(of_images(nn.ReLU, lambda: nn.Conv2d(4, 4, 3)), 16, torch.randn(16, 5, 2, 8, 8), False)
    assert sum(name == "aten.convolution.default" for name in names) == 2
    assert sum(name == "aten.convolution_backward.default" for name in names) == 2

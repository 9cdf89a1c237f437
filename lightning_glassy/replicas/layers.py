"""Layers of all replicas at once, by rules for single torch functions.

``torch.func.vmap`` runs any function, but each small operation under it costs tens of microseconds. Its memory layout
for the images of a convolution is slow on a CPU. The rules here run the same Python code of a network and replace the
torch functions that it calls: a ``linear`` becomes one batched matrix product, a convolution becomes one grouped
convolution. A torch function without a rule raises :class:`NotBatched`, and the caller uses vmap instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

_Rule = Callable[..., Any]


class NotBatched(BaseException):
    """A network does something for which there is no rule. No ``except Exception`` of the network may catch it."""


class _Layout(Enum):
    """Order of the axes in memory. Consecutive layers pass it on, so that no layer copies its inputs."""

    PLAIN = 0  # [replica, *shape], or [*shape] of inputs that all replicas share
    COLUMNS = 1  # [replica, feature, batch]
    FOLDED = 2  # [batch, replica * channel, ...]


class _Batch(Tensor):
    """The tensors of all replicas at one place of a network. It has the shape, dtype and device of one replica.

    The network handles it as a tensor. It has no data of its own, so that no operation can bypass the rules.
    """

    rules: _Rules
    raw: Tensor
    axes: _Layout
    own: bool  # each replica has its own values
    viewed: bool  # another tensor of the network would share its memory if the network ran alone

    @staticmethod
    def __new__(cls, rules: _Rules, raw: Tensor, layout: _Layout = _Layout.PLAIN, own: bool = True) -> _Batch:
        shape: Sequence[int] = raw.shape
        if layout is _Layout.COLUMNS:
            shape = (shape[2], shape[1])
        elif layout is _Layout.FOLDED:
            shape = (shape[0], shape[1] // rules.n_replica, *shape[2:])
        elif own:
            shape = shape[1:]
        batch: _Batch = Tensor._make_wrapper_subclass(cls, shape, dtype=raw.dtype, device=raw.device)
        batch.rules, batch.raw, batch.axes, batch.own, batch.viewed = rules, raw, layout, own, False
        return batch

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        for leaf in tree_leaves((args, kwargs)):
            if type(leaf) is _Batch and leaf.rules.running:
                leaf.rules.refuse()
        raise RuntimeError("a tensor of the forward pass of a ReplicaEnsemble is used outside this forward pass")

    def plain(self) -> Tensor:
        """Return the tensor in the layout ``[replica, *shape]``, or ``[*shape]`` if all replicas share it."""
        if self.axes is _Layout.COLUMNS:
            return self.raw.mT
        if self.axes is _Layout.FOLDED:
            split: Tensor = self.raw.unflatten(1, (self.rules.n_replica, -1))
            return split.movedim(1, 0)
        return self.raw

    def of_each(self) -> Tensor:
        """Return the tensor in the layout ``[replica, *shape]``."""
        return self.plain() if self.own else self.raw.expand(self.rules.n_replica, *self.raw.shape)

    def folded(self) -> Tensor:
        """Return the tensor in the layout ``[batch, replica * channel, ...]``."""
        return self.raw if self.axes is _Layout.FOLDED else self.of_each().movedim(0, 1).flatten(1, 2)


class _Rules(TorchFunctionMode):
    """Replaces the torch functions that one forward pass calls."""

    def __init__(self, stacked: Mapping[int, Tensor], n_replica: int) -> None:
        super().__init__()
        self.stacked, self.n_replica = stacked, n_replica
        self.grad, self.hooks = torch.is_grad_enabled(), _saved_tensor_hooks()
        self.refused, self.running = False, True

    def refuse(self) -> Any:
        self.refused = True
        raise NotBatched

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rule: _Rule = _RULES.get(function, _refuse)
        # The forward of an autograd.Function runs without gradients, and its backward would be ignored. Hooks for saved
        # tensors come from activation checkpointing, which runs a part again without these rules.
        if torch.is_grad_enabled() != self.grad or _saved_tensor_hooks() != self.hooks:
            self.refuse()
        return rule(self, function, *args, **(kwargs or {}))

    def batch(self, x: Any) -> _Batch:
        return x if type(x) is _Batch else self.refuse()

    def parameter(self, tensor: Any) -> Tensor:
        """Return the stacked tensor of a parameter or a buffer of the network."""
        found = self.stacked.get(id(tensor))
        return self.refuse() if found is None else found

    def constant(self, value: Any) -> _Batch:
        """Return a parameter, a buffer or another tensor of the network as a batch."""
        if not isinstance(value, Tensor):
            self.refuse()
        stacked = self.stacked.get(id(value))
        return _Batch(self, value if stacked is None else stacked, own=stacked is not None)

    def optional(self, tensor: Any) -> Tensor | None:
        return None if tensor is None else self.parameter(tensor)


def _saved_tensor_hooks() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def run(
    network: nn.Module, stacked: Mapping[int, Tensor], inputs: tuple[Any, ...], n_replica: int, shared: bool
) -> Any:
    """Return the outputs of all replicas, ``[n_replica, ...]``.

    Args:
        network: the network with stacked parameters.
        stacked: its stacked parameters and buffers by the ``id`` of the tensor in the network.
        inputs: the inputs of one network, with an axis of replicas unless ``shared``.
        n_replica: number of replicas in ``stacked``.
        shared: whether all replicas get the same inputs.

    Raises:
        NotBatched: the network does something for which there is no rule.
    """
    rules = _Rules(stacked, n_replica)
    own = [_Batch(rules, x, own=not shared) if isinstance(x, Tensor) else x for x in inputs]
    for batch in own:
        if type(batch) is _Batch:
            batch.viewed = True  # the caller holds it
    try:
        with rules:
            outputs = network(*own)
    finally:
        rules.running = False
    if rules.refused:  # and the network caught the exception
        raise NotBatched
    return tree_map(lambda x: rules.batch(x).of_each(), outputs, is_leaf=lambda x: type(x) is _Batch)


def _refuse(rules: _Rules, *_: Any, **__: Any) -> Any:
    rules.refuse()


def _attribute(rules: _Rules, function: Any, x: Any, *args: Any, **options: Any) -> Any:
    return function(rules.batch(x), *args, **options)


def _elementwise(rules: _Rules, function: Any, x: Any, *args: Any, **options: Any) -> Any:
    x = rules.batch(x)
    inplace = options.get("inplace", False)
    if inplace:
        if x.viewed:
            rules.refuse()
        options["inplace"] = False
    if any(isinstance(value, Tensor) for value in (*args, *options.values())):
        rules.refuse()
    raw = function(x.raw, *args, **options)
    if inplace:
        x.raw = raw
        return x
    return _Batch(rules, raw, x.axes, x.own)


def _product(x: Tensor, columns: bool, own: bool, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, bool]:
    """Return ``x W_r^T + b_r`` for all r, and whether it is in columns, ``[replica, feature, batch]``.

    The function computes the transpose of this product. The gradient of the weights then has the memory layout of the
    weights, so torch need not copy it.
    """
    n_replica, n_out, _ = weight.shape
    if columns:
        shape = x.shape[2:]
    else:
        shape = x.shape[1:-1] if own else x.shape[:-1]
        x = x.reshape(n_replica, -1, x.shape[-1]).mT if own else x.reshape(-1, x.shape[-1]).t()
    if own:
        y = weight @ x if bias is None else torch.baddbmm(bias.unsqueeze(-1), weight, x)
    else:
        rows = weight.flatten(0, 1)
        y = rows @ x if bias is None else torch.addmm(bias.reshape(-1, 1), rows, x)
        y = y.view(n_replica, n_out, -1)
    return (y, True) if len(shape) == 1 else (y.mT.view(n_replica, *shape, n_out), False)


def _linear(rules: _Rules, function: Any, input: Any, weight: Any, bias: Any = None) -> _Batch:
    x, weight, bias = rules.batch(input), rules.parameter(weight), rules.optional(bias)
    columns = x.axes is _Layout.COLUMNS
    y, columns = _product(x.raw if columns else x.plain(), columns, x.own, weight, bias)
    return _Batch(rules, y, _Layout.COLUMNS if columns else _Layout.PLAIN)


# These layers apply the same function to each number, so the order of axes makes no difference.
_ELEMENTWISE = (nn.Identity, nn.Tanh, nn.ReLU, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Softplus)


def plain_layers(module: nn.Module) -> list[nn.Module] | None:
    """Return the layers of an ``nn.Sequential`` of plain layers in the order of their calls, ``None`` for others."""
    kind = type(module)
    flat = isinstance(module, nn.Flatten) and module.start_dim > 0
    if kind in (nn.Linear, nn.Dropout, *_ELEMENTWISE) or (kind is nn.Flatten and flat):
        return [module]
    if kind is not nn.Sequential:
        return None
    layers: list[nn.Module] = []
    for child in module._modules.values():
        found = None if child is None else plain_layers(child)
        if found is None:
            return None
        layers += found
    return layers


def run_plain(
    layers: Sequence[nn.Module], stacked: Mapping[int, Tensor], x: Tensor, n_replica: int, shared: bool
) -> Tensor:
    """Return the outputs of all replicas of plain layers, as :func:`run` does, without a call of their Python code."""
    own, columns = not shared, False
    for layer in layers:
        if isinstance(layer, nn.Linear):
            bias = None if layer.bias is None else stacked[id(layer.bias)]
            x, columns = _product(x, columns, own, stacked[id(layer.weight)], bias)
            own = True
        elif isinstance(layer, nn.Flatten):
            x, columns = (x.mT if columns else x), False
            x = x.flatten(layer.start_dim + own, layer.end_dim + (layer.end_dim >= 0 and own))
        else:
            if isinstance(layer, nn.Dropout) and not own:
                x, own = x.expand(n_replica, *x.shape).clone(), True
            x = layer.forward(x)
    return x.mT if columns else x


def _convolution(
    rules: _Rules,
    function: Any,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Batch:
    """Fold the replicas into the channels: one convolution for inputs that all share, a grouped one otherwise."""
    x, weight, bias = rules.batch(input), rules.parameter(weight), rules.optional(bias)
    if x.ndim != weight.dim() - 1:  # no axis of batches
        rules.refuse()
    if x.own or groups > 1:
        folded, groups = x.folded(), groups * rules.n_replica
    else:
        folded = x.raw
    if folded.dim() == 4 and folded.device.type == "cpu":
        # This order of axes halves the time on a CPU. contiguous() would leave images of one channel as they are.
        folded = folded.to(memory_format=torch.channels_last)
    bias = None if bias is None else bias.flatten()
    y = function(folded, weight.flatten(0, 1), bias, stride, padding, dilation, groups)
    return _Batch(rules, y, _Layout.FOLDED)


def _pool(dims: int) -> _Rule:
    """Return the rule of a pooling over ``dims`` axes, which treats each channel separately."""

    def rule(rules: _Rules, function: Any, input: Any, *args: Any, **options: Any) -> _Batch:
        x = rules.batch(input)
        if x.ndim != dims + 2:
            rules.refuse()
        y = function(x.folded() if x.own else x.raw, *args, **options)
        if not isinstance(y, Tensor):  # with the indices of the maxima
            rules.refuse()
        return _Batch(rules, y, _Layout.FOLDED if x.own else _Layout.PLAIN, x.own)

    return rule


def _group_norm(
    rules: _Rules, function: Any, input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> _Batch:
    weight, bias = (None if p is None else rules.parameter(p).flatten() for p in (weight, bias))
    folded = rules.batch(input).folded()
    return _Batch(rules, function(folded, num_groups * rules.n_replica, weight, bias, eps), _Layout.FOLDED)


def _batch_norm(
    rules: _Rules,
    function: Any,
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> _Batch:
    if running_mean is not None or running_var is not None or not training:
        rules.refuse()
    weight, bias = (None if p is None else rules.parameter(p).flatten() for p in (weight, bias))
    y = function(rules.batch(input).folded(), None, None, weight, bias, True, momentum, eps)
    return _Batch(rules, y, _Layout.FOLDED)


def _layer_norm(
    rules: _Rules, function: Any, input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None,
    eps: float = 1e-5,
) -> _Batch:  # fmt: skip
    x = rules.batch(input)
    y = function(x.plain(), normalized_shape, None, None, eps)
    if weight is not None:
        y = y * _aligned(rules.parameter(weight), x.ndim)
    if bias is not None:
        y = y + _aligned(rules.parameter(bias), x.ndim)
    return _Batch(rules, y, own=x.own or weight is not None or bias is not None)


def _dropout(
    rules: _Rules, function: Any, input: Any, p: float = 0.5, training: bool = True, inplace: bool = False
) -> _Batch:
    """Draw different random numbers for each replica."""
    x = rules.batch(input)
    if not training or p == 0:
        return x
    if not x.own:
        if inplace:
            rules.refuse()
        x = _Batch(rules, x.of_each().clone())
    return _elementwise(rules, function, x, p=p, training=training, inplace=inplace)  # type: ignore[no-any-return]


def _aligned(tensor: Tensor, ndim: int) -> Tensor:
    """Insert axes after the replica axis, so that a tensor can be broadcast to ``ndim`` axes of one replica."""
    return tensor.view(len(tensor), *[1] * (ndim + 1 - tensor.dim()), *tensor.shape[1:])


def _binary(rules: _Rules, function: Any, a: Any, b: Any) -> _Batch:
    operands = [value if type(value) in (_Batch, int, float) else rules.constant(value) for value in (a, b)]
    batches = [value for value in operands if type(value) is _Batch]
    # torch promotes dtypes by rules that depend on the number of axes.
    if not any(type(value) is _Batch for value in (a, b)) or len({x.dtype for x in batches}) > 1:
        rules.refuse()
    if len({(x.axes, x.own, x.shape) for x in batches}) == 1:
        x, y = (value.raw if type(value) is _Batch else value for value in operands)
        return _Batch(rules, function(x, y), batches[0].axes, batches[0].own)
    ndim = max(x.ndim for x in batches)
    x, y = (_aligned(value.plain(), ndim) if value.own else value.raw for value in batches)
    return _Batch(rules, function(x, y), own=any(value.own for value in batches))


def _inplace(function: Any) -> _Rule:
    """Return the rule of an assignment such as ``+=``."""

    def rule(rules: _Rules, _: Any, a: Any, b: Any) -> _Batch:
        x = rules.batch(a)
        y = _binary(rules, function, x, b)
        if x.viewed or y.shape != x.shape or y.dtype != x.dtype:
            rules.refuse()
        x.raw, x.axes, x.own = y.raw, y.axes, y.own
        return x

    return rule


def _viewing(x: _Batch, raw: Tensor) -> _Batch:
    """Return a reshaped batch. The network would share the memory of both if it ran alone."""
    y = _Batch(x.rules, raw, own=x.own)
    x.viewed = y.viewed = True
    return y


def _flatten(rules: _Rules, function: Any, input: Any, start_dim: int = 0, end_dim: int = -1) -> _Batch:
    x = rules.batch(input)
    ndim = x.ndim
    if not (-ndim <= start_dim < ndim and -ndim <= end_dim < ndim):
        rules.refuse()
    start, end = start_dim % ndim, end_dim % ndim
    return x if start == end else _viewing(x, x.plain().flatten(start + x.own, end + x.own))


def _reshape(rules: _Rules, function: Any, input: Any, *shape: Any) -> _Batch:
    x = rules.batch(input)
    sizes = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    if not all(type(size) is int for size in sizes):
        rules.refuse()
    return _viewing(x, x.plain().reshape(*([rules.n_replica] if x.own else []), *sizes))


def _unflatten(rules: _Rules, function: Any, input: Any, dim: int, sizes: Any) -> _Batch:
    x = rules.batch(input)
    if not -x.ndim <= dim < x.ndim:
        rules.refuse()
    return _viewing(x, x.plain().unflatten(dim % x.ndim + x.own, sizes))


def _softmax(rules: _Rules, function: Any, input: Any, dim: int | None = None, **options: Any) -> _Batch:
    x = rules.batch(input)
    if type(dim) is not int or not -x.ndim <= dim < x.ndim:
        return rules.refuse()  # type: ignore[no-any-return]
    return _Batch(rules, function(x.plain(), dim=dim % x.ndim + x.own, **options), own=x.own)


_UNARY = "tanh relu sigmoid sin cos exp square abs neg"
_ACTIVATIONS = "relu gelu silu elu selu celu leaky_relu softplus hardtanh relu6 mish hardswish hardsigmoid softsign"
_RULES: dict[Any, _Rule] = {
    **{getattr(owner, name): _elementwise for owner in (torch, Tensor) for name in _UNARY.split()},
    **{getattr(F, name): _elementwise for name in _ACTIVATIONS.split()},
    **{getattr(F, name): _elementwise for name in ("logsigmoid", "tanhshrink")},
    **dict.fromkeys((Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__), _attribute),
    **{getattr(Tensor, name).__get__: _attribute for name in ("shape", "ndim", "dtype", "device", "is_cuda")},
    F.linear: _linear,
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution),
    **{
        getattr(owner, f"{name}{dims}d"): _pool(dims)
        for dims in (1, 2, 3)
        for owner, name in ((torch, "max_pool"), (F, "max_pool"), (F, "avg_pool"), (F, "adaptive_avg_pool"))
    },
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.dropout: _dropout,
    **{
        getattr(owner, name): _binary
        for operation in ("add", "sub", "mul")
        for owner, name in ((torch, operation), (Tensor, operation), (Tensor, f"__{operation}__"),
                            (Tensor, f"__r{operation}__"))
    },
    **dict.fromkeys((Tensor.__iadd__, Tensor.add_), _inplace(torch.add)),
    **dict.fromkeys((Tensor.__isub__, Tensor.sub_), _inplace(torch.sub)),
    **dict.fromkeys((Tensor.__imul__, Tensor.mul_), _inplace(torch.mul)),
    **dict.fromkeys((torch.div, Tensor.div, Tensor.__truediv__), _binary),
    **dict.fromkeys((torch.flatten, Tensor.flatten), _flatten),
    **dict.fromkeys((torch.reshape, Tensor.reshape, Tensor.view), _reshape),
    **dict.fromkeys((torch.unflatten, Tensor.unflatten), _unflatten),
    **dict.fromkeys((F.softmax, F.log_softmax), _softmax),
    **dict.fromkeys((torch.softmax, torch.log_softmax, Tensor.softmax, Tensor.log_softmax), _softmax),
}  # fmt: skip

"""Products of vectors with the Hessian and with the Gauss-Newton matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_glassy.curvature.spectrum import Array
from lightning_glassy.measure.places import find_overlap


class CurvatureOperator(ABC):
    """A symmetric matrix of second derivatives with respect to parameters, given by its products with vectors.

    The global random state (CPU, CUDA) is restored after a product, so that dropout is the same in the next product.
    ``.grad`` is not touched. The mode of a module and its buffers (BatchNorm in training mode) are not restored: the
    caller is responsible for them.

    Attributes:
        n_parameters: number of coordinates, N.
        n_products: products made so far.
    """

    def __init__(
        self,
        parameters: nn.Module | Iterable[Tensor],
        batches: Iterable[Any],
        *,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        tensors = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
        # A tied parameter counts once, however often it is listed.
        self._parameters = list({id(p): p for p in tensors if p.requires_grad}.values())
        if not self._parameters:
            raise ValueError("parameters has none that requires a gradient: give parameters that are trained")
        for p in self._parameters:
            if p.is_complex() or hasattr(p, "placements"):
                kind = "complex" if p.is_complex() else "spread over processes"
                raise ValueError(f"parameters has one that is {kind}, of shape {tuple(p.shape)}: leave it out")
        if find_overlap((str(i), p) for i, p in enumerate(self._parameters)) is not None:
            raise ValueError(
                "parameters has two objects that share memory, and each has only a part of the derivative: use one "
                "nn.Parameter for both"
            )
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction={reduction!r} is not one of 'mean', 'sum'")
        if isinstance(batches, Iterator):
            raise ValueError("batches can be read only once, and each product reads it: give a list or a data loader")
        self._batches = batches
        self._reduction = reduction
        self._sizes = [p.numel() for p in self._parameters]
        self.n_parameters = sum(self._sizes)
        self.n_products = 0
        self._cuda = sorted({p.device.index for p in self._parameters if p.device.type == "cuda"})

    def product(self, vector: Array) -> Array:
        """Return the product of the matrix and a vector: ``[N]`` to ``[N]``, float64.

        The computation uses the dtype of the parameters.

        Raises:
            FloatingPointError: the product is not finite, for example because the weights have diverged.
            ValueError: the vector has another length, ``batches`` is empty, a batch contains no tensor that gives its
                size, or the loss is not one number or has no gradient.
        """
        if np.shape(vector) != (self.n_parameters,):
            raise ValueError(f"vector has the shape {np.shape(vector)}: give one of shape ({self.n_parameters},)")
        parts = torch.from_numpy(np.array(vector, dtype=np.float64)).split(self._sizes)
        vectors = [v.view(p.shape).to(p) for v, p in zip(parts, self._parameters, strict=True)]
        total = [torch.zeros_like(p) for p in self._parameters]
        weight = 0
        # Use plain attention, because fused attention has no second derivative.
        with torch.random.fork_rng(devices=self._cuda), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            for batch in self._batches:
                size = 1 if self._reduction == "sum" else _batch_size(batch)
                weight += size
                for part, new in zip(total, self._batch_product(batch, vectors), strict=True):
                    part.add_(new, alpha=size)
        if not weight:
            raise ValueError("batches is empty: give at least one batch")
        self.n_products += 1
        flat = torch.cat([part.detach().cpu().double().flatten() for part in total]).numpy()
        if not np.isfinite(flat).all():
            raise FloatingPointError("a product with the curvature is not finite: the weights may have diverged")
        return np.asarray(flat if self._reduction == "sum" else flat / weight)

    @abstractmethod
    def _batch_product(self, batch: Any, vectors: list[Tensor]) -> Sequence[Tensor]:
        """Return the product for the loss of one batch."""


class HessianOperator(CurvatureOperator):
    r"""The Hessian :math:`H_{ij} = \partial^2 L/\partial w_i\partial w_j` of a loss over fixed data.

    Args:
        loss: function that returns the loss of a batch, a scalar tensor.
        parameters: parameters to differentiate by, or a module for all its parameters. Frozen parameters are left out.
            A parameter that is listed twice counts once.
        batches: the fixed data. Each product reads the batches again, so give a list, or a loader that returns the same
            batches each time.
        reduction: how ``loss`` combines the samples of a batch. With ``"mean"``, the batches are weighted by their
            sizes, and the result is the same as for one large batch. With ``"sum"``, the batches are added.

    Raises:
        ValueError: no parameter is trained, a parameter is complex, spread over processes or shares memory with another
            one, ``reduction`` is unknown, or ``batches`` is an iterator.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> operator = HessianOperator(lambda a: (a * w**2).sum() / 2, [w], [torch.tensor([[3.0, 5.0]])])
        >>> operator.product([1.0, 1.0]).tolist()
        [3.0, 5.0]
    """

    def __init__(
        self,
        loss: Callable[[Any], Tensor],
        parameters: nn.Module | Iterable[Tensor],
        batches: Iterable[Any],
        *,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__(parameters, batches, reduction=reduction)
        self._loss = loss

    def _batch_product(self, batch: Any, vectors: list[Tensor]) -> Sequence[Tensor]:
        gradient = _gradient(_scalar(self._loss(batch)), self._parameters, create_graph=True)
        return _gradient(gradient, self._parameters, vectors)


class GaussNewtonOperator(CurvatureOperator):
    r"""The generalised Gauss-Newton matrix :math:`G = \sum_b J_b^T\, \ell''_b\, J_b` of a loss over fixed data.

    :math:`J` is the derivative of the outputs by the parameters, :math:`\ell''` the Hessian of the loss by the outputs.
    G has no negative eigenvalue if the loss is convex in the outputs. G equals the Hessian if the model is linear in
    its parameters.

    Args:
        outputs: function that returns the outputs of a batch, one tensor.
        loss: function of these outputs and the batch that returns the loss, a scalar tensor.
        parameters: as for :class:`HessianOperator`.
        batches: as for :class:`HessianOperator`.
        reduction: as for :class:`HessianOperator`.

    Raises:
        ValueError: as for :class:`HessianOperator`.
    """

    def __init__(
        self,
        outputs: Callable[[Any], Tensor],
        loss: Callable[[Tensor, Any], Tensor],
        parameters: nn.Module | Iterable[Tensor],
        batches: Iterable[Any],
        *,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__(parameters, batches, reduction=reduction)
        self._outputs = outputs
        self._loss = loss

    def _batch_product(self, batch: Any, vectors: list[Tensor]) -> Sequence[Tensor]:
        outputs = self._outputs(batch)
        if not isinstance(outputs, Tensor):
            raise ValueError(f"outputs gave a {type(outputs).__name__}: it must give one tensor")
        # J^T u is linear in u, and the derivative of v^T J^T u by u is J v, so no forward-mode rules are needed.
        u = torch.zeros_like(outputs, requires_grad=True)
        pulled = _gradient([outputs], self._parameters, [u], create_graph=True)
        (pushed,) = _gradient(pulled, [u], vectors)
        leaf = outputs.detach().requires_grad_()
        slope = _gradient(_scalar(self._loss(leaf, batch)), [leaf], create_graph=True)
        return _gradient([outputs], self._parameters, _gradient(slope, [leaf], [pushed]))


def _scalar(loss: Tensor) -> list[Tensor]:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"loss gave {shape}: it must give a tensor with one element")
    if not loss.requires_grad:
        raise ValueError("loss gave a tensor without a gradient: compute it without detach, item or no_grad")
    return [loss]


def _gradient(
    outputs: Sequence[Tensor], inputs: list[Tensor], weights: Sequence[Tensor] | None = None, create_graph: bool = False
) -> Sequence[Tensor]:
    """Return the gradient of the weighted outputs, zero for inputs that the outputs do not depend on."""
    used = [k for k, output in enumerate(outputs) if output.requires_grad]
    if not used:
        return [torch.zeros_like(p) for p in inputs]
    return torch.autograd.grad(
        [outputs[k] for k in used],
        inputs,
        None if weights is None else [weights[k] for k in used],
        create_graph=create_graph,
        materialize_grads=True,
    )


def _batch_size(batch: Any) -> int:
    """Return the length of the first axis of the first tensor in a batch."""
    parts = [batch]
    while parts:
        part = parts.pop(0)
        if isinstance(part, Tensor) and part.ndim:
            return len(part)
        if isinstance(part, Mapping):
            parts = [*part.values(), *parts]
        elif isinstance(part, list | tuple):
            parts = [*part, *parts]
    raise ValueError(
        f"batches has a {type(batch).__name__} without a tensor to tell its size by: give tensors, or a loss that is a "
        "sum, with reduction='sum'"
    )

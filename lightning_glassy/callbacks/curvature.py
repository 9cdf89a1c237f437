"""How curved the loss is: more and more flat directions, or walls."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_glassy.callbacks.batches import Batches
from lightning_glassy.callbacks.probe import Loss, Probe
from lightning_glassy.callbacks.undisturbed import undisturbed
from lightning_glassy.curvature.lanczos import measure_spectrum
from lightning_glassy.curvature.operators import CurvatureOperator, GaussNewtonOperator, HessianOperator
from lightning_glassy.curvature.spectrum import Spectrum
from lightning_glassy.schedule import LogTimeSchedule

Criterion = Callable[[Tensor, Any], Tensor]
"""The loss of the outputs of a module for a batch, a tensor of one number."""

# Fewer than the other callbacks take: a measurement is hundreds of passes over its data.
_PER_DECADE = 2

_LEVELS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class CurvatureMonitor(Probe):
    r"""Measures the spectrum of the Hessian of the training loss at log-spaced steps, on a fixed part of the data.

    :math:`H_{ij} = \partial^2 L/\partial w_i\partial w_j` with respect to all N trainable parameters, of the loss
    :math:`L = \sum_b B_b\ell_b/\sum_b B_b` over batches b of :math:`B_b` samples, the same ones at all steps. Or, with
    a ``criterion``, the Gauss-Newton matrix, which has no negative eigenvalue where that is convex in the outputs. The
    eigenvalues :math:`\lambda` are in units of the loss per weight squared. Baity-Jesi et al. 2018 (arXiv 1803.06969)
    take the slowing down of over-parametrised networks for that of more and more flat directions. How the numbers and
    their errors are found, and how large these are, is said in :mod:`lightning_glassy.curvature`.

    ==========================  ================================================================================
    key                         what is logged
    ==========================  ================================================================================
    ``hessian_max``             the leading eigenvalue; ``hessian_max_2``, ... those after it
    ``hessian_min``             the lowest eigenvalue; ``hessian_min_2``, ... those after it
    ``hessian_max_at_least``    in place of the leading one, where it did not converge: a lower bound
    ``hessian_min_at_most``     likewise, an upper bound of the lowest
    ``hessian_trace``           :math:`\sum_i\lambda_i`
    ``flat_fraction``           fraction of the directions with :math:`|\lambda| < \epsilon`
    ``hessian_index``           fraction of the directions with :math:`\lambda < -\epsilon`
    ``<key>_error``             error of ``hessian_max``, ``hessian_min`` (there is an eigenvalue within it), the
                                trace, the flat fraction and the index (one standard deviation); 0 where exact
    ``hessian_q01``, ...        the spectral density, as its quantiles at 1, 5, 25, 50, 75, 95 and 99 %: that part
                                of the directions has no larger :math:`\lambda`, to within a node of the quadrature
                                and the scatter of the probes
    ==========================  ================================================================================

    For the Gauss-Newton matrix the keys begin with ``gauss_newton`` instead of ``hessian``.

    They are one-time series of the record of the :class:`AgingMonitor` in the same Trainer, or else of one of its own,
    and scalars ``glassy_series/<key>`` against the step in the loggers. The entry ``CurvatureMonitor`` of the record's
    metadata says of which data they are, how many products with vectors were allowed and made, and the time it took.
    :attr:`spectrum` has the whole of the last measurement, with its density.

    Cost: a measurement takes at most ``max_products`` products over the fixed part of the data, each worth three
    gradients of it (measured on one CPU core with 301,066 parameters; eight with 1,482, where the loop counts). By
    default that is 200 products with 4 batches, or some 2,400 gradients of a batch: right for long trainings;
    ``max_batches`` and ``schedule`` make it cheaper. Up to 2,000 parameters, N products give the whole spectrum
    exactly: allow ``max_products=2000`` for small networks.

    What to doubt: of the Hessian on M samples with C outputs each no more than MC directions are steep through the
    Gauss-Newton part, whatever the full data say: the flat fraction is that of the part of the data which is used. It
    depends on ε, too. The nodes of a quadrature are about the width of the bulk over ``n_nodes`` apart; of an ε far
    below that the flat fraction scatters from step to step by its large error, which may itself be missed (0 +- 0 where
    no node is within ε).

    Training is the same, bit for bit, with the callback and without it. The probe vectors come from a generator of
    their own. What is random in the module (dropout in mode ``"train"``) is the same in all products and at all steps.
    Under mixed precision the matrix is computed without autocast, whose rounding would drown small eigenvalues. Under
    DDP rank 0 alone measures, and the others wait for it.

    Args:
        schedule: a :class:`LogTimeSchedule`, whose waiting times are the steps, or the number of steps per decade;
            default 2.
        loader: whose data set to use: a ``DataLoader``, or a function that gives one when training starts. Default that
            of the training.
        mode: ``"eval"``, or ``"train"`` for the loss with dropout and with the statistics of each batch.
        max_batches: how many batches are the fixed part of the data; None for all. They are on the device during a
            measurement.
        batch_size: number of samples in a batch; default that of the training.
        loss: gives the loss of a module on a batch; default what ``training_step`` returns.
        criterion: gives the loss of the outputs of the module and a batch: then the matrix is that of Gauss and Newton.
        outputs: with ``criterion`` only, gives the outputs of a module for a batch, one tensor; default ``module(x)``
            of a pair (x, y).
        eps: ε, below which a direction is flat, in units of the loss per weight squared; default what 100 nodes
            resolve in a bulk of width one.
        n_eigenvalues: how many leading, and how many lowest, eigenvalues to look for.
        n_probes: random vectors of the spectral density; its errors fall with their square root.
        n_nodes: products for each of them, and nodes of its quadrature.
        max_products: most products in a measurement.
        name: of the :class:`AgingMonitor` whose record it shares, else the prefix of the keys and of the directory.
        dirpath: where the files go if there is no such monitor; default the directory ``name`` beside the logger's.
        save: whether to write these files.
        summary: whether to print a line at the end on the time it took.

    Attributes:
        spectrum: the :class:`~lightning_glassy.curvature.Spectrum` that was measured last, on rank 0.

    Raises:
        TypeError: at construction, an argument of another type.
        ValueError: at construction, an argument out of its range, or ``loss`` or ``outputs`` that do not go with
            ``criterion``.
        ImportError: at the start of training, scipy is missing; the message names the extra.
        MisconfigurationException: at the start of training, no usable loss or data, too few products allowed, or
            normalisations that wait for other processes; the message names the remedy.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[CurvatureMonitor(max_batches=4, eps=1e-3)], logger=False)
    """

    _data: Batches | None

    def __init__(
        self,
        schedule: LogTimeSchedule | int | None = None,
        *,
        loader: DataLoader[Any] | Callable[[], Any] | None = None,
        mode: Literal["train", "eval"] = "eval",
        max_batches: int | None = 4,
        batch_size: int | None = None,
        loss: Loss | None = None,
        criterion: Criterion | None = None,
        outputs: Loss | None = None,
        eps: float = 1e-2,
        n_eigenvalues: int = 3,
        n_probes: int = 1,
        n_nodes: int = 100,
        max_products: int = 200,
        name: str = "glassy",
        dirpath: str | os.PathLike[str] | None = None,
        save: bool = True,
        summary: bool = True,
    ) -> None:
        super().__init__(
            _PER_DECADE if schedule is None else schedule,
            mode=mode,
            max_batches=max_batches,
            batch_size=batch_size,
            # With a criterion nobody asks the module for its loss, nor refuses one that has none.
            loss=loss if criterion is None else self._loss_of_outputs,
            name=name,
            dirpath=dirpath,
            save=save,
            summary=summary,
        )
        for what, function in (("criterion", criterion), ("outputs", outputs)):
            if function is not None and not callable(function):
                raise TypeError(f"{what}={function!r} is not a function")
        if criterion is not None and loss is not None:
            raise ValueError(f"loss={loss!r} and criterion={criterion!r} are two losses: give one of them")
        if criterion is None and outputs is not None:
            raise ValueError(f"outputs={outputs!r} needs a criterion: give the loss of the outputs and a batch")
        if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 < eps < float("inf"):
            raise ValueError(f"eps={eps!r} must be a positive number")
        counts = {
            "n_eigenvalues": n_eigenvalues,
            "n_probes": n_probes,
            "n_nodes": n_nodes,
            "max_products": max_products,
        }
        for what, count in counts.items():
            least = 4 if what == "n_nodes" else 1
            if not isinstance(count, int) or isinstance(count, bool) or count < least:
                raise ValueError(f"{what}={count!r} must be an integer of at least {least}")
        self._loader = loader
        self._criterion = criterion
        self._outputs = outputs
        self._settings: dict[str, Any] = {"eps": float(eps), **counts}
        self._prefix = "hessian" if criterion is None else "gauss_newton"
        self._description: dict[str, Any] = {}
        self.spectrum: Spectrum | None = None

    def prepare(self, trainer: Trainer, module: LightningModule) -> None:
        """Find the data, and refuse what cannot be done with them."""
        try:
            import scipy.sparse.linalg  # noqa: F401
        except ImportError as error:
            raise ImportError("CurvatureMonitor needs scipy: pip install 'lightning-glassy[curvature]'") from error
        waits = any(isinstance(part, nn.SyncBatchNorm) for part in module.modules())
        if self._mode == "train" and trainer.world_size > 1 and waits:
            raise MisconfigurationException(
                "CurvatureMonitor: rank 0 measures alone, and in mode='train' a SyncBatchNorm would wait for the other "
                "processes: use mode='eval'"
            )
        if any(p.requires_grad and torch.finfo(p.dtype).bits < 32 for p in module.parameters()):
            rank_zero_warn(
                "CurvatureMonitor: weights of 16 bits have two or three digits for second derivatives, too: small "
                "eigenvalues, and with them the flat fraction, are rounding"
            )
        loader = self._loader
        if loader is not None and not isinstance(loader, DataLoader) and callable(loader):
            loader = loader()
        # Not `batches`, which shares them out: all that rank 0 needs.
        combined = trainer.fit_loop._combined_loader
        self._data = Batches(
            trainer.train_dataloader if loader is None else loader,
            "CurvatureMonitor: the loader of the training data",
            mode=combined._mode if combined is not None else "max_size_cycle",
            batch_size=self._batch_size,
            max_batches=self._max_batches,
            # The first ones of data that are sorted by class are not like the rest.
            shuffled=True,
        )
        self._description = {
            "matrix": self._prefix,
            "batches": self._data.used,
            "batches_available": self._data.available,
            "samples": self._data.samples,
            **self._settings,
        }

    def release(self) -> None:
        """Let go of the data."""
        self._data = None

    def describe(self) -> dict[str, Any]:
        """Of which matrix and data the spectrum is, and how many products were allowed, and made the last time."""
        made = {} if self.spectrum is None else {"products": self.spectrum.n_products}
        return self._description | made

    def measure(self, trainer: Trainer, module: LightningModule) -> Spectrum | None:
        """The spectrum, on rank 0; None on the others."""
        if trainer.global_rank != 0:
            return None
        try:
            with _without_autocast(trainer):
                self.spectrum = measure_spectrum(self._operator(trainer, module), **self._settings)
        except ValueError as error:
            raise MisconfigurationException(f"CurvatureMonitor: {error}") from error
        return self.spectrum

    def combine(self, trainer: Trainer, measured: Spectrum | None) -> dict[str, float]:
        """The values of all series."""
        if measured is None:
            return {}
        p, (low, high) = self._prefix, measured.bounds
        values: dict[str, float] = {}
        for name, found, residuals in (
            (f"{p}_max", measured.leading[: self._settings["n_eigenvalues"]], measured.residuals[::-1]),
            (f"{p}_min", measured.lowest[: self._settings["n_eigenvalues"]], measured.residuals),
        ):
            for k, value in enumerate(found.tolist(), start=1):
                values[name if k == 1 else f"{name}_{k}"] = value
            if len(found):
                values[f"{name}_error"] = float(residuals[0])
        if not len(measured.leading):
            values[f"{p}_max_at_least"] = high
        if not len(measured.lowest):
            values[f"{p}_min_at_most"] = low
        for name, estimate in (
            (f"{p}_trace", measured.trace),
            ("flat_fraction", measured.flat_fraction),
            (f"{p}_index", measured.index),
        ):
            values[name], values[f"{name}_error"] = estimate
        for level, value in zip(_LEVELS, _quantiles(measured, _LEVELS), strict=True):
            values[f"{p}_q{100 * level:02.0f}"] = value
        return values

    def _operator(self, trainer: Trainer, module: LightningModule) -> CurvatureOperator:
        assert self._data is not None
        # The transforms of the data set draw the same random numbers at all steps.
        with undisturbed(trainer, module, seed=0):
            batches = [(i, batch, size) for i, (batch, size) in enumerate(self._data.of(trainer, module))]
        total = sum(size for _, _, size in batches)

        def loss(item: tuple[int, Any, int]) -> Tensor:
            i, batch, size = item
            # A product must not see what those before it have left: counters, averages, random numbers of the module.
            with undisturbed(trainer, module, seed=i):
                return self.loss_of(trainer, module, batch, i) * (size / total)

        def outputs(item: tuple[int, Any, int]) -> Tensor:
            i, batch, _ = item
            with undisturbed(trainer, module, seed=i), trainer.precision_plugin.forward_context():
                return self._outputs_of(module, batch)

        def criterion(found: Tensor, item: tuple[int, Any, int]) -> Tensor:
            assert self._criterion is not None
            return self._criterion(found, item[1]) * (item[2] / total)

        if self._criterion is None:
            return HessianOperator(loss, module, batches, reduction="sum")
        return GaussNewtonOperator(outputs, criterion, module, batches, reduction="sum")

    def _outputs_of(self, module: LightningModule, batch: Any) -> Tensor:
        if self._outputs is not None:
            return self._outputs(module, batch)
        if not isinstance(batch, (list, tuple)) or len(batch) != 2:
            raise ValueError(
                f"a batch is a {type(batch).__name__}, not a pair (x, y): give CurvatureMonitor(outputs=...) a "
                "function of the module and a batch"
            )
        return module(batch[0])  # type: ignore[no-any-return]

    def _loss_of_outputs(self, module: LightningModule, batch: Any) -> Tensor:
        assert self._criterion is not None
        return self._criterion(self._outputs_of(module, batch), batch)


def _quantiles(spectrum: Spectrum, levels: Sequence[float]) -> list[float]:
    """The least eigenvalue, or node of a quadrature, up to which these parts of the directions lie."""
    known = len(spectrum.eigenvalues)
    places, weights = spectrum.eigenvalues, np.full(known, 1 / spectrum.n_parameters)
    if not spectrum.exact:
        n_probes, n_nodes = spectrum.diagonals.shape
        nodes, shares = spectrum._quadrature(n_nodes)
        rest = (1 - known / spectrum.n_parameters) / n_probes
        places, weights = np.append(places, nodes.ravel()), np.append(weights, rest * shares.ravel())
    order = np.argsort(places)
    reached = np.searchsorted(np.cumsum(weights[order]), np.asarray(levels) - 1e-12)
    return [float(places[order[min(k, len(order) - 1)]]) for k in reached.tolist()]


@contextmanager
def _without_autocast(trainer: Trainer) -> Iterator[None]:
    """Let the forward pass be in the precision of the weights."""
    own = vars(trainer.precision_plugin)
    if isinstance(trainer.precision_plugin, MixedPrecision):
        own["autocast_context_manager"] = nullcontext
    try:
        yield
    finally:
        own.pop("autocast_context_manager", None)

"""Measure how curved the loss is, and how many directions are flat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import Unpack

from lightning_glassy.callbacks.batches import Batches
from lightning_glassy.callbacks.kept import Kept
from lightning_glassy.callbacks.network import (
    Loader,
    Loss,
    NetworkMeasurement,
    NetworkOptions,
    has_sync_batch_norm,
    without_autocast,
)
from lightning_glassy.callbacks.undisturbed import repeatable
from lightning_glassy.curvature.lanczos import measure_spectrum
from lightning_glassy.curvature.operators import CurvatureOperator, GaussNewtonOperator, HessianOperator
from lightning_glassy.curvature.spectrum import Spectrum
from lightning_glassy.schedule import StepsLike

Criterion = Callable[[Tensor, Any], Tensor]
"""The loss of the outputs of a module for a batch, a tensor of one number."""

_LEVELS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class CurvatureMonitor(NetworkMeasurement):
    r"""Measures the spectrum of the Hessian of the training loss at log-spaced steps, on a fixed part of the data.

    The matrix is :math:`H_{ij} = \partial^2 L/\partial w_i\partial w_j` for all N trainable parameters. The loss is
    :math:`L = \sum_b B_b\ell_b/\sum_b B_b` over batches b of :math:`B_b` samples. The batches are the same at all
    steps. With a ``criterion``, the matrix is the Gauss-Newton matrix. It has no negative eigenvalue if the criterion
    is convex in the outputs. The eigenvalues :math:`\lambda` are in units of the loss per weight squared. Baity-Jesi et
    al. 2018 (arXiv 1803.06969) explain the slowing down of over-parametrised networks by more and more flat directions.
    :mod:`lightning_glassy.curvature` describes the numerics and the errors.

    ==========================  ================================================================================
    key                         logged value
    ==========================  ================================================================================
    ``hessian_max``             the leading eigenvalue, and ``hessian_max_2``, ... the next ones
    ``hessian_min``             the lowest eigenvalue, and ``hessian_min_2``, ... the next ones
    ``hessian_max_at_least``    a lower bound, if the leading eigenvalue did not converge
    ``hessian_min_at_most``     an upper bound, if the lowest eigenvalue did not converge
    ``hessian_trace``           :math:`\sum_i\lambda_i`
    ``flat_fraction``           fraction of the directions with :math:`|\lambda| < \epsilon`
    ``hessian_index``           fraction of the directions with :math:`\lambda < -\epsilon`
    ``<key>_error``             error of ``hessian_max`` and ``hessian_min`` (an eigenvalue lies within it), and one
                                standard deviation of the trace, the flat fraction and the index. 0 if exact
    ``hessian_q01``, ...        quantiles of the spectral density at 1, 5, 25, 50, 75, 95 and 99 %: this part of the
                                directions has no larger :math:`\lambda`, to within a node of the quadrature and the
                                scatter of the probes
    ==========================  ================================================================================

    For the Gauss-Newton matrix the keys begin with ``gauss_newton`` instead of ``hessian``.

    The values are one-time series of the record of the :class:`AgingMonitor` in the same Trainer, or of a separate
    record. In the loggers they are scalars ``glassy_series/<key>`` against the step. The entry ``CurvatureMonitor`` of
    the record's metadata has the numbers of batches and samples, the numbers of allowed and used matrix-vector
    products, and the time of the measurements. :attr:`spectrum` is the last measurement as a whole, with its density.

    Cost: a measurement takes at most ``max_products`` products over the fixed part of the data. A product costs three
    gradients (measured on one CPU core with 301,066 parameters), or eight for 1,482 parameters, where the Python loop
    dominates. The default is 200 products with 4 batches, or about 2,400 gradients of a batch. This suits long
    trainings. A smaller ``max_batches`` or ``schedule`` reduces the cost. Up to 2,000 parameters, N products give the
    whole spectrum exactly, so use ``max_products=2000`` for small networks.

    Limits: on M samples with C outputs each, the Gauss-Newton part of the Hessian has at most MC steep directions, for
    any size of the full data. The flat fraction therefore depends on the used part of the data. It also depends on ε.
    The nodes of the quadrature are about the width of the bulk divided by ``n_nodes`` apart. For an ε far below this
    distance, the flat fraction scatters from step to step by its large error. The error can also be too small: it is 0
    if no node is within ε.

    Training is the same, bit for bit, with the callback and without it. The probe vectors come from their own
    generator. Random numbers in the module (dropout in mode ``"train"``) are the same in all products and at all steps.
    Under mixed precision the matrix is computed without autocast, whose rounding would hide small eigenvalues. Under
    DDP rank 0 measures, and the others wait.

    Args:
        schedule: :class:`Steps`, a list of steps, or a number of steps per decade. The last step of the run is
            measured, too (see :class:`Measurement`).
        loader: a ``DataLoader``, or a function that returns one when training starts. Its sampler decides which samples
            are used. Default: the loader of the training.
        mode: ``"eval"``, or ``"train"`` for the loss with dropout and with the statistics of each batch.
        max_batches: number of batches in the fixed part of the data, or ``None`` for all. They are on the device during
            a measurement.
        criterion: function of the outputs of the module and a batch that returns the loss. The matrix is then the
            Gauss-Newton matrix.
        outputs: function of the module and a batch that returns one tensor, for ``criterion``. Default: ``module(x)``
            of a pair (x, y).
        eps: ε, below which a direction is flat, in units of the loss per weight squared. The default is the resolution
            of 100 nodes in a bulk of width one.
        n_eigenvalues: number of leading and of lowest eigenvalues to find.
        n_probes: number of random vectors for the spectral density. Its errors fall as one over the square root of this
            number.
        n_nodes: number of products for each random vector, and number of nodes of its quadrature.
        max_products: most products in a measurement.
        **options: ``batch_size`` and ``loss``: see :class:`~lightning_glassy.callbacks.network.NetworkOptions`.
            ``name``, ``dirpath``, ``save``, ``summary`` and ``max_share``: see
            :class:`~lightning_glassy.callbacks.recorder.MeasurementOptions`.

    Attributes:
        spectrum: the last :class:`~lightning_glassy.curvature.Spectrum`, on rank 0.

    Raises:
        TypeError: at construction, an argument has the wrong type.
        ValueError: at construction, an argument is out of its range, or ``loss`` or ``outputs`` does not go with
            ``criterion``.
        ImportError: at the start of training, scipy is missing. The message names the extra.
        MisconfigurationException: at the start of training, there is no usable loss or data, too few products are
            allowed, or normalisations wait for other processes. The message names the remedy.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[CurvatureMonitor(max_batches=4, eps=1e-3)], logger=False)
    """

    _data: Batches | None

    def __init__(
        self,
        schedule: StepsLike = 2,
        *,
        loader: Loader | None = None,
        mode: Literal["train", "eval"] = "eval",
        max_batches: int | None = 4,
        criterion: Criterion | None = None,
        outputs: Loss | None = None,
        eps: float = 1e-2,
        n_eigenvalues: int = 3,
        n_probes: int = 1,
        n_nodes: int = 100,
        max_products: int = 200,
        **options: Unpack[NetworkOptions],
    ) -> None:
        loss = options.get("loss")
        if criterion is not None:
            # The module then needs no loss, and a module without a loss is accepted.
            options["loss"] = self._loss_of_outputs
        super().__init__(schedule, mode=mode, max_batches=max_batches, **options)
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
        self.release()

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings and the record for pickle and copy, without the training that is under way."""
        return super().__getstate__() | {"_data": None}

    def prepare(self, trainer: Trainer, module: LightningModule) -> None:
        """Find the data, and refuse unusable data."""
        try:
            import scipy.sparse.linalg  # noqa: F401
        except ImportError as error:
            raise ImportError("CurvatureMonitor needs scipy: pip install 'lightning-glassy[curvature]'") from error
        self.check_derivatives(self.parameters_of(module))
        if self._mode == "train" and trainer.world_size > 1 and has_sync_batch_norm(module):
            raise MisconfigurationException(
                "CurvatureMonitor: rank 0 measures alone, and in mode='train' a SyncBatchNorm would wait for the other "
                "processes: use mode='eval'"
            )
        if any(p.requires_grad and torch.finfo(p.dtype).bits < 32 for p in module.parameters()):
            rank_zero_warn(
                "CurvatureMonitor: weights of 16 bits have two or three digits for second derivatives, too: small "
                "eigenvalues, and so the flat fraction, are rounding errors"
            )
        # Do not share the batches over the processes, because rank 0 measures alone. Shuffle the samples, because the
        # first samples of data that are sorted by class differ from the rest.
        self._data = self.batches(trainer, self._loader, "the training data", shuffled=True, shared=False)
        self._description = {"matrix": self._prefix, **self._data.counts, **self._settings}

    def release(self) -> None:
        """Free the data."""
        self._data = None

    def describe(self) -> dict[str, Any]:
        """Return the matrix, the data, the settings, and the products of the last measurement."""
        made = {} if self.spectrum is None else {"products": self.spectrum.n_products}
        return self._description | made

    def measure(self, trainer: Trainer, module: LightningModule) -> Spectrum | None:
        """Return the spectrum on rank 0, and ``None`` on the other ranks."""
        if trainer.global_rank != 0:
            return None
        try:
            with without_autocast(trainer):
                self.spectrum = measure_spectrum(self._operator(trainer, module), **self._settings)
        except ValueError as error:
            raise MisconfigurationException(f"CurvatureMonitor: {error}") from error
        return self.spectrum

    def combine(self, trainer: Trainer, measured: Spectrum | None) -> dict[str, float]:
        """Return the values of all series."""
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
        # Restore the counters and averages of the training afterwards.
        kept = Kept([*module.modules()])
        # The transforms of the data set draw the same random numbers at all steps.
        with repeatable(kept, seed=0):
            batches = [(i, batch, size) for i, (batch, size) in enumerate(self._data.of(trainer, module))]
        total = sum(size for _, _, size in batches)

        def loss(item: tuple[int, Any, int]) -> Tensor:
            i, batch, size = item
            # A product must not see the counters, averages and random numbers of the products before it.
            with repeatable(kept, seed=i):
                return self.loss_of(trainer, module, batch, i) * (size / total)

        def outputs(item: tuple[int, Any, int]) -> Tensor:
            i, batch, _ = item
            with repeatable(kept, seed=i), trainer.precision_plugin.forward_context():
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
    """Return the smallest eigenvalues, or nodes of a quadrature, up to which these parts of the directions lie."""
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

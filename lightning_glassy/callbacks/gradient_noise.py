"""Measure the gradient noise. It sets how fast a network diffuses if nothing else moves it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import Unpack

from lightning_glassy.callbacks.aging import AgingMonitor
from lightning_glassy.callbacks.batches import Batches
from lightning_glassy.callbacks.measurement import add_up
from lightning_glassy.callbacks.network import Loader, NetworkMeasurement, NetworkOptions
from lightning_glassy.callbacks.recording import of_kind
from lightning_glassy.measure.select import Groups, Selected, check_patterns
from lightning_glassy.record import series_name
from lightning_glassy.schedule import StepsLike


class Spread(NamedTuple):
    """Mean and scatter of the gradients of n batches, parameter by parameter.

    Attributes:
        n: number of batches.
        means: the mean gradient of each parameter.
        squares: sums of the squared deviations from the mean, ``[n_parameter]``.
    """

    n: int
    means: list[Tensor]
    squares: Tensor


class GradientNoiseMonitor(NetworkMeasurement):
    r"""Measures the strength of the gradient noise at log-spaced steps.

    With :math:`g_b` the gradient of the loss on the batch b of B samples, at fixed weights, over n batches,

    .. math:: D = \frac{n}{n-1}\left(\langle\|g_b\|^2\rangle_b - \|\langle g_b\rangle_b\|^2\right),

    summed over the parameters of a group (Baity-Jesi et al. 2018, arXiv 1803.06969). The batches are disjoint parts of
    the samples of an epoch: all samples, the indices of the sampler, or its draws. Their order is random, and the same
    at all steps. If the training reads its data in the same order in each epoch, its own batches are used, within
    ``limit_train_batches`` and ``overfit_batches``. If the user wrote the class of the batch sampler, its batches are
    used. The mean of D over random orders is :math:`\operatorname{tr}\Sigma/B` for any number of batches. Here
    :math:`\Sigma` is the covariance of the gradients of single samples, with M - 1 in its denominator for M samples.
    The gradient of one batch out of an epoch without replacement scatters by :math:`D(1 - B/M)`.

    :math:`\|\langle g_b\rangle\|^2` is the squared norm over the batches used. If these batches are not all the data,
    its mean is larger by D/n than with infinite data.

    :meth:`AgingRecord.msd` with ``normalise="noise"`` is :math:`\Delta(t_w, t_w+t)/D(t_w)`.

    ==================================  ========================================================================
    key                                 logged value
    ==================================  ========================================================================
    ``gradient_noise``                  D, the noise of the gradient of one batch
    ``gradient_norm2``                  :math:`\|\langle g_b\rangle\|^2`, the squared norm of the mean gradient
    ``gradient_signal_to_noise``        their ratio :math:`\|\langle g_b\rangle\|^2 / D`
    ``noise_temperature``               T, see below, for ``torch.optim.SGD`` only
    ``<key>/<group>``                   the same for the parameters of a group
    ==================================  ========================================================================

    Convention of the temperature: for small learning rates :math:`\eta`, SGD with momentum :math:`\beta` near a minimum
    moves like a Langevin equation of mobility :math:`\eta/(1-\beta)` at :math:`T = \eta D' / (2 N (1-\beta))`. A
    coordinate of curvature :math:`\lambda` then has :math:`\langle w^2\rangle = T/\lambda`, if the noise is the same in
    all N coordinates. :math:`D'` is the noise of an update: D divided by the number of batches whose gradients the
    update averages (``accumulate_grad_batches`` times the number of processes). The learning rate and
    ``accumulate_grad_batches`` are read at the measurement, after an update. If a ``GradientAccumulationScheduler``
    changes the number at the start of an epoch, the measurement at the last step of the epoch before still uses the
    former number.

    The values are one-time series of the record of the :class:`AgingMonitor` in the same Trainer, or of a separate
    record. In the loggers they are scalars ``glassy_series/<key>`` against the step. The entry ``GradientNoiseMonitor``
    of the record's metadata has B, the number n of used batches, and the time of the measurements.

    The gradients are summed on the device in a single pass (Welford's recurrence, in float32 or better). This needs
    memory for the gradient of one batch and for the mean gradient. It needs no gradients of single samples. Training is
    the same, bit for bit, with the callback and without it. Under DDP each process has its part of the batches, and all
    processes get the result.

    Args:
        schedule: :class:`Steps`, a list of steps, or a number of steps per decade. The last step of the run is
            measured, too (see :class:`Measurement`). The default steps include the waiting times of an
            :class:`AgingMonitor`.
        groups: ``"all"``, ``"layer"``, or a mapping of group names to name patterns. Default: the groups, and the
            parameters, of the :class:`AgingMonitor` of the same name, or else ``"all"``.
        include: only parameters whose name matches one of these shell patterns. It needs ``groups``.
        exclude: no parameters whose name matches one of these patterns. It needs ``groups``.
        loader: a ``DataLoader``, or a function that returns one when training starts. Default: the loader of the
            training.
        mode: ``"train"`` for the noise of the training, with dropout and the statistics of each batch, or ``"eval"``.
        max_batches: most batches to use, or ``None`` for all.
        **options: ``batch_size`` and ``loss``: see :class:`~lightning_glassy.callbacks.network.NetworkOptions`.
            ``name``, ``dirpath``, ``save``, ``summary`` and ``max_share``: see
            :class:`~lightning_glassy.callbacks.recorder.MeasurementOptions`.

    ``batch_size`` is B. The default is the batch size of the training (in each process). With a
    :class:`ReplicaEnsemble`, ``loss`` is required. D and the squared norm are then means over the replicas.

    Raises:
        TypeError: at construction, an argument has the wrong type.
        ValueError: at construction, an argument is out of its range. At the start of training, a pattern has no match.
        MisconfigurationException: at the start of training, there is no usable loss or data, or there are fewer than
            two whole batches. The message names the remedy.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[GradientNoiseMonitor(max_batches=50)], logger=False)
    """

    takes_replicas = True

    _data: Batches | None
    _parameters: list[Selected]
    _groups: dict[str, list[int]]

    def __init__(
        self,
        schedule: StepsLike = 6,
        *,
        groups: Groups | None = None,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        loader: Loader | None = None,
        mode: Literal["train", "eval"] = "train",
        max_batches: int | None = 100,
        **options: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(schedule, mode=mode, max_batches=max_batches, **options)
        if groups is None and not (include is None and exclude is None):
            raise ValueError(f"include={include!r}, exclude={exclude!r} need groups: give groups='all', for example")
        check_patterns("all" if groups is None else groups, include, exclude)
        if max_batches == 1:
            raise ValueError("max_batches=1: a scatter needs at least 2 batches")
        self._selection: dict[str, Any] | None = None
        if groups is not None:
            self._selection = {"groups": groups, "include": include, "exclude": exclude}
        self._loader = loader
        self.release()

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings and the record for pickle and copy, without the training that is under way."""
        return super().__getstate__() | {"_data": None, "_parameters": [], "_groups": {}}

    def prepare(self, trainer: Trainer, module: LightningModule) -> None:
        """Find the parameters and their groups, and the batches."""
        selection = self._selection
        monitors = (monitor for monitor in of_kind(trainer, AgingMonitor) if monitor.name == self.name)
        if selection is None and (monitor := next(monitors, None)) is not None:
            options = monitor.options
            selection = {"groups": monitor.groups, "include": options["include"], "exclude": options["exclude"]}
        self._parameters = self.parameters_of(module, **(selection or {}))
        self.check_derivatives(self._parameters)
        names = dict.fromkeys(["all", *(group for parameter in self._parameters for group in parameter.groups)])
        self._groups = {
            name: [i for i, parameter in enumerate(self._parameters) if name in ("all", *parameter.groups)]
            for name in names
        }
        data = self.batches(trainer, self._loader, "the training data", whole=True)
        if data.used < 2:
            raise MisconfigurationException(
                f"GradientNoiseMonitor: the data have {data.used} whole batch of {data.batch_size} samples, and a "
                "scatter needs two: give a smaller batch_size"
            )
        self._data = data

    def sizes(self, module: LightningModule) -> dict[str, int]:
        """Return the number of parameters of each group."""
        return {
            name: sum(self._parameters[i].numel for i in members) for name, members in self._groups.items()
        } or super().sizes(module)

    def release(self) -> None:
        """Free the parameters and the data."""
        self._data = None
        self._parameters = []
        self._groups = {}

    def describe(self) -> dict[str, Any]:
        """Return the size and the numbers of the batches."""
        if self._data is None:
            return {}
        return {
            "batch_size": self._data.batch_size,
            "batches": self._data.used,
            "batches_available": self._data.available,
        }

    def measure(self, trainer: Trainer, module: LightningModule) -> tuple[Spread, list[float]]:
        """Return the mean and scatter of the gradients of this process, and the ratio of temperature to noise."""
        assert self._data is not None
        device = trainer.strategy.root_device
        tensors: list[Any] = [parameter.tensor for parameter in self._parameters]
        means = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in tensors]
        squares = torch.zeros(
            len(tensors), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device
        )
        # Small gradients of 16 bits vanish unless the loss is scaled, as in the training.
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        # A parameter that has been frozen since the start has no gradient, and no noise.
        live = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
        n = 0
        for batch, _ in self._data.of(trainer, module):
            with torch.enable_grad():
                loss = self.loss_of(trainer, module, batch, n).sum()  # each replica has its own gradient of the sum
                # Do not call `backward`, because it calls the hooks on gradients and DDP.
                found = torch.autograd.grad(loss * scale, [tensors[i] for i in live], allow_unused=True)
            n += 1
            gradients = dict(zip(live, found, strict=True))
            del loss, found
            for i, mean in enumerate(means):
                gradient = gradients.pop(i, None)
                deviation = -mean if gradient is None else gradient.to_dense().to(mean.dtype) / scale - mean
                mean.add_(deviation, alpha=1 / n)
                squares[i] += (n - 1) / n * _sum_of_squares(deviation, squares.dtype)
        return Spread(n, means, squares), [_temperature_per_noise(trainer)]

    def combine(self, trainer: Trainer, measured: tuple[Spread, list[float]]) -> dict[str, float]:
        """Return the values of all series, from the gradients of all processes."""
        spread, (per_noise,) = measured
        n, means, squares = _pool(trainer, spread)
        norms = torch.stack([_sum_of_squares(mean, squares.dtype) for mean in means])
        noise, signal = (squares / (n - 1)).tolist(), norms.tolist()
        values: dict[str, float] = {}
        for group, members in self._groups.items():
            # The sums over replicas, divided by their number.
            d, norm2 = (sum(of[i] for i in members) / (self._n_replica or 1) for of in (noise, signal))
            of_group = {
                "gradient_noise": d,
                "gradient_norm2": norm2,
                "gradient_signal_to_noise": norm2 / d if d > 0 else math.nan,
                "noise_temperature": per_noise * d / self._sizes[group],
            }
            for key, value in of_group.items():
                # Leave out undefined values, but keep a noise that is not finite.
                if math.isfinite(value) or key == "gradient_noise":
                    values[series_name(key, group)] = value
        return values


def _sum_of_squares(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return (real * real).sum(dtype=dtype)


def _pool(trainer: Trainer, spread: Spread) -> Spread:
    """Return mean and scatter over the batches of all processes. Every process calls this function."""
    if trainer.world_size == 1:
        return spread
    n = int(add_up(trainer, torch.tensor(spread.n, device=spread.squares.device)))
    squares, means = spread.squares.clone(), []
    for i, own in enumerate(spread.means):
        mean = add_up(trainer, own * (spread.n / n))
        squares[i] += spread.n * _sum_of_squares(own - mean, squares.dtype)
        means.append(mean)
    return Spread(n, means, add_up(trainer, squares))


def _temperature_per_noise(trainer: Trainer) -> float:
    """Return the ratio of the temperature to D/N. It is NaN if the optimisers define no temperature."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    plain = all(type(optimizer) is torch.optim.SGD for optimizer in trainer.optimizers)
    settings = {(float(g["lr"]), g["momentum"], g["dampening"]) for g in groups} if plain else set()
    if len(settings) != 1 or (only := settings.pop())[2] != 0:
        return math.nan
    rate, momentum = float(only[0]), float(only[1])
    return rate / (2 * (1 - momentum) * trainer.accumulate_grad_batches * trainer.world_size)

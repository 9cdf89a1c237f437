"""The strength of the gradient noise, which sets how fast a network diffuses where nothing else moves it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_glassy.callbacks.batches import Batches
from lightning_glassy.callbacks.probe import Loss, Probe, add_up, monitor_of
from lightning_glassy.measure.select import Groups, Selected, check_patterns
from lightning_glassy.record import series_name
from lightning_glassy.schedule import LogTimeSchedule


class Spread(NamedTuple):
    """Mean and scatter of the gradients of n batches, parameter by parameter.

    Attributes:
        n: number of batches.
        means: the mean gradient of each parameter.
        squares: sums of the squared deviations from it, ``[n_parameter]``.
    """

    n: int
    means: list[Tensor]
    squares: Tensor


class GradientNoiseMonitor(Probe):
    r"""Measures the strength of the gradient noise at log-spaced steps.

    With :math:`g_b` the gradient of the loss on the batch b of B samples, at fixed weights, over n batches,

    .. math:: D = \frac{n}{n-1}\left(\langle\|g_b\|^2\rangle_b - \|\langle g_b\rangle_b\|^2\right),

    summed over the parameters of a group (Baity-Jesi et al. 2018, arXiv 1803.06969). The batches are disjoint parts of
    the data set in random order, the same at all steps; where the training reads its data in their own order, those of
    the training. In the mean over the orders :math:`D = \operatorname{tr}\Sigma/B`, with :math:`\Sigma` the covariance
    of the gradients of single samples (of M samples, with M - 1 in its denominator), however many batches are used. The
    gradient of one batch out of an epoch without replacement scatters by :math:`D(1 - B/M)`.

    :math:`\|\langle g_b\rangle\|^2` is that over the batches used: if these are not all the data, it is in the mean by
    D/n above that of endless data.

    :meth:`AgingRecord.msd` with ``normalise="noise"`` is then :math:`\Delta(t_w, t_w+t)/D(t_w)`.

    ==================================  ========================================================================
    key                                 what is logged
    ==================================  ========================================================================
    ``gradient_noise``                  D, of the gradient of one batch
    ``gradient_norm2``                  :math:`\|\langle g_b\rangle\|^2`, the squared norm of the mean gradient
    ``gradient_signal_to_noise``        their ratio :math:`\|\langle g_b\rangle\|^2 / D`
    ``noise_temperature``               T, see below; with ``torch.optim.SGD`` alone
    ``<key>/<group>``                   the same for the parameters of a group
    ==================================  ========================================================================

    Convention of the temperature: SGD with the learning rate :math:`\eta` and the momentum :math:`\beta` near a minimum
    moves as a Langevin equation of mobility :math:`\eta/(1-\beta)` at :math:`T = \eta D' / (2 N (1-\beta))`, for small
    :math:`\eta`: a coordinate of curvature :math:`\lambda` has :math:`\langle w^2\rangle = T/\lambda` if the noise is
    the same in all N coordinates. :math:`D'` is the noise of an update, D over the number of batches whose gradients it
    averages (``accumulate_grad_batches`` times the number of processes).

    They are one-time series of the record of the :class:`AgingMonitor` in the same Trainer, or else of one of its own,
    and scalars ``glassy_series/<key>`` against the step in the loggers. The entry ``GradientNoiseMonitor`` of the
    record's metadata has B, the number n of batches that were *used*, and the time it took.

    The gradients are summed up on the device in a single pass (Welford's recurrence, in float32 or better): it takes
    memory for the gradient of one batch and for the mean, and there are no gradients of single samples. Training is the
    same, bit for bit, with the callback and without it. Under DDP each process has its part of the batches, and all get
    the result.

    Args:
        schedule: a :class:`LogTimeSchedule`, whose waiting times are the steps, or the number of steps per decade;
            default 6, among which are the waiting times of an :class:`AgingMonitor`.
        groups: ``"all"``, ``"layer"``, or a mapping of group names to name patterns. Default: the groups, and the
            parameters, of the :class:`AgingMonitor` of the same name; without one ``"all"``.
        include: only parameters whose name matches one of these shell patterns; with ``groups`` only.
        exclude: without parameters whose name matches one of these; with ``groups`` only.
        loader: whose data set to use: a ``DataLoader``, or a function that gives one when training starts. Default that
            of the training.
        mode: ``"train"``, the noise as the training feels it, with dropout and the statistics of each batch, or
            ``"eval"``.
        max_batches: most batches to use; None for all.
        batch_size: B; default that of the training (in each process).
        loss: gives the loss of a module on a batch; default what ``training_step`` returns. Of a
            :class:`ReplicaEnsemble` it is needed, and gives the loss of each replica, ``[n_replica]``, on a batch that
            is the same for all; D and the squared norm are then the means over the replicas.
        name: of the :class:`AgingMonitor` whose record it shares, else the prefix of the keys and of the directory.
        dirpath: where the files go if there is no such monitor; default the directory ``name`` beside the logger's.
        save: whether to write these files.
        summary: whether to print a line at the end on the time it took.

    Raises:
        TypeError: at construction, an argument of another type.
        ValueError: at construction, an argument out of its range; at the start of training, a pattern without a match.
        MisconfigurationException: at the start of training, no usable loss or data, or fewer than two whole batches;
            the message names the remedy.

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
        schedule: LogTimeSchedule | int | None = None,
        *,
        groups: Groups | None = None,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        loader: DataLoader[Any] | Callable[[], Any] | None = None,
        mode: Literal["train", "eval"] = "train",
        max_batches: int | None = 100,
        batch_size: int | None = None,
        loss: Loss | None = None,
        name: str = "glassy",
        dirpath: str | os.PathLike[str] | None = None,
        save: bool = True,
        summary: bool = True,
    ) -> None:
        super().__init__(
            schedule,
            mode=mode,
            max_batches=max_batches,
            batch_size=batch_size,
            loss=loss,
            name=name,
            dirpath=dirpath,
            save=save,
            summary=summary,
        )
        if groups is None and not (include is None and exclude is None):
            raise ValueError(f"include={include!r}, exclude={exclude!r} need groups: give groups='all', for example")
        check_patterns("all" if groups is None else groups, include, exclude)
        if max_batches == 1:
            raise ValueError("max_batches=1: a scatter needs at least 2 batches")
        self._selection: dict[str, Any] | None = None
        if groups is not None:
            self._selection = {"groups": groups, "include": include, "exclude": exclude}
        self._loader = loader

    def prepare(self, trainer: Trainer, module: LightningModule) -> None:
        """Find the parameters and their groups, and the batches."""
        selection, monitor = self._selection, monitor_of(trainer, self.name)
        if selection is None and monitor is not None:
            selection = {key: monitor._options[key] for key in ("groups", "include", "exclude")}
        self._parameters = self.parameters_of(module, **(selection or {}))
        names = dict.fromkeys(["all", *(group for parameter in self._parameters for group in parameter.groups)])
        self._groups = {
            name: [i for i, parameter in enumerate(self._parameters) if name in ("all", *parameter.groups)]
            for name in names
        }
        self._n_parameters = {
            name: sum(self._parameters[i].numel for i in members) for name, members in self._groups.items()
        }
        loader = self._loader
        if loader is not None and not isinstance(loader, DataLoader) and callable(loader):
            loader = loader()
        data = self.batches(trainer, loader, "GradientNoiseMonitor: the loader of the training data", whole=True)
        if data.used < 2:
            raise MisconfigurationException(
                f"GradientNoiseMonitor: the data have {data.used} whole batch of {data.batch_size} samples, and a "
                "scatter needs two: give a smaller batch_size"
            )
        self._data = data

    def release(self) -> None:
        """Let go of the parameters and the data."""
        self._data = None
        self._parameters = []
        self._groups = {}

    def describe(self) -> dict[str, Any]:
        """Of which batches, and how many, the noise is."""
        if self._data is None:
            return {}
        return {
            "batch_size": self._data.batch_size,
            "batches": self._data.used,
            "batches_available": self._data.available,
        }

    def measure(self, trainer: Trainer, module: LightningModule) -> tuple[Spread, list[float]]:
        """Mean and scatter of the gradients of this process's batches; what makes temperatures of noise."""
        assert self._data is not None
        device = trainer.strategy.root_device
        tensors: list[Any] = [parameter.tensor for parameter in self._parameters]
        means = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in tensors]
        squares = torch.zeros(
            len(tensors), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device
        )
        # Small gradients of 16 bits vanish unless the loss is scaled, as the training's is.
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        # What has been frozen since the start has no gradient, and no noise.
        live = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
        n = 0
        for batch, _ in self._data.of(trainer, module):
            with torch.enable_grad():
                loss = self.loss_of(trainer, module, batch, n).sum()  # of replicas: each has its own gradient of it
                # Not `backward`: nobody's hooks on gradients, nor DDP, are told.
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
        """The values of all series, from the gradients of all processes."""
        spread, (per_noise,) = measured
        n, means, squares = _pool(trainer, spread)
        norms = torch.stack([_sum_of_squares(mean, squares.dtype) for mean in means])
        noise, signal = (squares / (n - 1)).tolist(), norms.tolist()
        values: dict[str, float] = {}
        for group, members in self._groups.items():
            # Of replicas the mean of what are sums over them.
            d, norm2 = (sum(of[i] for i in members) / (self._n_replica or 1) for of in (noise, signal))
            of_group = {
                "gradient_noise": d,
                "gradient_norm2": norm2,
                "gradient_signal_to_noise": norm2 / d if d > 0 else math.nan,
                "noise_temperature": per_noise * d / self._n_parameters[group],
            }
            for key, value in of_group.items():
                # What is not defined is left out; a noise that is not finite is shown.
                if math.isfinite(value) or key == "gradient_noise":
                    values[series_name(key, group)] = value
        return values


def _sum_of_squares(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return (real * real).sum(dtype=dtype)


def _pool(trainer: Trainer, spread: Spread) -> Spread:
    """Mean and scatter over the batches of all processes, from those of each; every process calls it."""
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

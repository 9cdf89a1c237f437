"""Measure the inherent structures of a training: the minima of the loss below its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import Unpack

from lightning_glassy.callbacks.batches import Batches
from lightning_glassy.callbacks.kept import Kept
from lightning_glassy.callbacks.network import (
    Loader,
    NetworkMeasurement,
    NetworkOptions,
    has_sync_batch_norm,
    without_autocast,
)
from lightning_glassy.callbacks.undisturbed import repeatable
from lightning_glassy.measure.select import Selected
from lightning_glassy.schedule import StepsLike

# Key of a checkpoint. Its value holds the last inherent structures by the names of their records.
_KEY = "lightning_glassy_inherent_structures"

_GROWTH, _SHRINKAGE = 1.2, 0.5  # factors of the step size after an accepted and after a rejected step
_TURN = 0.5  # largest change of the gradient in a step, as a part of the gradient
_SHORT = 1e-3  # a step up to this part of the norm of the weights may turn more. The first step has this length.
_STAGES, _DAMPING = 5, 0.05  # gradients of a step, and the usual damping of its stiff directions
_ROUNDING = 4  # error of the energy, in units of the rounding of the weights


class Minimum(NamedTuple):
    """Ends of the descents of R replicas with N weights each.

    Attributes:
        weights: the weights at the end, ``[R, N]``.
        energy: the energy there, ``[R]``.
        gradient: the rms gradient there, ``[R]``.
        n_gradients: number of gradients of each descent, ``[R]``.
        converged: whether each descent met the rule of convergence, ``[R]``.
    """

    weights: Tensor
    energy: Tensor
    gradient: Tensor
    n_gradients: Tensor
    converged: Tensor


class Structure(NamedTuple):
    """The inherent structure of a step, on the host.

    Attributes:
        step: number of completed updates.
        names: names of the parameters.
        weights: their values, ``[R, N]``.
    """

    step: int
    names: list[str]
    weights: Tensor


class InherentStructures(NetworkMeasurement):
    r"""Measures the minima of the loss that a steepest descent reaches from the weights at log-spaced steps.

    The inherent structure :math:`w^{IS}` of the weights w is the end of the path :math:`dw/ds = -\nabla e(w)`
    (Stillinger and Weber 1982, for liquids. Winter and Janssen 2024, arXiv 2405.13098, for networks). The energy is

    .. math:: e(w) = \frac{\sum_b B_b \ell_b(w)}{\sum_b B_b} + \frac{\kappa}{2} \sum_i w_i^2

    over fixed batches b of :math:`B_b` samples, with :math:`\kappa` = ``weight_decay``. This is an energy per sample if
    the loss :math:`\ell_b` of a batch is the mean over its samples. N is the number of trainable parameters.

    ========================  ==================================================================================
    key                       logged value
    ========================  ==================================================================================
    ``inherent_energy``       :math:`e(w^{IS})`, the energy of the inherent structure
    ``inherent_distance``     :math:`\frac{1}{N}\sum_i (w_i - w^{IS}_i)^2`, from the weights to their structure
    ``inherent_step``         the same mean square from the structure of the previous measured step to this structure
    ``inherent_overlap``      fraction of the weights of these two structures with :math:`|\Delta w_i| \le \epsilon`
    ``inherent_gradient``     rms gradient :math:`\sqrt{\frac{1}{N}\sum_i (\partial e/\partial w_i)^2}` at the end
    ``inherent_gradients``    number of gradients of the descent
    ``inherent_converged``    1 if the descent converged, else 0. With replicas, the fraction that converged
    ``<key>_error``           with replicas, ``<key>`` is a mean over them: its standard error
    ========================  ==================================================================================

    Vibration or jump: if ``inherent_step`` is small against the ``inherent_distance`` at its two ends, the weights have
    vibrated about one minimum between the two steps. If ``inherent_step`` is larger, they have jumped to another
    minimum. :func:`lightning_glassy.analysis.inherent.inherent_jumps` decides this for a record.

    The descent follows the path :math:`dw/ds = -\nabla e` with a Runge-Kutta-Chebyshev method of 5 stages (van der
    Houwen and Sommeijer 1980), which :func:`descend` describes. Near a minimum, its steps are about 25 times as long as
    the steps of plain gradient descent, for 5 gradients. A step is accepted if the energy does not rise beyond its
    rounding, and if the gradient changes by at most half of its norm, or the step is shorter than a thousandth of the
    norm of the weights. The step size then grows by 1.2. Otherwise it is halved. The second condition keeps the descent
    near the path, which defines the inherent structure. Faster minimisers (momentum, L-BFGS, Adam, long line searches)
    can leave the basin of the weights and find another minimum.

    A descent has converged if the rms gradient is at most ``tolerance``. It has also converged if it cannot move any
    more, and the longest step it has used would lower the energy by less than its rounding. Otherwise it ends without
    convergence after ``max_gradients`` gradients, or if it cannot move. The other values then belong to the end of the
    descent, which is no minimum, and ``inherent_converged`` shows it. A gradient g that is left in a direction of
    curvature :math:`\lambda` means a distance of :math:`g/\lambda` from the minimum. A loss without a minimum, such as
    the cross-entropy of separable data without weight decay, ends by its small gradient only. A network of ReLUs on few
    samples has minima on kinks, at which the gradient does not vanish, and its descents do not converge.

    :math:`\epsilon` is the standard deviation of the weights at the step, of each replica separately, divided by
    ``overlap_factor`` (as in Winter and Janssen, whose overlap leaves out the output layer). The overlap is left out if
    all weights are equal. ``inherent_step`` and ``inherent_overlap`` are missing at the first step of a record, and at
    the first step after the training has gone back. If the energy of the weights is not finite, there is no descent.

    The values are one-time series of the record of the :class:`AgingMonitor` in the same Trainer, or of a separate
    record. In the loggers they are scalars ``glassy_series/<key>`` against the step. The entry ``InherentStructures``
    of the record's metadata has the numbers of batches and samples, the options, and the time of the measurements.

    Cost: at most ``max_gradients`` gradients over all batches at each measured step. The batches are on the device
    during a measurement, which also needs memory for about ten copies of the weights. Between the measurements, the
    last structure stays in host memory, and checkpoints contain it. ``max_batches`` and a larger ``batch_size`` reduce
    the cost, but a part of the data has other minima than all data.

    Training is the same, bit for bit, with the callback and without it. A resumed training has the same values as an
    uninterrupted one. Random numbers in the module (dropout in mode ``"train"``) are the same at each gradient of all
    descents. A loss that depends on more than weights and batch, such as a counter or a generator of the module, has
    other minima at each step: give a ``loss`` that does not. Under mixed precision the energy is computed without
    autocast, whose rounding would end the descents early. Under DDP rank 0 measures, and the others wait. A loss that
    communicates with other processes cannot be used.

    Args:
        schedule: :class:`Steps`, a list of steps, or a number of steps per decade. The last step of the run is
            measured, too (see :class:`Measurement`).
        loader: a ``DataLoader``, or a function that returns one when training starts. Its sampler decides which samples
            are used. Default: the loader of the training.
        mode: ``"eval"``, or ``"train"`` for the loss with dropout and with the statistics of each batch. A smaller last
            batch is then left out.
        max_batches: most batches to use. They are random, and the same at all steps. Default: all.
        tolerance: largest rms gradient of a descent that has converged, in units of the loss per weight.
        max_gradients: most gradients of a descent. The default suffices for tanh networks of 195 weights with any
            weight decay (500 to 3,000 gradients were used).
        weight_decay: :math:`\kappa`. Give the ``weight_decay`` of SGD or Adam to include their L2 term. The decay of
            AdamW is not the gradient of an energy that Adam minimises. Default: the loss alone.
        overlap_factor: the standard deviation of the weights divided by :math:`\epsilon`.
        **options: ``batch_size`` and ``loss``: see :class:`~lightning_glassy.callbacks.network.NetworkOptions`.
            ``name``, ``dirpath``, ``save``, ``summary`` and ``max_share``: see
            :class:`~lightning_glassy.callbacks.recorder.MeasurementOptions`.

    With a :class:`ReplicaEnsemble`, ``loss`` is required. Each replica has its own step size and its own convergence.

    Raises:
        TypeError: at construction, an argument has the wrong type.
        ValueError: at construction, an argument is out of its range.
        MisconfigurationException: at the start of training, there is no usable loss or data, the weights have 16 bits,
            or normalisations wait for other processes. The message names the remedy.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[InherentStructures(2, max_batches=4, max_share=None)], logger=False)
    """

    takes_replicas = True

    _data: Batches | None
    _parameters: list[Selected]

    def __init__(
        self,
        schedule: StepsLike = 2,
        *,
        loader: Loader | None = None,
        mode: Literal["train", "eval"] = "eval",
        max_batches: int | None = None,
        tolerance: float = 1e-5,
        max_gradients: int = 3000,
        weight_decay: float = 0.0,
        overlap_factor: float = 100.0,
        **options: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(schedule, mode=mode, max_batches=max_batches, **options)
        for name, number in (("tolerance", tolerance), ("overlap_factor", overlap_factor)):
            if not _is_number(number) or not 0 < number < float("inf"):
                raise ValueError(f"{name}={number!r} must be a positive number")
        if not _is_number(weight_decay) or not 0 <= weight_decay < float("inf"):
            raise ValueError(f"weight_decay={weight_decay!r} must be a number of at least 0")
        if not isinstance(max_gradients, int) or isinstance(max_gradients, bool) or max_gradients < 1:
            raise ValueError(f"max_gradients={max_gradients!r} must be an integer of at least 1")
        self._loader = loader
        self._tolerance = float(tolerance)
        self._max_gradients = max_gradients
        self._weight_decay = float(weight_decay)
        self._overlap_factor = float(overlap_factor)
        self._previous: Structure | None = None
        self.release()

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings and the record for pickle and copy, without the training that is under way."""
        return super().__getstate__() | {"_data": None, "_parameters": [], "_previous": None}

    # ------------------------------------------------------------------ measuring

    def prepare(self, trainer: Trainer, module: LightningModule) -> None:
        """Find the parameters and the data, and refuse unusable ones."""
        self._parameters = self.parameters_of(module)
        self.check_derivatives(self._parameters)
        if self._mode == "train" and trainer.world_size > 1 and has_sync_batch_norm(module):
            raise MisconfigurationException(
                "InherentStructures: rank 0 measures alone, and in mode='train' a SyncBatchNorm would wait for the "
                "other processes: use mode='eval'"
            )
        for parameter in self._parameters:
            if torch.finfo(parameter.dtype).bits < 32:
                raise MisconfigurationException(
                    f"InherentStructures: {parameter.name!r} has the dtype {parameter.dtype}, whose rounding is larger "
                    "than a step of a descent: keep the weights in float32, for example with precision='bf16-mixed'"
                )
        # Do not share the batches over the processes, because rank 0 measures alone. BatchNorm in mode "train" cannot
        # normalise a batch of a single sample.
        find: dict[str, Any] = {"whole": self._mode == "train", "shared": False}
        data = self.batches(trainer, self._loader, "the training data", shuffled=False, **find)
        if data.used < data.available:
            # The first samples of data that are sorted by class differ from the rest.
            data = self.batches(trainer, self._loader, "the training data", shuffled=True, **find)
        self._data = data

    def release(self) -> None:
        """Free the parameters and the data. The last structure stays for a fit that continues this one."""
        self._data = None
        self._parameters = []

    def describe(self) -> dict[str, Any]:
        """Return the numbers of batches and samples, and the options of the descent."""
        if self._data is None:
            return {}
        return {
            **self._data.counts,
            "tolerance": self._tolerance,
            "max_gradients": self._max_gradients,
            "weight_decay": self._weight_decay,
            "overlap_factor": self._overlap_factor,
        }

    @torch.no_grad()
    def measure(self, trainer: Trainer, module: LightningModule) -> dict[str, Tensor] | None:
        """Return the values of each replica by the names of their series on rank 0, and ``None`` on other ranks."""
        if trainer.global_rank != 0:
            return None
        with without_autocast(trainer):
            energy = self._energy(trainer, module)
            start = self._read_weights()
            end = descend(energy, start, tolerance=self._tolerance, max_gradients=self._max_gradients)
        return self._compare(trainer, start, end)

    def combine(self, trainer: Trainer, measured: dict[str, Tensor] | None) -> dict[str, float]:
        """Return the means over the replicas, and their errors."""
        values: dict[str, float] = {}
        for key, of_replicas in (measured or {}).items():
            mean = of_replicas.mean()
            # Leave out undefined values, but show an energy that is not finite.
            if key != "inherent_energy" and not torch.isfinite(mean):
                continue
            values[key] = float(mean)
            if len(of_replicas) > 1 and key != "inherent_converged":
                values[f"{key}_error"] = float(of_replicas.std() / len(of_replicas) ** 0.5)
        return values

    # ------------------------------------------------------------------ hooks

    def measure_now(self, trainer: Trainer, pl_module: LightningModule, *, first: bool = False) -> None:
        """Make the measurement if it is due. Drop a structure that does not belong to the record before this step."""
        # A new record has no measurement yet. A record that was cut has none at the abandoned steps.
        if self._previous is not None and self._previous.step > self.progress.last_step:
            self._previous = None
        super().measure_now(trainer, pl_module, first=first)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the state of the record, and the last structure."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._previous is not None and self._is_ours(trainer):
            checkpoint.setdefault(_KEY, {})[self.recorder.name] = self._previous._asdict()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the state of the record, and the last structure."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if trainer.training:
            states = checkpoint.get(_KEY)
            recorder = self._join(trainer)
            state = states.get(recorder.name) if isinstance(states, Mapping) else None
            self._previous = None
            try:
                if state is not None:
                    names = [str(name) for name in state["names"]]
                    self._previous = Structure(int(state["step"]), names, state["weights"].to("cpu"))
            except Exception as error:
                recorder.tell(f"InherentStructures: the last structure of the checkpoint is lost: {error!r}")

    # ------------------------------------------------------------------ inside

    def _energy(self, trainer: Trainer, module: LightningModule) -> Evaluate:
        """Return a function of the weights ``[R, N]`` that returns their energies and gradients."""
        assert self._data is not None
        # Restore the counters, the averages and the weights of the training after each evaluation.
        kept = Kept([*module.modules()])
        # The transforms of the data set draw the same random numbers at all steps.
        with repeatable(kept, seed=0):
            batches = list(self._data.of(trainer, module))
        total = sum(size for _, size in batches)
        # A parameter that has been frozen since the start has no gradient, and stays as it is.
        every: list[Any] = [parameter.tensor for parameter in self._parameters]
        live = [i for i, tensor in enumerate(every) if tensor.requires_grad]
        tensors = [every[i] for i in live]

        def energy(weights: Tensor) -> tuple[Tensor, Tensor]:
            energies = _sum_of(weights.square()) * (self._weight_decay / 2)
            gradients = weights * self._weight_decay
            parts = list(self._parts(gradients))
            # Each evaluation has the same random numbers, so the energy is a function of the weights.
            with repeatable(kept, seed=0):
                self._write_weights(weights)
                for i, (batch, size) in enumerate(batches):
                    with torch.enable_grad():
                        # The loss may write into its batch.
                        loss = self.loss_of(trainer, module, copy.deepcopy(batch), i) * (size / total)
                        if not loss.requires_grad:
                            raise MisconfigurationException(
                                "InherentStructures: the loss gave a tensor without a gradient: give "
                                "InherentStructures(loss=...) a differentiable function of a module and a batch"
                            )
                        # Do not call `backward`, because it calls the hooks on gradients and DDP.
                        found = torch.autograd.grad(loss.sum(), tensors, allow_unused=True)
                    energies += loss.detach()
                    for k, gradient in zip(live, found, strict=True):
                        if gradient is not None:
                            parts[k] += _rows(gradient.to_dense(), len(weights))
            return energies, gradients

        return energy

    def _read_weights(self) -> Tensor:
        """Return the weights of the training in one tensor ``[R, N]``, in float32 or better."""
        rows = [_rows(parameter.tensor.data, self._n_replica or 1) for parameter in self._parameters]  # type: ignore[union-attr]
        return torch.cat(rows, dim=1)

    def _write_weights(self, weights: Tensor) -> None:
        """Set the parameters to ``[R, N]``, without a change of their versions, which other callbacks compare."""
        for parameter, part in zip(self._parameters, self._parts(weights), strict=True):
            alias: Tensor = parameter.tensor.data  # type: ignore[union-attr]
            real = torch.view_as_real(alias) if alias.is_complex() else alias
            real.copy_(part.reshape(real.shape))

    def _parts(self, weights: Tensor) -> tuple[Tensor, ...]:
        """Return the views ``[R, n]`` of each parameter in ``[R, N]``."""
        parts: tuple[Tensor, ...] = weights.split([parameter.numel for parameter in self._parameters], dim=1)
        return parts

    def _compare(self, trainer: Trainer, start: Tensor, end: Minimum) -> dict[str, Tensor]:
        """Return the values of a descent, and compare its end with the last structure, which it replaces."""
        values = {
            "inherent_energy": end.energy,
            "inherent_gradient": end.gradient,
            "inherent_gradients": end.n_gradients,
            "inherent_converged": end.converged,
        }
        names = [parameter.name for parameter in self._parameters]
        previous, self._previous = self._previous, None
        if torch.isfinite(end.energy).all():
            values["inherent_distance"] = _sum_of((start - end.weights).square()) / start.shape[1]
            self._previous = Structure(trainer.global_step, names, end.weights.cpu())
            if previous is not None and (previous.names, previous.weights.shape) == (names, start.shape):
                difference = end.weights - previous.weights.to(start)
                values["inherent_step"] = _sum_of(difference.square()) / start.shape[1]
                mean = _sum_of(start)[:, None] / start.shape[1]
                deviation = (_sum_of((start - mean).square()) / start.shape[1]).sqrt()
                near = difference.abs() <= (deviation / self._overlap_factor)[:, None]
                overlap = _sum_of(near) / start.shape[1]
                values["inherent_overlap"] = torch.where(deviation > 0, overlap, torch.nan)
        return {key: value.cpu().to(torch.float64) for key, value in values.items()}


Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Function of weights ``[R, N]`` that returns the energies ``[R]`` and the gradients ``[R, N]`` of the replicas."""


def descend(energy: Evaluate, start: Tensor, *, tolerance: float, max_gradients: int) -> Minimum:
    r"""Follow the path of steepest descent from the weights of each replica to a minimum.

    The path :math:`dw/ds = -\nabla e` is integrated by explicit steps of s = 5 stages and length h. In a direction of
    curvature :math:`\lambda`, a step multiplies the distance from the minimum by :math:`T_s(\omega_0 - \omega_1
    h\lambda)/T_s(\omega_0)`, with the Chebyshev polynomial :math:`T_s`, :math:`\omega_0 = 1 + 0.05/s^2` and
    :math:`\omega_1 = T_s(\omega_0)/T_s'(\omega_0)`. The step is of first order, and stable up to :math:`h\lambda\approx
    1.93 s^2`. Gradient descent (s = 1) is stable up to 2.

    A step is accepted if the energy does not rise beyond its rounding, and if the gradient changes by at most half of
    its norm, which bounds the deviation from the path. A step shorter than a thousandth of the norm of the weights may
    change the gradient more, because the gradient jumps at the kinks of a ReLU. Each replica has its own step size, and
    stops by itself.

    Source: van der Houwen and Sommeijer, Z. Angew. Math. Mech. 60, 479 (1980).

    Args:
        energy: function of the weights that returns energies and gradients.
        start: the weights at the start, ``[R, N]``. They are not changed.
        tolerance: rms gradient at which a descent has converged.
        max_gradients: most gradients of a descent, at least 1.

    Returns:
        The ends of the descents. A descent has not converged if its energy is not finite.

    Example:
        >>> start = torch.tensor([[3.0, -0.2]], dtype=torch.float64, device="cpu")
        >>> wells = lambda w: ((w.square() - 1).square().sum(1), 4 * w * (w.square() - 1))
        >>> descend(wells, start, tolerance=1e-9, max_gradients=1000).weights.round(decimals=6)
        tensor([[ 1., -1.]], dtype=torch.float64)
    """
    weights, (at, gradient) = start.clone(), energy(start)
    eps, root = torch.finfo(start.dtype).eps, start.shape[1] ** 0.5
    norm, size = _norm(gradient), _norm(weights)
    step = _SHORT * torch.where(size > 0, size, root) / norm
    longest = torch.zeros_like(step)
    n_gradients = torch.ones_like(step)
    converged = norm / root <= tolerance
    active = torch.isfinite(at) & torch.isfinite(norm) & ~converged
    for _ in range((max_gradients - 1) // _STAGES):
        if not active.any():
            break
        trial = torch.where(active[:, None], _chebyshev_step(energy, weights, gradient, step), weights)
        at_trial, there = energy(trial)
        n_gradients += _STAGES * active
        # A comparison with NaN is false, so a trial that is not finite is rejected.
        near_path = (_norm(there - gradient) <= _TURN * norm) | (_norm(trial - weights) <= _SHORT * size)
        accepted = active & (at_trial - at <= _ROUNDING * eps * at.abs()) & near_path
        weights = torch.where(accepted[:, None], trial, weights)
        gradient = torch.where(accepted[:, None], there, gradient)
        at = torch.where(accepted, at_trial, at)
        longest = torch.where(accepted, torch.maximum(longest, step), longest)
        step = step * torch.where(accepted, _GROWTH, _SHRINKAGE)
        norm, size = _norm(gradient), _norm(weights)
        # After rejected steps, the next step is lost in the rounding of the weights.
        stuck = active & ~accepted & (step * norm <= eps * size)
        at_rest = norm / root <= tolerance
        unresolved = (longest > 0) & (longest * norm.square() <= eps * at.abs())
        converged = converged | (active & at_rest) | (stuck & unresolved)
        active = active & ~at_rest & ~stuck
    return Minimum(weights, at, norm / root, n_gradients, converged)


def _chebyshev_step(energy: Evaluate, weights: Tensor, gradient: Tensor, step: Tensor) -> Tensor:
    """Return the weights ``[R, N]`` after a step of length ``[R]``. The gradient is the gradient at its start."""
    length = step[:, None].to(weights)
    w0 = 1 + _DAMPING / _STAGES**2
    t, slope = [1.0, w0], [0.0, 1.0]  # the polynomials and their derivatives at w0
    for _ in range(2, _STAGES + 1):
        slope.append(2 * t[-1] + 2 * w0 * slope[-1] - slope[-2])
        t.append(2 * w0 * t[-1] - t[-2])
    w1 = t[_STAGES] / slope[_STAGES]
    before, now = weights, weights - w1 / w0 * length * gradient
    for j in range(2, _STAGES + 1):
        after = (2 * w0 * t[j - 1] * now - t[j - 2] * before - 2 * w1 * t[j - 1] * length * energy(now)[1]) / t[j]
        before, now = now, after
    return now


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _rows(tensor: Tensor, n_replica: int) -> Tensor:
    """Return the real coordinates of a parameter or gradient as ``[n_replica, n]``, in float32 or better."""
    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return real.reshape(n_replica, -1).to(torch.promote_types(real.dtype, torch.float32))


def _norm(tensor: Tensor) -> Tensor:
    """Return the norm of the weights of each replica."""
    return _sum_of(tensor.square()).sqrt()


def _sum_of(tensor: Tensor) -> Tensor:
    """Return the sums over the weights of each replica, in float64 if the device has it."""
    return tensor.sum(1, dtype=torch.float32 if tensor.device.type == "mps" else torch.float64)

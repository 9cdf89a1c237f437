"""Measure the loss on whole data sets at log-spaced steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import Metric, MetricCollection
from typing_extensions import Unpack

from lightning_glassy.callbacks.batches import Batches
from lightning_glassy.callbacks.measurement import add_up
from lightning_glassy.callbacks.network import Loader, NetworkMeasurement, NetworkOptions
from lightning_glassy.callbacks.run import overrides
from lightning_glassy.schedule import StepsLike

Predict = Callable[[LightningModule, Any], tuple[Any, Any]]
"""The predictions of a module for a batch, and the truth. Metrics are updated with them."""


class LogTimeEvaluator(NetworkMeasurement):
    r"""Measures the loss and metrics on the whole training set and on other sets, at log-spaced steps.

    The loss on a set is :math:`L = \sum_b B_b \ell_b / \sum_b B_b` over its batches b of :math:`B_b` samples. This is
    the mean over the samples if the loss :math:`\ell_b` of a batch is the mean over its samples. With several loaders
    at once, and with data that come in batches, each batch has the same weight. The loss at a step is computed with the
    weights after this step. Step 0 is before the first update. Baity-Jesi et al. 2018 (arXiv 1803.06969) see three
    regimes of the training loss in logarithmic time. Training is the same, bit for bit, with the callback and without
    it.

    ========================  ==================================================================================
    key                       logged value
    ========================  ==================================================================================
    ``train_loss``            loss on the training set
    ``train_accuracy``        fraction of its samples that are classified correctly (see ``metrics``)
    ``val_loss``, ...         the same on the validation set of the fit. If several: ``val_0_loss``, ``val_1_loss``
    ``<set>_loss``            the same on a set of ``loaders``, such as ``test``
    ``<set>_<metric>``        a metric of ``metrics`` on a set, in place of the accuracy
    ``<key>_error``           with replicas, ``<key>`` is a mean over them: its standard error
    ========================  ==================================================================================

    The values are one-time series of the record of the :class:`AgingMonitor` in the same Trainer, or of a separate
    record. In the loggers they are scalars ``glassy_series/<key>`` against the step. The entry ``LogTimeEvaluator`` of
    the record's metadata has the numbers of used batches and samples of each set, and the time of the measurements.

    The training set consists of the samples that the training sees: the data set of the ``DataLoader``, the indices of
    its sampler, or one epoch of draws of a sampler with weights. These draws are the same at all steps. If the training
    reads in the same order in each epoch, ``limit_train_batches`` and ``overfit_batches`` limit the set, too. The
    samplers of the other sets are used in the same way. ``limit_val_batches`` is not used. If ``max_batches`` leaves
    some samples out, the other samples are in a random order, which is the same at all steps. Under DDP each process
    evaluates its part of the batches, and all processes get the result.

    Args:
        schedule: :class:`Steps`, a list of steps, or a number of steps per decade. The last step of the run is
            measured, too (see :class:`Measurement`).
        loaders: more sets by name, each a ``DataLoader``, or a function that returns one when training starts
            (``{"test": datamodule.test_dataloader}``). ``"train"`` replaces the training set.
        metrics: a torchmetrics ``Metric``, a ``MetricCollection`` or a mapping of names to metrics. ``"auto"``: the
            accuracy, if a batch is a pair (x, y) of inputs and integer classes ``[B]``, and ``module(x)`` returns
            scores ``[B, C]``. ``None``: the loss alone.
        predict: function of the module and a batch that returns the arguments of the metrics. Default: ``module(x), y``
            of a pair (x, y).
        mode: ``"eval"``, or ``"train"`` for the loss with dropout and with the statistics of each batch.
        max_batches: most batches of each set. Default: all.
        **options: ``batch_size`` and ``loss``: see :class:`~lightning_glassy.callbacks.network.NetworkOptions`.
            ``name``, ``dirpath``, ``save``, ``summary`` and ``max_share``: see
            :class:`~lightning_glassy.callbacks.recorder.MeasurementOptions`.

    With a :class:`ReplicaEnsemble`, ``loss`` is required, ``module(x)`` must return ``[n_replica, B, C]``, and the
    accuracy is the only metric.

    Raises:
        TypeError: at construction, an argument has the wrong type.
        ValueError: at construction, an argument is out of its range.
        MisconfigurationException: at the start of training, there is no usable loss or data. The message names the
            remedy.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[LogTimeEvaluator(max_batches=100)], logger=False)
    """

    takes_replicas = True

    def __init__(
        self,
        schedule: StepsLike = 6,
        *,
        loaders: Mapping[str, Loader] | None = None,
        metrics: Metric | MetricCollection | Mapping[str, Metric] | Literal["auto"] | None = "auto",
        predict: Predict | None = None,
        mode: Literal["train", "eval"] = "eval",
        max_batches: int | None = None,
        **options: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(schedule, mode=mode, max_batches=max_batches, **options)
        if loaders is not None and (not isinstance(loaders, Mapping) or not all(isinstance(k, str) for k in loaders)):
            raise TypeError(f"loaders={loaders!r} is not a mapping of names to loaders")
        if isinstance(metrics, Mapping) and not isinstance(metrics, MetricCollection):
            metrics = MetricCollection(dict(metrics))
        elif isinstance(metrics, Metric):
            metrics = MetricCollection(metrics)
        if not isinstance(metrics, MetricCollection) and metrics not in ("auto", None):
            raise TypeError(f"metrics={metrics!r} is not a Metric, a MetricCollection, a mapping, 'auto' or None")
        if predict is not None and not callable(predict):
            raise TypeError(f"predict={predict!r} is not a function of a module and a batch")
        self._loaders = dict(loaders or {})
        self._metrics = metrics
        self._predict = predict
        self.release()

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings and the record for pickle and copy, without the training that is under way."""
        return super().__getstate__() | {"_sets": {}}

    def prepare(self, trainer: Trainer, module: LightningModule) -> None:
        """Find the sets."""
        if self._n_replica is not None and isinstance(self._metrics, MetricCollection):
            raise MisconfigurationException(
                f"LogTimeEvaluator: metrics={list(self._metrics)} cannot take replicas: the accuracy (metrics='auto') "
                "and the loss can"
            )
        loaders: dict[str, tuple[Any, int]] = {"train": (None, 0)}
        validation = trainer.val_dataloaders
        if isinstance(validation, (list, tuple)) and len(validation) > 1:
            loaders |= {f"val_{i}": (loader, i) for i, loader in enumerate(validation)}
        elif isinstance(validation, Mapping):
            loaders |= {f"val_{key}": (loader, i) for i, (key, loader) in enumerate(validation.items())}
        elif isinstance(validation, DataLoader) or validation:
            loaders["val"] = (validation if isinstance(validation, DataLoader) else validation[0], 0)
        loaders |= {name: (loader, 0) for name, loader in self._loaders.items()}
        for name, (loader, index) in loaders.items():
            found = self.batches(trainer, loader, repr(name), shuffled=False, index=index)
            if found.used < found.available:
                found = self.batches(trainer, loader, repr(name), shuffled=True, index=index)
            self._sets[name] = found

    def release(self) -> None:
        """Free the sets."""
        self._sets: dict[str, Batches] = {}

    def describe(self) -> dict[str, Any]:
        """Return the used and the available batches of each set."""
        return {"sets": {name: found.counts for name, found in self._sets.items()}}

    def measure(self, trainer: Trainer, module: LightningModule) -> dict[str, tuple[Tensor, MetricCollection | None]]:
        """Return the sums of the losses and correct answers of this process's part of each set, and its metrics."""
        with torch.no_grad():
            return {name: self._evaluate(trainer, module, found) for name, found in self._sets.items()}

    def combine(
        self, trainer: Trainer, measured: dict[str, tuple[Tensor, MetricCollection | None]]
    ) -> dict[str, float]:
        """Return the means over each set."""
        values: dict[str, float] = {}
        for name, (sums, metrics) in measured.items():
            loss, n, right, n_judged = add_up(trainer, sums).cpu()
            means = {f"{name}_loss": loss / n}
            if n_judged.any():
                means[f"{name}_accuracy"] = right / n_judged
            for key, of_replicas in means.items():
                values[key] = float(of_replicas.mean())
                if len(of_replicas) > 1:
                    values[f"{key}_error"] = float(of_replicas.std() / len(of_replicas) ** 0.5)
            for key, value in ({} if metrics is None else metrics.compute()).items():
                if torch.numel(torch.as_tensor(value, device="cpu")) != 1:
                    raise ValueError(f"metrics: {key!r} is not a single number: {value!r}")
                values[f"{name}_{key}"] = float(value)
        return values

    def _evaluate(
        self, trainer: Trainer, module: LightningModule, data: Batches
    ) -> tuple[Tensor, MetricCollection | None]:
        device = trainer.strategy.root_device
        # Rows: loss, its weight, correct answers, answers. Columns: replicas. The device is read once, at the end.
        sums = torch.zeros(
            4, self._n_replica or 1, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device
        )
        metrics = None
        if isinstance(self._metrics, MetricCollection):
            metrics = self._metrics.clone().to(device)
            metrics.reset()
        for i, (batch, size) in enumerate(data.of(trainer, module)):
            sums[0] += size * self.loss_of(trainer, module, batch, i).detach()
            sums[1] += size
            with trainer.precision_plugin.forward_context():
                if metrics is not None:
                    metrics.update(*self._predictions(module, batch))
                elif self._metrics == "auto" and (judged := self._judge(module, batch)) is not None:
                    sums[2] += judged.sum(-1)
                    sums[3] += judged.shape[-1]
        return sums, metrics

    def _predictions(self, module: LightningModule, batch: Any) -> tuple[Any, Any]:
        if self._predict is not None:
            return self._predict(module, batch)
        if not isinstance(batch, (list, tuple)) or len(batch) != 2:
            raise ValueError(
                f"a batch is a {type(batch).__name__}, not a pair (x, y): give LogTimeEvaluator(predict=...) a "
                "function of the module and a batch that returns predictions and truth"
            )
        return module(batch[0]), batch[1]

    def _judge(self, module: LightningModule, batch: Any) -> Tensor | None:
        """Return whether each sample is classified correctly, ``[B]`` or ``[n_replica, B]``, or ``None``."""
        if self._predict is None:
            pair = isinstance(batch, (list, tuple)) and len(batch) == 2
            if not pair or not _is_classes(batch[1]) or not overrides(module, "forward"):
                return None
        scores, truth = self._predictions(module, batch)
        if not _is_classes(truth) or not isinstance(scores, Tensor):
            return None
        expected = (len(truth),) if self._n_replica is None else (self._n_replica, len(truth))
        return torch.eq(scores.argmax(dim=-1), truth) if scores.dim() > 1 and scores.shape[:-1] == expected else None


def _is_classes(truth: Any) -> bool:
    return (
        isinstance(truth, Tensor) and truth.dim() == 1 and not truth.is_floating_point() and truth.dtype != torch.bool
    )

"""Base classes of the measurements that run the network on batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from torch.utils.data import DataLoader
from typing_extensions import Unpack

from lightning_glassy.callbacks.batches import Batches
from lightning_glassy.callbacks.measurement import Measurement
from lightning_glassy.callbacks.recorder import MeasurementOptions
from lightning_glassy.callbacks.recording import Recording
from lightning_glassy.callbacks.run import is_a, overrides
from lightning_glassy.callbacks.undisturbed import undisturbed
from lightning_glassy.measure.select import Selected, as_replicas, select_parameters
from lightning_glassy.replicas.ensemble import ReplicaEnsemble

Loss = Callable[[LightningModule, Any], Tensor]
"""The loss of a module on a batch: a tensor of one number, or ``[n_replica]`` for a ReplicaEnsemble."""

Loader = DataLoader[Any] | Callable[[], Any]
"""A ``DataLoader``, or a function that returns one when training starts."""


class NetworkOptions(MeasurementOptions, total=False):
    """Options of every measurement that runs the network on batches.

    Attributes:
        batch_size: number of samples in a batch. Default: as in the training.
        loss: function of the module and a batch that returns the loss. Default: the result of ``training_step``. A
            :class:`ReplicaEnsemble` needs a function that returns the loss of each replica, ``[n_replica]``, on a batch
            that is the same for all replicas.
    """

    batch_size: int | None
    loss: Loss | None


class RunsNetwork(Recording):
    """Base class of callbacks that run the network on batches, and do not change the training.

    The training is the same bit for bit. :func:`~lightning_glassy.callbacks.undisturbed.undisturbed` lists the restored
    state.

    Args:
        schedule: the steps or pairs of times of the callback.
        mode: ``"train"`` keeps the mode of each submodule as in the training. ``"eval"`` is the mode of evaluation.
        max_batches: most batches to use, or ``None`` for all.
        **options: see :class:`NetworkOptions`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range.
    """

    takes_replicas = False
    """Whether the callback can measure a :class:`ReplicaEnsemble` with a ``loss``."""

    def __init__(
        self,
        schedule: Any,
        *,
        mode: Literal["train", "eval"],
        max_batches: int | None,
        **options: Unpack[NetworkOptions],
    ) -> None:
        self._loss, self._batch_size = options.pop("loss", None), options.pop("batch_size", None)
        if mode not in ("train", "eval"):
            raise ValueError(f"mode={mode!r} is neither 'train' nor 'eval'")
        for name, number in (("max_batches", max_batches), ("batch_size", self._batch_size)):
            if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
                raise ValueError(f"{name}={number!r} must be a positive integer, or None")
        if self._loss is not None and not callable(self._loss):
            raise TypeError(f"loss={self._loss!r} is not a function of a module and a batch")
        self._mode = mode
        self._max_batches = max_batches
        self._n_replica: int | None = None
        # The parameters and buffers of the training during a measurement, by name.
        self._buffers: dict[str, Tensor] = {}
        self._read: list[Batches] = []
        super().__init__(schedule, **options)  # type: ignore[misc]  # the options of a recorder are left

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings and the record for pickle and copy, without the training that is under way."""
        return super().__getstate__() | {"_buffers": {}, "_read": []}

    # ------------------------------------------------------------------ for subclasses

    @contextmanager
    def undisturbed(self, trainer: Trainer, module: LightningModule, seed: int) -> Iterator[None]:
        """Restore the training after the block, which runs in the mode of the measurement."""
        data = [part for batches in self._read for part in batches.parts]
        try:
            with undisturbed(trainer, module, seed, mode=self._mode, data=data) as kept:
                named = [*module.named_parameters(), *module.named_buffers()]
                self._buffers = {name: kept.tensors[id(t)] for name, t in named if id(t) in kept.tensors}
                yield
        finally:
            self._buffers = {}

    def batches(
        self,
        trainer: Trainer,
        loader: Any,
        name: str,
        *,
        shuffled: bool | None = None,
        whole: bool = False,
        shared: bool = True,
        index: int = 0,
    ) -> Batches:
        """Return the batches of a loader, or of the training.

        Args:
            trainer: the Trainer.
            loader: a ``DataLoader``, a function that returns one, or ``None`` for the loader of the training.
            name: name of the loader for messages.
            shuffled: whether the samples are in random order, see :class:`Batches`.
            whole: whether to leave out a smaller last batch.
            shared: whether the processes share the batches. In mode ``"train"`` they get equal numbers of batches,
                because a synchronised normalisation waits for all of them.
            index: index of the loader for the hooks of the module and the data module.
        """
        if loader is not None and not isinstance(loader, DataLoader) and callable(loader):
            loader = loader()
        combined = trainer.fit_loop._combined_loader
        # Each process of the training has its own loaders.
        spread = loader is None or any(loader is each for each in tree_flatten(trainer.val_dataloaders)[0])
        limited = loader is None and combined is not None and not trainer.fast_dev_run  # type: ignore[attr-defined]
        found = Batches(
            trainer.train_dataloader if loader is None else loader,
            f"{type(self).__name__}: the loader of {name}",
            mode=combined._mode if combined is not None else "max_size_cycle",
            batch_size=self._batch_size,
            max_batches=self._max_batches,
            shuffled=shuffled,
            whole=whole,
            rank=trainer.global_rank if shared else 0,
            world_size=trainer.world_size if shared else 1,
            equal=shared and self._mode == "train",
            limits=combined.limits if limited and combined is not None else None,
            processes=trainer.world_size if spread else 1,
            index=index,
        )
        self._read.append(found)
        return found

    def parameters_of(self, module: LightningModule, **selection: Any) -> list[Selected]:
        """Return the trainable parameters, or a selection of them. Replicas have their axis."""
        selected = select_parameters(module, **selection)
        return selected if self._n_replica is None else as_replicas(selected, self._n_replica)

    def check_derivatives(self, parameters: list[Selected]) -> None:
        """Refuse two Parameter objects that share memory. The derivative by each is only a part of the derivative.

        Raises:
            MisconfigurationException: with the names of the parameters.
        """
        for parameter in parameters:
            if parameter.aliases:
                raise MisconfigurationException(
                    f"{type(self).__name__}: {parameter.name!r} and {parameter.aliases[0]!r} are two Parameter "
                    "objects that share memory, and autograd gives each only a part of the derivative: use one "
                    "nn.Parameter for both"
                )

    def sizes(self, module: LightningModule) -> dict[str, int]:
        """Return the number of parameters of a replica, or of the network."""
        try:
            return {"all": sum(parameter.numel for parameter in self.parameters_of(module))}
        except ValueError:  # a loss can be measured with parameters that an AgingMonitor cannot track
            return {"all": sum(p.numel() for p in module.parameters() if p.requires_grad)}

    def loss_of(self, trainer: Trainer, module: LightningModule, batch: Any, i: int) -> Tensor:
        """Return the loss on batch number i, in the precision of the training: one number, or ``[n_replica]``.

        Raises:
            MisconfigurationException: the result is not a loss.
        """
        with trainer.precision_plugin.forward_context():
            if self._loss is not None:
                found: Any = self._loss(module, batch)
            elif is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2):
                found = module.training_step(batch, i)
            else:
                found = module.training_step(batch)
        loss = found.get("loss") if isinstance(found, Mapping) else found
        if self._n_replica is not None and isinstance(loss, Tensor) and loss.shape == (self._n_replica,):
            return loss
        if not isinstance(loss, Tensor) or loss.numel() != 1 or self._n_replica is not None:
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)[:60]
            what += " under 'loss'" if isinstance(found, Mapping) else ""
            source = "training_step" if self._loss is None else "loss"
            expected = "a loss, a tensor of one number"
            if self._n_replica is not None:
                expected = f"the losses of the replicas, a tensor [{self._n_replica}]"
            who = type(self).__name__
            raise MisconfigurationException(
                f"{who}: {source} has returned {what} instead of {expected}: give {who}(loss=...) a function of a "
                "module and a batch that does"
            )
        return loss.reshape(())

    def facts(self) -> dict[str, Any] | None:
        """Return the facts of the measurement, and its mode."""
        return {**self.describe(), "mode": self._mode}

    # ------------------------------------------------------------------ hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module without a usable loss, before anything is moved."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._n_replica = self._find_replicas(trainer, pl_module)
        if self._loss is None:
            who, why = type(self).__name__, None
            if not pl_module.automatic_optimization:
                why = "optimises manually, and its training_step need not return a loss"
            elif not overrides(pl_module, "training_step"):
                why = "has no training_step"
            elif is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
                why = "takes an iterator over the training data itself"
            if why is not None:
                raise MisconfigurationException(
                    f"{who}: {type(pl_module).__name__} {why}: give {who}(loss=...) a function of a module and a batch "
                    "that returns the loss"
                )

    def _find_replicas(self, trainer: Trainer, module: LightningModule) -> int | None:
        """Return the number of replicas of the module, or ``None`` without replicas."""
        who = type(self).__name__
        sizes = {part.n_replica for part in module.modules() if isinstance(part, ReplicaEnsemble)}
        if not sizes:
            return None
        if not self.takes_replicas:
            raise MisconfigurationException(
                f"{who} cannot measure a ReplicaEnsemble, whose loss belongs to all replicas together: train and "
                "measure a single network"
            )
        if len(sizes) > 1 or trainer.world_size > 1:
            what = f"ensembles of {sorted(sizes)} replicas" if len(sizes) > 1 else "replicas in several processes"
            raise MisconfigurationException(f"{who} cannot measure {what}: leave it out, or measure one ensemble alone")
        if self._loss is None:
            raise MisconfigurationException(
                f"{who}: the loss of a ReplicaEnsemble belongs to all replicas together: give {who}(loss=...) a "
                "function of the module and a batch, the same one for all replicas, that returns the loss of each, "
                "[n_replica]"
            )
        return sizes.pop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free the data."""
        super().teardown(trainer, pl_module, stage)
        self._read = []

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the state of the record. A checkpoint saved during a measurement gets the weights of the training."""
        weights = checkpoint.get("state_dict", {})
        weights.update({name: kept for name, kept in self._buffers.items() if name in weights})
        super().on_save_checkpoint(trainer, pl_module, checkpoint)


class NetworkMeasurement(RunsNetwork, Measurement):
    """Base class of measurements along a run that run the network on batches.

    A subclass writes :meth:`measure`, with :meth:`batches` (in :meth:`prepare`) and :meth:`loss_of`. See
    :class:`Measurement` and :class:`RunsNetwork` for the arguments.
    """


def has_sync_batch_norm(module: nn.Module) -> bool:
    """Return whether a normalisation of the module waits for other processes."""
    return any(isinstance(part, nn.SyncBatchNorm) for part in module.modules())


@contextmanager
def without_autocast(trainer: Trainer) -> Iterator[None]:
    """Run the forward pass in the precision of the weights."""
    own = vars(trainer.precision_plugin)
    if is_a(trainer.precision_plugin, "MixedPrecision"):
        own["autocast_context_manager"] = nullcontext
    try:
        yield
    finally:
        own.pop("autocast_context_manager", None)

"""A mixin for LightningModules that train a ReplicaEnsemble."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_glassy.replicas.ensemble import ReplicaEnsemble, clip_norms, replica_owners


class ReplicaTraining:
    """Mixin for a LightningModule that trains a :class:`ReplicaEnsemble`. Name it before ``LightningModule``.

    ``Trainer(gradient_clip_val=...)`` then clips the gradient norm of each replica separately. Lightning alone would
    clip the norm over all parameters, which couples the replicas. Clipping by value acts on each coordinate
    separately, so Lightning does it.

    Under DDP, each process trains a part of the replicas, and the processes exchange the gradients. All processes hold
    all replicas, so records and checkpoints contain all replicas. For minibatches in a separate order per replica, use
    ``replica_loader(..., seeds=self.replicas_here)`` and ``Trainer(use_distributed_sampler=False)``. Otherwise
    Lightning changes the sampler, and each process trains its replicas on only a part of the data in each epoch.

    Raises:
        TypeError: a class definition names ``ReplicaTraining`` after ``LightningModule``. The mixin would have no
            effect there.

    Example:
        >>> from lightning.pytorch import LightningModule
        >>> class Net(ReplicaTraining, LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.ensemble = ReplicaEnsemble(lambda: nn.Linear(4, 2), 8)
        ...
        ...     def training_step(self, batch, batch_idx):
        ...         x, y = batch
        ...         losses = per_replica(nn.functional.cross_entropy)(self.ensemble(x), y)
        ...         self.log("train_loss", losses.mean())
        ...         return losses.sum()
        ...
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        clipping = [base for base in cls.__mro__ if "clip_gradients" in vars(base)]
        if len(clipping) > 1 and clipping[-1] is ReplicaTraining:
            raise TypeError(f"class {cls.__name__}: name ReplicaTraining before {clipping[-2].__name__}, not after it")

    @property
    def replicas_here(self) -> range:
        """Return the numbers of the replicas that this process trains: all replicas, except under DDP.

        Raises:
            ValueError: there are fewer replicas than processes, or the module has no ensemble, or its ensembles differ
                in their number of replicas.
        """
        sizes = {module.n_replica for module in self.modules() if isinstance(module, ReplicaEnsemble)}  # type: ignore[attr-defined]
        if len(sizes) != 1:
            raise ValueError(f"there is not one number of replicas in this module, but {sorted(sizes)}")
        n, (rank, size) = sizes.pop(), self._process()
        if size > n:
            raise ValueError(f"{size} processes cannot share {n} replicas out")
        return range(rank * n // size, (rank + 1) * n // size)

    def _process(self) -> tuple[int, int]:
        """Return the rank of this process and the number of processes under DDP, ``(0, 1)`` otherwise."""
        trainer = self._trainer  # type: ignore[attr-defined]
        under_ddp = trainer is not None and any(cls.__name__ == "DDPStrategy" for cls in type(trainer.strategy).__mro__)
        return (trainer.global_rank, trainer.world_size) if under_ddp else (0, 1)

    def on_fit_start(self) -> None:
        """Divide the replicas among the processes of DDP. Call ``super().on_fit_start()`` if you override this hook."""
        super().on_fit_start()  # type: ignore[misc]
        self._split(*self._process())

    def on_fit_end(self) -> None:
        """Run forward passes for all replicas again."""
        super().on_fit_end()  # type: ignore[misc]
        self._split(0, 1)

    def _split(self, rank: int, size: int) -> None:
        for module in self.modules():  # type: ignore[attr-defined]
            if isinstance(module, ReplicaEnsemble):
                module.split(rank, size)

    def backward(self, loss: Tensor, *arguments: Any, **options: Any) -> None:
        """Compute the gradients of the summed loss of all replicas.

        DDP takes the mean over the processes, so the loss is multiplied by the number of processes first.
        """
        split = any(m._part is not None for m in self.modules() if isinstance(m, ReplicaEnsemble))  # type: ignore[attr-defined]
        size = self._process()[1] if split else 1
        super().backward(loss * size if size > 1 else loss, *arguments, **options)  # type: ignore[misc]

    def clip_gradients(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by norm for each replica separately, or let Lightning clip by value.

        The arguments are the arguments of ``LightningModule.clip_gradients``. The Trainer calls this method. Call it
        yourself in manual optimisation.

        Raises:
            ValueError: the optimiser has parameters outside any ensemble, or in ensembles that differ in their number
                of replicas. The norm of such parameters belongs to no replica.
        """
        trainer = self.trainer  # type: ignore[attr-defined]
        if (gradient_clip_algorithm or trainer.gradient_clip_algorithm) == "value":
            super().clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)  # type: ignore[misc]
            return
        max_norm = trainer.gradient_clip_val if gradient_clip_val is None else gradient_clip_val
        if not max_norm:
            return
        owners = replica_owners(self)  # type: ignore[arg-type]
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        sizes = {owners.get(parameter) for parameter in parameters}
        if len(sizes) != 1 or None in sizes:
            raise ValueError(
                f"gradient_clip_val={max_norm!r} is for the norm of each replica, but the optimiser has parameters "
                "outside any ReplicaEnsemble, or of several sizes of them: give those an optimiser of their own, or "
                'set gradient_clip_algorithm="value"'
            )
        clip_norms(parameters, max_norm)

    def log_replicas(self, name: str, values: Tensor, **options: Any) -> None:
        """Log ``values [n_replica]``: the mean as ``name``, the value of replica r as ``name/r``.

        In training under DDP, ``values`` has the shape ``[len(self.replicas_here)]``. ``self.log(name, values.mean())``
        logs the mean alone and takes less time. ``options`` are further arguments of ``LightningModule.log``.
        """
        self.log(name, values.mean(), **options)  # type: ignore[attr-defined]
        for r, value in enumerate(values, start=self.replicas_here.start if self.training else 0):  # type: ignore[attr-defined]
            self.log(f"{name}/{r}", value, **options)  # type: ignore[attr-defined]

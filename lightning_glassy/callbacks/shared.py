"""What the callbacks have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from lightning_glassy.measure.optimizers import options_of
from lightning_glassy.measure.shards import ParametersChangedError, reshard
from lightning_glassy.measure.tracker import AgingTracker, Finding, TrackerEvent
from lightning_glassy.replicas.ensemble import replica_axes
from lightning_glassy.replicas.training import ReplicaTraining

SNAPSHOTS = "glassy_snapshots"
"""The directory of large snapshots, beside the checkpoints that refer to them."""

# All that measure on a single device or know how the weights lie in others; DeepSpeed's is a DDPStrategy.
_STRATEGIES = {"SingleDeviceStrategy", "DDPStrategy", "ModelParallelStrategy", "FSDPStrategy", "DeepSpeedStrategy"}


class Follower(ABC):
    """A callback that looks at the weights and the snapshots of the AgingMonitor of its name, at the events of that."""

    name: str

    @abstractmethod
    def follow(self, trainer: Trainer, module: LightningModule, event: TrackerEvent) -> Iterable[Finding]:
        """Look, and say what was found. Called in the process that measures; a failure costs a warning."""


def check_name(name: object) -> str:
    """A name that may be a directory's.

    Raises:
        ValueError: it may not.
    """
    proper = isinstance(name, str) and name and all(c.isalnum() or c in "_-." for c in name)
    if not isinstance(name, str) or not proper or name.startswith("."):
        raise ValueError(f"name={name!r} must consist of letters, digits, '_', '-' and '.': it names a directory")
    return name


def check_strategy(strategy: object, who: str) -> None:
    """Refuse a strategy of which it is not known where the weights are.

    Raises:
        MisconfigurationException: with its name, and those that can be used.
    """
    if not _STRATEGIES & {cls.__name__ for cls in type(strategy).__mro__}:
        raise MisconfigurationException(
            f"{who} cannot measure parameters under {type(strategy).__name__}, which may shard them over processes in "
            "its own way: use a single device, or 'ddp', 'fsdp', 'deepspeed' or ModelParallelStrategy (FSDP2, tensor "
            "parallelism)"
        )


def check_clipping(trainer: Any, pl_module: nn.Module) -> None:
    """Refuse to have the norm of all replicas' gradients clipped: it makes each depend on the others.

    Raises:
        MisconfigurationException: with what to use instead.
    """
    by_norm = trainer.gradient_clip_val and trainer.gradient_clip_algorithm != "value"
    if by_norm and not isinstance(pl_module, ReplicaTraining) and replica_axes(pl_module):
        raise MisconfigurationException(
            f"gradient_clip_val={trainer.gradient_clip_val} clips the norm over all replicas, which couples them: name "
            "lightning_glassy.ReplicaTraining before LightningModule among the bases of "
            f"{type(pl_module).__name__}, which clips that of each, or use gradient_clip_algorithm='value'"
        )


class Restored(NamedTuple):
    """What to go on from: the state of a tracker, and where files with snapshots may be that it refers to."""

    state: Mapping[str, Any]
    directory: Any


def check_parameters(tracker: AgingTracker, module: nn.Module) -> int:
    """Stop if a tracked parameter is no longer the module's.

    Returns:
        The number of trainable parameters.

    Raises:
        ParametersChangedError: with the name of the parameter.
    """
    now = {id(parameter): parameter.requires_grad for parameter in module.parameters()}
    tracked = tracker.parameters.tensors
    gone = [name for name, tensor in tracked.items() if id(tensor) not in now]
    if gone:
        # FSDP2 may have left buffers in place of the parameters, after a forward pass without a backward pass.
        reshard(module)
        now = {id(parameter): parameter.requires_grad for parameter in module.parameters()}
        gone = [name for name, tensor in tracked.items() if id(tensor) not in now]
    if gone:
        raise ParametersChangedError(f"the parameter {gone[0]!r} of the module has been replaced by another object")
    return sum(now.values())


def describe_optimizers(optimizers: Iterable[Optimizer]) -> list[dict[str, Any]]:
    """Return the name and the options of each optimiser, for the metadata of a record."""
    return [
        {"name": type(optimizer).__name__, "parameter_groups": options_of(optimizer.param_groups)}
        for optimizer in optimizers
    ]

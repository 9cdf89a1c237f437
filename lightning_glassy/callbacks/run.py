"""Facts about the run of a Trainer or Fabric: its strategy, its length, its optimisers."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from lightning_glassy.measure.optimizers import is_plain, options_of
from lightning_glassy.measure.select import plain_name
from lightning_glassy.replicas.ensemble import replica_axes
from lightning_glassy.replicas.training import ReplicaTraining
from lightning_glassy.schedule import LogTimeSchedule, ScheduleLike, as_schedule

# The strategies whose weights can be found, and whether each process holds all of them. Keys are class names, because
# `lightning` and `pytorch_lightning` have unrelated classes. `measure/shards.py` finds the shards of a process.
_STRATEGIES = {
    "SingleDeviceStrategy": True,
    "DeepSpeedStrategy": False,  # before DDPStrategy, its base class
    "DDPStrategy": True,
    "ModelParallelStrategy": False,
    "FSDPStrategy": False,
}


def is_a(thing: object, name: str) -> bool:
    """Return whether an object is an instance of the class of this name, in ``lightning`` or ``pytorch_lightning``."""
    return any(cls.__name__ == name for cls in type(thing).__mro__)


def is_wrapped(thing: object) -> bool:
    """Return whether a Fabric has set up a module or an optimiser."""
    compiled = getattr(thing, "_orig_mod", None)
    return any(is_a(thing, name) or is_a(compiled, name) for name in ("_FabricModule", "_FabricOptimizer"))


def overrides(module: nn.Module, method: str) -> bool:
    """Return whether a module has a method of its own in place of the method of the LightningModule."""
    base = next((cls for cls in reversed(type(module).__mro__) if cls.__name__ == "LightningModule"), LightningModule)
    return is_overridden(method, module, base)


def check_strategy(strategy: object, who: str, *, whole: bool = False) -> None:
    """Refuse a strategy whose weights cannot be found.

    Args:
        strategy: strategy of the Trainer or Fabric.
        who: name of the callback, for the message.
        whole: whether each process must hold all weights.

    Raises:
        MisconfigurationException: with the name of the strategy, and the strategies that can be used.
    """
    found = next((holds_all for name, holds_all in _STRATEGIES.items() if is_a(strategy, name)), None)
    if found is None:
        raise MisconfigurationException(
            f"{who} cannot measure parameters under {type(strategy).__name__}, which may shard them over processes in "
            "its own way: use a single device, or 'ddp', 'fsdp', 'deepspeed' or ModelParallelStrategy (FSDP2, tensor "
            "parallelism)"
        )
    if whole and not found:
        raise MisconfigurationException(
            f"{who} cannot measure weights that {type(strategy).__name__} spreads over processes: use a single device "
            "or 'ddp'"
        )


def check_clipping(trainer: Trainer, pl_module: nn.Module) -> None:
    """Refuse clipping by the norm over all replicas, which couples them.

    Raises:
        MisconfigurationException: with the remedy.
    """
    by_norm = trainer.gradient_clip_val and trainer.gradient_clip_algorithm != "value"
    if by_norm and not isinstance(pl_module, ReplicaTraining) and replica_axes(pl_module):
        raise MisconfigurationException(
            f"gradient_clip_val={trainer.gradient_clip_val} clips the norm over all replicas, which couples them: name "
            "lightning_glassy.ReplicaTraining before LightningModule among the bases of "
            f"{type(pl_module).__name__}, which clips that of each, or use gradient_clip_algorithm='value'"
        )


def tracked_module(trainer: Trainer, pl_module: LightningModule) -> nn.Module:
    """Return the module that holds the parameters. Under FSDP1, its wrapper holds the shards."""
    wrapped = is_a(trainer.strategy, "FSDPStrategy")
    return trainer.strategy.model if wrapped and trainer.strategy.model is not None else pl_module


def makes_no_updates(trainer: Trainer) -> bool:
    """Return whether the batches of this epoch only update statistics.

    StochasticWeightAveraging ends with such an epoch, if there is BatchNorm. The module has the averaged weights then.
    """
    return bool(getattr(trainer.fit_loop, "_skip_backward", False))


def max_step(trainer: Trainer, pl_module: LightningModule) -> int | None:
    """Return the last step of the run in completed optimiser updates, or ``None`` if it is unknown."""
    known = trainer.max_steps if trainer.max_steps != -1 else None
    # With manual optimisation, a batch can be any number of updates. A reloaded data set can have any length.
    countable = pl_module.automatic_optimization and not trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
    if countable:
        estimate = trainer.estimated_stepping_batches
        return int(estimate) if trainer.global_step < estimate < float("inf") else known
    return known


def schedule_of(schedule: ScheduleLike | None, trainer: Trainer, pl_module: LightningModule) -> LogTimeSchedule:
    """Return the schedule that an argument ``schedule`` stands for in a run.

    Raises:
        ValueError: a preset needs a run of known length, or a longer run.
    """
    # fast_dev_run makes only a few steps. The schedule of the run may have nothing to measure in them.
    wanted = None if trainer.fast_dev_run else schedule  # type: ignore[attr-defined]
    return as_schedule(wanted, max_step(trainer, pl_module), steps_per_epoch(trainer, pl_module))


def steps_per_epoch(trainer: Trainer, pl_module: LightningModule) -> int | None:
    """Return the number of optimiser updates in an epoch, or ``None`` if it is unknown or may change."""
    batches = trainer.num_training_batches
    same = pl_module.automatic_optimization and not trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
    accumulated = trainer.accumulate_grad_batches
    scheduled = any(is_a(callback, "GradientAccumulationScheduler") for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if not same or scheduled or batches == float("inf") or len(trainer.optimizers) != 1:
        return None
    # The last batch of an epoch makes an update, for any number of accumulated batches.
    return -(-int(batches) // accumulated) or None


class TrainedWeights:
    """Finds out whether the weights at the end of a run are the weights after its last update."""

    def __init__(self) -> None:
        self._step, self._weights = -1, list[tuple[Tensor, Tensor]]()
        self._averaged = False

    def look(self, trainer: Trainer) -> None:
        """Check an epoch. In the hooks, another callback may begin and end its work before this callback."""
        self._averaged |= makes_no_updates(trainer)

    def remember(self, trainer: Trainer, module: LightningModule) -> None:
        """Copy a few numbers of a few parameters in this process."""
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._step, self._weights = trainer.global_step, []
        for parameter in trainable[:: max(1, len(trainable) // 8)]:
            with contextlib.suppress(Exception):  # a tensor of an odd kind, or without values
                weights = local_weights(parameter)
                self._weights.append((weights, _some(weights).clone()))

    def are_in_place(self, trainer: Trainer) -> bool:
        """Return whether no callback is known to have replaced the trained weights."""
        if self._averaged or self._step != trainer.global_step:
            return not self._averaged
        return all(torch.equal(_some(p).nan_to_num(), before.nan_to_num()) for p, before in self._weights)


def _some(parameter: Tensor) -> Tensor:
    flat = (parameter if parameter.is_contiguous() else parameter[:1]).detach().flatten()
    return flat[:: max(1, flat.numel() // 4)]


class Standstill:
    """Notices that an optimiser updates the weights while ``trainer.global_step`` stands still at the start of a fit.

    Args:
        module: the module that is trained.
        step: number of completed updates.

    Attributes:
        step: as above.
        found: the sentence of :meth:`reason`, once there is a reason.
    """

    def __init__(self, module: nn.Module, step: int) -> None:
        self.step, self.found, self._n_batch, self._n_update = step, "", 0, 0
        self._own = {id(parameter) for parameter in module.parameters()}
        # This hook is called after each step of any optimiser of torch.
        self._hook = register_optimizer_step_post_hook(self._count)

    def _count(self, optimizer: Optimizer, *_: Any) -> None:
        weights = (weight for group in optimizer.param_groups for weight in group["params"])
        self._n_update += any(id(weight) in self._own and weight.grad is not None for weight in weights)

    def close(self) -> None:
        """Look no more."""
        self._hook.remove()

    def reason(self, step: int, *, at_end: bool = False) -> str:
        """Return a sentence with the reason and the remedy if nothing can be measured, or an empty text.

        Args:
            step: number of completed updates before another batch, or at the end.
            at_end: whether this is the end of the fit.
        """
        self._n_batch += not at_end
        if step == self.step and self._n_update and (at_end or self._n_batch >= 4):
            self.found = (
                f"an optimiser has updated the weights {self._n_update} times, and trainer.global_step is still "
                f"{self.step}, so nothing can be measured. Lightning counts the calls of step() of the optimisers that "
                "self.optimizers() returns, inside training_step. Call step() of these optimisers there, or count the "
                "steps yourself with lightning_glassy.AgingTracker"
            )
        return self.found


class BeforeUpdate:
    """Calls a function right before the first update of an optimiser, if the weights have been written in the meantime.

    Args:
        optimizers: the optimisers. Updates of optimisers that are not from torch are not seen.
        module: the module that is trained.
        call: the function.

    Attributes:
        done: whether the first update has begun.
    """

    def __init__(self, optimizers: Iterable[Any], module: nn.Module, call: Callable[[], object]) -> None:
        self._module, self._call, self._versions = module, call, self._now(module)
        self._begun = self.done = False
        known = [optimizer for optimizer in optimizers if isinstance(optimizer, Optimizer)]
        self._hooks = [optimizer.register_step_pre_hook(self._look) for optimizer in known]

    @staticmethod
    def _now(module: nn.Module) -> list[int]:
        return [parameter._version for parameter in module.parameters()]

    def close(self) -> None:
        """Look no more."""
        for hook in self._hooks:
            hook.remove()

    def _look(self, *_: Any) -> None:
        if not self._begun:
            self._begun = True
            if self._now(self._module) != self._versions:
                self._call()
            self.done = True  # not before, because a hook must not remove hooks


def local_weights(parameter: Tensor) -> Tensor:
    """Return the weights of a parameter in this process, which share its memory."""
    weights = parameter.detach()
    return weights.to_local() if hasattr(weights, "to_local") else weights


@torch.no_grad()
def weight_sums(module: nn.Module, names: Iterable[str] = ()) -> dict[str, Tensor]:
    """Return sums over the weights of each trainable parameter in this process, on its device, by name.

    Args:
        module: the module.
        names: names of further parameters.
    """
    sums: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        # A tensor of an odd kind has no sum, and neither has a device that has failed.
        with contextlib.suppress(Exception):
            if parameter.requires_grad or plain_name(name) in names:
                sums[plain_name(name)] = _sums(parameter)
    return sums


@torch.no_grad()
def same_weights(module: nn.Module, before: Mapping[str, Tensor]) -> bool:
    """Return whether the weights have the sums of an earlier time. They may be on another device, or frozen now."""
    now = {plain_name(name): parameter for name, parameter in module.named_parameters()}
    for name, sums in before.items():
        if name not in now:
            return False
        # On another device, sums have other rounding errors.
        then, there = sums.cpu(), _sums(now[name]).cpu()
        if bool((there - then).abs().max() > 1e-9 * then[0]):
            return False
    return True


def _sums(parameter: Tensor) -> Tensor:
    """Return the sums of |w|, of w, and of w with weights that grow along the rows, and along the columns."""
    weights = local_weights(parameter)
    real = torch.view_as_real(weights.resolve_conj()) if weights.is_complex() else weights
    table = real.reshape(len(real) if real.dim() else 1, -1)
    rows, columns = table.sum(1, dtype=torch.float64), table.sum(0, dtype=torch.float64)
    along = [
        side @ torch.linspace(0, 1, len(side), dtype=torch.float64, device=side.device) for side in (rows, columns)
    ]
    return torch.stack([table.abs().sum(dtype=torch.float64), rows.sum(), *along]).nan_to_num()


def describe_optimizers(optimizers: Iterable[Optimizer]) -> list[dict[str, Any]]:
    """Return the name and the options of each optimiser, for the metadata of a record."""
    return [
        {"name": type(optimizer).__name__, "parameter_groups": options_of(optimizer.param_groups)}
        for optimizer in optimizers
    ]


def describe_run(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return the facts of the run for the metadata of a record, as JSON values."""

    def versions() -> dict[str, str]:
        found = {"python": platform.python_version()}
        other = any(cls.__module__.startswith("pytorch_lightning.") for cls in type(trainer).__mro__)
        for package in ("lightning_glassy", "pytorch_lightning" if other else "lightning", "torch", "numpy"):
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                found[package] = "not installed as a package"
        return found

    def value(thing: Any) -> Any:
        return thing if is_plain(thing) else repr(thing)

    loader = trainer.train_dataloader
    # Batches of indices come from `batch_sampler`, or from `sampler` if the data set takes whole batches.
    sampler = getattr(loader, "batch_sampler", None)
    if sampler is None:
        sampler = getattr(loader, "sampler", None)
    size = getattr(sampler, "batch_size", getattr(loader, "batch_size", None))
    sampler = getattr(sampler, "sampler", sampler)
    return {
        "module": type(pl_module).__qualname__,
        "optimizers": describe_optimizers(trainer.optimizers),
        "lr_schedulers": [type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs],
        "batch_size": size if is_plain(size) else None,
        "sampler": None if sampler is None else type(sampler).__name__,
        "steps_per_epoch": steps_per_epoch(trainer, pl_module),
        "accumulate_grad_batches": value(trainer.accumulate_grad_batches),
        "gradient_clip_val": value(trainer.gradient_clip_val),
        "precision": str(trainer.precision),
        "world_size": trainer.world_size,
        "seed": os.environ.get("PL_GLOBAL_SEED"),
        "versions": versions(),
    }

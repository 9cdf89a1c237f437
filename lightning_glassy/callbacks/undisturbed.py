"""Run a network in training, and restore everything afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_glassy.callbacks.kept import Kept, Unreadable
from lightning_glassy.callbacks.run import is_a


@contextmanager
def undisturbed(
    trainer: Trainer,
    module: LightningModule,
    seed: int,
    *,
    mode: Literal["train", "eval"] = "train",
    data: Iterable[Any] = (),
) -> Iterator[Kept]:
    """Restore a training to the bit after the block, which may run the module in any mode.

    The block restores the random numbers of torch (CPU and CUDA), NumPy and Python, and the loggers. It restores the
    training modes, parameters, gradients, buffers and all attributes of the module, its submodules and the data module.
    It also restores everything that the attributes refer to (see :class:`Kept`). Inside the block, the module has no
    gradients, and its calls of ``log`` have no effect. An update by an optimiser raises an error. A read of an iterator
    that an attribute refers to, such as a generator, also raises an error, because the iterator could not be restored.

    Args:
        trainer: the Trainer of the module.
        module: the module to run.
        seed: seed of the random numbers inside the block. They do not depend on the random numbers of the training.
        mode: ``"eval"`` sets the modes of the module and the stage of the Trainer as in a validation.
        data: data sets and other objects whose attributes are restored, without the content of their tensors.

    Yields:
        The state to restore, with copies of all parameters and buffers.

    Raises:
        MemoryError: there is no memory for a copy of the weights.
    """
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    parts = list(module.modules())
    kept = Kept(
        [*parts, *module.parameters(), *module.buffers(), trainer.datamodule, *trainer.optimizers, *schedulers]  # type: ignore[attr-defined]
    )
    data_kept = Kept(data, content=False)
    # The mode of a scripted module is no attribute.
    modes = [(part, part.training) for part in parts]
    loggers, stage, stops = trainer.loggers, trainer.state.stage, trainer.should_stop
    try:
        trainer.loggers = [DummyLogger() for _ in loggers]
        if mode == "eval":
            trainer.validating = True
        else:
            trainer.training = True
        for parameter in kept.leaves:
            parameter.grad = None
        for part in parts:
            if is_a(part, "LightningModule"):
                vars(part).update(log=_log_nowhere, log_dict=_log_nowhere)
        for optimizer in kept.optimizers:
            vars(optimizer)["step"] = _refuse_update
        for entries, key in (*kept.iterators, *data_kept.iterators):
            entries[key] = Unreadable(key)
        with random_numbers_of(seed):
            if mode == "eval":
                module.eval()
            yield kept
    finally:
        trainer.loggers, trainer.state.stage, trainer.should_stop = loggers, stage, stops
        try:
            data_kept.put_back()
        finally:
            kept.put_back()
            for part, training in modes:
                part.training = training


@contextmanager
def repeatable(kept: Kept, seed: int) -> Iterator[None]:
    """Draw random numbers from a seed inside the block, and restore the state afterwards."""
    try:
        with random_numbers_of(seed):
            yield
    finally:
        kept.put_back()


def _refuse_update(*_: Any, **__: Any) -> NoReturn:
    raise MisconfigurationException(
        "the loss updates weights by an optimiser, which would change the training: give the measurement a loss=... "
        "that does not"
    )


def _log_nowhere(*_: Any, **__: Any) -> None:
    """Replace ``LightningModule.log``, which refuses to be called here. Its results belong to the training."""


@contextmanager
def random_numbers_of(seed: int) -> Iterator[None]:
    """Draw random numbers from a seed inside the block, and restore the generators of torch, NumPy and Python."""
    of_torch, of_numpy, of_python = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    of_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        # Do not call `torch.manual_seed`, because it also seeds a CUDA that starts later.
        torch.default_generator.manual_seed(seed)
        if of_cuda:
            torch.cuda.manual_seed_all(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  # the numbers that a user's transforms draw
        random.seed(seed)
        yield
    finally:
        torch.set_rng_state(of_torch)
        if of_cuda:
            torch.cuda.set_rng_state_all(of_cuda)
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)

"""Run a network in training, and restore everything afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn


@contextmanager
def undisturbed(trainer: Trainer, module: LightningModule, seed: int) -> Iterator[dict[str, Tensor]]:
    """Restore a training to the bit after the block, which may run the module in any mode.

    Restored are the random numbers of torch (CPU and CUDA), NumPy and Python, and the loggers. Of each submodule, the
    training mode, the buffers, and every attribute that is a number, a tensor, a generator of random numbers, a list or
    a dictionary are restored (such as the states of torchmetrics). So are ``.grad`` and ``requires_grad`` of each
    parameter, which has no gradient inside. Nothing that the module logs inside is logged. A change inside an attribute
    of another kind is not restored.

    Args:
        trainer: the Trainer of the module.
        module: the module to run.
        seed: seed of the random numbers inside, which do not depend on those of the training.

    Yields:
        The buffers as they were, by name.
    """
    buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    # Write to the `data` of a tensor, so that no graph sees another version.
    restore = [put_back for part in module.modules() for put_back in _keep_module(part)]
    restore += [partial(b.data.copy_, buffers[name]) for name, b in module.named_buffers() if _can_be_written(b)]
    # The mode of a scripted module is no attribute.
    restore += [partial(setattr, part, "training", part.training) for part in module.modules()]
    gradients = [(p, p.grad, p.requires_grad) for p in module.parameters()]
    loggers = trainer.loggers
    try:
        for parameter, _, _ in gradients:
            parameter.grad = None
        trainer.loggers = [DummyLogger() for _ in loggers]
        vars(module).update(log=_log_nowhere, log_dict=_log_nowhere)
        with random_numbers_of(seed):
            yield buffers
    finally:
        trainer.loggers = loggers
        for put_back in restore:
            put_back()
        for parameter, gradient, trainable in gradients:
            parameter.requires_grad_(trainable)
            parameter.grad = gradient


def _log_nowhere(*_: Any, **__: Any) -> None:
    """Replace ``LightningModule.log``, which refuses to be called here. Its results belong to the training."""


@contextmanager
def random_numbers_of(seed: int) -> Iterator[None]:
    """Draw random numbers of a seed inside the block, and restore the generators of torch, NumPy and Python."""
    of_torch, of_numpy, of_python = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    of_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        # Not `torch.manual_seed`, which also seeds a CUDA that starts later.
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


def _keep_module(module: nn.Module) -> Iterator[Callable[[], object]]:
    """Yield functions that restore the attributes of one module, without its submodules, and their content."""
    # Not `setattr`, which modules and metrics override.
    yield _keep_entries(vars(module))
    for value in vars(module).values():
        yield from _keep_content(value)


def _keep_content(value: Any) -> Iterator[Callable[[], object]]:
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        if _can_be_written(value):
            yield partial(value.data.copy_, value.detach().clone())
    elif isinstance(value, dict):
        yield _keep_entries(value)
    elif isinstance(value, list):
        items = list(value)
        yield lambda: value.__setitem__(slice(None), items)
    elif isinstance(value, torch.Generator):
        state = value.get_state()
        yield lambda: value.set_state(state)
    elif isinstance(value, np.random.Generator):
        numbers = value.bit_generator.state
        yield lambda: setattr(value.bit_generator, "state", numbers)
    elif isinstance(value, random.Random):
        drawn = value.getstate()
        yield lambda: value.setstate(drawn)


def _can_be_written(tensor: Tensor) -> bool:
    """Return whether each number has its own place in memory, unlike after ``expand``."""
    return all(stride or size == 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _keep_entries(entries: dict[Any, Any]) -> Callable[[], None]:
    before = dict(entries)

    def put_back() -> None:
        for key in entries.keys() - before.keys():
            del entries[key]
        entries.update(before)

    return put_back

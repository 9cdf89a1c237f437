"""A look at a network in training that leaves no trace in it."""

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
    """Let the module be run in any mode, with gradients or without, and put everything back as it was, to the bit.

    What is put back: the random numbers of torch (CPU and CUDA), NumPy and Python; of each submodule the training mode,
    the buffers, and every attribute that is a number, a tensor, a generator of random numbers, a list or a dictionary
    (the states of torchmetrics are such); ``.grad`` and ``requires_grad`` of each parameter, which has no gradient
    inside; the loggers. What the module logs inside is logged nowhere. What an attribute of another kind changes in
    itself is not known here.

    Args:
        trainer: that of the module.
        module: what will be run.
        seed: of the random numbers inside, so that they do not depend on those of the training.

    Yields:
        The buffers as they were, by name, for who asks for them meanwhile.
    """
    buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    # Tensors by their `data`, so that no graph takes them for another version.
    restore = [put_back for part in module.modules() for put_back in _keep_module(part)]
    restore += [partial(b.data.copy_, buffers[name]) for name, b in module.named_buffers() if _can_be_written(b)]
    # Of a scripted module the mode is no attribute.
    restore += [partial(setattr, part, "training", part.training) for part in module.modules()]
    gradients = [(p, p.grad, p.requires_grad) for p in module.parameters()]
    loggers, random_numbers = trainer.loggers, _keep_random_numbers()
    try:
        for parameter, _, _ in gradients:
            parameter.grad = None
        trainer.loggers = [DummyLogger() for _ in loggers]
        vars(module).update(log=_log_nowhere, log_dict=_log_nowhere)
        _seed(seed)
        yield buffers
    finally:
        trainer.loggers = loggers
        for put_back in restore:
            put_back()
        for parameter, gradient, trainable in gradients:
            parameter.requires_grad_(trainable)
            parameter.grad = gradient
        random_numbers()


def _log_nowhere(*_: Any, **__: Any) -> None:
    """In place of ``LightningModule.log``: its results are those of the training, and it refuses to be called here."""


def _seed(seed: int) -> None:
    # Not `torch.manual_seed`: where CUDA is not in use yet, that seeds it for when it will be.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # the numbers that a user's transforms draw
    random.seed(seed)


def _keep_random_numbers() -> Callable[[], None]:
    ours, of_numpy, of_python = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    of_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def put_back() -> None:
        torch.set_rng_state(ours)
        if of_cuda:
            torch.cuda.set_rng_state_all(of_cuda)
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)

    return put_back


def _keep_module(module: nn.Module) -> Iterator[Callable[[], object]]:
    """What puts back the attributes of one module, its submodules left out, and what is in them."""
    # Not by `setattr`, which modules and metrics have ideas of their own about.
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
    """Whether each number has a place of its own, which those of ``expand`` have not."""
    return all(stride or size == 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _keep_entries(entries: dict[Any, Any]) -> Callable[[], None]:
    before = dict(entries)

    def put_back() -> None:
        for key in entries.keys() - before.keys():
            del entries[key]
        entries.update(before)

    return put_back

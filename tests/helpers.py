"""Small networks and data that several tests train."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_glassy.loggers import sinks


class SmallNet(LightningModule):
    """A small network with dropout, shuffled data and a validation loop. All three draw random numbers."""

    def __init__(self, dtype: torch.dtype = torch.float32, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 3)).to(dtype)

    def _loss(self, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x.to(self.net[0].weight.dtype)).float(), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Recomputing(SmallNet):
    """A small network with activation checkpointing: the backward pass repeats the forward pass."""

    def _loss(self, batch: Any) -> Tensor:
        x, y = batch
        x = x.to(self.net[0].weight.dtype).requires_grad_()
        return nn.functional.cross_entropy(checkpoint(self.net, x, use_reentrant=False).float(), y)


def data(n: int = 48, batch_size: int = 4, shuffle: bool = True) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(n, 8, generator=generator)
    y = torch.randint(3, (n,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=shuffle)


def quiet_trainer(tmp_path: Path, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "default_root_dir": tmp_path,
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 60,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return Trainer(**(defaults | options))


def write_at_every_event() -> None:
    """Let the sinks of this process write at every event, as in a training with slow steps."""
    sinks._SHORTEST, sinks._LONGEST, sinks._SHARE = 0.0, 0.0, math.inf


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a script: the modules of this checkout, one thread and no GPU.

    The scripts train on the CPU. With a GPU in sight, Lightning would start CUDA in each of their processes, even in a
    process that is forked. CUDA does not survive a fork.
    """
    root = str(Path(__file__).parent.parent)
    return os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | more


def end_processes() -> None:
    """Destroy the process group of a script. Otherwise torch now and then aborts when the first process exits."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


class PageAnswers:
    """The answers inside the page of a report."""

    def __init__(self, page: str) -> None:
        found = re.findall(r'<script type="application/json" id="answers">(.*)</script>', page)
        (text,) = found  # one line, because no name in a record breaks it
        self.content: dict[str, Any] = json.loads(text)
        (self.run,) = self.content["runs"]
        self.observables = {one["name"]: one for one in self.content["observables"]}

    def ask(self, path: str, **question: Any) -> Any:
        return next(
            entry["answer"]
            for entry in self.content["answers"]
            if entry["path"] == path and all(entry[name] == value for name, value in question.items())
        )

"""Run the same training under a strategy that the command line names. This is a script, because Lightning starts it
once more for each further process. See ``tests/test_parallel.py``.
"""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.plugins import FSDPPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullStateDictConfig,
    FullyShardedDataParallel,
    ShardingStrategy,
    StateDictType,
    fully_shard,
)
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lightning_glassy import AgingMonitor
from lightning_glassy.measure.snapshots import Snapshot, SnapshotBank
from tests.helpers import data, end_processes, quiet_trainer

STEPS = 40


class FSDP1OnCPU(FSDPStrategy):
    """FSDP on a CPU. Lightning's strategy asks for a GPU, but torch's FullyShardedDataParallel does not."""

    def _determine_device_ids(self) -> None:
        return None

    def barrier(self, *_: Any, **__: Any) -> None:
        torch.distributed.barrier()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        # Lightning asks for a copy in host memory. If the weights are there already, torch 2.11 frees them too early.
        config = FullStateDictConfig(offload_to_cpu=False, rank0_only=True)
        with FullyShardedDataParallel.state_dict_type(self.model, StateDictType.FULL_STATE_DICT, config):
            return self.model.state_dict()

    def _setup_model(self, model: nn.Module) -> FullyShardedDataParallel:
        options: dict[str, Any] = self.kwargs | {"sharding_strategy": self.sharding_strategy}
        if torch.distributed.get_world_size() == 4:  # two copies, each of them in two shards
            mesh = init_device_mesh("cpu", (2, 2))
            options |= {"sharding_strategy": ShardingStrategy.HYBRID_SHARD, "device_mesh": mesh}
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **options)


class DeepSpeedOnCPU(DeepSpeedStrategy):
    """DeepSpeed on a CPU. Lightning's strategy asks for a GPU, but with ``DS_ACCELERATOR=cpu`` DeepSpeed does not."""

    root_device = torch.device("cpu", 0)

    def setup_environment(self) -> None:
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def barrier(self, *_: Any, **__: Any) -> None:
        torch.distributed.barrier()


class AsItIs(FSDPPrecision):
    """Keeps the dtype of the module. In Lightning's float32 weights, the trainings would drift apart."""

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module

    def convert_input(self, data: Any) -> Any:
        return data

    def forward_context(self) -> Any:
        return nullcontext()


def strategy(kind: str) -> dict[str, Any]:
    """Return the options of the Trainer for a strategy."""
    if kind.startswith("fsdp1"):
        fsdp = FSDP1OnCPU(
            sharding_strategy={"grad": "SHARD_GRAD_OP", "whole": "NO_SHARD"}.get(kind[6:], "FULL_SHARD"),  # type: ignore[arg-type]
            auto_wrap_policy={nn.Linear},
            use_orig_params=kind != "fsdp1_flat",
            process_group_backend="gloo",
        )
        return {"devices": 4 if kind == "fsdp1_hybrid" else 2, "strategy": fsdp, "plugins": [AsItIs("32-true")]}
    if kind.startswith("zero"):
        zero = DeepSpeedOnCPU(stage=int(kind[4]), process_group_backend="gloo")
        zero.config |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}  # type: ignore[operator]
        return {"devices": 2, "strategy": zero, "precision": "bf16-true" if kind.endswith("bf16") else "32-true"}
    if kind.startswith("ddp"):
        return {"devices": 2, "strategy": kind}
    sizes = {"fsdp2": (2, 1), "tp": (1, 2), "2x2": (2, 2), "hsdp": (4, 1)}.get(kind)
    if sizes is None:
        return {"devices": 1}
    return {"devices": sizes[0] * sizes[1], "strategy": ModelParallelStrategy(*sizes)}


class Net(LightningModule):
    """A network with shards of uneven size, empty shards, and parameters that tensor parallelism leaves whole."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.up, self.down, self.norm = nn.Linear(8, 6), nn.Linear(6, 5), nn.LayerNorm(5)
        self.head, self.scale = nn.Linear(5, 3), nn.Parameter(torch.ones(1))
        if kind[:4] != "zero":
            self.double()

    def configure_model(self) -> None:
        if not isinstance(self.trainer.strategy, ModelParallelStrategy):
            return
        rows, columns = self.device_mesh["data_parallel"], self.device_mesh["tensor_parallel"]
        if self.kind == "hsdp":  # two copies, each of them in two shards
            rows = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        if columns.size() > 1:
            parallelize_module(self, columns, {"up": ColwiseParallel(), "down": RowwiseParallel()})
        if rows.size() > 1:
            fully_shard(self.down, mesh=rows)
            fully_shard(self, mesh=rows)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.down(torch.tanh(self.up(x))))) * self.scale

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        # Use the same batch in all processes, so that the training is the same in all strategies.
        generator = torch.Generator().manual_seed(self.trainer.global_step)
        x = torch.randn(4, 8, generator=generator, dtype=torch.float64).to(self.scale.dtype)
        return nn.functional.cross_entropy(self(x).double(), torch.randint(3, (4,), generator=generator))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0].to(self.scale.dtype))  # FSDP2 leaves the root gathered after this

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Look(Callback):
    """Writes to a file how many bytes of snapshots, and how many snapshots, each process holds."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        monitor = next(callback for callback in trainer.callbacks if isinstance(callback, AgingMonitor))
        tracker = monitor.recorder.tracker
        n = 0 if tracker is None else sum(f.nbytes for s in tracker._bank.live.values() for f in s.flats)
        path = Path(trainer.default_root_dir, f"rank{trainer.global_rank}")
        path.write_text(f"{n} {0 if tracker is None else tracker.n_snapshots}")


class Full(Callback):
    """Compares the record with DeepSpeed's own float32 weights, which DeepSpeed puts together at every step."""

    def __init__(self) -> None:
        self.steps: dict[int, Tensor] = {}

    def look(self, trainer: Trainer, module: LightningModule) -> None:
        from deepspeed.utils import safe_get_full_fp32_param

        parted = ("_hp_mapping", "ds_id")
        found = [
            safe_get_full_fp32_param(p) if any(hasattr(p, name) for name in parted) else p for p in module.parameters()
        ]
        self.steps[trainer.global_step] = torch.cat([p.detach().double().flatten() for p in found])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.look(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.look(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        record = next(callback for callback in trainer.callbacks if isinstance(callback, AgingMonitor)).record
        for waiting_time, lag, moments in zip(*record.pairs, record.moments, strict=True):
            d = self.steps[waiting_time + lag] - self.steps[waiting_time]
            assert abs(moments[0, 0] / (d @ d) - 1) < 1e-6, (waiting_time, lag, moments[0, 0], d @ d)
        print("agrees with", len(record), "pairs of", record.n_parameters["all"], "parameters")


class Save(Callback):
    """Saves a checkpoint at step 23, and then ends the training if ``stop`` is true."""

    def __init__(self, path: Path, stop: bool = True) -> None:
        self.path, self.stop = path, stop

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 23:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = self.stop


class Sampling(Callback):
    """Runs a forward pass without a backward pass just before we look. FSDP2 then leaves the root gathered."""

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        pl_module(torch.zeros(1, 8, dtype=torch.float64))


class BreakRank1(Callback):
    """Leaves no memory for a snapshot from step 20 on, in process 1 alone."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        add = SnapshotBank.add

        def scarce(bank: SnapshotBank, step: int) -> Snapshot:
            if trainer.global_rank == 1 and step >= 20:
                raise MemoryError("none left")
            return add(bank, step)

        SnapshotBank.add = scarce  # type: ignore[method-assign]


def monitors() -> list[AgingMonitor]:
    return [
        AgingMonitor(groups="layer", summary=False),
        AgingMonitor(sample=60, summary=False, name="sampled", snapshot_device="cpu"),
        AgingMonitor(moments="msd", include=["*.weight", "scale"], summary=False, name="displacement"),
    ]


def fit(kind: str, root: Path, *callbacks: Callback, ckpt_path: Path | None = None, **options: Any) -> None:
    seed_everything(1)
    module = Net(kind)
    trainer = quiet_trainer(
        root,
        callbacks=[*([Sampling()] if kind in ("fsdp2", "2x2") else []), *monitors(), *callbacks],
        max_steps=STEPS,
        num_sanity_val_steps=1,
        **(strategy(kind) | options),
    )
    trainer.fit(module, data(), data(shuffle=False), ckpt_path=ckpt_path, weights_only=False if ckpt_path else None)


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    kind, place = sys.argv[1], Path(sys.argv[2])
    for task in sys.argv[3:]:
        if task == "whole":
            fit(kind, place / kind, Look())
        elif task == "full":
            fit(kind, place / kind, Full())
        elif task == "resume":
            fit(kind, place / kind / "part", Save(place / kind / "at23.ckpt"))
            fit(kind, place / kind / "again", ckpt_path=place / kind / "at23.ckpt")
        elif task == "broken":
            # The other processes learn of the failure only at the next sum. A checkpoint must not wait for it either.
            fit(kind, place / kind / "broken", BreakRank1(), Save(place / kind / "broken.ckpt", stop=False))
        else:
            fit(kind, place / kind / task, ckpt_path=place / task.removeprefix("from_") / "at23.ckpt")
    end_processes()

"""The package ``pytorch_lightning`` has classes of its own. A training with it gives the same record, bit for bit."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_glassy import (
    AgingMonitor,
    AgingRecord,
    BarrierMonitor,
    CurvatureMonitor,
    DisplacementDistribution,
    FabricAgingMonitor,
    GradientNoiseMonitor,
    LogTimeEvaluator,
    ReplicaEnsemble,
    ReplicaOverlap,
    ReplicaTraining,
)
from lightning_glassy.replicas import per_replica, replica_loader
from tests.helpers import data

pytestmark = pytest.mark.needs("pytorch_lightning")

PACKAGES = ["lightning.pytorch", "pytorch_lightning"]


def net(package: str, **methods: Any) -> Any:
    class Net(import_module(package).LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)  # type: ignore[no-any-return]

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    return type("Net", (Net,), methods)()


def fit(package: str, path: Path, module: Any, callbacks: list[Any], loader: Any = None, **options: Any) -> Any:
    pl, checkpoint = import_module(package), options.pop("ckpt_path", None)
    loggers, saver = import_module(f"{package}.loggers"), import_module(f"{package}.callbacks").ModelCheckpoint
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=[*callbacks, saver(path / "checkpoints", filename="{step}", every_n_train_steps=6, save_top_k=-1)],
        logger=[loggers.TensorBoardLogger(path, "tensorboard"), loggers.CSVLogger(path, "csv")],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )
    loader = data(shuffle=False) if loader is None else loader
    trainer.fit(module, loader, data(8, shuffle=False), ckpt_path=checkpoint)
    return trainer


def assert_equal(one: AgingRecord, other: AgingRecord) -> None:
    np.testing.assert_array_equal(one.pairs, other.pairs)
    np.testing.assert_array_equal(one.msd(), other.msd())
    assert one.one_time_names == other.one_time_names
    assert one.profile_names == other.profile_names
    for name in one.one_time_names:
        np.testing.assert_array_equal(one.one_time(name), other.one_time(name))
    for name in one.profile_names:
        np.testing.assert_array_equal(one.profile(name).values, other.profile(name).values)


def test_all_callbacks_measure_the_same_and_leave_no_trace_with_either_package(tmp_path: Path) -> None:
    records, weights = [], []
    for package in PACKAGES:
        monitor, place = AgingMonitor(), tmp_path / package
        callbacks = [
            LogTimeEvaluator(3),
            monitor,
            GradientNoiseMonitor(3, max_batches=3),
            CurvatureMonitor([6], max_batches=1, n_probes=2),
            BarrierMonitor(1, max_batches=2, points=3),
            DisplacementDistribution(1),
        ]
        fit(package, place, module := net(package), callbacks, max_steps=12)
        records.append(monitor.record)
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
        assert_equal(
            AgingRecord.load(place / "tensorboard" / "version_0" / "glassy" / "aging_record.npz"), monitor.record
        )
        assert (place / "csv" / "version_0" / "glassy.csv").is_file()
        header = (place / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0]
        assert "glassy_series/train_accuracy" in header
    assert_equal(*records)
    assert {"train_accuracy", "val_loss", "gradient_noise", "hessian_max"} <= set(records[0].one_time_names)
    assert {"displacement", "loss_path"} <= set(records[0].profile_names)
    assert "pytorch_lightning" in records[1].meta["versions"]
    assert "lightning" not in records[1].meta["versions"]
    fit("pytorch_lightning", tmp_path / "plain", module := net("pytorch_lightning"), [], max_steps=12)
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], torch.cat([p.detach().flatten() for p in module.parameters()]))


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_checkpoint_of_either_package_goes_on_in_the_other(tmp_path: Path) -> None:
    whole, resumed, loader = AgingMonitor(), AgingMonitor(), data(24, shuffle=False)
    module, callbacks = net("lightning.pytorch"), [whole, LogTimeEvaluator(3)]
    fit("lightning.pytorch", tmp_path / "whole", module, callbacks, loader, max_steps=12)
    path = tmp_path / "whole" / "checkpoints" / "step=6.ckpt"
    module, callbacks = net("pytorch_lightning"), [resumed, LogTimeEvaluator(3)]
    fit("pytorch_lightning", tmp_path / "resumed", module, callbacks, loader, max_steps=12, ckpt_path=path)
    assert_equal(whole.record, resumed.record)


def test_what_cannot_be_measured_is_refused_with_the_same_words(tmp_path: Path) -> None:
    def manual(self: Any) -> None:
        super(type(self), self).__init__()
        self.automatic_optimization = False

    module = net("pytorch_lightning", __init__=manual)
    with pytest.raises(MisconfigurationException, match="optimises manually"):
        fit("pytorch_lightning", tmp_path, module, [LogTimeEvaluator(3)], max_steps=1)


@pytest.mark.parametrize("package", PACKAGES)
def test_replicas_are_measured(tmp_path: Path, package: str) -> None:
    class Ensemble(ReplicaTraining, import_module(package).LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.nets = ReplicaEnsemble(lambda: nn.Linear(8, 3), 3, seeds=[1, 2, 3])

        def forward(self, x: Tensor, shared: bool = True) -> Tensor:
            return self.nets(x, shared=shared)  # type: ignore[no-any-return]

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return per_replica(nn.functional.cross_entropy, shared=False)(self(batch[0], False), batch[1]).sum()

        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    monitor, loader = AgingMonitor(), replica_loader(data().dataset, 4, [1, 2, 3])
    callbacks = [monitor, ReplicaOverlap(torch.zeros(4, 8), 3)]
    fit(package, tmp_path, Ensemble(), callbacks, loader, max_steps=4, gradient_clip_val=0.1)
    assert monitor.record.n_replica == 3
    assert "replica_overlap" in monitor.record.one_time_names


def test_a_fabric_of_the_other_package_is_measured(tmp_path: Path) -> None:
    monitor = FabricAgingMonitor(dirpath=tmp_path)
    fabric = import_module("lightning_fabric").Fabric(accelerator="cpu", devices=1, callbacks=[monitor])
    layer = nn.Linear(2, 1)
    module, optimizer = fabric.setup(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    monitor.start(module, optimizer, fabric=fabric)
    for _ in range(3):
        fabric.backward(module(torch.ones(1, 2)).sum())
        optimizer.step()
    fabric.call("on_train_end")
    assert len(monitor.record) == 6

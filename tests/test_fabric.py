"""The monitor in a loop of Fabric: it counts as documented, measures the right weights, and never ends a training."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger, TensorBoardLogger
from lightning.fabric.plugins import MixedPrecision
from lightning.fabric.utilities.exceptions import MisconfigurationException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_glassy import AgingRecord, FabricAgingMonitor, LogTimeSchedule
from tests.processes import launch

SCHEDULE = LogTimeSchedule([0, 1, 3], [1, 2, 5])


def flat(module: nn.Module) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in module.parameters()]).double().numpy()


class Loop:
    """A small net with its optimiser and its gradients, with or without a monitor."""

    def __init__(self, monitor: FabricAgingMonitor | None, step: int = 0, **options: Any) -> None:
        torch.manual_seed(0)
        callbacks = [] if monitor is None else [monitor]
        self.fabric = Fabric(accelerator="cpu", devices=1, callbacks=callbacks, **options)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        sgd = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.5)
        self.model, self.optimizer = self.fabric.setup(self.net, sgd)
        self.path = [flat(self.net)]
        if monitor is not None:
            monitor.start(self.model, self.optimizer, fabric=self.fabric, step=step)

    def backward(self) -> None:
        self.fabric.backward(self.model(torch.randn(5, 3)).square().mean())

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.path.append(flat(self.net))

    def train(self, steps: int) -> Loop:
        for _ in range(steps):
            self.backward()
            self.step()
        self.fabric.call("on_train_end")
        return self


def test_the_record_is_that_of_the_weights_and_the_training_is_the_same_to_the_bit(tmp_path: Path) -> None:
    monitor = FabricAgingMonitor(SCHEDULE, dirpath=tmp_path, groups="layer")
    loop = Loop(monitor).train(8)
    assert np.array_equal(loop.path, Loop(None).train(8).path)
    reference = AgingRecord.from_trajectory(np.array(loop.path), SCHEDULE)
    assert np.allclose(monitor.record.msd(), reference.msd(), rtol=1e-6, equal_nan=True)
    assert monitor.record.groups == ("all", "0", "2")
    assert AgingRecord.load(tmp_path / "aging_record.npz") == monitor.record
    assert (tmp_path / "aging_record.csv").exists()
    assert str(tmp_path / "aging_record.npz") in monitor.where()[0]
    meta = monitor.record.meta
    assert (meta["module"], meta["precision"], meta["world_size"]) == ("Sequential", "32-true", 1)
    assert meta["optimizers"][0]["name"] == "SGD"
    assert meta["optimizers"][0]["parameter_groups"][0]["momentum"] == 0.5


def test_accumulated_gradients_and_a_closure_are_one_step(tmp_path: Path) -> None:
    monitor = FabricAgingMonitor(SCHEDULE, dirpath=tmp_path)
    loop = Loop(monitor)
    for _ in range(4):
        for micro in range(3):
            with loop.fabric.no_backward_sync(loop.model, enabled=micro < 2):
                loop.backward()
        loop.step()
    net = nn.Linear(3, 1)
    model, optimizer = loop.fabric.setup(net, torch.optim.LBFGS(net.parameters(), max_iter=4))
    reference = AgingRecord.from_trajectory(np.array(loop.path), SCHEDULE)
    monitor.finish()
    assert np.allclose(monitor.record.msd(), reference.msd(), rtol=1e-6, equal_nan=True)

    monitor.start(model, optimizer, fabric=loop.fabric)  # another training, with its own record
    evaluations = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(torch.ones(1, 3)) - 1).square().sum()
        loop.fabric.backward(loss)
        evaluations.append(loss)
        return loss

    for _ in range(3):
        optimizer.step(closure)
    monitor.finish()
    assert len(evaluations) > 3
    assert set(zip(*(a.tolist() for a in monitor.record.pairs), strict=True)) == {(0, 1), (0, 2), (1, 1), (1, 2)}
    assert AgingRecord.load(tmp_path / "aging_record-1.npz") == monitor.record


def test_of_two_optimisers_each_counts_and_those_of_others_do_not(tmp_path: Path) -> None:
    monitor = FabricAgingMonitor(SCHEDULE, dirpath=tmp_path)
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[monitor])
    net, other = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), nn.Linear(2, 1)
    model = fabric.setup(net)
    first, second, foreign = fabric.setup_optimizers(
        *(torch.optim.SGD(part.parameters(), lr=lr) for part, lr in ((net[0], 0.1), (net[1], 0.2), (other, 0.3)))
    )
    monitor.start(model, first, second, fabric=fabric)
    path = [flat(net)]
    for _ in range(4):
        fabric.backward(model(torch.ones(1, 2)).sum())
        for optimizer in (first, foreign, second):
            optimizer.step()
            path += [] if optimizer is foreign else [flat(net)]
    fabric.call("on_train_end")
    reference = AgingRecord.from_trajectory(np.array(path), SCHEDULE)
    assert np.allclose(monitor.record.msd(), reference.msd(), rtol=1e-6, equal_nan=True)
    # The first optimiser makes the update after step 0, and the second optimiser makes the update after step 1.
    assert monitor.record.one_time("learning_rate")[0][0] == 0
    assert monitor.record.one_time("learning_rate_1_0")[0][0] == 1


def test_an_update_that_the_scaler_skips_counts_and_moves_nothing(tmp_path: Path) -> None:
    monitor = FabricAgingMonitor(LogTimeSchedule([0], [1, 2]), dirpath=tmp_path)
    precision = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    loop = Loop(monitor, plugins=[precision])
    loop.backward()
    loop.net[0].weight.grad[0, 0] = float("inf")
    loop.step()
    loop.backward()
    loop.step()
    monitor.finish()
    assert monitor.record.msd()[0, 0] == 0
    assert monitor.record.msd()[0, 1] > 0


def test_the_learning_rate_is_that_of_the_update_after_the_step(tmp_path: Path) -> None:
    monitor = FabricAgingMonitor(SCHEDULE, dirpath=tmp_path)
    loop = Loop(monitor)
    scheduler = torch.optim.lr_scheduler.StepLR(loop.optimizer, step_size=1, gamma=0.5)
    for _ in range(4):
        loop.backward()
        loop.step()
        scheduler.step()
    monitor.finish()
    steps, rates = monitor.record.one_time("learning_rate")
    assert steps.tolist() == [0, 1, 2, 3]
    assert rates == pytest.approx([0.1, 0.05, 0.025, 0.0125])


def test_a_run_that_goes_on_starts_where_it_is(tmp_path: Path) -> None:
    monitor = FabricAgingMonitor(dirpath=tmp_path, max_step=110)
    Loop(monitor, step=100).train(10)
    assert monitor.record.waiting_times[0] == 100
    assert monitor.record.lags[-1] == 10


def test_the_loggers_of_fabric_get_the_curves(tmp_path: Path) -> None:
    tensorboard, table = TensorBoardLogger(tmp_path, name="a"), CSVLogger(tmp_path, name="b")
    monitor = FabricAgingMonitor(SCHEDULE, curves="scalars")
    Loop(monitor, loggers=[tensorboard, table]).train(8)
    events = EventAccumulator(tensorboard.log_dir).Reload()
    assert [event.step for event in events.Scalars("glassy/msd/tw_1")] == [1, 2, 5]
    assert any(tag.startswith("glassy_record/") for tag in events.Tags()["tensors"])
    assert (Path(table.log_dir) / "glassy.csv").exists()
    assert AgingRecord.load(Path(tensorboard.log_dir) / "glassy" / "aging_record.npz") == monitor.record


def test_a_summary_is_printed_if_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Loop(FabricAgingMonitor(SCHEDULE, dirpath=tmp_path / "a")).train(8)
    assert "Aging of" not in capsys.readouterr().out
    Loop(FabricAgingMonitor(SCHEDULE, dirpath=tmp_path / "b", summary=True)).train(8)
    printed = capsys.readouterr().out
    assert printed.startswith("Aging of 21 parameters: mean squared displacement")
    assert "aging_record.npz" in printed


def test_no_failure_ends_the_training_or_loses_the_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a file").touch()
    monitor = FabricAgingMonitor(SCHEDULE, dirpath=tmp_path / "a file")
    loop = Loop(monitor)
    with caplog.at_level(logging.WARNING):
        loop.train(2)
    assert "FileSink failed" in caplog.text
    assert len(monitor.record) == 3
    monitor = FabricAgingMonitor(SCHEDULE, dirpath=tmp_path / "b")
    loop = Loop(monitor)
    loop.net[2] = nn.Linear(4, 1)
    with caplog.at_level(logging.WARNING):
        loop.train(2)
    assert "no more is measured from step 0 on (ParametersChangedError" in caplog.text
    assert len(monitor.record) == 0


def test_what_cannot_be_is_refused_at_the_start(tmp_path: Path) -> None:
    monitor = FabricAgingMonitor(SCHEDULE, dirpath=tmp_path)
    with pytest.raises(RuntimeError, match=r"start\(module"):
        _ = monitor.record
    loop = Loop(None)
    with pytest.raises(ValueError, match=r"not in Fabric\(callbacks"):
        monitor.start(loop.model, loop.optimizer, fabric=loop.fabric)
    for optimizers in ([], [torch.optim.SGD(loop.net.parameters(), lr=0.1)]):
        with pytest.raises(ValueError, match=r"as fabric.setup\(\) returned them"):
            monitor.start(loop.model, *optimizers, fabric=loop.fabric)
    with pytest.raises(MisconfigurationException, match="SimpleNamespace, which may shard"):
        monitor.start(loop.model, loop.optimizer, fabric=SimpleNamespace(strategy=SimpleNamespace()))
    for options, message in (
        ({"schedule": "baity-jesi"}, "schedule='baity-jesi'"),
        ({"name": "../up"}, "name='../up'"),
        ({"moments": "some"}, "moments='some'"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            FabricAgingMonitor(**options)


def test_a_later_run_goes_on_with_the_record(tmp_path: Path) -> None:
    whole = FabricAgingMonitor(SCHEDULE, dirpath=tmp_path / "whole")
    path = Loop(whole).train(8).path

    first = FabricAgingMonitor(SCHEDULE, dirpath=tmp_path / "parts")
    loop = Loop(first)
    for _ in range(4):
        loop.backward()
        loop.step()
    loop.fabric.save(tmp_path / "a.ckpt", {"net": loop.net, "optimizer": loop.optimizer, "monitor": first})
    random_state = torch.random.get_rng_state()

    second = FabricAgingMonitor(SCHEDULE, dirpath=tmp_path / "parts")
    loop = Loop(None)
    loop.fabric._callbacks.append(second)
    loop.model, loop.optimizer = loop.fabric.setup(
        loop.net, torch.optim.SGD(loop.net.parameters(), lr=0.1, momentum=0.5)
    )
    loop.fabric.load(tmp_path / "a.ckpt", {"net": loop.net, "optimizer": loop.optimizer, "monitor": second})
    second.start(loop.model, loop.optimizer, fabric=loop.fabric)
    torch.random.set_rng_state(random_state)
    assert np.array_equal(loop.train(4).path[1:], path[5:])
    assert np.array_equal(second.record.moments, whole.record.moments, equal_nan=True)
    assert AgingRecord.load(tmp_path / "parts" / "aging_record.npz") == second.record


@pytest.mark.slow
def test_shards_are_measured_in_fabric_too(tmp_path: Path) -> None:
    script = tmp_path / "fsdp2.py"
    script.write_text(
        """
import sys
import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from lightning_glassy import AgingRecord, FabricAgingMonitor, LogTimeSchedule

torch.set_num_threads(1)
schedule = LogTimeSchedule([0, 1], [1, 2])
monitor = FabricAgingMonitor(schedule, dirpath=sys.argv[1])
strategy = ModelParallelStrategy(
    lambda module, mesh: fully_shard(module, mesh=mesh["data_parallel"]), data_parallel_size=2, tensor_parallel_size=1
)
fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy, callbacks=[monitor])
fabric.launch()
torch.manual_seed(0)
model = fabric.setup_module(torch.nn.Linear(5, 3))
optimizer = fabric.setup_optimizers(torch.optim.SGD(model.parameters(), lr=0.1))
def look():
    return torch.cat([p.full_tensor().detach().flatten() for p in model.parameters()]).double().numpy()
path = [look()]
monitor.start(model, optimizer, fabric=fabric)
for _ in range(3):
    optimizer.zero_grad()
    fabric.backward(model(torch.ones(2, 5)).square().sum())
    optimizer.step()
    path.append(look())
fabric.call("on_train_end")
reference = AgingRecord.from_trajectory(np.array(path), schedule)
assert np.allclose(monitor.record.msd(), reference.msd(), rtol=1e-6)
"""
    )
    launch(script, tmp_path / "out", processes=2)
    assert AgingRecord.load(tmp_path / "out" / "aging_record.npz").n_parameters == {"all": 18}


@pytest.mark.slow
def test_under_ddp_one_rank_measures_and_writes(tmp_path: Path) -> None:
    script = tmp_path / "ddp.py"
    script.write_text(
        """
import sys
from pathlib import Path
import torch
from lightning.fabric import Fabric
from lightning_glassy import FabricAgingMonitor, LogTimeSchedule

torch.set_num_threads(1)
monitor = FabricAgingMonitor(LogTimeSchedule([0, 1], [1, 2]), dirpath=sys.argv[1])
fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", callbacks=[monitor])
fabric.launch()
net = torch.nn.Linear(2, 1)
model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
monitor.start(model, optimizer, fabric=fabric)
for _ in range(3):
    optimizer.zero_grad()
    fabric.backward(model(torch.full((1, 2), float(fabric.global_rank))).sum())
    optimizer.step()
fabric.call("on_train_end")
try:
    told = str(monitor.record.groups)
except RuntimeError:
    told = "nothing"
(Path(sys.argv[1]) / f"rank_{fabric.global_rank}").write_text(told)
"""
    )
    out = tmp_path / "out"
    out.mkdir()
    launch(script, out)  # Lightning starts the second process
    assert (out / "rank_0").read_text() == "('all',)"
    assert (out / "rank_1").read_text() == "nothing"
    record = AgingRecord.load(out / "aging_record.npz")
    assert len(list(out.glob("*.npz"))) == 1
    # The mean gradient of the two ranks is 1/2 for the weights and 1 for the bias.
    assert record.msd()[0] == pytest.approx([0.005, 0.02], rel=1e-5)
    assert record.meta["world_size"] == 2

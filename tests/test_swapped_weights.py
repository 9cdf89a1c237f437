"""Averages of weights, which other callbacks put in the place of the trained weights, are not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging
from torch import Tensor, nn

from lightning_glassy import AgingMonitor, LogTimeEvaluator, LogTimeSchedule
from tests.brute_force import BruteForce
from tests.helpers import SmallNet, data, quiet_trainer

WeightAveraging: Any = getattr(__import__("lightning.pytorch.callbacks", fromlist=["x"]), "WeightAveraging", None)


class Normalised(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        self.net[2] = nn.BatchNorm1d(16)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Losses(Callback):
    """Keeps the loss on all data after each update, and the weights of the module at the end."""

    def __init__(self, loader: Any) -> None:
        self.batch, self.found = loader.dataset[:], dict[int, float]()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        net = pl_module.net
        modes = [part.training for part in net]
        net.eval()
        with torch.no_grad():
            self.found.setdefault(trainer.global_step, float(pl_module._loss(self.batch)))
        for part, mode in zip(net, modes, strict=True):
            part.training = mode


class AtTheEnd(Callback):
    """A callback of a user that puts averages into the module at the end."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for parameter in pl_module.parameters():
            parameter.data.mul_(0.5)


def swa() -> Any:
    return StochasticWeightAveraging(0.05, swa_epoch_start=2)


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("make", "module"),
    [(swa, SmallNet), (swa, Normalised), (WeightAveraging, SmallNet), (AtTheEnd, SmallNet), (Callback, Normalised)],
)
def test_no_measurement_has_the_loss_of_averaged_weights(tmp_path: Path, make: Any, module: Any, first: bool) -> None:
    if make is None:
        pytest.skip("this version of Lightning has no WeightAveraging")
    torch.manual_seed(0)
    loader = data(n=16)
    evaluator, losses = LogTimeEvaluator([0, 5, 9, 17], save=False, summary=False), Losses(loader)
    callbacks = [make(), evaluator] if first else [evaluator, make()]
    quiet_trainer(tmp_path, callbacks=[losses, *callbacks], max_epochs=4, max_steps=-1).fit(module(), loader)
    steps, values = evaluator.record.one_time("train_loss")
    assert values[1:] == pytest.approx([losses.found[step] for step in steps[1:].tolist()], rel=1e-5)
    measured_last = make is Callback or (not first and not (make is swa and module is Normalised))
    assert steps.tolist() == [0, 5, 9, *([16] if measured_last else [])]


def test_a_run_that_another_callback_stops_is_looked_at_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Logging(SmallNet):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.log("level", 1.0)
            return self._loss(batch)

    for make, steps in ((AtTheEnd, [0, 5]), (Callback, [0, 5, 8])):
        evaluator = LogTimeEvaluator([0, 5], save=False, summary=False)
        stop = EarlyStopping("level", patience=1, check_on_train_epoch_end=True, verbose=False)
        quiet_trainer(tmp_path, callbacks=[make(), evaluator, stop], max_steps=-1, max_epochs=9).fit(
            Logging(), data(n=16)
        )
        assert evaluator.record.one_time("train_loss")[0].tolist() == steps
    assert "LogTimeEvaluator: the last step is not measured (RuntimeError: another callback has replaced" in caplog.text


@pytest.mark.parametrize("first", [True, False])
def test_no_pair_compares_trained_weights_with_averaged_ones(tmp_path: Path, first: bool) -> None:
    torch.manual_seed(0)
    monitor = AgingMonitor(LogTimeSchedule([0, 3], [1, 4, 13, 14, 17]), save=False, summary=False)
    callbacks = [swa(), monitor] if first else [monitor, swa()]
    truth = BruteForce()
    quiet_trainer(tmp_path, callbacks=[truth, *callbacks], max_epochs=4, max_steps=-1).fit(Normalised(), data(n=16))
    waiting_times, lags = monitor.record.pairs
    assert np.max(waiting_times + lags) == 16  # the last update
    truth.check(monitor.record, at_least=5)


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("make", "module"), [(swa, SmallNet), (swa, Normalised), (AtTheEnd, SmallNet)])
def test_nothing_goes_on_from_averaged_weights(tmp_path: Path, make: Any, module: Any, first: bool) -> None:
    monitor = AgingMonitor(save=False, summary=False)
    callbacks = [make(), monitor] if first else [monitor, make()]
    trainer, net = quiet_trainer(tmp_path, callbacks=callbacks, max_epochs=4, max_steps=-1), module()
    trainer.fit(net, data(n=16))
    before = monitor.record
    with pytest.warns(UserWarning, match="this checkpoint has no record to go on with"):
        trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert "lightning_glassy" not in torch.load(tmp_path / "a.ckpt", weights_only=False)
    trainer.callbacks.remove(next(c for c in trainer.callbacks if type(c) is type(make())))
    trainer.fit_loop.max_epochs = trainer.current_epoch + 2
    truth = BruteForce()
    trainer.callbacks.append(truth)
    with pytest.warns(UserWarning, match="a new record starts"):
        trainer.fit(net, data(n=16))
    assert monitor.record is not before
    truth.check(monitor.record)

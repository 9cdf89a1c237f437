"""The loss and the metrics in logarithmic time, against a computation by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanAbsoluteError, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from lightning_glassy import LogTimeEvaluator
from tests.helpers import SmallNet, data, quiet_trainer


class Net(SmallNet):
    """A network with a forward method, and with BatchNorm, so that the modes differ."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


class Copies(Callback):
    """Copies the module at every step."""

    def __init__(self) -> None:
        self.steps: dict[int, nn.Module] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.steps[trainer.global_step] = copy.deepcopy(pl_module.net)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.steps[trainer.global_step] = copy.deepcopy(pl_module.net)


def whole(loader: DataLoader[Any]) -> tuple[Tensor, Tensor]:
    return loader.dataset.tensors  # type: ignore[attr-defined,no-any-return]


def evaluator(**options: Any) -> LogTimeEvaluator:
    return LogTimeEvaluator(**({"save": False, "summary": False} | options))


def test_loss_and_accuracy_are_those_of_the_whole_sets(tmp_path: Path) -> None:
    # 50 samples in batches of 4: the last batch is smaller, and counts less.
    train, test, validation = data(n=50), data(n=33), data(n=20, shuffle=False)
    found, copies = evaluator(loaders={"test": test}), Copies()
    quiet_trainer(tmp_path, callbacks=[copies, found]).fit(Net(), train, validation)
    assert set(found.record.one_time_names) == {
        f"{part}_{what}" for part in ("train", "val", "test") for what in ("loss", "accuracy")
    }
    for part, loader in (("train", train), ("test", test), ("val", validation)):
        x, y = whole(loader)
        steps, losses = found.record.one_time(f"{part}_loss")
        _, accuracies = found.record.one_time(f"{part}_accuracy")
        assert steps.tolist() == [0, 1, 2, 3, 5, 7, 10, 15, 22, 32, 46, 60]
        for step, loss, accuracy in zip(steps.tolist(), losses, accuracies, strict=True):
            with torch.no_grad():
                scores = copies.steps[step].eval()(x)
            assert loss == pytest.approx(float(nn.functional.cross_entropy(scores, y)), rel=1e-5)
            assert accuracy == pytest.approx(float((scores.argmax(1) == y).double().mean()))
    assert found.record.meta["LogTimeEvaluator"]["sets"]["train"] == {
        "batches": 13,
        "batches_available": 13,
        "samples": 50,
    }


def test_metrics_of_torchmetrics_take_the_place_of_the_accuracy(tmp_path: Path) -> None:
    train, copies = data(n=50), Copies()
    mine = {"accuracy": MulticlassAccuracy(3, average="micro"), "f1": MulticlassF1Score(3)}
    found = evaluator(metrics=mine, batch_size=7)
    quiet_trainer(tmp_path, callbacks=[copies, found], max_steps=10).fit(Net(), train)
    assert set(found.record.one_time_names) == {"train_loss", "train_accuracy", "train_f1"}
    x, y = whole(train)
    for name, metric in mine.items():
        for step, value in zip(*found.record.one_time(f"train_{name}"), strict=True):
            with torch.no_grad():
                scores = copies.steps[int(step)].eval()(x)
            assert value == pytest.approx(float(metric(scores, y)), rel=1e-5)


@pytest.mark.parametrize("metrics", [MeanAbsoluteError(), MetricCollection([MeanAbsoluteError()])])
def test_other_batches_and_losses_are_taken_by_functions(tmp_path: Path, metrics: Any) -> None:
    class Keyed(LightningModule):
        """A module with dictionaries as batches. It optimises by hand."""

        automatic_optimization = False

        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss(self, batch))
            optimizer.step()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.25)

    def loss(module: Any, batch: Any) -> Tensor:
        return (module.w - batch["y"]).square().mean()

    found = evaluator(
        schedule=1,
        loss=loss,
        metrics=metrics,
        predict=lambda module, batch: (module.w.expand_as(batch["y"]), batch["y"]),
    )
    loader = DataLoader([{"y": 1.0}, {"y": 3.0}], batch_size=2)  # type: ignore[arg-type]
    quiet_trainer(tmp_path, callbacks=[found], max_steps=1).fit(Keyed(), loader)
    # w moves from 0 half of the way to the mean, 2.
    assert found.record.one_time("train_loss")[1].tolist() == [5, 2]
    assert found.record.one_time("train_MeanAbsoluteError")[1].tolist() == [2, 1]


def test_the_mode_is_that_of_evaluation_or_of_the_training(tmp_path: Path) -> None:
    seen: dict[str, set[bool]] = {"eval": set(), "train": set()}
    for mode, modes in seen.items():

        def loss(module: Any, batch: Any, modes: set[bool] = modes) -> Tensor:
            assert not torch.is_grad_enabled()
            modes.add(module.net[3].training)
            return module._loss(batch)  # type: ignore[no-any-return]

        quiet_trainer(tmp_path, callbacks=[evaluator(mode=mode, loss=loss)], max_steps=2).fit(Net(), data())
    assert seen == {"eval": {False}, "train": {True}}


def test_a_capped_number_of_batches_is_a_random_sample_and_recorded(tmp_path: Path) -> None:
    x = torch.arange(100.0).repeat_interleave(8).reshape(100, 8)  # sorted, as data on a disk may be
    loader = DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(100, dtype=torch.int64)), batch_size=5)
    means: list[float] = []

    def loss(module: Any, batch: Any) -> Tensor:
        means.append(float(batch[0].mean()))
        return torch.zeros(())

    found = evaluator(max_batches=8, loss=loss)
    quiet_trainer(tmp_path, callbacks=[found], max_steps=1).fit(SmallNet(), loader)
    assert means[:8] == means[8:]  # the same batches at each step
    assert sum(means[:8]) / 8 == pytest.approx(49.5, abs=4 * 28.9 / 40**0.5)
    assert found.record.meta["LogTimeEvaluator"]["sets"]["train"] == {
        "batches": 8,
        "batches_available": 20,
        "samples": 40,
    }


def test_without_classes_or_a_forward_there_is_the_loss_alone(tmp_path: Path) -> None:
    for module in (SmallNet(), Net()):
        found = evaluator(metrics=None if isinstance(module, Net) else "auto")
        quiet_trainer(tmp_path, callbacks=[found], max_steps=1).fit(module, data())
        assert found.record.one_time_names == ("train_loss",)


def test_a_metric_that_is_no_number_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = evaluator(metrics={"confusion": MulticlassConfusionMatrix(3)})
    trainer = quiet_trainer(tmp_path, callbacks=[found], max_steps=3)
    trainer.fit(Net(), data())
    assert trainer.global_step == 3
    assert "metrics: 'confusion' is not a single number" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loaders": [1]}, r"loaders=\[1\] is not a mapping"),
        ({"metrics": "accuracy"}, "metrics='accuracy' is not a Metric"),
        ({"predict": 1}, "predict=1 is not a function"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        LogTimeEvaluator(**options)

"""Callbacks that run the network do not change the training, and never end it."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torchmetrics.classification import MulticlassAccuracy

from lightning_glassy import AgingMonitor, AgingRecord, GradientNoiseMonitor, LogTimeEvaluator, LogTimeSchedule, Steps
from lightning_glassy.callbacks.batches import Batches
from lightning_glassy.callbacks.measurement import Measurement
from lightning_glassy.callbacks.undisturbed import undisturbed
from lightning_glassy.cli import main
from lightning_glassy.replicas import ReplicaEnsemble, ReplicaTraining, per_replica, replica_loader
from lightning_glassy.replicas.batches import ReplicaBatchSampler
from lightning_glassy.report import answers
from tests.helpers import SmallNet, data, quiet_trainer

# These are Lightning's warnings about loaders without a state.
pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode"),
    pytest.mark.filterwarnings("ignore:AgingMonitor. training starts at step"),
]


class Noisy(LightningModule):
    """A module with all that a measurement could disturb: dropout, BatchNorm, metric, attributes, random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3), nn.Dropout(0.1)
        )
        self.net[3].eval()  # this part is in another mode than the rest
        self.accuracy = MulticlassAccuracy(3)
        self.register_buffer("seen", torch.zeros(3))
        self.register_buffer("wide", torch.zeros(1).expand(4), persistent=False)
        self.average, self.calls, self.losses = torch.zeros(()), 0, []
        self.generator = torch.Generator().manual_seed(3)
        self.rng, self.dice = np.random.default_rng(3), random.Random(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        x = x + 0.01 * torch.randn(x.shape, generator=self.generator) + 0.01 * self.rng.normal()
        x = x + 0.01 * self.dice.random() + 0.01 * random.random() + 0.01 * np.random.rand()  # noqa: NPY002
        scores = self(x).float()
        loss = nn.functional.cross_entropy(scores, y) + 0.01 * self.average + 0.001 * self.calls
        self.accuracy(scores, y)
        self.seen += torch.bincount(y, minlength=3)
        self.average.mul_(0.9).add_(loss.detach(), alpha=0.1)
        self.calls += 1
        self.losses.append(float(loss.detach()))
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log_dict({"accuracy": self.accuracy}, on_step=True, on_epoch=True)
        self.logger and self.logger.log_metrics({"by_hand": float(loss.detach())}, step=self.global_step)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]).float(), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Heard(Logger):
    """Keeps all that the training logs."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[tuple[int | None, dict[str, float]]] = []

    name = version = "heard"

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics.append((step, dict(metrics)))


def both(**options: Any) -> list[Callback]:
    settings = {"save": False, "summary": False} | options
    return [LogTimeEvaluator(**settings), GradientNoiseMonitor(**settings)]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_is_the_same_to_the_bit(tmp_path: Path, precision: Any, accumulate: int) -> None:
    def train(callbacks: list[Callback]) -> dict[str, Any]:
        seed_everything(4)
        module, heard = Noisy(), Heard()
        trainer = quiet_trainer(
            tmp_path,
            callbacks=callbacks,
            precision=precision,
            logger=heard,
            accumulate_grad_batches=accumulate,
            num_sanity_val_steps=1,
        )
        trainer.fit(module, data(), data(shuffle=False))
        return {
            "weights and buffers": module.state_dict(),
            "momenta": [state["momentum_buffer"] for state in trainer.optimizers[0].state.values()],
            "modes": [part.training for part in module.modules()],
            "gradients": [parameter.grad for parameter in module.parameters()],
            "attributes": [module.average, module.calls, module.losses],
            "own random numbers": [
                torch.rand(3, generator=module.generator),
                module.rng.random(),
                module.dice.random(),
            ],
            "random numbers": [torch.rand(3), np.random.rand(), random.random()],  # noqa: NPY002
            "logged": [
                (step, found)
                for step, metrics in heard.metrics
                if (found := {k: v for k, v in metrics.items() if "_series/" not in k})
            ],
            "progress": {key: float(value) for key, value in trainer.callback_metrics.items()},
        }

    without = train([])
    callbacks = [*both(), *both(name="other", mode="eval")]
    assert_same(train(callbacks), without)
    assert callbacks[0].record.one_time_names[:2] == ("train_loss", "train_accuracy")  # type: ignore[attr-defined]
    assert callbacks[3].record.one_time("gradient_noise")[1].min() > 0  # type: ignore[attr-defined]


def weights_after(tmp_path: Path, callbacks: list[Callback], loader: Any = None, **options: Any) -> list[Tensor]:
    torch.manual_seed(2)
    module = SmallNet()
    quiet_trainer(tmp_path, callbacks=callbacks, max_steps=12, **options).fit(module, loader or data())
    return [parameter.detach().cpu() for parameter in module.parameters()]


def test_workers_of_the_training_are_left_alone(tmp_path: Path) -> None:
    def loader() -> DataLoader[Any]:
        return DataLoader(Jittered(), batch_size=4, shuffle=True, num_workers=1, persistent_workers=True)

    callbacks = both(schedule=2)
    assert_same(weights_after(tmp_path, callbacks, loader()), weights_after(tmp_path, [], loader()))
    assert len(callbacks[0].record.one_time("train_loss")[0]) == 5  # type: ignore[attr-defined]


class Jittered(TensorDataset):
    """Draws random numbers for each sample, as augmentations do."""

    def __init__(self) -> None:
        super().__init__(*data().dataset.tensors)  # type: ignore[attr-defined]

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn(8) + 0.1 * random.random(), y


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_training_on_a_gpu_is_the_same_to_the_bit(tmp_path: Path, precision: Any) -> None:
    options: dict[str, Any] = {"accelerator": "gpu", "precision": precision}
    callbacks = both(schedule=2)
    assert_same(weights_after(tmp_path, callbacks, **options), weights_after(tmp_path, [], **options))
    assert len(callbacks[0].record.one_time("train_loss")[0]) == 5  # type: ignore[attr-defined]


def assert_same(one: Any, other: Any, where: str = "") -> None:
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where} {key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where} {i}")
    elif isinstance(one, Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def test_everything_is_put_back_after_a_failure_too(tmp_path: Path) -> None:
    module = Noisy()
    trainer = quiet_trainer(tmp_path, max_steps=1)
    trainer.fit(module, data())
    weight = module.net[0].weight
    weight.grad = gradient = torch.ones_like(weight)
    frozen = module.net[4].bias.requires_grad_(False)
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), undisturbed(trainer, module, seed=1):  # noqa: PT012
        assert weight.grad is None
        module.eval()
        frozen.requires_grad_(True)
        module.new, module.calls = 1, 100
        module.losses.clear()
        module.seen += 1
        torch.rand(1)
        module.log("anything", 1.0)
        raise ZeroDivisionError
    assert weight.grad is gradient
    assert not frozen.requires_grad
    assert_same(module.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert (module.calls, len(module.losses), hasattr(module, "new")) == (1, 1, False)
    assert module.training
    assert not module.net[3].training
    assert "log" not in vars(module)


def test_a_checkpoint_in_the_middle_of_a_measurement_is_that_of_before(tmp_path: Path) -> None:
    before: dict[str, Tensor] = {}

    def loss(module: Any, batch: Any) -> Tensor:
        """Save a checkpoint when BatchNorm has seen some batches of the measurement, as the handler of a signal may."""
        found = nn.functional.cross_entropy(module(batch[0]), batch[1])
        if module.global_step == 5 and module.trainer.callbacks[1]._buffers:
            assert not torch.equal(module.net[1].running_mean, before["net.1.running_mean"])
            module.trainer.save_checkpoint(tmp_path / "middle.ckpt")
        return found

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            if trainer.global_step == 5:
                before.update(copy.deepcopy(pl_module.state_dict()))

    probe = LogTimeEvaluator(mode="train", loss=loss, save=False, summary=False)
    quiet_trainer(tmp_path, callbacks=[Look(), probe], max_steps=8).fit(Noisy(), data())
    checkpoint = torch.load(tmp_path / "middle.ckpt", weights_only=True)
    assert_same(dict(checkpoint["state_dict"]), dict(before))
    resumed = LogTimeEvaluator(mode="train", save=False, summary=False)
    trainer = quiet_trainer(tmp_path, callbacks=[resumed], max_steps=8)
    trainer.fit(Noisy(), data(), ckpt_path=tmp_path / "middle.ckpt")
    assert resumed.record.one_time("train_loss")[0].tolist() == [0, 1, 2, 3, 5, 7, 8]


def test_one_record_holds_the_curves_and_the_series(tmp_path: Path) -> None:
    for order in (1, -1):  # either order of callbacks
        monitor, probes, heard = AgingMonitor(groups="layer", summary=False), both(), Heard()
        trainer = quiet_trainer(tmp_path / str(order), callbacks=[*probes, monitor][::order], logger=heard)
        trainer.fit(SmallNet(), data())
        assert probes[0].record is probes[1].record is monitor.record  # type: ignore[attr-defined]
        steps = (*Steps.logspaced(6).upto(59), 60)
        for name in ("train_loss", "gradient_noise", "gradient_noise/net.0", "noise_temperature"):
            assert monitor.record.one_time(name)[0].tolist() == list(steps)
        # The file at the end has all of it, and the time of the measurements.
        (path,) = (tmp_path / str(order)).rglob("aging_record.npz")
        there = AgingRecord.load(path)
        assert there == monitor.record
        for who in ("LogTimeEvaluator", "GradientNoiseMonitor"):
            assert there.meta[who]["measurements"] == len(steps)
            assert 0 < there.meta[who]["fraction_of_training"] < 1
        # The noise is known at all waiting times, in each group.
        normalised, d = there.msd("net.0", normalise="noise"), there.one_time("gradient_noise/net.0")
        noise = dict(zip(d[0].tolist(), d[1].tolist(), strict=True))
        for i, waiting_time in enumerate(there.waiting_times.tolist()):
            assert normalised[i] == pytest.approx(there.msd("net.0")[i] / noise[waiting_time], nan_ok=True)
        logged = [(at, m["glassy_series/train_loss"]) for at, m in heard.metrics if "glassy_series/train_loss" in m]
        assert logged == list(zip(*(part.tolist() for part in there.one_time("train_loss")), strict=True))


def test_without_a_monitor_there_is_a_record_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probes = both(save=True, summary=True)
    trainer = quiet_trainer(tmp_path, callbacks=probes, logger=[CSVLogger(tmp_path), TensorBoardLogger(tmp_path)])
    trainer.fit(SmallNet(), data())
    printed = capsys.readouterr().out
    assert "LogTimeEvaluator: 12 measurements took " in printed
    assert "GradientNoiseMonitor: 12 measurements took " in printed
    (path,) = tmp_path.rglob("aging_record.npz")
    record = AgingRecord.load(path)
    assert record == probes[0].record == probes[1].record  # type: ignore[attr-defined]
    assert (len(record), record.meta["module"], record.n_parameters) == (0, "SmallNet", {"all": 195})
    assert record.gradient_noise([0, 46]).min() > 0
    # Every command that shows records shows this record.
    assert main(["report", str(path)]) == 0
    assert "'train_loss': 12 values" in capsys.readouterr().out
    assert main(["report", str(path), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["one_time"]["gradient_noise"]["steps"]) == 12
    assert answers.describe(record)["last_step"] == 60
    assert len(answers.series(record)["one_time"]["train_loss"]["steps"]) == 12


def test_steps_are_those_of_the_schedule_or_the_first_after_them(tmp_path: Path) -> None:
    class Both(SmallNet):
        """A module with two optimisers, so that the step jumps by two."""

        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self._loss(batch))
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.net[0], self.net[3])]

    def steps(module: LightningModule, schedule: Any, **options: Any) -> list[int]:
        probe = LogTimeEvaluator(schedule, save=False, summary=False, loss=SmallNet._loss)
        quiet_trainer(tmp_path, callbacks=[probe], **options).fit(module, data())
        return probe.record.one_time("train_loss")[0].tolist()

    every = LogTimeSchedule([0, 1, 4, 5, 9], [1])
    listed = [0, 1, 4, 5, 9]
    for same in (every, Steps(listed), listed, np.array(listed)):
        assert steps(SmallNet(), same, max_steps=12) == [*listed, 12]
    assert steps(SmallNet(), every, max_steps=9) == listed
    assert steps(SmallNet(), every, max_steps=12, accumulate_grad_batches=4) == [*listed, 12]
    assert steps(Both(), every, max_steps=12) == [0, 2, 4, 6, 10, 12]
    assert steps(SmallNet(), every.until(5), max_steps=12) == [0, 1, 4, 12]
    for same in (1, np.int64(1), Steps.logspaced(1)):
        assert steps(SmallNet(), same, max_steps=12) == [0, 1, 10, 12]
    assert steps(SmallNet(), 1, max_steps=-1, max_epochs=2) == [0, 1, 10, 24]
    assert steps(SmallNet(), 1, fast_dev_run=3) == [0, 1, 3]
    assert steps(SmallNet(), [2], max_steps=12) == [2, 12]


class End(Callback):
    """Saves a checkpoint at a step, and ends the training there by an exception."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise ZeroDivisionError


def fit_whole_batches(place: Path, alone: bool, *more: Callback, **options: Any) -> AgingRecord:
    """Train on one batch with all data. Then the order of the samples, which no checkpoint has, does not matter."""
    torch.manual_seed(1)
    module = SmallNet()
    module.net[2] = nn.Identity()
    # A checkpoint has no random numbers either. A measurement draws them from its step.
    probes = both(save=True, batch_size=8, loss=lambda module, batch: module._loss(batch) * torch.rand(()))
    monitors = [] if alone else [AgingMonitor(summary=False)]
    trainer = quiet_trainer(place, callbacks=[*more, *probes, *monitors], max_steps=40)
    with contextlib.suppress(ZeroDivisionError):
        trainer.fit(module, data(batch_size=48, shuffle=False), **options)
    return probes[0].record  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("alone", [True, False])
def test_series_go_on_in_a_resumed_training(tmp_path: Path, alone: bool) -> None:
    whole = fit_whole_batches(tmp_path / "whole", alone)
    for step in (7, 8):  # at 7 a measurement is due after the checkpoint, and at 8 none is due
        path, place = tmp_path / f"{step}.ckpt", tmp_path / f"again_{step}"
        fit_whole_batches(place, alone, End(step, path))
        torch.load(path, weights_only=True)  # nothing but tensors and plain values
        resumed = fit_whole_batches(place, alone, ckpt_path=path)
        assert resumed.one_time_names == whole.one_time_names
        for name in whole.one_time_names:
            assert np.array_equal(resumed.one_time(name), whole.one_time(name)), name
        assert resumed.meta["GradientNoiseMonitor"]["measurements"] == 11
        # The resumed training continues its own file.
        (file,) = place.rglob("aging_record*.npz")
        assert AgingRecord.load(file) == resumed


def test_a_second_fit_goes_on_and_another_training_starts_afresh(tmp_path: Path) -> None:
    probes, module = both(), SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=probes, max_steps=-1, max_epochs=1)
    trainer.fit(module, data())
    trainer.fit_loop.max_epochs = 3  # of 12 steps each
    trainer.fit(module, data())
    for probe in probes:
        assert probe.record.one_time_names  # type: ignore[attr-defined]
        for name in probe.record.one_time_names:  # type: ignore[attr-defined]
            assert probe.record.one_time(name)[0].tolist() == [0, 1, 2, 3, 5, 7, 10, 12, 15, 22, 32, 36]  # type: ignore[attr-defined]
    first = probes[0].record  # type: ignore[attr-defined]
    quiet_trainer(tmp_path, callbacks=probes, max_steps=4).fit(SmallNet(), data())
    assert probes[0].record is not first  # type: ignore[attr-defined]
    assert probes[1].record.one_time("gradient_noise")[0].tolist() == [0, 1, 2, 3, 4]  # type: ignore[attr-defined]


@pytest.mark.needs("jsonargparse")
@pytest.mark.filterwarnings("ignore")  # jsonargparse warns about names that not all versions have
def test_callbacks_can_be_configured_from_a_file() -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_argument("--callbacks", type=list[Callback])
    wanted = [
        {
            "class_path": "lightning_glassy.LogTimeEvaluator",
            "init_args": {
                "schedule": 4,
                "metrics": {
                    "accuracy": {
                        "class_path": "torchmetrics.classification.MulticlassAccuracy",
                        "init_args": {"num_classes": 3},
                    }
                },
            },
        },
        {
            "class_path": "lightning_glassy.GradientNoiseMonitor",
            "init_args": {
                "schedule": {
                    "class_path": "lightning_glassy.LogTimeSchedule",
                    "init_args": {"waiting_times": [0, 5], "lags": [1]},
                },
                "groups": {"first": "net.0.*"},
                "max_batches": None,
            },
        },
    ]
    parsed = parser.instantiate_classes(parser.parse_args(["--callbacks", json.dumps(wanted)])).callbacks
    assert parsed[0].schedule == Steps.logspaced(4)
    assert parsed[1].schedule == Steps([0, 5])


def test_callbacks_can_be_pickled_and_copied(tmp_path: Path) -> None:
    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            for probe in trainer.callbacks[:2]:  # type: ignore[attr-defined]
                assert copy.deepcopy(probe).schedule == pickle.loads(pickle.dumps(probe)).schedule

    probes = both()
    quiet_trainer(tmp_path, callbacks=[*probes, Look()], max_steps=3).fit(SmallNet(), data())
    again = pickle.loads(pickle.dumps(probes[0]))
    assert again.record == probes[0].record  # type: ignore[attr-defined]
    quiet_trainer(tmp_path, callbacks=[again], max_steps=3).fit(SmallNet(), data())
    assert again.record.one_time("train_loss")[0].tolist() == [0, 1, 2, 3]


def test_a_failure_costs_a_warning_and_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Fragile(SmallNet):
        broken = 0

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if torch.is_inference_mode_enabled() or self.broken:
                raise RuntimeError("it does not work today")
            return super().training_step(batch, batch_idx)

    class Break(Callback):
        """Breaks an attribute that the training does not use, right before the measurement."""

        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            pl_module.broken = 0

        def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            pl_module.broken = 0

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            pl_module.broken = trainer.global_step in (5, 7)

    class Deaf(Heard):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            if any(key.startswith("glassy_") for key in metrics):
                raise ConnectionError("no network")

    probes = both()
    trainer = quiet_trainer(tmp_path, callbacks=[Break(), *probes], logger=Deaf())
    trainer.fit(Fragile(), data())
    assert trainer.global_step == 60
    for probe, name in zip(probes, ("train_loss", "gradient_noise"), strict=True):
        assert probe.record.one_time(name)[0].tolist() == [0, 1, 2, 3, 10, 15, 22, 32, 46, 60]  # type: ignore[attr-defined]
    told = [record.message for record in caplog.records if "training goes on" in record.message]
    assert sum("nothing is measured at step 5 (RuntimeError: it does not work today)" in line for line in told) == 2
    assert sum("no network" in line for line in told) == 2  # one each


class NoLoss(SmallNet):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"not_the_loss": super().training_step(batch, batch_idx)}


class Manual(SmallNet):
    automatic_optimization = False


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(data().dataset)  # type: ignore[call-overload]


class WithReplicas(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        self.net = ReplicaEnsemble(nn.Sequential(nn.Linear(8, 3)), 2)  # type: ignore[assignment]


@pytest.mark.parametrize("i", [0, 1])
@pytest.mark.parametrize(
    ("module", "loader", "message"),
    [
        (NoLoss, data(), r"training_step has returned None under 'loss' .* give \w+\(loss=...\)"),
        (Manual, data(), r"Manual optimises manually.*give \w+\(loss=...\)"),
        (SmallNet, DataLoader(Endless(), batch_size=4), "reads a Endless, which has no length"),
        (SmallNet, [(torch.zeros(4, 8), torch.zeros(4, dtype=torch.int64))] * 8, "is a (list|tuple|Tensor)"),
        (WithReplicas, data(), r"give \w+\(loss=...\) a function .* that returns the loss of each, \[n_replica\]"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_training(
    tmp_path: Path, i: int, module: Any, loader: Any, message: str
) -> None:
    trainer = quiet_trainer(tmp_path, callbacks=[both()[i]], max_steps=3)
    with pytest.raises(MisconfigurationException, match=message):
        trainer.fit(module(), loader)
    assert trainer.global_step == 0


def losses(module: Any, batch: Any) -> Tensor:
    """Return the loss of each replica."""
    return per_replica(nn.functional.cross_entropy)(module(batch[0]), batch[1])


class Ensemble(ReplicaTraining, LightningModule):
    """Replicas with their own minibatches, or a lone replica."""

    def __init__(self, n_replica: int = 3, seeds: list[int] | None = None) -> None:
        super().__init__()
        make = lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))  # noqa: E731
        self.nets = ReplicaEnsemble(make, n_replica, seeds=seeds)

    def forward(self, x: Tensor, shared: bool = True) -> Tensor:
        return self.nets(x, shared=shared)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return per_replica(nn.functional.cross_entropy, shared=False)(self(batch[0], shared=False), batch[1]).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    configure_optimizers = SmallNet.configure_optimizers
    lr = 0.1


def trained_replicas(path: Path, seeds: list[int], **options: Any) -> tuple[AgingRecord, dict[str, Tensor]]:
    """Train replicas, and return their record, if they are measured, and their weights."""
    module, monitor = Ensemble(len(seeds), seeds), AgingMonitor(save=False, summary=False)
    loader = replica_loader(data().dataset, 4, seeds)
    measuring = both(**options) if options else []
    trainer = quiet_trainer(path, callbacks=[monitor, *measuring], max_steps=20)
    trainer.fit(module, loader, DataLoader(data(24).dataset, batch_size=10))
    return monitor.record, module.state_dict()


def test_of_replicas_it_is_the_mean_of_what_each_alone_has_with_its_error(tmp_path: Path) -> None:
    seeds = [5, 2, 9]
    record, weights = trained_replicas(tmp_path, seeds, loss=losses)
    assert_same(weights, trained_replicas(tmp_path, seeds)[1])  # no effect on the training
    alone = [trained_replicas(tmp_path, [seed], loss=losses)[0] for seed in seeds]
    assert {"train_loss_error", "val_accuracy_error"} <= set(record.one_time_names)
    assert "train_loss_error" not in alone[0].one_time_names
    for name in ("train_loss", "train_accuracy", "val_loss", "gradient_noise", "gradient_norm2", "noise_temperature"):
        steps, values = record.one_time(name)
        lone = np.array([each.one_time(name)[1] for each in alone])
        assert steps.tolist() == alone[0].one_time(name)[0].tolist()
        assert values == pytest.approx(lone.mean(axis=0), rel=1e-4)
        if name in ("train_loss", "val_loss"):
            assert record.one_time(f"{name}_error")[1] == pytest.approx(lone.std(axis=0, ddof=1) / 3**0.5, rel=1e-3)
    assert record.n_parameters["all"] == alone[0].n_parameters["all"] == 195
    assert record.msd(normalise="noise").shape[0] == 3


def test_the_probes_alone_count_the_parameters_of_one_replica(tmp_path: Path) -> None:
    noise = GradientNoiseMonitor(loss=losses, save=False, summary=False)
    quiet_trainer(tmp_path, callbacks=[noise], max_steps=3).fit(Ensemble(), replica_loader(data().dataset, 4, range(3)))
    assert noise.record.n_parameters == {"all": 195}


class TwoSizes(Ensemble):
    def __init__(self) -> None:
        super().__init__()
        self.more = ReplicaEnsemble(nn.Linear(2, 2), 2)


@pytest.mark.parametrize(
    ("module", "callback", "message"),
    [
        (TwoSizes, LogTimeEvaluator(loss=losses), r"cannot measure ensembles of \[2, 3\] replicas"),
        (Ensemble, LogTimeEvaluator(loss=lambda *_: torch.zeros(())), r"instead of the losses of the replicas.*\[3\]"),
        (Ensemble, GradientNoiseMonitor(loss=lambda *_: torch.zeros(4)), r"shape \(4,\) instead of the losses"),
        (
            Ensemble,
            LogTimeEvaluator(loss=losses, metrics=MulticlassAccuracy(3)),
            r"metrics=\['MulticlassAccuracy'\] cannot take replicas",
        ),
    ],
)
def test_what_is_wrong_with_replicas_is_said(tmp_path: Path, module: Any, callback: Callback, message: str) -> None:
    trainer = quiet_trainer(tmp_path, callbacks=[callback], max_steps=3)
    with pytest.raises(MisconfigurationException, match=message):
        trainer.fit(module(), replica_loader(data().dataset, 4, range(3)))


@pytest.mark.parametrize("make", [LogTimeEvaluator, GradientNoiseMonitor])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"schedule": "often"}, TypeError, "schedule='often' is not a LogTimeSchedule"),
        ({"schedule": 0}, ValueError, "schedule=0 points per decade"),
        ({"mode": "test"}, ValueError, "mode='test'"),
        ({"max_batches": 0}, ValueError, "max_batches=0 must be a positive integer"),
        ({"batch_size": 1.5}, ValueError, "batch_size=1.5 must be a positive integer"),
        ({"loss": 1}, TypeError, "loss=1 is not a function"),
        ({"name": "a/b"}, ValueError, "name='a/b'"),
    ],
)
def test_bad_arguments_are_named(make: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(**options)


def test_two_of_a_kind_need_two_names(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="2 LogTimeEvaluator called 'glassy': give each another name"):
        quiet_trainer(tmp_path, callbacks=[LogTimeEvaluator(), LogTimeEvaluator()]).fit(SmallNet(), data())


# ---------------------------------------------------------------------- the data


class Samples(TensorDataset):
    """A data set of the numbers 0 to n - 1."""

    def __init__(self, n: int) -> None:
        super().__init__(torch.arange(n))


def indices(loader: Any, **options: Any) -> list[Any]:
    """Return the samples that are read, batch by batch."""
    module = SmallNet()
    trainer = quiet_trainer(Path(), max_steps=1)
    trainer.strategy.connect(module)
    found = Batches(loader, "the loader", **options)
    both_times = [[(batch, size) for batch, size in found.of(trainer, module)] for _ in range(2)]
    assert_same(*both_times)  # the same samples at each reading
    return both_times[0]


def flat(batches: list[Any]) -> list[list[int]]:
    return [batch[0].tolist() for batch, _ in batches]


def test_batches_are_those_of_the_data_set_in_an_order_of_their_own() -> None:
    dataset = Samples(10)
    shuffled, in_order = DataLoader(dataset, batch_size=4, shuffle=True), DataLoader(dataset, batch_size=4)
    assert flat(indices(in_order)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [size for _, size in indices(in_order)] == [4, 4, 2]
    assert flat(indices(in_order, whole=True)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert flat(indices(in_order, max_batches=1)) == [[0, 1, 2, 3]]
    mixed = flat(indices(shuffled))
    assert sorted(i for batch in mixed for i in batch) == list(range(10))
    assert mixed != flat(indices(in_order))
    assert flat(indices(in_order, shuffled=True)) == mixed
    assert flat(indices(shuffled, batch_size=5, shuffled=False)) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


@pytest.mark.parametrize("equal", [False, True])
def test_processes_share_the_batches(equal: bool) -> None:
    loader = DataLoader(Samples(10), batch_size=2)
    parts = [flat(indices(loader, rank=rank, world_size=2, equal=equal)) for rank in range(2)]
    assert parts[0] == [[0, 1], [4, 5], *([] if equal else [[8, 9]])]
    assert parts[1] == [[2, 3], [6, 7]]
    found = Batches(loader, "the loader", rank=1, world_size=2, equal=equal)
    assert (found.available, found.used, found.samples) == (5, 4 if equal else 5, 8 if equal else 10)


class Listed(Sampler[int]):
    """Samples of a list, in the order of the list."""

    def __init__(self, samples: list[int]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Any:
        yield from self.samples


class Mixed(Listed):
    """Samples of a list in random order. The random numbers go on from epoch to epoch."""

    def __init__(self, samples: list[int]) -> None:
        super().__init__(samples)
        self.rng, self.epochs = np.random.default_rng(3), 0

    def __iter__(self) -> Any:
        self.epochs += 1
        yield from self.rng.permutation(self.samples)


class Pairs(Mixed):
    """A sampler of batches of two."""

    def __len__(self) -> int:
        return len(self.samples) // 2

    def __iter__(self) -> Any:
        order = list(super().__iter__())
        yield from ([int(a), int(b)] for a, b in zip(order[::2], order[1::2], strict=True))


def test_samples_are_those_that_the_sampler_draws() -> None:
    def read(sampler: Any, **options: Any) -> list[list[int]]:
        return flat(indices(DataLoader(Samples(10), batch_size=2, sampler=sampler), **options))

    subset = [7, 1, 5, 3]
    assert read(SubsetRandomSampler(subset), shuffled=False) == [[7, 1], [5, 3]]
    assert sorted(itertools.chain(*read(SubsetRandomSampler(subset)))) == sorted(subset)
    weights = [0.0, 1.0] * 5
    drawn = list(itertools.chain(*read(WeightedRandomSampler(weights, 1000))))
    assert len(drawn) == 1000
    assert np.bincount(drawn, minlength=10) == pytest.approx(np.tile([0, 200], 5), abs=4 * 13)
    for whole_set in (RandomSampler(range(10), replacement=True, num_samples=4), RandomSampler(range(10))):
        assert read(whole_set) == read(RandomSampler(Samples(10)))
    assert read(Listed(subset)) == read(subset) == [[7, 1], [5, 3]]
    assert sorted(itertools.chain(*read(Mixed(subset)))) == sorted(subset)
    pairs = indices(DataLoader(Samples(10), batch_sampler=Pairs(subset)), shuffled=False)
    assert sorted(itertools.chain(*flat(pairs))) == sorted(subset)
    assert [size for _, size in pairs] == [2, 2]
    assert [size for _, size in indices(DataLoader(Samples(10), batch_sampler=Pairs(subset)), batch_size=3)] == [3, 1]


def test_samplers_of_several_processes_are_understood() -> None:
    def read(sampler: Any, **options: Any) -> list[list[int]]:
        options = {"processes": 2, "rank": 1, "world_size": 2} | options
        return flat(indices(DataLoader(Samples(10), batch_size=2, sampler=sampler), **options))

    whole_set = DistributedSampler(Samples(10), num_replicas=2, rank=1, shuffle=False)
    assert read(whole_set) == [[2, 3], [6, 7]]
    assert read(whole_set, limits=[1]) == [[2, 3]]  # a limit for each process
    for inner in (SubsetRandomSampler([7, 1, 5, 3]), Mixed([7, 1, 5, 3])):
        wrapped = DistributedSamplerWrapper(inner, num_replicas=2, rank=1)
        both_parts = [read(wrapped, rank=rank)[0] for rank in range(2)]
        assert sorted(itertools.chain(*both_parts)) == [1, 3, 5, 7]
    for unknown in (SubsetRandomSampler([7, 1, 5, 3]), Mixed([7, 1, 5, 3])):
        with pytest.raises(MisconfigurationException, match=r"may draw other samples .* name a DataLoader of the same"):
            read(unknown)
        assert len(read(unknown, processes=1)) == 1  # the user gave this loader


@pytest.mark.parametrize("n_replica", [None, 3])
def test_passes_over_the_data_in_one_long_epoch_have_each_sample_once(n_replica: int | None) -> None:
    class Passes(Sampler[Any]):
        """A sampler with one long epoch of batches, for each replica or for a lone run."""

        batch_size = 4

        def __len__(self) -> int:
            return 100

        def __iter__(self) -> Iterator[Any]:
            batches = ReplicaBatchSampler(10, 4, 0 if n_replica is None else range(n_replica))
            return itertools.islice(itertools.chain.from_iterable(itertools.repeat(batches)), 100)

    read: list[int] = []

    class Whole(Dataset[Any]):
        def __len__(self) -> int:
            return 10

        def __getitem__(self, indices: list[int]) -> Tensor:
            read.extend(indices)
            return torch.tensor(indices)

    batches = Batches(DataLoader(Whole(), sampler=Passes(), batch_size=None), "the data")
    assert [len(batch) for batch in batches._loader] == [4, 4, 2]
    assert sorted(read) == list(range(10))


def test_samples_that_an_epoch_repeats_count_as_often() -> None:
    order = [*range(6), 5, 5, 5]
    loader = DataLoader(TensorDataset(torch.arange(6.0)), batch_size=4, sampler=ListSampler(order))
    read = [int(x) for (batch,) in Batches(loader, "the data")._loader for x in batch]
    assert sorted(read) == sorted(order)


class ListSampler(Sampler[int]):
    def __init__(self, order: list[int]) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)


def test_a_loader_that_drops_its_last_batch_in_a_fixed_order_loses_its_samples() -> None:
    data_set = TensorDataset(torch.arange(10.0))
    for shuffle, n in ((False, 8), (True, 10)):
        loader = DataLoader(data_set, batch_size=4, drop_last=True, shuffle=shuffle)
        assert Batches(loader, "the data").samples == n


def test_a_loader_with_batches_of_its_own_is_refused() -> None:
    class Doubled(DataLoader[Any]):
        def __iter__(self) -> Any:
            return (2 * batch for batch in super().__iter__())

    with pytest.raises(MisconfigurationException, match="Doubled, which makes its batches in a way of its own"):
        Batches(Doubled(TensorDataset(torch.arange(10.0))), "the data")


def test_a_sampler_that_cannot_be_copied_is_refused() -> None:
    class Holding(Mixed):
        def __init__(self, samples: list[int]) -> None:
            super().__init__(samples)
            self.lines = iter(line for line in "abc")

    class Endless(Listed):
        __len__ = None  # type: ignore[assignment]

    for sampler in (Holding([1, 2]), Endless([1, 2])):
        with pytest.raises(MisconfigurationException, match=rf"a copy of the {type(sampler).__name__} cannot draw"):
            indices(DataLoader(Samples(10), batch_size=2, sampler=sampler))


@pytest.mark.parametrize("make", [Mixed, SubsetRandomSampler, Listed])
def test_losses_are_those_of_a_split_by_samplers(tmp_path: Path, make: Any) -> None:
    def train(*callbacks: Callback) -> list[Tensor]:
        seed_everything(2, verbose=False)
        module, dataset = SmallNet(), data().dataset
        ours, theirs = (DataLoader(dataset, batch_size=4, sampler=make(part)) for part in parts)
        quiet_trainer(tmp_path, callbacks=list(callbacks), max_steps=20).fit(module, ours, theirs)
        module.eval()
        found.extend(float(module._loss(dataset[part]).detach()) for part in parts)
        return list(module.parameters())

    parts, found = ([i for i in range(48) if i % 3], list(range(0, 48, 3))), []
    probes = both(schedule=[0, 20])
    assert_same(train(*probes), train())
    assert [probes[0].record.one_time(f"{part}_loss")[1][-1] for part in ("train", "val")] == pytest.approx(found[:2])  # type: ignore[attr-defined]
    assert probes[1].record.meta["GradientNoiseMonitor"]["batches_available"] == 8  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:You requested to overfit")
@pytest.mark.parametrize("options", [{"overfit_batches": 4}, {"limit_train_batches": 4}])
def test_batches_that_the_training_never_sees_are_left_out(tmp_path: Path, options: Any) -> None:
    seen: dict[str, set[Any]] = {"by the training": set(), "by the measurement": set()}

    def loss(module: Any, batch: Any) -> Tensor:
        seen["by the measurement"].add(tuple(batch[0][:, 0].tolist()))
        return module._loss(batch)  # type: ignore[no-any-return]

    class Net(SmallNet):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            seen["by the training"].add(tuple(batch[0][:, 0].tolist()))
            return self._loss(batch)

    noise = GradientNoiseMonitor(schedule=[0], loss=loss, save=False, summary=False)
    loader = data(shuffle="overfit_batches" in options)
    quiet_trainer(tmp_path, callbacks=[noise], max_steps=8, **options).fit(Net(), loader)
    assert seen["by the measurement"] == seen["by the training"]
    assert len(seen["by the training"]) == 4
    # If the data are shuffled, the training sees all samples in the end.
    seen["by the measurement"].clear()
    quiet_trainer(tmp_path, callbacks=[noise], max_steps=8, limit_train_batches=4).fit(Net(), data())
    assert len(seen["by the measurement"]) == 12


def test_loaders_of_whole_batches_are_understood() -> None:
    class Whole(Samples):
        def __getitem__(self, index: Any) -> Any:
            return (torch.as_tensor(index),)

    batches = BatchSampler(SequentialSampler(range(6)), 4, drop_last=False)
    assert flat(indices(DataLoader(Samples(6), batch_sampler=batches))) == [[0, 1, 2, 3], [4, 5]]
    assert flat(indices(DataLoader(Whole(6), sampler=batches, batch_size=None))) == [[0, 1, 2, 3], [4, 5]]
    # The items may be batches already.
    assert flat(indices(DataLoader(Whole(3), batch_size=None))) == [0, 1, 2]  # type: ignore[comparison-overlap]
    several = BatchSampler(RandomSampler(range(6)), 3, drop_last=False)
    assert len(indices(DataLoader(Samples(6), batch_sampler=several), max_batches=1)) == 1


def test_batches_of_several_loaders_are_combined_as_in_the_training() -> None:
    loaders = {"a": DataLoader(Samples(6), batch_size=2), "b": DataLoader(Samples(4), batch_size=2)}
    found = [{key: value[0].tolist() for key, value in batch.items()} for batch, _ in indices(loaders)]
    assert found == [{"a": [0, 1], "b": [0, 1]}, {"a": [2, 3], "b": [2, 3]}, {"a": [4, 5], "b": [0, 1]}]
    assert len(indices(loaders, mode="min_size")) == 2
    assert [part[0].tolist() for part in indices([loaders["a"]])[0][0]] == [[0, 1]]  # a list of one stays a list


def test_a_datamodule_with_several_loaders_is_measured(tmp_path: Path) -> None:
    class Two(LightningDataModule):
        def train_dataloader(self) -> Any:
            return {"near": data(), "far": data(n=24)}

        def val_dataloader(self) -> Any:
            return [data(shuffle=False), data(n=24, shuffle=False)]

        def test_dataloader(self) -> Any:
            return data(n=16, shuffle=False)

    class OfTwo(SmallNet):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            parts = batch.values() if isinstance(batch, dict) else [batch]
            return torch.stack([self._loss(part) for part in parts]).mean()

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...

    both_sets = Two()
    evaluator = LogTimeEvaluator(loaders={"test": both_sets.test_dataloader}, save=False, summary=False)
    noise = GradientNoiseMonitor(save=False, summary=False)
    quiet_trainer(tmp_path, callbacks=[evaluator, noise], max_steps=3).fit(OfTwo(), datamodule=both_sets)
    assert evaluator.record.one_time_names[:4] == ("train_loss", "val_0_loss", "val_1_loss", "test_loss")
    sets = evaluator.record.meta["LogTimeEvaluator"]["sets"]
    assert sets["train"] == {"batches": 12, "batches_available": 12, "samples": None}
    assert sets["test"] == {"batches": 4, "batches_available": 4, "samples": 16}
    assert noise.record.one_time("gradient_noise")[1].min() > 0


def test_a_step_at_which_nothing_is_due_looks_at_one_number(tmp_path: Path) -> None:
    class Counting:
        """Stands for a Trainer that allows access to the step alone."""

        global_step = 5

    for probe in both():
        assert isinstance(probe, Measurement)
        probe._next_event = 6
        probe.on_train_batch_end(Counting(), None, None, None, 0)  # type: ignore[arg-type]

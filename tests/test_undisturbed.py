"""Callbacks that run the network leave the module, the data module, the data and the Trainer as they were."""

from __future__ import annotations

import itertools
import random
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_glassy import BarrierMonitor, CurvatureMonitor, GradientNoiseMonitor, LogTimeEvaluator
from lightning_glassy.callbacks import kept
from lightning_glassy.callbacks.undisturbed import undisturbed
from tests.helpers import SmallNet, data, quiet_trainer
from tests.test_probes import assert_same

QUIET: dict[str, Any] = {"save": False, "summary": False}
PROBES: dict[str, Any] = {
    "LogTimeEvaluator": lambda: LogTimeEvaluator([0, 2, 4], **QUIET),
    "GradientNoiseMonitor": lambda: GradientNoiseMonitor([0, 2, 4], **QUIET),
    "CurvatureMonitor": lambda: CurvatureMonitor(
        [0, 2], max_batches=2, n_eigenvalues=1, n_nodes=4, max_products=100, **QUIET
    ),
    "BarrierMonitor": lambda: BarrierMonitor(1, points=3, max_batches=2, **QUIET),
}


def fit(module: LightningModule, path: Path, *callbacks: Any, steps: int = 6, **options: Any) -> Trainer:
    options = {"train_dataloaders": data(n=16)} | options
    trainer = quiet_trainer(path, callbacks=list(callbacks), max_steps=steps)
    trainer.fit(module, **options)
    return trainer


# ---------------------------------------------------------------------- attributes of the module


class Meter:
    def __init__(self) -> None:
        self.sum, self.history = 0.0, [[0.0]]


class Slotted:
    __slots__ = ("n", "seen")

    def __init__(self) -> None:
        self.n, self.seen = 0, set()  # type: ignore[var-annotated]


class Averaging(SmallNet):
    """A module that keeps the outputs of an epoch in all usual ways."""

    shared: list[float] = []  # noqa: RUF012
    steps = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).shared.clear()
        type(self).steps = 0
        self.nested: Any = {"train": [], "val": []}
        self.default: Any = defaultdict(list)
        self.ordered, self.counter = OrderedDict(a=[0.0]), Counter(steps=0)
        self.lists, self.tuple_of_lists = [[], []], ([], [])  # type: ignore[var-annotated]
        self.metrics = {"accuracy": MulticlassAccuracy(3)}
        self.meter, self.slotted, self.last = Meter(), Slotted(), deque(maxlen=3)  # type: ignore[var-annotated]
        self.total, self.totals, self.array = torch.zeros(()), [torch.zeros(2)], np.zeros(3)
        self.hidden = [nn.BatchNorm1d(8)]  # no submodule
        self.numbers = {"torch": torch.Generator().manual_seed(1), "numpy": np.random.default_rng(1)}
        self.old_numbers, self.dice = [np.random.RandomState(1)], (random.Random(1),)
        self.net[0].weight.calls, self.net[0].weight.seen = 0, []  # type: ignore[union-attr]
        self.undetached = torch.zeros(())
        self.features: list[Any] = []
        kept = self.features
        self.net[0].register_forward_hook(lambda *found: kept.append(float(found[-1].detach().sum())))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        noise = torch.rand((), generator=self.numbers["torch"]) + self.numbers["numpy"].random()
        noise = noise + self.old_numbers[0].rand() + self.dice[0].random()
        loss = self._loss((self.hidden[0](batch[0]) + 0.01 * noise, batch[1]))
        found = float(loss.detach())
        for outputs in (
            self.nested["train"],
            self.default["train"],
            self.lists[1],
            self.tuple_of_lists[0],
            self.shared,
        ):
            outputs.append(found)
        self.ordered["a"].append(found)
        self.ordered.move_to_end("a")
        self.counter["steps"] += 1
        type(self).steps += 1
        self.metrics["accuracy"].update(self.net(batch[0]), batch[1])
        self.meter.sum += found
        self.meter.history[0].append(found)
        self.slotted.n += 1
        self.slotted.seen.add(batch_idx)
        self.last.append(found)
        self.total += found
        self.totals[0].data.add_(found)
        self.array[1] += found
        self.net[0].weight.calls += 1  # type: ignore[union-attr,operator]
        self.net[0].weight.seen.append(found)  # type: ignore[union-attr,operator]
        self.undetached.detach_()
        self.undetached += loss
        self.optimizers().param_groups[0]["lr"] *= 0.9  # type: ignore[union-attr]
        return loss

    def state(self) -> dict[str, Any]:
        return {
            "weights": dict(self.state_dict()),
            "hidden": dict(self.hidden[0].state_dict()),
            "lists": [
                self.nested,
                dict(self.default),
                dict(self.ordered),
                self.lists,
                self.tuple_of_lists,
                self.shared,
            ],
            "counts": [
                dict(self.counter),
                self.steps,
                self.slotted.n,
                self.slotted.seen,
                list(self.last),
                self.features,
            ],
            "metric": self.metrics["accuracy"]._update_count,
            "meter": [self.meter.sum, self.meter.history],
            "of a parameter": [self.net[0].weight.calls, self.net[0].weight.seen],
            "undetached": self.undetached.detach(),
            "sums": [self.total, self.totals, self.array.tolist()],
            "rates": [group["lr"] for group in self.trainer.optimizers[0].param_groups],
        }


@pytest.mark.parametrize("probe", PROBES)
def test_epoch_averages_of_any_shape_are_those_of_the_training(tmp_path: Path, probe: str) -> None:
    states = []
    for callbacks in ([], [PROBES[probe]()]):
        seed_everything(3, verbose=False)
        module = Averaging()
        fit(module, tmp_path, *callbacks)
        states.append(module.state() | {"shared": list(module.shared)})
    assert len(states[0]["lists"][0]["train"]) == 6
    assert_same(states[1], states[0])


def test_aliases_stay_aliases_and_odd_objects_are_left_alone(tmp_path: Path) -> None:
    module: Any = SmallNet()
    trainer = fit(module, tmp_path, steps=1)
    module.one = module.other = [1]
    module.circle = [module.one]
    module.circle.append(module.circle)
    module.view = module.net[0].weight.data[0]
    module.file = (tmp_path / "log").open("w")
    module.loader, module.trainers = data(), [trainer]
    module.inside = torch.inference_mode()(torch.zeros)(3)
    module.sparse = torch.eye(3).to_sparse()
    before = module.net[0].weight.detach().clone()
    with undisturbed(trainer, module, seed=0):
        module.one.append(2)
        module.circle.clear()
        module.file.write("a line")
        with torch.no_grad():
            module.view.add_(1)
        module.one = module.new = []
    assert module.one is module.other is module.circle[0] == [1]
    assert module.circle[1] is module.circle
    assert torch.equal(module.net[0].weight, before)
    assert torch.equal(module.view, before[0])
    assert not hasattr(module, "new")
    module.file.close()
    assert (tmp_path / "log").read_text() == "a line"


def test_data_with_random_numbers_of_their_own_are_those_of_the_training(tmp_path: Path) -> None:
    class Augmented(TensorDataset):
        def __init__(self) -> None:
            super().__init__(*data(n=16).dataset.tensors)  # type: ignore[attr-defined]
            self.rng, self.reads = np.random.default_rng(4), [0]

        def __getitem__(self, index: int) -> Any:
            self.reads[0] += 1
            x, y = super().__getitem__(index)
            return x + 0.1 * self.rng.normal(), y

    class Data(LightningDataModule):
        def __init__(self) -> None:
            super().__init__()
            self.generator, self.batches = torch.Generator().manual_seed(5), [0]

        def train_dataloader(self) -> Any:
            return DataLoader(Augmented(), batch_size=4)

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            self.batches[0] += 1
            return batch[0] * (1 + 0.1 * torch.rand((), generator=self.generator)), batch[1]

    for make in PROBES.values():
        states = []
        for callbacks in ([], [make()]):
            seed_everything(3, verbose=False)
            module, source = SmallNet(), Data()
            trainer = fit(module, tmp_path, *callbacks, train_dataloaders=None, datamodule=source)
            dataset: Any = trainer.train_dataloader.dataset
            states.append([dict(module.state_dict()), dataset.reads, source.batches])
        assert_same(states[1], states[0])


def test_an_iterator_that_cannot_be_put_back_is_refused(tmp_path: Path) -> None:
    class Second(SmallNet):
        """A module that takes a second batch from its own iterator."""

        def on_fit_start(self) -> None:
            self.others = itertools.cycle(data())

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self._loss(batch) + self._loss(next(self.others))

    with pytest.raises(MisconfigurationException, match=r"reads the iterator 'others'.* give the measurement a loss="):
        fit(Second(), tmp_path, PROBES["LogTimeEvaluator"]())
    ours = LogTimeEvaluator([0], loss=lambda module, batch: module._loss(batch), **QUIET)
    fit(Second(), tmp_path, ours)
    assert len(ours.record.one_time("train_loss")[0]) == 2


# ---------------------------------------------------------------------- weights


class Teacher(SmallNet):
    """A momentum encoder, and weights that are kept small. `training_step` writes both."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Linear(8, 16).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            for mine, its in zip(self.net[0].parameters(), self.teacher.parameters(), strict=True):
                its.mul_(0.9).add_(mine, alpha=0.1)
        self.net[3].weight.data.mul_(0.99)  # the version does not change
        target = self.teacher(batch[0])
        return self._loss(batch) + (self.net[0](batch[0]) - target).square().mean()


class Replacing(SmallNet):
    """A module that keeps weights small by assignment."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.net[3].weight.data = self.net[3].weight.data * 0.99
        return self._loss(batch)


class Merged(SmallNet):
    """A module in which `eval` merges a correction into a weight, and replaces a parameter. `train` does not restore
    the exact bits of either.
    """

    def __init__(self) -> None:
        super().__init__()
        self.correction = nn.Parameter(0.1 * torch.randn(16, 8))
        self.scale = nn.Parameter(torch.ones(()))
        self.merged = False

    def train(self, mode: bool = True) -> Any:
        if getattr(self, "merged", mode) == mode:
            self.net[0].weight.data += (-1 if mode else 1) * self.correction.data
            self.merged = not mode
            self.scale = nn.Parameter(self.scale.detach() + 0.1)
        return super().train(mode)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        weight = self.net[0].weight if self.merged else self.net[0].weight + self.correction
        hidden = nn.functional.linear(batch[0], weight, self.net[0].bias)
        return nn.functional.cross_entropy(self.scale * self.net[1:](hidden), batch[1])


@pytest.mark.parametrize("make", [Teacher, Replacing, Merged])
@pytest.mark.parametrize("probe", PROBES)
def test_weights_that_the_loss_or_the_mode_writes_are_those_of_the_training(
    tmp_path: Path, make: Any, probe: str
) -> None:
    states = []
    for callbacks in ([], [PROBES[probe]()]):
        seed_everything(3, verbose=False)
        module = make()
        trainer = fit(module, tmp_path, *callbacks)
        gradients = [parameter.grad for parameter in module.parameters()]
        states.append([dict(module.state_dict()), gradients, trainer.optimizers[0].state_dict()])
    assert_same(states[1], states[0])


def test_an_update_by_the_loss_is_refused_before_it_happens(tmp_path: Path) -> None:
    class Both(SmallNet):
        """A module that trains a part of itself within the training step."""

        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Linear(8, 1)
            self.own = torch.optim.Adam(self.part.parameters())

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.own.zero_grad()
            self.part(batch[0]).square().mean().backward()
            self.own.step()
            return self._loss(batch)

    module = Both()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(MisconfigurationException, match="the loss updates weights by an optimiser"):
        fit(module, tmp_path, PROBES["GradientNoiseMonitor"]())
    assert_same(dict(module.state_dict()), before)


def test_a_copy_of_the_weights_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "free_memory", lambda device: 500)
    monkeypatch.setattr(kept, "_SMALL", 100)
    with pytest.raises(MemoryError, match=r"a copy of the weights .* 500 B of host memory are free"):
        fit(SmallNet(), tmp_path, PROBES["LogTimeEvaluator"]())


# ---------------------------------------------------------------------- the state of the Trainer


class Stages(SmallNet):
    """A module that augments in training, stops at a small loss, and normalises each loader in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Any] = set()
        self.sees = True

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        if self.trainer.training:
            x = x + 3 * torch.randn_like(x)
        return x + 0.1 * dataloader_idx, y

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        trainer = self.trainer
        stages = (trainer.training, trainer.validating, trainer.evaluating, trainer.sanity_checking, self.training)
        stages_of_all.setdefault(self.kind, set()).add(stages)
        return self._loss(batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        stages_of_all.setdefault("Lightning", set()).add(
            (self.trainer.training, self.trainer.validating, self.trainer.evaluating, False, self.training)
        )
        self.log("val_loss", self._loss(batch))

    kind = ""


stages_of_all: dict[str, set[Any]] = {}


def test_validation_inside_a_measurement_is_not_augmented(tmp_path: Path) -> None:
    evaluator, module = LogTimeEvaluator([16], **QUIET), Stages()
    trainer = quiet_trainer(tmp_path, callbacks=[evaluator], max_epochs=4, max_steps=-1)
    trainer.fit(module, data(n=16), [data(seed, shuffle=False) for seed in (12, 20)])
    assert evaluator.record.one_time_names[1:] == ("val_0_loss", "val_1_loss")
    for i in range(2):
        value = evaluator.record.one_time(f"val_{i}_loss")[1][-1]
        assert value == pytest.approx(float(trainer.callback_metrics[f"val_loss/dataloader_idx_{i}"]), rel=1e-6)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_trainer_says_what_a_measurement_is(tmp_path: Path, mode: Any) -> None:
    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            assert trainer.training

    stages_of_all.clear()
    module = Stages()
    trainer = quiet_trainer(tmp_path, max_steps=4, num_sanity_val_steps=0, callbacks=[Look()])
    trainer.fit(module, data(n=16), data(n=16, shuffle=False))
    trainer.state.stage = None
    with undisturbed(trainer, module, 0, mode=mode):
        module.kind = "inside"
        module.training_step(next(iter(data())), 0)
    assert trainer.state.stage is None
    wanted = "Lightning" if mode == "eval" else ""
    assert stages_of_all["inside"] == stages_of_all[wanted]


def test_a_training_that_its_loss_may_stop_goes_on(tmp_path: Path) -> None:
    class Stopping(SmallNet):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if not self.net.training:
                self.trainer.should_stop = True
            return self._loss(batch)

    assert fit(Stopping(), tmp_path, PROBES["LogTimeEvaluator"]()).global_step == 6

"""A record belongs to one training. Compare every pair with the weights themselves, in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_glassy import (
    AgingMonitor,
    AgingRecord,
    AgingTracker,
    FabricAgingMonitor,
    LogTimeEvaluator,
    LogTimeSchedule,
    Steps,
)
from lightning_glassy.analysis.confounders import confounders
from lightning_glassy.measure.resume import StateError
from tests.brute_force import BruteForce, flat_weights
from tests.helpers import SmallNet, data, quiet_trainer


class Net(SmallNet):
    batch_size = 4

    def train_dataloader(self) -> DataLoader[Any]:
        return data(batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return data(batch_size=self.batch_size, shuffle=False)


def monitor(**options: Any) -> AgingMonitor:
    return AgingMonitor(**{"save": False, "summary": False, **options})


def fit(
    tmp_path: Path, *callbacks: Callback, module: LightningModule | None = None, ckpt: Any = None, **options: Any
) -> tuple[Trainer, BruteForce]:
    judge = BruteForce()
    trainer = quiet_trainer(tmp_path, callbacks=[*callbacks, judge], **options)
    trainer.fit(module or Net(), ckpt_path=ckpt)
    return trainer, judge


class SaveAtStart(Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.path)


class FindRateLater(LearningRateFinder):
    def on_fit_start(self, *_: Any) -> None:
        """Do nothing yet."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 2:
            self.lr_find(trainer, pl_module)


class GoBack(Callback):
    """Goes back once to the weights and the step of an earlier time, as a guard against divergence does."""

    def __init__(self, to: int, after: int, hook: str = "on_train_batch_end") -> None:
        self.to, self.after, self.done = to, after, False
        setattr(self, hook, self._go)

    def _go(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.to and not self.done:
            self.weights = {name: weight.clone() for name, weight in pl_module.state_dict().items()}
        if trainer.global_step == self.after and not self.done:
            self.done = True
            pl_module.load_state_dict(self.weights)
            step = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
            step.total.ready = step.total.completed = self.to


# ---------------------------------------------------------------------- one training, one record


@pytest.mark.parametrize("kind", ["save", "rate", "batch size"])
@pytest.mark.filterwarnings("ignore")
def test_a_second_trainer_never_gets_the_record_of_the_first(tmp_path: Path, kind: str) -> None:
    def finder() -> Callback:
        if kind == "save":
            return SaveAtStart(tmp_path / "a.ckpt")
        if kind == "rate":
            return LearningRateFinder(num_training_steps=10)
        return BatchSizeFinder(max_trials=1, steps_per_trial=1)

    mine, losses = monitor(), LogTimeEvaluator(summary=False)
    for seed in (0, 1):
        torch.manual_seed(seed)
        _, judge = fit(tmp_path, mine, losses, finder(), max_steps=24)
        judge.check(mine.record, at_least=50)
        assert losses.record is mine.record
        assert len(mine.record.one_time("train_loss")[0]) == len(set(mine.record.one_time("train_loss")[0].tolist()))


def find_rate(tuner: Tuner, module: LightningModule) -> None:
    tuner.lr_find(module, num_training=10)


def find_batch_size(tuner: Tuner, module: LightningModule) -> None:
    tuner.scale_batch_size(module, max_trials=1, steps_per_trial=1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tune", [find_rate, find_batch_size])
def test_a_tuner_leaves_no_trace_in_the_record(tmp_path: Path, tune: Callable[[Tuner, Any], Any]) -> None:
    mine, judge, module = monitor(), BruteForce(), Net()
    trainer = quiet_trainer(tmp_path, callbacks=[mine, judge])
    tune(Tuner(trainer), module)
    trainer.fit(module)
    assert trainer.global_step == 60
    judge.check(mine.record, at_least=90)
    assert mine.record.waiting_times[0] == 0


@pytest.mark.filterwarnings("ignore")
def test_a_search_in_the_middle_of_a_fit_loses_no_step(tmp_path: Path) -> None:
    mine, module = monitor(), Net()
    trainer, judge = fit(
        tmp_path, mine, FindRateLater(num_training_steps=10), module=module, max_steps=-1, max_epochs=3
    )
    judge.check(mine.record)
    trainer.fit_loop.max_epochs = 5
    trainer.fit(module)
    judge.check(mine.record)
    fit(tmp_path, other := monitor(), max_steps=-1, max_epochs=5)
    assert mine.record.pairs[0].tolist() == other.record.pairs[0].tolist()
    assert mine.record.pairs[1].tolist() == other.record.pairs[1].tolist()


def test_a_checkpoint_before_the_first_step_holds_no_earlier_training(tmp_path: Path) -> None:
    """With another module in the same Trainer, a checkpoint of the start has no record of the first module."""
    mine, path = monitor(), tmp_path / "a.ckpt"
    trainer, _ = fit(tmp_path, mine, SaveAtStart(path), max_steps=24)
    trainer.fit_loop.epoch_loop.max_steps = 40
    with pytest.warns(UserWarning, match="a new record starts"):
        trainer.fit(Net())
    assert "lightning_glassy" not in torch.load(path, weights_only=False)
    fresh = monitor()
    with pytest.warns(UserWarning, match="training starts at step 24 without earlier snapshots; a new record starts"):
        _, judge = fit(tmp_path, fresh, ckpt=path, max_steps=60)
    judge.check(fresh.record)
    assert fresh.record.waiting_times[0] == 24


def test_a_state_of_another_step_is_refused_by_name(tmp_path: Path) -> None:
    mine, path = monitor(), tmp_path / "a.ckpt"
    trainer, _ = fit(tmp_path, mine, max_steps=24)
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=False)
    fit(tmp_path, SaveAtStart(tmp_path / "b.ckpt"), max_steps=1)
    start = torch.load(tmp_path / "b.ckpt", weights_only=False)
    torch.save(start | {"lightning_glassy": checkpoint["lightning_glassy"]}, path)
    fresh, losses = monitor(), LogTimeEvaluator(summary=False)
    with pytest.warns(
        UserWarning, match="was saved at step 24, and this training starts at step 0: it belongs to another"
    ):
        _, judge = fit(tmp_path, fresh, losses, ckpt=path, max_steps=30)
    judge.check(fresh.record, at_least=50)
    assert fresh.record.meta["id"] != mine.record.meta["id"]


@pytest.mark.filterwarnings("ignore")
def test_a_resume_that_fails_leaves_nothing_to_the_next_trainer(tmp_path: Path) -> None:
    class TwoGroups(Net):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([{"params": [weight]} for weight in self.parameters()], lr=0.1)

    trainer, _ = fit(tmp_path, monitor(), max_steps=24)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    mine = monitor()
    with pytest.raises(ValueError, match="parameter group"):
        fit(tmp_path, mine, module=TwoGroups(), ckpt=tmp_path / "a.ckpt", max_steps=60)
    _, judge = fit(tmp_path, mine)
    judge.check(mine.record, at_least=90)
    assert "resumed" not in mine.record.meta


def test_ten_fits_of_one_trainer_measure_like_a_single_one(tmp_path: Path) -> None:
    mine, judge, module = monitor(), BruteForce(), Net()
    trainer = quiet_trainer(tmp_path, callbacks=[mine, judge], max_steps=-1, max_epochs=1)
    for epochs in range(1, 11):
        trainer.fit_loop.max_epochs = epochs
        trainer.fit(module)
    judge.check(mine.record)
    fit(tmp_path, whole := monitor(), max_steps=-1, max_epochs=10)
    assert [axis.tolist() for axis in mine.record.pairs] == [axis.tolist() for axis in whole.record.pairs]


@pytest.mark.filterwarnings("ignore:AgingMonitor. training starts at step 24")
def test_weights_that_change_between_two_fits_start_a_new_record(tmp_path: Path) -> None:
    mine, module = monitor(), Net()
    trainer, _ = fit(tmp_path, mine, module=module, max_steps=24)
    first = mine.record
    initialise(module)
    with pytest.warns(UserWarning, match="this checkpoint has no record to go on with"):
        trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert "lightning_glassy" not in torch.load(tmp_path / "a.ckpt", weights_only=False)
    trainer.fit_loop.epoch_loop.max_steps = 48
    judge = trainer.callbacks[-1] = BruteForce()
    with pytest.warns(UserWarning, match="changed since the end of the last fit: a new record starts"):
        trainer.fit(module)
    judge.check(mine.record)
    assert mine.record is not first
    assert mine.record.waiting_times[0] == 24


# ---------------------------------------------------------------------- going back


@pytest.mark.parametrize(("to", "after"), [(16, 32), (31, 32), (30, 33), (16, 31)])
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_batch_start"])
@pytest.mark.parametrize("first", [True, False])
def test_a_training_that_goes_back_leaves_no_pair_of_the_abandoned_branch(
    tmp_path: Path, to: int, after: int, hook: str, first: bool
) -> None:
    mine, losses, back = monitor(), LogTimeEvaluator(summary=False), GoBack(to, after, hook)
    with (
        contextlib.nullcontext()
        if (to, hook, first) == (31, "on_train_batch_end", True)
        else pytest.warns(UserWarning, match="has gone back: step")
    ):
        _, judge = fit(tmp_path, *([back, mine, losses] if first else [mine, losses, back]))
    judge.check(mine.record)
    pairs = zip(*(axis.tolist() for axis in mine.record.pairs), strict=True)
    assert set(pairs) == set(LogTimeSchedule.logspaced(60).pairs)
    steps, values = mine.record.one_time("train_loss")
    assert steps.tolist() == [*Steps.logspaced(6).upto(59), 60]
    assert np.isfinite(values).all()


def test_files_and_tables_lose_the_abandoned_branch(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, version=0)
    mine = monitor(save=True)
    with pytest.warns(UserWarning, match="gone back: step 17 comes after step 32"):
        fit(tmp_path, mine, GoBack(16, 32), logger=logger)
    assert [path.name for path in sorted(Path(logger.log_dir, "glassy").glob("*.npz"))] == ["aging_record.npz"]
    assert AgingRecord.load(Path(logger.log_dir) / "glassy" / "aging_record.npz") == mine.record
    lines = Path(logger.log_dir, "glassy.csv").read_text().splitlines()
    assert len(lines) == len(set(lines)) == 1 + len(mine.record)
    assert mine.record.meta["resumed"] == [{"step": 17, "gone_back_from": 32}]


def test_measurements_alone_go_back_too(tmp_path: Path) -> None:
    losses = LogTimeEvaluator(list(range(61)), summary=False)
    with pytest.warns(UserWarning, match="gone back: step 17 comes after step 32"):
        fit(tmp_path, losses, GoBack(16, 32))
    assert losses.record.one_time("train_loss")[0].tolist() == list(range(61))
    assert losses.record.meta["resumed"] == [{"step": 17, "gone_back_from": 32}]


def test_a_tracker_goes_back_when_it_is_told() -> None:
    layer, weights = nn.Linear(4, 3), {}
    tracker = AgingTracker(layer)

    def train(steps: range) -> None:
        for step in steps:
            weights[step] = flat_weights(layer)
            tracker.update(step)
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter.add_(torch.randn_like(parameter))

    train(range(40))
    with pytest.raises(ValueError, match=r"call go_back\(16\) first"):
        tracker.update(16)
    tracker.go_back(16)
    torch.nn.utils.vector_to_parameters(weights[16].float(), layer.parameters())
    train(range(16, 60))
    tracker.drain()
    judge = BruteForce()
    judge.weights = weights
    judge.check(tracker.record, at_least=90)


# ---------------------------------------------------------------------- the first step


def initialise(module: LightningModule) -> None:
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(0, 0.3)


class SetsItself(Net):
    def __init__(self, hook: str) -> None:
        super().__init__()
        setattr(self, hook, self._set)

    def _set(self, *_: Any) -> None:
        if self.trainer.global_step == 0:
            initialise(self)
            self.first_weights = flat_weights(self)


class SetsModule(Callback):
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        initialise(pl_module)


@pytest.mark.parametrize("how", ["on_train_start", "on_train_epoch_start", "on_train_batch_start", "callback"])
def test_weights_set_before_the_first_update_are_the_weights_of_step_0(tmp_path: Path, how: str) -> None:
    mine, losses = monitor(), LogTimeEvaluator(summary=False)
    later = [SetsModule()] if how == "callback" else []
    module = Net() if later else SetsItself(how)
    _, judge = fit(tmp_path, mine, losses, *later, module=module)
    # The hook of the module runs after the hooks of all callbacks.
    judge.weights[0] = getattr(module, "first_weights", judge.weights[0])
    judge.check(mine.record, at_least=90)
    values = mine.record.one_time("train_loss")[1]
    assert abs(values[0] - values[1]) < 0.3  # one update apart


def test_weights_set_after_start_are_the_weights_of_step_0_in_fabric() -> None:
    mine = FabricAgingMonitor(save=False)
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[mine])
    model = nn.Linear(3, 1)
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    mine.start(model, optimizer, fabric=fabric)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_()
    judge = BruteForce()
    judge.weights[0] = flat_weights(model)
    for step in range(1, 20):
        optimizer.zero_grad()
        fabric.backward(model(torch.randn(8, 3)).square().mean())
        optimizer.step()
        judge.weights[step] = flat_weights(model)
    mine.finish()
    judge.check(mine.record, at_least=30)


def test_a_fabric_that_loads_an_earlier_state_goes_back(tmp_path: Path) -> None:
    mine = FabricAgingMonitor(save=False)
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[mine])
    model = nn.Linear(3, 1)
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    mine.start(model, optimizer, fabric=fabric)
    judge, state = BruteForce(), {"model": model, "monitor": mine}

    def train(steps: range) -> None:
        for step in steps:
            judge.weights[step] = flat_weights(model)
            optimizer.zero_grad()
            fabric.backward(model(torch.randn(8, 3)).square().mean())
            optimizer.step()
        judge.weights[steps[-1] + 1] = flat_weights(model)

    train(range(16))
    fabric.save(tmp_path / "a.ckpt", state)
    train(range(16, 32))
    with pytest.warns(UserWarning, match="gone back: step 17 comes after step 32"):
        fabric.load(tmp_path / "a.ckpt", state)
    train(range(16, 40))
    mine.finish()
    judge.check(mine.record, at_least=60)
    # While this training runs, it refuses the state of another training. At its start, it refuses another step.
    other = FabricAgingMonitor(save=False)
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[other])
    model = nn.Linear(3, 1)
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    saved = torch.load(tmp_path / "a.ckpt")["monitor"]
    other.load_state_dict(saved)
    with pytest.raises(StateError, match="step=3, and the loaded state is of step 16"):
        other.start(model, optimizer, fabric=fabric, step=3)
    other.start(model, optimizer, fabric=fabric)
    with pytest.raises(StateError, match="not an earlier state of the training under way"):
        other.load_state_dict(saved)
    other.finish()


def test_a_checkpoint_right_after_going_back_has_no_abandoned_row(tmp_path: Path) -> None:
    class Saves(GoBack):
        def _go(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            before = self.done
            super()._go(trainer, pl_module)
            if self.done and not before:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    with pytest.warns(UserWarning, match="gone back"):
        fit(tmp_path, monitor(), LogTimeEvaluator(summary=False), Saves(16, 32), max_steps=34)
    (state,) = torch.load(tmp_path / "a.ckpt", weights_only=False)["lightning_glassy"].values()
    assert AgingRecord.from_bytes(bytes(state["record"].numpy())).last_step < 16
    assert max(state["series"]["train_loss"]["steps"]) < 16


def test_going_back_at_the_end_cuts_the_record(tmp_path: Path) -> None:
    mine, module = monitor(), Net()
    callbacks = mine, LogTimeEvaluator(summary=False), GoBack(16, 36)  # the third epoch ends with step 36
    with pytest.warns(UserWarning, match="gone back"):
        trainer, judge = fit(tmp_path, *callbacks, module=module, max_steps=-1, max_epochs=3)
    assert mine.record.last_step <= 16
    trainer.fit_loop.max_epochs = 5
    trainer.fit(module)
    judge.check(mine.record)


def test_the_checkpoint_of_another_training_ends_the_record_that_is_under_way(tmp_path: Path) -> None:
    trainer, _ = fit(tmp_path, monitor(), max_steps=16)
    trainer.save_checkpoint(tmp_path / "a.ckpt")

    class Restores(Callback):
        done = False

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 20 and not self.done:
                self.done = True
                trainer._checkpoint_connector.restore(tmp_path / "a.ckpt")

    mine, losses = monitor(), LogTimeEvaluator(summary=False)
    with pytest.warns(UserWarning, match="the checkpoint of another training has been restored in the middle"):
        fit(tmp_path, mine, losses, Restores(), max_steps=40)
    assert mine.record.last_step <= 20


def test_a_callback_of_a_training_that_is_under_way_is_refused_in_another(tmp_path: Path) -> None:
    mine = monitor()

    class Nested(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 20:
                with pytest.raises(MisconfigurationException, match="give this Trainer a callback of its own"):
                    fit(tmp_path, mine, max_steps=4)

    _, judge = fit(tmp_path, mine, Nested())
    judge.check(mine.record, at_least=97)


def test_a_checkpoint_of_another_module_has_no_record(tmp_path: Path) -> None:
    trainer, _ = fit(tmp_path, monitor(), max_steps=16)
    trainer.validate(Net(), verbose=False)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert "lightning_glassy" not in torch.load(tmp_path / "a.ckpt", weights_only=False)


class Resets(Net):
    """Sets the weights in a hook of a resumed fit."""

    def __init__(self, hook: str = "") -> None:
        super().__init__()
        if hook:
            setattr(self, hook, lambda *_: initialise(self))


@pytest.mark.filterwarnings("ignore:AgingMonitor. training starts")
@pytest.mark.parametrize("hook", ["on_load_checkpoint", "on_train_start"])
def test_a_training_that_goes_on_with_other_weights_has_no_pair_across(tmp_path: Path, hook: str) -> None:
    trainer, _ = fit(tmp_path, monitor(), module=Resets(), max_steps=24)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    if hook == "on_load_checkpoint":
        # Lightning loads the module after this hook, so change the loaded values.
        checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=False)
        for name, weight in checkpoint["state_dict"].items():
            checkpoint["state_dict"][name] = weight.flip(0) if weight.dim() > 1 else weight
        torch.save(checkpoint, tmp_path / "a.ckpt")
    mine = monitor()
    with pytest.warns(UserWarning, match="other weights than those|have been set since the start"):
        fit(tmp_path, mine, module=Resets(hook), ckpt=tmp_path / "a.ckpt")
    waiting_times, lags = mine.record.pairs
    across = (waiting_times < 24) & (waiting_times + lags > 24)
    assert not across.any()


# ---------------------------------------------------------------------- branches of one training


class StopAt(Callback):
    """Saves a checkpoint at one step, and interrupts the training at another."""

    def __init__(self, stop: int, save: int | None = None, path: Path | None = None) -> None:
        self.stop, self.save, self.path = stop, save, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.save:
            trainer.save_checkpoint(self.path)
        if trainer.global_step == self.stop:
            raise ZeroDivisionError


def interrupted(tmp_path: Path, *callbacks: Callback, **options: Any) -> None:
    with contextlib.suppress(ZeroDivisionError):
        fit(tmp_path, *callbacks, **options)


@pytest.mark.filterwarnings("ignore:You're resuming")
@pytest.mark.parametrize("kind", [AgingMonitor, LogTimeEvaluator])
def test_each_branch_of_an_interrupted_run_keeps_its_own_file(tmp_path: Path, kind: Any) -> None:
    path, folder = tmp_path / "a.ckpt", tmp_path / "glassy"

    def ends() -> dict[str, int]:
        return {file.name: AgingRecord.load(file).last_step for file in sorted(folder.glob("*.npz"))}

    interrupted(tmp_path, kind(summary=False), StopAt(80, save=20, path=path), max_steps=100)
    assert list(ends()) == ["aging_record.npz"]
    first = ends()["aging_record.npz"]
    assert first >= 60
    # Run two branches that end before the interrupted run did.
    for seed in (1, 2):
        torch.manual_seed(seed)
        interrupted(tmp_path, kind(summary=False), StopAt(40), ckpt=path, max_steps=100)
    found = ends()
    assert list(found) == ["aging_record-1.npz", "aging_record-2.npz", "aging_record.npz"]
    assert found["aging_record.npz"] == first
    # A branch that goes further than the interrupted run takes over the file of this run.
    fit(tmp_path, kind(summary=False), ckpt=path, max_steps=100)
    found = ends()
    assert list(found) == ["aging_record-1.npz", "aging_record-2.npz", "aging_record.npz"]
    assert found["aging_record.npz"] == 100
    fit(tmp_path, kind(summary=False), ckpt=path, max_steps=60)
    assert ends() == found | {"aging_record-3.npz": 60}


def test_branches_of_one_training_are_no_replicas() -> None:
    def branch(seed: int, identity: str) -> AgingRecord:
        walk = np.random.default_rng(seed).normal(size=(8, 5)).cumsum(0)
        return AgingRecord.from_trajectory(
            walk, LogTimeSchedule([0], [1, 2]), meta={"id": identity, "branches": [str(seed)]}
        )

    assert AgingRecord.concat([branch(1, "a"), branch(2, "b")]).n_replica == 2
    with pytest.raises(ValueError, match="are branches of one training, which was resumed twice"):
        AgingRecord.concat([branch(1, "a"), branch(2, "a")])


@pytest.mark.filterwarnings("ignore:You're resuming")
def test_the_file_of_a_completed_run_of_measurements_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    interrupted(tmp_path, LogTimeEvaluator(summary=False), StopAt(30, save=30, path=path), max_steps=60)
    fit(tmp_path, LogTimeEvaluator(summary=False), ckpt=path, max_steps=60)
    done = AgingRecord.load(tmp_path / "glassy" / "aging_record.npz")
    assert done.meta["completed"] == 60
    torch.manual_seed(4)
    fit(tmp_path, LogTimeEvaluator(summary=False), ckpt=path, max_steps=70)
    assert AgingRecord.load(tmp_path / "glassy" / "aging_record.npz") == done


@pytest.mark.filterwarnings("ignore:You're resuming")
def test_two_branches_at_once_never_overwrite_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    interrupted(tmp_path, AgingMonitor(summary=False), StopAt(20, save=20, path=path), max_steps=100)

    class Other(Callback):
        """Runs another resumption of the same checkpoint to its end, while this one is under way."""

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 50:
                torch.manual_seed(3)
                fit(tmp_path, theirs, ckpt=path, max_steps=70)

    mine, theirs = AgingMonitor(summary=False), AgingMonitor(summary=False)
    fit(tmp_path, mine, Other(), ckpt=path, max_steps=100)
    files = sorted((tmp_path / "glassy").glob("*.npz"))
    records = [AgingRecord.load(file) for file in files]
    assert len(records) == 2
    assert any(record == mine.record for record in records)
    assert any(record == theirs.record for record in records)


# ---------------------------------------------------------------------- after the end


@pytest.mark.parametrize("end", ["the end", "an interruption"])
def test_a_checkpoint_after_the_end_goes_on_without_losing_a_pair(tmp_path: Path, end: str) -> None:
    mine, module, judge = monitor(), Net(), BruteForce()
    stop = [StopAt(24)] if end == "an interruption" else []
    trainer = quiet_trainer(tmp_path, callbacks=[mine, *stop, judge], max_steps=60 if stop else 24)
    with contextlib.suppress(ZeroDivisionError):
        trainer.fit(module)
    judge.weights[24] = flat_weights(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = monitor()
    trainer = quiet_trainer(tmp_path, callbacks=[again, judge])
    trainer.fit(Net(), ckpt_path=tmp_path / "a.ckpt")
    judge.check(again.record)
    fit(tmp_path, whole := monitor())
    assert [axis.tolist() for axis in again.record.pairs] == [axis.tolist() for axis in whole.record.pairs]


def test_snapshots_beyond_the_host_memory_are_missed_aloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_glassy.measure.tracker._on_device", lambda snapshots: 1)
    monkeypatch.setattr("lightning_glassy.measure.tracker.host_budget", lambda limit: 0)
    mine = monitor()
    trainer, _ = fit(tmp_path, mine, max_steps=24)
    with pytest.warns(UserWarning, match="the snapshots were freed at the end of training"):
        trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.warns(UserWarning, match="the record goes on with new waiting times"):
        fit(tmp_path, again := monitor(), ckpt=tmp_path / "a.ckpt")
    assert again.record.pairs[0].max() == 46


# ---------------------------------------------------------------------- steps that are not counted, or no updates


class RawOptimizer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(self._loss(batch))
        optimizer.step()


class OwnOptimizer(RawOptimizer):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        if not hasattr(self, "mine"):
            self.mine = torch.optim.SGD(self.parameters(), lr=0.1)
        self.mine.zero_grad()
        self.manual_backward(self._loss(batch))
        self.mine.step()


class StepsLater(RawOptimizer):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.loss = self._loss(batch)

    def on_train_batch_end(self, *_: Any) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss)
        optimizer.step()


class Accumulates(RawOptimizer):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(self._loss(batch))
        if (batch_idx + 1) % 6 == 0:
            optimizer = self.optimizers()
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("module", [RawOptimizer, OwnOptimizer, StepsLater])
def test_weights_that_move_while_the_step_stands_still_are_named(
    tmp_path: Path, module: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = monitor(summary=True)
    with pytest.warns(UserWarning, match=r"an optimiser has updated the weights 4 times.*self\.optimizers\(\)"):
        fit(tmp_path, mine, module=module(), max_steps=-1, max_epochs=1)
    said = capsys.readouterr().out
    assert "and trainer.global_step is still 0, so nothing can be measured" in said
    assert "training ended before a pair could be measured" not in said


def test_manual_accumulation_is_measured_without_a_warning(tmp_path: Path) -> None:
    mine = monitor()
    _, judge = fit(tmp_path, mine, module=Accumulates(), max_steps=-1, max_epochs=8)
    judge.check(mine.record, at_least=20)


def test_a_fabric_whose_steps_are_not_counted_says_so() -> None:
    mine = FabricAgingMonitor(save=False)
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[mine])
    model = nn.Linear(3, 1)
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    mine.start(model, optimizer, fabric=fabric)
    fabric.backward(model(torch.randn(8, 3)).square().mean())
    optimizer.optimizer.step()
    with pytest.warns(UserWarning, match="no step was counted"):
        mine.finish()


class SkipsHalf(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        return None if batch_idx % 2 else super().training_step(batch, batch_idx)


class Overflows(Net):
    """A loss that is sometimes infinite in float16. The scaler of the gradients then skips the update."""

    fused = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (torch.inf if batch_idx % 3 == 0 else 1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, fused=self.fused)


class OverflowsFused(Overflows):
    fused = True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("module", "expected"), [(SkipsHalf, 12), (Overflows, 8), (OverflowsFused, 8), (Net, None)])
def test_steps_that_are_no_updates_are_counted(tmp_path: Path, module: Any, expected: int | None) -> None:
    scaled = {"plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0))}
    mine, path = monitor(), tmp_path / "a.ckpt"
    options = scaled if issubclass(module, Overflows) else {}
    interrupted(tmp_path, monitor(), StopAt(12, save=12, path=path), module=module(), max_steps=24, **options)
    options = (
        {"plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0))} if options else {}
    )
    fit(tmp_path, mine, module=module(), ckpt=path, max_steps=24, **options)
    assert mine.record.meta.get("steps_without_update") == expected
    said = [text for text in confounders(mine.record) if "no updates" in text]
    assert len(said) == (expected is not None)

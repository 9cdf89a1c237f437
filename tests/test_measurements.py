"""Measurements written by users, and the recorder that all callbacks share."""

from __future__ import annotations

import copy
import gc
import json
import re
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn

from lightning_glassy import (
    AgingMonitor,
    AgingRecord,
    AgingTracker,
    BarrierMonitor,
    CurvatureMonitor,
    DisplacementDistribution,
    FabricAgingMonitor,
    GradientNoiseMonitor,
    LogTimeEvaluator,
    LogTimeSchedule,
    Measurement,
    ReplicaOverlap,
    Steps,
)
from lightning_glassy.cli import main
from lightning_glassy.report import answers, report
from tests.helpers import SmallNet, data, quiet_trainer

# The first is Lightning's warning about loaders without a state. The second is ours about a training that starts late.
pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:AgingMonitor. training starts at step"),
]

PAGE = Path(__file__).parent.parent / "docs" / "developers" / "adding.md"


class Manual(SmallNet):
    """Optimises by hand, and has a training_step that returns nothing."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self._loss(batch))
        optimizer.step()


class WeightNorm(Measurement):
    def measure(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        return {"weight_norm": torch.cat([p.flatten() for p in module.parameters()]).norm()}


class Norms(Callback):
    """Computes the norm by hand, at every step."""

    def __init__(self) -> None:
        self.found: dict[int, float] = {}

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self.found[trainer.global_step] = float(torch.cat([p.detach().flatten() for p in module.parameters()]).norm())


def quiet(**options: Any) -> dict[str, Any]:
    return {"save": False, "summary": False} | options


# ---------------------------------------------------------------------- a measurement by a user


@pytest.mark.parametrize("with_monitor", [False, True])
def test_the_measurement_of_the_page_is_in_record_report_tab_and_loggers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], with_monitor: bool
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text().split("## A measurement along the run")[1], re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) < 30
    page: dict[str, Any] = {}
    exec(code, page)
    measured, norms = page["WeightNorm"](2), Norms()
    loggers = [TensorBoardLogger(tmp_path), CSVLogger(tmp_path)]
    monitors = [AgingMonitor()] if with_monitor else []
    quiet_trainer(tmp_path, callbacks=[measured, norms, *monitors], logger=loggers, max_steps=20).fit(Manual(), data())

    steps, values = measured.record.one_time("weight_norm")
    assert steps.tolist() == [0, 1, 3, 10, 20]
    assert values[1:] == pytest.approx([norms.found[step] for step in steps.tolist()[1:]], rel=1e-6)
    (path,) = tmp_path.rglob("aging_record.npz")
    there = AgingRecord.load(path)
    assert there == measured.record
    assert there.meta["WeightNorm"]["measurements"] == 5
    assert answers.series(there)["one_time"]["weight_norm"]["values"] == pytest.approx(values.tolist())
    if with_monitor:
        pages = [path for path in report(there, n_bootstrap=10).write(tmp_path / "report") if path.suffix == ".html"]
        assert "weight_norm" in pages[0].read_text()
    else:
        capsys.readouterr()
        assert main(["report", str(path), "--json"]) == 0
        assert "weight_norm" in json.loads(capsys.readouterr().out)["one_time"]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(loggers[0].log_dir).Reload()
    assert [scalar.step for scalar in events.Scalars("glassy_series/weight_norm")] == steps.tolist()
    assert "glassy_series/weight_norm" in Path(loggers[1].log_dir, "metrics.csv").read_text()


def test_a_measurement_leaves_the_random_numbers_of_the_training_alone(tmp_path: Path) -> None:
    class Drawing(Measurement):
        def measure(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
            return {"torch": torch.rand(()), "numpy": np.random.rand()}  # noqa: NPY002

    def weights(*callbacks: Callback) -> Tensor:
        torch.manual_seed(3)
        module = SmallNet()
        quiet_trainer(tmp_path, callbacks=list(callbacks), max_steps=20).fit(module, data())
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    first, second = Drawing(**quiet()), Drawing(**quiet())
    assert torch.equal(weights(first), weights())
    weights(second)
    assert first.record == second.record  # the numbers depend on the step alone


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (3.0, r"measure\(\) returned 3.0, and not a mapping of names to numbers"),
        ({1: 3.0}, "1 is not the name of a series"),
        ({"a": torch.zeros(3)}, r"'a' has the shape \[3\], and is not a number"),
        ({"a": "much"}, "nothing is measured at step 0"),
    ],
)
def test_what_is_no_number_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: Any, message: str
) -> None:
    class Wrong(Measurement):
        def measure(self, trainer: Trainer, module: LightningModule) -> Any:
            return values

    trainer = quiet_trainer(tmp_path, callbacks=[Wrong(**quiet())], max_steps=8)
    trainer.fit(SmallNet(), data())
    assert trainer.global_step == 8
    (told,) = [line for line in caplog.messages if "training goes on" in line]
    assert told.startswith("Wrong: nothing is measured at step 0")
    assert re.search(message, told)


def test_measurements_refuse_weights_that_are_spread_over_processes() -> None:
    sharded: Any = type("FSDPStrategy", (), {})()
    trainer: Any = SimpleNamespace(strategy=sharded, callbacks=[])
    for callback in (WeightNorm(), LogTimeEvaluator(), BarrierMonitor(), DisplacementDistribution()):
        who = type(callback).__name__
        with pytest.raises(MisconfigurationException, match=f"{who} cannot measure weights that FSDPStrategy spreads"):
            callback.setup(trainer, SmallNet(), "fit")


# ---------------------------------------------------------------------- the times of measurements: the same everywhere

ALONG = {
    "Measurement": WeightNorm,
    "LogTimeEvaluator": LogTimeEvaluator,
    "GradientNoiseMonitor": GradientNoiseMonitor,
    "CurvatureMonitor": CurvatureMonitor,
    "ReplicaOverlap": lambda *schedule: ReplicaOverlap(torch.zeros(2, 8), *schedule),
}
PAIRS = {
    "AgingMonitor": AgingMonitor,
    "BarrierMonitor": BarrierMonitor,
    "DisplacementDistribution": DisplacementDistribution,
    "FabricAgingMonitor": lambda *schedule: FabricAgingMonitor(*schedule, max_step=1000),
    "AgingTracker": lambda *schedule: AgingTracker(nn.Linear(2, 2), *schedule, max_step=1000),
}


@pytest.mark.parametrize("make", ALONG.values(), ids=ALONG)
def test_all_that_measures_along_the_run_takes_the_same_steps(make: Any) -> None:
    for schedule, steps in (
        (Steps([0, 5]), Steps([0, 5])),
        ([0, 5], Steps([0, 5])),
        ((0, 5), Steps([0, 5])),
        (np.array([0, 5]), Steps([0, 5])),
        (4, Steps.logspaced(4)),
        (np.int64(4), Steps.logspaced(4)),
        (LogTimeSchedule([0, 5], [1]), Steps([0, 5])),
        (LogTimeSchedule.logspaced(), Steps.logspaced(3)),
    ):
        assert make(schedule).schedule == steps
    for bad, error in ((0, ValueError), (1001, ValueError), ([], ValueError), ([5, 0], ValueError), (-3, ValueError)):
        with pytest.raises(error, match="schedule"):
            make(bad)
    for wrong in ("subaging", 1.5, True, None, {1: 2}.items, object()):
        with pytest.raises(TypeError, match="schedule="):
            make(wrong)


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_all_that_measures_pairs_takes_the_same_schedules(make: Any) -> None:
    for schedule in (LogTimeSchedule([0, 5], [1]), 4, np.int64(4), "baity-jesi", "subaging"):
        make(schedule)
    for bad in (0, 1001, -3, "papers"):
        with pytest.raises(ValueError, match="schedule="):
            make(bad)
    for wrong in (1.5, True, [0, 5], Steps([0, 5]), object()):
        with pytest.raises(TypeError, match="schedule="):
            make(wrong)


def test_numbers_and_presets_measure_the_pairs_they_stand_for(tmp_path: Path) -> None:
    def pairs(schedule: Any) -> set[tuple[int, int]]:
        monitor = AgingMonitor(schedule, **quiet())
        distribution = DisplacementDistribution(schedule, **quiet())
        quiet_trainer(tmp_path, callbacks=[distribution, monitor], max_steps=200).fit(SmallNet(), data())
        profile = monitor.record.profile("displacement")
        of_profile = set(zip(profile.waiting_times.tolist(), profile.lags.tolist(), strict=True))
        of_monitor = set(zip(*(steps.tolist() for steps in monitor.record.pairs), strict=True))
        assert of_profile == of_monitor
        return of_monitor

    grid = LogTimeSchedule.logspaced(200, waiting_times_per_decade=2, lags_per_decade=2)
    assert pairs(2) == set(grid.pairs)
    assert pairs("subaging") == set(LogTimeSchedule.preset("subaging", 200).pairs)


def test_a_preset_needs_the_length_of_the_run(tmp_path: Path) -> None:
    callbacks: list[Callback] = [AgingMonitor(**quiet()), DisplacementDistribution("baity-jesi", **quiet())]
    trainer = quiet_trainer(tmp_path, callbacks=callbacks, max_steps=-1, max_epochs=-1, max_time="00:00:00:20")
    with pytest.raises(ValueError, match="schedule='baity-jesi' needs a run of known length"):
        trainer.fit(SmallNet(), data())
    with pytest.raises(ValueError, match="schedule='subaging' needs a run of known length"):
        FabricAgingMonitor("subaging")
    with pytest.raises(ValueError, match="schedule='subaging' needs a run of known length"):
        AgingTracker(nn.Linear(2, 2), "subaging")


@pytest.mark.parametrize("make", [WeightNorm, LogTimeEvaluator, AgingMonitor, FabricAgingMonitor, BarrierMonitor])
def test_an_unknown_option_is_named(make: Any) -> None:
    with pytest.raises(TypeError, match=r"^\w+ has no option 'sampel'; there are \[.*'name'"):
        make(3, sampel=7)


# ---------------------------------------------------------------------- one record for one training


def test_all_callbacks_of_a_name_share_a_record_in_any_order(tmp_path: Path) -> None:
    def make() -> list[Any]:
        return [
            WeightNorm(**quiet()),
            AgingMonitor(**quiet()),
            DisplacementDistribution(**quiet()),
            LogTimeEvaluator(**quiet()),
        ]

    records = []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        callbacks = [make()[i] for i in order]
        torch.manual_seed(0)
        quiet_trainer(tmp_path, callbacks=callbacks, max_steps=20).fit(SmallNet(), data())
        assert len({id(callback.record) for callback in callbacks}) == 1
        records.append(callbacks[0].record)
    assert records[0] == records[1] == records[2]
    assert records[0].one_time("weight_norm")[0][-1] == 20


def test_callbacks_of_two_names_have_two_records(tmp_path: Path) -> None:
    callbacks: list[Any] = [WeightNorm(), WeightNorm(name="other"), AgingMonitor(), AgingMonitor()]
    quiet_trainer(tmp_path, callbacks=callbacks, max_steps=8).fit(SmallNet(), data())
    assert len({id(callback.record) for callback in callbacks}) == 3
    assert {path.parent.name for path in tmp_path.rglob("*.npz")} == {"glassy", "other", "glassy_2"}
    with pytest.raises(MisconfigurationException, match="there are 2 WeightNorm called 'glassy': give each another"):
        quiet_trainer(tmp_path, callbacks=[WeightNorm(), WeightNorm()]).fit(SmallNet(), data())


def test_a_new_training_starts_a_new_record_for_all_of_its_callbacks(tmp_path: Path) -> None:
    callbacks: list[Any] = [WeightNorm(**quiet()), AgingMonitor(**quiet())]
    trainer = quiet_trainer(tmp_path, callbacks=callbacks, max_steps=8)
    module = SmallNet()
    trainer.fit(module, data())
    first = callbacks[0].record
    trainer.fit_loop.epoch_loop.max_steps = 20
    trainer.fit(module, data())  # the same training goes on
    record = callbacks[0].record
    assert record is callbacks[1].record
    assert set(zip(*first.pairs, strict=True)) < set(zip(*record.pairs, strict=True))
    assert record.one_time("weight_norm")[0].tolist() == [0, 1, 2, 3, 5, 7, 8, 10, 15, 20]

    trainer.fit_loop.epoch_loop.max_steps = 30
    trainer.fit(SmallNet(), data())  # another module
    assert callbacks[0].record is callbacks[1].record
    assert callbacks[0].record.one_time("weight_norm")[0].min() >= 20
    quiet_trainer(tmp_path, callbacks=callbacks, max_steps=8).fit(module, data())  # another Trainer
    assert callbacks[0].record is callbacks[1].record
    assert callbacks[0].record.one_time("weight_norm")[0].tolist() == [0, 1, 2, 3, 5, 7, 8]


def test_after_a_fit_that_failed_in_its_last_hooks_another_one_is_measured(tmp_path: Path) -> None:
    class Failing(Callback):
        broken = True

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 3 and self.broken:
                raise RuntimeError("at step 3")

        def on_exception(self, *_: Any) -> None:
            raise RuntimeError("and in on_exception")

    failing, norm = Failing(), WeightNorm(**quiet())
    trainer = quiet_trainer(tmp_path, callbacks=[failing, norm, AgingMonitor(**quiet())], max_steps=8)
    with pytest.raises(RuntimeError, match="on_exception"):
        trainer.fit(SmallNet(), data())
    failing.broken = False
    module = SmallNet()
    trainer.fit(module, data())
    assert norm.record.one_time("weight_norm")[0][-1] == 8
    assert norm.record.one_time("weight_norm")[1][-1] == pytest.approx(
        float(torch.cat([p.detach().flatten() for p in module.parameters()]).norm()), rel=1e-6
    )


def test_a_checkpoint_without_a_monitor_is_gone_on_from_with_one(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, callbacks=[WeightNorm(**quiet())], max_steps=8)
    trainer.fit(SmallNet(), data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    norm, monitor = WeightNorm(**quiet()), AgingMonitor(**quiet())
    trainer = quiet_trainer(tmp_path, callbacks=[norm, monitor], max_steps=20)
    with pytest.warns(UserWarning, match="training starts at step 8 without earlier snapshots; a new record starts"):
        trainer.fit(SmallNet(), data(), ckpt_path=tmp_path / "a.ckpt")
    assert norm.record is monitor.record
    assert norm.record.one_time("weight_norm")[0].tolist() == [0, 1, 2, 3, 5, 7, 8, 10, 15, 20]
    assert monitor.record.waiting_times.min() == 8


def test_a_failing_summary_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Shy(WeightNorm):
        def report(self, record: AgingRecord) -> list[str]:
            raise ValueError("no comment")

    quiet_trainer(tmp_path, callbacks=[Shy(save=False)], max_steps=8).fit(SmallNet(), data())
    assert "Shy: there is no summary (ValueError: no comment); training goes on" in caplog.messages


def test_a_resumed_training_goes_on_in_another_fit(tmp_path: Path) -> None:
    def fit(*callbacks: Any, until: int, trainer: Any = None, **options: Any) -> Any:
        trainer = trainer or quiet_trainer(tmp_path, callbacks=list(callbacks))
        trainer.fit_loop.epoch_loop.max_steps = until
        trainer.fit(module, data(), **options)
        return trainer

    module, schedule = SmallNet(), [0, 5, 10, 15, 20, 25]
    for monitors in ([], [AgingMonitor(**quiet())]):
        fit(WeightNorm(schedule, **quiet()), *monitors, until=10).save_checkpoint(tmp_path / "a.ckpt")
        norm = WeightNorm(schedule, **quiet())
        trainer = fit(norm, *monitors, until=17, ckpt_path=tmp_path / "a.ckpt")
        fit(until=25, trainer=trainer)
        assert norm.record.one_time("weight_norm")[0].tolist() == [0, 5, 10, 15, 17, 20, 25]


def test_a_fit_from_an_earlier_step_starts_a_new_record(tmp_path: Path) -> None:
    module = SmallNet()
    plain = quiet_trainer(tmp_path, max_steps=3)
    plain.fit(module, data())
    plain.save_checkpoint(tmp_path / "3.ckpt")  # without a record
    norm, monitor = WeightNorm(**quiet()), AgingMonitor(**quiet())
    trainer = quiet_trainer(tmp_path, callbacks=[norm, monitor], max_steps=8)
    trainer.fit(module, data())
    trainer.fit(module, data(), ckpt_path=tmp_path / "3.ckpt")
    assert norm.record is monitor.record
    assert norm.record.one_time("weight_norm")[0].tolist() == [3, 5, 7, 8]
    assert monitor.record.waiting_times.min() == 3


def test_a_callback_that_was_taken_out_measures_no_more(tmp_path: Path) -> None:
    class Boom(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("boom")

    monitor = AgingMonitor(sample=None, **quiet())
    trainer: Any = quiet_trainer(
        tmp_path, callbacks=[monitor, DisplacementDistribution(**quiet()), Boom()], max_steps=8
    )
    module = SmallNet()
    with pytest.raises(RuntimeError, match="boom"):
        trainer.fit(module, data())
    gone = weakref.ref(module)
    del module, trainer.callbacks[1:]
    trainer.fit(SmallNet(), data())
    assert monitor.record.profile_names == ()
    gc.collect()
    assert gone() is None


def test_facts_that_cannot_be_saved_cost_a_warning_and_no_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(WeightNorm):
        def describe(self) -> dict[str, Any]:
            return {"batch": torch.zeros(3)}

    class Worse(WeightNorm):
        def describe(self) -> dict[str, Any]:
            raise RuntimeError("no idea")

    callbacks: list[Any] = [Odd(summary=False), Worse(summary=False), AgingMonitor(summary=False)]
    quiet_trainer(tmp_path, callbacks=callbacks, max_steps=8).fit(SmallNet(), data())
    (path,) = tmp_path.rglob("aging_record.npz")
    assert AgingRecord.load(path) == callbacks[0].record
    told = [line for line in caplog.messages if "training goes on" in line]
    assert [line.split(": ")[:2] for line in told] == [
        [who, "its facts are left out of the metadata (" + error]
        for who, error in (("Odd", "TypeError"), ("Worse", "RuntimeError"))
    ]


def test_a_record_that_cannot_be_made_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Frozen(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            self.optimizers().step()  # type: ignore[union-attr]

        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            self.requires_grad_(False)
            return optimizer

    trainer = quiet_trainer(tmp_path, callbacks=[WeightNorm()], max_steps=8)
    trainer.fit(Frozen(), data())
    assert trainer.global_step == 8
    (told,) = [line for line in caplog.messages if "training goes on" in line]
    assert told.startswith("WeightNorm: there is no record for what is measured (ValueError: ")


def test_a_state_that_is_none_is_told_of(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, callbacks=[WeightNorm(**quiet())], max_steps=8)
    trainer.fit(SmallNet(), data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    for damaged in ("x", {"series": 3}, {"progress": {"WeightNorm": {}}}):
        checkpoint["lightning_glassy"]["glassy"] = damaged
        torch.save(checkpoint, tmp_path / "b.ckpt")
        norm = WeightNorm(**quiet())
        with pytest.warns(UserWarning, match="WeightNorm: the series of the checkpoint cannot go on: "):
            quiet_trainer(tmp_path, callbacks=[norm], max_steps=20).fit(
                SmallNet(), data(), ckpt_path=tmp_path / "b.ckpt"
            )
        assert norm.record.one_time("weight_norm")[0].tolist() == [8, 10, 15, 20]


def test_a_callback_that_a_module_adds_in_its_setup_is_measured(tmp_path: Path) -> None:
    class Adding(SmallNet):
        def setup(self, stage: str) -> None:
            self.trainer.callbacks += [WeightNorm(**quiet()), AgingMonitor(**quiet())]  # type: ignore[attr-defined]

    trainer: Any = quiet_trainer(tmp_path, max_steps=8)
    trainer.fit(Adding(), data())
    assert trainer.callbacks[-2].record is trainer.callbacks[-1].record
    assert trainer.callbacks[-2].record.one_time("weight_norm")[0][-1] == 8


def test_a_copy_shares_nothing_with_the_training(tmp_path: Path) -> None:
    class Holding(WeightNorm):
        def __init__(self) -> None:
            super().__init__(**quiet())
            self.held = [1]

        def release(self) -> None:
            self.held.clear()

    class Copy(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            for callback in trainer.callbacks[:2]:
                copy.deepcopy(callback)
            assert trainer.callbacks[0].held
            assert trainer.callbacks[1]._sets

    quiet_trainer(tmp_path, callbacks=[Holding(), LogTimeEvaluator(**quiet()), Copy()], max_steps=3).fit(
        SmallNet(), data()
    )


# ---------------------------------------------------------------------- callbacks in the wrong place


@pytest.mark.parametrize("callback", [AgingMonitor(), WeightNorm(), BarrierMonitor(), LogTimeEvaluator()])
def test_a_fabric_refuses_a_callback_for_a_trainer_by_name(callback: Any) -> None:
    name, model = type(callback).__name__, nn.Linear(2, 2)
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[callback])
    with pytest.raises(MisconfigurationException, match=f"{name} is a callback for a Trainer.*FabricAgingMonitor"):
        fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    # If the parts are set up separately, the callback is refused at the first step.
    module = fabric.setup_module(nn.Linear(2, 2))
    optimizer = fabric.setup_optimizers(torch.optim.SGD(module.parameters(), lr=0.1))
    fabric.backward(module(torch.ones(1, 2)).sum())
    with pytest.raises(MisconfigurationException, match=f"{name} is a callback for a Trainer"):
        optimizer.step()


def test_a_message_names_the_callback_that_speaks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class MyMonitor(AgingMonitor):
        pass

    (tmp_path / "taken").write_text("")
    for callback in (MyMonitor(dirpath=tmp_path / "taken"), WeightNorm(dirpath=tmp_path / "taken")):
        caplog.clear()
        quiet_trainer(tmp_path, callbacks=[callback], max_steps=8).fit(SmallNet(), data())
        (told,) = [line for line in caplog.messages if "stays in memory" in line]
        assert f"{type(callback).__name__}.record.save(path) writes it" in told


def test_options_are_declared_once(tmp_path: Path) -> None:
    """The YAML of a LightningCLI, and a type checker, see the options of a TypedDict."""
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--callbacks", type=list[Callback])
    wanted = [
        {"class_path": "lightning_glassy.AgingMonitor", "init_args": {"schedule": 4, "sample": 10, "name": "mine"}},
        {"class_path": "lightning_glassy.LogTimeEvaluator", "init_args": {"schedule": [0, 5], "batch_size": 7}},
    ]
    make = getattr(parser, "instantiate", parser.instantiate_classes)
    monitor, evaluator = make(parser.parse_args(["--callbacks", json.dumps(wanted)])).callbacks
    assert (monitor.schedule, monitor.options["sample"], monitor.name) == (4, 10, "mine")
    assert evaluator.schedule == Steps([0, 5])

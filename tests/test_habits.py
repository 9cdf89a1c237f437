"""Things that users try first: epochs as the clock, lists and numbers as a schedule, and long measurements."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_glassy import AgingMonitor, AgingTracker, FabricAgingMonitor, LogTimeSchedule, Measurement, cli
from lightning_glassy.callbacks import recorder as recorder_module
from lightning_glassy.schedule import as_schedule
from tests.helpers import SmallNet, data, environment, quiet_trainer

# ---------------------------------------------------------------------- epochs


def test_waiting_times_and_lags_are_ends_of_epochs() -> None:
    schedule = LogTimeSchedule.epochs(30, 7)
    assert all(step % 7 == 0 for step in (*schedule.waiting_times, *schedule.lags))
    assert schedule.waiting_times[:4] == (0, 7, 14, 21)
    assert schedule.lags[-1] == 210  # the whole run
    assert all(waiting_time + lag <= 210 for waiting_time, lag in schedule.pairs)
    for arguments, words in (((0, 7), "n_epochs=0"), ((3, 0), "steps_per_epoch=0")):
        with pytest.raises(ValueError, match=words):
            LogTimeSchedule.epochs(*arguments)


@pytest.mark.parametrize(("accumulated", "size"), [(1, 24), (5, 5)])
def test_epochs_are_counted_in_updates(accumulated: int, size: int, tmp_path: Path) -> None:
    """96 samples in batches of 4 are 24 batches. The last of 5 updates in an epoch has 4 batches."""
    monitor = AgingMonitor("epoch", summary=False)
    trainer = quiet_trainer(
        tmp_path, callbacks=[monitor], max_steps=-1, max_epochs=5, accumulate_grad_batches=accumulated
    )
    trainer.fit(SmallNet(), data(n=96))
    record = monitor.record
    assert record.meta["steps_per_epoch"] == record.steps_per_epoch == size
    assert record.waiting_times.tolist() == [0, size, 2 * size, 3 * size, 4 * size]
    assert record.lags.tolist() == [size, 2 * size, 3 * size, 4 * size, 5 * size]
    assert trainer.global_step == 5 * size


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": -1, "max_epochs": -1, "max_time": "00:00:00:20"},
        {"max_steps": -1, "max_epochs": 3, "reload_dataloaders_every_n_epochs": 1},
    ],
)
def test_epochs_of_unknown_length_are_refused_with_the_remedy(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"schedule='epoch' needs .* LogTimeSchedule\.epochs\(n_epochs, steps_per_epoch\)"
    ):
        quiet_trainer(tmp_path, callbacks=[AgingMonitor("epoch")], **options).fit(SmallNet(), data())


def test_epochs_whose_length_changes_or_that_are_not_there_are_refused(tmp_path: Path) -> None:
    callbacks = [AgingMonitor("epoch"), GradientAccumulationScheduler({0: 1, 1: 2})]
    with pytest.raises(ValueError, match="schedule='epoch' needs"):
        quiet_trainer(tmp_path, callbacks=callbacks, max_steps=-1, max_epochs=3).fit(SmallNet(), data())
    with pytest.raises(ValueError, match="of 3 steps ends before the first one of 24"):
        quiet_trainer(tmp_path, callbacks=[AgingMonitor("epoch")], max_steps=3).fit(SmallNet(), data(n=96))
    with pytest.raises(ValueError, match="schedule='epoch' needs a Trainer"):
        FabricAgingMonitor("epoch", max_step=100)
    with pytest.raises(ValueError, match="schedule='epoch' needs a Trainer"):
        AgingTracker(SmallNet().named_parameters(), "epoch", max_step=100)


# ---------------------------------------------------------------------- a list, a number


def test_a_list_is_refused_with_the_schedule_that_it_may_mean() -> None:
    with pytest.raises(TypeError, match=r"LogTimeSchedule\(\[1, 10, 100\], \[1, 10, 100\]\) has these waiting times"):
        AgingMonitor(schedule=[1, 10, 100])  # type: ignore[arg-type]
    assert LogTimeSchedule([1, 10, 100], [1, 10, 100]).waiting_times == (1, 10, 100)
    with pytest.raises(ValueError, match="A number says how many steps are measured in each factor of ten"):
        AgingMonitor(schedule=2000)
    with pytest.raises(ValueError, match="choose from 'baity-jesi', 'subaging', 'epoch'"):
        as_schedule("epochs", 100)  # type: ignore[arg-type]


def test_a_number_says_at_the_start_what_it_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("lightning_glassy.callbacks.aging.rank_zero_info", told.append)
    for schedule in (4, None):
        quiet_trainer(tmp_path, callbacks=[AgingMonitor(schedule, summary=False)], max_steps=3).fit(SmallNet(), data())
    assert told == ["AgingMonitor: schedule=4 stands for 4 waiting times and 4 lags in each factor of ten of the steps"]


# ---------------------------------------------------------------------- measurements that take long


class Slow(Measurement):
    """Takes three hundredths of a second, and is due at every step."""

    seconds = 0.03

    def measure(self, trainer: Any, module: Any) -> dict[str, float]:
        time.sleep(self.seconds)
        return {"slow": float(trainer.global_step)}


def fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, **options: Any) -> tuple[Slow, list[str]]:
    monkeypatch.setattr(recorder_module, "FREE_IF_SHORT", free)
    told: list[str] = []
    monkeypatch.setattr(recorder_module, "rank_zero_info", told.append)
    probe = Slow(list(range(61)), **options)
    quiet_trainer(tmp_path, callbacks=[probe], max_steps=60).fit(SmallNet(), data())
    return probe, [words for words in told if "max_share" in words]


def test_a_measurement_that_takes_too_large_a_share_leaves_steps_out_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    probe, told = fitted(tmp_path, monkeypatch, free=0.1)
    steps = probe.record.one_time("slow")[0].tolist()
    assert steps[0] == 0
    assert 1 <= len(steps) < 20
    assert len(told) == 1
    assert "Slow: a measurement takes 0.03" in told[0]
    assert "stay below 5% of the time of the training (max_share=0.05; max_share=None measures all)" in told[0]
    left_out = probe.record.meta["Slow"]["left_out"]
    assert left_out == 61 - len(steps)
    assert f"{left_out} were left out (max_share=0.05)" in capsys.readouterr().out


@pytest.mark.parametrize(("free", "options"), [(0.1, {"max_share": None}), (100.0, {})])
def test_without_a_limit_and_in_the_free_seconds_every_step_is_measured(
    free: float, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, told = fitted(tmp_path, monkeypatch, free, **options)
    assert probe.record.one_time("slow")[0].tolist() == list(range(61))
    assert told == []
    assert "left_out" not in probe.record.meta["Slow"]


def test_time_for_the_last_step_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is time for three measurements: the first, the second, and the last."""
    monkeypatch.setattr(Slow, "seconds", 0.2)
    probe, _ = fitted(tmp_path, monkeypatch, free=0.79, max_share=1e-9)
    assert probe.record.one_time("slow")[0].tolist() == [0, 1, 60]


def test_what_was_left_out_is_counted_on_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "FREE_IF_SHORT", 0.0)
    options = {"max_share": 1e-9, "save": False, "summary": False}
    trainer = quiet_trainer(tmp_path, callbacks=[Slow(list(range(61)), **options)], max_steps=12)
    trainer.fit(SmallNet(), data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = Slow(list(range(61)), **options)
    trainer = quiet_trainer(tmp_path, callbacks=[again], max_steps=24)
    trainer.fit(SmallNet(), data(), ckpt_path=tmp_path / "a.ckpt")
    assert again.record.one_time("slow")[0].tolist() == [0, 12, 24]  # the first step, and the last of each fit
    assert again.record.meta["Slow"]["left_out"] == 22


def test_the_share_is_that_of_the_whole_training_once_its_pace_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = recorder_module.Recorder("glassy")
    progress = recorder.progress("Slow")
    progress.seconds, progress.latest = 6.0, 1.0
    monkeypatch.setattr(recorder, "_seconds", lambda: 10.0)  # 4 of them belong to the training
    afford = partial(recorder.affords, "Slow", 0.05)
    assert afford(1000, 100_000)  # 6 + 4 * 100 seconds are expected, and 6 + 2 are 2 % of them
    assert not afford(1000, 20_000)  # 86 seconds
    assert not afford(50, 100_000)  # the first steps are slower than the others
    assert not afford(1000, None)
    assert afford(500, 1000)  # fifteen free seconds
    progress.seconds = 2.0
    assert afford(1000, None)  # five


@pytest.mark.parametrize("share", [0, -0.1, 1.5, "5%", True, float("nan")])
def test_a_share_that_is_none_is_refused(share: Any) -> None:
    with pytest.raises(ValueError, match=r"max_share=.* must be a part of the time of the training"):
        Slow(max_share=share)
    with pytest.raises(TypeError, match="AgingMonitor has no option 'max_share'"):
        AgingMonitor(max_share=0.1)  # type: ignore[call-arg]


def test_a_long_measurement_says_how_long_all_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    monkeypatch.setattr("lightning_glassy.callbacks.measurement.rank_zero_info", told.append)
    monkeypatch.setattr("lightning_glassy.callbacks.measurement._LONG", 0.01)
    with caplog.at_level(logging.WARNING):
        quiet_trainer(tmp_path, callbacks=[Slow([0, 10, 50, 1000])], max_steps=60).fit(SmallNet(), data())
    (words,) = told
    assert words.startswith("Slow: a measurement takes 0.03")
    assert "and 2 more are due until step 60: about 0 s, of which at most 5%" in words


# ---------------------------------------------------------------------- the command


@pytest.mark.needs("plotly")
def test_a_long_report_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = AgingMonitor(summary=False, dirpath=tmp_path / "a")
    quiet_trainer(tmp_path, callbacks=[monitor], max_steps=60).fit(SmallNet(), data())
    path = str(tmp_path / "a")
    monkeypatch.setattr(cli, "_LONG", 0.0)
    assert cli.main(["report", path, "--bootstrap", "10"]) == 0
    printed = capsys.readouterr().err
    assert printed.startswith("report.html: 0 of ")
    assert printed.count("\n") == 1  # one line in a file
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert cli.main(["report", path, "--bootstrap", "10"]) == 0
    printed = capsys.readouterr().err
    assert "analysing" in printed
    assert "\rreport.html: 1 of " in printed
    assert "left" in printed


def test_tensorboard_is_started_with_the_address_of_the_tab(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lightning_glassy", "tensorboard", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as server:
        assert server.stderr is not None
        line = next(line for line in server.stderr if "#glassy" in line)
        server.terminate()
    assert re.fullmatch(r"the curves are at http://\S+:\d+/#glassy\n", line)

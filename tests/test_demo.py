"""`make demo`, shortened: what it promises to leave behind and to say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from examples import digits
from lightning_glassy import AgingRecord

ROOT = Path(__file__).parents[1]


@pytest.mark.needs("plotly")
@pytest.mark.slow
def test_the_demo_leaves_records_a_figure_and_the_way_to_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["digits", "--steps", "300", "--out", str(tmp_path)])
    digits.main()
    printed = capsys.readouterr().out
    for name, n in (("under-parametrised", 330), ("over-parametrised", 26_122)):
        path = tmp_path / name / "version_0" / "glassy" / "aging_record.npz"
        record = AgingRecord.load(path)
        assert record.n_parameters["all"] == n
        assert record.waiting_times[-1] == 215
        assert record.n_replica == 8
        assert (record.meta["batch_size"], record.meta["sampler"]) == (32, "Passes")
        assert str(path) in printed
        assert f"8 replicas of {n:,} parameters, test accuracy" in printed
        assert record.one_time("train_accuracy")[0][-1] == 300
        assert len(record.one_time("gradient_noise")[0]) == len(record.waiting_times) + 1
        assert (tmp_path / "report" / name / "report.html").stat().st_size > 10**6
        assert str(tmp_path / "report" / name / "report.html") in printed
        assert list(path.parent.parent.glob("events.out.tfevents.*"))
        (alone,) = (tmp_path / f"{name}-alone").rglob("aging_record.npz")
        record = AgingRecord.load(alone)
        assert {"train_loss", "test_accuracy", "gradient_noise", "flat_fraction"} <= set(record.one_time_names)
        assert record.one_time("flat_fraction")[0].tolist() == [0, 1, 15, 150, 300]
        assert {"loss_path", "displacement"} <= set(record.profile_names)
        report = tmp_path / "report" / f"{name}-alone"
        assert {"barriers.png", "curvature.png", "loss.png"} <= {path.name for path in report.iterdir()}
        assert f"THE LANDSCAPE OF ONE {name.upper()} NET" in printed
    assert printed.count("directions (|curvature| < 0.01) on 300 digits") == 2
    assert printed.count("barriers on the straight line between the weights at") == 2
    assert (tmp_path / "aging.png").stat().st_size > 20_000
    assert f"lightning-glassy tensorboard {tmp_path}" in printed
    assert printed.count("verdict: ") == printed.count("aging exponent mu = ") == 2


@pytest.mark.parametrize(("example", "steps"), [("plain_loop", 2000), ("fabric_loop", 1000)])
def test_the_loops_without_a_trainer_say_where_the_record_is(example: str, steps: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"examples.{example}", "--out", tmp_path]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300).stdout
    record = AgingRecord.load(tmp_path / "aging_record.npz")
    assert f"record     {tmp_path / 'aging_record.npz'}" in printed
    assert repr(record) in printed
    assert record.n_parameters["all"] == 2410
    assert int(sum(record.pairs).max()) == steps
    assert f"t_w =      1: mean squared displacement {record.msd()[1, 0]:.2e} after 1 step" in printed


def test_too_short_a_demo_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["digits", "--steps", "5"])
    with pytest.raises(SystemExit):
        digits.main()
    assert "--steps 5 is too short" in capsys.readouterr().err

"""The loss and the gradient noise do not depend on the number of processes that share the work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_glassy import AgingRecord
from tests.processes import launch


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    launch("tests/probes_in_parallel.py", tmp_path / "1", 1)
    printed = launch("tests/probes_in_parallel.py", tmp_path / "2", 2, processes=2)
    single, double = (AgingRecord.load(tmp_path / n / "measured" / "glassy" / "aging_record.npz") for n in "12")
    assert double.one_time_names == single.one_time_names
    assert {"train_loss", "train_accuracy", "gradient_noise/up"} <= set(single.one_time_names)
    for name in single.one_time_names:
        ours, theirs = double.one_time(name), single.one_time(name)
        assert ours[0].tolist() == theirs[0].tolist()
        # An update averages the gradients of the batches of all processes.
        factor = 2 if name.startswith("noise_temperature") else 1
        assert factor * ours[1] == pytest.approx(theirs[1], rel=1e-9), name
    assert double.meta["GradientNoiseMonitor"]["batches"] == 11

    equal = AgingRecord.load(tmp_path / "2" / "measured" / "equal" / "aging_record.npz")
    assert equal.meta["GradientNoiseMonitor"]["batches"] == 10
    assert equal.meta["LogTimeEvaluator"]["sets"]["train"]["batches"] == 10
    assert equal.one_time("gradient_noise")[1].min() > 0

    # In both processes the training is bit for bit the same without measurements.
    for rank in range(2):
        measured, alone = (torch.load(tmp_path / "2" / way / f"weights{rank}.pt") for way in ("measured", "alone"))
        assert all(torch.equal(measured[key], alone[key]) for key in alone)

    # One process fails at step 7. All processes go on, without this step.
    broken = AgingRecord.load(tmp_path / "2" / "broken" / "glassy" / "aging_record.npz")
    for name in ("train_loss", "gradient_noise"):
        assert broken.one_time(name)[0].tolist() == [0, 1, 2, 3, 5, 10, 15, 20]
    assert "nothing is measured at step 7 (RuntimeError: not here)" in printed
    assert "1 of 2 processes could not measure, and log the reason" in printed

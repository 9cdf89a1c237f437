"""Histograms of displacements and weights: against exact distributions, and count by count against NumPy."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from torch import Tensor, nn

from lightning_glassy import (
    AgingMonitor,
    AgingRecord,
    AgingTracker,
    BarrierMonitor,
    DisplacementDistribution,
    LogTimeSchedule,
    ReplicaEnsemble,
)
from lightning_glassy import observables as obs
from lightning_glassy.callbacks import distribution
from lightning_glassy.callbacks.distribution import DISPLACEMENT_EDGES, WEIGHT_EDGES
from lightning_glassy.record import Profile
from tests.helpers import SmallNet, data, quiet_trainer


def counted(weights: list[Tensor], moves: list[list[Tensor]], **options: Any) -> AgingRecord:
    """Return the record of weights that make some moves, with a histogram of each pair of times."""
    n = len(moves)
    callback = DisplacementDistribution(LogTimeSchedule(list(range(n)), list(range(1, n + 1))))
    schedule = LogTimeSchedule(list(range(n)), list(range(1, n + 1)))
    named = [(f"layer{i}.w", weight.requires_grad_()) for i, weight in enumerate(weights)]
    tracker = AgingTracker(named, schedule, **({"sample": None} | options))
    tracker.listeners = {"histogram": lambda event: callback.measure(None, None, event, list(event.due))}  # type: ignore[arg-type]
    tracker.update(0)
    for step, of_each in enumerate(moves, 1):
        for weight, move in zip(weights, of_each, strict=True):
            weight.data += move
        tracker.update(step)
    tracker.drain()
    return tracker.record


def z_score(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Return z of the chi-square of counts, with small bins merged. Right probabilities give z a variance of 1."""
    expected = counts.sum() * probabilities
    edges = np.searchsorted(np.cumsum(expected), np.arange(10.0, counts.sum(), 10.0))
    starts = np.unique(np.concatenate([[0], edges[edges < len(counts)]]))
    found, wanted = np.add.reduceat(counts, starts), np.add.reduceat(expected, starts)
    chi2, n = float(((found - wanted)[wanted > 0] ** 2 / wanted[wanted > 0]).sum()), int((wanted > 0).sum()) - 1
    assert n > 20
    return (chi2 - n) / math.sqrt(2 * n)


def of_exponentials(edges: np.ndarray) -> np.ndarray:
    """Return the probabilities of bins for a two-sided exponential of variance 1."""
    tail = 0.5 * np.exp(-math.sqrt(2) * np.abs(edges))
    below = np.where(edges < 0, tail, 1 - tail)
    return np.diff(np.concatenate([[0.0], below, [1.0]]))


def test_gaussian_and_exponential_displacements_have_their_distributions() -> None:
    n, generator = 200_000, np.random.default_rng(5)
    gaussian = torch.tensor(generator.normal(size=n) * 3e-3)
    exponential = torch.tensor(generator.laplace(size=n) * 7e-5)
    for move, right, wrong in (
        (gaussian, obs.gaussian_probabilities, of_exponentials),
        (exponential, of_exponentials, obs.gaussian_probabilities),
    ):
        (grid, (counts,)) = counted([torch.zeros(n, dtype=torch.float64)], [[move]]).profile("displacement")[2:]
        assert counts.sum() == n
        assert abs(z_score(counts, right(grid))) < 4
        assert z_score(counts, wrong(grid)) > 100
        # The lengths of the displacements have the right distribution, too.
        edges, folded = obs.fold(grid, counts)
        assert folded.sum() == n
        assert abs(z_score(folded, obs.fold(grid, right(grid))[1])) < 4
        # The second moment, from the density, is 1 by construction.
        middles = np.sqrt(np.abs(grid[1:] * grid[:-1]))
        second = float((obs.density(grid, counts) * middles**2 * np.diff(grid)).sum())
        assert second == pytest.approx(1.0, abs=0.02)
        assert edges[0] > 0


def by_hand(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.bincount(np.searchsorted(edges.astype(values.dtype), values, side="right"), minlength=len(edges) + 1)


@pytest.mark.parametrize("options", [{}, {"moments": "msd"}, {"snapshot_device": "cpu"}, {"groups": "layer"}], ids=str)
def test_counts_are_those_of_numpy_in_all_precisions(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)

    def draw(scale: float) -> list[Tensor]:
        dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float32]
        shapes = [(300, 40), (50, 7), (11,), (1,)]
        return [
            (scale * torch.randn(s, generator=generator)).to(d) for s, d in zip(shapes, dtypes, strict=True)
        ]  # fmt: skip

    weights, moves = draw(0.1), [draw(0.01), draw(0.01)]
    states = [[w.clone() for w in weights]]
    for move in moves:
        states.append([w + m for w, m in zip(states[-1], move, strict=True)])
    record = counted(weights, moves, **options)

    def wide(tensor: Tensor) -> np.ndarray:
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).numpy().ravel()

    waiting_times, lags, grid, counts = record.profile("weights")
    assert (waiting_times.tolist(), lags.tolist()) == ([0, 1], [0, 0])
    for row, state in zip(counts, states, strict=False):
        assert np.array_equal(row, sum(by_hand(wide(w), grid) for w in state))
    waiting_times, lags, grid, counts = record.profile("displacement")
    assert list(zip(waiting_times, lags, strict=True)) == [(0, 1), (0, 2), (1, 1)]
    for waiting_time, lag, row in zip(waiting_times, lags, counts, strict=True):
        moved = [wide(a) - wide(b) for a, b in zip(states[waiting_time + lag], states[waiting_time], strict=True)]
        scale = 1 / math.sqrt(sum(float((d.astype(float) ** 2).sum()) for d in moved) / sum(d.size for d in moved))
        expected = sum(by_hand((d * d.dtype.type(scale)), grid) for d in moved)
        # The last bit of the scale may move a coordinate over an edge.
        assert row.sum() == expected.sum() == 12_362
        assert np.abs(row - expected).sum() <= 4


def test_a_sample_is_counted_where_one_is_tracked() -> None:
    record = counted([torch.zeros(1000)], [[torch.randn(1000)]], sample=100)
    assert record.profile("displacement").values.sum() == record.n_sampled["all"] == 100


def test_weights_that_stand_still_or_are_no_numbers_are_counted_too(caplog: pytest.LogCaptureFixture) -> None:
    still = counted([torch.ones(10)], [[torch.zeros(10)]]).profile("displacement").values[0]
    assert still[len(still) // 2] == still.sum() == 10
    broken = torch.zeros(10)
    broken[3] = math.nan
    gone = counted([torch.ones(10)], [[broken]])
    assert gone.profile("displacement").values.sum() == 10
    assert gone.profile("weights").values.sum() == 10


def test_edges_reach_as_far_as_they_say_and_the_rest_is_counted() -> None:
    for edges, first, last in ((DISPLACEMENT_EDGES, 1e-3, 1e3), (WEIGHT_EDGES, 1e-6, 1e3)):
        assert np.array_equal(edges, -edges[::-1])
        positive = edges[len(edges) // 2 :]
        assert positive[[0, -1]] == pytest.approx([first, last])
        assert np.diff(np.log10(positive)) == pytest.approx(0.1)
    record = counted([torch.tensor([-5000.0, 0.0, 5000.0])], [[torch.ones(3)]])
    assert record.profile("weights").values[0][[0, -1]].tolist() == [1, 1]


def test_the_probabilities_of_a_gaussian_have_the_digits_of_their_tails() -> None:
    edges = np.array([-9.0, -2.0, -1e-6, 1e-6, 0.3, 2.0, 9.0])
    found = obs.gaussian_probabilities(edges)
    assert found.sum() == pytest.approx(1.0, abs=1e-15)
    assert found == pytest.approx(found[::-1], rel=1e-12) or found[0] == pytest.approx(found[-1], rel=1e-12)
    assert found[-1] == pytest.approx(1.1285884059538406e-19, rel=1e-12)
    assert found[3] == pytest.approx(2e-6 / math.sqrt(2 * math.pi), rel=1e-9)
    assert obs.gaussian_probabilities(3 * edges, 3.0) == pytest.approx(found, rel=1e-9)
    with pytest.raises(ValueError, match="symmetric about 0"):
        obs.fold([-1.0, 2.0], [1, 1, 1])


def test_pairs_are_the_first_at_or_after_those_of_the_schedule(tmp_path: Path) -> None:
    def pairs(monitor: LogTimeSchedule, wanted: Any) -> list[tuple[int, int]]:
        callback = DisplacementDistribution(wanted, save=False, summary=False)
        callbacks = [callback, AgingMonitor(monitor, save=False, summary=False)]
        quiet_trainer(tmp_path, callbacks=callbacks).fit(SmallNet(), data())
        profile = callback.record.profile("displacement")
        return list(zip(profile.waiting_times.tolist(), profile.lags.tolist(), strict=True))

    monitor = LogTimeSchedule([0, 4, 8, 20], [1, 3, 6, 30, 31])
    assert pairs(monitor, LogTimeSchedule([0, 8], [1, 30])) == [(0, 1), (0, 30), (8, 1), (8, 30)]
    assert pairs(monitor, LogTimeSchedule([3, 7, 9], [2, 4, 5])) == [(4, 3), (4, 6), (8, 3), (8, 6), (20, 3), (20, 6)]
    # The last lag of a snapshot is measured before the snapshot is released.
    assert pairs(LogTimeSchedule([5], [10]), LogTimeSchedule([5], [10])) == [(5, 10)]


def test_alone_it_brings_its_monitor_and_both_share_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distribution, barrier = DisplacementDistribution(1), BarrierMonitor(points=3)
    trainer = quiet_trainer(tmp_path, callbacks=[distribution, barrier])
    trainer.fit(SmallNet(), data())
    record = distribution.record
    assert barrier.record is record
    assert sum(isinstance(callback, AgingMonitor) for callback in trainer.callbacks) == 1  # type: ignore[attr-defined]
    (path,) = tmp_path.rglob("aging_record.npz")
    there = AgingRecord.load(path)
    assert there == record
    assert set(there.profile_names) == {"weights", "displacement", "loss_path"}
    assert len(there) == len(there.profile("displacement").values) == len(there.profile("loss_path").values) == 6
    for who in ("DisplacementDistribution", "BarrierMonitor"):
        assert 0 < there.meta[who]["fraction_of_training"] < 1
    printed = capsys.readouterr().out
    assert "DisplacementDistribution: 9 measurements took " in printed
    assert "BarrierMonitor: 6 measurements took " in printed


def test_a_failure_costs_a_warning_and_neither_training_nor_curves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Tensor:
        raise RuntimeError("no memory today")

    monkeypatch.setattr(distribution, "_count", fail)
    monitor = AgingMonitor(save=False, summary=False)
    with caplog.at_level(logging.WARNING, "lightning_glassy"):
        trainer = quiet_trainer(tmp_path, callbacks=[monitor, DisplacementDistribution(summary=False)])
        trainer.fit(SmallNet(), data())
    assert caplog.text.count("DisplacementDistribution failed (RuntimeError: no memory today)") == 1
    assert len(monitor.record) == len(LogTimeSchedule.logspaced(60).pairs)


def test_what_cannot_be_counted_is_refused_before_the_training(tmp_path: Path) -> None:
    class Many(SmallNet):
        def __init__(self) -> None:
            super().__init__()
            self.net = ReplicaEnsemble(lambda: nn.Linear(8, 3), 2)  # type: ignore[assignment]

    trainer = quiet_trainer(tmp_path, callbacks=[DisplacementDistribution()])
    with pytest.raises(MisconfigurationException, match=r"ReplicaEnsemble.*train a single network"):
        trainer.fit(Many(), data())
    for bad, error in ((0, ValueError), (1001, ValueError), ("log", ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="schedule="):
            DisplacementDistribution(bad)  # type: ignore[arg-type]


@pytest.mark.cuda
@pytest.mark.parametrize("snapshot_device", [None, "cpu"])
def test_on_a_gpu_the_counts_are_the_same_and_not_waited_for(tmp_path: Path, snapshot_device: str | None) -> None:
    class NoWaiting(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            torch.cuda.set_sync_debug_mode("error")

        def on_train_end(self, *_: Any) -> None:
            torch.cuda.set_sync_debug_mode("default")

        on_exception = on_train_end

    def profile(*more: Callback, **options: Any) -> Profile:
        torch.manual_seed(2)
        module = SmallNet()
        module.net[2] = nn.Identity()
        monitor = AgingMonitor(snapshot_device=snapshot_device, save=False, summary=False)
        callback = DisplacementDistribution(summary=False)
        trainer = quiet_trainer(tmp_path, callbacks=[*more, monitor, callback], **options)
        device = trainer.strategy.root_device
        batch = [part.to(device) for part in data().dataset.tensors]  # type: ignore[attr-defined]
        trainer.fit(module, torch.utils.data.DataLoader([batch], batch_size=None))
        return callback.record.profile("displacement")

    here, there = profile(), profile(NoWaiting(), accelerator="gpu")
    assert np.array_equal(here.lags, there.lags)
    assert there.values.sum(axis=1).tolist() == here.values.sum(axis=1).tolist()
    assert np.abs(here.values - there.values).sum() < 0.05 * here.values.sum()

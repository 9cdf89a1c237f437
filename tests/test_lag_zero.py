"""A lag of zero, as in the grid of Baity-Jesi et al., compares weights with themselves. It changes no other answer."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from lightning_glassy import (
    AgingMonitor,
    AgingRecord,
    BarrierMonitor,
    DisplacementDistribution,
    LogTimeSchedule,
)
from lightning_glassy.analysis import aging_exponent, diffusion, heterogeneity, verdict
from lightning_glassy.callbacks.summary import summary
from lightning_glassy.glasses import SubagingClock
from lightning_glassy.observables import barrier_height
from lightning_glassy.plotting import two_time_figure
from lightning_glassy.report import report
from tests.helpers import SmallNet, data, quiet_trainer

TIMES, LAGS = [0, 1, 2, 5, 10, 20, 50, 100], [1, 2, 5, 10, 20, 50, 100, 150]


@pytest.fixture(scope="module")
def records() -> tuple[AgingRecord, AgingRecord]:
    """Return two records of the same eight replicas of an exact clock, with and without the lag 0."""
    noise = np.random.default_rng(3).normal(size=(8, 251, 64))
    path = noise.copy()
    for n in range(1, 251):
        a = float(SubagingClock(0.6, 0.3).factor(n))
        path[:, n] = a * path[:, n - 1] + np.sqrt(1 - a**2) * noise[:, n]
    return tuple(
        AgingRecord.from_trajectory(path, LogTimeSchedule(TIMES, lags, 250), overlap_thresholds=[0.5])
        for lags in ([0, *LAGS], LAGS)
    )


def test_at_lag_zero_nothing_has_moved(records: tuple[AgingRecord, AgingRecord]) -> None:
    record = records[0]
    assert record.lags[0] == 0
    assert np.all(record.msd()[..., 0] == 0)
    assert np.all(record.overlap(0.5)[..., 0] == 1)
    assert np.allclose(record.correlation(kind="cosine")[..., 0], 1, rtol=1e-12)
    # The raw correlation at lag 0 is the mean square of the weights.
    squares = record.correlation(kind="raw")[..., 0]
    assert np.allclose(squares.mean(axis=0), 1, atol=6 * np.sqrt(2 / (64 * 8)))


def test_the_answers_are_those_without_lag_zero(records: tuple[AgingRecord, AgingRecord]) -> None:
    with_zero, without = records
    for analyse in (verdict, diffusion, lambda record: aging_exponent(record, n_bootstrap=20)):
        assert str(analyse(with_zero)) == str(analyse(without))
    chi4 = [heterogeneity(record, eps=0.5).chi4 for record in records]
    assert np.array_equal(chi4[0][:, -len(LAGS) :], chi4[1][:, -len(LAGS) :], equal_nan=True)


def test_every_figure_and_page_shows_a_record_with_lag_zero(
    records: tuple[AgingRecord, AgingRecord], tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = report(records[0], n_bootstrap=10)
        json.dumps(found.to_dict(), allow_nan=False)
        for figure in found.figures().values():
            figure.savefig(io.BytesIO(), format="png", dpi=20)
        for name in ("non_gaussian", "correlation_raw", "chi4"):  # with nothing, a constant and zeros at lag 0
            two_time_figure(records[0], name).savefig(io.BytesIO(), format="png", dpi=20)
    records[0].save(tmp_path / "record.npz")
    assert np.array_equal(AgingRecord.load(tmp_path / "record.npz").msd(), records[0].msd(), equal_nan=True)


def test_a_training_measures_its_pairs_at_lag_zero(tmp_path: Path) -> None:
    quiet = {"summary": False, "dirpath": tmp_path}
    schedule = LogTimeSchedule([0, 10, 20], [0, 1, 10])
    callbacks = [
        AgingMonitor("baity-jesi", **quiet),
        DisplacementDistribution("baity-jesi", **quiet),
        BarrierMonitor(schedule, **quiet),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        quiet_trainer(tmp_path, callbacks=callbacks, max_steps=40).fit(SmallNet(), data())
        record = callbacks[0].record
        found = report(record)
        for figure in found.figures().values():
            figure.savefig(io.BytesIO(), format="png", dpi=20)
    table = summary(record, "AgingMonitor")[0].split("\n")
    assert "t=1 " in table[1]
    assert "t=0 " not in table[1]
    grid = LogTimeSchedule.preset("baity-jesi", 40)
    assert set(zip(*(steps.tolist() for steps in record.pairs), strict=True)) == set(grid.pairs)
    assert np.all(record.msd()[:, 0] == 0)
    # A line of no length has no barrier.
    paths = record.profile("loss_path")
    assert set(zip(paths.waiting_times.tolist(), paths.lags.tolist(), strict=True)) == set(schedule.until(40).pairs)
    assert np.all(barrier_height(paths.values)[paths.lags == 0] == 0)

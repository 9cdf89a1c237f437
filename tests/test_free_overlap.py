"""The overlap of free diffusion beside the measured overlap."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_glassy import AgingRecord, LogTimeSchedule
from lightning_glassy.observables import free_overlap
from lightning_glassy.plotting import plot_two_time


@pytest.fixture
def walks() -> list[AgingRecord]:
    rng = np.random.default_rng(0)
    schedule = LogTimeSchedule([0, 1, 2, 4, 8, 16, 32], [1, 4, 16, 64])
    return [
        AgingRecord.from_trajectory(
            rng.normal(size=(120, 4000)).cumsum(axis=0), schedule, overlap_thresholds=[1.0, 3.0]
        )
        for _ in range(3)
    ]


def test_the_overlap_of_a_random_walk_is_the_free_overlap(walks: list[AgingRecord]) -> None:
    for eps in (1.0, 3.0):
        exact = np.array([math.erf(eps / math.sqrt(2 * lag)) for lag in walks[0].lags])
        free = free_overlap(walks[0].msd(), eps)
        measured = walks[0].overlap(eps)
        assert np.nanmax(np.abs(measured - exact) / np.sqrt(exact * (1 - exact) / 4000)) < 4
        assert np.nanmax(np.abs(free - exact)) < 0.02
    assert np.isnan(free_overlap([np.nan, np.inf, -1.0], 1.0)).all()
    assert free_overlap(np.zeros((0, 2)), 1.0).shape == (0, 2)


def test_a_few_dotted_lines_stand_beside_the_overlap(walks: list[AgingRecord]) -> None:
    for record in (walks[0], AgingRecord.concat(walks)):
        ax = plot_two_time(record, "overlap", eps=3.0)
        curves, lines = ax.get_lines()[:7], ax.get_lines()[7:]
        assert 2 <= len(lines) <= 5
        assert {line.get_linestyle() for line in lines} == {":"}
        expected = free_overlap(record.msd(), 3.0)
        expected = expected.mean(axis=0) if record.n_replica else expected
        assert np.array_equal(lines[0].get_ydata(), expected[0][np.isfinite(expected[0])])
        assert lines[-1].get_color() == curves[-1].get_color()
        legend = ax.get_legend()
        assert legend is not None
        assert "Gaussian displacements" in legend.get_texts()[0].get_text()
        assert len(plot_two_time(record, "overlap", free=False).get_lines()) == 7
        assert len(plot_two_time(record, "msd").get_lines()) == 7

"""The tracker against the record of the same trajectory, which shares no code with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lightning_glassy import AgingRecord, AgingTracker, LogTimeSchedule


def trajectory(n_steps: int, n: int = 50) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.cumsum(torch.randn(n_steps + 1, n, generator=generator) * 0.1, 0)


def track(steps: list[int], schedule: LogTimeSchedule | None, **options: object) -> tuple[AgingTracker, torch.Tensor]:
    path = trajectory(max(steps))
    parameter = nn.Parameter(path[0].clone())
    tracker = AgingTracker([("w", parameter)], schedule, **options)
    for step in steps:
        with torch.no_grad():
            parameter.copy_(path[step])
        tracker.update(step)
    tracker.drain()
    return tracker, path


@pytest.mark.parametrize(
    "schedule",
    [
        LogTimeSchedule([0, 3, 50], [0, 1, 7, 100]),
        LogTimeSchedule.logspaced(200),
        LogTimeSchedule.logspaced(200, max_lag=20),
        LogTimeSchedule.preset("baity-jesi", 200),
    ],
)
def test_the_tracker_measures_what_the_schedule_says(schedule: LogTimeSchedule) -> None:
    tracker, path = track(list(range(201)), schedule, max_step=200)
    reference = AgingRecord.from_trajectory(
        path.numpy(), schedule, overlap_thresholds=tracker.record.overlap_thresholds
    )
    assert set(zip(*(a.tolist() for a in tracker.record.pairs), strict=True)) == set(schedule.until(200).pairs)
    lag = tracker.record.lags > 0
    assert np.allclose(tracker.record.msd(), reference.msd(), rtol=1e-6, atol=0, equal_nan=True)
    for kind in ("raw", "cosine", "centred", "pearson"):
        assert np.allclose(
            tracker.record.correlation(kind=kind), reference.correlation(kind=kind), atol=1e-6, equal_nan=True
        )
    assert np.allclose(
        tracker.record.non_gaussian()[:, lag], reference.non_gaussian()[:, lag], atol=1e-5, equal_nan=True
    )
    for eps in tracker.record.overlap_thresholds:
        assert np.allclose(tracker.record.overlap(eps), reference.overlap(eps), atol=1 / 50, equal_nan=True)


def test_an_open_ended_run_keeps_getting_waiting_times() -> None:
    tracker, _path = track(list(range(1001)), None)
    assert tracker.schedule.open_ended
    assert set(zip(*(a.tolist() for a in tracker.record.pairs), strict=True)) == set(
        LogTimeSchedule.logspaced(1000).pairs
    )
    assert "by step 1,000,000,000" in tracker.description


def test_steps_that_are_jumped_over_are_recorded_as_they_were_realised() -> None:
    steps = [0, 2, 4, 6, 8, 10, 30, 32]
    tracker, path = track(steps, LogTimeSchedule([1, 10], [1, 2, 5, 11]))
    waiting_times, lags = (a.tolist() for a in tracker.record.pairs)
    assert list(zip(waiting_times, lags, strict=True)) == [(2, 2), (2, 6), (2, 28), (10, 20)]
    for waiting_time, lag, moments in zip(waiting_times, lags, tracker.record.moments, strict=True):
        d = (path[waiting_time + lag] - path[waiting_time]).double()
        assert moments[0, 0] == pytest.approx((d @ d).item(), rel=1e-6)


def test_nothing_happens_between_events_and_steps_never_go_back() -> None:
    tracker, _ = track([0, 1], LogTimeSchedule([0], [1, 10]))
    assert tracker.next_event == 10
    assert not tracker.update(5)
    assert tracker.update(10)
    assert not tracker.update(10)
    with pytest.raises(ValueError, match="step=3 comes after step 10"):
        tracker.update(3)
    tracker.update(17)
    with pytest.raises(ValueError, match="step=16 comes after step 17"):
        tracker.update(16)
    for bad in (17.5, float("nan"), "18"):
        with pytest.raises(TypeError):
            tracker.update(bad)


def test_a_module_stands_for_its_parameters() -> None:
    layer = nn.Linear(3, 2)
    by_module, by_name = AgingTracker(layer), AgingTracker(layer.named_parameters())
    assert by_module.record.n_parameters == by_name.record.n_parameters == {"all": 8}


def test_what_is_no_list_of_parameters_is_refused() -> None:
    with pytest.raises(TypeError, match="pairs of a name and a tensor"):
        AgingTracker(nn.Linear(2, 2).parameters())
    with pytest.raises(ValueError, match="schedule='baity-jesi' needs a run of known length"):
        AgingTracker(nn.Linear(2, 2).named_parameters(), "baity-jesi")
    with pytest.raises(TypeError, match="JSON"):
        AgingTracker(nn.Linear(2, 2).named_parameters(), meta={"a": {1}})


def test_a_run_that_starts_late_starts_where_it_is() -> None:
    tracker, _ = track(list(range(500, 601)), LogTimeSchedule.logspaced(), max_step=600)
    assert tracker.record.waiting_times.tolist() == [500]
    assert tracker.record.lags[-1] == 100


def test_one_time_values_are_kept_at_events_only() -> None:
    parameter = nn.Parameter(torch.ones(3))
    tracker = AgingTracker([("w", parameter)], LogTimeSchedule([0], [2]))
    for step in range(4):
        tracker.update(step, {"learning_rate": 0.1 * step})
    steps, values = tracker.record.one_time("learning_rate")
    assert steps.tolist() == [0, 2]
    assert values.tolist() == [0.0, 0.2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"moments": "some"}, "moments='some'"),
        ({"overlap_thresholds": "none"}, "overlap_thresholds='none'"),
        ({"overlap_thresholds": [0.1, -1.0]}, r"overlap_thresholds\[1\]=-1.0"),
        ({"sample": 0}, "sample=0"),
        ({"snapshot_device": "cuda:7"}, "snapshot_device='cuda:7'"),
    ],
)
def test_arguments_out_of_range_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AgingTracker([("w", nn.Parameter(torch.ones(3)))], LogTimeSchedule([0], [1]), **options)


class Plain:
    """The rules of a tracker, written once more: at each step look at each snapshot, and ask the schedule."""

    def __init__(self, schedule: LogTimeSchedule) -> None:
        self.schedule, self.captured = schedule, -1
        self.last_lags: dict[int, int] = {}
        self.pairs: set[tuple[int, int]] = set()

    def update(self, step: int) -> None:
        waiting_time = self.schedule.next_waiting_time(self.captured)
        if waiting_time is not None and waiting_time <= step:
            self.captured, self.last_lags[step] = step, -1
        for captured, last_lag in self.last_lags.items():
            lag = self.schedule.next_lag(last_lag, captured)
            if lag is not None and captured + lag <= step:
                self.pairs.add((captured, step - captured))
                self.last_lags[captured] = step - captured

    def go_back(self, step: int) -> None:
        self.pairs = {(captured, lag) for captured, lag in self.pairs if captured + lag < step}
        kept = [captured for captured in self.last_lags if captured < step and self._has_more(captured)]
        self.last_lags = {
            captured: max((lag for known, lag in self.pairs if known == captured), default=-1) for captured in kept
        }
        if self.captured >= step:
            self.captured = max([*kept, *(captured for captured, _ in self.pairs)], default=-1)

    def _has_more(self, captured: int) -> bool:  # a snapshot is freed after its last lag
        return self.schedule.next_lag(self.last_lags[captured], captured) is not None


@pytest.mark.parametrize("seed", range(8))
def test_a_tracker_measures_by_the_rules_through_jumps_returns_and_resumptions(seed: int) -> None:
    draw = np.random.default_rng(seed)
    waiting_times, lags = (sorted(set(draw.integers(0, 80, 12).tolist())) for _ in range(2))
    schedule = LogTimeSchedule(waiting_times, lags) if seed % 2 else LogTimeSchedule.logspaced(max_lag=40)
    parameter = nn.Parameter(torch.zeros(4))
    tracker, plain, step = AgingTracker([("w", parameter)], schedule), Plain(schedule), 0
    for _ in range(150):
        with torch.no_grad():
            parameter.add_(1.0)
        events = tracker.update(step), len(plain.pairs), plain.captured
        plain.update(step)
        assert events[0] == (events[1:] != (len(plain.pairs), plain.captured))
        assert tracker.next_event > step
        if draw.random() < 0.05:
            step = int(draw.integers(max(step - 20, 0), step + 1))
            tracker.go_back(step)
            plain.go_back(step)
            continue
        if draw.random() < 0.05:
            tracker = AgingTracker([("w", parameter)], schedule, state=tracker.state_dict())
        step += int(draw.choice([1, 1, 1, 2, 9]))
    measured = zip(*(steps.tolist() for steps in tracker.record.pairs), strict=True)
    assert set(measured) == plain.pairs


def test_new_snapshots_follow_those_that_were_dropped() -> None:
    parameter = nn.Parameter(torch.zeros(4))
    tracker = AgingTracker([("w", parameter)], LogTimeSchedule([0, 5], [1, 20]))
    for step in range(3):
        tracker.update(step)
    tracker.drop_snapshots()
    assert tracker.next_event == 5
    for step in range(3, 40):
        tracker.update(step)
    assert [steps.tolist() for steps in tracker.record.pairs] == [[0, 5, 5], [1, 1, 20]]

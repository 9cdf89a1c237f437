"""Measurements have the right labels: waiting times, lags and events are integers."""

from __future__ import annotations

import pickle
from decimal import ROUND_CEILING, Decimal, localcontext

import numpy as np
import pytest

from lightning_glassy import LogTimeSchedule, Steps
from lightning_glassy.schedule import _geometric, schedule_growth


def test_pairs_are_every_waiting_time_and_lag_that_fit() -> None:
    schedule = LogTimeSchedule([0, 5, 9], [0, 1, 4], max_step=10)
    assert schedule.pairs == ((0, 0), (0, 1), (0, 4), (5, 0), (5, 1), (5, 4), (9, 0), (9, 1))


def test_events_say_what_is_due_at_each_step() -> None:
    schedule = LogTimeSchedule([0, 2], [1, 2])
    events = {event.step: (event.capture, event.waiting_times) for event in schedule.events}
    assert events == {0: (True, ()), 1: (False, (0,)), 2: (True, (0,)), 3: (False, (2,)), 4: (False, (2,))}
    assert schedule.n_events == 5


def test_events_and_pairs_tell_the_same() -> None:
    schedule = LogTimeSchedule.logspaced(5000)
    from_events = {(tw, event.step - tw) for event in schedule.events for tw in event.waiting_times}
    assert from_events == set(schedule.pairs)
    assert [e.step for e in schedule.events if e.capture] == list(schedule.waiting_times)
    assert schedule.n_events == len(schedule.events)


def test_snapshots_live_from_capture_to_last_lag() -> None:
    schedule = LogTimeSchedule([0, 10, 100], [1, 20])
    assert [schedule.live_snapshots(step) for step in (0, 9, 10, 20, 21, 30, 31, 100, 120, 121)] == [
        1, 1, 2, 2, 1, 1, 0, 1, 1, 0,
    ]  # fmt: skip
    assert schedule.max_live_snapshots == 2


@pytest.mark.parametrize("schedule", [LogTimeSchedule.logspaced(3000, max_lag=50), LogTimeSchedule.logspaced(700)])
def test_largest_number_of_snapshots_is_the_largest_over_all_steps(schedule: LogTimeSchedule) -> None:
    last = max(tw + lag for tw, lag in schedule.pairs)
    assert schedule.max_live_snapshots == max(schedule.live_snapshots(step) for step in range(last + 1))


def test_logspaced_is_the_rounded_geometric_grid() -> None:
    lags = LogTimeSchedule.logspaced(10**6, lags_per_decade=10).lags
    exact = {int(np.floor(10 ** (k / 10) + 0.5)) for k in range(61)}
    assert set(lags) == exact
    assert lags[0] == 1
    assert lags[-1] == 10**6


def test_waiting_times_reach_the_end_with_fewer_lags() -> None:
    schedule = LogTimeSchedule.logspaced(1000)
    by_waiting_time = {tw: [lag for t, lag in schedule.pairs if t == tw] for tw in schedule.waiting_times}
    assert max(schedule.waiting_times) == 464
    assert by_waiting_time[464] == [lag for lag in schedule.lags if 464 + lag <= 1000]
    assert len(by_waiting_time[464]) < len(by_waiting_time[0])
    # A waiting time without any lag would need a snapshot for nothing.
    assert 1000 not in schedule.waiting_times


def test_open_ended_contains_every_finite_one() -> None:
    open_ended = LogTimeSchedule.logspaced()
    assert open_ended.open_ended
    for end in (10, 999, 12345):
        assert open_ended.until(end) == LogTimeSchedule.logspaced(end)
        assert set(open_ended.until(end).pairs) <= set(open_ended.until(10 * end).pairs)
    assert open_ended.next_waiting_time(10**7) == 21544347
    with pytest.raises(ValueError, match="open-ended"):
        _ = open_ended.waiting_times


def test_until_never_extends() -> None:
    assert LogTimeSchedule.logspaced(100).until(1000) == LogTimeSchedule.logspaced(100)


def test_events_grow_as_the_square_of_the_logarithm_and_snapshots_as_the_logarithm() -> None:
    decades = np.arange(3, 9)
    growth = schedule_growth([10 ** int(k) for k in decades])
    events = np.array([g.n_events for g in growth])
    live = np.array([g.max_live_snapshots for g in growth])
    assert np.array_equal(np.diff(live), np.full(5, 3))  # three waiting times per decade
    # A square of the logarithm has constant second differences. The measured ones stay within a few events.
    assert np.all(np.diff(events, n=2) > 0)
    assert np.ptp(np.diff(events, n=2)) <= 15


def test_the_preset_of_subaging_is_the_grid_of_the_authors() -> None:
    schedule = LogTimeSchedule.preset("subaging", 200_000)
    assert schedule.waiting_times == (1000, 1668, 2783, 4642, 7743, 12915, 21544, 35938, 59948, 100_000)
    assert schedule.lags == (
        10, 17, 27, 43, 70, 113, 184, 298, 484, 785,
        1275, 2070, 3360, 5456, 8859, 14385, 23358, 37927, 61585, 100_000,
    )  # fmt: skip
    assert len(schedule.pairs) == 200


@pytest.mark.parametrize("end", [200, 201, 399, 400, 1000, 19_999, 20_000, 123_457, 10**6, 10**9 + 7, 2**53])
def test_the_preset_of_subaging_is_scaled_to_any_run(end: int) -> None:
    schedule = LogTimeSchedule.preset("subaging", end)
    times, lags = schedule.waiting_times, schedule.lags
    assert (times[0], times[-1], lags[0], lags[-1]) == (end // 200, end // 2, max(1, end // 20_000), end // 2)
    assert len(times) == 10
    assert len(lags) == 20 or (end < 2000 and len(lags) >= 15)
    assert set(schedule.pairs) == {(tw, lag) for tw in times for lag in lags}
    with localcontext() as context:  # the points of the grid, rounded up
        context.prec = 60
        first, ratio = Decimal(lags[0]), Decimal(lags[-1]) / Decimal(lags[0])
        exact = [first * ratio ** (Decimal(k) / 19) for k in range(1, 19)]
        inner = [int(x.quantize(Decimal(1), ROUND_CEILING)) for x in exact]
    assert lags == tuple(sorted({lags[0], *inner, lags[-1]}))


def test_exact_powers_are_not_rounded_up_by_one() -> None:
    # Every point of this grid is a power of ten. Floats of 10**(k / 4) * ... may miss it by a part in 10**16.
    assert _geometric(10, 100_000, 5, round_up=True) == (10, 100, 1000, 10_000, 100_000)
    assert _geometric(10, 100_000, 5) == (10, 100, 1000, 10_000, 100_000)
    assert _geometric(1, 3**19, 20, round_up=True) == tuple(3**k for k in range(20))
    assert _geometric(7, 7, 20, round_up=True) == (7,)


@pytest.mark.parametrize("end", [20, 21, 100, 1000, 10**6, 2**53])
def test_the_preset_of_baity_jesi_is_their_grid_with_zero(end: int) -> None:
    schedule = LogTimeSchedule.preset("baity-jesi", end)
    half = end // 2
    times = np.unique(np.rint(np.geomspace(10, half, 50))).astype(np.int64)
    lags = np.unique(np.rint(np.geomspace(1, half, 100))).astype(np.int64)
    if end < 2**53:  # floats are exact to a step here
        assert schedule.waiting_times == (0, *times)
        assert schedule.lags == (0, *lags)
    assert (schedule.waiting_times[-1], schedule.lags[-1]) == (half, half)
    assert set(schedule.pairs) == {(tw, lag) for tw in schedule.waiting_times for lag in schedule.lags}


def test_longer_waiting_times_of_baity_jesi_reach_the_end_with_fewer_lags() -> None:
    schedule = LogTimeSchedule.preset("baity-jesi", 10**6, longer=True)
    assert (schedule.waiting_times[:2], schedule.waiting_times[-1]) == ((0, 10), 10**6 - 1)
    assert (len(schedule.waiting_times), schedule.lags[:2], schedule.lags[-1]) == (51, (0, 1), 10**6)
    assert [lag for tw, lag in schedule.pairs if tw == 10**6 - 1] == [0, 1]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LogTimeSchedule([0, 2.5], [1]), TypeError, r"waiting_times\[1\]=2.5"),
        (lambda: LogTimeSchedule([0], [1.0]), TypeError, r"lags\[0\]=1.0"),
        (lambda: LogTimeSchedule([True], [1]), TypeError, r"waiting_times\[0\]=True"),
        (lambda: LogTimeSchedule("12", [1]), TypeError, "waiting_times='12'"),
        (lambda: LogTimeSchedule(5, [1]), TypeError, "waiting_times=5"),
        (lambda: LogTimeSchedule([-1, 2], [1]), ValueError, r"waiting_times\[0\]=-1 is negative"),
        (lambda: LogTimeSchedule([0], [3, 2]), ValueError, r"lags\[1\]=2 follows 3"),
        (lambda: LogTimeSchedule([0, 0], [1]), ValueError, r"waiting_times\[1\]=0 follows 0"),
        (lambda: LogTimeSchedule([], [1]), ValueError, "waiting_times is empty"),
        (lambda: LogTimeSchedule([0], []), ValueError, "lags is empty"),
        (lambda: LogTimeSchedule([0], [2**60]), ValueError, "beyond 2"),
        (lambda: LogTimeSchedule([10], [5], max_step=12), ValueError, "max_step=12 ends before the first pair"),
        (lambda: LogTimeSchedule.logspaced(0), ValueError, "max_step=0 must be at least 1"),
        (lambda: LogTimeSchedule.logspaced(1.5), TypeError, "max_step=1.5"),
        (lambda: LogTimeSchedule.logspaced(10, lags_per_decade=0), ValueError, "lags_per_decade=0"),
        (lambda: LogTimeSchedule.logspaced(10, first_lag=5, max_lag=2), ValueError, "max_lag=2 is below first_lag=5"),
        (lambda: Steps([0, 2.5]), TypeError, r"steps\[1\]=2.5"),
        (lambda: Steps([3, 2]), ValueError, r"steps\[1\]=2 follows 3"),
        (lambda: Steps([]), ValueError, "steps is empty"),
        (lambda: Steps(5), TypeError, "steps=5"),
        (lambda: Steps.logspaced(0), ValueError, "per_decade=0"),
        (lambda: Steps.logspaced(1001), ValueError, "per_decade=1001"),
        (lambda: Steps.logspaced(3, first=0), ValueError, "first=0"),
        (lambda: Steps.logspaced(3, first=5, last=2), ValueError, "last=2 is below first=5"),
        (lambda: LogTimeSchedule.preset("paper", 1000), ValueError, "name='paper' is not a preset"),
        (lambda: LogTimeSchedule.preset("subaging", 199), ValueError, "max_step=199 is too short"),
        (lambda: LogTimeSchedule.preset("baity-jesi", 19), ValueError, "max_step=19 is too short"),
        (lambda: LogTimeSchedule.preset("subaging", 400, longer=True), ValueError, "longer=True is for"),
        (lambda: LogTimeSchedule.preset("baity-jesi", 400, longer=1), TypeError, "longer=1 is not True or False"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name_and_value(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()


def test_numpy_integers_are_integers() -> None:
    assert LogTimeSchedule(np.array([0, 3]), np.array([1])) == LogTimeSchedule([0, 3], [1])


def test_a_schedule_is_a_value() -> None:
    assert LogTimeSchedule.logspaced(100) == LogTimeSchedule.logspaced(100)
    assert LogTimeSchedule.logspaced(100) != LogTimeSchedule.logspaced(100, lags_per_decade=5)
    assert LogTimeSchedule.logspaced() != LogTimeSchedule.logspaced(lags_per_decade=5)
    assert len({LogTimeSchedule.logspaced(), LogTimeSchedule.logspaced(), LogTimeSchedule.logspaced(10)}) == 2


@pytest.mark.parametrize(
    "schedule",
    [
        LogTimeSchedule([0, 3], [1, 2], max_step=4),
        LogTimeSchedule([0, 3], [1, 2]),
        LogTimeSchedule.logspaced(),
        LogTimeSchedule.logspaced(999, first_lag=2, first_waiting_time=3, max_lag=40, zero=False),
        LogTimeSchedule(Steps.logspaced(2), [1, 2]),
        LogTimeSchedule([0, 3], Steps.logspaced(2), max_step=40),
        LogTimeSchedule(Steps.logspaced(2, last=50, zero=False), Steps.logspaced(4, first=2)),
    ],
)
def test_the_representation_makes_the_schedule_again(schedule: LogTimeSchedule) -> None:
    assert eval(repr(schedule)) == schedule


def test_it_prints_what_it_will_cost() -> None:
    assert str(LogTimeSchedule.logspaced(20_000)) == (
        "14 waiting times (0 ... 10,000), 41 lags (1 ... 19,953): 564 pairs at 499 steps, "
        "at most 14 snapshots at a time"
    )
    assert "open-ended" in str(LogTimeSchedule.logspaced())


def test_steps_are_a_grid_or_a_list() -> None:
    grid = Steps.logspaced(3)
    assert grid.upto(100) == (0, 1, 2, 5, 10, 22, 46, 100)
    assert [grid.after(step) for step in (-1, 0, 46, 10**9)] == [0, 1, 100, 2154434690]
    assert grid.endless
    finite = Steps.logspaced(3, first=2, last=50, zero=False)
    assert finite.upto(10**9) == (2, 4, 9, 20, 43)
    assert (finite.after(20), finite.after(43), finite.endless) == (43, None, False)
    assert finite == Steps([2, 4, 9, 20, 43])
    listed = Steps([3, 7])
    assert (listed.after(-1), listed.after(3), listed.after(7), listed.upto(5)) == (3, 7, None, (3,))


def test_steps_are_a_value() -> None:
    grid = Steps.logspaced(3)
    grid.upto(10**6)  # an earlier request does not change it
    assert grid == Steps.logspaced(3) == pickle.loads(pickle.dumps(grid))
    assert (
        len({grid, Steps.logspaced(3), Steps.logspaced(4), Steps.logspaced(3, zero=False), Steps([0]), Steps([0])}) == 4
    )
    for steps in (grid, Steps.logspaced(5, first=2, last=40, zero=False), Steps([0, 4])):
        assert eval(repr(steps)) == steps


def test_a_schedule_is_two_sequences_of_steps() -> None:
    assert LogTimeSchedule(Steps.logspaced(3), Steps.logspaced(10, zero=False)) == LogTimeSchedule.logspaced()
    mixed = LogTimeSchedule(Steps.logspaced(2), [1, 10])
    assert mixed.open_ended
    assert mixed.until(40).pairs == LogTimeSchedule([0, 1, 3, 10, 32], [1, 10], 40).pairs
    other = LogTimeSchedule([0, 5], Steps.logspaced(1, zero=False))
    assert other.until(50).pairs == ((0, 1), (0, 10), (5, 1), (5, 10))
    assert other.next_lag(10, 5) == 100

"""Every layer has its own exponent and aging rate, or a reason for none. The layers are sorted."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from lightning_glassy import AgingRecord, LogTimeSchedule
from lightning_glassy.analysis import GroupAging, aging_by_group, lag_to_threshold, relaxation_curves
from lightning_glassy.analysis.layers import MOST_GROUPS, short_names
from lightning_glassy.glasses import SubagingClock
from lightning_glassy.plotting import groups_figure, plot_groups
from lightning_glassy.record import MOMENTS
from lightning_glassy.report import report

SCHEDULE = LogTimeSchedule.logspaced(
    100_000, first_waiting_time=10, waiting_times_per_decade=4, lags_per_decade=6, zero=False
)
CLOCKS = {"fc1": SubagingClock(0.3, 0.003), "fc2": SubagingClock(0.9, 0.3), "fc3": SubagingClock(0.6, 0.03)}
N = 200


def clocks_record(seed: int = 1, n_replica: int = 8, frozen: int = 3) -> AgingRecord:
    """Draw replicas of three layers, each an exact clock with its own mu, and of a layer that does not move."""
    steps = np.array(sorted({event.step for event in SCHEDULE.events}))
    rng = np.random.default_rng(seed)
    layers = []
    for glass in CLOCKS.values():
        decay = np.exp(-np.diff(np.asarray(glass.clock(steps.astype(float)))))
        w = rng.normal(size=(n_replica, len(steps), N))
        for i, a in enumerate(decay, start=1):
            w[:, i] = a * w[:, i - 1] + np.sqrt(1 - a**2) * w[:, i]
        layers.append(w)
    layers.append(np.full((n_replica, len(steps), frozen), 0.3))
    groups = {name: np.arange(i * N, (i + 1) * N) for i, name in enumerate(CLOCKS)}
    groups["frozen"] = np.arange(3 * N, 3 * N + frozen)
    return AgingRecord.from_trajectory(
        np.concatenate(layers, axis=2), SCHEDULE, times=steps, groups=groups, overlap_thresholds=[0.5]
    )


def curves_record(
    laws: Mapping[str, Callable],
    sizes: Mapping[str, int] | None = None,
    n_replica: int | None = None,
    schedule: LogTimeSchedule = SCHEDULE,
) -> AgingRecord:
    """Return a record in which the MSD of each group is a given function of waiting time and lag."""
    sizes = {"all": 1000} | dict.fromkeys(laws, 10) | dict(sizes or {})
    record = AgingRecord(sizes, n_replica=n_replica)
    for waiting_time, lag in schedule.pairs:
        row = np.full((len(sizes), len(MOMENTS)), np.nan)
        row[:, 0] = [sizes[name] * laws.get(name, laws[next(iter(laws))])(waiting_time, lag) for name in sizes]
        record.append(waiting_time, lag, row if n_replica is None else np.stack([row] * n_replica))
    return record


@pytest.fixture(scope="module")
def record() -> AgingRecord:
    return clocks_record()


@pytest.fixture(scope="module")
def found(record: AgingRecord) -> GroupAging:
    return aging_by_group(record)


def test_each_layer_has_the_exponent_of_its_own_clock(found: GroupAging) -> None:
    assert [row.group for row in found.rows] == ["fc2", "fc3", "fc1", "frozen"]  # strongest aging first
    assert [row.n_parameters for row in found.rows] == [N, N, N, 3]
    for row in found.rows[:3]:
        mu = CLOCKS[row.group].mu
        assert row.estimate is not None
        assert row.interval is not None
        half = (row.interval[1] - row.interval[0]) / 2
        assert abs(row.estimate - mu) < 2 * half  # 95 % interval: more than four standard errors
        assert half < 0.1
        # The rate is mu for short lags. It falls to 2**mu - 1 for a lag as long as the waiting time.
        assert row.rate is not None
        assert 2**mu - 1 < row.rate.high
        assert row.rate.low < mu
        assert row.kind == "aging throughout"
    assert found.whole.group == "all"
    assert (found.n_groups, found.n_replica) == (4, 8)
    assert "no interval" not in str(found)


def test_a_frozen_layer_has_the_reason_and_nothing_else(found: GroupAging) -> None:
    row = found.rows[-1]
    assert (row.mu, row.estimate, row.interval, row.rate, row.kind) == (None, None, None, None, "cannot tell")
    assert row.why_not == "the MSD is 0 at all times: these parameters do not move"
    assert np.isnan(row.local_rates).all()
    assert np.isnan(row.lag)
    assert "no mu of frozen: the MSD is 0 at all times" in str(found)


def test_the_lag_of_a_layer_is_that_to_the_common_threshold(record: AgingRecord, found: GroupAging) -> None:
    for row in found.rows[:3]:
        curves = relaxation_curves(record, group=row.group)
        lags = lag_to_threshold(curves.lags, curves.mean(), found.threshold).lags
        assert row.lag == lags[curves.waiting_times == found.waiting_time][0]
        exact = CLOCKS[row.group].lag_to_correlation(1 - found.threshold / 2, found.waiting_time)
        # With 8 replicas of 200 weights, the MSD at an overlap of C is known to about sqrt(2 / 1600).
        assert abs(np.log(row.lag / exact)) < 6 * np.sqrt(2 / (8 * N))


def test_local_rates_are_those_of_the_exact_curves() -> None:
    laws = {name: (lambda s, t, g=glass: float(g.msd(s, t))) for name, glass in CLOCKS.items()}
    found = aging_by_group(curves_record(laws))
    for row in found.rows:
        mu = CLOCKS[row.group].mu
        known = row.local_rates[np.isfinite(row.local_rates)]
        assert len(known) >= 5
        # The rate is (t_w / t) ((1 + t / t_w)**mu - 1), for lags from t_w / 30 to t_w.
        assert np.all((known > 2**mu - 1 - 0.02) & (known < mu + 0.02))
        assert np.isnan(row.local_errors).all()  # one run has no replicas
    assert np.all(found.waiting_times[1:] >= 2 * found.waiting_times[:-1])


def test_the_local_rates_tell_when_a_layer_stops_aging() -> None:
    def stops(s: float, t: float) -> float:
        return 1e-6 * t / min(s, 1000) ** 0.8

    def starts(s: float, t: float) -> float:
        return 1e-6 * t / max(s, 1000) ** 0.8

    found = aging_by_group(curves_record({"stops": stops, "starts": starts, "never": lambda _, t: 1e-6 * t}))
    rows = {row.group: row.local_rates for row in found.rows}
    early, late = found.waiting_times[1:] <= 1000, found.waiting_times[:-1] >= 1000
    for name, before, after in (("stops", 0.8, 0), ("starts", 0, 0.8), ("never", 0, 0)):
        assert np.allclose(rows[name][early], before, atol=1e-6)
        assert np.allclose(rows[name][late], after, atol=1e-6)


def test_a_saturated_or_uncertain_rate_is_not_known() -> None:
    rng = np.random.default_rng(0)
    noise = {s: np.exp(1.5 * rng.normal(size=8)) for s in SCHEDULE.waiting_times}
    flat = curves_record({"flat": lambda _s, t: 1 - 1e-3 / t, "rises": lambda _s, t: float(t)}, n_replica=8)
    found = {row.group: row for row in aging_by_group(flat).rows}
    assert np.isnan(found["flat"].local_rates).all()
    assert np.allclose(found["rises"].local_rates, 0)
    record = AgingRecord({"all": 1, "a": 1}, n_replica=8)
    for s, t in SCHEDULE.pairs:
        rows = np.full((8, 2, len(MOMENTS)), np.nan)
        rows[..., 0] = t * noise[s][:, None]
        record.append(s, t, rows)
    (row,) = aging_by_group(record, n_bootstrap=10).rows
    known = np.isfinite(row.local_rates)
    assert not known.all()
    assert np.all(row.local_errors[known] <= 0.5)
    assert np.all(row.local_errors[~known & np.isfinite(row.local_errors)] > 0.5)


def test_groups_that_cannot_be_analysed_do_not_stop_the_others() -> None:
    laws = {
        "good": lambda s, t: 1e-6 * t / s**0.5,
        "nan": lambda s, t: np.nan,
        "frozen": lambda s, t: 0.0,
        "late": lambda s, t: 0.0 if s < 30_000 else 1e-6 * t,
        "flat": lambda s, t: 1.0,
    }
    found = aging_by_group(curves_record(laws))
    rows = {row.group: row for row in found.rows}
    assert rows["good"].rate is not None
    assert found.rows[0].group in ("good", "all")
    for name in ("nan", "frozen", "late", "flat"):
        assert rows[name].mu is None
        assert rows[name].why_not
    text = str(found)
    assert all(f"  {name}" in text for name in laws)
    json.dumps(found.to_dict(), allow_nan=False)
    groups_figure(found).savefig(io.BytesIO(), format="png", dpi=20)


def test_of_many_groups_the_largest_are_analysed_and_the_text_says_so() -> None:
    names = [f"model.layers.{i}.mlp.a_very_long_name_of_a_projection.weight" for i in range(200)]
    laws = {name: (lambda s, t, mu=0.2 + 0.003 * i: 1e-6 * t / s**mu) for i, name in enumerate(names)}
    few = LogTimeSchedule.logspaced(3000, first_waiting_time=10, lags_per_decade=4, zero=False)
    record = curves_record(laws, {name: 10 + i for i, name in enumerate(names)}, schedule=few)
    start = time.process_time()
    found = aging_by_group(record)
    assert time.process_time() - start < 60
    assert len(found.rows) == MOST_GROUPS
    assert {row.group for row in found.rows} == set(names[-MOST_GROUPS:])
    assert [row.rate.rate for row in found.rows] == sorted((row.rate.rate for row in found.rows), reverse=True)
    text = str(found)
    assert "one run: no interval of mu, at least 8 replicas are needed" in text
    assert "of 200 groups, the 40 with the most parameters are analysed" in text
    assert max(len(line) for line in text.split("\n")) < 130
    ax = plot_groups(found)
    assert "40 of 200 groups" in ax.get_title()
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert len(labels) == 41
    assert max(map(len, labels)) <= 28
    assert len(set(labels)) == 41
    assert len(aging_by_group(record, most=2).rows) == 2


@pytest.mark.parametrize(
    ("names", "most", "shown"),
    [
        (["fc1", "fc2"], 8, ["fc1", "fc2"]),
        (["abcdefghijkl"], 9, ["abc...jkl"]),
        (["a\nb", "\t"], 9, ["a b", "?"]),
        (["model.h.1.mlp", "model.h.10.mlp"], 10, ["...1.mlp", "...10.mlp"]),
        (["model.h.1.mlp.weight", "model.h.2.mlp.weight"], 10, ["...1...", "...2..."]),
        (["abcdXefghij", "abcdYefghij"], 9, ["ab...j #1", "ab...j #2"]),
    ],
)
def test_names_are_cut_to_one_short_line_and_stay_different(names: list[str], most: int, shown: list[str]) -> None:
    found = short_names(names, most)
    assert found == shown
    assert len(set(found)) == len(names)
    assert all(len(name) <= most and "\n" not in name for name in found)


def test_any_names_stay_different_and_short() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        names = {".".join("".join(rng.choice(list("ab "), rng.integers(1, 9))) for _ in range(rng.integers(1, 6)))}
        names |= {name[: rng.integers(1, 20)] for name in names} | {f"{name}.weight" for name in names}
        found = short_names(sorted(names), 12)
        assert max(map(len, found)) <= 12
        assert len(set(found)) == len(found)


def test_the_report_has_the_groups_side_by_side(record: AgingRecord, found: GroupAging) -> None:
    told = report(record, n_bootstrap=50)
    assert told.groups is not None
    assert str(told.groups) == str(found)
    assert str(found) in str(told)
    assert str(found) not in told.text
    assert told.to_dict()["groups"]["rows"][0]["group"] == "fc2"
    assert "groups" in told.figures()
    one = report(record, group="fc1", n_bootstrap=10)
    assert one.groups is None
    assert one.to_dict()["groups"] is None
    assert "groups" not in one.figures()
    assert report(record, observable="correlation_cosine").groups is None


def test_a_record_of_one_layer_has_no_table_of_groups_in_its_report() -> None:
    record = curves_record({"only": lambda s, t: 1e-6 * t / s**0.5})
    assert report(record).groups is None
    assert len(aging_by_group(record).rows) == 1


@pytest.mark.parametrize("observable", ["decorrelation", "overlap"])
def test_other_observables_give_the_same_order(record: AgingRecord, observable: str) -> None:
    found = aging_by_group(record, observable, n_bootstrap=10)
    assert [row.group for row in found.rows][:3] == ["fc2", "fc3", "fc1"]
    assert found.observable == observable


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"most": 0}, "most=0 must be at least 1"),
        ({"confidence": 2}, "confidence=2 must be between"),
        ({"n_bootstrap": 1}, "n_bootstrap=1 must be between"),
        ({"window": (5, 1)}, "window="),
        ({"observable": "correlation_raw"}, "correlation_raw"),
        ({"eps": 0.5}, "eps"),
    ],
)
def test_a_wrong_argument_is_refused_and_is_no_reason_of_a_group(arguments: dict, message: str) -> None:
    record = curves_record({"a": lambda s, t: 1e-6 * t / s**0.5, "b": lambda s, t: 1e-6 * t})
    with pytest.raises(ValueError, match=message):
        aging_by_group(record, **arguments)


def test_a_record_without_groups_is_refused_with_the_remedy() -> None:
    record = AgingRecord({"all": 1})
    record.append(1, 1, np.ones((1, len(MOMENTS))))
    with pytest.raises(ValueError, match="no group besides 'all': measure with groups='layer'"):
        aging_by_group(record)

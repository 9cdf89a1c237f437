"""The networks beside a glass: a shortened run, the committed page, and the decisions on the paper's statements."""

from __future__ import annotations

import copy
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples.studies import common, comparing_dynamics
from examples.studies.common import PAGE, RESULTS
from examples.studies.comparing_dynamics import FEW, GLASSES, KINDS, QUICK_GLASSES, SYSTEMS, network, tables
from examples.studies.statements import NOT_SEEN, SEEN, UNTESTABLE, Ages, ages, decide_glass, decide_network, off_line
from lightning_glassy import AgingRecord, LogTimeSchedule
from lightning_glassy.glasses import TwoTimeSolution

STEPS = 10_000


# ------------------------------------------------------------------ the run


def test_the_networks_are_those_of_the_paper() -> None:
    n = {system.name: sum(w.numel() for w in network(system).parameters()) for system in SYSTEMS}
    assert n["mnist-small-net"] == 31_770
    assert n["mnist-toy-10"] == 785 * 10 + 11 * 10
    assert n["mnist-toy-10000"] == 785 * 10_000 + 10_001 * 10
    assert {system.kind for system in SYSTEMS} == set(KINDS)
    assert len(n) == len(SYSTEMS)
    for system in SYSTEMS:
        pixels = 784 if system.data == "MNIST" else 64
        assert network(system)(torch.rand(3, pixels)).shape == (3, 10)
        assert 10 <= system.batch_size <= 1000
        assert 0.001 <= system.learning_rate <= 0.5


@pytest.mark.slow
def test_a_short_run_leaves_records_tables_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    of_digits = [
        replace(system, steps=30 if "10000" in system.name else 200, curved=system.curved and 50, products=100)
        for system in SYSTEMS
        if system.data == "digits"
    ]
    glasses = [replace(g, sizes=(8, 16, 32), seeds=(2, 2, 2), n_replica=2) for g in QUICK_GLASSES]
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # the seed and the threads of the study end with this test
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(common, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))  # starts faster
    monkeypatch.setattr(comparing_dynamics, "QUICK_SYSTEMS", of_digits)
    monkeypatch.setattr(comparing_dynamics, "QUICK_GLASSES", glasses)
    committed = {path: path.read_bytes() for path in (PAGE, *RESULTS.glob("comparing_dynamics*"))}
    monkeypatch.setattr(sys, "argv", ["comparing_dynamics", "--quick", "--out", str(tmp_path)])
    comparing_dynamics.main()
    result = json.loads((tmp_path / "result.json").read_text())
    printed = capsys.readouterr().out
    assert tables(result) in printed
    assert [system["kind"] for system in result["systems"]] == list(KINDS)
    for system in result["systems"]:
        few = system["kind"] == FEW
        assert ("trapped" in system["findings"], "stops" in system["findings"]) == (few, not few)
        assert {"train_loss", "test_accuracy", "gradient_noise"} <= set(system["series"])
        assert ("flat_fraction" in system["series"]) == (system["curved"] is not None)
    for glass in result["glasses"]:
        assert (glass["sizes"], glass["n_seed"]) == ([8, 16, 32], [2, 2, 2])
        assert all(np.isfinite(row["z"]) for row in glass["numbers"])
    for picture in ("digits", "landscape", "glass"):
        assert (tmp_path / f"comparing_dynamics_{picture}.png").stat().st_size > 20_000
    assert {path: path.read_bytes() for path in committed} == committed


def test_the_times_of_the_glass_are_on_the_grids_of_all_its_sizes() -> None:
    for glass in (*GLASSES, *QUICK_GLASSES):
        assert [b / a for a, b in zip(glass.sizes, glass.sizes[1:], strict=False)] == [2, 2]
        for length in (*map(glass.step, glass.sizes), 2 * glass.t_max / glass.steps):
            for time in (*glass.lags, *glass.waiting_times, glass.t_max):
                assert time / length == pytest.approx(round(time / length))


# ------------------------------------------------------------------ statements on networks


def made(
    delta: Any, *, loss: tuple[float, float] = (30, 300), learnt: float = 1.0, bottom: float = 0.0, noise: Any = None
) -> AgingRecord:
    """Return a record of one network with Δ(t_w, t), a loss of three straight pieces, and the noise D(t)."""
    schedule = LogTimeSchedule.logspaced(STEPS, waiting_times_per_decade=6)
    record = AgingRecord({"all": 1}, meta={})
    for waiting_time, lag in schedule.pairs:
        moments = np.zeros(record.row_shape)
        moments[..., 0] = delta(waiting_time, lag)
        record.append(waiting_time, lag, moments)
    steps = [0, *LogTimeSchedule.logspaced(STEPS, waiting_times_per_decade=6).waiting_times[1:], STEPS]
    for step in steps:
        fallen = np.clip(np.log(max(step, 1) / loss[0]) / np.log(loss[1] / loss[0]), 0, 1)
        record.append_one_time("train_loss", step, 2.3 - (2.3 - bottom) * fallen)
        record.append_one_time("train_accuracy", step, 0.1 + (learnt - 0.1) * fallen)
        record.append_one_time("gradient_noise", step, 1.0 if noise is None else noise(step))
    record.append_profile("loss_path", 1, 1, [0.0, 0.5, 1.0], [1.0, 0.9, 0.9])
    return record


def straight(waiting_time: int, lag: int) -> float:
    return 1e-6 * lag


def aging(waiting_time: int, lag: int) -> float:
    return 1e-3 * np.log1p(lag / max(waiting_time, 1))


def paper(waiting_time: int, lag: int) -> float:
    """A clock that slows down between the steps 30 and 300 only."""

    def clock(n: float) -> float:
        return float(min(n, 30) / 30 + np.log(np.clip(n, 30, 300) / 30) + max(n - 300, 0) / 300)

    return 1e-4 * (clock(waiting_time + lag) - clock(waiting_time))


def test_a_network_as_the_paper_has_it_is_seen_and_its_opposite_is_not() -> None:
    found = decide_network(made(paper), few_weights=False)
    for key in ("regimes", "first", "second", "stops", "line"):
        assert found[key]["verdict"] == SEEN, (key, found[key])
    assert found["flat"]["verdict"] == UNTESTABLE
    assert "trapped" not in found
    found = decide_network(made(aging), few_weights=False)
    assert found["regimes"]["verdict"] == SEEN
    for key in ("first", "stops", "line"):
        assert found[key]["verdict"] == NOT_SEEN, (key, found[key])
    found = decide_network(made(straight), few_weights=False)
    assert (found["first"]["verdict"], found["second"]["verdict"]) == (SEEN, NOT_SEEN)
    # This network never learns all data, and its loss falls to the end. So no statement on the bottom can be tested.
    found = decide_network(made(paper, learnt=0.95, loss=(30, 20_000)), few_weights=False)
    assert {found[key]["verdict"] for key in ("regimes", "stops", "line", "clock")} == {UNTESTABLE}


def test_few_hidden_units_are_trapped_where_they_age_on_without_having_learnt() -> None:
    for delta, learnt, bottom, expected in (
        (aging, 0.9, 0.5, SEEN),
        (straight, 0.9, 0.5, NOT_SEEN),
        (paper, 0.9, 0.5, NOT_SEEN),  # its aging stops
        (aging, 0.99, 0.1, UNTESTABLE),
    ):
        found = decide_network(made(delta, learnt=learnt, bottom=bottom), few_weights=True)
        assert found["trapped"]["verdict"] == expected
        assert "stops" not in found


def test_a_drifting_noise_is_the_better_clock_where_it_moves_the_network() -> None:
    def noise(step: float) -> float:
        return 1 / (1 + step / 1000)

    def driven(waiting_time: int, lag: int) -> float:
        return 1e-3 * np.log((1001 + waiting_time + lag) / (1001 + waiting_time))

    record = made(driven, noise=noise)
    plain, drifting = off_line(record, 300) or (np.nan, np.nan)
    assert drifting < 0.01 < 0.2 < plain
    assert decide_network(record, few_weights=False)["clock"]["verdict"] == SEEN
    as_at_first = made(lambda t_w, t: noise(t_w) * t, noise=noise)
    assert decide_network(as_at_first, few_weights=False)["clock"]["verdict"] == NOT_SEEN
    assert off_line(made(straight), 1000) == pytest.approx((0, 0), abs=1e-12)
    # If D does not drift, the clock cannot be tested, however much D scatters.
    rng = np.random.default_rng(0)
    scattered = made(lambda t_w, t: 1e-6 * t * np.exp(0.05 * rng.normal()), noise=lambda _: np.exp(0.05 * rng.normal()))
    assert decide_network(scattered, few_weights=False)["clock"]["verdict"] == UNTESTABLE


def test_flat_directions_and_barriers_are_counted_beyond_their_resolution() -> None:
    def with_landscape(flat: tuple[float, float], error: float, height: float) -> dict[str, Any]:
        record = made(paper)
        for step, fraction in zip((0, STEPS), flat, strict=True):
            record.append_one_time("flat_fraction", step, fraction)
            record.append_one_time("flat_fraction_error", step, error)
        record.append_profile("loss_path", 10, 10, [0.0, 0.5, 1.0], [1.0, 1.0 + height, 0.5])
        return decide_network(record, few_weights=False)

    found = with_landscape((0.8, 0.9), 0.01, 0.04)
    assert (found["flat"]["verdict"], found["barriers"]["verdict"]) == (SEEN, SEEN)
    assert found["barriers"]["words"] == "0 of 2, highest 4.0%"
    found = with_landscape((0.8, 0.9), 0.1, 0.06)
    assert (found["flat"]["verdict"], found["barriers"]["verdict"]) == (UNTESTABLE, NOT_SEEN)
    assert with_landscape((0.9, 0.8), 0.01, 0)["flat"]["verdict"] == NOT_SEEN
    assert with_landscape((0.9, 0.902), 0.002, 0)["flat"]["verdict"] == NOT_SEEN


@pytest.mark.parametrize("mu", [0.0, 0.5, 1.0])
def test_the_aging_rate_between_two_steps_is_that_of_a_power_law(mu: float) -> None:
    found = ages(made(lambda t_w, t: (t / max(t_w, 1) ** mu) ** 0.7), 10, 5000)
    assert found is not None
    assert (found.rate, found.exponent, found.error) == pytest.approx((mu, 0.7, 0), abs=1e-9)
    assert found.depends is (mu > 0)
    assert ages(made(straight), 3000) is None  # less than half a decade


def test_what_scatters_too_much_is_not_decided() -> None:
    told = {(0.0, 0.05): False, (-0.09, 0.05): False, (0.3, 0.09): True, (-0.5, 0.2): True}
    untold = {(0.05, 0.08): None, (0.25, 0.13): None, (0.0, np.inf): None}
    for (rate, error), depends in (told | untold).items():
        assert Ages(rate, error, 1.0).depends is depends
    rng = np.random.default_rng(0)
    rates = [
        ages(made(lambda t_w, t, factor={}: 1e-6 * t * factor.setdefault(t_w, np.exp(0.3 * rng.normal()))), 10, 5000)
        for _ in range(40)
    ]
    # The error contains the scatter of the waiting times.
    z = [rate.rate / rate.error for rate in rates if rate is not None]
    assert 0.6 < np.sqrt(np.mean(np.square(z))) < 1.5


def test_few_samples_of_a_network_that_goes_on_learning_decide_nothing() -> None:
    found = decide_network(made(aging, learnt=0.9, loss=(30, 20_000), bottom=0.5), few_weights=True)
    assert found["trapped"]["verdict"] == UNTESTABLE
    assert "still falls" in found["trapped"]["words"]


# ------------------------------------------------------------------ statements on the glass


def number(z: float, second_order: float = 0.0) -> dict[str, float]:
    return {"extrapolated": z, "exact": 0.0, "error": 1.0, "second_order": second_order, "z": z}


GLASS: dict[str, Any] = {
    "temperature": 0.3,
    "verdict": "aging throughout",
    "rates": [{"first": 100, "last": 1000, "rate": 0.7, "low": 0.6, "high": 0.8}],
    "trends": [{"lag": 0.1, "trend": -0.02}, {"lag": 8, "trend": -0.4}],
    "lingers": [
        {"whose": whose, "time": 2**k, "displacement": 0.35, "exponent": 0.6 - 0.1 * k}
        for k in range(4)
        for whose in ("callback", "exact")
    ],
    "plateau": 0.386,
    "energy_limit": -1.156,
    "energy_exponent": 0.7,
    "energy_free_limit": -1.154,
    "threshold": -1.1547,
    "ground_state": -1.1717,
    "numbers": [number(-2.9), number(0.5), number(3.1, second_order=0.2)],
}


@pytest.mark.parametrize(
    ("statement", "change"),
    [
        ("never stops", {"verdict": "aging that stops"}),
        ("short lags", {"trends": [{"lag": 0.1, "trend": -0.1}, {"lag": 8, "trend": -0.4}]}),
        ("short lags", {"trends": [{"lag": 0.1, "trend": 0.0}, {"lag": 8, "trend": 0.0}]}),
        ("short lags", {"trends": [{"lag": 0.1, "trend": 0.0}, {"lag": 8, "trend": 0.4}]}),
        ("plateau", {"plateau": 0.5}),
        ("plateau", {"lingers": [{**row, "exponent": 0.5} for row in GLASS["lingers"]]}),
        ("threshold", {"energy_limit": -1.17}),
        ("threshold", {"energy_limit": -1.14}),
        ("agrees", {"numbers": [number(3.1), number(0.0)]}),
    ],
)
def test_each_statement_on_the_glass_is_seen_or_not(statement: str, change: dict[str, Any]) -> None:
    as_it_is, other = decide_glass(GLASS, copy.deepcopy(GLASS)), {**GLASS, **change}
    assert {found["verdict"] for found in as_it_is.values()} == {SEEN}
    changed = decide_glass(other, other)
    assert {key for key, found in changed.items() if found["verdict"] == NOT_SEEN} == {statement}


def test_what_cannot_be_told_of_the_glass_is_not_decided() -> None:
    other = {**GLASS, "verdict": "cannot tell", "trends": [], "lingers": []}
    found = decide_glass(other, other)
    undecided = {key for key, value in found.items() if value["verdict"] == UNTESTABLE}
    assert undecided == {"never stops", "short lags", "plateau"}


def of_size(fault: float) -> list[dict[str, Any]]:
    """Return numbers with errors of both orders in the size, a scatter of 1e-4, and a fault at the largest size."""
    glass = replace(GLASSES[0], t_max=1.0, waiting_times=(0.5,), seeds=(2, 2, 2))
    times = np.arange(21) * 0.05
    correlation = np.exp(-np.abs(times[:, None] - times))
    exact = TwoTimeSolution(times, correlation, np.zeros_like(correlation), -times, 0.0)
    records = {}
    for size in glass.sizes:
        step, off = glass.step(size), 1 / size + 0.5 / size**2 + (fault if size == max(glass.sizes) else 0)
        record = AgingRecord({"all": 1}, meta={}, n_replica=2)
        for lag in glass.lags:
            if 0.5 + lag <= 1:
                moments = np.zeros(record.row_shape)
                moments[..., 2] = np.exp(-lag) + off + np.array([[-1e-4], [1e-4]])  # the sum of products: C
                record.append(round(0.5 / step), round(lag / step), moments)
        for time in glass.times:
            record.append_one_time("energy", round(time / step), -time + off)
            record.append_one_time("energy_error", round(time / step), 1e-4)
        records[size] = record
    return comparing_dynamics.compared(glass, records, exact)


def test_errors_of_first_and_second_order_in_the_size_are_taken_out_and_a_fault_is_not() -> None:
    rows = of_size(0.0)
    assert {(row["what"], row["time"], row["lag"]) for row in rows} >= {("C", 0.5, 0.5), ("E", 1.0, 0.0)}
    for row in rows:
        assert row["extrapolated"] == pytest.approx(row["exact"], abs=1e-9)
        assert row["error"] == pytest.approx(np.sqrt(1 + 36 + 64) / 3 * 1e-4, rel=1e-6)
        assert row["second_order"] == pytest.approx(0.5 / (8 * 40**2))
    cold = {**GLASS, "numbers": rows}
    assert decide_glass(cold, cold)["agrees"]["verdict"] == SEEN
    faulty = {**GLASS, "numbers": of_size(8e-4)}  # a fault of 8 errors
    assert decide_glass(faulty, faulty)["agrees"]["verdict"] == NOT_SEEN


def test_a_curve_lingers_where_it_is_slowest_in_its_middle() -> None:
    lags = np.array(GLASSES[1].lags)
    # Slope 1 - 0.7 exp(-(ln t)^2): 0.3 at t = 1.
    fine = np.linspace(np.log(lags[0]) - 1, np.log(lags[-1]), 20_001)
    curve = np.exp(np.interp(np.log(lags), fine, np.cumsum(1 - 0.7 * np.exp(-(fine**2))) * (fine[1] - fine[0])))
    at, slowest = comparing_dynamics.lingers_at(lags, curve, last=16.0)
    assert np.interp(at, curve, lags) == pytest.approx(1, rel=0.1)
    assert 0.3 < slowest < 0.45  # smoothed over a factor of two to either side
    assert np.isnan(comparing_dynamics.lingers_at(lags, curve, last=1.0)).all()  # still slowing down at its end
    assert np.isnan(comparing_dynamics.lingers_at(lags, lags**0.5, last=0.1)).all()


def test_the_limit_of_an_energy_is_found_with_a_known_and_with_a_free_exponent() -> None:
    times = np.linspace(10, 32, 200)
    assert comparing_dynamics.energy_limits(times, -1.15 + 0.3 * times ** (-2 / 3))[0] == pytest.approx(-1.15)
    _, exponent, free = comparing_dynamics.energy_limits(times, -1.15 + 0.3 * times**-0.8)
    assert (exponent, free) == (pytest.approx(0.8, abs=1e-3), pytest.approx(-1.15, abs=1e-3))

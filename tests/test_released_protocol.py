"""The networks of the paper by its released protocol: the times, both D, a shortened run, and the committed page."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.studies import common, released_protocol
from examples.studies.common import PAGE, RESULTS, Classifier, as_json, marks
from examples.studies.comparing_dynamics import FEW, FULLY, KINDS, network
from examples.studies.released_protocol import (
    LATE,
    QUICK_RUNS,
    RUNS,
    USED,
    late_line,
    late_motion,
    noise_of,
    tables,
    their_noise,
    with_their_noise,
)
from examples.studies.statements import OF_NETWORKS, decide_network
from lightning_glassy import AgingRecord, LogTimeSchedule

STEPS = 10_000


# ------------------------------------------------------------------ the protocol


def test_the_runs_are_by_the_protocol_or_shorter() -> None:
    assert len({run.name for run in (*RUNS, *QUICK_RUNS)}) == len(RUNS)
    assert {run.kind for run in RUNS} == set(KINDS)
    for run in RUNS:
        assert run.data == "MNIST"
        assert run.batch_size == 100
        assert 0.01 <= run.learning_rate <= 0.1
        assert run.momentum in (0.0, 0.5)
        assert run.protocol_steps == {0.1: 100_000, 0.01: 1_000_000}[run.learning_rate]
        assert run.steps <= run.protocol_steps
        if run.momentum == 0 or run.weight_decay:
            # The run beside it has momentum, no weight decay, and the full number of steps.
            assert replace(run, momentum=0.5, weight_decay=0.0) in RUNS
            assert run.steps == run.protocol_steps


def test_the_times_are_those_of_the_protocol() -> None:
    for run in RUNS:
        waiting, lags = run.schedule.waiting_times, run.schedule.lags
        assert (waiting[0], waiting[1], waiting[-1]) == (0, 10, run.steps // 2)
        assert (lags[0], lags[1], lags[-1]) == (0, 1, run.steps // 2)
        assert 48 <= len(waiting) <= 51
        assert 75 <= len(lags) <= 101
        assert len(run.schedule.pairs) == len(waiting) * len(lags)
        assert set(waiting) <= set(run.noise_times)
        for times in (run.noise_times, run.loss_times):
            assert (times[0], times[1], times[-1]) == (0, 1, run.steps)
        assert len(run.loss_times) <= 101


def test_momentum_and_weight_decay_reach_the_optimiser_and_the_old_study_has_neither() -> None:
    plain, decayed = RUNS[0], next(run for run in RUNS if run.weight_decay)
    for run, momentum, decay in ((plain, 0.0, 0.0), (decayed, 0.5, 5e-4)):
        module = Classifier(
            network(run), run.learning_rate, l2=run.weight_decay / 2, momentum=run.momentum
        )  # as comparing_dynamics.train has it
        (group,) = module.configure_optimizers().param_groups
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, momentum, decay)
        assert not group["nesterov"]
        assert group["dampening"] == 0
    (group,) = Classifier(network(plain), 0.1).configure_optimizers().param_groups
    assert (group["momentum"], group["weight_decay"]) == (0, 0)


# ------------------------------------------------------------------ both D


@pytest.mark.parametrize("used", [0.1, 0.5, 1.0])
def test_their_noise_is_that_of_sums_divided_by_all_batches(used: float) -> None:
    rng = np.random.default_rng(0)
    n_all, n = 40, round(40 * used)
    gradients = 0.3 + rng.normal(size=(n, 7))  # of the used batches
    # The released program divides the sums over the used batches by the number of all batches.
    brute = (gradients**2).sum() / n_all - ((gradients.sum(axis=0) / n_all) ** 2).sum()
    noise = gradients.var(axis=0, ddof=1).sum()
    norm2 = (gradients.mean(axis=0) ** 2).sum()
    assert float(their_noise(noise, norm2, n, used)) == pytest.approx(brute, rel=1e-12)
    if used == 1:
        assert brute == pytest.approx(gradients.var(axis=0).sum())


def made(*, drift: float = 0.0, norm2: float = 0.0, speed: float = 1e-6) -> AgingRecord:
    """Return a record of one network at the bottom of its loss, with Δ = speed * t.

    D falls as a power of the step, and the squared mean gradient does not.
    """
    schedule = LogTimeSchedule.preset("baity-jesi", STEPS)
    record = AgingRecord({"all": 1}, meta={"GradientNoiseMonitor": {"batches": 100}})
    for waiting_time, lag in schedule.pairs:
        moments = np.zeros(record.row_shape)
        moments[..., 0] = speed * lag
        record.append(waiting_time, lag, moments)
    for step in sorted({0, 1, 3, *schedule.waiting_times, STEPS}):
        fallen = np.clip(np.log(max(step, 1) / 10) / np.log(10), 0, 1)
        record.append_one_time("train_loss", step, 2.3 * (1 - fallen))
        record.append_one_time("train_accuracy", step, 0.1 + 0.9 * fallen)
        record.append_one_time("gradient_noise", step, max(step, 1) ** -drift)
        record.append_one_time("gradient_norm2", step, norm2)
    record.append_profile("loss_path", 1, 1, [0.0, 0.5, 1.0], [1.0, 0.9, 0.9])
    return record


def test_a_copy_of_a_record_has_their_noise_and_the_record_keeps_its_own() -> None:
    record = made(norm2=2.0)
    other = with_their_noise(record)
    expected = USED * 0.99 + USED * (1 - USED) * 2
    assert other.one_time("gradient_noise")[1] == pytest.approx(expected)
    assert record.one_time("gradient_noise")[1] == pytest.approx(1)
    assert np.array_equal(other.msd(), record.msd())
    assert noise_of(record)[2] == pytest.approx(expected)
    record.append_one_time("gradient_norm2", STEPS + 1, 2.0)
    with pytest.raises(ValueError, match="same steps"):
        noise_of(record)


def test_a_line_over_one_d_is_no_line_over_another_that_drifts() -> None:
    # Both D are constant: a constant factor leaves the line as it is.
    record = made(norm2=2.0)
    for each in (record, with_their_noise(record)):
        assert decide_network(each, few_weights=False)["line"]["verdict"] == "seen"
        assert late_line(each, STEPS / LATE) == {"off": pytest.approx(0, abs=1e-9), "exponent": 1, "line": True}
    # Our D falls. Theirs falls less, because the mean gradient does not fall.
    record = made(norm2=10.0, drift=0.5)
    ours, theirs = (late_line(each, STEPS / LATE) for each in (record, with_their_noise(record)))
    assert (ours["line"], theirs["line"]) == (False, True)
    assert ours["off"] > 0.2 > theirs["off"]
    # The late curves have the limits of the statement, from the bottom on.
    bottom = decide_network(record, few_weights=False)["line"]
    assert bottom["verdict"] == "not seen"
    assert late_line(record, STEPS * 0.9) == {"off": None, "exponent": None, "line": None}


def test_independent_noise_alone_is_the_free_motion() -> None:
    for momentum in (0.0, 0.5):
        run = replace(RUNS[0], steps=STEPS, momentum=momentum)
        speed = (run.learning_rate / (1 - momentum)) ** 2  # D = N = 1
        late = late_motion(run, made(speed=speed))
        assert late["over_free_short"] == pytest.approx(1)
        assert late["over_free_long"] == pytest.approx(1)
        assert late["diffusion"] == pytest.approx(speed / 2)
        assert (late["waiting_time"], late["long_lag"]) == (STEPS // 2, STEPS // 2)
        assert late["exponent"] == pytest.approx(1)
        assert late["rate_plain"]["rate"] == pytest.approx(0, abs=1e-9)


def test_momentum_makes_a_random_walk_faster_by_the_square_of_one_over_one_minus_beta() -> None:
    """Train weights on gradients that are noise alone, and compare their displacement with the free motion."""
    beta, rate, steps, n = 0.5, 0.1, 200, 40_000
    weights = torch.nn.Parameter(torch.zeros(n))
    optimiser = torch.optim.SGD([weights], lr=rate, momentum=beta)
    generator = torch.Generator().manual_seed(0)
    for step in range(2 * steps):
        if step == steps:
            start = weights.detach().clone()
        weights.grad = torch.randn(n, generator=generator)  # D = N
        optimiser.step()
    measured = float((weights.detach() - start).square().mean())
    free = (rate / (1 - beta)) ** 2 * steps
    # The momentum is correlated over a few steps, which takes away 2 beta / ((1 - beta^2) t) at a lag t.
    short = 1 - 2 * beta / ((1 - beta**2) * steps)
    # 4 standard errors of the mean of n squares.
    assert measured / free == pytest.approx(short, abs=4 * (2 / n) ** 0.5)


# ------------------------------------------------------------------ a run, and the page


@pytest.mark.slow
def test_a_short_run_leaves_records_tables_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy, fully = (next(r for r in QUICK_RUNS if r.kind == kind and r.momentum) for kind in (FEW, FULLY))
    chosen = [toy, replace(toy, weight_decay=5e-4), fully]
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # the seed and the threads of the study end with this test
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(common, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))  # starts faster
    monkeypatch.setattr(released_protocol, "QUICK_RUNS", [replace(run, steps=60) for run in chosen])
    committed = {path: path.read_bytes() for path in (PAGE, *RESULTS.glob("released_protocol*"))}
    monkeypatch.setattr(sys, "argv", ["released_protocol", "--quick", "--out", str(tmp_path)])
    released_protocol.main()
    result = json.loads((tmp_path / "result.json").read_text())
    assert tables(result) in capsys.readouterr().out
    for run in result["runs"]:
        few = run["kind"] == FEW
        assert ("trapped" in run["findings"], "line" in run["findings"]) == (few, not few)
        assert set(run["findings"]) == set(run["findings_theirs"])
        series = run["series"]
        assert {"train_loss", "test_accuracy", "gradient_noise", "gradient_norm2"} <= set(series)
        assert series["train_loss"]["values"][-1] < series["train_loss"]["values"][0]
        noise, norm2 = (np.array(series[name]["values"]) for name in ("gradient_noise", "gradient_norm2"))
        ratio = their_noise(noise, norm2, run["noise_batches"]) / noise
        assert run["noise_ratio"]["values"] == pytest.approx(ratio, rel=1e-3)
        assert run["late"]["over_free_long"] > 0
    # The first two differ by weight decay only. So they start alike.
    with_momentum, decayed = result["runs"][:2]
    assert (with_momentum["weight_decay"], decayed["weight_decay"]) == (0, 5e-4)
    first, last = ([run["series"]["train_loss"]["values"][at] for run in (with_momentum, decayed)] for at in (0, -1))
    assert first[0] == first[1]
    assert last[0] != last[1]
    for picture in ("networks", "comparison"):
        assert (tmp_path / f"released_protocol_{picture}.png").stat().st_size > 20_000
    assert {path: path.read_bytes() for path in committed} == committed


def test_the_tables_of_the_page_are_those_of_the_committed_numbers() -> None:
    begin, end = marks("released_protocol")
    path = RESULTS / "released_protocol.json"
    result = json.loads(path.read_text())
    block = PAGE.read_text().split(begin)[1].split(end)[0]
    assert block.strip() == tables(result).strip()
    assert path.read_text() == as_json(result)
    assert path.stat().st_size < 200_000


def test_the_committed_numbers_are_of_the_runs_and_of_the_rules() -> None:
    result = json.loads((RESULTS / "released_protocol.json").read_text())
    names = ("kind", "settings", "steps", "protocol_steps", "batch_size", "evaluated")
    assert [[run[name] for name in names] for run in result["runs"]] == [
        [getattr(run, name) for name in names] for run in RUNS
    ]
    assert list(result["rules"]) == [each.text for each in OF_NETWORKS.values()]
    assert all(each.decide.__doc__ and each.decide.__doc__ in result["rules"].values() for each in OF_NETWORKS.values())
    for run in result["runs"]:
        noise, norm2 = (np.array(run["series"][name]["values"]) for name in ("gradient_noise", "gradient_norm2"))
        ratio = their_noise(noise, norm2, run["noise_batches"]) / noise
        assert run["noise_ratio"]["values"] == pytest.approx(ratio, rel=1e-3)
        assert min(run["noise_ratio"]["values"]) >= USED * (1 - 1 / run["noise_batches"]) * (1 - 1e-4)
    for picture in ("networks", "comparison"):
        assert (RESULTS / f"released_protocol_{picture}.png").stat().st_size > 20_000

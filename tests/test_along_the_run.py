"""Measurements along a run: the regimes of the loss against known crossovers, and the pictures in a report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_glassy import (
    AgingMonitor,
    AgingRecord,
    BarrierMonitor,
    CurvatureMonitor,
    DisplacementDistribution,
    GradientNoiseMonitor,
    LogTimeEvaluator,
    LogTimeSchedule,
    observables,
    plotting,
)
from lightning_glassy.analysis import NotEnoughDataError, loss_regimes, noise_clock
from lightning_glassy.plotting import plot_loss
from lightning_glassy.report import Report, report
from tests.helpers import PageAnswers, SmallNet, data, quiet_trainer

STEPS = LogTimeSchedule.logspaced(100_000, waiting_times_per_decade=6).waiting_times


def record_of(loss: Callable[[int], float], noise: float = 0.0, seed: int = 0) -> AgingRecord:
    rng = np.random.default_rng(seed)
    record = AgingRecord({"all": 1})
    for step in STEPS:
        record.append_one_time("train_loss", step, loss(step) + noise * rng.normal())
    return record


def three_pieces(first: float, second: float) -> Callable[[int], float]:
    """Return a loss: 2.3 up to the first step, 0.1 from the second step on, and linear in ln t between them."""
    return lambda t: 2.3 - 2.2 * float(np.clip(np.log(max(t, 1e-9) / first) / np.log(second / first), 0, 1))


# ---------------------------------------------------------------------- the regimes of the loss


def test_corners_of_a_loss_of_three_straight_pieces_are_found() -> None:
    found = loss_regimes(record_of(three_pieces(50, 5000)))
    assert found.falls_from == pytest.approx(50, rel=0.05)
    assert found.bottom_from == pytest.approx(5000, rel=0.05)
    assert (found.high, found.low) == pytest.approx((2.3, 0.1), abs=0.01)
    assert found.deviation < 0.005
    assert not found.warnings
    assert "until step 51 (46 ... 56)" in str(found)


def test_intervals_hold_the_corners_as_often_as_they_say() -> None:
    held = {"falls": 0, "bottom": 0}
    for seed in range(100):
        found = loss_regimes(record_of(three_pieces(50, 5000), noise=0.05, seed=seed))
        assert found.falls_interval is not None
        assert found.bottom_interval is not None
        held["falls"] += found.falls_interval[0] <= 50 <= found.falls_interval[1]
        held["bottom"] += found.bottom_interval[0] <= 5000 <= found.bottom_interval[1]
        # The intervals are also narrow enough to be useful.
        assert found.falls_interval[1] < 3 * found.falls_interval[0]
        assert found.bottom_interval[1] < 3 * found.bottom_interval[0]
    assert min(held.values()) >= 90


@pytest.mark.parametrize(("first", "second"), [(0.5, 5000), (50, 5e6), (0.5, 5e6)])
def test_a_regime_that_was_not_seen_has_no_crossover(first: float, second: float) -> None:
    found = loss_regimes(record_of(three_pieces(first, second), noise=0.01))
    assert found.falls
    assert (found.falls_from is None) == (first < 1)
    assert (found.bottom_from is None) == (second > STEPS[-1])
    assert ("over before it was measured" in str(found)) == (first < 1)
    assert ("the bottom is not reached" in str(found)) == (second > STEPS[-1])


def test_noise_about_a_constant_has_no_regimes() -> None:
    for seed in range(100):
        found = loss_regimes(record_of(lambda t: 2.3, noise=0.1, seed=seed))
        assert not found.falls
        assert (found.falls_from, found.bottom_from) == (None, None)
    assert "it does not fall" in str(found)


@pytest.mark.parametrize("loss", [lambda t: 2.3, lambda t: 2.3 + t, lambda t: 1e300, lambda t: 0.0])
def test_a_loss_that_does_not_fall_is_said_not_to(loss: Callable[[int], float]) -> None:
    assert not loss_regimes(record_of(loss)).falls


def test_what_is_to_be_doubted_is_said() -> None:
    twice = loss_regimes(record_of(lambda t: 1.0 + 1.3 * (t < 30) + 1.0 * (t < 10_000)))
    assert any("several falls?" in warning for warning in twice.warnings)
    deep = loss_regimes(record_of(lambda t: 2.3 / (1 + t / 100) ** 2))
    assert "at the bottom on a linear scale" in str(deep)
    assert "but still falling by a factor of 98 per decade of steps" in str(deep)
    bump = loss_regimes(record_of(lambda t: three_pieces(50, 5000)(t) + 1.2 * (30_000 < t < 40_000)))
    (warning,) = [warning for warning in bump.warnings if "rises again" in warning]
    assert "at step 31,623" in warning
    gap = record_of(three_pieces(50, 5000))
    gap.append_one_time("train_loss", 100, float("nan"))
    assert "not finite at 1 of the steps" in str(loss_regimes(gap))


def test_too_few_points_are_an_error_that_says_how_many_are_needed() -> None:
    record = AgingRecord({"all": 1})
    for step in range(7):
        record.append_one_time("train_loss", step, 1.0)
    with pytest.raises(NotEnoughDataError, match=r"has 6 finite values after step 0, at steps 1 ... 6: regimes need 8"):
        loss_regimes(record)
    with pytest.raises(KeyError, match="no one-time series 'val_loss'"):
        loss_regimes(record, "val_loss")


# ---------------------------------------------------------------------- pictures and report

PICTURES = {"loss", "gradient_noise", "displacement_over_noise", "curvature"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> AgingRecord:
    """Return the record of a training with all callbacks."""
    torch.manual_seed(0)
    module = SmallNet(lr=0.3)
    module.net[2] = nn.Identity()
    options: dict[str, Any] = {"save": False, "summary": False}
    probes = [
        LogTimeEvaluator(loaders={"test": data(n=24, shuffle=False)}, **options),
        GradientNoiseMonitor(**options),
        CurvatureMonitor(n_nodes=8, **options),
    ]
    monitor = AgingMonitor(groups="layer", **options)
    quiet_trainer(tmp_path_factory.mktemp("run"), callbacks=[*probes, monitor], max_steps=150).fit(module, data())
    return monitor.record


@pytest.mark.needs("plotly")
def test_the_report_of_a_record_with_all_series_shows_them(trained: AgingRecord, tmp_path: Path) -> None:
    found = report(trained, n_bootstrap=10)
    assert found.regimes is not None
    assert "regimes of the loss 'train_loss' (steps 1 ... 150)" in str(found)
    written = {path.stem for path in found.write(tmp_path) if path.suffix == ".png"}
    assert written >= PICTURES
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["loss_regimes"]["high"] == pytest.approx(found.regimes.high)
    series = PageAnswers((tmp_path / "report.html").read_text()).ask("series")["one_time"]
    assert {"hessian_max", "flat_fraction", "gradient_noise", "train_loss"} <= set(series)


def lines(found: Report, picture: str, axes: int = 0) -> dict[str, Any]:
    return {str(line.get_label()): line for line in found.figures()[picture].axes[axes].get_lines()}


def test_the_pictures_show_what_is_in_the_record(trained: AgingRecord) -> None:
    found = report(trained, n_bootstrap=10)
    for picture, axes, label, name in (
        ("loss", 0, "train loss", "train_loss"),
        ("loss", 0, "test loss", "test_loss"),
        ("gradient_noise", 0, "noise $D$", "gradient_noise"),
        ("curvature", 0, r"flat, $|\lambda| < \lambda_0$", "flat_fraction"),
        ("curvature", 1, "leading", "hessian_max"),
        ("curvature", 1, "lowest", "hessian_min"),
    ):
        steps, values = trained.one_time(name)
        line = lines(found, picture, axes)[label]
        # A logarithmic axis has no place for step 0.
        assert np.array_equal(line.get_xdata(), steps[1:])
        assert np.array_equal(line.get_ydata(), values[1:])
    left, right = found.figures()["displacement_over_noise"].axes[:2]
    late = trained.waiting_times.tolist().index(46)
    for axes, values in ((left, trained.msd()), (right, trained.msd(normalise="noise"))):
        (line,) = [line for line in axes.get_lines() if line.get_label() == "$t_w = 46$"]
        measured = np.isfinite(values[late])
        assert np.array_equal(line.get_ydata(), values[late][measured])


def test_the_loss_of_replicas_is_drawn_with_its_error() -> None:
    record = AgingRecord({"all": 1}, meta={})
    for step in (1, 10, 100):
        record.append_one_time("train_loss", step, 2.0)
        record.append_one_time("train_loss_error", step, 0.25)
        record.append_one_time("test_loss", step, 3.0)
    (band,) = plot_loss(record).collections  # the test loss has no error
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (1.75, 2.25)


def test_a_group_has_the_pictures_of_its_own_noise(trained: AgingRecord) -> None:
    figures = report(trained, group="net.3", n_bootstrap=10).figures()
    (noise,) = [line for line in figures["gradient_noise"].axes[0].get_lines() if line.get_label() == "noise $D$"]
    assert np.array_equal(noise.get_ydata(), trained.one_time("gradient_noise/net.3")[1][1:])


def test_a_record_without_series_has_no_such_pictures() -> None:
    walk = np.cumsum(np.random.default_rng(0).normal(size=(301, 6)), axis=0)
    found = report(AgingRecord.from_trajectory(walk, LogTimeSchedule.logspaced(300)), n_bootstrap=10)
    assert found.regimes is None
    assert "regimes" not in str(found)
    assert found.to_dict()["loss_regimes"] is None
    assert not PICTURES & set(found.figures())


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, -np.inf, 1e300, 1e-300])
def test_series_without_sense_are_drawn_without_an_exception(value: float) -> None:
    walk = np.cumsum(np.random.default_rng(0).normal(size=(301, 6)), axis=0)
    record = AgingRecord.from_trajectory(walk, LogTimeSchedule.logspaced(300), meta={"CurvatureMonitor": {"eps": "x"}})
    names = ["train_loss", "_$x_{_loss", "gradient_noise", "gradient_norm2", "flat_fraction", "flat_fraction_error"]
    names += ["hessian_max", "hessian_min_at_most", "hessian_q05", "hessian_q95", "hessian_index"]
    for k, name in enumerate(names):
        for step in STEPS[k % 2 : 20]:
            record.append_one_time(name, step, value)
    found = report(record, n_bootstrap=10)
    assert json.dumps(found.to_dict(), allow_nan=False)
    assert set(found.figures()) >= PICTURES
    for figure in found.figures().values():
        figure.canvas.draw()


def test_pictures_draw_on_given_axes(trained: AgingRecord) -> None:
    axes = plotting.new_figure(4).axes
    assert plotting.plot_loss(trained, ax=axes[0]) is axes[0]
    assert plotting.plot_gradient_noise(trained, ax=axes[1]) is axes[1]
    assert plotting.plot_curvature(trained, axes=(axes[2], axes[3])) == (axes[2], axes[3])
    with pytest.raises(KeyError, match=r"no one-time series 'gradient_noise/net.1'"):
        plotting.plot_gradient_noise(trained, group="net.1")


# ---------------------------------------------------------------------- noise as a clock, barriers, distributions


def test_the_noise_clock_is_the_integral_of_the_noise() -> None:
    schedule = LogTimeSchedule([0, 1, 10, 100, 1000], [1, 10, 100, 5000])
    record = AgingRecord.from_trajectory(np.zeros((6001, 2)), schedule)
    for step in LogTimeSchedule.logspaced(6100, waiting_times_per_decade=12).waiting_times:
        record.append_one_time("gradient_noise", step, 3.0 / (1 + step))
    found = noise_clock(record)
    for i, waiting_time in enumerate(record.waiting_times.tolist()):
        for j, lag in enumerate(record.lags.tolist()):
            if waiting_time + lag <= 5400:
                exact = 3 * np.log((1 + waiting_time + lag) / (1 + waiting_time))
                # The trapezoidal rule has whole steps, and D falls by half from the first step to the second.
                assert found[i, j] == pytest.approx(exact, rel=1e-3 if waiting_time >= 10 else 0.1), (waiting_time, lag)
            elif waiting_time + lag > 6100:
                assert np.isnan(found[i, j])
    with pytest.raises(KeyError, match="gradient_noise"):
        noise_clock(AgingRecord.from_trajectory(np.zeros((11, 2)), LogTimeSchedule([0], [5])))


def test_a_walk_driven_by_the_noise_is_one_line_against_its_clock() -> None:
    generator = np.random.default_rng(5)
    noise = 1 / (1 + np.arange(3000) / 100)
    walk = np.concatenate(
        [np.zeros((1, 400)), np.cumsum(generator.normal(size=(3000, 400)) * np.sqrt(noise)[:, None], 0)]
    )
    record = AgingRecord.from_trajectory(walk, LogTimeSchedule([0, 100, 1000, 2000], [10, 100, 900]))
    for step in range(0, 3000, 20):
        record.append_one_time("gradient_noise", step, noise[step])
    ratio = record.msd() / noise_clock(record)
    measured = np.isfinite(ratio)
    # The displacement of N coordinates scatters by sqrt(2/N).
    assert measured.sum() >= 11
    assert np.abs(ratio[measured] - 1).max() < 4 * np.sqrt(2 / 400)


def test_barriers_and_distributions_have_their_pictures(tmp_path: Path) -> None:
    monitor, quiet = AgingMonitor(save=False, summary=False), {"save": False, "summary": False}
    probes = [GradientNoiseMonitor(**quiet), BarrierMonitor(**quiet), DisplacementDistribution()]
    quiet_trainer(tmp_path, callbacks=[monitor, *probes], max_steps=120).fit(SmallNet(), data())
    figures = report(monitor.record).figures()
    assert {"noise_clock", "barriers", "distributions", "displacement_over_noise"} <= set(figures)
    left, right = figures["barriers"].axes[:2]
    paths = monitor.record.profile("loss_path")
    assert len(left.get_lines()) == len(paths.values)
    drawn = np.concatenate([line.get_ydata() for line in right.get_lines()])
    assert sorted(drawn) == sorted(observables.barrier_height(paths.values))
    left, right = figures["distributions"].axes[:2]
    assert len(left.get_lines()) == len(monitor.record.profile("displacement").values) + 1
    gaussian = left.get_lines()[-1]
    assert gaussian.get_ydata()[0] == pytest.approx(np.sqrt(2 / np.pi), rel=1e-4)
    assert len(figures["noise_clock"].axes[0].get_lines()) == len(monitor.record.waiting_times)

"""Errors of the numbers: mean and standard error over replicas, copies that are no replicas, and runs cut short."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lightning_glassy import AgingRecord, LogTimeSchedule, plotting
from lightning_glassy.analysis import aging_exponent, collapse, diffusion, heterogeneity, relaxation_curves, verdict
from lightning_glassy.analysis.confounders import confounders
from lightning_glassy.analysis.crossings import mean_lag_to_threshold
from lightning_glassy.analysis.heterogeneity import NotEnoughDataError
from lightning_glassy.loggers.csv import CSVSink
from lightning_glassy.observables import OBSERVABLES
from lightning_glassy.observables.arrays import jackknife_error, over_replicas
from lightning_glassy.record import without_cut_short
from lightning_glassy.report import answers, report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCHEDULE = LogTimeSchedule([0, 3, 10, 30, 100], [1, 2, 5, 10, 20, 50, 100])


def walks(n_replica: int = 8, n: int = 50, seed: int = 0) -> np.ndarray:
    """Return random walks from independent random starts."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(n_replica, 201, n))
    steps[:, 0] *= 10
    return np.cumsum(steps, axis=1)


def of(weights: np.ndarray, **options: object) -> AgingRecord:
    record = AgingRecord.from_trajectory(weights, SCHEDULE, overlap_thresholds=[1.0, 3.0], **options)
    for step in record.waiting_times.tolist():
        record.append_one_time("gradient_noise", step, 2.0)
    return record


# ---------------------------------------------------------------------- mean and standard error


@pytest.mark.parametrize("name", OBSERVABLES)
def test_every_observable_has_a_mean_over_replicas_and_its_error(name: str) -> None:
    record = of(walks())
    mean, error = record.mean(name), record.sem(name)
    assert mean.shape == error.shape == (5, 7)
    measured = np.isfinite(record.mean("msd")) & (record.lags > 0)
    assert (error[measured] > 0).all()
    entry = OBSERVABLES[name]
    if not entry.over_replicas and not entry.of_mean:
        values = record.observable(name)
        np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(error, values.std(axis=0, ddof=1) / np.sqrt(8), rtol=1e-14)


@pytest.mark.parametrize("name", OBSERVABLES)
def test_the_error_is_that_of_many_repetitions(name: str) -> None:
    """The scatter of the means of 60 sets of 16 replicas agrees with the error that each set gives."""
    schedule = LogTimeSchedule([1, 4], [1, 2, 4])
    rng = np.random.default_rng(1)
    means, errors = [], []
    for _ in range(60):
        frames = np.cumsum(rng.normal(size=(16, 9, 40)), axis=1)
        record = AgingRecord.from_trajectory(frames, schedule, overlap_thresholds=[1.0])
        record.append_one_time("gradient_noise", 1, 2.0)
        record.append_one_time("gradient_noise", 4, 3.0)
        means.append(record.mean(name))
        errors.append(record.sem(name))
    ratio = np.sqrt(np.mean(np.square(errors), axis=0)) / np.std(means, axis=0, ddof=1)
    assert (np.abs(np.log(ratio)) < 4.5 * 0.1).all()  # 60 means know their spread to 9 %


def test_the_local_exponent_is_that_of_the_mean_displacement() -> None:
    record = of(walks(n=4))  # four coordinates: the log of a displacement is far from the log of the mean
    curves = record.msd().mean(axis=0)
    expected = OBSERVABLES["local_exponent"].formula(record.lags, curves)
    np.testing.assert_array_equal(record.mean("local_exponent"), expected)
    others = [np.delete(record.msd(), r, axis=0).mean(axis=0) for r in range(8)]
    without = np.stack([OBSERVABLES["local_exponent"].formula(record.lags, other) for other in others])
    np.testing.assert_allclose(record.sem("local_exponent"), jackknife_error(without), rtol=1e-12)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=(7, 3))
    without = (values.sum(axis=0) - values) / 6
    np.testing.assert_allclose(jackknife_error(without), over_replicas(values)[1], rtol=1e-12)


def test_chi4_has_its_own_value_and_the_jackknife_error() -> None:
    record = of(walks())
    for name, quantity in (("chi4", "overlap"), ("chi4_correlation", "correlation")):
        np.testing.assert_array_equal(record.mean(name), record.chi4(quantity=quantity))
        np.testing.assert_array_equal(record.sem(name), record.chi4_error(quantity=quantity))
    np.testing.assert_array_equal(record.sem("chi4", eps=3.0), record.chi4_error(eps=3.0))


@pytest.mark.parametrize("n_replica", [None, 1])
def test_one_run_has_a_mean_and_no_error(n_replica: int | None) -> None:
    weights = walks(1) if n_replica else walks(1)[0]
    record = of(weights)
    np.testing.assert_array_equal(record.mean("msd"), record.msd().reshape(5, 7))
    assert not record.has_errors
    with pytest.raises(ValueError, match=f"n_replica={n_replica}: one run has no scatter .* ReplicaEnsemble"):
        record.sem("msd")
    assert np.isnan(relaxation_curves(record).sem()).all()
    assert answers.curves(record, "msd", "all", None)["band"] is None


def test_wrong_names_of_a_mean_are_refused_as_those_of_an_observable() -> None:
    record = of(walks())
    for method in (record.mean, record.sem):
        with pytest.raises(ValueError, match="name='entropy' is not one of 'msd'"):
            method("entropy")
        with pytest.raises(KeyError, match="no group 'x'"):
            method("msd", "x")
        with pytest.raises(ValueError, match=r"eps=2\.0 was not counted"):
            method("overlap", eps=2.0)
        with pytest.raises(ValueError, match=r"eps=1\.0 belongs to the overlap"):
            method("msd", eps=1.0)


def test_the_sampling_error_points_to_the_error_over_replicas() -> None:
    record = of(walks())
    with pytest.raises(ValueError, match=r"over replicas, of any observable, is record.sem\('decorrelation'\)"):
        record.standard_error("decorrelation")
    assert (record.standard_error("msd")[np.isfinite(record.msd())] == 0).all()
    assert (record.sem("msd")[np.isfinite(record.mean("msd"))] > 0).all()


def test_a_pair_at_which_a_replica_is_not_finite_has_neither_mean_nor_error() -> None:
    frames = walks()
    frames[3, 60:] = np.nan
    record = of(frames)
    lost = ~np.isfinite(record.msd()).all(axis=0)
    assert np.isnan(record.mean("msd")[lost]).all()
    assert np.isnan(record.sem("msd")[lost]).all()
    assert np.isfinite(record.sem("msd")[~lost]).all()
    assert "[3]" in str(verdict(record))


def test_the_table_of_means_has_the_errors_of_the_record() -> None:
    record = of(walks(), groups={"some": range(10)})
    table = record.mean_table()
    names = list(table)
    for name, (entry, eps) in record.columns().items():
        assert names.index(f"{name}_sem") > names.index(name)
        for group in record.groups:
            mine = np.array(table["group"]) == group
            expected = record.sem(entry.name, group, eps=eps)
            np.testing.assert_allclose(
                np.array(table[f"{name}_sem"])[mine], expected[np.isfinite(expected)], rtol=1e-13
            )
    assert list(record.mean_table(columns=["msd"]))[-1] == "msd"
    single = of(walks(1)[0])
    assert not any(name.endswith("_sem") for name in single.mean_table())


def test_the_mean_of_a_series_over_joined_runs_has_an_error() -> None:
    rng, runs = np.random.default_rng(0), [of(frames) for frames in walks(5)]
    losses = rng.normal(size=(5, 3))
    for run, values in zip(runs, losses, strict=True):
        for step, loss in enumerate(values):
            run.append_one_time("train_loss", step, loss)
        run.append_one_time("learning_rate", 0, 0.1)
        run.append_one_time("flat_fraction", 0, rng.uniform())
        run.append_one_time("flat_fraction_error", 0, 0.25)
    whole = AgingRecord.concat(runs)
    expected = losses.std(axis=0, ddof=1) / np.sqrt(5)
    assert whole.one_time("train_loss_error")[1] == pytest.approx(expected)
    # The error of a part gives its sum of squares.
    nested = AgingRecord.concat([AgingRecord.concat(runs[:3]), runs[3], AgingRecord.concat(runs[4:])])
    assert nested.one_time("train_loss_error")[1] == pytest.approx(expected)
    assert "learning_rate_error" not in whole.one_time_names
    assert whole.one_time("flat_fraction_error")[1] == pytest.approx([0.25])  # an error of another kind


# ---------------------------------------------------------------------- replicas that are none


def copied(by: float, n_copies: int = 8) -> np.ndarray:
    """Return copies of one walk that differ by a relative amount."""
    noise = np.random.default_rng(1).normal(size=(n_copies, 201, 50))
    return walks(1) * (1 + by * noise)


@pytest.mark.parametrize("by", [0.0, 1e-12, 1e-9, 1e-7])
def test_copies_are_no_replicas(by: float) -> None:
    frames = copied(by)
    with pytest.raises(ValueError, match=r"records\[\d\] and records\[0\] hold the same run"):
        AgingRecord.concat([of(run) for run in frames])
    record = of(frames)
    assert record.copies == [(replica, 0) for replica in range(1, 8)]
    assert not record.has_errors
    for name in ("msd", "overlap", "local_exponent", "chi4"):
        with pytest.raises(ValueError, match=r"replicas 0, 1, 2, 3, 4, 5, 6, 7 .* are one run"):
            record.sem(name)
    with pytest.raises(ValueError, match="are one run"):
        record.chi4_error()
    assert not any(name.endswith("_sem") for name in record.mean_table())


def test_copies_that_hardly_move_are_no_replicas() -> None:
    frames = walks(1)
    frames = frames[:, :1] + 1e-4 * (frames - frames[:, :1])
    assert len(of(frames + 1e-9 * np.random.default_rng(0).normal(size=(8, *frames.shape[1:]))).copies) == 7


def test_the_analysis_of_copies_is_that_of_one_run() -> None:
    record, single = of(copied(1e-9)), of(copied(1e-9)[:1])
    sentence = "replicas 0, 1, 2, 3, 4, 5, 6, 7 (counted from 0) are one run"
    for found in (aging_exponent(record), verdict(record)):
        assert any(sentence in warning for warning in found.warnings)
    fit = aging_exponent(record)
    assert (fit.n_replica, fit.interval, fit.standard_errors) == (1, None, {})
    assert diffusion(record).standard_error is None
    with pytest.raises(NotEnoughDataError, match="copies of others"):
        heterogeneity(record)
    found = report(record)
    assert (found.record.n_replica, found.heterogeneity) == (1, None)
    assert sentence in str(found)
    assert found.title.endswith(", 1 replica")
    assert answers.curves(record, "msd", "all", None) == answers.curves(single, "msd", "all", None)
    assert record.n_replica == 8
    assert record.doubts == []  # the record of the caller is unchanged


def test_one_copy_among_replicas_is_left_out_by_name() -> None:
    frames = walks(9)
    frames[6] = frames[2] * (1 + 1e-9)
    record, others = of(frames), of(np.delete(frames, 6, axis=0))
    assert record.copies == [(6, 2)]
    curves = relaxation_curves(record)
    np.testing.assert_array_equal(curves.values, relaxation_curves(others).values)
    assert curves.doubts[0].startswith("replicas 2, 6 (counted from 0) are one run")
    fit = aging_exponent(record, n_bootstrap=20)
    assert fit.n_replica == 8
    assert any("replicas 2, 6" in warning for warning in fit.warnings)


@pytest.mark.parametrize("n", [1, 3, 100, 20_000])
def test_independent_runs_are_no_copies(n: int) -> None:
    rng = np.random.default_rng(n)
    frames = np.cumsum(rng.normal(size=(16, 6, n)), axis=1)
    record = AgingRecord.from_trajectory(frames, LogTimeSchedule([0, 1], [1, 4]), n_replica=16)
    assert record.copies == record.clones == []
    assert record.independent() == (record, [])


def test_copies_are_found_beside_a_replica_that_diverges() -> None:
    frames = walks(6)
    frames[1] *= 1e40 ** (np.arange(201) / 200)[:, None]
    frames[2, 50:] = np.nan
    frames[5] = frames[0]
    record = of(frames)
    assert record.copies == [(5, 0)]
    assert of(frames[:5]).copies == []


def test_replicas_that_have_all_diverged_are_no_copies() -> None:
    frames = walks(4)
    frames[:, 1:] = np.nan
    record = of(frames)
    assert record.copies == []
    assert record.independent()[1] == []


def test_a_copy_inside_a_joined_record_does_not_stop_the_others() -> None:
    frames = copied(1e-9, 3)
    joined = AgingRecord.concat([of(frames), of(walks(1, seed=5)[0])])
    assert joined.copies == [(1, 0), (2, 0)]
    assert relaxation_curves(joined).n_replica == 2


def test_clones_are_doubted_and_not_refused() -> None:
    rng, start = np.random.default_rng(0), walks(1)[0, :1]
    clones = start + np.cumsum(rng.normal(size=(8, 201, 50)) * (np.arange(201) > 0)[:, None], axis=1)
    record = of(clones)
    assert record.copies == []
    assert len(record.clones) == 7
    assert (record.sem("msd")[np.isfinite(record.mean("msd"))] > 0).all()
    words = "have had the same weights at a waiting time, or nearly so: the scatter of such clones is that of the noise"
    assert any(words in doubt for doubt in confounders(record))
    assert any(words in warning for warning in verdict(record).warnings)
    assert any(words in doubt for doubt in confounders(AgingRecord.concat([of(run) for run in clones])))


@pytest.mark.parametrize("by", [1e-6, 1e-5])
def test_near_copies_are_doubted_at_least(by: float) -> None:
    record = of(copied(by))
    assert len(record.copies) + len(record.clones) >= 7
    doubts = verdict(record).warnings
    assert any("are one run" in doubt or "have had the same weights" in doubt for doubt in doubts)


def test_clones_that_are_made_during_the_run_are_found() -> None:
    frames = walks(8)
    frames[:, 30:] += frames[:1, 30:31] - frames[:, 30:31]
    assert len(of(frames).clones) == 7


def test_systems_that_start_at_a_point_or_keep_their_length_are_no_clones() -> None:
    rng = np.random.default_rng(0)
    from_zero = np.cumsum(rng.normal(size=(8, 201, 50)) * (np.arange(201) > 0)[:, None], axis=1)
    spins = np.sign(rng.normal(size=(8, 201, 10)))
    for frames in (from_zero, spins):
        assert of(frames).clones == []


def test_a_replica_that_has_diverged_does_not_stop_the_others() -> None:
    frames = walks(9)
    frames[4, 1:] = np.nan
    record, others = of(frames), of(np.delete(frames, 4, axis=0))
    np.testing.assert_array_equal(relaxation_curves(record).values, relaxation_curves(others).values)
    found = report(record, n_bootstrap=20)
    assert "of 9 replicas, 4 (counted from 0) have no finite value: they have diverged, and are left out" in str(found)
    assert found.exponent is not None
    assert found.exponent.n_replica == 8
    np.testing.assert_array_equal(found.heterogeneity.chi4, others.chi4())
    assert answers.curves(record, "msd", "all", None) == answers.curves(others, "msd", "all", None)


# ---------------------------------------------------------------------- figures


def bands(ax: Axes) -> list[np.ndarray]:
    """Return the corners of each band in a figure."""
    return [path.vertices for part in ax.collections for path in part.get_paths()]


def notes(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


@pytest.mark.parametrize("name", ["msd", "overlap", "non_gaussian", "local_exponent", "normalised_msd", "chi4"])
def test_the_curves_of_replicas_have_a_band_of_one_standard_error(name: str) -> None:
    record = of(walks())
    ax = plotting.plot_two_time(record, name, colorbar=False)
    assert notes(ax) == ["bands: one standard error over 8 replicas"]
    value, error = record.mean(name)[2], record.sem(name)[2]
    corners = bands(ax)[2]
    for lag, middle, half in zip(record.lags, value, error, strict=True):
        if np.isfinite(middle):
            heights = corners[corners[:, 0] == lag, 1]
            assert (heights.min(), heights.max()) == pytest.approx((middle - half, middle + half), rel=1e-9)


@pytest.mark.parametrize(
    "frames", [walks(1), walks(1)[0], np.repeat(walks(1), 8, axis=0)], ids=["one", "lone", "copies"]
)
def test_one_run_and_copies_have_no_band(frames: np.ndarray) -> None:
    record = of(frames)
    drawn = [
        plotting.plot_two_time(record),
        plotting.plot_curves(relaxation_curves(record)),
        plotting.plot_collapse(collapse(relaxation_curves(record), 0.5)),
        plotting.plot_noise_clock(record),
        plotting.plot_threshold_lags(aging_exponent(record)),
    ]
    for ax in drawn:
        assert bands(ax) == []
        assert not any("standard error" in words for words in notes(ax))


def test_the_curves_of_the_analysis_have_the_errors_of_the_record() -> None:
    record = of(walks())
    curves = relaxation_curves(record)
    np.testing.assert_array_equal(curves.mean(), record.mean("msd"))
    np.testing.assert_array_equal(curves.sem(), record.sem("msd"))
    collapsed = collapse(curves, 0.0)
    np.testing.assert_allclose(collapsed.errors, record.sem("msd")[1:], rtol=1e-12)
    for ax in (plotting.plot_curves(curves), plotting.plot_collapse(collapsed), plotting.plot_noise_clock(record)):
        assert notes(ax) == ["bands: one standard error over 8 replicas"]
        assert len(bands(ax)) >= 4


def test_a_band_below_zero_ends_above_the_bottom_of_a_logarithmic_axis() -> None:
    frames = walks(2, n=4)
    frames[1] = frames[1, :1] + 30 * (frames[1] - frames[1, :1])
    record = of(frames)
    assert (record.mean("msd") < 1.01 * record.sem("msd")).any()
    ax = plotting.plot_two_time(record)
    lowest = np.nanmin(record.mean("msd"))
    assert min(corners[:, 1].min() for corners in bands(ax)) >= 0.5 * lowest * (1 - 1e-12)
    assert ax.get_ylim()[0] > 0.1 * lowest


def test_the_lag_to_a_threshold_has_the_error_of_many_repetitions() -> None:
    lags, rng = np.array([1, 2, 5, 10, 20, 50]), np.random.default_rng(0)
    found = [
        mean_lag_to_threshold(lags, 0.1 * lags**0.8 * np.exp(0.3 * rng.normal(size=(16, 1, 1))), 0.5)
        for _ in range(200)
    ]
    spread = np.std([crossing.lags[0] for crossing in found], ddof=1)
    given = np.sqrt(np.mean([crossing.errors[0] ** 2 for crossing in found]))
    assert abs(np.log(given / spread)) < 4.5 * np.sqrt(1 / 400 + 1 / 400 / 15)
    assert mean_lag_to_threshold(lags, lags[None, None] * 0.1, 0.5).errors is None


def test_the_lags_to_thresholds_have_bars() -> None:
    fit = aging_exponent(of(walks()), thresholds=[5.0, 20.0], n_bootstrap=20)
    ax = plotting.plot_threshold_lags(fit)
    assert notes(ax) == ["bars: one standard error over 8 replicas"]
    law = fit.thresholds[0]
    found = np.isfinite(law.crossings.lags)
    (bars,) = ax.containers[0].lines[2]
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(ends[:, 1], (law.crossings.lags + law.crossings.errors)[found])
    assert (ends[:, 0] > 0).all()


def test_losses_and_gradient_noise_of_joined_runs_have_bands() -> None:
    rng, runs = np.random.default_rng(0), [of(frames) for frames in walks(5)]
    for run in runs:
        for step in range(1, 20):
            run.append_one_time("train_loss", step, rng.uniform(1, 2))
            run.append_one_time("gradient_noise", step, rng.uniform(1, 2))
    whole = AgingRecord.concat(runs)
    for ax in (plotting.plot_loss(whole), plotting.plot_gradient_noise(whole)):
        assert notes(ax) == ["bands: one standard error over 5 replicas"]
        assert len(bands(ax)) == 1
    for ax in (plotting.plot_loss(runs[0]), plotting.plot_gradient_noise(runs[0])):
        assert (notes(ax), bands(ax)) == ([], [])


def test_the_page_has_the_mean_and_the_error_of_the_record() -> None:
    record = of(walks())
    positive = record.lags > 0
    for name in record.available():
        found = answers.curves(record, name, "all", None)
        mean, error = record.mean(name)[:, positive], record.sem(name)[:, positive]
        for i, row in enumerate(found["values"]):
            kept = np.isfinite(mean[i])
            assert row == mean[i][kept].tolist()
            assert found["band"]["low"][i] == pytest.approx((mean - error)[i][kept])


def test_the_diffusion_at_the_bottom_has_its_error_in_the_headline() -> None:
    found = report(of(walks(n=400)), n_bootstrap=20)
    error = found.diffusion.standard_error
    assert (
        f"K = {found.diffusion.coefficient:.3g} ± {error:.2g}",
        "diffusion at the bottom, per step",
    ) in found.headline


# ---------------------------------------------------------------------- runs cut short


def test_runs_cut_short_are_found_only_beside_two_complete_ones() -> None:
    runs = [of(frames) for frames in walks(5)]
    assert without_cut_short(runs) == ([0, 1, 2, 3, 4], None)
    cut = [run.before(60) if i in (1, 3) else run for i, run in enumerate(runs)]
    kept, sentence = without_cut_short(cut)
    assert kept == [0, 2, 4]
    assert sentence == (
        "records[1] ends at step 53, records[3] ends at step 53, and the other 3 runs at step 200: left out, as runs "
        "cut short"
    )
    assert without_cut_short(cut[:2]) == ([0, 1], None)
    with pytest.raises(ValueError, match=r"common=True"):
        AgingRecord.concat(cut[:2])
    # A run that lacks a pair in the middle is not cut short.
    hole = AgingRecord.from_trajectory(walks(1)[0], LogTimeSchedule([0, 3], [1, 50]), overlap_thresholds=[1.0, 3.0])
    assert without_cut_short([*runs, hole]) == (list(range(6)), None)


def test_copies_are_compared_again_when_the_record_grows() -> None:
    whole = of(copied(0.0, 2))
    record = AgingRecord(whole.n_parameters, overlap_thresholds=whole.overlap_thresholds, n_replica=2)
    for i, (waiting_time, lag, row) in enumerate(zip(*whole.pairs, whole.moments, strict=True)):
        record.append(waiting_time, lag, row * (1 + np.arange(2)[:, None, None] * (i == 20)))
        assert record.copies == ([(1, 0)] if i < 20 else [])


@pytest.mark.parametrize("through_logger", [False, True])
def test_a_table_of_replicas_has_the_error_of_each_value(tmp_path: Path, through_logger: bool) -> None:
    record = of(walks(n_replica=5))
    if through_logger:
        pairs = list(zip(*(part.tolist() for part in record.pairs), strict=True))
        CSVSink(SimpleNamespace(log_dir=str(tmp_path)), "glassy").update(record, pairs, 0)
        path = tmp_path / "glassy.csv"
    else:
        path = record.to_csv(tmp_path / "table.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    waiting_times, lags = record.waiting_times.tolist(), record.lags.tolist()
    assert len(rows) == 5 * len(record)
    for row in rows[:: len(rows) // 7]:
        at = waiting_times.index(int(row["waiting_time"])), lags.index(int(row["lag"]))
        assert float(row["msd_sem"]) == pytest.approx(record.sem("msd")[at], rel=1e-12)
        assert float(row["correlation_raw_sem"]) == pytest.approx(record.sem("correlation_raw")[at], rel=1e-12)
    single = AgingRecord.from_trajectory(np.cumsum(np.ones((11, 4)), axis=0)).to_csv(tmp_path / "single.csv")
    assert "_sem" not in single.read_text()

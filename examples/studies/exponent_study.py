r"""Bias, spread and coverage of the aging-exponent estimators on a system whose exponent is known exactly.

The system is the exact subaging clock with :math:`\mu = 0.6`, :math:`\kappa = 0.3` and N = 2,000 coordinates, drawn
exactly at the steps of a log-spaced schedule. There are many independent trials, each with R replicas.
``python -m examples.studies.exponent_study`` takes some minutes and writes ``results/exponent_study.md``. ``--quick``
does few trials and writes nothing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from lightning_glassy import AgingRecord, LogTimeSchedule
from lightning_glassy.analysis import AgingExponent, aging_exponent
from lightning_glassy.glasses import SubagingClock
from lightning_glassy.record import MOMENTS

GLASS = SubagingClock(mu=0.6, kappa=0.3)
N = 2000
SCHEDULE = LogTimeSchedule.logspaced(
    100_000, first_waiting_time=10, waiting_times_per_decade=4, lags_per_decade=6, zero=False
)
RESULTS = Path(__file__).parent / "results"


def draw(n_replica: int, seed: int) -> AgingRecord:
    """Return replicas of the clock, exact at every step of the schedule. Nothing is simulated in between."""
    rng, clock = np.random.default_rng(seed), {}
    steps = sorted({event.step for event in SCHEDULE.events})
    w, now = rng.normal(size=(n_replica, N)), steps[0]
    for step in steps:
        a = float(GLASS.covariance(now, step))
        w, now = a * w + np.sqrt(1 - a * a) * rng.normal(size=w.shape), step
        clock[step] = w
    record = AgingRecord({"all": N}, n_replica=n_replica)
    for waiting_time, lag in SCHEDULE.pairs:
        new, old = clock[waiting_time + lag], clock[waiting_time]
        moments = np.full((n_replica, 1, len(MOMENTS)), np.nan)
        moments[:, 0, MOMENTS.index("d2")] = ((new - old) ** 2).sum(axis=1)
        record.append(waiting_time, lag, moments)
    return record


def threshold_slopes(fit: AgingExponent) -> tuple[float, float]:
    """Return the mean slope over the thresholds, and the mean slope mu_eff of the exact curves.

    The estimate itself is a median. The mean has no bias from noise, and the median has one.
    """
    measured, exact = [], []
    for threshold in fit.thresholds:
        found = np.isfinite(threshold.crossings.lags)
        times = fit.waiting_times[found].astype(float)
        level = 1 - threshold.crossings.threshold / 2
        if level > 0:
            measured.append(threshold.mu)
            exact.append(np.polyfit(np.log(times), np.log(GLASS.lag_to_correlation(level, times)), 1)[0])
    # A trial without any threshold makes the whole row NaN.
    return (float(np.mean(measured)), float(np.mean(exact))) if measured else (np.nan, np.nan)


def main() -> None:
    """Run the trials, and print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="6 trials instead of 200, and no result file")
    trials = 6 if parser.parse_args().quick else 200
    lines = [
        "# Estimators of the aging exponent on an exact clock",
        "",
        f"{trials} trials each; {GLASS}, N = {N:,}; {SCHEDULE}. Waiting times of the fit: the last two decades.",
        "Made by `python -m examples.studies.exponent_study`.",
        "",
        "| replicas | method | exact | mean of trials | its standard error | z | spread of a trial |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    coverage = ["| replicas | level | covered | mean stated error | spread of mu | seconds a fit |", "| --- " * 6 + "|"]
    for n_replica in (8, 16):
        fits, slopes, seconds = [], [], []
        for trial in range(trials):
            record, start = draw(n_replica, 1000 * n_replica + trial), time.perf_counter()
            fits.append(aging_exponent(record, n_bootstrap=200))
            seconds.append(time.perf_counter() - start)
            slopes.append(threshold_slopes(fits[-1]))
            print(f"R = {n_replica}: {trial + 1}/{trials}", end="\r", flush=True)
        rows = [(name, GLASS.mu, np.array([fit.estimates[name] for fit in fits])) for name in fits[0].qualities]
        measured, exact = np.array(slopes).T
        rows.append(("threshold (exact: mu_eff)", exact.mean(), measured + exact.mean() - exact))
        for method, truth, values in rows:
            error = values.std(ddof=1) / np.sqrt(trials)
            lines.append(
                f"| {n_replica} | {method} | {truth:.4f} | {values.mean():.4f} | {error:.4f} "
                f"| {(values.mean() - truth) / error:+.1f} | {values.std(ddof=1):.4f} |"
            )
        mu = np.array([fit.mu for fit in fits])
        stated = np.array([fit.standard_error for fit in fits], dtype=float)
        for level in (0.68, 0.95):
            inside = np.abs(mu - GLASS.mu) < student.ppf(0.5 + level / 2, n_replica - 1) * stated
            coverage.append(
                f"| {n_replica} | {level:.0%} | {inside.mean():.0%} | {stated.mean():.4f} | {mu.std(ddof=1):.4f} "
                f"| {np.median(seconds):.1f} |"
            )
    text = "\n".join([*lines, "", "Coverage of the interval of `mu`, from 200 bootstrap draws:", "", *coverage, ""])
    print(text)
    if trials == 200:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "exponent_study.md").write_text(text)


if __name__ == "__main__":
    main()

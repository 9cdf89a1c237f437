r"""Bias, spread and coverage of the aging-exponent estimators on a system whose exponent is known exactly.

The system is the exact subaging clock with :math:`\mu = 0.6`, :math:`\kappa = 0.3` and N = 2,000 coordinates, drawn
exactly at the steps of a log-spaced schedule. There are many independent trials, each with R replicas.
``python -m examples.studies.exponent_study`` takes some minutes and writes ``results/exponent_study.md``. ``--quick``
does few trials and writes nothing.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from scipy.stats import t as student

from examples.studies.common import RESULTS, table
from lightning_glassy import AgingRecord, LogTimeSchedule
from lightning_glassy.analysis import AgingExponent, aging_exponent
from lightning_glassy.glasses import SubagingClock
from lightning_glassy.record import MOMENTS

GLASS = SubagingClock(mu=0.6, kappa=0.3)
N = 2000
SCHEDULE = LogTimeSchedule.logspaced(
    100_000, first_waiting_time=10, waiting_times_per_decade=4, lags_per_decade=6, zero=False
)
ESTIMATES = (
    "replicas = {} | method = {} | exact = {:.4f} | mean of trials = {:.4f} | its standard error = {:.4f} | "
    "z = {:+.1f} | spread of a trial = {:.4f}"
)
COVERAGE = (
    "replicas = {} | level = {:.0%} | covered = {:.0%} | mean stated error = {:.4f} | spread of mu = {:.4f} | "
    "seconds a fit = {:.1f}"
)


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
    estimates, coverage = [], []
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
            mean, spread = values.mean(), values.std(ddof=1)
            error = spread / np.sqrt(trials)
            estimates.append((n_replica, method, truth, mean, error, (mean - truth) / error, spread))
        mu = np.array([fit.estimate for fit in fits])
        stated = np.array([fit.standard_error for fit in fits], dtype=float)
        for level in (0.68, 0.95):
            inside = np.abs(mu - GLASS.mu) < student.ppf(0.5 + level / 2, n_replica - 1) * stated
            spread = mu.std(ddof=1)
            coverage.append((n_replica, level, inside.mean(), stated.mean(), spread, np.median(seconds)))
    parts = [
        "# Estimators of the aging exponent on an exact clock",
        f"{trials} trials each; {GLASS}, N = {N:,}; {SCHEDULE}. Waiting times of the fit: the last two decades.\n"
        "Made by `python -m examples.studies.exponent_study`.",
        table(ESTIMATES, estimates),
        "Coverage of the interval of `mu`, from 200 bootstrap draws:",
        table(COVERAGE, coverage),
    ]
    text = "\n\n".join(parts) + "\n"
    print(text)
    if trials == 200:
        (RESULTS / "exponent_study.md").write_text(text)


if __name__ == "__main__":
    main()

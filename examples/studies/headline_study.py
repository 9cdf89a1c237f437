r"""Count how often an aging exponent is stated, for systems with and without a power law.

The systems are processes of 200 or 2,000 independent coordinates, drawn exactly at the steps of a log-spaced schedule.
Every trial has its own parameters. The systems with a power law should get a headline exponent. The other systems
should get none. They have two processes, saturate, stop aging, or change their clock in the middle of the run.

``python -m examples.studies.headline_study`` takes a quarter of an hour on two cores, and writes
``results/headline_study.md``. ``--quick`` does one trial of each and writes nothing.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from examples.studies.common import RESULTS, table
from lightning_glassy import AgingRecord, LogTimeSchedule
from lightning_glassy.analysis import AgingExponent, NotEnoughDataError, aging_exponent

SIZES = (200, 2000)
TRIALS = {16: 100, 1: 20}  # of each system, by the number of replicas
FEW = 20  # of the systems in MORE
SCHEDULE = LogTimeSchedule.logspaced(
    100_000, first_waiting_time=10, waiting_times_per_decade=4, lags_per_decade=6, zero=False
)
STEPS = np.array(sorted({event.step for event in SCHEDULE.events}), dtype=float)
THRESHOLDS = (0.01, 0.1)
FALSE = "system = {} | replicas = {} | headline = {} of {} | otherwise = {}"
TRUE = FALSE.replace("otherwise", "error of mu = {} | within the interval = {} | otherwise")
REASONS = {
    "do not collapse": "no collapse",
    "two steps": "two steps",
    "drifts": "drift",
    "only the gradient noise": "only the noise",
    "coincide": "no aging",
    "relax faster": "negative",
    "contradict each other": "thresholds contradict",
    "methods disagree": "methods disagree",
    "observables disagree": "observables disagree",
    "above 1": "above 1",
    "end of the range": "at a bound",
    "too short": "too short",
    "": "no fit",
}

Floats = NDArray[np.float64]
Weights = Iterator[Floats]  # one array [n_replica, N] per step


class Trial(NamedTuple):
    """One trial: the weights along the run, the exact exponent (None without a power law), and the gradient noise."""

    weights: Weights
    mu: float | None
    noise: Floats | None = None


# ------------------------------------------------------------------ processes on a clock h(n)


def relaxing(rng: np.random.Generator, shape: tuple[int, int], clock: Floats) -> Weights:
    """Draw a stationary Ornstein-Uhlenbeck process of variance 1 at the times of a clock."""
    w = rng.normal(size=shape)
    for elapsed in np.diff(clock, prepend=clock[0]):
        a = np.exp(-elapsed)
        w = a * w + np.sqrt(-np.expm1(-2 * elapsed)) * rng.normal(size=shape)
        yield w


def diffusing(rng: np.random.Generator, shape: tuple[int, int], clock: Floats) -> Weights:
    """Draw a random walk at the times of a clock, from weights of variance 1."""
    w = rng.normal(size=shape)
    for elapsed in np.diff(clock, prepend=clock[0]):
        w = w + np.sqrt(elapsed) * rng.normal(size=shape)
        yield w


def heterogeneous(rng: np.random.Generator, shape: tuple[int, int], clock: Floats) -> Weights:
    """Draw a stretched process. Its coordinates relax at rates that differ by factors."""
    rates, w = np.exp(1.5 * rng.normal(size=shape[1])), rng.normal(size=shape)
    for elapsed in np.diff(clock, prepend=clock[0]):
        a = np.exp(-elapsed * rates)
        w = a * w + np.sqrt(-np.expm1(-2 * elapsed * rates)) * rng.normal(size=shape)
        yield w


def integral(rate: Callable[[Floats], Floats]) -> Floats:
    """Return the clock with a given rate at every step, from 0 at step 1."""
    fine = np.unique(np.concatenate([np.geomspace(1, STEPS[-1], 20_000), STEPS]))
    rates = rate(fine)
    total = np.concatenate([[0.0], np.cumsum(np.diff(fine) * (rates[1:] + rates[:-1]) / 2)])
    return np.asarray(total[np.searchsorted(fine, STEPS)])


def relaxed_in(clock: Floats, amount: float) -> Floats:
    """Scale a clock so that it advances by an amount over the second half of the run."""
    return np.asarray(clock * amount / (clock[-1] - np.interp(STEPS[-1] / 2, STEPS, clock)))


# ------------------------------------------------------------------ systems with a power law


def subaging(rng: np.random.Generator, shape: tuple[int, int], process: Callable[..., Weights]) -> Trial:
    """A clock that slows down as a power of the time."""
    mu = rng.uniform(0.3, 0.95)
    clock = relaxed_in(integral(lambda n: n**-mu), rng.uniform(0.5, 2))
    return Trial(process(rng, shape, clock), mu)


def full_aging(rng: np.random.Generator, shape: tuple[int, int]) -> Trial:
    """A clock that advances with the logarithm of the time."""
    return Trial(relaxing(rng, shape, rng.uniform(0.3, 1) * np.log(STEPS)), 1.0)


def fading_motion(rng: np.random.Generator, shape: tuple[int, int]) -> Trial:
    """Scaled Brownian motion. The displacement is a small part of the weights."""
    mu = rng.uniform(0.3, 0.9)
    clock = relaxed_in(STEPS ** (1 - mu), rng.uniform(0.003, 0.03))
    return Trial(diffusing(rng, shape, clock), mu)


def logarithmic_walk(rng: np.random.Generator, shape: tuple[int, int]) -> Trial:
    """A random walk in the logarithm of the time. The displacement is a small part of the weights."""
    return Trial(diffusing(rng, shape, rng.uniform(0.001, 0.01) * np.log(STEPS)), 1.0)


# ------------------------------------------------------------------ systems without a power law


def flat_directions(rng: np.random.Generator, shape: tuple[int, int]) -> Trial:
    """Gradient descent without noise in flatter and flatter directions. The motion itself fades."""
    a = rng.uniform(0.5, 1.5)
    rates, w = np.log(rng.beta(1.0, a, size=shape)), rng.normal(size=shape)
    return Trial((w * np.exp(rates * step) for step in STEPS), None)


def two_steps(rng: np.random.Generator, shape: tuple[int, int]) -> Trial:
    """A fast process that does not age, and a slow process that does."""
    fast = STEPS / rng.uniform(10, 300)
    slow = relaxed_in(integral(lambda n: n ** -rng.uniform(0.5, 1)), rng.uniform(0.5, 2))
    part = rng.uniform(0.05, 0.5)
    pairs = zip(relaxing(rng, shape, fast), relaxing(rng, shape, slow), strict=True)
    return Trial((np.sqrt(part) * quick + np.sqrt(1 - part) * slowly for quick, slowly in pairs), None)


def saturation(rng: np.random.Generator, shape: tuple[int, int]) -> Trial:
    """Aging whose relaxation time grows, and then saturates at the time scale of equilibrium."""
    mu, scale = rng.uniform(0.5, 1), 10 ** rng.uniform(3.3, 4.3)
    clock = relaxed_in(integral(lambda n: n**-mu + scale**-mu), rng.uniform(0.5, 2))
    return Trial(relaxing(rng, shape, clock), None)


def stopping_clock(rng: np.random.Generator, shape: tuple[int, int]) -> Trial:
    """A subaging clock that stops slowing down in the middle of the waiting times."""
    mu, stop = rng.uniform(0.5, 1), 10 ** rng.uniform(3.3, 4.3)
    clock = relaxed_in(integral(lambda n: np.minimum(n, stop) ** -mu), rng.uniform(0.5, 2))
    return Trial(relaxing(rng, shape, clock), None)


def starting_clock(rng: np.random.Generator, shape: tuple[int, int]) -> Trial:
    """A clock that begins to slow down in the middle of the waiting times."""
    mu, start = rng.uniform(0.6, 1), 10 ** rng.uniform(3.3, 4.0)
    clock = relaxed_in(integral(lambda n: np.maximum(n, start) ** -mu), rng.uniform(0.5, 2))
    return Trial(relaxing(rng, shape, clock), None)


def learning_rate_step(rng: np.random.Generator, shape: tuple[int, int]) -> Trial:
    """A walk, or an aging process, whose learning rate falls by a factor in the middle of the waiting times."""
    at, factor, mu = 10 ** rng.uniform(3.3, 4.3), rng.uniform(3, 10), rng.choice([0.0, 0.5])
    clock = relaxed_in(integral(lambda n: n**-mu * np.where(n < at, 1, 1 / factor)), rng.uniform(0.1, 1))
    return Trial((diffusing if mu == 0 else relaxing)(rng, shape, clock), None)


def fading_noise(rng: np.random.Generator, shape: tuple[int, int]) -> Trial:
    """A walk whose gradient noise fades exponentially to a floor. Half of the trials have measured the noise."""
    scale, floor = 10 ** rng.uniform(3.3, 4.3), rng.uniform(0.01, 0.1)

    def noise(n: Floats) -> Floats:
        return np.exp(-n / scale) + floor

    clock = relaxed_in(integral(noise), rng.uniform(0.003, 0.1))
    return Trial(diffusing(rng, shape, clock), None, noise(STEPS) if rng.random() < 0.5 else None)


def logarithmic_growth(rng: np.random.Generator, shape: tuple[int, int]) -> Trial:
    """A relaxation time that grows with the logarithm of the waiting time, from a tenth of the window on."""
    first = 10 ** rng.uniform(2, 2.7)
    clock = relaxed_in(integral(lambda n: 1 / np.log(np.maximum(n / first, np.e))), rng.uniform(0.5, 2))
    return Trial(relaxing(rng, shape, clock), None)


WITH: dict[str, Callable[..., Trial]] = {
    "subaging clock": partial(subaging, process=relaxing),
    "subaging clock, stretched": partial(subaging, process=heterogeneous),
    "full aging": full_aging,
    "scaled Brownian motion": fading_motion,
    "walk in the logarithm of the time": logarithmic_walk,
}
WITHOUT: dict[str, Callable[..., Trial]] = {
    "two steps": two_steps,
    "saturation": saturation,
    "a clock that stops": stopping_clock,
    "a learning-rate step": learning_rate_step,
    "noise that fades": fading_noise,
}
MORE: dict[str, Callable[..., Trial]] = {
    "a clock that starts": starting_clock,
    "logarithmic growth": logarithmic_growth,
    "descent in flat directions": flat_directions,
}


def measure(trial: Trial, n_replica: int) -> AgingRecord:
    """Return the record of a trial. A single replica gives a single run."""
    weights = dict(zip(STEPS.astype(int).tolist(), trial.weights, strict=True))
    squares = {step: np.einsum("rn,rn->r", w, w) for step, w in weights.items()}
    several = n_replica > 1
    record = AgingRecord(
        {"all": weights[int(STEPS[0])].shape[1]},
        overlap_thresholds=THRESHOLDS,
        n_replica=n_replica if several else None,
        sums=("d2", "w2", "s2"),
    )
    for waiting_time, lag in SCHEDULE.pairs:
        d = weights[waiting_time + lag] - weights[waiting_time]
        near = [(np.abs(d) <= eps).sum(axis=1) for eps in THRESHOLDS]
        sums = [np.einsum("rn,rn->r", d, d), squares[waiting_time + lag], squares[waiting_time], *near]
        moments = np.stack(sums, axis=-1)[:, None, :].astype(float)
        record.append(waiting_time, lag, moments if several else moments[0])
    if trial.noise is not None:
        for step, noise in zip(STEPS, trial.noise, strict=True):
            record.append_one_time("gradient_noise", int(step), float(noise))
    return record


def answers(name: str, n_replica: int, trials: int) -> list[tuple[float | None, AgingExponent | None]]:
    """Return the exact exponent and the fit of each trial. A trial with the same number is the same in every run."""
    found: list[tuple[float | None, AgingExponent | None]] = []
    for trial in range(trials):
        rng = np.random.default_rng([trial, n_replica, *name.encode()])
        drawn = (WITH | WITHOUT | MORE)[name](rng, (n_replica, int(rng.choice(SIZES))))
        try:
            found.append((drawn.mu, aging_exponent(measure(drawn, n_replica), n_bootstrap=100)))
        except NotEnoughDataError:
            found.append((drawn.mu, None))
    return found


def reasons(fits: Sequence[AgingExponent | None]) -> str:
    """Return how often each rule has refused a headline."""
    told = [(fit.why_not if fit is not None else "") for fit in fits if fit is None or fit.mu is None]
    found = Counter(next(short for words, short in REASONS.items() if words in (why or "")) for why in told)
    return ", ".join(f"{short} {n}" for short, n in found.most_common())


def rows_of(found: dict[str, list[tuple[float | None, AgingExponent | None]]], n_replica: int) -> list[tuple[Any, ...]]:
    """Return a row for each system, and one for all."""
    rows: list[tuple[Any, ...]] = []
    for name, of in {**found, "all": [answer for each in found.values() for answer in each]}.items():
        stated = [(mu, fit) for mu, fit in of if fit is not None and fit.mu is not None]
        row: tuple[Any, ...] = (name, n_replica, len(stated), len(of))
        if set(found) <= set(WITH):
            errors = [fit.estimate - mu for mu, fit in stated if mu is not None]
            inside = [fit.interval[0] <= mu <= fit.interval[1] for mu, fit in stated if mu is not None and fit.interval]
            error = f"{np.sqrt(np.mean(np.square(errors))):.4f}" if errors else "-"
            row += (error, f"{np.mean(inside):.0%}" if inside else "no interval")
        rows.append((*row, reasons([fit for _, fit in of]) or "-"))
    return rows


def main() -> None:
    """Run the trials, and print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="1 trial of each system, and no result file")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    options = parser.parse_args()
    tables = []
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        for systems in (WITH, WITHOUT, MORE):
            work = {
                (r, name): pool.submit(answers, name, r, 1 if options.quick else min(n, FEW) if systems is MORE else n)
                for r, n in TRIALS.items()
                for name in systems
            }
            tables.append(
                [row for r in TRIALS for row in rows_of({name: work[r, name].result() for name in systems}, r)]
            )
    parts = [
        "# How often an exponent is stated",
        f"Trials of each system, half of them with {SIZES[0]} coordinates and half with {SIZES[1]:,}; "
        f"{SCHEDULE}.\n"
        "Made by `python -m examples.studies.headline_study`.",
        "Systems with a power law. The error of mu is the root mean square of stated minus exact.",
        table(TRUE, tables[0]),
        "Systems without a power law, which should get no headline.",
        table(FALSE, tables[1]),
        "Some more of them:",
        table(FALSE, tables[2]),
    ]
    text = "\n\n".join(parts) + "\n"
    print(text)
    if not options.quick:
        (RESULTS / "headline_study.md").write_text(text)


if __name__ == "__main__":
    main()

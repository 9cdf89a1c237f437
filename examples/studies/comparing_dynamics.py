r"""The same callback on networks and on a glass: the question of Baity-Jesi et al. 2018 (arXiv 1803.06969).

The first paper's kinds of networks, on MNIST and on scikit-learn's digits: "Toy" (one hidden layer of m units, sigmoid
outputs, squared error) with m = 10 and m = 10,000, a fully connected net, and "Small Net" (two convolutions). Each is
trained alone, by plain SGD at a constant learning rate. The callbacks of this package measure displacements, the loss
in logarithmic time, the strength D of the gradient noise, flat directions and barriers. The spherical p = 3 model after
a quench is trained beside them, with the same callback, and solved by its exact equations. Then each statement of the
paper is compared with the measurements, by a rule that is written beside it.

``python -m examples.studies.comparing_dynamics`` takes about half an hour on two cores and writes the results that are
committed. ``--quick`` takes a minute, and writes beside its records.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import Callback
from numpy.polynomial import Polynomial
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from examples.studies.common import (
    Progress,
    as_json,
    at_steps,
    conclude,
    cross_entropy,
    digits,
    load_record,
    loader,
    mnist,
    options_of,
    place_for,
    quiet,
    record_of,
    several,
    table,
    train_on_cpu,
)
from examples.studies.statements import (
    BARRIER,
    OF_GLASS,
    OF_NETWORKS,
    Finding,
    Network,
    barriers,
    decide_glass,
    decide_network,
)
from lightning_glassy import (
    AgingMonitor,
    AgingRecord,
    BarrierMonitor,
    CurvatureMonitor,
    GradientNoiseMonitor,
    LogTimeEvaluator,
    LogTimeSchedule,
)
from lightning_glassy.analysis import (
    NotEnoughDataError,
    aging_exponent,
    relaxation_curves,
    verdict,
)
from lightning_glassy.glasses import SphericalPSpin
from lightning_glassy.glasses.modules import SphericalPSpinModule
from lightning_glassy.observables import Array
from lightning_glassy.plotting import plot_curves, plot_gradient_noise, plot_loss, plot_two_time

# ------------------------------------------------------------------ the networks


@dataclass(frozen=True)
class System:
    """A network of the paper, its data and its training.

    Attributes:
        data: ``"MNIST"`` or ``"digits"``.
        kind: one of :data:`KINDS`.
        batch_size: number of samples in a minibatch.
        learning_rate: constant learning rate of plain SGD.
        steps: number of updates.
        evaluated: number of samples of the training set that give the loss, None for all.
        curved: number of samples that give the Hessian, None if it is not measured.
        products: number of products with the Hessian for each of its spectra.
        minutes: rough duration. The longest training is started first.
    """

    data: str
    kind: str
    batch_size: int
    learning_rate: float
    steps: int
    evaluated: int | None = None
    curved: int | None = None
    products: int = 760
    minutes: float = 1.0

    @property
    def name(self) -> str:
        """Name of the directory."""
        return f"{self.data.lower()}-{self.kind.lower().replace(', m = ', '-').replace(' ', '-').replace(',', '')}"


FEW, MANY, FULLY, SMALL = KINDS = ("Toy, m = 10", "Toy, m = 10,000", "fully connected", "Small Net")

SYSTEMS = (
    System("MNIST", FEW, 50, 0.5, 100_000, curved=1000, minutes=2),
    System("MNIST", MANY, 50, 0.1, 15_000, evaluated=10_000, minutes=15),
    System("MNIST", FULLY, 50, 0.1, 100_000, curved=1000, minutes=4),
    System("MNIST", SMALL, 50, 0.1, 30_000, curved=300, minutes=8),
    System("digits", FEW, 32, 0.2, 100_000, curved=1500, minutes=1.5),
    System("digits", MANY, 32, 0.05, 20_000, minutes=3),
    System("digits", FULLY, 32, 0.05, 100_000, curved=1500, minutes=2),
    System("digits", SMALL, 32, 0.05, 50_000, curved=1500, minutes=2),
)
QUICK_SYSTEMS = (
    replace(SYSTEMS[0], steps=500, evaluated=2000, curved=None),
    *(replace(s, steps=300 if s.kind == MANY else 3000, curved=s.curved and 100, products=120) for s in SYSTEMS[4:]),
)


def network(system: System) -> nn.Sequential:
    """Return a network for images that come as rows of pixels, with torch's own initial weights.

    Small Net on MNIST has 31,770 parameters as in the paper. The digits have 8 x 8 pixels. There its convolutions are
    3 x 3 with a margin of one pixel, so that 20 maps of 2 x 2 are left.
    """
    side = 28 if system.data == "MNIST" else 8
    pixels = side**2
    if system.kind in (FEW, MANY):
        hidden = 10 if system.kind == FEW else 10_000
        return nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, 10), nn.Sigmoid())
    if system.kind == FULLY:
        layers = [nn.Linear(pixels, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)]
        return nn.Sequential(*layers)
    window, margin, left = (5, 0, 20 * 4 * 4) if system.data == "MNIST" else (3, 1, 20 * 2 * 2)
    return nn.Sequential(
        *(nn.Unflatten(1, (1, side, side)), nn.Conv2d(1, 10, window, padding=margin), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(10, 20, window, padding=margin), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(left, 80), nn.ReLU(), nn.Linear(80, 10)),
    )


class Classifier(LightningModule):
    """A network with the loss of the paper: squared error for Toy, the negative log likelihood for the others."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.net, self.learning_rate = network(system), system.learning_rate
        self.squared = system.kind in (FEW, MANY)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the ten classes."""
        scores: Tensor = self.net(x)
        return scores

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the mean loss of the samples. The squared error is summed over the ten outputs."""
        x, y = batch
        if self.squared:
            squares: Tensor = (self(x) - nn.functional.one_hot(y, 10)).square()
            return squares.sum(1).mean()
        return cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


def train(system: System, data_dir: Path, out: Path) -> float:
    """Train one network, save its record in ``out/<name>``, and return the seconds it took."""
    quiet()
    start = time.perf_counter()
    train_set, test_set = (mnist(data_dir), mnist(data_dir, train=False)) if system.data == "MNIST" else digits()
    seed_everything(0, verbose=False)
    sets = {"train": part(train_set, system.evaluated), "test": part(test_set, system.evaluated)}
    # The last step is on none of the grids, and is added to them.
    times = LogTimeSchedule.logspaced(system.steps, waiting_times_per_decade=6).waiting_times
    along, spectra = at_steps(*times, system.steps), at_steps(0, *(system.steps // k for k in (1000, 100, 10, 1)))
    callbacks: list[Callback] = [
        # BarrierMonitor needs all weights, not a sample.
        AgingMonitor(
            LogTimeSchedule.logspaced(waiting_times_per_decade=6),
            sample=None,
            dirpath=place_for(system.name, out),
            summary=False,
        ),
        LogTimeEvaluator(along, loaders={name: batches(data, 1000) for name, data in sets.items()}, summary=False),
        GradientNoiseMonitor(
            along,
            loader=batches(train_set, system.batch_size),
            max_batches=30 if system.kind == MANY else 100,
            summary=False,
        ),
        BarrierMonitor(loader=batches(train_set, 250), max_batches=4, summary=False),
        Progress(f"{system.data}, {system.kind}"),
    ]
    if system.curved is not None:
        fixed, products = batches(part(train_set, system.curved), system.curved), system.products
        nodes = min(100, products - 90)  # the other products are for the extreme eigenvalues
        callbacks.append(
            CurvatureMonitor(
                spectra,
                loader=fixed,
                max_batches=1,
                max_products=products,
                n_nodes=nodes,
                n_eigenvalues=1,
                summary=False,
            )
        )
    minibatches = loader(train_set, system.steps, system.batch_size, seeds=0)
    train_on_cpu(Classifier(system), system.steps, callbacks, minibatches)
    return time.perf_counter() - start


def batches(dataset: TensorDataset, batch_size: int) -> DataLoader[Any]:
    """Return batches for a measurement, in random order. Each batch is read at once."""
    return DataLoader(dataset, sampler=BatchSampler(RandomSampler(dataset), batch_size, False), batch_size=None)


def part(dataset: TensorDataset, most: int | None) -> TensorDataset:
    """Return the first samples."""
    return TensorDataset(*(tensor[:most] for tensor in dataset.tensors))


# ------------------------------------------------------------------ the glass


@dataclass(frozen=True)
class Glass:
    """The spherical p = 3 model after a quench: one temperature, several sizes.

    The error of a finite size is a series in 1/N. The error of the projected step is a series in the length of the
    step, which is proportional to 1/N here. Both errors then vanish together as N grows, and three sizes take out the
    first two orders.

    Attributes:
        temperature: temperature T after the quench.
        t_max: last time, in units of the model.
        waiting_times: waiting times, in units of the model.
        sizes: sizes N, each twice the size before.
        seeds: number of sets of couplings at each size.
        n_replica: number of replicas that share one set of couplings.
        steps: number of steps of the exact equations.
    """

    temperature: float
    t_max: float
    waiting_times: tuple[float, ...]
    sizes: tuple[int, ...] = (40, 80, 160)
    seeds: tuple[int, ...] = (64, 128, 64)
    n_replica: int = 8
    steps: int = 2560

    @property
    def name(self) -> str:
        """Beginning of the names of the directories."""
        return f"glass-T{self.temperature:g}"

    @property
    def model(self) -> SphericalPSpin:
        """The model with its exact equations."""
        return SphericalPSpin(3, self.temperature)

    @property
    def lags(self) -> tuple[float, ...]:
        """Lags at which the glass is measured, multiples of the longest step."""
        grid = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 28, 31)
        return tuple(lag for lag in grid if lag < self.t_max)

    @property
    def times(self) -> tuple[float, ...]:
        """Times at which the energy is measured."""
        return (0.0, *sorted({*self.lags, *self.waiting_times, self.t_max}))

    def step(self, size: int) -> float:
        """Return the length of a step in time: 0.05 at the smallest size."""
        return 0.05 * self.sizes[0] / size


GLASSES = (
    Glass(0.0, 32.0, (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)),
    Glass(0.3, 32.0, (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)),
)
QUICK_GLASSES = tuple(
    replace(
        glass, t_max=8.0, waiting_times=GLASSES[0].waiting_times[:7], seeds=(6, 6, 4), sizes=(20, 40, 80), steps=320
    )
    for glass in GLASSES
)


class Energy(Callback):
    """Adds the energy of a glass, the mean over its replicas, to the record of a monitor as ``energy``."""

    def __init__(self, monitor: AgingMonitor, steps: Iterable[int]) -> None:
        self.monitor, self.steps = monitor, set(steps)

    @torch.no_grad()
    def note(self, module: SphericalPSpinModule, step: int) -> None:
        """Add the energy if it is due at this step."""
        if step in self.steps:
            self.monitor.record.append_one_time("energy", step, float(module.energy().mean()))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Measure after so many updates, before the batch."""
        self.note(pl_module, trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure after the last step."""
        self.note(pl_module, trainer.global_step)


def quench(glass: Glass, size: int, n_seed: int, out: Path) -> float:
    """Train glasses of one size, and return the seconds it took.

    The record of all glasses goes to ``out/<name>-N<size>``. It has one replica for each set of couplings.
    """
    quiet()
    start, step, records = time.perf_counter(), glass.step(size), []
    waiting, lags, times = (
        [round(time / step) for time in group] for group in (glass.waiting_times, glass.lags, glass.times)
    )
    for k in range(n_seed):
        module = SphericalPSpinModule(
            glass.model, size, round(glass.t_max / step), step, n_replica=glass.n_replica, seed=1000 * size + k
        )
        monitor = AgingMonitor(LogTimeSchedule(waiting, lags), sample=None, save=False, summary=False)
        train_on_cpu(module, module.steps, [monitor, Energy(monitor, times)])
        records.append(monitor.record)
        if (k + 1) % max(1, n_seed // 4) == 0:
            spent = time.perf_counter() - start
            print(f"{glass.name}, N = {size}: {k + 1} of {n_seed} sets of couplings, {spent:.0f} s", flush=True)
    together = AgingRecord.concat(records)
    energies = np.array([record.one_time("energy")[1] for record in records])
    for at, error in zip(records[0].one_time("energy")[0], energies.std(axis=0, ddof=1) / n_seed**0.5, strict=True):
        together.append_one_time("energy_error", int(at), float(error))
    path = record_of(f"{glass.name}-N{size}", out)
    path.parent.mkdir(parents=True, exist_ok=True)
    together.save(path)
    return time.perf_counter() - start


def solve(glass: Glass, out: Path) -> float:
    """Solve the exact equations, save the solution as ``out/<name>-exact.npz``, and return the seconds it took."""
    start = time.perf_counter()
    solution = glass.model.solve(glass.t_max, glass.steps)
    rows = solution.index(np.array(glass.waiting_times))
    out.mkdir(parents=True, exist_ok=True)
    np.savez(
        out / f"{glass.name}-exact.npz",
        times=solution.times,
        energy=solution.energy,
        correlation=solution.correlation[rows],
        error=solution.error,
    )
    spent = time.perf_counter() - start
    print(f"{glass.name}: the exact equations, {spent:.0f} s", flush=True)
    return spent


# ------------------------------------------------------------------ what is kept


def analysed_system(system: System, record: AgingRecord, seconds: float) -> dict[str, Any]:
    """Return the results of one network: its series, and the findings on the statements."""
    series = {
        name: dict(zip(("steps", "values"), record.one_time(name), strict=True))
        for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy", "gradient_noise", "flat_fraction")
        if name in record.one_time_names
    }
    curvature = record.meta.get("CurvatureMonitor")
    return {
        "data": system.data,
        "kind": system.kind,
        "n_parameters": record.n_parameters["all"],
        "batch_size": system.batch_size,
        "learning_rate": system.learning_rate,
        "steps": system.steps,
        "evaluated": system.evaluated,
        "curved": system.curved,
        "eps": curvature["eps"] if curvature else None,
        "seconds": round(seconds),
        "series": series,
        "verdict": verdict(record).kind,
        "findings": decide_network(record, few_weights=system.kind == FEW),
    }


# ------------------------------------------------------------------ the glass, held against its equations


@dataclass(frozen=True)
class Exact:
    """The solution of the exact equations at one temperature, as :func:`solve` saves it."""

    glass: Glass
    times: Array
    energy: Array
    correlation: Array
    error: float

    @classmethod
    def load(cls, glass: Glass, out: Path) -> Exact:
        """Load the solution from the directory of a run."""
        with np.load(out / f"{glass.name}-exact.npz") as found:
            return cls(glass, found["times"], found["energy"], found["correlation"], float(found["error"]))

    def _at(self, time: float) -> int:
        return round(time / float(self.times[1]))

    def c(self, waiting_time: float, lag: float) -> float:
        """Return C(t_w, t_w+t)."""
        return float(self.correlation[self.glass.waiting_times.index(waiting_time), self._at(waiting_time + lag)])

    def e(self, time: float) -> float:
        """Return the energy."""
        return float(self.energy[self._at(time)])

    def curve(self, waiting_time: float) -> tuple[Array, Array]:
        """Return lags, and Δ = 2(1 - C)."""
        start = self._at(waiting_time)
        row = self.correlation[self.glass.waiting_times.index(waiting_time), start + 1 :]
        return self.times[start + 1 :] - waiting_time, 2 * (1 - row)


def compared(glass: Glass, records: Mapping[int, AgingRecord], exact: Exact) -> list[dict[str, Any]]:
    r"""Return correlations and energies of the callback beside the exact values, one entry for each number.

    :math:`(x(N) - 6x(2N) + 8x(4N))/3` has no error of first or second order in 1/N. Its difference from
    :math:`2x(4N) - x(2N)` is the second order of that estimate, and an estimate of the higher orders. The errors are
    statistical.
    """
    columns = []
    for size, record in records.items():
        step, lags = glass.step(size), {lag: k for k, lag in enumerate(record.lags)}
        correlation = record.correlation()  # [n_seed, n_tw, n_lag]
        energy = dict(zip(*record.one_time("energy"), strict=True))
        energy_error = dict(zip(*record.one_time("energy_error"), strict=True))
        column: dict[tuple[str, float, float], tuple[float, float]] = {}
        for i, waiting_time in enumerate(glass.waiting_times):
            for lag in glass.lags:
                if lag < 0.2 or waiting_time + lag > glass.t_max:
                    continue
                values = correlation[:, i, lags[round(lag / step)]]
                column["C", waiting_time, lag] = (values.mean(), values.std(ddof=1) / len(values) ** 0.5)
        for at in glass.times[1:]:
            if at >= 0.5:
                column["E", at, 0.0] = (energy[round(at / step)], energy_error[round(at / step)])
        columns.append(column)
    small, middle, large = columns[-3:]
    found = []
    for key in large:
        (a, a_error), (b, b_error), (c, c_error) = small[key], middle[key], large[key]
        limit = (a - 6 * b + 8 * c) / 3
        error = float(np.sqrt(a_error**2 + (6 * b_error) ** 2 + (8 * c_error) ** 2)) / 3
        value = exact.e(key[1]) if key[0] == "E" else exact.c(*key[1:])
        found.append(
            {
                "what": key[0],
                "time": key[1],
                "lag": key[2],
                "largest": c,
                "largest_error": c_error,
                "extrapolated": limit,
                "error": error,
                "second_order": limit - (2 * c - b),
                "exact": value,
                "z": (limit - value) / error,
            }
        )
    return found


def lingers_at(lags: Array, displacement: Array, last: float) -> tuple[float, float]:
    """Return the displacement at which a curve is slowest, at lags up to a last lag, and the local exponent there.

    Each slope is fitted over a factor of two to either side. A parabola goes through the lowest slope and its two
    neighbours, and the curve is slowest at its bottom. Both values are NaN if the lowest slope is the first or the
    last.
    """
    kept = np.isfinite(displacement) & (lags <= 1.001 * last)
    logs, values = np.log(lags[kept]), np.log(displacement[kept])
    inner = np.array([c for c in logs if logs[0] + np.log(1.99) <= c <= logs[-1] - np.log(1.99)])
    near = [abs(logs - centre) <= np.log(2.001) for centre in inner]
    slopes = np.array([np.polyfit(logs[part], values[part], 1)[0] for part in near])
    if len(slopes) < 3 or not 0 < (k := int(np.argmin(slopes))) < len(slopes) - 1:
        return np.nan, np.nan
    three = slice(k - 1, k + 2)
    curved, steep, level = np.polyfit(inner[three] - inner[k], slopes[three], 2)
    bottom = -steep / (2 * curved)
    slowest = float(level + steep * bottom + curved * bottom**2)
    return float(np.exp(np.interp(inner[k] + bottom, logs, values))), slowest


def energy_limits(times: Array, energy: Array) -> tuple[float, float, float]:
    """Return the limit of an energy as a constant and t^(-2/3), then the best free exponent and the limit with it."""

    def fit(exponent: float) -> tuple[float, float]:
        """Return the limit, and the squared error of the fit."""
        line = Polynomial.fit(times**-exponent, energy, 1)
        return float(line(0.0)), float(((line(times**-exponent) - energy) ** 2).sum())

    exponents = np.linspace(0.3, 1.2, 901)
    free = float(min(exponents, key=lambda exponent: fit(float(exponent))[1]))
    return fit(2 / 3)[0], free, fit(free)[0]


def trends(glass: Glass, msd: Array) -> list[dict[str, float]]:
    r"""Return for each lag :math:`\partial\ln\Delta/\partial\ln t_w` over the waiting times from 1 on."""
    times, found = np.array(glass.waiting_times), []
    for lag, column in zip(glass.lags, msd.T, strict=True):
        known = np.isfinite(column) & (times >= 1)
        if known.sum() >= 3:
            slope = np.polyfit(np.log(times[known]), np.log(column[known]), 1)[0]
            found.append({"lag": lag, "trend": float(slope)})
    return found


def analysed_glass(glass: Glass, records: Mapping[int, AgingRecord], exact: Exact, seconds: float) -> dict[str, Any]:
    """Return the results at one temperature: comparison with the equations, aging, plateau, and limit of the energy."""
    size, largest = max(records), records[max(records)]
    judged, mu, interval = verdict(largest), np.nan, None
    try:
        fit = aging_exponent(largest)
        mu, interval, doubts = fit.mu, fit.interval, fit.warnings
    except NotEnoughDataError as error:
        doubts = [str(error)]
    late = exact.times >= glass.t_max / 3
    limit, exponent, free_limit = energy_limits(exact.times[late], exact.energy[late])
    msd = largest.msd().mean(axis=0)
    lingers = []
    for start, row in zip(glass.waiting_times, msd, strict=True):
        theirs = [2 * (1 - exact.c(start, lag)) if start + lag <= glass.t_max else np.nan for lag in glass.lags]
        for whose, curve in (("callback", row), ("exact", np.array(theirs))):
            at, slowest = lingers_at(np.array(glass.lags), curve, last=start)
            lingers.append({"whose": whose, "time": start, "displacement": at, "exponent": slowest})
    return {
        "temperature": glass.temperature,
        "t_max": glass.t_max,
        "sizes": list(records),
        "n_seed": [record.n_replica for record in records.values()],
        "n_replica": glass.n_replica,
        "seconds": round(seconds),
        "solver_error": exact.error,
        "numbers": compared(glass, records, exact),
        "energy_limit": limit,
        "energy_exponent": exponent,
        "energy_free_limit": free_limit,
        "threshold": glass.model.threshold,
        "ground_state": glass.model.ground_state,
        "plateau": 2 * (1 - glass.model.plateau),
        "lingers": lingers,
        "trends": trends(glass, msd),
        "step": glass.step(size),
        "verdict": judged.kind,
        "rates": [
            {"first": r.first, "last": r.last, "rate": r.rate, "low": r.low, "high": r.high} for r in judged.rates
        ],
        "mu": mu,
        "mu_interval": interval,
        "mu_doubts": doubts,
    }


# ------------------------------------------------------------------ the page


def analysed(
    systems: Sequence[System], glasses: Sequence[Glass], seconds: Mapping[str, float], out: Path
) -> dict[str, Any]:
    """Return all results, from the records in a directory."""
    of_systems = [analysed_system(s, load_record(s.name, out, s.steps), seconds[s.name]) for s in systems]
    of_glasses = []
    for glass in glasses:
        spent = sum(time for name, time in seconds.items() if name.startswith(f"{glass.name}-"))
        of_glasses.append(analysed_glass(glass, records_of(glass, out), Exact.load(glass, out), spent))
    # The file has numbers of five digits, and the statements are decided by these.
    of_glasses = json.loads(as_json({"glasses": of_glasses}))["glasses"]
    return {
        "systems": of_systems,
        "glasses": of_glasses,
        "glass_findings": decide_glass(*of_glasses),
        "rules": {
            text: " ".join((decide.__doc__ or "").split())
            for text, decide, *_ in (*OF_NETWORKS.values(), *OF_GLASS.values())
        },
    }


def records_of(glass: Glass, out: Path) -> dict[int, AgingRecord]:
    """Load the records of a glass, by size."""
    return {
        size: load_record(f"{glass.name}-N{size}", out, round(glass.t_max / glass.step(size))) for size in glass.sizes
    }


def tables(result: dict[str, Any]) -> str:
    """Return the results in Markdown, from the JSON alone."""
    where, systems = result["machine"], result["systems"]
    (eps,) = {system["eps"] for system in systems if system["eps"] is not None}
    parts = [
        f"{result['seconds'] / 60:.0f} minutes for everything, {result['jobs']} at a time, each on one core of "
        f"{where['cpu']}, torch {where['torch']}, {where['date']}.",
        "**The networks**, each alone, plain SGD at a constant learning rate (lr), minibatches of B:",
        table(
            [
                "data",
                "network",
                "N",
                "B",
                "lr",
                "steps",
                "train loss",
                "learnt",
                "test accuracy",
                "D, first",
                "D, last",
                "Hessian of",
            ],
            [_network_row(system) for system in systems],
        ),
        f"The Hessian is that of the mean loss of so many samples, and flat are its directions with |λ| < {eps:g}. But "
        "for the second derivatives of the outputs, no more directions than ten for each sample can be anything else: "
        "in brackets, what that leaves to be flat in advance. And where all is learnt the curvature of a cross-entropy "
        "goes to zero with the loss.",
    ]
    for data in dict.fromkeys(system["data"] for system in systems):
        chosen = [system for system in systems if system["data"] == data]
        parts += [
            f"**What the paper says of networks, on {data}:**",
            table(
                ["statement", *(system["kind"] for system in chosen)],
                [
                    [text, *(_cell(system["findings"].get(key)) for system in chosen)]
                    for key, (text, *_) in OF_NETWORKS.items()
                ],
            ),
        ]
    of_glass = result["glass_findings"]
    cold, warm = result["glasses"]
    sizes = ", ".join(
        f"{n} ({seeds} x {cold['n_replica']})" for n, seeds in zip(cold["sizes"], cold["n_seed"], strict=True)
    )
    parts += [
        f"**What it says of the glass**, the spherical p = 3 model after a quench to T = {cold['temperature']:g} and "
        f"to T = {warm['temperature']:g}, with N (sets of couplings x replicas) of {sizes}:",
        table(["statement", ""], [[text, _cell(of_glass[key])] for key, (text, _) in OF_GLASS.items()]),
        "**Not testable here:** ResNet-18, CIFAR-10 and CIFAR-100, which take a GPU.",
        "**The callback and the exact equations.** Extrapolated is (x(N) - 6 x(2N) + 8 x(4N))/3, without errors of "
        "first and second order in 1/N, of which the second is shown; errors are statistical, over sets of couplings, "
        "and z is the difference over them:",
        table(
            ["T", "", "t_w", "lag", f"N = {cold['sizes'][-1]}", "extrapolated", "2nd order", "exact", "z"],
            [_number_row(glass, row) for glass in (cold, warm) for row in glass["numbers"] if _is_shown(row)],
        ),
        "**How it is decided.** A rate above 0.1 in size counts where it is two errors away from 0, one up to 0.1 "
        "where it is within 0.2 with two errors; what is between is not testable.",
        "\n".join(f"* {text}: {rule}" for text, rule in result["rules"].items()),
    ]
    return "\n\n".join(parts)


def _network_row(system: dict[str, Any]) -> list[str]:
    last = {name: series["values"][-1] for name, series in system["series"].items()}
    curved, n = system["curved"], system["n_parameters"]
    return [
        *(system["data"], system["kind"], f"{n:,}", str(system["batch_size"])),
        *(f"{system['learning_rate']:g}", f"{system['steps']:,}", f"{last['train_loss']:.2g}"),
        *(f"{last['train_accuracy']:.2%}", f"{last['test_accuracy']:.2%}"),
        *(f"{system['series']['gradient_noise']['values'][k]:.2g}" for k in (0, -1)),
        "-" if curved is None else f"{curved:,} ({max(0.0, 1 - 10 * curved / n):.0%})",
    ]


def _cell(found: Finding | None) -> str:
    return "" if found is None else f"**{found['verdict']}**: {found['words']}"


def _is_shown(row: dict[str, Any]) -> bool:
    """Whether a number is shown: of many numbers, only those at round times are."""
    if row["what"] == "E":
        return bool(row["time"] in (1, 4, 16, 32))
    return bool((row["time"], row["lag"]) in ((1, 1), (2, 2), (2, 6), (4, 4), (8, 0.2), (8, 8), (16, 1), (16, 16)))


def _number_row(glass: dict[str, Any], row: dict[str, Any]) -> list[str]:
    return [
        *(
            f"{glass['temperature']:g}",
            row["what"],
            f"{row['time']:g}",
            f"{row['lag']:g}" if row["what"] == "C" else "",
        ),
        f"{row['largest']:.4f} ± {row['largest_error']:.4f}",
        f"{row['extrapolated']:.4f} ± {row['error']:.4f}",
        *(f"{row['second_order']:+.4f}", f"{row['exact']:.4f}", f"{row['z']:+.1f}"),
    ]


# ------------------------------------------------------------------ the pictures


def draw(systems: Sequence[System], glasses: Sequence[Glass], out: Path, directory: Path) -> list[Path]:
    """Draw the pictures from the records in a directory, and return their paths."""
    drawn = []
    for data in dict.fromkeys(system.data for system in systems):
        chosen = [system for system in systems if system.data == data]
        drawn.append(directory / f"comparing_dynamics_{data.lower()}.png")
        _draw_networks(chosen, [load_record(s.name, out, s.steps) for s in chosen]).savefig(drawn[-1])
    drawn.append(directory / "comparing_dynamics_landscape.png")
    _draw_landscape(systems, [load_record(s.name, out, s.steps) for s in systems]).savefig(drawn[-1])
    drawn.append(directory / "comparing_dynamics_glass.png")
    _draw_glass(glasses, [(records_of(glass, out), Exact.load(glass, out)) for glass in glasses]).savefig(drawn[-1])
    return drawn


def _grid(rows: int, columns: int, width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), dpi=100, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _draw_networks(systems: Sequence[System], records: Sequence[AgingRecord]) -> Any:
    """Draw one column per network: loss with its regimes, noise, displacement, and displacement over the noise."""
    figure, axes = _grid(4, len(systems), 4.1, 3.1)
    for column, system, record in zip(axes.T, systems, records, strict=True):
        plot_loss(record, Network(record).regimes, ax=column[0])
        column[0].set_title(f"{system.data}, {system.kind}: N = {record.n_parameters['all']:,}", fontsize=10)
        column[0].legend(fontsize=7)
        plot_gradient_noise(record, ax=column[1])
        column[1].legend(fontsize=7)
        plot_two_time(record, ax=column[2], colorbar=False)
        plot_curves(relaxation_curves(record, "normalised_msd"), ax=column[3], colorbar=False)
        column[2].set_xlabel("lag $t$ (steps)")
        times = record.waiting_times[record.waiting_times > 0]
        words = f"dark to light:\n$t_w$ = {times[0]:,} ... {times[-1]:,}"
        column[2].text(0.97, 0.05, words, transform=column[2].transAxes, ha="right", fontsize=8)
    for ax, label in zip(
        axes[:, 0],
        ("loss", "strength of the gradient", r"$\Delta(t_w, t_w+t)$", r"$\Delta(t_w, t_w+t) / D(t_w)$"),
        strict=True,
    ):
        ax.set_ylabel(label)
    for ax in axes[:, 1:].flat:
        ax.set_ylabel("")
    return figure


def _draw_landscape(systems: Sequence[System], records: Sequence[AgingRecord]) -> Any:
    """Draw the directions that are not flat along the run, and the heights of barriers against the lag."""
    figure, ((left, right),) = _grid(1, 2, 6.2, 4.2)
    for k, (system, record) in enumerate(zip(systems, records, strict=True)):
        style = {"color": f"C{KINDS.index(system.kind)}", "label": f"{system.data}, {system.kind}"}
        filled = {} if system.data == "MNIST" else {"markerfacecolor": "white"}
        if "flat_fraction" in record.one_time_names:
            steps, flat = record.one_time("flat_fraction")
            error = record.one_time("flat_fraction_error")[1]
            dashed = "-" if system.data == "MNIST" else "--"
            left.errorbar(np.maximum(steps, 1), 1 - flat, error, fmt=f"o{dashed}", capsize=2, **filled, **style)
        lags, heights = record.profile("loss_path").lags, barriers(record)
        right.plot(lags * 1.04 ** (k - 3.5), 100 * heights, "o", markersize=4, **filled, **style)
    left.set(xscale="log", yscale="log", xlabel="step (0 is at the left edge)")
    left.set_ylabel(r"fraction of directions with $|\lambda| \geq 0.01$")
    right.axhline(100 * BARRIER, color="0.4", linestyle=":", linewidth=1)
    right.set(xscale="log", xlabel="lag $t$ (steps)", ylabel="height of the barrier (% of the loss at the higher end)")
    top = max(float(barriers(record).max()) for record in records)
    right.set_ylim(-0.4, max(8.0, 130 * top))
    for ax in (left, right):
        ax.grid(True, which="major", linewidth=0.4, alpha=0.5)
    left.legend(fontsize=7)
    right.legend(fontsize=7, ncols=2)
    return figure


def _draw_glass(glasses: Sequence[Glass], found: Sequence[tuple[dict[int, AgingRecord], Exact]]) -> Any:
    """Draw energies, the correlation at T = 0, and the displacement at T > 0, from the callback and the equations."""
    from matplotlib import colormaps
    from matplotlib.ticker import NullFormatter

    figure, ((left, middle, right),) = _grid(1, 3, 5.2, 4.4)
    glass, (records, exact) = glasses[0], found[0]
    for k, (size, record) in enumerate(records.items()):
        steps, energy = record.one_time("energy")
        error = record.one_time("energy_error")[1]
        colour = colormaps["Blues"](0.4 + 0.5 * k / max(len(records) - 1, 1))
        shown = steps * glass.step(size) >= 0.3
        left.errorbar(
            steps[shown] * glass.step(size),
            energy[shown],
            error[shown],
            fmt="o",
            ms=3.5,
            color=colour,
            label=f"N = {size}",
        )
    late = exact.times >= 0.3
    left.plot(exact.times[late], exact.energy[late], "k-", linewidth=1, label="exact, N infinite")
    left.axhline(glass.model.threshold, color="tab:red", linestyle="--", linewidth=1, label="threshold")
    left.axhline(glass.model.ground_state, color="0.5", linestyle=":", linewidth=1.2, label="ground state")
    left.set(xscale="log", xlabel="time", ylabel="energy per weight", title=f"quench to T = {glass.temperature:g}")
    left.legend(fontsize=8)
    for ax, glass, (records, exact) in zip((middle, right), glasses, found, strict=True):
        size = max(records)
        lags = records[size].lags * glass.step(size)
        values = records[size].correlation() if ax is middle else records[size].msd()
        mean = values.mean(axis=0)
        for i, start in list(enumerate(glass.waiting_times))[::2]:
            colour = colormaps["viridis"](0.93 * i / (len(glass.waiting_times) - 1))
            grid, curve = exact.curve(start)
            ax.plot(grid, 1 - curve / 2 if ax is middle else curve, color=colour, linewidth=1)
            ax.plot(lags, mean[i], "o", markersize=3.5, color=colour, label=f"$t_w$ = {start:g}")
        ax.set(xscale="log", xlabel="lag $t$", title=f"T = {glass.temperature:g}: N = {size}, and exact (lines)")
    middle.set_ylabel("correlation $C(t_w, t_w+t)$")
    middle.legend(fontsize=8)
    plateau = 2 * (1 - glasses[1].model.plateau)
    right.axhline(plateau, color="tab:red", linestyle="--", linewidth=1, label=r"plateau $2(1-q_{EA})$")
    right.set(yscale="log", ylabel=r"mean squared displacement $\Delta(t_w, t_w+t)$")
    right.legend(fontsize=8)
    for ax in (left, middle, right):
        ax.grid(True, which="major", linewidth=0.4, alpha=0.5)
        ax.xaxis.set_minor_formatter(NullFormatter())  # no labels of minor ticks on short axes
    return figure


# ------------------------------------------------------------------ everything


def tasks_of(
    systems: Sequence[System], glasses: Sequence[Glass], data_dir: Path, out: Path
) -> dict[str, Callable[[], float]]:
    """Return all tasks, the longest first."""
    tasks: list[tuple[float, str, Callable[[], float]]] = [
        (system.minutes, system.name, partial(train, system, data_dir, out)) for system in systems
    ]
    for glass in glasses:
        tasks.append((3.0, f"{glass.name}-exact", partial(solve, glass, out)))
        for size, n_seed in zip(glass.sizes, glass.seeds, strict=True):
            minutes = 1e-7 * size**2 * glass.t_max * n_seed
            tasks.append((minutes, f"{glass.name}-N{size}", partial(quench, glass, size, n_seed, out)))
    return {name: run for _, name, run in sorted(tasks, key=lambda task: -task[0])}


def main() -> None:
    """Train all networks and glasses, several at once, and write the results."""
    quick = "fewer steps, on digits, small glasses, and a bit of MNIST, in a minute"
    options = options_of("comparing_dynamics", __doc__, quick, needs_mnist=True)
    systems, glasses = (QUICK_SYSTEMS, QUICK_GLASSES) if options.quick else (SYSTEMS, GLASSES)
    if not options.analyse and any(system.data == "MNIST" for system in systems):
        mnist(options.data_dir)  # download it before several processes need it
    spent = several(tasks_of(systems, glasses, options.data_dir, options.out), options)
    found = analysed(systems, glasses, spent.pop("runs"), options.out)
    # The pictures need the records, not only the numbers of the JSON.
    conclude(
        "comparing_dynamics",
        {**spent, **found},
        options,
        tables,
        lambda _, where: draw(systems, glasses, options.out, where),
    )


if __name__ == "__main__":
    main()

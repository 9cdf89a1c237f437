r"""The same callback on networks and on a glass: the question of Baity-Jesi et al. 2018 (arXiv 1803.06969).

The networks are of the paper's kinds, on MNIST and on scikit-learn's digits: "Toy" (one hidden layer of m units,
sigmoid outputs, squared error) with m = 10 and m = 10,000, a fully connected net, and "Small Net" (two convolutions).
Each is trained alone, by plain SGD at a constant learning rate. Unlike in the released runs of the paper, there is no
momentum. ``LogTimeSchedule.preset`` has the protocol of these runs, and ``RESULTS.md`` lists all differences. The
callbacks of this package measure displacements, the loss in logarithmic time, the strength D of the gradient noise,
flat directions and barriers.

The glass is the spherical p = 3 model after a quench. It is trained with the same callback, and also solved by its
exact equations. A rule beside each statement of the paper compares the statement with the measurements.

``python -m examples.studies.comparing_dynamics`` takes about half an hour on two cores and writes the results that are
committed. ``--quick`` takes a minute, and writes beside its records.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import cleandoc
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.polynomial import Polynomial
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import lightning_glassy as lg
from examples.studies import common
from examples.studies.common import Classifier, cross_entropy, digits, loader, mnist, table, train_on_cpu
from examples.studies.statements import BARRIER, OF_GLASS, OF_NETWORKS, barriers, decide_glass, decide_network, regimes
from lightning_glassy import AgingRecord, LogTimeSchedule
from lightning_glassy.analysis import NotEnoughDataError, aging_exponent, relaxation_curves, verdict
from lightning_glassy.glasses import SphericalPSpin, TwoTimeSolution
from lightning_glassy.glasses.modules import SphericalPSpinModule
from lightning_glassy.observables import Array
from lightning_glassy.plotting import plot_curves, plot_gradient_noise, plot_loss, plot_two_time
from lightning_glassy.plotting.axes import grid
from lightning_glassy.schedule import StepsLike

# ------------------------------------------------------------------ the networks


@dataclass(frozen=True)
class System:
    """A network of the paper, its data and its training by SGD."""

    data: str  # "MNIST" or "digits"
    kind: str  # one of KINDS
    batch_size: int
    learning_rate: float
    steps: int
    evaluated: int | None = None  # samples of each set that give the loss, None for all
    curved: int | None = None  # samples that give the Hessian, None if it is not measured
    products: int = 760  # with the Hessian, for each spectrum
    momentum: float = 0.0
    weight_decay: float = 0.0  # as in PyTorch: the gradient of weight_decay |w|^2 / 2 is added

    @property
    def name(self) -> str:
        """Name of the directory."""
        return f"{self.data}-{self.kind}".lower().replace(", m = ", "-").replace(" ", "-").replace(",", "")

    @property
    def title(self) -> str:
        """Title of the pictures."""
        return f"{self.data}, {self.kind}"


FEW, MANY, FULLY, SMALL = KINDS = ("Toy, m = 10", "Toy, m = 10,000", "fully connected", "Small Net")

SYSTEMS = (
    System("MNIST", FEW, 50, 0.5, 100_000, curved=1000),
    System("MNIST", MANY, 50, 0.1, 15_000, evaluated=10_000),
    System("MNIST", FULLY, 50, 0.1, 100_000, curved=1000),
    System("MNIST", SMALL, 50, 0.1, 30_000, curved=300),
    System("digits", FEW, 32, 0.2, 100_000, curved=1500),
    System("digits", MANY, 32, 0.05, 20_000),
    System("digits", FULLY, 32, 0.05, 100_000, curved=1500),
    System("digits", SMALL, 32, 0.05, 50_000, curved=1500),
)
QUICK_SYSTEMS = (
    replace(SYSTEMS[0], steps=500, evaluated=2000, curved=None),
    *(replace(s, steps=300 if s.kind == MANY else 3000, curved=s.curved and 100, products=120) for s in SYSTEMS[4:]),
)


def network(system: System) -> nn.Sequential:
    """Return a network for images that come as rows of pixels, with torch's own initial weights.

    Small Net on MNIST has 31,770 parameters as in the paper. The digits have 8 x 8 pixels. On digits, its convolutions
    are 3 x 3 with a margin of one pixel, so that 20 maps of 2 x 2 are left.
    """
    side, window, margin, left = (28, 5, 0, 4) if system.data == "MNIST" else (8, 3, 1, 2)
    if system.kind in (FEW, MANY):
        hidden = 10 if system.kind == FEW else 10_000
        return nn.Sequential(nn.Linear(side**2, hidden), nn.ReLU(), nn.Linear(hidden, 10), nn.Sigmoid())
    if system.kind == FULLY:
        layers = [nn.Linear(side**2, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)]
        return nn.Sequential(*layers)
    return nn.Sequential(
        *(nn.Unflatten(1, (1, side, side)), nn.Conv2d(1, 10, window, padding=margin), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(10, 20, window, padding=margin), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(20 * left**2, 80), nn.ReLU(), nn.Linear(80, 10)),
    )


def squared_error(scores: Tensor, y: Tensor) -> Tensor:
    """Return the squared error, the sum over the ten outputs, averaged over the samples."""
    return (scores - nn.functional.one_hot(y, 10)).square().sum(1).mean()


def train(
    system: System,
    data_dir: Path,
    out: Path,
    schedule: LogTimeSchedule | None = None,
    loss_times: StepsLike = 6,
    noise_times: StepsLike = 6,
) -> None:
    """Train one network, and save its record in ``out/<name>``.

    Args:
        system: the network and its training.
        data_dir: directory of MNIST.
        out: directory of the records.
        schedule: times of the displacements. Default: 6 waiting times and 10 lags per decade.
        loss_times: steps at which loss and accuracy are measured, or a number per decade.
        noise_times: steps at which D is measured, or a number per decade.
    """
    train_set, test_set = (mnist(data_dir), mnist(data_dir, train=False)) if system.data == "MNIST" else digits()
    sets = {"train": train_set, "test": test_set}
    steps, batch_size = system.steps, system.batch_size
    noise_batches = 30 if system.kind == MANY else 100
    evaluated = {k: first(s, system.evaluated, 1000) for k, s in sets.items()}
    # BarrierMonitor needs all weights, not a sample.
    schedule = schedule or LogTimeSchedule.logspaced(waiting_times_per_decade=6)
    callbacks: list[Callback] = [
        lg.AgingMonitor(schedule, sample=None, dirpath=out / system.name, summary=False),
        lg.LogTimeEvaluator(loss_times, loaders=evaluated, summary=False, max_share=None),
        lg.GradientNoiseMonitor(
            noise_times,
            loader=first(train_set, None, batch_size),
            max_batches=noise_batches,
            summary=False,
            max_share=None,
        ),
        lg.BarrierMonitor(loader=first(train_set, None, 250), max_batches=4, summary=False, max_share=None),
    ]
    if system.curved is not None:
        spectra = sorted({0, *(steps // k for k in (1000, 100, 10, 1))})
        fixed, nodes = first(train_set, system.curved, system.curved), min(100, system.products - 90)
        # The products that the nodes do not use are for the extreme eigenvalues.
        number: dict[str, Any] = {"max_products": system.products, "n_nodes": nodes, "n_eigenvalues": 1}
        callbacks.append(
            lg.CurvatureMonitor(spectra, loader=fixed, max_batches=1, **number, summary=False, max_share=None)
        )
    loss = squared_error if system.kind in (FEW, MANY) else cross_entropy
    module = Classifier(network(system), system.learning_rate, loss, system.weight_decay / 2, system.momentum)
    train_on_cpu(module, steps, callbacks, loader(train_set, steps, batch_size, seeds=0))


def first(dataset: TensorDataset, most: int | None, batch_size: int) -> Any:
    """Return batches of the first samples for a measurement. Each batch is read at once."""
    samples = TensorDataset(*dataset[:most])
    return lg.replica_loader(samples, min(batch_size, len(samples)), seeds=0)


# ------------------------------------------------------------------ the glass


@dataclass(frozen=True)
class Glass:
    """The spherical p = 3 model after a quench: one temperature, several sizes.

    The error of a finite size is a series in 1/N. The error of the projected step is a series in the length of the
    step, which is proportional to 1/N here. Both errors then vanish together as N grows. Three sizes remove the first
    two orders.

    Times and lags are in units of the model.
    """

    temperature: float
    t_max: float
    waiting_times: tuple[float, ...]
    sizes: tuple[int, ...] = (40, 80, 160)  # N, each twice the size before
    seeds: tuple[int, ...] = (64, 128, 64)  # sets of couplings at each size
    n_replica: int = 8  # replicas that share one set of couplings
    steps: int = 2560  # of the exact equations

    def name(self, size: int) -> str:
        """Return the name of the directory of a size."""
        return f"glass-T{self.temperature:g}-N{size}"

    @property
    def model(self) -> SphericalPSpin:
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

    def updates(self, size: int) -> int:
        """Return the number of steps until the last time."""
        return round(self.t_max / self.step(size))


GLASSES = tuple(
    Glass(temperature, 32.0, (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)) for temperature in (0.0, 0.3)
)
QUICK_GLASSES = tuple(
    replace(g, t_max=8.0, waiting_times=g.waiting_times[:7], seeds=(6, 6, 4), sizes=(20, 40, 80), steps=320)
    for g in GLASSES
)


class Energy(lg.Measurement):
    """Measures the energy of a glass, the mean over its replicas."""

    def measure(self, trainer: Trainer, module: Any) -> dict[str, float]:
        return {"energy": float(module.energy().mean())}


def quench(glass: Glass, size: int, n_seed: int, out: Path) -> None:
    """Train glasses of one size, and save one record with a replica for each set of couplings."""
    step, records = glass.step(size), []
    waiting, lags, times = (
        [round(time / step) for time in group] for group in (glass.waiting_times, glass.lags, glass.times)
    )
    for k in range(n_seed):
        module = SphericalPSpinModule(
            glass.model, size, glass.updates(size), step, n_replica=glass.n_replica, seed=1000 * size + k
        )
        quiet: dict[str, Any] = {"save": False, "summary": False}
        monitor = lg.AgingMonitor(LogTimeSchedule(waiting, lags), sample=None, **quiet)
        train_on_cpu(module, module.steps, [monitor, Energy(times, **quiet)])
        records.append(monitor.record)
    together = AgingRecord.concat(records)
    energies = np.array([record.one_time("energy")[1] for record in records])
    for at, error in zip(times, energies.std(axis=0, ddof=1) / n_seed**0.5, strict=True):
        together.append_one_time("energy_error", at, float(error))
    path = out / glass.name(size) / "aging_record.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    together.save(path)


# ------------------------------------------------------------------ what is kept


def analysed_system(system: System, record: AgingRecord, seconds: float) -> dict[str, Any]:
    """Return the results of one network: its series, and the findings on the statements."""
    names = ("train_loss", "test_loss", "train_accuracy", "test_accuracy", "gradient_noise", "flat_fraction")
    return {
        **{name: getattr(system, name) for name in ("data", "kind")},
        "n_parameters": record.n_parameters["all"],
        **{name: getattr(system, name) for name in ("batch_size", "learning_rate", "steps", "evaluated", "curved")},
        "eps": record.meta.get("CurvatureMonitor", {}).get("eps"),
        "seconds": round(seconds),
        "series": {
            name: dict(zip(("steps", "values"), record.one_time(name), strict=True))
            for name in names
            if name in record.one_time_names
        },
        "verdict": verdict(record).kind,
        "findings": decide_network(record, few_weights=system.kind == FEW),
    }


def values_of(glass: Glass, record: AgingRecord, size: int) -> dict[tuple[str, float, float], tuple[float, float]]:
    """Return correlations and energies of one size with their errors, by name, time and lag."""
    step, correlation = glass.step(size), record.correlation()  # [n_seed, n_tw, n_lag]
    columns = {lag: k for k, lag in enumerate(record.lags)}
    energy, energy_error = (dict(zip(*record.one_time(name), strict=True)) for name in ("energy", "energy_error"))
    found = {}
    for i, waiting_time in enumerate(glass.waiting_times):
        for lag in glass.lags:
            if lag >= 0.2 and waiting_time + lag <= glass.t_max:
                values = correlation[:, i, columns[round(lag / step)]]
                found["C", waiting_time, lag] = (values.mean(), values.std(ddof=1) / len(values) ** 0.5)
    for at in glass.times:
        if at >= 0.5:
            found["E", at, 0.0] = (energy[round(at / step)], energy_error[round(at / step)])
    return found


def compared(glass: Glass, records: Mapping[int, AgingRecord], exact: TwoTimeSolution) -> list[dict[str, Any]]:
    r"""Return correlations and energies of the callback beside the exact values, one entry for each number.

    :math:`(x(N) - 6x(2N) + 8x(4N))/3` has no error of first or second order in 1/N. Its difference from
    :math:`2x(4N) - x(2N)` is the second order of that estimate, and an estimate of the higher orders. The errors are
    statistical.
    """
    small, middle, large = (values_of(glass, record, size) for size, record in records.items())
    names, found = ("what", "time", "lag", "largest", "largest_error", "extrapolated", "error"), []
    for (what, time, lag), (c, c_error) in large.items():
        (a, a_error), (b, b_error) = small[what, time, lag], middle[what, time, lag]
        limit = (a - 6 * b + 8 * c) / 3
        error = float(np.sqrt(a_error**2 + (6 * b_error) ** 2 + (8 * c_error) ** 2)) / 3
        at, later = exact.index([time, time + lag])
        value = float(exact.energy[at] if what == "E" else exact.correlation[at, later])
        numbers = {"second_order": limit - (2 * c - b), "exact": value, "z": (limit - value) / error}
        found.append(dict(zip(names, (what, time, lag, c, c_error, limit, error), strict=True)) | numbers)
    return found


def lingers_at(lags: Array, displacement: Array, last: float) -> tuple[float, float]:
    """Return the displacement at which a curve is slowest, at lags up to a last lag, and the local exponent there.

    Each slope is fitted over a factor of two to either side. A parabola goes through the lowest slope and its two
    neighbours. The curve is slowest at the bottom of the parabola. Both values are NaN if the lowest slope is the first
    or the last.
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
    """Fit a constant and a power of t. Return the limit for t^(-2/3), the best free exponent, and the limit with it."""

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


def analysed_glass(
    glass: Glass, records: Mapping[int, AgingRecord], exact: TwoTimeSolution, seconds: float
) -> dict[str, Any]:
    """Return the results at one temperature: comparison with the equations, aging, plateau, and limit of the energy."""
    size, largest = max(records), records[max(records)]
    judged, mu, interval = verdict(largest), np.nan, None
    try:
        fit = aging_exponent(largest)
        mu, interval, doubts = fit.estimate, fit.interval, fit.warnings
    except NotEnoughDataError as error:
        doubts = [str(error)]
    late = exact.times >= glass.t_max / 3
    limit, exponent, free_limit = energy_limits(exact.times[late], exact.energy[late])
    lags, msd, lingers = np.array(glass.lags), largest.msd().mean(axis=0), []
    for start, row in zip(glass.waiting_times, msd, strict=True):
        theirs = np.full(len(lags), np.nan)
        there = start + lags <= glass.t_max
        theirs[there] = exact.msd(start, lags[there])
        for whose, curve in (("callback", row), ("exact", theirs)):
            at, slowest = lingers_at(lags, curve, last=start)
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
        "rates": [{name: getattr(r, name) for name in ("first", "last", "rate", "low", "high")} for r in judged.rates],
        "mu": mu,
        "mu_interval": interval,
        "mu_doubts": doubts,
    }


# ------------------------------------------------------------------ the page


SHOWN = (
    *(("C", *at) for at in ((1, 1), (2, 2), (2, 6), (4, 4), (8, 0.2), (8, 8), (16, 1), (16, 16))),
    *(("E", time, 0) for time in (1, 4, 16, 32)),
)
"""Numbers at round times, which the page shows."""


def tables(result: dict[str, Any]) -> str:
    """Return the results in Markdown, from the JSON alone."""
    systems, (cold, warm) = result["systems"], result["glasses"]
    (eps,) = {system["eps"] for system in systems if system["eps"] is not None}
    parts = [
        common.effort(result),
        "**The networks**, each alone, plain SGD at a constant learning rate (lr), minibatches of B:",
        table(
            "data = {data} | network = {kind} | N = {n_parameters:,} | B = {batch_size} | lr = {learning_rate:g} | "
            "steps = {steps:,} | train loss = {train_loss:.2g} | learnt = {train_accuracy:.2%} | "
            "test accuracy = {test_accuracy:.2%} | D, first = {first_noise:.2g} | D, last = {gradient_noise:.2g} | "
            "Hessian of = {samples}",
            [_row(system) for system in systems],
        ),
        f"The Hessian belongs to the mean loss of so many samples. Its flat directions have |λ| < {eps:g}. Without the "
        "second derivatives of the outputs, at most ten directions for each sample are not flat: the fraction that is "
        "therefore flat in advance is in brackets. If all is learnt, the curvature of a cross-entropy goes to zero "
        "with the loss.",
    ]
    for data in dict.fromkeys(system["data"] for system in systems):
        chosen = [system for system in systems if system["data"] == data]
        rows = [
            [statement.text, *(cell(system["findings"].get(key)) for system in chosen)]
            for key, statement in OF_NETWORKS.items()
        ]
        parts += [
            f"**The statements of the paper on networks, on {data}:**",
            table(" | ".join(["statement = {}", *(f"{system['kind']} = {{}}" for system in chosen)]), rows),
        ]
    sizes = ", ".join(
        f"{n} ({seeds} x {cold['n_replica']})" for n, seeds in zip(cold["sizes"], cold["n_seed"], strict=True)
    )
    parts += [
        f"**Its statements on the glass**, the spherical p = 3 model after a quench to T = {cold['temperature']:g} and "
        f"to T = {warm['temperature']:g}, with N (sets of couplings x replicas) of {sizes}:",
        table(
            "statement = {} |  = {}",
            [(each.text, cell(result["glass_findings"][key])) for key, each in OF_GLASS.items()],
        ),
        "**Not testable here:** ResNet-18, CIFAR-10 and CIFAR-100, which take a GPU.",
        "**The callback and the exact equations.** The extrapolation (x(N) - 6 x(2N) + 8 x(4N))/3 removes errors of "
        "first and second order in 1/N. The second order is shown. Errors are statistical, over sets of couplings, "
        "and z is the difference over the error:",
        table(
            f"T = {{temperature:g}} |  = {{what}} | t_w = {{time:g}} | lag = {{shown lag}} | N = {cold['sizes'][-1]} = "
            "{largest:.4f} ± {largest_error:.4f} | extrapolated = {extrapolated:.4f} ± {error:.4f} | "
            "2nd order = {second_order:+.4f} | exact = {exact:.4f} | z = {z:+.1f}",
            [
                glass | row | {"shown lag": f"{row['lag']:g}" if row["what"] == "C" else ""}
                for glass in (cold, warm)
                for row in glass["numbers"]
                if (row["what"], row["time"], row["lag"]) in SHOWN
            ],
        ),
        "**The rules.** A rate above 0.1 in size counts if it is two errors away from 0. A rate up to 0.1 counts as no "
        "aging if it is within 0.2 with two errors. A rate between them is not testable.",
        "\n".join(f"* {text}: {rule}" for text, rule in result["rules"].items()),
    ]
    return "\n\n".join(parts)


def _row(system: dict[str, Any]) -> dict[str, Any]:
    """Return the results of a network with the last values of its series."""
    curved, n, series = system["curved"], system["n_parameters"], system["series"]
    samples = "-" if curved is None else f"{curved:,} ({max(0.0, 1 - 10 * curved / n):.0%})"
    more = {"samples": samples, "first_noise": series["gradient_noise"]["values"][0]}
    return system | {name: of["values"][-1] for name, of in series.items()} | more


def cell(found: dict[str, str] | None) -> str:
    """Return a finding as the text of a cell, empty if the statement is about other networks."""
    return "" if found is None else "**{verdict}**: {words}".format(**found)


# ------------------------------------------------------------------ the pictures


def panels(rows: int, columns: int, width: float, height: float) -> Any:
    """Return a figure with panels of this size in inches, and the axes ``[rows, columns]``."""
    figure = Figure(figsize=(width * columns, height * rows), dpi=100, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def draw_networks(records: Mapping[System, AgingRecord]) -> Any:
    """Draw one column per network: loss with its regimes, noise, displacement, and displacement over the noise."""
    figure, axes = panels(4, len(records), 4.1, 3.1)
    for column, (system, record) in zip(axes.T, records.items(), strict=True):
        plot_loss(record, regimes(record), ax=column[0])
        column[0].set_title(f"{system.title}: N = {record.n_parameters['all']:,}", fontsize=10)
        plot_gradient_noise(record, ax=column[1])
        for ax in column[:2]:
            ax.legend(fontsize=7)
        plot_two_time(record, ax=column[2], colorbar=False)
        plot_curves(relaxation_curves(record, "normalised_msd"), ax=column[3], colorbar=False)
        times = record.waiting_times[record.waiting_times > 0]
        words = f"dark to light:\n$t_w$ = {times[0]:,} ... {times[-1]:,}"
        column[2].text(0.97, 0.05, words, transform=column[2].transAxes, ha="right", fontsize=8)
        for ax in column:
            ax.set_ylabel("")
    labels = ("loss", "strength of the gradient", r"$\Delta(t_w, t_w+t)$", r"$\Delta(t_w, t_w+t) / D(t_w)$")
    for ax, label in zip(axes[:, 0], labels, strict=True):
        ax.set_ylabel(label)
    return figure


def draw_landscape(records: Mapping[System, AgingRecord]) -> Any:
    """Draw the directions that are not flat along the run, and the heights of barriers against the lag."""
    figure, ((left, right),) = panels(1, 2, 6.2, 4.2)
    for k, (system, record) in enumerate(records.items()):
        style = {"color": f"C{KINDS.index(system.kind)}", "label": f"{system.data}, {system.kind}"}
        filled, line = ({}, "-") if system.data == "MNIST" else ({"markerfacecolor": "white"}, "--")
        if "flat_fraction" in record.one_time_names:
            steps, flat = record.one_time("flat_fraction")
            error = record.one_time("flat_fraction_error")[1]
            left.errorbar(np.maximum(steps, 1), 1 - flat, error, fmt=f"o{line}", capsize=2, **filled, **style)
        lags = record.profile("loss_path").lags * 1.04 ** (k - 3.5)
        right.plot(lags, 100 * barriers(record), "o", markersize=4, **filled, **style)
    left.set(xscale="log", yscale="log", xlabel="step (0 is at the left edge)")
    left.set_ylabel(r"fraction of directions with $|\lambda| \geq 0.01$")
    right.axhline(100 * BARRIER, color="0.4", linestyle=":", linewidth=1)
    right.set(xscale="log", xlabel="lag $t$ (steps)", ylabel="height of the barrier (% of the loss at the higher end)")
    top = max(float(barriers(record).max()) for record in records.values())
    right.set_ylim(-0.4, max(8.0, 130 * top))
    for ax, columns in ((left, 1), (right, 2)):
        grid(ax)
        ax.legend(fontsize=7, ncols=columns)
    return figure


def draw_glass(found: Sequence[tuple[Glass, dict[int, AgingRecord], TwoTimeSolution]]) -> Any:
    """Draw energies, the correlation at T = 0, and the displacement at T > 0, from the callback and the equations."""
    figure, ((left, middle, right),) = panels(1, 3, 5.2, 4.4)
    glass, records, exact = found[0]
    for k, (size, record) in enumerate(records.items()):
        steps, energy = record.one_time("energy")
        times, error = steps * glass.step(size), record.one_time("energy_error")[1]
        shown = times >= 0.3
        style: Any = {"color": colormaps["Blues"](0.4 + 0.5 * k / max(len(records) - 1, 1)), "label": f"N = {size}"}
        left.errorbar(times[shown], energy[shown], error[shown], fmt="o", ms=3.5, **style)
    late = exact.times >= 0.3
    left.plot(exact.times[late], exact.energy[late], "k-", linewidth=1, label="exact, N infinite")
    left.axhline(glass.model.threshold, color="tab:red", linestyle="--", linewidth=1, label="threshold")
    left.axhline(glass.model.ground_state, color="0.5", linestyle=":", linewidth=1.2, label="ground state")
    left.set(xscale="log", xlabel="time", ylabel="energy per weight", title=f"quench to T = {glass.temperature:g}")
    for ax, (glass, records, exact) in zip((middle, right), found, strict=True):
        size, record = max(records.items())
        mean = (record.correlation() if ax is middle else record.msd()).mean(axis=0)
        for i, start in list(enumerate(glass.waiting_times))[::2]:
            colour = colormaps["viridis"](0.93 * i / (len(glass.waiting_times) - 1))
            lags = exact.times[exact.index(start) + 1 :] - start
            curve = exact.msd(start, lags)
            ax.plot(lags, 1 - curve / 2 if ax is middle else curve, color=colour, linewidth=1)
            style = {"markersize": 3.5, "color": colour, "label": f"$t_w$ = {start:g}"}
            ax.plot(record.lags * glass.step(size), mean[i], "o", **style)
        ax.set(xscale="log", xlabel="lag $t$", title=f"T = {glass.temperature:g}: N = {size}, and exact (lines)")
    middle.set_ylabel("correlation $C(t_w, t_w+t)$")
    plateau = 2 * (1 - glass.model.plateau)
    right.axhline(plateau, color="tab:red", linestyle="--", linewidth=1, label=r"plateau $2(1-q_{EA})$")
    right.set(yscale="log", ylabel=r"mean squared displacement $\Delta(t_w, t_w+t)$")
    for ax in (left, middle, right):
        ax.legend(fontsize=8)
        grid(ax)
        ax.xaxis.set_minor_formatter(NullFormatter())  # no labels of minor ticks on short axes
    return figure


# ------------------------------------------------------------------ everything


def tasks_of(
    systems: Sequence[System], glasses: Sequence[Glass], data_dir: Path, out: Path
) -> dict[str, Callable[[], None]]:
    """Return all tasks, the longest first."""
    ordered = sorted(systems, key=lambda system: system.kind != MANY)
    tasks: dict[str, Callable[[], None]] = {system.name: partial(train, system, data_dir, out) for system in ordered}
    for glass in glasses:
        for size, n_seed in reversed([*zip(glass.sizes, glass.seeds, strict=True)]):
            tasks[glass.name(size)] = partial(quench, glass, size, n_seed, out)
    return tasks


def main() -> None:
    """Train all networks and glasses, several at once, and write the results."""
    quick = "fewer steps, on digits, small glasses, and a bit of MNIST, in a minute"
    options = common.options_of("comparing_dynamics", __doc__, quick, needs_mnist=True)
    systems, glasses = (QUICK_SYSTEMS, QUICK_GLASSES) if options.quick else (SYSTEMS, GLASSES)
    if not options.analyse and any(system.data == "MNIST" for system in systems):
        mnist(options.data_dir)  # download it before several processes need it
    spent = common.run_all(tasks_of(systems, glasses, options.data_dir, options.out), options)
    seconds = spent.pop("runs")
    records = {system: common.load_record(system.name, options.out, system.steps) for system in systems}
    of_glass = [
        (
            glass,
            {n: common.load_record(glass.name(n), options.out, glass.updates(n)) for n in glass.sizes},
            glass.model.solve(glass.t_max, glass.steps),
        )
        for glass in glasses
    ]
    found = [analysed_glass(*each, sum(seconds[each[0].name(size)] for size in each[0].sizes)) for each in of_glass]
    # The file has numbers of five digits. These numbers decide the statements.
    rounded = json.loads(common.as_json({"glasses": found}))["glasses"]
    statements = (*OF_NETWORKS.values(), *OF_GLASS.values())
    result = {
        **spent,
        "systems": [analysed_system(system, record, seconds[system.name]) for system, record in records.items()],
        "glasses": rounded,
        "glass_findings": decide_glass(*rounded),
        "rules": {each.text: cleandoc(each.decide.__doc__ or "") for each in statements},
    }

    def draw(_: Any, directory: Path) -> list[Path]:
        """Draw the pictures, which need the records, not only the numbers of the JSON."""
        figures = {"landscape": draw_landscape(records), "glass": draw_glass(of_glass)}
        for data in dict.fromkeys(system.data for system in systems):
            figures[data.lower()] = draw_networks({s: record for s, record in records.items() if s.data == data})
        return common.save_figures(figures, directory, "comparing_dynamics")

    common.conclude(result, options, tables, draw)


if __name__ == "__main__":
    main()

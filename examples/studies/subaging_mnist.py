r"""Subaging of small networks on MNIST: the protocol of Herrera Segura et al. 2022 (arXiv 2209.02517), with error bars.

A 784-5-5-5-10 tanh network learns MNIST with plain SGD at learning rate 0.05, minibatches of 50, an L2 term of
strength 1e-4, Glorot-uniform weights, biases of zero and pixels in [0, 1], for 200,000 steps; ten waiting times from
10^3 to 10^5 and twenty lags from 10 to 10^5. The lag t* is the lag at which the displacement reaches 10^-3, and
:math:`t^* \sim t_w^\mu`. The images come in the order of the file, as in the paper, or reshuffled in every pass. Other
networks have about the same number of parameters, or fewer or more. Several replicas of each network are trained as
one.

``python -m examples.studies.subaging_mnist`` takes about half an hour on two cores and writes the results that are
committed. ``--quick`` takes a minute, and writes beside its records.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback
from scipy.stats import chi2 as chi2_distribution
from torch.utils.data import TensorDataset

from examples.studies.common import (
    EFFECTIVE,
    PLAIN,
    Progress,
    Replicas,
    at_steps,
    conclude,
    fully_connected,
    layers_of,
    load_record,
    loader,
    losses,
    mnist,
    n_weights,
    options_of,
    place_for,
    quiet,
    several,
    table,
    train_on_cpu,
    with_error,
)
from lightning_glassy import AgingMonitor, AgingRecord, GradientNoiseMonitor, LogTimeEvaluator, LogTimeSchedule
from lightning_glassy.analysis import Curves, aging_exponent, lag_to_threshold, relaxation_curves
from lightning_glassy.analysis.exponents import threshold_fit
from lightning_glassy.plotting import new_figure, plot_curves

STEPS, QUICK_STEPS = 200_000, 4_000
IMAGES, QUICK_IMAGES = 60_000, 6_000
N_REPLICA, N_REPLICA_AUTHORS = 8, 16
BATCH_SIZE, LEARNING_RATE, L2 = 50, 0.05, 1e-4
THRESHOLD = 1e-3
AUTHORS = (5, 5, 5)
"""Hidden layers of the network of the paper: 4,045 parameters."""
SAME_SIZE = (AUTHORS, (5,), (5,) * 6, (5, 10, 10), (4, 24, 24))
"""Networks of depth 1, 3 and 6, and wider ones, within 5 % of the number of parameters of the paper."""
SIZES = (AUTHORS, (3,) * 3, (10,) * 3, (20,) * 3)


@dataclass(frozen=True)
class Run:
    """One network, and whether its images are reshuffled in every pass."""

    hidden: tuple[int, ...]
    reshuffled: bool

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of all layers."""
        return 784, *self.hidden, 10

    @property
    def n_parameters(self) -> int:
        """Number of weights and biases."""
        return n_weights(self.sizes)

    @property
    def n_replica(self) -> int:
        """Number of replicas. The network of the paper has more replicas than the others."""
        return N_REPLICA_AUTHORS if self.hidden == AUTHORS else N_REPLICA

    @property
    def order(self) -> str:
        """Order of the images, in words."""
        return "reshuffled" if self.reshuffled else "file order"

    @property
    def name(self) -> str:
        """Name of the directory."""
        return f"{layers_of(self.sizes)}{'-reshuffled' if self.reshuffled else ''}"


RUNS = tuple(Run(hidden, reshuffled) for reshuffled in (False, True) for hidden in dict.fromkeys(SAME_SIZE + SIZES))
QUICK_RUNS = (Run(AUTHORS, False), Run(AUTHORS, True), Run((5,), False))


def train(run: Run, steps: int, images: int, data_dir: Path, out: Path) -> float:
    """Train the replicas of one network, save the record in ``out/<name>``, and return the seconds it took."""
    quiet()
    seed_everything(0, verbose=False)
    start, data = time.perf_counter(), TensorDataset(*(tensor[:images] for tensor in mnist(data_dir).tensors))
    schedule = LogTimeSchedule.preset("subaging", steps)
    model = Replicas(
        partial(fully_connected, run.sizes),
        run.n_replica,
        learning_rate=LEARNING_RATE,
        own_minibatches=run.reshuffled,
        l2=L2,
    )
    monitor = AgingMonitor(schedule, dirpath=place_for(run.name, out), summary=False)
    # As in the paper, the loss of its network is measured at all lags. The other losses are at the waiting times.
    of_loss = [event.step for event in schedule.events if event.capture or run.hidden == AUTHORS]
    callbacks: list[Callback] = [
        monitor,
        LogTimeEvaluator(at_steps(0, *of_loss, steps), batch_size=10_000, loss=losses, summary=False),
        GradientNoiseMonitor(at_steps(*schedule.waiting_times, steps), max_batches=200, loss=losses, summary=False),
        Progress(run.name),
    ]
    train_on_cpu(
        model, steps, callbacks, loader(data, steps, BATCH_SIZE, range(run.n_replica) if run.reshuffled else None)
    )
    return time.perf_counter() - start


def analysed(run: Run, record: AgingRecord, seconds: float) -> dict[str, Any]:
    """Return the results of one run: curves, the lags to the threshold, the exponents, loss and accuracy."""
    times, lags = record.waiting_times, record.lags
    fit = aging_exponent(record, thresholds=[THRESHOLD], window=(int(times[0]), int(times[-1])))
    curves = relaxation_curves(record)
    crossing = lag_to_threshold(lags, curves.mean(), THRESHOLD)
    slope = threshold_fit(curves, THRESHOLD)
    return {
        "layers": layers_of(run.sizes),
        "order": run.order,
        "n_parameters": record.n_parameters["all"],
        "n_replica": curves.n_replica,
        "seconds": round(seconds),
        "mu": {"threshold": slope.mu, "effective time": fit.estimates[EFFECTIVE], "plain": fit.estimates[PLAIN]},
        "mu_error": {
            "threshold": fit.standard_errors.get("threshold", np.nan),
            "effective time": fit.standard_errors.get(EFFECTIVE, np.nan),
            "plain": fit.standard_errors.get(PLAIN, np.nan),
        },
        "scatter": {"effective time": fit.scatter[EFFECTIVE], "plain": fit.scatter[PLAIN]},
        "intercept": slope.intercept,
        "warnings": fit.warnings,
        "waiting_times": times,
        "lags": lags,
        "lag_to_threshold": crossing.lags,
        "local_slopes": slope.local_slopes,
        "crossings": crossing.counts,
        "msd": curves.mean(),
        "msd_error": curves.values.std(axis=0, ddof=1) / np.sqrt(curves.n_replica),
        "series": {
            name: dict(zip(("steps", "values", "errors"), _series(record, name), strict=True))
            for name in ("train_loss", "train_accuracy")
        },
    }


def _series(record: AgingRecord, name: str) -> tuple[Any, Any, Any]:
    """Return steps, means over the replicas, and their standard errors."""
    steps, values = record.one_time(name)
    return steps, values, record.one_time(f"{name}_error")[1]


# ------------------------------------------------------------------ the page


def tables(result: dict[str, Any]) -> str:
    """Return the results in Markdown, from the JSON alone."""
    runs = result["runs"]
    authors = [run for run in runs if run["layers"] == _layers(AUTHORS)]
    where = result["machine"]
    parts = [
        f"{result['steps']:,} steps each; {result['seconds'] / 60:.0f} minutes for everything, {result['jobs']} at a "
        f"time, each on one core of {where['cpu']}, torch {where['torch']}, {where['date']}.",
        "**The lag t\\* at which the displacement reaches 10^-3**, of the authors' network, in steps:",
        table(
            ["waiting time", *(run["order"] for run in authors)],
            [
                [f"{t:,}", *(_number(run["lag_to_threshold"][i], ",.0f") for run in authors)]
                for i, t in enumerate(authors[0]["waiting_times"])
            ],
        ),
        "**The exponent**, by the threshold as in the paper, and by collapse in two scaling variables, with the errors "
        "of the replicas, and how far the curves miss a common one:",
        table(
            COLUMNS,
            [_row(run) for run in runs],
        ),
        "**One exponent?** Of the networks below, whether one exponent describes all within the errors of the replicas "
        "(chi squared), and how far they are apart:",
        table(
            ["networks", "order", "method", "mu, lowest", "highest", "mean", "chi squared", "p"],
            [
                [what, order, method, *_common([run for run in runs if _is(run, hidden, order)], method)]
                for what, hidden in (
                    ("same N", SAME_SIZE),
                    ("of these, first layer of 5", tuple(hidden for hidden in SAME_SIZE if hidden[0] == 5)),
                    ("four sizes", SIZES),
                )
                for order in dict.fromkeys(run["order"] for run in runs)
                for method in ("threshold", "effective time", "plain")
                if sum(_is(run, hidden, order) for run in runs) > 1
            ],
        ),
    ]
    return "\n\n".join(parts)


COLUMNS = (
    *("network", "N", "order", "replicas", "mu, threshold", "effective time", "missed by", "t/t_w^mu", "missed by"),
    *("train loss", "train accuracy"),
)


def _layers(hidden: tuple[int, ...]) -> str:
    return layers_of((784, *hidden, 10))


def _is(run: dict[str, Any], hidden: tuple[tuple[int, ...], ...], order: str) -> bool:
    return run["order"] == order and run["layers"] in map(_layers, hidden)


def _row(run: dict[str, Any]) -> list[str]:
    mu, error, scatter = run["mu"], run["mu_error"], run["scatter"]
    loss, accuracy = (run["series"][name] for name in ("train_loss", "train_accuracy"))
    return [
        run["layers"],
        f"{run['n_parameters']:,}",
        run["order"],
        str(run["n_replica"]),
        with_error(mu["threshold"], error["threshold"]),
        with_error(mu["effective time"], error["effective time"]),
        _number(scatter["effective time"], ".1%"),
        with_error(mu["plain"], error["plain"]),
        _number(scatter["plain"], ".1%"),
        with_error(loss["values"][-1], loss["errors"][-1]),
        with_error(accuracy["values"][-1], accuracy["errors"][-1]),
    ]


def _common(runs: list[dict[str, Any]], method: str) -> list[str]:
    """Return lowest, highest and mean of an exponent, and chi squared of a common exponent with its p value."""
    pairs = [(run["mu"][method], run["mu_error"][method]) for run in runs]
    known = np.array([pair for pair in pairs if None not in pair], dtype=np.float64).reshape(-1, 2)
    if len(known) < 2:
        return ["-"] * 5
    mu, weight = known[:, 0], 1 / known[:, 1] ** 2
    mean = float(weight @ mu / weight.sum())
    chi2 = float(weight @ (mu - mean) ** 2)
    return [
        f"{mu.min():.3f}",
        f"{mu.max():.3f}",
        f"{mean:.3f} +- {weight.sum() ** -0.5:.3f}",
        f"{chi2:.1f} for {len(mu) - 1}",
        f"{chi2_distribution.sf(chi2, len(mu) - 1):.2g}",
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


# ------------------------------------------------------------------ the pictures


def draw(result: dict[str, Any], directory: Path) -> list[Path]:
    """Draw two pictures from the JSON alone, and return their paths: curves with their lags, and exponents."""
    pictures = [directory / "subaging_mnist.png", directory / "subaging_mnist_mu.png"]
    runs = [run for run in result["runs"] if run["layers"] == _layers(AUTHORS)]
    figure = new_figure(3, width=5.6)
    for ax, run in zip(figure.axes[:2], runs, strict=True):
        plot_curves(_curves(run), ax=ax)
        ax.axhline(THRESHOLD, color="0.4", linestyle=":", linewidth=1)
        ax.set_title(f"{run['layers']}, {run['order']}, {run['n_replica']} replicas", fontsize=10)
        ax.set_ylabel(r"mean squared displacement $\Delta(t_w, t_w+t)$")
    ax = figure.axes[2]
    for run, colour, marker in zip(runs, ("tab:blue", "tab:orange"), "os", strict=True):
        times, lags = np.array(run["waiting_times"]), np.array(run["lag_to_threshold"], dtype=np.float64)
        label = f"{run['order']}: slope {with_error(run['mu']['threshold'], run['mu_error']['threshold'])}"
        ax.plot(times, lags, marker, color=colour, label=label.replace("+-", "±"))
        if run["mu"]["threshold"] is not None:
            ax.plot(times, np.exp(run["intercept"]) * times ** run["mu"]["threshold"], color=colour, linewidth=1)
    _finish(ax, "waiting time $t_w$ (steps)", r"lag $t^*$ to $\Delta^* = 10^{-3}$ (steps)")
    ax.set_yscale("log")
    figure.savefig(pictures[0])

    figure = new_figure(3, width=5.6)
    left, middle, right = figure.axes
    for run, colour in zip(runs, ("tab:blue", "tab:orange"), strict=True):
        for name, style in (("train_loss", "-"), ("train_accuracy", "--")):
            series = run["series"][name]
            steps, values = np.array(series["steps"]), np.array(series["values"])
            words = f"{name.replace('train_', '')}, {run['order']}"
            left.plot(steps[steps > 0], values[steps > 0], style, color=colour, linewidth=1.2, label=words)
    _finish(left, "step", f"training loss and accuracy of {runs[0]['layers']}")
    for order, colour, marker in (("file order", "tab:blue", "o"), ("reshuffled", "tab:orange", "s")):
        for ax, hidden in ((middle, SAME_SIZE), (right, SIZES)):
            chosen = [run for run in result["runs"] if _is(run, hidden, order)]
            chosen.sort(key=lambda run: [_layers(part) for part in hidden].index(run["layers"]))
            known = [run for run in chosen if None not in (run["mu"]["threshold"], run["mu_error"]["threshold"])]
            mu = [run["mu"]["threshold"] for run in known]
            errors = [run["mu_error"]["threshold"] for run in known]
            x = [run["layers"].removeprefix("784-").removesuffix("-10") for run in known]
            if ax is right:
                x = [run["n_parameters"] for run in known]
            ax.errorbar(x, mu, errors, fmt=marker, color=colour, capsize=3, label=order)
    middle.set_xlabel("hidden layers, at N = 4,045 within 5 %")
    middle.grid(True, linewidth=0.4, alpha=0.5)
    middle.legend(fontsize=8)
    _finish(right, "number of parameters N", "")
    for ax in (middle, right):
        ax.set_ylabel(r"$\mu$ of $t^* \sim t_w^\mu$")
        ax.set_ylim(0, 1.2)
    figure.savefig(pictures[1])
    return pictures


def _curves(run: dict[str, Any]) -> Curves:
    times, lags, values = (np.array(run[name]) for name in ("waiting_times", "lags", "msd"))
    return Curves("msd", times, lags, values[None])


def _finish(ax: Any, x: str, y: str) -> None:
    ax.set_xscale("log")
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(True, which="major", linewidth=0.4, alpha=0.5)
    ax.legend(fontsize=8)


# ------------------------------------------------------------------ everything


def main() -> None:
    """Train all networks, several at once, and write the results."""
    options = options_of(
        "subaging_mnist", __doc__, quick=f"three networks for {QUICK_STEPS:,} steps, in a minute", needs_mnist=True
    )
    runs, steps, images = (QUICK_RUNS, QUICK_STEPS, QUICK_IMAGES) if options.quick else (RUNS, STEPS, IMAGES)
    if not options.analyse:
        mnist(options.data_dir)  # download it before several processes need it
    # Start the longest training first.
    ordered = sorted(runs, key=lambda run: (run.hidden == AUTHORS, run.n_parameters), reverse=True)
    where = options.data_dir, options.out
    spent = several({run.name: partial(train, run, steps, images, *where) for run in ordered}, options)
    seconds = spent.pop("runs")
    of_runs = [analysed(run, load_record(run.name, options.out, steps), seconds[run.name]) for run in runs]
    conclude("subaging_mnist", {"steps": steps, **spent, "runs": of_runs}, options, tables, draw)


if __name__ == "__main__":
    main()

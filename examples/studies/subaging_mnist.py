r"""Subaging of small networks on MNIST: the protocol of Herrera Segura et al. 2022 (arXiv 2209.02517), with error bars.

A 784-5-5-5-10 network learns MNIST, with pixels in [0, 1], for 200,000 steps. The images come in the order of the file,
as in the paper, or reshuffled in every pass. Other networks have about the same number of parameters, or fewer or more.
The threshold of the displacement is 10^-3. :mod:`examples.studies.subaging` has the rest of the protocol.

``python -m examples.studies.subaging_mnist`` takes about half an hour on two cores and writes the results that are
committed. ``--quick`` takes a minute, and writes beside its records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import chi2 as chi2_distribution
from torch.utils.data import TensorDataset

from examples.studies import subaging
from examples.studies.common import conclude, effort, mnist, number, options_of, table
from examples.studies.subaging import Run, finish
from lightning_glassy import AgingRecord, LogTimeEvaluator, LogTimeSchedule
from lightning_glassy.analysis import aging_exponent, relaxation_curves
from lightning_glassy.analysis.exponents import threshold_fit
from lightning_glassy.plotting import new_figure
from lightning_glassy.plotting.axes import grid

STEPS, QUICK_STEPS = 200_000, 4_000
IMAGES, QUICK_IMAGES = 60_000, 6_000
THRESHOLD = 1e-3
HIDDEN = (5, 5, 5)
"""Hidden layers of the network of the paper: 4,045 parameters."""
SAME_SIZE = (HIDDEN, (5,), (5,) * 6, (5, 10, 10), (4, 24, 24))
"""Networks of depth 1, 3 and 6, and wider networks, within 5 % of the number of parameters of the paper."""
SIZES = (HIDDEN, (3,) * 3, (10,) * 3, (20,) * 3)
NOTEBOOK = {
    "lag_to_threshold": (519, 894, 1355, 2257, 3518, 5046, 8569, 13971, 10446, 17719),
    "slope": 0.770,
    "train_loss": 0.393,
    "train_accuracy": 0.898,
}
"""One run of the network of the paper, images in the order of the file: lags to the threshold for ten waiting times,
slope of ln t* over ln t_w, loss and accuracy at step 100,000. Source: the notebook published with Herrera Segura et al.
2022. It prints no mu. The slope is the least-squares slope of its lags."""
STYLES = {"file order": ("tab:blue", "o"), "reshuffled": ("tab:orange", "s")}


def run_of(hidden: tuple[int, ...], reshuffled: bool = True) -> Run:
    """Return the run of a network with these hidden layers. The network of the paper has more replicas."""
    return Run((784, *hidden, 10), 16 if hidden == HIDDEN else 8, reshuffled)


AUTHORS = run_of(HIDDEN).layers
RUNS = tuple(run_of(hidden, order) for order in (False, True) for hidden in dict.fromkeys(SAME_SIZE + SIZES))
QUICK_RUNS = (run_of(HIDDEN, False), run_of(HIDDEN, True), run_of((5,), False))


def train(run: Run, steps: int, images: int, data_dir: Path, out: Path) -> None:
    """Train the replicas of one network, and save the record in ``out/<name>``."""
    # As in the paper, measure the loss of its network at all lags. Measure the other losses at the waiting times.
    events = LogTimeSchedule.preset("subaging", steps).events
    of_loss = [0, *(event.step for event in events if event.capture or run.layers == AUTHORS)]
    evaluator = LogTimeEvaluator(of_loss, batch_size=10_000, loss=subaging.losses, summary=False, max_share=None)
    data = TensorDataset(*mnist(data_dir)[:images])
    subaging.train(run, data, steps, out, evaluator, noise_batches=200)


def analysed(run: Run, record: AgingRecord, seconds: float) -> dict[str, Any]:
    """Return the results of one run: curves, the lags to the threshold, the exponents, loss and accuracy."""
    times, curves = record.waiting_times, relaxation_curves(record)
    fit = aging_exponent(record, thresholds=[THRESHOLD], window=(int(times[0]), int(times[-1])))
    slope, found = threshold_fit(curves, THRESHOLD), subaging.collapses(fit)
    return {
        "layers": run.layers,
        "order": "reshuffled" if run.reshuffled else "file order",
        "n_parameters": record.n_parameters["all"],
        "n_replica": curves.n_replica,
        "seconds": round(seconds),
        "mu": {"threshold": slope.mu, **found["mu"]},
        "mu_error": {"threshold": fit.standard_errors.get("threshold"), **found["mu_error"]},
        "scatter": found["scatter"],
        "intercept": slope.intercept,
        "warnings": fit.warnings,
        "waiting_times": times,
        "lags": record.lags,
        "lag_to_threshold": slope.crossings.lags,
        "local_slopes": slope.local_slopes,
        "crossings": slope.crossings.counts,
        "msd": curves.mean(),
        "msd_error": curves.values.std(axis=0, ddof=1) / np.sqrt(curves.n_replica),
        "series": {
            name: dict(zip(("steps", "values"), record.one_time(name), strict=True))
            | {"errors": record.one_time(f"{name}_error")[1]}
            for name in ("train_loss", "train_accuracy")
        },
    }


# ------------------------------------------------------------------ the page


def tables(result: dict[str, Any]) -> str:
    """Return the results in Markdown, from the JSON alone."""
    runs = result["runs"]
    authors = [run for run in runs if run["layers"] == AUTHORS]
    lags = [[number(lag, form=",.0f") for lag in run["lag_to_threshold"]] for run in authors]
    rows = [
        run
        | {f"mu {name}": number(mu, run["mu_error"][name]) for name, mu in run["mu"].items()}
        | {f"missed {name}": number(scatter, form=".1%") for name, scatter in run["scatter"].items()}
        | {name: number(of["values"][-1], of["errors"][-1]) for name, of in run["series"].items()}
        for run in runs
    ]
    groups = {
        "same N": SAME_SIZE,
        "of these, first layer of 5": [hidden for hidden in SAME_SIZE if hidden[0] == 5],
        "four sizes": SIZES,
    }
    common = [
        (what, order, method, *_common(those, method))
        for what, hidden in groups.items()
        for order in STYLES
        for method in ("threshold", "effective time", "plain")
        if len(those := chosen(runs, hidden, order)) > 1
    ]
    return "\n\n".join(
        [
            f"{result['steps']:,} steps each; {effort(result)}",
            *subaging.grid_note(result),
            "**The lag t\\* at which the displacement reaches 10^-3**, of the authors' network, in steps:",
            table(
                " | ".join(["waiting time = {:,}", *(f"{run['order']} = {{}}" for run in authors)]),
                zip(authors[0]["waiting_times"], *lags, strict=True),
            ),
            *_beside_the_notebook(result, authors[0]),
            "**The exponent**, by the threshold as in the paper, and by collapse in two scaling variables, with the "
            "errors of the replicas, and how far the curves miss a common one:",
            table(
                "network = {layers} | N = {n_parameters:,} | order = {order} | replicas = {n_replica} | "
                "mu, threshold = {mu threshold} | effective time = {mu effective time} | "
                "missed by = {missed effective time} | t/t_w^mu = {mu plain} | missed by = {missed plain} | "
                "train loss = {train_loss} | train accuracy = {train_accuracy}",
                rows,
            ),
            "**One exponent?** Of the networks below, whether one exponent describes all within the errors of the "
            "replicas (chi squared), and how far they are apart:",
            table(
                "networks = {} | order = {} | method = {} | mu, lowest = {} | highest = {} | mean = {} | "
                "chi squared = {} | p = {}",
                common,
            ),
        ]
    )


def _beside_the_notebook(result: dict[str, Any], run: dict[str, Any]) -> list[str]:
    """Compare the authors' run with our single runs. Their spread is sqrt(R) times the error of the mean."""
    if result["steps"] != STEPS or None in run["lag_to_threshold"]:
        return []
    ours, theirs = np.array(run["lag_to_threshold"]), np.array(NOTEBOOK["lag_to_threshold"])
    spread = _spread_of_lags(run)
    off = np.log(theirs / ours) / spread
    times = run["waiting_times"]
    root = run["n_replica"] ** 0.5
    slope = float(np.polyfit(np.log(times), np.log(theirs), 1)[0])
    single = run["mu_error"]["threshold"] * root
    at_end = []
    for name in ("train_loss", "train_accuracy"):
        series = run["series"][name]
        at = series["steps"].index(times[-1])
        value, spread_of_one = series["values"][at], series["errors"][at] * root
        at_end.append(f"{name[6:]} {NOTEBOOK[name]} (ours {value:.3f}, spread {spread_of_one:.3f})")
    return [
        "**Beside the authors' own run.** The notebook published with the paper has one run, in the order of the file. "
        f"Beside it are our {run['n_replica']} replicas in this order. The spread is the standard deviation of ln t\\* "
        "between single runs, to first order: the error of the mean curve, over its local slope, times the root of the "
        "number of replicas.",
        table(
            "waiting time = {:,} | ours, mean curve = {:,.0f} | spread of single runs = {:.2f} | notebook = {:,} | "
            "ln(notebook / ours), in spreads = {:+.1f}",
            zip(times, ours, spread, theirs, off, strict=True),
        ),
        f"The notebook prints no mu. The least-squares slope of its ln t\\* over ln t_w is {slope:.3f}. Ours is "
        f"{run['mu']['threshold']:.3f}, and single runs scatter about it by about {single:.3f}. At step {times[-1]:,} "
        f"the notebook has {' and '.join(at_end)}. Our loss is without the L2 term.",
    ]


def _spread_of_lags(run: dict[str, Any]) -> Any:
    """Return the standard deviation of ln t* between single runs, ``[n_tw]``, to first order in the curve's error."""
    x, aims = np.log(run["lags"]), np.log(run["lag_to_threshold"])
    found = []
    for aim, msd, error in zip(aims, np.array(run["msd"]), np.array(run["msd_error"]), strict=True):
        right = int(np.searchsorted(x, aim))
        slope = np.log(msd[right] / msd[right - 1]) / (x[right] - x[right - 1])
        found.append(np.interp(aim, x, error / msd) / slope)
    return np.array(found) * run["n_replica"] ** 0.5


def chosen(runs: list[dict[str, Any]], hidden: Any, order: str) -> list[dict[str, Any]]:
    """Return the runs with these hidden layers and this order of the images, in the order of ``hidden``."""
    layers = [run_of(each).layers for each in hidden]
    found = [run for run in runs if run["order"] == order and run["layers"] in layers]
    return sorted(found, key=lambda run: layers.index(run["layers"]))


class Common(NamedTuple):
    """One exponent for several networks: its range, the weighted mean with its error, and chi squared with its p."""

    lowest: float
    highest: float
    mean: float
    error: float
    chi2: float
    freedom: int
    p: float


def common_exponent(runs: Sequence[dict[str, Any]], method: str) -> Common | None:
    """Return the common exponent of some runs by one method, or None with fewer than two exponents."""
    pairs = [(run["mu"][method], run["mu_error"][method]) for run in runs]
    known = np.array([pair for pair in pairs if None not in pair], dtype=np.float64).reshape(-1, 2)
    if len(known) < 2:
        return None
    mu, weight = known[:, 0], 1 / known[:, 1] ** 2
    mean = float(weight @ mu / weight.sum())
    chi2, freedom = float(weight @ (mu - mean) ** 2), len(mu) - 1
    p = float(chi2_distribution.sf(chi2, freedom))
    return Common(mu.min(), mu.max(), mean, float(weight.sum() ** -0.5), chi2, freedom, p)


def _common(runs: list[dict[str, Any]], method: str) -> list[str]:
    """Return the texts of a common exponent."""
    found = common_exponent(runs, method)
    if found is None:
        return ["-"] * 5
    mean, chi2 = f"{found.mean:.3f} +- {found.error:.3f}", f"{found.chi2:.1f} for {found.freedom}"
    return [f"{found.lowest:.3f}", f"{found.highest:.3f}", mean, chi2, f"{found.p:.2g}"]


# ------------------------------------------------------------------ the pictures


def draw(result: dict[str, Any], directory: Path) -> list[Path]:
    """Draw two pictures from the JSON alone, and return their paths: curves with their lags, and exponents."""
    pictures = [directory / "subaging_mnist.png", directory / "subaging_mnist_mu.png"]
    runs = [run for run in result["runs"] if run["layers"] == AUTHORS]
    figure = new_figure(3, width=5.6)
    ax = figure.axes[2]
    for left, run in zip(figure.axes, runs, strict=False):
        subaging.draw_displacements(
            run, [THRESHOLD], left, f"{run['layers']}, {run['order']}, {run['n_replica']} replicas"
        )
        colour, marker = STYLES[run["order"]]
        times, mu = np.array(run["waiting_times"]), run["mu"]["threshold"]
        slope = number(mu, run["mu_error"]["threshold"]).replace("+-", "±")
        ax.plot(
            times,
            np.array(run["lag_to_threshold"], dtype=np.float64),
            marker,
            color=colour,
            label=f"{run['order']}: slope {slope}",
        )
        if mu is not None:
            ax.plot(times, np.exp(run["intercept"]) * times**mu, color=colour, linewidth=1)
    finish(ax, "waiting time $t_w$ (steps)", r"lag $t^*$ to $\Delta^* = 10^{-3}$ (steps)")
    ax.set_yscale("log")
    figure.savefig(pictures[0])

    figure = new_figure(3, width=5.6)
    left, middle, right = figure.axes
    for run in runs:
        for name, style in (("loss", "-"), ("accuracy", "--")):
            series = run["series"][f"train_{name}"]
            steps, values = np.array(series["steps"]), np.array(series["values"])
            label, colour = f"{name}, {run['order']}", STYLES[run["order"]][0]
            left.plot(steps[steps > 0], values[steps > 0], style, color=colour, linewidth=1.2, label=label)
    finish(left, "step", f"training loss and accuracy of {runs[0]['layers']}")
    for order, (colour, marker) in STYLES.items():
        for ax, hidden in ((middle, SAME_SIZE), (right, SIZES)):
            those = chosen(result["runs"], hidden, order)
            known = [run for run in those if None not in (run["mu"]["threshold"], run["mu_error"]["threshold"])]
            mu, errors = ([run[name]["threshold"] for run in known] for name in ("mu", "mu_error"))
            x = [run["layers"][4:-3] if ax is middle else run["n_parameters"] for run in known]
            ax.errorbar(x, mu, errors, fmt=marker, color=colour, capsize=3, label=order)
    middle.set_xlabel("hidden layers, at N = 4,045 within 5 %")
    grid(middle)
    middle.legend(fontsize=8)
    finish(right, "number of parameters N", "")
    for ax in (middle, right):
        ax.set(ylabel=r"$\mu$ of $t^* \sim t_w^\mu$", ylim=(0, 1.2))
    figure.savefig(pictures[1])
    return pictures


def main() -> None:
    """Train all networks, several at once, and write the results."""
    quick = f"three networks for {QUICK_STEPS:,} steps, in a minute"
    options = options_of("subaging_mnist", __doc__, quick, needs_mnist=True)
    runs, steps, images = (QUICK_RUNS, QUICK_STEPS, QUICK_IMAGES) if options.quick else (RUNS, STEPS, IMAGES)
    if not options.analyse:
        mnist(options.data_dir)  # download it before several processes need it

    def task(run: Run) -> Callable[[], None]:
        return partial(train, run, steps, images, options.data_dir, options.out)

    conclude(subaging.results(options, runs, steps, task, analysed), options, tables, draw)


if __name__ == "__main__":
    main()

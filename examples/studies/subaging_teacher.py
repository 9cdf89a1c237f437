r"""Subaging on a simple problem, under- to over-parametrised: exponent, final loss and verdict against N.

Herrera Segura et al. 2022 (arXiv 2209.02517) see subaging in under-parametrised networks: the lag t* at which the
displacement reaches a threshold grows as :math:`t_w^\mu` with :math:`\mu < 1`. Their own simple problem is not known
here. This is another one: 1,000 points on a hypersphere in 20 dimensions. A small random network, the teacher, puts
them into two classes. Then a fifth of them get the wrong label, which can only be learnt by heart. Students 20-h-h-2,
tanh, of more and more hidden units h learn them under the protocol of the paper's MNIST example: plain SGD at learning
rate 0.05, minibatches of 50, an L2 term of strength 1e-4, Glorot-uniform weights, biases of zero, 200,000 steps, ten
waiting times from 10^3 to 10^5 and twenty lags from 10 to 10^5. Eight replicas of each student are trained as one, with
their own minibatches that are reshuffled in every pass. Two students are also trained without the L2 term.

``python -m examples.studies.subaging_teacher`` takes about a quarter of an hour on two cores and writes the results
that are committed. ``--quick`` takes less than half a minute, and writes beside its records.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, TensorDataset

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
from lightning_glassy.analysis import (
    AgingExponent,
    Curves,
    NotEnoughDataError,
    aging_exponent,
    relaxation_curves,
    verdict,
)
from lightning_glassy.analysis.exponents import threshold_fit
from lightning_glassy.analysis.plateaus import fast_levels
from lightning_glassy.plotting import new_figure, plot_curves

STEPS, QUICK_STEPS = 200_000, 3_000
N_REPLICA = 8
BATCH_SIZE, LEARNING_RATE, L2 = 50, 0.05, 1e-4
DIMENSION, N_TRAIN, N_TEST, TURNED_OVER = 20, 1_000, 10_000, 0.2
TEACHER = 5
"""Hidden units of the teacher."""
THRESHOLDS = (1e-3, 1e-2, 1e-1)
"""Displacements to be reached. The first is the threshold of the paper."""
LEARNT = 0.999
"""Training accuracy, the mean over the replicas, from which on a student has learnt all."""
DRAWN = (4, 32)
"""Hidden units of an under- and an over-parametrised student, whose curves are drawn."""


@dataclass(frozen=True)
class Run:
    """One student, and the strength of its L2 term."""

    hidden: int
    l2: float = L2

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of all layers."""
        return DIMENSION, self.hidden, self.hidden, 2

    @property
    def n_parameters(self) -> int:
        """Number of weights and biases."""
        return n_weights(self.sizes)

    @property
    def name(self) -> str:
        """Name of the directory."""
        return f"{layers_of(self.sizes)}{'' if self.l2 else '-no-l2'}"


RUNS = (
    *(Run(hidden) for hidden in (2, 4, 6, 8, 10, 12, 16, 32)),
    *(Run(hidden, l2=0.0) for hidden in DRAWN),
)
QUICK_RUNS = (Run(4), Run(32))


def problem() -> tuple[TensorDataset, TensorDataset]:
    """Return the training set with some wrong labels, and the test set with the labels of the teacher."""
    generator = torch.Generator().manual_seed(0)
    first = 2 * torch.randn(DIMENSION, TEACHER, generator=generator) / DIMENSION**0.5
    second = torch.randn(TEACHER, generator=generator)
    x = torch.randn(N_TRAIN + N_TEST, DIMENSION, generator=generator)
    x *= DIMENSION**0.5 / x.norm(dim=1, keepdim=True)
    y = ((x @ first).tanh() @ second > 0).long()
    wrong = torch.rand(N_TRAIN, generator=generator) < TURNED_OVER
    learnt = TensorDataset(x[:N_TRAIN], torch.where(wrong, 1 - y[:N_TRAIN], y[:N_TRAIN]))
    return learnt, TensorDataset(x[N_TRAIN:], y[N_TRAIN:])


def train(run: Run, steps: int, out: Path) -> float:
    """Train the replicas of one student, save the record in ``out/<name>``, and return the seconds it took."""
    quiet()
    seed_everything(0, verbose=False)
    start, (data, test_set) = time.perf_counter(), problem()
    schedule = LogTimeSchedule.preset("subaging", steps)
    model = Replicas(
        partial(fully_connected, run.sizes), N_REPLICA, learning_rate=LEARNING_RATE, own_minibatches=True, l2=run.l2
    )
    monitor = AgingMonitor(schedule, dirpath=place_for(run.name, out), summary=False)
    of_loss = LogTimeSchedule.logspaced(steps, waiting_times_per_decade=10).waiting_times
    test = {"test": DataLoader(test_set, batch_size=N_TEST)}
    callbacks: list[Callback] = [
        monitor,
        LogTimeEvaluator(at_steps(*of_loss, steps), loaders=test, batch_size=N_TRAIN, loss=losses, summary=False),
        GradientNoiseMonitor(at_steps(*schedule.waiting_times, steps), loss=losses, summary=False),
        Progress(run.name),
    ]
    train_on_cpu(model, steps, callbacks, loader(data, steps, BATCH_SIZE, range(N_REPLICA)))
    return time.perf_counter() - start


def analysed(run: Run, record: AgingRecord, seconds: float) -> dict[str, Any]:
    """Return the results of one student."""
    times, curves, judged = record.waiting_times, relaxation_curves(record), verdict(record)
    accuracy = record.one_time("train_accuracy")
    learnt = accuracy[0][accuracy[1] >= LEARNT]
    fit = _fit(record, THRESHOLDS)
    return {
        "layers": layers_of(run.sizes),
        "n_parameters": record.n_parameters["all"],
        "l2": run.l2,
        "n_replica": curves.n_replica,
        "seconds": round(seconds),
        "learnt_at": learnt[0] if len(learnt) else None,
        **_collapses(fit),
        "thresholds": [_at_threshold(record, curves, threshold) for threshold in THRESHOLDS],
        "doubts": [str(fit)] if isinstance(fit, NotEnoughDataError) else fit.warnings,
        "verdict": judged.kind,
        "phase": judged.phase,
        "observable": judged.observable,
        "stops_at": judged.stops_at,
        "rate": [(rate.first, rate.last, rate.rate, rate.low, rate.high) for rate in judged.rates],
        "evidence": judged.evidence,
        "waiting_times": times,
        "lags": record.lags,
        "msd": curves.mean(),
        "series": {
            name: dict(zip(("steps", "values"), record.one_time(name), strict=True))
            for name in (
                *("train_loss", "train_loss_error", "train_accuracy", "train_accuracy_error"),
                *("test_accuracy", "test_accuracy_error", "gradient_noise"),
            )
        },
    }


def _fit(record: AgingRecord, thresholds: Sequence[float]) -> AgingExponent | NotEnoughDataError:
    """Return the exponent from all waiting times, or the error that tells why there is none."""
    window = int(record.waiting_times[0]), int(record.waiting_times[-1])
    try:
        return aging_exponent(record, thresholds=[*thresholds], window=window)
    except NotEnoughDataError as error:
        return error


def _collapses(fit: AgingExponent | NotEnoughDataError) -> dict[str, Any]:
    """Return the exponents by collapse in both scaling variables, None if there are none."""
    methods = {"effective time": EFFECTIVE, "plain": PLAIN}
    if isinstance(fit, NotEnoughDataError):
        nothing = dict.fromkeys(methods)
        return {"mu": nothing, "mu_error": nothing, "scatter": nothing, "interval": None}
    return {
        "mu": {name: fit.estimates[method] for name, method in methods.items()},
        "mu_error": {name: fit.standard_errors.get(method) for name, method in methods.items()},
        "scatter": {name: fit.scatter[method] for name, method in methods.items()},
        "interval": fit.interval,
    }


def _at_threshold(record: AgingRecord, curves: Curves, threshold: float) -> dict[str, Any]:
    """Return the slope of the lags to one threshold with its error over the replicas, and the lags."""
    law, alone = threshold_fit(curves, threshold), _fit(record, [threshold])
    error = np.nan if isinstance(alone, NotEnoughDataError) else alone.standard_errors.get("threshold", np.nan)
    return {
        "threshold": threshold,
        "mu": law.mu,
        "error": error,
        "in_plateau": bool(threshold < fast_levels(curves.lags, curves.mean()).max()),
        "lags": law.crossings.lags,
        "local_slopes": law.local_slopes,
        "early": law.crossings.early.sum(),
        "late": law.crossings.late.sum(),
    }


# ------------------------------------------------------------------ the page


def tables(result: dict[str, Any]) -> str:
    """Return the results in Markdown, from the JSON alone."""
    runs, where = result["runs"], result["machine"]
    mu_of = [f"mu at {_power(threshold)}" for threshold in THRESHOLDS]
    parts = [
        f"{result['steps']:,} steps each; {result['seconds'] / 60:.0f} minutes for everything, {result['jobs']} at a "
        f"time, each on one core of {where['cpu']}, torch {where['torch']}, {where['date']}. All errors are standard "
        f"errors over {runs[0]['n_replica']} replicas.",
        "**What was learnt**: loss, accuracy and error at the end; the first step, of those noted, at which 99.9 % of "
        "the training set were learnt; and the strength of the gradient noise at the end:",
        table(
            ["student", "N", "L2", "train loss", "train accuracy", "99.9 % at step", "test error", "gradient noise"],
            [_learnt(run) for run in runs],
        ),
        "**The exponent** by the lag to three thresholds (in brackets, how many of the ten waiting times reach it "
        "after their first lag: fewer than four give none; *noise*: the threshold lies below the level of the gradient "
        "noise, and tells nothing of aging), and by collapse in two scaling variables (in brackets, by how much the "
        "curves miss a common one); the interval is the one that `aging_exponent` answers for:",
        table(
            ["student", "N", "L2", *mu_of, "mu, effective time", "mu, t/t_w^mu", "95 % interval"],
            [_exponents(run) for run in runs],
        ),
        "**The verdict** of the package, the observable that decided it, and the aging rate of that observable in the "
        "last decade of waiting times, with its 95 % interval:",
        table(
            ["student", "N", "L2", "verdict", "phase", "observable", "aging rate at the end"],
            [_judged(run) for run in runs],
        ),
        "**What `aging_exponent` says to doubt**, and of which students (by their N; * without L2), besides that "
        f"there are {runs[0]['n_replica']} replicas where 16 are recommended:",
        table(["doubt", "students"], [[doubt, ", ".join(of)] for doubt, of in _doubts(runs).items()]),
    ]
    return "\n\n".join(parts)


def _name(run: dict[str, Any]) -> list[str]:
    return [run["layers"], f"{run['n_parameters']:,}", _power(run["l2"]) if run["l2"] else "none"]


def _learnt(run: dict[str, Any]) -> list[str]:
    return [
        *_name(run),
        with_error(*_end(run, "train_loss"), digits=4),
        with_error(*_end(run, "train_accuracy"), digits=4),
        "never" if run["learnt_at"] is None else f"{run['learnt_at']:,}",
        with_error(*_missed(run, "test_accuracy")),
        f"{run['series']['gradient_noise']['values'][-1]:.2g}",
    ]


def _exponents(run: dict[str, Any]) -> list[str]:
    collapses = [
        "none" if mu is None else f"{with_error(mu, run['mu_error'][name])} ({run['scatter'][name]:.0%})"
        for name, mu in run["mu"].items()
    ]
    interval = "none" if run["interval"] is None else "{:.2f} ... {:.2f}".format(*run["interval"])
    return [*_name(run), *map(_of_threshold, run["thresholds"]), *collapses, interval]


def _of_threshold(law: dict[str, Any]) -> str:
    n = sum(lag is not None for lag in law["lags"])
    if law["in_plateau"]:
        return "noise"
    if law["mu"] is None:
        return f"none ({n})"
    return f"{with_error(law['mu'], law['error'])} ({n})"


def _doubts(runs: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the students by doubt, without the numbers in it. The counts already show unreached thresholds."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for doubt in run["doubts"]:
            words = re.split(r" \(|: |; ", doubt)[0]
            if words != "thresholds" and not words.endswith("replicas"):
                found.setdefault(words, []).append(f"{run['n_parameters']:,}" + ("" if run["l2"] else "*"))
    return found


def _judged(run: dict[str, Any]) -> list[str]:
    stop = "" if run["stops_at"] is None else f" at step {run['stops_at']:,}"
    first, last, rate, low, high = run["rate"][1] if run["rate"] else [None] * 5
    late = "-" if rate is None else f"{rate:.2f} ({low:.2f} ... {high:.2f}), from t_w = {first:,} to {last:,}"
    return [*_name(run), run["verdict"] + stop, run["phase"] or "not told", run["observable"], late]


def _end(run: dict[str, Any], name: str) -> tuple[float, float]:
    """Return the last value of a series, and its error."""
    return run["series"][name]["values"][-1], run["series"][f"{name}_error"]["values"][-1]


def _missed(run: dict[str, Any], name: str) -> tuple[float, float]:
    """Return one minus an accuracy at the end, and its error."""
    accuracy, error = _end(run, name)
    return 1 - accuracy, error


def _power(value: float) -> str:
    return f"10^{np.log10(value):.0f}"


# ------------------------------------------------------------------ the pictures


def draw(result: dict[str, Any], directory: Path) -> list[Path]:
    """Draw two pictures from the JSON alone, and return their paths: curves, and exponents, losses and errors."""
    pictures = [directory / "subaging_teacher.png", directory / "subaging_teacher_n.png"]
    drawn = [run for run in result["runs"] if run["l2"] and run["layers"] in [_layers(h) for h in DRAWN]]
    figure = new_figure(len(drawn))
    for ax, run in zip(figure.axes, drawn, strict=False):
        times, lags = np.array(run["waiting_times"]), np.array(run["lags"])
        plot_curves(Curves("msd", times, lags, np.array(run["msd"], dtype=np.float64)[None]), ax=ax)
        for threshold in THRESHOLDS:
            ax.axhline(threshold, color="0.4", linestyle=":", linewidth=1)
        accuracy = _end(run, "train_accuracy")[0]
        ax.set_title(f"{run['layers']}, N = {run['n_parameters']:,}, train accuracy {accuracy:.3f}", fontsize=10)
        ax.set_ylabel(r"mean squared displacement $\Delta(t_w, t_w+t)$")
    _same_height(figure.axes[: len(drawn)])
    figure.savefig(pictures[0])

    figure = new_figure(3, width=5.6)
    left, middle, right = figure.axes
    runs = [run for run in result["runs"] if run["l2"]]
    bare = [run for run in result["runs"] if not run["l2"]]
    for k, (threshold, colour) in enumerate(zip(THRESHOLDS, ("tab:blue", "tab:cyan", "tab:gray"), strict=True)):
        label = rf"threshold $\Delta^* = 10^{{{np.log10(threshold):.0f}}}$"
        _against_n(left, runs, [_slope(run["thresholds"][k]) for run in runs], colour, label)
    for name, colour, label in (
        ("effective time", "tab:red", r"collapse in $\lambda$"),
        ("plain", "tab:orange", r"collapse in $t/t_w^\mu$"),
    ):
        _against_n(left, runs, [(run["mu"][name], run["mu_error"][name]) for run in runs], colour, label)
    left.axhline(1, color="0.4", linestyle=":", linewidth=1)
    left.set_ylabel(r"aging exponent $\mu$")
    _against_n(middle, runs, [_end(run, "train_loss") for run in runs], "tab:blue", "L2 term $10^{-4}$")
    _against_n(middle, bare, [_end(run, "train_loss") for run in bare], "tab:orange", "without", marker="s", line="")
    middle.set_yscale("log")
    middle.set_ylabel("training loss at the end")
    _against_n(right, runs, [_missed(run, "train_accuracy") for run in runs], "tab:blue", "training set")
    _against_n(
        right, runs, [_missed(run, "test_accuracy") for run in runs], "tab:red", "test set, without wrong labels"
    )
    right.set_ylabel("fraction not learnt at the end")
    low = max((run["n_parameters"] for run in runs if run["learnt_at"] is None), default=None)
    high = min((run["n_parameters"] for run in runs if run["learnt_at"] is not None), default=None)
    for ax in figure.axes:
        if low is not None and high is not None:
            ax.axvspan(low, high, color="0.85", zorder=0, label="the crossing to 99.9 % learnt")
        ax.set_xscale("log")
        ax.set_xlabel("number of parameters $N$")
        ax.grid(True, which="major", linewidth=0.4, alpha=0.5)
        ax.legend(fontsize=8)
    figure.savefig(pictures[1])
    return pictures


def _slope(law: dict[str, Any]) -> tuple[float | None, float | None]:
    return (None, None) if law["in_plateau"] else (law["mu"], law["error"])


def _layers(hidden: int) -> str:
    return layers_of(Run(hidden).sizes)


def _against_n(
    ax: Any,
    runs: list[dict[str, Any]],
    values_and_errors: Sequence[tuple[float | None, float | None]],
    colour: str,
    label: str,
    *,
    marker: str = "o",
    line: str = "-",
) -> None:
    """Draw points with error bars. A run without a value has no point."""
    rows = [(run["n_parameters"], *pair) for run, pair in zip(runs, values_and_errors, strict=True)]
    points = np.array(rows, dtype=np.float64).reshape(-1, 3)
    n, values, errors = points[np.isfinite(points[:, 1])].T
    style = {"color": colour, "label": label, "fmt": marker + line, "markersize": 4, "linewidth": 1.2, "capsize": 3}
    ax.errorbar(n, values, np.nan_to_num(errors), **style)


def _same_height(axes: Sequence[Any]) -> None:
    low, high = min(ax.get_ylim()[0] for ax in axes), max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(low, high)


# ------------------------------------------------------------------ everything


def main() -> None:
    """Train all students, several at once, and write the results."""
    options = options_of("subaging_teacher", __doc__, quick=f"two students for {QUICK_STEPS:,} steps, in half a minute")
    runs, steps = (QUICK_RUNS, QUICK_STEPS) if options.quick else (RUNS, STEPS)
    # Start the longest training first.
    ordered = sorted(runs, key=lambda run: run.n_parameters, reverse=True)
    spent = several({run.name: partial(train, run, steps, options.out) for run in ordered}, options)
    seconds = spent.pop("runs")
    of_runs = [analysed(run, load_record(run.name, options.out, steps), seconds[run.name]) for run in runs]
    conclude("subaging_teacher", {"steps": steps, **spent, "runs": of_runs}, options, tables, draw)


if __name__ == "__main__":
    main()

r"""Subaging on a simple problem, under- to over-parametrised: exponent, final loss and verdict against N.

Herrera Segura et al. 2022 (arXiv 2209.02517) observe subaging in under-parametrised networks. Their own simple problem
is not known here. This study has another problem: 1,000 points on a hypersphere in 20 dimensions. A small random
network, the teacher, puts them into two classes. Then a fifth of them get the wrong label. A wrong label can only be
learnt by heart. Students 20-h-h-2 with more and more hidden units h learn the points, reshuffled, under the protocol of
the paper's MNIST example (:mod:`examples.studies.subaging`). Two students are also trained without the L2 term.

``python -m examples.studies.subaging_teacher`` takes about a quarter of an hour on two cores and writes the results
that are committed. ``--quick`` takes less than half a minute, and writes beside its records.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from examples.studies import subaging
from examples.studies.common import conclude, effort, number, options_of, table
from examples.studies.subaging import L2, Run, finish
from lightning_glassy import AgingRecord, LogTimeEvaluator
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
from lightning_glassy.plotting import new_figure

STEPS, QUICK_STEPS = 200_000, 3_000
DIMENSION, N_TRAIN, N_TEST, WRONG = 20, 1_000, 10_000, 0.2
TEACHER = 5
"""Hidden units of the teacher."""
THRESHOLDS = (1e-3, 1e-2, 1e-1)
"""Displacements to be reached. The first is the threshold of the paper."""
LEARNT = 0.999
"""Training accuracy, the mean over the replicas, from which on a student has learnt all."""
DRAWN = (4, 32)
"""Hidden units of an under- and an over-parametrised student, whose curves are drawn."""


def run_of(hidden: int, l2: float = L2) -> Run:
    """Return the run of a student with so many hidden units."""
    return Run((DIMENSION, hidden, hidden, 2), l2=l2)


RUNS = (*(run_of(hidden) for hidden in (2, 4, 6, 8, 10, 12, 16, 32)), *(run_of(hidden, l2=0.0) for hidden in DRAWN))
QUICK_RUNS = (run_of(4), run_of(32))


def problem() -> tuple[TensorDataset, TensorDataset]:
    """Return the training set with some wrong labels, and the test set with the labels of the teacher."""
    generator = torch.Generator().manual_seed(0)
    first = 2 * torch.randn(DIMENSION, TEACHER, generator=generator) / DIMENSION**0.5
    second = torch.randn(TEACHER, generator=generator)
    x = torch.randn(N_TRAIN + N_TEST, DIMENSION, generator=generator)
    x *= DIMENSION**0.5 / x.norm(dim=1, keepdim=True)
    y = ((x @ first).tanh() @ second > 0).long()
    wrong = torch.rand(N_TRAIN, generator=generator) < WRONG
    learnt = TensorDataset(x[:N_TRAIN], torch.where(wrong, 1 - y[:N_TRAIN], y[:N_TRAIN]))
    return learnt, TensorDataset(x[N_TRAIN:], y[N_TRAIN:])


def train(run: Run, steps: int, out: Path) -> None:
    """Train the replicas of one student, and save the record in ``out/<name>``."""
    data, test_set = problem()
    test = {"test": DataLoader(test_set, batch_size=N_TEST)}
    evaluator = LogTimeEvaluator(
        10, loaders=test, batch_size=N_TRAIN, loss=subaging.losses, summary=False, max_share=None
    )
    subaging.train(run, data, steps, out, evaluator)


def analysed(run: Run, record: AgingRecord, seconds: float) -> dict[str, Any]:
    """Return the results of one student."""
    curves, judged, fit = relaxation_curves(record), verdict(record), _fit(record, THRESHOLDS)
    steps, accuracy = record.one_time("train_accuracy")
    found = None if isinstance(fit, NotEnoughDataError) else fit
    return {
        "layers": run.layers,
        "n_parameters": record.n_parameters["all"],
        "l2": run.l2,
        "n_replica": curves.n_replica,
        "seconds": round(seconds),
        "learnt_at": next(iter(steps[accuracy >= LEARNT]), None),
        **subaging.collapses(found),
        "interval": found and found.interval,
        "thresholds": [_at_threshold(record, curves, threshold) for threshold in THRESHOLDS],
        "doubts": found.warnings if found else [str(fit)],
        "verdict": judged.kind,
        "phase": judged.phase,
        "observable": judged.observable,
        "stops_at": judged.stops_at,
        "rate": [(rate.first, rate.last, rate.rate, rate.low, rate.high) for rate in judged.rates],
        "evidence": judged.evidence,
        "waiting_times": record.waiting_times,
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
    """Return the exponent from all waiting times, or the error with the reason why there is none."""
    window = int(record.waiting_times[0]), int(record.waiting_times[-1])
    try:
        return aging_exponent(record, thresholds=[*thresholds], window=window)
    except NotEnoughDataError as error:
        return error


def _at_threshold(record: AgingRecord, curves: Curves, threshold: float) -> dict[str, Any]:
    """Return the slope of the lags to one threshold with its error over the replicas, and the lags."""
    law, alone = threshold_fit(curves, threshold), _fit(record, [threshold])
    return {
        "threshold": threshold,
        "mu": law.mu,
        "error": None if isinstance(alone, NotEnoughDataError) else alone.standard_errors.get("threshold"),
        "in_plateau": bool(threshold < fast_levels(curves.lags, curves.mean()).max()),
        "lags": law.crossings.lags,
        "local_slopes": law.local_slopes,
        "early": law.crossings.early.sum(),
        "late": law.crossings.late.sum(),
    }


# ------------------------------------------------------------------ the page


def tables(result: dict[str, Any]) -> str:
    """Return the results in Markdown, from the JSON alone."""
    runs, rows = result["runs"], [_row(run) for run in result["runs"]]
    student = "student = {layers} | N = {n_parameters:,} | L2 = {l2 term} | "
    by_threshold = " | ".join(f"mu at {_power(t)} = {{mu at {_power(t)}}}" for t in THRESHOLDS)
    return "\n\n".join(
        [
            f"{result['steps']:,} steps each; {effort(result)} All errors are standard errors over "
            f"{runs[0]['n_replica']} replicas.",
            *subaging.grid_note(result),
            "**Learning**: loss, accuracy and error at the end, the first measured step at which 99.9 % of the "
            "training set were learnt, and the strength of the gradient noise at the end:",
            table(
                f"{student}train loss = {{loss}} | train accuracy = {{accuracy}} | 99.9 % at step = {{learnt}} | "
                "test error = {test error} | gradient noise = {noise:.2g}",
                rows,
            ),
            "**The exponent** by the lag to three thresholds, and by collapse in two scaling variables. In brackets is "
            "the number of the ten waiting times that reach the threshold after their first lag. Fewer than four give "
            "no exponent. *noise*: the threshold lies below the level of the gradient noise, and contains no "
            "information on aging. For a collapse, the distance of the curves from a common curve is in brackets. "
            "Above 5 %, `aging_exponent` states no exponent, and the errors are only the scatter of the fits between "
            "replicas:",
            table(
                f"{student}{by_threshold} | mu, effective time = {{by effective time}} | mu, t/t_w^mu = {{by plain}}",
                rows,
            ),
            "**The verdict** of the package, the observable that decided it, and the aging rate of that observable in "
            "the last decade of waiting times, with its 95 % interval:",
            table(
                f"{student}verdict = {{verdict}}{{stop}} | phase = {{told}} | observable = {{observable}} | "
                "aging rate at the end = {late rate}",
                rows,
            ),
            "**Doubts of `aging_exponent`**, and their students (by their N, * without L2). One more doubt is common: "
            f"there are {runs[0]['n_replica']} replicas, and 16 are recommended:",
            table("doubt = {} | students = {}", [(doubt, ", ".join(of)) for doubt, of in _doubts(runs).items()]),
        ]
    )


def _row(run: dict[str, Any]) -> dict[str, Any]:
    """Return the results of a student with the texts of the tables."""
    texts = {
        "l2 term": _power(run["l2"]) if run["l2"] else "none",
        "loss": number(*_end(run, "train_loss"), ".4f"),
        "accuracy": number(*_end(run, "train_accuracy"), ".4f"),
        "learnt": "never" if run["learnt_at"] is None else f"{run['learnt_at']:,}",
        "test error": number(*_missed(run, "test_accuracy")),
        "noise": run["series"]["gradient_noise"]["values"][-1],
        "stop": "" if run["stops_at"] is None else f" at step {run['stops_at']:,}",
        "told": run["phase"] or "not told",
        "late rate": "-",
    }
    for law in run["thresholds"]:
        value = "none" if law["mu"] is None else number(law["mu"], law["error"])
        counted = f"{value} ({sum(lag is not None for lag in law['lags'])})"
        texts[f"mu at {_power(law['threshold'])}"] = "noise" if law["in_plateau"] else counted
    for name, mu in run["mu"].items():
        found = "none" if mu is None else f"{number(mu, run['mu_error'][name])} ({run['scatter'][name]:.0%})"
        texts[f"by {name}"] = found
    if run["rate"]:
        late = "{2:.2f} ({3:.2f} ... {4:.2f}), from t_w = {0:,} to {1:,}"
        texts["late rate"] = late.format(*run["rate"][1])
    return run | texts


def _power(value: float) -> str:
    return f"10^{np.log10(value):.0f}"


def _doubts(runs: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the students by doubt, without numbers. Leave out unreached thresholds, because the counts show them."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for doubt in run["doubts"]:
            words = re.split(r" \(|: |; ", doubt)[0]
            if words != "thresholds" and not words.endswith("replicas"):
                found.setdefault(words, []).append(f"{run['n_parameters']:,}" + ("" if run["l2"] else "*"))
    return found


def _end(run: dict[str, Any], name: str) -> tuple[float, float]:
    """Return the last value of a series, and its error."""
    return run["series"][name]["values"][-1], run["series"][f"{name}_error"]["values"][-1]


def _missed(run: dict[str, Any], name: str) -> tuple[float, float]:
    """Return one minus an accuracy at the end, and its error."""
    accuracy, error = _end(run, name)
    return 1 - accuracy, error


# ------------------------------------------------------------------ the pictures


def draw(result: dict[str, Any], directory: Path) -> list[Path]:
    """Draw two pictures from the JSON alone, and return their paths: curves, and exponents, losses and errors."""
    pictures = [directory / "subaging_teacher.png", directory / "subaging_teacher_n.png"]
    runs = [run for run in result["runs"] if run["l2"]]
    bare = [run for run in result["runs"] if not run["l2"]]
    drawn = [run for run in runs if run["layers"] in [run_of(hidden).layers for hidden in DRAWN]]
    figure = new_figure(len(drawn))
    axes = figure.axes[: len(drawn)]
    for ax, run in zip(axes, drawn, strict=True):
        accuracy = _end(run, "train_accuracy")[0]
        title = f"{run['layers']}, N = {run['n_parameters']:,}, train accuracy {accuracy:.3f}"
        subaging.draw_displacements(run, THRESHOLDS, ax, title)
    limits = [ax.get_ylim() for ax in axes]
    for ax in axes:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    figure.savefig(pictures[0])

    figure = new_figure(3, width=5.6)
    left, middle, right = figure.axes
    for k, (threshold, colour) in enumerate(zip(THRESHOLDS, ("tab:blue", "tab:cyan", "tab:gray"), strict=True)):
        laws = [run["thresholds"][k] for run in runs]
        slopes = [(None, None) if law["in_plateau"] else (law["mu"], law["error"]) for law in laws]
        _against_n(left, runs, slopes, colour, rf"threshold $\Delta^* = 10^{{{np.log10(threshold):.0f}}}$")
    for name, colour, variable in (("effective time", "tab:red", r"\lambda"), ("plain", "tab:orange", r"t/t_w^\mu")):
        mu = [(run["mu"][name], run["mu_error"][name]) for run in runs]
        _against_n(left, runs, mu, colour, f"collapse in ${variable}$")
    left.axhline(1, color="0.4", linestyle=":", linewidth=1)
    _against_n(middle, runs, [_end(run, "train_loss") for run in runs], "tab:blue", "L2 term $10^{-4}$")
    _against_n(middle, bare, [_end(run, "train_loss") for run in bare], "tab:orange", "without", "s")
    middle.set_yscale("log")
    for name, colour, words in (
        ("train", "tab:blue", "training set"),
        ("test", "tab:red", "test set, without wrong labels"),
    ):
        _against_n(right, runs, [_missed(run, f"{name}_accuracy") for run in runs], colour, words)
    # The crossing lies between the largest student that never learns all, and the smallest that does.
    never, learnt = ([run["n_parameters"] for run in runs if (run["learnt_at"] is None) is no] for no in (True, False))
    labels = (r"aging exponent $\mu$", "training loss at the end", "fraction not learnt at the end")
    for ax, label in zip(figure.axes, labels, strict=True):
        if never and learnt:
            ax.axvspan(max(never), min(learnt), color="0.85", zorder=0, label="the crossing to 99.9 % learnt")
        finish(ax, "number of parameters $N$", label)
    figure.savefig(pictures[1])
    return pictures


def _against_n(ax: Any, runs: Any, values_and_errors: Any, colour: str, label: str, marker: str = "o-") -> None:
    """Draw points with error bars. A run without a value has no point."""
    rows = [(run["n_parameters"], *pair) for run, pair in zip(runs, values_and_errors, strict=True)]
    points = np.array(rows, dtype=np.float64).reshape(-1, 3)
    n, values, errors = points[np.isfinite(points[:, 1])].T
    style = {"color": colour, "label": label, "fmt": marker, "markersize": 4, "linewidth": 1.2, "capsize": 3}
    ax.errorbar(n, values, np.nan_to_num(errors), **style)


def main() -> None:
    """Train all students, several at once, and write the results."""
    options = options_of("subaging_teacher", __doc__, f"two students for {QUICK_STEPS:,} steps, in half a minute")
    runs, steps = (QUICK_RUNS, QUICK_STEPS) if options.quick else (RUNS, STEPS)

    def task(run: Run) -> Callable[[], None]:
        return partial(train, run, steps, options.out)

    conclude(subaging.results(options, runs, steps, task, analysed), options, tables, draw)


if __name__ == "__main__":
    main()

r"""The networks of Baity-Jesi et al. 2018 (arXiv 1803.06969) on MNIST, by the protocol of their released program.

The released runs have learning rates lr of 0.001 to 0.5, minibatches of B = 10, 100 and 1000, momentum 0.5, no weight
decay, and T = 10^6 / (lr B) steps. They have 50 waiting times from 10 and 100 lags from 1, both to T/2. The initial
weights are torch's own. The runs here have B = 100. A run that would take too long ends earlier. The
protocol then gives its waiting times and lags for its own number of steps.

The networks, the callbacks and the rules of the statements are the same as in
:mod:`examples.studies.comparing_dynamics`. The rules were fixed before these runs. Three more questions are about the
strength D of the gradient noise as the released program computes it, about momentum, and about weight decay (L2).

The released program uses a fraction f = 0.1 of the batches, and divides both sums of gradients by the number of *all*
batches. With the mean over the used batches,

.. math:: D_{theirs} = f \langle\|g\|^2\rangle - f^2 \|\langle g\rangle\|^2
          = f \frac{n-1}{n} D + f (1-f) \|\langle g\rangle\|^2.

D is the unbiased strength of this package over n batches. The series ``gradient_noise`` and ``gradient_norm2`` of a
record give both. All gradients are of the loss without the L2 term.

``python -m examples.studies.released_protocol`` takes about an hour of one core and writes the results that are
committed. ``--quick`` takes about a minute, and writes beside its records.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import cleandoc
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.studies import common
from examples.studies.common import mnist, table
from examples.studies.comparing_dynamics import (
    FEW,
    FULLY,
    MANY,
    SMALL,
    System,
    analysed_system,
    cell,
    draw_networks,
    panels,
    train,
)
from examples.studies.statements import DIFFUSIVE, OF_NETWORKS, STRAIGHT, Ages, ages, decide_network, off_line
from lightning_glassy import AgingRecord, LogTimeSchedule
from lightning_glassy.analysis import noise_clock
from lightning_glassy.observables import Array
from lightning_glassy.plotting.axes import grid

# ------------------------------------------------------------------ the runs

USED = 0.1  # fraction of the batches that the released program uses for the gradients
LOSS_TIMES = 100  # steps at which the paper measures the loss
LATE = 20  # the late curves have waiting times from T / LATE
SHORT = 100  # a lag in steps, shorter than a pass over MNIST


@dataclass(frozen=True)
class Run(System):
    """A training by the released protocol."""

    @property
    def name(self) -> str:
        """Name of the directory."""
        kind = self.kind.lower().replace(", m = ", "-").replace(" ", "-").replace(",", "")
        return f"{kind}-lr-{self.learning_rate:g}-momentum-{self.momentum:g}-l2-{self.weight_decay:g}"

    @property
    def settings(self) -> str:
        """Settings in words."""
        l2 = f", L2 {self.weight_decay:g}" if self.weight_decay else ""
        return f"lr {self.learning_rate:g}, momentum {self.momentum:g}{l2}"

    @property
    def title(self) -> str:
        """Title of the pictures, each with one setting."""
        return self.kind

    @property
    def protocol_steps(self) -> int:
        """Number of steps T of the protocol."""
        return round(1e6 / (self.learning_rate * self.batch_size))

    @property
    def schedule(self) -> LogTimeSchedule:
        """Waiting times and lags of the protocol, for the number of steps of this run."""
        return LogTimeSchedule.preset("baity-jesi", self.steps)

    @property
    def loss_times(self) -> list[int]:
        """Steps at which loss and accuracy are measured."""
        return sorted({0, *np.geomspace(1, self.steps, LOSS_TIMES).round().astype(int).tolist()})

    @property
    def noise_times(self) -> list[int]:
        """Steps at which D is measured: the waiting times, and steps before and after them."""
        late = np.geomspace(self.steps // 2, self.steps, 6).round().astype(int).tolist()
        return sorted({1, 2, 5, *self.schedule.waiting_times, *late})


_TOY = Run("MNIST", FEW, 100, 0.1, 100_000, evaluated=10_000, momentum=0.5)
_FULLY = replace(_TOY, kind=FULLY)
RUNS = (
    *(replace(_TOY, momentum=0.0), _TOY, replace(_TOY, weight_decay=5e-4)),
    *(replace(_FULLY, momentum=0.0), _FULLY, replace(_FULLY, weight_decay=5e-4)),
    replace(_TOY, kind=SMALL, steps=15_000, evaluated=5000),
    replace(_FULLY, learning_rate=0.01, steps=100_000),
    replace(_TOY, kind=MANY, steps=2000, evaluated=1000),
)
QUICK_RUNS = tuple(replace(RUNS[k], data="digits", steps=200, evaluated=None) for k in (0, 1, 4, 5))


def train_run(run: Run, data_dir: Path, out: Path) -> None:
    """Train one network at the times of the protocol, and save its record in ``out/<name>``."""
    train(run, data_dir, out, run.schedule, run.loss_times, run.noise_times)


# ------------------------------------------------------------------ the noise of the released program


def their_noise(noise: Array, norm2: Array, n: int, used: float = USED) -> Array:
    r"""Return D as the released program computes it.

    Args:
        noise: D of this package, :math:`\frac{n}{n-1}(\langle\|g\|^2\rangle - \|\langle g\rangle\|^2)`.
        norm2: :math:`\|\langle g\rangle\|^2` over the same batches.
        n: number of batches.
        used: fraction f of the batches that the released program uses.
    """
    return used * (n - 1) / n * noise + used * (1 - used) * norm2


def noise_of(record: AgingRecord) -> tuple[NDArray[np.int64], Array, Array]:
    """Return the steps at which D was measured, D of this package, and D of the released program."""
    steps, noise = record.one_time("gradient_noise")
    at, norm2 = record.one_time("gradient_norm2")
    if not np.array_equal(at, steps):
        raise ValueError("gradient_noise and gradient_norm2 were not measured at the same steps")
    return steps, noise, their_noise(noise, norm2, record.meta["GradientNoiseMonitor"]["batches"])


def with_their_noise(record: AgingRecord) -> AgingRecord:
    """Return a copy of a record with D of the released program in place of D of this package."""
    other = copy.deepcopy(record)
    steps, _, theirs = noise_of(record)
    for step, value in zip(steps.tolist(), theirs.tolist(), strict=True):
        other.append_one_time("gradient_noise", step, value)
    return other


# ------------------------------------------------------------------ the results of a run


def late_line(record: AgingRecord, first: float) -> dict[str, Any]:
    """Compare the curves from a waiting time on with one straight line, by the limits of the rule on this line.

    The rule itself takes the curves at the bottom of the loss.
    """
    off, found = off_line(record, first), ages(record, first, over_noise=True)
    if off is None or found is None:
        return {"off": None, "exponent": None, "line": None}
    straight = off[0] <= STRAIGHT and DIFFUSIVE[0] <= found.exponent <= DIFFUSIVE[1]
    return {"off": off[0], "exponent": found.exponent, "line": straight}


def late_motion(run: Run, record: AgingRecord) -> dict[str, Any]:
    r"""Return the motion at the end of a run.

    The free motion :math:`(\eta/(1-\beta))^2 \int D\,dt'/N` is the displacement of weights that feel independent
    gradient noise of strength D alone, with learning rate :math:`\eta` and momentum :math:`\beta`.
    """
    first = run.steps / LATE
    rates = {name: ages(record, first, over_noise=noise) for name, noise in (("plain", False), ("over_noise", True))}
    times, lags, msd = record.waiting_times, record.lags, record.msd()
    row = len(times) - 1
    long = int(np.flatnonzero(np.isfinite(msd[row]))[-1])
    short = int(np.abs(lags - min(SHORT, lags[long])).argmin())
    speed = run.learning_rate / (1 - run.momentum)
    free = speed**2 * noise_clock(record)[row] / record.n_parameters["all"]
    return {
        "waiting_time": int(times[row]),
        "short_lag": int(lags[short]),
        "long_lag": int(lags[long]),
        "msd": float(msd[row, long]),
        "diffusion": float(msd[row, long] / (2 * lags[long])),
        "over_free_short": float(msd[row, short] / free[short]),
        "over_free_long": float(msd[row, long] / free[long]),
        **{f"rate_{name}": _rate(found) for name, found in rates.items()},
        "exponent": None if rates["plain"] is None else rates["plain"].exponent,
    }


def _rate(found: Ages | None) -> dict[str, float] | None:
    return None if found is None else {"rate": found.rate, "error": found.error}


def analysed_run(run: Run, record: AgingRecord, seconds: float) -> dict[str, Any]:
    """Return the results of one run: its series, the findings with both D, and its late motion."""
    theirs, first = with_their_noise(record), run.steps / LATE
    found = analysed_system(run, record, seconds)
    steps, noise, other = noise_of(record)
    norm2 = record.one_time("gradient_norm2")[1]
    return {
        **found,
        "settings": run.settings,
        "momentum": run.momentum,
        "weight_decay": run.weight_decay,
        "protocol_steps": run.protocol_steps,
        "n_times": len(record.waiting_times),
        "n_lags": len(record.lags),
        "noise_batches": record.meta["GradientNoiseMonitor"]["batches"],
        "series": found["series"] | {"gradient_norm2": {"steps": steps, "values": norm2}},
        "noise_ratio": {"steps": steps, "values": other / noise},
        "findings_theirs": decide_network(theirs, few_weights=run.kind == FEW),
        "late_line": {"ours": late_line(record, first), "theirs": late_line(theirs, first)},
        "late": late_motion(run, record),
    }


# ------------------------------------------------------------------ the page


def tables(result: dict[str, Any]) -> str:
    """Return the results in Markdown, from the JSON alone."""
    runs = result["runs"]
    parts = [
        common.effort(result),
        "**The runs**, each net once, with B = {}. T is the number of steps of the protocol. Loss and accuracy are of "
        "the first images of each set if a number is given. Loss, D and gradients are without the L2 term:".format(
            _only(run["batch_size"] for run in runs)
        ),
        table(
            "network = {kind} | N = {n_parameters:,} | settings = {settings} | T by the protocol = "
            "{protocol_steps:,} | steps run = {steps:,} | part of T = {part:.0%} | t_w x lags = {n_times} x {n_lags} | "
            "images = {images} | train loss = {train_loss:.2g} | learnt = {train_accuracy:.2%} | test accuracy = "
            "{test_accuracy:.2%} | seconds = {seconds:,}",
            [_row(run) for run in runs],
        ),
    ]
    for kinds in ((FEW,), (FULLY,), (SMALL, MANY)):
        chosen = [run for run in runs if run["kind"] in kinds]
        if not chosen:
            continue
        titles = [f"{run['kind']}, {run['settings']}" if len(kinds) > 1 else run["settings"] for run in chosen]
        rows = [
            [each.text, *(cell(run["findings"].get(key)) for run in chosen)]
            for key, each in OF_NETWORKS.items()
            if any(key in run["findings"] for run in chosen)
        ]
        parts += [
            f"**The statements of the paper, {' and '.join(kinds)}:**",
            table(" | ".join(["statement = {}", *(f"{title} = {{}}" for title in titles)]), rows),
        ]
    parts += [*_noise_tables(runs), *_changes(runs), "**The rules**, as in the study of networks beside a glass:"]
    parts.append("\n".join(f"* {text}: {rule}" for text, rule in result["rules"].items()))
    return "\n\n".join(parts)


def _only(values: Any) -> Any:
    (value,) = set(values)
    return value


def _row(run: dict[str, Any]) -> dict[str, Any]:
    """Return the results of a run with the last values of its series."""
    more = {
        "part": run["steps"] / run["protocol_steps"],
        "images": "all" if run["evaluated"] is None else f"{run['evaluated']:,}",
    }
    return run | {name: of["values"][-1] for name, of in run["series"].items()} | more


def _noise_tables(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the tables that compare both D."""
    ratios, lines = [], []
    for run in runs:
        values = np.array(run["noise_ratio"]["values"], dtype=np.float64)
        name = {"kind": run["kind"], "settings": run["settings"]}
        first, last, low, high = values[0], values[-1], np.nanmin(values), np.nanmax(values)
        ratios.append({**name, "first": first, "low": low, "high": high, "last": last, "n": run["noise_batches"]})
        row: dict[str, Any] = dict(name)
        for whose, findings in (("ours", run["findings"]), ("theirs", run["findings_theirs"])):
            for key in ("line", "stops"):
                row[f"{key} {whose}"] = cell(findings.get(key)) or "about other nets"
            late = run["late_line"][whose]
            words = {None: "too few curves", True: "one line", False: "no line"}[late["line"]]
            numbers = "" if late["line"] is None else f": off by {late['off']:.2f}, exponent {late['exponent']:.2f}"
            row[f"late {whose}"] = f"{words}{numbers}"
        lines.append(row)
    return [
        f"**D of the released program** over ours, D_theirs = f (n - 1)/n D + f (1 - f) |<g>|^2 with f = {USED:g}. D "
        "and <g> are of the same n batches at the same weights:",
        table(
            "network = {kind} | settings = {settings} | n = {n} | ratio at step 0 = {first:.3f} | lowest = {low:.3f} | "
            "highest = {high:.3f} | at the end = {last:.3f}",
            ratios,
        ),
        "**Δ/D by both D.** The first two columns are the statement on the line and its rule. The last two columns "
        f"have the same limits, for the curves with t_w from 1/{LATE} of the run on, at the bottom or not:",
        table(
            "network = {kind} | settings = {settings} | one straight line, our D = {line ours} | their D = "
            "{line theirs} | late curves, our D = {late ours} | their D = {late theirs}",
            lines,
        ),
        "**The end of aging by both D:**",
        table(
            "network = {kind} | settings = {settings} | the aging stops, our D = {stops ours} | their D = "
            "{stops theirs}",
            [row for row, run in zip(lines, runs, strict=True) if "stops" in run["findings"]],
        ),
    ]


def _changes(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return one table for each net that was trained without momentum, with momentum, and with momentum and L2."""
    parts = [
        "**Momentum, and L2.** Each net starts from the same weights and sees the same minibatches in all its columns. "
        "Each is trained once, so the numbers have no errors of repeated runs. K = Δ/2t is the diffusion coefficient "
        "of one weight at the last waiting time and its longest lag. The free motion is (lr/(1 - momentum))^2 ∫D dt'/N "
        "with our D, as for independent noise. Rates and the exponent are of the curves with t_w from "
        f"1/{LATE} of the run on."
    ]
    for kind in dict.fromkeys(run["kind"] for run in runs):
        chosen = sorted(
            (run for run in runs if run["kind"] == kind and run["learning_rate"] == runs[0]["learning_rate"]),
            key=lambda run: (run["momentum"], run["weight_decay"]),
        )
        if len(chosen) < 2:
            continue
        late = chosen[0]["late"]
        at = f"t_w = {late['waiting_time']:,}"
        short, long = (f"{at}, t = {late[f'{name}_lag']:,}" for name in ("short", "long"))
        values = {
            "train loss, at the end": ("{:.3g}", [_row(run)["train_loss"] for run in chosen]),
            "train loss, at half the steps": ("{:.3g}", [_loss_at_half(run) for run in chosen]),
            "learnt": ("{:.2%}", [_row(run)["train_accuracy"] for run in chosen]),
            "test accuracy": ("{:.2%}", [_row(run)["test_accuracy"] for run in chosen]),
            "D, at the end": ("{:.3g}", [_row(run)["gradient_noise"] for run in chosen]),
            "squared mean gradient over D, at the end": (
                "{:.2g}",
                [_row(run)["gradient_norm2"] / _row(run)["gradient_noise"] for run in chosen],
            ),
            f"Δ at {long}": ("{:.3g}", [run["late"]["msd"] for run in chosen]),
            f"K at {long}, per step": ("{:.3g}", [run["late"]["diffusion"] for run in chosen]),
            f"Δ over the free motion, {short}": ("{:.2g}", [run["late"]["over_free_short"] for run in chosen]),
            f"Δ over the free motion, {long}": ("{:.2g}", [run["late"]["over_free_long"] for run in chosen]),
            "exponent of Δ in the lag, late": ("{:.2f}", [run["late"]["exponent"] for run in chosen]),
        }
        rows = [
            [name, *("-" if value is None else form.format(value) for value in found)]
            for name, (form, found) in values.items()
        ]
        for name, title in (("plain", "aging rate of Δ, late"), ("over_noise", "aging rate of Δ/D, late")):
            rates = [run["late"][f"rate_{name}"] for run in chosen]
            rows.append([title, *(_with_error(rate) for rate in rates)])
        rows.append(["verdict of the package", *(run["verdict"] for run in chosen)])
        columns = [f"{kind} = {{}}", *(f"{run['settings']} = {{}}" for run in chosen)]
        parts.append(table(" | ".join(columns), rows))
    return parts


def _loss_at_half(run: dict[str, Any]) -> float:
    """Return the training loss at half the steps, interpolated as a power of the step."""
    steps, loss = (np.array(run["series"]["train_loss"][name], dtype=np.float64)[1:] for name in ("steps", "values"))
    return float(np.exp(np.interp(np.log(run["steps"] / 2), np.log(steps), np.log(loss))))


def _with_error(rate: dict[str, float | None] | None) -> str:
    if rate is None or rate["rate"] is None:
        return "-"
    # The error is infinite if one waiting time decides all. JSON has no infinity.
    return f"{rate['rate']:.2f} ± {'?' if rate['error'] is None else format(rate['error'], '.2f')}"


# ------------------------------------------------------------------ the pictures


def draw_comparison(records: Mapping[Run, AgingRecord]) -> Any:
    """Draw both D along the runs, and the last curve of each run over its free motion."""
    figure, ((left, middle, right),) = panels(1, 3, 5.2, 4.2)
    kinds = list(dict.fromkeys(run.kind for run in records))
    for run, record in records.items():
        line = ":" if run.weight_decay else "--" if not run.momentum else "-" if run.learning_rate == 0.1 else "-."
        style: dict[str, Any] = {"color": f"C{kinds.index(run.kind)}", "linestyle": line, "linewidth": 1.3}
        steps, noise, theirs = noise_of(record)
        left.plot(np.maximum(steps, 1), noise, **style, label=f"{run.kind}, {run.settings}")
        middle.plot(np.maximum(steps, 1), theirs / noise, **style)
        speed, row = run.learning_rate / (1 - run.momentum), len(record.waiting_times) - 1
        free = speed**2 * noise_clock(record)[row] / record.n_parameters["all"]
        shown = record.lags > 0
        right.plot(record.lags[shown], record.msd()[row][shown] / free[shown], **style)
    left.set(yscale="log", xlabel="step (0 is at the left edge)", ylabel="strength D of the gradient noise, ours")
    middle.set(yscale="log", xlabel="step (0 is at the left edge)", ylabel="D of the released program / our D")
    middle.axhline(USED, color="0.4", linewidth=1)
    right.axhline(1, color="0.4", linewidth=1)
    right.set(yscale="log", xlabel="lag $t$ from the last waiting time (steps)", ylabel=r"$\Delta$ / free motion")
    left.legend(fontsize=6.5)
    for ax in (left, middle, right):
        ax.set_xscale("log")
        grid(ax)
    return figure


# ------------------------------------------------------------------ everything


def main() -> None:
    """Train all networks, and write the results."""
    quick = "fewer steps and networks, on digits, in about a minute"
    options = common.options_of("released_protocol", __doc__, quick, needs_mnist=True)
    runs = QUICK_RUNS if options.quick else RUNS
    if not options.analyse and any(run.data == "MNIST" for run in runs):
        mnist(options.data_dir)  # download it before several processes need it
    tasks = {run.name: partial(train_run, run, options.data_dir, options.out) for run in runs}
    spent = common.run_all(tasks, options)
    seconds = spent.pop("runs")
    records = {run: common.load_record(run.name, options.out, run.steps) for run in runs}
    result = {
        **spent,
        "runs": [analysed_run(run, record, seconds[run.name]) for run, record in records.items()],
        "rules": {each.text: cleandoc(each.decide.__doc__ or "") for each in OF_NETWORKS.values()},
    }

    def draw(_: Any, directory: Path) -> list[Path]:
        """Draw the pictures, which need the records, not only the numbers of the JSON."""
        usual = [run for run in records if run.learning_rate == 0.1 and run.momentum and not run.weight_decay]
        figures = {
            "networks": draw_networks({run: records[run] for run in usual}),
            "comparison": draw_comparison(records),
        }
        return common.save_figures(figures, directory, "released_protocol")

    common.conclude(result, options, tables, draw)


if __name__ == "__main__":
    main()

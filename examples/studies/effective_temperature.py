r"""Is it a glass? The response to a random field, beside the displacements, in glasses and in networks.

Out of equilibrium the fluctuation-dissipation ratio X differs from 1, and the slope of the response against the
fluctuations is an effective temperature (Cugliandolo and Kurchan 1993, Phys. Rev. Lett. 71, 173). The study has two
parts.

The glass is the spherical p = 3 model after a quench to T = 0.3, below its transition, and to T = 0.7, above it. A
Trainer trains it, and :class:`~lightning_glassy.ResponseMonitor` measures it. Its exact equations stand beside it.

The networks learn the teacher's problem of ``subaging_teacher`` and scikit-learn's digits, from under- to
over-parametrised (N), without and with an L2 term. This is a phase diagram of aging rate, exponent, relaxation time and
X. Two students with more replicas show the response against the displacement.

``python -m examples.studies.effective_temperature`` takes about half an hour on one core and writes the results that
are committed. ``--quick`` takes a minute, and writes beside its records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import lightning_glassy as lg
from examples.studies import subaging
from examples.studies.common import (
    conclude,
    digits,
    effort,
    load_record,
    loader,
    number,
    options_of,
    run_all,
    table,
    train_on_cpu,
)
from examples.studies.subaging import BATCH_SIZE, LEARNING_RATE, Run
from examples.studies.subaging_teacher import DIMENSION, problem
from lightning_glassy import AgingRecord, LogTimeSchedule
from lightning_glassy.analysis import (
    FluctuationDissipation,
    NotEnoughDataError,
    aging_exponent,
    fluctuation_dissipation,
    relaxation_times,
    verdict,
)
from lightning_glassy.glasses import SphericalPSpin, TwoTimeSolution
from lightning_glassy.glasses.modules import SphericalPSpinModule
from lightning_glassy.observables.arrays import over_replicas
from lightning_glassy.plotting import new_figure
from lightning_glassy.plotting.axes import Colours, grid

# ------------------------------------------------------------------ the glass


@dataclass(frozen=True)
class Glass:
    """The spherical p = 3 model after a quench, in three sizes that remove the first two orders of 1/N.

    The length of a step is proportional to 1/N, so that its error vanishes together with the error of the finite size.
    Times and lags are in units of the model.
    """

    temperature: float
    t_max: float = 10.0
    waiting_times: tuple[float, ...] = (1.0, 4.0)
    lags: tuple[float, ...] = (0.2, 0.4, 0.6, 1.0, 1.6, 2.4, 4.0, 6.0)
    sizes: tuple[int, ...] = (40, 80, 160)  # N, each twice the size before
    seeds: tuple[int, ...] = (96, 64, 12)  # sets of couplings at each size
    n_replica: int = 8  # copies that share one set of couplings
    field: float = 0.05
    steps: int = 1600  # of the exact equations

    def name(self, size: int) -> str:
        """Return the name of the directory of a size."""
        return f"glass-T{self.temperature:g}-N{size}"

    @property
    def model(self) -> SphericalPSpin:
        return SphericalPSpin(3, self.temperature)

    def step(self, size: int) -> float:
        """Return the length of a step in time: 0.05 at the smallest size."""
        return 0.05 * self.sizes[0] / size


GLASSES = (Glass(0.3), Glass(0.7))
QUICK_GLASSES = tuple(
    replace(g, t_max=4.0, waiting_times=(1.0,), lags=(0.4, 1.0, 2.0), sizes=(20, 40, 80), seeds=(4, 4, 2), steps=320)
    for g in GLASSES
)


def quench(glass: Glass, size: int, n_seed: int, out: Path) -> None:
    """Train glasses of one size with their clones. Save one record with a replica for each set of couplings."""
    step, records = glass.step(size), []
    waiting, lags = ([round(time / step) for time in times] for times in (glass.waiting_times, glass.lags))
    quiet: dict[str, Any] = {"save": False, "summary": False}
    for k in range(n_seed):
        seed = 1000 * size + k
        steps = round(glass.t_max / step)
        module = SphericalPSpinModule(glass.model, size, steps, step, n_replica=glass.n_replica, seed=seed)
        schedule = LogTimeSchedule(waiting, lags)
        monitor = lg.AgingMonitor(schedule, sample=None, **quiet)
        train_on_cpu(module, steps, [monitor, lg.ResponseMonitor(glass.field, schedule, seed=seed, **quiet)])
        records.append(monitor.record)
    path = out / glass.name(size) / "aging_record.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    AgingRecord.concat(records).save(path)


def values_of(glass: Glass, record: AgingRecord) -> dict[str, list[list[tuple[float, float]]]]:
    """Return the responses and the correlations of one size with their errors, ``[n_tw][n_lag]``."""
    found = {}
    for name, values in (("chi", record.response()), ("C", record.correlation())):
        mean, error = over_replicas(values)
        found[name] = [list(zip(*rows, strict=True)) for rows in zip(mean.tolist(), error.tolist(), strict=True)]
    return found


def compared(glass: Glass, records: Sequence[AgingRecord], exact: TwoTimeSolution) -> list[dict[str, Any]]:
    """Return responses and correlations beside the exact values: of the largest size, and extrapolated in 1/N."""
    rows = []
    sizes = [values_of(glass, record) for record in records]
    for i, time in enumerate(glass.waiting_times):
        for j, lag in enumerate(glass.lags):
            if time + lag > glass.t_max + 1e-9:
                continue
            at, later = exact.index([time, time + lag])
            value = {"chi": float(exact.integrated_response(time, lag)), "C": float(exact.correlation[at, later])}
            for name in ("C", "chi"):
                (a, a_error), (b, b_error), (c, c_error) = (found[name][i][j] for found in sizes)
                error = float(np.sqrt(a_error**2 + (6 * b_error) ** 2 + (8 * c_error) ** 2)) / 3
                limit = (a - 6 * b + 8 * c) / 3
                rows.append(
                    {"what": name, "time": time, "lag": lag, "largest": c, "largest_error": c_error}
                    | {"extrapolated": limit, "error": error, "second_order": limit - (2 * c - b)}
                    | {"exact": value[name], "z": (limit - value[name]) / error}
                )
    return rows


def analysed_glass(glass: Glass, records: Sequence[AgingRecord], seconds: float) -> dict[str, Any]:
    """Return the results of the callback and of the equations at one temperature."""
    exact = glass.model.solve(glass.t_max, glass.steps)
    curve = {}
    for time in glass.waiting_times:
        lags = exact.times[exact.times <= glass.t_max - time + 1e-9][:: max(1, glass.steps // 400)]
        correlation = exact.correlation[exact.index(time), exact.index(time + lags)]
        curve[f"{time:g}"] = {"C": correlation, "chi": exact.integrated_response(time, lags)}
    return {
        "temperature": glass.temperature,
        "plateau": glass.model.plateau,
        "violation": glass.model.violation,
        "sizes": glass.sizes,
        "n_seed": [record.n_replica for record in records],
        "n_replica": glass.n_replica,
        "field": glass.field,
        "seconds": round(seconds),
        "numbers": compared(glass, records, exact),
        "exact": curve,
    }


# ------------------------------------------------------------------ the networks


@dataclass(frozen=True)
class Student:
    """Replicas of a network that learns one of two problems."""

    data: str  # "teacher" or "digits"
    hidden: int
    l2: float
    n_replica: int = 8
    fields: tuple[float, ...] = (1e-4, 2e-4)

    @property
    def run(self) -> Run:
        first, last = (DIMENSION, 2) if self.data == "teacher" else (64, 10)
        return Run((first, self.hidden, self.hidden, last), n_replica=self.n_replica, l2=self.l2)

    @property
    def name(self) -> str:
        """Name of the directory."""
        return f"{self.data}-{self.hidden}-l2-{self.l2:g}-{self.n_replica}-replicas"


STEPS, QUICK_STEPS = 6_000, 1_000
CLONED, QUICK_CLONED = (100, 1_000), (100,)
"""Waiting times with a clone."""
DIAGRAM = (
    *(Student("teacher", hidden, l2) for hidden in (4, 32) for l2 in (0.0, 1e-3)),
    *(Student("digits", hidden, l2) for hidden in (4, 8, 32) for l2 in (0.0, 1e-4, 1e-3)),
)
SHOWN = tuple(Student("digits", hidden, 1e-4, n_replica=16) for hidden in (4, 32))
QUICK_DIAGRAM = (Student("teacher", 4, 1e-4), Student("digits", 32, 0.0))
QUICK_SHOWN = (Student("teacher", 4, 1e-4, n_replica=10),)


def train(student: Student, steps: int, cloned: Sequence[int], out: Path) -> None:
    """Train the replicas of a student with their clones, and save the record in ``out/<name>``."""
    data = problem()[0] if student.data == "teacher" else digits()[0]
    options: dict[str, Any] = {"summary": False}
    schedule = LogTimeSchedule.logspaced(waiting_times_per_decade=4, lags_per_decade=6)
    train_on_cpu(
        subaging.Replicas(student.run),
        steps,
        [
            lg.AgingMonitor(schedule, dirpath=out / student.name, **options),
            lg.ResponseMonitor(student.fields, LogTimeSchedule(cloned, [1]), **options),
            lg.LogTimeEvaluator(3, batch_size=len(data), loss=subaging.losses, max_share=None, **options),
        ],
        loader(data, steps, BATCH_SIZE, range(student.n_replica)),
    )


def analysed(student: Student, record: AgingRecord, seconds: float) -> dict[str, Any]:
    """Return the results of one student."""
    found, judged = fluctuation_dissipation(record), verdict(record)
    try:
        exponent = aging_exponent(record)
        mu, why_not = exponent.mu, exponent.why_not
        interval = exponent.interval
    except NotEnoughDataError as error:
        mu, why_not, interval = None, str(error), None
    overlap = relaxation_times(record, observable="overlap", eps=record.overlap_thresholds[-1]).methods["1/e"]
    accuracy, loss = (record.one_time(name)[1][-1] for name in ("train_accuracy", "train_loss"))
    cost = record.meta["ResponseMonitor"]
    return {
        "data": student.data,
        "hidden": student.hidden,
        "n_parameters": record.n_parameters["all"],
        "l2": student.l2,
        "n_replica": student.n_replica,
        "seconds": round(seconds),
        "clone_passes": cost["clone_passes"],
        "clone_seconds": cost["seconds"],
        "loss": loss,
        "accuracy": accuracy,
        "verdict": judged.kind,
        "phase": judged.phase,
        "rate": [(rate.rate, rate.low, rate.high) for rate in judged.rates[1:2]],
        "mu": mu,
        "mu_interval": interval,
        "why_no_mu": why_not,
        "eps": record.overlap_thresholds[-1],
        "tau": _last_known(record.waiting_times, overlap.times, overlap.errors),
        "sectors": [_sector(sector) for sector in found.sectors],
        "doubts": found.doubts,
        "curves": _curves(found),
        "exponents": _local(record, found),
    }


def _last_known(waiting_times: Any, times: Any, errors: Any) -> tuple[int, float, float | None] | None:
    """Return the last waiting time with a relaxation time, this time and its error."""
    known = np.flatnonzero(np.isfinite(times))
    if not len(known):
        return None
    i = int(known[-1])
    return int(waiting_times[i]), float(times[i]), None if errors is None else float(errors[i])


def _sector(sector: Any) -> dict[str, Any]:
    numbers: dict[str, Any] = sector._asdict()
    return numbers | {"temperature": sector.temperature, "temperature_error": sector.temperature_error}


def _curves(found: FluctuationDissipation) -> dict[str, dict[str, Any]]:
    """Return the curves of each waiting time, without the pairs that were not measured."""
    curves = {}
    for i, waiting_time in enumerate(found.waiting_times.tolist()):
        known = np.isfinite(found.response[i])
        names = ("response", "response_error", "msd", "msd_error", "decorrelation")
        curves[str(waiting_time)] = {"lags": found.lags[known]} | {n: getattr(found, n)[i, known] for n in names}
    return curves


def _local(record: AgingRecord, found: FluctuationDissipation) -> dict[str, float]:
    """Return the local exponent of the displacement at the lag of each waiting time. Above 1, the weights drift."""
    exponents, lags = record.mean("local_exponent"), record.lags
    found_at = {}
    for waiting_time in found.waiting_times.tolist():
        i = int(np.searchsorted(record.waiting_times, waiting_time))
        j = int(np.argmin(np.abs(np.log(lags / max(waiting_time, 1)))))
        found_at[str(waiting_time)] = float(exponents[i, j])
    return found_at


# ------------------------------------------------------------------ the page


def tables(result: dict[str, Any]) -> str:
    """Return the results in Markdown, from the JSON alone."""
    parts = [f"{result['steps']:,} steps of each network. {effort(result)}"]
    for glass in result["glasses"]:
        z = np.array([row["z"] for row in glass["numbers"]])
        sizes = ", ".join(f"{seeds} at N = {n}" for n, seeds in zip(glass["sizes"], glass["n_seed"], strict=True))
        law = (
            f"q_EA = {glass['plateau']:.3f} and X = {glass['violation']:.3f} at long times"
            if glass["plateau"]
            else "above the transition, X = 1 at long times"
        )
        parts += [
            f"**The glass at T = {glass['temperature']:g}** ({law}), with h = {glass['field']:g}. Sets of couplings: "
            f"{sizes}, with {glass['n_replica']} copies each. The extrapolated values have no error of the first two "
            "orders in 1/N. The second order is their difference from 2 x(2N) - x(N), of the two largest sizes. The "
            f"largest of {len(z)} z is {np.abs(z).max():.1f} in size:",
            table(
                "quantity = {what} | t_w = {time:g} | lag = {lag:g} | largest N = {largest:.4f} | extrapolated = "
                "{extrapolated:.4f} +- {error:.4f} | second order = {second_order:+.4f} | exact = {exact:.4f} | "
                "z = {z:+.1f}",
                glass["numbers"],
            ),
        ]
    parts += [
        "**The phase diagram.** The accuracy and the loss are of the training set at the end. The aging rate is of the "
        "last decade of waiting times. The time tau is the lag at which the overlap has fallen to 1/e, for the last "
        "waiting time that reaches it. T_eff is in units of 10^-3 of the loss. X is T_eff of the early lags over T_eff "
        "of the late lags, after the last waiting time that has both:",
        table(
            "problem = {data} | N = {n_parameters:,} | L2 = {l2:g} | loss = {loss:.4f} | accuracy = {accuracy:.3f} | "
            "verdict = {told} | aging rate = {rate_text} | mu = {mu_text} | tau = {tau_text} | T_eff early = {early} | "
            "T_eff late = {late} | X = {x}",
            [_row(run) for run in result["diagram"]],
        ),
        "**Two students with 16 replicas**, by time sector. Free weights respond by the learning rate times the lag. "
        "The part of this is given at the last lag of the sector. The exponent is the local exponent of the "
        "displacement at a lag of t_w: 1 is diffusion, and above 1 the motion is faster, as in a drift:",
        table(
            "N = {n_parameters:,} | t_w = {waiting_time:,} | lags = {name}, {first_lag:,} ... {last_lag:,} | 1/T_eff = "
            "{slope:.4g} +- {slope_error:.2g} | by the correlation = {correlation_slope:.4g} +- "
            "{correlation_slope_error:.2g} | X = {ratio:.3f} +- {ratio_error:.2g} | response over free = {free:.2f} | "
            "exponent = {exponent:.2f}",
            [
                {
                    **sector,
                    "n_parameters": run["n_parameters"],
                    "exponent": run["exponents"][str(sector["waiting_time"])],
                    "free": _over_free(run, sector),
                }
                for run in result["shown"]
                for sector in run["sectors"]
            ],
        ),
        "**Cost** of the clones: passes of all clones forward and backward, over the steps of the training, and the "
        "part of the time of the run:",
        table(
            "students = {} | clones = {} | passes over steps = {:.2f} | time, median = {:.0%}",
            [_cost(result, "diagram"), _cost(result, "shown")],
        ),
        "**Doubts** about the response, and their students (problem, N, L2):",
        table("doubt = {} | students = {}", list(_doubts([*result["diagram"], *result["shown"]]).items())),
    ]
    return "\n\n".join(parts)


def _row(run: dict[str, Any]) -> dict[str, Any]:
    sectors = {(s["waiting_time"], s["name"]): s for s in run["sectors"]}
    both = [t for t, name in sectors if name == "late" and (t, "early") in sectors]
    early, late = (sectors[max(both), "early"], sectors[max(both), "late"]) if both else (None, None)

    def temperature(sector: dict[str, Any] | None) -> str:
        if sector is None or sector["temperature"] is None:
            return "-"
        return f"{1e3 * sector['temperature']:.3g} +- {1e3 * sector['temperature_error']:.1g}"

    (rate, low, high) = run["rate"][0] if run["rate"] else (None, None, None)
    tau = run["tau"]
    return run | {
        "told": run["verdict"] + (f": {run['phase']}" if run["phase"] else ""),
        "rate_text": "-" if rate is None else f"{rate:.2f} ({low:.2f} ... {high:.2f})",
        "mu_text": number(run["mu"]) if run["mu"] is not None else "none",
        "tau_text": "not reached" if tau is None else f"{number(tau[1], tau[2], ',.0f')} at {tau[0]:,}",
        "early": temperature(early),
        "late": temperature(late),
        "x": "-" if late is None else number(late["ratio"], late["ratio_error"]),
    }


def _over_free(run: dict[str, Any], sector: dict[str, Any]) -> float:
    """Return the response at the last lag of a sector, over the response of free weights."""
    curve = run["curves"][str(sector["waiting_time"])]
    response = curve["response"][curve["lags"].index(sector["last_lag"])]
    return float(response / (LEARNING_RATE * sector["last_lag"]))


def _cost(result: dict[str, Any], part: str) -> tuple[str, int, float, float]:
    runs = result[part]
    passes = max(run["clone_passes"] for run in runs) / result["steps"]
    share = float(np.median([run["clone_seconds"] / run["seconds"] for run in runs]))
    return f"{len(runs)} with {runs[0]['n_replica']} replicas", len(result["cloned"]), passes, share


def _doubts(runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the students by doubt, without the numbers in it."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for doubt in run["doubts"]:
            words = doubt.split(":")[0]
            name = f"{run['data']} {run['n_parameters']:,} {run['l2']:g}"
            found.setdefault(words, []).append(
                name + (f" ({run['n_replica']} replicas)" if run["n_replica"] > 8 else "")
            )
    return {words: ", ".join(names) for words, names in found.items()} or {"none": "-"}


# ------------------------------------------------------------------ the pictures


def draw(result: dict[str, Any], directory: Path) -> list[Path]:
    """Draw two pictures from the JSON alone, and return their paths: the glass, and two students."""
    pictures = [directory / f"effective_temperature{name}.png" for name in ("_glass", "")]
    figure = new_figure(len(result["glasses"]), width=5.6)
    axes = figure.axes[: len(result["glasses"])]
    for ax, glass in zip(axes, result["glasses"], strict=True):
        _draw_glass(ax, glass)
    figure.savefig(pictures[0])
    figure = new_figure(len(result["shown"]), width=5.6)
    for ax, run in zip(figure.axes[: len(result["shown"])], result["shown"], strict=True):
        _draw_student(ax, run)
    figure.savefig(pictures[1])
    return pictures


def _draw_glass(ax: Any, glass: Mapping[str, Any]) -> None:
    temperature = glass["temperature"]
    for (time, curve), colour in zip(glass["exact"].items(), ("tab:blue", "tab:orange"), strict=False):
        ax.plot(curve["C"], curve["chi"], color=colour, linewidth=1.2, label=f"exact, t_w = {time}")
        rows = [row for row in glass["numbers"] if f"{row['time']:g}" == time]
        x, y = ([row for row in rows if row["what"] == name] for name in ("C", "chi"))
        ax.errorbar(
            [row["extrapolated"] for row in x],
            [row["extrapolated"] for row in y],
            xerr=[row["error"] for row in x],
            yerr=[row["error"] for row in y],
            fmt="o",
            markersize=3.5,
            color=colour,
            elinewidth=0.8,
            label=f"callback, t_w = {time}",
        )
    c = np.linspace(0, 1, 50)
    ax.plot(c, (1 - c) / temperature, color="0.4", linestyle="--", linewidth=1, label="equilibrium, (1 - C)/T")
    q = glass["plateau"]
    if q:
        below = np.where(
            c < q, (1 - q) / temperature + glass["violation"] * (q - c) / temperature, (1 - c) / temperature
        )
        ax.plot(c, below, color="0.4", linestyle=":", linewidth=1.2, label=f"long times, X = {glass['violation']:.3f}")
    ax.set(xlabel="correlation $C(t_w, t_w+t)$", ylabel=r"response $\chi$", ylim=(0, 1.6), xlim=(0, 1))
    ax.set_title(f"spherical p = 3, T = {temperature:g}", fontsize=10)
    grid(ax)
    ax.legend(fontsize=7)


def _draw_student(ax: Any, run: Mapping[str, Any]) -> None:
    colours = Colours(np.array([int(time) for time in run["curves"]]))
    for time, curve in run["curves"].items():
        style = colours.line(int(time))
        half, error = np.array(curve["msd"]) / 2, np.array(curve["msd_error"]) / 2
        ax.errorbar(half, curve["response"], xerr=error, yerr=curve["response_error"], elinewidth=0.8, **style)
    ax.set(xscale="log", yscale="log", xlabel=r"$\Delta(t_w, t_w+t)/2$", ylabel=r"response $\chi$")
    chi = np.concatenate([curve["response"] for curve in run["curves"].values()])
    early = [s for s in run["sectors"] if s["name"] == "early" and s["temperature"]]
    if early:
        ends = np.array([chi.min(), 2 * chi.max()])
        ax.plot(ends / early[-1]["slope"], ends, color="0.4", linestyle="--", label="slope 1/T of the early lags")
    ax.set_ylim(chi.min() / 2, 2 * chi.max())
    ax.set_title(f"{run['data']}, N = {run['n_parameters']:,}, accuracy {run['accuracy']:.3f}", fontsize=10)
    grid(ax)
    ax.legend(fontsize=8)


def main() -> None:
    """Train all glasses and students, several at once, and write the results."""
    options = options_of("effective_temperature", __doc__, "small glasses and three students, in a minute")
    full = (GLASSES, DIAGRAM, SHOWN, STEPS, CLONED)
    quick = (QUICK_GLASSES, QUICK_DIAGRAM, QUICK_SHOWN, QUICK_STEPS, QUICK_CLONED)
    glasses, diagram, shown, steps, cloned = quick if options.quick else full
    tasks: dict[str, Callable[[], object]] = {}
    for student in (*shown, *sorted(diagram, key=lambda student: -student.run.n_parameters)):
        tasks[student.name] = partial(train, student, steps, cloned, options.out)
    for glass in glasses:
        for size, n_seed in zip(glass.sizes[::-1], glass.seeds[::-1], strict=True):
            tasks[glass.name(size)] = partial(quench, glass, size, n_seed, options.out)
    spent = run_all(tasks, options)
    seconds = spent.pop("runs")

    def of(student: Student) -> dict[str, Any]:
        return analysed(student, load_record(student.name, options.out, steps), seconds[student.name])

    def of_glass(glass: Glass) -> dict[str, Any]:
        records = [AgingRecord.load(options.out / glass.name(size) / "aging_record.npz") for size in glass.sizes]
        return analysed_glass(glass, records, sum(seconds[glass.name(size)] for size in glass.sizes))

    found = {
        "steps": steps,
        "cloned": cloned,
        **spent,
        "glasses": [of_glass(glass) for glass in glasses],
        "diagram": [of(student) for student in diagram],
        "shown": [of(student) for student in shown],
    }
    conclude(found, options, tables, draw)


if __name__ == "__main__":
    main()

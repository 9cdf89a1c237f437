"""Measure the cost of the callback and of its alternatives in trainings: ``python -m benchmarks training``.

Trainings with and without the callback alternate, with the same network and the same ready batches. Each pair gives one
ratio. In the runs with the callback, the time in its hooks is measured, too.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from benchmarks.by_hand import Checkpoints, NumpyCopies
from benchmarks.models import Classifier, Transformer, images, loader, mlp, papers, resnet18, tokens
from benchmarks.report import table, write
from lightning_glassy import AgingMonitor, LogTimeSchedule

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
HOOKS = ("on_train_start", "on_train_batch_end", "on_train_end")
AFTER = "teardown"  # after all steps: loggers get their figures

# A training is ended after LONGEST seconds. Pairs of trainings are repeated while they fit into ENOUGH seconds.
LONGEST, ENOUGH = 60.0, 90.0

WITH_TENSORBOARD = "AgingMonitor and a TensorBoardLogger"


@dataclass(frozen=True)
class Case:
    """A network, its batches, the steps and repeats of its training, and whether to train the alternatives, too.

    ``promised`` is the largest share of the hooks in the time of the steps, without a logger and with TensorBoard.
    """

    name: str
    net: Callable[[], torch.nn.Module]
    batches: Any
    steps: int
    repeats: int
    precision: Any = "32-true"
    alternatives: bool = True
    promised: tuple[float | None, float | None] = (None, None)


def cases() -> list[Case]:
    """Return cases as large as the device can train in about a minute."""
    if CUDA:
        return [
            Case("MLP", mlp, images(256, 784), 5000, 7),
            Case("ResNet-18, 32 x 32, bf16-mixed, batch 128", resnet18, images(128, 3, 32, 32), 2000, 5, "bf16-mixed"),
            Case("transformer", Transformer, tokens(64), 2000, 5),
        ]
    return [
        Case("784-5-5-5-10, batch 50", papers, images(50, 784), 2000, 5, alternatives=False),
        Case("784-5-5-5-10, batch 50", papers, images(50, 784), 20_000, 3, alternatives=False, promised=(None, 0.02)),
        Case("MLP, batch 64", mlp, images(64, 784), 2000, 3, promised=(0.045, 0.0675)),
        Case("MLP, batch 512", mlp, images(512, 784), 2000, 3, alternatives=False, promised=(0.013, 0.0195)),
        Case("ResNet-18, 32 x 32, batch 8", resnet18, images(8, 3, 32, 32), 40, 5, alternatives=False,
             promised=(0.06, 0.09)),
    ]  # fmt: skip


@dataclass
class Run:
    """One training: its wall time, the time in the callback's hooks (host, and device if it is CUDA), its memory."""

    wall: float = 0.0
    hooks: float = 0.0
    by_hook: dict[str, float] = field(default_factory=dict)  # of the host
    steps: list[float] = field(default_factory=list)
    peak: int = 0
    cut: bool = False  # whether it was ended because it took too long

    @property
    def share(self) -> float:
        """Time in the hooks over the time of all finished steps."""
        return self.hooks / sum(self.steps)


class StepClock(Callback):
    """Notes when each batch starts, and ends a training that takes too long."""

    def __init__(self, longest: float = LONGEST) -> None:
        self.starts: list[float] = []
        self.longest = longest
        self.cut = False

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Note the time, and end a training that takes too long."""
        self.starts.append(time.perf_counter())
        if not self.cut and self.starts[-1] - self.starts[0] > self.longest:
            self.cut = trainer.should_stop = True


def clocked(callback: Callback, run: Run) -> list[tuple[torch.cuda.Event, torch.cuda.Event]]:
    """Time a callback's hooks from outside, and return the CUDA events around them. Read these events at the end."""
    events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def timed(name: str, inner: Callable[..., None]) -> Callable[..., None]:
        def hook(*args: Any, **options: Any) -> None:
            pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) if CUDA else None
            if pair:
                pair[0].record()
            start = time.perf_counter()
            inner(*args, **options)
            took = time.perf_counter() - start
            run.hooks += took if name in HOOKS else 0.0
            run.by_hook[name] = run.by_hook.get(name, 0.0) + took
            if pair:
                pair[1].record()
                events.append(pair)

        return hook

    for name in (*HOOKS, AFTER):
        setattr(callback, name, timed(name, getattr(callback, name)))
    return events


def train(case: Case, make: Callable[[], Callback] | None, longest: float = LONGEST, logger: str | None = None) -> Run:
    """Train with the callback that ``make`` makes, or without a callback, for at most ``longest`` seconds.

    ``logger`` is the directory of a TensorBoardLogger. A training without the callback has this logger, too.
    """
    torch.manual_seed(0)
    model, run, clock = Classifier(case.net()), Run(), StepClock(longest)
    callback = None if make is None else make()
    events = [] if callback is None else clocked(callback, run)
    trainer = Trainer(
        accelerator="gpu" if CUDA else "cpu",
        devices=1,
        precision=case.precision,
        max_steps=case.steps,
        logger=TensorBoardLogger(logger) if logger else False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock, *([] if callback is None else [callback])],
    )
    batches = loader(case.batches, case.steps, "cuda" if CUDA else "cpu")
    if CUDA:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    trainer.fit(model, batches)
    if CUDA:
        torch.cuda.synchronize()
        run.peak = torch.cuda.max_memory_allocated()
        # The hooks keep the host and the device busy for different times. The longer time counts.
        run.hooks = max(run.hooks, sum(a.elapsed_time(b) for a, b in events) / 1000)
    else:
        run.peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run.wall = time.perf_counter() - start
    run.cut = clock.cut
    run.steps = [b - a for a, b in zip(clock.starts, clock.starts[1:], strict=False)]
    return run


def alternatives(case: Case) -> dict[str, Callable[[], Callback]]:
    """Return the callback and its alternatives."""
    schedule = LogTimeSchedule.logspaced()
    found: dict[str, Callable[[], Callback]] = {
        "AgingMonitor": lambda: AgingMonitor(save=False, summary=False, sample=None),
        WITH_TENSORBOARD: lambda: AgingMonitor(save=False, summary=False, sample=None),
        "AgingMonitor, msd only": lambda: AgingMonitor(save=False, summary=False, sample=None, moments="msd"),
        "NumPy copy at each event": lambda: NumpyCopies(schedule, case.steps),
        "checkpoint at each event": lambda: Checkpoints(schedule, case.steps),
    }
    if not case.alternatives:
        return {name: found[name] for name in list(found)[:3]}
    try:
        from lightning.pytorch.callbacks import WeightAveraging

        found["WeightAveraging (every step)"] = WeightAveraging
    except ImportError:  # lightning before 2.6
        pass
    return found


def pairs_of(case: Case, make: Callable[[], Callback], with_logger: bool = False) -> list[tuple[Run, Run]]:
    """Train with and without the callback, in turns. The time of the first pair decides how many pairs fit."""

    def pair() -> tuple[Run, Run]:
        with tempfile.TemporaryDirectory() as directory:
            logger = directory if with_logger else None
            return train(case, make, logger=logger), train(case, None, logger=logger)

    start = time.perf_counter()
    pairs = [pair()]
    fit = int(ENOUGH / (time.perf_counter() - start))
    return pairs + [pair() for _ in range(min(case.repeats, fit) - 1)]


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def _range(words: Sequence[str]) -> str:
    return f"{words[0]} ({words[1]} ... {words[2]})"


def _promised(case: Case, name: str) -> str:
    limit = dict(zip(("AgingMonitor", WITH_TENSORBOARD), case.promised, strict=True)).get(name)
    return "" if limit is None else f"{limit:.2%}"


def main(arguments: Sequence[str] = ()) -> None:
    """Train, and write the table."""
    parser = argparse.ArgumentParser(prog="benchmarks training", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two short repeats of the MLP alone, nothing written")
    quick = parser.parse_args(arguments).quick
    warnings.filterwarnings("ignore")
    rows: list[list[object]] = []
    data: list[dict[str, Any]] = []
    for case in [Case("MLP", mlp, images(64, 784), 200, 2)] if quick else cases():
        train(Case(case.name, case.net, case.batches, min(case.steps, 20), 1, case.precision), None)  # warm up
        events = len(LogTimeSchedule.logspaced().until(case.steps).events)
        size = sum(p.numel() for p in case.net().parameters())
        for name, make in alternatives(case).items():
            pairs = pairs_of(case, make, name == WITH_TENSORBOARD)
            ratios = [a.wall / b.wall for a, b in pairs if not a.cut and not b.cut]
            shares = [a.hooks / (len(a.steps) * statistics.median(b.steps)) for a, b in pairs]
            memory = statistics.median((a.peak - b.peak) / 2**20 for a, b in pairs)
            done = len(pairs[0][0].steps)
            rows.append(
                [
                    case.name,
                    f"{size:,}",
                    f"{case.steps:,} ({events})",
                    f"{1000 * statistics.median(pairs[0][1].steps):.2f}",
                    name,
                    _range([f"{share:.2%}" for share in _spread(shares)]),
                    _promised(case, name),
                    _range([f"{r:.3f}" for r in _spread(ratios)]) if ratios else f"ended after {done:,} steps",
                    len(pairs),
                    f"{memory:.0f}" if CUDA else "",
                    f"{statistics.median(a.by_hook.get(AFTER, 0.0) for a, _ in pairs):.2f}",
                ]
            )
            by_hook = {hook: statistics.median(a.by_hook.get(hook, 0.0) for a, _ in pairs) for hook in (*HOOKS, AFTER)}
            data.append(
                {"case": case.name, "callback": name, "steps": case.steps, "parameters": size, "events": events}
                | {"hook_share": shares, "wall_ratio": ratios, "extra_mib": memory if CUDA else None}
                | {
                    "steps_done": done,
                    "by_hook": by_hook,
                }
            )
            print(f"{case.name}: {name}: {rows[-1][5]}, {rows[-1][6]}", flush=True)
    header = ["network", "parameters", "steps (events)", "median step (ms)", "callback"]
    header += [
        "time in its hooks over that of the steps, median (range)",
        "promised at most",
        "wall time over that without, median (range)",
        "pairs",
    ]
    header += ["peak memory more (MiB)", "after the training (s)"]
    text = table(header, rows) + (
        "\n\nThe default schedule, all parameters. Runs with and without the callback alternate, both with the logger "
        "or both without.\nThe hooks are those of the start, of each batch and of the end. Figures for the logger "
        "follow, in the last column.\nThe first tracker of a process also loads numba, before the first step, which is "
        "not in the medians. A short run has many more events per\nstep than a long one: see `scaling`. A training "
        f"that took more than {LONGEST:.0f} s was ended, and its events so far were counted. Pairs\nwere repeated as "
        f"long as they fitted into {ENOUGH:.0f} s."
    )
    if not quick:
        write("training", "Cost of the callback in whole trainings", text, data, DEVICE)


if __name__ == "__main__":
    main()

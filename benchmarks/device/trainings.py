"""Part: a ResNet-18 trained with and without the callback, in turns."""

from __future__ import annotations

import statistics
import warnings
from typing import Any

from benchmarks import training
from benchmarks.device.findings import Findings
from benchmarks.models import images, mlp, resnet18
from lightning_glassy import AgingMonitor, LogTimeSchedule

SECONDS, PAIRS = 7.0, 4


def case(findings: Findings, steps: int) -> training.Case:
    """Return the network and its training."""
    if findings.dry:
        return training.Case("MLP", mlp, images(16, 784), steps, 1)
    return training.Case("ResNet-18", resnet18, images(128, 3, 32, 32), steps, 1, "bf16-mixed")


def run(findings: Findings) -> None:
    """Choose how many steps fit, and train in pairs."""
    warnings.filterwarnings("ignore")
    monitors: list[AgingMonitor] = []

    def make() -> AgingMonitor:
        monitors.append(AgingMonitor(save=False, summary=False, sample=None))
        return monitors[-1]

    training.train(case(findings, 20), make)  # compiles, and lets cuDNN choose its algorithms
    first = training.train(case(findings, 40), None)
    # The host may run ahead of the device, so a step takes at least the wall time over the number of steps.
    step = max(statistics.median(first.steps[5:]), first.wall / len(first.steps))
    steps = 60 if findings.dry else max(200, min(2000, int(SECONDS / step)))
    schedule = LogTimeSchedule.logspaced().until(steps)
    events = len(schedule.events)
    name = "MLP, batch 16" if findings.dry else "ResNet-18, 32 x 32, bf16-mixed, batch 128"
    table = findings.table(
        name,
        ["pair", "steps (events)", "with (s)", "without (s)", "ratio", "in its hooks, of the time of the steps",
         "of it at events, on the host", "at an event (us)", "at start and end (ms)", "peak memory more (MiB)",
         "complete"],
        "The default schedule, all parameters, no logger. The hooks count by the time of the host or of the device, "
        "whichever is longer.\nComplete: all pairs of times are in the record.",
    )  # fmt: skip
    pairs: list[dict[str, Any]] = []
    for index in range(2 if findings.dry else PAIRS):
        if pairs and findings.left < 1.3 * (pairs[-1]["with_s"] + pairs[-1]["without_s"]) + 2:
            findings.say("no time left for another pair")
            break
        a, b = training.train(case(findings, steps), make), training.train(case(findings, steps), None)
        at_events = a.by_hook["on_train_batch_end"]
        ends = sum(a.by_hook.values()) - at_events
        pair: dict[str, Any] = {"with_s": a.wall, "without_s": b.wall, "hooks_s": a.hooks}
        pair["share"] = a.hooks / sum(b.steps)
        pair |= {"share_at_events": at_events / sum(b.steps), "by_hook": a.by_hook, "extra_bytes": a.peak - b.peak}
        pair["complete"] = len(monitors[-1].record) == len(schedule.pairs)
        pairs.append(pair)
        table.add(
            index,
            f"{steps:,} ({events})",
            f"{a.wall:.3f}",
            f"{b.wall:.3f}",
            f"{a.wall / b.wall:.4f}",
            f"{pair['share']:.3%}",
            f"{pair['share_at_events']:.3%}",
            f"{1e6 * at_events / events:.0f}",
            f"{1e3 * ends:.1f}",
            f"{pair['extra_bytes'] / 2**20:.0f}",
            pair["complete"],
        )
        findings.keep(pairs=pairs, steps=steps, events=events, network=name)

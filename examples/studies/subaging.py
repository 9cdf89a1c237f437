r"""The protocol of Herrera Segura et al. 2022 (arXiv 2209.02517), and its analysis, for the studies of subaging.

A tanh network with Glorot-uniform weights and biases of zero is trained by plain SGD at learning rate 0.05, with
minibatches of 50 and an L2 term of strength 1e-4. Ten waiting times lie between T/200 and T/2, twenty lags between
T/20,000 and T/2, where T is the number of steps. The lag t* is the lag at which the displacement reaches a threshold.
Subaging means :math:`t^* \sim t_w^\mu` with :math:`\mu < 1`. Replicas of each network are trained as one.
"""

from __future__ import annotations

import itertools
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import lightning_glassy as lg
from examples.studies.common import Classifier, cross_entropy, load_record, loader, run_all, train_on_cpu
from lightning_glassy import AgingRecord
from lightning_glassy.analysis import AgingExponent, Curves
from lightning_glassy.plotting import plot_curves
from lightning_glassy.plotting.axes import grid

BATCH_SIZE, LEARNING_RATE, L2 = 50, 0.05, 1e-4
COLLAPSES = {"effective time": "collapse, effective time", "plain": "collapse, plain"}
"""Names in the tables, and in :attr:`AgingExponent.estimates`, of the exponents by collapse."""


@dataclass(frozen=True)
class Run:
    """Replicas of one network, and how they are trained."""

    sizes: tuple[int, ...]  # of the layers
    n_replica: int = 8
    reshuffled: bool = True  # own minibatches for each replica, otherwise the same for all in the order of the data
    l2: float = L2

    @property
    def layers(self) -> str:
        return "-".join(map(str, self.sizes))

    @property
    def n_parameters(self) -> int:
        return sum((n_in + 1) * n_out for n_in, n_out in itertools.pairwise(self.sizes))

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.layers + ("" if self.reshuffled else "-file-order") + ("" if self.l2 else "-no-l2")


def fully_connected(sizes: Sequence[int]) -> nn.Sequential:
    """Return a fully connected tanh network with uniform Glorot weights and biases of zero."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layer = nn.Linear(n_in, n_out)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class Replicas(lg.ReplicaTraining, Classifier):
    """The replicas of a run."""

    def __init__(self, run: Run) -> None:
        make = partial(fully_connected, run.sizes)
        super().__init__(lg.ReplicaEnsemble(make, run.n_replica), LEARNING_RATE, l2=run.l2)
        self.shared = not run.reshuffled

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the sum of the losses of the replicas. Each replica moves as it would alone."""
        x, y = batch
        return lg.per_replica(cross_entropy, shared=self.shared)(self.net(x, shared=self.shared), y).sum()


def losses(module: LightningModule, batch: Any) -> Tensor:
    """Return the loss of each replica on the same batch, without the L2 term."""
    x, y = batch
    return lg.per_replica(cross_entropy)(module(x), y)


def train(
    run: Run,
    data: TensorDataset,
    steps: int,
    out: Path,
    evaluator: lg.LogTimeEvaluator,
    noise_batches: int | None = None,
) -> None:
    """Train the replicas, measure the gradient noise on so many batches, and save the record in ``out/<name>``."""
    schedule = lg.LogTimeSchedule.preset("subaging", steps)
    noise = lg.GradientNoiseMonitor(schedule, max_batches=noise_batches, loss=losses, summary=False, max_share=None)
    monitor = lg.AgingMonitor(schedule, dirpath=out / run.name, summary=False)
    batches = loader(data, steps, BATCH_SIZE, range(run.n_replica) if run.reshuffled else None)
    train_on_cpu(Replicas(run), steps, [monitor, evaluator, noise], batches)


def results(
    options: Namespace,
    runs: Sequence[Run],
    steps: int,
    task: Callable[[Run], Callable[[], object]],
    analysed: Callable[[Run, AgingRecord, float], dict[str, Any]],
) -> dict[str, Any]:
    """Train all runs, the longest first, and return the results of the study."""
    ordered = sorted(runs, key=lambda run: (run.n_replica, run.n_parameters), reverse=True)
    spent = run_all({run.name: task(run) for run in ordered}, options)
    seconds = spent.pop("runs")
    found = [analysed(run, load_record(run.name, options.out, steps), seconds[run.name]) for run in runs]
    return {"steps": steps, **spent, "runs": found}


def grid_note(result: Mapping[str, Any]) -> list[str]:
    """Return a sentence if the records of the JSON have other lags than the preset of today, else nothing."""
    preset = lg.LogTimeSchedule.preset("subaging", result["steps"]).lags
    lags = result["runs"][0]["lags"]
    if list(preset) == lags:
        return []
    missing = ", ".join(f"{lag:,}" for lag in preset if lag not in lags)
    instead = ", ".join(f"{lag:,}" for lag in lags if lag not in preset)
    return [f"These records have the lags {instead} where the authors, and the preset of today, have {missing}."]


def collapses(fit: AgingExponent | None) -> dict[str, dict[str, float | None]]:
    """Return the exponents by collapse, their errors, and how far the curves miss a common curve."""
    found: Sequence[Mapping[str, float]] = (fit.estimates, fit.standard_errors, fit.scatter) if fit else ({},) * 3
    return {
        key: {name: values.get(method) for name, method in COLLAPSES.items()}
        for key, values in zip(("mu", "mu_error", "scatter"), found, strict=True)
    }


def draw_displacements(run: Mapping[str, Any], thresholds: Sequence[float], ax: Any, title: str) -> None:
    """Draw the displacements of a run of the JSON against the lag, with the thresholds."""
    times, lags, values = (np.array(run[name], dtype=np.float64) for name in ("waiting_times", "lags", "msd"))
    plot_curves(Curves("msd", times.astype(np.int64), lags.astype(np.int64), values[None]), ax=ax)
    for threshold in thresholds:
        ax.axhline(threshold, color="0.4", linestyle=":", linewidth=1)
    ax.set_title(title, fontsize=10)
    ax.set_ylabel(r"mean squared displacement $\Delta(t_w, t_w+t)$")


def finish(ax: Any, x: str, y: str) -> None:
    """Add labels, a grid and a legend to axes with a logarithmic x axis."""
    ax.set(xscale="log", xlabel=x, ylabel=y)
    grid(ax)
    ax.legend(fontsize=8)

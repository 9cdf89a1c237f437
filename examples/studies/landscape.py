"""The landscape around two networks that learn handwritten digits: flat directions, barriers, regimes of the loss.

An under-parametrised network (64-4-4-10, tanh) and an over-parametrised one (64-128-128-10) learn scikit-learn's 1,797
digits, as in ``examples.digits``. Each network is trained once, because the callbacks that look at the landscape take
no replicas. Each network gets a record, a report and TensorBoard logs.

Run it with ``python -m examples.studies.landscape``. It takes about two minutes.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

import lightning_glassy as lg
from examples.studies.common import Classifier, digits, loader, seeded, train_on_cpu
from lightning_glassy import AgingRecord
from lightning_glassy.analysis import NotEnoughDataError, loss_regimes
from lightning_glassy.observables import barrier_height
from lightning_glassy.report import report

STEPS, QUICK_STEPS = 20_000, 500
HIDDEN = {"under-parametrised": 4, "over-parametrised": 128}  # units in each of two hidden layers


def train(name: str, steps: int, out: Path, monitor: lg.AgingMonitor) -> None:
    """Train one network with all callbacks that look at its landscape."""
    train_set, test_set = digits()
    sets = {key: DataLoader(part, batch_size=len(part)) for key, part in (("train", train_set), ("test", test_set))}
    some, h = DataLoader(train_set, batch_size=300), HIDDEN[name]
    spectra = [0, steps // 200, steps // 20, steps // 2, steps]
    products = 330 if h == 4 else 200  # 330 products give all eigenvalues of the small network exactly
    callbacks = [
        monitor,
        lg.LogTimeEvaluator(loaders=sets, summary=False, max_share=None),
        lg.GradientNoiseMonitor(loader=DataLoader(train_set, batch_size=32), summary=False, max_share=None),
        lg.CurvatureMonitor(
            spectra, loader=some, max_batches=1, max_products=products, n_eigenvalues=1, summary=False, max_share=None
        ),
        lg.BarrierMonitor(loader=some, max_batches=2, summary=False, max_share=None),
        lg.DisplacementDistribution(summary=False, max_share=None),
    ]
    net = nn.Sequential(nn.Linear(64, h), nn.Tanh(), nn.Linear(h, h), nn.Tanh(), nn.Linear(h, 10))
    batches = loader(train_set, steps, 32, seeds=0)
    train_on_cpu(Classifier(net, 0.05), steps, callbacks, batches, logger=TensorBoardLogger(out, name=name))


def landscape(name: str, record: AgingRecord) -> str:
    """Return the regimes of the loss, the flat directions and the barriers in words."""
    try:
        regimes = str(loss_regimes(record))
    except NotEnoughDataError as reason:
        regimes = f"no regimes of the loss: {reason}"
    lines = [f"THE LANDSCAPE OF ONE {name.upper()} NETWORK", "", regimes, ""]
    lines.append(f"flat directions (|curvature| < {record.meta['CurvatureMonitor']['eps']:g}) on 300 digits")
    flat = zip(*record.one_time("flat_fraction"), record.one_time("flat_fraction_error")[1], strict=True)
    for step, fraction, error in flat:
        lines.append(f"    at step {step:>7,} {fraction:>6.1%}{f' +- {error:.1%}' if error else ', exactly'}")
    paths = record.profile("loss_path")
    heights = barrier_height(paths.values)
    k = int(heights.argmax())
    first, last = paths.waiting_times[k], paths.waiting_times[k] + paths.lags[k]
    lines += ["", f"barriers on the straight line between the weights at {len(heights)} pairs of times, on 600 digits"]
    lines.append(f"    {np.count_nonzero(heights > 0)} have a barrier")
    if heights[k] > 0:
        lines[-1] += f", the highest of {heights[k]:.3g}, from step {first:,} to step {last:,}"
    return "\n".join(lines)


def main() -> None:
    """Train both networks and report."""
    parser = argparse.ArgumentParser(prog="python -m examples.studies.landscape", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps of each network, not {STEPS:,}")
    parser.add_argument("--out", type=Path, default=Path("runs/landscape"), help="directory of the logs and reports")
    options = parser.parse_args()
    words, where = [], []
    for name in HIDDEN:
        monitor = lg.AgingMonitor(summary=False)
        seeded(partial(train, name, QUICK_STEPS if options.quick else STEPS, options.out, monitor))
        directory = options.out / "report" / name
        report(monitor.record, title=f"{name} network on digits, alone").write(directory)
        words.append(landscape(name, monitor.record))
        where.append(f"    report       {directory / 'report.html'}\n")
    print("\n" + "\n\n\n".join(words) + f"\n\nWhere to look\n{''.join(where)}", end="")
    print(f"    TensorBoard  .venv/bin/lightning-glassy tensorboard {options.out}")


if __name__ == "__main__":
    main()

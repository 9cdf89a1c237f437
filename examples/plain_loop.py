"""Aging curves of a plain PyTorch loop: an ``AgingTracker`` that is told of every step.

Run it with ``python -m examples.plain_loop`` (``--help`` for the options); it takes a few seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from lightning_glassy import AgingTracker


def main() -> None:
    """Train a small net on handwritten digits, save its record, and print a few numbers of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="updates of the weights (default 2000)")
    parser.add_argument("--out", type=Path, default=Path("runs/plain_loop"), help="where the record goes")
    options = parser.parse_args()

    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    tracker = AgingTracker(model.named_parameters(), max_step=options.steps)
    tracker.update(0)  # the weights before the first update
    for step in range(1, options.steps + 1):
        batch = torch.randint(len(x), (32,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        tracker.update(step)
    tracker.drain()

    record = tracker.record
    path = record.save(options.out / "aging_record.npz")
    print(f"record     {path}")
    print(record)
    for waiting_time, row in zip(record.waiting_times, record.msd(), strict=True):
        print(f"t_w = {waiting_time:>6,}: mean squared displacement {row[0]:.2e} after {record.lags[0]} step")


if __name__ == "__main__":
    main()

"""Measure aging curves in a plain PyTorch loop. Call an ``AgingTracker`` after every step.

The record holds the same numbers as the record of a Lightning run. Run it with ``python -m examples.plain_loop``. It
takes a few seconds.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from lightning_glassy import AgingTracker


def main(out: str = "runs/plain_loop", steps: int = 2000) -> None:
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    tracker = AgingTracker(model.named_parameters(), max_step=steps)
    tracker.update(0)  # the weights before the first update
    for step in range(1, steps + 1):
        batch = torch.randint(len(x), (32,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        tracker.update(step)
    tracker.drain()

    record = tracker.record
    print(f"record     {record.save(f'{out}/aging_record.npz')}")
    print(record)
    for waiting_time, row in zip(record.waiting_times, record.msd(), strict=True):
        print(f"t_w = {waiting_time:>6,}: mean squared displacement {row[0]:.2e} after {record.lags[0]} step")


if __name__ == "__main__":
    main()

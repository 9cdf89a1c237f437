"""Make an aging record from checkpoints that exist already. Each checkpoint is compared with each later checkpoint.

A short training writes the checkpoints first. Run it with ``python -m examples.checkpoints``. It takes a few seconds.
The command ``lightning-glassy measure runs/checkpoints/*.pt -o record.npz`` does the same without Python code.
"""

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from lightning_glassy import measure_checkpoints


def train(folder: Path, last: int) -> None:
    """Train a small network on handwritten digits, and write checkpoints at log-spaced steps."""
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    folder.mkdir(parents=True, exist_ok=True)
    for step in range(1, last + 1):
        batch = torch.randint(len(x), (32,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        if step & (step - 1) == 0:  # at the powers of two
            torch.save(model.state_dict(), folder / f"step={step}.pt")


def main(out: str = "runs/checkpoints", last: int = 2048) -> None:
    folder = Path(out)
    train(folder, last)

    # Files of a Lightning Trainer (.ckpt) and .safetensors files work as well. The step is in the file or in its name.
    record = measure_checkpoints(list(folder.glob("*.pt")))
    path = record.save(folder / "aging_record.npz")
    print(f"{record}\nmean squared displacements:")
    for waiting_time, row in zip(record.waiting_times, record.msd(), strict=True):
        known = row[row == row]  # NaN where there is no pair of checkpoints
        print(f"t_w = {waiting_time:>5}: {known[0]:.1e} until the next checkpoint, {known[-1]:.1e} until the last one")
    print(f"to see more: .venv/bin/lightning-glassy report {path}")


if __name__ == "__main__":
    main()

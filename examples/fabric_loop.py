"""Measure aging curves in a loop of Lightning Fabric. Fabric calls the callback at every step of the optimiser.

The callback writes the record. It also writes to the loggers of Fabric if there are any. Run it with
``python -m examples.fabric_loop``. It takes a few seconds.
"""

import torch
from lightning.fabric import Fabric
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from lightning_glassy import FabricAgingMonitor


def main(out: str = "runs/fabric_loop", steps: int = 1000) -> None:
    monitor = FabricAgingMonitor(max_step=steps, dirpath=out)
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[monitor])
    fabric.seed_everything(0)
    pixels, labels = load_digits(return_X_y=True)
    dataset = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels))
    batches = DataLoader(dataset, batch_size=32, sampler=RandomSampler(dataset, num_samples=32 * steps))
    net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.05))

    monitor.start(model, optimizer, fabric=fabric)  # the weights before the first update
    for x, y in fabric.setup_dataloaders(batches):
        optimizer.zero_grad()
        fabric.backward(nn.functional.cross_entropy(model(x), y))
        optimizer.step()
    fabric.call("on_train_end")

    if fabric.is_global_zero:
        record = monitor.record
        print("\n".join(monitor.where()))
        print(record)
        for waiting_time, row in zip(record.waiting_times, record.msd(), strict=True):
            print(f"t_w = {waiting_time:>6,}: mean squared displacement {row[0]:.2e} after {record.lags[0]} step")


if __name__ == "__main__":
    main()

"""The reference systems as LightningModules: trained by a Trainer, measured like any network.

Each has its weights as one float32 parameter ``w`` of N independent coordinates, and its noise from a generator of its
own, so that a run is determined by its seed. They need no data: :meth:`GlassModule.train_dataloader` counts steps.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_glassy.glasses.beta_descent import BetaDescent
from lightning_glassy.glasses.random_walk import RandomWalk
from lightning_glassy.glasses.sgd_quadratic import SGDQuadratic
from lightning_glassy.glasses.subaging_clock import SubagingClock


class GlassModule(LightningModule):
    """What the trainable reference systems share.

    Args:
        n: number of coordinates N.
        steps: number of updates in an epoch.
        initial_variance: variance of the initial weights.
        seed: of the initial weights and of the noise.
    """

    def __init__(self, n: int, steps: int, initial_variance: float, seed: int = 0) -> None:
        super().__init__()
        self.steps = steps
        self.generator = torch.Generator().manual_seed(seed)
        self.w = torch.nn.Parameter(initial_variance**0.5 * self.noise(n))

    def noise(self, n: int) -> Tensor:
        """Fresh independent normal numbers, ``[n]``."""
        return torch.randn(n, generator=self.generator)

    def train_dataloader(self) -> DataLoader[Any]:
        """One empty batch per update."""
        return DataLoader(torch.zeros(self.steps), batch_size=1)  # type: ignore[arg-type]


class RandomWalkModule(GlassModule):
    r"""SGD with learning rate 1 on the loss :math:`-\sigma\,\xi\cdot w`: each update adds :math:`\sigma\xi`."""

    def __init__(self, glass: RandomWalk, n: int, steps: int, seed: int = 0) -> None:
        super().__init__(n, steps, initial_variance=0.0, seed=seed)
        self.glass = glass

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """The loss whose gradient is pure noise."""
        return -self.glass.sigma * self.noise(len(self.w)).to(self.w) @ self.w

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD with unit learning rate."""
        return torch.optim.SGD(self.parameters(), lr=1.0)


class SGDQuadraticModule(GlassModule):
    r"""SGD on :math:`\frac{1}{2}\lambda|w|^2 + \sigma\,\xi\cdot w`."""

    def __init__(self, glass: SGDQuadratic, n: int, steps: int, seed: int = 0) -> None:
        super().__init__(n, steps, glass.initial_variance, seed)
        self.glass = glass

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """A quadratic valley, tilted anew at each step."""
        noise = self.noise(len(self.w)).to(self.w)
        return 0.5 * self.glass.curvature * self.w @ self.w + self.glass.noise * noise @ self.w

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD, with the momentum of the reference system."""
        return torch.optim.SGD(self.parameters(), lr=self.glass.learning_rate, momentum=self.glass.momentum)


class SubagingClockModule(GlassModule):
    r"""SGD on :math:`|w|^2/2`, learning rate :math:`\eta_n = 1-a_n`, gradient noise :math:`\sqrt{1-a_n^2}/\eta_n`."""

    def __init__(self, glass: SubagingClock, n: int, steps: int, seed: int = 0) -> None:
        super().__init__(n, steps, initial_variance=1.0, seed=seed)
        self.glass = glass

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """A quadratic valley with the noise that keeps the variance at 1 under this step's learning rate."""
        a = float(self.glass.factor(self.global_step + 1))
        strength = ((1 + a) / (1 - a)) ** 0.5 if a < 1 else 0.0  # at mu = 1 the clock stands still in the first step
        loss: Tensor = 0.5 * self.w @ self.w + strength * self.noise(len(self.w)).to(self.w) @ self.w
        return loss

    def configure_optimizers(self) -> Any:
        """SGD whose learning rate follows the clock, step by step."""
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 - float(self.glass.factor(n + 1)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


class BetaDescentModule(GlassModule):
    r"""Gradient descent on :math:`\sum_i \lambda_i w_i^2/2`, learning rate 1, :math:`1-\lambda \sim` Beta(b, a)."""

    factors: Tensor

    def __init__(self, glass: BetaDescent, n: int, steps: int, seed: int = 0) -> None:
        super().__init__(n, steps, glass.initial_variance, seed)
        self.glass = glass
        # torch's Beta distribution takes no generator; the inverse of a uniform number is not known in closed form.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            u = torch.distributions.Beta(glass.b, glass.a).sample((n,))
        self.register_buffer("factors", u)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """The sum of the quadratic valleys."""
        return 0.5 * ((1 - self.factors) * self.w**2).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD with unit learning rate."""
        return torch.optim.SGD(self.parameters(), lr=1.0)

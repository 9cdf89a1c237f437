"""The reference systems as LightningModules: trained by a Trainer, measured like any network.

Each has its weights as one float32 parameter ``w``, of N independent coordinates but for the p-spin model, and its
noise from a generator of its own, so that a run is determined by its seed. They need no data:
:meth:`GlassModule.train_dataloader` counts steps.
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
from lightning_glassy.glasses.spherical_pspin import SphericalPSpin
from lightning_glassy.glasses.subaging_clock import SubagingClock


class GlassModule(LightningModule):
    """What the trainable reference systems share.

    Args:
        n: number of coordinates N, or the shape of the weights.
        steps: number of updates in an epoch.
        initial_variance: variance of the initial weights.
        seed: of the initial weights and of the noise.
    """

    def __init__(self, n: int | tuple[int, ...], steps: int, initial_variance: float, seed: int = 0) -> None:
        super().__init__()
        self.steps = steps
        self.generator = torch.Generator().manual_seed(seed)
        self.w = torch.nn.Parameter(initial_variance**0.5 * self.noise(n))

    def noise(self, n: int | tuple[int, ...]) -> Tensor:
        """Fresh independent normal numbers, ``[n]`` or of that shape."""
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


class SphericalPSpinModule(GlassModule):
    r"""The spherical p-spin model at finite N: descent, or Langevin dynamics, projected on the sphere at each step.

    SGD with learning rate :math:`\eta` on :math:`H - \sqrt{2T/\eta}\,\xi\cdot w`, then :math:`w \leftarrow
    w\sqrt{N}/|w|`: n steps are the time :math:`t = n\eta` of :class:`~lightning_glassy.glasses.SphericalPSpin`. The
    energy :math:`H = -\sum_{i_1 \ldots i_p} J_{i_1 \ldots i_p} w_{i_1}\cdots w_{i_p}` sums over all indices, with the
    full Gaussian tensor of variance :math:`1/(2N^{p-1})` an entry, so that :math:`\langle H(w)H(w')\rangle =
    \frac{N}{2}C^p` exactly. Replicas share the couplings, and differ in initial weights and noise: averages over the
    couplings need several seeds. Finite size changes the averages by :math:`O(1/N)`: for p = 3 and T = 0 the energy at
    t = 10 was 0.034 too high at N = 100, 0.016 at N = 200 (8 seeds, errors 0.005, 0.004). The projected step does by
    :math:`O(\eta)`: for p = 2, T = 0.5 and :math:`\eta = 0.02` the correlation :math:`C(10, 11)` is 0.008 too large.

    Args:
        glass: p and the temperature; 0 is gradient descent.
        n: number of weights N of a replica. The couplings take :math:`4N^p` bytes.
        steps: number of updates in an epoch.
        learning_rate: :math:`\eta`, the length of a step in the units of time of the model.
        n_replica: number of replicas; ``w`` is ``[n_replica, n]``.
        seed: of the couplings, the initial weights and the noise.
    """

    couplings: Tensor

    def __init__(
        self, glass: SphericalPSpin, n: int, steps: int, learning_rate: float, n_replica: int = 1, seed: int = 0
    ) -> None:
        super().__init__((n_replica, n), steps, initial_variance=1.0, seed=seed)
        self.glass, self.learning_rate = glass, learning_rate
        couplings = self.noise((n,) * glass.p).mul_((2 * float(n) ** (glass.p - 1)) ** -0.5)
        # Drawn again from the seed: a checkpoint would be huge with them.
        self.register_buffer("couplings", couplings, persistent=False)
        self.project()

    def energy(self) -> Tensor:
        """Energy per weight of each replica, ``[n_replica]``."""
        n_replica, n = self.w.shape
        rest = self.w @ self.couplings.view(n, -1)
        for _ in range(self.glass.p - 1):
            rest = torch.einsum("ri,rij->rj", self.w, rest.view(n_replica, n, -1))
        return -rest.squeeze(1) / n

    @torch.no_grad()
    def project(self) -> None:
        """Bring each replica back to the sphere."""
        self.w.mul_(self.w.shape[1] ** 0.5 / torch.linalg.vector_norm(self.w, dim=1, keepdim=True))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """The energy, tilted anew at each step if there is a temperature."""
        loss = self.w.shape[1] * self.energy().sum()
        if self.glass.temperature:
            strength = (2 * self.glass.temperature / self.learning_rate) ** 0.5
            loss = loss - strength * (self.noise(tuple(self.w.shape)).to(self.w) * self.w).sum()
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The update, and the projection: part of the same step for whoever looks at the weights after it."""
        super().optimizer_step(*args, **kwargs)
        self.project()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)

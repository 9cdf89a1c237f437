"""The reference systems as LightningModules: trained by a Trainer, measured like any network.

The weights of a system are one float32 parameter ``w``. Its coordinates are independent, except in the p-spin model.
The noise comes from a separate generator, so that the seed determines the run. The systems need no data:
:meth:`GlassModule.train_dataloader` counts the steps.
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
    """Base class of the reference systems that can be trained, by plain SGD.

    Args:
        glass: the reference system.
        n: number of coordinates N, or the shape of the weights.
        steps: number of updates in an epoch.
        seed: seed of the initial weights and of the noise.
    """

    glass: Any
    learning_rate = 1.0

    def __init__(self, glass: Any, n: int | tuple[int, ...], steps: int, seed: int = 0) -> None:
        super().__init__()
        self.glass, self.steps = glass, steps
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self.w = torch.nn.Parameter(glass.initial_variance**0.5 * self.noise(n))

    def noise(self, n: int | tuple[int, ...]) -> Tensor:
        """Draw independent normal numbers, ``[n]`` or of the shape ``n``."""
        return torch.randn(n, generator=self.generator, device="cpu")

    def train_dataloader(self) -> DataLoader[Any]:
        """Return a loader with one empty batch per update."""
        return DataLoader(torch.zeros(self.steps, device="cpu"), batch_size=1)  # type: ignore[arg-type]

    def configure_optimizers(self) -> Any:
        """Return plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


class RandomWalkModule(GlassModule):
    r"""SGD with learning rate 1 on the loss :math:`-\sigma\,\xi\cdot w`: each update adds :math:`\sigma\xi`."""

    glass: RandomWalk

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return a loss with pure noise as its gradient."""
        return -self.glass.sigma * self.noise(len(self.w)).to(self.w) @ self.w


class SGDQuadraticModule(GlassModule):
    r"""SGD on :math:`\frac{1}{2}\lambda|w|^2 + \sigma\,\xi\cdot w`."""

    glass: SGDQuadratic

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the loss: a quadratic valley with a random tilt, which is new at each step."""
        noise = self.noise(len(self.w)).to(self.w)
        return 0.5 * self.glass.curvature * self.w @ self.w + self.glass.noise * noise @ self.w

    def configure_optimizers(self) -> Any:
        """Return SGD with the learning rate and the momentum of the reference system."""
        return torch.optim.SGD(self.parameters(), lr=self.glass.learning_rate, momentum=self.glass.momentum)


class SubagingClockModule(GlassModule):
    r"""SGD on :math:`|w|^2/2`, learning rate :math:`\eta_n = 1-a_n`, gradient noise :math:`\sqrt{1-a_n^2}/\eta_n`."""

    glass: SubagingClock

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the loss: a quadratic valley, with the noise that keeps the variance at 1 in this step."""
        a = float(self.glass.factor(self.global_step + 1))
        strength = ((1 + a) / (1 - a)) ** 0.5 if a < 1 else 0.0  # at mu = 1 the clock stands still in the first step
        loss: Tensor = 0.5 * self.w @ self.w + strength * self.noise(len(self.w)).to(self.w) @ self.w
        return loss

    def configure_optimizers(self) -> Any:
        """Return SGD with a learning rate that follows the clock at each step."""
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 - float(self.glass.factor(n + 1)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


class BetaDescentModule(GlassModule):
    r"""Gradient descent on :math:`\sum_i \lambda_i w_i^2/2`, learning rate 1, :math:`1-\lambda \sim` Beta(b, a)."""

    glass: BetaDescent
    factors: Tensor

    def __init__(self, glass: BetaDescent, n: int, steps: int, seed: int = 0) -> None:
        super().__init__(glass, n, steps, seed)
        # torch's Beta distribution takes no generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            u = torch.distributions.Beta(glass.b, glass.a).sample((n,))
        self.register_buffer("factors", u)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the sum of the quadratic valleys."""
        return 0.5 * ((1 - self.factors) * self.w**2).sum()


class SphericalPSpinModule(GlassModule):
    r"""The spherical p-spin model at finite N: gradient descent, or Langevin dynamics, projected on the sphere.

    A step is SGD with learning rate :math:`\eta` on :math:`H - \sqrt{2T/\eta}\,\xi\cdot w`, and then :math:`w
    \leftarrow w\sqrt{N}/|w|`. After n steps, the time of :class:`~lightning_glassy.glasses.SphericalPSpin` is
    :math:`t = n\eta`.

    The energy :math:`H = -\sum_{i_1 \ldots i_p} J_{i_1 \ldots i_p} w_{i_1}\cdots w_{i_p}` sums over all indices. The
    entries of the full tensor are Gaussian with variance :math:`1/(2N^{p-1})`, so that :math:`\langle H(w)H(w')\rangle
    = \frac{N}{2}C^p` exactly. All replicas have the same couplings. They differ in initial weights and noise, so an
    average over couplings needs several seeds.

    Finite size changes the averages by :math:`O(1/N)`. For p = 3 and T = 0, the energy at t = 10 was 0.034 too high at
    N = 100, and 0.016 at N = 200 (8 seeds, errors 0.005 and 0.004). The projected step changes them by
    :math:`O(\eta)`. For p = 2, T = 0.5 and :math:`\eta = 0.02`, the correlation :math:`C(10, 11)` is 0.008 too large.

    Args:
        glass: p and the temperature. Temperature 0 is gradient descent.
        n: number of weights N of a replica. The couplings take :math:`4N^p` bytes.
        steps: number of updates in an epoch.
        learning_rate: :math:`\eta`, the length of a step in the units of time of the model.
        n_replica: number of replicas. The shape of ``w`` is ``[n_replica, n]``.
        seed: seed of the couplings, the initial weights and the noise.
    """

    glass: SphericalPSpin
    couplings: Tensor

    def __init__(
        self, glass: SphericalPSpin, n: int, steps: int, learning_rate: float, n_replica: int = 1, seed: int = 0
    ) -> None:
        super().__init__(glass, (n_replica, n), steps, seed)
        self.learning_rate = learning_rate
        couplings = self.noise((n,) * glass.p).mul_((2 * float(n) ** (glass.p - 1)) ** -0.5)
        # A checkpoint with the couplings would be huge. The seed gives them again.
        self.register_buffer("couplings", couplings, persistent=False)
        self.project()

    def energy(self) -> Tensor:
        """Return the energy per weight of each replica, ``[n_replica]``."""
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
        """Return the energy, with a random tilt if there is a temperature."""
        loss = self.w.shape[1] * self.energy().sum()
        if self.glass.temperature:
            strength = (2 * self.glass.temperature / self.learning_rate) ** 0.5
            loss = loss - strength * (self.noise(tuple(self.w.shape)).to(self.w) * self.w).sum()
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update and project the weights, so that a callback sees them on the sphere after the step."""
        super().optimizer_step(*args, **kwargs)
        self.project()

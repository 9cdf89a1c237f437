"""Reference systems with known answers: exact two-time functions to compare a measurement with.

One file per system, NumPy only. :mod:`lightning_glassy.glasses.modules` has the same systems as LightningModules, which
a Trainer trains and a callback measures like any network.
"""

from lightning_glassy.glasses.beta_descent import BetaDescent
from lightning_glassy.glasses.gaussian import GaussianGlass
from lightning_glassy.glasses.random_walk import RandomWalk
from lightning_glassy.glasses.sgd_quadratic import SGDQuadratic
from lightning_glassy.glasses.subaging_clock import SubagingClock

__all__ = ["BetaDescent", "GaussianGlass", "RandomWalk", "SGDQuadratic", "SubagingClock"]

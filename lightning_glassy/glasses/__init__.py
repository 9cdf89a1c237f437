"""Reference systems with exact two-time functions, to compare a measurement with.

Each file has one system, in NumPy and SciPy alone. :mod:`lightning_glassy.glasses.modules` has the LightningModules: a
Trainer trains them, and a callback measures them like any network.

=================================  ========================================  ==========================
system                             motion                                    aging
=================================  ========================================  ==========================
:class:`RandomWalk`                free diffusion                            none
:class:`FractionalBrownianMotion`  anomalous diffusion                       none
:class:`SGDQuadratic`              SGD in a quadratic valley, with momentum  stops at relaxation
:class:`SubagingClock`             relaxation on a slowing clock             any exponent 0 ... 1
:class:`ScaledBrownianMotion`      diffusion on a slowing clock              1 - alpha, by threshold
:class:`LogClock`                  diffusion on a logarithmic clock          full
:class:`BetaDescent`               descent into ever flatter directions      full
:class:`BouchaudTrap`              traps with sojourns of infinite mean      full
:class:`SphericalP2`               a quench without barriers, exactly        full, below its transition
:class:`SphericalPSpin`            a quench into a glass, numerically        full, below its transition
=================================  ========================================  ==========================

The methods of a system with its exact answers:

=================================  ==================================================================================
system                             exact answers
=================================  ==================================================================================
:class:`RandomWalk`                correlation, displacement, their sampling errors, response
:class:`FractionalBrownianMotion`  correlation, displacement, their sampling errors
:class:`SGDQuadratic`              correlation, displacement, their sampling errors, response, effective temperature
:class:`SubagingClock`             correlation, displacement, their sampling errors, lag to a correlation
:class:`ScaledBrownianMotion`      correlation, displacement, their sampling errors
:class:`LogClock`                  correlation, displacement, their sampling errors
:class:`BetaDescent`               correlation, displacement, its sampling errors
:class:`BouchaudTrap`              displacement, probability of no jump
:class:`SphericalP2`               correlation, displacement, response, energy, for an infinite system
:class:`SphericalPSpin`            the same from equations, transition, plateau, fluctuation-dissipation ratio X
=================================  ==================================================================================
"""

from lightning_glassy.glasses.beta_descent import BetaDescent
from lightning_glassy.glasses.fractional_brownian import FractionalBrownianMotion
from lightning_glassy.glasses.gaussian import GaussianGlass
from lightning_glassy.glasses.random_walk import RandomWalk
from lightning_glassy.glasses.scaled_brownian import LogClock, ScaledBrownianMotion
from lightning_glassy.glasses.sgd_quadratic import SGDQuadratic
from lightning_glassy.glasses.spherical_p2 import SphericalP2
from lightning_glassy.glasses.spherical_pspin import SphericalPSpin, TwoTimeSolution
from lightning_glassy.glasses.subaging_clock import SubagingClock
from lightning_glassy.glasses.trap import BouchaudTrap

__all__ = [
    "BetaDescent",
    "BouchaudTrap",
    "FractionalBrownianMotion",
    "GaussianGlass",
    "LogClock",
    "RandomWalk",
    "SGDQuadratic",
    "ScaledBrownianMotion",
    "SphericalP2",
    "SphericalPSpin",
    "SubagingClock",
    "TwoTimeSolution",
]

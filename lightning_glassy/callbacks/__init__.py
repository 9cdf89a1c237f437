"""Callbacks for a Trainer or Fabric, and the base classes of measurements.

To add a measurement, derive from one of these classes, and write ``measure``:

=============================  =====================================================================================
class                          measures
=============================  =====================================================================================
:class:`Measurement`           numbers along the run, from the weights
:class:`NetworkMeasurement`    numbers along the run, by running the network on batches
:class:`PairMeasurement`       functions at pairs of times, from the snapshots of an :class:`AgingMonitor`
=============================  =====================================================================================
"""

from lightning_glassy.callbacks.aging import AgingMonitor
from lightning_glassy.callbacks.barrier import BarrierMonitor
from lightning_glassy.callbacks.curvature import CurvatureMonitor
from lightning_glassy.callbacks.distribution import DisplacementDistribution
from lightning_glassy.callbacks.evaluation import LogTimeEvaluator
from lightning_glassy.callbacks.fabric import FabricAgingMonitor
from lightning_glassy.callbacks.gradient_noise import GradientNoiseMonitor
from lightning_glassy.callbacks.inherent_structures import InherentStructures
from lightning_glassy.callbacks.measurement import Measurement
from lightning_glassy.callbacks.network import NetworkMeasurement
from lightning_glassy.callbacks.pairs import PairMeasurement
from lightning_glassy.callbacks.replica_overlap import ReplicaOverlap
from lightning_glassy.callbacks.response import ResponseMonitor

__all__ = [
    "AgingMonitor",
    "BarrierMonitor",
    "CurvatureMonitor",
    "DisplacementDistribution",
    "FabricAgingMonitor",
    "GradientNoiseMonitor",
    "InherentStructures",
    "LogTimeEvaluator",
    "Measurement",
    "NetworkMeasurement",
    "PairMeasurement",
    "ReplicaOverlap",
    "ResponseMonitor",
]

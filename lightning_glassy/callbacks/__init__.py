"""Thin translations of the hooks of a Trainer, and of Fabric, to the tracker; and what measures the network itself."""

from lightning_glassy.callbacks.aging import AgingMonitor
from lightning_glassy.callbacks.barrier import BarrierMonitor
from lightning_glassy.callbacks.curvature import CurvatureMonitor
from lightning_glassy.callbacks.distribution import DisplacementDistribution
from lightning_glassy.callbacks.evaluation import LogTimeEvaluator
from lightning_glassy.callbacks.fabric import FabricAgingMonitor
from lightning_glassy.callbacks.gradient_noise import GradientNoiseMonitor
from lightning_glassy.callbacks.replica_overlap import ReplicaOverlap

__all__ = [
    "AgingMonitor",
    "BarrierMonitor",
    "CurvatureMonitor",
    "DisplacementDistribution",
    "FabricAgingMonitor",
    "GradientNoiseMonitor",
    "LogTimeEvaluator",
    "ReplicaOverlap",
]

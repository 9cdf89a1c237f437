"""Thin translations of the hooks of a Trainer, and of Fabric, to the tracker; and what measures the network itself."""

from lightning_glassy.callbacks.aging import AgingMonitor
from lightning_glassy.callbacks.barrier import BarrierMonitor
from lightning_glassy.callbacks.distribution import DisplacementDistribution
from lightning_glassy.callbacks.evaluation import LogTimeEvaluator
from lightning_glassy.callbacks.fabric import FabricAgingMonitor
from lightning_glassy.callbacks.gradient_noise import GradientNoiseMonitor

__all__ = [
    "AgingMonitor",
    "BarrierMonitor",
    "DisplacementDistribution",
    "FabricAgingMonitor",
    "GradientNoiseMonitor",
    "LogTimeEvaluator",
]

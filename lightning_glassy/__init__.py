"""Aging diagnostics for any Lightning training run.

A public name is imported at its first use. Therefore ``import lightning_glassy`` imports neither torch nor lightning,
and a record can be read without them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # type checkers cannot read _HOMES. A test checks that both lists agree
    from lightning_glassy.callbacks.aging import AgingMonitor as AgingMonitor
    from lightning_glassy.callbacks.barrier import BarrierMonitor as BarrierMonitor
    from lightning_glassy.callbacks.curvature import CurvatureMonitor as CurvatureMonitor
    from lightning_glassy.callbacks.distribution import DisplacementDistribution as DisplacementDistribution
    from lightning_glassy.callbacks.evaluation import LogTimeEvaluator as LogTimeEvaluator
    from lightning_glassy.callbacks.fabric import FabricAgingMonitor as FabricAgingMonitor
    from lightning_glassy.callbacks.gradient_noise import GradientNoiseMonitor as GradientNoiseMonitor
    from lightning_glassy.callbacks.inherent_structures import InherentStructures as InherentStructures
    from lightning_glassy.callbacks.measurement import Measurement as Measurement
    from lightning_glassy.callbacks.network import NetworkMeasurement as NetworkMeasurement
    from lightning_glassy.callbacks.pairs import PairMeasurement as PairMeasurement
    from lightning_glassy.callbacks.replica_overlap import ReplicaOverlap as ReplicaOverlap
    from lightning_glassy.callbacks.response import ResponseMonitor as ResponseMonitor
    from lightning_glassy.checkpoints import measure_checkpoints as measure_checkpoints
    from lightning_glassy.langevin import Langevin as Langevin
    from lightning_glassy.measure.tracker import AgingTracker as AgingTracker
    from lightning_glassy.record import AgingRecord as AgingRecord
    from lightning_glassy.record import RecordError as RecordError
    from lightning_glassy.replicas import ReplicaEnsemble as ReplicaEnsemble
    from lightning_glassy.replicas import ReplicaTraining as ReplicaTraining
    from lightning_glassy.replicas import per_replica as per_replica
    from lightning_glassy.replicas import replica_loader as replica_loader
    from lightning_glassy.schedule import LogTimeSchedule as LogTimeSchedule
    from lightning_glassy.schedule import Steps as Steps

__version__ = "0.1.0"

_HOMES = {
    "AgingMonitor": "callbacks.aging",
    "AgingRecord": "record",
    "AgingTracker": "measure.tracker",
    "BarrierMonitor": "callbacks.barrier",
    "CurvatureMonitor": "callbacks.curvature",
    "DisplacementDistribution": "callbacks.distribution",
    "FabricAgingMonitor": "callbacks.fabric",
    "GradientNoiseMonitor": "callbacks.gradient_noise",
    "InherentStructures": "callbacks.inherent_structures",
    "Langevin": "langevin",
    "LogTimeEvaluator": "callbacks.evaluation",
    "LogTimeSchedule": "schedule",
    "Measurement": "callbacks.measurement",
    "NetworkMeasurement": "callbacks.network",
    "PairMeasurement": "callbacks.pairs",
    "RecordError": "record",
    "ReplicaEnsemble": "replicas",
    "ReplicaOverlap": "callbacks.replica_overlap",
    "ReplicaTraining": "replicas",
    "ResponseMonitor": "callbacks.response",
    "Steps": "schedule",
    "measure_checkpoints": "checkpoints",
    "per_replica": "replicas",
    "replica_loader": "replicas",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"lightning_glassy.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

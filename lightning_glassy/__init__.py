"""Aging diagnostics for any Lightning training run.

The public names are imported when they are first used, so that importing the package, or reading a record, imports
neither torch nor lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_glassy.callbacks.aging import AgingMonitor
    from lightning_glassy.callbacks.barrier import BarrierMonitor
    from lightning_glassy.callbacks.curvature import CurvatureMonitor
    from lightning_glassy.callbacks.distribution import DisplacementDistribution
    from lightning_glassy.callbacks.evaluation import LogTimeEvaluator
    from lightning_glassy.callbacks.fabric import FabricAgingMonitor
    from lightning_glassy.callbacks.gradient_noise import GradientNoiseMonitor
    from lightning_glassy.callbacks.replica_overlap import ReplicaOverlap
    from lightning_glassy.checkpoints import measure_checkpoints
    from lightning_glassy.record import AgingRecord, RecordError
    from lightning_glassy.replicas import ReplicaEnsemble, ReplicaTraining, per_replica, replica_loader
    from lightning_glassy.schedule import LogTimeSchedule
    from lightning_glassy.tracker import AgingTracker

__version__ = "0.1.0"

__all__ = [
    "AgingMonitor",
    "AgingRecord",
    "AgingTracker",
    "BarrierMonitor",
    "CurvatureMonitor",
    "DisplacementDistribution",
    "FabricAgingMonitor",
    "GradientNoiseMonitor",
    "LogTimeEvaluator",
    "LogTimeSchedule",
    "RecordError",
    "ReplicaEnsemble",
    "ReplicaOverlap",
    "ReplicaTraining",
    "__version__",
    "measure_checkpoints",
    "per_replica",
    "replica_loader",
]

_HOMES = {
    "AgingMonitor": "lightning_glassy.callbacks.aging",
    "AgingRecord": "lightning_glassy.record",
    "AgingTracker": "lightning_glassy.tracker",
    "BarrierMonitor": "lightning_glassy.callbacks.barrier",
    "CurvatureMonitor": "lightning_glassy.callbacks.curvature",
    "DisplacementDistribution": "lightning_glassy.callbacks.distribution",
    "FabricAgingMonitor": "lightning_glassy.callbacks.fabric",
    "GradientNoiseMonitor": "lightning_glassy.callbacks.gradient_noise",
    "LogTimeEvaluator": "lightning_glassy.callbacks.evaluation",
    "LogTimeSchedule": "lightning_glassy.schedule",
    "RecordError": "lightning_glassy.record",
    "ReplicaEnsemble": "lightning_glassy.replicas",
    "ReplicaOverlap": "lightning_glassy.callbacks.replica_overlap",
    "ReplicaTraining": "lightning_glassy.replicas",
    "measure_checkpoints": "lightning_glassy.checkpoints",
    "per_replica": "lightning_glassy.replicas",
    "replica_loader": "lightning_glassy.replicas",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

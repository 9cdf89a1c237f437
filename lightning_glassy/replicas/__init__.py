"""Replicas: R independent realisations of one training, run as one batched network.

Every tensor (parameters, outputs, losses, norms) has the replicas as its first axis: slice r belongs to replica r. Only
the loss sums over this axis, so each replica follows the trajectory that it would have alone.
"""

from lightning_glassy.replicas.batches import ReplicaBatchSampler, replica_loader
from lightning_glassy.replicas.ensemble import ReplicaEnsemble, replica_axes
from lightning_glassy.replicas.losses import per_replica
from lightning_glassy.replicas.training import ReplicaTraining

__all__ = [
    "ReplicaBatchSampler",
    "ReplicaEnsemble",
    "ReplicaTraining",
    "per_replica",
    "replica_axes",
    "replica_loader",
]

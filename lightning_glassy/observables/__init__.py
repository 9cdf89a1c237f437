"""Observables computed from the raw moments: formulas from arrays to arrays, and the registry of observables.

:data:`OBSERVABLES` lists every observable of a record. ``lightning_glassy.observables.registry`` explains how to add an
observable.
"""

from lightning_glassy.observables.arrays import Array
from lightning_glassy.observables.distributions import (
    barrier_height,
    default_overlap_thresholds,
    density,
    fold,
    gaussian_probabilities,
)
from lightning_glassy.observables.registry import (
    NOT_SUMS,
    OBSERVABLES,
    Formula,
    Observable,
    Relaxation,
    find,
    relaxation_of,
    relaxing,
    unicode_of,
)
from lightning_glassy.observables.two_time import (
    CorrelationKind,
    binder_cumulant,
    chi4,
    chi4_error,
    correlation,
    decorrelation,
    local_exponent,
    msd,
    msd_standard_error,
    non_gaussian,
    normalised_msd,
    overlap,
    overlap_standard_error,
    replica_overlap,
)

__all__ = [
    "NOT_SUMS",
    "OBSERVABLES",
    "Array",
    "CorrelationKind",
    "Formula",
    "Observable",
    "Relaxation",
    "barrier_height",
    "binder_cumulant",
    "chi4",
    "chi4_error",
    "correlation",
    "decorrelation",
    "default_overlap_thresholds",
    "density",
    "find",
    "fold",
    "gaussian_probabilities",
    "local_exponent",
    "msd",
    "msd_standard_error",
    "non_gaussian",
    "normalised_msd",
    "overlap",
    "overlap_standard_error",
    "relaxation_of",
    "relaxing",
    "replica_overlap",
    "unicode_of",
]

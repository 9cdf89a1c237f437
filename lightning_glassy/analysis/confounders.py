"""Reasons to doubt an aging curve: doubts about the numbers, and properties of a training that change its clock."""

from __future__ import annotations

import numpy as np

from lightning_glassy.record import AgingRecord
from lightning_glassy.record.text import few


def confounders(record: AgingRecord) -> list[str]:
    """Return the doubts that a record carries, and the properties of the training that change the clock.

    Each is one sentence. The doubts are :attr:`AgingRecord.doubts`. The properties come from the metadata and the
    series ``"learning_rate"`` of :class:`~lightning_glassy.AgingMonitor`. The list is empty if a record has none of
    them.
    """
    found = record.doubts
    for series in record.one_time_names:
        rates = record.one_time(series)[1] if series.startswith("learning_rate") else np.empty(0)
        rates = rates[np.isfinite(rates)]
        if len(rates) and np.ptp(rates) > 0.01 * np.abs(rates).max():
            found.append("the learning rate changed during the run: so did the clock")
            break
    if record.meta.get("sampler") == "SequentialSampler":
        found.append("the order of the batches is fixed: curves dip at multiples of an epoch")
    if clones := record.clones:
        names = ", ".join(map(str, few(sorted({replica for pair in clones for replica in pair}), 8)))
        found.append(
            f"the replicas {names} (counted from 0) have had the same weights at a waiting time, or nearly so: the "
            "scatter of such clones is that of the noise alone, not that of independent runs"
        )
    replicas = record.meta.get("replicas")
    metas = [record.meta, *(replicas if isinstance(replicas, list) else [])]
    counts = [meta.get("steps_without_update") for meta in metas if isinstance(meta, dict)]
    skipped = max((count for count in counts if isinstance(count, int)), default=0)
    if skipped > 0:
        found.append(
            f"{'up to ' if len(metas) > 1 else ''}{skipped:,} steps were no updates (training_step returned None, or "
            "the gradient scaler skipped them): the clock counts them"
        )
    optimizers = record.meta.get("optimizers")
    for optimizer in optimizers if isinstance(optimizers, list) else []:
        name = optimizer.get("name") if isinstance(optimizer, dict) else None
        groups = optimizer.get("parameter_groups") if isinstance(optimizer, dict) else None
        groups = [group for group in groups if isinstance(group, dict)] if isinstance(groups, list) else []
        if not name and any("betas" in group for group in groups):
            name = "an optimiser of Adam's kind"  # a checkpoint does not name its optimiser
        if name and name not in ("SGD", "Langevin"):
            found.append(f"{name} rescales its steps: what is measured is the motion under this optimiser")
        if any(group.get("momentum") for group in groups):
            found.append("momentum: lags below 1/(1 - momentum) steps are ballistic")
        if any(group.get("weight_decay") for group in groups):
            found.append("weight decay moves the weights by itself")
    return list(dict.fromkeys(found))  # several optimisers have the same doubts

"""The number of coordinates that plain torch works on at once.

On a CPU, a tile stays in the cache, so that each pass after the first is cheap. On a GPU, memory is fast and each
operation keeps the host for microseconds. Tiles are as large there as 64 MiB allow, for a model of any size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lightning_glassy.measure.layout import Bucket

_GPU_BYTES = 60 << 20  # with the sums, less than 64 MiB

# Memory for finding a coordinate in a tensor that is not dense: up to five integers, and a copy.
_NOT_DENSE = 48


def few_operations(device: torch.device) -> bool:
    """Return whether few large operations are better than many small ones."""
    return device.type == "cuda"


def tile_size(bucket: Bucket, on_cpu: int, n_bytes: int) -> int:
    """Return the number of coordinates of a tile.

    Args:
        bucket: the coordinates.
        on_cpu: number of coordinates on a CPU.
        n_bytes: memory that each coordinate takes for a while, in bytes. At least 8, so that a tile has fewer than 2^24
            coordinates and float32 counts stay exact.
    """
    if not few_operations(bucket.device):
        return on_cpu
    return max(on_cpu, _GPU_BYTES // (n_bytes if bucket.dense else n_bytes + _NOT_DENSE))

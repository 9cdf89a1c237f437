"""Minibatches in a separate order for each replica."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset, default_collate

from lightning_glassy.replicas.ensemble import check_seeds


class ReplicaBatchSampler(Sampler[Tensor]):
    """Minibatches of a data set, in a separate order for each replica: one permutation per replica and epoch.

    The order of a replica depends only on its seed and on the epoch, not on the number of replicas. A lone run with the
    seed of a replica therefore gets the batches of this replica.

    Args:
        n_samples: size of the data set.
        batch_size: samples per batch of one replica.
        seeds: one seed for each replica, or a single number for a lone run.
        drop_last: leave out the last batch of an epoch if it is smaller.

    Yields:
        Indices, int64: ``[n_replica, batch_size]``, or ``[batch_size]`` for a lone run.

    Attributes:
        epoch: number of the current or the next pass over the data. It increases by 1 after each pass. Lightning
            sets it with ``set_epoch`` before each pass.

    Raises:
        ValueError: an argument is out of range. The message names the argument.

    Example:
        >>> replicas, lone = ReplicaBatchSampler(10, 4, [3, 7]), ReplicaBatchSampler(10, 4, 7)
        >>> all(torch.equal(two[1], one) for two, one in zip(replicas, lone))
        True
    """

    def __init__(self, n_samples: int, batch_size: int, seeds: int | Iterable[int], *, drop_last: bool = False) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 1 <= batch_size <= n_samples:
            raise ValueError(f"batch_size={batch_size!r} must be a whole number, 1 ... n_samples={n_samples!r}")
        self.n_samples, self.batch_size, self.drop_last = n_samples, batch_size, drop_last
        self.seeds = check_seeds([seeds] if isinstance(seeds, int) else seeds)
        self._lone = isinstance(seeds, int)
        self.epoch = self._batch = self._first = 0

    def __len__(self) -> int:
        return self.n_samples // self.batch_size if self.drop_last else -(-self.n_samples // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        # NumPy uses all bits of both numbers as the seed. torch would keep only 32 bits of their mixture.
        orders = [np.random.default_rng((seed, self.epoch)).permutation(self.n_samples) for seed in self.seeds]
        indices = torch.from_numpy(orders[0] if self._lone else np.stack(orders)).to(torch.int64)
        first, self._first = self._first, 0
        for batch in range(first, len(self)):
            self._batch = batch + 1
            yield indices[..., batch * self.batch_size : self._batch * self.batch_size]
        self.epoch, self._batch = self.epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Start the next pass at the first batch of ``epoch``, unless ``epoch`` is already the current epoch."""
        if epoch != self.epoch:
            self.epoch, self._batch, self._first = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """Return the position: the epoch and the number of batches yielded.

        The workers of a DataLoader request batches ahead of the training, so the number can include unused batches.
        """
        return {"epoch": self.epoch, "batch": self._batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Start the next pass at a position from ``state_dict``."""
        self.epoch = state["epoch"]
        self._batch = self._first = state["batch"]


class _ByIndices(Dataset[Any]):
    """Data set that returns a whole batch for a tensor of indices of any shape. Its length is the number of samples."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, indices: Tensor | list[int]) -> Any:
        indices = torch.as_tensor(indices, device="cpu")
        if type(self.dataset) is TensorDataset:
            # index_select takes a third of the time of tensor[indices].
            flat, shape = indices.flatten(), indices.shape
            return [t.index_select(0, flat.to(t.device)).view(*shape, *t.shape[1:]) for t in self.dataset.tensors]
        return self._read(indices.tolist())

    def _read(self, indices: list[Any]) -> Any:
        return default_collate([self._read(i) if isinstance(i, list) else self.dataset[i] for i in indices])


def replica_loader(
    dataset: Dataset[Any],
    batch_size: int,
    seeds: int | Iterable[int],
    *,
    drop_last: bool = False,
    **options: Any,
) -> DataLoader[Any]:
    """Return a loader with minibatches in a separate order for each replica, as in :class:`ReplicaBatchSampler`.

    Args:
        dataset: a data set with a length and with items by number. A ``TensorDataset`` is read once per batch, any
            other data set once per sample.
        batch_size: samples per batch of one replica.
        seeds: one seed for each replica, or a single number for a lone run.
        drop_last: leave out the last batch of an epoch if it is smaller.
        options: further arguments of ``torch.utils.data.DataLoader``.

    Returns:
        A loader of batches ``[n_replica, batch_size, ...]`` for ``ensemble(x, shared=False)``, or of batches
        ``[batch_size, ...]`` for a lone run.

    Example:
        >>> data = TensorDataset(torch.arange(10.0), torch.arange(10))
        >>> [tuple(x.shape) for x, y in replica_loader(data, 5, seeds=[0, 1, 2])]
        [(3, 5), (3, 5)]
    """
    sampler = ReplicaBatchSampler(len(dataset), batch_size, seeds, drop_last=drop_last)  # type: ignore[arg-type]
    return DataLoader(_ByIndices(dataset), sampler=sampler, batch_size=None, **options)

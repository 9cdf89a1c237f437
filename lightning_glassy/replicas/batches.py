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
    """Minibatches of a data set, for each replica in an order of its own: one permutation per epoch.

    The order of a replica depends on its seed and the epoch alone, not on how many replicas there are: the sampler of
    one seed gives the lone run the batches that the replica of that seed has.

    Args:
        n_samples: size of the data set.
        batch_size: of one replica.
        seeds: one for each replica; or a single number, for a lone run.
        drop_last: leave out the last batch of an epoch if it is smaller.

    Yields:
        Indices, int64: ``[n_replica, batch_size]``, or ``[batch_size]`` for a lone run.

    Attributes:
        epoch: the pass over the data that is next, or under way. Counts by itself; ``set_epoch`` sets it, as Lightning
            does before each pass.

    Raises:
        ValueError: a number out of its range; the message names it.

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
        # NumPy seeds with all bits of both numbers; torch would keep 32 bits of what they are mixed to.
        orders = [np.random.default_rng((seed, self.epoch)).permutation(self.n_samples) for seed in self.seeds]
        indices = torch.from_numpy(orders[0] if self._lone else np.stack(orders)).to(torch.int64)
        first, self._first = self._first, 0
        for batch in range(first, len(self)):
            self._batch = batch + 1
            yield indices[..., batch * self.batch_size : self._batch * self.batch_size]
        self.epoch, self._batch = self.epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Say which pass is next, from its first batch; nothing changes if it is that already."""
        if epoch != self.epoch:
            self.epoch, self._batch, self._first = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """The position: epoch, and batches yielded. Workers of a DataLoader ask for batches ahead of the training."""
        return {"epoch": self.epoch, "batch": self._batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a position: the next pass starts there."""
        self.epoch = state["epoch"]
        self._batch = self._first = state["batch"]


class _ByIndices(Dataset[Any]):
    """A data set whose items are whole batches, by tensors of indices of any shape; its length is that of samples."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, indices: Tensor | list[int]) -> Any:
        indices = torch.as_tensor(indices)
        if type(self.dataset) is TensorDataset:
            # A third of the time of tensor[indices].
            flat, shape = indices.flatten(), indices.shape
            return [t.index_select(0, flat).view(*shape, *t.shape[1:]) for t in self.dataset.tensors]
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
    """A loader that gives each replica minibatches in an order of its own, as in :class:`ReplicaBatchSampler`.

    Args:
        dataset: with a length and items by number. A ``TensorDataset`` is read in one go per batch.
        batch_size: of one replica.
        seeds: one for each replica; or a single number, for a lone run.
        drop_last: leave out the last batch of an epoch if it is smaller.
        options: others of ``torch.utils.data.DataLoader``.

    Returns:
        A loader of batches ``[n_replica, batch_size, ...]``, for ``ensemble(x, shared=False)``; for a lone run
        ``[batch_size, ...]``.

    Example:
        >>> data = TensorDataset(torch.arange(10.0), torch.arange(10))
        >>> [tuple(x.shape) for x, y in replica_loader(data, 5, seeds=[0, 1, 2])]
        [(3, 5), (3, 5)]
    """
    sampler = ReplicaBatchSampler(len(dataset), batch_size, seeds, drop_last=drop_last)  # type: ignore[arg-type]
    return DataLoader(_ByIndices(dataset), sampler=sampler, batch_size=None, **options)

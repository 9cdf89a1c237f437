"""Read batches of the data set of a loader without its sampler and its workers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sized
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

_SEED = 20180307  # fixed, so that all steps, runs and processes read the same batches


class Batches:
    """Batches of the data set of a loader, which are the same at each reading.

    Workers are seeded from torch's own random numbers, which :func:`undisturbed` restores. Batches of several loaders
    (a list or a dictionary, as a Trainer takes them) are combined as in the training.

    Args:
        loader: a ``DataLoader`` of a data set with a length, or several. Its ``collate_fn`` and its number of workers
            are used, but not its sampler.
        name: name of the loader for messages.
        mode: how the batches of several loaders are combined.
        batch_size: number of samples in a batch. Default: as in the loader.
        max_batches: most batches to read. Default: all.
        shuffled: whether the samples are in a random order, which is the same at each reading, or in the order of the
            data set. Default: in the order of the data set if the loader reads in this order.
        whole: whether to leave out a smaller last batch.
        rank: rank of this process, which gets every ``world_size``-th batch.
        world_size: number of processes.
        equal: whether all processes get the same number of batches. Some batches are left out then.

    Attributes:
        available: number of batches in the data.
        used: number of batches that all processes read together.
        batch_size: number of samples in each batch but the last, or ``None`` if it is unknown.
        samples: number of samples that all processes read together, or ``None`` if it is unknown.

    Raises:
        MisconfigurationException: there is no ``DataLoader``, the data set has no length, or there are too few batches.
            The message names the remedy.
    """

    def __init__(
        self,
        loader: Any,
        name: str,
        *,
        mode: str = "max_size_cycle",
        batch_size: int | None = None,
        max_batches: int | None = None,
        shuffled: bool | None = None,
        whole: bool = False,
        rank: int = 0,
        world_size: int = 1,
        equal: bool = False,
    ) -> None:
        self._several = isinstance(loader, (list, tuple, dict))
        loaders, structure = tree_flatten(loader) if self._several else ([loader], None)
        plans = [_plan(each, name, batch_size, shuffled, whole) for each in loaders]
        # A loader that is shorter than the others starts again.
        lengths = [len(plan) for plan in plans]
        self.available = min(lengths) if mode == "min_size" else max(lengths, default=0)
        used = self.available if max_batches is None else min(self.available, max_batches)
        self.used = used // world_size * world_size if equal else used
        if self.used == 0 or 0 in lengths:
            raise MisconfigurationException(
                f"{name}: {self.available} batches do not go round {world_size} processes: give a smaller batch_size"
                if self.available and 0 not in lengths
                else f"{name}: there is no sample, or not enough of them for one batch: give a smaller batch_size"
            )
        sizes = {None if isinstance(plan[0], int) else len(plan[0]) for plan in plans}
        self.batch_size = sizes.pop() if len(sizes) == 1 else None
        # Each process loads its own batches only.
        own = [plan[: self.used][rank::world_size] for plan in plans]
        self._n_own = len(range(rank, self.used, world_size))
        self._sizes: list[int] | None = None
        self.samples: int | None = None
        if not self._several and self.batch_size is not None:
            self._sizes = [len(batch) for batch in own[0]]
            self.samples = sum(len(batch) for batch in plans[0][: self.used])
        readers = [_reader(each, plan) for each, plan in zip(loaders, own, strict=True)]
        self._loader: Any = readers[0]
        if structure is not None:
            self._loader = CombinedLoader(tree_unflatten(readers, structure), mode)  # type: ignore[arg-type]

    def of(self, trainer: Trainer, module: LightningModule) -> Iterator[tuple[Any, int]]:
        """Yield the batches of this process as ``training_step`` gets them, on its device, with their sizes.

        A size is 1 if the number of samples is unknown.
        """
        batches = (item[0] for item in self._loader) if self._several else iter(self._loader)
        sizes = self._sizes if self._sizes is not None else itertools.repeat(1)
        for batch, size in zip(itertools.islice(batches, self._n_own), sizes, strict=False):
            batch = trainer.precision_plugin.convert_input(batch)
            batch = module._on_before_batch_transfer(batch, 0)
            yield trainer.strategy.batch_to_device(batch, dataloader_idx=0), size


def _plan(loader: Any, name: str, batch_size: int | None, shuffled: bool | None, whole: bool) -> list[Any]:
    """Return the indices of the samples of each batch, or single indices if the items of the data set are batches."""
    if not isinstance(loader, DataLoader):
        raise MisconfigurationException(
            f"{name} is a {type(loader).__name__}, and a torch DataLoader is needed to read its data without "
            "disturbing it: name one for the measurement"
        )
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        raise MisconfigurationException(
            f"{name} reads a {type(dataset).__name__}, which has no length and cannot be read twice in the same order: "
            "name a DataLoader of a data set with a length for the measurement"
        )
    # Batches of indices come from `batch_sampler`, or from `sampler` if the data set takes whole batches.
    sampler = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
    size = batch_size if batch_size is not None else getattr(sampler, "batch_size", None)
    if size is None and loader.batch_sampler is not None:
        raise MisconfigurationException(
            f"{name}: {type(sampler).__name__} does not say how many samples a batch has: give batch_size"
        )
    if shuffled is None:
        order_of = getattr(sampler, "sampler", sampler)
        # Lightning replaces samplers by a DistributedSampler, which has an attribute for this.
        shuffled = not isinstance(order_of, SequentialSampler) and getattr(order_of, "shuffle", True)
    n = len(dataset)
    generator = torch.Generator("cpu").manual_seed(_SEED)
    order = torch.randperm(n, generator=generator, device="cpu").tolist() if shuffled else list(range(n))
    if size is None or (loader.batch_sampler is None and not hasattr(sampler, "batch_size")):
        return order
    return [order[i : i + size] for i in range(0, n - (size - 1 if whole else 0), size)]


def _reader(loader: DataLoader[Any], plan: list[Any]) -> DataLoader[Any]:
    several = loader.batch_sampler is not None
    return DataLoader(
        loader.dataset,
        # A list can be a sampler. If the data set takes whole batches, an index is a batch of indices.
        **({"batch_sampler": plan} if several else {"sampler": plan, "batch_size": None}),
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context if loader.num_workers else None,
    )

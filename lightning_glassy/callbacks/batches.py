"""Read the samples that a loader draws, without changing its sampler and its workers."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator, Sequence, Sized
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_glassy.replicas.batches import ReplicaBatchSampler

_SEED = 20180307  # fixed, so that all steps, runs and processes read the same batches

_LONG = 200_000  # draws of a sampler that take almost no time


class Batches:
    """Batches of the samples that a loader draws. They are the same at each reading.

    The samples are the samples that the training sees: all samples of the data set, the indices of a sampler, or one
    epoch of draws. A sampler of a class that torch does not define is copied, and the copy makes the draws. Workers are
    seeded from torch's own random numbers, which :func:`undisturbed` restores. Batches of several loaders (a list or a
    dictionary, as a Trainer takes them) are combined as in the training.

    Args:
        loader: a ``DataLoader`` of a data set with a length, or several. Its ``collate_fn`` and its number of workers
            are used.
        name: name of the loader for messages.
        mode: how the batches of several loaders are combined.
        batch_size: number of samples in a batch. Default: as in the loader.
        max_batches: most batches to read. Default: all.
        shuffled: whether the samples are in a random order, which is the same at each reading, or in the order of the
            data set. Default: in the order of the loader if it has the same order in each epoch, else random.
        whole: whether to leave out a smaller last batch.
        rank: rank of this process, which gets every ``world_size``-th batch.
        world_size: number of processes.
        equal: whether all processes get the same number of batches. Some batches may then be left out.
        limits: for each loader, the number of batches that a process of the training reads in an epoch. Default: all.
        processes: number of processes that have their own loader, each with a part of the samples.
        index: index of the loader for the hooks of the module and the data module.

    Attributes:
        available: number of batches in the data.
        used: number of batches that all processes read together.
        batch_size: number of samples in each batch but the last, or ``None`` if it is unknown.
        samples: number of samples that all processes read together, or ``None`` if it is unknown.
        parts: the objects that read the data in this process.

    Raises:
        MisconfigurationException: there is no ``DataLoader``, the data set has no length, the samples cannot be known,
            or there are too few batches. The message names the remedy.
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
        limits: Sequence[float] | None = None,
        processes: int = 1,
        index: int = 0,
    ) -> None:
        self._index = index
        self._several = isinstance(loader, (list, tuple, dict))
        loaders, structure = tree_flatten(loader) if self._several else ([loader], None)
        plans = [
            _plan(each, name, batch_size, shuffled, whole, limits[i] if limits else None, processes)
            for i, each in enumerate(loaders)
        ]
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
        sizes = {len(plan[0]) if isinstance(plan[0], (list, tuple)) else None for plan in plans}
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
        # Without workers, this process runs the data set and the other parts, which may have their own random numbers.
        self.parts = [part for r in readers if not r.num_workers for part in (r.dataset, r.collate_fn)]
        self._loader: Any = readers[0]
        if structure is not None:
            self._loader = CombinedLoader(tree_unflatten(readers, structure), mode)  # type: ignore[arg-type]

    @property
    def counts(self) -> dict[str, int | None]:
        """The numbers of batches and samples, for the metadata of a record."""
        return {"batches": self.used, "batches_available": self.available, "samples": self.samples}

    def of(self, trainer: Trainer, module: LightningModule) -> Iterator[tuple[Any, int]]:
        """Yield the batches of this process as ``training_step`` gets them, on its device, with their sizes.

        A size is 1 if the number of samples is unknown.
        """
        batches = (item[0] for item in self._loader) if self._several else iter(self._loader)
        sizes = self._sizes if self._sizes is not None else itertools.repeat(1)
        for batch, size in zip(itertools.islice(batches, self._n_own), sizes, strict=False):
            batch = trainer.precision_plugin.convert_input(batch)
            batch = module._on_before_batch_transfer(batch, self._index)
            yield trainer.strategy.batch_to_device(batch, dataloader_idx=self._index), size


def _plan(
    loader: Any,
    name: str,
    batch_size: int | None,
    shuffled: bool | None,
    whole: bool,
    limit: float | None,
    processes: int,
) -> list[Any]:
    """Return the indices of the samples of each batch, or single indices if the items of the data set are batches."""
    if not isinstance(loader, DataLoader):
        raise MisconfigurationException(
            f"{name} is a {type(loader).__name__}, and a torch DataLoader is needed to read its data without "
            "disturbing it: name one for the measurement"
        )
    own = next(cls for cls in type(loader).__mro__ if "__iter__" in vars(cls))
    if own.__module__.partition(".")[0] not in ("torch", "torchdata"):
        raise MisconfigurationException(
            f"{name} is a {own.__name__}, which makes its batches in a way of its own: name a torch DataLoader of the "
            "same samples for the measurement"
        )
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        raise MisconfigurationException(
            f"{name} reads a {type(dataset).__name__}, which has no length and cannot be read twice in the same order: "
            "name a DataLoader of a data set with a length for the measurement"
        )
    # Batches of indices come from `batch_sampler`, or from `sampler` if the data set takes whole batches.
    sampler: Any = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
    drawn: list[Any]
    of_replicas = isinstance(sampler, ReplicaBatchSampler)
    grouping = of_replicas or _kind(sampler) is BatchSampler
    if of_replicas:
        drawn, in_order = list(range(sampler.n_samples)), False
    else:
        drawn, in_order = _epoch(sampler.sampler if grouping else sampler, dataset, name, processes)
    if in_order and grouping and sampler.drop_last and batch_size is None:
        drawn = drawn[: len(drawn) // (sampler.batch_size * processes) * sampler.batch_size * processes]
    if in_order and limit is not None and limit < len(loader):
        # The training never sees the rest.
        drawn = drawn[: int(limit) * processes * (sampler.batch_size if grouping else 1)]
    size = sampler.batch_size if grouping else None
    nested = _depth(drawn) > 2 and loader.batch_sampler is None  # a batch of each of several replicas
    indices = _flat(drawn)
    if nested or len(indices) > len(dataset):
        passes = _runs_through(indices, len(dataset), len(drawn[0]) if nested else 1)
        if passes or nested:
            size = getattr(sampler, "batch_size", len(drawn[0][0]) if nested else None)
            grouping, drawn, in_order = size is not None, list(range(len(dataset))) if passes else indices, False
    grouped = not grouping and (loader.batch_sampler is not None or (bool(drawn) and isinstance(drawn[0], list)))
    if batch_size is not None and (grouping or grouped):
        size = batch_size
        drawn = indices if grouped else drawn
    elif grouped and whole and len({len(batch) for batch in drawn[:-1]}) == 1 and len(drawn[-1]) < len(drawn[0]):
        drawn = drawn[:-1]
    n = len(drawn)
    if shuffled or (shuffled is None and not in_order):
        generator = torch.Generator("cpu").manual_seed(_SEED)
        drawn = [drawn[i] for i in torch.randperm(n, generator=generator, device="cpu").tolist()]
    if size is None:
        return drawn
    return [drawn[i : i + size] for i in range(0, n - (size - 1 if whole else 0), size)]


def _kind(sampler: Any) -> type:
    """Return the class that defines how a sampler draws. Samplers of torchdata draw as the samplers of torch do."""
    classes = (cls for cls in type(sampler).__mro__ if "__iter__" in vars(cls))
    return next((cls for cls in classes if not cls.__module__.startswith("torchdata.")), object)


def _epoch(sampler: Any, dataset: Any, name: str, processes: int) -> tuple[list[Any], bool]:
    """Return the indices that a sampler draws in an epoch, and whether each epoch has this order.

    Several processes draw them together. The sampler and its random numbers stay as they are.
    """
    kind = _kind(sampler)
    if kind in (SequentialSampler, RandomSampler):
        return list(range(len(sampler.data_source))), kind is SequentialSampler
    if kind is DistributedSampler:
        return list(range(len(sampler.dataset))), not sampler.shuffle
    if kind.__name__ == "DistributedSamplerWrapper":
        # Lightning has wrapped the sampler of the user.
        drawn, in_order = _epoch(sampler.dataset._sampler, dataset, name, processes=1)
        return drawn, in_order and not sampler.shuffle
    remedy = "name a DataLoader of the same samples with a sampler of torch.utils.data for the measurement"
    what = type(sampler).__name__
    if max(processes, getattr(sampler, "num_replicas", 1)) > 1:
        raise MisconfigurationException(
            f"{name}: the {what} of this process may draw other samples than that of another process: {remedy}"
        )
    if kind is SubsetRandomSampler:
        return list(sampler.indices), False
    if kind is WeightedRandomSampler:
        generator = torch.Generator("cpu").manual_seed(_SEED)
        weights = sampler.weights.cpu()
        return torch.multinomial(weights, sampler.num_samples, sampler.replacement, generator=generator).tolist(), False
    try:
        # A copy of the data is neither needed nor small.
        held = [dataset, *getattr(sampler, "__dict__", {}).values()]
        copied = copy.deepcopy(
            sampler, {id(each): each for each in held if each is dataset or isinstance(each, Dataset)}
        )
        epochs: list[list[Any]] = []
        for i in range(3):
            if hasattr(copied, "set_epoch"):
                copied.set_epoch(i)  # as a Trainer does
            epochs.append(_drawn(copied, len(dataset)))
    except Exception as error:
        raise MisconfigurationException(
            f"{name}: a copy of the {what} cannot draw the samples of an epoch ({type(error).__name__}: {error}), and "
            f"reading the {what} itself would change the training: {remedy}"
        ) from error
    # The first may be the rest of an epoch.
    drawn, in_order = epochs[1], epochs[1] == epochs[2]
    if not in_order:
        with contextlib.suppress(TypeError):  # the indices need no order
            # A resumed training has the same samples, although the sampler goes on from another state.
            drawn = drawn if drawn and isinstance(drawn[0], list) else sorted(drawn)
    return drawn, in_order


def _drawn(sampler: Any, n: int) -> list[Any]:
    """Return the draws of a sampler in an epoch, or in two passes over a large data set if an epoch is longer."""
    items: list[Any] = []
    n_drawn = 0
    for item in itertools.islice(sampler, len(sampler)):  # a Trainer reads no more than the length
        items.append(item.tolist() if hasattr(item, "tolist") else item)
        n_drawn += len(_flat(items[-1]))
        if n_drawn > max(_LONG, 2 * n * (len(items[-1]) if _depth(items) > 2 else 1)):
            break
    return items


def _flat(item: Any) -> list[Any]:
    return [i for part in item for i in _flat(part)] if isinstance(item, list) else [item]


def _depth(item: Any) -> int:
    return 1 + _depth(item[0]) if isinstance(item, list) and item else 0


def _runs_through(indices: list[Any], n: int, n_replica: int) -> bool:
    """Return whether indices have each sample of a data set equally often, but for the last pass of each replica."""
    if not all(isinstance(i, int) and 0 <= i < n for i in indices):
        return False
    counts = np.bincount(indices, minlength=n)
    return bool(counts.min() > 0 and np.ptp(counts) <= n_replica)


def _reader(loader: DataLoader[Any], plan: list[Any]) -> DataLoader[Any]:
    several = loader.batch_sampler is not None
    return DataLoader(
        loader.dataset,
        # A sampler can be a list. If the data set takes whole batches, an index is a batch of indices.
        **({"batch_sampler": plan} if several else {"sampler": plan, "batch_size": None}),
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context if loader.num_workers else None,
    )

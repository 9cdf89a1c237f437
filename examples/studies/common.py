"""What the examples share: replicas of a network, real data, and where results go."""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from benchmarks.report import machine
from lightning_glassy import (
    AgingRecord,
    LogTimeSchedule,
    ReplicaEnsemble,
    ReplicaTraining,
    per_replica,
    replica_loader,
)

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent / "RESULTS.md"
SPENT = "seconds.json"
"""Beside the records: how long they took."""

cross_entropy = nn.functional.cross_entropy


def fully_connected(
    sizes: Sequence[int], activation: Callable[[], nn.Module] = nn.Tanh, *, glorot: bool = False
) -> nn.Sequential:
    """A fully connected network; ``glorot``: uniform Glorot weights and biases of zero, instead of torch's own."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layer = nn.Linear(n_in, n_out)
        if glorot:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1])


class Replicas(ReplicaTraining, LightningModule):
    """Replicas of a classifier with a softmax cross-entropy loss, trained by plain SGD at a constant learning rate.

    Args:
        make: makes one network.
        n_replica: number of replicas.
        learning_rate: of SGD.
        own_minibatches: whether each replica has minibatches of its own, or all have the same.
        l2: strength of a term ``l2 * |w|^2`` of the loss, over weights and biases.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        n_replica: int,
        *,
        learning_rate: float,
        own_minibatches: bool = True,
        l2: float = 0.0,
    ) -> None:
        super().__init__()
        self.nets = ReplicaEnsemble(make, n_replica)
        self.learning_rate, self.l2, self.shared = learning_rate, l2, not own_minibatches

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The sum of the losses of the replicas: its gradient is that of each alone."""
        x, y = batch
        return per_replica(cross_entropy, shared=self.shared)(self.nets(x, shared=self.shared), y).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD. The gradient of ``l2 * |w|^2`` is ``2 * l2 * w``: what torch calls a weight decay of 2 l2."""
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate, weight_decay=2 * self.l2)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of all replicas for the same inputs, ``[n_replica, B, class]``."""
        scores: Tensor = self.nets(x)
        return scores


def losses(module: LightningModule, batch: Any) -> Tensor:
    """The loss of each replica on the same batch, without the term of ``l2``: for the callbacks that measure it."""
    x, y = batch
    return per_replica(cross_entropy)(module(x), y)


def at_steps(*steps: int) -> LogTimeSchedule:
    """Of callbacks that measure at steps, not at pairs of them."""
    return LogTimeSchedule(sorted(set(steps)), [0])


class Progress(Callback):
    """A line for each tenth of a training: what several of them can write at once."""

    def __init__(self, name: str) -> None:
        self.name, self.start = name, time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Say how far it is."""
        if trainer.global_step % max(1, trainer.max_steps // 10) == 0:
            seconds = time.perf_counter() - self.start
            print(f"{self.name}: step {trainer.global_step:,} of {trainer.max_steps:,}, {seconds:.0f} s", flush=True)


# ------------------------------------------------------------------ data


class FileOrder(Sampler[Tensor]):
    """Minibatches in the order of the data set, the same in each pass."""

    def __init__(self, n_samples: int, batch_size: int) -> None:
        self.n_samples, self.batch_size = n_samples, batch_size

    def __len__(self) -> int:
        return -(-self.n_samples // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.arange(self.n_samples).split(self.batch_size))


class Passes(Sampler[Tensor]):
    """One pass over the data after another as one epoch, with one progress bar."""

    def __init__(self, batches: Sampler[Tensor], steps: int) -> None:
        self.batches, self.steps = batches, steps
        self.batch_size = batches.batch_size  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Tensor]:
        passes = (iter(self.batches) for _ in itertools.count())
        return itertools.islice(itertools.chain.from_iterable(passes), self.steps)


def loader(
    dataset: TensorDataset, steps: int, batch_size: int, seeds: int | Iterable[int] | None = None
) -> DataLoader[Any]:
    """Minibatches for each replica, or a net alone, reshuffled in every pass.

    Without seeds they are the same for all, in the order of the data set.
    """
    one_pass = replica_loader(dataset, batch_size, seeds=0 if seeds is None else seeds)
    batches = FileOrder(len(dataset), batch_size) if seeds is None else one_pass.sampler
    return DataLoader(one_pass.dataset, sampler=Passes(batches, steps), batch_size=None)  # type: ignore[arg-type]


def mnist(data_dir: Path, *, train: bool = True) -> TensorDataset:
    """MNIST in memory, pixels ``[N, 784]`` in [0, 1]; torchvision downloads it if it is not there."""
    from torchvision.datasets import MNIST

    try:
        found = MNIST(root=data_dir, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise SystemExit(not_there("MNIST", data_dir, error)) from None
    return TensorDataset(found.data.view(len(found.data), -1).float() / 255, found.targets)


def not_there(name: str, data_dir: Path, error: Exception) -> str:
    """What is said where data cannot be had."""
    return f"{name} is not in {data_dir} and cannot be downloaded ({error}): say where it is with --data-dir"


# ------------------------------------------------------------------ running and reporting


def options_of(name: str, description: str | None, quick: str, *, data: str | None = None) -> argparse.Namespace:
    """The options that all studies have: ``quick``, ``data_dir`` where there are data, ``out``, ``jobs``, ``analyse``.

    Args:
        name: of the study.
        description: its first line is shown.
        quick: what ``--quick`` does.
        data: what lies in ``--data-dir``.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m examples.studies.{name}", description=(description or "").split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    if data is not None:
        parser.add_argument(
            "--data-dir", type=Path, default=Path("data"), help=f"of {data}, downloaded if it is not there"
        )
    parser.add_argument("--out", type=Path, help=f"for the records (default runs/{name}, or runs/{name}-quick)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, each on one core (default 2)")
    parser.add_argument("--analyse", action="store_true", help="do not train: the records are in --out")
    options = parser.parse_args()
    options.out = options.out or Path("runs", f"{name}-quick" if options.quick else name)
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs} runs nothing: at least 1")
    if options.analyse and not (options.out / SPENT).exists():
        parser.error(f"no finished run in {options.out}: run without --analyse first")
    return options


def record_of(name: str, out: Path) -> Path:
    """Where the record of one training is."""
    return out / name / "aging_record.npz"


def place_for(name: str, out: Path) -> Path:
    """The directory for the record of one training, without those of earlier ones, which are not overwritten."""
    directory = record_of(name, out).parent
    for path in directory.glob("aging_record*"):
        path.unlink()
    return directory


def load_record(name: str, out: Path, steps: int) -> AgingRecord:
    """The record of one training of so many steps that was completed.

    Raises:
        SystemExit: there is none: it was not completed, or is that of another study, as with and without ``--quick``.
    """
    path = record_of(name, out)
    completed = None
    if path.exists():
        record = AgingRecord.load(path)
        completed = record.meta.get("completed")
        if completed == steps:
            return record
    found = "is not there" if completed is None else f"ends at step {completed}, not at step {steps}"
    raise SystemExit(f"{path} {found}: with --quick, or without? Else train it again, without --analyse")


def several(tasks: Mapping[str, Callable[[], float]], options: argparse.Namespace) -> dict[str, Any]:
    """Run tasks, so many at a time, each in a process with one thread; not with ``--analyse``.

    They are started in their order: with the longest first, none is left over at the end.

    Returns:
        How long it took, as it is noted in the directory for the records: ``"runs"``, what each task returned, by its
        name; ``"seconds"`` for all; ``"jobs"``, so many at a time; and the ``"machine"``.
    """
    path = options.out / SPENT
    if not options.analyse:
        path.unlink(missing_ok=True)
        start = time.perf_counter()
        # Read when a new process imports NumPy. For small matrices a second thread waits more than it works.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
            submitted = {pool.submit(run): name for name, run in tasks.items()}
            runs = {submitted[done]: done.result() for done in as_completed(submitted)}
        seconds = time.perf_counter() - start
        spent = {"runs": runs, "seconds": seconds, "jobs": options.jobs, "machine": machine()}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(spent))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def conclude(
    name: str,
    found: dict[str, Any],
    options: argparse.Namespace,
    tables: Callable[[dict[str, Any]], str],
    draw: Callable[[dict[str, Any], Path], Sequence[Path]],
) -> None:
    """Write numbers, tables and pictures, to the page of results or, of a quick run, beside its records; and print."""
    text_of = as_json(found)
    result = json.loads(text_of)  # whatever is shown has the digits of what is kept
    text, where = tables(result), options.out if options.quick else RESULTS
    if options.quick:
        (where / "result.json").write_text(text_of)
    else:
        publish(name, found, text)
    print(f"\n{text}\n\nWhere to look")
    for picture in draw(result, where):
        print(f"    picture      {picture}")
    for record in sorted(options.out.glob("*/aging_record.npz")):
        print(f"    record       {record}")
    print("    a report     .venv/bin/lightning-glassy report RECORD")


def quiet() -> None:
    """None of Lightning's hints, and one thread.

    Small nets gain nothing from a second, and lose tenfold where another process wants the core.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)")


def silent() -> None:
    """Of Lightning nothing but warnings, too: for trainings of which several write at once."""
    quiet()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


def train_on_cpu(
    module: LightningModule, steps: int, callbacks: list[Callback], batches: DataLoader[Any] | None = None
) -> None:
    """Train on the CPU for so many steps, with these callbacks and nothing else of what a Trainer brings."""
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=1,
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, batches)


def with_error(value: float | None, error: float | None, digits: int = 3) -> str:
    """A number of a table with its error, as far as there are."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")


def publish(name: str, result: dict[str, Any], text: str) -> None:
    """Commit a result: ``results/<name>.json``, and the tables of the page ``RESULTS.md`` that belong to it."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(as_json(result))
    PAGE.write_text(with_block(PAGE.read_text(), name, text))


def load(name: str) -> dict[str, Any]:
    """A result as it is committed."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def as_json(result: dict[str, Any]) -> str:
    """Small JSON: numbers to five digits, lists of numbers on one line, null for what is not finite."""
    text = json.dumps(_rounded(result), indent=1, allow_nan=False)
    return re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _rounded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_rounded(part) for part in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def with_block(page: str, name: str, text: str) -> str:
    """A page with another text between the marks of a name.

    Raises:
        ValueError: a page without these marks.
    """
    begin, end = marks(name)
    if begin not in page or end not in page:
        raise ValueError(f"{PAGE.name} has no lines {begin!r} and {end!r} to write the tables between")
    before, rest = page.split(begin, 1)
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{rest.split(end, 1)[1]}"


def marks(name: str) -> tuple[str, str]:
    """What stands before and after the tables of a name."""
    return f"<!-- {name}: written by python -m examples.studies.{name} -->", f"<!-- {name}: end -->"

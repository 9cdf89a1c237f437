"""Parts that the studies share: replicas of a network, data, options, processes, and files of results."""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import platform
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

import lightning_glassy
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
SPENT = "seconds.json"  # beside the records: how long each training took
EFFECTIVE, PLAIN = "collapse, effective time", "collapse, plain"  # methods of lightning_glassy.analysis.aging_exponent

cross_entropy = nn.functional.cross_entropy


# ------------------------------------------------------------------ networks


def fully_connected(sizes: Sequence[int]) -> nn.Sequential:
    """Return a fully connected tanh network with uniform Glorot weights and biases of zero."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layer = nn.Linear(n_in, n_out)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def n_weights(sizes: Sequence[int]) -> int:
    """Return the number of weights and biases of a fully connected network."""
    return sum((n_in + 1) * n_out for n_in, n_out in itertools.pairwise(sizes))


def layers_of(sizes: Sequence[int]) -> str:
    """Return the sizes of the layers as the tables show them, such as ``"20-4-4-2"``."""
    return "-".join(map(str, sizes))


class Replicas(ReplicaTraining, LightningModule):
    """Replicas of a classifier with a softmax cross-entropy loss, trained by plain SGD at a constant learning rate.

    Args:
        make: makes one network.
        n_replica: number of replicas.
        learning_rate: learning rate of SGD.
        own_minibatches: whether each replica has its own minibatches. Otherwise all replicas have the same minibatches.
        l2: strength of a term ``l2 * |w|^2`` of the loss, over weights and biases.
    """

    def __init__(
        self, make: Callable[[], nn.Module], n_replica: int, *, learning_rate: float, own_minibatches: bool, l2: float
    ) -> None:
        super().__init__()
        self.nets = ReplicaEnsemble(make, n_replica)
        self.learning_rate, self.l2, self.shared = learning_rate, l2, not own_minibatches

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the sum of the losses of the replicas. Its gradient is that of each replica alone."""
        x, y = batch
        return per_replica(cross_entropy, shared=self.shared)(self.nets(x, shared=self.shared), y).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD. The gradient of ``l2 * |w|^2`` is ``2 * l2 * w``: a weight decay of ``2 * l2``."""
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate, weight_decay=2 * self.l2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of all replicas for the same inputs, ``[n_replica, B, class]``."""
        scores: Tensor = self.nets(x)
        return scores


def losses(module: LightningModule, batch: Any) -> Tensor:
    """Return the loss of each replica on the same batch, without the term ``l2``."""
    x, y = batch
    return per_replica(cross_entropy)(module(x), y)


# ------------------------------------------------------------------ data


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Return scikit-learn's handwritten digits, pixels ``[N, 64]`` in [0, 1]: 1,500 for training, 297 for testing."""
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    return TensorDataset(x[:1500], y[:1500]), TensorDataset(x[1500:], y[1500:])


def mnist(data_dir: Path, *, train: bool = True) -> TensorDataset:
    """Return MNIST in memory, pixels ``[N, 784]`` in [0, 1]. torchvision downloads it if it is missing.

    Raises:
        SystemExit: the data are missing and cannot be downloaded.
    """
    from torchvision.datasets import MNIST

    try:
        found = MNIST(root=data_dir, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise SystemExit(
            f"MNIST is not in {data_dir} and cannot be downloaded ({error}): say where it is with --data-dir"
        ) from None
    return TensorDataset(found.data.view(len(found.data), -1).float() / 255, found.targets)


class FileOrder(Sampler[Tensor]):
    """Minibatches in the order of the data set, the same in each pass."""

    def __init__(self, n_samples: int, batch_size: int) -> None:
        self.n_samples, self.batch_size = n_samples, batch_size

    def __len__(self) -> int:
        return -(-self.n_samples // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.arange(self.n_samples).split(self.batch_size))


class Passes(Sampler[Tensor]):
    """One pass over the data after another, as one epoch of so many steps."""

    def __init__(self, batches: Sampler[Tensor], steps: int, batch_size: int) -> None:
        self.batches, self.steps, self.batch_size = batches, steps, batch_size

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Tensor]:
        passes = (iter(self.batches) for _ in itertools.count())
        return itertools.islice(itertools.chain.from_iterable(passes), self.steps)


def loader(
    dataset: TensorDataset, steps: int, batch_size: int, seeds: int | Iterable[int] | None = None
) -> DataLoader[Any]:
    """Return minibatches for each replica, or for a lone network, reshuffled in every pass.

    Without seeds, the minibatches are the same for all replicas, in the order of the data set.
    """
    one_pass = replica_loader(dataset, batch_size, seeds=0 if seeds is None else seeds)
    batches: Any = FileOrder(len(dataset), batch_size) if seeds is None else one_pass.sampler
    return DataLoader(one_pass.dataset, sampler=Passes(batches, steps, batch_size), batch_size=None)


# ------------------------------------------------------------------ training


def at_steps(*steps: int) -> LogTimeSchedule:
    """Return the schedule of a callback that measures at these steps."""
    return LogTimeSchedule(sorted(set(steps)), [0])


class Progress(Callback):
    """Prints a line at each tenth of a training. Several trainings can print at once."""

    def __init__(self, name: str) -> None:
        self.name, self.start = name, time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Print the step and the time since the start."""
        if trainer.global_step % max(1, trainer.max_steps // 10) == 0:
            seconds = time.perf_counter() - self.start
            print(f"{self.name}: step {trainer.global_step:,} of {trainer.max_steps:,}, {seconds:.0f} s", flush=True)


def quiet() -> None:
    """Use one thread, and print no hints of Lightning.

    A small network gains nothing from a second thread, and loses tenfold if another process uses the core.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


def train_on_cpu(
    module: LightningModule, steps: int, callbacks: list[Callback], batches: DataLoader[Any] | None = None
) -> None:
    """Train on the CPU for so many steps, with these callbacks and no others."""
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


# ------------------------------------------------------------------ running a study


def options_of(name: str, description: str | None, quick: str, *, needs_mnist: bool = False) -> argparse.Namespace:
    """Parse the options of a study: ``quick``, ``data_dir`` if it needs MNIST, ``out``, ``jobs`` and ``analyse``.

    Args:
        name: name of the study.
        description: docstring of the study. Its first line is shown.
        quick: what ``--quick`` does.
        needs_mnist: whether there is an option ``--data-dir``.
    """
    summary = (description or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog=f"python -m examples.studies.{name}", description=summary)
    parser.add_argument("--quick", action="store_true", help=quick)
    if needs_mnist:
        parser.add_argument(
            "--data-dir", type=Path, default=Path("data"), help="directory of MNIST, downloaded if it is missing"
        )
    parser.add_argument(
        "--out", type=Path, help=f"directory of the records (default runs/{name}, or runs/{name}-quick)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, each on one core (default 2)")
    parser.add_argument("--analyse", action="store_true", help="do not train: use the records in --out")
    options = parser.parse_args()
    options.out = options.out or Path("runs", f"{name}-quick" if options.quick else name)
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs} runs nothing: at least 1")
    if options.analyse and not (options.out / SPENT).exists():
        parser.error(f"no finished run in {options.out}: run without --analyse first")
    return options


def record_of(name: str, out: Path) -> Path:
    """Return the path of the record of one training."""
    return out / name / "aging_record.npz"


def place_for(name: str, out: Path) -> Path:
    """Return the directory for the record of one training, and delete the records of earlier trainings in it."""
    directory = record_of(name, out).parent
    for path in directory.glob("aging_record*"):
        path.unlink()
    return directory


def load_record(name: str, out: Path, steps: int) -> AgingRecord:
    """Load the record of one completed training of so many steps.

    Raises:
        SystemExit: there is no such record. The training did not end, or it was one with or without ``--quick``.
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
    """Run the tasks in processes with one thread each, ``options.jobs`` at a time. With ``--analyse``, run nothing.

    The tasks start in their order. Put the longest task first, so that no long task is left over at the end.

    Returns:
        The contents of the file ``seconds.json`` beside the records: ``"runs"``, the values that the tasks returned,
        by name; ``"seconds"`` for all tasks; ``"jobs"``, the number at a time; and the ``"machine"``.
    """
    path = options.out / SPENT
    if not options.analyse:
        path.unlink(missing_ok=True)
        start = time.perf_counter()
        # A new process reads this when it imports NumPy. For small matrices, a second thread waits more than it works.
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


def machine() -> dict[str, Any]:
    """Return the date, the CPU and the versions."""
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = re.findall(r"^model name\s*: (.*)$", information.read_text(), re.MULTILINE)
        cpu = names[0] if names else cpu
    return {
        "date": date.today().isoformat(),
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "gpu": None,  # the studies train on the CPU
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning_glassy": lightning_glassy.__version__,
    }


# ------------------------------------------------------------------ results


def conclude(
    name: str,
    found: dict[str, Any],
    options: argparse.Namespace,
    tables: Callable[[dict[str, Any]], str],
    draw: Callable[[dict[str, Any], Path], Sequence[Path]],
) -> None:
    """Print the tables, and write numbers, tables and pictures.

    A full run writes to ``results/`` and to the page ``RESULTS.md``. A quick run writes beside its records.
    """
    text_of = as_json(found)
    result = json.loads(text_of)  # so that the tables show the rounded numbers of the file
    text, where = tables(result), options.out if options.quick else RESULTS
    if options.quick:
        (where / "result.json").write_text(text_of)
    else:
        (where / f"{name}.json").write_text(text_of)
        PAGE.write_text(with_block(PAGE.read_text(), name, text))
    print(f"\n{text}\n\nWhere to look")
    for picture in draw(result, where):
        print(f"    picture      {picture}")
    for record in sorted(options.out.glob("*/aging_record.npz")):
        print(f"    record       {record}")
    print("    a report     .venv/bin/lightning-glassy report RECORD")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def with_error(value: float | None, error: float | None, digits: int = 3) -> str:
    """Return a number with its error, if there are any, for a table."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")


def load(name: str) -> dict[str, Any]:
    """Load the committed result of a study."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def as_json(result: dict[str, Any]) -> str:
    """Return small JSON: numbers of five digits, lists of numbers on one line, null for a number that is not finite."""
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
    """Return a page with another text between the marks of a study.

    Raises:
        ValueError: the page has no such marks.
    """
    begin, end = marks(name)
    if begin not in page or end not in page:
        raise ValueError(f"{PAGE.name} has no lines {begin!r} and {end!r} to write the tables between")
    before, rest = page.split(begin, 1)
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{rest.split(end, 1)[1]}"


def marks(name: str) -> tuple[str, str]:
    """Return the lines before and after the tables of a study."""
    return f"<!-- {name}: written by python -m examples.studies.{name} -->", f"<!-- {name}: end -->"

"""Parts that the studies share: networks, data, a runner of several trainings, and files of results."""

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
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

import lightning_glassy
from lightning_glassy import AgingRecord, replica_loader

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent / "RESULTS.md"
SECONDS = "seconds.json"  # beside the records: how long each training took

cross_entropy = nn.functional.cross_entropy


# ------------------------------------------------------------------ networks and data


class Classifier(LightningModule):
    """A network that learns classes by SGD, with a term ``l2 * |w|^2`` in the loss, and without momentum by default."""

    def __init__(
        self,
        net: nn.Module,
        learning_rate: float,
        loss: Callable[..., Tensor] = cross_entropy,
        l2: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        super().__init__()
        self.net, self.learning_rate, self.loss, self.l2, self.momentum = net, learning_rate, loss, l2, momentum

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # The gradient of l2 |w|^2 is 2 l2 w.
        decay = 2 * self.l2
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate, momentum=self.momentum, weight_decay=decay)


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Return scikit-learn's handwritten digits, pixels ``[N, 64]`` in [0, 1]: 1,500 for training, 297 for testing."""
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    return TensorDataset(x[:1500], y[:1500]), TensorDataset(x[1500:], y[1500:])


def mnist(data_dir: Path, *, train: bool = True) -> TensorDataset:
    """Return MNIST in memory, pixels ``[N, 784]`` in [0, 1]. torchvision downloads MNIST if it is missing."""
    from torchvision.datasets import MNIST

    try:
        found = MNIST(root=data_dir, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise SystemExit(
            f"MNIST is not in {data_dir} and cannot be downloaded ({error}): say where it is with --data-dir"
        ) from None
    return TensorDataset(found.data.view(len(found.data), -1).float() / 255, found.targets)


class Passes(Sampler[Tensor]):
    """Passes over the data, one after another, as one epoch of ``steps`` steps."""

    def __init__(self, batches: Iterable[Tensor], steps: int, batch_size: int) -> None:
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
    batches: Any = torch.arange(len(dataset)).split(batch_size) if seeds is None else one_pass.sampler
    return DataLoader(one_pass.dataset, sampler=Passes(batches, steps, batch_size), batch_size=None)


# ------------------------------------------------------------------ trainings


def train_on_cpu(
    module: LightningModule, steps: int, callbacks: Sequence[Callback], batches: Any = None, **more: Any
) -> None:
    """Train on the CPU for ``steps`` steps, with these callbacks only."""
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False} | more
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=1, callbacks=[*callbacks], enable_model_summary=False, **options
    )
    trainer.fit(module, batches)


def seeded(run: Callable[[], object]) -> float:
    """Run a training on one thread, with seed 0 and without hints of Lightning. Return the seconds it took."""
    # A second thread does not help a small network. It makes it ten times slower if another process uses the core.
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    seed_everything(0, verbose=False)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def options_of(name: str, description: str | None, quick: str, *, needs_mnist: bool = False) -> argparse.Namespace:
    """Parse the options of a study. ``quick`` is the help text of ``--quick``."""
    parser = argparse.ArgumentParser(
        prog=f"python -m examples.studies.{name}", description=(description or "").split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    if needs_mnist:
        parser.add_argument("--data-dir", type=Path, default=Path("data"), help="directory of MNIST, or for it")
    parser.add_argument("--out", type=Path, help=f"directory of the records (runs/{name}, or runs/{name}-quick)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, each on one core (default 2)")
    parser.add_argument("--analyse", action="store_true", help="do not train: use the records in --out")
    options = parser.parse_args()
    options.name = name
    options.out = options.out or Path("runs", f"{name}-quick" if options.quick else name)
    if options.analyse and not (options.out / SECONDS).exists():
        parser.error(f"no finished run in {options.out}: run without --analyse first")
    return options


def run_all(tasks: Mapping[str, Callable[[], object]], options: argparse.Namespace) -> dict[str, Any]:
    """Run the tasks in processes, ``options.jobs`` at a time, the first task first. With ``--analyse``, run nothing.

    Returns:
        A dictionary with ``"runs"`` (seconds of each task by name), ``"seconds"`` (of all tasks together), ``"jobs"``
        and ``"machine"``.
    """
    path = options.out / SECONDS
    if not options.analyse:
        # A record of an earlier run would not be overwritten.
        for old in (path, *(old for name in tasks for old in (options.out / name).glob("aging_record*"))):
            old.unlink(missing_ok=True)
        # A new process reads this when it imports NumPy. For small matrices, a second thread waits more than it works.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        runs, start = {}, time.perf_counter()
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
            names = {pool.submit(seeded, run): name for name, run in tasks.items()}
            for done in as_completed(names):
                runs[names[done]] = done.result()
                print(f"{names[done]}: {done.result():.0f} s, {len(runs)} of {len(tasks)} done", flush=True)
        seconds = time.perf_counter() - start
        path.write_text(json.dumps({"runs": runs, "seconds": seconds, "jobs": options.jobs, "machine": machine()}))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def load_record(name: str, out: Path, steps: int) -> AgingRecord:
    """Load the record of a training, and check that the training ended after ``steps`` steps."""
    record = AgingRecord.load(out / name / "aging_record.npz")
    completed = record.meta.get("completed")
    if completed != steps:
        raise SystemExit(f"{out / name} ends at step {completed}, not at step {steps}: with --quick, or without?")
    return record


def machine() -> dict[str, Any]:
    """Return the date, the CPU and the versions."""
    information = Path("/proc/cpuinfo")
    names = re.findall(r"(?m)^model name\s*: (.*)$", information.read_text()) if information.exists() else []
    return {
        "date": date.today().isoformat(),
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": None,  # the studies train on the CPU
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning_glassy": lightning_glassy.__version__,
    }


# ------------------------------------------------------------------ results


def conclude(
    found: dict[str, Any],
    options: argparse.Namespace,
    tables: Callable[[dict[str, Any]], str],
    draw: Callable[[dict[str, Any], Path], Sequence[Path]],
) -> None:
    """Print the tables, and write numbers, tables and pictures.

    A full run writes to ``results/`` and to the page ``RESULTS.md``. A quick run writes beside its records.
    """
    result = json.loads(as_json(found))  # so that the tables show the rounded numbers of the file
    text, where = tables(result), options.out if options.quick else RESULTS
    (where / ("result.json" if options.quick else f"{options.name}.json")).write_text(as_json(found))
    if not options.quick:
        PAGE.write_text(with_block(PAGE.read_text(), options.name, text))
    print(f"\n{text}\n\nWhere to look")
    for picture in draw(result, where):
        print(f"    picture      {picture}")
    for record in sorted(options.out.glob("*/aging_record.npz")):
        print(f"    record       {record}")
    print("    a report     .venv/bin/lightning-glassy report RECORD")


def save_figures(figures: Mapping[str, Any], directory: Path, study: str) -> list[Path]:
    """Save figures as ``<study>_<name>.png``, and return their paths."""
    paths = {directory / f"{study}_{name}.png": figure for name, figure in figures.items()}
    for path, figure in paths.items():
        figure.savefig(path)
    return list(paths)


def effort(result: Mapping[str, Any]) -> str:
    """Return the time that a study took, and the machine, in words."""
    return (
        f"{result['seconds'] / 60:.0f} minutes for everything, {result['jobs']} at a time, each on one core of "
        "{cpu}, torch {torch}, {date}.".format(**result["machine"])
    )


def table(columns: str, rows: Iterable[Any]) -> str:
    """Return a Markdown table.

    Args:
        columns: titles and forms of the cells, such as ``"network = {layers} | N = {n_parameters:,}"``.
        rows: the values of each row, a dictionary or a tuple (``"network = {} | N = {:,}"``).
    """
    titles, forms = zip(*(column.rsplit(" = ", 1) for column in columns.split(" | ")), strict=True)
    cells = " | ".join(forms)
    lines = [" | ".join(titles), " | ".join(["---"] * len(titles))]
    lines += [cells.format(**row) if isinstance(row, dict) else cells.format(*row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def number(value: float | None, error: float | None = None, form: str = ".3f") -> str:
    """Return a number for a table, with its error if there is one. A missing number is ``-``."""
    if value is None:
        return "-"
    return format(value, form) if error is None else f"{value:{form}} +- {error:{form}}"


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
    """Return a page with another text between the marks of a study."""
    begin, end = marks(name)
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{rest.split(end)[1]}"


def marks(name: str) -> tuple[str, str]:
    """Return the lines before and after the tables of a study."""
    return f"<!-- {name}: written by python -m examples.studies.{name} -->", f"<!-- {name}: end -->"

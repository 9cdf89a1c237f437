"""Lightning loggers: those that are known each in its own form, any other by ``log_metrics``."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_glassy.loggers.comet import CometSink
from lightning_glassy.loggers.csv import CSVSink
from lightning_glassy.loggers.litlogger import LitLoggerSink
from lightning_glassy.loggers.mlflow import MLflowSink
from lightning_glassy.loggers.sinks import Pairs, Sink, scalars
from lightning_glassy.loggers.tensorboard import TensorBoardSink
from lightning_glassy.loggers.wandb import WandbSink

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

    from lightning_glassy.record import AgingRecord

log = logging.getLogger(__name__)

# By name: `lightning` and `pytorch_lightning` have unrelated classes, and users derive from both.
_SINKS: dict[str, Callable[[Any, str], Sink]] = {
    "CometLogger": CometSink,
    "CSVLogger": CSVSink,
    "LitLogger": LitLoggerSink,
    "MLFlowLogger": MLflowSink,
    "TensorBoardLogger": TensorBoardSink,
    "WandbLogger": WandbSink,
}


def sink_for(logger: Logger, prefix: str) -> Sink | None:
    """The sink for a logger; ``None`` for the one that ``fast_dev_run`` puts in place of all loggers."""
    # By class and not by what it can do: the no-op objects on other ranks claim to have every attribute.
    classes = [cls.__name__ for cls in type(logger).__mro__]
    if "DummyLogger" in classes:
        return None
    return next((_SINKS[name] for name in classes if name in _SINKS), MetricsSink)(logger, prefix)


def run_of(logger: Logger) -> str | None:
    """What tells the run of a logger from others; ``None`` where that is not known, or each sink has a file of its own.

    A training that is resumed in the same run has its curves there already.
    """
    try:
        if any(cls.__name__ == "CSVLogger" for cls in type(logger).__mro__):
            return None
        return f"{type(logger).__name__} {logger.save_dir} {logger.name} {logger.version}"
    except Exception:  # a logger that is down says so elsewhere
        return None


class MetricsSink:
    """Any other Lightning logger, by ``log_metrics``.

    The step is the training step t_w + t, which never goes back, since many loggers drop what does; the waiting time is
    in the name: ``glassy/msd/tw_100``.
    """

    def __init__(self, logger: Logger, prefix: str) -> None:
        self._logger = logger
        self._prefix = prefix

    def update(self, record: AgingRecord, pairs: Pairs, step: int) -> None:
        """Log the new pairs, those of one training step together."""
        by_step: dict[int, dict[str, float]] = {}
        for tag, waiting_time, lag, value in scalars(record, pairs, self._prefix):
            by_step.setdefault(waiting_time + lag, {})[tag] = value
        for realised, metrics in sorted(by_step.items()):
            self._logger.log_metrics(metrics, step=realised)

    def close(self, record: AgingRecord) -> None:
        """Nothing is left to write: the Trainer finalises its loggers."""

    def where(self) -> str | None:
        """Nothing: the logger says itself where it writes."""
        return None


def log_directory(loggers: Sequence[Any], default: str) -> Path:
    """Directory of the first logger's files, found without asking other ranks, as ``Trainer.log_dir`` would.

    ``default`` where there is no logger, or where asking it fails: a record has to be somewhere.

    Raises:
        ValueError: the directory is not a local one.
    """
    root = directory = default
    if loggers:
        try:
            root, directory = _root_of(loggers[0], default), _directory_of(loggers[0], default)
        except Exception as error:
            log.warning(
                "lightning_glassy: %s cannot say where its files are (%s: %s); those of the record go to %s",
                type(loggers[0]).__name__,
                type(error).__name__,
                error,
                default,
            )
    if "://" in str(root):
        raise ValueError(f"{root} is not a local directory: set AgingMonitor(dirpath=...)")
    return Path(directory)


def _directory_of(logger: Any, default: str) -> str:
    classes = [cls.__name__ for cls in type(logger).__mro__]
    if "TensorBoardLogger" in classes or "CSVLogger" in classes:
        return str(logger.log_dir)
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    # The layout that ModelCheckpoint uses for its checkpoints.
    return os.path.join(_root_of(logger, default), str(logger.name), version)


def _root_of(logger: Any, default: str) -> str:
    # The loggers that are Fabric's own have a `root_dir` alone.
    return getattr(logger, "save_dir", getattr(logger, "root_dir", None)) or default

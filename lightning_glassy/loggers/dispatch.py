"""Choose the sink for a Lightning logger: a class for each known logger, ``log_metrics`` for any other."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_glassy.loggers.comet import CometSink
from lightning_glassy.loggers.csv import CSVSink
from lightning_glassy.loggers.files import FileSink
from lightning_glassy.loggers.litlogger import LitLoggerSink
from lightning_glassy.loggers.mlflow import MLflowSink
from lightning_glassy.loggers.places import Directory
from lightning_glassy.loggers.remote import RemoteSink
from lightning_glassy.loggers.signals import Signal
from lightning_glassy.loggers.sinks import Pairs, Sink, scalars
from lightning_glassy.loggers.tensorboard import TensorBoardSink
from lightning_glassy.loggers.wandb import WandbSink

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

    from lightning_glassy.record import AgingRecord

log = logging.getLogger(__name__)

# The keys are class names, because `lightning` and `pytorch_lightning` have unrelated classes. Users subclass both.
_SINKS: dict[str, Callable[[Any, str, bool], Sink]] = {
    "CometLogger": CometSink,
    "CSVLogger": CSVSink,
    "LitLogger": LitLoggerSink,
    "MLFlowLogger": MLflowSink,
    "TensorBoardLogger": TensorBoardSink,
    "WandbLogger": WandbSink,
}


def sink_for(logger: Logger, prefix: str, curves: bool = False) -> Sink | None:
    """Return the sink for a logger, or ``None`` for a ``DummyLogger`` (all loggers under ``fast_dev_run``).

    Args:
        logger: the logger.
        prefix: name of the monitor.
        curves: whether the curves are logged as scalars.
    """
    # Look at the class, not at the attributes: the no-op objects on other ranks claim to have every attribute.
    classes = [cls.__name__ for cls in type(logger).__mro__]
    if "DummyLogger" in classes:
        return None
    kind = next((_SINKS[name] for name in classes if name in _SINKS), MetricsSink)
    # `log_metrics` adds the prefix of the logger by itself. The table of a CSVLogger is a file, and has no prefix.
    return kind(logger, prefix if kind in (MetricsSink, CSVSink) else _with_prefix(logger, prefix), curves)


def file_sink(directory: Directory) -> Sink:
    """Return the sink for the files in a directory."""
    return FileSink(directory) if isinstance(directory, Path) else RemoteSink(directory)


def _with_prefix(logger: Any, name: str) -> str:
    """Return a name with the prefix of the logger, as ``log_metrics`` of Lightning and of Comet joins them."""
    own = getattr(logger, "_prefix", None)
    return f"{own}{getattr(logger, 'LOGGER_JOIN_CHAR', '_')}{name}" if isinstance(own, str) and own else name


def run_of(logger: Logger) -> str | None:
    """Return a text that identifies the run of a logger, so that curves are not logged twice in one run.

    A training that is resumed in the same run has its earlier curves there already. The result is ``None`` if the run
    is unknown, and for a ``CSVLogger``, because each of its sinks writes a new file.
    """
    try:
        if any(cls.__name__ == "CSVLogger" for cls in type(logger).__mro__):
            return None
        return f"{type(logger).__name__} {logger.save_dir} {logger.name} {logger.version}"
    except Exception:  # a logger that is down is reported elsewhere
        return None


class MetricsSink(Sink):
    """Write to any other Lightning logger with ``log_metrics``: the signals against the training step.

    If the curves are logged as scalars, their step is the training step t_w + t, because it never decreases. Many
    loggers drop a value with a smaller step than the last one. The waiting time is in the name: ``glassy/msd/tw_100``.
    """

    takes_signals = True

    def __init__(self, logger: Logger, prefix: str, curves: bool = False) -> None:
        self._logger = logger
        self._prefix = prefix
        self._curves = curves
        self._signals: list[Signal] = []  # for the next update, so that the steps of both never decrease
        self._last = -1  # the last step that was logged before an error

    def update(self, record: AgingRecord, pairs: Pairs, step: int) -> None:
        """Log the new pairs and signals, with one call per training step."""
        by_step: dict[int, dict[str, float]] = {}
        for signal in self._signals:
            by_step.setdefault(signal.step, {})[f"{self._prefix}/{signal.name}"] = signal.value
        for tag, waiting_time, lag, value in scalars(record, pairs, self._prefix) if self._curves else ():
            by_step.setdefault(waiting_time + lag, {})[tag] = value
        for realised, metrics in sorted(by_step.items()):
            if realised > self._last:  # after an error, the same pairs come again
                self._logger.log_metrics(metrics, step=realised)
                self._last = realised
        self._last, self._signals = -1, []

    def log_signals(self, signals: Sequence[Signal]) -> None:
        """Log numbers against the training step."""
        self._signals += signals

    def close(self, record: AgingRecord) -> None:
        """Do nothing: the Trainer finalises its loggers."""

    def where(self) -> str | None:
        """Return None: the logger itself reports where it writes."""
        return None


def log_directory(loggers: Sequence[Any], default: str) -> Directory:
    """Return the directory of the first logger's files.

    Unlike ``Trainer.log_dir``, this function does not communicate with other ranks. The result is ``default`` if there
    is no logger, or if the logger raises an error, because a record needs a directory.
    """
    directory = default
    if loggers:
        try:
            directory = _directory_of(loggers[0], default)
        except Exception as error:
            log.warning(
                "lightning_glassy: %s cannot say where its files are (%s: %s). The files of the record go to %s",
                type(loggers[0]).__name__,
                type(error).__name__,
                error,
                default,
            )
    return directory if "://" in directory else Path(directory)


def _directory_of(logger: Any, default: str) -> str:
    classes = [cls.__name__ for cls in type(logger).__mro__]
    if "TensorBoardLogger" in classes or "CSVLogger" in classes:
        return str(logger.log_dir)
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    # The layout that ModelCheckpoint uses for its checkpoints.
    return os.path.join(_root_of(logger, default), str(logger.name), version)


def _root_of(logger: Any, default: str) -> str:
    # Fabric's own loggers have only a `root_dir`.
    return getattr(logger, "save_dir", getattr(logger, "root_dir", None)) or default

"""One checkpoint. Its files are opened, and no tensor is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Content:
    """One checkpoint: a file, or all shards of a checkpoint together.

    Attributes:
        path: the file or directory that the user named, for messages.
        everything: content of the files. Tensors are :class:`~lightning_glassy.checkpoints.stored.Stored`, the rest is
            plain values, dicts and lists. Objects of other types are left out.
        files: all files that hold tensors of this checkpoint, for messages and to see whether they change.
        beside: plain values of files beside it, such as ``trainer_state.json``.
        labels: other names of the checkpoint, such as the branches of a repository that lead to it.
        passed: names of files in its directory that may hold other weights, and are not used.
    """

    path: Path
    everything: dict[str, Any]
    files: tuple[Path, ...]
    beside: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the ends of paths, with as many directories as needed to distinguish the paths."""
    parts = [path.absolute().parts for path in paths]
    for n in range(1, max(map(len, parts))):
        names = [str(Path(*several[-n:])) for several in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [str(path) for path in paths]

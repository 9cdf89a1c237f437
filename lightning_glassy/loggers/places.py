"""Directories for files: local directories as absolute paths, and directories of other file systems as addresses."""

from __future__ import annotations

import os
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol

Directory = Path | str
"""A local directory is a ``Path``. A directory of another file system is its address, such as ``s3://bucket/runs``."""


def directory_of(place: str | os.PathLike[str]) -> Directory:
    """Return a local directory as an absolute path, and any other directory as its address.

    A relative path is absolute from here on, because a training may change the working directory.

    Args:
        place: a path, or an address such as ``file:///home/me/runs`` or ``s3://bucket/runs``.
    """
    text = os.fspath(place)
    if "://" in text and get_protocol(text) not in ("file", "local"):
        return text.rstrip("/")
    # `Trainer.default_root_dir` makes "file:/home" of "file:///home".
    plain = LocalFileSystem._strip_protocol(text) if text.startswith(("file:", "local:")) else text
    return Path(plain).expanduser().absolute()


def inside(directory: Directory, name: str) -> Directory:
    """Return the directory of this name in a directory."""
    return directory / name if isinstance(directory, Path) else f"{directory}/{name}"

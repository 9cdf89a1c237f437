"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

# No write takes an hour: what is older is from a process that was killed in the middle of one.
_DEAD = 3600.0


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Let ``write(file)`` fill a temporary neighbour of ``path``, then put it in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not from `tempfile`, whose files are private: this one gets the rights of any other new file.
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return path


def remove_left(directory: Path, name: str) -> None:
    """Remove what the writes of killed processes have left, more than an hour ago, of files named by a pattern."""
    left = re.compile(rf"\.+{name}(\.[0-9a-f]{{12}}){{1,2}}")
    with contextlib.suppress(OSError):
        for path in list(directory.iterdir()):
            if left.fullmatch(path.name):
                with contextlib.suppress(OSError):  # another run removes them, too
                    if path.lstat().st_mtime < time.time() - _DEAD:
                        path.unlink()

"""Write files atomically: a file is complete, or it does not exist.

A new file replaces a file, a link or a pipe of the same name. Nothing is written through a link, because a directory
from another person can hold links to any file of the user.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

# No write takes an hour. An older temporary file belongs to a process that was killed during a write.
_DEAD = 3600.0


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Call ``write(file)`` on a temporary file beside ``path``, then rename the file to ``path``. Return ``path``.

    Raises:
        OSError: the file cannot be written, or ``path`` is in ``/dev``. The superuser would replace a device.
    """
    if path.absolute().parent == Path("/dev"):
        raise OSError(f"{path} is in /dev, and a file there could replace a device: choose another directory")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Files of the module `tempfile` are private. This file gets the permissions of any other new file.
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
    """Remove temporary files of killed writes that are older than an hour.

    Args:
        directory: directory of the files.
        name: regular expression for the names of the files that were being written.
    """
    left = re.compile(rf"\.+{name}(\.[0-9a-f]{{12}}){{1,2}}")
    with contextlib.suppress(OSError):
        for path in list(directory.iterdir()):
            if left.fullmatch(path.name):
                with contextlib.suppress(OSError):  # another run may remove the same file
                    if path.lstat().st_mtime < time.time() - _DEAD:
                        path.unlink()

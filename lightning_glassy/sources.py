"""Find the records at the paths that a user names: record files, and records in the event files of TensorBoard."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from lightning_glassy.record import AgingRecord, RecordError
from lightning_glassy.record.text import print_lines
from lightning_glassy.tensorboard.event_files import is_event_file, records_in

_MANY = 1000  # a directory with more records than this is probably the wrong directory
_MOST_BEHIND_A_LINK = 10_000  # directories: a link to more probably leads to something else than runs


@dataclass(frozen=True)
class Source:
    """A record, and where it comes from.

    Attributes:
        path: the file of the record, or the first of the event files that hold it.
        name: a name for the directory of its report, unique among the records of an event file.
        record: the record.
    """

    path: Path
    name: str
    record: AgingRecord


def read_sources(paths: Sequence[Path]) -> list[Source]:
    """Read the records at some paths. A directory gives all records below it.

    The event files in one directory are of one run. If a file holds the record of the same run, or of a run that goes
    on from it, the record in the event files is left out. Damaged event files and missing parts are named on stderr.

    Raises:
        FileNotFoundError: as in :func:`find_records`, or there is no record in an event file or a directory.
        ValueError: as in :func:`find_records`, or a file cannot be read as a record.
        OSError: a file cannot be read.
    """
    files = find_records(paths)
    sources = [Source(path, path.stem, _load(path)) for path in files if not is_event_file(path.name)]
    runs: dict[Path, list[Path]] = {}
    for path in files:
        if is_event_file(path.name):
            runs.setdefault(path.parent, []).append(path)
    damaged: dict[Path, str] = {}
    fruitful: set[Path] = set()
    for first, *others in runs.values():
        names: list[str] = []
        try:
            found = records_in([first, *others])
        except OSError as error:
            damaged[first.parent] = f"{first.parent}: an event file cannot be read: {error.strerror}"
            continue
        for monitor, record, note in found:
            if note is not None:
                damaged[first.parent] = f"{first}: {note}"
            if record is None:
                continue
            fruitful.add(first.parent)
            same = next((source for source in sources if _holds(source.record, record)), None)
            if same is not None:
                if record.last_step > same.record.last_step:
                    _say(f"{same.path} is used, and ends before {first}: name the event file to use that")
                continue
            # The name of a monitor in an event file can be anything. It becomes the name of a directory.
            plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in monitor)[:50]
            names.append(plain)
            n = names.count(plain)
            sources.append(Source(first, plain if n == 1 else f"{plain}-{n}", record))
            if len(sources) > _MANY:
                raise ValueError(f"{first.parent} is one of more than {_MANY} runs: name a directory with fewer")
    for path in paths:
        is_event = is_event_file(path.name) and not path.is_dir()
        if (is_event and path.parent not in fruitful) or not (sources or fruitful):
            if damaged:
                raise RecordError(damaged.get(path.parent, next(iter(damaged.values()))))
            what = "this event file" if is_event else "no aging_record.npz here or below, and the event files"
            raise FileNotFoundError(f"{path}: {what} hold{'s' * is_event} no record of an AgingMonitor")
    for sentence in damaged.values():
        _say(sentence)
    return sources


def _load(path: Path) -> AgingRecord:
    try:
        return AgingRecord.load(path)
    except RecordError:
        if path.suffix == ".npz":
            raise
        raise RecordError(
            f"{path} is not a record; 'lightning-glassy measure' makes a record from two or more checkpoints"
        ) from None


def _holds(record: AgingRecord, other: AgingRecord) -> bool:
    """Return whether a record is of the same run as another one, or of a run that goes on from it."""
    if record.goes_on_from(other):
        return True
    has_rows = len(record) > 0 < len(other)
    return has_rows and "id" not in record.meta and (other.is_part_of(record) or record.is_part_of(other))


def find_records(paths: Sequence[Path]) -> list[Path]:
    """Return the record files and the event files at some paths, each file once.

    A directory gives all files below it, sorted.

    Raises:
        FileNotFoundError: a path does not exist, or a directory has no such file. The message names the missing file.
        ValueError: a directory has more than a thousand records, or a path is a device or a pipe.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(_files_below(path))
            n_records = sum(not is_event_file(file.name) for file in inside)
            if not inside:
                raise FileNotFoundError(
                    f"{path}: no aging_record.npz in this directory or below it; AgingMonitor writes it to the "
                    "directory 'glassy' of the run, and 'lightning-glassy measure' makes one from checkpoints"
                )
            if n_records > _MANY:
                raise ValueError(f"{path} holds {n_records} records, more than {_MANY}: name a directory with fewer")
            found += inside
        elif path.is_file():
            found.append(path)
        elif path.exists():
            raise RecordError(f"{path}: not a file but a device or a pipe, which may never end")
        else:
            raise FileNotFoundError(f"{path}: there is no such file or directory")
    unique: dict[str, Path] = {}
    for path in found:
        unique.setdefault(os.path.realpath(path), path)
    return list(unique.values())


def _files_below(top: Path) -> Iterator[Path]:
    """Yield the record files and the event files in a directory and below it.

    Links are followed after all directories, so that a file has a path without links if there is one. Each directory is
    read once, so that there is no cycle. A link that leads out to a home directory, or up, is not followed.

    Raises:
        OSError: the directory itself cannot be read. A directory below it that cannot be read is left out.
    """
    seen: set[tuple[int, int]] = set()
    todo, links, link, n = [top], list[Path](), top, 0
    while todo or links:
        if not todo:
            link, n = links.pop(0), 0
            if (reason := _leads_too_far(link, top)) is not None:
                _say(f"{link} is a link to {reason}: not followed")
                continue
            todo.append(link)
        directory = todo.pop()
        try:
            status = directory.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(directory) as opened:
                entries = list(opened)
        except OSError as error:
            if directory == top:
                raise
            _say(f"{directory} cannot be read: left out ({error.strerror})")
            continue
        n += 1
        if link != top and n > _MOST_BEHIND_A_LINK:
            _say(f"{link} is a link to more than {_MOST_BEHIND_A_LINK:,} directories: only these were searched")
            todo.clear()
            continue
        for entry in entries:
            path = directory / entry.name
            try:
                if entry.is_dir(follow_symlinks=False):
                    todo.append(path)
                elif entry.is_symlink() and path.is_dir():
                    links.append(path)
                elif (fnmatch(entry.name, "aging_record*.npz") or is_event_file(entry.name)) and path.is_file():
                    yield path
            except OSError as error:  # a link into a directory that the user may not read
                _say(f"{path} cannot be read: left out ({error.strerror})")


def _leads_too_far(link: Path, top: Path) -> str | None:
    """Return the target of a link if it holds far more than runs, else None."""
    target, real = Path(os.path.realpath(link)), Path(os.path.realpath(top))
    try:
        home = Path(os.path.realpath(Path.home()))
    except RuntimeError:  # the user has no home directory
        home = real
    if target in (home, *home.parents):
        return f"{target}, which is or holds your home directory"
    return f"{target}, which holds {top} itself" if target in real.parents else None


def _say(sentence: str) -> None:
    print_lines(sentence, file=sys.stderr)

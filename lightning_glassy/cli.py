"""The command ``lightning-glassy``: ``report``, ``show``, ``tensorboard`` and ``measure``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lightning_glassy.observables import OBSERVABLES, relaxing
from lightning_glassy.record import AgingRecord, without_replaced
from lightning_glassy.record.text import plain, printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MANY = 1000  # a directory with more records than this is probably the wrong directory


class _WrongInputError(Exception):
    """An error in the input of the user. The text says how to correct it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 after an error on stderr, or 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (_WrongInputError, ValueError, KeyError, OSError, ImportError) as error:
        if isinstance(error, BrokenPipeError):  # `| head` has read enough, and the flush at exit must not fail
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        text = error.args[0] if isinstance(error, KeyError) else error
        _print(f"lightning-glassy: error: {text}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"lightning-glassy: error: out of memory: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lightning-glassy: interrupted", file=sys.stderr)
        return 130
    return 0


def _version() -> str:
    """Return the version of the installed package. A checkout can be used without being installed."""
    try:
        return version("lightning-glassy")
    except PackageNotFoundError:
        return "not installed"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-glassy", description="Aging diagnostics: how does a network move through its landscape?"
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    report = commands.add_parser(
        "report",
        help="exponent, verdict and figures of one or several runs",
        description="Prints the verdict and the aging exponent, and writes report.html, report.json and figures. "
        "Several runs of the same model and schedule count as replicas, and give error bars.",
    )
    report.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a record, or a directory with runs")
    report.add_argument(
        "-o", "--out", type=Path, help="directory to write to (default: beside the record; several runs: glassy_report)"
    )
    report.add_argument("--separate", action="store_true", help="report each run alone, not as one of several replicas")
    report.add_argument(
        "--observable",
        default="msd",
        metavar="NAME",
        help=f"{', '.join(relaxing())} (default msd); without an exponent also "
        f"{', '.join(name for name in OBSERVABLES if name not in relaxing())}",
    )
    report.add_argument("--group", default="all", help="group of parameters (default all)")
    report.add_argument("--eps", type=float, help="threshold of the overlap")
    report.add_argument("--window", type=int, nargs=2, metavar=("FIRST", "LAST"), help="range of waiting times to fit")
    report.add_argument("--thresholds", type=float, nargs="+", metavar="VALUE", help="levels of the relaxation")
    report.add_argument("--t0", type=_origin, default=0.0, help="origin of the clock in steps before step 0, or 'fit'")
    report.add_argument("--confidence", type=float, default=0.95, help="level of the interval (default 0.95)")
    report.add_argument("--bootstrap", type=int, default=200, metavar="N", help="resampled fits (default 200)")
    report.add_argument("--no-files", action="store_true", help="write nothing, print only")
    report.add_argument("--json", action="store_true", help="print JSON instead of text")
    report.set_defaults(run=_report)

    show = commands.add_parser("show", help="contents of a record", description="Prints the contents of a record.")
    show.add_argument("path", type=Path, metavar="PATH", help="a record, or a directory with one")
    show.add_argument("--json", action="store_true", help="print JSON instead of text")
    show.set_defaults(run=_show)

    tensorboard = commands.add_parser(
        "tensorboard",
        help="TensorBoard with the tab Glassy",
        description="Starts TensorBoard on a directory of runs. The aging curves are in the tab Glassy.",
    )
    tensorboard.add_argument("logdir", type=Path, metavar="LOGDIR", help="a directory with runs")
    tensorboard.add_argument(
        "options", nargs=argparse.REMAINDER, metavar="...", help="options of tensorboard, such as --port 6007"
    )
    tensorboard.set_defaults(run=_tensorboard)

    measure = commands.add_parser(
        "measure",
        help="a record from existing checkpoints",
        description="Measures all pairs of checkpoints: Lightning .ckpt files, files with a state_dict, or "
        ".safetensors. No code in the files is executed.",
    )
    measure.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="two or more files")
    measure.add_argument("-o", "--out", type=Path, required=True, metavar="RECORD", help="the record to write (.npz)")
    measure.add_argument("--steps", type=_steps, help="steps of the files, with commas (default: from each file)")
    measure.add_argument("--key", help="key of the state_dict in each file, if there are several")
    measure.add_argument("--layers", action="store_true", help="also measure each layer alone")
    measure.add_argument("--include", action="append", metavar="PATTERN", help="only parameters with names like this")
    measure.add_argument("--exclude", action="append", metavar="PATTERN", help="no parameters with names like this")
    measure.add_argument("--overwrite", action="store_true", help="replace RECORD if it exists")
    measure.set_defaults(run=_measure)
    return parser


def _origin(text: str) -> Any:
    if text == "fit":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of steps nor 'fit'") from None


def _steps(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integers such as 0,10,100") from None


# ---------------------------------------------------------------------- report


def _report(options: argparse.Namespace) -> None:
    from lightning_glassy.report import report

    if options.out is not None and options.no_files:
        raise _WrongInputError(f"--out {options.out} and --no-files exclude each other")
    if options.out is not None and os.path.lexists(options.out) and not options.out.is_dir():
        raise _WrongInputError(f"--out {options.out} is a file: name a directory")
    paths = find_records(options.paths)
    records = [AgingRecord.load(path) for path in paths]
    contents: list[dict[str, Any]] = []
    for source, record in zip(paths, records, strict=True):
        if len(record):
            continue
        if not record.one_time_names:
            raise _WrongInputError(f"{source}: the record is empty: no pair of times was measured")
        # A training without AgingMonitor has series to show, and no pairs of times to analyse.
        contents.append(_content(source, record))
        if not options.json:
            _print(_as_text(source, record))
    measured = [i for i, record in enumerate(records) if len(record)]
    paths, records = [paths[i] for i in measured], [records[i] for i in measured]
    paths, records = _without_earlier_parts(paths, records)
    parts: list[tuple[Path | None, AgingRecord]] = list(zip(paths, records, strict=True))
    if len(parts) > 1 and not options.separate:
        parts = [(None, _as_replicas(paths, records))]
    # Find the directories before the analysis, so that a wrong one costs no time.
    outs = [
        _out(options.out, path, i if len(parts) > 1 else None)
        for i, (path, _) in enumerate(parts)
        if not options.no_files
    ]
    for i, (path, record) in enumerate(parts):
        found = report(
            record,
            observable=options.observable,
            group=options.group,
            eps=options.eps,
            window=None if options.window is None else tuple(options.window),
            thresholds=options.thresholds,
            t0=options.t0,
            confidence=options.confidence,
            n_bootstrap=options.bootstrap,
        )
        content = {"records": [str(p) for p in (paths if path is None else [path])], **found.to_dict()}
        if not options.json:
            _print(*([""] * 2 if i else []), *([path] if len(parts) > 1 else []), found)
        if not options.no_files:
            content["files"] = [str(written) for written in found.write(outs[i])]
            if not options.json:
                _print(f"\nwritten to {outs[i]}: {', '.join(Path(name).name for name in content['files'])}")
        contents.append(content)
    if options.json:
        print(json.dumps(contents[0] if len(contents) == 1 else contents, indent=1, allow_nan=False))


def _out(chosen: Path | None, path: Path | None, number: int | None) -> Path:
    """Return the directory of a report. Several reports get numbered directories below ``chosen``.

    The user may choose a link. A link with a name that we choose may come from somebody else, and lead anywhere.
    """
    if chosen is not None and number is None:
        return chosen
    if chosen is not None:
        own = chosen / str(number)
    else:
        own = Path("glassy_report") if path is None else path.parent / f"report-{path.stem}"
    if own.is_symlink() or (own.exists() and not own.is_dir()):
        what = "link" if own.is_symlink() else "file"
        raise _WrongInputError(f"{own} is a {what}: remove it, or name another directory with --out")
    return own


def _without_earlier_parts(paths: list[Path], records: list[AgingRecord]) -> tuple[list[Path], list[AgingRecord]]:
    """Leave out the record of an interrupted run, if the record of the resumed run contains it."""
    kept = without_replaced(records)
    for i in sorted(set(range(len(paths))) - set(kept)):
        _print(f"{paths[i]} is an earlier part of another record here: left out", file=sys.stderr)
    return [paths[i] for i in kept], [records[i] for i in kept]


def _as_replicas(paths: list[Path], records: list[AgingRecord]) -> AgingRecord:
    try:
        return AgingRecord.concat(records)
    except ValueError as error:
        names = "".join(f"\n  records[{i}] is {path}" for i, path in enumerate(paths))
        raise _WrongInputError(
            f"these runs are not replicas of each other: {error}{names}\n--separate reports each run alone"
        ) from None


def find_records(paths: Sequence[Path]) -> list[Path]:
    """Return the record files at some paths, each file once. A directory gives all records below it, sorted.

    Raises:
        FileNotFoundError: a path does not exist, or a directory has no record. The message names the missing file.
        ValueError: a directory has more than a thousand records.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(_records_below(path))
            if not inside:
                raise FileNotFoundError(
                    f"{path}: no aging_record.npz in this directory or below it; AgingMonitor writes it to the "
                    "directory 'glassy' of the run"
                )
            if len(inside) > _MANY:
                raise ValueError(f"{path} holds {len(inside)} records, more than {_MANY}: name a directory with fewer")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path}: there is no such file or directory")
    return list({os.path.realpath(path): path for path in reversed(found)}.values())[::-1]


def _records_below(top: Path) -> Iterator[Path]:
    """Yield the records in a directory and below it. A link to a directory is not followed, so there is no circle.

    Raises:
        OSError: the directory itself cannot be read. A directory below it that cannot be read is left out.
    """
    todo = [top]
    while todo:
        directory = todo.pop()
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(directory / entry.name)
                    elif fnmatch(entry.name, "aging_record*.npz") and (directory / entry.name).is_file():
                        yield directory / entry.name
        except OSError as error:
            if directory == top:
                raise
            _print(f"{directory} cannot be read: left out ({error.strerror})", file=sys.stderr)


# ---------------------------------------------------------------------- show


def _show(options: argparse.Namespace) -> None:
    paths = find_records([options.path])
    if len(paths) > 1:
        names = "".join(f"\n  {path}" for path in paths)
        raise _WrongInputError(f"{options.path} holds {len(paths)} records, name one:{names}")
    record = AgingRecord.load(paths[0])
    if options.json:
        print(json.dumps(_content(paths[0], record), indent=1, allow_nan=False))
    else:
        _print(_as_text(paths[0], record))


def _content(path: Path, record: AgingRecord) -> dict[str, Any]:
    """Return the contents of a record as plain values."""
    series = {name: record.one_time(name) for name in record.one_time_names}
    content = {
        "path": str(path),
        "pairs": len(record),
        "waiting_times": record.waiting_times,
        "lags": record.lags,
        "n_replica": record.n_replica,
        "n_parameters": record.n_parameters,
        "n_sampled": record.n_sampled,
        "overlap_thresholds": record.overlap_thresholds,
        "sums": record.sums,
        "observables": record.available() if len(record) else [],
        "one_time": {name: {"steps": steps, "values": values} for name, (steps, values) in series.items()},
        "doubts": record.doubts,
        "meta": record.meta,
    }
    return plain(content)  # type: ignore[no-any-return]


def _as_text(path: Path, record: AgingRecord) -> str:
    """Return the contents of a record as text."""
    lines = [
        f"{path}",
        f"  {len(record):,} pairs of times" + ("" if record.n_replica is None else f", {record.n_replica} replicas"),
        f"  waiting times   {_range(record.waiting_times)}",
        f"  lags            {_range(record.lags)}",
    ]
    for group, n in record.n_parameters.items():
        sampled = record.n_sampled[group]
        lines.append(
            f"  group           {group!r}: N = {n:,}" + ("" if sampled == n else f", {sampled:,} of them sampled")
        )
    if record.overlap_thresholds:
        lines.append(f"  overlaps        eps = {', '.join(f'{eps:.3g}' for eps in record.overlap_thresholds)}")
    if len(record):
        lines.append(f"  observables     {', '.join(record.available())}")
    lines += [
        f"  between         {name!r}: {len(record.between(name)[0]):,} matrices between replicas"
        for name in record.between_names
    ]
    for name in record.profile_names:
        profile = record.profile(name)
        lines.append(f"  profile         {name!r}: {len(profile.values):,} functions on {len(profile.grid):,} points")
    for name in record.one_time_names:
        steps, values = record.one_time(name)
        ends = f", {values[0]:.4g} at step {steps[0]:,}, {values[-1]:.4g} at step {steps[-1]:,}" if len(steps) else ""
        lines.append(f"  series          {name!r}: {len(steps):,} values{ends}")
    lines += [f"  ! {doubt}" for doubt in record.doubts]
    for key, value in record.meta.items():
        if key == "doubts" and record.doubts:
            continue  # shown in full above
        text = json.dumps(value)
        lines.append(f"  meta            {key}: {text if len(text) <= 100 else text[:97] + '...'}")
    return "\n".join(lines)


def _range(steps: NDArray[np.int64]) -> str:
    return f"{len(steps)}, {steps[0]:,} ... {steps[-1]:,} steps" if len(steps) else "none"


def _print(*parts: object, file: TextIO | None = None) -> None:
    """Print lines, with escapes for control characters and for characters that the terminal cannot show.

    Names in records and names of files can come from anyone, and must not send commands to the terminal.
    """
    stream = file or sys.stdout
    encoding = stream.encoding or "utf-8"
    for line in "\n".join(map(str, parts)).split("\n"):
        print(printable(line).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


# ---------------------------------------------------------------------- tensorboard

# Of two options with one name the last wins: an option of the user replaces one of these.
_TENSORBOARD_OPTIONS = (
    # Keep the figures of all decades. The tab itself needs no samples.
    "--samples_per_plugin=images=100",
    "--reload_interval=5",
    # A resumed run, or a run with two monitors, has several event files.
    "--reload_multifile=true",
    "--window_title=Glassy",
)


def _tensorboard(options: argparse.Namespace) -> None:
    if not options.logdir.is_dir():
        raise FileNotFoundError(f"{options.logdir}: there is no such directory")
    try:
        from tensorboard import default, program
        from tensorboard.plugins.base_plugin import FlagsError
    except ImportError as error:
        raise ImportError("this needs tensorboard: pip install 'lightning-glassy[tensorboard]'") from error
    server = program.TensorBoard(plugins=default.get_plugins())
    try:
        server.configure(("tensorboard", "--logdir", str(options.logdir), *_TENSORBOARD_OPTIONS, *options.options))
    except FlagsError as error:
        raise _WrongInputError(str(error)) from None
    print("the curves are in the tab Glassy: add #glassy to the address", file=sys.stderr, flush=True)
    if server.main():
        raise _WrongInputError("TensorBoard did not start, for the reason above")


# ---------------------------------------------------------------------- measure


def _measure(options: argparse.Namespace) -> None:
    if os.path.lexists(options.out) and not options.overwrite:  # also a link that leads nowhere
        raise _WrongInputError(f"{options.out} is there already: choose another name, or add --overwrite")
    from lightning_glassy.checkpoints import measure_checkpoints

    record = measure_checkpoints(
        options.checkpoints,
        steps=options.steps,
        groups="layer" if options.layers else "all",
        include=options.include,
        exclude=options.exclude,
        key=options.key,
        progress=_progress if sys.stderr.isatty() else None,
    )
    record.save(options.out)
    _print(f"{record}\nwritten to {options.out}; next: lightning-glassy report {options.out}")


def _progress(done: int, total: int) -> None:
    print(f"\r{done:,} of {total:,} pairs" + ("\n" if done == total else ""), end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

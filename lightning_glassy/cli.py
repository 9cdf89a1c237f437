"""The command ``lightning-glassy``: ``report``, ``show``, ``tensorboard`` and ``measure``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lightning_glassy.options import in_options

# Commands import the rest of the package when they run. `--help` needs neither NumPy nor a record.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lightning_glassy.record import AgingRecord
    from lightning_glassy.sources import Source


log = logging.getLogger("lightning_glassy")

_LONG = 10.0  # seconds after which a report in a file shows how long it takes


class _WrongInputError(Exception):
    """An error in the input of the user. The text gives the remedy."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 after an error on stderr, or 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    named = [path for value in vars(options).values() for path in (value if isinstance(value, list) else [value])]
    say = partial(in_options, command=options.command, paths=[path for path in named if isinstance(path, Path)])
    handler = _Terminal(say)
    log.addHandler(handler)
    try:
        options.run(options)
    except (_WrongInputError, ValueError, KeyError, OSError, ImportError) as error:
        if isinstance(error, BrokenPipeError):  # `| head` has read enough, and the flush at exit must not fail
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        text = error.args[0] if isinstance(error, KeyError) else error
        if isinstance(error, OSError) and error.filename and error.strerror:
            text = f"{error.filename}: {error.strerror}"
        _print(f"lightning-glassy: error: {say(str(text))}", file=sys.stderr)
        return 2
    except MemoryError as error:
        _print(f"lightning-glassy: error: out of memory: {say(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lightning-glassy: interrupted", file=sys.stderr)
        return 130
    finally:
        log.removeHandler(handler)
    return 0


class _Terminal(logging.Handler):
    """Print the warnings of the library on stderr, in the words of the command line."""

    def __init__(self, say: Callable[[str], str]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Print one warning."""
        text = record.getMessage().removeprefix("lightning_glassy: ")
        if sys.stderr.isatty():
            print("\r", end="", file=sys.stderr)  # go back to the start of a line of progress
        _print(f"lightning-glassy: {record.levelname.lower()}: {self._say(text)}", file=sys.stderr)


def _print(*lines: object, file: TextIO | None = None) -> None:
    """Print lines, with untrusted text made harmless."""
    from lightning_glassy.record.text import print_lines

    print_lines(*lines, file=file)


class _Observables:
    """The names of the observables, for a help text. They are looked up when the text is printed."""

    def __str__(self) -> str:
        from lightning_glassy.observables import OBSERVABLES, relaxing

        others = ", ".join(name for name in OBSERVABLES if name not in relaxing())
        return f"{', '.join(relaxing())} (default msd); without an exponent also {others}"


def _version() -> str:
    """Return the version of the installed package. A checkout can be used without being installed."""
    from importlib.metadata import PackageNotFoundError, version

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
    report.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="a record, an event file of TensorBoard, or a directory with runs",
    )
    report.add_argument(
        "-o", "--out", type=Path, help="directory to write to (default: beside the record; several runs: glassy_report)"
    )
    report.add_argument("--separate", action="store_true", help="report each run alone, not as one of several replicas")
    report.add_argument(
        "--compare",
        action="store_true",
        help="one table and one figure of all paths; several runs in a path are replicas",
    )
    report.add_argument(
        "--common",
        action="store_true",
        help="use only the pairs of times that all runs have (default: leave out runs that were cut short)",
    )
    observable = report.add_argument("--observable", default="msd", metavar="NAME", help="%(names)s")
    vars(observable)["names"] = _Observables()
    report.add_argument("--group", default="all", help="group of parameters (default all)")
    report.add_argument("--eps", type=float, help="threshold of the overlap")
    report.add_argument("--window", type=int, nargs=2, metavar=("FIRST", "LAST"), help="range of waiting times to fit")
    report.add_argument("--thresholds", type=float, nargs="+", metavar="VALUE", help="levels of the relaxation")
    report.add_argument("--t0", type=_origin, default=0.0, help="origin of the clock in steps before step 0, or 'fit'")
    report.add_argument("--confidence", type=float, default=0.95, help="level of the interval (default 0.95)")
    report.add_argument("--bootstrap", type=int, default=200, metavar="N", help="resampled fits (default 200)")
    report.add_argument("--no-files", action="store_true", help="write nothing, print only")
    report.add_argument("--json", action="store_true", help="print JSON instead of text")
    report.set_defaults(run=_report, command=report)

    show = commands.add_parser("show", help="contents of a record", description="Prints the contents of a record.")
    show.add_argument("path", type=Path, metavar="PATH", help="a record, an event file, or a directory with one")
    show.add_argument("--json", action="store_true", help="print JSON instead of text")
    show.set_defaults(run=_show, command=show)

    tensorboard = commands.add_parser(
        "tensorboard",
        help="TensorBoard with the tab Glassy",
        description="Starts TensorBoard on a directory of runs. The aging curves are in the tab Glassy.",
    )
    tensorboard.add_argument("logdir", type=Path, metavar="LOGDIR", help="a directory with runs")
    tensorboard.add_argument(
        "options", nargs=argparse.REMAINDER, metavar="...", help="options of tensorboard, such as --port 6007"
    )
    tensorboard.set_defaults(run=_tensorboard, command=tensorboard)

    measure = commands.add_parser(
        "measure",
        help="a record from existing checkpoints",
        description="Measures pairs of checkpoints: Lightning .ckpt files, files with a state_dict, .safetensors, "
        "sharded ones, and directories of them. No code in the files is executed. A measurement that was interrupted "
        "goes on with the same command.",
    )
    measure.add_argument(
        "checkpoints",
        nargs="+",
        type=Path,
        metavar="CHECKPOINT",
        help="files and directories with two or more checkpoints",
    )
    measure.add_argument("-o", "--out", type=Path, required=True, metavar="RECORD", help="the record to write (.npz)")
    measure.add_argument(
        "--steps",
        type=_integers,
        metavar="STEP,...",
        help="steps of the checkpoints in the order given (default: from each checkpoint or its name)",
    )
    measure.add_argument(
        "--force-steps", action="store_true", help="take --steps even if the checkpoints or their names contradict"
    )
    measure.add_argument("--key", help="key of the state_dict in each file, with dots for nested ones")
    measure.add_argument(
        "--pairs",
        default="all",
        metavar="{all,log}",
        help="which pairs: all (default), or those nearest to a logarithmic grid of waiting times and lags",
    )
    measure.add_argument("--sample", type=_count, metavar="N", help="measure N coordinates, drawn at random")
    measure.add_argument(
        "--groups",
        action="append",
        metavar="NAME=PATTERN,...",
        help="also measure a group of parameters; --groups layer measures each layer",
    )
    measure.add_argument("--layers", action="store_true", help="the same as --groups layer")
    measure.add_argument(
        "--overlap-thresholds",
        type=_numbers,
        default="auto",
        metavar="EPS,...",
        help="thresholds of the overlap (default: about 1/100 and 1/10 of the spread of the weights)",
    )
    measure.add_argument("--include", action="append", metavar="PATTERN", help="only parameters with names like this")
    measure.add_argument("--exclude", action="append", metavar="PATTERN", help="no parameters with names like this")
    measure.add_argument(
        "--keep-constant", action="store_true", help="keep tensors that are bit-identical in all checkpoints"
    )
    measure.add_argument("--overwrite", action="store_true", help="replace RECORD if it exists")
    measure.set_defaults(run=_measure, command=measure)
    return parser


def _origin(text: str) -> Any:
    if text == "fit":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of steps nor 'fit'") from None


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integers such as 0,10,100") from None


def _count(text: str) -> int:
    try:
        number = float(text)
        count = int(number if "e" in text.lower() else text)
    except (ValueError, OverflowError):
        count = number = 0
    if count < 1 or count != number:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of coordinates such as 1000000 or 1e6")
    return count


def _numbers(text: str) -> Any:
    if text == "auto":
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither 'auto' nor a list of numbers such as 0.001,0.01"
        ) from None


# ---------------------------------------------------------------------- report


def _report(options: argparse.Namespace) -> None:
    from lightning_glassy.report import report
    from lightning_glassy.sources import read_sources

    if options.out is not None and options.no_files:
        raise _WrongInputError(f"--out {options.out} and --no-files exclude each other")
    if options.compare:
        return _compare(options)
    if options.common and options.separate:
        raise _WrongInputError("--common and --separate exclude each other")
    if options.out is not None and os.path.lexists(options.out) and not options.out.is_dir():
        raise _WrongInputError(f"--out {options.out} is a file: name a directory")
    contents: list[dict[str, Any]] = []
    sources: list[Source] = []
    empty: list[Source] = []
    for source in read_sources(options.paths):
        if len(source.record):
            sources.append(source)
            continue
        if not source.record.one_time_names:
            empty.append(source)
            continue
        # A training without AgingMonitor has series to show, and no pairs of times to analyse.
        contents.append(_content(source))
        if not options.json:
            _print(_as_text(source))
    sources = _without_earlier_parts(sources)
    if empty and (not sources or options.common):
        raise _WrongInputError(f"{empty[0].path}: the record is empty: no pair of times was measured")
    for source in empty if options.separate or len(sources) == 1 else []:
        _print(f"{source.path}: the record is empty, no pair of times was measured: left out", file=sys.stderr)
    parts: list[tuple[Source | None, AgingRecord]] = [(source, source.record) for source in sources]
    if len(parts) > 1 and not options.separate:
        sources, joined = _as_replicas([*sources, *empty], common=options.common)
        parts = [(None, joined)]
    # Find the directories before the analysis, so that a wrong directory costs no time.
    outs = [
        _out(options, source, i if len(parts) > 1 else None)
        for i, (source, _) in enumerate(parts)
        if not options.no_files
    ]
    for i, (one, record) in enumerate(parts):
        if sys.stderr.isatty():
            _print(f"analysing {len(record):,} pairs of times: some seconds ...", file=sys.stderr)
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
        used = sources if one is None else [one]
        content = {"records": [str(each.path) for each in used], **found.to_dict()}
        if not options.json:
            _print(*([""] * 2 if i else []), *([used[0].path] if len(parts) > 1 else []), found)
        if not options.no_files:
            with _Counter("report.html") as counter:
                content["files"] = [str(written) for written in found.write(outs[i], progress=counter)]
            if not options.json:
                _print(f"\nwritten to {outs[i]}: {', '.join(Path(name).name for name in content['files'])}")
        contents.append(content)
    if options.json:
        print(json.dumps(contents[0] if len(contents) == 1 else contents, indent=1, allow_nan=False))


class _Counter:
    """Shows how many of some steps are done, and how long the others take, on a terminal.

    In a file there is one line, if the steps take long.
    """

    def __init__(self, what: str) -> None:
        self._what, self._started, self._shown = what, time.monotonic(), False

    def __enter__(self) -> _Counter:
        return self

    def __call__(self, done: int, total: int) -> None:
        from lightning_glassy.record.text import duration

        elapsed = time.monotonic() - self._started
        left = f", about {duration(max(1, elapsed * (total - done) / done))} left" if done else ""
        line = f"{self._what}: {done} of {total} analyses{left}"
        if sys.stderr.isatty():
            print(f"\r{line:<60}", end="", file=sys.stderr, flush=True)
            self._shown = True
        elif not self._shown and elapsed > _LONG:
            _print(line, file=sys.stderr)
            self._shown = True

    def __exit__(self, *_: object) -> None:
        if self._shown and sys.stderr.isatty():
            print("\r" + " " * 60 + "\r", end="", file=sys.stderr, flush=True)


def _compare(options: argparse.Namespace) -> None:
    """Print one table about several paths, and write it with one figure."""
    from lightning_glassy.analysis import compare
    from lightning_glassy.plotting import comparison_figure
    from lightning_glassy.record.atomic import write_atomically
    from lightning_glassy.sources import read_sources

    given = {"separate": False, "observable": "msd", "eps": None, "window": None, "thresholds": None, "t0": 0.0}
    wrong = [f"--{name}" for name, usual in given.items() if getattr(options, name) != usual]
    if wrong:
        raise _WrongInputError(f"--compare and {wrong[0]} exclude each other")
    if len(options.paths) < 2:
        raise _WrongInputError(f"--compare needs two paths or more, and {options.paths[0]} is one")
    records: dict[str, AgingRecord] = {}
    for path, name in zip(options.paths, _short_names(options.paths), strict=True):
        sources = [source for source in read_sources([path]) if len(source.record)]
        if not sources:
            raise _WrongInputError(f"{path}: the record is empty: no pair of times was measured")
        sources = _without_earlier_parts(sources)
        joined = sources[0].record if len(sources) == 1 else _as_replicas(sources, common=options.common)[1]
        records[name] = joined
    found = compare(records, group=options.group)
    if options.json:
        print(json.dumps(found.to_dict(), indent=1, allow_nan=False))
    else:
        _print(found)
    if options.no_files:
        return
    out = Path("glassy_comparison") if options.out is None else options.out
    if out.is_symlink() and options.out is None:
        raise _WrongInputError(f"{out} is a link: name a directory with --out")
    out.mkdir(parents=True, exist_ok=True)
    numbers = f"{json.dumps(found.to_dict(), indent=1, allow_nan=False)}\n"
    write_atomically(out / "comparison.txt", lambda file: file.write(f"{found}\n".encode("utf-8", "backslashreplace")))
    write_atomically(out / "comparison.json", lambda file: file.write(numbers.encode("utf-8", "backslashreplace")))
    written = ["comparison.txt", "comparison.json"]
    try:
        figure = comparison_figure(found)
        write_atomically(out / "comparison.png", partial(figure.savefig, format="png", dpi=150))
        written.append("comparison.png")
    except (ImportError, ValueError) as error:
        log.warning("no figure is written: %s", error)
    if not options.json:
        _print(f"\nwritten to {out}: {', '.join(written)}")


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Return short names of paths that differ from each other: as few of their last parts as needed."""
    parts = [path.absolute().parts[1:] for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    raise _WrongInputError(f"{paths[0]} is there twice: --compare needs different paths")


def _out(options: argparse.Namespace, source: Source | None, number: int | None) -> Path:
    """Return the directory of a report. Several reports get numbered directories below ``--out``.

    The user may choose a link. A link with a name that we choose may come from another person, and lead anywhere. The
    same is true for a link to a directory that the search has followed. Nothing is written behind such links.
    """
    if options.out is not None and number is None:
        return options.out  # type: ignore[no-any-return]
    if options.out is None and source is not None and not _is_behind_a_link(source.path, options.paths):
        ours = [source.path.parent / f"report-{source.name}"]
    else:
        base = Path("glassy_report") if options.out is None else options.out
        ours = [base] if options.out is None else []
        ours += [base / str(number)] if number is not None else []
    for own in ours:
        if own.is_symlink() or (own.exists() and not own.is_dir()):
            what = "link" if own.is_symlink() else "file"
            raise _WrongInputError(f"{own} is a {what}: remove it, or name another directory with --out")
    return ours[-1]


def _is_behind_a_link(path: Path, named: Sequence[Path]) -> bool:
    """Return whether a directory between a file and the path that the user has named is a link."""
    for parent in path.parents:
        if path in named or parent in named:
            return False
        if parent.is_symlink():
            return True
    return False


def _without_earlier_parts(sources: list[Source]) -> list[Source]:
    """Leave out the record of an interrupted run, if the record of the resumed run contains it."""
    from lightning_glassy.record import without_replaced

    kept = without_replaced([source.record for source in sources])
    for i in sorted(set(range(len(sources))) - set(kept)):
        _print(f"{sources[i].path} is an earlier part of another record here: left out", file=sys.stderr)
    return [sources[i] for i in kept]


def _as_replicas(sources: list[Source], *, common: bool) -> tuple[list[Source], AgingRecord]:
    """Join runs as replicas, and name the runs, the pairs of times and the thresholds that are left out.

    Returns:
        The runs that were joined, and their record.
    """
    from lightning_glassy.record import AgingRecord, without_cut_short
    from lightning_glassy.record.text import quoted

    sentence = None
    try:
        if not common:
            kept, sentence = without_cut_short([source.record for source in sources])
            sentence = None if sentence is None else _named(sentence, sources)
            sources = [sources[i] for i in kept]
        joined = AgingRecord.concat([source.record for source in sources], common=common)
    except ValueError as error:
        text = _named(str(error), sources)
        raise _WrongInputError(
            f"these runs are not replicas of each other: {text}\n--separate reports each run alone"
        ) from None
    if sentence is not None:
        sentence += "; --common uses the pairs that all runs have"
        joined.add_doubt(sentence)
        _print(sentence, file=sys.stderr)
    runs: dict[tuple[int, int], list[str]] = {}
    for source in sources:
        lost = [eps for eps in source.record.overlap_thresholds if eps not in joined.overlap_thresholds]
        if lost:
            _print(f"{source.path}: not all runs have the thresholds {quoted(lost)}: left out", file=sys.stderr)
        if len(source.record) > len(joined):
            key = len(source.record) - len(joined), len(source.record)
            runs.setdefault(key, []).append(str(source.path))
    for (n, total), names in runs.items():
        several = f" and {len(names) - 3} more" if len(names) > 3 else ""
        _print(
            f"not all runs have {n:,} of {total:,} pairs of {', '.join(names[:3])}{several}: left out", file=sys.stderr
        )
    return sources, joined


def _named(text: str, sources: Sequence[Source]) -> str:
    """Return a message about some records with the paths of their files."""
    return re.sub(r"\brecords\[(\d+)\]", lambda found: str(sources[int(found[1])].path), text)


# ---------------------------------------------------------------------- show

_MOST_LINES = 40  # of one kind


def _show(options: argparse.Namespace) -> None:
    from lightning_glassy.sources import read_sources

    sources = read_sources([options.path])
    if len(sources) > 1:
        names = "".join(f"\n  {source.path}" for source in sources)
        raise _WrongInputError(f"{options.path} holds {len(sources)} records, name one:{names}")
    if options.json:
        print(json.dumps(_content(sources[0]), indent=1, allow_nan=False))
    else:
        _print(_as_text(sources[0]))


def _content(source: Source) -> dict[str, Any]:
    """Return the contents of a record as plain values."""
    from lightning_glassy.record.text import plain

    record = source.record
    series = {name: record.one_time(name) for name in record.one_time_names}
    content = {
        "path": str(source.path),
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


def _as_text(source: Source) -> str:
    """Return the contents of a record as text."""
    record = source.record
    lines = [
        f"{source.path}",
        f"  {len(record):,} pairs of times" + ("" if record.n_replica is None else f", {record.n_replica} replicas"),
        f"  waiting times   {_range(record.waiting_times)}",
        f"  lags            {_range(record.lags)}",
    ]
    sizes, sampled = record.n_parameters, record.n_sampled
    largest = {"all", *sorted(sizes, key=lambda group: -sizes[group])[:_MOST_LINES]}
    for group, n in sizes.items():
        if group in largest:
            of_sample = "" if sampled[group] == n else f", {sampled[group]:,} of them sampled"
            lines.append(f"  group           {group!r}: N = {n:,}{of_sample}")
    lines += _left_out("groups, none of them larger", len(sizes) - len(largest))
    if record.overlap_thresholds:
        lines.append(f"  overlaps        eps = {', '.join(f'{eps:.3g}' for eps in record.overlap_thresholds)}")
    if len(record):
        lines.append(f"  observables     {', '.join(record.available())}")
    lines += [
        f"  between         {name!r}: {len(record.between(name)[0]):,} matrices between replicas"
        for name in record.between_names[:_MOST_LINES]
    ]
    lines += _left_out("tables of matrices", len(record.between_names) - _MOST_LINES)
    for name in record.profile_names[:_MOST_LINES]:
        profile = record.profile(name)
        lines.append(f"  profile         {name!r}: {len(profile.values):,} functions on {len(profile.grid):,} points")
    lines += _left_out("profiles", len(record.profile_names) - _MOST_LINES)
    for name in record.one_time_names[:_MOST_LINES]:
        steps, values = record.one_time(name)
        ends = f", {values[0]:.4g} at step {steps[0]:,}, {values[-1]:.4g} at step {steps[-1]:,}" if len(steps) else ""
        lines.append(f"  series          {name!r}: {len(steps):,} values{ends}")
    lines += _left_out("series", len(record.one_time_names) - _MOST_LINES)
    lines += [f"  ! {doubt}" for doubt in record.doubts]
    for key, value in record.meta.items():
        if key == "doubts" and record.doubts:
            continue  # shown in full above
        text = json.dumps(value)
        lines.append(f"  meta            {key}: {text if len(text) <= 100 else text[:97] + '...'}")
    return "\n".join(lines)


def _left_out(what: str, n: int) -> list[str]:
    """Return a line about the lines that are not printed, unless there are none."""
    return [f"  ...             and {n:,} more {what}: --json lists all"] if n > 0 else []


def _range(steps: NDArray[np.int64]) -> str:
    return f"{len(steps)}, {steps[0]:,} ... {steps[-1]:,} steps" if len(steps) else "none"


# ---------------------------------------------------------------------- tensorboard

# If two options have one name, the last is used. An option of the user therefore replaces one of these.
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

    def serve(*arguments: Any) -> Any:
        server = program.create_port_scanning_werkzeug_server(*arguments)
        say = server.print_serving_message

        def say_both() -> None:
            say()
            print(f"the curves are at {server.get_url()}#glassy", file=sys.stderr, flush=True)

        server.print_serving_message = say_both
        return server

    server = program.TensorBoard(plugins=default.get_plugins(), server_class=serve)
    try:
        server.configure(("tensorboard", "--logdir", str(options.logdir), *_TENSORBOARD_OPTIONS, *options.options))
    except FlagsError as error:
        raise _WrongInputError(str(error)) from None
    if server.main():
        raise _WrongInputError("TensorBoard did not start, for the reason above")


# ---------------------------------------------------------------------- measure


_LOG_EVERY = 60.0  # seconds between two lines of progress in a file


def _measure(options: argparse.Namespace) -> None:
    from lightning_glassy.record.atomic import write_atomically

    if os.path.lexists(options.out) and not options.overwrite:  # also a link that leads nowhere
        raise _WrongInputError(f"{options.out} is there already: choose another name, or add --overwrite")
    if options.out.is_dir():
        raise _WrongInputError(f"{options.out} is a directory: name the file of the record")
    try:  # a place that cannot be written costs no time
        write_atomically(options.out.with_name(f".{options.out.name[:40]}.trial"), lambda _: None).unlink()
    except OSError as error:
        raise _WrongInputError(f"{options.out} cannot be written ({error.strerror or error}): choose another") from None
    from lightning_glassy.checkpoints.measure import Checkpoints, Options
    from lightning_glassy.checkpoints.progress import Progress

    chosen = Options(
        pairs=options.pairs,
        groups=_groups(options),
        include=options.include,
        exclude=options.exclude,
        keep_constant=options.keep_constant,
        sample=options.sample,
        overlap_thresholds=options.overlap_thresholds,
        key=options.key,
    )
    lines, shown = Progress(), time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal shown
        line = lines.line(done, total)
        if sys.stderr.isatty():
            width = min(60, shutil.get_terminal_size().columns - 1)  # a line that wraps is not overwritten by the next
            print(f"\r{line:<{width}.{width}}", end="\n" if done >= total else "", file=sys.stderr, flush=True)
        elif time.monotonic() - shown >= _LOG_EVERY:
            print(line, file=sys.stderr, flush=True)
            shown = time.monotonic()

    unfinished = options.out.with_name(f"{options.out.name}.unfinished")
    with Checkpoints(options.checkpoints, steps=options.steps, force_steps=options.force_steps) as checkpoints:
        _print(checkpoints)
        record = checkpoints.measure(chosen, unfinished=unfinished, progress=progress)
    try:
        record.save(options.out)
    except OSError as error:  # such as a full disk, after hours
        rescued = record.save(Path(tempfile.mkdtemp()) / "record.npz")
        why = error.strerror or error
        raise _WrongInputError(f"{options.out} cannot be written ({why}): the record is in {rescued}") from None
    _print(f"{record}\nwritten to {options.out}; next: lightning-glassy report {shlex.quote(str(options.out))}")


def _groups(options: argparse.Namespace) -> Any:
    """Return the groups in the form of the library: a word, or a mapping of names to patterns."""
    given = [*(options.groups or []), *(["layer"] if options.layers else [])]
    words = [text for text in given if "=" not in text]
    if words and len(set(given)) > 1:
        raise _WrongInputError(f"--groups {words[0]} stands alone: name either a word or groups as NAME=PATTERN")
    if words:
        return words[0]
    groups: dict[str, list[str]] = {}
    for text in given:
        name, _, patterns = text.partition("=")
        groups.setdefault(name, []).extend(patterns.split(","))
    return groups or "all"


if __name__ == "__main__":
    sys.exit(main())

"""Messages of the command line. They name options, and never arguments of Python."""

from __future__ import annotations

import argparse
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_glassy import AgingRecord, LogTimeSchedule, cli
from lightning_glassy.options import in_options


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    for name in ("--exclude", "--include"):
        parser.add_argument(name, action="append", metavar="PATTERN")
    for name in ("--steps", "--key", "--overlap-thresholds", "--t0", "--pairs"):
        parser.add_argument(name)
    parser.add_argument("--window", nargs=2)
    parser.add_argument("--force-steps", action="store_true")
    parser.add_argument("--bootstrap")
    return parser


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("leave it out with exclude='a.b'", "leave it out with --exclude 'a.b'"),
        ('exclude="it\'s", or not', '--exclude "it\'s", or not'),
        ("include=['a', 'b*'] is", "--include 'a' --include 'b*' is"),
        ("give include=[...].", "give --include '...'."),
        ("steps=[0, 10] are 2 for 3 files", "--steps 0,10 are 2 for 3 files"),
        ("leave one out, or give steps=[...]", "leave one out, or give --steps 0,10,..."),
        ("choose with key=..., one of 'a'", "choose with --key KEY, one of 'a'"),
        ("force_steps=True overrides", "--force-steps overrides"),
        ("(force_steps=True)", "(--force-steps)"),
        ("overlap_thresholds[1]=-1.0 must", "--overlap-thresholds -1.0 must"),
        ("overlap_thresholds must increase", "--overlap-thresholds must increase"),
        ("t0='fit', or t0=1e3: no", "--t0 'fit', or --t0 1e3: no"),
        ("window=(10, 1) must", "--window 10 1 must"),
        ("n_bootstrap=5 must", "--bootstrap 5 must"),
        ("pairs='log'", "--pairs 'log'"),
        # Words of English, quoted names and paths stay as they are.
        ("the steps and pairs of a key", "the steps and pairs of a key"),
        ("the tensor 'exclude=1' and key 'steps=[0]'", "the tensor 'exclude=1' and key 'steps=[0]'"),
        ("runs/steps=400/model.pt: steps=[...]", "runs/steps=400/model.pt: --steps 0,10,..."),
        ("C:\\runs\\steps=400 and steps=4.pt", "C:\\runs\\steps=400 and steps=4.pt"),
        ("the weights' own, key='a', the files' step", "the weights' own, --key 'a', the files' step"),
        ("exclude: the pattern 'a' fits nothing", "--exclude: the pattern 'a' fits nothing"),
        ("a/b.pt: include['x']: no", "a/b.pt: --include 'x': no"),
        ("correct the steps: they vary", "correct the steps: they vary"),
        ("C:\\my steps=400 and key=3: no", "C:\\my steps=400 and key=3: no"),
        ("mykey='a', a-key='b' and x.key='c'", "mykey='a', a-key='b' and x.key='c'"),
        ("my steps=400 and key=3", "my steps=400 and --key 3"),
    ],
)
def test_arguments_are_said_as_options(parser: argparse.ArgumentParser, text: str, words: str) -> None:
    assert in_options(text, parser, [Path("my steps=400"), Path("C:\\my steps=400 and key=3"), Path()]) == words


def is_python(text: str) -> list[str]:
    """Return the arguments of Python in a message, outside quoted names and paths."""
    text = re.sub(
        r"(?<!\w)'[^'\n]*'(?!\w)|\S*/\S*|\bstate_dicts?\b|aging_record.npz|In Python, record.before\(\d+\)", "", text
    )
    return re.findall(r"(?<![\w-])[a-z]\w*(?:\[\d*\])?=|\w+_\w+|\w+\[|(?<!\w)[\[{]|\bNone\b|\bTrue\b|\w+\(", text)


def errors_of_report(folder: Path) -> list[tuple[str, ...]]:
    walk = np.cumsum(np.random.default_rng(0).normal(size=(101, 20)), axis=0)
    schedule = LogTimeSchedule.logspaced(100)
    one = AgingRecord.from_trajectory(walk, schedule, overlap_thresholds=[1.0], meta={"module": "Net"})
    other = AgingRecord.from_trajectory(walk[:, :9], schedule, overlap_thresholds=[1.0])
    third = AgingRecord.from_trajectory(2 * walk, schedule, overlap_thresholds=[2.0])
    fourth = AgingRecord.from_trajectory(2 * walk[:30], schedule, overlap_thresholds=[1.0])
    names = [str(r.save(folder / f"{i}.npz")) for i, r in enumerate((one, other, third, fourth))]
    options = (
        "--group none",
        "--observable overlap --eps 3 --t0 5",
        "--observable loss",
        "--observable chi4",
        "--observable normalised_msd",
        "--observable overlap --eps 3",
        "--eps 3",
        "--observable non_gaussian --window 1 10",
        "--observable non_gaussian --t0 fit --thresholds 3",
        "--window 10 1",
        "--window 5 6",
        "--t0 1e9",
        "--t0 nan",
        "--confidence 95",
        "--bootstrap 1",
        "--thresholds -1",
        "--thresholds 0 0",
        "--thresholds 1e9",
    )
    return [
        *(("report", names[0], "--no-files", *option.split()) for option in options),
        *(("report", names[0], name, "--no-files") for name in names[1:]),
        ("report", names[0], names[0].replace("0.npz", "none.npz")),
        ("report", str(folder)),
        ("show", str(folder)),
    ]


def errors_of_measure(folder: Path) -> list[tuple[str, ...]]:
    def file(name: str, content: object) -> str:
        torch.save(content, folder / name)
        return str(folder / name)

    a, b, c = ({"w": torch.full((4,), float(i)), "v": torch.ones(2)} for i in range(3))
    first, second = file("model-step=0.pt", a), file("model-step=10.pt", b)
    out = ("-o", str(folder / "out.npz"))
    return [
        ("measure", first, *out),
        ("measure", first, second, "--steps", "0", *out),
        ("measure", first, second, "--steps", "0,0", *out),
        ("measure", first, second, "--steps=-1,3", *out),
        ("measure", first, second, "--key", "none", *out),
        ("measure", first, second, "--include", "none*", *out),
        ("measure", first, second, "--exclude", "*", *out),
        ("measure", first, file("model.pt", c), *out),
        ("measure", first, file("x-step=0.pt", c), *out),
        ("measure", first, file("less-step=5.pt", {"w": c["w"]}), *out),
        ("measure", first, file("more-step=5.pt", {**c, "u": c["w"]}), *out),
        ("measure", first, file("half-step=5.pt", {**c, "v": c["v"].half()}), *out),
        ("measure", first, file("two-step=5.pt", {"x": a, "y": b}), *out),
        ("measure", first, file("no-step=5.pt", [1, 2]), *out),
    ]


@pytest.mark.parametrize("errors", [errors_of_report, errors_of_measure])
def test_no_error_of_a_command_is_said_in_python(errors, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    commands = errors(tmp_path)
    n_error, python = 0, []
    for command in commands:
        n_error += cli.main(command) == 2
        text = capsys.readouterr().err
        python += [(found, text) for found in [is_python(text)] if found]
    assert python == []
    assert n_error >= 0.8 * len(commands)


def test_a_warning_of_the_library_is_said_in_options_and_cannot_control_the_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn(*_: object, **__: object) -> None:
        logging.getLogger("lightning_glassy.checkpoints").warning("lightning_glassy: %s \x1b[2J", "exclude='w' is odd")
        raise ValueError("enough")

    monkeypatch.setattr("lightning_glassy.checkpoints.measure.Checkpoints", warn)
    assert cli.main(["measure", "a.pt", "b.pt", "-o", str(tmp_path / "out.npz")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "lightning-glassy: warning: --exclude 'w' is odd \\x1b[2J",
        "lightning-glassy: error: enough",
    ]
    assert logging.getLogger("lightning_glassy").handlers == []

"""The benchmarks: their arguments, their clock, and the command for a GPU, as far as a CPU can run it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from benchmarks import __main__ as entry
from benchmarks import costs, measure, moments, report, scaling, training
from benchmarks.device import bandwidth, command, exact, host_time, trace, trainings, variants, verdict, versions, waits
from benchmarks.device.command import Part, ended, run_parts
from benchmarks.device.findings import Findings, load
from benchmarks.pretend_cuda import NAME, pretend_cuda
from benchmarks.report import Clock, in_turns, paired
from tests.processes import launch

ROOT = Path(__file__).parents[1]

# ---------------------------------------------------------------------- arguments


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Replace the benchmarks, and list the calls and their arguments. Names with an "o" take arguments."""
    calls: list[tuple[str, Any]] = []

    def module(name: str) -> Any:
        if "o" in name:
            return SimpleNamespace(main=lambda arguments: calls.append((name, arguments)))
        return SimpleNamespace(main=lambda: calls.append((name, None)))

    monkeypatch.setattr(entry, "import_module", lambda name: module(name.removeprefix("benchmarks.")))
    return calls


def test_what_follows_the_name_goes_to_the_benchmark(called: list[tuple[str, Any]]) -> None:
    entry.main(["host", "--quick", "--events", "7"])
    entry.main(["event", "host"])
    assert called == [("host", ["--quick", "--events", "7"]), ("event", None), ("host", [])]


def test_without_a_name_all_run_that_need_neither_a_gpu_nor_a_folder(called: list[tuple[str, Any]]) -> None:
    entry.main([])
    assert [name for name, _ in called] == list(entry.USUAL)
    assert "device" not in entry.USUAL
    assert set(entry.NAMES) == {"device", *entry.USUAL}
    files = {path.stem for path in (ROOT / "benchmarks").iterdir() if path.suffix == ".py" or path.stem == "device"}
    assert set(entry.NAMES) == files - {
        "__init__",
        "__main__",
        "by_hand",
        "fake_driver",
        "models",
        "pretend_cuda",
        "report",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["event", "host", "--quick"], "name the one benchmark"),
        (["event", "--quick"], "takes no options"),
        (["nix"], "no benchmark 'nix'"),
        (["--quick"], "unrecognized arguments"),
    ],
    ids=str,
)
def test_arguments_that_nobody_takes_are_refused(
    arguments: list[str], words: str, called: list[tuple[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        entry.main(arguments)
    assert words in capsys.readouterr().err
    assert not called


@pytest.mark.parametrize("name", ["training", "host", "device", "measure"])
def test_a_benchmark_that_takes_options_lists_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        import_module(f"benchmarks.{name}").main(["--help"])
    assert "--" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dry"], "name the folder"),
        (["--dry", "--out", "x", "--parts", "exact,nix"], "no part 'nix'"),
        (["--dry", "--out", "x", "--variants", "nowhere"], "no such folder"),
        (["--out", "x"], "no CUDA device"),
    ],
    ids=str,
)
def test_the_command_says_what_is_wrong(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_has_gpu", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert words in capsys.readouterr().err


# ---------------------------------------------------------------------- checkpoints in one pass


def test_the_benchmark_of_checkpoints_compares_one_pass_with_the_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(measure, "alone", measure.one_pass)  # in this process
    monkeypatch.setattr(measure.fused, "available", measure.fused.available)  # the benchmark changes it
    monkeypatch.setattr(measure, "memory_speed", lambda: 1e9)
    measure.main(["--files", "2", "4", "--parameters", "20000", "--timed", "2"])
    found = json.loads((tmp_path / "measure.json").read_text())["results"]
    assert [result["pairs"] for result in found["measured"]] == [1, 6]
    of_four = found["measured"][1]
    assert of_four["arithmetic"] == pytest.approx(6 * 2 * of_four["bytes"] / 4 / 1e9)
    assert of_four["of_limits"] == of_four["one_pass"] / (of_four["read"] + of_four["arithmetic"])
    assert 4 * 80_000 < of_four["bytes"] < 4 * 100_000
    every, near, sample = found["on_paper"]
    assert (every["pairs"], near["pairs"]) == (154 * 153 // 2, 384)
    assert every["read"] == sample["read"] == pytest.approx(154 * 12)
    assert sample["arithmetic"] == pytest.approx(every["arithmetic"] / 120)
    page = (tmp_path / "measure.md").read_text()
    assert "extrapolated from 2 pairs" in page
    assert "| 4 | 6 |" in page


# ---------------------------------------------------------------------- the clock


def test_slow_ways_are_run_once_and_failing_ones_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    calls = {"slow": 0, "quick": 0}

    def slow() -> None:
        calls["slow"] += 1
        time.sleep(0.06)

    def quick() -> None:
        calls["quick"] += 1

    def failing() -> None:
        raise RuntimeError("no compiler")

    times = in_turns({"slow": slow, "failing": failing, "quick": quick}, repeats=5, enough=0.1)
    assert list(times) == ["slow", "quick"]
    assert times["slow"].calls == 1
    assert times["slow"].low == times["slow"].high > 0.05
    assert times["quick"].calls == 5
    assert calls["slow"] == 2
    assert "no compiler" in capsys.readouterr().out


def test_a_way_that_takes_too_long_is_not_even_called_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "TOO_LONG", 0.01)
    calls: list[int] = []
    assert in_turns({"slow": lambda: (calls.append(1), time.sleep(0.02))}, enough=0.01)["slow"].calls == 1
    assert len(calls) == 1


def test_the_clock_of_a_gpu_lets_the_device_sleep_for_longer_than_the_host_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(report, "_FLUSHED", 1024)
    with pretend_cuda() as asked:
        clock = Clock("cuda")
        clock._cycles_per_second = 1e9
        assert 0.01 < clock(lambda: time.sleep(0.01), host=0.01) < 1.0
        assert asked.sleeps[-1] > 0.01 * 1e9
        clock(lambda: None, host=100.0)
        assert asked.sleeps[-1] == 0.5e9
        assert paired(lambda: None, lambda: None, pairs=3, device="cuda").a > 0
        assert in_turns({"a": lambda: None}, "cuda", repeats=3)["a"].calls == 3


# ---------------------------------------------------------------------- parts end, and their findings stay


def test_a_process_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import subprocess, sys, time, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    assert ended([sys.executable, "-c", code], 5.0) == "ended after 5 s"
    stat = Path("/proc") / note.read_text() / "stat"
    until = time.monotonic() + 10
    while stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < until
        time.sleep(0.05)


def test_how_a_process_ended_is_told() -> None:
    assert ended([sys.executable, "-c", ""], 60.0) == "done"
    assert ended([sys.executable, "-c", "import sys; sys.exit(3)"], 60.0) == "failed, exit status 3"
    assert ended([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], 60.0) == "failed, exit status -9"


def test_a_part_that_dies_or_hangs_takes_no_findings_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = "import os, time\ndef run(findings):\n    findings.table('Numbers of DIES', ['n']).add(17)\n"
    (tmp_path / "dies.py").write_text(head + "    findings.keep(n=17)\n    os.kill(os.getpid(), 9)\n")
    (tmp_path / "hangs.py").write_text("import time\ntime.sleep(600)\n")
    (tmp_path / "raises.py").write_text(
        "def run(findings):\n    findings.keep(n=18)\n    raise OSError('the device')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "out"
    out.mkdir()
    parts = [Part("dies", 60), Part("hangs", 60, dry_limit=3), Part("raises", 60)]
    run_parts(parts, out, dry=True, budget=300)
    found = load(out)["parts"]
    assert found["dies"]["n"] == 17
    assert found["dies"]["state"] == "failed, exit status -9"
    assert found["hangs"]["state"] == "ended after 3 s"
    assert found["raises"]["n"] == 18
    assert found["raises"]["state"] == "failed, exit status 1"
    assert "the device" in found["raises"]["failed"][0]
    page = (out / "summary.md").read_text()
    assert "## Numbers of DIES (a CPU, dry run)" in page
    assert "| hangs | ended after 3 s |" in page
    assert "Traceback" in (out / "log.txt").read_text()
    assert {row["verdict"] for row in load(out)["verdict"]} == {"not measured"}


def test_without_time_a_part_is_left_out(tmp_path: Path) -> None:
    run_parts([Part("nowhere", 60)], tmp_path, dry=True, budget=7)
    assert load(tmp_path)["parts"]["nowhere"]["state"] == "left out: no time"


@pytest.mark.slow
def test_a_dry_run_of_some_parts(tmp_path: Path) -> None:
    arguments = ["device", "--dry", "--out", str(tmp_path / "out"), "--parts", "versions,exact"]
    run = subprocess.run([sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [part["state"] for part in results["parts"].values()] == ["done", "done"]
    assert results["machine"]["gpu"] is None
    assert torch.__version__.startswith(results["parts"]["versions"]["versions"]["torch"])
    for found in results["parts"]["exact"]["exact"].values():
        assert found["by"] == "EagerMoments"
        assert max(found["error"], found["ws_error"]) < 1e-6
    page = (tmp_path / "out" / "summary.md").read_text()
    assert page.rstrip().splitlines()[-1].endswith("| not measured |")
    assert page in run.stdout


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_python_time_of_an_event_needs_no_gpu(tmp_path: Path) -> None:
    # Run it in a process of its own, because kernels stay in a process once the fake driver has loaded them.
    script = tmp_path / "host.py"
    script.write_text("import runpy\nrunpy.run_module('benchmarks', run_name='__main__')\n")
    printed = launch(script, "host", "--events", 20, TRITON_CACHE_DIR=str(tmp_path))
    rows = [line.split("|") for line in printed.splitlines() if line.startswith(("| 10 ", "| 1,000 "))]
    assert len(rows) == 2
    assert all(1 <= float(row[-2]) <= 3 for row in rows)  # launches
    assert "no call of CUDA" in printed


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_kernels_are_compiled_without_a_gpu_and_found_again(tmp_path: Path) -> None:
    script = tmp_path / "precompile.py"
    script.write_text("from benchmarks.device.precompile import CASES, precompile\nprecompile(CASES[:1])\n")
    first, again = (launch(script, TRITON_CACHE_DIR=str(tmp_path)).splitlines()[-1] for _ in range(2))
    n = int(first.split()[0])
    assert n >= 2
    assert first.startswith(f"{n} kernels, of which 0 were there")
    assert again.startswith(f"{n} kernels, of which {n} were there")
    # Kernels for a GPU have instructions of their own, and kernels for other devices have none.
    assert any("asm" in path.read_text() for path in tmp_path.rglob("_sum_jobs.ttir"))


# ---------------------------------------------------------------------- the branches for a GPU, on a pretended one


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], dict[str, Any]]:
    """Run a part of the command with small models and pretended CUDA calls, and return its findings."""
    monkeypatch.setattr(report, "_FLUSHED", 1024)
    monkeypatch.setattr(bandwidth, "DUE", (1, 4))
    monkeypatch.setattr(bandwidth, "compiled", lambda weights, earlier: lambda: None)
    monkeypatch.setattr(host_time, "python_alone", lambda findings: None)
    monkeypatch.setattr(waits, "OPTIONS", {"on the device": {}})
    monkeypatch.setattr(waits, "hears", lambda device: True)
    monkeypatch.setattr(variants, "load_all", lambda findings: {"as it is": variants.EagerMoments})
    monkeypatch.setattr(training, "CUDA", True)
    monkeypatch.setattr(training, "DEVICE", "cuda")

    def on_cpu(options: dict[str, Any]) -> dict[str, Any]:
        assert options["accelerator"] == "gpu"
        return options | {"accelerator": "cpu"}

    quiet = waits.quiet_trainer
    monkeypatch.setattr(training, "Trainer", lambda **options: Trainer(**on_cpu(options)))
    monkeypatch.setattr(waits, "quiet_trainer", lambda folder, **options: quiet(folder, **on_cpu(options)))

    def run(part: Any) -> dict[str, Any]:
        findings = Findings(tmp_path, part.__name__.rsplit(".", 1)[-1], dry=True, limit=600.0, device="cuda")
        with pretend_cuda():
            findings.machine(report.machine("cuda"))
            part.run(findings)
        found = load(tmp_path)["parts"][findings.part]
        assert "failed" not in found
        assert NAME in (tmp_path / "summary.md").read_text()
        return found

    return run


def measured(promise: str, part: dict[str, Any], name: str) -> dict[str, str]:
    """Return the row of a promise in a verdict on this part alone."""
    (row,) = [row for row in verdict.verdict({"parts": {name: part}}) if promise in row["promise"]]
    return row


def test_pretended_versions_and_sums(pretended: Callable[[Any], dict[str, Any]]) -> None:
    assert pretended(versions)["versions"]["gpu"] == NAME
    row = measured("within 1e-6", pretended(exact), "exact")
    assert row["verdict"] == "not met"  # right sums, but not from the kernels
    assert "?" not in row["measured"]


def test_a_pretended_bandwidth(pretended: Callable[[Any], dict[str, Any]]) -> None:
    found = pretended(bandwidth)
    shapes = (*bandwidth.FEW, bandwidth.RESNET, bandwidth.SMALL, bandwidth.MANY)
    assert [row["tensors"] for row in found["events"][::4]] == list(shapes)
    assert len(found["others"]) == 12
    for promise in ("1 due: at least 75", "4 due: at least 90"):
        assert "?" not in measured(promise, found, "bandwidth")["measured"]
    row = measured("few tensors", found, "bandwidth")
    assert row["measured"].count("?") == 4  # the cases with 32 due snapshots were not measured
    assert verdict.FEW == bandwidth.FEW


@pytest.mark.slow
def test_a_pretended_host_time_and_trace(pretended: Callable[[Any], dict[str, Any]]) -> None:
    found = pretended(host_time)
    assert "?" not in measured("of 10 tensors", found, "host_time")["measured"]
    assert "?" not in measured("of 1,000 tensors", found, "host_time")["measured"]
    found = pretended(trace)
    assert set(found["events"]) == set(verdict._traced({"trace": found}))
    # No kernel was seen. This does not prove that at most three were launched.
    assert measured("launches", found, "trace")["verdict"] == "not measured"


def test_pretended_trainings(pretended: Callable[[Any], dict[str, Any]]) -> None:
    found = pretended(trainings)
    assert [pair["complete"] for pair in found["pairs"]] == [True, True]
    found["network"] = "ResNet-18, 32 x 32"
    assert measured("hooks at most", found, "trainings")["verdict"] in ("met", "not met")
    assert pretended(waits)["waits"]["on the device"]["error"] == "passed"
    assert [row["right"] for row in pretended(variants)["variants"]] == [True, True]


def test_benchmarks_of_both_devices_on_a_pretended_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "_FLUSHED", 1024)
    for benchmark in (moments, scaling):
        monkeypatch.setattr(benchmark, "DEVICE", "cuda")
    monkeypatch.setattr(moments, "compiled", lambda weights, earlier: lambda: None)
    monkeypatch.setattr(moments, "LARGEST", 4)
    monkeypatch.setattr(scaling, "LARGEST", 4)
    with pretend_cuda():
        row = moments.measure("ResNet-18", 10_000, 4, {"NumPy copy": 1.0, "reading": 1e9})
        assert row["left_out"] == ["NumPy copy"]
        assert "reading" in row["ways"]
        assert moments._speed(row, "NumPy copy") == "left out"
        assert moments._ratio(row["ways"], "NumPy copy", "event") == ""
        assert len(scaling.model_size()[1]) == 1
    assert "GB/s" in capsys.readouterr().out


def test_one_size_limit_holds_for_every_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"cuda": 80 << 30, "cpu": 128 << 30}
    monkeypatch.setattr(moments, "machine_memory", lambda device: free[str(device)])
    monkeypatch.setattr(moments, "DEVICE", "cuda")
    shapes = ("1 tensor", "ResNet-18", "tensors of 1,000")
    assert [moments.fits(shape, 10**8, 4) for shape in shapes] == [True] * 3
    assert [moments.fits(shape, 10**9, 1) for shape in shapes] == [True, True, False]  # a million tensors
    assert [moments.fits(shape, 10**9, 4) for shape in shapes] == [False] * 3
    free["cpu"] = 4 << 30  # copies by NumPy are in the memory of the host
    assert not any(moments.fits(shape, 10**9, 1) for shape in shapes)


def test_a_training_that_takes_too_long_is_ended() -> None:
    case = training.Case("MLP", lambda: torch.nn.Linear(784, 10), training.images(16, 784), 100_000, 1)
    run = training.train(case, None, longest=0.2)
    assert run.cut
    assert 0 < len(run.steps) < 99_999


def test_waits_are_not_measured_if_a_deliberate_one_is_not_told(tmp_path: Path) -> None:
    findings = Findings(tmp_path, "waits", dry=True, device="cuda")
    with pretend_cuda(), pytest.raises(RuntimeError, match="does not tell a deliberate wait"):
        waits.run(findings)
    assert "waits" not in load(tmp_path)["parts"].get("waits", {})


def test_only_the_package_counts_as_ours_in_a_checkout_of_that_name() -> None:
    frames = [
        SimpleNamespace(filename=str(path), lineno=3, name="run")
        for path in (waits.PACKAGE / "measure" / "readback.py", Path("/home/me/lightning_glassy/benchmarks/report.py"))
    ]
    assert waits._line(frames[1:]).startswith("benchmarks/report.py:3")
    assert waits._line(frames).startswith("lightning_glassy/measure/readback.py:3")


def test_a_wait_is_told_with_its_line() -> None:
    import warnings

    with waits.told() as seen:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    ((line, count),) = seen.items()
    assert "test_benchmarks.py" in line
    assert count == 1


def test_a_span_of_the_profiler_is_split_into_device_and_host() -> None:
    def one(name: str, start: float, end: float, device: bool) -> SimpleNamespace:
        kind = torch.autograd.DeviceType.CUDA if device else torch.autograd.DeviceType.CPU
        times = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
        return SimpleNamespace(name=name, time_range=times, device_type=kind)

    events = [
        one("event 14", 0, 100, False),
        one("event 14", 5, 160, True),  # the profiler repeats the span on the device
        one("cudaLaunchKernel", 10, 15, False),
        one("cudaEventSynchronize", 20, 25, False),
        one("_sum_jobs", 110, 150, True),
        one("Memcpy HtoD (Pinned -> Device)", 105, 106, True),
        one("event 15", 200, 300, False),
        one("_add_jobs", 250, 260, True),
    ]
    found = trace.described(*trace.split(SimpleNamespace(events=lambda: events), "event 14"))
    assert found["kernels"] == ["_sum_jobs"]
    assert found["copies"] == ["Memcpy HtoD (Pinned -> Device)"]
    assert found["waits"] == ["cudaEventSynchronize"]
    assert found["host_calls"]["cudaLaunchKernel"] == [1, 5]


# ---------------------------------------------------------------------- the verdict


def everything_met() -> dict[str, Any]:
    """Return the parts of a GPU that keeps all promises."""
    sums = {"by": "TritonMoments", "error": 1e-8, "ws_error": 1e-8, "same_bits": True}
    dtypes = ("float32", "bfloat16", "float64", "float16")
    rows = [
        {"tensors": shape, "dtype": dtype, "due": due, "of_reading": 0.95}
        for shape in (*verdict.FEW, "ResNet-18")
        for dtype in ("float32", "bfloat16")
        for due in (1, 4, 32)
    ]
    events = [
        f"{model}, {event}" for model in ("10 tensors", "ResNet-18") for event in ("1 due", "4 due and a capture")
    ]
    options = ("on the device", "snapshot_device='cpu'", "groups='layer'", "moments='msd'")
    parts: dict[str, Any] = {
        "exact": {"exact": {f"torch.{dtype}": dict(sums) for dtype in dtypes}},
        "cuda_tests": {"exit_status": 0, "counts": {"passed": 60, "failed": 0, "skipped": 1}},
        "bandwidth": {"events": rows},
        "host_time": {"host": {"10": {"seconds": [3e-5, 5e-5, 6e-5]}, "1000": {"seconds": [1e-4, 1.4e-4, 2e-4]}}},
        "waits": {"waits": {name: {"ours": 0, "error": "passed"} for name in options}},
        "trace": {"events": {name: {"kernels": ["_sum_jobs", "_add_jobs"], "waits": []} for name in events}},
        "trainings": {
            "network": "ResNet-18, 32 x 32",
            "pairs": [{"share": share, "complete": True} for share in (0.001, 0.002, 0.0025)],
        },
    }
    return {"parts": {name: part | {"gpu": "some GPU"} for name, part in parts.items()}}


def judgements(results: dict[str, Any]) -> list[str]:
    return [row["verdict"] for row in verdict.verdict(results)]


def test_a_verdict_on_everything() -> None:
    assert judgements(everything_met()) == ["met"] * len(verdict.PROMISES)
    assert judgements({"parts": {}}) == ["not measured"] * len(verdict.PROMISES)


def test_figures_of_a_cpu_are_none_of_a_gpu() -> None:
    results = everything_met()
    for part in results["parts"].values():
        part["gpu"] = None
    assert set(judgements(results)) == {"not measured"}


@pytest.mark.parametrize("name", list(everything_met()["parts"]))
def test_without_a_part_its_promises_are_not_met(name: str) -> None:
    results = everything_met()
    del results["parts"][name]
    assert "not measured" in judgements(results)
    assert "not met" not in judgements(results)


def test_no_promise_is_met_from_some_of_its_figures() -> None:
    def leaves(node: Any) -> int:
        return sum(1 + leaves(child) for child in (node.values() if isinstance(node, dict) else ()))

    assert leaves(everything_met()["parts"]) > 30
    for path in (
        ("exact", "exact", "torch.float16"),
        ("host_time", "host", "1000"),
        ("waits", "waits", "moments='msd'"),
        ("trace", "events", "ResNet-18, 1 due"),
    ):
        results = everything_met()
        node = results["parts"]
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]
        assert "not measured" in judgements(results), path
    for index in range(len(everything_met()["parts"]["bandwidth"]["events"])):
        results = everything_met()
        row = results["parts"]["bandwidth"]["events"].pop(index)
        asked_for = row["tensors"] != "ResNet-18" or row["due"] != 32
        assert ("not measured" in judgements(results)) == asked_for, row


@pytest.mark.parametrize(
    "spoil",
    [
        lambda parts: parts["exact"]["exact"]["torch.float64"].update(by="EagerMoments"),
        lambda parts: parts["exact"]["exact"]["torch.float64"].update(error=math.nan),
        lambda parts: parts["exact"]["exact"]["torch.float64"].update(same_bits=False),
        lambda parts: parts["cuda_tests"].update(exit_status=1, counts={"passed": 59, "failed": 1, "skipped": 1}),
        lambda parts: parts["bandwidth"]["events"][0].update(of_reading=0.89),
        lambda parts: parts["host_time"]["host"]["10"].update(seconds=[5e-5, 6.1e-5, 7e-5]),
        lambda parts: parts["waits"]["waits"]["on the device"].update(ours=1),
        lambda parts: parts["waits"]["waits"]["on the device"].update(error="RuntimeError"),
        lambda parts: parts["trace"]["events"]["ResNet-18, 1 due"].update(waits=["cudaEventSynchronize"]),
        lambda parts: parts["trace"]["events"]["ResNet-18, 1 due"].update(kernels=["a"] * 4),
        lambda parts: parts["trainings"].update(pairs=[{"share": 0.0031, "complete": True}]),
        lambda parts: parts["trainings"]["pairs"][0].update(complete=False),
    ],
)
def test_one_bad_figure_breaks_a_promise(spoil: Callable[[dict[str, Any]], None]) -> None:
    results = everything_met()
    spoil(results["parts"])
    assert judgements(results).count("not met") == 1


def test_tests_that_did_not_run_have_not_passed() -> None:
    for state in ({"exit_status": "over its limit"}, {"counts": {"passed": 0, "failed": 0, "skipped": 60}}):
        results = everything_met()
        results["parts"]["cuda_tests"].update(state)
        assert judgements(results).count("not measured") == 1


def test_the_table_on_the_page_of_costs_is_that_of_the_results() -> None:
    text = costs.PAGE.read_text()
    made = costs.costs(costs.load("event"), costs.load("training"))
    assert costs.page(text, made) == text
    assert made.count("\n| ") == 6

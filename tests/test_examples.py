"""The examples: each is short, stands alone, runs, and makes the promised files."""

from __future__ import annotations

import ast
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from examples import checkpoints, digits, fabric_loop, own_trainer, plain_loop, replicas
from lightning_glassy import AgingRecord

ROOT = Path(__file__).parents[1]
EXPONENT = re.compile(r"^(?:aging exponent mu = |no aging exponent: |too short for an exponent: )", flags=re.MULTILINE)
SCRIPTS = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem != "__init__")


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo the seed and the number of threads of an example, which the next test would see."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)


@pytest.mark.parametrize("path", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_every_example_is_short_and_stands_alone(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 80
    tree = ast.parse(text)
    assert f"python -m examples.{path.stem}" in re.sub(r"\s+", " ", ast.get_docstring(tree) or "")
    modules = [node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    assert "lightning_glassy" in modules
    assert not {"examples", "benchmarks", "tests", ""} & {module.split(".")[0] for module in modules}


@pytest.mark.needs("plotly")
@pytest.mark.slow
def test_the_demo_leaves_records_reports_a_figure_and_the_way_to_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["digits", "--steps", "300", "--out", str(tmp_path)])
    digits.main()
    printed = capsys.readouterr().out
    for name, n in (("under-parametrised", 330), ("over-parametrised", 26_122)):
        path = tmp_path / name / "version_0" / "glassy" / "aging_record.npz"
        record = AgingRecord.load(path)
        assert record.n_parameters["all"] == n
        assert record.waiting_times[-1] == 215
        assert record.n_replica == 8
        assert record.meta["batch_size"] == 32
        assert str(path) in printed
        assert f"8 replicas of {n:,} parameters, test accuracy" in printed
        assert record.one_time("train_accuracy")[0][-1] == 300
        assert len(record.one_time("gradient_noise")[0]) == len(record.waiting_times) + 1
        assert len(record.one_time("prediction_overlap")[0])
        report = tmp_path / "report" / name
        assert (report / "report.html").stat().st_size > 10**6
        assert {"loss.png", "gradient_noise.png"} <= {path.name for path in report.iterdir()}
        assert str(report / "report.html") in printed
        assert list(path.parent.parent.glob("events.out.tfevents.*"))
    assert (tmp_path / "aging.png").stat().st_size > 20_000
    assert f"lightning-glassy tensorboard {tmp_path}" in printed
    assert printed.count("verdict: ") == len(EXPONENT.findall(printed)) == 2


def test_too_short_a_demo_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["digits", "--steps", "5"])
    with pytest.raises(SystemExit):
        digits.main()
    assert "--steps 5 is too short" in capsys.readouterr().err


def test_an_own_trainer_gets_a_record_and_the_tab(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_trainer.main(out=str(tmp_path), epochs=1)
    (path,) = tmp_path.rglob("aging_record.npz")
    record = AgingRecord.load(path)
    assert record.waiting_times.tolist() == [0, 1, 2, 5, 10, 22, 46]
    assert str(record.msd()[0]) in capsys.readouterr().out
    assert list(path.parent.parent.glob("events.out.tfevents.*"))


def test_replicas_have_error_bars_and_an_exponent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replicas.main(out=str(tmp_path), steps=150)
    (path,) = tmp_path.rglob("aging_record.npz")
    msd = AgingRecord.load(path).msd()[:, 0, 0]
    assert len(msd) == 8
    printed = capsys.readouterr().out
    assert f"t_w =      0: mean squared displacement {msd.mean():.2e} +- {msd.std(ddof=1) / 8**0.5:.0e}" in printed
    assert len(EXPONENT.findall(printed)) == 1


def test_checkpoints_give_a_record_of_all_their_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints.main(out=str(tmp_path), last=16)
    record = AgingRecord.load(tmp_path / "aging_record.npz")
    assert sorted(zip(*record.pairs, strict=True)) == [(2**i, 2**j - 2**i) for i in range(4) for j in range(i + 1, 5)]
    printed = capsys.readouterr().out
    assert f"t_w =     8: {record.msd()[3][record.lags == 8][0]:.1e} until the next checkpoint" in printed
    assert str(tmp_path / "aging_record.npz") in printed


@pytest.mark.parametrize("example", [plain_loop, fabric_loop])
def test_the_loops_without_a_trainer_say_where_the_record_is(
    example: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example.main(out=str(tmp_path), steps=200)  # type: ignore[attr-defined]
    printed = capsys.readouterr().out
    record = AgingRecord.load(tmp_path / "aging_record.npz")
    assert f"record     {tmp_path / 'aging_record.npz'}" in printed
    assert repr(record) in printed
    assert record.n_parameters["all"] == 2410
    assert int(sum(record.pairs).max()) == 200
    assert f"t_w =      1: mean squared displacement {record.msd()[1, 0]:.2e} after 1 step" in printed


@pytest.mark.needs("plotly", "torchvision")
@pytest.mark.slow
def test_a_resnet_learns_random_images_for_a_few_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["resnet18_cifar", "--quick", "--out", str(tmp_path)])
    import_module("examples.resnet18_cifar").main()
    record = AgingRecord.load(tmp_path / "version_0" / "glassy" / "aging_record.npz")
    assert (record.n_sampled["all"], record.n_parameters["all"]) == (1_000_000, 11_173_962)
    assert {"train_loss", "test_accuracy", "gradient_noise"} <= set(record.one_time_names)
    report = tmp_path / "version_0" / "report"
    assert str(report / "report.html") in capsys.readouterr().out
    assert "ResNet-18 on random images" in (report / "report.txt").read_text()


@pytest.mark.needs("torchvision")
def test_a_resnet_asks_for_a_gpu_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for device in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(device, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["resnet18_cifar"])
    with pytest.raises(SystemExit):
        import_module("examples.resnet18_cifar").main()
    assert "this training needs a GPU, and torch sees none here" in capsys.readouterr().err

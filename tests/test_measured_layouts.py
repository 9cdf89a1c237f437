"""Checkpoints from other programs, measured by one call, against float64 NumPy."""

from __future__ import annotations

import argparse
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_glassy import AgingRecord
from lightning_glassy.checkpoints import measure_checkpoints
from lightning_glassy.cli import main

STEPS = (0, 1, 4, 20)
State = dict[str, torch.Tensor]


def weights(step: int) -> State:
    generator = torch.Generator().manual_seed(step)
    shapes = {"embed.weight": (12, 6), "layers.0.weight": (6, 6), "layers.0.bias": (6,), "head.weight": (12, 6)}
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def truth(make: Callable[[int], State] = weights) -> dict[tuple[int, int], float]:
    flat = {step: torch.cat([w.flatten() for w in make(step).values()]).double().numpy() for step in STEPS}
    return {(a, b - a): float(((flat[b] - flat[a]) ** 2).mean()) for a in STEPS for b in STEPS if b > a}


def found(record: AgingRecord) -> dict[tuple[int, int], float]:
    rows = zip(*(times.tolist() for times in record.pairs), strict=True)
    n = record.n_parameters["all"]
    return {pair: float(sums[0, 0]) / n for pair, sums in zip(rows, record.moments, strict=True)}


def assert_right(record: AgingRecord, make: Callable[[int], State] = weights) -> None:
    expected = truth(make)
    measured = found(record)
    assert measured.keys() == expected.keys()
    assert record.n_parameters["all"] == sum(w.numel() for w in make(0).values())
    assert np.allclose(list(measured.values()), [expected[pair] for pair in measured], rtol=1e-6, atol=0)


# ---------------------------------------------------------------------- layouts


def split(state: State) -> list[State]:
    items = list(state.items())
    return [dict(items[:2]), dict(items[2:])]


def save_safetensors(state: State, path: Path) -> None:
    pytest.importorskip("safetensors.torch").save_file(state, path)


def sharded(folder: Path, state: State, stem: str, suffix: str, save: Callable[[Any, Path], object]) -> None:
    where = {}
    for i, shard in enumerate(split(state), 1):
        name = f"{stem}-{i:05d}-of-00002{suffix}"
        save(shard, folder / name)
        where |= dict.fromkeys(shard, name)
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def pythia(top: Path, step: int) -> None:
    folder = top / f"step{step}"
    folder.mkdir()
    sharded(folder, weights(step), "pytorch_model", ".bin", torch.save)
    (folder / "config.json").write_text("{}")


def hub_with_both_formats(top: Path, step: int) -> None:
    folder = top / f"step{step}"
    folder.mkdir()
    sharded(folder, weights(step), "model", ".safetensors", save_safetensors)
    torch.save(weights(step), folder / "pytorch_model.bin")


def hub_cache(top: Path, step: int) -> None:
    model, commit = top / "models--owner--net", f"{step:040x}"
    for folder in ("refs", "blobs", f"snapshots/{commit}"):
        (model / folder).mkdir(parents=True, exist_ok=True)
    (model / "refs" / f"step{step}").write_text(commit)
    save_safetensors(weights(step), model / "blobs" / f"b{step}")
    (model / "snapshots" / commit / "model.safetensors").symlink_to(f"../../blobs/b{step}")


def trainer(top: Path, step: int) -> None:
    folder = top / f"checkpoint-{step}"
    folder.mkdir()
    save_safetensors(weights(step), folder / "model.safetensors")
    torch.save({"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}, folder / "optimizer.pt")
    torch.save({"cpu": torch.get_rng_state()}, folder / "rng_state.pth")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": 0.5}))


def olmo(top: Path, step: int) -> None:
    folder = top / f"step{step}-unsharded"
    folder.mkdir()
    torch.save(weights(step), folder / "model.pt")
    torch.save({"state": {}}, folder / "optim.pt")


def multiberts(top: Path, step: int) -> None:
    folder = top / f"seed_0-step_{step}k"
    folder.mkdir()
    torch.save(weights(step), folder / "pytorch_model.bin")


def deepspeed(top: Path, step: int) -> None:
    folder = top / f"global_step{step}"
    folder.mkdir()
    torch.save({"module": weights(step), "global_steps": step}, folder / "mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": {"a": torch.ones(2)}}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")


def megatron(top: Path, step: int) -> None:
    folder = top / f"iter_{step:07d}" / "mp_rank_00"
    folder.mkdir(parents=True)
    content = {"model": weights(step), "iteration": step, "args": argparse.Namespace(lr=0.1, layers=[1, 2])}
    torch.save(content, folder / "model_optim_rng.pt")


def nano_gpt(top: Path, step: int) -> None:
    content = {"model": {f"_orig_mod.{n}": w for n, w in weights(step).items()}, "iter_num": step, "config": {"a": 1}}
    torch.save(content, top / f"ckpt_{'abcdefghijklmnopqrstuvwxyz'[step]}.pt")


def fairseq(top: Path, step: int) -> None:
    torch.save({"model": weights(step)}, top / f"checkpoint_{1 + step // 3}_{1000 * step + 10}.pt")


def lightning(top: Path, step: int) -> None:
    content = {"pytorch-lightning_version": "2.6.0", "global_step": step, "epoch": 3, "state_dict": weights(step)}
    torch.save(content, top / f"epoch=3-step={step}.ckpt")
    torch.save(content, top / "last.ckpt")


def distributed(top: Path, step: int) -> None:
    from torch.distributed import checkpoint

    folder = top / f"step-{step}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a single process
        checkpoint.save({"model": weights(step)}, checkpoint_id=folder, no_dist=True)


def nested(top: Path, step: int) -> None:
    torch.save({"trainer": {"model": weights(step)}, "step": step}, top / f"{step}.pt")


def prefixes(top: Path, step: int) -> None:
    prefix = {0: "", 1: "module.", 4: "module._orig_mod.", 20: "model."}[step]
    torch.save({f"{prefix}{name}": w for name, w in weights(step).items()}, top / f"net_step={step}.pt")


LAYOUTS = [
    pythia,
    hub_with_both_formats,
    hub_cache,
    trainer,
    olmo,
    multiberts,
    deepspeed,
    megatron,
    nano_gpt,
    fairseq,
    lightning,
    distributed,
    nested,
    prefixes,
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_directory_of_checkpoints_is_measured_right(layout: Any, tmp_path: Path) -> None:
    for step in STEPS:
        layout(tmp_path, step)
    folder = tmp_path / "models--owner--net" if layout is hub_cache else tmp_path
    record = measure_checkpoints([folder])
    if layout in (multiberts, fairseq):
        assert record.meta["steps"] == [1000 * step + (10 if layout is fairseq else 0) for step in STEPS]
        assert np.allclose(list(found(record).values()), list(truth().values()), rtol=1e-6, atol=0)
    else:
        assert_right(record)


def test_all_shards_by_a_glob_are_whole_checkpoints_and_one_shard_is_none(tmp_path: Path) -> None:
    for step in STEPS:
        pythia(tmp_path, step)
    assert_right(measure_checkpoints(sorted(tmp_path.glob("step*/*.bin"))))
    assert_right(measure_checkpoints(sorted(tmp_path.glob("step*/*.index.json"), reverse=True)))
    with pytest.raises(ValueError, match=r"step0/pytorch_model-00001-of-00002.bin is one of 2 shards, and no whole"):
        measure_checkpoints(sorted(tmp_path.glob("step*/*00001-of*")))


# ---------------------------------------------------------------------- chosen weights


def test_constants_and_tied_tensors_of_published_files_change_no_number(tmp_path: Path) -> None:
    def published(step: int) -> dict[str, torch.Tensor]:
        state = weights(step)
        tied = {} if step == 4 else {"lm_head.weight": state["embed.weight"].clone()}
        return {"h.0.attn.masked_bias": torch.tensor(-1e9), "h.0.attn.bias": torch.ones(8, 8).tril()} | state | tied

    for step in STEPS:
        torch.save(published(step), tmp_path / f"step{step}.bin")
    record = measure_checkpoints([tmp_path])
    assert_right(record)
    assert any("h.0.attn.masked_bias" in doubt for doubt in record.doubts)
    assert any("lm_head.weight" in doubt for doubt in record.doubts)
    kept = measure_checkpoints([tmp_path], keep_constant=True)
    assert kept.n_parameters["all"] == record.n_parameters["all"] + 65


def test_a_copy_counts_once_and_another_checkpoint_of_the_step_is_refused(tmp_path: Path) -> None:
    for step in STEPS:
        lightning(tmp_path, step)
    shutil.copy(tmp_path / "last.ckpt", tmp_path / "epoch=3-step=20-v1.ckpt")
    assert_right(measure_checkpoints([tmp_path]))
    other = {"pytorch-lightning_version": "2.6.0", "global_step": 20, "state_dict": weights(99)}
    torch.save(other, tmp_path / "epoch=3-step=20-v1.ckpt")
    with pytest.raises(ValueError, match=r"step=20.* and .* are both of step 20: leave one out"):
        measure_checkpoints([tmp_path])
    with pytest.raises(ValueError, match="they are copies of one checkpoint"):
        measure_checkpoints([tmp_path / "last.ckpt", shutil.copy(tmp_path / "last.ckpt", tmp_path / "copy.ckpt")])


def test_doubts_are_in_the_record(tmp_path: Path) -> None:
    for step in STEPS:
        state = {name: w.bfloat16() for name, w in weights(0 if step == 1 else step).items()}
        state["head.weight"][0, 0] = torch.inf if step == 20 else 0
        torch.save(state, tmp_path / f"step{step}.pt")
    doubts = " | ".join(measure_checkpoints([tmp_path]).doubts)
    assert "values of head.weight are not finite at step 20" in doubts
    assert "equal to the last bit at different steps, 0 = 1" in doubts
    assert "within the rounding" in doubts


# ---------------------------------------------------------------------- the command


def test_the_command_prints_the_step_of_each_checkpoint_and_its_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in STEPS:
        trainer(tmp_path, step)
    assert main(["measure", str(tmp_path), "-o", str(tmp_path / "r.npz")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 checkpoints:"
    for line, step in zip(lines[1:5], STEPS, strict=True):
        assert line.split()[:3] == ["step", str(step), f"checkpoint-{step}/model.safetensors"] or (
            line.split()[:3] == ["step", str(step), f"checkpoint-{step}"]
        )
        assert "trainer_state.json" in line
    assert_right(AgingRecord.load(tmp_path / "r.npz"))


def test_the_options_of_the_command_are_those_of_python(tmp_path: Path) -> None:
    for step in STEPS:
        torch.save(weights(step), tmp_path / f"step{step}.pt")
    out = tmp_path / "r.npz"
    options = ["--groups", "ends=embed.*,head.*", "--groups", "biases=*.bias", "--sample", "1e2"]
    options += ["--overlap-thresholds", "0.01,0.2", "--pairs", "log", "--exclude", "layers.0.weight"]
    assert main(["measure", str(tmp_path), "-o", str(out), *options]) == 0
    expected = measure_checkpoints(
        [tmp_path],
        groups={"ends": ["embed.*", "head.*"], "biases": "*.bias"},
        sample=100,
        overlap_thresholds=[0.01, 0.2],
        pairs="log",
        exclude="layers.0.weight",
    )
    assert AgingRecord.load(out) == expected
    assert expected.n_sampled["all"] == 100
    assert main(["measure", str(tmp_path), "-o", str(out), "--overwrite", "--groups", "layer"]) == 0
    assert AgingRecord.load(out) == measure_checkpoints([tmp_path], groups="layer")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0,1,4,21"], "--force-steps"),
        (["--steps", "0,1"], "--steps 0,1 are 2 for 4"),
        (["--groups", "layers"], "--groups 'layers'"),
        (["--groups", "layer", "--groups", "a=b"], "--groups layer stands alone"),
        (["--groups", "a=nothing.*"], "'nothing.*' matches no"),
        (["--overlap-thresholds", "0.2,0.1"], "--overlap-thresholds"),
        (["--pairs", "some"], "--pairs 'some'"),
        (["--key", "a.b"], "--key 'a.b' is no state_dict"),
        (["--exclude", "*"], "all are excluded"),
    ],
)
def test_a_wrong_option_is_named_as_an_option(
    tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in STEPS:
        torch.save(weights(step), tmp_path / f"step{step}.pt")
    assert main(["measure", str(tmp_path), "-o", str(tmp_path / "r.npz"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert not (tmp_path / "r.npz").exists()


def test_an_interrupted_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lightning_glassy.checkpoints import measure, one_pass

    for step in STEPS:
        torch.save({"w": torch.randn(100_000, generator=torch.Generator().manual_seed(step))}, tmp_path / f"{step}.pt")
    arguments = ["measure", *map(str, sorted(tmp_path.glob("*.pt"))), "-o"]
    assert main([*arguments, str(tmp_path / "whole.npz")]) == 0
    expected = AgingRecord.load(tmp_path / "whole.npz")

    def stopped(*args: Any, progress: Any = None, **options: Any) -> Any:
        def stop(done: int, total: int) -> None:
            if done:
                raise KeyboardInterrupt

        monkeypatch.setattr(one_pass, "_PROGRESS_EVERY", 0.0)
        return one_pass.sum_pairs(*args, memory=1, progress=stop, **options)

    with monkeypatch.context() as patch:
        patch.setattr(measure, "sum_pairs", stopped)
        assert main([*arguments, str(tmp_path / "cut.npz")]) == 130
    assert "goes on from there" in capsys.readouterr().err
    assert (tmp_path / "cut.npz.unfinished").exists()
    assert main([*arguments, str(tmp_path / "cut.npz")]) == 0
    assert AgingRecord.load(tmp_path / "cut.npz") == expected
    assert not (tmp_path / "cut.npz.unfinished").exists()

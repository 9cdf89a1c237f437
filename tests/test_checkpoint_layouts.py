"""Files and directories from other programs become checkpoints, and no part is mistaken for a whole checkpoint."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_glassy.checkpoints.handles import Handles
from lightning_glassy.checkpoints.layouts import find_checkpoints, open_checkpoint
from lightning_glassy.checkpoints.weights import choose
from tests.test_checkpoint_files import save_distributed, values

W = {"a.weight": np.arange(6.0).reshape(2, 3), "b.bias": np.arange(3.0)}


def tensors(step: int = 0, names: Any = None) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(w + step).float() for name, w in W.items() if names is None or name in names}


def put(path: Path, content: Any = None) -> Path:
    """Write a small file of the kind that its suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(tensors() if content is None else content, path)
    elif path.suffix in (".json", ".txt", ".md", ".yaml"):
        path.write_text(content if isinstance(content, str) else json.dumps(content or {}))
    else:
        torch.save(tensors() if content is None else content, path)
    return path


def put_shards(
    folder: Path, step: int = 0, suffix: str = ".bin", index: bool = True, stem: str = "pytorch_model"
) -> None:
    shards = {f"{stem}-{i:05d}-of-00002{suffix}": name for i, name in enumerate(W, 1)}
    for shard, name in shards.items():
        put(folder / shard, tensors(step, [name]))
    if index:
        where = {name: shard for shard, name in shards.items()}
        put(folder / f"{stem}{suffix}.index.json", {"metadata": {}, "weight_map": where})


def found(*paths: Path) -> list[str]:
    """Return the path of each checkpoint that is found, relative to the common directory."""
    root = Path(os.path.commonpath(paths)) if len(paths) > 1 else paths[0]
    return [os.path.relpath(one.path, root) for one in find_checkpoints(paths)]


def check(path: Path, step: int = 0, other: Path | None = None) -> Any:
    """Open the checkpoint at a path, compare the weights, and return the content."""
    one, *_ = find_checkpoints([path, other or put(path.parent / "other" / "step99.pt")])
    with Handles() as handles:
        content = open_checkpoint(one, handles)
        for name, w in W.items():
            assert np.array_equal(values(content.everything[name]), (w + step).ravel())
    return content


# ---------------------------------------------------------------------- one directory, one checkpoint


@pytest.mark.parametrize(
    ("weights", "others"),
    [
        ("model.safetensors", ["pytorch_model.bin", "config.json", "tokenizer.json", "training_args.bin"]),
        (
            "pytorch_model.bin",
            ["optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin"],
        ),
        ("model.safetensors", ["optimizer.bin", "scheduler.bin", "sampler.bin", "random_states_0.pkl", "scaler.pt"]),
        ("adapter_model.safetensors", ["adapter_config.json", "README.md"]),
        ("diffusion_pytorch_model.safetensors", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin"]),
        ("model.pt", ["optim.pt", "train.pt", "config.yaml"]),  # OLMo, unsharded
        ("mp_rank_00_model_states.pt", ["zero_pp_rank_0_mp_rank_00_optim_states.pt"]),  # DeepSpeed
        ("mp_rank_00/model_optim_rng.pt", []),  # Megatron
        ("checkpoint/mp_rank_00_model_states.pt", ["checkpoint/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"]),
        ("lit_model.pth", ["tokenizer.json", "model_config.yaml"]),  # LitGPT
        ("consolidated.00.pth", ["params.json"]),
        ("model.safetensors", ["onnx/model.pt", "1_Pooling/config.json", ".cache/huggingface/x.pt"]),
        ("ckpt.pt", []),  # nanoGPT
        ("pytorch_model_fsdp.bin", ["optimizer.bin"]),  # Accelerate
        ("model.safetensors", ["global_step500/zero_pp_rank_0_mp_rank_00_model_states.pt", "latest"]),  # with DeepSpeed
        ("model.pt", ["model_ema.pt", "best.pt"]),
        ("model-00001-of-00001.safetensors", []),
    ],
)
def test_the_weights_of_a_directory_are_found(tmp_path: Path, weights: str, others: list[str]) -> None:
    folder = tmp_path / "step10"
    put(folder / weights)
    for other in others:
        put(folder / other, tensors(50) if (folder / other).suffix in (".pt", ".pth", ".bin", ".pkl", "") else None)
    assert [file.relative_to(folder).as_posix() for file in check(folder).files] == [weights]


def test_other_weights_in_the_directory_of_a_checkpoint_are_a_doubt(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model_1.safetensors", "pytorch_model.bin", "optimizer.bin", "sampler.bin"):
        put(tmp_path / "step_5" / name)
    doubts = choose(check(tmp_path / "step_5")).doubts
    assert doubts == ["the files 'model_1.safetensors' beside 'model.safetensors' are not measured"]


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("index", [True, False])
def test_shards_are_one_checkpoint_however_they_are_named(tmp_path: Path, suffix: str, index: bool) -> None:
    other = put(tmp_path / "step99.pt")
    folder = tmp_path / "step10"
    put_shards(folder, 10, suffix, index)
    shards = sorted(folder.glob("*-of-*"))
    for paths in ([folder], shards, shards[::-1], [*folder.glob("*.json")] or shards, [*folder.iterdir()]):
        one, last = find_checkpoints([*paths, other])
        assert (one.path.name in ("step10", f"pytorch_model{suffix}.index.json"), last.path) == (True, other)
        with Handles() as handles:
            content = open_checkpoint(one, handles)
            assert {name: values(stored).tolist() for name, stored in content.everything.items()} == {
                name: (w + 10).ravel().tolist() for name, w in W.items()
            }


def test_shards_in_both_formats_are_one_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "step10"
    put_shards(folder)
    put_shards(folder, suffix=".safetensors", stem="model")
    other = put(tmp_path / "step99.pt")
    for paths in ([folder], sorted(folder.glob("*-of-*"))):
        one, _ = find_checkpoints([*paths, other])
        assert {file.suffix for file in one.files} == {".safetensors"}
        assert one.path == folder


def test_an_index_whose_shards_were_not_fetched_does_not_disturb(tmp_path: Path) -> None:
    put_shards(tmp_path / "step1")
    for file in (tmp_path / "step1").glob("*.bin"):
        file.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"step1 is incomplete: there is no 'pytorch_model-0000[12]-of-00002.bin'"
    ):
        find_checkpoints([tmp_path / "step1"])
    put(tmp_path / "step1" / "model.safetensors")
    check(tmp_path / "step1")


def test_trainer_state_and_metadata_lie_beside_the_weights(tmp_path: Path) -> None:
    put(tmp_path / "checkpoint-500" / "trainer_state.json", {"global_step": 500, "log_history": [{"loss": 1}]})
    put(tmp_path / "checkpoint-500" / "pytorch_model.bin")
    for path in ("checkpoint-500", "checkpoint-500/pytorch_model.bin"):
        assert check(tmp_path / path, other=put(tmp_path / "x.pt")).beside == {"global_step": 500}


def test_distributed_checkpoints_are_directories(tmp_path: Path) -> None:
    folders = [save_distributed(tmp_path / f"step-{i}", {**tensors(i), "step": i}) for i in (1, 10)]
    assert found(*folders) == found(tmp_path) == ["step-1", "step-10"]
    assert check(folders[1], 10).everything["step"] == 10
    with pytest.raises(ValueError, match=r"__0_0.distcp is a part of a distributed checkpoint: name its directory"):
        find_checkpoints([folder / "__0_0.distcp" for folder in folders])
    (folders[0] / ".metadata").unlink()
    with pytest.raises(ValueError, match=r"step-1 is an incomplete distributed checkpoint"):
        find_checkpoints(folders)


# ---------------------------------------------------------------------- directories with many checkpoints


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["step0/model.pt", "step10/model.pt", "step2/model.pt", "README.md"], ["step0", "step2", "step10"]),
        (["step=2.pt", "step=10.pt", "optimizer.pt", "optimizer_step2.pt"], ["step=2.pt", "step=10.pt"]),
        (
            ["checkpoints/a-step=2.ckpt", "checkpoints/a-step=10.ckpt", "hparams.yaml", "metrics.txt"],
            ["checkpoints/a-step=2.ckpt", "checkpoints/a-step=10.ckpt"],
        ),
        (
            ["model.safetensors", "checkpoint-5/model.safetensors", "checkpoint-10/model.safetensors"],
            ["checkpoint-5", "checkpoint-10"],
        ),
        (
            ["global_step5/mp_rank_00_model_states.pt", "global_step10/mp_rank_00_model_states.pt", "latest.txt"],
            ["global_step5", "global_step10"],
        ),
        (
            ["iter_0000005/mp_rank_00/model_optim_rng.pt", "iter_0000010/mp_rank_00/model_optim_rng.pt"],
            ["iter_0000005/mp_rank_00", "iter_0000010/mp_rank_00"],
        ),
        (["ep0-ba100-rank0.pt", "ep0-ba200-rank0.pt"], ["ep0-ba100-rank0.pt", "ep0-ba200-rank0.pt"]),
        (["lora_rank8.pt", "lora_rank16.pt"], ["lora_rank8.pt", "lora_rank16.pt"]),
        (["checkpoint_1_500.pt", "checkpoint_2_1000.pt"], ["checkpoint_1_500.pt", "checkpoint_2_1000.pt"]),
        (["model_0000499.pth", "model_0000999.pth", "last_checkpoint"], ["model_0000499.pth", "model_0000999.pth"]),
        (["checkpoint-9.pth.tar", "checkpoint-10.pth.tar"], ["checkpoint-9.pth.tar", "checkpoint-10.pth.tar"]),
        (["run/a/step1.pt", "run/a/step2.pt"], ["run/a/step1.pt", "run/a/step2.pt"]),
        (
            ["step1/model_and_optim/model.pt", "step2/model_and_optim/model.pt", "step1/train/rank0.pt"],
            ["step1/model_and_optim", "step2/model_and_optim"],
        ),
        (["model.pt", "model_step5.pt", "model_step10.pt"], ["model.pt", "model_step5.pt", "model_step10.pt"]),
        (["1000/model.safetensors", "200/model.safetensors"], ["200", "1000"]),
    ],
)
def test_a_directory_of_checkpoints_stands_for_all_of_them(
    tmp_path: Path, files: list[str], expected: list[str]
) -> None:
    for file in files:
        put(tmp_path / file)
    assert found(tmp_path) == expected


def test_a_run_of_sharded_checkpoints_is_found_by_folder_glob_and_name(tmp_path: Path) -> None:
    for step in (0, 1, 2):
        put_shards(tmp_path / f"step{step}", step)
    steps = ["step0", "step1", "step2"]
    assert found(tmp_path) == steps
    assert found(*sorted(tmp_path.glob("step*/*.bin"))) == steps
    assert found(*sorted(tmp_path.glob("step*"))) == steps


def test_a_glob_of_all_files_of_trainers_finds_the_weights(tmp_path: Path) -> None:
    for step in (5, 10):
        for name in ("pytorch_model.bin", "optimizer.pt", "rng_state.pth", "training_args.bin", "config.json"):
            put(tmp_path / f"checkpoint-{step}" / name, None if name.endswith("json") else tensors(step))
    assert found(*tmp_path.glob("checkpoint-5/*"), *tmp_path.glob("checkpoint-10/*")) == [
        "checkpoint-5/pytorch_model.bin",
        "checkpoint-10/pytorch_model.bin",
    ]


def test_of_a_glob_with_a_model_in_two_formats_the_safetensors_are_taken(tmp_path: Path) -> None:
    for step in (5, 10):
        for name in ("model.safetensors", "pytorch_model.bin"):
            put(tmp_path / f"checkpoint-{step}" / name, tensors(step))
    files = sorted(tmp_path.glob("checkpoint-*/*"))
    assert {*found(*files)} == {"checkpoint-5/model.safetensors", "checkpoint-10/model.safetensors"}
    for file in files:  # an adapter is no model
        file.rename(file.with_name(file.name.replace("model.s", "adapter_model.s")))
    assert "checkpoint-5/pytorch_model.bin" in found(*sorted(tmp_path.glob("checkpoint-*/*")))


def hub(root: Path, branches: dict[str, str]) -> Path:
    """Make a repository in the cache of the Hugging Face hub, with links to blobs as on Linux."""
    repo = root / "models--owner--name"
    (repo / "blobs").mkdir(parents=True)
    for branch, commit in branches.items():
        (repo / "refs" / branch).parent.mkdir(parents=True, exist_ok=True)
        (repo / "refs" / branch).write_text(commit)
        folder = repo / "snapshots" / commit
        if not folder.exists():
            folder.mkdir(parents=True)
            blob = put(repo / "blobs" / f"{commit[::-1]}")
            (folder / "pytorch_model.bin").symlink_to(blob)
    return repo


def test_each_branch_in_the_cache_of_the_hub_is_a_checkpoint(tmp_path: Path) -> None:
    repo = hub(tmp_path, {"step10": "aa1", "step2": "bb2", "refs-pr/1": "cc3", "main": "aa1"})
    (repo / "snapshots" / "old").mkdir()
    labels = [one.labels for one in find_checkpoints([repo])]
    assert labels == [("main", "step10"), ("refs-pr/1",), ("step2",)]
    one, other = find_checkpoints([repo / "snapshots" / "bb2", repo / "snapshots" / "cc3" / "pytorch_model.bin"])
    assert (one.labels, other.labels) == (("step2",), ("refs-pr/1",))
    assert [found.labels for found in find_checkpoints([tmp_path])] == labels


def test_two_numbered_branches_with_the_same_file_are_two_steps_and_main_is_none_of_its_own(tmp_path: Path) -> None:
    repo = hub(tmp_path, {"step1": "aa1", "step2": "bb2", "main": "cc3"})
    for commit in ("aa1", "cc3"):
        (repo / "snapshots" / commit / "pytorch_model.bin").unlink()
        (repo / "snapshots" / commit / "pytorch_model.bin").symlink_to(repo / "blobs" / "2bb")
    assert [one.labels for one in find_checkpoints([repo])] == [("step1", "main"), ("step2",)]


# ---------------------------------------------------------------------- the same file twice


def test_a_link_to_a_checkpoint_counts_once_and_a_copy_twice(tmp_path: Path) -> None:
    files = [put(tmp_path / f"step={i}.ckpt", tensors(i)) for i in (1, 2)]
    (tmp_path / "last.ckpt").symlink_to(files[1])
    assert found(tmp_path) == ["step=1.ckpt", "step=2.ckpt"]
    assert [one.path for one in find_checkpoints([tmp_path / "last.ckpt", *files])] == files
    (tmp_path / "last.ckpt").unlink()
    (tmp_path / "last.ckpt").write_bytes(files[1].read_bytes())
    assert len(find_checkpoints([tmp_path])) == 3


def test_a_link_to_the_folder_of_a_checkpoint_counts_once_under_the_name_of_the_folder(tmp_path: Path) -> None:
    for step in (1000, 2000):
        put(tmp_path / f"step{step}-unsharded" / "model.pt", tensors(step))
    (tmp_path / "latest-unsharded").symlink_to(tmp_path / "step2000-unsharded")
    folders = ["step1000-unsharded", "step2000-unsharded"]
    assert found(tmp_path) == folders
    assert found(*sorted(tmp_path.glob("*/model.pt"))) == [f"{folder}/model.pt" for folder in folders]
    (tmp_path / "all").symlink_to(tmp_path)
    assert found(tmp_path / "all") == folders


# ---------------------------------------------------------------------- paths that are refused


def test_some_of_the_shards_are_refused(tmp_path: Path) -> None:
    for index in (True, False):
        for step in (0, 1):
            put_shards(tmp_path / f"{index}" / f"step{step}", step, index=index)
        files = sorted((tmp_path / f"{index}").glob("step*/*00001-of*"))
        with pytest.raises(
            ValueError, match=r"pytorch_model-00001-of-00002.bin is .* 2.*: .*2.* is not among the files"
        ):
            find_checkpoints(files)
    (tmp_path / "False" / "step1" / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ValueError, match=r"step1/pytorch_model-00001-of-00002.bin is shard 1 of 2, and no whole"):
        find_checkpoints([tmp_path / "False"])


def test_shards_without_numbers_in_their_names_are_known_by_the_index(tmp_path: Path) -> None:
    for step in (0, 1):
        for file, name in zip(("part_a.bin", "part_b.bin"), W, strict=True):
            put(tmp_path / f"step{step}" / file, tensors(step, [name]))
        where = dict(zip(W, ("part_a.bin", "part_b.bin"), strict=True))
        put(tmp_path / f"step{step}" / "model.bin.index.json", {"weight_map": where})
    with pytest.raises(ValueError, match=r"part_a.bin is one of 2 shards, and no whole checkpoint: part_b.bin is not"):
        find_checkpoints(sorted(tmp_path.glob("step*/part_a.bin")))
    assert found(*sorted(tmp_path.glob("step*/*.bin"))) == found(tmp_path) == ["step0", "step1"]


@pytest.mark.parametrize(
    ("file", "beside"),
    [
        ("mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"),
        ("mp_rank_01_model_states.pt", None),
        ("zero_pp_rank_0_mp_rank_00_model_states.pt", None),
        ("zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"),
        ("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", None),
        ("layer_00-model_00-model_states.pt", None),
        ("consolidated.00.pth", "consolidated.01.pth"),
        ("consolidated.01.pth", None),
        ("rank0.pt", "rank1.pt"),
        ("ep0-ba100-rank0.pt", "ep0-ba100-rank1.pt"),
        ("pytorch_model_fsdp_0_rank0.bin", "pytorch_model_fsdp_0_rank1.bin"),
        ("model_tp0_pp0.pt", "model_tp1_pp0.pt"),
        ("model_tp0_pp0.pt", "model_tp0_pp1.pt"),
        ("mp_rank_00/model_optim_rng.pt", "mp_rank_01/model_optim_rng.pt"),
        ("tp_rank_00_pp_rank_000/model_weights.ckpt", "tp_rank_00_pp_rank_001/model_weights.ckpt"),
        ("checkpoint-shard0.pt", "checkpoint-shard1.pt"),
        (
            "model_weight_pp-rank-0-of-1_tp-rank-0-of-2.safetensors",
            "model_weight_pp-rank-0-of-1_tp-rank-1-of-2.safetensors",
        ),
    ],
)
def test_a_part_of_a_model_is_refused(tmp_path: Path, file: str, beside: str | None) -> None:
    paths = [put(tmp_path / f"step{step}" / file) for step in (0, 1)]
    if beside is not None:
        for step in (0, 1):
            put(tmp_path / f"step{step}" / beside)
    with pytest.raises(ValueError, match=r"step0.*(part|layer|optimiser)") as caught:
        find_checkpoints(paths)
    assert Path(file).name in str(caught.value)


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ({"a.weight": "../x.bin"}, ValueError, "'../x.bin' is outside of the directory"),
        ({"a.weight": "/etc/passwd"}, ValueError, "'/etc/passwd' is outside"),
        ({"a.weight": "C:\\x.bin"}, ValueError, "is outside"),
        ({"a.weight": "missing.bin"}, FileNotFoundError, "step0 is incomplete: there is no 'missing.bin'"),
        ({"a.weight": 3}, ValueError, "has no weight_map"),
        ([], ValueError, "has no weight_map"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, where: Any, error: Any, message: str) -> None:
    index = put(tmp_path / "step0" / "pytorch_model.bin.index.json", {"weight_map": where})
    with pytest.raises(error) as caught:
        find_checkpoints([index, put(tmp_path / "step1.pt")])
    assert message in str(caught.value)
    index.write_text("[" * 100000)
    with pytest.raises(ValueError, match=r"index.json is not readable JSON"):
        find_checkpoints([index, tmp_path / "step1.pt"])


def test_shards_that_contradict_the_index_or_each_other_are_refused(tmp_path: Path) -> None:
    put_shards(tmp_path / "step0")
    index, other = tmp_path / "step0" / "pytorch_model.bin.index.json", put(tmp_path / "step1.pt")
    where = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": where | {"c": where["b.bias"]}}))
    one, _ = find_checkpoints([tmp_path / "step0", other])
    with Handles() as handles, pytest.raises(ValueError, match=r"step0: the tensor 'c' is not in pytorch_model-00002"):
        open_checkpoint(one, handles)
    index.unlink()
    put(tmp_path / "step0" / "pytorch_model-00002-of-00002.bin")
    one, _ = find_checkpoints([tmp_path / "step0", other])
    with Handles() as handles, pytest.raises(ValueError, match=r"the tensor 'a.weight' is also in .*00001"):
        open_checkpoint(one, handles)


def test_a_directory_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    put(tmp_path / "a" / "config.json")
    put(tmp_path / "a" / "optimizer.pt")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    with pytest.raises(ValueError, match=r"a holds no checkpoint: there is no file named \*.safetensors, .*\.metadata"):
        find_checkpoints([tmp_path / "a"])
    put(tmp_path / "p" / "model_index.json")
    put(tmp_path / "p" / "unet" / "model.pt")
    with pytest.raises(ValueError, match="p is a pipeline of several models: name the directory of one"):
        find_checkpoints([tmp_path / "p"])


def test_all_that_a_shell_finds_may_be_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (500, 1000):
        put_shards(tmp_path / f"checkpoint-{step}", step)
        put(tmp_path / f"checkpoint-{step}" / "config.json")
        put(tmp_path / f"checkpoint-{step}" / "optimizer.pt")
    for name in ("README.md", "training_args.bin", "runs/Jan31/events.txt"):
        put(tmp_path / name)
    steps = ["checkpoint-500", "checkpoint-1000"]
    assert sorted(found(*sorted(tmp_path.glob("*")))) == sorted(steps)
    assert "README.md" in caplog.text
    assert "runs" in caplog.text
    caplog.clear()
    assert {Path(name).parts[0] for name in found(*sorted(tmp_path.glob("checkpoint-*/*")))} == {*steps}
    assert "optimizer.pt" in caplog.text
    (tmp_path / "checkpoint-1500").mkdir()
    with pytest.raises(ValueError, match=r"checkpoint-1500 holds no checkpoint: .* Leave it out, or name the files"):
        found(*sorted(tmp_path.glob("*")))
    texts = [put(tmp_path / f"{n}.log", tensors(n)) for n in (1, 2)]
    assert len(find_checkpoints(texts)) == 2


def test_the_last_model_beside_the_checkpoints_of_a_trainer_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("checkpoint-1/model.pt", "checkpoint-2/model.pt", "model.pt"):
        put(tmp_path / name)
    assert found(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    assert "model.pt is left out. If its step is later than those of checkpoint-*, name it too" in caplog.text
    assert found(tmp_path, tmp_path / "model.pt") == ["checkpoint-1", "checkpoint-2", "model.pt"]


def test_a_link_to_nothing_in_a_directory_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        put(tmp_path / f"step{step}" / "model.pt")
    (tmp_path / "step2" / "model.pt").unlink()
    (tmp_path / "step2" / "model.pt").symlink_to("blob")
    assert found(tmp_path) == ["step1", "step3"]
    assert caplog.text.count("step2/model.pt is left out: the link leads to no file. Fetch") == 1


def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = put(tmp_path / "step1.pt")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    for name, error, message in (
        ("missing.pt", FileNotFoundError, "missing.pt: there is no such file"),
        ("step1.pt/x.pt", FileNotFoundError, "x.pt: there is no such file"),
        ("broken", FileNotFoundError, "broken: there is no such file"),
        ("loop", ValueError, "loop cannot be read: "),
        ("\0.pt", ValueError, "is not the name of a file"),
    ):
        with pytest.raises(error, match=message):
            find_checkpoints([tmp_path / name, other])
    with socket.socket(socket.AF_UNIX) as opened:
        monkeypatch.chdir(tmp_path)  # the name of a socket is short
        opened.bind("s.pt")
    for path in ("/dev/null", tmp_path / "s.pt"):
        with pytest.raises(ValueError, match="not a file but a device or a pipe"):
            find_checkpoints([path, other])
    with pytest.raises(
        ValueError, match=r"a displacement needs at least two checkpoints, and there is only .*step1.pt"
    ):
        find_checkpoints([other])
    with pytest.raises(ValueError, match="there is none"):
        find_checkpoints([])
    with pytest.raises(TypeError, match="is not a list of files"):
        find_checkpoints(str(other))
    with pytest.raises(TypeError, match=r"paths\[0\]=3 is not the name of a file"):
        find_checkpoints([3, 4])


def test_a_format_is_known_by_the_content_of_the_file(tmp_path: Path) -> None:
    safe = put(tmp_path / "a.safetensors")
    safe.rename(tmp_path / "step1.bin")
    check(tmp_path / "step1.bin")
    torch.save(tensors(), tmp_path / "step2.safetensors")
    check(tmp_path / "step2.safetensors")


def test_hundreds_of_checkpoints_are_opened_without_as_many_handles(tmp_path: Path) -> None:
    for step in range(100):
        put_shards(tmp_path / f"step{step}", step, index=False)
    with Handles(most=4) as handles:
        contents = [open_checkpoint(one, handles) for one in find_checkpoints([tmp_path])]
        assert [values(content.everything["b.bias"])[0] for content in contents] == [*range(100)]
        assert len(handles._open) <= 4

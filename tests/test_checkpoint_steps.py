"""The step of a checkpoint, from its values and its name. The names come from public repositories."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_glassy.checkpoints.content import Content
from lightning_glassy.checkpoints.steps import doubts_of_steps, find_steps
from lightning_glassy.checkpoints.stored import InMemory


def content(name: str, everything: dict[str, Any] | None = None, **options: Any) -> Content:
    return Content(Path(name), everything or {}, (Path(name),), **options)


def steps(*names: str, given: Any = None, force: bool = False) -> list[int]:
    return [dated.step for dated in find_steps([content(name) for name in names], given, force)]


def inside(everything: dict[str, Any], name: str = "model.pt", **options: Any) -> tuple[int, str]:
    (dated,) = find_steps([content(name, everything, **options)])
    return dated.step, dated.source


UNKNOWN = "is neither in it nor in its name: give steps="


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step=1000.pt", 1000),
        ("model_step_1000.bin", 1000),
        ("step-1000", 1000),
        ("step1000.pth.tar", 1000),
        ("net_iter1000.pt", 1000),
        ("iteration_0001000.pt", 1000),
        ("checkpoint-1000.pt", 1000),
        ("model.ckpt-1000", 1000),
        ("ckpt.1000.pt", 1000),
        ("1000.pt", 1000),
        ("weights1000.pt", 1000),
        ("Global_Step=7.pt", 7),
        # Lightning
        ("epoch=3-step=400.ckpt", 400),
        ("epoch=3-step=400-v1.ckpt", 400),
        ("epoch=3-step=400-val_loss=0.35-train_loss_step=1.25.ckpt", 400),
        ("epoch=3-step=400-val_acc=92.ckpt", 400),
        ("train_loss_step=7-step=400.ckpt", 400),
        ("lightning_logs/version_3/checkpoints/epoch=0-step=8.ckpt", 8),
        ("megatron_gpt--val_loss=2.34-step=5000-consumed_samples=640000.0.ckpt", 5000),
        ("checkpoint-3_step-400.pt", 400),
        ("v2_epoch12_400_lr=1e-3.pt", 400),
        # directories of the hub, of Trainer, OLMo, Pythia, MultiBERTs, TinyLlama
        ("run/checkpoint-1000/pytorch_model.bin", 1000),
        ("step1000/model-00001-of-00002.bin", 1000),
        ("step512/model-00001-of-00001.safetensors", 512),
        ("step143000/pytorch_model-00001-of-00002.bin", 143000),
        ("step1000-tokens4B/model.safetensors", 1000),
        ("stage1-step1000-tokens5B", 1000),
        ("step1000-unsharded/model.pt", 1000),
        ("multiberts-seed_0-step_20k", 20_000),
        ("multiberts-seed_4-step_2000k/pytorch_model.bin", 2_000_000),
        ("TinyLlama-1.1B-step-50K-105b", 50_000),
        ("TinyLlama-1.1B-intermediate-step-1431k-3T", 1_431_000),
        ("step-1.5M.pt", 1_500_000),
        ("model_iter_2M.pt", 2_000_000),
        # DeepSpeed, Megatron, LitGPT, Composer, torchtitan
        ("global_step1000/mp_rank_00_model_states.pt", 1000),
        ("out/global_step1000/layer_00-model_00-model_states.pt", 1000),
        ("iter_0001000/mp_rank_00/model_optim_rng.pt", 1000),
        ("iter_0001000/mp_rank_00_001/model_optim_rng.pt", 1000),
        ("out/pretrain/step-00001000/lit_model.pth", 1000),
        ("ep0-ba100-rank0.pt", 100),
        ("ep0-ba100/rank0.pt", 100),
        ("ep1-ba100000.pt", 100_000),
        ("checkpoint/step-1000", 1000),
        # fairseq
        ("checkpoint_4_4000.pt", 4000),
        ("checkpoint_1_1.pt", 1),
        ("checkpoint_4_4000-shard0.pt", 4000),
        # mmcv, detectron2, BERT, OpenNMT, DiffSinger, SB3, DiT, guided diffusion, icefall
        ("iter_16000.pth", 16_000),
        ("model_0004999.pth", 4999),
        ("ckpt_8601.pt", 8601),
        ("model_step_10000.pt", 10_000),
        ("model_ckpt_steps_10000.ckpt", 10_000),
        ("rl_model_100000_steps.zip", 100_000),
        ("model_20k_steps.pt", 20_000),
        ("lora-500step.safetensors", 500),
        ("0050000.pt", 50_000),
        ("model010000.pt", 10_000),
        ("ema_0.9999_010000.pt", 10_000),
        ("num_updates_300.pt", 300),
        ("update300.pt", 300),
        ("model_it1000.pt", 1000),
        ("itr_1000.pt", 1000),
        ("batch_700.pt", 700),
        # further numbers that are no steps
        ("20240131_120000_step400.pt", 400),
        ("2024-01-31T12-00-00/step_400.pt", 400),
        ("run-Jan31_12-30-45/step_400.pt", 400),
        ("step_400_1700000000.pt", 400),
        ("step_400_4f2a9c1b.pt", 400),
        ("lr0.1_bs64_seed_3_step_400.pt", 400),
        ("max_steps_9000_step_400.pt", 400),
        ("warmup-steps-50_iter400.pt", 400),
        ("bert-base-12_step400.pt", 400),
        ("e12_step400.pt", 400),
        ("id_3-400.pt", 400),
        ("seed1_fold2_400.pt", 400),
        ("lr=0.1_400.pt", 400),
        ("fp16_400.pt", 400),
        ("epoch3/step_400/model.pt", 400),
        ("step_400_v2.pt", 400),
        ("model_epoch_5_step_1000_loss_0.5.pth", 1000),
        ("epoch=0-step=500.ckpt/checkpoint/mp_rank_00_model_states.pt", 500),
        ("iter-001599-ckpt.pth", 1599),
        ("best_coco_bbox_mAP_iter_8000.pth", 8000),
        ("stage2-ingredient1-step1000-tokens5B", 1000),
        ("checkpoint_000500/checkpoint-500", 500),
        ("checkpoint-500-merged", 500),
        ("alias-gpt2-small-x21/checkpoint-400/model.safetensors", 400),
        ("model.step.500.pt", 500),
        ("e3s500.pt", 500),
        # numbers with a word before or after them that does not mean a step
        ("step1000_100M_tokens.pt", 1000),
        ("num_train_steps_5000_step_100.pt", 100),
        ("save_steps_500_step_100.pt", 100),
        ("eval_steps=50-step=100.pt", 100),
        ("400_12_hours.pt", 400),
        ("step1000-samples64.pt", 1000),
    ],
)
def test_the_step_is_in_the_name(name: str, step: int) -> None:
    assert steps(name) == [step]


@pytest.mark.parametrize(
    "name",
    [
        *("model.pt", "epoch=3.pt", "epoch12.pt", "12_34.pt", "10k.pt", "loss=0.5.pt", "run3/last.pt", "step=1_step=2"),
        *("ep10.pt", "e12.pt", "12epoch.pth", "epoch_12.pth", "ckpt_epoch_10.pth", "checkpoint_epoch_80.pth"),
        *("model-00001-of-00002.safetensors", "mp_rank_00_model_states.pt", "rank0.pt", "__0_0.distcp"),
        *("consolidated.00.pth", "zero_pp_rank_0_mp_rank_00_optim_states.pt", "model-v1.ckpt", "model_v2.pt"),
        *("tokens4B.pt", "model_0.25.pt", "lr_1e-3.pt", "val_loss=0.35.ckpt", "val_acc=92.ckpt", "seed_0.pt"),
        *("pythia-70m.pt", "llama-7b.pt", "fp16.pt", "alexnet-7be5be79.pth", "2024-01-31.pt", "20240131_120000.pt"),
        *("model_20240131.pt", "lr0.1.pt", "bs64.pt", "id_3.pt", "checkpoint-70m.pt", "checkpoint_3_2.pt", "1-2.pt"),
        *("ckpt_4_4000.pt", "checkpoint-100-200.pt", "max_steps=1000.pt", "num_steps_1000.pt", "total_steps-9.pt"),
        *("timesteps1000.pt", "train_loss_step=7.ckpt", "batch_size_64.pt", "batch64_lr3.pt", "tokens_4000.pt"),
        *("d41d8cd98f00b204e9800998ecf8427e.pt", "1700000000.pt", "epoch=3-batch=70.ckpt", "step_1000_of_5000.pt"),
        *("1000/model.pt", "run_1/model.pt", "exp2/last.ckpt", "epoch=3-step=abc.ckpt", "v1.5.ckpt", "300ep.pth"),
        *("step_1_000_000.pt", "step=1,000.pt", "1_000_steps.pt", "step_1e5.pt", "step_1_500.pt"),
        *("1000000_tokens.pt", "100M-tokens.pt", "5000samples.pt", "300_seconds.pt", "200_episodes.pt", "40 rounds.pt"),
        *("layer_3.pt", "expert_3.pt", "client3.pt", "round_3.pt", "episode-300.pt", "kimg000200.pt"),
        *("checkpoint.3-500.pt", "inner_steps_5.pt", "ddim_steps_50.pt"),
    ],
)
def test_a_step_that_is_not_in_the_name_is_asked_for(name: str) -> None:
    with pytest.raises(ValueError, match=rf"the step of {name} {UNKNOWN}"):
        steps(name)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("resnet50_100.pt", "resnet50_200.pt"), [100, 200]),
        (("vit_b16_seed3_1000.pt", "vit_b16_seed3_2000.pt"), [1000, 2000]),
        (("epoch1_400.pt", "epoch2_800.pt"), [400, 800]),
        (("0.pt", "00100.pt", "20000.pt"), [0, 100, 20000]),
        (("bert-12-100.pt", "bert-12-200.pt"), [100, 200]),
        (("400.pt", "800-v1.pt"), [400, 800]),
        (("run/1000", "run/2000"), [1000, 2000]),
        (("checkpoint-4/pytorch_model.bin", "step_9/pytorch_model.bin"), [4, 9]),
        (("checkpoint_1_30.pt", "checkpoint_2_60.pt"), [30, 60]),
        (("a/step2_10.pt", "a/step2_20.pt"), [2, 2]),
    ],
)
def test_names_of_one_pattern_tell_the_step_by_the_number_that_differs(names: Any, expected: list[int]) -> None:
    assert steps(*names) == expected


@pytest.mark.parametrize(
    "names",
    [
        ("model_100.pt", "net_200.pt"),
        ("1_100.pt", "2_200.pt"),
        ("run1/resnet50.pt", "run2/resnet50.pt"),
        ("resnet18-5c106cde.pth", "resnet18-f37072fd.pth"),
        ("model_100.pt", "model_final.pt"),
        ("100.pt", "step=200.pt"),
        ("0/model.pt", "1/model.pt"),
        ("step5/a.pt", "step5/b.pt"),
        ("seed1.pt", "seed2.pt"),
        ("step_1_000.pt", "step_2_000.pt"),
        ("step=1_step=2.pt", "step=1_step=3.pt"),
        ("step2_100.pt", "step2_200.pt"),
        ("ckpt_4_4000.pt", "ckpt_4_8000.pt"),
        ("model-00001-of-00002.bin", "model-00002-of-00002.bin"),
    ],
)
def test_bare_numbers_of_other_patterns_are_no_steps(names: Any) -> None:
    with pytest.raises(ValueError, match=UNKNOWN):
        steps(*names)


def test_a_bare_number_beside_steps_of_other_kinds_is_named_in_the_message() -> None:
    contents = [content("100.pt"), content("200.pt", {"step": 5})]
    with pytest.raises(
        ValueError, match=r"the step of 100.pt .* The number 100 in its name has no such word before it"
    ):
        find_steps(contents)


def test_a_directory_of_several_checkpoints_does_not_tell_their_steps() -> None:
    assert steps("step2_tuned/100.pt", "step2_tuned/200.pt") == [100, 200]
    assert steps("step2_tuned/a1/iter5.pt", "step2_tuned/a2/iter6.pt") == [5, 6]


def test_the_branch_tells_the_step() -> None:
    path = Path("models--a--b/snapshots/0123456789abcdef0123456789abcdef01234567")
    (dated,) = find_steps([Content(path, {}, (), labels=("main", "step143000"))])
    assert (dated.step, dated.source) == (143000, "the branch step143000")
    with pytest.raises(ValueError, match=UNKNOWN):
        find_steps([Content(path, {}, (), labels=("main", "step1", "step2"))])


def number(value: Any) -> InMemory:
    return InMemory(torch.tensor(value))


@pytest.mark.parametrize(
    ("everything", "step"),
    [
        ({"global_step": 7, "step": 3}, 7),
        ({"step": 7}, 7),
        ({"global_steps": 7, "global_samples": 70, "iteration": 8}, 7),
        ({"iter_num": 7, "best_val_loss": 1.0}, 7),
        ({"iter_num": 28, "step_count": 7}, 7),
        ({"iteration": 7}, 7),
        ({"iter": 7}, 7),
        ({"num_updates": 7}, 7),
        ({"update": 7}, 7),
        ({"n_iter": 7}, 7),
        ({"it": 7, "epoch": 2}, 7),
        ({"meta": {"iter": 7, "epoch": 1}}, 7),
        ({"optimizer_history": [{"num_updates": 3}, {"num_updates": 7}]}, 7),
        ({"extra_state": {"num_updates": 7}}, 7),
        ({"train_state": {"step": 7}}, 7),
        ({"trainer": {"iteration": 7, "epoch_length": 30, "max_epochs": 4}}, 7),
        ({"state": {"timestamp": {"iteration": 0, "epoch": 0, "batch": 7, "sample": 70}}}, 7),
        ({"state": {"timestamp": {"Timestamp": {"epoch": 0, "batch": 7}}}}, 7),
        ({"step": np.int64(7)}, 7),
        ({"step": np.float32(7)}, 7),
        ({"step": np.array(7)}, 7),
        ({"step": 7.0}, 7),
        ({"step": number(7)}, 7),
        ({"step": number([7])}, 7),
        ({"step": number(7.0)}, 7),
        ({"step": 7, "iteration": 7}, 7),
        ({"step": "many", "iter": [1, 2], "iteration": 7}, 7),
        ({"step": 2**53}, 2**53),
        ({"step": 7, "train_steps": 9000}, 7),
        ({"step": number([1, 2]), "update": number(1j), "iter": 7}, 7),
    ],
)
def test_the_step_inside_goes_before_the_name(everything: dict[str, Any], step: int) -> None:
    found, source = inside(everything, "step=400.pt")
    assert found == step
    assert source.endswith("in the file (the number in its name is 400)")


def test_the_step_of_a_file_beside_is_one_inside() -> None:
    assert inside({}, beside={"global_step": 7}) == (7, "global_step in trainer_state.json")
    beside = {"trainer_state.json": {"global_step": 7, "max_steps": 99}}
    assert inside({}, beside=beside) == (7, "trainer_state.json: global_step in the file")
    assert inside({"global_step": 6}, beside=beside)[0] == 6


def test_a_count_that_may_be_a_planned_number_counts_if_it_differs_between_the_files() -> None:
    def found(name: str, *everything: dict[str, Any]) -> list[int]:
        return [dated.step for dated in find_steps([content(name.format(i), e) for i, e in enumerate(everything)])]

    saved = [{"steps": 9000, "train_step": number(10)}, {"steps": 9000, "train_step": number(20)}]
    assert found("ckpt_{}.pt", *saved) == [10, 20]
    assert found("step={}.pt", *saved) == [0, 1]
    assert found("ckpt_{}.pt", saved[0], saved[0]) == [0, 1]
    assert found("ckpt_{}.pt", saved[0], {}) == [0, 1]
    assert found("ckpt_{}.pt", {"steps": 0.5}, {"steps": "many"}) == [0, 1]


def test_the_metadata_of_safetensors_tell_the_step_as_text() -> None:
    for metadata in ({"step": "7", "format": "pt"}, {"ss_steps": "7", "ss_epoch": "2", "ss_max_train_steps": "99"}):
        step, source = inside({}, "lora-000002.safetensors", beside={"__metadata__": metadata})
        assert step == 7
        assert source.startswith("__metadata__: ")
    with pytest.raises(ValueError, match=r"lora-000002.safetensors is not known: 2 in its name is the epoch"):
        inside({}, "lora-000002.safetensors", beside={"__metadata__": {"ss_epoch": "2"}})
    assert inside({}, "step=3.safetensors", beside={"__metadata__": {"step": "many", "iter": "1.5"}})[0] == 3


@pytest.mark.parametrize(
    ("everything", "error", "message"),
    [
        ({"step": -5}, ValueError, r"step=-5 of model.pt must be a number of steps from 0 to 2\*\*53: give steps="),
        ({"global_step": 2**53 + 1}, ValueError, "global_step=9007199254740993 of model.pt must be"),
        ({"step": 10**5000}, ValueError, r"step=\(more than 10\*\*30\) of model.pt must be"),
        ({"step": -(10**5000)}, ValueError, r"step=-\(more than 10\*\*30\) of model.pt must be"),
        ({"step": 2.5}, ValueError, "step=2.5 of model.pt is not an integer number of steps: give steps="),
        ({"step": float("nan")}, ValueError, "step=nan of model.pt is not an integer"),
        ({"step": float("inf")}, ValueError, "step=inf of model.pt is not an integer"),
        ({"global_step": True}, ValueError, "global_step=True of model.pt is not an integer"),
        ({"meta": {"iter": number(0.5)}}, ValueError, "meta.iter=0.5 of model.pt is not an integer"),
        ({"step": np.bool_(True)}, ValueError, "step=True of model.pt is not an integer"),
        ({"step": 17, "iteration": 3017}, ValueError, r"is one of 17 \(step in the file\), 3017 \(iteration in"),
    ],
)
def test_a_value_that_is_no_step_is_refused_in_words(
    everything: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        inside(everything)
    assert find_steps([content("model.pt", everything)], [3], force=True)[0].step == 3


def test_a_negative_step_in_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"step=-5 of step=-5.pt must be a number of steps"):
        steps("step=-5.pt")


@pytest.mark.parametrize("epoch", [3, 4, 5, 4.0, np.int64(4)])
@pytest.mark.parametrize("name", ["model_4.pth", "checkpoint-4.pth", "checkpoint0004.pth", "checkpoint-4/model.pt"])
def test_the_epoch_inside_is_no_step_in_the_name(name: str, epoch: Any) -> None:
    contents = [content(name, {"epoch": epoch})]
    with pytest.raises(ValueError, match=rf"the step of {name} is not known: 4 in its name is the epoch"):
        find_steps(contents)
    assert find_steps(contents, [400])[0].step == 400


def test_a_number_far_from_the_epoch_inside_is_a_step() -> None:
    files = [content(f"model_{n}.pth", {"epoch": e}) for n, e in ((0, 0), (1, 0), (1000, 3), (2000, 6))]
    assert [dated.step for dated in find_steps(files)] == [0, 1, 1000, 2000]
    assert inside({"epoch": 4}, "step=4.pt")[0] == 4
    train = {"extra_state": {"train_iterator": {"epoch": 4}}}
    with pytest.raises(ValueError, match=r"checkpoint4.pt is not known: 4 in its name is the epoch"):
        inside(train, "checkpoint4.pt")
    assert inside(train | {"optimizer_history": [{"num_updates": 4000}]}, "checkpoint4.pt")[0] == 4000


@pytest.mark.parametrize("name", ["step={}.pt", "{}.pt", "checkpoint-{}/model.pt"])
def test_one_step_inside_and_several_in_the_names_is_refused(name: str) -> None:
    files = [content(name.format(n), {"step": 0}) for n in (100, 200)]
    with pytest.raises(ValueError, match=r"100.* and .*200.* say 0 and 0 inside, and 100 and 200 in their names"):
        find_steps(files)


def test_steps_inside_that_go_against_the_names_are_refused() -> None:
    files = [content(f"step={n}.pt", {"step": n % 1000}) for n in (4017, 8003)]
    with pytest.raises(ValueError, match=r"say 17 and 3 inside, and 4017 and 8003 in their names"):
        find_steps(files)


def test_the_best_and_the_last_checkpoint_may_be_of_one_step() -> None:
    names = ["last.ckpt", "epoch=3-step=400.ckpt", "epoch=3-step=400-v1.ckpt", "best-val_loss=0.3.ckpt"]
    assert [dated.step for dated in find_steps([content(name, {"global_step": 400}) for name in names])] == [400] * 4
    fairseq = [
        content(name, {"optimizer_history": [{"num_updates": 40}]}) for name in ("checkpoint4.pt", "checkpoint_4_40.pt")
    ]
    assert [dated.step for dated in find_steps(fairseq)] == [40, 40]


def test_given_steps_must_not_contradict_the_files_unless_forced() -> None:
    assert steps("a.pt", "100.pt", given=[3, np.int64(4)]) == [3, 4]
    assert find_steps([content("a.pt")], [3])[0].source == "given"
    with pytest.raises(
        ValueError, match=r"step=7.pt: the given step is 8, but it is 7 by 'step' .*force_steps=True if"
    ):
        steps("step=7.pt", given=[8])
    with pytest.raises(ValueError, match=r"the given step is 400, but it is 7 by global_step in the file"):
        find_steps([content("step=400.pt", {"global_step": 7})], [400])
    with pytest.raises(ValueError, match=r"the given step is 8, but it is 7 by 'iter' in its directory's name"):
        steps("iter_7/a.pt", given=[8])
    assert steps("step=7.pt", given=[8], force=True) == [8]


def test_a_step_may_be_a_text_inside() -> None:
    contents = [content(f"ckpt_{i}.pt", {"iteration": f"{step}"}) for i, step in enumerate((1, 10))]
    assert [dated.step for dated in find_steps(contents)] == [1, 10]


def test_given_steps_must_not_contradict_bare_numbers() -> None:
    with pytest.raises(ValueError, match=r"m_200.pt: the given step is 300, but it is 200 by the number in its name"):
        steps("m_100.pt", "m_200.pt", given=[100, 300])
    assert steps("m_100.pt", "m_200.pt", given=[100, 300], force=True) == [100, 300]
    # Numbers that count one by one may be the numbers of the files.
    assert steps("m_0.pt", "m_1.pt", "m_2.pt", given=[0, 1, 10]) == [0, 1, 10]
    epochs = [content(f"m_{n}.pt", {"epoch": n}) for n in (10, 20)]
    assert [dated.step for dated in find_steps(epochs, [100, 200])] == [100, 200]


@pytest.mark.parametrize("name", ["epoch_{}.pt", "run/epoch{}/model.pt", "v{}/seed_3/a.pt"])
def test_given_steps_must_have_the_order_of_the_names(name: str) -> None:
    """List the files as a shell does: ``m_1.pt m_10.pt m_2.pt``."""
    as_listed = [name.format(n) for n in (1, 10, 2)]
    with pytest.raises(ValueError, match=r"2.* and .*10.*: the given steps are 1000 and 200, but the numbers in the"):
        steps(*as_listed, given=[100, 200, 1000])
    assert steps(*as_listed, given=[100, 200, 1000], force=True) == [100, 200, 1000]
    assert steps(*as_listed, given=[100, 1000, 200]) == [100, 1000, 200]
    with pytest.raises(ValueError, match=r"m_9.pt and m_10.pt: the given steps are 300 and 100"):
        steps("m_10.pt", "m_11.pt", "m_9.pt", given=[100, 200, 300])


def test_numbers_that_fall_are_no_order() -> None:
    assert steps("m-0.50.pt", "m-0.40.pt", given=[10, 20]) == [10, 20]
    assert steps("a3.pt", "b2.pt", given=[10, 20]) == [10, 20]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([0, -1], ValueError, r"steps\[1\]=-1 of b.pt must be a number of steps from 0"),
        ([0, 2.5], TypeError, r"steps\[1\]=2.5 of b.pt is not an integer"),
        ([0, True], TypeError, r"steps\[1\]=True"),
        ([0], ValueError, r"steps=\[0\] are 1 for 2 files: give one for each of a.pt, b.pt"),
        (3, TypeError, "steps=3 is not a list of integers"),
        ("12", TypeError, "steps='12' is not a list of integers"),
    ],
)
def test_given_steps_are_checked(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        steps("a.pt", "b.pt", given=given, force=True)


def test_the_source_is_said_in_words() -> None:
    sources = [
        dated.source
        for dated in find_steps(
            [content("a.pt", {"step": 1}), content("step=2.pt"), content("checkpoint-3/b.pt"), content("4_steps.pt")]
        )
    ]
    assert sources == [
        "step in the file",
        "'step' in its name",
        "'checkpoint' in its directory's name",
        "'step' in its name",
    ]
    assert find_steps([content("5.pt"), content("6.pt")])[0].source == "the number in its name"


def doubts(*files: tuple[str, dict[str, Any]], **options: Any) -> list[str]:
    return doubts_of_steps(find_steps([content(name, everything, **options) for name, everything in files]))


def test_a_step_inside_that_contradicts_the_name_is_a_doubt() -> None:
    vits = [(f"G_{n}.pth", {"iteration": epoch}) for epoch, n in enumerate((500, 1000, 1500), 1)]
    (doubt,) = doubts(*vits)
    assert doubt.startswith("the step inside the files is not the number in their names (1 and 500, 2 and 1000, 3 and")
    assert len(doubts(("step=400.pt", {"step": 800}))) == 1
    assert (
        doubts(("step=399.pt", {"step": 400}), ("model_4.pt", {"step": 4000}), ("checkpoint-4.pt", {"step": 9})) == []
    )


def test_steps_that_count_one_by_one_may_count_checkpoints_and_are_a_doubt() -> None:
    (doubt,) = doubts(*((f"checkpoint_{n}/model.safetensors", {}) for n in (3, 1, 2)))
    assert doubt.startswith("the steps 1, 2, 3 are numbers in names, and count one by one: ")
    assert len(doubts(("model_1.pt", {}), ("model_2.pt", {}))) == 1
    branches = [Content(Path(f"{n}"), {}, (), labels=(f"ckpt_{n:03d}",)) for n in (0, 1)]
    assert len(doubts_of_steps(find_steps(branches))) == 1
    for names in (("step_0.pt", "step_1.pt"), ("checkpoint-1.pt", "checkpoint-3.pt"), ("checkpoint-1.pt",)):
        assert doubts(*((name, {}) for name in names)) == []


def test_hostile_names_give_steps_or_a_sentence_in_the_end() -> None:
    for part in ("1", "1e", "1-", "_1", "a1", "0-0", "step", "1.", "a=", "20-", "e=1", "step_"):
        for name in (part * (250 // len(part)), part * (250 // len(part)) + "!"):
            with contextlib.suppress(ValueError):
                assert all(0 <= step <= 2**53 for step in steps(f"{name}.pt", f"{name}1.pt"))

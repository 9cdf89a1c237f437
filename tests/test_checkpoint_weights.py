"""Find the weights among the tensors of a checkpoint, and check that the checkpoints agree."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_glassy.checkpoints.content import Content
from lightning_glassy.checkpoints.stored import InMemory
from lightning_glassy.checkpoints.weights import CONSTANT, Agreed, Weights, agree, choose, same_weights
from tests.helpers import SmallNet, data, quiet_trainer


class Counted(InMemory):
    """Counts the coordinates that are read."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor)
        self.n_read = 0

    def read(self, start: int, out: Tensor) -> None:
        self.n_read += len(out)
        super().read(start, out)


def stored(value: Any) -> Any:
    """Replace each tensor in a nested value by a stored tensor."""
    if isinstance(value, Tensor):
        return Counted(value)
    if isinstance(value, dict):
        return {name: stored(entry) for name, entry in value.items()}
    return [stored(entry) for entry in value] if isinstance(value, list) else value


def content(everything: dict[str, Any], name: str = "step=1.pt") -> Content:
    return Content(Path(name), stored(everything), (Path(name),))


def chosen(*files: dict[str, Any], key: str | None = None) -> list[Weights]:
    return [choose(content(file, f"step={i}.pt"), key) for i, file in enumerate(files)]


def agreed(*files: dict[str, Any], **options: Any) -> Agreed:
    return agree(chosen(*files), **options)


def net(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "net.weight": torch.randn(30, 20, generator=generator),
        "net.bias": torch.randn(30, generator=generator),
        "head.weight": torch.randn(5, 30, generator=generator),
    }


def values(weights: dict[str, Any]) -> dict[str, Tensor]:
    result = {}
    for name, entry in weights.items():
        flat = torch.empty(math.prod(entry.shape), dtype=entry.dtype)
        entry.read(0, flat)
        result[name] = flat.view(entry.shape)
    return result


def same(a: dict[str, Any], b: dict[str, Tensor]) -> bool:
    ours = values(a)
    return ours.keys() == b.keys() and all(torch.equal(ours[name], b[name]) for name in b)


# ---------------------------------------------------------------------- where the weights are stored

ADAM = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    ("everything", "key"),
    [
        (net(1), ""),
        ({f"_orig_mod.{name}": tensor for name, tensor in net(1).items()}, ""),
        ({"state_dict": net(1), "epoch": 3, "optimizer": {"state": {0: {"m": torch.ones(2)}}}}, "state_dict"),
        ({"model": net(1), "rng": torch.ones(3, dtype=torch.uint8), "best": torch.tensor(0.5)}, "model"),
        ({"model": net(1), "optimizer": {"net.weight": {"exp_avg": torch.ones(2)}}}, "model"),
        ({"model": net(1), "optimizer": {"exp_avg": torch.ones(2)}, "opt_g": ADAM, "lr_scheduler": {}}, "model"),
        ({"model": {"state_dict": net(1)}}, "model.state_dict"),
        ({"trainer": {"model": net(1), "optimizer": ADAM}, "epoch": 3}, "trainer.model"),
        (
            {"state": {"model": net(1), "optimizers": {"Adam": ADAM}, "timestamp": {"batch": 3}}, "rng": []},
            "state.model",
        ),
        ({"student": net(1) | {"norm._extra_state": None}}, "student"),
        ({"model": net(1), "metrics": {"loss": torch.tensor(0.5)}, "scaler": {"scale": torch.ones(1)}}, "model"),
        ({"module": net(1), "buffer_names": ["a"], "optimizer": None, "global_steps": 3}, "module"),
        ({"model": net(1), "extra_state": {"ema": net(2)}}, "model"),
        ({"pytorch-lightning_version": "2.5", "state_dict": None, "module": net(1), "global_step": 3}, "module"),
        ({"pytorch-lightning_version": "2.5", "module": net(1), "optimizer": None}, "module"),
        (
            {"pytorch-lightning_version": "2.5", "state_dict": net(1) | {"m.values": [torch.ones(2)]}, "ema": net(9)},
            "state_dict",
        ),
    ],
)
def test_the_weights_are_found_where_they_are(everything: dict[str, Any], key: str) -> None:
    weights = choose(content(everything))
    assert weights.key == key
    assert same(weights.tensors, net(1))
    assert not weights.averages
    assert not weights.doubts


@pytest.mark.parametrize(
    ("everything", "key"),
    [
        ({"a": {"b": net(1)}, "c": net(2)}, "a.b"),
        ({"a.b": net(1), "a": {"c": net(2)}}, "a.b"),
        ({"a": {"b.c": {"d": net(1)}}}, "a.b.c.d"),
        ({"a": {"b": net(1)}}, "a"),
        ({"models": [net(2), net(1)]}, "models.1"),
        ({"nets": {0: net(1), 1: net(2)}}, "nets.0"),
        ({"optimizer": {"averages": net(1)}, "model": net(2)}, "optimizer.averages"),
        ({"pytorch-lightning_version": "2.5", "state_dict": net(2), "mine": net(1)}, "mine"),
    ],
)
def test_a_key_with_dots_leads_into_nested_dicts(everything: dict[str, Any], key: str) -> None:
    assert same(choose(content(everything), key).tensors, net(1))


def test_a_tree_of_modules_is_one_state_dict_if_the_key_names_it() -> None:
    tree = {"embed": {"words": {"weight": torch.ones(2)}}, "encoder": {"0.weight": torch.ones(3)}}
    everything = {"model": {"language_model": tree}, "iteration": 3}
    with pytest.raises(ValueError, match=r"has several state_dicts: choose with key=..., one of 'model', 'model.lang"):
        choose(content(everything))
    names = ["language_model.embed.words.weight", "language_model.encoder.0.weight"]
    assert list(choose(content(everything), "model").tensors) == names
    megatron = choose(content(everything | {"checkpoint_version": 3.0}))
    assert (megatron.key, list(megatron.tensors)) == ("model", names)


def test_tensors_at_several_depths_are_one_state_dict() -> None:
    tree = {"codebook": torch.ones(3), "encoder": net(1), "n": 3, "optimizer": {"m": torch.ones(2)}}
    names = {"codebook", *(f"encoder.{name}" for name in net(1))}
    assert set(choose(content({"model": tree})).tensors) == names
    assert set(choose(content({"model": tree}), "model").tensors) == names
    weights = choose(content(tree))
    assert same(weights.tensors, net(1))
    assert weights.doubts == ["the tensors 'codebook' beside 'encoder' are not measured"]


@pytest.mark.parametrize(
    ("everything", "key", "message"),
    [
        (
            {"model": net(1), "ema": net(2)},
            None,
            "step=1.pt has several state_dicts: choose with key=..., one of 'model', 'ema'",
        ),
        ({"g": net(1), "d": net(2), "g_ema": net(3)}, None, "one of 'g', 'd', 'g_ema'"),
        ({"state_dict": net(1), "ema_state_dict": net(2)}, None, "one of 'state_dict', 'ema_state_dict'"),
        ({"ema": net(1), "trainer": {"model": net(2)}}, None, "one of 'trainer', 'ema', 'trainer.model'"),
        (net(1), "net", r"key='net' is no state_dict in step=1.pt; there are none"),
        ({"a": {"b": net(1)}, "c": net(2)}, "b", "key='b' is no state_dict in step=1.pt; there are 'a.b', 'c'"),
        ({"a": {"b": net(1)}}, "", "key='' is no state_dict"),
        (
            {"a": {"model": net(1), "ema": net(2)}},
            "a",
            "key='a' is no state_dict in step=1.pt; there are 'a.model', 'a.ema'",
        ),
        ({"pytorch-lightning_version": "2.5"}, None, "key='state_dict' is no state_dict"),
        ({}, None, r"has no state_dict, only nothing: save model.state_dict\(\)"),
        ({"epoch": 3, "optimizer": ADAM}, None, "has no state_dict, only 'epoch', 'optimizer'"),
        ({"w": torch.ones(3, dtype=torch.int8)}, None, "has no state_dict, only 'w'"),
        ({f"k{i}": i for i in range(9)}, None, r"only 'k0', .*'k7' and 1 more"),
        ({"bn.running_mean": torch.ones(3)}, None, "there is no floating-point tensor"),
        ({"a": {"n": torch.tensor(3)}}, "a", "there is no floating-point tensor"),
        ({"a.w": torch.ones(3), "a._orig_mod.w": torch.ones(3)}, None, "two tensors are called 'a.w' without"),
    ],
)
def test_no_weights_or_several_are_refused(everything: dict[str, Any], key: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        choose(content(everything), key)
    assert "step=1.pt" in str(caught.value)


def test_tensors_with_numbers_as_names_are_weights() -> None:
    weights = choose(content({0: torch.ones(3), "b": torch.ones(2), 10: torch.ones(4)}))
    assert list(weights.tensors) == ["0", "b", "10"]
    assert not weights.left_out


def test_buffers_and_integers_are_left_out_and_counted() -> None:
    extra = {"bn.running_mean": torch.ones(2), "running_var": torch.ones(2), "bn.num_batches_tracked": torch.tensor(1)}
    weights = choose(content(net(1) | extra | {"mask": torch.ones(3, dtype=torch.bool), "_extra_state": None}))
    assert same(weights.tensors, net(1))
    assert weights.n_not_floating == 3
    assert weights.left_out == {
        "*.running_mean": 1,
        "*.running_var": 1,
        "*.num_batches_tracked": 1,
        "integer, boolean or quantised": 1,
        "not a tensor": 1,
    }


@pytest.mark.parametrize("rate", [torch.ones(2), torch.tensor(1j), 10**400, [10**5000], None, "fast", [0.1], math.nan])
def test_a_learning_rate_that_is_no_number_is_left_out(rate: Any) -> None:
    groups = [{"params": [0], "lr": rate, "momentum": 0.9}, {"params": [1], "lr": torch.tensor(0.25)}]
    lightning = {
        "pytorch-lightning_version": "2.5",
        "state_dict": net(1),
        "optimizer_states": [{"param_groups": groups}],
    }
    weights = choose(content(lightning))
    assert weights.learning_rates == {"learning_rate_0_1": 0.25}
    assert weights.optimizers[0]["parameter_groups"][0]["momentum"] == 0.9
    assert weights.lightning_version == "2.5"
    json.dumps(weights.optimizers)


# ---------------------------------------------------------------------- averages


class TrainedWeights(Callback):
    """Remembers the trained weights at each checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.weights: dict[Path, dict[str, Tensor]] = {}

    def save(self, trainer: Any, module: Any, name: str) -> None:
        self.weights[self.folder / name] = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        trainer.save_checkpoint(self.folder / name)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.save(trainer, pl_module, f"{trainer.global_step}.ckpt")


def loaded(path: Path, key: str | None = None) -> Weights:
    return choose(content(torch.load(path, weights_only=True), str(path)), key)


@pytest.mark.parametrize("order", [1, -1])
def test_under_the_averages_of_lightning_the_trained_weights_are_measured(tmp_path: Path, order: int) -> None:
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")
    saver = TrainedWeights(tmp_path)
    trainer = quiet_trainer(tmp_path, max_steps=6, callbacks=[saver, averaging.EMAWeightAveraging(decay=0.9)][::order])
    module = SmallNet()
    trainer.fit(module, data())
    assert len(saver.weights) == 6
    weights = [loaded(path) for path in saver.weights]
    for ours, trained in zip(weights, saver.weights.values(), strict=True):
        assert same(ours.tensors, {name: trained[name] for name in ours.tensors})
        assert ours.key == "current_model_state"
        assert ours.doubts == [
            "the trained weights ('current_model_state') are measured, and their averages ('state_dict') are not"
        ]
    path = next(iter(saver.weights))
    named, averages = (loaded(path, key) for key in ("current_model_state", "state_dict"))
    assert (named.doubts, named.averages) == (weights[0].doubts, False)
    assert averages.averages
    # After the training, Lightning puts the averages into the model.
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    end = loaded(tmp_path / "end.ckpt")
    assert end.averages
    assert "averages over the training (Lightning's WeightAveraging puts them into the model when" in end.doubts[0]
    with pytest.raises(
        ValueError, match=r"the weights in .*end.ckpt are averages over the training, and those in .*1.ckpt are not"
    ):
        agree([*weights, end])
    # A trainer that did not train saves the averages alone.
    torch.save(
        {
            k: v
            for k, v in torch.load(tmp_path / "end.ckpt").items()
            if k not in ("current_model_state", "averaging_state")
        },
        tmp_path / "alone.ckpt",
    )
    assert loaded(tmp_path / "alone.ckpt").averages


def test_trained_weights_beside_other_values_go_before_the_averages_too() -> None:
    trained = net(1) | {"metric.values": [torch.ones(2)]}
    weights = choose(
        content({"pytorch-lightning_version": "2.6", "state_dict": net(2), "current_model_state": trained})
    )
    assert same(weights.tensors, net(1))


@pytest.mark.parametrize(
    ("everything", "name", "why"),
    [
        ({"ema": net(1)}, "1.pt", "the key 'ema'"),
        ({"ema_state_dict": net(1), "step": 3}, "1.pt", "the key 'ema_state_dict'"),
        ({"model": {"shadow_params": net(1)}}, "1.pt", "the key 'model.shadow_params'"),
        (
            {"n_averaged": torch.tensor(3)} | {f"module.{k}": v for k, v in net(1).items()},
            "1.pt",
            "torch's AveragedModel",
        ),
        (net(1), "ema_0.9999_010000.pt", "by the name of the file"),
        (net(1), "step=3-EMA.ckpt", "by the name of the file"),
        (net(1), "averaged_3.pt", "by the name of the file"),
        (net(1), "checkpoint-500/unet_ema/diffusion_pytorch_model.safetensors", "by the name of the file"),
        (
            {"pytorch-lightning_version": "2.6", "state_dict": net(1), "callbacks": {"EMAWeightAveraging": {}}},
            "1.pt",
            "after the training",
        ),
    ],
)
def test_averages_are_measured_with_a_doubt(everything: dict[str, Any], name: str, why: str) -> None:
    weights = choose(content(everything, name))
    assert weights.averages
    (doubt,) = weights.doubts
    assert doubt.startswith("the weights are averages over the training (")
    assert why in doubt
    assert doubt.endswith("averages move less than the trained weights")
    assert same(dict(zip(net(1), weights.tensors.values(), strict=True)), net(1))


def test_a_callback_that_may_average_is_a_doubt() -> None:
    def doubts(callback: str) -> list[str]:
        return choose(
            content({"pytorch-lightning_version": "2.6", "state_dict": net(1), "callbacks": {callback: {}}})
        ).doubts

    assert doubts("EMACallback{'decay': 0.9}")[0].startswith("the weights may be averages")
    assert doubts("EMA")[0].startswith("the weights may be averages over the training (there is the callback EMA)")
    assert not doubts("StochasticWeightAveraging")
    assert not doubts("REMAX")
    assert not doubts("ModelCheckpoint{'monitor': 'schema_average'}")


@pytest.mark.parametrize(
    "name",
    [
        "SCHEMA_1.pt",
        "cinema_1.pt",
        "gemma-it_1.pt",
        "avg_loss=0.3.ckpt",
        "run_ema_0.9/1.pt",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "v1-5-no-ema.ckpt",
    ],
)
def test_names_that_only_look_like_averages_are_none(name: str) -> None:
    assert not choose(content(net(1), name)).averages


@pytest.mark.parametrize(
    ("everything", "key", "other"),
    [
        ({"state_dict": net(1), "state_dict_ema": net(2), "arch": "a"}, "state_dict", "state_dict_ema"),
        ({"model": net(1), "model_ema": net(2), "optimizer": ADAM}, "model", "model_ema"),
        ({"model": net(1), "ema_model": net(2)}, "model", "ema_model"),
        ({"params": net(1), "params_ema": net(2)}, "params", "params_ema"),
        (
            {"ema_state_dict": net(1), "state_dict": net(2), "meta": {"mmengine_version": "0.9"}},
            "ema_state_dict",
            "state_dict",
        ),
    ],
)
def test_trained_weights_go_before_averages_that_stand_beside_them(
    everything: dict[str, Any], key: str, other: str
) -> None:
    weights = choose(content(everything))
    assert same(weights.tensors, net(1))
    assert not weights.averages
    assert weights.doubts == [f"the trained weights ({key!r}) are measured, and their averages ({other!r}) are not"]


@pytest.mark.parametrize("prefix", ["model_ema.", "ema_model.module.", "module.ema."])
def test_averages_within_a_state_dict_are_left_out_unless_included(prefix: str) -> None:
    def both(step: int) -> dict[str, Tensor]:
        return {f"module.x.{k}": v for k, v in net(step).items()} | {prefix + k: v for k, v in net(step + 9).items()}

    result = agreed(both(0), both(1))
    assert len(result.tensors[0]) == 3
    assert all(".x." in f".{name}" for name in result.tensors[0])
    assert "beside the trained weights are left out" in result.doubts[0]
    assert sum(result.left_out.values()) == 3
    assert len(agreed(both(0), both(1), include="*").tensors[0]) == 6


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("", "module."),
        ("module.", ""),
        ("_orig_mod.", ""),
        ("", "model."),
        ("model.", "module.model."),
        ("", "_forward_module."),
        ("", "module._orig_mod."),
        ("_orig_mod.module.", "model."),
        ("_forward_module.model.", "_forward_module."),
    ],
)
def test_prefixes_of_some_files_are_dropped(first: str, second: str) -> None:
    files = [{prefix + name: w for name, w in net(i).items()} for i, prefix in enumerate((first, second, first))]
    result = agreed(*files)
    assert all(same(tensors, net(i)) for i, tensors in enumerate(result.tensors))
    assert not result.doubts


def test_names_that_agree_are_left_alone() -> None:
    files = [{f"module.model.{name}": w for name, w in net(i).items()} for i in (0, 1)]
    assert list(agreed(*files).tensors[0]) == list(files[0])


def test_a_prefix_and_a_tied_name_that_is_missing_are_found_together() -> None:
    a, b = net(0), {f"model.{name}": w for name, w in net(1).items()}
    result = agreed(a | {"out.weight": a["head.weight"].clone()}, b)
    assert result.aliases == {"head.weight": ("out.weight",)}
    assert same(result.tensors[1], net(1))


def test_prefixes_are_dropped_though_a_head_has_none() -> None:
    def with_head(i: int) -> dict[str, Tensor]:
        state = {f"model.{name}": w for name, w in net(i).items()}
        return state | {"out.weight": state["model.head.weight"].clone()}

    result = agreed(net(0), with_head(1))
    assert result.aliases == {"head.weight": ("out.weight",)}
    assert same(result.tensors[1], net(1))
    untied = with_head(1) | {"loss.scale": torch.ones(1)}
    assert same(agreed(net(0), untied, exclude="loss.*").tensors[1], net(1))


def test_a_prefix_of_all_files_stays_though_a_head_is_missing_in_some() -> None:
    files = [{f"model.{name}": w for name, w in net(i).items()} for i in (0, 1)]
    files[0]["out.weight"] = files[0]["model.head.weight"].clone()
    assert list(agreed(*files).tensors[0]) == list(files[1])


def test_wrappers_in_the_middle_of_a_name_are_dropped() -> None:
    result = agreed(net(0), {name.replace(".", "._orig_mod."): w for name, w in net(1).items()})
    assert same(result.tensors[1], net(1))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            net(1) | {"head.weight": torch.ones(3, 30)},
            r"the tensor 'head.weight' is \(5, 30\) torch.float32 in step=0.pt and \(3, 30\) torch.float32 in step=1.pt"
            r": measure checkpoints of one model and one precision, or others that have more in common: only 80.8 % of "
            r"the coordinates of step=0.pt and 87.5 % of those of step=1.pt are$",
        ),
        (
            net(1) | {"head.weight": torch.ones(5, 30).half()},
            r"and \(5, 30\) torch.float16 in step=1.pt: .*one precision, or",
        ),
        (net(1) | {"net.bias": torch.ones(31)}, r"one precision, or leave it out with exclude='net.bias'"),
        (
            net(1) | {"tail.weight": torch.ones(5)},
            r"the tensor 'tail.weight' is in step=1.pt and not in step=0.pt: measure checkpoints of one model, or "
            r"leave it out with exclude='tail.weight', or name the common tensors with include=",
        ),
        (
            {n: w for n, w in net(1).items() if n != "net.bias"},
            r"'net.bias' is in step=0.pt and not in step=1.pt.*leave it out",
        ),
        (
            {"net.weight": net(1)["net.weight"]},
            r"'net.bias' is in step=0.pt and not in step=1.pt: measure checkpoints of one model, or others that have "
            r"more in common: only 76.9 % of the coordinates of step=0.pt and 100 % of those of step=1.pt are$",
        ),
        (
            {f"transformer.{name}": w for name, w in net(1).items()},
            r"only 0 % .* are. Or do the names differ, as 'net.weight' and 'transformer.net.weight'\?$",
        ),
    ],
)
def test_advice_never_costs_most_of_the_model(second: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agreed(net(0), second)


def test_a_part_that_differs_can_be_left_out() -> None:
    files = [net(0), net(1) | {"head.weight": torch.ones(3, 30)}, net(2) | {"tail.weight": torch.ones(9)}]
    assert list(agreed(*files, exclude=["head.*", "tail.*"]).tensors[2]) == ["net.weight", "net.bias"]
    assert list(agreed(*files, include="net.*").tensors[1]) == ["net.weight", "net.bias"]
    with pytest.raises(
        ValueError, match=r"step=0.pt: include: the pattern 'x.\*' matches no trainable parameter. .*net.bias"
    ):
        agreed(*files, include="x.*")
    with pytest.raises(ValueError, match=r"step=0.pt: there is no trainable parameter to track \(all are excluded"):
        agreed(*files, exclude="*")


def test_a_tensor_that_cannot_be_read_is_refused_if_it_is_measured() -> None:
    files = chosen(net(0), {f"module.{name}": w for name, w in net(1).items()})
    files[1].tensors["module.head.weight"].problem = "is a DTensor"  # type: ignore[misc]
    with pytest.raises(
        ValueError, match=r"step=1.pt: the tensor 'head.weight' is a DTensor: only plain .*state_dict_type="
    ):
        agree(files)
    assert list(agree(files, exclude="head.*").tensors[1]) == ["net.weight", "net.bias"]
    few = chosen(net(0), net(1))
    few[0].tensors["net.bias"].problem = "is expanded"  # type: ignore[misc]
    with pytest.raises(
        ValueError, match=r"step=0.pt: the tensor 'net.bias' is expanded: .* leave it out with exclude='net"
    ):
        agree(few)


# ---------------------------------------------------------------------- tied tensors and constants


def test_tied_tensors_count_once() -> None:
    def tied(step: int, apart: bool) -> dict[str, Tensor]:
        state = net(step)
        head = state["head.weight"]
        return {"embed.weight": head.clone() if apart else head} | state

    for apart in ((False, False), (False, True), (True, False), (True, True)):
        result = agreed(*(tied(step, a) for step, a in enumerate(apart)))
        assert list(result.tensors[0]) == ["embed.weight", "net.weight", "net.bias"]
        assert result.aliases == {"embed.weight": ("head.weight",)}
        assert result.doubts == ["tied tensors count once: head.weight = embed.weight"]
    assert list(agreed(tied(0, False), tied(1, False), exclude="head.*").tensors[0]) == ["net.weight", "net.bias"]


def test_tensors_that_are_alike_in_some_files_only_count_twice() -> None:
    a = net(0) | {"embed.weight": net(0)["head.weight"]}
    b = net(1) | {"embed.weight": net(1)["head.weight"].clone()}
    b["embed.weight"][-1, -1] += 1
    for files in ((a, b), (b, a)):
        assert len(agreed(*files).tensors[0]) == 4


def test_several_names_of_one_tensor_are_read_once() -> None:
    def tied(step: int) -> dict[str, Tensor]:
        w = torch.randn(30_000, generator=torch.Generator().manual_seed(step))
        odd = w.clone()
        odd[12_345] += 1
        return {"shared": w, "a": odd, "b": w.clone(), "c": w.clone(), "d": odd.clone()}

    weights = chosen(tied(0), tied(1))
    result = agree(weights)
    assert result.aliases == {"shared": ("b", "c"), "a": ("d",)}
    assert all(entry.n_read <= 2 * 30_000 + 12 * 1024 for w in weights for entry in w.tensors.values())  # type: ignore[attr-defined]


def test_a_tied_name_that_is_missing_in_some_files_is_found_under_its_other_name() -> None:
    first = net(0) | {"lm_head.weight": net(0)["head.weight"]}
    for files in ((first, net(1)), (net(1), first), (net(1), first, net(2))):
        result = agreed(*files)
        assert result.aliases == {"head.weight": ("lm_head.weight",)}
        assert list(result.tensors[0]) == list(net(0))
    first["lm_head.weight"] = first["lm_head.weight"] + 1
    with pytest.raises(ValueError, match=r"'lm_head.weight' is in step=0.pt and not in step=1.pt"):
        agreed(first, net(1))


def test_a_tied_tensor_may_have_one_name_in_some_files_and_the_other_in_others() -> None:
    def named(step: int, *names: str) -> dict[str, Tensor]:
        return {"net.weight": net(step)["net.weight"]} | {name: net(step)["head.weight"].clone() for name in names}

    both, head, lm_head = named(0, "head.weight", "lm_head.weight"), named(1, "head.weight"), named(2, "lm_head.weight")
    for files in itertools.permutations((both, head, lm_head)):
        result = agreed(*files)
        (name,) = result.aliases
        assert [*result.aliases[name], name] in (["lm_head.weight", "head.weight"], ["head.weight", "lm_head.weight"])
        for state, file in zip(result.tensors, files, strict=True):
            assert state.keys() == {"net.weight", name}
            assert state[name].shape == (5, 30)
            stored = torch.empty(150)
            state[name].read(0, stored)
            assert torch.equal(stored, file.get(name, file.get(*result.aliases[name])).flatten())
    with pytest.raises(ValueError, match=r"head.weight' is in .* and not in"):
        agreed(head, lm_head)
    both["lm_head.weight"][0, 0] += 1
    with pytest.raises(ValueError, match=r"head.weight' is in .* and not in"):
        agreed(both, head, lm_head)


def test_tensors_that_no_file_changes_are_left_out_and_named() -> None:
    constants = {f"h.{i}.attn.masked_bias": torch.tensor(-1e9) for i in range(9)} | {"h.0.bias": torch.ones(4, 4)}
    files = [net(step) | constants for step in range(3)]
    result = agreed(*files)
    assert list(result.tensors[2]) == list(net(0))
    assert result.constants == tuple(constants)
    assert result.left_out == {CONSTANT: 10}
    (doubt,) = result.doubts
    assert doubt.startswith(
        "10 tensors (25 coordinates) have the same bits in every checkpoint and are left out: h.0.attn.masked_bias, "
    )
    assert doubt.endswith("h.7.attn.masked_bias and 2 more")
    kept = agreed(*files, keep_constant=True)
    assert list(kept.tensors[0]) == list(files[0])
    assert not kept.constants
    assert not kept.doubts


def test_if_nothing_differs_all_is_kept() -> None:
    result = agreed(net(0), net(0), net(0))
    assert len(result.tensors[0]) == 3
    assert result.doubts == ["no tensor differs between the files: nothing moved"]


def test_bits_are_compared_and_no_values() -> None:
    files = [
        net(i) | {"zero": torch.tensor([0.0] * 7 + [z]), "nan": torch.tensor([math.nan, 1.0])}
        for i, z in enumerate((0.0, -0.0))
    ]
    result = agreed(*files)
    assert result.constants == ("nan",)
    assert "zero" in result.tensors[0]


@pytest.mark.parametrize("where", [0, 512, 3000, 5000, 8191])
def test_a_tensor_that_differs_in_one_coordinate_is_no_constant(where: int) -> None:
    a, b = torch.zeros(8192, dtype=torch.bfloat16), torch.zeros(8192, dtype=torch.bfloat16)
    b[where] = 1
    assert not agreed({"w": a} | net(0), {"w": a} | net(1), {"w": b} | net(2)).constants


def test_a_moving_model_is_hardly_read() -> None:
    files = [{"w": torch.randn(2**17), "v": torch.randn(2**17)} for _ in range(4)]
    weights = chosen(*files)
    agree(weights)
    assert sum(entry.n_read for w in weights for entry in w.tensors.values()) <= 4 * 4 * 1024  # type: ignore[attr-defined]


def test_complex_tensors_are_compared_too() -> None:
    files = [{"c": torch.ones(3, dtype=torch.complex64), "m": torch.full((3,), 1j * i)} for i in (1, 2)]
    assert agreed(*files).constants == ("c",)


def test_many_names_are_no_trouble() -> None:
    w = torch.ones(1)
    a = Weights(
        Path("a"), {f"module.{i}": InMemory(w) for i in range(20_000)}, choose(content(net(0))).left_out, 0, "", False
    )
    b = Weights(Path("b"), {f"{i}": InMemory(w + i) for i in range(20_000)}, a.left_out, 0, "", False)
    assert len(agree([a, b]).constants) == 1


# ---------------------------------------------------------------------- copies


def test_the_same_weights_under_other_prefixes_are_the_same() -> None:
    a, b, c = chosen(net(1), {f"module.{name}": w for name, w in net(1).items()}, net(2))
    d, e = chosen(net(1) | {"net.bias": net(1)["net.bias"].double()}, {"net.bias": net(1)["net.bias"]})
    assert same_weights(a, b)
    assert not any(same_weights(a, other) for other in (c, d, e))

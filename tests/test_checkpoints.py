"""Compare checkpoints measured after the training with the monitor that watched it, and refuse other content."""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_glassy import AgingMonitor, AgingRecord, LogTimeSchedule
from lightning_glassy.checkpoints import measure_checkpoints
from tests.helpers import SmallNet, data, quiet_trainer

STEPS = (0, 1, 3, 10)


def weights(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "net.weight": 0.1 * torch.randn(30, 20, generator=generator),
        "net.bias": 0.1 * torch.randn(30, generator=generator),
        "head.weight": 0.1 * torch.randn(5, 30, generator=generator),
    }


def save(folder: Path, make: Any = weights, steps: tuple[int, ...] = STEPS) -> list[Path]:
    files = [folder / f"model_step={step}.pt" for step in steps]
    for step, file in zip(steps, files, strict=True):
        torch.save(make(step), file)
    return files


def one(folder: Path, content: Any, **options: Any) -> list[Path]:
    """Save a proper checkpoint, and a later one with the given content."""
    files = save(folder, steps=(0, 1))
    torch.save(content, files[1], **options)
    return files


# ---------------------------------------------------------------------- against other ways to measure


class SaveAt(Callback):
    def __init__(self, folder: Path, steps: tuple[int, ...]) -> None:
        self.folder, self.left = folder, set(steps)

    def save(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step in self.left:
            self.left.remove(trainer.global_step)
            trainer.save_checkpoint(self.folder / f"{'abcdefghijklm'[len(self.left)]}.ckpt")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.save(trainer)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.save(trainer)


class Scheduled(SmallNet):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=1e-4)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@pytest.mark.parametrize("plain", [True, False])
def test_lightning_checkpoints_give_what_the_monitor_measured_to_the_bit(
    plain: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare to the bit in plain torch, and to the precision of all sums if a kernel measured."""
    monkeypatch.setenv("LIGHTNING_GLASSY_EAGER", str(int(plain)))
    steps = (0, 1, 2, 5, 10, 22, 32, 46, 60)
    lags = sorted({b - a for a in steps for b in steps if b > a})
    monitor = AgingMonitor(LogTimeSchedule(steps[:-1], lags), groups="layer", save=False, summary=False)
    trainer = quiet_trainer(tmp_path, callbacks=[monitor, SaveAt(tmp_path, steps)])
    trainer.fit(Scheduled(), data())
    record = measure_checkpoints(sorted(tmp_path.glob("*.ckpt")), groups="layer")

    assert record.groups == monitor.record.groups == ("all", "net.0", "net.3")
    assert record.n_parameters == monitor.record.n_parameters
    assert record.overlap_thresholds == monitor.record.overlap_thresholds
    ours, theirs = (dict(zip(zip(*r.pairs, strict=True), r.moments, strict=True)) for r in (record, monitor.record))
    assert len(ours) == len(steps) * (len(steps) - 1) // 2
    if plain:
        assert all(np.array_equal(moments, theirs[pair]) for pair, moments in ours.items())
    else:
        for pair, moments in ours.items():
            assert np.allclose(moments[:, :5], theirs[pair][:, :5], rtol=1e-6, atol=0)
            assert np.allclose(moments[:, 5:], theirs[pair][:, 5:], atol=1e-6)

    rates = dict(zip(*monitor.record.one_time("learning_rate"), strict=True))
    assert dict(zip(*record.one_time("learning_rate"), strict=True)) == {step: rates[step] for step in steps}
    assert record.meta["optimizers"] == [monitor.record.meta["optimizers"][0] | {"name": None}]
    assert record.meta["versions"] == {"lightning": monitor.record.meta["versions"]["lightning"]}
    assert (record.meta["source"], record.meta["steps"]) == ("checkpoints", list(steps))
    assert record.meta["dtypes"] == monitor.record.meta["dtypes"]


def test_what_model_checkpoint_leaves_can_be_measured(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=8, save_top_k=-1)
    trainer = quiet_trainer(tmp_path, max_steps=24, enable_checkpointing=True, callbacks=[saver])
    trainer.fit(SmallNet(), data())
    files = sorted(tmp_path.glob("*.ckpt"))
    record = measure_checkpoints(files)
    assert set(zip(*(a.tolist() for a in record.pairs), strict=True)) == {(8, 8), (8, 16), (16, 8)}
    assert sorted(record.meta["files"]) == [file.name for file in files]


def test_it_agrees_with_float64_numpy_to_1e_6(tmp_path: Path) -> None:
    record = measure_checkpoints(save(tmp_path))
    path = np.zeros((STEPS[-1] + 1, 780))
    for step in STEPS:
        path[step] = torch.cat([tensor.flatten() for tensor in weights(step).values()]).numpy()
    lags = sorted({b - a for a in STEPS for b in STEPS if b > a})
    reference = AgingRecord.from_trajectory(
        path, LogTimeSchedule(STEPS[:-1], lags, STEPS[-1]), overlap_thresholds=record.overlap_thresholds
    )
    measured = np.isfinite(record.msd())
    assert measured.sum() == 6
    ours, theirs = record.msd()[measured], reference.msd()[measured]
    assert np.allclose(ours, theirs, rtol=1e-6, atol=0)
    for kind in ("raw", "cosine", "centred", "pearson"):
        ours, theirs = record.correlation(kind=kind)[measured], reference.correlation(kind=kind)[measured]
        assert np.allclose(ours, theirs, atol=1e-6)
    assert np.allclose(record.non_gaussian()[measured], reference.non_gaussian()[measured], atol=1e-5)
    for eps in record.overlap_thresholds:
        assert np.allclose(record.overlap(eps)[measured], reference.overlap(eps)[measured], atol=1 / 780)


# ---------------------------------------------------------------------- checkpoints that are read


@pytest.mark.parametrize(
    "make",
    [
        lambda step: {"state_dict": weights(step), "epoch": 3, "optimizer": {"state": {0: {"m": torch.ones(2)}}}},
        lambda step: {"model": weights(step), "rng": torch.get_rng_state(), "best": torch.tensor(0.5)},
        lambda step: {"model_state_dict": weights(step), "loss": 0.1},
        lambda step: {"module": weights(step)},
        lambda step: {"student": weights(step) | {"norm._extra_state": None}},
        lambda step: {name: nn.Parameter(w, requires_grad=False) for name, w in weights(step).items()},
        lambda step: {f"_orig_mod.{name}" if step else name: w for name, w in weights(step).items()},
        lambda step: {
            "pytorch-lightning_version": "2.5.0",
            "global_step": step,
            "state_dict": weights(step) | {"metric.values": [torch.ones(2)]},
            "ema": weights(99),
        },
    ],
)
def test_a_state_dict_is_found_where_it_is(tmp_path: Path, make: Any) -> None:
    (tmp_path / "bare").mkdir()
    assert measure_checkpoints(save(tmp_path, make)) == measure_checkpoints(save(tmp_path / "bare"))


def test_the_format_before_torch_1_6_is_read(tmp_path: Path) -> None:
    files = save(tmp_path)
    expected = measure_checkpoints(files)
    for step, file in zip(STEPS, files, strict=True):
        torch.save(weights(step), file, _use_new_zipfile_serialization=False)
    assert measure_checkpoints(files) == expected


def test_safetensors_are_read(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    files = [tmp_path / f"checkpoint-{step}" / "model.safetensors" for step in STEPS]
    for step, file in zip(STEPS, files, strict=True):
        file.parent.mkdir()
        safetensors.save_file(weights(step), file)
    record = measure_checkpoints(files)
    expected = measure_checkpoints(save(tmp_path))
    assert np.allclose(record.msd(), expected.msd(), rtol=1e-6, equal_nan=True)  # summed in another order
    assert record.meta["files"] == [f"checkpoint-{step}/model.safetensors" for step in STEPS]
    files[0].write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match=r"checkpoint-0/model.safetensors is not a readable safetensors file"):
        measure_checkpoints(files)


def test_without_the_package_safetensors_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (tmp_path / "1.safetensors").touch()
    with pytest.raises(ImportError, match=r"pip install 'lightning-glassy\[safetensors\]'"):
        measure_checkpoints([tmp_path / "1.safetensors", *save(tmp_path)])


def test_several_state_dicts_are_a_question_that_key_answers(tmp_path: Path) -> None:
    files = save(tmp_path, lambda step: {"model": weights(step), "ema": weights(step + 1)}, steps=(0, 1))
    with pytest.raises(
        ValueError, match=r"step=0.pt has several state_dicts: choose with key=..., one of 'model', 'em"
    ):
        measure_checkpoints(files)
    assert measure_checkpoints(files, key="model").msd() == measure_checkpoints(save(tmp_path, steps=(0, 1))).msd()
    with pytest.raises(ValueError, match=r"key='net' is no state_dict in .*; there are none"):
        measure_checkpoints(save(tmp_path), key="net")


def test_a_measurement_of_another_key_does_not_go_on_from_an_interrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def both(step: int) -> dict[str, Any]:
        return {name: {"w": scale * step * torch.linspace(1, 2, 50_000)} for name, scale in (("a", 1), ("b", 9))}

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    monkeypatch.setattr("lightning_glassy.checkpoints.one_pass._PROGRESS_EVERY", 0)
    monkeypatch.setattr("lightning_glassy.checkpoints.one_pass._ROWS_OF_UNIT", 3)
    files = save(tmp_path, both, steps=(0, 1))
    unfinished, eps = tmp_path / "unfinished", [0.1]
    with pytest.raises(KeyboardInterrupt):
        measure_checkpoints(files, key="a", overlap_thresholds=eps, unfinished=unfinished, progress=interrupt)
    assert unfinished.exists()
    found = measure_checkpoints(files, key="b", overlap_thresholds=eps, unfinished=unfinished).msd()
    assert found == measure_checkpoints(files, key="b", overlap_thresholds=eps).msd()
    assert "is of a measurement with other keys" in caplog.text


def test_tied_tensors_count_once_even_if_a_later_file_has_them_apart(tmp_path: Path) -> None:
    def tied(step: int) -> dict[str, torch.Tensor]:
        embed = weights(step)["head.weight"]
        head = embed if step == 0 else embed.clone()
        return {"embed.weight": embed, "head.weight": head, "head.bias": torch.full((5,), float(step))}

    record = measure_checkpoints(save(tmp_path, tied), groups="layer")
    assert record.n_parameters == {"all": 155, "embed": 150, "head": 5}


def test_transposed_tied_tensors_count_once_and_partly_shared_ones_are_refused(tmp_path: Path) -> None:
    def tied(step: int) -> dict[str, torch.Tensor]:
        embed = weights(step)["head.weight"]
        return {"embed.weight": embed, "head.weight": embed.t()}

    assert measure_checkpoints(save(tmp_path, tied)).n_parameters == {"all": 150}

    def overlapping(step: int) -> dict[str, torch.Tensor]:
        embed = weights(step)["head.weight"]
        return {"embed.weight": embed, "head.weight": embed[1:]}

    (tmp_path / "overlapping").mkdir()
    with pytest.raises(ValueError, match=r"step=0.pt: the parameters 'embed.weight' and 'head.weight' share a part"):
        measure_checkpoints(save(tmp_path / "overlapping", overlapping))


def test_buffers_and_integers_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def normalised(step: int) -> dict[str, torch.Tensor]:
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.BatchNorm1d(2))
        model.register_buffer("mask", torch.ones(3, dtype=torch.bool))
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        return model.state_dict()

    record = measure_checkpoints(save(tmp_path, normalised))
    assert record.n_parameters["all"] == 4 + 2 + 4 + 4
    assert record.meta["left_out"] == {
        "*.running_mean": 2,
        "*.running_var": 2,
        "*.num_batches_tracked": 2,
        "integer, boolean or quantised": 1,
    }
    assert not caplog.messages
    measure_checkpoints(save(tmp_path, lambda step: {"q": torch.ones(9, dtype=torch.int8), "scale": torch.ones(1)}))
    assert "9 coordinates are integer, boolean or quantised and left out; only 1 are measured" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_other_precisions_are_measured_as_they_are(
    tmp_path: Path, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = torch.randn(200).to(dtype), torch.randn(200).to(dtype)
    record = measure_checkpoints(save(tmp_path, lambda step: {"w": b if step else a}, steps=(0, 5)))
    d = torch.view_as_real(b - a).double() if dtype.is_complex else b.double() - a.double()
    assert record.msd()[0, 0] == pytest.approx((d**2).mean().item(), rel=1e-6)
    assert record.n_parameters["all"] == (400 if dtype.is_complex else 200)
    assert not caplog.messages


def test_motion_below_the_rounding_of_the_file_is_said_to_be_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    measure_checkpoints(save(tmp_path, lambda step: {"w": weights(0)["net.weight"].bfloat16()}))
    assert "in 6 of 6 pairs the mean squared displacement is within the rounding" in caplog.text


def test_nan_weights_are_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def diverged(step: int) -> dict[str, torch.Tensor]:
        state = weights(step)
        if step == 10:
            state["net.bias"][3] = torch.nan
        return state

    with caplog.at_level(logging.WARNING):
        record = measure_checkpoints(save(tmp_path, diverged), groups={"head": "head.*"})
    assert "not finite in 3 of 6 pairs" in caplog.text
    assert np.isfinite(record.msd("head")).sum() == 6
    assert np.isfinite(record.msd()).sum() == 3


def test_coordinates_are_paired_however_a_file_lays_them_out(tmp_path: Path) -> None:
    a, b = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    files = save(tmp_path, lambda step: {"w": b.to(memory_format=torch.channels_last) if step else a}, steps=(0, 1))
    assert measure_checkpoints(files).msd()[0, 0] == pytest.approx(((a - b) ** 2).mean().item(), rel=1e-6)


def test_groups_include_and_exclude_are_those_of_the_tracker(tmp_path: Path) -> None:
    files = save(tmp_path)
    assert measure_checkpoints(files, groups="layer").n_parameters == {"all": 780, "net": 630, "head": 150}
    record = measure_checkpoints(files, groups={"biases": "*.bias"}, exclude="head.*")
    assert record.n_parameters == {"all": 630, "biases": 30}
    assert measure_checkpoints(files, include=["head.*"]).n_parameters == {"all": 150}
    assert measure_checkpoints(files, overlap_thresholds=[0.5]).overlap_thresholds == (0.5,)
    with pytest.raises(
        ValueError, match=r"step=0.pt: include: the pattern 'tail.\*' matches no .*net.weight, net.bias"
    ):
        measure_checkpoints(files, include="tail.*")


def test_a_head_that_was_replaced_can_be_left_out(tmp_path: Path) -> None:
    def tuned(step: int) -> dict[str, torch.Tensor]:
        return weights(step) | {"head.weight": torch.ones(3 if step == 10 else 5, 30)}

    files = save(tmp_path, tuned)
    with pytest.raises(ValueError, match=r"'head.weight' is \(5, 30\) torch.float32 in .*=0.pt and \(3, 30\) .*=10.pt"):
        measure_checkpoints(files)
    assert len(measure_checkpoints(files, exclude="head.*")) == 6


def test_a_layer_that_was_added_can_be_left_out(tmp_path: Path) -> None:
    files = save(tmp_path, lambda step: weights(step) | ({"tail.weight": torch.ones(2)} if step == 10 else {}))
    with pytest.raises(ValueError, match=r"'tail.weight' is in .*=10.pt and not in .*=0.pt.*include="):
        measure_checkpoints(files)
    assert measure_checkpoints(files, include=["net.*", "head.*"]).n_parameters == {"all": 780}


# ---------------------------------------------------------------------- steps and order


def test_the_step_in_a_checkpoint_goes_before_its_name_and_the_argument_before_both(tmp_path: Path) -> None:
    files = save(tmp_path, lambda step: {"state_dict": weights(step), "global_step": 7 * step})
    assert measure_checkpoints(files).waiting_times.tolist() == [0, 7, 21]
    with pytest.raises(ValueError, match=r"step=0.pt.*force_steps=True"):
        measure_checkpoints(files, steps=[30, 2, 4, 8])
    assert measure_checkpoints(files, steps=[30, 2, 4, 8], force_steps=True).waiting_times.tolist() == [2, 4, 8]


@pytest.mark.parametrize("name", ["{}.pt", "step_{}.pt", "step_{}/model.pt"])
def test_a_copy_without_a_number_has_the_step_of_the_file_with_the_same_bytes(tmp_path: Path, name: str) -> None:
    for step in (10, 20, 30):
        file = tmp_path / name.format(step)
        file.parent.mkdir(exist_ok=True)
        torch.save(weights(step), file)
    for copy, step in (("best", 20), ("last", 30)):
        other = tmp_path / name.replace("step_{}", "{}").format(copy)
        other.parent.mkdir(exist_ok=True)
        other.write_bytes((tmp_path / name.format(step)).read_bytes())
    record = measure_checkpoints([tmp_path])
    assert record.meta["steps"] == [10, 20, 30]
    torch.save(weights(40), other)
    with pytest.raises(ValueError, match="is neither in it nor in its name"):
        measure_checkpoints([tmp_path])


def test_checkpoints_of_several_seeds_are_a_doubt(tmp_path: Path) -> None:
    for seed, step in ((0, 20), (1, 40)):
        torch.save(weights(step), tmp_path / f"seed_{seed}-step_{step}k.pt")
    assert "several seeds (0, 1)" in " ".join(measure_checkpoints([tmp_path]).doubts)
    for file in tmp_path.glob("*.pt"):
        file.rename(tmp_path / f"data_seed_7-seed_0-{file.name.partition('-')[2]}")
    assert measure_checkpoints([tmp_path]).doubts == []


def test_a_doubtful_step_is_in_the_record(tmp_path: Path) -> None:
    for n in (1, 2):
        torch.save(weights(n), tmp_path / f"model_{n}.pt")
    assert "count one by one" in " ".join(measure_checkpoints([tmp_path]).doubts)


@pytest.mark.parametrize("rate", [torch.ones(2), torch.tensor(1j), 10**400, None, "fast", [0.1]])
def test_a_learning_rate_that_is_no_number_is_left_out(tmp_path: Path, rate: Any) -> None:
    groups = [{"params": [0], "lr": rate, "momentum": 0.9}, {"params": [1], "lr": torch.tensor(0.25)}]
    for step in (0, 10):
        state = {"pytorch-lightning_version": "2.5", "global_step": step, "state_dict": weights(step)}
        torch.save(state | {"optimizer_states": [{"param_groups": groups}]}, tmp_path / f"{step}.ckpt")
    record = measure_checkpoints([tmp_path / "0.ckpt", tmp_path / "10.ckpt"])
    assert [name for name in record.one_time_names if name.startswith("learning_rate")] == ["learning_rate_0_1"]
    assert record.one_time("learning_rate_0_1")[1].tolist() == [0.25, 0.25]
    assert record.meta["optimizers"][0]["parameter_groups"][0]["momentum"] == 0.9


def test_two_trainings_whose_steps_alternate_are_a_doubt_and_a_resumed_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = save(tmp_path / "a", steps=(0, 10, 20))
    (doubt,) = measure_checkpoints([*first, *save(tmp_path / "b", steps=(5, 15))]).doubts
    assert doubt.startswith("the steps of the checkpoints in a and b alternate: if they are of several trainings")
    assert measure_checkpoints([*first, *save(tmp_path / "b", steps=(20, 30, 40))]).doubts == []


def test_the_order_of_the_files_does_not_matter(tmp_path: Path) -> None:
    files = save(tmp_path)
    record, reverse = measure_checkpoints(files), measure_checkpoints(map(str, reversed(files)))
    assert record == reverse
    assert record.meta == reverse.meta


def test_progress_counts_the_bytes(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    measure_checkpoints(save(tmp_path), progress=lambda *call: calls.append(call))
    total = 4 * 780 * 4
    assert calls[0] == (0, total)
    assert calls[-1] == (total, total)
    assert calls == sorted(calls)


# ---------------------------------------------------------------------- checkpoints that are refused


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_would_have_to_be_run_is_not(tmp_path: Path, legacy: bool) -> None:
    mark = tmp_path / "executed"
    content = {"state_dict": weights(1), "hyper_parameters": argparse.Namespace(a=1), "evil": Evil(mark)}
    files = one(tmp_path, content, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"step=1.pt holds more than tensors .*argparse.Namespace") as caught:
        measure_checkpoints(files)
    for part in ("Nothing was executed", "model.state_dict()", "add_safe_globals([argparse.Namespace"):
        assert part in str(caught.value)
    files[1].write_bytes(pickle.dumps({"w": Evil(mark)}))
    with pytest.raises(ValueError, match="Nothing was executed"):
        measure_checkpoints(files)
    assert not mark.exists()


def test_what_the_user_has_allowed_is_read(tmp_path: Path) -> None:
    files = one(tmp_path, {"state_dict": weights(1), "hyper_parameters": argparse.Namespace(a=1)})
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert len(measure_checkpoints(files)) == 1


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    files = save(tmp_path, steps=(0, 1))
    whole = files[1].read_bytes()
    np.savez(tmp_path / "foreign.npz", a=np.ones(3))
    for content in (whole[:-500], b"", b"hello", (tmp_path / "foreign.npz").read_bytes()):
        files[1].write_bytes(content)
        with pytest.raises(ValueError, match=r"step=1.pt is not a (readable )?checkpoint"):
            measure_checkpoints(files)
    with tarfile.open(files[1], "w") as tar:
        tar.add(tmp_path / "foreign.npz", "storages")
    with pytest.raises(ValueError, match=r"step=1.pt is a tar archive"):
        measure_checkpoints(files)


class DTensor(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.ones(3), r"holds a Tensor, not a state_dict: save model.state_dict\(\)"),
        ({}, "has no state_dict, only nothing"),
        ({"epoch": 3, "optimizer": {"state": {}}}, "has no state_dict, only 'epoch', 'optimizer'"),
        ({"pytorch-lightning_version": "2.5"}, "key='state_dict' is no state_dict"),
        ({"w": torch.ones(3, dtype=torch.int8)}, "has no state_dict, only 'w'"),
        ({"bn.running_mean": torch.ones(3)}, "there is no floating-point tensor"),
        ({"w": torch.eye(3).to_sparse()}, "'w' is a torch.sparse_coo tensor: only plain tensors"),
        ({"w": torch.empty(3, device="meta")}, "'w' is a tensor on the meta device, without values"),
        (
            weights(1) | {"head.weight": torch.ones(3, 30)},
            r"'head.weight' is \(5, 30\) torch.float32 in .*0.pt and \(3,",
        ),
        (weights(1) | {"head.weight": torch.ones(5, 30).half()}, r"and \(5, 30\) torch.float16 in .*one precision, or"),
        (weights(1) | {"tail.weight": torch.ones(5)}, "'tail.weight' is in .*=1.pt and not in .*=0.pt"),
        ({"net.weight": weights(1)["net.weight"]}, "'net.bias' is in .*=0.pt and not in .*=1.pt"),
    ],
)
def test_what_is_no_checkpoint_of_the_model_is_refused(tmp_path: Path, state: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        measure_checkpoints(one(tmp_path, state))
    assert "step=1.pt" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"steps": [0, 1, 1, 2], "force_steps": True},
            ValueError,
            r"step=1.pt and .*step=3.pt are both of step 1: leave one out",
        ),
        ({"steps": [0, 1, -1, 2]}, ValueError, r"steps\[2\]=-1 of .*step=3.pt must be a number of steps from 0"),
        ({"steps": [0, 1, 2.5, 2]}, TypeError, r"steps\[2\]=2.5 of .*step=3.pt is not an integer"),
        ({"steps": [0, True, 2, 3]}, TypeError, r"steps\[1\]=True"),
        ({"steps": [0, 1]}, ValueError, r"steps=\[0, 1\] are 2 for 4 files"),
        ({"steps": 3}, TypeError, "steps=3 is not a list of integers"),
        ({"groups": "layers"}, ValueError, "groups='layers'"),
        ({"include": []}, ValueError, "include="),
        ({"overlap_thresholds": [0.1, 0.01]}, ValueError, "overlap_thresholds must increase"),
        ({"key": 3}, TypeError, "key=3"),
        ({"progress": True}, TypeError, "progress=True"),
    ],
)
def test_arguments_out_of_range_are_named(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        measure_checkpoints(save(tmp_path), **options)


def test_paths_are_files_and_at_least_two(tmp_path: Path) -> None:
    files = save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"step=11.pt: there is no such file"):
        measure_checkpoints([*files, tmp_path / "step=11.pt"])
    with pytest.raises(ValueError, match=r"paths=\['.*step=0.pt'\]: a displacement needs at least two"):
        measure_checkpoints(files[:1])
    with pytest.raises(ValueError, match="a displacement needs at least two"):
        measure_checkpoints([files[0], files[0]])
    with pytest.raises(ValueError, match="not a file but a device"):
        measure_checkpoints([*files, "/dev/null"])
    with pytest.raises(TypeError, match="is not a list of files"):
        measure_checkpoints(str(files[0]))
    with pytest.raises(TypeError, match=r"paths\[0\]=3 is not the name of a file"):
        measure_checkpoints([3, 4])

"""Read any file with tensors as data, block by block, or refuse it with a sentence that names it."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import pickle
import random
import sys
import tarfile
import threading
import tracemalloc
import types
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_glassy.checkpoints.distributed import Chunk, ChunkedTensor, read_distributed
from lightning_glassy.checkpoints.handles import File, Handles
from lightning_glassy.checkpoints.pickled import read_object, read_torch
from lightning_glassy.checkpoints.safetensor_files import read_safetensors
from lightning_glassy.checkpoints.stored import n_coordinates, real_dtype
from lightning_glassy.checkpoints.strided import Memory, StridedTensor, overlapping

FORMATS = [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}, {"pickle_protocol": 5}]


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def read(path: Path) -> dict[str, Any]:
    with Handles() as handles:
        return read_torch(handles.file(path))


def values(stored: Any, block: int = 7) -> np.ndarray[Any, Any]:
    """Return all coordinates as float64, read in blocks."""
    out = torch.empty(n_coordinates(stored), dtype=real_dtype(stored.dtype))
    for start in range(0, len(out), block):
        stored.read(start, out[start : start + block])
    return out.double().numpy()


def truth(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    tensor = tensor.detach().resolve_conj()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double().numpy().ravel()


# ---------------------------------------------------------------------- files that are read


@pytest.mark.parametrize("options", FORMATS)
def test_every_dtype_and_every_layout_in_memory_is_read_in_row_major_order(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    base = torch.randn(6, 10, dtype=torch.float64)
    tensors = {
        **{str(dtype): base.to(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int16)},
        "complex": torch.randn(3, 4, dtype=torch.complex64).t(),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "transposed": base.t(),
        "slice": base[2:5, 3:],
        "every third column": base[:, ::3],
        "row of a bigger one": base[4],
        "number": torch.tensor(3.5),
        "parameter": nn.Parameter(torch.randn(3)),
        "empty": torch.empty(0, 3),
        "float8": base.to(torch.float8_e4m3fn),
    }
    found = read(saved(tmp_path / "a.pt", tensors, **options))
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert (found[name].shape, found[name].dtype, found[name].problem) == (tuple(tensor.shape), tensor.dtype, None)
        assert np.array_equal(values(found[name]), truth(tensor)), name
        where = torch.arange(0, n_coordinates(found[name]), 3)
        out = torch.empty(len(where), dtype=real_dtype(tensor.dtype))
        found[name].gather(where, out)
        assert np.array_equal(out.double().numpy(), truth(tensor)[where.numpy()]), name


def test_blocks_of_random_views_are_those_of_torch(tmp_path: Path) -> None:
    dice, base = random.Random(0), torch.randn(4000)
    views = {}
    for i in range(150):
        sizes = [dice.choice([1, 2, 3, 5]) for _ in range(dice.randint(0, 4))]
        strides, step = [0] * len(sizes), dice.choice([1, 1, 2, 7])
        for dim in dice.sample(range(len(sizes)), len(sizes)):
            strides[dim], step = step, step * sizes[dim] + dice.choice([0, 0, 3])
        if sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) < 3900:
            views[f"{i}"] = base.as_strided(sizes, strides, dice.randint(0, 99))
    for name, stored in read(saved(tmp_path / "a.pt", views)).items():
        for block in (1, 4, 999):
            assert np.array_equal(values(stored, block), truth(views[name])), views[name].stride()


def test_a_block_of_a_big_view_reads_little_more_than_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = torch.randn(400, 600)
    views = {"transposed": base.t(), "columns": base[:, 7:9], "thin": base[::50, ::50], "whole": base}
    path, n_bytes = saved(tmp_path / "a.pt", views), Counter[str]()
    read_pieces = File.read_pieces

    def counted(self: File, pieces: Any) -> None:
        n_bytes["read"] += sum(len(out) for _, out in pieces)
        read_pieces(self, pieces)

    monkeypatch.setattr(File, "read_pieces", counted)
    for name, stored in read(path).items():
        out = torch.empty(min(50, n_coordinates(stored)))
        n_bytes.clear()
        stored.read(3, out[:40])
        assert np.array_equal(out[:40].double().numpy(), truth(views[name])[3:43])
        assert n_bytes["read"] < 4 * 4 * 40 + 100, name


def test_what_lies_beside_the_weights_becomes_plain_values(tmp_path: Path) -> None:
    beside = {
        "step": np.int64(7),
        "loss": np.float32(0.5),
        "flag": np.bool_(True),
        "array": np.arange(6, dtype=">i4").reshape(2, 3),
        "ordered": OrderedDict(a=1),
        "counter": Counter("aab"),
        "default": defaultdict(int, a=2),
        "size": torch.Size([2, 3]),
        "device": torch.device("cuda:1"),
        "version": torch.torch_version.TorchVersion("2.1.0"),
        "bytes": b"\x00\xff",
        "complex": 1 + 2j,
        "huge": 10**400,
        "nested": [1, (2, {"c": None})],
        "set": {1, 2},
    }
    for options in FORMATS:
        found = read(saved(tmp_path / "a.pt", beside | {"path": tmp_path, "type": torch.float16}, **options))
        assert np.array_equal(found.pop("array"), beside["array"])
        assert found == {
            **{name: value for name, value in beside.items() if name != "array"},
            "device": "cuda:1",
        }


def test_a_real_training_state_is_read(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    content = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    found = read(saved(tmp_path / "a.pt", content))
    assert found["optimizer"]["param_groups"] == content["optimizer"]["param_groups"]
    for name, tensor in module.state_dict().items():
        assert np.array_equal(values(found["model"][name]), truth(tensor))


def test_tensors_in_one_memory_have_one_place_and_parts_of_it_overlap(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    views = {"a": base, "b": base.t(), "c": base.view(-1), "left": base[:, :3], "right": base[:, 3:], "row": base[1]}
    for options in FORMATS[:2]:
        found = read(saved(tmp_path / "a.pt", views | {"other": torch.randn(4, 6)}, **options))
        assert found["a"].place == found["b"].place == found["c"].place != found["other"].place

        def pair(*names: str, found: dict[str, Any] = found) -> Any:
            return overlapping((name, found[name]) for name in names)

        assert pair("a", "b", "other") is None
        assert pair("left", "right", "other") is None
        assert pair("left", "right", "row") in {("left", "row"), ("right", "row")}
        assert pair("a", "right") == ("a", "right")


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        (torch.eye(3).to_sparse(), "is a torch.sparse_coo tensor"),
        (torch.empty(3, device="meta"), "is a tensor on the meta device, without values"),
        (torch.randn(3, dtype=torch.complex64).conj(), "is a view of other numbers"),
        (torch.randn(3, dtype=torch.complex64).conj().imag, "is a view of other numbers"),
        (torch.ones(1, 3).expand(4, 3), "is an expanded tensor"),
        (torch.ones(8).unfold(0, 4, 1), "is an expanded tensor"),
        (torch.arange(9.0).as_strided((2, 2), (0, 3)), "is an expanded tensor"),
        (torch.arange(9.0).as_strided((2, 2, 2), (1, 1, 5)), "is an expanded tensor"),
    ],
)
def test_a_tensor_without_numbers_of_its_own_is_described_and_says_why(
    tmp_path: Path, tensor: torch.Tensor, problem: str
) -> None:
    found = read(saved(tmp_path / "a.pt", {"w": tensor}))["w"]
    assert problem in found.problem
    assert found.shape == tuple(tensor.shape)


@pytest.mark.parametrize("name", ["qint8", "qint32", "quint4x2", "float4_e2m1fn_x2"])
def test_a_dtype_without_arithmetic_is_a_problem_of_the_tensor(tmp_path: Path, name: str) -> None:
    dtype = getattr(torch, name, None)
    if dtype is None:
        pytest.skip("this torch does not have it")
    (tmp_path / "a").write_bytes(bytes(16))
    with Handles() as handles:
        tensor = StridedTensor(Memory(handles.file(tmp_path / "a"), "0", 16, 0), dtype, (1,), (1,))
    assert tensor.problem == "is a quantised tensor"


class Special(torch.Tensor):
    pass


def test_tensors_of_a_class_of_their_own_are_never_taken_for_plain_ones(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"w": torch.ones(3).as_subclass(Special)})
    with pytest.raises(ValueError, match=r"a.pt holds more than tensors .*test_checkpoint_files.Special"):
        read(path)
    with torch.serialization.safe_globals([Special]):
        assert read(path)["w"].problem == "is a Special"


def test_safetensors_are_read_lazily(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(5).bfloat16(), "n": torch.arange(3), "e": torch.empty(0)}
    tensors["f8"] = torch.randn(4).to(torch.float8_e5m2)
    save_file(tensors, tmp_path / "a.safetensors", metadata={"step": "7"})
    with Handles() as handles:
        found, metadata = read_safetensors(handles.file(tmp_path / "a.safetensors"))
        assert metadata == {"step": "7"}
        assert set(found) == set(tensors)
        for name, tensor in tensors.items():
            assert np.array_equal(values(found[name]), truth(tensor))
        whole = (tmp_path / "a.safetensors").read_bytes()
        for i, content in enumerate((b"", b"\xff" * 100, whole[:-3], b"version https://git-lfs.github.com/spec/v1\n")):
            (tmp_path / f"{i}.safetensors").write_bytes(content)
            with pytest.raises(
                ValueError, match=rf"{i}.safetensors is not a (readable safetensors file|checkpoint but)"
            ):
                read_safetensors(handles.file(tmp_path / f"{i}.safetensors"))


# ---------------------------------------------------------------------- handles


def test_files_stay_open_as_long_as_few_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    really = os.open
    monkeypatch.setattr(os, "open", lambda path, flags: opened.append(str(path)) or really(path, flags))
    with Handles(most=8) as handles:
        for _ in range(3):
            for k in range(7):
                path = tmp_path / str(k)
                path.write_bytes(b"12345") if not path.exists() else None
                assert handles.file(path).read(1, 2) == b"23"
    assert len(opened) == 7


def test_few_files_are_open_at_once_and_none_afterwards(tmp_path: Path) -> None:
    opened = Counter[str]()
    with Handles(most=3) as handles:
        for i in range(10):
            (tmp_path / f"{i}").write_bytes(bytes([i]))
        files = [handles.file(tmp_path / f"{i}") for i in range(10)]
        for _ in range(2):
            for i, file in enumerate(files):
                assert file.read(0, 1) == bytes([i])
                opened["most"] = max(opened["most"], len(handles._open))
    assert opened["most"] == 3
    assert not handles._open


def test_files_stay_open_up_to_the_limit_and_the_limit_is_that_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_glassy.checkpoints.handles._allowed", lambda: 40)
    with Handles() as handles:
        for i in range(30):
            (tmp_path / f"{i}").write_bytes(bytes([i]))
            handles.file(tmp_path / f"{i}")
            assert len(handles._open) == min(i + 1, 10)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".metadata")
    with Handles() as handles, pytest.raises(ValueError, match=r"\.metadata is not a file, but"):
        read_distributed(tmp_path, handles)


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="needs reads at a position")
def test_an_error_of_the_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "a").write_bytes(b"some bytes")
    with Handles() as handles:
        file = handles.file(tmp_path / "a")
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(OSError, match=r"Input/output error: .*a'"):
            file.read(0, 4)


def test_threads_read_from_many_files_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pread in (True, False):
        if not pread:  # as on Windows
            monkeypatch.delattr(os, "preadv", raising=False)
        wrong = []
        with Handles(most=2) as handles:
            for i in range(5):
                (tmp_path / f"{i}").write_bytes(bytes([i]) * 1000)
            files = [handles.file(tmp_path / f"{i}") for i in range(5)]

            def work(files: Any = files, wrong: Any = wrong) -> None:
                for k in range(200):
                    if files[k % 5].read(k, 50) != bytes([k % 5]) * 50:
                        wrong.append(k)

            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert not wrong


@pytest.mark.parametrize("how", ["shorter", "touched", "replaced"])
def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, how: str) -> None:
    path = saved(tmp_path / "a.pt", {"w": torch.randn(1000)})
    with Handles(most=1) as handles:
        stored = read_torch(handles.file(path))["w"]
        values(stored)
        if how == "shorter":
            os.truncate(path, 3000)
        elif how == "touched":
            os.utime(path, ns=(1, 1))
        else:
            handles.close()
            path.unlink()
            saved(path, {"w": torch.randn(2000)})
        with pytest.raises(ValueError, match=r"a.pt has changed while it was measured: measure again"):
            values(stored)


# ---------------------------------------------------------------------- files that are refused


class Evil:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("options", FORMATS)
def test_nothing_in_a_file_is_run(tmp_path: Path, options: dict[str, Any]) -> None:
    mark = tmp_path / "executed"
    hostile = [
        Evil(os.mkdir, str(mark)),
        Evil(eval, f"__import__('os').mkdir({str(mark)!r})"),
        Evil(getattr, "x", "upper"),
        Evil(exec, "x"),
        Evil(argparse.ArgumentParser),
    ]
    for i, thing in enumerate(hostile):
        path = saved(tmp_path / f"{i}.pt", {"w": torch.ones(3), "x": [thing]}, **options)
        with pytest.raises(
            ValueError, match=rf"{i}.pt holds more than tensors.* would have to be run. Nothing was exe"
        ):
            read(path)
    assert not mark.exists()
    path.write_bytes(pickle.dumps({"w": hostile[0]}))
    with pytest.raises(ValueError, match=r"mkdir would have to be run. Nothing was executed"):
        read(path)


@pytest.mark.parametrize("options", FORMATS)
def test_the_arguments_of_a_program_beside_the_weights_are_left_out(tmp_path: Path, options: dict[str, Any]) -> None:
    content = {"w": torch.ones(3), "args": argparse.Namespace(a=1, more=types.SimpleNamespace(b=[2]))}
    assert set(read(saved(tmp_path / "a.pt", content, **options))) == {"w"}


def test_what_a_user_has_allowed_is_left_out_and_not_made_either(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    content = {"w": torch.ones(3), "args": argparse.Namespace(a=1), "evil": Evil(os.mkdir, str(mark))}
    with torch.serialization.safe_globals([argparse.Namespace, (os.mkdir, f"{os.name}.mkdir")]):
        assert set(read(saved(tmp_path / "a.pt", content))) == {"w"}
    assert not mark.exists()


def test_records_of_numpy_beside_the_weights_do_not_matter(tmp_path: Path) -> None:
    records = np.zeros(3, dtype=[("a", "<i4"), ("b", ">f8")])
    nested = np.zeros(2, dtype=[("a", [("x", "f4"), ("y", "U3")]), ("b", "f8", (2, 2))])
    content = {"w": torch.ones(3), "history": {"records": records, "one": records[0], "nested": nested}}
    assert "w" in read(saved(tmp_path / "a.pt", content))
    with pytest.raises(ValueError, match=r"array of NumPy with objects"):
        read(saved(tmp_path / "b.pt", {"w": torch.ones(3), "a": np.zeros(2, dtype=[("a", "i4"), ("b", object)])}))


def test_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a.pt is not a readable checkpoint: .*array of NumPy with objects"):
        read(saved(tmp_path / "a.pt", {"a": np.array([1, None])}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3), r"holds a Tensor, not a state_dict: save model.state_dict\(\)"),
        ([torch.ones(3)], "holds a list, not a state_dict"),
    ],
)
def test_a_file_without_a_dict_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"a.pt {message}"):
        read(saved(tmp_path / "a.pt", content))


def rezipped(path: Path, change: Any = lambda name, data: data, **options: Any) -> Path:
    with zipfile.ZipFile(path) as old:
        members = [(name, old.read(name)) for name in old.namelist()]
    with zipfile.ZipFile(path, "w", **options) as new:
        for name, data in members:
            changed = change(name, data)
            if changed is not None:
                new.writestr(name, changed)
    return path


def test_an_archive_that_was_zipped_again_is_read_if_stored_and_refused_if_compressed(tmp_path: Path) -> None:
    weights = torch.randn(300)
    path = rezipped(saved(tmp_path / "a.pt", {"w": weights}))
    assert np.array_equal(values(read(path)["w"]), truth(weights))
    rezipped(path, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"a.pt is a compressed archive.*: torch.save\(torch.load\('a.pt'\), 'a.pt'\)"):
        read(path)


def test_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.writestr("x/constants.pkl", b"\x80\x02).", zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"is a program .TorchScript., which is not run"):
        read(path)
    rezipped(saved(path, {"w": torch.ones(2)}), lambda name, data: b"big" if name.endswith("byteorder") else data)
    with pytest.raises(ValueError, match="big-endian"):
        read(path)
    with tarfile.open(path, "w") as tar:
        tar.add(__file__, "storages")
    with pytest.raises(ValueError, match=r"a.pt is a tar archive"):
        read(path)
    np.savez_compressed(tmp_path / "b.npz", a=np.ones(3))
    for content, message in (
        (b"", "it is empty"),
        (b"hello", "save model.state_dict"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"<!DOCTYPE html>", "page of the web"),
        (b"\x1f\x8b\x08", "gzip"),
        ((tmp_path / "b.npz").read_bytes(), "has no data.pkl"),
        (pickle.dumps({"w": 1}), "a pickle that torch.save has not written"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"a.pt is not a (readable )?checkpoint.*{message}"):
            read(path)


@pytest.mark.parametrize("options", FORMATS[:2])
def test_whatever_bytes_are_in_a_file_it_is_read_or_refused_in_a_sentence(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    content = {"w": torch.randn(4, 3), "h": torch.randn(3).half(), "o": {"lr": np.float64(0.1), "x": [1, (2, {3})]}}
    whole = saved(tmp_path / "a.pt", content, **options).read_bytes()
    dice, refused = random.Random(1), 0
    for i in range(500):
        data = bytearray(whole)
        if i % 4 == 0:
            data = data[: dice.randrange(len(data))]
        for _ in range(i % 4):
            data[dice.randrange(len(data))] = dice.randrange(256)
        path = tmp_path / "b.pt"
        path.write_bytes(data)
        with Handles() as handles:
            try:
                found = read_torch(handles.file(path))
                for stored in found.values():
                    if hasattr(stored, "read") and stored.problem is None and stored.dtype.is_floating_point:
                        values(stored)
            except ValueError as error:
                assert "b.pt" in str(error)  # noqa: PT017
                refused += 1
    assert refused > 200


def crafted(path: Path, pickled: bytes, records: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/version", b"3\n")
        for name, data in (records or {}).items():
            archive.writestr(f"x/data/{name}", data)
    return path


class Pickled(pickle.Pickler):
    """Writes pickles that torch.save would never write."""

    def persistent_id(self, thing: Any) -> Any:
        return thing.key if isinstance(thing, Key) else None


class Key:
    def __init__(self, *key: Any) -> None:
        self.key = key


def dumped(content: Any) -> bytes:
    file = io.BytesIO()
    Pickled(file, 2).dump(content)
    return file.getvalue()


def tensor(n: Any = 6, offset: Any = 0, size: Any = (2, 3), stride: Any = (3, 1), key: Any = "0") -> Evil:
    storage = Key("storage", torch.FloatStorage, key, "cpu", n)
    return Evil(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


@pytest.mark.parametrize(
    "wrong",
    [
        {"offset": 1},
        {"offset": -1},
        {"offset": 10**400},
        {"offset": True},
        {"size": (3, 3)},
        {"size": (2, -3)},
        {"size": (2, float("nan"))},
        {"size": (2, True)},
        {"size": (2**62, 2**62)},
        {"size": (10**400,), "stride": (1,)},
        {"size": "23"},
        {"stride": (3, 2)},
        {"stride": (-3, 1)},
        {"stride": (3,)},
        {"n": 7},
        {"n": -6},
        {"n": 6.0},
        {"n": 10**400},
        {"key": "1"},
        {"key": "../version"},
        {"key": ["0"]},
    ],
)
def test_tensors_beyond_their_memory_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    data = np.arange(6, dtype=np.float32).tobytes()
    good = read(crafted(tmp_path / "a.pt", dumped({"w": tensor()}), {"0": data}))["w"]
    assert values(good).tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match=r"a.pt is not a readable checkpoint: "):
        read(crafted(tmp_path / "a.pt", dumped({"w": tensor(**wrong)}), {"0": data}))


def test_a_huge_expanded_tensor_costs_nothing(tmp_path: Path) -> None:
    path = crafted(tmp_path / "a.pt", dumped({"w": tensor(size=(2**40, 2), stride=(0, 1))}), {"0": bytes(24)})
    assert "is an expanded tensor" in str(read(path)["w"].problem)


def nested(depth: int, open_: bytes, close: bytes) -> bytes:
    return b"\x80\x02" + open_ * depth + close * depth + b"."


REBUILD = b"ctorch._tensor\n_rebuild_from_type_v2\nctorch\nTensor\n"
EMPTY_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"


@pytest.mark.parametrize(
    "pickled",
    [
        nested(10**4, b"]", b"a")[: -(10**4) - 1] + b"a" * (10**4 - 1) + b".",  # lists in lists
        b"\x80\x02}q\x00X\x01\x00\x00\x00a" + b")" + b"\x85" * 10**4 + b"s.",  # tuples in tuples
        b"\x80\x02})" + b"\x85" * 10**4 + b"K\x01s.",  # the same as a key
        b"\x80\x02})" + b"2\x86" * 60 + b"K\x01s.",  # a key of 2**60 tuples
        b"\x80\x02}X\x01\x00\x00\x00a)" + b"2\x86" * 60 + b"s.",  # a value of 2**60 tuples
        b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",  # a dict in itself
        b"\x80\x02]q\x00h\x00a.",
        b"\x80\x02}r\xff\xff\xff\xff.",  # a memo of 4 billion places
        b"\x80\x02" + b"]" * 10**5 + b".",
        b"\x80\x02" + b"\x8f" * 10**5 + b".",
        b"\x80\x04\x96\x00\x00\x00\x00\x00\x00\x00\x10.",  # an array of bytes that is not there
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"\x80\x02\x8b\xff\xff\xff\xff.",
        b"\x80\x02}K\x01.",
        b"\x80\x02.",
        b"\x80\x02}a.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02K\x01K\x01R.",
        b"\x80\x02c__builtin__\nbytearray\nM\xff\xff\x85R.",
        b"\x80\x02" + b"ccopyreg\n__newobj__\n(" + b"ccopyreg\n__newobj__\n" * 5000 + b"tR.",  # calls in calls
        b"\x80\x02" + REBUILD + (b"(" + REBUILD) * 3000 + b"t" + b"Nt" * 2998 + b"NtR.",
        b"\x80\x02cnumpy\ndtype\nX\x04\x00\x00\x00f4,(\x85R.",
        b"\x80\x02" + EMPTY_ARRAY + b"(K\x01K\x02\x85" + b"cnumpy\ndtype\nX\x02\x00\x00\x00S0\x85R\x89C\x00tb.",
        b"\x80\x02"
        + EMPTY_ARRAY
        + b"(K\x01)cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R\x89X\x03\x00\x00\x00\xe2\x82\xactb.",
    ],
)
def test_crafted_pickles_cost_little_and_end_in_a_sentence(tmp_path: Path, pickled: bytes) -> None:
    path = crafted(tmp_path / "a.pt", pickled)
    tracemalloc.start()
    try:
        found = read(path)
        assert isinstance(found, dict)
        assert not found
    except ValueError as error:
        assert "a.pt" in str(error)  # noqa: PT017
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 40 * len(pickled) + 16 * 2**20


def test_records_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = crafted(tmp_path / "a.pt", dumped({"w": tensor(), "v": tensor(key="1")}), {"0": bytes(24), "1": bytes(24)})
    data = bytearray(path.read_bytes())
    entries = [i for i in range(len(data)) if data[i : i + 4] == b"PK\1\2"]
    data[entries[3] + 42 : entries[3] + 46] = data[entries[2] + 42 : entries[2] + 46]
    path.write_bytes(data)
    with pytest.raises(ValueError, match="share bytes"):
        read(path)


def test_a_damaged_header_does_not_shift_the_numbers(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"w": torch.randn(300), "v": torch.randn(300)})
    data = path.read_bytes()
    at = data.index(b"a/data/0") - 4  # the lengths of the name and of the extra field
    for i in range(at, at + 4):
        for bit in range(8):
            path.write_bytes(data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :])
            with pytest.raises(ValueError, match="'a/data/0' is not as long as it should be"), Handles() as handles:
                values(read_torch(handles.file(path))["w"])


def test_very_many_names_are_read_without_much_memory(tmp_path: Path) -> None:
    storage = Key("storage", torch.FloatStorage, "0", "cpu", 20000)
    rebuild, hooks = torch._utils._rebuild_tensor_v2, OrderedDict()
    content = {f"layer.{i}": Evil(rebuild, storage, i, (1,), (1,), False, hooks) for i in range(20000)}
    path = crafted(tmp_path / "a.pt", dumped(content), {"0": bytes(80000)})
    tracemalloc.start()
    found = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 20000
    assert peak < 12 * path.stat().st_size
    assert overlapping(found.items()) is None


def test_without_the_package_safetensors_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (tmp_path / "1.safetensors").write_bytes(json.dumps({}).encode())
    with Handles() as handles, pytest.raises(ImportError, match=r"pip install 'lightning-glassy\[safetensors\]'"):
        read_safetensors(handles.file(tmp_path / "1.safetensors"))


# ---------------------------------------------------------------------- distributed checkpoints


def save_distributed(folder: Path, content: dict[str, Any]) -> Path:
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(content, checkpoint_id=str(folder), no_dist=True)
    return folder


def test_a_distributed_checkpoint_is_read_as_it_was_saved(tmp_path: Path) -> None:
    content = {
        "model": {"a.b": torch.randn(3, 4), "half": torch.randn(5).bfloat16(), "number": torch.tensor(2.5)},
        "list": [torch.ones(2), torch.zeros(3)],
        "complex": torch.randn(3, 2, dtype=torch.complex64),
        "transposed": torch.randn(3, 4).t(),
        "empty": torch.empty(0, 3),
        "step": 7,
        "state": {"lr": 0.1, "name": "s", "none": None, "scalar": np.float64(3)},
    }
    folder = save_distributed(tmp_path / "step-7", content)
    with Handles() as handles:
        found, files = read_distributed(folder, handles)
        assert [file.name for file in files] == ["__0_0.distcp"]
        assert found["step"] == 7
        assert found["state"] == content["state"]
        assert len(found["list"]) == 2
        for name, tensor in content["model"].items():
            assert np.array_equal(values(found["model"][name]), truth(tensor))
        for name in ("complex", "transposed", "empty"):
            assert found[name].shape == tuple(content[name].shape)
            assert np.array_equal(values(found[name]), truth(content[name]))


@pytest.mark.parametrize("grid", [(2, 1), (1, 3), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_chunks_are_put_together_however_they_cut_the_tensor(
    tmp_path: Path, grid: tuple[int, int], dtype: torch.dtype
) -> None:
    whole = torch.randn(5, 7, dtype=dtype)
    chunks, rows = [], [*torch.arange(5).tensor_split(grid[0])]
    with Handles() as handles:
        for i, row in enumerate(rows):
            for j, column in enumerate(torch.arange(7).tensor_split(grid[1])):
                file = handles.file(saved(tmp_path / f"{i}{j}.distcp", whole[row][:, column].clone()))
                sizes = (len(row), len(column))
                chunks.append(
                    Chunk((int(row[0]), int(column[0])), sizes, lambda file=file: read_object(file, 0, file.size))
                )
        stored = ChunkedTensor(tmp_path, "w", (5, 7), dtype, chunks)
        for block in (1, 4, 9, 100):
            assert np.array_equal(values(stored, block), truth(whole))
        for wrong in (chunks[:-1], [*chunks, chunks[0]], [chunks[0]] * len(chunks)):
            with pytest.raises(ValueError, match="do not cover it once"):
                ChunkedTensor(tmp_path, "w", (5, 7), dtype, wrong)


def test_chunks_that_share_numbers_are_refused(tmp_path: Path) -> None:
    for offsets in ((0, 0), (1, 0), (0, 1)):
        chunks = [Chunk((0, 0), (2, 4), lambda: None), Chunk(offsets, (2, 4), lambda: None)]
        with pytest.raises(ValueError, match="do not cover it once"):
            ChunkedTensor(tmp_path, "w", (4, 4), torch.float32, chunks)


def test_a_tensor_in_many_files_is_read_from_all_of_them(tmp_path: Path) -> None:
    from torch.distributed.checkpoint import metadata as form
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    whole, chunks, where = torch.randn(4, 6), [], {}
    for rank, rows in enumerate((slice(0, 3), slice(3, 4))):
        with (tmp_path / f"__{rank}_0.distcp").open("wb") as file:
            for columns in (slice(0, 2), slice(2, 6)):
                start, part = file.tell(), whole[rows, columns].clone()
                buffer = io.BytesIO()
                torch.save(part, buffer)
                file.write(buffer.getvalue())
                offsets = torch.Size((rows.start, columns.start))
                chunks.append(form.ChunkStorageMetadata(offsets, part.shape))
                info = _StorageInfo(f"__{rank}_0.distcp", start, file.tell() - start)
                where[form.MetadataIndex("m.w", offsets)] = info
    entry = form.TensorStorageMetadata(form.TensorProperties(torch.float32), whole.shape, chunks)
    content = form.Metadata({"m.w": entry}, {"m.w": ("m", "w")}, where)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(content))
    with Handles() as handles:
        found, files = read_distributed(tmp_path, handles)
        assert [file.name for file in files] == ["__0_0.distcp", "__1_0.distcp"]
        for block in (1, 5, 24):
            assert np.array_equal(values(found["m"]["w"], block), truth(whole))


def test_lightnings_sharded_checkpoint_is_read_like_one_in_one_file(tmp_path: Path) -> None:
    folder = save_distributed(tmp_path / "a.ckpt", {"model": {"w": torch.arange(3.0)}, "optimizer_0": {"x": 1}})
    torch.save({"pytorch-lightning_version": "2.5", "global_step": 9}, folder / "meta.pt")
    with Handles() as handles:
        found, _ = read_distributed(folder, handles)
        assert found["global_step"] == 9
        assert values(found["state_dict"]["w"]).tolist() == [0, 1, 2]


def test_the_metadata_of_a_distributed_checkpoint_runs_nothing_and_damage_is_named(tmp_path: Path) -> None:
    folder, mark = save_distributed(tmp_path / "d", {"w": torch.ones(30), "step": 3}), tmp_path / "executed"
    whole = (folder / ".metadata").read_bytes()
    contents = [pickle.dumps(Evil(os.mkdir, str(mark))), b"", b"hello", whole[:-9]]
    contents.append(whole.replace(b"__0_0.distcp", b"../../x.dist"))
    for content in contents:
        (folder / ".metadata").write_bytes(content)
        with Handles() as handles, pytest.raises(ValueError, match=r"d is not a readable distributed checkpoint"):
            read_distributed(folder, handles)
    assert not mark.exists()
    (folder / ".metadata").write_bytes(whole)
    data = (folder / "__0_0.distcp").read_bytes()
    (folder / "__0_0.distcp").write_bytes(data[:-40])
    with Handles() as handles, pytest.raises(ValueError, match=r"d is not a readable .*'__0_0.distcp' is cut short"):
        read_distributed(folder, handles)
    (folder / "__0_0.distcp").unlink()
    with Handles() as handles, pytest.raises(FileNotFoundError, match=r"d is incomplete: there is no '__0_0.distcp'"):
        read_distributed(folder, handles)


def test_the_same_bytes_read_as_another_dtype_are_no_tied_tensor(tmp_path: Path) -> None:
    storage, rebuild = Key("storage", torch.UntypedStorage, "0", "cpu", 12), torch._utils._rebuild_tensor_v3
    content = {
        str(dtype): Evil(rebuild, storage, 0, (6,), (1,), False, OrderedDict(), dtype)
        for dtype in (torch.float16, torch.bfloat16)
    }
    half, other = read(crafted(tmp_path / "a.pt", dumped(content), {"0": bytes(12)})).items()
    assert half[1].place != other[1].place
    assert overlapping([half, other]) == ("torch.float16", "torch.bfloat16")

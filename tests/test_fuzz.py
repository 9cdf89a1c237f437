"""Read a file with any bytes, or with any bytes in its parts: get a usable record, or an error with the reason."""

from __future__ import annotations

import contextlib
import io
import json
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_glassy import AgingRecord, LogTimeSchedule, RecordError
from lightning_glassy.tensorboard.parts import Written, assemble, next_part

# Use the same examples each time. Add a test for each example that a longer search finds.
fuzzed = settings(derandomize=True, deadline=None, database=None, max_examples=250)


def real_record(n_replica: int | None) -> AgingRecord:
    shape = (9, 4) if n_replica is None else (n_replica, 9, 4)
    walk = np.cumsum(np.random.default_rng(2).normal(size=shape), axis=-2)
    record = AgingRecord.from_trajectory(
        walk, LogTimeSchedule([0, 1, 4], [1, 2, 4]), groups={"head": [0, 2]}, meta={"module": "Net", "a": [{"b": 1}]}
    )
    record.append_one_time("learning_rate", 0, 0.1)
    record.append_one_time("learning_rate", 4, 0.05)
    record.append_profile("displacement", 1, 2, [-1.0, 1.0], [0, 3, 1])
    record.append_profile("displacement", 4, 4, [-1.0, 1.0], [1, 2, 1])
    return record


REAL = [real_record(None), real_record(2)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def members_of(record: AgingRecord, directory: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(record.save(directory / "real.npz")) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    return file.getvalue()


def check(read: Callable[[], AgingRecord], size: int, directory: Path) -> None:
    """Read a record that can be used and saved without loss, or get an error. Both need little memory."""
    tracemalloc.start()
    try:
        with contextlib.suppress(RecordError, OSError):
            use(read(), directory)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # In Python, an empty list in the metadata takes 25 times its bytes in JSON, and a million replicas take 8 MB.
    assert peak < 40 * size + 16 * 2**20


def use(record: AgingRecord, directory: Path) -> None:
    try:
        for group in record.groups:
            n_replica = () if record.n_replica is None else (record.n_replica,)
            assert record.msd(group).shape == (*n_replica, len(record.waiting_times), len(record.lags))
        rows = len(record) * len(record.groups) * (record.n_replica or 1)
        assert {len(column) for column in record.table().values()} == {rows}
        record.to_csv(directory / "again.csv")
        again = AgingRecord.load(record.save(directory / "again.npz"))
    except RecordError as error:
        raise AssertionError("a record was read that cannot be used") from error
    assert again == record
    assert json.dumps(again.meta) == json.dumps(record.meta)


def check_file(content: bytes, directory: Path) -> None:
    path = directory / "fuzzed.npz"
    path.write_bytes(content)
    check(lambda: AgingRecord.load(path), len(content), directory)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Change, insert, remove or repeat some bytes."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(result)))
        stop = min(start + draw(st.sampled_from([0, 1, 2, 4, 8, 64])), len(result))
        other = draw(st.integers(0, len(result)))
        result[start:stop] = draw(
            st.binary(max_size=16)
            | st.sampled_from([b"\xff" * 4, b"\xff" * 8, b"\x00" * 8, b"\x7f" + b"\xff" * 7, b"9" * 30, b"[" * 3000])
            | st.just(bytes(result[other : other + 32]))
        )
    return bytes(result)


numbers = (
    st.integers(-3, 3)
    | st.sampled_from([2**31, 2**62 - 1, 2**62, 2**63, 2**64, 10**30, 10**400, True])
    | st.floats()
    | st.sampled_from([0.1, 1e-300, 1e300])
)
names = st.text(max_size=4) | st.sampled_from(["all", "head", "\ud800", "\0", "../x", "a\nb", "x" * 1001, "=1+1"])
values = st.recursive(
    st.none() | st.booleans() | numbers | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
sizes = st.dictionaries(names, numbers, max_size=3) | values
plausible_sizes = st.fixed_dictionaries({"all": st.integers(3, 2**62), "head": st.sampled_from([3, 2**61])})
entries = {
    "format": values,
    "version": numbers,
    "n_parameters": sizes | plausible_sizes,
    "n_sampled": sizes | plausible_sizes,
    "overlap_thresholds": st.lists(numbers, max_size=3) | st.just([1e-18, 1e18]) | values,
    "n_replica": st.none() | numbers,
    "one_time": st.lists(names, max_size=3) | values,
    "profiles": st.lists(names | st.just("displacement"), max_size=3) | values,
    "meta": values | st.dictionaries(names, values),
}
headers = st.lists(
    st.sampled_from([*entries, "meta", "meta"]).flatmap(lambda key: st.tuples(st.just(key), entries[key])), max_size=2
).map(dict)
times = st.integers(0, 9) | st.integers(-1, 2**62)
dtypes = st.sampled_from(["<f8", "<i8", "|u1", ">f8", "<f4", "<u8", "|b1", "<c16", "<M8[s]", "|S3", "<f8,<i8", "|V0"])


@st.composite
def arrays(draw: st.DrawFn) -> bytes:
    """Draw an array of any type and shape, with the right number of bytes or with another number."""
    dtype, shape = np.dtype(draw(dtypes)), tuple(draw(st.lists(st.integers(0, 3), max_size=4)))
    claimed = draw(st.just(shape) | st.lists(st.sampled_from([-1, 0, 1, 2**20, 2**40, 2**63]), max_size=4).map(tuple))
    header = {"descr": dtype.str, "fortran_order": draw(st.sampled_from([False, False, True])), "shape": claimed}
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + draw(st.just(bytes(dtype.itemsize * int(np.prod(shape)))) | st.binary(max_size=64))


@given(st.data())
@fuzzed
def test_a_file_of_which_bytes_were_changed(directory: Path, data: st.DataObject) -> None:
    content = data.draw(st.sampled_from(REAL)).save(directory / "real.npz").read_bytes()
    check_file(data.draw(damaged(content)), directory)


@given(st.data())
@fuzzed
def test_a_file_of_which_the_parts_were_changed(directory: Path, data: st.DataObject) -> None:
    """Change the parts of a file, and make the checksums of the archive right."""
    members = list(members_of(data.draw(st.sampled_from(REAL)), directory).items())
    for _ in range(data.draw(st.integers(1, 3))):
        i = data.draw(st.integers(0, len(members) - 1))
        name, content = members[i]
        members[i] = (name, data.draw(damaged(content) | arrays()))
    check_file(packed(members), directory)


@given(st.sampled_from(REAL), headers)
@fuzzed
def test_a_file_with_any_header(directory: Path, record: AgingRecord, changes: dict[str, Any]) -> None:
    members = members_of(record, directory)
    header = json.loads(members["header.npy"][128:]) | changes
    members["header.npy"] = npy(np.frombuffer(json.dumps(header).encode(), np.uint8))
    check_file(packed(list(members.items())), directory)


@given(st.lists(st.tuples(times, times), max_size=40, unique=True), headers)
@fuzzed
def test_a_file_with_any_times(directory: Path, pairs: list[tuple[int, int]], changes: dict[str, Any]) -> None:
    members = members_of(AgingRecord({"all": 3}), directory)
    header = json.loads(members["header.npy"][128:]) | changes
    times = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    members |= {
        "header.npy": npy(np.frombuffer(json.dumps(header).encode(), np.uint8)),
        "waiting_time.npy": npy(times[:, 0].copy()),
        "lag.npy": npy(times[:, 1].copy()),
        "moments.npy": npy(np.full((len(pairs), 1, 7), np.nan)),
    }
    check_file(packed(list(members.items())), directory)


@given(st.data())
@fuzzed
def test_the_parts_in_an_event_file(directory: Path, data: st.DataObject) -> None:
    record = data.draw(st.sampled_from(REAL))
    first, _ = next_part(record, Written())
    assert first is not None
    line, _, numbers = first.partition(b"\n")
    head = json.loads(line)
    head["header"] |= data.draw(headers)
    changed = json.dumps(head).encode() + b"\n" + numbers
    content = data.draw(st.just(changed) | damaged(first) | damaged(changed))
    check(lambda: assemble([content]), len(content), directory)


def test_many_parts_and_many_names_take_little_memory(directory: Path) -> None:
    check_file(packed([(f"{i:x}.npy", npy(np.zeros(0))) for i in range(1000)]), directory)
    many = [f"{i:x}" for i in range(1000)]
    for record in (
        AgingRecord({"all": 3} | dict.fromkeys(many, 1)),
        AgingRecord({"all": 3}, meta={"a": [[]] * 300_000}),
        AgingRecord({"all": 3}, overlap_thresholds=[0.001 * i for i in range(1, 1000)]),
        AgingRecord({"all": 3}, n_replica=10**6),
    ):
        check_file(record.save(directory / "many.npz").read_bytes(), directory)
    for name in many:
        record.append_one_time(name, 0, 1.0)
    check_file(record.save(directory / "many.npz").read_bytes(), directory)
    record = AgingRecord({"all": 3})
    for i, name in enumerate(many):
        record.append_profile(name, 0, 0, [0.0], [1.0])
        for lag in range(10 * i, 10 * (i + 1)):
            record.append_profile("short", 0, lag, [0.0], [1.0])
    check_file(record.save(directory / "many.npz").read_bytes(), directory)

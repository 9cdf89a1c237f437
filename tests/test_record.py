"""The record: axes, observables, other formats, and a file that is safe to read and to write."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lightning_glassy import AgingRecord, LogTimeSchedule, RecordError
from lightning_glassy import observables as obs
from lightning_glassy.observables import default_overlap_thresholds
from lightning_glassy.record import MOMENTS


@pytest.fixture
def walk() -> np.ndarray:
    return np.cumsum(np.random.default_rng(1).normal(size=(101, 300)), axis=0) + 5.0


@pytest.fixture
def record(walk: np.ndarray) -> AgingRecord:
    record = AgingRecord.from_trajectory(
        walk, LogTimeSchedule.logspaced(100), groups={"head": np.arange(300) < 40}, meta={"seed": 1}
    )
    record.append_one_time("learning_rate", 0, 0.1)
    record.append_one_time("learning_rate", 10, 0.05)
    return record


def test_observables_are_what_their_formulas_say(walk: np.ndarray, record: AgingRecord) -> None:
    i, j = list(record.waiting_times).index(10), list(record.lags).index(50)
    w, s = walk[60], walk[10]
    d = w - s
    eps = record.overlap_thresholds[1]
    assert record.msd()[i, j] == pytest.approx(np.mean(d**2), rel=1e-13)
    assert record.correlation()[i, j] == pytest.approx(np.mean(w * s), rel=1e-13)
    cosine = w @ s / np.linalg.norm(w) / np.linalg.norm(s)
    assert record.correlation(kind="cosine")[i, j] == pytest.approx(cosine, rel=1e-13)
    assert record.decorrelation()[i, j] == pytest.approx(1 - cosine, rel=1e-10)
    assert record.correlation(kind="centred")[i, j] == pytest.approx(np.cov(w, s, ddof=0)[0, 1], rel=1e-10)
    assert record.correlation(kind="pearson")[i, j] == pytest.approx(np.corrcoef(w, s)[0, 1], rel=1e-10)
    assert record.overlap(eps)[i, j] == np.mean(np.abs(d) <= eps)
    assert record.non_gaussian()[i, j] == pytest.approx(np.mean(d**4) / (3 * np.mean(d**2) ** 2) - 1, rel=1e-12)
    assert record.msd("head")[i, j] == pytest.approx(np.mean(d[:40] ** 2), rel=1e-13)


def test_pairs_that_were_not_measured_are_nan(record: AgingRecord) -> None:
    msd = record.msd()
    late = np.add.outer(record.waiting_times, record.lags) > 100
    assert np.isnan(msd[late]).all()
    assert np.isfinite(msd[~late]).all()


def test_replicas_come_first(walk: np.ndarray) -> None:
    schedule = LogTimeSchedule([0, 10], [1, 5])
    both = AgingRecord.from_trajectory(np.stack([walk, 2 * walk]), schedule)
    assert both.msd().shape == (2, 2, 2)
    assert both.n_replica == 2
    assert np.allclose(both.msd()[1], 4 * AgingRecord.from_trajectory(walk, schedule).msd(), rtol=1e-13)


def test_decorrelation_keeps_its_digits_where_a_correlation_has_none() -> None:
    s = np.random.default_rng(0).normal(size=1000)
    w = s + 1e-9 * np.random.default_rng(1).normal(size=1000)
    near = AgingRecord.from_trajectory(np.stack([s, w]), LogTimeSchedule([0], [1]))
    direction = (w - s) - ((w - s) @ s) / (s @ s) * s  # the part that turns
    exact = 0.5 * (direction @ direction) / (s @ s)
    assert near.decorrelation()[0, 0] == pytest.approx(exact, rel=1e-3)
    assert abs(1 - near.correlation(kind="cosine")[0, 0] - exact) > 10 * exact


def test_local_exponent_of_a_power_law_with_gaps_is_its_power() -> None:
    lags = np.array([0, 1, 2, 5, 10, 100])
    msd = 3.0 * lags.astype(float) ** 0.7
    msd[3] = np.nan
    exponent = obs.local_exponent(lags, np.stack([msd, np.full(6, np.nan)]))
    assert np.isnan(exponent[0, [0, 3]]).all()
    assert np.allclose(exponent[0, [1, 2, 4, 5]], 0.7, rtol=1e-12)
    assert np.isnan(exponent[1]).all()


def test_nothing_that_moved_and_nothing_finite_give_nan_not_numbers() -> None:
    still = AgingRecord.from_trajectory(np.ones((3, 5)), LogTimeSchedule([0], [1]))
    assert still.msd()[0, 0] == 0
    assert still.overlap()[0, 0] == 1
    assert np.isnan(still.non_gaussian()[0, 0])
    broken = AgingRecord.from_trajectory(np.array([[1.0, 2.0], [np.nan, 2.0]]), LogTimeSchedule([0], [1]))
    assert np.isnan(broken.msd()[0, 0])
    assert np.isnan(broken.overlap()[0, 0])


def test_questions_without_an_answer_name_what_there_is(record: AgingRecord) -> None:
    with pytest.raises(KeyError, match=r"no group 'tail'; there are 'all', 'head'"):
        record.msd("tail")
    with pytest.raises(KeyError, match="no one-time series 'loss'; there are"):
        record.one_time("loss")
    with pytest.raises(ValueError, match=r"eps=0.5 was not counted"):
        record.overlap(0.5)
    with pytest.raises(ValueError, match="kind='spearman'"):
        record.correlation(kind="spearman")
    with pytest.raises(ValueError, match="measured already"):
        record.append(0, 1, np.zeros((2, len(MOMENTS) + 2)))
    with pytest.raises(ValueError, match="shape"):
        record.append(7, 7, np.zeros(3))
    with pytest.raises(ValueError, match="overlap_thresholds must increase"):
        AgingRecord({"all": 3}, overlap_thresholds=[0.2, 0.1])


def test_sampling_error_is_the_scatter_of_samples() -> None:
    rng = np.random.default_rng(3)
    population = rng.normal(size=2000)  # displacements d. The weights themselves do not matter here
    means, errors = [], []
    for _ in range(2000):
        d = rng.choice(population, 1000, replace=False)
        means.append(np.mean(d**2))
        errors.append(obs.msd_standard_error((d**2).sum(), (d**4).sum(), 1000, 2000))
    # Half of the population is drawn. Without the factor sqrt(1 - n/N), the error would be 1.41 times too large. The
    # scatter of 2000 draws is itself known to 1.6 %.
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.06)
    assert obs.msd_standard_error(1.0, 1.0, 50, 50) == 0
    fractions, errors = [], []
    near = np.abs(population) < 0.5
    for _ in range(2000):
        count = rng.choice(near, 1000, replace=False).sum()
        fractions.append(count / 1000)
        errors.append(obs.overlap_standard_error(count, 1.0, 1000, 2000))
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(fractions), rel=0.06)


def test_file_gives_back_every_bit(record: AgingRecord, tmp_path: Path) -> None:
    path = record.save(tmp_path / "deep" / "aging.npz")
    again = AgingRecord.load(path)
    assert again == record
    assert again.meta == record.meta
    assert again.one_time("learning_rate")[1].tolist() == [0.1, 0.05]
    assert list(tmp_path.joinpath("deep").iterdir()) == [path]  # no temporary file stays


def test_file_of_replicas_and_of_nothing(walk: np.ndarray, tmp_path: Path) -> None:
    both = AgingRecord.from_trajectory(np.stack([walk, walk + 1]), LogTimeSchedule([0, 10], [1, 5]))
    assert AgingRecord.load(both.save(tmp_path / "a")) == both
    empty = AgingRecord({"all": 3})
    assert AgingRecord.load(empty.save(tmp_path / "b")) == empty
    assert empty.msd().shape == (0, 0)


def test_a_failed_write_leaves_the_earlier_file(record: AgingRecord, tmp_path: Path) -> None:
    path = record.save(tmp_path / "aging.npz")
    before = path.read_bytes()
    record.meta["model"] = object()
    with pytest.raises(TypeError, match="JSON"):
        record.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_every_truncation_is_an_error(record: AgingRecord, tmp_path: Path) -> None:
    content = record.save(tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "part.npz"
    for length in [0, 1, 10, *range(100, len(content), 97)]:
        path.write_bytes(content[:length])
        with pytest.raises(RecordError):
            AgingRecord.load(path)


def test_no_flipped_byte_gives_another_record(record: AgingRecord, tmp_path: Path) -> None:
    content = bytearray(record.save(tmp_path / "whole.npz").read_bytes())
    path, rng, survived = tmp_path / "flipped.npz", np.random.default_rng(5), 0
    for place in rng.integers(len(content), size=300):
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        try:
            survived += AgingRecord.load(path) == record
        except RecordError:
            continue
        assert AgingRecord.load(path) == record
    assert survived < 150  # some bytes of a zip directory carry nothing


def hostile(tmp_path: Path, record: AgingRecord, **changes: object) -> Path:
    """Write the record's file with parts replaced: a header entry, or the bytes of a member."""
    source = record.save(tmp_path / "source.npz")
    target = tmp_path / "hostile.npz"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.namelist():
            content = old.read(member)
            name = member.removesuffix(".npy")
            if name == "header" and "header" in changes:
                array = np.frombuffer(json.dumps(header_of(source) | changes["header"]).encode(), np.uint8)
                content = npy(array)
            elif name == "header" and "header_text" in changes:
                content = npy(np.frombuffer(changes["header_text"], np.uint8))
            elif isinstance(changes.get(name), bytes):
                content = changes[name]
            new.writestr(member, content)
    return target


def header_of(path: Path) -> dict:
    with np.load(path) as file:
        return json.loads(file["header"].tobytes())


def npy(array: np.ndarray, **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


def test_hostile_files_are_errors(record: AgingRecord, tmp_path: Path) -> None:
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(huge, {"descr": "<i8", "fortran_order": False, "shape": (10**13,)})
    cases: list[tuple[dict, str]] = [
        ({"header": {"version": 99}}, "format 99.*upgrade lightning_glassy"),
        ({"header": {"version": "1"}}, "format version is '1'"),
        ({"header": {"format": "something else"}}, "not a lightning_glassy record"),
        ({"header": {"n_parameters": {"all": -3}}}, "well-formed"),
        ({"header": {"n_parameters": {"all": 1e300}}}, "something else where numbers"),
        ({"header": {"n_parameters": [1, 2]}}, "well-formed"),
        ({"header": {"overlap_thresholds": ["x"]}}, "something else where numbers"),
        ({"header": {"overlap_thresholds": "12"}}, "something else where numbers"),
        ({"header": {"n_parameters": {"all": 10**400, "head": 1}}}, "impossible|well-formed"),
        ({"header": {"version": True}}, "format version is True"),
        ({"header": {"one_time": {"a": 1}}}, "something else where numbers"),
        ({"header": {"overlap_thresholds": [0.1] * 7}}, "well-formed"),
        ({"header": {"one_time": ["a", "a"]}}, "repeated name"),
        ({"header": {"one_time": ["a", "b"]}}, "well-formed.*one_time_1"),
        ({"header": {"n_replica": 10**9}}, "well-formed|rows"),
        ({"header": {"meta": 3}}, "no metadata"),
        ({"moments": npy(np.zeros(3, dtype="datetime64[s]"))}, "not part of a record"),
        ({"moments": npy(np.array([{}], dtype=object), allow_pickle=True)}, "not part of a record"),
        ({"moments": npy(np.zeros((1, 1, 1)))}, "rows|well-formed"),
        ({"moments": b"\x93NUMPY\x09\x00 nonsense"}, "array format"),
        ({"waiting_time": npy(np.zeros(3, dtype=np.float32))}, "not a column of int64"),
        ({"waiting_time": npy(np.full(len(record), -5))}, "cannot be negative|well-formed"),
        ({"waiting_time": huge.getvalue()}, "0 bytes where its header promises"),
    ]
    for changes, message in cases:
        with pytest.raises(RecordError, match=message):
            AgingRecord.load(hostile(tmp_path, record, **changes))


def record_of(pairs: list[tuple[int, int]]) -> AgingRecord:
    record = AgingRecord({"all": 3})
    for pair in pairs:
        record.append(*pair, np.ones(record.row_shape))
    return record


def test_rows_that_would_make_a_matrix_of_gigabytes_are_refused(tmp_path: Path) -> None:
    scattered = record_of([(i, i + 1) for i in range(30_000)])
    with pytest.raises(RecordError, match=r"30,000 pairs of times would make a matrix of 900,000,000 cells"):
        AgingRecord.load(scattered.save(tmp_path / "scattered.npz"))


def test_all_pairs_of_checkpoints_at_any_steps_are_not_refused(tmp_path: Path) -> None:
    steps = np.cumsum(np.random.default_rng(0).integers(1, 10**9, size=250)).tolist()
    record = record_of([(a, b - a) for i, a in enumerate(steps) for b in steps[i + 1 :]])
    assert len(record.waiting_times) * len(record.lags) > 7_000_000  # no two pairs share a lag
    assert AgingRecord.load(record.save(tmp_path / "checkpoints.npz")) == record


def test_what_a_record_could_not_be_saved_or_shown_with_is_refused_at_once(record: AgingRecord, tmp_path: Path) -> None:
    deep: dict = {}
    for _ in range(60):
        deep = {"a": deep}
    with pytest.raises(ValueError, match="nested more than 50 levels deep"):
        AgingRecord({"all": 3}, meta=deep)
    with pytest.raises(ValueError, match=r"a name of 1,001 characters, 'xxx.*at most 1,000"):
        AgingRecord({"all": 3, "x" * 1001: 1})
    with pytest.raises(RecordError, match="50 levels"):
        AgingRecord.load(hostile(tmp_path, record, header={"meta": deep}))
    for text in (b"[" * 10**6, b'{"version": ' + b"9" * 10**6 + b"}", b'{"format": NaN}'):
        with pytest.raises(RecordError):
            AgingRecord.load(hostile(tmp_path, record, header_text=text))


def test_a_bomb_is_not_inflated_and_a_pickle_not_opened(record: AgingRecord, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.npy", npy(np.zeros(10**8, dtype=np.uint8)))
    with pytest.raises(RecordError, match="compressed"):
        AgingRecord.load(bomb)

    class Payload:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "owned"),)

    pickled = npy(np.array([Payload()], dtype=object), allow_pickle=True)
    with pytest.raises(RecordError):
        AgingRecord.load(hostile(tmp_path, record, lag=pickled))
    assert not (tmp_path / "owned").exists()


def test_foreign_files_are_errors_and_missing_ones_are_missing(tmp_path: Path) -> None:
    np.savez(tmp_path / "foreign.npz", a=np.arange(3))
    (tmp_path / "text.npz").write_text("hello")
    for name, message in (("foreign.npz", "no header"), ("text.npz", "not a lightning_glassy record")):
        with pytest.raises(RecordError, match=message):
            AgingRecord.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        AgingRecord.load(tmp_path / "nowhere.npz")


def test_no_crafted_array_header_raises_anything_else(record: AgingRecord, tmp_path: Path) -> None:
    texts = (
        "{'descr': '<f8', 'shape': (1,1,8",
        '"""abc',
        "((((((",
        "{'a':1}\n  x\n y",
        "-" * 9000 + "1",
        "{'descr': ()}",
    )
    for text in texts:
        header = text.encode()
        content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(24)
        with pytest.raises(RecordError):
            AgingRecord.load(hostile(tmp_path, record, lag=content))


def test_a_part_that_is_there_twice_is_an_error(record: AgingRecord, tmp_path: Path) -> None:
    path = record.save(tmp_path / "twice.npz")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("moments", archive.read("moments.npy"))
    with pytest.raises(RecordError, match="names a part twice"):
        AgingRecord.load(path)


def test_a_replacement_that_fails_leaves_the_earlier_file_and_nothing_else(
    record: AgingRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = record.save(tmp_path / "aging.npz")
    before, record.meta["more"] = path.read_bytes(), 1

    def fail(self: Path, target: Path) -> None:
        assert path.read_bytes() == before  # whole until the very end
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        record.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecordError, match="a device or a pipe"):
        AgingRecord.load(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        AgingRecord.load(tmp_path)


def test_runs_of_the_same_schedule_become_replicas(walk: np.ndarray) -> None:
    schedule = LogTimeSchedule.logspaced(100)
    runs = [AgingRecord.from_trajectory(k * walk, schedule, overlap_thresholds=[0.1]) for k in (1, 2, 3)]
    for k, run in enumerate(runs):
        run.append_one_time("learning_rate", 0, 0.1 * (k + 1))
    whole = AgingRecord.concat(runs)
    assert np.array_equal(whole.moments, AgingRecord.concat([AgingRecord.concat(runs[:2]), runs[2]]).moments)
    assert whole.n_replica == 3
    for k, run in enumerate(runs):
        assert np.array_equal(whole.msd()[k], run.msd(), equal_nan=True)
    assert whole.one_time("learning_rate")[1] == pytest.approx([0.2])
    trajectory = AgingRecord.from_trajectory(np.stack([walk, 2 * walk, 3 * walk]), schedule, overlap_thresholds=[0.1])
    assert np.allclose(whole.moments, trajectory.moments, rtol=1e-13)


def test_runs_that_do_not_match_are_named(walk: np.ndarray) -> None:
    schedule = LogTimeSchedule.logspaced(100)
    run = AgingRecord.from_trajectory(walk, schedule)
    eps = run.overlap_thresholds
    other = [
        (
            AgingRecord.from_trajectory(walk[:, :5], schedule, overlap_thresholds=eps),
            r"records\[1\] .* in n_parameters",
        ),
        (
            AgingRecord.from_trajectory(900 * walk, schedule),
            r"in overlap_thresholds.* same overlap_thresholds=\[\.\.\.\]",
        ),
        (
            AgingRecord.from_trajectory(walk, LogTimeSchedule([0], [1]), overlap_thresholds=eps),
            r"records\[1\] .* in the pairs .* 116 are in one of them only",
        ),
    ]
    for record, message in other:
        with pytest.raises(ValueError, match=message):
            AgingRecord.concat([run, record])
    with pytest.raises(ValueError, match="records is empty"):
        AgingRecord.concat([])


def of_seed(seed: int, n: int = 100) -> AgingRecord:
    """Return a random walk of n steps, with a loss at every tenth step. All runs have the schedule of 100 steps."""
    walk = np.cumsum(np.random.default_rng(seed).normal(size=(n + 1, 20)), axis=0)
    record = AgingRecord.from_trajectory(walk, LogTimeSchedule.logspaced(100), overlap_thresholds=[1.0])
    for step in range(0, n + 1, 10):
        record.append_one_time("train_loss", step, seed + step)
    return record


@pytest.mark.parametrize("short", [0, 1, 11])
def test_a_run_that_was_cut_short_is_named_with_the_remedy(short: int) -> None:
    runs = [of_seed(seed, n=42 if seed == short else 100) for seed in range(16)]
    end = runs[short].last_step
    with pytest.raises(ValueError, match=r"does not match records\[0\] in the pairs") as caught:
        AgingRecord.concat(runs)
    text = str(caught.value)
    assert f"records[{short}] ends at step {end}, and records[{int(short == 0)}] at step 100: a run was cut" in text
    assert f"record.before({end + 1}) cuts every record there" in text
    assert "common=True" in text
    cut = AgingRecord.concat([run.before(end + 1) for run in runs])
    assert AgingRecord.concat(runs, common=True) == cut
    assert len(cut) == len(runs[short])
    # The series has the steps that all runs have.
    steps, values = cut.one_time("train_loss")
    assert steps.tolist() == [0, 10, 20, 30, 40]
    assert values == pytest.approx(7.5 + steps)
    assert np.array_equal(cut.msd()[short], runs[short].msd(), equal_nan=True)


def test_runs_of_other_schedules_are_joined_at_their_common_pairs_only_if_told() -> None:
    walks = [np.cumsum(np.random.default_rng(k).normal(size=(101, 20)), axis=0) for k in range(2)]
    schedules = (LogTimeSchedule([0, 10], [1, 5, 80]), LogTimeSchedule([0, 20], [1, 7, 80]))
    runs = [
        AgingRecord.from_trajectory(walk, schedule, overlap_thresholds=[1.0])
        for walk, schedule in zip(walks, schedules, strict=True)
    ]
    with pytest.raises(
        ValueError, match=r"in the pairs .*\) for example\. Use the pairs that all have with common=True"
    ):
        AgingRecord.concat(runs)
    assert AgingRecord.concat(runs, common=True).pairs[1].tolist() == [1, 80]
    other = AgingRecord.from_trajectory(walks[1], LogTimeSchedule([3], [4]), overlap_thresholds=[1.0])
    with pytest.raises(ValueError, match=r"no pair .* was measured in all runs"):
        AgingRecord.concat([runs[0], other], common=True)
    assert AgingRecord.concat(runs[:1], common=True) == AgingRecord.concat(runs[:1])


def test_csv_holds_every_pair_and_odd_names(walk: np.ndarray, tmp_path: Path) -> None:
    odd = 'a,"b"\n<img onerror=x>'
    record = AgingRecord.from_trajectory(walk, LogTimeSchedule([0], [1, 2]), groups={odd: [0, 1]})
    with record.to_csv(tmp_path / "aging.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["group"], row["waiting_time"], row["lag"]) for row in rows] == [
        ("all", "0", "1"), ("all", "0", "2"), (odd, "0", "1"), (odd, "0", "2"),
    ]  # fmt: skip
    assert float(rows[1]["msd"]) == record.msd()[0, 1]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "a\r=1"])
def test_no_name_is_a_formula_of_a_spreadsheet(walk: np.ndarray, tmp_path: Path, name: str) -> None:
    record = AgingRecord.from_trajectory(walk, LogTimeSchedule([0], [1]), groups={name: [0, 1]})
    with record.to_csv(tmp_path / "aging.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["group"] for row in rows] == ["all", name.replace("\r", r"\r") if "\r" in name else f"'{name}"]
    assert float(rows[0]["non_gaussian"]) == record.non_gaussian()[0, 0]
    assert record.table()["group"] == ["all", name]  # Python has it as it is


@pytest.mark.needs("pandas", "xarray")
def test_pandas_and_xarray_hold_the_same_numbers(record: AgingRecord) -> None:
    frame = record.to_pandas()
    row = frame[(frame.group == "head") & (frame.waiting_time == 10) & (frame.lag == 50)].iloc[0]
    dataset = record.to_xarray()
    cell = dataset.sel(group="head", waiting_time=10, lag=50)
    assert float(cell.msd) == row.msd
    assert row.msd == record.msd("head")[list(record.waiting_times).index(10), list(record.lags).index(50)]
    assert dataset.overlap.dims == ("eps", "group", "waiting_time", "lag")


def test_trajectories_that_are_none_are_refused() -> None:
    schedule = LogTimeSchedule([0], [1])
    for weights, message in (
        (np.zeros(3), "shape"),
        (np.zeros((1, 3)), "no step"),
        (np.zeros((3, 0)), "no coordinate"),
    ):
        with pytest.raises(ValueError, match=message):
            AgingRecord.from_trajectory(weights, schedule)
    with pytest.raises(ValueError, match="choose another name"):
        AgingRecord.from_trajectory(np.zeros((3, 2)), schedule, groups={"all": [0]})


@pytest.mark.parametrize(
    "members",
    [[2], [-3], [True], [True, False, True], [[0], [1]], [0, 0], [], 0, "a", np.ma.array([0, 1], mask=[1, 0])],
)
def test_a_group_of_no_coordinates_of_the_trajectory_is_refused(members: object) -> None:
    with pytest.raises(ValueError, match=r"groups\['odd'\]"):
        AgingRecord.from_trajectory(np.zeros((3, 2)), groups={"odd": members})


def test_reading_a_record_imports_neither_torch_nor_lightning(record: AgingRecord, tmp_path: Path) -> None:
    path = record.save(tmp_path / "aging.npz")
    code = (
        "import sys, lightning_glassy, lightning_glassy.glasses, lightning_glassy.plotting\n"
        f"record = lightning_glassy.AgingRecord.load({str(path)!r})\n"
        "record.msd(), lightning_glassy.LogTimeSchedule.logspaced(10)\n"
        "print(sorted({'torch', 'lightning', 'pytorch_lightning', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_runs_of_other_settings_and_one_run_twice_are_no_replicas() -> None:
    rng = np.random.default_rng(0)
    schedule = LogTimeSchedule([0, 2], [1, 4])

    def run(**meta: object) -> AgingRecord:
        return AgingRecord.from_trajectory(rng.normal(size=(8, 5)), schedule, overlap_thresholds=[0.1], meta=meta)

    first = run(module="Net", optimizers=[{"name": "SGD", "parameter_groups": [{"lr": 0.1}]}])
    with pytest.raises(ValueError, match=r"records\[1\] does not match records\[0\] in optimizers.*: .*0.2.*0.1"):
        AgingRecord.concat([first, run(module="Net", optimizers=[{"name": "SGD", "parameter_groups": [{"lr": 0.2}]}])])
    with pytest.raises(ValueError, match=r"records\[2\] and records\[0\] hold the same run to the bit"):
        AgingRecord.concat([first, run(), first])
    # Metadata that only one record has, or that may differ, are no mismatch.
    assert AgingRecord.concat([first, run(seed="1")]).n_replica == 2


def test_the_displacement_over_the_gradient_noise() -> None:
    walk = np.cumsum(np.ones((101, 4)), axis=0)
    record = AgingRecord.from_trajectory(walk, LogTimeSchedule([0, 9, 99], [1]))
    with pytest.raises(KeyError, match="no one-time series 'gradient_noise'"):
        record.msd(normalise="noise")
    for step, noise in ((0, 4.0), (99, 1.0)):
        record.append_one_time("gradient_noise", step, noise)
    # ln D is linear in ln(1 + step): from 1 to 100, the step 9 is half-way.
    assert record.msd(normalise="noise")[:, 0] == pytest.approx([1 / 4, 1 / 2, 1.0])
    assert record.gradient_noise([0, 9, 99]) == pytest.approx([4.0, 2.0, 1.0])
    assert np.isnan(record.gradient_noise([100])).all()  # not extrapolated
    with pytest.raises(ValueError, match="normalise='loss'"):
        record.msd(normalise="loss")
    with pytest.raises(KeyError, match="no group 'head'"):
        record.gradient_noise([0], "head")
    silent = AgingRecord.from_trajectory(walk, LogTimeSchedule([0], [1]))
    silent.append_one_time("gradient_noise", 0, 0.0)
    assert np.isnan(silent.msd(normalise="noise")).all()


def test_functions_at_pairs_of_times_are_kept_sorted_and_saved(record: AgingRecord, tmp_path: Path) -> None:
    grid = [-1.0, 0.0, 1.0]
    for waiting_time, lag, counts in ((10, 5, [1, 2, 3, 4]), (0, 50, [4, 3, 2, 1]), (10, 1, [9, 9, 9, 9])):
        record.append_profile("displacement", waiting_time, lag, grid, counts)
    record.append_profile("displacement", 10, 1, grid, [0, 5, 5, 0])  # the later one wins
    record.append_profile("loss_path", 0, 50, [0.0, 0.5, 1.0], [3.0, np.nan, 1.0])
    again = AgingRecord.load(record.save(tmp_path / "record.npz"))
    assert again == record
    assert again.profile_names == ("displacement", "loss_path")
    waiting_times, lags, edges, counts = again.profile("displacement")
    assert (waiting_times.tolist(), lags.tolist()) == ([0, 10, 10], [50, 1, 5])
    assert edges.tolist() == grid
    assert counts.tolist() == [[4, 3, 2, 1], [0, 5, 5, 0], [1, 2, 3, 4]]
    # A row in one record alone makes the records differ.
    again.append_profile("loss_path", 10, 1, [0.0, 0.5, 1.0], [3.0, 2.0, 1.0])
    assert again != record
    # The record before the event at a step has all earlier measurements.
    earlier = again.before(15)
    assert [pair for name in earlier.profile_names for pair in zip(*earlier.profile(name)[:2], strict=True)] == [
        (10, 1),
        (10, 1),
    ]
    assert again.before(11).profile_names == ()
    with pytest.raises(KeyError, match="there are 'displacement', 'loss_path'"):
        record.profile("weights")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("displacement", -1, 0, [0.0], [1.0]), "waiting_time=-1"),
        (("displacement", 0, 2**62, [0.0], [1.0]), "steps lie between"),
        (("displacement", 0, 1, [0.0, 0.0], [1.0]), "finite numbers that increase"),
        (("displacement", 0, 1, [0.0, np.inf], [1.0]), "finite numbers that increase"),
        (("displacement", 0, 1, [], [1.0]), "finite numbers that increase"),
        (("displacement", 0, 1, [0.0, 1.0], [[1.0]]), r"values of shape \(1, 1\)"),
        (("displacement", 0, 1, [0.0, 1.0], []), r"values of shape \(0,\)"),
        (("there", 0, 2, [0.0, 1.0], [1.0, 2.0, 3.0]), "another grid, or number of values"),
        (("there", 0, 2, [0.0, 2.0], [1.0, 2.0]), "another grid, or number of values"),
    ],
)
def test_functions_that_could_not_be_read_again_are_refused(
    record: AgingRecord, arguments: tuple, message: str
) -> None:
    record.append_profile("there", 0, 1, [0.0, 1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match=message):
        record.append_profile(*arguments)
    assert record.profile_names == ("there",)
    assert len(record.profile("there").values) == 1


def test_a_grid_that_another_processor_rounded_is_the_same_grid(record: AgingRecord, tmp_path: Path) -> None:
    here = np.concatenate([-(10.0 ** np.arange(3)), 10.0 ** np.linspace(-300, 300, 61)])
    here.sort()
    for direction in (-np.inf, np.inf):
        there = np.nextafter(np.nextafter(here, direction), direction)
        record.append_profile("displacement", 0, 1, here, np.zeros(len(here) + 1))
        record.append_profile("displacement", 0, 2, there, np.ones(len(here) + 1))
        assert np.array_equal(record.profile("displacement").grid, here)
        assert AgingRecord.load(record.save(tmp_path / "record.npz")) == record
        with pytest.raises(ValueError, match="another grid"):
            record.append_profile("displacement", 0, 3, here * (1 + 1e-12), np.ones(len(here) + 1))


def test_hostile_functions_are_errors(record: AgingRecord, tmp_path: Path) -> None:
    record.append_profile("displacement", 0, 1, [0.0, 1.0], [1.0, 2.0, 3.0])
    for name, array in (
        ("profile_0_value", np.zeros(3)),
        ("profile_0_value", np.zeros((2, 3))),
        ("profile_0_value", np.zeros((1, 0))),
        ("profile_0_value", np.zeros((1, 3), dtype=np.float32)),
        ("profile_0_grid", np.array([1.0, 0.0])),
        ("profile_0_grid", np.zeros((1, 2))),
        ("profile_0_lag", np.array([-1])),
        ("profile_0_lag", np.array([1.0])),
    ):
        with pytest.raises(RecordError):
            AgingRecord.load(hostile(tmp_path, record, **{name: npy(array)}))
    for names in (["displacement"] * 2, ["displacement", "other"], [1], "displacement", None):
        with pytest.raises(RecordError):
            AgingRecord.load(hostile(tmp_path, record, header={"profiles": names}))


# ---------------------------------------------------------------------- the order of groups, and odd arguments


def test_groups_in_another_order_are_another_record() -> None:
    schedule, walks = LogTimeSchedule([0], [1, 2]), np.random.default_rng(0).normal(size=(2, 5, 4))
    groups = {"x": [0, 1], "y": [2, 3]}
    one = AgingRecord.from_trajectory(walks[0], schedule, groups=groups, overlap_thresholds=[])
    two = AgingRecord.from_trajectory(
        walks[1], schedule, groups=dict(list(groups.items())[::-1]), overlap_thresholds=[]
    )
    with pytest.raises(ValueError, match=r"records\[1\] does not match records\[0\] in n_parameters"):
        AgingRecord.concat([one, two])
    row = np.arange(14.0).reshape(2, 7)
    same = [AgingRecord(dict.fromkeys(names, 4)) for names in (("all", "x"), ("x", "all"), ("all", "x"))]
    for record in same:
        record.append(0, 1, row)
    assert same[0] == same[2]
    assert same[0] != same[1]
    assert same[0].is_part_of(same[2])
    assert not same[0].is_part_of(same[1])


def test_the_mean_series_of_replicas_does_not_depend_on_how_they_were_joined(walk: np.ndarray) -> None:
    runs = []
    for i, noise in enumerate((1.0, 2.0, 9.0)):
        runs.append(AgingRecord.from_trajectory(walk[:5] + walk[:5] ** (1 + i), LogTimeSchedule([0], [1, 2])))
        runs[-1].overlap_thresholds = runs[0].overlap_thresholds
        runs[-1].append_one_time("gradient_noise", 0, noise)
    joined = AgingRecord.concat([AgingRecord.concat(runs[:2]), runs[2]])
    assert joined == AgingRecord.concat(runs)
    assert joined.one_time("gradient_noise")[1].tolist() == [4.0]


def test_a_file_that_names_not_all_of_its_content_is_refused(record: AgingRecord, tmp_path: Path) -> None:
    header = header_of(record.save(tmp_path / "record.npz"))
    for kind in ("one_time", "between", "profiles"):
        text = json.dumps({key: value for key, value in header.items() if key != kind}).encode()
        with pytest.raises(RecordError, match=kind):
            AgingRecord.load(hostile(tmp_path, record, header_text=text))
    with pytest.raises(RecordError, match="does not name one_time_0_step, one_time_0_value"):
        AgingRecord.load(hostile(tmp_path, record, header={"one_time": []}))


def test_two_files_in_one_are_not_one_of_them(record: AgingRecord) -> None:
    content = record.to_bytes()
    for both in (content + AgingRecord({"all": 3}).to_bytes(), b"#!" + content, content + b"\n"):
        with pytest.raises(RecordError, match="before or after"):
            AgingRecord.from_bytes(both)


def test_metadata_that_a_file_would_change_are_refused(record: AgingRecord, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="meta has two keys that are one in a file"):
        AgingRecord({"all": 3}, meta={"outer": [{1: "a", "1": "b"}]})
    deep: list = []
    for _ in range(60):
        deep = [deep]
    record.meta["deep"] = deep
    for save in (record.to_bytes, lambda: record.save(tmp_path / "deep.npz")):
        with pytest.raises(ValueError, match="nested more than 50 levels"):
            save()
    assert not (tmp_path / "deep.npz").exists()


def test_numbers_of_numpy_are_numbers_and_odd_sizes_are_named() -> None:
    record = AgingRecord({"all": np.int64(3)}, n_replica=np.int64(2))
    assert AgingRecord.from_bytes(record.to_bytes()) == record
    with pytest.raises(ValueError, match="n_replica=True"):
        AgingRecord({"all": 3}, n_replica=True)
    for sizes, sampled in (({1: 5, "1": 6, "all": 7}, None), ({"all": 3, "x": 2}, {"all": 3}), ({"all": 3}, {"al": 3})):
        with pytest.raises(ValueError, match="n_sampled has the groups"):
            AgingRecord(sizes, n_sampled=sampled)


def test_thresholds_that_print_alike_have_a_column_each() -> None:
    for near in (0.5000001, 0.5 * (1 + 1e-10)):
        record = AgingRecord({"all": 4}, overlap_thresholds=[0.5, near])
        record.append(0, 1, [[1.0] * 7 + [2.0, 4.0]])
        overlaps = {name: column for name, column in record.table().items() if name.startswith("overlap")}
        assert overlaps == {"overlap_0.5": [0.5], f"overlap_{near}": [1.0]}
        assert [record.overlap(eps).item() for eps in record.overlap_thresholds] == [0.5, 1.0]


def test_a_table_of_some_pairs_takes_any_pairs(walk: np.ndarray) -> None:
    replicas = AgingRecord.from_trajectory(np.stack([walk, 2 * walk]), LogTimeSchedule.logspaced(100))
    expected = replicas.mean_table([(0, 1), (1, 10)])
    assert expected["lag"] == [1, 10]
    for pairs in ([[0, 1], [1, 10]], np.array([[0, 1], [1, 10]]), iter([(0, 1), (1, 10)]), [(0, 1), (1, 10), (0, 1)]):
        assert replicas.mean_table(pairs) == expected
    for record in (replicas, AgingRecord.from_trajectory(walk, LogTimeSchedule.logspaced(100))):
        with pytest.raises(KeyError, match="7"):
            record.table([(0, 7.5)])


def test_a_table_has_a_line_per_group_replica_and_pair_or_their_mean(walk: np.ndarray) -> None:
    walks, schedule = np.stack([walk, 2 * walk, walk**2]), LogTimeSchedule([0, 10], [1, 10])
    record = AgingRecord.from_trajectory(walks, schedule, groups={"two": [0, 1]}, overlap_thresholds=[0.5, 2.0])
    table, mean = record.table(), record.mean_table()
    assert table["group"] == ["all"] * 12 + ["two"] * 12
    assert table["replica"] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2] * 2
    assert (table["waiting_time"], table["lag"]) == ([0, 0, 10, 10] * 6, [1, 10] * 12)
    assert "replica" not in mean
    assert mean["group"] == ["all"] * 4 + ["two"] * 4
    assert mean["n_parameters"] == [walk.shape[1]] * 4 + [2] * 4
    for name, (entry, eps) in record.columns().items():
        values = np.stack([record.observable(entry.name, group, eps=eps) for group in record.groups])
        np.testing.assert_array_equal(table[name], values.ravel(), err_msg=name)
        np.testing.assert_allclose(mean[name], values.mean(axis=1).ravel(), rtol=1e-15, err_msg=name)
    alone = AgingRecord.from_trajectory(walk, schedule)
    assert alone.mean_table() == alone.table()
    empty = AgingRecord({"all": 2}, n_replica=2)
    assert set(map(len, empty.table().values())) == {0}
    assert set(map(len, empty.mean_table().values())) == {0}


def test_without_a_sample_there_is_no_sampling_error_even_of_what_diverged() -> None:
    record = AgingRecord({"all": 4, "one": 1}, overlap_thresholds=[0.1])
    record.append(0, 1, np.full(record.row_shape, np.nan))
    record.append(1, 1, np.full(record.row_shape, np.inf))
    record.append(1, 2, np.ones(record.row_shape))
    for group in record.groups:
        for name in ("msd", "overlap"):
            expected = np.where(np.isin([[1, 0], [1, 1]], 1), 0.0, np.nan)
            np.testing.assert_array_equal(record.standard_error(name, group), expected)


@pytest.mark.parametrize("edge", [0.0158113883, 0.158113883, 0.0707, 0.05, 0.1, 1.0])
def test_seeds_on_both_sides_of_any_edge_share_a_default_threshold_and_become_replicas(edge: float) -> None:
    rng, schedule = np.random.default_rng(0), LogTimeSchedule([0, 2], [1, 4])
    walks = [edge * factor * rng.normal(size=(8, 20_000)) for factor in (0.97, 0.99, 1.01, 1.03)]
    runs = [AgingRecord.from_trajectory(walk, schedule) for walk in walks]
    merged = AgingRecord.concat(runs)
    assert 1 <= len(merged.overlap_thresholds) <= 2
    for eps in merged.overlap_thresholds:
        assert 0.003 * edge < eps < 0.33 * edge
        for k, run in enumerate(runs):
            assert np.array_equal(merged.overlap(eps)[k], run.overlap(eps), equal_nan=True)
            assert np.array_equal(merged.msd()[k], run.msd(), equal_nan=True)


def test_default_thresholds_are_about_a_hundredth_and_a_tenth_of_the_spread() -> None:
    for spread in np.geomspace(1e-6, 1e6, 97):
        small, large = default_overlap_thresholds(spread)
        assert abs(np.log10(small / spread * 100)) < 0.501
        assert large == pytest.approx(10 * small, rel=1e-15)


@pytest.mark.parametrize("spread", [0.0, np.nan, np.inf, 1e-300, 1e-17, 1e17, 1e300])
def test_default_thresholds_are_always_possible(spread: float) -> None:
    assert len(AgingRecord({"all": 1}, overlap_thresholds=default_overlap_thresholds(spread)).overlap_thresholds) == 2


def test_thresholds_that_not_all_runs_have_are_left_out(walk: np.ndarray) -> None:
    schedule, rng = LogTimeSchedule.logspaced(100), np.random.default_rng(0)
    runs = [
        AgingRecord.from_trajectory(walk + rng.normal(size=walk.shape), schedule, overlap_thresholds=thresholds)
        for thresholds in ([0.1, 1.0, 2.0], [1.0, 3.0], [0.5, 1.0])
    ]
    assert AgingRecord.concat(runs).overlap_thresholds == (1.0,)
    assert np.array_equal(AgingRecord.concat(runs).overlap()[1], runs[1].overlap(1.0), equal_nan=True)


# ---------------------------------------------------------------------- trajectories


def test_frames_at_other_times_than_every_step_are_compared_at_their_times(walk: np.ndarray) -> None:
    times = [0, 1, 3, 10, 31, 100]
    record = AgingRecord.from_trajectory(walk[times], times=times, overlap_thresholds=[1.0])
    assert list(zip(*(axis.tolist() for axis in record.pairs), strict=True)) == sorted(
        (a, b - a) for a in times for b in times if b > a
    )
    for waiting_time, lag in zip(*record.pairs, strict=True):
        i, k = record.waiting_times.tolist().index(waiting_time), record.lags.tolist().index(lag)
        d = walk[waiting_time + lag] - walk[waiting_time]
        assert record.msd()[i, k] == pytest.approx(np.mean(d**2), rel=1e-13)
        assert record.overlap()[i, k] == np.mean(np.abs(d) <= 1.0)
    # With a schedule, it has the pairs with two frames, equal to the pairs of the whole trajectory.
    schedule = LogTimeSchedule([0, 1, 2, 10], [1, 2, 9, 30])
    chosen = AgingRecord.from_trajectory(walk[times], schedule, times=times, overlap_thresholds=[1.0])
    whole = AgingRecord.from_trajectory(walk, schedule, overlap_thresholds=[1.0])
    assert sorted(zip(*(axis.tolist() for axis in chosen.pairs), strict=True)) == [(0, 1), (1, 2), (1, 9), (1, 30)]
    assert chosen.is_part_of(whole)
    every = AgingRecord.from_trajectory(walk[::10], times=range(0, 101, 10), overlap_thresholds=[1.0])
    assert every.is_part_of(AgingRecord.from_trajectory(walk, overlap_thresholds=[1.0]))
    stacked = np.stack([walk, 2 * walk])[:, times]
    assert np.array_equal(
        AgingRecord.from_trajectory(stacked, times=times, overlap_thresholds=[1.0]).msd()[0],
        record.msd(),
        equal_nan=True,
    )


def test_a_schedule_without_a_pair_of_frames_names_the_nearest_frames() -> None:
    with pytest.raises(
        ValueError, match=r"\(10, 5\) needs frames at 10 \(the nearest is at 9\) and at 15 \(.* at 16\)"
    ):
        AgingRecord.from_trajectory(np.ones((3, 5)), LogTimeSchedule([10], [5]), times=[0, 9, 16])


@pytest.mark.parametrize(
    ("times", "error", "message"),
    [
        ([0, 1], ValueError, r"times of shape \(2,\) and weights of shape \(3, 5\): give one time"),
        ([0.0, 1.0, 2.0], TypeError, "times of dtype float64 are not integers"),
        ([False, True, True], TypeError, "times of dtype bool"),
        (["0", "1", "2"], TypeError, "times of dtype"),
        ([0, 2, 2], ValueError, r"times\[2\]=2 follows 2: times must increase"),
        (np.array([3, 2, 5], dtype=np.uint8), ValueError, r"times\[1\]=2 follows 3"),
        ([-1, 2, 3], ValueError, "times from -1 to 3"),
        ([0, 1, 2**62], ValueError, "times from 0"),
    ],
)
def test_times_that_are_none_are_refused(times: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AgingRecord.from_trajectory(np.ones((3, 5)), times=times)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_coordinates_of_particles_are_no_replicas_unless_told(n: int) -> None:
    weights = np.random.default_rng(0).normal(size=(7, 5, n))
    with pytest.raises(
        ValueError, match=rf"\(7, 5, {n}\) may be coordinates .*weights.reshape\(7, -1\) .* n_replica=7 for"
    ):
        AgingRecord.from_trajectory(weights)
    assert AgingRecord.from_trajectory(weights, n_replica=7).n_replica == 7
    assert AgingRecord.from_trajectory(weights.reshape(7, -1)).n_parameters == {"all": 5 * n}
    assert AgingRecord.from_trajectory(np.ones((7, 5, 4))).n_replica == 7
    for other, shape in ((5, (7, 5, 4)), (1, (7, 5))):
        with pytest.raises(ValueError, match=rf"n_replica={other} and weights of shape"):
            AgingRecord.from_trajectory(np.ones(shape), n_replica=other)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ma.masked_invalid([[1.0, np.nan], [2.0, 3.0]]), r"masked array.*filled"),
        ([np.ma.array([1.0, 2.0], mask=[0, 1]), np.ma.array([1.0, 2.0])], "masked array"),
        (np.ones((3, 2)) * 1j, r"complex128.*weights.real, weights.imag"),
        (np.array([[1.0, None], [2.0, 3.0]]), "dtype object"),
        (np.ones((3, 2), dtype=bool), "dtype bool"),
        (np.full((3, 2), "1"), "dtype <U1"),
        ([[1.0, 2.0], [3.0]], "not an array"),
        (np.zeros((3, 2), dtype="M8[s]"), "dtype datetime64"),
        (None, "dtype object"),
    ],
)
def test_weights_that_a_record_would_change_are_refused(weights: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        AgingRecord.from_trajectory(weights)  # type: ignore[arg-type]


def test_nan_stays_nan_and_a_schedule_is_a_schedule() -> None:
    weights = np.ones((3, 2))
    weights[1, 0] = np.nan
    assert np.isnan(AgingRecord.from_trajectory(weights).msd()[0, 0])
    with pytest.raises(TypeError, match=r"schedule=\[0, 1, 2\] is not a LogTimeSchedule"):
        AgingRecord.from_trajectory(weights, [0, 1, 2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"schedule=None means all 1,999,000 pairs"):
        AgingRecord.from_trajectory(np.ones((2000, 1)))

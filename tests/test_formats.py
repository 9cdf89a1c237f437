"""A file names its sums. It may have other sums, fewer sums, sums in another order, or the first format."""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from lightning_glassy import AgingRecord, AgingTracker, LogTimeSchedule, RecordError, cli
from lightning_glassy.analysis import aging_exponent, heterogeneity
from lightning_glassy.loggers.figures import Figures
from lightning_glassy.loggers.sinks import scalars
from lightning_glassy.measure.resume import StateError
from lightning_glassy.observables import OBSERVABLES
from lightning_glassy.plotting.panels import panels
from lightning_glassy.record import MOMENTS, MSD_MOMENTS
from lightning_glassy.report import answers, report
from lightning_glassy.tensorboard.parts import Written, assemble, next_part

FORMATS = Path(__file__).parent / "formats"


@pytest.fixture
def record() -> AgingRecord:
    walk = np.cumsum(np.random.default_rng(3).normal(size=(2, 301, 50)), axis=1)
    return AgingRecord.from_trajectory(walk, LogTimeSchedule.logspaced(300), groups={"head": [0, 2, 4]})


def with_sums(record: AgingRecord, sums: tuple[str, ...]) -> AgingRecord:
    """Copy a record with other sums. Known names keep their columns, and the other columns are 7.0."""
    other = AgingRecord(
        record.n_parameters,
        overlap_thresholds=record.overlap_thresholds,
        n_replica=record.n_replica,
        meta=record.meta,
        sums=sums,
    )
    for t_w, t, row in zip(*record.pairs, record.moments, strict=True):
        columns = [row[..., record.sums.index(s)] if s in record.sums else np.full(row.shape[:-1], 7.0) for s in sums]
        counts = [row[..., len(record.sums) + i] for i in range(len(record.overlap_thresholds))]
        other.append(t_w, t, np.stack([*columns, *counts], axis=-1))
    return other


def through_a_file(record: AgingRecord, path: Path) -> AgingRecord:
    return AgingRecord.load(record.save(path / "record.npz"))


def through_event_files(record: AgingRecord, path: Path) -> AgingRecord:
    content, _ = next_part(record, Written())
    return assemble([content])


def same(one: AgingRecord, other: AgingRecord, names: list[str]) -> bool:
    return all(
        np.array_equal(one.observable(name, group), other.observable(name, group), equal_nan=True)
        for name in names
        for group in one.groups
    )


@pytest.mark.parametrize("again", [through_a_file, through_event_files])
@pytest.mark.parametrize("sums", [(*MOMENTS, "d6"), ("d6", *MOMENTS[::-1]), ("d6", "d2", "ws", *MOMENTS[3:], "d4")])
def test_a_sum_that_nobody_knows_changes_nothing_and_is_kept(
    record: AgingRecord, tmp_path: Path, again: object, sums: tuple[str, ...]
) -> None:
    opened = again(with_sums(record, sums), tmp_path)
    assert opened.sums == sums
    assert opened.available() == record.available()
    assert same(opened, record, record.available())
    assert opened.table().keys() == record.table().keys()
    saved = AgingRecord.load(opened.save(tmp_path / "again.npz"))
    assert saved == opened
    assert (saved.moments[..., sums.index("d6")] == 7).all()


@pytest.mark.needs("xarray", "plotly")
@pytest.mark.parametrize("again", [through_a_file, through_event_files])
def test_without_a_sum_the_record_opens_and_gives_what_can_be_computed(
    record: AgingRecord, tmp_path: Path, again: object, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = again(with_sums(record, tuple(name for name in MOMENTS if name != "d4")), tmp_path)
    lost = {entry.name for entry in OBSERVABLES.values() if "d4" in entry.inputs}
    assert lost >= {"non_gaussian", "binder_cumulant"}
    assert set(record.available()) - set(opened.available()) == lost
    assert same(opened, record, opened.available())
    with pytest.raises(ValueError, match=r"non_gaussian is made of the sum 'd4', which this record does not have: its"):
        opened.non_gaussian()
    with pytest.raises(ValueError, match="binder_cumulant is made of the sum 'd4'"):
        opened.observable("binder_cumulant")
    sampled = AgingRecord({"all": 100}, n_sampled={"all": 50}, sums=opened.sums)
    sampled.append(0, 1, np.ones(sampled.row_shape))
    with pytest.raises(ValueError, match="the standard error of msd is made of the sum 'd4'"):
        sampled.standard_error("msd")
    assert np.array_equal(opened.standard_error("msd"), record.standard_error("msd"), equal_nan=True)
    # All loops over the observables leave these out.
    assert set(record.table()) - set(opened.table()) == lost
    assert set(record.to_xarray()) - set(opened.to_xarray()) == lost
    assert not any("non_gaussian" in tag for tag, *_ in scalars(opened, [(0, 1)], "glassy"))
    assert "non_gaussian" not in dict(Figures("a test").draw(opened))
    assert not lost & set(answers.describe(opened)["observables"])
    assert aging_exponent(opened).estimate == aging_exponent(record).estimate
    path = opened.save(tmp_path / "fewer.npz")
    assert cli.main(["report", str(path), "-o", str(tmp_path / "report")]) == 0
    assert cli.main(["report", str(path), "--observable", "non_gaussian", "--no-files"]) == 2
    assert "non_gaussian is made of the sum 'd4'" in capsys.readouterr().err
    assert cli.main(["show", str(path)]) == 0
    assert "non_gaussian" not in capsys.readouterr().out


def test_without_the_displacement_nothing_is_offered_that_needs_it(record: AgingRecord, tmp_path: Path) -> None:
    record.append_one_time("gradient_noise", 0, 1.0)
    assert {"displacement_over_noise", "noise_clock"} <= set(panels(record))
    opened = with_sums(record, tuple(name for name in MOMENTS if name != "d2"))
    opened.append_one_time("gradient_noise", 0, 1.0)
    assert set(panels(opened)) == {"gradient_noise"}
    assert heterogeneity(opened).chi4 is None
    assert same(opened, record, opened.available())
    assert "correlation_cosine" in opened.available()
    assert [name for name, _ in Figures("a test").draw(opened)] == ["gradient_noise"]
    with pytest.raises(ValueError, match="msd is made of the sum 'd2', which this record does not have"):
        report(opened)


def test_runs_of_different_sums_are_no_replicas(record: AgingRecord) -> None:
    with pytest.raises(ValueError, match=r"records\[1\] does not match records\[0\] in sums"):
        AgingRecord.concat([record, with_sums(record, (*MOMENTS, "d6"))])


@pytest.mark.parametrize("name", ["n", "noise", "count", "msd"])
def test_an_unknown_sum_may_have_any_name(record: AgingRecord, tmp_path: Path, name: str) -> None:
    opened = through_a_file(with_sums(record, (*MOMENTS, name)), tmp_path)
    assert opened.sums == (*MOMENTS, name)
    for known in record.available():
        np.testing.assert_array_equal(opened.observable(known), record.observable(known))


@pytest.mark.parametrize("sums", ["d2", (), ("d2", "d2"), ("d2", "\ud800"), ("d2", 2)])
def test_names_that_are_none_for_sums_are_refused(sums: object) -> None:
    with pytest.raises(ValueError, match=r"sums=|a sum"):
        AgingRecord({"all": 3}, sums=sums)


def test_a_record_of_other_sums_cannot_go_on_in_a_training(tmp_path: Path) -> None:
    import torch

    layer = torch.nn.Linear(2, 2)
    tracker = AgingTracker(layer, LogTimeSchedule([0], [1, 2]))
    tracker.update(0)
    state = tracker.state_dict()
    more = with_sums(tracker.record, (*MOMENTS, "d6"))
    state["record"] = torch.frombuffer(bytearray(more.to_bytes()), dtype=torch.uint8)
    with pytest.raises(StateError, match=r"has the sums \['d6'\], which this version does not measure"):
        AgingTracker(layer, LogTimeSchedule([0], [1, 2]), state=state)


def test_a_record_of_fewer_sums_goes_on_with_these() -> None:
    import torch

    layer = torch.nn.Linear(2, 2)
    tracker = AgingTracker(layer, LogTimeSchedule([0], [1, 2]))
    tracker.update(0)
    tracker.update(1)
    state = tracker.state_dict()
    fewer = with_sums(tracker.record, tuple(name for name in MOMENTS if name != "d4"))
    state["record"] = torch.frombuffer(bytearray(fewer.to_bytes()), dtype=torch.uint8)
    second = AgingTracker(layer, LogTimeSchedule([0], [1, 2]), state=state)
    second.update(2)
    second.drain()
    assert second.record.sums == fewer.sums
    assert second.record.msd().tolist() == [[0.0, 0.0]]


def test_the_displacement_alone_has_no_columns_without_numbers() -> None:
    import torch

    layer = torch.nn.Linear(2, 2)
    tracker = AgingTracker(layer, LogTimeSchedule([0], [1]), moments="msd", overlap_thresholds=[0.1])
    tracker.update(0)
    tracker.update(1)
    tracker.drain()
    assert (tracker.record.sums, tracker.record.overlap_thresholds) == (MSD_MOMENTS, ())
    assert np.isfinite(tracker.record.moments).all()
    there = tracker.record.available()
    assert {"msd", "local_exponent"} <= set(there)
    assert not {"overlap", "non_gaussian", "decorrelation"} & set(there)
    assert tracker.record.standard_error("msd").tolist() == [[0.0]]


# ---------------------------------------------------------------------- the first format


def test_a_record_of_the_first_format_opens() -> None:
    """Open a file from before the header named the sums. In its moments, the replicas came first."""
    opened = AgingRecord.load(FORMATS / "replicas_v1.npz")
    # Steps of eighths have exact sums of powers on every processor.
    walks = np.cumsum(np.round(8 * np.random.default_rng(20).normal(size=(3, 13, 6))) / 8, axis=1)
    made = AgingRecord.from_trajectory(
        walks, LogTimeSchedule([0, 1, 4], [1, 2, 5]), groups={"head": [0, 2]}, overlap_thresholds=[0.5, 1.5]
    )
    assert opened.sums == MOMENTS
    assert np.array_equal(opened.moments, made.moments)
    assert same(opened, made, made.available())
    assert opened.one_time("train_loss")[1].tolist() == [1.0, 0.2]
    assert opened.between("weight_distance")[1].tolist() == [np.zeros((3, 3)).tolist(), np.full((3, 3), 4.0).tolist()]
    assert opened.profile("displacement").values.tolist() == [[0, 3, 1]]
    assert opened.meta["module"] == "Net"


@pytest.mark.slow
@pytest.mark.needs("plotly", "matplotlib", "scipy")
@pytest.mark.parametrize("name", ["msd_v1", "parts_v1", "replicas_v1"])
def test_a_record_of_the_first_format_has_a_report(name: str, tmp_path: Path) -> None:
    written = report(AgingRecord.load(FORMATS / f"{name}.npz")).write(tmp_path)
    assert {"report.txt", "report.json", "report.html", "curves.png"} <= {path.name for path in written}


def test_the_displacement_alone_of_the_first_format_opens_without_its_empty_columns() -> None:
    opened = AgingRecord.load(FORMATS / "msd_v1.npz")
    assert (opened.sums, opened.overlap_thresholds) == (MSD_MOMENTS, ())
    assert opened.msd().tolist() == [[0.5, 1.25]]


def test_metadata_alone_take_no_column_from_a_record_of_the_first_format() -> None:
    record = AgingRecord.load(FORMATS / "replicas_v1.npz")
    record.meta["moments"] = "msd"
    assert record.upgraded(1) == record


@pytest.mark.parametrize("file", ["replicas_v1.npz", "msd_v1.npz", "parts_v1.npz"])
def test_a_sum_of_tomorrow_leaves_the_first_format_readable(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = AgingRecord.load(FORMATS / file)
    for name, module in list(sys.modules.items()):
        if name.startswith("lightning_glassy") and hasattr(module, "MOMENTS"):
            monkeypatch.setattr(module, "MOMENTS", (*MOMENTS, "d6"))
    assert AgingRecord.load(FORMATS / file) == before


def test_event_files_of_the_first_format_are_read() -> None:
    parts = [base64.b64decode(part) for part in json.loads((FORMATS / "parts_v1.json").read_text())]
    assert assemble(parts) == AgingRecord.load(FORMATS / "parts_v1.npz")


def test_a_file_of_the_next_format_is_refused_by_name(record: AgingRecord, tmp_path: Path) -> None:
    record.header = lambda: AgingRecord.header(record) | {"version": 3}  # type: ignore[method-assign]
    with pytest.raises(RecordError, match="written in format 3, this version of lightning_glassy reads up to 2"):
        AgingRecord.load(record.save(tmp_path / "next.npz"))


# ---------------------------------------------------------------------- parts that do not belong together


@pytest.mark.parametrize(
    "change",
    [
        {"sums": list(MOMENTS[::-1])},
        {"n_parameters": {"head": 3, "all": 50}, "n_sampled": {"head": 3, "all": 50}},
        {"overlap_thresholds": [1.0, 2.0]},
        {"n_replica": None},
        {"format": "foreign"},
    ],
)
@pytest.mark.parametrize("changed", [0, 1])
def test_parts_that_measure_something_else_are_refused(record: AgingRecord, change: dict, changed: int) -> None:
    first, written = next_part(record, Written())
    record.meta["seed"] = 1
    second, _ = next_part(record, written)
    parts = [first, second]
    assert assemble(parts) == record
    head, _, numbers = parts[changed].partition(b"\n")
    content = json.loads(head)
    content["header"] |= change
    parts[changed] = json.dumps(content).encode() + b"\n" + numbers
    with pytest.raises(RecordError):
        assemble(parts)


def test_a_part_that_names_something_twice_is_refused(record: AgingRecord) -> None:
    content, _ = next_part(record, Written())
    assert content is not None
    # Remove the checksum, which earlier versions did not write.
    content = re.sub(rb'"checksum": "[0-9a-f]{8}", ', b"", content, count=1)
    twice = content.replace(b'"n_parameters": {"all": 50', b'"n_parameters": {"all": 5, "all": 50', 1)
    assert twice != content
    with pytest.raises(RecordError, match="twice"):
        assemble([twice])

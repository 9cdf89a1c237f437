"""The search for records: links, event files without a record file, and runs that were cut short."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lightning_glassy import AgingRecord, LogTimeSchedule, RecordError, cli, sources
from lightning_glassy.sources import find_records, read_sources

SCHEDULE = LogTimeSchedule.logspaced(200)


def record_of(seed: int = 0, n: int = 200, **meta: object) -> AgingRecord:
    walk = np.cumsum(np.random.default_rng(seed).normal(size=(n + 1, 20)), axis=0)
    return AgingRecord.from_trajectory(walk, SCHEDULE, overlap_thresholds=[1.0], meta={"id": f"{seed}", **meta})


def saved(folder: Path, record: AgingRecord) -> Path:
    return record.save(folder / "glassy" / "aging_record.npz")


def report(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["report", *map(str, arguments), "--bootstrap", "10"])
    return code, *capsys.readouterr()


# ---------------------------------------------------------------------- links


def test_links_to_directories_of_runs_are_followed_and_each_file_is_found_once(tmp_path: Path) -> None:
    scratch, top = tmp_path / "scratch", tmp_path / "work" / "runs"
    top.mkdir(parents=True)
    files = [saved(scratch / f"version_{i}", record_of(i)) for i in range(3)]
    own = saved(top / "own", record_of(3))
    (top / "far").symlink_to(scratch)
    (top / "again").symlink_to(scratch / "version_1")
    (top / "own" / "back").symlink_to(top)
    found = find_records([top])
    assert {os.path.realpath(path) for path in found} == {os.path.realpath(path) for path in [*files, own]}
    assert len(found) == 4
    (tmp_path / "link").symlink_to(top)
    assert len(find_records([tmp_path / "link"])) == 4
    # If a file has a path without links below the named directory, this path is used.
    assert find_records([tmp_path / "scratch", top])[:3] == files


def test_a_link_that_leads_to_everything_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "users" / "me"
    saved(home / "private", record_of(1))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    own = saved(tmp_path / "disk" / "runs", record_of(0))
    for name, target in (("root", "/"), ("home", home), ("users", home.parent), ("up", tmp_path / "disk")):
        (own.parent / name).symlink_to(target)
    assert find_records([tmp_path / "disk" / "runs"]) == [own]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all("not followed" in line for line in lines)
    # A part of the home directory may hold runs.
    (own.parent / "part").symlink_to(home / "private")
    assert len(find_records([tmp_path / "disk" / "runs"])) == 2


def test_a_link_that_may_not_be_followed_is_named_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = saved(tmp_path, record_of(0))
    (tmp_path / "of_others").symlink_to(tmp_path / "private")
    is_dir = Path.is_dir

    def refuse(path: Path, **options: bool) -> bool:  # the superuser may follow every link
        if path.name == "of_others":
            raise PermissionError(13, "Permission denied", str(path))
        return is_dir(path, **options)

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert find_records([tmp_path]) == [own]
    assert capsys.readouterr().err == f"{tmp_path / 'of_others'} cannot be read: left out (Permission denied)\n"


def test_the_search_behind_a_link_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "_MOST_BEHIND_A_LINK", 20)
    for i in range(40):
        (tmp_path / "data" / str(i)).mkdir(parents=True)
    own = [saved(tmp_path / "runs" / str(i), record_of(i)) for i in range(30)]
    (tmp_path / "runs" / "data").symlink_to(tmp_path / "data")
    assert find_records([tmp_path / "runs"]) == sorted(own)
    assert "is a link to more than 20 directories" in capsys.readouterr().err


@pytest.mark.needs("plotly")
def test_a_report_is_not_written_behind_a_link_that_the_search_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = saved(tmp_path / "mine", record_of())
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / "x").symlink_to(tmp_path / "mine")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert report(capsys, tmp_path / "sent")[0] == 0
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert (tmp_path / "here" / "glassy_report" / "report.txt").exists()
    # A path that the user names may lead through a link.
    assert report(capsys, tmp_path / "sent" / "x")[0] == 0
    assert (file.parent / "report-aging_record" / "report.txt").exists()


# ---------------------------------------------------------------------- event files


def write_events(folder: Path, *records: AgingRecord, monitor: str = "glassy") -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    from lightning_glassy.loggers.tensorboard import TensorBoardSink

    writer = SummaryWriter(folder)
    sink = TensorBoardSink(SimpleNamespace(experiment=writer, log_dir=str(folder)), monitor)
    for record in records:  # later states of one record
        with sink._writing():
            sink._write_part(record)
        writer.add_scalar("loss", 1.0, 3)
        writer.add_image("image", np.zeros((3, 40, 40)), 3)
    writer.close()


@pytest.mark.parametrize("named", ["directory", "file"])
def test_an_event_file_alone_gives_the_whole_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], named: str
) -> None:
    record = record_of(doubts=["the weights are averages"])
    record.append_one_time("train_loss", 3, 0.5)
    write_events(tmp_path / "version_0", record.before(20), record.before(100), record)
    (events,) = (tmp_path / "version_0").iterdir()
    (source,) = read_sources([tmp_path if named == "directory" else events])
    assert source.record == record
    assert source.record.meta == record.meta
    path = tmp_path if named == "directory" else events
    assert cli.main(["show", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["pairs"], shown["path"], shown["doubts"]) == (len(record), str(events), record.doubts)
    code, out, _ = report(capsys, path, "--no-files")
    assert code == 0
    assert "verdict:" in out


@pytest.mark.needs("plotly")
def test_the_report_of_an_event_file_is_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_events(tmp_path / "version_0", record_of(), monitor="../../x")
    assert report(capsys, tmp_path)[0] == 0
    assert (tmp_path / "version_0" / "report-______x" / "report.txt").exists()


def test_the_file_of_a_record_wins_over_its_event_file(tmp_path: Path, capsys) -> None:
    for i in range(2):
        record = record_of(i)
        write_events(tmp_path / f"version_{i}", record.before(50), record)
        saved(tmp_path / f"version_{i}", record.before(100))
    write_events(tmp_path / "version_2", record_of(2))
    found = read_sources([tmp_path])
    assert [len(source.record) for source in found] == [len(record_of().before(100))] * 2 + [len(record_of())]
    assert [source.path.suffix == ".npz" for source in found] == [True, True, False]
    # The event files go on to a later step, as after a kill. This is reported.
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("is used, and ends before" in line for line in lines)


def test_the_event_file_of_a_resumed_run_stands_beside_the_file_of_its_beginning(tmp_path: Path, capsys) -> None:
    record = record_of()
    saved(tmp_path / "version_0", record.before(50))
    resumed = record_of()
    resumed.start_branch(step=50)
    write_events(tmp_path / "version_1", resumed)
    assert len(read_sources([tmp_path])) == 2
    code, out, err = report(capsys, tmp_path, "--no-files", "--json")
    assert (code, "is an earlier part of another record here" in err) == (0, True)
    assert json.loads(out)["n_replica"] == 1
    assert len(json.loads(out)["records"]) == 1


def test_event_files_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch, capsys) -> None:
    saved(tmp_path / "a", record_of())
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "events.out.tfevents.1").touch()

    def refuse(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sources, "records_in", refuse)
    assert len(read_sources([tmp_path])) == 1
    assert "b: an event file cannot be read: Permission denied" in capsys.readouterr().err
    with pytest.raises(RecordError, match="an event file cannot be read"):
        read_sources([tmp_path / "b"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_with_the_name_of_an_event_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "events.out.tfevents.1")
    with pytest.raises(RecordError, match="a device or a pipe"):
        read_sources([tmp_path / "events.out.tfevents.1"])
    with pytest.raises(FileNotFoundError, match=r"no aging_record\.npz"):
        read_sources([tmp_path])


def test_a_record_without_identity_is_known_by_its_rows(tmp_path: Path) -> None:
    record = record_of()
    del record.meta["id"]
    write_events(tmp_path, record.before(100))
    saved(tmp_path, record)
    assert len(read_sources([tmp_path])) == 1


def test_the_event_files_of_a_resumed_run_and_of_two_monitors_are_told_apart(tmp_path: Path) -> None:
    record = record_of()
    write_events(tmp_path, record.before(100))
    write_events(tmp_path, record)
    write_events(tmp_path, record_of(1), monitor="slow")
    found = read_sources([tmp_path])
    assert [(source.name, source.record) for source in found] == [("glassy", record), ("slow", record_of(1))]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_an_event_file_that_is_a_pipe_or_a_device_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "events.out.tfevents.1")
    (tmp_path / "events.out.tfevents.2").symlink_to("/dev/zero")
    for path in tmp_path.iterdir():
        with pytest.raises(RecordError, match="not a file but a device or a pipe"):
            read_sources([path])


def test_event_files_without_a_record_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_events(tmp_path / "events")
    saved(tmp_path / "file", record_of())
    assert len(read_sources([tmp_path])) == 1
    (events,) = (tmp_path / "events").iterdir()
    for path in (tmp_path / "events", events):
        assert report(capsys, path)[:2] == (2, "")
        assert cli.main(["show", str(path)]) == 2
        assert "no record of an AgingMonitor" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="this event file holds no record"):
        read_sources([tmp_path / "file", events])


def flip(content: bytes) -> bytes:
    at = content.index(b"_record/") + 400
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda content: content[: len(content) // 2],
        lambda content: content[:40],
        lambda content: content[:8] + b"\xff" * 40,
        lambda content: struct.pack("<Q", 2**62) + content[8:],
        lambda content: content.replace(b"_record/", b"\xff" * 8),
        lambda content: struct.pack("<QI", 30, 0) + b"_record/" + b"\x2a" * 22 + bytes(4),
        lambda content: b"",
    ],
)
def test_a_damaged_event_file_is_a_sentence_or_a_record_with_fewer_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[bytes], bytes]
) -> None:
    record = record_of()
    write_events(tmp_path, *(record.before(step) for step in (2, 5, 10, 20, 50, 100)), record)
    (events,) = tmp_path.iterdir()
    events.write_bytes(damage(events.read_bytes()))
    try:
        (source,) = read_sources([tmp_path])
    except (FileNotFoundError, RecordError):
        assert cli.main(["show", str(tmp_path)]) == 2
        assert str(tmp_path) in capsys.readouterr().err
    else:
        assert source.record.is_part_of(record)
        notes = capsys.readouterr().err
        assert ("missing or damaged" in notes) == bool(source.record.doubts)


def test_missing_parts_are_a_doubt_of_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = record_of()
    write_events(tmp_path, *(record.before(step) for step in (5, 20, 100)), record)
    (events,) = tmp_path.iterdir()
    content = events.read_bytes()
    at = content.index(b"_record/", content.index(b"_record/") + 100) + 400  # in the second part
    events.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    code, out, err = report(capsys, tmp_path, "--no-files")
    assert code == 0
    assert "1 of 4 parts of the record are missing or damaged" in err
    assert "! 1 of 4 parts of the record are missing or damaged" in out


# ---------------------------------------------------------------------- runs that were cut short


def test_a_replica_that_was_cut_short_is_left_out_by_name_and_common_uses_what_all_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(16):
        saved(tmp_path / f"version_{i:02d}", record_of(i, n=90 if i == 11 else 200))
    short, first = (tmp_path / f"version_{i:02d}" / "glassy" / "aging_record.npz" for i in (11, 0))
    code, out, err = report(capsys, tmp_path, "--no-files", "--json")
    end, content = record_of(11, n=90).last_step, json.loads(out)
    sentence = f"{short} ends at step {end}, and the other 15 runs at step 200: left out, as runs cut short; --common"
    assert code == 0
    assert sentence in err
    assert (content["n_replica"], len(content["records"])) == (15, 15)
    assert str(short) not in content["records"]
    assert content["doubts"][0].startswith(sentence)
    assert any(doubt.startswith(sentence) for doubt in content["verdict"]["warnings"])
    code, out, err = report(capsys, tmp_path, "--no-files", "--common", "--json")
    n, total = len(record_of(0, n=90)), len(record_of())
    assert f"not all runs have {total - n} of {total} pairs of {first}, " in err
    assert "and 12 more: left out" in err
    content = json.loads(out)
    assert (content["n_replica"], len(content["records"])) == (16, 16)
    assert max(content["lags"]) <= end
    assert report(capsys, tmp_path, "--common", "--separate")[2].count("exclude each other") == 1


def test_a_run_cut_short_beside_a_single_complete_one_is_named_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, short = (saved(tmp_path / str(i), record_of(i, n=n)) for i, n in enumerate((200, 90)))
    code, out, err = report(capsys, tmp_path, "--no-files")
    end = record_of(1, n=90).last_step
    assert (code, out) == (2, "")
    assert f"{short} ends at step {end}, and {first} at step 200: a run was cut short" in err
    assert "--common" in err
    assert "common=" not in err
    assert "records[" not in err


def test_a_run_that_was_killed_before_its_first_pair_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        saved(tmp_path / str(i), record_of(i))
    empty = saved(tmp_path / "3", record_of(3).before(0))
    code, out, err = report(capsys, tmp_path, "--no-files", "--json")
    assert (code, json.loads(out)["n_replica"]) == (0, 3)
    assert f"{empty} has no pair of times, and the other 3 runs at step 200: left out" in err
    code, _, err = report(capsys, tmp_path, "--no-files", "--separate")
    assert (code, f"{empty}: the record is empty, no pair of times was measured: left out" in err) == (0, True)
    code, _, err = report(capsys, tmp_path, "--no-files", "--common")
    assert (code, f"{empty}: the record is empty" in err) == (2, True)


def test_a_short_run_of_another_model_is_no_run_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        record = record_of(i, n=90 if i == 2 else 200)
        record.meta["module"] = "Other" if i == 2 else "Net"
        saved(tmp_path / str(i), record)
    code, _, err = report(capsys, tmp_path, "--no-files")
    assert (code, "in module: 'Other' and 'Net'" in err) == (2, True)


def test_thresholds_that_not_all_runs_have_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, thresholds in enumerate(([1.0, 2.0], [1.0], [1.0])):
        walk = np.cumsum(np.random.default_rng(i).normal(size=(201, 20)), axis=0)
        saved(tmp_path / str(i), AgingRecord.from_trajectory(walk, SCHEDULE, overlap_thresholds=thresholds))
    code, _, err = report(capsys, tmp_path, "--no-files")
    assert code == 0
    assert "aging_record.npz: not all runs have the thresholds 2.0: left out" in err

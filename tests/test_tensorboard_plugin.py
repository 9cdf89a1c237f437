"""The data of the tab Glassy, read back from real event files through TensorBoard's own data providers."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution, entry_points
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.application import TensorBoardWSGI
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.data import server_ingester
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.grpc_util import ChannelCredsType
from torch.utils.tensorboard import SummaryWriter
from werkzeug.test import Client

from lightning_glassy import (
    AgingMonitor,
    AgingRecord,
    BarrierMonitor,
    DisplacementDistribution,
    LogTimeEvaluator,
    LogTimeSchedule,
    RecordError,
    ReplicaEnsemble,
    ReplicaOverlap,
    ReplicaTraining,
    cli,
    per_replica,
)
from lightning_glassy.analysis import diffusion, relaxation_curves
from lightning_glassy.analysis.collapse import collapse_quality
from lightning_glassy.analysis.exponent_result import COLLAPSES
from lightning_glassy.analysis.plateaus import above_plateaus
from lightning_glassy.loggers import tensorboard as sink_module
from lightning_glassy.loggers.tensorboard import TensorBoardSink
from lightning_glassy.observables import Array
from lightning_glassy.report import answers, report
from lightning_glassy.report.page import STATIC
from lightning_glassy.tensorboard import parts
from lightning_glassy.tensorboard import plugin as plugin_module
from lightning_glassy.tensorboard.events import Place, place_of, summary, tag_of
from lightning_glassy.tensorboard.once import Answers, BusyError
from lightning_glassy.tensorboard.plugin import GlassyPlugin
from tests.helpers import PageAnswers, SmallNet, data, quiet_trainer
from tests.test_report import record_of

ODD = "<img src=x onerror=alert(1)>"


def write(folder: Path, *records: AgingRecord, monitor: str = "glassy") -> None:
    """Write records as the sink does, each as the record of its own training in the same directory."""
    for record in records:
        writer = SummaryWriter(folder)
        TensorBoardSink(SimpleNamespace(experiment=writer, log_dir=str(folder)), monitor)._write_part(record)
        writer.close()


def slow(logdir: Path) -> Any:
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    return MultiplexerDataProvider(multiplexer, str(logdir))


@pytest.fixture
def fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Any]]:
    """Start TensorBoard's data server, a separate process."""
    with ExitStack() as stack:

        def start(logdir: Path) -> Any:
            port_file = tmp_path_factory.mktemp("server") / "port"
            binary = server_ingester.get_server_binary().path
            command = [binary, f"--logdir={logdir}", "--reload=1", "--port=0", f"--port-file={port_file}"]
            server = stack.enter_context(subprocess.Popen(command))
            stack.callback(server.kill)
            wait_until(lambda: port_file.exists() and port_file.read_text().endswith("\n"))
            ingester = server_ingester.ExistingServerDataIngester(
                f"localhost:{int(port_file.read_text())}", channel_creds_type=ChannelCredsType.LOCAL
            )
            ingester.start()
            return ingester.data_provider

        yield start


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(params=["fast", "slow"])
def provider(request: pytest.FixtureRequest, fast: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return fast if request.param == "fast" else slow


class Page:
    """The plugin behind TensorBoard's own server, with the requests of the page."""

    def __init__(self, provider: Any) -> None:
        self.plugin = GlassyPlugin(TBContext(data_provider=provider))
        self.client = Client(TensorBoardWSGI([self.plugin], data_provider=provider))

    def get(self, path: str, **arguments: Any) -> Any:
        return self.client.get(f"/data/plugin/glassy/{path}", query_string=arguments)

    def ask(self, path: str, **arguments: Any) -> Any:
        response = self.get(path, **arguments)
        assert response.status_code == 200, response.text
        # Parse strict JSON, which has no NaN.
        return json.loads(response.text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    def runs(self) -> dict[str, Any]:
        return {run["name"]: run for run in self.ask("runs")["runs"]}

    def wait_for(self, n_runs: int) -> dict[str, Any]:
        """Wait until the data server has read some runs in the background."""
        wait_until(lambda: len(self.runs()) >= n_runs)
        found = self.runs()
        assert len(found) == n_runs
        return found


def same(answer: dict[str, Any], lags: Array, values: Array, shown: list[list[float]] | None = None) -> bool:
    """Return whether curves in JSON are the finite values of a matrix ``[n_tw, n_lag]``, to the last digit."""
    kept = np.isfinite(values)
    rows = [row[mask].tolist() for row, mask in zip(values, kept, strict=True)]
    found = answer["values"] if shown is None else shown
    return bool(answer["lags"] == [lags[mask].tolist() for mask in kept] and found == rows)


@pytest.fixture
def page(tmp_path: Path) -> Page:
    write(tmp_path / "one", record_of())
    return Page(slow(tmp_path))


# ---------------------------------------------------------------------- from the training to the tab


def test_the_record_of_a_training_is_in_its_event_files(
    tmp_path: Path, provider: Callable[[Path], Any], every_event: None
) -> None:
    logger, monitor = TensorBoardLogger(tmp_path, name="a"), AgingMonitor(groups="layer", summary=False)
    quiet_trainer(tmp_path, callbacks=[monitor], logger=logger, max_steps=300).fit(SmallNet(), data())
    page = Page(provider(tmp_path))
    wait_until(lambda: page.runs().get("a/version_0", {}).get("n_pairs") == len(monitor.record))
    (run,) = page.plugin._runs.known(None, "").values()
    assert run.record == monitor.record
    assert run.record.meta == monitor.record.meta
    assert len(monitor.record) > 100


def test_all_tables_of_a_record_are_in_its_event_files(tmp_path: Path, every_event: None) -> None:
    """The event files hold the same as the files, including profiles, and matrices between replicas."""
    logger, said = TensorBoardLogger(tmp_path, name="a"), {"summary": False}
    monitor = AgingMonitor(**said)
    callbacks = [monitor, BarrierMonitor(loader=data(), **said), DisplacementDistribution(), LogTimeEvaluator(**said)]
    quiet_trainer(tmp_path, callbacks=callbacks, logger=logger, max_steps=60).fit(SmallNet(), data())
    assert set(monitor.record.profile_names) == {"loss_path", "displacement", "weights"}
    (run,) = runs_in(tmp_path)
    assert run == monitor.record == AgingRecord.load(Path(logger.log_dir) / "glassy" / "aging_record.npz")

    nets = ReplicaNet()
    logger, monitor = TensorBoardLogger(tmp_path / "replicas", name="b"), AgingMonitor(**said)
    callbacks = [monitor, ReplicaOverlap(torch.randn(5, 8))]
    quiet_trainer(tmp_path, callbacks=callbacks, logger=logger, max_steps=60).fit(nets, data())
    assert {"weight_distance", "weight_product", "prediction_overlap"} <= set(monitor.record.between_names)
    (run,) = runs_in(tmp_path / "replicas")
    assert run == monitor.record == AgingRecord.load(Path(logger.log_dir) / "glassy" / "aging_record.npz")


def test_matrices_between_many_replicas_are_left_out_of_event_files_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorBoard sends all data of a run in one message, again and again."""
    record = AgingRecord({"all": 1}, n_replica=33)
    record.append(0, 1, np.ones(record.row_shape))
    record.append_between("weight_distance", 1, np.ones((33, 33)))
    writer = SummaryWriter(tmp_path / "one")
    sink = TensorBoardSink(SimpleNamespace(experiment=writer), "glassy")
    for step in (2, 3):
        record.append_between("weight_distance", step, np.ones((33, 33)))
        record.append_one_time("loss", step, 1.0)
        sink._write_part(record)
    writer.close()
    (run,) = runs_in(tmp_path)
    assert (run.between_names, len(run), run.one_time("loss")[0].tolist()) == ((), 1, [2, 3])
    assert [words for words in caplog.messages if "matrices between 33 replicas are not in the event" in words] != []
    assert len(caplog.messages) == 1


def runs_in(logdir: Path) -> list[AgingRecord]:
    page = Page(slow(logdir))
    page.runs()
    return [run.record for run in page.plugin._runs.known(None, "").values()]


class ReplicaNet(ReplicaTraining, LightningModule):
    """Three replicas of a small net."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = ReplicaEnsemble(lambda: torch.nn.Linear(8, 3), 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.nets(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return per_replica(torch.nn.functional.cross_entropy)(self.nets(x), y).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_parts_together_are_the_record_whatever_is_in_it() -> None:
    record = record_of(n_replica=3, module="Net")
    grown = AgingRecord(record.n_parameters, n_replica=3, meta={"module": "Net"})
    written, found, moments = parts.Written(), [], record.moments
    for i, (waiting_time, lag) in enumerate(zip(*record.pairs, strict=True)):
        grown.append(waiting_time, lag, moments[i] if i % 7 else np.full_like(moments[i], np.nan))
        grown.append_one_time("loss", i // 2, np.nan if i % 3 else 1 / (i + 1))  # a later value for a step wins
        grown.append_between("weight_distance", i // 2, np.full((3, 3), i))
        if i > 30:  # the first part has no profile
            grown.append_profile("displacement", i // 2, 1, [-1.0, 0.0, 1.0], [i, np.nan, 3.0, 4.0])
        if i in (35, 75):
            grown.append_profile(ODD, i, 0, [0.5], [1.0, i])
        if i == 50:
            grown.meta["note"] = ODD
        if i % 20 == 0:
            content, written = parts.next_part(grown, written)
            found.append(content)
    content, written = parts.next_part(grown, written)
    found.append(content)
    assert parts.assemble(found) == grown
    assert parts.assemble(found).meta == grown.meta
    assert parts.next_part(grown, written) == (None, written)
    # The grid of a profile is in one part, and no row is in two parts.
    profiles = [json.loads(part.split(b"\n")[0])["profiles"] for part in found]
    assert [part["displacement"][1] for part in profiles if "displacement" in part] == [3, *[0] * (len(found) - 3)]
    rows = sum(part["displacement"][0] for part in profiles if "displacement" in part)
    assert rows >= len(grown.profile("displacement").values)
    tag = tag_of(Place("my_record/monitor", "0123456789abcdef", 17))
    assert place_of(tag) == Place("my_record/monitor", "0123456789abcdef", 17)
    assert place_of("glassy/msd/tw_10") is None


def test_event_files_grow_by_less_than_three_records_in_a_million_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the worst case every event is its own part, as in a training so slow that seconds pass between two events."""
    monkeypatch.setattr(sink_module, "scalars", lambda *_: [])
    writer = SummaryWriter(tmp_path / "events")
    sink = TensorBoardSink(SimpleNamespace(experiment=writer), "glassy")
    schedule = LogTimeSchedule.logspaced(10**6)
    record = AgingRecord({"all": 1000}, overlap_thresholds=[1e-3, 1e-2], meta={"module": "Net", "notes": "x" * 1000})
    for event in schedule.events:
        for waiting_time in event.waiting_times:
            record.append(waiting_time, event.step - waiting_time, np.random.default_rng(0).random((1, 9)))
        record.append_one_time("learning_rate", event.step, 0.05)
        sink.update(record, [], event.step)
    sink.close(record)
    writer.close()
    assert len(record) == len(schedule.pairs) > 1000
    (events,) = (tmp_path / "events").iterdir()
    size = record.save(tmp_path / "record.npz").stat().st_size
    assert size < events.stat().st_size < 3 * size


def test_a_part_that_could_not_be_written_is_written_later(tmp_path: Path) -> None:
    writer = SummaryWriter(tmp_path / "one")
    sink, record = TensorBoardSink(SimpleNamespace(experiment=writer), "glassy"), record_of()
    sink._logger = SimpleNamespace(experiment=SimpleNamespace())
    with pytest.raises(AttributeError):
        sink._write_part(record)
    sink._logger = SimpleNamespace(experiment=writer)
    sink._write_part(record)
    writer.close()
    assert Page(slow(tmp_path)).runs()["one"]["n_pairs"] == len(record)


# ---------------------------------------------------------------------- parts that are lost


class Disk:
    """A disk under TensorBoard's event files that becomes full after some writes. The last write is torn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room, write = 10**9, RecordWriter.write

        def limited(writer: RecordWriter, content: bytes) -> None:
            self.room -= 1
            if self.room < 0:
                writer._writer.write(b"\x20\0\0\0")
                raise OSError(28, "No space left on device")
            write(writer, content)

        monkeypatch.setattr(RecordWriter, "write", limited)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread dies
@pytest.mark.parametrize("room", [0, 1])
def test_after_a_full_disk_the_tab_has_every_row(
    room: int, tmp_path: Path, provider: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fill the disk anywhere in a block of writes: at the part, or at the scalars, which wait for the next block."""
    disk, writer, record = Disk(monkeypatch), SummaryWriter(tmp_path / "one"), AgingRecord({"all": 1})
    sink = TensorBoardSink(SimpleNamespace(experiment=writer, log_dir=str(tmp_path / "one")), "glassy", curves=True)
    for lag in range(1, 11):
        record.append(1, lag, np.full((1, 7), float(lag)))
        record.append_profile("weights", 0, lag, [0.0, 1.0], [lag, lag])
        if lag in (4, 8):
            disk.room = room
        if lag == 4:
            with pytest.raises(OSError, match="No space left"):
                sink.update(record, [(1, lag)], lag)
            disk.room = 10**9
        elif lag == 8:  # the training ends, and goes on
            with pytest.raises(OSError, match="No space left"):
                sink.close(record)
            disk.room = 10**9
        else:
            sink.update(record, [(1, lag)], lag)
    sink.close(record)
    assert sink._unflushed == {}
    page = Page(provider(tmp_path))
    wait_until(lambda: page.runs()["one"].get("n_pairs") == 10)
    (run,) = page.plugin._runs.known(None, "").values()
    assert (run.record, "note" in page.runs()["one"]) == (record, False)


def test_an_error_that_comes_a_moment_after_the_flush_costs_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard's thread first reports that a write is done, and only then that the write has failed."""
    written: list[int] = []
    results = iter([None, None, OSError("full"), None])

    def flush() -> None:
        if error := next(results):
            raise error

    events = SimpleNamespace(add_summary=lambda part, step: written.append(place_of(part.value[0].tag).number))
    experiment = SimpleNamespace(_get_file_writer=lambda: events, flush=flush, add_figure=lambda *_, **__: None)
    sink, record = TensorBoardSink(SimpleNamespace(experiment=experiment), "glassy"), AgingRecord({"all": 1})
    for step in range(1, 4):
        record.append(0, step, np.ones((1, 7)))
        with pytest.raises(OSError, match="full") if step == 3 else nullcontext():
            sink.update(record, [], step)
    sink.close(record)
    assert written == [0, 1, 2, 1, 2]


def test_after_a_failed_write_the_tab_is_written_again_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, attempts, is_full = [100.0], [], [False]
    monkeypatch.setattr(sink_module.time, "monotonic", lambda: clock[0])

    def flush() -> None:
        attempts.append(clock[0] - 100)
        if is_full[0]:
            raise OSError("full")

    events = SimpleNamespace(add_summary=lambda part, step: None)
    experiment = SimpleNamespace(_get_file_writer=lambda: events, flush=flush, add_figure=lambda *_, **__: None)
    logger, record = SimpleNamespace(experiment=experiment, log_dir="runs"), AgingRecord({"all": 1})
    sink = TensorBoardSink(logger, "glassy")
    for step in range(1, 1001):
        is_full[0] = 10 <= clock[0] - 100 < 500
        record.append(0, step, np.ones((1, 7)))
        with suppress(OSError):
            sink.update(record, [], step)
        clock[0] += 1
    assert [at for at in attempts if at >= 10][:5] == [10, 70, 190, 430, 910]
    assert attempts[-1] == 999
    assert "tensorboard --logdir runs" in sink.where()


def parts_of(n: int) -> tuple[AgingRecord, list[bytes]]:
    """Return a record of n pairs, each in its own part, and a profile from the second part on."""
    record, written, found = AgingRecord({"all": 1}), parts.Written(), []
    for lag in range(1, n + 1):
        record.append(1, lag, np.full((1, 7), float(lag)))
        if lag > 1:
            record.append_profile("weights", 0, lag, [0.0, 1.0], [lag, lag])
        content, written = parts.next_part(record, written)
        found.append(content)
    return record, found


def write_parts(folder: Path, content: dict[int, bytes]) -> Path:
    """Write parts to their own event file."""
    before, writer = set(folder.glob("*")), SummaryWriter(folder)
    for number, one in content.items():
        writer._get_file_writer().add_summary(summary(tag_of(Place("glassy", "0" * 16, number)), one), 0)
    writer.close()
    (made,) = set(folder.glob("*")) - before
    return made


def test_a_gap_is_told_until_it_is_filled(tmp_path: Path, provider: Callable[[Path], Any]) -> None:
    record, content = parts_of(5)
    write_parts(tmp_path / "one", {number: content[number] for number in (0, 3, 4)})
    page = Page(provider(tmp_path))
    note = page.wait_for(1)["one"]["note"]
    assert note.startswith("2 of 5 parts of the record are missing or damaged in the event files, the first is part 1")
    choice = {"curves": {"observable": "msd", "group": "all"}, "exponents": {"group": "all"}, "series": {}}
    for path, arguments in choice.items():
        (answer,) = page.ask(path, run="one", **arguments)["series"]
        assert (answer["note"], "error" in answer) == (note, False)
    assert page.ask("curves", run="one", **choice["curves"])["series"][0]["lags"] == [[1, 4, 5]]
    write_parts(tmp_path / "one", {number: content[number] for number in (1, 2, 3)})
    page = Page(provider(tmp_path))
    wait_until(lambda: page.runs().get("one", {}).get("n_pairs") == 5)
    assert "note" not in page.runs()["one"]
    (run,) = page.plugin._runs.known(None, "").values()
    assert run.record == record


def test_a_flipped_bit_in_an_event_file_is_never_a_number(tmp_path: Path, provider: Callable[[Path], Any]) -> None:
    """The slow reader stops at the damage. The fast reader does not look at the checksums of the file."""
    record, content = parts_of(5)
    file = write_parts(tmp_path / "one", dict(enumerate(content)))
    whole = file.read_bytes()
    file.write_bytes(whole.replace(np.float64(3).tobytes(), np.float64(3.125).tobytes()))
    page = Page(provider(tmp_path))
    page.wait_for(1)
    found = page.runs()["one"]
    assert (found["n_pairs"], found.get("note", "")[:6]) in ((2, ""), (4, "1 of 5"))
    (answer,) = page.ask("curves", run="one", group="all", observable="msd")["series"]
    assert set(answer["values"][0]) < set(record.msd()[0].tolist())


def test_no_flipped_bit_of_a_part_changes_a_record() -> None:
    record, content = parts_of(3)
    assert parts.join(dict(enumerate(content))) == (record, None)
    for bit in range(0, 8 * len(content[1]), 5):
        damaged = bytearray(content[1])
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found, note = parts.join({0: content[0], 1: bytes(damaged), 2: content[2]})
        except RecordError:
            continue
        assert (note is None and found == record) or (len(found) == 2 and "the first is part 1:" in note)
    # This part has the number of another part, because a bit of its tag is flipped.
    assert parts.join({0: content[0], 5: content[1]})[1].startswith("5 of 6 parts")
    # A crafted number does not cause a list of all numbers before it.
    assert parts.join({0: content[0], 10**9 - 1: content[2].replace(b'"part"', b'"Part"')})[1].startswith("999,999,999")
    with pytest.raises(RecordError, match="its first part is missing or damaged"):
        parts.join({1: content[1]})
    with pytest.raises(RecordError, match="a part is damaged: its checksum is wrong"):
        parts.assemble([content[0][:-1] + b"x"])


def test_event_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """Their parts have neither a checksum nor a number."""
    record, content = parts_of(3)
    earlier = [re.sub(rb'^\{"checksum": "[0-9a-f]{8}", "part": [0-9]+, ', b"{", part) for part in content]
    assert all(part.startswith(b'{"rows": 1') for part in earlier)
    write_parts(tmp_path / "one", dict(enumerate(earlier)))
    assert runs_in(tmp_path) == [record]


# ---------------------------------------------------------------------- numbers


def test_every_number_is_one_of_the_record_or_of_the_analysis(tmp_path: Path, provider: Callable[[Path], Any]) -> None:
    walk = np.cumsum(np.random.default_rng(1).normal(size=(2001, 300)), axis=0)
    record = AgingRecord.from_trajectory(walk, LogTimeSchedule.logspaced(2000), groups={ODD: range(10)})
    for step in (0, 1, 10, 100, 1000, 2000):
        record.append_one_time("gradient_noise", step, 1 / (1 + step))
        record.append_one_time(ODD, step, step / 3)
    write(tmp_path / ODD, record)
    page = Page(provider(tmp_path))
    ((name, described),) = page.wait_for(1).items()
    assert name == ODD
    assert [group["name"] for group in described["groups"]] == ["all", ODD]
    assert described["series"] == ["gradient_noise", ODD]
    assert described["last_step"] == 2000
    positive, eps = record.lags > 0, record.overlap_thresholds[1]
    for observable, more, values in (
        ("msd", {}, record.msd()),
        ("msd", {"group": ODD}, record.msd(ODD)),
        ("normalised_msd", {}, record.msd(normalise="noise")),
        ("decorrelation", {}, record.decorrelation()),
        ("overlap", {"eps": repr(eps)}, record.overlap(eps)),
        ("non_gaussian", {}, record.non_gaussian()),
    ):
        choice = {"run": name, "group": "all", "observable": observable} | more
        (answer,) = page.ask("curves", **choice)["series"]
        assert (answer["run"], answer["group"]) == (name, choice["group"])
        assert answer["waiting_times"] == record.waiting_times.tolist()
        assert same(answer, record.lags[positive], values[:, positive])
        assert (answer["band"], answer["relaxing"]) == (None, None)

    assert "chi4" not in described["observables"]  # a single run has none

    choice = {"run": name, "group": "all", "observable": "msd"}
    (fitted,) = page.ask("fits", **choice)["series"]
    found = report(record)
    assert fitted["aging_exponent"] == found.to_dict()["aging_exponent"]
    assert fitted["verdict"] == found.to_dict()["verdict"]
    assert fitted["text"] == str(found)

    # The exponent belongs to these waiting times, and the scan has the quality that the fit minimised.
    fit, scan = found.exponent, fitted["scan"]
    (answer,) = page.ask("curves", **choice)["series"]
    assert answer["used"] == fit.waiting_times.tolist()
    assert scan[fit.variable][scan["mus"].index(fit.estimate)] == fit.qualities[fit.method]
    used = above_plateaus(relaxation_curves(record).between(*fit.window))
    for method, variable in COLLAPSES.items():
        assert [scan[variable][40]] == collapse_quality(used, scan["mus"][40], variable, scatter=fit.scatter[method])
    assert fitted["headline"] == [list(one) for one in found.headline]

    (answer,) = page.ask("exponents", run=name, group="all")["series"]
    assert same(answer, diffusion(record).lags, diffusion(record).exponents)
    (answer,) = page.ask("series", run=name)["series"]
    for series in ("gradient_noise", ODD):
        steps, values = record.one_time(series)
        assert answer["one_time"][series] == {"steps": steps.tolist(), "values": values.tolist()}


@pytest.mark.needs("plotly")
def test_the_report_has_the_answers_of_the_tab(tmp_path: Path) -> None:
    walk = np.cumsum(np.random.default_rng(2).normal(size=(3, 301, 40)), axis=1)
    record = AgingRecord.from_trajectory(walk, LogTimeSchedule.logspaced(300), groups={ODD: range(10)})
    record.append_one_time(ODD, 1, 0.5)
    record.append_profile(ODD, 1, 2, [0.0, 1.0], [0.5, 2.0])
    write(tmp_path / "run", record)
    page, inside = Page(slow(tmp_path)), PageAnswers(report(record).page())
    described = page.runs()["run"]
    assert {key: value for key, value in inside.run.items() if key not in ("name", "version", "left_out")} == {
        key: value for key, value in described.items() if key not in ("name", "version")
    }
    assert inside.content["observables"] == page.ask("observables")["observables"]
    assert {entry["path"] for entry in inside.content["answers"]} == {
        "curves",
        "fits",
        "exponents",
        "series",
        "profiles",
    }
    for entry in inside.content["answers"]:
        question = {key: entry[key] for key in ("observable", "group") if key in entry}
        if entry.get("eps") is not None:
            question["eps"] = repr(entry["eps"])
        ((_, answer),) = [(one.pop("run"), one) for one in page.ask(entry["path"], run="run", **question)["series"]]
        answer.pop("group", None)
        assert answer == entry["answer"], question


def test_replicas_have_bands_and_an_interval(tmp_path: Path) -> None:
    whole = record_of(n_replica=8)
    write(tmp_path / "all_of_them", whole)
    for i in range(8):
        single = AgingRecord(whole.n_parameters, meta={"seed": i})
        for waiting_time, lag, row in zip(*whole.pairs, whole.moments[:, i], strict=True):
            single.append(waiting_time, lag, row)
        write(tmp_path / f"seed_{i}", single)
    page = Page(slow(tmp_path))
    names = sorted(page.runs())
    choice = {"group": "all", "observable": "msd"}
    (stored,) = page.ask("curves", run="all_of_them", **choice)["series"]
    (joined,) = page.ask("curves", run=names[1:], together="1", **choice)["series"]
    error = whole.msd().std(axis=0, ddof=1) / np.sqrt(8)
    for answer in (stored, joined):
        mean = whole.msd().mean(axis=0)
        assert same(answer, whole.lags, mean)
        assert same(answer, whole.lags, mean - error, answer["band"]["low"])
        assert same(answer, whole.lags, mean + error, answer["band"]["high"])
    (fitted,) = page.ask("fits", run=names[1:], together="1", **choice)["series"]
    assert fitted["aging_exponent"]["interval"] == list(report(whole).exponent.interval)
    assert page.ask("series", run=names[1:], together="1")["series"][0]["run"] == "8 runs together"


def test_one_run_cut_short_does_not_stop_the_others_that_are_shown_together(tmp_path: Path) -> None:
    for seed in range(4):
        whole = record_of(seed=seed)
        write(tmp_path / f"seed_{seed}", whole.before(500) if seed == 2 else whole)
    page = Page(slow(tmp_path))
    choice = {"group": "all", "observable": "msd", "together": "1"}
    end = record_of(seed=2).before(500).last_step
    sentence = f"seed_2 ends at step {end}, and the other 3 runs at step {record_of().last_step:,}: left out"
    (joined,) = page.ask("curves", run=[f"seed_{i}" for i in range(4)], **choice)["series"]
    (without,) = page.ask("curves", run=["seed_0", "seed_1", "seed_3"], **choice)["series"]
    assert joined["run"] == "3 runs together"
    assert joined["note"].startswith(sentence)
    assert "note" not in without
    assert joined["values"] == without["values"]
    (fitted,) = page.ask("fits", run=[f"seed_{i}" for i in range(4)], **choice)["series"]
    assert any(warning.startswith(sentence) for warning in fitted["verdict"]["warnings"])
    # Both of two runs may be right, so the remedy is for the page.
    error = page.get("curves", run=["seed_0", "seed_2"], **choice).get_json()["error"]
    assert "Choose runs of one length, or show them side by side; 'lightning-glassy report --common' uses" in error
    assert "In Python" not in error
    assert "common=True" not in error


# ---------------------------------------------------------------------- errors in a question


@pytest.mark.parametrize(
    ("path", "arguments", "words"),
    [
        ("runs", {"run": "one"}, "'run' is not an argument of this; there are none"),
        ("curves", {}, "observable=nothing is not one of msd, normalised_msd"),
        ("curves", {"observable": "entropy"}, "observable=entropy is not one of"),
        ("curves", {"observable": "msd"}, "run is missing: name at least one"),
        ("curves", {"observable": "msd", "run": "one"}, "group is missing"),
        ("curves", {"observable": "msd", "run": "../one", "group": "all"}, "run='../one' is not known; /runs lists"),
        ("curves", {"observable": "msd", "run": "one", "group": "head"}, "group='head' is in none of the runs"),
        ("curves", {"observable": "msd", "run": "one", "group": "all", "eps": "1"}, "eps belongs to the overlap"),
        ("curves", {"observable": "overlap", "run": "one", "group": "all", "eps": "x"}, "eps=x is not a number"),
        ("curves", {"observable": "msd", "run": [f"r{i}" for i in range(201)], "group": "all"}, "ask for 200 at a"),
        ("curves", {"observable": "msd", "run": "one", "group": "all", "mu": "1"}, "'mu' is not an argument of this"),
        ("curves", {"observable": ["msd", "overlap"], "run": "one", "group": "all"}, "observable=msd, overlap is not"),
        ("curves", {"observable": "msd", "run": "one", "group": "all", "together": "1"}, "needs two or more runs"),
        ("curves", {"observable": "msd", "run": "one", "group": "all", "together": "x"}, "together=x is not one of"),
        (
            "fits",
            {"observable": "overlap", "run": "one", "group": "all", "eps": "nan"},
            "eps=nan is not a finite number",
        ),
        ("exponents", {"run": "one", "group": "all", "observable": "msd"}, "'observable' is not an argument"),
        ("series", {"run": "two"}, "run='two' is not known"),
        ("profiles", {"run": "one", "group": "all"}, "'group' is not an argument"),
    ],
)
def test_a_question_that_cannot_be_answered_gets_a_sentence(page: Page, path: str, arguments: Any, words: str) -> None:
    response = page.get(path, **arguments)
    assert response.status_code == 400
    assert words in response.get_json()["error"]


def test_other_methods_are_refused(page: Page) -> None:
    response = page.client.post("/data/plugin/glassy/runs")
    assert (response.status_code, response.get_json()["error"]) == (405, "POST is not answered here, GET is")


def test_what_one_run_lacks_is_said_of_this_run_alone(tmp_path: Path) -> None:
    noisy = record_of()
    noisy.append_one_time("gradient_noise", 1, 1.0)
    write(tmp_path / "noisy", noisy)
    write(tmp_path / "plain", record_of(seed=1))
    write(tmp_path / "short", record_of(schedule=LogTimeSchedule([0, 1], [1, 2, 5])))
    page = Page(slow(tmp_path))
    choice = {"run": ["noisy", "plain", "short"], "group": ["all"]}
    answers = page.ask("curves", observable="normalised_msd", **choice)["series"]
    assert ["error" in answer for answer in answers] == [False, True, True]
    assert "no one-time series 'gradient_noise'" in answers[1]["error"]
    fits = page.ask("fits", observable="msd", **choice)["series"]
    assert fits[0]["aging_exponent"]["estimate"]
    assert (fits[2]["aging_exponent"], "3 are needed" in fits[2]["why_no_exponent"]) == (None, True)
    curves = page.ask("curves", observable="msd", **choice)["series"]
    assert curves[2]["used"] == [1]  # the curves after step 0, because there are too few for a fit
    response = page.get("curves", observable="msd", together="1", **choice)
    assert response.status_code == 400
    assert "these runs are not replicas of each other: records[2] does not match" in response.get_json()["error"]


def test_a_group_that_only_some_runs_have_is_answered_for_those(tmp_path: Path) -> None:
    write(tmp_path / "layers", record_of())
    other = AgingRecord({"all": 5})
    other.append(1, 1, np.ones((1, 7)))
    write(tmp_path / "whole", other)
    page = Page(slow(tmp_path))
    choice = {"run": ["layers", "whole"], "group": ["all", "<b>layer</b>"], "observable": "msd"}
    answers = page.ask("curves", **choice)["series"]
    assert [(a["run"], a["group"]) for a in answers] == [
        ("layers", "all"),
        ("layers", "<b>layer</b>"),
        ("whole", "all"),
    ]


# ---------------------------------------------------------------------- many requests


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Return the results of some calls that begin together, each in its own thread."""
    start = threading.Barrier(len(calls))

    def begin(call: Callable[[], Any]) -> Any:
        start.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(begin, calls))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """List the questions for which curves or a fit were computed. Each takes a fifth of a second."""
    asked: list[Any] = []

    def slow_one(compute: Callable[..., Any]) -> Callable[..., Any]:
        def run(record: AgingRecord, *question: Any, **named: Any) -> Any:
            asked.append((*question, *named.values()))
            time.sleep(0.2)
            return compute(record, *question, **named)

        return run

    monkeypatch.setattr("lightning_glassy.report.report", slow_one(report))
    monkeypatch.setattr(answers, "curves", slow_one(answers.curves))
    return asked


def test_equal_questions_at_the_same_time_are_computed_once(counted: list[Any], tmp_path: Path) -> None:
    for seed in range(2):
        write(tmp_path / str(seed), record_of(seed=seed))
    provider, listed = slow(tmp_path), []
    page, whole = Page(provider), provider.list_tensors

    def list_tensors(*args: Any, **named: Any) -> Any:
        listed.append(args)
        time.sleep(0.2)
        return whole(*args, **named)

    provider.list_tensors = list_tensors
    joined, alone = {"run": ["0", "1"], "together": "1"}, {"run": "1"}
    for path, runs in (("curves", joined), ("curves", alone), ("fits", alone)):
        counted.clear()
        one = partial(page.ask, path, group="all", observable="msd", **runs)
        found = at_once(*[one] * 6)
        assert len(counted) == 1
        assert all(answer == found[0] for answer in found)
        assert one() == found[0]
        assert len(counted) == 1
    assert len(listed) == 1
    assert len({json.dumps(answer) for answer in at_once(*[page.runs] * 6)}) == 1
    assert len(listed) == 2


def test_made_up_addresses_take_no_memory(counted: list[Any], tmp_path: Path) -> None:
    walk = np.cumsum(np.random.default_rng(0).normal(size=(101, 20)), axis=0)
    write(tmp_path / "one", AgingRecord.from_trajectory(walk, LogTimeSchedule.logspaced(100)))
    page = Page(slow(tmp_path))
    for i in range(20):
        assert page.client.get(f"/experiment/no{i}/data/plugin/glassy/runs").status_code == 200
    known = page.plugin._runs._known
    assert len(known) == 4
    assert len({id(run.record) for runs in known.values() for run in runs.values()}) == 1
    eps = page.runs()["one"]["eps"][1]
    choice = {"run": "one", "group": "all", "observable": "overlap"}
    found = [page.ask("curves", **choice, eps=repr(eps * (1 + i * 1e-12))) for i in range(20)]
    assert (len(counted), found[0]) == (1, found[-1])
    response = page.get("curves", **choice, eps=repr(2 * eps))
    assert response.status_code == 400
    assert "was not counted in any of the runs; there are [" in response.get_json()["error"]
    assert (len(page.plugin._answers._kept), len(counted)) == (1, 1)
    response = page.get("curves", **choice, eps="0" * 70_000)
    assert (response.status_code, "longer than 64 KiB" in response.get_json()["error"]) == (400, True)


def test_runs_that_have_gone_take_no_memory(tmp_path: Path) -> None:
    write(tmp_path / "one", record_of())
    page = Page(slow(tmp_path))
    page.runs()
    page.plugin._runs._provider.list_tensors = lambda *_, **__: {}
    assert page.runs() == {}
    assert page.plugin._runs._readings == {}


def test_a_request_that_takes_too_long_is_told_so_and_answered_later(
    counted: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "one", record_of())
    page = Page(slow(tmp_path))
    choice = {"run": "one", "group": ["all", "<b>layer</b>"], "observable": "msd"}
    monkeypatch.setattr(plugin_module, "_SECONDS", 0.05)
    answers = page.ask("curves", **choice)["series"]
    assert [answer["error"] for answer in answers] == [
        "one: it takes long and is still being computed: ask again",
        "one: there was no time left for it: ask for less at a time",
    ]
    wait_until(lambda: "error" not in page.ask("curves", **choice | {"group": "all"})["series"][0])
    assert len(counted) == 1
    monkeypatch.setattr(plugin_module, "_SECONDS", 30.0)
    assert all("error" not in answer for answer in page.ask("curves", **choice)["series"])


def test_an_answer_that_would_be_too_long_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "one", record_of())
    page = Page(slow(tmp_path))
    choice = {"run": "one", "group": ["all", "<b>layer</b>"], "observable": "msd"}
    length = len(page.get("curves", **choice | {"group": "all"}).text)
    for room, words in ((1.5, "the answer would be too long: ask for less"), (0.5, "is too long for a page")):
        fresh = Page(slow(tmp_path))
        monkeypatch.setattr(plugin_module, "_LONGEST_ANSWER", int(room * length))
        series = fresh.ask("curves", **choice)["series"]
        assert ("error" in series[0]) == (room < 1)
        assert words in series[1]["error"]


def test_answers_take_bounded_room_and_wait_for_a_bounded_time() -> None:
    answers, end = Answers(most_bytes=10 + 2 * 1024, at_once=1, most_waiting=2), time.monotonic() + 0.2
    for i in range(5):
        assert answers.get(i, lambda i=i: str(i) * 4, end) == str(i) * 4
    assert (list(answers._kept.values()), answers._size) == (["3333", "4444"], 8 + 2 * 1024)
    assert answers.get("long", lambda: "x" * 1035, end) == "x" * 1035
    assert (len(answers._kept), answers._size) == (0, 0)
    with pytest.raises(ZeroDivisionError):
        answers.get("wrong", lambda: str(1 // 0), end)
    held = threading.Event()

    def never() -> str:
        held.wait()
        return ""

    told = []
    for question in ("first", "second", "third"):
        with pytest.raises(BusyError) as error:
            answers.get(question, never, time.monotonic() + 0.1)
        told.append(str(error.value))
        if question == "first":
            with pytest.raises(BusyError, match="still being computed"):
                answers.get(question, never, time.monotonic() + 0.01)
    held.set()
    assert "still being computed" in told[0]
    wait_until(lambda: not answers._running)
    assert answers.get("first", never, 0.0) == ""


# ---------------------------------------------------------------------- all kinds of data


def test_without_data_there_is_a_tab_that_waits(tmp_path: Path, provider: Callable[[Path], Any]) -> None:
    page = Page(provider(tmp_path))
    assert page.ask("runs") == {"runs": []}
    assert not page.plugin.is_active()
    metadata = page.plugin.frontend_metadata()
    assert (metadata.tab_name, metadata.es_module_path) == ("Glassy", "/index.js")
    assert GlassyPlugin(TBContext()).get_plugin_apps()  # a TensorBoard without a data provider starts, too


def test_half_written_files_give_what_is_whole_in_them(tmp_path: Path, provider: Callable[[Path], Any]) -> None:
    whole, writer = record_of(), SummaryWriter(tmp_path / "one")
    sink = TensorBoardSink(SimpleNamespace(experiment=writer), "glassy")
    half = AgingRecord(whole.n_parameters)
    for i, (waiting_time, lag, row) in enumerate(zip(*whole.pairs, whole.moments, strict=True)):
        half.append(waiting_time, lag, row)
        if i in (30, 60):
            sink._write_part(half)
    writer.close()
    (file,) = (tmp_path / "one").iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    assert Page(provider(tmp_path)).wait_for(1)["one"]["n_pairs"] == 31


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -1.0, 1e300])
def test_records_without_physics_are_answered(tmp_path: Path, value: float) -> None:
    record = AgingRecord({"all": 10}, overlap_thresholds=[0.1])
    for waiting_time, lag in LogTimeSchedule.logspaced(1000).pairs:
        record.append(waiting_time, lag, np.full((1, 8), value))
    record.append_one_time("loss", 3, value)
    write(tmp_path / "one", record)
    page = Page(slow(tmp_path))
    for observable in ("msd", "decorrelation", "overlap", "non_gaussian"):
        choice = {"run": "one", "group": "all", "observable": observable}
        page.ask("curves", **choice)
        page.ask("fits", **choice)
    page.ask("exponents", run="one", group="all")
    page.ask("series", run="one")


def test_a_hundred_runs_are_listed_and_drawn(tmp_path: Path) -> None:
    for i in range(100):
        write(tmp_path / f"{i:02d}", record_of(seed=i, schedule=LogTimeSchedule([0, 1, 10], [1, 10, 100])))
    page = Page(slow(tmp_path))
    names = list(page.runs())
    assert len(names) == 100
    answers = page.ask("curves", run=names, group="all", observable="msd")["series"]
    assert [answer["run"] for answer in answers] == names


def test_records_too_large_for_one_message_are_read_one_by_one(tmp_path: Path) -> None:
    write(tmp_path / "one", record_of())
    write(tmp_path / "two", record_of(seed=1))
    provider = slow(tmp_path)
    whole = provider.list_tensors

    def limited(context: Any, run_tag_filter: Any = None, **question: Any) -> Any:
        if run_tag_filter is None:
            raise RuntimeError("Received message larger than max")
        return whole(context, run_tag_filter=run_tag_filter, **question)

    provider.list_tensors = limited
    assert list(Page(provider).runs()) == ["one", "two"]


def test_a_resumed_run_in_the_same_directory(tmp_path: Path, provider: Callable[[Path], Any]) -> None:
    first, other = record_of(), record_of(seed=1)
    longer = AgingRecord(first.n_parameters)
    for waiting_time, lag, row in zip(*first.pairs, first.moments, strict=True):
        longer.append(waiting_time, lag, row)
    longer.append(20_000, 1, first.moments[0])
    write(tmp_path / "new", first, other)  # a new record, whose steps begin again
    write(tmp_path / "on", first, longer)  # one that goes on from the earlier one
    write(tmp_path / "on", other, monitor="head")
    page = Page(provider(tmp_path))
    runs = page.wait_for(4)
    assert list(runs) == ["new (1)", "new (2)", "on", "on · head"]
    assert runs["on"]["n_pairs"] == len(first) + 1
    (answer,) = page.ask("curves", run="new (2)", group="all", observable="msd")["series"]
    assert same(answer, other.lags, other.msd())


def test_a_resumed_run_is_one_run_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is set back by an hour before each resumption. The first run was ahead of its checkpoint."""
    clock = itertools.count(2 * 10**18, -3600 * 10**9)
    monkeypatch.setattr(sink_module.time, "time_ns", lambda: next(clock))

    def trained(until: int, seed: int, **meta: Any) -> AgingRecord:
        """Return a record in which the pairs after lag 5 differ between trainings."""
        record = AgingRecord({"all": 1}, meta=meta)
        for lag in range(1, until + 1):
            record.append(1, lag, np.full((1, 7), float(lag + seed * (lag > 5))))
        return record

    killed, resumed = trained(9, 0, id="a"), trained(7, 1, id="a", branches=["b"])
    again = trained(9, 1, id="a", branches=["c"])  # killed and resumed from the same checkpoint once more
    write(tmp_path / "on", killed, resumed, again)
    write(tmp_path / "behind", killed, resumed)  # not as far as the first run yet
    complete = trained(9, 0, id="a", completed=10)
    write(tmp_path / "longer", complete, trained(12, 0, id="a", branches=["d"]))
    write(tmp_path / "another", complete, resumed)  # the rows of a completed training are in no other record
    write(tmp_path / "two", trained(9, 0, id="a"), trained(9, 0, id="b"))
    series = trained(0, 0, id="a"), trained(0, 0, id="a", branches=["e"])
    for i, record in enumerate(series):
        record.append_one_time("loss", i + 1, 1.0)
    write(tmp_path / "series", *series)
    page = Page(slow(tmp_path))
    found = {name: run["n_pairs"] for name, run in page.runs().items()}
    assert found == {
        "another (1)": 7,
        "another (2)": 9,
        "longer": 12,
        "on": 9,
        "series": 0,
        "two (1)": 9,
        "two (2)": 9,
    } | {
        "behind (1)": 7,
        "behind (2)": 9,
    }
    assert page.runs()["series"]["last_step"] == 2


def test_the_page_sees_one_version_until_it_asks_for_the_next(tmp_path: Path) -> None:
    writer = SummaryWriter(tmp_path / "one")
    sink = TensorBoardSink(SimpleNamespace(experiment=writer), "glassy")
    record = AgingRecord({"all": 1})
    multiplexer = EventMultiplexer()
    page = Page(MultiplexerDataProvider(multiplexer, ""))
    versions = []
    for lag in (1, 2):
        record.append(1, lag, np.ones((1, 7)))
        sink._write_part(record)
        writer.flush()
        if lag == 1:
            multiplexer.AddRun(str(tmp_path / "one"), "one")
        multiplexer.Reload()
        if lag == 2:
            (answer,) = page.ask("curves", run="one", group="all", observable="msd")["series"]
            assert answer["lags"] == [[1]]
        versions.append(page.runs()["one"]["version"])
        (answer,) = page.ask("curves", run="one", group="all", observable="msd")["series"]
        assert answer["lags"] == [list(range(1, lag + 1))]
    writer.close()
    assert versions[0] != versions[1]


def test_replicas_have_bands_and_a_susceptibility(tmp_path: Path, provider: Callable[[Path], Any]) -> None:
    walks = np.cumsum(np.random.default_rng(2).normal(size=(6, 201, 50)), axis=1)
    record = AgingRecord.from_trajectory(walks, LogTimeSchedule.logspaced(200))
    write(tmp_path / "six", record)
    page = Page(provider(tmp_path))
    ((name, described),) = page.wait_for(1).items()
    assert (described["n_replica"], described["observables"][-1]) == (6, "chi4")
    eps = record.overlap_thresholds[1]
    choice = {"run": name, "group": "all", "observable": "chi4"}
    (answer,) = page.ask("curves", **choice, eps=repr(eps))["series"]
    chi4, error = record.chi4(eps=eps), record.chi4_error(eps=eps)
    assert same(answer, record.lags, chi4)
    assert same(answer, record.lags, chi4 - error, answer["band"]["low"])
    assert same(answer, record.lags, chi4 + error, answer["band"]["high"])
    (fitted,) = page.ask("fits", **choice)["series"]
    assert "does not relax: it has no lag to a threshold" in fitted["why_no_exponent"]
    (answer,) = page.ask("curves", **(choice | {"observable": "msd"}))["series"]
    assert same(answer, record.lags, record.msd().mean(0))


# ---------------------------------------------------------------------- crafted data

HEADER = {
    "format": "lightning_glassy.AgingRecord",
    "version": 1,
    "n_parameters": {"all": 3},
    "n_sampled": {"all": 3},
    "overlap_thresholds": [],
    "n_replica": None,
    "meta": {},
}


def part(rows: int = 0, numbers: bytes = b"", one_time: Any = None, **header: Any) -> bytes:
    head = {"rows": rows, "one_time": {} if one_time is None else one_time, "header": HEADER | header}
    return json.dumps(head).encode() + b"\n" + numbers


def plane(n: int) -> bytes:
    """Return rows of which no two share a time, so that the plane has the square of their number."""
    times = np.stack([np.arange(n), np.arange(n)], axis=1).astype("<i8")
    return times.tobytes() + np.ones((n, 7)).astype("<f8").tobytes()


CRAFTED = {
    "empty": b"",
    "no JSON": b"\xff\xfe{{{\n",
    "a list": b"[]\n",
    "deep": b"[" * 100_000 + b"]" * 100_000 + b"\n",
    "no header": json.dumps({"rows": 0, "one_time": {}}).encode() + b"\n",
    "another format": part(format="pickle"),
    "a newer version": part(version=99),
    "no version": part(version="1"),
    "more rows than bytes": part(rows=10**15),
    "negative": part(rows=-1),
    "not a number of rows": part(rows=1.5),  # type: ignore[arg-type]
    "cut": part(rows=1, numbers=b"\0" * 71),
    "too long": part(rows=1, numbers=b"\0" * 80),
    "series": part(one_time={"loss": 10**12}),
    "a list of series": part(one_time=["loss"]),
    "no group": part(n_parameters={}),
    "groups": part(n_parameters=[1, 2]),
    "many replicas": part(n_replica=10**12),
    "replicas without rows": part(rows=1, numbers=b"\0" * 72, n_replica=10**6),
    "a negative step": part(rows=1, numbers=b"\xff" * 16 + b"\0" * 56),
    "twice": part(rows=2, numbers=b"\0" * 144),
    "a sparse plane": part(rows=20_000, numbers=plane(20_000)),
}


@pytest.mark.parametrize("what", CRAFTED)
def test_crafted_parts_are_an_error_and_not_an_allocation(what: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RecordError):
            parts.assemble([CRAFTED[what]])
        assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
    finally:
        tracemalloc.stop()


def test_a_pair_is_in_one_part_only_and_a_series_may_be_corrected() -> None:
    row = np.zeros(2, "<i8").tobytes() + np.ones(7, "<f8").tobytes()
    with pytest.raises(RecordError, match=r"a key \(waiting_time, lag\) is there twice"):
        parts.assemble([part(rows=1, numbers=row)] * 2)
    values = [np.int64(3).tobytes() + np.float64(loss).tobytes() for loss in (1.0, 2.0)]
    record = parts.assemble([part(one_time={"loss": 1}, numbers=numbers) for numbers in values])
    assert [column.tolist() for column in record.one_time("loss")] == [[3], [2.0]]


def test_a_dense_plane_of_any_size_is_read() -> None:
    record = AgingRecord({"all": 3}, n_replica=100_000, sums=["d2"])
    for waiting_time, lag in itertools.product(range(7), range(1, 8)):
        record.append(waiting_time, lag, np.ones(record.row_shape))
    content, _ = parts.next_part(record, parts.Written())
    assert content is not None
    assert parts.assemble([content]) == AgingRecord.from_bytes(record.to_bytes()) == record


def test_a_crafted_run_is_an_error_beside_the_others(tmp_path: Path, provider: Callable[[Path], Any]) -> None:
    write(tmp_path / "good", record_of())
    for name, content, tag in (
        ("newer", part(version=99), "glassy_record/0123456789abcdef/0"),
        ("nameless", part(), "whatever"),
        ("late", part(), "glassy_record/0123456789abcdef/7"),
    ):
        writer = SummaryWriter(tmp_path / name)
        made: Summary = summary(tag, content)
        # The tensor claims a terabyte, so nobody may unpack it.
        made.value[0].tensor.float_val.append(1.0)
        made.value[0].tensor.tensor_shape.dim[0].size = 2**38
        writer._get_file_writer().add_summary(made, 0)
        writer.close()
    page = Page(provider(tmp_path))
    runs = page.wait_for(4)
    assert "written in format 99" in runs["newer"]["error"]
    assert runs["late"]["n_pairs"] == 0
    (answer,) = page.ask("curves", run="late", group="all", observable="msd")["series"]
    assert answer["lags"] == []
    answers = page.ask("curves", run=["good", "newer"], group="all", observable="msd")["series"]
    assert same(answers[0], record_of().lags, record_of().msd())
    assert answers[1]["error"].startswith("newer: written in format 99")


# ---------------------------------------------------------------------- the plugin itself


def test_tensorboard_finds_it() -> None:
    try:
        distribution("lightning-glassy")
    except PackageNotFoundError:
        pytest.skip("lightning-glassy is not installed, and only an installed package has entry points")
    (found,) = [entry for entry in entry_points(group="tensorboard_plugins") if entry.name == "glassy"]
    assert found.load() is GlassyPlugin


def test_the_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys; from tensorboard.plugins.base_plugin import TBContext\n"
        "from lightning_glassy.tensorboard.plugin import GlassyPlugin\n"
        "GlassyPlugin(TBContext()).get_plugin_apps()\n"
        "print([m for m in ('torch', 'lightning', 'pytorch_lightning', 'scipy', 'matplotlib', 'plotly', 'pandas') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.needs("plotly")
def test_the_page_is_served_from_the_package_and_nothing_else(page: Page) -> None:
    names = sorted(file.name for file in STATIC.iterdir() if file.is_file())
    assert {"index.js", "style.css"} < set(names)
    for name in names:
        response = page.get(name)
        assert (response.status_code, response.data) == (200, (STATIC / name).read_bytes())
        assert response.content_type.split(";")[0] == ("text/css" if name.endswith("css") else "text/javascript")
        # Nothing is fetched from outside.
        assert "//" not in response.text.replace("// ", "").replace("//\n", "")
    plotly = page.client.get("/data/plugin/glassy/plotly.min.js", headers={"Accept-Encoding": "identity"})
    assert plotly.data == (files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    for path in ("../plugin.py", "static/index.js", "%2e%2e/plugin.py", "..%2fplugin.py", "//etc/passwd", "index.js/x"):
        assert page.client.get(f"/data/plugin/glassy/{path}").status_code == 404


def test_without_plotly_the_page_is_told_the_extra(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_glassy.tensorboard import plugin

    plugin._compressed_plotly.cache_clear()
    monkeypatch.setitem(sys.modules, "plotly", None)
    response = page.get("plotly.min.js")
    assert response.status_code == 404
    assert "lightning-glassy[tensorboard]" in response.get_json()["error"]


# ---------------------------------------------------------------------- the command


def test_the_command_starts_tensorboard_with_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard import program

    flags: list[Any] = []
    monkeypatch.setattr(program.TensorBoard, "main", lambda self: flags.append(self.flags) or 0)
    assert cli.main(["tensorboard", str(tmp_path), "--port", "6007", "--reload_interval=60"]) == 0
    (found,) = flags
    assert (found.logdir, found.port, found.reload_interval) == (str(tmp_path), 6007, 60)
    assert found.reload_multifile
    assert found.samples_per_plugin["images"] == 100


def test_the_command_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["tensorboard", str(tmp_path / "none")]) == 2
    assert "none: there is no such directory" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert cli.main(["tensorboard", str(tmp_path)]) == 2
    assert "pip install 'lightning-glassy[tensorboard]'" in capsys.readouterr().err

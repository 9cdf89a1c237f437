"""Each logger shows the values and steps of the record, read back from its own files.

wandb, MLflow and Comet run as they are, offline. LitLogger cannot: its client is the real one, and the calls that would
go through the network are kept in a list instead.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import CometLogger, CSVLogger, LitLogger, Logger, MLFlowLogger, WandbLogger

from lightning_glassy import AgingMonitor, AgingRecord
from lightning_glassy.loggers.curves import shortened
from tests.helpers import SmallNet, data, quiet_trainer

Curves = dict[str, dict[int, float]]


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Send nothing over the network, and write nothing outside of the test's directory."""
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_DISABLE_GIT": "true",
        "WANDB_DISABLE_CODE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "COMET_CONFIG": str(tmp_path / "comet.config"),
        "COMET_DISABLE_AUTO_LOGGING": "1",
        "LIGHTNING_DISABLE_VERSION_CHECK": "1",  # else litlogger asks the registry for a newer one
    }.items():
        monkeypatch.setenv(name, value)
    asked: list[Any] = []
    connect = socket.socket.connect

    def only_here(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            asked.append(address)
            raise ConnectionRefusedError(f"a test wants to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_here)
    yield
    assert not asked


@pytest.fixture
def signals() -> Iterator[None]:
    """Restore the handlers of signals after loggers that take over Ctrl-C."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def train(
    tmp_path: Path, logger: Any, steps: int = 1200, model: type[SmallNet] = SmallNet, **options: Any
) -> AgingRecord:
    monitor = AgingMonitor(**{"curves": "scalars"} | options)
    quiet_trainer(tmp_path, callbacks=[monitor], logger=logger, max_steps=steps).fit(model(), data())
    return monitor.record


def without_signals(found: Curves, prefix: str = "glassy") -> Curves:
    """Remove the numbers against the training step. There must be some, and all belong to the group "all"."""
    signals = {f"{prefix}/moved_percent", f"{prefix}/aging_rate", f"{prefix}/mu"} & set(found)
    assert f"{prefix}/moved_percent" in signals
    return {name: curve for name, curve in found.items() if name not in signals}


def curves_of(record: AgingRecord, prefix: str = "glassy") -> Curves:
    """Return the expected curves, straight from the record's matrices."""
    curves: Curves = defaultdict(dict)
    for group in record.groups:
        wanted = {"msd", "decorrelation", "non_gaussian"} & set(record.available())
        matrices = {name: record.observable(name, group) for name in wanted}
        matrices |= {f"overlap_{eps:.6g}": record.overlap(eps, group) for eps in record.overlap_thresholds}
        for quantity, matrix in matrices.items():
            for waiting_time, row in zip(record.waiting_times, matrix, strict=True):
                name = f"{prefix}/{quantity}/" + ("" if group == "all" else f"{group}/") + f"tw_{waiting_time}"
                for lag, value in zip(record.lags, row, strict=True):
                    if not math.isnan(value):
                        curves[name][int(lag)] = value
    return curves


# ------------------------------------------------------------------ Weights & Biases


def wandb_records(directory: Path) -> Iterator[Any]:
    """Yield an offline run's records: LevelDB's log format, chunks (crc 4, length 2, kind 1) in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = directory.glob("wandb/offline-run-*/*.wandb")
    content, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        if at + 7 + length > len(content):  # it is being written
            return
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield Record.FromString(parts)
            parts = b""


def wandb_finish(run: Any, directory: Path) -> None:
    """End the run, and wait until another process has written its last rows."""
    run.finish()
    for _ in range(600):
        if any(record.HasField("exit") for record in wandb_records(directory)):
            return
        time.sleep(0.1)
    raise AssertionError("wandb did not write the end of the run within a minute")


def wandb_rows(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield the history of an offline run. The keys of nested values are joined."""
    for record in wandb_records(directory):
        if record.HasField("history"):
            yield {"|".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}


def wandb_curves(directory: Path, prefix: str = "glassy") -> Curves:
    curves: Curves = defaultdict(dict)
    for row in wandb_rows(directory):
        for key, value in row.items():
            if key.startswith(f"{prefix}/") and key.count("/") > 1 + prefix.count("/"):
                assert row[f"{prefix}/lag"] not in curves[key]
                curves[key][row[f"{prefix}/lag"]] = value
    return curves


def wandb_artifacts(directory: Path, kind: str) -> list[tuple[str, dict[str, Path]]]:
    return [
        (record.artifact.name, {entry.path: Path(entry.local_path) for entry in record.artifact.manifest.contents})
        for record in wandb_records(directory)
        if record.HasField("artifact") and record.artifact.type == kind
    ]


@pytest.mark.needs("wandb")
def test_wandb_has_a_series_per_waiting_time_against_the_lag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = WandbLogger(save_dir=tmp_path, project="p")
    record = train(tmp_path, logger, steps=100, groups="layer")
    run = logger.experiment
    wandb_finish(run, tmp_path)
    assert f"curves     wandb sync {Path(run.dir).parent}" in capsys.readouterr().out
    assert wandb_curves(tmp_path) == curves_of(record)
    axes = {
        metric.metric.glob_name or metric.metric.name: metric.metric
        for metric in wandb_records(tmp_path)
        if metric.HasField("metric")
    }
    assert axes["glassy/msd/*"].step_metric == "glassy/lag"
    assert axes["glassy/lag"].options.hidden
    assert axes["*"].step_metric == "trainer/global_step"  # Lightning's own axis is left to all other curves


@pytest.mark.needs("wandb")
@pytest.mark.parametrize(("prefix", "name"), [("", "glassy"), ("fold/1", "fold/1-glassy")])
def test_wandb_has_figures_a_table_and_the_record(tmp_path: Path, prefix: str, name: str) -> None:
    logger = WandbLogger(save_dir=tmp_path, project="p", prefix=prefix)
    record = train(tmp_path, logger, groups="layer")
    run = logger.experiment
    wandb_finish(run, tmp_path)
    rows = list(wandb_rows(tmp_path))
    for quantity in ("msd", "non_gaussian", *(f"overlap_{eps:.6g}" for eps in record.overlap_thresholds)):
        images = [row for row in rows if f"{name}_figures/{quantity}|path" in row]
        assert [row["trainer/global_step"] for row in images] == [1200]
        for row in images:
            assert (Path(run.dir) / row[f"{name}_figures/{quantity}|path"]).read_bytes().startswith(b"\x89PNG")
            assert row[f"{name}_figures/{quantity}|width"] > 500
    (row,) = (row for row in rows if f"{name}_table|path" in row)
    table = json.loads((Path(run.dir) / row[f"{name}_table|path"]).read_text())
    columns = record.table()
    expected = [list(entry) for entry in zip(*columns.values(), strict=True)]
    expected = [entry for entry in expected if entry[3] == "all"]
    assert table["columns"] == list(columns)
    assert len(table["data"]) == len(record) == len(expected)
    assert table["data"] == expected
    ((artifact, files),) = wandb_artifacts(tmp_path, "aging_record")
    assert artifact == f"{name.replace('/', '-')}-{run.id}"
    assert AgingRecord.load(files["aging_record.npz"]) == record
    assert files["aging_record.csv"].read_text() == record.to_csv(tmp_path / "mine.csv").read_text()


@pytest.mark.needs("wandb")
def test_wandb_has_by_default_a_handful_of_metrics_one_chart_and_one_table(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, project="p")
    record = train(tmp_path, logger, groups="layer", curves="figures")
    run = logger.experiment
    wandb_finish(run, tmp_path)
    rows = list(wandb_rows(tmp_path))
    metrics = {key: row for row in rows for key in row if key.startswith("glassy/")}
    assert set(metrics) <= {"glassy/moved_percent", "glassy/aging_rate", "glassy/mu"}
    assert all(row["trainer/global_step"] >= 10 for row in rows if "glassy/moved_percent" in row)
    charts = [key for row in rows for key in row if key.startswith("glassy_curves") and key.endswith("|path")]
    assert len(charts) == 1
    (row,) = (row for row in rows if charts[0] in row)
    table = json.loads((Path(run.dir) / row[charts[0]]).read_text())
    lines = {name for _, name, _, _ in table["data"]} if len(table["columns"]) == 4 else {e[1] for e in table["data"]}
    assert lines == {f"t_w = {time:,}" for time in record.waiting_times}
    by_time = {(e[1], round(10 ** e[table["columns"].index("step")])): e for e in table["data"]}
    value = by_time["t_w = 100", 100][table["columns"].index("lineVal")]
    at = record.msd()[record.waiting_times == 100, record.lags == 100].item()
    assert 10**value == pytest.approx(at, rel=1e-9)


@pytest.mark.needs("wandb")
def test_wandb_goes_on_in_a_second_fit_and_keeps_two_monitors_apart(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, project="p")
    monitors = [AgingMonitor(curves="scalars"), AgingMonitor(moments="msd", curves="scalars")]
    trainer, model = quiet_trainer(tmp_path, callbacks=monitors, logger=logger, max_steps=-1, max_epochs=2), SmallNet()
    trainer.fit(model, data())
    trainer.fit_loop.max_epochs = 4
    trainer.fit(model, data())
    wandb_finish(logger.experiment, tmp_path)
    assert wandb_curves(tmp_path) == curves_of(monitors[0].record)
    second = curves_of(monitors[1].record, "glassy_2")
    assert second
    assert all(name.startswith("glassy_2/msd/") for name in second)
    assert wandb_curves(tmp_path, "glassy_2") == second
    # This is a new version of the same artifact.
    versions = [files for name, files in wandb_artifacts(tmp_path, "aging_record") if not name.startswith("glassy_2")]
    assert len(AgingRecord.load(versions[0]["aging_record.npz"])) < len(monitors[0].record)
    assert AgingRecord.load(versions[1]["aging_record.npz"]) == monitors[0].record


@pytest.mark.needs("wandb")
def test_wandb_that_is_disabled_costs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with caplog.at_level(logging.WARNING):
        record = train(tmp_path, WandbLogger(save_dir=tmp_path), steps=60)
    assert len(record)
    assert not [message for message in caplog.messages if "lightning_glassy" in message]


# ------------------------------------------------------------------ MLflow


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the address of an SQLite database for all tests, because MLflow takes seconds to make one."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/ml.db"


@pytest.fixture
def mlflow(tmp_path: Path, database: str) -> MLFlowLogger:
    """Return a run in an experiment of its own."""
    return MLFlowLogger(tmp_path.name, tracking_uri=database, artifact_location=(tmp_path / "kept").as_uri())


def mlflow_curves(logger: MLFlowLogger, only: str = "") -> Curves:
    """Read the curves of a run with another client, as another user would."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(logger.experiment.tracking_uri)
    curves: Curves = {}
    for name in client.get_run(logger.run_id).data.metrics:
        if name.startswith("glassy/") and only in name:
            points = client.get_metric_history(logger.run_id, name)
            curves[name] = {point.step: point.value for point in points}
            assert len(curves[name]) == len(points)
    return curves


@pytest.mark.needs("mlflow")
def test_mlflow_has_metrics_whose_step_is_the_lag_figures_and_the_record(
    tmp_path: Path, mlflow: MLFlowLogger, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = train(tmp_path, mlflow)
    command = f"mlflow ui --backend-store-uri {database}"
    assert f"curves     MLflow run {mlflow.run_id}: {command}\n" in capsys.readouterr().out
    assert without_signals(mlflow_curves(mlflow)) == curves_of(record)
    files = {path.name: path for path in (tmp_path / "kept" / mlflow.run_id / "artifacts" / "glassy").iterdir()}
    pictures = {"msd.png", "non_gaussian.png", *(f"overlap_{eps:.6g}.png" for eps in record.overlap_thresholds)}
    assert set(files) == pictures | {"aging_record.npz", "aging_record.csv"}
    assert all(files[name].read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert AgingRecord.load(files["aging_record.npz"]) == record
    assert files["aging_record.csv"].read_text() == record.to_csv(tmp_path / "mine.csv").read_text()
    assert {path.path for path in mlflow.experiment.list_artifacts(mlflow.run_id, "glassy")} == {
        f"glassy/{name}" for name in files
    }
    assert mlflow.experiment.get_run(mlflow.run_id).info.status == "FINISHED"


@pytest.mark.needs("mlflow")
def test_mlflow_takes_any_name_of_a_group_and_any_number_of_points(
    tmp_path: Path, mlflow: MLFlowLogger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, log_batch = [], mlflow.experiment.log_batch

    def watched(run_id: str, metrics: Any = (), **others: Any) -> None:
        sizes.append(len(metrics))
        log_batch(run_id, metrics=metrics, **others)

    monkeypatch.setattr(mlflow.experiment, "log_batch", watched)
    odd = {"lr=0.1": "lr_3d_0.1", "a:b": "a_3a_b", "../up": "_.._/up", "a//b": "a/__/b", "<img>": "_3c_img_3e_"}
    groups = dict.fromkeys((*odd, "deep." * 60, *(f"layer {i}" for i in range(10))), "net.0.*")
    with caplog.at_level(logging.WARNING):
        record = train(tmp_path, mlflow, steps=12, groups=groups)
    assert not [message for message in caplog.messages if "lightning_glassy" in message]
    names, expected = mlflow.experiment.get_run(mlflow.run_id).data.metrics, curves_of(record)
    assert len(without_signals(names)) == len(expected)
    assert max(sizes) == 1000  # the limit of a server for one request. SQLite alone would take more
    (deep,) = (name for name in names if "/msd/deep." in name and name.endswith("/tw_1"))
    assert len(deep) == 250
    found = mlflow_curves(mlflow, only="/msd/")
    for name, shown in odd.items():
        assert found[f"glassy/msd/{shown}/tw_1"] == expected[f"glassy/msd/{name}/tw_1"]


@pytest.mark.needs("mlflow")
def test_mlflow_goes_on_in_a_second_fit_and_in_a_resumed_run(tmp_path: Path, mlflow: MLFlowLogger) -> None:
    monitor, model = AgingMonitor(curves="scalars"), SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=[monitor], logger=mlflow, max_steps=-1, max_epochs=2)
    trainer.fit(model, data())
    trainer.fit_loop.max_epochs = 4
    trainer.fit(model, data())
    assert without_signals(mlflow_curves(mlflow)) == curves_of(monitor.record)
    trainer.save_checkpoint(tmp_path / "at48.ckpt")
    resumed, again = (
        MLFlowLogger(tracking_uri=mlflow.experiment.tracking_uri, run_id=mlflow.run_id),
        AgingMonitor(curves="scalars"),
    )
    trainer = quiet_trainer(tmp_path, callbacks=[again], logger=resumed, max_steps=130)
    trainer.fit(SmallNet(), data(), ckpt_path=tmp_path / "at48.ckpt")
    assert without_signals(mlflow_curves(resumed)) == curves_of(again.record)
    assert len(again.record) > len(monitor.record)


@pytest.mark.needs("mlflow")
def test_a_training_that_fails_leaves_its_curves_and_its_record(tmp_path: Path, mlflow: MLFlowLogger) -> None:
    class Fails(SmallNet):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.global_step == 30:
                raise RuntimeError("the data are gone")
            return super().training_step(batch, batch_idx)

    monitor = AgingMonitor(curves="scalars")
    with pytest.raises(RuntimeError, match="the data are gone"):
        quiet_trainer(tmp_path, callbacks=[monitor], logger=mlflow).fit(Fails(), data())
    assert without_signals(mlflow_curves(mlflow)) == curves_of(monitor.record)
    kept = tmp_path / "kept" / mlflow.run_id / "artifacts" / "glassy" / "aging_record.npz"
    assert AgingRecord.load(kept) == monitor.record


# ------------------------------------------------------------------ Comet


class OfflineComet(CometLogger):
    """Comet's own offline experiment. ``CometLogger(online=False)`` of lightning 2.6 makes a disabled one."""

    def _create_experiment(self) -> None:
        import comet_ml

        self._experiment = comet_ml.OfflineExperiment(
            offline_directory=self.save_dir,
            log_code=False,
            log_env_details=False,
            log_git_metadata=False,
            log_git_patch=False,
            auto_output_logging=False,
            display_summary_level=0,
        )

    def end(self) -> tuple[list[dict[str, Any]], zipfile.ZipFile]:
        """Return the messages that an upload would send, and their files."""
        self.experiment.end()
        (path,) = Path(self.save_dir).glob("*.zip")
        archive = zipfile.ZipFile(path)
        return [json.loads(line) for line in archive.read("messages.json").splitlines()], archive


@pytest.mark.needs("comet_ml")
@pytest.mark.usefixtures("every_event")
def test_comet_has_metrics_whose_step_is_the_lag_figures_and_the_record(tmp_path: Path) -> None:
    deep = "model.encoder." * 7 + "weight"
    logger = OfflineComet(online=False, offline_directory=str(tmp_path))
    current: list[int] = []

    class Watches(SmallNet):
        def on_train_batch_start(self, *_: Any) -> None:
            current.append(self.logger.experiment.curr_step)

    record = train(tmp_path, logger, model=Watches, groups={deep: "net.0.*"})
    # The user's own metrics without a step get the training step, and not the last lag.
    assert [step for step in current if step] == sorted(step for step in current if step)
    assert current[-1] > 1000
    messages, archive = logger.end()
    found: Curves = defaultdict(dict)
    for message in messages:
        if message["type"] == "metric_msg" and message["payload"]["metric"]["metricName"].startswith("glassy/"):
            metric = message["payload"]["metric"]
            assert metric["step"] not in found[metric["metricName"]]
            found[metric["metricName"]][metric["step"]] = float(metric["metricValue"])
    assert all(len(name) <= 100 for name in found)
    found = without_signals(found)
    assert found == {shortened(name, 100): curve for name, curve in curves_of(record).items()}
    assert len(found) == len(curves_of(record))
    uploads = [message["payload"] for message in messages if message["type"] == "file_upload"]
    for quantity in ("msd", "non_gaussian", *(f"overlap_{eps:.6g}" for eps in record.overlap_thresholds)):
        figures = [u for u in uploads if u["additional_params"].get("figName") == f"glassy_figures/{quantity}"]
        assert [figure["additional_params"]["step"] for figure in figures] == [1200]
        assert all(figure["additional_params"]["overwrite"] for figure in figures)
        assert all(len(archive.read(figure["file_path"])) > 1000 for figure in figures)
    assets = {u["additional_params"].get("fileName"): archive.read(u["file_path"]) for u in uploads}
    (tmp_path / "read.npz").write_bytes(assets["glassy/aging_record.npz"])
    assert AgingRecord.load(tmp_path / "read.npz") == record
    assert assets["glassy/aging_record.csv"] == record.to_csv(tmp_path / "mine.csv").read_bytes()


# ------------------------------------------------------------------ LitLogger


class NoNetwork:
    """Replaces the REST client and the teamspace, and keeps all that is sent."""

    id, name, default_cloud_account = "teamspace", "ours", None
    owner = SimpleNamespace(name="us")

    def __init__(self) -> None:
        self.curves: Curves = defaultdict(dict)
        self.media: list[tuple[str, int]] = []
        self.files: dict[str, bytes] = {}
        self._teamspace_api = self

    def lit_logger_service_get_metrics_stream(self, **_: Any) -> None:
        return None

    def lit_logger_service_create_metrics_stream(self, **_: Any) -> Any:
        return SimpleNamespace(id="stream", cluster_id="cluster", cloudspace_id="", name="n", tags=[])

    def lit_logger_service_get_logger_metrics_summary(self, **_: Any) -> Any:
        return SimpleNamespace(summaries_per_name={})

    def lit_logger_service_append_logger_metrics(self, *, body: Any, **_: Any) -> None:
        for metric in body.metrics:
            for point in metric.values:
                assert int(point.step) not in self.curves[metric.name]
                self.curves[metric.name][int(point.step)] = point.value

    def lit_logger_service_create_lit_logger_media(self, *, body: Any, **_: Any) -> Any:
        self.media.append((body.name, body.step))
        return SimpleNamespace(
            media=SimpleNamespace(id=body.name, cluster_id="c", storage_path=body.name), already_exists=False
        )

    def lit_logger_service_update_metrics_stream(self, **_: Any) -> None:
        pass

    lit_logger_service_create_logger_artifact = lit_logger_service_update_metrics_stream
    lit_logger_service_update_lit_logger_media = lit_logger_service_update_metrics_stream

    def upload_file(self, *, file_path: str, remote_path: str, **_: Any) -> None:
        self.files[remote_path] = Path(file_path).read_bytes()

    def list_models(self) -> list[Any]:
        return []


@pytest.mark.usefixtures("signals")
@pytest.mark.filterwarnings("ignore:LitLogger does not support `log_graph`:UserWarning")  # the Trainer asks for one
def test_litlogger_has_series_against_the_lag_figures_and_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():  # its import asks standard error for its file number
        real = pytest.importorskip("litlogger.experiment", reason="litlogger needs Python 3.11")

    sent = NoNetwork()
    monkeypatch.setattr(real.AuthApi, "authenticate", lambda self: None)
    for api in ("MetricsApi", "MediaApi", "ArtifactsApi"):
        kind = getattr(real, api)
        monkeypatch.setattr(real, api, lambda client=None, kind=kind: kind(client=sent))
    monkeypatch.setattr(real, "_resolve_teamspace", lambda teamspace: sent)
    logger = LitLogger(root_dir=tmp_path, name="run", save_logs=False)
    record = train(tmp_path, logger, steps=100, groups="layer")
    assert f"curves     {logger.url}\n" in capsys.readouterr().out
    found = {name: curve for name, curve in sent.curves.items() if name.startswith("glassy/")}
    assert without_signals(found) == curves_of(record)
    quantities = ("msd", "non_gaussian", *(f"overlap_{eps:.6g}" for eps in record.overlap_thresholds))
    assert sent.media == [(f"glassy_figures/{quantity}", 100) for quantity in quantities]
    files = {path.rpartition("/glassy/")[2]: content for path, content in sent.files.items()}
    (tmp_path / "read.npz").write_bytes(files["aging_record.npz"])
    assert AgingRecord.load(tmp_path / "read.npz") == record
    assert files["aging_record.csv"] == record.to_csv(tmp_path / "mine.csv").read_bytes()


# ------------------------------------------------------------------ CSVLogger


@pytest.mark.usefixtures("every_event")
def test_csvlogger_has_a_table_of_few_columns_that_grows_with_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grew: list[int] = []

    class Watches(SmallNet):
        def on_train_batch_end(self, *_: Any) -> None:
            path = tmp_path / "csv" / "version_0" / "glassy.csv"
            grew.append(path.stat().st_size if path.exists() else 0)

    logger, monitor, model = CSVLogger(tmp_path, name="csv"), AgingMonitor(groups={'=a,"b"\n': "net.0.*"}), Watches()
    trainer = quiet_trainer(tmp_path, callbacks=[monitor], logger=logger, max_steps=-1, max_epochs=2)
    trainer.fit(model, data())
    trainer.fit_loop.max_epochs = 20
    trainer.fit(model, data())
    path = Path(logger.log_dir) / "glassy.csv"
    assert f"curves     {path}\n" in capsys.readouterr().out
    assert len(set(grew)) > 20  # during the run
    # The rows are equal to the table of the record, in the order of the measurements.
    rows = list(csv.reader(io.StringIO(path.read_text())))
    expected = list(csv.reader(io.StringIO(monitor.record.to_csv(tmp_path / "mine.csv").read_text())))
    assert rows[0] == expected[0]
    assert len(rows) == 1 + 2 * len(monitor.record)
    assert sorted(rows[1:]) == sorted(expected[1:])
    assert {row[3] for row in rows[1:]} == {"all", '\'=a,"b"\n'}  # no name is a formula
    steps = [int(row[2]) for row in rows[1:]]
    assert steps == sorted(steps)
    metrics = Path(logger.log_dir) / "metrics.csv"
    assert not metrics.exists() or "glassy" not in metrics.read_text()


def test_csvlogger_keeps_the_table_of_another_training(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    first, second = train(tmp_path, logger, steps=20), train(tmp_path, logger, steps=40)
    for record, name in ((first, "glassy.csv"), (second, "glassy-1.csv")):
        assert len((Path(logger.log_dir) / name).read_text().splitlines()) == 1 + len(record)


def test_a_csvlogger_elsewhere_is_said_to_have_no_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        record = train(tmp_path, CSVLogger("memory://runs"), steps=60, dirpath=tmp_path / "here")
    assert sum("memory://runs" in message and "not a local directory" in message for message in caplog.messages) == 1
    assert AgingRecord.load(tmp_path / "here" / "aging_record.npz") == record


# ------------------------------------------------------------------ all of them


@pytest.mark.needs("mlflow")
def test_loggers_that_fail_in_every_method_disturb_no_other(
    tmp_path: Path, mlflow: MLFlowLogger, caplog: pytest.LogCaptureFixture
) -> None:
    class Hopeless(Logger):
        name, version = "hopeless", 0

        def log_metrics(self, *_: Any, **__: Any) -> None:
            raise ConnectionError("no network")

        def log_hyperparams(self, *_: Any, **__: Any) -> None:
            pass

    class Fails:
        """An experiment in which every access fails."""

        def __getattr__(self, name: str) -> Any:
            raise ConnectionError("no network")

        __getitem__ = __setitem__ = __getattr__

    def refuse(self: Any) -> Any:
        raise ConnectionError("no network")

    # The attributes that the Trainer itself needs work. No callback can help if a logger fails there.
    nowhere = {"experiment": property(lambda self: Fails()), "run_id": property(refuse), "log_dir": "/dev/null"}
    names = ["TensorBoardLogger", "WandbLogger", "MLFlowLogger", "CometLogger", "LitLogger", "CSVLogger", "NoLogger"]
    broken = [type(name, (Hopeless,), nowhere) for name in names]
    good = CSVLogger(tmp_path)
    monitor = AgingMonitor(dirpath=tmp_path / "files", curves="scalars")
    with caplog.at_level(logging.WARNING):
        quiet_trainer(
            tmp_path,
            callbacks=[monitor],
            logger=[*(kind() for kind in broken), good, mlflow],
            log_every_n_steps=10**6,
        ).fit(SmallNet(), data())
    failed = [message.split(" failed (")[0] for message in caplog.messages if "lightning_glassy: " in message]
    assert sorted(name.removeprefix("lightning_glassy: ") for name in failed) == [
        "CSVSink",
        "CometSink",
        "LitLoggerSink",
        "MLflowSink",
        "MetricsSink",
        "TensorBoardSink",
        "the sink for WandbLogger",
    ]
    assert AgingRecord.load(tmp_path / "files" / "aging_record.npz") == monitor.record
    assert len((Path(good.log_dir) / "glassy.csv").read_text().splitlines()) == 1 + len(monitor.record)
    assert without_signals(mlflow_curves(mlflow)) == curves_of(monitor.record)


@pytest.mark.needs("mlflow")
def test_a_sink_is_found_by_the_name_of_the_class_or_of_one_it_derives_from(
    tmp_path: Path, mlflow: MLFlowLogger
) -> None:
    from lightning_glassy.loggers.csv import CSVSink
    from lightning_glassy.loggers.dispatch import MetricsSink, sink_for
    from lightning_glassy.loggers.mlflow import MLflowSink

    class Ours(CSVLogger):
        pass

    other = type("CSVLogger", (), {"log_dir": str(tmp_path)})  # pytorch_lightning's class, without an import of it
    assert isinstance(sink_for(Ours(tmp_path), "glassy"), CSVSink)
    assert isinstance(sink_for(other(), "glassy"), CSVSink)
    assert isinstance(sink_for(mlflow, "glassy"), MLflowSink)
    assert isinstance(sink_for(SimpleNamespace(), "glassy"), MetricsSink)
    assert sink_for(type("DummyLogger", (), {})(), "glassy") is None


def test_no_logger_is_imported_that_is_not_used() -> None:
    code = (
        "import sys, lightning_glassy.loggers.dispatch\n"
        "print({'wandb', 'mlflow', 'comet_ml', 'litlogger', 'tensorboard', 'matplotlib', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "set()\n"


@pytest.mark.needs("mlflow")
def test_without_matplotlib_the_curves_are_there_and_the_extra_is_named_once(
    tmp_path: Path, mlflow: MLFlowLogger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with caplog.at_level(logging.WARNING):
        record = train(tmp_path, mlflow, steps=1200)
    told = [message for message in caplog.messages if "lightning-glassy[plot]" in message]
    assert len(told) == 1
    assert "no figures in MLFlowLogger" in told[0]
    assert without_signals(mlflow_curves(mlflow)) == curves_of(record)


def test_long_names_are_cut_in_the_middle_and_stay_apart() -> None:
    assert shortened("glassy/msd/tw_1", 100) == "glassy/msd/tw_1"
    names = [f"glassy/msd/{'deep.' * 40}{layer}/tw_{t_w}" for layer in range(3) for t_w in (1, 10)]
    cut = [shortened(name, 100) for name in names]
    assert {len(name) for name in cut} == {100}
    assert len(set(cut)) == 6
    assert [name.rpartition("/")[2] for name in cut] == ["tw_1", "tw_10"] * 3

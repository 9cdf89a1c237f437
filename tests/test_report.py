"""The report, its pictures and its page, and the command that makes them."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_glassy import AgingRecord, LogTimeSchedule, cli, plotting
from lightning_glassy.analysis import aging_exponent, collapse, diffusion, relaxation_curves
from lightning_glassy.checkpoints import measure_checkpoints
from lightning_glassy.observables import OBSERVABLES
from lightning_glassy.record import MOMENTS
from lightning_glassy.report import page as page_module
from lightning_glassy.report import report
from lightning_glassy.report.page import STATIC, bundle
from tests.helpers import PageAnswers

SCHEDULE = LogTimeSchedule.logspaced(10_000, lags_per_decade=6)


def record_of(mu: float = 0.5, n_replica: int | None = None, seed: int = 0, schedule=SCHEDULE, **meta) -> AgingRecord:
    """Return curves that scale with t/t_w^mu, with 1 % of independent noise."""
    rng = np.random.default_rng(seed)
    record = AgingRecord({"all": 100, "<b>layer</b>": 40}, n_replica=n_replica, meta=meta)
    for waiting_time, lag in schedule.pairs:
        shape = (2, len(MOMENTS)) if n_replica is None else (n_replica, 2, len(MOMENTS))
        moments = np.ones(shape)
        moments[..., 0] = (lag / (1 + waiting_time) ** mu) ** 0.8 * np.exp(0.01 * rng.normal(size=shape[:-1]))
        record.append(waiting_time, lag, moments)
    return record


def saved(folder: Path, record: AgingRecord) -> str:
    return str(record.save(folder / "glassy" / "aging_record.npz"))


# ---------------------------------------------------------------------- the report


@pytest.mark.needs("plotly")
def test_a_report_says_and_writes_everything(tmp_path: Path) -> None:
    found = report(record_of(n_replica=8, module="Net"), n_bootstrap=50)
    assert abs(found.exponent.estimate - 0.5) < 0.02
    text = str(found)
    for words in ("Net: N = 100, 8 replicas", "verdict: aging throughout", "aging exponent mu = 0.", "motion (lags"):
        assert words in text
    names = {path.name for path in found.write(tmp_path / "out")}
    pictures = {"curves.png", "collapse.png", "threshold_lags.png", "local_exponent.png"}
    pictures |= {"collapse_residuals.png", "relaxation_times.png"}
    assert names == {"report.html", "report.txt", "report.json"} | pictures
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert content["aging_exponent"]["estimate"] == found.exponent.estimate
    assert content["aging_exponent"]["interval"] == list(found.exponent.interval)
    assert content["verdict"]["kind"] == "aging throughout"
    assert content["n_replica"] == 8
    assert (tmp_path / "out" / "report.txt").read_text() == f"{found}\n"
    for name in pictures:
        assert (tmp_path / "out" / name).stat().st_size > 10_000


def test_doubts_that_both_have_are_said_once() -> None:
    text = str(report(record_of(sampler="SequentialSampler")))
    assert text.count("the order of the batches is fixed") == 1


@pytest.mark.needs("plotly")
def test_the_page_needs_nothing_from_outside_and_runs_no_name(tmp_path: Path) -> None:
    record = record_of(module="</script><img src=x onerror=alert(1)>{answers}")
    record.append_one_time("</script><script>alert(2)</script>", 1, 2.0)
    report(record, group="<b>layer</b>").write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<img src=x" not in page
    assert "<script>alert(2)" not in page
    assert "<title>&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;{answers}" in page
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)\s*=", page.split("<script>")[0])
    # The page shows the findings of the analysis.
    answers = PageAnswers(page)
    assert answers.content["choice"] == {"observable": "msd", "groups": ["<b>layer</b>"], "eps": None}
    curves = answers.ask("curves", observable="msd", group="<b>layer</b>")
    assert curves["values"][-1][0] == record.msd("<b>layer</b>")[-1, 0]
    fit = answers.ask("fits", observable="msd", group="<b>layer</b>")
    assert fit["aging_exponent"]["estimate"] == report(record, group="<b>layer</b>").exponent.estimate


@pytest.mark.needs("plotly")
@pytest.mark.parametrize(
    "name",
    ["../up", "/etc/x", "a\0b", "a\nb", "<img src=x onerror=alert(1)>", "</script><b>", "x" * 1000, "CON", "a:b|c?*",
     "\x1b[31mred\x1b]0;title\x07", "\u202egnp", "$x_{", r"\$x$$", "%s{}", "", "\r"],
)  # fmt: skip
def test_a_name_is_no_path_no_markup_and_no_command_of_a_terminal(
    name: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that uses such a name everywhere has a report like any other."""
    monkeypatch.setattr(page_module, "_MOST_FITS", 1)  # the names in further fits are the same
    walk = np.cumsum(np.random.default_rng(0).normal(size=(301, 6)), axis=0)
    optimizers = [{"name": name, "parameter_groups": [{}]}]
    meta = {"module": name, "optimizers": optimizers, name: name}
    record = AgingRecord.from_trajectory(walk, LogTimeSchedule.logspaced(300), groups={name: [0, 1]}, meta=meta)
    record.append_one_time(name, 1, 2.0)
    path = record.save(tmp_path / "aging_record.npz")
    assert cli.main(["report", f"--group={name}", "--bootstrap=10", f"--out={tmp_path / 'out'}", str(path)]) == 0
    assert cli.main(["show", str(path)]) == 0
    printed = capsys.readouterr()
    assert all(c.isprintable() or c == "\n" for c in printed.out + printed.err)
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written >= {"report.html", "report.txt", "report.json", "curves.png", "local_exponent.png"}
    assert {file.name for file in tmp_path.iterdir()} == {"aging_record.npz", "out"}
    text = (tmp_path / "out" / "report.txt").read_text()
    assert all(c.isprintable() or c == "\n" for c in text)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<img" not in page.split("<script>")[0]
    assert "</script><b>" not in page


@pytest.mark.needs("plotly")
def test_a_lone_surrogate_in_the_metadata_is_written_as_its_code(tmp_path: Path) -> None:
    record = record_of(module="\ud800")
    record.append_one_time("\udfff", 1, 2.0)
    report(record, n_bootstrap=10).write(tmp_path)
    assert "<title>\\ud800: N" in (tmp_path / "report.html").read_text()
    with pytest.raises(ValueError, match="lone surrogate"):
        AgingRecord({"all": 3, "\ud800": 1})


@pytest.mark.needs("plotly")
def test_short_and_odd_records_have_a_report_or_a_clear_error(tmp_path: Path) -> None:
    found = report(record_of(schedule=LogTimeSchedule([0, 1], [1, 2, 5])))
    assert found.exponent is None
    assert "3 are needed" in str(found)
    found.write(tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "curves.png",
        "local_exponent.png",
        "relaxation_times.png",
    }
    assert "no aging exponent" in (tmp_path / "report.html").read_text()
    with pytest.raises(ValueError, match="the record is empty"):
        report(AgingRecord({"all": 1}))
    with pytest.raises(ValueError, match="0 waiting times from 3 to 4 have curves"):
        report(record_of(), window=(3, 4))
    with pytest.raises(KeyError, match="no group 'head'"):
        report(record_of(), group="head")


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan, np.inf, -1.0, 1e300])
@pytest.mark.parametrize("n_replica", [None, 9])
def test_records_without_physics_are_reported_without_an_exception(value: float, n_replica: int | None) -> None:
    record = AgingRecord({"all": 10}, n_replica=n_replica)
    for waiting_time, lag in LogTimeSchedule.logspaced(1000).pairs:
        shape = (1, len(MOMENTS)) if n_replica is None else (n_replica, 1, len(MOMENTS))
        record.append(waiting_time, lag, np.full(shape, value))
    found = report(record, n_bootstrap=10)
    assert json.dumps(found.to_dict(), allow_nan=False)
    for figure in found.figures().values():
        figure.canvas.draw()


def test_two_checkpoints_from_step_0_on_have_a_report_without_an_exponent(tmp_path: Path) -> None:
    """The only waiting time is 0, so the origin of a clock can only be step 0."""
    found = report(measure_checkpoints(pair(tmp_path)))
    assert "0 waiting times from 1 to 0 have curves, 3 are needed; the record has 0" in str(found)


def test_pictures_draw_on_given_axes() -> None:
    record = record_of(n_replica=8)
    curves, fit = relaxation_curves(record), aging_exponent(record, n_bootstrap=10)
    axes = plotting.new_figure(4).axes[:4]
    assert plotting.plot_curves(curves, ax=axes[0], colorbar=False) is axes[0]
    assert plotting.plot_collapse(collapse(curves, fit.estimate, fit.variable), ax=axes[1], colorbar=False) is axes[1]
    assert plotting.plot_threshold_lags(fit, ax=axes[2]) is axes[2]
    assert plotting.plot_local_exponent(diffusion(record), ax=axes[3], colorbar=False) is axes[3]
    # Collapsed curves coincide. At the same abscissa they have the same ordinate.
    lines = [line for line in axes[1].get_lines() if len(line.get_xdata()) > 5]
    at = [np.interp(0.5, np.log(line.get_xdata()), np.log(line.get_ydata())) for line in lines[4:-1]]
    assert np.ptp(at) < 0.1
    assert len(axes[2].get_legend().get_texts()) == len(fit.thresholds)
    # The colours of the map are the local exponents, here 0.8 everywhere.
    shown = axes[3].collections[0].get_array().compressed()
    assert shown.mean() == pytest.approx(0.8, abs=0.03)


# ---------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def walk() -> AgingRecord:
    """Return a random walk with groups and overlaps, and a series and a profile that the package does not measure."""
    steps = np.cumsum(np.random.default_rng(1).normal(size=(501, 60)), axis=0)
    schedule = LogTimeSchedule.logspaced(500, lags_per_decade=5)
    record = AgingRecord.from_trajectory(steps, schedule, groups={"head": range(10), "tail": range(10, 60)})
    for step in (0, 1, 10, 100):
        record.append_one_time("weight_norm", step, 1.0 + step)
        record.append_profile("singular_values", step, 0, [0.0, 1.0, 2.0], [3.0, 2.0, 1.0 / (1 + step)])
        record.append_profile("counts", step, 5, [0.0, 1.0, 3.0], [1, 2, 4, 3])
    return record


@pytest.mark.needs("plotly")
def test_the_page_is_the_page_of_the_tab() -> None:
    page = report(record_of(), n_bootstrap=10).page()
    modules = bundle("file.js")
    assert "</script" not in modules
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8")
        if file.name.endswith(".css"):
            assert text in page
        elif file.name != "index.js":  # index.js is the entry of the tab, which loads the style and plotly
            assert modules.count(f'modules["{file.name}"] = ') == 1
            assert all(line in modules for line in text.splitlines() if line.startswith("  return"))
    assert modules in page
    assert not re.search(r"^(import|export) ", modules, flags=re.MULTILINE)
    assert len(page) < len((files("plotly") / "package_data" / "plotly.min.js").read_text()) + 400_000


@pytest.mark.needs("plotly")
def test_a_series_and_a_profile_of_anybody_are_on_the_page(walk: AgingRecord) -> None:
    answers = PageAnswers(report(walk, n_bootstrap=10).page())
    steps, values = walk.one_time("weight_norm")
    shown = answers.ask("series")["one_time"]
    assert shown == {"weight_norm": {"steps": steps.tolist(), "values": values.tolist()}}
    profiles = answers.ask("profiles")["profiles"]
    assert list(profiles) == list(walk.profile_names)
    profile = walk.profile("singular_values")
    assert profiles["singular_values"] == {
        "waiting_times": profile.waiting_times.tolist(),
        "lags": profile.lags.tolist(),
        "grid": profile.grid.tolist(),
        "values": profile.values.tolist(),
        "density": False,
        "n": 4,
    }
    # A histogram is shown as a density. It has 10 values, of which 2 are in a bin of width 1 and 4 in a bin of width 2.
    assert profiles["counts"]["grid"] == [0.5, 2.0]
    assert profiles["counts"]["values"] == [[0.2, 0.2]] * 4
    many = record_of()
    for step in range(200):
        many.append_profile("many", step, 0, [0.0, 1.0], [step, step])
    found = PageAnswers(report(many, n_bootstrap=10).page()).ask("profiles")["profiles"]["many"]
    assert (found["n"], len(found["values"])) == (200, 60)
    assert found["waiting_times"][0] == 0
    assert found["waiting_times"][-1] == 199


@pytest.mark.needs("plotly")
def test_the_page_has_an_answer_to_every_choice(walk: AgingRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(walk, observable="overlap", group="head", eps=walk.overlap_thresholds[1], confidence=0.9)
    answers = PageAnswers(found.page())
    choices = [
        {"observable": name, "group": group, "eps": eps}
        for group in walk.groups
        for name in walk.available()
        for eps in (walk.overlap_thresholds if OBSERVABLES[name].has_threshold else [None])
    ]
    assert all("values" in answers.ask("curves", **choice) for choice in choices)
    fitted = [entry for entry in answers.content["answers"] if entry["path"] == "fits"]
    assert len(fitted) == min(len(choices), 40)
    # The choice of the report comes first. Fits of the same group or the same observable come before the rest.
    assert answers.content["choice"] == {"observable": "overlap", "groups": ["head"], "eps": found.eps}
    assert (fitted[0]["answer"]["text"], fitted[0]["eps"]) == (str(found), found.eps)
    monkeypatch.setattr(page_module, "_MOST_FITS", 5)
    some = [entry for entry in PageAnswers(found.page()).content["answers"] if entry["path"] == "fits"]
    assert all(entry["group"] == "head" or entry["observable"] == "overlap" for entry in some)
    # If the file would be too large, groups are left out. The page shows their number.
    monkeypatch.setattr(page_module, "_MOST_BYTES", 1000)
    answers = PageAnswers(found.page())
    assert [group["name"] for group in answers.run["groups"]] == ["head"]
    assert answers.run["left_out"] == 2


@pytest.mark.needs("plotly")
def test_the_options_of_a_report_hold_for_every_choice_of_the_page() -> None:
    record = record_of(n_replica=8)
    found = report(record, group="<b>layer</b>", window=(10, 1000), t0=5.0, confidence=0.5, n_bootstrap=20)
    answers = PageAnswers(found.page())
    for entry in answers.content["answers"]:
        exponent = entry["answer"].get("aging_exponent")
        if exponent is not None:
            assert (exponent["window"], exponent["t0"], exponent["confidence"]) == ([10, 1000], 5.0, 0.5)
    # The scan has the quality of the collapse at the fitted exponent, with the origin of this clock.
    scan, fit = answers.ask("fits")["scan"], found.exponent
    assert scan[fit.variable][scan["mus"].index(fit.estimate)] == pytest.approx(fit.qualities[fit.method], rel=1e-12)


@pytest.mark.parametrize(("package", "lacking"), [("plotly", {".html"}), ("matplotlib", {".png"})])
def test_a_package_that_is_missing_costs_its_own_files(
    package: str, lacking: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, caplog
) -> None:
    pytest.importorskip(package)
    path = saved(tmp_path, record_of())
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    code, out, _ = run(capsys, "report", path, "--bootstrap", "10", "-o", str(tmp_path / "out"))
    assert code == 0
    there = {file.suffix for file in (tmp_path / "out").iterdir()}
    assert there == {".txt", ".json", ".html", ".png"} - lacking
    assert "report.txt, report.json" in out
    (message,) = caplog.messages
    assert "pip install 'lightning-glassy[" in message
    assert package in message


# ---------------------------------------------------------------------- the command


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.needs("plotly")
def test_report_of_one_run_is_beside_its_record(tmp_path: Path, capsys) -> None:
    path = saved(tmp_path / "run", record_of())
    code, out, _ = run(capsys, "report", str(tmp_path / "run"))
    assert code == 0
    assert "verdict: aging throughout" in out
    assert (tmp_path / "run" / "glassy" / "report-aging_record" / "report.html").stat().st_size > 10**6
    code, out, _ = run(capsys, "report", path, "--json", "--no-files", "--window", "10", "1000", "--t0", "fit")
    content = json.loads(out)
    assert (code, content["records"]) == (0, [path])
    assert content["aging_exponent"]["window"] == [10, 1000]


OUTPUTS = ("report.txt", "report.json", "curves.png", "local_exponent.png", "report.html")


@pytest.mark.needs("plotly")
@pytest.mark.parametrize("kind", ["link", "hard link", "link to a device", "pipe"])
def test_a_report_replaces_what_a_stranger_has_put_in_its_place(
    kind: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "_MOST_FITS", 1)
    sent = Path(saved(tmp_path / "sent", record_of())).parent / "report-aging_record"
    sent.mkdir()
    mine = tmp_path / "mine"
    mine.write_text("mine\n")
    for name in OUTPUTS:
        if kind == "link":
            (sent / name).symlink_to("../../../mine")
        elif kind == "hard link":
            os.link(mine, sent / name)
        elif kind == "link to a device":
            (sent / name).symlink_to("/dev/null")
        else:
            os.mkfifo(sent / name)
    code, _, err = run(capsys, "report", str(tmp_path / "sent"), "--bootstrap", "10")
    assert (code, err, mine.read_text()) == (0, "", "mine\n")
    for name in OUTPUTS:
        assert (sent / name).is_file()
        assert not (sent / name).is_symlink()
        assert (sent / name).stat().st_nlink == 1
    assert {file.name for file in tmp_path.iterdir()} == {"mine", "sent"}
    assert not list(sent.glob(".*"))


@pytest.mark.parametrize("there", [True, False])
def test_a_report_goes_into_no_directory_behind_a_link_that_its_user_did_not_name(
    there: bool, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    runs = [Path(saved(tmp_path / "sent" / name, record_of(seed=i))) for i, name in enumerate("ab")]
    home.mkdir()
    for link in (runs[0].parent / "report-aging_record", tmp_path / "sent" / "glassy_report", tmp_path / "sent" / "1"):
        link.symlink_to(home if there else tmp_path / "none", target_is_directory=True)
    monkeypatch.chdir(tmp_path / "sent")
    for arguments in (("report", "a"), ("report", "."), ("report", "a", "b", "--separate", "-o", ".")):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "")
        assert "is a link: remove it, or name another directory with --out" in err
    assert (list(home.iterdir()), (tmp_path / "none").exists()) == ([], False)
    assert run(capsys, "report", "a", "--no-files", "--bootstrap", "10")[0] == 0
    (runs[1].parent / "report-aging_record").write_text("mine\n")
    assert "report-aging_record is a file: remove it" in run(capsys, "report", "b")[2]


def test_a_directory_that_the_user_names_may_be_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "_MOST_FITS", 1)
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    written = report(record_of(), n_bootstrap=10).write(tmp_path / "out")
    assert {path.name for path in written} == {path.name for path in (tmp_path / "disk").iterdir()}


def test_tables_and_records_replace_links_and_no_device(tmp_path: Path) -> None:
    record, mine = record_of(), tmp_path / "mine"
    mine.write_text("mine\n")
    for write in (record.save, record.to_csv):
        (tmp_path / "out").symlink_to(mine)
        assert not write(tmp_path / "out").is_symlink()
        (tmp_path / "out").unlink()
        with pytest.raises(OSError, match="a file there could replace a device"):
            write("/dev/aging_record")  # /dev/stdout likewise, but a test should not try
    assert mine.read_text() == "mine\n"


def test_links_to_no_file_among_the_records_of_a_directory_are_left_out(tmp_path: Path, capsys) -> None:
    for target in ("aging_record.npz", "/dev/zero", "none"):
        link = tmp_path / "aging_record.npz"
        link.symlink_to(target)
        code, out, err = run(capsys, "report", str(tmp_path))
        assert (code, out) == (2, "")
        assert "no aging_record.npz in this directory" in err
        code, out, err = run(capsys, "report", str(link))
        assert (code, out) == (2, "")
        assert err.startswith("lightning-glassy: error:")
        link.unlink()


@pytest.mark.needs("plotly")
def test_several_runs_are_replicas_if_they_match(tmp_path: Path, capsys) -> None:
    for seed in range(8):
        saved(tmp_path / f"version_{seed}", record_of(seed=seed, module="Net"))
    code, out, _ = run(capsys, "report", str(tmp_path), "-o", str(tmp_path / "out"), "--bootstrap", "20")
    assert code == 0
    assert "8 replicas" in out
    assert "95% interval" in out
    assert (tmp_path / "out" / "collapse.png").exists()
    saved(tmp_path / "version_9", record_of(seed=9, module="OtherNet"))
    code, _, err = run(capsys, "report", str(tmp_path), "--no-files")
    assert code == 2
    first, last = (tmp_path / f"version_{i}" / "glassy" / "aging_record.npz" for i in (0, 9))
    assert f"{last} does not match {first} in module: 'OtherNet' and 'Net'" in err
    assert "--separate" in err
    code, out, _ = run(capsys, "report", str(tmp_path), "--separate", "--no-files")
    assert (code, out.count("verdict:")) == (0, 9)


def test_one_run_twice_is_no_two_replicas(tmp_path: Path, capsys) -> None:
    saved(tmp_path / "a", record_of())
    saved(tmp_path / "b", record_of())
    code, _, err = run(capsys, "report", str(tmp_path / "a"), str(tmp_path / "b"), "--no-files")
    assert code == 2
    assert "hold the same run to the bit" in err
    # A path that is named twice is one record.
    code, out, _ = run(capsys, "report", str(tmp_path / "a"), str(tmp_path / "a" / "glassy"), "--no-files")
    assert (code, "no interval" in out) == (0, True)


def test_show_tells_what_a_record_holds(tmp_path: Path, capsys) -> None:
    record = record_of(module="Net\x1b[31m")
    record.append_one_time("train_loss", 0, 2.5)
    path = saved(tmp_path, record)
    code, out, _ = run(capsys, "show", path)
    assert code == 0
    for words in ("group           'all': N = 100", "waiting times   13, 0 ... 4,642", "'train_loss': 1 values, 2.5"):
        assert words in out
    assert "\x1b" not in out
    code, out, _ = run(capsys, "show", str(tmp_path), "--json")
    content = json.loads(out)
    assert content["waiting_times"] == record.waiting_times.tolist()
    assert content["one_time"]["train_loss"] == {"steps": [0], "values": [2.5]}
    assert content["observables"] == record.available()


def test_show_lists_no_observable_of_a_record_without_pairs(tmp_path: Path, capsys) -> None:
    record = AgingRecord({"all": 3}, overlap_thresholds=[0.1])
    record.append_one_time("train_loss", 0, 2.5)
    path = saved(tmp_path, record)
    assert "msd" not in run(capsys, "show", path)[1]
    assert json.loads(run(capsys, "show", path, "--json")[1])["observables"] == []


def test_wrong_input_is_an_error_with_code_2(tmp_path: Path, capsys) -> None:
    empty = saved(tmp_path / "empty", AgingRecord({"all": 3}))
    good = saved(tmp_path / "good", record_of())
    foreign = tmp_path / "foreign.npz"
    foreign.write_bytes(b"not a record")
    checkpoint = tmp_path / "step=1.pt"
    torch.save({"weight": torch.ones(2)}, checkpoint)
    (tmp_path / "nothing").mkdir()
    for arguments, words in [
        (("report", str(checkpoint)), "is not a record; 'lightning-glassy measure' makes a record from two or more"),
        (("show", str(checkpoint)), "is not a record; 'lightning-glassy measure' makes a record from two or more"),
        (("report", str(tmp_path / "none")), "there is no such file or directory"),
        (("report", str(tmp_path / "nothing")), "no aging_record.npz in this directory"),
        (("report", str(foreign)), "not a lightning_glassy record"),
        (("report", empty), "the record is empty"),
        (("report", good, "--group", "head"), "no group 'head'"),
        (("report", good, "--observable", "loss"), "--observable 'loss' is not one of"),
        (("report", good, "--observable", "normalised_msd"), "no one-time series 'gradient_noise'"),
        (("report", good, "--confidence", "95"), "--confidence 95.0 must be between 0 and 1"),
        (("show", str(tmp_path)), "holds 2 records, name one"),
        (("show", str(tmp_path / "none")), "there is no such file or directory"),
        (("measure", str(foreign), "-o", good), "is there already"),
    ]:
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, ""), arguments
        assert err.startswith("lightning-glassy: error: ")
        assert words in err
    for arguments in ((), ("report",), ("report", good, "--t0", "soon"), ("measure", good)):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 2


def test_measure_makes_a_record_that_report_reads(tmp_path: Path, capsys) -> None:
    rng = torch.Generator().manual_seed(0)
    steps = sorted({round(10 ** (k / 4)) for k in range(17)})
    weights, now, files = torch.zeros(300), 0, []
    for step in steps:
        weights, now = weights + (step - now) ** 0.5 * torch.randn(300, generator=rng), step
        files.append(str(tmp_path / f"model-step={step}.pt"))
        torch.save({"net.weight": weights.clone()}, files[-1])
    out = str(tmp_path / "record.npz")
    code, told, _ = run(capsys, "measure", *reversed(files), "-o", out, "--layers")
    assert code == 0
    assert f"lightning-glassy report {out}" in told
    record = AgingRecord.load(out)
    assert record.groups == ("all", "net")
    assert record.waiting_times.tolist() == steps[:-1]
    code, told, _ = run(capsys, "report", out, "--json", "--no-files")
    content = json.loads(told)
    assert code == 0
    # No two waiting times share a lag. Nevertheless, a random walk does not age.
    assert content["verdict"]["kind"] in ("no aging", "cannot tell")
    assert abs(content["aging_exponent"]["estimate"]) < 0.15
    code, _, err = run(capsys, "measure", files[0], "-o", str(tmp_path / "other.npz"))
    assert (code, "at least two checkpoints" in err) == (2, True)
    assert not (tmp_path / "other.npz").exists()


def pair(folder: Path) -> list[str]:
    files = [folder / f"step={step}.pt" for step in (0, 10)]
    for i, file in enumerate(files):
        torch.save({"weight": torch.arange(9.0) + i}, file)
    return [str(file) for file in files]


def test_the_next_command_can_be_copied_if_the_path_has_a_space(tmp_path: Path, capsys) -> None:
    out = tmp_path / "my record.npz"
    code, told, _ = run(capsys, "measure", *pair(tmp_path), "-o", str(out))
    assert (code, told.splitlines()[-1].partition("report ")[2]) == (0, f"'{out}'")


def test_sums_beyond_the_memory_are_refused_in_options(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("lightning_glassy.checkpoints.one_pass.free_memory", lambda device: 10)
    code, _, err = run(capsys, "measure", *pair(tmp_path), "-o", str(tmp_path / "record.npz"))
    assert code == 2
    assert err.endswith("of free memory: choose --groups 'all', or fewer pairs with --pairs 'log'\n")


def test_progress_in_a_file_is_a_line_now_and_then(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(capsys, "measure", *pair(tmp_path), "-o", str(tmp_path / "record.npz"))[2] == ""
    monkeypatch.setattr(cli, "_LOG_EVERY", 0.0)
    code, _, err = run(capsys, "measure", *pair(tmp_path), "-o", str(tmp_path / "other.npz"))
    assert code == 0
    assert re.search(r"^ *0 % .*\n100 % .*$", err.strip(), re.MULTILINE)
    assert "\r" not in err


def test_a_line_of_progress_fits_a_narrow_terminal(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, _, err = run(capsys, "measure", *pair(tmp_path), "-o", str(tmp_path / "record.npz"))
    assert code == 0
    assert "100 %" in err
    assert max(map(len, re.split(r"[\r\n]", err))) == 19


def test_a_record_that_cannot_be_written_costs_no_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (0, 1):
        torch.save({"w": torch.full((3,), float(step))}, tmp_path / f"step={step}.pt")
    code, told, err = run(capsys, "measure", str(tmp_path), "-o", str(tmp_path / "step=0.pt" / "record.npz"))
    assert (code, told) == (2, "")
    assert "record.npz cannot be written (" in err

    save, rescued = AgingRecord.save, tmp_path / "rescued"
    monkeypatch.setattr(tempfile, "mkdtemp", lambda: str(rescued))

    def full(record: AgingRecord, path: Path) -> Path:
        if path.parent != rescued:
            raise OSError(28, "No space left on device")
        return save(record, path)

    monkeypatch.setattr(AgingRecord, "save", full)
    code, _, err = run(capsys, "measure", str(tmp_path), "-o", str(tmp_path / "record.npz"))
    assert code == 2
    assert f"(No space left on device): the record is in {rescued / 'record.npz'}" in err
    assert AgingRecord.load(rescued / "record.npz").msd() == 1.0

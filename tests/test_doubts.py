"""Doubts about the numbers of a record: their sources, and their place beside the numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lightning_glassy import AgingRecord, LogTimeSchedule, cli
from lightning_glassy.analysis import aging_exponent, verdict
from lightning_glassy.analysis.confounders import confounders
from lightning_glassy.checkpoints.doubts import doubts_of_pairs
from lightning_glassy.report import answers, report
from lightning_glassy.report.page import embedded

ROUNDING = "in 17 of 231 pairs the mean squared displacement is within the rounding of the weights' own dtype"
AVERAGES = "the checkpoints hold averages of the weights, not the weights that were trained"
BFLOAT16 = 0.045 * 2.0**-14  # the resolution of bfloat16


def record_of(*doubts: object, seed: int = 0, n: int = 1000) -> AgingRecord:
    walk = np.cumsum(np.random.default_rng(seed).normal(size=(n + 1, 50)), axis=0)
    meta = {"doubts": list(doubts)} if doubts else {}
    return AgingRecord.from_trajectory(walk, LogTimeSchedule.logspaced(n), overlap_thresholds=[1.0], meta=meta)


# ---------------------------------------------------------------------- doubts travel with the record


def test_show_prints_each_doubt_whole_and_before_the_metadata(tmp_path: Path, capsys) -> None:
    path = str(record_of(long := "why " * 100 + "end", AVERAGES).save(tmp_path / "record.npz"))
    assert cli.main(["show", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("  meta"))
    assert lines.index(f"  ! {long}") < lines.index(f"  ! {AVERAGES}") < first
    assert not any("doubts" in line for line in lines)
    assert cli.main(["show", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["doubts"] == [long, AVERAGES]


@pytest.mark.parametrize("observable", ["msd", "overlap", "decorrelation", "non_gaussian", "local_exponent"])
@pytest.mark.parametrize("n", [3, 1000])
def test_a_report_prints_each_doubt_once_for_every_observable(tmp_path: Path, capsys, observable: str, n: int) -> None:
    path = str(record_of(ROUNDING, AVERAGES, n=n).save(tmp_path / "record.npz"))
    arguments = ["report", path, "--no-files", "--observable", observable, "--bootstrap", "10"]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert (text.count(f"! {ROUNDING}\n"), text.count(f"! {AVERAGES}\n")) == (1, 1)
    assert cli.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["doubts"] == [ROUNDING, AVERAGES]


def test_the_page_and_the_tab_show_the_doubts_also_without_a_fit() -> None:
    found = report(record_of(ROUNDING), n_bootstrap=10)
    content = embedded(found, lambda choice: pytest.fail("no fit is needed") if choice is None else found)
    assert content["runs"][0]["doubts"] == [ROUNDING]
    assert answers.describe(record_of())["doubts"] == []


def test_the_analysis_alone_names_the_doubts() -> None:
    record = record_of(ROUNDING)
    assert ROUNDING in verdict(record).warnings
    assert ROUNDING in aging_exponent(record, n_bootstrap=10).warnings


def test_replicas_have_the_doubts_of_all_runs_once() -> None:
    runs = [record_of(seed=0), record_of(ROUNDING, seed=1), record_of(AVERAGES, ROUNDING, seed=2)]
    merged = AgingRecord.concat(runs)
    assert merged.doubts == [ROUNDING, AVERAGES]
    assert AgingRecord.concat([runs[0], AgingRecord.concat(runs[1:])]).doubts == merged.doubts
    assert "doubts" not in AgingRecord.concat([record_of(seed=0), record_of(seed=1)]).meta


def test_skipped_updates_of_any_replica_are_told() -> None:
    runs = [record_of(seed=seed) for seed in range(3)]
    runs[2].meta["steps_without_update"] = 7
    assert confounders(AgingRecord.concat(runs))[0].startswith("up to 7 steps were no updates")
    assert confounders(runs[2])[0].startswith("7 steps were no updates")
    assert confounders(AgingRecord.concat(runs[:2])) == []


def test_a_report_on_checkpoints_says_so() -> None:
    record = record_of()
    record.meta |= {"source": "checkpoints", "files": ["a", "b", "c"]}
    assert report(record, n_bootstrap=10).title == "aging record of 3 checkpoints: N = 50"
    record.meta["files"] = "odd"
    assert report(record, n_bootstrap=10).title == "aging record: N = 50"


def test_a_record_that_is_cut_saved_or_exported_keeps_its_doubts(tmp_path: Path) -> None:
    record = record_of(ROUNDING)
    assert record.before(100).doubts == [ROUNDING]
    assert AgingRecord.load(record.save(tmp_path / "record.npz")).doubts == [ROUNDING]
    xarray = pytest.importorskip("xarray")
    assert isinstance(found := record.to_xarray(), xarray.Dataset)
    assert json.loads(found.attrs["meta"])["doubts"] == [ROUNDING]


@pytest.mark.parametrize("doubts", ["text", {"a": 1}, 3, None, True])
def test_doubts_that_are_no_list_of_sentences_are_ignored(tmp_path: Path, capsys, doubts: object) -> None:
    record = record_of()
    record.meta["doubts"] = doubts
    assert record.doubts == confounders(record) == []
    assert cli.main(["show", str(record.save(tmp_path / "record.npz"))]) == 0
    assert "meta            doubts:" in capsys.readouterr().out
    record.meta["doubts"] = [1, None, ["a"], "", ROUNDING, {"b": 2}, ROUNDING, "two\n  lines\x1b[2J"]
    assert record.doubts == [ROUNDING, "two lines\x1b[2J"]
    assert cli.main(["show", str(record.save(tmp_path / "record.npz"))]) == 0
    assert "  ! two lines\\x1b[2J\n" in capsys.readouterr().out


def test_doubts_of_anybody_do_not_flood_a_terminal_or_a_page(tmp_path: Path, capsys) -> None:
    record = record_of(*(f"doubt {i}" for i in range(500)))
    assert record.doubts == [*(f"doubt {i}" for i in range(100)), "there are 400 more doubts in the metadata"]
    assert len(record.meta["doubts"]) == 500
    record.meta["doubts"] = ["x " * 10**6]
    assert record.doubts == ["x " * 1000 + "..."]
    assert cli.main(["show", str(record.save(tmp_path / "record.npz"))]) == 0
    assert len(capsys.readouterr().out) < 5000


# ---------------------------------------------------------------------- doubts about pairs


def of_pairs(rows: dict[tuple[int, int], tuple[float, float]], **groups: tuple[float, float]) -> AgingRecord:
    """Return a record with d2 and s2 for each pair. A further group has the same sums for all pairs."""
    record = AgingRecord({"all": 10, **dict.fromkeys(groups, 4)}, sums=("d2", "s2"))
    for (waiting_time, lag), sums in rows.items():
        record.append(waiting_time, lag, [sums, *groups.values()])
    return record


def test_pairs_within_rounding_are_counted_with_their_lags_and_displacements() -> None:
    floor = 4 * BFLOAT16 * 10.0
    record = of_pairs({(0, 1): (0.5 * floor, 10.0), (0, 40): (0.9 * floor, 10.0), (1, 39): (1.1 * floor, 10.0)})
    (doubt,) = doubts_of_pairs(record, {"all": BFLOAT16})
    assert doubt.startswith("in 2 of 3 pairs the mean squared displacement is within the rounding")
    assert "lags up to 40 steps" in doubt
    assert f"a displacement up to {0.09 * floor:.2g}, and rounding alone may explain {0.1 * floor:.2g}" in doubt
    assert doubts_of_pairs(record, {"all": 0.045 * 2.0**-46}) == []


def test_identical_weights_at_different_steps_name_the_steps() -> None:
    still = (0.0, 10.0)
    record = of_pairs({(0, 100): (1.0, 10.0), (100, 100): still, (100, 200): still, (200, 100): still, (500, 7): still})
    (doubt,) = doubts_of_pairs(record, {"all": 0.045 * 2.0**-46})
    assert "at different steps, 100 = 200 = 300, 500 = 507, so that d^2 is exactly 0 in 4 pairs" in doubt
    # Weights of 16 bits may have moved by less than their rounding.
    assert doubts_of_pairs(record, {"all": BFLOAT16})[1].startswith("in 4 of 5 pairs the mean squared displacement")
    many = of_pairs({(10 * k, 1): still for k in range(20)})
    assert "10 = 11" in (doubt := doubts_of_pairs(many, {"all": BFLOAT16})[0])
    assert "70 = 71 and 12 more" in doubt
    assert doubts_of_pairs(of_pairs({(5, 0): still}), {"all": BFLOAT16}) == []  # lag 0 compares a step with itself


def test_pairs_with_weights_that_are_not_finite_are_counted() -> None:
    record = of_pairs({(0, 1): (np.nan, 1.0), (0, 2): (np.inf, 1.0), (1, 1): (1.0, 1.0)})
    assert doubts_of_pairs(record, {"all": BFLOAT16}) == [
        "d^2 is not finite in 2 of 3 pairs: weights are not finite, or too large for their squares. They are recorded "
        "as they are"
    ]


def test_a_group_is_named_if_the_whole_has_no_doubt() -> None:
    record = of_pairs({(0, 1): (1.0, 10.0)}, head=(1e-9, 10.0), body=(1.0, 10.0))
    (doubt,) = doubts_of_pairs(record, {"all": 1e-15, "head": BFLOAT16, "body": 1e-15})
    assert doubt.startswith("in up to 1 of 1 pairs of the groups 'head' the mean squared displacement is within")

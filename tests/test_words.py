"""The answer in plain words, for systems with an exactly known answer, and several records side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lightning_glassy import AgingRecord, LogTimeSchedule, cli
from lightning_glassy.analysis import aging_exponent, compare, in_words, relaxation_curves, verdict
from lightning_glassy.analysis.words import confidence, doubts_of, moved_in_last_decade, slowdown
from lightning_glassy.callbacks.summary import summary
from lightning_glassy.report import report

T = 5000


def walk(power: float, seed: int, n: int = 400) -> tuple[AgingRecord, np.ndarray]:
    """Return weights that diffuse with steps of variance k^-power, and the exact displacement between two times."""
    rng, variances = np.random.default_rng(seed), np.arange(1, T + 1.0) ** -power
    steps = rng.normal(size=(T, n)) * np.sqrt(variances)[:, None]
    weights = np.cumsum(np.vstack([rng.normal(size=(1, n)), steps]), axis=0)
    return AgingRecord.from_trajectory(weights, LogTimeSchedule.logspaced(T)), np.append(0, np.cumsum(variances))


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_the_slowdown_of_diffusion_is_the_exact_one_within_its_error(power: float) -> None:
    deviations = []
    for seed in range(12):
        record, total = walk(power, seed)
        curves, rate = relaxation_curves(record), verdict(record).rates[1]
        ends = np.minimum(curves.waiting_times[:, None] + curves.lags, T)
        exact = total[ends] - total[curves.waiting_times][:, None]
        exact = np.where(np.isfinite(curves.values), exact, np.nan)
        found, truth = slowdown(curves, rate), slowdown(replace(curves, values=exact), rate)
        assert found is not None
        assert truth is not None
        deviations.append((found.factor - truth.factor) / found.error)
    assert np.abs(deviations).max() < 3
    assert np.sqrt(np.mean(np.square(deviations))) < 1.5


def test_the_error_over_replicas_is_that_of_independent_repetitions() -> None:
    factors, errors = [], []
    for trial in range(6):
        records = [walk(0.5, 100 * trial + seed, n=60)[0] for seed in range(8)]
        joined = AgingRecord.concat(records)
        found = slowdown(relaxation_curves(joined), verdict(joined).rates[1])
        assert found is not None
        factors.append(found.factor)
        errors.append(found.error)
    assert 0.3 < np.std(factors, ddof=1) / np.mean(errors) < 3


def test_the_words_are_those_of_the_verdict_and_of_the_loss() -> None:
    record, _ = walk(0.5, 0)
    words = in_words(record, verdict(record))
    assert words[0] == str(slowdown(relaxation_curves(record), verdict(record).rates[1]))
    assert words[0].startswith("After step 4,642 it takes ")
    assert words[0].endswith(" times longer to move as far as after step 464.")
    assert words[1] == "It slows down to the end of the run: it ages."
    for value, expected in ((0.69, "It still learns (the training loss fell by 31 %"), (0.99, "It hardly learns"),
                            (1.2, "It does not learn any more (the training loss rose by 20 %")):  # fmt: skip
        record, _ = walk(0.5, 0)
        for step in (1, 500, T):
            record.append_one_time("train_loss", step, value if step == T else 1.0)
        assert any(word.startswith(expected) for word in in_words(record, verdict(record)))
    still, _ = walk(0.0, 0)
    words = in_words(still, verdict(still))
    assert words[0].startswith("After step 4,642 it takes as long to move as far as after step 464: ")
    assert words[1] == "It does not slow down: it does not age."
    step, percent = moved_in_last_decade(still)
    assert percent == pytest.approx(100 * np.sqrt(0.9 * step / (1 + step / 10)), rel=0.1)
    assert words[-1] == (
        f"Between step {step / 10:,.0f} and step {step:,} the weights moved by {percent:.3g} % of their rms size."
    )


def test_summary_report_and_page_begin_with_the_words_and_name_few_doubts() -> None:
    record, _ = walk(0.5, 0)
    record.meta["optimizers"] = [{"name": "Adam", "parameter_groups": [{"lr": 0.1, "weight_decay": 0.1}]}] * 2
    record.add_doubt("the weights were rounded")
    found = report(record, n_bootstrap=10)
    words = in_words(record, verdict(record), aging_exponent(record))
    assert summary(record, "AgingMonitor")[:2] == words[:2]
    assert str(found).split("\n\n")[1] == "\n".join(words)
    doubts = doubts_of(record, found.verdict, found.exponent)
    assert doubts[0] == "the weights were rounded"
    assert len(doubts) == len(set(doubts))
    assert sum("Adam" in doubt for doubt in doubts) == 1  # for two optimisers of one kind
    printed = [line for line in summary(record, "AgingMonitor") if line.startswith("  ! ")]
    assert printed[:2] == [f"  ! {doubt}" for doubt in doubts[:2]]
    assert printed[2:] == [f"  ! {len(doubts) - 2} more in 'lightning-glassy report'"]
    assert (found.confidence, confidence(walk(0.5, 0)[0], found.verdict)) == ("doubtful", "sure")


def test_the_table_of_a_short_run_is_short() -> None:
    long, _ = walk(0.5, 0)
    short = long.before(1500)
    parts = [summary(one, "AgingMonitor") for one in (long, short)]
    tables = [next(part for part in all_parts if part.startswith("Aging of")) for all_parts in parts]
    assert [len(table.split("\n")) for table in tables] == [2 + 6, 2 + 3]
    assert ["missed by: rms distance" in "\n".join(all_parts) for all_parts in parts] == [True, False]
    assert any(part.startswith(("aging exponent", "no aging exponent")) and "\n" not in part for part in parts[1])


# ---------------------------------------------------------------------- side by side


def test_records_side_by_side_have_the_numbers_of_each(tmp_path: Path) -> None:
    first, second = walk(0.5, 0)[0], walk(0.0, 1)[0]
    found = compare({"slow": first, "<b>even</b>": second})
    assert [row.verdict.kind for row in found.rows] == [verdict(first).kind, "no aging"]
    assert found.rows[0].moved is not None
    lines = str(found).split("\n")
    assert lines[0].split() == ["N", "replicas", "verdict", "mu", "slower", "by", "moved", "loss"]
    assert lines[1].startswith("slow")
    assert "<b>even" not in found._repr_html_()
    assert json.loads(json.dumps(found.to_dict()))["slow"]["n_parameters"] == 400


@pytest.mark.parametrize(
    ("records", "error", "words"),
    [
        ({}, ValueError, "there is nothing to compare"),
        ([1], TypeError, "records=list must be a mapping from names to records"),
        ({"a": 1}, TypeError, "must be a mapping from names to records"),
        ({"a": AgingRecord({"all": 1})}, ValueError, "a: the record holds no pair at a positive lag"),
    ],
)
def test_what_cannot_be_compared_is_refused(records: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        compare(records)  # type: ignore[arg-type]


def test_the_command_compares_paths_in_one_table_and_one_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, power in (("a", 0.5), ("b", 0.0)):
        for seed in range(2):
            walk(power, seed)[0].save(tmp_path / name / f"run{seed}" / "glassy" / "aging_record.npz")
    assert cli.main(["report", "--compare", "a", "b"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[:3] for line in printed.split("\n")[1:3]] == [["a", "400", "2"], ["b", "400", "2"]]
    out = tmp_path / "glassy_comparison"
    assert {path.name for path in out.iterdir()} == {"comparison.txt", "comparison.json", "comparison.png"}
    assert json.loads((out / "comparison.json").read_text())["b"]["verdict"] == "no aging"
    for arguments, words in (
        (["a"], "needs two paths or more"),
        (["a", "a"], "is there twice"),
        (["a", "b", "--t0", "fit"], "--compare and --t0 exclude each other"),
        (["a", "nowhere"], "there is no such file or directory"),
    ):
        assert cli.main(["report", "--compare", *arguments]) == 2
        assert words in capsys.readouterr().err

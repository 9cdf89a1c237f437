"""The study of effective temperatures, and the table of both papers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.studies import both_papers, effective_temperature
from examples.studies.common import PAGE, RESULTS, marks
from examples.studies.effective_temperature import Glass, Student, analysed, compared, draw, train
from examples.studies.statements import OF_GLASS, OF_NETWORKS
from lightning_glassy import AgingRecord

pytestmark = pytest.mark.needs("matplotlib")


def made(glass: Glass, size: int, chi: float, c: float) -> AgingRecord:
    """Return a record of one size with the same response and correlation, but for a scatter, at all pairs."""
    record = AgingRecord({"all": 10}, n_replica=2, sums=("d2", "ws"))
    for time in glass.waiting_times:
        for lag in glass.lags:
            at, t = round(time / glass.step(size)), round(lag / glass.step(size))
            record.append(at, t, [[[2.0, 10 * (c - 0.01)]], [[2.0, 10 * (c + 0.01)]]])
            record.append_response(at, t, [[(chi - 0.02) * 10, 1.0, 1.0], [(chi + 0.02) * 10, 1.0, 1.0]])
    return record


def test_the_first_two_orders_of_the_finite_size_are_removed() -> None:
    glass = Glass(0.3, t_max=2.0, waiting_times=(1.0,), lags=(1.0,), sizes=(10, 20, 40), steps=200)
    chi, c = (lambda n, limit=limit: limit + 3 / n + 20 / n**2 for limit in (0.5, 0.8))
    records = [made(glass, size, chi(size), c(size)) for size in glass.sizes]
    of_c, of_chi = compared(glass, records, glass.model.solve(glass.t_max, glass.steps))
    assert of_c["extrapolated"] == pytest.approx(0.8)
    assert of_chi["extrapolated"] == pytest.approx(0.5)
    assert of_chi["exact"] == pytest.approx(0.4598, abs=2e-4)
    assert of_chi["error"] == pytest.approx(0.02 * np.sqrt(1 + 36 + 64) / 3)
    assert of_chi["z"] == pytest.approx((0.5 - of_chi["exact"]) / of_chi["error"])


def test_a_student_is_trained_analysed_and_drawn(tmp_path: Path) -> None:
    student = Student("digits", 3, 1e-4, n_replica=4)
    train(student, 120, (10,), tmp_path)
    record = AgingRecord.load(tmp_path / student.name / "aging_record.npz")
    found: dict[str, Any] = analysed(student, record, 1.0)
    assert [sector["waiting_time"] for sector in found["sectors"]] == [10] * len(found["sectors"])
    assert 0 < found["clone_passes"] <= 120
    assert any("few fields" in doubt for doubt in found["doubts"])
    result = json.loads((RESULTS / "effective_temperature.json").read_text())
    for picture in draw(result, tmp_path):
        assert picture.stat().st_size > 10_000


def test_every_z_of_the_committed_study_is_below_3() -> None:
    result = json.loads((RESULTS / "effective_temperature.json").read_text())
    z = [row["z"] for glass in result["glasses"] for row in glass["numbers"]]
    assert len(z) == 64
    assert max(map(abs, z)) < 3
    assert max(run["clone_passes"] for run in result["diagram"]) <= len(result["cloned"]) * result["steps"]
    assert result["steps"] == effective_temperature.STEPS


def test_the_table_of_both_papers_has_every_statement_with_its_rule() -> None:
    names = ("comparing_dynamics", "released_protocol", "subaging_mnist")
    results = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in names}
    text = both_papers.tables(results)
    begin, end = marks("both_papers")
    assert PAGE.read_text().split(begin)[1].split(end)[0].strip() == text.strip()
    for each in (*OF_NETWORKS.values(), *OF_GLASS.values(), *both_papers.OF_SUBAGING.values()):
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {each.text} |")]
        assert " ".join((each.decide.__doc__ or "").split()) in line
        assert "seen" in line or "testable" in line


def test_the_statements_on_subaging_follow_their_rules() -> None:
    def run(layers: str, mu: float, accuracy: float) -> dict[str, Any]:
        series = {"train_accuracy": {"values": [accuracy]}}
        return {"layers": layers, "order": "file order", "mu": {"threshold": mu}, "mu_error": {"threshold": 0.02}} | {
            "series": series
        }

    names = ("784-5-5-5-10", "784-3-3-3-10", "784-10-10-10-10", "784-20-20-20-10")
    alike = [run(name, 0.8 + 0.01 * k, 0.9) for k, name in enumerate(names)]
    for key in ("subaging", "one"):
        assert both_papers.OF_SUBAGING[key].decide(alike, "file order")["verdict"] == "seen"
    apart = [run(name, 0.6 + 0.2 * k, 0.9) for k, name in enumerate(names)]
    for key in ("subaging", "one"):
        assert both_papers.OF_SUBAGING[key].decide(apart, "file order")["verdict"] == "not seen"
    assert both_papers.OF_SUBAGING["architecture"].decide(apart, "file order")["verdict"] == "not testable here"

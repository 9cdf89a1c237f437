"""Every sentence about an exponent: a record that causes it, in the text, in the headline and on the page."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lightning_glassy import AgingRecord, LogTimeSchedule
from lightning_glassy.analysis import (
    AgingExponent,
    NotEnoughDataError,
    aging_exponent,
    exponent_result,
    exponents,
    headline,
    verdict,
)
from lightning_glassy.record import MOMENTS
from lightning_glassy.report import answers, report
from tests.helpers import PageAnswers
from tests.test_analysis import gaussian_record

Curve = Callable[[float, float], float]

LONG = LogTimeSchedule.logspaced(
    100_000, first_waiting_time=10, waiting_times_per_decade=4, lags_per_decade=6, zero=False
)
SHORT = LogTimeSchedule.logspaced(150, first_waiting_time=10, waiting_times_per_decade=4, lags_per_decade=6, zero=False)
N, EPS, MIDDLE = 10**9, 0.01, 7500.0


def record_of(
    msd: Curve, replicas: int = 1, *, overlap: Curve | None = None, schedule: LogTimeSchedule = LONG
) -> AgingRecord:
    """Return a record with a given MSD, and given 1 - Q. Several replicas have 1 % of noise."""
    rng, noise = np.random.default_rng(0), 0.0 if replicas == 1 else 0.01
    record = AgingRecord(
        {"all": N}, n_replica=None if replicas == 1 else replicas, overlap_thresholds=[] if overlap is None else [EPS]
    )
    for waiting_time, lag in schedule.pairs:
        moments = np.full((replicas, 1, len(MOMENTS) + len(record.overlap_thresholds)), np.nan)
        moments[:, 0, 0] = N * msd(waiting_time, lag) * np.exp(noise * rng.normal(size=replicas))
        if overlap is not None:
            relaxed = overlap(waiting_time, lag) * np.exp(noise * rng.normal(size=replicas))
            moments[:, 0, -1] = np.round(N * (1 - relaxed))
        record.append(waiting_time, lag, moments[0] if replicas == 1 else moments)
    return record


@functools.cache
def wild(waiting_time: float) -> float:
    return float(np.exp(np.random.default_rng(int(waiting_time)).normal()))


def bent(sign: float, power: float = 0.3) -> Curve:
    """Return curves whose lag to relax bends away from a power law of the waiting time."""

    def msd(t_w: float, t: float) -> float:
        x = np.log(t_w / MIDDLE)
        return float((t / np.exp(0.5 * x + sign * 0.06 * x**2)) ** power)

    return msd


def late_shift(by: float) -> Curve:
    """Return flat curves that scale with another exponent at late lags only."""

    def msd(t_w: float, t: float) -> float:
        late = 1 / (1 + np.exp(-4 * np.log(t / 15_000)))
        return float((t / t_w**0.5) ** 0.2 * (t_w / MIDDLE) ** (-by * late))

    return msd


def subaging(t_w: float, t: float) -> float:
    return float((t / t_w**0.5) ** 0.8)


def contradictory(t_w: float, t: float) -> float:
    """Return 1 - Q whose early part and late part age with different exponents."""
    return float(1e-4 * ((t / t_w**0.3) ** 0.4 + 0.2 * t / t_w**0.8))


def noisy_walk() -> AgingRecord:
    """Return a record of a random walk with few coordinates and few waiting times."""
    walk = np.cumsum(np.random.default_rng(0).normal(size=(301, 300)), axis=0)
    return AgingRecord.from_trajectory(walk, LogTimeSchedule.logspaced(300))


def fading_walk() -> AgingRecord:
    """Return a record of a random walk with few coordinates and shrinking steps."""
    walk = np.cumsum(np.random.default_rng(0).normal(size=(1001, 30)) / np.arange(1, 1002)[:, None], axis=0)
    return AgingRecord.from_trajectory(walk, LogTimeSchedule.logspaced(1000), overlap_thresholds=[0.01, 0.1])


def saturating(mu: float) -> Curve:
    return lambda t_w, t: 0.9 * float(-np.expm1(-((t / t_w**mu / 100) ** 0.7)))


def plateau(t_w: float, t: float) -> float:
    return 0.01 * float(-np.expm1(-t)) + 1e-3 * (t / t_w**0.6) ** 1.2


CASES: dict[str, tuple[str, Callable[[int], AgingRecord], dict[str, Any]]] = {
    "short": (
        r"too short for an exponent: 5 waiting times span 1\.0 decades",
        lambda n: record_of(subaging, n, schedule=SHORT),
        {},
    ),
    "bound": (
        "have their best collapse at the end of the range",
        lambda n: record_of(lambda t_w, t: t / t_w**2.6, n),
        {},
    ),
    "two steps": (
        r"relax in two steps, a fast one up to 0\.0\d+: no exponent describes both, and for the slow one .* 0\.6",
        lambda n: record_of(plateau, n),
        {},
    ),
    "two steps, the slow one does not age": (
        r"relax in two steps, a fast one up to [0-9.]+: no exponent describes both$",
        lambda n: record_of(lambda t_w, t: 0.01 * -np.expm1(-t) + 1e-5 * t, n),
        {},
    ),
    "no collapse": (
        "do not collapse: they miss a common curve by [0-9]+%$",
        lambda n: record_of(lambda t_w, t: wild(t_w) * subaging(t_w, t), n),
        {},
    ),
    "faster": (
        r"relax faster the later the waiting time, mu = -0\.3.*: this is not aging$",
        lambda n: record_of(lambda t_w, t: (t * t_w**0.3) ** 0.8, n),
        {},
    ),
    "no aging": (
        r"coincide for all waiting times, mu = -?0\.00.*: no aging$",
        lambda n: record_of(lambda t_w, t: t**0.7, n),
        {},
    ),
    "small": (
        r"the exponent of the MSD, 0\.12.*, is too small: so slow a growth may be a logarithm$",
        lambda n: record_of(lambda t_w, t: (t / t_w**0.12) ** 0.8, n),
        {},
    ),
    "fading": (
        r"is above 1, at 1\.4.*: the motion itself fades",
        lambda n: record_of(lambda t_w, t: t / t_w**1.4, n),
        {},
    ),
    "drift up": (
        r"drifts along the waiting times: it is 0\.\d\d larger in the later half",
        lambda n: record_of(bent(1), n),
        {},
    ),
    "drift down": (
        r"drifts along the waiting times: it is 0\.\d\d smaller in the later half",
        lambda n: record_of(bent(-1), n),
        {},
    ),
    "threshold": (
        "the thresholds of the MSD have a slope of 0.* and the collapse expects 0",
        lambda n: record_of(late_shift(0.13), n),
        {"thresholds": [2.6]},
    ),
    "methods": (
        "the methods disagree: the collapse, effective time of the MSD gives 0",
        lambda n: record_of(lambda t_w, t: (t / t_w**0.5) ** 0.1, n),
        {"window": (10, 100_000)},
    ),
    "observables": (
        r"the observables disagree: the MSD gives 0\.50.*, and the overlap 1 - Q, eps = 0.01 0\.9",
        lambda n: record_of(subaging, n, overlap=saturating(0.95)),
        {},
    ),
    "the other does not age": (
        r"the observables disagree: the MSD gives 0\.50.*, and the overlap 1 - Q, eps = 0.01 -?0\.00",
        lambda n: record_of(subaging, n, overlap=saturating(0.0)),
        {},
    ),
}


def with_noise(record: AgingRecord, noise: Callable[[float], float]) -> AgingRecord:
    """Add the gradient noise D of each step."""
    for step in sorted({*record.pairs[0].tolist(), *np.add(*record.pairs).tolist()}):
        record.append_one_time("gradient_noise", step, noise(step))
    return record


@pytest.mark.parametrize("replicas", [1, 16])
def test_noise_that_fades_as_a_power_law_is_no_aging_if_it_was_measured(replicas: int) -> None:
    for noise, clock in ((lambda n: n**-0.8, lambda n: 5 * n**0.2), (lambda n: 1 / n, np.log)):
        record = record_of(lambda t_w, t, h=clock: 1e-3 * (h(t_w + t) - h(t_w)), replicas)
        assert aging_exponent(record, n_bootstrap=20).mu is not None
        found = report(with_noise(record, noise), n_bootstrap=20)
        assert found.exponent is not None
        assert found.exponent.why_not is not None
        assert found.exponent.why_not.startswith("only the gradient noise fades: against the noise that has acted")
        assert (found.verdict.kind, found.verdict.clock) == ("no aging", "noise")
        assert "only the gradient noise fades" in found.verdict.evidence[-1]


@pytest.mark.parametrize("noise", [lambda n: 1.0, lambda n: n**-0.2], ids=["constant", "fades slowly"])
def test_noise_that_fades_too_slowly_leaves_the_exponent(noise: Callable[[float], float]) -> None:
    found = report(with_noise(record_of(subaging, 16), noise), n_bootstrap=20)
    assert found.exponent is not None
    assert found.exponent.estimate == pytest.approx(0.5, abs=0.02)
    assert not str(found.exponent.why_not).startswith("only the gradient noise")
    assert (found.verdict.kind, found.verdict.clock) == ("aging throughout", "steps")


@functools.cache
def case(name: str, replicas: int) -> tuple[AgingRecord, AgingExponent]:
    _, make, options = CASES[name]
    record = make(replicas)
    return record, aging_exponent(record, n_bootstrap=20, **options)


def flat(text: object) -> str:
    """Return a text without its line breaks."""
    return " ".join(str(text).split())


# ---------------------------------------------------------------------- reasons for no headline


@pytest.mark.parametrize("replicas", [1, 16])
@pytest.mark.parametrize("name", CASES)
def test_a_record_without_an_exponent_gets_the_sentence_that_says_why(name: str, replicas: int) -> None:
    sentence, _, options = CASES[name]
    record, fit = case(name, replicas)
    assert fit.mu is None
    assert fit.why_not is not None
    assert re.search(sentence, fit.why_not)
    assert flat(fit).startswith(fit.why_not if fit.too_short else f"no aging exponent: {fit.why_not}")
    assert "aging exponent mu" not in flat(fit)
    found = report(record, n_bootstrap=20, **options)
    assert found.exponent is not None
    assert found.exponent.why_not in flat(found)
    assert ("no aging exponent", found.exponent.why_not) in found.headline
    answer = answers.fit(found)
    assert (answer["aging_exponent"]["mu"], answer["aging_exponent"]["why_not"]) == (None, found.exponent.why_not)
    assert ["no aging exponent", found.exponent.why_not] in answer["headline"]
    assert not [value for value, _ in answer["headline"] if value.startswith("μ")]
    if not options:
        assert re.search(sentence, found.exponent.why_not)


@pytest.mark.parametrize("replicas", [1, 16])
def test_a_record_with_an_exponent_has_it_as_the_headline(replicas: int) -> None:
    record = record_of(subaging, replicas, overlap=saturating(0.5))
    found = report(record, n_bootstrap=20)
    fit = found.exponent
    assert fit is not None
    assert (fit.mu, fit.why_not) == (fit.estimate, None)
    value, words = found.headline[1]
    assert value == f"μ = {fit.mu:.3f}"
    assert ("no interval" in words) == (replicas == 1)
    assert flat(found).count("aging exponent mu = 0.50") == 1
    assert "no aging exponent" not in flat(found)
    answer = answers.fit(found)["aging_exponent"]
    assert answer["mu"] == answer["estimate"] == fit.mu
    assert [row["label"] for row in answer["others"]] == ["overlap 1 - Q, eps = 0.01"]
    assert [row["miss"] for row in answer["others"]] == [row.miss for row in fit.others]


@pytest.mark.parametrize("replicas", [1, 16])
def test_motion_that_subages_while_its_direction_ages_fully_has_no_single_exponent(replicas: int) -> None:
    """In scaled Brownian motion from w = 0, the displacement has mu = 0.6. The weights grow, and turn with mu = 1."""
    record = gaussian_record(lambda s, t: np.minimum(s, t).astype(float) ** 0.4, 8000 // replicas, replicas, 0)
    fit = aging_exponent(record, n_bootstrap=20)
    assert fit.mu is None
    by_name = {row.observable: row for row in fit.table}
    assert (by_name["msd"].estimate, by_name["decorrelation"].estimate) == pytest.approx((0.6, 1), abs=0.05)
    for row in (fit, fit.about("decorrelation"), report(record, observable="decorrelation", n_bootstrap=20).exponent):
        assert row is not None
        assert re.match(
            "the observables disagree: the (MSD gives 0.*decorrelation|decorrelation.* 1 - C gives)", row.why_not
        )
    # The text reports a contradiction once, and the table has both values.
    assert flat(fit).count("the observables disagree") == 1


def test_thresholds_that_contradict_each_other_take_the_exponent_away() -> None:
    fit = aging_exponent(record_of(late_shift(0.15), 16), thresholds=[1.5, 2.6], n_bootstrap=20)
    assert (fit.mu, fit.interval) == (None, None)
    assert re.match(r"the methods disagree: the thresholds of the MSD have slopes of 0\.\d\d \.\.\. ", str(fit.why_not))
    assert "! the slopes of the thresholds contradict each other" in flat(fit)


def test_a_value_at_a_bound_of_the_search_is_printed_nowhere() -> None:
    record, fit = case("bound", 16)
    assert np.isnan([fit.estimate, *(fit.estimates[name] for name in exponent_result.COLLAPSES)]).all()
    assert not re.search(r"\b(2\.00|1\.99|-0\.50)", str(fit))
    answer = answers.fit(report(record, n_bootstrap=20))
    assert answer["aging_exponent"]["estimate"] is None
    assert answer["scan"] is not None


def test_a_short_record_gets_one_sentence_and_the_doubts_about_its_numbers() -> None:
    record, _ = case("short", 16)
    record.meta["doubts"] = ["the numbers are rounded"]
    assert str(aging_exponent(record, n_bootstrap=20)).split("\n") == [
        "too short for an exponent: 5 waiting times span 1.0 decades (10 ... 100); at least 4 over 1.6",
        "    decades are needed",
        "  ! the numbers are rounded",
    ]
    del record.meta["doubts"]


# ---------------------------------------------------------------------- doubts


DOUBTS: dict[str, tuple[str, Callable[[], AgingExponent]]] = {
    "plateau": (
        "the thresholds 0.009 lie in the fast plateau",
        lambda: aging_exponent(record_of(plateau), thresholds=[0.009, 0.1]),
    ),
    "unreached": (
        r"of \d+ lags to a threshold: \d+ passed before the first lag, and left out, \d+ never reached, and left out$",
        lambda: aging_exponent(record_of(subaging), thresholds=[0.03, 100.0]),
    ),
    "twice": (
        r"lags to a threshold: .*\d+ reached more than once",
        lambda: aging_exponent(
            record_of(lambda t_w, t: (t / t_w**0.5) ** 0.3 * (1 + 0.3 * np.sin(2 * np.log(t)))), thresholds=[1.5]
        ),
    ),
    "no threshold": (
        "no threshold above the fast plateau is reached by enough",
        lambda: aging_exponent(record_of(subaging), thresholds=[1e9]),
    ),
    "drift": ("the slope of the threshold lags drifts", lambda: aging_exponent(record_of(bent(2)))),
    "one run": (r"no interval: 1 replica, at least 8 are needed, 16", lambda: aging_exponent(record_of(subaging))),
    "eight": ("8 replicas; 16 are recommended", lambda: aging_exponent(record_of(subaging, 8), n_bootstrap=20)),
    "finite size": ("a finite size can look like subaging", lambda: aging_exponent(record_of(subaging))),
    "contradiction": (
        "the slopes of the thresholds contradict each other",
        lambda: aging_exponent(record_of(late_shift(0.15), 16), thresholds=[1.5, 2.6], n_bootstrap=20),
    ),
}


@pytest.mark.parametrize("name", DOUBTS)
def test_a_record_with_a_reason_for_doubt_gets_the_sentence(name: str) -> None:
    sentence, make = DOUBTS[name]
    fit = make()
    assert [doubt for doubt in fit.warnings if re.search(sentence, doubt)]
    assert re.search(sentence.rstrip("$"), flat(fit))
    assert len(fit.warnings) <= 6


# ---------------------------------------------------------------------- one quality


@pytest.mark.parametrize("replicas", [1, 16])
@pytest.mark.parametrize("name", ["two steps", "no collapse", "drift up", "no aging", "observables"])
def test_the_quality_under_the_slider_is_smallest_at_the_mark(name: str, replicas: int) -> None:
    found = report(case(name, replicas)[0], n_bootstrap=20)
    fit, answer = found.exponent, answers.fit(found)
    assert fit is not None
    scan = answer["scan"]
    assert (fit.miss > 0.02) == (name in ("no collapse", "drift up"))
    for method, variable in exponent_result.COLLAPSES.items():
        if np.isfinite(fit.estimates[method]):
            values = np.array(scan[variable], dtype=float)
            assert scan["mus"][int(np.nanargmin(values))] == pytest.approx(fit.estimates[method], abs=0.021)
    values = np.array(scan[answer["variable"]], dtype=float)
    at = scan["mus"].index(fit.estimate)
    assert np.nanmin(values) > 0.95 * values[at] or values[at] < 1e-3  # for exact curves, S is only rounding
    assert values[at] == pytest.approx(fit.qualities[fit.method], rel=1e-9)


def test_the_quality_of_curves_that_do_not_collapse_is_smallest_at_the_mark() -> None:
    # S of one short run is rough, with a second minimum at 0.81.
    steps = np.random.default_rng(3).standard_t(2.5, size=(1001, 30)) * np.linspace(3, 1, 1001)[:, None] ** 2
    record = AgingRecord.from_trajectory(np.cumsum(steps, axis=0), LogTimeSchedule.logspaced(1000))
    answer = answers.fit(report(record))
    values = np.array(answer["scan"][answer["variable"]], dtype=float)
    lowest = answer["scan"]["mus"][int(np.nanargmin(values))]
    assert lowest == pytest.approx(answer["aging_exponent"]["estimate"], abs=0.021)


# ---------------------------------------------------------------------- the text stays readable


def test_curves_of_one_run_coincide_within_their_noise() -> None:
    record = noisy_walk()
    fit = aging_exponent(record)
    assert 0.05 < fit.miss < 0.1
    assert re.match(r"the curves of the MSD coincide within \d% for all waiting times, .*: no aging$", str(fit.why_not))
    assert verdict(record).kind == "no aging"


def test_a_reason_that_several_observables_share_is_printed_once() -> None:
    fit = aging_exponent(fading_walk())
    assert len([row for row in fit.others if "do not collapse" in str(row.why_not)]) > 1
    assert flat(fit).count("do not collapse") == 1 + ("do not collapse" in str(fit.why_not))


def test_a_row_without_interval_has_the_reason() -> None:
    fit = aging_exponent(record_of(subaging, 16, overlap=contradictory), n_bootstrap=20)
    (row,) = fit.others
    assert row.interval is None
    assert f"{row.label}: no interval, the slopes of the thresholds contradict" in flat(fit)


def test_a_report_of_a_run_of_one_step_is_too_short_for_an_exponent() -> None:
    walk = np.random.default_rng(0).normal(size=(2, 10))
    found = report(AgingRecord.from_trajectory(walk, LogTimeSchedule.logspaced(1)))
    assert "\n\ntoo short for an exponent: " in str(found)
    assert found.headline[1][1].startswith("too short for an exponent: ")


@pytest.mark.parametrize("steps", [400, 3000])
def test_the_text_of_a_report_stays_within_a_page_width(steps: int) -> None:
    walks = np.cumsum(np.random.default_rng(0).normal(size=(8, steps + 1, 30)), axis=1)
    schedule = LogTimeSchedule.logspaced(steps)
    record = AgingRecord.concat(
        [AgingRecord.from_trajectory(walk, schedule, overlap_thresholds=[1.0]) for walk in walks]
    )
    for step in np.unique(np.geomspace(1, steps, 30).astype(int)):
        record.append_one_time("train_loss", int(step), 3 / step**0.5)
        record.append_one_time("train_accuracy", int(step), 0.9)
    lines = [line for line in str(report(record, n_bootstrap=20)).split("\n") if not line.startswith("  ! ")]
    assert max(map(len, lines)) <= exponent_result.WIDTH


def test_the_text_stays_within_a_page_width_whatever_the_record_holds() -> None:
    name, eps = "layer " + "x" * 200, [10.0**-k for k in range(6, -1, -1)]
    walk = np.cumsum(np.random.default_rng(0).normal(size=(3001, 30)), axis=0)
    schedule = LogTimeSchedule.logspaced(3000)
    record = AgingRecord.from_trajectory(walk, schedule, groups={name: range(10)}, overlap_thresholds=eps)
    fits = [aging_exponent(record, group=name), *(case(each, n)[1] for each in CASES for n in (1, 16))]
    for fit in fits:
        lines = [line for line in str(fit).split("\n") if not line.startswith("  ! ")]  # a doubt has one line
        assert max(map(len, lines)) <= exponent_result.WIDTH
        assert len(str(fit).split("\n")) <= 40
    assert fits[0].group == name
    assert len(fits[0].table) + len(fits[0].unfitted) == 6  # four of the seven thresholds
    assert name[:50] in str(fits[0])


def test_a_threshold_beyond_the_table_has_its_own_fit_on_the_page() -> None:
    walk = np.cumsum(np.random.default_rng(0).normal(size=(1001, 100)), axis=0)
    eps = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
    record = AgingRecord.from_trajectory(walk, LogTimeSchedule.logspaced(1000), overlap_thresholds=eps)
    page = PageAnswers(report(record).page())
    for one in eps:
        fit = page.ask("fits", observable="overlap", eps=one)
        assert fit["aging_exponent"]["eps"] == one


def test_a_record_of_nan_has_a_reason_everywhere() -> None:
    record = record_of(lambda t_w, t: np.nan)
    found = report(record)
    assert found.exponent is None
    assert found.why_not is not None
    assert ("no aging exponent", found.why_not) in found.headline
    assert found.why_not in flat(found)
    assert answers.fit(found)["why_no_exponent"] == found.why_not
    with pytest.raises(NotEnoughDataError, match="0 waiting times from 562 to 56234 have curves"):
        aging_exponent(record)


def test_a_row_that_is_not_in_the_table_is_refused_by_name() -> None:
    with pytest.raises(NotEnoughDataError, match=r"the overlap 1 - Q, eps = 0\.3 is not in the table"):
        case("observables", 1)[1].about("overlap", 0.3)


def other_times() -> AgingRecord:
    """Return a record whose overlap was counted at early waiting times only."""
    return record_of(subaging, overlap=lambda t_w, t: np.nan if t_w > 20_000 else saturating(0.5)(t_w, t))


def test_other_waiting_times_of_a_row_are_named() -> None:
    assert "waiting times 562 ... 17,783: overlap 1 - Q, eps = 0.01" in flat(aging_exponent(other_times()))


@pytest.mark.needs("matplotlib")
@pytest.mark.parametrize("name", ["two steps", "bound", "observables"])
def test_the_figures_say_that_there_is_no_headline(name: str) -> None:
    found = report(case(name, 1)[0])
    drawn = found.figures()
    assert ("collapse" in drawn) == (name != "bound")
    for figure in (drawn[each] for each in ("collapse", "threshold_lags") if each in drawn):
        title = figure.axes[1 if len(figure.axes) > 1 else 0].get_title()
        assert "no aging exponent: the " in title
        assert title.count("\n") <= 2
    good = report(record_of(subaging)).figures()
    assert "no aging exponent" not in good["collapse"].axes[1].get_title() + good["threshold_lags"].axes[0].get_title()


# ---------------------------------------------------------------------- no sentence is left out


def sentences(code: Any) -> Iterator[str]:
    """Yield a pattern for each f-string, and for each alternative text, of a module or a function."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.FormattedValue) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and id(node) not in inner:
            parts = (re.escape(str(p.value)) if isinstance(p, ast.Constant) else ".*" for p in node.values)
            yield re.sub(r"(\\ )+", " +", "".join(parts))  # texts are compared without their line breaks
        if isinstance(node, ast.IfExp):
            yield from (re.escape(p.value) for p in (node.body, node.orelse) if isinstance(p, ast.Constant) and p.value)


@functools.cache
def everything() -> str:
    """Return all texts about the records of this file, one sentence a line."""
    fits = [case(name, replicas)[1] for name in CASES for replicas in (1, 16)]
    fits += [make() for _, make in DOUBTS.values()]
    fits.append(aging_exponent(record_of(subaging, 8), t0=100, n_bootstrap=20))
    fits.append(aging_exponent(other_times()))
    fits.append(replace(fits[-1], group="head"))
    fits.append(aging_exponent(record_of(late_shift(0.15), 16), thresholds=[1.5, 2.6], n_bootstrap=20))
    fits.append(aging_exponent(record_of(subaging, 16, overlap=contradictory), n_bootstrap=20))
    fits += [aging_exponent(noisy_walk()), aging_exponent(fading_walk())]
    told = [words for fit in fits for words in (flat(fit), fit.why_not or "", *fit.warnings)]
    return "\n".join(told)


@pytest.mark.parametrize(
    "code",
    [headline, exponents._doubts, exponents._left_out, AgingExponent.__str__, AgingExponent._notes],
    ids=["rules", "doubts", "thresholds", "text", "notes"],
)
def test_every_sentence_about_an_exponent_is_reached_by_a_record_of_this_file(code: ModuleType | Callable) -> None:
    patterns = list(sentences(code))
    assert len(patterns) > 1
    missing = [pattern for pattern in patterns if not re.search(pattern, everything())]
    assert missing == []

"""The results of the analysis of one record, as text and as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from lightning_glassy.analysis import (
    AgingExponent,
    Diffusion,
    FluctuationDissipation,
    GroupAging,
    Heterogeneity,
    LossRegimes,
    RelaxationTimes,
    Verdict,
    aging_by_group,
)
from lightning_glassy.analysis.curves import TOO_SHORT
from lightning_glassy.analysis.words import Confidence, confidence, doubts_of, in_words
from lightning_glassy.observables import find
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.text import plain, printable

_DRAWS = 50  # resampled fits of each group


@dataclass(frozen=True)
class Findings:
    """The results of the analysis of one record. Prints as a page of text.

    Attributes:
        title: one line that describes the measurement.
        record: the record that was analysed.
        observable: name of the observable of the exponent and the curves.
        group: name of the group of parameters.
        eps: threshold of the overlap, if the observable depends on a threshold.
        verdict: whether the network ages.
        exponent: the aging exponent, None if it cannot be estimated.
        why_not: the reason why there is no exponent, None if there is an exponent.
        diffusion: the kinds of motion.
        heterogeneity: the differences between replicas, None for a single run.
        regimes: the regimes of the training loss, None if the record has no training loss, or has it at too few steps.
        relaxation: the relaxation times of the observable if it is a correlation or an overlap, otherwise the
            relaxation times of the decorrelation (or of the MSD, for a record of displacements alone). None if the
            observable does not relax.
        response: the response to a field, with effective temperatures and its own doubts. None if the record has no
            response, or if the findings are about one group.
        options: arguments of :func:`lightning_glassy.report.report` for the groups and the other choices of the page.
    """

    title: str
    record: AgingRecord
    observable: str
    group: str
    eps: float | None
    verdict: Verdict
    exponent: AgingExponent | None
    why_not: str | None
    diffusion: Diffusion
    heterogeneity: Heterogeneity | None = None
    regimes: LossRegimes | None = None
    relaxation: RelaxationTimes | None = None
    response: FluctuationDissipation | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def groups(self) -> GroupAging | None:
        """The aging of the groups side by side, computed when it is first asked for.

        It is None if the findings are about one group, if the observable does not relax, or if the record has fewer
        than two groups besides ``"all"``.
        """
        if self.group != "all" or len(self.record.groups) < 3 or find(self.observable).relaxation is None:
            return None
        options = {name: self.options[name] for name in ("window", "confidence") if name in self.options}
        draws = min(self.options.get("n_bootstrap", _DRAWS), _DRAWS)
        return aging_by_group(self.record, self.observable, eps=self.eps, n_bootstrap=draws, **options)

    @cached_property
    def words(self) -> list[str]:
        """The answer in a few plain sentences: see :func:`lightning_glassy.analysis.in_words`."""
        return in_words(self.record, self.verdict, self.exponent)

    @property
    def confidence(self) -> Confidence:
        """How sure the verdict is: ``"sure"``, ``"doubtful"`` or ``"unknown"``."""
        return confidence(self.record, self.verdict)

    @property
    def doubts(self) -> list[str]:
        """All doubts about the answer, each once, the most serious first."""
        return doubts_of(self.record, self.verdict, self.exponent)

    @property
    def headline(self) -> list[tuple[str, str]]:
        """The short answers at the top of the page, as pairs of a value and its name."""
        fit, judged = self.exponent, self.verdict
        verdict = judged.kind + (f" at step {judged.stops_at:,}" if judged.stops_at is not None else "")
        answers = [(verdict if judged.phase is None else f"{verdict}: {judged.phase}", "verdict")]
        if fit is None or fit.mu is None:
            answers.append(("no aging exponent", str(self.why_not if fit is None else fit.why_not)))
        else:
            interval = "no interval"
            if fit.interval is not None:
                interval = f"{fit.confidence:.0%} interval {fit.interval[0]:.3f} … {fit.interval[1]:.3f}"
            answers.append((f"μ = {fit.mu:.3f}", f"aging exponent, {interval}"))
        if self.diffusion.coefficient is not None:
            error = "" if self.diffusion.standard_error is None else f" ± {self.diffusion.standard_error:.2g}"
            answers.append((f"K = {self.diffusion.coefficient:.3g}{error}", "diffusion at the bottom, per step"))
        for name, value, form in (
            ("training loss at the end", judged.train_loss, ".3g"),
            ("training accuracy at the end", judged.train_accuracy, ".2%"),
        ):
            if value is not None:
                answers.append((format(value, form), name))
        if self.regimes is not None and self.regimes.bottom_from is not None and self.regimes.at_rest:
            bottom = f"step {self.regimes.bottom_from:,.0f}"
            answers.append((bottom, "from which on the training loss is at the bottom"))
        return answers

    def __str__(self) -> str:
        return "\n\n".join([self.text, *([printable(str(self.groups))] if self.groups is not None else [])])

    @property
    def text(self) -> str:
        """The findings in words, without the groups side by side."""
        without = "" if str(self.why_not).startswith(TOO_SHORT) else "no aging exponent: "
        exponent = str(self.exponent) if self.exponent is not None else f"{without}{self.why_not}"
        # Print a doubt of both the verdict and the exponent only once.
        known = set(self.exponent.warnings) if self.exponent is not None else set()
        doubts = [warning for warning in self.verdict.warnings if warning in known]
        judged = "\n".join(
            line for line in str(self.verdict).split("\n") if not any(line == f"  ! {doubt}" for doubt in doubts)
        )
        # Escape the names in a record, which are not trusted.
        parts = (self.relaxation, self.heterogeneity, self.regimes, self.response)
        more = [str(part) for part in parts if part is not None]
        words = "\n".join(self.words)
        return printable("\n\n".join([self.title, words, judged, exponent, str(self.diffusion), *more]))

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers and texts as plain values, with None for a number that is not finite."""
        content = {
            "title": self.title,
            "observable": self.observable,
            "observables": self.record.available(self.group),
            "group": self.group,
            "n_parameters": self.record.n_parameters[self.group],
            "n_replica": self.record.n_replica or 1,
            "waiting_times": self.record.waiting_times,
            "lags": self.record.lags,
            "words": self.words,
            "confidence": self.confidence,
            "doubts": self.record.doubts,
            "verdict": asdict(self.verdict),
            "aging_exponent": None if self.exponent is None else self.exponent.to_dict(),
            "why_no_exponent": self.why_not,
            "diffusion": asdict(self.diffusion),
            "relaxation_times": None if self.relaxation is None else asdict(self.relaxation),
            "heterogeneity": None if self.heterogeneity is None else asdict(self.heterogeneity),
            "groups": None if self.groups is None else self.groups.to_dict(),
            "loss_regimes": None if self.regimes is None else asdict(self.regimes),
            "fluctuation_dissipation": None if self.response is None else _effective_temperatures(self.response),
        }
        return plain(content)  # type: ignore[no-any-return]


def _effective_temperatures(found: FluctuationDissipation) -> dict[str, Any]:
    """Return the effective temperatures and their doubts, without the curves."""
    names = ("waiting_times", "temperature", "fields", "n_replica", "doubts")
    return {name: getattr(found, name) for name in names} | {"sectors": sectors(found)}


def sectors(found: FluctuationDissipation) -> list[dict[str, Any]]:
    """Return the time sectors of a response with their effective temperatures, as dictionaries."""
    return [
        sector._asdict() | {"temperature": sector.temperature, "temperature_error": sector.temperature_error}
        for sector in found.sectors
    ]

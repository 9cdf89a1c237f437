"""The answers of the analysis to one record, as text and as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lightning_glassy.analysis import AgingExponent, Diffusion, Heterogeneity, LossRegimes, Verdict
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.text import plain, printable


@dataclass(frozen=True)
class Findings:
    """The answers of the analysis to one record. Prints as a page of text.

    Attributes:
        title: one line on what was measured.
        record: the record that was analysed.
        observable: name of the observable that the exponent and the curves are of.
        group: name of the group of parameters.
        eps: threshold of the overlap, if the observable depends on one.
        verdict: whether the network ages.
        exponent: the aging exponent; None if none can be estimated.
        why_not: the reason for that.
        diffusion: the kinds of motion.
        heterogeneity: the differences between replicas; None for a single run.
        regimes: the regimes of the training loss; None if the record has it too seldom or not at all.
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

    def __str__(self) -> str:
        exponent = str(self.exponent) if self.exponent is not None else f"no aging exponent: {self.why_not}"
        # A doubt that both have is printed once.
        known = set(self.exponent.warnings) if self.exponent is not None else set()
        doubts = [warning for warning in self.verdict.warnings if warning in known]
        judged = "\n".join(
            line for line in str(self.verdict).split("\n") if not any(line == f"  ! {doubt}" for doubt in doubts)
        )
        # Names in a record are not trusted.
        more = [str(part) for part in (self.heterogeneity, self.regimes) if part is not None]
        return printable("\n\n".join([self.title, judged, exponent, str(self.diffusion), *more]))

    def to_dict(self) -> dict[str, Any]:
        """The numbers and words as plain values, None for a number that is not finite."""
        content = {
            "title": self.title,
            "observable": self.observable,
            "observables": self.record.available(self.group),
            "group": self.group,
            "n_parameters": self.record.n_parameters[self.group],
            "n_replica": self.record.n_replica or 1,
            "waiting_times": self.record.waiting_times,
            "lags": self.record.lags,
            "verdict": asdict(self.verdict),
            "aging_exponent": None if self.exponent is None else asdict(self.exponent),
            "why_no_exponent": self.why_not,
            "diffusion": {
                key: value for key, value in asdict(self.diffusion).items() if key not in ("waiting_times", "lags")
            },
            "heterogeneity": None if self.heterogeneity is None else asdict(self.heterogeneity),
            "loss_regimes": None if self.regimes is None else asdict(self.regimes),
        }
        return plain(content)  # type: ignore[no-any-return]

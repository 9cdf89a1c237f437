"""All that is asked of a record, answered at once: the exponent, the verdict, the kinds of motion; as text and files.

It needs the extra ``report`` (scipy; for the files also matplotlib and plotly).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning_glassy.analysis import (
    AgingExponent,
    Diffusion,
    Heterogeneity,
    LossRegimes,
    NotEnoughDataError,
    Verdict,
    aging_exponent,
    collapse,
    diffusion,
    heterogeneity,
    loss_regimes,
    reconcile,
    relaxation_curves,
    verdict,
)
from lightning_glassy.analysis.curves import OBSERVABLES, Observable
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.text import plain, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Report:
    """What a record says. Prints as a page of text.

    Attributes:
        title: what was measured, in one line.
        record: what was analysed.
        observable: the quantity that the exponent and the pictures are of.
        group: whose parameters.
        eps: threshold of the overlap, if that is the observable.
        verdict: whether it ages.
        exponent: the aging exponent; None where none can be estimated.
        why_not: then the reason.
        diffusion: the kinds of motion.
        heterogeneity: what replicas differ in; None for a single run.
        regimes: of the training loss; None where it is not in the record, or too seldom.
    """

    title: str
    record: AgingRecord
    observable: Observable
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
        # What both doubt is said once.
        known = set(self.exponent.warnings) if self.exponent is not None else set()
        doubts = [warning for warning in self.verdict.warnings if warning in known]
        judged = "\n".join(
            line for line in str(self.verdict).split("\n") if not any(line == f"  ! {doubt}" for doubt in doubts)
        )
        # The names in it are whoever's wrote the record.
        more = [str(part) for part in (self.heterogeneity, self.regimes) if part is not None]
        return printable("\n\n".join([self.title, judged, exponent, str(self.diffusion), *more]))

    def to_dict(self) -> dict[str, Any]:
        """The numbers and words of the report as plain values, None for what is not a finite number."""
        content = {
            "title": self.title,
            "observable": self.observable,
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

    def figures(self) -> dict[str, Figure]:
        """The pictures of the report by name, unknown to pyplot.

        ``curves``, and where there is an exponent ``collapse`` (the curves beside the collapsed ones) and
        ``threshold_lags``; ``local_exponent``. Of replicas ``chi4``, and if they were trained together
        ``replica_overlap``. And those of :func:`~lightning_glassy.plotting.panels.panels`, where the record has the
        data.

        Raises:
            ImportError: matplotlib is missing; the message names the extra.
        """
        from lightning_glassy import plotting
        from lightning_glassy.plotting.panels import panels

        title = plotting.title_of(self.record, self.group)
        label = OBSERVABLES[self.observable]
        curves = relaxation_curves(self.record, self.observable, group=self.group, eps=self.eps)
        figures = {"curves": plotting.new_figure(1)}
        axes = plotting.plot_curves(curves, ax=figures["curves"].axes[0])
        axes.set_ylabel(label)
        axes.set_title(title, fontsize=10)
        if self.exponent is not None:
            fit = self.exponent
            used = curves.between(*fit.window)
            figures["collapse"] = plotting.new_figure(2)
            left, right = figures["collapse"].axes
            plotting.plot_curves(used, ax=left).set_ylabel(label)
            plotting.plot_collapse(collapse(used, fit.mu, fit.variable, t0=fit.t0), ax=right)
            figures["threshold_lags"] = plotting.new_figure(1)
            plotting.plot_threshold_lags(fit, ax=figures["threshold_lags"].axes[0]).set_title(title, fontsize=10)
        figures["local_exponent"] = plotting.new_figure(1)
        plotting.plot_local_exponent(self.diffusion, ax=figures["local_exponent"].axes[0])
        figures["local_exponent"].axes[0].set_title(title, fontsize=10)
        if self.heterogeneity is not None and self.heterogeneity.chi4 is not None:
            figures["chi4"] = plotting.new_figure(1)
            plotting.plot_chi4(self.heterogeneity, ax=figures["chi4"].axes[0]).set_title(title, fontsize=10)
        if self.heterogeneity is not None and len(self.heterogeneity.steps):
            figures["replica_overlap"] = plotting.new_figure(2)
            left, right = figures["replica_overlap"].axes
            plotting.plot_replica_overlaps(self.heterogeneity, axes=(left, right))
        found = panels(self.record, group=self.group, regimes=self.regimes)
        return figures | {name: draw() for name, draw in found.items()}

    def write(self, directory: str | Path) -> list[Path]:
        """Write ``report.html``, ``report.txt``, ``report.json`` and one PNG per figure; returns their paths.

        Raises:
            ImportError: plotly or matplotlib is missing; the message names the extra.
            OSError: the directory cannot be written.
        """
        from lightning_glassy.report.page import page

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        texts: dict[str, Callable[[], str]] = {
            "report.html": lambda: page(self),
            "report.txt": lambda: f"{self}\n",
            "report.json": lambda: json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n",
        }
        paths = []
        for name, text in texts.items():
            paths.append(directory / name)
            paths[-1].write_text(text(), encoding="utf-8", errors="backslashreplace")
        for name, figure in self.figures().items():
            paths.append(directory / f"{name}.png")
            figure.savefig(paths[-1], dpi=150)
        return paths


def report(
    record: AgingRecord,
    *,
    observable: Observable = "msd",
    group: str = "all",
    eps: float | None = None,
    window: tuple[int, int] | None = None,
    thresholds: list[float] | None = None,
    t0: float | Literal["fit"] = 0.0,
    confidence: float = 0.95,
    n_bootstrap: int = 200,
    title: str | None = None,
) -> Report:
    """Everything that :mod:`lightning_glassy.analysis` can say of a record.

    Args:
        record: one run, or replicas.
        observable: what the exponent is of; see :func:`~lightning_glassy.analysis.aging_exponent`, as for the other
            arguments.
        group: name of the group of parameters.
        eps: threshold of the overlap.
        window: first and last waiting time of the exponent.
        thresholds: values to be reached.
        t0: origin of the clock, or ``"fit"``.
        confidence: level of the interval.
        n_bootstrap: resampled fits.
        title: what was measured; default the module, N and the number of replicas.

    Raises:
        ValueError: an empty record, or an argument out of its range.
        KeyError: a group the record does not have, or no gradient noise in it.
    """
    if not len(record):
        raise ValueError("the record is empty: no pair of times was measured")
    if title is None:
        module = record.meta.get("module")
        replicas = "" if record.n_replica is None else f", {record.n_replica} replicas"
        title = f"{module if isinstance(module, str) else 'aging record'}: N = {record.n_parameters['all']:,}{replicas}"
    judged = verdict(record, group=group, observable=None if observable == "msd" else observable, eps=eps)
    moving = diffusion(record, group=group)
    exponent, why_not = None, None
    try:
        exponent = aging_exponent(
            record,
            observable,
            group=group,
            eps=eps,
            window=window,
            thresholds=thresholds,
            t0=t0,
            confidence=confidence,
            n_bootstrap=n_bootstrap,
        )
    except NotEnoughDataError as error:
        if window is not None:  # that was asked for
            raise
        why_not = str(error)
    if exponent is not None:
        judged = reconcile(judged, exponent)
    several = record.n_replica is not None and record.n_replica > 1
    between = heterogeneity(record, group=group, eps=eps) if several else None
    regimes = None
    if "train_loss" in record.one_time_names:
        with contextlib.suppress(NotEnoughDataError):
            regimes = loss_regimes(record)
    return Report(title, record, observable, group, eps, judged, exponent, why_not, moving, between, regimes)

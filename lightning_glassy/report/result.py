"""Report the findings in a record as text, figures and a page."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning_glassy.analysis import (
    AgingExponent,
    NotEnoughDataError,
    aging_exponent,
    diffusion,
    fluctuation_dissipation,
    heterogeneity,
    loss_regimes,
    reconcile,
    relaxation_curves,
    relaxation_times,
    verdict,
)
from lightning_glassy.analysis.curves import TOO_SHORT, too_short
from lightning_glassy.observables import find, relaxation_of
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.atomic import write_atomically
from lightning_glassy.record.tables import RESPONSE_TABLE
from lightning_glassy.report.figures import figures
from lightning_glassy.report.findings import Findings
from lightning_glassy.report.page import Choice, Progress, page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report(Findings):
    """The findings in a record, with figures and files. Prints as a page of text."""

    def figures(self) -> dict[str, Figure]:
        """Draw the figures of :func:`lightning_glassy.report.figures.figures`, by name."""
        return figures(self)

    def page(self, progress: Progress | None = None) -> str:
        """Return the page of the TensorBoard tab as one HTML file, with the answers about this record inside.

        Args:
            progress: called with the number of finished analyses, and of all.

        Raises:
            ImportError: plotly is missing. The message names the extra.
        """
        known: dict[tuple[str, float | None], Report] = {}
        # One table of a group has the exponents of all its observables.
        tables = {} if self.exponent is None else {self.group: self.exponent}

        def analyse(choice: Choice) -> Report:
            if find(choice.observable).relaxation is not None:
                found = _report(self.record, **choice._asdict(), **self.options, table=tables.get(choice.group))
                if found.exponent is not None:
                    tables.setdefault(choice.group, found.exponent)
                return found
            # Observables that do not relax differ only in the reason why there is no exponent.
            if (choice.group, choice.eps) not in known:
                options = {key: value for key, value in self.options.items() if key not in ("window", "t0")}
                known[choice.group, choice.eps] = report(self.record, **choice._asdict(), **options)
            found = known[choice.group, choice.eps]
            return replace(found, observable=choice.observable, why_not=_no_exponent(choice.observable))

        return page(self, analyse, progress)

    def write(self, directory: str | Path, progress: Progress | None = None) -> list[Path]:
        """Write ``report.txt``, ``report.json``, one PNG per figure and ``report.html``. Return their paths.

        The figures need matplotlib, and the page needs plotly. If a package is missing, a warning in the log names the
        extra, and the other files are written.

        Each file replaces a file or a link of its name. Nothing is written through a link in ``directory``, but
        ``directory`` itself can be a link.

        Args:
            directory: directory for the files.
            progress: called with the number of analyses of the page that are done, and of all.

        Raises:
            OSError: the directory cannot be written.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        numbers = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        paths = [_write(directory / "report.txt", f"{self}\n"), _write(directory / "report.json", f"{numbers}\n")]
        try:
            for name, figure in self.figures().items():
                draw = partial(figure.savefig, format="png", dpi=150)
                paths.append(write_atomically(directory / f"{name}.png", draw))
        except ImportError as error:
            log.warning("no figures are written: %s", error)
        try:
            paths.append(_write(directory / "report.html", self.page(progress)))
        except ImportError as error:
            log.warning("report.html is not written: %s", error)
        return paths


def _no_exponent(observable: str) -> str:
    return f"the {find(observable).title} does not relax: it has no lag to a threshold"


def _write(path: Path, text: str) -> Path:
    return write_atomically(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def report(
    record: AgingRecord,
    *,
    observable: str = "msd",
    group: str = "all",
    eps: float | None = None,
    window: tuple[int, int] | None = None,
    thresholds: list[float] | None = None,
    t0: float | Literal["fit"] = 0.0,
    confidence: float = 0.95,
    n_bootstrap: int = 200,
    title: str | None = None,
) -> Report:
    """Analyse a record with :mod:`lightning_glassy.analysis`: aging, diffusion, replicas, loss and response.

    Args:
        record: one run, or replicas.
        observable: observable of the exponent and the curves, by its name in
            :data:`lightning_glassy.observables.OBSERVABLES`. An observable that does not relax has curves but no
            exponent. For this and the following arguments see :func:`~lightning_glassy.analysis.aging_exponent`.
        group: name of the group of parameters.
        eps: threshold of the overlap.
        window: first and last waiting time of the exponent.
        thresholds: values to be reached.
        t0: origin of the clock, or ``"fit"``.
        confidence: level of the interval.
        n_bootstrap: number of resampled fits.
        title: one line that describes the measurement, default the module (or the number of checkpoints), N and the
            number of replicas.

    Replicas that are copies of others, and replicas that have diverged from the start, are left out with a doubt. See
    :meth:`AgingRecord.independent`.

    Raises:
        ValueError: the record is empty, an argument is out of range, or the record lacks data for the observable.
        KeyError: the record does not have the group, or no gradient noise of the group.
    """
    return _report(
        record,
        observable=observable,
        group=group,
        eps=eps,
        window=window,
        thresholds=thresholds,
        t0=t0,
        confidence=confidence,
        n_bootstrap=n_bootstrap,
        title=title,
    )


def _report(
    record: AgingRecord,
    *,
    observable: str,
    group: str,
    eps: float | None,
    window: tuple[int, int] | None,
    t0: float | Literal["fit"],
    confidence: float,
    n_bootstrap: int,
    thresholds: list[float] | None = None,
    title: str | None = None,
    table: AgingExponent | None = None,
) -> Report:
    """Analyse a record, with the table of the exponents of this group if it is known."""
    if not len(record):
        raise ValueError("the record is empty: no pair of times was measured")
    record, left_out = record.independent()
    for doubt in left_out:
        record.add_doubt(doubt)
    if title is None:
        module, files = record.meta.get("module"), record.meta.get("files")
        if not isinstance(module, str):
            measured = record.meta.get("source") == "checkpoints" and isinstance(files, list)
            module = f"aging record of {len(files)} checkpoints" if measured else "aging record"  # type: ignore[arg-type]
        replicas = "" if record.n_replica is None else f", {record.n_replica} replica{'s' * (record.n_replica > 1)}"
        title = f"{module}: N = {record.n_parameters['all']:,}{replicas}"
    options: dict[str, Any] = {"window": window, "t0": t0, "confidence": confidence, "n_bootstrap": n_bootstrap}
    exponent, why_not = None, None
    if find(observable).relaxation is None:
        given = {"window": window, "thresholds": thresholds, "t0": t0 or None}
        wrong = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
        if wrong:
            raise ValueError(f"{wrong}: observable={observable!r} has no aging exponent, because it does not relax")
        record.observable(observable, group, eps=eps)  # raises if this record lacks data for the observable
        why_not = _no_exponent(observable)
        judged = verdict(record, group=group)
    else:
        judged = verdict(record, group=group, observable=None if observable == "msd" else observable, eps=eps)
        try:
            # A table has at most four thresholds of the overlap. A further one gets its own.
            if table is not None and table.has(observable, eps):
                exponent = table.about(observable, eps)
            else:
                exponent = aging_exponent(record, observable, group=group, eps=eps, thresholds=thresholds, **options)
        except NotEnoughDataError as error:
            if window is not None:  # the caller has asked for this window
                raise
            short = too_short(relaxation_curves(record, observable, group=group, eps=eps))
            why_not = str(error) if short is None else f"{TOO_SHORT}: {error}"
    if exponent is not None:
        judged = reconcile(judged, exponent)
    several = record.n_replica is not None and record.n_replica > 1
    between = heterogeneity(record, group=group, eps=eps) if several else None
    regimes = None
    if "train_loss" in record.one_time_names:
        with contextlib.suppress(NotEnoughDataError):
            regimes = loss_regimes(record)
    response = None
    if group == "all" and RESPONSE_TABLE in record.tables:
        with contextlib.suppress(NotEnoughDataError):
            response = fluctuation_dissipation(record)
    timed = None
    if find(observable).relaxation is not None:
        chosen = {"observable": observable, "eps": eps} if relaxation_of(observable).correlation else {}
        origin = exponent.t0 if exponent is not None else 0.0
        timed = relaxation_times(record, group=group, window=window, t0=origin, **chosen)  # type: ignore[arg-type]
    moving = diffusion(record, group=group)
    return Report(
        title,
        record,
        observable,
        group,
        eps,
        judged,
        exponent,
        why_not,
        moving,
        heterogeneity=between,
        regimes=regimes,
        relaxation=timed,
        response=response,
        options=options,
    )

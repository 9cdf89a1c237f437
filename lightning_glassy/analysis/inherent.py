"""Vibrations about one inherent structure, and jumps from one to the next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_glassy.observables import Array
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.record import AgingRecord


@dataclass(frozen=True)
class InherentJumps:
    r"""The intervals between successive measured inherent structures. ``print`` shows them.

    Attributes:
        steps: the step at the end of each interval, ``[n]``.
        before: the step at its start, ``[n]``. -1 if it is not in the record.
        ratio: ``inherent_step`` over the sum of the two ``inherent_distance``, ``[n]``. NaN without a verdict.
        jump: whether the weights have jumped to another inherent structure, ``[n]``. False also without a verdict.
        reasons: for each interval, why there is no verdict. Empty with a verdict.
    """

    steps: NDArray[np.int64]
    before: NDArray[np.int64]
    ratio: Array
    jump: NDArray[np.bool_]
    reasons: tuple[str, ...]

    @property
    def decided(self) -> NDArray[np.bool_]:
        """Whether there is a verdict on each interval, ``[n]``."""
        return np.array([not reason for reason in self.reasons], dtype=np.bool_)

    def __str__(self) -> str:
        lines = ["inherent structures"]
        for before, step, ratio, jump, reason in zip(
            self.before.tolist(), self.steps.tolist(), self.ratio, self.jump, self.reasons, strict=True
        ):
            verdict = f"no verdict: {reason}" if reason else f"{'jump' if jump else 'vibration'}, ratio {ratio:.3g}"
            lines.append(f"  steps {before:,} ... {step:,}: {verdict}")
        return "\n".join(lines)


@quiet()
def inherent_jumps(record: AgingRecord) -> InherentJumps:
    r"""Decide whether the weights have vibrated about one inherent structure, or have jumped to another one.

    With the inherent structures :math:`w^{IS}` at two successive measured steps :math:`t_1 < t_2`, the ratio is

    .. math:: \frac{|w^{IS}(t_2) - w^{IS}(t_1)|^2}{|w(t_1) - w^{IS}(t_1)|^2 + |w(t_2) - w^{IS}(t_2)|^2}.

    Independent vibrations about one minimum move the weights by the denominator. If the ratio is larger than 1, the
    minima are farther apart than these vibrations, and the weights have jumped. The ratio is 0 if both steps have the
    same inherent structure. With replicas, the means of the squared distances over the replicas are compared.

    There is no verdict if one of the two descents, of any replica, did not converge. Its end is no minimum.

    Source: Stillinger and Weber 1982 for the separation into structures and vibrations. The threshold is a convention
    of this package.

    Args:
        record: a record with the series of an :class:`InherentStructures` callback.

    Raises:
        KeyError: the record has no such series. The message lists the names it has.

    Example:
        >>> from lightning_glassy import LogTimeSchedule
        >>> record = AgingRecord.from_trajectory(np.zeros((11, 3)), LogTimeSchedule([0], [10]))
        >>> for step, distance, moved in ((0, 0.1, None), (1, 0.1, 0.01), (10, 0.1, 0.8)):
        ...     record.append_one_time("inherent_distance", step, distance)
        ...     record.append_one_time("inherent_converged", step, 1.0)
        ...     if moved is not None:
        ...         record.append_one_time("inherent_step", step, moved)
        >>> print(inherent_jumps(record))
        inherent structures
          steps 0 ... 1: vibration, ratio 0.05
          steps 1 ... 10: jump, ratio 4
    """
    measured, converged = record.one_time("inherent_converged")
    distances = dict(zip(*_listed(record, "inherent_distance"), strict=True))
    # A record of a single step has no pair of structures.
    moved = _listed(record, "inherent_step") if "inherent_step" in record.one_time_names else ([], [])
    whole = dict(zip(measured.tolist(), (converged == 1).tolist(), strict=True))
    # -1 stands for a step that is not in the record.
    before = [max((step for step in whole if step < end), default=-1) for end in moved[0]]
    ratio = np.full(len(before), np.nan)
    reasons: list[str] = []
    for i, (ends, apart) in enumerate(zip(zip(before, moved[0], strict=True), moved[1], strict=True)):
        failed = [step for step in ends if not whole.get(step, False)]
        vibration = sum(distances.get(step, np.nan) for step in ends)
        if ends[0] < 0:
            reasons.append("the structure before is not in the record")
        elif failed:
            reasons.append(f"the descent from step {' and '.join(f'{step:,}' for step in failed)} did not converge")
        elif not np.isfinite([apart, vibration]).all():
            reasons.append("a distance is not finite")
        else:
            reasons.append("")
            ratio[i] = 0.0 if apart == 0 else np.divide(apart, vibration)
    steps = np.array(moved[0], dtype=np.int64)
    return InherentJumps(steps, np.array(before, dtype=np.int64), ratio, ratio > 1, tuple(reasons))


def _listed(record: AgingRecord, name: str) -> tuple[list[int], list[float]]:
    steps, values = record.one_time(name)
    return steps.tolist(), values.tolist()

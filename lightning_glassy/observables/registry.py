"""The registry of observables. Each observable is declared once, below its formula.

A record, its tables and figures, the loggers, the report, the command line and the TensorBoard tab loop over
:data:`OBSERVABLES`. To add an observable, write its formula and its entry in
:mod:`lightning_glassy.observables.two_time`, and a one-line method of :class:`~lightning_glassy.AgingRecord`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

from lightning_glassy.observables.arrays import Array

Formula = Callable[..., Array]

_UNICODE = {"partial": "∂", "ln": " ln ", "lambda": "λ", "Lambda": "Λ", "sum": "∑", "sqrt": "√", "langle": "⟨",
            "rangle": "⟩", "cdot": "·", "infty": "∞", "mathrm": ""}  # fmt: skip

NOT_SUMS = ("n", "population", "count", "lags", "noise")
"""Names of inputs of formulas that are neither sums nor observables: see :class:`Observable`."""


class Relaxation(NamedTuple):
    r"""Quantity of an observable that grows from 0 as the weights move. Thresholds and aging exponents refer to it.

    Attributes:
        label: name of the quantity in texts and on axes, such as ``"overlap 1 - Q"``.
        symbol: symbol of the quantity in TeX.
        falls: True if the observable falls from 1. The quantity is then one minus the observable. Otherwise it is the
            observable itself.
        correlation: whether the quantity is one minus a correlation or an overlap. It then has a lag to 1/e.
    """

    label: str
    symbol: str
    falls: bool = False
    correlation: bool = False

    def of(self, values: Array) -> Array:
        """Compute it from the values of the observable."""
        return 1 - values if self.falls else values


class Error(NamedTuple):
    """The standard error of an observable: a formula, and the names of its inputs."""

    formula: Formula
    inputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Observable:
    r"""An entry of the registry: a quantity at each pair of times :math:`(t_w, t_w + t)`.

    Attributes:
        name: its name in Python, in tables and loggers, and on the command line.
        title: its name in words.
        symbol: its symbol in TeX.
        formula: the function that computes it, elementwise over pairs of times.
        inputs: the names of the arguments of the formula, in its order. An argument can be a sum in the record
            (``"d2"``) or another observable, by its name. It can also be ``"n"`` (the number of coordinates summed
            over), ``"population"`` (the number N of coordinates in the group), ``"count"`` (the number of coordinates
            with :math:`|d| \le \epsilon`), ``"lags"``, or ``"noise"`` (the strength D of the gradient noise at
            :math:`t_w`).
        log: whether its axis is logarithmic.
        relaxation: how it relaxes. None for an observable that has no lag to a threshold and no aging exponent.
        over_replicas: whether the formula compares replicas, so that the result has no axis of replicas.
        of_mean: how :meth:`AgingRecord.mean` averages over replicas. False averages the values of the replicas, because
            an observable is defined for one run, as an average over its coordinates. True applies the formula to the
            means of the inputs. Use True for a derivative of the logarithm of a noisy curve.
        error: its standard error, if there is a formula: for a comparison of replicas, or for a value summed over a
            sample of the coordinates. For the scatter between replicas, see :meth:`AgingRecord.sem`.
        logged: whether loggers get its curves. If True, it must be pairwise.
        drawn: whether loggers get a figure of it. If True, it must be pairwise.
    """

    name: str
    title: str
    symbol: str
    formula: Formula
    inputs: tuple[str, ...]
    log: bool = False
    relaxation: Relaxation | None = None
    over_replicas: bool = False
    of_mean: bool = False
    error: Error | None = None
    logged: bool = False
    drawn: bool = False

    @cached_property
    def pairwise(self) -> bool:
        """Whether the sums of one pair of times, in one replica, are enough to compute it."""
        return self.of_one_pair(self.inputs)

    def of_one_pair(self, inputs: Sequence[str]) -> bool:
        """Return whether a formula for this observable, or for its error, needs only the sums of one pair of times."""
        return not self.over_replicas and not any(name in ("lags", "noise") or name in _ENTRIES for name in inputs)

    @cached_property
    def has_threshold(self) -> bool:
        r"""Whether it depends on a threshold :math:`\epsilon`, by itself or through another observable."""
        return "count" in self.inputs or any(_ENTRIES[name].has_threshold for name in self.inputs if name in _ENTRIES)


_ENTRIES: dict[str, Observable] = {}

OBSERVABLES: Mapping[str, Observable] = MappingProxyType(_ENTRIES)
"""All observables by name, in the order of the columns of a table."""


def register(entry: Observable) -> None:
    """Add an entry to the registry.

    Raises:
        ValueError: the name is taken, by another observable or as the input of a formula, or loggers cannot get it.
    """
    if entry.name in _ENTRIES:
        raise ValueError(f"the observable {entry.name!r} is registered already: choose another name")
    formulas = [formula for known in (*_ENTRIES.values(), entry) for formula in (known, known.error) if formula]
    if entry.name in NOT_SUMS or any(entry.name in formula.inputs for formula in formulas):
        raise ValueError(f"the observable {entry.name!r} has the name of an input of a formula: choose another name")
    if (entry.logged or entry.drawn) and not entry.pairwise:
        raise ValueError(
            f"the observable {entry.name!r} needs more than one pair of times or one replica, and loggers get no more: "
            "leave out logged and drawn"
        )
    _ENTRIES[entry.name] = entry


def find(name: str, *, argument: str = "observable") -> Observable:
    """Return the entry of an observable.

    Args:
        name: name of the observable.
        argument: name of the caller's argument, for the message.

    Raises:
        ValueError: there is no such observable. The message lists all observables.
    """
    if not isinstance(name, str) or name not in _ENTRIES:
        raise ValueError(f"{argument}={name!r} is not one of {', '.join(map(repr, _ENTRIES))}")
    return _ENTRIES[name]


def relaxing() -> list[str]:
    """Return the names of the observables that relax."""
    return [entry.name for entry in _ENTRIES.values() if entry.relaxation is not None]


def relaxation_of(name: str) -> Relaxation:
    """Return how an observable relaxes.

    Raises:
        ValueError: there is no such observable, or it does not relax. The message lists the possible names.
    """
    relaxation = find(name).relaxation
    if relaxation is None:
        raise ValueError(f"observable={name!r} does not relax: choose from {', '.join(map(repr, relaxing()))}")
    return relaxation


def unicode_of(symbol: str) -> str:
    r"""Write TeX as plain text with Unicode letters. Subscripts keep their underscore.

    A command without a Unicode letter becomes its name.

    Example:
        >>> unicode_of(r"\alpha_2(t_w, t_w+t)"), unicode_of(r"\partial\ln\Delta/\partial\ln t")
        ('α_2(t_w, t_w+t)', '∂ ln Δ/∂ ln t')
        >>> unicode_of(r"C_\mathrm{raw}"), unicode_of(r"\erf\kappa")
        ('C_raw', 'erf κ')
    """
    text = re.sub(r"\\([A-Za-z]+) ?", lambda found: _letter(found[1]), symbol)
    return re.sub("[{}]", "", text).strip().replace("-", "−")


def _letter(command: str) -> str:
    if command in _UNICODE:
        return _UNICODE[command]
    try:
        return unicodedata.lookup(f"greek {'capital' if command[0].isupper() else 'small'} letter {command}")
    except KeyError:
        return f"{command} "

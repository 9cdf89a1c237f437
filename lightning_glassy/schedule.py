r"""Steps at which to measure: sequences of steps, and schedules of waiting times and lags.

Aging is visible in logarithmic time. A system that relaxes as :math:`t/t_w^\mu` needs as many measurements between
steps 10 and 100 as between 10,000 and 100,000. Sequences and schedules are values of integers, without tensors or
trainers.
"""

from __future__ import annotations

import operator
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, NamedTuple, TypeGuard, get_args

Preset = Literal["baity-jesi", "subaging"]

# A float64 holds every integer up to here. Beyond it, a rounded grid point could be wrong by one.
_LARGEST_STEP = 2**53


class Event(NamedTuple):
    """A step at which weights are captured or measured.

    Attributes:
        step: number of completed optimiser updates.
        capture: whether the step is a waiting time, whose weights become a reference.
        waiting_times: the references that are measured, each at lag ``step - waiting_time``.
    """

    step: int
    capture: bool
    waiting_times: tuple[int, ...]


class Steps:
    """An increasing sequence of steps: an explicit list, or a logarithmic grid, perhaps without an end.

    Each measurement along a run accepts an object of this class, a list of steps, or a number of steps per decade.

    Args:
        steps: strictly increasing non-negative integers.

    Raises:
        TypeError: an entry is not an integer. The message names its place.
        ValueError: the list is empty, negative or not strictly increasing.

    Example:
        >>> Steps([0, 10, 100]).after(10)
        100
        >>> Steps.logspaced(3).upto(20)
        (0, 1, 2, 5, 10)
    """

    def __init__(self, steps: Sequence[int]) -> None:
        self._fill(_increasing("steps", steps), None)

    def _fill(self, points: Iterable[int], grid: _Grid | None) -> Steps:
        """Set the points known so far, and the grid from which the others follow."""
        self._points, self._grid, self._k = list(points), grid, 0
        return self

    @classmethod
    def logspaced(cls, per_decade: int = 3, *, first: int = 1, last: int | None = None, zero: bool = True) -> Steps:
        """Return the integers nearest to ``first * 10**(k / per_decade)``, k = 0, 1, 2, ..., without repetition.

        A grid does not depend on its end. A longer grid contains the points of a shorter grid.

        Args:
            per_decade: number of grid points in each factor of ten.
            first: first point after 0.
            last: no point is larger. ``None``: the grid has no end.
            zero: whether step 0, the initial state, is a point.

        Raises:
            TypeError: an argument is not an integer.
            ValueError: an argument is below 1, ``per_decade`` is above 1000, or ``last`` is below ``first``.
        """
        return cls._logspaced(per_decade, first, last, zero, ("per_decade", "first", "last"))

    @classmethod
    def _logspaced(cls, per_decade: int, first: int, last: int | None, zero: bool, names: Sequence[str]) -> Steps:
        """Make a grid. The names of the first three arguments are for error messages."""
        start, density = _positive(names[1], first), _density(names[0], per_decade)
        end = _optional_step(names[2], last)
        if end is not None and end < start:
            raise ValueError(f"{names[2]}={last} is below {names[1]}={first}: there is no step to measure")
        return cls.__new__(cls)._fill([0] if zero else [], _Grid(density, start, end, bool(zero)))

    @property
    def endless(self) -> bool:
        """Whether the grid has no end."""
        return self._grid is not None and self._grid.last is None

    def after(self, step: int) -> int | None:
        """Return the first point after ``step``, or ``None`` after the last point."""
        points = self._points
        if not points or points[-1] <= step:
            self._extend_past(step)  # adds to the same list
        i = bisect_right(points, step)
        return points[i] if i < len(points) else None

    def upto(self, step: int) -> tuple[int, ...]:
        """Return all points up to and including ``step``."""
        self._extend_past(step)
        return tuple(self._points[: bisect_right(self._points, step)])

    def _extend_past(self, step: int) -> None:
        if self._grid is None:
            return
        density, first, last, _ = self._grid
        while not self._points or self._points[-1] <= step:
            point = round(first * 10 ** (self._k / density))
            if last is not None and point > last:
                return
            self._k += 1
            if not self._points or point > self._points[-1]:
                self._points.append(point)

    def _key(self) -> tuple[Any, ...]:
        return ("grid", self._grid) if self.endless else self.upto(_LARGEST_STEP)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Steps) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        if self._grid is None:
            return f"Steps({self._points})"
        density, first, last, zero = self._grid
        words = [str(density)]
        words += [f"first={first}"] if first != 1 else []
        words += [f"last={last}"] if last is not None else []
        words += [] if zero else ["zero=False"]
        return f"Steps.logspaced({', '.join(words)})"


class _Grid(NamedTuple):
    """Arguments of a logarithmic grid."""

    per_decade: int
    first: int
    last: int | None
    zero: bool


class LogTimeSchedule:
    """Waiting times and lags of a two-time measurement.

    A reference is captured at each waiting time :math:`t_w`. The pair :math:`(t_w, t_w + t)` is measured for each lag
    :math:`t` that ``max_step`` allows, so a waiting time near the end of the run has fewer lags. All numbers are steps,
    which are completed optimiser updates. Step 0 is the initial state.

    Args:
        waiting_times: :class:`Steps`, or strictly increasing non-negative integers.
        lags: :class:`Steps`, or strictly increasing non-negative integers. Lag 0 compares a reference with itself.
        max_step: last step of the run. ``None`` measures every pair.

    Raises:
        TypeError: an entry is not an integer. The message names its place.
        ValueError: a list is empty, negative or not strictly increasing, or ``max_step`` leaves no pair.

    Example:
        >>> schedule = LogTimeSchedule(waiting_times=[0, 10, 100], lags=[1, 10], max_step=105)
        >>> schedule.pairs
        ((0, 1), (0, 10), (10, 1), (10, 10), (100, 1))
        >>> schedule.n_events, schedule.max_live_snapshots
        (7, 2)
        >>> print(schedule)
        3 waiting times (0 ... 100), 2 lags (1 ... 10): 5 pairs at 7 steps, at most 2 snapshots at a time
    """

    def __init__(
        self, waiting_times: Steps | Sequence[int], lags: Steps | Sequence[int], max_step: int | None = None
    ) -> None:
        self._waiting = _listed("waiting_times", waiting_times)
        self._lags = _listed("lags", lags)
        self._max_step = _optional_step("max_step", max_step)
        self._check_not_empty()

    # ------------------------------------------------------------------ construction

    @classmethod
    def logspaced(
        cls,
        max_step: int | None = None,
        *,
        waiting_times_per_decade: int = 3,
        lags_per_decade: int = 10,
        first_waiting_time: int = 1,
        first_lag: int = 1,
        max_lag: int | None = None,
        zero: bool = True,
    ) -> LogTimeSchedule:
        """Return a schedule of two logarithmic grids (see :meth:`Steps.logspaced`).

        The number of snapshots grows as the logarithm of the run length, and the number of pairs as the square of this
        logarithm.

        Args:
            max_step: last step of the run. ``None``: the schedule is open-ended.
            waiting_times_per_decade: grid points in each factor of ten of the waiting time.
            lags_per_decade: grid points in each factor of ten of the lag.
            first_waiting_time: first waiting time after 0, in steps.
            first_lag: first lag, in steps.
            max_lag: longest lag, in steps. A snapshot is freed after this lag. ``None``: to the end of the run.
            zero: whether the initial weights (step 0) are a waiting time too.

        Raises:
            TypeError: an argument is not an integer.
            ValueError: an argument is below 1, a number per decade is above 1000, or ``max_step`` leaves no pair.

        Example:
            >>> LogTimeSchedule.logspaced(1000, waiting_times_per_decade=1, lags_per_decade=3).lags
            (1, 2, 5, 10, 22, 46, 100, 215, 464, 1000)
            >>> LogTimeSchedule.logspaced().open_ended
            True
        """
        names = "waiting_times_per_decade", "first_waiting_time", ""
        waiting = Steps._logspaced(waiting_times_per_decade, first_waiting_time, None, zero, names)
        names = "lags_per_decade", "first_lag", "max_lag"
        return cls(waiting, Steps._logspaced(lags_per_decade, first_lag, max_lag, False, names), max_step)

    @classmethod
    def preset(cls, name: Preset, max_step: int, *, longer: bool = False) -> LogTimeSchedule:
        """Return the times of one of the two papers, scaled to a run of ``max_step`` steps T.

        * ``"baity-jesi"``: 50 waiting times from 10 to T/2 and 100 lags from 1 to T/2, log-spaced, rounded and
          deduplicated, and 0 as a waiting time and as a lag. Baity-Jesi et al. 2018 (arXiv 1803.06969) wished for
          later waiting times with fewer lags, which ``longer=True`` adds. Their released runs (``corr.sh``) have
          learning rates lr from 0.001 to 0.5, minibatches of B = 10, 100 and 1000, momentum 0.5, no weight decay, and
          T = 10^6 / (lr B) steps.
        * ``"subaging"``: 10 waiting times from T/200 to T/2, rounded, and 20 lags from T/20,000 (at least 1) to T/2,
          rounded up, log-spaced and deduplicated. T = 200,000 gives the times of the MNIST example of Herrera Segura
          et al. 2022 (arXiv 2209.02517).

        Args:
            name: ``"baity-jesi"`` or ``"subaging"``.
            max_step: last step T of the run.
            longer: for ``"baity-jesi"``, the waiting times and lags reach the end of the run. A late waiting time has
                fewer lags.

        Raises:
            TypeError: ``max_step`` is not an integer, or ``longer`` is not a bool.
            ValueError: the name is unknown, the run is too short for the preset, or ``longer`` is given for another
                preset.

        Example:
            >>> schedule = LogTimeSchedule.preset("subaging", 200_000)
            >>> schedule.waiting_times
            (1000, 1668, 2783, 4642, 7743, 12915, 21544, 35938, 59948, 100000)
            >>> schedule.lags[:5], schedule.lags[-1], len(schedule.pairs)
            ((10, 17, 27, 43, 70), 100000, 200)
        """
        if name not in get_args(Preset):
            raise ValueError(f"name={name!r} is not a preset; choose from {', '.join(map(repr, get_args(Preset)))}")
        if not isinstance(longer, bool):
            raise TypeError(f"longer={longer!r} is not True or False")
        if longer and name != "baity-jesi":
            raise ValueError(f"longer=True is for the preset 'baity-jesi'; leave it out for {name!r}")
        end = _positive("max_step", max_step)
        shortest = 20 if name == "baity-jesi" else 200
        if end < shortest:
            raise ValueError(
                f"max_step={end} is too short for the preset {name!r}, which needs at least {shortest} steps; "
                "use LogTimeSchedule.logspaced(max_step)"
            )
        half = end // 2
        if name == "baity-jesi":
            last_waiting_time, last_lag = (end - 1, end) if longer else (half, half)
            return cls((0, *_geometric(10, last_waiting_time, 50)), (0, *_geometric(1, last_lag, 100)), end)
        lags = _geometric(max(1, end // 20_000), half, 20, round_up=True)
        return cls(_geometric(max(1, end // 200), half, 10), lags, end)

    @classmethod
    def epochs(
        cls, n_epochs: int, steps_per_epoch: int, *, waiting_times_per_decade: int = 5, lags_per_decade: int = 10
    ) -> LogTimeSchedule:
        """Return a schedule with waiting times and lags at the ends of epochs, log-spaced in the number of epochs.

        Args:
            n_epochs: number of epochs of the run.
            steps_per_epoch: number of optimiser updates in each epoch.
            waiting_times_per_decade: grid points in each factor of ten of the epochs.
            lags_per_decade: grid points in each factor of ten of the epochs of a lag.

        Raises:
            TypeError: an argument is not an integer.
            ValueError: an argument is below 1, or a number per decade is above 1000.

        Example:
            >>> schedule = LogTimeSchedule.epochs(12, 100)
            >>> schedule.waiting_times, schedule.lags[-3:]
            ((0, 100, 200, 300, 400, 600, 1000), (800, 1000, 1200))
        """
        end, size = _positive("n_epochs", n_epochs), _positive("steps_per_epoch", steps_per_epoch)
        waiting = Steps.logspaced(waiting_times_per_decade, last=end).upto(end)
        lags = {*Steps.logspaced(lags_per_decade, last=end, zero=False).upto(end), end}
        return cls([size * epoch for epoch in waiting], [size * epoch for epoch in sorted(lags)], end * size)

    def until(self, max_step: int) -> LogTimeSchedule:
        """Return the same schedule for a run that ends at ``max_step``, or at the earlier end of this schedule.

        Raises:
            ValueError: no pair can be measured by then.

        Example:
            >>> LogTimeSchedule.logspaced(max_lag=10).until(100).waiting_times
            (0, 1, 2, 5, 10, 22, 46)
        """
        end = _positive("max_step", max_step)
        return type(self)(self._waiting, self._lags, end if self._max_step is None else min(end, self._max_step))

    # ------------------------------------------------------------------ what it contains

    @property
    def max_step(self) -> int | None:
        """Last step of the run, or ``None`` if it was not given."""
        return self._max_step

    @property
    def open_ended(self) -> bool:
        """Whether the waiting times have no end. Use :meth:`until` for a finite part."""
        return self._max_step is None and self._waiting.endless

    @property
    def waiting_times(self) -> tuple[int, ...]:
        """Steps at which a reference is captured. Each has at least one lag before the end."""
        first = self._first_lag()
        times = self._waiting.upto(self._horizon())
        return times if self._max_step is None else tuple(t for t in times if t + first <= self._max_step)

    @property
    def lags(self) -> tuple[int, ...]:
        """Lags that are measured for at least one waiting time, in steps."""
        times = self.waiting_times
        return self._lags.upto(self._last_lag(times[0]))

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """All ``(waiting time, lag)`` that are measured, sorted."""
        return tuple((tw, lag) for tw in self.waiting_times for lag in self._lags.upto(self._last_lag(tw)))

    @property
    def events(self) -> tuple[Event, ...]:
        """Every step at which something is captured or measured, in order."""
        captures = set(self.waiting_times)
        due: dict[int, list[int]] = {step: [] for step in captures}
        for waiting_time, lag in self.pairs:
            due.setdefault(waiting_time + lag, []).append(waiting_time)
        return tuple(Event(step, step in captures, tuple(sorted(due[step]))) for step in sorted(due))

    @property
    def n_events(self) -> int:
        """Number of distinct steps at which something is captured or measured."""
        return len(set(self.waiting_times) | {tw + lag for tw, lag in self.pairs})

    def live_snapshots(self, step: int) -> int:
        """Return the number of references that are held while ``step`` is processed."""
        step = _index("step", step)
        times = self.waiting_times
        return sum(tw <= step <= last for tw, last in zip(times, self._last_steps(times), strict=True))

    @property
    def max_live_snapshots(self) -> int:
        """Largest number of references held at once. Memory is planned for this number."""
        return self._live(self.waiting_times, self._last_steps(self.waiting_times))

    def snapshots_by(self, max_step: int) -> int:
        """Return the largest number of references held at once in a run until ``max_step`` that may be continued.

        A reference that has a lag after ``max_step`` is kept to the end, because a continued run measures this lag.

        Example:
            >>> LogTimeSchedule([0, 10, 100], [1, 1000]).snapshots_by(50)
            2
        """
        end = _positive("max_step", max_step)
        times = [tw for tw in self._waiting.upto(end) if tw + min(self._first_lag(), 1) <= end]
        times = [tw for tw in times if self.next_lag(-1, tw) is not None]
        return self._live(times, self._last_steps(times))

    def next_waiting_time(self, after: int) -> int | None:
        """Return the first waiting time after ``after`` that has a lag to be measured, or ``None``."""
        point = self._waiting.after(after)
        if point is None or (self._max_step is not None and point + self._first_lag() > self._max_step):
            return None
        return point

    def next_lag(self, after: int, waiting_time: int) -> int | None:
        """Return the first lag after ``after`` of a reference captured at ``waiting_time``, or ``None``."""
        lag = self._lags.after(after)
        if lag is None or (self._max_step is not None and waiting_time + lag > self._max_step):
            return None
        return lag

    # ------------------------------------------------------------------ as a value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LogTimeSchedule) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        end = "" if self._max_step is None else f"max_step={self._max_step}"
        waiting, lags = self._waiting._grid, self._lags._grid
        if waiting is not None and waiting.last is None and lags is not None and not lags.zero:
            words = [end] if end else []
            words += [f"waiting_times_per_decade={waiting.per_decade}", f"lags_per_decade={lags.per_decade}"]
            words += [f"first_waiting_time={waiting.first}"] if waiting.first != 1 else []
            words += [f"first_lag={lags.first}"] if lags.first != 1 else []
            words += [f"max_lag={lags.last}"] if lags.last is not None else []
            words += [] if waiting.zero else ["zero=False"]
            return f"LogTimeSchedule.logspaced({', '.join(words)})"
        parts = [repr(steps if steps._grid else steps._points) for steps in (self._waiting, self._lags)]
        return f"LogTimeSchedule({', '.join([*parts, end] if end else parts)})"

    def __str__(self) -> str:
        if self.open_ended:
            return f"{self!r}, open-ended"
        times, lags, live = self.waiting_times, self.lags, self.max_live_snapshots
        return (
            f"{_count(times, 'waiting time')} ({_span(times)}), {_count(lags, 'lag')} ({_span(lags)}): "
            f"{_count(self.pairs, 'pair')} at {self.n_events:,} steps, "
            f"at most {live} snapshot{'s' if live != 1 else ''} at a time"
        )

    # ------------------------------------------------------------------ inside

    def _key(self) -> tuple[Any, ...]:
        if self.open_ended:
            return (self._waiting, self._lags)
        return (self.waiting_times, self.lags, self.pairs[-1], self._max_step)

    def _first_lag(self) -> int:
        first = self._lags.after(-1)
        assert first is not None  # a lag list is never empty
        return first

    def _horizon(self) -> int:
        """Return a step after which there is no waiting time."""
        if self.open_ended:
            raise ValueError("this schedule is open-ended: ask schedule.until(max_step) for its finite part")
        return _LARGEST_STEP if self._max_step is None else self._max_step

    def _last_lag(self, waiting_time: int) -> int:
        return _LARGEST_STEP if self._max_step is None else self._max_step - waiting_time

    def _last_steps(self, waiting_times: Sequence[int]) -> list[int]:
        """Return the step of the last measurement of each waiting time."""
        return [tw + self._lags.upto(self._last_lag(tw))[-1] for tw in waiting_times]

    @staticmethod
    def _live(times: Sequence[int], last_steps: Sequence[int]) -> int:
        """Return the largest number of references held at once, from ``times`` to ``last_steps``."""
        # The number rises at captures only.
        freed = sorted(last_steps)
        return max((i + 1 - bisect_left(freed, tw) for i, tw in enumerate(times)), default=0)

    def _check_not_empty(self) -> None:
        if self._max_step is not None and self.next_waiting_time(-1) is None:
            first = self._waiting.after(-1)
            raise ValueError(
                f"max_step={self._max_step} ends before the first pair (waiting time {first}, lag "
                f"{self._first_lag()}); use smaller waiting times and lags or a longer run"
            )


StepsLike = Steps | LogTimeSchedule | int | Sequence[int]
"""Steps of a measurement along the run, as a list, or as a number per decade. A schedule gives its waiting times."""

ScheduleLike = LogTimeSchedule | int | Preset | Literal["epoch"]
"""Pairs of times: a schedule, a number of waiting times and of lags per decade, or the name of a preset.

``"epoch"`` measures at the ends of epochs, see :meth:`LogTimeSchedule.epochs`.
"""


def as_steps(schedule: StepsLike) -> Steps:
    """Return the steps that an argument ``schedule`` stands for.

    Raises:
        TypeError: the argument is of another type.
        ValueError: a list is not increasing, or a number is below 1 or above 1000.
    """
    if isinstance(schedule, Steps):
        return schedule
    if isinstance(schedule, LogTimeSchedule):
        return schedule._waiting if schedule.max_step is None else Steps(schedule.waiting_times)
    if _is_number(schedule):
        return Steps.logspaced(_points_per_decade(schedule))
    if isinstance(schedule, (str, bytes)) or not isinstance(schedule, Iterable):
        raise TypeError(
            f"schedule={schedule!r} is not a LogTimeSchedule, Steps, a list of steps or a number of steps per decade"
        )
    return _listed("schedule", schedule)


def as_schedule(
    schedule: ScheduleLike | None, max_step: int | None, steps_per_epoch: int | None = None
) -> LogTimeSchedule:
    """Return the schedule that an argument ``schedule`` stands for.

    Args:
        schedule: ``None`` stands for ``LogTimeSchedule.logspaced()``: 3 waiting times and 10 lags per decade.
        max_step: last step of the run, which a preset and ``"epoch"`` need.
        steps_per_epoch: updates in an epoch, which ``"epoch"`` needs.

    Raises:
        TypeError: the argument is of another type.
        ValueError: a number is below 1 or above 1000, a preset is unknown, the length of its run is unknown, or the run
            has no epochs of known length or is shorter than one epoch.
    """
    if schedule is None:
        return LogTimeSchedule.logspaced()
    if isinstance(schedule, LogTimeSchedule):
        return schedule
    if _is_number(schedule):
        number = _points_per_decade(schedule)
        return LogTimeSchedule.logspaced(waiting_times_per_decade=number, lags_per_decade=number)
    if not isinstance(schedule, str):
        means = ""
        if isinstance(schedule, Iterable):
            means = (
                f". A list says only when to look, and here pairs of times are measured: "
                f"LogTimeSchedule({schedule!r}, {schedule!r}) has these waiting times and these lags"
            )
        raise TypeError(
            f"schedule={schedule!r} is not a LogTimeSchedule, a number of waiting times and of lags per decade, the "
            f"name of a preset, 'epoch' or None{means}"
        )
    if schedule == "epoch":
        return _epochs(max_step, steps_per_epoch)
    if schedule not in get_args(Preset):
        names = ", ".join(map(repr, (*get_args(Preset), "epoch")))
        raise ValueError(f"schedule={schedule!r} is not a preset; choose from {names}")
    if max_step is None:
        raise ValueError(
            f"schedule={schedule!r} needs a run of known length: set max_steps, or use the default schedule"
        )
    return LogTimeSchedule.preset(schedule, max_step)


def _epochs(max_step: int | None, steps_per_epoch: int | None) -> LogTimeSchedule:
    """Return the schedule ``"epoch"`` of a run."""
    if steps_per_epoch is None or max_step is None:
        raise ValueError(
            "schedule='epoch' needs a Trainer, automatic optimisation, and a run and epochs of known length: give "
            "LogTimeSchedule.epochs(n_epochs, steps_per_epoch)"
        )
    if max_step < steps_per_epoch:
        raise ValueError(
            f"schedule='epoch' measures at the ends of epochs, and the run of {max_step} steps ends before the first "
            f"one of {steps_per_epoch}: use the default schedule"
        )
    return LogTimeSchedule.epochs(max_step // steps_per_epoch, steps_per_epoch)


def check_schedule(schedule: ScheduleLike | None) -> None:
    """Check an argument ``schedule`` before the length of the run is known.

    Raises:
        TypeError: the argument is of another type.
        ValueError: a number is below 1 or above 1000, or a preset is unknown.
    """
    as_schedule(schedule, max_step=_LARGEST_STEP, steps_per_epoch=_LARGEST_STEP)


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _points_per_decade(number: int) -> int:
    if not 1 <= number <= 1000:
        raise ValueError(
            f"schedule={number!r} points per decade must lie between 1 and 1000. A number says how many steps are "
            "measured in each factor of ten, and is no distance between steps"
        )
    return int(number)


@dataclass(frozen=True)
class ScheduleGrowth:
    """Cost of a schedule for a run of ``max_step`` steps: events, pairs and snapshots."""

    max_step: int
    n_events: int
    n_pairs: int
    max_live_snapshots: int


def schedule_growth(max_steps: Iterable[int], schedule: LogTimeSchedule | None = None) -> list[ScheduleGrowth]:
    """Return the cost of an (open-ended) schedule for several lengths of the run.

    Args:
        max_steps: run lengths, in steps.
        schedule: default ``LogTimeSchedule.logspaced()``, the default of ``AgingMonitor``.

    Example:
        >>> [growth.max_live_snapshots for growth in schedule_growth([10**3, 10**6])]
        [10, 19]
    """
    grid = LogTimeSchedule.logspaced() if schedule is None else schedule
    parts = [(end, grid.until(end)) for end in max_steps]
    return [ScheduleGrowth(end, part.n_events, len(part.pairs), part.max_live_snapshots) for end, part in parts]


def _index(name: str, value: object) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is not an integer number of steps")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}={value!r} is not an integer number of steps") from None
    if abs(number) > _LARGEST_STEP:
        raise ValueError(f"{name}={value!r} is beyond 2**53 steps")
    return number


def _positive(name: str, value: object) -> int:
    number = _index(name, value)
    if number < 1:
        raise ValueError(f"{name}={number} must be at least 1")
    return number


def _density(name: str, value: object) -> int:
    number = _positive(name, value)
    if number > 1000:
        raise ValueError(f"{name}={number} is more than 1000; give dense times as explicit lists")
    return number


def _optional_step(name: str, value: object) -> int | None:
    return None if value is None else _positive(name, value)


def _listed(name: str, values: Steps | Sequence[int]) -> Steps:
    return values if isinstance(values, Steps) else Steps.__new__(Steps)._fill(_increasing(name, values), None)


def _increasing(name: str, values: Sequence[int]) -> tuple[int, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{name}={values!r} is not a list of integers")
    numbers = tuple(_index(f"{name}[{i}]", value) for i, value in enumerate(values))
    if not numbers:
        raise ValueError(f"{name} is empty: give at least one step")
    if numbers[0] < 0:
        raise ValueError(f"{name}[0]={numbers[0]} is negative")
    for i in range(1, len(numbers)):
        if numbers[i] <= numbers[i - 1]:
            raise ValueError(
                f"{name} must be strictly increasing, but {name}[{i}]={numbers[i]} follows {numbers[i - 1]}; "
                f"use sorted(set({name}))"
            )
    return numbers


def _geometric(first: int, last: int, count: int, *, round_up: bool = False) -> tuple[int, ...]:
    """Return ``count`` integers in geometric progression from ``first`` to ``last``, rounded and deduplicated.

    Halves are rounded up. With ``round_up``, all fractions are rounded up.
    """
    # Use integers: the float 10 * 10**(19 / 19 * 4) may lie above 100,000, and would be rounded up to 100,001.
    n = count - 1
    powers = [first ** (n - k) * last**k for k in range(count)]  # n-th powers of the points
    if round_up:
        return tuple(sorted({_root(power - 1, n) + 1 for power in powers}))
    return tuple(sorted({(_root(2**n * power, n) + 1) // 2 for power in powers}))


def _root(power: int, n: int) -> int:
    """Return the largest integer whose n-th power is at most ``power``."""
    low, high = 0, 1 << (power.bit_length() // n + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**n <= power else (low, middle)
    return low


def _span(points: Sequence[int]) -> str:
    return f"{points[0]:,}" if len(points) == 1 else f"{points[0]:,} ... {points[-1]:,}"


def _count(items: Sequence[object], noun: str) -> str:
    return f"{len(items):,} {noun}{'' if len(items) == 1 else 's'}"

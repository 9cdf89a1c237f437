r"""When to look: waiting times and lags, spaced logarithmically in steps.

Aging shows on a logarithmic clock: a system that relaxes as :math:`t/t_w^\mu` needs as many
measurements between steps 10 and 100 as between 10,000 and 100,000. A schedule is a value object;
it knows integers and nothing else, neither tensors nor trainers.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

Preset = Literal["baity-jesi", "subaging"]

# A float64 holds every integer up to here; beyond it a rounded grid point could be wrong by one.
_LARGEST_STEP = 2**53


class Event(NamedTuple):
    """A step at which something happens.

    Attributes:
        step: number of completed optimiser updates.
        capture: whether the weights of this step become a reference, i.e. whether it is a waiting time.
        waiting_times: the references that are measured now, each at lag ``step - waiting_time``.
    """

    step: int
    capture: bool
    waiting_times: tuple[int, ...]


class _LogGrid:
    """The integers nearest to ``first * 10**(k / per_decade)``, k = 0, 1, 2, ..., without repetition.

    The grid does not depend on where it ends, so a longer run contains the points of a shorter one.
    """

    def __init__(self, first: int, per_decade: int, zero: bool = False, last: int | None = None) -> None:
        self.first, self.per_decade, self.zero, self.last = first, per_decade, zero, last
        self._points = [0] if zero else []
        self._k = 0

    def _extend_past(self, value: int) -> None:
        while not self._points or self._points[-1] <= value:
            point = round(self.first * 10 ** (self._k / self.per_decade))
            self._k += 1
            if not self._points or point > self._points[-1]:
                self._points.append(point)

    def after(self, value: int) -> int | None:
        self._extend_past(value)
        point = self._points[bisect_right(self._points, value)]
        return None if self.last is not None and point > self.last else point

    def upto(self, value: int) -> tuple[int, ...]:
        self._extend_past(value)
        end = value if self.last is None else min(value, self.last)
        return tuple(self._points[: bisect_right(self._points, end)])

    def key(self) -> tuple[Any, ...]:
        return (self.first, self.per_decade, self.zero, self.last)


class _Explicit:
    """A finite list of integers with the same three questions as :class:`_LogGrid`."""

    def __init__(self, points: tuple[int, ...]) -> None:
        self._points = points

    def after(self, value: int) -> int | None:
        i = bisect_right(self._points, value)
        return self._points[i] if i < len(self._points) else None

    def upto(self, value: int) -> tuple[int, ...]:
        return self._points[: bisect_right(self._points, value)]

    def key(self) -> tuple[Any, ...]:
        return self._points


class LogTimeSchedule:
    """Waiting times and lags of a two-time measurement.

    A reference is captured at each waiting time :math:`t_w`, and the pair :math:`(t_w, t_w + t)` is
    measured for each lag :math:`t`, as far as ``max_step`` allows: a waiting time near the end of the run
    simply has fewer lags. All numbers are steps, i.e. completed optimiser updates; step 0 is the initial
    state.

    Args:
        waiting_times: strictly increasing non-negative integers.
        lags: strictly increasing non-negative integers. Lag 0 compares a reference with itself.
        max_step: last step of the run; ``None`` measures every pair.

    Raises:
        TypeError: something that is not an integer, named with its place.
        ValueError: an empty, negative or not strictly increasing list, or a ``max_step`` that leaves no pair.

    Example:
        >>> schedule = LogTimeSchedule(waiting_times=[0, 10, 100], lags=[1, 10], max_step=105)
        >>> schedule.pairs
        ((0, 1), (0, 10), (10, 1), (10, 10), (100, 1))
        >>> schedule.n_events, schedule.max_live_snapshots
        (7, 2)
        >>> print(schedule)
        3 waiting times (0 ... 100), 2 lags (1 ... 10): 5 pairs at 7 steps, at most 2 snapshots at a time
    """

    def __init__(self, waiting_times: Sequence[int], lags: Sequence[int], max_step: int | None = None) -> None:
        self._waiting: _LogGrid | _Explicit = _Explicit(_increasing("waiting_times", waiting_times))
        self._lags: _LogGrid | _Explicit = _Explicit(_increasing("lags", lags))
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
        """Logarithmically spaced integers, so many per decade, without repetition.

        Waiting times are the integers nearest to ``first_waiting_time * 10**(k/waiting_times_per_decade)``,
        lags likewise. The number of pairs grows as the square of the logarithm of the run length, the number
        of snapshots as its logarithm.

        Args:
            max_step: last step of the run. ``None``: open-ended, new waiting times and lags keep coming.
            waiting_times_per_decade: grid points in each factor of ten of the waiting time.
            lags_per_decade: grid points in each factor of ten of the lag.
            first_waiting_time: first waiting time after 0, in steps.
            first_lag: first lag, in steps.
            max_lag: longest lag, in steps; a snapshot is freed after it. ``None``: to the end of the run.
            zero: whether the initial weights (step 0) are a waiting time too.

        Raises:
            TypeError: an argument that is not an integer.
            ValueError: an argument below 1, more than 1000 points per decade, or a ``max_step`` that leaves no pair.

        Example:
            >>> LogTimeSchedule.logspaced(1000, waiting_times_per_decade=1, lags_per_decade=3).lags
            (1, 2, 5, 10, 22, 46, 100, 215, 464, 1000)
            >>> LogTimeSchedule.logspaced().open_ended
            True
        """
        schedule = cls.__new__(cls)
        schedule._waiting = _LogGrid(
            _positive("first_waiting_time", first_waiting_time),
            _density("waiting_times_per_decade", waiting_times_per_decade),
            bool(zero),
        )
        schedule._lags = _LogGrid(
            _positive("first_lag", first_lag),
            _density("lags_per_decade", lags_per_decade),
            last=None if max_lag is None else _positive("max_lag", max_lag),
        )
        if max_lag is not None and max_lag < first_lag:
            raise ValueError(f"max_lag={max_lag} is below first_lag={first_lag}: there is no lag to measure")
        schedule._max_step = _optional_step("max_step", max_step)
        schedule._check_not_empty()
        return schedule

    @classmethod
    def preset(cls, name: Preset, max_step: int) -> LogTimeSchedule:
        """The protocol of one of the two papers, scaled to a run of ``max_step`` steps.

        * ``"baity-jesi"``: 0 and 50 waiting times from 10, 100 lags from 1, log-spaced and deduplicated. The
          authors stopped both at half of the run and wished for later waiting times with fewer lags (Baity-Jesi
          et al. 2018, arXiv 1803.06969); here both reach the end of the run.
        * ``"subaging"``: 10 waiting times from T/200 to T/2 and 20 lags from T/20,000 (at least 1) to T/2. At
          T = 200,000 these are 10^3 ... 10^5 and 10 ... 10^5, the MNIST protocol of Herrera Segura et al. 2022
          (arXiv 2209.02517).

        Args:
            name: ``"baity-jesi"`` or ``"subaging"``.
            max_step: last step T of the run.

        Raises:
            ValueError: another name, or a run too short for the preset.

        Example:
            >>> schedule = LogTimeSchedule.preset("subaging", 200_000)
            >>> schedule.waiting_times[0], schedule.waiting_times[-1], len(schedule.pairs)
            (1000, 100000, 200)
        """
        if name not in get_args(Preset):
            raise ValueError(f"name={name!r} is not a preset; choose from {', '.join(map(repr, get_args(Preset)))}")
        end = _positive("max_step", max_step)
        shortest = 20 if name == "baity-jesi" else 200
        if end < shortest:
            raise ValueError(
                f"max_step={end} is too short for the preset {name!r}, which needs at least {shortest} steps; "
                "use LogTimeSchedule.logspaced(max_step)"
            )
        if name == "baity-jesi":
            return cls((0, *_geometric(10, end - 1, 50)), _geometric(1, end, 100), end)
        half = end // 2
        return cls(_geometric(max(1, end // 200), half, 10), _geometric(max(1, end // 20_000), half, 20), end)

    def until(self, max_step: int) -> LogTimeSchedule:
        """The same schedule for a run that ends at ``max_step`` (or earlier, where it did already).

        Raises:
            ValueError: nothing could be measured by then.

        Example:
            >>> LogTimeSchedule.logspaced(max_lag=10).until(100).waiting_times
            (0, 1, 2, 5, 10, 22, 46)
        """
        end = _positive("max_step", max_step)
        schedule = type(self).__new__(type(self))
        schedule._waiting, schedule._lags = self._waiting, self._lags
        schedule._max_step = end if self._max_step is None else min(end, self._max_step)
        schedule._check_not_empty()
        return schedule

    # ------------------------------------------------------------------ what it contains

    @property
    def max_step(self) -> int | None:
        """Last step of the run this schedule is for; ``None`` if it was not given."""
        return self._max_step

    @property
    def open_ended(self) -> bool:
        """Whether waiting times and lags keep coming for ever: ask :meth:`until` for a finite part."""
        return self._max_step is None and isinstance(self._waiting, _LogGrid)

    @property
    def waiting_times(self) -> tuple[int, ...]:
        """Steps at which a reference is captured: those with at least one lag before the end."""
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
        """Number of references held while ``step`` is processed: captured by then, last lag not yet past."""
        step = _index("step", step)
        times = self.waiting_times
        return sum(tw <= step <= last for tw, last in zip(times, self._last_steps(times), strict=True))

    @property
    def max_live_snapshots(self) -> int:
        """Largest number of references held at once: what the memory must be planned for."""
        return self._live(self.waiting_times, self._last_steps(self.waiting_times))

    def snapshots_by(self, max_step: int) -> int:
        """Largest number of references held at once in a run that ends at ``max_step`` and may be continued later.

        Every reference that still has a lag to come is kept to the end, even if that lag lies beyond it.

        Example:
            >>> LogTimeSchedule([0, 10, 100], [1, 1000]).snapshots_by(50)
            2
        """
        end = _positive("max_step", max_step)
        times = [tw for tw in self._waiting.upto(end) if tw + min(self._first_lag(), 1) <= end]
        times = [tw for tw in times if self.next_lag(-1, tw) is not None]
        return self._live(times, self._last_steps(times))

    def next_waiting_time(self, after: int) -> int | None:
        """The first waiting time > ``after`` that still has a lag to be measured; ``None`` if there is none."""
        point = self._waiting.after(after)
        if point is None or (self._max_step is not None and point + self._first_lag() > self._max_step):
            return None
        return point

    def next_lag(self, after: int, waiting_time: int) -> int | None:
        """The first lag > ``after`` of a reference captured at ``waiting_time``; ``None`` if it has had its last."""
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
        if isinstance(self._waiting, _LogGrid) and isinstance(self._lags, _LogGrid):
            words = [end] if end else []
            words += [f"waiting_times_per_decade={self._waiting.per_decade}"]
            words += [f"lags_per_decade={self._lags.per_decade}"]
            words += [f"first_waiting_time={self._waiting.first}"] if self._waiting.first != 1 else []
            words += [f"first_lag={self._lags.first}"] if self._lags.first != 1 else []
            words += [f"max_lag={self._lags.last}"] if self._lags.last is not None else []
            words += [] if self._waiting.zero else ["zero=False"]
            return f"LogTimeSchedule.logspaced({', '.join(words)})"
        lists = f"{list(self._waiting.key())}, {list(self._lags.key())}"
        return f"LogTimeSchedule({lists}{', ' + end if end else ''})"

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
            return (self._waiting.key(), self._lags.key())
        return (self.waiting_times, self.lags, self.pairs[-1], self._max_step)

    def _first_lag(self) -> int:
        first = self._lags.after(-1)
        assert first is not None  # a lag list is never empty
        return first

    def _horizon(self) -> int:
        """The last step that can hold a waiting time; raises where there is no last one."""
        if self._max_step is not None:
            return self._max_step
        if isinstance(self._waiting, _Explicit):
            return self._waiting.key()[-1]  # type: ignore[no-any-return]
        raise ValueError("this schedule is open-ended: ask schedule.until(max_step) for its finite part")

    def _last_lag(self, waiting_time: int) -> int:
        return _LARGEST_STEP if self._max_step is None else self._max_step - waiting_time

    def _last_steps(self, waiting_times: Sequence[int]) -> list[int]:
        """For each waiting time the step of its last measurement."""
        return [tw + self._lags.upto(self._last_lag(tw))[-1] for tw in waiting_times]

    @staticmethod
    def _live(times: Sequence[int], last_steps: Sequence[int]) -> int:
        """Largest number of references held at once, captured at ``times`` and given up after ``last_steps``."""
        # The number only rises at a capture, so the captures are the only steps to look at.
        freed = sorted(last_steps)
        return max(i + 1 - bisect_left(freed, tw) for i, tw in enumerate(times))

    def _check_not_empty(self) -> None:
        if self._max_step is not None and self.next_waiting_time(-1) is None:
            first = self._waiting.after(-1)
            raise ValueError(
                f"max_step={self._max_step} ends before the first pair (waiting time {first}, lag "
                f"{self._first_lag()}); use smaller waiting times and lags or a longer run"
            )


@dataclass(frozen=True)
class ScheduleGrowth:
    """Cost of a schedule for a run of ``max_step`` steps: events, pairs and snapshots."""

    max_step: int
    n_events: int
    n_pairs: int
    max_live_snapshots: int


def schedule_growth(max_steps: Iterable[int], schedule: LogTimeSchedule | None = None) -> list[ScheduleGrowth]:
    """How the cost of an (open-ended) schedule grows with the length of the run.

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


def _geometric(first: int, last: int, count: int) -> tuple[int, ...]:
    """``count`` integers from ``first`` to ``last`` in geometric progression, rounded and deduplicated."""
    # In float64 and rounded: a log-space cast to integers would truncate and miss its own end point.
    step = (math.log(last) - math.log(first)) / (count - 1)
    return tuple(sorted({min(last, round(first * math.exp(step * k))) for k in range(count - 1)} | {last}))


def _span(points: Sequence[int]) -> str:
    return f"{points[0]:,}" if len(points) == 1 else f"{points[0]:,} ... {points[-1]:,}"


def _count(items: Sequence[object], noun: str) -> str:
    return f"{len(items):,} {noun}{'' if len(items) == 1 else 's'}"

"""Join the tables of replicas, and compute the moments of weights in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_glassy.observables import Array
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.record.tables import LARGEST, MOMENTS, MOMENTS_TABLE, RESPONSE_TABLE, Table, TableName
from lightning_glassy.record.text import quoted

# Two replicas must agree in these entries of the metadata, if both have the entry.
_SAME_IN_REPLICAS = (
    "module",
    "optimizers",
    "lr_schedulers",
    "batch_size",
    "sampler",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "precision",
    "world_size",
)

_COPIES = 1e-5  # if sums of two replicas agree this well, relative to the largest, they are of one run
_SAME = 1e-6  # a sum that changes by less, relative to its size, is constant
_MOST_NAMES = 8  # in one message
REMEDY = "Use the pairs that all have with common=True, or leave out a run"
"""The end of the message about runs with different pairs."""

_MOST_PAIRS = 1_000_000  # of a trajectory without a schedule

Tables = Mapping[TableName, Table]


def check_replicas(shapes: Sequence[Mapping[str, Any]], metas: Sequence[Mapping[str, Any]]) -> None:
    """Refuse runs that are not replicas of each other.

    Args:
        shapes: for each run the sizes of its groups, its sums and its thresholds, by name.
        metas: the metadata of each run.

    Raises:
        ValueError: the message names the run and the first difference.
    """
    for i, (shape, meta) in enumerate(zip(shapes, metas, strict=True)):
        for what, value in shape.items():
            if value != shapes[0][what] or (isinstance(value, dict) and list(value) != list(shapes[0][what])):
                remedy = ""
                if what == "overlap_thresholds":
                    remedy = ". No threshold is in all runs: measure all with the same overlap_thresholds=[...]"
                raise ValueError(
                    f"records[{i}] does not match records[0] in {what}{_difference(value, shapes[0][what])}{remedy}"
                )
        for key in _SAME_IN_REPLICAS:
            if key in metas[0] and key in meta and metas[0][key] != meta[key]:
                raise ValueError(
                    f"records[{i}] does not match records[0] in {key}{_difference(meta[key], metas[0][key])}"
                )


def _difference(a: Any, b: Any, place: str = "") -> str:
    """Return the first difference of two values of metadata, and its place in them.

    Example:
        >>> _difference([{"lr": 0.1, "betas": None}], [{"lr": 0.1, "betas": [0.9, 0.99]}])
        ', 0.betas: none and 0.9, 0.99'
    """
    entries: list[tuple[Any, Any, Any]] = []
    if isinstance(a, dict) and isinstance(b, dict):
        entries = [(key, a.get(key), b.get(key)) for key in {**a, **b}]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        entries = [(i, *both) for i, both in enumerate(zip(a, b, strict=True))]
    for key, x, y in entries:
        if x != y:
            return _difference(x, y, f"{place}.{key}")
    words = (
        quoted(x) if isinstance(x, (dict, list, tuple)) else "none" if x is None else f"{x!r:.200}" for x in (a, b)
    )
    return f"{', ' if place else ''}{place[1:]}: {' and '.join(words)}"


def in_common(runs: Sequence[Tables]) -> list[dict[TableName, Table]]:
    """Return the moments and the one-time series of runs with the rows of the keys that all runs have.

    Raises:
        ValueError: no pair of times is in all runs.
    """
    cut: list[dict[TableName, Table]] = [{} for _ in runs]
    for name in runs[0]:
        tables = [run[name] for run in runs if name in run]
        if name.kind not in ("moments", "one_time", "responses") or len(tables) < len(runs):
            continue
        keys = tables[0].common_keys(tables[1:])
        if name == MOMENTS_TABLE and not keys:
            raise ValueError("no pair (waiting time, lag) was measured in all runs: leave out the shortest run")
        for run, table in zip(cut, tables, strict=True):
            run[name] = table.only(keys)
    return cut


def concatenated(runs: Sequence[Tables]) -> dict[TableName, Table]:
    """Join the tables of runs along the axis of replicas.

    The moments are joined, and so are responses that all runs have at the same pairs of times. A one-time series is
    kept if all runs have it at the same steps. Its values are then the mean over the replicas. Other tables are left
    out.

    Args:
        runs: the tables of each run. The rows of the moments are ``[n_replica, n_group, n_moment]``.

    Raises:
        ValueError: the runs have different pairs of times, or one run is given twice.
    """
    moments = [tables[MOMENTS_TABLE] for tables in runs]
    for i, table in enumerate(moments):
        if not table.same_keys(moments[0]):
            odd = table.odd_keys(moments[0])
            raise ValueError(
                f"records[{i}] does not match records[0] in the pairs (waiting time, lag) that were measured: "
                f"{len(odd)} are in one of them only, {odd[0]} for example. {_cut_short(moments)}{REMEDY}"
            )
    joined = {MOMENTS_TABLE: moments[0].empty((sum(table.shape[0] for table in moments), *moments[0].shape[1:]))}
    joined[MOMENTS_TABLE].extend(moments[0].keys, np.concatenate([table.values for table in moments], axis=1))
    _check_distinct(joined[MOMENTS_TABLE], [table.shape[0] for table in moments])
    for name, table in runs[0].items():
        others = [tables[name] for tables in runs if name in tables]
        if len(others) < len(runs) or not all(table.same_keys(other) for other in others):
            continue
        if name.kind == "responses":
            joined[name] = table.empty((sum(other.shape[0] for other in others), *table.shape[1:]))
            joined[name].extend(table.keys, np.concatenate([other.values for other in others], axis=1))
        if name.kind == "one_time":
            joined[name] = table.empty()
            of_replicas = [o.values for o, run in zip(others, moments, strict=True) for _ in range(run.shape[0])]
            joined[name].extend(table.keys, np.mean(of_replicas, axis=0))
            error = TableName("one_time", f"{name.name}_error")
            if (found := _error_of_means(name, error, runs)) is not None:
                joined[error] = table.empty()
                joined[error].extend(table.keys, found)
    return joined


@quiet()
def _error_of_means(name: TableName, error: TableName, runs: Sequence[Tables]) -> Array | None:
    """Return the standard error of the mean of a series over replicas, ``[n]``, or None if it is not known.

    A record of several replicas has the mean of a series, and perhaps its error. The sum of squares of its replicas
    follows from both. The error of a single run may be of another kind, and is then kept.
    """
    sizes = np.array([run[MOMENTS_TABLE].shape[0] for run in runs])[:, None]
    single = sizes[:, 0] == 1
    if any((error in run) == alone for run, alone in zip(runs, single, strict=True)) or sizes.sum() < 2:
        return None
    means = np.array([run[name].values for run in runs])
    within = np.array([0 * run[name].values if error not in run else run[error].values for run in runs])
    if any(error in run and not run[error].same_keys(run[name]) for run in runs):
        return None
    n = sizes.sum()
    squares = (sizes * (sizes - 1) * within**2 + sizes * (means - (sizes * means).sum(axis=0) / n) ** 2).sum(axis=0)
    return np.asarray(np.sqrt(squares / (n * (n - 1)))) if np.nan_to_num(squares).any() else None


def complete(moments: Sequence[Table]) -> list[int]:
    """Return the places of the runs that are not cut short, or of all runs if this cannot be decided.

    A run is cut short if it has all pairs of the complete runs up to its last step, and none after it. The complete
    runs are two or more, end at the same step and have the same pairs.
    """
    ends = [table.last_step for table in moments]
    whole = [i for i, end in enumerate(ends) if end == max(ends)]
    first = moments[whole[0]]
    told = len(whole) > 1 and all(table.same_keys(first.before(table.last_step + 1)) for table in moments)
    return whole if told else list(range(len(moments)))


def left_out_in_words(moments: Sequence[Table], kept: Sequence[int]) -> str:
    """Return a sentence about runs that were cut short, with ``records[i]`` for their names."""
    short = [i for i in range(len(moments)) if i not in kept]
    last = moments[kept[0]].last_step
    return f"{_ends_of(moments, short)}, and the other {len(kept)} runs at step {last:,}: left out, as runs cut short"


def _ends_of(moments: Sequence[Table], short: Sequence[int]) -> str:
    """Return the names of some runs, and the steps at which they end."""
    names = [
        f"records[{i}] {f'ends at step {end:,}' if (end := moments[i].last_step) >= 0 else 'has no pair of times'}"
        for i in short[:_MOST_NAMES]
    ]
    return ", ".join(names + [f"{len(short) - _MOST_NAMES} more end early"] * (len(short) > _MOST_NAMES))


def _cut_short(moments: Sequence[Table]) -> str:
    """Return a sentence about the runs that are cut short, or nothing if this does not explain the missing pairs."""
    ends = [table.last_step for table in moments]
    short = [i for i, end in enumerate(ends) if end < max(ends)]
    first = moments[int(np.argmin(ends))].before(min(ends) + 1)
    if not short or not all(first.same_keys(table.before(min(ends) + 1)) for table in moments):
        return ""
    longest = f"records[{int(np.argmax(ends))}] at step {max(ends):,}"
    return (
        f"{_ends_of(moments, short)}, and {longest}: a run was cut short. In Python, "
        f"record.before({min(ends) + 1}) cuts every record there. "
    )


def _check_distinct(joined: Table, sizes: Sequence[int]) -> None:
    """Refuse two runs that are one.

    Args:
        joined: the moments of all runs.
        sizes: the number of replicas in each record.
    """
    owners = np.repeat(np.arange(len(sizes)), sizes)
    for later, earlier in copies(joined):
        if owners[later] == owners[earlier]:
            continue  # copies inside one record: its errors are refused, and the analysis leaves out the copies
        values = joined.values[:, [later, earlier]]
        to_the_bit = np.array_equal(values[:, 0], values[:, 1], equal_nan=True)
        how = "to the bit" if to_the_bit else "to 1 in 100,000, which independent runs never do"
        raise ValueError(
            f"records[{owners[later]}] and records[{owners[earlier]}] hold the same run {how}: leave one out"
        )


@quiet()
def copies(moments: Table) -> list[tuple[int, int]]:
    """Return pairs of replicas that are one run: a replica, and an earlier replica that it repeats.

    Two replicas are one run if all their sums agree to 1 in 100,000 of the largest of each sum. Independent
    networks of N weights differ by about sqrt(2/N) in the displacement alone.

    Args:
        moments: rows ``[n_replica, n_group, n_moment]``.
    """
    n_replica = moments.shape[0]
    if not len(moments) or n_replica < 2:
        return []

    def sums(replica: int) -> Array:  # [n_row, n_sum], of one replica at a time, because all of them may be large
        values = moments.values[:, replica].reshape(len(moments), -1)
        return np.where(np.isfinite(values), values, np.nan)

    largest = np.array([np.nan_to_num(np.fmax.reduce(np.abs(sums(r)), axis=0)) for r in range(n_replica)])
    # Copies are neighbours in the order of any mixture of their sums, so that not all pairs are compared. The median
    # prevents a diverging replica from setting the scale.
    scale = np.median(largest, axis=0)
    weights = np.random.default_rng(0).uniform(0.5, 1.5, size=(len(moments), len(scale))) / np.where(
        scale > 0, scale, 1.0
    )
    order = np.argsort([np.nansum(sums(r) * weights) for r in range(n_replica)], kind="stable")
    same: dict[int, int] = {}  # each replica to its first copy
    for a, b in zip(order[:-1].tolist(), order[1:].tolist(), strict=True):
        first, second = sums(a), sums(b)
        gap = np.abs(first - second)
        known = np.isfinite(gap)
        near = gap <= _COPIES * np.maximum(largest[a], largest[b])
        # Either both copies have diverged, or neither.
        if known.any() and near[known].all() and np.array_equal(np.isnan(first), np.isnan(second)):
            same[b] = same.get(a, a)
    groups: dict[int, list[int]] = {}
    for replica in range(n_replica):
        groups.setdefault(same.get(replica, replica), []).append(replica)
    return sorted((replica, min(group)) for group in groups.values() for replica in group if replica > min(group))


def copies_in_words(found: Sequence[tuple[int, int]]) -> str:
    """Return a sentence about copies, without its end."""
    by_first: dict[int, list[int]] = {}
    for replica, first in found:
        by_first.setdefault(first, []).append(replica)
    parts = [f"replicas {_numbers([first, *others])}" for first, others in list(by_first.items())[:_MOST_NAMES]]
    return (
        f"{' and '.join(parts)} (counted from 0) are one run, because all their sums agree to 1 in 100,000, "
        "and independent runs never do"
    )


def broken(moments: Table, sums: Sequence[str]) -> list[int]:
    """Return the replicas without a finite displacement at a positive lag, or none if this is true for all replicas."""
    values = moments.values[moments.keys[:, 1] > 0]
    finite = np.isfinite(values[..., sums.index("d2")] if "d2" in sums else values[..., 0])
    alive = finite.any(axis=(0, 2))
    return np.flatnonzero(~alive).tolist() if alive.any() else []


def broken_in_words(found: Sequence[int], n_replica: int) -> str:
    """Return a sentence about replicas that have diverged."""
    return (
        f"of {n_replica} replicas, {_numbers(found)} (counted from 0) have no finite value: they have diverged, and "
        "are left out"
    )


def _numbers(replicas: Sequence[int]) -> str:
    more = len(replicas) - _MOST_NAMES
    return ", ".join(map(str, replicas[:_MOST_NAMES])) + (f" and {more} more" if more > 0 else "")


def of_replicas(tables: Tables, kept: Sequence[int]) -> dict[TableName, Table]:
    """Return the tables that have an axis of replicas, with some of the replicas."""
    found: dict[TableName, Table] = {}
    for name, table in tables.items():
        if name.kind in ("moments", "responses"):
            found[name] = table.empty((len(kept), *table.shape[1:]))
            found[name].extend(table.keys, table.values[:, kept])
        elif name.kind == "between":
            found[name] = table.empty((len(kept), len(kept)))
            found[name].extend(table.keys, table.values[:, kept][:, :, kept])
    return found


@quiet()
def clones(moments: Table, sums: Sequence[str], n: Array) -> list[tuple[int, int]]:
    """Return pairs of replicas with the same weights at a waiting time, if they are neighbours in the order of sums.

    The sums of s and of s^2 over the coordinates of each group agree ten thousand times better than in independent
    runs, or to one part in a million. This test does not apply to a system that conserves its sum of squares, such as a
    spin glass. The list is then empty.

    Args:
        moments: rows ``[n_replica, n_group, n_moment]``.
        sums: names of the sums.
        n: number of coordinates of each group, ``[n_group]``.
    """
    if not {"s", "s2"} <= set(sums) or moments.shape[0] < 2:
        return []
    _, first = np.unique(moments.keys[:, 0], return_index=True)
    s, s2 = (moments.values[first][..., sums.index(name)] for name in ("s", "s2"))  # [n_tw, n_replica, n_group]
    moves = (np.ptp(s2, axis=0) > _SAME * np.abs(s2).max(axis=0)).any(axis=-1)  # [n_replica]
    near_to = np.maximum(_SAME, 1e-4 * np.sqrt(np.maximum(n - 1, 0)) / np.maximum(n, 1))  # [n_group]
    order = np.argsort(s[..., 0], axis=1)
    found: set[tuple[int, int]] = set()
    for at in range(len(s)):
        a, b = order[at, :-1], order[at, 1:]
        near = np.abs(s2[at, a] - s2[at, b]) <= near_to * s2[at, a]
        near &= np.abs(s[at, a] - s[at, b]) <= near_to * np.sqrt(n * s2[at, a])
        same = near.all(axis=-1) & (s2[at, a] > 0).any(axis=-1) & moves[a] & moves[b]
        found |= {(min(i, j), max(i, j)) for i, j in zip(a[same].tolist(), b[same].tolist(), strict=True)}
    return sorted(found)


def check_trainings(metas: Sequence[Mapping[str, Any]]) -> None:
    """Refuse two branches of one training, which share their beginning.

    Raises:
        ValueError: the message names two runs.
    """
    seen: dict[Any, int] = {}
    for i, meta in enumerate(metas):
        identity = meta.get("id")
        if isinstance(identity, str) and identity in seen:
            raise ValueError(
                f"records[{i}] and records[{seen[identity]}] are branches of one training, which was resumed twice "
                "from the same checkpoint: leave one out"
            )
        seen[identity if isinstance(identity, str) else None] = i


def with_replica_axis(tables: Tables) -> dict[TableName, Table]:
    """Return the tables of a single run, with a replica axis of length 1 in the moments and in the response."""
    found = dict(tables)
    for name in (MOMENTS_TABLE, RESPONSE_TABLE):
        if name in tables:
            single = tables[name]
            found[name] = single.empty((1, *single.shape))
            found[name].extend(single.keys, single.values[:, None])
    return found


# ---------------------------------------------------------------------- from a trajectory


def trajectory(weights: ArrayLike, n_replica: int | None) -> Array:
    """Return the weights in all frames, float64 ``[(n_replica,) n_frames, N]``.

    Raises:
        TypeError: the weights are masked, or are not real numbers.
        ValueError: the shape is wrong, may mean coordinates of particles, or has no second frame or no coordinate.
    """
    wanted = "[n_frames, N] or [n_replica, n_frames, N]"
    if _is_masked(weights):
        raise TypeError(
            "weights are a masked array, and a record has no masks: give weights.filled(nan), or leave out the masked "
            "coordinates"
        )
    try:
        found = np.asarray(weights)
    except Exception as error:  # a ragged list, or a tensor that NumPy cannot read
        raise TypeError(f"weights are not an array {wanted} of numbers: {error}") from error
    if found.dtype.kind == "c":
        raise TypeError(
            f"weights are complex ({found.dtype}): give their parts as coordinates, "
            "np.concatenate([weights.real, weights.imag], axis=-1)"
        )
    if found.dtype.kind not in "iuf":
        raise TypeError(f"weights of dtype {found.dtype} are not an array {wanted} of real numbers: convert them")
    shape = found.shape
    if found.ndim not in (2, 3):
        raise ValueError(f"weights of shape {shape}: {wanted} is wanted, so give all coordinates of a frame one axis")
    if found.ndim == 3 and n_replica is None and shape[-1] <= 3:
        raise ValueError(
            f"weights of shape {shape} may be coordinates [n_frames, n_particle, {shape[-1]}], or n_replica={shape[0]} "
            f"replicas of {shape[-1]} weights: give weights.reshape({shape[0]}, -1) for one run, or "
            f"n_replica={shape[0]} for replicas"
        )
    if n_replica is not None and (found.ndim != 3 or shape[0] != n_replica):
        raise ValueError(f"n_replica={n_replica} and weights of shape {shape}: [n_replica, n_frames, N] is wanted")
    if shape[-2] < 2 or shape[-1] < 1:
        raise ValueError(f"weights of shape {shape} hold no step, or no coordinate: {wanted} is wanted")
    return found.astype(np.float64, copy=False)


def _is_masked(values: Any) -> bool:
    """Return whether an array, or an array in a list of arrays, has a mask."""
    nested = isinstance(values, (list, tuple))
    return any(map(_is_masked, values)) if nested else isinstance(values, np.ma.MaskedArray)


def frame_times(times: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the step of each frame of a trajectory, by default 0, 1, 2 and so on.

    Raises:
        TypeError: the times are not integers.
        ValueError: there is not one time per frame, a time is negative, or the times do not increase.
    """
    n = shape[-2]
    if times is None:
        return np.arange(n)
    found = np.asarray(times)
    if _is_masked(times):
        raise TypeError("times are a masked array, and every frame has a step: leave out the masked frames")
    if found.dtype.kind not in "iu" and found.size:
        raise TypeError(f"times of dtype {found.dtype} are not integers: give the step of each frame")
    if found.shape != (n,):
        raise ValueError(
            f"times of shape {found.shape} and weights of shape {shape}: give one time for each {n} frames"
        )
    wrong = np.flatnonzero(found[1:] <= found[:-1])
    if len(wrong):
        i = int(wrong[0]) + 1
        raise ValueError(f"times[{i}]={found[i]} follows {found[i - 1]}: times must increase, so sort the frames")
    if found[0] < 0 or found[-1] >= LARGEST:
        raise ValueError(f"times from {found[0]} to {found[-1]}: steps lie between 0 and 2**62")
    return found.astype(np.int64)


def frame_pairs(
    frames: NDArray[np.int64], pairs: Iterable[tuple[int, int]] | None
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return the pairs (waiting time, lag) with two frames, and the places of their frames, early and late.

    Args:
        frames: the step of each frame.
        pairs: the pairs of a schedule. None stands for all pairs of frames.

    Raises:
        ValueError: no pair has two frames, or there are more than a million pairs.
    """
    place = {step: i for i, step in enumerate(frames.tolist())}
    n = len(frames) * (len(frames) - 1) // 2
    if pairs is None and n > _MOST_PAIRS:
        raise ValueError(f"schedule=None means all {n:,} pairs of frames: choose fewer, LogTimeSchedule.logspaced()")
    wanted = list(pairs) if pairs is not None else [(a, b - a) for a in place for b in place if b > a]
    found = [(pair, (place[pair[0]], place[sum(pair)])) for pair in wanted if pair[0] in place and sum(pair) in place]
    if found:
        return found
    needed = np.array([(early, early + lag) for early, lag in wanted], dtype=np.int64)
    after = np.searchsorted(frames, needed).clip(1, len(frames) - 1)
    nearest = np.where(needed - frames[after - 1] <= frames[after] - needed, frames[after - 1], frames[after])
    best = int(np.abs(nearest - needed).sum(axis=1).argmin())
    named = [f"at {step} (the nearest is at {frame})" for step, frame in zip(needed[best], nearest[best], strict=True)]
    raise ValueError(
        f"no pair of the schedule has two frames at the times: the pair (waiting time, lag) = {wanted[best]} needs "
        f"frames {' and '.join(named)}. Give a LogTimeSchedule of your times, or schedule=None for all pairs of frames"
    )


def members_of(groups: Mapping[str, ArrayLike], n: int) -> dict[str, NDArray[np.int64]]:
    """Return the coordinates of each group, ``"all"`` first.

    Raises:
        ValueError: a group is empty, is called ``"all"``, has a coordinate twice, or has a coordinate that does not
            exist.
    """
    if "all" in groups:
        raise ValueError("groups: 'all' is always there and means every coordinate: choose another name")
    members = {"all": np.arange(n)}
    for group, member in groups.items():
        indices = np.asarray(member)
        if indices.size == 0 or indices.ndim != 1 or indices.dtype.kind not in "iub" or _is_masked(member):
            raise ValueError(f"groups[{group!r}] must be a non-empty list of indices, or a mask")
        try:
            members[group] = found = np.arange(n)[indices]
        except IndexError:
            raise ValueError(
                f"groups[{group!r}] does not fit the {n} coordinates: give indices, or a mask of {n}"
            ) from None
        if len(found) == 0 or len(np.unique(found)) < len(found):
            raise ValueError(f"groups[{group!r}] is empty, or names a coordinate twice")
    return members


def moments_of(w: Array, s: Array, thresholds: Iterable[float], members: Iterable[NDArray[np.int64]]) -> Array:
    """Compute the sums of one pair in plain float64, ``[(n_replica,) n_group, n_moment]``, in the order of ``MOMENTS``.

    Args:
        w: the weights at :math:`t_w + t`, ``[(n_replica,) N]``.
        s: the weights at :math:`t_w`.
        thresholds: thresholds of the overlaps. Their counts come after the sums.
        members: the coordinates of each group.
    """
    d = w - s
    d2 = d * d
    # Take the square of the square, because other processors round a power of 4 differently.
    terms = {"d2": d2, "d4": d2 * d2, "ws": w * s, "w2": w * w, "s2": s * s, "w": w, "s": s}
    columns = np.stack([*(terms[name] for name in MOMENTS), *(np.abs(d) <= eps for eps in thresholds)], axis=-1)
    return np.stack([columns[..., member, :].sum(-2) for member in members], axis=-2)

"""Loops that numba compiles: sums, differences and counts of weights in host memory.

All of them are in this file. numba notices that a compiled function on disk is stale by the date of its own file only.
Memory is named by its address, because a table of tensors has many sizes. Weights of 16 bits and weights that are
scattered in memory are copied block by block. A block stays in the first-level cache.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (numba types the arguments of a function and has no type hints)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic, overload

# Coordinates that are summed in their own precision, before they are added to a float64 sum.
_BLOCK = 512

# Values of each checkpoint in a block. So many values of 150 checkpoints fit in a second-level cache.
_BLOCK_OF_MANY = 1024

# The order of a sum is free, as in torch. NaN and infinite values keep their meaning. Other threads run meanwhile.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz"},
}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that numba compiles when it is called first, or reads from disk."""
    try:
        return njit(cache=True, **_OPTIONS)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # no directory can be written
        return njit(**_OPTIONS)(function)  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- memory by address


@intrinsic
def _pointer(typing, address, like):
    """Return an address as a pointer to numbers of the dtype of the array ``like``."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(address, like), generate


@intrinsic
def _take(typing, address):
    """Return the integer at an address, and add 1 to it. No other thread gets the same integer."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(address), generate


@intrinsic
def _as_float(typing, bits):
    """Return the float32 of these 32 bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(bits), generate


@intrinsic
def _bits(typing, value):
    """Return the bits of a float32 or float64."""
    width = value.bitwidth

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(width))

    return (types.uint32 if width == 32 else types.uint64)(value), generate


@compiled
def _copy(source, target):
    for k in range(source.shape[0]):
        target[k] = source[k]


@compiled
def _gather(source, places, target):
    for k in range(target.shape[0]):
        target[k] = source[places[k]]


@compiled
def _widen_bfloat16(narrow, wide):
    for k in range(narrow.shape[0]):
        wide[k] = _as_float(np.uint32(np.uint32(narrow[k]) << np.uint32(16)))


@compiled
def _widen_float16(narrow, wide):
    tiny = np.float32(2.0**-24)
    for k in range(narrow.shape[0]):
        bits = np.uint32(np.uint16(narrow[k]))
        size = bits & np.uint32(0x7FFF)
        # The exponent is counted from another zero. Infinities and NaN have the largest exponent in both.
        offset = np.uint32(0x70000000) if size >= np.uint32(0x7C00) else np.uint32(0x38000000)
        normal = _as_float(np.uint32(np.uint32(size << np.uint32(13)) + offset))
        value = normal if size >= np.uint32(0x0400) else np.float32(size) * tiny
        wide[k] = -value if bits >= np.uint32(0x8000) else value


def _widened(address: Any, n: Any, like: Any, scratch: Any) -> Any:
    """Return the address of ``n`` numbers in the precision of the sums: the same, or that of a wide copy."""
    raise NotImplementedError


@overload(_widened)
def _overload_widened(address, n, like, scratch):
    if isinstance(like.dtype, types.Float):
        return lambda address, n, like, scratch: address
    widen = _widen_bfloat16 if like.dtype == types.uint16 else _widen_float16

    def copy(address, n, like, scratch):
        widen(carray(_pointer(address, like), n), scratch)
        return np.int64(scratch.ctypes.data)

    return copy


@compiled
def _read(chunk, at, n, like, raw):
    """Return the address of the coordinates ``at ... at + n`` of a chunk: in the tensor, or gathered in ``raw``."""
    if not chunk[3]:
        return np.int64(chunk[0] + at * like.itemsize)
    places = carray(_pointer(chunk[3] + 8 * at, chunk), n)
    _gather(carray(_pointer(chunk[0], like), 1), places, raw[:n])
    return np.int64(raw.ctypes.data)


@compiled
def _wide(address, n, like, scratch):
    """Return ``n`` numbers at an address in the precision of ``scratch``, which may hold a copy of them."""
    return carray(_pointer(_widened(address, n, like, scratch[:n]), scratch), n)


# ---------------------------------------------------------------------- sums of a block


@compiled
def _own_of_block(w, zero):
    """Return the sums of w^2 and of w."""
    w2, w1 = zero, zero
    for k in range(w.shape[0]):
        w2 += w[k] * w[k]
        w1 += w[k]
    return w2, w1


@compiled
def _pair_of_block(w, s, low, high, scale):
    """Return the sums of (scale d)^2 and of (scale d)^4, and how often (scale d)^2 is at most each of two bounds."""
    zero, one = scale - scale, scale / scale
    d2, d4, n_low, n_high = zero, zero, zero, zero
    for k in range(w.shape[0]):
        difference = (w[k] - s[k]) * scale
        square = difference * difference
        d2 += square
        d4 += square * square
        n_low += one if square <= low else zero
        n_high += one if square <= high else zero
    return d2, d4, n_low, n_high


@compiled
def _msd_of_block(w, s, scale):
    d2 = scale - scale
    for k in range(w.shape[0]):
        difference = (w[k] - s[k]) * scale
        d2 += difference * difference
    return d2


@compiled
def _add_pair(w, s, bounds, scale, sums):
    """Add the sums of (scale d)^2 and of (scale d)^4, and the number below each bound, ``[2 + n_bound]``."""
    for k in range(0, len(bounds), 2):
        d2, d4, n_low, n_high = _pair_of_block(w, s, bounds[k], bounds[k + 1], scale)
        if k == 0:
            sums[0] += d2
            sums[1] += d4
        sums[2 + k] += n_low
        sums[3 + k] += n_high


# ---------------------------------------------------------------------- all blocks


@compiled
def walk(chunks, due, new, flags, bounds, scale, like, own, pairs, counter):
    """Sum chunk after chunk, until another thread has taken the last.

    Args:
        chunks: ``[n_chunk, 4]``: address in memory, first coordinate in the bucket, number of coordinates, and the
            address of their places (0 if they are contiguous).
        due: addresses of the due snapshots, ``[n_due]``.
        new: address of the snapshot to fill, or 0.
        flags: ``[2]``: whether the sums of the weights alone are wanted, and whether only d^2 is.
        bounds: squares of the scaled thresholds, an even number of them, in the precision of the sums.
        scale: factor of the differences, in the same precision.
        like: an array of the dtype of the weights.
        own: result, ``[n_chunk, 2]``.
        pairs: result, ``[n_chunk, n_due, 2 + n_bound]``.
        counter: address of the number of the next chunk.
    """
    zero, width = scale - scale, like.itemsize
    raw, of_w, of_s = np.empty(_BLOCK, like.dtype), np.empty(_BLOCK, bounds.dtype), np.empty(_BLOCK, bounds.dtype)
    while True:
        c = _take(counter)
        if c >= len(chunks):
            return
        chunk, first, length = chunks[c], chunks[c, 1], chunks[c, 2]
        own[c] = 0
        pairs[c] = 0
        for at in range(0, length, _BLOCK):
            n = min(_BLOCK, length - at)
            here = _read(chunk, at, n, like, raw)
            if new:
                _copy(carray(_pointer(here, like), n), carray(_pointer(new + (first + at) * width, like), n))
            w = _wide(here, n, like, of_w)
            if flags[0]:
                w2, w1 = _own_of_block(w, zero)
                own[c, 0] += w2
                own[c, 1] += w1
            for j in range(len(due)):
                s = _wide(due[j] + (first + at) * width, n, like, of_s)
                if flags[1]:
                    pairs[c, j, 0] += _msd_of_block(w, s, scale)
                else:
                    _add_pair(w, s, bounds, scale, pairs[c, j])


@compiled
def add_up(cells, own, pairs, own_s, own_new, flags, scale, n_threshold, of_due, out):
    """Add the sums of the chunks of each cell, in the order of ``MOMENTS``.

    Args:
        cells: first chunk of each cell, ``[n_cell + 1]``.
        own: sums of `walk`.
        pairs: sums of `walk`.
        own_s: addresses of the sums of each due snapshot, ``[n_due]``.
        own_new: address of the sums of the new snapshot, or 0.
        flags: as in `walk`.
        scale: factor of the differences.
        n_threshold: number of thresholds.
        of_due: place of the first due snapshot in ``out``.
        out: result, ``[n_cell, n_snapshot, 7 + n_threshold]``.
    """
    n_cell = len(cells) - 1
    for cell in range(n_cell):
        first, end = cells[cell], cells[cell + 1]
        w2 = w1 = 0.0
        for c in range(first, end):
            w2 += own[c, 0]
            w1 += own[c, 1]
        if own_new:
            target = carray(_pointer(own_new, out), 2 * n_cell)
            target[2 * cell], target[2 * cell + 1] = w2, w1
        for j in range(len(own_s)):
            row = out[cell, of_due + j]
            of_s = carray(_pointer(own_s[j], out), 2 * n_cell)
            row[:] = 0 if not flags[1] else np.nan
            row[0], row[4], row[6] = 0, of_s[2 * cell], of_s[2 * cell + 1]
            for c in range(first, end):
                row[0] += pairs[c, j, 0] / scale**2
            if flags[1]:
                continue
            for c in range(first, end):
                row[1] += pairs[c, j, 1] / scale**4
                for k in range(n_threshold):
                    row[7 + k] += pairs[c, j, 2 + k]
            # ws = (w^2 + s^2 - d^2)/2 is safe in this direction, see EagerMoments.
            row[2], row[3], row[5] = (w2 + row[4] - row[0]) / 2, w2, w1


@compiled
def sum_pairs(rows, earlier, later, bounds, scale, out):
    """Sum pairs of rows.

    Args:
        rows: ``[n_row, n_tile, n]``.
        earlier: the earlier row of each pair.
        later: the later row of each pair.
        bounds: as in `walk`.
        scale: as in `walk`.
        out: result, ``[n_pair, n_tile, 2 + n_bound]``: the sums of (scale d)^2 and of (scale d)^4, and the numbers of
            coordinates below each bound.
    """
    out[:] = 0
    for tile in range(rows.shape[1]):
        for start in range(0, rows.shape[2], _BLOCK_OF_MANY):
            block = np.ascontiguousarray(rows[:, tile, start : start + _BLOCK_OF_MANY])
            for pair in range(len(earlier)):
                _add_pair(block[earlier[pair]], block[later[pair]], bounds, scale, out[pair, tile])


@compiled
def compare(chunks, like, one, out):
    """Add the squared distances of all pairs of replicas, and then the squares of each.

    Args:
        chunks: the chunks of each replica as in `walk`, ``[n_replica, n_chunk, 4]``.
        like: as in `walk`.
        one: 1 in the precision of the sums, as an array.
        out: result, ``[n_pair + n_replica]``.
    """
    n_replica = len(chunks)
    raw, wide = np.empty(_BLOCK, like.dtype), np.empty((n_replica, _BLOCK), one.dtype)
    addresses = np.empty(n_replica, np.int64)
    for c in range(chunks.shape[1]):
        length = chunks[0, c, 2]
        for at in range(0, length, _BLOCK):
            n = min(_BLOCK, length - at)
            for a in range(n_replica):
                here = _read(chunks[a, c], at, n, like, raw)
                if chunks[a, c, 3]:
                    values = _wide(here, n, like, wide[a])
                    _copy(values, wide[a])
                    addresses[a] = np.int64(wide[a].ctypes.data)
                else:
                    addresses[a] = np.int64(_widened(here, n, like, wide[a, :n]))
            pair = 0
            for a in range(n_replica):
                w_a = carray(_pointer(addresses[a], one), n)
                for b in range(a + 1, n_replica):
                    out[pair] += _msd_of_block(w_a, carray(_pointer(addresses[b], one), n), one[0])
                    pair += 1
            for a in range(n_replica):
                out[pair + a] += _own_of_block(carray(_pointer(addresses[a], one), n), one[0] - one[0])[0]


@compiled
def count(chunks, earlier, scale, like, bins, shift, edges, counts):
    """Count the weights, or their scaled differences from earlier ones, in bins that are symmetric about 0.

    Args:
        chunks: as in `walk`.
        earlier: address of the earlier weights, or 0.
        scale: factor of the differences, in the precision of the sums.
        like: as in `walk`.
        bins: for each value of the leading bits of ``|x|``, the number of positive edges at or below the least such
            ``|x|``, int16. At most one edge lies between two of these numbers.
        shift: number of the other bits of ``|x|``.
        edges: the positive edges between two NaN, which nothing reaches, in the precision of the sums.
        counts: result, ``[4, 2 n_edge + 1]``. Four counters for each bin, because a counter is not ready at once.
    """
    n_edge = len(edges) - 2
    raw, of_w, of_s = np.empty(_BLOCK, like.dtype), np.empty(_BLOCK, edges.dtype), np.empty(_BLOCK, edges.dtype)
    x = np.empty(_BLOCK, edges.dtype)
    for c in range(len(chunks)):
        chunk, first, length = chunks[c], chunks[c, 1], chunks[c, 2]
        for at in range(0, length, _BLOCK):
            n = min(_BLOCK, length - at)
            w = _wide(_read(chunk, at, n, like, raw), n, like, of_w)
            if earlier:
                s = _wide(earlier + (first + at) * like.itemsize, n, like, of_s)
                for k in range(w.shape[0]):
                    x[k] = (w[k] - s[k]) * scale
            else:
                _copy(w, x)
            for k in range(n):
                size = abs(x[k])
                place = np.int64(bins[np.int64(_bits(size)) >> shift])
                place += 1 if size >= edges[place + 1] else 0
                # A bin includes its lower edge. Without a branch, because the sign of a displacement is random.
                at_edge = 1 if size == edges[place] else 0
                place = at_edge - place if x[k] < 0 else place
                # NaN is counted in the last bin.
                counts[k & 3, n_edge + (place if size == size else n_edge)] += 1

"""Loops that numba compiles: sums, differences and counts of weights in host memory.

All of them are in this file. numba notices that a compiled function on disk is stale by the date of its own file only.
Memory is named by its address, because a table of tensors has many sizes. Weights of 16 bits and weights that are
scattered in memory are copied block by block. A block stays in the first-level cache.

The code fixes the order in which numbers are added. A compiler that may choose the order (``fastmath``) chooses another
order for another processor, and sometimes on the same processor. A process that continues a run would then measure
other bits than the process that began it.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-incomplete-defs, allow-untyped-decorators, allow-subclassing-any
# (numba types the arguments of a function and has no type hints)

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic, models, overload, register_model

# Coordinates that are summed in their own precision, before they are added to a float64 sum. Two blocks fit in a
# first-level cache. The blocks of many checkpoints fit in a second-level cache.
_BLOCK = 2048

# Bytes of the numbers that are added at once. Processors take 16, 32 or all 64 of them in one instruction.
_LANES = 64

# Numbers of each lane that are added one after another. The sums of such runs are added then, so that even errors of
# rounding that all have the same sign stay below 1e-6.
_RUN = 16

# A division by 0 is no error, and other threads run during the loops.
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "nogil": True}


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
    """Return the address of ``n`` numbers in the precision of the sums: the same, or the address of a wide copy."""
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


# ---------------------------------------------------------------------- many numbers at once


class Lanes(types.Type):
    """The numba type of 64 bytes of numbers. Operators act on each number by itself."""

    def __init__(self, number):
        self.number = number
        super().__init__(name=f"Lanes({number})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes):
        number = manager.lookup(lanes.number).get_value_type()
        super().__init__(manager, lanes, ir.VectorType(number, 8 * _LANES // lanes.number.bitwidth))


def _part(builder, vector, *places):
    """Return the numbers at these places of an LLVM vector, as a vector."""
    indices = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), list(places))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), indices)


@intrinsic
def _load(typing, array, at):
    """Return the lanes that begin at an index of a contiguous array."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(array)(context, builder, arguments[0]).data
        lanes = context.get_value_type(signature.return_type).as_pointer()
        return builder.load(builder.bitcast(builder.gep(data, arguments[1:]), lanes), align=array.dtype.bitwidth // 8)

    return (Lanes(array.dtype)(array, types.intp), generate) if array.layout == "C" else None


@intrinsic
def _prefetch(typing, array, at):
    """Begin to bring the memory at an index of a contiguous array into the cache. The array need not reach so far."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(array)(context, builder, arguments[0]).data
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [pointer], ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        )
        how = [ir.Constant(number, value) for value in (0, 3, 1)]  # to read it, to keep it, as data
        builder.call(function, [builder.bitcast(builder.gep(data, arguments[1:]), pointer), *how])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def _fill(typing, number):
    """Return lanes that are all this number."""

    def generate(context, builder, signature, arguments):
        vector = ir.Constant(context.get_value_type(signature.return_type), ir.Undefined)
        vector = builder.insert_element(vector, arguments[0], ir.Constant(ir.IntType(32), 0))
        return _part(builder, vector, *[0] * vector.type.count)

    return Lanes(number)(number), generate


@intrinsic
def _total(typing, lanes):
    """Return the sum of all lanes: each of the first half plus its partner in the other half, and so on."""

    def generate(context, builder, signature, arguments):
        (vector,) = arguments
        add = builder.add if isinstance(lanes.number, types.Integer) else builder.fadd
        while (half := vector.type.count // 2) > 0:
            vector = add(_part(builder, vector, *range(half)), _part(builder, vector, *range(half, 2 * half)))
        return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))

    return lanes.number(lanes), generate


def _define(sign, name):
    """Define an operator between lanes of the same type by the instruction of LLVM with this name."""

    @intrinsic
    def compute(typing, a, b):
        def generate(context, builder, signature, arguments):
            return getattr(builder, name if isinstance(a.number, types.Integer) else f"f{name}")(*arguments)

        return a(a, b), generate

    @overload(sign)
    def operate(a, b):
        return (lambda a, b: compute(a, b)) if isinstance(a, Lanes) and a == b else None


_define(operator.add, "add")
_define(operator.sub, "sub")
_define(operator.mul, "mul")


@intrinsic
def _at_most(typing, a, b):
    """Return lanes of integers: -1 where ``a <= b``, and 0 elsewhere."""

    def generate(context, builder, signature, arguments):
        return builder.sext(builder.fcmp_ordered("<=", *arguments), context.get_value_type(signature.return_type))

    return Lanes(types.int32 if a.number == types.float32 else types.int64)(a, b), generate


# ---------------------------------------------------------------------- sums of a block
#
# While a block is summed, the block ``ahead`` is fetched from memory. It is the next to be read. A processor cannot
# predict the step from one array to another, and would have to wait.


@compiled
def _whole(w):
    """Return the step from lanes to lanes, the step from run to run, and how many numbers are in whole lanes."""
    step = _LANES // w.itemsize
    return step, _RUN * step, w.shape[0] - w.shape[0] % step


@compiled
def _own_of_block(w, ahead, zero):
    """Return the sums of w^2 and of w."""
    step, run, whole = _whole(w)
    nothing = squares = values = _fill(zero)
    for start in range(0, whole, run):
        run_squares = run_values = nothing
        for k in range(start, min(start + run, whole), step):
            _prefetch(ahead, k)
            value = _load(w, k)
            run_squares = run_squares + value * value
            run_values = run_values + value
        squares, values = squares + run_squares, values + run_values
    w2 = w1 = zero
    for k in range(whole, w.shape[0]):
        w2 += w[k] * w[k]
        w1 += w[k]
    return _total(squares) + w2, _total(values) + w1


@compiled
def _pair_of_block(w, s, ahead, low, high, scale):
    """Return the sums of (scale d)^2 and of (scale d)^4, and how often (scale d)^2 is at most each of two bounds."""
    step, run, whole = _whole(w)
    zero, one = scale - scale, scale / scale
    scales, lows, highs = _fill(scale), _fill(low), _fill(high)
    nothing = squares = fourths = _fill(zero)
    at_low = at_high = _at_most(_fill(one), nothing)
    for start in range(0, whole, run):
        run_squares = run_fourths = nothing
        for k in range(start, min(start + run, whole), step):
            _prefetch(ahead, k)
            difference = (_load(w, k) - _load(s, k)) * scales
            square = difference * difference
            run_squares = run_squares + square
            run_fourths = run_fourths + square * square
            at_low = at_low - _at_most(square, lows)
            at_high = at_high - _at_most(square, highs)
        squares, fourths = squares + run_squares, fourths + run_fourths
    d2, d4, n_low, n_high = zero, zero, 0, 0
    for k in range(whole, w.shape[0]):
        rest = (w[k] - s[k]) * scale
        d2 += rest * rest
        d4 += (rest * rest) * (rest * rest)
        n_low += rest * rest <= low
        n_high += rest * rest <= high
    return _total(squares) + d2, _total(fourths) + d4, _total(at_low) + n_low, _total(at_high) + n_high


@compiled
def _msd_of_block(w, s, ahead, scale):
    """Return the sum of (scale d)^2."""
    step, run, whole = _whole(w)
    zero = scale - scale
    scales, nothing = _fill(scale), _fill(zero)
    squares = nothing
    for start in range(0, whole, run):
        run_squares = nothing
        for k in range(start, min(start + run, whole), step):
            _prefetch(ahead, k)
            difference = (_load(w, k) - _load(s, k)) * scales
            run_squares = run_squares + difference * difference
        squares = squares + run_squares
    d2 = zero
    for k in range(whole, w.shape[0]):
        rest = (w[k] - s[k]) * scale
        d2 += rest * rest
    return _total(squares) + d2


@compiled
def _add_pair(w, s, ahead, bounds, scale, sums):
    """Add the sums of (scale d)^2 and of (scale d)^4, and the number below each bound, ``[2 + n_bound]``."""
    for k in range(0, len(bounds), 2):
        d2, d4, n_low, n_high = _pair_of_block(w, s, ahead, bounds[k], bounds[k + 1], scale)
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
            for j in range(len(due)):
                s = _wide(due[j] + (first + at) * width, n, like, of_s)
                then = due[j + 1] + (first + at) * width if j + 1 < len(due) else here + n * width
                ahead = carray(_pointer(then, like), n)
                if flags[1]:
                    pairs[c, j, 0] += _msd_of_block(w, s, ahead, scale)
                else:
                    _add_pair(w, s, ahead, bounds, scale, pairs[c, j])
            if flags[0]:
                then = due[0] + (first + at + n) * width if len(due) else here + n * width
                w2, w1 = _own_of_block(w, carray(_pointer(then, like), n), zero)
                own[c, 0] += w2
                own[c, 1] += w1


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
        for start in range(0, rows.shape[2], _BLOCK):
            block = np.ascontiguousarray(rows[:, tile, start : start + _BLOCK])
            for pair in range(len(earlier)):
                w = block[earlier[pair]]
                _add_pair(w, block[later[pair]], w, bounds, scale, out[pair, tile])


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
                    out[pair] += _msd_of_block(w_a, carray(_pointer(addresses[b], one), n), w_a, one[0])
                    pair += 1
            for a in range(n_replica):
                w_a = carray(_pointer(addresses[a], one), n)
                out[pair + a] += _own_of_block(w_a, w_a, one[0] - one[0])[0]


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

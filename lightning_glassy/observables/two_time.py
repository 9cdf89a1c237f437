"""What is computed from the raw moments: one function per quantity, arrays in, arrays out.

``w`` are the weights at step :math:`t_w + t`, ``s`` (the snapshot) those at :math:`t_w`, ``d = w - s``;
``sum_...`` are sums over the ``n`` coordinates that were measured. All functions take and return float64
arrays of any shape, broadcast as NumPy does, and give NaN where a quantity is not defined.

Sources: BJ18 is Baity-Jesi et al. 2018 (arXiv 1803.06969), WJ24 is Winter and Janssen 2024 (arXiv 2405.13098).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
CorrelationKind = Literal["raw", "cosine", "centred", "pearson"]


# Diverged weights are data like others: what they give (inf, NaN) is returned without a warning at every call.
def _quiet() -> np.errstate:
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")


def _float64(*arrays: ArrayLike) -> tuple[Array, ...]:
    return tuple(np.asarray(a, dtype=np.float64) for a in arrays)


def _ratio(numerator: Array, denominator: Array) -> Array:
    with _quiet():
        return np.asarray(np.where(denominator > 0, numerator / denominator, np.nan))


def msd(sum_d2: ArrayLike, n: ArrayLike) -> Array:
    r"""Mean squared displacement :math:`\Delta(t_w, t_w+t) = \frac{1}{N}\sum_i [w_i(t_w+t) - w_i(t_w)]^2`.

    Source: BJ18, the quantity plotted throughout. The average is over coordinates, not over runs.

    Example:
        >>> float(msd(sum_d2=2.0, n=100))
        0.02
    """
    return _ratio(*_float64(sum_d2, n))


@_quiet()
def correlation(
    sum_ws: ArrayLike,
    sum_w2: ArrayLike,
    sum_s2: ArrayLike,
    sum_w: ArrayLike,
    sum_s: ArrayLike,
    n: ArrayLike,
    kind: CorrelationKind = "raw",
) -> Array:
    r"""Two-time correlation :math:`C(t_w, t_w+t)` of the weights, in one of four normalisations.

    * ``"raw"``: :math:`\frac{1}{N}\sum_i w_i s_i`, the quantity of mean-field spin glasses;
    * ``"cosine"``: :math:`\sum w s / \sqrt{\sum w^2 \sum s^2}`, the overlap of the directions;
    * ``"centred"``: :math:`\langle ws\rangle - \langle w\rangle\langle s\rangle`, the connected correlation;
    * ``"pearson"``: the connected correlation over the two standard deviations.

    Close to 1 a cosine has lost its digits: use :func:`decorrelation` for :math:`1 - C`.

    Raises:
        ValueError: another ``kind``.
    """
    ws, w2, s2, w, s, count = _float64(sum_ws, sum_w2, sum_s2, sum_w, sum_s, n)
    if kind == "raw":
        return _ratio(ws, count)
    if kind == "cosine":
        return _ratio(ws, np.sqrt(w2 * s2))
    if kind not in ("centred", "pearson"):
        raise ValueError(f"kind={kind!r} is not one of 'raw', 'cosine', 'centred', 'pearson'")
    mean_w, mean_s = _ratio(w, count), _ratio(s, count)
    covariance: Array = _ratio(ws, count) - mean_w * mean_s
    if kind == "centred":
        return covariance
    variances = (_ratio(w2, count) - mean_w**2) * (_ratio(s2, count) - mean_s**2)
    return _ratio(covariance, np.sqrt(np.maximum(variances, 0.0)))


@_quiet()
def decorrelation(sum_d2: ArrayLike, sum_w2: ArrayLike, sum_s2: ArrayLike) -> Array:
    r"""Loss of the cosine correlation, :math:`1 - C`, computed from the displacement.

    :math:`1 - C = \frac{\sum d^2 - (|w| - |s|)^2}{2 |w| |s|}`, which keeps its digits at short lags, where
    subtracting a measured C from 1 would leave only rounding. A change of length by a factor 1 + r that is much larger
    than the turn costs digits: of moments summed on the device the relative error is then about 1e-9 r/(1 - C).

    Example:
        >>> float(decorrelation(sum_d2=2.0, sum_w2=1.0, sum_s2=1.0))  # orthogonal
        1.0
    """
    d2, w2, s2 = _float64(sum_d2, sum_w2, sum_s2)
    w, s = np.sqrt(w2), np.sqrt(s2)
    return _ratio(d2 - (w - s) ** 2, 2 * w * s)


def overlap(count: ArrayLike, sum_d2: ArrayLike, n: ArrayLike) -> Array:
    r"""Overlap :math:`Q_\epsilon(t_w, t_w+t)`: the fraction of coordinates with :math:`|w_i - s_i| \le \epsilon`.

    NaN where the displacements are not finite, since a NaN is neither near nor far.

    Source: WJ24, where :math:`\epsilon` is the standard deviation of the weights over 100 ... 700.
    """
    near, d2, total = _float64(count, sum_d2, n)
    return np.where(np.isfinite(d2), _ratio(near, total), np.nan)


@_quiet()
def non_gaussian(sum_d2: ArrayLike, sum_d4: ArrayLike, n: ArrayLike) -> Array:
    r"""Non-Gaussian parameter :math:`\alpha_2 = \langle d^4\rangle / (3\langle d^2\rangle^2) - 1`.

    Zero for Gaussian displacements, positive where a few coordinates move much more than the rest; never below
    -2/3. NaN where nothing moved.

    Source: BJ18 (fourth moment), WJ24.

    Example:
        >>> float(non_gaussian(sum_d2=100.0, sum_d4=300.0, n=100))
        0.0
    """
    d2, d4, count = _float64(sum_d2, sum_d4, n)
    alpha = _ratio(d4 * count, 3 * d2**2) - 1
    # <d^4> is at least <d^2>^2: anything below, and infinity, tells of fourth powers beyond the range of their floats.
    return np.where(np.isfinite(alpha) & (alpha > -2 / 3 - 1e-4), alpha, np.nan)


def local_exponent(lags: ArrayLike, msd: ArrayLike) -> Array:
    r"""Local exponent :math:`\gamma(t_w, t) = \partial\ln\Delta / \partial\ln t` along the last axis.

    1 is diffusion, 2 ballistic motion, 0 a plateau. Second-order differences of the logarithms over the lags that
    were measured; NaN at lag 0, where :math:`\Delta` is not positive, and where fewer than two points are left.

    Args:
        lags: ``[n_lag]``, in steps.
        msd: ``[..., n_lag]``.

    Raises:
        ValueError: the last axis of ``msd`` is not as long as ``lags``.

    Example:
        >>> local_exponent([1, 10, 100], [2.0, 20.0, 200.0]).round(12).tolist()
        [1.0, 1.0, 1.0]
    """
    t, delta = _float64(lags, msd)
    if t.ndim != 1 or delta.shape[-1:] != t.shape:
        raise ValueError(f"msd of shape {delta.shape} does not end in one value for each of {t.shape} lags")
    result = np.full(delta.shape, np.nan)
    for index in np.ndindex(delta.shape[:-1]):
        row: Any = delta[index]
        with np.errstate(invalid="ignore"):
            good = np.isfinite(row) & (row > 0) & (t > 0)
        if good.sum() >= 2:
            result[index][good] = np.gradient(np.log(row[good]), np.log(t[good]))
    return result


@_quiet()
def msd_standard_error(sum_d2: ArrayLike, sum_d4: ArrayLike, n: ArrayLike, population: ArrayLike) -> Array:
    r"""Standard error of a sampled MSD: :math:`\sqrt{(\langle d^4\rangle - \langle d^2\rangle^2)/(n-1)}\,\sqrt{1-n/N}`.

    The error of estimating the mean over ``population`` coordinates from a simple random sample of ``n`` of them,
    drawn without replacement; 0 where all were measured. It says nothing about other runs: that needs replicas.
    """
    d2, d4, count, total = _float64(sum_d2, sum_d4, n, population)
    variance = np.maximum(_ratio(d4, count) - _ratio(d2, count) ** 2, 0.0)
    return _sampling_error(variance, count, total)


@_quiet()
def overlap_standard_error(count: ArrayLike, sum_d2: ArrayLike, n: ArrayLike, population: ArrayLike) -> Array:
    r"""Standard error of a sampled overlap :math:`\sqrt{Q(1-Q)/(n-1)}\,\sqrt{1-n/N}`, as :func:`msd_standard_error`."""
    sampled, total = _float64(n, population)
    q = overlap(count, sum_d2, sampled)
    return _sampling_error(q * (1 - q), sampled, total)


def _sampling_error(variance: Array, n: Array, population: Array) -> Array:
    return np.sqrt(np.where(n < population, _ratio(variance, n - 1) * (1 - n / population), 0.0))


@_quiet()
def chi4(values: ArrayLike, n: ArrayLike) -> Array:
    r"""Dynamical susceptibility :math:`\chi_4 = N\,\mathrm{Var}(Q)`, the variance taken over replicas.

    Of independent Gaussian coordinates it is :math:`\langle w^2\rangle\langle s^2\rangle + C^2` for C, and
    :math:`Q(1-Q)` for an overlap of coordinates that are near or far independently of each other; it grows with the
    number of coordinates that move together. The variance is the unbiased one, :math:`1/(R-1)`.

    Args:
        values: of an overlap or a correlation, ``[n_replica, ...]``.
        n: number of coordinates N that each is an average over.

    Returns:
        ``[...]``; NaN where a replica was not measured, or with fewer than two.

    Source: the usual four-point susceptibility of glasses, a fluctuation of the overlap; WJ24 for networks' overlaps.
    """
    of_replicas, count = _float64(values, n)
    if len(of_replicas) < 2:
        return np.full(of_replicas.shape[1:], np.nan)
    return np.asarray(count * of_replicas.var(axis=0, ddof=1))


@_quiet()
def chi4_error(values: ArrayLike, n: ArrayLike) -> Array:
    r"""Standard error of :func:`chi4`, by the jackknife: from leaving out one replica at a time.

    :math:`\sqrt{\frac{R-1}{R}\sum_r (\chi_{(r)} - \bar\chi)^2}`; arguments and shapes as of that, NaN with fewer than
    three replicas.
    """
    of_replicas, count = _float64(values, n)
    n_replica = len(of_replicas)
    if n_replica < 3:
        return np.full(of_replicas.shape[1:], np.nan)
    # The variances without each replica, from those of all: no copy of what may be many replicas.
    mean, total = of_replicas.mean(axis=0), ((of_replicas - of_replicas.mean(axis=0)) ** 2).sum(axis=0)
    without = (total - n_replica / (n_replica - 1) * (of_replicas - mean) ** 2) / (n_replica - 2)
    spread = ((without - without.mean(axis=0)) ** 2).sum(axis=0)
    return np.asarray(count * np.sqrt((n_replica - 1) / n_replica * spread))


def replica_overlap(products: ArrayLike) -> Array:
    r"""Overlap of replicas :math:`q_{ab} = \sum w_a w_b / \sqrt{\sum w_a^2 \sum w_b^2}`, from the sums of products.

    Args:
        products: ``[..., n_replica, n_replica]``, the sums of squares on the diagonal.
    """
    sums = np.asarray(products, dtype=np.float64)
    squares = np.diagonal(sums, axis1=-2, axis2=-1)
    with _quiet():
        return _ratio(sums, np.sqrt(squares[..., :, None] * squares[..., None, :]))


def default_overlap_thresholds(standard_deviation: float) -> tuple[float, ...]:
    r"""The thresholds :math:`\epsilon` used when none are given: about a hundredth and a tenth of the weights' spread.

    Rounded to 1, 2 or 5 times a power of ten, so that similar networks are measured alike. WJ24 uses the standard
    deviation over 100 ... 700. Weights that all start equal have no spread: 1 is used then.

    Example:
        >>> default_overlap_thresholds(0.058)
        (0.0005, 0.005)
    """
    spread = standard_deviation if 0 < standard_deviation < math.inf else 1.0
    decade = math.floor(math.log10(spread))
    mantissa = min((1, 2, 5, 10), key=lambda m: abs(math.log10(m) - (math.log10(spread) - decade)))
    # Read from a decimal text: 5 * 10**-4 would print as 0.0005, but 2 * 10**-5 as 2.0000000000000002e-05.
    return (float(f"{mantissa}e{decade - 2}"), float(f"{mantissa}e{decade - 1}"))


def gaussian_probabilities(edges: ArrayLike, standard_deviation: float = 1.0) -> Array:
    r"""What a histogram of centred Gaussian numbers has: the exact probability of each bin, and of what lies beyond.

    :math:`P_k = \Phi(e_{k+1}/\sigma) - \Phi(e_k/\sigma)`, with the digits of far tails. Displacements over
    :math:`\sqrt\Delta` would be so distributed, with :math:`\sigma = 1`, if weights moved like free random walkers; the
    self van Hove function of a glass has wider tails.

    Args:
        edges: of the bins, increasing, ``[n]``.
        standard_deviation: :math:`\sigma`.

    Returns:
        ``[n + 1]``, in the order of the counts of a :class:`~lightning_glassy.record.Profile`; the sum is 1.

    Example:
        >>> gaussian_probabilities([-1.0, 0.0, 1.0]).round(4).tolist()
        [0.1587, 0.3413, 0.3413, 0.1587]
    """
    (bounds,) = _float64(edges)
    scaled = np.concatenate([[-np.inf], bounds / (standard_deviation * math.sqrt(2)), [np.inf]])
    center, above = (np.array([f(x) for x in scaled]) / 2 for f in (math.erf, math.erfc))
    below = np.array([math.erfc(-x) for x in scaled]) / 2
    # Of three differences, which are equal, the one that does not cancel.
    tails = np.where(scaled[:-1] > 0.5, above[:-1] - above[1:], below[1:] - below[:-1])
    return np.where((scaled[:-1] <= 0.5) & (scaled[1:] >= -0.5), np.diff(center), tails)


def fold(edges: ArrayLike, counts: ArrayLike) -> tuple[Array, Array]:
    r"""The histogram of :math:`|x|` from that of x, whose bins lie symmetrically about 0.

    Args:
        edges: of the bins, an even number of them, increasing, ``[2 n]``.
        counts: ``[..., 2 n + 1]``, as in a :class:`~lightning_glassy.record.Profile`; or probabilities of the bins.

    Returns:
        The positive edges ``[n]``, and the counts ``[..., n + 1]``; the first one is that of x between the two edges
        next to 0.

    Raises:
        ValueError: bins that are not symmetric, or another number of counts.

    Example:
        >>> fold([-1.0, 1.0], [2, 5, 1])[1].tolist()
        [5.0, 3.0]
    """
    bounds, numbers = _float64(edges, counts)
    n = len(bounds) // 2
    if len(bounds) % 2 or not np.array_equal(bounds, -bounds[::-1]) or numbers.shape[-1] != 2 * n + 1:
        raise ValueError(f"{bounds.shape} edges and {numbers.shape} counts are no histogram that is symmetric about 0")
    folded = numbers[..., n:].copy()
    folded[..., 1:] += numbers[..., :n][..., ::-1]
    return bounds[n:], folded


def density(edges: ArrayLike, counts: ArrayLike) -> Array:
    r"""Probability density in each bin of a histogram, :math:`p_k = n_k / (N (e_{k+1} - e_k))`.

    Args:
        edges: of the bins, increasing, ``[n]``.
        counts: ``[..., n + 1]``, as in a :class:`~lightning_glassy.record.Profile`; N is their sum.

    Returns:
        ``[..., n - 1]``: what lies beyond the edges counts in N alone.
    """
    bounds, numbers = _float64(edges, counts)
    return _ratio(numbers[..., 1:-1], numbers.sum(axis=-1, keepdims=True) * np.diff(bounds))


def barrier_height(losses: ArrayLike) -> Array:
    r"""Height of the barrier on a line, :math:`\max_\alpha L(\alpha) - \max(L(0), L(1))`; never negative.

    Args:
        losses: at points along the line, its ends among them, ``[..., n_point]``.

    Returns:
        ``[...]``; 0 where no point is higher than both ends, as on a convex loss.

    Source: BJ18, who find that no barriers are crossed; the straight line gives an upper bound of the lowest pass.

    Example:
        >>> float(barrier_height([1.0, 3.0, 0.5]))
        2.0
    """
    (values,) = _float64(losses)
    with _quiet():
        return np.asarray(values.max(axis=-1) - np.maximum(values[..., 0], values[..., -1]))

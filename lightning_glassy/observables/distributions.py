"""Histograms, thresholds and barriers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from lightning_glassy.observables.arrays import Array, float64, quiet, ratio


def default_overlap_thresholds(standard_deviation: float) -> tuple[float, ...]:
    r"""Return the default thresholds :math:`\epsilon`: about a hundredth and a tenth of the spread of the weights.

    They are 5 times a power of ten, at most a factor of 3.2 away from a hundredth and a tenth of the spread. The
    spreads of the seeds of one model differ by a few percent, and this coarse rounding gives the same thresholds for
    all of them. The rounding has edges at spreads of 0.0158 times a power of ten. The two thresholds differ by a factor
    of ten, so networks on both sides of an edge share one threshold. Their overlaps at this threshold can be joined.
    Use :func:`relative_overlap_thresholds` for the thresholds of WJ24. If the spread is 0 (all weights start equal) or
    not finite, 1 replaces it.

    Example:
        >>> default_overlap_thresholds(0.058)
        (0.0005, 0.005)
    """
    spread = standard_deviation if 0 < standard_deviation < math.inf else 1.0
    # A record accepts thresholds from 1e-18 to 1e18.
    decade = min(max(round(math.log10(spread / 500)), -18), 16)
    # Parse a decimal text. The product 5 * 10**-5 prints as 5.000000000000001e-05.
    return (float(f"5e{decade}"), float(f"5e{decade + 1}"))


WINTER_JANSSEN_FACTORS = (300.0, 400.0, 500.0, 1000.0, 6000.0)
"""Standard deviation of the weights over the threshold of the overlap, in the released program of WJ24 for MNIST."""


def relative_overlap_thresholds(
    standard_deviation: float, factors: Sequence[float] = WINTER_JANSSEN_FACTORS
) -> tuple[float, ...]:
    r"""Return thresholds of the overlap relative to the spread of the weights, :math:`\epsilon = \sigma/\text{factor}`.

    Networks with weights of different size can then be compared. Pass the result as ``overlap_thresholds``. Use one
    standard deviation for all seeds of a model, for example the standard deviation of the initialisation. The overlaps
    of several runs can be joined only at equal thresholds.

    Source: WJ24. The released program has factors from 150 to 6000: the default here for MNIST, and 100 by default. Its
    overlap leaves out the output layer. The overlap of this package covers the requested group, so compare with a group
    of parameters without the output layer.

    Args:
        standard_deviation: standard deviation :math:`\sigma` of the weights, positive.
        factors: positive numbers.

    Returns:
        The thresholds, increasing.

    Raises:
        ValueError: the standard deviation or a factor is not a positive number, or a factor is repeated.

    Example:
        >>> [f"{eps:.3g}" for eps in relative_overlap_thresholds(0.06)]
        ['1e-05', '6e-05', '0.00012', '0.00015', '0.0002']
    """
    if not 0 < standard_deviation < math.inf:
        raise ValueError(f"standard_deviation={standard_deviation} must be a positive number")
    for i, factor in enumerate(factors):
        if not 0 < factor < math.inf or factor in factors[:i]:
            raise ValueError(f"factors[{i}]={factor} must be a positive number that is not there twice")
    return tuple(standard_deviation / factor for factor in sorted(factors, reverse=True))


def gaussian_probabilities(edges: ArrayLike, standard_deviation: float = 1.0) -> Array:
    r"""Return the exact probability of each bin, and of both sides beyond the bins, for centred Gaussian numbers.

    :math:`P_k = \Phi(e_{k+1}/\sigma) - \Phi(e_k/\sigma)`, without loss of digits in far tails. If weights moved like
    free random walkers, their displacements over :math:`\sqrt\Delta` would have this distribution with
    :math:`\sigma = 1`. The self van Hove function of a glass has wider tails.

    Args:
        edges: edges of the bins, increasing, ``[n]``.
        standard_deviation: :math:`\sigma`.

    Returns:
        ``[n + 1]``, in the order of the counts of a :class:`~lightning_glassy.record.Profile`. The sum is 1.

    Example:
        >>> gaussian_probabilities([-1.0, 0.0, 1.0]).round(4).tolist()
        [0.1587, 0.3413, 0.3413, 0.1587]
    """
    (bounds,) = float64(edges)
    scaled = np.concatenate([[-np.inf], bounds / (standard_deviation * math.sqrt(2)), [np.inf]])
    center, above = (np.array([f(x) for x in scaled]) / 2 for f in (math.erf, math.erfc))
    below = np.array([math.erfc(-x) for x in scaled]) / 2
    # Three differences give the same probability. Take the difference without cancellation.
    tails = np.where(scaled[:-1] > 0.5, above[:-1] - above[1:], below[1:] - below[:-1])
    return np.where((scaled[:-1] <= 0.5) & (scaled[1:] >= -0.5), np.diff(center), tails)


@quiet()
def fold(edges: ArrayLike, counts: ArrayLike) -> tuple[Array, Array]:
    r"""Return the histogram of :math:`|x|`, from a histogram of x with bins that are symmetric about 0.

    Args:
        edges: edges of the bins, an even number of them, increasing, ``[2 n]``.
        counts: ``[..., 2 n + 1]``, as in a :class:`~lightning_glassy.record.Profile`, or probabilities of the bins.

    Returns:
        The positive edges ``[n]``, and the counts ``[..., n + 1]``. The first count is the number of x between the two
        edges next to 0.

    Raises:
        ValueError: the bins are not symmetric, or the number of counts is wrong.

    Example:
        >>> fold([-1.0, 1.0], [2, 5, 1])[1].tolist()
        [5.0, 3.0]
    """
    bounds, numbers = float64(edges, counts)
    n = len(bounds) // 2
    if len(bounds) % 2 or not np.array_equal(bounds, -bounds[::-1]) or numbers.shape[-1] != 2 * n + 1:
        raise ValueError(f"{bounds.shape} edges and {numbers.shape} counts are no histogram that is symmetric about 0")
    folded = numbers[..., n:].copy()
    folded[..., 1:] += numbers[..., :n][..., ::-1]
    return bounds[n:], folded


@quiet()
def density(edges: ArrayLike, counts: ArrayLike) -> Array:
    r"""Return the probability density in each bin of a histogram, :math:`p_k = n_k / (N (e_{k+1} - e_k))`.

    Args:
        edges: edges of the bins, increasing, ``[n]``.
        counts: ``[..., n + 1]``, as in a :class:`~lightning_glassy.record.Profile`. N is their sum.

    Returns:
        ``[..., n - 1]``. The counts beyond the edges enter only N.
    """
    bounds, numbers = float64(edges, counts)
    return ratio(numbers[..., 1:-1], numbers.sum(axis=-1, keepdims=True) * np.diff(bounds))


def barrier_height(losses: ArrayLike) -> Array:
    r"""Return the height of the barrier on a line, :math:`\max_\alpha L(\alpha) - \max(L(0), L(1)) \ge 0`.

    Args:
        losses: losses at points along the line, from one end to the other, ``[..., n_point]``.

    Returns:
        ``[...]``. The height is 0 if no point is higher than both ends, as on a convex loss.

    Source: BJ18, who find that no barriers are crossed. The straight line gives an upper bound of the lowest pass.

    Example:
        >>> float(barrier_height([1.0, 3.0, 0.5]))
        2.0
    """
    (values,) = float64(losses)
    with quiet():
        return np.asarray(values.max(axis=-1) - np.maximum(values[..., 0], values[..., -1]))

r"""Two-time observables: one formula per quantity, and below each formula its entry in the registry.

:math:`w` are the weights at step :math:`t_w + t`, :math:`s` are the weights at step :math:`t_w` (the snapshot), and
:math:`d = w - s`. An argument ``sum_d2`` is the sum of :math:`d^2` over the :math:`n` measured coordinates, and so on.
A formula takes and returns float64 arrays of any shape, and broadcasts as NumPy does. It gives NaN if a quantity is not
defined.

Sources: BJ18 is Baity-Jesi et al. 2018 (arXiv 1803.06969), WJ24 is Winter and Janssen 2024 (arXiv 2405.13098).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from lightning_glassy.observables.arrays import Array, float64, jackknife_error, quiet, ratio
from lightning_glassy.observables.registry import Error, Observable, Relaxation, register

CorrelationKind = Literal["raw", "cosine", "centred", "pearson"]

# ---------------------------------------------------------------------- displacement


def msd(sum_d2: ArrayLike, n: ArrayLike) -> Array:
    r"""Mean squared displacement :math:`\Delta(t_w, t_w+t) = \frac{1}{N}\sum_i [w_i(t_w+t) - w_i(t_w)]^2`.

    Source: BJ18, the quantity plotted throughout. The average is over coordinates, not over runs.

    Example:
        >>> float(msd(sum_d2=2.0, n=100))
        0.02
    """
    return ratio(*float64(sum_d2, n))


@quiet()
def msd_standard_error(sum_d2: ArrayLike, sum_d4: ArrayLike, n: ArrayLike, population: ArrayLike) -> Array:
    r"""Standard error of a sampled MSD: :math:`\sqrt{(\langle d^4\rangle - \langle d^2\rangle^2)/(n-1)}\,\sqrt{1-n/N}`.

    The mean over ``population`` coordinates is estimated from a simple random sample of ``n`` of them, drawn without
    replacement. The error is 0 if all coordinates were measured. It does not include the scatter between runs, which
    needs replicas.
    """
    d2, d4, count, total = float64(sum_d2, sum_d4, n, population)
    variance = np.maximum(ratio(d4, count) - ratio(d2, count) ** 2, 0.0)
    return _sampling_error(variance, count, total)


def _sampling_error(variance: Array, n: Array, population: Array) -> Array:
    return np.sqrt(np.where(n < population, ratio(variance, n - 1) * (1 - n / population), 0.0))


register(
    Observable(
        name="msd",
        title="mean squared displacement",
        symbol=r"\Delta(t_w, t_w+t)",
        formula=msd,
        inputs=("d2", "n"),
        log=True,
        relaxation=Relaxation("MSD", r"\Delta"),
        error=Error(msd_standard_error, ("d2", "d4", "n", "population")),
        logged=True,
        drawn=True,
    )
)


@quiet()
def normalised_msd(msd: ArrayLike, noise: ArrayLike) -> Array:
    r"""Displacement over the strength of the gradient noise, :math:`\Delta(t_w, t_w+t)/D(t_w)`.

    A system that diffuses at the bottom of its landscape has the same curve for every waiting time.

    Source: BJ18.

    Example:
        >>> float(normalised_msd(msd=0.5, noise=2.0))
        0.25
    """
    delta, strength = float64(msd, noise)
    return np.asarray(delta / strength)


register(
    Observable(
        name="normalised_msd",
        title="displacement over the noise",
        symbol=r"\Delta(t_w, t_w+t)/D(t_w)",
        formula=normalised_msd,
        inputs=("msd", "noise"),
        log=True,
        relaxation=Relaxation("MSD over the noise strength", r"\Delta/D"),
    )
)


@quiet()
def relative_displacement(msd: ArrayLike, sum_s2: ArrayLike, n: ArrayLike) -> Array:
    r"""Rms displacement over the rms weight at the waiting time, :math:`\sqrt{\Delta / \langle s^2\rangle}`.

    It is a plain number: 0.1 means that the weights have moved by 10 % of their size. It compares networks whose
    weights have different sizes. It is NaN if all weights are 0 at the waiting time.

    Example:
        >>> float(relative_displacement(msd=0.0001, sum_s2=100.0, n=10000))
        0.1
    """
    delta, s2, count = float64(msd, sum_s2, n)
    return np.asarray(np.sqrt(ratio(delta, ratio(s2, count))))


register(
    Observable(
        name="relative_displacement",
        title="relative displacement",
        symbol=r"\delta(t_w, t_w+t)",
        formula=relative_displacement,
        inputs=("msd", "s2", "n"),
        log=True,
    )
)

# ---------------------------------------------------------------------- correlation


@quiet()
def correlation_raw(sum_ws: ArrayLike, n: ArrayLike) -> Array:
    r"""Correlation :math:`C(t_w, t_w+t) = \frac{1}{N}\sum_i w_i s_i`, the quantity of mean-field spin glasses."""
    return ratio(*float64(sum_ws, n))


@quiet()
def correlation_cosine(sum_ws: ArrayLike, sum_w2: ArrayLike, sum_s2: ArrayLike) -> Array:
    r"""Cosine correlation :math:`\sum w s / \sqrt{\sum w^2 \sum s^2}`, the overlap of the directions.

    A cosine close to 1 has lost its digits. Use :func:`decorrelation` for :math:`1 - C`.
    """
    ws, w2, s2 = float64(sum_ws, sum_w2, sum_s2)
    return ratio(ws, np.sqrt(w2 * s2))


@quiet()
def correlation_centred(sum_ws: ArrayLike, sum_w: ArrayLike, sum_s: ArrayLike, n: ArrayLike) -> Array:
    r"""Connected correlation :math:`\langle ws\rangle - \langle w\rangle\langle s\rangle`."""
    ws, w, s, count = float64(sum_ws, sum_w, sum_s, n)
    return np.asarray(ratio(ws, count) - ratio(w, count) * ratio(s, count))


@quiet()
def correlation_pearson(
    sum_ws: ArrayLike, sum_w2: ArrayLike, sum_s2: ArrayLike, sum_w: ArrayLike, sum_s: ArrayLike, n: ArrayLike
) -> Array:
    """Connected correlation over the two standard deviations."""
    w2, s2, w, s, count = float64(sum_w2, sum_s2, sum_w, sum_s, n)
    variances = (ratio(w2, count) - ratio(w, count) ** 2) * (ratio(s2, count) - ratio(s, count) ** 2)
    return ratio(correlation_centred(sum_ws, w, s, count), np.sqrt(np.maximum(variances, 0.0)))


def correlation(
    sum_ws: ArrayLike,
    sum_w2: ArrayLike,
    sum_s2: ArrayLike,
    sum_w: ArrayLike,
    sum_s: ArrayLike,
    n: ArrayLike,
    kind: CorrelationKind = "raw",
) -> Array:
    r"""Two-time correlation of the weights in one of four normalisations.

    ``"raw"`` is :func:`correlation_raw`, ``"cosine"`` is :func:`correlation_cosine`, ``"centred"`` is
    :func:`correlation_centred` and ``"pearson"`` is :func:`correlation_pearson`.

    Raises:
        ValueError: ``kind`` is none of the four.
    """
    if kind == "raw":
        return correlation_raw(sum_ws, n)
    if kind == "cosine":
        return correlation_cosine(sum_ws, sum_w2, sum_s2)
    if kind == "centred":
        return correlation_centred(sum_ws, sum_w, sum_s, n)
    if kind == "pearson":
        return correlation_pearson(sum_ws, sum_w2, sum_s2, sum_w, sum_s, n)
    raise ValueError(f"kind={kind!r} is not one of 'raw', 'cosine', 'centred', 'pearson'")


register(
    Observable(
        name="correlation_raw",
        title="correlation",
        symbol=r"C_\mathrm{raw}(t_w, t_w+t)",
        formula=correlation_raw,
        inputs=("ws", "n"),
    )
)
register(
    Observable(
        name="correlation_cosine",
        title="cosine correlation",
        symbol=r"C(t_w, t_w+t)",
        formula=correlation_cosine,
        inputs=("ws", "w2", "s2"),
    )
)
register(
    Observable(
        name="correlation_centred",
        title="centred correlation",
        symbol=r"C_\mathrm{centred}(t_w, t_w+t)",
        formula=correlation_centred,
        inputs=("ws", "w", "s", "n"),
    )
)
register(
    Observable(
        name="correlation_pearson",
        title="Pearson correlation",
        symbol=r"C_\mathrm{Pearson}(t_w, t_w+t)",
        formula=correlation_pearson,
        inputs=("ws", "w2", "s2", "w", "s", "n"),
    )
)


@quiet()
def decorrelation(sum_d2: ArrayLike, sum_w2: ArrayLike, sum_s2: ArrayLike) -> Array:
    r"""Loss of the cosine correlation, :math:`1 - C`, computed from the displacement.

    :math:`1 - C = \frac{\sum d^2 - (|w| - |s|)^2}{2 |w| |s|}` keeps its digits at short lags. Subtracting a measured C
    from 1 would leave only rounding errors there. The formula loses digits if the norm changes by a factor 1 + r while
    the direction changes much less. The relative error is then about ``1e-9 r/(1 - C)``, if the moments were summed on
    the device.

    Example:
        >>> float(decorrelation(sum_d2=2.0, sum_w2=1.0, sum_s2=1.0))  # orthogonal
        1.0
    """
    d2, w2, s2 = float64(sum_d2, sum_w2, sum_s2)
    w, s = np.sqrt(w2), np.sqrt(s2)
    return ratio(d2 - (w - s) ** 2, 2 * w * s)


register(
    Observable(
        name="decorrelation",
        title="decorrelation",
        symbol=r"1 - C(t_w, t_w+t)",
        formula=decorrelation,
        inputs=("d2", "w2", "s2"),
        log=True,
        relaxation=Relaxation("decorrelation 1 - C", "1 - C", correlation=True),
        logged=True,
    )
)

# ---------------------------------------------------------------------- distribution of the displacements


@quiet()
def non_gaussian(sum_d2: ArrayLike, sum_d4: ArrayLike, n: ArrayLike) -> Array:
    r"""Non-Gaussian parameter :math:`\alpha_2 = \langle d^4\rangle / (3\langle d^2\rangle^2) - 1`.

    It is 0 for Gaussian displacements, positive if a few coordinates move much more than the rest, and never below
    -2/3. It is NaN if nothing moved.

    Source: BJ18 (fourth moment), WJ24.

    Example:
        >>> float(non_gaussian(sum_d2=100.0, sum_d4=300.0, n=100))
        0.0
    """
    d2, d4, count = float64(sum_d2, sum_d4, n)
    alpha = ratio(d4 * count, 3 * d2**2) - 1
    # <d^4> is at least <d^2>^2. A smaller value, or infinity, means that fourth powers exceed the range of their
    # floats.
    return np.where(np.isfinite(alpha) & (alpha > -2 / 3 - 1e-4), alpha, np.nan)


register(
    Observable(
        name="non_gaussian",
        title="non-Gaussian parameter",
        symbol=r"\alpha_2(t_w, t_w+t)",
        formula=non_gaussian,
        inputs=("d2", "d4", "n"),
        logged=True,
        drawn=True,
    )
)


def overlap(count: ArrayLike, sum_d2: ArrayLike, n: ArrayLike) -> Array:
    r"""Overlap :math:`Q_\epsilon(t_w, t_w+t)`: the fraction of coordinates with :math:`|w_i - s_i| \le \epsilon`.

    It is NaN if the displacements are not finite, because a NaN is neither near nor far.

    Source: WJ24, with :math:`\epsilon` relative to the standard deviation of the weights
    (:func:`~lightning_glassy.observables.relative_overlap_thresholds`). The overlap of WJ24 leaves out the output
    layer. Here, it covers the requested group.
    """
    near, d2, total = float64(count, sum_d2, n)
    return np.where(np.isfinite(d2), ratio(near, total), np.nan)


@quiet()
def overlap_standard_error(count: ArrayLike, sum_d2: ArrayLike, n: ArrayLike, population: ArrayLike) -> Array:
    r"""Standard error of a sampled overlap, :math:`\sqrt{Q(1-Q)/(n-1)}\,\sqrt{1-n/N}`.

    The sample is drawn as in :func:`msd_standard_error`.
    """
    sampled, total = float64(n, population)
    q = overlap(count, sum_d2, sampled)
    return _sampling_error(q * (1 - q), sampled, total)


register(
    Observable(
        name="overlap",
        title="overlap",
        symbol=r"Q_\epsilon(t_w, t_w+t)",
        formula=overlap,
        inputs=("count", "d2", "n"),
        relaxation=Relaxation("overlap 1 - Q", r"1 - Q_\epsilon", falls=True, correlation=True),
        error=Error(overlap_standard_error, ("count", "d2", "n", "population")),
        logged=True,
        drawn=True,
    )
)


@quiet()
def free_overlap(msd: ArrayLike, eps: ArrayLike) -> Array:
    r"""Overlap of Gaussian displacements with a given MSD, :math:`Q_\epsilon = \mathrm{erf}(\epsilon/\sqrt{2\Delta})`.

    Free diffusion, :math:`\Delta = 2Dt`, gives :math:`\mathrm{erf}(\epsilon/\sqrt{4Dt})`. If a few coordinates carry
    most of the displacement, a measured overlap is above this line, for :math:`\epsilon` up to about the rms
    displacement. It is below the line for a much larger :math:`\epsilon`. The formula needs a threshold, which is no
    input of the observables in the registry, so it is a function only.

    Source: WJ24.

    Args:
        msd: mean squared displacement :math:`\Delta`, of any shape.
        eps: threshold :math:`\epsilon` of the overlap.

    Example:
        >>> free_overlap(msd=[0.0, 1.0], eps=1.0).round(4).tolist()
        [1.0, 0.6827]
    """
    delta, threshold = float64(msd, eps)
    return np.where(np.isfinite(delta), _erf(threshold / np.sqrt(2 * delta)), np.nan)


_erf = np.vectorize(math.erf, otypes=[np.float64])


def binder_cumulant(sum_d2: ArrayLike, sum_d4: ArrayLike, n: ArrayLike) -> Array:
    r"""Binder cumulant of the displacements, :math:`U = 1 - \langle d^4\rangle / (3\langle d^2\rangle^2)`.

    It is 0 for Gaussian displacements, 2/3 if all coordinates move by the same distance, and negative if a few
    coordinates move much more than the rest. The averages are over coordinates. It is minus :func:`non_gaussian`, under
    the usual name for order parameters. It is NaN if nothing moved.

    Source: Binder 1981, Z. Phys. B 43, 119 (for the magnetisation).

    Example:
        >>> round(float(binder_cumulant(sum_d2=100.0, sum_d4=100.0, n=100)), 6)  # all by the same distance
        0.666667
    """
    return np.asarray(-non_gaussian(sum_d2, sum_d4, n))


register(
    Observable(
        name="binder_cumulant",
        title="Binder cumulant",
        symbol=r"U(t_w, t_w+t)",
        formula=binder_cumulant,
        inputs=("d2", "d4", "n"),
    )
)

# ---------------------------------------------------------------------- along a curve


def local_exponent(lags: ArrayLike, msd: ArrayLike) -> Array:
    r"""Local exponent :math:`\gamma(t_w, t) = \partial\ln\Delta / \partial\ln t` along the last axis.

    A value of 1 is diffusion, 2 is ballistic motion, and 0 is a plateau. The derivative is taken by second-order
    differences of the logarithms over the measured lags. It is NaN at lag 0, and at points with a :math:`\Delta` that
    is not positive. All points are NaN if fewer than two points are left.

    Args:
        lags: ``[n_lag]``, in steps.
        msd: ``[..., n_lag]``.

    Raises:
        ValueError: the last axis of ``msd`` is not as long as ``lags``.

    Example:
        >>> local_exponent([1, 10, 100], [2.0, 20.0, 200.0]).round(12).tolist()
        [1.0, 1.0, 1.0]
    """
    t, delta = float64(lags, msd)
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


register(
    Observable(
        name="local_exponent",
        title="local exponent",
        symbol=r"\partial\ln\Delta/\partial\ln t",
        formula=local_exponent,
        inputs=("lags", "msd"),
        of_mean=True,
    )
)

# ---------------------------------------------------------------------- response to a field


@quiet()
def response(field_displacement: ArrayLike, field: ArrayLike, population: ArrayLike) -> Array:
    r"""Integrated response :math:`\chi(t_w+t, t_w) = \frac{1}{hN}\sum_i \epsilon_i\,[w^h_i(t_w+t) - w_i(t_w+t)]`.

    :math:`w^h` are the weights of a clone that has the term :math:`-h\sum_i\epsilon_i w_i` in its loss since
    :math:`t_w`. The signs :math:`\epsilon_i = \pm 1` are random. In equilibrium at the temperature T, the
    fluctuation-dissipation theorem is :math:`\chi = \Delta/(2T)`.

    Source: Cugliandolo and Kurchan 1993, Phys. Rev. Lett. 71, 173. The random field is the usual method of simulations
    of glasses.

    Example:
        >>> float(response(field_displacement=0.2, field=0.01, population=100))
        0.2
    """
    total, h, n = float64(field_displacement, field, population)
    return ratio(total, h * n)


@quiet()
def response_error(
    field_displacement: ArrayLike, response_d2: ArrayLike, field: ArrayLike, population: ArrayLike
) -> Array:
    r"""Bound of the error of a response over random fields: :math:`\sqrt{2(\langle d^2\rangle/h^2 - \chi^2)/N}`.

    Let :math:`G_{ij}` be the response of weight i to a field on weight j. Over the signs, the measured response has the
    mean :math:`\operatorname{tr}G/N` and, for a symmetric G, the variance :math:`2\sum_{i\ne j}G_{ij}^2/N^2`. It is at
    most the square of the bound, because :math:`\langle d^2\rangle/h^2` has the mean :math:`\sum_{ij}G_{ij}^2/N`. The
    bound does not include the scatter between runs, which needs replicas.
    """
    total, d2, h, n = float64(field_displacement, response_d2, field, population)
    chi = ratio(total, h * n)
    return np.asarray(np.sqrt(np.maximum(2 * (ratio(d2, h * h * n) - chi**2) / n, 0.0)))


# ---------------------------------------------------------------------- between replicas


@quiet()
def chi4(values: ArrayLike, n: ArrayLike) -> Array:
    r"""Dynamical susceptibility :math:`\chi_4 = N\,\mathrm{Var}(Q)`, the variance taken over replicas.

    It is :math:`\langle w^2\rangle\langle s^2\rangle + C^2` if Q is the correlation C of independent Gaussian
    coordinates. It is :math:`Q(1-Q)` if Q is an overlap of coordinates that are near or far independently of each
    other. It grows with the number of coordinates that move together. The variance is unbiased, with :math:`1/(R-1)`.

    Args:
        values: an overlap or a correlation, ``[n_replica, ...]``.
        n: number N of coordinates that each value averages over.

    Returns:
        ``[...]``. NaN if a replica was not measured, or with fewer than two replicas.

    Source: the usual four-point susceptibility of glasses, a fluctuation of the overlap. WJ24 for overlaps of networks.
    """
    of_replicas, count = float64(values, n)
    if len(of_replicas) < 2:
        return np.full(of_replicas.shape[1:], np.nan)
    return np.asarray(count * of_replicas.var(axis=0, ddof=1))


@quiet()
def chi4_error(values: ArrayLike, n: ArrayLike) -> Array:
    r"""Standard error of :func:`chi4` by the jackknife, :math:`\sqrt{\frac{R-1}{R}\sum_r (\chi_{(r)} - \bar\chi)^2}`.

    :math:`\chi_{(r)}` is computed without replica r. Arguments and shapes are as in :func:`chi4`. The error is NaN with
    fewer than three replicas.
    """
    of_replicas, count = float64(values, n)
    n_replica = len(of_replicas)
    if n_replica < 3:
        return np.full(of_replicas.shape[1:], np.nan)
    # Use a formula to leave out one replica at a time, instead of copying the values of all other replicas.
    mean, total = of_replicas.mean(axis=0), ((of_replicas - of_replicas.mean(axis=0)) ** 2).sum(axis=0)
    without = (total - n_replica / (n_replica - 1) * (of_replicas - mean) ** 2) / (n_replica - 2)
    return np.asarray(count * jackknife_error(without))


register(
    Observable(
        name="chi4_correlation",
        title="susceptibility of the correlation",
        symbol=r"\chi_4^C(t_w, t_w+t)",
        formula=chi4,
        inputs=("correlation_raw", "n"),
        over_replicas=True,
        error=Error(chi4_error, ("correlation_raw", "n")),
    )
)
register(
    Observable(
        name="chi4",
        title="dynamical susceptibility",
        symbol=r"\chi_4(t_w, t_w+t)",
        formula=chi4,
        inputs=("overlap", "n"),
        over_replicas=True,
        error=Error(chi4_error, ("overlap", "n")),
    )
)


def replica_overlap(products: ArrayLike) -> Array:
    r"""Overlap of replicas :math:`q_{ab} = \sum w_a w_b / \sqrt{\sum w_a^2 \sum w_b^2}`, from the sums of products.

    Args:
        products: ``[..., n_replica, n_replica]``, the sums of squares on the diagonal.
    """
    sums = np.asarray(products, dtype=np.float64)
    squares = np.diagonal(sums, axis1=-2, axis2=-1)
    with quiet():
        return ratio(sums, np.sqrt(squares[..., :, None] * squares[..., None, :]))

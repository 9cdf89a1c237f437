"""Relaxation times of records whose relaxation is known."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_glassy.analysis.collapse import CollapseQuality

# ---------------------------------------------------------------------- residuals of a collapse


def test_the_squares_of_the_residuals_over_their_errors_have_the_mean_s() -> None:
    rng = np.random.default_rng(0)
    waiting_times, lags = np.unique(np.geomspace(10, 1e4, 9).astype(np.int64)), 2 ** np.arange(12)
    curves = rng.lognormal(sigma=0.1, size=(2, 3, 9, 12)) * lags**0.7
    curves[1, 2, 4, 6] = np.nan  # left out of all sets
    errors = rng.uniform(0.05, 0.2, size=(9, 12))
    quality = CollapseQuality(waiting_times, lags, curves, errors, scatter=0.01)
    for mu, variable, t0 in ((0.4, "effective", 0.0), (0.8, "plain", 5.0)):
        misfits, uncertain = quality.residuals(mu, variable, t0)
        assert misfits.shape == (2, 3, 9, 12)
        assert uncertain.shape == (9, 12)
        assert np.array_equal(np.isnan(misfits[0, 0]), np.isnan(uncertain))
        assert np.isnan(uncertain[4, 6])
        assert (uncertain[np.isfinite(uncertain)] > 0.05).all()
        squares = (misfits / uncertain) ** 2
        assert np.allclose(np.nanmean(squares, axis=(-2, -1)), quality(mu, variable, t0), rtol=1e-12)


def test_the_residual_of_a_point_off_a_perfect_collapse_is_its_distance() -> None:
    waiting_times, lags = 2 ** np.arange(5, 11), 2 ** np.arange(12)
    curves = (lags / waiting_times[:, None] ** 0.5) ** 0.8
    curves[2, 5] *= np.exp(0.3)
    quality = CollapseQuality(waiting_times, lags, curves, np.full(curves.shape, 0.01))
    misfits, errors = quality.residuals(0.5, "plain")
    assert misfits[2, 5] == pytest.approx(0.3)
    assert np.abs(misfits[2, np.arange(12) != 5]).max() < 1e-12  # its own curve is no neighbour
    # Each of the five other curves has two neighbours with the error 0.01.
    assert 0.01 * np.sqrt(1 + 1 / 10) <= errors[2, 5] < 0.01 * np.sqrt(1 + 1 / 5)

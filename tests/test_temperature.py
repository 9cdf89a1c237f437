"""The laws of Arrhenius and of Vogel, Fulcher and Tammann, on synthetic times and on trainings in a double well."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_glassy import AgingMonitor, LogTimeSchedule, ReplicaEnsemble
from lightning_glassy.analysis import NotEnoughDataError, relaxation_times
from lightning_glassy.analysis.temperature import TemperatureLaw, fit_arrhenius, fit_vft
from lightning_glassy.langevin import Langevin
from tests.helpers import quiet_trainer

Floats = NDArray[np.float64]

KT = np.geomspace(0.2, 0.8, 8)
ERRORS = 0.01 * np.linspace(1, 3, 8)  # relative errors of the times


def noisy(exact: Floats, n: int) -> Floats:
    """Return ``n`` repetitions of measured times, ``[n, n_kT]``."""
    return np.asarray(exact * np.exp(ERRORS * np.random.default_rng(3).normal(size=(n, len(exact)))))


def scores(laws: list[TemperatureLaw], true: dict[str, float]) -> Floats:
    """Return the deviations from the true parameters in units of their errors, ``[n_law, n_parameter]``."""
    return np.array([[(law.parameters[name] - true[name]) / law.errors[name] for name in true] for law in laws])


def check(z: Floats, *, scale: float = 1.0) -> None:
    """Check that scores have mean 0 and rms ``scale``, within 4 errors and a bias of the nonlinear parameters."""
    n = len(z)
    assert np.abs(z.mean(axis=0)).max() < 4 / math.sqrt(n) + 0.05
    assert np.abs(z.std(axis=0) / scale - 1).max() < 4 / math.sqrt(2 * n) + 0.05


def test_arrhenius_finds_the_parameters_within_their_errors() -> None:
    true = {"tau_0": 4.0, "E": 1.5}
    exact = 4 * np.exp(1.5 / KT)
    laws = [fit_arrhenius(KT, tau, error=ERRORS * tau) for tau in noisy(exact, 500)]
    check(scores(laws, true))
    chi2 = np.array([law.chi2 for law in laws])
    assert laws[0].degrees_of_freedom == 6
    assert abs(chi2.mean() - 6) < 4 * math.sqrt(12 / 500)
    assert sum(bool(law.doubts) for law in laws) < 10  # chi squared alone, now and then
    assert laws[0].tau([0.3, -1.0]) == pytest.approx([4 * math.exp(5), np.nan], rel=0.05, nan_ok=True)


def test_errors_from_the_residuals_have_the_spread_of_students_t() -> None:
    rng, exact = np.random.default_rng(1), 4 * np.exp(1.5 / KT)
    laws = [fit_arrhenius(KT, exact * np.exp(0.02 * rng.normal(size=8))) for _ in range(500)]
    check(scores(laws, {"tau_0": 4.0, "E": 1.5}), scale=math.sqrt(6 / 4))  # t with 6 degrees of freedom
    assert math.isnan(laws[0].chi2)
    assert laws[0].misfit == pytest.approx(0.02, rel=0.6)


def test_vft_finds_the_parameters_within_their_errors() -> None:
    true = {"tau_0": 10.0, "B": 0.5, "T_0": 0.1}
    exact = 10 * np.exp(0.5 / (KT - 0.1))
    laws = [fit_vft(KT, tau, error=ERRORS * tau) for tau in noisy(exact, 400)]
    check(scores(laws, true))
    chi2 = np.array([law.chi2 for law in laws])
    assert abs(chi2.mean() - 5) < 4 * math.sqrt(10 / 400)
    assert sum(bool(law.doubts) for law in laws) < 10
    assert laws[0].tau([0.05]).tolist() == pytest.approx([np.nan], nan_ok=True)
    bent = fit_arrhenius(KT, exact, error=ERRORS * exact)
    assert bent.chi2 > 100  # the law of Arrhenius does not fit such times
    assert "the law does not fit" in bent.doubts[-1]


def test_without_noise_both_laws_are_exact_in_any_units() -> None:
    for unit in (1e-8, 1.0, 1e5):
        kT = unit * KT
        straight = fit_arrhenius(kT, 3 * np.exp(2 * unit / kT))
        assert straight.parameters == pytest.approx({"tau_0": 3, "E": 2 * unit}, rel=1e-9)
        bent = fit_vft(kT, 3 * np.exp(0.7 * unit / (kT - 0.15 * unit)))
        assert bent.parameters == pytest.approx({"tau_0": 3, "B": 0.7 * unit, "T_0": 0.15 * unit}, rel=1e-5)
        assert bent.tau(kT) == pytest.approx(3 * np.exp(0.7 * unit / (kT - 0.15 * unit)), rel=1e-6)


def test_the_errors_are_the_curvature_of_chi_squared() -> None:
    """At one error from the estimate, with the other parameters at their best, chi squared is larger by 1."""
    tau = noisy(4 * np.exp(1.5 / KT), 1)[0]
    law = fit_arrhenius(KT, tau, error=ERRORS * tau)
    y = np.log(tau) - (law.parameters["E"] + law.errors["E"]) / KT
    weights = ERRORS**-2
    squares = (weights * (y - np.average(y, weights=weights)) ** 2).sum()
    assert squares - law.chi2 == pytest.approx(1, rel=1e-6)


def test_arrhenius_times_put_the_vft_law_at_its_bound_or_leave_it_uncertain() -> None:
    exact = 4 * np.exp(1.5 / KT)
    laws = [fit_vft(KT, tau, error=ERRORS * tau) for tau in noisy(exact, 100)]
    at_bound = [law for law in laws if law.parameters["T_0"] == 0]
    assert 30 < len(at_bound) < 70  # half of the noise bends the other way
    assert all("T_0 is at its lower bound 0" in law.doubts[0] for law in at_bound)
    fell = [
        fit_arrhenius(KT, tau, error=ERRORS * tau).chi2 - law.chi2
        for tau, law in zip(noisy(exact, 100), laws, strict=True)
    ]
    assert min(fell) > -1e-6
    assert np.mean(fell) < 1
    few = fit_vft(KT[4:], exact[4:], error=0.3 * exact[4:])
    assert any("error of T_0 is larger than its range" in doubt for doubt in few.doubts)


def test_a_divergence_at_the_lowest_temperature_is_a_doubt() -> None:
    tau = np.array([1e9, 10.0, 10.0, 10.0, 10.0])
    law = fit_vft([0.1, 0.2, 0.3, 0.4, 0.5], tau, error=0.1 * tau)
    assert any("upper bound, the lowest temperature kT=0.1: measure lower" in doubt for doubt in law.doubts)


def test_times_that_are_not_known_are_left_out_with_a_doubt() -> None:
    tau = 4 * np.exp(1.5 / KT)
    tau[0], tau[1] = np.nan, np.inf
    error = 0.1 * tau
    law = fit_arrhenius(KT, tau, error=error)
    assert law.n == 6
    assert law.parameters["E"] == pytest.approx(1.5)
    assert law.doubts[0] == "no relaxation time is known at kT = 0.2, 0.2438: the fit leaves it out"
    assert "! no relaxation time" in str(law)
    assert str(law).startswith("Arrhenius: tau = tau_0 exp(E/kT), tau_0 = 4 +- ")


def test_times_that_do_not_grow_are_a_doubt() -> None:
    for fit in (fit_arrhenius, fit_vft):
        law = fit(KT, 1 + KT, error=0.1 + 0 * KT)
        assert any("does not grow as the temperature falls" in doubt for doubt in law.doubts)
    constant = fit_vft(KT, np.full(8, 7.0), error=np.full(8, 0.1))
    assert constant.parameters["tau_0"] == pytest.approx(7)
    assert not constant.errors["T_0"] < 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0.1, 0.2, 0.3], [1, 2]), r"kT of shape \(3,\), tau of shape \(2,\): give one list of each"),
        (([0.0, 0.2, 0.3], [1, 2, 3]), "must be finite and positive: leave out runs without temperature"),
        (([0.1, 0.2, 0.3], [1, 2, -3]), "must be positive, or NaN if a run does not determine it"),
        (([0.1, 0.2, 0.3], [1, 2, 3], [1, 0, 1]), "leave out error if it is not known"),
        (([0.1, 0.2, 0.3], [1, 2, 3], [1, np.nan, 1]), "error=.* must be finite and positive for each tau"),
    ],
)
def test_bad_arguments_are_refused(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit_arrhenius(*arguments)


def test_too_few_temperatures_are_refused() -> None:
    with pytest.raises(
        NotEnoughDataError, match=r"2 temperatures have a relaxation time, .* Arrhenius needs at least 3"
    ):
        fit_arrhenius([0.1, 0.2, 0.2, 0.3], [4, 3, 2, np.nan])
    with pytest.raises(NotEnoughDataError, match=r"3 temperatures .* Vogel-Fulcher-Tammann needs at least 4"):
        fit_vft([0.1, 0.2, 0.3], [4, 3, 2])


# ---------------------------------------------------------------------- trainings in a double well

H, N_REPLICA, N = 0.05, 8, 1500


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(N))

    def forward(self, x: Tensor) -> Tensor:
        return ((self.w**2 - 1) ** 2).sum() + 0 * x.sum()


class DoubleWell(LightningModule):
    """Independent weights on the loss (w^2 - 1)^2, a barrier of height 1, in replicas."""

    def __init__(self, start: Floats, kT: float, steps: int) -> None:
        super().__init__()
        self.ensemble, self.kT, self.steps = ReplicaEnsemble(Weights, N_REPLICA), kT, steps
        (self.w,) = self.ensemble.parameters()
        self.w.data = torch.as_tensor(start, dtype=torch.float32)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return ((self.w**2 - 1) ** 2).sum()

    def train_dataloader(self) -> Any:
        return DataLoader(torch.zeros(self.steps), batch_size=1)  # type: ignore[arg-type]

    def configure_optimizers(self) -> Any:
        return Langevin(self.parameters(), lr=H, kT=self.kT, seed=7)


class Chain:
    """The weights of the Euler scheme as a Markov chain on a fine grid: its stationary state and its correlation."""

    def __init__(self, kT: float) -> None:
        self.grid, spread = np.linspace(-2.6, 2.6, 261), math.sqrt(2 * H * kT)
        after = self.grid - H * 4 * self.grid * (self.grid**2 - 1)
        kernel = np.exp(-((self.grid - after[:, None]) ** 2) / (2 * spread**2))
        self.kernel = kernel / kernel.sum(axis=1, keepdims=True)
        at_rest = np.linalg.matrix_power(self.kernel, 2**16)[130]
        self.at_rest = at_rest / at_rest.sum()

    def correlation(self, lags: NDArray[np.int64]) -> Floats:
        """Return the correlation coefficient of the weights at two times, at each lag."""
        found, w = [], self.grid.copy()
        for n in range(int(lags[-1]) + 1):
            if n in lags:
                found.append((self.at_rest * self.grid * w).sum())
            w = self.kernel @ w
        return np.asarray(np.array(found) / (self.at_rest * self.grid**2).sum())

    def draw(self, rng: np.random.Generator) -> Floats:
        drawn = rng.choice(self.grid, size=(N_REPLICA, N), p=self.at_rest)
        width = self.grid[1] - self.grid[0]
        return np.asarray(drawn + width * (rng.random(drawn.shape) - 0.5))


def test_relaxation_in_a_double_well_is_thermally_activated(tmp_path: Path) -> None:
    """The relaxation times of trainings at four temperatures agree with the exact chain, and show the barrier.

    Kramers: at low temperature, tau -> exp(1/kT) pi / (2 sqrt(8)) in units of time.
    """
    temperatures, rng = np.array([0.28, 0.34, 0.44, 0.6]), np.random.default_rng(2)
    times, errors, exact = [], [], []
    for kT in temperatures:
        steps = int(1.5 * 0.7 * math.exp(1 / kT) / H)
        lags = np.unique(np.geomspace(1, steps, 50).astype(int))
        chain, monitor = Chain(kT), AgingMonitor(LogTimeSchedule([0], lags.tolist()), summary=False)
        quiet_trainer(tmp_path, callbacks=[monitor], max_steps=steps).fit(DoubleWell(chain.draw(rng), kT, steps))
        found = relaxation_times(monitor.record, "decorrelation").methods["1/e"]
        assert found.errors is not None
        times.append(found.times[0])
        errors.append(found.errors[0])
        exact.append(np.interp(-math.exp(-1), -chain.correlation(lags), lags))
    z = (np.array(times) - exact) / errors
    assert np.abs(z).max() < 5, (times, exact, z)  # t with 7 degrees of freedom
    law, of_chain = fit_arrhenius(temperatures, times, errors), fit_arrhenius(temperatures, exact, errors)
    assert abs(law.parameters["E"] - of_chain.parameters["E"]) < 4 * law.errors["E"]
    assert law.parameters["E"] == pytest.approx(1, abs=0.15)  # the barrier, with corrections of Kramers' law
    kramers = math.exp(1 / 0.28) * math.pi / (2 * math.sqrt(8)) / H
    assert exact[0] == pytest.approx(kramers, rel=0.4)

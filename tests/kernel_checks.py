"""Check an implementation with kernels of our own against plain torch, and against float64 NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_glassy.measure import moments as implementations
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.moments import EagerMoments, capture
from lightning_glassy.measure.select import as_replicas, select_parameters
from lightning_glassy.measure.shards import ParametersChangedError
from lightning_glassy.measure.snapshots import Snapshot, SnapshotBank

EPS = (1e-3, 1e-1)


def track(
    *tensors: torch.Tensor, sample: int | None = None, groups: str = "all"
) -> tuple[list[nn.Parameter], TrackedParameters]:
    parameters = [nn.Parameter(tensor) for tensor in tensors]
    named = [(f"layer{i}.w", parameter) for i, parameter in enumerate(parameters)]
    return parameters, TrackedParameters(select_parameters(named, groups=groups), sample)


def move(parameters: list[nn.Parameter], by: float) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter += by * torch.randn(parameter.shape, dtype=torch.float64).to(parameter.dtype)


def exact(w: torch.Tensor, s: torch.Tensor) -> np.ndarray:
    new, old = w.detach().double().numpy().ravel(), s.detach().double().numpy().ravel()
    d = new - old
    counts = [(np.abs(d) <= eps).sum() for eps in EPS]
    return np.array([(d**2).sum(), (d**4).sum(), new @ old, new @ new, old @ old, new.sum(), old.sum(), *counts])


class KernelChecks:
    """Tests of the implementation that a subclass names."""

    @staticmethod
    def implementation() -> Any:
        raise NotImplementedError

    @staticmethod
    def tables(ours: Any) -> object:
        return ours._plans[0].chunks

    def kernels(self, tracked: TrackedParameters, thresholds: Sequence[float] = EPS, **options: object) -> Any:
        return self.implementation()(tracked, thresholds, **options)

    def check(self, tracked: TrackedParameters, snapshots: list[Snapshot], **options: object) -> None:
        """Compare with plain torch: equal to 1e-6 of the sums of positive terms, and the same bits in two runs."""
        ours, plain = self.kernels(tracked, **options), EagerMoments(tracked, EPS, **options)
        for first, again, other in zip(ours(snapshots), ours(snapshots), plain(snapshots), strict=True):
            assert first.dtype == torch.float64
            assert first.shape == other.shape
            assert np.array_equal(first.numpy(), again.numpy(), equal_nan=True)
            scale = other.clone()
            # Sums that may cancel are compared with their terms: by Cauchy and Schwarz, sum |w| <= sqrt(n sum w^2).
            root = max(tracked.n_sampled.values()) ** 0.5
            for signed, squares in ((2, 4), (5, 3), (6, 4)):
                scale[..., signed] = other[..., squares] if signed == 2 else root * other[..., squares].sqrt()
            error = torch.where(first.isnan() & other.isnan(), 0.0, (first - other).abs() / scale.abs())
            error = torch.where(first == other, 0.0, error)
            assert error.max() < 1e-6

    @pytest.mark.parametrize("displacement", [1e-1, 1e-2, 1e-4, 1e-6])
    def test_float32_agrees_with_float64(self, displacement: float) -> None:
        (w,), tracked = track(torch.randn(30_001) * 0.05)
        ours, start = self.kernels(tracked), w.detach().clone()
        snapshot = capture(SnapshotBank(tracked), 0, ours)
        move([w], 0.05 * displacement)
        result, reference = ours([snapshot])[0][0, 0].numpy(), exact(w, start)
        assert np.abs(result / reference - 1)[[0, 1, 3, 4]].max() < 1e-6
        assert abs(result[2] - reference[2]) < 1e-6 * (reference[3] + reference[4]) / 2
        assert np.abs(result[5:7] - reference[5:7]).max() < 1e-6 * float(start.abs().sum())
        assert np.abs(result[7:] - reference[7:]).max() <= 1  # |d| may round to eps itself

    @pytest.mark.parametrize("displacement", [1e-13, 1e-12, 1e-9, 1.0, 1e4])
    def test_the_fourth_moment_neither_underflows_nor_overflows(self, displacement: float) -> None:
        (w,), tracked = track(torch.zeros(3000))
        ours, start = self.kernels(tracked), torch.zeros(3000)
        snapshot = capture(SnapshotBank(tracked), 0, ours)
        move([w], displacement)
        assert np.allclose(ours([snapshot])[0][0, 0, :2], exact(w, start)[:2], rtol=1e-6, atol=0)

    def test_weights_that_have_not_moved(self) -> None:
        _, tracked = track(torch.randn(2000), torch.randn(5))
        ours = self.kernels(tracked)
        snapshot = capture(SnapshotBank(tracked), 0, ours)
        moments = ours([snapshot])[0][0, 0]
        assert moments[[0, 1, 7, 8]].tolist() == [0, 0, 2005, 2005]
        assert torch.equal(moments[[3, 5]], moments[[4, 6]])  # 1 - C needs them equal to the last bit
        assert moments[2] == moments[3]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
    def test_every_precision_is_measured_as_it_is(self, dtype: torch.dtype) -> None:
        (w,), tracked = track((torch.randn(9_001, dtype=torch.float64) * 0.05).to(dtype))
        ours, start = self.kernels(tracked), w.detach().clone()
        snapshot = capture(SnapshotBank(tracked), 0, ours)
        move([w], 0.01)
        tolerance = 1e-13 if dtype == torch.float64 else 1e-6
        assert np.allclose(ours([snapshot])[0][0, 0, :5], exact(w, start)[:5], rtol=tolerance, atol=0)
        self.check(tracked, [snapshot])

    @pytest.mark.parametrize("msd_only", [False, True])
    @pytest.mark.parametrize("sample", [None, 3000])
    def test_a_capture_takes_part_in_the_reading_of_an_event(self, sample: int | None, msd_only: bool) -> None:
        parameters, tracked = track(
            torch.randn(3000), torch.randn(700).double(), torch.randn(4097)[1:].bfloat16(), torch.randn(30, 20).t(),
            torch.randn(6, 40)[:, ::2], sample=sample, groups="layer",
        )  # fmt: skip
        ours, plain, bank = self.kernels(tracked, msd_only=msd_only), EagerMoments(tracked, EPS), SnapshotBank(tracked)
        due = [capture(bank, step, ours) for step in range(2)]
        move(parameters, 0.1)
        both, alone = ours(due, bank.add(2)), ours(due)
        assert all(np.array_equal(a.numpy(), b.numpy(), equal_nan=True) for a, b in zip(both, alone, strict=True))
        there = capture(SnapshotBank(tracked), 2, plain)
        assert all(torch.equal(*flats) for flats in zip(bank.live[2].flats, there.flats, strict=True))
        for sums in zip(bank.live[2].own_sums, there.own_sums, strict=True):
            assert torch.allclose(*sums, rtol=1e-6, atol=1e-4)
        # The sums behind 1 - C have the same bits, whether or not other snapshots are due.
        again = capture(bank, 3, ours)
        assert all(torch.equal(*sums) for sums in zip(bank.live[2].own_sums, again.own_sums, strict=True))

    @pytest.mark.parametrize("sample", [None, 700])
    def test_replicas_are_measured_one_by_one(self, sample: int | None) -> None:
        parameters = [nn.Parameter(torch.randn(3, n).to(dtype)) for n, dtype in (
            (1500, torch.float32), (7, torch.float32), (640, torch.bfloat16))]  # fmt: skip
        named = [(f"layer{i}.w", parameter) for i, parameter in enumerate(parameters)]
        tracked = TrackedParameters(as_replicas(select_parameters(named, groups="layer"), 3), sample)
        ours, plain, bank = self.kernels(tracked), EagerMoments(tracked, EPS), SnapshotBank(tracked)
        due = [capture(bank, step, ours) for step in range(2)]
        move(parameters, 0.1)
        self.check(tracked, due)
        ours(due, bank.add(2))
        there = capture(SnapshotBank(tracked), 2, plain)
        assert all(torch.equal(*flats) for flats in zip(bank.live[2].flats, there.flats, strict=True))
        for sums in zip(bank.live[2].own_sums, there.own_sums, strict=True):
            assert torch.allclose(*sums, rtol=1e-6, atol=1e-4)

    def test_own_sums_are_those_of_float64_and_of_plain_torch(self) -> None:
        parameters, tracked = track(torch.randn(5000), torch.randn(2048), torch.randn(7).double(), groups="layer")
        bank = SnapshotBank(tracked)
        first, second = capture(bank, 0, self.kernels(tracked)), capture(bank, 1, EagerMoments(tracked))
        for mine, other in zip(first.own_sums, second.own_sums, strict=True):
            assert torch.allclose(mine, other, rtol=1e-6, atol=1e-4)
        float32 = capture(bank, 2, self.kernels(tracked, msd_only=True)).own_sums[0].numpy()
        for cell, w in enumerate(parameters[:2]):
            squares = float(w.detach().double().square().sum())
            assert float32[cell, 0] == pytest.approx(squares, rel=1e-7)  # finer than the 1e-6 of the other sums
            assert float32[cell, 1] == pytest.approx(float(w.detach().double().sum()), abs=1e-4)
        assert (float32[2] == 0).all()  # tensors of the other dtype

    @pytest.mark.parametrize("n_due", [1, 2, 3, 5, 9, 35])
    def test_any_number_of_snapshots_is_due(self, n_due: int) -> None:
        parameters, tracked = track(torch.randn(1100))
        plain, bank = EagerMoments(tracked), SnapshotBank(tracked)
        for step in range(n_due):
            capture(bank, step, plain)
            move(parameters, 0.03)
        self.check(tracked, list(bank.live.values())[::-1])

    @pytest.mark.parametrize(
        ("groups", "sample", "msd_only"), [("layer", None, False), ("all", 900, False), ("all", None, True)]
    )
    def test_all_sorts_of_tensors_at_once(self, groups: str, sample: int | None, msd_only: bool) -> None:
        parameters, tracked = track(
            torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
            torch.randn(7, dtype=torch.float64),
            torch.tensor(2.0),
            torch.randn(30, 20).t(),
            torch.randn(6, 40)[:, ::2],  # not dense
            torch.randn(3, 9, 11)[:2, 1:5, 2:],
            torch.randn(1, 4).expand(3, 4).clone(),
            torch.randn(5, dtype=torch.complex64),
            torch.randn(50).bfloat16(),
            torch.randn(1025),
            torch.randn(4097)[1:],  # dense, but its address is no multiple of 16
            torch.randn(2048),
            sample=sample,
            groups=groups,
        )
        plain, bank = EagerMoments(tracked), SnapshotBank(tracked)
        for step in range(2):
            capture(bank, step, plain)
            with torch.no_grad():
                for parameter in parameters:
                    parameter += 0.02 * torch.randn_like(parameter)
        self.check(tracked, list(bank.live.values()), msd_only=msd_only)

    @pytest.mark.parametrize("sizes", [[3] * 40 + [16] * 8, [1] * 20 + [1024] * 2])
    def test_many_tiny_tensors(self, sizes: list[int]) -> None:
        parameters, tracked = track(*(torch.randn(n) for n in sizes))
        snapshot = capture(SnapshotBank(tracked), 0, self.kernels(tracked))
        move(parameters, 0.1)
        self.check(tracked, [snapshot])

    @staticmethod
    def check_sums(ours: list[torch.Tensor], others: list[torch.Tensor]) -> None:
        for mine, other in zip(ours, others, strict=True):
            assert torch.allclose(mine[..., [0, 1, 3, 4]], other[..., [0, 1, 3, 4]], rtol=1e-6, atol=0)
            assert torch.equal(mine[..., 7:], other[..., 7:])

    @pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter runs on NumPy
    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_what_is_not_finite_stays_in_its_group_and_its_snapshot(self, bad: float) -> None:
        (a, _), tracked = track(torch.randn(1500), torch.randn(1500), groups="layer")
        ours, bank = self.kernels(tracked), SnapshotBank(tracked)
        good = capture(bank, 0, ours)
        with torch.no_grad():
            a[700], a_before = bad, a[700].clone()
        spoiled = capture(bank, 1, ours)
        moments = ours([good, spoiled])[0]
        assert not moments[0, :, [0, 1, 3]].isfinite().any()
        assert moments[1].isfinite().all()
        with torch.no_grad():
            a[700] = a_before
        moments = ours([good, spoiled])[0]
        assert moments[0, 0].isfinite().all()
        assert not moments[0, 1, [0, 1, 4]].isfinite().any()
        assert moments[1].isfinite().all()

    def test_weights_that_are_put_elsewhere_are_still_followed(self) -> None:
        (w, _), tracked = track(torch.randn(4, 3, 5, 5), torch.randn(2000))
        ours, start = self.kernels(tracked), w.detach().clone()
        snapshot = capture(SnapshotBank(tracked), 0, ours)
        tables = self.tables(ours)
        ours([snapshot])
        assert self.tables(ours) is tables
        moved = start + 0.5 * torch.randn_like(start)
        for data in (moved, moved.to(memory_format=torch.channels_last)):
            w.data = data.clone()
            d2 = ours([snapshot])[0][0, 0, 0].item()
            assert d2 == pytest.approx(((moved - start) ** 2).sum().item(), rel=1e-6)
        assert self.tables(ours) is not tables
        w.data = moved[:2]
        with pytest.raises(ParametersChangedError, match=r"'layer0\.w' was \(4, 3, 5, 5\)"):
            ours([snapshot])

    def test_the_same_address_with_another_order_is_noticed(self) -> None:
        (w,), tracked = track(torch.randn(40, 40))
        ours, plain, start = self.kernels(tracked), EagerMoments(tracked), w.detach().clone()
        snapshot = capture(SnapshotBank(tracked), 0, ours)
        ours([snapshot])
        plain([snapshot])
        w.data = w.data.t()
        d2 = ((start.t() - start) ** 2).sum().item()
        assert ours([snapshot])[0][0, 0, 0].item() == pytest.approx(d2, rel=1e-6)
        assert plain([snapshot])[0][0, 0, 0].item() == pytest.approx(d2, rel=1e-6)

    def test_the_same_address_with_fewer_weights_is_refused(self) -> None:
        (w,), tracked = track(torch.randn(40, 40))
        ours = self.kernels(tracked)
        snapshot = capture(SnapshotBank(tracked), 0, ours)
        w.data = w.data[:30]
        with pytest.raises(ParametersChangedError, match=r"'layer0\.w' was \(40, 40\)"):
            ours([snapshot])

    @pytest.mark.parametrize("thresholds", [(), (0.5,), (0.01, 0.02, 0.05, 0.1, 0.2)])
    def test_any_number_of_thresholds(self, thresholds: tuple[float, ...]) -> None:
        parameters, tracked = track(torch.randn(1500))
        ours, plain = self.kernels(tracked, thresholds), EagerMoments(tracked, thresholds)
        snapshot = capture(SnapshotBank(tracked), 0, ours)
        move(parameters, 0.1)
        mine, other = ours([snapshot])[0], plain([snapshot])[0]
        assert mine.shape == (1, 1, 7 + len(thresholds))
        assert torch.equal(mine[..., 7:], other[..., 7:])

    def test_a_precision_without_a_kernel_is_refused(self) -> None:
        _, tracked = track(torch.zeros(4).to(torch.float8_e5m2))
        with pytest.raises(TypeError, match="weights of dtype float8_e5m2"):
            self.kernels(tracked)

    def test_the_rehearsal_passes_and_tells_wrong_sums(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for sample in (None, 20):
            _, tracked = track(torch.randn(50), torch.randn(30).bfloat16(), sample=sample)
            for msd_only in (False, True):
                implementations._rehearse(self.implementation(), tracked, EPS, msd_only)
        kind = self.implementation()
        right = kind.__call__
        monkeypatch.setattr(kind, "__call__", lambda self, *due: [1.001 * sums for sums in right(self, *due)])
        with pytest.raises(RuntimeError, match="differ from the sums of plain torch"):
            implementations._rehearse(self.implementation(), tracked, EPS, False)

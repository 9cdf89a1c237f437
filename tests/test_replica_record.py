"""Replicas that are trained as one give the record of as many runs: error bars, chi_4, and their distances."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn

from lightning_glassy import (
    AgingMonitor,
    AgingRecord,
    AgingTracker,
    LogTimeSchedule,
    ReplicaEnsemble,
    ReplicaOverlap,
    ReplicaTraining,
    observables,
    per_replica,
)
from lightning_glassy.analysis import NotEnoughDataError, heterogeneity, overlap_distribution
from lightning_glassy.loggers.sinks import scalars
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.moments import EagerMoments, capture
from lightning_glassy.measure.select import as_replicas, select_parameters
from lightning_glassy.measure.snapshots import SnapshotBank
from lightning_glassy.plotting import plot_chi4, plot_replica_overlaps
from lightning_glassy.report import report
from tests.helpers import data, quiet_trainer
from tests.processes import launch
from tests.test_aging_monitor import pairs


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


class Ensemble(ReplicaTraining, LightningModule):
    """An ensemble of R small nets, or a lone net with the seed of one of them."""

    def __init__(self, n_replica: int | None, seeds: list[int]) -> None:
        super().__init__()
        torch.manual_seed(seeds[0])
        self.net: nn.Module = network() if n_replica is None else ReplicaEnsemble(network, n_replica, seeds=seeds)
        self.lone = n_replica is None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        if self.lone:
            return nn.functional.cross_entropy(self.net(x), y)
        return per_replica(nn.functional.cross_entropy)(self.net(x), y).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def train(tmp_path: Path, module: LightningModule, *callbacks: Callback, **options: Any) -> AgingRecord:
    monitor = AgingMonitor(**({"save": False, "summary": False} | options.pop("monitor", {})))
    torch.manual_seed(0)
    fit = {"ckpt_path": options.pop("ckpt_path", None)}
    quiet_trainer(tmp_path, callbacks=[monitor, *callbacks], **options).fit(module, data(shuffle=False), **fit)
    return monitor.record


@pytest.mark.parametrize("options", [{}, {"groups": "layer"}, {"sample": 30}, {"moments": "msd"}])
def test_each_replica_has_the_record_of_its_lone_run(tmp_path: Path, options: dict[str, Any]) -> None:
    thresholds = {"overlap_thresholds": [0.01, 0.1]}
    together = train(tmp_path, Ensemble(3, [4, 5, 6]), monitor=options | thresholds)
    alone = [train(tmp_path, Ensemble(None, [seed]), monitor=options | thresholds) for seed in (4, 5, 6)]
    joined = AgingRecord.concat(alone)
    assert together.n_replica == 3
    assert [name.replace("network.", "") for name in together.groups] == list(joined.groups)
    assert list(together.n_parameters.values()) == list(joined.n_parameters.values())
    assert list(together.n_sampled.values()) == list(joined.n_sampled.values())
    assert pairs(together) == pairs(joined)
    # The batched network adds in another order. Trajectories agree to the rounding of their weights.
    for ours, theirs in zip(together.groups, joined.groups, strict=True):
        assert np.allclose(together.msd(ours), joined.msd(theirs), rtol=1e-3, equal_nan=True)
        if not options.get("moments"):
            assert np.allclose(
                together.correlation(ours), joined.correlation(theirs), rtol=1e-4, atol=1e-6, equal_nan=True
            )


def test_the_summary_of_replicas_is_that_of_their_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = train(tmp_path, Ensemble(3, [4, 5, 6]), monitor={"summary": True})
    assert f"{record.msd().mean(0)[0, 0]:.2e}" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sample", [None, 100])
def test_the_moments_of_replicas_are_those_of_the_trajectories(dtype: torch.dtype, sample: int | None) -> None:
    generator = torch.Generator().manual_seed(1)
    parameters = [
        ("a", nn.Parameter(torch.randn(5, 40, 70, generator=generator).to(dtype))),
        ("b", nn.Parameter(torch.randn(5, 33, generator=generator).to(dtype))),
        ("c", nn.Parameter(torch.randn(2, 7, 5, generator=generator).to(dtype).permute(2, 0, 1))),
    ]
    with pytest.raises(ValueError, match="'c' does not lie in memory row by row"):
        TrackedParameters(as_replicas(select_parameters(parameters), 5))
    parameters[2] = ("c", nn.Parameter(parameters[2][1].detach().contiguous()))
    selected = as_replicas(select_parameters(parameters, groups={"ab": ["a", "b"], "bc": ["b", "c"]}), 5)
    tracked = TrackedParameters(selected, sample)
    moments, bank = EagerMoments(tracked, (0.1, 1.0)), SnapshotBank(tracked)
    first = capture(bank, 0, moments)
    before = [p.detach().double().reshape(5, -1).clone() for _, p in parameters]
    with torch.no_grad():
        for _, parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(dtype) * 0.5)
    second = bank.add(1)
    sums = tracked.by_group([bucket.numpy() for bucket in moments([first], second)])  # [replica, group, 1, moment]
    after = [p.detach().double().reshape(5, -1) for _, p in parameters]
    assert sums.shape == (5, 3, 1, 9)
    if sample is None:
        s, w = (torch.cat(parts, 1).numpy() for parts in (before, after))
        members = {"all": np.arange(2847), "ab": np.arange(2833), "bc": np.arange(2800, 2847)}
        record = AgingRecord.from_trajectory(
            np.stack([s, w], axis=1), LogTimeSchedule([0], [1]), groups={k: members[k] for k in ("ab", "bc")},
            overlap_thresholds=[0.1, 1.0],
        )  # fmt: skip
        assert tracked.n_parameters == record.n_parameters
        assert np.allclose(sums[:, :, 0], record.moments[0], rtol=1e-5, atol=1e-3)
    again = EagerMoments(tracked, (0.1, 1.0))([second])
    assert all(torch.all(bucket[:, 0, 0] == 0) for bucket in again)
    assert tracked.n_sampled["all"] == (sample or 2847)


def test_a_single_replica_is_measured_as_a_network(tmp_path: Path) -> None:
    records = []
    for n_replica in (1, None):
        torch.manual_seed(0)
        weights = torch.randn(1, 50)
        tracker = AgingTracker([("w", nn.Parameter(weights))], LogTimeSchedule([0], [1, 2]), n_replica=n_replica)
        for step in range(3):
            tracker.update(step)
            weights += 0.1
        tracker.drain()
        records.append(tracker.record)
    single, network = records
    assert single.n_replica == 1
    assert single.moments.shape == (2, 1, 1, network.moments.shape[-1])
    assert np.array_equal(single.moments[:, 0], network.moments)


def test_what_is_between_replicas_is_that_of_their_weights(tmp_path: Path) -> None:
    class Weights(Callback):
        def __init__(self) -> None:
            self.seen: dict[int, np.ndarray] = {}

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            self.seen[trainer.global_step] = torch.cat(
                [p.detach().double().flatten(1) for p in module.parameters()], 1
            ).numpy()

    weights = Weights()
    record = train(tmp_path, Ensemble(4, [1, 2, 3, 4]), weights)
    steps, distance = record.replica_distance()
    assert steps.tolist() == [event.step for event in LogTimeSchedule.logspaced(60).events]
    overlap = record.replica_overlap()[1]
    for k, step in enumerate(steps[1:].tolist(), start=1):
        w = weights.seen[step]
        assert np.allclose(distance[k], ((w[:, None] - w[None]) ** 2).mean(-1), rtol=1e-6)
        assert np.allclose(overlap[k], w @ w.T / np.outer(*[np.linalg.norm(w, axis=1)] * 2), atol=1e-6)
    assert np.allclose(record.one_time("replica_distance")[1], [d[np.triu_indices(4, 1)].mean() for d in distance])
    path = record.save(tmp_path / "record.npz")
    assert AgingRecord.load(path) == record
    assert record.before(10).between_names == ("weight_distance", "weight_product")
    assert record.before(10).between("weight_distance")[0].max() < 10


def test_clones_are_driven_apart_from_nothing(tmp_path: Path) -> None:
    class Clone(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            if trainer.global_step == 20:
                module.net.clone_from(1, *trainer.optimizers)

    class Own(Ensemble):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            x = x + torch.randn(3, *x.shape)
            return per_replica(nn.functional.cross_entropy)(self.net(x, shared=False), y).sum()

    schedule = LogTimeSchedule([0, 20], [1, 2, 3, 10, 40])
    module = Own(3, [0, 1, 2])
    monitor = AgingMonitor(schedule, save=False, summary=False)
    quiet_trainer(tmp_path, callbacks=[Clone(), monitor]).fit(module, data(shuffle=False))
    steps, distance = monitor.record.replica_distance()
    mean = distance.sum((-1, -2)) / 6
    after = {step: d for step, d in zip(steps.tolist(), mean, strict=True) if step >= 20}
    assert after[20] == 0
    assert 0 < after[21] < after[23] < after[30] < after[60]


def test_separate_runs_and_an_ensemble_are_one_for_chi4() -> None:
    generator = np.random.default_rng(3)
    walks = np.cumsum(generator.normal(size=(20, 31, 40)), axis=1)
    schedule = LogTimeSchedule([0, 10], [1, 5, 20])
    thresholds = [1.0, 4.0]
    together = AgingRecord.from_trajectory(walks, schedule, overlap_thresholds=thresholds)
    joined = AgingRecord.concat(
        [AgingRecord.from_trajectory(walk, schedule, overlap_thresholds=thresholds) for walk in walks]
    )
    for quantity in ("overlap", "correlation"):
        assert np.array_equal(together.chi4(quantity=quantity), joined.chi4(quantity=quantity))
    q = np.array([[np.mean(np.abs(w[30] - w[10]) <= 4.0) for w in walks]])[0]
    assert together.chi4(eps=4.0)[1, 2] == pytest.approx(40 * q.var(ddof=1))
    left_out = [40 * np.delete(q, r).var(ddof=1) for r in range(20)]
    error = np.sqrt(19 / 20 * np.sum((left_out - np.mean(left_out)) ** 2))
    assert together.chi4_error(eps=4.0)[1, 2] == pytest.approx(error)
    with pytest.raises(ValueError, match="n_replica=None: chi4 is a variance between replicas"):
        AgingRecord.from_trajectory(walks[0], schedule).chi4()
    with pytest.raises(ValueError, match="quantity='msd'"):
        together.chi4(quantity="msd")
    two = AgingRecord.from_trajectory(walks[:2], schedule)
    assert np.isfinite(two.chi4()).all()
    assert np.isnan(two.chi4_error()).all()


def test_chi4_of_independent_coordinates_has_its_closed_form() -> None:
    """For independent Gaussian coordinates N Var(C) = <w^2><s^2> + C^2. A random walk from 0 gives s (s + t) + s^2."""
    generator = np.random.default_rng(5)
    n, n_replica = 200, 4000
    s = generator.normal(size=(n_replica, n)) * np.sqrt(3.0)
    w = s + generator.normal(size=(n_replica, n)) * np.sqrt(5.0)
    c = (w * s).mean(-1)
    z = (observables.chi4(c, n) - (3.0 * 8.0 + 9.0)) / observables.chi4_error(c, n)
    assert abs(z) < 3
    q = (np.abs(w - s) <= 2.0).mean(-1)
    near = math.erf(2.0 / np.sqrt(2 * 5.0))
    assert abs(observables.chi4(q, n) - near * (1 - near)) / observables.chi4_error(q, n) < 3


def test_chi4_of_a_shared_rate_has_its_peak_where_and_as_high_as_it_must() -> None:
    r"""Each replica relaxes with its own rate kappa, Gamma(k, theta): C = (1 + theta h)^-k.

    chi_4 = N [(1 + 2 theta h)^-k - (1 + theta h)^-2k] + 1 + (1 + 2 theta h)^-k. For k = 4, theta = 1/4 and N = 1000 it
    has a peak of 31 near h = 1.
    """
    k, theta, n, n_replica = 4.0, 0.25, 1000, 2000
    h = np.array([0.0625, 0.25, 0.5, 1.0, 2.0, 4.0, 16.0])
    generator = np.random.default_rng(8)
    rate = generator.gamma(k, theta, size=n_replica)
    c = np.empty((n_replica, len(h)))
    for r in range(n_replica):
        s = generator.normal(size=n)
        # Each time is compared with the start only, so each time may have its own noise.
        keep = np.exp(-rate[r] * h)[:, None]
        w = keep * s + np.sqrt(1 - keep**2) * generator.normal(size=(len(h), n))
        c[r] = (w * s).mean(-1)
    two, one = (1 + 2 * theta * h) ** -k, (1 + theta * h) ** (-2 * k)
    exact = n * (two - one) + 1 + two
    assert np.abs(c.mean(0) - (1 + theta * h) ** -k).max() < 5 * np.sqrt(exact.max() / n / n_replica)
    found, error = observables.chi4(c, n), observables.chi4_error(c, n)
    assert np.abs((found - exact) / error).max() < 3
    assert h[found.argmax()] in (0.5, 1.0, 2.0)
    assert exact[3] == pytest.approx(31, abs=1)


def test_replicas_are_resumed_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 24:
                trainer.save_checkpoint(tmp_path / "a.ckpt")
                trainer.should_stop = True

    for limit in (0, 1 << 30):
        monkeypatch.setattr("lightning_glassy.measure.resume.INLINE_BYTES", limit)
        whole = train(tmp_path, Ensemble(3, [0, 1, 2]))  # an epoch has 12 steps, in order
        train(tmp_path, Ensemble(3, [0, 1, 2]), Save())
        assert train(tmp_path, Ensemble(3, [0, 1, 2]), ckpt_path=tmp_path / "a.ckpt") == whole
        other = train(tmp_path, Ensemble(3, [0, 1, 2]), monitor={"groups": "layer", "sample": 20})
        assert other.n_replica == 3


def test_a_sample_larger_than_a_replica_is_resumed(tmp_path: Path) -> None:
    state = AgingTracker(ReplicaEnsemble(network, 4), sample=80).state_dict()  # each replica has 75 parameters
    assert AgingTracker(ReplicaEnsemble(network, 4), sample=80, state=state).record.n_sampled == {"all": 75}


def test_loggers_get_the_mean_over_replicas(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path, name="tb"), CSVLogger(tmp_path, name="csv")]
    record = train(tmp_path, Ensemble(3, [0, 1, 2]), logger=loggers, monitor={"save": True, "groups": "layer"})
    found = {tag: value for tag, waiting_time, lag, value in scalars(record, [(10, 20)], "glassy")}
    i, j = record.waiting_times.tolist().index(10), record.lags.tolist().index(20)
    assert found["glassy/msd/tw_10"] == pytest.approx(record.msd()[:, i, j].mean(), rel=1e-12)
    assert found["glassy/msd/net.network.2/tw_10"] == pytest.approx(
        record.msd("net.network.2")[:, i, j].mean(), rel=1e-12
    )
    lines = (Path(loggers[1].log_dir) / "glassy.csv").read_text().splitlines()
    assert lines[0].startswith("replica,")
    assert len(lines) == 1 + 3 * 3 * len(record)
    assert AgingRecord.load(Path(loggers[0].log_dir) / "glassy" / "aging_record.npz") == record


def test_the_norm_of_all_replicas_is_not_clipped(tmp_path: Path) -> None:
    class Plain(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = ReplicaEnsemble(network, 2)

        training_step = Ensemble.training_step
        configure_optimizers = Ensemble.configure_optimizers
        lone = False

    with pytest.raises(MisconfigurationException, match=r"which couples them: name lightning_glassy\.ReplicaTraining"):
        train(tmp_path, Plain(), gradient_clip_val=1.0)
    train(tmp_path, Plain(), gradient_clip_val=1.0, gradient_clip_algorithm="value", max_steps=2)
    train(tmp_path, Ensemble(2, [0, 1]), gradient_clip_val=1.0, max_steps=2)


def test_parameters_outside_the_ensemble_are_named(tmp_path: Path) -> None:
    module = nn.ModuleDict({"e": ReplicaEnsemble(network, 8), "head": nn.Linear(3, 8)})
    with pytest.raises(ValueError, match=r"'head.weight' belongs to no ensemble of 8 replicas.*exclude"):
        AgingTracker(module)
    assert AgingTracker(module, exclude="head.*").record.n_replica == 8
    assert AgingTracker(module, exclude="e.*").record.n_replica is None
    with pytest.raises(ValueError, match=r"'weight' of shape \(8, 3\) has no axis of n_replica=4"):
        AgingTracker(module["head"], n_replica=4)
    assert "8 replicas of 75 parameters" in AgingTracker(module["e"]).description


SCRIPT = """
import sys
from pathlib import Path
import torch
from torch import nn
from lightning.pytorch import LightningModule
from lightning_glassy import AgingMonitor, ReplicaEnsemble, ReplicaTraining, per_replica, replica_loader
from tests.helpers import data, end_processes, quiet_trainer
from tests.test_replica_record import network
torch.set_num_threads(1)
own, devices = sys.argv[2] == "own", int(sys.argv[3])
class Net(ReplicaTraining, LightningModule):
    def __init__(self):
        super().__init__()
        self.net = ReplicaEnsemble(lambda: network().double(), 5)
    def train_dataloader(self):
        dataset = data().dataset
        return replica_loader(dataset, 4, seeds=self.replicas_here) if own else data(shuffle=False)
    def training_step(self, batch, batch_idx):
        x, y = batch
        losses = per_replica(nn.functional.cross_entropy, shared=not own)(self.net(x.double(), shared=not own), y)
        assert len(losses) == len(self.replicas_here)
        self.log_replicas("loss", losses)
        return losses.sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
quiet_trainer(
    Path(sys.argv[1]), callbacks=[AgingMonitor(summary=False)], devices=devices, use_distributed_sampler=False,
    strategy="ddp" if devices > 1 else "auto", gradient_clip_val=0.5, max_steps=30,
).fit(Net())
end_processes()
"""


@pytest.mark.slow
@pytest.mark.parametrize("batches", ["own", "shared"])
def test_processes_of_ddp_share_the_replicas_out(tmp_path: Path, batches: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    for devices in ("1", "2"):
        launch(tmp_path / "script.py", tmp_path / devices, batches, devices, processes=int(devices))
    one, two = (AgingRecord.load(tmp_path / n / "glassy" / "aging_record.npz") for n in ("1", "2"))
    assert two.n_replica == 5
    assert pairs(one) == pairs(two)
    assert np.allclose(one.msd(), two.msd(), rtol=1e-9, atol=0, equal_nan=True)
    if batches == "own":
        spread = one.msd().std(axis=0)
        assert (spread[np.isfinite(spread)] > 0).all()


@pytest.mark.needs("plotly")
def test_the_report_says_what_replicas_differ_in(tmp_path: Path) -> None:
    record = train(tmp_path, Ensemble(4, [0, 1, 2, 3]), max_steps=200)
    found = heterogeneity(record)
    q, d = record.replica_overlap()[1], record.replica_distance()[1]
    assert np.array_equal(found.overlaps[:, 0], q[:, 0, 1])
    assert np.array_equal(found.distances[:, -1], d[:, 2, 3])
    assert found.peaks
    for peak in found.peaks:
        i, j = record.waiting_times.tolist().index(peak.waiting_time), record.lags.tolist().index(peak.lag)
        assert peak.height == record.chi4()[i, j] == np.nanmax(record.chi4()[i])
        assert peak.error == record.chi4_error()[i, j]
    edges, density = overlap_distribution(found.overlaps[-1], 20)
    assert density @ np.diff(edges) == pytest.approx(1)
    assert density[np.digitize(found.overlaps[-1][0], edges) - 1] > 0
    said = report(record)
    text = str(said)
    assert "between 4 replicas" in text
    assert f"at step 200 the weights of two of them have the overlap {q[-1][np.triu_indices(4, 1)].mean():.3g}" in text
    assert {"chi4", "replica_overlap"} <= set(said.figures())
    assert {"chi4.png", "replica_overlap.png"} <= {path.name for path in said.write(tmp_path / "report")}
    assert said.to_dict()["heterogeneity"]["n_replica"] == 4


def test_what_was_not_measured_between_replicas_is_not_told() -> None:
    walks = np.cumsum(np.random.default_rng(3).normal(size=(3, 101, 20)), axis=1)
    apart = AgingRecord.from_trajectory(walks, LogTimeSchedule.logspaced(100))
    found = heterogeneity(apart)
    assert not len(found.steps)
    assert "overlap" not in str(found).split("chi_4 of the overlap")[-1]
    with pytest.raises(ValueError, match="they were not trained together"):
        plot_replica_overlaps(found)
    assert "replica_overlap" not in report(apart).figures()
    without = AgingRecord.from_trajectory(walks, LogTimeSchedule.logspaced(100), overlap_thresholds=[])
    assert heterogeneity(without).chi4 is None
    with pytest.raises(ValueError, match=r"there is no chi_4"):
        plot_chi4(heterogeneity(without))
    with pytest.raises(NotEnoughDataError, match="n_replica=None"):
        heterogeneity(AgingRecord.from_trajectory(walks[0], LogTimeSchedule.logspaced(100)))
    with pytest.raises(ValueError, match="bins=0"):
        overlap_distribution(np.zeros(3), 0)


def test_the_overlap_of_predictions_does_not_care_how_units_are_numbered(tmp_path: Path) -> None:
    class Permuted(Ensemble):
        """An ensemble in which replica 1 is replica 0 with its hidden units in another order."""

        def on_fit_start(self) -> None:
            super().on_fit_start()
            order = torch.tensor([3, 0, 5, 1, 4, 2])
            first, last = self.net.network[0], self.net.network[2]
            with torch.no_grad():
                first.weight[1], first.bias[1] = first.weight[0][order], first.bias[0][order]
                last.weight[1], last.bias[1] = last.weight[0][:, order], last.bias[0]

    inputs = data().dataset.tensors[0]
    schedule = LogTimeSchedule([0, 5, 60], [0])
    for callback_first in (True, False):
        monitor, overlap = AgingMonitor(save=False, summary=False), ReplicaOverlap(inputs, schedule)
        module = Permuted(3, [0, 1, 2])
        callbacks = [overlap, monitor] if callback_first else [monitor, overlap]
        quiet_trainer(tmp_path, callbacks=callbacks).fit(module, data(shuffle=False))
        record = monitor.record
        steps, q = record.between("prediction_overlap")
        assert steps.tolist() == [0, 5, 60]
        # With shared minibatches, replicas 0 and 1 stay the same function, although their weights are far apart.
        assert np.allclose(q[:, 0, 1], 1, atol=1e-5)
        assert record.replica_overlap()[1][-1][0, 1] < 0.9
        assert (np.abs(q[:, 0, 2]) < 0.999).all()
        agreement = record.between("prediction_agreement")[1]
        outputs = module.net(inputs).detach()
        assert agreement[-1][0, 2] == pytest.approx(
            (outputs[0].argmax(-1) == outputs[2].argmax(-1)).float().mean().item()
        )
        assert record.one_time("prediction_overlap")[1][-1] == pytest.approx(q[-1][np.triu_indices(3, 1)].mean())
    f = (outputs - outputs.mean(1, keepdim=True)).double().flatten(1).numpy()
    assert q[-1][0, 2] == pytest.approx(np.corrcoef(f)[0, 2], abs=1e-5)


def test_training_with_the_overlap_of_predictions_is_the_same_to_the_bit(tmp_path: Path) -> None:
    def run(*callbacks: Callback) -> list[Tensor]:
        module = Ensemble(2, [0, 1])
        torch.manual_seed(3)
        quiet_trainer(tmp_path, callbacks=[*callbacks], max_steps=20).fit(module, data())
        return list(module.state_dict().values())

    inputs = data().dataset.tensors[0]
    monitor = AgingMonitor(save=False, summary=False)
    assert all(torch.equal(a, b) for a, b in zip(run(ReplicaOverlap(inputs), monitor), run(), strict=True))


def test_what_cannot_be_compared_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TypeError, match="inputs=int"):
        ReplicaOverlap(3)
    with pytest.raises(ValueError, match=r"shape \(1, 8\) are no batch of two"):
        ReplicaOverlap(torch.zeros(1, 8))
    with pytest.raises(MisconfigurationException, match="no AgingMonitor"):
        quiet_trainer(tmp_path, callbacks=[ReplicaOverlap(torch.zeros(2, 8))]).fit(Ensemble(2, [0, 1]), data())
    with pytest.raises(MisconfigurationException, match="has 0 ReplicaEnsembles"):
        train(tmp_path, Ensemble(None, [0]), ReplicaOverlap(torch.zeros(2, 8)))
    record = train(tmp_path, Ensemble(2, [0, 1]), ReplicaOverlap(torch.zeros(2, 9)))
    assert "ReplicaOverlap: nothing is measured at step 0 (RuntimeError: " in caplog.text
    assert len(record) == 97

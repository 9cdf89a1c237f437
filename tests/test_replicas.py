"""Compare each replica of an ensemble with its training alone."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics.functional.classification import multiclass_accuracy

from lightning_glassy.replicas import (
    ReplicaBatchSampler,
    ReplicaEnsemble,
    ReplicaTraining,
    per_replica,
    replica_axes,
    replica_loader,
)
from tests.helpers import quiet_trainer

SEEDS = (3, 7, 11, 3000000000)
STEPS = 60
cross_entropy = nn.functional.cross_entropy


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 6, bias=False), nn.GELU(), nn.Linear(6, 3)
    )


class CNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2)
        )
        self.head = nn.Linear(4, 3)
        self.register_buffer("shift", torch.randn(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x + self.shift).flatten(1))


def digits(dtype: torch.dtype = torch.float32) -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(50, 1, 6, 6, generator=generator)
    return TensorDataset(x.to(dtype), torch.randint(3, (50,), generator=generator))


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum and weight decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
}


def endless(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def train(
    net: nn.Module,
    loader: DataLoader[Any],
    optimizer: torch.optim.Optimizer,
    steps: int = STEPS,
    *,
    shared: bool = True,
    loss: Callable[..., Tensor] = cross_entropy,
    max_norm: float | None = None,
) -> None:
    """Train an ensemble, or a network alone, by the same lines except for the sum of losses."""
    for (x, y), _ in zip(endless(loader), range(steps), strict=False):
        optimizer.zero_grad()
        if isinstance(net, ReplicaEnsemble):
            per_replica(loss, shared=shared)(net(x, shared=shared), y).sum().backward()
            if max_norm is not None:
                net.clip_grad_norm_(max_norm)
        else:
            loss(net(x), y).backward()
            if max_norm is not None:
                nn.utils.clip_grad_norm_(net.parameters(), max_norm)
        optimizer.step()


def alone(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def distance(a: nn.Module, b: nn.Module) -> float:
    """Return the largest difference of two parameters, over the largest parameter."""
    pairs = list(zip(a.parameters(), b.parameters(), strict=True))
    return max((p - q).abs().max().item() for p, q in pairs) / max(p.abs().max().item() for p, _ in pairs)


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("make", [mlp, CNN])
def test_a_replica_starts_bit_for_bit_as_its_seed_alone_does(make: Callable[[], nn.Module]) -> None:
    before = torch.get_rng_state()
    ensemble = ReplicaEnsemble(make, 4, seeds=SEEDS)
    assert torch.equal(torch.get_rng_state(), before)
    for r, seed in enumerate(SEEDS):
        assert same(ensemble.replica(r), alone(make, seed))


@pytest.mark.parametrize("shared", [True, False], ids=["shared batches", "own batches"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make", [mlp, CNN])
def test_a_replica_follows_the_training_of_its_seed_alone_to_rounding(
    make: Callable[[], nn.Module], optimizer: str, shared: bool
) -> None:
    for dtype in (torch.float32, torch.float64):
        data = digits(dtype)
        ensemble = ReplicaEnsemble(lambda dtype=dtype: make().to(dtype), 4, seeds=SEEDS)
        start = copy.deepcopy(ensemble)
        loader = replica_loader(data, 8, seeds=5 if shared else SEEDS)
        train(ensemble, loader, OPTIMIZERS[optimizer](ensemble.parameters()), shared=shared)
        for r, seed in enumerate(SEEDS):
            lone = alone(lambda dtype=dtype: make().to(dtype), seed)
            train(lone, replica_loader(data, 8, seeds=5 if shared else seed), OPTIMIZERS[optimizer](lone.parameters()))
            # The difference in units of the last place is the same for both dtypes, so it is only rounding.
            assert distance(lone, ensemble.replica(r)) < 50 * torch.finfo(dtype).eps
            assert distance(lone, start.replica(r)) > 0.05


class Springs(nn.Module):
    """Coordinates that see the data one by one. The arithmetic is the same alone or in an ensemble."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.w) * x


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_where_the_arithmetic_is_the_same_so_are_the_bits(optimizer: str) -> None:
    data = TensorDataset(torch.randn(20, 5, 3), torch.randn(20, 5, 3))
    ensemble = ReplicaEnsemble(Springs, 4, seeds=SEEDS)

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return (out - y)[0].square().sum()

    loader = replica_loader(data, 1, SEEDS)
    train(ensemble, loader, OPTIMIZERS[optimizer](ensemble.parameters()), shared=False, loss=loss)
    for r, seed in enumerate(SEEDS):
        lone = alone(Springs, seed)
        train(lone, replica_loader(data, 1, seed), OPTIMIZERS[optimizer](lone.parameters()), loss=loss)
        assert same(ensemble.replica(r), lone)
        assert distance(lone, alone(Springs, seed)) > 0.05


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("shape", [(9,), (9, 2), ()])
def test_a_sequential_of_plain_layers_is_the_same_function_by_both_ways(shared: bool, shape: tuple[int, ...]) -> None:
    def make() -> nn.Module:
        middle = nn.Sequential(nn.Linear(8, 6, bias=False), nn.ReLU(inplace=True), nn.Dropout(0.5))
        layers = [nn.Dropout(0.5), nn.Linear(4, 8), nn.SiLU(), middle, nn.Linear(6, 3)]
        return nn.Sequential(*layers, *([nn.Flatten(1)] if len(shape) == 2 else []))

    ensemble = ReplicaEnsemble(make, 3).double().eval()
    x = torch.randn(*(() if shared else (3,)), *shape, 4, dtype=torch.float64)
    layerwise = ensemble(x, shared=shared)
    called: list[int] = []
    ensemble.network[1].register_forward_hook(lambda *_: called.append(1))
    vmapped = ensemble(x, shared=shared)
    assert called  # a hook needs its layer to be called
    assert layerwise.shape == vmapped.shape
    torch.testing.assert_close(layerwise, vmapped, rtol=1e-13, atol=1e-13)
    for r in range(3):
        own = x if shared else x[r]
        torch.testing.assert_close(layerwise[r], ensemble.replica(r)(own), rtol=1e-13, atol=1e-13)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.layer(x), 0.5, self.training)


@pytest.mark.parametrize("net", [nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)), Noisy()], ids=["layers", "vmap"])
def test_copies_of_one_network_differ_by_their_noise_alone(net: nn.Module) -> None:
    ensemble, x = ReplicaEnsemble(net, 3), torch.randn(9, 4)
    out = ensemble(x)
    assert not torch.equal(out[0], out[1])
    assert not torch.equal(out[1], out[2])
    out = ensemble.eval()(x)
    torch.testing.assert_close(out, net.eval()(x).expand(3, 9, 3))


def test_tied_parameters_stay_tied_and_frozen_ones_frozen() -> None:
    def make() -> nn.Module:
        net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Bilinear(4, 4, 1))[:3]
        net[2].weight = net[0].weight
        net[0].bias.requires_grad_(False)
        return net

    ensemble = ReplicaEnsemble(make, 3)
    assert ensemble.network[2].weight is ensemble.network[0].weight
    assert [name for name, p in ensemble.named_parameters() if not p.requires_grad] == ["network.0.bias"]
    optimizer = torch.optim.SGD([p for p in ensemble.parameters() if p.requires_grad], lr=0.1)
    data = TensorDataset(torch.randn(20, 4), torch.randint(4, (20,)))
    train(ensemble, DataLoader(data, 5), optimizer)
    lone = alone(make, 2)
    train(lone, DataLoader(data, 5), torch.optim.SGD([p for p in lone.parameters() if p.requires_grad], lr=0.1))
    assert distance(lone, ensemble.replica(2)) < 50 * torch.finfo(torch.float32).eps
    assert ensemble.replica(2)[2].weight is not None
    assert torch.equal(ensemble.replica(2)[0].bias, alone(make, 2)[0].bias)


def test_constant_buffers_are_shared_and_random_ones_belong_to_their_replica() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("random", torch.randn(4))
            self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 1.0]), persistent=False)
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x * self.random * self.mask)

    ensemble, x = ReplicaEnsemble(Features, 3), torch.randn(5, 4)
    assert tuple(ensemble.network.random.shape) == (3, 4)
    assert tuple(ensemble.network.mask.shape) == (4,)
    assert "network.mask" not in ensemble.state_dict()
    for r in range(3):
        torch.testing.assert_close(ensemble(x)[r], alone(Features, r)(x))


@pytest.mark.parametrize("make", [mlp, CNN])
def test_an_ensemble_survives_saving_copying_and_pickling(make: Callable[[], nn.Module]) -> None:
    ensemble, x = ReplicaEnsemble(make, 3), digits()[:8][0]
    train(ensemble, DataLoader(digits(), 8), torch.optim.SGD(ensemble.parameters(), lr=0.1), 3)
    file = io.BytesIO()
    torch.save(ensemble.state_dict(), file)
    file.seek(0)
    other = ReplicaEnsemble(make, 3, seeds=[10, 11, 12])
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (other, copy.deepcopy(ensemble), pickle.loads(pickle.dumps(ensemble))):
        assert same(twin, ensemble)
        assert torch.equal(twin(x), ensemble(x))


@pytest.mark.parametrize("make", [mlp, CNN])
def test_gradients_are_clipped_as_each_replica_alone_would_clip_its_own(make: Callable[[], nn.Module]) -> None:
    # The limit is between the norms of the replicas, so that only some are clipped.
    ensemble = ReplicaEnsemble(lambda: make().double(), 4, seeds=SEEDS)
    x, y = digits(torch.float64)[:]
    per_replica(cross_entropy)(ensemble(x), y).sum().backward()
    lone = [alone(lambda: make().double(), seed) for seed in SEEDS]
    for net in lone:
        cross_entropy(net(x), y).backward()
    norms = torch.stack([nn.utils.clip_grad_norm_(net.parameters(), torch.inf) for net in lone])
    bound = norms.mean().item()
    assert norms.min() < bound < norms.max()
    torch.testing.assert_close(ensemble.clip_grad_norm_(bound), norms, rtol=1e-12, atol=0)
    for r, net in enumerate(lone):
        nn.utils.clip_grad_norm_(net.parameters(), bound)
        for ours, theirs in zip(ensemble.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(ours.grad[r], theirs.grad, rtol=1e-10, atol=1e-14)


def test_a_replica_that_diverges_leaves_the_others_alone() -> None:
    ensemble = ReplicaEnsemble(lambda: nn.Linear(4, 2), 3)
    ensemble(torch.randn(5, 4)).square().sum().backward()
    for p in ensemble.parameters():
        p.grad[1] = torch.nan
    assert ensemble.clip_grad_norm_(1e-3).isnan().tolist() == [False, True, False]
    assert all(p.grad[[0, 2]].isfinite().all() for p in ensemble.parameters())


class Lone(LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.5)


class Replicas(ReplicaTraining, Lone):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        losses = per_replica(cross_entropy, shared=False)(self.net(x, shared=False), y)
        self.log_replicas("train_loss", losses)
        return losses.sum()


@pytest.mark.parametrize("clip", [("norm", 0.1), ("value", 0.01), (None, None)])
def test_a_trainer_trains_each_replica_as_it_would_alone(tmp_path: Path, clip: tuple[Any, Any]) -> None:
    options: dict[str, Any] = {"gradient_clip_algorithm": clip[0], "gradient_clip_val": clip[1], "max_steps": 52}
    data = digits()
    ours = Replicas(ReplicaEnsemble(mlp, 4, seeds=SEEDS))
    # An epoch has 7 steps, and the last has 2 samples. Lightning's count of epochs gives the order in each epoch.
    trainer = quiet_trainer(tmp_path, **options)
    trainer.fit(ours, replica_loader(data, 8, SEEDS))
    for r, seed in enumerate(SEEDS):
        lone = Lone(alone(mlp, seed))
        quiet_trainer(tmp_path, **options).fit(lone, replica_loader(data, 8, seed))
        assert distance(lone.net, ours.net.replica(r)) < 50 * torch.finfo(torch.float32).eps
    logged = trainer.callback_metrics
    each = torch.stack([logged[f"train_loss/{r}"] for r in range(4)])
    assert logged["train_loss"] == pytest.approx(each.mean().item(), rel=1e-6)
    assert len(set(each.tolist())) == 4


def test_a_norm_that_belongs_to_no_replica_is_refused(tmp_path: Path) -> None:
    module = Replicas(ReplicaEnsemble(mlp, 4))
    module.temperature = nn.Parameter(torch.ones(()))
    with pytest.raises(
        ValueError, match=r"gradient_clip_val=0.3 .* outside any ReplicaEnsemble.*optimiser of their own"
    ):
        quiet_trainer(tmp_path, gradient_clip_val=0.3).fit(module, replica_loader(digits(), 8, range(4)))


class ByHand(Replicas):
    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.automatic_optimization = False
        self.norms: list[list[float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.clip_gradients(optimizer, gradient_clip_val=1e-3)
        self.norms.append(self.net.clip_grad_norm_(torch.inf).tolist())
        optimizer.step()


def test_clipping_by_hand_is_per_replica_too(tmp_path: Path) -> None:
    module = ByHand(ReplicaEnsemble(mlp, 4))
    quiet_trainer(tmp_path, max_steps=3).fit(module, replica_loader(digits(), 8, range(4)))
    assert module.norms == [pytest.approx([1e-3] * 4, rel=0.01)] * 3


def test_the_order_of_bases_that_would_not_clip_is_refused() -> None:
    with pytest.raises(TypeError, match="class Net: name ReplicaTraining before LightningModule"):

        class Net(LightningModule, ReplicaTraining):
            pass


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make", [mlp, CNN])
def test_clones_go_on_as_the_one_they_are_clones_of(make: Callable[[], nn.Module], optimizer: str) -> None:
    ensemble = ReplicaEnsemble(make, 3)
    optimizing = OPTIMIZERS[optimizer](ensemble.parameters())
    loader = replica_loader(digits(), 8, [0, 1, 2])
    train(ensemble, loader, optimizing, 9, shared=False)
    assert distance(ensemble.replica(0), ensemble.replica(1)) > 0.05
    lone = ensemble.replica(1)
    going_on = OPTIMIZERS[optimizer](lone.parameters())
    for own, of_all in zip(lone.parameters(), ensemble.parameters(), strict=True):
        going_on.state[own] = {
            key: (value[1] if value.dim() else value).clone()
            for key, value in optimizing.state[of_all].items()
            if value is not None
        }
    ensemble.clone_from(1, optimizing)
    assert all(same(ensemble.replica(r), lone) for r in range(3))
    # With the same noise, all replicas go the way of replica 1 alone, with its momentum.
    train(ensemble, DataLoader(digits(), 8), optimizing, 9)
    train(lone, DataLoader(digits(), 8), going_on, 9)
    assert all(distance(ensemble.replica(r), lone) < 50 * torch.finfo(torch.float32).eps for r in range(3))
    # With different noise, they part.
    train(ensemble, loader, optimizing, 9, shared=False)
    assert distance(ensemble.replica(0), ensemble.replica(1)) > 1e-3


def test_an_optimiser_that_couples_replicas_has_no_clones() -> None:
    ensemble = ReplicaEnsemble(lambda: nn.Linear(4, 4), 4)
    optimizer = torch.optim.Adafactor(ensemble.parameters())
    train(ensemble, DataLoader(TensorDataset(torch.randn(8, 4), torch.randint(4, (8,))), 4), optimizer, 2)
    before = copy.deepcopy(ensemble)
    with pytest.raises(ValueError, match=r"Adafactor keeps .* use one that treats each coordinate by itself"):
        ensemble.clone_from(0, optimizer)
    assert same(ensemble, before)


class Counting(Springs):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(5, 3))


class Adds(Counting):
    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.w * x


class AddsWhatDiffers(Counting):
    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_((self.w * x).detach().mean(0))
        return self.w * x


class Assigns(Counting):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1
        return self.w * x


class Branches(Springs):
    def forward(self, x: Tensor) -> Tensor:
        return self.w * x if self.w.sum() > 0 else x


class Reads(Springs):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.w.sum().item()


class Masks(Springs):
    def forward(self, x: Tensor) -> Tensor:
        return (self.w * x)[self.w * x > 0]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


@pytest.mark.parametrize("make", [Adds, AddsWhatDiffers, Assigns, Branches, Reads, Masks, Recurrent])
@pytest.mark.parametrize("shared", [True, False])
def test_what_vmap_cannot_take_is_refused_at_the_first_forward(make: Callable[[], nn.Module], shared: bool) -> None:
    ensemble = ReplicaEnsemble(make, 2)
    with pytest.raises(RuntimeError, match=rf"{make.__name__} runs alone but not as a batch.*use torch\.where.*concat"):
        ensemble(torch.randn(7, 5, 3) if shared else torch.randn(2, 7, 5, 3), shared=shared)


def test_an_error_of_the_network_itself_is_left_as_it_is() -> None:
    with pytest.raises(RuntimeError, match=r"^The size of tensor a \(3\) must match"):
        ReplicaEnsemble(Springs, 2)(torch.randn(7, 5, 4))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        ReplicaEnsemble(mlp, 2)(torch.randn(7, 72))


class AnyWidth(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 3 + int(torch.randint(1000, ())))


def transposed() -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3))
    network[1].weight = nn.Parameter(network[0].weight.t())
    return network


class PlainTensor(Springs):
    def __init__(self) -> None:
        super().__init__()
        self.features = torch.randn(3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ReplicaEnsemble(lambda: nn.BatchNorm1d(3), 2), "BatchNorm1d.*running statistics.*nn.GroupNorm"),
        (
            lambda: ReplicaEnsemble(nn.Sequential(nn.InstanceNorm1d(3, affine=True, track_running_stats=True)), 2),
            "track_running_stats=False",
        ),
        (lambda: ReplicaEnsemble(nn.Sequential(nn.LazyLinear(3)), 2), "no shape yet"),
        (lambda: ReplicaEnsemble(transposed(), 2), r"'0.weight' and '1.weight' are two Parameter objects that share"),
        (lambda: ReplicaEnsemble(nn.Tanh(), 2), "Tanh has no parameters"),
        (lambda: ReplicaEnsemble(AnyWidth, 2), "replica 1 has other parameters"),
        (lambda: ReplicaEnsemble(PlainTensor, 2), "PlainTensor.features is a tensor.*register_buffer"),
        (lambda: ReplicaEnsemble(mlp, 0), "n_replica=0"),
        (lambda: ReplicaEnsemble(mlp, 2.0), "n_replica=2.0"),
        (lambda: ReplicaEnsemble(mlp, 2, seeds=[1]), r"seeds=\[1\] are 1, not n_replica=2"),
        (lambda: ReplicaEnsemble(mlp, 2, seeds=[1, -1]), r"seeds=\[1, -1\]"),
        (lambda: ReplicaEnsemble(mlp(), 2, seeds=[1, 2]), "give the function that makes it"),
        (lambda: ReplicaEnsemble(mlp, 2)(torch.randn(3, 36), shared=False), r"n_replica=2.*\(3, 36\).*shared=True"),
        (lambda: ReplicaEnsemble(mlp, 2).clip_grad_norm_(0), "max_norm=0"),
        (lambda: ReplicaEnsemble(mlp, 2).clone_from(2), r"r=2 is no replica: there are 0 \.\.\. 1"),
        (lambda: ReplicaEnsemble(mlp, 2).replica(-1), "r=-1"),
        (lambda: per_replica(cross_entropy, shared=False)(torch.zeros(2, 5, 3), torch.zeros(5)), "n_replica=2"),
        (lambda: ReplicaBatchSampler(5, 6, 0), "batch_size=6 must be a whole number.*n_samples=5"),
        (lambda: ReplicaBatchSampler(5, 2, []), r"seeds=\[\]"),
    ],
)
def test_what_is_wrong_is_named_with_its_value_and_the_remedy(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("network", ["mlp", lambda: 3])
def test_what_is_no_network_is_refused(network: Any) -> None:
    with pytest.raises(TypeError, match="network="):
        ReplicaEnsemble(network, 2)


@pytest.mark.parametrize("shared", [True, False])
def test_losses_and_metrics_are_those_of_each_replica(shared: bool) -> None:
    out = torch.randn(3, 20, 5, dtype=torch.float64)
    labels = torch.randint(5, (20,) if shared else (3, 20))
    missing = torch.where(torch.rand(labels.shape) < 0.3, -100, labels)
    for function, y, loop in [
        (cross_entropy, labels, False),
        (cross_entropy, missing, False),
        (cross_entropy, torch.rand(*labels.shape, 5, dtype=torch.float64), False),
        (nn.CrossEntropyLoss(label_smoothing=0.1), labels, False),
        (nn.functional.mse_loss, torch.randn(*labels.shape, 5, dtype=torch.float64), False),
        (lambda o, y: multiclass_accuracy(o, y, num_classes=5), labels, True),
    ]:
        each = torch.stack([function(out[r], y if shared else y[r]) for r in range(3)])
        torch.testing.assert_close(per_replica(function, shared=shared, loop=loop)(out, y), each)
        assert len(set(each.tolist())) == 3


def test_the_order_of_a_replica_depends_on_its_seed_and_the_epoch_alone() -> None:
    sampler = ReplicaBatchSampler(23, 5, [4, 9, 4])
    lone = ReplicaBatchSampler(23, 5, 9)
    epochs = []
    for _ in range(3):
        batches, own = list(sampler), list(lone)
        assert [tuple(batch.shape) for batch in batches] == [(3, 5)] * 4 + [(3, 3)]
        assert all(torch.equal(batch[1], single) for batch, single in zip(batches, own, strict=True))
        assert all(torch.equal(batch[0], batch[2]) for batch in batches)
        epochs.append(torch.cat(batches, dim=1))
        assert all(row.sort().values.tolist() == list(range(23)) for row in epochs[-1])
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0][0], epochs[0][1])
    sampler.set_epoch(1)
    assert torch.equal(torch.cat(list(sampler), dim=1), epochs[1])
    assert (
        len(list(ReplicaBatchSampler(23, 5, 9, drop_last=True)))
        == len(ReplicaBatchSampler(23, 5, 9, drop_last=True))
        == 4
    )


def test_a_sampler_goes_on_in_the_middle_of_an_epoch() -> None:
    sampler = ReplicaBatchSampler(23, 5, [4, 9])
    list(sampler)
    passing = iter(sampler)
    next(passing), next(passing)
    other = ReplicaBatchSampler(23, 5, [4, 9])
    other.load_state_dict(sampler.state_dict())
    other.set_epoch(1)  # as Lightning does. It is in this epoch already
    rest = list(passing)
    assert len(rest) == 3
    assert all(torch.equal(a, b) for a, b in zip(other, rest, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(other, sampler, strict=True))  # then the next epoch from its start


class Squares(Dataset[Any]):
    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> tuple[float, dict[str, int]]:
        return float(index) ** 2, {"index": index}


class Rows(Dataset[Any]):
    def __init__(self, rows: TensorDataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


@pytest.mark.parametrize("workers", [0, 1])
def test_any_data_set_is_read_in_batches_for_each_replica(workers: int) -> None:
    options: dict[str, Any] = {"multiprocessing_context": "fork"} if workers else {}
    loader = replica_loader(Squares(), 5, [4, 9], num_workers=workers, **options)
    lone = replica_loader(Squares(), 5, 9)
    for (squares, more), (own, _), indices in zip(loader, lone, ReplicaBatchSampler(23, 5, [4, 9]), strict=True):
        assert torch.equal(more["index"], indices)
        assert torch.equal(squares, indices.double() ** 2)
        assert torch.equal(squares[1], own)


def test_tensors_are_read_as_any_data_set_is() -> None:
    data = digits()
    for ours, theirs in zip(replica_loader(data, 8, [4, 9]), replica_loader(Rows(data), 8, [4, 9]), strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


def test_a_module_says_which_of_its_parameters_have_an_axis_of_replicas() -> None:
    module = nn.ModuleDict({"ensemble": ReplicaEnsemble(CNN, 5), "other": nn.Linear(2, 2)})
    axes = replica_axes(module)
    named = dict(module.named_parameters())
    assert set(named) - set(axes) == {"other.weight", "other.bias"}
    assert all(n == 5 == len(named[name]) for name, n in axes.items())

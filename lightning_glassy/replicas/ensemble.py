"""Replicas: R independent realisations of one training, run as one batched network.

Every tensor (parameters, outputs, losses, norms) has the replicas as its first axis: slice r belongs to replica r. Only
the loss sums over this axis, so each replica follows the trajectory that it would have alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_glassy.replicas.layers import NotBatched, plain_layers, run, run_plain


class ReplicaEnsemble(nn.Module):
    """R independent realisations of a network, trained together by one optimiser.

    Each parameter is one tensor ``[n_replica, ...]``. Its name is the name in the network with the prefix ``network.``.
    Minimise the sum of the losses of the replicas. The gradient of this sum with respect to replica r is the gradient
    of the loss of r alone. An optimiser that treats each coordinate separately (SGD, momentum, Adam, weight decay and
    most others) then updates each replica as in a lone run.

    Other optimisers (LBFGS, Adafactor, Muon, LARS) couple the replicas. The gradient scaler of ``16-mixed`` also
    couples them, because it skips a step for all replicas: use ``bf16-mixed``. Clipping by the norm of all gradients
    also couples them: use :meth:`clip_grad_norm_` or :class:`ReplicaTraining`.

    Replica r equals the lone run with its seed bit for bit at the start. Afterwards it is equal up to the rounding of
    its dtype, because a batched matrix product may add in another order. Layers that draw random numbers in the forward
    pass (dropout) draw different numbers for each replica. These numbers also differ from the numbers of the lone run.

    Args:
        network: a function or class that takes no arguments and returns a network, or a network. If it is a network,
            all replicas start as copies of it.
        n_replica: number of replicas, at least 1.
        seeds: one seed for each replica. The function is called after ``torch.manual_seed(seed)``, so equal seeds make
            equal weights. The default is ``0 ... n_replica - 1``. The global random state is restored afterwards.
            Do not give seeds if ``network`` is a network. Attributes that are neither parameter nor buffer come from
            the first replica.

    Attributes:
        network: the network with stacked parameters. Do not call it directly. A buffer that is equal in all replicas is
            shared, any other buffer is stacked.
        n_replica: number of replicas.
        seeds: seeds of the initial weights, ``None`` for copies of one network.

    Raises:
        TypeError: ``network`` is neither a network nor a function that returns a network.
        ValueError: an argument is out of range, seeds are given with a ready network, the networks differ in more than
            their weights, a network has no parameters, or a layer keeps running statistics or has no shape yet.

    Note:
        Under DDP, each process can train a part of the replicas (:meth:`split`), so that several GPUs train more
        replicas in the same time. All processes hold all replicas.

        Linear layers, convolutions, pooling, the usual activations, group, layer and batch norm, dropout, sums,
        products and changes of shape run on all replicas at once: one matrix product for each ``Linear``, one grouped
        convolution for each convolution. This holds for an ``nn.Sequential`` and for a network with its own
        ``forward``. It computes the same function as ``vmap`` (see below) in about half of the time if the layers are
        small (``benchmarks/results/replicas.md`` compares with a single network).

        If the network calls any other torch function, or if a layer has hooks, the whole forward pass is
        ``torch.func.vmap`` of ``torch.func.functional_call``. The first call raises an error if the control flow of the
        network depends on its data, or if the network calls ``.item()`` or writes into its buffers.

    Example:
        >>> from lightning_glassy.replicas import per_replica
        >>> make = lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> ensemble = ReplicaEnsemble(make, 8)
        >>> {name: tuple(p.shape) for name, p in ensemble.named_parameters()}["network.0.weight"]
        (8, 3, 4)
        >>> x, y = torch.randn(5, 4), torch.randint(2, (5,))
        >>> losses = per_replica(nn.functional.cross_entropy)(ensemble(x), y)
        >>> tuple(losses.shape)
        (8,)
        >>> losses.sum().backward()
    """

    def __init__(
        self, network: Callable[[], nn.Module] | nn.Module, n_replica: int, *, seeds: Iterable[int] | None = None
    ) -> None:
        super().__init__()
        if isinstance(n_replica, bool) or not isinstance(n_replica, int) or n_replica < 1:
            raise ValueError(f"n_replica={n_replica!r} must be a whole number, at least 1")
        _keep_freed_memory()
        self.n_replica = n_replica
        self.seeds: tuple[int, ...] | None
        if isinstance(network, nn.Module):
            if seeds is not None:
                raise ValueError(
                    f"seeds={seeds!r} are of no use to a network that is made already: give the function that makes it"
                )
            self.seeds = None
            networks = [deepcopy(network)] * self.n_replica
        elif callable(network):
            self.seeds = check_seeds(range(self.n_replica) if seeds is None else seeds)
            if len(self.seeds) != self.n_replica:
                raise ValueError(f"seeds={list(self.seeds)} are {len(self.seeds)}, not n_replica={self.n_replica}")
            networks = [_make(network, seed) for seed in self.seeds]
        else:
            raise TypeError(f"network={network!r} is neither a torch network nor a function that makes one")
        _refuse(network if isinstance(network, nn.Module) else networks[0])
        self.network = networks[0]
        self._stacked_buffers = _stack(networks)
        self._part: slice | None = None
        self._ruled: dict[tuple[bool, bool, bool], bool] = {}

    def split(self, rank: int, size: int) -> range:
        """Restrict forward passes in training mode to the part of the replicas that belongs to this process.

        Outputs and losses then have the shape ``[n_here, ...]``, and so do the inputs for ``shared=False``. The
        gradients of all other replicas are zero in this process. The sum of the gradients over the processes is the
        gradient of all replicas. :class:`ReplicaTraining` calls this method under DDP. ``split(0, 1)`` ends the split.

        Args:
            rank: rank of this process.
            size: number of processes, at most ``n_replica``.

        Returns:
            The numbers of the replicas of this process.

        Raises:
            ValueError: there are more processes than replicas, or there is no such rank.
        """
        if not 0 <= rank < size <= self.n_replica:
            raise ValueError(
                f"rank={rank} of size={size} processes cannot share n_replica={self.n_replica} replicas out"
            )
        part = range(rank * self.n_replica // size, (rank + 1) * self.n_replica // size)
        self._part = None if size == 1 else slice(part.start, part.stop)
        return part

    def forward(self, *inputs: Any, shared: bool = True) -> Any:
        """Return the outputs of all replicas.

        Args:
            inputs: the inputs of one network.
            shared: ``True`` if all replicas get the same inputs ``[B, ...]``, ``False`` if each replica gets separate
                inputs, as tensors ``[n_replica, B, ...]``.

        Returns:
            The outputs of the network with the replicas as first axis: ``[n_replica, B, ...]``.

        Raises:
            ValueError: ``shared=False``, and an input has no replica axis.
            RuntimeError: the network runs alone, but not as a batch of replicas.
        """
        part = self._part if self.training else None
        n_here = self.n_replica if part is None else part.stop - part.start
        if not shared:
            check_axis(n_here, inputs)
        try:
            outputs = self._by_rules(inputs, n_here, shared, part)
            return self._vmap(inputs, shared, part) if outputs is NotImplemented else outputs
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._ruled.clear()  # the inputs may be the cause
            # Run one replica alone first. A network that also fails alone raises its own, clearer error here.
            with torch.no_grad():
                self.replica(0)(*(x if shared else x[0] for x in inputs))
            raise RuntimeError(
                f"{type(self.network).__name__} runs alone but not as a batch of replicas: "
                f"{str(error).splitlines()[0]} {_REMEDY}"
            ) from error

    def _by_rules(self, inputs: tuple[Any, ...], n_here: int, shared: bool, part: slice | None) -> Any:
        """Return the outputs by the rules of ``layers``, or ``NotImplemented`` if there is no rule for something."""
        kind = (self.training, shared, torch.is_grad_enabled())
        modules = list(self.network.modules())
        if not self._ruled.get(kind, True) or not _plain_calls(modules):
            return NotImplemented
        own: list[Tensor] = [p for module in modules for p in module._parameters.values() if p is not None]
        own += [self.network.get_buffer(name) for name in self._stacked_buffers]
        stacked = {id(tensor): tensor if part is None else tensor[part] for tensor in own}
        try:
            if len(inputs) == 1 and (layers := plain_layers(self.network)):
                return run_plain(layers, stacked, inputs[0], n_here, shared)
            if kind not in self._ruled:
                # Try a copy first, with the same tensors. The code of a network may change attributes of the network
                # or draw random numbers before it comes to a function without a rule.
                tensors = {id(t): t for t in (*self.network.parameters(), *self.network.buffers())}
                # Activation checkpointing counts the tensors that are saved. It must not count the tensors of the
                # trial.
                unseen = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
                self._ruled[kind] = False
                with torch.random.fork_rng(devices=_cuda_devices()), unseen, suppress(NotBatched, Exception):
                    copy = deepcopy(self.network, tensors)
                    _run_rules(copy, list(copy.modules()), stacked, inputs, n_here, shared)
                    self._ruled[kind] = True
            if self._ruled[kind]:
                return _run_rules(self.network, modules, stacked, inputs, n_here, shared)
        except torch.OutOfMemoryError:
            raise
        except (NotBatched, RuntimeError):  # vmap can do it, or reports the fault
            self._ruled[kind] = False
        return NotImplemented

    def _vmap(self, inputs: tuple[Any, ...], shared: bool, part: slice | None) -> Any:
        parameters: dict[str, Tensor] = dict(self.network.named_parameters())
        buffers = dict(self.network.named_buffers())
        if part is not None:
            parameters = {name: parameter[part] for name, parameter in parameters.items()}
            buffers = {name: b[part] if name in self._stacked_buffers else b for name, b in buffers.items()}
        versions = {name: buffer._version for name, buffer in buffers.items()}
        assigned: set[str] = set()

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: tuple[Any, ...]) -> Any:
            tensors = parameters | buffers
            outputs = functional_call(self.network, tensors, inputs)
            assigned.update(name for name, buffer in buffers.items() if tensors[name] is not buffer)
            return outputs

        axes: dict[str, int | None] = {name: 0 if name in self._stacked_buffers else None for name in buffers}
        outputs = vmap(one, in_dims=(0, axes, None if shared else 0), randomness="different")(
            parameters, buffers, inputs
        )
        assigned.update(name for name, buffer in buffers.items() if buffer._version != versions[name])
        if assigned:
            raise RuntimeError(f"vmap: the forward pass writes into the buffer {min(assigned)!r}.")
        return outputs

    def replica(self, r: int) -> nn.Module:
        """Return a copy of replica ``r`` as an ordinary network.

        Raises:
            ValueError: there is no such replica.
        """
        self._check_replica(r)
        lone = deepcopy(self.network)
        _replace(lone, lambda name, parameter: parameter.detach()[r].clone())
        _replace_buffers(lone, {name: lone.get_buffer(name)[r].clone() for name in self._stacked_buffers})
        return lone

    @torch.no_grad()
    def clone_from(self, r: int, *optimizers: Optimizer) -> None:
        """Make all replicas equal to replica ``r``. The clones move apart again if their noise differs.

        Args:
            r: the replica to copy. Its parameters, gradients and buffers are copied.
            optimizers: the optimisers of the ensemble. Their state for each parameter (momentum and similar) is copied,
                too.

        Raises:
            ValueError: there is no such replica, or an optimiser keeps a tensor without a replica axis.
        """
        self._check_replica(r)
        tensors = [*self.parameters(), *(self.network.get_buffer(name) for name in self._stacked_buffers)]
        tensors += [p.grad for p in self.parameters() if p.grad is not None]
        for parameter in self.parameters():
            for optimizer in optimizers:
                for key, value in optimizer.state.get(parameter, {}).items():
                    # A step count has no dimension and is shared by all replicas.
                    if isinstance(value, Tensor) and value.dim():
                        if value.shape != parameter.shape:
                            raise ValueError(
                                f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} for a "
                                f"parameter of shape {tuple(parameter.shape)}: use one that treats each coordinate "
                                "by itself, such as SGD or Adam"
                            )
                        tensors.append(value)
        for tensor in tensors:
            tensor.copy_(tensor[r].clone().expand_as(tensor))

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scale the gradient of each replica to a Euclidean norm of at most ``max_norm``, as if it were alone.

        Returns:
            The norms before clipping, ``[n_replica]``.

        Raises:
            ValueError: ``max_norm`` is not a positive number.
        """
        return clip_norms(list(self.parameters()), max_norm)

    def extra_repr(self) -> str:
        """Return the text that ``print`` shows in addition to the network."""
        return f"n_replica={self.n_replica}"

    def _check_replica(self, r: int) -> None:
        if isinstance(r, bool) or not isinstance(r, int) or not 0 <= r < self.n_replica:
            raise ValueError(f"r={r!r} is no replica: there are 0 ... {self.n_replica - 1}")


_REMEDY = (
    "torch.func.vmap takes no control flow that depends on data (use torch.where), no .item() and no NumPy, no buffers "
    "that the forward pass writes into (keep such averages outside the network), no nn.LSTM or nn.GRU. Otherwise train "
    "the replicas one by one and join their records with AgingRecord.concat"
)


def check_seeds(seeds: Iterable[int]) -> tuple[int, ...]:
    """Return the seeds as a tuple of integers.

    Raises:
        ValueError: there are no seeds, or a seed is not a whole number of 0 or more.
    """
    found = tuple(seeds)
    if not found or any(isinstance(s, bool) or not isinstance(s, (int, np.integer)) or s < 0 for s in found):
        raise ValueError(f"seeds={list(found)} must be whole numbers, 0 or more, one for each replica")
    return tuple(int(seed) for seed in found)


def _cuda_devices() -> Sequence[int]:
    """Return the GPUs with random numbers, without initialising CUDA: the process could no longer fork afterwards."""
    return range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the random numbers as ``torch.manual_seed(seed)`` does, and restore the old state on exit."""
    devices = _cuda_devices()
    with torch.random.fork_rng(devices=devices):
        if devices:
            torch.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)
        yield


def _make(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    with _seeded(seed):
        network = factory()
    if not isinstance(network, nn.Module):
        raise TypeError(f"network={factory!r} made {network!r}, which is no torch network")
    return network


def _refuse(network: nn.Module) -> None:
    """Raise an error for networks that will fail, before any data arrive."""
    parameters = dict(network.named_parameters())
    if not parameters:
        raise ValueError(f"network: {type(network).__name__} has no parameters: there is nothing to replicate")
    for name, module in network.named_modules():
        where = f"network: layer {name!r} ({type(module).__name__})"
        if isinstance(module, _NormBase) and module.running_mean is not None:
            raise ValueError(
                f"{where} keeps running statistics, which a batch of replicas cannot: use nn.GroupNorm or "
                "nn.LayerNorm, or track_running_stats=False"
            )
    for name, parameter in parameters.items():
        if is_lazy(parameter):
            raise ValueError(f"network: {name!r} has no shape yet: give the layer its sizes, or call the network once")
    starts: dict[int, str] = {}
    for name, parameter in parameters.items():
        address = parameter.data_ptr() if parameter.numel() and not parameter.is_meta else 0
        if address and (other := starts.setdefault(address, name)) != name:
            raise ValueError(
                f"network: {other!r} and {name!r} are two Parameter objects that share memory, which copies of them do "
                "not: use one nn.Parameter for both"
            )


def _stack(networks: Sequence[nn.Module]) -> frozenset[str]:
    """Stack parameters and buffers of all networks into the first network, and return the names of stacked buffers."""
    kinds = [
        {name: (tensor.shape, tensor.dtype) for name, tensor in (*n.named_parameters(), *n.named_buffers())}
        for n in networks
    ]
    if odd := [r for r, kind in enumerate(kinds) if kind != kinds[0]]:
        raise ValueError(
            f"network: replica {odd[0]} has other parameters or buffers than replica 0: replicas may differ in their "
            "values alone"
        )
    for modules in zip(*(n.modules() for n in networks), strict=True):
        for key, value in vars(modules[0]).items():
            if isinstance(value, Tensor) and not all(torch.equal(vars(module)[key], value) for module in modules):
                raise ValueError(
                    f"network: {type(modules[0]).__name__}.{key} is a tensor that differs between replicas: make it a "
                    "parameter or a buffer (register_buffer)"
                )
    parameters = [dict(n.named_parameters()) for n in networks]
    buffers = [dict(n.named_buffers()) for n in networks]
    stacked = {
        name: torch.stack([own[name] for own in buffers])
        for name, first in buffers[0].items()
        if not all(torch.equal(own[name], first) for own in buffers)
    }
    _replace(networks[0], lambda name, _: torch.stack([own[name].detach() for own in parameters]))
    _replace_buffers(networks[0], stacked)
    return frozenset(stacked)


def _replace(network: nn.Module, value: Callable[[str, nn.Parameter], Tensor]) -> None:
    """Replace all parameters. Tied parameters stay tied."""
    new: dict[nn.Parameter, nn.Parameter] = {}
    for name, old in list(network.named_parameters(remove_duplicate=False)):
        if old not in new:
            new[old] = nn.Parameter(value(name, old), requires_grad=old.requires_grad)
        owner, _, leaf = name.rpartition(".")
        network.get_submodule(owner)._parameters[leaf] = new[old]


def _replace_buffers(network: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        owner, _, leaf = name.rpartition(".")
        network.get_submodule(owner)._buffers[leaf] = value


def check_axis(n_replica: int, inputs: Iterable[Any]) -> None:
    """Raise an error for inputs without a replica axis.

    Raises:
        ValueError: an input is not a tensor ``[n_replica, ...]``.
    """
    for x in inputs:
        if not isinstance(x, Tensor) or x.dim() == 0 or len(x) != n_replica:
            found = f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else repr(x)
            raise ValueError(
                f"shared=False asks for tensors [n_replica={n_replica}, ...], not {found}: shared=True gives all "
                "replicas the same"
            )


def _has_any_global_hook() -> bool:
    names = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    return any(getattr(torch.nn.modules.module, f"_global_{name}", None) for name in names)


def _plain_calls(modules: Iterable[nn.Module]) -> bool:
    """Return whether a call of a network runs the Python code of its layers, with no hook that sees their outputs."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or _has_any_global_hook():
        return False
    return not any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
        or "_orig_mod" in module._modules  # of torch.compile
        or isinstance(module, torch.jit.ScriptModule)
        for module in modules
    )


def _run_rules(
    network: nn.Module,
    modules: list[nn.Module],
    stacked: dict[int, Tensor],
    inputs: tuple[Any, ...],
    n_here: int,
    shared: bool,
) -> Any:
    buffers = [(module._buffers, dict(module._buffers)) for module in modules if module._buffers]
    try:
        outputs = run(network, stacked, inputs, n_here, shared)
        if any(now.get(name) is not buffer for now, before in buffers for name, buffer in before.items()):
            raise NotBatched
    finally:
        for now, before in buffers:
            now.update(before)
    return outputs


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory up to 64 MB for the next step, where it would return it to the system.

    Getting it back took a third to half of the time of a step of convolutions. glibc keeps twice the size of the
    largest block of up to 32 MB that was ever freed. Nothing is written to this block, so it takes no memory.
    """
    torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8, device="cpu")


def replica_axes(module: nn.Module) -> dict[str, int]:
    """Return ``{name: number of replicas}`` for the parameters of a module that have a replica axis.

    Names come from ``module.named_parameters(remove_duplicate=False)``. Parameters outside a :class:`ReplicaEnsemble`
    are left out.

    Example:
        >>> replica_axes(nn.Sequential(ReplicaEnsemble(nn.Linear(2, 2), 3), nn.Linear(2, 2)))
        {'0.network.weight': 3, '0.network.bias': 3}
    """
    owners = replica_owners(module)
    named = module.named_parameters(remove_duplicate=False)
    return {name: owners[parameter] for name, parameter in named if parameter in owners}


def replica_owners(module: nn.Module) -> dict[nn.Parameter, int]:
    """Return the parameters of all ensembles in a module, each with its number of replicas."""
    return {
        parameter: ensemble.n_replica
        for ensemble in module.modules()
        if isinstance(ensemble, ReplicaEnsemble)
        for parameter in ensemble.parameters()
    }


def clip_norms(parameters: Sequence[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients of each replica to a Euclidean norm of at most ``max_norm``.

    Args:
        parameters: parameters of shape ``[n_replica, ...]``.
        max_norm: largest norm after clipping.

    Returns:
        The norms before clipping, ``[n_replica]``.

    Raises:
        ValueError: ``max_norm`` is not a positive number.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm={max_norm!r} must be a positive number")
    n_replica = len(parameters[0])
    with torch.no_grad():
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return torch.zeros(n_replica, device=parameters[0].device)
        parts = [torch.linalg.vector_norm(gradient.reshape(n_replica, -1), dim=1) for gradient in gradients]
        norms: Tensor = torch.linalg.vector_norm(torch.stack([part.to(parts[0]) for part in parts]), dim=0)
        # torch.nn.utils.clip_grad_norm_ also adds 1e-6, and a lone run must be clipped in the same way.
        scale = (max_norm / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale.to(gradient).view(-1, *[1] * (gradient.dim() - 1)))
    return norms

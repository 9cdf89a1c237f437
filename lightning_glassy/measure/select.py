"""Select the parameters to measure, and the groups they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_glassy.measure.shards import Processes, Shard, block_of, shards_of

Groups = Literal["all", "layer"] | Mapping[str, str | Sequence[str]]


# What wrappers put into the names of parameters, and nobody wrote.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def plain_name(name: str) -> str:
    """The name of a parameter without what ``torch.compile`` and other wrappers put into it.

    Example:
        >>> plain_name("_orig_mod.layer.weight")
        'layer.weight'
    """
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


@dataclass(frozen=True)
class Selected:
    """One tracked parameter.

    Attributes:
        name: of the parameter.
        tensor: the parameter itself, or the shard that stands for it where it is spread over processes.
        groups: those it is in (``"all"`` left out).
        counted: whether this process is the one that counts what it holds of it.
        n_replica: where the first axis of the tensor is that of the replicas, their number.
    """

    name: str
    tensor: Tensor | Shard
    groups: tuple[str, ...]
    counted: bool = True
    n_replica: int | None = None

    @property
    def numel(self) -> int:
        """Number of real coordinates of a replica, over all processes: a complex number has two."""
        return self.tensor.numel() // (self.n_replica or 1) * (2 if self.tensor.is_complex() else 1)

    @property
    def n_counted(self) -> int:
        """Number of those that this process counts."""
        return 0 if not self.counted else self.tensor.block.numel if isinstance(self.tensor, Shard) else self.numel

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the real coordinates."""
        return self.tensor.dtype.to_real() if self.tensor.is_complex() else self.tensor.dtype


def select_parameters(
    named_parameters: nn.Module | Iterable[tuple[str, Tensor]],
    *,
    groups: Groups = "all",
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> list[Selected]:
    """The trainable parameters to track, each once, with the groups each belongs to.

    Patterns are those of a shell (``"encoder.*"``, ``"*.weight"``), matched against the whole name with its case. A
    tensor that is tied, i.e. reachable under several names, is counted once and matches by any of its names.

    Args:
        named_parameters: the module; or pairs as from ``module.named_parameters(remove_duplicate=False)``.
        groups: ``"all"`` for one group; ``"layer"`` for one group per module that owns parameters; or a mapping of
            group names to a pattern or several. The group ``"all"`` always exists besides.
        include: only parameters that match one of these; default all that are trainable.
        exclude: leave out parameters that match one of these.

    Raises:
        ValueError: nothing to track, a pattern that matches nothing, a group called ``"all"``, a parameter whose
            shape or values are not there yet, or one that is sparse.
        UnmeasurableError: a parameter that is spread over processes in a way that cannot be measured rightly.
        TypeError: something else than names and tensors.
    """
    tensors: dict[tuple[object, ...], tuple[Tensor | Shard, list[str]]] = {}
    frozen: list[str] = []
    check_patterns(groups, include, exclude)
    module = named_parameters if isinstance(named_parameters, nn.Module) else None
    named = list(named_parameters if module is None else module.named_parameters(remove_duplicate=False))  # type: ignore[arg-type]
    for item in named:
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)):
            raise TypeError("named_parameters must give pairs of a name and a tensor, as model.named_parameters() does")
    shards = shards_of(module, named)
    for name, parameter in named:
        tensor, name = shards.get(id(parameter), parameter), plain_name(name)
        if not parameter.requires_grad:
            frozen.append(name)
            continue
        if torch.nn.parameter.is_lazy(parameter):
            raise ValueError(f"the parameter {name!r} has no shape yet: run one batch through the lazy module first")
        if tensor.layout != torch.strided:
            raise ValueError(f"the parameter {name!r} has the layout {tensor.layout}: only dense ones can be measured")
        if tensor.is_meta:
            raise ValueError(f"the parameter {name!r} is on the meta device: it has no values to measure")
        if tensor.numel():
            # The same memory under two Parameter objects is one coordinate as much as one object under two names. An
            # empty shard has no memory.
            key: tuple[object, ...] = (id(parameter),)
            if not isinstance(tensor, Shard):
                key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
            tensors.setdefault(key, (tensor, []))[1].append(name)

    names = [alias for _, aliases in tensors.values() for alias in aliases]
    wanted, unwanted = _patterns("include", include, names, frozen), _patterns("exclude", exclude, names, frozen)
    kept = [
        (tensor, aliases)
        for tensor, aliases in tensors.values()
        if (include is None or _matches(aliases, wanted)) and not _matches(aliases, unwanted)
    ]
    if not kept:
        why = "all are excluded" if tensors else ("all are frozen" if frozen else "the module has none")
        raise ValueError(f"there is no trainable parameter to track ({why})")

    if isinstance(groups, Mapping):
        kept_names = [alias for _, aliases in kept for alias in aliases]
        members = {str(g): _patterns(f"groups[{g!r}]", p, kept_names, frozen) for g, p in groups.items()}
        return [
            Selected(aliases[0], tensor, tuple(g for g, patterns in members.items() if _matches(aliases, patterns)))
            for tensor, aliases in kept
        ]
    if groups == "all":
        return [Selected(aliases[0], tensor, ()) for tensor, aliases in kept]
    layers = [aliases[0].rpartition(".")[0] or aliases[0] for _, aliases in kept]
    if "all" in layers:
        raise ValueError("groups='layer': a layer is called 'all'; give a mapping of group names to patterns")
    return [Selected(aliases[0], t, (layer,)) for (t, aliases), layer in zip(kept, layers, strict=True)]


def share_out(selected: Sequence[Selected]) -> tuple[list[Selected], Processes | None]:
    """Say of parameters that are spread over processes which blocks are counted here; every process calls it.

    Returns:
        The parameters, and the processes whose sums have to be added up; ``None`` where no parameter is spread.

    Raises:
        UnmeasurableError: the parameters are spread in a way that cannot be measured rightly.
    """
    if not any(isinstance(parameter.tensor, Shard) for parameter in selected):
        return list(selected), None
    processes = Processes()
    mine = processes.claim({parameter.name: block_of(parameter.tensor) for parameter in selected})
    return [replace(p, counted=p.name in mine) for p in selected], processes


def as_replicas(selected: Sequence[Selected], n_replica: int) -> list[Selected]:
    """The same parameters, the first axis of each being that of the replicas.

    Raises:
        ValueError: a parameter that has not got that axis; the message names it.
    """
    for parameter in selected:
        whole = not isinstance(parameter.tensor, Shard)
        if not whole or not parameter.tensor.dim() or parameter.tensor.shape[0] != n_replica:
            raise ValueError(
                f"the parameter {parameter.name!r} of shape {tuple(parameter.tensor.shape)} has no axis of "
                f"n_replica={n_replica} replicas: leave out what is no part of the ensemble with exclude=..."
            )
    return [replace(parameter, n_replica=n_replica) for parameter in selected]


def check_patterns(groups: object, include: object = None, exclude: object = None) -> None:
    """Refuse groups and patterns that can be known to be wrong before there is a model.

    Raises:
        ValueError: something else than a pattern or a list of some; the message names the argument and its value.
    """
    arguments = {"include": include, "exclude": exclude}
    if isinstance(groups, Mapping):
        if "all" in groups:
            raise ValueError("groups: 'all' always exists and means every tracked parameter; choose another name")
        if not groups or not all(isinstance(group, str) for group in groups):
            raise ValueError(f"groups={groups!r} must name at least one group, by a string")
        arguments |= {f"groups[{group!r}]": [] if patterns is None else patterns for group, patterns in groups.items()}
    elif groups not in ("all", "layer"):
        raise ValueError(f"groups={groups!r} is not 'all', 'layer' or a mapping of group names to name patterns")
    for argument, patterns in arguments.items():
        several = [patterns] if isinstance(patterns, str) else patterns
        if several is None:
            continue
        if not isinstance(several, (list, tuple)) or not several or not all(isinstance(p, str) for p in several):
            raise ValueError(f"{argument}={patterns!r} must be a name pattern or a non-empty list of some")


def _patterns(argument: str, patterns: str | Sequence[str] | None, names: list[str], frozen: list[str]) -> list[str]:
    if patterns is None:
        return []
    several = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in several:
        if not _matches(names, [pattern]):
            hint = "; it matches frozen parameters only" if _matches(frozen, [pattern]) else ""
            raise ValueError(
                f"{argument}: the pattern {pattern!r} matches no trainable parameter{hint}; "
                f"the names are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
            )
    return several


def _matches(names: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)

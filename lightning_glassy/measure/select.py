"""Select the parameters to measure, and the groups they belong to."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn

from lightning_glassy.measure.places import address_of, find_overlap, place_of
from lightning_glassy.measure.shards import Processes, Shard, block_of, shards_of

Groups = Literal["all", "layer"] | Mapping[str, str | Sequence[str]]


_WILDCARD = re.compile(r"[*?\[]")

# Prefixes that wrappers insert into the names of parameters.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def plain_name(name: str) -> str:
    """Return the name of a parameter without the prefixes of ``torch.compile`` and other wrappers.

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
        name: name of the parameter.
        tensor: the parameter itself, or its shard in this process if the parameter is spread over processes.
        groups: groups of the parameter, without ``"all"``.
        counted: whether this process counts the coordinates that it holds.
        n_replica: number of replicas if the first axis of the tensor runs over replicas, otherwise ``None``.
        aliases: names of other Parameter objects in the same memory. Each has a gradient of its own.
    """

    name: str
    tensor: Tensor | Shard
    groups: tuple[str, ...]
    counted: bool = True
    n_replica: int | None = None
    aliases: tuple[str, ...] = ()

    @property
    def numel(self) -> int:
        """Number of real coordinates per replica, over all processes. A complex number has two."""
        return self.tensor.numel() // (self.n_replica or 1) * (2 if self.tensor.is_complex() else 1)

    @property
    def n_counted(self) -> int:
        """Number of coordinates per replica that this process counts."""
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
    """Select the trainable parameters to track, each once, with its groups.

    Patterns are shell patterns (``"encoder.*"``, ``"*.weight"``). They are case-sensitive and must match the whole
    name. A tied tensor, i.e. memory with several names, is counted once, even if its shape differs (a matrix and its
    transpose). It matches if one of its names matches. Call :func:`check_patterns` before, because this function does
    not check the form of its arguments.

    Args:
        named_parameters: the module, or pairs as from ``module.named_parameters(remove_duplicate=False)``.
        groups: ``"all"`` for one group, ``"layer"`` for one group per module that owns parameters, or a mapping of
            group names to one or several patterns. The group ``"all"`` always exists as well.
        include: select only parameters that match one of these patterns. By default all trainable ones are selected.
        exclude: leave out parameters that match one of these patterns.

    Raises:
        ValueError: there is nothing to track, a pattern matches nothing, a layer is called ``"all"``, the values of a
            parameter cannot be read from its memory, or two parameters share a part of their memory. The message names
            the parameter.
        UnmeasurableError: a parameter is spread over processes in a way that cannot be measured correctly.
        TypeError: an item is not a pair of a name and a tensor.
    """
    tensors: dict[tuple[object, ...], tuple[Tensor | Shard, list[str]]] = {}
    frozen: list[str] = []
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
        elif torch.nn.parameter.is_lazy(parameter) or tensor.numel():
            # Coordinates are places in memory. Without memory (an empty shard, for example), the object counts.
            located = not isinstance(tensor, Shard) and _unreadable(tensor) is None
            key = place_of(parameter) if located else (id(parameter),)
            tensors.setdefault(key, (tensor, []))[1].append(name)

    found = list(tensors.values())
    chosen = choose_names([aliases for _, aliases in found], groups, include, exclude, frozen)
    kept = [found[i] for i, _ in chosen]
    for tensor, (name, *_) in kept:
        problem = None if isinstance(tensor, Shard) else _unreadable(tensor)
        if problem is not None:
            raise ValueError(f"the parameter {name!r} {problem}, or leave it out with exclude={name!r}")
    overlap = find_overlap((names[0], tensor) for tensor, names in kept if not isinstance(tensor, Shard))
    if overlap is not None:
        what = "the parameters {!r} and {!r} share a part of their memory, which would be counted twice: leave one out"
        if overlap[0] == overlap[1]:
            what = "the parameter {!r} has several elements at one place in memory: clone it, or leave it out"
        raise ValueError(f"{what.format(*overlap)} with exclude={overlap[1]!r}")

    objects = {plain_name(name): id(parameter) for name, parameter in named}

    def others(names: list[str]) -> tuple[str, ...]:
        return tuple(name for name in names if objects[name] != objects[names[0]])

    return [
        Selected(names[0], tensor, of_groups, aliases=others(names))
        for (tensor, names), (_, of_groups) in zip(kept, chosen, strict=True)
    ]


def choose_names(
    aliases: Sequence[Sequence[str]],
    groups: Groups = "all",
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    frozen: Sequence[str] = (),
) -> list[tuple[int, tuple[str, ...]]]:
    """Choose tensors by name, as :func:`select_parameters` describes.

    Args:
        aliases: the names of each tensor. The first name decides its layer.
        groups: as for :func:`select_parameters`.
        include: as for :func:`select_parameters`.
        exclude: as for :func:`select_parameters`.
        frozen: names of parameters that are not trained. Error messages mention them.

    Returns:
        The place of each chosen tensor in ``aliases``, and its groups without ``"all"``.

    Raises:
        ValueError: no tensor is chosen, a pattern matches nothing, or a layer is called ``"all"``.

    Example:
        >>> choose_names([["head.weight", "embed.weight"], ["head.bias"]], groups="layer", exclude="*.bias")
        [(0, ('head',))]
    """
    every = _Names([name for names in aliases for name in names], frozen)
    wanted, unwanted = every.matching("include", include), every.matching("exclude", exclude)
    kept = [
        i
        for i, names in enumerate(aliases)
        if (include is None or not wanted.isdisjoint(names)) and unwanted.isdisjoint(names)
    ]
    if not kept:
        why = "all are excluded" if aliases else ("all are frozen" if frozen else "the module has none")
        raise ValueError(f"there is no trainable parameter to track ({why})")
    if _is_mapping(groups):
        left = _Names([name for i in kept for name in aliases[i]], frozen)
        of_name: dict[str, list[str]] = {}
        place = {group: k for k, group in enumerate(map(str, [*groups.keys()]))}
        for group in place:
            for name in left.matching(f"groups[{group!r}]", groups[group]):
                of_name.setdefault(name, []).append(group)
        members = [{group for name in aliases[i] for group in of_name.get(name, ())} for i in kept]
        return [(i, tuple(sorted(found, key=place.__getitem__))) for i, found in zip(kept, members, strict=True)]
    if groups == "all":
        return [(i, ()) for i in kept]
    layers = [aliases[i][0].rpartition(".")[0] or aliases[i][0] for i in kept]
    if "all" in layers:
        raise ValueError("groups='layer': a layer is called 'all'. Give a mapping of group names to patterns")
    return [(i, (layer,)) for i, layer in zip(kept, layers, strict=True)]


def _unreadable(parameter: Tensor) -> str | None:
    """Return why the values of a parameter cannot be read from its memory, and the remedy, or ``None``."""
    if torch.nn.parameter.is_lazy(parameter):
        return "has no shape yet: run one batch through the lazy module first"
    if parameter.layout != torch.strided:
        return f"has the layout {parameter.layout}: only dense ones can be measured. Make it dense"
    if parameter.is_meta:
        return "is on the meta device: it has no values to measure. Materialise it before the training"
    if parameter.is_conj() or parameter.is_neg():
        view = "conjugate" if parameter.is_conj() else "negative"
        return f"is a lazy {view} of its memory: make it nn.Parameter(tensor.resolve_conj().resolve_neg())"
    if parameter.numel() and not address_of(parameter):
        kind = type(parameter.data).__name__
        return f"is a {kind}, which has no memory of its own: train a plain tensor, as .dequantize() may return"
    return None


def share_out(selected: Sequence[Selected]) -> tuple[list[Selected], Processes | None]:
    """Decide which blocks of sharded parameters this process counts. Every process must call this function.

    Returns:
        The parameters, and the processes whose sums must be added up (``None`` if no parameter is sharded).

    Raises:
        UnmeasurableError: the parameters are spread over processes in a way that cannot be measured correctly.
    """
    if not any(isinstance(parameter.tensor, Shard) for parameter in selected):
        return list(selected), None
    processes = Processes()
    mine = processes.claim({parameter.name: block_of(parameter.tensor) for parameter in selected})
    return [replace(p, counted=p.name in mine) for p in selected], processes


def as_replicas(selected: Sequence[Selected], n_replica: int) -> list[Selected]:
    """Return the parameters with their first axis marked as the replica axis.

    Raises:
        ValueError: a parameter has no first axis of length ``n_replica``, or is sharded. The message names it.
    """
    for parameter in selected:
        whole = not isinstance(parameter.tensor, Shard)
        if not whole or not parameter.tensor.dim() or parameter.tensor.shape[0] != n_replica:
            raise ValueError(
                f"the parameter {parameter.name!r} of shape {tuple(parameter.tensor.shape)} has no axis of "
                f"n_replica={n_replica} replicas: leave out parameters outside the ensemble with exclude=..."
            )
    return [replace(parameter, n_replica=n_replica) for parameter in selected]


def check_patterns(groups: object, include: object, exclude: object) -> None:
    """Check groups and patterns as far as possible without a model.

    Raises:
        ValueError: ``groups`` is invalid, or an argument is neither a pattern nor a non-empty list of patterns. The
            message names the argument and its value.
    """
    arguments: dict[str, Any] = {"include": include, "exclude": exclude}
    if _is_mapping(groups):
        names = [*groups.keys()]
        if "all" in names:
            raise ValueError("groups: 'all' always exists and means every tracked parameter: choose another name")
        if not names or not all(isinstance(group, str) for group in names):
            raise ValueError(f"groups={groups!r} must name at least one group, by a string")
        arguments |= {f"groups[{group!r}]": [] if groups[group] is None else groups[group] for group in names}
    elif not isinstance(groups, str) or groups not in ("all", "layer"):
        raise ValueError(f"groups={groups!r} is not 'all', 'layer' or a mapping of group names to name patterns")
    for argument, patterns in arguments.items():
        # Configuration packages have lists of their own. An iterator could be read only once.
        listed = hasattr(patterns, "__len__") and hasattr(patterns, "__getitem__") and not _is_mapping(patterns)
        if patterns is not None and not (listed and len(patterns) and all(isinstance(p, str) for p in patterns)):
            raise ValueError(f"{argument}={patterns!r} must be a name pattern or a non-empty list of some")


def _is_mapping(value: object) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(value, Mapping) or (hasattr(value, "keys") and hasattr(value, "__getitem__"))


def patterns_of(patterns: str | Sequence[str] | None) -> list[str]:
    """Return the name patterns of an argument as a list."""
    return [] if patterns is None else [patterns] if isinstance(patterns, str) else list(patterns)


class _Names:
    """Names of parameters in alphabetical order. A pattern then looks only at the names with its first letters.

    With thousands of groups, a look at all names for each pattern would take minutes.
    """

    def __init__(self, names: Sequence[str], frozen: Sequence[str]) -> None:
        self._names, self._frozen = names, frozen
        self._sorted = sorted(set(names))

    def matching(self, argument: str, patterns: str | Sequence[str] | None) -> set[str]:
        """Return the names that match one of the patterns of an argument.

        Raises:
            ValueError: a pattern matches nothing.
        """
        found: set[str] = set()
        for pattern in patterns_of(patterns):
            matched = self._matching(pattern)
            if not matched:
                names, hint = self._names, ", only frozen ones" if matches(self._frozen, [pattern]) else ""
                raise ValueError(
                    f"{argument}: the pattern {pattern!r} matches no trainable parameter{hint}. "
                    f"The names are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
                )
            found.update(matched)
        return found

    def _matching(self, pattern: str) -> list[str]:
        head = _WILDCARD.split(pattern, maxsplit=1)[0]
        start = bisect_left(self._sorted, head)
        stop = bisect_right(self._sorted, head, lo=start, key=lambda name: name[: len(head)])
        candidates = self._sorted[start:stop]
        if pattern == f"{head}*":  # needs no regular expression
            return candidates
        return [name for name in candidates if fnmatchcase(name, pattern)]


def matches(names: Iterable[str], patterns: Iterable[str]) -> bool:
    """Return whether one of some names matches one of some patterns."""
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)

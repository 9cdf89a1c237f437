"""Choose the tensors of each checkpoint that are its weights, and find the tensors that all checkpoints share."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from lightning_glassy.checkpoints.content import Content
from lightning_glassy.checkpoints.stored import Stored, n_coordinates, read_scalar, real_dtype
from lightning_glassy.measure.optimizers import learning_rates, options_of
from lightning_glassy.measure.select import matches, patterns_of, plain_name
from lightning_glassy.record.text import listed

# Names that torch gives to the running statistics of normalisation layers. They are state, but not parameters.
_BUFFERS = ("*.running_mean", "*.running_var", "*.num_batches_tracked")
NOT_FLOATING = "integer, boolean or quantised"
CONSTANT = "bit-identical in every file"

_NOT_WHOLE = (
    "{}: only plain tensors, each whole in one file, can be measured. Save the full state_dict: gather a sharded model "
    "first (FSDP: state_dict_type='full'), and save a model before it is quantised"
)

Patterns = str | Sequence[str] | None


def is_stored(value: object) -> TypeGuard[Stored]:
    """Return whether a value of a checkpoint is a tensor."""
    return hasattr(value, "gather") and hasattr(value, "read")  # to ask for the place takes time


@dataclass(frozen=True)
class Weights:
    """The weights of one checkpoint.

    Attributes:
        path: the checkpoint, for messages.
        tensors: the floating-point tensors, by their names without the prefixes of wrappers.
        left_out: kinds of entries that are no weights, and how many there are.
        n_not_floating: number of coordinates of integer, boolean and quantised tensors.
        key: key of the weights in the checkpoint, with dots between nested keys. Empty for the whole checkpoint.
        averages: whether they are averages over the training.
        doubts: facts about them that a reader of the record should know, in words.
        lightning_version: version of Lightning that wrote the checkpoint, if it did.
        optimizers: options of the optimisers in a Lightning checkpoint, in the format of AgingMonitor.
        learning_rates: learning rates in a Lightning checkpoint, by their names in a record.
    """

    path: Path
    tensors: dict[str, Stored]
    left_out: Counter[str]
    n_not_floating: int
    key: str
    averages: bool
    doubts: list[str] = field(default_factory=list)
    lightning_version: str | None = None
    optimizers: list[dict[str, Any]] = field(default_factory=list)
    learning_rates: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Agreed:
    """The weights that all checkpoints have in common.

    Attributes:
        tensors: the tensors to measure of each checkpoint, with the same names, shapes and dtypes in the same order.
        aliases: other names of the same values, by the name that is measured.
        constants: names of the tensors that are left out because no bit of them differs between the checkpoints.
        left_out: kinds of entries of the first checkpoint that are not measured, and how many there are.
        doubts: facts that a reader of the record should know, in words.
    """

    tensors: list[dict[str, Stored]]
    aliases: dict[str, tuple[str, ...]]
    constants: tuple[str, ...]
    left_out: dict[str, int]
    doubts: list[str]


# ---------------------------------------------------------------------- one checkpoint


def choose(content: Content, key: str | None = None) -> Weights:
    """Choose the tensors of a checkpoint that are weights.

    The weights are at ``key``. Without a key they are the ``state_dict`` of Lightning, else the whole checkpoint, else
    the only state_dict in it. Trained weights are preferred to their averages (EMA, SWA) if the names distinguish them.

    Args:
        content: the checkpoint.
        key: key of the state_dict. Dots lead into nested dicts.

    Raises:
        ValueError: there are no weights, or there are several state_dicts. The message names the file and the remedy.

    Example:
        >>> from lightning_glassy.checkpoints.stored import InMemory
        >>> everything = {"epoch": 3, "model": {"weight": InMemory(torch.ones(2)), "n": InMemory(torch.tensor(5))}}
        >>> weights = choose(Content(Path("a.pt"), everything, ()))
        >>> weights.key, list(weights.tensors), dict(weights.left_out)
        ('model', ['weight'], {'integer, boolean or quantised': 1})
    """
    found, state, others = _state_dict(content, key)
    averages, doubts = _averages(content, found, state, others)
    beside = [repr(name) for name, entry in content.everything.items() if found and _has_weights({name: entry})]
    if beside and key is None:
        doubts.append(f"the tensors {listed(beside)} beside {found!r} are not measured")
    if content.passed:
        main = content.files[0].name
        doubts.append(f"the files {listed(map(repr, content.passed))} beside {main!r} are not measured")
    weights: dict[str, Stored] = {}
    left_out: Counter[str] = Counter()
    n_not_floating = 0
    for key_of_tensor, stored in state.items():
        if not is_stored(stored):
            left_out["not a tensor"] += 1
            continue
        name = str(key_of_tensor)  # a list of parameters may have been saved as a dict with the keys 0, 1, ...
        buffer = next((pattern for pattern in _BUFFERS if fnmatchcase(f".{name}", pattern)), None)
        if buffer is not None:
            left_out[buffer] += 1
        elif not _is_number(stored):
            left_out[NOT_FLOATING] += 1
            n_not_floating += n_coordinates(stored)
        elif weights.setdefault(plain_name(name), stored).place != stored.place:
            raise ValueError(
                f"{content.path}: two tensors are called {plain_name(name)!r} without the prefixes of wrappers: save "
                "the state_dict of the model inside the wrapper"
            )
    if not weights:
        raise ValueError(f"{content.path}: there is no floating-point tensor in its state_dict")
    optimizers, rates = _optimizers(content.everything.get("optimizer_states"))
    version = content.everything.get("pytorch-lightning_version")
    return Weights(
        content.path,
        weights,
        left_out,
        n_not_floating,
        found,
        averages,
        doubts,
        version if isinstance(version, str) else None,
        optimizers,
        rates,
    )


# Dicts with tensors that have the shapes of the weights, but are not weights.
_NO_WEIGHTS = re.compile(r"optim|sched|scaler|callbacks|loops|rng|^opt$|hyper_parameters|^args$|config", re.IGNORECASE)
_OPTIMIZER_STATE = {"param_groups", "exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg"}
_AVERAGE = re.compile(
    r"(?<![a-z])(?<!non[_-])(?<!no[_-])(?:ema|avg|averaged?|swa|polyak|shadow)(?![a-z])|moving_?average|(?-i:(?<![A-Z])EMA(?![A-Z]))",
    re.IGNORECASE,
)
_AVERAGE_FILE = re.compile(
    r"(?<![a-z])(?<!non[_-])(?<!no[_-])"
    r"(?:ema|averaged|swa|avg(?=_?[0-9.]))(?![a-z])|(?-i:(?<![A-Z])EMA(?![A-Z]))",
    re.IGNORECASE,
)
_AVERAGE_FOLDER = "(?:(?:unet|transformer|model|net)_)?ema(?:_model)?"
_AVERAGE_MODULE = re.compile(r"(?:\w+_)?ema(?:_\w+)?|(?:avg|averaged?|swa)_model", re.IGNORECASE)
_ARE_AVERAGES = "the weights are averages over the training ({}): averages move less than the trained weights"
_DEPTH = 4


def _state_dict(content: Content, key: str | None) -> tuple[str, dict[Any, Any], list[str]]:
    """Return the key of the weights, the state_dict there, and the keys of averages that are not used."""
    everything, path = content.everything, content.path
    by_lightning = "pytorch-lightning_version" in everything
    trained = everything.get("current_model_state")
    if key in (None, "current_model_state") and by_lightning and _has_weights(trained):
        # Lightning's WeightAveraging writes the averages to `state_dict`.
        return "current_model_state", _dict(trained), ["state_dict"]
    if key is None and by_lightning:  # other state_dicts belong to callbacks
        by_deepspeed = everything.get("state_dict") is None and "module" in everything
        key = "module" if by_deepspeed else "state_dict"
    if key is not None:
        return key, _state_dict_at(content, key), []
    if _is_state_dict(everything):
        return "", everything, []
    nested = dict(_state_dicts(everything))
    top = {name: state for name, state in nested.items() if name in everything}
    if any(not _AVERAGE.search(name) for name in top):
        nested = top
    if len(nested) == 1:
        return (*next(iter(nested.items())), [])
    if not nested:
        names = listed(repr(name if isinstance(name, str) else str(name)) for name in everything)
        raise ValueError(f"{path} has no state_dict, only {names or 'nothing'}: save model.state_dict()")
    for trained, averages in (*((name, f"{name}_ema") for name in nested), ("model", "ema_model")):
        if nested.keys() == {trained, averages}:  # timm and others
            return trained, nested[trained], [averages]
    if nested.keys() == {"state_dict", "ema_state_dict"} and "mmengine_version" in _dict(everything.get("meta")):
        # mmengine exchanges the values, so that a plain reader of `state_dict` gets the averages.
        return "ema_state_dict", nested["ema_state_dict"], ["state_dict"]
    tops = dict.fromkeys(key.partition(".")[0] for key in nested)
    if [*tops] == ["model"] and "checkpoint_version" in everything:  # Megatron saves a tree of modules
        return "model", _state_dict_at(content, "model"), []
    wholes = [name for name in tops if name not in nested]
    names = listed(map(repr, [*wholes, *nested]))
    raise ValueError(f"{path} has several state_dicts: choose with key=..., one of {names}")


def _state_dict_at(content: Content, key: str) -> dict[Any, Any]:
    """Return the state_dict at a dotted key. A tree of state_dicts there is one state_dict."""
    chosen = _at(content.everything, key.split("."))
    if isinstance(chosen, dict):
        if any(is_stored(entry) for entry in chosen.values()):
            return _flat(chosen)
        inner = dict(_state_dicts(chosen))
        if len(inner) == 1:
            return next(iter(inner.values()))
        if inner and not any(_AVERAGE.search(name) for name in inner):
            return _flat(chosen)
    names = listed(repr(name) for name, _ in _state_dicts(content.everything)) or "none"
    raise ValueError(f"key={key!r} is no state_dict in {content.path}; there are {names}")


def _dict(value: object) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _at(value: object, parts: list[str]) -> object:
    """Return the entry of nested dicts and lists at a dotted key. A key may have dots itself."""
    if not parts:
        return value
    for n in range(len(parts), 0, -1):
        name: Any = ".".join(parts[:n])
        if isinstance(value, (list, tuple)) and re.fullmatch("[0-9]{1,9}", name) and int(name) < len(value):
            return _at(value[int(name)], parts[n:])
        for entry in [value[k] for k in value if str(k) == name] if isinstance(value, dict) else []:
            found = _at(entry, parts[n:])
            if found is not None:
                return found
    return None


def _state_dicts(value: dict[Any, Any], before: str = "", depth: int = 1) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Find all state_dicts in nested dicts, with their dotted keys, except the states of optimisers."""
    for name, entry in value.items():
        if not _may_have_weights(entry, name):
            continue
        if _is_state_dict(entry):
            tensors = [tensor for tensor in entry.values() if is_stored(tensor)]
            if any(tensor.shape or tensor.problem for tensor in tensors):  # scalars alone are metrics
                yield f"{before}{name}", entry
        elif _has_weights(entry) and any(_may_have_weights(e, n) and _has_weights(e) for n, e in entry.items()):
            yield f"{before}{name}", _flat(entry)
        elif depth < _DEPTH:
            yield from _state_dicts(entry, f"{before}{name}.", depth + 1)


def _may_have_weights(entry: object, name: object) -> TypeGuard[dict[Any, Any]]:
    """Return whether an entry of a dict is a dict that may hold weights, and is not the state of an optimiser."""
    return isinstance(entry, dict) and not _NO_WEIGHTS.search(str(name)) and not _OPTIMIZER_STATE & entry.keys()


def _has_weights(value: object) -> bool:
    """Return whether a floating-point tensor that is no scalar is an entry of a dict."""
    return any(is_stored(entry) and _is_number(entry) and entry.shape for entry in _dict(value).values())


def _flat(tree: dict[Any, Any], before: str = "", depth: int = 20) -> dict[Any, Any]:
    """Return a tree of state_dicts as one, with dots between the names."""
    flat: dict[Any, Any] = {}
    for name, entry in tree.items():
        extra = str(name).endswith("_extra_state")
        if not extra and depth and _may_have_weights(entry, name):
            flat |= _flat(entry, f"{before}{name}.", depth - 1)
        else:
            flat[f"{before}{name}" if before else name] = entry
    return flat


def _is_state_dict(value: object) -> TypeGuard[dict[Any, Any]]:
    """Return whether ``value`` is a dict of tensors and extra states, with at least one floating-point tensor."""
    return (
        isinstance(value, dict)
        and all(is_stored(entry) or str(name).endswith("_extra_state") for name, entry in value.items())
        and any(is_stored(entry) and _is_number(entry) for entry in value.values())
    )


def _is_number(stored: Stored) -> bool:
    return stored.dtype.is_floating_point or stored.dtype.is_complex


def _averages(content: Content, key: str, state: dict[Any, Any], others: list[str]) -> tuple[bool, list[str]]:
    """Return whether the weights are averages over the training, and the doubts about averages."""
    if key == "current_model_state" and _is_swapped_for_good(content):
        return True, [_ARE_AVERAGES.format("Lightning's WeightAveraging puts them into the model when training ends")]
    if others:
        names = listed(map(repr, others))
        return False, [f"the trained weights ({key!r}) are measured, and their averages ({names}) are not"]
    # A key is the class of a callback, mostly with its options: EarlyStopping{'monitor': 'ema_loss'}.
    callbacks = [str(name).partition("{")[0][:80] for name in _dict(content.everything.get("callbacks"))]
    why = None
    if _AVERAGE.search(key):
        why = f"the key {key!r}"
    elif "n_averaged" in state:
        why = "torch's AveragedModel"
    elif key == "state_dict" and "averaging_state" in content.everything:
        why = "of Lightning's WeightAveraging"
    elif any(re.match(r"(?:EMA)?WeightAveraging(?![a-z])", name) for name in callbacks):
        why = "written beside Lightning's WeightAveraging, after the training"
    elif _AVERAGE_FILE.search(content.path.name) or re.fullmatch(_AVERAGE_FOLDER, content.path.parent.name):
        why = "by the name of the file"
    if why is not None:
        return True, [_ARE_AVERAGES.format(why)]
    # StochasticWeightAveraging keeps its averages separately until the training ends.
    maybe = [
        name for name in callbacks if re.search("(?<![A-Z])EMA(?![A-Z][A-Z])|Averag", name) and "Stochastic" not in name
    ]
    if maybe:
        return False, [_ARE_AVERAGES.replace("are", "may be", 1).format(f"there is the callback {maybe[0]}")]
    return False, []


def _is_swapped_for_good(content: Content) -> bool:
    """Return whether Lightning has replaced the trained weights by the averages, as it does in the end."""
    n_averaged = _scalar(_dict(content.everything.get("averaging_state")).get("n_averaged"))
    if not isinstance(n_averaged, Tensor) or n_averaged <= 1:  # the first average is a copy of the weights
        return False
    trained, averages = (_dict(content.everything.get(name)) for name in ("current_model_state", "state_dict"))
    for name, a in trained.items():
        b = averages.get(name)
        if not is_stored(a) or not _is_number(a):
            continue
        if not is_stored(b) or a.problem is not None or b.problem is not None:
            return False
        if _form(a) != _form(b) or not _alike([a, b]):
            return False
    return True


def _optimizers(states: object) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return the options of the optimisers and the learning rates, in the format and with the names of AgingMonitor."""
    described: list[dict[str, Any]] = []
    rates: dict[str, float] = {}
    for i, state in enumerate(states if isinstance(states, list) else []):
        groups = state.get("param_groups") if isinstance(state, dict) else None
        if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
            continue
        plain = [group | {"lr": _scalar(group["lr"])} if "lr" in group else group for group in groups]
        found = learning_rates(i, plain)
        rates |= {name: rate for name, rate in found.items() if math.isfinite(rate)}
        # A checkpoint does not hold the class of the optimiser.
        options = [{name: value for name, value in group.items() if _is_modest(value)} for group in groups]
        described.append({"name": None, "parameter_groups": options_of(options)})
    return described, rates


def _scalar(value: object) -> object:
    return read_scalar(value) if is_stored(value) else value


def _is_modest(value: object) -> bool:
    """Return whether there is no integer in a value that is too long to print."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_modest, value))
    return not isinstance(value, int) or abs(value) < 2**64


# ---------------------------------------------------------------------- all checkpoints


def agree(
    weights: Sequence[Weights], include: Patterns = None, exclude: Patterns = None, keep_constant: bool = False
) -> Agreed:
    """Find the tensors that all checkpoints have in common, each once.

    The prefixes ``module.``, ``model.``, ``_orig_mod.`` and ``_forward_module.`` of all names of a checkpoint are
    dropped if the names agree without them. Tensors count once if they have one place in the file, or if they are
    equal, bit for bit, in every checkpoint. Tensors that do not differ between the checkpoints are left out.

    Args:
        weights: the weights of each checkpoint, the earliest first.
        include: measure only tensors whose name matches one of these shell patterns. Default: all.
        exclude: do not measure tensors whose name matches one of these shell patterns.
        keep_constant: keep the tensors that do not differ.

    Raises:
        ValueError: names, shapes or dtypes differ, or a pattern matches nothing. The message names the files and the
            remedy.

    Example:
        >>> from lightning_glassy.checkpoints.stored import InMemory
        >>> def saved(prefix, x):
        ...     state = {"a": torch.full((4,), x), "mask": torch.ones(4)}
        ...     return {prefix + name: InMemory(tensor) for name, tensor in state.items()}
        >>> contents = [Content(Path("0.pt"), saved("", 0.0), ()), Content(Path("1.pt"), saved("module.", 1.0), ())]
        >>> agreed = agree([choose(content) for content in contents])
        >>> list(agreed.tensors[1]), agreed.constants
        (['a'], ('mask',))
    """
    _check_averages(weights)
    tensors = _without_prefixes([w.tensors for w in weights])
    names = list(dict.fromkeys(name for state in tensors for name in state))
    _check_patterns(weights[0].path, names, include, exclude)

    aliases = _same_place(tensors)
    others = {alias for several in aliases.values() for alias in several}
    averages = _averages_within(names) if include is None else {}
    kept = [name for name in names if name not in others and name not in averages]
    kept = [name for name in kept if _is_measured([name, *aliases.get(name, ())], include, exclude)]
    if not kept:
        raise ValueError(f"{weights[0].path}: there is no trainable parameter to track (all are excluded)")
    for w, state in zip(weights, tensors, strict=True):
        problems = [name for name in kept if name in state and state[name].problem is not None]
        if problems:
            what = _NOT_WHOLE.format(f"{w.path}: the tensor {problems[0]!r} {state[problems[0]].problem}")
            n = sum(n_coordinates(state[name]) for name in kept if name in state)
            few = sum(n_coordinates(state[name]) for name in problems) <= 0.1 * n
            raise ValueError(what + (f". Or leave it out with exclude={problems[0]!r}" if few else ""))
    tensors = _under_one_name(tensors, kept)
    kept = _in_all(weights, tensors, kept, aliases)

    constants = [] if len(tensors) < 2 else [name for name in kept if _alike([state[name] for state in tensors])]
    moving = set(kept) - set(constants)
    _same_bits(tensors, [name for name in kept if name in moving], aliases)
    doubts = list(dict.fromkeys(doubt for w in weights for doubt in w.doubts))
    left_out = weights[0].left_out + Counter(averages.values())
    if averages:
        doubts.append(
            f"the averages {listed(sorted(set(averages.values())))} beside the trained weights are left out. Name "
            "them in include=[...] (--include) to measure them"
        )
    if not moving and constants:
        doubts.append("no tensor differs between the files: nothing moved")
        constants = []
    elif keep_constant:
        constants = []
    elif constants:
        n = sum(n_coordinates(tensors[0][name]) for name in constants)
        doubts.append(
            f"{len(constants)} tensors ({n} coordinates) have the same bits in every checkpoint and are left out: "
            f"{listed(constants)}"
        )
        left_out[CONSTANT] = len(constants)
    gone = {*constants, *(alias for several in aliases.values() for alias in several)}
    kept = [name for name in kept if name not in gone]
    aliases = {name: aliases[name] for name in kept if name in aliases}
    if aliases:
        ties = [f"{alias} = {name}" for name, several in aliases.items() for alias in several]
        doubts.append(f"tied tensors count once: {listed(ties)}")
    return Agreed(
        [{name: state[name] for name in kept} for state in tensors], aliases, tuple(constants), dict(left_out), doubts
    )


def same_weights(a: Weights, b: Weights) -> bool:
    """Return whether two checkpoints have the same weights, bit for bit."""
    first, second = _without_prefixes([a.tensors, b.tensors])
    if first.keys() != second.keys() or any(_form(first[name]) != _form(second[name]) for name in first):
        return False
    pairs = ([first[name], second[name]] for name in first)
    return all(_alike(pair) for pair in pairs if pair[0].problem is None and pair[1].problem is None)


def _is_measured(names: Sequence[str], include: Patterns, exclude: Patterns) -> bool:
    return (include is None or matches(names, patterns_of(include))) and not matches(names, patterns_of(exclude))


def _check_patterns(path: Path, names: list[str], include: Patterns, exclude: Patterns) -> None:
    for argument, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns_of(patterns):
            if not matches(names, [pattern]):
                raise ValueError(
                    f"{path}: {argument}: the pattern {pattern!r} matches no trainable parameter. "
                    f"The names are {listed(names)}"
                )


def _averages_within(names: list[str]) -> dict[str, str]:
    """Return the names of averages beside the trained weights of one state_dict, each with a pattern for its kind."""
    tops = {name: re.match(r"((?:module\.|_forward_module\.)*([^.]*))", name) for name in names}
    averages = {name: f"{top[1]}.*" for name, top in tops.items() if top and _AVERAGE_MODULE.fullmatch(top[2])}
    return averages if len(averages) < len(names) else {}


def _check_averages(weights: Sequence[Weights]) -> None:
    averages = [w for w in weights if w.averages]
    trained = [w for w in weights if not w.averages]
    if averages and trained:
        raise ValueError(
            f"the weights in {averages[0].path} are averages over the training, and those in {trained[0].path} are "
            "not: leave one kind out, or choose with key=..."
        )


# ---------------------------------------------------------------------- names

_PREFIXES = ("module.", "_orig_mod.", "model.", "_forward_module.")


def _without_prefixes(states: Sequence[dict[str, Stored]]) -> list[dict[str, Stored]]:
    """Drop prefixes that most names of a state_dict have, if the names of several state_dicts agree better then."""
    if all(state.keys() == states[0].keys() for state in states):
        return list(states)
    # Most files have the same names as another file, so each set of names is handled once.
    kinds = {frozenset(state): _prefixes(list(state)) for state in states}
    firsts = next(iter(kinds.values()))

    def best(reference: set[str], prefixes: list[str], names: frozenset[str]) -> tuple[int, str]:
        """Return the number of names that agree with the reference, and the prefix to drop."""
        return max(
            ((sum(name.removeprefix(p) in reference for name in names), p) for p in prefixes),
            key=lambda one: (one[0], len(one[1])),
        )

    totals: list[tuple[int, str]] = []
    for prefix in firsts:
        reference = {name.removeprefix(prefix) for name in states[0]}
        totals.append((sum(best(reference, prefixes, names)[0] for names, prefixes in kinds.items()), prefix))
    most, dropped = max(totals, key=lambda one: (one[0], len(one[1])))
    if most == sum(len(names & states[0].keys()) for names in kinds):
        return list(states)
    reference = {name.removeprefix(dropped) for name in states[0]}
    to_cut = {names: best(reference, prefixes, names)[1] for names, prefixes in kinds.items()}
    return [
        {name.removeprefix(prefix): stored for name, stored in state.items()}
        for state, prefix in ((state, to_cut[frozenset(state)]) for state in states)
    ]


def _prefixes(names: list[str]) -> list[str]:
    """Return the prefixes that can be dropped: most names have them, and differ without them. The first is empty."""
    found = [""]
    while True:
        longer = [found[-1] + prefix for prefix in _PREFIXES]
        prefix = next((p for p in longer if 2 * sum(name.startswith(p) for name in names) > len(names)), None)
        if prefix is None or len({name.removeprefix(prefix) for name in names}) < len(names):
            return found
        found.append(prefix)


def _in_all(
    weights: Sequence[Weights],
    tensors: Sequence[dict[str, Stored]],
    kept: list[str],
    aliases: dict[str, tuple[str, ...]],
) -> list[str]:
    """Return the names that all state_dicts have, after checking that the others are aliases of them."""
    first = tensors[0]
    common = [name for name in kept if all(name in state for state in tensors)]
    known, tables = set(common), {}
    for name in kept:
        if name in known:
            continue
        i = next(i for i, state in enumerate(tensors) if name in state)
        if i not in tables:
            tables[i] = _table(tensors[i], common)
        having = [state for state in tensors if name in state]
        candidates = [n for look in _looks(tensors[i][name]) for n in tables[i].get(look, [])]
        same = next((n for n in candidates if _like_first(having, [n, name])), None)
        if same is None:
            j = next(j for j, state in enumerate(tensors) if name not in state)
            leave = f"leave it out with exclude={name!r}"
            if name not in first:
                leave += ", or name the common tensors with include=[...]"
            raise ValueError(
                f"the tensor {name!r} is in {weights[i].path} and not in {weights[j].path}: measure checkpoints of one "
                f"model{_advice(weights, tensors, kept, (i, j), leave)}"
            )
        aliases[same] = (*aliases.get(same, ()), name, *aliases.pop(name, ()))
    for name in common:
        for i, state in enumerate(tensors):
            if _form(state[name]) != _form(first[name]):
                (a, dtype_a), (b, dtype_b) = _form(first[name]), _form(state[name])
                raise ValueError(
                    f"the tensor {name!r} is {a} {dtype_a} in {weights[0].path} and {b} {dtype_b} in "
                    f"{weights[i].path}: "
                    "measure checkpoints of one model and one precision"
                    + _advice(weights, tensors, kept, (0, i), f"leave it out with exclude={name!r}")
                )
    return common


def _advice(
    weights: Sequence[Weights], tensors: Sequence[dict[str, Stored]], kept: list[str], two: tuple[int, int], remedy: str
) -> str:
    """Return the remedy for two checkpoints that do not agree, unless it costs more than a tenth of the model."""
    a, b = ({name: tensors[i][name] for name in kept if name in tensors[i]} for i in two)
    same = [name for name in a if name in b and _form(a[name]) == _form(b[name])]
    common = sum(n_coordinates(a[name]) for name in same)
    shares = [common / max(sum(map(n_coordinates, state.values())), 1) for state in (a, b)]
    if min(shares) >= 0.9:
        return f", or {remedy}"
    only = [next((name for name in state if name not in other), None) for state, other in ((a, b), (b, a))]
    hint = f". Or do the names differ, as {only[0]!r} and {only[1]!r}?" if None not in only else ""
    return (
        f", or others that have more in common: only {100 * shares[0]:.3g} % of the coordinates of "
        f"{weights[two[0]].path} and {100 * shares[1]:.3g} % of those of {weights[two[1]].path} are{hint}"
    )


# ---------------------------------------------------------------------- tied tensors and constants

_PROBE, _BLOCK = 1024, 2**20  # coordinates
# Fewer bytes may be equal by chance.
_FEWEST_BYTES = 16


def _form(stored: Stored) -> tuple[tuple[int, ...], torch.dtype]:
    return tuple(stored.shape), stored.dtype


def _same_place(tensors: Sequence[dict[str, Stored]]) -> dict[str, tuple[str, ...]]:
    """Return the other names of each tensor, if these names have one place in every state_dict."""
    first = tensors[0]
    count = Counter(stored.place for stored in first.values())
    names: dict[tuple[Hashable, ...], list[str]] = {}
    for name, stored in first.items():
        if count[stored.place] > 1 and all(name in state for state in tensors):
            names.setdefault(tuple(state[name].place for state in tensors), []).append(name)
    return {several[0]: tuple(several[1:]) for several in names.values() if len(several) > 1}


def _under_one_name(tensors: Sequence[dict[str, Stored]], names: list[str]) -> list[dict[str, Stored]]:
    """Add the name of a tied tensor to the state_dicts that have it under another name only.

    Two names are of one tensor if a state_dict has both, and both are equal in all such state_dicts.
    """
    missing = {name: frozenset(i for i, state in enumerate(tensors) if name not in state) for name in names}
    kinds = {kind for kind in missing.values() if kind}
    joint = {a for a in kinds if any(not a & b and len(a | b) < len(tensors) for b in kinds)}
    left = [name for name in names if missing[name] in joint]
    filled = [dict(state) for state in tensors]
    for state in tensors:
        for several in _table(state, [name for name in left if name in state]).values():
            for name, other in itertools.combinations(several[:4], 2):
                both = [one for one in tensors if name in one and other in one]
                if not missing[name] & missing[other] and _like_first(both, [name, other]):
                    for i in missing[name]:
                        filled[i][name] = tensors[i][other]
                    missing[name] = frozenset()
    return filled


def _table(state: dict[str, Stored], names: list[str]) -> dict[Hashable, list[str]]:
    """Return the names of the tensors that look equal."""
    table: dict[Hashable, list[str]] = {}
    for name in names:
        for look in _looks(state[name]):
            table.setdefault(look, []).append(name)
    return table


def _looks(stored: Stored) -> list[Hashable]:
    looks: list[Hashable] = [("place", stored.place)]
    if _is_long(stored):
        looks.append((_form(stored), _read(stored, 0, _PROBE).numpy().tobytes()))
    return looks


def _is_long(stored: Stored) -> bool:
    return n_coordinates(stored) * real_dtype(stored.dtype).itemsize >= _FEWEST_BYTES


def _same_bits(tensors: Sequence[dict[str, Stored]], names: list[str], aliases: dict[str, tuple[str, ...]]) -> None:
    """Add to ``aliases`` the tensors that are equal, bit for bit, in every state_dict."""
    first = tensors[0]
    forms: dict[Hashable, list[str]] = {}
    for name in names:
        if _is_long(first[name]):
            forms.setdefault(_form(first[name]), []).append(name)
    groups = [several for several in forms.values() if len(several) > 1]
    for probe, state in itertools.product(range(3), tensors):  # after two or three probes, no group is left
        split: dict[Hashable, list[str]] = {}
        for i, several in enumerate(groups):
            parts = _parts(first[several[0]])
            for name in several:
                part = _read(state[name], *parts[min(probe, len(parts) - 1)])
                split.setdefault((i, part.numpy().tobytes()), []).append(name)
        groups = [several for several in split.values() if len(several) > 1]
    for several in groups:
        while len(several) > 1:
            alike = dict.fromkeys(_like_first(tensors, several))
            if alike:
                more = [other for name in alike for other in (name, *aliases.pop(name, ()))]
                aliases[several[0]] = (*aliases.get(several[0], ()), *more)
            several = [name for name in several[1:] if name not in alike]


def _like_first(states: Sequence[dict[str, Stored]], names: Sequence[str]) -> list[str]:
    """Return the names whose tensors equal the tensor of the first name, bit for bit, in every state_dict."""
    left = list(names[1:])
    for state in states:
        first = state[names[0]]
        left = [name for name in left if state[name].place == first.place or _form(state[name]) == _form(first)]
        for start, length in _parts(first):
            apart = [name for name in left if state[name].place != first.place]
            if not apart:
                break
            expected = _read(first, start, length)
            different = {name for name in apart if not torch.equal(expected, _read(state[name], start, length))}
            left = [name for name in left if name not in different]
    return left


def _alike(stored: Sequence[Stored]) -> bool:
    """Return whether tensors of one shape and dtype are equal, bit for bit. Stop reading at the first difference."""
    for start, length in _parts(stored[0]):
        expected = _read(stored[0], start, length)
        if any(not torch.equal(expected, _read(other, start, length)) for other in stored[1:]):
            return False
    return True


def _parts(stored: Stored) -> list[tuple[int, int]]:
    """Return the parts to compare: first the start, the middle and the end, which mostly differ, then the whole."""
    n = n_coordinates(stored)
    probes = [(0, _PROBE), (n // 2, _PROBE), (n - _PROBE, _PROBE)] if n > 4 * _PROBE else []
    return probes + [(start, _BLOCK) for start in range(0, n, _BLOCK)]


def _read(stored: Stored, start: int, length: int) -> Tensor:
    """Return some coordinates as bytes."""
    out = torch.empty(min(length, n_coordinates(stored) - start), dtype=real_dtype(stored.dtype), device="cpu")
    stored.read(start, out)
    return out.view(torch.uint8)

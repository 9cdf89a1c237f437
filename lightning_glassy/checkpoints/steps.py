"""The step of each checkpoint: from its values, from a word before a number in a name, or from a bare number."""

from __future__ import annotations

import itertools
import math
import operator
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_glassy.checkpoints.content import Content
from lightning_glassy.checkpoints.stored import n_coordinates, real_dtype
from lightning_glassy.checkpoints.weights import is_stored

_LARGEST_STEP = 2**53


@dataclass(frozen=True)
class Dated:
    """The step of a checkpoint.

    Attributes:
        step: number of optimiser updates.
        source: where the step was found, in words.
    """

    step: int
    source: str


@dataclass(frozen=True)
class _Number:
    """A number that may be the step. ``weak`` says that it may as well be an epoch."""

    value: int
    source: str
    weak: bool = False


def find_steps(contents: Sequence[Content], given: object = None, force: bool = False) -> list[Dated]:
    """Find the step of each checkpoint.

    The first of these that a checkpoint has is trusted: a step among its values (``global_step``, ``iteration``), a
    number after such a word in its name (``step=400``, ``checkpoint-400``), in the name of its branch, or in the names
    of its two directories. A bare number counts only if all checkpoints have one, in names of one pattern, and exactly
    one number differs between the names. Epochs, dates, versions, shards, seeds, sizes and metrics are no steps.

    Args:
        contents: the checkpoints.
        given: the step of each checkpoint, as the user says, or ``None``.
        force: believe ``given`` even against the values and names.

    Raises:
        TypeError: ``given`` is no list of integers.
        ValueError: a step is unknown, doubtful, out of its range, or not the given one. The message names the file.

    Example:
        >>> from pathlib import Path
        >>> find_steps([Content(Path(f"run/step_{n}.pt"), {}, ()) for n in ("500", "20k")])
        [Dated(step=500, source="'step' in its name"), Dated(step=20000, source="'step' in its name")]
    """
    labelled = _labelled(contents)
    if given is not None:
        steps = _given(given, contents)
        if not force:
            for content, step, name in zip(contents, steps, labelled, strict=True):
                _check_given(content, step, name)
        return [Dated(step, "given") for step in steps]
    inside = [_inside(content) for content in contents]
    bare = _bare(contents)
    _check_names(contents, inside, labelled, bare)
    found = [a or b for a, b in zip(inside, labelled, strict=True)]
    bare_counts = not any(found)
    numbers = [a or (b if bare_counts else None) for a, b in zip(found, bare, strict=True)]
    _check_epochs(contents, numbers)
    for content, number, alone in zip(contents, numbers, bare, strict=True):
        if number is None:
            hint = f". The number {alone.value} in its name has no such word before it" if alone else ""
            raise ValueError(
                f"the step of {content.path} is neither in it nor in its name: give steps=[...], one per file, or name "
                f"the files as in 'step=400.pt' (an epoch is no step){hint}"
            )
    return [
        Dated(_checked(content.path, "step", number.value), number.source + _other(number, name or alone))
        for content, number, name, alone in zip(contents, numbers, labelled, bare, strict=True)
        if number is not None
    ]


def _other(number: _Number, name: _Number | None) -> str:
    # Steps can be counted from 0 in one place and from 1 in the other.
    return "" if name is None or abs(name.value - number.value) <= 1 else f" (the number in its name is {name.value})"


# ---------------------------------------------------------------------- checks


def _given(given: object, contents: Sequence[Content]) -> list[int]:
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise TypeError(f"steps={given!r} is not a list of integers, one per file")
    steps = list(given)
    if len(steps) != len(contents):
        raise ValueError(f"steps={steps!r} are {len(steps)} for {len(contents)} files: give one per file")
    return [_checked(c.path, f"steps[{i}]", step) for i, (step, c) in enumerate(zip(steps, contents, strict=True))]


def _checked(path: Path, what: str, step: object) -> int:
    try:
        number = operator.index(step)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{what}={step!r} of {path} is not an integer number of steps") from None
    if isinstance(step, (bool, np.bool_)):
        raise TypeError(f"{what}={step!r} of {path} is not an integer number of steps")
    if not 0 <= number <= _LARGEST_STEP:
        # Python refuses to print integers of thousands of digits.
        shown = number if abs(number) < 10**30 else f"{'-' if number < 0 else ''}(more than 10**30)"
        raise ValueError(f"{what}={shown} of {path} must be a number of steps from 0 to 2**53: give steps=[...]")
    return number


def _check_given(content: Content, step: int, labelled: _Number | None) -> None:
    try:
        number = _inside(content) or labelled
    except ValueError:
        return  # nobody else knows the step
    epoch = _epoch(content)
    if number is None or number.value == step or (number.weak and epoch is not None and _is_epoch(number, epoch)):
        return
    raise ValueError(
        f"{content.path}: the given step is {step}, but it is {number.value} by {number.source}: correct the steps, or "
        "give force_steps=True if you know better"
    )


def _check_names(
    contents: Sequence[Content],
    inside: Sequence[_Number | None],
    labelled: Sequence[_Number | None],
    bare: Sequence[_Number | None],
) -> None:
    """Refuse checkpoints of one step inside and several in their names, and steps that go against their names."""
    known: dict[str, list[tuple[int, int, bool, Path]]] = {}
    for content, step, label, alone in zip(contents, inside, labelled, bare, strict=True):
        name = label or alone
        if step is not None and name is not None:
            weak = name.weak
            known.setdefault(f"{step.source} {name.source}", []).append((name.value, step.value, weak, content.path))
    for several in known.values():
        for (name_a, a, weak, path_a), (name_b, b, _, path_b) in itertools.pairwise(sorted(several)):
            if name_a < name_b and (a == b or (a > b and not weak)):
                raise ValueError(
                    f"{path_a} and {path_b} say {a} and {b} inside, and {name_a} and {name_b} in their names: the step "
                    "is doubtful. Give steps=[...] with force_steps=True"
                )


def _check_epochs(contents: Sequence[Content], numbers: Sequence[_Number | None]) -> None:
    """Refuse numbers in names that are the epochs inside the files."""
    known = []
    for content, number in zip(contents, numbers, strict=True):
        if number is not None and number.weak:
            epoch = _epoch(content)
            if epoch is not None:
                known.append((content, number, epoch))
    if known and all(_is_epoch(number, epoch) for _, number, epoch in known):
        content, number, epoch = known[0]
        raise ValueError(
            f"the step of {content.path} is not known: {number.value} in its name is the epoch (it says epoch "
            f"{epoch:g}), and an epoch is no step. Give steps=[...], one per file"
        )


def _is_epoch(number: _Number, epoch: float) -> bool:
    # An epoch may be counted from 0 in the file, and from 1 in its name, or the other way round.
    return abs(number.value - epoch) <= 1


# ---------------------------------------------------------------------- values in the file

# Names of counts over the whole training, the most trusted first.
_TOTALS = (
    "global_step",
    "global_steps",
    "globalstep",
    "step_count",
    "num_updates",
    "iter_num",
    "global_iter",
    "global_iteration",
    "batch_idx_train",
)
# Names of counts that somebody may use for something else. They must agree with each other.
_COUNTS = (
    "step",
    "iteration",
    "iter",
    "update",
    "updates",
    "n_iter",
    "n_updates",
    "it",
    "current_step",
    "current_iter",
)
_EPOCHS = ("epoch", "current_epoch", "cur_epoch")
# Dicts of a checkpoint that hold such counts.
_HOLDERS = ("extra_state", "meta", "train_state", "training_state", "trainer_state", "trainer", "progress")


def _inside(content: Content) -> _Number | None:
    """Return the step among the values of a checkpoint."""
    places = list(_places(content))
    for name in _TOTALS:
        for place, values in places:
            number = _number(content.path, place + name, values.get(name))
            if number is not None:
                return number
    state = content.everything.get("state")
    timestamp = state.get("timestamp") if isinstance(state, dict) else None
    if isinstance(timestamp, dict):  # Composer, whose `iteration` counts something else
        timestamp = timestamp.get("Timestamp", timestamp)
        batch = timestamp.get("batch") if isinstance(timestamp, dict) else None
        number = _number(content.path, "state.timestamp.batch", batch)
        if number is not None:
            return number
    found = [_number(content.path, place + name, values.get(name)) for name in _COUNTS for place, values in places]
    numbers = [number for number in found if number is not None]
    if len({number.value for number in numbers}) > 1:
        said = ", ".join(f"{number.value} ({number.source})" for number in numbers)
        raise ValueError(f"the step of {content.path} is one of {said}: give steps=[...], one per file")
    return numbers[0] if numbers else None


def _places(content: Content) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "", content.everything
    for holder in _HOLDERS:
        if isinstance(content.everything.get(holder), dict):
            yield f"{holder}.", content.everything[holder]
    history = content.everything.get("optimizer_history")
    if isinstance(history, (list, tuple)) and history and isinstance(history[-1], dict):  # fairseq
        yield "optimizer_history[-1].", history[-1]
    yield "", content.beside
    for name, values in content.beside.items():
        if isinstance(values, dict):
            yield f"{name}: ", values


def _number(path: Path, what: str, value: object) -> _Number | None:
    """Return the number in a value, or ``None`` if the value is something else."""
    value = _plain(value)
    if isinstance(value, (bool, float)) and not (isinstance(value, float) and value.is_integer()):
        raise ValueError(f"{what}={value!r} of {path} is not an integer number of steps: give steps=[...]")
    if not isinstance(value, (int, float)):
        return None
    return _Number(_checked(path, what, int(value)), f"{what} in the file")


def _plain(value: object) -> object:
    """Return the number in a scalar of torch or NumPy."""
    if is_stored(value):
        if n_coordinates(value) != 1 or value.problem is not None or value.dtype.is_complex:
            return None
        out = torch.empty(1, dtype=real_dtype(value.dtype))
        value.read(0, out)
        return out.item()
    if isinstance(value, (np.generic, np.ndarray)):
        return value.item() if value.size == 1 and value.dtype.kind in "biuf" else None
    return value


def _epoch(content: Content) -> float | None:
    """Return the epoch that a checkpoint says."""
    extra = content.everything.get("extra_state")
    iterator = extra.get("train_iterator") if isinstance(extra, dict) else None
    places = [values for _, values in _places(content)] + ([iterator] if isinstance(iterator, dict) else [])
    for name in _EPOCHS:
        for values in places:
            epoch = _plain(values.get(name))
            if isinstance(epoch, (int, float)) and not isinstance(epoch, bool) and abs(epoch) < _LARGEST_STEP:
                return None if math.isnan(epoch) else float(epoch)
    return None


# ---------------------------------------------------------------------- numbers in names

# Words before or after the step in a name. The first word that stands at exactly one number decides.
_LABELS = {
    "step": "(?:global_?)?steps?",
    "iter": "iter(?:ation)?s?|itr|it",
    "update": "(?:num_?|n_?)?updates?",
    "batch": "ba",  # Composer: ep0-ba100
    "checkpoint": "checkpoint|ckpt|chkpt",
}
_COUNTED = "steps?|iter(?:ation)?s?|itr|updates?"
_METRICS = "loss|acc|accuracy|error|err|score|metric|ppl|perplexity|auc|bleu|wer|reward|return"
# Words before numbers that are no steps.
_OTHERS = (
    "seed|rng|run|fold|split|trial|exp|experiment|id|idx|replica|copy|worker|gpus?|nodes?|job|task|stage|phase|rank|"
    "shard|part|version|lr|bs|bsz|batch_?size|mbs|wd|dim|hidden|width|depth|dropout|tokens?|samples?|size|imgsz|fp|bf|"
    f"int|seq|len|length|ctx|alpha|beta|gamma|sigma|tau|top|max|min|total|warmup|{_METRICS}"
)
_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_REAL = r"[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?"
# At one place in a name, the first of these that fits is cut out.
_NO_STEP = re.compile(
    "|".join(
        (
            # a total number of steps, and the value of a metric at a step
            rf"(?<![a-z])(?:max|total|warmup|accum(?:ulation)?|decay|time|diffusion|sampling|inference|lr|num|n)[_-]?"
            rf"steps?[=_-]?{_REAL}[km]?",
            rf"(?<![a-z])(?:max|total|warmup)[_-]?(?:{_COUNTED})[=_-]?{_REAL}[km]?",
            rf"(?<![a-z])(?:{_METRICS})_(?:{_COUNTED})[=_-]?-?{_REAL}",
            # a hash: hexadecimal digits with a letter among them. Composer's ba100000 looks like one.
            r"(?<![0-9a-z])(?!ba[0-9]+(?![0-9a-z]))(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{7,}(?![0-9a-z])",
            # a date, with a time of the day or without, and seconds since 1970
            r"(?<![0-9])20[0-9]{2}([-_.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12][0-9]|3[01])"
            r"(?:[-_t ]*[0-9]{2}[-_:.h]?[0-9]{2}(?:[-_:.m]?[0-9]{2})?)?(?![0-9])",
            rf"(?<![a-z])(?:{_MONTHS})[a-z]*[-_]?[0-9]{{1,2}}(?![0-9])",
            r"(?<![0-9])[0-9]{2}[-:][0-9]{2}[-:][0-9]{2}(?![0-9])",
            r"(?<![0-9a-z])1[67][0-9]{8}(?![0-9a-z])",
            # a part of a checkpoint
            r"[0-9]+[-_]?of[-_]?[0-9]+",
            r"mp_rank_[0-9]+(?:_[0-9]+)*",
            r"__[0-9]+_[0-9]+",
            r"consolidated\.[0-9]+",
            # -v1, version_2
            r"(?<![0-9a-z])v[0-9]+(?:\.[0-9]+)*(?![0-9a-z])",
            # 0.25 and 1e-3, but not 1.5M
            r"[0-9]+\.[0-9]+(?:e[+-]?[0-9]+)?(?![0-9]*[km](?![0-9a-z]))",
            r"[0-9]+e[+-]?[0-9]+",
            # an epoch
            r"epochs?[=_. -]*[0-9]+",
            r"(?<![a-z])ep[=_. -]?[0-9]+",
            r"(?<![0-9a-z])e=?[0-9]+(?![0-9a-z])",
            r"[0-9]+(?:e|ep|epochs?|[-_]epochs)(?![0-9a-z])",
            # the value of anything that is no step
            rf"(?<![0-9a-z])(?![a-z0-9_]*(?:{_COUNTED}|batch|ba|it|checkpoint|ckpt)=)[a-z][a-z0-9_]*=-?{_REAL}",
            rf"(?<![a-z])(?:{_OTHERS})[=_.-]?-?{_REAL}(?![a-z])",
        )
    ),
    re.IGNORECASE,
)
_COUNT = r"([0-9]+(?:\.[0-9]+(?=[km]))?)([km]?)"
_END = r"(?![0-9a-z]|[_,][0-9]{3}(?![0-9])|,[0-9])"  # 1_000 and 1,000 may be one number
_BATCH = r"(?<![a-z])batch([=_-]?)([0-9]+)(?![0-9a-z])"
_GAP = "\0"  # stands for the part that was cut out


def _plain_parts(name: str) -> str:
    """Return a name without its suffix and without the numbers in it that are no steps."""
    name = re.sub(r"(?:\.[a-z]+)+$", "", name, flags=re.IGNORECASE)
    # Lightning appends -v1 to a file name that exists already.
    name = re.sub(r"-v[0-9]+$", "", name)
    return _NO_STEP.sub(_GAP, name)


def _label_in(name: str) -> tuple[int, str] | None:
    """Return the number with a word for a step, and the word."""
    text = _plain_parts(name)
    for label, words in _LABELS.items():
        numbers = _after(text, words) or (_before(text) if label == "step" else set())
        if label == "checkpoint":
            epoch_and_update = re.search(rf"(?<![a-z])(?:{words})[-_]?([0-9]+)[-_]([0-9]+)(?![0-9a-z])", text, re.I)
            if epoch_and_update:  # only fairseq is known to write checkpoint_<epoch>_<update>
                known = re.fullmatch(r"checkpoint_[0-9]+_[0-9]+(?:[-_.]\0)?", text)
                epoch, update = map(int, epoch_and_update.groups())
                return (update, "update") if known and update >= epoch else None
        if len(numbers) > 1:
            return None
        if numbers:
            return numbers.pop(), label
    batch = re.search(_BATCH, text, re.I)
    # A batch beside an epoch is a batch of that epoch, and batch64 is a size.
    return (int(batch[2]), "batch") if batch and batch[1] and len(re.findall("[0-9]+", name)) == 1 else None


def _after(text: str, words: str) -> set[int]:
    # checkpoint-70m is the size of a model.
    count = "([0-9]+)()" if "checkpoint" in words else _COUNT
    found = re.findall(rf"(?<![a-z])(?:{words})(?:[=_. -]?{count}|=(-[0-9]+)()){_END}", text, re.I)
    return {_value(a or c, b) for a, b, c, _ in found}


def _before(text: str) -> set[int]:
    """Return the numbers before a word, as in ``100000_steps`` and ``500step``."""
    words = r"[-_ ]?(?:steps|iters|iterations|updates)|step|iter"
    return {
        _value(a, b) for a, b in re.findall(rf"(?<![0-9.,])(?<![0-9]_){_COUNT}(?:{words})(?![0-9a-z=])", text, re.I)
    }


def _value(digits: str, unit: str) -> int:
    whole, _, decimals = digits.partition(".")
    places = {"": 0, "k": 3, "m": 6}[unit.lower()]
    return int(whole + (decimals + "0" * places)[: max(places, 0)]) if places else int(whole)


def _labelled(contents: Sequence[Content]) -> list[_Number | None]:
    """Return the step in the name of each checkpoint, of its branch, or of its two directories."""
    paths = [Path(os.path.abspath(content.path)) for content in contents]  # noqa: PTH100  # keeps links
    # A directory of several checkpoints does not tell their steps.
    shared = Counter(parent for path in set(paths) for parent in path.parents[:2])
    return [_label_of(content, path, shared) for content, path in zip(contents, paths, strict=True)]


def _label_of(content: Content, path: Path, shared: Counter[Path]) -> _Number | None:
    found = _label_in(content.path.name or path.name)
    if found is not None:
        return _signed(found, "in its name")
    branches = {found[0]: label for label in content.labels if (found := _label_in(label)) is not None}
    if len(branches) == 1:
        return next(_Number(step, f"the branch {label}") for step, label in branches.items())
    for parent in path.parents[:2]:
        found = _label_in(parent.name) if shared[parent] == 1 else None
        if found is not None:
            return _signed(found, "in its directory's name")
    return None


def _signed(found: tuple[int, str], where: str) -> _Number:
    return _Number(found[0], f"{found[1]!r} {where}", weak=found[1] == "checkpoint")


def _bare(contents: Sequence[Content]) -> list[_Number | None]:
    """Return the only number that differs between names of one pattern, or nothing for all."""
    names = [re.sub(_BATCH, _GAP, _plain_parts(content.path.name), flags=re.I) for content in contents]
    number = r"(?<![0-9])(?<![0-9]\.)([0-9]+)(?![0-9a-z]|\.[0-9])"
    numbers = [re.findall(number, name, re.I) for name in names]
    patterns = {re.sub(number, "#", name, flags=re.I) for name in names}
    nothing: list[_Number | None] = [None] * len(contents)
    word = rf"(?<![a-z])(?:{'|'.join(_LABELS.values())})[=_. -]?[0-9]"
    # If a number has a word for a step, no other number is the step.
    if len(patterns) != 1 or re.search(word, names[0], re.I):
        return nothing
    columns = list(zip(*numbers, strict=True))
    if len(names) > 1:
        columns = [column for column in columns if len(set(map(int, column))) > 1]
    if len(columns) != 1:
        return nothing
    return [_Number(int(digits), "the number in its name", weak=True) for digits in columns[0]]

"""The step of each checkpoint: from its values, from a word before a number in a name, or from a bare number."""

from __future__ import annotations

import filecmp
import itertools
import math
import operator
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lightning_glassy.checkpoints.content import Content, short_names
from lightning_glassy.checkpoints.stored import read_scalar
from lightning_glassy.checkpoints.weights import is_stored
from lightning_glassy.record.text import listed

_LARGEST_STEP = 2**53


@dataclass(frozen=True)
class Dated:
    """The step of a checkpoint.

    Attributes:
        step: number of optimiser updates.
        source: where the step was found, in words.
        weak: whether the step is a number in a name that may also count epochs or checkpoints.
        in_name: a number in the name that contradicts the step, if there is one.
    """

    step: int
    source: str
    weak: bool = field(default=False, repr=False)
    in_name: int | None = field(default=None, repr=False)


@dataclass(frozen=True)
class _Number:
    """A number that may be the step. If ``weak``, it may also be an epoch."""

    value: int
    source: str
    weak: bool = False


def find_steps(contents: Sequence[Content], given: object = None, force: bool = False) -> list[Dated]:
    """Find the step of each checkpoint.

    The function trusts the first of these that a checkpoint has: a step among its values (``global_step``,
    ``iteration``), a number after such a word in its name (``step=400``, ``checkpoint-400``), in the name of its
    branch, or in the names of its two directories. A bare number counts only if all checkpoints have one, in names of
    one pattern, and exactly one number differs between the names. Epochs, dates, versions, shards, seeds, sizes and
    metrics are not steps.

    Args:
        contents: the checkpoints.
        given: the step of each checkpoint from the user, or ``None``.
        force: use ``given`` even if values and names contradict it.

    Raises:
        TypeError: ``given`` is no list of integers.
        ValueError: a step is unknown, doubtful, out of its range, or contradicts the given step. The message names the
            file.

    Example:
        >>> from pathlib import Path
        >>> find_steps([Content(Path(f"run/step_{n}.pt"), {}, ()) for n in ("500", "20k")])
        [Dated(step=500, source="'step' in its name"), Dated(step=20000, source="'step' in its name")]
    """
    labelled = _labelled(contents)
    if given is not None:
        steps = _given(given, contents)
        if not force:
            bare = _bare(contents)
            values = [number.value for number in bare if number]
            if values and max(values) - min(values) < len(values):  # they may number the files
                bare = [None] * len(contents)
            for content, step, name, alone in zip(contents, steps, labelled, bare, strict=True):
                _check_given(content, step, name or alone)
            _check_order(contents, steps)
        return [Dated(step, "given") for step in steps]
    inside = [_inside(content) for content in contents]
    copies = _copies(contents, [a or b for a, b in zip(inside, labelled, strict=True)])
    if copies:
        rest = [i for i in range(len(contents)) if i not in copies]
        dated = dict(zip(rest, find_steps([contents[i] for i in rest]), strict=True))
        for copy, i in copies.items():
            dated[copy] = replace(dated[i], source=f"a copy of {contents[i].path.name}")
        return [dated[i] for i in range(len(contents))]
    bare = _bare(contents)
    if not any(inside) and all(name is None or name.weak for name in labelled):
        inside = _maybe_inside(contents)
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
        _dated(content.path, number, name or alone)
        for content, number, name, alone in zip(contents, numbers, labelled, bare, strict=True)
        if number is not None
    ]


def _copies(contents: Sequence[Content], numbers: Sequence[_Number | None]) -> dict[int, int]:
    """Return the places of checkpoints without any number, such as ``last.pt``, and of their copies, byte for byte."""
    nameless = {i for i, number in enumerate(numbers) if not number and not re.search("[0-9]", contents[i].path.name)}
    copies = {}
    for i in nameless:
        for j in range(len(contents)):
            if j not in nameless and _same_bytes(contents[i].files, contents[j].files):
                copies[i] = j
                break
    return copies


def _same_bytes(a: Sequence[Path], b: Sequence[Path]) -> bool:
    """Return whether files have the same bytes. Files of different sizes are not read."""
    there = len(a) == len(b) and all(path.is_file() for path in (*a, *b))
    return there and all(filecmp.cmp(*pair, shallow=False) for pair in zip(a, b, strict=True))


def _dated(path: Path, number: _Number, name: _Number | None) -> Dated:
    step = _checked(path, "step", number.value)
    # Steps can be counted from 0 in one place and from 1 in the other.
    if name is None or abs(name.value - step) <= 1:
        return Dated(step, number.source, number.weak)
    # The number in a name may be the epoch, which is smaller than the step.
    against = name.value if name.value > step or not name.weak else None
    return Dated(step, f"{number.source} (the number in its name is {name.value})", number.weak, against)


def doubts_of_steps(dated: Sequence[Dated], paths: Sequence[Path] = ()) -> list[str]:
    """Return the doubts about the steps of a record, and about its paths, one sentence each.

    Example:
        >>> (doubt,) = doubts_of_steps([Dated(1, "iteration in the file", in_name=500)])
        >>> doubt.partition(":")[0]
        'the step inside the files is not the number in their names (1 and 500)'
    """
    doubts = []
    against = [f"{one.step} and {one.in_name}" for one in dated if one.in_name is not None]
    if against:
        doubts.append(
            f"the step inside the files is not the number in their names ({listed(against, 4)}): if it counts "
            "something else, such as epochs, measure again with the right steps"
        )
    weak = sorted({one.step for one in dated if one.weak})
    if len(weak) > 1 and weak[-1] - weak[0] < len(weak):
        doubts.append(
            f"the steps {listed([str(step) for step in weak], 4)} are numbers in names, and count one by one: if they "
            "count epochs or checkpoints, measure again with the right steps"
        )
    why = _several_trainings(dated, paths)
    if why is not None:
        doubts.append(
            f"{why}: if they are of several trainings, measure each training alone, because a distance between two "
            "trainings is no displacement"
        )
    return doubts


def _several_trainings(dated: Sequence[Dated], paths: Sequence[Path]) -> str | None:
    """Return the reason why checkpoints may be of several trainings, or ``None``."""
    seeds = dict.fromkeys(" and ".join(_SEED.findall("/".join(path.parts[-3:]))) for path in paths)
    seeds.pop("", None)
    if len(seeds) > 1:
        return f"the names of the checkpoints have several seeds ({listed(seeds, 4)})"
    steps: dict[Path, list[int]] = {}
    for one, path in zip(dated, paths, strict=False):  # a caller may give no paths
        steps.setdefault(path.absolute().parent, []).append(one.step)
    # The steps of a run that was resumed in another directory follow the steps before. They do not alternate.
    spans = sorted((min(inside), max(inside), folder) for folder, inside in steps.items() if len(inside) > 1)
    for (_, end, a), (start, _, b) in itertools.pairwise(spans):
        if start < end:
            return f"the steps of the checkpoints in {' and '.join(short_names([a, b]))} alternate"
    return None


# ---------------------------------------------------------------------- checks


def _given(given: object, contents: Sequence[Content]) -> list[int]:
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise TypeError(f"steps={given!r} is not a list of integers, one per file")
    steps = list(given)
    if len(steps) != len(contents):
        names = listed([str(content.path) for content in contents])
        raise ValueError(f"steps={steps!r} are {len(steps)} for {len(contents)} files: give one for each of {names}")
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


def _check_given(content: Content, step: int, named: _Number | None) -> None:
    try:
        number = _inside(content) or named
    except ValueError:
        return  # there is no other source of the step
    epoch = _epoch(content)
    if number is None or number.value == step or (number.weak and epoch is not None and _is_epoch(number, epoch)):
        return
    raise ValueError(
        f"{content.path}: the given step is {step}, but it is {number.value} by {number.source}: correct the steps, or "
        "say force_steps=True if you know better"
    )


def _check_order(contents: Sequence[Content], steps: Sequence[int]) -> None:
    """Refuse given steps if the numbers in the names have another order: a shell sorts 10 before 2."""
    paths = [content.path for content in contents]
    names = [re.sub(r"[0-9]+\.[0-9]+", _GAP, "/".join(path.parts[-3:])) for path in paths]  # metrics may fall
    numbers = [tuple(map(int, re.findall("[0-9]+", name))) for name in names]
    if len({re.sub("[0-9]+", "#", name) for name in names}) > 1:
        return
    if sum(len({*column}) > 1 for column in zip(*numbers, strict=True)) != 1:
        return
    for (_, step_a, a), (_, step_b, b) in itertools.pairwise(sorted(zip(numbers, steps, paths, strict=True))):
        if step_a > step_b:
            raise ValueError(
                f"{a} and {b}: the given steps are {step_a} and {step_b}, but the numbers in the names increase: give "
                "the steps in the order of the paths, or say force_steps=True if you know better"
            )


def _check_names(
    contents: Sequence[Content],
    inside: Sequence[_Number | None],
    labelled: Sequence[_Number | None],
    bare: Sequence[_Number | None],
) -> None:
    """Refuse checkpoints with one step inside and several in their names, and steps that contradict the names."""
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
                    "is doubtful. Give steps=[...] and force_steps=True"
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
    "ss_steps",
)
# Names of counts that some programs use for something else. These counts must agree with each other.
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
# Names that may also mean the planned number of steps, which is the same in all files.
_MAYBE_COUNTS = (
    "steps",
    "iters",
    "iterations",
    "train_step",
    "train_steps",
    "training_step",
    "training_steps",
    "train_iter",
    "cur_step",
    "cur_iter",
    "current_iteration",
    "num_iter",
    "step_num",
    "num_steps",
    "total_steps",
)
_EPOCHS = ("epoch", "current_epoch", "cur_epoch", "ss_epoch")
# Dicts of a checkpoint that hold such counts.
_HOLDERS = ("extra_state", "meta", "train_state", "training_state", "trainer_state", "trainer", "progress")


def _inside(content: Content) -> _Number | None:
    """Return the step among the values of a checkpoint."""
    places = list(_places(content))
    for name in _TOTALS:
        for place, values, file in places:
            number = _number(content.path, place + name, values.get(name), file)
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
    found = [
        _number(content.path, place + name, values.get(name), file)
        for name in _COUNTS
        for place, values, file in places
    ]
    numbers = [number for number in found if number is not None]
    if len({number.value for number in numbers}) > 1:
        said = ", ".join(f"{number.value} ({number.source})" for number in numbers)
        raise ValueError(f"the step of {content.path} is one of {said}: give steps=[...], one per file")
    return numbers[0] if numbers else None


def _maybe_inside(contents: Sequence[Content]) -> list[_Number | None]:
    """Return the numbers of a name that may mean the step, if all files have it and no two have the same number."""
    places = [list(_places(content)) for content in contents]
    for name in _MAYBE_COUNTS:
        found = [[(_plain(values[name]), file) for _, values, file in several if name in values] for several in places]
        numbers = [
            (number, file)
            for several in found
            for number, file in several[:1]
            if isinstance(number, int) and not isinstance(number, bool)
        ]
        if len({number for number, _ in numbers}) == len(contents):
            return [_Number(number, f"{name} in {file}") for number, file in numbers]
    return [None] * len(contents)


def _places(content: Content) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the dicts that may hold the step: the words before its name, the values, and the file."""
    yield "", content.everything, "the file"
    for holder in _HOLDERS:
        if isinstance(content.everything.get(holder), dict):
            yield f"{holder}.", content.everything[holder], "the file"
    history = content.everything.get("optimizer_history")
    if isinstance(history, (list, tuple)) and history and isinstance(history[-1], dict):  # fairseq
        yield "optimizer_history[-1].", history[-1], "the file"
    yield "", content.beside, "trainer_state.json"
    for name, values in content.beside.items():
        if isinstance(values, dict):
            yield f"{name}: ", values, "the file"


def _number(path: Path, what: str, value: object, file: str = "the file") -> _Number | None:
    """Return the number in a value, or ``None`` if the value is something else."""
    value = _plain(value)
    if isinstance(value, (bool, float)) and not (isinstance(value, float) and value.is_integer()):
        raise ValueError(f"{what}={value!r} of {path} is not an integer number of steps: give steps=[...]")
    if not isinstance(value, (int, float)):
        return None
    return _Number(_checked(path, what, int(value)), f"{what} in {file}")


def _plain(value: object) -> object:
    """Return the number in a scalar of torch or NumPy, or in a text, such as the metadata of ``.safetensors``."""
    if isinstance(value, str) and re.fullmatch("[0-9]{1,30}", value):
        return int(value)
    if is_stored(value):
        scalar = read_scalar(value)
        return None if scalar is None else scalar.item()
    if isinstance(value, (np.generic, np.ndarray)):
        return value.item() if value.size == 1 and value.dtype.kind in "biuf" else None
    return value


def _epoch(content: Content) -> float | None:
    """Return the epoch in a checkpoint."""
    extra = content.everything.get("extra_state")
    iterator = extra.get("train_iterator") if isinstance(extra, dict) else None
    places = [values for _, values, _ in _places(content)] + ([iterator] if isinstance(iterator, dict) else [])
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
    "int|seq|len|length|ctx|alpha|beta|gamma|sigma|tau|top|max|min|total|warmup|layer|expert|client|round|generation|"
    f"episode|cycle|kimg|minute|hour|{_METRICS}"
)
# Words after numbers that are no steps.
_OTHER_COUNTS = "tokens?|samples?|episodes?|games?|frames?|rounds?|kimg|seconds?|secs?|minutes?|mins?|hours?|days?"
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
            rf"(?<![a-z])(?:num_train(?:ing)?|save|eval|log(?:ging)?|inner|rollout|ddim)[_-]?steps[=_-]?{_REAL}[km]?",
            rf"(?<![a-z])(?:{_METRICS})_(?:{_COUNTED})[=_-]?-?{_REAL}",
            # a hash: hexadecimal digits with a letter among them. Composer's ba100000 looks like a hash.
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
            # 4B-tokens, but not the 1000 of step1000-tokens4B
            rf"{_REAL}[kmbt]?[-_ ]?(?:{_OTHER_COUNTS})(?![a-z]|[=_.-]*[0-9])",
            # the value of anything that is no step
            rf"(?<![0-9a-z])(?![a-z0-9_]*(?:{_COUNTED}|batch|ba|it|checkpoint|ckpt)=)[a-z][a-z0-9_]*=-?{_REAL}",
            rf"(?<![a-z])(?:{_OTHERS})[=_.-]?-?{_REAL}(?![a-z])",
        )
    ),
    re.IGNORECASE,
)
_COUNT = r"([0-9]+(?:\.[0-9]+(?=[km]))?)([km]?)"
_END = r"(?![0-9a-z]|[_,][0-9]{3}(?![0-9])|,[0-9])"  # 1_000 and 1,000 may be one number
_SEED = re.compile(r"(?<![a-z])(?:seed|replica|fold)[=_-]?([0-9]+)(?![0-9])", re.IGNORECASE)
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
            epoch_and_update = re.search(rf"(?<![a-z])(?:{words})[-_.]?([0-9]+)[-_]([0-9]+)(?![0-9a-z])", text, re.I)
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
    # The name of a directory of several checkpoints does not give their steps.
    shared = Counter(parent for path in set(paths) for parent in path.parents[:2])
    return [_label_of(content, path, shared) for content, path in zip(contents, paths, strict=True)]


def _label_of(content: Content, path: Path, shared: Counter[Path]) -> _Number | None:
    found = _label_in(content.path.name or path.name)
    if found is not None:
        return _signed(found, "in its name")
    branches = {found: label for label in content.labels if (found := _label_in(label)) is not None}
    if len({step for step, _ in branches}) == 1:
        (step, word), label = next(iter(branches.items()))
        return _Number(step, f"the branch {label}", weak=word == "checkpoint")
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

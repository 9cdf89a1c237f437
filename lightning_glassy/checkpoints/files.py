"""Read the tensors, the options and the step of a checkpoint file, as data and without running code from it."""

from __future__ import annotations

import contextlib
import operator
import os
import pickle
import re
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_glassy.measure.optimizers import learning_rates, options_of
from lightning_glassy.measure.select import plain_name

_LARGEST_STEP = 2**53

# Names that torch gives to the running statistics of normalisation layers. They are state, but no parameters.
_BUFFERS = ("*.running_mean", "*.running_var", "*.num_batches_tracked")
NOT_FLOATING = "integer, boolean or quantised"

# Words before the step in the name of a file. The first word that stands before exactly one number decides.
_LABELS = ("steps?", "iter(?:ation)?s?", "(?:checkpoint|ckpt)")
# Numbers that are no steps: an epoch, a version, 0.25, 1e-3. Lightning appends -v1 to a file name that exists already.
_NO_STEP = r"(?<![a-z])ep(?:och)?s?[=_-]?[0-9]+|(?<![0-9a-z])v[0-9]+(?![0-9a-z])|[0-9]+(?:\.[0-9]+|e[+-]?[0-9]+)+"

Forms = dict[str, tuple[tuple[int, ...], torch.dtype]]


def forms_of(weights: Mapping[str, Tensor]) -> Forms:
    """Return the shape and the dtype of each tensor."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint file, except the values of its tensors."""

    path: Path
    step: int
    forms: Forms
    left_out: dict[str, int]
    n_not_floating: int
    lightning_version: str | None
    optimizers: list[dict[str, Any]]
    learning_rates: dict[str, float]


def survey(path: Path, key: str | None, step: int | None) -> Checkpoint:
    """Describe a file and find its step, unless ``step`` gives it. Raises the errors of ``measure_checkpoints``."""
    content = Content(path, key)
    optimizers, rates = _optimizers(content.everything.get("optimizer_states"))
    version = content.everything.get("pytorch-lightning_version")
    return Checkpoint(
        path,
        step_of(path, content.everything.get("global_step")) if step is None else step,
        forms_of(content.weights),
        dict(content.left_out),
        content.n_not_floating,
        version if isinstance(version, str) else None,
        optimizers,
        rates,
    )


class Content:
    """One open file: everything in it, and the tensors that may be weights.

    The names of the weights do not contain the prefixes of wrappers such as ``torch.compile``.
    """

    def __init__(self, path: Path, key: str | None) -> None:
        self.everything = _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path)
        self.weights: dict[str, Tensor] = {}
        self.left_out: Counter[str] = Counter()
        self.n_not_floating = 0
        for name, tensor in _state_dict(path, self.everything, key).items():
            if not isinstance(tensor, Tensor) or not isinstance(name, str):
                self.left_out["not a tensor"] += 1
                continue
            kind = _peculiar(tensor)
            if kind:
                raise ValueError(_NOT_WHOLE.format(f"{path}: the tensor {name!r} is a {kind}"))
            buffer = next((pattern for pattern in _BUFFERS if fnmatchcase(f".{name}", pattern)), None)
            if buffer is not None:
                self.left_out[buffer] += 1
            elif not _is_number(tensor):
                self.left_out[NOT_FLOATING] += 1
                self.n_not_floating += tensor.numel()
            else:
                self.weights[plain_name(name)] = tensor.detach()
        if not self.weights:
            raise ValueError(f"{path}: there is no floating-point tensor in its state_dict")


_NOT_WHOLE = (
    "{}: only plain tensors, each whole in one file, can be measured. Save the full state_dict: gather a sharded model "
    "first (FSDP: state_dict_type='full'), and save a model before it is quantised"
)


def _peculiar(tensor: Tensor) -> str | None:
    """Return the kind of a tensor that is not a plain array of numbers, or None for a plain tensor."""
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return type(tensor).__name__
    if tensor.layout != torch.strided:
        return f"{tensor.layout} tensor"
    return "tensor on the meta device, without values" if tensor.is_meta else None


def _load_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs the package safetensors: pip install 'lightning-glassy[safetensors]'"
        ) from error
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # `file` is not a mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None


def _load_torch(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        archive = file.read(4) == b"PK\x03\x04"
    if not archive and tarfile.is_tarfile(path):
        # torch before 2.6 would also run code in a tar archive (CVE-2025-32434).
        raise ValueError(f"{path} is a tar archive, which is not read: save model.state_dict() with torch.save")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Files of torch before 1.6 are no archives and cannot be mapped into memory.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        if "DTensor" in str(error):
            raise ValueError(_NOT_WHOLE.format(f"{path} holds a DTensor, sharded over processes")) from None
        raise ValueError(_needs_code(path, str(error))) from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged or crafted file can make the zip and pickle parsers raise anything
        reason = re.split(r"(?<=\S)\.\s", str(error), maxsplit=1)[0]
        raise ValueError(
            f"{path} is not a readable checkpoint ({type(error).__name__}: {reason}): leave it out, or save "
            "model.state_dict() with torch.save"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state_dict: save model.state_dict()")
    return content


def _needs_code(path: Path, reason: str) -> str:
    """Return the error message for a file that ``torch.load(weights_only=True)`` refused."""
    names = set(re.findall(r"GLOBAL ([\w.]+)", reason))
    with contextlib.suppress(Exception):  # finds all names in an archive, but not in torch 2.5
        names |= set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    if not names:
        return (
            f"{path} is not a checkpoint, or one with other things than tensors and plain values, which would have to "
            "be run to be read. Nothing was executed. Save model.state_dict() alone"
        )
    listed = ", ".join(sorted(names))
    return (
        f"{path} holds more than tensors and plain values: to read it, {listed} would have to be run. Nothing was "
        f"executed. Save model.state_dict() alone, or, if you trust the file, allow them in Python: "
        f"torch.serialization.add_safe_globals([{listed}])"
    )


def _state_dict(path: Path, content: dict[str, Any], key: str | None) -> dict[str, Any]:
    """Return the ``state_dict`` at ``key``, else Lightning's, else the whole file, else the only one in the file."""
    nested = {name: value for name, value in content.items() if _is_state_dict(value)}
    if key is None and "pytorch-lightning_version" in content:
        key = "state_dict"  # other state_dicts belong to callbacks
    if key is not None:
        if not isinstance(content.get(key), dict):
            listed = ", ".join(map(repr, nested)) or "none"
            raise ValueError(f"key={key!r} is no state_dict in {path}; there are {listed}")
        return dict(content[key])
    if _is_state_dict(content):
        return content
    if len(nested) > 1:
        raise ValueError(f"{path} has several state_dicts: choose with key=..., one of {', '.join(map(repr, nested))}")
    if not nested:
        keys = ", ".join(map(repr, list(content)[:8])) + (", ..." if len(content) > 8 else "")
        raise ValueError(f"{path} has no state_dict, only {keys or 'nothing'}: save model.state_dict()")
    return next(iter(nested.values()))


def _is_state_dict(value: object) -> bool:
    """Return whether ``value`` is a dict of tensors and extra states, with at least one floating-point tensor."""
    return (
        isinstance(value, dict)
        and all(isinstance(entry, Tensor) or str(name).endswith("_extra_state") for name, entry in value.items())
        and any(isinstance(entry, Tensor) and _is_number(entry) for entry in value.values())
    )


def _is_number(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _optimizers(states: object) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return the options of the optimisers and the learning rates, in the format and with the names of AgingMonitor."""
    described: list[dict[str, Any]] = []
    rates: dict[str, float] = {}
    for i, state in enumerate(states if isinstance(states, list) else []):
        groups = state.get("param_groups") if isinstance(state, dict) else None
        if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
            continue
        rates |= learning_rates(i, groups)
        # A checkpoint does not hold the class of the optimiser.
        described.append({"name": None, "parameter_groups": options_of(groups)})
    return described, rates


# ---------------------------------------------------------------------- files and steps


def existing_files(paths: object) -> list[Path]:
    """Return the paths of two or more files, after checking that each is an existing file."""
    if isinstance(paths, (str, bytes, os.PathLike)) or not isinstance(paths, Iterable):
        raise TypeError(f"paths={paths!r} is not a list of files")
    files = []
    for i, path in enumerate(paths):
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"paths[{i}]={path!r} is not the name of a file")
        files.append(Path(path))
    if len(files) < 2:
        raise ValueError(f"paths={[str(file) for file in files]}: a displacement needs at least two checkpoints")
    for file in files:
        if file.is_dir():
            raise ValueError(
                f"{file} is a directory: give the one file in it that has the weights (such as model.safetensors). A "
                "sharded checkpoint must be made one file first: with "
                "`python -m lightning.pytorch.utilities.consolidate_checkpoint`, or without Lightning "
                "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch`"
            )
        if not file.exists():
            raise FileNotFoundError(f"{file}: there is no such file")
        if not file.is_file():
            raise ValueError(f"{file} is not a file but a device or a pipe, which may never end")
    return files


def given_steps(steps: object, files: list[Path]) -> list[int] | None:
    """Return the steps that a user gave, after checking that there is one per file."""
    if steps is None:
        return None
    if isinstance(steps, (str, bytes)) or not isinstance(steps, Iterable):
        raise TypeError(f"steps={steps!r} is not a list of integers, one per file")
    given = list(steps)
    if len(given) != len(files):
        raise ValueError(f"steps={given!r} are {len(given)} for {len(files)} files: give one per file")
    return [_checked(file, f"steps[{i}]", step) for i, (step, file) in enumerate(zip(given, files, strict=True))]


def _checked(path: Path, what: str, step: object) -> int:
    try:
        number = operator.index(step)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{what}={step!r} of {path} is not an integer number of steps") from None
    if isinstance(step, bool):
        raise TypeError(f"{what}={step!r} of {path} is not an integer number of steps")
    if not 0 <= number <= _LARGEST_STEP:
        raise ValueError(f"{what}={number} of {path} must be a number of steps from 0 to 2**53: give steps=[...]")
    return number


def step_of(path: Path, global_step: object) -> int:
    """Return the step in a checkpoint, else the step in its name, else the step in the name of its directory."""
    if isinstance(global_step, int) and not isinstance(global_step, bool):
        return _checked(path, "global_step", global_step)
    name = re.sub(r"(\.[a-z]+)+$", "", path.name, flags=re.IGNORECASE)
    labelled = [rf"(?<![a-z]){label}[=_-]?(-?[0-9]+)(?![0-9a-z])" for label in _LABELS]
    for text, patterns in ((name, [*labelled, "([0-9]+)(?![0-9a-z])"]), (path.parent.name, labelled)):
        text = re.sub(_NO_STEP, " ", text, flags=re.IGNORECASE)
        for pattern in patterns:
            numbers = {int(number) for number in re.findall(pattern, text, flags=re.IGNORECASE)}
            if len(numbers) == 1:
                return _checked(path, "step", numbers.pop())
    raise ValueError(
        f"the step of {path} is neither in it nor in its name: give steps=[...], one per file, or name the files as in "
        "'step=400.pt' (an epoch is no step)"
    )

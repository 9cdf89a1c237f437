"""Find the checkpoints in the files and directories that a user names, and open them.

A checkpoint is a file, the shards of a file, or a directory of ``torch.distributed.checkpoint``. A part of a checkpoint
is refused, because it would be measured as the whole model.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from lightning_glassy.checkpoints.content import Content
from lightning_glassy.checkpoints.distributed import read_distributed
from lightning_glassy.checkpoints.handles import Handles
from lightning_glassy.checkpoints.pickled import read_torch
from lightning_glassy.checkpoints.safetensor_files import looks_like_safetensors, read_safetensors
from lightning_glassy.record.text import listed

log = logging.getLogger(__name__)

_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".th", ".tar")
# Names of files that hold the weights in a directory of one checkpoint, in order of preference.
_MAIN = (
    r"model",
    r"pytorch_model(_fsdp)?",
    r"diffusion_pytorch_model",
    r"adapter_model",
    r"pytorch_lora_weights",
    r"open_clip_(pytorch_)?model",
    r"lit_model",
    r"mp_rank_\d+_model_states",
    r"model_optim_rng",
    r"model_weights",
    r"weights",
    r"consolidated(\.\d+)?",
)
# Files and directories beside the weights.
_NO_WEIGHTS = re.compile(
    r"(?!model)(.*[_-])?(optim(izer)?s?|(lr_)?schedulers?|scaler|sampler|rng|random_states)([_.\-\d]|$)"
    r"|train(er)?(\.|$)|(common|meta)\.pt$|.*_optim_states"
    r"|training_args|training_state|trainer_state|custom_checkpoint|dataloader|tokenizer|spiece|loss_scale|last_checkpoint"
    r"|.*\.(json|txt|ya?ml|md|py|log|csv|index|model|msgpack|h5|onnx|ot|gguf|npz|npy)$",
    re.IGNORECASE,
)
_OF_CHECKPOINTS = re.compile(
    r"(.*[_-])?(checkpoint|ckpt|step|iter|global_?step|epoch|update)s?[=_-]?\d+.*", re.IGNORECASE
)
_SHARD = re.compile(r"(\d+)[-_]of[-_](\d+)")
# Parts of a model that was trained in parallel: the number of the process.
_PART = re.compile(r"(?<![a-z])(rank|shard|part|tp|pp|consolidated)([._-]?)(\d+)(?![0-9])", re.IGNORECASE)
_SURELY_PART = re.compile(r"(mp|tp|pp|model)_rank_|consolidated\.")
_NEVER_WHOLE = (
    (re.compile(r".*_optim_states\.pt"), "holds the state of an optimiser, and no weights"),
    (re.compile(r"zero_pp_rank_\d+_.*"), "is a part of a model that DeepSpeed has divided"),
    (re.compile(r"layer_\d+-model_\d+-model_states\.pt"), "is one layer of a model"),
)
_INDEX = ".index.json"
_DEEPEST = 6


@dataclass(frozen=True)
class Found:
    """A checkpoint that was found, and not opened.

    Attributes:
        path: file or directory that names it in messages.
        files: its files, or the directory of a distributed checkpoint.
        labels: other names of it, such as the branches of a repository that lead to it.
        where: the file of each tensor by name, if there is an index.
        passed: names of files in its directory that may hold other weights, and are not used.
    """

    path: Path
    files: tuple[Path, ...]
    labels: tuple[str, ...] = ()
    where: dict[str, str] | None = field(default=None, compare=False)
    passed: tuple[str, ...] = field(default=(), compare=False)


def find_checkpoints(paths: object) -> list[Found]:
    """Return the checkpoints that files and directories stand for, in the order of the paths.

    Args:
        paths: files, directories of a checkpoint, directories of many checkpoints, index files, and all shards of a
            checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: it is no list of paths.
        ValueError: there are fewer than two checkpoints, or a path is a part of a checkpoint, or is no checkpoint.
    """
    if isinstance(paths, (str, bytes, os.PathLike)) or not isinstance(paths, Iterable):
        raise TypeError(f"paths={paths!r} is not a list of files")
    try:
        return _find(paths)
    except PermissionError as error:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from None


def _find(paths: Iterable[Any]) -> list[Found]:
    given = []
    for i, path in enumerate(paths):
        if not isinstance(path, (str, os.PathLike)) or isinstance(os.fspath(path), bytes):
            raise TypeError(f"paths[{i}]={path!r} is not the name of a file")
        given.append(Path(path))
    inside = {path: _in_folder(path, ()) for path in given if _is_folder(path)}
    given = _without_others(given, inside)
    files = [path for path in given if path not in inside]
    units = {file: unit for unit in _units(files) for file in unit.files}
    units |= {unit.path: unit for unit in units.values()}  # an index stands for its shards
    found = []
    for path in given:
        if path in units:
            found.append(units[path])
        elif path not in files:
            if not inside[path]:
                raise ValueError(
                    f"{path} holds no checkpoint: there is no file named *{', *'.join(_SUFFIXES)}, no *.index.json and "
                    "no .metadata in it. Leave it out, or name the files"
                )
            found += inside[path]
    branches: dict[Path, dict[str, tuple[str, ...]]] = {}
    found = _once([_with_branches(checkpoint, branches) for checkpoint in found])
    if len(found) < 2:
        named = [str(path) for path in given]
        only = f"only {found[0].path}" if found else "none"
        raise ValueError(f"paths={named}: a displacement needs at least two checkpoints, and there is {only}")
    return found


def open_checkpoint(found: Found, handles: Handles) -> Content:
    """Describe the content of a checkpoint. No values are read.

    Raises:
        ImportError: there is a ``.safetensors`` file, but the package safetensors is missing.
        OSError: a file cannot be read.
        ValueError: a file is damaged, is no checkpoint, or needs code to be run. The message names the file.
    """
    try:
        return _open(found, handles)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error.filename}: there is no such file" if error.filename else f"{error}") from None
    except OSError as error:
        raise type(error)(f"{error.filename or found.path} cannot be read: {error.strerror or error}") from None


def _open(found: Found, handles: Handles) -> Content:
    first = found.files[0]
    if first.is_dir():
        everything, files = read_distributed(first, handles)
        return Content(found.path, everything, files, _beside(first), found.labels)
    everything, beside = {}, _beside(first.parent) if found.path != first or _is_main(first.name) else {}
    holder: dict[str, Path] = {}
    for path in found.files:
        content, metadata = _read_file(path, handles)
        if metadata:
            beside.setdefault("__metadata__", metadata)
        for name in content:
            if name in holder:
                raise ValueError(f"{path}: the tensor {name!r} is also in {holder[name].name}: one of them is too many")
            holder[name] = path
        everything |= content
    for name, shard in (found.where or {}).items():
        if name not in holder or holder[name].name != PurePosixPath(shard).name:
            raise ValueError(
                f"{found.path}: the tensor {name!r} is not in {shard}, where the index has it: fetch it again"
            )
    return Content(found.path, everything, found.files, beside, found.labels, found.passed)


def _read_file(path: Path, handles: Handles) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the content of one file, and its metadata."""
    file = handles.file(path)
    head = file.read(0, 9)
    if head[:4] != b"PK\3\4" and (path.suffix == ".safetensors" or looks_like_safetensors(head, file.size)):
        tensors, metadata = read_safetensors(file)
        if "DCP_SHARDING_INFO" in metadata:
            raise ValueError(f"{path} is a part of a distributed checkpoint: write one whole model first")
        return dict(tensors), metadata
    return read_torch(file), {}


def _beside(folder: Path) -> dict[str, Any]:
    """Return the plain values of ``trainer_state.json``, such as ``global_step``."""
    path = folder / "trainer_state.json"
    if not path.is_file():
        return {}
    return {name: value for name, value in _json(path).items() if isinstance(value, (str, int, float, bool))}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}. Fetch it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no dict: fetch it again")
    return content


# ---------------------------------------------------------------------- files


def _is_folder(path: Path) -> bool:
    """Return whether a path is a directory, after checking that it is a directory or a file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file") from None
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            raise FileNotFoundError(f"{path}: there is no such file") from None
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"{str(path)!r} is not the name of a file") from None
    if stat.S_ISDIR(mode):
        return True
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is not a file but a device or a pipe, which may never end")
    return False


def _without_others(paths: list[Path], inside: Mapping[Path, Sequence[Found]]) -> list[Path]:
    """Leave out paths without weights, if there are others. A shell expands ``run/*`` to such paths, too."""
    others = [path for path, found in inside.items() if not found and not _OF_CHECKPOINTS.fullmatch(path.name)]
    files = [path for path in paths if path not in inside and not path.name.endswith(_INDEX)]
    others += [path for path in files if _NO_WEIGHTS.match(path.name)]
    if not others or {*others} == {*paths}:
        return paths
    log.warning("paths without weights are left out: %s", listed([str(path) for path in others]))
    return [path for path in paths if path not in others]


def _units(files: Sequence[Path]) -> list[Found]:
    """Return the checkpoints in a list of files. Shards that belong together become one."""
    there, given = {*files}, [file for file in files if file.name.endswith(_INDEX)]
    units = [_indexed(index) for index in given]
    taken = {file for unit in units for file in unit.files}
    for folder in dict.fromkeys(file.parent for file in files):
        for index in (folder / name for name in _neighbours(folder) if name.endswith(_INDEX)):
            shards = [] if index in given else _shards_of(index)
            here = [file for file in shards if file in there]
            if len(shards) > 1 and here and not {*here} <= taken:
                if len(here) < len(shards):
                    missing = [file.name for file in shards if file not in here]
                    raise _no_whole(here[0], f"one of {len(shards)} shards", missing)
                units.append(replace(_indexed(index), path=index.with_name(index.name.removesuffix(_INDEX))))
                taken |= {*shards}

    sets: dict[tuple[Path, str, int, str], dict[int, Path]] = defaultdict(dict)
    parts: dict[Path, _Parts] = {}
    for file in files:
        if file in taken or file in given:
            continue
        numbers = _SHARD.findall(file.name)
        if len(numbers) > 1 and any(int(n) > 1 for _, n in numbers):
            raise ValueError(f"{file} is a part of a model that was trained in parallel: write one whole model first")
        if not numbers or all(int(n) == 1 for _, n in numbers):
            _refuse_part(file, parts)
            units.append(Found(file, (file,)))
        else:
            before, i, n, after = _SHARD.split(file.name)
            sets[file.parent, before, int(n), after][int(i)] = file
    for (folder, before, n, after), shards_by_number in sets.items():
        ordered = _all_shards(shards_by_number, n)
        units.append(Found(folder / f"{before}*-of-{n}{after}", tuple(ordered)))
    return _one_format(units)


def _all_shards(shards: dict[int, Path], n: int) -> list[Path]:
    numbers = range(n) if 0 in shards else range(1, n + 1)
    missing = [str(i) for i in numbers if i not in shards]
    if missing or len(shards) != n:
        i, file = min(shards.items())
        raise _no_whole(file, f"shard {i} of {n}", [f"shard {i}" for i in missing])
    return [shards[i] for i in numbers]


def _no_whole(file: Path, what: str, missing: list[str]) -> ValueError:
    return ValueError(
        f"{file} is {what}, and no whole checkpoint: {listed(missing) or 'another'} is not among the files. Name the "
        f"directory {file.parent} if all shards are in it, or all shards together, or fetch the rest"
    )


def _shards_of(index: Path) -> list[Path]:
    """Return the files that an index names, or none if it is not readable."""
    try:
        where = _json(index).get("weight_map")
    except ValueError:
        return []
    names = {*where.values()} if isinstance(where, dict) else set()
    return [index.parent / name for name in sorted(name for name in names if isinstance(name, str))]


def _indexed(index: Path) -> Found:
    """Return the checkpoint that an index file describes."""
    where = _json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(shard, str) for shard in where.values()):
        raise ValueError(f"{index} has no weight_map, which says in which file each tensor is: name the files")
    for shard in {*where.values()}:
        for kind in (PurePosixPath, PureWindowsPath):
            if not shard or kind(shard).is_absolute() or ".." in kind(shard).parts:
                raise ValueError(f"{index}: the file {shard!r} is outside of the directory, and is not read")
        if not (index.parent / shard).is_file():
            raise FileNotFoundError(f"{index.parent} is incomplete: there is no {shard!r}, which {index.name} names")
    files = sorted({index.parent / shard for shard in where.values()}, key=_natural)
    return Found(index, tuple(files), where=where)


def _one_format(units: list[Found]) -> list[Found]:
    """Leave out the ``.bin`` of a model that is also there in ``.safetensors``, and name the directory of shards."""
    whole = [unit for unit in units if len(unit.files) > 1 or _rank(unit) < len(_MAIN)]
    best: dict[Path, Path] = {}
    for unit in sorted(whole, key=_preference):
        best.setdefault(unit.files[0].parent, unit.files[0])
    safe = {folder for folder, file in best.items() if file.suffix == ".safetensors"}
    twins = [one for one in whole if one.files[0].parent in safe and one.files[0].suffix == ".bin"]
    kept = [unit for unit in units if unit not in twins]
    n = Counter(unit.files[0].parent for unit in kept)
    for i, unit in enumerate(kept):
        folder = unit.files[0].parent
        if len(unit.files) > 1 and n[folder] == 1 and not unit.path.name.endswith(_INDEX):
            kept[i] = replace(unit, path=folder)
    return kept


_Parts = dict[tuple[str, str], list[tuple[int, str]]]


def _refuse_part(file: Path, known: dict[Path, _Parts]) -> None:
    """Refuse a file that holds a part of a model.

    Args:
        file: the file.
        known: the parts in each directory, so that it is searched once.
    """
    if file.suffix == ".distcp":
        raise ValueError(f"{file} is a part of a distributed checkpoint: name its directory {file.parent}")
    for pattern, why in _NEVER_WHOLE:
        if pattern.fullmatch(file.name):
            raise ValueError(f"{file} {why}: write one whole model first (DeepSpeed: python zero_to_fp32.py)")
    for named, others in ((file, file.parent), (file.parent, file.parent.parent)):
        for match in _PART.finditer(named.name):
            surely = _SURELY_PART.search(named.name) is not None
            if named is not file and not surely:
                continue
            if others not in known:
                known[others] = _parts_among(_neighbours(others))
            alike = known[others].get(_around(named.name, match), [])
            numbers = {n for n, name in alike if named is file or (others / name / file.name).is_file()}
            numbers.add(int(match[3]))
            low = min(numbers)
            if (len(numbers) > 1 and low < 2 and numbers == {*range(low, low + len(numbers))}) or (surely and low > 0):
                raise ValueError(
                    f"{file} is part {int(match[3])} of a model that was trained in parallel, and no whole checkpoint: "
                    "write one whole model first, with the program that has written the parts"
                )


def _parts_among(names: Iterable[str]) -> _Parts:
    """Return number and name of each part among the names in a directory, by the text around the number."""
    parts: _Parts = defaultdict(list)
    for name in names:
        for match in _PART.finditer(name):
            parts[_around(name, match)].append((int(match[3]), name))
    return parts


def _around(name: str, part: re.Match[str]) -> tuple[str, str]:
    """Return a name before and after the number of a part. The numbers of further parts in it may be any."""
    return name[: part.start(3)], _PART.sub("\\1\\2\0", name[part.end(3) :])


def _names(folder: Path) -> list[str]:
    """Return the names in a directory, naturally sorted."""
    try:
        return sorted(os.listdir(folder), key=_natural)  # noqa: PTH208  # names, of thousands of files
    except OSError as error:
        raise ValueError(f"{folder} cannot be read: {error.strerror}") from None


def _neighbours(folder: Path) -> list[str]:
    """Return the names in the directory of a file, or none if it cannot be listed."""
    try:
        return _names(folder)
    except ValueError:
        return []


def _natural(path: Path | str) -> list[tuple[int, int | str]]:
    """Sort step2 before step10."""
    return [
        (0, int(part)) if part.isascii() and part.isdigit() else (1, part)
        for part in re.split(r"([0-9]+)", str(path))
        if part
    ]


# ---------------------------------------------------------------------- directories


def _in_folder(folder: Path, above: tuple[str, ...]) -> list[Found]:
    """Return the checkpoints in a directory: itself, or those in it."""
    real = os.path.realpath(folder)
    if real in above or len(above) > _DEEPEST:
        return []
    above = (*above, real)
    names = _names(folder)
    if "snapshots" in names and (folder.name.startswith("models--") or "refs" in names):
        return _in_hub(folder, above)
    if ".metadata" in names:
        return [Found(folder, (folder,))]
    if any(name.endswith(".distcp") for name in names):
        raise ValueError(f"{folder} is an incomplete distributed checkpoint: the file .metadata is missing")
    if "model_index.json" in names:
        raise ValueError(
            f"{folder} is a pipeline of several models: name the directory of one, such as {folder / 'unet'}"
        )
    files, folders = [], []
    for name in names:
        path = folder / name
        if path.is_dir():
            if not name.startswith((".", "__")) and not _NO_WEIGHTS.match(name):
                folders.append(path)
        elif _may_be_weights(name) and path.is_file():
            files.append(path)
        elif _may_be_weights(name) and path.is_symlink():
            log.warning("%s is left out: the link leads to no file. Fetch the file again", path)
    if not files and any(name.endswith(_INDEX) for name in names):
        _indexed(next(folder / name for name in names if name.endswith(_INDEX)))  # raises: the shards are missing
    units = _units(files)
    main = sorted((unit for unit in units if _rank(unit) < len(_MAIN)), key=_preference)
    others = [unit for unit in units if unit not in main]
    numbered = [unit for unit in others if re.search(r"\d", unit.files[0].stem)]
    if main and len(numbered) < 2 and not any(_OF_CHECKPOINTS.fullmatch(unit.files[0].name) for unit in numbered):
        # The directory that a Trainer writes to has the last model, and a directory for each checkpoint.
        later = [path for path in folders if re.fullmatch(r"checkpoint-\d+", path.name)]
        checkpoints = [one for path in later for one in _in_folder(path, above)]
        if checkpoints:
            log.warning("%s is left out. If its step is later than those of checkpoint-*, name it too", main[0].path)
        passed = tuple(unit.path.name for unit in others)
        return checkpoints or [replace(main[0], path=folder, passed=passed)]
    for path in folders:
        units += _in_folder(path, above)
    return units


def _may_be_weights(name: str) -> bool:
    """Return whether a file of this name may hold weights: by its suffix, or as step_1000, without a suffix."""
    if _NO_WEIGHTS.match(name):
        return False
    return name.lower().endswith(_SUFFIXES) or (_OF_CHECKPOINTS.fullmatch(name) is not None and "." not in name[-6:])


def _rank(unit: Found) -> int:
    """Return the rank of the name of a checkpoint among the names that mean the weights of a directory."""
    name = unit.files[0].name
    name = re.sub(r"[-_.]?\d+[-_]of[-_]\d+", "", name)
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return next(
        (i for i, pattern in enumerate(_MAIN) if re.fullmatch(rf"{pattern}(\.(fp16|bf16|fp32))?", name)), len(_MAIN)
    )


def _is_main(name: str) -> bool:
    return _rank(Found(Path(name), (Path(name),))) < len(_MAIN)


def _preference(unit: Found) -> tuple[object, ...]:
    """Sort the formats of the same weights: ``.safetensors`` first, and no other precision than the usual one."""
    name = unit.files[0].name
    return (
        name.endswith("adapter_model.safetensors") or name.startswith("consolidated"),
        bool(re.search(r"\.(fp16|bf16)\b", name)),
        not name.endswith(".safetensors"),
        _rank(unit),
        name,
    )


def _in_hub(folder: Path, above: tuple[str, ...]) -> list[Found]:
    """Return the checkpoint of each branch of a repository in the cache of the Hugging Face hub."""
    branches = _branches(folder)
    commits = [name for name in _names(folder / "snapshots") if (folder / "snapshots" / name).is_dir()]
    chosen = [commit for commit in commits if commit in branches] or commits
    chosen.sort(key=lambda commit: [_natural(branch) for branch in branches.get(commit, (commit,))])
    return [found for commit in chosen for found in _in_folder(folder / "snapshots" / commit, above)]


def _branches(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the branches of a repository in the cache by their commit."""
    refs: dict[str, tuple[str, ...]] = {}
    for path in sorted((folder / "refs").rglob("*"), key=_natural):
        if path.is_file() and path.stat().st_size < 200:
            commit = path.read_text(encoding="utf-8", errors="replace").strip()
            refs[commit] = (*refs.get(commit, ()), path.relative_to(folder / "refs").as_posix())
    return refs


def _with_branches(found: Found, known: dict[Path, dict[str, tuple[str, ...]]]) -> Found:
    """Add the branches that lead to a snapshot in the cache of the hub.

    Args:
        found: the checkpoint.
        known: the branches of each repository, so that they are read once.
    """
    whole = Path(os.path.abspath(found.path))  # noqa: PTH100  # follows no links
    for folder in (whole, *whole.parents):
        if folder.parent.name == "snapshots":
            repository = folder.parent.parent
            if repository not in known:
                known[repository] = _branches(repository)
            return replace(found, labels=known[repository].get(folder.name, found.labels))
    return found


def _once(found: list[Found]) -> list[Found]:
    """Leave out checkpoints that are listed under another name: links to the same file, and branches without a number.

    Two branches with a number each are two steps, even if both lead to the same files.
    """
    kept: dict[int, Found] = {}  # by position
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for position, checkpoint in enumerate(found):
        twins = places[tuple(os.path.realpath(file) for file in checkpoint.files)]
        twin = next((i for i in twins if not _both_numbered(kept[i], checkpoint)), None)
        twins.append(position)
        kept[position] = checkpoint
        if twin is not None:
            both = {i: kept.pop(i) for i in (twin, position)}
            best = min(both, key=lambda i: (not _numbered(both[i].labels), _n_links(both[i])))
            labels = dict.fromkeys(label for one in (both[best], *both.values()) for label in one.labels)
            kept[best] = replace(both[best], labels=tuple(labels))
            twins[:] = [i for i in twins if i in kept]
    return [kept[i] for i in sorted(kept)]


def _n_links(found: Found) -> int:
    """Return the number of links on the ways to the files of a checkpoint."""
    return sum(part.is_symlink() for file in found.files for part in (file, *file.absolute().parents))


def _both_numbered(a: Found, b: Found) -> bool:
    return _numbered(a.labels) and _numbered(b.labels) and a.labels != b.labels


def _numbered(labels: tuple[str, ...]) -> bool:
    return any(re.search(r"\d", label) for label in labels)

"""Checkpoints as people have them: the weights in a file of torch or safetensors, whole or in shards.

torch's files are pickles. They are read with torch's ``weights_only`` reader, which makes tensors and plain containers
and refuses all else by name. A few classes of plain data that training scripts keep beside their weights are let pass,
but not as themselves: what the file says of them is written down in a :class:`_Record`, and none of their code runs.
"""

from __future__ import annotations

import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from anchored.errors import UserError, first_line
from anchored.store.files import load_tensors, os_errors_as_user_errors, read_json, refuse_special

PLAIN = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
"""Names under which training scripts keep weights, the likelier ones first."""

AVERAGED = "ema"
"""``which`` for averaged weights: ``ema``, ``model_ema``, ``state_dict_ema``, ``ema_state_dict``, ``params_ema`` ..."""

_NO_WEIGHTS = re.compile(r"optim|sched|scaler|rng|loops|callback|amp", re.IGNORECASE)
_INDEX = ".index.json"
_DEEPEST = 4  # containers around the weights
_NESTED = 20  # lists and dicts within one another, of values beside the weights
_MOST = 100_000  # containers, and values beside the weights: a small file can name one a million times


class _Record:
    """What a file says of an object: the arguments and the state that would have made it."""

    def __new__(cls, *arguments: Any) -> _Record:
        record = super().__new__(cls)
        record.arguments, record.state = arguments, None
        return record

    arguments: tuple[Any, ...]
    state: Any

    def __init__(self, *arguments: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _record_of(path: str) -> type[_Record]:
    module, _, name = path.rpartition(".")
    return type(name, (_Record,), {"__module__": module, "__qualname__": name})


_OPTIONS = tuple(map(_record_of, ("argparse.Namespace", "types.SimpleNamespace")))
_PATHS = tuple(
    _record_of(f"{module}.{kind}{name}")
    for module in ("pathlib", "pathlib._local")
    for kind in ("", "Pure")
    for name in ("PosixPath", "WindowsPath")
)
_TEXT = (_record_of("torch.torch_version.TorchVersion"),)
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_SCALARS = tuple(_record_of(f"{module}.scalar") for module in _NUMPY)
# Of NumPy's arrays (states of random generators) nothing is kept, not even what they hold.
_ARRAYS = tuple(map(_record_of, ("numpy.dtype", "numpy.ndarray", *(f"{module}._reconstruct" for module in _NUMPY))))
_HARMLESS = [*_OPTIONS, *_PATHS, *_TEXT, *_SCALARS, *_ARRAYS]


@dataclass(frozen=True)
class Checkpoint:
    """Weights that were read: CPU tensors by name, where in the file they were, and plain values beside them."""

    path: Path
    place: str
    """The keys that lead to them, such as ``model_ema.module``; "" where the file holds weights and nothing else."""
    tensors: dict[str, Tensor] = field(repr=False)
    metadata: dict[str, Any] = field(repr=False)
    """Numbers, texts and options beside the weights (``epoch``, ``args`` as a dict), or a safetensors file's text."""
    others: tuple[str, ...] = ()
    """Places of further sets of weights in the file, which were not taken."""

    @property
    def title(self) -> str:
        """The file and the place in it, for messages."""
        return f"{self.path} ({self.place})" if self.place else str(self.path)


def read_checkpoint(path: str | Path, which: str = "") -> Checkpoint:
    """Read weights from a file of any ending, or from a folder with one, whole or in shards; on the CPU.

    Args:
        path: a file that ``torch.save`` wrote (zip or legacy), a safetensors file, the index of a sharded one
            (``*.safetensors.index.json``, ``*.bin.index.json``), or a folder that holds one of them.
        which: of several sets of weights: ``"ema"`` for averaged ones, or the place of one, such as ``"teacher"``. By
            default those that were trained, where the file holds them.

    Raises:
        UserError: one line, for a file that is missing, damaged or none of these, that holds anything but tensors and
            plain data (named), or no weights, or several sets of them and none by a usual name.
    """
    file = _file_of(Path(path))
    if file.name.endswith(_INDEX):
        content, metadata = _read_shards(file), {}
    elif _is_safetensors(file):
        content, text = load_tensors(file)
        metadata = dict(text)
    else:
        content = _read_torch(file)
        metadata = _plain_values(content)
    sets = dict(_weight_sets(content, [_MOST]))
    place = _chosen(file, sets, which)
    tensors = {name: value for name, value in sets[place].items() if isinstance(value, Tensor)}
    return Checkpoint(file, place, tensors, metadata, tuple(each for each in sets if each != place))


def _file_of(path: Path) -> Path:
    """The file itself, or the one in a folder."""
    refuse_special(path)
    if not path.is_dir():
        return path
    for pattern in (f"*.safetensors{_INDEX}", f"*.bin{_INDEX}", "*.safetensors", "*.bin", "*.pth", "*.pt", "*.ckpt"):
        found = sorted(path.glob(pattern))
        if len(found) == 1:
            return refuse_special(found[0])
        if found:
            raise UserError(f"{path} holds {len(found)} files of weights: give one, such as {found[0]}")
    raise UserError(f"{path} is a folder without weights (.safetensors, .pth, .pt, .ckpt, .bin): give a file")


def _start(path: Path) -> bytes:
    with os_errors_as_user_errors(path, "read"), path.open("rb") as stream:
        return stream.read(64)


def _is_safetensors(path: Path) -> bool:
    """Whether the file says so: by its first bytes, a length and a JSON header, or by its ending."""
    return _start(path)[8:9] == b"{" or path.suffix.lower() == ".safetensors"


def weight_files(file: Path) -> tuple[Path, ...]:
    """The file itself, and the shards where it is an index of some; ``UserError`` where that is malformed."""
    names = _weight_map(file).values() if file.name.endswith(_INDEX) else ()
    return (file, *(file.parent / name for name in dict.fromkeys(names)))


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file that an index names for it."""
    described = read_json(index)
    files = described.get("weight_map") if isinstance(described, dict) else None
    if not (isinstance(files, dict) and files and all(isinstance(name, str) for name in files.values())):
        raise UserError(f"{index} is no index of sharded weights: it has no weight_map from tensors to files")
    for name in dict.fromkeys(files.values()):
        if Path(name).name != name:  # nothing outside the folder is read because a file says so
            raise UserError(f"{index} names {name!r}: shards have to lie beside their index")
    return files


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors that an index names, each from the file that it names for it."""
    files = _weight_map(index)
    tensors: dict[str, Tensor] = {}
    for shard in map(refuse_special, weight_files(index)[1:]):
        tensors |= load_tensors(shard)[0] if _is_safetensors(shard) else _read_torch(shard)
    missing = next((name for name in files if not isinstance(tensors.get(name), Tensor)), None)
    if missing is not None:
        raise UserError(f"{index.parent / files[missing]} has no tensor '{missing}', which {index.name} promises")
    return {name: tensors[name] for name in files}


def _read_torch(path: Path) -> Any:
    """What ``torch.save`` wrote, read by torch's reader for weights alone."""
    start = _start(path)
    if not start.strip(b"\0"):
        raise UserError(f"{path} {'holds zeros alone' if start else 'is empty'}: it was not written to its end")
    if start.lstrip()[:1] in (b"<", b"{") or start.startswith(b"version https://git-lfs"):
        what = "a pointer of Git LFS" if start.startswith(b"version") else "a page or text"
        raise UserError(f"{path} is {what}, not a file of weights: get the file itself where it came from")
    try:
        # In place where the format allows, so that an optimiser's state, which nobody asks for, is not read.
        return load_plainly(path, mmap=zipfile.is_zipfile(path))
    except UserError:
        raise
    except Exception as error:  # whatever torch raises for what it does not read
        raise UserError(_refusal(path, error)) from error


def load_plainly(file: Path | IO[bytes], *, mmap: bool = False) -> Any:
    """Tensors and plain data from torch's own format, on the CPU; whatever torch raises where it holds more.

    ``UserError`` where torch is older than 2.6, whose ``weights_only`` could be made to run code (CVE-2025-32434).
    """
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < (2, 6):
        raise UserError(f"torch {torch.__version__} does not read weights safely (CVE-2025-32434): use 2.6 or newer")
    with warnings.catch_warnings(), torch.serialization.safe_globals([*_HARMLESS]):
        warnings.simplefilter("ignore")  # of old protocols and storages: no concern of who reads weights
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)


def _refusal(path: Path, error: Exception) -> str:
    said = str(error)
    mend = "; save plain weights where you have its code: torch.save(model.state_dict(), 'weights.pth')"
    if wanted := re.search(r"GLOBAL (\S+)", said):
        return f"{path} holds a {wanted[1]}, and only tensors and plain data are read, nothing that is code{mend}"
    if "torchscript" in said.lower():
        return f"{path} is a TorchScript program, not weights{mend}"
    _, told, reason = said.partition("Unpickler error:")
    reason = first_line(Exception(reason if told else said))
    if told and "operand" not in reason:
        return f"{path} holds more than tensors and plain data ({reason}){mend}"
    return f"{path} is not a whole file of weights ({reason}): it was cut short, or is of another format"


def _weight_sets(
    node: Any, left: list[int], place: str = "", depth: int = 0
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All sets of weights, with their places: mappings from names to tensors, for the most part.

    ``left``: how many mappings may still be looked into.
    """
    left[0] -= 1
    if not isinstance(node, Mapping) or depth > _DEEPEST or left[0] < 0:
        return
    tensors = sum(isinstance(value, Tensor) for value in node.values())
    if tensors and 2 * tensors > len(node) and all(isinstance(name, str) for name in node):
        yield place, node
        return
    for name, value in node.items():
        if isinstance(name, str) and not _NO_WEIGHTS.search(name):
            yield from _weight_sets(value, left, f"{place}.{name}".lstrip("."), depth + 1)


def _chosen(path: Path, sets: Mapping[str, Any], which: str) -> str:
    """The place that is wanted; ``UserError`` where there is none, or several and none by a usual name."""
    places = list(sets)
    if not places:
        raise UserError(f"{path} holds no weights: no tensors by name were found in it")
    averaged = [place for place in places if is_averaged(place)]
    if which in places:
        return which
    if which == AVERAGED and averaged:
        return averaged[0]
    if which and not (which == AVERAGED and places == [""]):  # averages may have names of their own within the set
        raise UserError(f"{path} has no weights '{which}': it has {', '.join(map(repr, places))}")
    trained = [place for place in places if place not in averaged] or averaged
    usual = sorted((place for place in trained if _usual(place) < len(PLAIN)), key=_usual)
    if "" in trained or usual or len(trained) == 1:
        return "" if "" in trained else (usual or trained)[0]
    raise UserError(f"{path} holds several sets of weights, {', '.join(trained)}: say which one is meant (which)")


def is_averaged(name: str) -> bool:
    """Whether a place or the prefix of a name says that the weights are averages over training."""
    return any(re.search(r"(^|_)(ema|swa|averaged)(_|$)", part, re.IGNORECASE) for part in name.split("."))


def _usual(place: str) -> int:
    ranks = [PLAIN.index(part) for part in place.split(".") if part in PLAIN]
    return min(ranks, default=len(PLAIN))


def _plain_values(content: Any) -> dict[str, Any]:
    """The values beside the weights that are plain data."""
    values, left = content.items() if isinstance(content, Mapping) else (), [_MOST]
    named = [(name, value) for name, value in values if isinstance(name, str) and not _NO_WEIGHTS.search(name)]
    plain = {name: _plain(value, left) for name, value in named}
    return {name: value for name, value in plain.items() if value is not None}


def _plain(value: Any, left: list[int], depth: int = 0) -> Any:
    """A value as numbers, texts, lists and dicts; None for tensors and all that is not plain.

    ``left``: how many values may still be taken, which a list within itself, or many times within others, would exceed.
    """
    left[0] -= 1
    if left[0] < 0 or depth > _NESTED:
        return None
    match value:
        case bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_plain(item, left, depth + 1) for item in value] if len(value) <= 1000 else None
        case Mapping():
            if any(isinstance(item, Tensor) for item in value.values()):
                return None
            return {str(name): _plain(item, left, depth + 1) for name, item in value.items()}
        case _Record():
            return _recorded(value, left, depth)
    return None


def _recorded(record: _Record, left: list[int], depth: int) -> Any:
    """Options as a dict, a path or a version as text, a NumPy number as a number; None for the rest."""
    if isinstance(record, _OPTIONS):
        return _plain(record.state, left, depth + 1)
    if isinstance(record, _PATHS):
        return "/".join(map(str, record.arguments)).replace("//", "/")
    if isinstance(record, _TEXT):
        return "".join(map(str, record.arguments))
    if isinstance(record, _SCALARS):
        return _number(record)
    return None


def _number(record: _Record) -> int | float | bool | None:
    """A NumPy scalar, from the code of its type and its bytes."""
    codes = {"f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "b1": "?"}
    codes |= {f"u{size}": codes[f"i{size}"].upper() for size in (1, 2, 4, 8)}
    match record.arguments:
        case (_Record(arguments=(str(kind), *_)), bytes(content)) if kind in codes:
            try:
                (number,) = struct.unpack(f"<{codes[kind]}", content)
            except struct.error:
                return None
            return number  # type: ignore[no-any-return]
    return None

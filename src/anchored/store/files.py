"""Reading and writing of files: whole or not at all, refused in one line, nothing pickled or unpickled."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from anchored.errors import UserError

UNFINISHED = ".part"  # end of the names of files that are being written


@contextlib.contextmanager
def mending(path: Path, action: str) -> Iterator[None]:
    """Turn the system's refusals about ``path`` (full disk, no permission ...) into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot {action} {path}: {(error.strerror or str(error)).lower()}") from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A stream to a file that appears whole or not at all: beside its place first, flushed to disk, then renamed."""
    with mending(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
        try:
            with os.fdopen(handle, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).chmod(0o666 & ~_umask())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def sweep(folder: Path, *, deep: bool = True) -> None:
    """Remove what a killed process left half-written in ``folder``, and below it unless ``deep`` is false.

    Nobody else may be writing there.
    """
    for file in (folder.rglob if deep else folder.glob)(f".*{UNFINISHED}"):
        with mending(file, "remove"):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def placing(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Gives a path in a new folder beside ``path`` to write a file or folder to; it is moved to its place at the end.

    Where the body raises, nothing is left. Raises ``UserError`` where something is there already, unless ``force``
    (then it is replaced; a folder only where it is empty).
    """
    taken = any(path.iterdir()) if path.is_dir() else path.exists() and not force
    if taken:
        hint = "choose another place" if path.is_dir() else "choose another place, or replace it with --force"
        raise UserError(f"{path} exists already: {hint}")
    with mending(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            made = Path(folder) / path.name
            yield made
            made.replace(path)


@contextlib.contextmanager
def held(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Within it, this process alone holds the lock file ``path``; gives False where another one does, or waits for it.

    The system gives the lock back however the process ends, so nothing is ever left locked.
    """
    with mending(path, "lock"):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(blocking=wait)
        except Timeout:
            mine = False
        else:
            mine = True
    try:
        yield mine
    finally:
        lock.release()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with writing(path) as stream:
        stream.write(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON that people can read."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; ``UserError`` where the file is missing or is not JSON."""
    with mending(path, "read"):
        content = path.read_bytes()
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): it was changed by hand or cut short") from error


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write named tensors (any device; copied to CPU) and text as one safetensors file, atomically."""
    # clone: safetensors refuses tensors that share memory, and views of larger ones would be saved whole.
    write_bytes(path, save({name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}, metadata))


def join_tensors(path: Path, parts: Sequence[Path], metadata: dict[str, str]) -> None:
    """Write the tensors of several files one after another, along their first axis, as one file.

    Only one tensor of one part is in memory at a time. The format is github.com/huggingface/safetensors#format: eight
    bytes with the header's length, a JSON header, the data.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(safe_open(part, framework="pt")) for part in parts]
        names, end = list(opened[0].keys()), 0
        for name in names:
            slices = [part.get_slice(name) for part in opened]
            shape = [sum(each.get_shape()[0] for each in slices), *slices[0].get_shape()[1:]]
            size = sum(part.get_tensor(name).nbytes for part in opened)
            header[name] = {"dtype": slices[0].get_dtype(), "shape": shape, "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with writing(path) as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            for name in names:
                for part in opened:
                    stream.write(part.get_tensor(name).numpy().tobytes())


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: named CPU tensors, and the text kept with them."""
    try:
        with mending(path, "read"), safe_open(path, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}): remove it and run again") from error


def save_tree(path: Path, tree: Any) -> None:
    """Write nested dicts, lists, tuples, tensors and plain values (a training checkpoint) as one safetensors file."""
    tensors: dict[str, Tensor] = {}

    def packed(node: Any) -> Any:
        match node:
            case Tensor():
                tensors[f"t{len(tensors)}"] = node
                return {"tensor": f"t{len(tensors) - 1}"}
            case dict():  # as pairs, since keys may be numbers
                return {"dict": [[packed(key), packed(value)] for key, value in node.items()]}
            case tuple():
                return {"tuple": [packed(value) for value in node]}
            case list():
                return [packed(value) for value in node]
            case None | bool() | int() | float() | str():
                return node
        raise TypeError(f"a checkpoint cannot hold a {type(node).__name__}")

    text = json.dumps(packed(tree))
    save_tensors(path, tensors, {"tree": text})


def load_tree(path: Path) -> Any:
    """Read what ``save_tree`` wrote."""
    tensors, metadata = load_tensors(path)

    def unpacked(node: Any) -> Any:
        match node:
            case {"tensor": name}:
                return tensors[name]
            case {"dict": pairs}:
                return {unpacked(key): unpacked(value) for key, value in pairs}
            case {"tuple": values}:
                return tuple(unpacked(value) for value in values)
            case list():
                return [unpacked(value) for value in node]
        return node

    try:
        return unpacked(json.loads(metadata["tree"]))
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a checkpoint of anchored: remove it to train from the start") from error

"""Reading and writing files: atomic writes, one-line errors, safetensors and JSON; nothing is pickled or unpickled.

Nothing is written or removed through a symbolic link, in a folder that is not ours, or under a name that is not ours.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import stat
import struct
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from anchored.errors import UserError

if TYPE_CHECKING:  # torch is imported where tensors are written, so that a report that is there needs none
    from torch import Tensor

UNFINISHED = ".anchored-part"  # suffix of the names of files that are being written: .NAME.RANDOM.anchored-part


@contextlib.contextmanager
def os_errors_as_user_errors(path: Path, action: str) -> Iterator[None]:
    """Raise every ``OSError`` about ``path`` (full disk, no permission ...) as a one-line ``UserError``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot {action} {path}: {(error.strerror or str(error)).lower()}") from error


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream to a file that appears whole or not at all: a temporary file beside it, synced, then renamed.
    Raises ``UserError`` where ``path`` is a symbolic link: the file that it leads to is not ours to replace."""
    refuse_link(path)
    with os_errors_as_user_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            umask = os.umask(0)  # it cannot be read without being set
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def refuse_link(path: Path) -> Path:
    """The path; ``UserError`` where it is a symbolic link, so that nothing outside a result folder is ever changed."""
    if path.is_symlink():
        raise UserError(
            f"{path} is a symbolic link: nothing is written or removed through it, put a real file or folder there"
        )
    return path


def refuse_foreign_folder(mark: Path, what: str) -> None:
    """Refuse to write into a folder that holds files but not ``mark``, the file that is written first of all there.

    Locks and unfinished files, which a kill before the first write leaves, do not count. ``what`` such a folder holds
    is for the message.
    """
    folder = mark.parent
    with os_errors_as_user_errors(folder, "read"):
        if mark.is_file() or not folder.exists():
            return
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder: choose another place with -o")
        names = (entry.name for entry in folder.iterdir())
        if other := next((name for name in names if name != ".lock" and not name.endswith(UNFINISHED)), None):
            raise UserError(
                f"{folder} is not empty (it holds {other}) and not the folder of {what}: choose another with -o"
            )


def remove_unfinished(folder: Path, *, recursive: bool = True) -> None:
    """Remove the temporary files that a killed process left in ``folder`` (and below it); links are not followed. No
    other process may be writing there."""
    for parent, folders, names in os.walk(folder, followlinks=False):
        for name in names:
            if name.startswith(".") and name.endswith(UNFINISHED):
                with os_errors_as_user_errors(Path(parent, name), "remove"):
                    Path(parent, name).unlink(missing_ok=True)
        if not recursive:
            folders.clear()


@contextlib.contextmanager
def atomic_path(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary path to write a file or folder to, which is moved to ``path`` at the end; nothing is left on errors.

    What a killed process left of the same path is removed. Raises ``UserError`` where ``path`` exists; with ``force`` a
    file is replaced. A folder takes the place of an empty one.
    """
    refuse_link(path)
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path} exists already: choose another place")
    if path.exists() and not path.is_dir() and not force:
        raise UserError(f"{path} exists already: choose another place, or replace it with --force")
    with os_errors_as_user_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*{UNFINISHED}"):
            is_folder = left.is_dir() and not left.is_symlink()
            with locked(left / ".lock") if is_folder else contextlib.nullcontext(False) as free:
                if free:
                    shutil.rmtree(left)
        prefix, suffix = f".{path.name}.", UNFINISHED
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=prefix, suffix=suffix) as folder:
            temporary = Path(folder) / path.name
            with locked(Path(folder) / ".lock"):
                yield temporary
                temporary.replace(path)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Lock the file ``path`` for this process; gives False where another one holds it, unless ``wait``. The operating
    system releases the lock however the process ends."""
    lock = FileLock(refuse_link(path))
    with os_errors_as_user_errors(path, "lock"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(Timeout):
            lock.acquire(blocking=wait)
    try:
        yield lock.is_locked
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock ``path``; writes nothing, so that one may look without the right to write."""
    if not refuse_link(path).is_file():
        return False
    if sys.platform == "win32":
        with locked(path) as free:
            return not free
    import fcntl

    with os_errors_as_user_errors(path, "read"), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_writer(path) as stream:
        stream.write(content)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file atomically, with its time of change; never through a link at ``target``."""
    with os_errors_as_user_errors(source, "copy"):
        stat = refuse_special(source).stat()
        with source.open("rb") as content, atomic_writer(target) as stream:
            shutil.copyfileobj(content, stream)
        os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def copy_folder(source: Path, target: Path) -> None:
    """Copy the files below a folder, as ``copy_file``; locks, unfinished files and linked folders are left out.

    Raises ``UserError`` where a folder below ``target`` is a symbolic link.
    """
    for parent, _, names in list(os.walk(source)):  # listed first: the target may lie below the source
        place = target
        for part in Path(parent).relative_to(source).parts:
            place = refuse_link(place / part)
        for name in sorted(names):
            if name != ".lock" and not name.endswith(UNFINISHED):
                copy_file(Path(parent, name), place / name)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, _encoded(text))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")  # a file's name need not be UTF-8; JSON reads it back


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def refuse_special(path: Path) -> Path:
    """The path; ``UserError`` where it is a pipe, a device or a socket, which could be read for ever."""
    with os_errors_as_user_errors(path, "read"):
        mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a folder is refused when it is opened
        raise UserError(f"{path} is not a regular file but a pipe, a device or a socket: give a file")
    return path


def read_bytes(path: Path) -> bytes:
    """Read a file; ``UserError`` where it is missing or not a regular file."""
    with os_errors_as_user_errors(path, "read"):
        return refuse_special(path).read_bytes()


def digest(content: bytes) -> str:
    """First 16 hexadecimal digits of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def text_digest(text: str) -> str:
    """``digest`` of the file that ``write_text`` makes of it."""
    return digest(_encoded(text))


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of tensors: names, types, shapes and values, by name."""
    import torch

    hashed = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hashed.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()[:16]


def expand_home(name: str | Path) -> Path:
    """The path with the home folder for a leading ``~``; as it is where there is no such home, as for ``~x.png``."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def read_json(path: Path) -> Any:
    """Read JSON; ``UserError`` where the file is missing or is not JSON."""
    content = read_bytes(path)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): it was changed by hand or cut short") from error


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write named tensors (of any device) and text metadata as one safetensors file, atomically."""
    from safetensors.torch import save

    # clone: safetensors refuses tensors that share memory, and views of larger ones would be saved whole.
    write_bytes(path, save({name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}, metadata))


def join_tensors(path: Path, parts: Sequence[Path], metadata: dict[str, str]) -> None:
    """Concatenate the tensors of several safetensors files along their first axis, into one file, atomically.

    One tensor of one part is in memory at a time, which safetensors' own writer cannot do. The format is
    github.com/huggingface/safetensors#format: eight bytes with the header's length, a JSON header, the data.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(safe_open(part, framework="pt")) for part in parts]
        names, end = list(opened[0].keys()), 0
        for name in names:
            slices = [part.get_slice(name) for part in opened]
            shape = [sum(rows.get_shape()[0] for rows in slices), *slices[0].get_shape()[1:]]
            start, end = end, end + sum(part.get_tensor(name).nbytes for part in opened)
            header[name] = {"dtype": slices[0].get_dtype(), "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with atomic_writer(path) as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            for name in names:
                for part in opened:
                    stream.write(part.get_tensor(name).numpy().tobytes())


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: CPU tensors by name, and its text metadata; ``UserError`` where it cannot be read."""
    with _opened(path) as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata() or {}  # noqa: SIM118


def load_tensor(path: Path, name: str) -> Tensor | None:
    """Read one CPU tensor of a safetensors file; None where there is none of that name. Raises as ``load_tensors``."""
    with _opened(path) as stored:
        return stored.get_tensor(name) if name in stored.keys() else None  # noqa: SIM118


def tensors_metadata(path: Path) -> dict[str, str]:
    """Read the text that is kept with the tensors of a safetensors file, without reading them."""
    with _opened(path) as stored:
        return stored.metadata() or {}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open safetensors file; ``UserError`` where it is none."""
    try:
        with os_errors_as_user_errors(path, "read"), safe_open(refuse_special(path), framework="pt") as stored:
            yield stored
    except SafetensorError as error:
        mend = "it was cut short, or is of another format"
        if path.suffix.lower() in (".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl"):
            mend = "write its state_dict again with safetensors.torch.save_file"
        raise UserError(f"{path} is not a whole safetensors file ({error}): {mend}") from error


def save_tree(path: Path, tree: Any) -> None:
    """Write nested dicts, lists, tuples, tensors and plain values (a training checkpoint) as one safetensors file. The
    tensors are the file's; the structure around them is JSON in its metadata."""
    from torch import Tensor

    tensors: dict[str, Tensor] = {}

    def packed(node: Any) -> Any:
        match node:
            case Tensor():
                name = f"t{len(tensors)}"
                tensors[name] = node
                return {"tensor": name}
            case dict():  # as pairs, since keys may be numbers
                return {"dict": [[packed(key), packed(value)] for key, value in node.items()]}
            case tuple():
                return {"tuple": [packed(value) for value in node]}
            case list():
                return [packed(value) for value in node]
            case None | bool() | int() | float() | str():
                return node
        raise TypeError(f"a checkpoint cannot hold a {type(node).__name__}")

    structure = json.dumps(packed(tree))
    save_tensors(path, tensors, {"tree": structure})


def load_tree(path: Path) -> Any:
    """Read what ``save_tree`` wrote; ``UserError`` where the file is something else."""
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
        raise UserError(f"{path} is not a checkpoint of anchored: train into another folder to start anew") from error

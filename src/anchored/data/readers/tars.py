"""Reading single members of large uncompressed tar files: where each lies is found once and kept beside the file.

ImageNet-C's five archives hold 4.75 million small files. Unpacking them takes hours and millions of inodes; a tar is
only headers and contents in turn, so one pass over the headers finds every image, and each is then one read.
"""

import contextlib
import io
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anchored.errors import UserError
from anchored.store import files


@dataclass(frozen=True, eq=False)
class Members:
    """The files in a tar: ``names`` (N,) UTF-8 bytes, sorted; ``starts`` and ``sizes`` (N,) in bytes."""

    names: npt.NDArray[np.bytes_]
    starts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    def place(self, name: str) -> tuple[int, int]:
        """Return where the content of ``name`` starts and how long it is; KeyError where there is no such file."""
        key = name.encode("utf-8", "surrogateescape")
        at = int(np.searchsorted(self.names, key))
        if at == len(self.names) or self.names[at] != key:
            raise KeyError(name)
        return int(self.starts[at]), int(self.sizes[at])

    def below(self, top: str) -> list[str]:
        """Return the names that begin with ``top``, sorted."""
        first, last = np.searchsorted(self.names, [top.encode(), top.encode() + b"\xff"])
        return [name.decode("utf-8", "surrogateescape") for name in self.names[first:last].tolist()]


@lru_cache(maxsize=8)
def members(path: Path) -> Members:
    """Return the members of the tar at ``path``; from ``.<name>.index`` beside it if that is of this very file.
    UserError where it is not a whole uncompressed tar."""
    index_file = path.with_name(f".{path.name}.index")
    stamp = np.array([path.stat().st_size, path.stat().st_mtime_ns])
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError), np.load(index_file) as stored:
        if (stored["stamp"] == stamp).all():
            return Members(stored["names"], stored["starts"], stored["sizes"])
    scanned = _scan(path)
    packed = io.BytesIO()
    np.savez(packed, stamp=stamp, names=scanned.names, starts=scanned.starts, sizes=scanned.sizes)
    with contextlib.suppress(UserError):  # a folder that cannot be written to only costs the pass again
        files.write_bytes(index_file, packed.getvalue())
    return scanned


def _scan(path: Path) -> Members:
    names, starts, sizes = [], [], []
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                if member.isreg() and not member.issparse():
                    names.append(member.name.removeprefix("./").encode("utf-8", "surrogateescape"))
                    starts.append(member.offset_data)
                    sizes.append(member.size)
                tar.members = []  # type: ignore[attr-defined]  # or a million headers stay in memory
    except Exception as error:  # tarfile raises whatever a damaged header leads to
        raise UserError(f"{path} is not a whole tar file ({error}): move it elsewhere and fetch it again") from error
    if starts and starts[-1] + sizes[-1] > path.stat().st_size:
        raise UserError(f"{path} is cut short: move it elsewhere and fetch it again")
    order = np.argsort(np.array(names, dtype=np.bytes_), kind="stable")
    return Members(np.array(names, np.bytes_)[order], *(np.array(each, np.int64)[order] for each in (starts, sizes)))

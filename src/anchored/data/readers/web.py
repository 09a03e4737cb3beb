"""One file over HTTP: resumed where it broke off, checked as it comes, in place only when it is whole.

pooch and torchvision's downloader have no resume and start every file again from its first byte (ImageNet-C's noise.tar
has 22 GB); huggingface_hub resumes, but only files on its hub.
"""

import contextlib
import http.client
import math
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchored.data.readers.files import file_hash, is_web_page
from anchored.errors import UserError
from anchored.store import files

TIMEOUT = 30.0  # seconds without a byte after which a server is given up
TRIES = 5  # connections to one address that may break before it is given up, counted from the last one that helped
RESERVE = 1 << 28  # bytes of the disk that are left alone
_BLOCK = 1 << 18
_SCHEMES = ("http://", "https://")


class TransferError(Exception):
    """Why one address did not give the file, in a few words."""


@dataclass
class _Part:
    """A file as far as it has come: ``<name>.part``, and beside it what it is the start of."""

    path: Path

    @property
    def note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def origin(self) -> dict[str, str]:
        """Return the address and the version (ETag) that the part is the start of."""
        with contextlib.suppress(UserError):
            note = files.read_json(self.note)
            if isinstance(note, dict):
                return {str(key): str(value) for key, value in note.items()}
        return {}

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def download(
    url: str,
    path: Path,
    expected: str | None,
    progress: Callable[[int, int | None], None],
    timeout: float = TIMEOUT,
    size: int | None = None,
) -> str:
    """Bring ``url`` to ``path`` and return its hash, "md5:..." or "sha256:...".

    ``expected``: the hash it must have; None takes what comes, and returns its sha256. A part that is there is gone on
    with where ``expected``, or the version (ETag) that the server states, will tell whether the two fit. ``size``: the
    bytes that it has, if that is known; one that goes on beyond is given up, as is any that would fill the disk.
    ``progress`` is called with the bytes that are there and those there are to be (None: not known). TransferError
    where the address does not give the file: no connection, silence for ``timeout`` seconds, an error, a web page,
    another file.
    """
    if not url.startswith(_SCHEMES):
        raise TransferError("not an http address")
    part = _Part(path.with_name(f".{path.name}.part"))
    if (expected is None and part.origin().get("url") != url) or part.size > (size or math.inf):
        part.clear()
    most = part.size  # bytes that were there at the best of times
    resumed = most > 0
    tries = 0 if resumed and part.size == size and expected in (None, file_hash(part.path, _kind(expected))) else TRIES
    while tries:
        if expected is None and not part.origin().get("etag"):
            part.clear()  # nothing would tell whether the rest is of the same version
        before, broken = part.size, None
        try:
            if _fill(url, part, progress, timeout, size):
                break
        except urllib.error.HTTPError as error:
            if error.code != 416 or not before:
                raise TransferError(f"HTTP {error.code}") from error
            if error.headers.get("Content-Range", "").strip() == f"bytes */{before}":
                break  # all of it is there
            part.clear()  # it is no start of this file
        except UserError:
            raise
        except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: of a malformed header
            broken = error
        helped = part.size > most and (expected or part.origin().get("etag"))
        tries, most = TRIES if helped else tries - 1, max(most, part.size)
        if not tries or (broken is not None and part.size == 0):
            raise TransferError(_why(broken, timeout))
    if not part.size:
        part.clear()
        raise TransferError("the server sent an empty file")
    digest = file_hash(part.path, _kind(expected))
    if expected not in (None, digest):
        part.clear()
        if resumed:  # perhaps the part was another file's
            return download(url, path, expected, progress, timeout, size)
        raise TransferError(f"its hash is not {expected}")
    part.path.replace(path)
    part.clear()
    return digest


def _kind(expected: str | None) -> str:
    return (expected or "sha256").partition(":")[0]


def _fill(url: str, part: _Part, progress: Callable[[int, int | None], None], timeout: float, size: int | None) -> bool:
    """Add to the part what one connection gives; True when that was the rest of the file."""
    have, origin = part.size, part.origin()
    request = urllib.request.Request(url, headers={"User-Agent": "anchored", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if origin.get("url") == url and origin.get("etag"):
            request.add_header("If-Range", origin["etag"])  # a file that has changed comes whole
    with urllib.request.build_opener(_HttpRedirects).open(request, timeout=timeout) as response:
        if have and response.status != 206:
            have = 0  # the server does not know ranges, or the file has changed
        version = response.headers.get("ETag", "")
        begins = response.headers.get("Content-Range", f"bytes {have}-").strip().startswith(f"bytes {have}-")
        same_version = origin.get("url") != url or version == origin.get("etag", version)
        if have and not (begins and same_version):
            part.clear()
            return False
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isascii() and length.isdigit() else None
        files.write_json(part.note, {"url": url, "etag": version})
        with part.path.open("ab" if have else "wb") as out:
            while block := response.read1(_BLOCK):  # what is there: a stall loses nothing
                if not have and is_web_page(block[:64]):
                    raise TransferError("the server sent a web page, not the file")
                have += len(block)
                if have > (size or math.inf):
                    part.clear()
                    raise TransferError(f"it goes on beyond its {size:,} bytes")
                if shutil.disk_usage(part.path.parent).free < RESERVE + len(block):
                    part.clear()
                    raise TransferError(f"it would fill the disk of {part.path.parent} ({have:,} bytes came)")
                with files.os_errors_as_user_errors(part.path, "write"):
                    out.write(block)
                progress(have, total)
    return total is None or have >= total


class _HttpRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        """Return what the new address answers; TransferError where it is none."""
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except ValueError as error:
            fp.close()
            raise TransferError("it redirects to what is no address") from error

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Return the request that follows; TransferError for another scheme."""
        if not newurl.startswith(_SCHEMES):
            raise TransferError(f"it redirects to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _why(error: Exception | None, timeout: float) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"silent for {timeout:g} s"
    if error is None or isinstance(error, http.client.IncompleteRead | ConnectionResetError):
        return "the connection broke off again and again"
    return "no connection" if isinstance(error, OSError) else "its answer is not HTTP"

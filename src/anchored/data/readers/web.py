"""One file over HTTP: resumed where it broke off, checked as it comes, in place only when it is whole.

pooch, which downloaded here before, starts every file again from its first byte; ImageNet-C's noise.tar has 22 GB.
"""

from __future__ import annotations

import contextlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchored.data.readers.files import digest_of, is_web_page
from anchored.errors import UserError
from anchored.store import files

TIMEOUT = 30.0  # seconds without a byte after which a server is given up
TRIES = 5  # connections to one address that may break before it is given up, counted from the last one that helped
BLOCK = 1 << 18
Progress = Callable[[int, "int | None"], None]  # bytes that are there, and how many there are to be


class TransferError(Exception):
    """Why one address did not give the file, in a few words."""


@dataclass
class _State:
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
            found = files.read_json(self.note)
            if isinstance(found, dict):
                return {str(key): str(value) for key, value in found.items()}
        return {}

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def download(
    url: str, path: Path, expected: str | None, progress: Progress = lambda done, total: None, timeout: float = TIMEOUT
) -> str:
    """Bring ``url`` to ``path`` and return its hash, "md5:..." or "sha256:...".

    ``expected``: the hash it must have; None takes what comes, and returns its sha256. A part that is there is gone on
    with, from another address only where ``expected`` will tell whether the two fit. TransferError where the address
    does not give the file: no connection, silence for ``timeout`` seconds, an error, a web page, another file.
    """
    if not url.startswith(("http://", "https://")):
        raise TransferError("not an http address")
    state = _State(path.with_name(f".{path.name}.part"))
    if expected is None and state.origin().get("url") != url:
        state.clear()
    resumed = state.size > 0
    tries = TRIES
    while tries:
        before = state.size
        try:
            if _fill(url, state, progress, timeout):
                break
        except (OSError, http.client.HTTPException, TimeoutError) as error:
            if isinstance(error, urllib.error.HTTPError):
                if error.code == 416 and before:  # the part is no start of this file
                    state.clear()
                    tries -= 1
                    continue
                raise TransferError(f"HTTP {error.code}") from error
            broken: Exception | None = error
        else:
            broken = None
        tries = TRIES if state.size > before else tries - 1
        if not tries or (broken is not None and state.size == 0):
            raise TransferError(_why(broken, timeout))
    if not state.size:
        state.clear()
        raise TransferError("the server sent an empty file")
    digest = digest_of(state.path, (expected or "sha256").partition(":")[0])
    if expected is not None and digest != expected:
        state.clear()
        if resumed:  # perhaps the part was another file's
            return download(url, path, expected, progress, timeout)
        raise TransferError(f"its hash is not {expected}")
    state.path.replace(path)
    state.clear()
    return digest


def _fill(url: str, state: _State, progress: Progress, timeout: float) -> bool:
    """Add to the part what one connection gives; True when that was the rest of the file."""
    have, origin = state.size, state.origin()
    request = urllib.request.Request(url, headers={"User-Agent": "anchored", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if origin.get("url") == url and origin.get("etag"):
            request.add_header("If-Range", origin["etag"])  # a file that has changed comes whole
    with _opener().open(request, timeout=timeout) as response:
        if have and response.status != 206:
            have = 0  # the server does not know ranges, or the file has changed
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else None
        files.write_json(state.note, {"url": url, "etag": response.headers.get("ETag", "")})
        with state.path.open("ab" if have else "wb") as out:
            while block := response.read1(BLOCK):  # what is there: a stall loses nothing
                if not have and is_web_page(block[:64]):
                    raise TransferError("the server sent a web page, not the file")
                with files.os_errors_as_user_errors(state.path, "write"):
                    out.write(block)
                have += len(block)
                progress(have, total)
    return total is None or have >= total


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener that follows http and https only, also when redirected."""

    class Redirects(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, request: Any, response: Any, code: int, message: str, headers: Any, url: str) -> Any:
            if not url.startswith(("http://", "https://")):
                raise TransferError(f"it redirects to {url}")
            return super().redirect_request(request, response, code, message, headers, url)

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        Redirects,
    ):
        opener.add_handler(handler())
    return opener


def _why(error: Exception | None, timeout: float) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"silent for {timeout:g} s"
    if error is None or isinstance(error, http.client.IncompleteRead | ConnectionResetError):
        return "the connection broke off again and again"
    return "no connection" if isinstance(error, OSError) else "its answer is not HTTP"

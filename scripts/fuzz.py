"""Spoil every kind of file that anchored reads, and look for tracebacks, hangs and changed files.

    python scripts/fuzz.py [--cases 10000] [--seed 0] [--only NAME ...]

Each target writes a small valid file, spoils it (bytes, text, or values of its JSON or YAML) as Hypothesis draws, and
reads it as anchored does. Allowed are a result and a ``UserError``, within five seconds, with every file left as it was
and no new one. Whatever else happens is a finding: shown with the smallest case that Hypothesis comes to. Exit status 1
where there are any. ``fuzz_guided.py`` spoils the same files by coverage.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from fuzz_targets import TARGETS, Finding, Target
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from anchored.errors import UserError
from anchored.study.progress import quiet

LIMIT = 5.0  # seconds that a case may take


# --- Spoiling ---------------------------------------------------------------------------------------------------------

WORDS = (b"\x00", b"\xff" * 4, b"\xff" * 8, b"\x80\x00\x00\x00", b"-1", b"nan", b"1e999", b"9" * 400, b'"', b",", b"\n")


@st.composite
def spoilt_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """A few edits: parts replaced, inserted, removed, doubled, or all that follows cut off."""
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, min(len(content), draw(st.sampled_from((32, 512, len(content)))))))
        many = draw(st.sampled_from((1, 2, 4, 8, 64)))
        fresh = draw(st.sampled_from(WORDS) | st.binary(max_size=8))
        edit = draw(st.sampled_from(("replace", "insert", "remove", "double", "cut")))
        before, part, after = content[:at], content[at : at + many], content[at + many :]
        content = {
            "replace": before + fresh + content[at + len(fresh) :],
            "insert": before + fresh + part + after,
            "remove": before + after,
            "double": before + part + part + after,
            "cut": before,
        }[edit]
    return content


ODD = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=6)
    | st.sampled_from((0, -1, 1, 2**31, 2**63, 10**30, "", "[]", "nan", "python:os:system", "hub:", "../x", "é\x00")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


def places(tree: Any, trail: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to every value of a tree of dicts and lists."""
    yield trail
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield from places(value, (*trail, key))


@st.composite
def spoilt_tree(draw: st.DrawFn, tree: Any) -> Any:
    """One to three values of a tree replaced, removed, or joined by one more."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, 3))):
        trail = draw(st.sampled_from(list(places(tree))))
        value = draw(ODD)
        if not trail:
            tree = value if draw(st.integers(0, 9)) == 0 else tree
            continue
        holder = tree
        for key in trail[:-1]:
            holder = holder[key]
        edit = draw(st.sampled_from(("replace", "replace", "remove", "add")))
        if edit == "replace":
            holder[trail[-1]] = value
        elif edit == "remove":
            del holder[trail[-1]]
        elif isinstance(holder, dict):
            holder[draw(st.text(max_size=4))] = value
        else:
            holder.append(value)
    return tree


def spoilt(target: Target, content: bytes) -> st.SearchStrategy[bytes]:
    """Spoilt versions of a file."""
    raw = spoilt_bytes(content)
    if target.kind == "json":
        trees = spoilt_tree(json.loads(content)).map(lambda tree: json.dumps(tree).encode())
        return st.one_of(trees, trees, trees, raw)
    if target.kind == "yaml":
        trees = spoilt_tree(yaml.safe_load(content)).map(lambda tree: yaml.safe_dump(tree).encode())
        return st.one_of(trees, trees, trees, raw)
    return raw


# --- Running ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise ``Finding`` where the body takes longer; 0 for no limit."""

    def stop(*_: object) -> None:
        raise Finding(f"takes more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def contents(folder: Path, besides: Sequence[str]) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name not in besides)
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def attempt(target: Target, folder: Path, path: Path, content: bytes, limit: float = LIMIT) -> None:
    """Read one spoilt file; ``Finding`` where something else than a result or a ``UserError`` comes of it."""
    path.write_bytes(content)
    before = contents(folder, target.writes)
    with limited(limit), warnings.catch_warnings(), contextlib.suppress(UserError):
        warnings.simplefilter("ignore")
        target.read(path)
    if contents(folder, target.writes) != before:
        raise Finding("files were changed")


def run(target: Target, cases: int, seed: int) -> tuple[int, str]:
    """Try so many cases of a target: how many were tried, and what was found."""
    tried = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path = target.make(folder)
        whole = path.read_bytes()
        target.read(path)  # which a valid file must stand

        @seeded(seed)
        @settings(
            max_examples=cases,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
            report_multiple_bugs=False,
        )
        @given(content=spoilt(target, whole))
        def test(content: bytes) -> None:
            nonlocal tried
            tried += 1
            attempt(target, folder, path, content)

        try:
            with contextlib.redirect_stdout(io.StringIO()):
                test()
        except Exception as error:
            return tried, found(error, path)
    return tried, ""


def found(error: BaseException, path: Path) -> str:
    """A finding in a few lines: what was raised, where, and the spoilt content."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/anchored/" in frame.filename]
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-3:][::-1])
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text} at {where}\n    {path.read_bytes()[:300]!r}"


def main() -> None:
    """Fuzz all targets, or some, and list what is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="in all, over the targets by their shares")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn cases")
    parser.add_argument("--only", nargs="*", default=[], help="names of targets")
    given_options = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    chosen = [target for target in TARGETS if not given_options.only or target.name in given_options.only]
    shares = sum(target.share for target in chosen)
    began, total, failures = time.monotonic(), 0, 0
    for target in chosen:
        started = time.monotonic()
        many = max(1, -int(-given_options.cases * target.share // shares))
        tried, said = run(target, many, given_options.seed)
        total, failures = total + tried, failures + bool(said)
        print(
            f"{target.name}: {tried} cases, {time.monotonic() - started:.0f} s{': ' if said else ''}{said}", flush=True
        )
    print(
        f"{total} cases of {len(chosen)} kinds of files in {time.monotonic() - began:.0f} s: {failures} with findings"
    )
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()

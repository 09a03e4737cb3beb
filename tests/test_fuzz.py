"""Spoilt files of every kind: a short run of ``scripts/fuzz.py``, and what longer ones found."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import fuzz
import pytest
from fuzz_targets import TARGETS, Target

NAMED = {target.name: target for target in TARGETS}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_spoilt_files_are_refused_in_one_line(target: Target) -> None:
    _, said = fuzz.run(target, max(2, round(12 * target.share)), seed=7)
    assert said == ""


def changed(**values: object) -> Callable[[bytes], bytes]:
    """JSON with other values."""
    return lambda content: json.dumps({**json.loads(content), **values}).encode()


def renamed(content: bytes) -> bytes:
    """A zip whose first member says that its name is UTF-8, which it is not."""
    start = content.index(b"set/\xc3\xa9/a.png")
    assert zipfile.is_zipfile(io.BytesIO(content))
    central = content.rindex(b"set/\xc3\xa9/a.png")
    return content[: start + 4] + b"\xff\xff" + content[start + 6 : central + 4] + b"\xff\xff" + content[central + 6 :]


FOUND: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("study.json", changed(recipe={"": 1})),
    ("study.json", changed(recipe={"train": {"epochs": "3"}})),
    ("state.json", changed(error=1.0)),
    ("state.json", changed(share=None)),
    ("state.json", changed(phase=[])),
    ("cell.json, evaluate", changed(network=None)),
    ("recipe", lambda content: content.replace(b"fraction: 0.1", b"fraction: null")),
    ("recipe", lambda content: content.replace(b"epochs: 3", b"epochs: 2001-99-99")),
    ("own npy", lambda content: content[:60] + content),
    ("CIFAR-C npy", lambda content: content[:8] + b"\x22" + content[9:]),
    ("own npz", lambda content: content[:6] + b"\x09\x08\x63\x00" + content[10:]),
    ("zip unpacked", renamed),
    ("zip in place", renamed),
    ("corrupted copy", lambda content: b"null"),
    ("rows", lambda content: b'"' + b"x" * 200_000 + content),
    ("own csv", lambda content: b'"' + b"x" * 200_000 + content),
]


@pytest.mark.parametrize(("name", "spoil"), FOUND, ids=[f"{i}-{name}" for i, (name, _) in enumerate(FOUND)])
def test_what_was_found_stays_mended(name: str, spoil: Callable[[bytes], bytes], tmp_path: Path) -> None:
    target = NAMED[name]
    path = target.make(tmp_path)
    spoilt = spoil(path.read_bytes())
    assert spoilt != path.read_bytes()
    fuzz.attempt(target, tmp_path, path, spoilt)

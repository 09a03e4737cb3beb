"""Run the tutorials as they are printed, each in an empty folder, and put what was printed back into the pages.

    python scripts/run_tutorials.py              # all: every command must end with 0, every line of Python run
    python scripts/run_tutorials.py own-model    # some
    python scripts/run_tutorials.py --write      # and renew the outputs that the pages show

Of a page, in its order: ``console`` blocks are run line by line, ``python`` blocks in one session, blocks with a title
are written to the file of that name, blocks marked ``{.excerpt}`` are passed over. A block marked ``{.output}`` shows
what the block before it printed, ``.tail-12`` its last 12 lines. The folder's own path is shown as ``~``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGES = Path(__file__).resolve().parent.parent / "docs" / "tutorials"
FENCE = re.compile(r"^```(\w+)(?: \{([^}\n]*)\})?(?: title=\"([^\"\n]+)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of code of a page: its language, marks, title and text, and where the text stands in the page."""

    language: str
    marks: tuple[str, ...]
    title: str
    code: str
    span: tuple[int, int]


def blocks(text: str) -> Iterator[Block]:
    """All blocks of a page, in order."""
    for found in FENCE.finditer(text):
        marks = tuple(mark.lstrip(".") for mark in (found[2] or "").split())
        yield Block(found[1], marks, found[3] or "", found[4], found.span(4))


def run_page(path: Path, folder: Path) -> str:
    """Run a page's blocks in a folder; returns the page with the outputs that came."""
    text, names, printed = path.read_text(encoding="utf-8"), dict[str, Any](__name__="__main__"), ""
    changes = list[tuple[tuple[int, int], str]]()
    with _at(folder):  # contextlib.chdir came with 3.11
        for block in blocks(text):
            if "output" in block.marks:
                changes.append(
                    (block.span, _shown(printed.replace(str(folder), "~").replace(str(Path.home()), "~"), block.marks))
                )
            elif "excerpt" in block.marks:
                continue
            elif block.title:
                (folder / block.title).write_text(block.code, encoding="utf-8")
            elif block.language == "console":
                printed = "".join(_run(line[2:]) for line in block.code.splitlines() if line.startswith("$ "))
            elif block.language == "python":
                with contextlib.redirect_stdout(io.StringIO()) as said:
                    exec(compile(block.code, path.name, "exec"), names)
                printed = said.getvalue()
    for (begin, end), output in reversed(changes):
        text = text[:begin] + output + text[end:]
    return text


@contextlib.contextmanager
def _at(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _run(command: str) -> str:
    place = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": place, "COLUMNS": "110"}
    done = subprocess.run(
        ["bash", "-c", command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise SystemExit(f"exit status {done.returncode}: {command}\n{done.stdout}")
    return done.stdout


def _shown(printed: str, marks: tuple[str, ...]) -> str:
    lines = [line.rstrip() for line in printed.strip("\n").splitlines()]
    for mark in marks:
        kind, _, count = mark.partition("-")
        if kind == "tail" and len(lines) > int(count):
            lines = ["...", *lines[-int(count) :]]
        elif kind == "head" and len(lines) > int(count):
            lines = [*lines[: int(count)], "..."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the pages that the command line names, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", default=[path.stem for path in sorted(PAGES.glob("*.md"))])
    parser.add_argument("--write", action="store_true", help="renew the outputs that the pages show")
    options = parser.parse_args()
    for name in options.pages:
        path, start = PAGES / f"{name}.md", time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            text = run_page(path, Path(folder).resolve())
        if options.write:
            path.write_text(text, encoding="utf-8")
        print(f"{name}: every block ran, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()

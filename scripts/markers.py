"""Parts of pages that scripts write: what stands between ``<!-- NAME -->`` and the next ``<!-- end -->``."""

from __future__ import annotations

from pathlib import Path

from anchored.store import files


def split(page: Path, name: str) -> tuple[str, str, str]:
    """A page's text before the part (its marker included), the part, and the text after it."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    part, end, after = rest.partition("<!-- end -->\n")
    if not (begin and end):
        raise SystemExit(f"{page} has lost its markers, <!-- {name} --> and <!-- end -->: nothing is written")
    return before + begin, part, end + after


def write(page: Path, name: str, part: str) -> None:
    """Put a part in place of the one that is there."""
    before, _, after = split(page, name)
    files.write_text(page, before + part + after)

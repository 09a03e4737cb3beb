"""Check that a tag may be released, and print its notes: its section of ``CHANGELOG.md``.

    python scripts/release.py v0.1.0

Exit status 1, with a line for each reason, where changelog, citation and addresses are not those of a release. Needs
nothing but Python: the release workflow runs it before it builds anything.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TAG = re.compile(r"v(\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?)")
SECTION = r"^## \[{}\] - (\d{{4}}-\d{{2}}-\d{{2}})\n(.*?)(?=^## |^\[[^\]]+\]: |\Z)"
UNNAMED = re.compile(r"\bOWNER\b[./]")


def released(root: Path, tag: str) -> tuple[str, list[str]]:
    """The notes of a tag's version, and what keeps it from being released."""
    named = TAG.fullmatch(tag)
    if named is None:
        return "", [f"{tag} is no tag of a release: v1.2.3, or v1.2.3rc1"]
    version = named[1]
    changelog, citation = (_text(root, name) for name in ("CHANGELOG.md", "CITATION.cff"))
    section = re.search(SECTION.format(re.escape(version)), changelog, re.MULTILINE | re.DOTALL)
    date, notes = (section[1], section[2].strip()) if section else ("", "")
    reasons = [f"CHANGELOG.md has no section '## [{version}] - YEAR-MONTH-DAY' with notes"] if not notes else []
    wanted = {"version": version, **({"date-released": date} if date else {})}
    reasons += [
        f"CITATION.cff has {key} {found or 'nowhere'}, not {value}"
        for key, value in wanted.items()
        if (found := _field(citation, key)) != value
    ]
    unnamed = [name for name in ("pyproject.toml", "CITATION.cff", "conda/recipe.yaml") if _unnamed(root, name)]
    return notes, reasons + [f"{name} has OWNER where the repository's owner belongs" for name in unnamed]


def _text(root: Path, name: str) -> str:
    return (root / name).read_text(encoding="utf-8")


def _field(citation: str, key: str) -> str:
    found = re.search(rf"^{key}: *['\"]?([^'\"\s]+)", citation, re.MULTILINE)
    return found[1] if found else ""


def _unnamed(root: Path, name: str) -> bool:
    return bool(UNNAMED.search(_text(root, name)))


def main() -> None:
    """Print the notes, or why there is no release."""
    notes, reasons = released(ROOT, *sys.argv[1:2] or [""])
    for reason in reasons:
        print(f"release: {reason}", file=sys.stderr)
    print(notes)
    sys.exit(bool(reasons))


if __name__ == "__main__":
    main()

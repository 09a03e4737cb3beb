from pathlib import Path

import pytest
import release

CHANGELOG = """# Changelog

## [Unreleased]
- later

## [1.2.0] - 2027-01-31
### Added
- a thing

## [1.1.0] - 2026-12-01
- older

[1.2.0]: https://x.example
"""
CITATION = (
    "cff-version: 1.2.0\nversion: 1.2.0\ndate-released: 2027-01-31\nrepository-code: https://x.example/us/anchored\n"
)


def tree(root: Path, changelog: str = CHANGELOG, citation: str = CITATION, owner: str = "us") -> Path:
    """What a release looks at."""
    (root / "conda").mkdir()
    for name, text in (
        ("CHANGELOG.md", changelog),
        ("CITATION.cff", citation),
        ("pyproject.toml", f'Source = "https://x.example/{owner}/anchored"\n'),
        ("conda/recipe.yaml", "package:\n"),
    ):
        (root / name).write_text(text)
    return root


def test_a_release_prints_its_notes(tmp_path: Path) -> None:
    assert release.released(tree(tmp_path), "v1.2.0") == ("### Added\n- a thing", [])


@pytest.mark.parametrize(
    ("tag", "changed", "reason"),
    [
        ("1.2.0", {}, "no tag of a release"),
        ("v1.2", {}, "no tag of a release"),
        ("v1.3.0", {"citation": CITATION.replace("1.2.0", "1.3.0")}, "no section '## [1.3.0]"),
        ("v1.2.0", {"changelog": CHANGELOG.replace(" - 2027-01-31", " (unreleased)")}, "no section '## [1.2.0]"),
        (
            "v1.2.0",
            {"citation": CITATION.replace("\nversion: 1.2.0", "\nversion: 1.1.0")},
            "has version 1.1.0, not 1.2.0",
        ),
        ("v1.2.0", {"citation": "version: 1.2.0\n"}, "date-released nowhere, not 2027-01-31"),
        ("v1.2.0", {"owner": "OWNER"}, "pyproject.toml has OWNER"),
    ],
)
def test_what_keeps_a_tag_from_being_released(tmp_path: Path, tag: str, changed: dict[str, str], reason: str) -> None:
    _, reasons = release.released(tree(tmp_path, **changed), tag)
    assert len(reasons) == 1
    assert reason in reasons[0]

import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from anchored.study import revision

HERE = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.1.0", ""),  # a release: its tag
        ("0.1.0.dev0", ""),  # an archive without git
        ("0.1.1.dev3+g1a2b3c4d", "1a2b3c4d"),
        ("0.1.1.dev3+g1a2b3c4d5.d20261127", "1a2b3c4d5 with changes"),
    ],
)
def test_a_built_package_tells_its_revision(version: str, expected: str) -> None:
    assert revision.built_from(version) == expected


def test_a_source_tree_tells_its_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = subprocess.run(["git", "-C", HERE, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if asked.returncode:
        pytest.skip("the tests run from an archive, without git")
    short = asked.stdout[:12]
    assert revision.revision().removesuffix(" with changes") == short
    assert f" (revision {short}" in revision.version_line()
    assert "+" not in revision.version_line()  # what it was when it was installed
    monkeypatch.setattr(revision, "HERE", tmp_path)  # as an installed package: not under git
    monkeypatch.setattr(metadata, "version", lambda name: "0.1.1.dev3+g1a2b3c4d")
    assert revision.revision() == "1a2b3c4d"
    assert revision.version_line() == "anchored 0.1.1.dev3+g1a2b3c4d"

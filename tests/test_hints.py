"""What messages never say: that a user should delete a file of theirs."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import anchored

SOURCE = Path(anchored.__file__).parent
DELETING = re.compile(r"(?<!\.)\b(remove|delete|erase|rm|wipe|unlink)\b", re.IGNORECASE)
ALLOWED = ("remove",)  # the action in "cannot remove PATH"


def messages(path: Path) -> Iterator[str]:
    """All string literals of a file but its docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_no_message_asks_to_delete_anything(path: Path) -> None:
    asked = [text for text in messages(path) if DELETING.search(text) and text.strip() not in ALLOWED]
    assert not asked, f"{path}: say what helps without loss (another folder, move it elsewhere), not {asked}"


def test_such_a_message_would_be_found(tmp_path: Path) -> None:
    for text in ("remove it", "delete {path} first", "you can rm it"):
        (tmp_path / "bad.py").write_text(f"raise ValueError(f'{text}')")
        with pytest.raises(AssertionError, match="what helps without loss"):
            test_no_message_asks_to_delete_anything(tmp_path / "bad.py")

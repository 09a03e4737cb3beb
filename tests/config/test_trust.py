"""One rule decides what may be imported."""

import re
from pathlib import Path

import pytest

import anchored
from anchored.config.trust import refuse_code
from anchored.errors import UserError


def test_code_is_refused_unless_it_is_named() -> None:
    refuse_code("resnet18")
    refuse_code("timm:resnet18", where="a file")
    refuse_code("python:mine:make", ["python:mine:make"])
    with pytest.raises(UserError, match=r"^network 'python:mine:make' is code .* add --network python:mine:make$"):
        refuse_code("python:mine:make", ["python:mine:other"])
    with pytest.raises(UserError, match=r"^given.json names the network 'python:a{b}:c', which .* add --here$"):
        refuse_code("python:a{b}:c", where="given.json", option="--here")


def test_no_other_place_decides() -> None:
    source = Path(anchored.__file__).parent
    words = re.compile(r"if you trust it, add |startswith\(.python")
    deciding = {str(file.relative_to(source)) for file in source.rglob("*.py") if words.search(file.read_text())}
    assert deciding == {"config/trust.py"}

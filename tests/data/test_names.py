"""A name that is a set of the catalog and a folder here is asked about, wherever a set is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import anchored
from anchored.cli.main import main
from anchored.cli.overrides import resolve_recipe
from anchored.data.catalog.names import resolve_name

ASKED = "write 'digits/' for the folder, 'catalog:digits' for the set"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a folder of images that is called as a set of the catalog."""
    monkeypatch.chdir(tmp_path)
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        file = tmp_path / "digits" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), len(name)).save(file)
    (tmp_path / "own.yaml").write_text("base: demo\ndata: {train: digits}\n")
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "study demo --data.train digits",
        "study demo --evaluate.ood [textures,digits]",
        "doctor demo --evaluate.adaptation [digits]",
        "train demo --evaluate.held_out digits",
        "study own.yaml",
        "evaluate model.onnx --test digits",
        "evaluate model.onnx --test own/ --evaluate.ood [digits]",
        "calibrate run --images digits",
        "corrupt digits -o out",
    ],
)
def test_every_verb_asks(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.rglob("*"))
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert ASKED in error
    assert error.count("\n") == 1
    assert sorted(here.rglob("*")) == before


def test_python_asks() -> None:
    def model(batch: object) -> object:
        return np.asarray(batch).reshape(-1, 64)[:, :2]

    pair = (np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1])
    for asked in (
        lambda: anchored.evaluate(model, "digits"),
        lambda: anchored.evaluate(model, pair, ood=["digits"]),
        lambda: anchored.evaluate(model, pair, adaptation={"mine": (Path("digits"), pair)}),
        lambda: anchored.evaluate(model, pair, held_out="digits"),
        lambda: anchored.calibrate(model, "digits"),
    ):
        with pytest.raises(anchored.UserError, match=ASKED):
            asked()


def test_an_answer_is_the_name_that_is_kept(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_recipe("demo", {}).evaluate.ood  # our own recipes mean no folder, though they name digits
    recipe = resolve_recipe("demo", {"data.train": "digits/", "evaluate.ood": ["catalog:digits"]})
    assert (recipe.data.train, recipe.evaluate.ood) == ("digits/", ("digits",))
    monkeypatch.setenv("ANCHORED_DATA", str(here))
    assert resolve_name("digits") == "digits"  # the folder is the set's own

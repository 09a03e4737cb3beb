"""Images that are given in Python are opened as files are: allowed decoders, 16 bits by their range, white behind."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from torch.utils.data import DataLoader

import anchored
from anchored.data.given import GivenSet, given_set
from anchored.errors import UserError

WIDE = Image.fromarray((np.arange(16).reshape(4, 4) * 4369).astype(np.uint16))  # 0 to 65,535 in steps of 17 levels
CLEAR = Image.new("RGBA", (4, 4), (0, 0, 0, 0))


def opened(source: Any) -> GivenSet:
    return given_set(source, "mine", (), None, labelled=True)


def encoded(image: Image.Image, kind: str) -> dict[str, Any]:
    stream = io.BytesIO()
    image.save(stream, kind)
    return {"bytes": stream.getvalue(), "path": "a.jpg"}


def table(*cells: Any) -> Any:
    hf = pytest.importorskip("datasets")
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=["a", "b"])})
    return hf.Dataset.from_dict({"image": list(cells), "label": [0] * len(cells)}, features=features)


def as_lists(pairs: list[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    return [image for image, _ in pairs], [label for _, label in pairs]


@pytest.fixture
def no_ghostscript(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)


@pytest.mark.usefixtures("no_ghostscript")
@pytest.mark.parametrize("form", ["table", "formatted", "opened"])
def test_an_eps_in_python_never_reaches_ghostscript(form: str) -> None:
    cell = encoded(Image.new("RGB", (4, 4)), "EPS")
    of_form: dict[str, Callable[[], Any]] = {
        "table": lambda: table(cell),
        "formatted": lambda: table(cell).with_format("torch"),
        "opened": lambda: [(Image.open(io.BytesIO(cell["bytes"])), 0)],
    }
    with pytest.raises(UserError, match="mine, image 0 is not an image of an allowed format"):
        opened(of_form[form]())


def test_sixteen_bits_are_scaled_and_transparency_is_white() -> None:
    forms = [
        [(WIDE, 0)],
        [(WIDE.convert("I"), 0)],
        table(encoded(WIDE, "PNG")),
        DataLoader([(WIDE, 0)], collate_fn=as_lists),  # type: ignore[arg-type]
    ]
    for form in forms:
        assert opened(form).images.flatten().tolist() == list(range(0, 256, 17))
    for form in ([(CLEAR, 0)], table(encoded(CLEAR, "PNG"))):
        assert torch.equal(opened(form).images, torch.full((1, 3, 4, 4), 255, dtype=torch.uint8))


def test_levels_beyond_sixteen_bits_are_refused() -> None:
    for levels in (np.full((4, 4), 70_000, np.int32), np.full((4, 4), -1, np.int32)):
        with pytest.raises(UserError, match="mine, image 0 has levels from"):
            opened([(Image.fromarray(levels), 0)])


class Broken:
    """A data set whose own code fails at its second item."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == 1:
            raise OSError("the disk\nis gone")
        return torch.zeros(1, 4, 4), 0


def test_what_a_data_set_raises_is_one_line() -> None:
    for source, what in ((Broken(), "item 1"), (DataLoader(Broken()), "batch 1")):  # type: ignore[arg-type]
        with pytest.raises(UserError, match=f"mine, {what}: its data set raises OSError: the disk") as raised:
            opened(source)
        assert "\n" not in str(raised.value)
    cut = {"bytes": encoded(Image.effect_noise((40, 40), 50), "PNG")["bytes"][:200], "path": None}
    with pytest.raises(UserError, match="mine, image 1 is not a whole image"):
        opened(table(encoded(WIDE, "PNG"), cut))
    with pytest.raises(UserError, match="mine, image 0 has no image"):
        opened([(None, 0)])


def test_no_other_place_opens_images() -> None:
    """One opener, with the allowed decoders alone: whatever is new goes through it too."""
    own = Path(anchored.__file__).parent
    pattern = re.compile(r"Image\.open\(|\bimread\(|torchvision\.io|read_image\(|import (imageio|cv2)")
    found = {file.relative_to(own).as_posix() for file in own.rglob("*.py") if pattern.search(file.read_text())}
    assert found == {"data/decoding.py"}

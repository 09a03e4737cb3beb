"""A run is calibrated on images that it has not seen, and decides; a model from Python likewise."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import timm
import torch
from fixtures.browser import Page, opened
from fixtures.small_studies import MASKED
from PIL import Image
from torch import Tensor, nn

import anchored
from anchored.cli.main import main
from anchored.config.recipe import Cell
from anchored.data import datasets
from anchored.errors import UserError
from anchored.metrics.ood_scores import energy
from anchored.models import folder as models
from anchored.models.decision import Decision
from anchored.report.image_report import Prediction, render_gallery
from anchored.store import files
from anchored.store.layout import Run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A network that was trained for a second on 490 of 700 images."""
    run = Run(tmp_path_factory.mktemp("run") / "ram")
    few = ["--train.epochs", "5", "--train.accelerator", "cpu", "--data.fraction", "0.1", "--data.validation", "0.3"]
    assert main(["train", "demo", *MASKED, *few, "-o", str(run.path)]) == 0
    return run


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """The same in a folder of its own."""
    return Run(Path(shutil.copytree(trained.path, tmp_path / "ram")))


def held_out(run: Run) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    cell = Cell.parse(files.read_json(run.cell_file), run.cell_file)
    found = datasets.open_set(cell.data.train, "validation", cell.data, datasets.input_format(cell.data))
    return next(iter(found.parts([torch.arange(len(found))]))), found.labels, found.classes


def listed(folder: Path, images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> str:
    """Images as PNG files, and a table of them."""
    folder.mkdir()
    lines = ["path,label"]
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        Image.fromarray(np.asarray(image[0])).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{classes[label]}")
    (folder / "images.csv").write_text("\n".join(lines), encoding="utf-8")
    return str(folder / "images.csv")


def test_a_run_is_calibrated_on_its_held_out_share(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(run.path), "--error", "0.5", "--false_alarms", "0.1", "--seed", "5"]) == 0
    said = capsys.readouterr().out
    assert "False alarms at most 10.00%" in said
    assert str(run.decision_file) in said
    images, labels, classes = held_out(run)
    model = anchored.load(run.path)
    with torch.inference_mode():
        logits = model(model.preprocess(images))  # type: ignore[operator]
    rule = Decision.read(run.decision_file, models.weights_digest(run))
    assert (rule.alarm.n, rule.seed, rule.classes) == (len(labels), 5, classes)
    assert "held-out share" in rule.images
    torch.testing.assert_close(torch.tensor(rule.scores), energy(logits).sort().values.float())
    found = model.decide(images[:9])  # type: ignore[operator]
    assert found.names == rule.decide(logits[:9]).names
    noise = model.decide(torch.randint(256, (50, 1, 28, 28), dtype=torch.uint8))  # type: ignore[operator]
    assert float(noise.p_value.min()) >= 1 / (len(labels) + 1)


def test_a_decision_is_for_its_weights(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="calibrate it first"):
        anchored.load(run.path).decide(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))  # type: ignore[operator]
    assert main(["calibrate", str(run.path)]) == 0
    tensors, text = files.load_tensors(run.weights_file)
    files.save_tensors(
        run.weights_file, {name: t + 1 if name.endswith("bias") else t for name, t in tensors.items()}, text
    )
    with pytest.raises(UserError, match="for other weights"):
        anchored.load(run.path).decide(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))  # type: ignore[operator]


def test_images_by_name(run: Run, tmp_path: Path) -> None:
    folder = listed(tmp_path / "held", *held_out(run))
    assert (
        main(["calibrate", str(run.path), "--images", folder, "--sets", "raps", "--by_class", "--coverage", "0.8"]) == 0
    )
    by_name = Decision.read(run.decision_file)
    assert (by_name.images, by_name.sets.method, by_name.sets.by_class) == (folder, "raps", True)
    assert main(["calibrate", str(run.path)]) == 0
    assert Decision.read(run.decision_file).scores == pytest.approx(by_name.scores, abs=1e-4)  # the same images


def test_seen_images_are_refused(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = datasets.load_split("fashion-mini-known", "test")
    tested = listed(tmp_path / "tested", test.images[:40], test.labels[:40], test.classes)
    learned = datasets.load_split("fashion-mini-known", "train")
    seen = listed(tmp_path / "seen", learned.images[:40], learned.labels[:40], test.classes)
    for images, said in (
        ("fashion-mini-known", "was trained and tested on"),
        ("fashion-mini", "shares images with fashion-mini-known"),
        (tested, "40 of the 40 images"),
        (seen, "are train images of fashion-mini-known"),
        ("digits", "a label of digits is 9"),
        ("nowhere/", "nowhere"),
    ):
        assert main(["calibrate", str(run.path), "--images", images]) == 2
        complaint = capsys.readouterr().err
        assert said in complaint
        assert complaint.count("\n") == 1
    assert not run.decision_file.exists()


def test_what_cannot_be_promised_is_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    n = len(held_out(run)[1])
    for options, said in (
        (["--false_alarms", "0.001"], f"needs 999 held-out images, and there are {n}"),
        (["--coverage", "0.9999"], "needs 9,999 held-out images"),
        (["--error", "0.001"], "needs 2,995 held-out images"),
        (["--false_alarms", "2"], "share"),
        (["--sets", "top"], "sets"),
    ):
        assert main(["calibrate", str(run.path), *options]) == 2
        complaint = capsys.readouterr().err
        assert said in complaint
        assert complaint.count("\n") == 1
    cell = json.loads(run.cell_file.read_text("utf-8"))
    cell["data"]["validation"] = 0.0
    files.write_json(run.cell_file, cell)
    assert main(["calibrate", str(run.path)]) == 2
    assert "data.validation is 0), so that none is held out: give labelled images" in capsys.readouterr().err
    run.cell_file.unlink()
    assert main(["calibrate", str(run.path)]) == 2
    assert "is a converted model" in capsys.readouterr().err
    assert not run.decision_file.exists()


def test_any_classifier_from_python() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, model = torch.randn(200, 6, generator=generator), nn.Linear(6, 3)
    labels = model(inputs).argmax(1)
    labels[::7] = 0
    rule = anchored.calibrate(model, inputs, labels, classes=["a", "b", "c"], error=0.3)
    assert rule.decide(model(inputs)).p_value.mean() == pytest.approx(0.5, abs=0.01)
    assert set(rule.decide(model(inputs)).names) <= {"a", "b", "c", "unknown"}
    assert rule.weights != anchored.calibrate(nn.Linear(6, 3), inputs, labels).weights
    pair = anchored.calibrate(lambda x: x[:, :3], (inputs, labels))
    assert pair.classes == ("0", "1", "2")
    with pytest.raises(UserError, match="needs 99 held-out images, and there are 20"):
        anchored.calibrate(model, inputs[:20], labels[:20], false_alarms=0.01)


def test_a_model_by_its_name(run: Run, tmp_path: Path) -> None:
    images, labels, classes = held_out(run)
    rule = anchored.calibrate(run.path, images, labels, false_alarms=0.1)
    assert (rule.weights, rule.classes) == (models.weights_digest(run), classes)
    rule.save(run.decision_file)
    assert main(["calibrate", str(run.path), "--false_alarms", "0.1"]) == 0
    assert Decision.read(run.decision_file).scores == pytest.approx(rule.scores, abs=1e-4)
    listed(tmp_path / "held", images, labels, classes)
    by_file = anchored.calibrate(str(run.path), tmp_path / "held" / "images.csv")
    assert by_file.scores == pytest.approx(rule.scores, abs=1e-4)
    tested = datasets.load_split("fashion-mini-known", "test")
    for given, said in (
        (("fashion-mini",), "shares images with fashion-mini-known"),
        ((tested.images, tested.labels), "1,400 of the 1,400 images"),
    ):
        with pytest.raises(UserError, match=said) as error:
            anchored.calibrate(run.path, *given)
        assert "\n" not in str(error.value)
    torch.save(timm.create_model("test_resnet", num_classes=7).state_dict(), tmp_path / "own.pth")
    named = anchored.calibrate("timm:test_resnet", images, labels, checkpoint=tmp_path / "own.pth")
    assert named.classes == tuple("0123456")


class MaiteLinear:
    """A model as MAITE has them: images (C,H,W) to probabilities."""

    metadata: ClassVar[dict[str, Any]] = {"id": "linear", "index2label": {0: "light", 1: "dark"}}

    def __call__(self, images: Any, /) -> Any:
        chances = [1 / (1 + math.exp(4 - 8 * float(np.asarray(image).mean()))) for image in images]
        return [np.array([chance, 1 - chance], np.float32) for chance in chances]


def test_a_model_of_maite() -> None:
    levels = torch.linspace(0, 1, 60)
    images = (levels[:, None, None, None].expand(60, 1, 4, 4) * 255).round().to(torch.uint8)
    labels = (levels < 0.45).long()
    with pytest.raises(UserError, match="hold no energy"):
        anchored.calibrate(MaiteLinear(), images, labels)
    rule = anchored.calibrate(MaiteLinear(), images, labels, score="max_softmax")
    assert rule.classes == ("light", "dark")
    assert rule.alarm.n == 60
    assert rule.decide(torch.tensor([[0.0, -4.0]])).names == ["light"]


def test_predictions_have_decisions(run: Run, tmp_path: Path) -> None:
    images, labels, classes = held_out(run)
    listed(tmp_path / "seen", images[:30], labels[:30], classes)
    seen = str(tmp_path / "seen" / "*.png")
    assert main(["predict", str(run.path), seen, "-o", str(tmp_path / "plain")]) == 0
    assert main(["calibrate", str(run.path), "--false_alarms", "0.2"]) == 0
    assert main(["predict", str(run.path), seen, "-o", str(tmp_path / "decided")]) == 0
    plain, decided = (rows_of(tmp_path / name) for name in ("plain", "decided"))
    assert {row["decision"] + row["p_value"] + row["set"] for row in plain} == {""}
    found = anchored.load(run.path).decide(images[[int(Path(row["file"]).stem) for row in decided]])  # type: ignore[operator]
    assert [row["decision"] for row in decided] == found.names
    assert [row["set"].split("; ") for row in decided] == found.set_names
    assert [float(row["p_value"]) for row in decided] == pytest.approx(found.p_value.tolist(), abs=0.01)
    assert [float(row["confidence"]) for row in decided] == pytest.approx(found.confidence.tolist(), abs=1e-5)
    assert [row["class"] for row in decided] == [row["class"] for row in plain]
    page = (tmp_path / "decided" / "gallery.html").read_text(encoding="utf-8")
    assert {"decision", "size"} <= set(Page(page).ids)
    assert "decision" not in Page((tmp_path / "plain" / "gallery.html").read_text(encoding="utf-8")).ids
    assert "Of other images it promises nothing" in page
    assert page.count('data-decision="unknown"') == found.names.count("unknown")


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_page_filters_by_decision(tmp_path: Path) -> None:
    cards = [
        (Prediction("a", "cat", 0.9, 1.0, decision="cat", p_value=0.5, set="cat"), ""),
        (Prediction("b", "cat", 0.9, 1.0, decision="unknown", p_value=0.01, set="cat; dog"), ""),
        (Prediction("c", "dog", 0.9, 1.0, decision="dog", p_value=0.5, set="cat; dog"), ""),
    ]
    page = render_gallery("t", [], cards, [], 3)
    for control, value, shown in (("decision", "unknown", 1), ("decision", "known", 2), ("size", "2", 2)):
        chosen = page.replace(f'<select id="{control}">', f'<select id="{control}" data-on>', 1)
        place = chosen.index("data-on")
        chosen = chosen[:place] + chosen[place:].replace(f'value="{value}"', f'value="{value}" selected', 1)
        (tmp_path / "page.html").write_text(chosen, encoding="utf-8")
        found, said = opened(tmp_path / "page.html", tmp_path / "profile")
        assert f"{shown} of 3 shown" in found
        assert said == []

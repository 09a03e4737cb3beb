"""Any classifier is measured as a study's networks are, from Python, with the same figures."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import anchored
from anchored.cli.main import main
from anchored.config.settings import Data
from anchored.data import datasets
from anchored.data.image_sets import ImageSet
from anchored.store import files
from anchored.store.layout import Run, StudyFolder
from anchored.store.rows import read_rows

PICTURES = True  # they are looked at
TRAIN = "fashion-mini-known"
MEASURED: dict[str, Any] = {"severities": [1, 4], "corruptions": ["fog", "contrast"], "bootstrap": 100}
PROMISED: dict[str, Any] = {"coverage": 0.98, "error": 0.03}  # as the demo's recipe
QUICK: dict[str, Any] = {"corruptions": (), "bootstrap": 100, "progress": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of our own that was trained for an epoch, and measured by the command."""
    run = Run(tmp_path_factory.mktemp("run") / "ram")
    few = ["--train.epochs", "1", "--train.accelerator", "cpu", "--anchoring.references", "2"]
    assert (
        main(["train", "demo", "--grid.protocols", "[ram]", "--grid.tail_weights", "[0.0]", *few, "-o", str(run.path)])
        == 0
    )
    asked = ["--evaluate.ood", "[blobs, digits]", "--evaluate.corruptions", "[fog, contrast]"]
    asked += ["--evaluate.severities", "[1, 4]", "--evaluate.bootstrap", "100", "--evaluate.adaptation", "[digits]"]
    assert main(["evaluate", str(run.path), *asked]) == 0
    return run


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return datasets.load_split(TRAIN, "test").take(torch.arange(0, 1400, 7))


class Plain(nn.Module):
    """A linear classifier of grey 28 × 28 images."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(784, 7)
        nn.init.normal_(self.head.weight, std=0.1, generator=torch.Generator().manual_seed(0))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B,1,28,28) to logits (B,7)."""
        logits: Tensor = self.head(images.flatten(1))
        return logits


def figures(rows: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    kept = ("metric", "severity", "corruption", "score", "value", "low", "high", "n")
    return [tuple(row[name] for name in kept) for row in rows]


def test_a_run_a_module_and_outputs_have_equal_figures(run: Run, tmp_path: Path) -> None:
    expected = figures([vars(row) for row in read_rows(run.rows_file)])
    model = anchored.load(run.path).train()
    settings = Data(train=TRAIN, validation=0.1)
    kept_out = datasets.open_set(TRAIN, "validation", settings, datasets.input_format(settings))
    assert isinstance(kept_out, ImageSet)
    asked = {**MEASURED, **PROMISED, "held_out": (kept_out.images, kept_out.labels)}
    result = anchored.evaluate(model, TRAIN, ood=["blobs", "digits"], adaptation=["digits"], **asked)
    assert figures(result.rows) == expected
    assert model.training  # as it was
    stored = anchored.evaluate(outputs=run.outputs_file("test").parent, bootstrap=100, **PROMISED)
    assert figures(stored.rows) == expected
    images, labels = (datasets.load_split(TRAIN, "test").images, datasets.load_split(TRAIN, "test").labels)
    digits = [datasets.load_split("digits", split) for split in ("train", "test")]
    pairs = tuple((each.images, each.labels) for each in digits)
    blobs = datasets.load_split("blobs", "test", channels=1, size=28).images
    given = {"blobs of ours": blobs, "digits of ours": pairs[1][0]}
    arrays = anchored.evaluate(model, (images, labels), ood=given, adaptation={"digits of ours": pairs}, **MEASURED)
    kept = [figure for figure in figures(arrays.rows) if figure[0] not in ("auroc", "aupr", "fpr95")]
    assert [figure[:5] for figure in kept if figure[0] == "accuracy"] == [
        figure[:5] for figure in expected if figure[0] == "accuracy"
    ]


def test_shifted_images_of_the_same_classes(images: ImageSet) -> None:
    """The test images again have their accuracy; of three classes alone the other logits are left out."""
    model, some = Plain(), images.labels < 3
    few = (images.images[some], images.labels[some])
    asked = {**QUICK, "corruptions": (), "shifted": {"again": (images.images, images.labels), "three classes": few}}
    result = anchored.evaluate(model, (images.images, images.labels), **asked)
    clean = next(row for row in result.rows if row["metric"] == "accuracy")
    found = {row["dataset"]: row for row in result.rows if row["metric"] == "shifted_accuracy"}
    assert (found["again"]["value"], found["again"]["n"]) == (clean["value"], len(images))
    with torch.no_grad():
        right = (model(few[0].float() / 255)[:, :3].argmax(1) == few[1]).double().mean()
    assert found["three classes"]["value"] == pytest.approx(100 * float(right))
    with pytest.raises(anchored.UserError, match="which are the test images"):
        anchored.evaluate(model, (images.images, images.labels), **{**asked, "shifted": {"test": few}})


def test_forms_of_the_same_images_give_the_same_rows(images: ImageSet) -> None:
    model, unit = Plain(), images.images.float() / 255
    items = TensorDataset(unit, images.labels)
    forms: list[Any] = [
        (images.images, images.labels),
        (images.images.numpy()[:, 0], images.labels.tolist()),
        (images.images.permute(0, 2, 3, 1).numpy(), images.labels.numpy()),
        (unit, images.labels),
        items,
        DataLoader(items, batch_size=64),
        [{"image": image, "label": label} for image, label in zip(unit, images.labels, strict=True)],
    ]
    found = [
        figures(anchored.evaluate(model, form, **{**QUICK, "corruptions": "fog", "severities": [2]}).rows)
        for form in forms
    ]
    assert all(each == found[0] for each in found)


def test_a_hugging_face_data_set_is_one_of_them(images: ImageSet) -> None:
    hf = pytest.importorskip("datasets")
    columns = {"image": [image[0].numpy() for image in images.images], "label": images.labels.tolist()}
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=list(images.classes))})
    columns["image"] = [Image.fromarray(pixels) for pixels in columns["image"]]
    data = hf.Dataset.from_dict(columns, features=features)
    model = Plain()
    assert figures(anchored.evaluate(model, data, **QUICK).rows) == figures(
        anchored.evaluate(model, (images.images, images.labels), **QUICK).rows
    )


def test_a_callable_on_numpy_is_measured_like_its_module(images: ImageSet) -> None:
    model = Plain()
    weight, bias = model.head.weight.detach().numpy(), model.head.bias.detach().numpy()

    def scikit_style(batch: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
        assert isinstance(batch, np.ndarray)
        return batch.reshape(len(batch), -1) @ weight.T + bias

    pair = (images.images, images.labels)
    one, other = (anchored.evaluate(each, pair, **QUICK, name="linear") for each in (model, scikit_style))
    assert [row["value"] for row in one.rows] == pytest.approx([row["value"] for row in other.rows], abs=1e-5)


def test_inputs_that_somebody_prepared_are_taken_as_they_are(images: ImageSet) -> None:
    normalised = (images.images.float() / 255 - 0.3) / 0.2
    model = Plain()
    raw = anchored.evaluate(model, (images.images, images.labels), mean=[0.3], std=[0.2], **QUICK)
    given = anchored.evaluate(model, (normalised, images.labels), **QUICK)
    assert [row["value"] for row in raw.rows] == pytest.approx([row["value"] for row in given.rows], abs=1e-4)
    with pytest.raises(anchored.UserError, match="cannot be corrupted"):
        anchored.evaluate(model, (normalised, images.labels), corruptions="fog")


def test_results_are_compared_on_shared_resamples(images: ImageSet, tmp_path: Path) -> None:
    pair, model = (images.images, images.labels), Plain()
    worse = Plain()
    nn.init.zeros_(worse.head.weight)
    results = {"mine": anchored.evaluate(model, pair, **QUICK), "chance": anchored.evaluate(worse, pair, **QUICK)}
    both = anchored.compare(results, tmp_path / "both")
    assert "paired bootstrap" in repr(both)
    assert "relative to the first model" in repr(both)
    assert both.value("accuracy", architecture="mine") == results["mine"].value("accuracy")
    page = both.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "chance against mine" in page
    assert both._repr_html_().startswith("<figure")
    assert {"reliability"} <= {name.partition("-")[0] for name in both.figures()}
    with pytest.raises(anchored.UserError, match="other images"):
        anchored.compare({"a": results["mine"], "b": anchored.evaluate(model, (pair[0][:50], pair[1][:50]), **QUICK)})


def test_a_model_by_its_name_is_the_model(run: Run, images: ImageSet) -> None:
    pair = (images.images, images.labels)
    named = anchored.evaluate(run.path, pair, **QUICK)
    assert figures(named.rows) == figures(anchored.evaluate(anchored.load(run.path), pair, **QUICK).rows)
    assert {row["architecture"] for row in named.rows} == {"ram"}


def test_classes_of_a_named_network_are_matched_by_wordnet_ids(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=1000).state_dict(), tmp_path / "own.pth")
    for name, level in (("n01443537", 40), ("n01440764", 200)):  # goldfish, tench
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (70, 60), (level, number, 0)).save(tmp_path / "photos" / name / f"{number}.png")
    options: dict[str, Any] = {"checkpoint": tmp_path / "own.pth", "folder": tmp_path / "out", **QUICK}
    result = anchored.evaluate("timm:test_resnet", tmp_path / "photos", **options)
    found = safetensors.torch.load_file(Run(result.folder / "runs/given").outputs_file("test"))
    assert found["labels"].tolist() == [0] * 12 + [1] * 12
    assert found["logits"].shape == (24, 1000)


def test_a_named_model_is_measured_where_a_study_would(
    run: Run, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anchored.evaluation.given_models.find_device", lambda _: torch.device("meta"))
    with pytest.raises((RuntimeError, NotImplementedError, anchored.UserError), match="meta"):
        anchored.evaluate(run.path, (images.images, images.labels), **QUICK)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"severities": [6]}, "severities"), ({"score": "depth"}, "depth"), ({"bootstrap": 3}, "replicates")],
)
def test_settings_out_of_range_are_one_line(wrong: dict[str, Any], message: str, images: ImageSet) -> None:
    with pytest.raises(anchored.UserError, match=message):
        anchored.evaluate(Plain(), (images.images, images.labels), **{**QUICK, **wrong})


def test_a_second_call_computes_nothing_again(images: ImageSet, tmp_path: Path) -> None:
    calls = []

    def counted(batch: Any) -> Any:
        calls.append(len(batch))
        return batch.reshape(len(batch), -1)[:, :7] - 0.1 * np.arange(7)

    pair, folder = (images.images, images.labels), tmp_path / "kept"
    first = anchored.evaluate(counted, pair, folder=folder, version="1", **QUICK)
    before = len(calls)
    again = anchored.evaluate(counted, pair, folder=folder, version="1", **QUICK)
    assert len(calls) == before + 1  # the one image that says how many logits there are
    assert figures(again.rows) == figures(first.rows)
    anchored.evaluate(counted, pair, folder=folder, version="2", **QUICK)
    assert len(calls) > before + 2


def test_classes_in_another_order_are_matched_by_name(images: ImageSet) -> None:
    model = Plain()
    order = [6, 5, 4, 3, 2, 1, 0]
    turned = ImageSet("turned", images.images, 6 - images.labels, tuple(images.classes[i] for i in order))
    model.__dict__["classes"] = images.classes
    data = [(image[None][0], label) for image, label in zip(turned.images, turned.labels.tolist(), strict=True)]

    class Named(list):  # type: ignore[type-arg]
        classes = turned.classes

    straight = anchored.evaluate(model, (images.images, images.labels), **QUICK).value("accuracy")
    assert anchored.evaluate(model, Named(data), **QUICK).value("accuracy") == straight
    Named.classes = ("a", *turned.classes[1:])
    with pytest.raises(anchored.UserError, match="class 'a' of test is none of the network's"):
        anchored.evaluate(model, Named(data), **QUICK)


def logits(count: int = 20) -> Tensor:
    return torch.randn(count, 7, generator=torch.Generator().manual_seed(1))


BAD: dict[str, tuple[Any, str]] = {
    "probabilities": (lambda x: np.full((len(x), 7), 1 / 7), "are probabilities"),
    "nan": (lambda x: np.full((len(x), 7), math.nan), "not finite"),
    "shape": (lambda x: np.zeros(len(x)), "logits are"),
    "count": (lambda x: np.zeros((len(x), 3)) + np.arange(3), "3 logits"),
    "none": (lambda x: None, "no array of logits"),
}


@pytest.mark.parametrize("kind", BAD)
def test_models_that_give_no_logits_are_one_line_and_nothing_is_written(
    kind: str, images: ImageSet, tmp_path: Path
) -> None:
    model, message = BAD[kind]
    named = ImageSet("x", images.images, images.labels, images.classes)

    class Named(list):  # type: ignore[type-arg]
        classes = named.classes

    data = Named(zip(named.images, named.labels.tolist(), strict=True))
    with pytest.raises(anchored.UserError, match=message) as error:
        anchored.evaluate(model, data, folder=tmp_path / "out", **QUICK)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_data_that_do_not_fit_are_one_line(images: ImageSet) -> None:
    model, pixels, labels = Plain(), images.images, images.labels
    wrong: list[tuple[Any, str]] = [
        ((pixels, labels + 3), "a label of test is 9"),
        ((pixels, labels[:5]), "labels of test are"),
        ((pixels, torch.nn.functional.one_hot(labels, 7)), "one-hot"),
        (pixels, "an array alone"),
        ((pixels.float().fill_(math.nan), labels), "NaN"),
        ((pixels[:0], labels[:0]), "no images"),
        ("no-such-set", "not in the catalog"),
        (3, "give"),
    ]
    model.__dict__["classes"] = images.classes
    for data, message in wrong:
        with pytest.raises(anchored.UserError, match=message):
            anchored.evaluate(model, data, **QUICK)
    more: dict[str, Any]
    for more, message in (
        ({"ood": {"x": "nowhere"}}, "not in the catalog"),
        ({"near": ["x"]}, "which ood does not name"),
        ({"corruptions": "rain"}, "rain"),
        ({"adaptation": {"task": (pixels, labels)}}, "array alone"),
    ):
        with pytest.raises(anchored.UserError, match=message):
            anchored.evaluate(model, (pixels, labels), **{**QUICK, **more})


def test_raw_images_and_prepared_ones_are_not_mixed() -> None:
    """Else normalisation would be of some sets and not of others, and rejection would be of that."""
    model, raw = nn.Sequential(nn.Flatten(), nn.Linear(48, 7)), torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8)
    labels, prepared = torch.arange(20) % 7, torch.rand(20, 3, 4, 4)
    scaled: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    more: dict[str, Any]
    for test, more, said in (
        (raw, {"ood": {"x": prepared}}, "test is raw images and x is floats that are no levels of 255"),
        (raw, {"held_out": (prepared, labels)}, "test is raw images and held-out is floats"),
        (prepared, {"ood": {"x": raw}}, "x is raw images and test is floats"),
        (prepared, {"ood": "blobs"}, "blobs is raw images and test is floats"),
        (prepared, scaled, "leave preprocess, mean and std out, or give uint8"),
        (raw, {"mean": 0.5}, "give a number for each channel"),
        (raw, {"std": (0.0, 1.0, 1.0)}, "of std above 0"),
    ):
        with pytest.raises(anchored.UserError, match=said):
            anchored.evaluate(model, (test, labels), **{**QUICK, **more})
    levels: dict[str, Any] = {"ood": {"x": raw.float() / 255}, "shifted": None, "near": "x"}
    assert anchored.evaluate(model, (raw, labels), **scaled, **QUICK, **levels).rows


def test_test_images_are_not_held_out() -> None:
    model, raw = nn.Sequential(nn.Flatten(), nn.Linear(48, 7)), torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8)
    labels = torch.arange(20) % 7
    detectors = {"mine": lambda logits: logits.sum(1)}
    others = torch.cat([raw.flip(0)[:9], 255 - raw])
    for held_out, said in (((raw, labels), "are the test images"), ((others, labels.repeat(2)[:29]), "in 9 of 29: ")):
        with pytest.raises(anchored.UserError, match=f"held_out .*{said}"):
            anchored.evaluate(model, (raw, labels), held_out=held_out, detectors=detectors, **QUICK)
    for title in ("held-out", "mean", "mean-far"):
        with pytest.raises(anchored.UserError, match=f"a set is called '{title}'"):
            anchored.evaluate(model, (raw, labels), ood={title: raw}, **QUICK)
    with pytest.raises(anchored.UserError, match="ood has 'inverted', which is the test images made into such"):
        anchored.evaluate(model, (raw, labels), ood={"inverted": others}, **QUICK)
    with pytest.raises(anchored.UserError, match="adaptation has 'test', as the test images are called"):
        anchored.evaluate(model, (raw, labels), adaptation={"test": ((raw, labels), (raw, labels))}, **QUICK)


class Keeps(nn.Module):
    """Keeps a tensor of its first pass, as models with tables of positions do."""

    def __init__(self, dims: int = 2) -> None:
        super().__init__()
        self.layer = (nn.Conv2d, nn.Conv3d)[dims - 2](3, 7, 2)
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.kept = torch.ones(7) if self.kept is None else self.kept
        logits: Tensor = self.layer(x).flatten(2).mean(2) * self.kept
        return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_module_is_left_as_it_was_and_takes_its_own_precision(dtype: torch.dtype) -> None:
    model, raw = Keeps().to(dtype), torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8)
    assert anchored.evaluate(model, (raw, torch.arange(20) % 7), **QUICK).rows
    assert model.layer.weight.is_contiguous()
    assert model.training
    model(torch.rand(2, 3, 4, 4, dtype=dtype)).sum().backward()


def test_volumes_and_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    labels = torch.arange(20) % 7
    assert anchored.evaluate(Keeps(3), (torch.randn(20, 3, 4, 4, 4), labels), **QUICK).rows
    made = len(list(tmp_path.iterdir()))
    with pytest.raises(anchored.UserError, match=r"not take the images of test, \(1, 4, 4\) torch.uint8: .*channels"):
        anchored.evaluate(Keeps(), (torch.zeros(20, 1, 4, 4, dtype=torch.uint8), labels), **QUICK)
    few = (torch.zeros(5, 3, 4, 4, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(anchored.UserError):
        anchored.evaluate(Keeps(), (torch.zeros(20, 3, 4, 4, dtype=torch.uint8), labels), shifted={"s": few}, **QUICK)
    assert len(list(tmp_path.iterdir())) == made


def test_outputs_of_any_program_in_three_formats(tmp_path: Path, images: ImageSet) -> None:
    found, labels = logits(), torch.arange(20) % 7
    arrays: dict[str, Any] = {
        "test": (found, labels),
        "ood-mine": logits(30) / 2,
        "corruption-fog-3": (found / 3, labels),
        "shifted-theirs": (found.flip(0), labels),
    }
    result = anchored.evaluate(outputs=arrays, bootstrap=100)
    expected = figures(result.rows)
    right = 100 * (found.flip(0).argmax(1) == labels).double().mean().item()
    assert result.value("shifted_accuracy", "theirs")[0] == pytest.approx(right)
    folders = {ending: tmp_path / ending for ending in ("npz", "safetensors", "csv")}
    for ending, folder in folders.items():
        folder.mkdir()
        for name, value in arrays.items():
            parts = dict(zip(("logits", "labels"), [value] if isinstance(value, Tensor) else value, strict=False))
            file = folder / f"{name}.{ending}"
            if ending == "npz":
                np.savez(file, **{key: tensor.numpy() for key, tensor in parts.items()})
            elif ending == "safetensors":
                safetensors.torch.save_file(parts, file)
            else:
                columns = {letter: parts["logits"][:, i].tolist() for i, letter in enumerate("abcdefg")}
                columns |= {"label": parts["labels"].tolist()} if "labels" in parts else {}
                lines = [",".join(map(repr, line)) for line in zip(*columns.values(), strict=True)]
                file.write_text("\n".join([",".join(columns), *lines]))
        assert figures(anchored.evaluate(outputs=folder, bootstrap=100).rows) == expected


def test_outputs_of_two_networks_are_compared() -> None:
    labels = torch.arange(20) % 7
    first, second = ({"test": (logits() + shift, labels), "ood-x": logits(30)} for shift in (0, torch.eye(20, 7)))
    results = {name: anchored.evaluate(outputs=sets, bootstrap=100) for name, sets in (("a", first), ("b", second))}
    assert {row["architecture"] for row in anchored.compare(results).rows} == {"a", "b"}
    results["b"] = anchored.evaluate(outputs=second | {"test": (logits(), (labels + 1) % 7)}, bootstrap=100)
    with pytest.raises(anchored.UserError, match="on other images"):
        anchored.compare(results)
    with pytest.raises(anchored.UserError, match=r"near has 'y': outputs are there of x"):
        anchored.evaluate(outputs=first, near=["y"], bootstrap=100)


def test_outliers_made_of_the_test_images_are_drawn_with_them() -> None:
    """The same logits twice: no resample has another AUROC than ½. A set of other images moves on its own."""
    labels = torch.arange(20) % 7
    sets = {"test": (logits(), labels), "ood-jigsaw": logits(), "ood-mine": logits()}
    result = anchored.evaluate(outputs=sets, bootstrap=100)
    draws, _ = files.load_tensors(StudyFolder(result.folder).runs()[0].replicates_file)
    both = zip(result.rows, draws["draws"], strict=True)
    spread = {row["dataset"]: float(own.std()) for row, own in both if row["metric"] == "auroc"}
    assert spread["Own images as jigsaws"] < 1e-6 < 1 < spread["mine"]


def test_the_energy_of_logarithms_of_probabilities_is_refused() -> None:
    arrays = {"test": (logits().log_softmax(1), torch.arange(20) % 7), "ood-x": logits().log_softmax(1)}
    with pytest.raises(anchored.UserError, match="hold no energy"):
        anchored.evaluate(outputs=arrays, bootstrap=100)
    rows = anchored.evaluate(outputs=arrays, bootstrap=100, score="entropy").rows
    assert "auroc" in {row["metric"] for row in rows}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": None}, "no outputs called 'test'"),
        ({"ood-x": logits()[:, :5]}, "has 5 logits an image, test has 7"),
        ({"corruption-fog-2": (logits(), (torch.arange(20) + 1) % 7)}, "other labels than test"),
        ({"corruption-rain-1": (logits(), torch.arange(20) % 7)}, "known corruptions"),
        ({"validation": logits()}, "are called 'validation'"),
        ({"test": (logits(), torch.arange(20))}, "labels run from 0 to 19"),
        ({"test": (logits().softmax(1), torch.arange(20) % 7)}, "are probabilities"),
        ({"test": (logits().fill_(math.nan), torch.arange(20) % 7)}, "not finite"),
        ({"features-x-train": {"features": logits(), "labels": torch.arange(20) % 2}}, "are missing"),
        ({"ood-x": {"logits": logits(), "classes": list("gfedcba")}}, "another order than test"),
    ],
)
def test_outputs_that_do_not_fit_together_are_one_line(changes: dict[str, Any], message: str) -> None:
    arrays: dict[str, Any] = {
        "test": {"logits": logits(), "labels": torch.arange(20) % 7, "classes": list("abcdefg")}
    } | changes
    with pytest.raises(anchored.UserError, match=message) as error:
        anchored.evaluate(outputs={name: value for name, value in arrays.items() if value is not None}, bootstrap=100)
    assert "\n" not in str(error.value)

"""MAITE's models and data sets in an evaluation, and ours in MAITE, by its own spot check and its own evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import maite.protocols.image_classification as ic
import numpy as np
import pytest
import torch
from maite.protocols import ArrayLike, DatasetMetadata, DatumMetadata, ModelMetadata, generic
from maite.spotcheck import spotcheck_component
from maite.tasks import evaluate as evaluate_in_maite
from numpy.typing import NDArray

import anchored
from anchored.data import datasets
from anchored.data.image_sets import ImageSet
from anchored.evaluation.maite import GivenMaiteModel, MaiteCorruption, MaiteDataset, MaiteModel, MaiteSmoothECE
from anchored.metrics.calibration import smooth_ece
from anchored.metrics.classification import per_image
from anchored.models import folder as models
from anchored.models.folder import ModelConfig
from anchored.store.layout import Run

TRAIN = "fashion-mini-known"
QUICK: dict[str, Any] = {"corruptions": (), "bootstrap": 100, "progress": False}
Array = NDArray[Any]


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return datasets.load_split(TRAIN, "test").take(torch.arange(0, 1400, 11))


class Linear:
    """Somebody's MAITE model of grey 28 × 28 images: seven classes."""

    def __init__(self, names: Sequence[str], *, scale: float = 1.0, softmax: bool = False) -> None:
        self.metadata: ModelMetadata = {"id": "linear", "index2label": dict(enumerate(names))}
        self.weights = np.random.default_rng(0).normal(0, 0.1, (784, 7))
        self.scale, self.softmax = scale, softmax

    def __call__(self, input_batch: Sequence[ArrayLike], /) -> Sequence[Array]:
        flat = np.stack([np.asarray(image).reshape(-1) for image in input_batch]) * self.scale
        logits = flat @ self.weights
        if not self.softmax:
            return list(logits)
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return list(powers / powers.sum(1, keepdims=True))


class Photos:
    """Somebody's MAITE data set."""

    def __init__(self, images: ImageSet, *, floats: bool = False) -> None:
        self.images, self.floats = images, floats
        self.metadata: DatasetMetadata = {"id": "photos", "index2label": dict(enumerate(images.classes))}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, ind: int, /) -> tuple[Array, Array, DatumMetadata]:
        image = self.images.images[ind].numpy()
        target = np.eye(7)[int(self.images.labels[ind])]
        return image / np.float32(255) if self.floats else image, target, {"id": f"photo {ind}"}


def values(result: anchored.Result) -> list[Any]:
    return [row["value"] for row in result.rows]


def test_a_model_and_a_data_set_of_maite_are_measured(images: ImageSet) -> None:
    floats: ic.Dataset = Photos(images, floats=True)
    model: ic.Model = Linear(images.classes)
    noise = torch.randint(256, (40, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with_noise = {**QUICK, "ood": {"noise": noise}, "corruptions": "fog", "severities": [2]}
    result = anchored.evaluate(model, floats, **with_noise)

    def plain(batch: Array) -> Array:
        flat: Array = batch.reshape(len(batch), -1) @ Linear(images.classes).weights
        return flat

    assert values(result) == values(anchored.evaluate(plain, (images.images, images.labels), **with_noise))
    assert {row["architecture"] for row in result.rows} == {"linear"}
    raw = anchored.evaluate(Linear(images.classes, scale=1 / 255), Photos(images), **with_noise)
    assert values(raw) == pytest.approx(values(result), abs=1e-3)  # uint8, as the data set gives it


def test_probabilities_become_their_logarithm_and_have_no_energy(images: ImageSet) -> None:
    data, sure = Photos(images, floats=True), Linear(images.classes, softmax=True)
    noise = {"noise": images.images.flip(0) // 2}
    wanted = {**QUICK, "ood": noise}
    with pytest.raises(anchored.UserError, match="hold no energy"):
        anchored.evaluate(sure, data, **wanted)
    found = anchored.evaluate(sure, data, **wanted, score="max_softmax")
    expected = anchored.evaluate(Linear(images.classes), data, **wanted, score="max_softmax")
    for metric, where in (("accuracy", ""), ("smooth_ece", ""), ("auroc", "noise")):
        score = {"score": "max_softmax"} if where else {}
        assert found.value(metric, where, **score) == pytest.approx(expected.value(metric, where, **score), abs=1e-5)
    adapted = GivenMaiteModel(sure)
    adapted(np.zeros((2, 1, 28, 28), np.float32))
    assert adapted.metadata["outputs"] == "logarithm of probabilities"
    sure.softmax = False
    with pytest.raises(anchored.UserError, match="for some images and not for others"):
        adapted(np.ones((2, 1, 28, 28), np.float32))


def test_classes_and_targets_of_maite(images: ImageSet) -> None:
    data = Photos(images, floats=True)
    straight = anchored.evaluate(Linear(images.classes), data, **QUICK).value("accuracy")
    order = [6, 5, 4, 3, 2, 1, 0]
    turned = ImageSet("turned", images.images, 6 - images.labels, tuple(images.classes[place] for place in order))
    assert anchored.evaluate(Linear(images.classes), Photos(turned, floats=True), **QUICK).value("accuracy") == straight

    class Both(Photos):
        def __getitem__(self, ind: int, /) -> tuple[Array, Array, DatumMetadata]:
            return data[ind][0], np.ones(7), {"id": ind}

    with pytest.raises(anchored.UserError, match="one class, one-hot, is needed"):
        anchored.evaluate(Linear(images.classes), Both(images), **QUICK)


def test_images_of_several_sizes_are_brought_to_one(images: ImageSet) -> None:
    class Sizes(Photos):
        def __getitem__(self, ind: int, /) -> tuple[Array, Array, DatumMetadata]:
            image, target, about = super().__getitem__(ind)
            return np.repeat(np.repeat(image, 1 + ind % 2, axis=1), 2, axis=2), target, about

    few = images.take(torch.arange(30))
    model = Linear(images.classes, scale=1 / 255)
    with pytest.raises(anchored.UserError, match="several sizes"):
        anchored.evaluate(model, Sizes(few), **QUICK)

    def wide(batch: Array) -> Array:
        assert batch.shape[1:] == (3, 28, 28)
        flat: Array = batch[:, :1].reshape(len(batch), -1) @ model.weights
        return flat

    assert anchored.evaluate(wide, Sizes(few), size=28, **QUICK).value("accuracy")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, images: ImageSet) -> Run:
    """An anchored network that was not trained."""
    config = ModelConfig("small", "ram", 0.25, 1, 28, (0.3,), (0.3,), images.classes, trained_on=TRAIN, references=0)
    made = Run(tmp_path_factory.mktemp("runs") / "ram")
    models.save_model(made, models.build_model(config, seed=1), config)
    return made


def test_our_parts_pass_maites_spot_check(run: Run, images: ImageSet) -> None:
    model: ic.Model = MaiteModel(run.path)  # the type checker holds them against the protocols too
    dataset: ic.FieldwiseDataset = MaiteDataset(images_of(images))
    metric: ic.Metric = MaiteSmoothECE(replicates=100)
    corruption: ic.Augmentation = MaiteCorruption("fog", 3)
    parts: list[tuple[Any, Any]] = [
        (model, ic.Model), (dataset, ic.FieldwiseDataset), (metric, ic.Metric), (corruption, ic.Augmentation)
    ]  # fmt: skip
    generics = (generic.Model, generic.Dataset, generic.Metric, generic.Augmentation)
    assert all(isinstance(part, protocol) for (part, _), protocol in zip(parts, generics, strict=True))
    checked: list[Any] = [spotcheck_component(protocol)(part) for part, protocol in parts]
    found, predictions, _ = evaluate_in_maite(
        model=checked[0], dataset=checked[1], metric=checked[2], augmentation=checked[3], batch_size=50,
        return_preds=True,
    )  # fmt: skip
    plain: Any = anchored.load(run.path)
    from anchored.corruptions.registry import corrupt

    changed = corrupt(images.images, "fog", 3, seed=0)
    with torch.no_grad():
        logits = plain(plain.preprocess(changed))
    columns = per_image(logits, images.labels)
    assert found["smooth_ece"] == pytest.approx(smooth_ece(columns.confidence, columns.correct), abs=1e-6)
    assert found["smooth_ece_low"] <= found["smooth_ece"] <= found["smooth_ece_high"]
    probabilities = torch.from_numpy(np.concatenate([np.stack(batch) for batch in predictions]))
    torch.testing.assert_close(probabilities, logits.softmax(1), rtol=1e-4, atol=1e-5)


def images_of(images: ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
    return images.images, images.labels


def test_our_model_in_maite_is_measured_as_itself(run: Run) -> None:
    """There and back: the same figures as the module's own."""
    data = MaiteDataset(TRAIN)
    assert data.metadata["index2label"][0] == datasets.load_split(TRAIN, "test").classes[0]
    there = anchored.evaluate(MaiteModel(run.path, outputs="logits"), data, **QUICK)
    assert values(there) == pytest.approx(values(anchored.evaluate(anchored.load(run.path), TRAIN, **QUICK)), abs=1e-6)


def test_what_maite_parts_refuse(run: Run, images: ImageSet) -> None:
    model, data = MaiteModel(run.path), MaiteDataset(images_of(images))
    assert np.array_equal(data[-1][0], data[len(data) - 1][0])
    with pytest.raises(IndexError):
        data[len(data)]
    levels = images.images[0].numpy()
    one, other = (model([image])[0] for image in (levels, levels / np.float32(255)))
    assert np.array_equal(one, other)
    assert len(model([levels, np.zeros((3, 40, 30), np.uint8)])) == 2
    with pytest.raises(anchored.UserError, match="not normalised"):
        model([levels / np.float32(255) - 1])
    with pytest.raises(anchored.UserError, match="has no preprocess"):
        MaiteModel(torch.nn.Flatten())
    with pytest.raises(anchored.UserError, match="unknown"):
        MaiteCorruption("rain")
    with pytest.raises(anchored.UserError, match="no arrays of one length"):
        MaiteSmoothECE().update([np.zeros(3), np.zeros(2)], [np.eye(3)[0]] * 2, [{"id": 0}, {"id": 1}])


def test_a_corruption_depends_on_the_image_alone(images: ImageSet) -> None:
    noise = MaiteCorruption("gaussian_noise", 3)
    given: list[Array] = [image.numpy() for image in images.images[:6]]
    about: list[DatumMetadata] = [{"id": f"photo {place}"} for place in range(6)]
    targets: list[Array] = [np.eye(7)[0]] * 6
    together, kept, said = noise((given, targets, about))
    alone, _, _ = noise((given[4:5], targets[:1], about[4:5]))
    assert np.array_equal(together[4], alone[0])
    assert not np.array_equal(together[4], given[4])
    assert kept is targets
    assert dict(said[4]) == {"id": "photo 4", "corruption": "gaussian_noise", "severity": 3}
    floats, _, _ = noise(([image / np.float32(255) for image in given], targets, about))
    assert floats[0].dtype == np.float32
    assert np.array_equal((floats[0] * 255).round().astype(np.uint8), together[0])


def test_maite_finds_the_parts_by_entry_points() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    for protocol, part in (
        ("Model", MaiteModel), ("Dataset", MaiteDataset), ("Metric", MaiteSmoothECE), ("Augmentation", MaiteCorruption)
    ):  # fmt: skip
        group = f"maite.protocols.image_classification.{protocol}"
        line = text.partition(f'[project.entry-points."{group}"]\n')[2].partition("\n")[0]
        name, _, value = line.partition(" = ")
        assert EntryPoint(name, value.strip('"'), group).load() is part

"""Detectors of any classifier, from Python: by name, of a caller's own, and from outputs without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.catalog_copies import write
from pytorch_ood import detector as library
from torch import Tensor, nn

import anchored
from anchored.config.settings import Data
from anchored.data import datasets
from anchored.data.image_sets import ImageSet
from anchored.errors import UserError
from anchored.report.result import Result
from anchored.store import files

QUICK: dict[str, Any] = {"corruptions": (), "bootstrap": 100, "progress": False}


class Plain(nn.Module):
    """A linear classifier of grey 28 × 28 images by twelve features."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.body, self.head = nn.Linear(784, 12), nn.Linear(12, 7)
        for layer in (self.body, self.head):
            nn.init.normal_(layer.weight, std=0.1, generator=draw)
            nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B,1,28,28) to logits (B,7)."""
        logits: Tensor = self.head(self.body(images.flatten(1)).relu())
        return logits


def some(split: str, count: int) -> ImageSet:
    images = datasets.load_split("fashion-mini-known", split)
    return images.take(torch.linspace(0, len(images) - 1, count).long())


@pytest.fixture(scope="module")
def test_images() -> tuple[Tensor, Tensor]:
    images = some("test", 150)
    return images.images, images.labels


@pytest.fixture(scope="module")
def training() -> tuple[Tensor, Tensor]:
    images = some("train", 300)
    return images.images, images.labels


NOISE = {"noise": torch.randint(256, (60, 1, 28, 28), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)}


def scores(result: Result) -> set[str]:
    return {str(row["score"]) for row in result.rows if row["metric"] == "auroc"}


def value(result: Result, score: str) -> float:
    (found,) = (
        row["value"]
        for row in result.rows
        if (row["metric"], row["dataset"], row["score"]) == ("auroc", "noise", score)
    )
    return float(found)


def test_names_and_a_callers_own_are_measured_alike(
    tmp_path: Path, test_images: tuple[Tensor, Tensor], training: tuple[Tensor, Tensor]
) -> None:
    named = anchored.evaluate(
        Plain(), test_images, ood=NOISE, train=training, detectors=["knn:k=3", "odin"], folder=tmp_path, **QUICK
    )
    assert scores(named) >= {"energy", "knn:k=3", "odin"}
    own = {
        "mine": library.KNN(None, k=3),
        "nothing": lambda logits: -logits.amax(1),
        "mean": lambda images: images.mean(dim=(1, 2, 3)),
    }
    given = anchored.evaluate(Plain(), test_images, ood=NOISE, train=training, detectors=own, **QUICK)
    assert value(given, "mine") == value(named, "knn:k=3")
    assert value(given, "nothing") == value(given, "max_logit")
    assert 0 <= value(given, "mean") <= 100
    text = given.to_html(tmp_path / "report.html").read_text()
    assert "Detector × training" in text
    assert "Mine" in text


def test_a_sets_own_training_images_are_taken_where_the_catalog_has_them(tmp_path: Path) -> None:
    made: dict[str, Any] = {"detectors": ["mahalanobis"], "folder": tmp_path, **QUICK}
    result = anchored.evaluate(Plain(), "fashion-mini-known", ood=NOISE, **made)
    assert "mahalanobis" in scores(result)
    kept = files.load_tensors(tmp_path / "runs/given/outputs/train.safetensors")[0]
    assert len(kept["labels"]) == 7_000


def test_without_training_images_only_those_that_learn_nothing(test_images: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UserError, match=r"fitted on training images: give labelled ones \(train=\)"):
        anchored.evaluate(Plain(), test_images, ood=NOISE, detectors=["vim"], **QUICK)
    assert "gen" in scores(anchored.evaluate(Plain(), test_images, ood=NOISE, detectors=["gen"], **QUICK))
    with pytest.raises(UserError, match="detectors is 'vim': give a list"):
        anchored.evaluate(Plain(), test_images, ood=NOISE, detectors="vim", **QUICK)


@torch.no_grad()
def test_outputs_without_a_model(test_images: tuple[Tensor, Tensor], training: tuple[Tensor, Tensor]) -> None:
    model = Plain().eval()

    def kept(images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        features = model.body((images / 255).flatten(1)).relu()
        labelled = {} if labels is None else {"labels": labels}
        return {"logits": model.head(features), "features": features, **labelled}

    sets = {"test": kept(*test_images), "train": kept(*training), "ood-noise": kept(NOISE["noise"], None)}
    result = anchored.evaluate(outputs=sets, detectors=["knn:k=3"], **QUICK)
    expected = anchored.evaluate(model, test_images, ood=NOISE, train=training, detectors=["knn:k=3"], **QUICK)
    assert value(result, "knn:k=3") == value(expected, "knn:k=3")
    with pytest.raises(UserError, match="'vim' cannot be made for this network: outputs were given, and no model"):
        anchored.evaluate(outputs=sets, detectors=["vim"], **QUICK)
    del sets["train"]
    with pytest.raises(UserError, match="outputs of 'train' are missing"):
        anchored.evaluate(outputs=sets, detectors=["knn:k=3"], **QUICK)


def test_own_images_that_are_all_measured_leave_none_to_learn_from(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for number in range(4):
            write(tmp_path / "photos" / name / f"{number}.jpg")
    with pytest.raises(UserError, match=r"detectors are fitted on training images, and all of .* are measured"):
        datasets.refuse_undivided(f"{tmp_path}/photos/", Data())

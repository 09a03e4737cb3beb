"""Images of the same classes from elsewhere: by hand, and what does not fit."""

from pathlib import Path

import pytest
import torch

from anchored.config.recipe import Recipe
from anchored.config.settings import Data, Evaluation, Grid
from anchored.data import datasets
from anchored.data.preprocessing import InputFormat
from anchored.errors import UserError
from anchored.evaluation import holdout, suites
from anchored.evaluation.evaluator import EvaluationSet, Evaluator, Subject
from anchored.evaluation.inference import Outputs
from anchored.evaluation.sets import GivenSets, NamedSets
from anchored.store.layout import Run

LOGITS = torch.tensor([[9.0, 3.0, 1.0], [0.0, 1.0, 2.0], [5.0, 2.0, 0.0], [4.0, 0.0, 1.0]])
LABELS = {"all": torch.tensor([0, 2, 1, 1]), "some": torch.tensor([1, 2, 1, 2])}


class Told(Evaluator):
    """Outputs as they are said to be."""

    def outputs(self, images: EvaluationSet) -> Outputs:
        assert images.split == "all"
        return Outputs(LOGITS, LABELS[images.name])


def evaluator(tmp_path: Path) -> Told:
    subject = Subject("digits", "ResNet-8", "standard", "hash", lambda: pytest.fail("nothing is passed"))
    sets = GivenSets(Data("digits"), InputFormat(1, 28), hashes={"all": "a", "some": "b"})
    return Told(Run(tmp_path), subject, sets, Evaluation(shifted=("all", "some"), bootstrap=100))


def test_of_a_set_with_some_classes_these_alone_can_be_predicted(tmp_path: Path) -> None:
    """All classes: images 1 and 2 are right. Classes 1 and 2: 1 of (3, 1), 2 of (1, 2), 1 of (2, 0), 2 of (0, 1)."""
    rows = list(suites.shifted(evaluator(tmp_path)))
    found = {(row.metric, row.dataset): row.value for row in rows}
    assert found["shifted_accuracy", "all"] == 50
    assert found["shifted_accuracy", "some"] == 100
    assert found["shifted_accuracy", "mean"] == 75
    assert {row.metric for row in rows} == {"shifted_accuracy", "shifted_ece", "shifted_ece_old"}
    assert {(row.dataset, row.n) for row in rows} == {("all", 4), ("some", 4), ("mean", 8)}


def test_every_split_of_the_measured_set_counts_through_the_network_s_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean images, those that detectors learn from, archives of corrupted ones."""
    data = Data("fashion-mini-known", fraction=0.01)
    view = datasets.input_format(data)
    classes = datasets.dataset_row(data.train, data).classes
    named, turned = NamedSets(data, view), NamedSets(data, view, logits=classes[::-1])
    monkeypatch.setattr(datasets, "open_corrupted", lambda *_, **__: named.open(data.train, "test"))
    for split in ("train", "test"):
        assert torch.equal(turned.open(data.train, split).labels, 6 - named.open(data.train, split).labels)
    archive = turned.open_corrupted("fashion-c", "fog", 1)
    assert torch.equal(archive.labels, turned.open(data.train, "test").labels)


def test_it_is_no_part_of_what_a_knob_is_chosen_on() -> None:
    recipe = Recipe(data=Data("fashion-mini-known", validation=0.2), evaluate=Evaluation(shifted=("imagenet-r",)))
    assert holdout.settings_of(recipe).shifted == ()


def test_a_set_of_other_classes_is_refused_before_anything_is_trained() -> None:
    recipe = Recipe(
        data=Data("fashion-mini-known"), grid=Grid(networks=("small",)), evaluate=Evaluation(shifted=("textures",))
    )
    with pytest.raises(UserError, match="textures"):
        suites.check_recipe(recipe)

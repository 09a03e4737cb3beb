"""References of a cell: by each choice, own images, and training sets of references."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from anchored.config.recipe import Cell, Recipe, canonical, derived_seed
from anchored.config.settings import Anchoring, Data, Grid, Tail, Training
from anchored.data import datasets
from anchored.data.preprocessing import to_input
from anchored.errors import UserError
from anchored.evaluation.suites import check_recipe
from anchored.models import folder
from anchored.models.initialisation import model_config
from anchored.store.files import load_tensors
from anchored.store.layout import Run, study_difference
from anchored.training.fit import train
from anchored.training.preconditions import check_trainings, claim_run
from anchored.training.reference_images import references, training_references

DATA = Data("fashion-mini-known", 0.02)


def cell(**anchoring: Any) -> Cell:
    tiny = Training(epochs=1, batch_size=32, learning_rate=0.05, schedule="one_cycle", accelerator="cpu")
    return Cell("small", "ram", 0.5, 0.0, 0, DATA, Anchoring(**anchoring), Tail(), tiny)


def chosen(count: int, **anchoring: Any) -> torch.Tensor:
    made = cell(references=count, **anchoring)
    images = datasets.open_set(DATA.train, "train", DATA, datasets.input_format(DATA))
    return references(images, made, model_config(made))


def test_random_references_are_those_of_before_the_choice() -> None:
    images = datasets.open_set(DATA.train, "train", DATA, datasets.input_format(DATA))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(derived_seed(0, "references")))
    config = model_config(cell())
    assert torch.equal(chosen(3), to_input(images.images[order[:3]], config.mean, config.std))  # type: ignore[union-attr]
    assert cell() == replace(cell(), anchoring=Anchoring(reference_choice="random", training_references="batch"))


@pytest.mark.parametrize("choice", ["class_balanced", "herding", "k_centre"])
def test_choices_are_training_images_each_once_and_more_begin_with_the_same(choice: Any) -> None:
    few, many = chosen(3, reference_choice=choice), chosen(7, reference_choice=choice)
    assert torch.equal(few, many[:3])
    images = datasets.open_set(DATA.train, "train", DATA, datasets.input_format(DATA))
    config = model_config(cell())
    inputs = to_input(images.images, config.mean, config.std)  # type: ignore[union-attr]
    places = [int((inputs == each).flatten(1).all(dim=1).nonzero()[0]) for each in many]
    assert len(set(places)) == 7
    if choice == "class_balanced":
        assert images.labels[places].unique().numel() == 7  # type: ignore[no-untyped-call]


def own_images(path: Path, count: int) -> str:
    for i in range(count):
        (path / "mine").mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), 20 * i).save(path / "mine" / f"{i}.png")
    return str(path)


def test_own_images_all_of_them(tmp_path: Path) -> None:
    name = own_images(tmp_path / "own", 4)
    made = cell(references=4, reference_choice="own", reference_images=name)
    shown = chosen(4, reference_choice="own", reference_images=name)
    config = model_config(made)
    levels = ((shown * config.std[0] + config.mean[0]) * 255).mean(dim=(1, 2, 3)).round()
    assert levels.tolist() == [0, 20, 40, 60]
    recipe = Recipe(data=DATA, grid=Grid(networks=("small",)), anchoring=replace(made.anchoring, references=5))
    with pytest.raises(UserError, match=r"anchoring\.references is 5, but .* has 4 images"):
        check_trainings(check_recipe(recipe))


def test_own_images_that_are_the_training_set_are_those_that_are_trained_on() -> None:
    """Not those that are held out, nor those that ``data.fraction`` leaves out."""
    data = replace(DATA, validation=0.5)
    made = replace(cell(references=9, reference_choice="own", reference_images=data.train), data=data)
    images = datasets.open_set(data.train, "train", data, datasets.input_format(data))
    config = model_config(made)
    found = references(images, made, config)
    assert torch.equal(found, to_input(images.images[:9], config.mean, config.std))  # type: ignore[union-attr]


def test_own_images_to_train_with_bind_the_trainings_that_use_them(tmp_path: Path) -> None:
    refs, outliers = own_images(tmp_path / "refs", 4), own_images(tmp_path / "outliers", 4)
    grid = Grid(networks=("small",), protocols=("standard", "anchored"))
    anchoring = Anchoring(references=4, reference_choice="own", reference_images=refs)
    recipe = Recipe(data=DATA, grid=grid, anchoring=anchoring, train=Training(outliers=outliers, batch_size=8))
    plain, anchored_cell = check_recipe(recipe).cells()
    bound = {name: datasets.content_hash(name, DATA) for name in (refs, outliers)}
    assert dict(plain.data.contents) == {outliers: bound[outliers]}
    assert dict(anchored_cell.data.contents) == bound
    check_trainings(check_recipe(recipe))
    run = Run(tmp_path / "run")
    assert not claim_run(run, anchored_cell)
    Image.new("L", (28, 28), 255).save(Path(refs) / "mine" / "0.png")
    changed_plain, changed = check_recipe(recipe).cells()
    begun, now = (json.loads(canonical(each)) for each in (check_recipe(recipe), recipe))
    assert study_difference(begun, now) == ""  # other trainings may join the study
    assert changed_plain == plain
    with pytest.raises(UserError, match=r"holds another training \(data\.contents"):
        claim_run(run, changed)
    with pytest.raises(UserError, match="are not those that this training began with"):
        references(datasets.open_set(DATA.train, "train", DATA, datasets.input_format(DATA)), anchored_cell,
                   model_config(anchored_cell))  # fmt: skip


def test_own_images_that_are_not_there_or_not_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"anchoring\.reference_images: "):
        chosen(1, reference_choice="own", reference_images=str(tmp_path / "nothing"))
    for given in ({"reference_choice": "own"}, {"reference_images": "photos/"}):
        with pytest.raises(UserError, match="give both or neither"):
            Recipe.parse({"anchoring": given})


def test_training_references_from_images_and_classes() -> None:
    images = datasets.open_set(DATA.train, "train", DATA, datasets.input_format(DATA))

    def drawn(**anchoring: Any) -> torch.Tensor | None:
        made = cell(**anchoring)
        return training_references(images, made, model_config(made))

    assert drawn() is None
    every, some = drawn(training_references="all"), drawn(training_references="images", training_reference_count=5)
    of_class = drawn(training_references="classes", training_reference_count=2)
    assert every is not None and some is not None and of_class is not None  # noqa: PT018
    assert (len(every), len(some)) == (len(images), 5)
    places = [int((every == each).flatten(1).all(dim=1).nonzero()[0]) for each in of_class]
    labels = set(images.labels[places].tolist())
    assert len(labels) == 2
    assert len(of_class) == sum(int((images.labels == label).sum()) for label in labels)
    with pytest.raises(UserError, match="there are 7 classes"):
        drawn(training_references="classes", training_reference_count=8)


def test_a_run_trains_with_them_and_keeps_its_own(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"mask_unit": "process", "mask_group": 8, "reference_choice": "class_balanced"}
    settings |= {"training_references": "classes"}
    runs = [Run(tmp_path / name) for name in ("one", "again", "plain")]
    train(runs[0], cell(**settings))
    train(runs[1], cell(**settings))
    train(runs[2], cell())
    one, again, plain = (load_tensors(run.weights_file)[0] for run in runs)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert one.keys() == plain.keys()  # training references are not kept
    assert not torch.equal(one["network.head.weight"], plain["network.head.weight"])
    config = folder.read_config(runs[0])
    assert (config.mask_unit, config.mask_group, config.reference_choice) == ("process", 8, "class_balanced")


def test_residuals_of_own_pairs_need_references_of_the_batch() -> None:
    recipe = Recipe(
        grid=Grid(tail_weights=(0.1,)), tail=Tail(pairs="anchored"), anchoring=Anchoring(training_references="all")
    )
    with pytest.raises(UserError, match=r"tail\.pairs is anchored"):
        recipe.check()


def test_a_trial_shrinks_the_set_of_references() -> None:
    recipe = Recipe(anchoring=Anchoring(training_references="images", training_reference_count=100))
    assert recipe.scaled(0.1).anchoring.training_reference_count == 10

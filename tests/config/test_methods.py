"""Methods of a grid: names for settings of ``train``, crossed with protocols, under one budget of steps."""

import dataclasses
from collections import Counter
from typing import Any

import pytest

from anchored.config.methods import METHODS, method_title
from anchored.config.recipe import Cell, Recipe
from anchored.config.recipe_file import read_recipe
from anchored.errors import UserError


def recipe(**grid: Any) -> Recipe:
    return Recipe.parse({"grid": {"networks": ["small"], **grid}}).check()


def test_every_row_is_settings_of_train_that_go_together() -> None:
    trained = [name for name, row in METHODS.items() if not row.of]
    cells = list(recipe(methods=trained, tail_weights=[0.0, 0.1]).cells())
    assert len({cell.name for cell in cells}) == len(cells) == 4 * len(trained)
    for cell in cells:
        wanted = METHODS[cell.method or "plain"].train
        assert {name: getattr(cell.train, name) for name in wanted} == wanted
        assert cell.train.epochs == Recipe().train.epochs


def test_plain_is_the_recipe_as_it_is() -> None:
    """Its trainings are those of a recipe without methods: one folder can hold both studies."""
    without = [cell.digest() for cell in recipe().cells()]
    cells = list(recipe(methods=["augmix", "plain"]).cells())
    assert [cell.digest() for cell in cells if not cell.method] == without
    assert [cell.name for cell in cells][:4] == [
        "small-augmix-standard-seed0", "small-augmix-anchored-seed0", "small-augmix-ram-0.25-seed0",
        "small-standard-seed0",
    ]  # fmt: skip
    assert cells[2].label == "small · AugMix · RAM α=0.25 · seed 0"


def test_a_cell_from_before_methods_is_one_without() -> None:
    settings = dataclasses.asdict(next(recipe().cells()))
    del settings["method"], settings["train"]["sam"], settings["train"]["consistency"]
    assert Cell.parse(settings, "a file").method == ""


def test_own_methods_and_changes() -> None:
    own = {"both": {"mixup": 0.2, "label_smoothing": 0.1}, "sam": {"sam": 0.1}}
    found = {cell.method: cell.train for cell in recipe(methods=["both", "sam"], per_method=own).cells()}
    assert (found["both"].mixup, found["both"].label_smoothing, found["sam"].sam) == (0.2, 0.1, 0.1)
    assert (method_title("both"), method_title("sam")) == ("both", "SAM")


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"methods": ["augmx"]}, "grid.methods has augmx: there are plain, augmix"),
        ({"methods": ["sam", "sam"]}, "names 'sam' twice"),
        (
            {"methods": ["sam"], "per_method": {"sam": {"epochs": 3}}},
            "grid.per_method.sam sets epochs: all",
        ),
        ({"per_method": {"plain": {"sam": 0.1}}}, "grid.per_method has plain"),
        ({"methods": ["a"], "per_method": {"a": {"sum": 1}}}, "no setting grid.per_method.a.sum: did you mean"),
        ({"methods": ["a"], "per_method": {"a": {"sam": -1.0}}}, "give a number from 0 to 1e30"),
        (
            {"methods": ["augmix"], "per_method": {"augmix": {"mixup": 1.0}}},
            r"train.mixup mixes images, whose copies train.consistency compares: take one of them \(of small, augmix\)",
        ),
        ({"methods": ["a"], "per_method": {"a": {"repeats": 3}}}, "train.repeats is 3: give a divisor of the 128"),
        ({"methods": ["a"], "per_method": {"a": {"consistency": 1.0}}}, "take augmix, pixmix, or trivial_augment"),
        (
            {"methods": ["a"], "per_method": {"a": {"regmixup": 1.0, "cutmix": 1.0}}},
            "train.cutmix on mixtures",
        ),
        ({"methods": ["a"], "per_method": {"a": {"sam": 0.1, "precision": "16-mixed"}}}, "take bf16-mixed"),
        (
            {"methods": ["a"], "per_method": {"a": {"average": 0.9, "precision": "bf16-true"}}},
            "train.precision is bf16-true, and train.average is of weights in single precision: take a mixed one",
        ),
        ({"methods": ["a"], "per_method": {"a": {"policy": "auto_augment"}}}, "it goes with train.crop resized"),
    ],
)
def test_what_does_not_go_together_is_one_line(grid: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        list(recipe(**grid).cells())
    assert "\n" not in str(raised.value)


def test_a_trial_keeps_repeats_whole() -> None:
    made = recipe(methods=["repeated_augmentation"], protocols=["standard"]).scaled(0.01, images=7000, size=28)
    (cell,) = made.check().cells()
    assert cell.train.batch_size == 68  # of 70 images


@pytest.mark.parametrize("name", ["compare-demo", "compare-cifar10", "compare-cifar100"])
def test_comparisons_are_of_every_method_and_protocol_with_the_same_seeds_and_steps(name: str) -> None:
    made = Recipe.parse(read_recipe(name)).check()
    assert made.grid.methods == tuple(METHODS)
    cells = list(made.cells())
    ways = {(cell.network, cell.method, cell.protocol, cell.tail_weight) for cell in cells}
    assert len(ways) == 4 * sum(not row.of for row in METHODS.values())
    assert len(cells) == 5 * len(ways)
    assert len({(cell.train.epochs, cell.train.batch_size) for cell in cells}) == 1
    after = Counter(cell.method for cell in made.after_cells())
    assert after == {"temperature": 20, "ensemble": 4, "mc_dropout": 20}


# --- After training


def after(methods: list[str], **grid: Any) -> Recipe:
    settings = {"data": {"validation": 0.1}, "grid": {"networks": ["small"], "methods": methods, **grid}}
    return Recipe.parse(settings).check()


def test_what_is_done_after_training_brings_the_trainings_that_it_uses() -> None:
    made = after(["temperature", "ensemble:augmix", "mc_dropout"], protocols=["standard"], seeds=[3, 4])
    assert made.trained_methods == ("plain", "augmix", "dropout")
    assert [cell.name for cell in made.jobs()] == [
        *("small-standard-seed3", "small-augmix-standard-seed3", "small-dropout-standard-seed3"),
        *("small-standard-seed4", "small-augmix-standard-seed4", "small-dropout-standard-seed4"),
        *("small-temperature-standard-seed3", "small-temperature-standard-seed4"),
        "small-ensemble-augmix-standard-seed3-to-4",
        *("small-mc_dropout-standard-seed3", "small-mc_dropout-standard-seed4"),
    ]
    titles = [method_title(name) for name in ("temperature", "ensemble:augmix", "mc_dropout:plain")]
    assert titles == ["Temperature scaling", "Deep ensemble of AugMix", "MC dropout of plain"]


@pytest.mark.parametrize(
    ("seeds", "members", "ensembles"),
    [(2, 5, [(0, 1)]), (5, 5, [(0, 4)]), (7, 3, [(0, 2), (3, 5)]), (10, 5, [(0, 4), (5, 9)])],
)
def test_no_seed_is_in_two_ensembles(seeds: int, members: int, ensembles: list[tuple[int, int]]) -> None:
    made = after(["ensemble"], protocols=["standard"], seeds=list(range(seeds)), members=members)
    found = [cell.members for cell in made.after_cells()]
    assert [(cells[0].seed, cells[-1].seed) for cells in found] == ensembles
    assert all(len(cells) == cells[-1].seed - cells[0].seed + 1 for cells in found)


@pytest.mark.parametrize(
    ("methods", "settings", "said"),
    [
        (["ensemble"], {}, "which is of several seeds: give grid.seeds two or more"),
        (["temperature:sum"], {}, "grid.methods has temperature:sum: there are plain"),
        (["ensemble:temperature"], {"seeds": [0, 1]}, "grid.methods has ensemble:temperature"),
        (["augmix:sam"], {}, "grid.methods has augmix:sam"),
        (["ensemble"], {"seeds": [0, 1], "per_method": {"ensemble": {"sam": 0.1}}}, "ensemble, which trains nothing"),
    ],
)
def test_what_cannot_be_done_after_training_is_one_line(methods: list[str], settings: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        after(methods, **settings)


def test_temperature_scaling_needs_held_out_images_and_detectors_single_networks() -> None:
    with pytest.raises(UserError, match="temperature, fitted on held-out images: give"):
        recipe(methods=["temperature"])
    settings = {"evaluate": {"detectors": ["vim"], "ood": ["digits"]}, "data": {"validation": 0.1}}
    with pytest.raises(UserError, match=r"detectors are of single networks, which temperature of grid.methods is not"):
        Recipe.parse({**settings, "grid": {"networks": ["small"], "methods": ["temperature"]}}).check()

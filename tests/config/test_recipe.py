"""Recipes: merging, the grid, overrides, and refusals in one line."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from anchored.config import recipe as recipes
from anchored.config import settings
from anchored.config.recipe import Recipe
from anchored.config.recipe_file import Loader, read_recipe
from anchored.config.settings import Data, Grid, Training
from anchored.errors import UserError


def test_grid_expands_alphas_for_ram_only_and_seed_by_seed() -> None:
    grid = Grid(networks=("small",), alphas=(0.1, 0.25), seeds=(3, 4))
    names = [cell.name for cell in Recipe(grid=grid).cells()]
    assert names[:4] == ["small-standard-seed3", "small-anchored-seed3", "small-ram-0.1-seed3", "small-ram-0.25-seed3"]
    assert [name[-5:] for name in names] == ["seed3"] * 4 + ["seed4"] * 4


def test_grid_expands_tail_weights_and_their_settings_bind_only_them() -> None:
    grid = Grid(networks=("small",), protocols=("anchored", "ram"), tail_weights=(0.0, 0.1))
    cells = list(Recipe(grid=grid, tail=settings.Tail(points=8)).cells())
    assert [cell.name for cell in cells] == [
        "small-anchored-seed0",
        "small-ram-0.25-seed0",
        "small-ram-0.25-tail0.1-seed0",
    ]
    assert [cell.tail.points for cell in cells] == [32, 32, 8]
    assert [cell.tail_weight for cell in cells] == [0.0, 0.0, 0.1]
    assert Recipe(grid=grid).scaled(0.001).train.epochs == 2


def test_digest_follows_what_decides_the_weights() -> None:
    cell = next(Recipe().cells())
    assert cell.digest() == next(Recipe().cells()).digest()
    for change in (
        replace(cell, seed=1),
        replace(cell, train=Training(epochs=3)),
        replace(cell, data=Data(fraction=0.5)),
    ):
        assert change.digest() != cell.digest()


def test_settings_that_came_later_leave_earlier_results_bound_to_the_same_text() -> None:
    cell = next(Recipe().cells())
    assert '"anchoring": {"batch_norm"' in recipes.canonical(cell)  # not at, which would be first
    hidden = replace(cell, anchoring=settings.Anchoring(at="layer3"))
    assert hidden.digest() != cell.digest()
    assert recipes.Cell.parse(json.loads(recipes.canonical(hidden)), "a file") == hidden


def test_scale_shrinks_images_and_epochs() -> None:
    scaled = Recipe(data=Data(fraction=0.5), train=Training(epochs=12)).scaled(0.02)
    assert scaled.data.fraction == pytest.approx(0.01)
    assert scaled.train.epochs == 1
    with pytest.raises(UserError, match="--scale is 0"):
        Recipe().scaled(0)


def test_shipped_recipes_build_on_each_other() -> None:
    demo, seeds = read_recipe("demo"), read_recipe("demo-seeds")
    assert seeds["grid"]["seeds"] == [10, 11, 12, 13, 14]
    assert seeds["grid"] == {**demo["grid"], "seeds": seeds["grid"]["seeds"]}
    assert seeds["train"] == demo["train"]
    assert seeds["name"] == "demo-seeds"


def test_own_file_with_a_base(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("base: demo\ntrain: {epochs: 3}\n")
    settings = read_recipe(str(path))
    assert settings["train"]["epochs"] == 3
    assert settings["train"]["batch_size"] == 128
    assert settings["name"] == "own"


def test_a_base_is_beside_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    Path("mine.yaml").write_text("base: demo\ntrain: {epochs: 77}\n")
    Path("sub/mine.yaml").write_text("base: demo\ntrain: {epochs: 5}\n")
    Path("sub/own.yaml").write_text("base: mine.yaml\n")
    assert read_recipe("sub/own.yaml")["train"]["epochs"] == 5
    Path("sub/mine.yaml").write_text("base: ../sub/own.yaml\n")
    with pytest.raises(UserError, match="is its own base"):
        read_recipe("sub/own.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: [", "line 1: not valid YAML"),
        ("- a\n- b\n", "expected sections"),
        ("base: own.yaml\n", "is its own base"),
        ('base: "a\\0b.yaml"\n', "no path has a null character"),
        ("base: nothing-like-it\n", "no recipe 'nothing-like-it': there are cifar10, cifar100, compare-cifar10"),
        ("\xff", "not UTF-8"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=said) as raised:
        read_recipe("own.yaml")
    assert "\n" not in str(raised.value)


def test_missing_file() -> None:
    with pytest.raises(UserError, match=r"recipe file none.yaml: No such file"):
        read_recipe("none.yaml")


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("data", "fraction", 0.0, "data.fraction is 0.0: give a share in (0, 1]"),
        ("data", "fraction", 1.5, "data.fraction is 1.5: give a share in (0, 1]"),
        ("data", "channels", 2, "data.channels is 2: give 1, 3, or 0"),
        ("data", "channels", True, "data.channels is True"),
        ("data", "workers", 10**400, "data.workers is about 1e400: give processes up to 1024"),
        ("data", "mean", (0.5,), "data.mean and data.std: give as many"),
        ("grid", "alphas", (1.0,), "grid.alphas has 1.0: a mask probability is above 0 and below 1"),
        ("grid", "alphas", (math.nan,), "grid.alphas has nan"),
        ("grid", "alphas", (0.1, 0.1), "grid.alphas names 0.1 twice"),
        ("grid", "alphas", (), "grid.alphas is empty: the ram protocol needs"),
        ("grid", "seeds", (1, 1), "grid.seeds names 1 twice"),
        ("grid", "seeds", (True,), "grid.seeds has True"),
        ("grid", "seeds", (2**63,), "grid.seeds has about 1e19: a seed is a whole number"),
        ("grid", "networks", (), "grid.networks is empty"),
        ("grid", "tail_weights", (-0.1,), "grid.tail_weights has -0.1"),
        ("grid", "tail_weights", (10**400,), "grid.tail_weights has about 1e400"),
        ("tail", "mass", 0, "tail.mass is 0"),
        ("tail", "points", 0, "tail.points is 0: give at least 1"),
        ("tail", "warmup", 1, "tail.warmup is 1"),
        ("train", "epochs", 0, "train.epochs is 0: give at least 1"),
        ("train", "epochs", 10**400, "train.epochs is about 1e400: give at least 1, at most 1,000,000"),
        ("train", "batch_size", 1, "train.batch_size is 1: give at least 2, to have a reference"),
        ("train", "learning_rate", math.nan, "train.learning_rate is nan"),
        ("train", "learning_rate", math.inf, "train.learning_rate is inf"),
        ("train", "learning_rate", 1e300, "train.learning_rate is 1e+300: give a number from 0 to 1e30"),
        ("data", "crop", 0.05, "data.crop is 0.05: give a share in [0.1, 1], or 0 for the rule"),
        ("train", "devices", 3, "train.batch_size is 128, shared by 3 devices"),
        ("train", "policy", "rand_augment", "train.policy is rand_augment: it goes with train.crop resized"),
        ("evaluate", "severities", (6,), "evaluate.severities has 6: severities go from 1 to 5"),
        ("evaluate", "severities", (3, 3), "evaluate.severities names 3 twice"),
        ("evaluate", "bootstrap", 10**7, "evaluate.bootstrap is 10000000: give at least 100 replicates, at most"),
        ("cluster", "gpus", math.inf, "cluster.gpus is inf"),
    ],
)
def test_values_out_of_range_are_one_line(section: str, key: str, value: object, said: str) -> None:
    with pytest.raises(UserError, match=f"^recipe 'r': {re.escape(said)}") as raised:
        Recipe.parse({"name": "r", section: {key: value}})
    assert "\n" not in str(raised.value)


def test_a_form_of_momentum_needs_one() -> None:
    with pytest.raises(UserError, match=r"is a form of momentum, and train\.momentum is 0"):
        Training(nesterov=True, momentum=0.0)


def mixed(train: Training) -> Recipe:
    """Hard Δ mining with a mean for every class."""
    return Recipe(grid=Grid(tail_weights=(0.1,)), tail=settings.Tail(per_class=True), train=train)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (mixed(Training(mixup=0.2)), "tail.per_class is true, but train.mixup mixes images"),
        (mixed(Training(cutmix=1.0)), "tail.per_class is true, but train.cutmix mixes images"),
        (Recipe(tail=settings.Tail(points=1, batch_norm="own")), "tail.points is 1: give at least 2, 2 a device"),
        (Recipe(network=settings.Network(pretrained=True)), "anchoring.stem is fresh"),
        (
            Recipe(grid=settings.Grid(tail_weights=(0.1,)), train=settings.Training(precision="bf16-true")),
            "train.precision is bf16-true, too coarse for the moments of hard Δ mining",
        ),
        (
            Recipe(grid=Grid(tail_weights=(0.1,)), anchoring=settings.Anchoring(at="layer3")),
            "anchoring.at is layer3, but hard Δ mining",
        ),
    ],
)
def test_sections_that_do_not_go_together_are_one_line(recipe: Recipe, said: str) -> None:
    with pytest.raises(UserError, match=f"recipe 'study': .*{said}"):
        recipe.check()


@pytest.mark.parametrize(
    "grid",
    [
        {"alphas": [0.1234561, 0.1234562]},
        {"tail_weights": [0.1234561, 0.1234562]},
        {"networks": ["timm:a.b", "timm-a.b"]},
        {"given": {"a b": {"model": "timm:x"}, "a-b": {"model": "timm:y"}}, "networks": []},
    ],
)
def test_cells_that_would_share_a_folder_are_refused(grid: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="would share the folder"):
        Recipe.parse({"grid": grid}).check()


def test_objects_made_in_code_are_checked_too() -> None:
    with pytest.raises(ValueError, match="share in"):
        Data(fraction=1.5)
    with pytest.raises(ValueError, match="at least 1"):
        replace(Training(), epochs=0)


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", "", "C:x", "a\nb", "x" * 101])
def test_a_recipe_s_name_leads_nowhere_else(name: str) -> None:
    with pytest.raises(UserError, match="give a plain name"):
        Recipe.parse({"name": name})


def test_a_cell_of_the_version_before_is_the_same_training() -> None:
    cell = next(Recipe(grid=Grid(networks=("small",), protocols=("ram",)), train=Training(epochs=3)).cells())
    old: dict[str, Any] = {
        "network": "small", "protocol": "ram", "alpha": 0.25, "tail_weight": 0.0, "seed": 0,
        "data": {"train": "cifar10", "fraction": 1.0, "size": 0, "mean": [], "std": []}, "anchoring": {"references": 1},
        "tail": {"mass": 0.0001}, "train": {"epochs": 3, "rates": {}, "milestones": [0.3, 0.6, 0.8]},
        "start": {"width": 1.0},
    }  # fmt: skip
    assert recipes.Cell.parse(old, "cell.json") == cell
    with pytest.raises(UserError, match=r"^cell\.json does not describe a training .*: mask_probability is 1\.5"):
        recipes.Cell.parse({**old, "alpha": 1.5}, "cell.json")
    with pytest.raises(UserError, match=r"^cell\.json does not describe .*: network is missing"):
        recipes.Cell.parse({key: value for key, value in old.items() if key != "network"}, "cell.json")


def test_derived_seeds_differ_by_purpose_and_stay() -> None:
    seeds = {recipes.derived_seed(0, purpose, epoch) for purpose in ("masks", "order") for epoch in range(10)}
    assert len(seeds) == 20
    assert recipes.derived_seed(0, "weights") == 133441691874178746


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": 3}, "data must have settings of its own, found int"),
        ({"trian": {}}, "no setting trian"),
        ({"train": {"epoch": 3}}, r"no setting train\.epoch: did you mean train\.epochs\?$"),
        ({"train": {"epochs": "3"}}, r"train\.epochs is '3': give a whole number"),
        ({"train": {"epochs": True}}, r"train\.epochs is True: give a whole number"),
        ({"train": {"optimizer": "adam"}}, r"train\.optimizer is 'adam': give sgd or adamw"),
        ({"train": {"rates": {"stem": "0"}}}, r"train\.rates\.stem is '0': give a number"),
        ({"grid": {"seeds": [0, "1"]}}, r"grid\.seeds has '1': give a whole number"),
        (
            {"grid": {"per_network": {"small": {"train": {"epochs": 1.5}}}}},
            r"grid\.per_network\.small\.train\.epochs is 1\.5: give a whole number",
        ),
        ({"grid": {"per_network": ["small"]}}, r"grid\.per_network must have settings of its own, found list"),
    ],
)
def test_plain_settings_of_another_type_are_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Recipe.parse(given)


def test_plain_settings_come_back_equal() -> None:
    own: Any = {"epochs": 3, "milestones": (0.5,)}
    per_network = {"small": settings.PerNetwork((0.1,), own)}
    made = Recipe(data=Data(mean=(1,), std=(1,)), grid=Grid(per_network=per_network), train=Training(rates={"": 0.1}))
    assert Recipe.parse(json.loads(recipes.canonical(made))) == made
    cell = next(made.cells())
    assert recipes.Cell.parse(json.loads(recipes.canonical(cell)), "a file") == cell


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {epochs: 2001-99-99}", "not valid YAML"),
        ("1: 2", "1 is the name of a setting, but not text"),
        ("a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
            f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        ), "holds more than 100,000 values"),
        ("a: &a [*a]", "holds more than 100,000 values"),
        ("[" * 3000, "not valid YAML"),
        ("train: {epochs: 1}\ndata: {}\ntrain: {}\n", "line 3: not valid YAML .'train' is given twice"),
        ("train: {epochs: 1, epochs: 2}", "line 1: not valid YAML .'epochs' is given twice"),
    ],
)  # fmt: skip
def test_odd_yaml_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        read_recipe(str(tmp_path / "odd.yaml"))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("010", 10), ("-07", -7), ("1_000", 1000), ("0", 0), ("1:30", "1:30"), ("0x10", "0x10"), ("1e3", 1000.0),
        ("010.5", 10.5), (".5", 0.5), ("1.", 1.0), ("190:20:30.15", "190:20:30.15"), (".inf", math.inf),
        ("-1.5e-3", -0.0015),
        ("1.2.3", "1.2.3"), ("2026-12-01x", "2026-12-01x"), ("1__", 1), ("--", "--"), ("+3", 3),
    ],
)  # fmt: skip
def test_numbers_are_decimal(text: str, number: object) -> None:
    found = yaml.load(text, Loader)
    assert (found, type(found)) == (number, type(number))


def test_numbers_with_an_exponent_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "grid: {alphas: [1e-2, 1e-1, 2.5e-1]}\ntrain: {learning_rate: 1E-3, epochs: 3}\nnetwork: {sha256: 4e1ab0}\n"
    )
    recipe = Recipe.parse(read_recipe(str(tmp_path / "own.yaml")))
    assert recipe.grid.alphas == (0.01, 0.1, 0.25)
    assert recipe.train.learning_rate == 0.001
    assert recipe.network.sha256 == "4e1ab0"  # text that begins as such a number

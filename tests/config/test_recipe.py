"""Recipes: merging, the grid, overrides, and refusals in one line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anchored.config import recipe as recipes
from anchored.config import settings
from anchored.config.recipe import Recipe
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


def test_scale_shrinks_images_and_epochs() -> None:
    scaled = Recipe(data=Data(fraction=0.5), train=Training(epochs=12)).scaled(0.02)
    assert scaled.data.fraction == pytest.approx(0.01)
    assert scaled.train.epochs == 1
    with pytest.raises(UserError, match="--scale is 0"):
        Recipe().scaled(0)


def test_shipped_recipes_build_on_each_other() -> None:
    demo, seeds = recipes.read("demo"), recipes.read("demo-seeds")
    assert seeds["grid"]["seeds"] == [0, 1, 2, 3, 4]
    assert {**seeds["grid"], "seeds": [0]} == demo["grid"]
    assert seeds["train"] == demo["train"]
    assert seeds["name"] == "demo-seeds"


def test_own_file_with_a_base(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("base: demo\ntrain: {epochs: 3}\n")
    settings = recipes.read(str(path))
    assert settings["train"]["epochs"] == 3
    assert settings["train"]["batch_size"] == 128
    assert settings["name"] == "own"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: [", "line 1: not valid YAML"),
        ("- a\n- b\n", "expected sections"),
        ("base: own.yaml\n", "is its own base"),
        ("base: nothing-like-it\n", "no recipe 'nothing-like-it': there are cifar10, cifar100, demo"),
        ("\xff", "not UTF-8"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=said) as raised:
        recipes.read("own.yaml")
    assert "\n" not in str(raised.value)


def test_missing_file() -> None:
    with pytest.raises(UserError, match=r"recipe file none.yaml: No such file"):
        recipes.read("none.yaml")


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (Recipe(data=Data(fraction=0.0)), "data.fraction is 0"),
        (Recipe(grid=Grid(alphas=(1.0,))), "grid.alphas has 1"),
        (Recipe(grid=Grid(alphas=(float("nan"),))), "grid.alphas has nan"),
        (Recipe(grid=Grid(seeds=(1, 1))), "grid.seeds names one twice"),
        (Recipe(grid=Grid(networks=())), "grid.networks is empty"),
        (Recipe(grid=Grid(tail_weights=(-0.1,))), "grid.tail_weights has -0.1"),
        (Recipe(grid=Grid(tail_weights=(0.1,)), train=Training(epochs=1)), "needs a second epoch"),
        (Recipe(tail=settings.Tail(mass=0)), "tail.mass is 0"),
        (Recipe(tail=settings.Tail(points=0)), "tail.points is 0: at least 1, 1 a device"),
        (Recipe(tail=settings.Tail(points=1, batch_norm="own")), "tail.points is 1: at least 2, 2 a device"),
        (Recipe(tail=settings.Tail(warmup=1)), "tail.warmup is 1"),
        (Recipe(train=Training(epochs=0)), "train.epochs is 0"),
        (Recipe(train=Training(learning_rate=float("nan"))), "train.learning_rate is nan"),
        (Recipe(evaluate=settings.Evaluation(severities=(6,))), "severities go from 1 to 5"),
    ],
)
def test_values_that_make_no_sense_are_one_line(recipe: Recipe, said: str) -> None:
    with pytest.raises(UserError, match=said):
        recipe.check()


def test_derived_seeds_differ_by_purpose_and_stay() -> None:
    seeds = {recipes.derived_seed(0, purpose, epoch) for purpose in ("masks", "order") for epoch in range(10)}
    assert len(seeds) == 20
    assert recipes.derived_seed(0, "weights") == 133441691874178746


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": 3}, "data must have settings of its own, found int"),
        ({"trian": {}}, "no setting trian"),
        ({"train": {"epoch": 3}}, r"no setting train\.epoch$"),
        ({"train": {"epochs": "3"}}, r"train\.epochs is '3', a str"),
        ({"train": {"epochs": True}}, r"train\.epochs is 'True', a bool"),
        ({"train": {"optimizer": "adam"}}, r"train\.optimizer is 'adam'"),
        ({"train": {"rates": {"stem": "0"}}}, r"train\.rates is"),
        ({"grid": {"seeds": [0, "1"]}}, r"grid\.seeds is"),
        ({"grid": {"per_network": {"small": {"train": {"epochs": 1.5}}}}}, r"grid\.per_network\.small\.train is"),
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
    ],
)  # fmt: skip
def test_odd_yaml_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        recipes.read(str(tmp_path / "odd.yaml"))

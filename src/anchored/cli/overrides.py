"""Settings on the command line: an option for every setting of a recipe, and what a file and the options amount to.

The value of an option is text, or a number, a list or a mapping of plain YAML. Nothing that it names is imported.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from anchored.errors import UserError

if TYPE_CHECKING:
    from anchored.config.recipe import Recipe
    from anchored.config.settings import Evaluation


def add_recipe(parser: argparse.ArgumentParser, shown: str) -> None:
    """Add a recipe, --scale, and an option for every setting, whose help says its value in the recipe ``shown``."""
    from anchored.config.recipe_file import read_recipe, recipe_names

    base = read_recipe(shown) if shown and not shown.startswith("-") else {}
    names = ", ".join(recipe_names())
    parser.add_argument("recipe", help=f"{names}, or the path of a .yaml file")
    scale = "shrink images, epochs and networks to this share, for a trial; in (0, 1]"
    parser.add_argument("--scale", default="1", help=scale)
    add_settings(parser, "", base)


def add_settings(parser: argparse.ArgumentParser, start: str, base: Mapping[str, Any]) -> None:
    """Add an option for every setting of a recipe whose name has this start."""
    from anchored.config.recipe import Recipe

    parser.usage = f"{' '.join(parser.format_usage().split()[1:])} [--SECTION.KEY VALUE ...]"
    for name, hint, default, meaning in described_settings(Recipe, base):
        if name.startswith(start):
            kind = _type_name(hint)
            text = f"{meaning} (type: {kind}, default: {default})".replace("%", "%%")
            read = str if kind == "str" or kind.startswith("{") else read_value
            parser.add_argument(f"--{name}", metavar="VALUE", type=read, help=text)


def described_settings(kind: Any, base: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Name, type, default and meaning of each setting of a class and its sections; defaults are those of ``base``."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    meanings = {
        ast.unparse(setting.target): " ".join(ast.literal_eval(text.value).split())
        for setting, text in itertools.pairwise(body)
        if isinstance(setting, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            own = base.get(field.name)
            yield from described_settings(
                hints[field.name], own if isinstance(own, dict) else {}, f"{section}{field.name}."
            )
            continue
        default = field.default if field.default is not dataclasses.MISSING else {}
        yield f"{section}{field.name}", hints[field.name], base.get(field.name, default), meanings[field.name]


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, get_args(hint))) + "}"
    if get_origin(hint) is tuple:
        return f"list of {_type_name(get_args(hint)[0])}"
    return "mapping" if get_origin(hint) is dict else hint.__name__


def read_value(text: str) -> Any:
    """Return the number, list or mapping that a word of the command line stands for, by YAML; else the word."""
    import yaml

    from anchored.config.recipe_file import Loader

    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def is_setting(option: str) -> bool:
    """Whether an option is a setting of a recipe."""
    return "." in option or option in ("name", "title", "choose")


_OF_SETS = (
    "data.train", "evaluate.ood", "evaluate.adaptation", "evaluate.shifted", "evaluate.held_out",
    "train.outliers", "anchoring.reference_images",
)  # fmt: skip


def _with_sets_resolved(settings: dict[str, Any], written: Iterable[str]) -> dict[str, Any]:
    """The settings, with the names of data sets that the user has written as they are known everywhere else."""
    from anchored.data.catalog.names import resolve_name

    changed: dict[str, Any] = {}
    for option in {*_OF_SETS} & {*written}:
        section, _, key = option.partition(".")
        match settings.get(section):
            case {**there} if isinstance(named := there.get(key), str) and named:
                changed[option] = resolve_name(named)
            case {**there} if isinstance(named := there.get(key), list | tuple):
                changed[option] = [resolve_name(each) if isinstance(each, str) else each for each in named]
    return _override(settings, changed)


def resolve_recipe(name: str, changed: Mapping[str, Any], scale: float = 1.0, *, ray: str | None = None) -> Recipe:
    """Return a recipe with some settings changed (``{"train.epochs": 3}``), scaled and checked."""
    from anchored.config.recipe import Recipe
    from anchored.config.recipe_file import read_recipe, recipe_names
    from anchored.config.trust import refuse_code
    from anchored.training import launch

    written = changed if name in recipe_names() else dict.fromkeys(_OF_SETS)  # in our own recipes no folder is meant
    settings = _with_sets_resolved(_override(read_recipe(name), changed), written)
    recipe = Recipe.parse(settings, f"recipe '{name}'")
    for network in recipe.grid.networks:
        named, option = changed.get("grid.networks", ()), f"--grid.networks '[{network}]'"
        refuse_code(network, named, where=f"recipe '{recipe.name}'", option=option)
    for given in () if "grid.given" in changed else recipe.grid.given.values():
        for name_of in (given.model, given.network):
            refuse_code(name_of, where=f"recipe '{recipe.name}'", option="--grid.given with it")
    # On a Ray cluster nothing is shared: what started this process is of no concern to the trainings.
    devices = recipe.train.devices if ray else launch.process_count(recipe.train.devices)
    recipe = Recipe.parse(_override(settings, {"train.devices": devices}), f"recipe '{name}'").check()
    if recipe.network.checkpoint:
        from anchored.models.initialisation import with_checkpoint_hash

        recipe = replace(recipe, network=with_checkpoint_hash(recipe.network))
    if scale == 1:
        return recipe
    from anchored.data.datasets import dataset_row  # knows the user's own images too

    row = dataset_row(recipe.data.train, recipe.data)
    return recipe.scaled(scale, images=row.train, size=row.size, classes=max(1, len(row.classes)))


def resolve_evaluation(run: str, changed: Mapping[str, Any]) -> Evaluation:
    """Return how the recipe of a run says that it is evaluated, of another model as a report is, with some changes."""
    from anchored.config.recipe import Recipe
    from anchored.store.files import read_json
    from anchored.store.layout import Run

    file = Run(Path(run)).recipe_file
    trained = Run(Path(run)).cell_file.exists()
    recipe: Any = read_json(file) if file.exists() else {"evaluate": {} if trained else {"corruptions": ["c"]}}
    if not isinstance(recipe, dict) or not isinstance(recipe.get("evaluate"), dict):
        raise UserError(f"{file} is not a recipe: put back the one of the training, or train into another folder")
    settings = _with_sets_resolved(_override({"evaluate": recipe["evaluate"]}, changed), changed)
    return Recipe.parse(settings, file).evaluate


def _override(settings: dict[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in changed.items():
        section, _, key = name.rpartition(".")
        own = settings.get(section, {}) if section else value
        if section and isinstance(own, dict):
            own = {**own, key: value}
        settings = {**settings, section or key: own}
    return settings

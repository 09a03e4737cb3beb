"""What α or λ is chosen on, and outliers to train on: nothing that the test measures."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from anchored.config.recipe import Recipe
from anchored.config.settings import Evaluation
from anchored.corruptions.registry import CORRUPTIONS
from anchored.data import datasets
from anchored.data.catalog import registry as catalog
from anchored.data.synthetic_ood import OUTLIERS
from anchored.errors import UserError
from anchored.evaluation.evaluator import Split, corruptions_of
from anchored.evaluation.overlap import check_outliers, shares_images


def settings_of(recipe: Recipe) -> Evaluation:
    """What is measured on held-out training images: as the recipe's test, but for what is measured. Aims that the test
    leaves out are left out here too. Raises ``UserError`` where something is measured by both."""
    chosen, test = recipe.validate, recipe.evaluate
    for name in chosen.ood if test.ood else ():
        if name not in OUTLIERS:
            _apart(name, recipe)
    return replace(
        test,
        ood=chosen.ood if test.ood else (),
        corruptions=_corruptions(recipe) if test.corruptions else (),
        corruption_source="generated",  # archives hold test images
        detectors=(),  # nothing is chosen by them
        shifted=(),  # these are test images
        adaptation=(chosen.adaptation or test.adaptation) if test.adaptation else (),
    )


def measured(recipe: Recipe) -> Iterator[tuple[Split, Evaluation]]:
    """What a study measures on each network: its test, and what its knob is chosen on, if it has one to choose."""
    yield "test", recipe.evaluate
    if recipe.choose:
        yield "validation", settings_of(recipe)


def check_holdout(recipe: Recipe, root: Path | None = None) -> None:
    """Refuse, before anything is trained, what could not be measured to choose the recipe's knob."""
    if not recipe.choose:
        return
    settings = settings_of(recipe)
    datasets.open_set(
        recipe.data.train, "validation", recipe.data, datasets.input_format(recipe.data), root, minimum=10
    )
    for name in settings.adaptation:
        datasets.learnable_row(name, recipe.data, "validate.adaptation has")
    needed = [(name, "ood") for name in settings.ood if name not in OUTLIERS]
    for name, split in [*needed, *((name, "train") for name in settings.adaptation)]:
        datasets.check_readable(name, split, recipe.data, root)


def check_training_outliers(recipe: Recipe, root: Path | None = None) -> None:
    """Refuse, before anything is trained, ``train.outliers`` of a training that are measured, or cannot be read."""
    for outliers in recipe.outliers:
        check_outliers(outliers, recipe.evaluate, recipe.data)
        if recipe.choose:
            check_outliers(outliers, settings_of(recipe), recipe.data, "validate")
        if outliers not in OUTLIERS:
            split = datasets.outlier_split(outliers, recipe.data)
            datasets.check_readable(outliers, split, recipe.data, root)


def _corruptions(recipe: Recipe) -> tuple[str, ...]:
    """Corruptions that the test does not have: those asked for, else of C̄, else of C."""
    seen = datasets.input_format(recipe.data)
    tested = set(corruptions_of(recipe.evaluate, seen))
    if recipe.validate.corruptions:
        asked = corruptions_of(replace(recipe.evaluate, corruptions=recipe.validate.corruptions), seen)
        if both := [name for name in asked if name in tested]:
            raise UserError(f"validate.corruptions has {both[0]}, which evaluate.corruptions measures: name others")
        if len({"c-bar" in CORRUPTIONS[name].families for name in asked}) > 1:
            raise UserError("validate.corruptions has some of C and some of C̄: name those of one")
        return asked
    bar = tuple(name for name, row in CORRUPTIONS.items() if "c-bar" in row.families)  # of any size
    for names in (("c-bar",), bar, ("c15",)):
        found = corruptions_of(replace(recipe.evaluate, corruptions=names), seen)
        if left := tuple(name for name in found if name not in tested):
            return left
    raise UserError("evaluate.corruptions has every corruption, so that none is left to choose on: leave some out")


def _apart(name: str, recipe: Recipe) -> None:
    """Refuse an outlier set that shares images with what is trained on or measured."""
    if not catalog.is_user_data(name) and name not in catalog.CATALOG:
        raise UserError(f"validate.ood has '{name}': name rows of the catalog, own images, or {', '.join(OUTLIERS)}")
    for section, others in (("evaluate.ood", recipe.evaluate.ood), ("data.train", (recipe.data.train,))):
        if other := next((each for each in others if shares_images(name, each, recipe.data)), None):
            raise UserError(f"validate.ood has {name}, which shares images with {other} of {section}: name another set")

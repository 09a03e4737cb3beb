"""The verbs of the command line: a row each, with its arguments and what it does.

Work is imported inside the functions, so that ``--help`` is instant.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from anchored.cli import arguments
from anchored.config import recipe as recipes
from anchored.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from anchored.config.recipe import Recipe
    from anchored.data.catalog.row import DataSet


@dataclass(frozen=True)
class Command:
    """A row of the command line: what it is for, its own arguments, what it does, and examples."""

    usage: str
    summary: str
    arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int | None]  # the exit status, if it is not 0
    examples: tuple[str, ...]


def recipe_of(options: Namespace) -> Recipe:
    """The recipe as overridden on the command line, scaled and checked."""
    settings = {key: value for key, value in options.as_dict().items() if key in recipes.Recipe.__dataclass_fields__}
    from anchored.data.catalog.registry import CATALOG
    from anchored.training import distributed

    recipe = recipes.Recipe.parse(settings)
    # On a Ray cluster nothing is shared: what started this process is of no concern to the trainings.
    devices = recipe.train.devices if getattr(options, "ray", None) else distributed.processes(recipe.train.devices)
    recipe = replace(recipe, train=replace(recipe.train, devices=devices)).check()
    if recipe.network.checkpoint:
        from anchored.models.initialisation import with_checkpoint_hash

        recipe = replace(recipe, network=with_checkpoint_hash(recipe.network))
    row = CATALOG.get(recipe.data.train)
    return recipe.scaled(options.scale, images=row.train if row else 0, size=row.size if row else 0)


def _study(options: Namespace) -> None:
    from anchored.study import study
    from anchored.training import distributed

    recipe = recipe_of(options)
    folder = Path(options.output or Path("runs") / recipe.name)
    if options.status:
        _console().print(study.status(folder))
        return
    if recipe.train.devices > 1 and (options.ray or (options.workers or 1) > 1):
        raise UserError("--workers or --ray, and train.devices: one or the other; each worker trains on one device")

    def work() -> None:
        study.study(recipe, folder, _console(), workers=options.workers, ray=options.ray)
        _show_report(folder)

    distributed.run(work, recipe.train.devices, recipe.train.accelerator)


def _train(options: Namespace) -> None:
    from anchored.store.layout import Run
    from anchored.study import study
    from anchored.training import distributed

    recipe = recipe_of(options)
    cells = list(recipe.cells())
    if len(cells) != 1:
        raise UserError(
            f"recipe '{recipe.name}' names {len(cells)} trainings: pick one with, say, --grid.protocols '[ram]' "
            "--grid.alphas '[0.25]' --grid.seeds '[0]', or run them all with 'anchored study'"
        )
    run = Run(Path(options.output or Path("runs") / cells[0].name))

    def work() -> None:
        study.train_one(recipe, run, _console())
        print(f"Trained: {run.path.resolve()}")

    distributed.run(work, recipe.train.devices, recipe.train.accelerator)


def _evaluate(options: Namespace) -> None:
    from anchored.store import files
    from anchored.store.layout import Run
    from anchored.study import study
    from anchored.training import distributed

    run = Run(Path(options.run))
    cell = recipes.Cell.parse(files.read_json(run.cell_file), run.cell_file)
    settings = recipes.Recipe.parse({"evaluate": options.evaluate.as_dict()}).evaluate

    def work() -> None:
        study.evaluate_one(run, settings, _console(), network=options.network)
        print(f"Rows: {run.rows_file.resolve()}")

    distributed.run(work, distributed.processes(options.devices), cell.train.accelerator)


def _predict(options: Namespace) -> int:
    from rich.progress import Progress

    from anchored.report.image_report import predict_images
    from anchored.store.layout import Run

    if options.batch_size < 1:
        raise UserError(f"--batch_size is {options.batch_size}: at least 1")
    console = _console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("images", total=1.0)
        made = predict_images(
            Run(Path(options.run)),
            options.images,
            Path(options.output),
            batch_size=options.batch_size,
            progress=lambda share, what: bar.update(task, completed=share, description=what),
        )
    print(f"Table: {made.table.resolve()}\nPage: {made.page.resolve()}")
    for each in made.problems:
        print(f"anchored: not read: {each.problem}", file=sys.stderr)
    return 1 if made.problems else 0


def _report(options: Namespace) -> None:
    from anchored.report import page as report
    from anchored.store.layout import StudyFolder

    report.write(StudyFolder(Path(options.folder)))
    _show_report(Path(options.folder))


def _corrupt(options: Namespace) -> None:
    from anchored.data import corrupted_copy

    folder = Path(options.output)
    corrupted_copy.corrupt(
        options.source,
        folder,
        _console(),
        names=options.corruptions,
        severities=options.severities,
        seed=options.seed,
        layout=options.layout,
        size=options.size,
    )
    print(f"Corrupted images: {folder.resolve()}")


def _doctor(options: Namespace) -> int:
    from anchored.study import requirements

    recipe, console = recipe_of(options), _console()
    results = Path(options.output or Path("runs") / recipe.name)
    with console.status("measuring") as status:
        found = requirements.examine(recipe, results, progress=lambda what: status.update(f"measuring {what}"))
    found.show(console)
    return 0 if found.ready else 1


def _data(options: Namespace) -> None:
    from anchored.data.catalog import registry as catalog

    if options.action == "fetch" and not options.names:
        raise UserError(f"data fetch: name the sets to download, out of {', '.join(catalog.CATALOG)}")
    rows = [catalog.get(name) for name in options.names] or list(catalog.CATALOG.values())
    DATA_ACTIONS[options.action](rows, options)


def _data_list(rows: list[DataSet], options: Namespace) -> None:
    from anchored.data import inventory

    _console().print(inventory.listing(rows))


def _data_show(rows: list[DataSet], options: Namespace) -> None:
    from anchored.data import inventory

    for row in rows:
        print("\n".join(inventory.described(row)))


def _data_fetch(rows: list[DataSet], options: Namespace) -> None:
    from anchored.data.readers.download import fetch

    for row in rows:
        for path in fetch(row.name, offline=options.offline) or ("nothing to download",):
            print(f"{row.name}: {path}")


def _data_verify(rows: list[DataSet], options: Namespace) -> None:
    from anchored.data import inventory

    for row in rows:
        print(f"{row.name}: {inventory.verified(row, every=options.every)}")


DATA_ACTIONS: dict[str, Callable[[list[DataSet], Namespace], None]] = {
    "list": _data_list,
    "show": _data_show,
    "fetch": _data_fetch,
    "verify": _data_verify,
}


def _convert(options: Namespace) -> None:
    from anchored.models.convert import convert

    given = {key: value for key, value in options.as_dict().items() if key not in ("network", "output")}
    print(convert(options.network, Path(options.output), **given))


def _export(options: Namespace) -> None:
    from anchored.models.export import export

    print(
        export(
            options.run,
            options.target,
            takes=options.input,
            force=options.force,
            public=options.public,
            network=options.network,
        )
    )


def _show_report(folder: Path) -> None:
    from anchored.report import page as report
    from anchored.store.layout import StudyFolder

    study, console = StudyFolder(folder), _console()
    for table in report.terminal_tables(study, console.width):
        console.print(table)
    print(f"Report: {study.report_file.resolve()}")


def _console() -> Console:  # type: ignore[name-defined]  # noqa: F821
    from rich.console import Console

    return Console()


COMMANDS = {
    "study": Command(
        "anchored study RECIPE [-o FOLDER] [--scale SHARE] [--workers N] [--ray auto|HOST:PORT] [--status] "
        "[--choose {alpha,lambda}] [--SECTION.KEY VALUE ...]",
        "train, evaluate and report a grid of networks",
        arguments.study,
        _study,
        (
            "anchored study demo -o runs/demo",
            "anchored study demo -o runs/trial --scale 0.1",
            "anchored study demo -o runs/alphas --grid.alphas '[0.1, 0.25, 0.5]' --train.epochs 20",
            "anchored study demo-alphas --choose alpha",
            "anchored study my-recipe.yaml --workers 4",
            "anchored study my-recipe.yaml --ray auto --cluster.cpus 4 --cluster.gpus 1",
            "anchored study my-recipe.yaml --status",
        ),
    ),
    "train": Command(
        "anchored train RECIPE [-o FOLDER] [--scale SHARE] [--SECTION.KEY VALUE ...]",
        "train one network of a recipe",
        arguments.recipe,
        _train,
        ("anchored train demo -o runs/ram --grid.protocols '[ram]'",),
    ),
    "evaluate": Command(
        "anchored evaluate RUN [--devices N] [--evaluate.KEY VALUE ...]",
        "measure a trained network, as its recipe says or otherwise",
        arguments.evaluate,
        _evaluate,
        ("anchored evaluate runs/ram", "anchored evaluate runs/ram --evaluate.ood '[digits, textures]'"),
    ),
    "report": Command(
        "anchored report FOLDER",
        "write the report of a study again",
        arguments.report,
        _report,
        ("anchored report runs/demo",),
    ),
    "data": Command(
        "anchored data {list,show,fetch,verify} [NAME ...] [--offline] [--every]",
        "list, download and verify data sets",
        partial(arguments.data, known=list(DATA_ACTIONS)),
        _data,
        ("anchored data list", "anchored data fetch cifar10", "anchored data verify cifar10"),
    ),
    "doctor": Command(
        "anchored doctor RECIPE [-o FOLDER] [--scale SHARE] [--SECTION.KEY VALUE ...]",
        "say what a study lacks here, what it takes and how long it will run",
        arguments.recipe,
        _doctor,
        ("anchored doctor demo", "anchored doctor table8"),
    ),
    "predict": Command(
        "anchored predict RUN IMAGE ... [-o FOLDER]",
        "say of images of your own what they are, and how foreign",
        arguments.predict,
        _predict,
        ("anchored predict runs/ram photos/", "anchored predict runs/ram 'photos/*.jpg' -o seen"),
    ),
    "corrupt": Command(
        "anchored corrupt SOURCE -o FOLDER [--corruptions NAMES] [--severities NUMBERS] [--layout folders|npy] ...",
        "write a corrupted copy of any image set",
        arguments.corrupt,
        _corrupt,
        (
            "anchored corrupt my-photos -o my-photos-c",
            "anchored corrupt my-photos -o my-photos-c --size 224 --corruptions '[fog, c-bar]' --severities '[3]'",
            "anchored corrupt cifar10 -o CIFAR-10-C --layout npy",
        ),
    ),
    "convert": Command(
        "anchored convert NETWORK -o FOLDER {--pretrained | --checkpoint FILE} [--KEY VALUE ...]",
        "anchor a network with its weights, exactly",
        arguments.convert,
        _convert,
        (
            "anchored convert timm:regnety_008 --pretrained -o runs/regnety",
            "anchored convert timm:tf_efficientnet_lite0 --checkpoint lite0.safetensors -o runs/lite0",
            "anchored convert resnet18 --checkpoint mine.safetensors --like cifar10 -o runs/mine",
        ),
    ),
    "export": Command(
        "anchored export RUN TARGET [--input {uint8,unit,normalised}] [--force] [--public]",
        "fold a trained network into a plain one, to a file, or share its folder",
        arguments.export,
        _export,
        (
            "anchored export runs/ram model.onnx",
            "anchored export runs/ram model.pt2 --input unit",
            "anchored export runs/ram hub:owner/name",
        ),
    ),
}

"""The verbs of the command line: a row each, with its arguments and what it does.

Work is imported inside the functions, so that ``--help`` is instant.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from anchored import recipe as recipes
from anchored import settings
from anchored.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from anchored.catalog import DataSet
    from anchored.recipe import Recipe


@dataclass(frozen=True)
class Command:
    """A row of the command line: what it is for, its own arguments, what it does, and examples."""

    usage: str
    summary: str
    arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int | None]  # the exit status, if it is not 0
    examples: tuple[str, ...]


def recipe_arguments(parser: ArgumentParser) -> None:
    """A recipe, and every setting of it."""
    parser.add_argument("recipe", type=str, help=f"{', '.join(recipes.names())}, or the path of a .yaml file")
    parser.add_argument("-o", "--output", type=str, help="folder of the results")
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="shrink images, epochs and networks to this share, for a trial; in (0, 1]",
    )
    parser.add_class_arguments(recipes.Recipe, as_group=False)


def study_arguments(parser: ArgumentParser) -> None:
    """A recipe, and how its trainings are run."""
    at_once = "trainings at once, a process each; default 1, or as many as the Ray cluster has room for"
    parser.add_argument("--workers", type=int | None, default=None, help=at_once)
    cluster = "work on this Ray cluster: auto, or HOST:PORT; all its machines must see the folder of the results"
    parser.add_argument("--ray", type=str | None, default=None, help=cluster)
    parser.add_argument("--status", action="store_true", help="say what is done, running, failed and left, and stop")
    recipe_arguments(parser)


def _evaluate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="folder of a trained run")
    parser.add_argument("--devices", type=int, default=1, help="devices that share each pass, a process each")
    _network_argument(parser)
    parser.add_class_arguments(settings.Evaluation, "evaluate")


def _network_argument(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--network", type=str, default=None, help="the network again, where it is python:..., to say that you trust it"
    )


def _report_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=str, help="folder of a study")


def _corrupt_arguments(parser: ArgumentParser) -> None:
    images = "a row of the catalog (its test images), a folder of images or class folders, a .csv, .npz or .npy file"
    parser.add_argument("source", type=str, help=images)
    parser.add_argument("-o", "--output", type=str, required=True, help="folder of the corrupted images")
    kinds = "names of corruptions, or c (all 19 common ones), c15 (without the four extra ones), c-bar (ten)"
    parser.add_argument("--corruptions", type=tuple[str, ...], default=("c",), help=kinds)
    parser.add_argument("--severities", type=tuple[int, ...], default=(1, 2, 3, 4, 5), help="of 1 (mild) to 5 (harsh)")
    parser.add_argument("--seed", type=int, default=0, help="with it, an image's place decides its random numbers")
    layouts = "npy: blocks, as CIFAR-10-C; folders: JPEG files, as ImageNet-C"
    parser.add_argument("--layout", type=Literal["folders", "npy"], default="folders", help=layouts)
    sizes = "pixels a side: images are resized and cropped to it first; 0 leaves them as they are"
    parser.add_argument("--size", type=int, default=0, help=sizes)


def _predict_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="folder of a trained run")
    parser.add_argument("images", type=str, nargs="+", help="image files, folders of images, patterns ('photos/*.jpg')")
    parser.add_argument("-o", "--output", type=str, default="predictions", help="folder of the CSV and the page")
    parser.add_argument("--batch_size", type=int, default=64, help="images a forward pass")


def _doctor(options: Namespace) -> int:
    from anchored import doctor

    recipe, console = recipe_of(options), _console()
    results = Path(options.output or Path("runs") / recipe.name)
    with console.status("measuring") as status:
        found = doctor.examine(recipe, results, progress=lambda what: status.update(f"measuring {what}"))
    found.show(console)
    return 0 if found.ready else 1


def _data_arguments(parser: ArgumentParser) -> None:
    actions = "list all sets; show what is known of some; fetch (download and verify) some; verify that some read whole"
    parser.add_argument("action", choices=list(DATA_ACTIONS), help=actions)
    parser.add_argument("names", type=str, nargs="*", help="rows of the catalog; none means all, except to fetch")
    parser.add_argument("--offline", action="store_true", help="fetch: ask no server; as ANCHORED_OFFLINE=1")
    parser.add_argument("--every", action="store_true", help="verify: decode every image, not 2,000 of each split")


def _convert_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("network", type=str, help="name of a network, or folder (or hub:owner/name) of a standard run")
    parser.add_argument("-o", "--output", type=str, required=True, help="folder of the anchored model")
    parser.add_argument("--pretrained", action="store_true", help="take the weights that come with the name")
    parser.add_argument("--checkpoint", type=str, default="", help="take these: .safetensors of the plain network")
    parser.add_argument("--like", type=str, default="", help="data set whose images and classes the weights are for")
    parser.add_argument("--mask_probability", type=float, default=0.0, help="of a later training, in [0, 1)")
    parser.add_argument("--stem", type=str, default="", help="name of the first layer, where it is not found without")
    parser.add_argument("--channels", type=int, default=0, help="of the images, where the name does not say")
    parser.add_argument("--size", type=int, default=0, help="height and width of the images, pixels")
    parser.add_argument("--classes", type=int, default=0, help="how many logits there are")
    parser.add_argument("--mean", type=tuple[float, ...], default=(), help="per channel, of images in [0, 1]")
    parser.add_argument("--std", type=tuple[float, ...], default=(), help="per channel, of images in [0, 1]")


def _export_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="folder of a trained run or converted model, or hub:owner/name")
    parser.add_argument(
        "target", type=str, help="file (.onnx, .pt2, .safetensors), folder, or hub:owner/name to push a folder to"
    )
    parser.add_argument(
        "--input",
        type=Literal["uint8", "unit", "normalised"],
        default="uint8",
        help="what the file takes: pixels 0 to 255, floats in [0, 1], or images that the caller has normalised",
    )
    parser.add_argument("--force", action="store_true", help="replace a file that is there already")
    parser.add_argument("--public", action="store_true", help="make a new repository on the hub public")
    _network_argument(parser)


def recipe_of(options: Namespace) -> Recipe:
    """The recipe as overridden on the command line, scaled and checked."""
    settings = {key: value for key, value in options.as_dict().items() if key in recipes.Recipe.__dataclass_fields__}
    from anchored import together
    from anchored.catalog import CATALOG

    recipe = recipes.Recipe.parse(settings)
    # On a Ray cluster nothing is shared: what started this process is of no concern to the trainings.
    devices = recipe.train.devices if getattr(options, "ray", None) else together.processes(recipe.train.devices)
    recipe = replace(recipe, train=replace(recipe.train, devices=devices)).check()
    if recipe.network.checkpoint:
        from anchored.start import pinned

        recipe = replace(recipe, network=pinned(recipe.network))
    row = CATALOG.get(recipe.data.train)
    return recipe.scaled(options.scale, images=row.train if row else 0, size=row.size if row else 0)


def _study(options: Namespace) -> None:
    from anchored import study, together

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

    together.run(work, recipe.train.devices, recipe.train.accelerator)


def _train(options: Namespace) -> None:
    from anchored import study, together
    from anchored.runs import Run

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

    together.run(work, recipe.train.devices, recipe.train.accelerator)


def _evaluate(options: Namespace) -> None:
    from anchored import disk, study, together
    from anchored.runs import Run

    run = Run(Path(options.run))
    cell = recipes.Cell.parse(disk.read_json(run.cell_file), run.cell_file)
    settings = recipes.Recipe.parse({"evaluate": options.evaluate.as_dict()}).evaluate

    def work() -> None:
        study.evaluate_one(run, settings, _console(), network=options.network)
        print(f"Rows: {run.rows_file.resolve()}")

    together.run(work, together.processes(options.devices), cell.train.accelerator)


def _predict(options: Namespace) -> int:
    from rich.progress import Progress

    from anchored.predictions import predict
    from anchored.runs import Run

    if options.batch_size < 1:
        raise UserError(f"--batch_size is {options.batch_size}: at least 1")
    console = _console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("images", total=1.0)
        made = predict(
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
    from anchored import report
    from anchored.runs import StudyFolder

    report.write(StudyFolder(Path(options.folder)))
    _show_report(Path(options.folder))


def _corrupt(options: Namespace) -> None:
    from anchored import corrupted

    folder = Path(options.output)
    corrupted.corrupt(
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


def _data(options: Namespace) -> None:
    from anchored import catalog

    if options.action == "fetch" and not options.names:
        raise UserError(f"data fetch: name the sets to download, out of {', '.join(catalog.CATALOG)}")
    rows = [catalog.get(name) for name in options.names] or list(catalog.CATALOG.values())
    DATA_ACTIONS[options.action](rows, options)


def _data_list(rows: list[DataSet], options: Namespace) -> None:
    from anchored import inventory

    _console().print(inventory.listing(rows))


def _data_show(rows: list[DataSet], options: Namespace) -> None:
    from anchored import inventory

    for row in rows:
        print("\n".join(inventory.described(row)))


def _data_fetch(rows: list[DataSet], options: Namespace) -> None:
    from anchored import readers

    for row in rows:
        for path in readers.fetch(row.name, offline=options.offline) or ("nothing to download",):
            print(f"{row.name}: {path}")


def _data_verify(rows: list[DataSet], options: Namespace) -> None:
    from anchored import inventory

    for row in rows:
        print(f"{row.name}: {inventory.verified(row, every=options.every)}")


DATA_ACTIONS: dict[str, Callable[[list[DataSet], Namespace], None]] = {
    "list": _data_list,
    "show": _data_show,
    "fetch": _data_fetch,
    "verify": _data_verify,
}


def _convert(options: Namespace) -> None:
    from anchored.export import convert

    given = {key: value for key, value in options.as_dict().items() if key not in ("network", "output")}
    print(convert(options.network, Path(options.output), **given))


def _export(options: Namespace) -> None:
    from anchored.export import export

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
    from anchored import report
    from anchored.runs import StudyFolder

    study, console = StudyFolder(folder), _console()
    for table in report.terminal(study, console.width):
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
        study_arguments,
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
        recipe_arguments,
        _train,
        ("anchored train demo -o runs/ram --grid.protocols '[ram]'",),
    ),
    "evaluate": Command(
        "anchored evaluate RUN [--devices N] [--evaluate.KEY VALUE ...]",
        "measure a trained network, as its recipe says or otherwise",
        _evaluate_arguments,
        _evaluate,
        ("anchored evaluate runs/ram", "anchored evaluate runs/ram --evaluate.ood '[digits, textures]'"),
    ),
    "report": Command(
        "anchored report FOLDER",
        "write the report of a study again",
        _report_arguments,
        _report,
        ("anchored report runs/demo",),
    ),
    "data": Command(
        "anchored data {list,show,fetch,verify} [NAME ...] [--offline] [--every]",
        "list, download and verify data sets",
        _data_arguments,
        _data,
        ("anchored data list", "anchored data fetch cifar10", "anchored data verify cifar10"),
    ),
    "doctor": Command(
        "anchored doctor RECIPE [-o FOLDER] [--scale SHARE] [--SECTION.KEY VALUE ...]",
        "say what a study lacks here, what it takes and how long it will run",
        recipe_arguments,
        _doctor,
        ("anchored doctor demo", "anchored doctor table8"),
    ),
    "predict": Command(
        "anchored predict RUN IMAGE ... [-o FOLDER]",
        "say of images of your own what they are, and how foreign",
        _predict_arguments,
        _predict,
        ("anchored predict runs/ram photos/", "anchored predict runs/ram 'photos/*.jpg' -o seen"),
    ),
    "corrupt": Command(
        "anchored corrupt SOURCE -o FOLDER [--corruptions NAMES] [--severities NUMBERS] [--layout folders|npy] ...",
        "write a corrupted copy of any image set",
        _corrupt_arguments,
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
        _convert_arguments,
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
        _export_arguments,
        _export,
        (
            "anchored export runs/ram model.onnx",
            "anchored export runs/ram model.pt2 --input unit",
            "anchored export runs/ram hub:owner/name",
        ),
    ),
}

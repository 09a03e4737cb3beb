"""The verbs of studies, single runs and data: a typed function each, whose docstring is its help (``cli.parser``).

Work is imported inside the functions, so that ``--help`` is instant.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from anchored.cli.parser import verbs_by_name
from anchored.cli.terminal import new_console, say
from anchored.errors import UserError

if TYPE_CHECKING:
    from anchored.config.recipe import Recipe
    from anchored.config.settings import Channels, Evaluation, Number, Pixels, Positive, Processes
    from anchored.config.validation import Place


def _study(
    recipe: Recipe,
    *,
    output: Place = "",
    workers: Processes | None = None,
    ray: str | None = None,
    status: bool = False,
) -> None:
    """Train, evaluate and report a grid of networks.

    Args:
        output: folder of the results
        workers: trainings at once, a process each; default 1, or as many as the Ray cluster has room for
        ray: work on this Ray cluster: auto, or HOST:PORT; all its machines must see the folder of the results
        status: list what is done, running, failed and left, and stop

    Examples:
        anchored study demo -o runs/demo
        anchored study demo -o runs/trial --scale 0.1
        anchored study demo -o runs/alphas --grid.alphas '[0.1, 0.25, 0.5]' --train.epochs 20
        anchored study demo-alphas --choose alpha
        anchored study my-recipe.yaml --workers 4
        anchored study my-recipe.yaml --ray auto --cluster.cpus 4 --cluster.gpus 1
        anchored study my-recipe.yaml --status
    """
    from anchored.study import study
    from anchored.training import launch

    folder = Path(output or Path("runs") / recipe.name)
    if status:
        new_console().print(study.status(folder))
        return
    if recipe.train.devices > 1 and (ray or (workers or 1) > 1):
        raise UserError("--workers or --ray, and train.devices: one or the other; each worker trains on one device")

    def work() -> None:
        study.study(recipe, folder, new_console(), workers=workers, ray=ray)
        _show_report(folder)

    launch.run(work, recipe.train.devices, recipe.train.accelerator)


def _train(recipe: Recipe, *, output: Place = "") -> None:
    """Train one network of a recipe.

    Args:
        output: folder of the run

    Examples:
        anchored train demo -o runs/ram --grid.protocols '[ram]' --grid.tail_weights '[0.1]'
    """
    from anchored.store.layout import Run
    from anchored.study import study
    from anchored.training import launch

    cells = list(recipe.cells())
    if len(cells) != 1:
        raise UserError(
            f"recipe '{recipe.name}' names {len(cells)} trainings: pick one with, say, --grid.protocols '[ram]' "
            "--grid.alphas '[0.25]' --grid.tail_weights '[0.1]' --grid.seeds '[0]', or run all with 'anchored study'"
        )
    run = Run(Path(output or Path("runs") / cells[0].name))

    def work() -> None:
        study.train_one(recipe, run, new_console())
        say(f"Trained: {run.path.resolve()}")

    launch.run(work, recipe.train.devices, recipe.train.accelerator)


def _evaluate(
    model: str = "",
    evaluation: Evaluation | None = None,
    *,
    test: str = "",
    outputs: str = "",
    output: Place = "",
    pretrained: bool = False,
    checkpoint: str = "",
    like: str = "",
    classes: tuple[str, ...] = (),
    channels: Channels = 0,
    size: Pixels = 0,
    mean: tuple[Number, ...] = (),
    std: tuple[Positive, ...] = (),
    label: str = "",
    devices: Processes = 1,
    network: str | None = None,
) -> None:
    """Measure a model: one of a study again, one that was trained elsewhere, or outputs of any program.

    Settings that are not given are those of the run's recipe; of another model the defaults below, and all corruptions.

    Args:
        model: folder of a trained run, which is measured as its recipe says or otherwise; or any model, of which a
            report is written - timm:NAME, torchvision:NAME, hub:OWNER/NAME, python:MODULE:FACTORY, an .onnx or .pt2
            file
        test: labelled test images of such a model - a row of the catalog, class folders, a .csv, an .npz, hf:NAME
        outputs: in place of a model - folder of logits, labels and features of each set, as npz, safetensors or csv
        output: folder of the report; default runs/NAME
        pretrained: take the weights that come with the name
        checkpoint: take the weights of this file - .pth, .pt, .ckpt, .bin, .safetensors
        like: data set whose images and classes the weights are for
        classes: names of the logits in their order
        channels: of its images, where nothing else says
        size: height and width of its images, pixels
        mean: per channel, of images in [0, 1], that it was trained with
        std: per channel, of images in [0, 1]
        label: what the model is called in the report
        devices: devices that share each pass, a process each
        network: the network of a folder again, where it is python:..., to say that you trust it

    Examples:
        anchored evaluate runs/ram --evaluate.ood '[digits, textures]'
        anchored evaluate timm:tf_efficientnet_lite0 --pretrained --test photos/ -o runs/lite0
        anchored evaluate resnet18 --checkpoint mine.pth --like cifar10 --test cifar10
        anchored evaluate model.onnx --test cifar10 --like cifar10
        anchored evaluate --outputs my-outputs/ -o runs/mine
    """
    given = {name: value for name, value in locals().items() if value and name not in _OF_THE_REPORT}
    from anchored.config.recipe import Cell
    from anchored.store.files import read_json
    from anchored.store.layout import Run
    from anchored.study import study
    from anchored.training import launch

    assert evaluation is not None
    run, accelerator = Run(Path(model)), "auto"
    if measured_again := bool(model) and not (test or outputs or ":" in model or run.path.is_file()):
        if not run.cell_file.exists():
            raise UserError(
                f"{model} is not the folder of a run: of another model, say on which labelled images it is measured, "
                "--test DATA"
            )
        asked = given | {"output": output, "label": label}
        if unused := [name for name, value in asked.items() if value and name not in ("model", "network")]:
            raise UserError(
                f"{model} is a run, which is measured with its own weights in its own folder: leave --{unused[0]} out, "
                "or say on which labelled images it is measured as any model, --test DATA"
            )
        accelerator = Cell.parse(read_json(run.cell_file), run.cell_file).train.accelerator
    recipe = None if measured_again else study.given_recipe(given, test, evaluation, label)

    def work() -> None:
        if recipe is None:
            study.evaluate_one(run, evaluation, new_console(), network=network)
            say(f"Rows: {run.rows_file.resolve()}")
        else:
            folder = Path(output or Path("runs") / recipe.name)
            study.study(recipe, folder, new_console())
            _show_report(folder)

    launch.run(work, launch.process_count(devices), accelerator)


_OF_THE_REPORT = ("evaluation", "test", "output", "label", "devices")


def _report(folder: Place, *, evidence: bool = False) -> None:
    """Write the report of a study again.

    Args:
        folder: folder of a study
        evidence: write evidence.html too - what a review (EU AI Act, Article 15; NIST AI RMF) asks of accuracy,
            robustness and uncertainty, with hashes, limits and what was not measured; no claim of compliance

    Examples:
        anchored report runs/demo
        anchored report runs/demo --evidence
    """
    from anchored.report import cached
    from anchored.store.layout import StudyFolder

    if cached.current_tables(StudyFolder(Path(folder))) is None:
        from anchored.report import page as report

        report.write(StudyFolder(Path(folder)))
    _show_report(Path(folder))
    if evidence:
        from anchored.report.evidence import write_evidence

        say(f"Evidence: {write_evidence(StudyFolder(Path(folder))).resolve()}")


def _data(
    action: Literal["list", "show", "fetch", "verify"],
    names: tuple[str, ...] = (),
    *,
    offline: bool = False,
    every: bool = False,
) -> None:
    """List, download and verify data sets.

    Args:
        action: list all sets; show what is known of some; fetch (download and verify) some; verify that some read whole
        names: rows of the catalog; none means all, except to fetch
        offline: fetch without asking a server, as with ANCHORED_OFFLINE=1
        every: verify by decoding every image, not 2,000 of each split

    Examples:
        anchored data list
        anchored data fetch cifar10
        anchored data verify cifar10
    """
    from anchored.data import inventory
    from anchored.data.catalog import registry as catalog
    from anchored.data.readers.download import fetch_dataset

    if action == "fetch" and not names:
        raise UserError(f"data fetch: name the sets to download, out of {', '.join(catalog.CATALOG)}")
    rows = [catalog.get_dataset(name) for name in names] or list(catalog.CATALOG.values())
    if action == "list":
        new_console().print(inventory.catalog_table(rows))
    for row in rows if action != "list" else ():
        if action == "show":
            say("\n".join(inventory.describe_row(row)))
        elif action == "verify":
            say(f"{row.name}: {inventory.verify_dataset(row, every=every)}")
        else:
            for path in fetch_dataset(row.name, offline=offline) or ("nothing to download",):
                say(f"{row.name}: {path}")


def _doctor(recipe: Recipe, words: Sequence[str] = (), *, output: Place = "") -> int:
    """Say what a study lacks here, what it takes and how long it will run.

    Args:
        output: folder that the results would have

    Examples:
        anchored doctor demo
        anchored doctor table8
    """
    import shlex

    from anchored.store.terminal import DEFAULT_COLUMNS, progress_bar
    from anchored.study import requirements

    console = new_console()
    results = Path(output or Path("runs") / recipe.name)
    with progress_bar(console, DEFAULT_COLUMNS[0], transient=True) as bar:
        task = bar.add_task("measuring")
        progress = lambda what: bar.update(task, description=f"measuring {what}")  # noqa: E731
        command = shlex.join(["anchored", "study", *words])
        diagnosis = requirements.examine(recipe, results, progress=progress, command=command)
    diagnosis.show(console)
    return 0 if diagnosis.ready else 1


def _show_report(folder: Path) -> None:
    from anchored.report import cached
    from anchored.store.layout import StudyFolder

    study, console = StudyFolder(folder), new_console()
    for table in cached.terminal_tables(study, console.width):
        console.print(table)
    for notice in cached.current_notices(study):
        say(f"anchored: {notice}", stderr=True)
    say(f"Report: {study.report_file.resolve()}")


STUDY_VERBS = verbs_by_name(_study, _train, _evaluate, _report, _data, _doctor)

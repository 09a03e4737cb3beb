"""The verbs of the command line: a typed function each, whose docstring is its help (see ``cli.parser``).

Work is imported inside the functions, so that ``--help`` is instant.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from anchored.cli.parser import Verb
from anchored.errors import UserError, printable

if TYPE_CHECKING:
    from rich.console import Console

    from anchored.config.recipe import Recipe
    from anchored.config.settings import (
        Channels,
        Count,
        CountOrNone,
        Evaluation,
        MaskProbability,
        Number,
        Pixels,
        Positive,
        Processes,
        ProperShare,
        Seed,
        Severity,
        ShareOrNone,
    )
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
        _console().print(study.status(folder))
        return
    if recipe.train.devices > 1 and (ray or (workers or 1) > 1):
        raise UserError("--workers or --ray, and train.devices: one or the other; each worker trains on one device")

    def work() -> None:
        study.study(recipe, folder, _console(), workers=workers, ray=ray)
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
            "--grid.alphas '[0.25]' --grid.seeds '[0]', or run them all with 'anchored study'"
        )
    run = Run(Path(output or Path("runs") / cells[0].name))

    def work() -> None:
        study.train_one(recipe, run, _console())
        _say(f"Trained: {run.path.resolve()}")

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
        accelerator = Cell.parse(read_json(run.cell_file), run.cell_file).train.accelerator
    recipe = None if measured_again else study.given_recipe(given, test, evaluation, label)

    def work() -> None:
        if recipe is None:
            study.evaluate_one(run, evaluation, _console(), network=network)
            _say(f"Rows: {run.rows_file.resolve()}")
        else:
            folder = Path(output or Path("runs") / recipe.name)
            study.study(recipe, folder, _console())
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

        _say(f"Evidence: {write_evidence(StudyFolder(Path(folder))).resolve()}")


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
        _console().print(inventory.catalog_table(rows))
    for row in rows if action != "list" else ():
        if action == "show":
            _say("\n".join(inventory.describe_row(row)))
        elif action == "verify":
            _say(f"{row.name}: {inventory.verify_dataset(row, every=every)}")
        else:
            for path in fetch_dataset(row.name, offline=offline) or ("nothing to download",):
                _say(f"{row.name}: {path}")


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

    console = _console()
    results = Path(output or Path("runs") / recipe.name)
    with progress_bar(console, DEFAULT_COLUMNS[0], transient=True) as bar:
        task = bar.add_task("measuring")
        progress = lambda what: bar.update(task, description=f"measuring {what}")  # noqa: E731
        command = shlex.join(["anchored", "study", *words])
        diagnosis = requirements.examine(recipe, results, progress=progress, command=command)
    diagnosis.show(console)
    return 0 if diagnosis.ready else 1


def _calibrate(
    run: Place,
    *,
    images: str = "",
    false_alarms: ProperShare = 0.05,
    coverage: ProperShare = 0.9,
    error: ShareOrNone = 0.0,
    confidence: ProperShare = 0.95,
    score: Literal["energy", "max_softmax", "max_logit", "entropy"] = "energy",
    sets: Literal["lac", "aps", "raps"] = "lac",
    by_class: bool = False,
    seed: Seed = 0,
    network: str | None = None,
) -> None:
    """Fit, on held-out images, when a network says "unknown", its prediction sets, and its calibrated confidence.

    Args:
        run: folder of a trained run or converted model
        images: labelled images that it was neither trained nor tested on - a row of the catalog, class folders, a .csv,
            an .npz, hf:NAME; by default the training images that data.validation held out
        false_alarms: share of usual images that may be called unknown for their score, in (0, 1)
        coverage: share of images whose set holds their class, in (0, 1)
        error: share of wrong classes among those that are given, in (0, 1); 0 for no such bound
        confidence: how sure that is, in (0, 1)
        score: OOD score
        sets: kind of prediction sets
        by_class: let the coverage hold for each class
        seed: of the fifth of the images that fits the temperature
        network: the network again, where it is python:..., to say that you trust it

    Examples:
        anchored calibrate runs/ram
        anchored calibrate runs/ram --images held-out/ --false_alarms 0.01
        anchored calibrate runs/ram --error 0.05 --sets aps --by_class
    """
    from anchored.store.layout import Run
    from anchored.study.calibrate import calibrate_run

    found = Run(Path(run))
    rule = calibrate_run(
        found,
        images,
        network=network,
        false_alarms=false_alarms,
        coverage=coverage,
        error=error or None,
        confidence=confidence,
        score=score,
        sets=sets,
        by_class=by_class,
        seed=seed,
    )
    _say(f"{rule}\nDecision: {found.decision_file.resolve()}")


def _predict(
    run: Place,
    images: tuple[str, ...],
    *,
    output: Place = "predictions",
    batch_size: Count = 64,
    network: str | None = None,
) -> int:
    """Classify images of your own, each with its confidence and OOD score.

    Args:
        run: folder of a trained run
        images: image files, folders of images, patterns ('photos/*.jpg')
        output: folder of the CSV and the page
        batch_size: images a forward pass
        network: the network again, where it is python:..., to say that you trust it

    Examples:
        anchored predict runs/ram photos/
        anchored predict runs/ram 'photos/*.jpg' -o seen
    """
    from anchored.report.image_report import predict_images
    from anchored.store.layout import Run
    from anchored.store.terminal import progress_bar

    with progress_bar(_console(), transient=True) as bar:
        task = bar.add_task("images", total=1.0)
        written = predict_images(
            Run(Path(run)),
            images,
            Path(output),
            batch_size=batch_size,
            network=network,
            progress=lambda share, what: bar.update(task, completed=share, description=what),
        )
    _say(f"Table: {written.table.resolve()}\nPage: {written.page.resolve()}")
    for image in written.problems:
        _say(f"anchored: not read: {image.problem}", stderr=True)
    return 1 if written.problems else 0


def _corrupt(
    source: str,
    *,
    output: Place,
    corruptions: tuple[str, ...] = ("c",),
    severities: tuple[Severity, ...] = (1, 2, 3, 4, 5),
    seed: Seed = 0,
    layout: Literal["folders", "npy"] = "folders",
    size: Pixels = 0,
) -> None:
    """Write a corrupted copy of any image set.

    Args:
        source: a row of the catalog (its test images), a folder of images or class folders, a .csv, .npz or .npy file
        output: folder of the corrupted images
        corruptions: names of corruptions, or c (19 common ones; 18 for grey), c15 (without 4 extra ones), c-bar (ten)
        severities: of 1 (mild) to 5 (harsh)
        seed: with it, an image's place decides its random numbers
        layout: npy: blocks, as CIFAR-10-C; folders: JPEG files, as ImageNet-C
        size: pixels a side: images are resized and cropped to it first; 0 leaves them as they are

    Examples:
        anchored corrupt my-photos -o my-photos-c
        anchored corrupt my-photos -o my-photos-c --size 224 --corruptions '[fog, c-bar]' --severities '[3]'
        anchored corrupt cifar10 -o CIFAR-10-C --layout npy
    """
    from anchored.data import corrupted_copy

    folder = Path(output)
    corrupted_copy.write_corrupted_copy(
        source, folder, _console(), names=corruptions, severities=severities, seed=seed, layout=layout, size=size
    )
    _say(f"Corrupted images: {folder.resolve()}")


def _convert(
    source: str,
    *,
    output: Place,
    network: str | None = None,
    pretrained: bool = False,
    checkpoint: str = "",
    which: str = "",
    references: CountOrNone = 0,
    like: str = "",
    mask_probability: MaskProbability = 0.0,
    stem: str = "",
    at: str = "",
    channels: Channels = 0,
    size: Pixels = 0,
    classes: CountOrNone = 0,
    mean: tuple[Number, ...] = (),
    std: tuple[Positive, ...] = (),
) -> None:
    """Anchor a network with its weights, exactly.

    Args:
        source: name of a network, or folder (or hub:owner/name) of a standard run
        output: folder of the anchored model
        network: the network of such a folder again, where it is python:..., to say that you trust it
        pretrained: take the weights that come with the name
        checkpoint: take these: .pth, .pt, .ckpt, .bin, .safetensors, whole or in shards
        which: of several sets of weights in it, ema or the place of one
        references: of a checkpoint that was trained anchored and holds none, how many images of like are drawn
        like: data set whose images and classes the weights are for
        mask_probability: of a later training, in [0, 1)
        stem: name of the first layer, where it is not found without
        at: name of the layer whose input is anchored, in place of the image
        channels: of the images, where the name does not say
        size: height and width of the images, pixels
        classes: how many logits there are
        mean: per channel, of images in [0, 1]
        std: per channel, of images in [0, 1]

    Examples:
        anchored convert timm:regnety_008 --pretrained -o runs/regnety
        anchored convert timm:tf_efficientnet_lite0 --checkpoint lite0.safetensors -o runs/lite0
        anchored convert resnet18 --checkpoint mine.safetensors --like cifar10 -o runs/mine
    """
    options = {name: value for name, value in locals().items() if name not in ("source", "output")}
    from anchored.models.convert import convert

    _say(convert(source, Path(output), **options))


def _export(
    run: Place,
    target: Place,
    *,
    input: Literal["uint8", "unit", "normalised"] = "uint8",  # noqa: A002  # the option's name
    force: bool = False,
    public: bool = False,
    zero_reference: bool = False,
    decide: bool = False,
    network: str | None = None,
) -> None:
    """Fold a trained network into a plain one, to a file, or share its folder.

    Args:
        run: folder of a trained run or converted model, or hub:owner/name
        target: file (.onnx, .pt2, .safetensors), folder, hub:owner/name to push a folder to, or timm:FOLDER for timm
        input: what the file takes: pixels 0 to 255, floats in [0, 1], or images that the caller has normalised
        force: replace a file that is there already
        public: make a new repository on the hub public
        zero_reference: fold a timm:FOLDER about the zero reference, whose logits differ from those of training's
        decide: an .onnx or .pt2 file also gives probabilities, score, p_value and accepted, as calibrate fitted them
        network: the network again, where it is python:..., to say that you trust it

    Examples:
        anchored export runs/ram model.onnx
        anchored export runs/ram model.pt2 --input unit
        anchored export runs/ram model.onnx --decide
        anchored export runs/ram hub:owner/name
        anchored export runs/ram timm:shared/ram --zero_reference
    """
    from anchored.models.export import export

    _say(
        export(
            run,
            target,
            takes=input,
            force=force,
            public=public,
            zero_reference=zero_reference,
            network=network,
            decide=decide,
        )
    )


def _show_report(folder: Path) -> None:
    from anchored.report import cached
    from anchored.store.layout import StudyFolder

    study, console = StudyFolder(folder), _console()
    for table in cached.terminal_tables(study, console.width):
        console.print(table)
    for notice in cached.current_notices(study):
        _say(f"anchored: {notice}", stderr=True)
    _say(f"Report: {study.report_file.resolve()}")


def _console() -> Console:
    from anchored.store.terminal import PlainConsole

    return PlainConsole()


def _say(text: object, *, stderr: bool = False) -> None:
    print(printable(str(text), keep="\n"), file=sys.stderr if stderr else sys.stdout)


VERBS: dict[str, Verb] = {
    verb.__name__.lstrip("_"): verb
    for verb in (_study, _train, _evaluate, _report, _data, _doctor, _calibrate, _predict, _corrupt, _convert, _export)
}

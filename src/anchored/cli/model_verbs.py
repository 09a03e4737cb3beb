"""The verbs of trained networks and of images: a typed function each, whose docstring is its help (``cli.parser``).

Work is imported inside the functions, so that ``--help`` is instant.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from anchored.cli.parser import verbs_by_name
from anchored.cli.terminal import new_console, say

if TYPE_CHECKING:
    from anchored.config.settings import (
        Channels,
        Count,
        CountOrNone,
        MaskProbability,
        Number,
        Pixels,
        Positive,
        ProperShare,
        Seed,
        Severity,
        ShareOrNone,
    )
    from anchored.config.validation import Place


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
    say(f"{rule}\nDecision: {found.decision_file.resolve()}")


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

    with progress_bar(new_console(), transient=True) as bar:
        task = bar.add_task("images", total=1.0)
        written = predict_images(
            Run(Path(run)),
            images,
            Path(output),
            batch_size=batch_size,
            network=network,
            progress=lambda share, what: bar.update(task, completed=share, description=what),
        )
    say(f"Table: {written.table.resolve()}\nPage: {written.page.resolve()}")
    for image in written.problems:
        say(f"anchored: not read: {image.problem}", stderr=True)
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
        size: pixels a side: images are resized and cropped to it first; 0 leaves own images as they are

    Examples:
        anchored corrupt my-photos -o my-photos-c
        anchored corrupt my-photos -o my-photos-c --size 224 --corruptions '[fog, c-bar]' --severities '[3]'
        anchored corrupt cifar10 -o CIFAR-10-C --layout npy
    """
    from anchored.data import corrupted_copy

    folder = Path(output)
    corrupted_copy.write_corrupted_copy(
        source, folder, new_console(), names=corruptions, severities=severities, seed=seed, layout=layout, size=size
    )
    say(f"Corrupted images: {folder.resolve()}")


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

    say(convert(source, Path(output), **options))


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

    say(
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


MODEL_VERBS = verbs_by_name(_calibrate, _predict, _corrupt, _convert, _export)

"""The shipped recipes: what they train and measure is what the paper's tables hold, and all of them run, shrunken."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures import tex
from fixtures.catalog_copies import (
    ADAPTATION,
    by_class,
    cifar_fixture,
    dtd,
    imagenet_kit,
    pack,
    picture,
    places,
    ucf101,
    write,
)

from anchored.cli.main import main
from anchored.cli.parser import parse_arguments
from anchored.cli.verbs import VERBS
from anchored.config.recipe import Recipe
from anchored.config.recipe_file import recipe_names
from anchored.config.settings import Data, Grid, Network, PerNetwork, Training
from anchored.corruptions import registry as corruptions
from anchored.data.catalog import registry as catalog
from anchored.data.catalog.registry import CATALOG
from anchored.data.catalog.row import DataSet
from anchored.errors import UserError
from anchored.models import registry as networks
from anchored.report import comparison as summary
from anchored.report import page, paper, reading
from anchored.report.style import Picture
from anchored.store.layout import StudyFolder

TABLES = {"table6": 6, "table7": 7, "table8": 8, "table9": 9, "table10": 10, "table11": 11}
FIGURES = ("fig3", "fig3-imagenet", "fig4a", "fig4b")


def read(name: str, *arguments: str) -> Recipe:
    """A recipe as the command line reads it."""
    recipe: Recipe = parse_arguments("study", VERBS["study"], [name, *arguments])["recipe"]
    return recipe


# --- What a recipe says -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_sound(name: str) -> None:
    recipe = read(name)
    assert recipe.name == name
    cells = list(recipe.cells())
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        networks.find_network(cell.network)
    for row in (recipe.data.train, *recipe.evaluate.ood, *recipe.evaluate.shifted, *recipe.evaluate.adaptation):
        catalog.get_dataset(row)
    assert recipe.title


@pytest.mark.parametrize("name", TABLES)
def test_a_table_s_recipe_trains_and_measures_what_the_table_holds(name: str) -> None:
    recipe = read(name)
    trained_on = catalog.get_dataset(recipe.data.train).title
    numbers = [each for each in paper.published_numbers() if each.table == TABLES[name]]
    assert {each.trained_on for each in numbers} == {trained_on}
    trained = [
        summary.Variant(
            networks.find_network(cell.network).title,
            cell.protocol,
            cell.mask_probability or None,
            cell.tail_weight or None,
        )
        for cell in recipe.cells()
        if cell.seed == 0
    ]
    assert trained == list(dict.fromkeys(each.variant for each in numbers))
    settings = recipe.evaluate
    titles = {
        "auroc": [catalog.get_dataset(row).title for row in settings.ood],
        "linear_probe_accuracy": [catalog.get_dataset(row).title for row in settings.adaptation],
        "smooth_ece": [f"{trained_on}-{'C̄' if family == 'c-bar' else 'C'}" for family in settings.corruptions],
    }
    for metric, found in titles.items():
        assert found == list(dict.fromkeys(each.dataset for each in numbers if each.metric == metric))
    assert settings.severities == (1, 2, 3, 4, 5)


def test_schedules_are_the_published_ones() -> None:
    cifar = next(read("table6").cells()).train
    assert (cifar.optimizer, cifar.learning_rate, cifar.momentum, cifar.weight_decay) == ("sgd", 0.1, 0.9, 5e-4)
    assert (cifar.epochs, cifar.batch_size, cifar.decay, cifar.crop_padding, cifar.flip) == (200, 128, 0.2, 4, True)
    assert [cifar.epochs * share for share in cifar.milestones] == pytest.approx([60, 120, 160])
    of = {cell.network: cell.train for cell in read("table10").cells()}
    resnet, regnet, vit = of["resnet18_imagenet"], of["regnety_800mf"], of["vit_b_16"]
    assert (resnet.epochs, resnet.batch_size, resnet.learning_rate, resnet.weight_decay) == (90, 256, 0.1, 1e-4)
    assert [resnet.epochs * share for share in resnet.milestones] == pytest.approx([30, 60])
    assert (resnet.schedule, resnet.decay) == ("steps", 0.1)
    assert (regnet.epochs, regnet.batch_size, regnet.learning_rate, regnet.weight_decay) == (100, 1024, 0.8, 5e-5)
    assert (regnet.schedule, regnet.epochs * regnet.warmup, regnet.warmup_start) == ("cosine", 5.0, 0.1)
    assert (vit.epochs, vit.batch_size, vit.learning_rate, vit.weight_decay) == (300, 4096, 0.003, 0.3)
    assert (vit.optimizer, vit.schedule, vit.epochs * vit.warmup, vit.warmup_start) == ("adamw", "cosine", 30.0, 0.033)
    assert (vit.label_smoothing, vit.mixup, vit.cutmix, vit.clip_norm) == (0.11, 0.2, 1.0, 1.0)
    # torchvision: 1 − (1 − 0.99998) · 8 GPUs · 512 images · 32 steps / 300 epochs, applied every 32 steps.
    assert vit.average == pytest.approx((1 - 2e-5 * 8 * 512 * 32 / 300) ** (1 / 32), abs=5e-6)
    assert {vit.crop, regnet.crop, resnet.crop} == {"resized"}
    assert (vit.policy, regnet.policy, resnet.policy) == ("rand_augment", "none", "none")


def test_swin_v2_is_torchvision_s_recipe() -> None:
    """references/classification/README.md of pytorch/vision: SwinTransformer V2."""
    recipe = read("imagenet-swin")
    (train,) = {cell.network: cell.train for cell in recipe.cells() if cell.network.endswith("_t")}.values()
    assert (train.epochs, train.batch_size, train.optimizer, train.learning_rate) == (300, 8 * 128, "adamw", 0.001)
    assert (train.weight_decay, train.decay_vectors, train.clip_norm) == (0.05, False, 5.0)
    assert (train.schedule, train.warmup_start) == ("cosine", 0.01)
    assert [train.last_rate * train.learning_rate, train.epochs * train.warmup] == pytest.approx([1e-5, 20])
    assert (train.label_smoothing, train.mixup, train.cutmix, train.random_erasing) == (0.1, 0.8, 1.0, 0.25)
    assert (train.policy, train.crop, train.repeats) == ("trivial_augment", "resized", 4)
    assert train.average == pytest.approx((1 - 2e-5 * 8 * 128 * 32 / 300) ** (1 / 32), abs=5e-7)
    assert (recipe.data.size, recipe.data.interpolation, recipe.grid.alphas) == (256, "bicubic", (0.2,))
    assert recipe.anchoring.references == 5


# --- What one network has of its own ----------------------------------------------------------------------------------


def test_a_network_of_a_grid_has_its_own_alphas_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "grid: {networks: [small, resnet18], alphas: [0.1, 0.2], per_network: {resnet18: {alphas: [0.3], "
        "train: {epochs: 7, milestones: [0.5]}}}}\ntrain: {epochs: 5, learning_rate: 0.2}\n"
    )
    cells = {cell.name: cell.train for cell in read(str(path), "--train.learning_rate", "0.4").cells()}
    assert list(cells) == [
        *(f"small-{each}-seed0" for each in ("standard", "anchored", "ram-0.1", "ram-0.2")),
        *(f"resnet18-{each}-seed0" for each in ("standard", "anchored", "ram-0.3")),
    ]
    assert cells["small-standard-seed0"].epochs == 5
    own = cells["resnet18-ram-0.3-seed0"]
    assert (own.epochs, own.milestones, own.learning_rate) == (7, (0.5,), 0.4)  # what it does not say is the grid's


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ("{train: {epoch: 3}}", r"no setting grid\.per_network\.small\.train\.epoch: did you mean"),
        ("{train: {epochs: many}}", r"small\.train\.epochs is 'many': give a whole number"),
        ("{train: {epochs: 0}}", r"grid\.per_network\.small\.train\.epochs is 0: give at least 1"),
        ("{train: {devices: 3}}", r"shared by 3 devices.* \(of small\)"),
        ("{alphas: [1.5]}", r"grid\.per_network\.small\.alphas has 1\.5"),
        ("{alphas: [0.1, 0.1]}", r"grid\.per_network\.small\.alphas names 0\.1 twice"),
        ("{seeds: [1]}", "seeds"),
    ],
)
def test_what_makes_no_sense_for_one_network_is_one_line(tmp_path: Path, own: str, said: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"grid: {{networks: [small], per_network: {{small: {own}}}}}\n")
    with pytest.raises(UserError, match=said) as raised:
        read(str(path))
    assert "\n" not in str(raised.value)


# --- Trials -----------------------------------------------------------------------------------------------------------


def test_scale_shrinks_every_part_and_none_vanishes() -> None:
    part: Any = {"epochs": 300, "batch_size": 4096}
    own = {"vit_b_16": PerNetwork((0.1,), part)}
    recipe = Recipe(grid=Grid(networks=("resnet18_imagenet", "vit_b_16"), per_network=own), train=Training(epochs=90))
    small = recipe.scaled(0.01, images=1_281_167, size=224)
    assert small.data == replace(Data(), fraction=0.01, size=64)
    assert small.network.width == 0.125
    assert (small.train.epochs, small.train.batch_size) == (1, 128)
    assert dict(small.grid.per_network["vit_b_16"].train) == {"epochs": 3, "batch_size": 4096}
    tiny = recipe.scaled(0.001, images=1_281_167, size=224)
    assert dict(tiny.grid.per_network["vit_b_16"].train) == {"epochs": 1, "batch_size": 1281}
    assert recipe.scaled(0.25, images=50_000, size=32).data.size == 0
    assert recipe.scaled(0.25, images=50_000, size=224).data.size == 128
    assert recipe.scaled(0.25).network.width == 0.5
    assert recipe.scaled(1) is recipe
    with_tails = replace(recipe, grid=replace(recipe.grid, tail_weights=(0.0, 0.1), per_network={}))
    assert with_tails.scaled(0.001).train.epochs == 2


def test_scale_leaves_networks_that_cannot_be_narrowed() -> None:
    assert Recipe(grid=Grid(networks=("timm:resnet18",))).scaled(0.1).network.width == 1
    assert Recipe(network=Network(pretrained=True)).scaled(0.1).network.width == 1


# --- All of them run --------------------------------------------------------------------------------------------------

SMALL = ["--scale", "0.004", "--grid.seeds", "[0]", "--evaluate.bootstrap", "100", "--data.workers", "0"]
SMALL += ["--train.accelerator", "cpu"]
FEW = {"c": ("gaussian_noise", "fog"), "c-bar": ("sparkles",)}  # of each family: the means need no more


def small(name: str) -> list[str]:
    """The command line that runs a recipe shrunken."""
    settings = read(name).evaluate
    kinds = [kind for family in settings.corruptions for kind in FEW[family]]
    probed = settings.adaptation if name in TABLES else settings.adaptation[:1]
    weights = ["--grid.tail_weights", "[0, 1]"] if name == "fig4b" else []
    weights += ["--evaluate.severities", "[3]"] if name in FIGURES else []
    listed = {"corruptions": kinds, "adaptation": probed, "ood": settings.ood if name in TABLES else settings.ood[:2]}
    changes = [word for key, value in listed.items() for word in (f"--evaluate.{key}", f"[{','.join(value)}]")]
    return ["study", name, *SMALL, *changes, *weights]


CIFAR_OOD = ("lsun-c", "lsun-r", "isun", "tiny-imagenet-r")
WNIDS = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475", "n01496331")
IMAGES = 6  # test images of each corrupted set, and ImageNet's


def corrupted_blocks(root: Path, name: str) -> DataSet:
    """CIFAR-C's archive: an npy of five blocks for each of the 19 corruptions, and the labels."""
    row = replace(catalog.get_dataset(name), test=IMAGES, test_files=())
    draw = np.random.default_rng(0)
    arrays = {kind: draw.integers(0, 256, (5 * IMAGES, 32, 32, 3), dtype=np.uint8) for kind in row.corruptions}
    arrays["labels"] = np.tile(np.arange(IMAGES, dtype=np.int64), 5)
    files = {}
    for key, array in arrays.items():
        stream = io.BytesIO()
        np.save(stream, array)
        files[f"{row.images}/{key}.npy"] = stream.getvalue()
    pack(root / name / row.parts[0].name, files)
    return row


def corrupted_folders(root: Path, name: str) -> DataSet:
    """ImageNet-C's and C̄'s folders, unpacked: corruption, severity, class, image; those that are measured below."""
    row = catalog.get_dataset(name)
    for kind in FEW["c-bar" if name.endswith("bar") else "c"]:
        for severity in range(1, 6):
            for i in range(IMAGES):
                key = f"{kind}/{severity}/{WNIDS[i]}/ILSVRC2012_val_{i + 1:08d}.JPEG"
                write(root / name / row.images / key, picture((64, 64)))
    return replace(row, test=IMAGES)


def imagenet(root: Path) -> DataSet:
    """Training images in class folders, validation images flat, with the development kit's labels."""
    numbers = [i + 1 for i in range(IMAGES)]
    for wnid in WNIDS:
        for i in range(2):
            write(root / "imagenet/train" / wnid / f"{wnid}_{i}.JPEG", picture((80, 72)))
    for i in range(IMAGES):
        write(root / f"imagenet/val/ILSVRC2012_val_{i + 1:08d}.JPEG", picture((72, 80)))
    imagenet_kit(root / "imagenet/ILSVRC2012_devkit_t12/data", WNIDS, numbers)
    whole = catalog.get_dataset("imagenet")
    return replace(whole, folders=WNIDS, classes=whole.classes[:6], file_classes=6, train=12, test=IMAGES)


def rows(root: Path) -> Iterator[DataSet]:
    """Write a small copy of every set that the recipes name, in its original layout; give the rows of the copies."""
    root.mkdir()
    for name in ("cifar10", "cifar100"):
        yield cifar_fixture(root, name, 8, unpack=False)[0]
    yield imagenet(root)
    for name in CIFAR_OOD:
        for i in range(3):
            write(root / name / catalog.get_dataset(name).images / f"{i}.jpg", picture((32, 32)))
        yield replace(catalog.get_dataset(name), test=3)
    yield places(root)
    found = dtd(root)
    yield found
    yield replace(catalog.get_dataset("dtd-textures"), classes=found.classes, file_classes=3, test=9)
    ninco = replace(catalog.get_dataset("ninco"), classes=catalog.get_dataset("ninco").classes[:2], file_classes=2)
    yield replace(ninco, test=len(by_class(root, f"ninco/{ninco.images}", ninco.classes)))
    yield ucf101(root, takes=2)
    for name in sorted(ADAPTATION.keys() - {"dtd", "ucf101"}):
        yield ADAPTATION[name](root)
    for name in ("cifar10-c", "cifar100-c"):
        yield corrupted_blocks(root, name)
    for name in ("imagenet-c", "imagenet-c-bar"):
        yield corrupted_folders(root, name)


@pytest.mark.timeout(900)  # every recipe of the paper: minutes on a busy machine
def test_every_recipe_runs_and_its_tables_have_every_cell_of_the_papers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANCHORED_DATA", str(tmp_path / "data"))
    for row in rows(tmp_path / "data"):
        monkeypatch.setitem(CATALOG, row.name, row)
    draw = page.draw_pictures  # of each recipe of a figure that one alone: the others are drawn elsewhere
    made: dict[str, list[str]] = {}
    figures: list[float] = []
    for name in (*TABLES, *FIGURES):
        # Recipes of one training set share a folder, and what is trained already; fig4b trains longer when shrunken.
        folder = StudyFolder(tmp_path / (name if name == "fig4b" else read(name).data.train))

        def drawn_here(found: summary.Summary, own: str = FIGURE.get(name, "")) -> Iterator[Picture]:
            return (picture for picture in (draw(found) if own else ()) if picture.name == own)

        monkeypatch.setattr(page, "draw_pictures", drawn_here)
        assert main([*small(name), "-o", str(folder.path)]) == 0, capsys.readouterr().err
        found = reading.read_summary(folder)
        tables = [t for t in paper.paper_tables(found) if name in TABLES and f"_table{TABLES[name]}_" in t.name]
        for table in tables:
            ours = [cell.text for row in table.rows if row[2].text == "here" for cell in row[3:]]
            figures += [float(each) for text in ours for each in text.split(" / ")]  # "—" would be no number
        made[name] = [table.name.removeprefix("paper_") for table in tables]
        if name in FIGURES:
            # A radar relative to a standard network that has an aim at zero, as in a trial, cannot be drawn.
            standard = [
                row for row in found.rows if row.protocol == "standard" and row.severity is None and row.metric in AIMS
            ]
            aims = [row.value for row in standard if "mean" in (row.corruption, row.dataset)]
            drawn = FIGURE[name] in {figure.stem for figure in folder.figures.glob("*.pdf")}
            assert drawn == (name != "fig4a" or all(aims))
    assert [made[name] for name in TABLES] == [
        ["table6_ood"], ["table7_calibration"], ["table8_ood", "table8_adaptation"], ["table9_calibration"],
        ["table10_calibration"], ["table11_ood"],
    ]  # fmt: skip
    assert len(figures) == len(paper.published_numbers()) == 444
    written = [file.read_text() for file in sorted(tmp_path.glob("*/tables/*.tex"))]
    assert len(written) > 40
    if tex.COMPILER is not None:  # of all kinds: the paper's, published ones, choices
        tex.compile_tables(written, tmp_path)
    printed = capsys.readouterr().out
    assert all(f"Table {number} of the paper beside this study" in printed for number in TABLES.values())


AIMS = ("accuracy", "auroc", "linear_probe_accuracy")
FIGURE = {"fig3": "alpha", "fig3-imagenet": "alpha", "fig4a": "radar", "fig4b": "lambda"}


def test_families_of_the_recipes_are_whole() -> None:
    assert (len(corruptions.expand(("c",), 32, 32)), len(corruptions.expand(("c-bar",), 224, 224))) == (19, 10)

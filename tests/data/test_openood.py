"""OpenOOD's lists and groups, on small files in the format of its own: the lists cannot be downloaded by a program."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.catalog_copies import picture, write

from anchored.config.recipe import Recipe
from anchored.config.settings import Data, Evaluation, Grid
from anchored.data import datasets
from anchored.data.catalog import registry as catalog
from anchored.data.catalog.openood import GROUPS
from anchored.data.catalog.row import DataSet
from anchored.data.preprocessing import InputFormat
from anchored.data.readers.layouts import read_index
from anchored.errors import UserError
from anchored.evaluation import suites

ROOT = "openood"


def listed(root: Path, name: str, lines: list[str]) -> DataSet:
    """Write a list and the images that it names; the row, made for so few."""
    row = catalog.get_dataset(name)
    write(root / ROOT / row.needs[0], "".join(f"{line}\n" for line in lines))
    for line in lines:
        write(root / ROOT / Path(row.images).parent / line.rsplit(" ", 1)[0])
    return replace(row, test=len(lines))


def test_near_and_far_are_openoods() -> None:
    kinds = {
        name: {kind: [each for each in sets if catalog.ood_kind(each, train) == kind] for kind in ("near", "far")}
        for name, sets in GROUPS.items()
        for train in (name.removeprefix("openood-"),)
    }
    far = ["mnist", "svhn", "texture", "places365"]
    assert kinds == {
        "openood-cifar10": {
            "near": ["openood-cifar10-cifar100", "openood-cifar10-tin"],
            "far": [f"openood-cifar10-{name}" for name in far],
        },
        "openood-cifar100": {
            "near": ["openood-cifar100-cifar10", "openood-cifar100-tin"],
            "far": [f"openood-cifar100-{name}" for name in far],
        },
        "openood-imagenet": {
            "near": ["openood-imagenet-ssb-hard", "openood-imagenet-ninco"],
            "far": [f"openood-imagenet-{name}" for name in ("inaturalist", "textures", "openimage-o")],
        },
    }
    for name, sets in GROUPS.items():
        own = f"{name.removeprefix('openood-')}-openood"  # near for the 9,000 (45,000) test images of the list, too
        assert [catalog.ood_kind(each, own) for each in sets[:3]] == ["near", "near", "far"]


def test_a_group_stands_for_its_sets() -> None:
    names = catalog.expand_groups(("blobs", "openood-cifar10", "digits"))
    assert names == ("blobs", *GROUPS["openood-cifar10"], "digits")


def test_a_list_is_read_as_it_stands(tmp_path: Path) -> None:
    lines = [f"tin/val/n0{number}/images/val_{number}.JPEG -1" for number in (3, 1, 2)]
    row = listed(tmp_path, "openood-cifar10-tin", lines)
    write(tmp_path / ROOT / "images_classic/tin/val/n09/images/val_9.JPEG")  # a CIFAR-10 class: not in the list
    index = read_index(row, "test", tmp_path)
    assert index.keys == ("val/n03/images/val_3.JPEG", "val/n01/images/val_1.JPEG", "val/n02/images/val_2.JPEG")
    assert index.labels.tolist() == [0, 0, 0]


def test_the_known_classes_have_their_labels_and_both_splits(tmp_path: Path) -> None:
    lines = ["cifar10/test/truck/0001.png 9", "cifar10/test/airplane/0298.png 0"]
    row = listed(tmp_path, "cifar10-openood", lines)
    write(tmp_path / ROOT / "benchmark_imglist/cifar10/train_cifar10.txt", "cifar10/train/cat/0001.png 3\n")
    write(tmp_path / ROOT / "images_classic/cifar10/train/cat/0001.png")
    assert read_index(row, "test", tmp_path).labels.tolist() == [9, 0]
    assert read_index(replace(row, train=1), "train", tmp_path).labels.tolist() == [3]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("svhn/test/1.png -1", "is no image of tin/ and its label"),
        ("tin/val/1.png", "is no image of tin/ and its label"),
        ("../tin/val/1.png -1", "is no image of tin/ and its label"),
        ("tin/val/2.png -1", "2.png is missing, but .*'s list has it"),
    ],
)
def test_a_damaged_list_is_one_line(tmp_path: Path, line: str, text: str) -> None:
    row = listed(tmp_path, "openood-cifar10-tin", ["tin/val/1.png -1"])
    write(tmp_path / ROOT / row.needs[0], f"{line}\n")
    with pytest.raises(UserError, match=text) as error:
        read_index(row, "test", tmp_path)
    assert "\n" not in str(error.value)


def test_another_number_of_images_is_refused(tmp_path: Path) -> None:
    listed(tmp_path, "openood-cifar10-tin", ["tin/val/1.png -1"])
    with pytest.raises(UserError, match="has 1 test images; the catalog says 7,793"):
        read_index(catalog.get_dataset("openood-cifar10-tin"), "test", tmp_path)


def test_a_recipe_names_a_benchmark(tmp_path: Path) -> None:
    """All of ImageNet's textures, one picture under many names, open as a set of the size of the network's input."""
    row = catalog.get_dataset("openood-imagenet-textures")
    names = [f"texture/banded/banded_{number:04d}.jpg" for number in range(row.test)]
    write(tmp_path / ROOT / row.needs[0], "".join(f"{name} -1\n" for name in names))
    write(tmp_path / ROOT / "images_classic" / names[0], picture((40, 30)))
    for name in names[1:]:
        os.link(tmp_path / ROOT / "images_classic" / names[0], tmp_path / ROOT / "images_classic" / name)
    images = datasets.open_set(row.name, "ood", Data("imagenet", fraction=0.01), InputFormat(3, 16, 0.875), tmp_path)
    assert len(images) == 52
    recipe = Recipe(
        data=Data("fashion-mini-known"),
        grid=Grid(networks=("small",)),
        evaluate=Evaluation(ood=("openood-imagenet",)),
    )
    assert suites.with_groups_expanded(recipe).evaluate.ood == GROUPS["openood-imagenet"]
    with pytest.raises(UserError, match=r"test_ssb_hard.txt is missing .*download.sh of github.com/Jingkang50/OpenOOD"):
        suites.check_recipe(recipe, tmp_path)

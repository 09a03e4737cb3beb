import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from anchored.data.catalog import registry as catalog
from anchored.data.catalog.registry import CATALOG
from anchored.data.catalog.row import DataSet
from anchored.errors import UserError

ROWS = pytest.mark.parametrize("row", CATALOG.values(), ids=CATALOG)


@ROWS
def test_a_row_fits_together(row: DataSet) -> None:
    assert CATALOG[row.name] is row
    if "train" in row.roles:
        assert len(row.mean) == len(row.std) == row.channels
    assert len(row.mean) == len(row.std)
    assert all(0 < value < 1 for value in row.mean + row.std)
    assert len(set(row.classes)) == len(row.classes)
    if row.clean:
        clean = catalog.get_dataset(row.clean)
        assert row.roles == ("corrupted",)
        assert (row.file_classes, row.test, row.size) == (clean.file_classes, clean.test, clean.size)
        assert len(set(row.corruptions)) == len(row.corruptions) in (10, 19)
    else:
        assert len(row.classes) == len(row.keep or range(row.file_classes))
        assert len(row.folders or row.classes) == len(row.classes)
    assert row.test > 0
    assert (row.train > 0) == bool({"train", "adaptation"} & set(row.roles))
    assert row.licence
    assert row.citation
    assert len(set(row.subset)) == len(row.subset) in (0, row.test)


@ROWS
def test_what_a_row_needs_is_brought_by_its_parts(row: DataSet) -> None:
    tops = {name for part in row.parts for name in (part.name, *part.makes, *part.holds)}
    if row.parts:
        assert {need.split("/")[0] for need in row.needs} <= tops
        assert row.images.split("/")[0] in tops | {"", "."}
    else:
        assert row.reader in ("idx", "procedural") or row.manual
    for part in row.parts:
        assert bool(part.makes) + bool(part.holds) <= 1
        assert all(url.startswith(("https://", "http://")) for url in part.urls)
        assert part.urls or row.manual


UNPUBLISHED = {"UCF-101-midframes.zip", "imagenet_c_bar.tar.gz"}  # no source was found that states their hash


@ROWS
def test_every_download_has_a_hash(row: DataSet) -> None:
    for file in row.downloads:
        assert (file.hash is None) == (file.name in UNPUBLISHED)
        assert file.bytes is None or file.bytes > 0
    for file in (*row.parts, *row.train_files, *row.test_files):
        kind, _, digest = (file.hash or file.content or "md5:" + "0" * 32).partition(":")
        assert len(digest) == {"md5": 32, "sha256": 64}[kind]
        assert set(digest) <= set("0123456789abcdef")


@ROWS
def test_a_tar_that_is_read_from_is_none_by_its_size_only_if_it_is_compressed(row: DataSet) -> None:
    for file in row.parts:
        if file.holds and file.name.endswith(".tar") and file.bytes:
            assert (file.bytes % 512 != 0) == file.compressed, file.name  # a tar is made of blocks of 512 bytes


def test_the_papers_sets_are_there_under_the_papers_titles() -> None:
    titles = {row.title: row for row in CATALOG.values()}
    for title in ("LSUN (C)", "LSUN (R)", "iSUN", "Textures", "Places365", "Tiny Imagenet", "NINCO", "CIFAR-10"):
        assert "ood" in titles[title].roles
    for title in ("UCF101", "Food 101", "Flowers 102", "Stanford Cars", "Oxford Pets", "DTD", "CIFAR-10"):
        assert "adaptation" in titles[title].roles
    for title in ("CIFAR-10", "CIFAR-100", "ImageNet"):
        assert "train" in titles[title].roles
        for sign in ("C", "C̄"):
            assert titles[f"{title}-{sign}"].clean == titles[title].name


def test_counts_are_the_published_ones() -> None:
    counts = {
        "imagenet": (1_281_167, 50_000),
        "lsun-c": (0, 10_000),
        "lsun-r": (0, 10_000),
        "isun": (0, 8_925),
        "tiny-imagenet-r": (0, 10_000),
        "dtd-textures": (0, 47 * 120),
        "places365": (0, 10_000),
        "ninco": (0, 5_879),
        "ucf101": (9_537, 3_783),
        "food101": (101 * 750, 101 * 250),
        "flowers102": (1_020 + 1_020, 6_149),
        "stanford-cars": (8_144, 8_041),
        "oxford-pets": (3_680, 3_669),
        "dtd": (47 * 80, 47 * 40),
    }
    assert {name: (catalog.get_dataset(name).train, catalog.get_dataset(name).test) for name in counts} == counts


def test_titles_are_unique_and_the_papers() -> None:
    assert len({row.title for row in CATALOG.values()}) == len(CATALOG)
    assert (catalog.get_dataset("cifar10").title, catalog.get_dataset("cifar100").title) == ("CIFAR-10", "CIFAR-100")


def test_known_and_novel_classes_share_out_the_set() -> None:
    whole, known, novel = (catalog.get_dataset(f"fashion-mini{part}") for part in ("", "-known", "-novel"))
    assert known.classes == ("T-shirt/top", "Trouser", "Pullover", "Dress", "Sneaker", "Bag", "Ankle boot")
    assert novel.classes == ("Coat", "Sandal", "Shirt")
    assert known.train + novel.train == whole.train
    assert known.test + novel.test == whole.test


def test_cifar_files_have_the_official_layout() -> None:
    for name, count, width in (("cifar10", 10_000, 3073), ("cifar100", 50_000, 3074)):
        row = catalog.get_dataset(name)
        assert {file.bytes for file in row.train_files} == {count * width}
        assert sum(file.bytes or 0 for file in row.train_files) == row.train * width
        assert sum(file.bytes or 0 for file in row.test_files) == row.test * width
    assert len(catalog.get_dataset("cifar100").classes) == 100
    assert catalog.get_dataset("cifar100").mean != catalog.get_dataset("cifar10").mean


def test_an_unknown_name_gets_near_ones() -> None:
    with pytest.raises(UserError, match=r"^data set 'CIFAR-10' is not in the catalog; did you mean cifar10") as caught:
        catalog.get_dataset("CIFAR-10")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="nor is it a folder; known: fashion-mini, "):
        catalog.get_dataset("qqqq")


def test_it_imports_the_standard_library_only() -> None:
    script = "import sys, anchored.data.catalog.registry; print(*sorted(m.partition('.')[0] for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "yaml", "pooch", "rich"} & set(done.stdout.split())


def test_the_table_in_the_docs_is_the_catalogs() -> None:
    script = Path(__file__).parents[2] / "scripts" / "data_table.py"
    specification = importlib.util.spec_from_file_location("data_table", script)
    assert specification is not None
    assert specification.loader is not None
    table = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(table)
    assert table.main(["--check"]) == 0, "run python scripts/data_table.py"


@pytest.mark.parametrize(
    ("train", "near", "far", "synthetic"),
    [
        ("fashion-mini-known", "fashion-mini-novel", "digits textures photos", "gaussian-noise uniform-noise blobs"),
        ("fashion-mnist-novel", "fashion-mnist-known", "fashion-mini-novel", "blobs"),
        ("cifar10", "cifar100 tiny-imagenet-r", "lsun-c lsun-r isun dtd-textures places365 photos/", "blobs"),
        ("cifar100", "cifar10 tiny-imagenet-r", "lsun-c cifar100", ""),
        ("imagenet", "ninco", "lsun-c dtd-textures", ""),
    ],
)
def test_what_is_near_depends_on_the_training_set(train: str, near: str, far: str, synthetic: str) -> None:
    """As in OpenOOD 1.5; own images are far, since nobody has said that they are near."""
    for kind, names in (("near", near), ("far", far), ("synthetic", synthetic)):
        assert {catalog.ood_kind(name, train) for name in names.split()} <= {kind}
    assert all(other in CATALOG for row in CATALOG.values() for other in row.near_to)

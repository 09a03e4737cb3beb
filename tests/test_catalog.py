import subprocess
import sys

import pytest

from anchored import catalog
from anchored.catalog import CATALOG, DataSet
from anchored.errors import UserError

ROWS = pytest.mark.parametrize("row", CATALOG.values(), ids=CATALOG)


@ROWS
def test_a_row_fits_together(row: DataSet) -> None:
    assert CATALOG[row.name] is row
    assert len(row.mean) == len(row.std) == (row.channels if "train" in row.roles else len(row.mean))
    assert all(0 < value < 1 for value in row.mean + row.std)
    assert len(set(row.classes)) == len(row.classes)
    if "corrupted" not in row.roles:
        assert len(row.classes) == len(row.keep or range(row.file_classes))
    assert row.test > 0
    assert (row.train > 0) == ("train" in row.roles)
    assert row.licence
    assert row.citation


@ROWS
def test_every_download_has_a_hash(row: DataSet) -> None:
    for file in row.downloads:
        assert file.hash is not None
        assert file.hash.split(":")[0] in ("md5", "sha256")
        assert file.bytes is None or file.bytes > 0


def test_titles_are_unique_and_the_papers() -> None:
    assert len({row.title for row in CATALOG.values()}) == len(CATALOG)
    assert (catalog.get("cifar10").title, catalog.get("cifar100").title) == ("CIFAR-10", "CIFAR-100")


def test_known_and_novel_classes_share_out_the_set() -> None:
    whole, known, novel = (catalog.get(f"fashion-mini{part}") for part in ("", "-known", "-novel"))
    assert known.classes == ("T-shirt/top", "Trouser", "Pullover", "Dress", "Sneaker", "Bag", "Ankle boot")
    assert novel.classes == ("Coat", "Sandal", "Shirt")
    assert known.train + novel.train == whole.train
    assert known.test + novel.test == whole.test


def test_cifar_files_have_the_official_layout() -> None:
    for name, count, width in (("cifar10", 10_000, 3073), ("cifar100", 50_000, 3074)):
        row = catalog.get(name)
        assert {file.bytes for file in row.train_files} == {count * width}
        assert sum(file.bytes or 0 for file in row.train_files) == row.train * width
        assert sum(file.bytes or 0 for file in row.test_files) == row.test * width
    assert len(catalog.get("cifar100").classes) == 100
    assert catalog.get("cifar100").mean != catalog.get("cifar10").mean


def test_an_unknown_name_gets_near_ones() -> None:
    with pytest.raises(UserError, match=r"^data set 'CIFAR-10' is not in the catalog; did you mean cifar10") as caught:
        catalog.get("CIFAR-10")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="known: fashion-mini, "):
        catalog.get("qqqq")


def test_it_imports_the_standard_library_only() -> None:
    script = "import sys, anchored.catalog; print(*sorted(m.partition('.')[0] for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "yaml", "pooch", "rich"} & set(done.stdout.split())

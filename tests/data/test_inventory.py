"""anchored data list, show and verify, on small copies of sets."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixtures.catalog_copies import cifar_c, dtd, pack, picture, places, ucf101, write
from rich.console import Console

from anchored.cli.main import main
from anchored.data import inventory
from anchored.data.catalog import registry as catalog
from anchored.data.catalog.registry import CATALOG
from anchored.data.catalog.row import DataSet, File
from anchored.data.readers.arrays import READERS
from anchored.errors import UserError


def here(monkeypatch: pytest.MonkeyPatch, row: DataSet) -> DataSet:
    """Put a copy's row into the catalog; nothing is known of its archives' hashes."""
    row = replace(row, parts=tuple(replace(part, hash=None, bytes=None) for part in row.parts))
    monkeypatch.setitem(CATALOG, row.name, row)
    return row


def test_the_list_says_what_is_here_and_how_much_there_is_to_download(tmp_path: Path) -> None:
    write(tmp_path / "isun/iSUN/iSUN_patches/1.jpeg")
    console = Console(width=120)
    with console.capture() as captured:
        console.print(inventory.catalog_table(list(CATALOG.values()), tmp_path))
    lines = {line.split()[0]: line for line in captured.get().splitlines()}
    assert set(CATALOG) < set(lines)
    assert lines["isun"].split()[-2:] == ["?", "yes"]
    assert lines["cifar10"].split()[-3:] == ["170", "MB", "no"]
    assert lines["stanford-cars"].split()[-4:] == ["196", "1.96", "GB", "no"]
    assert lines["ucf101"].split()[-4:] == [">", "114", "kB", "no"]  # of the frames no size is published
    assert lines["imagenet"].split()[-3:] == ["by", "hand", "no"]
    assert lines["blobs"].split()[-2:] == ["–", "yes"]


def test_amounts() -> None:
    assert [inventory.format_bytes(count) for count in (0, 999, 1500, 2_918_471_680)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.92 GB",
    ]
    known, unknown = File(name="a", bytes=2000), File(name="b")
    assert inventory.total_size([known, known]) == "4 kB"
    assert inventory.total_size([known, unknown]) == "> 2 kB"
    assert inventory.total_size([unknown]) == "?"


def test_show_says_everything_a_person_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", "imagenet", "ucf101", "cifar10-c"]) == 0
    printed = capsys.readouterr().out
    for part in (
        "ILSVRC2012_img_train.tar, 148 GB, md5:1d675b47d978889d74fa0da5fadfb00e",
        "by hand: log in at image-net.org",
        "UCF-101-midframes.zip, ?, no published hash",
        "corrupted images of cifar10: gaussian_noise, shot_noise",
        "mean: 0.485, 0.456, 0.406",
        "licence: CC BY 4.0",
    ):
        assert part in printed


Copy = tuple[Callable[[Path], DataSet], str]


def blocks(name: str) -> Callable[[Path], DataSet]:
    return lambda root: cifar_c(root, name, packed=name.endswith("c"))[0]


@pytest.mark.parametrize(
    ("write_copy", "expected"),
    [
        (dtd, "whole, 6 train and 3 test images"),
        (
            ucf101,
            "whole, 2 train and 2 test images; UCF-101-midframes.zip cannot be verified (no hash of it is published)",
        ),
        (places, "whole, 3 test images; test_256.tar cannot be verified (no hash of it is published), and it was not"),
        (blocks("cifar10-c"), "whole, 3 files; CIFAR-10-C.tar cannot be verified"),
        (blocks("cifar100-c-bar"), "whole, 3 files"),
    ],
)
def test_whole_sets_are_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_copy: Callable[[Path], DataSet], expected: str
) -> None:
    row = here(monkeypatch, write_copy(tmp_path))
    assert inventory.verify_dataset(row, tmp_path).startswith(expected)
    assert inventory.verify_dataset(row, tmp_path, every=True).startswith(expected)


def test_a_set_that_is_here_in_part_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert inventory.verify_dataset(catalog.get_dataset("dtd"), tmp_path) == "not here"
    row = here(monkeypatch, dtd(tmp_path))
    (tmp_path / "dtd/dtd/labels").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"DTD is here in part: dtd/labels is missing; run 'anchored data fetch dtd'"):
        inventory.verify_dataset(row, tmp_path)


def test_imagenet_c_is_read_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wnids = ("n01440764", "n01443537")
    here(monkeypatch, replace(CATALOG["imagenet"], folders=wnids, classes=("a", "b")))
    files = {
        f"{corruption}/{severity}/{wnid}/ILSVRC2012_val_{i:08d}.JPEG": picture((224, 224))
        for corruption in ("fog", "frost")
        for severity in range(1, 6)
        for i, wnid in enumerate(wnids)
    }
    pack(tmp_path / "imagenet-c/weather.tar", files)
    row = here(
        monkeypatch, replace(CATALOG["imagenet-c"], corruptions=("fog", "frost"), needs=("fog", "frost"), test=2)
    )
    assert inventory.verify_dataset(row, tmp_path).startswith(
        "whole, 10 sets of 2 images; weather.tar cannot be verified"
    )


def test_severities_of_c_bar_are_compared_with_the_clean_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, arrays = cifar_c(tmp_path, "cifar10-c-bar", packed=False)
    here(monkeypatch, row)
    clean = np.zeros((4, 3, 32, 32), np.uint8)
    monkeypatch.setattr(inventory, "is_here", lambda row, root: True)
    monkeypatch.setitem(READERS, "cifar_binary", lambda *_: (clean, np.zeros(4, np.uint8)))
    assert inventory.verify_dataset(row, tmp_path) == "whole, 3 files"
    corruption = row.corruptions[1]
    np.save(tmp_path / "cifar10-c-bar" / row.images / f"{corruption}.npy", arrays[corruption][::-1])
    with pytest.raises(UserError, match=rf"{corruption}\.npy .* its severities are not in the order 1 to 5"):
        inventory.verify_dataset(row, tmp_path)


def test_a_damaged_set_ends_verify_with_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = here(monkeypatch, dtd(tmp_path))
    monkeypatch.setenv("ANCHORED_DATA", str(tmp_path))
    assert main(["data", "verify", "dtd", "--every"]) == 0
    assert capsys.readouterr().out == "dtd: whole, 6 train and 3 test images\n"
    write(tmp_path / f"dtd/dtd/images/{row.classes[1]}/{row.classes[1]}_0002.jpg", b"not an image")
    assert main(["data", "verify", "dtd"]) == 2
    assert "_0002.jpg is not an image" in capsys.readouterr().err


def test_fetch_offline_says_what_to_bring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANCHORED_DATA", str(tmp_path))
    assert main(["data", "fetch", "--offline", "cifar10-c"]) == 2
    said = capsys.readouterr().err
    assert "the network is off (offline): bring https://zenodo.org/records/2535967/files/CIFAR-10-C.tar by hand" in said

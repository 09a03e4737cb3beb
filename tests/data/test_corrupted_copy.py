"""``anchored corrupt``: the archives' layouts, written in pieces, and read back by the evaluation."""

import dataclasses
import errno
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anchored.cli.main import main
from anchored.config.settings import Data, Evaluation
from anchored.corruptions import registry as corruptions
from anchored.data import corrupted_copy, datasets, image_sets, originals
from anchored.data.catalog import registry as catalog
from anchored.data.catalog.row import DataSet
from anchored.data.preprocessing import InputFormat, fit_to_input, tensor_to_pil
from anchored.errors import UserError
from anchored.evaluation import evaluator
from anchored.store import files as disk
from anchored.store.layout import CorruptedFolder

SMALL = ["--corruptions", "[contrast, gaussian_noise]"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of colour images: five of 40 × 36, one of 50 × 36."""
    folder = tmp_path / "photos"
    images = datasets.load_split("photos", "test").images[:18].view(6, 3, 28, 28)
    for i, image in enumerate(fit_to_input(images, 3, 50)):
        cut = image[:, :36, : 50 if i == 5 else 40]
        file = folder / ("cat" if i < 2 else "dog") / f"image{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        tensor_to_pil(cut).save(file)
    return folder


def pixels(folder: Path) -> list[torch.Tensor]:
    return [torch.from_numpy(opened(file)).permute(2, 0, 1) for file in sorted(folder.glob("*/*.png"))]


def opened(file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with Image.open(file) as image:
        return np.array(image)


def test_folders_as_imagenet_c(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["corrupt", str(photos), "-o", str(out), *SMALL, "--severities", "[2, 5]", "--seed", "3"]) == 0
    assert "6 images × 2 corruptions × 2 severities" in capsys.readouterr().out
    files = sorted(file.relative_to(out).as_posix() for file in out.rglob("*.JPEG"))
    assert len(files) == 6 * 2 * 2
    assert files[0] == "contrast/2/cat/image0.JPEG"
    for index, image in enumerate(pixels(photos)):
        expected = corruptions.corrupt(image[None], "gaussian_noise", 5, seed=3, indices=torch.tensor([index]))[0]
        file = io.BytesIO()
        tensor_to_pil(expected).save(file, "JPEG", quality=85, optimize=True)
        place = "cat" if index < 2 else "dog"
        assert (out / "gaussian_noise" / "5" / place / f"image{index}.JPEG").read_bytes() == file.getvalue()
    height, width = opened(out / "contact-sheet.png").shape[:2]
    assert width > 190 + 3 * 80
    assert height > 2 * 70


def test_a_folder_is_found_by_its_name(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.rename(tmp_path / "mine").parent)
    assert main(["corrupt", "mine", "-o", "out", *SMALL, "--severities", "[1]"]) == 0
    assert main(["corrupt", "mine/", "-o", "out", *SMALL, "--severities", "[1]"]) == 0  # the same request
    assert len(list((tmp_path / "out").rglob("*.JPEG"))) == 6 * 2


def test_blocks_as_cifar_c(photos: Path, tmp_path: Path) -> None:
    (photos / "dog" / "image5.png").unlink()
    out = tmp_path / "out"
    assert main(["corrupt", str(photos), "-o", str(out), "--layout", "npy", *SMALL]) == 0
    blocks, labels = np.load(out / "contrast.npy"), np.load(out / "labels.npy")
    assert blocks.shape == (25, 36, 40, 3)
    assert blocks.dtype == np.uint8
    assert labels.tolist() == [0, 0, 1, 1, 1] * 5
    stacked = torch.stack(pixels(photos))
    for severity in (1, 2, 3, 4, 5):
        expected = corruptions.corrupt(stacked, "contrast", severity, seed=0).permute(0, 2, 3, 1).numpy()
        assert np.array_equal(blocks[5 * (severity - 1) : 5 * severity], expected)


@pytest.mark.parametrize("layout", ["npy", "folders"])
def test_it_goes_on_after_a_kill(
    layout: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = ["corrupt", str(photos), "--layout", layout, "--size", "32", *SMALL]
    assert main([*command, "-o", str(whole)]) == 0
    monkeypatch.setattr(corrupted_copy, "_BATCH", 2)
    real, calls = corruptions.corrupt, []

    def dies(images: torch.Tensor, *rest: object, **named: object) -> torch.Tensor:
        calls.append(named["indices"])
        if len(calls) > 15 + (5 if layout == "npy" else 0):
            raise KeyboardInterrupt
        return real(images, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(corruptions, "corrupt", dies)
    assert main([*command, "-o", str(broken)]) == 130
    done = json.loads((broken / "done.json").read_text())["images"]
    assert done in (2, 4)
    assert not (broken / "contrast.npy").exists()
    monkeypatch.setattr(corruptions, "corrupt", real)
    for place in (broken, broken / "contrast" / "1" if layout == "folders" else broken):
        disk.write_bytes(place / f".x.abc{disk.UNFINISHED}", b"half")
    capsys.readouterr()
    assert main([*command, "-o", str(broken)]) == 0
    assert f"{done} images done already" in capsys.readouterr().out
    assert not list(broken.rglob(f".*{disk.UNFINISHED}"))
    files = {file.relative_to(whole): file.read_bytes() for file in whole.rglob("*") if file.is_file()}
    assert {file.relative_to(broken): file.read_bytes() for file in broken.rglob("*") if file.is_file()} == files
    before = {file: file.stat().st_mtime_ns for file in broken.rglob("*.JPEG")}
    assert main([*command, "-o", str(broken)]) == 0  # nothing is left to do
    assert {file: file.stat().st_mtime_ns for file in broken.rglob("*.JPEG")} == before


def test_bad_requests_are_one_line(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, empty, full = tmp_path / "out", tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    (full / "thesis.tex").write_text("precious")
    np.save(tmp_path / "floats.npy", np.zeros((3, 4, 4)))
    np.save(tmp_path / "nothing.npy", np.zeros((3, 0, 4, 3), np.uint8))
    (tmp_path / "text.npy").write_text("no array")
    assert main(["corrupt", str(photos), "-o", str(out), *SMALL, "--severities", "[1]"]) == 0
    capsys.readouterr()
    for arguments, said in (
        ([str(photos), "-o", str(out), *SMALL, "--severities", "[1]", "--seed", "1"], "another request (seed: 0 there"),
        ([str(photos), "-o", str(full)], "is not empty"),
        ([str(photos), "-o", str(tmp_path / "a"), "--layout", "npy"], "several sizes, 40 × 36 px"),
        ([str(photos), "-o", str(tmp_path / "a"), "--layout", "npy", "--severities", "[1]"], "five blocks"),
        ([str(photos), "-o", str(tmp_path / "a"), "--severities", "[0]"], "--severities has 0"),
        ([str(photos), "-o", str(tmp_path / "a"), "--corruptions", "[fogg]"], "fogg"),
        ([str(photos), "-o", str(tmp_path / "a"), "--size", "-1"], "size is -1"),
        ([str(photos), "-o", str(tmp_path / "a"), "--layout", "zip"], "layout"),
        ([str(empty), "-o", str(tmp_path / "a")], "holds no images"),
        ([str(tmp_path / "nowhere"), "-o", str(tmp_path / "a")], "nowhere"),
        ([str(tmp_path / "floats.npy"), "-o", str(tmp_path / "a")], "holds float64 (3, 4, 4)"),
        ([str(tmp_path / "nothing.npy"), "-o", str(tmp_path / "a")], "holds uint8 (3, 0, 4, 3)"),
        ([str(photos), "-o", str(tmp_path / "a"), "--corruptions", "[]"], "no corruptions are named"),
        ([str(tmp_path / "text.npy"), "-o", str(tmp_path / "a")], "text.npy"),
        (["cifar11", "-o", str(tmp_path / "a")], "cifar11"),
    ):
        assert main(["corrupt", *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert said in error, arguments
        assert error.count("\n") == 1
        assert not (tmp_path / "a").exists()
    (photos / "dog" / "image3.png").write_bytes((photos / "dog" / "image3.png").read_bytes()[:200])
    assert main(["corrupt", str(photos), "-o", str(tmp_path / "b"), *SMALL]) == 2
    error = capsys.readouterr().err
    assert "image3.png" in error
    assert error.count("\n") == 1


def test_an_array_file(tmp_path: Path) -> None:
    images = datasets.load_split("photos", "test").images[:4, 0].numpy()
    np.save(tmp_path / "grey.npy", np.asfortranarray(images))
    out = tmp_path / "out"
    assert main(["corrupt", str(tmp_path / "grey.npy"), "-o", str(out), "--layout", "npy", *SMALL]) == 0
    expected = corruptions.corrupt(torch.from_numpy(images)[:, None], "gaussian_noise", 2, seed=0)
    assert np.array_equal(np.load(out / "gaussian_noise.npy")[4:8, ..., 0], expected[:, 0].numpy())
    assert not (out / "labels.npy").exists()


# --- names, two at once, a full disk


def own_images(*files: str) -> None:
    for i, file in enumerate(files):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 20 * i).save(file, "PNG")


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (("a-2.png", "a.jpg", "a.png"), {"a", "a-2", "a-3"}),
        (("a.jpg", "a.png", "a.bmp", "a-2.png"), {"a", "a-2", "a-3", "a-4"}),
        (("x/a.png", "x/b/a.png", "x-y/a.png"), {"x/a", "x/a-2", "x-y/a"}),
    ],
)
def test_every_image_has_a_file_of_its_own(
    files: tuple[str, ...], names: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own_images(*(f"mine/{file}" for file in files))
    assert main(["corrupt", "mine", "-o", "out", "--corruptions", "[contrast]", "--severities", "[1]"]) == 0
    written = {file.relative_to("out/contrast/1").with_suffix("").as_posix() for file in Path("out").rglob("*.JPEG")}
    assert written == names


def test_classes_that_would_share_a_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own_images("1.png", "2.png")
    for labels, said in (
        (("a/b", "a-b"), "'a-b' and 'a/b' would share a folder"),
        (("..", "a"), "class '..' gives no name"),
    ):
        Path("own.csv").write_text("path,label\n" + "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels, 1)))
        command = ["corrupt", "own.csv", "-o", "out", "--corruptions", "[contrast]"]
        assert main(command) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
        assert not Path("out").exists()
    assert main([*command, "--layout", "npy"]) == 0


def test_a_folder_called_as_a_set_of_the_catalog_is_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own_images("digits/a.png", "digits/b.png")
    options = ["-o", "out", "--corruptions", "[contrast]", "--severities", "[1]"]
    assert main(["corrupt", "digits", *options]) == 2
    assert "write 'digits/' for the folder, 'catalog:digits' for the set" in capsys.readouterr().err
    assert not Path("out").exists()
    assert main(["corrupt", "digits/", *options]) == 0
    assert len(list(Path("out").rglob("*.JPEG"))) == 2
    assert main(["corrupt", "catalog:digitz", *options]) == 2
    assert originals.resolve_source("catalog:digits") == "digits"


@pytest.mark.parametrize("layout", ["npy", "folders"])
def test_two_at_once_do_not_write_into_one_folder(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own_images("mine/a.png", "mine/b.png")
    command = ["corrupt", "mine", "-o", "out", "--corruptions", "[contrast]", "--layout", layout]
    with disk.locked(CorruptedFolder(Path("out")).lock_file):
        assert main(command) == 2
        assert "another process is writing out: wait for it" in capsys.readouterr().err
        assert [file.name for file in Path("out").iterdir()] == [".lock"]
    assert main(command) == 0


def test_blocks_are_on_the_disk_before_they_are_said_to_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own_images("mine/a.png", "mine/b.png", "mine/c.png")
    monkeypatch.setattr(corrupted_copy, "_BATCH", 2)
    told, write_json, flush = list[str](), disk.write_json, np.memmap.flush

    def noting_json(path: Path, value: object) -> None:
        told.append(path.name)
        write_json(path, value)

    def noting_flush(blocks: "np.memmap[tuple[int, ...], np.dtype[np.uint8]]") -> None:
        told.append("flush")
        flush(blocks)

    monkeypatch.setattr(disk, "write_json", noting_json)
    monkeypatch.setattr(np.memmap, "flush", noting_flush)
    assert main(["corrupt", "mine", "-o", "out", "--layout", "npy", *SMALL]) == 0
    assert [name for name in told if name != "request.json"][-6:] == ["flush", "flush", "done.json"] * 2


def test_a_full_disk_is_one_line_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own_images("mine/a.png", "mine/b.png")
    command = ["corrupt", "mine", "-o", "out", "--layout", "npy", *SMALL]
    real, asked = os.posix_fallocate, []

    def full(handle: int, start: int, size: int) -> None:
        asked.append(size)
        if len(asked) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle, start, size)

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "cannot write out/.gaussian_noise.part.npy: no space left on device" in error
    assert error.count("\n") == 1
    assert not list(Path("out").glob("*.npy"))
    assert not list(Path("out").glob(".*.npy"))
    assert main(command) == 0
    assert asked[2:] == [Path(f"out/{name}.npy").stat().st_size for name in ("contrast", "gaussian_noise")]


# --- the evaluation reads what was written


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    """An archive of textures (its test images) under two corruptions, in CIFAR-10-C's layout, as a catalog row."""
    monkeypatch.setenv("ANCHORED_DATA", str(tmp_path))
    out = tmp_path / "toy-c" / "TOY-C"
    assert main(["corrupt", "fashion-mini-novel", "-o", str(out), "--layout", "npy", *SMALL, "--seed", "5"]) == 0
    row = dataclasses.replace(
        catalog.get_dataset("cifar10-c"), name="toy-c", clean="fashion-mini-novel", channels=1, size=28, test=600,
        folder="toy-c", images="TOY-C", corruptions=("contrast", "gaussian_noise"), parts=(), needs=(), test_files=(),
    )  # fmt: skip
    monkeypatch.setitem(catalog.CATALOG, "toy-c", row)
    return row


def test_an_archive_is_read_as_it_was_made(archive: DataSet) -> None:
    view = InputFormat(1, 28)
    clean = datasets.load_split("fashion-mini-novel", "test")
    for name, severity in (("contrast", 1), ("gaussian_noise", 4)):
        found = datasets.open_corrupted("toy-c", name, severity, Data(), view)
        expected = corruptions.corrupt(clean.images, name, severity, seed=5)
        assert torch.equal(next(found.parts([torch.arange(600)])), expected)
        assert torch.equal(found.labels, clean.labels)
        assert found.classes == clean.classes


def test_the_archive_of_a_set_is_found(archive: DataSet) -> None:
    assert evaluator.archive_of("fashion-mini-novel", "contrast") == "toy-c"
    assert evaluator.archive_of("cifar10", "sparkles") == "cifar10-c-bar"
    assert evaluator.archive_of("cifar10", "fog") == "cifar10-c"
    with pytest.raises(UserError, match="no archive of digits under fog"):
        evaluator.archive_of("digits", "fog")


def test_families_are_expanded_for_the_networks_size() -> None:
    settings = Evaluation(corruptions=("c15", "fog", "c-bar"))
    small, large = (evaluator.corruptions_of(settings, InputFormat(3, size)) for size in (28, 224))
    assert len(small) == len(large) == 25
    assert "ripple" in small
    assert "perlin_noise" in large
    common = Evaluation(corruptions=("c",))
    assert len(evaluator.corruptions_of(common, InputFormat(3, 32))) == 19
    assert len(evaluator.corruptions_of(common, InputFormat(1, 32))) == 18
    archive = Evaluation(corruptions=("c",), corruption_source="archive")  # its images were corrupted in colour
    assert len(evaluator.corruptions_of(archive, InputFormat(1, 32))) == 19


# --- the next batch is made meanwhile


def test_items_come_in_order_one_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(5):
            made.append(i)
            yield i

    seen = []
    for item in image_sets.ahead(items()):
        seen.append(item)
        assert len(made) <= len(seen) + 1
    assert seen == [0, 1, 2, 3, 4]


def test_what_goes_wrong_ahead_is_raised() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise UserError("one line")

    with pytest.raises(UserError, match="one line"):
        list(image_sets.ahead(items()))

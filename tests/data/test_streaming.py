"""Streams: the same images as in memory, whatever the number of workers; per-image augmentation by (seed, epoch, i)."""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from fixtures.own_images import class_folders, photographs
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from anchored.config.recipe import Recipe
from anchored.config.settings import Data, Training
from anchored.corruptions.randomness import image_keys
from anchored.data import datasets
from anchored.data.augmentation import Augmentation, AutoAugment
from anchored.data.batches import Batches
from anchored.data.image_sets import ImageSet, ImageStream
from anchored.data.image_sources import index_files, list_images
from anchored.data.preprocessing import InputFormat, Interpolation
from anchored.errors import UserError
from anchored.store import files
from anchored.store.layout import Run
from anchored.training.fit import train

VIEW = InputFormat(3, 24)


def stream_of(folder: Path, workers: int, view: InputFormat = VIEW) -> ImageStream:
    paths = [folder / name for name in list_images(folder)]
    index = replace(index_files(paths), labels=np.arange(len(paths)))
    return ImageStream("photos", index, tuple(map(str, range(len(paths)))), view, torch.arange(len(paths)), workers)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("photos") / "here", 12)


def together(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


# --- One image


def test_a_view_is_shorter_side_then_middle() -> None:
    pixels = torch.randint(0, 256, (60, 100, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    image = Image.fromarray(pixels)
    small = image.resize((53, 32), Image.Resampling.BILINEAR)  # 28 / 0.875 = 32; 100 · 32 / 60 = 53.3
    expected = np.asarray(small)[2:30, 12:40]  # (53 − 28) / 2 = 12.5, rounded half to even
    assert np.array_equal(InputFormat(3, 28, 0.875)(image).permute(1, 2, 0).numpy(), expected)
    bicubic = np.asarray(image.resize((53, 32), Image.Resampling.BICUBIC))[2:30, 12:40]
    assert np.array_equal(InputFormat(3, 28, 0.875, "bicubic")(image).permute(1, 2, 0).numpy(), bicubic)


@pytest.mark.parametrize("size", [(60, 100), (101, 57), (28, 29), (33, 300), (20, 21)])
@pytest.mark.parametrize("crop", [1.0, 0.875, 0.6])
@pytest.mark.parametrize("interpolation", get_args(Interpolation))
def test_a_view_is_torchvisions_resize_and_center_crop(
    size: tuple[int, int], crop: float, interpolation: Interpolation
) -> None:
    pixels = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)).numpy()
    mode = v2.InterpolationMode(interpolation)
    theirs = v2.Compose([v2.Resize(int(28 / crop), interpolation=mode), v2.CenterCrop(28), v2.PILToTensor()])
    assert torch.equal(
        InputFormat(3, 28, crop, interpolation)(Image.fromarray(pixels)), theirs(Image.fromarray(pixels))
    )


def test_a_view_leaves_the_inputs_size_alone() -> None:
    pixels = torch.randint(0, 256, (28, 28, 3), dtype=torch.uint8).numpy()
    assert np.array_equal(InputFormat(3, 28, 0.875)(Image.fromarray(pixels)).permute(1, 2, 0).numpy(), pixels)
    grey = Image.fromarray(pixels[:, :, 0])
    assert torch.equal(InputFormat(3, 28)(grey), torch.from_numpy(pixels[:, :, 0]).expand(3, -1, -1))
    assert np.array_equal(
        InputFormat(1, 28)(Image.fromarray(pixels))[0].numpy(), np.asarray(Image.fromarray(pixels).convert("L"))
    )


def test_what_cannot_be_seen_is_one_line() -> None:
    with pytest.raises(UserError, match=r"5100 × 100 pixels is too long"):
        InputFormat(1, 28)(Image.new("L", (5100, 100)))
    with pytest.raises(UserError, match=r"crop is 1\.5"):
        InputFormat(1, 28, 1.5)


# --- A set


def test_workers_and_memory_give_the_same_images(photos: Path) -> None:
    alone, helped = stream_of(photos, 0), stream_of(photos, 2)
    batches = torch.split(torch.tensor([3, 1, 4, 1, 5, 9, 2, 6]), 3)
    expected = torch.stack([VIEW(Image.open(photos / name).convert("RGB")) for name in list_images(photos)])
    for stream in (alone, helped):
        parts = list(stream.parts(batches))
        assert [len(part) for part in parts] == [3, 3, 2]
        assert torch.equal(torch.cat(parts), expected[torch.cat(batches)])
    taken = helped.take(torch.tensor([7, 2]))
    assert torch.equal(next(taken.parts([torch.tensor([1, 0])])), expected[[2, 7]])
    assert taken.labels.tolist() == [7, 2]


@pytest.mark.parametrize("settings", [{"crop_padding": 3, "flip": True}, {}])
def test_batches_of_a_stream_are_those_of_memory(photos: Path, settings: dict[str, object]) -> None:
    stream = stream_of(photos, 2)
    (pixels,) = stream.parts([torch.arange(12)])
    memory = ImageSet("photos", pixels, stream.labels, stream.classes)
    for epoch in (0, 1):
        both = []
        for images in (memory, stream):
            batches = Batches(images, 5, (0.5,) * 3, (0.2,) * 3, seed=3, shuffle=True, **settings)  # type: ignore[arg-type]
            batches.set_epoch(epoch)
            both.append(together(list(batches)))
        assert torch.equal(both[0][0], both[1][0])
        assert torch.equal(both[0][1], both[1][1])


def test_resized_crops_are_torchvisions_by_seed_epoch_and_index(photos: Path) -> None:
    def epoch(workers: int, number: int, size: int, shard: tuple[int, int] = (0, 1)) -> dict[int, Tensor]:
        batches = Batches(
            stream_of(photos, workers), size, (0.0,) * 3, (1 / 255,) * 3, seed=7, shuffle=True, flip=True,
            resized_crop=True, shard=shard,
        )  # fmt: skip
        batches.set_epoch(number)
        return {int(label): image for images, labels in batches for label, image in zip(labels, images, strict=True)}

    before = torch.get_rng_state()
    first = epoch(0, 2, 5)
    assert torch.equal(before, torch.get_rng_state())
    for other in (epoch(2, 2, 5), epoch(2, 2, 3), {**epoch(0, 2, 4, (0, 2)), **epoch(0, 2, 4, (1, 2))}):
        assert first.keys() == other.keys() == set(range(12))
        assert all(torch.equal(first[label], other[label]) for label in first)
    assert not torch.equal(first[0], epoch(0, 3, 5)[0])
    reference = v2.Compose([v2.RandomResizedCrop(24), v2.RandomHorizontalFlip()])
    with torch.random.fork_rng(devices=[]):
        for label, key in enumerate(image_keys(7, "augmentation/2", torch.arange(12)).tolist()):
            torch.manual_seed(key)
            image = reference(Image.open(photos / list_images(photos)[label]))
            torch.testing.assert_close(first[label], functional.pil_to_tensor(image).float(), atol=1e-3, rtol=0)


def test_images_in_memory_take_single_image_augmentations(photos: Path) -> None:
    stream = stream_of(photos, 0, InputFormat(3, 60))
    (pixels,) = stream.parts([torch.arange(12)])
    memory = ImageSet("photos", pixels, stream.labels, stream.classes)
    for policy in get_args(AutoAugment):
        augmentation = Augmentation(1, 0, policy=policy)
        (part,) = memory.parts([torch.tensor([2, 5])], augmentation)
        (again,) = memory.parts([torch.tensor([5])], augmentation)
        assert part.shape == (2, 3, 60, 60)
        assert torch.equal(part[1:], again)


def test_streams_shard_without_duplicates(photos: Path) -> None:
    for shuffle, sizes in ((True, [4, 4, 4]), (False, [4, 4, 4])):
        shards = [
            Batches(stream_of(photos, 0), 3, (0.0,) * 3, (1.0,) * 3, shuffle=shuffle, shard=(rank, 3))
            for rank in range(3)
        ]
        labels = [together(list(shard))[1].tolist() for shard in shards]
        assert list(map(len, labels)) == sizes
        assert sorted(label for own_labels in labels for label in own_labels) == list(range(12))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_one_line_with_its_name(photos: Path, tmp_path: Path, workers: int) -> None:
    folder = photographs(tmp_path / "some", 4)
    (folder / "photo 2.jpg").write_bytes((folder / "photo 2.jpg").read_bytes()[:400])
    stream = stream_of(folder, workers)
    with pytest.raises(UserError, match=r"photo 2\.jpg is not a whole image \(.*\): replace or move it") as raised:
        list(stream.parts(torch.split(torch.arange(4), 2)))
    assert "\n" not in str(raised.value)
    first, second = stream.attempts(torch.split(torch.arange(4), 2))
    assert first[1] == {}
    assert list(second[1]) == [0]
    assert second[0][0].eq(0).all()
    assert second[0][1].ne(0).any()


@pytest.mark.timeout(60)
def test_a_worker_that_is_killed_is_one_line_where_images_are_asked_for(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    parts = stream_of(photos, 2).parts(torch.split(torch.arange(12).repeat(20), 4))
    next(parts)
    (victim, *_) = multiprocessing.active_children()
    os.kill(victim.pid or 0, signal.SIGKILL)
    victim.join()  # torch's own handler would raise here, in the middle of anything
    with pytest.raises(UserError, match=r"a process that reads photos was killed.*: lower data\.workers") as raised:
        list(parts)
    assert "\n" not in str(raised.value)


# --- Memory or stream: nobody above asks


def test_the_limit_decides_and_the_weights_do_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    class_folders(Path("images"), 20)
    settings = datasets.with_content_hash(Data("images/", fraction=0.5))
    seen = datasets.input_format(settings)
    small, big = replace(settings, memory=0.0, workers=2), settings
    kinds = [type(datasets.open_set("images/", "train", each, seen)) for each in (small, big)]
    assert kinds == [ImageStream, ImageSet]
    assert isinstance(datasets.open_set("images/", "train", big, seen, originals=True), ImageStream)
    assert isinstance(datasets.open_set("digits", "test", small, seen), ImageSet)  # arrays are there anyway
    assert datasets.training_row(small).mean == datasets.training_row(big).mean
    recipe = Training(epochs=2, batch_size=8, learning_rate=0.05, crop_padding=2, accelerator="cpu")
    found = []
    for name, each in (("small", small), ("big", big)):
        run = Run(tmp_path / name)
        cell = replace(
            next(Recipe().cells()), network="small", protocol="ram", mask_probability=0.3, data=each, train=recipe
        )
        train(run, cell)
        found.append(files.load_tensors(run.weights_file)[0])
        assert "memory" not in files.read_json(run.cell_file)["data"]
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_arrays_beyond_the_limit_are_resized_as_they_are_needed() -> None:
    settings = Data("fashion-mini", fraction=0.01, size=40)
    seen = datasets.input_format(settings)
    assert seen == InputFormat(1, 40)
    whole = datasets.open_set("digits", "test", settings, seen)
    lazy = datasets.open_set("digits", "test", replace(settings, memory=0.0), seen)
    assert isinstance(lazy, ImageSet)
    assert lazy.images.shape[2] == 28
    batches = torch.split(torch.arange(len(whole)), 7)
    assert torch.equal(torch.cat(list(lazy.parts(batches))), torch.cat(list(whole.parts(batches))))

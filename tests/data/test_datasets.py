import dataclasses
import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator, Tensor

from anchored.config.settings import Data
from anchored.data import datasets
from anchored.data.augmentation import Augmentation, crop_and_flip
from anchored.data.batches import Batches
from anchored.data.catalog import registry as catalog
from anchored.data.catalog.registry import CATALOG
from anchored.data.image_sets import ImageSet
from anchored.data.preprocessing import fit_to_input, to_input
from anchored.errors import UserError
from anchored.evaluation.sets import NamedSets

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
HERE = [name for name, row in CATALOG.items() if not (row.downloads or row.manual)]


def official(name: str) -> Tensor:
    """Read one of Debian's files without our reader."""
    content = gzip.decompress((DEBIAN / name).read_bytes())
    header = 16 if "idx3" in name else 8
    array = torch.tensor(np.frombuffer(content, np.uint8, offset=header))
    return array.view(-1, 1, 28, 28) if "idx3" in name else array.long()


def moments(images: Tensor) -> tuple[list[float], list[float]]:
    levels = images.double() / 255
    return levels.mean((0, 2, 3)).tolist(), levels.std((0, 2, 3), correction=0).tolist()


def message(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- the sets inside the package


@pytest.mark.parametrize("name", HERE)
def test_a_row_states_its_own_counts_mean_and_std(name: str) -> None:
    row = catalog.get_dataset(name)
    for split, count in (("train", row.train), ("test", row.test)):
        if count:
            images = datasets.load_split(name, split)
            assert images.images.shape == (count, row.channels, row.size, row.size)
            assert torch.unique(images.labels).tolist() == list(range(len(row.classes)))
    mean, std = moments(datasets.load_split(name, "train" if row.train else "test").images)
    assert mean == pytest.approx(row.mean, abs=1e-6)
    assert std == pytest.approx(row.std, abs=1e-6)


@pytest.mark.parametrize("name", ["fashion-mini", "digits"])
def test_classes_are_equally_many(name: str) -> None:
    for split in ("train", "test"):
        counts = datasets.load_split(name, split).labels.bincount()
        assert torch.unique(counts).numel() == 1


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_embedded_set_is_the_first_part_of_the_official_one() -> None:
    for split, prefix, count in (("train", "train", 1000), ("test", "t10k", 200)):
        images, labels = official(f"{prefix}-images-idx3-ubyte.gz"), official(f"{prefix}-labels-idx1-ubyte.gz")
        whole, mini = datasets.load_split("fashion-mnist", split), datasets.load_split("fashion-mini", split)
        assert torch.equal(whole.images, images)
        assert torch.equal(whole.labels, labels)
        places = torch.cat([(labels == label).nonzero().squeeze(1)[:count] for label in range(10)]).sort().values
        assert torch.equal(mini.images, images[places])
        assert torch.equal(mini.labels, labels[places])
        if split == "train":
            assert moments(images)[0] == pytest.approx(catalog.get_dataset("fashion-mnist").mean, abs=1e-6)
            assert moments(images)[1] == pytest.approx(catalog.get_dataset("fashion-mnist").std, abs=1e-6)


def test_a_class_subset_keeps_order_and_renumbers() -> None:
    whole, novel = datasets.load_split("fashion-mini", "test"), datasets.load_split("fashion-mini-novel", "test")
    kept = ((whole.labels >= 4) & (whole.labels <= 6)).nonzero().squeeze(1)
    assert torch.equal(novel.images, whole.images[kept])
    assert torch.equal(novel.labels, whole.labels[kept] - 4)


@pytest.mark.parametrize("name", ["gaussian-noise", "uniform-noise", "blobs"])
def test_computed_sets_take_the_networks_shape(name: str) -> None:
    assert torch.equal(datasets.load_split(name, "test").images, datasets.load_split(name, "test").images)
    drawn = datasets.load_split(name, "test", channels=3, size=32).images
    assert drawn.shape == (2000, 3, 32, 32)
    assert not torch.equal(drawn[:, 0], drawn[:, 1])
    assert drawn.double().std() / 255 == pytest.approx(
        catalog.get_dataset(name).std[0], abs=0.02
    )  # resizing would smooth it


def test_blobs_fill_the_range_and_are_smooth() -> None:
    blobs = datasets.load_split("blobs", "test").images.float()
    assert blobs.amin((1, 2, 3)).eq(0).all()
    assert blobs.amax((1, 2, 3)).eq(255).all()
    assert blobs.diff(dim=3).abs().mean() < 20


def test_a_split_that_does_not_exist() -> None:
    for name, split, text in (
        ("textures", "train", r"'textures' has no split 'train': use 'test' \(1,000"),
        ("digits", "val", "'val': use 'train'"),
    ):
        with pytest.raises(UserError, match=text) as error:
            datasets.load_split(name, split)
        message(error)


# --- image sets


def test_an_image_set_refuses_what_does_not_fit() -> None:
    images, labels = torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 0])
    good = ImageSet("mine", images, labels, ("a", "b"))
    assert good.take(torch.tensor([1, 1])).labels.tolist() == [1, 1]
    for bad_images, bad_labels, text in (
        (images.float(), labels, r"images of mine are torch\.float32 \(3, 1, 4, 4\)"),
        (images[0], labels, "uint8"),
        (images, labels[:2], r"labels of mine are torch\.int64 \(2,\)"),
        (images, labels.int(), r"torch\.int32"),
        (images, labels + 1, "run from 1 to 2: 2 classes allow 0 to 1"),
        (images, labels - 1, "run from -1 to 0"),
    ):
        with pytest.raises(UserError, match=text) as error:
            ImageSet("mine", bad_images, bad_labels, ("a", "b"))
        message(error)


def test_scaled_keeps_the_first_of_each_class() -> None:
    images = datasets.load_split("fashion-mini", "train")
    part = datasets.take_fraction(images, 0.01)
    assert part.labels.bincount().tolist() == [10] * 10
    places = torch.cat([(images.labels == label).nonzero().squeeze(1)[:10] for label in range(10)]).sort().values
    assert torch.equal(part.images, images.images[places])
    assert datasets.take_fraction(images, 0.001, minimum=5).labels.bincount().tolist() == [5] * 10
    assert datasets.take_fraction(images, 1.0) is images
    with pytest.raises(UserError, match="fraction is 0"):
        datasets.take_fraction(images, 0.0)


def test_fit_to_input_is_a_no_op_where_it_fits() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert fit_to_input(images, 3, 8) is images
    grey = images[:, :1]
    assert torch.equal(fit_to_input(grey, 3, 8), grey.repeat(1, 3, 1, 1))
    with pytest.raises(UserError, match="4 channels, the network takes 1"):
        fit_to_input(torch.zeros(1, 4, 8, 8, dtype=torch.uint8), 1, 8)


def test_fit_to_input_matches_pil() -> None:
    images = torch.randint(0, 256, (3, 3, 24, 24), dtype=torch.uint8, generator=Generator().manual_seed(0))
    for image, grey, small in zip(images, fit_to_input(images, 1, 24), fit_to_input(images, 3, 10), strict=True):
        pil = Image.fromarray(image.permute(1, 2, 0).numpy())
        assert np.array_equal(np.asarray(pil.convert("L")), grey[0])
        resized = np.asarray(pil.resize((10, 10), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(resized - small.permute(1, 2, 0).numpy()).max() <= 1  # PIL rounds between its two passes


# --- batches


def naive_crop(image: Tensor, top: int, left: int, mirror: bool, padding: int) -> Tensor:
    height, width = image.shape[1:]
    canvas = torch.zeros(image.shape[0], height + 2 * padding, width + 2 * padding, dtype=torch.uint8)
    canvas[:, padding : padding + height, padding : padding + width] = image
    crop = canvas[:, top : top + height, left : left + width]
    return crop.flip(2) if mirror else crop


@pytest.mark.parametrize(("padding", "flip"), [(4, True), (4, False), (0, True), (2, False)])
def test_crop_and_flip_against_one_image_at_a_time(padding: int, flip: bool) -> None:
    images = torch.randint(0, 256, (64, 3, 9, 7), dtype=torch.uint8, generator=Generator().manual_seed(0))
    done = crop_and_flip(images, Generator().manual_seed(5), padding, flip)
    generator = Generator().manual_seed(5)
    tops, lefts = torch.randint(0, 2 * padding + 1, (2, 64), generator=generator).tolist()
    mirrored = (torch.rand(64, generator=generator) < 0.5).tolist()
    for i, image in enumerate(images):
        assert torch.equal(done[i], naive_crop(image, tops[i], lefts[i], flip and mirrored[i], padding))


def test_every_shift_and_mirror_occurs() -> None:
    images = torch.zeros(4000, 1, 5, 5, dtype=torch.uint8)
    images[:, :, 2, 2], images[:, :, 2, 3] = 1, 2
    done = crop_and_flip(images, Generator().manual_seed(0), padding=2)
    counts = (done == 1).sum(0).flatten()
    assert (counts > 100).all()  # 160 expected at each of 25 places
    mirrored = crop_and_flip(images, Generator().manual_seed(1), padding=0)[:, 0, 2, 1] == 2
    assert 1870 < mirrored.sum() < 2130  # 2000 expected, four standard deviations are 126


def test_to_input() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    expected = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(to_input(images, mean, std), expected.float())
    with pytest.raises(UserError, match="3 channels, mean has 1"):
        to_input(images, (0.5,), (0.5,))


@pytest.fixture
def numbered() -> ImageSet:
    """100 images, image i all of grey level i and label i."""
    images = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1).expand(-1, 1, 6, 6).contiguous()
    return ImageSet("numbered", images, torch.arange(100), tuple(map(str, range(100))))


def labels_of(batches: Batches) -> list[int]:
    return torch.cat([labels for _, labels in batches]).tolist()


def test_evaluation_keeps_order_and_the_last_batch(numbered: ImageSet) -> None:
    batches = Batches(numbered, 32, (0.0,), (1 / 255,))
    parts = list(batches)
    assert len(parts) == len(batches) == 4
    assert torch.cat([labels for _, labels in parts]).tolist() == list(range(100))
    torch.testing.assert_close(torch.cat([images for images, _ in parts]), numbered.images.float())


def test_an_epoch_is_decided_by_seed_and_epoch_alone(numbered: ImageSet) -> None:
    def batches(seed: int, epoch: int) -> Batches:
        made = Batches(numbered, 16, (0.5,), (0.2,), seed=seed, shuffle=True, crop_padding=2, flip=True)
        made.sampler.set_epoch(epoch)
        return made

    resumed = batches(3, 2)
    through = batches(3, 0)
    for epoch in range(3):
        through.set_epoch(epoch)
        seen = list(through)
    for (images, labels), (again, same) in zip(seen, resumed, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, same)
    assert sorted(labels_of(resumed)) == list(range(100))
    orders = [tuple(labels_of(batches(seed, epoch))) for seed in (3, 4) for epoch in (0, 1, 2)]
    assert len(set(orders)) == 6


def test_drop_last_and_shards(numbered: ImageSet) -> None:
    short = Batches(numbered, 32, (0.5,), (0.2,), drop_last=True, shuffle=True)
    assert len(short) == len(list(short)) == 3
    shards = [Batches(numbered, 8, (0.5,), (0.2,), seed=1, shuffle=True, shard=(rank, 3)) for rank in range(3)]
    seen = [labels_of(shard) for shard in shards]
    assert [len(part) for part in seen] == [33, 33, 33]
    assert len({label for part in seen for label in part}) == 99
    kept = [labels_of(Batches(numbered, 8, (0.5,), (0.2,), shard=(rank, 3))) for rank in range(3)]
    assert sorted(label for part in kept for label in part) == list(range(100))


def test_batches_go_on_within_an_epoch(numbered: ImageSet) -> None:
    def batches() -> Batches:
        made = Batches(numbered, 16, (0.5,), (0.2,), seed=3, shuffle=True, crop_padding=2, flip=True)
        made.set_epoch(4)
        return made

    whole, first, second = list(batches()), batches(), batches()
    given = iter(first)
    assert all(torch.equal(next(given)[0], images) for images, _ in whole[:3])
    second.load_state_dict(first.state_dict())
    rest = list(second)
    assert [labels.tolist() for _, labels in rest] == [labels.tolist() for _, labels in whole[3:]]
    assert all(torch.equal(images, expected) for (images, _), (expected, _) in zip(rest, whole[3:], strict=True))
    assert len(list(second)) == len(whole)  # the next iteration is a whole one
    third = batches()
    third.load_state_dict(second.state_dict())  # all of the epoch were given
    assert len(list(third)) == len(whole)
    third.load_state_dict(first.state_dict())
    third.set_epoch(5)
    assert len(list(third)) == len(whole)  # what was given of another epoch is of no matter


def test_batches_refuse_nonsense(numbered: ImageSet) -> None:
    with pytest.raises(UserError, match="batch size is 0"):
        Batches(numbered, 0, (0.5,), (0.2,))
    with pytest.raises(UserError, match="shard is"):
        Batches(numbered, 8, (0.5,), (0.2,), shard=(2, 2))
    with pytest.raises(UserError, match="'numbered' has no images"):
        Batches(numbered.take(torch.tensor([], dtype=torch.int64)), 8, (0.5,), (0.2,))


# --- held-out training images


def held_out(share: float, **more: float) -> tuple[ImageSet, ImageSet, ImageSet]:
    settings = Data(train="fashion-mini-known", validation=share, **more)  # type: ignore[arg-type]
    seen = datasets.input_format(settings)
    parts = [datasets.open_set(settings.train, split, settings, seen) for split in ("train", "validation")]
    whole = datasets.open_set(settings.train, "train", dataclasses.replace(settings, validation=0.0), seen)
    assert isinstance(whole, ImageSet)
    assert isinstance(parts[0], ImageSet)
    assert isinstance(parts[1], ImageSet)
    return parts[0], parts[1], whole


@pytest.mark.parametrize("fraction", [1.0, 0.1])
def test_held_out_images_are_a_share_of_each_class_and_no_image_is_lost(fraction: float) -> None:
    train, held, whole = held_out(0.1, fraction=fraction)
    per_class = round(1000 * fraction)
    assert held.labels.bincount().tolist() == [per_class // 10] * 7
    assert train.labels.bincount().tolist() == [per_class - per_class // 10] * 7
    both = torch.cat([train.images, held.images]).flatten(1).numpy()
    assert sorted(map(bytes, both)) == sorted(map(bytes, whole.images.flatten(1).numpy()))


def test_held_out_images_are_never_trained_on_however_few_there_are() -> None:
    """What is measured keeps ten images of a class where there are as many; this set is divided once for all."""
    settings = Data(train="fashion-mini-known", fraction=0.005, validation=0.25)
    trained, _, _ = held_out(0.25, fraction=0.005)
    held = NamedSets(settings, datasets.input_format(settings)).open(settings.train, "validation")
    assert isinstance(held, ImageSet)
    rows = [set(map(bytes, part.images.flatten(1).numpy())) for part in (trained, held)]
    assert [len(each) for each in rows] == [28, 7]
    assert not rows[0] & rows[1]


def test_held_out_images_are_the_same_every_time_and_spread_over_the_file() -> None:
    _, held, whole = held_out(0.1)
    again = held_out(0.1)[1]
    assert torch.equal(held.images, again.images)
    rows = {bytes(row): i for i, row in enumerate(whole.images.flatten(1).numpy())}
    places = torch.tensor([rows[bytes(row)] for row in held.images.flatten(1).numpy()]).double() / len(whole)
    assert 0.45 < float(places.mean()) < 0.55


def test_other_sets_and_the_test_images_keep_all_theirs() -> None:
    settings = Data(train="fashion-mini-known", validation=0.5)
    for name, split, count in (("fashion-mini-known", "test", 1400), ("fashion-mini-novel", "train", 3000)):
        assert len(datasets.open_set(name, split, settings, datasets.input_format(settings))) == count


@pytest.mark.parametrize("share", [0.0, 0.96])
def test_a_share_that_leaves_nothing_is_refused(share: float) -> None:
    settings = Data(train="fashion-mini-known", validation=share, fraction=0.01)
    with pytest.raises(UserError) as error:
        datasets.open_set(settings.train, "validation", settings, datasets.input_format(settings))
    assert "data.validation" in message(error)


def test_crops_are_of_originals_however_much_memory_there_is() -> None:
    data = Data("digits", 0.1, size=16)
    view, few = datasets.input_format(data), dataclasses.replace(data, memory=1e-9)
    sets = [datasets.open_set("digits", "train", each, view, originals=True) for each in (few, data)]
    pixels = [next(each.parts([torch.arange(5)], Augmentation(0, 0))) for each in sets]
    assert pixels[0].shape == (5, 1, 16, 16)
    assert torch.equal(*pixels)

"""Own data for tests: folders of images made from the embedded sets."""

from pathlib import Path

from PIL import Image

from anchored.data import datasets

CLASSES = {"Ankle boot": 9, "Trouser": 1, "T-shirt": 0}  # not in the order of the labels, nor of the alphabet


def picture(name: str, index: int, split: str = "train") -> Image.Image:
    """One image of an embedded set."""
    pixels = datasets.load(name, split).images[index].permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def class_folders(folder: Path, images: int, first: int = 0) -> Path:
    """Three folders of Fashion-MNIST classes with ``images`` each, from the ``first`` one of the class on."""
    whole = datasets.load("fashion-mini", "train")
    for title, label in CLASSES.items():
        (folder / title).mkdir(parents=True)
        places = (whole.labels == label).nonzero().squeeze(1)[first : first + images].tolist()
        for number, place in enumerate(places):
            Image.fromarray(whole.images[place, 0].numpy()).save(folder / title / f"{number:03d}.png")
    return folder


def photographs(folder: Path, images: int, size: tuple[int, int] = (60, 40)) -> Path:
    """A flat folder of colour images, JPEG."""
    folder.mkdir(parents=True)
    whole = datasets.load("photos", "test", channels=3, size=28).images
    for number in range(images):
        pixels = whole[number * 7].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).resize(size).save(folder / f"photo {number}.jpg")
    return folder

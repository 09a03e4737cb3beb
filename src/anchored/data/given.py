"""Images as Python programs have them, arrays, data sets and loaders, as sets that can be evaluated."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from anchored.data.decoding import decode_image, open_encoded
from anchored.data.image_sets import GivenInputs, ImageSet, ImageStream
from anchored.data.preprocessing import InputFormat, fit_to_input, tensor_to_pil
from anchored.data.user_data.hugging_face import encoded, undecoded
from anchored.errors import UserError, first_line
from anchored.store import files

GivenSet = ImageSet | GivenInputs
_EXACT = 1e-3  # of a level of 255: floats this near to levels are 8-bit images that somebody divided by 255


def given_set(source: Any, name: str, classes: Sequence[str], view: InputFormat | None, *, labelled: bool) -> GivenSet:
    """Return a set of images, or of inputs that somebody prepared, in memory.

    Args:
        source: (images, labels), or images alone where ``labelled`` is false; a data set of torch, Hugging Face or
            MAITE, or any sequence of (image, label); a DataLoader. Images are PIL's or arrays of any framework:
            (N,C,H,W), or (N,H,W,C) where only the last axis has 1 or 3 entries, uint8 or floats. Floats in [0, 1] that
            are levels of 255 become uint8; other floats are inputs, of any shape (N,...).
        name: what the set is called.
        classes: names of the labels 0, 1, ...; empty takes the source's own, or numbers.
        view: the network's input, for images of other sizes; None takes them as they are.
        labelled: whether there are labels; without, those that there are do not count.

    Raises ``UserError``, one line, for NaN, labels out of range, images of several sizes without a ``view``, or what is
    no images.
    """
    images, labels = _images_and_labels(source, name, view, labelled=labelled)
    if len(images) == 0:
        raise UserError(f"{name} has no images")
    if labels is None:
        labels, classes = torch.zeros(len(images), dtype=torch.int64), ("",)
    labels = _checked_labels(labels, len(images), name)
    own = tuple(map(str, getattr(source, "classes", None) or _feature_names(source)))
    titles = tuple(classes) or own or tuple(map(str, range(int(labels.max()) + 1)))
    pixels = _as_pixels(images, view)
    if pixels is not None:
        return ImageSet(name, pixels, labels, titles)
    if not torch.isfinite(images).all():
        raise UserError(f"{name} holds NaN or infinity")
    if int(labels.max()) >= len(titles) or int(labels.min()) < 0:
        raise UserError(f"labels of {name} run from {labels.min()} to {labels.max()}: {len(titles)} classes")
    return GivenInputs(name, images.float(), labels, titles)


def content_digest(images: GivenSet) -> str:
    """Return 16 hexadecimal digits of the hash of pixels or inputs, labels and class names."""
    return files.tensors_digest({f"images of {images.classes}": images.images, "labels": images.labels})


def relabelled(images: Any, classes: tuple[str, ...]) -> Any:
    """Return a set whose labels count through ``classes``, the network's, by the names of its own.

    A name stands for a class that it equals, letters' case aside, or that it is between two commas, or whose synset it
    is ("n02123045 tabby, tabby cat" is also "tabby" and "n02123045"); labels without names stay. ``UserError`` where a
    name is none of them, or several, or a label is too large.
    """
    if images.classes == classes:
        return images
    if is_numbered(images.classes):
        if len(images.labels) and int(images.labels.max()) >= len(classes):
            found, last = int(images.labels.max()), len(classes) - 1
            raise UserError(
                f"a label of {images.name} is {found}, but the network's classes are 0 to {last}: give images of these"
            )
        return replace(images, classes=classes)
    places = [_place(name, classes, images.name) for name in images.classes]
    if len(set(places)) < len(places):
        raise UserError(f"two classes of {images.name} are the same one of the network: {', '.join(images.classes)}")
    if isinstance(images, ImageStream):
        labels = np.asarray(places, np.int64)[images.index.labels]
        return replace(images, index=replace(images.index, labels=labels), classes=classes)
    return replace(images, labels=torch.tensor(places)[images.labels], classes=classes)


def is_numbered(classes: Sequence[str]) -> bool:
    """Say whether labels have no names but their numbers."""
    return all(name == str(i) for i, name in enumerate(classes))


def _place(name: str, classes: Sequence[str], where: str) -> int:
    wanted = name.strip().casefold().replace("_", " ")
    for spellings in (_whole, _parts):
        found = [place for place, title in enumerate(classes) if wanted in spellings(title)]
        if len(found) > 1:
            one, other = (classes[place] for place in found[:2])
            raise UserError(
                f"class '{name}' of {where} can be '{one}' or '{other}' of the network: give its whole name"
            )
        if found:
            return found[0]
    raise UserError(
        f"class '{name}' of {where} is none of the network's {len(classes)} ({', '.join(classes[:3])} ...): name its "
        "classes as the network does, or give the network's classes in their order"
    )


def _whole(title: str) -> set[str]:
    return {title.strip().casefold().replace("_", " ")}


def _parts(title: str) -> set[str]:
    words = title.casefold().replace("_", " ")
    first, _, rest = words.partition(" ")
    synset = re.fullmatch(r"n\d{8}", first)
    return {*([first] if synset else []), *(part.strip() for part in (rest if synset else words).split(","))}


def _checked_labels(labels: Any, count: int, name: str) -> Tensor:
    found = to_tensor(labels)
    whole = not found.is_floating_point() or bool((found == found.round()).all())
    if found.dim() == 2 and found.shape[1] > 1 and bool((found.sum(1) == 1).all()):  # one-hot
        raise UserError(f"labels of {name} are {tuple(found.shape)}, one-hot: give the number of each class instead")
    if tuple(found.shape) != (count,) or found.is_complex() or not whole:
        raise UserError(f"labels of {name} are {found.dtype} {tuple(found.shape)}: give {count} whole numbers")
    return found.long()


def _feature_names(source: Any) -> Sequence[str]:
    """Names of the labels of a data set of Hugging Face or MAITE."""
    if (metadata := maite_metadata(source)) is not None:
        return label_names(metadata)
    label = (getattr(source, "features", None) or {}).get("label")
    return getattr(label, "names", None) or ()


def maite_metadata(value: Any) -> Mapping[str, Any] | None:
    """The ``metadata`` of an object of MAITE, a mapping with an "id"; None for other objects."""
    metadata = getattr(value, "metadata", None)
    return metadata if isinstance(metadata, Mapping) and "id" in metadata else None


def label_names(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes in MAITE's metadata; a number where one is not named, none without ``index2label``."""
    names = {int(index): str(name) for index, name in (metadata.get("index2label") or {}).items()}
    return tuple(names.get(index, str(index)) for index in range(max(names, default=-1) + 1))


def label_of(target: Any, name: str) -> int:
    """The class that a target (Cl,) of MAITE is: where its largest value is; ``UserError`` where there are several."""
    values = np.asarray(target)
    if values.ndim != 1 or len(values) == 0 or not np.count_nonzero(values == values.max()) == 1:
        raise UserError(f"a target of {name} is {values.dtype} {values.shape}: one class, one-hot, is needed")
    return int(values.argmax())


def _images_and_labels(
    source: Any, name: str, view: InputFormat | None, *, labelled: bool
) -> tuple[Tensor, Tensor | None]:
    """Images (N,...) uint8 or float, and labels (N,) if they are wanted."""
    if isinstance(source, DataLoader):
        batches = _read(iter(source), f"{name}, batch")
        return _collected((_pair(batch, name, labelled=labelled) for batch in batches), name, view)
    if isinstance(source, (tuple, list)) and len(source) == 2 and _is_array(source[0]):
        return _from_arrays(source[0], source[1] if labelled else None, name)
    if _is_array(source):
        if labelled:
            raise UserError(f"{name} is an array alone: give (images, labels)")
        return _from_arrays(source, None, name)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        table = undecoded(source)
        items = _read((table[i] for i in range(len(table))), f"{name}, item")
        pairs = (_pair(item, name, labelled=labelled) for item in items)
        return _collected(((_batch_of_one(image), label) for image, label in pairs), name, view)
    raise UserError(
        f"{name} is a {type(source).__name__}: give (images, labels), a data set, a DataLoader, or the name of a set"
    )


def _read(items: Iterator[Any], what: str) -> Iterator[Any]:
    """The items; ``UserError`` with an item's number for whatever its data set raises."""
    for number in itertools.count():
        try:
            item = next(items)
        except StopIteration:
            return
        except UserError:
            raise
        except Exception as error:  # somebody's own code, and all that it calls
            raise UserError(
                f"{what} {number}: its data set raises {type(error).__name__}: {first_line(error)}"
            ) from error
        yield item


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) or hasattr(value, "__array__")


def _pair(item: Any, name: str, *, labelled: bool) -> tuple[Any, Any]:
    """Image and label of an item or a batch: a pair, a dictionary, or an image alone."""
    if isinstance(item, dict):
        keys = {key.lower(): key for key in item}
        image = next((item[keys[key]] for key in ("image", "img", "pixel_values", "x") if key in keys), None)
        label = next((item[keys[key]] for key in ("label", "labels", "target", "y") if key in keys), None)
        if image is None or (labelled and label is None):
            raise UserError(f"{name} gives {', '.join(map(str, item))}: an 'image' and a 'label' are needed")
        return image, label if labelled else None
    if isinstance(item, (tuple, list)) and len(item) == 3 and isinstance(item[2], Mapping) and "id" in item[2]:
        return item[0], label_of(item[1], name) if labelled else None
    if isinstance(item, (tuple, list)) and len(item) >= 2 and not isinstance(item[1], Image.Image):
        return item[0], item[1] if labelled else None
    if labelled:
        raise UserError(f"{name} gives a {type(item).__name__} at a time: pairs (image, label) are needed")
    return item[0] if isinstance(item, (tuple, list)) else item, None


def _batch_of_one(image: Any) -> Any:
    return [image] if image is None or isinstance(image, (Image.Image, dict)) else to_tensor(image)[None]


def to_tensor(values: Any) -> Tensor:
    """Return any framework's array of numbers as a tensor on the CPU."""
    return values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))


def _from_arrays(images: Any, labels: Any, name: str) -> tuple[Tensor, Tensor | None]:
    try:
        pixels = _channels_first(to_tensor(images))
        found = None if labels is None else to_tensor(labels)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} holds no numbers: {first_line(error)}") from error
    return pixels, found


def _collected(batches: Iterator[tuple[Any, Any]], name: str, view: InputFormat | None) -> tuple[Tensor, Tensor | None]:
    """All batches as one tensor each; images of several sizes by ``view``."""
    parts: list[Tensor] = []
    labels: list[Tensor] = []
    for images, label in batches:
        if isinstance(images, list):
            done = sum(map(len, parts))
            part = _decoded([_opened(each, f"{name}, image {done + i}") for i, each in enumerate(images)], view)
        else:
            part = _channels_first(to_tensor(images))
        part = _resized(part, view) if view and view.size and part.dtype == torch.uint8 else part
        if parts and (part.shape[1:] != parts[0].shape[1:] or part.dtype != parts[0].dtype):
            shapes = " and ".join(str(tuple(each.shape[1:])) for each in (parts[0], part))
            raise UserError(f"{name} has images of several sizes or types, {shapes}: give size=...")
        parts.append(part)
        if label is not None:
            labels.append(to_tensor(label).reshape(-1))
    if not parts:
        raise UserError(f"{name} has no images")
    return torch.cat(parts), torch.cat(labels) if labels else None


def _opened(image: Any, where: str) -> Image.Image:
    """A PIL image, or a cell of a Hugging Face table, as "L" or "RGB", by the one way from images to pixels."""
    if isinstance(image, Image.Image):
        return decode_image(lambda: contextlib.nullcontext(image), where, "replace it", upright=False)
    return decode_image(lambda: open_encoded(encoded(image, where)), where, "replace it")


def _decoded(images: Sequence[Image.Image], view: InputFormat | None) -> Tensor:
    """Images "L" or "RGB" as (B,C,H,W) uint8, as the network sees them, or as they are."""
    convert: Callable[[Image.Image], Tensor]
    convert = view or (lambda image: InputFormat(1 if image.mode == "L" else 3, 0)(image))
    return torch.stack([convert(image) for image in images])


def _channels_first(images: Tensor) -> Tensor:
    """(N,H,W) to (N,1,H,W), and (N,H,W,C) to (N,C,H,W) where only the last axis can be the channels."""
    if images.dtype == torch.uint8 and images.dim() == 3:
        return images[:, None]
    if images.dim() == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        return images.permute(0, 3, 1, 2)
    return images


def _as_pixels(images: Tensor, view: InputFormat | None) -> Tensor | None:
    """Images (N,C,H,W) uint8, resized where ``view`` asks for another size; None where they are no 8-bit images."""
    if images.dim() != 4:
        return None
    if images.is_floating_point():
        levels = images * 255
        whole = levels.round()
        inside = bool((images >= 0).all()) and bool((images <= 1).all())
        if not inside or float((levels - whole).abs().max()) > _EXACT:
            return None
        images = whole.to(torch.uint8)
    if images.dtype != torch.uint8:
        return None
    return images.contiguous() if view is None else _resized(images.contiguous(), view)


def _resized(images: Tensor, view: InputFormat) -> Tensor:
    """Images (N,C,H,W) uint8 as the network sees them; what are no images in grey or colour as they are."""
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        return images
    if tuple(images.shape[1:]) == (view.channels, view.size, view.size):
        return images
    if view.size and images.shape[2] == images.shape[3] and view.crop == 1 and view.interpolation == "bilinear":
        return fit_to_input(images, view.channels, view.size)  # as sets of one size are seen in a study
    return torch.stack([view(tensor_to_pil(image)) for image in images])

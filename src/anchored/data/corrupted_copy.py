"""``anchored corrupt``: a corrupted copy of any image set, in the layouts of the published archives.

``npy``: one ``<corruption>.npy`` of five blocks (5 N,H,W,C) uint8, severity 1 first, and ``labels.npy`` (5 N,), as
CIFAR-10-C. ``folders``: ``<corruption>/<severity>/<class>/<file>.JPEG`` at quality 85, as ImageNet-C. Images are read a
few at a time and once; what was done is noted after each batch, so that the same command goes on after a kill.
"""

import dataclasses
import io
import itertools
import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import TimeRemainingColumn
from torch import Tensor

from anchored.config.settings import Pixels, Seed
from anchored.config.validation import parse
from anchored.corruptions import registry as corruptions
from anchored.data.catalog.names import refuse_inside
from anchored.data.image_sets import ahead
from anchored.data.originals import Originals, open_originals, resolve_source
from anchored.data.preprocessing import tensor_to_pil
from anchored.errors import UserError
from anchored.store import files as disk
from anchored.store import layout as runs
from anchored.store.layout import CorruptedFolder
from anchored.store.terminal import DEFAULT_COLUMNS, progress_bar

Layout = Literal["npy", "folders"]
ALL = (1, 2, 3, 4, 5)
QUALITY = 85  # of JPEG files, as published
_BATCH = 128  # images at a time, at most
_PIXELS = 1 << 22  # about as many pixels at a time, at most
_TILE = 112  # px, the side of an image on a contact sheet


@dataclass(frozen=True)
class Request:
    """What a folder of corrupted images holds; another request in the same folder is refused."""

    source: str
    content: str  # hash of own images, "" for a set of the catalog
    images: int
    corruptions: tuple[str, ...]
    severities: tuple[int, ...]
    seed: int
    layout: Layout
    size: int  # pixels; 0: the images' own


def write_corrupted_copy(
    source: str,
    folder: Path,
    console: Console,
    *,
    names: Sequence[str] = ("c",),
    severities: Sequence[int] = ALL,
    seed: int = 0,
    layout: Layout = "folders",
    size: int = 0,
) -> None:
    """Write the corrupted copy of a set into ``folder``, or what is missing of it, with a contact sheet.

    ``source``: a row of the catalog (its test images), a folder of images or of class folders, a CSV, an npz or a npy
    file (N,H,W[,3]). ``names``: corruptions or families, as the first image takes them. ``size``: the shorter side
    becomes this (÷ 0.875 from 96 px, as 256 for 224), then the middle square; 0 leaves own images as they are, and is
    the size of a row of the catalog. UserError, one line, for sources that are not images, images of several sizes in
    one npy file, another request in the folder.
    """
    source = resolve_source(source)
    refuse_inside(folder, [source])
    if layout == "npy" and tuple(severities) != ALL:
        raise UserError("the npy layout has five blocks, one a severity: leave severities out, or use --layout folders")
    _check(severities, size, seed)
    originals = open_originals(source, size, one_size=layout == "npy" and not size)
    paths = originals.paths() if layout == "folders" else []
    first = next(originals.images.parts([torch.arange(1)]))
    kinds = corruptions.expand(names, first.shape[2], first.shape[3], first.shape[1])
    if not kinds:
        raise UserError("no corruptions are named: give names, or c, c15 or c-bar")
    request = Request(source, originals.content, len(originals.names), kinds, tuple(severities), seed, layout, size)
    place = CorruptedFolder(folder)
    place.refuse_foreign()  # before anything is put there
    with disk.locked(place.lock_file) as free:
        if not free:
            raise UserError(f"another process is writing {folder}: wait for it, or choose another folder with -o")
        done = _claim(place, request)
        disk.remove_unfinished(folder)
        _write_all(place, request, originals, paths, first[0], done, console)
        if layout == "npy":
            _finish_blocks(place, request, originals)
        disk.write_bytes(place.sheet_file, encode_image(contact_sheet(first, kinds, request.severities, seed), "PNG"))


def _check(severities: Sequence[int], size: int, seed: int) -> None:
    if not severities or len(set(severities)) < len(severities) or not set(severities) <= set(ALL):
        raise UserError(f"severities are {', '.join(map(str, severities)) or 'none'}: give some of 1, 2, 3, 4, 5, once")
    parse(Pixels, size, name="size")
    parse(Seed, seed, name="seed")


def _claim(folder: CorruptedFolder, request: Request) -> int:
    """Claim a folder for a request and return how many images are done in it; UserError where it holds another."""
    file, wanted = folder.request_file, json.loads(json.dumps(dataclasses.asdict(request)))
    if file.exists():
        earlier = disk.read_json(file)
        if not isinstance(earlier, dict):
            raise UserError(f"{file} does not describe corrupted images: choose another folder with -o")
        if changed := runs.first_difference(earlier, wanted):
            raise UserError(f"{folder.path} holds another request ({changed}): choose another folder with -o")
        return _done(folder.done_file, request.images) if folder.done_file.exists() else 0
    disk.write_json(file, wanted)
    return 0


def _done(file: Path, images: int) -> int:
    done = disk.read_json(file)
    count = done.get("images") if isinstance(done, dict) else None
    if type(count) is not int or not 0 <= count <= images:
        raise UserError(f"{file} was changed by hand: choose another folder with -o")
    return count


def _write_all(
    folder: CorruptedFolder,
    request: Request,
    originals: Originals,
    paths: Sequence[str],
    first: Tensor,
    done: int,
    console: Console,
) -> None:
    """Corrupt and write the images from ``done`` on, a batch at a time, and say how far it is."""
    as_blocks = request.layout == "npy"
    write, flush = _write_blocks(folder, request, first, done) if as_blocks else _write_files(folder, paths)
    count = max(1, min(_BATCH, _PIXELS // first[0].numel()))
    places = torch.arange(done, request.images)
    passes = len(request.corruptions) * len(request.severities)
    console.print(
        f"{request.images:,} images × {len(request.corruptions)} corruptions × {len(request.severities)} severities"
        + (f", {done:,} images done already" if done else "")
    )
    with progress_bar(console, *DEFAULT_COLUMNS, TimeRemainingColumn(elapsed_when_finished=True)) as bar:
        task = bar.add_task("corrupting", total=request.images * passes, completed=done * passes)
        batches = torch.split(places, count) if len(places) else ()
        singly = originals.images.parts([place[None] for place in places])  # they may have many sizes
        decoded = ([image[0] for image in itertools.islice(singly, len(batch))] for batch in batches)
        for batch, images in zip(batches, ahead(decoded), strict=True):
            for group in _group_by_shape(images):
                indices, stacked = batch[group], torch.stack([images[i] for i in group])
                for name, severity in itertools.product(request.corruptions, request.severities):
                    corrupted = corruptions.corrupt(stacked, name, severity, seed=request.seed, indices=indices)
                    write(name, severity, indices.tolist(), corrupted)
                    bar.advance(task, len(group))
            flush()  # what is said to be done must outlive a crash of the machine
            disk.write_json(folder.done_file, {"images": int(batch[-1]) + 1})


def _group_by_shape(images: Sequence[Tensor]) -> list[list[int]]:
    places: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, image in enumerate(images):
        places[tuple(image.shape)].append(place)
    return list(places.values())


_Write = Callable[[str, int, list[int], Tensor], None]  # corruption, severity, places in the set, images (B,C,H,W)
_Flush = Callable[[], None]  # puts on the disk what was written


def _write_files(folder: CorruptedFolder, paths: Sequence[str]) -> tuple[_Write, _Flush]:
    def write(corruption: str, severity: int, places: list[int], images: Tensor) -> None:
        for place, image in zip(places, images, strict=True):
            file = folder.image_file(corruption, severity, paths[place])
            disk.write_bytes(file, encode_image(tensor_to_pil(image), "JPEG"))

    return write, lambda: None


def _write_blocks(folder: CorruptedFolder, request: Request, first: Tensor, done: int) -> tuple[_Write, _Flush]:
    """Write images into their places in the blocks of a corruption's file, mapped into memory."""
    channels, height, width = first.shape
    shape = (len(ALL) * request.images, height, width, channels)
    files: dict[str, np.memmap[tuple[int, ...], np.dtype[np.uint8]]] = {}
    if done < request.images:
        try:
            files = {name: _map_blocks(folder, name, shape, done > 0) for name in request.corruptions}
        except UserError:
            for name in () if done else request.corruptions:
                folder.part_file(name).unlink(missing_ok=True)
            raise

    def write(corruption: str, severity: int, places: list[int], images: Tensor) -> None:
        if images.shape[1:] != first.shape:  # turned as its EXIF says, perhaps
            raise UserError(f"image {places[0] + 1} is not of the first one's size: give --size, or --layout folders")
        block = np.asarray(places) + (severity - 1) * request.images
        files[corruption][block] = images.permute(0, 2, 3, 1).numpy()

    def flush() -> None:
        for name, blocks in files.items():
            with disk.os_errors_as_user_errors(folder.part_file(name), "write"):
                blocks.flush()

    return write, flush


def _map_blocks(
    folder: CorruptedFolder, name: str, shape: tuple[int, ...], begun: bool
) -> np.memmap[tuple[int, ...], np.dtype[np.uint8]]:
    """Return a corruption's file, mapped; a new one has all its room on the disk, or a full disk would end us later. (A
    page of a map for which there is no room is not an error but a signal, SIGBUS.)"""
    finished, part = folder.blocks_file(name), folder.part_file(name)
    path = finished if begun and finished.exists() else part
    with disk.os_errors_as_user_errors(path, "write"):
        if not begun:
            np.lib.format.open_memmap(disk.refuse_link(path), mode="w+", dtype=np.uint8, shape=shape)
            with path.open("r+b") as stream:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
        elif not path.exists():
            raise UserError(f"{path} is gone: bring it back, or choose another folder with -o")
        try:
            blocks = np.lib.format.open_memmap(disk.refuse_link(path), mode="r+")
        except ValueError as error:
            raise UserError(f"{path} is not the file that was begun: choose another folder with -o") from error
    if blocks.shape != shape or blocks.dtype != np.uint8:
        raise UserError(f"{path} is not the file that was begun: choose another folder with -o")
    return blocks


def _finish_blocks(folder: CorruptedFolder, request: Request, originals: Originals) -> None:
    for name in request.corruptions:
        part, finished = folder.part_file(name), folder.blocks_file(name)
        if part.exists():
            with disk.os_errors_as_user_errors(finished, "write"):
                part.replace(finished)
    if originals.labelled:
        file = io.BytesIO()
        np.save(file, np.tile(originals.images.labels.numpy(), len(ALL)))
        disk.write_bytes(folder.labels_file, file.getvalue())


def encode_image(image: Image.Image, kind: Literal["JPEG", "PNG"], quality: int = QUALITY) -> bytes:
    """Return an image as the bytes of a file; ``quality`` (JPEG's, 1 to 95) is that of the published archives."""
    file = io.BytesIO()
    image.save(file, kind, optimize=True, quality=quality)
    return file.getvalue()


def contact_sheet(
    image: Tensor, names: Sequence[str], severities: Sequence[int], seed: int = 0, tile: int = _TILE
) -> Image.Image:
    """Return a contact sheet: one (1,C,H,W) uint8 image, clean and at every severity, a row per corruption. Images are
    shown with a longer side of about ``tile`` px: small ones enlarged in whole steps, pixel by pixel."""
    longer = max(image.shape[2:])
    factor = max(1, tile // longer) if longer < tile else tile / longer
    width, height = (max(1, round(side * factor)) for side in (image.shape[3], image.shape[2]))
    sampling = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    margin, gap, top = 190, 4, 18
    whole = margin + (1 + len(severities)) * (width + gap), top + len(names) * (height + gap)
    canvas = Image.new("RGB", whole, "white")
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(("clean", *(f"severity {severity}" for severity in severities))):
        draw.text((margin + column * (width + gap), 3), title, fill="black")
    for row, name in enumerate(names):
        down = top + row * (height + gap)
        draw.text((4, down + height // 2 - 6), name, fill="black")
        corrupted = [corruptions.corrupt(image, name, severity, seed=seed) for severity in severities]
        for column, shown in enumerate((image, *corrupted)):
            small = tensor_to_pil(shown[0]).resize((width, height), sampling)
            canvas.paste(small, (margin + column * (width + gap), down))
    return canvas

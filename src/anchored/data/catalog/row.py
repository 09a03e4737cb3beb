"""What a row of the catalog says about a data set, and about each of its files."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

Role = Literal["train", "ood", "adaptation", "corrupted", "shifted"]
Reader = Literal[
    "idx", "cifar_binary", "procedural", "corrupted_blocks", "corrupted_folders", "flat_folder", "class_folders",
    "imagenet", "dtd", "pets", "flowers", "cars", "food", "ucf101", "openood", "domainnet", "own",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of a data set; ``lists/files.txt`` has what is published of it: its first five fields.

    ``name``: its path inside the set's folder (or archive). ``bytes``: its size as published, None where no source
    states it. ``hash``: "md5:..." or "sha256:..." of the file as published, which a download must match; None where no
    source states it: then the hash of the first download is kept and later ones must match that. ``content``: the same
    of what a ``.gz`` holds, which a copy that somebody compressed anew (Debian does) or unpacked matches as well; None
    where ``hash`` suffices. ``urls``: where to download it, the official place first, then mirrors; empty for files
    inside the package or an archive, and for those that need a login. ``makes``: the entries in the set's folder that
    ``anchored data fetch`` unpacks from it. ``holds``: the entries that are read from it without unpacking. ``into``:
    the folder it is unpacked into, for an archive that has none of its own. ``nested``: it is an archive of archives,
    one for each class. ``compressed``: it is a gzip file although its name does not say so; since single images are
    read from it, ``anchored data fetch`` puts ``plain``, the tar inside it, beside it.
    """

    name: str
    bytes: int | None = None
    hash: str | None = None
    content: str | None = None
    urls: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()
    into: str = ""
    nested: bool = False
    compressed: bool = False

    @property
    def plain(self) -> "File":
        """Return the file that lies beside a ``compressed`` one: its content, of which nothing is published."""
        return replace(self, name=f"{self.name}.plain", bytes=None, hash=None, urls=(), compressed=False)


@dataclass(frozen=True, kw_only=True)
class Holding:
    """What is kept in a folder of its own below the data root: a data set's files, or a published model's.

    - ``name``: how recipes and commands call it; ``title``: how the paper and reports spell it.
    - ``licence``, ``citation``: its terms of use, and whom to cite.
    - ``folder``: its folder below the data root.
    - ``manual``: what a person has to do where a login or an agreement is needed, or no address is left.
    - ``homes``: other folders where it may lie; a relative one is inside this package.
    """

    name: str
    title: str
    licence: str
    citation: str
    folder: str = ""
    manual: str = ""
    homes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataSet(Holding):
    """One data set: what every ``Holding`` has, and

    - ``classes``: the name of each label 0, 1, ...
    - ``channels``, ``size``: images are (channels, size, size) uint8; if ``varied``, images have many sizes, and
      ``size`` is that at which a network trained on the set sees them.
    - ``train``, ``test``: how many images each split has; 0 where there is none.
    - ``mean``, ``std``: per channel, of the training images scaled to [0, 1] (for small sets, of exactly this row's);
      empty for sets that are not trained on.
    - ``roles``: what it can be used for.
    - ``reader``: which function in ``readers`` reads it.
    - ``file_classes``: how many classes the files have, before ``keep``.
    - ``train_files``, ``test_files``: images then labels for ``idx``, records for ``cifar_binary``, blocks for archives
      of corrupted images.
    - ``parts``: the files to download that hold everything: archives, and lists beside them.
    - ``needs``: files and folders, below the set's folder, that are there when the set is.
    - ``images``: the folder below the set's folder that holds the images; ``subset``: the names of those that the row
      has, where it is not all of them.
    - ``label_bytes``: bytes before the pixels of a CIFAR record; the last one is the label.
    - ``keep``: the labels in the files that this row keeps, renumbered 0, 1, ... in this order; None keeps all.
    - ``folders``: the name of each class's folder, where that is not the class's name.
    - ``part_of``: the folder of the larger set that its images are of, where that has a folder of its own.
    - ``near_to``: the rows for which it is near-OOD, as OpenOOD 1.5 has it: much like what they are of, other classes.
    - ``clean``: for archives of corrupted images, the row of the clean ones; ``corruptions``: what the archive has.
    - ``note``: what else a user should know, one sentence.
    """

    classes: tuple[str, ...]
    channels: int = 3
    size: int = 224
    train: int = 0
    test: int
    roles: tuple[Role, ...]
    reader: Reader
    file_classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    varied: bool = False
    train_files: tuple[File, ...] = ()
    test_files: tuple[File, ...] = ()
    parts: tuple[File, ...] = ()
    needs: tuple[str, ...] = ()
    images: str = ""
    subset: tuple[str, ...] = ()
    label_bytes: int = 1
    keep: tuple[int, ...] | None = None
    folders: tuple[str, ...] = ()
    part_of: str = ""
    near_to: tuple[str, ...] = ()
    clean: str = ""
    corruptions: tuple[str, ...] = ()
    note: str = ""

    @property
    def downloads(self) -> tuple[File, ...]:
        """Return the files that ``anchored data fetch`` brings: those that have an address."""
        return tuple(file for file in (*self.parts, *self.train_files, *self.test_files) if file.urls)


def read_lines(name: str) -> tuple[str, ...]:
    """Return the lines of a list that comes with the catalog: class names, or which images a row has."""
    return tuple((Path(__file__).parent / "lists" / f"{name}.txt").read_text(encoding="utf-8").splitlines())


def _read_files() -> dict[tuple[str, str], File]:
    """Return the files of ``lists/files.txt`` by folder and name; "-" stands where no source states a value."""
    files = {}
    for line in read_lines("files"):
        folder, name, *values = line.split()
        size, digest, content = (None if value == "-" else value for value in values[:3])
        number = int(size) if size else None
        files[folder, name] = File(name=name, bytes=number, hash=digest, content=content, urls=tuple(values[3:]))
    return files


_FILES = _read_files()


def published(folder: str, *names: str, **unpacking: Any) -> tuple[File, ...]:
    """Return files of the sets in ``folder``, with fields that say how each of them is unpacked (``makes`` ...)."""
    return tuple(replace(_FILES[folder, name], **unpacking) for name in names)

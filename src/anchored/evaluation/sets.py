"""The sets that a classifier is evaluated on, by name: rows of the catalog, own images, and sets given as such."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anchored.config.settings import Data
from anchored.data import datasets
from anchored.data.catalog import registry as catalog
from anchored.data.given import relabelled
from anchored.data.image_sets import GivenInputs, LabelledImages
from anchored.data.preprocessing import InputFormat
from anchored.data.synthetic_ood import OUTLIERS

FEWEST = 10
"""Images of a class that a trial's fraction leaves in a set that is measured, at least."""


@dataclass(frozen=True)
class NamedSets:
    """Sets by their names in a recipe, as a network's input."""

    data: Data
    view: InputFormat
    root: Path | None = None
    whole: bool = False  # all images of a test set without splits are measured, since none of them was trained on
    logits: tuple[str, ...] = ()  # names of the logits, where they are not those of the test set's classes

    def open(self, name: str, split: str) -> LabelledImages | GivenInputs:
        """The images of a split: "train", "test", "validation", "ood", or "all", which is held-out images of another
        set, their labels the test set's; shrunken as the settings say."""
        tested = name == self.data.train and split == "test"
        shown = "all" if tested and self.whole else split
        images: LabelledImages = datasets.open_set(name, shown, self.data, self.view, self.root, minimum=FEWEST)
        if split == "all":
            images = relabelled(images, self.logits or datasets.dataset_row(self.data.train, self.data).classes)
        return relabelled(images, self.logits) if self.logits and name == self.data.train and split != "ood" else images

    def open_corrupted(self, archive: str, corruption: str, severity: int) -> LabelledImages:
        """An archive's images under one corruption."""
        images = datasets.open_corrupted(archive, corruption, severity, self.data, self.view, self.root, minimum=FEWEST)
        return relabelled(images, self.logits) if self.logits else images

    def title(self, name: str) -> str:
        """How rows call a set."""
        return OUTLIERS[name].title if name in OUTLIERS else catalog.dataset_title(name)

    def kind(self, name: str) -> str:
        """What an out-of-distribution set is for the images that are measured: near, far or synthetic."""
        return "synthetic" if name in OUTLIERS else catalog.ood_kind(name, self.data.train)

    def file_name(self, name: str) -> str:
        """A set's name as part of a file's."""
        return catalog.dataset_file_name(name)

    def classes(self, name: str) -> int:
        """How many classes a set has."""
        return len(datasets.dataset_row(name, self.data).classes)

    def content(self, name: str) -> str:
        """Hash of the images, where their name does not say which they are; else empty."""
        return datasets.content_hash(name, self.data)


@dataclass(frozen=True)
class GivenSets(NamedSets):
    """Sets of images that were given as such, by (name, split); any other name is that of a :class:`NamedSets`."""

    given: Mapping[tuple[str, str], LabelledImages | GivenInputs] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)  # title of an OOD set or a task -> its name in the catalog
    near: frozenset[str] = frozenset()
    hashes: Mapping[str, str] = field(default_factory=dict)  # of the sets that were given
    counts: Mapping[str, int] = field(default_factory=dict)  # classes of the sets that were given

    def open(self, name: str, split: str) -> LabelledImages | GivenInputs:
        """The images of a split; see :class:`NamedSets`."""
        found = self.given.get((name, split))
        return super().open(self.names.get(name, name), split) if found is None else found

    def title(self, name: str) -> str:
        """How rows call a set: by the name that it was given."""
        return name if name in self.hashes or name in self.names else super().title(name)

    def kind(self, name: str) -> str:
        """Near where that was said, else as the catalog has it; a set that was given is far."""
        if name in self.near:
            return "near"
        return "far" if name in self.hashes else super().kind(self.names.get(name, name))

    def file_name(self, name: str) -> str:
        """A set's name as part of a file's: of one that was given that of its title."""
        if name not in self.hashes and name not in self.names:
            return super().file_name(name)
        return catalog.title_file_name(name)

    def classes(self, name: str) -> int:
        """How many classes a set has."""
        return self.counts[name] if name in self.counts else super().classes(self.names.get(name, name))

    def content(self, name: str) -> str:
        """Hash of the images; of a title for a set of the catalog, the set's name with it."""
        if name in self.hashes:
            return self.hashes[name]
        source = self.names.get(name, name)
        return super().content(source) if source == name else f"{source} {super().content(source)}"

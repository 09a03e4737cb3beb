"""The sets that a caller gives in Python, by name or as they are, opened and brought into one order of classes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anchored.config.settings import Data, Evaluation
from anchored.data import datasets
from anchored.data.catalog import registry as catalog
from anchored.data.catalog.names import resolve_name
from anchored.data.given import content_digest, given_set, relabelled
from anchored.data.image_sets import GivenInputs, ImageStream, LabelledImages
from anchored.data.preprocessing import InputFormat
from anchored.data.synthetic_ood import OUTLIERS
from anchored.errors import UserError
from anchored.evaluation.given_models import TEST
from anchored.evaluation.overlap import places_in_both
from anchored.evaluation.sets import GivenSets
from anchored.store.layout import HELD_OUT

Sets = Mapping[str, Any] | Sequence[str]
"""Title -> a set, or names of sets."""


def _resolved(source: Any) -> Any:
    """A set as it was given; its name as it is known everywhere else, if that is what was given."""
    return resolve_name(source) if isinstance(source, (str, Path)) else source


def _titled(sets: Sets) -> Mapping[str, Any]:
    """Title -> a set; of names, each by its own. ``UserError`` for titles of rows that are means, and the like."""
    titled = sets if isinstance(sets, Mapping) else {name: name for name in sets}
    if taken := next((title for title in titled if title in (HELD_OUT, "mean") or title.startswith("mean-")), ""):
        raise UserError(f"a set is called '{taken}', as rows of another kind are: give it another title")
    return titled


@dataclass
class SetOpener:
    """Opens what a caller gives, keeps it by name and split, and makes the sets of an evaluator.

    ``test``: the labelled test images; ``view``: the network's input, None for that of the test images.
    """

    test: Any
    view: InputFormat | None = None
    given: dict[tuple[str, str], LabelledImages | GivenInputs] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.test = _resolved(self.test)

    @property
    def name(self) -> str:
        """The test set's name: as it was given, or "test"."""
        return str(self.test) if isinstance(self.test, (str, Path)) else TEST

    def open_test(self) -> LabelledImages | GivenInputs:
        """The test images; what is opened later is brought to their size and colours."""
        images = self._open(self.test, self.name, "all")
        if self.view is None:
            shape = () if isinstance(images, ImageStream) else tuple(images.images.shape)
            square = len(shape) == 4 and shape[1] in (1, 3) and shape[2] == shape[3]
            self.view = InputFormat(shape[1], shape[2]) if square else InputFormat(3, 0)
        return images

    def keep_test(self, images: LabelledImages | GivenInputs) -> None:
        """Keep the test images, whose labels count through the network's classes."""
        self._keep(self.name, "test", images)

    def with_held_out(self, settings: Evaluation, source: Any) -> Evaluation:
        """Open labelled images that decisions are fitted on, if any; the settings with their name.

        ``UserError`` where they are the test images.
        """
        if source is None:
            return settings
        source = _resolved(source)
        name = str(source) if isinstance(source, (str, Path)) else HELD_OUT
        if name == self.name:
            raise UserError("held_out are the test images: decisions are fitted on images that are not measured")
        images, test = self._labelled(source, name, "all"), self.given[self.name, "test"]
        if not isinstance(images, ImageStream) and not isinstance(test, ImageStream):
            both, count = len(places_in_both(images.images, test.images)), len(images)
            which = "are the test images" if both == count else f"are test images in {both:,} of {count:,}"
            if both:
                raise UserError(f"held_out {which}: decisions are fitted on images that are not measured")
        self._keep(name, "all", images)
        return replace(settings, held_out=name)

    def refuse_mixed(self, settings: Evaluation, normalised: bool) -> None:
        """``UserError`` where some sets are raw images and others inputs that somebody prepared, which a model takes as
        they are; or where ``normalised`` (``preprocess``, ``mean`` or ``std`` is given) is of no raw images."""
        prepared = isinstance(self.given[self.name, "test"], GivenInputs)
        if prepared and normalised:
            raise UserError(
                f"the images of {self.name} are floats that are no levels of 255, which the model gets as they are: "
                "leave preprocess, mean and std out, or give uint8"
            )
        kinds = {title: isinstance(images, GivenInputs) for (title, _), images in self.given.items()}
        named = (*settings.ood, *settings.adaptation, *settings.shifted)
        for title in (*kinds, *named):
            if kinds.get(title, False) != prepared:
                raw, other = (title, self.name) if prepared else (self.name, title)
                raise UserError(
                    f"{raw} is raw images and {other} is floats that are no levels of 255, which the model gets as "
                    "they are: give both as uint8, or both prepared"
                )

    def with_shifted(self, settings: Evaluation, shifted: Sets) -> Evaluation:
        """Open labelled images of the test images' classes from elsewhere; the settings with their titles."""
        sources = _titled(shifted)
        if self.name in sources:
            raise UserError(f"shifted has '{self.name}', which are the test images: give them another title")
        for title, source in sources.items():
            self._keep(title, "all", self._labelled(_resolved(source), title, "all"))
        return replace(settings, shifted=tuple(sources))

    def keep_training(self, train: Any) -> None:
        """Keep labelled training images, likewise, or leave it to the catalog, which knows those of its sets."""
        if train is not None:
            self._keep(self.name, "train", self._labelled(_resolved(train), "train", "train"))
        elif self.name not in catalog.CATALOG:
            raise UserError(
                "a detector is fitted on training images: give labelled ones (train=), or detectors that learn nothing"
            )

    def with_sets(self, settings: Evaluation, ood: Sets, tasks: Sets) -> Evaluation:
        """Open the other sets; the settings with their titles."""
        ood = ood if isinstance(ood, Mapping) else catalog.expand_groups(ood)
        outside, others = _titled(ood), _titled(tasks)
        for title, source in outside.items():
            if title in OUTLIERS and not (isinstance(source, str) and source == title):
                raise UserError(f"ood has '{title}', which is the test images made into such: give another title")
            if not self._named(title, source):
                self._keep(title, "ood", self._open(source, title, "ood"))
        for title, source in others.items():
            if self._named(title, source):
                continue
            if title == self.name:
                raise UserError(f"adaptation has '{title}', as the test images are called: give the task another title")
            if not isinstance(source, (tuple, list)) or len(source) != 2:
                raise UserError(f"adaptation '{title}': give (train, test), each a labelled set, or a set's name")
            train = self._open(_resolved(source[0]), title, "train")
            self._keep(title, "train", train)
            self._keep(title, "test", relabelled(self._open(_resolved(source[1]), title, "test"), train.classes))
        return replace(settings, ood=tuple(outside), adaptation=tuple(others))

    def sets(self, near: Sequence[str]) -> GivenSets:
        """All sets by name; ``near``: titles of those that are near-OOD."""
        data = Data(train=self.name)
        view = self.view or InputFormat(3, 0)
        return GivenSets(
            data,
            view,
            logits=self.given[self.name, "test"].classes,
            near=frozenset(near),
            given=self.given,
            names=self.names,
            hashes=self.hashes,
            counts=self.counts,
        )

    def _named(self, title: str, source: Any) -> bool:
        """Whether a set is given by a name, which is then known; it is opened when it is measured."""
        if not isinstance(source, (str, Path)):
            return False
        source = _resolved(source)
        if title != source:
            self.names[title] = source
        if source not in OUTLIERS and not catalog.is_user_data(source):
            catalog.get_dataset(source)
        return True

    def _labelled(self, source: Any, title: str, split: str) -> LabelledImages | GivenInputs:
        """Open a set whose labels count as the test images' do."""
        found: LabelledImages | GivenInputs = relabelled(
            self._open(source, title, split), self.given[self.name, "test"].classes
        )
        return found

    def _open(self, source: Any, title: str, split: str) -> LabelledImages | GivenInputs:
        if not isinstance(source, (str, Path)):
            return given_set(source, title, (), self.view, labelled=split != "ood")
        settings = Data(train=str(source))
        self.view = self.view or datasets.input_format(settings)
        return datasets.open_set(str(source), split, settings, self.view)

    def _keep(self, title: str, split: str, images: LabelledImages | GivenInputs) -> None:
        self.given[title, split], self.counts[title] = images, len(images.classes)
        if not isinstance(images, ImageStream):  # a stream is of files, whose content the catalog hashes
            both = self.hashes.get(title, "") + content_digest(images)
            self.hashes[title] = hashlib.sha256(both.encode()).hexdigest()[:16]

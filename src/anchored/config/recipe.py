"""A study's recipe, and the trainings that its grid expands to."""

import dataclasses
import hashlib
import itertools
import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import field, replace
from typing import Any, Literal

from anchored.config import settings as sections
from anchored.config.methods import METHODS, PLAIN, after_training, method_title
from anchored.config.settings import Amount, Anchoring, Data, MaskProbability, Network, Protocol, Seed, Tail, Training
from anchored.config.validation import PlainName, parse, settings_class
from anchored.errors import UserError


@settings_class
class Cell:
    """One training of a study: everything that decides its weights, and nothing else."""

    network: str
    protocol: Protocol
    mask_probability: MaskProbability  # α; 0 unless the protocol is ``ram``
    tail_weight: Amount  # λ of hard Δ mining; 0 without
    seed: Seed
    data: Data
    anchoring: Anchoring
    tail: Tail
    train: Training
    start: Network = field(default_factory=Network)  # the recipe's section ``network``
    method: str = ""  # what ``train`` was made by, of grid.methods; nothing for the recipe as it is

    @property
    def name(self) -> str:
        """Folder name of the cell, unique within a study: ``resnet18-ram-0.25-seed0``, ``small-sam-standard-...``."""
        masked = f"-{self.mask_probability:g}" if self.protocol == "ram" else ""
        tail = f"-tail{self.tail_weight:g}" if self.tail_weight else ""
        network, method = (re.sub(r"[^A-Za-z0-9_.+-]", "-", text) for text in (self.network, self.method))
        return f"{network}{f'-{method}' * bool(method)}-{self.protocol}{masked}{tail}-seed{self.seed}"

    @property
    def label(self) -> str:
        """The cell's name in sentences: ``resnet18 · RAM α=0.25 · seed 0``."""
        shown = f"RAM α={self.mask_probability:g}" if self.protocol == "ram" else self.protocol
        shown += f" λ={self.tail_weight:g}" if self.tail_weight else ""
        shown = f"{method_title(self.method)} · {shown}" if self.method else shown
        return f"{self.network} · {shown} · seed {self.seed}"

    @staticmethod
    def parse(settings: Any, where: object) -> "Cell":
        """Return the cell that ``canonical`` wrote; ``UserError`` naming ``where`` it came from if it is none."""
        if isinstance(settings, dict) and "alpha" in settings:  # the name in studies begun before 2026-12
            settings = {"mask_probability" if key == "alpha" else key: value for key, value in settings.items()}
        cell: Cell = parse(Cell, settings, f"{where} does not describe a training of this version of anchored")
        return cell

    def digest(self) -> str:
        """Short hash of everything that decides the weights; results are bound to it."""
        return hashlib.sha256(canonical(self).encode()).hexdigest()[:16]


@settings_class
class GivenCell:
    """A model of a study that was trained elsewhere: what it is, and the images that it is measured on."""

    title: str
    given: sections.Given
    data: Data
    whole: bool
    """Whether all images of a set without splits are measured, since none of them is trained on."""
    accelerator: sections.Accelerator = "auto"

    @property
    def name(self) -> str:
        """Folder name of the cell: ``given-TITLE``."""
        return f"given-{re.sub(r'[^A-Za-z0-9_.+-]', '-', self.title)}"

    @property
    def label(self) -> str:
        """The cell's name in sentences."""
        return self.title


@settings_class
class AfterCell:
    """A use of trained networks of a study: what is done after training, and with which of its trainings."""

    method: str  # of grid.methods
    members: tuple[Cell, ...]  # of one network and protocol, each of another seed; one but of an ensemble

    def digests(self) -> dict[str, Any]:
        """What ``cell.json`` holds: the method, and the hashes of the trainings."""
        return {"method": self.method, "members": {cell.name: cell.digest() for cell in self.members}}

    @property
    def first(self) -> Cell:
        """The training of the smallest place, whose seed the rows have."""
        return self.members[0]

    @property
    def name(self) -> str:
        """Folder name of the cell: ``small-temperature-ram-0.25-seed0``, ``small-ensemble-standard-seed0-to-4``."""
        until = f"-to-{self.members[-1].seed}" if len(self.members) > 1 else ""
        return replace(self.first, method=self.method).name + until

    @property
    def label(self) -> str:
        """The cell's name in sentences."""
        until = f" to {self.members[-1].seed}" if len(self.members) > 1 else ""
        return replace(self.first, method=self.method).label + until


@settings_class
class Recipe:
    """A whole study."""

    name: PlainName = "study"
    """Name of the study."""
    title: str = ""
    """Title of the report."""
    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    grid: sections.Grid = field(default_factory=sections.Grid)
    anchoring: Anchoring = field(default_factory=Anchoring)
    tail: Tail = field(default_factory=Tail)
    train: Training = field(default_factory=Training)
    evaluate: sections.Evaluation = field(default_factory=sections.Evaluation)
    choose: Literal["", "alpha", "lambda"] = ""
    """Knob that a study chooses on held-out training images: alpha, or lambda (grid.tail_weights)."""
    validate: sections.Validation = field(default_factory=sections.Validation)
    references: sections.References = field(default_factory=sections.References)
    cluster: sections.Cluster = field(default_factory=sections.Cluster)

    @staticmethod
    def parse(settings: Any, where: object = "") -> "Recipe":
        """Return the recipe of plain settings; ``UserError`` for an unknown name, or a value out of its range."""
        name = settings.get("name") if isinstance(settings, dict) else None
        recipe: Recipe = parse(Recipe, settings, where or (f"recipe '{name}'" if name else ""))
        return recipe

    def cells(self) -> Iterator[Cell]:
        """The grid's trainings, seed by seed, so that an interrupted study has whole comparisons."""
        for seed in self.grid.seeds:
            for network, method in itertools.product(self.grid.networks, self.trained_methods):
                train, named = self.training(network, method), "" if method == PLAIN else method
                for protocol, mask_probability, weight in self._trainings(network):
                    tail = self.tail if weight else Tail()  # without the term its settings decide nothing
                    references = "" if protocol == "standard" else self.anchoring.reference_images
                    data = self._data_with(train.outliers, references)
                    fixed = (data, self.anchoring, tail, train, self.network, named)
                    yield Cell(network, protocol, mask_probability, weight, seed, *fixed)

    @property
    def trained_methods(self) -> tuple[str, ...]:
        """Methods that are trained: those of the grid, and those whose networks others use after training."""
        return tuple(dict.fromkeys(after_training(method)[1] for method in self.grid.methods))

    @property
    def outliers(self) -> tuple[str, ...]:
        """``train.outliers`` of the trainings that have some, each once."""
        pairs = itertools.product(self.grid.networks, self.trained_methods)
        return tuple(dict.fromkeys(name for pair in pairs if (name := self.training(*pair).outliers)))

    def after_cells(self) -> Iterator[AfterCell]:
        """What is done with the trainings afterwards, method by method: each by itself, ensembles of several seeds."""
        cells = list(self.cells())
        for method in self.grid.methods:
            way, of = after_training(method)
            alike: dict[tuple[object, ...], list[Cell]] = {}
            for cell in cells if way else ():
                if cell.method == ("" if of == PLAIN else of):
                    kind = cell.network, cell.protocol, cell.mask_probability, cell.tail_weight
                    alike.setdefault(kind, []).append(cell)
            for group in alike.values():
                many = min(len(group), self.grid.members) if way == "ensemble" else 1
                whole = len(group) - len(group) % many
                yield from (AfterCell(method, tuple(group[at : at + many])) for at in range(0, whole, many))

    def jobs(self) -> list[Cell | GivenCell | AfterCell]:
        """Return the models that were given, whose measuring takes little time, the trainings, and what is done with
        these."""
        whole, accelerator = not self.grid.networks, self.train.accelerator
        given = self.grid.given.items()
        measured = (GivenCell(title, each, self._data_with(), whole, accelerator) for title, each in given)
        return [*measured, *self.cells(), *self.after_cells()]

    def _data_with(self, *names: str) -> Data:
        """The images of a job that uses these sets besides, bound to their content, and to that of no others."""
        return replace(self.data, contents=tuple(pair for pair in self.data.contents if pair[0] in names))

    def _trainings(self, network: str) -> Iterator[tuple[Protocol, float, float]]:
        for protocol in self.grid.protocols:
            for mask_probability in self.alphas(network) if protocol == "ram" else (0.0,):
                for weight in self.grid.tail_weights if protocol == "ram" else (0.0,):
                    yield protocol, mask_probability, weight

    def _candidates(self) -> int:
        """Count the values that the knob to choose has, at most, for one network; without masks α is 0."""
        if "ram" not in self.grid.protocols:
            return 0
        if self.choose == "lambda":
            return len(self.grid.tail_weights)
        most = max((len(self.alphas(name)) for name in self.grid.networks), default=0)
        return most + ("anchored" in self.grid.protocols)

    def training(self, network: str, method: str = PLAIN) -> Training:
        """Return how one network of the grid is trained: the recipe's settings, changed by the network's, then by the
        method's. ``UserError`` where they do not go with one another."""
        own: Any = self.grid.per_network.get(network, sections.PerNetwork()).train
        of_method = {**(METHODS[method].train if method in METHODS else {}), **self.grid.per_method.get(method, {})}
        try:
            training: Training = parse(Training, {**vars(self.train), **own, **of_method}, name="train")
        except UserError as error:
            raise UserError(f"{error} (of {network if method == PLAIN else f'{network}, {method}'})") from error
        return training

    def _repeats(self, network: str) -> int:
        return max(self.training(network, method).repeats for method in self.trained_methods)

    def alphas(self, network: str) -> tuple[float, ...]:
        """Mask probabilities of one network of the grid."""
        return self.grid.per_network.get(network, sections.PerNetwork()).alphas or self.grid.alphas

    def scaled(self, scale: float, images: int = 0, size: int = 0, classes: int = 1) -> "Recipe":
        """Return the same study made small, for a trial: each of its parts shrinks, none vanishes.

        Images and epochs: times ``scale``, at least one epoch, and with hard Δ mining two, of which the first is its
        warm-up. Widths of networks that are rows and drawn anew: times √scale, at least an eighth. Where the set to
        train on is known to have so many ``images`` of that ``size`` (pixels), in so many ``classes``: no batch is
        larger than what is left of it without those that are held out, and inputs of 96 pixels or more shrink like the
        widths, to whole multiples of 32, at least 64.
        """
        parse(sections.Share, scale, name="--scale")
        if scale == 1:
            return self
        root = math.sqrt(scale)
        fraction, size = max(sys.float_info.min, self.data.fraction * scale), self.data.size or size
        size = max(64, 32 * round(size * root / 32)) if size >= 96 else self.data.size
        fixed = any(":" in name for name in self.grid.networks) or self.network.pretrained or self.network.checkpoint
        width = self.network.width if fixed else max(0.125, self.network.width * root)
        least = 1 + any(self.grid.tail_weights)  # hard Δ mining after a warm-up of an epoch
        pool = self.anchoring.training_reference_count
        if self.anchoring.training_references == "images":
            pool = max(1, round(pool * scale))
        each = self.train.devices * max((self._repeats(name) for name in self.grid.networks), default=1)
        left = images * fraction
        left -= classes * math.ceil(left * self.data.validation / classes)
        most = max(2, int(left) // each) * each if images else sys.maxsize

        def shrunk(train: Training) -> Any:
            epochs = max(least, round(train.epochs * scale))
            return {"epochs": epochs, "batch_size": min(train.batch_size, most)}

        per_network = {
            name: sections.PerNetwork(own.alphas, {**own.train, **shrunk(self.training(name))})
            for name, own in self.grid.per_network.items()
        }
        return replace(
            self,
            data=replace(self.data, fraction=fraction, size=size),
            network=replace(self.network, width=width),
            grid=replace(self.grid, per_network=per_network),
            anchoring=replace(self.anchoring, training_reference_count=pool),
            train=replace(self.train, **shrunk(self.train)),
        )

    def check(self) -> "Recipe":
        """Refuse settings of several sections that do not go together, with one line; returns the recipe itself."""
        try:
            problem = next(self._problems(), None)
        except UserError as error:
            problem = str(error)
        if problem:
            raise UserError(f"recipe '{self.name}': {problem}")
        return self

    def _problems(self) -> Iterator[str]:
        if (self.network.pretrained or self.network.checkpoint) and self.anchoring.stem == "fresh":
            name = "network.pretrained" if self.network.pretrained else "network.checkpoint"
            yield f"{name} brings a first layer, but anchoring.stem is fresh, which would draw it anew: set it to kept"
        drawn = self.anchoring.training_references
        if self.anchoring.at and any(self.grid.tail_weights):
            yield (
                f"anchoring.at is {self.anchoring.at}, but hard Δ mining (grid.tail_weights) fits residuals of images: "
                "leave out one"
            )
        if self.anchoring.at and self.references.count:
            yield f"anchoring.at is {self.anchoring.at}: references.count measures references at the input, set it to 0"
        if self.anchoring.at and drawn != "batch":
            yield (
                f"anchoring.at is {self.anchoring.at}, but anchoring.training_references is {drawn}: at a hidden layer "
                "references are of the batch"
            )
        halves = {cell.train.precision for cell in self.cells() if cell.tail_weight} & {"16-true", "bf16-true"}
        if halves:
            yield f"train.precision is {min(halves)}, too coarse for the moments of hard Δ mining: take a mixed one"
        if drawn != "batch" and self.tail.pairs == "anchored" and any(self.grid.tail_weights):
            yield f"tail.pairs is anchored, whose pairs are of a batch, but anchoring.training_references is {drawn}"
        if self.choose and not self.data.validation:
            yield "choose needs held-out training images: give, say, --data.validation 0.1"
        if self.choose and self._candidates() < 2:
            name = "grid.alphas" if self.choose == "alpha" else "grid.tail_weights"
            yield f"choose is {self.choose}, but {name} of the ram protocol leaves nothing to choose from"
        if self.evaluate.detectors and not self.evaluate.ood:
            yield "evaluate.detectors names detectors, but evaluate.ood no images to detect: name some"
        after = {after_training(method)[0] for method in self.grid.methods}
        if "temperature" in after and not (self.data.validation or self.evaluate.held_out):
            yield "grid.methods has temperature, fitted on held-out images: give, say, --data.validation 0.1"
        if self.evaluate.detectors and after != {""}:
            yield f"evaluate.detectors are of single networks, which {max(after)} of grid.methods is not: leave out one"
        labels: dict[str, str] = {}
        for cell in self.jobs():
            if cell.name in labels:
                yield (
                    f"'{labels[cell.name]}' and '{cell.label}' would share the folder {cell.name}: of given titles and "
                    "of networks it keeps letters and digits, of α and λ six digits; leave out or rename one"
                )
            labels[cell.name] = cell.label
        for network, method in itertools.product(self.grid.networks, self.trained_methods):
            own, train = f" (of {network})" * (network in self.grid.per_network), self.training(network, method)
            own = own if method == PLAIN else f" (of {network}, {method})"
            mixing = "mixup" if train.mixup else "cutmix"
            if self.tail.per_class and any(self.grid.tail_weights) and (train.mixup or train.cutmix):
                yield f"tail.per_class is true, but train.{mixing} mixes images of several classes{own}: leave out one"
            each = 2 if self.tail.batch_norm == "own" else 1  # what batch norm normalises by itself needs two
            least = each * train.devices
            if self.tail.points < least:
                yield f"tail.points is {self.tail.points}: give at least {least}, {each} a device"
            if train.devices != self.train.devices:
                yield f"grid.per_network.{network}.train.devices is {train.devices}: one number for all networks"


def canonical(settings: Any) -> str:
    """Settings as JSON text that is equal exactly when the settings are; those of the machine are left out."""
    return json.dumps(kept(settings), sort_keys=True, ensure_ascii=False)


def kept(settings: Any) -> Any:
    """Settings as plain values to be written; without those of the machine, and later ones that have their default."""
    if isinstance(settings, dict):
        return {key: kept(value) for key, value in settings.items()}
    if not dataclasses.is_dataclass(settings):
        return settings
    values = {each: getattr(settings, each.name) for each in dataclasses.fields(settings)}
    return {
        each.name: kept(value)
        for each, value in values.items()
        if not each.metadata.get("machine") and not (each.metadata.get("later") and value == each.default)
    }


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A seed in [0, 2⁶³) for one purpose, independent of the seeds of all other purposes."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

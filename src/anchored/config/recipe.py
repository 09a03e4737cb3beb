"""What a study is: a grid of trainings, and where its settings come from.

A recipe is a YAML file with the sections of ``settings.py``; ``base: other-recipe`` starts from another one and states
only what differs. ``Recipe.cells()`` expands it into the grid of trainings. Standard library and PyYAML only, so that
reading a recipe costs nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from anchored.config.settings import (
    Anchoring,
    Cluster,
    Data,
    Evaluation,
    Grid,
    Network,
    PerNetwork,
    Protocol,
    Tail,
    Training,
    TrainingPart,
    Validation,
    rules_of_choice,
    rules_of_cluster,
    rules_of_data,
    rules_of_grid,
    rules_of_start,
    rules_of_tail,
    rules_of_training,
)
from anchored.config.typed import filled, made
from anchored.errors import UserError

MOST = 100_000  # values of a recipe, aliases followed


@dataclass(frozen=True)
class Cell:
    """One training of a study: everything that decides its weights, and nothing else."""

    network: str
    protocol: Protocol
    alpha: float  # mask probability; 0 unless the protocol is ``ram``
    tail_weight: float  # λ of hard Δ mining; 0 without
    seed: int
    data: Data
    anchoring: Anchoring
    tail: Tail
    train: Training
    start: Network = field(default_factory=Network)  # the recipe's section ``network``

    @property
    def name(self) -> str:
        """Folder name of the cell, unique within a study: ``resnet18-ram-0.25-seed0``, ``timm-regnety_008-...``."""
        masked = f"-{self.alpha:g}" if self.protocol == "ram" else ""
        tail = f"-tail{self.tail_weight:g}" if self.tail_weight else ""
        network = re.sub(r"[^A-Za-z0-9_.+-]", "-", self.network)
        return f"{network}-{self.protocol}{masked}{tail}-seed{self.seed}"

    @property
    def label(self) -> str:
        """The cell's name in sentences: ``resnet18 · RAM α=0.25 · seed 0``."""
        shown = f"RAM α={self.alpha:g}" if self.protocol == "ram" else self.protocol
        shown += f" λ={self.tail_weight:g}" if self.tail_weight else ""
        return f"{self.network} · {shown} · seed {self.seed}"

    @staticmethod
    def parse(settings: Any, where: object) -> Cell:
        """The cell that ``canonical`` wrote; ``UserError`` naming ``where`` it came from if it is another thing."""
        try:
            found: Cell = made(Cell, filled(settings, CELL_SECTIONS))
        except (TypeError, UserError) as error:
            raise UserError(f"{where} does not describe a training of this version of anchored: {error}") from error
        return found

    def digest(self) -> str:
        """Short hash of everything that decides the weights; results are bound to it."""
        return hashlib.sha256(canonical(self).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Recipe:
    """A whole study."""

    name: str = "study"
    """Name of the study."""
    title: str = ""
    """Title of the report."""
    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    grid: Grid = field(default_factory=Grid)
    anchoring: Anchoring = field(default_factory=Anchoring)
    tail: Tail = field(default_factory=Tail)
    train: Training = field(default_factory=Training)
    evaluate: Evaluation = field(default_factory=Evaluation)
    choose: Literal["", "alpha", "lambda"] = ""
    """Knob that a study chooses on held-out training images: alpha, or lambda (grid.tail_weights)."""
    validate: Validation = field(default_factory=Validation)
    cluster: Cluster = field(default_factory=Cluster)

    @staticmethod
    def parse(settings: dict[str, Any]) -> Recipe:
        """The recipe of plain settings; ``UserError`` for an unknown one, or one of another type."""
        found: Recipe = made(Recipe, filled(settings, SECTIONS))
        return found

    def cells(self) -> Iterator[Cell]:
        """The grid's trainings, seed by seed, so that an interrupted study has whole comparisons."""
        for seed in self.grid.seeds:
            for network in self.grid.networks:
                train = self.training(network)
                for protocol, alpha, weight in self._trainings(network):
                    tail = self.tail if weight else Tail()  # without the term its settings decide nothing
                    fixed = (self.data, self.anchoring, tail, train, self.network)
                    yield Cell(network, protocol, alpha, weight, seed, *fixed)

    def _trainings(self, network: str) -> Iterator[tuple[Protocol, float, float]]:
        """Protocol, α and λ of each training of one network and seed."""
        for protocol in self.grid.protocols:
            for alpha in self.alphas(network) if protocol == "ram" else (0.0,):
                for weight in self.grid.tail_weights if protocol == "ram" else (0.0,):
                    yield protocol, alpha, weight

    def _among(self) -> int:
        """How many values the knob to choose has, at most, for one network; without masks α is 0."""
        if "ram" not in self.grid.protocols:
            return 0
        if self.choose == "lambda":
            return len(self.grid.tail_weights)
        return max(len(self.alphas(name)) for name in self.grid.networks) + ("anchored" in self.grid.protocols)

    def training(self, network: str) -> Training:
        """How one network of the grid is trained."""
        return replace(self.train, **self.grid.per_network.get(network, PerNetwork()).train)

    def alphas(self, network: str) -> tuple[float, ...]:
        """Mask probabilities of one network of the grid."""
        return self.grid.per_network.get(network, PerNetwork()).alphas or self.grid.alphas

    def scaled(self, scale: float, images: int = 0, size: int = 0) -> Recipe:
        """The same study made small, for a trial: each of its parts shrinks, none vanishes.

        Images and epochs: times ``scale``, at least one epoch, and with hard Δ mining two, of which the first is its
        warm-up. Widths of networks that are rows and drawn anew: times √scale, at least an eighth. Where the set to
        train on is known to have so many ``images`` of that ``size`` (pixels): no batch is larger than what is left of
        it, and inputs of 96 pixels or more shrink like the widths, to whole multiples of 32, at least 64.
        """
        if not 0 < scale <= 1:
            raise UserError(f"--scale is {scale:g}: give a number above 0 and at most 1")
        if scale == 1:
            return self
        root = math.sqrt(scale)
        fraction, size = self.data.fraction * scale, self.data.size or size
        size = max(64, 32 * round(size * root / 32)) if size >= 96 else self.data.size
        named = any(":" in name for name in self.grid.networks) or self.network.pretrained or self.network.checkpoint
        width = self.network.width if named else max(0.125, self.network.width * root)
        least = 1 + any(self.grid.tail_weights)
        devices = self.train.devices
        most = max(2, int(images * fraction) // devices) * devices if images else sys.maxsize

        def shrunk(train: Training) -> Training:
            epochs = max(least, round(train.epochs * scale))
            return replace(train, epochs=epochs, batch_size=min(train.batch_size, most))

        own = {
            name: PerNetwork(each.alphas, _part(shrunk(self.training(name)), each.train))
            for name, each in self.grid.per_network.items()
        }
        return replace(
            self,
            data=replace(self.data, fraction=fraction, size=size),
            network=replace(self.network, width=width),
            grid=replace(self.grid, per_network=own),
            train=shrunk(self.train),
        )

    def check(self) -> Recipe:
        """Refuse values that make no sense, each with one line; returns the recipe itself."""
        wrong = next((text for ok, text in self._rules() if not ok), None)
        if wrong:
            raise UserError(f"recipe '{self.name}': {wrong}")
        return self

    def _rules(self) -> Iterator[tuple[bool, str]]:
        evaluate = self.evaluate
        yield from rules_of_data(self.data)
        yield from rules_of_start(self.network, self.anchoring)
        yield from rules_of_grid(self.grid)
        yield from rules_of_choice(self.choose, self._among(), self.data, self.validate)
        yield from rules_of_cluster(self.cluster)
        for network in self.grid.networks:
            own, train = f" (of {network})" * (network in self.grid.per_network), self.training(network)
            for ok, text in (
                *rules_of_training(train),
                *rules_of_tail(self.tail, self.grid.tail_weights, train),
            ):
                yield ok, f"{text}{own}"
            alike = train.devices == self.train.devices
            yield alike, f"grid.per_network.{network}.train.devices is {train.devices}: one number for all networks"
        yield self.anchoring.references >= 1, f"anchoring.references is {self.anchoring.references}: at least 1"
        yield evaluate.batch_size >= 1, f"evaluate.batch_size is {evaluate.batch_size}: at least 1"
        yield evaluate.bootstrap >= 100, f"evaluate.bootstrap is {evaluate.bootstrap}: at least 100 replicates"
        for severity in evaluate.severities:
            yield severity in range(1, 6), f"evaluate.severities has {severity}: severities go from 1 to 5"


def _part(train: Training, names: Iterable[str]) -> TrainingPart:
    part: Any = {name: getattr(train, name) for name in names}
    return part  # type: ignore[no-any-return]


SECTIONS: dict[str, type[Any]] = {
    "data": Data,
    "network": Network,
    "grid": Grid,
    "anchoring": Anchoring,
    "tail": Tail,
    "train": Training,
    "evaluate": Evaluation,
    "validate": Validation,
    "cluster": Cluster,
}
CELL_SECTIONS: dict[str, type[Any]] = {
    "data": Data,
    "anchoring": Anchoring,
    "tail": Tail,
    "train": Training,
    "start": Network,
}


def canonical(settings: Any) -> str:
    """Settings as JSON text that is equal exactly when the settings are; those of the machine are left out."""
    return json.dumps(_deciding(settings), sort_keys=True, ensure_ascii=False)


def _deciding(settings: Any) -> Any:
    if isinstance(settings, dict):
        return {key: _deciding(value) for key, value in settings.items()}
    if not dataclasses.is_dataclass(settings):
        return settings
    fields = (each for each in dataclasses.fields(settings) if not each.metadata.get("machine"))
    return {each.name: _deciding(getattr(settings, each.name)) for each in fields}


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A seed in [0, 2⁶³) for one purpose, independent of the seeds of all other purposes."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("anchored.config") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read(name: str) -> dict[str, Any]:
    """The settings of a recipe, by the name of a shipped one or the path of a YAML file, bases merged in.

    Raises ``UserError`` for an unknown name, a missing or malformed file, or a base that leads back to itself.
    """
    return _read(name, ())


def _read(name: str, trail: tuple[str, ...]) -> dict[str, Any]:
    if name in trail:
        raise UserError(f"recipe '{name}' is its own base ({' -> '.join((*trail, name))}): remove one 'base:'")
    text = _text(name)
    try:
        own = yaml.safe_load(text) or {}
    except (ValueError, RecursionError) as error:  # a date that is none, a number too long
        raise UserError(f"recipe '{name}': not valid YAML ({error})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"recipe '{name}'{where}: not valid YAML ({getattr(error, 'problem', error)})") from error
    if not isinstance(own, dict):
        raise UserError(f"recipe '{name}': expected sections such as 'data:' and 'train:', found {type(own).__name__}")
    if odd := _odd(own):
        raise UserError(f"recipe '{name}': {odd}")
    base = own.pop("base", None)
    own.setdefault("name", Path(name).stem)
    return own if base is None else _merged(_read(str(base), (*trail, name)), own)


def _odd(tree: Any) -> str:
    """What is wrong with the shape of a file's settings, or nothing; aliases may stand for more than any memory has."""
    waiting, seen = [tree], 0
    while waiting:
        node, seen = waiting.pop(), seen + 1
        if seen > MOST:
            return f"it holds more than {MOST:,} values"
        if isinstance(node, dict):
            if odd := next((key for key in node if not isinstance(key, str)), None):
                return f"{odd!r} is the name of a setting, but not text: put it in quotes"
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return ""


def _text(name: str) -> str:
    if name in names():
        return (resources.files("anchored.config") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        raise UserError(f"no recipe '{name}': there are {', '.join(names())}, or give the path of a .yaml file")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe file {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Sections merged key by key; a list replaces the base's list."""
    both = {
        key: _merged(base[key], own[key])
        for key in base.keys() & own.keys()
        if isinstance(base[key], dict) and isinstance(own[key], dict)
    }
    return {**base, **own, **both}

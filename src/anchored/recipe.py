"""What a study is: typed settings, every default once with its unit and its reason.

A recipe is a YAML file with the sections below; ``base: other-recipe`` starts from another one and states only what
differs. ``Recipe.cells()`` expands it into the grid of trainings. Standard library and PyYAML only, so that reading a
recipe costs nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from anchored.errors import UserError

Protocol = Literal["standard", "anchored", "ram"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
MACHINE = {"machine": True}  # marks settings that decide how fast results come, not what they are: not kept with them


@dataclass(frozen=True)
class Data:
    """Which images are trained on."""

    train: str = "cifar10"
    """A row of the catalog, or own images: a folder of class folders, a CSV (path,label[,split]), an npz, or hf:NAME;
    its test split is the in-distribution test set."""
    fraction: float = 1.0
    """Share of every set's images that is used, the first ones of each class; in (0, 1]."""
    size: int = 0
    """Height and width of the network's input, pixels. 0 takes the set's own; for own images their median shorter side,
    224 at most."""
    channels: int = 0
    """Channels of the network's input, 1 or 3: grey and colour are converted. 0 takes the set's own."""
    mean: tuple[float, ...] = ()
    """Per channel, of images in [0, 1], what inputs are normalised with, such as a pretrained network's. Empty takes
    the set's own."""
    std: tuple[float, ...] = ()
    """Likewise the standard deviation."""
    crop: float = 0.0
    """Share of an encoded image's shorter side that the square in its middle keeps, in (0, 1]; images of the input's
    size are not touched. 0 takes 0.875 (256 pixels, then 224) for sets of images of many sizes and inputs of 96 pixels
    or more, else 1."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How encoded images are resized, always with antialiasing."""
    test_share: float = 0.2
    """Share of each class kept for testing where own images do not say which; in (0, 1)."""
    content: str = ""
    """Hash of own training images, filled in by the program: results are bound to it."""
    memory: float = field(default=4.0, metadata=MACHINE)
    """GB (10⁹ bytes) of pixels at the input's size up to which a set is kept in memory; larger ones are read and
    decoded again at every pass."""
    workers: int = field(default=-1, metadata=MACHINE)
    """Processes that decode images; -1: one for every core, 16 at most; 0: none."""


@dataclass(frozen=True)
class Network:
    """What every network of the grid starts from."""

    pretrained: bool = False
    """Start from the weights that come with the network's name (timm:..., torchvision:...)."""
    checkpoint: str = ""
    """Start from these weights: a .safetensors file of the plain network's, or a folder that anchored convert wrote. A
    head for another number of classes is drawn anew."""
    sha256: str = ""
    """Hash of the checkpoint's weights. Filled in when a study starts, so that its results are bound to them; weights
    with another hash are refused."""
    width: float = 1.0
    """Factor on the hidden widths of the networks in networks.py, for trials."""


@dataclass(frozen=True)
class Grid:
    """Which trainings a study runs: networks × protocols (× alphas for ram) × seeds."""

    networks: tuple[str, ...] = ("resnet18",)
    """Names of networks."""
    protocols: tuple[Protocol, ...] = PROTOCOLS
    """Standard, anchored (no masks) and ram (anchored with reference masking)."""
    alphas: tuple[float, ...] = (0.25,)
    """Mask probabilities of the ram protocol; in (0, 1)."""
    seeds: tuple[int, ...] = (0,)
    """Each seed is one training of every network and protocol."""


@dataclass(frozen=True)
class Anchoring:
    """How the anchored protocols are trained and evaluated."""

    stem: Literal["fresh", "kept"] = "fresh"
    """Fresh draws the wide first layer anew (training from scratch); kept widens the network's own, exactly."""
    mask_unit: Literal["batch", "image"] = "batch"
    """One mask draw for the whole batch, as published, or one per image."""
    masked_target: Literal["label", "uniform"] = "label"
    """What a masked pair is trained towards: its label, or the uniform distribution."""
    batch_norm: Literal["unmasked", "all"] = "unmasked"
    """Unmasked keeps whole masked batches out of batch norm's running statistics; all is the published behaviour,
    which evaluates on whatever mix of masked and ordinary batches came last."""
    references: int = 1
    """K training images kept with the model; evaluation takes the mean of the logits over them."""


@dataclass(frozen=True)
class Training:
    """The training recipe; the defaults are the paper's for CIFAR."""

    epochs: int = 200
    """Passes over the training images."""
    batch_size: int = 128
    """Images a step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW (betas 0.9 and 0.999, decoupled weight decay)."""
    learning_rate: float = 0.1
    """Highest learning rate."""
    rates: dict[str, float] = field(default_factory=dict)
    """Factors on the learning rate of parts, by the start of their parameters' names, the longest that fits; the names
    stem and head mean the first and the last layer of any network, "" all of it. 0 freezes: no gradient, no weight
    decay, batch norm as in evaluation."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov's form of momentum."""
    weight_decay: float = 5e-4
    """L2 penalty on all weights."""
    clip_norm: float = 0.0
    """Longest gradient, all parameters together; longer ones are shortened to it. 0 for no limit."""
    schedule: Literal["steps", "cosine", "one_cycle"] = "steps"
    """Steps multiplies the rate at milestones; cosine goes to zero along half a cosine; one_cycle goes up for a fifth
    of training, then straight to zero."""
    warmup: float = 0.0
    """Share of training in which the rate rises in a straight line, before cosine or steps; in [0, 1)."""
    warmup_start: float = 0.01
    """Factor on the rate that warm-up begins with."""
    milestones: tuple[float, ...] = (0.3, 0.6, 0.8)
    """Shares of training after which the rate is multiplied by decay (0.3 of 200 epochs is epoch 60)."""
    decay: float = 0.2
    """Factor at each milestone."""
    crop_padding: int = 4
    """Pixels of black border that random crops may reach into; 0 for no crops."""
    flip: bool = True
    """Random horizontal flips."""
    crop: Literal["padded", "resized"] = "padded"
    """Random crops: padded moves the image by up to crop_padding pixels; resized takes a random part (8 to 100 % of the
    area) at the input's size, as torchvision's reference for ImageNet does."""
    policy: Literal["none", "rand_augment", "trivial_augment", "auto_augment"] = "none"
    """Torchvision's augmentation policy after a resized crop and flip."""
    label_smoothing: float = 0.0
    """Share of each label spread over all classes."""
    mixup: float = 0.0
    """Both parameters of the Beta law of mixup (arXiv 1710.09412); images are mixed before they are anchored. 0 for
    none."""
    cutmix: float = 0.0
    """Likewise of CutMix (arXiv 1905.04899). With both, each batch takes one of the two, at evens."""
    precision: str = "32-true"
    """Any precision of Lightning's Trainer: 32-true, bf16-mixed, 16-mixed."""
    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu, mps."""
    deterministic: bool = True
    """Same seed and machine, same weights; false lets GPUs pick faster kernels."""


@dataclass(frozen=True)
class Evaluation:
    """What is measured on every trained network."""

    ood: tuple[str, ...] = ()
    """Rows of the catalog whose test images are out-of-distribution."""
    score: str = "energy"
    """OOD score of the headline; all of energy, max_softmax, max_logit and entropy are measured."""
    corruptions: tuple[str, ...] = ()
    """Names of corruptions, or of families: c (all 19 common ones), c15 (without the four extra ones), c-bar (the ten
    published for images of the network's size)."""
    corruption_source: Literal["generated", "archive"] = "generated"
    """Generated corrupts the test images as they are evaluated; archive reads the published sets (cifar10-c ...)."""
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Severities of each corruption, 1 to 5."""
    adaptation: tuple[str, ...] = ()
    """Rows of the catalog that a linear probe on frozen features is trained on."""
    batch_size: int = 500
    """Images a forward pass."""
    bootstrap: int = 1000
    """Replicates behind every interval over images."""
    seed: int = 0
    """Seed of corruptions, bootstraps and probe splits: the same for every network."""


@dataclass(frozen=True)
class Cell:
    """One training of a study: everything that decides its weights, and nothing else."""

    network: str
    protocol: Protocol
    alpha: float  # mask probability; 0 unless the protocol is ``ram``
    seed: int
    data: Data
    anchoring: Anchoring
    train: Training
    start: Network = field(default_factory=Network)  # the recipe's section ``network``

    @property
    def name(self) -> str:
        """Folder name of the cell, unique within a study: ``resnet18-ram-0.25-seed0``, ``timm-regnety_008-...``."""
        masked = f"-{self.alpha:g}" if self.protocol == "ram" else ""
        return f"{re.sub(r'[^A-Za-z0-9_.+-]', '-', self.network)}-{self.protocol}{masked}-seed{self.seed}"

    @property
    def label(self) -> str:
        """The cell's name in sentences: ``resnet18 · RAM α=0.25 · seed 0``."""
        shown = f"RAM α={self.alpha:g}" if self.protocol == "ram" else self.protocol
        return f"{self.network} · {shown} · seed {self.seed}"

    @staticmethod
    def parse(settings: Any, where: object) -> Cell:
        """The cell that ``canonical`` wrote; ``UserError`` naming ``where`` it came from if it is another thing."""
        try:
            return Cell(**_filled(settings, CELL_SECTIONS))
        except (TypeError, AttributeError) as error:
            raise UserError(f"{where} does not describe a training of this version of anchored: {error}") from error

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
    train: Training = field(default_factory=Training)
    evaluate: Evaluation = field(default_factory=Evaluation)

    @staticmethod
    def parse(settings: dict[str, Any]) -> Recipe:
        """The recipe of plain settings, such as a YAML file's, types and names checked by whoever read them."""
        return Recipe(**_filled(settings, SECTIONS))

    def cells(self) -> Iterator[Cell]:
        """The grid's trainings, seed by seed, so that an interrupted study has whole comparisons."""
        for seed in self.grid.seeds:
            for network in self.grid.networks:
                for protocol in self.grid.protocols:
                    for alpha in self.grid.alphas if protocol == "ram" else (0.0,):
                        yield Cell(network, protocol, alpha, seed, self.data, self.anchoring, self.train, self.network)

    def scaled(self, scale: float) -> Recipe:
        """The same study with ``scale`` times the images and the epochs, for a trial. At least one epoch remains."""
        if not 0 < scale <= 1:
            raise UserError(f"--scale is {scale:g}: give a number above 0 and at most 1")
        return replace(
            self,
            data=replace(self.data, fraction=self.data.fraction * scale),
            train=replace(self.train, epochs=max(1, round(self.train.epochs * scale))),
        )

    def check(self) -> Recipe:
        """Refuse values that make no sense, each with one line; returns the recipe itself."""
        wrong = next((text for ok, text in self._rules() if not ok), None)
        if wrong:
            raise UserError(f"recipe '{self.name}': {wrong}")
        return self

    def _rules(self) -> Iterator[tuple[bool, str]]:
        grid, evaluate = self.grid, self.evaluate
        yield from _rules_of_data(self.data)
        yield from _rules_of_start(self.network, self.anchoring)
        for name in ("networks", "protocols", "seeds"):
            values = getattr(grid, name)
            yield len(values) > 0, f"grid.{name} is empty: name at least one"
            yield len(set(values)) == len(values), f"grid.{name} names one twice: {', '.join(map(str, values))}"
        if "ram" in grid.protocols:
            yield len(grid.alphas) > 0, "grid.alphas is empty: the ram protocol needs a mask probability"
            yield len(set(grid.alphas)) == len(grid.alphas), "grid.alphas names one twice"
        for alpha in grid.alphas:
            yield 0 < alpha < 1, f"grid.alphas has {alpha:g}: a mask probability is above 0 and below 1"
        for seed in grid.seeds:
            yield 0 <= seed < 2**63, f"grid.seeds has {seed}: a seed is a whole number from 0"
        yield from _rules_of_training(self.train)
        yield self.anchoring.references >= 1, f"anchoring.references is {self.anchoring.references}: at least 1"
        yield evaluate.batch_size >= 1, f"evaluate.batch_size is {evaluate.batch_size}: at least 1"
        yield evaluate.bootstrap >= 100, f"evaluate.bootstrap is {evaluate.bootstrap}: at least 100 replicates"
        for severity in evaluate.severities:
            yield severity in range(1, 6), f"evaluate.severities has {severity}: severities go from 1 to 5"


def _rules_of_data(data: Data) -> Iterator[tuple[bool, str]]:
    yield 0 < data.fraction <= 1, f"data.fraction is {data.fraction:g}: give a share in (0, 1]"
    yield 0 < data.test_share < 1, f"data.test_share is {data.test_share:g}: give a share in (0, 1)"
    yield data.size >= 0, f"data.size is {data.size}: pixels, or 0 for the set's own"
    yield 0 <= data.crop <= 1, f"data.crop is {data.crop:g}: a share in (0, 1], or 0 for the rule"
    yield data.memory >= 0, f"data.memory is {data.memory:g}: GB, from 0"
    yield data.workers >= -1, f"data.workers is {data.workers}: processes, or -1 for one a core"
    yield data.channels in (0, 1, 3), f"data.channels is {data.channels}: 1, 3, or 0 for the set's own"
    yield len(data.mean) == len(data.std), "data.mean and data.std: give as many of one as of the other"
    yield all(map(math.isfinite, data.mean)), f"data.mean is {data.mean}: finite numbers"
    yield all(math.isfinite(each) and each > 0 for each in data.std), f"data.std is {data.std}: finite, above 0"


def _rules_of_start(start: Network, anchoring: Anchoring) -> Iterator[tuple[bool, str]]:
    yield 0 < start.width <= 16, f"network.width is {start.width:g}: a factor in (0, 16]"
    yield not (start.pretrained and start.checkpoint), "network.pretrained and network.checkpoint: give one of them"
    what = "network.pretrained" if start.pretrained else "network.checkpoint"
    kept = anchoring.stem == "kept" or not (start.pretrained or start.checkpoint)
    yield kept, f"{what} brings a first layer, but anchoring.stem is fresh, which would draw it anew: set it to kept"


def _rules_of_training(train: Training) -> Iterator[tuple[bool, str]]:
    yield train.epochs >= 1, f"train.epochs is {train.epochs}: at least 1"
    yield train.batch_size >= 2, f"train.batch_size is {train.batch_size}: at least 2, to have a reference"
    for name in FROM_ZERO:
        value = getattr(train, name)
        yield math.isfinite(value) and value >= 0, f"train.{name} is {value}: a finite number from 0"
    for part, factor in train.rates.items():
        yield math.isfinite(factor) and factor >= 0, f"train.rates has {factor} for '{part}': a finite number from 0"
    single = train.crop == "resized" or train.policy == "none"
    yield single, f"train.policy is {train.policy}: it goes with train.crop resized"
    yield train.crop_padding >= 0, f"train.crop_padding is {train.crop_padding}: pixels, from 0"
    yield 0 <= train.warmup < 1, f"train.warmup is {train.warmup:g}: a share of training in [0, 1)"
    one_cycle = train.schedule == "one_cycle"
    yield not (one_cycle and train.warmup), "train.warmup: the one_cycle schedule has its own; take cosine or steps"


FROM_ZERO = (
    "learning_rate", "momentum", "weight_decay", "clip_norm", "label_smoothing", "decay", "warmup_start", "mixup",
    "cutmix",
)  # fmt: skip

SECTIONS: dict[str, type[Any]] = {
    "data": Data,
    "network": Network,
    "grid": Grid,
    "anchoring": Anchoring,
    "train": Training,
    "evaluate": Evaluation,
}
CELL_SECTIONS: dict[str, type[Any]] = {"data": Data, "anchoring": Anchoring, "train": Training, "start": Network}


def _filled(settings: dict[str, Any], sections: dict[str, type[Any]]) -> dict[str, Any]:
    """Plain settings with their sections as dataclasses."""

    def section(kind: type[Any], fields: dict[str, Any]) -> Any:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})

    return {key: section(sections[key], value) if key in sections else value for key, value in settings.items()}


def canonical(settings: Any) -> str:
    """Settings as JSON text that is equal exactly when the settings are; those of the machine are left out."""
    return json.dumps(_deciding(settings), sort_keys=True, ensure_ascii=False)


def _deciding(settings: Any) -> Any:
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
    folder = resources.files("anchored") / "recipes"
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
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"recipe '{name}'{where}: not valid YAML ({getattr(error, 'problem', error)})") from error
    if not isinstance(own, dict):
        raise UserError(f"recipe '{name}': expected sections such as 'data:' and 'train:', found {type(own).__name__}")
    base = own.pop("base", None)
    own.setdefault("name", Path(name).stem)
    return own if base is None else _merged(_read(str(base), (*trail, name)), own)


def _text(name: str) -> str:
    if name in names():
        return (resources.files("anchored") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
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

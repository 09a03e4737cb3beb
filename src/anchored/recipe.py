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
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args, get_type_hints

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
    head for another number of classes starts at zero."""
    sha256: str = ""
    """Hash of the checkpoint's weights. Filled in when a study starts, so that its results are bound to them; weights
    with another hash are refused."""
    width: float = 1.0
    """Factor on the hidden widths of the networks in networks.py, for trials."""


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
class Tail:
    """Hard Δ mining, where grid.tail_weights has a λ above 0."""

    mass: float = 1e-4
    """Share ε of the residuals' distribution that its tail holds: about the farthest of 10,000 samples."""
    points: int = 32
    """Tail points shown a step."""
    warmup: float = 0.2
    """Share of training, in whole epochs, before the term is added; the distribution is fitted meanwhile."""
    pairs: Literal["all", "anchored"] = "all"
    """Fit to the residuals of every two images of a batch, or of each image with its own reference only."""
    per_class: bool = False
    """A mean for every class, with one covariance, instead of one distribution of all residuals."""
    rank: int = 64
    """Directions kept of the covariance of images with more than 4,096 numbers; smaller ones keep all."""


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
    average: float = 0.0
    """Decay per step of a moving average of the weights, which is what is kept in the end (up to the end of warm-up it
    follows the weights); in [0, 1), 0 for none."""
    precision: str = "32-true"
    """Any precision of Lightning's Trainer: 32-true, bf16-mixed, 16-mixed."""
    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu, mps."""
    deterministic: bool = True
    """Same seed and machine, same weights; false lets GPUs pick faster kernels."""


# Some of the settings of Training, their names and types checked by whoever reads a recipe.
TrainingPart = TypedDict("TrainingPart", get_type_hints(Training), total=False)  # type: ignore[misc]


@dataclass(frozen=True)
class PerNetwork:
    """What one network of the grid has of its own."""

    alphas: tuple[float, ...] = ()
    """Its mask probabilities; empty takes the grid's."""
    train: TrainingPart = field(default_factory=TrainingPart)
    """Settings of ``train`` that are others for it."""


@dataclass(frozen=True)
class Grid:
    """Which trainings a study runs: networks × protocols (× alphas for ram) × seeds."""

    networks: tuple[str, ...] = ("resnet18",)
    """Names of networks."""
    protocols: tuple[Protocol, ...] = PROTOCOLS
    """Standard, anchored (no masks) and ram (anchored with reference masking)."""
    alphas: tuple[float, ...] = (0.25,)
    """Mask probabilities of the ram protocol; in (0, 1)."""
    tail_weights: tuple[float, ...] = (0.0,)
    """Weights λ of hard Δ mining, of the ram protocol; 0 is without."""
    seeds: tuple[int, ...] = (0,)
    """Each seed is one training of every network and protocol."""
    per_network: dict[str, PerNetwork] = field(default_factory=dict)
    """Name of a network -> its own mask probabilities and training settings."""


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
    tail: Tail = field(default_factory=Tail)
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
        most = max(2, int(images * fraction)) if images else sys.maxsize

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
        yield from _rules_of_data(self.data)
        yield from _rules_of_start(self.network, self.anchoring)
        yield from _rules_of_grid(self.grid)
        for network in self.grid.networks:
            own, train = f" (of {network})" * (network in self.grid.per_network), self.training(network)
            for ok, text in (
                *_rules_of_training(train),
                *_rules_of_tail(self.tail, self.grid.tail_weights, train.epochs),
            ):
                yield ok, f"{text}{own}"
        yield self.anchoring.references >= 1, f"anchoring.references is {self.anchoring.references}: at least 1"
        yield evaluate.batch_size >= 1, f"evaluate.batch_size is {evaluate.batch_size}: at least 1"
        yield evaluate.bootstrap >= 100, f"evaluate.bootstrap is {evaluate.bootstrap}: at least 100 replicates"
        for severity in evaluate.severities:
            yield severity in range(1, 6), f"evaluate.severities has {severity}: severities go from 1 to 5"


def _part(train: Training, names: Iterable[str]) -> TrainingPart:
    part: Any = {name: getattr(train, name) for name in names}
    return part  # type: ignore[no-any-return]


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


def _rules_of_grid(grid: Grid) -> Iterator[tuple[bool, str]]:
    for name in ("networks", "protocols", "seeds"):
        values = getattr(grid, name)
        yield len(values) > 0, f"grid.{name} is empty: name at least one"
        yield len(set(values)) == len(values), f"grid.{name} names one twice: {', '.join(map(str, values))}"
    if "ram" in grid.protocols:
        yield len(grid.alphas) > 0, "grid.alphas is empty: the ram protocol needs a mask probability"
    own = {f"grid.per_network.{network}.alphas": each.alphas for network, each in grid.per_network.items()}
    for name, alphas in {"grid.alphas": grid.alphas, **own}.items():
        yield len(set(alphas)) == len(alphas), f"{name} names one twice"
        for alpha in alphas:
            yield 0 < alpha < 1, f"{name} has {alpha:g}: a mask probability is above 0 and below 1"
    for seed in grid.seeds:
        yield 0 <= seed < 2**63, f"grid.seeds has {seed}: a seed is a whole number from 0"


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
    yield 0 <= train.average < 1, f"train.average is {train.average:g}: a decay per step in [0, 1)"
    yield 0 <= train.warmup < 1, f"train.warmup is {train.warmup:g}: a share of training in [0, 1)"
    one_cycle = train.schedule == "one_cycle"
    yield not (one_cycle and train.warmup), "train.warmup: the one_cycle schedule has its own; take cosine or steps"


def _rules_of_tail(tail: Tail, weights: Sequence[float], epochs: int) -> Iterator[tuple[bool, str]]:
    yield len(set(weights)) == len(weights) > 0, "grid.tail_weights is empty or names one twice"
    for weight in weights:
        yield math.isfinite(weight) and weight >= 0, f"grid.tail_weights has {weight}: a finite number from 0"
    enough = epochs >= 2 or not any(weights)
    yield enough, "train.epochs is 1: hard Δ mining needs a second epoch, after its warm-up"
    yield 0 < tail.mass <= 1, f"tail.mass is {tail.mass:g}: give a share in (0, 1]"
    yield tail.points >= 2, f"tail.points is {tail.points}: at least 2, to be normalised as a batch"
    yield 0 < tail.warmup < 1, f"tail.warmup is {tail.warmup:g}: give a share in (0, 1)"
    yield tail.rank >= 1, f"tail.rank is {tail.rank}: at least 1"


FROM_ZERO = (
    "learning_rate", "momentum", "weight_decay", "clip_norm", "label_smoothing", "decay", "warmup_start", "mixup",
    "cutmix",
)  # fmt: skip

SECTIONS: dict[str, type[Any]] = {
    "data": Data,
    "network": Network,
    "grid": Grid,
    "anchoring": Anchoring,
    "tail": Tail,
    "train": Training,
    "evaluate": Evaluation,
}
CELL_SECTIONS: dict[str, type[Any]] = {"data": Data, "anchoring": Anchoring, "train": Training, "start": Network}


def _filled(settings: dict[str, Any], sections: dict[str, type[Any]]) -> dict[str, Any]:
    """Plain settings with their sections as dataclasses."""

    def section(kind: type[Any], fields: dict[str, Any]) -> Any:
        if kind is Grid:
            own = {network: section(PerNetwork, each) for network, each in fields.get("per_network", {}).items()}
            fields = {**fields, "per_network": own}
        if kind is PerNetwork:
            fields = {**fields, "train": _tuples(fields.get("train", {}))}
        return kind(**_tuples(fields))

    return {key: section(sections[key], value) if key in sections else value for key, value in settings.items()}


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


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

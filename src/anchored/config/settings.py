"""The sections of a recipe: every setting with its default, its unit, its reason, and the rule it must keep.

Standard library only, so that reading a recipe costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict, get_args, get_type_hints

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
    validation: float = 0.0
    """Share of each class's training images that no network is trained on, drawn once for all seeds: settings such as α
    are chosen on them; in [0, 1)."""
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
    batch_norm: Literal["joint", "own"] = "joint"
    """Show tail points in the pass of the training batch, so that batch norm normalises both alike, or in one of their
    own. There the network tells them by their own statistics, which evaluation never has: it is sure of them again."""
    rank: int = 64
    """Directions kept of the covariance of images with more than 4,096 numbers; smaller ones keep all."""


@dataclass(frozen=True)
class Training:
    """The training recipe; the defaults are the paper's for CIFAR."""

    epochs: int = 200
    """Passes over the training images."""
    batch_size: int = 128
    """Images a step, on all devices together."""
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
    devices: int = 1
    """Devices of all machines that train a network together (DDP), a process each, which share every batch: batch_size
    stays that of a step. Results are bound to their number, since references and batch norm's statistics come from a
    device's share. Under torchrun and SLURM filled in by the program."""
    sync_batch_norm: bool = False
    """Several GPUs: batch norm takes its statistics over the whole batch, not over each device's share."""
    deterministic: bool = True
    """Same seed and machine, same weights; false lets GPUs pick faster kernels."""
    checkpoint_minutes: float = field(default=10.0, metadata=MACHINE)
    """Minutes between two checkpoints within an epoch, at least; every epoch ends with one. 0: after every step."""


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
class Validation:
    """What α or λ is chosen on: held-out training images (data.validation), and nothing that evaluate measures."""

    ood: tuple[str, ...] = ("jigsaw", "inverted", "scrambled", "phase")
    """Outliers made of the held-out images (these four), or rows of the catalog that evaluate.ood does not name."""
    corruptions: tuple[str, ...] = ()
    """Names or families that evaluate.corruptions does not have. Empty takes those of c-bar that it lacks, or those of
    c15 where it has all of c-bar."""
    adaptation: tuple[str, ...] = ()
    """Tasks of the probes, of whose training images a fifth is held out to measure. Empty takes evaluate.adaptation."""
    tolerance: float = 1.0
    """Percentage points of clean accuracy that a choice may cost against standard; from 0."""


@dataclass(frozen=True)
class Cluster:
    """What each training of the grid takes of a Ray cluster (anchored study RECIPE --ray ADDRESS)."""

    cpus: int = field(default=1, metadata=MACHINE)
    """Cores, and threads; one machine must have as many."""
    gpus: float = field(default=0.0, metadata=MACHINE)
    """GPUs; a fraction shares one between trainings, 0 lets them see none."""


FROM_ZERO = (
    "learning_rate", "momentum", "weight_decay", "clip_norm", "label_smoothing", "decay", "warmup_start", "mixup",
    "cutmix",
)  # fmt: skip


def rules_of_choice(knob: str, among: int, data: Data, validate: Validation) -> Iterator[tuple[bool, str]]:
    """Pairs of whether a rule is kept and what is wrong with choosing a knob ``among`` so many values otherwise."""
    yield 0 <= validate.tolerance < math.inf, f"validate.tolerance is {validate.tolerance:g}: percentage points, from 0"
    if knob:
        yield data.validation > 0, "choose needs held-out training images: give, say, --data.validation 0.1"
        where = {"alpha": "grid.alphas", "lambda": "grid.tail_weights"}[knob]
        yield among > 1, f"choose is {knob}, but {where} of the ram protocol leaves nothing to choose from"


def rules_of_data(data: Data) -> Iterator[tuple[bool, str]]:
    """Pairs of whether a rule is kept and what is wrong with the data section otherwise."""
    yield 0 < data.fraction <= 1, f"data.fraction is {data.fraction:g}: give a share in (0, 1]"
    yield 0 < data.test_share < 1, f"data.test_share is {data.test_share:g}: give a share in (0, 1)"
    yield 0 <= data.validation < 1, f"data.validation is {data.validation:g}: give a share in [0, 1)"
    yield data.size >= 0, f"data.size is {data.size}: pixels, or 0 for the set's own"
    yield 0 <= data.crop <= 1, f"data.crop is {data.crop:g}: a share in (0, 1], or 0 for the rule"
    yield data.memory >= 0, f"data.memory is {data.memory:g}: GB, from 0"
    yield data.workers >= -1, f"data.workers is {data.workers}: processes, or -1 for one a core"
    yield data.channels in (0, 1, 3), f"data.channels is {data.channels}: 1, 3, or 0 for the set's own"
    yield len(data.mean) == len(data.std), "data.mean and data.std: give as many of one as of the other"
    yield all(map(math.isfinite, data.mean)), f"data.mean is {data.mean}: finite numbers"
    yield all(math.isfinite(each) and each > 0 for each in data.std), f"data.std is {data.std}: finite, above 0"


def rules_of_start(start: Network, anchoring: Anchoring) -> Iterator[tuple[bool, str]]:
    """Pairs of whether a rule is kept and what is wrong with how networks start otherwise."""
    yield 0 < start.width <= 16, f"network.width is {start.width:g}: a factor in (0, 16]"
    yield not (start.pretrained and start.checkpoint), "network.pretrained and network.checkpoint: give one of them"
    what = "network.pretrained" if start.pretrained else "network.checkpoint"
    kept = anchoring.stem == "kept" or not (start.pretrained or start.checkpoint)
    yield kept, f"{what} brings a first layer, but anchoring.stem is fresh, which would draw it anew: set it to kept"


def rules_of_grid(grid: Grid) -> Iterator[tuple[bool, str]]:
    """Pairs of whether a rule is kept and what is wrong with the grid otherwise."""
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


def rules_of_training(train: Training) -> Iterator[tuple[bool, str]]:
    """Pairs of whether a rule is kept and what is wrong with the training otherwise."""
    yield train.epochs >= 1, f"train.epochs is {train.epochs}: at least 1"
    yield train.batch_size >= 2, f"train.batch_size is {train.batch_size}: at least 2, to have a reference"
    yield train.devices >= 1, f"train.devices is {train.devices}: at least 1"
    shared = train.batch_size % max(1, train.devices) == 0 and train.batch_size >= 2 * train.devices
    each = f"train.batch_size is {train.batch_size}, shared by {train.devices} devices"
    yield shared, f"{each}: give each as many images, and at least 2, to have a reference"
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
    minutes = train.checkpoint_minutes
    yield minutes >= 0, f"train.checkpoint_minutes is {minutes:g}: minutes, from 0"
    one_cycle = train.schedule == "one_cycle"
    yield not (one_cycle and train.warmup), "train.warmup: the one_cycle schedule has its own; take cosine or steps"


def rules_of_cluster(cluster: Cluster) -> Iterator[tuple[bool, str]]:
    """Pairs of whether a rule is kept and what is wrong with a training's share of a cluster otherwise."""
    yield cluster.cpus >= 1, f"cluster.cpus is {cluster.cpus}: cores, at least 1"
    yield math.isfinite(cluster.gpus) and cluster.gpus >= 0, f"cluster.gpus is {cluster.gpus}: GPUs, from 0"


def rules_of_tail(tail: Tail, weights: Sequence[float], train: Training) -> Iterator[tuple[bool, str]]:
    """Pairs of whether a rule is kept and what is wrong with hard Δ mining otherwise."""
    yield len(set(weights)) == len(weights) > 0, "grid.tail_weights is empty or names one twice"
    for weight in weights:
        yield math.isfinite(weight) and weight >= 0, f"grid.tail_weights has {weight}: a finite number from 0"
    enough = train.epochs >= 2 or not any(weights)
    yield enough, "train.epochs is 1: hard Δ mining needs a second epoch, after its warm-up"
    yield 0 < tail.mass <= 1, f"tail.mass is {tail.mass:g}: give a share in (0, 1]"
    each = 2 if tail.batch_norm == "own" else 1  # what batch norm normalises by itself needs two
    least = each * train.devices
    yield tail.points >= least, f"tail.points is {tail.points}: at least {least}, {each} a device"
    yield 0 < tail.warmup < 1, f"tail.warmup is {tail.warmup:g}: give a share in (0, 1)"
    yield tail.rank >= 1, f"tail.rank is {tail.rank}: at least 1"

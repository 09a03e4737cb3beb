"""The sections of a recipe: every setting with its type and range, its default, its unit and its reason.

Rules on several settings of a section stand below them; those on several sections in ``Recipe.check``.
"""

from dataclasses import field
from typing import Annotated, Literal, get_args, get_type_hints

from pydantic import ConfigDict, Strict, model_validator
from typing_extensions import Self, TypedDict

from anchored.config.methods import METHODS, PLAIN, after_training
from anchored.config.validation import PlainName, distinct, not_empty, settings_class, within

Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict(), within("give a finite number")]
Flag = Annotated[bool, Strict()]
Amount = Annotated[Number, within("give a number from 0 to 1e30", ge=0, le=1e30)]  # fits a float32
Positive = Annotated[Number, within("give a finite number above 0", gt=0)]
Share = Annotated[Number, within("give a share in (0, 1]", gt=0, le=1)]
ProperShare = Annotated[Number, within("give a share in (0, 1)", gt=0, lt=1)]
ShareOrNone = Annotated[Number, within("give a share in [0, 1)", ge=0, lt=1)]
Probability = Annotated[Number, within("give a probability in [0, 1]", ge=0, le=1)]
MaskProbability = Annotated[Number, within("a mask probability is from 0 and below 1", ge=0, lt=1)]
Width = Annotated[Number, within("give a factor in (0, 16]", gt=0, le=16)]
Count = Annotated[Integer, within("give at least 1, at most 1,000,000", ge=1, le=1_000_000)]
Seed = Annotated[Integer, within("a seed is a whole number from 0, below 2**63", ge=0, lt=2**63)]
Severity = Annotated[Integer, within("severities go from 1 to 5", ge=1, le=5)]
Pixels = Annotated[Integer, within("give pixels up to 4096, or 0 where it is known without", ge=0, le=4096)]
Channels = Annotated[Integer, within("give 1 to 64, or 0 where it is known without", ge=0, le=64)]
CountOrNone = Annotated[Integer, within("give 0 to 1,000,000", ge=0, le=1_000_000)]
Processes = Annotated[Integer, within("give processes from 1 to 1024", ge=1, le=1024)]

Protocol = Literal["standard", "anchored", "ram"]
GIVEN = "given"
"""The protocol of rows of a model that was trained elsewhere."""
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
MaskUnit = Literal["batch", "process", "image"]
ReferenceChoice = Literal["random", "class_balanced", "herding", "k_centre", "own"]
MaskedTarget = Literal["label", "uniform"]
BatchNormUpdate = Literal["unmasked", "all"]
Policy = Literal["none", "rand_augment", "trivial_augment", "auto_augment", "augmix", "pixmix"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"]
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Compile = Literal["none", "default", "reduce-overhead", "max-autotune"]
Alphas = Annotated[
    tuple[Annotated[Number, within("a mask probability is above 0 and below 1", gt=0, lt=1)], ...], distinct
]
Replicates = Annotated[Integer, within("give at least 100 replicates, at most 1,000,000", ge=100, le=1_000_000)]
LATER = {"later": True}
"""Marks settings that came later: left out of what is kept where they have their default, so that earlier results stay
bound to the same text."""
MACHINE = {"machine": True}  # marks settings that decide how fast results come, not what they are: not kept with them


@settings_class
class Data:
    """Which images are trained on."""

    train: str = "cifar10"
    """A row of the catalog, or own images: a folder of class folders, a CSV (path,label[,split]), an npz, or hf:NAME;
    its test split is the in-distribution test set."""
    fraction: Share = 1.0
    """Share of every set's images that is used, the first ones of each class; in (0, 1]."""
    size: Pixels = 0
    """Height and width of the network's input, pixels. 0 takes the set's own; for own images their median shorter side,
    224 at most."""
    channels: Annotated[Integer, within("give 1, 3, or 0 for the set's own", ge=0, le=3)] = 0
    """Channels of the network's input, 1 or 3: grey and colour are converted. 0 takes the set's own."""
    mean: tuple[Number, ...] = ()
    """Per channel, of images in [0, 1], what inputs are normalised with, such as a pretrained network's. Empty takes
    the set's own."""
    std: tuple[Positive, ...] = ()
    """Likewise the standard deviation."""
    crop: Annotated[Number, within("give a share in [0.1, 1], or 0 for the rule", ge=0, le=1)] = 0.0
    """Share of an encoded image's shorter side that the square in its middle keeps, in [0.1, 1]; images of the input's
    size are not touched. 0 takes 0.875 (256 pixels, then 224) for sets of images of many sizes and inputs of 96 pixels
    or more, else 1."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How encoded images are resized, always with antialiasing."""
    test_share: ProperShare = 0.2
    """Share of each class kept for testing where own images do not say which; in (0, 1)."""
    validation: ShareOrNone = 0.0
    """Share of each class's training images that no network is trained on, drawn once for all seeds: settings such as α
    are chosen on them; in [0, 1)."""
    content: str = ""
    """Hash of own training images, filled in by the program: results are bound to it."""
    contents: tuple[tuple[str, str], ...] = field(default=(), metadata=LATER)
    """Likewise the name and hash of each further set of own images that is trained with: outliers, references."""
    memory: Amount = field(default=4.0, metadata=MACHINE)
    """GB (10⁹ bytes) of pixels at the input's size up to which a set is kept in memory; larger ones are read and
    decoded again at every pass."""
    workers: Annotated[Integer, within("give processes up to 1024, or -1 for one a core", ge=-1, le=1024)] = field(
        default=-1, metadata=MACHINE
    )
    """Processes that decode images; -1: one for every core, 16 at most; 0: none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError("data.mean and data.std: give as many of one as of the other")
        if self.channels == 2:
            raise ValueError("data.channels is 2: give 1, 3, or 0 for the set's own")
        if 0 < self.crop < 0.1:
            raise ValueError(f"data.crop is {self.crop:g}: give a share in [0.1, 1], or 0 for the rule")
        return self


@settings_class
class Network:
    """What every network of the grid starts from."""

    pretrained: Flag = False
    """Start from the weights that come with the network's name (timm:..., torchvision:...)."""
    checkpoint: str = ""
    """Start from these weights: a file of the plain network's (.pth, .pt, .ckpt, .bin, .safetensors), a folder of a run
    or of anchored convert, or hub:OWNER/NAME. A head for another number of classes starts at zero."""
    sha256: str = ""
    """Hash of the checkpoint's weights. Filled in when a study starts, so that its results are bound to them; weights
    with another hash are refused."""
    width: Width = 1.0
    """Factor on the hidden widths of the package's own networks, for trials."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pretrained and self.checkpoint:
            raise ValueError("network.pretrained and network.checkpoint: give one of them")
        return self


@settings_class
class Anchoring:
    """How the anchored protocols are trained and evaluated."""

    stem: Literal["fresh", "kept"] = "fresh"
    """Fresh draws the wide first layer anew (training from scratch); kept widens the network's own, exactly."""
    mask_unit: MaskUnit = "batch"
    """One mask draw for the whole batch, as published for CIFAR; one per image; or one for each process of a step, that
    is for every mask_group images, as published for ImageNet."""
    mask_group: Count = 32
    """Images of one draw of mask_unit process."""
    masked_target: MaskedTarget = "label"
    """What a masked pair is trained towards: its label, or the uniform distribution."""
    batch_norm: BatchNormUpdate = "unmasked"
    """Unmasked keeps whole masked batches out of batch norm's running statistics; all is the published behaviour,
    which evaluates on whatever mix of masked and ordinary batches came last."""
    references: Count = 1
    """K training images kept with the model; evaluation takes the mean of the logits over them."""
    at: str = field(default="", metadata=LATER)
    """Name of the layer or block whose input is anchored in place of the image (layer3), which must be the only way
    through the network; what comes before it runs once for all references. Empty anchors the image."""
    reference_choice: ReferenceChoice = "random"
    """How they are chosen: random; class_balanced, as many of each class as goes; herding and k_centre, coresets by
    distances of pixels (images at 32 pixels at most, 10,000 at most); own: the first ones of reference_images."""
    reference_images: str = ""
    """Own images as references: a folder of class folders, a CSV, an npz, hf:NAME, or a row of the catalog (its
    training images). Never test images: what is measured on these would be wrong."""
    training_references: Literal["batch", "all", "images", "classes"] = "batch"
    """Where training draws references: batch, from its own batch, shuffled; all, from all training images (as they are,
    not augmented); images, from training_reference_count of them; classes, from those of so many classes, as the
    published CIFAR code does with one."""
    training_reference_count: Count = 1
    """Images or classes that training_references images or classes draws from; chosen by seed."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.reference_choice == "own") != bool(self.reference_images):
            raise ValueError("anchoring.reference_choice own and anchoring.reference_images: give both or neither")
        return self


@settings_class
class Tail:
    """Hard Δ mining, where grid.tail_weights has a λ above 0."""

    mass: Share = 1e-4
    """Share ε of the residuals' distribution that its tail holds: about the farthest of 10,000 samples."""
    points: Count = 32
    """Tail points shown a step."""
    warmup: ProperShare = 0.2
    """Share of training, in whole epochs (of a single one: in steps), before the term is added; the distribution is
    fitted meanwhile."""
    pairs: Literal["all", "anchored"] = "all"
    """Fit to the residuals of every two images of a batch, or of each image with its own reference only."""
    per_class: Flag = False
    """A mean for every class, with one covariance, instead of one distribution of all residuals; without mixup and
    CutMix, whose images are of several classes."""
    batch_norm: Literal["joint", "own"] = "joint"
    """Show tail points in the pass of the training batch, so that batch norm normalises both alike, or in one of their
    own. There the network tells them by their own statistics, which evaluation never has: it is sure of them again."""
    rank: Count = 64
    """Directions kept of the covariance of images with more than 4,096 numbers; smaller ones keep all."""


@settings_class
class Training:
    """The training recipe; the defaults are the paper's for CIFAR."""

    epochs: Count = 200
    """Passes over the training images."""
    batch_size: Annotated[
        Integer, within("give at least 2, to have a reference, at most 1,000,000", ge=2, le=1_000_000)
    ] = 128
    """Images a step, on all devices together."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW (betas 0.9 and 0.999, decoupled weight decay)."""
    learning_rate: Amount = 0.1
    """Highest learning rate."""
    rates: dict[str, Amount] = field(default_factory=dict)
    """Factors on the learning rate of parts, by the start of their parameters' names, the longest that fits; the names
    stem and head mean the first and the last layer of any network, "" all of it. 0 freezes: no gradient, no weight
    decay, batch norm as in evaluation."""
    momentum: Amount = 0.9
    """Momentum of SGD."""
    nesterov: Flag = False
    """Nesterov's form of momentum."""
    weight_decay: Amount = 5e-4
    """L2 penalty on all weights."""
    decay_vectors: Flag = field(default=True, metadata=LATER)
    """Whether weight decay is also of biases and norms, parameters of one axis; false leaves them out."""
    clip_norm: Amount = 0.0
    """Longest gradient, all parameters together; longer ones are shortened to it. 0 for no limit."""
    schedule: Literal["steps", "cosine", "one_cycle"] = "steps"
    """Steps multiplies the rate at milestones; cosine goes to zero along half a cosine; one_cycle goes up for a fifth
    of training, then straight to zero."""
    last_rate: Amount = field(default=0.0, metadata=LATER)
    """Factor on the rate that cosine ends with."""
    warmup: ShareOrNone = 0.0
    """Share of training in which the rate rises in a straight line, before cosine or steps; in [0, 1)."""
    warmup_start: Amount = 0.01
    """Factor on the rate that warm-up begins with."""
    milestones: tuple[Probability, ...] = (0.3, 0.6, 0.8)
    """Shares of training after which the rate is multiplied by decay (0.3 of 200 epochs is epoch 60)."""
    decay: Amount = 0.2
    """Factor at each milestone."""
    crop_padding: Annotated[Integer, within("give pixels from 0 to 4096", ge=0, le=4096)] = 4
    """Pixels of black border that random crops may reach into; 0 for no crops."""
    flip: Flag = True
    """Random horizontal flips."""
    crop: Literal["padded", "resized"] = "padded"
    """Random crops: padded moves the image by up to crop_padding pixels; resized takes a random part (8 to 100 % of the
    area) at the input's size, as torchvision's reference for ImageNet does."""
    policy: Policy = "none"
    """Augmentation policy after crop and flip. augmix and pixmix (mixed with fractals of a seeded function) work on
    whole batches, as trivial_augment does after padded crops; after resized ones trivial_augment, rand_augment and
    auto_augment are torchvision's."""
    consistency: Amount = 0.0
    """Weight of the Jensen-Shannon divergence between what an image and two copies of it under the policy are taken
    for, 12 in AugMix (arXiv 1912.02781); only the image itself is trained on its label. A step shows three times the
    images. 0 for none."""
    random_erasing: Probability = 0.0
    """Share of images in which a rectangle of 2 to 33 % of the area becomes noise (arXiv 1708.04896)."""
    repeats: Count = 1
    """How often an image stands in a batch, augmented anew each time; an epoch, as long as ever, has so many times
    fewer images (arXiv 1902.05509)."""
    label_smoothing: Probability = 0.0
    """Share of each label spread over all classes."""
    mixup: Amount = 0.0
    """Both parameters of the Beta law of mixup (arXiv 1710.09412); images are mixed before they are anchored. 0 for
    none."""
    cutmix: Amount = 0.0
    """Likewise of CutMix (arXiv 1905.04899). With both, each batch takes one of the two, at evens."""
    regmixup: Amount = 0.0
    """Likewise of RegMixup (arXiv 2206.14502): mixup's images are shown beside the images themselves, twice as many a
    step, and the loss is the mean over both."""
    logit_norm: Amount = 0.0
    """Temperature of LogitNorm (arXiv 2205.09310), 0.04 there: the loss is of logits divided by their length and by
    this; in evaluation they are as they are. 0 for none."""
    outliers: str = ""
    """Images that are trained towards the uniform distribution, as many a step as the batch has (outlier exposure,
    arXiv 1812.04606): a row of the catalog, own images, or the training images made into jigsaw, inverted, scrambled or
    phase. None that are measured."""
    outlier_weight: Amount = 0.5
    """Weight of their loss."""
    sam: Amount = 0.0
    """Radius of sharpness-aware minimisation (arXiv 2010.01412), 0.05 there: the gradient is taken at the weights moved
    so far along it. A step has two passes. 0 for none."""
    dropout: ShareOrNone = field(default=0.0, metadata=LATER)
    """Probability of dropout (Srivastava et al. 2014) in the blocks of the package's own networks, before the head of
    timm's; in [0, 1). 0 leaves a network as it is."""
    average: ShareOrNone = 0.0
    """Decay per step of a moving average of the weights, which is what is kept in the end (up to the end of warm-up it
    follows the weights); in [0, 1), 0 for none."""
    precision: Precision = "32-true"
    """Precision of Lightning's Trainer; mixed keeps the weights in single precision. They are saved in single precision
    in any case, and evaluation runs in it. Those of 16 bits need a GPU; bf16 does not."""
    channels_last: Flag = field(default=True, metadata=LATER)
    """Keep images and weights with the channels of a pixel side by side, which convolutions are faster with on CPUs and
    on tensor cores; in rounding results differ. Evaluation always does."""
    compile: Compile = field(default="none", metadata=LATER)
    """Mode of torch.compile for the network while it is trained: default fuses operations, reduce-overhead replays CUDA
    graphs besides (for steps that launching kernels takes longer than running them), max-autotune tries kernels out.
    The first steps take minutes; a CPU needs a C++ compiler, a GPU Triton. Results differ in rounding."""
    accelerator: Accelerator = "auto"
    """Lightning's accelerator: auto, cpu, gpu (any), cuda, mps."""
    devices: Count = 1
    """Devices of all machines that train a network together (DDP), a process each, which share every batch: batch_size
    stays that of a step. Results are bound to their number, since references and batch norm's statistics come from a
    device's share. Under torchrun and SLURM filled in by the program."""
    sync_batch_norm: Flag = False
    """Several GPUs: batch norm takes its statistics over the whole batch, not over each device's share."""
    deterministic: Flag = True
    """Same seed and machine, same weights; false lets GPUs pick faster kernels."""
    checkpoint_minutes: Amount = field(default=10.0, metadata=MACHINE)
    """Minutes between two checkpoints within an epoch, at least; every epoch ends with one. 0: after every step."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch_size % self.devices or self.batch_size < 2 * self.devices:
            raise ValueError(
                f"train.batch_size is {self.batch_size}, shared by {self.devices} devices: give each as many images, "
                "and at least 2, to have a reference"
            )
        if self.crop == "padded" and self.policy in ("rand_augment", "auto_augment"):
            raise ValueError(f"train.policy is {self.policy}: it goes with train.crop resized")
        if self.consistency and not self.views_batched:
            raise ValueError(
                "train.consistency compares an image with copies of it under a policy of whole batches: take augmix, "
                "pixmix, or trivial_augment with padded crops"
            )
        mixings = [name for name in ("mixup", "cutmix", "regmixup") if getattr(self, name)]
        if mixings and self.consistency:
            raise ValueError(
                f"train.{mixings[0]} mixes images, whose copies train.consistency compares: take one of them"
            )
        if len(mixings) > 1 and "regmixup" in mixings:
            raise ValueError(
                f"train.regmixup trains on the images beside their mixtures, train.{mixings[0]} on mixtures"
            )
        if self.batch_size // self.devices % self.repeats:
            each = self.batch_size // self.devices
            raise ValueError(f"train.repeats is {self.repeats}: give a divisor of the {each} images a step")
        if self.nesterov and not self.momentum:
            raise ValueError("train.nesterov is a form of momentum, and train.momentum is 0: give one, such as 0.9")
        if self.sam and self.precision == "16-mixed":
            raise ValueError("train.sam takes two gradients a step, which 16-mixed cannot scale: take bf16-mixed")
        if self.average and self.precision not in ("32-true", "16-mixed", "bf16-mixed"):
            raise ValueError(
                f"train.precision is {self.precision}, and train.average is of weights in single precision: take a "
                "mixed one"
            )
        if self.schedule == "one_cycle" and self.warmup:
            raise ValueError("train.warmup: the one_cycle schedule has its own; take cosine or steps")
        return self

    @property
    def views_batched(self) -> bool:
        """Whether the policy works on whole batches."""
        return self.policy in ("augmix", "pixmix") or (self.policy == "trivial_augment" and self.crop == "padded")

    @property
    def shown(self) -> int:
        """How many images a pass of a step shows the network for each image of the batch."""
        return (3 if self.consistency else 2 if self.regmixup else 1) + bool(self.outliers)


# Some of the settings of Training.
TrainingPart = TypedDict("TrainingPart", get_type_hints(Training, include_extras=True), total=False)  # type: ignore[misc]
TrainingPart.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]


@settings_class
class PerNetwork:
    """What one network of the grid has of its own."""

    alphas: Alphas = ()
    """Its mask probabilities; empty takes the grid's."""
    train: TrainingPart = field(default_factory=TrainingPart)
    """Settings of ``train`` that are others for it."""


@settings_class
class Given:
    """A model that was trained elsewhere, or the outputs of one; what its name and files do not say."""

    model: str = ""
    """Folder of a run or model, hub:..., timm:..., torchvision:..., python:..., an .onnx or .pt2 file."""
    outputs: str = ""
    """In place of a model: folder of logits, labels and features of each set (evaluation/given_outputs.py)."""
    pretrained: Flag = False
    """Take the weights that come with the name."""
    checkpoint: str = ""
    """Take the weights of this file: .pth, .pt, .ckpt, .bin, .safetensors."""
    like: str = ""
    """Data set whose images and classes the weights are for."""
    classes: tuple[str, ...] = ()
    """Names of the logits in their order. Empty takes the model's own, else those of data.train."""
    channels: Channels = 0
    """Channels of its images."""
    size: Pixels = 0
    """Height and width of its images, pixels."""
    mean: tuple[Number, ...] = ()
    """Per channel, of images in [0, 1], what it was trained with."""
    std: tuple[Positive, ...] = ()
    """Likewise the standard deviation."""
    network: str = ""
    """The network of a folder again, where that is python:..., to say that you trust it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.model) == bool(self.outputs):
            raise ValueError("a given model has either a model or outputs: name one")
        return self


@settings_class
class Grid:
    """Which trainings a study runs: networks × methods × protocols (× alphas for ram) × seeds; models beside them."""

    networks: Annotated[tuple[str, ...], distinct] = ("resnet18",)
    """Names of networks; may be empty where there are given models."""
    protocols: Annotated[tuple[Protocol, ...], not_empty, distinct] = PROTOCOLS
    """Standard, anchored (no masks) and ram (anchored with reference masking)."""
    alphas: Alphas = (0.25,)
    """Mask probabilities of the ram protocol; in (0, 1)."""
    tail_weights: Annotated[tuple[Amount, ...], not_empty, distinct] = (0.0,)
    """Weights λ of hard Δ mining, of the ram protocol; 0 is without."""
    methods: Annotated[tuple[str, ...], not_empty, distinct] = (PLAIN,)
    """What each protocol is trained with (config/methods.py): plain, the recipe as it is, augmix, mixup ..."""
    seeds: Annotated[tuple[Seed, ...], not_empty, distinct] = (0,)
    """Each seed is one training of every network, protocol and method."""
    members: Annotated[Integer, within("give 2 to 1,000 networks", ge=2, le=1000)] = field(default=5, metadata=LATER)
    """Networks of an ensemble: seeds in their order, so many at a time, none in two ensembles. With fewer seeds there
    is one, of all of them."""
    per_network: dict[str, PerNetwork] = field(default_factory=dict)
    """Name of a network -> its own mask probabilities and training settings."""
    per_method: dict[PlainName, TrainingPart] = field(default_factory=dict)
    """Name of a method -> settings of train that it sets beside its own; another name makes a method of them alone."""
    given: dict[str, Given] = field(default_factory=dict)
    """Title -> a model that was trained elsewhere, which is measured and shown beside the others."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.networks and not self.given:
            raise ValueError("grid.networks is empty: name a network, or give a model (grid.given)")
        if "ram" in self.protocols and not self.alphas:
            raise ValueError("grid.alphas is empty: the ram protocol needs a mask probability")
        known = {**METHODS, **self.per_method}
        trained = {name for name in known if name not in METHODS or not METHODS[name].of}
        if unknown := next((name for name in self.methods if after_training(name)[1] not in trained), None):
            raise ValueError(f"grid.methods has {unknown}: there are {', '.join(known)}; grid.per_method adds others")
        if len(self.seeds) < 2 and any(after_training(name)[0] == "ensemble" for name in self.methods):
            raise ValueError("grid.methods has ensemble, which is of several seeds: give grid.seeds two or more")
        if PLAIN in self.per_method:
            raise ValueError(
                f"grid.per_method has {PLAIN}, which is the recipe as it is: set train, or take another name"
            )
        for name, part in self.per_method.items():
            if name in METHODS and METHODS[name].of:
                raise ValueError(f"grid.per_method has {name}, which trains nothing: set {METHODS[name].of} or another")
            if budget := next((key for key in ("epochs", "batch_size", "devices") if key in part), None):
                raise ValueError(f"grid.per_method.{name} sets {budget}: all methods have the recipe's, as many steps")
        return self


@settings_class
class Evaluation:
    """What is measured on every trained network."""

    ood: tuple[str, ...] = ()
    """Rows of the catalog whose test images are out-of-distribution."""
    score: str = "energy"
    """OOD score of the headline; all of energy, max_softmax, max_logit and entropy are measured."""
    detectors: Annotated[tuple[str, ...], distinct] = ()
    """Detectors of pytorch-ood that are measured beside the scores (extra anchored[ood]): vim, knn, mahalanobis, react,
    odin ..., with arguments if wanted (knn:k=200). They are fitted on training images only."""
    detector_images: Annotated[Integer, within("give a number of images, or 0 for all", ge=0)] = 0
    """Training images that detectors are fitted on, spread evenly over the set. 0 takes all."""
    corruptions: tuple[str, ...] = ()
    """Names of corruptions, or of families: c (all 19 common ones; 18 for grey images, which saturate leaves as they
    are), c15 (without the four extra ones), c-bar (the ten published for images of the network's size)."""
    corruption_source: Literal["generated", "archive"] = "generated"
    """Generated corrupts the test images as they are evaluated; archive reads the published sets (cifar10-c ...)."""
    severities: Annotated[tuple[Severity, ...], not_empty, distinct] = (1, 2, 3, 4, 5)
    """Severities of each corruption, 1 to 5."""
    adaptation: tuple[str, ...] = ()
    """Rows of the catalog that a linear probe on frozen features is trained on."""
    shifted: tuple[str, ...] = field(default=(), metadata=LATER)
    """Labelled images of the training set's classes, or of some, from elsewhere (imagenet-r, imagenet-sketch): rows of
    the catalog or own images. Among the classes that a set has the most probable one is the answer."""
    held_out: str = ""
    """Labelled images that no network was trained or tested on, which decisions are fitted on: a row of the catalog or
    own images. Empty takes the training images that data.validation held out; without any, decisions are not measured.
    """
    false_alarms: ProperShare = 0.05
    """Share of usual images that may be called unknown for their score; in (0, 1)."""
    coverage: ProperShare = 0.9
    """Share of images whose prediction set is to hold their class; in (0, 1)."""
    error: ProperShare = 0.05
    """Share of wrong classes among those that are given, by abstaining; in (0, 1). With too few held-out images to show
    it nothing abstains."""
    dropout_passes: Count = field(default=10, metadata=LATER)
    """Passes of MC dropout (grid.methods has mc_dropout), each with masks of its own."""
    batch_size: Count = 500
    """Images a forward pass."""
    bootstrap: Replicates = 1000
    """Replicates behind every interval over images."""
    seed: Seed = 0
    """Seed of corruptions, bootstraps and probe splits: the same for every network."""


@settings_class
class Validation:
    """What α or λ is chosen on: held-out training images (data.validation), and nothing that evaluate measures."""

    ood: tuple[str, ...] = ("jigsaw", "inverted", "scrambled", "phase")
    """Outliers made of the held-out images (these four), or rows of the catalog that evaluate.ood does not name."""
    corruptions: tuple[str, ...] = ()
    """Names or families that evaluate.corruptions does not have. Empty takes those of c-bar that it lacks, or those of
    c15 where it has all of c-bar."""
    adaptation: tuple[str, ...] = ()
    """Tasks of the probes, of whose training images a fifth is held out to measure. Empty takes evaluate.adaptation."""
    tolerance: Annotated[Number, within("give percentage points, from 0 to 100", ge=0, le=100)] = 1.0
    """Percentage points of clean accuracy that a choice may cost against standard; from 0."""


@settings_class
class References:
    """What is measured of every trained network over many references (docs/how-to/references.md)."""

    count: Annotated[Integer, within("give 2 to 1,000, or 0 to measure nothing", ge=0, le=1000)] = 0
    """References of an anchored network: its own, then those that its choice would take next. Ways of inference use the
    first ones, agreement all. 0 measures nothing of this."""
    most: Count = 10
    """K of the ways of inference, from 2 to count."""
    confidence: Annotated[Number, within("give a confidence from 0.5 and below 1", ge=0.5, lt=1)] = 0.99
    """Of each comparison of the sequential test of adaptive inference."""
    draws: Count = 20
    """Draws of references behind each figure's sensitivity, for each of several K."""
    severities: Annotated[tuple[Severity, ...], not_empty, distinct] = (1, 3, 5)
    """Severities of the corruptions of evaluate, 1 to 5."""
    images: Annotated[Integer, within("give images from 10, or 0 for all", ge=0)] = 0
    """Images of each corrupted and out-of-distribution set, spread evenly over it: count passes of each take their
    time. 0 takes all; clean images are always all."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.count == 1 or 0 < self.images < 10:
            name, value = ("count", self.count) if self.count == 1 else ("images", self.images)
            raise ValueError(f"references.{name} is {value}: give {'2' if name == 'count' else '10'} or more, or 0")
        if self.count and not 2 <= self.most <= self.count:
            raise ValueError(f"references.most is {self.most}, of references.count {self.count}: give 2 to as many")
        return self


@settings_class
class Cluster:
    """What each training of the grid takes of a Ray cluster (anchored study RECIPE --ray ADDRESS)."""

    cpus: Count = field(default=1, metadata=MACHINE)
    """Cores, and threads; one machine must have as many."""
    gpus: Amount = field(default=0.0, metadata=MACHINE)
    """GPUs; a fraction shares one between trainings, 0 lets them see none."""

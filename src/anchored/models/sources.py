"""Models from anywhere, ready to be measured: folders, networks by name with any weights, files to run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anchored.config.recipe import derived_seed
from anchored.config.trust import CODE
from anchored.data import datasets
from anchored.data.catalog import registry as catalog
from anchored.data.preprocessing import InputFormat, to_input
from anchored.errors import UserError
from anchored.method.anchoring import AnchoredModel
from anchored.models import folder as models
from anchored.models import hub
from anchored.models import registry as networks
from anchored.models.checkpoint import Checkpoint, read_checkpoint
from anchored.models.export import INPUTS, Input, as_input
from anchored.models.features import head_name
from anchored.models.folder import ModelConfig
from anchored.models.programs import ENDINGS, Program, open_program
from anchored.models.published import find_published
from anchored.models.weights import WeightsFit, fit_weights, match_weights
from anchored.store.files import tensors_digest, tensors_metadata
from anchored.store.layout import Run

WEIGHT_FILES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
_IMAGENET = 1000  # logits of weights whose classes are taken for ImageNet-1k's, in the order of their WordNet ids


@dataclass(frozen=True)
class OpenedModel:
    """A model that can be run on images: ``run(preprocess(images))``."""

    title: str
    """The network's title, or the name of the folder or file."""
    run: Callable[[Tensor], Tensor | Mapping[str, Tensor]] = field(repr=False)
    """From what ``preprocess`` gives, (B,C,H,W) float32 or uint8, to logits (B,N), or a dict with ``logits``."""
    preprocess: Callable[[Tensor], Tensor] = field(repr=False)
    """From raw images (B,C,H,W) uint8 of any size to what ``run`` takes: resized, cropped, normalised."""
    input: InputFormat
    """How a decoded image of any size becomes the input, as pixels."""
    digest: str
    """16 hexadecimal digits: the hash of the weights, or of the file."""
    classes: tuple[str, ...] = ()
    """Names of the logits; () where they are not known."""
    wordnet: tuple[str, ...] = ()
    """WordNet ids of the classes (``n01440764``), for ImageNet's; else ()."""
    protocol: str = "standard"
    mask_probability: float = 0.0
    module: nn.Module | None = field(default=None, repr=False)
    """The module in evaluation mode, on the CPU, where there is one; ``run`` is the same object."""
    config: ModelConfig | None = field(default=None, repr=False)
    """What ``model.json`` would say, where a folder or an exported file is, or could be made."""
    weights: WeightsFit | None = field(default=None, repr=False)
    """How the weights of a checkpoint fitted: ``str()`` is the table to print."""

    @property
    def spellings(self) -> tuple[str, ...]:
        """Names that a set's classes are matched with: the logits', after their WordNet ids where these are known."""
        return tuple(map(" ".join, zip(self.wordnet, self.classes, strict=True))) if self.wordnet else self.classes


def open_model(
    spec: str | Path,
    *,
    pretrained: bool = False,
    checkpoint: str | Path = "",
    which: str = "",
    like: str = "",
    classes: int | Sequence[str] = 0,
    channels: int = 0,
    size: int = 0,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    crop: float = 0.0,
    interpolation: str = "",
    references: Tensor | int = 0,
    mask_probability: float = 0.0,
    network: str | None = None,
) -> OpenedModel:
    """Open a model, on the CPU, in evaluation mode.

    Args:
        spec: one of

            - a run's or model's folder, or ``hub:owner/name[@revision]``;
            - ``timm:NAME``, ``torchvision:NAME`` or a row such as ``resnet18``, with ``pretrained`` or ``checkpoint``;
            - ``python:package.module:factory`` (imported: you name it), with ``checkpoint`` or weights of its own;
            - an ``.onnx`` file, a ``.pt2`` program (it is code: you name it), or a ``.safetensors`` that we exported.
        pretrained: the weights that are published with the name.
        checkpoint: a file or folder of weights, see :func:`anchored.models.checkpoint.read_checkpoint`.
        which: of several sets of weights in it, ``"ema"`` or the place of one.
        like: the data set (a row of the catalog) whose channels, size, normalisation and classes the weights are for.
        classes: names of the logits, or how many there are; else as published, or as many as the checkpoint's head has.
        channels, size, mean, std, crop, interpolation: the input, where the name, the file or ``like`` do not say.
            Foreign ONNX files and programs of floats are taken to want ``(x / 255 − mean) / std``.
        references: of a checkpoint that was trained anchored and holds none: training images (K,C,H,W), uint8 or
            normalised, or their number K, drawn from the training images of ``like``.
        mask_probability: α with which such a checkpoint was trained; above 0 its protocol is ``ram``.
        network: the network of a folder again, where that is ``python:...``, to say that you trust it.

    Raises:
        UserError: one line, for a spec that is none of these, weights or facts that are missing or do not fit, or a
            file that cannot be run.
    """
    given: dict[str, Any] = {"channels": channels, "size": size, "mean": tuple(mean), "std": tuple(std)}
    given |= {"crop": crop, "interpolation": interpolation}
    name, path = str(spec), Path(spec)
    if run := named_folder(name):
        refuse_unused(name, pretrained=pretrained, checkpoint=checkpoint, which=which, like=like, classes=classes,
                      channels=channels, size=size, mean=mean, std=std)  # fmt: skip
        title = name if hub.is_hub_name(name) else run.name
        return _of_module(
            title, models.load(run.path, network=network), models.read_config(run), models.weights_digest(run)
        )
    ending = path.suffix.lower() if ":" not in name or path.exists() else ""
    if ending in ENDINGS:
        return _of_program(open_program(path), like, classes, given)
    if ending == ".safetensors" and "anchored" in tensors_metadata(path):
        config, _ = models.exported_config(path, tensors_metadata(path))
        return _of_module(path.stem, models.load(path, network=network), config)
    if ending in WEIGHT_FILES:
        raise UserError(f"{name} holds weights alone: name their network, and give the file as its checkpoint")
    if pretrained and not checkpoint and (weights := networks.find_network(name).weights):
        published, wanted = len(_published_classes(weights)), len(_facts(name, like, classes, given)["classes"])
        if wanted != published:
            raise UserError(
                f"{name}: its published weights tell {published} classes, and nobody has trained it for {wanted}: give "
                "--checkpoint FILE of a training that did, or leave out --like and --classes"
            )
    module, config, fit = named_network(
        name,
        pretrained=pretrained,
        checkpoint=checkpoint,
        which=which,
        like=like,
        classes=classes,
        references=references,
        mask_probability=mask_probability,
        **given,
    )
    return _of_module(networks.find_network(name).title, module, config, fit=fit)


def _of_module(
    title: str, module: nn.Module, config: ModelConfig, digest: str = "", fit: WeightsFit | None = None
) -> OpenedModel:
    return OpenedModel(
        title,
        run=module,
        preprocess=config.preprocess,
        input=config.view,
        digest=digest or state_digest(module),
        classes=config.classes,
        wordnet=_wordnet(config.classes),
        protocol=config.protocol,
        mask_probability=config.mask_probability,
        module=module,
        config=config,
        weights=fit,
    )


def _of_program(program: Program, like: str, classes: int | Sequence[str], given: dict[str, Any]) -> OpenedModel:
    """A file to run: ours says all of itself, others' say the size of their input at most."""
    takes: Input = "uint8" if program.pixels else "normalised"
    ours = bool(program.text.get("anchored"))
    if ours:
        config, said = models.exported_config(program.path, program.text)
        takes, known = _taken(program, said.get("input")), config.classes
    else:
        config, known = _foreign_config(program, like, classes, given)
    opened = OpenedModel(
        program.path.stem,
        run=program,
        preprocess=lambda images: as_input(models.seen_as(images, config.view), config, takes),
        input=config.view,
        digest=program.digest,
        classes=known,
        wordnet=_wordnet(known),
        protocol=config.protocol,
        mask_probability=config.mask_probability,
        config=config if ours else None,
    )
    blank = torch.zeros(1, config.channels, config.size, config.size, dtype=torch.uint8)
    outputs = opened.run(opened.preprocess(blank))
    logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs
    if logits.dim() != 2 or (known and logits.shape[1] != len(known)):
        wanted = len(known) or "N"
        raise UserError(f"{program.path} gives {tuple(logits.shape)} for one image, not logits (1, {wanted})")
    return opened


def _taken(program: Program, said: Any) -> Input:
    for known in INPUTS:
        if said == known:
            return known
    raise UserError(f"{program.path} says that it takes {said!r}: {', '.join(INPUTS)} are known")


def _foreign_config(
    program: Program, like: str, classes: int | Sequence[str], given: dict[str, Any]
) -> tuple[ModelConfig, tuple[str, ...]]:
    """The input of another's program, and its classes, () where they are not known."""
    _, channels, height, width = program.shape
    if height != width:
        raise UserError(f"{program.path} takes images of {height} × {width} pixels: only squares are given")
    told = {"channels": channels, "size": height}
    if wrong := next((key for key, value in told.items() if value and given[key] not in (0, value)), None):
        raise UserError(f"{program.path} takes {wrong} {told[wrong]}, not {given[wrong]}")
    facts = _row_facts(like) | {key: value for key, value in {**given, **told}.items() if value}
    if program.pixels:
        facts |= {"mean": (0.0,) * facts.get("channels", 0), "std": (1.0,) * facts.get("channels", 0)}
    facts |= _named_classes(classes, facts.get("classes", ()))
    known = facts.get("classes", ())
    _require(str(program.path), facts, ("channels", "size", "mean", "std"))
    fields = {"trained_on": like, **facts, "classes": known or ("0",)}
    return ModelConfig(program.path.name, "standard", 0.0, references=0, **fields), known


def refuse_unused(name: str, **given: Any) -> None:
    """``UserError`` for what was given of a model folder, which says it of itself."""
    if unused := next((key for key, value in given.items() if value), ""):
        raise UserError(f"{name} is a model folder, which has its own weights, input and classes: leave {unused} out")


def named_folder(name: str) -> Run | None:
    """The model folder that a name means, here or on the hub; None where it is to be a network's name.

    ``UserError`` where a folder here is called as a network.
    """
    if hub.is_hub_name(name):
        return hub.local_run(name)
    if not Path(name).is_dir():
        return None
    if name in networks.NETWORKS:
        raise UserError(
            f"'{name}' is a folder here and a network: write '{name}/' for the folder, or be in another folder for the "
            "network"
        )
    return Run(Path(name))


def named_network(
    name: str,
    *,
    pretrained: bool = False,
    checkpoint: str | Path = "",
    which: str = "",
    like: str = "",
    classes: int | Sequence[str] = 0,
    references: Tensor | int = 0,
    mask_probability: float = 0.0,
    stem: str = "",
    at: str = "",
    **given: Any,
) -> tuple[nn.Module, ModelConfig, WeightsFit | None]:
    """A network by name with its weights: the module, anchored where its weights are, what it is, how they fitted.

    See :func:`open_model`. ``stem``: name of the first layer, where it cannot be found; ``at``: the hidden layer at
    which weights that were trained anchored are.
    """
    facts = _facts(name, like, classes, given)
    needed = ("channels", "size", "mean", "std", *(() if checkpoint else ("classes",)))
    _require(name, facts, needed)
    own = name.startswith(CODE) and not pretrained  # a factory may give trained networks
    if pretrained == bool(checkpoint) and not own:
        raise UserError(f"{name}: say which weights are meant, --pretrained or --checkpoint FILE")
    facts.setdefault("classes", _numbers(_IMAGENET))
    config = ModelConfig(name, "standard", 0.0, references=0, trained_on=like, stem=stem, at=at, **facts)
    if not checkpoint:
        plain = models.build_plain_network(config, pretrained=pretrained, allow_import=True)
        return models.with_preprocessing(plain, config), config, None
    read = read_checkpoint(checkpoint, which)
    plain = models.build_plain_network(config, allow_import=True)
    if not classes and not like and (count := _classes_of(plain, read, which)) not in (0, len(config.classes)):
        config = dataclasses.replace(config, classes=_numbers(count))
        plain = models.build_plain_network(config, allow_import=True)
    module, fit = _load(config, plain, read, which)
    if isinstance(module, AnchoredModel):
        chosen = _references(config, read, fit, references, like)
        module.set_references(chosen)
        config = dataclasses.replace(
            config,
            protocol="ram" if mask_probability else "anchored",
            mask_probability=mask_probability,
            references=len(chosen),
        )
    return models.with_preprocessing(module, config), config, fit


def _load(config: ModelConfig, plain: nn.Module, read: Checkpoint, which: str) -> tuple[nn.Module, WeightsFit]:
    """The network with the weights of a checkpoint: an anchored one where its first layer is of pairs."""
    if match_weights(plain, read.tensors, which=which).misfits:
        with contextlib.suppress(UserError):  # of a network that cannot be anchored, or weights that fit neither
            wide = models.build_model(dataclasses.replace(config, protocol="anchored"), network=plain)
            assert isinstance(wide, AnchoredModel)
            # Ours is the authors' order too: a pair is [reference, residual] along channels.
            return wide, fit_weights(wide.network, read.tensors, read.title, which=which)
    return plain, fit_weights(plain, read.tensors, read.title, which=which)


def _classes_of(plain: nn.Module, read: Checkpoint, which: str) -> int:
    """How many logits a checkpoint's head gives: by the head's name, else by its last matrix; 0 if it has none."""
    fit, head = match_weights(plain, read.tensors, which=which), ""
    with contextlib.suppress(UserError):
        head = f"{head_name(plain)}.weight"
    matrices = [tensor for tensor in read.tensors.values() if tensor.dim() == 2]
    weight = fit.weights.get(head, matrices[-1] if matrices else None)
    return 0 if weight is None else len(weight)


def _references(config: ModelConfig, read: Checkpoint, fit: WeightsFit, given: Tensor | int, like: str) -> Tensor:
    """The references (K,C,size,size), normalised: those given, those kept with the weights, or drawn from ``like``."""
    kept = read.tensors.get(f"{fit.prefix.removesuffix('network.')}references")
    if isinstance(given, Tensor) or kept is not None:
        images = given if isinstance(given, Tensor) else kept
        assert images is not None
        images = config.preprocess(images) if images.dtype == torch.uint8 else images
        if images.shape[1:] != (config.channels, config.size, config.size):
            raise UserError(
                f"references are {tuple(images.shape)}: give (K,{config.channels},{config.size},{config.size})"
            )
        return images
    if not (given and like):
        raise UserError(
            f"{read.title} was trained anchored and holds no references: say how many training images they are, "
            "--references K, of which set, --like DATA"
        )
    images = datasets.load_split(like, "train", channels=config.channels, size=config.size).images
    if given > len(images):
        raise UserError(f"references is {given}, but {like} has {len(images)} training images")
    # Drawn as a training of seed 0 draws its own.
    generator = torch.Generator().manual_seed(derived_seed(0, "references"))
    return to_input(images[torch.randperm(len(images), generator=generator)[:given]], config.mean, config.std)


def _facts(name: str, like: str, classes: int | Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a :class:`ModelConfig`: those given, else the catalog row's, else the published weights'."""
    facts: dict[str, Any] = {}
    if weights := networks.find_network(name).weights:
        published = networks.preprocessing(name)
        facts = {key: getattr(published, key) for key in ("size", "interpolation", "mean", "std")}
        facts |= {"crop": published.size / published.resize, "channels": len(published.mean)}
        facts["classes"] = _published_classes(weights)
    facts |= _row_facts(like) | {key: value for key, value in given.items() if value}
    return facts | _named_classes(classes, facts.get("classes", ()))


def _row_facts(like: str) -> dict[str, Any]:
    if not like:
        return {}
    row = catalog.get_dataset(like)
    facts = {key: getattr(row, key) for key in ("channels", "size", "mean", "std", "classes")}
    return facts | {"interpolation": "bilinear", "crop": 1.0}


def _named_classes(classes: int | Sequence[str], known: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The classes that a caller gives, by name or number; {} where those known are as many."""
    if not isinstance(classes, int):
        return {"classes": tuple(classes)} if classes else {}
    return {"classes": _numbers(classes)} if classes and classes != len(known) else {}


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _require(name: str, facts: Mapping[str, Any], keys: Sequence[str]) -> None:
    if missing := [key for key in keys if not facts.get(key)]:
        flags = ", ".join(f"--{key}" for key in missing)
        raise UserError(
            f"{name}: what its weights are for is not known, give {flags}, or --like with a data set's name"
        )


def _published_classes(weights: str) -> tuple[str, ...]:
    """Classes of published weights: a row's, torchvision's categories, ImageNet's names of timm's 1000; or numbers."""
    library, _, name = weights.partition(":")
    if library == "published":
        return find_published(weights).classes
    if library == "torchvision":
        from torchvision.models import get_model_weights

        return tuple(get_model_weights(name).DEFAULT.meta["categories"])
    from timm import get_pretrained_cfg

    config: Any = get_pretrained_cfg(name)
    return _imagenet_names() if config.num_classes == _IMAGENET else _numbers(config.num_classes)


def _imagenet_names() -> tuple[str, ...]:
    info = _imagenet()  # made once: it reads its tables from files
    return tuple(info.index_to_description(number).partition(",")[0] for number in range(_IMAGENET))


def _wordnet(classes: Sequence[str]) -> tuple[str, ...]:
    """WordNet ids of ImageNet-1k's classes, where these are they: 1000, and named as ImageNet's first are."""
    if len(classes) != _IMAGENET or tuple(classes[:2]) != ("tench", "goldfish"):
        return ()
    info = _imagenet()
    return tuple(info.index_to_label_name(number) for number in range(_IMAGENET))


@cache
def _imagenet() -> Any:
    from timm.data.imagenet_info import ImageNetInfo

    return ImageNetInfo()


def state_digest(module: nn.Module) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a module's weights and buffers."""
    return tensors_digest(module.state_dict())

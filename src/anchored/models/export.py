"""From a network to an anchored model folder, and from a model to a plain file or a folder to share.

Whatever is written is run on real images before it takes its place, and the largest difference is told.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anchored.data import datasets
from anchored.data.catalog import registry as catalog
from anchored.errors import UserError
from anchored.method.anchoring import AnchoredModel
from anchored.method.folding import fold
from anchored.models import folder as models
from anchored.models import hub
from anchored.models import registry as networks
from anchored.models.folder import ModelConfig
from anchored.models.model_card import card
from anchored.store.files import load_tensors, placing, save_tensors, write_text
from anchored.store.layout import Run

Input = Literal["uint8", "unit", "normalised"]
INPUTS = ("uint8", "unit", "normalised")
IMAGES = 16  # real images that everything written is checked on
TOLERANCE = 1e-4  # of the largest logit: more than another order of float32 sums makes, less than a wrong weight


@dataclass(frozen=True)
class Written:
    """What was written, and how far its logits are from the original's on real images."""

    place: str
    difference: float  # largest absolute difference of a logit
    scale: float  # largest absolute logit
    images: int

    def __str__(self) -> str:
        return (
            f"Written: {self.place}\nChecked on {self.images} images: the logits differ by at most "
            f"{self.difference:.1e} (the largest is {self.scale:.3g})"
        )


class Deployed(nn.Module):
    """A folded model with its normalisation: images (B,C,H,W) of the final size to logits (B,N).

    ``uint8`` takes pixels 0 to 255, ``unit`` floats in [0, 1], ``normalised`` leaves the normalisation to the caller.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, config: ModelConfig, takes: Input) -> None:
        super().__init__()
        self.network, self.takes = network, takes
        level = 255 if takes == "uint8" else 1
        for name, values in (("shift", config.mean), ("scale", config.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).mul(level).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images as ``takes`` says to logits."""
        if self.takes != "normalised":
            images = (images.to(torch.float32) - self.shift) / self.scale
        logits: Tensor = self.network(images)
        return logits


def inputs(images: Tensor, config: ModelConfig, takes: Input) -> Tensor:
    """Raw images (B,C,size,size) uint8 as a file that ``takes`` them so is fed."""
    return {
        "uint8": lambda: images,
        "unit": lambda: images.to(torch.float32) / 255,
        "normalised": lambda: config.preprocess(images),
    }[takes]()


def real_images(config: ModelConfig) -> Tensor:
    """Embedded photographs (IMAGES,C,size,size) uint8."""
    photos = datasets.load("photos", "test", channels=config.channels, size=config.size).images
    return photos[torch.linspace(0, len(photos) - 1, IMAGES).long()]


def compared(place: str, found: Tensor, expected: Tensor) -> Written:
    """The largest difference of logits (M,N); ``UserError`` where it is more than arithmetic in another order."""
    difference, scale = (found - expected).abs().max().item(), expected.abs().max().item()
    if not difference <= TOLERANCE * scale:  # also refuses NaN
        raise UserError(
            f"{place}: its logits differ by {difference:.1e} from the original's (the largest is {scale:.3g}), so it "
            "was not kept; please report the network's name"
        )
    return Written(place, difference, scale, len(expected))


# --- to a file ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """A row: how a module is written to a file with text beside it, and how images are run through the file.

    The last argument of ``run`` is that of :func:`anchored.load`.
    """

    write: Callable[[Deployed, Tensor, dict[str, str], Path], None]
    run: Callable[[Path, Tensor, nn.Module | str | None], Tensor]


def _write_onnx(module: Deployed, example: Tensor, text: dict[str, str], path: Path) -> None:
    _needs("onnx", "onnxscript", "onnxruntime")
    program = torch.onnx.export(
        module,
        (example,),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(text)
    program.save(path, external_data=False)


def _run_onnx(path: Path, images: Tensor, _: nn.Module | str | None) -> Tensor:
    _needs("onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _write_pt2(module: Deployed, example: Tensor, text: dict[str, str], path: Path) -> None:
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path, extra_files=text)


def _run_pt2(path: Path, images: Tensor, _: nn.Module | str | None) -> Tensor:
    # torch.export.load can unpickle what a hostile file holds: this one was written a moment ago, by us.
    logits: Tensor = torch.export.load(path).module()(images)
    return logits


def _write_safetensors(module: Deployed, example: Tensor, text: dict[str, str], path: Path) -> None:
    save_tensors(path, dict(module.network.state_dict()), text)


def _run_safetensors(path: Path, images: Tensor, network: nn.Module | str | None) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = models.load(path, network=network)(images)
    return logits


FORMATS: dict[str, Format] = {
    ".onnx": Format(_write_onnx, _run_onnx),
    ".pt2": Format(_write_pt2, _run_pt2),
    ".safetensors": Format(_write_safetensors, _run_safetensors),
}


def _needs(*packages: str) -> None:
    from importlib.util import find_spec

    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs {' and '.join(missing)}, which is not installed: pip install 'anchored[onnx]'")


def export(
    source: str | Path,
    target: str,
    *,
    takes: Input = "uint8",
    force: bool = False,
    public: bool = False,
    network: nn.Module | str | None = None,
) -> Written:
    """Write a trained model for use elsewhere, check it on real images, and move it to its place.

    Args:
        source: the folder of a run or of a converted model, or its place on the hub.
        target: ``NAME.onnx``, ``NAME.pt2`` or ``NAME.safetensors`` for the folded, plain network; any other path for a
            model folder; ``hub:owner/name`` to push such a folder to the hub.
        takes: what the file's input is, see :class:`Deployed` (a safetensors file holds the network alone).
        force: replace a file that is there.
        public: a repository that has to be made on the hub is public.
        network: see :func:`anchored.model.load`.

    Raises:
        UserError: no complete model, something in its place, a missing package, or a result that differs.
    """
    model = models.load(source, network=network)
    run = Run(hub.fetch(str(source)) if hub.is_name(source) else Path(source))
    suffix = Path(target).suffix
    if hub.is_name(target):
        with tempfile.TemporaryDirectory() as folder:
            written = _export_folder(run, model, Path(folder) / run.name, target, network)
            return dataclasses.replace(written, place=hub.push(Path(folder) / run.name, target, public=public))
    if suffix not in FORMATS:
        return _export_folder(run, model, Path(target), target, network)
    with placing(Path(target), force=force) as path:
        return _export_file(run, model, path, takes, target, network)


def _export_file(
    run: Run, model: nn.Module, path: Path, takes: Input, target: str, network: nn.Module | str | None
) -> Written:
    config, form = models.read_config(run), FORMATS[path.suffix]
    takes = "normalised" if path.suffix == ".safetensors" else takes
    plain = fold(model) if isinstance(model, AnchoredModel) else model
    module = Deployed(plain, config, takes).eval()
    raw = real_images(config)
    images = inputs(raw, config, takes)
    made = {"version": metadata.version("anchored"), "weights": models.weights_digest(run), "input": takes}
    form.write(module, images[:2], {"anchored": json.dumps({**made, "model": dataclasses.asdict(config)})}, path)
    # All at once, and one alone: the size of a batch must be free.
    found = [form.run(path, part, network) for part in (images, images[:1])]
    with torch.inference_mode():
        expected = model(config.preprocess(raw))
    return compared(target, torch.cat(found), torch.cat([expected, expected[:1]]))


def _export_folder(run: Run, model: nn.Module, place: Path, target: str, network: nn.Module | str | None) -> Written:
    config = models.read_config(run)
    with placing(place) as path:
        folder = Run(path)
        models.save(folder, model, config)
        write_text(folder.card_file, card(run, target))
        raw = config.preprocess(real_images(config))
        with torch.inference_mode():
            return compared(target, models.load(path, network=network)(raw), model(raw))


# --- from a network ----------------------------------------------------------------------------------------------


def convert(
    name: str,
    output: Path,
    *,
    pretrained: bool = False,
    checkpoint: str = "",
    like: str = "",
    mask_probability: float = 0.0,
    stem: str = "",
    channels: int = 0,
    size: int = 0,
    classes: int = 0,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> Written:
    """Anchor a network with its weights, exactly, and write it as a model folder, which a recipe can start from.

    Args:
        name: a network's name, or the folder of a standard run (here or on the hub), which brings all the rest.
        output: the new folder.
        pretrained: take the weights that come with the name.
        checkpoint: take these, a safetensors file of the plain network's.
        like: a row of the catalog whose channels, size, mean, standard deviation and classes the weights are for.
        mask_probability: α, of a later training.
        stem: name of the first layer, where it is not found without.
        channels, size, classes, mean, std: where neither the name's weights nor ``like`` say them, or otherwise.

    Raises:
        UserError: weights that do not fit or are not given, a network that cannot be anchored, something in the way.
    """
    if hub.is_name(name) or Path(name).is_dir():
        plain = models.load(name)
        if isinstance(plain, AnchoredModel):
            raise UserError(f"{name} is anchored already: load it, train it on, or export it")
        config = models.read_config(Run(hub.fetch(name) if hub.is_name(name) else Path(name)))
    else:
        facts = _facts(name, like, channels=channels, size=size, classes=classes, mean=mean, std=std)
        config = ModelConfig(name, "standard", 0.0, references=0, trained_on=like, **facts)
        if pretrained == bool(checkpoint):
            raise UserError(f"{name}: say which weights are anchored, --pretrained or --checkpoint FILE.safetensors")
        plain = models.plain(config, pretrained=pretrained).eval()
        if checkpoint:
            models.fill(plain, load_tensors(Path(checkpoint))[0], Path(checkpoint))
    config = dataclasses.replace(
        config, protocol="ram" if mask_probability else "anchored", mask_probability=mask_probability, stem=stem
    )
    with placing(output) as path:
        models.save(Run(path), models.build(config, fresh_stem=False, network=plain), config)
        write_text(Run(path).card_file, card(Run(path), str(output)))
        return _converted(path, plain, config, str(output))


def _converted(path: Path, plain: nn.Module, config: ModelConfig, output: str) -> Written:
    """Compare what was written with the plain network: with the zero reference, and with real images for it."""
    model, images = models.load(path), config.preprocess(real_images(config))
    assert isinstance(model, AnchoredModel)
    with torch.inference_mode():
        found = [model(images)]
        model.set_references(images[:2].clone())
        found.append(model(images))
        return compared(output, torch.cat(found), plain(images).repeat(2, 1))


def _facts(name: str, like: str, classes: int, **given: Any) -> dict[str, Any]:
    """Input and classes of a network: as given, else of the catalog's row, else published with the name's weights."""
    facts: dict[str, Any] = {}
    if weights := networks.get(name).weights:
        published = networks.preprocessing(name)
        facts = {key: getattr(published, key) for key in ("size", "interpolation", "mean", "std")}
        facts |= {"crop": published.size / published.resize, "channels": len(published.mean)}
        facts["classes"] = _class_names(weights)
    if like:
        row = catalog.get(like)
        facts |= {key: getattr(row, key) for key in ("channels", "size", "mean", "std", "classes")}
        facts |= {"interpolation": "bilinear", "crop": 1.0}
    facts |= {key: value for key, value in given.items() if value}
    if classes and classes != len(facts.get("classes", ())):
        facts["classes"] = tuple(map(str, range(classes)))
    missing = [key for key in ("channels", "size", "mean", "std", "classes") if not facts.get(key)]
    if missing:
        flags = ", ".join(f"--{key}" for key in missing)
        raise UserError(
            f"{name}: what its weights are for is not known, give {flags}, or --like with a data set's name"
        )
    return facts


def _class_names(weights: str) -> tuple[str, ...]:
    """Names of the classes of published weights: torchvision's categories, ImageNet's for timm's 1000, else numbers."""
    library, _, name = weights.partition(":")
    if library == "torchvision":
        from torchvision.models import get_model_weights

        return tuple(get_model_weights(name).DEFAULT.meta["categories"])
    from timm import get_pretrained_cfg
    from timm.data.imagenet_info import ImageNetInfo

    config: Any = get_pretrained_cfg(name)
    if config.num_classes != 1000:
        return tuple(map(str, range(config.num_classes)))
    return tuple(ImageNetInfo().index_to_description(each).partition(",")[0] for each in range(1000))

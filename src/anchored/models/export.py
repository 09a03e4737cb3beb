"""Export of a trained model to a plain file (ONNX, PT2, safetensors), a folder of timm, or a model folder to share.

Whatever is written is loaded and run on photographs before it takes its place; the largest difference is reported.
"""

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anchored.config.recipe import kept
from anchored.data import datasets
from anchored.errors import UserError
from anchored.method.anchoring import AnchoredModel
from anchored.method.folding import fold
from anchored.models import folder as models
from anchored.models import hub, timm_folder
from anchored.models.decision import Deciding, Decision
from anchored.models.folder import ModelConfig
from anchored.models.model_card import model_card
from anchored.store.files import atomic_path, save_tensors, tensors_metadata, write_text
from anchored.store.layout import Run

Input = Literal["uint8", "unit", "normalised"]
INPUTS: tuple[Input, ...] = ("uint8", "unit", "normalised")
IMAGES = 16  # photographs that every export is checked on
TOLERANCE = 1e-4  # of the largest logit: above the rounding of float32 sums in another order, below a wrong weight

_Outputs = dict[str, Tensor]  # "logits" (B,N), and of a file that decides Deciding.OUTPUTS


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its logits are from the original's on photographs."""

    place: str
    difference: float  # largest absolute difference of a logit
    scale: float  # largest absolute logit
    images: int
    weights: str = ""  # how the weights of a checkpoint fitted, a table
    decided: int | None = None  # images of which the file's decision was compared too
    notes: tuple[str, ...] = ()  # lines on what else was written or left out

    def __str__(self) -> str:
        lines = [self.weights, f"Written: {self.place}", *self.notes]
        lines.append(
            f"Checked on {self.images} images: the logits differ by at most {self.difference:.1e} (the largest is "
            f"{self.scale:.3g})"
        )
        if self.decided is not None:
            lines.append("Decisions, p-values, scores and probabilities are those of Python")
        return "\n".join(filter(None, lines))


class Deployed(nn.Module):
    """A folded model with its normalisation: images (B,C,H,W) of the final size to logits (B,N). ``uint8`` takes pixels
    0 to 255, ``unit`` floats in [0, 1], ``normalised`` leaves the normalisation to the caller."""

    shift: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, config: ModelConfig, takes: Input) -> None:
        super().__init__()
        self.network, self.takes = network, takes
        level = 255 if takes == "uint8" else 1
        for name, values in (("shift", config.mean), ("scale", config.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).mul(level).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images of the kind that ``takes`` names to logits (B,N)."""
        if self.takes != "normalised":
            images = (images.to(torch.float32) - self.shift) / self.scale
        logits: Tensor = self.network(images)
        return logits


def as_input(images: Tensor, config: ModelConfig, takes: Input) -> Tensor:
    """Raw images (B,C,size,size) uint8 as the input of a file that ``takes`` uint8, unit or normalised images."""
    if takes == "normalised":
        return config.preprocess(images)
    return images if takes == "uint8" else images.to(torch.float32) / 255


def sample_photos(config: ModelConfig) -> Tensor:
    """Embedded photographs (IMAGES,C,size,size) uint8."""
    colours = config.channels if config.channels in (1, 3) else 3
    photos = datasets.load_split("photos", "test", channels=colours, size=config.size).images
    photos = photos[torch.linspace(0, len(photos) - 1, IMAGES).long()]
    return photos[:, torch.arange(config.channels) % colours]  # more than three: red, green, blue, and again


def check_logits(place: str, logits: Tensor, expected: Tensor) -> Exported:
    """Compare logits (M,N) with the expected ones; ``UserError`` where rounding does not explain the difference."""
    difference, scale = (logits - expected).abs().max().item(), expected.abs().max().item()
    if not difference <= TOLERANCE * scale:  # also refuses NaN
        raise UserError(
            f"{place}: its logits differ by {difference:.1e} from the original's (the largest is {scale:.3g}), so it "
            "was not kept; please report the network's name"
        )
    return Exported(place, difference, scale, len(expected))


def check_decisions(place: str, found: _Outputs, rule: Decision) -> None:
    """Compare a file's outputs with the decision by its own logits; ``UserError`` where rounding to float32 does not
    explain the difference."""
    wanted = rule.decide(found["logits"])
    counted = Deciding(torch.nn.Identity(), rule)(found["logits"])["p_value"]  # off the file's table
    pairs = {
        "probabilities": wanted.probabilities,
        "score": wanted.score,
        "p_value": counted,
        "accepted": wanted.accepted,
    }
    for name, values in pairs.items():
        difference = (found[name].double() - values.double()).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, values.double().abs().max().item()):
            raise UserError(f"{place}: its {name} differs by {difference:.1e} from Python's, so it was not kept")


def _write_onnx(module: nn.Module, example: Tensor, text: dict[str, str], path: Path) -> None:
    require_packages("onnx", "onnxscript", "onnxruntime")
    import_onnxruntime()  # before the exporter can
    program = torch.onnx.export(
        module, (example,), input_names=["images"], output_names=[*_outputs_of(module)],
        dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True, verbose=False,
    )  # fmt: skip
    assert program is not None
    program.model.metadata_props.update(text)
    program.save(path, external_data=False)


def _outputs_of(module: nn.Module) -> tuple[str, ...]:
    return Deciding.OUTPUTS if isinstance(module, Deciding) else ("logits",)


def _run_onnx(path: Path, images: Tensor, _: nn.Module | str | None) -> _Outputs:
    require_packages("onnxruntime")
    session = import_onnxruntime().InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": images.numpy()})
    return {name.name: torch.from_numpy(each) for name, each in zip(session.get_outputs(), found, strict=True)}


def import_onnxruntime() -> Any:
    """ONNX Runtime, without its reports to Microsoft, unless ``ORT_DISABLE_TELEMETRY=0`` asks for them.

    It reads the variable when it is imported; where somebody else has imported it already, what it can still switch off
    is.
    """
    wanted = os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    if wanted != "0":
        onnxruntime.disable_telemetry_events()
    return onnxruntime


def _write_pt2(module: nn.Module, example: Tensor, text: dict[str, str], path: Path) -> None:
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path, extra_files=text)


def _run_pt2(path: Path, images: Tensor, _: nn.Module | str | None) -> _Outputs:
    # torch.export.load can unpickle what a hostile file holds: this one was written just now, by _write_pt2.
    found: Tensor | _Outputs = torch.export.load(path).module()(images)
    return {"logits": found} if isinstance(found, Tensor) else found


def _write_safetensors(module: nn.Module, example: Tensor, text: dict[str, str], path: Path) -> None:
    assert isinstance(module, Deployed)
    save_tensors(path, dict(module.network.state_dict()), text)


def _run_safetensors(path: Path, images: Tensor, network: nn.Module | str | None) -> _Outputs:
    with torch.inference_mode():
        return {"logits": models.load(path, network=network)(images)}


_Write = Callable[[nn.Module, Tensor, dict[str, str], Path], None]  # a module, an example input, text metadata, a path
_Run = Callable[[Path, Tensor, nn.Module | str | None], _Outputs]  # a path, images, ``network`` of anchored.load
FORMATS: dict[str, tuple[_Write, _Run]] = {
    ".onnx": (_write_onnx, _run_onnx),
    ".pt2": (_write_pt2, _run_pt2),
    ".safetensors": (_write_safetensors, _run_safetensors),
}


def require_packages(*packages: str) -> None:
    """``UserError`` where one of the packages that ONNX needs is not installed."""
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
    zero_reference: bool = False,
    network: nn.Module | str | None = None,
    decide: bool = False,
) -> Exported:
    """Write a trained model for use elsewhere, and check it on photographs.

    Args:
        source: the folder of a run or of a converted model, or its place on the hub.
        target: ``NAME.onnx``, ``NAME.pt2`` or ``NAME.safetensors`` for the folded, plain network; a path without such
            an ending, or one that ends in ``/``, for a model folder; ``hub:owner/name`` to push such a folder to the
            hub; ``timm:FOLDER`` for a folder that timm and Transformers open, see :mod:`anchored.models.timm_folder`.
            A folder takes the ``decision.json`` along, where its logits are the model's.
        takes: what the file's input is, see :class:`Deployed` (a safetensors file holds the network alone).
        force: replace a file that is there.
        public: make a new repository on the hub public.
        zero_reference: fold a ``timm:`` folder about the zero reference; the logits are not those of training's.
        network: see :func:`anchored.load`.
        decide: bake temperature, OOD score and thresholds of the folder's ``decision.json`` into an ONNX or PT2 file,
            whose outputs are then those of :class:`~anchored.models.decision.Deciding`.

    Raises:
        UserError: no complete model, an existing target, a missing package, or logits that differ; with ``decide`` a
            model that was not calibrated, or another kind of target.
    """
    to_timm = target.startswith(timm_folder.PREFIX)
    if zero_reference and not to_timm:
        raise UserError(
            f"{target}: the zero reference is for {timm_folder.PREFIX}FOLDER; others keep those of training"
        )
    if not hub.is_hub_name(target) and not to_timm:
        _is_file(target)  # refused before anything is read
    if decide and not target.lower().endswith((".onnx", ".pt2")):
        raise UserError(f"{target} cannot hold a decision: end it with .onnx or .pt2, or leave --decide out")
    model, run = models.load(source, network=network), hub.local_run(source)
    rule = models.read_decision(run) if decide else None
    if hub.is_hub_name(target):
        with tempfile.TemporaryDirectory() as folder:
            exported = _export_folder(run, model, Path(folder) / run.name, target, network)
            return dataclasses.replace(
                exported, place=hub.upload_folder(Path(folder) / run.name, target, public=public)
            )
    if to_timm:
        return _export_timm(run, model, target, zero_reference)
    if not _is_file(target):
        return _export_folder(run, model, Path(target), target, network)
    _refuse_own_file(Path(target), run)
    with atomic_path(Path(target), force=force) as path:
        return _export_file(run, model, path, takes, target, network, rule)


def _refuse_own_file(target: Path, run: Run) -> None:
    """``UserError`` for a file that the model is made of, which no force may replace."""
    inside = target.exists() and target.resolve().is_relative_to(run.path.resolve())
    if inside and target.suffix.lower() == ".safetensors" and "anchored" not in tensors_metadata(target):
        raise UserError(f"{target} is a file of the model itself: export to another name")


def _is_file(target: str) -> bool:
    """Whether a file is wanted, else a folder; ``UserError`` for the ending of a format that is not written."""
    ending = Path(target).suffix
    if target.endswith("/") or not re.fullmatch(r"\.[A-Za-z]\w*", ending):  # such as ram-0.25
        return False
    if ending.lower() not in FORMATS:
        raise UserError(
            f"{target}: {ending} files are not written; end it with {', '.join(FORMATS)}, or with / for a folder"
        )
    return True


def _export_file(
    run: Run,
    model: nn.Module,
    path: Path,
    takes: Input,
    target: str,
    network: nn.Module | str | None,
    rule: Decision | None,
) -> Exported:
    ending = path.suffix.lower()
    config, (write, run_file) = models.read_config(run), FORMATS[ending]
    takes = "normalised" if ending == ".safetensors" else takes
    plain = fold(model) if isinstance(model, AnchoredModel) else model
    raw = sample_photos(config)
    inputs = as_input(raw, config, takes)
    origin = {"version": metadata.version("anchored"), "weights": models.weights_digest(run), "input": takes}
    said = {} if rule is None else {"decision": {**dataclasses.asdict(rule), "scores": len(rule.scores)}}
    text = {"anchored": json.dumps({**origin, "model": kept(config), **said})}
    written = path.with_suffix(ending)  # libraries know their own endings in small letters only
    deployed = Deployed(plain, config, takes).eval()
    write(deployed if rule is None else Deciding(deployed, rule).eval(), inputs[:2], text, written)
    # All at once, and one alone: the batch size must be free.
    parts = [run_file(written, part, network) for part in (inputs, inputs[:1])]
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    written.replace(path)
    with torch.inference_mode():
        expected = model(config.preprocess(raw))
    exported = check_logits(target, found["logits"], torch.cat([expected, expected[:1]]))
    if rule is None:
        return exported
    check_decisions(target, found, rule)
    return dataclasses.replace(exported, decided=len(raw))


def _export_folder(run: Run, model: nn.Module, folder: Path, target: str, network: nn.Module | str | None) -> Exported:
    config = models.read_config(run)
    inputs = config.preprocess(sample_photos(config))
    with atomic_path(folder) as path:
        models.save_model(Run(path), model, config)
        write_text(Run(path).card_file, model_card(run, target))
        with torch.inference_mode():
            exported = check_logits(target, models.load(path, network=network)(inputs), model(inputs))
        return dataclasses.replace(exported, notes=(models.keep_decision(run, path, Run(path).weights_file),))


def _export_timm(run: Run, model: nn.Module, target: str, zero_reference: bool) -> Exported:
    config, place = models.read_config(run), target.removeprefix(timm_folder.PREFIX)
    inputs = config.preprocess(sample_photos(config))
    with torch.inference_mode():
        trained = model(inputs)
        if zero_reference and isinstance(model, AnchoredModel):
            model.references = None
        expected = model(inputs)
    plain = timm_folder.plain_network(model, config, target)
    with atomic_path(Path(place)) as path:
        timm_folder.write_timm_folder(plain, config, path)
        with torch.inference_mode():
            exported = check_logits(place, timm_folder.open_timm_folder(path)(inputs), expected)
        notes = _timm_notes(run, path, trained, expected, zero_reference)
    return dataclasses.replace(exported, notes=notes)


def _timm_notes(run: Run, path: Path, trained: Tensor, written: Tensor, zero_reference: bool) -> tuple[str, ...]:
    """How the logits differ about the zero reference; the decision comes along where they do not."""
    difference, scale = (trained - written).abs().max().item(), trained.abs().max().item()
    about = ""
    if zero_reference:
        otherwise = int((trained.argmax(1) != written.argmax(1)).sum())
        about = f"About the zero reference, which gives {otherwise} of {len(written)} photographs another class"
    if difference <= TOLERANCE * scale:
        return about, models.keep_decision(run, path, path / timm_folder.WEIGHTS)
    name = run.decision_file.name
    left = f"{name} was left out: it is for the logits about the references of training"
    return about, left if run.decision_file.exists() else ""

"""Folders of timm: ``config.json`` and ``model.safetensors``, which timm and Transformers open without this package.

>>> timm.create_model("local-dir:FOLDER", pretrained=True)
>>> transformers.AutoModelForImageClassification.from_pretrained("FOLDER")

timm's networks have no weight for the constant map that a reference leaves behind the first layer. Where references are
zero, or the first layer's halves are equal, there is none. A vision transformer's position embedding takes the map of
one reference. Other networks are folded about the zero reference, which is another classifier than the trained one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anchored.errors import UserError
from anchored.method.anchoring import AnchoredModel
from anchored.method.folded import Folded, Mapped
from anchored.method.folding import fold
from anchored.models.folder import ModelConfig, build_plain_network
from anchored.models.weights import fit_weights
from anchored.store.files import save_tensors, write_json

PREFIX = "timm:"
"""What a target begins with, and what networks of timm are called."""
WEIGHTS = "model.safetensors"


def plain_network(model: nn.Module, config: ModelConfig, target: str) -> nn.Module:
    """The network of timm's own with the model's outputs, on the CPU.

    ``target``: what errors are about. Raises ``UserError`` for a network that is not timm's, or whose references leave
    a map that it has no weight for.
    """
    if not config.network.startswith(PREFIX):
        raise UserError(f"{target}: the network is '{config.network}', none of timm's: export it to .onnx or .pt2")
    folded = fold(model) if isinstance(model, AnchoredModel) else model
    inner = folded.network if isinstance(folded, Folded) else folded
    plain = build_plain_network(config)
    weights = {name: tensor.detach().cpu() for name, tensor in inner.state_dict().items()}
    for name, layer in inner.named_modules():
        if isinstance(layer, Mapped):
            _absorb(weights, name, layer, plain, f"{target}: {config.network}")
    known = plain.state_dict()
    weights = {name if name in known else _without_padding(name): tensor for name, tensor in weights.items()}
    if config.at and weights.keys() - known.keys():
        raise UserError(
            f"{target}: {config.network} is anchored at '{config.at}' through a layer that timm's network has not: "
            "export it to .onnx or .pt2"
        )
    fit_weights(plain, weights, target, strict=True)
    return plain.eval()


def _absorb(weights: dict[str, Tensor], name: str, layer: Mapped, plain: Any, what: str) -> None:
    """Move the map of one reference behind ``patch_embed.proj`` into the position embedding."""
    tokens = layer.maps.flatten(2).transpose(1, 2).cpu()  # (K,D,H,W) to (K,tokens,D)
    embedding = weights.get("pos_embed")
    fits = embedding is not None and embedding.dim() == 3 and embedding.shape[1] >= tokens.shape[1]
    if name != "patch_embed.proj" or len(tokens) != 1 or not fits:
        raise UserError(
            f"{what} has no weight for the map that its references leave: fold it about the zero reference "
            "(--zero_reference), which gives other logits, or export it to .onnx or .pt2"
        )
    assert embedding is not None
    weights["pos_embed"] = embedding.clone()
    weights["pos_embed"][:, -tokens.shape[1] :] += tokens
    del weights[f"{name}.maps"]
    weights[f"{name}.weight"] = weights.pop(f"{name}.layer.weight")
    bias = plain.get_submodule(name).bias
    if bias is not None:
        weights[f"{name}.bias"] = torch.zeros_like(bias)  # it is in the map


def _without_padding(name: str) -> str:
    """The name of a weight of a first layer that was folded into two, its own code's padding and itself."""
    layer, _, parameter = name.rpartition(".")
    return f"{layer.removesuffix('.1')}.{parameter}"


def write_timm_folder(network: nn.Module, config: ModelConfig, folder: Path) -> None:
    """Write a network of timm's own and how its inputs are made, in the layout that timm's ``save_for_hf`` writes."""
    about: Any = network
    own = dict(about.pretrained_cfg)
    arguments: dict[str, Any] = {} if config.channels == 3 else {"in_chans": config.channels}
    if own.get("fixed_input_size"):
        arguments["img_size"] = config.size
    kept = {name: own[name] for name in ("classifier", "first_conv", "fixed_input_size") if own.get(name) is not None}
    made = {
        "architecture": own["architecture"],
        "num_classes": len(config.classes),
        "num_features": about.num_features,
        "label_names": list(config.classes),
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": {
            **kept,
            "num_classes": len(config.classes),
            "input_size": [config.channels, config.size, config.size],
            "mean": list(config.mean),
            "std": list(config.std),
            "crop_pct": config.crop,
            "crop_mode": "center",
            "interpolation": config.interpolation,
        },
    }
    write_json(folder / "config.json", made)
    save_tensors(folder / WEIGHTS, dict(network.state_dict()), {"format": "pt"})


def open_timm_folder(folder: Path) -> nn.Module:
    """The network of such a folder as timm opens it, in evaluation mode."""
    import timm

    network: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return network.eval()

"""Anchor and fold one network of every family of timm, at random weights: a table of docs/reference/networks.md.

    python scripts/sweep_architectures.py [FAMILY ...] [--write]

For each family (a module of timm) its smallest network, or nearly so, on small images where it takes them:

- *anchored*: the wide network's outputs for random references against the given network's;
- *folded*: with a first layer as after training (its halves differ) and two random references, the folded network's
  outputs against the anchored model's; the same with batch norm fused;
- *features*: whether the penultimate features are those of timm's own ``forward_head(pre_logits=True)``.

All are the greatest difference over the greatest output, in single precision (double where a network's own answers are
less exact than 1e-5 in single precision, which the row says). Weights are random, but what starts at
nothing (a head of zeros, a layer's scale of 1e-5) is given a size first: it would hide every difference. With
``--write`` the rows of the families that were named (default all) are renewed in the docs.
"""

from __future__ import annotations

import argparse
import copy
import gc
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import markers
import torch
from timm.models import get_pretrained_cfg_value
from torch import nn

import anchored
from anchored.method.anchoring import pair
from anchored.method.equivalence import max_relative_difference, network_outputs
from anchored.method.stem import inner_layer
from anchored.models import registry as networks
from anchored.models.features import penultimate_features

DOCS = Path(__file__).parent.parent / "docs" / "reference" / "networks.md"
MARKER = "scripts/sweep_architectures.py"
HEADINGS = ("family", "network", "pixels", "first layers", "anchored", "folded", "fused", "features")

# Family: its network with the fewest parameters among eight whose names say small; pixels, None for the network's own.
# All of timm's modules but deepseek_vit, whose only network has 412 million parameters.
FAMILIES: dict[str, tuple[str, int | None]] = {
    "beit": ("beit_base_patch16_224", 64),
    "byoanet": ("halonet_h1", 256),
    "byobnet": ("mobileone_s1", 128),
    "cait": ("cait_xxs24_224", None),
    "coat": ("coat_tiny", None),
    "convit": ("convit_tiny", None),
    "convmixer": ("convmixer_768_32", 128),
    "convnext": ("convnext_atto", 128),
    "cpubone": ("cpubone_nano", 128),
    "crossvit": ("crossvit_tiny_240", None),
    "csatv2": ("csatv2", 128),
    "cspnet": ("cs3darknet_focus_s", 128),
    "cspnext": ("cspnext_tiny", 128),
    "davit": ("davit_tiny", None),
    "deit": ("deit_tiny_patch16_224", None),
    "densenet": ("densenet121", 128),
    "dla": ("dla46_c", 128),
    "dpn": ("dpn48b", 128),
    "edgenext": ("edgenext_xx_small", 128),
    "efficientformer": ("efficientformer_l1", None),
    "efficientformer_v2": ("efficientformerv2_s0", None),
    "efficientnet": ("tinynet_e", None),
    "efficientvim": ("efficientvim_m1", 128),
    "efficientvit_mit": ("efficientvit_b0", 128),
    "efficientvit_msra": ("efficientvit_m0", None),
    "eva": ("vit_tiny_patch16_dinov3_qkvb", None),
    "fasternet": ("fasternet_t0", 128),
    "fastvit": ("fastvit_t8", 128),
    "focalnet": ("focalnet_tiny_srf", 128),
    "gcvit": ("gcvit_xxtiny", None),
    "gemma4_vit": ("gemma4_vit_167m", 96),
    "ghostnet": ("ghostnet_050", 128),
    "hardcorenas": ("hardcorenas_b", 128),
    "hgnet": ("hgnetv2_b0", 128),
    "hiera": ("hiera_tiny_224", None),
    "hieradet_sam2": ("sam2_hiera_tiny", 128),
    "hrnet": ("hrnet_w18_small", 128),
    "iformer": ("iformer_t", 128),
    "inception_next": ("inception_next_atto", 128),
    "inception_resnet_v2": ("inception_resnet_v2", 96),
    "inception_v3": ("inception_v3", 128),
    "inception_v4": ("inception_v4", 128),
    "lcnetv2": ("lcnetv2_small", 128),
    "levit": ("levit_128s", None),
    "lowformer": ("lowformer_b0", 128),
    "mambaout": ("test_mambaout", 128),
    "maxxvit": ("coatnet_nano_cc_224", None),
    "metaformer": ("poolformerv2_s12", 128),
    "mlp_mixer": ("gmlp_ti16_224", None),
    "mobilenetv3": ("mobilenetv3_small_050", 128),
    "mobilenetv5": ("mobilenetv5_base", 64),
    "mobilevit": ("mobilevit_xxs", 128),
    "mvitv2": ("mvitv2_tiny", None),
    "naflexvit": ("naflexvit_base_patch16_gap", 128),
    "nasnet": ("nasnetalarge", 128),
    "nest": ("nest_tiny", None),
    "nextvit": ("nextvit_small", 128),
    "nfnet": ("test_nfnet", 128),
    "pit": ("pit_ti_224", None),
    "pnasnet": ("pnasnet5large", 128),
    "pvt_v2": ("pvt_v2_b0", 128),
    "qwen3_vit": ("qwen3_vit_88m", 128),
    "rdnet": ("rdnet_tiny", 128),
    "regnet": ("regnetx_002", 128),
    "repghost": ("repghostnet_050", 128),
    "repvit": ("repvit_m1", 128),
    "res2net": ("res2next50", 128),
    "resnest": ("resnest14d", 128),
    "resnet": ("resnet18", 128),
    "resnetv2": ("resnetv2_18", 128),
    "rexnet": ("rexnet_100", 128),
    "selecsls": ("selecsls42", 128),
    "senet": ("legacy_seresnet18", 64),
    "sequencer": ("sequencer2d_s", None),
    "shvit": ("shvit_s1", 128),
    "sknet": ("skresnet18", 128),
    "starnet": ("starnet_s050", 128),
    "swiftformer": ("swiftformer_xs", None),
    "swin_transformer": ("swin_tiny_patch4_window7_224", None),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", None),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", None),
    "tiny_vit": ("tiny_vit_5m_224", 128),
    "tnt": ("tnt_s_legacy_patch16_224", None),
    "tresnet": ("tresnet_m", 64),
    "twins": ("twins_svt_small", None),
    "vgg": ("vgg11", 64),
    "visformer": ("visformer_tiny", None),
    "vision_transformer": ("vit_tiny_patch16_224", None),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", None),
    "vision_transformer_relpos": ("test_vit_relpos", None),
    "vision_transformer_sam": ("samvit_base_patch16_224", 64),
    "vitamin": ("vitamin_small_224", None),
    "volo": ("volo_d1_224", None),
    "vovnet": ("ese_vovnet19b_slim_dw", 128),
    "xception": ("legacy_xception", 128),
    "xception_aligned": ("xception41p", 64),
    "xcit": ("xcit_nano_12_p8_224", None),
}


@dataclass(frozen=True)
class Result:
    """What was measured on one network."""

    family: str
    network: str
    size: int
    precision: str = "single"
    layers: tuple[str, ...] = ()
    anchored: float = float("nan")
    folded: float = float("nan")
    fused: float = float("nan")
    features: str = ""
    error: str = ""

    @property
    def row(self) -> str:
        """The row of the table."""
        cells = [self.family, self.network, str(self.size)]
        if self.error:
            return f"| {' | '.join(cells)} | {self.error} | | | | |"
        layers = ", ".join(f"`{name}`" for name in self.layers)
        note = "" if self.precision == "single" else f" ({self.precision})"
        errors = [f"{value:.0e}{note}" for value in (self.anchored, self.folded, self.fused)]
        return f"| {' | '.join([*cells, layers, *errors, self.features])} |"


@torch.no_grad()
def examine(family: str) -> Result:
    """Anchor, fold and fuse the network of one family."""
    name, size = FAMILIES[family]
    side = size or (get_pretrained_cfg_value(name, "input_size") or (224,))[-1]
    images, references = (torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    try:
        network: Any = networks.build_network(f"timm:{name}", channels=3, classes=10, seed=0, size=size).eval()
        awaken(network)
        precision = "single"
        if rounding(network, images) > 1e-5:  # in single precision its own answers are not that exact
            network, images, references, precision = network.double(), images.double(), references.double(), "double"
        model = anchored.anchor(network, example=images)
        exact = network_outputs(network, images).difference(network_outputs(model.network, pair(images, references)))
        assert model.stem is not None
        generator = torch.Generator().manual_seed(2)
        for layer in model.stem.names:
            weight = inner_layer(model.network.get_submodule(layer)).weight
            weight.normal_(std=float(weight.std()), generator=generator)
        model.set_references(references)
        expected = model(images)
        folded = max_relative_difference(expected, anchored.fold(model)(images))
        fused = max_relative_difference(expected, anchored.fold(model, fuse_batch_norm=True)(images))
    except anchored.UserError as error:
        return Result(family, name, side, error=str(error))
    return Result(family, name, side, precision, model.stem.names, exact, folded, fused, features(network, images))


def rounding(network: nn.Module, images: torch.Tensor) -> float:
    """How far a network's answers in single precision are from those in double precision."""
    return max_relative_difference(copy.deepcopy(network).double()(images.double()), network(images))


def awaken(network: nn.Module) -> None:
    """Heads and scales of layers that start at nothing would hide every difference: give them a say."""
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        size = float(parameter.abs().max())
        if parameter.dim() > 1 and size <= 1e-3:
            parameter.normal_(std=0.02, generator=generator)
        elif 0 < size <= 1e-3:
            parameter.fill_(0.1)


def features(network: nn.Module, images: torch.Tensor) -> str:
    """How many penultimate features there are, and whether they are those that timm names."""
    with penultimate_features(network) as seen:
        network(images)
    known: Any = network
    own = known.forward_head(known.forward_features(images), pre_logits=True)
    own = own if own.dim() == 2 else own.flatten(2).mean(dim=2)
    same = own.shape == seen[0].shape and max_relative_difference(own, seen[0]) < 1e-5
    return f"{seen[0].shape[1]}{'' if same else ' (not timm’s)'}"


def write(results: list[Result]) -> None:
    """Renew the rows of the table in the docs."""
    table = markers.split(DOCS, MARKER)[1]
    rows = {row.split("|")[1].strip(): row for row in table.splitlines()[2:] if row.startswith("|")}
    rows |= {result.family: result.row for result in results}
    head = [f"| {' | '.join(HEADINGS)} |", "|" + "---|" * len(HEADINGS)]
    lines = [*head, *(rows[family] for family in sorted(rows))]
    markers.write(DOCS, MARKER, "\n".join(lines) + "\n")


def main() -> None:
    """Examine the families named, print their rows, and say how many hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="families; default all")
    parser.add_argument("--write", action="store_true", help="renew their rows in docs/reference/networks.md")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    results = []
    for family in options.families or FAMILIES:
        results.append(examine(family))
        print(results[-1].row, flush=True)
        gc.collect()
        if options.write:
            write(results)
    worst = max((result.anchored for result in results if not result.error), default=0)
    held = sum(not result.error and max(result.anchored, result.folded, result.fused) <= 1e-5 for result in results)
    print(
        f"{held} of {len(results)} families exact to 1e-5; {sum(bool(r.error) for r in results)} refused; {worst=:.0e}"
    )


if __name__ == "__main__":
    main()

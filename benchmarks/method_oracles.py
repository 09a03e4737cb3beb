"""Losses and targets of pytorch-ood and torch-uncertainty on the same logits and images, beside ours.

``python benchmarks/method_oracles.py [--write tests/training/method_oracles.json]`` prints two of theirs; ``--write``
keeps all with the inputs, which a test compares with ours where neither is installed. Both are wanted beside the
project's own environment: ``pip install --no-deps --target DIR pytorch-ood==0.4.0 torch-uncertainty==0.13.0 einops
seaborn pandas lightning lightning-utilities torchmetrics``, then ``PYTHONPATH=DIR``. What timm and torchvision have is
compared in the tests themselves.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SEED, IMAGES, CLASSES, TEMPERATURE = 3, 8, 5, 0.04


def logits_and_labels() -> tuple[Tensor, Tensor]:
    """Logits (2B,N), of images and then of as many outliers, and labels (B,)."""
    generator = torch.Generator().manual_seed(SEED)
    return 3 * torch.randn(2 * IMAGES, CLASSES, generator=generator), torch.randint(
        CLASSES, (IMAGES,), generator=generator
    )


def images_to_mix() -> Tensor:
    """Images (B,1,4,4)."""
    return torch.rand(IMAGES, 1, 4, 4, generator=torch.Generator().manual_seed(SEED + 1))


def theirs() -> dict[str, Any]:
    """What the other libraries make of them."""
    from pytorch_ood.loss import LogitNorm, OutlierExposureLoss
    from torch_uncertainty.transforms.mixup import RegMixup  # type: ignore[import-not-found]

    logits, labels = logits_and_labels()
    normed = logits[:IMAGES].clone().requires_grad_()
    loss = LogitNorm(t=TEMPERATURE)(normed, labels)
    loss.backward()
    unknown = torch.cat([labels, torch.full((IMAGES,), -1)])
    exposure = OutlierExposureLoss(alpha=0.5, reduction="none")(logits, unknown)
    mixer = RegMixup(alpha=10.0, isobatch=False, num_classes=CLASSES)
    mixer._get_params = lambda count, device: (0.75, torch.arange(count).roll(1))
    mixed, targets = mixer(images_to_mix(), labels)
    assert normed.grad is not None
    return {
        "logits": logits.tolist(),
        "labels": labels.tolist(),
        "images": images_to_mix().tolist(),
        "logit_norm": loss.item(),
        "logit_norm_gradient": normed.grad.tolist(),
        "outlier_exposure": (exposure[:IMAGES].mean() + exposure[IMAGES:].mean()).item(),
        "regmixup_images": mixed.flatten(1).tolist(),
        "regmixup_targets": targets.tolist(),
    }


def main() -> None:
    """Print or keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    found = theirs()
    print({name: found[name] for name in ("logit_norm", "outlier_exposure")})
    if options.write:
        options.write.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

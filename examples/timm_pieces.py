"""An anchored network with timm's optimiser, schedule, mixup and CutMix, and averaged weights (EMA).

    python examples/timm_pieces.py

Images are mixed *before* they are anchored: mix the batch, then call the model. Its targets are soft.
"""

from __future__ import annotations

import torch
from timm.data.mixup import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils.model_ema import ModelEmaV3
from torch import nn

import anchored
from anchored.data import datasets
from anchored.data.batches import Batches
from anchored.data.image_sets import ImageSet
from anchored.models import registry as networks


def train(network: nn.Module, images: ImageSet, epochs: int = 3) -> nn.Module:
    """Train with mixed images and masked references; gives the averaged model in evaluation mode."""
    model = anchored.anchor(network, mask_probability=0.25)
    batches = Batches(images, 64, mean=(0.286,), std=(0.353,), shuffle=True, flip=True, drop_last=True)
    mixup = Mixup(mixup_alpha=0.2, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=len(images.classes))
    optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-3, weight_decay=0.05)
    loss_of = SoftTargetCrossEntropy()
    model(next(iter(batches))[0])  # the first batch gives the reference that is kept, so that the average has it too
    average = ModelEmaV3(model, decay=0.9)
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for inputs, labels in batches:
            mixed, soft = mixup(inputs, labels)
            # Without masked_target="uniform", targets() gives back what it is given.
            loss = loss_of(model(mixed), model.targets(soft, len(images.classes)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update(model)
        print(f"epoch {epoch + 1}: loss of the last batch {loss.item():.3f}")
    averaged: nn.Module = average.module
    return averaged.eval()


if __name__ == "__main__":
    torch.manual_seed(0)
    known = datasets.take_fraction(datasets.load_split("fashion-mini-known", "train"), 0.2)
    train(networks.build_network("small", channels=1, classes=7, seed=0), known)

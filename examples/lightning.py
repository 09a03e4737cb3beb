"""An anchored network in a Lightning module.

python examples/lightning.py
"""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

import anchored
from anchored.data import datasets
from anchored.data.batches import Batches
from anchored.data.image_sets import ImageSet
from anchored.models import registry as networks


class Classifier(pl.LightningModule):
    """Somebody's own module; the network is anchored before it comes here."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Cross-entropy of one batch."""
        images, labels = batch
        return functional.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def train(network: nn.Module, images: ImageSet, epochs: int = 3) -> nn.Module:
    """Train with masked references; gives the model in evaluation mode."""
    module = Classifier(anchored.anchor(network, mask_probability=0.25))
    batches = Batches(images, 64, mean=(0.286,), std=(0.353,), shuffle=True, flip=True)
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(module, batches)
    return module.network.eval()


if __name__ == "__main__":
    known = datasets.take_fraction(datasets.load_split("fashion-mini-known", "train"), 0.2)
    train(networks.build_network("small", channels=1, classes=7, seed=0), known)

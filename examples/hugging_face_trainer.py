"""An anchored network in the Trainer of Hugging Face's transformers.

python examples/hugging_face_trainer.py
"""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Trainer, TrainingArguments

import anchored
from anchored.data import datasets
from anchored.data.image_sets import ImageSet
from anchored.data.preprocessing import to_input
from anchored.models import registry as networks


class ForTrainer(nn.Module):
    """What the Trainer wants of a model: named arguments in, loss and logits out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and logits (B,N) of images (B,C,H,W), normalised."""
        logits = self.network(pixel_values)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


def train(network: nn.Module, images: ImageSet, epochs: int = 3) -> nn.Module:
    """Train with masked references; gives the model in evaluation mode."""
    model = ForTrainer(anchored.anchor(network, mask_probability=0.25))
    inputs = to_input(images.images, mean=(0.286,), std=(0.353,))
    examples = [{"pixel_values": x, "labels": y} for x, y in zip(inputs, images.labels, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, num_train_epochs=epochs, per_device_train_batch_size=64, learning_rate=2e-3, use_cpu=True,
            save_strategy="no", report_to=[], dataloader_pin_memory=False, logging_steps=10,
        )  # fmt: skip
        Trainer(model, settings, train_dataset=examples).train()
    return model.network.eval()


if __name__ == "__main__":
    torch.manual_seed(0)
    known = datasets.take_fraction(datasets.load_split("fashion-mini-known", "train"), 0.2)
    train(networks.build_network("small", channels=1, classes=7, seed=0), known)

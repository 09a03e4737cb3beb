"""An anchored network in a plain loop: the only new line is ``anchor``.

python examples/plain_loop.py
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

import anchored
from anchored.data import datasets
from anchored.data.batches import Batches
from anchored.data.image_sets import ImageSet
from anchored.models import registry as networks


def train(network: nn.Module, images: ImageSet, epochs: int = 3) -> nn.Module:
    """Train with masked references; gives the model in evaluation mode."""
    model = anchored.anchor(network, mask_probability=0.25)
    batches = Batches(images, 64, mean=(0.286,), std=(0.353,), shuffle=True, flip=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for inputs, labels in batches:
            loss = functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss of the last batch {loss.item():.3f}")
    return model.eval()


if __name__ == "__main__":
    known = datasets.take_fraction(datasets.load_split("fashion-mini-known", "train"), 0.2)
    trained = train(networks.build_network("small", channels=1, classes=7, seed=0), known)
    plain = anchored.fold(trained)  # an ordinary network again: no references, no pairs
    print(plain(torch.zeros(1, 1, 28, 28)).shape)

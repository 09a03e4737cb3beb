"""Networks by name, and their penultimate features.

A network is a row of ``NETWORKS``: add one row and one test to add a network. All follow one convention: the last
linear layer is ``.head``.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anchored.errors import UserError


def _conv(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Conv2d:
    """A convolution that keeps the image's size, or halves it, with He initialisation (arXiv 1502.01852)."""
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class PostActivationBlock(nn.Module):
    """Residual block of He et al. (arXiv 1512.03385): conv, norm, relu, conv, norm, add, relu."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = _conv(outputs, outputs), nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(_conv(inputs, outputs, stride, 1), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B,inputs,H,W) to (B,outputs,H/stride,W/stride)."""
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return torch.relu(y + self.shortcut(x))


class PreActivationBlock(nn.Module):
    """Residual block of wide residual networks (arXiv 1605.07146): norm, relu, conv, norm, relu, conv, add."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, outputs, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), _conv(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else _conv(inputs, outputs, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B,inputs,H,W) to (B,outputs,H/stride,W/stride)."""
        activated = self.norm1(x).relu()
        # The projection sees the activated input; an identity shortcut carries the raw one.
        skipped = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(activated)
        y: Tensor = self.conv2(self.norm2(self.conv1(activated)).relu())
        return y + skipped


class ResNet(nn.Module):
    """Residual network for small images: 3×3 stem without pooling, stages of blocks, global average, ``head``."""

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        stem: int,
        widths: tuple[int, ...],
        depth: int,
        block: Callable[[int, int, int], nn.Module] = PostActivationBlock,
    ) -> None:
        super().__init__()
        self.stem = _conv(channels, stem)
        before = block is PreActivationBlock
        self.stem_norm = nn.Identity() if before else nn.Sequential(nn.BatchNorm2d(stem), nn.ReLU())
        blocks, inputs = [], stem
        for stage, width in enumerate(widths):
            for index in range(depth):
                blocks.append(block(inputs, width, 2 if stage > 0 and index == 0 else 1))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.last_norm = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU()) if before else nn.Identity()
        self.head = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B,C,H,W) to logits (B,N)."""
        x = self.last_norm(self.blocks(self.stem_norm(self.stem(images))))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


@dataclass(frozen=True)
class Architecture:
    """A row: how tables call the network, and how to build it for C channels and N classes."""

    title: str
    build: Callable[[int, int], nn.Module]


NETWORKS: dict[str, Architecture] = {
    # 11,173,962 parameters for CIFAR-10 (kuangliu/pytorch-cifar's ResNet18, the network of the CIFAR literature).
    "resnet18": Architecture("ResNet-18", lambda c, n: ResNet(c, n, stem=64, widths=(64, 128, 256, 512), depth=2)),
    # 2.2 M parameters (arXiv 1605.07146, table 4).
    "wrn40_2": Architecture(
        "WRN-40-2",
        lambda c, n: ResNet(c, n, stem=16, widths=(32, 64, 128), depth=6, block=PreActivationBlock),
    ),
    # The demo's: a ResNet-8, seconds per epoch on a laptop's CPU.
    "small": Architecture("ResNet-8", lambda c, n: ResNet(c, n, stem=16, widths=(16, 32, 64), depth=1)),
}


def get(name: str) -> Architecture:
    """The row of a network; ``UserError`` with near matches for an unknown name."""
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(NETWORKS)}"
        raise UserError(f"no network '{name}': {hint}")
    return NETWORKS[name]


def build(name: str, *, channels: int, classes: int, seed: int) -> nn.Module:
    """A freshly initialised network; the same seed gives the same weights, and no global state is touched."""
    architecture = get(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return architecture.build(channels, classes)


@contextlib.contextmanager
def features_of(network: nn.Module) -> Iterator[list[Tensor]]:
    """Within it, the penultimate features (B,D) of every forward pass are appended to the list it gives.

    These are the input of the last linear layer in order of registration, for any network that ends in one.
    """
    heads = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not heads:
        raise UserError(f"{type(network).__name__} has no linear layer, so no penultimate features")
    kept: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept.append(inputs[0].detach().flatten(1))

    handle = heads[-1].register_forward_pre_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()

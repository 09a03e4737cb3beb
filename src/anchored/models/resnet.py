"""Residual networks for small images: the CIFAR literature's, and the demo's.

Activations and sums are in place, as torchvision's are: a small network's step is bound by memory.
"""

from collections.abc import Callable

from torch import Tensor, nn


def _conv(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Conv2d:
    """A convolution that keeps the image's size, or halves it, with He initialisation (arXiv 1502.01852)."""
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class PostActivationBlock(nn.Module):
    """Residual block of He et al. (arXiv 1512.03385): conv, norm, relu, conv, norm, add, relu; dropout after the first
    relu, where wide residual networks have it."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = _conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(_conv(inputs, outputs, stride, 1), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B,inputs,H,W) to (B,outputs,H/stride,W/stride)."""
        y: Tensor = self.norm2(self.conv2(self.dropout(self.norm1(self.conv1(x)).relu_())))
        return y.add_(self.shortcut(x)).relu_()


class PreActivationBlock(nn.Module):
    """Residual block of wide residual networks (arXiv 1605.07146): norm, relu, conv, norm, relu, dropout, conv, add."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, outputs, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), _conv(outputs, outputs)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else _conv(inputs, outputs, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B,inputs,H,W) to (B,outputs,H/stride,W/stride)."""
        activated = self.norm1(x).relu_()
        # The projection sees the activated input; an identity shortcut carries the raw one.
        skipped = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(activated)
        y: Tensor = self.conv2(self.dropout(self.norm2(self.conv1(activated)).relu_()))
        return y.add_(skipped)


Block = Callable[[int, int, int, float], nn.Module]  # of input channels, output channels, stride, dropout


class ResNet(nn.Module):
    """Residual network for small images: 3×3 stem without pooling, stages of blocks, global average, ``head``.
    ``dropout``: the probability within blocks."""

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        stem: int,
        widths: tuple[int, ...],
        depth: int,
        block: Block = PostActivationBlock,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = _conv(channels, stem)
        before = block is PreActivationBlock
        self.stem_norm = nn.Identity() if before else nn.Sequential(nn.BatchNorm2d(stem), nn.ReLU(inplace=True))
        blocks, inputs = [], stem
        for stage, width in enumerate(widths):
            for index in range(depth):
                blocks.append(block(inputs, width, 2 if stage > 0 and index == 0 else 1, dropout))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.last_norm = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)) if before else nn.Identity()
        self.head = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B,C,H,W) to logits (B,N)."""
        x = self.last_norm(self.blocks(self.stem_norm(self.stem(images))))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits

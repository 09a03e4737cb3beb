"""Folded networks: first layers with the constant maps of their references, and the loop over these."""

import threading
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from anchored.errors import UserError

IMAGES_PER_PASS = 16
"""Most images of a pass that takes several references at once: few images leave a processor idle (10 passes of one
image take 1.2 to 1.7 times as long as one of 10 on two cores), many do not fit into its cache."""


class ReferenceLoop(threading.local):
    """A thread's position in its loop over K references: the current ones, and the first layers' shared outputs."""

    def __init__(self) -> None:
        self.current = range(1)
        self.shared: dict[str, Tensor] = {}

    def __reduce__(self) -> "tuple[type[ReferenceLoop], tuple[()]]":  # copied and saved as new
        return ReferenceLoop, ()


class Mapped(nn.Module):
    """A first layer with the constant maps of K references: ``layer(x) + maps[k]``, with ``layer(x)`` computed once.

    ``maps``: (K·rows, ...), where ``rows`` is the number of rows of the layer's input that belong to one image: 1, or
    its number of tokens where the network flattens tokens into the batch dimension.
    """

    maps: Tensor

    def __init__(self, name: str, layer: nn.Module, maps: Tensor, copies: int, loop: ReferenceLoop) -> None:
        super().__init__()
        self.name, self.layer, self.copies, self.loop = name, layer, copies, loop
        self.rows = len(maps) // copies
        self.register_buffer("maps", maps)

    @property
    def weight(self) -> nn.Parameter:
        """The layer's, for code that reads the first layer's device or dtype."""
        weight: nn.Parameter = self.inner.weight
        return weight

    @property
    def inner(self) -> Any:
        """The convolution or linear layer, without the padding around it."""
        return self.layer[-1] if isinstance(self.layer, nn.Sequential) else self.layer

    def forward(self, images: Tensor) -> Tensor:
        """The layer's input, of the same B images for each of the T current references, to outputs (T·B·rows, ...)."""
        current, shared = self.loop.current, self.loop.shared
        # The last reference takes the shared output away and adds in place: no second tensor of its size. Where the
        # network calls the layer again with that reference, it is computed again.
        last = len(current) == 1 and current.stop == self.copies
        kept = None if current.start == 0 else shared.pop(self.name, None) if last else shared[self.name]
        output = self.layer(images[: images.shape[0] // len(current)]) if kept is None else kept
        if not last and self.copies > 1:
            shared[self.name] = output
        sums = [output.add_(self._map(k, output)) if last else output + self._map(k, output) for k in current]
        return sums[0] if len(current) == 1 else torch.cat(sums)

    def _map(self, k: int, output: Tensor) -> Tensor:
        """The map of reference ``k``, to be added to outputs (B·rows, ...)."""
        rows = self.maps[k * self.rows : (k + 1) * self.rows].to(output.dtype)
        return rows if self.rows == 1 else rows.repeat(output.shape[0] // self.rows, *[1] * (rows.dim() - 1))


class Views(Protocol):
    """Logits of the same images for one reference after another."""

    count: int  # K

    def logits(self) -> Tensor:
        """Logits (B,N) for the next reference."""

    def keep(self, places: Tensor) -> None:
        """Go on with the images at these places only."""


class Folded(nn.Module):
    """Images (B,C,H,W) of one size, normalised, to logits (B,N): the mean over the references that were folded in.

    Attributes:
        network: takes images (B,C,H,W); its first layers are :class:`Mapped`.
        shape: (C,H,W) of the images, which is that of the references.
        copies: K.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...], copies: int, loop: ReferenceLoop) -> None:
        super().__init__()
        self.network, self.shape, self.copies, self.loop = network, shape, copies, loop

    def forward(self, images: Tensor) -> Tensor:
        """Images (B,C,H,W) to logits (B,N); ``UserError`` for images of another size."""
        self._check_size(images)
        try:
            return self._mean_logits(images)
        finally:
            self.loop.current = range(1)
            self.loop.shared.clear()

    def _check_size(self, images: Tensor) -> None:
        if tuple(images.shape[1:]) != self.shape:
            given, expected = ("×".join(map(str, shape)) for shape in (images.shape[1:], self.shape))
            raise UserError(f"images are {given}, the folded network takes {expected}: resize them, or fold it again")

    def _mean_logits(self, images: Tensor) -> Tensor:
        # A compiled or exported program must not depend on the number of images: one reference a pass.
        together = (
            1 if torch.compiler.is_compiling() else min(self.copies, max(1, IMAGES_PER_PASS // max(1, len(images))))
        )
        parts: list[Tensor] = []
        for first in range(0, self.copies, together):
            self.loop.current = current = range(first, min(first + together, self.copies))
            count = len(current)
            logits = self.network(images if count == 1 else images.repeat(count, *[1] * len(self.shape)))
            parts.append(logits if count == 1 else logits.unflatten(0, (count, -1)).sum(dim=0))
        return torch.stack(parts).sum(dim=0) / self.copies if self.copies > 1 else parts[0]

    def views(self, images: Tensor) -> Views:
        """Logits of images (B,C,H,W) for one reference after another; ``UserError`` for images of another size."""
        self._check_size(images)
        return FoldedViews(self, images)

    def extra_repr(self) -> str:
        """The settings, for ``print(model)``."""
        return f"shape={self.shape}, copies={self.copies}"


class FoldedViews:
    """Logits of the same images for one reference after another: the first layers run once.

    Attributes:
        count: K.
        images: (B,C,H,W), those that are left.
    """

    def __init__(self, folded: Folded, images: Tensor) -> None:
        self.count, self.images = folded.copies, images
        self._folded, self._shared, self._next = folded, dict[str, Tensor](), 0

    def logits(self) -> Tensor:
        """Logits (B,N) for the next reference."""
        loop = self._folded.loop
        loop.current, loop.shared = range(self._next, self._next + 1), self._shared
        try:
            logits: Tensor = self._folded.network(self.images)
        finally:
            loop.current, loop.shared = range(1), {}
        self._next += 1
        return logits

    def keep(self, places: Tensor) -> None:
        """Go on with the images at these ``places`` only."""
        count = len(self.images)
        self.images = self.images[places]
        for name, output in self._shared.items():
            self._shared[name] = output.reshape(count, -1, *output.shape[1:])[places].flatten(0, 1)

"""Anchoring at a hidden layer: the layer named ``at`` and what follows see ``[r, h − r]``, where h is its input.

What comes before the layer (the front) runs once, on the images alone, frozen or trained; references pass it once and
are kept as features. So K references cost K times the rear part only. Everything else is as at the input.

No network is cut in two. A hook on the layer makes pairs of the features that arrive there: of B features B pairs in
training, and in evaluation one for each of K references, K·B rows, reference by reference. All that follows runs on
these rows. That is right exactly where the layer is the only way from the image to the logits, which is found by
running the network. Kin: G-ΔUQ (arXiv 2309.10976).

Letters: B batch, K references, h features (B,D,...) or (B,...,D): ``dim`` is the dimension of D.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anchored.errors import UserError
from anchored.method.anchoring import AnchoredModel, pair, untraced
from anchored.method.hidden_layer import ROWS, Entry, HiddenPlace


class HiddenViews:
    """Logits of the same images for one reference after another; the images pass the front once.

    Attributes:
        count: K.
    """

    def __init__(
        self, network: nn.Module, entry: Entry, images: Tensor, count: int, show: Callable[[range, Tensor], Tensor]
    ) -> None:
        self.count, self._next = count, 0
        self._network, self._entry, self._show, self._image = network, entry, show, images[:1]
        self._features = entry.features(network, images)

    def logits(self) -> Tensor:
        """Logits (B,N) for the next reference."""
        rows = self._show(range(self._next, self._next + 1), self._features)
        self._next += 1
        with self._entry.changing(lambda _: rows):
            logits: Tensor = self._network(self._image)
        return logits

    def keep(self, places: Tensor) -> None:
        """Go on with the images at these ``places`` only."""
        self._features = self._features[places]


class HiddenAnchoredModel(AnchoredModel):
    """An anchored model whose references meet the image at a hidden layer. Make one with ``anchor(network, at=...)``.

    ``references`` are images (K,C,H,W), as at the input, and are saved as such, so that they can be seen and follow a
    front that is trained on. Their features are computed once, and again when weights or references have changed.
    Unset, the reference is a feature map of zeros. Hard Δ mining is refused: it fits a distribution of residuals that a
    trained front changes all the time.

    Attributes:
        place: where the network is anchored.
    """

    def __init__(self, network: nn.Module, place: HiddenPlace, mask_probability: float = 0.0, **settings: Any) -> None:
        super().__init__(network, mask_probability, stem=place.stem, **settings)
        self.place = place
        # The state that they were computed in, the weights' first values then, and features (K,...)
        self._kept: tuple[Any, Tensor, Tensor] | None = None

    @property
    def entry(self) -> Entry:
        """The hook at the layer."""
        return Entry.of(self.network.get_submodule(self.place.name))

    def train(self, mode: bool = True) -> "HiddenAnchoredModel":
        """See :meth:`torch.nn.Module.train`."""
        self._kept = None  # weights may be exchanged meanwhile, in ways that leave no trace
        super().train(mode)
        return self

    def forward(self, images: Tensor, far: Tensor | None = None, own: int | None = None) -> Tensor:
        """Images (B,C,H,W), normalised floats, to logits (B,N); ``UserError`` for ``far``, see the class."""
        if far is not None:
            raise UserError(
                f"hard Δ mining is for images, this model is anchored at '{self.place.name}': leave far out"
            )
        return super().forward(images, own=own)

    def set_training_references(self, images: Tensor | None) -> None:
        """Refused, but for None: training references are the features of the batch."""
        if images is not None:
            raise UserError(f"the model is anchored at '{self.place.name}': training references come from the batch")

    def masked_pass(self, residuals: Tensor) -> Tensor:
        """Refused, see the class."""
        raise UserError(f"the model is anchored at '{self.place.name}': residuals of images cannot be shown to it")

    def _training_pass(self, images: Tensor, far: Tensor | None) -> Tensor:
        with self.entry.changing(partial(self._drawn_pairs, dim=self.entry.dim)):
            return self._logits(images)

    def _evaluation_pass(self, images: Tensor) -> Tensor:
        count, show = self._shown(images)
        return self.entry.mean_logits(self.network, images, count, show)

    def views(self, images: Tensor) -> HiddenViews:
        """Logits of images (B,C,H,W) for one reference after another, in evaluation mode."""
        count, show = self._shown(images)
        return HiddenViews(self.network, self.entry, images, count, show)

    def _shown(self, images: Tensor) -> tuple[int, Callable[[range, Tensor], Tensor]]:
        """K, and the function that makes pairs of features (B,...) with some of the references."""
        self._check_size(images)
        kept, dim = self.reference_features(), self.entry.dim

        def show(current: range, features: Tensor) -> Tensor:
            known = features.new_zeros(1, *features.shape[1:]) if kept is None else kept.to(features.dtype)
            return torch.cat([pair(features, known[k : k + 1], dim=dim) for k in current])

        return 1 if kept is None else len(kept), show

    @untraced
    def reference_features(self) -> Tensor | None:
        """The features of the K references, (K,...); None where there are none. Computed where it is necessary."""
        if self.references is None:
            return None
        tensors = (self.references, *self.network.parameters(), *self.network.buffers())
        state = [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
        if self._kept is None or self._kept[0] != state or not torch.equal(self._kept[1], _first_values(tensors)):
            exact = torch.autocast(self.references.device.type, enabled=False)  # a later pass may run without
            with torch.inference_mode(False), torch.no_grad(), exact:
                parts = [self.entry.features(self.network, part) for part in torch.split(self.references, ROWS)]
            self._kept = state, _first_values(tensors), torch.cat(parts)
        return self._kept[2]

    def with_references(self, images: Tensor) -> "HiddenAnchoredModel":
        """The same network, shared, with other references (K,C,H,W), in evaluation mode."""
        model = HiddenAnchoredModel(self.network, self.place).eval()
        model.set_references(images)
        return model

    def extra_repr(self) -> str:
        """The settings, for ``print(model)``."""
        return f"at={self.place.name}, {super().extra_repr()}"


def _first_values(tensors: Sequence[Tensor]) -> Tensor:
    """One value of each tensor of floats: what is exchanged through ``.data``, as averages of weights are, leaves no
    other trace."""
    filled = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
    return torch.cat([t.as_strided((1,), (1,)).to(filled[0].device) for t in filled])

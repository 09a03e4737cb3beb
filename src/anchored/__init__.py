"""Anchored training with reference masking.

>>> model = anchored.anchor(network, mask_probability=0.25)   # same images in, same answers on the first day
>>> plain = anchored.fold(model)                                # a plain network again, to deploy
>>> model = anchored.load("runs/demo/runs/small-ram-0.25-seed0")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anchored.anchoring import AnchoredModel, anchor
    from anchored.errors import UserError
    from anchored.folding import fold
    from anchored.model import load

__all__ = ["AnchoredModel", "UserError", "anchor", "fold", "load"]

_HOMES = {
    "AnchoredModel": "anchoring",
    "anchor": "anchoring",
    "UserError": "errors",
    "fold": "folding",
    "load": "model",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `anchored --help` does not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'anchored' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"anchored.{_HOMES[name]}"), name)

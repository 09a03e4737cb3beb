"""Anchored training with reference masking.

>>> model = anchored.anchor(network, mask_probability=0.25)  # same images in, same logits out before training
>>> plain = anchored.fold(model)  # a plain network again, to deploy
>>> model = anchored.load("runs/demo/runs/small-ram-0.25-seed10")
>>> answer = anchored.infer(model, images, "adaptive", references=training_images[:10])  # docs/how-to/references.md
>>> result = anchored.evaluate(model, "fashion-mini-known", ood=["digits"])  # of any classifier
>>> decision = anchored.calibrate(model, held_out, labels)  # thresholds and sets with a bounded error
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Before anything imports huggingface_hub or datasets, which read them once: no reports of use, unless you ask for them.
for _variable, _quiet in (("HF_HUB_DISABLE_TELEMETRY", "1"), ("HF_UPDATE_DOWNLOAD_COUNTS", "0")):
    os.environ.setdefault(_variable, _quiet)

if TYPE_CHECKING:
    from anchored.errors import UserError
    from anchored.method.anchoring import AnchoredModel, anchor
    from anchored.method.folding import fold
    from anchored.method.references import Inferred, infer
    from anchored.models.decision import Decision
    from anchored.models.folder import load
    from anchored.report.result import Result
    from anchored.study.calibrate import calibrate
    from anchored.study.evaluate import compare, evaluate

__all__ = [
    "AnchoredModel",
    "Decision",
    "Inferred",
    "Result",
    "UserError",
    "anchor",
    "calibrate",
    "compare",
    "evaluate",
    "fold",
    "infer",
    "load",
]

_HOMES = {
    "AnchoredModel": "method.anchoring",
    "Decision": "models.decision",
    "Inferred": "method.references",
    "Result": "report.result",
    "anchor": "method.anchoring",
    "UserError": "errors",
    "calibrate": "study.calibrate",
    "compare": "study.evaluate",
    "evaluate": "study.evaluate",
    "fold": "method.folding",
    "infer": "method.references",
    "load": "models.folder",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `anchored --help` does not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'anchored' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"anchored.{_HOMES[name]}"), name)

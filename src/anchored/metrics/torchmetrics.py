"""Metrics as modules of torchmetrics, which pool their images over batches and over ranks.

>>> from anchored.metrics.torchmetrics import AUROC, FPR95, SmoothECE
>>> metric = SmoothECE(interval=True)
>>> metric.update(logits, labels)  # batch by batch, or metric(logits, labels)
>>> metric.compute()  # {"smooth_ece": ..., "smooth_ece_low": ..., "smooth_ece_high": ...}

Values are those of ``calibration`` and ``detection`` on all images at once, whatever the batches, their order and the
number of ranks; so are the intervals, those of ``intervals``. Each image keeps two numbers until ``reset``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchmetrics
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from anchored.errors import UserError
from anchored.metrics.bounded import plain_figures
from anchored.metrics.calibration import weighted_smooth_ece
from anchored.metrics.classification import per_image
from anchored.metrics.intervals import LEVEL, REPLICATES, estimate
from anchored.metrics.registry import OOD_METRICS
from anchored.metrics.weighted import check_values, unweighted

Computed = Tensor | dict[str, Tensor]
"""A scalar float64; with ``interval=True`` by name: NAME, NAME_low and NAME_high, as ``self.log_dict`` takes them."""


class _Pooled(torchmetrics.Metric):
    """What the metrics share: whether there is an interval, and how it is drawn."""

    is_differentiable = False
    full_state_update = False

    def __init__(self, name: str, interval: bool, replicates: int, level: float, seed: int, **options: Any) -> None:
        super().__init__(**options)
        self.name, self.interval = name, interval
        self.replicates, self.level, self.seed = replicates, level, seed

    def _measured(self, weighted: Callable[..., Tensor], *samples: Tensor) -> Computed:
        """The value of a weighted metric of samples, which are sorted: no rank's place decides a resample."""
        if not self.interval:
            return torch.tensor(unweighted(weighted, *samples), dtype=torch.float64, device=samples[0].device)
        sizes, device = [len(sample) for sample in samples], samples[0].device
        generator = torch.Generator().manual_seed(self.seed)
        figures = plain_figures([self.name], *sizes)
        (found,), _ = estimate(
            lambda *weights: weighted(*weights)[:, None], figures, sizes, generator, self.replicates, self.level, device
        )
        names = (self.name, f"{self.name}_low", f"{self.name}_high")
        return {name: torch.tensor(end, dtype=torch.float64) for name, end in zip(names, found, strict=True)}


class SmoothECE(_Pooled):
    """Smooth calibration error of the largest class probability, in [0, 1]; see ``calibration.smooth_ece``.

    Args:
        interval: give the interval too.
        variant: "reflect", or "reflect_old" as relplot 1.0.
        replicates: of the bootstrap over images.
        level: of the interval, in (0, 1).
        seed: of the resamples.
        options: those of ``torchmetrics.Metric``, such as ``sync_on_compute``.
    """

    higher_is_better = False
    confidence: list[Tensor]
    correct: list[Tensor]

    def __init__(
        self,
        interval: bool = False,
        variant: str = "reflect",
        replicates: int = REPLICATES,
        level: float = LEVEL,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__("smooth_ece", interval, replicates, level, seed, **options)
        self.variant = variant
        self.add_state("confidence", default=[], dist_reduce_fx="cat")
        self.add_state("correct", default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B,N) of any floating dtype, of probabilities the logarithm; labels (B,) integers.

        Raises ``UserError`` as ``classification.per_image``.
        """
        images = per_image(logits, labels)
        self.confidence.append(images.confidence)
        self.correct.append(images.correct)

    def compute(self) -> Computed:
        """The metric of all images so far; ``UserError`` where there are none."""
        confidence, correct = check_values(_joined(self.confidence), "confidence"), _joined(self.correct)
        correct, order = correct.sort()  # of equally confident images first the wrong ones, whatever their order was
        confidence, places = confidence[order].sort(stable=True)
        correct = correct[places]
        return self._measured(weighted_smooth_ece(confidence, correct, self.variant), confidence)


class _Detection(_Pooled):
    """A metric of the detection of out-of-distribution images by their scores. Arguments: :class:`SmoothECE`."""

    metric: str  # its key in ``registry.OOD_METRICS``
    scores: list[Tensor]
    out: list[Tensor]

    def __init__(
        self,
        interval: bool = False,
        replicates: int = REPLICATES,
        level: float = LEVEL,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(self.metric, interval, replicates, level, seed, **options)
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("out", default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, out: Tensor | bool) -> None:
        """Add a batch.

        Args:
            scores: (B,) of any real dtype, higher = more out-of-distribution, as ``anchored.metrics.ood_scores`` gives.
            out: (B,), true where the image is out-of-distribution, or one value for the batch.

        Raises ``UserError`` for NaN, infinity or another shape.
        """
        values = check_values(scores, "scores")
        marks = torch.as_tensor(out, device=values.device).bool()
        if marks.dim() and marks.shape != values.shape:
            raise UserError(f"out is {tuple(marks.shape)} for {len(values)} scores: give one mark each, or one for all")
        self.scores.append(values)
        self.out.append(marks.expand(len(values)).clone())

    def compute(self) -> Computed:
        """The metric of all images so far; ``UserError`` where one of the two kinds is missing."""
        scores, out = _joined(self.scores), _joined(self.out).bool()
        inside, outside = scores[~out].sort().values, scores[out].sort().values
        return self._measured(OOD_METRICS[self.name](inside, outside), inside, outside)


class AUROC(_Detection):
    """Area under the ROC curve of OOD detection, in [0, 1]; see ``detection.auroc``. Arguments: :class:`SmoothECE`."""

    metric = "auroc"
    higher_is_better = True


class FPR95(_Detection):
    """False positive rate at 95 % TPR of OOD detection, in [0, 1]; see ``detection.fpr_at_tpr``."""

    metric = "fpr95"
    higher_is_better = False


def _joined(state: list[Tensor] | Tensor) -> Tensor:
    """All batches' values; a tensor once ranks are joined."""
    return dim_zero_cat(state) if len(state) else torch.zeros(0)

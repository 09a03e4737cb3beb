"""Every metric by the name it has in a row of results: how it is shown, and how it is computed from weighted images."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from anchored.metrics import calibration, detection
from anchored.metrics.classification import PerImage
from anchored.metrics.weighted import WeightedMetric, WeightedOODMetric, weighted_mean


class Metric(NamedTuple):
    """How a metric is shown: ``percent`` metrics × 100, and whether a higher value is the better one."""

    title: str
    percent: bool
    higher_is_better: bool


METRICS: dict[str, Metric] = {
    "accuracy": Metric("Accuracy", percent=True, higher_is_better=True),
    "auroc": Metric("AUROC", percent=True, higher_is_better=True),
    "fpr95": Metric("FPR at 95 % TPR", percent=True, higher_is_better=False),
    "aupr": Metric("AUPR", percent=True, higher_is_better=True),
    "smooth_ece": Metric("Smooth ECE", percent=False, higher_is_better=False),
    "smooth_ece_old": Metric("Smooth ECE (relplot 1.0)", percent=False, higher_is_better=False),
    "ece": Metric("ECE", percent=False, higher_is_better=False),
    "brier": Metric("Brier score", percent=False, higher_is_better=False),
    "nll": Metric("NLL", percent=False, higher_is_better=False),
    "aurc": Metric("AURC", percent=True, higher_is_better=False),
    "augrc": Metric("AUGRC", percent=True, higher_is_better=False),
    "misclassification_auroc": Metric("AUROC of errors", percent=True, higher_is_better=True),
    "aurc_scaled": Metric("AURC, scaled", percent=True, higher_is_better=False),
    "smooth_ece_scaled": Metric("Smooth ECE, scaled", percent=False, higher_is_better=False),
    "nll_scaled": Metric("NLL, scaled", percent=False, higher_is_better=False),
    "false_alarm_rate": Metric("False alarms", percent=True, higher_is_better=False),
    "detection_rate": Metric("Detected", percent=True, higher_is_better=True),
    "set_coverage": Metric("Set coverage", percent=True, higher_is_better=True),
    "set_size": Metric("Set size", percent=False, higher_is_better=False),
    "accepted": Metric("Given a class", percent=True, higher_is_better=True),
    "accepted_error": Metric("Errors of given classes", percent=True, higher_is_better=False),
    "scod_aurc": Metric("AURC with OOD images", percent=True, higher_is_better=False),
    "shifted_accuracy": Metric("Accuracy on shifted images", percent=True, higher_is_better=True),
    "shifted_ece": Metric("Smooth ECE on shifted images", percent=False, higher_is_better=False),
    "shifted_ece_old": Metric("Smooth ECE on shifted images (relplot 1.0)", percent=False, higher_is_better=False),
    "linear_probe_accuracy": Metric("Linear probe accuracy", percent=True, higher_is_better=True),
    "linear_probe_ece": Metric("Linear probe smooth ECE", percent=False, higher_is_better=False),
    "linear_probe_ece_old": Metric("Linear probe smooth ECE (relplot 1.0)", percent=False, higher_is_better=False),
    "estimated_accuracy": Metric("Accuracy, estimated without labels", percent=True, higher_is_better=True),
    "accuracy_error": Metric("Error of the estimated accuracy", percent=True, higher_is_better=False),
    "same_class": Metric("Same class as the mean over K", percent=True, higher_is_better=True),
    "passes": Metric("Passes an image", percent=False, higher_is_better=False),
}
"""The metric column of a results row -> how it is shown; the probe's are those of its test images."""

IMAGE_METRICS: dict[str, Callable[[PerImage], WeightedMetric]] = {
    "accuracy": lambda images: weighted_mean(images.correct),
    "smooth_ece": lambda images: calibration.weighted_smooth_ece(images.confidence, images.correct, "reflect"),
    "smooth_ece_old": lambda images: calibration.weighted_smooth_ece(images.confidence, images.correct, "reflect_old"),
    "ece": lambda images: calibration.weighted_ece(images.confidence, images.correct),
    "brier": lambda images: weighted_mean(images.squared_error),
    "nll": lambda images: weighted_mean(images.log_loss),
}
"""Metric of a labelled set -> images -> its weighted form."""

OOD_METRICS: dict[str, Callable[[Tensor, Tensor], WeightedOODMetric]] = {
    "auroc": detection.weighted_auroc,
    "fpr95": detection.weighted_fpr_at_tpr,
    "aupr": detection.weighted_aupr,
}
"""Detection metric -> (in_scores, out_scores) -> its weighted form."""

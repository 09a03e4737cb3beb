"""Build ``src/anchored/report/published.csv``: figures of other methods under the names that our rows have.

    python scripts/build_published.py PUBLISHED.csv

``PUBLISHED.csv`` holds the figures as they are printed, each with its conditions and its source. Every value stays the
text that is printed. Changed are spellings, so that a report can join by row. What is printed on how a figure was made
stays in ``conditions``; names and other figures that stand there go to ``beside``; the score, the sets of a mean and
the standard deviation get columns of their own. ``not_joined`` says why a figure is no figure of ours.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from pathlib import Path

OUTPUT = Path(__file__).parents[1] / "src" / "anchored" / "report" / "published.csv"
COLUMNS = (
    "trained_on", "architecture", "method", "metric", "dataset", "sets", "score", "value", "sd", "seeds",
    "conditions", "beside", "source", "not_joined",
)  # fmt: skip

TRAINED_ON = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet", "imagenet200": "ImageNet-200"}
ARCHITECTURES = {
    "resnet18": "ResNet-18",
    "preactresnet18": "PreActResNet-18",
    "resnet50": "ResNet-50",
    "wrn40_2": "WRN-40-2",
    "wrn28_10": "WRN-28-10",
    "wrn18_2": "WRN-18-2",
    "resnext29_32x4d": "ResNeXt-29 32×4d",
}
DATASETS = {
    **TRAINED_ON,
    **{f"{name}-c": f"{title}-C" for name, title in TRAINED_ON.items()},
    "CIFAR10": "CIFAR-10",
    "CIFAR100": "CIFAR-100",
    "Texture": "Textures",
    "LSUN-C": "LSUN (C)",
    "LSUN-R": "LSUN (R)",
    "LSUNCrop": "LSUN (C)",
    "LSUNResize": "LSUN (R)",
    "TinyImageNetResize": "Tiny Imagenet",  # ODIN's Imagenet_resize, the catalog's tiny-imagenet-r
    "FashionMNIST": "Fashion-MNIST",
}
"""Their spelling of a set -> the catalog's; other names stay, and meet a user's own set of that name."""

METRICS = {"corruption_accuracy": "accuracy", "auroc_near": "auroc", "auroc_far": "auroc", "ece_binned": "ece"}
SCORES = {
    "msp": "max_softmax",
    "maxlogit": "max_logit",
    "energybased": "energy",
    "mahalanobis+odin": "Mahalanobis + ODIN",
    "multimahalanobis": "multi-layer Mahalanobis",
    "klmatching": "KL matching",
    "graduncertainty": "gradient uncertainty",
    "fdbd": "fDBD",
    "gradnorm": "GradNorm",
    "rankfeat": "RankFeat",
    "react": "ReAct",
    "vim": "ViM",
    "gram": "Gram",
    "mahalanobis": "Mahalanobis",
    **{name: name.upper() for name in ("ash", "dice", "gen", "gmm", "knn", "nac-ue", "odin", "rmd", "she")},
}
"""Their name of a score -> ours, or how its authors spell it."""

METHODS = {
    "adversarial_addepalli2021": "adversarial training (Addepalli 2021)",
    "ant3x3": "ANT 3×3",
    "assemble_resnet50": "Assemble-ResNet",
    "augmix": "AugMix",
    "augmix_nojsd": "AugMix without JSD",
    "batchensemble": "BatchEnsemble",
    "binary_pruned": "CARD, binary weights, pruned",
    "blur_after_conv": "BlurAfterConv",
    "card_deck_binary": "CARD-Deck, binary weights",
    "card_deck_lrr": "CARD-Deck, LRR",
    "cutmix": "CutMix",
    "deep_ensemble_4": "deep ensemble of 4",
    "deepaugment": "DeepAugment",
    "deepaugment_augmix": "DeepAugment + AugMix",
    "energy_finetune": "energy fine-tuning",
    "gauss50": "Gaussian noise on half",
    "logitnorm": "LogitNorm",
    "lrr_pruned": "LRR, pruned",
    "mc_dropout": "MC dropout",
    "mimo": "MIMO",
    "mixup": "mixup",
    "noisymix": "NoisyMix",
    "npos": "NPOS",
    "oe": "outlier exposure",
    "oe_scratch": "outlier exposure from scratch",
    "oe_tune": "outlier exposure, tuned",
    "patch_uniform": "Patch Uniform",
    "pixmix": "PixMix",
    "prime": "PRIME",
    "regmixup": "RegMixup",
    "rlat": "RLAT",
    "rlat_augmix": "RLAT + AugMix",
    "rlat_augmix_nojsd": "RLAT + AugMix without JSD",
    "sin_in": "Stylized + ImageNet",
    "sin_in_finetuned_in": "Stylized + ImageNet, tuned",
    "sngp": "SNGP",
    "sngp_augmix": "SNGP + AugMix",
    "standard": "standard",
    "stylized_imagenet": "Stylized ImageNet",
    "vos": "VOS",
}

_MEAN = re.compile(r"^(?:sets=|(?:unweighted )?mean over (?:\d+ sets: )?)(.+,.+)$")
_SD = re.compile(r"^std=([\d.]+)(.*)$")
_BESIDE = (
    "score=", "sets=", "mean over", "unweighted mean over", "model_id=", "rank ", "printed ", "name in the README",
    "FPR95 counts OOD", "ID error rate printed", "clean accuracy printed", "clean error printed", "mCE of the row",
    "the README's mCE",
)  # fmt: skip
"""Starts of what is no condition of the figure: its name, other figures, and what has a column of its own."""

_REASONS = {
    "mce": "no mCE is measured here: it is relative to AlexNet's errors, or of an unstated normaliser",
    "top1_error": "printed as an error, and rows here are accuracies",
    "cifar100-c-ub": "not Hendrycks' CIFAR-100-C but 17 corruptions of the authors' own",
    "imagenet200": "ImageNet-200 is no training set of the catalog",
    "LSUN": "scenes resized and cropped at the centre: neither LSUN (C) nor LSUN (R)",
    **dict.fromkeys(
        ("Uniform", "Gaussian", "UniformNoise", "GaussianNoise"), "noise drawn otherwise than the catalog's"
    ),
}


def normalised(text: str) -> str:
    """The printed figures (CSV) under our names."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_row(row) for row in csv.DictReader(io.StringIO(text)))
    return stream.getvalue()


def _row(row: dict[str, str]) -> dict[str, str]:
    parts = [part for part in re.split(r";\s+(?![^()]*\))", row["conditions"]) if part]
    sets = next((found[1] for part in parts if (found := _MEAN.match(part))), "")
    score = next((part.removeprefix("score=") for part in parts if part.startswith("score=")), "")
    unclear = any(part.startswith("UNCLEAR") for part in parts)
    beside = [part for part in parts if part.startswith(_BESIDE) and not (unclear and "mCE" in part)]
    own = (row["dataset"] in DATASETS and row["metric"] != "auroc") or not sets
    return {
        "trained_on": TRAINED_ON[row["trained_on"]],
        "architecture": ARCHITECTURES[row["architecture"]],
        "method": METHODS[row["method"]],
        "metric": METRICS.get(row["metric"], row["metric"]),
        "dataset": DATASETS.get(row["dataset"], row["dataset"]) if own else _mean_name(row["dataset"], sets),
        "sets": "; ".join(DATASETS.get(name, name) for name in sets.split(", ")) if sets else "",
        "score": SCORES.get(score, score),
        "value": row["value"],
        "sd": next((found[1] for part in parts if (found := _SD.match(part))), ""),
        "seeds": row["seeds"],
        "conditions": "; ".join(filter(None, (_condition(part) for part in parts if part not in beside))),
        "beside": "; ".join(beside),
        "source": row["source"],
        "not_joined": _reason(row),
    }


def _condition(part: str) -> str:
    """A part of the conditions without the standard deviation itself."""
    found = _SD.match(part)
    return part if found is None else f"s.d.{found[2]}" * bool(found[2])


def _mean_name(dataset: str, sets: str) -> str:
    kind = {"near_ood": "near-OOD sets", "far_ood": "far-OOD sets"}.get(dataset, "sets")
    return f"Mean of {sets.count(',') + 1} {kind}"


def _reason(row: dict[str, str]) -> str:
    """Why a figure is no figure of ours; empty where a study can have one of the same set, network and metric."""
    if row["metric"] == "fpr95" and "counts ID as positive" in row["conditions"]:
        return "FPR at 95 % of the images of the own distribution; here it is at 95 % of the others"
    return next((_REASONS[row[name]] for name in ("metric", "trained_on", "dataset") if row[name] in _REASONS), "")


if __name__ == "__main__":
    OUTPUT.write_text(normalised(Path(sys.argv[1]).read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{OUTPUT}: {OUTPUT.read_text(encoding='utf-8').count(chr(10)) - 1} figures")

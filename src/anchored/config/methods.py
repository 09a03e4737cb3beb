"""What people train with instead of reference masking, or beside it: a method is a name for some settings of ``train``.

``grid.methods`` names rows of this table, each crossed with the grid's protocols; ``grid.per_method`` changes one, or
adds one of a name of its own. Rows with ``of`` train nothing: they use what another method trained. How each is built,
and how it meets anchoring: docs/how-to/methods.md.
"""

from dataclasses import dataclass, field
from typing import Any

PLAIN = "plain"
"""The method of ``grid.methods`` that changes nothing; rows and folders do not name it."""


@dataclass(frozen=True)
class Method:
    """A row: what reports call it, where it was published, and the settings of ``train`` that it stands for.

    ``of``: of a method after training, the method whose networks it uses where its name does not say (``NAME:OTHER``).
    """

    title: str
    source: str
    train: dict[str, Any] = field(default_factory=dict)
    of: str = ""


METHODS = {
    PLAIN: Method("Plain", "the recipe as it is"),
    "augmix": Method("AugMix", "arXiv 1912.02781", {"policy": "augmix", "consistency": 12.0}),
    "augmix_no_consistency": Method("AugMix without JSD", "arXiv 1912.02781, ablation", {"policy": "augmix"}),
    "trivial_augment": Method("TrivialAugment", "arXiv 2103.10158", {"policy": "trivial_augment"}),
    "pixmix": Method("PixMix", "arXiv 2112.05135", {"policy": "pixmix"}),
    "mixup": Method("mixup", "arXiv 1710.09412", {"mixup": 1.0}),
    "cutmix": Method("CutMix", "arXiv 1905.04899", {"cutmix": 1.0}),
    "regmixup": Method("RegMixup", "arXiv 2206.14502", {"regmixup": 10.0}),
    "label_smoothing": Method("Label smoothing", "arXiv 1512.00567", {"label_smoothing": 0.1}),
    "logitnorm": Method("LogitNorm", "arXiv 2205.09310", {"logit_norm": 0.04}),
    "outlier_exposure": Method("Outlier exposure", "arXiv 1812.04606", {"outliers": "jigsaw", "outlier_weight": 0.5}),
    "weight_averaging": Method("Weight averaging", "arXiv 1306.2759 (EMA)", {"average": 0.999}),
    "sam": Method("SAM", "arXiv 2010.01412", {"sam": 0.05}),
    "random_erasing": Method("Random erasing", "arXiv 1708.04896", {"random_erasing": 0.25}),
    "repeated_augmentation": Method("Repeated augmentation", "arXiv 1902.05509", {"repeats": 4}),
    "dropout": Method("Dropout", "Srivastava et al. 2014, JMLR 15", {"dropout": 0.1}),
    "temperature": Method("Temperature scaling", "arXiv 1706.04599", of=PLAIN),
    "ensemble": Method("Deep ensemble", "arXiv 1612.01474", of=PLAIN),
    "mc_dropout": Method("MC dropout", "arXiv 1506.02142", of="dropout"),
}
"""Name, as in ``grid.methods`` -> the method, with its authors' settings for CIFAR where they gave any: for one of the
two where these differ (docs/how-to/methods.md)."""


def after_training(name: str) -> tuple[str, str]:
    """What a method does after training, a row of the table, or "" where it trains; and whose trainings it needs.

    ``temperature`` uses plain trainings, ``temperature:augmix`` those of AugMix; ``augmix`` needs its own.
    """
    way, _, other = name.partition(":")
    row = METHODS.get(way)
    return (way, other or row.of) if row is not None and row.of else ("", name)


def method_title(name: str) -> str:
    """Return what a report calls a method; one of the recipe's own has its name."""
    way, of = after_training(name)
    if way and of != METHODS[way].of:
        return f"{METHODS[way].title} of {'plain' if of == PLAIN else method_title(of)}"
    return METHODS[way or name].title if way or name in METHODS else name

"""Prediction sets of MAPIE and torch-uncertainty on the same logits, beside ours.

``python benchmarks/decision_oracles.py [--write tests/metrics/decision_oracles.json]`` prints how many sets are
equal; ``--write`` keeps theirs, which a test compares with ours where neither is installed. Both are wanted beside the
project's own environment: ``uv pip install --no-deps --target DIR mapie==1.6.0 torch-uncertainty==0.13.0 lightning
einops seaborn torchmetrics lightning-utilities pandas``, then ``PYTHONPATH=DIR``.

torch-uncertainty interpolates the plain quantile of n scores, without the (n + 1) that the promise needs: it is asked
for the level at which that is the same order statistic. MAPIE randomises APS by two streams of one seed, which ours is
given. RAPS of MAPIE chooses its own penalty on a part of the images, so that only torch-uncertainty's is compared.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from anchored.metrics import conformal, selective

COVERAGE, SEED, CLASSES = 0.8, 3, 7


def logits_and_labels(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits (N, K) of a classifier that is right of half the images, and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (images,), generator=generator)
    logits = 1.5 * torch.randn(images, CLASSES, generator=generator)
    return logits + 2.5 * nn.functional.one_hot(labels, CLASSES), labels


def draws(images: int) -> Tensor:
    """What MAPIE draws for so many images."""
    return torch.from_numpy(np.random.RandomState(SEED).uniform(size=images))


def ours(method: str, held: tuple[Tensor, Tensor], logits: Tensor) -> Tensor:
    """Our sets (N, K): ``lac``, ``aps`` (randomised), torch-uncertainty's ``thr``, ``aps-plain``, ``raps-plain``."""
    kind: Any = {"thr": "lac"}.get(method, method.removesuffix("-plain"))
    random = method == "aps"
    options: dict[str, Any] = {"penalty": 0.1, "free": 1}
    own = conformal.set_scores(held[0].double().softmax(1), kind, draws(len(held[0])) if random else None, **options)
    scores = conformal.set_scores(logits.double().softmax(1), kind, draws(len(logits)) if random else None, **options)
    quantiles = conformal.set_quantiles(own, held[1], COVERAGE)
    return conformal.prediction_sets(scores, quantiles, None if method in ("lac", "aps") else logits.argmax(1))


def mapie_sets(method: str, held: tuple[Tensor, Tensor], logits: Tensor) -> Tensor:
    """MAPIE's sets of a classifier that is fitted already."""
    from mapie.classification import SplitConformalClassifier  # type: ignore[import-not-found]
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Softmax(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        classes_ = np.arange(CLASSES)

        def fit(self, inputs: Any, labels: Any) -> Softmax:
            return self

        def __sklearn_is_fitted__(self) -> bool:
            return True

        def predict_proba(self, inputs: Any) -> Any:
            return torch.from_numpy(np.asarray(inputs)).double().softmax(1).numpy()

        def predict(self, inputs: Any) -> Any:
            return self.predict_proba(inputs).argmax(1)

    classifier = SplitConformalClassifier(
        Softmax(), confidence_level=COVERAGE, conformity_score=method, prefit=True, random_state=SEED
    )
    classifier.conformalize(held[0].double().numpy(), held[1].numpy())
    options = {"include_last_label": "randomized"} if method == "aps" else {}
    return torch.from_numpy(classifier.predict_set(logits.double().numpy(), options)[1][:, :, 0].astype(bool))


def torch_uncertainty_sets(method: str, held: tuple[Tensor, Tensor], logits: Tensor) -> Tensor:
    """torch-uncertainty's sets of an identity, at the level whose plain quantile is the conformal one."""
    from torch_uncertainty.post_processing.conformal import (  # type: ignore[import-not-found]
        ConformalClsAPS,
        ConformalClsRAPS,
        ConformalClsTHR,
    )

    n = len(held[0])
    level = (math.ceil(COVERAGE * (n + 1)) - 1) / (n - 1)
    options = {"alpha": 1 - level, "model": nn.Identity(), "enable_ts": False, "device": "cpu"}
    rule: Any = {
        "thr": lambda: ConformalClsTHR(**options),
        "aps-plain": lambda: ConformalClsAPS(randomized=False, **options),
        "raps-plain": lambda: ConformalClsRAPS(randomized=False, penalty=0.1, regularization_rank=1, **options),
    }[method]()
    rule.model = _Exact()
    rule.fit(DataLoader(TensorDataset(held[0].double(), held[1]), batch_size=n))
    found: Tensor = rule.conformal(logits.double()) > 0
    return found


class _Exact(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


def curve_areas(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """torch-uncertainty's AURC and AUGRC: trapezia between the first image and the last, over 1 − 1/N."""
    from torch_uncertainty.metrics.classification import AUGRC, AURC  # type: ignore[import-not-found]

    found = {}
    for name, metric in (("aurc", AURC()), ("augrc", AUGRC())):
        metric.update(logits.double().softmax(1), labels)
        found[name] = float(metric.compute())
    return found


def our_areas(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """The same from our curve."""
    p = logits.double().softmax(1)
    coverage, risk = selective.risk_coverage(p.amax(1), (logits.argmax(1) == labels).double())
    curves = {"aurc": risk, "augrc": risk * coverage}
    return {name: float(torch.trapezoid(curve, coverage) / (1 - 1 / len(p))) for name, curve in curves.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    options = parser.parse_args()
    for kept in (False, True):
        n = 60 if kept else options.images
        held, (logits, labels) = logits_and_labels(n, 0), logits_and_labels(n, 1)
        theirs = {method: mapie_sets(method, held, logits) for method in ("lac", "aps")}
        theirs |= {m: torch_uncertainty_sets(m, held, logits) for m in ("thr", "aps-plain", "raps-plain")}
        for method, sets in theirs.items():
            equal = int((sets == ours(method, held, logits)).all(1).sum())
            print(
                f"{method:<11} {equal:,} of {len(sets):,} sets equal, {float(sets.sum(1).double().mean()):.2f} classes"
            )
        areas, found = curve_areas(logits, labels), our_areas(logits, labels)
        print(f"areas       theirs {areas}, ours {found}")
        if kept and options.write:
            rows = {name: ["".join(map(str, row.int().tolist())) for row in sets] for name, sets in theirs.items()}
            options.write.write_text(json.dumps({"sets": rows, "areas": areas}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Lines of ``cpu.py`` on evaluation: folded networks, corruptions, a sweep, metrics; beside peers."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import corruptions as port
import cv2
import numpy as np
import peers
import relplot
import torch
from bench import CLASSES, Bench, Figures, Line, ratio, spread
from cpu_training import DEMO, RESNET, built, cases, image_set, one_thread, random_images
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from timing import seconds, turned
from torch import Tensor, nn

from anchored import anchor, fold
from anchored.corruptions.registry import corrupt, expand
from anchored.data.image_sets import ImageSet
from anchored.evaluation.classifier import Classifier
from anchored.evaluation.inference import Change, Pass
from anchored.metrics import calibration, intervals
from anchored.metrics.linear_probe import STRENGTHS, linear_probe, stratified
from anchored.models import registry as networks
from anchored.models.folder import ModelConfig

K = 10
SEVERITIES = [1, 2, 3, 4, 5]
METRICS = ["accuracy", "smooth_ece", "brier", "nll", "ece"]


# --- Folded networks --------------------------------------------------------------------------------------------------


def folded_lines(bench: Bench) -> Iterator[tuple[str, Line]]:
    for title in cases(bench):
        yield title, partial(_folded, bench, title)


@torch.inference_mode()
def _folded(bench: Bench, title: str) -> Figures:
    """The anchored network has a fresh first layer, so that there is a map to add. ``folding.py`` has more networks."""
    network, shape, count = built(bench, title)
    model = anchor(network.eval(), fresh_stem=True, example=torch.zeros(2, *shape)).eval()
    references = torch.randn(K, *shape, generator=torch.Generator().manual_seed(2))
    one, many = fold(model, references[:1]), fold(model, references)
    images = bench.random(min(count, 16), *shape)
    found = bench.in_turn(standard=lambda: network(images), one=lambda: one(images), many=lambda: many(images))
    return {
        "folded ÷ standard": ratio(found["one"], found["standard"]),
        f"{K} references ÷ {K} passes": ratio([each / K for each in found["many"]], found["standard"]),
    }


# --- Corruptions ------------------------------------------------------------------------------------------------------


def corruption_lines(bench: Bench) -> Iterator[tuple[str, Line]]:
    for size in (32, 224):
        yield f"{size} px", partial(_corruptions, bench, size)


def _corruptions(bench: Bench, size: int) -> Figures:
    """Geometric mean over corruptions of that over severities; ``corruptions.py`` has each."""
    names = ["contrast", "brightness"] if bench.tiny else port.COMMON
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with one_thread():
            ratios = {
                name: statistics.geometric_mean(
                    port.speed(name, each, size, min(bench.turns, 3))[0] for each in SEVERITIES
                )
                for name in names
            }
    finally:
        cv2.setNumThreads(threads)
    least = min(ratios, key=ratios.__getitem__)
    mean = statistics.geometric_mean(ratios.values())
    return {"ours ÷ peer, geometric mean": mean, "least": f"{least}: {ratios[least]:.2f}"}


# --- A sweep ----------------------------------------------------------------------------------------------------------


def sweep_lines(bench: Bench) -> Iterator[tuple[str, Line]]:
    for title in (DEMO, RESNET):
        yield f"corrupting on the way, {title}", partial(_sweep, bench, title)
    for title in ("demo network, 32", RESNET):
        name = "small" if bench.tiny or title != RESNET else "resnet18"
        yield f"published files, torch-uncertainty, {title}", partial(_files, bench, name)


def _images(count: int, channels: int, size: int) -> ImageSet:
    return image_set(*random_images(count, (channels, size, size)))


def _classifier(network: nn.Module, channels: int, size: int) -> Classifier:
    half, classes = (0.5,) * channels, tuple(map(str, range(CLASSES)))
    return Classifier.of(network, ModelConfig("n", "standard", 0.0, channels, size, half, half, classes, "random", 0))


def _sweep(bench: Bench, title: str) -> Figures:
    """Evaluation's own passes over all corrupted copies, and as many passes over images that are not changed."""
    network, (channels, size, _), _ = built(bench, title)
    classifier = _classifier(network, channels, size)
    images = _images(4 if bench.tiny else 1400 if title == DEMO else 256, channels, size)
    names, severities = expand(["c"], size, size), [3] if bench.tiny else SEVERITIES

    def passed(change: Change | None) -> None:
        work = Pass(classifier, images, 500, change=change)
        list(work.run(work.batches()))

    def changed(name: str, severity: int) -> Change:
        return lambda images, places: corrupt(images, name, severity, seed=0, indices=places)

    changes = [changed(name, each) for name in names for each in severities]
    whole, forward = turned(
        min(bench.turns, 3),
        lambda: sum(seconds(partial(passed, each)) for each in changes),
        lambda: sum(seconds(partial(passed, None)) for _ in changes),
    )
    return {"÷ forward passes": ratio(whole, forward)}


def _files(bench: Bench, name: str) -> Figures:
    """Files in CIFAR-10-C's format, from disk to figures; ours with intervals, which the peer lacks."""
    count = 8 if bench.tiny else 1000 if name == "small" else 256
    severities = [1] if bench.tiny else [1, 3, 5]
    names = expand(["c"], 32, 32)[: 1 if bench.tiny else 5]
    network = networks.build_network(name, channels=3, classes=CLASSES, seed=0).eval()
    classifier, images = _classifier(network, 3, 32), _images(5 * count, 3, 32)
    with tempfile.TemporaryDirectory() as place:
        for each in names:
            np.save(Path(place) / f"{each}.npy", images.images.permute(0, 2, 3, 1).numpy())
        np.save(Path(place) / "labels.npy", images.labels.numpy())

        def ours() -> float:
            began = time.perf_counter()
            for each in names:
                for severity in severities:
                    rows = slice((severity - 1) * count, severity * count)
                    pixels = torch.from_numpy(np.load(Path(place) / f"{each}.npy")[rows]).permute(0, 3, 1, 2)
                    labels = torch.from_numpy(np.load(Path(place) / "labels.npy")[rows])
                    work = Pass(classifier, ImageSet(each, pixels.contiguous(), labels, images.classes), 128)
                    logits = torch.cat([found.logits for found in work.run(work.batches())])
                    intervals.image_intervals(logits, labels, METRICS, torch.Generator().manual_seed(0))
            return time.perf_counter() - began

        sweep = (Path(place), network, CLASSES, list(names), count, severities, 128)
        theirs, own = turned(min(bench.turns, 3), lambda: peers.torch_uncertainty_sweep(*sweep), ours)
    return {
        "peer ÷ ours": ratio(theirs, own),
        "images/s": spread([len(names) * len(severities) * count / s for s in own]),
    }


# --- Metrics ----------------------------------------------------------------------------------------------------------


def metric_lines(bench: Bench) -> Iterator[tuple[str, Line]]:
    yield "smooth ECE with its interval, relplot, one core", partial(_smooth_ece, bench)
    yield "AUROC of 10 sets with intervals, scikit-learn, one core", partial(_auroc, bench)
    yield "linear probe with choice of strength, scikit-learn", partial(_probe, bench, 1.0)
    yield "linear probe, features that are not correlated, scikit-learn", partial(_probe, bench, 0.0)
    yield "linear probe of one strength, as exact, scikit-learn", partial(_fitted_probe, bench)


REPLICATES = 1000


def _called(bench: Bench, ours: Callable[[], Any], theirs: Callable[[], Any], calls: int, times: int = 1) -> Figures:
    """A peer's time of one of so many ``calls``, taken ``REPLICATES · times`` times, ÷ ours; one thread."""
    with one_thread():
        found = turned(bench.turns, lambda: seconds(theirs) * REPLICATES * times / calls, lambda: seconds(ours))
    return {"peer ÷ ours": ratio(*found), "s": spread(found[1])}


def _smooth_ece(bench: Bench) -> Figures:
    """Overconfident predictions for 50,000 images, 1,000 replicates; the peer called 20 times on as many resamples."""
    count, calls, draw = 500 if bench.tiny else 50_000, 2 if bench.tiny else 20, torch.Generator().manual_seed(0)
    sure = (0.5 + torch.rand(count, generator=draw, dtype=torch.float64) / 2).sort().values
    right = (torch.rand(count, generator=draw, dtype=torch.float64) < sure - sure * (1 - sure)).double()
    samples = [torch.randint(count, (count,), generator=draw) for _ in range(calls)]
    arrays = [(sure[each].numpy(), right[each].numpy()) for each in samples]
    statistic = calibration.weighted_smooth_ece(sure, right)
    return _called(
        bench,
        lambda: intervals.bootstrap(statistic, [count], draw, REPLICATES),
        lambda: [relplot.smECE(*each) for each in arrays],
        calls,
    )


def _auroc(bench: Bench) -> Figures:
    """10,000 test images against 10 sets of as many, 1,000 replicates each; the peer called 10 times."""
    count, draw = 200 if bench.tiny else 10_000, torch.Generator().manual_seed(0)
    inside = torch.randn(count, generator=draw)
    outside = [torch.randn(count, generator=draw) + 1 for _ in range(10)]
    truth = np.repeat([0, 1], count)
    scores = [torch.cat([inside, each]).numpy() for each in outside]
    return _called(
        bench,
        lambda: [intervals.ood_intervals(inside, each, ["auroc"], draw, REPLICATES) for each in outside],
        lambda: [roc_auc_score(truth, each) for each in scores],
        10,
        times=10,
    )


def _probe(bench: Bench, falling: float) -> Figures:
    """50,000 × 512 features, 100 classes, six strengths on a held-out fifth, then all images; all threads for both.

    The peer stops where it does by default, in float32.
    """
    count, width, classes = (300, 16, 5) if bench.tiny else (50_000, 512, 100)
    labels, train, test = _features(count, width, classes, falling)
    accuracies: dict[str, float] = {}

    def ours() -> None:
        found = linear_probe(train, labels[:count], test, classes, torch.Generator().manual_seed(0))
        accuracies["ours"] = float((found.logits.argmax(1) == labels[count:]).double().mean())

    def theirs() -> None:
        kept, held = stratified(labels[:count], classes, torch.Generator().manual_seed(0))
        mean, deviation = train.mean(0), train.std(0)
        scaled, others = ((each.sub(mean) / deviation).numpy() for each in (train, test))

        def fitted(some: Tensor, strength: float) -> Any:
            peer = LogisticRegression(C=1 / (len(some) * strength), max_iter=1000)
            return peer.fit(scaled[some], labels[some].numpy())

        best = max(STRENGTHS, key=lambda each: fitted(kept, each).score(scaled[held], labels[held].numpy()))
        accuracies["peer"] = float(fitted(torch.arange(count), best).score(others, labels[count:].numpy()))

    found = turned(1, lambda: seconds(theirs), lambda: seconds(ours))
    told = {f"accuracy, {who}": each for who, each in accuracies.items()}
    return {"peer ÷ ours": ratio(*found), "s": spread(found[1]), **told}


def _fitted_probe(bench: Bench) -> Figures:
    """One strength, 10,000 × 256, 20 classes; the peer in float64 until its probabilities are as near the minimum's."""
    count, width, classes, strength = 300 if bench.tiny else 10_000, 16 if bench.tiny else 256, 20, 1e-4
    labels, train, test = _features(count, width, classes, 1.0)
    probabilities: dict[str, Tensor] = {}

    def ours() -> None:
        found = linear_probe(train, labels[:count], test, classes, torch.Generator(), [strength])
        probabilities["ours"] = found.logits.softmax(1)

    def theirs(tolerance: float, name: str = "peer") -> None:
        mean, deviation = train.double().mean(0), train.double().std(0, correction=0)
        scaled, others = ((each.double().sub(mean) / deviation).numpy() for each in (train, test))
        peer = LogisticRegression(C=1 / (count * strength), max_iter=10_000, tol=tolerance)
        found = peer.fit(scaled, labels[:count].numpy()).predict_proba(others)
        probabilities[name] = torch.from_numpy(found)

    found = turned(min(bench.turns, 3), lambda: seconds(partial(theirs, 1e-7)), lambda: seconds(ours))
    theirs(1e-4, "peer by default")
    theirs(1e-10, "minimum")
    least = probabilities.pop("minimum")
    off = {f"off by, {who}": float((each - least).abs().max()) for who, each in probabilities.items()}
    return {"peer ÷ ours": ratio(*found), "s": spread(found[1]), **off}


def _features(count: int, width: int, classes: int, falling: float) -> tuple[Tensor, Tensor, Tensor]:
    """Labels of training and test images, and the features of either, (count, width) and a fifth of it.

    Along the directions of their covariance the s.d. fall as i to the power −``falling``: 1 is what the demo network's
    features of the digits have.
    """
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, width, generator=draw)
    labels = torch.arange(count + count // 5) % classes
    features = 4 * torch.randn(len(labels), width, generator=draw) + centres[labels]
    turn = torch.linalg.qr(torch.randn(width, width, generator=draw))[0]
    features = (features * torch.arange(1, width + 1) ** -falling) @ turn
    return labels, features[:count], features[count:]

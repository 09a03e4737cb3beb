"""Lines of ``gpu.py`` on evaluation: corruptions, sweeps, folded networks, metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from bench import CLASSES, Bench, Figures, Line, case, ratio, spread, titles, wait
from gpu_training import waits
from torch import Tensor

from anchored import anchor, fold
from anchored.corruptions.registry import corrupt, expand
from anchored.evaluation.classifier import Classifier
from anchored.evaluation.inference import Change, Pass
from anchored.metrics import agreement, calibration, classification, detection, intervals
from anchored.metrics.linear_probe import linear_probe
from anchored.metrics.ood_scores import SCORES
from anchored.metrics.registry import IMAGE_METRICS, OOD_METRICS
from anchored.models.folder import ModelConfig

K = 10
SEVERITIES = (1, 2, 3, 4, 5)


# --- Corruptions ------------------------------------------------------------------------------------------------------


def corruption_lines(bench: Bench) -> Iterator[tuple[str, Line]]:
    for size in (32,) if bench.tiny else (32, 224):
        for name in expand(["c", "c-bar"], size, size):
            yield f"{name}, {size}", partial(_corruption, bench, name, size)


def _corruption(bench: Bench, name: str, size: int) -> Figures:
    """Speed at severity 3, the CPU with all its threads; agreement over all severities."""
    count, few = (2, 2) if bench.tiny else ((2048, 256) if size == 32 else (256, 16))
    images = bench.pixels(count, size)
    there = images.to(bench.device)
    found = bench.in_turn(device=lambda: corrupt(there, name, 3, seed=0))["device"]
    with waits(bench) as waited:
        corrupt(there, name, 3, seed=0)
    some = images[:few]
    corrupt(some, name, 3, seed=0)
    began = time.perf_counter()
    corrupt(some, name, 3, seed=0)
    rate = few / (time.perf_counter() - began)
    pairs = [(corrupt(there[:few], name, each, seed=0).cpu(), corrupt(some, name, each, seed=0)) for each in SEVERITIES]
    off = torch.stack([one.int() - other.int() for one, other in pairs]).abs()
    return {
        "images/s": spread([count / each for each in found]),
        "÷ CPU": spread([count / each / rate for each in found]),
        "waits": len(waited),
        "share of values off": float((off > 0).float().mean()),
        "levels off": int(off.max()),
    }


# --- A sweep ----------------------------------------------------------------------------------------------------------


def sweep_lines(bench: Bench) -> Iterator[tuple[str, Line]]:
    for title in titles(bench)[:1] if bench.tiny else (titles(bench)[0], titles(bench)[2]):
        yield f"{title}, 19 × 5", partial(_sweep, bench, title)


def _sweep(bench: Bench, title: str) -> Figures:
    """Evaluation's own passes over all corrupted copies of a set in the computer's memory, on the wall; the network's
    time is that of as many passes over images that are not changed."""
    network, size, _ = case(bench, title)
    count = 4 if bench.tiny else (10_000 if size == 32 else 1_000)
    config = ModelConfig(
        title, "standard", 0.0, 3, size, (0.5,) * 3, (0.25,) * 3, tuple(map(str, range(CLASSES))), "random", 0
    )
    classifier, images = Classifier.of(network.to(bench.device), config), bench.image_set(count, size)
    names, severities = expand(["c"], size, size), (3,) if bench.tiny else SEVERITIES

    def passed(change: Change | None) -> float:
        work = Pass(classifier, images, 500, change=change)
        wait(bench.device)
        began = time.perf_counter()
        list(work.run(work.batches()))
        return time.perf_counter() - began

    def changed(name: str, severity: int) -> Change:
        return lambda images, places: corrupt(images, name, severity, seed=0, indices=places)

    for name in names:  # tables are made, kernels chosen
        passed(changed(name, 3)), passed(None)
    pairs = [(passed(changed(name, each)), passed(None)) for name in names for each in severities]
    whole, forward = sum(one for one, _ in pairs), sum(other for _, other in pairs)
    slowest = max(zip(pairs, ((n, s) for n in names for s in severities), strict=True), key=lambda each: each[0][0])
    return {
        "images/s": len(pairs) * count / whole,
        "outside the network": 1 - forward / whole,
        "slowest": f"{slowest[1][0]} {slowest[1][1]}: {slowest[0][0] / slowest[0][1]:.2f} passes",
    }


# --- Folded networks --------------------------------------------------------------------------------------------------


def folded_lines(bench: Bench) -> Iterator[tuple[str, Line]]:
    for title in titles(bench):
        for half in (False, True):
            yield f"{title}, {'bf16' if half else 'fp32'}", partial(_folded, bench, title, half)


@torch.inference_mode()
def _folded(bench: Bench, title: str, half: bool) -> Figures:
    """Channels-last; the anchored network has a fresh first layer, so that there is a map to add."""
    network, size, count = case(bench, title)
    model = anchor(network, fresh_stem=True, example=torch.zeros(2, 3, size, size)).eval()
    model.set_references(torch.randn(K, 3, size, size, generator=torch.Generator().manual_seed(2)))
    many = fold(model)
    model.set_references(model.references[:1] if model.references is not None else torch.zeros(1, 3, size, size))
    images = bench.random(count, 3, size, size).contiguous(memory_format=torch.channels_last)
    modules = {"standard": network.eval(), "one": fold(model), "fused": fold(model, fuse_batch_norm=True), "many": many}
    placed = {name: each.to(bench.device).to(memory_format=torch.channels_last) for name, each in modules.items()}

    def pass_of(name: str) -> Callable[[], Any]:
        def work() -> None:
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=half):
                placed[name](images)

        return work

    found = bench.in_turn(**{name: pass_of(name) for name in placed})
    return {
        "images/s": spread([count / each for each in found["standard"]]),
        "folded ÷ standard": ratio(found["one"], found["standard"]),
        "batch norm fused ÷ standard": ratio(found["fused"], found["standard"]),
        f"{K} references ÷ {K} passes": ratio([each / K for each in found["many"]], found["standard"]),
    }


# --- Metrics ----------------------------------------------------------------------------------------------------------


def metric_lines(bench: Bench) -> Iterator[tuple[str, Line]]:
    count = 200 if bench.tiny else 10_000
    draw = torch.Generator().manual_seed(3)
    logits, labels = 3 * torch.randn(count, CLASSES, generator=draw), torch.arange(count) % CLASSES
    logits[torch.arange(count), labels] += 2
    views = logits + torch.randn(4, count, CLASSES, generator=draw)
    features = torch.randn(count // 4, 32, generator=draw) + labels[: count // 4, None] / 4
    sure, right = logits.softmax(1).amax(1), logits.argmax(1) == labels
    scores = logits.amax(1), logits.flip(0).mean(1)

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    works: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
        **{f"score {name}": (score, (logits,)) for name, score in SCORES.items()},
        "per image": (lambda a, b: torch.stack(tuple(classification.per_image(a, b)), 1), (logits, labels)),
        "ECE": (calibration.ece, (sure, right)),
        "smooth ECE": (calibration.smooth_ece, (sure, right)),
        "smooth ECE, old": (lambda a, b: calibration.smooth_ece(a, b, "reflect_old"), (sure, right)),
        "AUROC": (detection.auroc, scores),
        "FPR at 95 % TPR": (detection.fpr_at_tpr, scores),
        "AUPR": (detection.aupr, scores),
        "spread": (agreement.mean_spread, (views,)),
        "disagreement": (agreement.disagreement, (views,)),
        "bootstrap of image metrics": (
            lambda a, b: _ends(intervals.image_intervals(a, b, list(IMAGE_METRICS), seeded(), 100)), (logits, labels),
        ),
        "bootstrap of OOD metrics": (
            lambda a, b: _ends(intervals.ood_intervals(a, b, list(OOD_METRICS), seeded(), 100)), scores,
        ),
        "linear probe": (
            lambda a, b: linear_probe(a, b, a, CLASSES, seeded(), (0.1,)).logits, (features, labels[: count // 4]),
        ),
    }  # fmt: skip
    for name, (function, tensors) in works.items():
        yield name, partial(_metric, bench, function, tensors)


def _ends(found: dict[str, intervals.Interval]) -> Tensor:
    return torch.tensor([list(each) for each in found.values()])


def _metric(bench: Bench, function: Callable[..., Any], tensors: tuple[Tensor, ...]) -> Figures:
    began = time.perf_counter()
    expected = torch.as_tensor(function(*tensors)).double()
    here, moved = time.perf_counter() - began, [each.to(bench.device) for each in tensors]
    wait(bench.device)
    began = time.perf_counter()
    found = torch.as_tensor(function(*moved)).double().cpu()
    return {
        "greatest difference": float((found - expected).abs().max()),
        "greatest value": float(expected.abs().max()),
        "ms": 1e3 * (time.perf_counter() - began),
        "ms on the CPU": 1e3 * here,
    }

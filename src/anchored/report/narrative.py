"""Sentences made from the numbers: what was run, what came out (both ways), what is missing, what to keep in mind."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from anchored.report.aggregate import Change
from anchored.report.comparison import Measure, Summary, Variant
from anchored.report.tables import counted, number
from anchored.store import files


@dataclass(frozen=True)
class Reading:
    """One comparison in words: what is clearly better, clearly worse, and not clearly different."""

    title: str
    better: tuple[str, ...]
    worse: tuple[str, ...]
    unclear: tuple[str, ...]
    scores: str = ""  # where another OOD score tells otherwise
    masking: bool = False  # RAM against anchored, not a variant against standard


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def seconds(summary: Summary) -> dict[str, float]:
    """Training seconds of each run, from its log; runs without one are left out."""
    found = {}
    for name in dict.fromkeys(row.run for row in summary.rows):
        log = summary.folder.run(name).log_file
        if log.is_file() and log.parent.parent.parent == summary.folder.path:
            spent = _logged(log.read_text(encoding="utf-8", errors="replace"))
            if spent is not None:
                found[name] = spent
    return found


def _logged(text: str) -> float | None:
    try:
        return math.fsum(float(line["seconds"]) for line in csv.DictReader(io.StringIO(text)))
    except (KeyError, ValueError, TypeError, csv.Error):
        return None


def duration(spent: float) -> str:
    """``95 s`` or ``12 min``."""
    return f"{spent:.0f} s" if spent < 120 else f"{spent / 60:.0f} min"


def _epochs(summary: Summary) -> str:
    """``60 epochs``; where networks have their own, each network's in the recipe's order."""
    usual, own = summary.setting("train", "epochs"), summary.setting("grid", "per_network")
    found = [own.get(name, {}).get("train", {}).get("epochs", usual) for name in summary.setting("grid", "networks")]
    if len(set(found)) > 1:
        return f"{listed([str(each) for each in found])} epochs"
    return _count(found[0], "epoch")


def what_was_run(summary: Summary) -> Iterator[str]:
    """Plain sentences on networks, data, protocols, seeds, images and time."""
    trainings = len({row.run for row in summary.rows})
    variants = listed(list(dict.fromkeys(variant.title for variant in summary.variants)))
    yield (
        f"{listed(summary.architectures)} trained on {summary.trained_on} for {_epochs(summary)}: {variants}, "
        f"with {counted(summary.seeds, 'seed')}; {trainings} training{'s' * (trainings != 1)} in all, "
        "alike apart from what is named."
    )
    measured = [f"{_images(summary, summary.trained_on)} clean test images"]
    for family in (each for each in summary.families if each.severities):
        levels = counted(family.severities, "severity").replace("severitys", "severities")
        measured.append(f"{_count(len(family.corruptions), 'corruption')} ({family.kind}) of them at {levels}")
    if ood := [name for name in summary.sets("auroc") if name != "mean"]:
        measured.append(f"{_count(len(ood), 'out-of-distribution set')}")
    if adapted := [name for name in summary.sets("linear_probe_accuracy") if name != "mean"]:
        measured.append(f"linear probes on {_count(len(adapted), 'other task')}")
    yield f"Measured on {listed(measured)}."
    yield from _seen(summary)
    spent = seconds(summary)
    if spent:
        longest = duration(max(spent.values()))
        yield f"Training took {duration(math.fsum(spent.values()))} in all, {longest} for the longest."


def _seen(summary: Summary) -> Iterator[str]:
    """How the networks saw images, if the folder of one is there to say it."""
    file = summary.folder.run(summary.rows[0].run).model_file
    kept = files.read_json(file) if file.is_file() else {}
    if isinstance(kept, dict) and {"channels", "size", "interpolation", "crop"} <= kept.keys():
        size, colours = f"{kept['size']} × {kept['size']}", "grey" if kept["channels"] == 1 else "colour"
        short = math.floor(kept["size"] / kept["crop"])
        yield (
            f"The networks see {size} pixels in {colours}: images of that size as they are; image files of another "
            f"size with their shorter side resized to {short} pixels ({kept['interpolation']}), then the middle square."
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _images(summary: Summary, dataset: str) -> str:
    sizes = sorted({row.n for row in summary.rows if row.dataset == dataset})
    return f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}" if sizes else "no"


def missing(summary: Summary, pictures: Sequence[str]) -> Iterator[str]:
    """One sentence for each part that this report leaves out, and why."""
    if not summary.families:
        yield "Corruptions were not measured in this study."
    if not summary.sets("auroc"):
        yield "Rejection of out-of-distribution images was not measured in this study."
    if not summary.sets("linear_probe_accuracy"):
        yield "Adaptation to other tasks was not measured in this study."
    if not any(name.startswith("radar") for name in pictures):
        yield "There is no radar: it needs a standard network, another one, and three of the four aims."
    if not any(name.startswith("reliability") for name in pictures):
        yield "There are no reliability diagrams: the runs' outputs are not in this folder."
    if summary.sets("auroc") and not any(name.startswith("scores") for name in pictures):
        yield "There are no score histograms: the runs' outputs are not in this folder."
    if not any(name.startswith("examples") for name in pictures):
        yield "There are no example images: they are not in this folder."
    for architecture in summary.architectures:
        if all(variant.protocol != "standard" for variant in summary.of(architecture)):
            yield f"{architecture} has no standard network here, so nothing is compared with one."


def readings(summary: Summary) -> Iterator[Reading]:
    """Every variant against its architecture's standard network, then RAM against anchoring without masks."""
    for variant in summary.variants:
        yield from _reading(summary, variant, summary.standard(variant), "standard")
    for variant in summary.variants:
        yield from _reading(summary, variant, summary.unmasked(variant), "anchored: what masking does")


def _reading(summary: Summary, variant: Variant, base: Variant | None, against: str) -> Iterator[Reading]:
    if base is None:
        return
    kinds: dict[str, list[str]] = {"better": [], "worse": [], "unclear": []}
    for measure in summary.measures:
        change = summary.change(variant, measure, base)
        if change is not None:
            kinds[verdict(change)].append(_said(measure, change))
    if any(kinds.values()):
        network = f"{variant.architecture}, " if len(summary.architectures) > 1 else ""
        yield Reading(
            f"{network}{variant.title} against {against}",
            **{kind: tuple(found) for kind, found in kinds.items()},
            scores=_other_scores(summary, variant, base),
            masking=base.protocol != "standard",
        )


def verdict(change: Change) -> Literal["better", "worse", "unclear"]:
    """A change in one word."""
    return "unclear" if not change.clear else "better" if change.better else "worse"


def _other_scores(summary: Summary, variant: Variant, base: Variant) -> str:
    """The mean AUROC by the scores whose verdict is not the headline's."""
    headline = next((measure for measure in summary.measures if measure.metric == "auroc"), None)
    if headline is None:
        return ""
    first, said = summary.change(variant, headline, base), []
    for score in summary.scores:
        change = summary.change(variant, replace(headline, score=score), base)
        if first and change and verdict(change) != verdict(first):
            before, after = (number("auroc", value) for value in (change.before, change.after))
            words = {"better": "clearly better", "worse": "clearly worse", "unclear": "no clear difference"}
            said.append(f"{score.replace('_', ' ')} {before} → {after} % ({words[verdict(change)]})")
    return listed(said)


def _said(measure: Measure, change: Change) -> str:
    unit = " %" if "%" in measure.title else ""
    way = "higher" if change.after > change.before else "lower" if change.after < change.before else "equal"
    before, after = (number(measure.metric, value) for value in (change.before, change.after))
    return (
        f"{way} {measure.phrase} ({before} → {after}{unit})"
        if change.clear
        else f"{measure.phrase} ({before} → {after}{unit})"
    )


def caution(summary: Summary) -> str:
    """How far the comparisons carry, by the number of seeds."""
    if len(summary.seeds) == 1:
        return (
            "Each variant was trained once: the intervals cover the choice of test images, not the luck of training, "
            "which several seeds would show."
        )
    few = " With so few seeds these intervals are wide, and only a large difference is clear."
    return f"Differences are judged over {len(summary.seeds)} seeds, pair by pair.{few * (len(summary.seeds) < 4)}"


def notes(summary: Summary) -> Iterator[str]:
    """What departs from the usual and must be known to judge the figures."""
    share = float(summary.setting("data", "fraction"))
    if share < 1:
        yield f"A trial: only {100 * share:g} % of every set's images were used (the first ones of each class)."
    anchoring = summary.recipe.get("anchoring", {})
    if any(variant.protocol == "ram" for variant in summary.variants):
        units = {"batch": "whole batches", "image": "single images"}
        targets = {"label": "the image's own label", "uniform": "the uniform distribution"}
        unit, target = (str(anchoring.get(name)) for name in ("mask_unit", "masked_target"))
        yield (
            f"References were masked for {units.get(unit, unit)}; "
            f"masked pairs were trained towards {targets.get(target, target)}."
        )
    tail = summary.recipe.get("tail")
    if tail and any(variant.tail_weight for variant in summary.variants):
        alone = ", in a pass of their own" * (tail.get("batch_norm") == "own")
        yield (
            f"Hard Δ mining showed {tail.get('points')} points a step of the residuals' tail (mass ε = "
            f"{tail.get('mass'):g}){alone}, after {100 * tail.get('warmup'):g} % of training."
        )
    if any(variant.protocol != "standard" for variant in summary.variants):
        count = int(anchoring.get("references", 1))
        yield f"At test time {_count(count, 'fixed training image')} served as reference, kept with the network."
    if anchoring.get("batch_norm") == "all":
        yield "Batch norm's running statistics include masked batches, as published; they depend on the last draws."
    if "with changes" in str(summary.made.get("revision", "")):
        yield "The code had changes that were not committed: the revision alone does not give these figures."
    if summary.families:
        archive = summary.recipe.get("evaluate", {}).get("corruption_source") == "archive"
        yield (
            "Corrupted images were read from the published archives."
            if archive
            else "Corrupted images were generated from the test images, seeded per image, nothing stored."
        )
        yield (
            "Means over corruptions are means of the corruptions' figures. Severities run from 1 to 5 "
            "(the paper's table 7 calls them 0 to 4)."
        )

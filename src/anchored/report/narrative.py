"""The report's sentences: what was run, what improved and what did not, what is missing, what to keep in mind."""

import contextlib
import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from anchored.config.methods import after_training, method_title
from anchored.config.settings import GIVEN, Evaluation, Grid
from anchored.report.aggregate import Difference
from anchored.report.comparison import Measure, Summary, Variant, is_mean
from anchored.report.table import Tone
from anchored.report.tables import and_list, format_value, number_list
from anchored.store import files


@dataclass(frozen=True)
class Reading:
    """One comparison in sentences: what is clearly better, clearly worse, and not clearly different."""

    title: str
    better: tuple[str, ...]
    worse: tuple[str, ...]
    unclear: tuple[str, ...]
    scores: str = ""  # OOD scores with another verdict than the headline's
    masking: bool = False  # RAM against anchored, not a variant against standard


def training_seconds(summary: Summary) -> dict[str, float]:
    """Run -> training seconds from its log; runs without a readable log are left out."""
    seconds = {}
    for name in dict.fromkeys(row.run for row in summary.rows):
        log = summary.folder.run(name).log_file
        if log.is_file() and log.parent.parent.parent == summary.folder.path:
            lines = csv.DictReader(io.StringIO(log.read_text(encoding="utf-8", errors="replace")))
            with contextlib.suppress(KeyError, ValueError, TypeError, csv.Error):
                seconds[name] = math.fsum(float(line["seconds"]) for line in lines)
    return seconds


def duration_text(seconds: float) -> str:
    """``95 s`` or ``12 min``."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def epochs_text(summary: Summary) -> str:
    """``60 epochs``; where networks differ, each network's in the recipe's order."""
    if len(set(summary.epochs)) > 1:
        return f"{and_list([str(number) for number in summary.epochs])} epochs"
    return _count(summary.epochs[0], "epoch")


def what_was_run(summary: Summary) -> Iterator[str]:
    """Sentences on networks, data, protocols, seeds, images and training time."""
    trained = (row for row in summary.rows if row.protocol != GIVEN and not after_training(row.method)[0])
    trainings = len({row.run for row in trained})
    variants = and_list(list(dict.fromkeys(variant.title for variant in summary.trained)))
    if summary.trained:
        yield (
            f"{and_list(summary.architectures)} trained on {summary.trained_on} for {epochs_text(summary)}: "
            f"{variants}, with {number_list(summary.seeds, 'seed')}; {_count(trainings, 'training')} in all, alike "
            "apart from what is named."
        )
    if summary.given:
        names = and_list([variant.title for variant in summary.given])
        yield f"Trained elsewhere, and measured as given: {names}; how is not known here, nor on what."
    measured = [f"{_images(summary, summary.trained_on)} clean test images"]
    for family in summary.families:
        if family.severities:
            levels = number_list(family.severities, "severity")
            measured.append(f"{_count(len(family.corruptions), 'corruption')} ({family.kind}) of them at {levels}")
    if ood := [name for name in summary.sets("auroc") if not is_mean(name)]:
        measured.append(f"{_count(len(ood), 'out-of-distribution set')}")
    if adapted := [name for name in summary.sets("linear_probe_accuracy") if not is_mean(name)]:
        measured.append(f"linear probes on {_count(len(adapted), 'other task')}")
    yield f"Measured on {and_list(measured)}."
    yield from _input_images(summary)
    if seconds := training_seconds(summary).values():
        longest = duration_text(max(seconds))
        yield f"Training took {duration_text(math.fsum(seconds))} in all, {longest} for the longest."


def _input_images(summary: Summary) -> Iterator[str]:
    """Size and colours of the networks' input, if the folder of the first run still has its model."""
    file = summary.folder.run(summary.rows[0].run).model_file
    config = files.read_json(file) if file.is_file() else {}
    if isinstance(config, dict) and {"channels", "size", "interpolation", "crop"} <= config.keys():
        size, colours = config["size"], "grey" if config["channels"] == 1 else "colour"
        yield (
            f"The networks see {size} × {size} pixels in {colours}: images of that size as they are; image files of "
            f"another size with their shorter side resized to {math.floor(size / config['crop'])} pixels "
            f"({config['interpolation']}), then the middle square."
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _images(summary: Summary, dataset: str) -> str:
    sizes = sorted({row.n for row in summary.rows if row.dataset == dataset})
    return f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}" if sizes else "no"


def missing_parts(summary: Summary, pictures: Sequence[str]) -> Iterator[str]:
    """What readers must know first, then what this report lacks and why; ``pictures`` are the names of its figures."""
    yield from summary.notices
    if not summary.families:
        yield "Corruptions were not measured in this study."
    if not summary.sets("auroc"):
        yield "Rejection of out-of-distribution images was not measured in this study."
    if not summary.sets("linear_probe_accuracy"):
        yield "Adaptation to other tasks was not measured in this study."
    figures = {
        "radar": "There is no radar: it needs a network to compare with, another one, and three of the four aims.",
        "reliability": "There are no reliability diagrams: the runs' outputs are not in this folder.",
        "scores": "There are no score histograms: the runs' outputs are not in this folder.",
        "examples": "There are no example images: they are not in this folder.",
    }
    for kind, sentence in figures.items():
        if (kind != "scores" or summary.sets("auroc")) and not any(name.startswith(kind) for name in pictures):
            yield sentence
    for architecture in summary.architectures:
        if all(variant.protocol not in ("standard", GIVEN) for variant in summary.of(architecture)):
            yield f"{architecture} has no standard network here, so nothing is compared with one."


def readings(summary: Summary) -> Iterator[Reading]:
    """Every variant against its base, methods with anchoring against themselves without, RAM against no masks."""
    for variant in summary.variants:
        base = summary.base(variant)
        yield from _reading(summary, variant, base, base.phrase if base else "")
    for variant in summary.variants:
        alone = summary.method_alone(variant)
        yield from _reading(summary, variant, alone, f"{alone.title} alone" if alone else "")
    for variant in summary.variants:
        unmasked = summary.unmasked(variant)
        against = unmasked.phrase if unmasked else ""
        yield from _reading(summary, variant, unmasked, f"{against}: what masking does")


def _reading(summary: Summary, variant: Variant, base: Variant | None, against: str) -> Iterator[Reading]:
    if base is None:
        return
    sentences: dict[str, list[str]] = {"better": [], "worse": [], "unclear": []}
    for measure in summary.measures:
        difference = summary.difference(variant, measure, base)
        if difference is not None:
            sentences[verdict(difference)].append(_difference_text(measure, difference))
    if any(sentences.values()):
        network = f"{variant.architecture}, " if len(summary.architectures) > 1 and variant not in summary.given else ""
        yield Reading(
            f"{network}{variant.title} against {against}",
            **{kind: tuple(texts) for kind, texts in sentences.items()},
            scores=_other_scores(summary, variant, base),
            masking=base.protocol == "anchored",
        )


def verdict(difference: Difference) -> Tone:
    """A difference in one word."""
    return "unclear" if not difference.clear else "better" if difference.better else "worse"


def _other_scores(summary: Summary, variant: Variant, base: Variant) -> str:
    """The mean AUROC by the OOD scores whose verdict is not the headline's."""
    headline = next((measure for measure in summary.measures if measure.metric == "auroc"), None)
    if headline is None:
        return ""
    by_headline, texts = summary.difference(variant, headline, base), []
    words = {"better": "clearly better", "worse": "clearly worse", "unclear": "no clear difference"}
    for score in summary.logit_scores:
        difference = summary.difference(variant, replace(headline, score=score), base)
        if by_headline and difference and verdict(difference) != verdict(by_headline):
            before, after = (format_value("auroc", value) for value in (difference.before, difference.after))
            texts.append(f"{score.replace('_', ' ')} {before} → {after} % ({words[verdict(difference)]})")
    return and_list(texts)


def _difference_text(measure: Measure, difference: Difference) -> str:
    before, after = (format_value(measure.metric, value) for value in (difference.before, difference.after))
    rises = difference.after > difference.before
    way = ("higher " if rises else "lower " if difference.after < difference.before else "equal ") * difference.clear
    return f"{way}{measure.phrase} ({before} → {after}{' %' * ('%' in measure.title)})"


def caution(summary: Summary) -> str:
    """How far the comparisons can be trusted, given the number of seeds."""
    if not summary.trained:
        return (
            "The intervals cover the choice of test images, not the variation between trainings: another training of "
            "the same network would give other figures."
        )
    if len(summary.seeds) == 1:
        return (
            "Each variant was trained once: the intervals cover the choice of test images, not the variation between "
            "trainings, which several seeds would show."
        )
    few = " With so few seeds these intervals are wide, and only a large difference is clear."
    return f"Differences are judged over {len(summary.seeds)} seeds, pair by pair.{few * (len(summary.seeds) < 4)}"


_TRAINING_REFERENCES = {
    "all": "drawn from all training images",
    "images": "drawn from {:,} of the training images",
    "classes": "drawn from the training images of {} of the classes",
}
"""Setting anchoring.training_references, where it is not batch -> words."""


def notes(summary: Summary) -> Iterator[str]:
    """Settings that must be known to judge the results."""
    if summary.drawn is not summary:
        shown = method_title(summary.drawn.methods[0]) if summary.drawn.methods else "the recipe as it is"
        yield f"Figures are of {shown}; tables and comparisons have all methods."
    ways = {after_training(method)[0] for method in summary.methods}
    if "ensemble" in ways:
        most, seeds = summary.recipe["grid"].get("members", Grid.members), summary.recipe["grid"]["seeds"]
        yield (
            f"A deep ensemble is the networks of {min(most, len(seeds))} seeds and takes as many passes an image. Its "
            "rows bear the first of these seeds, with whose network it is compared."
        )
    if "mc_dropout" in ways:
        passes = summary.recipe["evaluate"].get("dropout_passes", Evaluation.dropout_passes)
        yield f"MC dropout takes {passes} passes an image."
    share = float(summary.setting("data", "fraction"))
    if share < 1:
        yield f"A trial: only {100 * share:g} % of every set's images were used (the first ones of each class)."
    anchoring = summary.recipe.get("anchoring", {})
    if any(variant.protocol == "ram" for variant in summary.variants):
        units = {"batch": "whole batches", "image": "single images"}
        units["process"] = f"groups of {anchoring.get('mask_group')} images"
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
    if any(variant.protocol in ("anchored", "ram") for variant in summary.variants):
        count = int(anchoring.get("references", 1))
        choice = str(anchoring.get("reference_choice", "random"))
        kind, how = "fixed training image", "" if choice == "random" else f" ({choice.replace('_', ' ')})"
        kind, how = ("fixed own image", "") if choice == "own" else (kind, how)
        yield f"At test time {_count(count, kind)}{how} served as reference, kept with the network."
        if pool := _TRAINING_REFERENCES.get(str(anchoring.get("training_references"))):
            yield f"In training, references were {pool.format(anchoring.get('training_reference_count'))}."
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

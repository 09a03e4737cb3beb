"""Figures from outputs on disk: reliability diagrams, score histograms, example images; one network each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from anchored.data.catalog import registry as catalog
from anchored.metrics.calibration import smooth_ece
from anchored.metrics.classification import per_image
from anchored.metrics.detection import auroc
from anchored.metrics.ood_scores import SCORES
from anchored.report.comparison import Summary, Variant
from anchored.report.figures import suffix
from anchored.report.style import WIDTH, Picture, blank, mark
from anchored.report.tables import pretty
from anchored.store import files as disk
from anchored.store.layout import Run

BINS = 15
"""Bins of the reliability diagrams, as many as ECE's."""

LEAST = 5
"""Images a bin needs to be drawn: fewer say next to nothing on accuracy."""

_GREY = "#9a9a9a"


@dataclass(frozen=True)
class Confidences:
    """Confidence and correctness of M images, float64."""

    confidence: Tensor
    correct: Tensor


def confidences(run: Run, names: list[str]) -> Confidences | None:
    """Pooled over the outputs ``names``; None where one is missing."""
    if not names or not all(run.outputs_file(name).exists() for name in names):
        return None
    images = [per_image(*_logits(run, name)) for name in names]
    return Confidences(torch.cat([part.confidence for part in images]), torch.cat([part.correct for part in images]))


def _logits(run: Run, name: str) -> tuple[Tensor, Tensor]:
    tensors, _ = disk.load_tensors(run.outputs_file(name))
    return tensors["logits"], tensors["labels"]


# --- Reliability ------------------------------------------------------------------------------------------------------


def _conditions(summary: Summary) -> list[tuple[str, list[str]]]:
    """What is shown of each network: a title and the outputs pooled."""
    shown = [("clean", ["test"])]
    for family in summary.families:
        if family.severities and family.corruptions:
            worst, of = family.severities[-1], f" ({family.kind})" if len(summary.families) > 1 else ""
            names = [f"corruption-{name}-{worst}" for name in family.corruptions]
            shown.append((f"severity {worst}{of}, all corruptions pooled", names))
    return shown


def reliability(summary: Summary, architecture: str) -> Picture | None:
    """Accuracy against confidence, clean and at the highest severity; None where no outputs are on disk."""
    variants = summary.of(architecture)
    table = {
        (title, variant): confidences(summary.run_of(variant)[0], names)
        for title, names in _conditions(summary)
        for variant in variants
    }
    kept = [title for title, _ in _conditions(summary) if any(table[title, v] for v in variants)]
    shown = [v for v in variants if any(table[title, v] for title in kept)]
    if not kept:
        return None
    columns = max(3, len(shown))
    width = max(WIDTH, 2.2 * columns)
    figure = blank(width, len(kept) * (width / columns * 1.28 + 0.35))
    grid = figure.subplots(
        2 * len(kept), columns, squeeze=False, sharex=True, gridspec_kw={"height_ratios": [3.2, 1] * len(kept)}
    )
    for axes in grid[:, len(shown) :].flat:
        axes.set_visible(False)
    for i, title in enumerate(kept):
        for j, variant in enumerate(shown):
            top, below = grid[2 * i, j], grid[2 * i + 1, j]
            _diagram(top, below, table[title, variant], summary, variant)
        grid[2 * i, 0].set_ylabel(f"Accuracy, {title.partition(',')[0]}")
        grid[2 * i + 1, 0].set_ylabel("Images (%)")
    for axes in grid[-1]:
        axes.set_xlabel("Confidence")
    alt, caption = _reliability_words(summary, architecture, {key: c for key, c in table.items() if c})
    return Picture(f"reliability{suffix(summary, architecture)}", figure, alt, caption)


def _reliability_words(
    summary: Summary, architecture: str, drawn: dict[tuple[str, Variant], Confidences]
) -> tuple[str, str]:
    """What the diagrams show, in words, and how they were made."""
    sizes = {title: len(images.correct) for (title, _), images in drawn.items()}
    caption = (
        f"{architecture}. Points: accuracy within {BINS} equal bins of confidence, at the bin's mean confidence, with "
        f"95 % Wilson intervals over its images (bins of {LEAST} images or more); shading: the gap to perfect "
        "calibration (the diagonal). Below: share of images per bin, dotted: mean confidence. "
        f"{'; '.join(f'n = {size:,} ({title})' for title, size in sizes.items())}. "
        f"One network each: {_seeds_of(summary, [v for _, v in drawn])}. Smooth ECE is that of the images shown."
    )
    alt = f"Reliability diagrams of {architecture}: " + "; ".join(
        f"{v.title}, {title}, smooth ECE {smooth_ece(images.confidence, images.correct):.3f}"
        for (title, v), images in drawn.items()
    )
    return alt, caption


def _seeds_of(summary: Summary, variants: list[Variant]) -> str:
    seeds = sorted({summary.run_of(variant)[1] for variant in variants})
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"the smallest seed of each ({', '.join(map(str, seeds))})"


def binned(images: Confidences) -> list[tuple[float, float, int]]:
    """(mean confidence, accuracy, images) of each of ``BINS`` equal bins that holds an image."""
    cell = (images.confidence * BINS).long().clamp(max=BINS - 1)
    found = []
    for b in range(BINS):
        inside = cell == b
        count = int(inside.sum())
        if count:
            found.append((float(images.confidence[inside].mean()), float(images.correct[inside].mean()), count))
    return found


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of ``count`` images. Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953"""
    z = 1.959963984540054
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def _diagram(top: Axes, below: Axes, images: Confidences | None, summary: Summary, variant: Variant) -> None:
    if images is None:
        top.set_title(f"{variant.title}\nno outputs on disk")
        for axes in (top, below):
            axes.set(xticks=[], yticks=[])
        return
    line, points = mark(summary, variant), [point for point in binned(images) if point[2] >= LEAST]
    error = smooth_ece(images.confidence, images.correct)
    x, y = [p[0] for p in points], [p[1] for p in points]
    ends = [wilson(share, count) for _, share, count in points]
    top.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1)
    if points:  # an empty line would have no place, and the layout none for it
        top.fill_between(x, x, y, color=line.color, alpha=0.15, linewidth=0)
        bars = [
            [share - low for share, (low, _) in zip(y, ends, strict=True)],
            [high - share for share, (_, high) in zip(y, ends, strict=True)],
        ]
        top.errorbar(
            x,
            y,
            yerr=np.clip(bars, 0, None),
            color=line.color,
            marker=line.marker,
            linewidth=1.4,
            elinewidth=1,
            clip_on=False,
        )
    top.set(xlim=(0, 1), ylim=(0, 1), title=f"{variant.title}\nsmooth ECE {error:.3f}")
    share = torch.histc(images.confidence, BINS, 0, 1) / len(images.confidence) * 100
    below.bar((np.arange(BINS) + 0.5) / BINS, share.numpy(), 0.94 / BINS, color=line.color, alpha=0.75)
    below.axvline(float(images.confidence.mean()), color=_GREY, linewidth=1, linestyle=":")
    below.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])


# --- Scores -----------------------------------------------------------------------------------------------------------


def ood_titles(summary: Summary) -> dict[str, str]:
    """Name -> title of the recipe's OOD sets."""
    names = [str(name) for name in summary.setting("evaluate", "ood")]
    return {
        name: catalog.title(name) if name in catalog.CATALOG or catalog.is_own(name) else pretty(name) for name in names
    }


def score_pair(summary: Summary, run: Run, name: str) -> tuple[Tensor, Tensor] | None:
    """The headline's score of the test images and of an OOD set's; None where outputs are missing."""
    files = ["test", f"ood-{catalog.file_name(name)}"]
    if summary.score not in SCORES or not all(run.outputs_file(each).exists() for each in files):
        return None
    inside, outside = (SCORES[summary.score](_logits(run, each)[0]) for each in files)
    return inside, outside


def scores(summary: Summary, architecture: str) -> Picture | None:
    """Histograms of the score: test images against each OOD set, one column per variant; None without outputs."""
    variants, titles = summary.of(architecture), ood_titles(summary)
    pairs = {(v, name): score_pair(summary, summary.run_of(v)[0], name) for v in variants for name in titles}
    shown = [v for v in variants if any(pairs[v, name] for name in titles)]
    sets = [name for name in titles if any(pairs[v, name] for v in shown)]
    if not shown or not sets:
        return None
    figure = blank(max(WIDTH, 1.4 + 1.9 * len(shown)), 1.0 + 1.25 * len(sets))
    grid = figure.subplots(len(sets), len(shown), squeeze=False, sharex="col")
    for j, variant in enumerate(shown):
        edges = _edges([pair for name in sets if (pair := pairs[variant, name])])
        for i, name in enumerate(sets):
            _histogram(grid[i, j], pairs[variant, name], edges, mark(summary, variant).color)
        place = {"xy": (0.5, 1), "xycoords": "axes fraction", "xytext": (0, 22), "textcoords": "offset points"}
        grid[0, j].annotate(variant.title, **place, ha="center", fontsize=10.5)
        grid[-1, j].xaxis.set_major_locator(MaxNLocator(4))
    figure.supxlabel(f"{pretty(summary.score)} score (higher: more foreign)", fontsize=10)
    for i, name in enumerate(sets):
        grid[i, 0].set_ylabel(_wrapped(titles[name]), rotation=0, ha="right", va="center", fontsize=9)
    inside = next(pair[0] for pair in pairs.values() if pair)
    caption = (
        f"{architecture}, score: {summary.score.replace('_', ' ')}. Grey: {len(inside):,} test images of "
        f"{summary.trained_on}; coloured: the set named at the left; each of the same area, the 0.5 % ends of "
        f"all scores cut off. One network each: {_seeds_of(summary, shown)}; AUROC without interval (see the table)."
    )
    alt = f"Histograms of the {summary.score} score of {architecture}: test images against {len(sets)} other sets."
    return Picture(f"scores{suffix(summary, architecture)}", figure, alt, caption)


def _edges(pairs: list[tuple[Tensor, Tensor]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    values = torch.cat([scores for pair in pairs for scores in pair]).numpy()
    low, high = np.quantile(values, [0.005, 0.995])
    return np.linspace(low, high if high > low else low + 1, 41)


def _histogram(
    axes: Axes,
    pair: tuple[Tensor, Tensor] | None,
    edges: np.ndarray[tuple[int], np.dtype[np.float64]],
    color: str,
) -> None:
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    if pair is None:
        axes.set_title("no outputs on disk", fontsize=9)
        return
    for values, shade, opacity in ((pair[0], _GREY, 0.45), (pair[1], color, 0.4)):
        heights = np.histogram(values.numpy(), edges)[0] / len(values)
        axes.stairs(heights, edges, fill=True, color=shade, alpha=opacity)
        axes.stairs(heights, edges, color=shade, linewidth=1.2)
    axes.set_title(f"AUROC {100 * auroc(*pair):.1f} %", fontsize=9, pad=2)


def _wrapped(text: str, width: int = 16) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


# --- Examples ---------------------------------------------------------------------------------------------------------


def examples(summary: Summary) -> Iterator[Picture]:
    """One image under every corruption and severity, and images of every OOD set, pixels as squares."""
    path = summary.folder.examples_file
    if not path.exists():
        return
    stored, _ = disk.load_tensors(path)
    clean = stored.get("clean")
    kinds = {key.partition("/")[2]: t for key, t in stored.items() if key.startswith("corruption/")}
    if kinds and clean is not None:
        names = [name for family in summary.families for name in family.corruptions if name in kinds] or list(kinds)
        rows = [(pretty(name), torch.cat([clean[:1], kinds[name]])) for name in names]
        severities = sorted({severity for family in summary.families for severity in family.severities})
        columns = ["clean", *(f"severity {severity}" for severity in severities)]
        if len(columns) != max(len(images) for _, images in rows):
            columns = []
        caption = f"A test image of {summary.trained_on} as the networks see it: one row per corruption."
        yield _grid("examples-corruptions", rows, columns, caption)
    others = {key.partition("/")[2]: t for key, t in stored.items() if key.startswith("ood/")}
    if others:
        titles = ood_titles(summary)
        order = [*(name for name in titles if name in others), *sorted(others.keys() - titles.keys())]
        rows = [(titles.get(name, pretty(name)), others[name]) for name in order]
        if clean is not None:
            rows.insert(0, (f"{summary.trained_on} (test)", clean))
        caption = f"Test images of {summary.trained_on} in the first row, out-of-distribution images below."
        yield _grid("examples-ood", rows, [], caption)


def _grid(name: str, rows: list[tuple[str, Tensor]], columns: list[str], caption: str) -> Picture:
    """Images (M,C,H,W) uint8 side by side with a white gap, labels outside."""
    width = max(len(images) for _, images in rows)
    height_px, width_px = rows[0][1].shape[-2:]
    gap = max(1, height_px // 14)
    canvas = np.full((len(rows) * (height_px + gap), width * (width_px + gap), 3), 255, np.uint8)
    for i, (_, images) in enumerate(rows):
        for j, image in enumerate(images):
            pixels = image[:3].expand(3, -1, -1) if len(image) < 3 else image[:3]
            top, left = i * (height_px + gap), j * (width_px + gap)
            canvas[top : top + height_px, left : left + width_px] = pixels.permute(1, 2, 0).numpy()
    label = 2.2
    inches = min(1.0, (WIDTH - label) / width)
    figure = blank(label + inches * width, inches * len(rows) + 0.4)
    axes = figure.add_subplot()
    axes.imshow(canvas, interpolation="nearest")
    axes.set_yticks(
        [i * (height_px + gap) + height_px / 2 for i in range(len(rows))], [_wrapped(t, 22) for t, _ in rows]
    )
    axes.set_xticks([j * (width_px + gap) + width_px / 2 for j in range(len(columns))], columns)
    axes.tick_params(length=0, labelsize=10, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    alt = (
        f"Grid of {sum(len(images) for _, images in rows)} small images, rows: {', '.join(title for title, _ in rows)}."
    )
    return Picture(name, figure, alt, caption, vector=False)


def of(summary: Summary) -> Iterator[Picture]:
    """The figures made from outputs and example images that are on disk."""
    for architecture in summary.architectures:
        shown = reliability(summary, architecture)
        if shown is not None:
            yield shown
        if summary.sets("auroc"):
            shown = scores(summary, architecture)
            if shown is not None:
                yield shown
    yield from examples(summary)

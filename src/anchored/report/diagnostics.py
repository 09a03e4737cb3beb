"""Figures from stored outputs: reliability diagrams, OOD score histograms and example images, of one network each."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from anchored.data.catalog import registry as catalog
from anchored.metrics.bounded import wilson_interval
from anchored.metrics.calibration import smooth_ece
from anchored.metrics.classification import per_image
from anchored.metrics.detection import auroc
from anchored.metrics.intervals import resample
from anchored.metrics.ood_scores import SCORES
from anchored.metrics.selective import RankingCurve
from anchored.report.comparison import Summary, Variant
from anchored.report.figures import architecture_suffix
from anchored.report.style import NEUTRAL, WIDTH, Picture, blank_figure, legend, variant_style
from anchored.report.tables import display_name
from anchored.store import files as disk
from anchored.store.layout import Run

BINS = 15  # bins of the reliability diagrams, as many as ECE's
COVERAGES = torch.linspace(0.02, 1, 50, dtype=torch.float64)  # of the risk-coverage curves
MIXED = "half out-of-distribution images"
RESAMPLES = 100  # behind their bands
MIN_BIN_IMAGES = 5  # bins with fewer images are not drawn: their accuracy is too uncertain

Edges = np.ndarray[tuple[int], np.dtype[np.float64]]


def _outputs(run: Run, name: str) -> tuple[Tensor, Tensor]:
    """Logits (M,N) and labels (M,)."""
    tensors, _ = disk.load_tensors(run.outputs_file(name))
    return tensors["logits"], tensors["labels"]


def _exist(run: Run, names: list[str]) -> bool:
    return bool(names) and all(run.outputs_file(name).exists() for name in names)


def seed_text(summary: Summary, variants: list[Variant]) -> str:
    """Which seed the shown networks are of."""
    seeds = sorted({summary.run_of(variant)[1] for variant in variants})
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"the smallest seed of each ({', '.join(map(str, seeds))})"


@dataclass(frozen=True)
class Confidences:
    """Confidence and correctness of M images, float64, and their smooth ECE.

    Of several corruptions one after the other, ``copies`` is how many: each image is then there that often, and its
    copies are right or wrong together.
    """

    confidence: Tensor
    correct: Tensor
    smooth_ece: float
    copies: int = 1


def pooled_confidences(run: Run, names: list[str]) -> Confidences | None:
    """Of the images of all outputs ``names``; None where one is missing."""
    if not _exist(run, names):
        return None
    images = [per_image(*_outputs(run, name)) for name in names]
    confidence, correct = torch.cat([i.confidence for i in images]), torch.cat([i.correct for i in images])
    return Confidences(confidence, correct, smooth_ece(confidence, correct), len(names))


def _conditions(summary: Summary) -> dict[str, list[str]]:
    """Title -> the outputs that are pooled under it."""
    conditions = {"clean": ["test"]}
    for family in summary.families:
        if family.severities and family.corruptions:
            worst, kind = family.severities[-1], f" ({family.kind})" if len(summary.families) > 1 else ""
            names = [f"corruption-{name}-{worst}" for name in family.corruptions]
            conditions[f"severity {worst}{kind}, all corruptions pooled"] = names
    return conditions


Pooled = dict[tuple[str, Variant], Confidences]
"""(What is pooled, variant) -> its images."""


def pooled_outputs(summary: Summary, architecture: str) -> Pooled:
    """Of each variant of which outputs are stored: clean images, and the corrupted ones of the highest severity."""
    return {
        (title, variant): confidences
        for title, names in _conditions(summary).items()
        for variant in summary.of(architecture)
        if (confidences := pooled_confidences(summary.run_of(variant)[0], names))
    }


def reliability_figure(summary: Summary, architecture: str, measured: Pooled) -> Picture | None:
    """Accuracy against confidence, clean and at the highest severity; None where no outputs are stored."""
    variants = summary.of(architecture)
    titles = list(dict.fromkeys(title for title, _ in measured))
    shown = [variant for variant in variants if any((title, variant) in measured for title in titles)]
    if not titles:
        return None
    columns = max(3, len(shown))
    width = max(WIDTH, 2.2 * columns)
    figure = blank_figure(width, len(titles) * (width / columns * 1.28 + 0.35))
    ratios = {"height_ratios": [3.2, 1] * len(titles)}
    grid = figure.subplots(2 * len(titles), columns, squeeze=False, sharex=True, gridspec_kw=ratios)
    for axes in grid[:, len(shown) :].flat:
        axes.set_visible(False)
    for i, title in enumerate(titles):
        for j, variant in enumerate(shown):
            _draw_reliability(grid[2 * i, j], grid[2 * i + 1, j], measured.get((title, variant)), summary, variant)
        grid[2 * i, 0].set_ylabel(f"Accuracy, {title.partition(',')[0]}")
        grid[2 * i + 1, 0].set_ylabel("Images (%)")
    for axes in grid[-1]:
        axes.set_xlabel("Confidence")
    sizes = {title: len(images.correct) for (title, _), images in measured.items()}
    caption = (
        f"{architecture}. Points: accuracy within {BINS} equal bins of confidence, at the bin's mean confidence, with "
        f"95 % Wilson intervals over its images, whose copies under several corruptions count as one (bins of "
        f"{MIN_BIN_IMAGES} images or more); shading: the gap to perfect calibration (the diagonal). Below: share of "
        "images per bin, dotted: mean confidence. "
        f"{'; '.join(f'n = {size:,} ({title})' for title, size in sizes.items())}. "
        f"One network each: {seed_text(summary, [v for _, v in measured])}. Smooth ECE is that of the images shown."
    )
    alt = f"Reliability diagrams of {architecture}: " + "; ".join(
        f"{v.title}, {title}, smooth ECE {images.smooth_ece:.3f}" for (title, v), images in measured.items()
    )
    return Picture(f"reliability{architecture_suffix(summary, architecture)}", figure, alt, caption)


def reliability_bins(images: Confidences) -> list[tuple[float, float, float]]:
    """(mean confidence, accuracy, number of images) of each of ``BINS`` equal bins that holds an image.

    The number is the one that the accuracy's interval rests on: where a bin has k of an image's copies, (Σ k)² / Σ k²
    over the images, as if its copies told nothing more than one does. Kish 1965, Survey Sampling, section 8.2
    """
    bins = (images.confidence * BINS).long().clamp(max=BINS - 1)
    points = []
    for b in range(BINS):
        inside = bins == b
        if inside.any():
            count = inside.double().reshape(images.copies, -1).sum(0)
            size = float(count.sum() ** 2 / count.square().sum())
            points.append((float(images.confidence[inside].mean()), float(images.correct[inside].mean()), size))
    return points


def _draw_reliability(top: Axes, below: Axes, images: Confidences | None, summary: Summary, variant: Variant) -> None:
    if images is None:
        top.set_title(f"{variant.title}\nno outputs on disk")
        for axes in (top, below):
            axes.set(xticks=[], yticks=[])
        return
    style = variant_style(summary, variant)
    points = [point for point in reliability_bins(images) if point[2] >= MIN_BIN_IMAGES]
    top.plot([0, 1], [0, 1], color=NEUTRAL, linestyle="--", linewidth=1)
    if points:  # an empty line has no extent, which the layout cannot place
        x, y, _ = (np.array(column) for column in zip(*points, strict=True))
        low, high = np.array([wilson_interval(share, count, 0.95) for _, share, count in points]).T
        bars = np.clip([y - low, high - y], 0, None)
        top.fill_between(x, x, y, color=style.color, alpha=0.15, linewidth=0)
        line: dict[str, Any] = {"color": style.color, "marker": style.marker, "linewidth": 1.4, "elinewidth": 1}
        top.errorbar(x, y, yerr=bars, clip_on=False, **line)
    top.set(xlim=(0, 1), ylim=(0, 1), title=f"{variant.title}\nsmooth ECE {images.smooth_ece:.3f}")
    share = torch.histc(images.confidence, BINS, 0, 1) / len(images.confidence) * 100
    below.bar((np.arange(BINS) + 0.5) / BINS, share.numpy(), 0.94 / BINS, color=style.color, alpha=0.75)
    below.axvline(float(images.confidence.mean()), color=NEUTRAL, linewidth=1, linestyle=":")
    below.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])


def ood_titles(summary: Summary) -> dict[str, str]:
    """Name -> title of the recipe's OOD sets."""
    names = [str(name) for name in summary.setting("evaluate", "ood")]
    known = {name for name in names if name in catalog.CATALOG or catalog.is_user_data(name)}
    return {name: catalog.dataset_title(name) if name in known else display_name(name) for name in names}


def score_pair(summary: Summary, run: Run, name: str) -> tuple[Tensor, Tensor] | None:
    """The headline's score of the test images and of an OOD set's; None where outputs are missing."""
    names = ["test", f"ood-{catalog.dataset_file_name(name)}"]
    if summary.score not in SCORES or not _exist(run, names):
        return None
    inside, outside = (SCORES[summary.score](_outputs(run, name)[0]) for name in names)
    return inside, outside


def scores_figure(summary: Summary, architecture: str) -> Picture | None:
    """Histograms of the score: test images against each OOD set, one column per variant; None without outputs."""
    titles, pairs = ood_titles(summary), dict[tuple[Variant, str], tuple[Tensor, Tensor]]()
    for variant in summary.of(architecture):
        for name in titles:
            if pair := score_pair(summary, summary.run_of(variant)[0], name):
                pairs[variant, name] = pair
    shown = list(dict.fromkeys(variant for variant, _ in pairs))
    sets = [name for name in titles if any((variant, name) in pairs for variant in shown)]
    if not pairs:
        return None
    figure = blank_figure(max(WIDTH, 1.4 + 1.9 * len(shown)), 1.0 + 1.25 * len(sets))
    grid = figure.subplots(len(sets), len(shown), squeeze=False, sharex="col")
    for j, variant in enumerate(shown):
        values = torch.cat([scores for name in sets for scores in pairs.get((variant, name), ())]).numpy()
        low, high = np.quantile(values, [0.005, 0.995])
        edges = np.linspace(low, high if high > low else low + 1, 41)
        for i, name in enumerate(sets):
            _draw_histogram(grid[i, j], pairs.get((variant, name)), edges, variant_style(summary, variant).color)
        place = {"xy": (0.5, 1), "xycoords": "axes fraction", "xytext": (0, 22), "textcoords": "offset points"}
        grid[0, j].annotate(variant.title, **place, ha="center", fontsize=10.5)
        grid[-1, j].xaxis.set_major_locator(MaxNLocator(4))
    figure.supxlabel(f"{display_name(summary.score)} score (higher: more out-of-distribution)", fontsize=10)
    for i, name in enumerate(sets):
        grid[i, 0].set_ylabel(_wrapped(titles[name], 16), rotation=0, ha="right", va="center", fontsize=9)
    inside, _ = next(iter(pairs.values()))
    caption = (
        f"{architecture}, score: {summary.score.replace('_', ' ')}. Grey: {len(inside):,} test images of "
        f"{summary.trained_on}; coloured: the set named at the left; each of the same area, the 0.5 % ends of "
        f"all scores cut off. One network each: {seed_text(summary, shown)}; AUROC without interval (see the table)."
    )
    alt = f"Histograms of the {summary.score} score of {architecture}: test images against {len(sets)} other sets."
    return Picture(f"scores{architecture_suffix(summary, architecture)}", figure, alt, caption)


@dataclass(frozen=True)
class Ranked:
    """A risk-coverage curve, the weight of each of its M images, and the sets that are resampled on their own."""

    curve: RankingCurve
    weights: Tensor  # (M,) float64
    sets: tuple[tuple[int, int], ...]  # images of each, and how many copies of all of them follow each other

    @classmethod
    def of(cls, images: Confidences) -> "Ranked":
        """Of one set, the most confident images first."""
        count = len(images.correct)
        weights = torch.ones(count, dtype=torch.float64)
        return cls(RankingCurve(images.confidence, images.correct), weights, ((count // images.copies, images.copies),))

    def resampled(self, generator: torch.Generator) -> Tensor:
        """Weights (RESAMPLES, M) of resamples: all copies of an image are drawn together."""
        drawn = [resample(size, RESAMPLES, generator, "cpu").repeat(1, copies) for size, copies in self.sets]
        return torch.cat(drawn, dim=1) * self.weights


def risk_figure(summary: Summary, architecture: str, pooled: Pooled) -> Picture | None:
    """Risk-coverage curves on clean and corrupted images, and with OOD images mixed in; None without outputs."""
    curves = {key: Ranked.of(each) for key, each in pooled.items()}
    for variant in summary.of(architecture):
        if mixed := _mixed(summary, variant, pooled.get(("clean", variant))):
            curves[MIXED, variant] = mixed
    titles = list(dict.fromkeys(title for title, _ in curves))
    if not titles:
        return None
    figure = blank_figure(WIDTH, 3.6)
    panels = figure.subplots(1, len(titles), squeeze=False)[0]
    for axes, title in zip(panels, titles, strict=True):
        for (other, variant), curve in curves.items():
            if other == title:
                _draw_risk(axes, summary, variant, curve)
        axes.set(xlabel="Coverage: images accepted (%)", title=title, xlim=(0, 100))
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("Risk: errors among them (%)")
    legend(figure, panels[0])
    caption = (
        f"{architecture}. The most confident images are accepted first (where out-of-distribution images, each of them "
        f"an error, are mixed in, those of the lowest {summary.score.replace('_', ' ')} score). Bands: middle 95 % of "
        f"{RESAMPLES} resamples of the images of each set, an image's copies under several corruptions together. "
        f"One network each: {seed_text(summary, [v for _, v in curves])}."
    )
    return Picture(
        f"risk{architecture_suffix(summary, architecture)}", figure, f"Risk-coverage curves of {architecture}.", caption
    )


def _mixed(summary: Summary, variant: Variant, clean: Confidences | None) -> Ranked | None:
    """Test images and those of all OOD sets, half and half by weight, the lowest score first."""
    run, _ = summary.run_of(variant)
    pairs = [pair for name in ood_titles(summary) if (pair := score_pair(summary, run, name))]
    if clean is None or not pairs:
        return None
    scores = [pairs[0][0], *(outside for _, outside in pairs)]
    shares = [1.0, *([1 / len(pairs)] * len(pairs))]
    weights = [torch.full((len(each),), share / len(each)).double() for each, share in zip(scores, shares, strict=True)]
    correct = torch.cat([clean.correct, *(torch.zeros(len(each)) for each in scores[1:])])
    curve = RankingCurve(-torch.cat(scores), correct)
    return Ranked(curve, torch.cat(weights), tuple((len(each), 1) for each in scores))


def _draw_risk(axes: Axes, summary: Summary, variant: Variant, ranked: Ranked) -> None:
    style, generator = variant_style(summary, variant), torch.Generator().manual_seed(0)
    x, risk = (100 * COVERAGES).tolist(), 100 * ranked.curve.risk(ranked.weights[None], COVERAGES)[0]
    drawn = 100 * ranked.curve.risk(ranked.resampled(generator), COVERAGES)
    low, high = drawn.quantile(torch.tensor([0.025, 0.975]).double(), dim=0)
    axes.fill_between(x, low.tolist(), high.tolist(), color=style.color, alpha=0.15, linewidth=0)
    axes.plot(x, risk.tolist(), color=style.color, linestyle=style.linestyle, label=variant.title)


def _draw_histogram(axes: Axes, pair: tuple[Tensor, Tensor] | None, edges: Edges, color: str) -> None:
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    if pair is None:
        axes.set_title("no outputs on disk", fontsize=9)
        return
    for values, shade, opacity in ((pair[0], NEUTRAL, 0.45), (pair[1], color, 0.4)):
        heights = np.histogram(values.numpy(), edges)[0] / len(values)
        axes.stairs(heights, edges, fill=True, color=shade, alpha=opacity)
        axes.stairs(heights, edges, color=shade, linewidth=1.2)
    axes.set_title(f"AUROC {100 * auroc(*pair):.1f} %", fontsize=9, pad=2)


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def example_figures(summary: Summary) -> Iterator[Picture]:
    """One image under every corruption and severity, and images of every OOD set, enlarged without smoothing."""
    path = summary.folder.examples_file
    if not path.exists():
        return
    stored, _ = disk.load_tensors(path)
    clean = stored.get("clean")
    corrupted, outside = (
        {key.partition("/")[2]: images for key, images in stored.items() if key.startswith(prefix)}
        for prefix in ("corruption/", "ood/")
    )
    if corrupted and clean is not None:
        names = [name for family in summary.families for name in family.corruptions if name in corrupted]
        rows = [(display_name(name), torch.cat([clean[:1], corrupted[name]])) for name in names or corrupted]
        severities = sorted({severity for family in summary.families for severity in family.severities})
        columns = ["clean", *(f"severity {severity}" for severity in severities)]
        if len(columns) != max(len(images) for _, images in rows):
            columns = []
        caption = f"A test image of {summary.trained_on} as the networks see it: one row per corruption."
        yield image_grid("examples-corruptions", rows, columns, caption)
    if outside:
        titles = ood_titles(summary)
        names = [*(name for name in titles if name in outside), *sorted(outside.keys() - titles.keys())]
        rows = [(titles.get(name, display_name(name)), outside[name]) for name in names]
        if clean is not None:
            rows.insert(0, (f"{summary.trained_on} (test)", clean))
        caption = f"Test images of {summary.trained_on} in the first row, out-of-distribution images below."
        yield image_grid("examples-ood", rows, [], caption)


def image_grid(name: str, rows: list[tuple[str, Tensor]], columns: list[str], caption: str) -> Picture:
    """Images (M,C,H,W) uint8, a row each, with white gaps between them and labels outside."""
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
    figure = blank_figure(label + inches * width, inches * len(rows) + 0.4)
    axes = figure.add_subplot()
    axes.imshow(canvas, interpolation="none")  # nearest pixels, and in a PDF the pixels themselves
    titles = [title for title, _ in rows]
    middles = [i * (height_px + gap) + height_px / 2 for i in range(len(rows))]
    axes.set_yticks(middles, [_wrapped(title, 17) for title in titles])
    axes.set_xticks([j * (width_px + gap) + width_px / 2 for j in range(len(columns))], columns)
    axes.tick_params(length=0, labelsize=10, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    alt = f"Grid of {sum(len(images) for _, images in rows)} small images, rows: {', '.join(titles)}."
    return Picture(name, figure, alt, caption, vector=False)


def diagnostic_figures(summary: Summary) -> Iterator[Picture]:
    """The figures made from the outputs and example images that are stored."""
    for architecture in summary.architectures:
        pooled = pooled_outputs(summary, architecture)
        if reliability := reliability_figure(summary, architecture, pooled):
            yield reliability
        if summary.sets("aurc") and (risk := risk_figure(summary, architecture, pooled)):
            yield risk
        if summary.sets("auroc") and (scores := scores_figure(summary, architecture)):
            yield scores
    yield from example_figures(summary)

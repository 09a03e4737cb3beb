"""Inference over references: named ways from K views of an image to one answer.

Letters: B images, C channels, H×W size, K references, N classes.

The spread is one thing everywhere: by class, the standard deviation over references (n − 1 in the denominator) of the
logistic function of the logit, as published with ΔUQ (Thiagarajan et al. 2022, arXiv 2207.07235). With one reference it
is 0. Everything here is deterministic and of each image alone: no answer depends on the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from scipy.special import stdtrit
from torch import Tensor, nn

from anchored.errors import UserError
from anchored.method.anchoring import AnchoredModel, checked_references, pair, refuse_raw
from anchored.method.folded import Folded, Views
from anchored.method.hidden import HiddenAnchoredModel

Way = Literal["single", "mean", "mean_probabilities", "calibrated", "nearest", "adaptive"]
WAYS: tuple[Way, ...] = get_args(Way)
Form = Literal["cifar", "imagenet"]
CONFIDENCE = 0.99
"""Of each comparison of the sequential test of ``adaptive``, one-sided."""
LEAST = 2
"""References that ``adaptive`` uses at least: fewer have no spread to test with."""
FLOOR = 1e-6
"""What ``calibrated`` divides by at least, where all references agree to the last digit."""


@dataclass(frozen=True)
class Inferred:
    """An answer for each of B images."""

    logits: Tensor  # (B,N)
    probabilities: Tensor  # (B,N), their softmax
    spread: Tensor  # (B,N), over the references that were used; in [0, √½]
    used: Tensor  # (B,) int64, references that were used, which is the passes of the network


def infer(
    model: nn.Module,
    images: Tensor,
    way: Way = "mean",
    *,
    references: Tensor | None = None,
    form: Form = "cifar",
    features: Callable[[Tensor], Tensor] | None = None,
    confidence: float = CONFIDENCE,
    least: int = LEAST,
) -> Inferred:
    """Logits, probabilities, spread over references and their number, by one of six ways.

    Args:
        model: an anchored model in evaluation mode, or what :func:`anchored.fold` made of one, whose first layers run
            once for all references.
        images: (B,C,H,W), normalised.
        way: ``"single"``: the first reference. ``"mean"``: the mean of the logits over all K, as the model itself.
            ``"mean_probabilities"``: the mean of the probabilities, of which the logits are the logarithm.
            ``"calibrated"``: the mean logits divided by a function of the spread, a temperature for each image.
            ``"nearest"``: the reference that is nearest to the image (the first one, if tied). ``"adaptive"``: one
            reference after another, until a sequential test says that the class of the mean over all K is settled
            (:func:`settled`); the mean over those.
        references: (K,C,H,W), normalised, in place of the model's own.
        form: of ``"calibrated"``, with c the mean of the spread over classes: ``"cifar"`` divides by 1 + eᶜ,
            ``"imagenet"`` by c, as published for these (c below 1e-6 counts as 1e-6).
        features: of ``"nearest"``: from pairs (B,2C,H,W) to features (B,D), which distances are then of, all under the
            first reference; without, distances are of the images. One more pass, which ``used`` counts.
        confidence: of ``"adaptive"``, in [0.5, 1).
        least: of ``"adaptive"``, references that are used in any case, at least 2.

    Raises:
        UserError: another kind of model, one in training mode, references or images that do not fit, an unknown way, or
            ``"calibrated"`` with one reference.

    Example:
        >>> answer = anchored.infer(model, images, "adaptive", references=training_images[:10])
        >>> answer.probabilities.argmax(dim=1), answer.used.float().mean()
    """
    views = views_of(model, images, references)
    if way != "nearest":
        return combine(views, way, form=form, confidence=confidence, least=least)
    if not isinstance(views, _ModelViews):
        raise UserError(
            "the nearest reference is found among images at the input: give a model that is anchored there, not folded"
        )
    shown, passes = views.references, torch.ones(len(images), dtype=torch.int64, device=images.device)
    if features is None:
        place = nearest_reference(images.flatten(1), shown.flatten(1))
    else:
        own, other = (features(pair(each, shown[:1])) for each in (images, shown))
        place, passes = nearest_reference(own, other), passes + 1
    return _answer(views.model.network(pair(images, shown[place]))[None], passes)


def combine(
    views: Views | Tensor,
    way: Way = "mean",
    *,
    nearest: Tensor | None = None,
    form: Form = "cifar",
    confidence: float = CONFIDENCE,
    least: int = LEAST,
) -> Inferred:
    """The answers of :func:`infer` from logits by reference: (K,B,N), or views that compute them one by one.

    ``nearest`` (B,) int64: the place of each image's nearest reference, for that way. ``adaptive`` uses of the logits
    what it would have computed.
    """
    if way not in WAYS:
        raise UserError(f"the way of inference is {way!r}: give {', '.join(WAYS)}")
    views = StackedViews(views) if isinstance(views, Tensor) else views
    if way == "adaptive":
        return _adaptive(views, confidence, least)
    count = 1 if way == "single" else views.count
    logits = torch.stack([views.logits() for _ in range(count)])
    if way in ("single", "mean"):
        return _answer(logits)
    if way == "mean_probabilities":
        mixed = logits.log_softmax(dim=2).logsumexp(dim=0) - torch.tensor(float(count)).log()
        return _answer(logits, combined=mixed)
    if way == "calibrated":
        return _answer(logits, combined=_mean(logits) / temperature(logits, form)[:, None])
    if nearest is None:
        raise UserError("which reference is nearest to each image does not follow from logits: give nearest")
    return _answer(logits.gather(0, nearest.view(1, -1, 1).expand(1, *logits.shape[1:])))


def spread(logits: Tensor) -> Tensor:
    """Logits (K,B,N) by reference -> their spread (B,N), in [0, √½]; see the module."""
    return logits.sigmoid().std(dim=0) if len(logits) > 1 and logits.numel() else torch.zeros_like(logits[0])


def temperature(logits: Tensor, form: Form = "cifar") -> Tensor:
    """What ``calibrated`` divides the mean logits by, (B,), from logits (K,B,N); ``UserError`` for K = 1."""
    if form not in get_args(Form):
        raise UserError(f"form is {form!r}: give {' or '.join(map(repr, get_args(Form)))}")
    if len(logits) < 2:
        raise UserError("calibrated divides by the spread over references: it needs two or more")
    mean = spread(logits).mean(dim=1)
    return 1 + mean.exp() if form == "cifar" else mean.clamp(min=FLOOR)


def nearest_reference(points: Tensor, references: Tensor) -> Tensor:
    """The place (B,) of the reference (K,D) with the least Euclidean distance to each point (B,D); the first, if tied.

    ``UserError`` for different D.
    """
    if points.dim() != 2 or references.dim() != 2 or points.shape[1] != references.shape[1]:
        raise UserError(f"points {tuple(points.shape)} and references {tuple(references.shape)}: give (B,D) and (K,D)")
    exact = torch.cdist(points, references, compute_mode="donot_use_mm_for_euclid_dist")  # the other rounds ties apart
    return exact.argmin(dim=1)


def settled(logits: Tensor, total: int, confidence: float = CONFIDENCE) -> Tensor:
    """Whether the class of the mean over ``total`` references is settled after the first k: (B,) bool.

    ``logits`` (k,B,N), 2 <= k <= total. For the leading class against each other one, the margins (differences of
    logits) over references are taken as draws without replacement from ``total``. Their mean then differs from that
    over all ``total`` by a standard error s √(1/k − 1/total), s² being the margins' variance, pooled over the other
    classes. Settled: the mean margin exceeds it, times the ``confidence`` quantile of Student's t with k − 1 degrees of
    freedom, against every other class. The test is repeated after each reference and not corrected for that, so that
    ``confidence`` is of one comparison: how often the class is the same in the end is measured
    (docs/explanation/references.md).
    """
    k = len(logits)
    if not (2 <= k <= total and 0.5 <= confidence < 1):
        raise UserError(f"{k} of {total} references, confidence {confidence}: give 2 or more, and one in [0.5, 1)")
    if logits.shape[1] == 0:
        return torch.zeros(0, dtype=torch.bool, device=logits.device)
    leader = logits.mean(dim=0).argmax(dim=1)  # (B,)
    margins = logits.gather(2, leader.view(1, -1, 1).expand(k, -1, 1)) - logits  # (k,B,N), 0 for the leader
    others = max(1, logits.shape[2] - 1)
    variance = margins.var(dim=0).sum(dim=1, keepdim=True) / others
    needed = float(stdtrit(k - 1, confidence)) * (variance * (1 / k - 1 / total)).sqrt()
    return (margins.mean(dim=0) > needed).scatter(1, leader[:, None], True).all(dim=1)


class StackedViews:
    """Views of logits (K,B,N) that are there already."""

    def __init__(self, logits: Tensor) -> None:
        if logits.dim() != 3 or len(logits) == 0:
            raise UserError(f"logits by reference are (K,B,N), K at least 1, not {tuple(logits.shape)}")
        self.count, self._logits, self._next = len(logits), logits, 0

    def logits(self) -> Tensor:
        """Logits (B,N) for the next reference."""
        self._next += 1
        return self._logits[self._next - 1]

    def keep(self, places: Tensor) -> None:
        """Go on with the images at these places only."""
        self._logits = self._logits[:, places]


class _ModelViews:
    """Views through the network of an anchored model, a pass each."""

    def __init__(self, model: AnchoredModel, images: Tensor, references: Tensor) -> None:
        self.model, self.images, self.references = model, images, references
        self.count, self._next = len(references), 0

    def logits(self) -> Tensor:
        """Logits (B,N) for the next reference."""
        self._next += 1
        logits: Tensor = self.model.network(pair(self.images, self.references[self._next - 1 : self._next]))
        return logits

    def keep(self, places: Tensor) -> None:
        """Go on with the images at these places only."""
        self.images = self.images[places]


def views_of(model: nn.Module, images: Tensor, references: Tensor | None = None) -> Views:
    """Views of images (B,C,H,W) through a model, as :func:`infer` takes it; ``UserError`` where it has none."""
    if model.training:
        raise UserError("the model is in training mode, where references are drawn at random: call eval() first")
    refuse_raw(images)
    if isinstance(model, Folded):
        if references is not None:
            raise UserError("a folded network has its references in it: fold it with others, or give the anchored one")
        return model.views(images)
    if not isinstance(model, AnchoredModel):
        raise UserError(
            f"infer takes an anchored model, or one folded with references, not {type(model).__name__}: make one with "
            "anchored.anchor()"
        )
    if isinstance(model, HiddenAnchoredModel):
        return (model if references is None else model.with_references(references)).views(images)
    shown = model.references if references is None else checked_references(references).to(images)
    shown = images.new_zeros(1, *images.shape[1:]) if shown is None else shown
    if shown.shape[1:] != images.shape[1:]:
        sizes = ["×".join(map(str, each.shape[1:])) for each in (images, shown)]
        raise UserError(f"images are {sizes[0]}, references {sizes[1]}: they need one size")
    return _ModelViews(model, images, shown)


def _mean(logits: Tensor) -> Tensor:
    """The mean over references, summed in their order as an anchored model does, to the last bit."""
    total = logits[0]
    for each in logits[1:]:
        total = total + each
    return total / len(logits)


def _answer(logits: Tensor, used: Tensor | None = None, combined: Tensor | None = None) -> Inferred:
    """The answer from the logits (k,B,N) of the references used; their mean, where they are not combined otherwise."""
    combined = _mean(logits) if combined is None else combined
    if used is None:
        used = torch.full(logits.shape[1:2], len(logits), dtype=torch.int64, device=logits.device)
    return Inferred(combined, combined.softmax(dim=1), spread(logits), used)


def _adaptive(views: Views, confidence: float, least: int) -> Inferred:
    """Reference after reference, with the images that are not settled yet."""
    if least < 2:
        raise UserError(f"least is {least}: the test needs the spread of at least 2 references")
    seen: list[Tensor] = []  # logits (b,N) of the images that are left, by reference
    parts: list[tuple[Tensor, Inferred]] = []
    left: Tensor | None = None  # places (b,) of these images
    for k in range(1, views.count + 1):
        seen.append(views.logits())
        so_far = torch.stack(seen)
        left = torch.arange(so_far.shape[1], device=so_far.device) if left is None else left
        done = torch.full_like(left, k == views.count, dtype=torch.bool)
        if least <= k < views.count:
            done = settled(so_far, views.count, confidence)
        if done.any() or k == views.count:
            parts.append((left[done], _answer(so_far[:, done])))
            going = (~done).nonzero()[:, 0]
            left, seen = left[going], [each[going] for each in seen]
            views.keep(going)
        if len(left) == 0 and parts:
            break
    order = torch.cat([places for places, _ in parts]).argsort()
    logits, probabilities, spreads, used = (
        torch.cat([getattr(answer, name) for _, answer in parts])[order]
        for name in ("logits", "probabilities", "spread", "used")
    )
    return Inferred(logits, probabilities, spreads, used)

"""Decisions of a classifier, fitted on held-out images: a class or "unknown", a p-value, a set, calibrated chances.

What each part promises, for images that are exchangeable with the held-out ones, is in
``docs/explanation/calibration.md``. The parts do not spoil one another: a fifth of the images fits the temperature and
nothing else that depends on it; foreign images are told by a score of the logits as they are, by all images; abstention
is fitted on what that does not reject.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from typing_extensions import Self

from anchored.config.settings import Flag, Integer, Number, Positive, ProperShare, Seed
from anchored.config.validation import parse, settings_class, within
from anchored.errors import UserError
from anchored.metrics import conformal, selective
from anchored.metrics.classification import per_image
from anchored.metrics.ood_scores import SCORES, refuse_no_energy
from anchored.store import files

UNKNOWN = "unknown"
TEMPERATURE_SHARE = 5  # one image in so many fits the temperature
LEVEL = 0.95  # of the intervals
TABLE = 1024  # held-out scores that a p-value in an exported file is read off
Ends = tuple[Number, Number]
Count = Annotated[Integer, within("give a count", ge=0)]
Score = Literal["energy", "max_softmax", "max_logit", "entropy"]


@settings_class
class Temperature:
    """What logits are divided by before they become probabilities."""

    value: Positive
    n: Count
    """Held-out images that it was fitted on; 0 where there were too few, and it is 1."""


@settings_class
class Alarm:
    """Above which score an image is foreign: of images like the held-out ones, at most ``rate`` are, on average."""

    score: Score
    rate: ProperShare
    n: Count
    threshold: Number
    interval: Ends
    """Where the realised rate lies with probability 0.95, by its Beta law."""


@settings_class
class SetRule:
    """Which classes are in an image's set: those with a score of at most their quantile, and the predicted one."""

    method: conformal.SetMethod
    coverage: ProperShare
    by_class: Flag
    n: tuple[Count, ...]
    """Held-out images behind it; by class, of each class."""
    quantiles: tuple[Number | None, ...]
    """Of each class; none where too few images bound it, and the class is in every set."""
    intervals: tuple[Ends | None, ...]
    """Where the realised coverage lies with probability 0.95, one, or by class; but for the predicted class, which is
    in every set and can only add to it."""


@settings_class
class Abstention:
    """Below which calibrated confidence no class is given: of the images that get one, at most ``error`` are wrong."""

    error: ProperShare
    confidence: ProperShare
    """How sure that is, over the held-out images."""
    n: Count
    threshold: Number
    accepted: Count
    errors: Count


@dataclass(frozen=True)
class Decided:
    """What is decided of N images of K classes. A set holds the predicted class always, so that none is empty."""

    classes: tuple[str, ...]
    labels: Tensor
    """(N,) int64: the class with the largest logit, whether it is accepted or not."""
    accepted: Tensor
    """(N,) boolean: whether the class is given, else "unknown"."""
    score: Tensor
    """(N,) float64: OOD score; higher = more foreign."""
    p_value: Tensor
    """(N,) float64 in (0, 1]: how usual the score is among held-out images; at most the false-alarm rate: foreign."""
    probabilities: Tensor
    """(N,K) float64, calibrated."""
    sets: Tensor
    """(N,K) boolean."""

    @property
    def names(self) -> list[str]:
        """The class of each image, or "unknown"."""
        pairs = zip(self.labels.tolist(), self.accepted.tolist(), strict=True)
        return [self.classes[label] if accepted else UNKNOWN for label, accepted in pairs]

    @property
    def confidence(self) -> Tensor:
        """(N,) float64: calibrated probability of the class with the largest logit."""
        return self.probabilities.gather(1, self.labels[:, None])[:, 0]

    @property
    def set_names(self) -> list[list[str]]:
        """The classes in each image's set."""
        return [[self.classes[i] for i in row.nonzero()[:, 0].tolist()] for row in self.sets]


@settings_class
class Decision:
    """A decision rule and all that it was made from: ``decision.json``."""

    weights: str
    """Hash of the weights that it is for."""
    images: str
    """What it was fitted on."""
    classes: tuple[str, ...]
    seed: Integer
    temperature: Temperature
    alarm: Alarm
    sets: SetRule
    abstention: Abstention | None
    notes: tuple[str, ...]
    scores: tuple[Number, ...]
    """OOD scores of the held-out images, ascending, which p-values are counted off."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        k = len(self.classes)
        if len(self.sets.quantiles) != k or len(self.sets.n) not in (1, k):
            raise ValueError(f"sets has {len(self.sets.quantiles)} quantiles for {k} classes")
        if not self.scores or len(self.scores) != self.alarm.n or list(self.scores) != sorted(self.scores):
            raise ValueError(f"scores has {len(self.scores):,} values: {self.alarm.n:,} are wanted, in ascending order")
        return self

    def decide(self, logits: Tensor) -> Decided:
        """Decide by logits (N, K); ``UserError`` for another K, or logits that are not finite."""
        if logits.dim() != 2 or logits.shape[1] != len(self.classes):
            raise UserError(f"logits are {tuple(logits.shape)}: the decision is for (N, {len(self.classes)})")
        logits = logits.detach().double().cpu()
        score, labels = SCORES[self.alarm.score](logits), logits.argmax(1)
        p = (logits / self.temperature.value).softmax(1)
        accepted = score <= self.alarm.threshold
        if self.abstention is not None:
            accepted &= p.gather(1, labels[:, None])[:, 0] >= self.abstention.threshold
        sets = conformal.prediction_sets(conformal.set_scores(p, self.sets.method), self._quantiles, labels)
        p_value = conformal.p_values(score, self._scores)
        return Decided(self.classes, labels, accepted, score, p_value, p, sets)

    @cached_property
    def _scores(self) -> Tensor:
        return torch.tensor(self.scores, dtype=torch.float64)

    @cached_property
    def _quantiles(self) -> Tensor:
        return torch.tensor([math.inf if q is None else q for q in self.sets.quantiles], dtype=torch.float64)

    def save(self, path: str | Path) -> None:
        """Write it as JSON, atomically."""
        record = dataclasses.asdict(self)
        scores = record.pop("scores")
        text = json.dumps(record, indent=2, ensure_ascii=False)
        files.write_text(Path(path), f'{text[:-2]},\n  "scores": {json.dumps(scores)}\n}}\n')  # a line, not thousands

    @staticmethod
    def read(path: str | Path, weights: str = "") -> Decision:
        """Read what ``save`` wrote; ``UserError`` where it is something else, or for other ``weights`` than these."""
        found: Decision = parse(Decision, files.read_json(Path(path)), f"{path} is no decision of this version")
        if weights and found.weights != weights:
            raise UserError(
                f"{path} is for other weights ({found.weights}, not {weights}): calibrate again (anchored calibrate)"
            )
        return found

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _lines(rule: Decision) -> list[str]:
    """What is promised, a line a part."""
    alarm, sets, lines = rule.alarm, rule.sets, list[str]()
    lines.append(f"Temperature {rule.temperature.value:.3f}, by {rule.temperature.n:,} images")
    low, high = alarm.interval
    lines.append(
        f"False alarms at most {alarm.rate:.2%} (realised: {low:.2%} to {high:.2%}), by {alarm.n:,} images: unknown "
        f"where {alarm.score} > {alarm.threshold:.4g}"
    )
    low = min((ends[0] for ends in sets.intervals if ends), default=0.0)
    lines.append(
        f"Sets ({sets.method}{', by class' * sets.by_class}) hold the class of at least {sets.coverage:.2%} (realised: "
        f"{low:.2%} or more), by {sum(sets.n):,} images"
    )
    if found := rule.abstention:
        lines.append(
            f"Errors of given classes at most {found.error:.2%}, with confidence {found.confidence:.2%}, by "
            f"{found.n:,} images: unknown where the confidence < {found.threshold:.4g} (of them {found.accepted:,} get "
            f"a class, {found.errors:,} a wrong one)"
        )
    return [*lines, *rule.notes]


# --- Fitting ------------------------------------------------------------------------------------------------------


def fit_decision(
    logits: Tensor,
    labels: Tensor,
    *,
    classes: Sequence[str] = (),
    weights: str = "",
    images: str = "",
    false_alarms: float = 0.05,
    coverage: float = 0.9,
    error: float | None = None,
    confidence: float = 0.95,
    score: str = "energy",
    sets: str = "lac",
    by_class: bool = False,
    seed: int = 0,
) -> Decision:
    """The decision rule of a classifier from its logits (n, K) on held-out images and their labels (n,).

    Args:
        classes: names of the logits, none of them "unknown"; by default their numbers.
        weights: hash of the classifier's weights, which the rule is bound to.
        images: what the images are.
        false_alarms: share of usual images that may be called unknown for their score.
        coverage: share of images whose set holds their class.
        error: share of wrong classes among those that are given; None never abstains for want of confidence.
        confidence: how sure that is.
        score: OOD score, of ``metrics.ood_scores``.
        sets: lac, aps or raps, see ``metrics.conformal.set_scores``.
        by_class: let coverage hold for each class.
        seed: of the fifth of the images that fits the temperature.

    Raises ``UserError`` for unknown names, logits or labels that do not fit, the energy of logarithms of probabilities,
    and too few images, saying how many.
    """
    per_image(logits, labels)  # which refuses what is no logits and labels
    for name, known, what in ((score, tuple(SCORES), "OOD scores"), (sets, conformal.SET_METHODS, "kinds of sets")):
        if name not in known:
            raise UserError(f"'{name}' is none of the {what}: there are {', '.join(known)}")
    logits, labels = logits.detach().double().cpu(), labels.cpu().long()
    if UNKNOWN in classes:
        raise UserError(
            f"a class is named '{UNKNOWN}', as images without a class are called: give it another name (classes=[...], "
            "or that of its folder before training)"
        )
    refuse_no_energy(score, logits)
    parse(Seed, seed, name="seed")
    named: Any = score
    n, scores = len(logits), SCORES[score](logits)
    threshold = conformal.alarm_threshold(scores, false_alarms)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    fitted, rest = order[: n // TEMPERATURE_SHARE], order[n // TEMPERATURE_SHARE :].sort().values
    temperature = conformal.fit_temperature(logits[fitted], labels[fitted]) if len(fitted) else 1.0
    p, own = (logits[rest] / temperature).softmax(1), labels[rest]
    rule, notes = _set_rule(p, own, sets, coverage, by_class=by_class)
    if len(fitted) and bool((logits[fitted].argmax(1) == labels[fitted]).all()):
        notes.insert(0, f"The temperature is 1: all {len(fitted):,} images for it are right, which bounds none")
    accuracy = float((logits[rest].argmax(1) == own).double().mean())
    if accuracy >= coverage:
        notes.append(
            f"The predicted class, which is in every set, is right of {accuracy:.2%} of the held-out images, more than "
            f"the coverage of {coverage:.2%}: ask for a higher one to have sets that say more"
        )
    kept = _usual(scores, threshold, rest)
    abstention = None if error is None else _abstention(p[kept], logits[rest][kept], own[kept], error, confidence)
    return Decision(
        weights=weights,
        images=images,
        classes=tuple(classes) or tuple(map(str, range(logits.shape[1]))),
        seed=seed,
        temperature=Temperature(temperature, len(fitted)),
        alarm=Alarm(named, false_alarms, n, threshold, conformal.alarm_interval(n, false_alarms, LEVEL)),
        sets=rule,
        abstention=abstention,
        notes=tuple(notes),
        scores=tuple(scores.sort().values.tolist()),
    )


def _usual(scores: Tensor, threshold: float, rest: Tensor) -> Tensor:
    """Which of the images ``rest`` raise no alarm, without the one whose score is the threshold: given that score, the
    others are drawn anew from all images below it, which is what a test of the error among them needs."""
    last = int((scores == threshold).nonzero()[0])
    return (scores[rest] <= threshold) & (rest != last)


def _set_rule(p: Tensor, labels: Tensor, method: Any, coverage: float, *, by_class: bool) -> tuple[SetRule, list[str]]:
    quantiles = conformal.set_quantiles(conformal.set_scores(p, method), labels, coverage, by_class=by_class)
    count = labels.bincount(minlength=p.shape[1]).tolist() if by_class else [len(labels)]
    needed = conformal.images_needed(1 - coverage)
    intervals = tuple(conformal.coverage_interval(n, coverage, LEVEL) if n >= needed else None for n in count)
    unbounded = [i for i, n in enumerate(count) if n < needed]
    notes = []
    if unbounded:
        notes.append(
            f"{len(unbounded)} of {len(count)} classes have fewer than the {needed:,} held-out images that a coverage "
            f"of {coverage:g} needs, and are in every set: the first is number {unbounded[0]}, with "
            f"{count[unbounded[0]]}"
        )
    listed = tuple(None if math.isinf(q) else q for q in quantiles.tolist())
    return SetRule(method, coverage, by_class, tuple(count), listed, intervals), notes


def _abstention(p: Tensor, logits: Tensor, labels: Tensor, error: float, confidence: float) -> Abstention:
    needed, top = selective.accepted_needed(error, confidence), logits.argmax(1)
    if len(p) < needed:
        raise UserError(
            f"an error of {error:g} shown with confidence {confidence:g} needs {needed:,} held-out images that raise "
            f"no alarm and fit no temperature, and there are {len(p):,}: give more images, or a looser level"
        )
    chances = p.gather(1, top[:, None])[:, 0]
    selected = selective.selective_threshold(chances, (top == labels).double(), error, confidence)
    if not selected.accepted:
        raise UserError(
            f"an error of {error:g} cannot be shown with confidence {confidence:g}: too many of the most confident of "
            f"{len(p):,} held-out images are wrong; ask for a larger error, or give more images"
        )
    return Abstention(error, confidence, len(p), selected.threshold, selected.accepted, selected.errors)


# --- In a file ----------------------------------------------------------------------------------------------------


class Deciding(nn.Module):
    """A network with its decision: images to ``OUTPUTS``, for files that run without this library.

    In float64 from the logits on, as :meth:`Decision.decide` is, given as float32. p-values are counted off a table of
    held-out scores: exact for the 512 highest, and rounded up beyond where there are more than 1,024 images.
    """

    OUTPUTS = ("logits", "probabilities", "score", "p_value", "accepted")
    table: Tensor
    counts: Tensor

    def __init__(self, network: nn.Module, rule: Decision) -> None:
        super().__init__()
        self.network, self.rule = network, rule
        table, counts = _table(torch.tensor(rule.scores, dtype=torch.float64))
        self.register_buffer("table", table)
        self.register_buffer("counts", counts)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B,C,H,W) to logits (B,N), probabilities (B,N), score (B,), p_value (B,), accepted (B,) boolean."""
        logits = self.network(images)
        exact = logits.double()
        probabilities = (exact / self.rule.temperature.value).softmax(1)
        score = _SCORES[self.rule.alarm.score](exact)
        as_high = ((self.table >= score[:, None]).double() * self.counts).sum(1)
        accepted = score <= self.rule.alarm.threshold
        if self.rule.abstention is not None:
            accepted = accepted & (probabilities.amax(1) >= self.rule.abstention.threshold)
        found = (
            logits,
            probabilities.float(),
            score.float(),
            ((1 + as_high) / (self.rule.alarm.n + 1)).float(),
            accepted,
        )
        return dict(zip(self.OUTPUTS, found, strict=True))


_SCORES = {  # as metrics.ood_scores, which checks values and thus cannot be traced
    "energy": lambda z: -z.logsumexp(1),
    "max_softmax": lambda z: -z.log_softmax(1).amax(1).exp(),
    "max_logit": lambda z: -z.amax(1),
    "entropy": lambda z: -(z.log_softmax(1).exp() * z.log_softmax(1)).sum(1),
}


def _table(ascending: Tensor) -> tuple[Tensor, Tensor]:
    """Scores, and how many held-out ones each stands for: those from it down to the next; each, where they are few."""
    descending = ascending.flip(0)
    n, half = len(descending), TABLE // 2
    if n <= TABLE:
        return descending, torch.ones(n, dtype=torch.float64)
    places = torch.cat([torch.arange(half), torch.linspace(half, n - 1, half).long()]).unique()  # type: ignore[no-untyped-call]
    return descending[places], torch.diff(places, append=torch.tensor([n])).double()

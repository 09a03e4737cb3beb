"""The page of ``anchored predict``: one card an image, sorted by score, filtered in the browser, offline."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import jinja2
from markupsafe import Markup


@dataclass(frozen=True)
class Prediction:
    """What a network says about one image; a line of ``predictions.csv``. Empty where there is nothing to say."""

    file: str
    label: str = ""  # the predicted class
    confidence: float | None = None  # softmax probability of that class, in [0, 1]
    energy: float | None = None  # OOD score, nats; higher = more out-of-distribution
    percentile: float | None = None  # share of the run's test images with a lower energy, per cent
    spread: float | None = None  # standard deviation of the class's probability over references
    problem: str = ""  # why the image could not be read


def render(
    title: str,
    notes: Sequence[str],
    cards: Sequence[tuple[Prediction, bytes]],
    problems: Sequence[Prediction],
    total: int,
) -> str:
    """The page as HTML: predictions with their thumbnails (JPEG) in the order given; every name is escaped.

    ``total``: how many images there are, cards or not.
    """
    script = (resources.files("anchored.report") / "gallery.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("anchored", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [(prediction, base64.b64encode(picture).decode()) for prediction, picture in cards]
    return environment.get_template("gallery.html.jinja").render(
        title=title,
        notes=notes,
        cards=shown,
        problems=problems,
        total=total,
        classes=sorted({prediction.label for prediction, _ in cards}),
        script=Markup(script),  # our own file
        # The browser runs this script and no other.
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )

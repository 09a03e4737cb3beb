"""The page of ``anchored predict``: one card per image, sorted by OOD score, filtered in the browser, offline."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from markupsafe import Markup

from anchored.report.templates import template


@dataclass(frozen=True)
class Prediction:
    """One network's prediction for one image; a line of ``predictions.csv``. Fields are empty where unknown."""

    file: str
    label: str = ""  # the predicted class
    confidence: float | None = None  # softmax probability of that class, in [0, 1]
    energy: float | None = None  # OOD score, nats; higher = more out-of-distribution
    percentile: float | None = None  # share of the run's test images with a lower energy, per cent
    spread: float | None = None  # standard deviation of the class's probability over references
    problem: str = ""  # why the image could not be read


def render_gallery(
    title: str,
    notes: Sequence[str],
    cards: Sequence[tuple[Prediction, bytes]],
    problems: Sequence[Prediction],
    total: int,
) -> str:
    """The page as HTML: predictions with their JPEG thumbnails in the order given; every name is escaped.

    ``total`` is the number of images, including those without a card.
    """
    script = (resources.files("anchored.report") / "gallery.js").read_text(encoding="utf-8")
    encoded = [(prediction, base64.b64encode(thumbnail).decode()) for prediction, thumbnail in cards]
    return template("gallery.html.jinja").render(
        title=title,
        notes=notes,
        cards=encoded,
        problems=problems,
        total=total,
        classes=sorted({prediction.label for prediction, _ in cards}),
        script=Markup(script),  # our own file
        # The browser runs this script and no other.
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )

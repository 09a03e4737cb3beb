"""The page: whole, offline, escaped, and without a word on the browser's console."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from anchored.config.recipe import Recipe
from anchored.config.settings import Anchoring, Data, Evaluation, Grid
from anchored.metrics import metrics, ood_scores
from anchored.report import comparison as summary
from anchored.report import page as report
from anchored.store import files, layout
from anchored.store.layout import Row, StudyFolder

TITLE = "Fashion-MNIST (mini), seven classes"
OOD = {"fashion-mini-novel": "Fashion-MNIST (mini), three classes", "digits": "MNIST digits", "textures": "Textures"}
CORRUPTIONS = ("gaussian_noise", "defocus_blur", "contrast", "jpeg_compression")
SEVERITIES = (1, 2, 3, 4, 5)
PROTOCOLS: tuple[tuple[str, float | None], ...] = (("standard", None), ("anchored", None), ("ram", 0.25))


def row(**changes: object) -> Row:
    """A row; what is not named is a clean accuracy of a standard network."""
    plain = Row(
        "Data", "Net", "standard", None, "accuracy", "Data", None, 50.0, None, 0, "", "", 48.0, 52.0, 100, "run"
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


class Maker:
    """Makes the outputs of one pretended network, and rows from them."""

    def __init__(self, folder: StudyFolder, place: int, seed: int, n: int, title: str) -> None:
        protocol, alpha = PROTOCOLS[place]
        name = f"small-{protocol}{'-0.25' if alpha else ''}-seed{seed}"
        self.run, self.rows, self.n = folder.run(name), list[Row](), n
        self.draw = torch.Generator().manual_seed(10 * seed + 1)
        self.skill = 1 + 0.12 * place + 0.02 * float(torch.randn(1, generator=self.draw))
        self.base = row(
            trained_on=title, architecture="ResNet-8", protocol=protocol, alpha=alpha, seed=seed, run=name, n=n
        )

    def outputs(self, name: str, strength: float, classes: int = 7) -> torch.Tensor:
        """Logits (n, K) and labels of that strength, written to the run's folder."""
        labels = torch.randint(classes, (self.n,), generator=self.draw)
        logits = 1.6 * torch.randn(self.n, classes, generator=self.draw)
        logits[torch.arange(self.n), labels] += strength * self.skill
        files.save_tensors(self.run.outputs_file(name), {"logits": logits, "labels": labels})
        return logits

    def add(self, metric: str, value: float, half: float, **where: object) -> None:
        """A row with a symmetric interval."""
        self.rows.append(
            dataclasses.replace(self.base, metric=metric, value=value, low=value - half, high=value + half, **where)  # type: ignore[arg-type]
        )

    def labelled(
        self, name: str, strength: float, dataset: str, prefix: str = "", **where: object
    ) -> tuple[float, float]:
        """Outputs and their accuracy and smooth ECE."""
        logits = self.outputs(name, strength)
        labels = files.load_tensors(self.run.outputs_file(name))[0]["labels"]
        found = 100 * metrics.accuracy(logits, labels), metrics.smooth_ece(*metrics.confidence(logits, labels))
        names = ("linear_probe_accuracy", "linear_probe_ece") if prefix else ("accuracy", "smooth_ece")
        self.add(names[0], found[0], 1.6, dataset=dataset, **where)
        self.add(names[1], found[1], 0.012, dataset=dataset, **where)
        return found

    def mean(self, found: list[tuple[float, float]], names: tuple[str, str], **where: object) -> None:
        """The mean rows of two metrics."""
        for name, values, half in zip(names, zip(*found, strict=True), (1.2, 0.01), strict=True):
            self.add(name, math.fsum(values) / len(values), half, **where)


def make_study(
    path: Path,
    seeds: tuple[int, ...] = (0,),
    n: int = 400,
    title: str = "Standard, anchored and masked training on Fashion-MNIST",
    dataset: str = TITLE,
    protocols: tuple[int, ...] = (0, 1, 2),
    parts: tuple[str, ...] = ("corruption", "ood", "adaptation", "examples"),
) -> StudyFolder:
    """A whole study's folder as the program leaves it, with random networks."""
    folder = StudyFolder(path)
    rows: list[Row] = []
    for seed in seeds:
        for place in protocols:
            rows += _network(Maker(folder, place, seed, n, dataset), dataset, parts)
    recipe = Recipe(
        name="demo",
        title=title,
        data=Data("fashion-mini-known"),
        grid=Grid(("small",), seeds=seeds),
        anchoring=Anchoring(),
        evaluate=Evaluation(ood=tuple(OOD), corruptions=CORRUPTIONS, adaptation=tuple(OOD)[:2]),
    )
    layout.write_rows(folder.results_file, rows)
    made = {"command": "anchored study demo", "revision": "abc123 with changes", "torch": "2.15", "python": "3.13"}
    files.write_json(folder.study_file, {"recipe": dataclasses.asdict(recipe), "made": made})
    if "examples" in parts:
        draw = torch.Generator().manual_seed(0)
        images = {"clean": (8, 1, 28, 28), **{f"corruption/{c}": (5, 1, 28, 28) for c in CORRUPTIONS}}
        images |= {f"ood/{name}": (8, 1, 28, 28) for name in OOD}
        drawn = {k: torch.randint(256, s, generator=draw, dtype=torch.uint8) for k, s in images.items()}
        files.save_tensors(folder.examples_file, drawn)
    return folder


def _network(maker: Maker, dataset: str, parts: tuple[str, ...]) -> list[Row]:
    maker.labelled("test", 5.0, dataset)
    files.write_text(maker.run.log_file, "epoch,loss,seconds\n1,0.5,40.5\n2,0.4,39.5\n")
    pair = ("accuracy", "smooth_ece")
    if "corruption" in parts:
        every = []
        for severity in SEVERITIES:
            found = [
                maker.labelled(
                    f"corruption-{kind}-{severity}",
                    4.8 - 0.6 * severity - 0.25 * i,
                    f"{dataset}-C",
                    severity=severity,
                    corruption=kind,
                )
                for i, kind in enumerate(CORRUPTIONS)
            ]
            maker.mean(found, pair, dataset=f"{dataset}-C", severity=severity, corruption="mean")
            every += found
        maker.mean(every, pair, dataset=f"{dataset}-C", corruption="mean")
    if "ood" in parts:
        inside = files.load_tensors(maker.run.outputs_file("test"))[0]["logits"]
        outside = {title: maker.outputs(f"ood-{name}", 1.5 - 0.7 * i) for i, (name, title) in enumerate(OOD.items())}
        for score, function in ood_scores.SCORES.items():
            for metric, measure in (("auroc", metrics.auroc), ("fpr95", metrics.fpr_at_tpr), ("aupr", metrics.aupr)):
                values = {t: 100 * measure(function(inside), function(o)) for t, o in outside.items()}
                for name, value in values.items():
                    maker.add(metric, value, 1.5, dataset=name, score=score, n=2 * maker.n)
                maker.add(metric, sum(values.values()) / 3, 1.1, dataset="mean", score=score, n=4 * maker.n)
    if "adaptation" in parts:
        found = [maker.labelled(f"probe-{name}", 3.0, title, "probe") for name, title in list(OOD.items())[:2]]
        maker.mean(found, ("linear_probe_accuracy", "linear_probe_ece"), dataset="mean", n=2 * maker.n)
    return maker.rows


# --- The page ---------------------------------------------------------------------------------------------------------

SECTIONS = ["results", "radar", "severity", "ood", "adaptation", "calibration", "examples", "made", "read"]
HOSTILE = "<script>alert(1)</script> & \"$\\frac{x}$' {{ 7 * 7 }} %s [red]"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --v=0 --dump-dom"
)


class Page(HTMLParser):
    """What a test asks of a page: sections, tags, whatever is loaded, images and their words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections, self.loaded, self.tags = list[str](), list[str](), list[str]()
        self.ids, self.unnamed = list[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.sections += [values["id"]] if tag == "section" else []
        self.loaded += [v for k, v in values.items() if k in ("src", "srcset", "data", "poster", "xlink:href")]
        self.loaded += [values["href"]] if "href" in values and tag != "a" else []
        if (tag == "img" and not values.get("alt")) or (tag == "svg" and not values.get("aria-label")):
            self.unnamed.append(tag)


def browser() -> str:
    """A Chromium; without one the test is skipped, but in CI that is a failure."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("CI needs a Chromium to open the page with: install chromium")
    if found is None:
        pytest.skip("no chromium, chromium-browser or google-chrome to open the page with")
    return found


def opened(path: Path, profile: Path) -> tuple[str, list[str]]:
    """The page as the browser has it, and what its console said."""
    command = [browser(), *FLAGS.split(), f"--user-data-dir={profile}", path.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    folder = make_study(tmp_path_factory.mktemp("study"), seeds=(0, 1), n=120)
    report.write(folder)
    return folder


def test_page_is_whole_and_asks_for_nothing(study: StudyFolder) -> None:
    text = study.report_file.read_text(encoding="utf-8")
    page = Page(text)
    assert page.sections == SECTIONS
    assert [address for address in page.loaded if not address.startswith(("data:", "#"))] == []
    assert re.findall(r"url\((?!#)", text) == []
    assert "@import" not in text
    assert "script" not in page.tags
    assert page.unnamed == []
    assert len(page.ids) == len(set(page.ids))
    assert study.report_file.stat().st_size < 5_000_000


def test_every_reference_within_the_page_has_its_target(study: StudyFolder) -> None:
    text = study.report_file.read_text(encoding="utf-8")
    ids = set(Page(text).ids)
    wanted = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    assert wanted
    assert wanted <= ids


def test_browser_opens_it_without_a_word(study: StudyFolder, tmp_path: Path) -> None:
    dom, console = opened(study.report_file, tmp_path)
    assert console == []
    page = Page(dom)
    assert page.sections == SECTIONS
    assert page.tags.count("svg") == 6
    assert page.tags.count("img") == 2
    assert page.tags.count("table") == 9 + 2  # and two lists of facts


def test_browser_would_tell_of_a_request(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", n=60, parts=())
    path = report.write(folder)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("</main>", '<img src="http://localhost:9/x.png"></main>'), encoding="utf-8")
    _, console = opened(path, tmp_path / "profile")
    assert any("Content Security Policy" in line for line in console)


def test_names_are_never_markup(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", n=60, title=HOSTILE, dataset=HOSTILE)
    study = files.read_json(folder.study_file)
    study["made"][HOSTILE] = HOSTILE
    files.write_json(folder.study_file, study)
    text = report.write(folder).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "49" not in re.findall(r"<h1>(.*)</h1>", text)[0]
    assert "{{ 7 * 7 }}" in text
    dom, console = opened(folder.report_file, tmp_path / "profile")
    assert console == []
    assert "script" not in Page(dom).tags


@pytest.mark.parametrize(
    ("parts", "kept", "says"),
    [
        ((), ["results", "calibration", "made", "read"], "Corruptions were not measured in this study."),
        (("corruption",), ["results", "severity", "calibration", "made", "read"], "Adaptation to other tasks was not"),
        (("ood",), ["results", "ood", "calibration", "made", "read"], "There is no radar"),
        (("ood", "adaptation", "examples"), ["results", "ood", "adaptation", "calibration", "examples", "made", "read"],
         "Corruptions were not measured"),
    ],
)  # fmt: skip
def test_what_is_missing_is_left_out_and_said(
    tmp_path: Path, parts: tuple[str, ...], kept: list[str], says: str
) -> None:
    text = report.write(make_study(tmp_path, n=60, parts=parts)).read_text(encoding="utf-8")
    assert Page(text).sections == kept
    assert says in text


def test_rows_alone_are_enough(tmp_path: Path) -> None:
    folder = make_study(tmp_path, n=60, parts=("corruption", "ood", "adaptation"))
    shutil.rmtree(folder.path / "runs")
    text = report.write(folder).read_text(encoding="utf-8")
    assert Page(text).sections == ["results", "radar", "severity", "ood", "adaptation", "calibration", "made", "read"]
    assert "There are no reliability diagrams" in text
    assert "There are no score histograms" in text


@pytest.mark.parametrize("protocols", [(0,), (2,)])
def test_one_protocol_alone(tmp_path: Path, protocols: tuple[int, ...]) -> None:
    text = report.write(make_study(tmp_path, n=60, protocols=protocols)).read_text(encoding="utf-8")
    assert "There is no radar" in text
    assert "against standard</h3>" not in text


def test_one_severity_and_two_architectures(tmp_path: Path) -> None:
    folder = make_study(tmp_path, n=60, parts=("corruption", "ood"))
    rows = [each for each in layout.read_rows(folder.results_file) if each.severity in (None, 3)]
    second = [row(**{**vars(each), "architecture": "Wide/Net 2", "run": "gone"}) for each in rows]
    layout.write_rows(folder.results_file, [*rows, *second])
    text = report.write(folder).read_text(encoding="utf-8")
    assert "Only one severity was measured." in text
    names = {path.name for path in folder.figures.glob("*.png")}
    assert {"severity-0-resnet-8.png", "severity-1-wide-net-2.png"} <= names
    assert summary.read(folder).families[0].severities == (3,)
    assert len(set(Page(text).ids)) == len(Page(text).ids)

"""The report's numbers and words: aggregation, comparison, escaping, formats, refusals."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch

from anchored import metrics, runs, scores
from anchored.recipe import Anchoring, Data, Evaluation, Grid, Recipe
from anchored.runs import Row, StudyFolder

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


def folder_of(path: Path, rows: list[Row], recipe: Recipe | None = None, **made: str) -> StudyFolder:
    """A study's folder with these rows and nothing else."""
    folder = StudyFolder(path)
    runs.write_rows(folder.results_file, rows)
    runs.write_json(folder.study_file, {"recipe": dataclasses.asdict(recipe or Recipe()), "made": made})
    return folder


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
        runs.save_tensors(self.run.outputs_file(name), {"logits": logits, "labels": labels})
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
        labels = runs.load_tensors(self.run.outputs_file(name))[0]["labels"]
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
    runs.write_rows(folder.results_file, rows)
    made = {"command": "anchored study demo", "revision": "abc123 with changes", "torch": "2.15", "python": "3.13"}
    runs.write_json(folder.study_file, {"recipe": dataclasses.asdict(recipe), "made": made})
    if "examples" in parts:
        draw = torch.Generator().manual_seed(0)
        images = {"clean": (8, 1, 28, 28), **{f"corruption/{c}": (5, 1, 28, 28) for c in CORRUPTIONS}}
        images |= {f"ood/{name}": (8, 1, 28, 28) for name in OOD}
        drawn = {k: torch.randint(256, s, generator=draw, dtype=torch.uint8) for k, s in images.items()}
        runs.save_tensors(folder.examples_file, drawn)
    return folder


def _network(maker: Maker, dataset: str, parts: tuple[str, ...]) -> list[Row]:
    maker.labelled("test", 5.0, dataset)
    runs.write_text(maker.run.log_file, "epoch,loss,seconds\n1,0.5,40.5\n2,0.4,39.5\n")
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
        inside = runs.load_tensors(maker.run.outputs_file("test"))[0]["logits"]
        outside = {title: maker.outputs(f"ood-{name}", 1.5 - 0.7 * i) for i, (name, title) in enumerate(OOD.items())}
        for score, function in scores.SCORES.items():
            for metric, measure in (("auroc", metrics.auroc), ("fpr95", metrics.fpr_at_tpr), ("aupr", metrics.aupr)):
                values = {t: 100 * measure(function(inside), function(o)) for t, o in outside.items()}
                for name, value in values.items():
                    maker.add(metric, value, 1.5, dataset=name, score=score, n=2 * maker.n)
                maker.add(metric, sum(values.values()) / 3, 1.1, dataset="mean", score=score, n=4 * maker.n)
    if "adaptation" in parts:
        found = [maker.labelled(f"probe-{name}", 3.0, title, "probe") for name, title in list(OOD.items())[:2]]
        maker.mean(found, ("linear_probe_accuracy", "linear_probe_ece"), dataset="mean", n=2 * maker.n)
    return maker.rows

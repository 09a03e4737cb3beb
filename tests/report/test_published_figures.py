"""Figures of other methods: each has a place or a reason, meets only its own set, network and metric, and is named."""

from __future__ import annotations

import dataclasses
import hashlib
import runpy
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest
from fixtures.report_studies import folder_of, row

from anchored.config.recipe import Recipe
from anchored.config.settings import Data
from anchored.corruptions.registry import CORRUPTIONS
from anchored.metrics.registry import METRICS
from anchored.report import formats, reading
from anchored.report import page as report
from anchored.report.comparison import Summary
from anchored.report.published_figures import Place, PublishedFigure, published_figures, published_tables
from anchored.report.table import Table
from anchored.store.rows import Row

SHARED = [Path(__file__).parents[up] / "shared" / "paper" / "published.csv" for up in (2, 3)]
ALL = [name for name, each in CORRUPTIONS.items() if "c" in each.families]


def of_figure(figure: PublishedFigure) -> list[Row]:
    """The rows of a study that measured what a figure is of, with its own value a little higher."""
    base = row(
        trained_on=figure.trained_on,
        architecture=figure.architecture,
        metric=figure.metric,
        score=figure.score if figure.score in ("energy", "max_softmax") else "energy" if figure.score else "",
        n=10_000,
    )
    datasets = figure.place.sets or (figure.place.dataset,)
    corruption = "mean" if not figure.score and datasets[0] != figure.trained_on else ""
    metric = "smooth_ece" if figure.metric == "ece" and corruption else figure.metric
    return [dataclasses.replace(base, dataset=d, corruption=corruption, metric=metric) for d in datasets]


def study_of(path: Path, rows: list[Row], recipe: Recipe | None = None) -> Summary:
    return reading.read_summary(folder_of(path, rows, recipe))


def corrupted(dataset: str, **changes: object) -> list[Row]:
    """Accuracies on all 19 corruptions at 5 severities and their means: 71 over all, 75.5 over the 15 common ones."""
    grid = [row(dataset=dataset, corruption=name, severity=s, **changes) for name in ALL for s in range(1, 6)]
    means = {"mean": 71.0, "mean-15": 75.5}
    return grid + [
        row(dataset=dataset, corruption=k, value=v, low=v - 1, high=v + 1, **changes) for k, v in means.items()
    ]


RESNET = {"trained_on": "CIFAR-10", "architecture": "ResNet-18", "n": 10_000}
SETS = {"CIFAR-100": 88.0, "TinyImageNet": 86.0, "MNIST": 94.0, "SVHN": 92.0, "Textures": 90.0, "Places365": 88.0}


def resnet_rows(seeds: tuple[int, ...] = (0,)) -> list[Row]:
    """A ResNet-18 of CIFAR-10, standard and RAM: accuracy, CIFAR-10-C, and AUROC on OpenOOD's sets by two scores."""
    rows: list[Row] = []
    for protocol, alpha in (("standard", None), ("ram", 0.25)):
        for seed in seeds:
            own = {**RESNET, "protocol": protocol, "alpha": alpha, "seed": seed}
            rows.append(row(dataset="CIFAR-10", value=95.25, low=95.0, high=95.5, **own))
            rows += corrupted("CIFAR-10-C", **own)
            for score in ("energy", "max_softmax"):
                for name, value in SETS.items():
                    rows.append(row(metric="auroc", dataset=name, score=score, value=value + seed, **own))
    return rows


def texts(table: Table, kind: str) -> list[list[str]]:
    return [[cell.text for cell in line] for line in table.rows if line[0].text == kind]


def notes_of(table: Table, line: list[str]) -> str:
    """What the numbers in a line's column of notes stand for."""
    numbered = dict(part.split(" ", 1) for part in table.caption.split("Notes: ")[1].split(". Sources:")[0].split("; "))
    return "; ".join(numbered[number] for number in line[-2].split(", ") if number)


# --- The figures ------------------------------------------------------------------------------------------------------


def test_all_399_figures_are_as_they_were_gathered() -> None:
    text = (resources.files("anchored") / "report" / "published.csv").read_text(encoding="utf-8")
    assert len(published_figures()) == 399
    digest = "95a22c846cb9613d9bfef633a50d00e55b2993273c20ede396eda06ace7af067"
    assert hashlib.sha256(text.encode()).hexdigest() == digest
    shared = next((path for path in SHARED if path.exists()), None)
    if shared:
        script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "build_published.py"))
        assert text == script["normalised"](shared.read_text(encoding="utf-8"))


def test_every_figure_meets_a_study_or_says_why_not(tmp_path: Path) -> None:
    """A study that measured a figure's set on its network by its metric shows it; all others have a reason."""
    joined = 0
    for number, figure in enumerate(dict.fromkeys(dataclasses.replace(f, printed="1") for f in published_figures())):
        if figure.not_joined:
            assert len(figure.not_joined) > 20
            continue
        found = list(published_tables(study_of(tmp_path / str(number), of_figure(figure))))
        lines = [line for table in found for line in texts(table, "published")]
        assert any(line[1] == figure.method for line in lines), figure
        joined += 1
    assert joined > 200


def test_reasons_are_these() -> None:
    reasons = Counter(figure.not_joined.partition(":")[0] for figure in published_figures() if figure.not_joined)
    assert reasons == {
        "no mCE is measured here": 20,
        "ImageNet-200 is no training set of the catalog": 25,
        "not Hendrycks' CIFAR-100-C but 17 corruptions of the authors' own": 6,
        "printed as an error, and rows here are accuracies": 3,
        "noise drawn otherwise than the catalog's": 8,
        "scenes resized and cropped at the centre": 6,
        "FPR at 95 % of the images of the own distribution; here it is at 95 % of the others": 12,
    }


def test_metrics_are_ours_and_in_our_units() -> None:
    for figure in published_figures():
        if not figure.not_joined:
            assert (float(figure.printed) > 3) == METRICS[figure.metric].percent, figure
            assert figure.source
            assert bool(figure.score) == (figure.metric == "auroc")


# --- The join ---------------------------------------------------------------------------------------------------------


def test_accuracy_beside_others_on_the_15_corruptions(tmp_path: Path) -> None:
    accuracy, _ = published_tables(study_of(tmp_path, resnet_rows()))
    assert accuracy.name == "published_resnet18_accuracy"
    assert [column.title for column in accuracy.columns[2:4]] == ["CIFAR-10", "CIFAR-10-C"]
    assert texts(accuracy, "here") == [
        ["here", "Standard", "95.2", "75.5", "1", "", "this study"],
        ["here", "RAM α=0.25", "95.2", "75.5", "1", "", "this study"],
    ]
    lines = {(line[1], line[2], line[3]): line for line in texts(accuracy, "published")}
    assert {("AugMix", "95.2", "88.6"), ("PRIME", "93.1", "89.0"), ("RLAT + AugMix", "94.75", "89.60")} <= set(lines)
    assert "CIFAR-10-C here: mean over 15 corruptions, severities 1 to 5" in accuracy.caption
    kireev = lines["RLAT + AugMix", "94.75", "89.60"]
    assert kireev[4] == "1"
    assert "number of corruptions: 15" in notes_of(accuracy, kireev)
    assert f"{kireev[-1]} RobustBench/robustbench README.md@dc70160" in accuracy.caption
    assert "UNCLEAR: 74.0 and 24.0" in notes_of(accuracy, lines["standard", "95.0", "74.0"])
    assert lines["outlier exposure", "94.63", "—"][4] == "not stated"
    assert "uses auxiliary outlier data" in notes_of(accuracy, lines["outlier exposure", "94.63", "—"])
    deviations = [line[2].interval for line in accuracy.rows if line[2].text == "95.06"]
    assert deviations == ["s.d. 0.30"]


def test_a_mean_over_other_sets_is_made_of_the_same_sets(tmp_path: Path) -> None:
    _, auroc = published_tables(study_of(tmp_path / "one", resnet_rows()))
    near, far = (column.title for column in auroc.columns[3:5])
    assert (near, far) == ("Mean of 2 near-OOD sets", "Mean of 4 far-OOD sets")
    assert ["here", "Standard", "Max softmax", "87.0", "91.0", "1", "", "this study"] in texts(auroc, "here")
    assert {cell.interval for line in auroc.rows if line[0].text == "here" for cell in line[3:5]} == {""}
    lines = [line[:6] for line in texts(auroc, "published")]
    assert ["published", "standard", "ViM", "88.68", "93.48", "3"] in lines
    assert ["published", "LogitNorm", "Max softmax", "92.33", "96.74", "not stated"] in lines
    assert "Mean of 4 far-OOD sets: MNIST, SVHN, Textures and Places365." in auroc.caption
    _, several = published_tables(study_of(tmp_path / "two", resnet_rows(seeds=(0, 1))))
    assert [cell.text for cell in several.rows[1][3:5]] == ["87.5", "91.5"]
    assert several.rows[1][3].interval == "± 6.4"  # 12.706 · 0.5, the t interval of 87 and 88
    fewer = [each for each in resnet_rows() if each.dataset != "SVHN"]
    _, left = published_tables(study_of(tmp_path / "three", fewer))
    assert [column.title for column in left.columns[3:-3]] == [near]
    assert "Left out: 13 published figures" in left.caption


def test_sets_of_a_wide_network_stand_by_name(tmp_path: Path) -> None:
    rows = [
        row(trained_on="CIFAR-100", architecture="WRN-40-2", metric="auroc", dataset=name, score="max_softmax")
        for name in ("LSUN (C)", "Textures", "CIFAR-10", "LSUN")
    ]
    (auroc,) = published_tables(study_of(tmp_path, rows))
    assert [column.title for column in auroc.columns[3:-3]] == ["LSUN (C)", "Textures", "CIFAR-10"]
    lines = {tuple(line[1:6]): line for line in texts(auroc, "published")}
    tuned = lines["outlier exposure, tuned", "Max softmax", "—", "84.79", "75.70"]
    assert "auxiliary outliers: 80 Million Tiny Images" in notes_of(auroc, tuned)
    assert "not over trainings" in notes_of(auroc, tuned)
    assert ("standard", "ODIN", "96.38", "—", "—") in lines


def test_binned_and_smooth_ece_have_their_own_columns(tmp_path: Path) -> None:
    own = {"trained_on": "ImageNet", "architecture": "resnet50.tv_in1k"}
    rows = [row(metric=m, dataset="ImageNet", value=0.03, low=0.02, high=0.04, **own) for m in ("ece", "smooth_ece")]
    (table,) = published_tables(study_of(tmp_path, rows))
    groups = [column.group for column in table.columns[2:4]]
    assert groups == ["ECE ↓, 15 bins", "Smooth ECE ↓"]
    assert {line[3] for line in texts(table, "published")} == {"—"}
    assert ["published", "SNGP", "0.013", "—", "10"] in [line[:5] for line in texts(table, "published")]
    assert "a figure of one says nothing on one of the other" in table.caption


@pytest.mark.parametrize(
    "changes",
    [
        {"trained_on": "Fashion-MNIST", "dataset": "Fashion-MNIST"},
        {"trained_on": "Fashion-MNIST (mini)", "dataset": "Fashion-MNIST (mini)"},
        {"architecture": "resnet18"},  # a library's, with ImageNet's first layer
        {"architecture": "ResNet-8"},
        {"metric": "brier"},
        {"dataset": "CIFAR-10-C̄", "corruption": "mean"},
    ],
)
def test_another_set_network_or_metric_meets_nothing(tmp_path: Path, changes: dict[str, object]) -> None:
    plain = row(**{**RESNET, "dataset": "CIFAR-10"})
    assert list(published_tables(study_of(tmp_path / "same", [plain])))
    assert list(published_tables(study_of(tmp_path / "other", [dataclasses.replace(plain, **changes)]))) == []  # type: ignore[arg-type]


def test_what_here_was_averaged_otherwise_is_said(tmp_path: Path) -> None:
    rows = [row(dataset="CIFAR-10-C", corruption=name, severity=3, **RESNET) for name in ALL[:4]]
    rows.append(row(dataset="CIFAR-10-C", corruption="mean", **RESNET))
    (table,) = published_tables(study_of(tmp_path, rows, Recipe(data=Data(fraction=0.02))))
    assert "CIFAR-10-C here: mean over 4 corruptions, severity 3." in table.caption
    assert "A trial on 2 % of the images" in table.caption


def test_the_page_and_the_files_have_it(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, resnet_rows())
    page = report.write(folder).read_text(encoding="utf-8")
    assert '<section id="published">' in page
    assert "Accuracy beside published figures: ResNet-18, CIFAR-10" in page
    names = {path.name for path in folder.tables.iterdir()}
    assert {
        f"published_resnet18_{metric}.{kind}" for metric in ("accuracy", "auroc") for kind in ("md", "tex")
    } <= names
    for table in published_tables(reading.read_summary(folder)):
        assert formats.latex(table).isascii()
        assert "UNCLEAR" in formats.markdown(table) or table.name.endswith("auroc")


def test_places_of_means_are_told_from_sets() -> None:
    means = {figure.place for figure in published_figures() if figure.place.sets}
    assert Place("Mean of 2 near-OOD sets", ("CIFAR-100", "TinyImageNet")) in means
    assert all(len(place.sets) == int(place.dataset.split()[2]) for place in means)

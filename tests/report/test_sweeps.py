"""Figures along α and λ, and the radar: what they draw, what their captions say, what the page says at a point."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.report_studies import folder_of, row
from scipy import stats

from anchored.config.recipe import Recipe
from anchored.config.settings import Tail
from anchored.report import narrative as words
from anchored.report import page as report
from anchored.report import radar, reading, style, sweeps
from anchored.report.tables import headline_table
from anchored.store.rows import Row

ALPHAS = (0.0625, 0.125, 0.25)


def rows_of(
    seeds: tuple[int, ...] = (0, 1, 2), architectures: tuple[str, ...] = ("ResNet-18",), **more: Any
) -> list[Row]:
    """Accuracy, corruption accuracy and AUROC of standard, anchored and three α's; all move with α and seed."""
    kinds = [("standard", None, 0.0), ("anchored", None, 1.0), *(("ram", a, 1 + 10 * a) for a in ALPHAS)]
    figures = [("accuracy", "Data", "", ""), ("accuracy", "Data-C", "mean", ""), ("auroc", "mean", "", "energy")]
    return [
        row(
            architecture=architecture,
            protocol=protocol,
            alpha=alpha,
            metric=metric,
            dataset=dataset,
            corruption=corruption,
            score=score,
            value=50 + gain + seed,
            low=49 + gain + seed,
            high=52 + gain + seed,
            seed=seed,
            n=1000,
            **more,
        )
        for architecture in architectures
        for seed in seeds
        for protocol, alpha, gain in kinds
        for metric, dataset, corruption, score in figures
    ]


def with_tails(rows: list[Row]) -> list[Row]:
    """The same with two λ's at the largest α: AUROC up, accuracy down."""
    more = []
    for weight in (0.1, 1.0):
        for each in rows:
            if each.alpha == 0.25:
                by = weight if each.metric == "auroc" else -weight
                more.append(dataclasses.replace(each, tail_weight=weight, value=each.value + by))
    return [*rows, *more]


def pictures(path: Path, rows: list[Row]) -> dict[str, style.Picture]:
    with style.drawing():
        return {picture.name: picture for picture in sweeps.sweep_figures(reading.read_summary(folder_of(path, rows)))}


def lines_of(picture: style.Picture, label: str, panel: int = 0) -> tuple[list[float], list[float]]:
    """The points of the error bars so labelled."""
    (bars,) = [each for each in picture.figure.axes[panel].containers if each.get_label() == label]
    line: Any = bars[0]
    return list(line.get_xdata()), list(line.get_ydata())


def test_metrics_against_alpha(tmp_path: Path) -> None:
    picture = pictures(tmp_path, rows_of())["alpha"]
    assert [axes.get_title() for axes in picture.figure.axes] == [
        "Clean accuracy, % ↑", "Corruption accuracy, % ↑", "OOD AUROC, % (energy) ↑",
    ]  # fmt: skip
    at, values = lines_of(picture, "ResNet-18")
    assert at == [0.0, *ALPHAS]  # anchored is α = 0
    assert values == pytest.approx([52.0, 52.625, 53.25, 54.5])  # mean over seeds 0, 1, 2
    assert "n = 1,000 test images; seeds 0, 1 and 2; bars and bands are the 95 % Student-t interval" in picture.caption
    # The standard band: mean 51 ± 4.302653 / √3.
    band = picture.figure.axes[0].patches[0].get_extents().transformed(picture.figure.axes[0].transData.inverted())
    assert (band.y0, band.y1) == pytest.approx((51 - 2.48414, 51 + 2.48414), abs=1e-4)


def test_one_line_per_architecture_and_asymmetric_bars_of_one_seed(tmp_path: Path) -> None:
    picture = pictures(tmp_path, rows_of(seeds=(0,), architectures=("ResNet-18", "WRN-40-2")))["alpha"]
    labels = [each.get_label() for each in picture.figure.axes[0].containers]
    assert labels == ["ResNet-18", "WRN-40-2"]
    bars: Any = picture.figure.axes[0].containers[0]
    ends = bars[2][0].get_segments()
    assert next(tuple(segment[:, 1]) for segment in ends) == (50.0, 53.0)  # 51 − 1 to 51 + 2
    colours = {each[0].get_color() for each in picture.figure.axes[0].containers}
    assert len(colours) == 2
    assert "bootstrap interval over test images" in picture.caption


def test_auroc_against_corruption_accuracy_along_lambda(tmp_path: Path) -> None:
    picture = pictures(tmp_path, with_tails(rows_of()))["lambda"]
    across, up = lines_of(picture, "ResNet-18, RAM α=0.25")
    assert across == pytest.approx([54.5, 54.4, 53.5])  # λ = 0, 0.1, 1
    assert up == pytest.approx([54.5, 54.6, 55.5])
    assert [text.get_text() for text in picture.figure.axes[0].texts] == ["λ = 0", "λ = 0.1", "λ = 1"]
    assert "seeds 0, 1 and 2" in picture.caption


def test_a_sweep_of_a_method_names_it(tmp_path: Path) -> None:
    rows = [dataclasses.replace(each, method="mixup") for each in with_tails(rows_of())]
    lines_of(pictures(tmp_path, rows)["lambda"], "ResNet-18, mixup + RAM α=0.25")


def test_without_a_sweep_there_is_no_figure(tmp_path: Path) -> None:
    single = [each for each in rows_of() if each.alpha in (None, 0.25)]
    assert pictures(tmp_path / "one", single) == {}
    no_auroc = [each for each in with_tails(single) if each.metric != "auroc"]
    assert pictures(tmp_path / "no pair", no_auroc) == {}
    assert set(pictures(tmp_path / "tails", with_tails(single))) == {"lambda"}


def test_the_page_says_what_is_pointed_at(tmp_path: Path) -> None:
    page = report.write(folder_of(tmp_path, with_tails(rows_of()))).read_text(encoding="utf-8")
    titles = re.findall(r'<g id="([a-z0-9-]+)"><title>(.*?)</title>', page)
    assert len(titles) == 3 * 5 + 3  # three panels of five trainings, three λ's
    assert len({name for name, _ in titles}) == len(titles)
    said = dict(titles)["alpha-alpha-0-0-1"]
    assert said == "ResNet-18, RAM α=0.0625: Accuracy (%) 52.6 (± 2.5); n = 1,000, seeds 0, 1 and 2"
    assert "<script" not in page


def test_the_page_says_how_tails_were_shown(tmp_path: Path) -> None:
    with_and_without = [
        reading.read_summary(folder_of(tmp_path / str(len(each)), each)) for each in (rows_of(), with_tails(rows_of()))
    ]
    without, with_ = (list(words.notes(each)) for each in with_and_without)
    (told,) = [each for each in with_ if each not in without]
    assert (
        told
        == "Hard Δ mining showed 32 points a step of the residuals' tail (mass ε = 0.0001), after 20 % of training."
    )
    recipe = Recipe(tail=Tail(batch_norm="own"))
    own = reading.read_summary(folder_of(tmp_path / "own", with_tails(rows_of()), recipe))
    assert "(mass ε = 0.0001), in a pass of their own, after 20 %" in " ".join(words.notes(own))


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    name = '<b>"Net"</b> & co'
    page = report.write(folder_of(tmp_path, rows_of(architectures=(name,)))).read_text(encoding="utf-8")
    assert "<b>" not in page
    assert "<title>&lt;b&gt;&quot;Net&quot;&lt;/b&gt; &amp; co, Standard" in page


# --- The radar --------------------------------------------------------------------------------------------------------

AIMS = (("accuracy", "Data-C", "mean"), ("smooth_ece", "Data-C", "mean"), ("auroc", "mean", ""))


def compared(path: Path, standard: dict[str, list[float]], other: dict[str, list[float]]) -> style.Picture:
    """The radar of anchored over standard: metric -> a value per seed."""
    rows = [
        row(
            protocol=protocol, metric=metric, dataset=dataset, corruption=corruption,
            value=value, low=value, high=value, seed=seed, score="energy" * (metric == "auroc"),
        )
        for protocol, values in (("standard", standard), ("anchored", other))
        for metric, dataset, corruption in AIMS
        for seed, value in enumerate(values[metric])
    ]  # fmt: skip
    with style.drawing():
        (picture,) = radar.radar_figures(reading.read_summary(folder_of(path, rows)))
    return picture


def bars_of(picture: style.Picture) -> list[list[float]]:
    """From where to where the bars go, in the order of the axes."""
    lines: list[Any] = list(picture.figure.axes[0].lines)
    return [list(line.get_ydata()) for line in lines if line.get_marker() == "_"]


def test_the_radar_s_bars_are_the_paired_differences(tmp_path: Path) -> None:
    standard = {"accuracy": [70.0, 71, 72, 75], "smooth_ece": [0.2, 0.19, 0.21, 0.2], "auroc": [80.0, 81, 82, 83]}
    other = {"accuracy": [73.0, 75, 74, 79], "smooth_ece": [0.17, 0.18, 0.16, 0.17], "auroc": [79.0, 82, 84, 80]}
    picture = compared(tmp_path, standard, other)
    for metric, bar in zip(("accuracy", "smooth_ece", "auroc"), bars_of(picture), strict=True):
        before, after = (np.array(values[metric]) for values in (standard, other))
        if metric == "smooth_ece":
            before, after = 1 - before, 1 - after
        ends = stats.ttest_rel(after, before).confidence_interval(0.95)
        assert bar == pytest.approx([1 + end / before.mean() for end in ends])
    assert "paired difference to standard, over standard's mean. n = " in picture.caption
    assert picture.hints["radar-0-1"].startswith("Anchored: Calibration 1.0")


def test_a_given_model_is_beside_the_architecture_that_it_is_compared_with(tmp_path: Path) -> None:
    ways = [
        ("A", "standard"),
        ("A", "anchored"),
        ("B", "standard"),
        ("B", "anchored"),
        ("B", "ram"),
        ("Theirs", "given"),
    ]
    rows = [
        row(
            architecture=name, protocol=protocol, alpha=0.25 if protocol == "ram" else None, metric=metric,
            dataset=dataset, corruption=corruption, score="energy" * (metric == "auroc"), run=name + protocol,
            value=(0.2 if metric == "smooth_ece" else 70.0) + 0.01 * place,
        )
        for place, (name, protocol) in enumerate(ways)
        for metric, dataset, corruption in AIMS
    ]  # fmt: skip
    summary = reading.read_summary(folder_of(tmp_path, rows))
    with style.drawing():
        drawn = {picture.name: picture for picture in radar.radar_figures(summary)}
    first, second = (set(re.findall("(Anchored|RAM α=0.25|Theirs):", picture.alt)) for picture in drawn.values())
    assert first == {"Anchored", "Theirs"}
    assert second == {"Anchored", "RAM α=0.25"}
    looks = [style.variant_style(summary, variant) for variant in summary.of("B")]
    assert len(set(looks)) == len(looks)
    assert "same architecture, for given models of A;" in headline_table(summary).caption


def test_bars_that_would_leave_the_radar_are_cut(tmp_path: Path) -> None:
    standard = {"accuracy": [70.0, 71], "smooth_ece": [0.2, 0.19], "auroc": [60.0, 80]}
    picture = compared(tmp_path / "two", standard, {**standard, "auroc": [80.0, 70]})
    assert bars_of(picture)[-1] == [0.5, 1.5]
    assert "standard's mean, cut at 0.5 and 1.5. n = " in picture.caption
    single = {metric: values[:1] for metric, values in standard.items()}
    alone = compared(tmp_path / "one", single, single)  # one seed, and no replicates: there is no interval
    assert bars_of(alone) == []
    assert "Bars" not in alone.caption

"""Detector × training: the table, its differences, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

from fixtures.report_studies import folder_of, row

from anchored.config.recipe import Recipe
from anchored.config.settings import Evaluation
from anchored.report.detector_table import detector_tables
from anchored.report.narrative import readings
from anchored.report.reading import read_summary
from anchored.report.table import Table
from anchored.store.rows import Row

VALUES = {  # score -> AUROC of standard and of ram, near and far
    "energy": ((70.0, 75.0), (80.0, 81.0)),
    "vim": ((72.0, 71.0), (90.0, 96.0)),
    "knn:k=7": ((60.0, 64.0), (88.0, 88.0)),
}


def rows(seeds: tuple[int, ...] = (0, 1, 2), scores: tuple[str, ...] = tuple(VALUES)) -> list[Row]:
    """Every value with half a point between seeds."""
    return [
        row(
            metric=metric, dataset=f"mean-{kind}", score=score, seed=seed, protocol=protocol, run=f"{protocol}{seed}",
            alpha=0.25 if protocol == "ram" else None, value=value, low=value - 1, high=value + 1, n=500,
        )
        for score in scores
        for seed in seeds
        for kind, values in zip(("near", "far"), VALUES[score], strict=True)
        for protocol, auroc in zip(("standard", "ram"), values, strict=True)
        for metric, value in (("auroc", auroc + 0.5 * seed), ("fpr95", 100 - auroc - 0.5 * seed))
    ]  # fmt: skip


def tables(tmp_path: Path, made: list[Row]) -> list[Table]:
    recipe = Recipe(evaluate=Evaluation(ood=("blobs",), detectors=("vim", "knn:k=7")))
    return list(detector_tables(read_summary(folder_of(tmp_path, made, recipe))))


def test_each_detector_on_each_training(tmp_path: Path) -> None:
    table, other = tables(tmp_path, rows())
    assert [column.title for column in table.columns] == ["Detector", "Training", "Near", "Far", "Near", "Far"]
    assert [column.group for column in table.columns[2:]] == ["AUROC, %"] * 2 + ["FPR at 95 % TPR, %"] * 2
    names = [tuple(cell.text for cell in line[:2]) for line in table.rows]
    assert names[::2] == [("Energy", "Standard"), ("ViM", "Standard"), ("KNN k=7", "Standard")]
    assert names[1::2] == [("", "RAM α=0.25")] * 3
    assert [cell.text for cell in table.rows[3][2:]] == ["71.5", "96.5", "28.5", "3.5"]  # ViM, ram; mean of the seeds
    assert table.rows[3][2].change == "▼ −1.4 %"  # 72.5 → 71.5, the same by every seed
    assert table.rows[3][2].tone == table.rows[3][4].tone == "worse"
    assert table.rows[3][3].tone == table.rows[3][5].tone == "better"
    assert table.rows[5][3].tone == "unclear"  # 88 and 88
    assert not any(cell.change for line in table.rows[::2] for cell in line)
    assert "corrected for 12 comparisons (Holm)" in table.caption
    assert "seeds 0, 1 and 2" in table.caption
    assert "from training images" in table.caption
    assert "relative to Energy on the same network" in other.caption
    assert not any(cell.change for line in other.rows[:2] for cell in line)
    assert other.rows[3][2].change == "▼ −5.3 %"  # ViM against energy on ram: 75.5 → 71.5


def test_one_seed_and_no_kinds(tmp_path: Path) -> None:
    made = [each for each in rows((0,)) if each.dataset == "mean-far"]
    table = tables(tmp_path, made)[0]
    assert [column.title for column in table.columns[2:]] == ["Far", "Far"]
    assert table.rows[3][2].interval == "95.0–97.0"


def test_without_detectors_there_is_no_table(tmp_path: Path) -> None:
    assert tables(tmp_path, rows(scores=("energy",))) == []


def test_other_comparisons_are_not_of_detectors(tmp_path: Path) -> None:
    few, many = (
        read_summary(folder_of(tmp_path / name, rows(scores=scores), Recipe(evaluate=Evaluation(ood=("blobs",)))))
        for name, scores in (("few", ("energy",)), ("many", tuple(VALUES)))
    )
    assert list(readings(few)) == list(readings(many))

"""The paper's numbers: all 444 as printed, joined to rows by what they are figures of, in every format."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import runpy
from importlib import resources
from pathlib import Path

import pytest
from fixtures.report_studies import folder_of, row
from rich.console import Console

from anchored.config.recipe import Recipe
from anchored.config.settings import Data
from anchored.report import formats, paper, reading, tables
from anchored.report import page as report
from anchored.report.comparison import Summary, Variant
from anchored.report.table import Table
from anchored.store.layout import StudyFolder
from anchored.store.rows import Row

SHARED = [Path(__file__).parents[up] / "shared" / "paper" / "tables.csv" for up in (1, 2)]
FILE = resources.files("anchored") / "report" / "paper.csv"


def rows_of(trained_on: str, shift: float = 0.5, seeds: tuple[int, ...] = (0,), half: float = 0.2) -> list[Row]:
    """A study that found the paper's numbers, moved by ``shift`` (calibration errors by a hundredth of it)."""
    rows = []
    for seed in seeds:
        for each in paper.published_numbers():
            if each.trained_on == trained_on:
                unit = 1.0 if each.metric in ("auroc", "linear_probe_accuracy") else 0.01
                value = float(each.printed or "50") + (shift + seed) * unit
                rows.append(
                    row(
                        trained_on=trained_on,
                        architecture=each.variant.architecture,
                        protocol=each.variant.protocol,
                        alpha=each.variant.alpha,
                        metric=each.metric,
                        dataset=each.dataset,
                        severity=each.severity,
                        corruption="mean" if each.severity else "",
                        score="energy" if each.metric == "auroc" else "",
                        value=value,
                        low=value - half * unit,
                        high=value + half * unit,
                        seed=seed,
                        n=10_000,
                    )
                )
    clean = [dataclasses.replace(r, metric="accuracy", dataset=trained_on, severity=None, corruption="", score="")
             for r in {(r.architecture, r.protocol, r.alpha, r.seed): r for r in rows}.values()]  # fmt: skip
    return rows + clean


def study_of(path: Path, rows: list[Row], recipe: Recipe | None = None) -> Summary:
    return reading.read_summary(folder_of(path, rows, recipe))


# --- The numbers ------------------------------------------------------------------------------------------------------


def test_all_444_numbers_are_as_printed() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert len(paper.published_numbers()) == 444
    assert len({(each.table, each.trained_on, each.key) for each in paper.published_numbers()}) == 444
    digest = "97aca89ece790ad8e6f7f68cc67570fc9b6557f981551923488c288f09cb5a87"
    assert hashlib.sha256(text.encode()).hexdigest() == digest
    shared = next((path for path in SHARED if path.exists()), None)
    if shared:
        script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "build_paper.py"))
        assert text == script["normalised"](shared.read_text(encoding="utf-8"))


def test_numbers_under_our_names() -> None:
    found = {(each.table, *each.key): each.printed for each in paper.published_numbers()}
    standard, ram = Variant("ResNet-18", "standard", None, None), Variant("ResNet-18", "ram", 0.25, None)
    assert found[6, standard, "auroc", ("CIFAR-100", None)] == "87.16"
    assert found[7, ram, "smooth_ece", ("CIFAR-10-C", 1)] == "0.04"  # the table calls it severity 0
    assert found[7, ram, "smooth_ece", ("CIFAR-10-C", 5)] == "0.17"
    assert found[8, standard, "linear_probe_accuracy", ("CIFAR-10", None)] == ""  # printed 0 / 0: missing
    assert found[8, Variant("WRN-40-2", "standard", None, None), "auroc", ("LSUN (C)", None)] == "96.40"
    assert found[10, standard, "smooth_ece", ("ImageNet-C̄", 5)] == "0.239"
    assert sum(each.printed == "" for each in paper.published_numbers()) == 2
    assert {each.severity for each in paper.published_numbers()} == {None, 1, 2, 3, 4, 5}


# --- The join ---------------------------------------------------------------------------------------------------------

LAYOUT = {
    "CIFAR-10": {"paper_table6_ood": (5, 7), "paper_table7_calibration": (5, 5)},
    "CIFAR-100": {"paper_table8_ood": (8, 7), "paper_table8_adaptation": (8, 7), "paper_table9_calibration": (8, 5)},
    "ImageNet": {"paper_table10_calibration": (11, 10), "paper_table11_ood": (11, 6)},
}


@pytest.mark.parametrize("trained_on", LAYOUT)
def test_every_cell_of_every_table_has_both_sides(tmp_path: Path, trained_on: str) -> None:
    found = {table.name: table for table in paper.paper_tables(study_of(tmp_path, rows_of(trained_on)))}
    assert {name: (len(t.rows) // 3, len(t.columns) - 3) for name, t in found.items()} == LAYOUT[trained_on]
    for table in found.values():
        assert [each[2].text for each in table.rows] == ["paper", "here", "diff."] * (len(table.rows) // 3)
        empty = [(i, cell) for i, each in enumerate(table.rows) for cell in each[3:] if "—" in cell.text]
        assert len(empty) == (2 if table.name == "paper_table8_adaptation" else 0)  # the paper's 0 / 0, no difference


def cells(table: Table, variant: str, column: str) -> list[tuple[str, str]]:
    place = [each.title for each in table.columns].index(column)
    start = [each[1].text for each in table.rows].index(variant)
    return [(each[place].text, each[place].interval) for each in table.rows[start : start + 3]]


def test_paper_here_and_difference_of_one_seed(tmp_path: Path) -> None:
    ood, adaptation, calibration = paper.paper_tables(study_of(tmp_path, rows_of("CIFAR-100")))
    assert cells(ood, "RAM α=0.125", "LSUN (R)") == [("79.21", ""), ("79.71", "79.5–79.9"), ("+0.50", "")]
    assert cells(adaptation, "Anchored", "DTD") == [
        ("25.95 / 0.402", ""), ("26.45 / 0.407", "26.2–26.6 / 0.405–0.409"), ("+0.50 / +0.005", ""),
    ]  # fmt: skip
    # The paper prints two decimals: 0.07 may be 0.075, which lies within 0.073 to 0.077.
    assert cells(calibration, "Standard", "Sev. 1") == [("0.07", ""), ("0.075", "0.073–0.077"), ("≈\u00a0+0.005", "")]
    assert "95 % bootstrap interval over test images" in ood.caption
    assert "n = 10,000 test images; seed 0" in ood.caption
    assert "printed as 0 / 0, is taken as missing" in adaptation.caption


def test_a_wide_interval_that_holds_the_papers_number_is_marked(tmp_path: Path) -> None:
    ood, *_ = paper.paper_tables(study_of(tmp_path, rows_of("CIFAR-10", shift=-0.5, half=0.6)))
    assert cells(ood, "Standard", "iSUN") == [("94.05", ""), ("93.55", "93.0–94.1"), ("≈\u00a0−0.50", "")]


def test_several_seeds_have_an_interval_over_seeds(tmp_path: Path) -> None:
    ood, *_ = paper.paper_tables(study_of(tmp_path, rows_of("CIFAR-10", seeds=(0, 1, 2))))
    # Values v + 0.5, v + 1.5, v + 2.5: mean v + 1.5, half-width 4.302653 / √3 = 2.48.
    assert cells(ood, "Standard", "iSUN") == [("94.05", ""), ("95.55", "± 2.5"), ("≈\u00a0+1.50", "")]
    assert "Student-t interval over seeds" in ood.caption
    assert "seeds 0, 1 and 2" in ood.caption


def test_what_is_missing_on_either_side_is_marked(tmp_path: Path) -> None:
    kept = [r for r in rows_of("CIFAR-10") if r.dataset != "iSUN" and r.alpha != 0.125]
    more = [dataclasses.replace(r, alpha=0.5) for r in kept if r.alpha == 0.25]
    ood, _ = paper.paper_tables(study_of(tmp_path, [*kept, *more]))
    assert [t for each in ood.rows if (t := each[1].text)] == [
        "Standard", "Anchored", "RAM α=0.0625", "RAM α=0.125", "RAM α=0.25", "RAM α=0.5",
    ]  # fmt: skip
    assert [text for text, _ in cells(ood, "Standard", "iSUN")] == ["94.05", "—", "—"]
    assert [text for text, _ in cells(ood, "RAM α=0.125", "Textures")] == ["91.47", "—", "—"]
    assert [text for text, _ in cells(ood, "RAM α=0.5", "Textures")] == ["—", "90.52", "—"]


def test_different_numbers_of_images_are_not_averaged(tmp_path: Path) -> None:
    rows = [dataclasses.replace(r, n=r.n - r.seed) for r in rows_of("CIFAR-10", seeds=(0, 1))]
    ood, *_ = paper.paper_tables(study_of(tmp_path, rows))
    assert [text for text, _ in cells(ood, "Standard", "iSUN")] == ["94.05", "—‡", "—"]
    assert "‡ not averaged" in ood.caption


def test_another_score_or_another_training_set_meets_nothing(tmp_path: Path) -> None:
    other = [dataclasses.replace(r, score="entropy") for r in rows_of("CIFAR-10") if r.metric in ("auroc", "accuracy")]
    assert paper.paper_tables(study_of(tmp_path / "score", other)) == []
    assert paper.paper_tables(study_of(tmp_path / "set", [row()])) == []


def test_a_trial_says_so(tmp_path: Path) -> None:
    found = study_of(tmp_path, rows_of("CIFAR-10"), Recipe(data=Data(fraction=0.02)))
    assert all("A trial on 2 % of the images" in table.caption for table in paper.paper_tables(found))


# --- The formats ------------------------------------------------------------------------------------------------------


def printed(folder: StudyFolder, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    found = reading.read_summary(folder)
    shown = (tables.headline_table(found), *paper.paper_tables(found))
    console.print(*(part for table in shown for part in formats.terminal(table, width)))
    return console.export_text()


@pytest.mark.parametrize("trained_on", LAYOUT)
@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_keeps_every_number_whole(tmp_path: Path, trained_on: str, width: int) -> None:
    folder = folder_of(tmp_path, rows_of(trained_on))
    text = printed(folder, width)
    assert max(map(len, text.splitlines())) <= width
    for table in paper.paper_tables(reading.read_summary(folder)):
        for cell in (cell for each in table.rows for cell in each):
            assert all(part in text for part in cell.text.split(" / "))
    assert "…" not in text


def test_table_8_takes_a_hundred_columns_whole(tmp_path: Path) -> None:
    (ood, *_) = paper.paper_tables(study_of(tmp_path, rows_of("CIFAR-100")))
    assert len(formats.terminal(ood, 100)) == 1
    assert [len(part.columns) for part in formats.terminal(ood, 80)] == [3 + 4, 3 + 3]


def test_severities_of_two_sets_stand_apart(tmp_path: Path) -> None:
    (calibration, _) = paper.paper_tables(study_of(tmp_path, rows_of("ImageNet")))
    parts = formats.terminal(calibration, 100)
    assert [str(part.title).splitlines()[1] for part in parts] == [
        "ImageNet-C, Smooth ECE ↓", "ImageNet-C̄, Smooth ECE ↓",
    ]  # fmt: skip
    markdown, latex = formats.markdown(calibration), formats.latex(calibration)
    assert "ImageNet-C̄, Smooth ECE ↓ · Sev. 5" in markdown
    assert r"\multicolumn{5}{c}{ImageNet-\={C}, Smooth ECE $\downarrow$}" in latex
    assert latex.count(r"\addlinespace") == 11 - 1  # between variants, not between a variant's three lines


def test_the_page_and_the_files_have_it(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, rows_of("CIFAR-10"))
    page = report.write(folder).read_text(encoding="utf-8")
    assert '<section id="paper">' in page
    assert "Table 6 of the paper beside this study" in page
    assert page.count('<tr class="more">') == 2 * 2 * 5
    names = {path.name for path in folder.tables.iterdir()}
    assert {f"paper_{name}.{kind}" for name in ("table6_ood", "table7_calibration") for kind in ("md", "tex")} <= names


def with_older(rows: list[Row]) -> list[Row]:
    """The rows, and as many by the paper's estimator, lower by 0.01."""
    older = {"smooth_ece": "smooth_ece_old", "linear_probe_ece": "linear_probe_ece_old"}
    ends = ("value", "low", "high")
    return rows + [
        dataclasses.replace(r, metric=older[r.metric], **{name: getattr(r, name) - 0.01 for name in ends})
        for r in rows
        if r.metric in older
    ]


def test_smooth_ece_is_joined_by_the_papers_estimator(tmp_path: Path) -> None:
    """Here and difference by relplot 1.0, as the reference code; the newer one, our headline, in a row of its own."""
    _, adaptation, calibration = paper.paper_tables(study_of(tmp_path, with_older(rows_of("CIFAR-100"))))
    column = [each.title for each in calibration.columns].index("Sev. 1")
    assert [(each[2].text, each[column].text) for each in calibration.rows[:4]] == [
        ("paper", "0.07"), ("here", "0.065"), ("diff.", "≈\u00a0−0.005"), ("here, 1.0.3", "0.075"),
    ]  # fmt: skip
    start = [each[1].text for each in adaptation.rows].index("Anchored")
    column = [each.title for each in adaptation.columns].index("DTD")
    texts = [each[column].text for each in adaptation.rows[start : start + 4]]
    assert texts == ["25.95 / 0.402", "26.45 / 0.397", "+0.50 / −0.005", "26.45 / 0.407"]
    for table in (adaptation, calibration):
        assert "relplot 1.0's, which the reference code pins" in table.caption
        assert "relplot 1.0.3, this report's headline" in table.caption


def test_rows_of_before_are_read_and_their_estimator_is_named(tmp_path: Path) -> None:
    ood, calibration = paper.paper_tables(study_of(tmp_path, rows_of("CIFAR-10")))
    assert "the paper's by relplot 1.0, this study's by relplot 1.0.3" in calibration.caption
    assert "relplot" not in ood.caption

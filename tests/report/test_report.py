"""The report's numbers and words: aggregation, comparison, escaping, formats, refusals."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tex
from fixtures.report_studies import SEVERITIES, folder_of, make_study, row
from rich.console import Console

from anchored.config.recipe import Recipe
from anchored.config.settings import Grid, PerNetwork, Training
from anchored.errors import UserError
from anchored.metrics.bounded import wilson_interval
from anchored.report import aggregate as estimates
from anchored.report import diagnostics as panels
from anchored.report import formats, reading, style, tables
from anchored.report import narrative as words
from anchored.report import page as report
from anchored.report.decisions import decision_text
from anchored.report.table import Column, Table, TableCell
from anchored.store import files as disk
from anchored.store.rows import Row


def estimate(*values: float, n: int = 100, metric: str = "accuracy", half: float = 2.0) -> estimates.Estimate:
    """Values of seeds 0, 1 …, each ± half over images."""
    return estimates.Estimate(
        tuple(row(seed=i, value=v, low=v - half, high=v + half, n=n, metric=metric) for i, v in enumerate(values))
    )


# --- Aggregation ------------------------------------------------------------------------------------------------------


def test_several_seeds_are_a_mean_with_students_interval() -> None:
    # Values 1, 2, 3: mean 2, s = 1, t(0.975, 2) = 4.302653, half-width 4.302653 / √3.
    value, low, high = estimate(1.0, 2.0, 3.0).interval
    assert value == pytest.approx(2.0)
    assert high - value == pytest.approx(4.302652729911275 / math.sqrt(3))
    assert value - low == pytest.approx(high - value)


def test_one_seed_keeps_its_interval_over_images() -> None:
    assert estimate(50.0).interval == (50.0, 48.0, 52.0)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({}, "for 1 epoch: "),
        ({"epochs": 300}, "for 1 and 300 epochs: "),
        ({"epochs": 1, "batch_size": 8}, "for 1 epoch: "),
    ],
)
def test_epochs_are_those_of_each_network(tmp_path: Path, own: Any, said: str) -> None:
    grid = Grid(networks=("small", "resnet18"), per_network={"resnet18": PerNetwork(train=own)})
    recipe = Recipe(grid=grid, train=Training(epochs=1))
    assert said in next(words.what_was_run(reading.read_summary(folder_of(tmp_path, [row()], recipe))))


def test_different_numbers_of_images_are_never_averaged(tmp_path: Path) -> None:
    rows = [row(seed=0, value=10.0, n=100), row(seed=1, value=90.0, n=200)]
    found = reading.read_summary(folder_of(tmp_path, rows))
    mixed = found.get(found.variants[0], "accuracy", "Data")
    assert mixed is not None
    assert mixed.mixed
    assert math.isnan(mixed.value)
    table = tables.headline_table(found)
    assert table.rows[0][1].text == "—‡"
    assert "‡ not averaged" in table.caption
    assert "50.0" not in formats.markdown(table)


def test_means_over_different_corruptions_are_not_compared(tmp_path: Path) -> None:
    def of(protocol: str, *kinds: str) -> list[Row]:
        base = row(protocol=protocol, run=protocol)
        corrupted = dataclasses.replace(base, dataset="Data-C", severity=1)
        each = [dataclasses.replace(corrupted, corruption=kind) for kind in kinds]
        mean = dataclasses.replace(corrupted, corruption="mean", severity=None, value=50.0 + len(kinds))
        return [base, *each, mean]

    for other, compared in (("fog", False), ("blur", True)):
        found = reading.read_summary(folder_of(tmp_path / other, [*of("standard", "blur"), *of("anchored", other)]))
        table = tables.headline_table(found)
        assert ("their means are not compared" in table.caption) is not compared
        measure = next(each for each in found.measures if each.dataset == "Data-C")
        assert (found.difference(found.variants[1], measure) is not None) is compared


def test_a_figure_of_fewer_seeds_is_marked(tmp_path: Path) -> None:
    rows = [row(seed=0), row(seed=1), row(protocol="anchored", seed=0)]
    table = tables.headline_table(reading.read_summary(folder_of(tmp_path, rows)))
    assert [each[1].text for each in table.rows] == ["50.0", "50.0†"]
    assert "† only seed 0." in table.caption


def test_variants_come_in_order(tmp_path: Path) -> None:
    rows = [row(protocol="ram", alpha=a, run=str(a)) for a in (0.25, 0.0625)]
    rows += [row(protocol="anchored"), row(), row(protocol="ram", alpha=0.25, tail_weight=0.1)]
    titles = [variant.title for variant in reading.read_summary(folder_of(tmp_path, rows)).variants]
    assert titles == ["Standard", "Anchored", "RAM α=0.0625", "RAM α=0.25", "RAM α=0.25, λ=0.1"]


# --- Comparison -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "metric", "before", "after", "relative", "clear", "better"),
    [
        ("higher accuracy is better", "accuracy", 50.0, 60.0, 0.2, True, True),
        ("lower accuracy is worse", "accuracy", 60.0, 45.0, -0.25, True, False),
        ("lower smooth ECE is better", "smooth_ece", 20.0, 10.0, -0.5, True, True),
        ("higher smooth ECE is worse", "smooth_ece", 10.0, 20.0, 1.0, True, False),
        ("overlap", "accuracy", 50.0, 53.0, 0.06, False, True),
        ("touching ends", "accuracy", 50.0, 54.0, 0.08, False, True),
    ],
)
def test_change_of_one_seed(
    name: str, metric: str, before: float, after: float, relative: float, clear: bool, better: bool
) -> None:
    change = estimates.compare_estimates(estimate(after, metric=metric), estimate(before, metric=metric))
    assert change is not None
    assert change.relative == pytest.approx(relative)
    assert (change.clear, change.better) == (clear, better)


def test_seeds_are_compared_in_pairs() -> None:
    # The spread over seeds is large, the paired difference is 1 ± 0.1: clear though the intervals overlap.
    base, mine = estimate(10.0, 50.0, 90.0), estimate(11.0, 51.1, 90.9)
    change = estimates.compare_estimates(mine, base)
    assert change is not None
    assert (change.clear, change.better, change.seeds) == (True, True, 3)
    assert change.after - change.before == pytest.approx(1.0)
    noisy = estimates.compare_estimates(estimate(20.0, 40.0, 95.0), base)
    assert noisy is not None
    assert not noisy.clear


def test_one_seed_is_compared_on_shared_resamples() -> None:
    # The two intervals overlap widely, but what moves both figures alike cancels: 0.5 ± 0.1 is clear.
    draw = torch.Generator().manual_seed(0)
    shared = 3 * torch.randn(500, generator=draw)
    draws = {50.0: 50 + shared, 50.5: 50.5 + shared + 0.05 * torch.randn(500, generator=draw)}
    mine, base = estimate(50.5), estimate(50.0)
    change = estimates.compare_estimates(mine, base, lambda row: draws[row.value])
    assert change is not None
    assert change.clear
    assert (change.low, change.high) == pytest.approx((0.4, 0.6), abs=0.02)
    assert estimates.compare_estimates(mine, base, lambda row: draws[row.value][: int(row.value * 2)]).clear is False  # type: ignore[union-attr]
    assert estimates.compare_estimates(mine, base).clear is False  # type: ignore[union-attr]


def test_changes_of_one_table_are_corrected_for_their_number() -> None:
    change = estimates.Difference(50.0, 51.0, low=0.1, high=1.9, p=0.02, clear=True, better=True, seeds=1)
    told = estimates.Difference(50.0, 51.0, low=math.nan, high=math.nan, p=math.nan, clear=True, better=True, seeds=1)
    three = estimates.holm_corrected({"a": change, "b": dataclasses.replace(change, p=0.001), "c": change, "d": told})
    assert [each.p for each in three.values()] == pytest.approx([0.04, 0.003, 0.04, math.nan], nan_ok=True)
    assert [each.clear for each in three.values()] == [True, True, True, True]
    four = estimates.holm_corrected(dict.fromkeys("abc", change))
    assert not any(each.clear for each in four.values())


def test_only_common_seeds_are_compared() -> None:
    mine = estimates.Estimate(tuple(row(seed=i, value=v, low=v, high=v) for i, v in ((1, 20.0), (2, 40.0))))
    change = estimates.compare_estimates(mine, estimate(0.0, 10.0))  # seed 1 is the only common one
    assert change is not None
    assert (change.before, change.after, change.seeds) == (10.0, 20.0, 1)


@pytest.mark.parametrize(
    ("name", "mine", "base"),
    [
        ("other n", estimate(1.0, n=100), estimate(1.0, n=200)),
        ("other corruptions", dataclasses.replace(estimate(1.0), kinds=frozenset({("fog", 1)})), estimate(1.0)),
        ("nothing", estimate(1.0), None),
        ("no common seed", estimates.Estimate((row(seed=7),)), estimate(1.0)),
    ],
)
def test_what_cannot_be_compared_is_not(name: str, mine: estimates.Estimate, base: estimates.Estimate | None) -> None:
    assert estimates.compare_estimates(mine, base) is None


def test_a_change_from_zero_has_no_share() -> None:
    change = estimates.compare_estimates(estimate(0.5), estimate(0.0))
    assert change is not None
    assert change.relative is None
    assert tables.relative_text(change) == "+0.500"


# --- Words ------------------------------------------------------------------------------------------------------------


def test_decisions_are_told_of_the_networks_that_have_them(tmp_path: Path) -> None:
    rows = [
        row(protocol=protocol, run=protocol, metric=metric)
        for protocol, metric in (("standard", "aurc"), ("anchored", "aurc"), ("anchored", "set_coverage"))
    ]
    said = " ".join(decision_text(reading.read_summary(folder_of(tmp_path, rows))))
    assert said.startswith("For each network but Standard a threshold")
    assert "There were no such images for Standard, or too few." in said
    whole = [*rows, row(run="standard", metric="set_coverage")]
    said = " ".join(decision_text(reading.read_summary(folder_of(tmp_path / "whole", whole))))
    assert said.startswith("For each network a threshold")
    assert "no such images" not in said


def test_reading_tells_both_ways(tmp_path: Path) -> None:
    def of(protocol: str, clean: float, error: float, auroc: float) -> list[Row]:
        return [
            row(protocol=protocol, value=clean, low=clean - 1, high=clean + 1),
            row(protocol=protocol, metric="smooth_ece", value=error, low=error - 0.01, high=error + 0.01),
            row(protocol=protocol, metric="auroc", dataset="mean", score="energy", value=auroc, low=0, high=100),
        ]

    found = reading.read_summary(folder_of(tmp_path, [*of("standard", 90, 0.2, 80), *of("anchored", 80, 0.1, 81)]))
    (said,) = words.readings(found)
    assert said.title == "Anchored against standard"
    assert said.better == ("lower smooth ECE on clean images (0.200 → 0.100)",)
    assert said.worse == ("lower clean accuracy (90.0 → 80.0 %)",)
    assert said.unclear == ("OOD AUROC (80.0 → 81.0 %)",)
    assert "trained once" in words.caution(found)


def test_reading_tells_what_masking_does_and_where_other_scores_disagree(tmp_path: Path) -> None:
    def of(protocol: str, alpha: float | None, energy: float, entropy: float) -> list[Row]:
        plain = row(protocol=protocol, alpha=alpha, metric="auroc", dataset="mean")
        values = {"energy": energy, "entropy": entropy, "max_logit": energy}
        return [dataclasses.replace(plain, score=k, value=v, low=v - 1, high=v + 1) for k, v in values.items()]

    rows = [*of("standard", None, 70, 80), *of("anchored", None, 90, 80.5), *of("ram", 0.25, 75, 60)]
    found = list(words.readings(reading.read_summary(folder_of(tmp_path, rows))))
    assert [(r.title, r.better, r.worse, r.scores) for r in found] == [
        ("Anchored against standard", ("higher OOD AUROC (70.0 → 90.0 %)",), (),
         "entropy 80.0 → 80.5 % (no clear difference)"),
        ("RAM α=0.25 against standard", ("higher OOD AUROC (70.0 → 75.0 %)",), (),
         "entropy 80.0 → 60.0 % (clearly worse)"),
        ("RAM α=0.25 against anchored: what masking does", (), ("lower OOD AUROC (90.0 → 75.0 %)",), ""),
    ]  # fmt: skip


def test_without_a_standard_network_nothing_is_compared(tmp_path: Path) -> None:
    found = reading.read_summary(folder_of(tmp_path, [row(protocol="anchored"), row(protocol="ram", alpha=0.25)]))
    assert [each.title for each in words.readings(found)] == ["RAM α=0.25 against anchored: what masking does"]
    assert "There is no standard network to compare with." in tables.headline_table(found).caption
    assert any("no standard network" in sentence for sentence in words.missing_parts(found, []))


def test_only_the_seconds_of_these_runs_count(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row(run="a"), row(seed=1, run="b"), row(seed=2, run="../elsewhere")])
    disk.write_text(folder.run("a").log_file, "epoch,seconds\n1,60.5\n2,60.5\n")
    disk.write_text(folder.run("b").log_file, "broken\n1\n")
    disk.write_text(tmp_path / "elsewhere" / "training.csv", "epoch,seconds\n1,999\n")
    assert words.training_seconds(reading.read_summary(folder)) == {"a": 121.0}


# --- Formats ----------------------------------------------------------------------------------------------------------

TINY = Table(
    name="tiny",
    title="A & B",
    columns=(Column("Training"), Column("Accuracy, %", "↑", "50 %_of|all")),
    rows=(
        (TableCell("Standard"), TableCell("70.0", "68.0–72.0")),
        (TableCell("RAM α=0.25"), TableCell("75.0†", "± 1.0", "▲ +7.1 %", "better")),
    ),
    caption="n = 100 <images>.",
)


def test_markdown_golden() -> None:
    assert formats.markdown(TINY) == (
        "**A & B** · 50 %\\_of\\|all\n\n"
        "| Training | Accuracy, % ↑ |\n"
        "| --- | ---: |\n"
        "| Standard | 70.0 (68.0–72.0) |\n"
        "| RAM α=0.25 | 75.0† ± 1.0 ▲ +7.1 % |\n\n"
        "n = 100 \\<images\\>.\n"
    )


def test_latex_golden() -> None:
    assert formats.latex(TINY) == (
        "% needs \\usepackage{booktabs}\n"
        "\\begin{table}\n"
        "\\centering\n"
        "\\caption{A \\& B. n = 100 \\textless{}images\\textgreater{}.}\n"
        "\\label{tab:tiny}\n"
        "\\begin{tabular}{lr}\n"
        "\\toprule\n"
        "\\multicolumn{1}{c}{} & \\multicolumn{1}{c}{50 \\%\\_of\\textbar{}all} \\\\\n"
        "\\cmidrule(lr){2-2}\n"
        "Training & Accuracy, \\% $\\uparrow$ \\\\\n"
        "\\midrule\n"
        "Standard & \\shortstack[r]{70.0 \\\\ \\scriptsize (68.0--72.0)} \\\\\n"
        "\\addlinespace\n"
        "RAM $\\alpha$=0.25 & \\shortstack[r]{75.0\\dag{} \\\\ \\scriptsize $\\pm$ 1.0 \\\\ "
        "\\scriptsize $\\uparrow$ +7.1 \\%} \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
        "\\end{table}\n"
    )


def test_terminal_takes_names_as_they_are() -> None:
    names = ("[red]x[/red]", "x[/b]")
    columns = (Column("Training"), Column(names[1], "↑", names[1]))
    cells = (TableCell(names[0]), TableCell("1", names[1], names[1]))
    hostile = dataclasses.replace(TINY, title=names[1], caption=names[0], columns=columns, rows=(cells,))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(*formats.terminal(hostile, 80))
    text = console.export_text()
    assert text.count("[red]x[/red]") == 2
    assert text.count("x[/b]") == 5


SIGNS = (
    "≥ ≤ ≈ ± − – — × · ° ≠ → ▲ ▼ ↑ ↓ † ‡ α λ Δ ε µ é ü ñ ç č ő å Ø ß C̄ “x” ’ … 中 \u00a0 \u200b "
    '[x] * ~ ^ \\ { } & % $ # _ < > | "'
)
"""Whatever a title, a name of a data set or a caption may hold."""


def test_latex_is_ascii() -> None:
    assert formats.tex_escaped("p ≥ 0.05") == r"p $\geq$ 0.05"
    assert formats.tex_escaped("Málaga-C\u0304 ≠ ß") == r"M\'{a}laga-\={C} $\neq$ \ss{}"
    assert formats.tex_escaped("中[") == "{[}U+4E2D]{[}"
    assert formats.tex_escaped("≈\u00a0−0.5") == r"$\approx$~$-$0.5"
    row = (TableCell(SIGNS), TableCell(SIGNS, SIGNS, SIGNS))
    assert formats.latex(dataclasses.replace(TINY, title=SIGNS, caption=SIGNS, rows=(row, row))).isascii()


@pytest.mark.skipif(tex.COMPILER is None, reason="no pdflatex to compile the tables with (texlive-latex-base)")
def test_every_table_compiles(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", n=60, parts=("corruption", "ood", "adaptation"))
    found = reading.read_summary(folder)
    row = (TableCell("[x] *"), TableCell(SIGNS, SIGNS, SIGNS))
    hostile = dataclasses.replace(TINY, title=SIGNS, caption=SIGNS, rows=(row, row))
    texts = [formats.latex(table) for table in (*tables.result_tables(found), hostile)]
    tex.compile_tables(texts, tmp_path)


def test_severity_table_has_the_layout_of_the_papers_table_7(tmp_path: Path) -> None:
    found = reading.read_summary(make_study(tmp_path, n=60, parts=("corruption",)))
    table = tables.severity_table(found, found.families[0], "smooth_ece")
    assert [column.title for column in table.columns] == [
        "Architecture", "Anchoring?", "Reference masking?", "α", *(f"Sev. {s}" for s in SEVERITIES),
    ]  # fmt: skip
    assert [[cell.text for cell in each[:4]] for each in table.rows] == [
        ["ResNet-8", "No", "No", "–"],
        ["ResNet-8", "Yes", "No", "–"],
        ["ResNet-8", "Yes", "Yes", "0.25"],
    ]
    means = [r for r in found.rows if (r.protocol, r.corruption, r.metric) == ("ram", "mean", "smooth_ece")]
    assert [cell.text for cell in table.rows[2][4:]] == [f"{r.value:.3f}" for r in means if r.severity]


# --- Figures ----------------------------------------------------------------------------------------------------------


def test_bins_and_wilson_by_hand() -> None:
    confidence = torch.tensor([0.05, 0.50, 0.52, 1.0], dtype=torch.float64)
    correct = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    found = panels.reliability_bins(panels.Confidences(confidence, correct, 0.0))
    assert [place for place, _, _ in found] == pytest.approx([0.05, 0.51, 1.0])
    assert [(share, count) for _, share, count in found] == [(0.0, 1), (0.5, 2), (1.0, 1)]
    # Brown, Cai & DasGupta's form: 8 of 10 gives 0.4901625 to 0.9433178.
    assert wilson_interval(0.8, 10, 0.95) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)


def test_copies_of_an_image_are_one_image() -> None:
    draw = torch.Generator().manual_seed(0)
    confidence = torch.rand(200, generator=draw, dtype=torch.float64)
    correct = (torch.rand(200, generator=draw) < confidence).double()
    once = panels.Confidences(confidence, correct, 0.0)
    thrice = panels.Confidences(confidence.repeat(3), correct.repeat(3), 0.0, copies=3)
    assert [point[2] for point in panels.reliability_bins(thrice)] == pytest.approx(
        [point[2] for point in panels.reliability_bins(once)]
    )
    drawn = []
    for images in (once, thrice):
        ranked = panels.Ranked.of(images)
        weights = ranked.resampled(torch.Generator().manual_seed(1))
        drawn.append(ranked.curve.risk(weights, panels.COVERAGES))
    torch.testing.assert_close(*drawn)


def test_a_bins_interval_rests_on_the_images_that_it_has_most_copies_of() -> None:
    # Of images 0 and 1 under three corruptions, the bin of 1.0 has three copies of the one and one of the other: Kish's
    # number of images is (3 + 1)² / (9 + 1) = 1.6.
    confidence = torch.tensor([1.0, 1.0, 1.0, 0.1, 1.0, 0.1], dtype=torch.float64)
    found = panels.reliability_bins(panels.Confidences(confidence, torch.ones(6).double(), 0.0, copies=3))
    assert [size for _, _, size in found] == pytest.approx([1.0, 1.6])


def test_half_of_each_resample_is_out_of_distribution(tmp_path: Path) -> None:
    summary = reading.read_summary(make_study(tmp_path, n=60, parts=("clean", "ood")))
    variant = summary.variants[0]
    clean = panels.pooled_confidences(summary.run_of(variant)[0], ["test"])
    ranked = panels._mixed(summary, variant, clean)
    assert ranked is not None
    drawn = ranked.resampled(torch.Generator().manual_seed(0))
    inside, *outside = torch.split(drawn, [size for size, _ in ranked.sets], dim=1)
    assert len(outside) > 1
    torch.testing.assert_close(inside.sum(1), torch.ones(panels.RESAMPLES, dtype=torch.float64))
    for each in outside:
        torch.testing.assert_close(each.sum(1), torch.full((panels.RESAMPLES,), 1 / len(outside)).double())


def test_titles_of_ood_sets_are_the_catalogs(tmp_path: Path) -> None:
    folder = make_study(tmp_path, n=60, parts=("ood",))
    study = disk.read_json(folder.study_file)
    study["recipe"]["evaluate"]["ood"] = ["digits", "own-images"]
    disk.write_json(folder.study_file, study)
    assert panels.ood_titles(reading.read_summary(folder)) == {"digits": "MNIST digits", "own-images": "Own images"}


def test_files_are_the_same_again(tmp_path: Path) -> None:
    folder = make_study(tmp_path, n=60)
    made = []
    for _ in range(2):
        report.write(folder)
        files = [folder.report_file, *sorted(folder.figures.iterdir()), *sorted(folder.tables.iterdir())]
        made.append({file.name: file.read_bytes() for file in files})
    assert made[0].keys() == made[1].keys()
    assert [name for name in made[0] if made[0][name] != made[1][name]] == []
    names = ("radar", "severity", "corruptions-accuracy", "corruptions-smooth_ece", "reliability", "scores")
    wanted = [*names, "examples-corruptions", "examples-ood"]
    assert {file.name for file in folder.figures.iterdir()} == {
        f"{w}.{kind}" for w in wanted for kind in ("png", "pdf")
    }
    assert b"/CreationDate" not in made[0]["radar.pdf"]
    assert b"/FontFile2" in made[0]["severity.pdf"]  # TrueType, embedded


def test_settings_of_matplotlib_are_left_alone() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    with style.drawing():
        assert mpl.rcParams["pdf.fonttype"] == 42
    assert dict(mpl.rcParams) == before


def test_the_headline_fits_a_narrow_terminal(tmp_path: Path) -> None:
    headline = tables.headline_table(reading.read_summary(make_study(tmp_path, n=60)))
    (table,) = formats.terminal(headline, 80)
    assert table.row_count == 3
    assert len(table.columns) == 7


# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows", "says"),
    [
        ("empty", [], "has no rows"),
        ("metric", [row(), row(metric="top5")], "line 3: metric 'top5'"),
        ("protocol", [row(protocol="other")], "line 2: protocol 'other'"),
        ("two training sets", [row(), row(trained_on="Else")], "line 3: trained on 'Else'"),
        ("twice", [row(), row(value=1.0)], "line 3: says the same as line 2"),
        ("nan", [row(value=math.nan)], "line 2: value is nan"),
        ("no images", [row(n=0)], "line 2: n is 0"),
        ("no seed", [row(seed=None)], "line 2: seed is missing"),
    ],
)
def test_foreign_rows_are_refused_by_line(tmp_path: Path, name: str, rows: list[Row], says: str) -> None:
    folder = folder_of(tmp_path, rows)
    with pytest.raises(UserError, match=says) as caught:
        report.write(folder)
    assert str(folder.results_file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_old_results_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row()])
    disk.write_text(folder.results_file, "protocol,value\nram,1\n")
    with pytest.raises(UserError, match=r"results\.csv: the first line must name the columns"):
        report.write(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"recipe": 3}'])
def test_foreign_study_file_is_refused(tmp_path: Path, content: str) -> None:
    folder = folder_of(tmp_path, [row()])
    disk.write_text(folder.study_file, content)
    with pytest.raises(UserError, match="does not describe a study"):
        report.write(folder)


def test_a_recipe_without_a_setting_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row()])
    disk.write_json(folder.study_file, {"recipe": {"name": "old"}})
    with pytest.raises(UserError, match=r"no setting evaluate\.score"):
        report.write(folder)

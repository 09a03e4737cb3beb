"""A choice on the report: what hand-made figures must make it say."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from fixtures.report_studies import row

from anchored.config.recipe import Recipe
from anchored.config.settings import Validation
from anchored.report import choice, formats, reading, style
from anchored.report import comparison as summary
from anchored.report import page as report
from anchored.store import files
from anchored.store.layout import StudyFolder
from anchored.store.rows import Row, read_rows, write_rows

Figures = tuple[float, float, float, float, float]  # clean, corruption accuracy, its smooth ECE, AUROC, adaptation
Way = tuple[str, float | None, float | None]
STANDARD, ANCHORED = ("standard", None, None), ("anchored", None, None)
LOW, HIGH = ("ram", 0.1, None), ("ram", 0.5, None)

HELD_OUT: dict[Way, Figures] = {
    STANDARD: (95, 60, 0.2, 80, 80),  # errors 0.4, 0.2, 0.2, 0.2
    ANCHORED: (95, 60, 0.2, 80, 70),  # beaten by standard
    LOW: (94.5, 70, 0.1, 90, 80),  # 0.3, 0.1, 0.1, 0.2: mean 0.0006 ** ¼
    HIGH: (93, 80, 0.1, 90, 80),  # better still, but 2 points of clean accuracy gone
}
TEST: dict[Way, Figures] = {
    STANDARD: (95, 50, 0.2, 80, 80),
    ANCHORED: (95, 60, 0.2, 80, 80),
    LOW: (95, 60, 0.1, 80, 80),  # 0.4, 0.1, 0.2, 0.2
    HIGH: (95, 60, 0.1, 95, 80),  # 0.4, 0.1, 0.05, 0.2: AUROC's error a quarter
}


def rows_of(
    figures: dict[Way, Figures], family: str, seeds: tuple[int, ...], architectures: tuple[str, ...]
) -> list[Row]:
    places = [
        ("accuracy", "Data", ""),
        ("accuracy", f"Data-{family}", "mean"),
        ("smooth_ece", f"Data-{family}", "mean"),
    ]
    places += [("auroc", "mean", ""), ("linear_probe_accuracy", "mean", "")]
    return [
        row(
            architecture=architecture, protocol=protocol, alpha=alpha, tail_weight=weight, seed=seed, metric=metric,
            dataset=dataset, corruption=corruption, score="energy" * (metric == "auroc"), n=1000,
            run=f"{architecture}-{protocol}-{alpha}-{weight}-{seed}",
            value=value + shift * seed, low=value - shift, high=value + 2 * shift,
        )
        for architecture in architectures
        for (protocol, alpha, weight), values in figures.items()
        for seed in seeds
        for (metric, dataset, corruption), value in zip(places, values, strict=True)
        for shift in [0.001 if metric == "smooth_ece" else 0.1]
    ]  # fmt: skip


def folder_of(
    path: Path,
    held_out: dict[Way, Figures],
    test: dict[Way, Figures] = TEST,
    seeds: tuple[int, ...] = (0,),
    knob: str = "alpha",
    tolerance: float = 1.0,
    architectures: tuple[str, ...] = ("Net",),
) -> StudyFolder:
    folder = StudyFolder(path)
    write_rows(folder.results_file, rows_of(test, "C", seeds, architectures))
    write_rows(folder.validation_file, rows_of(held_out, "C̄", seeds, architectures))
    recipe = Recipe(choose=knob, validate=Validation(tolerance=tolerance))  # type: ignore[arg-type]
    files.write_json(folder.study_file, {"recipe": dataclasses.asdict(recipe), "made": {}})
    return folder


def only(folder: StudyFolder) -> choice.Choice:
    (found,) = choice.find_choices(reading.read_summary(folder))
    return found


def variant(way: Way) -> summary.Variant:
    return summary.Variant("Net", *way)


def test_the_rule_by_hand(tmp_path: Path) -> None:
    found = only(folder_of(tmp_path, HELD_OUT))
    assert found.picked == variant(LOW)  # HIGH has the least mean error, but costs 2 points of clean accuracy
    assert found.mean_error(found.held_out, variant(LOW)) == pytest.approx(0.0006**0.25)
    assert found.front == {variant(STANDARD): False, variant(ANCHORED): False, variant(LOW): False, variant(HIGH): True}
    assert found.best == variant(HIGH)
    assert found.regret == pytest.approx(4**0.25 - 1)  # one of four errors is four times the best's


def test_the_tolerance_decides_who_is_let_in(tmp_path: Path) -> None:
    assert only(folder_of(tmp_path / "2", HELD_OUT, tolerance=2)).picked == variant(HIGH)
    assert only(folder_of(tmp_path / "0", HELD_OUT, tolerance=0)).picked == variant(ANCHORED)
    worse = dict(HELD_OUT)
    for way, clean in ((ANCHORED, 90.0), (LOW, 92.5), (HIGH, 91.0)):
        worse[way] = (clean, *HELD_OUT[way][1:])
    none = only(folder_of(tmp_path / "none", worse))
    assert none.picked is None
    assert [table.name for table in choice.choice_tables([none])] == ["choice"]
    (said,) = choice.sentences(none)
    assert said.startswith(
        "Nothing is picked: every candidate loses more than 1 point of clean accuracy against standard"
    )
    assert said.endswith(
        f"the least, {HELD_OUT[STANDARD][0] - 92.5:.1f}, is lost with α = 0.1. "
        "How much may be lost is validate.tolerance."
    )
    alone = {way: figures for way, figures in HELD_OUT.items() if way != STANDARD}
    assert only(folder_of(tmp_path / "alone", alone, {way: TEST[way] for way in alone})).picked == variant(HIGH)


def test_the_test_has_no_say(tmp_path: Path) -> None:
    turned = {way: TEST[other] for way, other in zip(TEST, reversed(TEST), strict=True)}
    first, second = only(folder_of(tmp_path / "a", HELD_OUT)), only(folder_of(tmp_path / "b", HELD_OUT, turned))
    assert first.picked == second.picked
    assert first.front == second.front
    assert first.best != second.best


def test_words_and_tables(tmp_path: Path) -> None:
    found = only(folder_of(tmp_path, HELD_OUT, seeds=(0, 1, 2)))
    said = " ".join(choice.sentences(found))
    assert "pick α = 0.1, as 3 of 3 seeds alone do." in said
    assert "On test α = 0.5 has the least mean error: the pick's is 42.0 % above it." in said
    candidates, regrets = choice.choice_tables([found])
    assert candidates.title == "Choosing α: α = 0.1 is picked"
    assert [each[0].text for each in candidates.rows] == ["Standard", "Anchored", "RAM α=0.1 (picked)", "RAM α=0.5"]
    assert [each[1].text for each in candidates.rows] == ["no", "no", "no", "yes"]
    assert "lose no more than 1 point of clean accuracy" in candidates.caption
    assert "Held-out: 1,000 training images" in candidates.caption
    by_aim = {each[0].text: [cell.text for cell in each[3:]] for each in regrets.rows}
    assert by_aim["OOD AUROC, % (energy) ↑"] == ["α = 0.5", "−15.0 [−15.0, −15.0]"]
    assert by_aim["Smooth ECE, corrupted ↓"] == ["α = 0.1", "0"]
    assert by_aim["Mean error ↓"][0] == "α = 0.5"
    assert by_aim["Mean error ↓"][1].startswith("+42.0")
    assert "flatters it" in regrets.caption
    for table in (candidates, regrets):
        assert formats.markdown(table).count("\n|") == len(table.rows) + 2
        assert formats.latex(table)
        assert formats.terminal(table, 80)


def test_lambda_is_chosen_at_each_alpha(tmp_path: Path) -> None:
    def turned(figures: dict[Way, Figures]) -> dict[Way, Figures]:
        ways: tuple[Way, ...] = (STANDARD, ("ram", 0.25, None), ("ram", 0.25, 0.1), ("ram", 0.25, 1.0))
        return dict(zip(ways, figures.values(), strict=True))

    found = only(folder_of(tmp_path, turned(HELD_OUT), turned(TEST), knob="lambda"))
    assert found.picked == variant(("ram", 0.25, 0.1))
    assert [found.name(each) for each in found.candidates] == ["λ = 0", "λ = 0.1", "λ = 1"]
    assert next(iter(choice.choice_tables([found]))).title == "Choosing λ at α = 0.25: λ = 0.1 is picked"


def test_the_page_shows_it(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, HELD_OUT, seeds=(0, 1), architectures=("Net", "<b>Other</b>"))
    page = report.write(folder).read_text(encoding="utf-8")
    assert '<section id="choice">' in page
    assert "<b>" not in page
    hints = dict(re.findall(r'<g id="(choice[a-z0-9-]+)"><title>(.*?)</title>', page))
    assert len(hints) == 2 * 5 * 4  # two networks, four aims and their mean, four trainings
    assert hints["choice-choice-0-4-2"] == "RAM α=0.1: mean error 0.156 held-out, 0.200 on test"
    assert hints["choice-choice-0-0-0"].startswith("held-out: Net, Standard: Accuracy (%) 60.0 (± ")
    assert {file.stem for file in folder.tables.glob("choice*.md")} == {
        "choice", "choice_regret", "choice_1", "choice_regret_1",
    }  # fmt: skip
    assert (folder.figures / "choice-1.pdf").is_file()


def test_the_pick_is_ringed_and_what_is_beaten_is_hollow(tmp_path: Path) -> None:
    with style.drawing():
        drawn = choice.choice_figure(only(folder_of(tmp_path, HELD_OUT)))
    axes = drawn.figure.axes[0]
    points = {str(line.get_label()): line for line in axes.lines if line.get_marker() not in ("None", "", "|", "_")}
    assert points["RAM α=0.5"].get_markerfacecolor() != "white"
    assert points["RAM α=0.1 (picked)"].get_markerfacecolor() == "white"
    rings = [line for line in axes.lines if line.get_markersize() == 15]
    assert [float(each) for ring in rings for each in (*ring.get_xdata(), *ring.get_ydata())] == [70, 60]  # type: ignore[misc]
    assert "ringed: picked" in drawn.caption


def test_without_a_choice_there_is_no_section(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, HELD_OUT, knob="")
    assert list(choice.find_choices(reading.read_summary(folder))) == []
    assert '<section id="choice">' not in report.write(folder).read_text(encoding="utf-8")
    folder.validation_file.unlink()
    assert list(choice.find_choices(reading.read_summary(folder_of(tmp_path / "other", HELD_OUT)))) != []


def test_only_seeds_that_all_have_count(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, HELD_OUT, seeds=(0, 1))
    rows = [each for each in read_rows(folder.validation_file) if (each.alpha, each.seed) != (0.5, 1)]
    write_rows(folder.validation_file, rows)
    assert only(folder).seeds == (0,)


def test_a_given_model_is_no_standard_and_has_no_seed(tmp_path: Path) -> None:
    """It was not measured on held-out images, and its rows bear seed 0."""
    ways: list[Way] = [ANCHORED, LOW, HIGH]
    folder = folder_of(tmp_path, {way: HELD_OUT[way] for way in ways}, {way: TEST[way] for way in ways}, seeds=(1,))
    others = rows_of({("given", None, None): TEST[STANDARD]}, "C", (0,), ("Theirs",))
    write_rows(folder.results_file, [*read_rows(folder.results_file), *others])
    found = only(folder)
    assert (found.standard, found.seeds) == (None, (1,))
    assert reading.read_summary(folder).seeds == (1,)

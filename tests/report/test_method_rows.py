"""A study with methods on the report: what each is called, and what it is compared with."""

from pathlib import Path

import pytest
from fixtures.report_studies import folder_of, row

from anchored.config.recipe import Recipe
from anchored.config.settings import Grid
from anchored.report import narrative
from anchored.report import page as report
from anchored.report.comparison import Summary
from anchored.report.reading import read_summary
from anchored.report.tables import headline_table
from anchored.store.rows import Row

WAYS = [("standard", None), ("anchored", None), ("ram", 0.25)]


def rows(methods: tuple[str, ...], seeds: int = 5) -> list[Row]:
    """Clean accuracy: 50, one more for anchoring, three for masks, ten for a method, and a little for the seed."""
    return [
        row(
            protocol=protocol, alpha=alpha, method=method, seed=seed, run=f"{method}{protocol}{seed}",
            value=50 + gain + 10 * bool(method) + 0.1 * seed + 0.01 * (seed * gain % 3),
        )
        for method in methods
        for (protocol, alpha), gain in zip(WAYS, (0, 1, 3), strict=True)
        for seed in range(seeds)
    ]  # fmt: skip


def summary_of(path: Path, *methods: str) -> Summary:
    grid = Grid(networks=("small",), seeds=tuple(range(5)))
    return read_summary(folder_of(path, rows(methods), Recipe(grid=grid)))


def test_titles_and_order(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, "sam", "", "own name")
    assert [variant.title for variant in summary.variants] == [
        "Standard", "Anchored", "RAM α=0.25", "SAM", "SAM + anchored", "SAM + RAM α=0.25",
        "own name", "own name + anchored", "own name + RAM α=0.25",
    ]  # fmt: skip
    table = headline_table(summary)
    assert [cells[0].text for cells in table.rows][3:5] == ["SAM", "SAM + anchored"]


def test_methods_are_compared_with_standard_and_ram_with_its_method_alone(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, "", "augmix")
    standard, anchored, ram, augmix, _, both = summary.variants
    (clean,) = summary.measures
    assert {summary.base(variant) for variant in summary.variants} == {standard}
    assert summary.method_alone(both) == augmix
    assert [summary.method_alone(each) for each in (ram, augmix, anchored)] == [None] * 3
    gains = [summary.difference(both, clean, base) for base in (standard, augmix, summary.unmasked(both))]
    means = [gain.after - gain.before for gain in gains if gain]
    assert means == pytest.approx([13, 3, 2], abs=0.05)
    titles = [reading.title for reading in narrative.readings(summary)]
    assert "AugMix + RAM α=0.25 against standard" in titles
    assert "AugMix + RAM α=0.25 against AugMix alone" in titles
    assert "AugMix + RAM α=0.25 against AugMix + anchored: what masking does" in titles
    assert "RAM α=0.25 against anchored: what masking does" in titles


def test_without_plain_rows_a_method_is_its_own_base(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, "mixup", "sam")
    assert [summary.base(variant).title for variant in summary.variants] == ["mixup"] * 3 + ["SAM"] * 3  # type: ignore[union-attr]
    assert all(summary.method_alone(variant) is None for variant in summary.variants)
    assert {variant.method for variant in summary.drawn.variants} == {"mixup"}
    assert "Figures are of mixup; tables and comparisons have all methods." in narrative.notes(summary)
    alone = summary_of(tmp_path / "alone", "mixup")
    assert alone.drawn is alone


def test_the_page_has_all_methods_and_figures_of_the_recipe(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, "", "augmix")
    text = report.write(summary.folder).read_text(encoding="utf-8")
    assert "AugMix + RAM α=0.25" in text
    assert "Figures are of the recipe as it is" in text
    assert "SAM" not in text
    assert {variant.method for variant in summary.drawn.variants} == {""}

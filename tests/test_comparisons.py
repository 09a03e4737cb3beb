"""The comparisons' page: contrasts, one correction, the front, on figures made by hand."""

import dataclasses
import runpy
from pathlib import Path

import comparisons_page
import pytest
from claims_page import RAM, STANDARD
from comparisons_page import ALONE, GAIN, INTERACTION, Comparison
from fixtures.report_studies import row

from anchored.store.rows import Row


def rows_of(method: str, way: tuple[str, float | None, float | None], figures: tuple[float, float, float]) -> list[Row]:
    """Clean and corruption accuracy, and adaptation, of five seeds that differ alike."""
    places = (("accuracy", "Data", ""), ("accuracy", "Data-C", "mean"), ("linear_probe_accuracy", "mean", ""))
    return [
        row(
            protocol=way[0], alpha=way[1], tail_weight=way[2], method=method, seed=seed, metric=metric, dataset=dataset,
            corruption=corruption, value=value + seed + 0.01 * (seed % 2), run=f"{method}-{way[0]}-{seed}",
        )
        for (metric, dataset, corruption), value in zip(places, figures, strict=True)
        for seed in range(5)
    ]  # fmt: skip


def study() -> Comparison:
    """RAM adds 6 points under corruption to plain training, and 2 to AugMix, which by itself adds 10."""
    rows = [
        *rows_of("", STANDARD, (90, 60, 70)), *rows_of("", RAM, (90, 66.1, 70)),
        *rows_of("augmix", STANDARD, (90, 70.2, 70)), *rows_of("augmix", RAM, (90, 72.3, 70)),
    ]  # fmt: skip
    jitter = {row.run: 0.02 * i for i, row in enumerate(rows)}
    moved = [dataclasses.replace(each, value=each.value + jitter[each.run] % 0.1) for each in rows]
    seconds = {row.run: 30.0 if "augmix" in row.run else 10.0 for row in rows}
    return Comparison("By hand", "study compare-demo", tuple(moved), seconds, {}, [4])


def test_contrasts_are_taken_seed_by_seed() -> None:
    values = study().contrasts()
    means = {key: sum(each) / len(each) for key, each in values.items()}
    figure = "corruption accuracy"
    assert means[ALONE, "augmix", STANDARD, figure] == pytest.approx(10.2, abs=0.1)
    assert means[GAIN, "", RAM, figure] == pytest.approx(6.1, abs=0.1)
    assert means[GAIN, "augmix", RAM, figure] == pytest.approx(2.1, abs=0.1)
    assert means[INTERACTION, "augmix", RAM, figure] == pytest.approx(-4.0, abs=0.1)
    assert not any(key[3] == "far AUROC" for key in values)  # was not measured


def test_one_correction_over_all() -> None:
    tested = study().tested
    assert tested[INTERACTION, "augmix", RAM, "corruption accuracy"][1] < 0.05
    assert tested[GAIN, "", RAM, "clean accuracy"][1] > 0.05
    assert max(p for _, p in tested.values()) <= 1


def test_cost_is_over_plain_standard() -> None:
    assert study().cost("augmix", RAM) == 3
    assert study().cost("sam", RAM) is None


def test_the_page_says_what_is_clear_and_what_is_missing() -> None:
    text = comparisons_page.page({"demo": study()})
    assert "- RAM α=0.25, corruption accuracy: better on Plain, AugMix; worse on none; undecided on 0 of 2." in text
    assert "| AugMix | + RAM α=0.25 | – |" not in text
    assert "Not whole yet: seed 4" in text
    assert "| AugMix | alone |" in text


def test_every_study_is_one_that_the_command_can_run() -> None:
    script = Path(__file__).parents[1] / "scripts" / "comparisons.py"
    module = runpy.run_path(str(script), run_name="comparisons")
    for key in module["STUDIES"]:
        recipe = module["recipe_of"](key)
        assert recipe.grid.methods[0] == "plain"
        assert len(recipe.grid.seeds) >= 5

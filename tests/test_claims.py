"""The claims' page: contrasts, verdicts and the rows that are kept, on figures made by hand."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import claims_page
import pytest
import scipy.stats
from fixtures.report_studies import row

from anchored.config.recipe import canonical
from anchored.data.catalog.registry import dataset_title
from anchored.metrics import intervals
from anchored.store import files
from anchored.store.layout import StudyFolder
from anchored.store.rows import Row, write_rows

SCRIPT = Path(__file__).parents[1] / "scripts" / "claims.py"
SEEDS = (0, 1, 2, 3, 4)


@pytest.fixture(scope="module")
def claims() -> ModuleType:
    module = ModuleType("claims")
    sys.modules["claims"] = module  # dataclasses look their module up
    module.__dict__.update(runpy.run_path(str(SCRIPT), run_name="claims"))
    return module


def rows_of(figure: tuple[str, str, str], way: Any, values: Sequence[float], name: str = "") -> list[Row]:
    """One figure (metric, data set, corruption) of one way of training, a value per seed."""
    (metric, dataset, corruption), (protocol, alpha, weight) = figure, way
    return [
        row(
            metric=metric, dataset=dataset, corruption=corruption, protocol=protocol, alpha=alpha, tail_weight=weight,
            value=value, low=value - 1, high=value + 1, seed=seed, score="energy" * (metric == "auroc"),
            run=f"{name or protocol}-{alpha}-{weight}-{seed}",
        )
        for seed, value in zip(SEEDS, values, strict=False)
    ]  # fmt: skip


CORRUPTED, CLEAN, AUROC = ("accuracy", "Data-C", "mean"), ("accuracy", "Data", ""), ("auroc", "mean", "")
STANDARD, ANCHORED = ("standard", None, None), ("anchored", None, None)
RAM = ("ram", 0.25, None)


def evidence_of(rows: list[Row], confirms: str = "", **known: Any) -> claims_page.Evidence:
    study = claims_page.Study("study", "demo", confirms=confirms)
    return claims_page.Evidence(
        study, "study demo", tuple(rows), frozenset(), {}, known.get("runs", {}), {}, known.get("missing", ())
    )


def test_a_contrast_is_the_difference_seed_by_seed() -> None:
    rows = rows_of(CORRUPTED, STANDARD, [50, 60, 70]) + rows_of(CORRUPTED, RAM, [51, 63, 72, 80])  # seed 3 has no pair
    claim = next(each for each in claims_page.CLAIMS if each.ways == (STANDARD, RAM))
    assert claims_page.contrasts(rows, claim) == pytest.approx([1, 3, 2])


def test_a_trend_is_the_rise_of_the_line_of_least_squares() -> None:
    trend = next(each for each in claims_page.CLAIMS if "grows with α" in each.sentence)
    values: dict[float, list[float]] = {0.0625: [50, 40], 0.125: [51, 50], 0.25: [54, 40]}
    rows = [each for alpha, own in values.items() for each in rows_of(CORRUPTED, ("ram", alpha, None), own)]
    slopes = [statistics.linear_regression(range(3), [values[a][seed] for a in values]).slope for seed in (0, 1)]
    assert claims_page.contrasts(rows, trend) == pytest.approx([2 * slope for slope in slopes])
    assert claims_page.contrasts(rows, trend) == pytest.approx([4, 0])


def test_saturate_leaves_the_mean_of_grey_images() -> None:
    # 18 corruptions at 50 % and saturate at 88 %: the mean of 19 is 52.
    rows = rows_of(CORRUPTED, RAM, [52.0])
    still = [dataclasses.replace(r, corruption="saturate", severity=s, value=88.0) for r in rows for s in (1, 2, 3)]
    assert claims_page.by_seed([*rows, *still], RAM, "corruption accuracy") == {0: pytest.approx(50)}
    assert claims_page.by_seed(rows, RAM, "corruption accuracy") == {0: 52}


def test_near_and_far_are_never_one_mean() -> None:
    near = rows_of(("auroc", dataset_title("fashion-mini-novel"), ""), RAM, [70])
    values = zip(FAR, (90, 96, 96), strict=True)
    far = [row for name, value in values for row in rows_of(("auroc", dataset_title(name), ""), RAM, [value])]
    assert claims_page.by_seed([*near, *far], RAM, "near AUROC") == {0: 70}
    assert claims_page.by_seed([*near, *far], RAM, "far AUROC") == {0: pytest.approx(94)}
    assert claims_page.by_seed([*near, *far[1:]], RAM, "far AUROC") == {}  # one set was not measured


FAR = ("digits", "textures", "photos")
WAYS = (STANDARD, ANCHORED, *claims_page.LAMBDAS)


def family(gains: dict[str, float]) -> dict[str, claims_page.Evidence]:
    """Both studies of the protocol, whole; ``gains``: what each figure rises by from one way to the next."""
    figures = {
        "corruption accuracy": [CORRUPTED],
        "corruption smooth ECE": [("smooth_ece", "Data-C", "mean")],
        "far AUROC": [("auroc", dataset_title(name), "") for name in FAR],
        "near AUROC": [("auroc", dataset_title("fashion-mini-novel"), "")],
        "adaptation accuracy": [("linear_probe_accuracy", "mean", "")],
    }
    noise = (0.0, 0.3, -0.2, 0.1, -0.1)
    rows = [
        row
        for figure, names in figures.items()
        for place, way in enumerate(WAYS)
        for name in names
        for row in rows_of(name, way, [50 + place * (gains.get(figure, 0) + n) + s for s, n in enumerate(noise)])
    ]
    return {"a": evidence_of(rows, "A"), "b": evidence_of(rows, "B")}


def test_the_family_is_tested_once_with_one_correction() -> None:
    studies = family({"corruption accuracy": 5.0, "near AUROC": 4.0})
    tested = claims_page.confirm(studies)
    assert list(tested) == list(claims_page.HYPOTHESES)
    values = [claims_page.contrasts(studies["a"].rows, claim) for claim in claims_page.HYPOTHESES]
    raw = [scipy.stats.ttest_1samp(each, 0).pvalue for each in values]
    assert [each.p for each in tested.values()] == pytest.approx(intervals.holm(raw))
    words = {i: each.holds for i, each in enumerate(tested.values(), 1)}
    assert words[1] is words[13] is True  # RAM raises corruption accuracy
    assert words[6] is words[18] is False  # RAM lowers near AUROC: it rose
    assert words[5] is words[7] is None
    low, high = scipy.stats.t.interval(0.95, 4, statistics.fmean(values[0]), scipy.stats.sem(values[0]))
    first = tested[claims_page.HYPOTHESES[0]]
    assert first.contrast == pytest.approx((statistics.fmean(values[0]), low, high))
    text = claims_page.page(studies)
    assert "| 6 | A | RAM lowers near AUROC below standard |" in text
    assert "**does not hold**: 6 (A)" in text


def test_headlines_count_the_verdicts_of_the_page() -> None:
    root = Path(__file__).parents[1]
    page, readme, findings, changes = (
        (root / name).read_text(encoding="utf-8")
        for name in ("docs/explanation/claims.md", "README.md", "docs/explanation/findings.md", "CHANGELOG.md")
    )
    verdicts = re.findall(r"^\| \d+ \| [AB] \|.*\| ([^|]+) \|$", page, re.MULTILINE)
    holds, undecided = verdicts.count("**holds**"), verdicts.count("undecided")
    assert len(verdicts) == holds + undecided == len(claims_page.HYPOTHESES)
    assert f"[{holds} of {len(verdicts)} hypotheses hold]" in readme
    assert f": {holds} hold, none is contradicted, {undecided} are undecided" in findings
    assert f": {holds} of {len(verdicts)} hypotheses hold on new seeds" in changes


def test_nothing_is_tested_before_every_training_is_done() -> None:
    studies = family({"corruption accuracy": 5.0})
    assert claims_page.confirm({"a": studies["a"]}) == {}
    part = {**studies, "b": dataclasses.replace(studies["b"], missing=[107])}
    assert claims_page.confirm(part) == {}
    text = claims_page.page(part)
    assert "Not tested yet" in text
    assert "| p |" not in text


def test_exploratory_rows_have_no_verdict() -> None:
    rows = [*rows_of(CORRUPTED, STANDARD, (70, 71, 72, 73, 74)), *rows_of(CORRUPTED, RAM, (72, 73, 74, 75.1, 76))]
    text = claims_page.page({"lambdas": evidence_of(rows)})
    shown = text.partition("## Exploratory")[2]
    assert "| RAM raises accuracy under corruption over standard |" in shown
    assert "+2.0 [+2.0, +2.1] | 5 |" in shown
    assert "**holds**" not in shown


def test_what_a_study_shares_with_another_is_shown_there() -> None:
    shared = rows_of(CORRUPTED, STANDARD, [50, 51, 52]) + rows_of(CORRUPTED, RAM, [53, 55, 54])
    more = [row for way in claims_page.LAMBDAS[1:] for row in rows_of(CORRUPTED, way, [53, 52, 55])]
    second = evidence_of([*shared, *more])
    studies = {
        "x": evidence_of(shared),
        "y": dataclasses.replace(second, study=claims_page.Study("y", "demo", shares="x")),
    }
    table = "\n".join(claims_page.table_of_contrasts("y", studies))
    assert "costs accuracy under corruption against" in table
    assert "over standard" not in table


def test_the_protocol_names_the_same_hypotheses(claims: ModuleType) -> None:
    text = (SCRIPT.parents[1] / "docs" / "claims" / "protocol.md").read_text(encoding="utf-8")
    for number, claim in enumerate(claims_page.HYPOTHESES, 1):
        assert f"| {number} | {claim.confirms} | {claim.sentence} |" in text
    for key, letter in (("confirm-a", "A"), ("confirm-b", "B")):
        ways = {(c.protocol, c.mask_probability or None, c.tail_weight or None) for c in claims.recipe_of(key).cells()}
        needed = {way for claim in claims_page.HYPOTHESES if claim.confirms == letter for way in claim.ways}
        assert needed <= ways
        assert set(claims.STUDIES[key].seeds).isdisjoint(range(100))


def test_every_study_is_a_recipe_that_the_command_knows(claims: ModuleType) -> None:
    for key, study in claims.STUDIES.items():
        recipe = claims.recipe_of(key)
        assert recipe.grid.seeds == tuple(study.seeds)
        assert len(study.seeds) >= 5
        assert recipe.data.validation == 0.1
        names = {cell.name for cell in recipe.cells()}
        if study.shares:
            assert names & {cell.name for cell in claims.recipe_of(study.shares).cells()}


def test_the_study_for_a_gpu_is_four_ways_of_five_seeds(claims: ModuleType) -> None:
    recipe = claims.recipe_of("gpu")
    cells = list(recipe.cells())
    ways = {(cell.protocol, cell.mask_probability, cell.tail_weight) for cell in cells}
    assert len(cells) == 20
    assert ways == {("standard", 0, 0), ("anchored", 0, 0), ("ram", 0.25, 0), ("ram", 0.25, 0.1)}
    assert {(cell.network, cell.train.epochs, cell.data.train) for cell in cells} == {("resnet18", 60, "fashion-mnist")}
    assert [key for key, study in claims.STUDIES.items() if study.gpu] == ["gpu"]


def test_only_the_page_s_rows_are_needed(claims: ModuleType) -> None:
    assert claims.needed(row(), "energy")
    assert claims.needed(row(dataset="Data-C", corruption="mean"), "energy")
    assert claims.needed(row(metric="smooth_ece", dataset="Data-C", corruption="mean"), "energy")
    assert claims.needed(row(dataset="Data-C", corruption="saturate", severity=1), "energy")
    assert claims.needed(row(metric="auroc", dataset="mean", score="energy"), "energy")
    assert claims.needed(row(metric="auroc", dataset="Digits", score="energy"), "energy")
    assert claims.needed(row(metric="linear_probe_accuracy", dataset="mean"), "energy")
    for other in (
        row(dataset="Data-C", corruption="mean", severity=1),
        row(dataset="Data-C", corruption="fog"),
        row(dataset="Data-C", corruption="mean-15"),
        row(metric="smooth_ece"),
        row(metric="auroc", dataset="mean", score="entropy"),
        row(metric="linear_probe_accuracy", dataset="Digits"),
    ):
        assert not claims.needed(other, "energy")


def finished(claims: ModuleType, folder: StudyFolder, key: str, seeds: Sequence[int], value: float = 50.0) -> None:
    """A folder as the command leaves it after these seeds."""
    recipe = claims.recipe_of(key)
    for cell in recipe.cells():
        if cell.seed in seeds:
            way = (cell.protocol, cell.mask_probability if cell.protocol == "ram" else None, cell.tail_weight or None)
            gain = 2 * (cell.protocol == "ram") + cell.seed + (cell.tail_weight or 0)
            figures = [CLEAN, CORRUPTED, AUROC, ("smooth_ece", "Data-C", "mean"), ("accuracy", "Data-C", "fog")]
            rows = [rows_of(figure, way, [value + gain])[0] for figure in figures]
            rows = [dataclasses.replace(each, seed=cell.seed, run=cell.name) for each in rows]
            write_rows(folder.run(cell.name).rows_file, rows)
            files.write_text(folder.run(cell.name).log_file, "epoch,seconds\n1,10\n2,20\n")
    made = {"command": "anchored of another script", "torch": "2.15"}
    files.write_json(folder.study_file, {"recipe": json.loads(canonical(recipe)), "made": made})


def test_rows_are_kept_and_what_is_kept_is_not_run(
    claims: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs, folder, said = tmp_path / "docs", StudyFolder(tmp_path / "runs" / "alphas"), list[list[str]]()
    kept = StudyFolder(docs / "claims" / "alphas")
    finished(claims, folder, "alphas", (0, 1))
    claims.keep("alphas", folder, kept)
    rows = claims.kept_rows("alphas", kept)
    assert {each.seed for each in rows} == {0, 1}
    assert "fog" not in {each.corruption for each in rows}
    assert files.read_json(kept.study_file)["seconds"]["small-standard-seed0"] == 30

    def command(words: list[str]) -> int:
        said.append(words)
        finished(claims, StudyFolder(Path(words[words.index("-o") + 1])), words_key(words), range(2, 10))
        return 0

    def words_key(words: list[str]) -> str:
        return "lambdas" if "demo-lambdas" in words else "alphas"

    monkeypatch.setattr("anchored.cli.main.main", command)
    claims.run("alphas", StudyFolder(tmp_path / "again" / "alphas"), docs, "1")
    assert said[0][:4] == ["study", "demo-alphas", "--grid.seeds", "[2, 3, 4, 5, 6, 7, 8, 9]"]
    assert {each.seed for each in claims.kept_rows("alphas", kept)} == set(range(10))
    claims.run("alphas", StudyFolder(tmp_path / "third"), docs, "1")
    assert len(said) == 1  # all is kept
    claims.run("lambdas", StudyFolder(tmp_path / "fourth"), docs, "1")
    assert "[0.01, 0.1, 1.0]" in said[1]  # what alphas has is not run again
    assert "[ram]" in said[1]
    shared = claims.evidence_of("lambdas", docs)
    assert {(each.alpha, each.tail_weight) for each in shared.rows if each.protocol == "ram"} == {
        (0.25, None), (0.25, 0.01), (0.25, 0.1), (0.25, 1.0),
    }  # fmt: skip
    assert "small-standard-seed0" in shared.shared


def test_how_a_training_was_made_stays_with_it(claims: ModuleType, tmp_path: Path) -> None:
    docs, kept = tmp_path / "docs", StudyFolder(tmp_path / "docs" / "claims" / "alphas")
    for seeds, revision in (((0,), "first"), ((1,), "second")):
        folder = StudyFolder(tmp_path / revision)
        finished(claims, folder, "alphas", seeds)
        study = files.read_json(folder.study_file)
        files.write_json(folder.study_file, {**study, "made": {"revision": revision, "processor": "Z80"}})
        claims.keep("alphas", folder, kept)
    runs = files.read_json(kept.study_file)["runs"]
    assert (runs["small-standard-seed0"]["revision"], runs["small-standard-seed1"]["revision"]) == ("first", "second")
    text = claims.page({"alphas": claims.evidence_of("alphas", docs)})
    assert "10 trainings: processor Z80; revision first (5), second (5)" in text


def test_a_training_s_own_record_is_kept(claims: ModuleType, tmp_path: Path) -> None:
    folder, kept = StudyFolder(tmp_path / "runs"), StudyFolder(tmp_path / "kept")
    finished(claims, folder, "alphas", (0, 1))
    first = {"command": "x", "started": "1", "revision": "a", "processor": "Z80", "threads": "1", "torch": "2.15"}
    went_on = {**first, "started": "2", "processor": "6502"}
    measured = {**went_on, "started": "3", "revision": "b"}
    run = folder.run("small-standard-seed0")
    files.write_json(run.made_file, {"training": [first, went_on], "evaluating": [measured]})
    claims.keep("alphas", folder, kept)
    runs = files.read_json(kept.study_file)["runs"]
    assert runs["small-standard-seed0"] == {
        "started": "1 then 2 then 3", "revision": "a then b", "processor": "Z80 then 6502", "threads": "1",
        "torch": "2.15",
    }  # fmt: skip
    assert runs["small-standard-seed1"] == {"torch": "2.15"}  # the study's, of a version that kept no records


def test_rows_of_other_settings_are_not_taken(claims: ModuleType, tmp_path: Path) -> None:
    folder, kept = StudyFolder(tmp_path / "runs"), StudyFolder(tmp_path / "kept")
    finished(claims, folder, "alphas", SEEDS)
    study = files.read_json(folder.study_file)
    study["recipe"]["train"]["epochs"] = 1
    files.write_json(folder.study_file, study)
    claims.keep("alphas", folder, kept)
    assert not kept.results_file.exists()
    assert claims.missing_seeds("alphas", set()) == list(range(10))


def test_the_page_by_hand(claims: ModuleType, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    for key in ("alphas", "published-statistics"):
        finished(claims, StudyFolder(tmp_path / key), key, SEEDS, value=50.0 + (key != "alphas"))
        claims.keep(key, StudyFolder(tmp_path / key), StudyFolder(docs / "claims" / key))
    text = claims.page({key: claims.evidence_of(key, docs) for key in ("alphas", "published-statistics")})
    assert "### Embedded part of Fashion-MNIST\n" in text
    assert "+2.0 [+2.0, +2.0] | 5 |" in text
    assert "53.0 (+1.0 [+1.0, +1.0])" not in text  # RAM: 52 + mean seed 2 = 54, one more with the other setting
    assert "55.0 (+1.0 [+1.0, +1.0])" in text
    assert (
        "`anchored study demo-alphas --grid.seeds '[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]'`. 25 trainings: torch 2.15" in text
    )
    assert "of another script" not in text
    assert "Not run yet, or not whole: embedded part of Fashion-MNIST (seeds 5, 6, 7, 8 and 9)." in text


def test_the_committed_page_is_made_from_the_committed_rows(claims: ModuleType) -> None:
    docs = SCRIPT.parents[1] / "docs"
    found = {key: each for key in claims.STUDIES if (each := claims.evidence_of(key, docs))}
    assert (docs / "explanation" / "claims.md").read_text(encoding="utf-8") == claims.page(found), (
        "run scripts/claims.py --page"
    )

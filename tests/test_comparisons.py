"""The comparisons' page: contrasts, one correction, the front, on figures made by hand."""

import dataclasses
import io
import json
import re
import runpy
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import comparisons_page
import markers
import pytest
from claims_page import RAM, STANDARD, Way, how_text
from comparisons_page import ALONE, GAIN, INTERACTION, Comparison, Progress
from comparisons_picture import draw
from fixtures.report_studies import row
from matplotlib import pyplot

from anchored.config.methods import METHODS
from anchored.metrics import intervals
from anchored.report import page as report_page
from anchored.store.rows import Row, read_rows

SEEDS = (0, 1, 2, 3, 4)


def rows_of(method: str, way: tuple[str, float | None, float | None], figures: tuple[float, float, float]) -> list[Row]:
    """Clean and corruption accuracy, and adaptation, of five seeds that differ alike."""
    places = (("accuracy", "Data", ""), ("accuracy", "Data-C", "mean"), ("linear_probe_accuracy", "mean", ""))
    return [
        row(
            protocol=way[0], alpha=way[1], tail_weight=way[2], method=method, seed=seed, metric=metric, dataset=dataset,
            corruption=corruption, value=value + seed + 0.01 * (seed % 2), run=f"{method}-{way[0]}-{seed}",
        )
        for (metric, dataset, corruption), value in zip(places, figures, strict=True)
        for seed in SEEDS
    ]  # fmt: skip


def study() -> Comparison:
    """RAM adds 6 points under corruption to plain training, and 2 to AugMix, which by itself adds 10."""
    rows = [
        *rows_of("", STANDARD, (90, 60, 70)), *rows_of("", RAM, (90, 66.1, 70)),
        *rows_of("augmix", STANDARD, (90, 70.2, 70)), *rows_of("augmix", RAM, (90, 72.3, 70)),
    ]  # fmt: skip
    jitter = {row.run: 0.02 * i for i, row in enumerate(rows)}
    moved = [dataclasses.replace(each, value=each.value + jitter[each.run] % 0.1) for each in rows]
    costs = {row.run: 3.0 if "augmix" in row.run else 1.0 for row in rows}
    progress = [Progress("plain", 10, 20, ("RAM, seed 4",)), Progress("augmix", 10, 10, ()), Progress("sam", 0, 20, ())]
    passes = dict.fromkeys(costs, 1)
    return Comparison("By hand", "anchored study compare-demo", SEEDS, tuple(moved), {}, progress, costs, passes)


def with_ensemble() -> Comparison:
    """One ensemble of plain's networks, under the first seed, 3 points above their mean under corruption."""
    before = study()
    plain = before.values("", STANDARD, "corruption accuracy")
    made = [row for row in rows_of("ensemble", STANDARD, (95, 0, 70)) if row.seed == 0]
    mean = sum(plain.values()) / len(plain)
    moved = [replace(row, value=mean + 3, n=made[0].n) if row.corruption else row for row in made]
    more = Progress("ensemble", 1, 4, ())
    ensemble = {row.run: 5 for row in made}
    return replace(
        before,
        rows=(*before.rows, *moved),
        progress=[*before.progress, more],
        passes={**before.passes, **ensemble},
        costs={**before.costs, **dict.fromkeys(ensemble, 5.0)},
    )


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


def test_contrasts_that_are_not_run_yet_are_corrected_for() -> None:
    """Three methods in three figures: 2 alone, 3 × 3 gains, 2 × 3 interactions each."""
    assert study().planned == 3 * (2 + 9 + 6)
    now = study()
    alone = replace(now, progress=[each for each in now.progress if each.method != "sam"])
    key = (INTERACTION, "augmix", RAM, "corruption accuracy")
    assert alone.planned == 3 * (1 + 6 + 3)
    assert alone.tested[key][1] < now.tested[key][1]
    assert alone.tested[key][0] == now.tested[key][0]


def test_contrasts_wait_for_all_seeds() -> None:
    """Two seeds that happen to differ alike would be clear beyond doubt, and a test after each seed looks too often."""
    begun = [row for way in (STANDARD, RAM) for row in rows_of("sam", way, (90, 80, 70)) if row.seed < 4]
    whole = [row for way in (STANDARD, RAM) for row in rows_of("sam", way, (90, 80, 70))]
    before, after = (replace(study(), rows=(*study().rows, *more)) for more in (begun, whole))
    assert before.contrasts() == study().contrasts()
    assert before.tested == study().tested
    assert (GAIN, "sam", RAM, "corruption accuracy") in after.contrasts()
    assert "| SAM | alone |" in comparisons_page.page({"demo": before})  # its means are shown


def test_what_the_correction_asks_of_the_seeds_is_said() -> None:
    """At the stated share of the seeds' spread the one contrast is on the edge of being clear, by the test itself."""
    text = comparisons_page.page({"demo": study()})
    asked = re.search(r"A family of 51 contrasts asks much of 5 seeds: .* mean is (\d+\.\d) times", text)
    assert asked
    spread = [-1.0, -0.5, 0.0, 0.5, 1.0]  # standard deviation √(5/8)
    edge = float(asked[1]) * statistics.stdev(spread)
    p = [intervals.paired_t_test([value + shift for value in spread], [0.0] * 5) for shift in (edge - 0.1, edge + 0.1)]
    assert 51 * p[0] > 0.05 > 51 * p[1]


def test_cost_is_of_all_networks_and_passes() -> None:
    assert study().cost("augmix", RAM) == (3.0, 1)
    assert study().cost("sam", RAM) == (None, None)
    assert with_ensemble().cost("ensemble", STANDARD) == (5.0, 5)


def test_an_ensemble_has_no_test_and_stands_beside_the_mean_of_its_networks() -> None:
    made = with_ensemble()
    assert made.planned == study().planned
    assert not any("ensemble" in key for key in made.tested)
    assert ("ensemble", STANDARD) not in made.front  # its adaptation was not measured
    text = comparisons_page.page({"demo": made})
    assert "| Deep ensemble | alone | " in text
    ensembles = text.partition("Ensembles, less the mean")[2]
    assert "| Deep ensemble | alone | " in ensembles
    assert "| +3.0 |" in ensembles.partition("### ")[0]
    assert "| 5.00 | 5 |" in text


def test_what_a_study_did_not_measure_has_no_column_and_is_no_aim() -> None:
    made = study()
    assert made.figures == ("clean accuracy", "corruption accuracy", "adaptation accuracy")
    assert made.aims == made.figures[1:]
    assert ("augmix", RAM) in made.front
    assert "AUROC |" not in comparisons_page.page({"demo": made})


def test_the_front_has_what_needs_fewer_passes() -> None:
    """An ensemble that is better in every aim needs five passes; AugMix is worse in every aim at as many as plain; SAM
    is the best of all with its first seed, and has no other yet."""
    figures = {"": (60.0, 70.0), "augmix": (50.0, 60.0), "ensemble": (65.0, 75.0), "sam": (99.0, 99.0)}
    aims = ("corruption accuracy", "adaptation accuracy")

    class Some(Comparison):
        def values(self, method: str, way: Way, figure: str) -> dict[int, float]:
            if way != STANDARD:
                return {}
            seeds = SEEDS[:1] if method == "sam" else SEEDS
            return dict.fromkeys(seeds, figures[method][aims.index(figure)] if figure in aims else 1.0)

    rows = [row for name in figures for row in rows_of(name, STANDARD, (1, 1, 1))]
    passes = {row.run: 5 if row.method == "ensemble" else 1 for row in rows}
    made = Some("By hand", "", SEEDS, tuple(rows), {}, [], {}, passes)
    assert made.front == {("", STANDARD), ("ensemble", STANDARD)}
    assert replace(made, passes={}).front == {("ensemble", STANDARD)}


def test_what_has_fewer_seeds_is_neither_on_the_front_nor_drawn() -> None:
    """A method with one seed would have all others judged by that seed."""
    whole = study()
    begun = [row for row in rows_of("sam", STANDARD, (99, 99, 99)) if row.seed == 0]
    made = replace(whole, rows=(*whole.rows, *begun))
    assert made.values("sam", STANDARD, "corruption accuracy")
    assert made.whole("augmix", RAM, "corruption accuracy") == whole.values("augmix", RAM, "corruption accuracy")
    assert not made.whole("sam", STANDARD, "corruption accuracy")
    assert draw(made) == draw(whole)
    alone = replace(whole, rows=tuple(begun))
    assert alone.front == set()
    text = comparisons_page.page({"demo": alone})
    assert "| SAM | alone |" in text
    assert ".png" not in text  # nothing could be drawn, nor compared
    assert "What they add" not in text


def test_a_picture_of_every_method() -> None:
    """A PNG that grows with the methods; a method without a figure of one panel has an empty place there."""
    few, more = (pyplot.imread(io.BytesIO(draw(each))) for each in (study(), with_ensemble()))
    assert few.shape[1] == more.shape[1]
    assert few.shape[0] < more.shape[0]
    assert draw(study()) == draw(study())


def test_how_rows_were_made_is_said_once() -> None:
    records = [{"anchored": "0.1.0", "command": "x", "started": "now", "revision": name} for name in "aab"]
    assert how_text(records, "runs") == "3 runs: anchored 0.1.0; revision a (2), b (1)"
    other = {"anchored": "0.2.0", "revision": None}
    assert how_text([*records, other], "runs").endswith("b (1). 1 runs: anchored 0.2.0")


def test_a_study_of_which_nothing_is_run_says_so() -> None:
    none = replace(study(), rows=(), progress=[Progress("plain", 0, 20, ())], title="Other")
    text = comparisons_page.page({"demo": study(), "other": none})
    assert "## Other\n\nNothing of it has been run yet: `anchored study compare-demo`." in text
    assert "| `other` | 0 of 20 | – | – | Plain |" in text
    assert "| `demo` | 20 of 50 | AugMix | Plain (10 of 20) | SAM |" in text


def test_the_page_says_what_is_clear_and_what_is_missing() -> None:
    text = comparisons_page.page({"demo": study()})
    assert "- RAM α=0.25, corruption accuracy: better on Plain, AugMix; worse on none; undecided on 0 of 2." in text
    assert "| AugMix | + RAM α=0.25 | – |" not in text
    assert "**Not whole: 20 of 50 are done.**" in text
    assert "| AugMix | alone |" in text


SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "comparisons.py"), run_name="comparisons")


def test_the_committed_pages_are_made_from_the_committed_rows() -> None:
    docs = Path(__file__).parents[1] / "docs"
    studies = {
        key: SCRIPT["comparison_of"](plan, docs / "comparisons" / key) for key, plan in SCRIPT["STUDIES"].items()
    }
    told, readme = "run scripts/comparisons.py runs/comparisons --page", docs.parent / "README.md"
    assert (docs / SCRIPT["PAGE"]).read_text(encoding="utf-8") == comparisons_page.page(studies), told
    assert markers.split(readme, SCRIPT["MARKER"])[1] == comparisons_page.gains(studies["demo"]), told


def test_the_readme_has_a_line_for_each_method_that_masking_can_change() -> None:
    begun = [row for way in (STANDARD, RAM) for row in rows_of("sam", way, (90, 80, 70)) if row.seed < 2]
    table = comparisons_page.gains(replace(with_ensemble(), rows=tuple(map(_mined, [*with_ensemble().rows, *begun]))))
    lines = [line.strip("|").split(" | ") for line in table.splitlines()[2:]]
    assert [line[0].strip() for line in lines] == ["Plain", "AugMix"]  # one ensemble has no interval, SAM two seeds
    single = tuple(_mined(row) for row in study().rows if row.seed == 0)
    assert len(comparisons_page.gains(replace(study(), rows=single)).splitlines()) == 2  # one seed has no interval
    assert lines[1][3].startswith("+2.1 [")
    assert lines[1][5].strip() == "3.0 → 3.0"


def _mined(row: Row) -> Row:
    return replace(row, tail_weight=0.1) if row.protocol == "ram" else row


def test_every_study_is_one_that_the_command_can_run_in_pieces() -> None:
    for plan in SCRIPT["STUDIES"].values():
        pieces = plan.pieces()
        assert next(iter(pieces)) == "plain"
        assert {name for each in pieces.values() for name in each} <= set(METHODS)
        whole = {job.name for job in plan.recipe().jobs()}
        parts = [{job.name for job in plan.recipe(methods).jobs()} for methods in pieces.values()]
        assert set.union(*parts) == whole
        assert sum(map(len, parts)) == len(whole)  # no training is in two pieces
        assert len(plan.recipe().grid.seeds) >= 5
    assert SCRIPT["STUDIES"]["demo"].methods == tuple(METHODS)
    assert SCRIPT["STUDIES"]["demo"].pieces()["plain"] == ("plain", "temperature", "ensemble")
    assert SCRIPT["STUDIES"]["demo"].pieces()["dropout"] == ("dropout", "mc_dropout")


def test_a_piece_is_run_kept_and_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial of plain and what is done after it, two seeds, one way."""
    monkeypatch.setattr(report_page, "draw_pictures", lambda summary: iter(()))  # no page is looked at
    changes = (
        "--data.fraction 0.02 --train.epochs 2 --train.batch_size 32 "
        "--grid.seeds '[0, 1]' --grid.protocols '[standard]' "
        "--evaluate.bootstrap 150 --evaluate.corruptions '[contrast]' --evaluate.severities '[1]' "
        "--evaluate.ood '[blobs]' --evaluate.adaptation '[]' --data.validation 0.2 --train.accelerator cpu"
    )
    words = [str(tmp_path / "runs"), "--docs", str(tmp_path), "--changes", changes, "--studies", "convnext"]
    SCRIPT["main"]([*words, "--methods", "plain"])
    kept = tmp_path / "comparisons/convnext/plain"
    rows = read_rows(kept / "results.csv")
    assert {(row.method, row.seed) for row in rows} == {
        ("", 0), ("", 1), ("temperature", 0), ("temperature", 1), ("ensemble", 0),
    }  # fmt: skip
    page = (tmp_path / "explanation/comparisons.md").read_text()
    assert "| `convnext` | 5 of 15 | Plain, Temperature scaling, Deep ensemble | – | AugMix" in page
    assert "Nothing of it has been run yet: `anchored study compare-demo" in page
    shutil.rmtree(tmp_path / "runs")
    capsys.readouterr()
    more = changes.replace("bootstrap 150", "bootstrap 200")  # the page has no intervals over images
    SCRIPT["main"]([*words, "--changes", more, "--methods", "plain"])
    assert not (tmp_path / "runs").exists()
    assert capsys.readouterr().out == f"{tmp_path / 'explanation/comparisons.md'}\n"
    assert (tmp_path / "explanation/comparisons.md").read_text() == page.replace("bootstrap 150", "bootstrap 200")
    with pytest.raises(SystemExit, match="convnext has no piece ensemble: there are plain, augmix"):
        SCRIPT["main"]([*words, "--methods", "ensemble"])


def test_costs_are_ratios_of_the_same_round(tmp_path: Path) -> None:
    plan = SCRIPT["STUDIES"]["convnext"]
    anchored, ram = "small_convnext-anchored", "small_convnext-ram-0.25"
    seconds = {"small_convnext-standard": [1.0, 10.0, 2.0], "small_convnext-augmix-standard": [3.0, 31.0, 5.0]}
    other = {"small_convnext-standard": [1.0], anchored: [9.0], ram: [9.0]}
    for piece, timed in {"augmix": {**seconds, anchored: [1.0, 10.0, 2.0]}, "pixmix": other}.items():
        (tmp_path / piece).mkdir()
        made = {"threads": "1", "revision": "abc"}
        (tmp_path / piece / "cost.json").write_text(json.dumps({"made": made, "seconds": timed}))
    costs, passes, how = SCRIPT["costs_of"](plan.recipe(), tmp_path)
    assert costs["small_convnext-augmix-standard-seed10"] == 3.0  # of 3, 3.1 and 2.5
    assert costs[f"{anchored}-seed10"] == 1.0  # of both pieces' rounds
    assert costs[f"{ram}-seed10"] == 9.0
    assert costs["small_convnext-ensemble-standard-seed10-to-14"] == 5.0
    assert passes["small_convnext-ensemble-standard-seed10-to-14"] == 5
    assert passes["small_convnext-temperature-standard-seed10"] == 1
    assert how == "plain's own rounds lie up to 400 % from their median; 2 pieces: threads 1; revision abc (2)"

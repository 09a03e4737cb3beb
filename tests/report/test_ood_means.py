"""Near, far and synthetic out-of-distribution sets are never averaged together in the headline."""

from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.report_studies import folder_of, row

from anchored.config.recipe import Recipe
from anchored.config.settings import Data, Evaluation
from anchored.data.preprocessing import InputFormat
from anchored.evaluation.evaluator import Evaluator, Subject
from anchored.evaluation.means import means_by_kind
from anchored.evaluation.sets import NamedSets
from anchored.report.reading import read_summary
from anchored.report.tables import headline_table, ood_table
from anchored.store.layout import Run

NEAR, FAR, SYNTHETIC = "fashion-mini-novel", "digits", "blobs"


def test_each_kind_has_a_mean_of_its_own(tmp_path: Path) -> None:
    recipe = Recipe(
        data=Data("fashion-mini-known"), evaluate=Evaluation(ood=(NEAR, FAR, SYNTHETIC, "jigsaw", "photos"))
    )
    subject = Subject("fashion-mini-known", "ResNet-8", "standard", "hash", lambda: pytest.fail("nothing is passed"))
    sets = NamedSets(recipe.data, InputFormat(1, 28))
    means = means_by_kind(Evaluator(Run(tmp_path), subject, sets, recipe.evaluate))
    assert means == {"mean-near": [0], "mean-far": [1, 4], "mean-synthetic": [2, 3], "mean": [0, 1, 2, 3, 4]}


def test_the_headline_has_far_and_near(tmp_path: Path) -> None:
    auroc = row(metric="auroc", score="energy")
    values = {"Blobs": 99.0, "mean-near": 70.0, "mean-far": 80.0, "mean-synthetic": 99.0, "mean": 83.0}
    rows = [replace(auroc, dataset=name, value=v, low=v - 1, high=v + 1) for name, v in values.items()]
    found = read_summary(folder_of(tmp_path / "new", rows))
    assert [(m.title, m.dataset) for m in found.measures if m.metric == "auroc"] == [
        ("Far-OOD AUROC, % (energy)", "mean-far"),
        ("Near-OOD AUROC, % (energy)", "mean-near"),
    ]
    texts = [cell.text for cell in headline_table(found).rows[0]]
    assert {"70.0", "80.0"} <= set(texts)
    assert "83.0" not in texts
    titles = [column.title for column in ood_table(found).columns][-5:]
    assert titles == ["Blobs", "Mean, near", "Mean, far", "Mean, synthetic", "Mean"]


def test_rows_of_before_keep_their_mean(tmp_path: Path) -> None:
    found = read_summary(folder_of(tmp_path / "old", [row(metric="auroc", score="energy", dataset="mean")]))
    assert [m.title for m in found.measures] == ["OOD AUROC, % (energy)"]

"""Decisions as they are measured: by hand from logits, and in a report."""

from pathlib import Path
from typing import Any

import pytest
import torch

import anchored
from anchored.errors import UserError
from anchored.models.decision import fit_decision
from anchored.report.result import Result
from anchored.store.layout import StudyFolder

ERROR = 0.2


def logits_and_labels(n: int, seed: int, sharp: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (n,), generator=draw)
    logits = torch.randn(n, 4, generator=draw)
    logits[torch.arange(n), labels] += sharp
    return logits, labels


@pytest.fixture(scope="module")
def sets() -> dict[str, Any]:
    return {
        "test": logits_and_labels(300, 0),
        "held-out": logits_and_labels(400, 1),
        **{f"corruption-{name}-{s}": (logits_and_labels(300, 0, 3.0 - s)) for name in ("fog", "snow") for s in (1, 2)},
        "ood-blobs": logits_and_labels(200, 2, 0.0)[0],
        "ood-own": logits_and_labels(100, 3, 0.0)[0] / 4,
    }


def evaluated(sets: dict[str, Any], **options: Any) -> Result:
    return anchored.evaluate(outputs=sets, bootstrap=100, error=ERROR, progress=False, **options)


def test_rows_are_what_the_rule_decides(sets: dict[str, Any]) -> None:
    result = evaluated(sets)
    rule = fit_decision(*sets["held-out"], error=ERROR)
    logits, labels = sets["test"]
    decided = rule.decide(logits)
    covered = decided.sets.gather(1, labels[:, None]).double().mean()
    wrong = (decided.labels != labels)[decided.accepted].double().mean()
    expected = {
        "false_alarm_rate": 100 * float((decided.score > rule.alarm.threshold).double().mean()),
        "set_coverage": 100 * float(covered),
        "set_size": float(decided.sets.sum(1).double().mean()),
        "accepted": 100 * float(decided.accepted.double().mean()),
        "accepted_error": 100 * float(wrong),
    }
    for metric, value in expected.items():
        found, low, high = result.value(metric)
        assert found == pytest.approx(value), metric
        assert low <= found <= high
    for name, title in (("ood-blobs", "Blobs"), ("ood-own", "own")):
        rate = 100 * float((rule.decide(sets[name]).score > rule.alarm.threshold).double().mean())
        assert result.value("detection_rate", title, score="energy")[0] == pytest.approx(rate)
    clean, corrupted = (
        [row["value"] for row in result.rows if row["metric"] == "set_coverage" and row["severity"] == severity]
        for severity in (None, 2)
    )
    assert corrupted[0] < clean[0]


def test_without_held_out_images_only_ranking_is_measured(sets: dict[str, Any]) -> None:
    result = evaluated({name: each for name, each in sets.items() if name != "held-out"})
    metrics = {row["metric"] for row in result.rows}
    assert {"aurc", "augrc", "misclassification_auroc", "scod_aurc"} <= metrics
    assert metrics.isdisjoint({"set_coverage", "detection_rate", "accepted", "nll_scaled"})
    few = evaluated({**sets, "held-out": logits_and_labels(8, 1)})
    assert "set_coverage" not in {row["metric"] for row in few.rows}


def test_an_error_that_cannot_be_shown_leaves_abstention_out(sets: dict[str, Any]) -> None:
    result = evaluated({**sets, "held-out": logits_and_labels(400, 1, 0.0)})
    metrics = {row["metric"] for row in result.rows}
    assert "set_coverage" in metrics
    assert "accepted" not in metrics


def test_held_out_images_are_others_than_those_tested() -> None:
    images, labels = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8), torch.arange(40) % 4
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
    options: dict[str, Any] = {"corruptions": (), "bootstrap": 100, "progress": False}
    with pytest.raises(UserError, match="held_out are the test images"):
        anchored.evaluate(model, (images, labels), held_out=(images, labels), **options)
    result = anchored.evaluate(model, (images, labels), held_out=(255 - images, labels), **options)
    assert 0 <= result.value("set_coverage")[0] <= 100


def test_the_page_says_where_promises_end(sets: dict[str, Any], tmp_path: Path) -> None:
    result = evaluated(sets, false_alarms=0.1)
    text = result.to_html(tmp_path / "report.html").read_text("utf-8")
    for part in (
        "400 held-out images",
        "at most 10 % promised",
        "at severity 2 of C",
        'id="figure-promises"',
        'id="figure-risk"',
    ):
        assert part in text, part
    assert {"decisions_alarms", "decisions_sets", "decisions_severity"} <= {table.name for table in result.tables()}
    assert {table.name for table in result.tables()} == {
        file.stem for file in StudyFolder(result.folder).tables.iterdir()
    }
    with pytest.raises(UserError, match="there is no table 'detectors': there are headline, "):
        result.table("detectors")
    plain = evaluated({name: each for name, each in sets.items() if name != "held-out"})
    assert "evaluate.held_out" in plain.to_html(tmp_path / "plain.html").read_text("utf-8")

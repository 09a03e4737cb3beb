import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anchored.errors import UserError
from anchored.metrics import conformal
from anchored.metrics.ood_scores import SCORES
from anchored.models.decision import TABLE, Deciding, Decision, fit_decision


def outputs(n: int, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    logits = torch.randn(n, classes, generator=generator) + 3 * nn.functional.one_hot(labels, classes)
    return logits, labels


def test_a_decision_is_its_parts() -> None:
    logits, labels = outputs(500)
    rule = fit_decision(logits, labels, error=0.1, classes="abcd", weights="w", images="held out", seed=3)
    new, _ = outputs(50, seed=1)
    found = rule.decide(new)
    score = SCORES["energy"](logits)
    assert found.p_value.equal(conformal.p_values(SCORES["energy"](new), score))
    assert found.probabilities.equal((new.double() / rule.temperature.value).softmax(1))
    assert rule.abstention is not None
    wanted = (found.p_value > 0.05) & (found.confidence >= rule.abstention.threshold)
    assert found.accepted.equal(wanted)
    assert 0 < int(wanted.sum()) < 50
    assert [name == "unknown" for name in found.names] == (~wanted).tolist()
    assert all("abcd"[label] in names for label, names in zip(found.labels.tolist(), found.set_names, strict=True))
    assert (rule.temperature.n, rule.alarm.n, rule.sets.n, rule.seed) == (100, 500, (400,), 3)
    assert rule != fit_decision(logits, labels, error=0.1, seed=4)
    assert "False alarms at most 5.00%" in str(rule)


def test_it_is_written_and_read_whole(tmp_path: Path) -> None:
    logits, labels = outputs(60)
    labels[:] = labels.clamp(max=2)  # no image of the last class
    rule = fit_decision(logits, labels, by_class=True, sets="aps", weights="w", coverage=0.8)
    rule.save(tmp_path / "decision.json")
    assert Decision.read(tmp_path / "decision.json", "w") == rule
    record = json.loads((tmp_path / "decision.json").read_text("utf-8"))
    assert record["sets"]["quantiles"][3] is None
    assert "1 of 4 classes have fewer than the 4 held-out images" in record["notes"][0]
    assert bool(rule.decide(outputs(20, seed=1)[0]).sets[:, 3].all())
    with pytest.raises(UserError, match=r"is for other weights .* calibrate again"):
        Decision.read(tmp_path / "decision.json", "v")
    for change, said in (
        ({"seed": "x"}, "no decision of this version: seed"),
        ({"classes": ["a"]}, "4 quantiles for 1 classes"),
        ({"scores": []}, "60 are wanted"),
        ({"scores": record["scores"][::-1]}, "in ascending order"),
        ({"sets": record["sets"] | {"method": "top"}}, "sets.method is 'top'"),
        ({"extra": 1}, "no setting extra"),
    ):
        damaged: Any = change
        (tmp_path / "decision.json").write_text(json.dumps(record | damaged), encoding="utf-8")
        with pytest.raises(UserError, match=said):
            Decision.read(tmp_path / "decision.json")
    unbounded = replace(rule, sets=replace(rule.sets, intervals=(None,) * 4))  # as a file may have it
    assert "realised: 0.00% or more" in str(unbounded)
    (tmp_path / "decision.json").write_text("[1", encoding="utf-8")
    with pytest.raises(UserError, match="not valid JSON"):
        Decision.read(tmp_path / "decision.json")


def test_few_images() -> None:
    logits, labels = outputs(20)
    rule = fit_decision(logits, labels)
    assert (rule.alarm.n, rule.sets.n) == (20, (16,))
    assert rule.alarm.threshold == SCORES["energy"](logits).max()
    for options, line in (
        ({"false_alarms": 0.01}, "a false-alarm rate of 0.01 needs 99 held-out images, and there are 20"),
        ({"coverage": 0.95}, "a coverage of 0.95 needs 19 held-out images, and there are 16"),
        ({"error": 0.1}, "needs 29 held-out images that raise no alarm and fit no temperature, and there are 1[56]"),
        ({"score": "odin"}, "none of the OOD scores"),
        ({"classes": ("a", "unknown", "b", "c")}, "a class is named 'unknown'"),
        ({"sets": "top"}, "none of the kinds of sets"),
        ({"false_alarms": 0.0}, "share"),
        ({"coverage": 1.0}, "share"),
        ({"error": 1.5}, "shares"),
    ):
        chosen: Any = options
        with pytest.raises(UserError, match=line):
            fit_decision(logits, labels, **chosen)
    with pytest.raises(UserError, match=r"decision is for \(N, 4\)"):
        rule.decide(torch.zeros(2, 3))


def test_awkward_outputs() -> None:
    equal = torch.zeros(100, 4)
    rule = fit_decision(equal, torch.arange(100) % 4)
    found = rule.decide(equal[:5])
    assert bool(found.accepted.all())
    assert bool(found.sets.all())
    assert found.p_value.tolist() == [1.0] * 5
    labels = torch.arange(100) % 4
    sure = fit_decision(20.0 * nn.functional.one_hot(labels, 4), labels, error=0.05)
    assert sure.temperature.value == 1
    assert "temperature is 1" in sure.notes[0]
    assert "right of 100.00% of the held-out images, more than the coverage of 90.00%" in sure.notes[1]
    with pytest.raises(UserError, match="hold no energy"):
        fit_decision(outputs(100)[0].log_softmax(1), labels)
    with pytest.raises(UserError, match="cannot be shown"):
        fit_decision(outputs(400)[0], outputs(400)[1].flip(0), error=0.01, confidence=0.9)


def test_promises_of_the_whole_rule_hold_over_held_out_images() -> None:
    population, truth = outputs(20_000, seed=5)
    generator, alarms, covered, broken, draws = torch.Generator().manual_seed(0), [], [], 0, 60
    for seed in range(draws):
        chosen = torch.randint(len(truth), (300,), generator=generator)
        rule = fit_decision(population[chosen], truth[chosen], error=0.15, confidence=0.9, seed=seed)
        found = rule.decide(population)
        alarms.append(float((found.score > rule.alarm.threshold).double().mean()))
        covered.append(float(found.sets.gather(1, truth[:, None]).double().mean()))
        broken += float((found.labels != truth)[found.accepted].double().mean()) > 0.15
    assert abs(sum(alarms) / draws - 15 / 301) < 4 * math.sqrt(0.05 * 0.95 / 300 / draws)
    assert sum(covered) / draws > 0.9 - 4 * math.sqrt(0.9 * 0.1 / 240 / draws)
    assert broken <= 15  # of 60 at 10 %: above it by chance 1 time in 2,000


@pytest.mark.parametrize("score", SCORES)
def test_a_network_with_its_decision(score: str) -> None:
    rule = fit_decision(*outputs(3000), error=0.1, score=score)
    new, _ = outputs(400, seed=2)
    found, wanted = Deciding(nn.Identity(), rule)(new), rule.decide(new)
    assert found["logits"].equal(new)
    assert found["accepted"].equal(wanted.accepted)
    torch.testing.assert_close(found["score"], wanted.score.float())
    torch.testing.assert_close(found["probabilities"], wanted.probabilities.float())
    exact = wanted.p_value <= 512 / 3001
    torch.testing.assert_close(found["p_value"][exact], wanted.p_value[exact].float())
    above = found["p_value"].double() - wanted.p_value
    assert float(above.min()) > -1e-6
    assert float(above.max()) < 2 * (3000 - TABLE / 2) / (TABLE / 2) / 3001
    few = replace(fit_decision(*outputs(200), score=score), abstention=None)
    torch.testing.assert_close(Deciding(nn.Identity(), few)(new)["p_value"], few.decide(new).p_value.float())

"""Intervals of one network's rows: never silent, and refused where memory could not hold the resamples."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anchored.config.settings import Data, Evaluation
from anchored.data.preprocessing import InputFormat
from anchored.errors import UserError
from anchored.evaluation import evaluator
from anchored.evaluation.evaluator import Evaluator, Subject
from anchored.evaluation.sets import NamedSets
from anchored.metrics.bounded import Figure
from anchored.store.layout import Run

FIGURES = [Figure("accuracy", (500_000,)), Figure("accuracy", (500_000,))]


def shares(weights: Tensor) -> Tensor:
    """Two means (R,2) of resampled images."""
    return torch.stack([weights[:, ::2].mean(1) / 2, weights[:, 1::2].mean(1) / 2], 1)


def measured(tmp_path: Path, replicates: int) -> tuple[Evaluator, list[str]]:
    said, settings = list[str](), replace(Evaluation(), bootstrap=replicates)
    subject = Subject("digits", "ResNet-8", "standard", "hash", lambda: pytest.fail("nothing is passed"))
    sets = NamedSets(Data("digits"), InputFormat(1, 28))
    return Evaluator(Run(tmp_path), subject, sets, settings, lambda share, what: said.append(what)), said


def test_resampling_is_told_with_the_time_that_is_left(tmp_path: Path) -> None:
    bench, said = measured(tmp_path, 100)
    bench.estimate("images", FIGURES, shares, [500_000])
    assert said[0] == "evaluating, intervals of accuracy"
    assert len(said) == 51  # two resamples at a time
    line = re.compile(r"evaluating, intervals of accuracy: \d+% of 100 resamples, \d+ min \d\d s left")
    assert all(map(line.fullmatch, said[1:]))
    assert said[-1].endswith("100% of 100 resamples, 0 min 00 s left")


def test_more_resamples_than_memory_holds_are_refused_before_they_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, said = measured(tmp_path, 1_000_000)
    monkeypatch.setattr(evaluator, "available_memory", lambda: 40e6)
    with pytest.raises(UserError, match=r"evaluate\.bootstrap is 1,000,000: .* memory: ask for fewer"):
        bench.estimate("images", FIGURES, shares, [500_000])
    assert len(said) == 1


def test_memory_that_runs_out_meanwhile_is_one_line(tmp_path: Path) -> None:
    def full(weights: Tensor) -> Tensor:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: not enough memory")

    bench, _ = measured(tmp_path, 100)
    with pytest.raises(UserError, match=r"evaluate\.bootstrap is 100: "):
        bench.estimate("images", FIGURES, full, [500_000])

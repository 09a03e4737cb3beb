"""Choosing by several figures at once: hand-made fronts, picks and regrets."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchored.errors import UserError
from anchored.metrics import selection

rows = st.lists(st.tuples(*[st.sampled_from([0.1, 0.2, 0.4])] * 3), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("name", "errors", "front"),
    [
        ("one", [[0.5, 0.5]], [True]),
        ("one beats the other", [[0.1, 0.1], [0.2, 0.2]], [True, False]),
        ("equal in one aim, worse in the other", [[0.1, 0.2], [0.1, 0.3]], [True, False]),
        ("a trade-off", [[0.1, 0.3], [0.3, 0.1]], [True, True]),
        ("equal ones stay", [[0.2, 0.2], [0.2, 0.2], [0.3, 0.2]], [True, True, False]),
        ("beaten by none of the mean, by one of the ends", [[0.1, 0.4], [0.3, 0.2], [0.35, 0.2]], [True, True, False]),
        ("four aims", [[1, 2, 3, 4], [4, 3, 2, 1], [4, 3, 3, 4], [1, 2, 3, 3]], [False, True, False, True]),
    ],
)
def test_front_by_hand(name: str, errors: list[list[float]], front: list[bool]) -> None:
    assert selection.pareto(errors) == front


@given(rows)
def test_a_front_is_never_empty_and_holds_the_pick(errors: list[tuple[float, ...]]) -> None:
    front, picked = selection.pareto(errors), selection.pick(errors, [0.0] * len(errors))
    assert any(front)
    assert picked is not None
    assert front[picked]
    for row, on_it in zip(errors, front, strict=True):
        beaten = any(all(a <= b for a, b in zip(other, row, strict=True)) and other != row for other in errors)
        assert on_it != beaten


def test_errors_of_figures() -> None:
    assert selection.error("accuracy", 80.0, 100) == pytest.approx(0.2)
    assert selection.error("auroc", 97.5, 100) == pytest.approx(0.025)
    assert selection.error("fpr95", 30.0, 100) == pytest.approx(0.3)
    assert selection.error("smooth_ece", 0.04, 100) == pytest.approx(0.04)
    assert selection.error("accuracy", 100.0, 100) == 0.005  # half an image: a logarithm needs more than nothing
    assert selection.error("smooth_ece", 0.0, 50) == 0.01


def test_pick_and_regret_by_hand() -> None:
    errors = [[0.4, 0.1], [0.1, 0.1], [0.2, 0.1]]  # geometric means 0.2, 0.1, √0.02
    assert [selection.mean_error(row) for row in errors] == pytest.approx([0.2, 0.1, math.sqrt(0.02)])
    assert selection.pick(errors, [90, 90, 90]) == 1
    assert selection.pick(errors, [90, 88, 89.5], least=89) == 2  # the best one costs too much clean accuracy
    assert selection.pick(errors, [90, 88, 89.5], least=91) is None
    assert selection.pick([[0.2], [0.2]], [1, 1]) == 0
    assert [selection.regret(errors, place) for place in range(3)] == pytest.approx([1, 0, math.sqrt(2) - 1])


@given(rows, st.tuples(*[st.sampled_from([0.01, 3.0])] * 3))
def test_units_do_not_change_the_pick(errors: list[tuple[float, ...]], units: tuple[float, ...]) -> None:
    scaled = [[a * unit for a, unit in zip(row, units, strict=True)] for row in errors]
    first, second = (selection.pick(each, [0.0] * len(errors)) for each in (errors, scaled))
    assert first is not None
    assert second is not None
    assert selection.mean_error(errors[first]) == pytest.approx(selection.mean_error(errors[second]))


def test_a_figure_that_is_missing_is_refused() -> None:
    with pytest.raises(UserError, match="every candidate's figure of every aim"):
        selection.pareto([[0.1, 0.2], [0.1]])

"""The code of docs/how-to/regression.md, as it stands there: what the page promises of its known function holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "how-to" / "regression.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def printed() -> tuple[dict[str, Any], dict[str, list[float]]]:
    """The names that the page defines, and each figure that it prints: of all seeds the mean, least and greatest."""
    names: dict[str, Any] = {}
    said: list[str] = []
    names["print"] = said.append
    exec(
        compile("\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)), "page", "exec"), names
    )
    figures = {line.partition(":")[0]: [float(number) for number in re.findall(r"\d+\.\d+", line)] for line in said}
    return names, figures


def test_intervals_hold_what_they_promise_of_points_like_the_held_out_ones(printed: Any) -> None:
    _, figures = printed
    for kind in ("coverage inside", "coverage inside, one width"):
        mean, least, _ = figures[kind]
        assert mean > 0.87  # of five draws of a law with mean 0.9 and s.d. 0.016
        assert least > 0.84


def test_the_mean_is_nearly_as_good_as_the_noise_lets_it_be(printed: Any) -> None:
    names, figures = printed
    assert names["NOISE"] * 0.97 < figures["rmse inside"][0] < 1.15 * names["NOISE"]


def test_the_spread_rises_where_nothing_was_seen(printed: Any) -> None:
    _, figures = printed
    assert figures["spread outside"][0] > 2 * figures["spread inside"][0]
    assert figures["AUROC of the spread"][0] > 0.9


def test_the_table_is_what_the_code_prints(printed: Any) -> None:
    _, figures = printed
    rows = re.findall(r"^\| (.+?) \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == len(figures) - 1
    for name, *shown in rows:
        assert [float(number) for number in shown] == pytest.approx(figures[name], abs=0.05, rel=0.3)

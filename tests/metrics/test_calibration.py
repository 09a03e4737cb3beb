import math
from typing import Any

import numpy as np
import pytest
import relplot
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchmetrics.functional.classification import binary_calibration_error

from anchored.errors import UserError
from anchored.metrics.calibration import ece, smooth_ece, weighted_smooth_ece


def calibration_data(count: int, power: float, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Confidences near one; right with chance confidence ** power (1: calibrated, 2: overconfident)."""
    rng = np.random.default_rng(seed)
    f = rng.beta(5, 1.2, count)
    return f, (rng.random(count) < f**power) * 1.0


def test_ece_zero_half_one() -> None:
    one, zero = torch.ones(4), torch.zeros(4)
    assert ece(one, one) == 0.0  # a confidence of one is not dropped ...
    assert ece(one, zero) == 1.0  # ... nor counted as right
    assert ece(torch.full((4,), 0.5), torch.tensor([1.0, 0, 1, 0])) == 0.0
    assert ece(one, torch.tensor([1.0, 0, 1, 0])) == 0.5


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_equals_a_plain_loop_and_torchmetrics(bins: int) -> None:
    f, y = calibration_data(500, 2.0)
    wanted = 0.0
    for b in range(bins):
        inside = (f >= b / bins) & ((f < (b + 1) / bins) | (b == bins - 1))
        wanted += abs(f[inside].sum() - y[inside].sum()) / len(f)
    value = ece(torch.from_numpy(f), torch.from_numpy(y), bins)
    assert value == pytest.approx(wanted, abs=1e-12)
    # torchmetrics reads the confidence of a positive: no value lies on an edge here, so the edges' sides agree.
    peer = binary_calibration_error(torch.from_numpy(f), torch.from_numpy(y).long(), n_bins=bins, norm="l1")
    assert value == pytest.approx(float(peer), abs=1e-6)


CASES = [(n, power, seed) for n in (1, 2, 7, 300, 3000) for power in (0.5, 1.0, 2.0, 8.0) for seed in (0, 1)]


@pytest.mark.parametrize(("count", "power", "seed"), CASES)
def test_smooth_ece_equals_relplot(count: int, power: float, seed: int) -> None:
    f, y = calibration_data(count, power, seed)
    value = smooth_ece(torch.from_numpy(f), torch.from_numpy(y))
    assert value == pytest.approx(relplot.smECE(f, y), abs=1e-9)


def test_smooth_ece_equals_relplot_on_narrow_kernels() -> None:
    f, y = calibration_data(100_000, 1.0, 3)  # about 0.005: grids of an odd and an even number of points
    value = smooth_ece(torch.from_numpy(f), torch.from_numpy(y))
    assert value == pytest.approx(relplot.smECE(f, y), abs=1e-9)
    assert value < 0.01


@pytest.mark.parametrize("f", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("y", [0.0, 1.0])
def test_smooth_ece_of_one_confidence_equals_relplot(f: float, y: float) -> None:
    ours = smooth_ece(torch.full((50,), f), torch.full((50,), y))
    assert ours == pytest.approx(relplot.smECE(np.full(50, f), np.full(50, y)), abs=1e-9)


def test_smooth_ece_zero_and_one() -> None:
    assert smooth_ece(torch.ones(100), torch.ones(100)) == 0.0
    assert smooth_ece(torch.ones(100), torch.zeros(100)) == pytest.approx(1, abs=2e-3)  # always wrong
    f, y = map(torch.from_numpy, calibration_data(20_000, 1.0))
    assert smooth_ece(f, y) < 0.015  # perfectly calibrated: noise of 1 / √N only


def old_smooth_ece(f: NDArray[Any], y: NDArray[Any]) -> float:
    """The older definition by brute force: every image's kernel at every grid point, images of the unit mirrored."""
    points = 200

    def value(sigma: float) -> float:
        place = f * (points - 1)
        cell = np.clip(place.astype(int), 0, points - 2)
        grid = np.zeros(points)
        np.add.at(grid, cell, (1 - (place - cell)) * (f - y))
        np.add.at(grid, cell + 1, (place - cell) * (f - y))
        # Grid points -P+1 ... 2P-2, mirrored about 0 and P - 1; an even count has its kernel half a cell further on.
        at = np.arange(-points + 1, 2 * points - 1)
        mirrored = grid[np.abs((at + points - 1) % (2 * points - 2) - points + 1)]
        distance = (np.arange(points)[:, None] + 0.5 - at[None, :]) / (points - 1)
        kernel = np.exp(-(distance**2) / (2 * sigma**2)) / (np.sqrt(2 * np.pi) * sigma)
        kernel[np.abs(distance) > 0.5 + 1e-9] = 0
        return float(np.abs(kernel @ mirrored).mean() / len(f))

    low, high = 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        while round(20 / middle) > points:
            points *= 4
        low, high = (middle, high) if middle < 0.001 or middle < value(middle) else (low, middle)
    return value(high)


@pytest.mark.parametrize(("count", "power", "seed"), [c for c in CASES if c[0] < 3000])
def test_older_smooth_ece_equals_brute_force(count: int, power: float, seed: int) -> None:
    f, y = calibration_data(count, power, seed)
    value = smooth_ece(torch.from_numpy(f), torch.from_numpy(y), "reflect_old")
    assert value == pytest.approx(old_smooth_ece(f, y), abs=1e-9)


@pytest.mark.parametrize("seed", [22_572, 37_363])
def test_older_smooth_ece_goes_up_where_the_published_search_does(seed: int) -> None:
    """At a bandwidth of 1/8 the grid gets finer and the curve jumps, so that it meets the bandwidth twice."""
    rng = np.random.default_rng(seed)
    f = rng.beta(5, 1.2, 40)
    y = (rng.random(40) < f - 0.125) * 1.0
    values = weighted_smooth_ece(torch.from_numpy(f), torch.from_numpy(y), "reflect_old")(torch.ones(2, 40).double())
    assert values.tolist() == pytest.approx([old_smooth_ece(f, y)] * 2, abs=1e-9)


@pytest.mark.parametrize(
    ("count", "power", "seed", "wanted"),
    [
        (300, 1.0, 0, 0.03309879256813841),
        (3000, 2.0, 1, 0.11614247540774227),
        (3000, 8.0, 0, 0.3938512663908903),
        (50_000, 1.0, 2, 0.0076434193773010466),
    ],
)
def test_older_smooth_ece_equals_older_relplot(count: int, power: float, seed: int, wanted: float) -> None:
    # Made once with: uv venv old && uv pip install --python old 'relplot==1.0.1' 'scikit-learn<1.6', then in it
    # relplot.smECE(*calibration_data(count, power, seed)). Versions 1.0.2 and 1.0.3 have the newer edges.
    f, y = map(torch.from_numpy, calibration_data(count, power, seed))
    assert smooth_ece(f, y, "reflect_old") == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(("variant", "wanted"), [("reflect", 1.0), ("reflect_old", 0.39884296304429356)])
def test_variants_differ_where_all_confidence_is_one(variant: str, wanted: float) -> None:
    assert smooth_ece(torch.ones(50), torch.zeros(50), variant) == pytest.approx(wanted, abs=2e-3)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_smooth_ece_properties(images: list[tuple[float, bool]]) -> None:
    f, y = (torch.tensor(column, dtype=torch.float64) for column in zip(*images, strict=True))
    value = smooth_ece(f, y)
    assert 0 <= value <= 1
    assert smooth_ece(f.flip(0), y.flip(0)) == pytest.approx(value, abs=1e-9)
    assert smooth_ece(1 - f, 1 - y) == pytest.approx(value, abs=1e-3)  # the fixed point's own resolution


@pytest.mark.parametrize("variant", ["reflect", "reflect_old"])
def test_weights_are_repeated_images(variant: str) -> None:
    f, y = map(torch.from_numpy, calibration_data(200, 2.0))
    counts = torch.randint(0, 4, (5, 200), generator=torch.Generator().manual_seed(0))
    found = weighted_smooth_ece(f, y, variant)(counts.double())
    wanted = [smooth_ece(f.repeat_interleave(c), y.repeat_interleave(c), variant) for c in counts]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("metric", [ece, smooth_ece])
@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        ([math.nan], [1.0], "confidence holds NaN"),
        ([], [], "confidence must be one value per image"),
        ([0.5, 0.5], [1.0], "differ in length"),
        ([1.5], [1.0], "must lie in"),
        ([0.5], [0.5], "correct must be 0 or 1"),
    ],
)
def test_calibration_refuses(metric: Any, confidence: list[float], correct: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        metric(torch.tensor(confidence), torch.tensor(correct))


def test_other_settings_refuse() -> None:
    with pytest.raises(UserError, match="variants"):
        smooth_ece(torch.ones(1), torch.ones(1), "new")
    with pytest.raises(UserError, match="at least one bin"):
        ece(torch.ones(1), torch.ones(1), 0)

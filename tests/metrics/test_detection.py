import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor

from anchored.errors import UserError
from anchored.metrics.detection import aupr, auroc, fpr_at_tpr

few_scores = st.lists(st.integers(-6, 6).map(float), min_size=1, max_size=30).map(torch.tensor)


def test_auroc_zero_half_one() -> None:
    low, high = torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0, 4.0])
    assert auroc(low, high) == 1.0
    assert auroc(high, low) == 0.0
    assert auroc(torch.ones(3), torch.ones(5)) == 0.5
    assert fpr_at_tpr(low, high) == 0.0
    assert fpr_at_tpr(high, low) == 1.0
    assert aupr(low, high) == 1.0
    assert aupr(torch.ones(3), torch.ones(5)) == 5 / 8


@settings(max_examples=60, deadline=None)
@given(few_scores, few_scores)
def test_rank_metrics_equal_scikit_learn_with_ties(ins: Tensor, outs: Tensor) -> None:
    truth, scores = [0] * len(ins) + [1] * len(outs), torch.cat([ins, outs]).numpy()
    assert auroc(ins, outs) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert aupr(ins, outs) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    for level in (0.5, 0.95, 1.0):
        assert fpr_at_tpr(ins, outs, level) == pytest.approx(fpr[np.argmax(tpr >= level)], abs=1e-12)


def test_rank_metrics_equal_scikit_learn_at_size() -> None:
    generator = torch.Generator().manual_seed(0)
    ins, outs = torch.randn(5000, generator=generator), torch.randn(3000, generator=generator) + 1
    truth, scores = np.repeat([0, 1], [5000, 3000]), torch.cat([ins, outs]).numpy()
    assert auroc(ins, outs) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert aupr(ins, outs) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(few_scores, few_scores)
def test_auroc_swaps_and_ignores_monotone_maps(ins: Tensor, outs: Tensor) -> None:
    value = auroc(ins, outs)
    assert auroc(outs, ins) == pytest.approx(1 - value, abs=1e-12)
    assert auroc(-ins, -outs) == pytest.approx(1 - value, abs=1e-12)
    assert auroc((ins.double() / 3).exp(), (outs.double() / 3).exp()) == value


@pytest.mark.parametrize("metric", [auroc, aupr, fpr_at_tpr])
def test_rank_metrics_refuse(metric: Any) -> None:
    good = torch.ones(2)
    for bad, message in ((torch.ones(0), "N > 0"), (torch.tensor([math.nan]), "NaN"), (torch.ones(1, 1), "shape")):
        with pytest.raises(UserError, match=message):
            metric(bad, good)
        with pytest.raises(UserError, match=message):
            metric(good, bad)


def test_tpr_is_a_fraction() -> None:
    with pytest.raises(UserError, match="fraction"):
        fpr_at_tpr(torch.ones(1), torch.ones(1), 95)

"""Rates by part, frozen parts, optimisers and schedules."""

import copy
import math

import pytest
import timm
import torch
from torch import nn

from anchored.config.settings import Training
from anchored.errors import UserError
from anchored.training.fit import SyncBatchNorms
from anchored.training.optimiser import optimizer, schedule_factor
from anchored.training.rates import freeze, hold, rate_factors

PARTS = {"stem": ("first",), "head": ("last.1",)}


def network() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "first": nn.Conv2d(3, 4, 3),
            "blocks": nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)),
            "last": nn.Sequential(nn.Flatten(), nn.Linear(4, 2)),
        }
    )


def test_the_longest_name_decides() -> None:
    of = rate_factors(network(), {"": 0.1, "blocks": 0.5, "blocks.1.bias": 2.0, "head": 10.0}, PARTS)
    assert of["first.weight"] == 0.1
    assert of["blocks.0.weight"] == of["blocks.1.weight"] == 0.5
    assert of["blocks.1.bias"] == 2.0
    assert of["last.1.weight"] == of["last.1"] == 10.0
    assert of["last"] == 0.1


def test_names_are_whole_parts() -> None:
    blocks = nn.Sequential(*[nn.Linear(1, 1) for _ in range(11)])
    of = rate_factors(nn.ModuleDict({"blocks": blocks}), {"blocks.1": 0.0}, {})
    assert of["blocks.1.weight"] == 0.0
    assert of["blocks.10.weight"] == 1.0


def test_an_unknown_part_is_one_line() -> None:
    with pytest.raises(UserError, match="'blokcs', which the network has not: there are stem, head, first, blocks"):
        rate_factors(network(), {"blokcs": 1.0}, PARTS)


def test_frozen_parts_have_no_gradient_and_stay_in_evaluation() -> None:
    net = network()
    of = rate_factors(net, {"": 0.0, "head": 1.0}, PARTS)
    freeze(net, of)
    hold(net.train(), of)
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["last.1.weight", "last.1.bias"]
    held = {name for name, module in net.named_modules() if not module.training}
    assert held == {"first", "blocks", "blocks.0", "blocks.1", "last.0"}
    (group,) = optimizer(net, Training(), of).param_groups
    assert len(group["params"]) == 2
    with pytest.raises(UserError, match="freezes every part"):
        freeze(net, rate_factors(net, {"": 0.0}, PARTS))


def test_batch_norms_that_hold_an_activation_are_frozen_and_shared_with_it() -> None:
    """timm's: they have modules in them, and torch's conversion to shared statistics would drop these."""
    net = timm.create_model("regnetx_002", num_classes=3).train()
    of, images = rate_factors(net, {"": 0.0, "s4": 1.0, "head": 1.0}, {}), torch.randn(2, 3, 32, 32)
    expected = copy.deepcopy(net).eval()(images)
    shared = SyncBatchNorms().apply(net)
    hold(shared, of)
    norms = {n: m for n, m in shared.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms.values())
    assert {name for name, norm in norms.items() if norm.training} == {name for name in norms if name.startswith("s4.")}
    assert [name for name, module in shared.named_children() if not module.training] == [
        "stem",
        "s1",
        "s2",
        "s3",
        "final_conv",
    ]
    assert torch.allclose(shared.eval()(images), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_groups_have_their_own_rates(name: str) -> None:
    net = network()
    of = rate_factors(net, {"stem": 0.1, "head": 10.0}, PARTS)
    settings = Training(optimizer=name, learning_rate=0.01, weight_decay=0.05)  # type: ignore[arg-type]
    made = optimizer(net, settings, of)
    assert isinstance(made, torch.optim.AdamW if name == "adamw" else torch.optim.SGD)
    rates = {id(p): group["lr"] for group in made.param_groups for p in group["params"]}
    found = {n: rates[id(p)] for n, p in net.named_parameters()}
    assert found["first.bias"] == pytest.approx(0.001)
    assert found["blocks.1.bias"] == pytest.approx(0.01)
    assert found["last.1.bias"] == pytest.approx(0.1)
    assert {group["weight_decay"] for group in made.param_groups} == {0.05}


def test_steps_schedule_is_the_papers() -> None:
    factors = [schedule_factor(Training(), epoch / 200) for epoch in (0, 59, 60, 119, 120, 159, 160, 199)]
    assert factors == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04, 0.008, 0.008])


def test_one_cycle_goes_up_and_down_to_zero() -> None:
    settings = Training(schedule="one_cycle")
    assert [schedule_factor(settings, done) for done in (0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.5, 1.0, 0.5, 0.0])


def test_warm_up_and_cosine_are_those_of_torch() -> None:
    """Against torchvision's reference schedule: LinearLR for the first epochs, then CosineAnnealingLR."""
    steps, warm = 40, 8
    settings = Training(schedule="cosine", warmup=warm / steps, warmup_start=0.033, learning_rate=1.0)
    peer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        peer,
        [
            torch.optim.lr_scheduler.LinearLR(peer, 0.033, total_iters=warm),
            torch.optim.lr_scheduler.CosineAnnealingLR(peer, steps - warm),
        ],
        milestones=[warm],
    )
    for step in range(steps):
        assert schedule_factor(settings, step / steps) == pytest.approx(peer.param_groups[0]["lr"])
        peer.step()
        schedule.step()
    assert math.isclose(schedule_factor(settings, 1.0), 0.0, abs_tol=1e-12)


def test_biases_and_norms_can_be_left_out_of_weight_decay() -> None:
    net = network()
    of = rate_factors(net, {"head": 2.0}, PARTS)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    groups = optimizer(net, Training(optimizer="adamw", decay_vectors=False), of).param_groups
    assert [([names[id(p)] for p in group["params"]], group["weight_decay"], group["factor"]) for group in groups] == [
        (["first.weight", "blocks.1.weight"], 5e-4, 1.0),
        (["first.bias", "blocks.0.weight", "blocks.0.bias", "blocks.1.bias"], 0.0, 1.0),
        (["last.1.weight"], 5e-4, 2.0),
        (["last.1.bias"], 0.0, 2.0),
    ]
    assert len(optimizer(net, Training(optimizer="adamw"), of).param_groups) == 2


def test_cosine_ends_at_the_last_rate() -> None:
    settings = Training(schedule="cosine", warmup=0.1, last_rate=0.01)
    assert schedule_factor(settings, 0.1) == 1.0
    assert schedule_factor(settings, 0.55) == pytest.approx(0.505)  # the middle of 1 and 0.01
    assert schedule_factor(settings, 1.0) == pytest.approx(0.01)

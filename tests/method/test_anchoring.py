"""The method: pairs, masks, references, and that it works unchanged in other people's loops."""

import copy
import warnings
from typing import Any, cast

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import anchored
from anchored.method.anchoring import AnchoredModel, pair
from anchored.models import registry as networks
from anchored.store.files import load_tensors, save_tensors


def small(channels: int = 3, classes: int = 5) -> nn.Module:
    return networks.build_network("small", channels=channels, classes=classes, seed=1)


def images(count: int = 6, channels: int = 3, size: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def test_pair_is_reference_then_residual() -> None:
    x, r = torch.tensor([5.0, 7.0]).view(2, 1, 1, 1), torch.tensor([2.0, 10.0]).view(2, 1, 1, 1)
    assert pair(x, r).flatten(1).tolist() == [[2.0, 3.0], [10.0, -3.0]]


def test_mask_removes_the_reference_after_the_residual_was_computed() -> None:
    x, r = torch.tensor([5.0, 7.0]).view(2, 1, 1, 1), torch.tensor([2.0, 10.0]).view(2, 1, 1, 1)
    assert pair(x, r, torch.tensor([True, False])).flatten(1).tolist() == [[0.0, 3.0], [10.0, -3.0]]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 10))
def test_kept_stem_gives_the_given_networks_answers_for_every_reference(seed: int, scale: float) -> None:
    network = small().eval()
    model = anchored.anchor(network)
    model.set_references(scale * images(2, seed=seed))
    torch.testing.assert_close(model(images()), network(images()), rtol=1e-4, atol=1e-5)


def test_unset_references_are_zero_and_then_the_first_training_image() -> None:
    network = small().eval()
    model = anchored.anchor(network)
    torch.testing.assert_close(model(images()), network(images()), rtol=1e-5, atol=1e-5)
    model.train()(images())
    assert model.references is not None
    assert torch.equal(model.references, images()[:1])


def test_the_given_network_is_not_changed() -> None:
    network = small()
    before = copy.deepcopy(network.state_dict())
    anchored.anchor(network, 0.5).train()(images())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_fresh_stem_depends_on_the_reference_and_leaves_the_rest() -> None:
    network = small()
    model = anchored.anchor(network, fresh_stem=True).eval()
    model.set_references(images(1, seed=1))
    first = model(images())
    model.set_references(images(1, seed=2))
    assert (first - model(images())).abs().max() > 1e-3
    own, wide = network.state_dict(), model.network.state_dict()
    different = [name for name in own if own[name].shape != wide[name].shape or not torch.equal(own[name], wide[name])]
    assert different == ["stem.weight"]
    ratio = wide["stem.weight"].std() / own["stem.weight"].std()
    assert 0.85 < ratio < 1.15


class Spy(nn.Module):
    """Keeps the pairs it is shown; logits are the mean of reference and residual channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach())
        return x.mean(dim=(2, 3)) * self.conv.weight.sum()


def spying(alpha: float, **settings: Any) -> tuple[AnchoredModel, Spy]:
    model = AnchoredModel(Spy(), alpha, **settings)  # it takes pairs as it is
    spy = model.network
    assert isinstance(spy, Spy)
    return model.train(), spy


def test_training_references_are_the_batch_shuffled() -> None:
    model, spy = spying(0.0)
    x = torch.arange(8.0).view(8, 1, 1, 1)
    model(x)
    reference, residual = spy.seen[0][:, :1], spy.seen[0][:, 1:]
    assert sorted(reference.flatten().tolist()) == x.flatten().tolist()
    assert reference.flatten().tolist() != x.flatten().tolist()
    assert torch.equal(reference + residual, x)


def test_a_process_masks_its_group_of_images_with_one_draw() -> None:
    model, spy = spying(0.5, mask_unit="process", mask_group=3)
    drawn = torch.Generator().manual_seed(0)
    whole = set()
    for _ in range(40):
        model(torch.randn(8, 1, 2, 2) + 5)
        torch.randperm(8, generator=drawn)
        masks = torch.rand(3, generator=drawn) < 0.5  # groups of 3, 3 and the 2 that are left
        expected = masks.repeat_interleave(3)[:8]
        assert torch.equal(model.masked, expected)
        assert torch.equal((spy.seen[-1][:, 0] == 0).all(dim=(1, 2)), expected)
        whole.add(tuple(masks.tolist()))
    assert len(whole) == 8  # groups are masked independently


def test_a_group_as_large_as_the_batch_is_the_batch_and_of_one_is_the_image() -> None:
    for unit, group in (("batch", 8), ("image", 1)):
        one, other = spying(0.5, mask_unit=unit)[0], spying(0.5, mask_unit="process", mask_group=group)[0]
        for _ in range(20):
            x = torch.randn(8, 1, 2, 2)
            one(x), other(x)
            assert torch.equal(one.masked, other.masked)
            assert torch.equal(one.order, other.order)


def test_training_draws_references_from_a_set_where_one_is_given() -> None:
    model, spy = spying(0.0)
    pool = torch.arange(100.0, 103.0).view(3, 1, 1, 1)
    model.set_training_references(pool)
    x, seen = torch.arange(8.0).view(8, 1, 1, 1), set()
    for _ in range(20):
        model(x)
        reference, residual = spy.seen[-1][:, :1], spy.seen[-1][:, 1:]
        assert torch.equal(reference, pool[model.order])
        assert torch.equal(reference + residual, x)
        seen |= set(reference.flatten().tolist())
    assert seen == {100.0, 101.0, 102.0}
    assert "training_references" not in model.state_dict()
    with pytest.raises(anchored.UserError, match="references of training are 1×1×1"):
        model(torch.zeros(2, 1, 3, 3))
    model.set_training_references(None)
    model(x)
    assert sorted(spy.seen[-1][:, 0].flatten().tolist()) == x.flatten().tolist()


@pytest.mark.parametrize(("unit", "low", "high"), [("batch", 0.15, 0.35), ("image", 0.22, 0.28)])
def test_masks_come_with_their_probability_and_unit(unit: Any, low: float, high: float) -> None:
    model, spy = spying(0.25, mask_unit=unit)
    x = torch.randn(16, 1, 2, 2) + 5
    whole = 0
    for _ in range(300):
        model(x)
        masked = (spy.seen[-1][:, 0] == 0).all(dim=(1, 2))
        assert torch.equal(masked, model.masked)
        whole += bool(masked.all() or not masked.any())
    shares = torch.stack([(seen[:, 0] == 0).all(dim=(1, 2)).float().mean() for seen in spy.seen])
    assert low < shares.mean() < high
    assert (whole == 300) == (unit == "batch")


@pytest.mark.parametrize("alpha", [0.0, 1 - 1e-9])
def test_mask_probability_at_its_ends(alpha: float) -> None:
    model, _ = spying(alpha)
    for _ in range(20):
        model(torch.randn(4, 1, 2, 2))
        assert bool(model.masked.all()) is (alpha > 0)
        assert bool(model.masked.any()) is (alpha > 0)


def test_same_generator_same_draws() -> None:
    seen: list[Tensor] = []
    for _ in range(2):
        model, spy = spying(0.5, mask_unit="image", generator=torch.Generator().manual_seed(7))
        torch.manual_seed(len(seen))  # the global state plays no part
        model(images(5, 1, 3))
        seen.append(spy.seen[0])
    assert torch.equal(seen[0], seen[1])


def test_evaluation_is_the_mean_of_the_logits_over_references() -> None:
    model = anchored.anchor(small(), fresh_stem=True).eval()
    references, x = images(3, seed=5), images()
    single = []
    for reference in references:
        model.set_references(reference[None])
        single.append(model(x))
    model.set_references(references)
    torch.testing.assert_close(model(x), torch.stack(single).mean(dim=0), rtol=1e-5, atol=1e-6)
    assert torch.equal(model(x), model(x))


def test_references_survive_save_and_load(tmp_path: Any) -> None:
    model = anchored.anchor(small(), 0.25, fresh_stem=True)
    model.set_references(images(4, seed=3))
    save_tensors(tmp_path / "w.safetensors", dict(model.state_dict()))
    other = anchored.anchor(small(), 0.25)
    other.set_references(images(1))  # another number of references: the saved ones win
    other.load_state_dict(load_tensors(tmp_path / "w.safetensors")[0])
    assert other.references is not None
    assert torch.equal(other.references, images(4, seed=3))
    assert torch.equal(other.eval()(images()), model.eval()(images()))


def test_uniform_targets_of_masked_pairs() -> None:
    model, _ = spying(0.5, mask_unit="image", masked_target="uniform")
    model(images(64, 1, 2))
    labels = torch.arange(64) % 2
    targets = model.targets(labels, 2)
    assert 10 < model.masked.sum() < 54
    assert (targets[model.masked] == 0.5).all()
    assert torch.equal(targets[~model.masked], functional.one_hot(labels, 2).float()[~model.masked])
    model, _ = spying(0.5)
    model(images(64, 1, 2))
    assert model.targets(labels, 2) is labels


def running_statistics(model: nn.Module) -> list[Tensor]:
    return [module.running_mean.clone() for module in model.modules() if isinstance(module, nn.BatchNorm2d)]  # type: ignore[union-attr]


@pytest.mark.parametrize(("policy", "moves"), [("unmasked", False), ("all", True)])
def test_masked_passes_leave_running_statistics_alone(policy: Any, moves: bool) -> None:
    model = anchored.anchor(small(), 1 - 1e-9, batch_norm=policy, fresh_stem=True).train()
    before = running_statistics(model)
    model(images())
    assert model.masked.all()
    assert all(torch.equal(a, b) for a, b in zip(before, running_statistics(model), strict=True)) is not moves
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_a_backward_pass_that_fails_leaves_no_statistics_frozen() -> None:
    """As where memory runs out, and the loop goes on with the next batch."""
    model = anchored.anchor(small(), 1 - 1e-9, fresh_stem=True).train()
    handle = next(model.parameters()).register_hook(lambda _: (_ for _ in ()).throw(RuntimeError("out of memory")))  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="out of memory"):
        model(images()).sum().backward()
    handle.remove()
    model.mask_probability, before = 0.0, running_statistics(model)
    model(images()).sum().backward()
    assert not any(torch.equal(a, b) for a, b in zip(before, running_statistics(model), strict=True))


def test_ordinary_passes_move_running_statistics() -> None:
    model = anchored.anchor(small(), 0.0).train()
    before = running_statistics(model)
    model(images())
    assert not any(torch.equal(a, b) for a, b in zip(before, running_statistics(model), strict=True))


@pytest.mark.parametrize("alpha", [-0.1, 1.0, float("nan")])
def test_bad_mask_probability_is_one_line(alpha: float) -> None:
    with pytest.raises(anchored.UserError, match=r"mask_probability is .*: give a number in \[0, 1\)"):
        anchored.anchor(small(), alpha)


@pytest.mark.parametrize(
    ("references", "said"),
    [
        (torch.zeros(0, 3, 12, 12), "must be normalised images"),
        (torch.zeros(1, 3, 12, 12, dtype=torch.uint8), "must be normalised images"),
        (torch.full((1, 3, 12, 12), float("nan")), "NaN or infinity"),
    ],
)
def test_bad_references_are_one_line(references: Tensor, said: str) -> None:
    with pytest.raises(anchored.UserError, match=said):
        anchored.anchor(small()).set_references(references)


def test_references_have_the_networks_precision() -> None:
    model = anchored.anchor(small()).eval()
    model.set_references(images().double())
    assert model(images()).dtype == torch.float32


@pytest.mark.parametrize("training", [True, False])
def test_raw_images_are_one_line(training: bool) -> None:
    model = anchored.anchor(small()).train(training)
    model.set_references(images())
    raw = torch.zeros(2, 3, 12, 12, dtype=torch.uint8)
    with pytest.raises(anchored.UserError, match=r"images are torch\.uint8: give normalised floats"):
        model(raw)
    with pytest.raises(anchored.UserError, match=r"images are torch\.uint8: give normalised floats"):
        anchored.infer(model.eval(), raw)


def test_images_of_another_size_are_one_line() -> None:
    model = anchored.anchor(small()).eval()
    model.set_references(images())
    with pytest.raises(anchored.UserError, match="images are 3×8×8 but the model's references are 3×12×12"):
        model(images(size=8))


def test_settings_are_checked() -> None:
    with pytest.raises(anchored.UserError, match=r"the network is a str: give a torch\.nn\.Module"):
        anchored.anchor("resnet18")  # type: ignore[arg-type]
    with pytest.raises(anchored.UserError, match="mask_unit is 'pixel': give 'batch' or 'process' or 'image'"):
        anchored.anchor(small(), mask_unit="pixel")  # type: ignore[arg-type]
    with pytest.raises(anchored.UserError, match="mask_group is 0"):
        anchored.anchor(small(), mask_unit="process", mask_group=0)


def plain_loop(model: nn.Module, steps: int = 3, **autocast: Any) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    labels = torch.arange(8) % 5
    losses = []
    for step in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(autocast)):
            loss = functional.cross_entropy(model(images(8, seed=step)), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_in_a_plain_loop_under_autocast() -> None:
    losses = plain_loop(anchored.anchor(small(), 0.5).train(), bf16=True)
    assert torch.tensor(losses).isfinite().all()
    torch.testing.assert_close(losses, plain_loop(anchored.anchor(small(), 0.5).train()), rtol=0.05, atol=0.05)


def test_channels_last_gives_the_same_training() -> None:
    model = anchored.anchor(small(), 0.5).train().to(memory_format=torch.channels_last)
    reference = anchored.anchor(small(), 0.5).train()
    torch.testing.assert_close(plain_loop(model), plain_loop(reference), rtol=1e-3, atol=1e-3)


def test_a_deep_copy_goes_on_alike() -> None:  # what averages of weights (EMA, SWA) begin with
    model = anchored.anchor(small(), 0.5).train()
    model(images())
    copied = copy.deepcopy(model)
    assert torch.equal(copied(images()), model(images()))
    assert torch.equal(copied.masked, model.masked)


def test_compiled_gives_the_same_training() -> None:
    model = anchored.anchor(small(), 0.5).train()
    compiled = cast(
        nn.Module, torch.compile(model, backend="aot_eager")
    )  # traces and differentiates like the real one, in seconds
    reference = anchored.anchor(small(), 0.5).train()
    torch.testing.assert_close(plain_loop(compiled, 6), plain_loop(reference, 6))
    torch.testing.assert_close(running_statistics(model), running_statistics(reference))
    compiled.eval()
    torch.testing.assert_close(compiled(images()), reference.eval()(images()), rtol=1e-3, atol=1e-3)


def test_gradients_reach_both_halves_of_the_stem() -> None:
    model = anchored.anchor(small(), fresh_stem=True).train()
    functional.cross_entropy(model(images()), torch.zeros(6, dtype=torch.long)).backward()  # type: ignore[no-untyped-call]
    gradient = model.network.get_parameter("stem.weight").grad
    assert gradient is not None
    assert (gradient.abs().sum(dim=(0, 2, 3)) > 0).all()


def test_a_batch_of_one_image_warns_once() -> None:
    model = anchored.anchor(small(), 0.25).eval()
    model(images(1))  # no warning: there it meets the saved references
    model.train()
    for count, warned in ((2, 0), (1, 1), (1, 0)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model(images(count))
        assert len(caught) == warned
        assert all("its residual is zero" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_repeats_the_references(reentrant: bool, alpha: float) -> None:
    batches = [images(seed=1), images(seed=2), images(seed=2)]  # three passes before one backward pass, one twice
    found = []
    for checkpointed in (False, True):
        model = anchored.anchor(small(), alpha, mask_unit="image", fresh_stem=True).train()

        def logits(x: Tensor, model: nn.Module = model, checkpointed: bool = checkpointed) -> Tensor:
            def run(x: Tensor) -> Tensor:
                return cast(Tensor, model(2 * x))  # another tensor each time

            return checkpoint(run, x, use_reentrant=reentrant) if checkpointed else run(x)

        losses = [functional.cross_entropy(logits(x.requires_grad_()), torch.arange(6) % 5) for x in batches]
        (losses[0] + 2 * losses[1] + 3 * losses[2]).backward()  # type: ignore[no-untyped-call]
        gradients = [each.grad for each in model.parameters()]
        found.append([*gradients, model.generator.get_state()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("alpha", [0.0, 1 - 1e-9])
def test_layers_that_checkpoint_themselves_leave_statistics_alone_where_the_batch_is_masked(alpha: float) -> None:
    network = cast(Any, timm).create_model("resnet10t", num_classes=5)
    moved = []
    for checkpointed in (False, True):
        model = anchored.anchor(network, alpha).train()
        cast(Any, model.network).set_grad_checkpointing(checkpointed)
        before = running_statistics(model)
        model(images(size=32)).sum().backward()
        moved.append(any(not torch.equal(a, b) for a, b in zip(before, running_statistics(model), strict=True)))
        assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert moved == [alpha == 0] * 2

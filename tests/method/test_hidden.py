"""Anchoring at a hidden layer: exact, masks as at the input, the front run once, folded, and refused in one line."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from fixtures.trained_norms import draw_norms
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import anchored
from anchored.errors import UserError
from anchored.method.equivalence import max_relative_difference
from anchored.method.hidden import HiddenAnchoredModel
from anchored.method.hidden_folding import FoldedHidden
from anchored.method.hidden_layer import ROWS
from anchored.method.stem import replace_module
from anchored.models import registry as networks
from anchored.models.features import penultimate_features


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small(**options: Any) -> nn.Module:
    return networks.build_network("small", channels=3, classes=5, seed=1, **options).eval()


def anchored_at(network: nn.Module, at: str, **options: Any) -> HiddenAnchoredModel:
    model = anchored.anchor(network, at=at, **options)
    assert isinstance(model, HiddenAnchoredModel)
    return model


class Tokens(nn.Module):
    """Patches to tokens (B,T,D), blocks with residual connections and layer norms, their mean to logits."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm, self.mix, self.mlp = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

        def forward(self, tokens: Tensor) -> Tensor:
            mixed: Tensor = tokens + self.mix(self.norm(tokens)).mean(dim=1, keepdim=True)
            result: Tensor = mixed + self.mlp(mixed).relu()
            return result

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.blocks = nn.Sequential(*(self.Block(width) for _ in range(3)))
        self.head = nn.Linear(width, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.blocks(self.patches(images).flatten(2).transpose(1, 2))
        logits: Tensor = self.head(tokens.mean(dim=1))
        return logits


CASES: dict[str, tuple[Callable[[], nn.Module], str, list[str], int]] = {  # at, the wide layers, dim of features
    "a stage whose first layers are convolutions": (small, "blocks.2", ["blocks.2.conv1", "blocks.2.shortcut.0"], 1),
    "a block with its input in a residual sum": (small, "blocks.0", ["blocks.0.entry"], 1),
    "the whole trunk": (small, "blocks", ["blocks.0.entry"], 1),
    "batch norm": (small, "stem_norm", ["stem_norm.0.entry"], 1),
    "the head": (small, "head", ["head"], 1),
    "tokens": (Tokens, "blocks.1", ["blocks.1.entry"], -1),
}


@pytest.mark.parametrize("case", CASES)
def test_kept_weights_give_the_given_networks_answers_for_every_reference(case: str) -> None:
    make, at, wide, dim = CASES[case]
    torch.manual_seed(0)
    network = make().eval()
    model, x = anchored_at(network, at), noise(6, 3, 12, 12)
    assert model.stem is not None
    assert (list(model.stem.calls), model.entry.dim) == (wide, dim)
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)  # features of zeros
        for count in (1, 3):
            model.set_references(noise(count, 3, 12, 12, seed=1))
            torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def by_hand(weight: tuple[float, float]) -> HiddenAnchoredModel:
    """Front: twice the image. Layer: a·r + b·(h − r), then a square."""

    class Square(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return values.square()

    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Sequential(nn.Linear(1, 1, bias=False), Square()))
    with torch.no_grad():
        network.get_parameter("0.weight").fill_(2)
        model = anchored_at(network.eval(), "1", example=torch.zeros(1, 1))
        model.network.get_parameter("1.0.weight").copy_(torch.tensor([weight]))
    return model


def test_by_hand() -> None:
    model = by_hand((5.0, 3.0))
    model.set_references(torch.tensor([[1.0], [4.0]]))  # features 2 and 8
    # h = 20: (5·2 + 3·18)² = 64², (5·8 + 3·12)² = 76²
    assert model(torch.tensor([[10.0]])).tolist() == [[(64**2 + 76**2) / 2]]
    model.references = None
    assert model(torch.tensor([[10.0]])).tolist() == [[3600.0]]  # [0, 20]


def test_training_pairs_features_and_masks_them() -> None:
    model = by_hand((5.0, 3.0)).train()
    x = torch.arange(1.0, 9).view(8, 1)
    h, order = 2 * x, None
    for alpha, unit in ((0.0, "batch"), (0.5, "image")):
        model.mask_probability, model.mask_unit = alpha, unit  # type: ignore[assignment]
        logits, order = model(x), model.order
        r = h[order] * ~model.masked[:, None]
        torch.testing.assert_close(logits, (5 * r + 3 * (h - h[order])).square())
    assert model.masked.any()
    assert not model.masked.all()
    assert model.targets(torch.zeros(8, dtype=torch.int64), 3).tolist() == [0] * 8
    model.masked_target = "uniform"
    soft = model.targets(torch.zeros(8, dtype=torch.int64), 2)
    assert torch.equal(soft[:, 1], 0.5 * model.masked)


def test_draws_are_those_of_a_network_anchored_at_its_input() -> None:
    hidden, shown = anchored_at(small(), "blocks.1", mask_probability=0.5).train(), noise(8, 3, 12, 12)
    at_input = anchored.anchor(small(), mask_probability=0.5).train()
    for _ in range(6):
        hidden(shown), at_input(shown)
        assert torch.equal(hidden.order, at_input.order)
        assert torch.equal(hidden.masked, at_input.masked)


@pytest.mark.parametrize(("policy", "moves"), [("unmasked", False), ("all", True)])
def test_whole_masked_batches_leave_running_statistics_alone(policy: Any, moves: bool) -> None:
    model = anchored_at(small(), "blocks.1", mask_probability=0.99, batch_norm=policy).train()
    before = copy.deepcopy(dict(model.named_buffers()))
    model(noise(8, 3, 12, 12))
    assert model.masked.all()
    changed = [name for name, value in model.named_buffers() if "running" in name and not value.equal(before[name])]
    assert bool(changed) is moves


class Counting(nn.Module):
    def __init__(self, layer: nn.Module, counts: list[int]) -> None:
        super().__init__()
        self.layer, self.counts = layer, counts

    def forward(self, x: Tensor) -> Tensor:
        self.counts.append(len(x))
        result: Tensor = self.layer(x)
        return result


@pytest.mark.parametrize(("images", "references"), [(1, 10), (5, 10), (40, 10), (ROWS + 1, 2)])
def test_the_front_runs_once_for_all_references(images: int, references: int) -> None:
    model = anchored_at(small(width=0.25), "blocks.1", fresh_stem=True).eval()
    front, rear = list[int](), list[int]()
    for name, counts in (("blocks.0", front), ("blocks.2", rear)):
        block = model.network.get_submodule(name)
        replace_module(model.network, block, Counting(block, counts))
    model.set_references(noise(references, 3, 8, 8, seed=1))
    x = noise(images, 3, 8, 8)
    with torch.no_grad():
        found = model(x)
        assert front[:2] == [references, images]  # the references' features, then the images
        assert sum(rear) == references * images
        assert max(rear) <= max(ROWS, images)
        assert sum(front[2:]) == len(rear) - 1  # one image in each further pass
        front.clear()
        model(x)
        assert front[0] == images  # the features of the references are kept
        assert model.references is not None
        singles = [model.with_references(reference)(x) for reference in torch.split(model.references, 1)]
    torch.testing.assert_close(found, torch.stack(singles).mean(dim=0), rtol=1e-4, atol=1e-5)


def test_features_of_references_follow_the_front() -> None:
    model, x = anchored_at(small(), "blocks.1", fresh_stem=True).eval(), noise(3, 3, 12, 12)
    model.set_references(noise(2, 3, 12, 12, seed=1))
    with torch.inference_mode():
        model(x)
    weight = model.network.get_parameter("stem.weight")

    def exchange() -> None:
        weight.data.mul_(2)  # counts no version

    def load() -> None:
        state = {**model.state_dict(), "network.stem.weight": torch.ones_like(weight)}
        model.load_state_dict(state)

    def other() -> None:
        model.set_references(noise(3, 3, 12, 12, seed=2))

    for change in (exchange, lambda: weight.detach().mul_(0.5), load, other, model.double):
        change()
        x = x.to(weight.dtype)
        fresh = copy.deepcopy(model)
        fresh._kept = None
        assert torch.equal(model(x), fresh(x))
    model(x).sum().backward()  # features that were made in inference mode could not be kept for it
    model.float().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x.float())
    assert model.reference_features().dtype == torch.float32  # type: ignore[union-attr]


def test_references_are_saved_as_images() -> None:
    model = anchored_at(small(), "blocks.1", fresh_stem=True).eval()
    model.set_references(noise(2, 3, 12, 12, seed=1))
    state = model.state_dict()
    assert state["references"].shape == (2, 3, 12, 12)
    other = anchored_at(small(), "blocks.1").eval()
    other.load_state_dict(state)
    x = noise(3, 3, 12, 12)
    assert torch.equal(model(x), other(x))


def test_the_plain_networks_names_stay() -> None:
    plain, wide = (m.state_dict() for m in (small(), anchored_at(small(), "blocks.2").network))
    assert plain.keys() == wide.keys()
    different = [name for name in plain if plain[name].shape != wide[name].shape]
    assert different == ["blocks.2.conv1.weight", "blocks.2.shortcut.0.weight"]


def test_penultimate_features_are_reference_by_reference() -> None:
    model = anchored_at(small(), "blocks.2", fresh_stem=True).eval()
    model.set_references(noise(3, 3, 12, 12, seed=1))
    with penultimate_features(model.network) as seen:
        model(noise(4, 3, 12, 12))
    assert [each.shape[0] for each in seen] == [12]


def test_a_copy_and_threads_go_on_alike() -> None:
    model = anchored_at(small(), "blocks.1", mask_probability=0.5).train()
    twin = copy.deepcopy(model)
    x = noise(6, 3, 12, 12)
    assert torch.equal(model(x), twin(x))
    model.eval().set_references(noise(20, 3, 12, 12, seed=1))
    batches = [noise(5, 3, 12, 12, seed=seed) for seed in range(6)]
    with torch.no_grad(), ThreadPoolExecutor(3) as pool:
        for found, batch in zip(pool.map(torch.no_grad()(model), batches), batches, strict=True):
            torch.testing.assert_close(found, model(batch))


def test_compiled_gives_the_same() -> None:
    model = anchored_at(small(), "blocks.1", mask_probability=0.5, mask_unit="image", fresh_stem=True).train()
    twin, x = copy.deepcopy(model), noise(6, 3, 12, 12)
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(x), twin(x))
        assert torch.equal(model.order, twin.order)
    model.eval().set_references(noise(3, 3, 12, 12, seed=1))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), twin.with_references(noise(3, 3, 12, 12, seed=1))(x))


def test_gradients_reach_the_front_and_both_halves() -> None:
    model = anchored_at(small(), "blocks.2").train()
    model(noise(6, 3, 12, 12)).square().sum().backward()
    wide = model.network.get_parameter("blocks.2.conv1.weight").grad
    front = model.network.get_parameter("stem.weight").grad
    assert front is not None
    assert front.any()
    assert wide is not None
    assert all(half.any() for half in wide.chunk(2, dim=1))


@pytest.mark.parametrize("alpha", [0.0, 0.99])
def test_activation_checkpointing_of_the_whole_model_repeats_the_references(alpha: float) -> None:
    model = anchored_at(small(), "blocks.2", mask_probability=alpha).train()
    twin, x = copy.deepcopy(model), noise(6, 3, 12, 12)
    checkpoint(model, x, use_reentrant=False).square().sum().backward()
    twin(x).square().sum().backward()
    for (name, mine), (_, theirs) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=name)


def test_the_network_alone_says_what_is_wrong() -> None:
    model = anchored_at(small(), "blocks.2")
    with pytest.raises(UserError, match="outside of the model's own pass"):
        model.network(noise(2, 3, 12, 12))


# --- folding -----------------------------------------------------------------------------------------------------


def trained(at: str, references: int, network: nn.Module | None = None) -> HiddenAnchoredModel:
    model = anchored_at(small() if network is None else network, at, fresh_stem=True).eval()
    draw_norms(model, affine=False)
    if references:
        model.set_references(noise(references, 3, 12, 12, seed=6))
    return model


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("references", [0, 1, 4, 40])
@pytest.mark.parametrize("at", ["blocks.2", "blocks.0", "head"])
def test_folded_gives_the_anchored_networks_answers(at: str, references: int, fused: bool) -> None:
    model = trained(at, references)
    folded = anchored.fold(model, fuse_batch_norm=fused)
    assert isinstance(folded, FoldedHidden) is (references > 0)
    with torch.no_grad():
        for count in (1, 5):
            assert max_relative_difference(model(noise(count, 3, 12, 12)), folded(noise(count, 3, 12, 12))) < 2e-6
    exact = anchored.fold(model.double(), fuse_batch_norm=fused)
    x = noise(3, 3, 12, 12).double()
    torch.testing.assert_close(exact(x), model(x), rtol=1e-10, atol=1e-10)


def test_folding_changes_nothing_of_the_given_model() -> None:
    model = anchored_at(small(dropout=0.2), "blocks.1", fresh_stem=True).train()
    model.set_references(noise(2, 3, 12, 12, seed=1))
    anchored.fold(model)
    assert all(module.training for module in model.modules())


def test_tokens_are_folded() -> None:
    torch.manual_seed(0)
    model, x = trained("blocks.1", 3, Tokens().eval()), noise(4, 3, 12, 12)
    assert max_relative_difference(model(x), anchored.fold(model)(x)) < 2e-6


@pytest.mark.parametrize("at", ["blocks.2", "blocks.0"])
@pytest.mark.parametrize("references", [0, 2])
def test_untrained_it_folds_to_the_network_it_came_from(at: str, references: int) -> None:
    model, plain = anchored_at(small(), at), small().state_dict()
    if references:
        model.set_references(noise(references, 3, 12, 12))
    folded = anchored.fold(model).state_dict()
    assert folded.keys() == plain.keys()
    assert all(torch.equal(value, plain[name]) for name, value in folded.items())


def test_folded_is_copied_exported_and_takes_one_size() -> None:
    model, x = trained("blocks.2", 3), noise(5, 3, 12, 12)
    folded = copy.deepcopy(anchored.fold(model))
    program = torch.export.export(folded, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    with torch.no_grad():
        for part in (x, x[:1]):
            torch.testing.assert_close(program(part), model(part), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="12×12"):
        folded(noise(2, 3, 16, 16))
    with pytest.raises(UserError, match="12×12"):
        model(noise(2, 3, 16, 16))


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("at", ["blocks.2", "blocks.0"])
def test_views_are_one_reference_after_another_of_the_images_that_are_left(at: str, folded: bool) -> None:
    model, x = trained(at, 3), noise(5, 3, 12, 12)
    assert model.references is not None
    singles = [model.with_references(reference)(x) for reference in torch.split(model.references, 1)]
    made = anchored.fold(model) if folded else model
    assert isinstance(made, (FoldedHidden, HiddenAnchoredModel))
    views, left = made.views(x), torch.arange(5)
    assert views.count == 3
    for single in singles:
        torch.testing.assert_close(views.logits(), single[left], rtol=1e-4, atol=1e-5)
        views.keep(torch.arange(len(left) - 1))
        left = left[:-1]
    torch.testing.assert_close(made(x), torch.stack(singles).mean(dim=0), rtol=1e-4, atol=1e-5)


def test_other_references_can_be_folded_in() -> None:
    model, other, x = trained("blocks.2", 1), noise(2, 3, 12, 12, seed=9), noise(3, 3, 12, 12)
    folded = anchored.fold(model, other)
    torch.testing.assert_close(folded(x), model.with_references(other)(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="channels"):
        anchored.fold(model, noise(1, 1, 12, 12))


# --- refusals ----------------------------------------------------------------------------------------------------


class Skipping(nn.Module):
    """A connection around ``middle``, one that takes its weights twice, code that remembers the number of images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4))
        self.twice, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4 * 36, 5)

    def forward(self, images: Tensor) -> Tensor:
        h = self.first(images).relu()
        h = h + self.middle(h)
        h = self.twice(self.twice(self.last(h.relu()).relu()))
        logits: Tensor = self.head(h.view(len(images), -1))
        return logits


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("middle", "not the only way"),
        ("twice", "runs 2 times"),
        ("last", "remembers the number of images"),
        ("nowhere", "no layer of Skipping"),
        ("", "no layer of Skipping"),
    ],
)
def test_layers_that_cannot_be_anchored_at_are_one_line(at: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        anchored.anchor(Skipping().eval(), at=at, example=torch.zeros(1, 3, 6, 6))
    assert "\n" not in str(raised.value)


def test_what_does_not_go_with_it_is_one_line() -> None:
    model = anchored_at(small(), "blocks.2").train()
    x = noise(4, 3, 12, 12)
    with pytest.raises(UserError, match="leave far out"):
        model(x, x)
    with pytest.raises(UserError, match=r"anchored at 'blocks\.2'"):
        model.masked_pass(x)
    with pytest.raises(UserError, match="come from the batch"):
        model.set_training_references(x)
    with pytest.raises(UserError, match="name one layer"):
        anchored.anchor(small(), at="blocks.2", stem="stem")

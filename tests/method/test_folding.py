"""Folding: the same answers from a plain network, exported, compiled and copied."""

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from fixtures.trained_norms import draw_norms
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.std_conv import ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn

import anchored
from anchored.method import stem
from anchored.method.anchoring import AnchoredModel, pair
from anchored.method.equivalence import max_relative_difference
from anchored.method.folded import Folded, Mapped
from anchored.models import registry as networks


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trained(network: nn.Module, references: int = 1, size: int = 12, **options: Any) -> AnchoredModel:
    """Anchored, with halves that differ and statistics as after a training."""
    model = anchored.anchor(network, fresh_stem=True, **options).eval()
    draw_norms(model, affine=True)
    if references:
        assert model.stem is not None
        channels = model.stem.shape[0]
        model.set_references(noise(references, channels, size, size, seed=6))
    return model


def small(channels: int = 3) -> nn.Module:
    return networks.build_network("small", channels=channels, classes=5, seed=1)


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("references", [0, 1, 4])
@pytest.mark.parametrize("name", ["small", "wrn40_2"])
def test_folded_gives_the_anchored_networks_answers(name: str, references: int, fused: bool) -> None:
    model = trained(networks.build_network(name, channels=3, classes=5, seed=1, width=0.5), references)
    folded = anchored.fold(model, fuse_batch_norm=fused)
    x = noise(3, 3, 12, 12)
    assert max_relative_difference(model(x), folded(x)) < 2e-6  # of the greatest logit, which is 55 for the deep one
    exact = anchored.fold(model.double(), fuse_batch_norm=fused)
    torch.testing.assert_close(exact(x.double()), model(x.double()), rtol=1e-10, atol=1e-10)
    assert (norms(folded) < norms(model) / 2 + 1) is fused or references > 0


@pytest.mark.parametrize("references", [1, 4])
@pytest.mark.parametrize("name", ["resnet18", "timm:test_efficientnet"])
def test_the_batch_norm_after_a_map_is_part_of_the_map(name: str, references: int) -> None:
    model = trained(networks.build_network(name, channels=3, classes=5, seed=1, size=32), references, size=32)
    assert norms(anchored.fold(model)) == norms(model) - 1
    assert norms(anchored.fold(model, fuse_batch_norm=True)) == 0


def test_by_hand() -> None:
    model = anchored.anchor(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten())).eval()
    core = model.network.get_submodule("0")
    with torch.no_grad():
        core.get_parameter("weight").copy_(torch.tensor([5.0, 2.0]).view(1, 2, 1, 1))
        core.get_parameter("bias").fill_(7.0)
    folded = anchored.fold(model, torch.full((1, 1, 1, 1), 10.0))
    assert folded(torch.full((1, 1, 1, 1), 3.0)).item() == 5 * 10 + 2 * (3 - 10) + 7
    assert folded.get_parameter("network.0.layer.weight").item() == 2
    assert folded.get_buffer("network.0.maps").item() == (5 - 2) * 10 + 7
    zero = anchored.fold(model)
    assert isinstance(zero, nn.Sequential)
    assert zero(torch.full((1, 1, 1, 1), 3.0)).item() == 2 * 3 + 7


def test_what_is_left_out() -> None:
    """No map for a zero reference or equal halves; no batch norm after a map; all of them gone if asked."""
    model = trained(small(), 2)
    assert isinstance(anchored.fold(model), Folded)
    assert norms(anchored.fold(model)) == norms(model) - 1
    assert norms(anchored.fold(model, fuse_batch_norm=True)) == 0
    assert type(anchored.fold(model, torch.zeros(3, 3, 12, 12))) is type(small())
    kept = anchored.anchor(small()).eval()
    plain = anchored.fold(kept, noise(3, 3, 12, 12))
    assert type(plain) is type(small())
    assert all(torch.equal(value, small().state_dict()[name]) for name, value in plain.state_dict().items())


def test_the_model_is_not_changed() -> None:
    model = trained(small(), 2)
    before = copy.deepcopy(model.state_dict())
    anchored.fold(model, fuse_batch_norm=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Tokens(nn.Module):
    """A linear patch embedding whose tokens are counted along the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.head = nn.Linear(3 * 16, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, c * 16)
        logits: Tensor = self.head(self.proj(x).relu().view(b, -1, 5).mean(dim=1))
        return logits


class Skipping(nn.Module):
    """The first layer's output goes to a batch norm and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        total: Tensor = self.norm(y).relu() + y
        return total.mean(dim=(2, 3))


def with_norm(layer: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(layer, nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    "make",
    [
        lambda: with_norm(nn.Conv2d(4, 8, 3, groups=2), 8),
        lambda: with_norm(nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"), 4),
        lambda: with_norm(Conv2dSame(3, 4, 3, stride=2), 4),
        lambda: with_norm(StdConv2d(3, 4, 3, stride=2, bias=True), 4),
        lambda: with_norm(StdConv2dSame(3, 4, 3, stride=2), 4),
        lambda: nn.Sequential(ScaledStdConv2dSame(3, 4, 3, stride=2, bias=True), nn.ReLU(), nn.Flatten()),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(432, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)),
        lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
        Tokens,
        Skipping,
    ],
    ids=["grouped", "reflect", "same", "std", "std-same", "scaled-std-same", "flat", "depth", "tokens", "skipping"],
)
@pytest.mark.parametrize("references", [0, 1, 3])
def test_every_kind_of_first_layer(make: Any, references: int) -> None:
    torch.manual_seed(0)
    network = make().eval()
    channels = 4 if getattr(next(network.children()), "groups", 1) == 2 else 3
    model = trained(network, references, example=torch.zeros(1, channels, 12, 12))
    for fused in (False, True):
        folded = anchored.fold(model, fuse_batch_norm=fused)
        x = noise(3, channels, 12, 12)
        torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-5)


def test_maps_are_shared_work() -> None:
    """The first layer sees the B images once, whatever K."""
    model = trained(small(), 4)
    folded = anchored.fold(model)
    seen: list[int] = []
    layer = folded.get_submodule("network.stem")
    assert isinstance(layer, Mapped)
    layer.layer.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    folded(noise(3, 3, 12, 12))
    assert seen == [3]


class SameTwice(nn.Module):
    """Calls its first layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 6, 3), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.first(x).relu(), self.first(x).tanh()], dim=1)
        logits: Tensor = self.head(both.mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize("batch", [2, 20])  # all references in a pass, one in each
def test_a_first_layer_that_is_called_twice(batch: int) -> None:
    model = anchored.anchor(SameTwice(), fresh_stem=True).eval()
    model.set_references(noise(3, 3, 12, 12))
    folded, x = anchored.fold(model), noise(batch, 3, 12, 12, seed=1)
    assert max_relative_difference(model(x), folded(x)) < 1e-5
    assert max_relative_difference(model(x), anchored.infer(folded, x).logits) < 1e-5


def test_threads_do_not_meet() -> None:
    folded = anchored.fold(trained(small(), 3))
    batches = [noise(2, 3, 12, 12, seed=seed) for seed in range(16)]
    expected = [folded(x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(folded, batches))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@settings(max_examples=10, deadline=None)
@given(references=st.integers(1, 5), batch=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_any_references(references: int, batch: int, seed: int) -> None:
    model = trained(small(), 0)
    given_references, x = noise(references, 3, 8, 8, seed=seed), noise(batch, 3, 8, 8, seed=seed + 1)
    folded = anchored.fold(model, given_references)
    model.set_references(given_references)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)


def test_state_and_copies() -> None:
    model = trained(small(), 3)
    folded, other = anchored.fold(model), anchored.fold(model, noise(3, 3, 12, 12, seed=9))
    x = noise(2, 3, 12, 12)
    assert not torch.allclose(folded(x), other(x), atol=1e-4)
    other.load_state_dict(folded.state_dict())
    assert torch.equal(other(x), folded(x))
    assert torch.equal(copy.deepcopy(folded)(x), folded(x))


def test_exported_for_any_batch() -> None:
    folded = anchored.fold(trained(small(), 3))
    batch = {0: torch.export.Dim("batch", min=1, max=4096)}
    program = torch.export.export(folded, (noise(2, 3, 12, 12),), dynamic_shapes=(batch,))
    for count in (1, 5):
        x = noise(count, 3, 12, 12)
        torch.testing.assert_close(program.module()(x), folded(x), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # the exporter's own deprecations
@pytest.mark.parametrize("references", [1, 3])
def test_onnx_runtime_gives_the_same_answers(references: int, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = trained(small(), references)
    program = torch.onnx.export(
        anchored.fold(model, fuse_batch_norm=True),
        (noise(2, 3, 12, 12),),
        dynamo=True,
        input_names=["images"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
        verbose=False,
    )
    assert program is not None
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 5):
        x = noise(count, 3, 12, 12)
        found = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
        torch.testing.assert_close(found, model(x).detach(), rtol=1e-4, atol=1e-5)


def test_compiled_autocast_channels_last_and_half() -> None:
    model = trained(small(), 2)
    folded, x = anchored.fold(model), noise(3, 3, 12, 12)
    expected = model(x).detach()
    compiled = cast(nn.Module, torch.compile(folded, backend="aot_eager"))
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
    last = copy.deepcopy(folded).to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x.contiguous(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(folded(x).float(), expected, rtol=0.05, atol=0.1)
    half = anchored.fold(copy.deepcopy(model).to(torch.bfloat16))
    torch.testing.assert_close(half(x.bfloat16()).float(), expected, rtol=0.05, atol=0.1)
    double = anchored.fold(copy.deepcopy(model).double())
    torch.testing.assert_close(double(x.double()).float(), expected, rtol=1e-4, atol=1e-5)


def test_a_network_that_was_wide_already() -> None:
    wide, _ = stem.widen_stem(small(), fresh=True, generator=torch.Generator().manual_seed(3))
    model = AnchoredModel(wide).eval()
    model.set_references(noise(2, 3, 12, 12))
    x = noise(2, 3, 12, 12, seed=1)
    torch.testing.assert_close(anchored.fold(model)(x), model(x), rtol=1e-4, atol=1e-5)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        both: Tensor = self.conv(x).relu() + self.conv(x.flip(3)).relu()
        return both.mean(dim=(2, 3))


def test_a_layer_that_sees_two_views_folds_without_maps_only() -> None:
    model = trained(Twice(), 1)
    with pytest.raises(anchored.UserError, match="'conv' sees several views of an image"):
        anchored.fold(model)
    x = noise(2, 3, 12, 12)
    zero = pair(x, torch.zeros(1, 3, 12, 12))
    torch.testing.assert_close(anchored.fold(model, torch.zeros(1, 3, 12, 12))(x), model.network(zero))


@pytest.mark.parametrize(
    ("references", "said"),
    [
        (torch.zeros(0, 3, 12, 12), "references must be normalised images"),
        (torch.full((1, 3, 12, 12), float("nan")), "NaN or infinity"),
        (torch.ones(1, 4, 12, 12), r"references are \(1, 4, 12, 12\), the network takes 3 channels"),
        (torch.ones(1, 3, 12), r"references are \(1, 3, 12\), the network takes 3"),
    ],
)
def test_unfit_references_are_one_line(references: Tensor, said: str) -> None:
    with pytest.raises(anchored.UserError, match=said) as caught:
        anchored.fold(trained(small(), 0), references)
    assert "\n" not in str(caught.value)


def test_references_of_a_size_that_the_network_does_not_take() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(200, 2))
    model = trained(network, 0, example=torch.zeros(1, 3, 12, 12))
    with pytest.raises(anchored.UserError, match="the references do not fit the network"):
        anchored.fold(model, noise(1, 3, 9, 9))


def test_other_modules_and_sizes_are_one_line() -> None:
    with pytest.raises(anchored.UserError, match="fold takes an anchored model, not ResNet"):
        anchored.fold(small())
    with pytest.raises(anchored.UserError, match="images are 3×8×8, the folded network takes 3×12×12"):
        anchored.fold(trained(small()))(noise(1, 3, 8, 8))


class Amplified(nn.Module):
    """Multiplies the rounding of its first layer by 100,000: about 1e-2 in single precision, 1e-11 in double."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(1e5 * self.norm(self.conv(x)))


def test_a_network_that_amplifies_rounding_is_compared_in_double_precision() -> None:
    model = trained(Amplified(), references=2, example=torch.zeros(1, 3, 12, 12))
    x = noise(2, 3, 12, 12, seed=3)
    assert max_relative_difference(model(x), anchored.fold(model)(x)) > 1e-4
    exact = anchored.fold(model.double(), fuse_batch_norm=True)
    torch.testing.assert_close(exact(x.double()), model(x.double()), rtol=0, atol=1e-6)

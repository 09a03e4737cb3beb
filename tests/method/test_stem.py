"""Finding and widening the first layers."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.std_conv import ScaledStdConv2dSame, StdConv2d
from torch import Tensor, nn
from torch.nn import functional

from anchored.errors import UserError
from anchored.method import stem


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def check(network: nn.Module, shape: tuple[int, ...], example: Tensor | None = None, **options: Any) -> stem.Stem:
    """Widening keeps the outputs for random references; gives the stem that was found."""
    network = network.eval()
    wide, found = stem.widen_stem(network, fresh=False, example=example, **options)
    x, r = noise(2, *shape, seed=1), noise(2, *shape, seed=2)
    torch.testing.assert_close(wide(torch.cat([r, x - r], dim=1)), network(x), rtol=1e-4, atol=1e-5)
    return found


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 8, 8)),
        (nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect", dilation=2, bias=False), (3, 8, 8)),
        (nn.Conv2d(4, 8, 3, groups=2), (4, 8, 8)),
        (nn.Conv2d(3, 3, 3, groups=3), (3, 8, 8)),  # depthwise
        (nn.Conv1d(2, 4, 5), (2, 16)),
        (nn.Conv3d(1, 2, 3), (1, 5, 5, 5)),
        (nn.Linear(6, 2), (6,)),
        (Conv2dSame(3, 4, 3, stride=2), (3, 7, 7)),
        (StdConv2d(3, 4, 3, bias=True), (3, 8, 8)),
        (ScaledStdConv2dSame(3, 4, 3, stride=2), (3, 7, 7)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exact_widening_of_every_kind_of_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    assert check(layer, shape).names == ("",)


@settings(max_examples=15, deadline=None)
@given(
    groups=st.integers(1, 3),
    per_group=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    mode=st.sampled_from(["zeros", "circular", "replicate"]),
    bias=st.booleans(),
)
def test_any_convolution(
    groups: int, per_group: int, kernel: int, stride: int, padding: int, mode: Any, bias: bool
) -> None:
    channels = groups * per_group
    layer = nn.Conv2d(
        channels, 2 * groups, kernel, stride, padding, groups=groups, bias=bias, padding_mode=mode
    )  # fmt: skip
    check(nn.Sequential(layer, nn.ReLU()), (channels, 6, 6))


def test_groups_keep_their_own_channels() -> None:
    layer = nn.Conv2d(2, 2, 1, groups=2, bias=False)
    wide, _ = stem.widen_stem(layer, fresh=False)
    core = stem.inner_layer(wide)
    assert core.groups == 2
    with torch.no_grad():
        core.weight.copy_(torch.tensor([[1.0, 10.0], [100.0, 1000.0]]).view(2, 2, 1, 1))
    r, d = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    # Group 0 sees the first channel of the reference and of the residual, group 1 the second ones.
    assert wide(torch.cat([r, d]).view(1, 4, 1, 1)).flatten().tolist() == [1 + 30, 200 + 4000]


class Patches(nn.Module):
    """A vision transformer's patch embedding by a linear layer, channels the fastest or the slowest index."""

    def __init__(self, channels_last: bool) -> None:
        super().__init__()
        self.channels_last, self.proj, self.head = channels_last, nn.Linear(3 * 16, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, *((3, 5, 1) if self.channels_last else (1, 3, 5)))
        logits: Tensor = self.head(self.proj(x.flatten(3).flatten(1, 2)).relu().mean(dim=1))
        return logits


@pytest.mark.parametrize("channels_last", [True, False])
def test_linear_patch_embedding(channels_last: bool) -> None:
    assert check(Patches(channels_last), (3, 8, 8)).names == ("proj",)
    wide, _ = stem.widen_stem(Patches(channels_last), fresh=False)
    assert isinstance(wide.get_submodule("proj"), stem.PairOrder) is channels_last


def test_linear_layer_on_flat_images() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 5 * 5, 4), nn.ReLU(), nn.Linear(4, 2))
    assert check(network, (3, 5, 5)) == stem.Stem({"1": 1}, (3, 5, 5))


def test_space_to_depth_before_the_first_layer() -> None:
    network = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    assert check(network, (3, 12, 12), torch.zeros(1, 3, 12, 12)).names == ("1",)


def test_deep_in_the_network_and_named() -> None:
    network = nn.Sequential(nn.Identity(), nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Conv2d(3, 8, 3))
    assert check(network, (3, 8, 8)).names == ("1.0",)
    assert check(network, (3, 8, 8), name="1.0").names == ("1.0",)


class Branches(nn.Module):
    """Two layers meet the image, as in RepVGG; registered after a layer that does not."""

    def __init__(self, resized: bool = False) -> None:
        super().__init__()
        self.head, self.resized = nn.Conv2d(4, 2, 1), resized
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        smaller = functional.interpolate(x, scale_factor=0.5, mode="bilinear") if self.resized else x
        second = self.second(smaller)
        logits: Tensor = self.head(self.first(x) + functional.interpolate(second, x.shape[2:]))
        return logits


@pytest.mark.parametrize("resized", [False, True])
def test_every_branch_that_meets_the_image_is_widened(resized: bool) -> None:
    assert check(Branches(resized), (3, 8, 8)).names == ("second", "first")


class Twice(nn.Module):
    """One layer sees the image and its mirror image, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, groups=1, padding=1)
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        both: Tensor = self.first(x).relu() + self.again(x.flip(3)).relu()
        return both.mean(dim=(2, 3))


def test_one_layer_used_twice() -> None:
    assert check(Twice(), (3, 8, 8)).calls == {"first": 2}
    wide, _ = stem.widen_stem(Twice(), fresh=False)
    assert wide.get_submodule("first") is wide.get_submodule("again")


class Counting(nn.Module):
    """Checks the number of channels, as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.num_channels, self.conv = 3, nn.Conv2d(3, 2, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if x.shape[1] != self.num_channels:
            raise ValueError(f"{x.shape[1]} channels")
        return {"logits": self.conv(x).mean(dim=(2, 3))}


def test_noted_channel_counts_are_doubled() -> None:
    network = Counting()
    wide, _ = stem.widen_stem(network, fresh=False)
    x, r = noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
    torch.testing.assert_close(wide(torch.cat([r, x - r], dim=1)), network(x)["logits"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    network(torch.zeros(1, 3, 32, 32))
    wide, _ = stem.widen_stem(network.to(dtype), fresh=False)
    weight = wide.get_parameter("0.weight")
    assert weight.dtype == dtype
    assert torch.equal(weight[:, :3], weight[:, 3:])


def test_looking_leaves_no_trace() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    before, state = copy.deepcopy(network.state_dict()), torch.random.get_rng_state()
    wide, _ = stem.widen_stem(network, fresh=True, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in (*network.modules(), *wide.modules()))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


class Squared(nn.Sequential):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x * x)  # type: ignore[no-untyped-call]


class Elsewhere(nn.Module):
    """Adds the image's mean to the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        means: Tensor = self.conv(x).mean(dim=(2, 3))
        return means + (x**2).mean(dim=(1, 2, 3))[:, None]


class Sliced(nn.Sequential):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x[:, :3])  # type: ignore[no-untyped-call]


def parametrised() -> Any:
    return torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 2, 1))


@pytest.mark.parametrize(
    ("network", "name", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.ReLU()), None, "no convolution or linear layer of Sequential meets the image"),
        (nn.Sequential(nn.Conv2d(3, 3, 1)), "1", "'1' is not a convolution or linear layer of Sequential: .* are '0'"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)), "1", "'1' does not meet the image .*give stem='0'"),
        (Squared(nn.Conv2d(3, 2, 1)), None, "changed before it meets '0' of Squared, and not linearly: .*stem='0'"),
        (Squared(nn.Conv2d(3, 2, 1)), "0", "cannot be anchored exactly at '0'"),
        (nn.Sequential(nn.ReLU(), nn.Conv2d(3, 2, 1)), None, "changed before it meets '1'"),
        (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)), None, "does not take pairs of 6 channels .* '1'"),
        (Elsewhere(), None, "cannot be anchored exactly at 'conv'.*is the image used elsewhere"),
        (Sliced(nn.Conv2d(3, 2, 1)), None, "cannot be anchored|does not take pairs"),
        (Branches(), "first", "'first' is not alone: 'second' of Branches meet the image too"),
        (
            nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(7, 2)),
            None,
            "not run on images of the usual sizes",
        ),
        (parametrised(), None, "has parametrised weights: make them plain first"),
    ],
)
def test_what_cannot_be_widened_is_one_line(network: nn.Module, name: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        stem.widen_stem(network, name, fresh=False)
    assert "\n" not in str(caught.value)


def test_a_head_of_zeros_hides_nothing() -> None:
    head = nn.Linear(2 * 64, 2)
    nn.init.zeros_(head.weight)
    network = Squared(nn.Conv2d(3, 2, 1), nn.Flatten(), head)
    with pytest.raises(UserError, match="cannot be anchored exactly at '0'"):
        stem.widen_stem(network, "0", fresh=False, example=torch.zeros(1, 3, 8, 8))


def test_an_example_of_an_unusual_size() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 8 * 11, 2))
    assert check(network, (3, 10, 13), torch.zeros(4, 3, 10, 13)).shape == (3, 10, 13)
    with pytest.raises(UserError, match=r"does not run on images of 3×9×9 .*example="):
        stem.widen_stem(network, fresh=False, example=torch.zeros(1, 3, 9, 9))


class Amplified(nn.Module):
    """Multiplies the rounding of its first layer by 100,000: about 1e-2 in single precision, 1e-11 in double."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(1e5 * self.conv(x))


def test_a_network_that_amplifies_rounding_is_compared_in_double_precision() -> None:
    network = Amplified().eval()
    wide, _ = stem.widen_stem(network, fresh=False, example=torch.zeros(1, 3, 8, 8))
    x, r = noise(2, 3, 8, 8, seed=1), noise(2, 3, 8, 8, seed=2)
    assert not torch.allclose(wide(torch.cat([r, x - r], dim=1)), network(x), rtol=1e-3, atol=1e-3)
    x, r = x.double(), r.double()
    torch.testing.assert_close(wide.double()(torch.cat([r, x - r], dim=1)), network.double()(x), rtol=0, atol=1e-6)

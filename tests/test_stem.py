"""Finding and widening the first layer."""

import pytest
import torch
from torch import nn

from anchored import stem
from anchored.errors import UserError


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 8, 8)),
        (nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect", dilation=2, bias=False), (2, 3, 8, 8)),
        (nn.Conv1d(2, 4, 5), (2, 2, 16)),
        (nn.Conv3d(1, 2, 3), (2, 1, 5, 5, 5)),
    ],
)
def test_exact_widening(layer: nn.Module, shape: tuple[int, ...]) -> None:
    wide = stem.widen(layer, fresh=False)
    x, r = torch.randn(shape), torch.randn(shape)
    torch.testing.assert_close(wide(torch.cat([r, x - r], dim=1)), layer(x), rtol=1e-4, atol=1e-5)


def test_named_stem() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.Conv2d(3, 8, 3)))
    wide = stem.widen(network, "1.0", fresh=False)
    assert [m.in_channels for m in wide.modules() if isinstance(m, nn.Conv2d)] == [3, 6]


@pytest.mark.parametrize(
    ("network", "name", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.ReLU()), None, "has no convolution to anchor"),
        (nn.Sequential(nn.Conv2d(3, 3, 1)), "1", "stem '1' is not a convolution of Sequential: the first ones are 0"),
        (nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)), None, "grouped convolution"),
    ],
)
def test_what_cannot_be_widened_is_one_line(network: nn.Module, name: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        stem.widen(network, name, fresh=False)

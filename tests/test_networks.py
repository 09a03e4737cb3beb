"""Networks: published sizes, reproducible weights, features."""

import pytest
import torch

from anchored import networks
from anchored.errors import UserError


@pytest.mark.parametrize(
    ("name", "channels", "classes", "parameters", "width"),
    [
        ("resnet18", 3, 10, 11_173_962, 512),  # kuangliu/pytorch-cifar, ResNet18
        ("wrn40_2", 3, 10, 2_243_546, 128),  # arXiv 1605.07146, table 4: 2.2 M
        ("small", 1, 7, 77_559, 64),
    ],
)
def test_parameters_and_features(name: str, channels: int, classes: int, parameters: int, width: int) -> None:
    network = networks.build(name, channels=channels, classes=classes, seed=0).eval()
    assert sum(p.numel() for p in network.parameters()) == parameters
    with networks.features_of(network) as seen:
        logits = network(torch.randn(2, channels, 28, 28))
    assert seen[0].shape == (2, width)
    torch.testing.assert_close(network.get_submodule("head")(seen[0]), logits)


def test_weights_follow_from_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    first, same, other = (networks.build("small", channels=1, classes=3, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.get_parameter("stem.weight"), same.get_parameter("stem.weight"))
    assert not torch.equal(first.get_parameter("stem.weight"), other.get_parameter("stem.weight"))


def test_unknown_name_suggests() -> None:
    with pytest.raises(UserError, match="no network 'resnet8': did you mean 'resnet18'"):
        networks.get("resnet8")


def test_no_linear_layer_no_features() -> None:
    with pytest.raises(UserError, match="no linear layer"), networks.features_of(torch.nn.ReLU()):
        pass

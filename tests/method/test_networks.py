"""Any network: what it gives (logits, or an object that holds them), and that it is copied whatever it keeps."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import prune, spectral_norm, weight_norm
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

import anchored
from anchored.errors import UserError
from anchored.method.networks import copy_network
from anchored.models.features import penultimate_features
from anchored.models.third_party import NetworkSpec, check_logits_shape

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")


def vit() -> nn.Module:
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "image_size": 16, "patch_size": 8}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 5}
    made: Any = ViTForImageClassification
    network: nn.Module = made(ViTConfig(**sizes))
    return network


def resnet() -> nn.Module:
    sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "num_labels": 5}
    made: Any = ResNetForImageClassification
    network: nn.Module = made(ResNetConfig(**sizes, layer_type="basic"))
    return network


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", [vit, resnet])
def test_classifiers_of_transformers_are_anchored_trained_evaluated_and_folded(make: Callable[[], nn.Module]) -> None:
    network = make().eval()
    same = anchored.anchor(network, example=images())
    torch.testing.assert_close(same(images()), network(images()).logits)  # and the given one still gives its own object
    model = anchored.anchor(network, 0.25, fresh_stem=True, example=images()).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.cross_entropy(model(images()), torch.arange(4)).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    model.eval()
    with penultimate_features(model.network) as features, torch.inference_mode():
        logits = model(images())
    assert features[0].shape == (4, 16 if make is vit else 8)
    for references in (images(2), torch.zeros_like(images(1))):
        model.set_references(references)
        logits = model(images())
        folded = anchored.fold(model)
        torch.testing.assert_close(folded(images()), logits, rtol=1e-4, atol=1e-6)
    assert type(folded) is type(network)  # the zero reference's
    assert folded.state_dict().keys() == network.state_dict().keys()


class Named(NamedTuple):
    logits: Tensor
    features: Tensor


class Giving(nn.Module):
    def __init__(self, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.give = nn.Conv2d(3, 5, 3), give

    def forward(self, x: Tensor) -> Any:
        return self.give(self.conv(x).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    "give", [lambda y: {"logits": y, "features": y}, lambda y: OrderedDict(logits=y), lambda y: Named(y, y)]
)
def test_logits_are_taken_by_name(give: Callable[[Tensor], Any]) -> None:
    assert anchored.anchor(Giving(give)).eval()(images()).shape == (4, 5)


@pytest.mark.parametrize(
    ("give", "said"),
    [
        (lambda y: (y, y), "gives a tuple, not logits"),
        (lambda y: [y], "gives a list"),
        (lambda y: {"out": y}, "gives a dict"),
    ],
)
def test_outputs_without_logits_are_refused_before_training(give: Callable[[Tensor], Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        anchored.anchor(Giving(give))
    with pytest.raises(UserError, match=said):
        check_logits_shape(Giving(give), "own", NetworkSpec(3, 5, 16))


def test_an_imported_network_of_transformers_gives_logits_too() -> None:
    network = vit()
    check_logits_shape(network, "python:own:vit", NetworkSpec(3, 5, 16))
    assert network(images()).shape == (4, 5)


# --- copies ------------------------------------------------------------------------------------------------------


def body(change: Callable[[Any], Any]) -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    change(network)
    return network


pruned: Any = prune.l1_unstructured
unpruned: Any = prune.identity


def called(name: str) -> nn.Module:
    network: nn.Module = timm.create_model(name, num_classes=5).eval()
    network(torch.randn(1, 3, 224, 224))  # which keeps attention biases, with their graph
    return network


KEEPING: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: body(lambda network: weight_norm(network[3])),
    "spectral norm": lambda: body(lambda network: spectral_norm(network[3])),
    "pruning": lambda: body(lambda network: pruned(network[3], "weight", 0.5)),
    "levit": lambda: called("levit_128s"),
}


@pytest.mark.parametrize("kind", KEEPING)
def test_networks_that_keep_computed_tensors_are_anchored_and_folded(kind: str) -> None:
    torch.manual_seed(0)
    network = KEEPING[kind]().eval()
    x = torch.randn(2, 3, *((224, 224) if kind == "levit" else (16, 16)))
    model = anchored.anchor(network, example=x).eval()
    expected = network(x)
    torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-4)
    model.set_references(x[:1])
    for fuse in (False, True):
        folded = anchored.fold(model, fuse_batch_norm=fuse)
        torch.testing.assert_close(folded(x), expected, rtol=1e-3, atol=1e-4)


class Locked(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nn.Conv2d(3, 5, 3, device="meta"), "'weight' of Conv2d is on the meta device"),
        (lambda: nn.LazyConv2d(5, 3), "'weight' of LazyConv2d has no size yet"),
        (Locked, "Locked cannot be copied"),
        (lambda: weight_norm(nn.Conv2d(3, 5, 3)), "are computed from others"),
        (
            lambda: body(lambda network: unpruned(network[0], "weight")),
            "'0' of Sequential are computed from others",
        ),
    ],
)
def test_networks_that_cannot_be_copied_or_widened_are_one_line(make: Callable[[], nn.Module], said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        anchored.anchor(make(), example=images())
    assert "\n" not in str(raised.value)


def test_a_copy_shares_parameters_only_where_that_is_wanted() -> None:
    network = nn.Linear(2, 2)
    assert copy_network(network, share_parameters=True).weight is network.weight
    assert copy_network(network).weight is not network.weight

"""Networks: published sizes, reproducible weights, features, and other libraries' networks by name."""

import sys
import types
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.data.config import resolve_data_config
from torch import nn

from anchored import anchor
from anchored.config.recipe import Recipe
from anchored.config.recipe_file import read_recipe
from anchored.config.settings import Grid
from anchored.errors import UserError
from anchored.models import registry as networks
from anchored.models import third_party, torchvision_networks
from anchored.models.features import penultimate_features


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "channels", "classes", "published", "width"),
    [
        ("resnet18", 3, 10, 11_173_962, 512),  # kuangliu/pytorch-cifar, ResNet18
        ("wrn40_2", 3, 10, 2_243_546, 128),  # arXiv 1605.07146, table 4: 2.2 M
        ("wrn40_2_dropout", 3, 10, 2_243_546, 128),
        ("small", 1, 7, 77_559, 64),
        # torchvision's published counts, `num_params` of its weights
        ("resnet18_imagenet", 3, 1000, 11_689_512, 512),
        ("regnety_800mf", 3, 1000, 6_432_512, 784),
    ],
)
def test_parameters_and_features(name: str, channels: int, classes: int, published: int, width: int) -> None:
    network = networks.build_network(name, channels=channels, classes=classes, seed=0).eval()
    assert parameters(network) == published
    with penultimate_features(network) as seen:
        logits = network(torch.randn(2, channels, 32, 32))
    assert seen[0].shape == (2, width)
    head = network.get_submodule("fc" if classes == 1000 else "head")
    torch.testing.assert_close(head(seen[0]), logits)


def test_dropout_is_in_the_blocks_of_training_alone() -> None:
    plain, dropping = (networks.build_network(f"wrn40_2{x}", channels=3, classes=10, seed=0) for x in ("", "_dropout"))
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain.eval()(images), dropping.eval()(images))  # the same weights by the same seed
    assert not torch.equal(plain.train()(images), dropping.train()(images))
    assert [m.p for m in dropping.modules() if isinstance(m, torch.nn.Dropout)] == [0.3] * 18  # one a block
    for table in ("table8", "table9"):
        assert read_recipe(table)["grid"]["networks"] == ["resnet18", "wrn40_2_dropout"]


@pytest.mark.parametrize("name", ["small", "wrn40_2", "wrn40_2_dropout", "timm:test_vit"])
def test_dropout_as_a_setting_changes_no_weight_and_no_evaluation(name: str) -> None:
    build = partial(networks.build_network, name, channels=3, classes=10, seed=0, size=32)
    plain, dropping = build().eval(), build(dropout=0.25).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert plain.state_dict().keys() == dropping.state_dict().keys()
    assert torch.equal(plain(images), dropping(images))
    assert {layer.p for layer in dropping.modules() if isinstance(layer, nn.Dropout) and layer.p} == {0.25}


def test_dropout_of_a_network_that_takes_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"train.dropout is 0.1, which 'vit_b_16' does not take: take resnet18"):
        networks.build_network("vit_b_16", channels=3, classes=10, seed=0, dropout=0.1)


def test_the_small_convnext_has_no_batch_norm_and_the_parameters_of_its_blocks() -> None:
    """A block of d channels: 7×7 depthwise, layer norm, d to 4d and back, scale."""
    network = networks.build_network("small_convnext", channels=1, classes=7, seed=0)
    assert not any("BatchNorm" in type(module).__name__ for module in network.modules())
    block = {d: (49 * d + d) + 2 * d + (4 * d * d + 4 * d) + (4 * d * d + d) + d for d in (32, 64)}
    stem, between, head = 16 * 32 + 32 + 64, 64 + 4 * 32 * 64 + 64, 128 + 64 * 7 + 7
    assert parameters(network) == stem + 2 * block[32] + between + 2 * block[64] + head == 102_567


def test_vit_parameters() -> None:
    with torch.device("meta"):  # 86,567,656 is torchvision's published count
        assert parameters(torchvision_networks.vit_b_16(third_party.NetworkSpec(3, 1000))) == 86_567_656


@pytest.mark.parametrize("name", list(networks.NETWORKS))
def test_width_scales_rows_and_any_channels_do(name: str) -> None:
    network = networks.build_network(name, channels=1, classes=4, seed=0, size=32, width=0.25).eval()
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 4)
    assert parameters(network) < 6e6
    model = anchor(network, fresh_stem=True)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 4)


def test_full_width_rows_are_torchvisions() -> None:
    """The same weights from the same seed as torchvision's own function, so that its recipes and weights fit."""
    ours = networks.build_network("resnet18_imagenet", channels=3, classes=7, seed=3)
    theirs = networks.build_network("torchvision:resnet18", channels=3, classes=7, seed=3)
    assert type(theirs).__module__ == "torchvision.models.resnet"
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())
    names = networks.build_network("regnety_800mf", channels=3, classes=7, seed=3).state_dict()
    theirs = networks.build_network("torchvision:regnet_y_800mf", channels=3, classes=7, seed=3)
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in names.items())


@pytest.mark.parametrize("name", ["small", "timm:test_resnet", "torchvision:squeezenet1_1"])
def test_weights_follow_from_the_seed_alone(name: str) -> None:
    state = torch.random.get_rng_state()
    first, same, other = (
        list(networks.build_network(name, channels=1, classes=3, seed=s).parameters()) for s in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first[0], other[0])
    assert first[0].shape[1] == 1


def test_an_image_size_where_the_network_needs_one() -> None:
    vit = networks.build_network("timm:test_vit", channels=3, classes=4, seed=0, size=64)
    assert vit(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
    convolutional = networks.build_network("timm:test_resnet", channels=3, classes=4, seed=0, size=48)
    assert convolutional(torch.zeros(1, 3, 48, 48)).shape == (1, 4)
    with pytest.raises(UserError, match="'vit_b_16' cuts images into patches of 16 pixels: 28 is not a multiple"):
        networks.build_network("vit_b_16", channels=3, classes=4, seed=0, size=28, width=0.1)
    with pytest.raises(UserError, match="'timm:vgg11' cannot be built for 3×8×8 images"):
        networks.build_network("timm:vgg11", channels=3, classes=4, seed=0, size=8)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet8", "no network 'resnet8': did you mean 'resnet18'"),
        ("vit_tiny_patch16_224", "did you mean 'timm:vit_tiny_patch16_224'"),
        (
            "qqq",
            "there are resnet18, wrn40_2, .*, timm:NAME, torchvision:NAME and published:NAME",
        ),
        ("timm:resnt18", "timm does not have it; near ones are timm:resnet18"),
        ("timm:resnet18.a9_in1k", "near ones are timm:resnet18.a"),
        ("torchvision:regnet_y_800m", "near ones are torchvision:regnet_y_800mf"),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision does not have it"),
    ],
)
def test_unknown_names_suggest(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        networks.find_network(name)


def test_titles() -> None:
    assert networks.find_network("vit_b_16").title == "ViT-b-16"
    assert networks.find_network("timm:vit_base_patch16_224.augreg_in1k").title == "vit_base_patch16_224.augreg_in1k"
    assert networks.find_network("python:a.b:make").title == "make"


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = types.ModuleType("own_networks")
    module.linear = lambda c, n: nn.Sequential(nn.Flatten(), nn.Linear(c * 64, n))
    module.wrong = lambda c, n: 3
    module.broken = lambda c, n: nn.Linear(0 / 0, n)  # type: ignore[arg-type]
    module.other = lambda c, n: nn.Sequential(nn.Flatten(), nn.Linear(c * 64, n + 1))
    monkeypatch.setitem(sys.modules, "own_networks", module)
    return module


def test_own_factory(own: Any) -> None:
    network = networks.build_network(
        "python:own_networks:linear", channels=3, classes=4, seed=0, size=8, allow_import=True
    )  # fmt: skip
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("own_networks", "write python:package.module:factory"),
        ("own_networks:missing", "cannot be imported: module 'own_networks' has no attribute 'missing'"),
        ("no_such_module:make", "cannot be imported: No module named 'no_such_module'"),
        ("own_networks:wrong", "gives a int: it has to give a torch.nn.Module"),
        ("own_networks:broken", r"cannot be built for 3×8×8 images and 4 classes \(division by zero\)"),
        ("own_networks:other", r"gives \(1, 5\) for one image, not logits \(1, 4\)"),
    ],
)
def test_own_factory_refused_in_one_line(own: Any, path: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        networks.build_network(f"python:{path}", channels=3, classes=4, seed=0, size=8, allow_import=True)
    assert "\n" not in str(caught.value)


def test_code_is_imported_only_where_that_is_said(own: Any) -> None:
    with pytest.raises(UserError, match="is code to be imported: if you trust it, add --network"):
        networks.build_network("python:own_networks:linear", channels=3, classes=4, seed=0)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("small", {"width": 0.0}, r"network.width is 0: give a factor above 0"),
        ("timm:resnet18", {"width": 0.5}, "has one width: leave network.width at 1"),
        ("vit_b_16", {"width": 0.5, "pretrained": True}, "'vit_b_16' pretrained has one width"),
        ("small", {"pretrained": True}, "'small' has no pretrained weights"),
        ("timm:resnet18d_does_not_exist", {}, "no network"),
        ("timm:test_resnet", {"pretrained": True, "offline": True}, "pretrained weights cannot be had"),
        ("timm:test_mambaout", {"pretrained": True}, "timm has no pretrained weights for 'test_mambaout'"),
        ("torchvision:resnet18", {"pretrained": True, "offline": True}, "pretrained weights cannot be had"),
        ("timm:tresnet_m", {"pretrained": False, "size": 30}, "cannot be built for 3×30×30 images"),
    ],
)
def test_refusals_are_one_line(name: str, options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if options.pop("offline", False):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries for 46 s
        monkeypatch.setenv("TORCH_HOME", "/proc/none")

        def refuse(*_: object, **__: object) -> None:
            raise OSError("no network")

        monkeypatch.setattr("socket.socket.connect", refuse)
    with pytest.raises(UserError, match=said) as caught:
        networks.build_network(name, channels=3, classes=4, seed=0, **options)
    assert "\n" not in str(caught.value)


def test_pretrained_weights_are_taken_and_the_head_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    donor = torchvision.models.resnet18(num_classes=1000)
    weights = torchvision.models.get_model_weights("resnet18")
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **_: donor.state_dict())  # what a download gives
    for name in ("torchvision:resnet18", "resnet18_imagenet"):
        same = networks.build_network(name, channels=3, classes=1000, seed=0, pretrained=True).state_dict()
        assert all(torch.equal(value, same[key]) for key, value in donor.state_dict().items())
        other = networks.build_network(name, channels=3, classes=7, seed=0, pretrained=True).state_dict()
        assert other["fc.weight"].shape == (7, 512)
        assert torch.equal(other["layer1.0.conv1.weight"], donor.layer1[0].conv1.weight)
        grey = networks.build_network(name, channels=1, classes=7, seed=0, pretrained=True).eval()
        # A grey image alone gives what it gives as three equal channels.
        assert torch.equal(grey.get_parameter("conv1.weight"), donor.conv1.weight.sum(1, keepdim=True))


def test_preprocessing() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, torchvision's documentation
    assert networks.preprocessing("torchvision:resnet18") == third_party.Preprocessing(256, 224, "bilinear", mean, std)
    assert networks.preprocessing("vit_b_16") == third_party.Preprocessing(256, 224, "bilinear", mean, std)
    assert networks.preprocessing("torchvision:inception_v3").mean == (0.5, 0.5, 0.5)  # as [−1, 1], its own way
    name = "vit_base_patch16_224.augreg_in1k"
    found, own = networks.preprocessing(f"timm:{name}"), timm.get_pretrained_cfg(name)
    assert own is not None
    config = resolve_data_config(pretrained_cfg=own.to_dict())  # type: ignore[no-untyped-call]
    assert (found.mean, found.std, found.interpolation) == (config["mean"], config["std"], "bicubic")
    assert (found.size, found.resize) == (224, 248)  # 224 / 0.9
    with pytest.raises(UserError, match="'small' has no pretrained weights, so no preprocessing"):
        networks.preprocessing("small")
    with pytest.raises(UserError, match="timm has no pretrained weights for 'test_mambaout'"):
        networks.preprocessing("timm:test_mambaout")


def test_no_linear_layer_no_features() -> None:
    with pytest.raises(UserError, match="no linear layer"), penultimate_features(torch.nn.ReLU()):
        pass


class HeadFirst(nn.Module):
    """Registers its classifier before its body."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(5, 2), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.body(x))


def test_features_are_what_the_last_linear_layer_is_given() -> None:
    network, x = HeadFirst(), torch.randn(3, 4)
    with penultimate_features(network) as seen:
        network(x)
        network(2 * x)
    assert torch.equal(torch.stack(seen), torch.stack([network.body(x), network.body(2 * x)]))


def test_features_of_a_network_that_ends_in_a_convolution() -> None:
    network = networks.build_network("torchvision:squeezenet1_1", channels=3, classes=4, seed=0).eval()
    with penultimate_features(network) as seen:
        network(torch.zeros(2, 3, 64, 64))
    assert seen[0].shape == (2, 512)


def test_features_of_distilled_networks_are_timms() -> None:
    network: Any = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=4, img_size=32).eval()
    x = torch.randn(2, 3, 32, 32)
    with penultimate_features(network) as seen:
        network(x)
    torch.testing.assert_close(seen[0], network.forward_head(network.forward_features(x), pre_logits=True))


def test_names_make_folder_names() -> None:
    for name, folder in (("timm:a_b.c_d", "timm-a_b.c_d"), ("python:a.b:c", "python-a.b-c"), ("small", "small")):
        cell = next(Recipe(grid=Grid(networks=(name,), protocols=("ram",))).cells())
        assert cell.name == f"{folder}-ram-0.25-seed0"

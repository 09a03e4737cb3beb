"""Peers of ``cpu.py`` that train and evaluate: their own code, given the same network, images and batches as ours.

torch-uncertainty comes from PyPI, with ``lightning``. LLNL/anchoring is a checkout of
https://github.com/LLNL/anchoring (MIT), whose folder ``LLNL_ANCHORING`` names; nothing of it is kept here.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

LLNL = "LLNL_ANCHORING"


class NotHere(Exception):
    """A peer that is not installed."""


class CIFAR10:
    """Images in memory as torchvision's CIFAR10 gives them, transformed one by one."""

    images: Tensor  # (N,3,32,32) uint8
    labels: Tensor  # (N,)
    few = 128  # of a test set: no peer's test is timed

    def __init__(
        self, root: Any = None, train: bool = True, transform: Any = None, target_transform: Any = None,
        download: bool = False,
    ) -> None:  # fmt: skip
        some = slice(None) if train else slice(self.few)
        self.data = self.images[some].permute(0, 2, 3, 1).numpy()
        self.targets = self.labels[some].tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.data[index])
        return self.transform(image) if self.transform else image, self.targets[index]


def cifar10_of(images: Tensor, labels: Tensor) -> type[CIFAR10]:
    """The class with these images."""
    return type("CIFAR10", (CIFAR10,), {"images": images, "labels": labels})


def llnl_epoch(images: Tensor, labels: Tensor, build: Callable[[], nn.Module]) -> float:
    """Seconds of an epoch of LLNL/anchoring's ``CIFAR/train.py`` (α = 0.25), from the loaders' start to the last step.

    The network is what ``build`` gives, of six channels.
    """
    folder = os.environ.get(LLNL)
    if folder is None:
        raise NotHere(f"set {LLNL} to a checkout of github.com/LLNL/anchoring")
    stamps: list[float] = []

    def stamped(*_: Any, **__: Any) -> nn.Module:
        network = build()
        plain = network.train

        def train(mode: bool = True) -> nn.Module:  # called as an epoch begins and as its test does
            stamps.append(time.perf_counter())
            return plain(mode)

        network.train = train  # type: ignore[method-assign]
        return network

    with _imported(Path(folder) / "CIFAR") as module, tempfile.TemporaryDirectory() as place:
        here = Path.cwd()
        os.chdir(place)
        try:
            with (
                mock.patch("torchvision.datasets.CIFAR10", cifar10_of(images, labels)),
                mock.patch.object(module, "ResNet18", stamped),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                module.run_training(epochs=1, subselect_classes=10)
        finally:
            os.chdir(here)
    return stamps[1] - stamps[0]


@contextlib.contextmanager
def _imported(folder: Path) -> Iterator[Any]:
    """``train.py`` of a folder, with the modules beside it."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location("llnl_train", folder / "train.py")
        if spec is None or spec.loader is None or not (folder / "train.py").exists():
            raise NotHere(f"there is no {folder / 'train.py'}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if name.split(".")[0] in ("wrapper", "utils"):
                del sys.modules[name]


def _torch_uncertainty() -> Any:
    try:
        for name in ("routines", "datamodules", "datasets.classification"):
            importlib.import_module(f"torch_uncertainty.{name}")
        return importlib.import_module("torch_uncertainty")
    except ImportError as error:
        raise NotHere("pip install torch-uncertainty lightning") from error


class _Epoch:
    """Seconds from an epoch's first batch to its last step, as a callback of ``lightning``."""

    seconds = 0.0

    def __new__(cls) -> Any:
        callback = importlib.import_module("lightning.pytorch").Callback()

        def started(*_: Any) -> None:
            callback.seconds = -time.perf_counter()

        def ended(*_: Any) -> None:
            callback.seconds += time.perf_counter()

        callback.on_train_epoch_start, callback.on_train_epoch_end = started, ended
        return callback


QUIET = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip


def torch_uncertainty_epoch(images: Tensor, labels: Tensor, network: nn.Module, classes: int, batch: int) -> float:
    """Seconds of an epoch of torch-uncertainty's classification routine with its own CIFAR-10 loaders."""
    library, epoch = _torch_uncertainty(), _Epoch()
    data = library.datamodules.CIFAR10DataModule(".", batch_size=batch)
    data.dataset = cifar10_of(images, labels)
    data.setup("fit")
    optimizer = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.9)
    routine = library.routines.ClassificationRoutine(network, classes, nn.CrossEntropyLoss(), optim_recipe=optimizer)
    trainer = library.TUTrainer(max_epochs=1, limit_val_batches=0, callbacks=[epoch], **QUIET)
    trainer.fit(routine, data.train_dataloader())
    return float(epoch.seconds)


def torch_uncertainty_sweep(
    folder: Path, network: nn.Module, classes: int, names: list[str], count: int, severities: list[int], batch: int
) -> float:
    """Seconds of torch-uncertainty's test on files in CIFAR-10-C's format, ``count`` images a severity.

    A corruption and a severity at a time, so that each has its figures, as ours.
    """
    library = _torch_uncertainty()
    kind = library.datasets.classification.CIFAR10C
    transform = library.datamodules.CIFAR10DataModule(".", batch_size=batch)
    transform.dataset = cifar10_of(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1))
    transform.setup("fit")

    def make(self: Any, root: Path, subset: str, severity: int) -> tuple[Any, Any]:
        rows = slice((severity - 1) * count, severity * count)  # the published files have 10,000
        return np.load(folder / f"{subset}.npy")[rows], np.load(folder / "labels.npy")[rows]

    with mock.patch.object(kind, "_check_integrity", return_value=True), mock.patch.object(kind, "make_dataset", make):
        began = time.perf_counter()
        for name in names:
            for severity in severities:
                images = kind(folder, transform=transform.test_transform, subset=name, shift_severity=severity)
                loader = torch.utils.data.DataLoader(images, batch, num_workers=1)
                routine = library.routines.ClassificationRoutine(network, classes)
                library.TUTrainer(**QUIET).test(routine, loader, verbose=False)
        return time.perf_counter() - began

"""Lightning's trainer writes the report at the end of a test, with the figures of ``anchored.evaluate``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import anchored
from anchored.data import datasets
from anchored.report.result import Result
from anchored.study.lightning import ReportCallback

QUIET: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip


class Module(pl.LightningModule):
    """Somebody's linear classifier of grey 28 × 28 images: seven classes."""

    def __init__(self, *, returns: bool = True) -> None:
        super().__init__()
        self.head, self.returns = nn.Linear(784, 7), returns
        nn.init.normal_(self.head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(1))
        return logits

    def test_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> Any:
        images, labels = batch
        return {"logits": self(images), "labels": labels} if self.returns else None


def loader(name: str, count: int = 130, **options: Any) -> DataLoader[tuple[Tensor, ...]]:
    images = datasets.load_split(name, "test")
    places = torch.linspace(0, len(images) - 1, count).long()
    return DataLoader(TensorDataset(images.images[places].float() / 255, images.labels[places]), 50, **options)


def run_test(report: ReportCallback, loaders: Any, module: Module) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        pl.Trainer(callbacks=[report], **QUIET).test(module, loaders, verbose=False)


def values(result: anchored.Result | None) -> list[tuple[Any, ...]]:
    assert result is not None
    return [(row["metric"], row["score"], row["value"], row["low"], row["high"]) for row in result.rows]


def test_a_test_writes_the_report(tmp_path: Path) -> None:
    known, digits = loader("fashion-mini-known"), loader("digits")
    report = ReportCallback(tmp_path / "report.html", ["test", "ood-digits"], bootstrap=100)
    run_test(report, [known, digits], Module())
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")
    with torch.no_grad():
        sets = {
            name: (torch.cat([Module()(images) for images, _ in each]), torch.cat([labels for _, labels in each]))
            for name, each in (("test", known), ("ood-digits", digits))
        }
    assert values(report.result) == values(anchored.evaluate(outputs=sets, bootstrap=100))
    named = ReportCallback(tmp_path / "named.html", bootstrap=100)
    run_test(named, {"test": known, "ood-digits": digits}, Module())
    assert values(named.result) == values(report.result)


def test_outputs_by_a_function_of_ones_own(tmp_path: Path) -> None:
    def outputs(module: pl.LightningModule, batch: Any) -> dict[str, Tensor]:
        return {"logits": module(batch[0]), "labels": batch[1]}

    report = ReportCallback(tmp_path / "own.html", outputs=outputs, bootstrap=100, name="mine")
    run_test(report, loader("fashion-mini-known"), Module(returns=False))
    run_test(report, loader("fashion-mini-known"), Module())  # again, from the start
    assert report.result is not None
    assert {row["architecture"] for row in report.result.rows} == {"mine"}
    assert {row["n"] for row in report.result.rows} == {130}


def test_what_cannot_be_reported_is_said_in_one_line(tmp_path: Path) -> None:
    known = loader("fashion-mini-known", 20)
    for report, loaders, module, message in (
        (ReportCallback(tmp_path / "x.html"), [known, known], Module(), "2 test loaders"),
        (ReportCallback(tmp_path / "x.html", ["validation"]), known, Module(), "are called 'validation'"),
        (ReportCallback(tmp_path / "x.html"), known, Module(returns=False), "test_step returns a NoneType"),
        (ReportCallback(tmp_path / "x.html", ["ood-x"]), known, Module(), "no outputs called 'test'"),
    ):
        with pytest.raises(anchored.UserError, match=message) as error:
            run_test(report, loaders, module)
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def on_two_ranks(folder: Path) -> None:
    """What each process that torchrun started does: 131 images, of which the sampler repeats one."""
    report = ReportCallback(folder / "report.html", folder=folder / "kept", bootstrap=100)
    trainer = pl.Trainer(callbacks=[report], devices=2, strategy="ddp", **QUIET)
    trainer.test(Module(), loader("fashion-mini-known", 131), verbose=False)
    assert (report.result is None) == (trainer.global_rank == 1)
    bad = ReportCallback(folder / "bad.html", ["ood-x"])
    with pytest.raises(anchored.UserError, match="no outputs called 'test'"):  # on both ranks, and nobody waits
        pl.Trainer(callbacks=[bad], devices=2, strategy="ddp", **QUIET).test(
            Module(), loader("fashion-mini-known", 20), verbose=False
        )
    print("done")


def test_two_ranks_write_one_report_of_each_image_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port))
    both = subprocess.run(
        [*start, __file__, str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert both.returncode == 0, both.stderr[-3000:]
    assert both.stdout.count("done") == 2
    assert (tmp_path / "report.html").exists()
    alone = ReportCallback(tmp_path / "alone.html", bootstrap=100)
    run_test(alone, loader("fashion-mini-known", 131), Module())
    assert values(Result(tmp_path / "kept")) == values(alone.result)


if __name__ == "__main__":
    on_two_ranks(Path(sys.argv[1]))

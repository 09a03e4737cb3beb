"""Metrics of torchmetrics: by batches and over ranks, they equal the functions of all images."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fixtures.ranks import two_ranks
from torch import Tensor
from torchmetrics import MetricCollection

from anchored.errors import UserError
from anchored.metrics.calibration import smooth_ece
from anchored.metrics.classification import per_image
from anchored.metrics.detection import auroc, fpr_at_tpr
from anchored.metrics.intervals import image_intervals, ood_intervals
from anchored.metrics.torchmetrics import AUROC, FPR95, SmoothECE
from anchored.store.files import load_tensors, save_tensors

IMAGES = 203


def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits (N,5) and labels (N,), scores (N,) and which of them are of other data (N,)."""
    draw = torch.Generator().manual_seed(3)
    logits, labels = 2 * torch.randn(IMAGES, 5, generator=draw), torch.randint(5, (IMAGES,), generator=draw)
    out = torch.arange(IMAGES) % 3 == 0
    return logits, labels, torch.randn(IMAGES, generator=draw) + out, out


def measured(places: list[Tensor], **options: Any) -> dict[str, Tensor]:
    """All metrics of images that come in these batches."""
    logits, labels, scores, out = images()
    calibration, detection = SmoothECE(**options), MetricCollection([AUROC(**options), FPR95(**options)])
    for batch in places:
        calibration.update(logits[batch], labels[batch])
        detection.update(scores[batch], out[batch])
    found = calibration.compute()
    return {**(found if isinstance(found, dict) else {"smooth_ece": found}), **detection.compute()}


def test_values_and_intervals_are_those_of_the_functions() -> None:
    logits, labels, scores, out = images()
    batches = list(torch.split(torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0)), 64))
    found = measured(batches)
    columns = per_image(logits, labels)
    inside, outside = scores[~out].sort().values, scores[out].sort().values
    assert float(found["smooth_ece"]) == pytest.approx(smooth_ece(columns.confidence, columns.correct), abs=1e-12)
    assert float(found["AUROC"]) == auroc(inside, outside)
    assert float(found["FPR95"]) == fpr_at_tpr(inside, outside)
    found = measured(batches, interval=True, replicates=200, seed=7)
    seeded = torch.Generator().manual_seed(7)
    expected = image_intervals(logits, labels, ["smooth_ece"], seeded, 200)["smooth_ece"]
    ends = [float(found[f"smooth_ece{end}"]) for end in ("", "_low", "_high")]
    assert ends == pytest.approx(list(expected), abs=1e-12)
    for name in ("auroc", "fpr95"):
        (interval,) = ood_intervals(inside, outside, [name], torch.Generator().manual_seed(7), 200).values()
        assert [float(found[f"{name}{end}"]) for end in ("", "_low", "_high")] == list(interval)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        mine = torch.arange(IMAGES)[rank::2]
        found = measured(list(torch.split(mine, 30)), interval=True, replicates=50)
        # A rank that saw one kind of images alone.
        _, _, scores, out = images()
        halves = AUROC()
        halves.update(scores[out] if rank else scores[~out], bool(rank))
        whole = halves.compute()
        assert isinstance(whole, Tensor)
        save_tensors(Path(folder) / f"{rank}.safetensors", {**found, "halves": whole})
    finally:
        dist.destroy_process_group()


def test_the_order_of_equally_confident_images_decides_nothing() -> None:
    logits, labels, _, _ = images()
    logits = logits[:7].repeat(29, 1)  # 7 confidences of 29 images each, some of them right
    found = list[dict[str, Tensor]]()
    for order in (torch.arange(IMAGES), torch.arange(IMAGES).flip(0)):
        metric = SmoothECE(interval=True, replicates=50)
        metric.update(logits[order], labels[order])
        found.append(metric.compute())  # type: ignore[arg-type]
    assert {0.0, 1.0} == set(per_image(logits, labels).correct[::7].tolist())
    assert found[0] == found[1]


def test_two_ranks_give_what_one_process_gives(tmp_path: Path) -> None:
    two_ranks(work, str(tmp_path))
    first, second = (load_tensors(tmp_path / f"{rank}.safetensors")[0] for rank in (0, 1))
    alone = measured([torch.arange(IMAGES)], interval=True, replicates=50)
    assert first.pop("halves") == second.pop("halves") == alone["auroc"]
    assert first.keys() == second.keys() == alone.keys()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name])
        assert float(first[name]) == pytest.approx(float(value), abs=1e-12)


def test_a_batch_alone_and_a_new_start() -> None:
    logits, labels, scores, out = images()
    metric = SmoothECE()
    first = metric(logits[:50], labels[:50])
    assert metric.compute() == first
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update``"), pytest.raises(UserError, match="N > 0"):
        metric.compute()
    detection = AUROC()
    with pytest.raises(UserError, match="one mark each"):
        detection.update(scores, out[:3])
    detection.update(scores[out], True)
    with pytest.raises(UserError, match="in_scores"):
        detection.compute()
    with pytest.raises(UserError, match="labels run from"):
        metric.update(logits, labels + 3)

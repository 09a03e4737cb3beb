"""On a CUDA device that is pretended (``fixtures/pretend_device.py``): no tensor on the wrong device, the values of the
CPU, and how often the host waits for the device: never in a training step, and elsewhere as ``READS`` says."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from fixtures import small_trainings
from fixtures.pretend_device import (
    CUDA,
    OnDevice,
    PretendDevice,
    WrongDeviceError,
    agree,
    on_device,
    on_host,
    trainer_options,
)
from torch import Tensor, nn

from anchored import anchor, fold, infer
from anchored.config.recipe import Cell
from anchored.config.settings import Anchoring, Data, Tail, Training
from anchored.corruptions.registry import corrupt, expand
from anchored.data.batches import Batches
from anchored.data.image_sets import ImageSet
from anchored.evaluation import inference
from anchored.evaluation.classifier import Classifier
from anchored.evaluation.detectors import MeasuredNetwork, ScoringClassifier, own_detector
from anchored.evaluation.inference import Outputs, Pass, compute_outputs
from anchored.method.hard_delta import Residuals
from anchored.method.reference_choice import choose_references
from anchored.method.references import Way
from anchored.metrics import agreement, calibration, classification, conformal, detection, intervals, selective
from anchored.metrics.linear_probe import linear_probe
from anchored.metrics.ood_scores import SCORES
from anchored.metrics.registry import IMAGE_METRICS, OOD_METRICS
from anchored.models.folder import ModelConfig
from anchored.store.layout import Run
from anchored.training import optimiser
from anchored.training.fit import train
from anchored.training.step import TrainingStep

# What is read of the device, at most, and why it has to be. A line that is not here reads nothing, and nothing at all
# is copied to the device in a way that waits.
READS = {
    # a batch of a corruption: each round's pointers are doubled until they end, one to five times of up to 16
    "corruptions/blur.py shuffled_sources": 15,
    "corruptions/digital.py jpeg_compression": 1,  # PIL compresses, on the CPU
    "corruptions/spatter.py _connected": 3,  # edges grow along others until they do not, with a look every 8 px
    "corruptions/c_bar_warp.py transverse_chromatic_abberation": 3,  # of grey images: a third get each zoom
    # a step of hard Δ mining, of images of more than 4,096 numbers: eigh looks whether it found them
    "method/hard_delta.py _compressed": 1,
}
BASE = Training(epochs=3, batch_size=8, learning_rate=0.01, accelerator="cpu", crop_padding=2)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# --- The pretended device itself --------------------------------------------------------------------------------------


def test_two_devices_in_one_operation_are_refused_as_cuda_refuses_them() -> None:
    with PretendDevice():
        here, there = torch.ones(3), torch.ones(3, device=CUDA)
        for wrong in (
            lambda: here + there,
            lambda: here.add_(torch.tensor(1.0, device=CUDA)),
            lambda: torch.cat([here, there]),
            lambda: torch.stack([there[0], torch.tensor(1.0)]),
            lambda: there.gather(0, torch.tensor([0])),
            lambda: here[torch.tensor([0], device=CUDA)],
            lambda: nn.Linear(3, 2)(there),
            lambda: torch.rand(3, generator=generator(), device=CUDA),
        ):
            with pytest.raises(WrongDeviceError):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert on_host(there * torch.tensor(2.0)).tolist() == [2, 2, 2]  # a number on the CPU is one


def test_what_waits_is_counted() -> None:
    with PretendDevice() as device:
        there = torch.arange(4.0, device=CUDA)
        for reading in (
            there[0].item, there.tolist, there.cpu, there.nonzero, lambda: torch.unique(there),
            lambda: bool(there[1] > 0), lambda: there[there > 1],
            lambda: torch.ones(4).copy_(there), lambda: torch.equal(there, there),
            lambda: torch.linalg.eigh(there.view(2, 2)), lambda: there.masked_select(there > 1),
        ):  # fmt: skip
            device.forget()
            reading()
            assert (device.reads.total(), device.uploads.total()) == (1, 0)
        for copying in (
            lambda: torch.ones(2).to(CUDA), lambda: torch.tensor([1, 2], device=CUDA), lambda: there.new_tensor(1),
            lambda: there[torch.tensor([1])], lambda: there.copy_(torch.ones(4)),
        ):  # fmt: skip
            device.forget()
            copying()  # type: ignore[no-untyped-call]
            assert (device.reads.total(), device.uploads.total()) == (0, 1)
        device.forget()
        there[there > 1] = 0  # a fill
        torch.ones(2).to(CUDA, non_blocking=True)
        assert not device.reads
        assert not device.uploads


# --- Corruptions and augmentation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 224])
def test_all_corruptions(size: int) -> None:
    coarse = torch.randint(256, (2, 3, size // 4, size // 4), generator=generator(), dtype=torch.uint8)
    images = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    for name in expand(["c", "c-bar"], size, size):
        for severity, channels in ((4, 3), (1, 1)):
            shown = images[:, :channels]
            with PretendDevice() as device:
                found = corrupt(OnDevice(shown), name, severity, seed=0, indices=torch.tensor([3, 8]))
            assert found.device == CUDA
            off = on_host(found) != corrupt(shown, name, severity, seed=0, indices=torch.tensor([3, 8]))
            # Pixels whose value lies on the edge between two grey levels; of spatter's rims, on that of being one.
            assert off.float().mean() < 1e-3, name
            assert not device.uploads, name
            assert not device.unordered, (name, device.unordered)
            assert within(device.reads, READS), (name, device.reads)


def within(reads: Counter[str], most: dict[str, int], times: int = 1) -> bool:
    return all(count <= most.get(line, 0) * times for line, count in reads.items())


def images_of(size: int = 16) -> ImageSet:
    pixels = torch.randint(256, (16, 3, size, size), generator=generator(), dtype=torch.uint8)
    return ImageSet("random", pixels, torch.randint(4, (16,), generator=generator()), tuple("abcd"))


AUGMENTED: dict[str, dict[str, Any]] = {
    "crops and flips": {},
    "AugMix beside the images": {"policy": "augmix", "copies": 2},
    "PixMix": {"policy": "pixmix"},
    "TrivialAugment, erasing": {"policy": "trivial_augment", "erasing": 0.5},
    "jigsaws": {"outliers": "jigsaw"},
    "scrambled": {"outliers": "scrambled"},
    "phases": {"outliers": "phase"},
    "other images": {"outliers": images_of()},
    "repeats": {"repeats": 2},
}


@pytest.mark.parametrize("options", AUGMENTED.values(), ids=AUGMENTED)
def test_batches_are_augmented_on_the_device_without_waiting_for_it(options: dict[str, Any]) -> None:
    def batches(device: torch.device) -> list[tuple[Tensor, Tensor]]:
        given: dict[str, Any] = dict(options)
        if isinstance(others := given.get("outliers"), ImageSet):
            given["outliers"] = others.to(device)
        made = Batches(
            images_of().to(device), 8, (0.5,) * 3, (0.2,) * 3, shuffle=True, crop_padding=2, flip=True, **given
        )
        counted.forget()
        return list(made)

    with PretendDevice() as counted:
        found = batches(CUDA)
    assert not counted.reads
    assert not counted.uploads
    assert not counted.unordered
    torch.testing.assert_close(on_host(found), batches(torch.device("cpu")))


# --- Training ---------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """Convolution, batch norm, a residual sum, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.block, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B,C,H,W) to logits (B,N)."""
        found = self.norm(self.stem(images)).relu()
        found = (found + self.block(found)).relu().mean((2, 3))
        logits: Tensor = self.head(found)
        return logits


def losses(cell: Cell, device: torch.device, size: int, counted: PretendDevice) -> list[Tensor]:
    """Losses of two whole steps: batch, loss, backward pass, optimiser; hard Δ mining has been fitted before."""
    torch.manual_seed(0)
    model: nn.Module = Small().train()
    if cell.protocol != "standard":
        asked = cell.anchoring
        model = anchor(
            model, cell.mask_probability, mask_unit=asked.mask_unit, mask_group=4, masked_target=asked.masked_target,
            batch_norm=asked.batch_norm, fresh_stem=True, generator=generator(), at=asked.at or None,
            example=torch.zeros(2, 3, size, size),
        )  # fmt: skip
        model.set_references(torch.zeros(1, 3, size, size))
    residuals = Residuals((3, size, size), 4 if cell.tail.per_class else 1, pairs=cell.tail.pairs, rank=4)
    mining = residuals if cell.tail_weight else None
    step = TrainingStep(model.to(memory_format=torch.channels_last), cell, 4, mining).to(device)
    adapted = optimiser.optimizer(step.model, cell.train, dict.fromkeys(dict(step.model.named_parameters()), 1.0))
    settings = cell.train
    batches = Batches(
        images_of(size).to(device), 8, (0.5,) * 3, (0.2,) * 3, shuffle=True, crop_padding=2, flip=True,
        policy=settings.policy, copies=2 if settings.consistency else 0, outliers=settings.outliers, drop_last=True,
    )  # fmt: skip
    if mining is not None:
        for images, labels in batches:
            mining.observe(images, torch.arange(8, device=device).roll(1), labels)
    step.on_train_epoch_start()
    counted.forget()
    found = []
    for number, batch in enumerate(batches):
        loss = step.training_step(batch, number)
        adapted.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(step.parameters(), settings.clip_norm)
        adapted.step()
        found.append(loss.detach())
    return found


def cell(alpha: float = 0.4, **parts: Any) -> Cell:
    given: dict[str, Any] = {
        "anchoring": Anchoring(),
        "tail": Tail(points=4),
        "train": BASE,
        "tail_weight": 0.0,
    } | parts
    return Cell("small", "ram", alpha, seed=0, data=Data(), **given)


STEPS = {f"masks of {unit}, {target}": cell(anchoring=Anchoring(mask_unit=unit, masked_target=target))
         for unit in ("batch", "process", "image") for target in ("label", "uniform")}  # fmt: skip
STEPS |= {f"mining, {norm}": cell(tail_weight=0.5, tail=Tail(points=4, batch_norm=norm)) for norm in ("joint", "own")}
STEPS |= {
    "mining of classes": cell(tail_weight=0.5, tail=Tail(points=4, per_class=True, pairs="anchored")),
    "standard": replace(cell(0.0), protocol="standard"),
    "statistics of all": cell(anchoring=Anchoring(batch_norm="all")),
    "at a layer": cell(anchoring=Anchoring(at="head")),
    "mixup": cell(train=replace(BASE, mixup=0.3, label_smoothing=0.1)),
    "cutmix": cell(train=replace(BASE, cutmix=1.0, optimizer="adamw")),
    "regmixup": cell(train=replace(BASE, regmixup=1.0, clip_norm=1.0)),
    "views": cell(train=replace(BASE, policy="augmix", consistency=12.0, logit_norm=0.04)),
    "outliers": cell(train=replace(BASE, outliers="jigsaw")),
}  # fmt: skip


@pytest.mark.parametrize("wanted", STEPS.values(), ids=STEPS)
def test_a_training_step_does_not_wait_for_the_device(wanted: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingStep, "_mining", property(lambda self: True))
    with PretendDevice() as counted:
        found = losses(wanted, CUDA, 16, counted)
    assert not counted.reads
    assert not counted.uploads
    assert not counted.unordered
    torch.testing.assert_close(on_host(found), losses(wanted, torch.device("cpu"), 16, counted))


@pytest.mark.parametrize("norm", ["joint", "own"])
def test_hard_delta_mining_of_large_images_waits_for_one_decomposition(
    norm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingStep, "_mining", property(lambda self: True))
    wanted = cell(tail_weight=0.5, tail=Tail(points=4, batch_norm=norm))
    with PretendDevice() as counted:
        found = losses(wanted, CUDA, 40, counted)
    assert counted.reads == {"method/hard_delta.py _compressed": 2}
    assert not counted.uploads
    assert not counted.unordered
    torch.testing.assert_close(on_host(found), losses(wanted, torch.device("cpu"), 40, counted))


def test_a_whole_training_reads_the_loss_and_what_it_keeps(tmp_path: Path) -> None:
    """Lightning's loop, hard Δ mining, averaged weights, checkpoints: the weights of the CPU, and nothing a step."""
    settings = Training(
        epochs=3, batch_size=16, learning_rate=0.05, schedule="cosine", mixup=0.3, average=0.6, crop_padding=2,
        accelerator="cpu",
    )  # fmt: skip
    wanted = small_trainings.cell(settings)
    train(Run(tmp_path / "cpu"), wanted)
    with PretendDevice() as device:
        train(Run(tmp_path / "gpu"), wanted, **trainer_options())
    assert small_trainings.same_weights(Run(tmp_path / "cpu"), Run(tmp_path / "gpu"))
    # At most eight progress readings an epoch (fit.py); the rest is at the ends of epochs.
    assert device.reads["training/fit.py on_train_batch_end"] == 3 * 8
    kept = {"store/files.py <dictcomp>", "training/fit.py _fit", "data/image_sets.py <genexpr>"}  # checkpoints, start
    kept |= {f"training/step.py {name}" for name in ("configure_optimizers", "close_epoch", "refuse_divergence")}
    kept |= {"training/optimiser.py on_fit_end"}  # the average takes the weights' place
    kept |= {"method/hard_delta.py fit", "method/hard_delta.py _factor", "training/fit.py on_train_batch_end"}
    assert set(device.reads) <= kept
    at_ends = {f"training/step.py {name}" for name in ("configure_optimizers", "close_epoch")}
    assert set(device.uploads) <= {"data/image_sets.py to", "training/fit.py _fit"} | at_ends


def test_the_mutations_that_these_tests_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is read, a number that is made on the device, a tensor that is left on the CPU: each is noticed."""
    inner = TrainingStep._loss

    def changed(change: Any) -> PretendDevice:
        monkeypatch.setattr(TrainingStep, "_loss", lambda *args: change(inner(*args)))
        with PretendDevice() as counted:
            losses(cell(), CUDA, 16, counted)
        return counted

    assert changed(lambda loss: loss * float(loss > 0)).reads.total() == 2
    assert changed(lambda loss: loss * loss.new_tensor(2.0)).uploads.total() == 2
    with pytest.raises(WrongDeviceError, match="two devices"):
        changed(lambda loss: (loss * torch.ones(2)).sum())


# --- Metrics, references, evaluation ----------------------------------------------------------------------------------

LOGITS = 2 * torch.randn(60, 5, generator=generator())
LABELS = torch.randint(5, (60,), generator=generator())
SURE, RIGHT = LOGITS.softmax(1).amax(1), LOGITS.argmax(1) == LABELS
INSIDE, OUTSIDE = torch.randn(60, generator=generator()), torch.randn(40, generator=generator()) + 1
FEATURES = torch.randn(60, 8, generator=generator()) + LABELS[:, None]
VIEWS = torch.randn(4, 60, 5, generator=generator())

# Function, its tensors, and reads at most: checks of what was given, and the result.
METRICS: dict[str, tuple[Any, tuple[Tensor, ...], int]] = {
    **{name: (score, (LOGITS,), 1) for name, score in SCORES.items()},
    "per image": (classification.per_image, (LOGITS, LABELS), 3),
    "ECE": (calibration.ece, (SURE, RIGHT), 6),
    "smooth ECE": (calibration.smooth_ece, (SURE, RIGHT), 9),  # its curve is SciPy's, on the CPU
    "smooth ECE, old": (lambda a, b: calibration.smooth_ece(a, b, "reflect_old"), (SURE, RIGHT), 9),
    "AUROC": (detection.auroc, (INSIDE, OUTSIDE), 4),
    "FPR": (detection.fpr_at_tpr, (INSIDE, OUTSIDE), 4),
    "AUPR": (detection.aupr, (INSIDE, OUTSIDE), 4),
    "risk and coverage": (selective.risk_coverage, (SURE, RIGHT), 5),
    "AURC": (selective.aurc, (SURE, RIGHT), 6),
    "threshold of errors": (lambda a, b: selective.selective_threshold(a, b, 0.3), (SURE, RIGHT), 6),
    "p-values": (conformal.p_values, (OUTSIDE, INSIDE), 1),
    "alarms": (lambda scores: conformal.alarm_threshold(scores, 0.1), (INSIDE,), 2),
    "temperature": (conformal.fit_temperature, (LOGITS, LABELS), 40),  # one a step of its search
    "spread": (agreement.mean_spread, (VIEWS,), 1),
    "disagreement": (agreement.disagreement, (VIEWS,), 1),
    "agreement": (agreement.pair_agreement, (VIEWS,), 1),
    "bootstrap of image metrics": (
        lambda a, b: intervals.image_intervals(a, b, list(IMAGE_METRICS), generator(), 100), (LOGITS, LABELS), 40,
    ),
    "bootstrap of OOD metrics": (
        lambda a, b: intervals.ood_intervals(a, b, list(OOD_METRICS), generator(), 100), (INSIDE, OUTSIDE), 30,
    ),
    # torch's L-BFGS decides each step on the host: some tens of reads an iteration, whatever the number of images
    "linear probe": (
        lambda a, b, c: linear_probe(a, b, c, 5, generator(), (1.0,)).logits, (FEATURES, LABELS, FEATURES[:9]), 5000,
    ),
    **{
        f"references by {choice}": (
            lambda labels, points, choice=choice: choose_references(
                choice, 5, labels=labels, points=points, generator=generator()
            ),
            (LABELS, FEATURES),
            5,
        )
        for choice in ("random", "class_balanced", "herding", "k_centre")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", METRICS)
def test_metrics(name: str) -> None:
    function, tensors, most = METRICS[name]
    assert agree(function, *tensors).reads.total() <= most


def anchored_model(references: int = 3) -> nn.Module:
    torch.manual_seed(1)
    model = anchor(Small(), fresh_stem=True, generator=generator()).eval()
    model.set_references(torch.randn(references, 3, 16, 16, generator=generator()))
    return model


@pytest.mark.parametrize("folded", [False, True])
def test_inference_over_references(folded: bool) -> None:
    images = torch.randn(6, 3, 16, 16, generator=generator())
    model = fold(anchored_model()) if folded else anchored_model()
    for way in get_args(Way):
        if folded and way == "nearest":  # for models that are not
            continue
        expected = infer(model, images, way)
        with PretendDevice() as device:
            there = model.to(CUDA)
            device.forget()
            found = infer(there, on_device(images), way)
            reads = device.reads.copy()
            model.to("cpu")
        torch.testing.assert_close(on_host(tuple(vars(found).values())), tuple(vars(expected).values()))
        # Adaptive: after each reference it is asked which images are settled. The others read nothing.
        assert reads.total() <= (20 if way == "adaptive" else 0), (way, reads)


def test_folding_on_the_device() -> None:
    images = torch.randn(6, 3, 16, 16, generator=generator())
    for fused in (False, True):
        expected = fold(anchored_model(), fuse_batch_norm=fused)(images)
        with PretendDevice():
            found = fold(anchored_model().to(CUDA), fuse_batch_norm=fused)(on_device(images))
        torch.testing.assert_close(on_host(found), expected)


def test_a_pass_over_corrupted_images_reads_its_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight images at a time, corrupted on the device; what is read are logits and features, and scores."""
    monkeypatch.setattr(inference, "ahead", lambda prepared: prepared)  # another thread would not see the device
    config = ModelConfig("small", "ram", 0.4, 3, 16, (0.5,) * 3, (0.2,) * 3, tuple("abcd"), "random", references=3)

    def foggy(images: Tensor, places: Tensor) -> Tensor:
        return corrupt(images, "fog", 3, seed=0, indices=places)

    def outputs(device: torch.device) -> list[Outputs]:
        classifier = Classifier.of(anchored_model().to(device), config)
        detector = own_detector("largest", lambda images: images.amax((1, 2, 3)), "")
        scorer = detector.ready(MeasuredNetwork(lambda: classifier, Outputs(LOGITS, LABELS)), None)
        scoring = ScoringClassifier.of_detector(classifier, scorer)
        counted.forget()
        passes = Pass(classifier, images_of(), 8, True, foggy), Pass(scoring, images_of(), 8, False, foggy)
        return [compute_outputs(each) for each in passes]

    with PretendDevice() as counted:
        found = outputs(CUDA)
    assert counted.reads == {"data/given.py to_tensor": 4, "evaluation/classifier.py __call__": 2}
    assert not counted.uploads
    assert not counted.unordered
    for one, other in zip(found, outputs(torch.device("cpu")), strict=True):
        torch.testing.assert_close(vars(one), vars(other), rtol=1e-5, atol=1e-5)

"""Lines of ``gpu.py`` on the card itself and on training."""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import torch
from bench import (
    CLASSES,
    USUAL,
    WAYS,
    Bench,
    Figures,
    Line,
    Way,
    case,
    matrix_rate,
    ratio,
    spread,
    stepping,
    titles,
    wait,
)
from cpu_training import epoch_seconds
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anchored import anchor
from anchored.config.recipe import Cell
from anchored.config.settings import Anchoring, Data, MaskUnit, Tail, Training
from anchored.data.batches import Batches
from anchored.method.hard_delta import Residuals
from anchored.models import registry as networks
from anchored.training.step import TrainingStep

# --- The card ---------------------------------------------------------------------------------------------------------


def peak_lines(bench: Bench) -> Iterator[tuple[str, Line]]:
    for name in ("float32", "tf32", "bfloat16"):
        yield f"matrix product, {name}", partial(_product, bench, name)
    yield "convolution, bfloat16", partial(_convolution, bench)
    yield "copy", partial(_copy, bench)


def _product(bench: Bench, name: str) -> Figures:
    return {"TFLOP/s": spread([each / 1e12 for each in matrix_rate(bench, name)])}


def _convolution(bench: Bench) -> Figures:
    count, size = (2, 8) if bench.tiny else (128, 56)
    layer = nn.Conv2d(256, 256, 3, padding=1, bias=False).to(bench.device, torch.bfloat16)
    layer = layer.to(memory_format=torch.channels_last)
    images = bench.random(count, 256, size, size).to(torch.bfloat16, memory_format=torch.channels_last)
    with torch.inference_mode():
        found = bench.in_turn(layer=lambda: layer(images))["layer"]
    return {"TFLOP/s": spread([2 * 9 * 256**2 * count * size**2 / each / 1e12 for each in found])}


def _copy(bench: Bench) -> Figures:
    source = bench.random(1 << (16 if bench.tiny else 28))
    target = torch.empty_like(source)
    found = bench.in_turn(copy=lambda: target.copy_(source))["copy"]
    return {"GB/s": spread([2 * source.nbytes / each / 1e9 for each in found])}


# --- A training step -------------------------------------------------------------------------------------------------


def step_lines(bench: Bench) -> Iterator[tuple[str, Line]]:
    for title in titles(bench):
        for name, way in WAYS.items():
            yield f"{title}, {name}", partial(_step, bench, title, way)


def _step(bench: Bench, title: str, way: Way) -> Figures:
    """Both steps in turn; the masked one has α = 0.25 with a mask an image, so that all turns do the same."""
    network, size, count = case(bench, title)
    anchored = anchor(network, 0.25, mask_unit="image", example=torch.zeros(2, 3, size, size))
    works = {
        "standard": stepping(bench, network, (3, size, size), count, way),
        "anchored": stepping(bench, anchored, (3, size, size), count, way),
    }
    memory = {name: bench.peak_memory(work) for name, work in works.items()}
    found = bench.in_turn(**works)
    with FlopCounterMode(display=False) as counter:
        stepping(bench, case(bench, title)[0], (3, size, size), count, replace(way, compiled=""))()
    # In fp32 torch's convolutions are TF32 by default.
    peak = max(matrix_rate(bench, "bfloat16" if way.half else "tf32"))
    return {
        "anchored ÷ standard": ratio(found["anchored"], found["standard"]),
        "images/s": spread([count / each for each in found["standard"]]),
        "of matrix peak": counter.get_total_flops() / statistics.median(found["standard"]) / peak,
        "GB": memory["standard"],
        "GB, anchored": memory["anchored"],
    }


# --- Training with everything around it -------------------------------------------------------------------------------

POLICIES: dict[str, dict[str, Any]] = {
    "crops and flips": {},
    "AugMix": {"policy": "augmix"},
    "TrivialAugment": {"policy": "trivial_augment"},
    "PixMix": {"policy": "pixmix"},
}


def loop_lines(bench: Bench) -> Iterator[tuple[str, Line]]:
    for name, options in POLICIES.items():
        yield f"{titles(bench)[0]}, {name}", partial(_loop, bench, options)


def _batches(bench: Bench, count: int, size: int, batch: int, **options: Any) -> Batches:
    images = bench.image_set(count, size).to(bench.device)
    half = (0.5,) * 3
    return Batches(images, batch, half, half, shuffle=True, crop_padding=4, flip=True, drop_last=True, **options)


def _loop(bench: Bench, options: dict[str, Any]) -> Figures:
    """An epoch of our training (Lightning, augmentation, log) and as many bare steps, in turn, on the wall."""
    title = titles(bench)[0]
    network, size, batch = case(bench, title)
    steps = 2 if bench.tiny else 40
    settings = Training(epochs=1, batch_size=batch, learning_rate=1e-9, precision="bf16-mixed", accelerator="auto")
    cell = Cell("benchmark", "anchored", 0.0, 0.0, 0, Data(), Anchoring(), Tail(), settings)
    model = anchor(network).to(memory_format=torch.channels_last)
    step = stepping(bench, anchor(case(bench, title)[0]), (3, size, size), batch, USUAL)
    batches = _batches(bench, steps * batch, size, batch, **options)
    here = {"accelerator": bench.device.type, "devices": 1 if bench.device.index is None else [bench.device.index]}

    def whole() -> float:
        return epoch_seconds(TrainingStep(model, cell, CLASSES), batches, precision="bf16-mixed", **here)

    def bare() -> float:
        wait(bench.device)
        began = time.perf_counter()
        for _ in range(steps):
            step()
        wait(bench.device)
        return time.perf_counter() - began

    whole(), bare()
    pairs = [(whole(), bare()) for _ in range(bench.turns)]
    images = steps * batch
    return {"images/s": spread([images / each for each, _ in pairs]), "bare ÷ whole": spread([b / w for w, b in pairs])}


@contextlib.contextmanager
def waits(bench: Bench) -> Iterator[list[str]]:
    """What waits for the device within it, by torch's own watch; nothing on a CPU."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if bench.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if bench.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    found += [str(each.message) for each in caught if "synchroniz" in str(each.message)]


def wait_lines(bench: Bench) -> Iterator[tuple[str, Line]]:
    for unit in get_args(MaskUnit):
        cell = Cell("n", "ram", 0.25, 0.0, 0, Data(), Anchoring(mask_unit=unit), Tail(), Training())
        yield f"step, masks of {unit}", partial(_waiting, bench, cell, {})
    mined = Cell("n", "ram", 0.25, 0.5, 0, Data(), Anchoring(), Tail(points=8), Training())
    yield "step, hard Δ mining", partial(_waiting, bench, mined, {})
    for name, options in POLICIES.items():
        plain = Cell("n", "anchored", 0.0, 0.0, 0, Data(), Anchoring(), Tail(), Training())
        yield f"step, {name}", partial(_waiting, bench, plain, options)


def _waiting(bench: Bench, cell: Cell, options: dict[str, Any]) -> Figures:
    """Four steps with their batches, after two."""
    size, batch = (8, 4) if bench.tiny else (32, 128)
    network = networks.build_network("small", channels=3, classes=CLASSES, seed=0)
    model = anchor(network, cell.mask_probability, mask_unit=cell.anchoring.mask_unit)
    model.set_references(torch.zeros(1, 3, size, size))
    residuals = Residuals((3, size, size)) if cell.tail_weight else None
    step = TrainingStep(model, cell, CLASSES, residuals).to(bench.device).train()
    optimizer = torch.optim.SGD(step.model.parameters(), 1e-9)
    step.on_train_epoch_start()
    batches = iter(_batches(bench, 6 * batch, size, batch, **options))
    points: list[Tensor] = []

    def one() -> None:
        images, labels = next(batches)
        optimizer.zero_grad()
        loss = step.training_step((images, labels), 0)
        if points:
            assert residuals is not None
            far = residuals.tail(cell.tail.points, cell.tail.mass, step.generators.tail)
            loss = loss + 0.5 * model.masked_pass(-far).logsumexp(1).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    one()
    one()
    if residuals is not None:
        residuals.fit()
        points.append(residuals.means)
    with waits(bench) as found:
        for _ in range(4):
            one()
    return {"waits a step": len(found) / 4, "the first": found[0][:80] if found else ""}


# --- Two trainings on one card ----------------------------------------------------------------------------------------


def sharing_lines(bench: Bench) -> Iterator[tuple[str, Line]]:
    for title in titles(bench)[:1]:
        for count in (2,) if bench.tiny else (2, 4):
            yield f"{title}, {count} processes", partial(_sharing, bench, title, count)


def _sharing(bench: Bench, title: str, count: int) -> Figures:
    """Steps a second of processes that train at once, together, against one that has the card for itself."""
    alone, together = sum(_rates(bench, title, 1)), _rates(bench, title, count)
    return {"steps/s alone": alone, "steps/s together": sum(together), "together ÷ alone": sum(together) / alone}


def _rates(bench: Bench, title: str, count: int) -> list[float]:
    context: Any = multiprocessing.get_context("spawn" if bench.device.type == "cuda" else "fork")
    ready, found = context.Barrier(count), context.SimpleQueue()
    processes = [context.Process(target=_steps, args=(bench, title, ready, found)) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=600)
        process.kill()  # nothing, where it has ended
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"{sum(bool(process.exitcode) for process in processes)} of {count} processes failed")
    return [found.get() for _ in processes]


def _steps(bench: Bench, title: str, ready: Any, found: Any) -> None:
    """Steps a second, from when all are ready."""
    try:
        torch.set_num_threads(1)
        network, size, images = case(bench, title)
        step = stepping(bench, anchor(network), (3, size, size), images, USUAL)
        for _ in range(1 if bench.tiny else 10):
            step()
        wait(bench.device)
        ready.wait(timeout=300)
        began, done, enough = time.perf_counter(), 0, 0.1 if bench.tiny else 10.0
        while time.perf_counter() - began < enough:
            for _ in range(1 if bench.tiny else 10):
                step()
                done += 1
            wait(bench.device)
        found.put(done / (time.perf_counter() - began))
    except BaseException:
        ready.abort()
        raise

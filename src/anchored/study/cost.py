"""How long a study will run on this machine, from a few steps of each network on random images."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from anchored.config.methods import after_training, method_title
from anchored.config.recipe import Cell, Recipe
from anchored.corruptions import registry as corruptions
from anchored.data import datasets
from anchored.data.image_sets import ImageSet
from anchored.data.preprocessing import to_input
from anchored.data.synthetic_ood import OUTLIERS
from anchored.errors import is_out_of_memory
from anchored.evaluation import holdout, inference
from anchored.evaluation.classifier import Classifier
from anchored.evaluation.evaluator import corruptions_of
from anchored.method.anchoring import AnchoredModel
from anchored.models import folder as models
from anchored.models.initialisation import model_config
from anchored.training.devices import find_device

SECONDS = 40.0  # for all measurements of networks together; those of corruptions get a quarter more
STEPS = 3  # steps that are timed, after one that is not


@dataclass(frozen=True)
class Cost:
    """What one training of a network and protocol takes here, measured, in seconds."""

    network: str
    protocol: str  # and the method, if one
    trainings: int
    batch: int  # images that a pass of the recipe's step, or of a device's share of it, shows the network
    measured: int  # images of the pass that was timed
    step: float  # of a training step
    steps: int  # of one training
    passes: float  # of evaluating one image
    images: int  # that one training is evaluated on
    outputs: int  # bytes of its weights and outputs
    fits: bool = True  # False where the recipe's step runs out of the device's memory

    @property
    def training(self) -> float:
        """Seconds of one training."""
        return self.step * self.steps

    @property
    def evaluation(self) -> float:
        """Seconds of one evaluation, without corrupting images, probes and intervals."""
        return self.passes * self.images


def costs(recipe: Recipe, progress: Callable[[str], None] = lambda what: None) -> list[Cost]:
    """Measure a few training steps and evaluation batches of each network and protocol, on random images.

    Masked and unmasked trainings do the same work, so that one of them is measured. Steps are measured at the recipe's
    batch size, or at a smaller one where that takes too long here: then the time of an image is taken to be the same.
    Several devices are taken to share the work and to lose nothing by it. Of a method only the images and passes of its
    step are measured, not what augments them.
    """
    cells = list(recipe.cells())
    kinds: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        kinds.setdefault((cell.network, cell.protocol, cell.method), []).append(cell)
    key_of = {kind: (kind[0], kind[1] == "standard", alike[0].train.shown) for kind, alike in kinds.items()}
    limit = SECONDS / max(1, len(set(key_of.values())))  # of models that were trained elsewhere there is nothing to do
    measured: dict[tuple[str, str, str], Cost] = {}  # without what the section ``references`` adds
    added: list[Cost] = []
    timed: dict[tuple[str, bool, int], _Timing] = {}
    for (network, protocol, method), alike in kinds.items():
        key = key_of[network, protocol, method]
        if key not in timed:
            progress(f"{network}, {protocol}")
            timed[key] = _measured(alike[0], recipe.evaluate.batch_size, limit)
        timing, train = timed[key], alike[0].train
        images, outputs = _evaluated(recipe, timing.features)
        further = _over_references(recipe, protocol, timing.features)
        steps = train.epochs * max(1, round(count(recipe, recipe.data.train, "train")) // train.batch_size)
        measured[network, protocol, method] = Cost(
            network=network, protocol=f"{protocol}, {method_title(method)}" if method else protocol,
            trainings=len(alike), batch=train.shown * (train.batch_size // train.devices), measured=timing.images,
            step=timing.step * (2 if train.sam else 1), steps=steps, passes=timing.passes / train.devices,
            images=images, outputs=timing.weights + outputs, fits=timing.fits,
        )  # fmt: skip
        whole = measured[network, protocol, method]
        added.append(replace(whole, images=images + further[0], outputs=whole.outputs + further[1]))
    return [*added, *_after(recipe, measured)]


def _after(recipe: Recipe, trained: Mapping[tuple[str, str, str], Cost]) -> Iterator[Cost]:
    """What is done after training: several passes of MC dropout, none of what is made of outputs."""
    firsts = ((cell.first, cell.method) for cell in recipe.after_cells())
    uses = Counter((first.network, first.protocol, first.method, method) for first, method in firsts)
    for (network, protocol, of, method), many in uses.items():
        one = trained[network, protocol, of]
        passes = one.passes * recipe.evaluate.dropout_passes * (after_training(method)[0] == "mc_dropout")
        named = f"{protocol}, {method_title(method)}"
        yield replace(one, protocol=named, trainings=many, step=0.0, steps=0, passes=passes)


def count(recipe: Recipe, name: str, split: str) -> float:
    """Return how many images of a split a recipe uses; of own data without test images, all."""
    row = datasets.dataset_row(name, recipe.data)
    return recipe.data.fraction * (row.train if split == "train" else row.test or row.train)


def _evaluated(recipe: Recipe, width: int) -> tuple[int, int]:
    """Images that one training is evaluated on, and bytes of the outputs: logits, and ``width`` features of some."""
    settings, name = recipe.evaluate, recipe.data.train
    kinds = len(corruptions_of(settings, datasets.input_format(recipe.data))) * len(settings.severities)
    test = count(recipe, name, "test")
    outside = sum(count(recipe, each, "test") for each in (*settings.ood, *settings.shifted))
    adapted = sum(count(recipe, each, split) for each in settings.adaptation for split in ("train", "test"))
    fitted = (settings.detector_images or count(recipe, name, "train")) if settings.detectors else 0
    images = test * (1 + kinds) + outside + adapted + fitted + _chosen_on(recipe)
    classes = len(datasets.dataset_row(name, recipe.data).classes)
    featured = test + adapted + (fitted + outside if settings.detectors else 0)
    return round(images), round(4 * (images * classes + featured * width))


def _over_references(recipe: Recipe, protocol: str, width: int) -> tuple[int, int]:
    """Passes of one image that the section ``references`` adds to one training, and bytes of their outputs."""
    asked, settings, name = recipe.references, recipe.evaluate, recipe.data.train
    if not asked.count:
        return 0, 0
    passes = 1 if protocol == "standard" else asked.count
    kinds = len(corruptions_of(settings, datasets.input_format(recipe.data))) * len(asked.severities)
    test, held = count(recipe, name, "test"), recipe.data.validation * count(recipe, name, "train")
    others = [test] * kinds + [count(recipe, each, "test") for each in settings.ood]
    images = test + held + sum(min(each, asked.images or each) for each in others)
    tasks = settings.adaptation if passes > 1 else ()
    adapted = sum(count(recipe, each, split) for each in tasks for split in ("train", "test"))
    classes = len(datasets.dataset_row(name, recipe.data).classes)
    # Beside logits (or features) by reference: their mean, a label of two words, two places of the nearest reference.
    words = images * (passes * classes + classes + 4) + adapted * (passes * width + classes + 2)
    return round(passes * (images + adapted)), round(4 * words)


def _chosen_on(recipe: Recipe) -> float:
    """Count the held-out images that one training is measured on to choose a knob: clean, corrupted, as outliers."""
    if not recipe.choose:
        return 0.0
    settings = holdout.settings_of(recipe)
    held_out = recipe.data.validation * count(recipe, recipe.data.train, "train")
    outside = sum(held_out if name in OUTLIERS else count(recipe, name, "test") for name in settings.ood)
    return held_out * (1 + len(settings.corruptions) * len(settings.severities)) + outside


@dataclass(frozen=True)
class _Timing:
    """One network, measured."""

    images: int  # of the largest step that was timed
    step: float  # seconds of one pass of the recipe's step, forward and backward
    passes: float  # seconds of evaluating one image
    weights: int  # bytes
    features: int
    fits: bool  # False where a larger step ran out of the device's memory


def _measured(cell: Cell, evaluated: int, limit: float) -> _Timing:
    """Time steps of more and more images, up to the recipe's batch or a third of ``limit`` seconds; then passes."""
    config = model_config(cell)
    device = find_device(cell.train.accelerator)
    model = models.build_model(config, seed=cell.seed, fresh_stem=cell.anchoring.stem == "fresh")
    generator, shape = torch.Generator().manual_seed(0), (config.channels, config.size, config.size)
    if isinstance(model, AnchoredModel):
        model.set_references(torch.randn(config.references, *shape, generator=generator))
    model = model.to(memory_format=torch.channels_last).to(device)
    whole = cell.train.shown * (cell.train.batch_size // cell.train.devices)
    batch = min(2, whole)
    reached, seconds, fits = batch, 0.0, True
    pixels = torch.randint(0, 256, (batch, *shape), generator=generator, dtype=torch.uint8)
    while True:
        labels = torch.randint(0, len(config.classes), (batch,), generator=generator)
        inputs = to_input(pixels.to(device), config.mean, config.std)
        try:
            step = partial(_step, model, inputs, labels.to(device), cell.train.precision)
            reached, seconds = batch, _timed(step, device, again=batch > 2)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        grown = min(4 * batch, whole)
        if not fits or batch == whole or seconds * (STEPS + 1) * grown / batch > limit / 3:
            break
        batch = grown
        pixels = torch.randint(0, 256, (batch, *shape), generator=generator, dtype=torch.uint8)
    some = pixels[: min(evaluated, reached)]
    images = ImageSet("random", some, torch.zeros(len(some), dtype=torch.int64), config.classes)
    work = inference.Pass(Classifier.of(model, config), images, len(images), features=True)
    forward = _timed(lambda: inference.compute_outputs(work), device, again=True) / len(images)
    outputs = inference.compute_outputs(work)
    assert outputs.features is not None
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    return _Timing(reached, seconds * whole / reached, forward, weights, outputs.features.shape[1], fits)


def _step(model: nn.Module, inputs: Tensor, labels: Tensor, precision: str) -> None:
    """Forward, backward, and a step of SGD too small to change anything."""
    model.train().zero_grad()
    kind = torch.float16 if precision.startswith("16") else torch.bfloat16
    with torch.autocast(inputs.device.type, kind, enabled=precision.endswith("mixed")):
        loss = functional.cross_entropy(model(inputs), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.optim.SGD(model.parameters(), lr=1e-9).step()


def _timed(work: Callable[[], object], device: torch.device, again: bool) -> float:
    """Seconds of one call: the median of a few after a first one, or that of a second one."""
    seconds = []
    for _ in range(1 + (STEPS if again else 1)):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds[1:])[(len(seconds) - 1) // 2]


def corrupting(recipe: Recipe) -> float:
    """Seconds of making all corrupted test images of one evaluation here; 0 where an archive has them."""
    settings, seen = recipe.evaluate, datasets.input_format(recipe.data)
    if settings.corruption_source == "archive" or not settings.corruptions:
        return 0.0
    kinds = corruptions_of(settings, seen)
    some = min(64, max(4, (1 << 18) // (seen.channels * seen.size**2)))
    images = torch.randint(0, 256, (some, seen.channels, seen.size, seen.size), dtype=torch.uint8)
    severity = settings.severities[len(settings.severities) // 2]
    began, per_kind = time.perf_counter(), []
    for kind in kinds:
        corruptions.corrupt(images[:1], kind, severity, seed=0)  # the first call loads and prepares
        started = time.perf_counter()
        corruptions.corrupt(images, kind, severity, seed=0)
        per_kind.append((time.perf_counter() - started) / len(images))
        if time.perf_counter() - began > SECONDS / 4:
            break
    per_image = sum(per_kind) / len(per_kind) * len(kinds)  # what was not reached takes what the others took
    return per_image * len(settings.severities) * count(recipe, recipe.data.train, "test")


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it: ``40 s``, ``12 min``, ``5.5 h``, ``3.2 days``, ``14 years``."""
    for unit, name in ((31_557_600, "years"), (86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"

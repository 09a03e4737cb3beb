"""MAITE's protocols of image classification: its models in an evaluation, and ours, our data and our metrics in MAITE.

Structural: nothing here imports ``maite``. An object of MAITE has ``metadata``, a mapping with "id". Images are
(C,H,W), targets and outputs (Cl,) over classes; see https://mit-ll-ai-technology.github.io/maite.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anchored.config.settings import Data
from anchored.corruptions.registry import CORRUPTIONS, corrupt
from anchored.data import datasets
from anchored.data.given import given_set, label_names, label_of, maite_metadata
from anchored.data.preprocessing import InputFormat
from anchored.errors import UserError, first_line
from anchored.evaluation.classifier import Classifier, are_probabilities, as_tensor
from anchored.models import folder

if TYPE_CHECKING:  # what a type checker sees; MAITE is no dependency
    from maite.protocols import (
        ArrayLike,
        AugmentationMetadata,
        DatasetMetadata,
        DatumMetadata,
        MetricMetadata,
        ModelMetadata,
    )

    Batch = tuple[Sequence[ArrayLike], Sequence[ArrayLike], Sequence[DatumMetadata]]

OutputKind = Literal["probabilities", "logits"]
_TINY = torch.finfo(torch.float32).tiny  # a probability of zero, whose logarithm is no number


# --- From MAITE ---------------------------------------------------------------------------------------------------


class GivenMaiteModel:
    """Somebody's MAITE model as a callable on batches (B,C,H,W) that gives logits (B,N).

    Where its outputs for the first batch are probabilities, the logarithm of all outputs is taken, and ``metadata``,
    otherwise the model's own, says so under "outputs".

    Attributes:
        classes: names of the logits, of ``index2label``; empty where there is none.
        preprocess: for ``raw`` images, what leaves them as they are: the model takes uint8, as the data set gives them.
    """

    def __init__(self, model: Any, *, raw: bool = False) -> None:
        self.model = model
        self.metadata: dict[str, Any] = dict(maite_metadata(model) or {})
        self.classes = label_names(self.metadata)
        self.preprocess: Callable[[Tensor], Tensor] | None = _as_they_are if raw else None
        self.__name__ = str(self.metadata.get("id", type(model).__name__))

    @property
    def gives_probabilities(self) -> bool:
        """Whether outputs are known to be probabilities, which hold no energy."""
        return self.metadata.get("outputs") == "logarithm of probabilities"

    def __call__(self, images: NDArray[Any]) -> Tensor:
        """Images (B,C,H,W), of NumPy, to logits (B,N); ``UserError`` where outputs are not one (N,) an image."""
        outputs = _stacked(self.model(list(images)), "outputs of the model")
        found = are_probabilities(outputs)
        kind = self.metadata.setdefault("outputs", "logarithm of probabilities" if found else "logits")
        if found != (kind != "logits"):
            raise UserError(f"{self.__name__} gives probabilities for some images and not for others: give logits")
        return outputs.clamp_min(_TINY).log() if found else outputs


def given_model(model: Any, test: Any) -> Any:
    """The model itself; one of MAITE's as a callable on batches, which takes images as the data set ``test`` has them.

    Those are uint8 where a data set of MAITE gives uint8, and floats in [0, 1] otherwise.
    """
    if isinstance(model, GivenMaiteModel) or maite_metadata(model) is None or not callable(model):
        return model
    raw = maite_metadata(test) is not None and len(test) and np.asarray(test[0][0]).dtype == np.uint8
    return GivenMaiteModel(model, raw=bool(raw))


# --- To MAITE -----------------------------------------------------------------------------------------------------


class MaiteModel:
    """A model of ours, or any module, as a MAITE model: images as they are in files to probabilities.

    Args:
        model: the folder of a run, ``hub:owner/name``, or a module, of images (B,C,H,W) to logits (B,N).
        outputs: what each image gets, (N,) float32: "probabilities", or "logits", which also hold an energy.
        id: in ``metadata``; by default the folder, or the module's class.
        preprocess: from raw images (B,C,H,W) uint8 to inputs; by default ``model.preprocess``.
        classes: names of the logits; by default ``model.classes``.

    Raises ``UserError`` for no model, or one that does not say how its inputs are made.
    """

    metadata: ModelMetadata

    def __init__(
        self,
        model: nn.Module | str | Path,
        *,
        outputs: OutputKind = "probabilities",
        id: str = "",  # noqa: A002  # MAITE's word
        preprocess: Callable[[Tensor], Tensor] | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        module = model if isinstance(model, nn.Module) else folder.load(model)
        prepare = preprocess or getattr(module, "preprocess", None)
        if prepare is None:
            raise UserError(f"{type(module).__name__} has no preprocess: give preprocess=..., from uint8 to inputs")
        self.prepare, self.outputs = prepare, outputs
        self.classifier = Classifier(module, prepare).ready()
        names = tuple(classes) or getattr(module, "classes", ())
        title = id or (type(module).__name__ if isinstance(model, nn.Module) else str(model))
        self.metadata = cast("ModelMetadata", {"id": title, "outputs": outputs, **_index_to_label(names)})

    def __call__(self, input_batch: Sequence[ArrayLike], /) -> Sequence[NDArray[np.float32]]:
        """Images (C,H,W), uint8 or floats in [0, 1], to one (N,) float32 each.

        Floats are rounded to levels of 255. Raises ``UserError`` for other values.
        """
        raw = [_levels(image) for image in input_batch]
        alike = len({image.shape for image in raw}) == 1
        inputs = [self.prepare(torch.stack(raw))] if alike else [self.prepare(image[None]) for image in raw]
        logits, _ = self.classifier(torch.cat(inputs).to(self.classifier.device))
        return list((logits.softmax(1) if self.outputs == "probabilities" else logits).numpy())


class MaiteDataset:
    """A set of images as a MAITE data set (``FieldwiseDataset`` too): uint8 (C,H,W), one-hot (Cl,) float32, "id".

    Args:
        source: a name of the catalog, a folder, a ``.csv``, ``.npz`` or ``hf:...``; or images and labels, a data set or
            a DataLoader, see :func:`anchored.data.given.given_set`.
        split: "test" or "train", of a name.
        size: height and width of the images, pixels; 0 for those of the set.

    Raises ``UserError`` as these do.
    """

    metadata: DatasetMetadata

    def __init__(self, source: Any, split: Literal["test", "train"] = "test", *, size: int = 0) -> None:
        if isinstance(source, (str, Path)):
            settings = Data(train=str(source), size=size)
            self.images: Any = datasets.open_set(str(source), split, settings, datasets.input_format(settings))
            title = f"{source} {split}"
        else:
            self.images = given_set(source, "images", (), InputFormat(3, size) if size else None, labelled=True)
            title = type(source).__name__
        self.metadata = cast("DatasetMetadata", {"id": title, **_index_to_label(self.images.classes)})

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, ind: int, /) -> tuple[NDArray[Any], NDArray[np.float32], DatumMetadata]:
        return self.get_input(ind), self.get_target(ind), self.get_metadata(ind)

    def get_input(self, ind: int, /) -> NDArray[Any]:
        """One image (C,H,W)."""
        image: NDArray[Any] = next(iter(self.images.parts([torch.tensor([self._place(ind)])])))[0].numpy()
        return image

    def get_target(self, ind: int, /) -> NDArray[np.float32]:
        """One label (Cl,), one-hot."""
        target = np.zeros(len(self.images.classes), np.float32)
        target[int(self.images.labels[self._place(ind)])] = 1
        return target

    def get_metadata(self, ind: int, /) -> DatumMetadata:
        """The image's place in the set."""
        return {"id": self._place(ind)}

    def _place(self, ind: int) -> int:
        if not -len(self) <= ind < len(self):
            raise IndexError(f"{ind} of {len(self)} images")
        return int(ind) % len(self)


class MaiteSmoothECE:
    """Smooth ECE with its interval as a MAITE metric; arguments as :class:`anchored.metrics.torchmetrics.SmoothECE`.

    Predictions are probabilities or logits (Cl,); targets one-hot, or probabilities with one largest.
    """

    metadata: MetricMetadata

    def __init__(self, **options: Any) -> None:
        from anchored.metrics.torchmetrics import SmoothECE  # on first use: it takes seconds

        self.metric = SmoothECE(**{"interval": True, **options})
        self.metadata = {"id": "smooth_ece"}

    def reset(self) -> None:
        """Forget all images."""
        self.metric.reset()

    def update(
        self,
        pred_batch: Sequence[ArrayLike],
        target_batch: Sequence[ArrayLike],
        metadata_batch: Sequence[DatumMetadata],
        /,
    ) -> None:
        """Add a batch; ``UserError`` for NaN, or what is no class of the predictions."""
        outputs = _stacked(pred_batch, "predictions")
        logits = outputs.clamp_min(_TINY).log() if are_probabilities(outputs) else outputs
        self.metric.update(logits, torch.tensor([label_of(target, "targets") for target in target_batch]))

    def compute(self) -> Mapping[str, float]:
        """``smooth_ece`` in [0, 1], and ``smooth_ece_low`` and ``smooth_ece_high`` unless ``interval=False``."""
        found = self.metric.compute()
        named = found if isinstance(found, dict) else {"smooth_ece": found}
        return {name: float(value) for name, value in named.items()}


class MaiteCorruption:
    """A corruption of C or C̄ at a severity as a MAITE augmentation; targets stay.

    An image's random numbers follow from ``seed`` and its "id", so that it is the same in any batch. Images are uint8
    or floats in [0, 1], which are rounded to levels of 255, and stay of their type. The metadata of each get
    "corruption" and "severity". Raises ``UserError`` as :func:`anchored.corruptions.registry.corrupt`.
    """

    metadata: AugmentationMetadata

    def __init__(self, corruption: str, severity: int = 3, *, seed: int = 0) -> None:
        if corruption not in CORRUPTIONS or severity not in (1, 2, 3, 4, 5):
            corrupt(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), corruption, severity, seed=seed)  # raises
        self.corruption, self.severity, self.seed = corruption, severity, seed
        self.metadata = {"id": f"{corruption}-{severity}"}

    def __call__(self, batch: Batch, /) -> tuple[Sequence[NDArray[Any]], Sequence[ArrayLike], Sequence[DatumMetadata]]:
        """A batch of images (C,H,W) of any sizes, targets and metadata to the same, corrupted."""
        images, targets, metadata = batch
        given = [np.asarray(image) for image in images]
        changed = [self._corrupted(image, each["id"]) for image, each in zip(given, metadata, strict=True)]
        about = {"corruption": self.corruption, "severity": self.severity}
        return changed, targets, [cast("DatumMetadata", {**each, **about}) for each in metadata]

    def _corrupted(self, image: NDArray[Any], name: int | str) -> NDArray[Any]:
        place = torch.tensor([name if isinstance(name, int) else _number(name)])
        (found,) = corrupt(_levels(image)[None], self.corruption, self.severity, seed=self.seed, indices=place).numpy()
        same: NDArray[Any] = (found / 255 if image.dtype.kind == "f" else found).astype(image.dtype)
        return same


# --- Arrays -------------------------------------------------------------------------------------------------------


def _as_they_are(images: Tensor) -> Tensor:
    return images


def _stacked(values: Sequence[Any], what: str) -> Tensor:
    """Arrays (N,) of any framework as one tensor (B,N) float32; ``UserError`` where they are none."""
    try:
        found = torch.stack([as_tensor(value) for value in values]).float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{what} are no arrays of one length: {first_line(error)}") from error
    if found.dim() != 2 or not torch.isfinite(found).all():
        raise UserError(f"{what} are {tuple(found.shape)}: a row of finite numbers an image is needed")
    return found


def _levels(image: Any) -> Tensor:
    """An image (C,H,W), whole numbers to 255 or floats in [0, 1], as uint8."""
    found = as_tensor(image)
    top = 1 if found.is_floating_point() else 255
    if found.dim() != 3 or found.numel() == 0 or not 0 <= float(found.min()) <= float(found.max()) <= top:
        raise UserError(
            f"an image is {found.dtype} {tuple(found.shape)}: give (C,H,W), uint8 or floats in [0, 1], not normalised"
        )
    return (found * 255).round().to(torch.uint8) if top == 1 else found.to(torch.uint8)


def _index_to_label(names: Sequence[str]) -> dict[str, dict[int, str]]:
    return {"index2label": dict(enumerate(map(str, names)))} if len(names) else {}


def _number(name: str) -> int:
    """A number of an image whose "id" is text, the same on every machine."""
    return int.from_bytes(hashlib.sha256(str(name).encode()).digest()[:7], "little")

"""Outputs that another program computed: logits, labels and features of each set, from files or arrays.

Sets have the names of the files in a run's folder ``outputs``: ``test``, ``held-out`` (what decisions are fitted on),
``train`` (what detectors are fitted on), ``corruption-NAME-SEVERITY``, ``ood-NAME``, ``shifted-NAME``,
``features-NAME-train`` and ``features-NAME-test`` (for a linear probe on the task NAME). A file is

- ``.npz`` or ``.safetensors``: arrays ``logits`` (M,N), ``labels`` (M,) and perhaps ``features`` (M,D); in npz perhaps
  ``classes`` (N,), their names;
- ``.csv``: a column ``label`` and one a class, headed by its name, with its logit; columns ``feature_...``.

An ``ood-`` set needs no labels, a ``features-`` set no logits.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anchored.config.settings import Evaluation
from anchored.corruptions.registry import CORRUPTIONS
from anchored.errors import UserError, first_line
from anchored.evaluation.classifier import as_tensor, refuse_non_logits
from anchored.evaluation.inference import Outputs
from anchored.store import files
from anchored.store.layout import HELD_OUT

ENDINGS = (".npz", ".safetensors", ".csv")
_NAMES = re.compile(
    r"test|held-out|train|corruption-(?P<corruption>\w+)-(?P<severity>[1-5])|ood-(?P<ood>.+)"
    r"|shifted-(?P<shifted>.+)|features-(?P<task>.+)-(train|test)"
)


@dataclass(frozen=True)
class GivenOutputs:
    """Outputs by set, checked against one another, and the names of the classes where they are known."""

    sets: Mapping[str, Outputs]
    classes: tuple[str, ...] = ()

    def matches(self, group: str) -> list[str]:
        """Distinct names of a kind (``corruption``, ``severity``, ``ood``, ``shifted``, ``task``), in their order."""
        found = (_NAMES.fullmatch(name) for name in self.sets)
        return list(dict.fromkeys(match[group] for match in found if match and match[group]))

    def settings(self, settings: Evaluation) -> Evaluation:
        """What can be measured from them: ``settings`` with these sets. ``UserError`` where some are missing."""
        kinds = self.matches("corruption")
        severities = tuple(sorted(int(severity) for severity in self.matches("severity")))
        needed = [f"corruption-{kind}-{severity}" for kind in kinds for severity in severities]
        needed += [f"features-{task}-{split}" for task in self.matches("task") for split in ("train", "test")]
        if missing := next((name for name in needed if name not in self.sets), None):
            raise UserError(
                f"outputs of '{missing}' are missing: each corruption needs each severity, each task both splits"
            )
        if unknown := next((kind for kind in kinds if kind not in CORRUPTIONS), None):
            raise UserError(f"outputs of 'corruption-{unknown}': known corruptions are {', '.join(CORRUPTIONS)}")
        return replace(
            settings,
            ood=tuple(self.matches("ood")),
            corruptions=tuple(name for name in CORRUPTIONS if name in kinds),  # in the order of a study's
            severities=severities or settings.severities,
            adaptation=tuple(self.matches("task")),
            shifted=tuple(self.matches("shifted")),
            held_out=HELD_OUT if HELD_OUT in self.sets else "",
        )


def given_outputs(source: Path | str | Mapping[str, Any]) -> GivenOutputs:
    """Read a folder of outputs, or take arrays by set: (logits, labels), logits alone for ``ood-`` sets, or mappings.

    Raises ``UserError``, one line, for a name that is none of the above, probabilities, NaN, labels out of range,
    another number of classes, or classes in another order than those of ``test``.
    """
    where = "" if isinstance(source, Mapping) else f"{source}: "
    found = dict(source) if isinstance(source, Mapping) else _read_folder(Path(source))
    if "test" not in found:
        raise UserError(f"{where}there are no outputs called 'test': logits and labels of the test images are needed")
    arrays = {name: _named(name, value) for name, value in found.items()}
    classes = tuple(map(str, arrays["test"].get("classes", ())))
    sets = {name: _outputs(f"{where}{name}", parts, name) for name, parts in arrays.items()}
    count = sets["test"].logits.shape[1]
    for name, parts in arrays.items():
        if name.startswith("features-"):
            continue
        if sets[name].logits.shape[1] != count:
            raise UserError(f"{where}{name} has {sets[name].logits.shape[1]} logits an image, test has {count}")
        own = tuple(map(str, parts.get("classes", ())))
        if own and classes and own != classes:
            raise UserError(
                f"{where}{name} has its classes in another order than test ({own[0]} ... and {classes[0]} ...)"
            )
        if name.startswith("corruption-") and not torch.equal(sets[name].labels, sets["test"].labels):
            raise UserError(f"{where}{name} has other labels than test: the same images in the same order are needed")
    if classes and len(classes) != count:
        raise UserError(f"{where}test names {len(classes)} classes and has {count} logits an image")
    return GivenOutputs(sets, classes)


def _outputs(where: str, parts: Mapping[str, Any], name: str) -> Outputs:
    """One set's arrays, checked."""
    try:
        tensors = {key: as_tensor(parts[key]) for key in ("logits", "labels", "features") if key in parts}
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} holds no numbers: {first_line(error)}") from error
    if name.startswith("features-"):
        if "features" not in tensors or "labels" not in tensors:
            raise UserError(f"{where} needs features and labels")
        tensors.setdefault("logits", torch.zeros(len(tensors["labels"]), 1))
    logits = tensors.get("logits")
    if logits is None or logits.dim() != 2 or len(logits) == 0:
        shape = "no logits" if logits is None else f"logits {tuple(logits.shape)}"
        raise UserError(f"{where} has {shape}: (images, classes) are needed")
    logits = logits.float()
    if not name.startswith("features-"):
        refuse_non_logits(logits, f"logits of {where}")
    return Outputs(logits, _labels(where, name, tensors, logits), _features(where, tensors, len(logits)))


def _labels(where: str, name: str, tensors: Mapping[str, Tensor], logits: Tensor) -> Tensor:
    if name.startswith("ood-"):
        return torch.zeros(len(logits), dtype=torch.int64)
    labels = tensors.get("labels")
    if labels is None:
        raise UserError(f"{where} has no labels")
    if labels.shape != (len(logits),) or bool((labels != labels.round()).any()):
        raise UserError(f"{where} has labels {tuple(labels.shape)} for {len(logits)} images: one whole number each")
    low, high = int(labels.min()), int(labels.max())
    most = logits.shape[1] if not name.startswith("features-") else high + 1
    if low < 0 or high >= most:
        raise UserError(f"{where}: labels run from {low} to {high}, {most} logits allow 0 to {most - 1}")
    return labels.long()


def _features(where: str, tensors: Mapping[str, Tensor], count: int) -> Tensor | None:
    features = tensors.get("features")
    if features is None:
        return None
    if features.dim() != 2 or len(features) != count or not torch.isfinite(features.float()).all():
        raise UserError(f"{where} has features {tuple(features.shape)}: ({count}, D) finite numbers are needed")
    return features.float()


def check_set_name(name: str) -> None:
    """Raise ``UserError`` for what is no name of a set."""
    if not _NAMES.fullmatch(name):
        raise UserError(
            f"outputs are called '{name}': test, held-out, train, corruption-NAME-SEVERITY, ood-NAME, shifted-NAME, "
            "features-NAME-train and features-NAME-test are known"
        )


def _named(name: str, value: Any) -> Mapping[str, Any]:
    check_set_name(name)
    if isinstance(value, Mapping):
        return value
    if isinstance(value, (tuple, list)) and len(value) in (2, 3):
        return dict(zip(("logits", "labels", "features"), value, strict=False))
    return {"logits": value}


def _read_folder(folder: Path) -> dict[str, Mapping[str, Any]]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of outputs: give one with test.npz (or .safetensors, .csv)")
    found: dict[str, Mapping[str, Any]] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in ENDINGS or file.name.startswith((".", "probe-", "detector-")):
            continue
        if file.stem in found:
            raise UserError(f"{folder} has '{file.stem}' in two files: which one is meant?")
        found[file.stem] = _read_file(file)
    return found


def _read_file(file: Path) -> Mapping[str, Any]:
    if file.suffix.lower() == ".safetensors":
        return files.load_tensors(file)[0]
    if file.suffix.lower() == ".csv":
        return _read_csv(file)
    try:
        with np.load(io.BytesIO(files.read_bytes(file))) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # whatever a damaged archive raises
        raise UserError(f"cannot read {file}: {first_line(error)}") from error


def _read_csv(file: Path) -> Mapping[str, Any]:
    text = files.read_bytes(file).decode("utf-8-sig", "replace")
    header, *lines = [line for line in csv.reader(io.StringIO(text)) if line] or [[]]
    names = [name.strip() for name in header]
    if len(set(names)) < len(names) or not names:
        raise UserError(f"{file}: the first line must name each column once")
    try:
        numbers = np.array([[float(value) for value in line] for line in lines], dtype=np.float64)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from error
    if numbers.ndim != 2 or numbers.shape[1] != len(names):
        raise UserError(f"{file}: every line needs {len(names)} numbers")
    special = [i for i, name in enumerate(names) if name == "label" or name.startswith("feature_")]
    classes = [i for i in range(len(names)) if i not in special]
    features = [i for i in special if names[i] != "label"]
    found: dict[str, Any] = {"logits": numbers[:, classes], "classes": [names[i] for i in classes]} if classes else {}
    if "label" in names:
        found["labels"] = numbers[:, names.index("label")]
    return {**found, "features": numbers[:, features]} if features else found

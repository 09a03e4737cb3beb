"""Weights into a module: the one place that decides whether tensors are a network's, by name, shape and type.

What fits is found, not guessed: of all prefixes that names in the file begin with, the one under which most tensors
fit. Where no name is known (another author's class of the same network), tensors that come in the same order, with the
same shapes and the same last names, layer by layer, are taken in that order, and the table says so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from anchored.errors import UserError
from anchored.models.checkpoint import is_averaged
from anchored.models.features import head_name

_WRAPPERS = re.compile(r"(?<![^.])(?:module|_orig_mod)\.")
"""What DataParallel, DistributedDataParallel and torch.compile put into the names of weights."""

_COUNTS = "num_batches_tracked"
_BOOKKEEPING = re.compile(r"(^|\.)(n_averaged|num_updates|decay|total_ops|total_params|_extra_state)$")
"""Counters that averages and profilers keep among the weights: no part of the network."""

Fault = Literal["missing", "unknown", "other shape", "other type", "not finite"]


@dataclass(frozen=True)
class Misfit:
    """A tensor for which file and module differ: ``found`` and ``wanted`` are shapes or types, "" where it is not."""

    name: str
    fault: Fault
    found: str = ""
    wanted: str = ""

    def __str__(self) -> str:
        told = {"missing": "is missing", "unknown": "is not one of its weights", "not finite": "holds NaN or infinity"}
        return f"'{self.name}' {told.get(self.fault) or f'is {self.found}, not {self.wanted}'}"


@dataclass(frozen=True)
class WeightsFit:
    """How tensors fit a module; ``str()`` is a table of what was found, left out and missing."""

    source: str
    """The file, and the place in it."""
    network: str
    """The module's class."""
    prefix: str
    """What stood before the names, such as ``module.net.``."""
    by_order: bool
    """Whether the names are another author's, and the tensors were taken in their order."""
    weights: dict[str, Tensor] = field(repr=False)
    """The tensors by the module's names: all of them where nothing is amiss."""
    left_out: dict[str, str] = field(repr=False)
    """Names and shapes of tensors of the file that are no part of the network: outside the prefix, or counters."""
    misfits: tuple[Misfit, ...]
    """What keeps the tensors from being loaded."""

    def __str__(self) -> str:
        order = ", by their order: the names are another author's" if self.by_order else ""
        under = f" under '{self.prefix}'" if self.prefix else ""
        rows = [
            ("found", len(self.weights), f"{sum(t.numel() for t in self.weights.values()):,} numbers{under}{order}"),
            ("left out", len(self.left_out), _listed([f"{name} {shape}" for name, shape in self.left_out.items()])),
        ]
        for fault, count in Counter(misfit.fault for misfit in self.misfits).items():
            of_it = [misfit for misfit in self.misfits if misfit.fault == fault]
            rows.append((fault, count, _listed([f"{m.name} {m.found or m.wanted}".strip() for m in of_it])))
        if not any(misfit.fault == "missing" for misfit in self.misfits):
            rows.append(("missing", 0, ""))
        head = f"Weights of {self.network} in {self.source}"
        return "\n".join([head, *(f"  {title:<12}{count:>6}  {text}".rstrip() for title, count, text in rows)])


def _listed(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def match_weights(
    module: nn.Module, tensors: Mapping[str, Tensor], source: object = "", *, which: str = ""
) -> WeightsFit:
    """How tensors fit a module, by name and shape, under the prefix under which most of them do; nothing is loaded.

    Half and double precision are taken as the module's own; counts of batches that older files lack are the module's.
    ``which="ema"`` prefers averaged weights where the names say so (``ema_model.module.conv1.weight``).
    """
    expected = module.state_dict()
    prefix = _best_prefix(expected, tensors, which)
    named = {plain_name(name[len(prefix) :], expected): t for name, t in tensors.items() if name.startswith(prefix)}
    by_order = False
    if 2 * sum(_fits(expected.get(name), tensor) for name, tensor in named.items()) < len(expected):
        inner, common = _common_prefix(tensors)
        if ordered := _in_order(expected, inner):
            named, prefix, by_order = ordered, common, True
    kept = {name: tensor for name, tensor in named.items() if name in expected or not _BOOKKEEPING.search(name)}
    outside = {name for name in tensors if not name.startswith(prefix)}
    left_out = {name: _shape(tensors[name]) for name in tensors if name in outside or _BOOKKEEPING.search(name)}
    weights = _adapted(expected, kept)
    misfits = tuple(_misfits(expected, weights))
    fitting = {name: weights[name] for name in expected if name in weights}
    return WeightsFit(str(source), type(module).__name__, prefix, by_order, fitting, left_out, misfits)


def fit_weights(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: object,
    *,
    which: str = "",
    strict: bool = False,
    replace_head: bool = False,
) -> WeightsFit:
    """Load tensors into a module, all of whose weights they must be; see :func:`match_weights`.

    Args:
        module: what they are loaded into.
        tensors: by name.
        source: where they come from, for messages.
        which: ``"ema"`` to prefer averaged weights where names say so.
        strict: for our own files: nothing but wrappers' prefixes (``module.``, ``_orig_mod.``) is seen through.
        replace_head: set a head for another number of classes to zero, so that pretrained features are not at first
            trained towards random logits, whose scale differs between libraries.

    Raises:
        UserError: naming the first tensor that is missing, unknown, of another shape or type, or not finite.
    """
    expected = module.state_dict()
    fit = _strict_fit(module, tensors, source) if strict else match_weights(module, tensors, source, which=which)
    misfits = fit.misfits
    if replace_head:
        head = head_name(module)
        other = [misfit.name for misfit in misfits if misfit.fault == "other shape"]
        replaced = [
            name
            for name in (f"{head}.weight", f"{head}.bias")
            if name in other and fit.weights[name].shape[1:] == expected[name].shape[1:]
        ]
        fit.weights.update({name: torch.zeros_like(expected[name]) for name in replaced})
        misfits = tuple(misfit for misfit in misfits if misfit.name not in replaced)
    if misfits:
        fits = len(expected) - sum(misfit.fault != "unknown" for misfit in misfits)
        told = f"; {fits} of its {len(expected)} tensors fit" if len(misfits) > 1 else ""
        raise UserError(f"{source} does not fit {type(module).__name__}: {misfits[0]}{told}")
    module.load_state_dict(fit.weights)
    return fit


def _strict_fit(module: nn.Module, tensors: Mapping[str, Tensor], source: object) -> WeightsFit:
    expected = module.state_dict()
    weights = _adapted(expected, _without_wrappers(expected, tensors), only_halves=True)
    misfits = tuple(_misfits(expected, weights))
    return WeightsFit(str(source), type(module).__name__, "", False, weights, {}, misfits)


def _without_wrappers(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain = {name: plain_name(name, expected) for name in tensors}
    return {plain[name] if plain[name] not in tensors else name: tensor for name, tensor in tensors.items()}


def plain_name(name: str, expected: Mapping[str, Tensor]) -> str:
    """A tensor's name without what wrappers added, if that gives an expected one, else as it is."""
    plain = name
    while plain not in expected and _WRAPPERS.search(plain):
        plain = _WRAPPERS.sub("", plain, count=1)
    return plain if plain in expected else name


def _best_prefix(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], which: str) -> str:
    """Under which prefix most tensors fit; of equals not the averages (unless wanted), then the longest."""
    fitting: Counter[str] = Counter()
    known: Counter[str] = Counter()
    for name, tensor in tensors.items():
        starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        for start in starts:
            wanted = expected.get(plain_name(name[start:], expected))
            fitting[name[:start]] += _fits(wanted, tensor)
            known[name[:start]] += wanted is not None
    preferred = which == "ema"
    ranks = {
        prefix: (fitting[prefix], known[prefix], is_averaged(prefix) == preferred, len(prefix)) for prefix in fitting
    }
    return max(ranks, key=lambda prefix: ranks[prefix], default="")


def _fits(wanted: Tensor | None, tensor: Tensor) -> bool:
    return wanted is not None and wanted.shape == tensor.shape


def _common_prefix(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Tensors without the parts that all of their names begin with, and those parts."""
    prefix, named = "", {name: tensor for name, tensor in tensors.items() if not _BOOKKEEPING.search(name)}
    while len({name.partition(".")[0] for name in named}) == 1 and all("." in name for name in named):
        first = next(iter(named)).partition(".")[0] + "."
        prefix, named = prefix + first, {name[len(first) :]: tensor for name, tensor in named.items()}
    return named, prefix


def _in_order(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the expected names in their order; {} unless shapes, last names and layers agree throughout."""

    def described(state: Mapping[str, Tensor]) -> list[tuple[int, str, torch.Size]]:
        layers: dict[str, int] = {}
        parts = [name.rpartition(".") for name in state if not name.endswith(_COUNTS)]
        numbered = [layers.setdefault(layer, len(layers)) for layer, _, _ in parts]
        shapes = [tensor.shape for name, tensor in state.items() if not name.endswith(_COUNTS)]
        return [(layer, last, shape) for layer, (_, _, last), shape in zip(numbered, parts, shapes, strict=True)]

    if described(expected) != described(tensors):
        return {}
    names = (name for name in expected if not name.endswith(_COUNTS))
    return dict(zip(names, (tensor for name, tensor in tensors.items() if not name.endswith(_COUNTS)), strict=True))


def _adapted(
    expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, only_halves: bool = False
) -> dict[str, Tensor]:
    """The weights in the precision that is expected, and counts of batches that they lack."""
    adapted = {name: tensor for name, tensor in expected.items() if name.endswith(_COUNTS)}
    for name, weight in weights.items():
        convertible = weight.dtype in (torch.float16, torch.bfloat16) if only_halves else weight.is_floating_point()
        wanted = expected.get(name)
        cast = convertible and wanted is not None and wanted.is_floating_point()
        adapted[name] = weight.to(wanted.dtype) if cast and wanted is not None else weight
    return adapted


def _misfits(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Iterator[Misfit]:
    """Differences of weights from the expected ones by name, shape and type, and weights that are not finite."""
    yield from (Misfit(name, "missing", "", _shape(expected[name])) for name in expected if name not in weights)
    yield from (Misfit(name, "unknown", _shape(weights[name])) for name in weights if name not in expected)
    for name, tensor in expected.items():
        weight = weights.get(name)
        if weight is None:
            continue
        if weight.shape != tensor.shape:
            yield Misfit(name, "other shape", _shape(weight), _shape(tensor))
        elif weight.dtype != tensor.dtype:
            yield Misfit(name, "other type", str(weight.dtype)[6:], str(tensor.dtype)[6:])
        elif weight.is_floating_point() and not torch.isfinite(weight).all():
            yield Misfit(name, "not finite", _shape(weight))


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a single number"

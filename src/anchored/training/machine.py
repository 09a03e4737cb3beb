"""Whether this machine can train as a recipe says."""

import contextlib
import importlib.util
import math
from collections.abc import Iterable
from pathlib import Path

import torch

from anchored.config.recipe import Cell
from anchored.config.settings import Training
from anchored.errors import UserError


def lacking(train: Training) -> str:
    """What this machine lacks for an accelerator and a precision, and what to set instead, in a line; "" if nothing."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    accelerator, precision = train.accelerator, train.precision
    if not {"auto": True, "cpu": True, "gpu": cuda or mps, "cuda": cuda, "mps": mps}[accelerator]:
        return f"train.accelerator is {accelerator}, and torch finds none on this machine: set it to auto or cpu"
    if precision.startswith("16") and (accelerator == "cpu" or not (cuda or mps)):
        return f"train.precision is {precision}, which needs a GPU: set bf16-mixed or 32-true"
    if precision == "64-true" and accelerator != "cpu" and mps and not cuda:
        return "train.precision is 64-true, which mps does not have: set 32-true, or train.accelerator cpu"
    if train.compile != "none" and not _compiles(cuda and accelerator != "cpu"):
        needed = "Triton" if cuda and accelerator != "cpu" else "a C++ compiler"
        return f"train.compile is {train.compile}, for which torch needs {needed}: install it, or set none"
    return ""


def _compiles(on_gpu: bool) -> bool:
    """Whether torch.compile finds what it makes code with."""
    if on_gpu:
        return importlib.util.find_spec("triton") is not None
    from torch._inductor import cpp_builder  # as torch itself asks; takes a second

    try:
        cpp_builder.get_cpp_compiler()
    except Exception:  # its errors differ between versions
        return False
    return True


def refuse_unfit_machine(cells: Iterable[Cell]) -> None:
    """Refuse, before anything is trained, what this machine cannot train."""
    for cell in cells:
        if lack := lacking(cell.train):
            raise UserError(lack)


def available_memory() -> float:
    """Bytes that programs may still take without swapping; infinite where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    return math.inf

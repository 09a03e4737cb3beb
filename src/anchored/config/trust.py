"""The one rule on code of others: what a file names is imported only where whoever runs the command names it too."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePath

from anchored.errors import UserError

CODE = "python:"
"""Start of the names of networks that are code to be imported."""
PROGRAM = ".pt2"
"""Ending of programs of torch.export, whose expressions are code."""


def refuse_code(network: str, trusted: Collection[str] = (), *, where: str = "", option: str = "") -> None:
    """``UserError`` for a network that is code and none of the names that are trusted.

    Code is ``python:module:factory``, and a ``.pt2`` file, however its path is written. ``where``: the file that names
    it. ``option``: how the command line would name it; ``--network NAME`` by default. Every way from a name to an
    import leads through here: a recipe's (``cli.overrides``), a run's (``study``), and that of a model folder or a
    caller (``models.registry``).
    """
    if (network.startswith(CODE) or PurePath(network).suffix.lower() == PROGRAM) and network not in trusted:
        what = f"{where} names the network '{network}', which" if where else f"network '{network}'"
        raise UserError(f"{what} is code to be imported: if you trust it, add {option or f'--network {network}'}")

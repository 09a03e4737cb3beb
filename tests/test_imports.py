"""The rooms of the house: who may import whom, and what must stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import anchored

SOURCE = Path(anchored.__file__).parent

BASE = {"errors"}
MATHS = {"anchoring", "stem", "folding", "trials", "residuals", "mixing", "metrics", "intervals", "scores", "probe"}
MATHS |= {"choosing", "ranks", "smooth_ece"}
STORE = {"disk", "runs", "hub"}
SETTINGS = {"recipe", "settings", "typed"}
MATERIAL = {"networks", "libraries", "resnets"}
MATERIAL |= {"catalog", "readers", "own", "stream", "batches", "data", "corruptions", "outliers"}
WORK = {
    "together",
    "model",
    "start",
    "optimiser",
    "checkpoints",
    "step",
    "train",
    "predict",
    "corrupted",
    "card",
    "export",
}
ANSWERS = {"study", "workers", "cluster", "cells", "display", "bench", "evaluate", "validation", "report"}
ANSWERS |= {"inventory", "forecast", "doctor", "predictions"}

MAY_IMPORT = {
    **dict.fromkeys(BASE | STORE | {"settings"}, BASE),
    "runs": BASE | {"disk"},
    "typed": BASE | {"settings"},
    "recipe": BASE | {"settings", "typed"},
    **dict.fromkeys(MATHS, BASE | MATHS),
    **dict.fromkeys(MATERIAL, BASE | MATERIAL),
    "catalog": BASE,
    "data": BASE | MATERIAL | SETTINGS,
    "readers": BASE | MATERIAL | STORE,
    "libraries": BASE | {"stem", "trials"},
    "hub": BASE | {"runs"},
    "model": BASE | MATHS | STORE | SETTINGS | MATERIAL,
    "predict": BASE | MATHS | STORE | SETTINGS | MATERIAL | {"model"},
    "corrupted": BASE | STORE | SETTINGS | MATERIAL | {"predict"},
    "start": BASE | MATHS | STORE | SETTINGS | MATERIAL | {"model"},
    "optimiser": BASE | SETTINGS,
    "checkpoints": BASE | STORE | SETTINGS | {"ranks"},
    "together": BASE,
    "step": BASE | MATHS | SETTINGS | {"model", "batches", "optimiser", "checkpoints"},
    "train": BASE | MATHS | STORE | SETTINGS | MATERIAL | WORK - {"card", "corrupted", "export"},
    "card": BASE | STORE | SETTINGS | MATERIAL | {"model", "metrics"},
    "export": BASE | MATHS | STORE | SETTINGS | MATERIAL | {"model", "card"},
    "bench": BASE | MATHS | STORE | SETTINGS | MATERIAL | WORK,
    "evaluate": BASE | MATHS | STORE | SETTINGS | MATERIAL | WORK | {"bench"},
    "validation": BASE | MATERIAL | SETTINGS | {"bench"},
    "report": BASE | MATHS | STORE | SETTINGS | {"report", "catalog"},
    "predictions": BASE | MATHS | STORE | SETTINGS | MATERIAL | WORK | {"report"},
    "cells": BASE | STORE | SETTINGS | WORK | {"bench", "evaluate", "validation"},
    "display": BASE | {"cells"},
    "cluster": BASE,
    "workers": BASE | STORE | SETTINGS | {"cells", "display", "cluster"},
    "inventory": BASE | MATERIAL,
    "forecast": BASE | MATHS | SETTINGS | MATERIAL | WORK | {"validation"},
    "doctor": BASE | MATHS | STORE | SETTINGS | MATERIAL | WORK | ANSWERS,
    "study": BASE | STORE | SETTINGS | WORK | ANSWERS,
    "arguments": SETTINGS,
    "commands": {"arguments", "catalog", "data", "readers"} | BASE | STORE | SETTINGS | WORK | ANSWERS,
    "cli": BASE | STORE | SETTINGS | {"arguments", "commands", "display"},
    "__main__": {"cli"},
    "__init__": BASE | MATHS | WORK,
}


def room(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "anchored":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("anchored."):
            names.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("anchored.")}
    return names


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_rooms_import_downwards(path: Path) -> None:
    here = room(path)
    allowed = MAY_IMPORT[here] | ({here} if path.parent != SOURCE else set())
    assert imported(path) <= allowed, f"{path.name} may not import {imported(path) - allowed}"


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("anchored.cli", ("torch", "numpy", "matplotlib", "rich")),
        ("anchored.catalog", ("torch", "numpy", "yaml")),
        ("anchored.recipe", ("torch", "numpy")),
        ("anchored.settings", ("torch", "numpy", "yaml")),
    ],
)
def test_light_modules_stay_light(module: str, banned: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {banned!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


def test_nothing_unpickles() -> None:
    banned = ("pickle", "torch.load(", "allow_pickle=True", "marshal", "shelve")
    offenders = [
        f"{path.name}: {word}" for path in SOURCE.rglob("*.py") for word in banned if f"{word}" in code_of(path)
    ]
    assert offenders == []


def code_of(path: Path) -> str:
    """The file without docstrings and comments, as the parser sees it."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = ""
    return ast.unparse(tree)

"""Put the name of code that leaves a mark into every value of every file of settings: no verb may import or open it.

    python scripts/fuzz_imports.py [--only recipes|files|cell.json|...]

A module's name comes as text, as text that YAML would read as a list, as a list, as a mapping, or as the name of a
setting, and a ``.pt2`` program's as text; at every place of a recipe (also by ``base:``) and of the files of a run and
of a study. It may be refused; where it is accepted, the recipe is trained and measured, the run predicts, is exported,
converted and reported. Reports draw one figure: drawing imports nothing by name. ``tests/test_security.py`` tries some
of it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from fuzz import places
from PIL import Image

from anchored.cli import overrides
from anchored.cli.main import main
from anchored.config.recipe import Recipe
from anchored.errors import UserError
from anchored.report import page
from anchored.store.layout import StudyFolder
from anchored.study.progress import quiet

MODULE = "import pathlib\npathlib.Path(__file__).with_name('mark').touch()\ndef make(*_): raise RuntimeError('ran')\n"
NAME = "python:hostile:make"
PROGRAM = "hostile.pt2"
VALUES: tuple[Any, ...] = (
    NAME, f"[{NAME}]", [NAME], "hostile.make", {"class_path": "hostile.make"}, {NAME: {}}, PROGRAM,
)  # fmt: skip
BASE: dict[str, Any] = {
    "data": {"train": "fashion-mini-known", "fraction": 0.02, "validation": 0.3},
    "grid": {"networks": ["small"], "protocols": ["ram"]},
    "train": {"epochs": 1, "batch_size": 32, "accelerator": "cpu", "schedule": "one_cycle"},
    "evaluate": {"ood": ["blobs"], "bootstrap": 100},
}
"""A study of a second."""


def with_mark(folder: Path) -> Path:
    """Write the module and the program into a folder, which is the current one or will be, and from which the module
    can be imported; return their mark, which is not there."""
    (folder / "hostile.py").write_text(MODULE)
    (folder / PROGRAM).touch()
    sys.path.insert(0, str(folder))
    sys.modules.pop("hostile", None)
    watched.add(str(folder / PROGRAM))
    return folder / "mark"


def without_mark(folder: Path) -> None:
    """Undo ``with_mark``."""
    sys.path.remove(str(folder))
    sys.modules.pop("hostile", None)
    watched.discard(str(folder / PROGRAM))


watched: set[str] = set()
"""Programs, whose opening leaves the mark too."""


def _mark_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str) and arguments[0].endswith(PROGRAM):
        path = str(Path(arguments[0]).absolute())
        if path in watched:
            watched.discard(path)
            Path(path).with_name("mark").touch()


sys.addaudithook(_mark_opened)


def put(tree: Any, trail: Sequence[Any], value: Any) -> Any:
    """Return a tree with another value at one place."""
    if not trail:
        return value
    tree = json.loads(json.dumps(tree))
    holder = tree
    for key in trail[:-1]:
        holder = holder.setdefault(key, {}) if isinstance(holder, dict) else holder[key]
    holder[trail[-1]] = value
    return tree


def recipe_texts() -> Iterator[str]:
    """Yield every recipe that has one of the values at one place."""
    names = [name.split(".") for name, *_ in overrides.described_settings(Recipe, {})]
    own = [[*start, name] for start in (["grid", "per_network", "small"], ["data", "extra"]) for name in ("train", "x")]
    for trail in [*names, *({name[0]: [name[0]] for name in names}.values()), *own, ["grid", "per_network", NAME]]:
        for value in VALUES:
            yield yaml.safe_dump(put(BASE, trail, value))
            yield yaml.safe_dump({**BASE, ".".join(trail): value})
    for tag in ("name:hostile.make", "object/apply:hostile.make", "module:hostile", "object/new:hostile.make"):
        yield f"title: !!python/{tag} []\n"


def said(words: Sequence[str]) -> None:
    """Run a command without its output, whatever comes of it."""
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), contextlib.suppress(Exception):
        main(words)


def try_recipe(text: str, verbs: Sequence[str]) -> bool:
    """Write a recipe and another on its base; where they are accepted, run the verbs on it in an empty folder."""
    Path("given.yaml").write_text(text)
    Path("based.yaml").write_text("base: given.yaml\n")
    try:
        recipes = [overrides.resolve_recipe(name, {}) for name in ("given.yaml", "based.yaml")]
    except UserError:
        return False
    assert recipes[0].grid == recipes[1].grid
    for verb in verbs:
        said([verb, "given.yaml", "-o", "out"])
        shutil.rmtree("out", ignore_errors=True)
    return True


FILES: dict[str, tuple[str, ...]] = {
    "cell.json": ("evaluate RUN --evaluate.ood []", "study base.yaml -o STUDY --status", "predict RUN photo.png"),
    "model.json": ("evaluate RUN", "predict RUN photo.png", "export RUN e/m.safetensors", "convert RUN -o c",
                   "train base.yaml -o t --network.checkpoint RUN --anchoring.stem kept"),
    "recipe.json": ("evaluate RUN --evaluate.ood []",),
    "state.json": ("study base.yaml -o STUDY --status",),
    "evaluation.json": ("study base.yaml -o STUDY --status", "study base.yaml -o STUDY"),
    "decision.json": ("predict RUN photo.png", "export RUN e/folder", "export RUN e/m.pt2 --decide"),
    "made.json": ("evaluate RUN --evaluate.ood []", "report STUDY", "study base.yaml -o STUDY"),
    "study.json": ("report STUDY", "study base.yaml -o STUDY --status", "study base.yaml -o STUDY"),
    "results.json": ("report STUDY", "report STUDY --evidence", "study base.yaml -o STUDY"),
    ".report.json": ("report STUDY",),
}  # fmt: skip
"""File -> the commands that read it."""


def study_folder() -> StudyFolder:
    """Run a study of one network in the current folder."""
    Path("base.yaml").write_text(yaml.safe_dump(BASE))
    Image.new("L", (28, 28)).save("photo.png")
    said(["study", "base.yaml", "-o", "whole"])
    study = StudyFolder(Path("whole"))
    said(["calibrate", str(study.runs()[0].path), "--false_alarms", "0.1"])
    return study


def file_of(study: StudyFolder, name: str) -> Path:
    """Return the path of one of ``FILES``."""
    (run,) = study.runs()
    return next(path for path in (study.path / name, run.path / name) if path.is_file())


def try_file(
    study: StudyFolder,
    name: str,
    trails: Sequence[Sequence[Any]],
    values: Sequence[Any] = VALUES,
    commands: Sequence[str] = (),
) -> int:
    """Put the values at places of one of ``FILES`` and run its commands, or these; return how many."""
    path, (run,) = file_of(study, name), study.runs()
    content, tried = path.read_bytes(), 0
    for trail, value in itertools.product(trails, values):
        path.write_text(json.dumps(put(json.loads(content), trail, value)))
        for command in commands or FILES[name]:
            said([{"RUN": str(run.path), "STUDY": str(study.path)}.get(word, word) for word in command.split()])
            tried += 1
            for made in ("t", "c", "e", "predictions"):
                shutil.rmtree(made, ignore_errors=True)
    path.write_bytes(content)
    return tried


def places_of(content: Any) -> list[tuple[Any, ...]]:
    """Every place of a file's content, and one more; of lists of more than ten (scores of a decision, cells of a table)
    what is in the first."""
    return [*(trail for trail in places(content) if not _repeats(content, trail)), ("extra",)]


def _repeats(content: Any, trail: Sequence[Any]) -> bool:
    """Whether a place is in one of many elements of a list, and not in its first."""
    for key in trail:
        if isinstance(content, list) and len(content) > 10 and key > 0:
            return True
        content = content[key]
    return False


def run_all(only: str) -> None:
    """Try everything, or some kinds of files, in a new folder; exit status 1 where the module was imported."""
    draw = page.draw_pictures
    page.draw_pictures = lambda summary: itertools.islice(draw(summary), 1)
    began = time.monotonic()

    def tell(what: str) -> None:
        print(f"{time.monotonic() - began:.0f} s: {what}: {(mark.exists() and 'IMPORTED') or 'ok'}", flush=True)

    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        mark = with_mark(Path(place))
        if only in ("", "recipes"):
            texts = list(recipe_texts())
            accepted = 0
            for number, text in enumerate(texts, 1):
                accepted += try_recipe(text, ("study", "train", "doctor"))
                if number % 100 == 0 or number == len(texts):
                    tell(f"{number} of {len(texts)} recipes, {accepted} of them accepted and run")
        study, names = study_folder(), [name for name in FILES if only in ("", "files", name)]
        for number, value in enumerate(VALUES, 1):  # broken off, it has tried some forms at every place
            for name in names:
                trails = places_of(json.loads(file_of(study, name).read_bytes()))
                tried = try_file(study, name, trails, [value])
                tell(f"{name}: form {number} of {len(VALUES)} at each of {len(trails)} places, {tried} commands")
        sys.exit(mark.exists())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["recipes", "files", *FILES], default="", help="some of it")
    quiet()
    run_all(parser.parse_args().only)

"""Code in the documentation is of this version: Python compiles and names what is there, commands are taken.

Nothing is run here; ``scripts/run_tutorials.py`` runs the tutorials, other tests some of the how-to pages. A block
that shows code which is not there (another library's, or a line that was) is marked ``{.excerpt}``.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import inspect
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import run_tutorials
import site_pages

import anchored
from anchored.cli.parser import build_parser
from anchored.cli.verbs import VERBS
from anchored.config import recipe_file
from anchored.config.recipe import Recipe
from anchored.metrics.registry import METRICS
from anchored.store.rows import COLUMNS

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def found_blocks(page: Path, *languages: str) -> Iterator[run_tutorials.Block]:
    for block in run_tutorials.blocks(page.read_text(encoding="utf-8")):
        if block.language in languages and not {"excerpt", "output"} & {*block.marks}:
            yield block


# --- Python -----------------------------------------------------------------------------------------------------------


class Names(ast.NodeVisitor):
    """What the names of a program stand for, as far as they come from this package."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {"anchored": anchored}

    def visit_Import(self, node: ast.Import) -> None:
        for each in node.names:
            if each.name.split(".")[0] == "anchored":
                module = importlib.import_module(each.name)
                self.known[each.asname or "anchored"] = module if each.asname else anchored

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if (node.module or "").split(".")[0] == "anchored":
            module = importlib.import_module(str(node.module))
            for each in node.names:
                inner = f"{node.module}.{each.name}"
                is_module = not hasattr(module, each.name)
                self.known[each.asname or each.name] = (
                    importlib.import_module(inner) if is_module else getattr(module, each.name)
                )

    def value(self, node: ast.AST) -> Any:
        """What an expression stands for; None where that is not of this package, AttributeError where it lacks it."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.value(node.value)
            return (
                None
                if owner is None or not (inspect.ismodule(owner) or inspect.isclass(owner))
                else getattr(owner, node.attr)
            )
        return None

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.value(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = self.value(node.func)
        spread = any(isinstance(each, ast.Starred) for each in node.args) or any(k.arg is None for k in node.keywords)
        if callable(called) and not spread:
            named = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            inspect.signature(called).bind(*node.args, **named)
        self.generic_visit(node)


@pages
def test_python_names_what_is_there(page: Path) -> None:
    if page.name == "adapters.md":
        return  # test_examples.py runs it; importing all that it names takes seconds
    names = Names()  # of the whole page: a later block goes on with what an earlier one imported
    for block in found_blocks(page, "python"):
        names.visit(ast.parse(block.code, page.name))


@pytest.mark.parametrize(
    "code",
    ["anchored.fald(x)", "anchored.fold(x, fuse=True)", "from anchored.metrics import nothing", "anchored.anchor()"],
)
def test_python_that_is_out_of_date_is_found(code: str) -> None:
    with pytest.raises((AttributeError, TypeError, ImportError)):
        Names().visit(ast.parse(code))


# --- Commands ---------------------------------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[list[str]]:
    """The words after ``anchored`` of each command of a page, in blocks and within lines."""
    lines = list[str]()
    for block in found_blocks(page, "console", "sh", "bash"):
        shell = block.language != "console"
        code = block.code.replace("\\\n", " ").splitlines()
        lines += [line.removeprefix("$ ") for line in code if shell or line.startswith("$ ")]
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    lines += [line for line in re.findall(r"`(anchored [a-z]+ [^`\n]+)`", text) if not re.search(r"\.\.\.|…", line)]
    for line in lines:
        for command in re.split(r" (?:&&|\|) ", line):
            words = shlex.split(command, comments=True)
            if "anchored" in words and words[words.index("anchored") + 1 :]:
                yield words[words.index("anchored") + 1 :]


@functools.cache
def parser(verb: str) -> argparse.ArgumentParser:
    return build_parser(verb, VERBS[verb])


def check_command(words: list[str]) -> None:
    """``UserError`` where the command line would not take it; nothing is run."""
    if "--help" in words:
        return
    given = vars(parser(words[0]).parse_intermixed_args(words[1:]))
    settings = {key: value for key, value in given.items() if "." in key and value is not None}
    recipe = given.get("recipe", "")
    changed: dict[str, Any] = recipe_file.read_recipe(recipe) if recipe in recipe_file.recipe_names() else {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        changed[section] = {**changed.get(section, {}), key: value}
    made = Recipe.parse(changed, words)
    if words[0] == "train" and recipe in recipe_file.recipe_names():
        assert len(list(made.cells())) == 1, words
    assert recipe in recipe_file.recipe_names() or recipe.endswith(".yaml") or recipe.isupper() or not recipe, recipe


@pages
def test_commands_are_taken(page: Path) -> None:
    for words in commands(page):
        check_command(words)


@pytest.mark.parametrize(
    "command",
    ["study demo --train.epoch 3", "study no-such-recipe", "study demo --train.epochs -1", "fold runs/a", "train demo"],
)
def test_a_command_that_is_out_of_date_is_found(command: str) -> None:
    with pytest.raises((anchored.UserError, AssertionError, KeyError)):
        check_command(shlex.split(command))


# --- Pages ------------------------------------------------------------------------------------------------------------


@pages
def test_lists_and_tables_stand_apart(page: Path) -> None:
    """GitHub shows a list that follows a line of text at once, Python-Markdown does not."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    lines = ["", *text.splitlines()]
    for before, line in itertools.pairwise(lines):
        if re.match(r"[-*] |\d+\. ", line):
            assert not before or re.match(r"[-*] |\d+\. | {2,}|#", before), line
        if line.startswith("|"):
            assert not before or re.match(r"[|#]|<!--", before), line


def test_every_page_of_docs_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed = {*re.findall(r"^ *- [^#\n]+: ([\w/-]+\.md)$", navigation, re.MULTILINE)}
    assert listed == {page.relative_to(ROOT / "docs").as_posix() for page in PAGES[:-2]} | {*site_pages.PAGES}


def test_the_api_page_has_every_public_name() -> None:
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    for path in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE):
        module, _, name = path.rpartition(".")
        is_module = (ROOT / "src" / path.replace(".", "/")).with_suffix(".py").exists()
        assert is_module or hasattr(importlib.import_module(module), name)
    assert {name for name in anchored.__all__ if f".{name}\n" not in page} == set()


def test_pages_made_of_the_code_have_all_of_it() -> None:
    made = {name: make() for name, make in site_pages.PAGES.items()}
    assert all(f"| `{column}` |" in made["reference/results.md"] for column in COLUMNS)
    assert all(f"| `{key}` | {metric.title} |" in made["reference/results.md"] for key, metric in METRICS.items())
    assert all(f"## anchored {verb}\n" in made["reference/commands.md"] for verb in VERBS)
    assert all(f"| `{name}` |" in made["reference/recipes.md"] for name in recipe_file.recipe_names())
    for file in ("cell.json", "weights.safetensors", "decision.json", "results.csv", "report.html", "labels.npy"):
        assert f"| `{file}` |" in made["reference/files.md"]
    settings = made["reference/settings.md"]
    assert "| `anchoring.mask_unit` | `batch` | One mask draw" in settings
    assert settings.count("\n| `") > 100


def test_pictures_of_the_readme_are_light() -> None:
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert 10_000 < (ROOT / name).stat().st_size < 150_000

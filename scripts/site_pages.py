"""What mkdocs does here beside its own work (``hooks`` in mkdocs.yml): pages made of the code, links to the repository.

Pages that would say again what stands elsewhere are made as the site is built: the home page is the README; settings,
commands, columns and file formats are read off the code, without importing torch. Links that leave ``docs/``, which
work where the repository is browsed, go to the repository's own pages; where its address is not known
(``[project.urls]``) their text stays, without a link. A link to a file that is not there is a warning, which
``--strict`` makes an error.
"""

from __future__ import annotations

import ast
import dataclasses
import html
import inspect
import itertools
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

ROOT = Path(__file__).resolve().parent.parent
DOCS, SOURCE = ROOT / "docs", ROOT / "src" / "anchored"
sys.path.insert(0, str(ROOT / "src"))

from anchored.cli import overrides  # noqa: E402
from anchored.cli.parser import Documentation, build_parser  # noqa: E402
from anchored.cli.verbs import VERBS  # noqa: E402
from anchored.config.recipe import Recipe  # noqa: E402
from anchored.config.recipe_file import read_recipe, recipe_names  # noqa: E402

LOG = logging.getLogger("mkdocs.hooks.site_pages")


# --- Pages ------------------------------------------------------------------------------------------------------------

SETTINGS = """\
# Settings

Every setting of a recipe, with its default and its meaning, from `src/anchored/config/settings.py`. In a file a section
is a mapping (`train: {epochs: 20}`), on the command line an option (`--train.epochs 20`). A value out of its range is
refused in one line."""

RECIPES = """\
# Recipes

A recipe is a YAML file over typed [settings](settings.md), on a `base:` if it names one. These come with the package:
`anchored study NAME` trains, measures and reports one; `anchored doctor NAME` says before that what it needs. Their
files are in `src/anchored/config/recipes/`."""

COMMANDS = """\
# Commands

`anchored COMMAND --help` says the same. Bad input is one line and exit status 2; an interrupted command ends with 128 +
the signal's number (130: Ctrl-C), and the same command goes on."""

RESULTS = """\
# Columns of results.csv

One row a figure, in a study's `results.csv` (`validation.csv` and `references.csv` have the same columns). Text that a
spreadsheet would run as a formula has an apostrophe before it. From Python: `anchored.evaluate(...).rows`."""

METRICS = """\
## Metrics

Names of the column `metric`. ↑: higher is better."""

FILES = """\
# Files of a study

The names that the package writes, from `src/anchored/store/layout.py`. Every file appears whole or not at all; nothing
is pickled. Tensors are safetensors, tables CSV, all else JSON."""


def settings_page() -> str:
    """Every setting of a recipe: its name, its default, its meaning, section by section."""
    sections = {field.name: get_type_hints(Recipe)[field.name] for field in dataclasses.fields(Recipe)}
    parts = [SETTINGS]
    found = sorted(overrides.described_settings(Recipe, {}), key=lambda each: "." in each[0])  # first the study's own
    for section, group in itertools.groupby(found, key=lambda each: each[0].rpartition(".")[0]):
        parts += [f"## {section}", _prose(inspect.getdoc(sections[section]) or "")] if section else ["## Of the study"]
        rows = [(f"`{name}`", _default(default), _cell(meaning)) for name, _, default, meaning in group]
        parts.append(_table(("setting", "default", "meaning"), rows))
    return "\n\n".join(parts)


def _default(value: Any) -> str:
    shown = f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
    return "–" if value in ("", (), {}) else f"`{shown}`"


def recipes_page() -> str:
    """The recipes that come with the package."""
    rows = [(f"`{name}`", _cell(str(read_recipe(name).get("title", "")))) for name in recipe_names()]
    return f"{RECIPES}\n\n{_table(('recipe', 'what it is'), rows)}"


def commands_page() -> str:
    """Every command: what it does, its arguments, examples."""
    parts = [COMMANDS]
    for name, verb in VERBS.items():
        told = Documentation.of(verb)
        actions = [each for each in build_parser(name, verb)._actions if each.dest != "help"]
        own = [each for each in actions if not overrides.is_setting(each.dest)]
        rows = [(_flags(each), _cell((each.help or "").replace("%%", "%"))) for each in own]
        parts += [f"## anchored {name}", f"{_prose(told.summary)}.", _table(("argument", "meaning"), rows)]
        if len(own) < len(actions):
            some = " of `evaluate`" * (name == "evaluate")
            parts.append(
                f"Beside these it takes every [setting](settings.md){some} as an option, `--SECTION.KEY VALUE`."
            )
        examples = "\n".join(f"$ {line}" for line in told.examples if line.strip())
        parts.append(f"```console\n{examples}\n```")
    return "\n\n".join(parts)


def _flags(action: Any) -> str:
    name = " ".join(f"`{flag}`" for flag in action.option_strings) or f"`{action.dest.upper()}`"
    return name + (f" (one of {', '.join(map(str, action.choices))})" if action.choices else "")


def results_page() -> str:
    """The columns of results.csv and the metrics that it may hold."""
    text = _source("store", "rows.py").partition("class Row:")[2].partition("\n\n\n")[0]
    columns = re.findall(r"^    (\w+): ([^=#\n]+?)(?: = \S+)?(?:  # (.+))?$", text, re.MULTILINE)
    rows = [(f"`{name}`", f"`{kind}`", _cell(meaning)) for name, kind, meaning in columns]
    metrics = [(f"`{key}`", title, "%" * percent, "↑" if up else "↓") for key, title, percent, up in _metrics()]
    tables = _table(("column", "type", "meaning"), rows), _table(("metric", "title", "unit", ""), metrics)
    return "\n\n".join((RESULTS, tables[0], METRICS, tables[1]))


def _metrics() -> Iterator[tuple[str, str, bool, bool]]:
    """The table ``METRICS``, as it is written, since importing it would take torch."""
    assigned = [node for node in ast.parse(_source("metrics", "registry.py")).body if isinstance(node, ast.AnnAssign)]
    (table,) = (node.value for node in assigned if ast.unparse(node.target) == "METRICS")
    assert isinstance(table, ast.Dict)
    for key, value in zip(table.keys, table.values, strict=True):
        assert isinstance(key, ast.Constant)
        assert isinstance(value, ast.Call)
        flags = {each.arg: ast.literal_eval(each.value) for each in value.keywords}
        yield str(key.value), ast.literal_eval(value.args[0]), flags["percent"], flags["higher_is_better"]


def files_page() -> str:
    """The files of a study, of a run and of a corrupted copy."""
    text = _source("store", "layout.py")
    tree = text.partition("A study's folder::\n\n")[2].partition('\n"""')[0]
    parts = [FILES, f"```text\n{inspect.cleandoc(tree)}\n```"]
    for heading, kind in (("A study", "StudyFolder"), ("A run", "Run"), ("A corrupted copy", "CorruptedFolder")):
        body = text.partition(f"\nclass {kind}:\n")[2].partition("\n\n\n")[0]
        entries = re.findall(r'_(?:Entry|Subfolder)\(\s*"([^"]+)"\s*\)(?:  # ([^\n]+)|\n    """([^"]+)""")?', body)
        rows = [(f"`{file}`", _cell(comment or doc)) for file, comment, doc in entries]
        parts += [f"## {heading}", _table(("file", "what it holds"), rows)]
    return "\n\n".join(parts)


def _source(*path: str) -> str:
    return SOURCE.joinpath(*path).read_text(encoding="utf-8")


FROM_ROOT = {"index.md": "README.md", "how-to/contribute.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Page -> the file of the repository's root that it is."""

PAGES: dict[str, Callable[[], str]] = {
    "reference/settings.md": settings_page,
    "reference/recipes.md": recipes_page,
    "reference/commands.md": commands_page,
    "reference/results.md": results_page,
    "reference/files.md": files_page,
    **{page: lambda file=file: (ROOT / file).read_text(encoding="utf-8") for page, file in FROM_ROOT.items()},  # type: ignore[misc]
}
"""Page -> what makes it."""


# --- Text -------------------------------------------------------------------------------------------------------------


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, tuple("---" for _ in heads), *rows))


def _cell(text: str) -> str:
    return re.sub(r"[|*_]", r"\\\g<0>", html.escape(_prose(text), quote=False))


def _prose(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


# --- Hooks ------------------------------------------------------------------------------------------------------------

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_config(config: Any) -> Any:
    """Take the repository's address from the package's metadata."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("\n[project.urls]\n")[2].partition("\n[")[0]
    urls = dict(re.findall(r'^"?(\w+)"? = "(.+?)"', text, re.MULTILINE))
    address = urls.get("Source") or urls.get("Homepage") or ""
    config.repo_url = "" if "/OWNER/" in address else address  # a placeholder until it has its place
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    for name, make in PAGES.items():
        files.append(File.generated(config, name, content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links to files of the repository that are no pages of the site."""
    name = page.file.src_uri
    if name == "index.md":
        page.meta["hide"] = ["navigation"]
    return LINK.sub(lambda link: _turned(link, name, config.repo_url, files), markdown)


def _turned(link: re.Match[str], page: str, repository: str, files: Any) -> str:
    """One link as the site has it. Between pages it stays, but for pages that are files of the root."""
    sign, text, target = link.groups()
    path, hash_, anchor = target.partition("#")
    place = ((ROOT if page in FROM_ROOT else (DOCS / page).parent) / path).resolve()
    if (
        not path
        or re.match(r"[a-z]+:", target)
        or (page not in FROM_ROOT and place.is_relative_to(DOCS) and not place.is_dir())
    ):
        return link[0]
    moved = {file: made for made, file in FROM_ROOT.items()}
    inside = place.relative_to(DOCS if place.is_relative_to(DOCS) else ROOT).as_posix()
    inside = inside if place.is_relative_to(DOCS) else moved.get(inside, "")
    if files.get_file_from_path(inside):
        return f"{sign}[{text}]({'../' * page.count('/')}{inside}{hash_}{anchor})"
    if not place.exists():
        LOG.warning("%s links to %s, which is not there", page, target)
    kind = "tree" if place.is_dir() else "blob"
    return (
        f"[{text}]({repository.rstrip('/')}/{kind}/main/{place.relative_to(ROOT).as_posix()})" if repository else text
    )


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Leave out the roles of docstrings, which help in an editor."""
    return re.sub(r":(?:func|class|meth|mod|data|attr):(?=<code>)", "", html)

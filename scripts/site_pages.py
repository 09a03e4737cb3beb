"""What mkdocs does here beside its own work (``hooks`` in mkdocs.yml): pages made of the code, links into the repository.

Pages that would say again what stands elsewhere are made as the site is built: the home page is the README, settings,
commands, columns and file formats are read off the code, without importing torch. Links that leave ``docs/``, which
work where the repository is browsed, go to the repository's pages on the site; where its address is not known
(``[project.urls]``), to nowhere: their text stays. A link to a file that is not there is a warning, which ``--strict``
makes an error.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from anchored.cli import overrides  # noqa: E402
from anchored.cli.parser import Documentation, build_parser  # noqa: E402
from anchored.cli.verbs import VERBS  # noqa: E402
from anchored.config.recipe import Recipe  # noqa: E402
from anchored.config.recipe_file import read_recipe, recipe_names  # noqa: E402

LOG = logging.getLogger("mkdocs.hooks.site_pages")
SOURCE = ROOT / "src" / "anchored"


# --- Pages ------------------------------------------------------------------------------------------------------------


def settings_page() -> str:
    """Every setting of a recipe: its name, its default, its meaning, section by section."""
    found = list(overrides.described_settings(Recipe, {}))
    sections = dict(_section_meanings())
    parts = [
        "# Settings\n\nEvery setting of a recipe, with its default and its meaning, from `src/anchored/config/settings.py`. In a "
        "file a section is a mapping (`train: {epochs: 20}`), on the command line an option (`--train.epochs 20`). A "
        "value out of its range is refused in one line."
    ]
    for section, group in itertools.groupby(found, key=lambda each: each[0].rpartition(".")[0]):
        parts.append(f"## {section or 'Of the study'}")
        parts += [sections[section]] * (section in sections)
        rows = [(f"`{name}`", _default(default), _cell(meaning)) for name, _, default, meaning in group]
        parts.append(_table(("setting", "default", "meaning"), rows))
    return "\n\n".join(parts)


def _section_meanings() -> Iterator[tuple[str, str]]:
    for field in dataclasses.fields(Recipe):
        kind = overrides.get_type_hints(Recipe)[field.name]
        if dataclasses.is_dataclass(kind):
            yield field.name, _prose(inspect.getdoc(kind) or "")


def _default(value: Any) -> str:
    return "–" if value in ("", (), {}) else f"`{'[' + ', '.join(map(str, value)) + ']' if isinstance(value, tuple) else value}`"


def recipes_page() -> str:
    """The recipes that come with the package."""
    rows = [(f"`{name}`", _cell(str(read_recipe(name).get("title", "")))) for name in recipe_names()]
    return (
        "# Recipes\n\nA recipe is a YAML file over typed [settings](settings.md), on a `base:` if it names one. These come with "
        "the package: `anchored study NAME` trains, measures and reports one; `anchored doctor NAME` says before that what "
        "it needs. Their files are in `src/anchored/config/recipes/`.\n\n" + _table(("recipe", "what it is"), rows)
    )


def commands_page() -> str:
    """Every command: what it does, its arguments, examples."""
    parts = [
        "# Commands\n\n`anchored COMMAND --help` says the same. Bad input is one line and exit status 2; an interrupted command ends "
        "with 128 + the signal's number (130: Ctrl-C), and the same command goes on."
    ]
    for name, verb in VERBS.items():
        told = Documentation.of(verb)
        parts += [f"## anchored {name}", f"{_prose(told.summary)}."]
        actions = [each for each in build_parser(name, verb)._actions if each.dest != "help"]
        own = [each for each in actions if not overrides.is_setting(each.dest)]
        rows = [(_flags(each), _cell((each.help or "").replace("%%", "%"))) for each in own]
        parts.append(_table(("argument", "meaning"), rows))
        if len(own) < len(actions):
            parts.append(
                "Beside these it takes every [setting](settings.md)"
                + (" of `evaluate`" if name == "evaluate" else "")
                + " as an option, `--SECTION.KEY VALUE`."
            )
        parts.append("```console\n" + "\n".join(f"$ {line}" for line in told.examples if line.strip()) + "\n```")
    return "\n\n".join(parts)


def _flags(action: Any) -> str:
    name = " ".join(f"`{flag}`" for flag in action.option_strings) or f"`{action.dest.upper()}`"
    return name + (f" (one of {', '.join(map(str, action.choices))})" if action.choices else "")


def results_page() -> str:
    """The columns of results.csv and the metrics that it may hold."""
    columns = _comments((SOURCE / "store" / "rows.py").read_text(encoding="utf-8"), r"^    (\w+): ([^=#\n]+?)(?: = \S+)?  # (.+)$")
    shared = _comments((SOURCE / "store" / "rows.py").read_text(encoding="utf-8"), r"^    (low|seed): (\w+)$")
    named = {name: (kind, meaning) for name, kind, meaning in columns}
    del shared
    rows = [(f"`{name}`", f"`{kind}`", _cell(meaning)) for name, (kind, meaning) in named.items()]
    metrics = [(f"`{key}`", title, "%" if percent else "", "↑" if higher else "↓") for key, title, percent, higher in _metrics()]
    return (
        "# Columns of results.csv\n\nOne row a figure, in a study's `results.csv` (`validation.csv` and `references.csv` have the "
        "same columns). Text that a spreadsheet would run as a formula has an apostrophe before it. From Python: "
        "`anchored.evaluate(...).rows`, or `pandas.read_csv`.\n\n"
        + _table(("column", "type", "meaning"), rows)
        + "\n\n## Metrics\n\nNames of the column `metric`. ↑: higher is better.\n\n"
        + _table(("metric", "title", "unit", ""), metrics)
    )


def _metrics() -> Iterator[tuple[str, str, bool, bool]]:
    """The table ``METRICS``, as it is written, since importing it would take torch."""
    tree = ast.parse((SOURCE / "metrics" / "registry.py").read_text(encoding="utf-8"))
    (table,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "METRICS" and isinstance(node.value, ast.Dict)
    )
    for key, value in zip(table.keys, table.values, strict=True):
        assert isinstance(value, ast.Call)
        flags = {each.arg: ast.literal_eval(each.value) for each in value.keywords}
        yield ast.literal_eval(key), ast.literal_eval(value.args[0]), flags["percent"], flags["higher_is_better"]  # type: ignore[arg-type]


def files_page() -> str:
    """The files of a study, of a run and of a corrupted copy."""
    text = (SOURCE / "store" / "layout.py").read_text(encoding="utf-8")
    tree = re.search(r"A study's folder::\n\n(.*?)\n\"\"\"", text, re.DOTALL)
    assert tree is not None
    parts = [
        "# Files of a study\n\nThe names that the package writes, from `src/anchored/store/layout.py`. Every file appears whole or not at "
        "all; nothing is pickled. Tensors are safetensors, tables CSV, all else JSON.",
        "```text\n" + inspect.cleandoc(tree[1]) + "\n```",
    ]
    for name, body in re.findall(r"^class (Run|StudyFolder|CorruptedFolder):\n(.*?)(?=^@dataclass|^def |\Z)", text, re.DOTALL | re.MULTILINE):
        heading = {"Run": "A run", "StudyFolder": "A study", "CorruptedFolder": "A corrupted copy"}[name]
        entries = re.findall(r'_Entry\(\s*"([^"]+)"\s*\)(?:  # (.+)|\n    """(.+?)""")?', body, re.DOTALL)
        rows = [(f"`{file}`", _cell(comment or text)) for file, comment, text in entries]
        parts += [f"## {heading}", _table(("file", "what it holds"), rows)]
    return "\n\n".join(parts)


def readme_page() -> str:
    """The README as the home page."""
    return _from_root(ROOT / "README.md")


def contributing_page() -> str:
    """How to add a part."""
    return _from_root(ROOT / "CONTRIBUTING.md")


def changelog_page() -> str:
    """The changelog."""
    return _from_root(ROOT / "CHANGELOG.md")


def _from_root(path: Path) -> str:
    return path.read_text(encoding="utf-8")


PAGES: dict[str, tuple[Callable[[], str], Path]] = {
    "index.md": (readme_page, ROOT),
    "how-to/contribute.md": (contributing_page, ROOT),
    "changelog.md": (changelog_page, ROOT),
    "reference/settings.md": (settings_page, SOURCE),
    "reference/recipes.md": (recipes_page, SOURCE),
    "reference/commands.md": (commands_page, SOURCE),
    "reference/results.md": (results_page, SOURCE),
    "reference/files.md": (files_page, SOURCE),
}
"""Page -> what makes it, and the folder that its links are relative to, if it is a file of the repository's root."""


# --- Text -------------------------------------------------------------------------------------------------------------


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, tuple("---" for _ in heads), *rows))


def _cell(text: str) -> str:
    return html.escape(_prose(text), quote=False).replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")


def _prose(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _comments(text: str, pattern: str) -> list[tuple[str, ...]]:
    return re.findall(pattern, text, re.MULTILINE)


# --- Hooks ------------------------------------------------------------------------------------------------------------


def on_config(config: Any) -> Any:
    """Take the repository's address from the package's metadata."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = re.search(r"^\[project\.urls\]\n(.*?)(?=^\[|\Z)", text, re.DOTALL | re.MULTILINE)
    urls = dict(re.findall(r'^"?(\w[\w -]*?)"? = "(.+?)"', section[1], re.MULTILINE)) if section else {}
    config.repo_url = urls.get("Repository") or urls.get("Source") or urls.get("Homepage") or ""
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    for name, (make, _) in PAGES.items():
        files.append(File.generated(config, name, content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links to files of the repository that are no pages of the site."""
    name = page.file.src_uri
    made = PAGES.get(name)
    here = made[1] if made else (ROOT / "docs" / name).parent
    return re.sub(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)|!\[([^\]]*)\]\(([^)\s]+)\)", lambda link: _link(link, name, here, config, files), markdown)


def _link(link: re.Match[str], name: str, here: Path, config: Any, files: Any) -> str:
    picture = link[4] is not None
    text, target = (link[3], link[4]) if picture else (link[1], link[2])
    if re.match(r"[a-z]+:|#", target) or (picture and here != ROOT):
        return link[0]
    path, hash_, anchor = target.partition("#")
    place = (here / path).resolve()
    if not place.exists() and here != ROOT:
        return link[0]  # another page that is made, or none: mkdocs says which
    inside = _page_of(place, files)
    if inside:
        up = "../" * name.count("/")
        return f"{'!' * picture}[{text}]({up}{inside}{hash_}{anchor})"
    if not place.exists():
        LOG.warning("%s: there is no %s", name, target)
    if not config.repo_url:
        return text
    return f"[{text}]({config.repo_url.rstrip('/')}/{'tree' if place.is_dir() else 'blob'}/main/{place.relative_to(ROOT).as_posix()}{hash_}{anchor})"


def _page_of(place: Path, files: Any) -> str:
    """The page or picture of the site that a file of the repository is; "" where it is none."""
    if place in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        return {"README.md": "index.md", "CONTRIBUTING.md": "how-to/contribute.md", "CHANGELOG.md": "changelog.md"}[place.name]
    docs = ROOT / "docs"
    found = place.relative_to(docs).as_posix() if place.is_relative_to(docs) else ""
    return found if found and (found in PAGES or files.get_file_from_path(found)) else ""


def on_page_content(text: str, page: Any, config: Any, files: Any) -> str:
    """Leave out the roles of docstrings, which help in an editor."""
    return re.sub(r":(?:func|class|meth|mod|data|attr):(?=<code>)", "", text)

"""Recipe files: YAML with the sections of ``settings.py``.

``base: other-recipe`` starts from another recipe and states only what differs.
"""

import os
import re
import stat
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from anchored.errors import UserError

MAX_BYTES = 1_000_000  # of a recipe file
MAX_VALUES = 100_000  # of a recipe, aliases followed


class Loader(yaml.SafeLoader):
    """Plain YAML in which a key given twice is an error, and numbers are decimal: ``1e-2`` is one (YAML 1.1 takes it
    for text), ``010`` is ten (there eight), and ``1:30`` is text (there ninety)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; ``ConstructorError`` where it has a key twice."""
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, key in enumerate(keys):
            if key.value in [earlier.value for earlier in keys[:place]]:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is given twice", key.start_mark)
        return super().construct_mapping(node, deep)


_WHOLE, _NUMBER = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] not in (_WHOLE, _NUMBER)]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_STARTS = list("-+.0123456789")
Loader.add_implicit_resolver(_WHOLE, re.compile(r"[-+]?\d[\d_]*$"), _STARTS)
Loader.add_implicit_resolver(
    _NUMBER, re.compile(r"[-+]?((\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"), _STARTS
)
Loader.add_constructor(_WHOLE, lambda loader, node: int(str(node.value).replace("_", "")))


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("anchored.config") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_recipe(name: str) -> dict[str, Any]:
    """The settings of a recipe, by the name of a shipped one or the path of a YAML file, bases merged in. Raises
    ``UserError`` for an unknown name, a missing or malformed file, or a base that leads back to itself."""
    return _read(name, ())


def _read(name: str, trail: tuple[str, ...]) -> dict[str, Any]:
    if name in trail:
        raise UserError(f"recipe '{name}' is its own base ({' -> '.join((*trail, name))}): take one 'base:' out")
    text = _text(name)
    try:
        own = yaml.load(text, Loader) or {}
    except (ValueError, RecursionError) as error:  # a date that is none, a number too long
        raise UserError(f"recipe '{name}': not valid YAML ({error})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"recipe '{name}'{where}: not valid YAML ({getattr(error, 'problem', error)})") from error
    if not isinstance(own, dict):
        raise UserError(f"recipe '{name}': expected sections such as 'data:' and 'train:', found {type(own).__name__}")
    if odd := _odd(own):
        raise UserError(f"recipe '{name}': {odd}")
    base = own.pop("base", None)
    own.setdefault("name", Path(name).stem)
    return own if base is None else _merged(_read(_beside(str(base), name), (*trail, name)), own)


def _beside(base: str, name: str) -> str:
    """The base of a recipe: one of ours, or a file, whose path is seen from the recipe's folder."""
    return os.path.normpath(Path(name).parent / base) if base.lower().endswith((".yaml", ".yml")) else base


def _odd(tree: Any) -> str:
    """What is wrong with the shape of a file's settings, or nothing; aliases may stand for more than any memory has."""
    waiting, seen = [tree], 0
    while waiting:
        node, seen = waiting.pop(), seen + 1
        if seen > MAX_VALUES:
            return f"it holds more than {MAX_VALUES:,} values"
        if isinstance(node, dict):
            if odd := next((key for key in node if not isinstance(key, str)), None):
                return f"{odd!r} is the name of a setting, but not text: put it in quotes"
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return ""


def _text(name: str) -> str:
    if name in recipe_names():
        return (resources.files("anchored.config") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    path = Path(name)
    if "\0" in name:
        raise UserError(f"recipe file {name!r}: no path has a null character")
    if path.suffix not in {".yaml", ".yml"}:
        raise UserError(f"no recipe '{name}': there are {', '.join(recipe_names())}, or give the path of a .yaml file")
    try:
        there = path.stat()
        if not stat.S_ISREG(there.st_mode):  # a pipe or a device may never end
            raise UserError(f"recipe file {path} is not a regular file: give the path of a .yaml file")
        if there.st_size > MAX_BYTES:
            raise UserError(f"recipe file {path} has {there.st_size:,} bytes, more than any recipe ({MAX_BYTES:,})")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe file {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Sections merged key by key; a list replaces the base's list."""
    both = {
        key: _merged(base[key], own[key])
        for key in base.keys() & own.keys()
        if isinstance(base[key], dict) and isinstance(own[key], dict)
    }
    return {**base, **own, **both}

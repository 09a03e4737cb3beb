"""Plain settings, such as JSON's, to the dataclasses of ``settings.py``, names and types checked."""

from __future__ import annotations

import functools
from typing import Any, Literal, get_args, get_origin, get_type_hints, is_typeddict

from anchored.config.settings import Grid, PerNetwork
from anchored.errors import UserError


def filled(settings: Any, sections: dict[str, type[Any]]) -> dict[str, Any]:
    """Plain settings with their sections as dataclasses."""
    items = _mapping(settings, "a recipe").items()
    return {key: _section(key, sections[key], value) if key in sections else value for key, value in items}


def _section(name: str, kind: type[Any], settings: Any) -> Any:
    """One section of plain settings as its dataclass."""
    fields = _mapping(settings, name)
    if kind is Grid and "per_network" in fields:
        whose = f"{name}.per_network"
        own = {
            key: _section(f"{whose}.{key}", PerNetwork, each)
            for key, each in _mapping(fields["per_network"], whose).items()
        }
        fields = {**fields, "per_network": own}
    if kind is PerNetwork and "train" in fields:
        fields = {**fields, "train": _tuples(_mapping(fields["train"], f"{name}.train"))}
    return made(kind, _tuples(fields), f"{name}.")


def _mapping(settings: Any, name: str) -> dict[str, Any]:
    if not isinstance(settings, dict):
        raise UserError(f"{name} must have settings of its own, found {type(settings).__name__}")
    return settings


def made(kind: Any, fields: dict[str, Any], where: str = "") -> Any:
    """A dataclass of its fields; ``UserError`` for an unknown one, or one of another type."""
    hints = _hints(kind)
    for name, value in fields.items():
        if name not in hints:
            raise UserError(f"this version of anchored has no setting {where}{name}")
        if not _fits(value, hints[name]):
            raise UserError(f"{where}{name} is {str(value)[:40]!r}, a {type(value).__name__}, which it cannot be")
    return kind(**fields)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a setting is annotated with."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Literal:
        return value in inner
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(each, inner[0]) for each in value)
    if kind is dict:
        return isinstance(value, dict) and all(
            _fits(key, inner[0]) and _fits(each, inner[1]) for key, each in value.items()
        )
    if is_typeddict(hint):
        return all(name in _hints(hint) and _fits(each, _hints(hint)[name]) for name, each in value.items())
    return type(value) is hint or (hint is float and type(value) is int)


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}

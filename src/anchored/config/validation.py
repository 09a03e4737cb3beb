"""Types of settings that carry their range, and the one line that says why a value is refused.

A setting is annotated with its type and range (``fraction: Share = 1.0``), which pydantic checks wherever an object is
made: in code, from a recipe, from a file of a run, from the command line.
"""

import dataclasses
import difflib
import functools
import math
import os
from collections.abc import Hashable
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails, PydanticCustomError
from typing_extensions import dataclass_transform

from anchored.errors import UserError

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def settings_class(cls: type[T]) -> type[T]:
    """Make a frozen dataclass that checks every value when an object is made, and knows no other names.

    ``UserError``, one line, where it refuses a value.
    """
    checked: Any = dataclass(cls, frozen=True, config=ConfigDict(extra="forbid"))
    make = checked.__init__

    @functools.wraps(make)
    def checked_init(self: Any, *values: Any, **named: Any) -> None:
        try:
            make(self, *values, **named)
        except ValidationError as error:
            raise UserError(explain(error, checked)) from error

    checked.__init__ = checked_init
    return checked  # type: ignore[no-any-return]


def within(
    allowed: str, *, gt: float = -math.inf, ge: float = -math.inf, lt: float = math.inf, le: float = math.inf
) -> AfterValidator:
    """Refuse NaN, infinity and numbers outside an interval; ``allowed`` says what to give instead."""

    def check(number: float) -> float:
        finite = isinstance(number, int) or math.isfinite(number)
        if not (finite and gt < number < lt and ge <= number <= le):
            raise PydanticCustomError("out_of_range", "{allowed}", {"allowed": allowed})
        return number

    return AfterValidator(check)


def _check_distinct(values: tuple[Hashable, ...]) -> tuple[Hashable, ...]:
    twice = next((value for place, value in enumerate(values) if value in values[:place]), None)
    if twice is not None:
        raise PydanticCustomError("bad_list", "names {value} twice: give each once", {"value": _shortened(twice)})
    return values


def _check_not_empty(values: tuple[object, ...]) -> tuple[object, ...]:
    if not values:
        raise PydanticCustomError("bad_list", "is empty: name at least one")
    return values


def _check_file_name(name: str) -> str:
    if not name.strip(". ") or len(name) > 100 or any(mark in "/\\:" or ord(mark) < 32 for mark in name):
        raise PydanticCustomError("bad_name", "give a plain name, which the folder of the results can have")
    return name


def _expand_home(name: str) -> str:
    path = os.path.expanduser(name)  # noqa: PTH111  # names are not all paths: hub:owner/name
    if path.partition("/")[0] == "~":
        raise PydanticCustomError("no_home", "there is no home folder for it: set HOME, or give ./~ for such a name")
    return path


Place = Annotated[str, AfterValidator(_expand_home)]
"""A file or folder that is written or read; a leading ``~`` is the home folder."""
PlainName = Annotated[str, AfterValidator(_check_file_name)]
distinct = AfterValidator(_check_distinct)
not_empty = AfterValidator(_check_not_empty)


def parse(kind: Any, settings: Any, where: object = "", name: str = "") -> Any:
    """Return plain settings (JSON's, YAML's) as ``kind``: a settings class or any other type hint.

    Raises ``UserError`` with one line for the first value that is refused: ``where`` it comes from, its name (below
    ``name``), the value, and what to give instead.
    """
    try:
        return _adapter(kind).validate_python(settings)
    except ValidationError as error:
        line = explain(error, kind, name)
        raise UserError(f"{where}: {line}" if where else line) from error


def explain(error: ValidationError, kind: Any = None, name: str = "") -> str:
    """Return one line on the first thing that is wrong: ``data.fraction is 1.5: give a share in (0, 1]``."""
    problem = error.errors(include_url=False)[0]
    names = [name, *map(str, problem["loc"])]
    path, text = ".".join(filter(None, names)), _ALLOWED.get(problem["type"], problem["msg"])
    if problem["type"] == "value_error":  # of a rule on several settings, which names them
        return str(problem["ctx"]["error"])
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return _unknown(path, problem, kind)
    if problem["type"] in ("missing", "missing_argument"):
        return f"{path} is missing"
    if problem["type"] == "bad_list":
        return f"{path} {text}"
    if problem["type"] in ("dataclass_type", "dict_type"):
        expected = f"{path} must have settings of its own" if path else "expected settings by name"
        return f"{expected}, found {type(problem['input']).__name__}"
    if problem["type"] == "literal_error":
        text = f"give {problem['ctx']['expected'].replace(2 * chr(39), 'nothing').replace(chr(39), '')}"
    value = _shortened(problem["input"])
    of_list = isinstance(problem["loc"][-1] if problem["loc"] else "", int)
    return f"{path.rpartition('.')[0]} has {value}: {text}" if of_list else f"{path} is {value}: {text}"


_ALLOWED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "give a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "give a number"),
    "bool_type": "give true or false",
    "string_type": "give text",
    "tuple_type": "give a list, as [a, b]",
}


def _unknown(path: str, problem: ErrorDetails, kind: Any) -> str:
    section, _, key = path.rpartition(".")
    known = _names(kind, problem["loc"][:-1])
    close = [f"{section}.{name}".lstrip(".") for name in difflib.get_close_matches(key, known, 1)]
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}" if known else ""
    return f"this version of anchored has no setting {path}" + f": {hint}" * bool(hint)


def _names(kind: Any, path: tuple[int | str, ...]) -> list[str]:
    """Names of the settings of a class, or of the section that ``path`` leads to."""
    for part in path:
        kind = get_args(kind)[1] if get_origin(kind) is dict else get_type_hints(kind).get(str(part))
    return sorted(get_type_hints(kind)) if isinstance(kind, type) else []


def _shortened(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 10**18:
        return f"about {'-' * (value < 0)}1e{math.log10(abs(value)):.0f}"
    try:
        text = repr(value)
    except ValueError:  # a list with a whole number of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:37]}..."


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)

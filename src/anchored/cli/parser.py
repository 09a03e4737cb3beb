"""Arguments of a command from its typed function: names, types, defaults by its signature, help by its docstring.

Types carry their ranges as those of settings do (``config.settings``), and are checked by the same code.

A parameter before the ``*`` is positional, one after it an option; ``output`` is ``-o`` too. A parameter ``recipe`` or
``evaluation`` is made of a file's settings and of the options ``--SECTION.KEY``: see ``cli.overrides``; ``words`` are
those of the command line.
"""

import argparse
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from anchored.cli import overrides
from anchored.errors import UserError

Verb = Callable[..., "int | None"]


def verbs_by_name(*verbs: Verb) -> dict[str, Verb]:
    """Functions by their names, ``_train`` as train."""
    return {verb.__name__.lstrip("_"): verb for verb in verbs}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def print_help(self, file: Any = None) -> None:
        print(self.format_help(), end="", file=file)  # argparse's own says nothing of a full disk


@dataclasses.dataclass(frozen=True)
class Documentation:
    """What the docstring of a verb says: a summary, a line on each argument, and examples."""

    summary: str
    arguments: dict[str, str]
    examples: list[str]

    @staticmethod
    def of(verb: Verb) -> "Documentation":
        """Read the docstring of a verb."""
        text, arguments, examples = re.split(r"\n(?:Args|Examples):\n", inspect.getdoc(verb) or "")
        entries = re.findall(r"^(\w+): (.*(?:\n +.*)*)", textwrap.dedent(arguments), re.MULTILINE)
        meanings = {name: " ".join(meaning.split()) for name, meaning in entries}
        return Documentation(text.strip().rstrip("."), meanings, textwrap.dedent(examples).split("\n"))


def parse_arguments(name: str, verb: Verb, words: Sequence[str]) -> dict[str, Any]:
    """Return the arguments that a command line gives to a verb; ``UserError`` where it takes no such."""
    given = vars(build_parser(name, verb, words).parse_intermixed_args(words))
    changed = {key: given.pop(key) for key in [*given] if given[key] is not None and overrides.is_setting(key)}
    parameters, hints = inspect.signature(verb).parameters, type_hints(verb)
    arguments = {key: _checked(parameters[key], hints[key], given[key]) for key in parameters if key in given}
    if "recipe" in given:
        scale = overrides.read_value(given["scale"])
        arguments["recipe"] = overrides.resolve_recipe(given["recipe"], changed, scale, ray=given.get("ray"))
    if "words" in inspect.signature(verb).parameters:
        arguments["words"] = words
    if name == "evaluate":
        arguments["evaluation"] = overrides.resolve_evaluation(given["model"], changed)
    return arguments


def build_parser(name: str, verb: Verb, words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the parser of a verb, whose help shows the values of the recipe that ``words`` name."""
    documentation, hints = Documentation.of(verb), type_hints(verb)
    examples = "\n  ".join(documentation.examples)
    parser = _Parser(
        prog=f"anchored {name}",
        description=f"{documentation.summary}.\n\nexamples:\n  {examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made = ("recipe", "evaluation")  # last, so that the usage shows the verb's own options
    for parameter in sorted(inspect.signature(verb).parameters.values(), key=lambda each: each.name in made):
        if parameter.name == "recipe":
            overrides.add_recipe(parser, words[0] if {"-h", "--help"} & {*words} else "")
        elif parameter.name == "words":  # of the command line itself
            continue
        elif parameter.name == "evaluation":
            overrides.add_settings(parser, "evaluate.", {})
        else:
            _add(parser, parameter, hints[parameter.name], documentation.arguments[parameter.name])
    return parser


def _add(parser: argparse.ArgumentParser, parameter: inspect.Parameter, hint: Any, text: str) -> None:
    required = parameter.default is parameter.empty
    hint = plain(hint)
    if parameter.default not in (parameter.empty, None, False, "", ()):
        text += f" (default: {parameter.default})"
    options: dict[str, Any] = {"help": text.replace("%", "%%")}
    many = get_origin(hint) is tuple
    if get_origin(hint) is Literal:
        options["choices"] = get_args(hint)
    elif hint is bool:
        options["action"] = "store_true"
    if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
        count = ("+" if required else "*") if many else None if required else "?"
        parser.add_argument(parameter.name, nargs=count, default=None if required else parameter.default, **options)
        return
    flags = ["-o"] * (parameter.name == "output") + [f"--{parameter.name}"]
    parser.add_argument(*flags, required=required, default=None if required else parameter.default, **options)


def type_hints(verb: Verb) -> dict[str, Any]:
    """The types of a verb's parameters, with their ranges, without None."""
    from anchored.config import settings, validation  # whose names the signatures use

    made = {"Recipe": Any, "Evaluation": Any}
    hints = get_type_hints(verb, localns={**vars(validation), **vars(settings), **made}, include_extras=True)
    return {name: get_args(hint)[0] if type(None) in get_args(hint) else hint for name, hint in hints.items()}


def plain(hint: Any) -> Any:
    """A type hint without its range."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _checked(parameter: inspect.Parameter, hint: Any, value: Any) -> Any:
    """What stands on the command line, as the parameter's type; ``UserError`` where it is outside its range."""
    from anchored.config.validation import parse

    if value is None or value is parameter.default:
        return value
    if isinstance(value, str) and plain(hint) is not str:
        value = overrides.read_value(value)
    return parse(hint, value, name="--" * (parameter.kind is parameter.KEYWORD_ONLY) + parameter.name)

"""The door: ``anchored VERB``, one of ``commands.COMMANDS``. Bad input is one line and exit status 2."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anchored.cli.arguments import recipe as recipe_arguments
from anchored.cli.arguments import study as study_arguments
from anchored.cli.verbs import COMMANDS
from anchored.config import recipe as recipes
from anchored.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

SPIN = "30000"
"""How often torch's threads (GNU OpenMP's) look for one another before they sleep, unless ``GOMP_SPINCOUNT`` says.

The default is ten times as often, which costs time where a core is shared with other work (docs/scale.md).
"""


def _parser(verb: str) -> ArgumentParser:
    from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

    class Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
        """Keeps the examples' lines."""

    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the settings' help stands in recipe.py
    command = COMMANDS[verb]
    examples = "\n  ".join(command.examples)
    description = f"{command.summary[0].upper()}{command.summary[1:]}.\n\nexamples:\n  {examples}"
    parser = ArgumentParser(
        prog=f"anchored {verb}",
        usage=command.usage,
        description=description,
        formatter_class=Formatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    command.arguments(parser)
    return parser


def parsed(verb: str, arguments: list[str]) -> Namespace:
    """Parse a verb's arguments: defaults, then the recipe's or the run's settings, then the command line's."""
    from jsonargparse import ArgumentError

    parser = _parser(verb)
    if verb == "data":  # argparse wants names that may be absent before the flags
        arguments = sorted(arguments, key=lambda word: word.startswith("-"))
    try:
        first = next((word for word in arguments[:1] if not word.startswith("-")), None)
        if first and COMMANDS[verb].arguments in (study_arguments, recipe_arguments):
            settings = recipes.read(first)
            _set_defaults(parser, settings, f"recipe '{first}'")
            _refuse_code(settings, arguments[1:], f"recipe '{first}'")
        if first and verb == "evaluate":
            from anchored.store.files import read_json
            from anchored.store.layout import Run

            run = Run(Path(first))
            if run.recipe_file.exists():
                found = read_json(run.recipe_file)
                if not isinstance(found, dict) or "evaluate" not in found:
                    raise UserError(f"{run.recipe_file} is not a recipe: remove it, or train the run again")
                _set_defaults(parser, {"evaluate": found["evaluate"]}, str(run.recipe_file))
        return parser.parse_args(arguments)
    except (ArgumentError, TypeError) as error:
        raise UserError(_one_line(str(error))) from error


def _refuse_code(settings: dict[str, object], words: list[str], where: str) -> None:
    """A file may be anybody's: code that it names is only imported where the command line names it too."""
    grid = settings.get("grid")
    for name in grid.get("networks", ()) if isinstance(grid, dict) else ():
        if name.startswith("python:") and not any(name in word for word in words):
            raise UserError(
                f"{where} names the network '{name}', which is code to be imported: if you trust it, add "
                f"--grid.networks '[{name}]'"
            )


def _set_defaults(parser: ArgumentParser, settings: dict[str, object], where: str) -> None:
    """Take a file's settings as the parser's defaults; ``UserError`` naming a key that does not exist."""
    from jsonargparse import ArgumentError

    first = next(action.dest for action in parser._actions if not action.option_strings)
    flat = _flat(settings)
    sections = set(recipes.SECTIONS)
    known = {action.dest for action in parser._actions} - sections
    for key, value in flat.items():
        if key in sections:
            raise UserError(f"{where}: '{key}' is a section with keys of its own, not {value!r}")
        if key not in known:
            section = key.rpartition(".")[0]
            there = [name for name in known if name.rpartition(".")[0] == section and name not in ("help", "recipe")]
            raise UserError(f"{where}: unknown key '{key}'; there are {', '.join(sorted(there)) or 'no such sections'}")
    try:
        parser.parse_object({**flat, first: "checked"})  # defaults themselves are never checked
        parser.set_defaults(flat)
    except (ArgumentError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: {_one_line(str(error))}") from error


def _flat(settings: dict[str, object]) -> dict[str, object]:
    """Sections to ``section.key``; a setting whose value is a mapping stays whole."""
    flat: dict[str, object] = {}
    for section, values in settings.items():
        own = {f"{section}.{key}": value for key, value in values.items()} if isinstance(values, dict) else None
        flat |= {section: values} if own is None else own
    return flat


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    commands = "\n".join(f"  {verb:<{width}}{command.summary}" for verb, command in COMMANDS.items())
    examples = "\n".join(f"  {command.examples[0]}" for command in COMMANDS.values())
    return (
        "usage: anchored [--version] COMMAND ...\n\n"
        "Anchored training with reference masking: train, measure, report.\n\n"
        f"commands (each has --help):\n{commands}\n\nexamples:\n{examples}\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 where ``doctor`` finds something missing or ``predict`` an image that
    cannot be read, 2 for bad input, 130 when interrupted."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN)  # read when torch is imported, which is later
    words = list(sys.argv[1:] if arguments is None else arguments)
    verb = words[0] if words else "--help"
    try:
        if verb in ("-h", "--help"):
            print(_overview(), end="")
        elif verb == "--version":
            from importlib.metadata import version

            print(f"anchored {version('anchored')}")
        elif verb in COMMANDS:
            options = parsed(verb, words[1:])
            from anchored.study.progress import quiet  # after --help, which must not wait for it

            quiet()
            return COMMANDS[verb].run(options) or 0
        else:
            raise UserError(f"no command '{verb}': there are {', '.join(COMMANDS)}")
    except UserError as error:
        print(f"anchored: {_one_line(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("anchored: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `anchored ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # of a place that we only look at: a closed folder, a disk that fails
        print(f"anchored: cannot read {error.filename}: {str(error.strerror).lower()}", file=sys.stderr)
        return 2
    return 0

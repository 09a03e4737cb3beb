"""The command line: ``anchored VERB``, one of ``verbs.VERBS``. Bad input is one line and exit status 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from anchored.cli.parser import Documentation, parse_arguments
from anchored.cli.verbs import VERBS
from anchored.errors import UserError, told

SPIN = "30000"
"""How often torch's threads (GNU OpenMP's) look for one another before they sleep, unless ``GOMP_SPINCOUNT`` says.

The default is ten times as often, which costs time where a core is shared with other work (docs/scale.md).
"""


def _overview() -> str:
    documentation = {name: Documentation.of(verb) for name, verb in VERBS.items()}
    width = max(map(len, VERBS)) + 2
    commands = "\n".join(f"  {name:<{width}}{text.summary}" for name, text in documentation.items())
    examples = "\n".join(f"  {text.examples[0]}" for text in documentation.values())
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
        elif verb in VERBS:
            options = parse_arguments(verb, VERBS[verb], words[1:])
            from anchored.study.progress import quiet  # after --help, which must not wait for it

            quiet()
            return VERBS[verb](**options) or 0
        else:
            raise UserError(f"no command '{verb}': there are {', '.join(VERBS)}")
    except UserError as error:
        print(f"anchored: {told(error)}", file=sys.stderr)
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

"""The command line: ``anchored VERB``, one of ``verbs.VERBS``. Bad input is one line and exit status 2."""

import contextlib
import errno
import gc
import io
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from anchored.cli.parser import Documentation, parse_arguments
from anchored.cli.verbs import VERBS
from anchored.errors import UserError, first_line, is_out_of_memory, printable, told
from anchored.training import interruption

SPIN = "30000"
"""How often torch's threads (GNU OpenMP's) look for one another before they sleep, unless ``GOMP_SPINCOUNT`` says.

The default is ten times as often, which costs time where a core is shared with other work (docs/how-to/scale.md).
"""


KEPT = {"MALLOC_MMAP_THRESHOLD_": (-3, 1 << 28), "MALLOC_TRIM_THRESHOLD_": (-1, 1 << 30)}
"""Bytes of glibc's settings, by the variables of theirs, with the numbers they have in ``mallopt``.

By default a training step's tensors go back to the system, which fills the pages of the next with zeros: a tenth to a
fifth of a small network's step on a CPU (``benchmarks/cpu.py``, section ``allocator``).
"""

GARBAGE = 100_000
"""New objects after which Python looks for garbage in circles, not 700: a fifth of the time of imports and drawing."""


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
    cannot be read, 2 for bad input, 128 + N when signal N interrupted it (130: Ctrl-C)."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN)  # read when torch is imported, which is later
    _keep_memory()
    gc.set_threshold(GARBAGE)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter ends no study
    try:
        try:
            with interruption.handled():
                return _run(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where it can be told that there is no room
    except UserError as error:
        _complain(told(error))
    except KeyboardInterrupt as error:
        number = interruption.number_of(error)
        _complain(interruption.line(number))
        return 128 + number
    except BrokenPipeError:  # the reader of our output has gone, as in `anchored ... | head`
        _discard(sys.stdout)
        return 0
    except OSError as error:
        _complain(_refusal(error))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        _complain(f"memory ran out ({first_line(error)}): take smaller batches or images, or a machine with more")
    return 2


def _keep_memory() -> None:
    """Let this process keep freed memory, and those that it starts: where the environment does not say otherwise."""
    if sys.platform != "linux":
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    for variable, (number, size) in KEPT.items():
        if variable not in os.environ:
            os.environ[variable] = str(size)
            if mallopt is not None:
                mallopt(number, size)


def _run(words: list[str]) -> int:
    verb = words[0] if words else "--help"
    if verb in ("-h", "--help"):
        print(_overview(), end="")
    elif verb == "--version":
        from anchored.study.revision import version_line

        print(version_line())
    elif verb in VERBS:
        options = parse_arguments(verb, VERBS[verb], words[1:])
        from anchored.study.progress import quiet  # after --help, which must not wait for it

        quiet()
        return VERBS[verb](**options) or 0
    else:
        raise UserError(f"no command '{verb}': there are {', '.join(VERBS)}")
    return 0


def _refusal(error: OSError) -> str:
    """What the system refused: a place that we only look at, or the output itself."""
    reason = str(error.strerror or told(error)).lower()
    if error.filename is not None:
        return f"cannot read {printable(str(error.filename))}: {reason}"
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EBADF, errno.EIO):
        _discard(sys.stdout)  # or the interpreter would try once more, and say so, when it ends
        return f"cannot write the output: {reason}: make room, or send it elsewhere"
    return f"the system refused: {reason}"


def _complain(line: str) -> None:
    try:
        print(f"anchored: {line}", file=sys.stderr, flush=True)
    except OSError:  # there is nobody to tell
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

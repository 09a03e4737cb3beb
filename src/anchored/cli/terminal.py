"""What a verb says: lines, and a console for tables and progress."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from anchored.errors import printable

if TYPE_CHECKING:
    from rich.console import Console


def new_console() -> Console:
    """A console that shows what comes from outside as text."""
    from anchored.store.terminal import PlainConsole

    return PlainConsole()


def say(text: object, *, stderr: bool = False) -> None:
    """Print a line, or several, without others' control characters."""
    print(printable(str(text), keep="\n"), file=sys.stderr if stderr else sys.stdout)

"""The one exception for things a user can mend, what others say in a line, and what memory that ran out looks like."""

import re
import unicodedata


class UserError(ValueError):
    """Bad input: the text is one line saying what was wrong, where, and what to do about it. The command line prints it
    and exits with status 2; a library caller catches it as a ``ValueError``."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def printable(text: str, keep: str = "") -> str:
    """Text in which control characters (which can rewrite a terminal) and halves of characters are shown as "?"."""
    return "".join("?" if unicodedata.category(c) in ("Cc", "Cs") and c not in keep else c for c in text)


def told(error: BaseException) -> str:
    """What an error says, on one printable line: a ``UserError`` by itself, others with their kind."""
    said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return printable(" ".join(said.split()))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the machine or of the device ran out: torch says so by several exceptions."""
    told = re.search(r"out of memory|not enough memory|can.t allocate memory", str(error), re.IGNORECASE)
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's may say nothing
    return named or (isinstance(error, RuntimeError) and told is not None)

"""The one exception for things a user can mend."""


class UserError(ValueError):
    """Bad input: the text is one line saying what was wrong, where, and what to do about it.

    The command line prints it and exits with status 2; a library caller catches it as a ``ValueError``.
    """

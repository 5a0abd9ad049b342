"""The one exception that users are meant to see."""

from .shown import printable


class SecateurError(Exception):
    """Bad input, in one or two lines: what was wrong, what was expected, what to type.

    The command line prints the message alone and exits with code 2. Names in it may be anybody's:
    what a terminal would obey is written as an escape.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


class ArgumentError(SecateurError, TypeError):
    """An argument of the wrong kind, in a call from Python."""


class SecateurWarning(UserWarning):
    """Something the user should know that does not stop the run."""

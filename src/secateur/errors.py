"""The one exception that users are meant to see."""


class SecateurError(Exception):
    """Bad input, in one or two lines: what was wrong, what was expected, what to type.

    The command line prints the message alone and exits with code 2.
    """


class SecateurWarning(UserWarning):
    """Something the user should know that does not stop the run."""

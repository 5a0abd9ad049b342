"""Packages that only some commands need: asked for before the work, not after it."""

from importlib.util import find_spec

from .errors import SecateurError

# By the extra that brings them.
_PACKAGES = {"report": ("matplotlib", "jinja2")}


def lacking(extra: str) -> str:
    """What to type to get the packages of `extra`; empty if they are all there."""
    if all(find_spec(name) is not None for name in _PACKAGES[extra]):
        return ""
    return f'pip install "secateur[{extra}]"'


def require(extra: str, what: str) -> None:
    """Make sure that `what` can be done.

    Raises:
        SecateurError: a package is missing.
    """
    if lacking(extra):
        names = " and ".join(_PACKAGES[extra])
        raise SecateurError(f"{what} needs {names}.\nType: {lacking(extra)}")

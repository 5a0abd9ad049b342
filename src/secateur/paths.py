"""Paths as people type them."""

import errno
from os import PathLike, fsencode, fspath
from pathlib import Path

from .errors import ArgumentError, SecateurError

# Nothing is there, as far as the system can tell: whoever reads it says so better.
_ABSENT = (errno.ENOENT, errno.ENOTDIR)


def typed_path(name: str | PathLike[str], what: str = "") -> Path:
    """The path that was typed, `~` expanded, if the system can look at it (it may not exist).

    `what` says in errors what it is (`--out`).

    Raises:
        SecateurError: as `expanded`, or a name that is too long, a loop of links, no permission.
    """
    path = expanded(name, what)
    try:
        path.stat()
    except OSError as error:
        if error.errno not in _ABSENT:
            raise SecateurError(
                f"{_of(what)}Cannot look at {_short(str(path))}: {error.strerror}."
            ) from error
    return path


def expanded(name: str | PathLike[str], what: str = "") -> Path:
    """The path that was typed, `~` expanded.

    Raises:
        SecateurError: no such home, or a name that no file can have.
    """
    text = fspath(name)
    if not isinstance(text, str):
        raise ArgumentError(f"{_of(what)}{text!r} is bytes; give a text or a pathlib.Path.")
    try:
        fsencode(text)
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise SecateurError(
            f"{_of(what)}{text} names the home folder of a user that this machine does not have."
            "\nWrite the path out."
        ) from error
    except UnicodeEncodeError as error:
        raise SecateurError(f"{_of(what)}{text!r} is no name that a file can have.") from error
    if "\0" in text:
        raise SecateurError(f"{_of(what)}{text!r} is no name that a file can have.")
    return path


def resolved(path: Path) -> Path:
    """`path` without links and dots.

    Raises:
        SecateurError: they lead in a loop, or to where this user may not look.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise SecateurError(f"Cannot follow the links of {_short(str(path))}.") from error


def _of(what: str) -> str:
    return f"{what}: " if what else ""


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:60]}...{text[-30:]}"

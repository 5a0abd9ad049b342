"""JSON and TOML from outside, with bounds: no text takes the parser, or what follows, down.

Without them a kilobyte of brackets ends in a RecursionError, five thousand digits in a ValueError,
a sparse file in no memory left.
"""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from .errors import SecateurError

T = TypeVar("T")

# The index of the largest models has some megabytes; no file of ours is nested above ten.
MOST_BYTES = 256 * 2**20
_DEEPEST = 100
# transformers writes 1000000000000000019884624838656 for "no limit"; nothing has more digits.
_DIGITS = 40


def read_text(path: Path, what: str = "") -> str:
    """UTF-8 text of a file, a byte-order mark skipped; `what` says in errors what it is.

    Raises:
        SecateurError: it cannot be read, is not UTF-8, or is no file of a sound size.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        text = data.decode("utf-8-sig") if len(data) <= MOST_BYTES else None
    except OSError as error:
        raise SecateurError(f"Cannot read {what}{path}: {error.strerror}.") from error
    except ValueError as error:  # not UTF-8, or a name that no file can have
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error
        raise SecateurError(f"Cannot read {what}{path}: {reason}.") from error
    if text is None:
        raise SecateurError(f"Cannot read {what}{path}: it has more than {MOST_BYTES >> 20} MiB.")
    return text


def parse_json(text: str | bytes, unsound: Callable[[str], SecateurError]) -> Any:
    """The value of a JSON text; `unsound` makes the error of what is wrong with it.

    Raises:
        SecateurError: not JSON, nested too deep, or a number of too many digits.
    """
    try:
        return _bounded(json.loads(text, parse_int=_whole))
    except json.JSONDecodeError as error:
        raise unsound(f"line {error.lineno}, {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise unsound(_reason(error)) from error


def parse_toml(text: str, unsound: Callable[[str], SecateurError]) -> dict[str, Any]:
    """The same of a TOML text.

    Raises:
        SecateurError: as `parse_json`.
    """
    try:
        return _bounded(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise unsound(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise unsound(_reason(error)) from error


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _bounded(value: T) -> T:
    """`value`, if it is not nested too deep and its numbers are not too long."""
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
        if any(type(one) is int and abs(one) >= 10**_DIGITS for one in level):
            raise ValueError(f"a number of more than {_DIGITS} digits")
        level = [one for part in level for one in _inside(part)]
        if not level:
            return value
    raise RecursionError


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"it is nested more than {_DEEPEST} deep"
    text = str(error)
    return "a number of too many digits" if "integer string conversion" in text else text

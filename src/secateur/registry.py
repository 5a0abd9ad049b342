"""Choice by name: one dictionary look-up whose error says what is known."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

from .errors import SecateurError

T = TypeVar("T")


def choose(what: str, name: str, known: Mapping[str, T]) -> T:
    """Return `known[name]`.

    Raises:
        SecateurError: no such name; the message lists the known ones and the nearest.
    """
    if name in known:
        return known[name]
    nearest = get_close_matches(name.lower(), [key.lower() for key in known], n=1, cutoff=0.5)
    spelled = next((key for key in known if nearest and key.lower() == nearest[0]), None)
    hint = f" Did you mean {spelled!r}?" if spelled else ""
    raise SecateurError(f"Unknown {what} {name!r}.{hint}\nKnown: {', '.join(known)}.")

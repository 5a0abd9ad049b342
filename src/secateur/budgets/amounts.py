"""Amounts that people type and read: 5.4B parameters, 8GB, 25ms."""

import math
import re
from collections.abc import Mapping

from ..errors import SecateurError

# By the unit in lower case, what one of it is.
PARAMETERS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
BYTES = {
    "": 1.0,
} | {
    letter + unit: base**power
    for unit, base in (("b", 1e3), ("ib", 2.0**10))
    for power, letter in enumerate(("", "k", "m", "g", "t"))
    if letter or unit == "b"
}
# Time is counted in picoseconds: a channel of a small model on a GPU takes a few nanoseconds.
TIME = {"s": 1e12, "ms": 1e9, "us": 1e6, "\N{MICRO SIGN}s": 1e6}

_AMOUNT = re.compile(r"(\d{1,20}(?:\.\d{0,12})?(?:e\d{1,2})?) ?([a-zµ]*)")
_MOST = 1e24


def amount(text: str, option: str, units: Mapping[str, float], example: str) -> float:
    """The number that `text` says.

    Raises:
        SecateurError: it says none above zero, or in no unit of `units`; `example` is one.
    """
    found = _AMOUNT.fullmatch(text.strip().lower().replace("_", ""))
    factor = units.get(found[2]) if found else None
    value = float(found[1]) * factor if found and factor is not None else 0.0
    if not 0 < value < _MOST:
        raise SecateurError(f"{option} {text[:40]} is no amount; expected one like {example}.")
    return value


def spelled(value: float, units: Mapping[str, float], names: str) -> str:
    """`value` with four digits and the largest of the units `names` that it has one of.

    Rounded up, so that an amount that has to be reached is.
    """
    chosen = next((n for n in names.split() if value >= units[n.lower()]), names.split()[-1])
    scaled = value / units[chosen.lower()]
    digits = max(3 - math.floor(math.log10(max(scaled, 1e-9))), 0)
    shown = math.ceil(scaled * 10**digits - 1e-6) / 10**digits
    text = f"{shown:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}{chosen}"


def parameters_text(value: float) -> str:
    """Parameters for people."""
    return f"{value:,.0f} parameters"


def time_text(value: float) -> str:
    """Picoseconds for people, in milliseconds."""
    return f"{value / 1e9:,.3g} ms" if value < 1e11 else f"{value / 1e9:,.0f} ms"

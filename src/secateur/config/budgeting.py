"""Budgets as settings: amounts that can be read, and one of them."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ..budgets import BUDGETS, BYTES, PARAMETERS, TIME, amount
from ..errors import SecateurError

# How long a search in rounds takes: of these, one is given.
SEARCH_LENGTH = ("search_minutes", "search_rounds")


def _readable(value: Any, option: str, units: Mapping[str, float], example: str) -> Any:
    """An amount as text; numbers are of the plain unit."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{value:.0f}" if abs(value) >= 1e4 else f"{value:g}"
    if isinstance(value, str):
        amount(value, option, units, example)
    return value


def _amount(option: str, units: Mapping[str, float], example: str) -> BeforeValidator:
    check: Callable[[Any], Any] = partial(_readable, option=option, units=units, example=example)
    return BeforeValidator(check)


Parameters = Annotated[
    str | int | float | None,
    _amount("--parameters", PARAMETERS, "5.4B, 108M, 950k"),
    Field(description="Budget of parameters: 5.4B, 108M"),
]
Memory = Annotated[
    str | int | float | None,
    _amount("--memory", BYTES, "8GB, 600MB, 7.5GiB"),
    Field(description="Budget of memory, weights and KV cache: 8GB, 7GiB"),
]
Latency = Annotated[
    str | None,
    _amount("--latency", TIME, "25ms, 800us, 0.5s"),
    Field(description="Budget of time for a token: 25ms"),
]


def one_budget(settings: Any, given: Collection[str]) -> str:
    """The name of the budget that is given; the usual ratio if none is.

    Raises:
        SecateurError: two are given.
    """
    named = [n for n in BUDGETS if n in given and getattr(settings, n) is not None]
    if len(named) > 1:
        raise SecateurError(
            f"--{named[0]} and --{named[1]} both say how much is to go.\nGive one of"
            f" {', '.join(f'--{name}' for name in BUDGETS)}."
        )
    return next(iter(named), "ratio")


def displaced(settings: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Of recorded `settings` those that a budget, or a time, given `over` them leaves in force."""
    if any(over.get(name) is not None for name in SEARCH_LENGTH):
        settings = {name: value for name, value in settings.items() if name not in SEARCH_LENGTH}
    if not any(over.get(name) is not None for name in BUDGETS):
        return dict(settings)
    return {name: value for name, value in settings.items() if name not in BUDGETS}

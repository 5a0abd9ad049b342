"""What there is by name: functions that a decorator registers, and choice among what is known."""

import inspect
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import torch

from .errors import SecateurError

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])

# How the modules are named that users bring with --use.
OWN = "secateur_use_"


@dataclass(frozen=True, slots=True)
class Registered:
    """A decorated function; `needs` names what it has to be given, `paper` is where it is from."""

    name: str
    function: Callable[..., Any]
    paper: str
    needs: tuple[str, ...]

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").split("\n")[0]

    @property
    def statistics(self) -> tuple[str, ...]:
        """Those of consumers' inputs that it has to be given: a pass must collect them."""
        return tuple(name for name in self.needs if name.startswith("input_"))

    @property
    def own(self) -> bool:
        """Whether a user brought it."""
        return self.function.__module__.startswith(OWN)

    def called(self, fails: str, /, *args: Any, **given: Any) -> Any:
        """What the function gives.

        Raises:
            SecateurError: `fails`, and what a user's function raised.
        """
        try:
            return self.function(*args, **given)
        except SecateurError:
            raise
        except (Exception, SystemExit) as error:
            if isinstance(error, torch.OutOfMemoryError) or not self.own:
                raise
            at = f"{type(error).__name__}: {error}{self._place(error)}"
            raise SecateurError(f"{fails}: {at}") from error

    def _place(self, error: BaseException) -> str:
        """The line of the user's file that an error comes from."""
        file = inspect.getfile(self.function)
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == file]
        return f" ({Path(file).name}, line {lines[-1]})" if lines else ""


def is_name(name: object) -> TypeGuard[str]:
    """Whether something can be the name of what is registered: it can be typed in a list."""
    return isinstance(name, str) and re.fullmatch(r"[\w.+-]+", name) is not None


def parameters_of(what: str, name: object, function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the parameters of a function that is registered as the `what` called `name`.

    Raises:
        SecateurError: the name cannot be typed, it is no function, or takes what has no name.
    """
    if not is_name(name):
        raise SecateurError(
            f"A {what} is named {name!r}; expected letters, digits, and - _ . + alone, like"
            f" 'my-{what}'."
        )
    if not inspect.isfunction(function):
        raise SecateurError(f"The {what} {name!r} is no function; expected def my_{what}(...): ...")
    parameters = inspect.signature(function).parameters
    for parameter in parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise SecateurError(
                f"The {what} {name!r} has the parameter {parameter}, which cannot be given by name;"
                " expected names of what it needs."
            )
    return tuple(parameters)


def entered(
    what: str, name: str, known: dict[str, T], make: Callable[[Any, tuple[str, ...]], T]
) -> Callable[[Function], Function]:
    """A decorator: `known[name]` is what `make` makes of a function and its parameters' names.

    Raises:
        SecateurError: as `parameters_of`.
    """

    def register(function: Function) -> Function:
        known[name] = make(function, parameters_of(what, name, function))
        return function

    return register


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

"""The registry of repairs. A repair's parameter names are the list of what it needs.

One that is made of what the removed units gave, and adds to the consumer's bias [out]:

| parameter | what it is | shape |
|---|---|---|
| `weight` | the removed units' part of the consumer's weight | [removed, width, out] |
| `input_mean`, `input_var`, `input_norm` | statistics of their inputs | [removed, width] |

One that fits every consumer in sequence (`secateur.surgery.sequential`), and gives a `Fit`:

| parameter | what it is | shape |
|---|---|---|
| `normal`, `held_out` | normal matrices of the tokens to fit to, and of held-out ones | |
| `weight` | the weights that stay | [out, in] |
| `owner` | to which kept unit each of their channels belongs | [in] |
| `damping` | the setting of that name; None: the repair's own | |
| `where` | what the consumer is called in messages | |
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Repair:
    """A repair by name; `biased` says that consumers may have a bias by it that had none."""

    name: str
    function: Callable[..., Any]
    biased: bool

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").split("\n")[0]

    @property
    def asks(self) -> tuple[str, ...]:
        """What the function takes."""
        return tuple(inspect.signature(self.function).parameters)

    @property
    def needs(self) -> tuple[str, ...]:
        """Statistics that it is made of."""
        return tuple(name for name in self.asks if name.startswith("input_"))

    @property
    def fits(self) -> bool:
        """Whether consumers are fitted in sequence, on calibration tokens."""
        return "normal" in self.asks


REPAIRS: dict[str, Repair] = {}


def repair(
    name: str, *, biased: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as the repair `name`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        REPAIRS[name] = Repair(name, function, biased)
        return function

    return register


@repair("none")
def none() -> None:
    """Leave the kept weights as they are."""

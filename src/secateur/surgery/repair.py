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

from collections.abc import Callable
from dataclasses import dataclass

from ..registry import Function, Registered, entered


@dataclass(frozen=True, slots=True)
class Repair(Registered):
    """A repair; `biased` says that consumers may have a bias by it that had none."""

    biased: bool

    @property
    def fits(self) -> bool:
        """Whether consumers are fitted in sequence, on calibration tokens."""
        return "normal" in self.needs


REPAIRS: dict[str, Repair] = {}


def repair(name: str, *, paper: str = "", biased: bool = False) -> Callable[[Function], Function]:
    """Register the decorated function as the repair `name`."""
    return entered("repair", name, REPAIRS, lambda f, needs: Repair(name, f, paper, needs, biased))


@repair("none")
def none() -> None:
    """Leave the kept weights as they are."""

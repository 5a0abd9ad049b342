"""The registry of searches. A search's parameter names are the list of what it needs.

| parameter | what it is |
|---|---|
| `axes` | the axes that may lose units |
| `removals` | the steps in which each loses them, least important first: a `Removal` by axis name |
| `budget` | how much is to go: parameters, or what else costs are in |
| `loss` | choices to the mean loss of each, [choice] fp64, where no gradient has seen the text |
| `divergence` | choices, and how many tokens (None: all), to the KL of each to the dense model |
| `gradient` | gates, tokens, turn to the KL of the gated model to the dense one and its gradient |
| `rounds` | of a search in rounds, those that there is time for (`search.rounds`) |
| `generator` | random numbers, seeded by the run |
| `scores` | as they came, by axis name, [unit, width]; larger means keep |
| `by_sample` | scores for each calibration sample, by axis name, [sample, unit] |
| `ranked` | a function of values by axis name, [unit]: the removals with the lowest first |
| `share` | the budget as a share of what the axes hold |
| `request` | a `Request`: the budget, and what of it attention is to give |

Gates are multipliers by axis name, [unit]: 1 keeps a unit, 0 takes it away. A gradient is taken on
about so many tokens of windows that no repair is judged on; turns 0, 1, 2 ... go round all of them.

A search gives a choice: how many steps each axis loses, by name (the units in their place will do).
Costs are parameters, biases included, or bytes or time where the budget is: searches need not know.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..registry import Function, Registered, choose, entered

Units = Mapping[str, tuple[int, ...]]
Choice = Mapping[str, int] | Units
Loss = Callable[[Sequence[Choice]], Tensor]
# The same, on windows of about so many tokens, of those that are kept for it; None: on all.
Divergence = Callable[[Sequence[Choice], int | None], Tensor]
Gates = Mapping[str, Float[Tensor, " _"]]
# KL(dense || gated) and its gradient by the gates, on about so many tokens: those of a turn.
Gradient = Callable[[Gates, int, int], tuple[float, Gates]]
Scores = Mapping[str, Float[Tensor, "unit width"]]
BySample = Mapping[str, Float[Tensor, "sample _"]]

INGREDIENTS = (
    "axes removals budget loss divergence gradient rounds generator scores by_sample ranked share"
    " request"
)


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a search.

    `budget` in what costs are in; `share` the ratio of it to what the axes that may lose some cost.
    Of attention, `attention_units` over all layers go, or the share `attention_ratio`; None means
    `share`, and the MLPs give the rest.
    """

    budget: float
    share: float
    attention_units: int | None = None
    attention_ratio: float | None = None

    @property
    def attention_share(self) -> float:
        """The share of attention to remove where no number of units is asked for."""
        return self.share if self.attention_ratio is None else self.attention_ratio

    @property
    def divides(self) -> bool:
        """Whether it says itself how much attention is to lose."""
        return self.attention_units is not None or self.attention_ratio is not None


@dataclass(frozen=True, slots=True)
class Search(Registered):
    """A search: who competes with whom for the budget.

    `scale` is that on which it compares layers, None if it compares none: then it takes no whole
    blocks and layers. One that `floors` takes no more of attention than it is told to, where
    others take the nearest number. One that `joins` is given a whole block as the last step of its
    finer units, where both may go.
    """

    scale: str | None
    floors: bool
    joins: bool = False

    @property
    def across(self) -> bool:
        """Whether its ranking goes across layers, so that the scale of the scores matters."""
        return self.scale is not None

    @property
    def divides(self) -> bool:
        """Whether it can be told how much attention is to lose."""
        return "request" in self.needs

    @property
    def asks_loss(self) -> bool:
        """Whether it asks what the loss is, or the divergence, on windows that are kept for it."""
        return "loss" in self.needs or self.asks_divergence

    @property
    def asks_divergence(self) -> bool:
        """Whether it asks how far cut and fitted models are from the dense one."""
        return "divergence" in self.needs

    @property
    def asks_gradient(self) -> bool:
        """Whether it asks for gradients by gates."""
        return "gradient" in self.needs

    @property
    def in_rounds(self) -> bool:
        """Whether it goes in rounds, and can end after any of them."""
        return "rounds" in self.needs

    @property
    def even(self) -> bool:
        """Whether layers lose the same number of units, and it can be told how many."""
        return self.divides and not self.across


SEARCHES: dict[str, Search] = {}


def register_search(
    name: str,
    *,
    paper: str,
    scale: str | None = "standardised",
    floors: bool = False,
    joins: bool = False,
) -> Callable[[Function], Function]:
    """Register the decorated function as the search `name`."""

    def make(function: Callable[..., Any], needs: tuple[str, ...]) -> Search:
        for need in needs:
            choose(f"parameter of the search {name!r}:", need, dict.fromkeys(INGREDIENTS.split()))
        return Search(name, function, paper, needs, scale, floors, joins)

    return entered("search", name, SEARCHES, make)

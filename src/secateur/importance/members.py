"""How the members of a unit (q, k, v, o; gate, up, down) become one value a channel.

Members come in the model's order, those that write the unit before the one that reads it: `first`
is q or gate, `last` is o or down. LLM-Pruner's public code lists q, o, v, k and gate, up, down; its
`second` is our `last` for attention and up for the MLP.
"""

from collections.abc import Callable
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

# From [member, unit, channel] to [unit, channel].
Combine: TypeAlias = Callable[[Tensor], Tensor]


def added(terms: Float[Tensor, "member unit channel"]) -> Float[Tensor, "unit channel"]:
    """Sum over members."""
    return terms.sum(dim=0)


def averaged(terms: Float[Tensor, "member unit channel"]) -> Float[Tensor, "unit channel"]:
    """Mean over members."""
    return terms.mean(dim=0)


def largest(terms: Float[Tensor, "member unit channel"]) -> Float[Tensor, "unit channel"]:
    """Maximum over members."""
    return terms.amax(dim=0)


def multiplied(terms: Float[Tensor, "member unit channel"]) -> Float[Tensor, "unit channel"]:
    """Product over members."""
    return terms.prod(dim=0)


def first(terms: Float[Tensor, "member unit channel"]) -> Float[Tensor, "unit channel"]:
    """The first member alone."""
    return terms[0]


def last(terms: Float[Tensor, "member unit channel"]) -> Float[Tensor, "unit channel"]:
    """The last member alone: the consumer."""
    return terms[-1]


REDUCTIONS: dict[str, Combine] = {
    "sum": added,
    "mean": averaged,
    "max": largest,
    "prod": multiplied,
    "first": first,
    "last": last,
}

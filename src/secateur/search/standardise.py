"""From channel scores to unit scores, comparable across layers or raw.

FLAP standardises per layer and kind over channels, then averages over a unit's channels:

    z = (S - mean(S)) / std(S),   std with n-1 in the denominator;   unit = mean over its channels

A ranking over several layers can be of other scales; within an axis all of them keep the order.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..errors import SecateurError
from ..registry import choose

# Share of an axis' largest score below which its logarithm falls no further.
_LEAST = 1e-12


# What each unit costs, in parameters or what else a budget is in.
Cost = int | Int64[Tensor, " unit"]

# Scales on which a score below zero would count the wrong way round, or not at all.
_OF_POSITIVE = ("per-parameter", "log")


def channel_sum(scores: Float[Tensor, "unit width"]) -> Float[Tensor, " unit"]:
    """Raw unit scores: the sum over each unit's channels. Comparable within one axis only."""
    return scores.sum(dim=1)


def standardised(scores: Float[Tensor, "unit width"]) -> Float[Tensor, " unit"]:
    """Unit scores that compare across axes: FLAP's standardised mean. Equal scores give 0."""
    if scores.numel() < 2:
        return torch.zeros(len(scores))
    spread = scores.std(correction=1)
    if spread == 0:
        return torch.zeros(len(scores))
    return ((scores - scores.mean()) / spread).mean(dim=1)


def logarithmic(scores: Float[Tensor, "unit width"]) -> Float[Tensor, " unit"]:
    """Log of unit scores over their geometric mean: what is left is how unequal an axis is."""
    sums = channel_sum(scores)
    largest = sums.max()
    if largest <= 0:
        return torch.zeros(len(scores))
    logs = sums.clamp(min=_LEAST * float(largest)).log()
    return logs - logs.mean()


def per_parameter(scores: Float[Tensor, "unit width"], cost: Cost) -> Float[Tensor, " unit"]:
    """Raw unit scores over what a unit costs: the order of a knapsack, if losses add up."""
    return channel_sum(scores) / cost


SCALES: dict[str, Callable[[Tensor, Cost], Tensor]] = {
    "raw": lambda scores, cost: channel_sum(scores),
    "per-parameter": per_parameter,
    "standardised": lambda scores, cost: standardised(scores),
    "log": lambda scores, cost: logarithmic(scores),
}


def rescaled(
    scores: Float[Tensor, "unit width"], how: str, cost: Cost = 1
) -> Float[Tensor, " unit"]:
    """Unit scores on the scale `how`; `cost` is what a unit costs, or each.

    Raises:
        SecateurError: no such scale, or one that makes no sense for negative scores.
    """
    scaled = choose("scale", how, SCALES)
    if how in _OF_POSITIVE and bool((scores < 0).any()):
        raise SecateurError(
            f"The scale {how!r} is for scores above zero, and some are below: these add a logarithm"
            " to each layer's.\nType --scale standardised or raw."
        )
    return scaled(scores, cost)

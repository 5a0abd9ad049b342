"""Searches that rank the units of all layers against one another.

`AL-AM` and `AL-MM` are FLAP's (2312.11983, section "Adaptive structure search"; the rounding is its
public code's): adaptive over layers, over modules adaptive or manual. `global` is for scores that
estimate a loss: what a parameter is worth in a head and in a channel then compares. (LLM-Pruner's
public code, 2305.11627, compares raw scores of units, whatever they cost: `--scale raw`.)
`tempered` does the same with scores over the square of what is left,

    s / r^2        r the share of the axis' units that is left halfway through a step

since scores are taken where little is gone, and the last units of a layer are dearer than they say:
no layer is cut to nothing because its units are cheap one by one.
The budget is met to at most one step (one unit, or `align` channels).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ..structure import Axis
from .registry import Request, register_search
from .removal import Removal, cost_of, remove_lowest

FLAP = "https://arxiv.org/abs/2312.11983"


@register_search("global", paper="https://arxiv.org/abs/2305.11627", scale="per-parameter")
@register_search("AL-AM", paper=FLAP)
def al_am(removals: Mapping[str, Removal], budget: float) -> dict[str, int]:
    """One ranking of all units, each at its cost in parameters; nearest to the budget."""
    return remove_lowest(removals, budget, nearest=True)


@register_search("tempered", paper="https://arxiv.org/abs/2305.11627", scale="per-parameter")
def tempered(removals: Mapping[str, Removal], budget: float) -> dict[str, int]:
    """One ranking of all units by cost a parameter; units of which few are left are dearer."""
    dearer: dict[str, Removal] = {}
    for name, one in removals.items():
        before = torch.cat([one.ends.new_zeros(1), one.ends[:-1]])[: len(one.ends)]
        left = 1 - (before + one.ends).double() / (2 * len(one.order))
        dearer[name] = replace(one, scores=(one.scores.double() / left.square()).float())
    return remove_lowest(dearer, budget, nearest=True)


@register_search("AL-MM", paper=FLAP)
def al_mm(
    axes: Sequence[Axis], removals: Mapping[str, Removal], request: Request
) -> dict[str, int]:
    """The lowest attention units of all layers; then the lowest MLP channels of all layers."""
    attention = [axis for axis in axes if axis.kind == "attention"]
    wanted = request.attention_units
    if wanted is None:
        wanted = round(request.attention_share * sum(axis.units for axis in attention))
    ones = {axis.name: replace(removals[axis.name], cost=1) for axis in attention}
    steps = remove_lowest(ones, wanted, nearest=False)
    channels = {name: removal for name, removal in removals.items() if name not in steps}
    left = request.budget - cost_of(steps, removals)
    return steps | remove_lowest(channels, left, nearest=False)

"""Searches that rank the units of all layers against one another.

`AL-AM` and `AL-MM` are FLAP's (2312.11983, section "Adaptive structure search"; the rounding is its
public code's): adaptive over layers, over modules adaptive or manual. `global` is for scores that
estimate a loss: what a parameter is worth in a head and in a channel then compares. (LLM-Pruner's
public code, 2305.11627, compares raw scores of units, whatever they cost: `--scale raw`.)
The budget is met to at most one step (one unit, or `align` channels).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..structure import Axis
from .registry import Request, register_search
from .removal import Removal, cost_of, remove_lowest

FLAP = "https://arxiv.org/abs/2312.11983"


@register_search("global", paper="https://arxiv.org/abs/2305.11627", scale="per-parameter")
@register_search("AL-AM", paper=FLAP)
def al_am(removals: Mapping[str, Removal], budget: float) -> dict[str, int]:
    """One ranking of all units, each at its cost in parameters; nearest to the budget."""
    return remove_lowest(removals, budget, nearest=True)


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

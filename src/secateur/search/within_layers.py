"""Searches that compare no layer with another: each loses the same share, or as many units.

`UL-UM` and `UL-MM` are FLAP's (2312.11983, section "Adaptive structure search"; the rounding is its
public code's): uniform over layers, over modules uniform or manual. `uniform` meets the budget
where they round down.
"""

from collections.abc import Mapping, Sequence

from ..structure import Axis
from .across_layers import FLAP
from .registry import Request, register_search
from .removal import Removal, cost_of, remove_lowest


@register_search("UL-UM", paper=FLAP, scale=None)
def ul_um(axes: Sequence[Axis], removals: Mapping[str, Removal], share: float) -> dict[str, int]:
    """The same share of every axis, rounded down (so at most the budget)."""
    return {axis.name: removals[axis.name].steps_for(_floor(share * axis.units)) for axis in axes}


@register_search("UL-MM", paper=FLAP, scale=None, floors=True)
def ul_mm(
    axes: Sequence[Axis], removals: Mapping[str, Removal], request: Request
) -> dict[str, int]:
    """The same number of attention units in each layer; MLP channels up to each layer's budget."""
    return _per_layer(axes, removals, request, nearest=False)


@register_search("uniform", paper="https://arxiv.org/abs/2306.11695", scale=None)
def uniform(
    axes: Sequence[Axis], removals: Mapping[str, Removal], request: Request
) -> dict[str, int]:
    """The same share of every layer: attention to the nearest unit, MLP nearest to the rest."""
    return _per_layer(axes, removals, request, nearest=True)


def _per_layer(
    axes: Sequence[Axis],
    removals: Mapping[str, Removal],
    request: Request,
    *,
    nearest: bool,
) -> dict[str, int]:
    steps: dict[str, int] = {}
    attending = len({axis.layer for axis in axes if axis.kind == "attention"})
    for layer in sorted({axis.layer for axis in axes}):
        here = [axis for axis in axes if axis.layer == layer]
        left = request.share * sum(axis.units * removals[axis.name].cost for axis in here)
        attention: dict[str, int] = {}
        for axis in (axis for axis in here if axis.kind == "attention"):
            if request.attention_units is not None:
                wanted = request.attention_units // attending
            else:
                exact = request.attention_share * axis.units
                step = removals[axis.name].first  # heads of grouped queries go one from each group
                wanted = round(exact / step) * step if nearest else _floor(exact)
            attention[axis.name] = removals[axis.name].steps_for(wanted)
        left -= cost_of(attention, removals)
        channels = {axis.name: removals[axis.name] for axis in here if axis.kind != "attention"}
        steps |= attention | remove_lowest(channels, left, nearest=nearest)
    return steps


def _floor(units: float) -> int:
    """Whole units; a share of a budget may lie a rounding error below them."""
    return int(units + 1e-9)

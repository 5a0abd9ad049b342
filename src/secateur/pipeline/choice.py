"""The search stage: settings become limits and a budget, a search says which units stay."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from ..budgets import BUDGETS, Budget
from ..checkpoint import TensorSpec, View
from ..config import PruneConfig
from ..errors import SecateurError
from ..search import (
    SEARCHES,
    DivergenceOfUnits,
    Limits,
    LossOfUnits,
    Wording,
    check_budget,
    removable,
    search,
)
from ..structure import Axis, Plan, Structure
from ..surgery import pruned_view
from .checks import check_settings, layer_range

_HALVINGS, _CORRECTIONS = 24, 4
# Of what is to go, a share by which a search may be told too much or too little.
_NEAR = 0.005

Kept = dict[str, tuple[int, ...]]


def kept_units(
    structure: Structure,
    found: Mapping[str, Tensor],
    config: PruneConfig,
    by_sample: Mapping[str, Tensor] | None = None,
    weights: View | None = None,
    loss: LossOfUnits | None = None,
    divergence: DivergenceOfUnits | None = None,
    budget: Budget | None = None,
) -> Kept:
    """Which units of the axes that may lose some stay; without a `budget`, the ratio's is taken.

    What goes is not the sum of the units' costs where units of several granularities share
    parameters (the channels of a layer, and the layer), where a repair adds biases, or where half
    the width takes more than half the time. Then the search is asked for more, or less, until what
    goes is what was asked.

    Raises:
        SecateurError: more is asked for than can go.
    """
    limits, budget = limits_of(structure, config), budget or share_of(structure, config, weights)
    axes = budget.priced(structure.axes)
    wording = wording_of(budget)
    most = float(removable(axes, limits))

    def choose(amount: float) -> Kept:
        removed = search(
            config.search_name,
            axes,
            found,
            amount,
            limits=limits,
            attention_units=config.attention_units,
            attention_ratio=config.attention_ratio,
            scale=config.scale,
            by_sample=by_sample,
            loss=loss,
            divergence=divergence,
            seed=config.seed,
            wording=wording,
        )
        return {
            name: tuple(sorted(set(range(structure.by_name[name].units)) - set(gone)))
            for name, gone in removed.items()
        }

    def plan(keep: Kept) -> Plan:
        return Plan(keep, structure.architecture, structure.weights)

    def lost(keep: Kept) -> float:
        return budget.lost(plan(keep), structure)

    def missing(keep: Kept) -> float:
        """What the units of a choice cost, and does not go with them."""
        return sum(len(plan(keep).removed(axis)) * axis.cost for axis in axes) - lost(keep)

    wanted, steps = budget.wanted, [a.cost * limits.grid(a) * a.groups for a in axes]
    if budget.option == "--ratio":
        keep = choose(wanted)
        if not missing(keep):
            return keep
    else:
        keep = _corrected(choose, missing, lost, wanted, most, _foreseen(axes, limits))
        divided = config.attention_units is not None or config.attention_ratio is not None
        if divided or abs(lost(keep) - wanted) <= max(steps):
            return keep
    low = wanted if lost(keep) <= wanted else 0.0
    keep = min(keep, _nearest(choose, lost, wanted, low, most), key=lambda k: abs(lost(k) - wanted))
    # a search that compares no layer with another takes a step of each
    even = budget.option != "--ratio" and not SEARCHES[config.search_name].across
    if abs(lost(keep) - wanted) > (sum(steps) if even else max(steps)):
        raise SecateurError(
            f"{wording.asks} {budget.text(wanted)}, and the search comes no nearer than"
            f" {budget.text(lost(keep))}: units of --granularity {config.granularity} overlap.\n"
            f"Change {budget.option}, or name fewer granularities."
        )
    return keep


def _foreseen(axes: Sequence[Axis], limits: Limits) -> Kept:
    """A choice by which each fine axis loses one step: what a repair adds shows by it."""
    keep: Kept = {}
    for axis in limits.selected(axes):
        each = axis.units // axis.groups
        left = max(each - limits.grid(axis), limits.floor(axis))
        if not axis.of and axis.layer >= 0:
            keep[axis.name] = tuple(unit for unit in range(axis.units) if unit % each < left)
    return keep


def _corrected(
    choose: Callable[[float], Kept],
    missing: Callable[[Kept], float],
    lost: Callable[[Kept], float],
    wanted: float,
    most: float,
    foreseen: Kept,
) -> Kept:
    """The best of the choices for what is `wanted` and what the choice before was `missing`."""
    more = missing(foreseen) if wanted > 0 else 0.0
    best: Kept | None = None
    for _ in range(_CORRECTIONS):
        keep = choose(min(max(wanted + more, 0.0), most))
        if best is None or abs(lost(keep) - wanted) < abs(lost(best) - wanted):
            best = keep
        found = missing(keep)
        if abs(found - more) <= _NEAR * wanted or abs(lost(keep) - wanted) <= _NEAR * wanted:
            break
        more = found
    assert best is not None, "there is one correction at least"
    return best


def _nearest(
    choose: Callable[[float], Kept],
    lost: Callable[[Kept], float],
    wanted: float,
    low: float,
    high: float,
) -> Kept:
    """Of the choices for budgets from `low` to `high`, the one that loses nearest to `wanted`.

    By bisection: a larger budget never loses less.
    """
    best = choose(low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        keep = choose(middle)
        if abs(lost(keep) - wanted) < abs(lost(best) - wanted):
            best = keep
        low, high = (middle, high) if lost(keep) < wanted else (low, middle)
    return best


def check_reach(structure: Structure, config: PruneConfig, budget: Budget) -> None:
    """Find out before any pass that the budget cannot be met.

    Raises:
        SecateurError: it cannot, or settings and units do not go together.
    """
    check_settings(structure, config)
    limits = limits_of(structure, config)
    if budget.option == "--ratio":
        check_budget(structure.axes, limits, budget.wanted)
        return
    asked = f"{budget.option} {budget.asked}"
    if budget.wanted < 0:
        raise SecateurError(
            f"{asked} asks for nothing: the dense model has {budget.text(budget.dense)}.\n"
            f"Type less, {budget.option} {budget.spelled(0.8 * budget.dense)} for example."
        )
    keep = {
        axis.name: tuple(u for u in range(axis.units) if u % each < limits.floor(axis))
        for axis in limits.selected(structure.axes)
        for each in (axis.units // axis.groups,)
    }
    whole = Plan({}, structure.architecture, structure.weights)
    least = budget.dense - budget.lost(replace(whole, keep=keep), structure)
    if budget.target < least:
        raise SecateurError(
            f"{asked} is out of reach: {budget.text(least)} stay at least of the dense model's"
            f" {budget.text(budget.dense)}, as every layer keeps some of each.\n"
            f"Type {budget.option} {budget.spelled(least)}, or widen --layers."
        )


def wording_of(budget: Budget) -> Wording:
    """How errors of the search speak of a budget."""
    if budget.option == "--ratio":
        return Wording()
    return Wording(f"{budget.option} {budget.asked} asks for", budget.option, budget.text)


def share_of(structure: Structure, config: PruneConfig, weights: View | None = None) -> Budget:
    """The budget that --ratio gives; without `weights`, what units share counts several times."""
    found: Budget = BUDGETS["ratio"].function(
        asked=config.ratio or 0.0,
        structure=structure,
        of=config.of,
        cut=None if weights is None else shapes_left(structure, weights),
    )
    return found


def shapes_left(structure: Structure, weights: View) -> Callable[[Plan], Mapping[str, TensorSpec]]:
    """The shapes that a plan leaves of `weights`."""
    return lambda plan: pruned_view(weights, structure, plan).specs


def limits_of(structure: Structure, config: PruneConfig) -> Limits:
    """The layer range and the grid of widths that the settings ask for."""
    return Limits(
        layers_of(structure, config),
        config.align,
        layer_range(config.attention_layers, structure, "--attention-layers"),
        layer_range(config.mlp_layers, structure, "--mlp-layers"),
    )


def layers_of(structure: Structure, config: PruneConfig) -> tuple[int, ...] | None:
    """The layers that may lose units: those of --layers, or of the method; None for all."""
    start, end = config.untouched
    if config.layers is not None or not (start or end):
        return layer_range(config.layers, structure)
    count = structure.layers
    return tuple(range(round(start * count), count - round(end * count)))

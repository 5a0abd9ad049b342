"""The search stage: settings become limits and a budget, a search says which units stay."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from ..budgets import BUDGETS, Budget
from ..checkpoint import TensorSpec, View
from ..config import PruneConfig
from ..errors import SecateurError
from ..search import (
    SEARCHES,
    DivergenceOfUnits,
    Gradient,
    Limits,
    LossOfUnits,
    Rounds,
    Wording,
    check_budget,
    removable,
    search,
)
from ..structure import Plan, Structure
from ..surgery import pruned_view
from .checks import check_settings, layer_range
from .meeting import Choices, Kept, corrected, nearest, one_step


def kept_units(
    structure: Structure,
    found: Mapping[str, Tensor],
    config: PruneConfig,
    by_sample: Mapping[str, Tensor] | None = None,
    weights: View | None = None,
    loss: LossOfUnits | None = None,
    divergence: DivergenceOfUnits | None = None,
    gradient: Gradient | None = None,
    budget: Budget | None = None,
    rounds: Rounds | None = None,
) -> Kept:
    """Which units of the axes that may lose some stay; without a `budget`, the ratio's is taken.

    Where costs do not add up to what goes (`meeting`), the search is asked for more, or less, until
    what goes is what was asked.

    Raises:
        SecateurError: more is asked for than can go.
    """
    limits, budget = limits_of(structure, config), budget or share_of(structure, config, weights)
    axes = budget.priced(structure.axes)
    wording = wording_of(budget)

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
            gradient=gradient,
            rounds=rounds,
            seed=config.seed,
            wording=wording,
        )
        return {
            name: tuple(sorted(set(range(structure.by_name[name].units)) - set(gone)))
            for name, gone in removed.items()
        }

    def gone(keep: Kept) -> float:
        return budget.lost(Plan(keep, structure.architecture, structure.weights), structure)

    choices = Choices(choose, gone, axes, budget.wanted, float(removable(axes, limits)))
    return _met(choices, budget, limits, config)


def _met(choices: Choices, budget: Budget, limits: Limits, config: PruneConfig) -> Kept:
    """The choice that meets the budget.

    Raises:
        SecateurError: none does to one step.
    """
    steps = [axis.cost * limits.grid(axis) * axis.groups for axis in choices.axes]
    if budget.option == "--ratio":
        keep = choices.choose(budget.wanted)
        if not choices.missing(keep):
            return keep
    else:
        keep = corrected(choices, one_step(choices.axes, limits))
        divided = config.attention_units is not None or config.attention_ratio is not None
        asks = config.asks_loss or config.asks_gradient
        if divided or asks or choices.off(keep) <= max(steps):
            return keep  # to ask some searches twenty times more would take days
    keep = nearest(choices, keep)
    # a search that compares no layer with another takes a step of each
    even = budget.option != "--ratio" and not SEARCHES[config.search_name].across
    if choices.off(keep) > (sum(steps) if even else max(steps)):
        raise SecateurError(
            f"{wording_of(budget).asks} {budget.text(budget.wanted)}, and the search comes no"
            f" nearer than {budget.text(choices.lost(keep))}: units of --granularity"
            f" {config.granularity} overlap.\n"
            f"Change {budget.option}, or name fewer granularities."
        )
    return keep


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
            f"{asked} ({budget.text(budget.target)}) is out of reach: {budget.text(least)} stay at"
            f" least of the dense model's {budget.text(budget.dense)}, as every layer keeps"
            f" some of each.\nType {budget.option} {budget.spelled(least)}, or widen --layers."
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
        config.tensor_parallel,
    )


def layers_of(structure: Structure, config: PruneConfig) -> tuple[int, ...] | None:
    """The layers that may lose units: those of --layers, or of the method; None for all."""
    start, end = config.untouched
    if config.layers is not None or not (start or end):
        return layer_range(config.layers, structure)
    count = structure.layers
    return tuple(range(round(start * count), count - round(end * count)))

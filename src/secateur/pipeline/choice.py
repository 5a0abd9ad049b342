"""The search stage: settings become limits and a budget, a search says which units stay."""

from collections.abc import Callable, Mapping

from torch import Tensor

from ..checkpoint import View
from ..config import PruneConfig
from ..errors import SecateurError
from ..search import DivergenceOfUnits, Limits, LossOfUnits, check_budget, removable, search
from ..structure import Plan, Structure
from ..surgery import removed_parameters
from .checks import check_settings, layer_range

_HALVINGS = 24

Kept = dict[str, tuple[int, ...]]


def kept_units(
    structure: Structure,
    found: Mapping[str, Tensor],
    config: PruneConfig,
    by_sample: Mapping[str, Tensor] | None = None,
    weights: View | None = None,
    loss: LossOfUnits | None = None,
    divergence: DivergenceOfUnits | None = None,
) -> Kept:
    """Which units of the axes that may lose some stay.

    Where units of several granularities share parameters (the channels of a layer, and the layer),
    what goes is less than the sum of their costs. With the `weights` each parameter counts once,
    and the search is asked for more until as much goes as the settings say.

    Raises:
        SecateurError: the ratio asks for more than can go.
    """
    limits, wanted = limits_of(structure, config), budget_of(structure, config)

    def choose(budget: float) -> Kept:
        removed = search(
            config.search_name,
            structure.axes,
            found,
            budget,
            limits=limits,
            attention_units=config.attention_units,
            attention_ratio=config.attention_ratio,
            scale=config.scale,
            by_sample=by_sample,
            loss=loss,
            divergence=divergence,
            seed=config.seed,
        )
        return {
            name: tuple(sorted(set(range(structure.by_name[name].units)) - set(gone)))
            for name, gone in removed.items()
        }

    keep = choose(wanted)
    if weights is None:
        return keep

    def plan(keep: Kept) -> Plan:
        return Plan(keep, structure.architecture, structure.weights)

    def lost(keep: Kept) -> int:
        return removed_parameters(weights, structure, plan(keep))

    if lost(keep) == plan(keep).removed_cost(structure):
        return keep
    most = float(removable(structure.axes, limits))
    keep = _nearest(choose, lost, wanted, most)
    step = max(axis.cost * max(limits.grid(axis), axis.groups) for axis in structure.axes)
    if abs(lost(keep) - wanted) > step:
        raise SecateurError(
            f"The ratio asks for {wanted:,.0f} parameters, and the search comes no nearer than"
            f" {lost(keep):,}: units of --granularity {config.granularity} overlap.\n"
            "Change --ratio, or name fewer granularities."
        )
    return keep


def _nearest(
    choose: Callable[[float], Kept], lost: Callable[[Kept], int], wanted: float, most: float
) -> Kept:
    """Of the choices for budgets from `wanted` to `most`, the one that loses nearest to `wanted`.

    By bisection: a larger budget never loses less.
    """
    low, high = wanted, most
    best = choose(wanted)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        keep = choose(middle)
        if abs(lost(keep) - wanted) < abs(lost(best) - wanted):
            best = keep
        low, high = (middle, high) if lost(keep) < wanted else (low, middle)
    return best


def check_ratio(structure: Structure, config: PruneConfig) -> None:
    """Find out before any work is done that the ratio cannot be met.

    Raises:
        SecateurError: it cannot, or settings and units do not go together.
    """
    check_settings(structure, config)
    check_budget(structure.axes, limits_of(structure, config), budget_of(structure, config))


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


def budget_of(structure: Structure, config: PruneConfig) -> float:
    """How many parameters the settings ask to remove."""
    whole = structure.parameters if config.of == "model" else structure.prunable
    return config.ratio * whole

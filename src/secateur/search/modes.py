"""The searches: who competes with whom for the budget.

| name | attention | MLP | scores |
|---|---|---|---|
| `UL-UM` | the same share of each layer | the same share of each layer | raw |
| `UL-MM` | the same number in each layer | what the budget leaves, the same in each layer | raw |
| `AL-MM` | a number over all layers | what the budget leaves, over all layers | standardised |
| `AL-AM` | one ranking of everything, each unit at its cost | | standardised |
| `uniform` | as `UL-MM`, the number nearest to the ratio | what the budget leaves, nearest | raw |
| `global` | one ranking of everything, each unit at its cost | | per parameter |
| `two_stage` | as `AL-AM`, by instability; importance picks which units of an axis | | by sample |
| `joint` | as `AL-AM`, importance less a little instability | | standardised, by sample |
| `stability` | as `AL-AM`, by instability alone | | by sample |

The first four are FLAP's (2312.11983, section "Adaptive structure search"; the rounding is its
public code's): UL/AL uniform/adaptive over layers, UM/MM/AM uniform/manual/adaptive over modules.
`uniform` meets the budget where `UL-UM` rounds both shares down. `global` is for scores that
estimate a loss: what a parameter is worth in a head and in a channel then compares. (LLM-Pruner's
public code, 2305.11627, compares raw scores of units, whatever they cost: `--scale raw`.) The last
three are SAAP's: see `stability`.
Costs are parameters, biases included; the budget of a search is met to at most one step (one unit,
or `align` channels).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import SecateurError
from ..structure import Axis
from .budget import Limits, check_budget
from .removal import Removal, remove_lowest
from .stability import joint, steady, volatile
from .standardise import channel_sum, rescaled

Scores = Mapping[str, Float[Tensor, "unit width"]]
Samples = Mapping[str, Float[Tensor, "sample _"]]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a search.

    `budget` in parameters; `share` the ratio of it to the parameters of the axes that may lose
    some. Of attention, `attention_units` over all layers go, or the share `attention_ratio`; None
    means `share`, and the MLPs give the rest.
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


# (axes that may lose units, their removal steps, what is asked) -> steps lost by each axis
Search = Callable[[Sequence[Axis], Mapping[str, Removal], Request], dict[str, int]]


@dataclass(frozen=True, slots=True)
class Mode:
    """A search: who competes (`compete`), on which `scale` of unit scores, and which units go.

    `by_sample`, of the scores of an axis and those by sample, takes the place of a scale. `pick`,
    of the scores alone, chooses which units of an axis go where that is not the lowest.

    `across`: its ranking goes across layers, so that the scale of the scores matters, and whole
    blocks and layers may go. `divides`: it can be told how much attention is to lose, and `floors`
    that, where others take the nearest number.
    """

    compete: Search
    scale: str = "raw"
    by_sample: Callable[[Tensor, Tensor], Tensor] | None = None
    pick: Callable[[Tensor], Tensor] | None = None
    across: bool = False
    divides: bool = False
    floors: bool = False


def search(
    name: str,
    axes: Sequence[Axis],
    scores: Scores,
    budget: float,
    *,
    limits: Limits | None = None,
    attention_units: int | None = None,
    attention_ratio: float | None = None,
    scale: str | None = None,
    samples: Samples | None = None,
) -> dict[str, tuple[int, ...]]:
    """Units to remove from each axis, by the search `name`, for `budget` parameters in all.

    `attention_units` is the number of attention units to remove over all layers, `attention_ratio`
    the share of them, in the searches that divide the budget (`UL-MM`, `AL-MM`, `uniform`); None
    means the budget's share.
    `scale` (`raw`, `per-parameter`, `standardised`, `log`) takes the place of the search's own;
    the searches by sample have none.
    `samples` are unit scores for each calibration sample, which the searches by stability need.

    Raises:
        SecateurError: more is asked for than the floors and the layer range allow, there is no such
            scale, the search does not divide the budget and is told how, or it needs scores by
            sample and has none.
    """
    mode = SEARCHES[name]
    limits = limits or Limits()
    chosen = limits.selected(axes)
    if not mode.across and any(axis.floor == 0 for axis in chosen):
        raise SecateurError(
            f"The search {name!r} takes the same share of each layer, and of a whole block or layer"
            " there is no share.\nType --search AL-AM."
        )
    check_budget(axes, limits, budget)
    ranks = {axis.name: _ranks(name, axis, scores, samples, scale) for axis in chosen}
    ranks |= _whole_ones(name, chosen, scores, scale)
    removals = {axis.name: _removal(ranks[axis.name], axis, limits) for axis in chosen}
    share = budget / max(sum(axis.units * axis.cost for axis in chosen), 1)
    request = Request(budget, share, attention_units, attention_ratio)
    check_division(name, request.divides)
    steps = mode.compete(chosen, removals, request)
    if request.divides:
        _check_shares(mode, chosen, removals, steps, request)
    if mode.pick is not None:
        removals = {
            axis.name: _removal(mode.pick(scores[axis.name]), axis, limits) for axis in chosen
        }
    return {name: removals[name].units(count) for name, count in steps.items()}


def _whole_ones(
    name: str, axes: Sequence[Axis], scores: Scores, scale: str | None
) -> dict[str, Tensor]:
    """Ranks of units that are alone in their axis (blocks, layers): compared across layers."""
    found: dict[str, Tensor] = {}
    for granularity in {axis.granularity for axis in axes if axis.floor == 0}:
        alike = [axis for axis in axes if axis.granularity == granularity]
        sums = torch.stack([scores[axis.name].sum() for axis in alike])[:, None]
        values = rescaled(sums, scale or SEARCHES[name].scale, alike[0].cost)
        found |= {axis.name: value[None] for axis, value in zip(alike, values, strict=True)}
    return found


def _ranks(
    name: str, axis: Axis, scores: Scores, samples: Samples | None, scale: str | None
) -> Tensor:
    """What the search `name` ranks the units of `axis` by."""
    mode, own = SEARCHES[name], scores[axis.name]
    if mode.by_sample is None:
        return rescaled(own, scale or mode.scale, axis.cost)
    if samples is None:
        raise SecateurError(
            f"The search {name!r} compares scores of calibration samples, and this score has none."
            "\nType --search AL-AM."
        )
    return mode.by_sample(own, samples[axis.name])


def check_division(name: str, divided: bool) -> None:
    """Make sure that a search which is told how much attention loses listens to it.

    Raises:
        SecateurError: it does not.
    """
    if divided and not SEARCHES[name].divides:
        raise SecateurError(
            f"The search {name!r} finds out itself how much attention loses, and is not told.\n"
            "Type --search AL-MM or --search uniform."
        )


def _check_shares(
    mode: Mode,
    axes: Sequence[Axis],
    removals: Mapping[str, Removal],
    steps: Mapping[str, int],
    request: Request,
) -> None:
    """Make sure that attention was to lose no more than the budget, and the MLPs gave the rest."""
    attention = {axis.name: removals[axis.name] for axis in axes if axis.kind == "attention"}
    units = sum(axis.units for axis in axes if axis.kind == "attention")
    gone = sum(len(removals[name].units(steps[name])) for name in attention)
    if request.attention_units is not None:
        asked, within = float(request.attention_units), 0.0
    else:
        each = 1.0 if mode.floors else 0.5
        asked = (request.attention_ratio or 0.0) * units
        within = each * sum(removal.first for removal in attention.values()) + 1e-9
    if abs(gone - asked) > within:
        raise SecateurError(
            f"{asked:g} of the {units:,} attention units in {len(attention)} layers are to go, and"
            f" {gone:,} can: each layer keeps one, and by some searches all lose the same number.\n"
            "Change --attention-units (or --attention-ratio)."
        )
    lost, spent = _spent(steps, attention), _spent(steps, removals)
    slack = sum(
        int(r.costs.max()) for n, r in removals.items() if n not in attention and len(r.ends)
    )
    if lost > request.budget + slack or spent < request.budget - slack:
        raise SecateurError(
            f"The ratio asks for {request.budget:,.0f} parameters; attention loses {lost:,} of them"
            f" and the MLPs {spent - lost:,}.\nChange --attention-ratio (or --attention-units), or"
            " --ratio."
        )


def _removal(values: Float[Tensor, " unit"], axis: Axis, limits: Limits) -> Removal:
    return Removal.plan(
        values,
        axis.cost,
        align=limits.grid(axis),
        floor=limits.floor(axis),
        groups=axis.groups,
    )


def ul_um(
    axes: Sequence[Axis], removals: Mapping[str, Removal], request: Request
) -> dict[str, int]:
    """The same share of every axis, rounded down (so at most the budget)."""
    return {
        axis.name: removals[axis.name].steps_for(_floor(request.share * axis.units))
        for axis in axes
    }


def ul_mm(
    axes: Sequence[Axis], removals: Mapping[str, Removal], request: Request
) -> dict[str, int]:
    """The same number of attention units in each layer; MLP channels up to each layer's budget."""
    return _per_layer(axes, removals, request, nearest=False)


def uniform(
    axes: Sequence[Axis], removals: Mapping[str, Removal], request: Request
) -> dict[str, int]:
    """The same share of every layer: attention to the nearest unit, MLP nearest to the rest."""
    return _per_layer(axes, removals, request, nearest=True)


def al_mm(
    axes: Sequence[Axis], removals: Mapping[str, Removal], request: Request
) -> dict[str, int]:
    """The lowest attention units of all layers; then the lowest MLP channels of all layers."""
    attention = [axis for axis in axes if axis.kind == "attention"]
    wanted = request.attention_units
    if wanted is None:
        wanted = round(request.attention_share * sum(axis.units for axis in attention))
    ones = {
        axis.name: Removal(r.order, r.ends, r.scores, 1)
        for axis in attention
        for r in [removals[axis.name]]
    }
    steps = remove_lowest(ones, wanted, nearest=False)
    left = request.budget - _spent(steps, removals)
    channels = {axis.name: removals[axis.name] for axis in axes if axis.kind != "attention"}
    return steps | remove_lowest(channels, left, nearest=False)


def al_am(
    axes: Sequence[Axis], removals: Mapping[str, Removal], request: Request
) -> dict[str, int]:
    """One ranking of all units, each at its cost in parameters; nearest to the budget."""
    return remove_lowest(removals, request.budget, nearest=True)


SEARCHES = {
    "AL-AM": Mode(al_am, "standardised", across=True),
    "AL-MM": Mode(al_mm, "standardised", across=True, divides=True),
    "UL-MM": Mode(ul_mm, divides=True, floors=True),
    "UL-UM": Mode(ul_um),
    "uniform": Mode(uniform, divides=True),
    "global": Mode(al_am, "per-parameter", across=True),
    "two_stage": Mode(al_am, by_sample=steady, pick=channel_sum),
    "joint": Mode(al_am, by_sample=joint),
    "stability": Mode(al_am, by_sample=volatile),
}


def _per_layer(
    axes: Sequence[Axis],
    removals: Mapping[str, Removal],
    request: Request,
    *,
    nearest: bool,
) -> dict[str, int]:
    steps: dict[str, int] = {}
    layers = sorted({axis.layer for axis in axes})
    attending = len({axis.layer for axis in axes if axis.kind == "attention"})
    for layer in layers:
        here = [axis for axis in axes if axis.layer == layer]
        left = request.share * sum(axis.units * removals[axis.name].cost for axis in here)
        for axis in (axis for axis in here if axis.kind == "attention"):
            if request.attention_units is not None:
                wanted = request.attention_units // attending
            else:
                exact = request.attention_share * axis.units
                step = removals[axis.name].first  # heads of grouped queries go one from each group
                wanted = round(exact / step) * step if nearest else _floor(exact)
            steps[axis.name] = removals[axis.name].steps_for(wanted)
        left -= _spent(steps, {axis.name: removals[axis.name] for axis in here})
        channels = {axis.name: removals[axis.name] for axis in here if axis.kind != "attention"}
        steps |= remove_lowest(channels, left, nearest=nearest)
    return steps


def _floor(units: float) -> int:
    """Whole units; a share of a budget may lie a rounding error below them."""
    return int(units + 1e-9)


def _spent(steps: Mapping[str, int], removals: Mapping[str, Removal]) -> int:
    """Parameters that the first `steps` of the axes in `removals` take."""
    return sum(
        int(removal.costs[: steps[name]].sum())
        for name, removal in removals.items()
        if name in steps
    )

"""A search is run: scores become what it asks for, and its choice the units that go."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import SecateurError
from ..structure import Axis
from .budget import PLAIN, Limits, Wording, check_budget
from .joined import blocks_of, joined, parted
from .registry import SEARCHES, BySample, Gates, Gradient, Request, Scores, Search, Units
from .removal import Removal, cost_of, units_of
from .rounds import Rounds
from .standardise import rescaled

LossOfUnits = Callable[[Sequence[Units]], Float[Tensor, " choice"]]
DivergenceOfUnits = Callable[[Sequence[Units], int | None], Float[Tensor, " choice"]]


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
    by_sample: BySample | None = None,
    loss: LossOfUnits | None = None,
    divergence: DivergenceOfUnits | None = None,
    gradient: Gradient | None = None,
    rounds: Rounds | None = None,
    seed: int = 0,
    wording: Wording = PLAIN,
) -> dict[str, tuple[int, ...]]:
    """Units to remove from each axis, by the search `name`, for `budget` parameters in all.

    A budget in another currency than parameters has axes whose costs are in it, and a `wording`.

    `attention_units` is the number of attention units to remove over all layers, `attention_ratio`
    the share of them, in the searches that divide the budget (`UL-MM`, `AL-MM`, `uniform`); None
    means the budget's share.
    `scale` (`raw`, `per-parameter`, `standardised`, `log`) takes the place of the search's own;
    the searches by sample have none.
    `by_sample` are unit scores for each calibration sample, which the searches by stability need;
    `loss` gives one loss, fp64, for each of several choices of units by axis name, `divergence` how
    far each is from the dense model, `gradient` how far it is with units times gates, and which way
    these should go; `rounds` says how many there are of a search that goes in such, and has what
    they came to (None: all).

    Raises:
        SecateurError: more is asked for than the floors and the layer range allow, there is no such
            scale, the search does not divide the budget and is told how, it needs scores by sample
            or a loss and has none, or a user's search fails or misses the budget.
    """
    entry, limits = SEARCHES[name], limits or Limits()
    chosen = limits.selected(axes)
    check_search(name, chosen)
    check_budget(axes, limits, budget)
    lacking = {
        "loss": loss is None,
        "divergence": divergence is None,
        "gradient": gradient is None,
    }
    _check_given(entry, by_sample, lacking)
    removals = _ranked(chosen, limits, _ranks(entry, chosen, scores, scale))
    blocks = blocks_of(chosen) if entry.joins else {}
    removals = joined(removals, blocks)
    share = budget / max(sum(axis.units * axis.cost for axis in chosen), 1)
    request = Request(budget, share, attention_units, attention_ratio)
    check_division(name, request.divides)
    given: dict[str, Any] = {
        "axes": chosen,
        "removals": removals,
        "budget": budget,
        "loss": lambda choices: _losses(name, choices, removals, loss),
        "divergence": lambda choices, tokens: _losses(
            name, choices, removals, divergence and (lambda gone: divergence(gone, tokens))
        ),
        "gradient": lambda gates, tokens, turn: _gradient(
            name, gates, tokens, turn, removals, gradient
        ),
        "rounds": rounds or Rounds(),
        "generator": torch.Generator().manual_seed(seed),
        "scores": {axis.name: scores[axis.name] for axis in chosen},
        "by_sample": by_sample and {axis.name: by_sample[axis.name] for axis in chosen},
        "ranked": lambda values: _ranked(chosen, limits, values),
        "share": share,
        "request": request,
    }
    asked = {need: given[need] for need in entry.needs}
    choice = entry.called(f"The search {name!r} fails", **asked)
    units = units_of(choice, removals, f"The search {name!r} returned")
    if request.divides:
        _check_shares(entry, chosen, removals, units, request, wording)
    if entry.own:
        _check_met(name, removals, units, budget, wording)
    return dict(parted(units, removals, blocks))


def check_search(name: str, axes: Sequence[Axis]) -> None:
    """Make sure that the search `name` goes with the units of `axes`.

    Raises:
        SecateurError: it takes a share of each axis, and there is none.
    """
    if not SEARCHES[name].across and any(axis.floor == 0 for axis in axes):
        raise SecateurError(
            f"The search {name!r} takes the same share of each layer, and of a whole block or layer"
            " there is no share.\nType --search AL-AM."
        )


def _check_given(entry: Search, by_sample: BySample | None, lacking: Mapping[str, bool]) -> None:
    if "by_sample" in entry.needs and by_sample is None:
        raise SecateurError(
            f"The search {entry.name!r} compares scores of calibration samples, and this score has"
            " none.\nType --search AL-AM."
        )
    if any(need in entry.needs and lacks for need, lacks in lacking.items()):
        raise SecateurError(
            f"The search {entry.name!r} asks what the loss is without some units, and there is no"
            " text to take it on.\nType --calibration FILE.txt, or --search AL-AM."
        )


def _losses(
    name: str, choices: Any, removals: Mapping[str, Removal], loss: LossOfUnits | None
) -> Float[Tensor, " choice"]:
    assert loss is not None, "its absence was told"
    asked = f"The search {name!r} asks the loss of"
    losses = loss([units_of(choice, removals, asked) for choice in choices])
    if not torch.isfinite(losses).all():
        raise SecateurError(
            "The loss with some units masked is NaN or infinite.\nType --dtype float32."
        )
    return losses


def _gradient(
    name: str,
    gates: Any,
    tokens: int,
    turn: int,
    removals: Mapping[str, Removal],
    gradient: Gradient | None,
) -> tuple[float, Gates]:
    """The gradient of gates that may be anybody's.

    Raises:
        SecateurError: they are no gates of all axes.
    """
    assert gradient is not None, "its absence was told"
    counts = {axis: (len(one.order),) for axis, one in removals.items()}
    given = gates if isinstance(gates, Mapping) else {}
    if {axis: tuple(getattr(gate, "shape", ())) for axis, gate in given.items()} != counts:
        first, (count,) = next(iter(counts.items()))
        raise SecateurError(
            f"The search {name!r} asks for a gradient by gates that are not one for each unit of"
            f" each axis; {first!r}, for example, has {count} units."
        )
    return gradient(gates, tokens, turn)


def _ranks(
    entry: Search, axes: Sequence[Axis], scores: Scores, scale: str | None
) -> dict[str, Tensor]:
    """What the units of each axis are ranked by; those that are alone in theirs across layers."""
    used = entry.scale or "raw"
    if scale is not None and "by_sample" not in entry.needs:
        used = scale
    found = {axis.name: rescaled(scores[axis.name], used, axis.cost) for axis in axes}
    for granularity in {axis.granularity for axis in axes if axis.floor == 0}:
        alike = [axis for axis in axes if axis.granularity == granularity]
        sums = torch.stack([scores[axis.name].sum() for axis in alike])[:, None]
        values = rescaled(sums, used, torch.tensor([axis.cost for axis in alike]))
        found |= {axis.name: value[None] for axis, value in zip(alike, values, strict=True)}
    return found


def _ranked(
    axes: Sequence[Axis], limits: Limits, values: Mapping[str, Tensor]
) -> dict[str, Removal]:
    """The steps in which the axes lose their units, the lowest values first."""
    return {
        axis.name: Removal.plan(
            values[axis.name],
            axis.cost,
            align=limits.grid(axis),
            floor=limits.floor(axis),
            groups=axis.groups,
        )
        for axis in axes
    }


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
    entry: Search,
    axes: Sequence[Axis],
    removals: Mapping[str, Removal],
    units: Units,
    request: Request,
    wording: Wording,
) -> None:
    """Make sure that attention was to lose no more than the budget, and the MLPs gave the rest."""
    attention = {axis.name: removals[axis.name] for axis in axes if axis.kind == "attention"}
    whole = sum(axis.units for axis in axes if axis.kind == "attention")
    gone = sum(len(units[name]) for name in attention)
    if request.attention_units is not None:
        asked, within = float(request.attention_units), 0.0
    else:
        each = 1.0 if entry.floors else 0.5
        asked = (request.attention_ratio or 0.0) * whole
        within = each * sum(removal.first for removal in attention.values()) + 1e-9
    if abs(gone - asked) > within:
        raise SecateurError(
            f"{asked:g} of the {whole:,} attention units in {len(attention)} layers are to go, and"
            f" {gone:,} can: each layer keeps one, and by some searches all lose the same number.\n"
            "Change --attention-units (or --attention-ratio)."
        )
    lost = cost_of({name: units[name] for name in attention}, removals)
    spent, slack = cost_of(units, removals), _slack(removals, without=attention)
    if lost > request.budget + slack or spent < request.budget - slack:
        raise SecateurError(
            f"{wording.asks} {wording.text(request.budget)}; attention loses {wording.text(lost)}"
            f" and the MLPs {wording.text(spent - lost)}.\nChange --attention-ratio (or"
            f" --attention-units), or {wording.option}."
        )


def _check_met(
    name: str, removals: Mapping[str, Removal], units: Units, budget: float, wording: Wording
) -> None:
    """Make sure that a search of somebody's own meets the budget, to its largest step."""
    spent = cost_of(units, removals)
    largest = max((int(one.costs.max()) for one in removals.values() if len(one.ends)), default=0)
    if abs(spent - budget) > largest:
        raise SecateurError(
            f"The search {name!r} returned steps of {wording.text(spent)};"
            f" {wording.asks[0].lower()}{wording.asks[1:]} {wording.text(budget)}.\n"
            f"Change {wording.option}, or what the search returns."
        )


def _slack(removals: Mapping[str, Removal], without: Mapping[str, Removal] = {}) -> int:
    """Parameters of one step of each axis."""
    left = (removal for name, removal in removals.items() if name not in without)
    return sum(int(removal.costs.max()) for removal in left if len(removal.ends))

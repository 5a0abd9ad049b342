"""The order in which an axis loses its units, in steps that keep its width aligned."""

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..errors import SecateurError
from .registry import Choice


@dataclass(frozen=True)
class Removal:
    """Removal steps of one axis, least important first.

    Step s takes the units `order[ends[s-1]:ends[s]]`. Its score is the mean of its units' scores,
    so steps of one axis never decrease. Units beyond the last step stay whatever happens.
    A step takes the same number of units from each of the `groups`.
    """

    order: Int64[Tensor, " unit"]
    ends: Int64[Tensor, " step"]
    scores: Float[Tensor, " step"]
    cost: int
    groups: int = 1

    @classmethod
    def plan(
        cls,
        scores: Float[Tensor, " unit"],
        cost: int,
        *,
        align: int = 1,
        floor: int = 1,
        groups: int = 1,
    ) -> "Removal":
        """Steps that leave a multiple of `align` units, and never fewer than `floor`.

        The first step is shorter where the axis starts off the grid: 172 units go to 168, 160...
        With `groups`, both hold for each group, and a step takes the same number from each: its
        least important ones.
        """
        ranked = scores.view(groups, -1).argsort(dim=1, stable=True)
        units = ranked.shape[1]
        order = (ranked + torch.arange(groups)[:, None] * units).T.flatten()
        first = units % align or align
        ends = torch.arange(first, max(units - floor + 1, first), align) * groups
        starts = torch.cat([ends.new_zeros(1), ends[:-1]]) if len(ends) else ends
        sums = torch.cat([scores.new_zeros(1).double(), scores[order].double().cumsum(0)])
        means = (sums[ends] - sums[starts]) / (ends - starts)
        # One unit a step: its score exactly, not a difference of sums.
        exact = scores[order][: len(ends)] if align * groups == 1 else means.float()
        return cls(order, ends, exact, cost, groups)

    @property
    def costs(self) -> Int64[Tensor, " step"]:
        """Parameters that each step removes."""
        return torch.diff(self.ends, prepend=self.ends.new_zeros(1)) * self.cost

    @property
    def first(self) -> int:
        """Units that the first step removes; 1 if there is none."""
        return int(self.ends[0]) if len(self.ends) else 1

    def units(self, steps: int) -> tuple[int, ...]:
        """Units that the first `steps` steps remove, ascending."""
        if steps == 0:
            return ()
        return tuple(sorted(self.order[: int(self.ends[steps - 1])].tolist()))

    def steps_for(self, units: int) -> int:
        """The most steps that remove no more than `units` units."""
        return int((self.ends <= units).sum())


def remove_lowest(
    removals: Mapping[str, Removal], budget: float, *, nearest: bool
) -> dict[str, int]:
    """How many steps each axis loses if the lowest-scored steps of all go first.

    Steps go until the cost comes nearest to `budget` parameters (`nearest`), or stays at or below
    it; none goes for less than nothing. Ties go by the order of the axes.
    """
    counts = dict.fromkeys(removals, 0)
    if not removals:
        return counts
    scores = torch.cat([removal.scores for removal in removals.values()])
    costs = torch.cat([removal.costs for removal in removals.values()])
    owner = torch.cat(
        [torch.full((len(r.ends),), index) for index, r in enumerate(removals.values())]
    )
    order = scores.argsort(stable=True)
    spent = torch.cat([costs.new_zeros(1), costs[order].cumsum(0)]).double()
    taken = (
        int((spent - budget).abs().argmin())
        if nearest
        else int((spent <= max(budget, 0)).sum()) - 1
    )
    lost = torch.bincount(owner[order[:taken]], minlength=len(removals))
    return dict(zip(counts, lost.tolist(), strict=True))


def cost_of(choice: Choice, removals: Mapping[str, Removal]) -> int:
    """Parameters that go by a choice of steps or units."""
    found = units_of(choice, removals, "The choice has")
    return sum(len(units) * removals[name].cost for name, units in found.items())


def units_of(
    choice: object, removals: Mapping[str, Removal], who: str
) -> dict[str, tuple[int, ...]]:
    """Units that go by a choice, ascending, of all axes in `removals`; it may be anybody's.

    Raises:
        SecateurError: `who` has something else.
    """
    if not isinstance(choice, Mapping):
        raise SecateurError(
            f"{who} {type(choice).__name__}; expected a dict of the steps that go, by axis name."
        )
    for name in choice:
        if name not in removals:
            raise SecateurError(
                f"{who} steps of {name!r}; the axes that may lose units are named"
                f" {', '.join([*removals][:2])} and so on."
            )
    found = {
        name: _units(gone, removals[name], f"{who} {name!r}:") for name, gone in choice.items()
    }
    return found | {name: () for name in removals if name not in found}


def _units(gone: object, removal: Removal, who: str) -> tuple[int, ...]:
    """The units of so many steps, or those that are given; they must be as many as steps have."""
    try:
        steps = operator.index(gone)  # type: ignore[arg-type]
    except TypeError:
        return _given_units(gone, removal, who)
    if not 0 <= steps <= len(removal.ends):
        raise SecateurError(f"{who} {steps} steps; expected 0 to {len(removal.ends)}.")
    return removal.units(steps)


def _given_units(gone: object, removal: Removal, who: str) -> tuple[int, ...]:
    if not isinstance(gone, tuple):
        raise SecateurError(f"{who} {type(gone).__name__}; expected a number of steps.")
    count = len(removal.order)
    units = {unit for unit in gone if isinstance(unit, int) and 0 <= unit < count}
    counts = Counter(unit // (count // removal.groups) for unit in units)
    even = len(counts) in (0, removal.groups) and len(set(counts.values())) < 2
    if not even or len(gone) != len(units) or len(gone) not in (0, *removal.ends.tolist()):
        raise SecateurError(
            f"{who} units that are no steps; expected as many different ones of each of the"
            f" {removal.groups} groups as some of its {len(removal.ends)} steps take."
        )
    return tuple(sorted(units))

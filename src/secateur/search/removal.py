"""The order in which an axis loses its units, in steps that keep its width aligned."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Removal:
    """Removal steps of one axis, least important first.

    Step s takes the units `order[ends[s-1]:ends[s]]`. Its score is the mean of its units' scores,
    so steps of one axis never decrease. Units beyond the last step stay whatever happens.
    """

    order: Int64[Tensor, " unit"]
    ends: Int64[Tensor, " step"]
    scores: Float[Tensor, " step"]
    cost: int

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
        return cls(order, ends, exact, cost)

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

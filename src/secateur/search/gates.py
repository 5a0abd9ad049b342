"""Gates that are trained: all weights are frozen, and one number a unit decides what goes.

    g_u = sigmoid((p_u - t) / T)      t such that sum_u c_u (1 - g_u) = budget, before every step
    d_u = w_u (dD/dg_u / c_u - l)     w = 4 g (1 - g)     l = sum w dD/dg / sum w c
    p_u <- p_u - rate * mean(d_u) / sqrt(mean(d_u^2))       (running means: Adam)

D is the KL of the gated model to the dense one, on other calibration windows in every step, c what
a unit costs, and l the price of a parameter at the margin: who is worth less gives way. p begins as
a unit's place in the order of the scores, 0 to 1 by cost. The temperature T falls, so that gates
end near 0 and 1; the lowest p go. What has not moved nearer than the scores' own choice is dropped.

Only the choice is kept, no gate: a repair fits what stays anew, which a multiplier is part of. For
such a repair D is of consumers that are fitted by gates (pipeline), so that a unit is worth what
nothing else can stand in for; multipliers alone rank units as if nothing could.

Learned gates under a budget that holds in every step: GRASPrune (2604.19398), there with hard masks
and a straight-through estimator; here soft and annealed, as its gradient is that of the model that
is run. (L0 gates: Sheared LLaMA, 2310.06694; a deterministic form: 2603.08065.)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..progress import status, track
from .kl import nearest
from .registry import Gates, Gradient, Units, register_search
from .removal import Removal, remove_lowest
from .stability import Ranked

# Steps, and the tokens of each; a step costs three forwards over them.
STEPS, TOKENS = 40, 2**11
# How far a place can move in all, first and last temperature, of places from 0 to 1.
TRAVEL, FIRST, LAST = 1.0, 0.1, 0.002
# Of the running means of d and d^2, what stays in a step; of the largest, what no root is below.
_KEPT, _KEPT_SQUARES, _LEAST = 0.9, 0.95, 1e-3
# Tokens on which the choice is compared with that of the scores.
_COMPARED_ON = 2**12
_HALVINGS = 60


@register_search("gates", paper="https://arxiv.org/abs/2604.19398", scale="raw")
def gates(
    removals: Mapping[str, Removal], budget: float, gradient: Gradient, ranked: Ranked
) -> Units:
    """One multiplier a unit, trained by the KL to the dense model within the budget."""
    order = Order.of(removals)
    start = _lowest(ranked(order.by_axis(order.places)), budget)
    if budget <= 0:
        return start
    end = _lowest(ranked(order.by_axis(trained(order, budget, gradient))), budget)
    values = [gradient(order.without(one), _COMPARED_ON, 0)[0] for one in (start, end)]
    return end if values[1] < values[0] else start


@dataclass(frozen=True)
class Order:
    """The units of all axes in a row: what each costs, and its place by score, fp64.

    A place is the share of all cost that scores below the unit.
    """

    counts: Mapping[str, int]
    costs: Float[Tensor, " unit"]
    places: Float[Tensor, " unit"]

    @classmethod
    def of(cls, removals: Mapping[str, Removal]) -> "Order":
        """By score for what a unit costs; those that stay whatever happens come last."""
        counts = {name: len(one.order) for name, one in removals.items()}
        costs = [torch.full((counts[n],), float(one.cost)) for n, one in removals.items()]
        values = torch.cat([_values(one) for one in removals.values()])
        order, flat = values.argsort(stable=True), torch.cat(costs).double()
        below = flat[order].cumsum(0) - flat[order] / 2
        return cls(counts, flat, torch.empty_like(flat).index_copy(0, order, below / flat.sum()))

    def by_axis(self, row: Float[Tensor, " unit"]) -> dict[str, Tensor]:
        """The same by axis name, fp32."""
        parts = row.float().split(list(self.counts.values()))
        return dict(zip(self.counts, parts, strict=True))

    def row(self, by_axis: Gates) -> Float[Tensor, " unit"]:
        """What is by axis name in a row, fp64."""
        return torch.cat([by_axis[name] for name in self.counts]).double()

    def without(self, gone: Units) -> dict[str, Tensor]:
        """Gates of 0 for the units that go, and of 1."""
        found = {name: torch.ones(count) for name, count in self.counts.items()}
        for name, units in gone.items():
            found[name][list(units)] = 0.0
        return found


def _values(removal: Removal) -> Float[Tensor, " unit"]:
    """The score of each unit's step for what a unit costs."""
    found = torch.full((len(removal.order),), torch.inf)
    if len(removal.ends):
        lengths = torch.diff(removal.ends, prepend=removal.ends.new_zeros(1))
        each = (removal.scores / removal.cost).repeat_interleave(lengths)
        found[removal.order[: len(each)]] = each
    return found


def _lowest(removals: Mapping[str, Removal], budget: float) -> dict[str, tuple[int, ...]]:
    """The units that come first, and as near to the budget as a step more or less comes."""
    prices = {
        name: torch.cat([one.ends.new_zeros(1), (one.scores.double() * one.costs).cumsum(0)])
        for name, one in removals.items()
    }
    steps = nearest(remove_lowest(removals, budget, nearest=True), prices, removals, budget)
    return {name: removals[name].units(count) for name, count in steps.items()}


def trained(order: Order, budget: float, gradient: Gradient) -> Float[Tensor, " unit"]:
    """The places of all units after training."""
    places = order.places.clone()
    mean, squares = torch.zeros_like(places), torch.zeros_like(places)
    for step in track(range(STEPS), "gates", STEPS, "step"):
        temperature = FIRST * (LAST / FIRST) ** (step / max(STEPS - 1, 1))
        opened = within(places, order.costs, budget, temperature)
        value, by_gate = gradient(order.by_axis(opened), TOKENS, step)
        status(f"KL {value:.3f}")
        way = downwards(order.row(by_gate), opened, order.costs)
        mean = _KEPT * mean + (1 - _KEPT) * way
        squares = _KEPT_SQUARES * squares + (1 - _KEPT_SQUARES) * way.square()
        root = (squares / (1 - _KEPT_SQUARES ** (step + 1))).sqrt()
        moved = mean / (1 - _KEPT ** (step + 1)) / root.clamp(min=_LEAST * float(root.max()) or 1.0)
        places -= 2 * TRAVEL / STEPS * (1 - step / STEPS) * moved
    return places


def within(
    places: Float[Tensor, " unit"],
    costs: Float[Tensor, " unit"],
    budget: float,
    temperature: float,
) -> Float[Tensor, " unit"]:
    """Gates that take away what the budget asks for: sigmoids of places about one threshold."""
    far = 50 * temperature
    low, high = float(places.min()) - far, float(places.max()) + far
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        gone = (costs * torch.sigmoid((middle - places) / temperature)).sum()
        low, high = (middle, high) if float(gone) < budget else (low, middle)
    return torch.sigmoid((places - low) / temperature)


def downwards(
    by_gate: Float[Tensor, " unit"],
    opened: Float[Tensor, " unit"],
    costs: Float[Tensor, " unit"],
) -> Float[Tensor, " unit"]:
    """What to take off each place: above zero, a unit is worth less than its cost is at the margin.

    Where no gate is between 0 and 1, nothing is at the margin and all is zero.
    """
    weights = 4 * opened * (1 - opened)
    price = (weights * by_gate).sum() / (weights * costs).sum().clamp(min=1e-300)
    return weights * (by_gate / costs - price)

"""Greedy removal by the exact error of a cut without repair: what other removed units do counts.

With G = X^T X of the consumer's inputs and W its weight, S = G o (W^T W). Removing the channels P
changes the output, summed over tokens, by exactly

    E(P) = sum over i, j in P of S_ij

so that a unit u costs E_u + 2 sum over removed v of S_uv at its turn. The cheapest goes next; what
it takes and what others give back is seen, without an inverse. A unit's score is its cost at its
turn, and no less than that of any turn before it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from .obs import LATER
from .registry import importance

PAPER = "https://openreview.net/forum?id=xq3lza5IjN"


@importance("greedy", paper=PAPER)
def greedy(
    weight: Float[Tensor, "unit width fan"], input_gram: Float[Tensor, "channel channel"]
) -> Float[Tensor, " unit"]:
    """Squared error of the output at a unit's turn, after those that went before it."""
    units, width, fan = weight.shape
    rows = weight.reshape(units * width, fan).to(input_gram.dtype)
    shared = input_gram * (rows @ rows.T)
    if width > 1:
        shared = shared.view(units, width, units, width).sum(dim=(1, 3))
    costs = shared.diagonal().clone()
    found, floor = torch.zeros_like(costs), 0.0
    stays = torch.ones(units, dtype=torch.bool)
    for _ in range(units):
        unit = int(costs.where(stays, torch.inf).argmin())
        floor = max(floor * LATER, float(costs[unit]))
        found[unit] = floor
        stays[unit] = False
        costs += 2 * shared[unit]
    return found

"""Magnitude of weights: the baseline that needs no data. Of the consumer's:

    l1_j = sum_out |W_:j|        l2_j = sum_out W_:j^2

or of all members of a unit, as LLM-Pruner's public code has it: the mean over members of such sums,
channel by channel, and then the sum over the unit's channels.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..stats.taylor import folded
from .members import averaged
from .registry import importance

PAPER = "https://arxiv.org/abs/2305.11627"


@importance("magnitude-l1", paper=PAPER)
def l1(weight: Float[Tensor, "unit width fan"]) -> Float[Tensor, "unit width"]:
    """Sum of the magnitudes of the weights that read a channel."""
    return weight.abs().sum(dim=2)


@importance("magnitude-l2", paper=PAPER)
def l2(weight: Float[Tensor, "unit width fan"]) -> Float[Tensor, "unit width"]:
    """Sum of the squares of the weights that read a channel."""
    return weight.square().sum(dim=2)


def group_magnitude(
    weights: Sequence[Float[Tensor, "unit width fan"]], power: int
) -> Float[Tensor, " unit"]:
    """Mean over members of sum |W|^power, then the sum over a unit's channels."""
    sums = [weight.float().abs().pow(power).sum(dim=2) for weight in weights]
    channels = math.gcd(*(each.shape[1] for each in sums))
    return averaged(torch.stack([folded(each, channels) for each in sums])).sum(dim=1)

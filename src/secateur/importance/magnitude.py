"""Magnitude of weights: the baseline that needs no data. Of the consumer's:

l1_j = sum_out |W_:j|        l2_j = sum_out W_:j^2
"""

from jaxtyping import Float
from torch import Tensor

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

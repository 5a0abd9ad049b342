"""FLAP's metrics: a channel whose input hardly fluctuates can be replaced by its mean, a bias.

For input channel j of a consumer with weight W (out x in) and inputs X over calibration tokens:

    IFV_j  = var(X_j)
    WIFV_j = var(X_j) * sum_out W_:j^2
    WIFN_j = mean_out |W_:j| * ||X_j||

An, Zhao, Yu, Tang, Wang: Fluctuation-based Adaptive Structured Pruning for LLMs (2312.11983).

WIFN without standardisation, ranked within each layer, is Wanda-sp, their baseline: the score of
Sun, Liu, Bair, Kolter (Wanda, 2306.11695) for single weights, summed up to whole structures. Here
the inputs are those of the dense model, where FLAP's public code re-measures them on the cut
prefix.
"""

from jaxtyping import Float
from torch import Tensor

from .registry import importance

PAPER = "https://arxiv.org/abs/2312.11983"


@importance("ifv", paper=PAPER)
def ifv(input_var: Float[Tensor, "unit width"]) -> Float[Tensor, "unit width"]:
    """Variance of the consumer's input."""
    return input_var


@importance("wifv", paper=PAPER)
def wifv(
    weight: Float[Tensor, "unit width fan"], input_var: Float[Tensor, "unit width"]
) -> Float[Tensor, "unit width"]:
    """Variance of the consumer's input times the squared norm of the weights that read it."""
    return input_var * weight.square().sum(dim=2)


@importance("wanda-sp", paper="https://arxiv.org/abs/2306.11695")
@importance("wifn", paper=PAPER)
def wifn(
    weight: Float[Tensor, "unit width fan"], input_norm: Float[Tensor, "unit width"]
) -> Float[Tensor, "unit width"]:
    """Mean magnitude of the weights that read a channel times the norm of the channel."""
    return weight.abs().mean(dim=2) * input_norm

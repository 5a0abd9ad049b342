"""Wanda-sp: Wanda's weight-times-activation score, summed up to whole structures.

    s_j = mean_out |W_:j| * ||X_j||

Sun, Liu, Bair, Kolter (2306.11695) for single weights; the structured form is the baseline of
FLAP (2312.11983). It is FLAP's WIFN without standardisation, ranked within each layer; here the
inputs are those of the dense model, where FLAP's public code re-measures them on the cut prefix.
"""

from jaxtyping import Float
from torch import Tensor

from .registry import importance


@importance("wanda-sp", paper="https://arxiv.org/abs/2306.11695")
def wanda_sp(
    weight: Float[Tensor, "unit width fan"], input_norm: Float[Tensor, "unit width"]
) -> Float[Tensor, "unit width"]:
    """Mean magnitude of the weights that read a channel times the norm of the channel."""
    return weight.abs().mean(dim=2) * input_norm

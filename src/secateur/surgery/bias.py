"""FLAP's bias compensation: what the removed channels gave on average stays, as a bias.

    b_out = sum over removed channels j of W_out,j * mean(X_j)

A removed channel that is constant is then repaired exactly, and the mean error of the consumer's
output over the calibration tokens is zero. The public code overwrites an existing bias; here the
compensation is added to it. An, Zhao, Yu, Tang, Wang (2312.11983), equation of the baseline bias.
"""

from jaxtyping import Float
from torch import Tensor

from .repair import repair


@repair("bias", paper="https://arxiv.org/abs/2312.11983", biased=True)
def bias(
    weight: Float[Tensor, "removed width fan"], input_mean: Float[Tensor, "removed width"]
) -> Float[Tensor, " fan"]:
    """Add what the removed units gave on average (FLAP).

    [out], in fp64.
    """
    return (weight.double() * input_mean.double()[:, :, None]).sum(dim=(0, 1))

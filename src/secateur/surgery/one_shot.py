"""What a consumer becomes when channels go, by statistics of the dense model alone.

With C the covariance of its inputs over tokens, m their means, K the channels that stay and R those
that go,

    W'_K = W_K + W_R C_RK (C_KK + lambda D)^-1        b' = b + (W - W') m

is the fit of `refit` to the consumer's own output. It knows nothing of what layers before have
lost, and so serves for any set of channels, in any order: to compare many, not to cut by.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .normal import Normal
from .refit import DAMPING, refit

# Statistics of its inputs that it takes.
FITTED_BY = frozenset({"input_gram", "input_mean", "input_var"})


def one_shot(
    weight: Float[Tensor, "out in"],
    gone: Int64[Tensor, " gone"],
    *,
    input_gram: Float[Tensor, "in in"],
    input_mean: Float[Tensor, " in"],
    input_var: Float[Tensor, " in"],
    damping: float = DAMPING,
    where: str = "",
) -> tuple[Float[Tensor, "out kept"], Float[Tensor, " out"]]:
    """The weight without the channels that are `gone`, fitted, and what its bias gains; fp32.

    `input_gram` is X^T X of the inputs, `input_mean` and `input_var` are of each over tokens.

    Raises:
        SecateurError: sums that are not finite.
    """
    weight, mean = weight.double(), input_mean.double()
    stays = torch.ones(len(mean), dtype=torch.bool)
    stays[gone] = False
    kept = stays.nonzero().flatten()
    fitted = weight[:, kept]
    if len(kept):
        power = (input_var.double() + mean.square()).sum()
        tokens = float(input_gram.diagonal().double().sum() / power) if power > 0 else 1.0
        spread = input_gram[kept].double() - tokens * torch.outer(mean[kept], mean)
        lost = weight[:, gone]
        normal = Normal(
            count=max(round(tokens), 1),
            mean=mean[kept],
            left=lost @ mean[gone],
            spread=spread[:, kept],
            shared=spread[:, gone] @ lost.T,
            square=0.0,
        )
        fitted = fitted + refit(normal, damping, where=where).change
    return fitted.float(), (weight @ mean - fitted @ mean[kept]).float()

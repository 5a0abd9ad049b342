"""What a consumer becomes when channels go, by statistics of the dense model alone.

With C the covariance of its inputs over tokens, m their means, D the diagonal of their powers, K
the channels that stay and R those that go,

    A = C + lambda D        W'_K = W_K + C_KR W_R A_KK^-1 = (W C + lambda W D)_K A_KK^-1
                            b'   = b + (W - W') m

is the fit of `refit` to the consumer's own output. It knows nothing of what layers before have
lost, and so serves for any set of channels, in any order: to compare many, not to cut by.

Of sets that grow, the channels in the order in which they stay, one factor serves all: A_KK = L_k
L_k^T with L_k the first rows and columns of that of A.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..solve import factor
from .refit import DAMPING

# Statistics of its inputs that it takes.
FITTED_BY = frozenset({"input_gram", "input_mean", "input_var"})


def one_shot(
    weight: Float[Tensor, "out in"],
    gone: Sequence[Int64[Tensor, " _"]],
    *,
    input_gram: Float[Tensor, "in in"],
    input_mean: Float[Tensor, " in"],
    input_var: Float[Tensor, " in"],
    damping: float = DAMPING,
    where: str = "",
) -> Iterator[tuple[Float[Tensor, "out kept"], Float[Tensor, " out"]]]:
    """The weight without each of the sets `gone`, fitted, and what its bias gains; fp32.

    Each set has all channels of the one before it, and more. `input_gram` is X^T X of the inputs,
    `input_mean` and `input_var` are of each over tokens.

    Raises:
        SecateurError: sums that are not finite.
    """
    weight, mean = weight.double(), input_mean.double()
    order = _as_they_stay(gone, len(mean))
    spread, scale = of_power_one(input_gram, input_mean, input_var)
    turned = weight.T / scale[:, None]
    factored = factor(spread[order][:, order], damping, where=where)
    right = (spread @ turned + factored.damping * turned)[order]
    half = torch.linalg.solve_triangular(factored.lower, right, upper=False)
    for channels in gone:
        count = len(order) - len(channels)
        upper = factored.lower[:count, :count].T
        found = torch.linalg.solve_triangular(upper, half[:count], upper=True)
        stays, back = order[:count].sort()
        fitted = (found[back] * scale[stays, None]).T
        yield fitted.float(), (weight @ mean - fitted @ mean[stays]).float()


def of_power_one(
    input_gram: Float[Tensor, "in in"],
    input_mean: Float[Tensor, " in"],
    input_var: Float[Tensor, " in"],
) -> tuple[Float[Tensor, "in in"], Float[Tensor, " in"]]:
    """Covariance of inputs that are multiplied so that the power of each is one, fp64; by what.

    The damping is then the same for every channel.
    """
    mean = input_mean.double()
    power = input_var.double() + mean.square()
    whole = float(power.sum())
    tokens = float(input_gram.diagonal().double().sum()) / whole if whole > 0 else 1.0
    scale = torch.where(power > 0, power, torch.ones_like(power)).rsqrt()
    spread = input_gram.double() / tokens - torch.outer(mean, mean)
    return spread * scale * scale[:, None], scale


def _as_they_stay(gone: Sequence[Int64[Tensor, " _"]], channels: int) -> Int64[Tensor, " channel"]:
    """All channels, those that are in the fewest sets first."""
    lost = torch.zeros(channels, dtype=torch.int64)
    for own in gone:
        lost[own] += 1
    return lost.argsort(stable=True)

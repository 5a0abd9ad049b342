"""What a consumer becomes when channels go a little: the fit of `one_shot`, with gates.

With A = C + lambda D its damped covariance over tokens (powers of one: every channel divided by the
root of its own), and a gate g_c of each channel in (0, 1],

    W'^T = (A + N)^-1 A W^T       N = diag((1 - g) / g)       b' = b + (W - W') m

N is the noise that a channel would have to carry to be read as little: of one that is correlated
with no other, W' = g W, a multiplier. At g = 1 that is W, and at 0 the channel is not there and the
others are fitted to what it gave: `one_shot`. Between, everything has a gradient:

    dL/dg_c = sum_o [ (A + N)^-1 dL/dW'^T ]_co W'_oc / g_c^2

With s = sqrt(g) and B = s A s + (1 - g), (A + N)^-1 = s B^-1 s: nothing is divided by a small gate
before B, which is never near singular, has been factored. This project's own.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..solve import Factor, factor
from .one_shot import of_power_one
from .refit import DAMPING

# A gate of 0 counts as this.
_LEAST = 1e-6


@dataclass(frozen=True)
class GatedFit:
    """A consumer's fitted weight, and what its bias gains, fp32; and the way back to the gates."""

    weight: Float[Tensor, "out in"]
    added: Float[Tensor, " out"]
    gates: Float[Tensor, " in"]
    mean: Float[Tensor, " in"]
    scale: Float[Tensor, " in"]
    factored: Factor

    def gradient(
        self, by_weight: Float[Tensor, "out in"], by_bias: Float[Tensor, " out"]
    ) -> Float[Tensor, " in"]:
        """The gradient of a loss by the gates from those by the fitted weight and bias, fp32."""
        whole = by_weight.double() - torch.outer(by_bias.double(), self.mean)
        root = self.gates.sqrt()[:, None]
        back = self.factored.solve(root * (whole * self.scale).T)
        fitted = (self.weight.double() / self.scale).T / root
        return ((back * fitted).sum(dim=1) / self.gates).float()


def gated_fit(
    weight: Float[Tensor, "out in"],
    gates: Float[Tensor, " in"],
    *,
    input_gram: Float[Tensor, "in in"],
    input_mean: Float[Tensor, " in"],
    input_var: Float[Tensor, " in"],
    damping: float = DAMPING,
    where: str = "",
) -> GatedFit:
    """The weight fitted by gates of its input channels; statistics as of `one_shot`.

    Raises:
        SecateurError: sums that are not finite.
    """
    weight, mean = weight.double(), input_mean.double()
    gates = gates.double().clamp(_LEAST, 1)
    matrix, scale = of_power_one(input_gram, input_mean, input_var)
    matrix.diagonal().add_(damping)
    root = gates.sqrt()
    matrix = matrix * root * root[:, None]
    matrix.diagonal().add_(1 - gates)
    factored = factor(matrix, 0.0, where=where)
    # (A + N)^-1 A = 1 - (A + N)^-1 N, without a product with A
    turned = weight.T / scale[:, None]
    lost = root[:, None] * factored.solve(((1 - gates) / root)[:, None] * turned)
    fitted = ((turned - lost) * scale[:, None]).T
    return GatedFit(
        fitted.float(), (weight @ mean - fitted @ mean).float(), gates, mean, scale, factored
    )

"""SAAP: coarse and fine scores as outputs with Gaussian noise of their own, fitted in closed form.

With s_k = log sigma_k^2 the negative log-likelihood of a scope,

    sum_g 1/2 e^-s_1 x_1g + 1/2 e^-s_2 x_2g + 1/2 (s_1 + s_2),

is strictly convex, and least at sigma_k^2 = m_k = mean over the scope of x_k:

    I_g = x_1g / (2 m_1) + x_2g / (2 m_2) + 1/2 log(m_1 m_2)

Within a scope the logarithm is constant; across scopes it alone carries the scale. The paper
(2412.15127) gives the form sum_m I_m / (2 sigma_m^2) + log sigma_m of Kendall and Gal (CVPR 2018);
that x_k takes the place of the squared error is this project's completion.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ..registry import choose
from .registry import Fused, Scope, fusion

SAAP = "https://arxiv.org/abs/2412.15127"

# Mean below which a granularity counts as zero: its logarithm stays finite.
EPSILON = 1e-30


@fusion("homoscedastic", paper=SAAP)
def homoscedastic(scopes: Mapping[str, Scope], *, scope: str = "layer_kind") -> dict[str, Fused]:
    """Each score over its noise, the noise fitted to the scope (`layer_kind`) or to all (`global`).

    Raises:
        SecateurError: no such scope of fitting.
    """
    choose("scope of the fusion 'homoscedastic':", scope, dict.fromkeys(("layer_kind", "global")))
    together = torch.cat([torch.stack(own.pair()) for own in scopes.values()], dim=1)
    return {
        axis: _fused(own, variances(together if scope == "global" else torch.stack(own.pair())))
        for axis, own in scopes.items()
    }


def variances(scores: Float[Tensor, "2 unit"]) -> Float[Tensor, "2"]:
    """The noise of the two scores that makes them most likely."""
    return scores.double().mean(dim=1).clamp(min=EPSILON)


def _fused(own: Scope, noise: Float[Tensor, "2"]) -> Fused:
    """Scores by sample come without the logarithm: it would shift their mean, not their spread."""
    weights = 1 / (2 * noise)
    scores = torch.stack(own.pair())
    means = weights * scores.mean(dim=1)
    shares = means / means.sum() if means.sum() > 0 else torch.full_like(means, 0.5)
    by_sample = None
    if own.coarse_by_sample is not None and own.fine_by_sample is not None:
        pair = torch.stack(own.pair_by_sample())
        by_sample = torch.einsum("k,knu->nu", weights, pair).float()
    fused = weights @ scores + noise.log().sum() / 2
    return Fused(fused.float(), shares.float(), by_sample=by_sample)

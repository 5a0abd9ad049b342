"""SAAP by replicates: each score weighted by how little it varies from sample to sample.

    I = (x_1 / s_1^2 + x_2 / s_2^2) / (1 / s_1^2 + 1 / s_2^2)

on scores over their scope mean; s_k^2 is their variance over calibration samples, averaged over the
scope's units. (Never fitted jointly with the means: that likelihood has no bound.) This project's
completion of 2412.15127.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from .blend import blended, relative
from .homoscedastic import SAAP
from .registry import BY_SAMPLE, Fused, Scope, fusion

# Variance of scores with mean 1 below which samples count as identical.
_EPSILON = 1e-12


@fusion("precision", paper=SAAP, needs=BY_SAMPLE)
def precision(scopes: Mapping[str, Scope]) -> dict[str, Fused]:
    """Each score by the inverse of its variance over calibration samples."""
    alphas = {axis: shares(*scope.pair_by_sample()) for axis, scope in scopes.items()}
    return blended(scopes, alphas)


def shares(
    coarse: Float[Tensor, "sample unit"], fine: Float[Tensor, "sample unit"]
) -> Float[Tensor, "2"]:
    """Inverse variances of the two scores over samples, to a sum of 1."""
    spread = torch.stack([relative(scores).var(dim=0).mean() for scores in (coarse, fine)])
    precise = 1 / spread.clamp(min=_EPSILON)
    return precise / precise.sum()

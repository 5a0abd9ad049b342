"""A blend of two scores, each relative to its mean over the scope.

    c_hat = c / mean(c),  f_hat = f / mean(f),  I = alpha_c c_hat + alpha_f f_hat

with alpha on the simplex, so that every fused value lies between the two.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import SecateurError
from .registry import Fused, Scope

HYWIA = "https://arxiv.org/abs/2403.10799"

_TINY = torch.finfo(torch.float64).tiny


def relative(scores: Float[Tensor, "*sample unit"]) -> Float[Tensor, "*sample unit"]:
    """Scores over their mean, fp64; zeros stay zeros."""
    scores = scores.double()
    return scores / scores.mean().clamp(min=_TINY)


def attention(agreement: Float[Tensor, "*scope 2"], tau: float) -> Float[Tensor, "*scope 2"]:
    """The softmax over the two granularities of how well each agrees with the query.

    Raises:
        SecateurError: the temperature is not positive.
    """
    if not tau > 0:
        raise SecateurError(f"tau = {tau} will not do: a temperature is above 0, for example 0.1.")
    return torch.softmax(agreement / tau, dim=-1)


def blended(scope: Scope, alpha: Float[Tensor, "2"]) -> Fused:
    """The scores of `scope` in the shares `alpha` (coarse, fine)."""
    alpha = alpha.double()
    scores = _weighted(alpha, scope.coarse, scope.fine)
    assert scores is not None, "a fusion is given the scores it needs"
    means = [0.0 if x is None else float(x.double().mean()) for x in (scope.coarse, scope.fine)]
    samples = None
    if scope.coarse_samples is not None and scope.fine_samples is not None:
        samples = _weighted(alpha, scope.coarse_samples, scope.fine_samples)
    scale = float(alpha[0]) * means[0] + float(alpha[1]) * means[1]
    return Fused(scores.float(), alpha.float(), scale, None if samples is None else samples.float())


def _weighted(
    alpha: Float[Tensor, "2"], coarse: Tensor | None, fine: Tensor | None
) -> Tensor | None:
    """The blend of the parts that are there; a part that is not has no share."""
    parts = [
        share * relative(part)
        for share, part in zip(alpha, (coarse, fine), strict=True)
        if part is not None
    ]
    return sum(parts[1:], parts[0]) if parts else None

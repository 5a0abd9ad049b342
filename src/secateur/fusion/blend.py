"""A blend of two scores, each relative to its mean over the scope.

    c_hat = c / mean(c),  f_hat = f / mean(f),  I = alpha_c c_hat + alpha_f f_hat

with alpha on the simplex, so that every fused value lies between the two.
"""

from collections.abc import Mapping

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


def blended(
    scopes: Mapping[str, Scope], alphas: Mapping[str, Float[Tensor, "2"]]
) -> dict[str, Fused]:
    """The scores of every scope in its shares (coarse, fine) of `alphas`.

    The scale is the scope's mean of each score over that of all scopes, in the same shares: coarse
    scores are many times smaller than fine ones, and a scope must not lose for leaning to them.
    """
    overall = {
        part: float(torch.cat([own.double() for own in given]).mean())
        for part in ("coarse", "fine")
        if (given := [s for scope in scopes.values() if (s := getattr(scope, part)) is not None])
    }
    return {axis: _blended(scope, alphas[axis], overall) for axis, scope in scopes.items()}


def _blended(scope: Scope, alpha: Float[Tensor, "2"], overall: Mapping[str, float]) -> Fused:
    alpha = alpha.double()
    scores = _weighted(alpha, scope.coarse, scope.fine)
    scale = sum(
        float(share * part.double().mean()) / max(overall[name], _TINY)
        for share, name in zip(alpha, ("coarse", "fine"), strict=True)
        if (part := getattr(scope, name)) is not None
    )
    by_sample = None
    if scope.coarse_by_sample is not None and scope.fine_by_sample is not None:
        by_sample = _weighted(alpha, scope.coarse_by_sample, scope.fine_by_sample).float()
    return Fused(scores.float(), alpha.float(), scale, by_sample)


def _weighted(alpha: Float[Tensor, "2"], coarse: Tensor | None, fine: Tensor | None) -> Tensor:
    """The blend of the parts that are there; a part that is not has no share."""
    parts = [
        share * relative(part)
        for share, part in zip(alpha, (coarse, fine), strict=True)
        if part is not None
    ]
    return sum(parts[1:], parts[0])

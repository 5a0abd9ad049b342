"""Least-squares refit of a consumer, as a ridge toward the kept weights and not toward zero.

With Z the student's inputs (kept channels), R = T - Z W^T - b what the kept weights leave of the
target T, and Z_c, R_c the same about their means over tokens:

    dW^T = (Z_c^T Z_c + mu I)^-1 Z_c^T R_c,   mu = lambda trace(Z^T Z) / in
    db   = mean(R) - dW mean(Z)

which minimises |R - Z dW^T - 1 db^T|^2 + mu |dW|^2: the constant column is not damped. At infinite
lambda only db is left, and with the dense model's output as target that is FLAP's bias. Layer-wise
least squares after HyWIA (2403.10799); the ridge toward the kept weights is this project's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import SecateurError
from .normal import Normal
from .solve import factor

# From a light touch to one that only moves weights that many tokens speak for.
DAMPINGS = (0.001, 0.01, 0.1, 1.0)
DAMPING = 0.01


@dataclass(frozen=True)
class Fit:
    """What a repair adds to a consumer: dW and db; `damping` is the lambda in force."""

    change: Float[Tensor, "out in"]
    added: Float[Tensor, " out"]
    damping: float
    condition: float
    warnings: tuple[str, ...] = ()


def refit(normal: Normal, damping: float = DAMPING, *, affine: bool = True, where: str = "") -> Fit:
    """The change of the kept weights that fits the target, damped by `damping` (lambda).

    `where` names the layer in warnings and errors.

    Raises:
        SecateurError: a negative damping, no token, or sums that are not finite.
    """
    if not damping >= 0:
        raise SecateurError(f"damping = {damping} will not do: 0 or more, for example {DAMPING}.")
    if normal.count == 0:
        raise SecateurError(f"No token reached {where}, so there is nothing to fit it to.")
    mean = normal.input_sum / normal.count
    left = normal.residual_sum / normal.count
    if math.isinf(damping):
        still = torch.zeros_like(normal.cross.T)
        return Fit(still, left if affine else torch.zeros_like(left), damping, 1.0)
    products, cross = normal.inputs, normal.cross
    if affine:
        products = products - normal.count * torch.outer(mean, mean)
        cross = cross - normal.count * torch.outer(mean, left)
    size = float(normal.inputs.diagonal().mean())
    factored = factor(products, damping * size, where=where)
    change = factored.solve(cross).T
    added = left - change @ mean if affine else torch.zeros_like(left)
    used = factored.damping / size if factored.warning and size > 0 else damping
    warnings = () if factored.warning is None else (factored.warning,)
    return Fit(change, added, used, factored.condition, warnings)


def refit_on_held_out(
    normal: Normal,
    held_out: Normal,
    dampings: Sequence[float] = DAMPINGS,
    *,
    affine: bool = True,
    where: str = "",
) -> Fit:
    """The refit to `normal` whose error on other tokens is least, of those with `dampings`.

    Where two are alike the stronger damping wins.

    Raises:
        SecateurError: as `refit`.
    """
    fits = [refit(normal, damping, affine=affine, where=where) for damping in dampings]
    return min(fits, key=lambda fit: (held_out.error(fit.change, fit.added), -fit.damping))

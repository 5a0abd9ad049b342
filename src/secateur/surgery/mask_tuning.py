"""Mask tuning: one scale for each kept unit, the least a repair can do.

With y_u = Z_u W_u^T what unit u gives, and R = T - sum_u y_u - b:

    min_s |sum_u (s_u - 1) y_u - R|^2 + mu |s - 1|^2,   mu = 1
    N_uv = sum over channels i of u, j of v of (W^T W o Z^T Z)_ij,   r_u = sum_i (W^T o Z^T R)_i.
    (N + mu I) (s - 1) = r

Kwon, Kim, Mahoney, Hassoun, Keutzer, Gholami (2204.09656). They stop at the first layer whose scale
leaves [-10, 10]; so does the caller here, by `sane`.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .normal import Normal
from .refit import Fit
from .solve import factor

DAMPING = 1.0
LIMIT = 10.0


def mask_tuning(
    normal: Normal,
    weight: Float[Tensor, "out in"],
    owner: Int64[Tensor, " in"],
    damping: float = DAMPING,
    *,
    where: str = "",
) -> tuple[Float[Tensor, " unit"], Fit]:
    """The scale of every unit, and the change of the kept weights that it amounts to.

    `owner` says to which kept unit (from 0) a channel belongs; -1 to none, and it stays as it is.

    Raises:
        SecateurError: sums that are not finite.
    """
    weight = weight.to(normal.inputs.dtype)
    members = torch.zeros(len(owner), int(owner.max()) + 1, dtype=weight.dtype)
    owned = (owner >= 0).nonzero().flatten()
    members[owned, owner[owned]] = 1
    members = members.to(weight.device)
    matrix = members.T @ ((weight.T @ weight) * normal.inputs) @ members
    right = members.T @ (weight.T * normal.cross).sum(dim=1, keepdim=True)
    factored = factor(matrix, damping, where=where)
    moved = factored.solve(right).flatten()
    warnings = () if factored.warning is None else (factored.warning,)
    added = torch.zeros_like(normal.residual_sum)
    change = weight * (members @ moved)
    return 1 + moved, Fit(change, added, factored.damping, factored.condition, warnings)


def sane(scales: Float[Tensor, " unit"]) -> bool:
    """Whether all scales lie in [-10, 10]."""
    return bool((scales.abs() <= LIMIT).all())

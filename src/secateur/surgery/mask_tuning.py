"""Mask tuning: one scale for each kept unit, the least a repair can do.

With y_u = Z_u W_u^T what unit u gives, and R = T - sum_u y_u - b:

    min_s |sum_u (s_u - 1) y_u - R|^2 + mu |s - 1|^2,   mu = 1
    N_uv = sum over channels i of u, j of v of (W^T W o Z^T Z)_ij,   r_u = sum_i (W^T o Z^T R)_i.
    (N + mu I) (s - 1) = r

Kwon, Kim, Mahoney, Hassoun, Keutzer, Gholami (2204.09656). They stop at the first layer whose scale
leaves [-10, 10]; so does this here.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..solve import factor
from .normal import Normal
from .refit import Fit
from .repair import repair

DAMPING = 1.0
LIMIT = 10.0


@repair("mask-tuning", paper="https://arxiv.org/abs/2204.09656")
def mask_tuning(
    normal: Normal,
    weight: Float[Tensor, "out in"],
    owner: Int64[Tensor, " in"],
    damping: float | None = None,
    where: str = "",
) -> Fit:
    """Scale each kept unit by least squares, layer after layer (Kwon et al.).

    `owner` says to which kept unit (from 0) a channel belongs; -1 to none, and it stays as it is.

    Raises:
        SecateurError: sums that are not finite.
    """
    normal = normal.double()
    weight = weight.double()
    members = torch.zeros(len(owner), int(owner.max()) + 1, dtype=weight.dtype)
    owned = (owner >= 0).nonzero().flatten()
    members[owned, owner[owned]] = 1
    members = members.to(weight.device)
    matrix = members.T @ ((weight.T @ weight) * normal.inputs) @ members
    right = members.T @ (weight.T * normal.cross).sum(dim=1, keepdim=True)
    factored = factor(matrix, DAMPING if damping is None else damping, where=where)
    moved = factored.solve(right).flatten()
    warnings = () if factored.warning is None else (factored.warning,)
    sane = bool(((1 + moved).abs() <= LIMIT).all())
    if not sane:
        why = f"{where}: a scale left [-10, 10]; nothing from here on is tuned"
        warnings = (*warnings, why)
    added = torch.zeros_like(normal.left)
    change = weight * (members @ moved)
    condition, doubt = factored.condition, normal.noise * factored.condition
    return Fit(change, added, factored.damping, condition, warnings, not sane, doubt)

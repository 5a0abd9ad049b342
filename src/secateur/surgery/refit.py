"""Least-squares refit of a consumer, as a ridge toward the kept weights and not toward zero.

With Z the student's inputs (kept channels), R = T - Z W^T - b what the kept weights leave of the
target T, and Z_c, R_c the same about their means over tokens:

    dW^T = (Z_c^T Z_c + lambda D)^-1 Z_c^T R_c,   D = diag(Z^T Z)
    db   = mean(R) - dW mean(Z)

which minimises |R - Z dW^T - 1 db^T|^2 + lambda |dW D^1/2|^2: the constant column is not damped,
and every other by what it gives. So the fit does not see the units that a channel is measured in,
and a channel a thousand times the others (real models have some, in the first token of a window)
does not damp away the rest, as a multiple of the identity would. At infinite lambda only db is
left, and with the dense model's output as target that is FLAP's bias. Layer-wise least squares
after HyWIA (2403.10799); the ridge toward the kept weights is this project's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import SecateurError
from .normal import Normal
from .repair import repair
from .solve import factor

# From a light touch to the bias alone.
DAMPINGS = (0.001, 0.01, 0.1, 1.0, 3.0, 10.0, math.inf)
DAMPING = 0.01


@dataclass(frozen=True)
class Fit:
    """What a repair adds to a consumer: dW and db; `damping` is the lambda in force.

    With `stop` this one and all that follow stay as they are.
    """

    change: Float[Tensor, "out in"]
    added: Float[Tensor, " out"]
    damping: float
    condition: float
    warnings: tuple[str, ...] = ()
    stop: bool = False


def refit(normal: Normal, damping: float = DAMPING, *, where: str = "") -> Fit:
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
        return Fit(torch.zeros_like(normal.cross.T), left, damping, 1.0)
    products = normal.inputs - normal.count * torch.outer(mean, mean)
    cross = normal.cross - normal.count * torch.outer(mean, left)
    scale = _scales(normal)
    factored = factor(products * torch.outer(scale, scale), damping, where=where)
    change = (factored.solve(cross * scale[:, None]) * scale[:, None]).T
    warnings = () if factored.warning is None else (factored.warning,)
    return Fit(change, left - change @ mean, factored.damping, factored.condition, warnings)


def _scales(normal: Normal) -> Float[Tensor, " in"]:
    """What brings the power of every channel to one; a channel that gives nothing stays."""
    power = normal.inputs.diagonal()
    return torch.where(power > 0, power, torch.ones_like(power)).rsqrt()


def refit_on_held_out(
    normal: Normal,
    held_out: Normal,
    dampings: Sequence[float] = DAMPINGS,
    *,
    where: str = "",
) -> Fit:
    """The refit to `normal` whose error on other tokens is least, of those with `dampings`.

    No change at all is among them, so that this error never rises. Where two are alike the
    stronger damping wins, and no change against every fit.

    Raises:
        SecateurError: as `refit`.
    """
    fits = [refit(normal, damping, where=where) for damping in dampings]
    still = Fit(
        torch.zeros_like(normal.cross.T), torch.zeros_like(normal.residual_sum), math.inf, 1.0
    )
    best = min(fits, key=lambda fit: (held_out.error(fit.change, fit.added), -fit.damping))
    return best if held_out.error(best.change, best.added) < held_out.error() else still


@repair("refit", paper="https://arxiv.org/abs/2403.10799", biased=True)
def least_squares(
    normal: Normal, held_out: Normal | None, damping: float | None, where: str
) -> Fit:
    """Refit the kept weights and a bias by least squares, layer after layer."""
    if held_out is not None:
        return refit_on_held_out(normal, held_out, where=where)
    return refit(normal, DAMPING if damping is None else damping, where=where)

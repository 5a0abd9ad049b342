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

# From a light touch to the bias alone.
DAMPINGS = (0.001, 0.01, 0.1, 1.0, 3.0, 10.0, math.inf)
DAMPING = 0.01


@dataclass(frozen=True)
class Fit:
    """What a repair adds to a consumer: dW and db; `damping` is the lambda in force.

    `doubt` is the share of the change that may be rounding of the normal matrices. With `stop` this
    one and all that follow stay as they are.
    """

    change: Float[Tensor, "out in"]
    added: Float[Tensor, " out"]
    damping: float
    condition: float
    warnings: tuple[str, ...] = ()
    stop: bool = False
    doubt: float = 0.0


def refit(normal: Normal, damping: float = DAMPING, *, where: str = "") -> Fit:
    """The change of the kept weights that fits the target, damped by `damping` (lambda).

    Solved in fp64, whatever the sums were added in. `where` names the layer in warnings and errors.

    Raises:
        SecateurError: a negative damping, no token, or sums that are not finite.
    """
    _check(normal, damping, where)
    normal = normal.double()
    if math.isinf(damping):
        return Fit(normal.unchanged(), normal.left, damping, 1.0)
    found = normal.solved(damping, where)
    factored, added = found.factor, normal.left - found.moved
    warnings = () if factored.warning is None else (factored.warning,)
    doubt = normal.noise / factored.smallest
    return Fit(found.change, added, factored.damping, factored.condition, warnings, doubt=doubt)


def _check(normal: Normal, damping: float, where: str) -> None:
    if not damping >= 0:
        raise SecateurError(f"damping = {damping} will not do: 0 or more, for example {DAMPING}.")
    if normal.count == 0:
        raise SecateurError(f"No token reached {where}, so there is nothing to fit it to.")


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

    Dampings are compared by a Cholesky factor each, in the dtype of the sums; the one that wins is
    solved for once more in fp64. One eigendecomposition would serve all of them, but costs about
    as much as six factors and their solutions on a CPU (1229 inputs, 576 outputs: 0.35 s against
    0.44 s), and most of it is no product of matrices, which is all that a GPU is fast at.

    Raises:
        SecateurError: as `refit`.
    """

    def error(damping: float) -> float:
        _check(normal, damping, where)
        if math.isinf(damping):
            return held_out.error(None, normal.left)
        found = normal.solved(damping, where)
        return held_out.error(found.change, normal.left - found.moved)

    best = refit(normal, min(dampings, key=lambda one: (error(one), -one)), where=where)
    if held_out.error(best.change, best.added) < held_out.error():
        return best
    return Fit(best.change.zero_(), torch.zeros_like(best.added), math.inf, 1.0)


@repair("refit", paper="https://arxiv.org/abs/2403.10799", biased=True)
def least_squares(
    normal: Normal, held_out: Normal | None, damping: float | None, where: str
) -> Fit:
    """Refit the kept weights and a bias by least squares, layer after layer."""
    if held_out is not None:
        return refit_on_held_out(normal, held_out, where=where)
    return refit(normal, DAMPING if damping is None else damping, where=where)


@repair("refit-no-bias", paper="https://arxiv.org/abs/2403.10799")
def least_squares_without_bias(
    normal: Normal, held_out: Normal | None, damping: float | None, where: str
) -> Fit:
    """Refit the kept weights alone, for classes that have no place for a bias.

    dW^T = (Z^T Z + lambda D)^-1 Z^T R
    """
    plain = None if held_out is None else held_out.about_zero()
    return least_squares(normal.about_zero(), plain, damping, where)

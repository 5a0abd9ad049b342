"""Solving damped normal equations: Cholesky, more damping where that fails, and the condition.

A matrix counts as singular when a pivot falls below the rounding of its largest entry: what
Cholesky makes of less is noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import SecateurError

_ATTEMPTS = 24
# A pivot that is rounding alone: so many units in the last place, times the root of the size.
_NOISE = 4
# Power iterations on so many vectors at once: memory is read once for all of them.
_VECTORS, _ITERATIONS = 8, 6


@dataclass(frozen=True)
class Factor:
    """A Cholesky factor of `matrix + damping I`; `warning` says if that is more than was asked."""

    lower: Float[Tensor, "n n"]
    damping: float
    warning: str | None

    def solve(self, right: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """The solution for every column of `right`."""
        return torch.cholesky_solve(right, self.lower)

    @cached_property
    def largest(self) -> float:
        """The largest eigenvalue of the damped matrix, estimated from below."""
        return _largest(lambda some: self.lower @ (self.lower.T @ some), self.lower)

    @cached_property
    def smallest(self) -> float:
        """The smallest eigenvalue of the damped matrix, estimated from above."""
        return 1 / _largest(self.solve, self.lower)

    @property
    def condition(self) -> float:
        """Condition number of the damped matrix, estimated from below."""
        return self.largest / self.smallest


def _largest(times: Callable[[Tensor], Tensor], like: Float[Tensor, "n n"]) -> float:
    """The largest eigenvalue of what `times` multiplies with, by power iterations on a block."""
    generator = torch.Generator().manual_seed(0)
    width = min(_VECTORS, len(like))
    some = torch.randn(len(like), width, generator=generator, dtype=like.dtype).to(like.device)
    for _ in range(_ITERATIONS):
        some = times(torch.linalg.qr(some).Q)
    return float(torch.linalg.matrix_norm(some, 2))


def factor(matrix: Float[Tensor, "n n"], damping: float, *, where: str) -> Factor:
    """Factor `matrix + damping I`, with ten times the damping as often as that is singular.

    `where` names the layer in the warning.

    Raises:
        SecateurError: the matrix is not finite.
    """
    size = float(matrix.diagonal().mean())
    precision = torch.finfo(matrix.dtype).eps
    used = damping
    for _ in range(_ATTEMPTS):
        damped = matrix.clone()
        damped.diagonal().add_(used)
        lower, failed = torch.linalg.cholesky_ex(damped)
        least = _NOISE * len(matrix) ** 0.5 * precision * float(damped.diagonal().max())
        if not failed and float(lower.diagonal().min()) ** 2 > least:
            more = f"{where}: singular normal matrix, damped by {used:.1e} instead of {damping:.1e}"
            return Factor(lower, used, more if used != damping else None)
        used = max(10 * used, precision * size) or 1.0
    raise SecateurError(
        f"The inputs or targets of {where} are NaN, infinite or too large to fit weights to.\n"
        "Try --dtype float32, or --repair bias."
    )

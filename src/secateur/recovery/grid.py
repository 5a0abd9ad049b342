"""Group-wise quantisation of a weight: w~ = alpha q + beta, for each row and group of columns.

    min-max        alpha = (max - min) / (2^b - 1),   beta = min
    least-squares  the alpha and beta, of several narrower ranges, that leave the least error:
                   codes and the line through them are fitted in turn, starting from min-max
    q = clip(round((w - beta) / alpha), 0, 2^b - 1)

The form is QA-LoRA's (2309.14717); the least-squares grid is this project's. A group of equal
weights has alpha = 0 and is exact.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..registry import choose

# Shares of the range of min-max that the least-squares search starts from, and its rounds of each.
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6)
_ROUNDS = 4

Line = tuple[Float[Tensor, "out group"], Float[Tensor, "out group"]]


@dataclass(frozen=True)
class Quantised:
    """Codes [out, in] of `bits` each, and alpha (`scales`) and beta (`zeros`) for each group."""

    codes: UInt8[Tensor, "out in"]
    scales: Float[Tensor, "out group"]
    zeros: Float[Tensor, "out group"]
    bits: int
    group: int

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """Alpha q + beta, fp32."""
        width = self.codes.shape[1]
        scales, zeros = (
            part.repeat_interleave(min(self.group, width), dim=1)[:, :width]
            for part in (self.scales, self.zeros)
        )
        return self.codes.float() * scales + zeros


def quantised(
    weight: Float[Tensor, "out in"],
    bits: int,
    group: int,
    *,
    grid: str = "min-max",
    storage: torch.dtype = torch.float32,
) -> Quantised:
    """Quantise `weight`; alpha and beta are rounded to `storage` before the codes are chosen.

    The last group of a row may be shorter.

    Raises:
        SecateurError: no such grid.
    """
    find = choose("grid", grid, GRIDS)
    weight = weight.float()
    full = weight.shape[1] // group * group
    parts = [part for part in (weight[:, :full], weight[:, full:]) if part.shape[1]]
    levels = 2**bits - 1
    codes: list[Tensor] = []
    lines: list[Line] = []
    for part in parts:
        groups = part.unflatten(1, (-1, min(group, part.shape[1])))
        scales, zeros = (one.to(storage).float() for one in find(groups, levels))
        codes.append(nearest(groups, scales, zeros, levels).flatten(1).to(torch.uint8))
        lines.append((scales, zeros))
    scales, zeros = (torch.cat(ones, dim=1) for ones in zip(*lines, strict=True))
    return Quantised(torch.cat(codes, dim=1), scales, zeros, bits, group)


def nearest(
    groups: Float[Tensor, "out group column"],
    scales: Float[Tensor, "out group"],
    zeros: Float[Tensor, "out group"],
    levels: int,
) -> Float[Tensor, "out group column"]:
    """The code of the grid point next to each weight; 0 where the group has no extent."""
    steps = scales[..., None]
    codes = (groups - zeros[..., None]) / steps.where(steps > 0, 1.0)
    return codes.round().clamp(0, levels).where(steps > 0, 0.0)


def min_max(groups: Float[Tensor, "out group column"], levels: int) -> Line:
    """The grid from the least to the greatest weight."""
    least, most = groups.aminmax(dim=-1)
    return (most - least) / levels, least


def least_squares(groups: Float[Tensor, "out group column"], levels: int) -> Line:
    """The grid of least squared error that starts from narrower and narrower ranges lead to."""
    width, least = min_max(groups, levels)
    best = (width, least)
    best_error = _error(groups, *best, levels)
    for share in _SHARES:
        scales, zeros = share * width, least + (1 - share) / 2 * levels * width
        for _ in range(_ROUNDS):
            scales, zeros = _line(groups, nearest(groups, scales, zeros, levels), scales, zeros)
            error = _error(groups, scales, zeros, levels)
            better = error < best_error
            best = (scales.where(better, best[0]), zeros.where(better, best[1]))
            best_error = error.where(better, best_error)
    return best


GRIDS: dict[str, Callable[[Tensor, int], Line]] = {
    "min-max": min_max,
    "least-squares": least_squares,
}


def _line(groups: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor) -> Line:
    """The line through (code, weight) of least squares; as it was where all codes are one."""
    about = codes - codes.mean(dim=-1, keepdim=True)
    power = about.square().sum(dim=-1)
    slope = (about * groups).sum(dim=-1) / power.clamp(min=1e-30)
    fits = (power > 0) & (slope > 0)
    scales = slope.where(fits, scales)
    return scales, (groups.mean(dim=-1) - scales * codes.mean(dim=-1)).where(fits, zeros)


def _error(
    groups: Tensor, scales: Tensor, zeros: Tensor, levels: int
) -> Float[Tensor, "out group"]:
    codes = nearest(groups, scales, zeros, levels)
    return (groups - codes * scales[..., None] - zeros[..., None]).square().sum(dim=-1)

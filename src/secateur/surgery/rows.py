"""The tokens at a consumer themselves, where they are fewer than its channels.

With Y = Z_c D^-1/2 the same fit has as many unknowns as there are tokens,

    dW^T = D^-1/2 Y^T (Y Y^T + lambda I)^-1 R_c

(Saunders, Gammerman, Vovk, Ridge regression learning algorithm in dual variables, 1998), and no
matrix of channels by channels is made: 3.3 GB of 28,672 channels, where 256 tokens take 38 MB.
Solved in fp64, which costs nothing at this size; rows and changes are in the dtype of the sums.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ..ranks import Ranks
from ..solve import factor
from .normal import Normal, Solution
from .sums import Sums

# Rows are kept of at most so many tokens to a channel: their system is solved once a damping, in
# fp64, where that of the channels is in fp32.
_SHARE = 0.5
# Elements of rows, or of a change, that are there in fp64 at a time.
_AT_ONCE = 2**22


@dataclass(frozen=True)
class Tokens(Normal):
    """Rows of Z and R, and the `root` of each one's weight; means are in fp64."""

    rows: Float[Tensor, "token in"]
    residual: Float[Tensor, "token out"]
    root: Float[Tensor, " token"]

    @cached_property
    def power(self) -> Float[Tensor, " in"]:
        """See `Normal`."""
        parts = [own.square().sum(dim=0) for _, own in self._columns(centred=False)]
        return torch.cat(parts)

    @property
    def inputs(self) -> Float[Tensor, "in in"]:
        """See `Normal`."""
        weighed = self.rows.double() * self.root[:, None]
        return weighed.T @ weighed

    @property
    def cross(self) -> Float[Tensor, "in out"]:
        """See `Normal`."""
        weights = self.root.square()[:, None]
        return self.rows.double().T @ (self.residual.double() * weights)

    def double(self) -> "Tokens":
        """The same: rows are exact, and what is made of them is in fp64."""
        return self

    def about_zero(self) -> "Tokens":
        """See `Normal`."""
        nothing = torch.zeros_like(self.mean), torch.zeros_like(self.left)
        own = self.rows, self.residual, self.root
        return Tokens(self.count, *nothing, self.square, self.noise, *own)

    def solved(self, damping: float, where: str) -> Solution:
        """See `Normal`."""
        factored = factor(self._gram, damping, where=where)
        weights = factored.solve((self.residual - self.left) * self.root[:, None])
        scale, moved = self.scales(), torch.zeros_like(self.left)
        change = self.rows.new_empty(self.residual.shape[1], self.rows.shape[1])
        for columns, own in self._columns():
            some = (own.T @ weights) * scale[columns, None].square()
            change[:, columns] = some.T.to(change.dtype)
            moved += self.mean[columns] @ some
        return Solution(change, moved, factored)

    def unchanged(self) -> Float[Tensor, "out in"]:
        """See `Normal`."""
        return self.rows.new_zeros(self.residual.shape[1], self.rows.shape[1])

    def error(
        self,
        change: Float[Tensor, "out in"] | None = None,
        added: Float[Tensor, " out"] | None = None,
    ) -> float:
        """See `Normal`."""
        left = self.residual.to(torch.float64, copy=True)
        if change is not None:
            left -= self.rows @ change.to(self.rows.dtype).T
        if added is not None:
            left -= added
        return float((left.square().sum(dim=1) * self.root.square()).sum())

    @cached_property
    def _gram(self) -> Float[Tensor, "token token"]:
        """Y Y^T."""
        found = self.root.new_zeros(len(self.rows), len(self.rows))
        scale = self.scales()
        for columns, own in self._columns():
            some = own * scale[columns]
            found.addmm_(some, some.T)
        return found

    def _columns(self, *, centred: bool = True) -> Iterator[tuple[slice, Tensor]]:
        """Some columns at a time of the weighed rows of Z, in fp64, about their means or not."""
        count, width = self.rows.shape
        step = max(1, _AT_ONCE // max(count, self.residual.shape[1]))
        for start in range(0, width, step):
            columns = slice(start, min(start + step, width))
            own = self.rows[:, columns].to(torch.float64, copy=True)
            if centred:
                own -= self.mean[columns]
            yield columns, own.mul_(self.root[:, None])


class Rows:
    """Keeps the tokens of batches, in `dtype`, on their device; what `Sums` does for any number."""

    def __init__(
        self, inputs: int, outputs: int, *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        def nothing(*width: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(0, *width, dtype=dtype, device=device)

        self._inputs, self._residual = [nothing(inputs)], [nothing(outputs)]
        self._weights = [nothing(dtype=torch.float64)]

    def update(
        self,
        inputs: Float[Tensor, "token in"],
        residual: Float[Tensor, "token out"],
        weights: Float[Tensor, " token"],
    ) -> None:
        """Keep the tokens of one batch; each counts as much as its weight."""
        dtype = self._inputs[0].dtype
        self._inputs.append(inputs.to(dtype))
        self._residual.append(residual.to(dtype))
        self._weights.append(weights.double())

    def of_all(self, ranks: Ranks) -> "Rows":
        """What all ranks have kept, in their order."""
        if ranks.several:
            for what in ("_inputs", "_residual", "_weights"):
                own = torch.cat(getattr(self, what))
                setattr(self, what, [ranks.gathered(what, own).to(own.device)])
        return self

    def normal(self) -> Tokens:
        """The tokens so far."""
        rows, residual, weights = map(torch.cat, (self._inputs, self._residual, self._weights))
        count = float(weights.sum())
        share = weights / (count or 1.0)
        mean, left = _mean(share, rows), _mean(share, residual)
        square = float((residual.double().square().sum(dim=1) * weights).sum())
        return Tokens(count, mean, left, square, 0.0, rows, residual, weights.sqrt())


def _mean(share: Float[Tensor, " token"], rows: Float[Tensor, "token width"]) -> Tensor:
    """Means of columns, fp64."""
    parts = rows.split(max(1, _AT_ONCE // max(len(rows), 1)), dim=1)
    return torch.cat([share @ part.double() for part in parts])


def gathering(
    tokens: int,
    inputs: int,
    outputs: int,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> Rows | Sums:
    """What takes up so many tokens of all ranks together: whichever is smaller."""
    kind = Rows if tokens <= _SHARE * inputs else Sums
    return kind(inputs, outputs, dtype=dtype, device=device)

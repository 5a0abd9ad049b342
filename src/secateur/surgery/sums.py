"""Normal matrices of a consumer: all that a least-squares repair needs to know of any tokens.

`Sums` adds products in fp32 (fp64 is half as fast on a CPU, and a sixty-fourth on many GPUs) of
Z - s, where s is the mean of the first tokens: what is multiplied is then about as large as what
the fit is made of, and a mean of a hundred deviations costs no digits. `Normal.noise` says how far
rounding can have moved the matrix; whoever solves compares it with the smallest eigenvalue.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..device_memory import product_precision
from ..ranks import Ranks
from ..solve import factor
from .normal import Normal, Solution

# Rows of the product matrix at a time; what lies left of them is known by symmetry.
_ROWS, _BLOCKS = 160, 8
# Rows that do not begin on a cache line make products half as slow again.
_ALIGNED = 16
# Tokens at a time: the fp32 copy of them is as wide as inputs and outputs together.
_TOKENS = 2**11
# The distance from one to the next number, of fp32 products by what torch was told of them.
_ROUNDED = {"high": 2.0**-10, "medium": 2.0**-7}


@dataclass(frozen=True)
class Products(Normal):
    """Sums over tokens: `spread` is Z_c^T Z_c, `shared` Z_c^T R_c."""

    spread: Float[Tensor, "in in"]
    shared: Float[Tensor, "in out"]

    @property
    def power(self) -> Float[Tensor, " in"]:
        """See `Normal`."""
        return self.spread.diagonal() + self.count * self.mean.square()

    @property
    def inputs(self) -> Float[Tensor, "in in"]:
        """See `Normal`."""
        return self.spread + self.count * torch.outer(self.mean, self.mean)

    @property
    def cross(self) -> Float[Tensor, "in out"]:
        """See `Normal`."""
        return self.shared + self.count * torch.outer(self.mean, self.left)

    def double(self) -> "Products":
        """See `Normal`."""
        tensors = {
            name: getattr(self, name).double() for name in ("mean", "left", "spread", "shared")
        }
        return replace(self, **tensors)

    def about_zero(self) -> "Products":
        """See `Normal`."""
        # the mean's own rounding is in Z^T Z, twice, where a power of one has at most one of mean^2
        rounding = 4 * torch.finfo(self.spread.dtype).eps
        return replace(
            self,
            mean=torch.zeros_like(self.mean),
            left=torch.zeros_like(self.left),
            spread=self.inputs,
            shared=self.cross,
            noise=self.noise + rounding * len(self.mean),
        )

    def solved(self, damping: float, where: str) -> Solution:
        """See `Normal`."""
        scale = self.scales()
        factored = factor(self.spread * scale * scale[:, None], damping, where=where)
        change = (factored.solve(self.shared * scale[:, None]) * scale[:, None]).T
        return Solution(change, change @ self.mean, factored)

    def unchanged(self) -> Float[Tensor, "out in"]:
        """See `Normal`."""
        return torch.zeros_like(self.shared.T)

    def error(
        self,
        change: Float[Tensor, "out in"] | None = None,
        added: Float[Tensor, " out"] | None = None,
    ) -> float:
        """See `Normal`."""
        left, moved = self.left, 0.0
        if change is not None:
            step = change.to(self.spread.dtype).T
            moved = float(((self.spread @ step).sub_(self.shared, alpha=2) * step).sum())
            left = left - self.mean @ step
        if added is not None:
            left = left - added.to(left.dtype)
        shift = float(left.double().square().sum() - self.left.double().square().sum())
        return max(self.square + moved + self.count * shift, 0.0)


class Sums:
    """Running sums of the tokens of batches, in `dtype` (fp32 or fp64), on their device.

    Nothing in `update` waits for the device.
    """

    def __init__(
        self, inputs: int, outputs: int, *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self._inputs, self._outputs = inputs, outputs
        # Z, and from here on R: both side by side in one buffer and one matrix of products
        self._right = -(-inputs // _ALIGNED) * _ALIGNED
        width = self._right + -(-outputs // _ALIGNED) * _ALIGNED
        self._products = torch.zeros(inputs, width, dtype=dtype, device=device)
        self._totals = torch.zeros(width, dtype=torch.float64, device=device)
        self._square = torch.zeros((), dtype=torch.float64, device=device)
        self._count = torch.zeros((), dtype=torch.float64, device=device)
        self._shift = torch.zeros(inputs, dtype=dtype, device=device)
        self._buffer = self._products.new_zeros(0, width)
        self._updates = 0

    def update(
        self,
        inputs: Float[Tensor, "token in"],
        residual: Float[Tensor, "token out"],
        weights: Float[Tensor, " token"] | None = None,
    ) -> None:
        """Add the tokens of one batch, some at a time: what is made of them is wider than they.

        Each counts as much as its weight; without `weights`, 1.
        """
        if weights is None:
            weights = torch.ones(len(inputs), device=inputs.device)
        roots = weights.to(self._products.dtype).sqrt()
        parts = zip(*(own.split(_TOKENS) for own in (inputs, residual, roots)), strict=True)
        for some, left, root in parts:
            if len(some):
                self._add(some, left, root)

    def _add(
        self,
        inputs: Float[Tensor, "token in"],
        residual: Float[Tensor, "token out"],
        root: Float[Tensor, " token"],
    ) -> None:
        if not self._updates:
            self._shift = inputs.to(self._shift.dtype).mean(dim=0)
        both = self._side_by_side(inputs, residual).mul_(root[:, None])
        rows = max(_ROWS, -(-self._inputs // _BLOCKS))
        for start in range(0, self._inputs, rows):
            own = slice(start, min(start + rows, self._inputs))
            self._products[own, start:].addmm_(both[:, own].T, both[:, start:])
        self._totals += root @ both
        flat = both[:, self._right :][:, : self._outputs].flatten()
        self._square += torch.dot(flat, flat)
        self._count += root.square().sum()
        self._updates += 1

    def _side_by_side(self, inputs: Tensor, residual: Tensor) -> Float[Tensor, "token width"]:
        """The inputs less the shift, and the residual, in a buffer that every batch is put into."""
        if len(self._buffer) < len(inputs):
            self._buffer = self._products.new_zeros(len(inputs), self._products.shape[1])
        both = self._buffer[: len(inputs)]
        torch.sub(inputs, self._shift, out=both[:, : self._inputs])
        both[:, self._right : self._right + self._outputs] = residual
        return both

    def of_all(self, ranks: Ranks) -> "Sums":
        """What all ranks have added, about the shift of the first one that has added anything.

        With d = s - s' of a shift s and another s', a row z = (Z - s, R), its weight w:
        sum w (z + d)(z + d)^T = sum w z z^T + (sum w z) d^T + d (sum w z)^T + d d^T sum w.
        """
        if not ranks.several:
            return self
        shifts = ranks.gathered("shifts", self._shift[None])
        updates = ranks.each("updates", self._updates)
        first = next((i for i, own in enumerate(updates) if own), 0)
        shift = shifts[first].to(self._shift.device)
        off = torch.zeros_like(self._products[0])
        off[: self._inputs] = self._shift - shift
        before, after = self._totals.to(off.dtype), self._totals + self._count * off
        self._products.addr_(before[: self._inputs], off)
        self._products.addr_(off[: self._inputs], after.to(off.dtype))
        self._shift, self._updates = shift, sum(updates)
        parts = [self._products, after, self._square, self._count]
        found = ranks.summed("normal matrices", parts)
        self._products, self._totals, self._square, self._count = found
        return self

    @property
    def count(self) -> float:
        """The sum of the tokens' weights so far."""
        return float(self._count)

    @property
    def square(self) -> float:
        """The sum of all squares of the residual so far: not finite if one number was not."""
        return float(self._square)

    def normal(self) -> Products:
        """The normal matrices of what was added so far."""
        count, dtype = self.count or 1.0, self._products.dtype
        shifted = self._products[:, : self._inputs]
        means = (self._totals / count).to(dtype)
        off, left = means[: self._inputs], means[self._right :][: self._outputs]
        spread = shifted.triu() + shifted.triu(1).T
        power = spread.diagonal().clone()
        spread -= count * torch.outer(off, off)
        shared = self._products[:, self._right :][:, : self._outputs]
        shared = shared - count * torch.outer(off, left)
        mean = self._shift + off
        found = Products(self.count, mean, left, self.square, 0.0, spread, shared)
        worst = float((power / found.power.clamp(min=torch.finfo(dtype).tiny)).max())
        return replace(found, noise=self._noise * worst)

    @property
    def _unit(self) -> float:
        """What a product is rounded to."""
        dtype = self._products.dtype
        exact = torch.finfo(dtype).eps
        if dtype == torch.float64:
            return exact
        return _ROUNDED.get(product_precision(), exact)

    @property
    def _noise(self) -> float:
        """Of a matrix of as many products, each channel's power one."""
        return self._unit * (self._inputs * max(self._updates, 1)) ** 0.5 / 2

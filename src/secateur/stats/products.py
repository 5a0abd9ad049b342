"""Products of a weight and its gradients, summed along the weight: what Taylor terms are made of.

With p = w g_n c of the weights w of one tensor, the gradients g_n of some windows and a factor c,
for every index along some of the tensor's dimensions, summed over all other ones:

    signed = sum p     first = sum |p|     second = sum p^2     mixed = sum |p - p^2/2|

The same of the mean over all windows, p = w c mean_n g_n and s = w^2 c^2 mean_n g_n^2 in the place
of p^2, needs those means of every weight: they are kept in fp32 while the tensor's layer is there.
Products are made in fp32 of a few rows at a time, which the processor's cache holds; of a stack of
matrices (experts), of some of them or of rows of one.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..structure import Member
from .blocks import at_once, blocks
from .finite import Finite
from .taylor import Taylor

# How many gradients of single windows, in values, are there at once.
_GRADIENTS = 2**27

# A part of a tensor: of its first dimensions.
Place = tuple[slice, ...]
# Sums by the member's dimensions and by kind: [window, index].
Sums = dict[tuple[tuple[int, ...], str], Tensor]


class Weight:
    """One tensor of a layer, and the members of axes that own slices of it.

    `scale` is the factor c above, `windows` how many there will be.
    """

    def __init__(
        self,
        parameter: nn.Parameter,
        owners: Sequence[tuple[Taylor, Member]],
        scale: float,
        windows: int,
    ) -> None:
        self._owners = owners
        self.name = owners[0][1].tensor
        self._values, self._scale, self._windows = parameter.detach(), scale, windows
        self._dims = {member.dims for _, member in owners}
        self._kinds = {kind for taylor, _ in owners for kind in taylor.kinds}
        means = {kind for taylor, _ in owners for kind in taylor.mean_kinds}
        self._change = self._zeros() if means else None
        self._curvature = self._zeros() if "mixed" in means else None
        self._mean_kinds = means
        self._ranks = owners[0][0].ranks

    @property
    def linear(self) -> bool:
        """Whether gradients of several windows may be added up before they come here."""
        return all(taylor.linear for taylor, _ in self._owners) and self._curvature is None

    @property
    def signed_alone(self) -> bool:
        """Whether nothing but sums of p with their signs are asked for."""
        return self._kinds == {"signed"} and not self._mean_kinds

    @property
    def at_once(self) -> int:
        """Of how many windows there should be a gradient of their own at once."""
        return max(_GRADIENTS // max(self._values.numel(), 1), 1)

    def along(self, dim: int) -> bool:
        """Whether sums are wanted for every index along this dimension."""
        return (dim,) in self._dims

    def add(self, gradients: Iterable[Float[Tensor, "window *shape"]], finite: Finite) -> None:
        """Add gradients of some windows, in pieces; or the sum of those of several (see `linear`).

        Their dtype is any; they may be changed in place.
        """
        pieces = [self._piece(piece, finite) for piece in gradients]
        sums = {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}
        for taylor, member in self._owners:
            taylor.add(member, {kind: sums[member.dims, kind] for kind in taylor.kinds})

    def add_signed(self, dim: int, sums: Float[Tensor, "window index"], finite: Finite) -> None:
        """Add sums of w dL/dw with their signs that were made without a gradient of the weight."""
        finite.see(f"the gradient of {self.name}", sums)
        for taylor, member in self._owners:
            if member.dims == (dim,):
                taylor.add(member, {"signed": sums * self._scale})

    def _piece(self, gradients: Float[Tensor, "window *shape"], finite: Finite) -> Sums:
        finite.see(f"the gradient of {self.name}", gradients)
        if self._change is not None and self._curvature is None and not self._kinds:
            for each in gradients:
                self._change += each
            return {}
        sums = self._empty(len(gradients), self._kinds)
        for where in self._places(len(gradients)):
            own = gradients[:, *where].float()
            if self._change is not None:
                self._change[where] += own.sum(dim=0)
            if self._curvature is not None:
                self._curvature[where] += own.square().sum(dim=0)
            if self._kinds:
                weight = self._values[where].float() * self._scale
                _sum_up(sums, where, own.mul_(weight), None)
        return sums

    def end(self) -> None:
        """All windows have gone by: what was kept per weight is summed up."""
        if self._change is None:
            return
        (self._change,) = self._ranks.summed(f"gradients of {self.name}", [self._change])
        if self._curvature is not None:
            (self._curvature,) = self._ranks.summed(f"squares of {self.name}", [self._curvature])
        sums = self._empty(1, self._mean_kinds)
        factor = self._scale / self._windows
        for where in self._places(1):
            weight = self._values[where].float()
            change = self._change[where].mul_(weight).mul_(factor)
            curvature = None
            if self._curvature is not None:
                curvature = self._curvature[where].mul_(weight).mul_(weight)
                curvature = curvature.mul_(factor * self._scale)[None]
            _sum_up(sums, where, change[None], curvature)
        for taylor, member in self._owners:
            if taylor.mean_kinds:
                taylor.add_mean(member, {k: sums[member.dims, k] for k in taylor.mean_kinds})

    def _places(self, windows: int) -> Iterator[Place]:
        """Some rows: of a matrix, or of one matrix of a stack if a whole one is too large."""
        count, *inner = self._values.shape
        device, width = self._values.device.type, math.prod(inner) * windows
        if len(inner) < 2 or width <= at_once(device):
            for some in blocks(count, width, device):
                yield (some,)
            return
        for index in range(count):
            for some in blocks(inner[0], width // inner[0], device):
                yield slice(index, index + 1), some

    def _zeros(self) -> Tensor:
        return torch.zeros(self._values.shape, device=self._values.device)

    def _empty(self, windows: int, kinds: Collection[str]) -> Sums:
        shape, device = self._values.shape, self._values.device
        return {
            (dims, kind): torch.zeros(windows, *(shape[dim] for dim in dims), device=device)
            for dims in self._dims
            for kind in kinds
        }


def _sum_up(
    sums: Sums, where: Place, change: Float[Tensor, "window row *rest"], curvature: Tensor | None
) -> None:
    """Add what a part of the tensor gives; the products may be changed in place."""
    asked = {kind for _, kind in sums}
    if "signed" in asked:
        _add(sums, "signed", where, change)
    if {"second", "mixed"} & asked:
        curvature = change.square() if curvature is None else curvature
    if curvature is not None and "second" in asked:
        _add(sums, "second", where, curvature)
    if curvature is not None and "mixed" in asked:
        _add(sums, "mixed", where, (change - curvature / 2).abs_())
    if "first" in asked:
        _add(sums, "first", where, change.abs_())


def _add(sums: Sums, kind: str, where: Place, values: Float[Tensor, "window row *rest"]) -> None:
    for (dims, own), into in sums.items():
        if own != kind:
            continue
        others = [dim for dim in range(1, values.dim()) if dim - 1 not in dims]
        value = values.sum(dim=others) if others else values
        part = (where[dim] if dim < len(where) else slice(None) for dim in dims)
        into[:, *part] += value

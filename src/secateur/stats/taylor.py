"""Taylor terms: how the loss changes, to second order, when weights become zero.

For a weight w and the gradient g_n of the loss of window n (its mean over predicted tokens), with
g_n^2 for the diagonal of the Hessian (empirical Fisher):

    p_n = w g_n        s_n = w^2 g_n^2 = p_n^2

and, over weights that belong together,

    vector = |sum p|     first = sum |p|     second = sum s     mixed = sum |p - s/2|

    batch:       p = mean_n p_n (the gradient of the mean loss), s = mean_n s_n
    per_sample:  p = p_n, s = s_n in every window; then the mean over windows

The sums run over the weights of one channel of a member, and channels are then added up; `coarse`
is `vector` with one sum over all channels of a unit. Ma, Fang, Wang: LLM-Pruner (2305.11627), which
has the batch form. `second` is the same in both modes.

A member here is a module's share of a unit, bias included, producers before consumers. Members of
unlike widths (grouped queries: q and o have r heads where k and v have one) are folded, each inside
its own unit, to the widest common width: channel c of a unit is then c of each of its heads.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..structure import Axis, Member
from .finite import not_finite

# A term by name, and the sum over a channel's weights that it is made of.
TERMS = {
    "vector": "signed",
    "coarse": "signed",
    "first": "first",
    "second": "second",
    "mixed": "mixed",
}
MODES = ("batch", "per_sample", "samples")

# Products of weight and gradient are made for so many weights at once: 8 MiB in fp32.
_PRODUCTS_AT_ONCE = 2**21


def channel_sum(
    kind: str,
    change: Float[Tensor, "unit width fan"],
    curvature: Float[Tensor, "unit width fan"] | None,
) -> Float[Tensor, "unit width"]:
    """Sum of p (`change`) and s (`curvature`) over the weights of each channel."""
    if kind == "signed":
        return change.sum(dim=2)
    if kind == "first":
        return change.abs().sum(dim=2)
    assert curvature is not None, "second-order sums are given the curvature"
    return curvature.sum(dim=2) if kind == "second" else (change - curvature / 2).abs().sum(dim=2)


def unit_term(
    term: str, sums: Float[Tensor, "unit width"], channels: int
) -> Float[Tensor, "unit channel"]:
    """A term of one member from its channel sums, folded to `channels` a unit (`coarse`: one)."""
    if term == "coarse":
        return sums.sum(dim=1, keepdim=True).abs()
    return folded(sums.abs() if term == "vector" else sums, channels)


def folded(values: Float[Tensor, "unit width"], channels: int) -> Float[Tensor, "unit channel"]:
    """Channel c of a unit is the sum over c of each of its heads."""
    return values.reshape(len(values), -1, channels).sum(dim=1)


def modules(axis: Axis) -> tuple[tuple[Member, ...], ...]:
    """The members of `axis` by module: a weight with its bias; producers before consumers."""
    found: dict[tuple[object, ...], list[Member]] = {}
    for member in sorted(axis.members, key=lambda member: member.role == "consumer"):
        found.setdefault((member.module, member.blocks), []).append(member)
    return tuple(tuple(members) for members in found.values())


class Taylor:
    """Terms of one axis, from its members' gradients as the windows go by.

    `needs` are names MODE_TERM: `batch_first` and `per_sample_first` are [member, unit, channel],
    `samples_first` is [sample, unit], one row a window, summed over members and channels. Per
    weight it keeps nothing but the running mean of p, and of s, where `batch_first` or
    `batch_mixed` need them.

    `windows` is how many there will be; gradients are of each window's summed loss times 1/`scale`.
    """

    def __init__(
        self, axis: Axis, needs: Iterable[str], windows: int, scale: float, device: torch.device
    ) -> None:
        needs = set(needs)
        self.axis = axis
        self._terms = {
            mode: [term for term in TERMS if f"{mode}_{term}" in needs] for mode in MODES
        }
        self._share = 1 / windows
        self._scale = scale
        self._modules = modules(axis)
        self._widths = [members[0].blocks.width for members in self._modules]
        self._device = device
        own = {TERMS[term] for mode in ("per_sample", "samples") for term in self._terms[mode]}
        self._kinds = sorted({"signed"} | own | ({"second"} & set(self._terms["batch"])))
        self._window = self._zeros(self._kinds)
        self._batch = self._zeros({TERMS[term] for term in self._terms["batch"]})
        self._changes: dict[Member, Tensor] = {}
        self._curvatures: dict[Member, Tensor] = {}
        self._found: dict[str, Tensor] = {}
        self._samples: dict[str, list[Tensor]] = {}

    def add(self, member: Member, weight: Tensor, gradient: Tensor) -> None:
        """Add what the current window's gradient of one member says, whatever its dtype.

        Raises:
            SecateurError: the gradient is not finite.
        """
        units = self.axis.units
        weights, gradients = member.view(weight, units), member.view(gradient, units)
        sums = self._window[self._position(member)]
        for rows in _pieces(weights):
            change = weights[rows].float().mul_(gradients[rows].float()).mul_(self._scale)
            curvature = change.square() if {"second", "mixed"} & set(self._kinds) else None
            for kind in self._kinds:
                sums[kind][rows] += channel_sum(kind, change, curvature)
            self._keep(member, weights.shape, rows, change)
        if not torch.isfinite(sums["signed"]).all():
            raise not_finite(f"the gradient of {member.tensor}", gradient.dtype)

    def end_window(self) -> None:
        """All members of the window (or of windows whose gradients were summed) were added."""
        for mode in ("per_sample", "samples"):
            for term in self._terms[mode]:
                value = self._stacked(term, self._window)
                if mode == "samples":
                    self._samples.setdefault(term, []).append(value.sum(dim=(0, 2)))
                else:
                    name = f"per_sample_{term}"
                    self._found[name] = self._found.get(name, 0) + value * self._share
        for own, batch in zip(self._window, self._batch, strict=True):
            for kind in {"signed", "second"} & set(batch):
                batch[kind] += own[kind] * self._share
        self._window = self._zeros(self._kinds)

    def finished(self) -> dict[str, Tensor]:
        """The tensors of `needs` by name, fp32, once: what was kept per weight is let go."""
        while self._changes:
            member, change = self._changes.popitem()
            sums = self._batch[self._position(member)]
            curvature = self._curvatures.pop(member, None)
            for rows in _pieces(change):
                for kind in {"first", "mixed"} & set(sums):
                    own = None if curvature is None else curvature[rows]
                    sums[kind][rows] += channel_sum(kind, change[rows], own)
        found = dict(self._found)
        found |= {
            f"batch_{term}": self._stacked(term, self._batch) for term in self._terms["batch"]
        }
        found |= {f"samples_{term}": torch.stack(rows) for term, rows in self._samples.items()}
        return {name: tensor.cpu() for name, tensor in found.items()}

    def _keep(self, member: Member, shape: torch.Size, rows: slice, change: Tensor) -> None:
        """Running means per weight, of the current layer only."""
        if {"first", "mixed"} & set(self._terms["batch"]):
            self._mean_of(self._changes, member, shape)[rows].add_(change, alpha=self._share)
        if "mixed" in self._terms["batch"]:
            mean = self._mean_of(self._curvatures, member, shape)[rows]
            mean.addcmul_(change, change, value=self._share)

    def _mean_of(self, means: dict[Member, Tensor], member: Member, shape: torch.Size) -> Tensor:
        if member not in means:
            means[member] = torch.zeros(shape, device=self._device)
        return means[member]

    def _stacked(
        self, term: str, sums: Sequence[dict[str, Tensor]]
    ) -> Float[Tensor, "member unit channel"]:
        channels = math.gcd(*self._widths)
        return torch.stack([unit_term(term, own[TERMS[term]], channels) for own in sums])

    def _zeros(self, kinds: Iterable[str]) -> list[dict[str, Tensor]]:
        kinds, units = list(kinds), self.axis.units
        return [
            {kind: torch.zeros(units, width, device=self._device) for kind in kinds}
            for width in self._widths
        ]

    def _position(self, member: Member) -> int:
        return next(n for n, members in enumerate(self._modules) if member in members)


def _pieces(weights: Float[Tensor, "unit width fan"]) -> Iterator[slice]:
    """Runs of units that hold a bounded number of weights."""
    units = max(1, _PRODUCTS_AT_ONCE // max(weights[0].numel(), 1)) if len(weights) else 1
    for start in range(0, len(weights), units):
        yield slice(start, start + units)

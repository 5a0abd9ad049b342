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
from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..device_memory import sent
from ..ranks import ALONE, Ranks
from ..structure import Axis, Member

# A term by name, and the sum over a channel's weights that it is made of.
TERMS = {
    "vector": "signed",
    "coarse": "signed",
    "first": "first",
    "second": "second",
    "mixed": "mixed",
}
MODES = ("batch", "per_sample", "samples")


def unit_term(
    term: str, sums: Float[Tensor, "window unit width"], channels: int
) -> Float[Tensor, "window unit channel"]:
    """A term of one member from its channel sums, folded to `channels` a unit (`coarse`: one).

    Channel c of a unit is the sum over c of each of its heads.
    """
    if term == "coarse":
        return sums.sum(dim=2, keepdim=True).abs()
    sums = sums.abs() if term == "vector" else sums
    return sums.unflatten(2, (-1, channels)).sum(dim=2)


def modules(axis: Axis) -> tuple[tuple[Member, ...], ...]:
    """The members of `axis` by module: a weight with its bias; producers before consumers."""
    found: dict[tuple[object, ...], list[Member]] = {}
    for member in sorted(axis.members, key=lambda member: member.role == "consumer"):
        found.setdefault((member.module, member.blocks), []).append(member)
    return tuple(tuple(members) for members in found.values())


class Taylor:
    """Terms of one axis, from its members' channel sums as the windows go by.

    `needs` are names MODE_TERM: `batch_first` and `per_sample_first` are [member, unit, channel],
    `samples_first` is [sample, unit], one row a window, summed over members and channels.
    `windows` is how many there will be.

    `kinds` are the sums (see `TERMS`) that it is to be given of every window, or, if they are all
    `linear` in the gradient, of several windows together; `mean_kinds` those of the mean over all
    windows, which are made of something kept per weight (`secateur.stats.products`). Of several
    `ranks` each sees its own windows, and sums are merged before anything else is made of them.
    """

    def __init__(
        self,
        axis: Axis,
        needs: Iterable[str],
        windows: int,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        needs = set(needs)
        self.axis, self.ranks = axis, ranks
        self._terms = {
            mode: [term for term in TERMS if f"{mode}_{term}" in needs] for mode in MODES
        }
        self._share = 1 / windows
        self._modules = modules(axis)
        self._widths = [members[0].blocks.width for members in self._modules]
        by_window = {TERMS[term] for mode in MODES[1:] for term in self._terms[mode]}
        batch = {TERMS[term] for term in self._terms["batch"]}
        self.kinds = by_window | ({"signed", "second"} & batch)
        self.mean_kinds = {"first", "mixed"} & batch
        self.linear = self.kinds <= {"signed"} and not by_window
        self._windows: list[dict[str, Tensor]] = [{} for _ in self._modules]
        self._batch = [
            {kind: torch.zeros(axis.units, width, device=device) for kind in batch}
            for width in self._widths
        ]
        self._found: dict[str, Tensor] = {}
        self._samples: dict[str, list[Tensor]] = {}

    @property
    def asked(self) -> bool:
        """Whether any term is asked for."""
        return any(self._terms.values())

    def add(self, member: Member, sums: Mapping[str, Float[Tensor, "window *index"]]) -> None:
        """Add the sums of one member, by kind: all that its tensor has along the member's dims."""
        own = self._windows[self._position(member)]
        for kind in self.kinds:
            value = self._blocks(member, sums[kind])
            value = value.sum(dim=0, keepdim=True) if self.linear else value
            own[kind] = own[kind] + value if kind in own else value

    def add_mean(self, member: Member, sums: Mapping[str, Float[Tensor, "one *index"]]) -> None:
        """Add those of the mean over all windows."""
        own = self._batch[self._position(member)]
        for kind in self.mean_kinds:
            own[kind] += self._blocks(member, sums[kind])[0]

    def end_windows(self) -> None:
        """All members of some windows were added."""
        for mode in MODES[1:]:
            for term in self._terms[mode]:
                value = self._stacked(term, self._windows)
                if mode == "samples":
                    self._samples.setdefault(term, []).append(value.sum(dim=(0, 3)))
                else:
                    name = f"per_sample_{term}"
                    self._found[name] = self._found.get(name, 0) + value.sum(dim=1) * self._share
        for own, batch in zip(self._windows, self._batch, strict=True):
            for kind in {"signed", "second"} & set(batch):
                batch[kind] += own[kind].sum(dim=0) * self._share
        self._windows = [{} for _ in self._modules]

    def finished(self) -> dict[str, Tensor]:
        """The tensors of `needs` by name, fp32."""
        batch = [
            {kind: self._of_all(kind, sums)[None] for kind, sums in sorted(own.items())}
            for own in self._batch
        ]
        found = {name: self._of_all(name, sums) for name, sums in sorted(self._found.items())}
        found |= {
            f"batch_{term}": self._stacked(term, batch)[:, 0] for term in self._terms["batch"]
        }
        for term, rows in sorted(self._samples.items()):
            found[f"samples_{term}"] = self.ranks.gathered(f"samples_{term}", torch.cat(rows))
        return {name: tensor.cpu() for name, tensor in found.items()}

    def _of_all(self, kind: str, sums: Tensor) -> Tensor:
        """The sum over all ranks; what is of the mean over all windows was that already."""
        if kind in self.mean_kinds:
            return sums
        (whole,) = self.ranks.summed(f"{kind} of {self.axis.name}", [sums])
        return whole

    def _blocks(
        self, member: Member, sums: Float[Tensor, "window *index"]
    ) -> Float[Tensor, "window unit width"]:
        indices = member.blocks.indices(torch.arange(self.axis.units))
        return sums.flatten(1)[:, sent(indices, sums.device)]

    def _stacked(
        self, term: str, sums: Sequence[Mapping[str, Tensor]]
    ) -> Float[Tensor, "member window unit channel"]:
        channels = math.gcd(*self._widths)
        return torch.stack([unit_term(term, own[TERMS[term]], channels) for own in sums])

    def _position(self, member: Member) -> int:
        return next(n for n, members in enumerate(self._modules) if member in members)

"""A search is asked until what goes by its choice is what was wanted.

    missing(choice) = what its units cost - what goes by it

Costs add up to what goes unless units of several granularities share parameters (the channels of a
layer, and the layer), a repair adds biases, or half the width takes more than half the time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..search import Limits
from ..structure import Axis

_HALVINGS, _CORRECTIONS = 24, 4
# Of what is to go, the share by which a search may be told too much or too little.
_NEAR = 0.005

Kept = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Choices:
    """What a search chooses for an amount, and what goes by that.

    `axes` have costs in the currency of what is `wanted`; `most` of it can go.
    """

    choose: Callable[[float], Kept]
    gone: Callable[[Kept], float]
    axes: Sequence[Axis]
    wanted: float
    most: float
    known: dict[frozenset[tuple[str, tuple[int, ...]]], float] = field(default_factory=dict)

    def lost(self, keep: Kept) -> float:
        """What goes by a choice; to find it may take some tenths of a second, once."""
        key = frozenset(keep.items())
        if key not in self.known:
            self.known[key] = self.gone(keep)
        return self.known[key]

    def missing(self, keep: Kept) -> float:
        """What the units of a choice cost, and does not go with them."""
        units = (a.units - len(keep[a.name]) if a.name in keep else 0 for a in self.axes)
        paid = sum(n * axis.cost for n, axis in zip(units, self.axes, strict=True))
        return paid - self.lost(keep)

    def off(self, keep: Kept) -> float:
        """How far what goes is from what is wanted."""
        return abs(self.lost(keep) - self.wanted)


def corrected(choices: Choices, foreseen: Kept) -> Kept:
    """The best of the choices for what is wanted and what was missing from the one before.

    Before the first that is what is missing from the choice `foreseen`.
    """
    more = choices.missing(foreseen) if choices.wanted > 0 else 0.0
    tried: list[Kept] = []
    for _ in range(_CORRECTIONS):
        keep = choices.choose(min(max(choices.wanted + more, 0.0), choices.most))
        tried.append(keep)
        told_wrong = abs(choices.missing(keep) - more)
        if min(told_wrong, choices.off(keep)) <= _NEAR * choices.wanted:
            break
        more = choices.missing(keep)
    return min(tried, key=choices.off)


def nearest(choices: Choices, first: Kept) -> Kept:
    """Of the choice `first` and those for more or less, what loses nearest to what is wanted.

    By bisection: a larger budget never loses less.
    """
    low = choices.wanted if choices.lost(first) <= choices.wanted else 0.0
    high, best = choices.most, first
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        keep = choices.choose(middle)
        best = min(best, keep, key=choices.off)
        low, high = (middle, high) if choices.lost(keep) < choices.wanted else (low, middle)
    return best


def one_step(axes: Sequence[Axis], limits: Limits) -> Kept:
    """A choice by which each fine axis loses one step: what a repair adds shows by it."""
    keep: Kept = {}
    for axis in limits.selected(axes):
        each = axis.units // axis.groups
        left = max(each - limits.grid(axis), limits.floor(axis))
        if not axis.of and axis.layer >= 0:
            keep[axis.name] = tuple(unit for unit in range(axis.units) if unit % each < left)
    return keep

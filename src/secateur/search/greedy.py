"""One whole layer at a time: after each removal the scores of the rest are taken anew.

What a layer is worth depends on the layers around it: of two that do the same, either can go, and
not both. Scores that were all taken on the whole model do not see that.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ..structure import Axis

# The scores of the axes that are left, by name, in the model without these layers.
ScoresWithout = Callable[[frozenset[int]], Mapping[str, Tensor]]


def one_by_one(axes: Sequence[Axis], budget: float, scores: ScoresWithout) -> list[Axis]:
    """The `axes` (whole layers) that go, in order, until what is gone is nearest to `budget`."""
    gone: list[Axis] = []
    spent = 0
    while left := [axis for axis in axes if axis not in gone]:
        if spent + min(axis.cost for axis in left) / 2 > budget:
            break  # scores are a pass over the model: none for nothing
        found = scores(frozenset(axis.layer for axis in gone))
        least = min(left, key=lambda axis: float(found[axis.name].sum()))
        if spent + least.cost / 2 > budget:
            break
        gone.append(least)
        spent += least.cost
    return gone

"""Fine units and the whole block that they are all of, as one axis: the block is its last step.

A search that takes one of them for a step of the other never pays twice, as it would for the block
of a layer some of whose units are gone. What its last step takes is what the steps before left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ..structure import Axis
from .registry import Units
from .removal import Removal


def blocks_of(axes: Sequence[Axis]) -> dict[str, str]:
    """The blocks among `axes` by the axis there of which they are all units."""
    names = {axis.name for axis in axes}
    alone = (axis for axis in axes if len(axis.of) == 1 and axis.units == 1)
    return {axis.of[0]: axis.name for axis in alone if axis.of[0] in names}


def joined(removals: Mapping[str, Removal], blocks: Mapping[str, str]) -> dict[str, Removal]:
    """The removals with those of `blocks` as last steps of the axes that they are of."""
    found = {name: one for name, one in removals.items() if name not in blocks.values()}
    for name, block in blocks.items():
        found[name] = _with_last(removals[name], float(removals[block].scores.sum()))
    return {name: found[name] for name in removals if name in found}


def _with_last(removal: Removal, score: float) -> Removal:
    """A removal with one step more that takes all units; `score` is that of all of them."""
    units = len(removal.order)
    counts = torch.diff(removal.ends, prepend=removal.ends.new_zeros(1))
    left = units - int(counts.sum())
    if not left:
        return removal
    mean = (score - float((removal.scores.double() * counts).sum())) / left
    # units that stay have larger scores; sums of very unlike ones may not say so
    lowest = float(removal.scores[-1]) if len(removal.scores) else mean
    return replace(
        removal,
        ends=torch.cat([removal.ends, removal.ends.new_tensor([units])]),
        scores=torch.cat([removal.scores, removal.scores.new_tensor([max(mean, lowest)])]),
    )


def parted(units: Units, removals: Mapping[str, Removal], blocks: Mapping[str, str]) -> Units:
    """What goes, with the block in the place of all its units."""
    found: dict[str, tuple[int, ...]] = {}
    for name, gone in units.items():
        whole = name in blocks and len(gone) == len(removals[name].order)
        found[name] = () if whole else gone
        if name in blocks:
            found[blocks[name]] = (0,) if whole else ()
    return found

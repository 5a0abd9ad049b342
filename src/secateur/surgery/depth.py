"""What whole layers and blocks leave behind: gaps in the residual stream, and who mends them.

The last consumer before a gap is the only linear that can give what the gap took away before
anything reads the stream. Its target is the dense stream AFTER the gap, S*, so that with the
student's stream S' before its sub-block and the multiplier m of its layer

    T = (S* - S') / m

A removed layer whose output is its input plus a linear map of that consumer's output is repaired
exactly that way (so do ReplaceMe, 2505.02819, with a matrix merged into the MLP, and Prune&Comp,
2507.18212, with a scale). S* lies ahead of the layer that is being repaired, so the dense model
walks there first, once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..progress import Progress
from ..stats import Activations, LayerStep, Walk
from ..stats.stream import Call
from ..stats.substitute import substituted
from ..structure import Axis, Kind, Plan, Structure
from .observe import Consumer, see, stream_multipliers

BLOCKS = ("attention_block", "mlp_block")
COARSE = ("layer", *BLOCKS)
# A sub-block of the stream: its layer, and which of the two it is.
Place = tuple[int, Kind]


def with_consumers(structure: Structure, whole: Structure) -> Structure:
    """The structure with the fine axes of `whole` that it lacks: their consumers are fitted too."""
    have = {member.tensor for axis in structure.axes if not axis.of for member in axis.consumers}
    more = [a for a in whole.select().axes if a.consumer.tensor not in have]
    return replace(structure, axes=(*structure.axes, *more))


@dataclass(frozen=True)
class Depth:
    """Layers and blocks that go, and gaps: the sub-block before each, and the last one in it."""

    layers: frozenset[int] = frozenset()
    blocks: Mapping[Place, Axis] = field(default_factory=dict)
    gaps: Mapping[Place, Place] = field(default_factory=dict)

    @classmethod
    def of(cls, axes: Sequence[Axis], plan: Plan) -> "Depth":
        """Those that `plan` removes whole; `axes` are the fine ones and the coarse ones."""
        gone = [a for a in axes if a.granularity in COARSE and plan.removed(a)]
        layers = frozenset(a.layer for a in gone if a.granularity == "layer")
        blocks = {(a.layer, a.kind): a for a in gone if a.granularity in BLOCKS}
        fine = {(a.layer, a.kind) for a in axes if not a.of and a.layer >= 0}
        order: list[Place] = sorted(fine)  # attention before mlp, as letters have it
        gaps: dict[Place, Place] = {}
        last: Place | None = None
        for place in order:
            if place[0] in layers or place in blocks:
                if last is not None:
                    gaps[last] = place
            else:
                last = place
        return cls(layers, blocks, gaps)

    def starts_in(self, layer: int) -> bool:
        """Whether something goes in this layer, or just after one of its sub-blocks."""
        return (
            layer in self.layers
            or any(place[0] == layer for place in self.blocks)
            or any(place[0] == layer for place in self.gaps)
        )


def streams_after(
    walk: Walk, axes: Sequence[Axis], depth: Depth, *, progress: Progress | None = None
) -> dict[Place, Activations]:
    """The dense stream after each gap that has a place there, by the sub-block before the gap."""
    if not depth.gaps:
        return {}
    found: dict[Place, Activations] = {}
    ends = {end: start for start, end in depth.gaps.items()}
    last = max(layer for layer, _ in ends)
    dense = walk.embed()
    for step in walk.layers(progress=progress, stage="dense stream"):
        own = [axis for axis in axes if axis.layer == step.index and not axis.of]
        kinds = sorted({axis.kind for axis in own})
        for kind in kinds[:-1]:
            if (step.index, kind) in ends:
                between = _between(walk, step, dense, own, kind)
                if between is not None:
                    found[ends[step.index, kind]] = between
        step.run(dense)
        if kinds and (step.index, kinds[-1]) in ends:
            found[ends[step.index, kinds[-1]]] = dense.clone(limit=walk.limit)
        if step.index == last:
            break
    return found


def _between(
    walk: Walk, step: LayerStep, dense: Activations, axes: Sequence[Axis], kind: Kind
) -> Activations | None:
    """The stream after the sub-blocks up to `kind`: what the layer got, and what they add.

    None where there is no such place: the sub-blocks run side by side, and the others of the layer
    repay what goes; or a norm stands between, and nothing can be added.
    """
    whole = Plan({}, "", "")
    linears = [axis for axis in axes if axis.consumer.parameter == "weight"]
    consumers = [Consumer.of(axis, whole, step.module) for axis in linears]
    names = {axis.consumer.module for axis in linears if axis.kind <= kind}
    _, hidden, call = next(step.batches(dense))
    multipliers = stream_multipliers(step.module, hidden, call, consumers)
    later = [c for c in consumers if c.name not in names]
    if None in [multipliers[name] for name in names] or _side_by_side(
        step, hidden, call, consumers, later
    ):
        return None
    after = dense.clone(limit=walk.limit)
    for windows, hidden, call in step.batches(dense):
        seen = see(step.module, hidden, call, consumers)
        for name in names:
            hidden = hidden + (multipliers[name] or 0.0) * seen.outputs[name]
        after[windows] = hidden
    return after


def _side_by_side(
    step: LayerStep,
    hidden: Tensor,
    call: Call,
    consumers: Sequence[Consumer],
    later: Sequence[Consumer],
) -> bool:
    """Whether the `later` consumers do not see what the others gave."""
    names = {consumer.name for consumer in later}
    silent: dict[tuple[nn.Module, str], nn.Parameter | None] = {}
    for consumer in consumers:
        if consumer.name not in names:
            silent |= consumer.edit(torch.zeros_like(consumer.weight), None)
    seen = see(step.module, hidden, call, consumers)
    with substituted(silent):
        without = see(step.module, hidden, call, consumers)
    return all(torch.equal(seen.inputs[name], without.inputs[name]) for name in names)

"""What whole layers and blocks leave behind: gaps in the residual stream, and who mends them.

The last consumer before a gap is the only linear that can give what the gap took away before
anything reads the stream. Its target is the dense stream AFTER the gap, S*, so that with the
student's stream S' before its sub-block and the multiplier m of its layer

    T = (S* - S') / m

A removed layer whose output is its input plus a linear map of that consumer's output is repaired
exactly that way (so do ReplaceMe, 2505.02819, with a matrix merged into the MLP, and Prune&Comp,
2507.18212, with a scale). S* lies ahead of the layer that is being repaired, so the dense model
walks there first, once.

What stays within a gap (a convolution that no unit owns) adds its part itself: in the layer where
the gap ends, S* is the stream before it and what goes gave. In the layers before that one nothing
may stay but consumers; the numbers are asked for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import Kept, checksum, damaged
from ..stats import Activations, LayerStep, Walk
from ..stats.collect import find
from ..stats.stream import Call, hidden_of
from ..stats.substitute import Substitutes, substituted
from ..structure import Axis, Kind, Plan, Structure
from .observe import Consumer, residual_multiplier, see, stream_multipliers

BLOCKS = ("attention_block", "mlp_block")
WHOLE = ("layer", *BLOCKS)
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
        gone = [a for a in axes if a.granularity in WHOLE and plan.removed(a)]
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

    def spans(self, layer: int) -> bool:
        """Whether this layer stays, and a gap begins in it or goes on beyond it."""
        inside = (layer in _before(start, end) for start, end in self.gaps.items())
        return layer not in self.layers and any(inside)

    def silenced(self, step: LayerStep) -> Substitutes:
        """Blocks that go add nothing: what they write with is zero."""
        edits: dict[tuple[nn.Module, str], nn.Parameter | None] = {}
        for (layer, _), axis in self.blocks.items():
            for member in axis.consumers if layer == step.index else ():
                module = find(step.module, member.module, layer)
                bias = "bias" if member.parameter == "weight" else f"{member.parameter}_bias"
                for name in (member.parameter, bias):
                    if (whole := module._parameters.get(name)) is not None:
                        silent = torch.zeros_like(whole.detach())
                        edits[module, name] = nn.Parameter(silent, requires_grad=False)
        return edits

    @property
    def begun(self) -> set[int]:
        """The layers where something goes, or just after one of their sub-blocks."""
        return {*self.layers, *(place[0] for place in (*self.blocks, *self.gaps))}


def _before(start: Place, end: Place) -> range:
    """The layers that a gap begins in and passes, up to the one where it ends."""
    return range(start[0], max(end[0], start[0] + 1))


def streams_after(walk: Walk, axes: Sequence[Axis], depth: Depth) -> dict[Place, Activations]:
    """The dense stream after each gap that has a place there, by the sub-block before the gap.

    There is none where something that stays adds to the stream before the layer where it ends.
    """
    if not depth.gaps:
        return {}
    kept = _pass(walk, depth)
    ahead = _Ahead(walk, kept)
    if not kept.whole:
        _look_ahead(walk, axes, depth, ahead)
        kept.end()
    return ahead.found


def forget_streams(walk: Walk, depth: Depth) -> None:
    """They are hidden states, as large as all windows, and of use to one repair alone."""
    if depth.gaps:
        _pass(walk, depth).drop()


def _pass(walk: Walk, depth: Depth) -> Kept:
    gaps, blocks = sorted(depth.gaps.items()), sorted(depth.blocks)
    return walk.kept_with_states(
        "dense stream", gaps=gaps, blocks=blocks, layers=sorted(depth.layers)
    )


class _Ahead:
    """Dense streams after gaps, by the sub-block before; and layers where others add to it."""

    def __init__(self, walk: Walk, kept: Kept) -> None:
        self._walk, self.kept = walk, kept
        self.found: dict[Place, Activations] = {}
        self.adding: set[int] = set()
        for index in kept.layers:
            value = kept.value(index)
            self.adding |= {index} if value["adds"] else set()
            for place, shape, total in value["found"]:
                states = self._states(place, shape, walk.source.dtype)
                if kept.folder is not None and checksum(states.tensor) != total:
                    raise damaged(kept.folder)
                self.found[place[0], place[1]] = states

    def _states(self, place: Sequence[Any], shape: Sequence[int], dtype: Any) -> Activations:
        count, length, width = shape
        name = f"after-{place[0]}-{place[1]}"
        return self._walk.kept_states(self.kept, name, (count, length, width), dtype)

    def add(self, start: Place, states: Activations) -> tuple[Place, list[int], int]:
        """Keep the stream after the gap that follows `start`; what says so in the layer's value."""
        if self.kept.folder is not None:
            own = self._states(start, states.tensor.shape, states.tensor.dtype)
            own.tensor.copy_(states.tensor)
            states = own
        self.found[start] = states
        return start, list(states.tensor.shape), checksum(states.tensor)


def _look_ahead(walk: Walk, axes: Sequence[Axis], depth: Depth, ahead: _Ahead) -> None:
    """The pass: the dense model up to where the last gap ends."""
    ends = {end: start for start, end in depth.gaps.items()}
    dense = walk.embed(ahead.kept)
    highest = max(layer for layer, _ in ends)
    for step in walk.layers(ahead.kept, {"hidden": dense}, highest=highest, stage="dense stream"):
        own = [axis for axis in axes if axis.layer == step.index and not axis.of]
        kinds = sorted({axis.kind for axis in own})
        found = []
        for kind in kinds[:-1]:
            start = ends.get((step.index, kind))
            if start is not None and not ahead.adding.intersection(
                _before(start, (step.index, kind))
            ):
                between = _between(walk, step, dense, own, kind)
                if between is not None:
                    found.append(ahead.add(start, between))
        adds = depth.spans(step.index) and not _consumers_alone(step, dense, own, depth)
        if adds:
            ahead.adding.add(step.index)
        place = (step.index, kinds[-1]) if kinds else None
        start = ends.get(place) if place else None
        if place and start is not None and not ahead.adding.intersection(_before(start, place)):
            stays = step.index not in depth.layers and step.index != start[0]
            silent = depth.silenced(step) if stays else None
            found.append(ahead.add(start, _with_what_goes(walk, step, dense, silent)))
        step.value = {"found": found, "adds": adds}
        step.run(dense)


def _with_what_goes(
    walk: Walk, step: LayerStep, dense: Activations, silent: Substitutes | None
) -> Activations:
    """The stream after a layer; with `silent`, less what the layer gives without its blocks."""
    after = dense.clone(limit=walk.limit)
    step.run(after)
    if silent is not None:
        for windows, hidden, (args, kwargs) in step.batches(dense):
            with substituted(silent), torch.no_grad():
                without = hidden_of(step.module(hidden, *args, **kwargs))
            after[windows] = after[windows].to(hidden.device) - (without - hidden)
    return after


def _consumers_alone(
    step: LayerStep, dense: Activations, axes: Sequence[Axis], depth: Depth
) -> bool:
    """Whether nothing but the consumers that stay adds to the stream in a layer."""
    staying = [axis for axis in axes if (axis.layer, axis.kind) not in depth.blocks]
    if any(not axis.consumer.linear for axis in staying):
        return False
    whole = Plan({}, "", "")
    consumers = [Consumer.of(axis, whole, step.module) for axis in staying]
    _, hidden, call = next(step.batches(dense))
    with substituted(depth.silenced(step)):
        seen = see(step.module, hidden, call, consumers)

    def alone() -> bool:
        if not consumers:
            return torch.equal(seen.before, seen.after)
        outputs = list(seen.outputs.values())
        return residual_multiplier(seen.before, seen.after, outputs) is not None

    return step.walk.ranks.told("consumers alone", alone)


def _between(
    walk: Walk, step: LayerStep, dense: Activations, axes: Sequence[Axis], kind: Kind
) -> Activations | None:
    """The stream after the sub-blocks up to `kind`: what the layer got, and what they add.

    None where there is no such place: the sub-blocks run side by side, and the others of the layer
    repay what goes; or a norm stands between, and nothing can be added.
    """
    whole = Plan({}, "", "")
    linears = [axis for axis in axes if axis.consumer.linear]
    consumers = [Consumer.of(axis, whole, step.module) for axis in linears]
    names = {axis.consumer.module for axis in linears if axis.kind <= kind}
    _, hidden, call = next(step.batches(dense))
    measured = stream_multipliers(step.module, hidden, call, consumers)
    later = [c for c in consumers if c.name not in names]

    def found() -> dict[str, float | None] | None:
        unlike = None in [measured[name] for name in names]
        beside = unlike or _side_by_side(step, hidden, call, consumers, later)
        return None if beside else measured

    multipliers = walk.ranks.told("multipliers", found)
    if multipliers is None:
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

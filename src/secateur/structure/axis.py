"""Axes of coupled structure: the frozen description that every stage works on.

A *unit* is the smallest thing that can be removed: a KV group with its query heads, an MLP
channel. An *axis* is a row of like units in one layer (all KV groups of layer 3). A *member* says
which indices of which tensor belong to unit `u` of an axis:

    offset + u * stride + [0, width)                                   u = 0, 1, ...
    offset + g * jump + j * stride + [0, width)                        u = g * group + j

so that contiguous heads, fused projections (several members of one tensor), interleaved ones
(stride wider than width), query heads inside a KV group and channels inside experts (second line)
are the same thing with other numbers. A member is a *producer* (rows of q, k, v, gate, up and
their biases: what writes the unit's activations) or a *consumer* (columns of o and down: what
reads them).
"""

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

FORMAT = "secateur-structure-2"

# What a unit can be, by name.
GRANULARITIES: dict[str, str] = {
    "kv_group": "a KV head with its query heads",
    "query_head": "a query head; the same number goes from each KV group",
    "channel": "an MLP channel",
    "expert_channel": "a channel of an expert; the same number goes from each",
    "expert": "an expert with its row of the router",
    "attention_block": "all of a layer's attention",
    "mlp_block": "all of a layer's MLP",
    "layer": "a decoder layer",
    "hidden": "a channel of the residual stream, in all layers",
}

Role = Literal["producer", "consumer"]
Kind = Literal["attention", "mlp", "layer", "hidden"]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Index map of an axis onto a tensor: one block of `width` a unit (see the top of this file).

    `group` is 0 where units are not grouped.
    """

    offset: int
    stride: int
    width: int
    group: int = 0
    jump: int = 0

    def indices(self, units: Int64[Tensor, " unit"]) -> Int64[Tensor, "unit width"]:
        """Indices that `units` own, in ascending order within each unit."""
        starts = units * self.stride
        if self.group:
            starts = units // self.group * self.jump + units % self.group * self.stride
        return self.offset + starts[:, None] + torch.arange(self.width)[None, :]

    def end(self, units: int) -> int:
        """One past the last index that `units` units own."""
        return int(self.indices(torch.tensor([units - 1]))[0, -1]) + 1 if units else 0

    def plain(self) -> "Blocks":
        """Without groups, where these do not matter: the jump only goes on from the last unit."""
        if self.group == 1:
            return Blocks(self.offset, self.jump, self.width)
        if self.group and self.jump == self.group * self.stride:
            return Blocks(self.offset, self.stride, self.width)
        return self


@dataclass(frozen=True, slots=True)
class Member:
    """The slices of one tensor that belong to the units of an axis.

    `module` is the dotted path in the model, `parameter` the tensor's name in it. The indices run
    along `dims`: one dimension, or two (the experts and their channels) flattened in that order.
    """

    module: str
    parameter: str
    dims: tuple[int, ...]
    blocks: Blocks
    role: Role

    @property
    def tensor(self) -> str:
        """Name of the tensor in the checkpoint."""
        return f"{self.module}.{self.parameter}"

    @property
    def dim(self) -> int:
        """The dimension that gets smaller when units go."""
        return self.dims[-1]

    @property
    def linear(self) -> bool:
        """Whether it is the weight of one linear: experts share a tensor, whatever its name.

        Not to be asked of whole experts, whose one dimension is that of the experts.
        """
        return self.parameter == "weight" and len(self.dims) == 1

    def view(self, tensor: Tensor, units: int) -> Float[Tensor, "unit width fan"]:
        """The slices of `tensor` that all `units` own, in one shape whatever the layout.

        `width` runs over the unit's indices along `dims`, `fan` over everything else.
        """
        indices = self.blocks.indices(torch.arange(units))
        front = tensor.movedim(self.dims, tuple(range(len(self.dims))))
        rows = front.flatten(0, len(self.dims) - 1)[indices.flatten().to(tensor.device)]
        return rows.reshape(units, self.blocks.width, -1)

    def masked(self, tensor: Tensor, units: Int64[Tensor, " unit"]) -> Tensor:
        """A copy of `tensor` in which the slices that `units` own are zero."""
        order = tuple(range(len(self.dims)))
        front = tensor.movedim(self.dims, order)
        rows = front.flatten(0, len(self.dims) - 1)
        gone = self.blocks.indices(units).flatten().to(tensor.device)
        return rows.index_fill(0, gone, 0).view(front.shape).movedim(order, self.dims)

    def scaled(self, tensor: Tensor, gates: Float[Tensor, " unit"]) -> Tensor:
        """A copy of `tensor` whose slices are multiplied by the `gates` of their units."""
        order = tuple(range(len(self.dims)))
        front = tensor.movedim(self.dims, order)
        rows = front.flatten(0, len(self.dims) - 1)
        indices = self.blocks.indices(torch.arange(len(gates))).to(tensor.device)
        factor = tensor.new_ones(len(rows))
        factor[indices.flatten()] = gates.to(tensor.dtype).repeat_interleave(indices.shape[1])
        shape = (len(rows), *[1] * (rows.dim() - 1))
        return (rows * factor.view(shape)).view(front.shape).movedim(order, self.dims)

    def joined(self, other: "Member") -> "Member | None":
        """Make one of this member and `other`, if that goes on where this ends in every unit."""
        ours, theirs = self.blocks, other.blocks
        same = (self.tensor, self.dims, self.role, ours.stride, ours.group, ours.jump) == (
            (other.tensor, other.dims, other.role, theirs.stride, theirs.group, theirs.jump)
        )
        if not same or ours.offset + ours.width != theirs.offset:
            return None
        return replace(self, blocks=replace(ours, width=ours.width + theirs.width))


@dataclass(frozen=True, slots=True)
class Axis:
    """`units` like units in one layer that can each be removed.

    `cost` is the number of parameters that leave with one unit, biases included. `size` is the
    letter of the layout that counts the units (see `size.py`). The same number of units has to
    go from each of the `groups` that the units fall into in order, and `floor` of each stay.
    `per_unit` is the number of query heads in a unit of attention, else 1. `of` names the finer
    axes that a coarse one (whole experts, blocks, layers) is made of, in the units' order.
    """

    name: str
    layer: int
    kind: Kind
    granularity: str
    units: int
    cost: int
    size: str
    members: tuple[Member, ...]
    groups: int = 1
    per_unit: int = 1
    floor: int = 1
    of: tuple[str, ...] = ()

    @property
    def consumers(self) -> tuple[Member, ...]:
        """Members that read the units' activations; their inputs are what statistics are of."""
        return tuple(member for member in self.members if member.role == "consumer")

    @property
    def consumer(self) -> Member:
        """The member whose input the scores look at."""
        return self.consumers[0]


@dataclass(frozen=True)
class Structure:
    """All axes of a model, and which model they belong to.

    `prunable` counts the parameters that belong to some KV group or channel, the decoder's
    linears; ratios are shares of it, whatever the granularity.

    `architecture` is a hash of the tensor names, shapes and the model type: plans fit any model
    with the same one. `weights` is a hash of a sample of the weights: another fine-tune of the
    same architecture has another one.
    """

    family: str
    axes: tuple[Axis, ...]
    parameters: int
    prunable: int
    architecture: str
    weights: str

    def select(self, granularities: Collection[str] = ()) -> "Structure":
        """The structure with the axes of these granularities only.

        By default those that prune best at the least loss of shape: KV groups (query heads where
        a layer has one KV head for all), MLP channels, channels inside experts.
        """
        shared = {a.layer for a in self.axes if a.granularity == "query_head" and a.groups == 1}

        def chosen(axis: Axis) -> bool:
            if granularities:
                return axis.granularity in granularities
            if axis.kind == "attention":
                heads = axis.layer in shared
                return axis.granularity == ("query_head" if heads else "kv_group")
            return axis.granularity in ("channel", "expert_channel")

        return replace(self, axes=tuple(axis for axis in self.axes if chosen(axis)))

    @property
    def layers(self) -> int:
        """Number of decoder layers that have an axis."""
        return 1 + max((axis.layer for axis in self.axes), default=-1)

    @cached_property
    def by_name(self) -> Mapping[str, Axis]:
        """Axes by name."""
        return {axis.name: axis for axis in self.axes}

    def to_json(self) -> str:
        """The structure as JSON text, all of it."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"

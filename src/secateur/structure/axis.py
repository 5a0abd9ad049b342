"""Axes of coupled structure: the frozen description that every stage works on.

A *unit* is the smallest thing that can be removed: a KV group with its query heads, an MLP
channel. An *axis* is a row of like units in one layer (all KV groups of layer 3). A *member* says
which indices of which tensor belong to unit `u` of an axis:

    offset + u * stride + [0, width)

so that contiguous heads, fused projections (several members of one tensor) and interleaved ones
(stride wider than width) are the same thing with other numbers. A member is a *producer* (rows of
q, k, v, gate, up and their biases: what writes the unit's activations) or a *consumer* (columns of
o and down: what reads them).
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..errors import SecateurError

FORMAT = "secateur-structure-1"

Role = Literal["producer", "consumer"]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Index map of an axis onto one dimension of a tensor: one block of `width` a unit."""

    offset: int
    stride: int
    width: int

    def indices(self, units: Int64[Tensor, " unit"]) -> Int64[Tensor, "unit width"]:
        """Indices that `units` own, in ascending order within each unit."""
        within = torch.arange(self.width)
        return self.offset + units[:, None] * self.stride + within[None, :]


@dataclass(frozen=True, slots=True)
class Member:
    """The slices of one tensor that belong to the units of an axis.

    `module` is the dotted path in the model, `parameter` is `weight` or `bias`.
    """

    module: str
    parameter: str
    dim: int
    blocks: Blocks
    role: Role

    @property
    def tensor(self) -> str:
        """Name of the tensor in the checkpoint."""
        return f"{self.module}.{self.parameter}"

    def view(self, tensor: Tensor, units: int) -> Float[Tensor, "unit width fan"]:
        """The slices of `tensor` that all `units` own, in one shape whatever the layout.

        `width` runs over the unit's indices along `dim`, `fan` over everything else.
        """
        indices = self.blocks.indices(torch.arange(units))
        rows = tensor.movedim(self.dim, 0)[indices.flatten().to(tensor.device)]
        return rows.reshape(units, self.blocks.width, -1)


@dataclass(frozen=True, slots=True)
class Axis:
    """`units` like units in one layer that can each be removed.

    `cost` is the number of parameters that leave with one unit, biases included. `counts` says
    how the model's config counts them: one unit is so many of each attribute.
    """

    name: str
    layer: int
    kind: str
    granularity: str
    units: int
    cost: int
    counts: tuple[tuple[str, int], ...]
    members: tuple[Member, ...]

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

    `architecture` is a hash of the tensor names, shapes and the model type: plans fit any model
    with the same one. `weights` is a hash of a sample of the weights: another fine-tune of the
    same architecture has another one.
    """

    family: str
    axes: tuple[Axis, ...]
    parameters: int
    architecture: str
    weights: str

    @property
    def prunable(self) -> int:
        """Parameters that belong to some unit: the decoder's linears."""
        return sum(axis.units * axis.cost for axis in self.axes)

    @property
    def layers(self) -> int:
        """Number of decoder layers that have an axis."""
        return 1 + max((axis.layer for axis in self.axes), default=-1)

    @cached_property
    def by_name(self) -> Mapping[str, Axis]:
        """Axes by name."""
        return {axis.name: axis for axis in self.axes}

    def to_json(self) -> str:
        """The structure as JSON text; `from_json` gives an equal value back."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Structure":
        """Read what `to_json` wrote.

        Raises:
            SecateurError: not such a file, or one of another version.
        """
        try:
            raw = json.loads(text)
            if raw.pop("format", None) != FORMAT:
                raise SecateurError(f"Not a structure file of format {FORMAT!r}.")
            return cls(**{**raw, "axes": tuple(_axis(axis) for axis in raw["axes"])})
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise SecateurError(f"Not a structure file: {error}.") from error


def _axis(raw: dict[str, Any]) -> Axis:
    members = tuple(
        Member(**{**member, "blocks": Blocks(**member["blocks"])}) for member in raw["members"]
    )
    counts = tuple((str(name), int(count)) for name, count in raw["counts"])
    return Axis(**{**raw, "members": members, "counts": counts})

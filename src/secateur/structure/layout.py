"""A layout: the coupled structures of one decoder layer with letters for sizes.

Both routes end here: a family's layout is declared as data, or traced from the family's own code.
`Coupling.axis` turns it into an axis of a real model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ..errors import SecateurError
from .axis import Axis, Blocks, Kind, Member, Role
from .size import ONE, ZERO, Size


@dataclass(frozen=True, slots=True)
class Slice:
    """The slices of one tensor that a unit owns, with letters for sizes.

    `module` is the path within the layer. Unit `g*group + j` owns, along `dims` (flattened in
    that order), the indices `offset + g*jump + j*stride + [0, width)`; `group` is None where units
    are not grouped (`offset + u*stride`). With `share` each unit owns an equal share of the tensor,
    one after the other, and the numbers say nothing.
    """

    module: str
    parameter: str
    dims: tuple[int, ...]
    role: Role
    offset: Size
    stride: Size
    width: Size
    group: Size | None = None
    jump: Size = ZERO
    share: bool = False

    def member(self, path: str, values: Mapping[str, int], units: int) -> Member:
        """The slices in a model whose layer is at `path` and whose letters have `values`."""
        blocks = Blocks(
            offset=self.offset.at(values),
            stride=self.stride.at(values),
            width=self.width.at(values),
            group=0 if self.group is None else self.group.at(values),
            jump=self.jump.at(values),
        )
        if units == 1:
            blocks = Blocks(blocks.offset, 0, blocks.width)
        module = f"{path}.{self.module}" if self.module else path
        return Member(module, self.parameter, self.dims, blocks.plain(), self.role)


@dataclass(frozen=True, slots=True)
class Coupling:
    """One row of like units in a layer, with letters for sizes.

    `letter` is the size that shrinks by one when a unit goes (from each of `groups`, where the
    same number has to go from each).
    """

    name: str
    kind: Kind
    granularity: str
    letter: str
    units: Size
    slices: tuple[Slice, ...]
    groups: Size = ONE
    per_unit: Size = ONE

    def axis(
        self,
        layer: int,
        path: str,
        values: Mapping[str, int],
        shape_of: Callable[[str], tuple[int, ...] | None],
    ) -> Axis:
        """The axis of layer `layer`, for tensors with the shapes that `shape_of` gives.

        Slices of tensors that the model does not have (optional biases and norms) are left out.

        Raises:
            SecateurError: a tensor is too small for what the layout says.
        """
        units = self.units.at(values)
        members: list[Member] = []
        cost = 0
        for piece in self.slices:
            member = piece.member(path, values, units)
            shape = shape_of(member.tensor)
            if shape is None:
                continue
            along = 1
            for dim in member.dims:
                along *= shape[dim]
            if piece.share:
                width = along // units
                blocks = Blocks(0, width if units > 1 else 0, width)
                member = replace(member, blocks=blocks)
            if member.blocks.end(units) > along:
                raise SecateurError(
                    f"{member.tensor} has size {along} where the layout needs"
                    f" {member.blocks.end(units)} for {units} units: config.json does not"
                    " describe this model."
                )
            total = 1
            for size in shape:
                total *= size
            members.append(member)
            cost += member.blocks.width * (total // along)
        return Axis(
            name=f"layers.{layer}.{self.name}",
            layer=layer,
            kind=self.kind,
            granularity=self.granularity,
            units=units,
            cost=cost,
            size=self.letter,
            members=merged(members),
            groups=self.groups.at(values),
            per_unit=self.per_unit.at(values),
        )


def merged(members: list[Member]) -> tuple[Member, ...]:
    """Members that lie side by side in a tensor in every unit become one (fused q, k and v)."""
    result: list[Member] = []
    for member in members:
        for index, other in enumerate(result):
            joined = other.joined(member) or member.joined(other)
            if joined is not None:
                result[index] = joined
                break
        else:
            result.append(member)
    return tuple(result)

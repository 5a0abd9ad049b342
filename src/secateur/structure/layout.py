"""A layout: the coupled structures of one decoder layer with letters for sizes.

Both routes end here: a family's layout is declared as data, or traced from the family's own code.
`Coupling.axis` turns it into an axis of a real model.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import SecateurError
from .axis import Axis, Blocks, Kind, Member, Role
from .size import ONE, ZERO, E, K, Size, letter

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

# By granularity: of what kind its units are, the letter that one less of them makes smaller by one,
# and how many groups they fall into, from each of which the same number has to go.
_COUNTED: dict[str, tuple[Kind, str, Size]] = {
    "kv_group": ("attention", "K", ONE),
    "query_head": ("attention", "r", K),
    "channel": ("mlp", "I", ONE),
    "expert_channel": ("mlp", "I", E),
    "expert": ("mlp", "E", ONE),
}


@dataclass(frozen=True, slots=True)
class Slice:
    """The slices of one tensor that a unit owns, with letters for sizes: a `Member` to be.

    `module` is the path within the layer. Unit j of group g owns, along `dims` (flattened in that
    order), the indices `offset + g*jump + j*stride + [0, width)`; where `jump` is zero, units are
    counted through all groups. By default they lie without gaps, and without a `width` each owns an
    equal share of the tensor.
    """

    module: str
    parameter: str
    dims: tuple[int, ...]
    role: Role
    width: Size | None = None
    offset: Size = ZERO
    stride: Size | None = None
    jump: Size = ZERO

    def tensor(self, path: str) -> str:
        """Name of the tensor in a model whose layer is at `path`."""
        return ".".join(part for part in (path, self.module, self.parameter) if part)

    def member(
        self, path: str, values: Mapping[str, int], shape: Shape, units: int, group: int
    ) -> Member:
        """The slices of a tensor with this shape, where the letters have `values`.

        Raises:
            SecateurError: the tensor is too small for what the layout says.
        """
        size = math.prod(shape[dim] for dim in self.dims)
        width = max(size // units, 1) if self.width is None else self.width.at(values)
        stride = width if self.stride is None else self.stride.at(values)
        jump = self.jump.at(values)
        blocks = Blocks(self.offset.at(values), stride, width, group if jump else 0, jump).plain()
        if units == 1:
            blocks = Blocks(blocks.offset, 0, width)
        name = self.tensor(path)
        if blocks.end(units) > size:
            raise SecateurError(
                f"{name} has size {size} where the layout needs {blocks.end(units)} for {units}"
                " units: config.json does not describe this model."
            )
        return Member(name.rpartition(".")[0], self.parameter, self.dims, blocks, self.role)


@dataclass(frozen=True, slots=True)
class Coupling:
    """One row of like units in a layer, with letters for sizes: an `Axis` to be."""

    name: str
    granularity: str
    slices: tuple[Slice, ...]

    @property
    def kind(self) -> Kind:
        """Of what kind the units are."""
        return _COUNTED[self.granularity][0]

    @property
    def reader(self) -> Slice:
        """What reads the units' activations."""
        return next(piece for piece in self.slices if piece.role == "consumer")

    def axis(self, layer: int, path: str, values: Mapping[str, int], shapes: Shapes) -> Axis:
        """The axis of layer `layer`, for a model whose tensors have these shapes, in its order.

        Slices of tensors that the model does not have (optional biases and norms) are left out.

        Raises:
            SecateurError: a tensor has not the size that the layout says.
        """
        kind, size, groups = _COUNTED[self.granularity]
        units = (groups * letter(size)).at(values)
        members = _merged(
            piece.member(path, values, shapes[name], units, values[size])
            for piece in self.slices
            if (name := piece.tensor(path)) in shapes
        )
        if self.granularity != "query_head":  # of fused tensors a head has no share of k and v
            _check_cover(members, units, shapes)
        order = {name: number for number, name in enumerate(shapes)}
        return Axis(
            name=f"layers.{layer}.{self.name}",
            layer=layer,
            kind=kind,
            granularity=self.granularity,
            units=units,
            cost=sum(m.blocks.width * _fan(m, shapes[m.tensor]) for m in members),
            size=size,
            members=tuple(sorted(members, key=lambda m: (order[m.tensor], m.blocks.offset))),
            groups=groups.at(values),
            per_unit=values["r"] if self.granularity == "kv_group" else 1,
        )


def _fan(member: Member, shape: Shape) -> int:
    """How many parameters there are at one index of a member."""
    return math.prod(size for dim, size in enumerate(shape) if dim not in member.dims)


def _check_cover(members: Iterable[Member], units: int, shapes: Shapes) -> None:
    """Units own all of every tensor that they own a part of."""
    owned: dict[tuple[str, tuple[int, ...]], int] = {}
    for member in members:
        key = (member.tensor, member.dims)
        owned[key] = owned.get(key, 0) + member.blocks.width
    for (tensor, dims), width in owned.items():
        size = math.prod(shapes[tensor][dim] for dim in dims)
        if width * units != size:
            raise SecateurError(
                f"{tensor} has size {size} where config.json gives {units} x {width}: the config"
                " does not describe this model."
            )


def _merged(members: Iterable[Member]) -> tuple[Member, ...]:
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

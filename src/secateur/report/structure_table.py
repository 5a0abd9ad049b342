"""The coupled structures of a model as rows that people read."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..structure import GRANULARITIES, Axis, Blocks, Member, Structure, format_ranges

Shapes = Mapping[str, tuple[int, ...]]

UNITS = {
    "kv_group": "KV group",
    "query_head": "query head",
    "channel": "channel",
    "expert_channel": "channel",
    "expert": "expert",
    "attention_block": "attention",
    "mlp_block": "MLP",
    "layer": "layer",
    "hidden": "channel of the residual stream",
}


@dataclass(frozen=True, slots=True)
class StructureRow:
    """The axes of one granularity that are alike but for the layer.

    `units` are those of one layer, in `groups` that lose the same number each. `share` is how much
    of the model the units are, all layers together. `default` says that pruning takes these units
    unless told otherwise.
    """

    granularity: str
    meaning: str
    layers: str
    units: int
    groups: int
    cost: int
    share: float
    members: tuple[str, ...]
    default: bool


def structure_rows(structure: Structure, shapes: Shapes) -> list[StructureRow]:
    """One row for each granularity and kind of layer; `shapes` are the tensors' by name."""
    alike: dict[tuple[Any, ...], list[Axis]] = {}
    for axis in structure.axes:
        members = tuple(_unnumbered(axis.layer, member) for member in axis.members)
        key = (axis.granularity, axis.units, axis.groups, axis.cost, members)
        alike.setdefault(key, []).append(axis)
    chosen = structure.select().by_name
    order = list(GRANULARITIES)
    rows = [_row(axes, structure, shapes, axes[0].name in chosen) for axes in alike.values()]
    return sorted(rows, key=lambda row: order.index(row.granularity))


def _row(axes: Sequence[Axis], structure: Structure, shapes: Shapes, default: bool) -> StructureRow:
    one = axes[0]
    layers = format_ranges(axis.layer for axis in axes) if one.layer >= 0 else "all"
    return StructureRow(
        granularity=one.granularity,
        meaning=GRANULARITIES[one.granularity],
        layers=layers,
        units=one.units,
        groups=one.groups,
        cost=one.cost,
        share=sum(axis.units * axis.cost for axis in axes) / structure.parameters,
        members=member_texts(one, shapes),
        default=default,
    )


def structure_cells(row: StructureRow) -> tuple[str, ...]:
    """A row as cells for people."""
    mark = " *" if row.default else ""
    groups = f"{row.groups} x {row.units // row.groups}" if row.groups > 1 else f"{row.units}"
    return (
        f"{row.granularity}{mark}\n{row.meaning}",
        row.layers,
        groups,
        f"{row.cost:,}",
        percent(row.share),
        "\n".join(row.members),
    )


STRUCTURE_COLUMNS = (
    "granularity",
    "layers",
    "units in\na layer",
    "parameters\nof one",
    "of the\nmodel",
    "what one owns",
)


def percent(share: float) -> str:
    """A share with two digits that say something: 0.31%, 12%."""
    if share >= 0.1:
        return f"{share:.0%}"
    digits = max(0, 1 - math.floor(math.log10(share * 100))) if share else 0
    text = f"{share * 100:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if digits else text}%"


def member_texts(axis: Axis, shapes: Shapes) -> tuple[str, ...]:
    """What a unit owns: `rows of q_proj, k_proj`, `rows 16u.., 96+8u.. of qkv_proj`.

    A bias is named with its weight, and indices only where the units of a tensor do not lie one
    after the other from its start.
    """
    if axis.layer < 0:
        return (f"a row or column of {len(axis.members)} tensors",)
    if axis.kind == "layer":
        return (f"all {len(axis.members)} tensors of it",)
    tensors = by_tensor(axis.members)
    if axis.units == 1 and axis.floor == 0:
        weights = [some[0] for some in tensors if bias_of(some, axis.members) is None]
        return ("all of " + ", ".join(short_name(member) for member in weights),)
    names: dict[str, list[str]] = {}
    biased = {bias_of(members, axis.members) for members in tensors}
    for members in tensors:
        if bias_of(members, axis.members) is None:
            what = word(members[0], shapes, 2)
            if not _in_order(members, axis.units):
                what += " " + ", ".join(index_text(member.blocks) for member in members)
            if axis.groups > 1 and len(members[0].dims) > 1:
                what += " in an expert"
            bias = " + bias" * (members[0] in biased)
            names.setdefault(what, []).append(short_name(members[0]) + bias)
    return tuple(f"{what} of {', '.join(some)}" for what, some in names.items())


def index_text(blocks: Blocks) -> str:
    """The indices that unit u owns: `24+u`, or from where on: `64+8u..`."""
    offset = f"{blocks.offset}+" if blocks.offset else ""
    stride = "" if blocks.stride == 1 else str(blocks.stride)
    return f"{offset}{stride}u{'..' * (blocks.width > 1)}"


def by_tensor(members: Sequence[Member]) -> list[list[Member]]:
    """Members of one tensor together, producers before consumers."""
    tensors: dict[str, list[Member]] = {}
    for member in sorted(members, key=lambda member: member.role == "consumer"):
        tensors.setdefault(member.tensor, []).append(member)
    return list(tensors.values())


def bias_of(members: Sequence[Member], all_members: Sequence[Member]) -> Member | None:
    """The first member of the weight whose bias these are of; None if they are of no bias."""
    parameter = members[0].parameter
    if not parameter.endswith("bias"):
        return None
    weight = parameter.removesuffix("bias").removesuffix("_") or "weight"
    return next(
        (m for m in all_members if (m.module, m.parameter) == (members[0].module, weight)), None
    )


def short_name(member: Member) -> str:
    """The linear's name, or the parameter's where a module has several."""
    name = member.module.rpartition(".")[2]
    if member.parameter == "weight":
        return name
    return f"{name} bias" if member.parameter == "bias" else member.parameter


def word(member: Member, shapes: Shapes, count: int) -> str:
    """What the member's indices are: rows, columns, entries, or whole matrices."""
    shape = shapes[member.tensor]
    if len(shape) == len(member.dims):
        one = "entry"
    elif member.dim == len(shape) - 1:
        one = "column"
    else:
        one = "row" if member.dim == len(shape) - 2 else "matrix"
    many = {"entry": "entries", "matrix": "matrices"}.get(one, f"{one}s")
    return one if count == 1 else many


def _in_order(members: Sequence[Member], units: int) -> bool:
    """Whether the units lie one after the other from the tensor's start."""
    if len(members) > 1:
        return False
    blocks = members[0].blocks
    return units == 1 or (blocks.offset == 0 and blocks.stride == blocks.width)


def _unnumbered(layer: int, member: Member) -> Member:
    """The member with its place in the layer alone."""
    return replace(member, module=f"{member.module}.".partition(f".{layer}.")[2] or member.module)

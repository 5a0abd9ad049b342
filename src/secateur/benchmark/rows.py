"""The rows that a model's linears read: what block formats and kernels cut into pieces.

A row is what one output of a linear reads: its length is the width of the residual stream, of all
heads (o_proj) or of an MLP (down_proj; of one expert, in a mixture).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..structure import Axis, Member, Shapes, Structure
from .count import experts_of, is_router

Part = Literal["embedding", "head", "value", "output", "down", "other", "kept"]

_FINE = ("kv_group", "query_head", "channel", "expert_channel")
# v alone, or in one tensor with q and k, or as MLA makes it
_VALUES = ("v_proj", "qkv", "query_key_value", "c_attn", "W_pack", "kv_b_proj")


@dataclass(frozen=True, slots=True)
class Rows:
    """`rows` rows of `row` values in a tensor of a layer (-1: in none).

    `part`: what of a model it is; `kept` tensors are not quantised (norms, biases, routers).
    """

    tensor: str
    part: Part
    layer: int
    row: int
    rows: int


def rows_of(structure: Structure, shapes: Shapes, embedding: str, head: str) -> list[Rows]:
    """The rows of all tensors in `shapes`, in their order.

    `embedding` and `head` are names of tensors; a head that is not in `shapes` is the embedding.
    """
    members = {
        member.tensor: (axis, member)
        for axis in structure.axes
        if axis.granularity in _FINE
        for member in axis.members
    }
    experts = experts_of(shapes)
    found = []
    for name, shape in shapes.items():
        axis, member = members.get(name, (None, None))
        part = _part(name, shape, axis, member, experts)
        if name in (embedding, head):
            part = "embedding" if name == embedding and head in shapes else "head"
        row = _row(shape, member)
        layer = axis.layer if axis is not None else -1
        found.append(Rows(name, part, layer, row, math.prod(shape) // max(row, 1)))
    return found


def _part(
    name: str, shape: Sequence[int], axis: Axis | None, member: Member | None, experts: set[int]
) -> Part:
    if len(shape) < 2 or name.endswith("bias") or "norm" in name.rpartition(".")[0]:
        return "kept"
    if is_router(name, shape, experts):
        return "kept"
    if axis is None or member is None:
        return "other"
    if member.role == "consumer":
        return "output" if axis.kind == "attention" else "down"
    if axis.kind == "attention" and any(word in name for word in _VALUES):
        return "value"
    return "other"


def _row(shape: Sequence[int], member: Member | None) -> int:
    """Units run along rows that are read, and across those that write them."""
    if member is None or len(shape) < 2:
        return shape[-1] if shape else 1
    if member.role == "consumer":
        return shape[member.dim]
    return next((size for dim, size in enumerate(shape) if dim not in member.dims), shape[-1])


def mlp_axes(structure: Structure) -> Iterator[Axis]:
    """The axes of MLP channels, those of experts among them."""
    return (axis for axis in structure.axes if axis.size == "I" and not axis.of)


def aligned_shapes(structure: Structure, shapes: Shapes, align: int) -> dict[str, tuple[int, ...]]:
    """The shapes that the same total of MLP channels has where widths are multiples of `align`."""
    axes = list(mlp_axes(structure))
    widths = aligned([axis.units // axis.groups for axis in axes], align)
    found = dict(shapes)
    for axis, width in zip(axes, widths, strict=True):
        more = width - axis.units // axis.groups
        for name in dict.fromkeys(member.tensor for member in axis.members):
            if name not in found:
                continue
            own = [member for member in axis.members if member.tensor == name]
            each = _each(own, shapes[name], axis)
            shape = list(found[name])
            shape[own[0].dim] += more * each
            found[name] = tuple(shape)
    return found


def _each(own: Sequence[Member], shape: Sequence[int], axis: Axis) -> int:
    """How much longer a tensor gets in the dimension of its members with a channel in each group.

    Experts are groups: flattened with a dimension of their own, or not there in the indices.
    """
    outer = math.prod(shape[dim] for dim in own[0].dims[:-1])
    return sum(member.blocks.width for member in own) * axis.groups // outer


def aligned(widths: Sequence[int], align: int) -> list[int]:
    """`widths` as multiples of `align`, one at least, of nearly the same total.

    Each is rounded down; what is missing goes to those that lost most.
    """
    found = [max(width // align, 1) * align for width in widths]
    lost = sorted(range(len(widths)), key=lambda at: found[at] - widths[at])
    missing = round((sum(widths) - sum(found)) / align)
    for at in lost[: max(missing, 0)]:
        found[at] += align
    return found


def multiples(rows: Sequence[Rows], of: Sequence[int]) -> list[dict[str, Any]]:
    """By kind of width: how many there are, their range, and how many are multiples of each."""
    kinds: dict[str, list[int]] = {
        "residual stream": [one.row for one in rows if one.part == "head"],
        "attention": [one.row for one in rows if one.part == "output"],
        "MLP": [one.row for one in rows if one.part == "down"],
    }
    return [
        {
            "width": kind,
            "count": len(widths),
            "least": min(widths),
            "most": max(widths),
            "multiples": {str(one): sum(w % one == 0 for w in widths) for one in of},
        }
        for kind, widths in kinds.items()
        if widths
    ]

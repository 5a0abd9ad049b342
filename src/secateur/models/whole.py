"""Units that are whole blocks, whole layers, or channels of the residual stream.

They follow from the fine ones. A block is the module that its KV groups or channels lie in; the
residual stream runs along the dimension of a linear that its own units do not. The score of a
whole unit is the sum of the scores of the fine ones in it.

The first layer stays, and so does the first attention of each kind (full, sliding): caches count
positions there.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ..structure import Axis, Blocks, Kind, Member, Role, Shapes
from .families import Family

FINE = ("kv_group", "channel", "expert_channel")


def whole_units(
    family: Family, shapes: Shapes, config: Any, axes: Sequence[Axis]
) -> Iterator[Axis]:
    """Blocks and layers where `axes` (the fine ones of all layers) are, then the hidden width."""
    counting = _counting_layers(config)
    layers = sorted({axis.layer for axis in axes})
    for layer in layers:
        fine = [axis for axis in axes if axis.layer == layer and axis.granularity in FINE]
        for kind in ("attention", "mlp"):
            own = [axis for axis in fine if axis.kind == kind]
            path = _block_path(family, own, layer)
            stays = kind == "attention" and layer in counting
            if path is not None and kind in family.blocks and not stays:
                yield _whole(f"{kind}_block", kind, layer, path, shapes, own)
        if layer and len(layers) == config.num_hidden_layers:
            yield _whole("layer", "layer", layer, f"{family.layers}.{layer}", shapes, fine)
    if axes and not family.left:
        yield from _hidden(family, shapes, axes)


def _block_path(family: Family, axes: Sequence[Axis], layer: int) -> str | None:
    """The module that `axes` of one kind lie in; None if it is the layer itself."""
    path = f"{family.layers}.{layer}."
    inside = [axis.consumer.module.removeprefix(path) for axis in axes]
    names = {name.partition(".")[0] for name in inside if "." in name}
    return f"{path}{names.pop()}" if len(names) == 1 and all("." in n for n in inside) else None


def _counting_layers(config: Any) -> set[int]:
    kinds: dict[str, int] = {}
    for layer, kind in enumerate(getattr(config, "layer_types", None) or ["only"]):
        kinds.setdefault(str(kind), layer)
    return set(kinds.values())


def _whole(
    granularity: str, kind: Kind, layer: int, path: str, shapes: Shapes, fine: Sequence[Axis]
) -> Axis:
    readers = {member.tensor for axis in fine for member in axis.consumers}
    inside = {name: shape for name, shape in shapes.items() if name.startswith(f"{path}.")}
    return Axis(
        name=f"layers.{layer}.{granularity}",
        layer=layer,
        kind=kind,
        granularity=granularity,
        units=1,
        cost=sum(math.prod(shape) for shape in inside.values()),
        size="",
        members=tuple(
            _member(name, 0, Blocks(0, 0, shape[0]), reads=name in readers)
            for name, shape in inside.items()
        ),
        floor=0,
        of=tuple(axis.name for axis in fine),
    )


def _hidden(family: Family, shapes: Shapes, axes: Sequence[Axis]) -> Iterator[Axis]:
    """Every tensor has one dimension along the residual stream, or none.

    A square matrix of a layer that no unit owns may have either: then there is no such axis.
    """
    owned = {
        (member.tensor, dim)
        for axis in axes
        for member in axis.members
        for dim in member.dims
        if axis.granularity in FINE
    }
    readers = {m.tensor for axis in axes for m in axis.members if m.role == "producer"}
    reader = shapes[axes[0].consumer.tensor]
    widths = [n for dim, n in enumerate(reader) if dim not in axes[0].consumer.dims]
    if not widths:
        return
    width = widths[-1]
    members: list[Member] = []
    for name, shape in shapes.items():
        free = [dim for dim, n in enumerate(shape) if n == width and (name, dim) not in owned]
        inside = name.startswith(f"{family.layers}.")
        if inside and len(free) > 1 and not any(tensor == name for tensor, _ in owned):
            return
        if free and not re.search(r"[qk]_(layer)?norm", name):
            reads = len(shape) > 1 and (name in readers or "head" in name.split(".")[0])
            members.append(_member(name, free[-1], Blocks(0, 1, 1), reads=reads))
    yield Axis(
        name="hidden",
        layer=-1,
        kind="hidden",
        granularity="hidden",
        units=width,
        cost=sum(math.prod(shapes[member.tensor]) // width for member in members),
        size="D",
        members=tuple(members),
    )


def _member(name: str, dim: int, blocks: Blocks, *, reads: bool) -> Member:
    module, _, parameter = name.rpartition(".")
    role: Role = "consumer" if reads else "producer"
    return Member(module, parameter, (dim,), blocks, role)

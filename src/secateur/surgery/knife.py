"""The knife: the weights of a model as a plan leaves them, cut when they are asked for."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..checkpoint import TensorSpec, View
from ..structure import Plan, Structure


def pruned_view(
    view: View,
    structure: Structure,
    plan: Plan,
    added: Mapping[str, Tensor] | None = None,
    replaced: Mapping[str, Tensor] | None = None,
) -> View:
    """`view` without the units that `plan` removes, plus `added` biases by tensor name.

    A tensor of which nothing stays is left out. An added bias joins an existing one, or becomes a
    new tensor after its weight. Tensors that are `replaced` come as they are, without the removed
    units. Dtypes stay those of the checkpoint.
    """
    added, replaced = added or {}, replaced or {}
    left = cut(view, kept_indices(view.specs, structure, plan))

    def given(name: str) -> Tensor:
        return replaced[name] if name in replaced else added[name]

    specs: dict[str, TensorSpec] = {}
    for name, spec in left.specs.items():
        specs[name] = spec
        bias = name.removesuffix("weight") + "bias"
        if bias not in view.specs and (bias in replaced or bias in added):
            specs[bias] = TensorSpec(tuple(given(bias).shape), spec.dtype)

    def read(name: str) -> Tensor:
        if name in replaced or name not in view.specs:
            return given(name).to(specs[name].dtype)
        tensor = left.tensor(name)
        if name in added:
            bias = added[name].to(tensor.device)
            tensor = (tensor.to(bias.dtype) + bias).to(specs[name].dtype)
        return tensor

    return View(specs, read, notes=view.notes)


def removed_parameters(view: View, structure: Structure, plan: Plan) -> int:
    """Parameters that leave `view` with the units that `plan` removes, each counted once."""
    left = pruned_view(view, structure, plan).specs.values()
    return sum(spec.elements for spec in view.specs.values()) - sum(s.elements for s in left)


Kept = Mapping[str, Mapping[tuple[int, ...], Tensor]]


def cut(view: View, kept: Kept) -> View:
    """Of each tensor the indices that are `kept` along some of its dimensions, in that order.

    Two dimensions count as one, flattened. A tensor of which nothing stays is left out.
    """
    specs = {
        name: TensorSpec(_shape(spec, kept.get(name, {})), spec.dtype)
        for name, spec in view.specs.items()
        if all(map(len, kept.get(name, {}).values()))
    }

    def read(name: str) -> Tensor:
        tensor = view.tensor(name)
        for dims, indices in kept.get(name, {}).items():
            tensor = _selected(tensor, dims, indices)
        return tensor

    return View(specs, read, notes=view.notes)


def _selected(tensor: Tensor, dims: tuple[int, ...], indices: Tensor) -> Tensor:
    """What stays of `tensor` along `dims`, flattened in that order."""
    indices = indices.to(tensor.device)
    if len(dims) == 1:
        return tensor.index_select(dims[0], indices)
    outer, front = tensor.shape[dims[0]], (0, 1)
    rows = tensor.movedim(dims, front).flatten(0, 1).index_select(0, indices)
    return rows.unflatten(0, (outer, -1)).movedim(front, dims).contiguous()


def _shape(spec: TensorSpec, kept: Mapping[tuple[int, ...], Tensor]) -> tuple[int, ...]:
    shape = list(spec.shape)
    for dims, indices in kept.items():
        outer = shape[dims[0]] if len(dims) == 2 else 1
        shape[dims[-1]] = len(indices) // outer
    return tuple(shape)


def kept_indices(specs: Mapping[str, TensorSpec], structure: Structure, plan: Plan) -> Kept:
    """By tensor and dimensions, the indices that no removed unit owns.

    Two dimensions (the experts and their channels) come first: whole experts go afterwards, and
    take their channels along.
    """
    keep: dict[str, dict[tuple[int, ...], Tensor]] = {}
    for axis in structure.axes:
        removed = plan.removed_tensor(axis)
        if not len(removed):
            continue
        for member in axis.members:
            dims = keep.setdefault(member.tensor, {})
            size = math.prod(specs[member.tensor].shape[dim] for dim in member.dims)
            mask = dims.setdefault(member.dims, torch.ones(size, dtype=torch.bool))
            mask[member.blocks.indices(removed).flatten()] = False
    return {
        name: {
            member_dims: mask.nonzero().flatten()
            for member_dims, mask in sorted(dims.items(), key=lambda item: -len(item[0]))
        }
        for name, dims in keep.items()
    }

"""The knife: the weights of a model as a plan leaves them, cut when they are asked for."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..checkpoint import TensorSpec, Weights
from ..structure import Plan, Structure


class PrunedWeights:
    """`weights` without the units that `plan` removes, plus `added` biases by tensor name.

    Nothing is cut before it is asked for, and nothing is kept: one tensor at a time is in memory.
    A tensor of which nothing stays is left out. An added bias joins an existing one, or becomes a
    new tensor after its weight. Tensors that are `replaced` come as they are, without the removed
    units.
    """

    def __init__(
        self,
        weights: Weights,
        structure: Structure,
        plan: Plan,
        added: Mapping[str, Tensor] | None = None,
        replaced: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._weights = weights
        self._added, self._replaced = added or {}, replaced or {}
        self._kept = _kept_indices(weights.specs, structure, plan)
        self._specs: dict[str, TensorSpec] = {}
        for name, spec in weights.specs.items():
            if any(not len(indices) for indices in self._kept.get(name, {}).values()):
                continue
            self._specs[name] = TensorSpec(_shape(spec, self._kept.get(name, {})), spec.dtype)
            bias = name.removesuffix("weight") + "bias"
            if bias not in weights.specs and (bias in self._replaced or bias in self._added):
                self._specs[bias] = TensorSpec(tuple(self._given(bias).shape), spec.dtype)

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Names, shapes and dtypes after the cut."""
        return self._specs

    def tensor(self, name: str) -> Tensor:
        """Cut one tensor; the dtype stays that of the checkpoint."""
        spec = self._specs[name]
        if name in self._replaced or name not in self._weights.specs:
            return self._given(name).to(spec.dtype)
        tensor = self._weights.tensor(name)
        for dims, indices in self._kept.get(name, {}).items():
            tensor = _selected(tensor, dims, indices)
        if name in self._added:
            added = self._added[name].to(tensor.device)
            tensor = (tensor.to(added.dtype) + added).to(spec.dtype)
        return tensor

    def _given(self, name: str) -> Tensor:
        return self._replaced[name] if name in self._replaced else self._added[name]

    def head(self, name: str) -> Tensor:
        """The first row of one tensor."""
        tensor = self.tensor(name)
        return tensor[:1] if tensor.dim() else tensor


def removed_parameters(weights: Weights, structure: Structure, plan: Plan) -> int:
    """Parameters that leave `weights` with the units that `plan` removes, each counted once."""
    left = PrunedWeights(weights, structure, plan).specs.values()
    return sum(spec.elements for spec in weights.specs.values()) - sum(s.elements for s in left)


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


Kept = dict[str, dict[tuple[int, ...], Tensor]]


def _kept_indices(specs: Mapping[str, TensorSpec], structure: Structure, plan: Plan) -> Kept:
    """By tensor and dimensions, the indices that no removed unit owns.

    Two dimensions (the experts and their channels) come first: whole experts go afterwards, and
    take their channels along.
    """
    keep: Kept = {}
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

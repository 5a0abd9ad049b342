"""The knife: the weights of a model as a plan leaves them, cut when they are asked for."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..checkpoint import TensorSpec, Weights
from ..structure import Plan, Structure


class PrunedWeights:
    """`weights` without the units that `plan` removes, plus `added` biases by tensor name.

    Nothing is cut before it is asked for, and nothing is kept: one tensor at a time is in memory.
    An added bias joins an existing one, or becomes a new tensor after its weight. Tensors that are
    `replaced` come as they are, without the removed units.
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
        self._replaced = dict(replaced or {})
        self._added = {**(added or {}), **self._replaced}
        self._kept = _kept_indices(weights.specs, structure, plan)
        self._specs: dict[str, TensorSpec] = {}
        for name, spec in weights.specs.items():
            shape = list(spec.shape)
            for dim, indices in self._kept.get(name, {}).items():
                shape[dim] = len(indices)
            self._specs[name] = TensorSpec(tuple(shape), spec.dtype)
            new_bias = name.removesuffix("weight") + "bias"
            if new_bias in self._added and new_bias not in weights.specs:
                self._specs[new_bias] = TensorSpec(tuple(self._added[new_bias].shape), spec.dtype)

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Names, shapes and dtypes after the cut."""
        return self._specs

    def tensor(self, name: str) -> Tensor:
        """Cut one tensor; the dtype stays that of the checkpoint."""
        spec = self._specs[name]
        if name in self._replaced or name not in self._weights.specs:
            return self._added[name].to(spec.dtype)
        tensor = self._weights.tensor(name)
        for dim, indices in self._kept.get(name, {}).items():
            tensor = tensor.index_select(dim, indices.to(tensor.device))
        if name in self._added:
            added = self._added[name].to(tensor.device)
            tensor = (tensor.to(added.dtype) + added).to(spec.dtype)
        return tensor

    def head(self, name: str) -> Tensor:
        """The first row of one tensor."""
        tensor = self.tensor(name)
        return tensor[:1] if tensor.dim() else tensor


def _kept_indices(
    specs: Mapping[str, TensorSpec], structure: Structure, plan: Plan
) -> dict[str, dict[int, Tensor]]:
    """By tensor and dimension, the indices that no removed unit owns."""
    keep: dict[str, dict[int, Tensor]] = {}
    for axis in structure.axes:
        removed = plan.removed_tensor(axis)
        if not len(removed):
            continue
        for member in axis.members:
            dims = keep.setdefault(member.tensor, {})
            size = specs[member.tensor].shape[member.dim]
            mask = dims.setdefault(member.dim, torch.ones(size, dtype=torch.bool))
            mask[member.blocks.indices(removed).flatten()] = False
    return {
        name: {dim: mask.nonzero().flatten() for dim, mask in dims.items()}
        for name, dims in keep.items()
    }

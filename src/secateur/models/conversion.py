"""Names on disk and names in the model, where transformers keeps the two apart.

Mixtral's experts lie on disk one by one (`experts.0.w1.weight`), in the model they are one tensor;
GPT-NeoX calls its head `embed_out` on disk. transformers has the mapping for each family; here its
conversions run tensor by tensor, when one is asked for. It also takes names without the prefix of
the base model (`layers.0...` for `model.layers.0...`), or with one too many.
"""

import copy
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import TensorSpec, Weights
from ..errors import SecateurError


def converted(weights: Weights, skeleton: Any) -> Weights:
    """`weights` under the names of `skeleton`, as far as transformers knows how."""
    found = _Converted(weights, skeleton)
    return found if found.changed else weights


def reverted(weights: Weights, skeleton: Any) -> Weights:
    """`weights` of a stock model under the names that its family has on disk."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    if not get_model_conversion_mapping(skeleton, add_legacy=False):
        return weights
    return _Reverted(weights, skeleton)


class _Converted:
    def __init__(self, weights: Weights, skeleton: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
        )

        self._weights = weights
        self._skeleton = skeleton
        mapping = get_model_conversion_mapping(skeleton)
        renamings = [item for item in mapping if isinstance(item, WeightRenaming)]
        converters = [item for item in mapping if isinstance(item, WeightConverter)]
        by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
        state = skeleton.state_dict()
        # By name in the model: the names on disk, each with the pattern that it met. Of several
        # names for one tensor the first counts.
        self._sources: dict[str, list[tuple[str, str | None]]] = {}
        self._converters: dict[str, Any] = {}
        for name in sorted(weights.specs, key=dot_natural_key):
            target, pattern = _target(name, renamings, converters, skeleton, state)
            self._sources.setdefault(target, []).append((name, pattern))
            if pattern is not None:
                self._converters[target] = by_pattern[pattern]
        self._specs = {
            target: TensorSpec(self._shape(target), weights.specs[sources[0][0]].dtype)
            if target in self._converters and target in state
            else weights.specs[sources[0][0]]
            for target, sources in self._sources.items()
        }
        spare = {
            target: [name for name, _ in names[1:]]
            for target, names in self._sources.items()
            if len(names) > 1 and target in state and target not in self._converters
        }
        self.doubled = tuple(
            f"{target} is stored under {len(names) + 1} names: {', '.join(names)} is left out, as"
            " transformers leaves it out"
            for target, names in spare.items()
        )
        self.changed = bool(spare) or any(
            target != names[0][0] for target, names in self._sources.items()
        )

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        return self._specs

    def tensor(self, name: str) -> Tensor:
        if name not in self._converters:
            return self._weights.tensor(self._sources[name][0][0])
        return self._made(name, self._weights.tensor)

    def _shape(self, name: str) -> tuple[int, ...]:
        """The shape that comes out of the shapes in the files, whatever the config says."""

        def empty(source: str) -> Tensor:
            spec = self._weights.specs[source]
            return torch.empty(spec.shape, dtype=spec.dtype, device="meta")

        try:
            return tuple(self._made(name, empty).shape)
        except (RuntimeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            raise SecateurError(
                f"The parts of {name} in the files do not fit together ({reason}).\n"
                "Download or export the model again."
            ) from error

    def _made(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        """The tensor that the converter makes of what `read` gives for the names on disk."""
        from transformers.core_model_loading import dot_natural_key

        converter = copy.deepcopy(self._converters[name])
        sources = self._sources[name]
        for source, pattern in sorted(sources, key=lambda item: dot_natural_key(item[0])):
            converter.add_tensor(name, source, pattern, read(source))
        result = converter.convert(name, model=self._skeleton, config=self._skeleton.config)
        return _first(result[name])

    def head(self, name: str) -> Tensor:
        return self._weights.head(self._sources[name][0][0])


def _target(
    name: str, renamings: list[Any], converters: list[Any], skeleton: Any, state: Mapping[str, Any]
) -> tuple[str, str | None]:
    """The model's name for a tensor, and the converter's pattern that it met, by their rule."""
    from transformers.core_model_loading import rename_source_key

    prefix = skeleton.base_model_prefix
    target, pattern = rename_source_key(name, renamings, converters, prefix, state)
    if target not in state and name in state:
        target, pattern = rename_source_key(name, [], [], prefix, state)
    return target, pattern


class _Reverted:
    def __init__(self, weights: Weights, skeleton: Any) -> None:
        self._weights = weights
        self._skeleton = skeleton
        self._specs: dict[str, TensorSpec] = {}
        self._origin: dict[str, str] = {}
        for name, spec in weights.specs.items():
            empty = torch.empty(spec.shape, dtype=spec.dtype, device="meta")
            for disk, tensor in self._reverted(name, empty).items():
                self._specs[disk] = TensorSpec(tuple(tensor.shape), spec.dtype)
                self._origin[disk] = name
        # One tensor of the model is many on disk, asked for one after the other.
        self._parts = lru_cache(maxsize=1)(self._read)

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        return self._specs

    def tensor(self, name: str) -> Tensor:
        return self._parts(self._origin[name])[name].contiguous()

    def head(self, name: str) -> Tensor:
        tensor = self.tensor(name)
        return tensor[:1] if tensor.dim() else tensor

    def _read(self, name: str) -> dict[str, Tensor]:
        return self._reverted(name, self._weights.tensor(name))

    def _reverted(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        from transformers.core_model_loading import revert_weight_conversion

        found = revert_weight_conversion(self._skeleton, {name: tensor})
        return {disk: _first(value) for disk, value in found.items()}


def _first(value: Any) -> Tensor:
    tensor: Tensor = value[0] if isinstance(value, list) else value
    return tensor

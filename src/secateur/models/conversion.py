"""Names on disk and names in the model, where transformers keeps the two apart.

Mixtral's experts lie on disk one by one (`experts.0.w1.weight`), in the model they are one tensor;
GPT-NeoX calls its head `embed_out` on disk. transformers has the mapping for each family; here its
conversions run tensor by tensor, when one is asked for. It also takes names without the prefix of
the base model (`layers.0...` for `model.layers.0...`), or with one too many.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import TensorSpec, View, renamed
from ..errors import SecateurError


def converted(view: View, skeleton: Any) -> View:
    """`view` under the names of `skeleton`, as far as transformers knows how.

    Raises:
        SecateurError: parts of one tensor do not fit together.
    """
    from transformers.core_model_loading import dot_natural_key

    state = skeleton.state_dict()
    sources, converters = _sources(view, skeleton, state)
    spare = {
        target: [name for name, _ in found[1:]]
        for target, found in sources.items()
        if len(found) > 1 and target in state and target not in converters
    }
    if not spare and all(target == found[0][0] for target, found in sources.items()):
        return view
    first = renamed(view, {target: found[0][0] for target, found in sources.items()})

    def made(name: str, read: Callable[[str], Tensor]) -> Tensor:
        converter = copy.deepcopy(converters[name])
        for source, pattern in sorted(sources[name], key=lambda item: dot_natural_key(item[0])):
            converter.add_tensor(name, source, pattern, read(source))
        return _first(converter.convert(name, model=skeleton, config=skeleton.config)[name])

    specs = {
        name: replace(first.specs[name], shape=_shape(view, name, made))
        for name in converters
        if name in state
    }
    doubled = (
        f"{target} is stored under {len(names) + 1} names: {', '.join(names)} is left out, as"
        " transformers leaves it out"
        for target, names in spare.items()
    )
    return replace(
        first,
        specs={**first.specs, **specs},
        read=lambda name: made(name, view.tensor) if name in converters else first.tensor(name),
        notes=(*view.notes, *doubled),
    )


# By name in the model: the names on disk, each with the pattern that it met. Of several names for
# one tensor the first counts.
Sources = Mapping[str, Sequence[tuple[str, str | None]]]


def _sources(
    view: View, skeleton: Any, state: Mapping[str, Any]
) -> tuple[Sources, Mapping[str, Any]]:
    """Where each tensor of the model comes from, and what makes those that are made of others."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key

    mapping = get_model_conversion_mapping(skeleton)
    renamings = [item for item in mapping if isinstance(item, WeightRenaming)]
    converters = [item for item in mapping if isinstance(item, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    sources: dict[str, list[tuple[str, str | None]]] = {}
    makers: dict[str, Any] = {}
    for name in sorted(view.specs, key=dot_natural_key):
        target, pattern = _target(name, renamings, converters, skeleton, state)
        sources.setdefault(target, []).append((name, pattern))
        if pattern is not None:
            makers[target] = by_pattern[pattern]
    return sources, makers


def _shape(
    view: View, name: str, made: Callable[[str, Callable[[str], Tensor]], Tensor]
) -> tuple[int, ...]:
    """The shape that comes out of the shapes in the files, whatever the config says."""
    try:
        return tuple(made(name, lambda source: _empty(view.specs[source])).shape)
    except (RuntimeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SecateurError(
            f"The parts of {name} in the files do not fit together ({reason}).\n"
            "Download or export the model again."
        ) from error


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


def reverted(view: View, skeleton: Any) -> View:
    """`view` of a stock model under the names that its family has on disk."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import revert_weight_conversion

    if not get_model_conversion_mapping(skeleton, add_legacy=False):
        return view

    def parts(name: str, tensor: Tensor) -> dict[str, Tensor]:
        found = revert_weight_conversion(skeleton, {name: tensor})
        return {disk: _first(value) for disk, value in found.items()}

    specs: dict[str, TensorSpec] = {}
    origin: dict[str, str] = {}
    for name, spec in view.specs.items():
        for disk, tensor in parts(name, _empty(spec)).items():
            specs[disk] = TensorSpec(tuple(tensor.shape), spec.dtype)
            origin[disk] = name
    # One tensor of the model is many on disk, asked for one after the other.
    read = lru_cache(maxsize=1)(lambda name: parts(name, view.tensor(name)))
    return View(specs, lambda name: read(origin[name])[name].contiguous(), notes=view.notes)


def _empty(spec: TensorSpec) -> Tensor:
    return torch.empty(spec.shape, dtype=spec.dtype, device="meta")


def _first(value: Any) -> Tensor:
    tensor: Tensor = value[0] if isinstance(value, list) else value
    return tensor

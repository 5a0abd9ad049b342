"""Whole layers that are gone: the rest moves up, in names, config and structure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..checkpoint import View, renamed
from ..models import Family
from ..structure import Structure
from .kinds import kept_kinds, without_numbers
from .skeleton import lenient_config


def without_layers(
    family: Family,
    gone: Sequence[int],
    weights: View,
    base: Mapping[str, Any],
    earlier: Mapping[str, Any],
) -> tuple[View, dict[str, Any], dict[str, Any]]:
    """Weights, config and earlier `pruned_modules` with the layers counted anew.

    What a layer was by its number is in the config, or among the attributes in `pruned_modules`.

    Raises:
        SecateurError: neither can say it.
    """
    count = int(lenient_config(family, base).num_hidden_layers)
    moved = _moved(gone, count)
    kept, names = list(moved), _Names(family.layers, moved)
    config = without_numbers(family, base, kept)
    modules = {names.new(path): dict(sizes) for path, sizes in earlier.items() if names.stays(path)}
    for path, attributes in kept_kinds(family, base, config, kept).items():
        sizes = modules.setdefault(path, {})
        sizes["attributes"] = {**attributes, **sizes.get("attributes", {})}
    old = {names.new(name): name for name in weights.specs if names.stays(name)}
    return renamed(weights, old), config, modules


def renumbered(family: Family, gone: Sequence[int], structure: Structure) -> Structure:
    """The structure without the layers that are gone, and without layers as units."""
    moved = _moved(gone, structure.layers)
    names = _Names(family.layers, moved)
    axes = [
        replace(
            axis,
            name=_axis_name(axis.name, moved),
            layer=moved.get(axis.layer, axis.layer),
            members=tuple(
                replace(member, module=names.new(member.module)) for member in axis.members
                if names.stays(member.module)
            ),
        )
        for axis in structure.axes
        if axis.layer not in gone and axis.kind != "layer"
    ]  # fmt: skip
    return replace(structure, axes=tuple(axes))


def renamed_axes(
    gone: Sequence[int], keep: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """What a plan keeps, under the new names of the axes."""
    last = max([_layer_of(name) for name in keep] + list(gone))
    moved = _moved(gone, last + 1)
    return {
        _axis_name(name, moved): units
        for name, units in keep.items()
        if _layer_of(name) not in gone and not name.endswith(".layer")
    }


def _moved(gone: Sequence[int], count: int) -> dict[int, int]:
    kept = [layer for layer in range(count) if layer not in gone]
    return {layer: number for number, layer in enumerate(kept)}


def _layer_of(axis: str) -> int:
    match = re.match(r"layers\.(\d+)\.", axis)
    return int(match[1]) if match else -1


def _axis_name(name: str, moved: Mapping[int, int]) -> str:
    layer = _layer_of(name)
    return name if layer < 0 else f"layers.{moved[layer]}.{name.split('.', 2)[2]}"


class _Names:
    """Names of tensors and modules before and after."""

    def __init__(self, path: str, moved: Mapping[int, int]) -> None:
        self._pattern = re.compile(rf"^({re.escape(path)}\.)(\d+)(?=\.|$)")
        self._new = moved

    def stays(self, name: str) -> bool:
        """Whether what `name` says is still there."""
        match = self._pattern.match(name)
        return match is None or int(match[2]) in self._new

    def new(self, name: str) -> str:
        """What it is called now."""
        return self._pattern.sub(lambda m: f"{m[1]}{self._new[int(m[2])]}", name)

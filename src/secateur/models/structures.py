"""From a layout with letters and a model without weights to the axes of that model."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import View
from ..errors import SecateurError
from ..structure import Axis, Coupling, Member, Structure
from .coarse import FINE, coarse_axes
from .families import Family

Shapes = Mapping[str, tuple[int, ...]]


def structure_of(family: Family, model: Any, weights: View) -> Structure:
    """All axes, of every granularity, of `model` (a transformers causal LM, on meta or not).

    Raises:
        SecateurError: the tensors do not have the sizes that the config gives.
    """
    config = model.config
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    axes = [
        axis
        for layer in range(config.num_hidden_layers)
        for axis in layer_axes(family, shapes, config, layer)
    ]
    stored = {name: shape for name, shape in shapes.items() if name in weights.specs}
    axes += list(coarse_axes(family, stored, config, axes))
    return Structure(
        family=config.model_type.removeprefix("secateur_"),
        axes=tuple(axes),
        parameters=sum(spec.elements for spec in weights.specs.values()),
        prunable=sum(a.units * a.cost for a in axes if a.granularity in FINE),
        architecture=_architecture(config.model_type, weights),
        weights="" if weights.read is None else _weights(weights),
    )


def layer_axes(family: Family, shapes: Shapes, config: Any, layer: int) -> Iterator[Axis]:
    """The axes of one layer, of every granularity that has more than one unit.

    A layer with one KV group for all query heads cannot lose the group; its heads it can.
    """
    path = f"{family.layers}.{layer}"
    for coupling in family.couplings:
        values = layer_sizes(family, coupling, shapes, config, layer)
        if values is None or (coupling.letter == "r" and values["r"] == 1):
            continue
        if min(values.values()) < 1:
            raise SecateurError(
                f"config.json gives sizes below 1 for {path} ({values}): it describes no model.\n"
                "Download or export the model again."
            )
        axis = coupling.axis(layer, path, values, shapes.get)
        axis = replace(axis, members=_in_model_order(axis.members, shapes))
        if coupling.letter != "r":
            _check_cover(axis, shapes)
        if coupling.letter == "E":
            # The router picks so many experts for each token.
            finer = (f"layers.{layer}.experts",)
            asked = routed_experts(config)
            if asked > axis.units:
                raise SecateurError(
                    f"config.json sends each token to {asked} experts (num_experts_per_tok), and"
                    f" {path} has {axis.units}: it describes no model."
                )
            axis = replace(axis, floor=asked, of=finer)
        yield axis


def routed_experts(config: Any) -> int:
    """How many experts a token goes to."""
    names = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
    return int(next((n for name in names if (n := getattr(config, name, None))), 1))


def _in_model_order(members: Sequence[Member], shapes: Shapes) -> tuple[Member, ...]:
    """However a layout came about, its members come as the model has them."""
    position = {name: number for number, name in enumerate(shapes)}
    return tuple(sorted(members, key=lambda m: (position[m.tensor], m.blocks.offset)))


def layer_sizes(
    family: Family, coupling: Coupling, shapes: Shapes, config: Any, layer: int
) -> dict[str, int] | None:
    """The letters' values for `coupling` in one layer; None if the layer has no such thing."""
    here = config.per_layer_config[layer]
    groups, per_group = family.heads(here)
    # The global config has a head count that no layer exceeds, that of a layer perhaps fewer.
    values = {"K": groups, "r": per_group, "d": family.head_dim(config), "D": config.hidden_size}
    reader = next(piece for piece in coupling.slices if piece.role == "consumer")
    shape = shapes.get(f"{family.layers}.{layer}.{reader.module}.{reader.parameter}")
    if shape is None:
        return None
    if coupling.kind == "attention":
        return values
    other = next(
        (c for c in family.couplings if c.letter == "I" and _reads(c, reader.module)), coupling
    )
    channels = next(piece for piece in other.slices if piece.role == "consumer")
    return values | {"I": shape[channels.dims[-1]], "E": shape[0] if len(shape) == 3 else 1}


def _reads(coupling: Coupling, module: str) -> bool:
    return any(piece.role == "consumer" and piece.module == module for piece in coupling.slices)


def _check_cover(axis: Axis, shapes: Shapes) -> None:
    """Units own all of every tensor that they own a part of."""
    owned: dict[tuple[str, tuple[int, ...]], int] = {}
    for member in axis.members:
        key = (member.tensor, member.dims)
        owned[key] = owned.get(key, 0) + member.blocks.width * axis.units
    for (tensor, dims), count in owned.items():
        size = 1
        for dim in dims:
            size *= shapes[tensor][dim]
        if count != size:
            raise SecateurError(
                f"{tensor} has size {size} where config.json gives {axis.units} x"
                f" {count // max(axis.units, 1)}: the config does not describe this model."
            )
    for member in axis.members:
        size = math.prod(shapes[member.tensor][dim] for dim in member.dims)
        if not _lies_within(member, axis.units, size):
            raise SecateurError(
                f"{member.tensor} has size {size}, and config.json puts units outside of it: the"
                " config does not describe this model."
            )


def _lies_within(member: Member, units: int, size: int) -> bool:
    if units < 1 or member.blocks.width < 1:
        return False
    indices = member.blocks.indices(torch.arange(units))
    return bool(indices.min() >= 0 and indices.max() < size)


def _architecture(model_type: str, weights: View) -> str:
    shapes = sorted((name, list(spec.shape)) for name, spec in weights.specs.items())
    return hashlib.sha256(json.dumps([model_type, shapes]).encode()).hexdigest()


def _weights(weights: View) -> str:
    """Hash of the first row of every tensor, dtype included: cheap, and no two models share it."""
    digest = hashlib.sha256()
    for name, spec in sorted(weights.specs.items(), key=lambda item: item[0]):
        digest.update(f"{name} {spec.dtype} {spec.shape}".encode())
        digest.update(_bytes(weights.head(name)))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data: bytes = flat.view(torch.uint8).numpy().tobytes()
    return data

"""From a layout with letters and a model without weights to the axes of that model."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import View
from ..errors import SecateurError
from ..structure import Axis, Coupling, Shapes, Structure
from .families import Family
from .whole import FINE, whole_units

# What configs call the number of experts that a token goes to.
ROUTED = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_k",
    "top_k_experts",
)


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
    axes += list(whole_units(family, stored, config, axes))
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
        values = _sizes(family, coupling, shapes, config, layer)
        if values is None or (coupling.granularity == "query_head" and values["r"] == 1):
            continue
        if min(values.values()) < 1:
            raise SecateurError(
                f"config.json gives sizes below 1 for {path} ({values}): it describes no model.\n"
                "Download or export the model again."
            )
        axis = coupling.axis(layer, path, values, shapes)
        if coupling.granularity == "expert":
            asked = routed_experts(config)
            if asked > axis.units:
                raise SecateurError(
                    f"config.json sends each token to {asked} experts (num_experts_per_tok), and"
                    f" {path} has {axis.units}: it describes no model."
                )
            axis = replace(axis, floor=asked, of=(f"layers.{layer}.experts",))
        yield axis


def routed_experts(config: Any) -> int:
    """How many experts a token goes to."""
    return int(next((n for name in ROUTED if (n := getattr(config, name, None))), 1))


def _sizes(
    family: Family, coupling: Coupling, shapes: Shapes, config: Any, layer: int
) -> dict[str, int] | None:
    """The letters' values for `coupling` in one layer; None if the layer has no such thing."""
    here = config.per_layer_config[layer]
    groups, per_group = family.heads(here)
    # The global config has a head count that no layer exceeds, that of a layer perhaps fewer.
    values = {"K": groups, "r": per_group, "d": family.head_dim(config), "D": config.hidden_size}
    shape = shapes.get(coupling.reader.tensor(f"{family.layers}.{layer}"))
    if shape is None:
        return None
    if coupling.kind == "attention":
        return values
    same = (c for c in family.couplings if c.reader.module == coupling.reader.module)
    channels = next((c for c in same if c.granularity.endswith("channel")), coupling)
    return values | {"I": shape[channels.reader.dims[-1]], "E": shape[0] if len(shape) == 3 else 1}


def _architecture(model_type: str, weights: View) -> str:
    shapes = sorted((name, list(spec.shape)) for name, spec in weights.specs.items())
    return hashlib.sha256(json.dumps([model_type, shapes]).encode()).hexdigest()


def _weights(weights: View) -> str:
    """Hash of the first row of every tensor, dtype included: cheap; two trainings share none."""
    digest = hashlib.sha256()
    for name, spec in sorted(weights.specs.items(), key=lambda item: item[0]):
        digest.update(f"{name} {spec.dtype} {spec.shape}".encode())
        digest.update(_bytes(weights.head(name)))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data: bytes = flat.view(torch.uint8).numpy().tobytes()
    return data

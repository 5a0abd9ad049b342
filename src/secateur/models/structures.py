"""Declared structure: from a family's layout and a model without weights to axes."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import Weights
from ..errors import SecateurError
from ..structure import Axis, Blocks, Member, Structure
from .families import Family, Part


def declared_structure(family: Family, model: Any, weights: Weights) -> Structure:
    """The structure of `model` (a transformers causal LM, on meta or not).

    Raises:
        SecateurError: the linears do not have the sizes that the config gives.
    """
    config = model.config
    axes = tuple(
        axis
        for layer in range(config.num_hidden_layers)
        for axis in _layer_axes(family, model, config.per_layer_config[layer], layer)
    )
    return Structure(
        family=config.model_type.removeprefix("secateur_"),
        axes=axes,
        parameters=sum(spec.elements for spec in weights.specs.values()),
        architecture=_architecture(config.model_type, weights),
        weights=_weights(weights),
    )


def _layer_axes(family: Family, model: Any, config: Any, layer: int) -> Iterator[Axis]:
    heads = getattr(config, family.query_heads)
    groups = getattr(config, family.kv_heads, None) or heads
    # The global config has the head count of the dense model, that of a layer perhaps fewer.
    head_dim = family.head_dim(model.config)
    widths = {"query": heads // groups * head_dim, "kv": head_dim, "channel": 1}
    path = f"{family.layers}.{layer}"
    counts: tuple[tuple[str, int], ...]
    counts = ((family.query_heads, heads // groups), (family.kv_heads, 1))
    yield _axis(
        model, path, layer, "attention", "kv_group", groups, counts, family.attention, widths
    )
    width = getattr(config, family.mlp_width)
    counts = ((family.mlp_width, 1),)
    yield _axis(model, path, layer, "mlp", "channel", width, counts, family.mlp, widths)


def _axis(
    model: nn.Module,
    path: str,
    layer: int,
    kind: str,
    granularity: str,
    units: int,
    counts: tuple[tuple[str, int], ...],
    parts: Sequence[Part],
    widths: dict[str, int],
) -> Axis:
    members: list[Member] = []
    cost = 0
    for part in parts:
        name, width = f"{path}.{part.module}", widths[part.per]
        linear = model.get_submodule(name)
        blocks = Blocks(offset=0, stride=width, width=width)
        dims = {"weight": 0, "bias": 0} if part.role == "producer" else {"weight": 1}
        for parameter, dim in dims.items():
            tensor = getattr(linear, parameter)
            if tensor is None:
                continue
            if tensor.shape[dim] != units * width:
                raise SecateurError(
                    f"{name}.{parameter} has size {tensor.shape[dim]} where config.json gives"
                    f" {units} x {width}: the config does not describe this model."
                )
            members.append(Member(name, parameter, dim, blocks, part.role))
            cost += width * (tensor.numel() // tensor.shape[dim])
    return Axis(
        f"layers.{layer}.{kind}", layer, kind, granularity, units, cost, counts, tuple(members)
    )


def _architecture(model_type: str, weights: Weights) -> str:
    shapes = sorted((name, list(spec.shape)) for name, spec in weights.specs.items())
    return hashlib.sha256(json.dumps([model_type, shapes]).encode()).hexdigest()


def _weights(weights: Weights) -> str:
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

"""As few layers as show one of each kind: a small model need not be as deep as the real one."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import nn

from ... import modeling_secateur
from ...modeling_secateur import PREFIX
from ..streamed import empty_model


def layer_makes(model: Any, path: str) -> list[str]:
    """Of each layer, the names and shapes of its tensors."""
    return [
        ",".join(f"{name}:{tuple(p.shape)}" for name, p in layer.named_parameters())
        for layer in model.get_submodule(path)
    ]


def layer_kinds(model: Any, path: str) -> dict[str, int]:
    """One layer of each make."""
    kinds: dict[str, int] = {}
    for number, make in enumerate(layer_makes(model, path)):
        kinds.setdefault(make, number)
    return kinds


def layers_path(config: Any, model: nn.Module) -> str | None:
    """Where the list of decoder layers is; None if there is none."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return str(name)
    return None


def shallow_config(config: Any, model: Any, path: str) -> Any:
    """The config with the first layers alone, as many as show each make and type of layer.

    `model` is the (empty) one of `config`. If fewer layers are not the same ones, it is `config`.
    """
    makes = layer_makes(model, path)
    types = getattr(config, "layer_types", None)
    if not isinstance(types, list) or len(types) != len(makes):
        types = [""] * len(makes)
    kinds = list(zip(makes, types, strict=True))
    depth = max(2, 1 + max(kinds.index(kind) for kind in set(kinds)))
    if depth >= len(kinds):
        return config
    try:
        shallow = _with_layers(config, depth)
        small = empty_model(shallow, torch.float32)
        same = layer_makes(small, path) == makes[:depth]
    except Exception:  # the family's own code: anything may come out of it
        return config
    return shallow if same else config


def _with_layers(config: Any, depth: int) -> Any:
    count = config.num_hidden_layers
    names = getattr(config, "attribute_map", None) or {}
    raw = {
        key: value[:depth] if isinstance(value, list) and len(value) == count else value
        for key, value in config.to_dict().items()
    }
    raw[names.get("num_hidden_layers", "num_hidden_layers")] = depth
    return stock_config(type(config), raw)


def stock_config(stock: Any, raw: Mapping[str, Any]) -> Any:
    """The config of class `stock` that `raw` describes.

    Some classes refuse head counts that do not divide hidden_size. A pruned model has such, and
    ours do not: there the config is read by ours.
    """
    raw = {**raw, "model_type": stock.model_type}
    try:
        return stock.from_dict(copy.deepcopy(raw))
    except StrictDataclassClassValidationError:
        own = getattr(modeling_secateur, PREFIX + stock.__name__)
        config = own.from_dict({**raw, "model_type": own.model_type})
        config.__class__ = stock
        return config

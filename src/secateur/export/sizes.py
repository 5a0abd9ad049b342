"""The sizes of each layer after a cut, in the words of a family's config."""

from collections.abc import Mapping
from typing import Any

import transformers

from ..models import Family
from ..structure import Axis, Plan, Structure
from .skeleton import lenient_config

# By coupling and letter, the config attributes that may count it: the first that a config has.
_WIDTHS: dict[str, dict[str, tuple[str, ...]]] = {
    "mlp": {"I": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")},
    "experts": {
        "I": ("moe_intermediate_size", "intermediate_size"),
        "E": ("num_local_experts", "num_experts"),
    },
}


def hidden_width(structure: Structure, plan: Plan) -> dict[str, int]:
    """The config's hidden_size, if the plan makes it smaller."""
    for axis in structure.axes:
        if axis.kind == "hidden" and plan.removed(axis):
            return {"hidden_size": len(plan.kept(axis))}
    return {}


def kept_layers(
    family: Family, structure: Structure, plan: Plan
) -> dict[int, dict[str, dict[str, int]]]:
    """By layer and coupling, the values of the layout's letters that the kept units add up to."""
    layers: dict[int, dict[str, dict[str, int]]] = {}
    for axis in structure.axes:
        if not axis.size or axis.layer < 0:
            continue
        sizes = layers.setdefault(axis.layer, {})
        kept = plan.kept(axis)
        name = axis.name.rpartition(".")[2]
        if axis.size == "K":
            sizes.setdefault("attention", {"K": len(kept), "r": axis.per_unit})
            sizes["attention"]["K"] = len(kept)
        elif axis.size == "r":
            attention = sizes.setdefault("attention", {"K": axis.groups})
            attention["r"] = _kept_heads(structure, plan, axis, attention["K"])
        elif axis.size == "I":
            sizes.setdefault(name, {})["I"] = len(kept) // axis.groups
            sizes[name].setdefault("E", axis.groups)
        elif axis.size == "E":
            sizes.setdefault("experts", {})["E"] = len(kept)
    return layers


def _kept_heads(structure: Structure, plan: Plan, axis: Axis, groups: int) -> int:
    """Query heads of a kept KV group, where groups and heads may both go."""
    whole = structure.by_name.get(f"layers.{axis.layer}.attention")
    kept_groups = set(plan.kept(whole)) if whole is not None else set(range(axis.groups))
    per_group = axis.units // axis.groups
    return sum(unit // per_group in kept_groups for unit in plan.kept(axis)) // max(groups, 1)


def config_widths(
    family: Family, base: Mapping[str, Any], sizes: Mapping[str, Mapping[str, int]]
) -> dict[str, int]:
    """The config's own attributes for one layer's sizes."""
    stock = getattr(transformers, family.config)
    names = getattr(stock, "attribute_map", None) or {}
    known = lenient_config(family, base).to_dict()
    widths: dict[str, int] = {}
    attention = sizes.get("attention", {})
    if "r" in attention:
        widths["num_attention_heads"] = attention["K"] * attention["r"]
    if "K" in attention and isinstance(family.kv_heads, str):
        widths[family.kv_heads] = attention["K"]
    for coupling, candidates in _WIDTHS.items():
        for letter, attributes in candidates.items():
            size = sizes.get(coupling, {}).get(letter)
            attribute = next((name for name in attributes if name in known), None)
            if size is not None and attribute is not None:
                widths[attribute] = size
    return {names.get(name, name): size for name, size in widths.items()}

"""What modules are told beside the config: shapes, attributes and heads that a cut has changed."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..checkpoint import TensorSpec
from ..models import Family
from ..structure import Blocks, Plan, Structure


def resized(dense: nn.Module, specs: Mapping[str, TensorSpec]) -> dict[str, dict[str, Any]]:
    """The modules with a parameter whose shape differs from what the stock class builds."""
    resized: dict[str, dict[str, Any]] = {}
    for path, module in dense.named_modules():
        shapes: dict[str, list[int]] = {}
        for name, parameter in module._parameters.items():
            spec = specs.get(f"{path}.{name}")
            if spec is not None and (parameter is None or tuple(parameter.shape) != spec.shape):
                shapes[name] = list(spec.shape)
        if shapes:
            resized[path] = {"shapes": shapes}
            widths = _shape_attributes(module, shapes.get("weight"))
            if widths:
                resized[path]["attributes"] = widths
    return resized


def _shape_attributes(module: Any, shape: list[int] | None) -> dict[str, Any]:
    """The attributes of a module that say its weight's shape, where they change."""
    if shape is None:
        return {}
    if hasattr(module, "normalized_shape"):
        return {"normalized_shape": shape}
    for names in (
        ("out_features", "in_features"),
        ("nx", "nf"),
        ("num_embeddings", "embedding_dim"),
    ):
        if hasattr(module, names[0]):
            pairs = zip(names, shape, strict=True)
            return {name: size for name, size in pairs if getattr(module, name) != size}
    return {}


def absent_modules(family: Family, structure: Structure, plan: Plan) -> dict[str, dict[str, Any]]:
    """The modules that the plan removes whole."""
    gone = [axis for axis in structure.axes if axis.floor == 0 and plan.removed(axis)]
    return {
        _common([member.module for member in axis.members]): {"absent": family.blocks[axis.kind]}
        for axis in gone
        if axis.kind in family.blocks
    }


def _common(modules: list[str]) -> str:
    """The module that all of these lie in."""
    paths = [module.split(".") for module in modules]
    shared = [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
    # A block of one linear is its parent's: nothing but the block lies in there.
    return ".".join(shared[:-1] if len(set(modules)) == 1 else shared)


def follow(
    family: Family,
    dense: Any,
    pruned: dict[str, dict[str, Any]],
    layer: int,
    sizes: Mapping[str, Mapping[str, int]],
    hidden: Mapping[str, int],
) -> None:
    """Note the attributes of modules that no longer hold."""
    for module, attribute, size in family.follow:
        path = f"{family.layers}.{layer}.{module}"
        values = {"d": family.head_dim(dense.config), **hidden}
        for coupling in ("attention",) if size.letters & {"K", "r"} else ("mlp", "experts"):
            values |= sizes.get(coupling, {})
        try:
            now: Any = dense.get_submodule(path)
            for name in attribute.split("."):
                now = getattr(now, name)
        except AttributeError:
            continue
        if size.letters <= values.keys() and now != size.at(values):
            attributes = pruned.setdefault(path, {}).setdefault("attributes", {})
            attributes[attribute] = size.at(values)


def keep_slopes(
    family: Family,
    pruned: dict[str, dict[str, Any]],
    earlier: Mapping[str, Any],
    structure: Structure,
    plan: Plan,
    layer: int,
) -> None:
    """Note which of the original heads are left, for arguments with one row a head."""
    for module, arguments in family.slopes:
        path = f"{family.layers}.{layer}.{module}"
        heads = earlier.get(path, {}).get("heads")
        before: list[int] | None = heads["kept"] if heads else None
        total = heads["of"] if heads else 0
        # KV groups and query heads both count heads; a whole block does not
        here = [a for a in structure.axes if a.layer == layer and a.size in ("K", "r")]
        if here:
            count = here[0].units * here[0].per_unit
            before, total = before or list(range(count)), total or count
            stays = set(range(count))
            for axis in here:
                blocks = Blocks(0, axis.per_unit, axis.per_unit)
                stays &= set(blocks.indices(plan.kept_tensor(axis)).flatten().tolist())
            before = [before[head] for head in sorted(stays)]
        if before is not None and len(before) != total:
            pruned.setdefault(path, {})["heads"] = {
                "of": total,
                "kept": before,
                "arguments": list(arguments),
            }

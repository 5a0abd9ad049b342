"""Which class loads the pruned weights: the family's stock class if it can, or else ours.

A plan that leaves every layer with the same widths is a plain checkpoint, if the stock class
builds exactly those tensors. Where it asks for more biases than there are (Llama has them on
q, k, v and o together, or on none), zeros fill them in. Everything else is written in
transformers' `per_layer_config` schema, with `modeling_secateur.py` beside the weights.
"""

import copy
import itertools
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import transformers
from torch import nn

from .. import modeling_secateur
from ..checkpoint import TensorSpec, View, zero_filled
from ..modeling_secateur import OWN_KEYS, PREFIX
from ..models import Family, OpenModel, auto_classes, empty_model, reverted
from ..models.fitted import expected
from ..structure import Plan, Structure
from .kinds import Attributes, carried, plain_values, size_attributes
from .layers import renamed_axes, renumbered, without_layers
from .modules import absent_modules, follow, keep_slopes, resized
from .sizes import config_widths, hidden_width, kept_layers
from .skeleton import lenient_skeleton, skeleton

_BIAS_FLAGS = ("attention_bias", "mlp_bias")


@dataclass(frozen=True)
class Form:
    """config.json of a pruned model, and its tensors; `why` it is not `stock` (empty if it is)."""

    config: Mapping[str, Any]
    weights: View
    stock: bool
    why: str = ""

    @property
    def stored(self) -> View:
        """The tensors as they are written: a stock checkpoint has the names of its family."""
        return reverted(self.weights, self.empty()) if self.stock else self.weights

    @property
    def written_config(self) -> Mapping[str, Any]:
        """The config.json that is written."""
        return self.config

    @property
    def architecture(self) -> str:
        """The class that loads the folder."""
        return str(self.config["architectures"][0])

    def empty(self, dtype: torch.dtype | None = None) -> Any:
        """The transformers model that the folder would load as, without weights."""
        own = getattr(modeling_secateur, self.architecture).config_class if not self.stock else None
        config_class: Any = own or transformers.CONFIG_MAPPING[self.config["model_type"]]
        config = config_class.from_dict(copy.deepcopy(dict(self.config)))
        own_dtypes = (spec.dtype for spec in self.weights.specs.values())
        return empty_model(config, dtype or next(d for d in own_dtypes if d.is_floating_point))


def pruned_form(
    family: Family,
    raw_config: Mapping[str, Any],
    config: Any,
    structure: Structure,
    plan: Plan,
    weights: View,
    *,
    own: bool = False,
) -> Form:
    """Find the form that `weights` (already cut) are written in.

    `raw_config` is the original config.json, `config` transformers' reading of it. With `own` the
    stock class is not asked.
    """
    base = _stock_config(family, raw_config, config)
    earlier = raw_config.get("pruned_modules") or {}
    gone = [axis.layer for axis in structure.axes if axis.kind == "layer" and plan.removed(axis)]
    if gone:
        weights, base, earlier = without_layers(family, gone, weights, base, earlier)
        structure = renumbered(family, gone, structure)
        plan = replace(plan, keep=renamed_axes(gone, plan.keep))
    layers = kept_layers(family, structure, plan)
    widths = {layer: config_widths(family, base, sizes) for layer, sizes in layers.items()}
    width = hidden_width(structure, plan)
    stays = carried(family, earlier)
    absent = {path: dict(sizes) for path, sizes in earlier.items() if "absent" in sizes}
    absent |= absent_modules(family, structure, plan)
    why = "its weights are in few bits" if own else _no_stock(family, width, stays)
    if not why and absent:
        why = "whole attention or MLP blocks are gone, which the class has in every layer"
    stock = why or _stock(family, base | width, widths, weights)
    if isinstance(stock, Form):
        return stock
    base, dense = _bounded(family, base, widths, weights)
    base_config: Any = dense.config
    pruned = resized(dense, weights.specs) | absent
    hidden = {"D": width.get("hidden_size", int(base_config.hidden_size))}
    for layer in range(base_config.num_hidden_layers):
        follow(family, dense, pruned, layer, layers.get(layer, {}), hidden)
        keep_slopes(family, pruned, earlier, structure, plan, layer)
    for path, values in stays.items():
        sizes = pruned.setdefault(path, {})
        sizes["attributes"] = {**values, **sizes.get("attributes", {})}
    return replace(_own(family, base, widths, pruned, weights), why=stock)


def whole_form(opened: OpenModel) -> Form:
    """The form of a model of which nothing is cut, in floating point."""
    structure = opened.structures
    nothing = Plan({}, structure.architecture, structure.weights)
    return pruned_form(
        opened.family, opened.raw_config, opened.config, structure, nothing, opened.weights
    )


def _no_stock(family: Family, width: Mapping[str, int], stays: Attributes) -> str:
    """Why the class cannot hold the cut whatever the widths are; empty if it may."""
    if width and family.scales_by_width:
        return "the class computes a factor from hidden_size, and the cut makes that smaller"
    if stays:
        path, values = next(iter(stays.items()))
        return (
            f"the class derives {path}.{next(iter(values))} from the layer's number, which changed"
        )
    return ""


def _stock_config(family: Family, raw: Mapping[str, Any], config: Any) -> dict[str, Any]:
    stock = getattr(transformers, family.config)
    base = {key: value for key, value in raw.items() if key not in OWN_KEYS}
    base |= {"model_type": stock.model_type, "architectures": [family.model]}
    # Some classes compute it, and take none.
    computed = isinstance(getattr(stock, "head_dim", None), property)
    return base if computed else base | {"head_dim": family.head_dim(config)}


def _stock(
    family: Family, base: dict[str, Any], widths: dict[int, dict[str, int]], weights: View
) -> Form | str:
    """The checkpoint of the stock class, or why it holds no such weights."""
    shared: dict[str, int] = {}
    for layer in widths.values():
        # A layer of another make (a dense one among mixtures) says nothing of what it lacks.
        for name, size in layer.items():
            if shared.setdefault(name, size) != size:
                sizes = f"{name} ({shared[name]} and {size}, for example)"
                return f"layers differ in {sizes}, and the class has one for all"
    why = ""
    for flags in _bias_flags(base):
        candidate = base | shared | flags
        try:
            built = expected(skeleton(family, candidate))
        except Exception as error:  # the family's own checks
            why = f"transformers' own class does not hold it: {_reason(error)}"
            continue
        why = _misfit(family, weights.specs, built)
        if not why:
            return Form(candidate, zero_filled(weights, built), stock=True)
    return why


def _reason(error: Exception) -> str:
    """The last line of a message, which says it after those of the checking library."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:200].rstrip(".")


def _misfit(family: Family, held: Mapping[str, TensorSpec], built: Mapping[str, TensorSpec]) -> str:
    """Why the class does not hold these tensors; biases that it has and they lack can be zeros."""
    extra = [name for name in held if name not in built]
    if extra and all(name.endswith(".bias") for name in extra):
        return f"{family.model} has no place for the biases that the repair adds ({extra[0]})"
    if extra:
        return f"{family.model} has no place for {extra[0]}"
    for name, spec in built.items():
        if name not in held and not name.endswith(".bias"):
            return f"{family.model} asks for {name}, which is gone"
        if name in held and held[name].shape != spec.shape:
            there, asked = (" x ".join(map(str, one.shape)) for one in (held[name], spec))
            return f"{family.model} would build {name} as {asked}, and it is {there}"
    return ""


def _bounded(
    family: Family,
    base: dict[str, Any],
    widths: Mapping[int, Mapping[str, int]],
    weights: View,
) -> tuple[dict[str, Any], nn.Module]:
    """The config with global widths that no layer exceeds, and the modules that it builds.

    Who reads `num_key_value_heads` without asking for a layer sizes a cache by it: the largest of
    all layers is enough for each. Where the family derives something else from it, or builds less
    than the weights are (half of `intermediate_size`), the dense number stays, which is enough too.
    """
    dense: nn.Module = lenient_skeleton(family, base)
    count = int(cast(Any, dense.config).num_hidden_layers)
    common = [widths.get(layer, {}).keys() for layer in range(count)]
    names = set.intersection(*map(set, common)) if common else set()
    largest = {name: max(widths[layer][name] for layer in range(count)) for name in sorted(names)}
    if all(base.get(name) == size for name, size in largest.items()):
        return base, dense
    try:
        smaller: nn.Module = lenient_skeleton(family, base | largest)
    except Exception:  # the family's own checks
        return base, dense
    known = size_attributes(family) | largest.keys()
    enough = _contains(smaller, weights.specs) and _alike(known, dense, smaller)
    return (base | largest, smaller) if enough else (base, dense)


def _contains(model: nn.Module, specs: Mapping[str, TensorSpec]) -> bool:
    """Whether no tensor is larger than the one that the model has of its name."""
    return all(
        all(size <= most for size, most in zip(specs[name].shape, parameter.shape, strict=False))
        for name, parameter in model.named_parameters()
        if name in specs
    )


def _alike(known: Set[str], dense: nn.Module, other: nn.Module) -> bool:
    """Whether the modules of two models differ in nothing but the sizes that are `known`."""

    def made(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
        buffers = {name: b.shape for name, b in module._buffers.items() if b is not None}
        return buffers, {name: one for name, one in plain_values(module) if name not in known}

    modules = dict(other.named_modules())
    return all(made(module) == made(modules[path]) for path, module in dense.named_modules())


def _own(
    family: Family,
    base: dict[str, Any],
    widths: dict[int, dict[str, int]],
    pruned_modules: dict[str, dict[str, Any]],
    weights: View,
) -> Form:
    classes = auto_classes(family.config, family.model)
    config = base | {
        "model_type": f"{PREFIX.lower()}_{base['model_type']}",
        "architectures": [classes["AutoModelForCausalLM"]],
        "auto_map": {
            auto: f"modeling_secateur.{name}"
            for auto, name in {"AutoConfig": PREFIX + family.config, **classes}.items()
        },
        "allow_global_per_layer_attribute_access": True,
        "per_layer_config": {str(layer): sizes for layer, sizes in widths.items()},
        "pruned_modules": pruned_modules,
    }
    return Form(config, weights, stock=False)


def _bias_flags(base: Mapping[str, Any]) -> list[dict[str, bool]]:
    """The config as it is, then with more and more of the bias flags that it has set."""
    flags = [flag for flag in _BIAS_FLAGS if base.get(flag) is False]
    return [
        dict.fromkeys(chosen, True)
        for count in range(len(flags) + 1)
        for chosen in itertools.combinations(flags, count)
    ]

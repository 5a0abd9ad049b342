"""What a layer is by its number, written down before the numbers change.

A config says of each layer what kind it is (sliding or full attention, with rotation or without,
dense or a mixture, which scale) in a list, or has the code derive it from the layer's number. So
the lists are made explicit and cut, thresholds and steps counted anew; then every layer that stays
is compared with what it was: numbers that no config can say go into `pruned_modules`, and a layer
that would be built of other modules is refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import transformers
from torch import nn

from ..errors import SecateurError
from ..models import Family
from .skeleton import lenient_config, lenient_skeleton

# Lists with one entry a layer; others are shown to be (see `_is_per_layer`).
_LISTS = ("layer_types", "mlp_layer_types", "no_rope_layers", "layers_block_type")
# Lists of the numbers of layers.
_NUMBERS = ("mlp_only_layers", "moe_layers")
# The layers below this number are of one kind, the others of another.
_THRESHOLDS = ("first_k_dense_replace", "num_dense_layers", "max_window_layers")
# What the lists are derived from where they are absent.
_PATTERNS = ("sliding_window_pattern", "_sliding_window_pattern", "no_rope_layer_interval")
_NO_LISTS = ("architectures", "bos_token_id", "eos_token_id", "pad_token_id")
# Where a layer's number itself stands in its modules: caches count by it.
_OWN_NUMBER = ("layer_idx", "layer_id", "layer_number")

Attributes = dict[str, dict[str, Any]]


def count_key(family: Family) -> str:
    """The config's own name of the number of layers."""
    names = getattr(getattr(transformers, family.config), "attribute_map", None) or {}
    return str(names.get("num_hidden_layers", "num_hidden_layers"))


def without_numbers(family: Family, base: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """The config.json `base` of a model of which only the layers `kept` are left."""
    key = count_key(family)
    full = lenient_config(family, base).to_dict()
    new = {layer: number for number, layer in enumerate(kept)}
    config = {**base, key: len(kept)}
    for name in _per_layer(family, base, full, key):
        config[name] = [full[name][layer] for layer in kept]
    for name in _NUMBERS:
        if isinstance(full.get(name), list):
            config[name] = [new[layer] for layer in full[name] if layer in new]
    for name in _THRESHOLDS:
        if isinstance(full.get(name), int) and full[name] < full[key]:
            config[name] = sum(layer < full[name] for layer in kept)
    step = full.get("decoder_sparse_step")
    if isinstance(step, int) and step > 1:
        dense = [layer for layer in kept if (layer + 1) % step]
        config["decoder_sparse_step"] = 1
        config["mlp_only_layers"] = sorted(
            {*config.get("mlp_only_layers", ()), *map(new.get, dense)}
        )
    if "attention_layers" in config and isinstance(full.get("attention_types"), list):
        config["attention_types"] = [[[kind], 1] for kind in config.pop("attention_layers")]
    return _without_false_patterns(family, config)


def _per_layer(
    family: Family, base: Mapping[str, Any], full: Mapping[str, Any], key: str
) -> list[str]:
    """The names in `full` of the lists with one entry a layer."""
    count = int(full[key])
    lists = {
        name: value
        for name, value in full.items()
        if isinstance(value, list) and len(value) == count and name not in (*_NUMBERS, *_NO_LISTS)
    }
    longer = {name: [*value, value[-1]] for name, value in lists.items()}
    more = {**base, **longer, key: count + 1}
    unknown = [name for name in lists if name not in _LISTS]
    if not unknown or not _builds(family, more):
        return [name for name in lists if name in _LISTS]
    return [
        name
        for name, value in lists.items()
        if name in _LISTS or not _builds(family, {**more, name: value})
    ]


def _builds(family: Family, raw: Mapping[str, Any]) -> bool:
    """Whether there is a model for the config: a list that is too short for its layers has none."""
    try:
        lenient_skeleton(family, raw)
    except Exception:  # the family's own code: an index, a check
        return False
    return True


def _without_false_patterns(family: Family, config: dict[str, Any]) -> dict[str, Any]:
    """`config` without the patterns that its lists do not follow: some readers know only those."""
    explicit = [name for name in _LISTS if name in config]
    patterns = [name for name in _PATTERNS if name in config]
    if not explicit or not patterns:
        return config
    derived = {name: value for name, value in config.items() if name not in explicit}
    try:
        found = lenient_config(family, derived).to_dict()
    except Exception:  # a pattern of another make
        found = {}
    if all(found.get(name) == config[name] for name in explicit):
        return config
    return {name: value for name, value in config.items() if name not in patterns}


def kept_kinds(
    family: Family, before: Mapping[str, Any], after: Mapping[str, Any], kept: Sequence[int]
) -> Attributes:
    """What the layers `kept` have that the config `after` does not give them, by module.

    Raises:
        SecateurError: a layer would be another one under its new number.
    """
    dense = lenient_skeleton(family, before)
    try:
        cut = lenient_skeleton(family, after)
    except Exception as error:  # the family's own checks
        reason = " ".join(str(error).split())[:200]
        raise _refused(family, f"its class takes no such config ({reason})") from error
    found: Attributes = {}
    types = getattr(dense.config, "layer_types", None)
    if types and list(cut.config.layer_types) != [types[layer] for layer in kept]:
        raise _refused(family, "its config cannot list the kinds of the layers that are left")
    for number, layer in enumerate(kept):
        path = f"{family.layers}.{number}"
        one, other = dense.get_submodule(f"{family.layers}.{layer}"), cut.get_submodule(path)
        for name, attributes in _differences(family, one, other, layer, number):
            found[f"{path}.{name}".rstrip(".")] = attributes
    return found


def _differences(
    family: Family, dense: nn.Module, cut: nn.Module, layer: int, number: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The attributes of the modules of one layer that are not what they were."""
    now = dict(cut.named_modules())
    for name, module in dense.named_modules():
        other = now.pop(name, None)
        if other is None or _make(module) != _make(other):
            raise _refused(
                family,
                f"{name or 'the layer'} of layer {layer} ({type(module).__name__}) would be"
                f" another module as layer {number} (its class decides by the number)",
            )
        own = {key: value for key, value in plain_values(module) if key not in _OWN_NUMBER}
        then = dict(plain_values(other))
        changed = {
            key: value
            for key, value in own.items()
            if then.get(key) != value and (value, then.get(key)) != (layer, number)
        }
        if changed:
            yield name, changed
    if now:
        raise _refused(family, f"as layer {number}, layer {layer} would have {next(iter(now))} too")


def _make(module: nn.Module) -> tuple[Any, ...]:
    """The class of a module, and the shapes of what it holds."""
    tensors = {**module._parameters, **module._buffers}
    shapes = {name: None if t is None else tuple(t.shape) for name, t in tensors.items()}
    real = {
        name: t.flatten().tolist()
        for name, t in module._buffers.items()
        if t is not None and t.device.type != "meta" and t.numel() < 10_000
    }
    return type(module), shapes, real


def plain_values(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The plain values that a module keeps."""
    for name, value in vars(module).items():
        if not name.startswith("_") and isinstance(value, bool | int | float | str | None):
            yield name, value


def _refused(family: Family, why: str) -> SecateurError:
    return SecateurError(
        f"With these layers gone, others of {family.model} would change: {why}.\n"
        "Prune other units: --granularity attention_block,mlp_block"
    )


# What `Form` notes anew at each cut, as it follows from the shapes that are left.
_SHAPES = (
    "in_features",
    "out_features",
    "nf",
    "nx",
    "num_embeddings",
    "embedding_dim",
    "normalized_shape",
)


def size_attributes(family: Family) -> set[str]:
    """The attributes of modules that say sizes, and are written down where those change."""
    return {*_SHAPES, *(attribute for _, attribute, _ in family.follow)}


def carried(family: Family, earlier: Mapping[str, Any]) -> Attributes:
    """The attributes in earlier `pruned_modules` that are no sizes: what a layer was stays."""
    sizes = size_attributes(family)
    found = {
        path: {name: v for name, v in entry.get("attributes", {}).items() if name not in sizes}
        for path, entry in earlier.items()
    }
    return {path: values for path, values in found.items() if values}

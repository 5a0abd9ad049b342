"""A family that nobody declared: where its layers are, and what counts its units, found too."""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import SecateurError
from ...structure.size import E, I, K, Size, r
from ..families import Family
from .tiny import Sizes, check_counts, dense_config, running_model, tiny_model, tokens
from .trace import Traced, traced

_COUNTS: tuple[Size, ...] = (K * r, K, r, I, E)
# How many experts a token goes to is no count of units, though in a small model it is all.
_NO_COUNTS = ("layer_idx", "top_k")
_HEAD_COUNTS: dict[str, Size] = {"num_attention_heads": K * r, "num_key_value_heads": K}


def undeclared_family(config: Any, model: Any) -> Family:
    """The layout of `model` (on meta or not), traced from its code alone.

    Raises:
        SecateurError: no layers are found, or what is found makes no layout.
    """
    config = dense_config(config)
    check_counts(config)
    path = _layers_path(config, model)
    small = running_model(config, 0)
    _check_causal(small)
    place = Family(
        config=type(config).__name__,
        model=type(model).__name__.removeprefix("Secateur"),
        layers=path,
        couplings=(),
        tuples=_gives_tuples(small, path),
    )
    found: dict[str, Traced] = {}
    for kind, layer in layer_kinds(model, path).items():
        found[kind] = traced(config, layer, place)
    first = next(iter(found.values()))
    couplings = {c.name: c for some in found.values() for c in some.couplings}
    follow = {
        item
        for kind, some in found.items()
        for item in _followers(config, some.sizes, path, layer_kinds(model, path)[kind])
    }
    return replace(
        place,
        couplings=tuple(couplings.values()),
        follow=tuple(sorted(follow, key=str)),
        kv_heads=_kv_heads(config, first),
    )


def layer_kinds(model: Any, path: str) -> dict[str, int]:
    """One layer of each make, by the names and dimensions of its tensors."""
    kinds: dict[str, int] = {}
    for number, layer in enumerate(model.get_submodule(path)):
        make = ",".join(f"{name}:{p.dim()}" for name, p in layer.named_parameters())
        kinds.setdefault(make, number)
    return kinds


def _layers_path(config: Any, model: Any) -> str:
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return str(name)
    raise SecateurError(
        f"{type(model).__name__} has no list of {config.num_hidden_layers} decoder layers, as its"
        " config says it has.\nExpected a causal language model of transformers."
    )


def _check_causal(model: Any) -> None:
    """In a decoder the last token changes no logits before it."""
    ids = tokens(0)
    other = torch.cat([ids[:, :-1], ids[:, -1:] % 63 + 1], dim=1)
    with torch.no_grad():
        one, two = (model(input_ids=some, use_cache=False).logits[:, :-1] for some in (ids, other))
    if not torch.allclose(one, two, rtol=1e-6, atol=1e-9):
        raise SecateurError(
            f"{model.config.model_type!r} is an encoder: its tokens see later ones.\n"
            "Expected a causal language model of transformers."
        )


def _gives_tuples(model: Any, path: str) -> bool:
    seen: list[bool] = []
    hook = model.get_submodule(path)[0].register_forward_hook(
        lambda module, args, output: seen.append(isinstance(output, tuple))
    )
    try:
        model(input_ids=tokens(0), use_cache=False)
    finally:
        hook.remove()
    return seen[0]


def _kv_heads(config: Any, found: Traced) -> str | int | None:
    if found.sizes[0].K == 1:
        return 1
    if found.sizes[0].r == 1:
        return None
    names = ("num_key_value_heads", "num_kv_heads")
    return next((name for name in names if getattr(config, name, None)), None)


def _followers(
    config: Any, sizes: tuple[Sizes, Sizes], path: str, layer: int
) -> Iterator[tuple[str, str, Size]]:
    """Attributes of the layer's modules that are a count of units in both tiny models."""
    models = [tiny_model(config, choice, 0) for choice in sizes]
    modules = [dict(m.get_submodule(path)[layer].named_modules()) for m in models]
    for name, module in modules[0].items():
        for attribute, number in vars(module).items():
            other = getattr(modules[1].get(name), attribute, None)
            if attribute in _NO_COUNTS or type(number) is not int or type(other) is not int:
                continue
            size = _count((number, other), sizes)
            if size is not None and not _says_shape(module, attribute):
                yield name, attribute, size
        for attribute in _read_from_config(module):
            yield name, f"config.{attribute}", _HEAD_COUNTS[attribute]


def _count(numbers: tuple[int, int], sizes: tuple[Sizes, Sizes]) -> Size | None:
    for size in _COUNTS:
        if tuple(size.at(choice.values) for choice in sizes) == numbers and numbers[0] > 1:
            return size
    return None


def _says_shape(module: nn.Module, attribute: str) -> bool:
    """in_features and the like: they are set from the shapes themselves."""
    weight: Mapping[str, Tensor | None] = module._parameters
    return weight.get("weight") is not None and attribute in (
        "in_features",
        "out_features",
        "nf",
        "nx",
    )


def _read_from_config(module: nn.Module) -> set[str]:
    """Head counts that a module's forward reads from its config, not from itself."""
    try:
        source = inspect.getsource(type(module).forward)
    except (OSError, TypeError):
        return set()
    return {name for name in _HEAD_COUNTS if re.search(rf"self\.config\.{name}\b", source)}

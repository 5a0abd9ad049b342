"""What follows from the units that stay: attributes of a layer's modules that count them."""

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ...structure.size import E, I, K, Size, d, r
from .sizes import Sizes
from .tiny import tiny_model

COUNTS: tuple[Size, ...] = (K * r, K, r, I, E)
# The width of all heads, where it may as well be that of the stream: the proof finds out.
WIDTHS: tuple[Size, ...] = (K * r * d, K * d)
# How many experts a token goes to is no count of units, though in a small model it is all.
_NO_COUNTS = ("layer_idx", "top_k")
_SHAPES = ("in_features", "out_features", "nf", "nx")
_HEAD_COUNTS: dict[str, Size] = {"num_attention_heads": K * r, "num_key_value_heads": K}


def followers(
    config: Any, sizes: tuple[Sizes, Sizes], path: str, layer: int, among: tuple[Size, ...]
) -> Iterator[tuple[str, str, Size]]:
    """Attributes of the layer's modules that are one of `among` in both tiny models."""
    models = [tiny_model(config, choice, 0) for choice in sizes]
    modules = [dict(m.get_submodule(path)[layer].named_modules()) for m in models]
    for name, module in modules[0].items():
        for attribute, number in vars(module).items():
            other = getattr(modules[1].get(name), attribute, None)
            if attribute in _NO_COUNTS or type(number) is not int or type(other) is not int:
                continue
            size = next(
                (s for s in among if [s.at(c.values) for c in sizes] == [number, other]), None
            )
            if size is not None and number > 1 and not _says_shape(module, attribute):
                yield name, attribute, size
        for attribute in _read_from_config(module):
            yield name, f"config.{attribute}", _HEAD_COUNTS[attribute]


def _says_shape(module: nn.Module, attribute: str) -> bool:
    """in_features and the like: they are set from the shapes themselves."""
    weight: Mapping[str, Tensor | None] = module._parameters
    return weight.get("weight") is not None and attribute in _SHAPES


def _read_from_config(module: nn.Module) -> set[str]:
    """Head counts that a module's forward reads from its config, not from itself."""
    try:
        source = inspect.getsource(type(module).forward)
    except (OSError, TypeError):
        return set()
    return {name for name in _HEAD_COUNTS if re.search(rf"self\.config\.{name}\b", source)}

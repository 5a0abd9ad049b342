"""Multiply-accumulates of a token, counted from the model's own matrices.

    a token at context T = linears + head + sum over layers of (value + key) * min(T, window)
                                                            + latent * min(T, window)

| letter | what it is |
|---|---|
| linears | weights of all linears in the layers; of experts, of those that a token goes to |
| head | weights of the linear that gives logits |
| value | what o_proj reads: query heads times the width of a value |
| key | query heads times the width of a key |
| latent | weights that every token of the cache passes again: kv_b of latent attention (MLA) |

Norms, softmax, rotary tables and recurrences are not counted. One multiply-accumulate is two
floating-point operations.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..budgets import tokens_seen
from ..structure import Structure


@dataclass(frozen=True, slots=True)
class Attending:
    """What a layer's attention does with each token of the cache; `window` of them (None: all)."""

    key: int
    value: int
    latent: int
    window: int | None

    def macs(self, context: int) -> int:
        """Multiply-accumulates of a token that sees `context` tokens, itself among them."""
        return (self.key + self.value + self.latent) * tokens_seen(context, self.window)


@dataclass(frozen=True)
class Counts:
    """Multiply-accumulates of a token: see the top of this file."""

    linears: int
    head: int
    attention: tuple[Attending, ...]

    def token(self, context: int) -> int:
        """Those of a token that sees `context` tokens, itself among them."""
        return self.linears + self.head + sum(one.macs(context) for one in self.attention)

    def prompt(self, context: int) -> int:
        """Those of a prompt of `context` tokens up to its last one's logits.

        As the kernels compute it: all pairs of tokens, and the keys of a latent once.
        """
        each = sum((a.key + a.value) * context + a.latent for a in self.attention)
        return context * (self.linears + each) + self.head


def counts_of(
    model: Any,
    structure: Structure,
    *,
    routed: int,
    key_width: int | None,
    latent: bool,
    windows: Sequence[int | None],
) -> Counts:
    """The counts of `model` (a transformers causal LM, on meta or not) with the axes `structure`.

    A token goes to `routed` experts of each mixture. A key is `key_width` wide (None: as a value);
    with `latent` attention, keys and values are made of the cache again for every token.
    """
    head, shapes = model.get_output_embeddings(), _shapes(model)
    experts = experts_of(shapes)
    weights = {
        f"{path}.{name}": count
        for path, module in model.named_modules()
        if module is not head
        for name, count in _weights(module, routed, experts).items()
    }
    again = {name for name in weights if latent and name.endswith("kv_b_proj.weight")}
    attention = []
    for axis in structure.axes:
        if axis.granularity != "kv_group":
            continue
        value = shapes[axis.consumer.tensor][axis.consumer.dim]
        heads = axis.units * axis.per_unit
        own = sum(weights[m.tensor] for m in axis.members if m.tensor in again)
        window = windows[axis.layer] if axis.layer < len(windows) else None
        attention.append(Attending(heads * (key_width or value // heads), value, own, window))
    linears = sum(count for name, count in weights.items() if name not in again)
    return Counts(linears, head.weight.numel(), tuple(attention))


def experts_of(shapes: Mapping[str, Sequence[int]]) -> set[int]:
    """How many experts there are: the first size of what has three, but of convolutions."""
    return {shape[0] for shape in shapes.values() if len(shape) == 3 and shape[1] > 1}


def is_router(name: str, shape: Sequence[int], experts: set[int]) -> bool:
    """Whether a tensor scores experts: a row for each."""
    return len(shape) == 2 and name.endswith("weight") and shape[0] in experts


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    named = model.named_parameters(remove_duplicate=False)
    return {name: tuple(parameter.shape) for name, parameter in named}


def _weights(module: nn.Module, routed: int, experts: set[int]) -> dict[str, int]:
    """Multiply-accumulates of a token in each of the module's own tensors.

    transformers' Conv1D is a linear by another name.
    """
    own = {name: tuple(p.shape) for name, p in module.named_parameters(recurse=False)}
    if isinstance(module, nn.Linear | nn.Conv1d) or type(module).__name__ == "Conv1D":
        return {"weight": math.prod(own["weight"])}
    if isinstance(module, nn.Embedding):
        return {}
    found = {}
    for name, shape in own.items():
        if len(shape) == 3:
            found[name] = math.prod(shape) // shape[0] * min(routed, shape[0])
        elif is_router(name, shape, experts) and "norm" not in type(module).__name__.lower():
            found[name] = math.prod(shape)
    return found

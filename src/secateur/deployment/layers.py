"""What engines ask of a Llama's layers: heads, KV heads and MLP channels of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import transformers

from ..models import OpenModel

Q, K, V, O = (f"self_attn.{name}_proj" for name in "qkvo")  # noqa: E741
GATE, UP, DOWN = (f"mlp.{name}_proj" for name in ("gate", "up", "down"))


def family_of(opened: OpenModel) -> str:
    """Transformers' model_type of the family, also of a checkpoint of our own."""
    return str(getattr(transformers, opened.family.config).model_type)


@dataclass(frozen=True)
class Sizes:
    """Heads, KV heads and MLP channels of a layer; 0 where the block is gone."""

    heads: int
    kv_heads: int
    width: int


def layer_sizes(shapes: Mapping[str, Sequence[int]], layers: int, head_dim: int) -> list[Sizes]:
    """Those of each layer, by the shapes of its linears' weights."""

    def rows(layer: int, linear: str) -> int:
        shape = shapes.get(f"model.layers.{layer}.{linear}.weight")
        return 0 if shape is None else shape[0]

    return [
        Sizes(rows(n, Q) // head_dim, rows(n, K) // head_dim, rows(n, GATE)) for n in range(layers)
    ]

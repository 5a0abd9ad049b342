"""Declared layouts: a model family is data.

Letters: H query heads, K KV heads, r = H/K query heads a KV head, d head_dim, I MLP width.
"""

from dataclasses import dataclass
from typing import Any, Literal

from ..structure.axis import Role


@dataclass(frozen=True, slots=True)
class Part:
    """One linear of a layer: its path in the layer, and how much of it belongs to one unit.

    `per` is the width of a unit: `query` r*d, `kv` d, `channel` 1. Rows (dim 0, and the bias)
    are a producer's, columns (dim 1) a consumer's.
    """

    module: str
    per: Literal["query", "kv", "channel"]
    role: Role


@dataclass(frozen=True, slots=True)
class Family:
    """Where a family keeps its layers, linears and widths.

    The order of the parts is the members' order in coupled structures.
    """

    config: str
    model: str
    layers: str
    attention: tuple[Part, ...]
    mlp: tuple[Part, ...]
    query_heads: str = "num_attention_heads"
    kv_heads: str = "num_key_value_heads"
    mlp_width: str = "intermediate_size"

    def head_dim(self, config: Any) -> int:
        """Width of one head. Where the config does not say, the dense head count decides."""
        stated = getattr(config, "head_dim", None)
        return int(stated or config.hidden_size // getattr(config, self.query_heads))


def _llama_like(name: str) -> Family:
    return Family(
        config=f"{name}Config",
        model=f"{name}ForCausalLM",
        layers="model.layers",
        attention=(
            Part("self_attn.q_proj", "query", "producer"),
            Part("self_attn.o_proj", "query", "consumer"),
            Part("self_attn.v_proj", "kv", "producer"),
            Part("self_attn.k_proj", "kv", "producer"),
        ),
        mlp=(
            Part("mlp.gate_proj", "channel", "producer"),
            Part("mlp.up_proj", "channel", "producer"),
            Part("mlp.down_proj", "channel", "consumer"),
        ),
    )


# By `model_type` of the config. Biases are not declared: a member has one where the model has one.
FAMILIES = {
    "llama": _llama_like("Llama"),
    "mistral": _llama_like("Mistral"),
    "qwen2": _llama_like("Qwen2"),
    "qwen3": _llama_like("Qwen3"),
}

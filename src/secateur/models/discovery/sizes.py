"""Small sizes for a config: what its numbers are called, and which choices of them are tried.

A number that a layout has a letter for gets the letter's value. Others (ranks, states, heads of a
recurrence) get small values of their own, so that nothing is taken for something else.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from ...errors import SecateurError
from ..structures import ROUTED

ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
# What attention reads of the rotary parameters, whatever its frequencies are.
_ATTENTION = ("llama_4_scaling_beta", "original_max_position_embeddings")
SHARES = ("partial_rotary_factor", "rotary_pct")

# What small models compute in, the best first, and how far apart, relative, two routes to the same
# logits may come out. Some code takes no fp64, some computes norms or softmax in fp32 all the same.
# In fp32 the order of the sums alone makes up to 1e-6.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4}

Sharing = Literal["grouped", "multi-head", "multi-query"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """One choice of the letters of a layout; `D` follows where a family has no head_dim.

    `dtype` is what the small model computes in.
    """

    K: int
    r: int
    d: int
    I: int  # noqa: E741
    E: int
    D: int
    dtype: torch.dtype = torch.float64

    @property
    def values(self) -> dict[str, int]:
        """By letter."""
        return {name: getattr(self, name) for name in ("K", "r", "d", "I", "E", "D")}


def _small_encoder(raw: Mapping[str, Any]) -> dict[str, Any]:
    """An encoder beside the decoder: text does not go through it."""
    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    }
    return dict(raw) | {name: value for name, value in small.items() if raw.get(name) is not None}


# What configs call the number of KV heads.
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")

# By size, under which names configs keep it. The first three every decoder config has
# (transformers maps them to the family's own).
_NAMES: tuple[tuple[Callable[[Sizes], int], tuple[str, ...]], ...] = (
    (lambda s: s.D, ("hidden_size", "word_embed_proj_dim", "lru_width")),
    (lambda s: s.K * s.r, ("num_attention_heads",)),
    (lambda s: 64, ("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size")),
    (lambda s: s.K, (*_KV_HEADS, "num_query_groups")),
    (lambda s: s.d, ("head_dim", "kv_channels", "dim_head", "d_head", "query_pre_attn_scalar")),
    (lambda s: s.d // 2, ("rotary_dim",)),
    (
        lambda s: s.I,
        (
            "intermediate_size",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "shared_experts_intermediate_size",
            "moe_shared_expert_intermediate_size",
            "shared_intermediate_size",
            "dense_intermediate_size",
            "intermediate_size_mlp",
            "expert_ffn_hidden_size",
            "ffn_dim",
            "decoder_ffn_dim",
            "encoder_ffn_dim",
            "n_inner",
            "ffn_hidden_size",
            "feed_forward_size",
            "dim_ff",
            "dff",
        ),
    ),
    (lambda s: s.E, ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")),
    # every expert gets every token: one that gets none shows nothing
    (lambda s: s.E, ROUTED),
    (lambda s: 1, ("n_group", "num_expert_group", "topk_group")),
    # latent attention: a rank for all heads, and parts of a head that are rotated or not
    (lambda s: 14, ("q_lora_rank",)),
    (lambda s: 10, ("kv_lora_rank",)),
    (lambda s: s.d, ("qk_rope_head_dim",)),
    (lambda s: 12, ("qk_nope_head_dim",)),
    (lambda s: s.d + 12, ("qk_head_dim",)),
    (lambda s: 11, ("v_head_dim",)),
    (lambda s: 6, ("o_lora_rank",)),
    (lambda s: 1, ("o_groups",)),
    # heads of layers of another type: numbers of their own, lest they be taken for the others
    (lambda s: 1, ("num_global_key_value_heads", "swa_num_key_value_heads")),
    (lambda s: 2 * s.d, ("global_head_dim", "swa_head_dim")),
    (lambda s: s.K * s.r, ("swa_num_attention_heads",)),
    (lambda s: 2, ("index_n_heads",)),
    (lambda s: 2 * s.d, ("index_head_dim",)),
    # recurrences
    (
        lambda s: 2,
        ("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "linear_num_heads"),
    ),
    (lambda s: s.D, ("mamba_d_head", "mamba_head_dim", "mamba_headdim")),
    (lambda s: 2 * s.D, ("mamba_d_ssm", "attention_hidden_size")),
    (lambda s: 2, ("mamba_expand", "expand")),
    (lambda s: 1, ("mamba_n_groups", "mamba_ngroups", "n_groups")),
    (lambda s: 6, ("mamba_d_state", "state_size", "ssm_state_size")),
    (lambda s: 3, ("mamba_dt_rank", "time_step_rank")),
    (lambda s: 8, ("mamba_chunk_size", "chunk_size")),
    (lambda s: 2, ("linear_num_key_heads",)),
    (lambda s: 4, ("linear_num_value_heads",)),
    (lambda s: 8, ("linear_key_head_dim", "linear_head_dim")),
    (lambda s: 10, ("linear_value_head_dim",)),
    # small things beside the stream
    (lambda s: 7, ("gated_norm_rank", "laurel_rank", "adapter_rank", "hc_lowrank")),
    (lambda s: 9, ("hidden_size_per_layer_input", "router_hidden_size")),
    (lambda s: 64, ("n_positions", "max_position_embeddings", "n_ctx")),
)


def small_values(config: Any, sizes: Sizes) -> dict[str, Any]:
    """What of the config's own attributes gets which value."""
    raw = config.to_dict()
    names = getattr(config, "attribute_map", None) or {}
    values: dict[str, Any] = {
        name: size(sizes) for size, attributes in _NAMES for name in attributes
    }
    values |= {"experts_implementation": "eager"}
    values |= dict.fromkeys(ACTIVATIONS, "silu") | dict.fromkeys(SHARES, 0.5)
    if raw.get("attention_head_dim") is not None:  # heads over more than the residual stream
        values["attention_head_dim"] = 2 * sizes.D // (sizes.K * sizes.r)
    if "max_position_embeddings" in raw and raw.get("rope_parameters") is None:
        values.pop("max_position_embeddings")
    inner = raw.get("expand", raw.get("mamba_expand"))
    if inner and raw.get("intermediate_size") == inner * config.hidden_size:
        values["intermediate_size"] = 2 * sizes.D  # of a recurrence, not of an MLP
    found: dict[str, Any] = {
        name: _small_encoder(value)
        for name, value in raw.items()
        if name in ("vision_config", "audio_config") and isinstance(value, dict)
    }
    for name, value in values.items():
        own = names.get(name, name)
        known = raw.get(own)
        if isinstance(known, list) and known and type(known[0]) in (int, str):
            found[own] = [value] * len(known)
        elif known is not None or (own in raw and name in ROUTED):
            found[own] = value
    return found


def stated_kv_heads(config: Any) -> str | None:
    """Where the config says how many KV heads there are; None if it does not."""
    return next((name for name in _KV_HEADS if getattr(config, name, None)), None)


def sharings(config: Any) -> tuple[Sharing, ...]:
    """How query heads may share KV heads; what the config says comes first.

    Some families have a flag of their own for it, and some configs a number that is not used.
    """
    stated = getattr(config, stated_kv_heads(config) or "", 0)
    if stated == 1:
        return ("multi-query", "grouped", "multi-head")
    if stated and stated < getattr(config, "num_attention_heads", 1):
        return ("grouped", "multi-head", "multi-query")
    return ("multi-head", "multi-query", "grouped")


_HEADS: dict[bool, dict[Sharing, tuple[tuple[int, int], tuple[int, int]]]] = {
    False: {
        "grouped": ((3, 2), (2, 4)),
        "multi-head": ((3, 1), (5, 1)),
        "multi-query": ((1, 6), (1, 8)),
    },
    True: {
        "grouped": ((4, 2), (2, 6)),
        "multi-head": ((4, 1), (8, 1)),
        "multi-query": ((1, 4), (1, 8)),
    },
}


def tiny_choices(config: Any) -> Iterator[tuple[Sizes, Sizes]]:
    """Pairs of sizes to try, the likeliest first; a family's code does not take all of them.

    First odd ones, which are not easily mistaken for each other, then ones that divide.
    """
    widths = (True, False) if states_head_dim(config) else (False,)
    choices = itertools.product(TOLERANCES, (False, True), sharings(config), widths)
    for dtype, even, sharing, own in choices:
        one, other = (tiny_sizes(config, number, sharing, own, even=even) for number in (0, 1))
        yield replace(one, dtype=dtype), replace(other, dtype=dtype)


def tiny_sizes(
    config: Any, number: int, sharing: Sharing, own_width: bool, *, even: bool = False
) -> Sizes:
    """The first or second choice of sizes; `own_width`: heads need not add up to hidden_size.

    Raises:
        SecateurError: the config lacks what every decoder has.
    """
    check_counts(config)
    K, r = _HEADS[even][sharing][number]
    d = ((8, 12) if even else (8, 4))[number]
    D = (30, 40)[number] if own_width and K > 1 else K * r * d
    width, experts = ((24, 40), (4, 6)) if even else ((21, 13), (5, 7))
    return Sizes(K=K, r=r, d=d, I=width[number], E=experts[number], D=D)


def check_counts(config: Any) -> None:
    """Refuse a config that does not say how wide and deep the model is.

    Raises:
        SecateurError: it lacks what every decoder has.
    """
    if config.to_dict().get("per_layer_config"):
        raise SecateurError(
            f"The layers of {config.model_type!r} have sizes of their own (per_layer_config), which"
            " no small model of it has yet.\nThis family needs a declared layout."
        )
    if getattr(config, "num_kv_shared_layers", 0):
        raise SecateurError(
            f"The last {config.num_kv_shared_layers} layers of {config.model_type!r} read the keys"
            " and values of earlier ones, so that no layer runs, or loses heads, by itself.\n"
            "Expected a model whose num_kv_shared_layers is 0."
        )
    heads = getattr(config, "num_attention_heads", None)
    if heads is None and config.to_dict().get("state_size"):
        raise SecateurError(
            f"The layers of {config.model_type!r} are one recurrence each, with no attention heads"
            " and no MLP: all channels depend on one another through its state.\n"
            "Expected a model with attention heads, MLP channels or experts."
        )
    for name in ("hidden_size", "num_hidden_layers"):
        if not isinstance(getattr(config, name, None), int):
            raise SecateurError(
                f"The config of {config.model_type!r} has no {name}, which every"
                f" decoder states{_inner(config)}.\nExpected a causal language model."
            )


def _inner(config: Any) -> str:
    """That the decoder is a part of the model, where it is."""
    text = getattr(config, "text_config", None)
    kind = getattr(text, "model_type", None)
    return f"; its decoder is the {kind!r} inside it (text_config)" if kind else ""


def states_head_dim(config: Any) -> bool:
    """Whether the config has a head width of its own."""
    return config.to_dict().get("head_dim") is not None and not isinstance(
        getattr(type(config), "head_dim", None), property
    )


def plain_rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary parameters without scaling, whose factors would have to fit the head width."""
    if any(isinstance(value, dict) for value in parameters.values()):
        return {
            key: plain_rope(value) if isinstance(value, dict) else value
            for key, value in parameters.items()
        }
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    plain |= {name: 0.5 for name in SHARES if parameters.get(name) is not None}
    return plain | {name: parameters[name] for name in _ATTENTION if name in parameters}

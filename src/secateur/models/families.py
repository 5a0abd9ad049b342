"""Declared families: where each keeps its layers, how they are laid out, what follows from it.

`models.layouts` has the words; a family that is laid out as llama is takes a line of `FAMILIES`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..structure import Coupling, Slice
from ..structure.size import ONE, ZERO, D, E, I, K, Size, d, r
from .layouts import (
    Couplings,
    Slices,
    between,
    channels,
    expert,
    experts,
    groups,
    interleaved,
    norms,
    rows,
    separate,
    stacked,
)

Follow = tuple[tuple[str, str, Size], ...]

_BLOCKS = {"attention": "tuple", "mlp": "tensor"}


@dataclass(frozen=True, slots=True)
class Family:
    """Where a family keeps its layers, and how its layers are laid out.

    `when` lists config values that the layout is for. `kv_heads` is the config attribute that
    counts KV heads, a number, or None if there are as many as query heads. `follow` are the
    attributes of modules in a layer that count units: (module, attribute, size). `slopes` are
    the arguments of a module that hold one row a head (ALiBi), which a head keeps for life.
    `tuples` says that a layer returns a tuple. `blocks` says what the modules of attention and MLP
    return, `tensor` or `tuple`; `scales_by_width` that the code computes a factor from hidden_size.
    `widths` are attributes that may be the width of all heads, or of the stream: `export.proved`
    finds out which. `left` names modules of a layer in which no units are taken, and why.
    """

    config: str
    model: str
    layers: str
    couplings: tuple[Coupling, ...]
    follow: Follow = ()
    slopes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    kv_heads: str | int | None = "num_key_value_heads"
    tuples: bool = False
    blocks: Mapping[str, str] = field(default_factory=lambda: _BLOCKS)
    scales_by_width: bool = False
    when: Mapping[str, Any] = field(default_factory=dict)
    widths: Follow = ()
    left: tuple[tuple[str, str], ...] = ()

    def head_dim(self, config: Any) -> int:
        """Width of one head. Where the config does not say, the dense head count decides."""
        stated = getattr(config, "head_dim", None)
        return int(stated or config.hidden_size // getattr(config, "num_attention_heads", 1))

    def heads(self, config: Any) -> tuple[int, int]:
        """(KV heads, query heads a KV head) of a layer with `config`."""
        query = int(getattr(config, "num_attention_heads", 1))
        groups = self.kv_heads
        if isinstance(groups, str):
            groups = getattr(config, groups, None)
        return int(groups or query), query // int(groups or query)


def _counts(module: str, **attributes: Size) -> Follow:
    return tuple((module, name, size) for name, size in attributes.items())


_GROUPS = _counts("self_attn", num_key_value_groups=r)
_HEADS = _counts("self_attn", num_heads=K * r, num_key_value_heads=K)

_LLAMA_HEADS = separate("self_attn.o_proj")
_LLAMA_MLP = between("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def declared(
    name: str,
    heads: Slices = _LLAMA_HEADS,
    mlp: Slices = _LLAMA_MLP,
    mixture: Couplings = (),
    **more: Any,
) -> Family:
    """Laid out as llama is, but for what is named."""
    return Family(
        config=f"{name}Config",
        couplings=(*groups(heads), *channels(mlp), *mixture),
        **{"model": f"{name}ForCausalLM", "layers": "model.layers", "follow": _GROUPS, **more},
    )


# [gate; up] rows of every expert, in one tensor of three dimensions
_MIXTURE = experts(
    rows("mlp.gate", ONE),
    expert("gate_up_proj", 1),
    expert("gate_up_proj", 1, offset=I),
    expert("down_proj", 2, "consumer", jump=I),
)
_EXPERT_COUNTS = (
    *_GROUPS,
    *_counts("mlp.experts", num_experts=E, intermediate_dim=I, hidden_dim=D),
    *_counts("mlp.gate", num_experts=E, hidden_dim=D),
)
# gate and up in turns, along the last dimension
_GPT_OSS_MIXTURE = experts(
    (*rows("mlp.router", ONE), Slice("mlp.experts", "down_proj_bias", (0,), "producer")),
    *(
        expert(name, dim, offset=offset, stride=2 * ONE)
        for name, dim in (("gate_up_proj", 2), ("gate_up_proj_bias", 1))
        for offset in (ZERO, ONE)
    ),
    expert("down_proj", 1, "consumer", jump=I),
)
_FALCON_MLP = between("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
_FALCON_QKV = ("self_attention.query_key_value", "self_attention.dense")


def _falcon(heads: Slices, **more: Any) -> Family:
    return declared(
        "Falcon",
        heads,
        _FALCON_MLP,
        layers="transformer.h",
        tuples=True,
        slopes=(("self_attention", ("alibi", "attention_mask")),),
        follow=_counts("self_attention", num_heads=K * r, num_kv_heads=K),
        **more,
    )


# By `model_type` of the config; of several layouts, the first whose `when` the config meets.
FAMILIES: dict[str, tuple[Family, ...]] = {
    "llama": (declared("Llama"),),
    "mistral": (declared("Mistral"),),
    "qwen2": (declared("Qwen2"),),
    "qwen3": (declared("Qwen3"),),
    "gemma": (declared("Gemma", scales_by_width=True),),
    "gemma2": (declared("Gemma2", scales_by_width=True),),
    "gemma3_text": (declared("Gemma3Text", model="Gemma3ForCausalLM", scales_by_width=True),),
    "granite": (declared("Granite"),),
    "olmo": (declared("Olmo"),),
    "smollm3": (declared("SmolLM3"),),
    "stablelm": (
        declared(
            "StableLm",
            # hidden_size: the width of its heads together, what transformers 4 gives o_proj
            follow=(*_GROUPS, *_HEADS, *_counts("self_attn", hidden_size=K * r * d)),
            when={"qk_layernorm": False},
        ),
    ),
    "cohere": (declared("Cohere", (*_LLAMA_HEADS, *norms(ONE))),),
    "olmo2": (declared("Olmo2", (*_LLAMA_HEADS, *norms(d))),),
    "nemotron": (
        declared("Nemotron", mlp=between("mlp.up_proj", "mlp.down_proj"), follow=_GROUPS + _HEADS),
    ),
    "starcoder2": (declared("Starcoder2", mlp=between("mlp.c_fc", "mlp.c_proj")),),
    "phi": (declared("Phi", separate("self_attn.dense"), between("mlp.fc1", "mlp.fc2")),),
    "phi3": (
        declared(
            "Phi3",
            stacked("self_attn.qkv_proj", "self_attn.o_proj"),
            (*between("mlp.gate_up_proj", "mlp.down_proj"), *rows("mlp.gate_up_proj", ONE, I)),
            follow=(
                *_GROUPS,
                *_counts("self_attn", num_key_value_heads=K),
                ("self_attn", "config.num_attention_heads", K * r),
            ),
        ),
    ),
    "gpt_neox": (
        declared(
            "GPTNeoX",
            interleaved("attention.query_key_value", "attention.dense"),
            _FALCON_MLP,
            layers="gpt_neox.layers",
            follow=(),
            kv_heads=None,
        ),
    ),
    "bloom": (
        declared(
            "Bloom",
            interleaved(*_FALCON_QKV),
            _FALCON_MLP,
            layers="transformer.h",
            follow=_counts("self_attention", num_heads=K * r),
            slopes=(("self_attention", ("alibi",)),),
            kv_heads=None,
            tuples=True,
        ),
    ),
    "falcon": (
        _falcon(
            interleaved(*_FALCON_QKV),
            kv_heads="num_kv_heads",
            when={"new_decoder_architecture": True},
        ),
        _falcon(stacked(*_FALCON_QKV), kv_heads=1, when={"multi_query": True}),
        _falcon(interleaved(*_FALCON_QKV), kv_heads=None),
    ),
    "mpt": (
        declared(
            "Mpt",
            stacked("attn.Wqkv", "attn.out_proj"),
            between("ffn.up_proj", "ffn.down_proj"),
            layers="transformer.blocks",
            follow=_counts("attn", n_heads=K * r),
            slopes=(("attn", ("position_bias",)),),
            kv_heads=None,
            tuples=True,
        ),
    ),
    "opt": (
        declared(
            "OPT",
            separate("self_attn.out_proj"),
            between("fc1", "fc2"),
            layers="model.decoder.layers",
            follow=_counts("self_attn", num_heads=K * r),
            kv_heads=None,
        ),
    ),
    "gpt2": (
        declared(
            "GPT2",
            stacked("attn.c_attn", "attn.c_proj", dims=(1, 0)),
            between("mlp.c_fc", "mlp.c_proj", dims=(1, 0)),
            model="GPT2LMHeadModel",
            layers="transformer.h",
            follow=_counts("attn", num_heads=K * r, split_size=K * r * d),
            kv_heads=None,
        ),
    ),
    "gptj": (
        declared(
            "GPTJ",
            separate("attn.out_proj"),
            between("mlp.fc_in", "mlp.fc_out"),
            layers="transformer.h",
            follow=_counts("attn", num_attention_heads=K * r),
            kv_heads=None,
            tuples=True,
        ),
    ),
    "mixtral": (declared("Mixtral", mlp=(), mixture=_MIXTURE, follow=_EXPERT_COUNTS),),
    "qwen3_moe": (declared("Qwen3Moe", mixture=_MIXTURE, follow=_EXPERT_COUNTS),),
    "olmoe": (
        declared(
            "Olmoe",
            (*_LLAMA_HEADS, *norms(d)),
            mlp=(),
            mixture=_MIXTURE,
            follow=_EXPERT_COUNTS,
        ),
    ),
    "gpt_oss": (
        declared(
            "GptOss",
            (*_LLAMA_HEADS, Slice("self_attn", "sinks", (0,), "producer", r)),
            mlp=(),
            mixture=_GPT_OSS_MIXTURE,
            follow=(
                *_GROUPS,
                *_counts("mlp.experts", num_experts=E, intermediate_size=I, hidden_size=D),
                *_counts("mlp.router", num_experts=E, hidden_dim=D),
            ),
            blocks={"attention": "tuple", "mlp": "tuple"},
        ),
    ),
}


def layout_for(model_type: str, config: Mapping[str, Any]) -> Family | None:
    """The declared layout of a family (None: nobody declared it, or not with this config)."""
    for family in FAMILIES.get(model_type, ()):
        if all(config.get(key, value) == value for key, value in family.when.items()):
            return family
    return None

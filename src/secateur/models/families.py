"""Declared layouts: a model family is data.

The letters of sizes are those of `secateur.structure.size`: K KV heads, r query heads a KV head,
d head_dim, I MLP channels, E experts. Biases are not declared: a member has one where the model
has one; so with norms and sinks, whose `Part` is left out where the model has no such tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..structure import Coupling, Role, Slice
from ..structure.size import ONE, ZERO, D, E, I, K, Size, d, r


@dataclass(frozen=True, slots=True)
class Part:
    """One linear of a layer (or norm, or plain tensor), and how much of it belongs to one unit.

    `per` says which unit owns `width` indices of it: a query head (default d), a KV head (d), an
    MLP channel (1), an expert (1). `stride` leads from one KV group (or channel) to the next; by
    default they lie without gaps. Rows (dim 0, and the bias) are a producer's, columns (dim 1) a
    consumer's; `dims` says otherwise for other tensors, `jump` leads from one expert to the next.
    """

    module: str
    per: Literal["query", "kv", "channel", "expert"]
    role: Role = "producer"
    offset: Size = ZERO
    stride: Size | None = None
    width: Size | None = None
    parameters: tuple[str, ...] = ("weight", "bias")
    dims: tuple[int, ...] | None = None
    jump: Size | None = None

    def slices(self, granularity: str) -> tuple[Slice, ...]:
        """What one unit of `granularity` owns."""
        one = self.width or (d if self.per in ("query", "kv") else ONE)
        width = r * one if self.per == "query" and granularity == "kv_group" else one
        stride = self.stride or (r * one if self.per == "query" else one)
        group, jump = None, ZERO
        if granularity == "query_head":
            group, jump, stride = r, stride, one
        elif self.jump is not None:
            group, jump = I, self.jump
        return tuple(
            Slice(self.module, name, dims, self.role, self.offset, stride, width, group, jump)
            for name, dims in self._dims().items()
        )

    def _dims(self) -> dict[str, tuple[int, ...]]:
        if self.role == "consumer":
            return {name: self.dims or (1,) for name in self.parameters if name != "bias"}
        return {
            name: (0,) if name == "bias" or self.dims is None else self.dims
            for name in self.parameters
        }


def attention(*parts: Part) -> tuple[Coupling, ...]:
    """KV groups, and query heads inside them."""
    return (
        Coupling(
            name="attention",
            kind="attention",
            granularity="kv_group",
            letter="K",
            units=K,
            slices=tuple(piece for part in parts for piece in part.slices("kv_group")),
            per_unit=r,
        ),
        Coupling(
            name="query_heads",
            kind="attention",
            granularity="query_head",
            letter="r",
            units=K * r,
            slices=tuple(
                piece
                for part in parts
                if part.per == "query"
                for piece in part.slices("query_head")
            ),
            groups=K,
        ),
    )


def mlp(*parts: Part) -> tuple[Coupling, ...]:
    """MLP channels."""
    slices = tuple(piece for part in parts for piece in part.slices("channel"))
    return (Coupling("mlp", "mlp", "channel", "I", I, slices),)


def experts(*parts: Part) -> tuple[Coupling, ...]:
    """Channels inside experts, and whole experts."""
    channels = tuple(
        piece for part in parts if part.per == "channel" for piece in part.slices("channel")
    )
    whole = tuple(
        Slice(piece.module, piece.parameter, (0,), piece.role, ZERO, ONE, ONE)
        for piece in {piece.parameter: piece for piece in channels}.values()
    )
    router = tuple(
        piece for part in parts if part.per == "expert" for piece in part.slices("expert")
    )
    return (
        Coupling("experts", "mlp", "expert_channel", "I", E * I, channels, groups=E),
        Coupling("whole_experts", "mlp", "expert", "E", E, (*router, *whole)),
    )


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
    follow: tuple[tuple[str, str, Size], ...] = ()
    slopes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    kv_heads: str | int | None = "num_key_value_heads"
    tuples: bool = False
    blocks: Mapping[str, str] = field(default_factory=lambda: _BLOCKS)
    scales_by_width: bool = False
    when: Mapping[str, Any] = field(default_factory=dict)
    widths: tuple[tuple[str, str, Size], ...] = ()
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


CONSUMER: Literal["consumer"] = "consumer"

_QKVO = (
    Part("self_attn.q_proj", "query"),
    Part("self_attn.k_proj", "kv"),
    Part("self_attn.v_proj", "kv"),
    Part("self_attn.o_proj", "query", CONSUMER),
)
_GATED = (
    Part("mlp.gate_proj", "channel"),
    Part("mlp.up_proj", "channel"),
    Part("mlp.down_proj", "channel", CONSUMER),
)
_GROUPS = (("self_attn", "num_key_value_groups", r),)
# [gate; up] rows of every expert, in one tensor of three dimensions
_EXPERTS = (
    Part("mlp.experts", "channel", parameters=("gate_up_proj",), dims=(0, 1), jump=2 * I),
    Part("mlp.experts", "channel", offset=I, parameters=("gate_up_proj",), dims=(0, 1), jump=2 * I),
    Part("mlp.experts", "channel", CONSUMER, parameters=("down_proj",), dims=(0, 2), jump=I),
    Part("mlp.gate", "expert"),
)
_EXPERT_COUNTS = (
    ("mlp.experts", "num_experts", E),
    ("mlp.experts", "intermediate_dim", I),
    ("mlp.experts", "hidden_dim", D),
    ("mlp.gate", "num_experts", E),
    ("mlp.gate", "hidden_dim", D),
)


def _family(name: str, *couplings: tuple[Coupling, ...], **more: Any) -> Family:
    model = more.pop("model", f"{name}ForCausalLM")
    more = {"layers": "model.layers", "follow": _GROUPS, **more}
    joined = tuple(coupling for some in couplings for coupling in some)
    return Family(f"{name}Config", model, couplings=joined, **more)


def _llama_like(name: str, **more: Any) -> Family:
    return _family(name, attention(*_QKVO), mlp(*_GATED), **more)


def _fused(module: str, group: Size, queries: Size) -> tuple[Part, ...]:
    """q, k and v of one KV group side by side, `group` rows in all, `queries` of them q's."""
    return (
        Part(module, "query", stride=group),
        Part(module, "kv", offset=queries, stride=group),
        Part(module, "kv", offset=queries + d, stride=group),
    )


def _stacked(module: str, **more: Any) -> tuple[Part, ...]:
    """All of q, then all of k, then all of v, in one linear."""
    return (
        Part(module, "query", **more),
        Part(module, "kv", offset=K * r * d, **more),
        Part(module, "kv", offset=K * r * d + K * d, **more),
    )


def _norms(width: Size | None = None) -> tuple[Part, ...]:
    """Weights of norms over all of q and all of k: each unit owns its part."""
    return (
        Part("self_attn.q_norm", "query", width=width),
        Part("self_attn.k_norm", "kv", width=width),
    )


_FALCON_MLP = mlp(
    Part("mlp.dense_h_to_4h", "channel"), Part("mlp.dense_4h_to_h", "channel", CONSUMER)
)
_FALCON: dict[str, Any] = {
    "layers": "transformer.h",
    "tuples": True,
    "slopes": (("self_attention", ("alibi", "attention_mask")),),
    "follow": (
        ("self_attention", "num_heads", K * r),
        ("self_attention", "num_kv_heads", K),
    ),
}
_FALCON_OUT = Part("self_attention.dense", "query", CONSUMER)

# By `model_type` of the config; of several layouts, the first whose `when` the config meets.
FAMILIES: dict[str, tuple[Family, ...]] = {
    "llama": (_llama_like("Llama"),),
    "mistral": (_llama_like("Mistral"),),
    "qwen2": (_llama_like("Qwen2"),),
    "qwen3": (_llama_like("Qwen3"),),
    "gemma": (_llama_like("Gemma", scales_by_width=True),),
    "gemma2": (_llama_like("Gemma2", scales_by_width=True),),
    "gemma3_text": (_llama_like("Gemma3Text", model="Gemma3ForCausalLM", scales_by_width=True),),
    "granite": (_llama_like("Granite"),),
    "olmo": (_llama_like("Olmo"),),
    "smollm3": (_llama_like("SmolLM3"),),
    "stablelm": (
        _llama_like(
            "StableLm",
            follow=(
                *_GROUPS,
                ("self_attn", "num_heads", K * r),
                ("self_attn", "num_key_value_heads", K),
                # the width of its heads together: what transformers 4 gives o_proj
                ("self_attn", "hidden_size", K * r * d),
            ),
            when={"qk_layernorm": False},
        ),
    ),
    "cohere": (_family("Cohere", attention(*_QKVO, *_norms(ONE)), mlp(*_GATED)),),
    "olmo2": (_family("Olmo2", attention(*_QKVO, *_norms()), mlp(*_GATED)),),
    "nemotron": (
        _family(
            "Nemotron",
            attention(*_QKVO),
            mlp(Part("mlp.up_proj", "channel"), Part("mlp.down_proj", "channel", CONSUMER)),
            follow=(
                *_GROUPS,
                ("self_attn", "num_heads", K * r),
                ("self_attn", "num_key_value_heads", K),
            ),
        ),
    ),
    "starcoder2": (
        _family(
            "Starcoder2",
            attention(*_QKVO),
            mlp(Part("mlp.c_fc", "channel"), Part("mlp.c_proj", "channel", CONSUMER)),
        ),
    ),
    "phi": (
        _family(
            "Phi",
            attention(*_QKVO[:3], Part("self_attn.dense", "query", CONSUMER)),
            mlp(Part("mlp.fc1", "channel"), Part("mlp.fc2", "channel", CONSUMER)),
        ),
    ),
    "phi3": (
        _family(
            "Phi3",
            attention(_QKVO[3], *_stacked("self_attn.qkv_proj")),
            mlp(
                Part("mlp.gate_up_proj", "channel"),
                Part("mlp.gate_up_proj", "channel", offset=I),
                Part("mlp.down_proj", "channel", CONSUMER),
            ),
            follow=(
                *_GROUPS,
                ("self_attn", "num_key_value_heads", K),
                ("self_attn", "config.num_attention_heads", K * r),
            ),
        ),
    ),
    "gpt_neox": (
        _family(
            "GPTNeoX",
            attention(
                *_fused("attention.query_key_value", 3 * d, d),
                Part("attention.dense", "query", CONSUMER),
            ),
            _FALCON_MLP,
            layers="gpt_neox.layers",
            follow=(),
            kv_heads=None,
        ),
    ),
    "bloom": (
        _family(
            "Bloom",
            attention(
                *_fused("self_attention.query_key_value", 3 * d, d),
                _FALCON_OUT,
            ),
            _FALCON_MLP,
            layers="transformer.h",
            follow=(("self_attention", "num_heads", K * r),),
            slopes=(("self_attention", ("alibi",)),),
            kv_heads=None,
            tuples=True,
        ),
    ),
    "falcon": (
        _family(
            "Falcon",
            attention(*_fused("self_attention.query_key_value", r * d + 2 * d, r * d), _FALCON_OUT),
            _FALCON_MLP,
            kv_heads="num_kv_heads",
            when={"new_decoder_architecture": True},
            **_FALCON,
        ),
        _family(
            "Falcon",
            attention(*_stacked("self_attention.query_key_value"), _FALCON_OUT),
            _FALCON_MLP,
            kv_heads=1,
            when={"multi_query": True},
            **_FALCON,
        ),
        _family(
            "Falcon",
            attention(*_fused("self_attention.query_key_value", 3 * d, d), _FALCON_OUT),
            _FALCON_MLP,
            kv_heads=None,
            **_FALCON,
        ),
    ),
    "mpt": (
        _family(
            "Mpt",
            attention(*_stacked("attn.Wqkv"), Part("attn.out_proj", "query", CONSUMER)),
            mlp(Part("ffn.up_proj", "channel"), Part("ffn.down_proj", "channel", CONSUMER)),
            layers="transformer.blocks",
            follow=(("attn", "n_heads", K * r),),
            slopes=(("attn", ("position_bias",)),),
            kv_heads=None,
            tuples=True,
        ),
    ),
    "opt": (
        _family(
            "OPT",
            attention(_QKVO[1], _QKVO[2], _QKVO[0], Part("self_attn.out_proj", "query", CONSUMER)),
            mlp(Part("fc1", "channel"), Part("fc2", "channel", CONSUMER)),
            layers="model.decoder.layers",
            follow=(("self_attn", "num_heads", K * r),),
            kv_heads=None,
        ),
    ),
    "gpt2": (
        _family(
            "GPT2",
            attention(
                *_stacked("attn.c_attn", dims=(1,)),
                Part("attn.c_proj", "query", CONSUMER, dims=(0,)),
            ),
            mlp(
                Part("mlp.c_fc", "channel", dims=(1,)),
                Part("mlp.c_proj", "channel", CONSUMER, dims=(0,)),
            ),
            model="GPT2LMHeadModel",
            layers="transformer.h",
            follow=(("attn", "num_heads", K * r), ("attn", "split_size", K * r * d)),
            kv_heads=None,
        ),
    ),
    "gptj": (
        _family(
            "GPTJ",
            attention(
                Part("attn.k_proj", "kv"),
                Part("attn.v_proj", "kv"),
                Part("attn.q_proj", "query"),
                Part("attn.out_proj", "query", CONSUMER),
            ),
            mlp(Part("mlp.fc_in", "channel"), Part("mlp.fc_out", "channel", CONSUMER)),
            layers="transformer.h",
            follow=(("attn", "num_attention_heads", K * r),),
            kv_heads=None,
            tuples=True,
        ),
    ),
    "mixtral": (
        _family(
            "Mixtral", attention(*_QKVO), experts(*_EXPERTS), follow=(*_GROUPS, *_EXPERT_COUNTS)
        ),
    ),
    "qwen3_moe": (
        _family(
            "Qwen3Moe",
            attention(*_QKVO),
            mlp(*_GATED),
            experts(*_EXPERTS),
            follow=(*_GROUPS, *_EXPERT_COUNTS),
        ),
    ),
    "olmoe": (
        _family(
            "Olmoe",
            attention(*_QKVO, *_norms()),
            experts(*_EXPERTS),
            follow=(*_GROUPS, *_EXPERT_COUNTS),
        ),
    ),
    "gpt_oss": (
        _family(
            "GptOss",
            attention(*_QKVO, Part("self_attn", "query", width=ONE, parameters=("sinks",))),
            experts(
                *(
                    Part(
                        "mlp.experts",
                        "channel",
                        offset=offset,
                        stride=2 * ONE,
                        parameters=(name,),
                        dims=dims,
                        jump=2 * I,
                    )
                    for name, dims in (("gate_up_proj", (0, 2)), ("gate_up_proj_bias", (0, 1)))
                    for offset in (ZERO, ONE)
                ),
                Part(
                    "mlp.experts",
                    "channel",
                    CONSUMER,
                    parameters=("down_proj",),
                    dims=(0, 1),
                    jump=I,
                ),
                Part("mlp.router", "expert"),
                Part("mlp.experts", "expert", parameters=("down_proj_bias",)),
            ),
            follow=(
                *_GROUPS,
                ("mlp.experts", "num_experts", E),
                ("mlp.experts", "intermediate_size", I),
                ("mlp.experts", "hidden_size", D),
                ("mlp.router", "num_experts", E),
                ("mlp.router", "hidden_dim", D),
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

"""What a GGUF file says of a model beside its tensors: sizes, rotary embedding, tokenizer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import SecateurError
from .gguf_architectures import Architecture
from .gguf_tokens import Vocabulary
from .layers import Sizes

# By this number of layers llama.cpp knows gemma3's 27B, whose scores it divides by the root of
# width by heads.
_ODD_LAYERS = 62
# What transformers calls layers that look back over a window alone.
_LOCAL = "sliding_attention"


def context_length(config: Any) -> int:
    """Tokens that the file may be used with: where llama.cpp computes what the model does.

    Its llama, qwen2 and deci look back without end; a model whose windows slide does not. Those of
    gemma3 are in the file.
    """
    length = int(config.max_position_embeddings)
    if _LOCAL in config.rope_parameters:
        return length
    slides = any(kind == _LOCAL for kind in getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    uses = getattr(config, "use_sliding_window", True)
    if not window or not uses or (getattr(config, "layer_types", None) and not slides):
        return length
    return min(length, int(window))


def rotary(config: Any, head_dim: int) -> tuple[dict[str, Any], Tensor | None]:
    """Base and scale of the rotary embedding, and factors of its frequencies [head_dim / 2].

    Raises:
        SecateurError: it is of a kind that llama.cpp computes otherwise.
    """
    found = dict(config.rope_parameters)
    fields: dict[str, Any] = {}
    if _LOCAL in found:
        local = found[_LOCAL]
        if local.get("rope_type", "default") != "default":
            raise _no_rotary(f"{local['rope_type']} in windows that slide")
        fields["base_swa"] = float(local["rope_theta"])
        found = dict(found["full_attention"])
        if found.get("rope_type") == "llama3":
            raise _no_rotary("llama3 beside windows that slide")
    fields["base"] = float(found["rope_theta"])
    kind = found.get("rope_type", "default")
    if float(found.get("partial_rotary_factor", 1.0)) != 1.0:
        kind = "partial"
    if kind == "linear":
        fields["linear"] = float(found["factor"])
    elif kind == "llama3":
        return fields, _factors(config, head_dim, fields["base"])
    elif kind != "default":
        raise _no_rotary(kind)
    return fields, None


def _no_rotary(kind: str) -> SecateurError:
    return SecateurError(
        f"--to gguf writes no rotary embedding of the kind {kind!r}.\nIt knows: default, linear,"
        " llama3."
    )


def sharper(config: Any, head_dim: int) -> float:
    """How much sharper attention is than with the root that llama.cpp divides scores by."""
    divisor = getattr(config, "query_pre_attn_scalar", None)
    if divisor is None:
        return 1.0
    if config.num_hidden_layers == _ODD_LAYERS:
        return float((config.hidden_size // config.num_attention_heads / divisor) ** 0.5)
    return float((head_dim / divisor) ** 0.5)


def _factors(config: Any, head_dim: int, base: float) -> Tensor:
    """By what each frequency is divided."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    return (plain / scaled.double()).float()


def write_sizes(
    writer: Any,
    config: Any,
    one: Architecture,
    sizes: Sequence[Sizes],
    width: int,
    head_dim: int,
    rope: Mapping[str, Any],
) -> None:
    """Everything that the layers are built by; `sizes` and `width` are those in the file."""
    import gguf

    heads, kv_heads, widths = zip(*((s.heads, s.kv_heads, s.width) for s in sizes), strict=True)
    writer.add_block_count(len(sizes))
    writer.add_context_length(context_length(config))
    writer.add_embedding_length(width)
    writer.add_vocab_size(int(config.vocab_size))
    writer.add_head_count(_shared(heads, one))
    writer.add_head_count_kv(_shared(kv_heads, one))
    writer.add_feed_forward_length(_shared(widths, one))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
    writer.add_rope_freq_base(rope["base"])
    if "linear" in rope:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["linear"])
    if "base_swa" in rope:
        writer.add_sliding_window(int(config.sliding_window))
        writer.add_sliding_window_pattern([kind == _LOCAL for kind in config.layer_types])
        writer.add_rope_freq_base_swa(rope["base_swa"])
    if cap := getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(float(cap))


def _shared(values: Sequence[int], one: Architecture) -> int | list[int]:
    """A number for each layer, where the architecture has one."""
    return list(values) if one.varied else values[0]


def write_vocabulary(writer: Any, found: Vocabulary | None) -> None:
    """Tokens and what is done with them; without, tokens go in and out as numbers."""
    if found is None:
        writer.add_tokenizer_model("none")
        return
    writer.add_tokenizer_model(found.model)
    writer.add_token_list(list(found.tokens))
    writer.add_token_types(list(found.kinds))
    if found.scores:
        writer.add_token_scores(list(found.scores))
        writer.add_add_space_prefix(found.space_before)
    if found.merges:
        writer.add_token_merges(list(found.merges))
    writer.add_tokenizer_pre(found.rule or "default")
    adders = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unknown": writer.add_unk_token_id,
        "padding": writer.add_pad_token_id,
    }
    for name, number in found.special.items():
        adders[name](number)
    writer.add_add_bos_token(found.begins)
    writer.add_add_eos_token(found.ends)
    if found.template is not None:
        writer.add_chat_template(found.template)

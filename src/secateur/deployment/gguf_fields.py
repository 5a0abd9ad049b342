"""What a GGUF file says of a model beside its tensors: sizes, rotary embedding, tokenizer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import SecateurError
from .gguf_architectures import Architecture, Sizes
from .gguf_tokens import Vocabulary

# llama.cpp gives gemma3 a global layer after so many others.
_PERIOD = 6
# By this number it knows the 27B, whose attention it scales otherwise.
_ODD_LAYERS = 62


def context_length(config: Any) -> int:
    """Tokens that the file may be used with: where llama.cpp computes what the model does.

    Its llama and qwen2 look back without end; a model whose windows slide does not.
    """
    length = int(config.max_position_embeddings)
    if config.model_type.endswith("gemma3_text"):
        return length
    slides = any(kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or ())
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
    if "full_attention" in found:
        fields["base_swa"] = float(found["sliding_attention"]["rope_theta"])
        found = dict(found["full_attention"])
    fields["base"] = float(found["rope_theta"])
    kind = found.get("rope_type", "default")
    if float(found.get("partial_rotary_factor", 1.0)) != 1.0:
        kind = "partial"
    if kind == "linear":
        fields["linear"] = float(found["factor"])
    elif kind == "llama3":
        return fields, _factors(config, head_dim, fields["base"])
    elif kind != "default":
        raise SecateurError(
            f"--to gguf writes no rotary embedding of the kind {kind!r}.\nIt knows: default,"
            " linear, llama3."
        )
    return fields, None


def sharper(config: Any, head_dim: int) -> float:
    """How much sharper attention is than with scores divided by the root of a head's width.

    Raises:
        SecateurError: llama.cpp divides by something of its own in a model of so many layers.
    """
    divisor = getattr(config, "query_pre_attn_scalar", None)
    if divisor is None:
        return 1.0
    if config.num_hidden_layers == _ODD_LAYERS:
        own = config.hidden_size / config.num_attention_heads
        if own != divisor:
            raise SecateurError(
                f"llama.cpp divides the scores of a gemma3 of {_ODD_LAYERS} layers by the root of"
                f" {own:g} (width by heads), and this one by that of {divisor:g}.\nPrune with"
                " --attention-ratio 0, which leaves the heads."
            )
        return 1.0
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
    head_dim: int,
    rope: Mapping[str, Any],
) -> None:
    """Everything that the layers are built by; `sizes` are those in the file.

    Raises:
        SecateurError: windows slide in other layers than llama.cpp's.
    """
    import gguf

    heads, kv_heads, widths = zip(*((s.heads, s.kv_heads, s.width) for s in sizes), strict=True)
    writer.add_block_count(len(sizes))
    writer.add_context_length(context_length(config))
    writer.add_embedding_length(int(config.hidden_size))
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
        _write_windows(writer, config, rope)


def _write_windows(writer: Any, config: Any, rope: Mapping[str, Any]) -> None:
    slides = [kind == "sliding_attention" for kind in config.layer_types]
    if slides != [(layer + 1) % _PERIOD != 0 for layer in range(len(slides))]:
        raise SecateurError(
            "llama.cpp's gemma3 looks back without end in every sixth layer, and this model in"
            " others: whole layers are gone.\nPrune with --granularity kv_group,channel, which"
            " leaves every layer."
        )
    writer.add_sliding_window(int(config.sliding_window))
    writer.add_rope_freq_base_swa(rope["base_swa"])


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

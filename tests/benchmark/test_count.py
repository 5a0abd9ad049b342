"""What is counted by formula is what a tracer counts, in every make of model."""

from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from conftest import EVERY_FAMILY_SLOWLY, tiny_model
from secateur.benchmark import counts_of
from secateur.benchmark.count import experts_of
from secateur.budgets import Cache, latent_width, windows_of
from secateur.models import OpenModel, open_model
from secateur.pipeline.benchmarking import cache_in, counts_in
from secateur.structure import Plan

CONTEXTS = (5, 20)  # below and above the windows of those that have some


@cache
def latent() -> tuple[Any, OpenModel]:
    """A tiny model with latent attention and experts, one of them shared; the same opened."""
    config = transformers.DeepseekV3Config(
        vocab_size=128, hidden_size=48, intermediate_size=56, moe_intermediate_size=20,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, n_shared_experts=1,
        n_routed_experts=8, n_group=2, topk_group=1, num_experts_per_tok=2, q_lora_rank=24,
        first_k_dense_replace=1, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=12,
        v_head_dim=10, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    return model, open_model(model)


def filled(model: Any, tokens: int) -> DynamicCache:
    held = DynamicCache(config=model.config)
    ids = torch.randint(3, 100, (1, tokens))
    with torch.inference_mode():
        model(input_ids=ids, past_key_values=held, use_cache=True)
    return held


def traced(model: Any, ids: torch.Tensor, **given: Any) -> int:
    """Multiply-accumulates of the operations that run.

    Products of positions and frequencies, which make rotary tables, are not the model's.
    """
    model.config._attn_implementation = "eager"
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, **given)
    found = counter.get_flop_counts().items()
    rotary = sum(sum(own.values()) for name, own in found if "rotary" in name.split(".")[-1])
    return (counter.get_total_flops() - rotary) // 2


def token(model: Any, context: int) -> int:
    """Those of a token that sees `context` tokens, itself among them."""
    held = filled(model, context - 1)
    return traced(model, torch.tensor([[5]]), past_key_values=held, use_cache=True)


@pytest.mark.parametrize("variant", EVERY_FAMILY_SLOWLY)
def test_a_token_costs_what_is_traced(variant: str) -> None:
    model = tiny_model(variant, attn_implementation="eager")
    counts = counts_in(open_model(model))
    for context in CONTEXTS:
        assert counts.token(context) == token(model, context), context


@pytest.mark.parametrize("variant", ["qwen3_moe", "gemma3", "llama-tied"])
def test_so_does_one_of_experts_of_windows_and_of_one_tied_matrix(variant: str) -> None:
    test_a_token_costs_what_is_traced(variant)


def test_so_does_one_of_latent_attention_whose_cache_is_that_of_transformers() -> None:
    model, opened = latent()
    counts = counts_in(opened)
    for context in CONTEXTS:
        assert counts.token(context) == token(model, context), context
    assert latent_width(opened.config) == 24
    layers = filled(model, 7).layers
    size = sum(one.numel() * 4 for layer in layers for one in (layer.keys, layer.values))
    own = cache_in(opened, torch.float32)
    whole = Plan({}, "", "")
    told = Cache(**{**vars_of(own), "context": 7}).bytes(whole, opened.structures)
    assert told == size
    # heads that go take nothing along: the latent is that of all
    axis = next(axis for axis in opened.structures.axes if axis.granularity == "kv_group")
    fewer = Plan({axis.name: (0,)}, "", "")
    assert own.bytes(fewer, opened.structures) == own.bytes(whole, opened.structures)


def vars_of(own: Cache) -> dict[str, Any]:
    return {name: getattr(own, name) for name in Cache.__dataclass_fields__}


def test_a_prompt_is_its_tokens_with_all_pairs_and_one_row_of_logits() -> None:
    plain = tiny_model("llama-gqa")
    for model, opened in ((plain, open_model(plain)), latent()):
        ids = torch.randint(3, 100, (1, 12))
        counts = counts_in(opened)
        if not hasattr(model.config, "n_routed_experts"):
            assert counts.prompt(12) == traced(model, ids, logits_to_keep=1)
        dense = counts.prompt(12) - 12 * counts.prompt(1)
        heads = sum(one.key + one.value for one in counts.attention)
        assert dense == 12 * 11 * heads - 11 * counts.head


def test_no_more_experts_count_than_there_are() -> None:
    model = tiny_model("mixtral")
    opened = open_model(model)

    def linears(routed: int) -> int:
        given: dict[str, Any] = {"key_width": None, "latent": False}
        windows = windows_of(opened.config)
        return counts_of(model, opened.structures, routed=routed, windows=windows, **given).linears

    each = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n) // 4
    assert linears(3) - linears(2) == each
    assert linears(9) == linears(4)


def test_a_convolution_has_no_experts() -> None:
    shapes = {"conv.weight": (64, 1, 4), "w2.weight": (64, 96), "experts.down": (8, 64, 32)}
    assert experts_of(shapes) == {8}

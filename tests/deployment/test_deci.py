"""What is written for DeciLM: its tensors are those that the config asks for, and it computes it.

No engine that knows it is small enough for these tests; the arithmetic is written down here.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import linear
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

import secateur
from conftest import logits
from secateur.deployment.configuration_deci import SecateurDeciConfig

TOKENS = torch.randint(3, 128, (2, 12), generator=torch.Generator().manual_seed(0))


def deci_logits(folder: Path) -> torch.Tensor:
    """As vLLM's nemotron_nas.py builds and runs it, out of a Llama's parts."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    held = load_file(folder / "model.safetensors")
    rotary = LlamaRotaryEmbedding(SecateurDeciConfig(**_plain(config)))
    hidden = held["model.embed_tokens.weight"][TOKENS]
    places = torch.arange(TOKENS.shape[1])[None]
    mask = torch.full((TOKENS.shape[1],) * 2, float("-inf")).triu(1)[None, None]
    for layer, block in enumerate(config.block_configs):
        if not block.attention.no_op:
            groups = config.num_attention_heads // block.attention.n_heads_in_group
            own = SecateurDeciConfig(**{**_plain(config), "num_key_value_heads": groups})
            own._attn_implementation = "eager"
            part = _filled(LlamaAttention(own, layer), held, f"model.layers.{layer}.self_attn.")
            norm = _norm(config, held, f"model.layers.{layer}.input_layernorm.weight")
            turned = rotary(hidden, places)
            hidden = hidden + part(norm(hidden), position_embeddings=turned, attention_mask=mask)[0]
        if not block.ffn.no_op:
            own = SecateurDeciConfig(
                **{**_plain(config), "intermediate_size": block.ffn.intermediate_size}
            )
            part = _filled(LlamaMLP(own), held, f"model.layers.{layer}.mlp.")
            norm = _norm(config, held, f"model.layers.{layer}.post_attention_layernorm.weight")
            hidden = hidden + part(norm(hidden))
    hidden = _norm(config, held, "model.norm.weight")(hidden)
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return linear(hidden, held[head])


def _plain(config: Any) -> dict[str, Any]:
    return {k: v for k, v in config.to_dict().items() if k not in ("model_type", "block_configs")}


def _filled(module: Any, held: dict[str, torch.Tensor], prefix: str) -> Any:
    """Every parameter of the module, and no other tensor of its part."""
    own = {n.removeprefix(prefix): t for n, t in held.items() if n.startswith(prefix)}
    module.load_state_dict(own, strict=True)
    return module


def _norm(config: Any, held: dict[str, torch.Tensor], name: str) -> Any:
    norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
    norm.weight.data = held[name]
    return norm


@pytest.mark.parametrize(
    "variant", ["llama-gqa", "llama-tied", "llama-biased", "qwen2-gqa", "phi3"]
)
@pytest.mark.parametrize("repair", ["none", "refit"])
def test_the_checkpoint_computes_what_the_folder_does(
    variant: str, repair: str, tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    whole = {"sliding_window": None} if variant == "phi3" else {}
    folder = tmp_path / "small"
    secateur.prune(
        tiny_folder(variant, **whole), out=folder, method="flap", repair=repair, ratio=0.3,
        granularity="channel", align=1, samples=6, length=16, calibration=str(text_file),
        evaluate="none",
    )  # fmt: skip
    done = secateur.export_model(folder, to="deci", out=tmp_path / "out")
    with torch.no_grad():
        found = deci_logits(done.out)
    assert torch.allclose(found, logits(secateur.load(folder), TOKENS), atol=1e-5)
    config = json.loads((done.out / "config.json").read_text())
    assert len({block["ffn"]["intermediate_size"] for block in config["block_configs"]}) > 1


def test_blocks_may_be_gone(pruned: Callable[..., Path], tmp_path: Path) -> None:
    folder = pruned("llama-gqa", method="flap", granularity="mlp_block,channel", repair="refit")
    plan = secateur.read_plan(folder / "plan.json")
    assert any(not kept for kept in plan.keep.values())
    done = secateur.export_model(folder, to="deci", out=tmp_path / "out")
    config = json.loads((done.out / "config.json").read_text())
    norms = {name for name in load_file(done.out / "model.safetensors") if "norm" in name}
    there = {
        f"model.layers.{layer}.{norm}.weight"
        for layer, block in enumerate(config["block_configs"])
        for part, norm in (("attention", "input_layernorm"), ("ffn", "post_attention_layernorm"))
        if not block[part]["no_op"]
    }
    assert norms == there | {"model.norm.weight"}
    with torch.no_grad():
        found = deci_logits(done.out)
    assert torch.allclose(found, logits(secateur.load(folder), TOKENS), atol=1e-5)


def test_a_stream_that_was_cut_has_its_width(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "small"
    secateur.prune(
        tiny_folder("llama-gqa"), out=folder, method="magnitude", repair="none", ratio=0.3,
        granularity="hidden,channel", align=2, calibration=str(text_file), evaluate="none",
        samples=6, length=16,
    )  # fmt: skip
    done = secateur.export_model(folder, to="deci", out=tmp_path / "out")
    assert json.loads((done.out / "config.json").read_text())["hidden_size"] < 48
    with torch.no_grad():
        found = deci_logits(done.out)
    assert torch.allclose(found, logits(secateur.load(folder), TOKENS), atol=1e-5)


def test_what_it_does_not_hold_is_named(
    pruned: Callable[..., Path], tmp_path: Path, assert_refused: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    says = ["all query heads of a layer or none: layer", "--granularity channel"]
    folder = pruned(
        "llama-gqa", method="magnitude", search="AL-AM", granularity="kv_group", ratio=0.1
    )
    assert_refused("export", folder, "--to", "deci", "--out", out, says=says)
    assert not out.exists()


@pytest.mark.parametrize(
    ("variant", "says"),
    [("gpt2", "gpt2 has others"), ("mistral-gqa", "no windows that slide")],
)
def test_families_that_it_does_not_compute(
    variant: str,
    says: str,
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    assert_refused: Callable[..., str],
) -> None:
    asked = ("export", tiny_folder(variant), "--to", "deci", "--out", tmp_path / "out")
    assert_refused(*asked, says=[says, "vllm serve"])

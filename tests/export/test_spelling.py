"""What is written of a config is read alike by old and new transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import secateur
from conftest import ALL, tiny_model, tiny_tokenizer
from secateur.models.spelling import both_spellings

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0}
ROPES: list[tuple[str, dict[str, Any]]] = [
    *((variant, {}) for variant in ALL),
    ("llama-gqa", {"rope_parameters": LLAMA3}),
    ("qwen2-gqa", {"rope_parameters": YARN | {"original_max_position_embeddings": 16}}),
    ("gemma3", {"rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 2e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
    }}),
    ("gpt_neox", {"rope_parameters": {
        "rope_type": "dynamic", "rope_theta": 5000.0, "factor": 2.0, "partial_rotary_factor": 0.4,
    }}),
]  # fmt: skip


@pytest.mark.parametrize(("variant", "changes"), ROPES)
@pytest.mark.parametrize("drop", ["", "new"])
def test_both_spellings_say_the_same(variant: str, changes: dict[str, Any], drop: str) -> None:
    """With either of them alone, too: transformers still reads the old one."""
    if drop and variant == "gpt_oss":
        pytest.skip("the new reader scales where it finds no word of it, the old one does not")
    config = tiny_model(variant, **changes).config
    config.dtype = torch.bfloat16
    raw = config.to_dict()
    both = both_spellings(raw, config)
    assert raw.items() <= both.items()
    assert both["torch_dtype"] == "bfloat16"
    if drop:
        both = {k: v for k, v in both.items() if k not in ("rope_parameters", "dtype")}
    again = type(config).from_dict(both)
    assert again.dtype == torch.bfloat16
    assert getattr(again, "rope_parameters", None) == getattr(config, "rope_parameters", None)


def test_a_live_module_is_written_in_both(tmp_path: Path) -> None:
    model = tiny_model("llama-gqa", rope_parameters=LLAMA3).to(torch.bfloat16)
    out = tmp_path / "out"
    secateur.prune(
        model, tokenizer=tiny_tokenizer(), method="magnitude", ratio=0, evaluate="none", out=out
    )
    written = json.loads((out / "config.json").read_text())
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 500000.0
    assert written["rope_parameters"] == LLAMA3
    old = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    assert written["rope_scaling"] == old
    assert written["dtype"] == written["torch_dtype"] == "bfloat16"
    assert written["tie_word_embeddings"] is False


def test_a_baichuan_is_written_in_both(baichuan: Any, tmp_path: Path) -> None:
    _, packed = baichuan()
    secateur.pipeline.convert(packed, out=tmp_path / "llama")
    written = json.loads((tmp_path / "llama" / "config.json").read_text())
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 10000.0
    assert written["dtype"] == written["torch_dtype"]
    tokenizer = json.loads((tmp_path / "llama" / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_module_in_another_dtype_than_its_config_says_is_written_as_it_is(
    tmp_path: Path,
) -> None:
    model = tiny_model()
    model.config.dtype = torch.bfloat16
    secateur.prune(model, method="magnitude", ratio=0, evaluate="none", out=tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.dtype == torch.float32
    assert model.config.dtype == torch.bfloat16  # the caller's own is left alone

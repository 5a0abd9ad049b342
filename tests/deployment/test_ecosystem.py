"""What people do with a checkpoint, done with ours: as transformers' own pages show it.

Loading, caches, padding and PEFT: tests/export.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import secateur
from conftest import logits

TOKENS = torch.randint(3, 128, (2, 12), generator=torch.Generator().manual_seed(0))
GREEDY: dict[str, Any] = {
    "max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0,
    "attention_mask": torch.ones(1, 12, dtype=torch.long),
}  # fmt: skip


@pytest.fixture
def small(pruned: Callable[..., Path]) -> Path:
    return pruned("llama-gqa", method="flap")


def test_a_text_generation_pipeline(small: Path) -> None:
    run = pipeline("text-generation", model=str(small))
    (found,) = run("hello", max_new_tokens=5, do_sample=False)
    tokenizer, model = AutoTokenizer.from_pretrained(small), secateur.load(small)
    ids = tokenizer("hello", return_tensors="pt")
    wanted = model.generate(**ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    new = wanted[0, ids["input_ids"].shape[1] :]
    assert found["generated_text"].endswith(tokenizer.decode(new, skip_special_tokens=True))


def test_the_pruned_model_drafts_for_the_dense_one(
    small: Path, tiny_folder: Callable[..., Path]
) -> None:
    dense = AutoModelForCausalLM.from_pretrained(tiny_folder("llama-gqa"))
    plain = dense.generate(TOKENS[:1], **GREEDY)
    drafted = dense.generate(TOKENS[:1], **GREEDY, assistant_model=secateur.load(small))
    assert torch.equal(drafted, plain)


def test_torch_export_makes_a_program_of_it(small: Path) -> None:
    model = secateur.load(small).eval()
    program = torch.export.export(model, (TOKENS,), {"use_cache": False})
    found = program.module()(TOKENS, use_cache=False).logits
    assert torch.equal(found, logits(model, TOKENS))


@pytest.mark.slow
def test_torch_compile_makes_one_graph_of_it(small: Path) -> None:
    model = secateur.load(small).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        found = compiled(TOKENS, use_cache=False).logits
    assert torch.allclose(found, logits(model, TOKENS), atol=1e-6)


def test_layers_may_lie_on_the_disk(small: Path, tmp_path: Path) -> None:
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu"}
    places |= {"lm_head": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    places |= {"model.layers.2": "disk"}
    model = AutoModelForCausalLM.from_pretrained(
        small, device_map=places, offload_folder=tmp_path / "disk"
    )
    assert torch.allclose(logits(model, TOKENS), logits(secateur.load(small), TOKENS), atol=1e-6)

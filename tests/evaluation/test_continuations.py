"""What is written layer by layer is what transformers writes with all weights in memory."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import tiny_model
from secateur.evaluation import continuations, end_tokens
from secateur.models import open_model

PROMPTS = [[9, 8, 7, 30, 31], [40], [50, 51, 52]]


def whole(model: Any, prompt: list[int], **options: Any) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.no_grad():
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **options
        )
    return found[0, len(prompt) :].tolist()


@pytest.mark.parametrize("variant", ["llama-gqa", "gemma3", "bloom", "gpt2"])
def test_streamed_is_whole(variant: str) -> None:
    model = tiny_model(variant)
    source = open_model(model).streamed(device="cpu")
    found = continuations(source, PROMPTS, new_tokens=9, context=64)
    assert found == [whole(model, p, max_new_tokens=9, eos_token_id=None) for p in PROMPTS]


def test_it_ends_where_the_model_ends_it_or_its_context() -> None:
    model = tiny_model()
    source = open_model(model).streamed(device="cpu")
    free = continuations(source, PROMPTS, new_tokens=6, context=64)
    end = free[0][3]
    for one, text in zip(
        continuations(source, PROMPTS, new_tokens=6, context=64, ends={end}), free, strict=True
    ):
        assert one == (text[: text.index(end)] if end in text else text)
    short = continuations(source, PROMPTS, new_tokens=60, context=8)
    assert [len(one) for one in short] == [3, 7, 5]


def test_a_text_ends_where_the_tokenizer_or_the_config_says() -> None:
    by = SimpleNamespace
    tokenizer = by(eos_token_id=2)
    for own, found in ((None, {2}), (7, {2, 7}), ([7, 9], {2, 7, 9})):
        assert end_tokens(by(eos_token_id=own), tokenizer) == found
    assert end_tokens(by(), by(eos_token_id=None)) == set()

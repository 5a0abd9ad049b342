"""What is written layer by layer is what transformers writes with all weights in memory."""

from dataclasses import replace
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


@pytest.mark.parametrize(("limit", "times"), [(2**30, 1), (0, 3)])
def test_weights_that_stay_are_read_once(limit: int, times: int) -> None:
    opened = open_model(tiny_model())
    read: list[str] = []

    def noted(name: str) -> torch.Tensor:
        read.append(name)
        return opened.weights.tensor(name)

    source = replace(opened, weights=replace(opened.weights, read=noted)).streamed(device="cpu")
    continuations(source, PROMPTS, new_tokens=1, context=64)  # a fingerprint reads them, too
    read.clear()
    with source.supply.staying(limit):
        continuations(source, PROMPTS, new_tokens=3, context=64)
    counts = {name: read.count(name) for name in read if ".layers." in name}
    assert set(counts.values()) == {times}
    read.clear()
    continuations(source, PROMPTS, new_tokens=2, context=64)
    assert {read.count(name) for name in counts} == {2}  # nothing stayed behind

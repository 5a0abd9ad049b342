"""From hidden states to logits: the modules alone give what the whole model does."""

import pytest
import torch

from conftest import EVERY_FAMILY, tiny_model
from secateur.models import open_model


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_the_head_gives_the_logits_of_the_whole_model(name: str) -> None:
    source = open_model(tiny_model(name)).streamed(device="cpu")
    width = source.model.get_input_embeddings().weight.shape[1]
    with source.front() as front:
        shape = front(torch.arange(6)[None])[0].shape
    generator = torch.Generator().manual_seed(0)
    first, then = (torch.randn(shape, generator=generator) for _ in range(2))
    assert width in shape
    with source.back() as head:
        assert torch.equal(head(first), source._logits(first))
        assert torch.equal(head(then), source._logits(then))


def test_most_models_need_their_norm_and_head_alone_and_softcapped_ones_the_whole() -> None:
    def calls(name: str) -> int:
        source = open_model(tiny_model(name)).streamed(device="cpu")
        hidden = torch.randn(1, 6, 48, generator=torch.Generator().manual_seed(0))
        with source.back() as head:
            head(hidden)
            return len(head._chain)  # type: ignore[attr-defined]

    assert [calls(name) for name in ("llama-gqa", "gpt2", "llama-tied")] == [2, 2, 2]
    assert calls("granite") == 0  # its logits are divided by a number

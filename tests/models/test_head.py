"""From hidden states to logits: the modules alone give what the whole model does."""

import pytest
import torch

from conftest import EVERY_FAMILY, tiny_model
from secateur.models import open_model
from secateur.models.head import Head


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


def test_logits_that_are_changed_where_they_lie_are_not_those_of_the_head_alone() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Identity()
            self.norm, self.head = torch.nn.LayerNorm(8), torch.nn.Linear(8, 5)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(hidden)).mul_(2)  # in the head's own memory

    model = Model().requires_grad_(False)
    head = Head(model, [model.layer], model, torch.device("cpu"))
    for seed in range(2):
        hidden = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(head(hidden), model(hidden))
    assert head._chain == []

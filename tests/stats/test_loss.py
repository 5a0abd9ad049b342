"""The loss on the next token against torch's own in fp64."""

import pytest
import torch

from secateur.errors import SecateurError
from secateur.stats import blocks, loss
from secateur.stats.finite import Finite
from secateur.stats.loss import each_loss, hidden_gradient, loss_and_gradient, token_losses

VOCABULARY, TOKENS = 37, 150


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_VALUES", 5 * VOCABULARY)
    monkeypatch.setattr("secateur.stats.loss._AT_ONCE", 70 * VOCABULARY)


def _drawn() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(TOKENS, VOCABULARY, generator=generator)
    return logits, torch.randint(VOCABULARY, (TOKENS,), generator=generator)


@pytest.mark.usefixtures("small_blocks")
def test_losses_and_their_gradient_are_those_of_autograd_in_fp64() -> None:
    logits, targets = _drawn()
    exact = logits.double().requires_grad_()
    losses = torch.nn.functional.cross_entropy(exact, targets, reduction="none")
    losses.sum().backward()
    summed, gradient = loss_and_gradient(logits, targets)
    torch.testing.assert_close(token_losses(logits, targets).double(), losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(summed.double(), losses.sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), exact.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("small_blocks")
def test_through_a_head_they_are_those_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(1)
    head = torch.randn(VOCABULARY, 8, generator=generator)
    hidden = torch.randn(TOKENS, 8, generator=generator)
    _, targets = _drawn()
    exact = hidden.double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(exact @ head.double().T, targets, reduction="sum")
    loss.backward()

    def logits_of(states: torch.Tensor) -> torch.Tensor:
        return states @ head.T

    torch.testing.assert_close(
        each_loss(logits_of, hidden, targets).double().sum(), loss, rtol=1e-6, atol=0
    )
    found = hidden_gradient(logits_of, hidden, targets, Finite())
    torch.testing.assert_close(found.double(), exact.grad, rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_not_finite_is_no_gradient() -> None:
    hidden, targets = torch.full((3, 8), torch.nan), torch.zeros(3, dtype=torch.long)
    finite = Finite()
    hidden_gradient(
        lambda states: states.float() @ torch.ones(8, 5), hidden.half(), targets, finite
    )
    with pytest.raises(SecateurError, match=r"the output of the head.* float16"):
        finite.check()


def test_on_a_gpu_thousands_of_tokens_go_at_once_as_memory_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda, vocabulary = torch.device("cuda"), 128_256
    for free_gib, tokens in ((60, 2000), (8, 2000), (2, 500)):
        monkeypatch.setattr(loss, "free_bytes", lambda _, gib=free_gib: gib * 2**30)
        at_once = loss._at_once(cuda)
        assert at_once // vocabulary >= tokens
        assert 32 * at_once <= free_gib * 2**30
        assert at_once // vocabulary < 2200
    assert loss._at_once(torch.device("cpu")) == 2**24

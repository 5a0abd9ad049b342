"""The loss on the next token against torch's own in fp64."""

import pytest
import torch

from secateur.errors import SecateurError
from secateur.stats import blocks, loss
from secateur.stats.finite import Finite
from secateur.stats.loss import (
    each_loss,
    hidden_gradient,
    in_pieces,
    loss_and_gradient,
    token_losses,
)
from secateur.stats.objective import drawn, entropy_and_gradient, of_labels

VOCABULARY, TOKENS = 37, 150


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_VALUES", 5 * VOCABULARY)
    monkeypatch.setattr("secateur.stats.loss._AT_ONCE", 70 * VOCABULARY)
    monkeypatch.setattr("secateur.stats.loss._LEAST_ON_CPU", 64)


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
    found = hidden_gradient(logits_of, hidden, of_labels(targets), Finite())
    torch.testing.assert_close(found.double(), exact.grad, rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_not_finite_is_no_gradient() -> None:
    hidden, targets = torch.full((3, 8), torch.nan), torch.zeros(3, dtype=torch.long)
    finite = Finite()
    hidden_gradient(
        lambda states: states.float() @ torch.ones(8, 5), hidden.half(), of_labels(targets), finite
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


def test_of_a_large_vocabulary_a_cpu_takes_more_tokens_at_once_than_memory_alone_says() -> None:
    """And no more than that: what is there at once stays bounded."""
    sizes = {
        vocabulary: [
            len(piece[0])
            for _, piece, _ in in_pieces(
                lambda hidden, width=vocabulary: hidden.expand(-1, -1, width), torch.zeros(400, 1)
            )
        ]
        for vocabulary in (2**16, 2**20)
    }
    assert sizes == {2**16: [64, 256, 80], 2**20: [64, 128, 128, 80]}


@pytest.mark.usefixtures("small_blocks")
def test_labels_are_drawn_as_often_as_they_are_probable() -> None:
    logits = torch.randn(3, 11, generator=torch.Generator().manual_seed(2)) * 2
    places = torch.arange(0.5, 4000).double() / 4000
    for row in logits:
        labels = drawn(row.expand(len(places), -1), places)
        shares = labels.bincount(minlength=11) / len(places)
        torch.testing.assert_close(shares, row.softmax(dim=0), rtol=0, atol=1 / 2000)


@pytest.mark.usefixtures("small_blocks")
def test_entropy_and_its_gradient_are_those_of_autograd() -> None:
    logits, _ = _drawn()
    logits[0, :3] = -torch.inf
    exact = logits.double().requires_grad_()
    logs = torch.log_softmax(exact[1:], dim=-1)
    (-(logs.exp() * logs).sum()).backward()
    entropy, gradient = entropy_and_gradient(logits[1:])
    torch.testing.assert_close(
        entropy.double(), -(logs.exp() * logs).sum().detach(), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(gradient.double(), exact.grad[1:], rtol=1e-4, atol=1e-6)
    assert entropy_and_gradient(logits[:1])[1].isfinite().all()

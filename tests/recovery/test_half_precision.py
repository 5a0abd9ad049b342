"""Training in bf16 on a CPU: every family, what is trained in fp32, near what fp32 comes to."""

from pathlib import Path

import pytest
import torch
from short_training import trainer

from conftest import ALL, Cut
from secateur.progress import telling

HALF = torch.bfloat16


@pytest.mark.parametrize("variant", ALL)
def test_its_loss_and_its_gradient_are_those_of_fp32_but_for_rounding(variant: str) -> None:
    """Where experts are chosen a token can go to another one: such gradients are less alike."""
    losses, gradients = [], []
    for autocast in (None, HALF):
        made, plain = trainer(variant=variant, autocast=autocast)
        losses.append(made.loss(torch.arange(19, 23)))
        made.step(0)
        assert {parameter.dtype for parameter in made.parameters} == {torch.float32}
        given = [p.grad.flatten() for p in plain.parameters.values() if p.grad is not None]
        gradients.append(torch.cat(given))
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.9


def test_steps_smaller_than_bf16_can_tell_add_up() -> None:
    """As what is trained is kept in fp32: a weight of 1 in bf16 has its next one 0.008 away."""
    made, plain = trainer(autocast=HALF, steps=30, rate=1e-3, warmup=0, patience=99)
    before = {name: parameter.detach().clone() for name, parameter in plain.parameters.items()}
    outcome = made.run()
    for name, parameter in plain.parameters.items():
        moved = (parameter.detach() - before[name]).abs().max() / before[name].abs().max()
        assert 0 < moved < 2**-8
    assert min(check.held_out for check in outcome.checks) < outcome.checks[0].held_out


def test_one_that_was_cut_short_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole, plain = trainer(autocast=HALF)
    whole.run()
    store = tmp_path / "state"
    with telling(Cut(7)), pytest.raises(KeyboardInterrupt):
        trainer(autocast=HALF, store=store)[0].run()
    again, other = trainer(autocast=HALF, store=store)
    again.run()
    assert all(torch.equal(one, other.tensors()[name]) for name, one in plain.tensors().items())

"""Gradients by gates, streamed, against autograd on the whole model."""

from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import EVERY_FAMILY_SLOWLY, tiny_model
from secateur.checkpoint import Kept
from secateur.errors import SecateurError
from secateur.evaluation import last_states
from secateur.models import open_model
from secateur.stats import Walk, gated_divergence
from secateur.structure import Axis

Gates = dict[Axis, Tensor]


def some_gates(axes: Any, seed: int = 0) -> Gates:
    generator = torch.Generator().manual_seed(seed)
    gates = {axis: 1.5 * torch.rand(axis.units, generator=generator) for axis in axes}
    for gate in gates.values():
        gate[0] = 0.0
    return gates


def streamed(model: Any, tokens: Tensor, gates: Gates, batch: int = 4) -> tuple[float, Gates]:
    walk = Walk(open_model(model).streamed(device="cpu"), tokens, batch=batch)
    return gated_divergence(walk, last_states(walk, Kept(), "dense"), gates)


def by_weights(model: Any, tokens: Tensor, gates: Gates) -> tuple[float, Gates]:
    """The consumers' weights times the gates, in the whole model, and autograd."""
    leaves = {axis: gate.clone().requires_grad_() for axis, gate in gates.items()}
    changed: dict[str, Tensor] = {}
    known = dict(model.named_parameters())
    for axis, gate in leaves.items():
        for member in axis.consumers:
            whole = changed.get(member.tensor, known[member.tensor].detach())
            order = tuple(range(len(member.dims)))
            front = whole.movedim(member.dims, order)
            indices = member.blocks.indices(torch.arange(axis.units))
            rows = front.flatten(0, len(member.dims) - 1)
            factor = torch.ones(len(rows)).index_copy(
                0, indices.flatten(), gate.repeat_interleave(indices.shape[1])
            )
            rows = rows * factor.view(-1, *[1] * (rows.dim() - 1))
            changed[member.tensor] = rows.view(front.shape).movedim(order, member.dims)
    with torch.no_grad():
        dense = model(tokens, use_cache=False).logits.log_softmax(-1)
    call = {"input_ids": tokens, "use_cache": False}
    theirs = torch.func.functional_call(model, changed, kwargs=call).logits.log_softmax(-1)
    divergence = (dense.exp() * (dense - theirs)).sum(-1).mean()
    found = torch.autograd.grad(divergence, list(leaves.values()))
    return divergence.item(), dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("variant", EVERY_FAMILY_SLOWLY)
def test_divergence_and_gradient_are_those_of_the_whole_model(variant: str, tokens: Tensor) -> None:
    model = tiny_model(variant)
    gates = some_gates(open_model(model).structure.axes)
    value, found = streamed(model, tokens, gates)
    expected, by_autograd = by_weights(model, tokens, gates)
    assert value == pytest.approx(expected, rel=1e-3)
    assert value > 1e-3
    for axis in gates:
        scale = float(by_autograd[axis].abs().max())
        assert torch.allclose(found[axis], by_autograd[axis], rtol=1e-2, atol=1e-3 * scale)

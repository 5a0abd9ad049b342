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
from secateur.pipeline.candidates import divergences
from secateur.pipeline.gated import gated_divergence
from secateur.stats import Walk, collect
from secateur.structure import Axis
from secateur.surgery.one_shot import FITTED_BY
from secateur.surgery.refit import DAMPING

Gates = dict[Axis, Tensor]


def some_gates(axes: Any, seed: int = 0) -> Gates:
    generator = torch.Generator().manual_seed(seed)
    gates = {axis: 1.5 * torch.rand(axis.units, generator=generator) for axis in axes}
    for gate in gates.values():
        gate[0] = 0.0
    return gates


def streamed(
    model: Any, tokens: Tensor, gates: Gates, batch: int = 4, *, fits: bool = False
) -> tuple[float, Gates]:
    walk = Walk(open_model(model).streamed(device="cpu"), tokens, batch=batch)
    seen = collect(walk, list(gates), FITTED_BY) if fits else None
    (dense,) = last_states([walk], [Kept()], "dense")
    return gated_divergence(walk, dense, gates, seen)


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
    return by_autograd(model, tokens, changed, leaves)


def by_autograd(
    model: Any, tokens: Tensor, changed: dict[str, Tensor], leaves: Gates
) -> tuple[float, Gates]:
    """The divergence with parameters that depend on gates, and its gradient."""
    with torch.no_grad():
        dense = model(tokens, use_cache=False).logits.log_softmax(-1)
    call = {"input_ids": tokens, "use_cache": False}
    others = torch.func.functional_call(model, changed, kwargs=call).logits.log_softmax(-1)
    divergence = (dense.exp() * (dense - others)).sum(-1).mean()
    found = torch.autograd.grad(divergence, list(leaves.values()))
    return divergence.item(), dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("variant", EVERY_FAMILY_SLOWLY)
def test_divergence_and_gradient_are_those_of_the_whole_model(variant: str, tokens: Tensor) -> None:
    model = tiny_model(variant)
    gates = some_gates(open_model(model).structure.axes)
    value, found = streamed(model, tokens, gates)
    expected, theirs = by_weights(model, tokens, gates)
    assert value == pytest.approx(expected, rel=1e-3)
    assert value > 1e-3
    for axis in gates:
        scale = float(theirs[axis].abs().max())
        assert torch.allclose(found[axis], theirs[axis], rtol=1e-2, atol=1e-3 * scale)


def by_fits(model: Any, tokens: Tensor, gates: Gates) -> tuple[float, Gates]:
    """The consumers' weights as a fit by noisy channels leaves them, in the whole model."""
    walk = Walk(open_model(model).streamed(device="cpu"), tokens, batch=6)
    seen = collect(walk, list(gates), FITTED_BY)
    leaves = {axis: gate.clone().requires_grad_() for axis, gate in gates.items()}
    changed: dict[str, Tensor] = {}
    for axis, gate in leaves.items():
        member, module = axis.consumer, model.get_submodule(axis.consumer.module)
        mean, var, gram = (
            seen[axis.name][f"input_{name}"].double() for name in ("mean", "var", "gram")
        )
        channels = member.blocks.indices(torch.arange(axis.units))
        each = torch.ones(len(mean), dtype=torch.float64).index_copy(
            0, channels.flatten(), gate.double().repeat_interleave(channels.shape[1])
        )
        power = var + mean**2
        damped = gram / tokens.numel() - torch.outer(mean, mean) + DAMPING * power.diag()
        noise = (power * (1 - each) / each).diag()
        weight = module.weight.detach().double().movedim(member.dim, 1)
        fitted = torch.linalg.solve(damped + noise, damped @ weight.T).T
        bias = (weight - fitted) @ mean
        own = dict(module.named_parameters())
        if own.get("bias") is not None:
            bias = bias + own["bias"].detach()
        else:
            module.bias = torch.nn.Parameter(torch.zeros(len(bias)))
        changed[member.tensor] = fitted.float().movedim(1, member.dim)
        changed[f"{member.module}.bias"] = bias.float()
    return by_autograd(model, tokens, changed, leaves)


@pytest.mark.parametrize("variant", ["llama-gqa", "gpt2", "falcon"])
def test_fitted_consumers_are_those_of_noisy_channels(variant: str, tokens: Tensor) -> None:
    model = tiny_model(variant)
    gates = some_gates(open_model(model).structure.axes)
    gates = {axis: (0.1 + gate).clamp(max=1) for axis, gate in gates.items()}
    value, found = streamed(model, tokens, gates, fits=True)
    expected, theirs = by_fits(model, tokens, gates)
    assert value == pytest.approx(expected, rel=1e-3)
    for axis in gates:
        scale = float(theirs[axis].abs().max())
        assert torch.allclose(found[axis], theirs[axis], rtol=1e-2, atol=1e-3 * scale)


def test_gates_of_nothing_and_one_are_units_cut_and_fitted_at_once(tokens: Tensor) -> None:
    model = tiny_model("llama-gqa")
    axes = open_model(model).structure.axes
    gone = {axis: tuple(range(0, axis.units, 2)) for axis in axes}
    gates = {axis: torch.ones(axis.units) for axis in axes}
    for axis, units in gone.items():
        gates[axis][list(units)] = 0.0
    walk = Walk(open_model(model).streamed(device="cpu"), tokens, batch=4)
    seen = collect(walk, axes, FITTED_BY)
    value, found = streamed(model, tokens, gates, fits=True)
    assert value == pytest.approx(float(divergences(walk, [gone], seen)), rel=1e-4)
    assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize("fits", [False, True])
def test_open_gates_are_the_dense_model(fits: bool, tokens: Tensor) -> None:
    model = tiny_model("llama-gqa")
    gates = {axis: torch.ones(axis.units) for axis in open_model(model).structure.axes}
    value, found = streamed(model, tokens, gates, fits=fits)
    assert value == pytest.approx(0, abs=1e-6)
    assert max(float(gradient.abs().max()) for gradient in found.values()) < 1e-3


def test_gates_of_some_layers_and_batches_change_nothing(tokens: Tensor) -> None:
    model = tiny_model("llama-gqa")
    axes = open_model(model).structure.axes
    some = some_gates([axis for axis in axes if axis.layer == 1])
    every = {axis: some.get(axis, torch.ones(axis.units)) for axis in axes}
    value, found = streamed(model, tokens, some, batch=1)
    expected, by_all = streamed(model, tokens, every, batch=6)
    assert value == pytest.approx(expected, rel=1e-5)
    for axis in some:
        assert torch.allclose(found[axis], by_all[axis], rtol=1e-4, atol=1e-7)


def test_units_that_share_channels_share_the_gradient(tokens: Tensor) -> None:
    """Query heads, and the groups that they are in: both are multiplied."""
    model = tiny_model("llama-gqa")
    axes = open_model(model).structures.select(["kv_group", "query_head"]).axes
    gates = some_gates(axes, seed=1)
    value, found = streamed(model, tokens, gates)
    expected, theirs = by_weights(model, tokens, gates)
    assert value == pytest.approx(expected, rel=1e-4)
    for axis in gates:
        assert torch.allclose(found[axis], theirs[axis], rtol=1e-3, atol=1e-6)


def test_what_is_not_finite_is_told(tokens: Tensor) -> None:
    model = tiny_model("llama-gqa")
    gates = {axis: torch.ones(axis.units) for axis in open_model(model).structure.axes}
    next(iter(gates.values()))[1] = float("inf")
    with pytest.raises(SecateurError, match="NaN or infinity in the output of layer 0"):
        streamed(model, tokens, gates)

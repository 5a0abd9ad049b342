"""Slopes by gates: of the streamed pass, of whole models by autograd, and of KL by differences."""

from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import EVERY_FAMILY_SLOWLY, tiny_model
from secateur.importance import IMPORTANCE, score
from secateur.models import open_model
from secateur.stats import Statistics, Walk, collect_gradients
from secateur.stats import gradients as stage
from secateur.stats.gates import GATES
from secateur.stats.objective import of_labels
from secateur.structure import Axis


def streamed(model: Any, tokens: Tensor, *needs: str, seed: int = 0, batch: int = 4) -> Statistics:
    opened = open_model(model)
    walk = Walk(opened.streamed(device="cpu"), tokens, batch=batch)
    return collect_gradients(walk, opened.structure.axes, needs, seed=seed)


def gated(model: Any, axes: list[Axis], gates: dict[str, Tensor]) -> list[Any]:
    """Hooks that multiply the consumers' inputs by gates [unit], or [token, unit]."""

    def scaled(axis: Axis) -> Any:
        channels = torch.empty(axis.units * axis.consumer.blocks.width, dtype=torch.long)
        units = torch.arange(axis.units)
        channels[axis.consumer.blocks.indices(units)] = units[:, None]
        return lambda _, args: (args[0] * gates[axis.name][..., channels], *args[1:])

    return [
        model.get_submodule(axis.consumer.module).register_forward_pre_hook(scaled(axis))
        for axis in axes
    ]


def linear_axes(model: Any) -> list[Axis]:
    return [axis for axis in open_model(model).structure.axes if axis.consumer.linear]


def slopes(model: Any, window: Tensor, labels: Tensor | None, *, each: bool) -> dict[str, Tensor]:
    """Gradients by the gates of all units, of all tokens together or of `each`, by autograd."""
    axes = linear_axes(model)
    shape = (len(window),) if each else ()
    gates = {axis.name: torch.ones(*shape, axis.units, requires_grad=True) for axis in axes}
    hooks = gated(model, axes, gates)
    logs = model(window[None], use_cache=False).logits[0, :-1].float().log_softmax(dim=-1)
    for hook in hooks:
        hook.remove()
    own = logs.exp() * logs if labels is None else logs.gather(1, labels[:, None])
    return dict(zip(gates, torch.autograd.grad(-own.sum(), list(gates.values())), strict=True))


@pytest.mark.parametrize("variant", EVERY_FAMILY_SLOWLY)
def test_streamed_terms_are_those_of_a_whole_model_backward(
    variant: str, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With labels that are given: a square of each window's sum, magnitudes of each token."""
    model = tiny_model(variant)
    if not linear_axes(model):
        pytest.skip("all consumers are stacks of experts")
    labels = torch.randint(128, tokens[:, 1:].shape, generator=torch.Generator().manual_seed(7))
    real = stage.objective

    def objective(name: str, tokens: Tensor, seed: int) -> Any:
        if name == "drawn":
            return lambda windows: of_labels(labels[windows].flatten())
        return real(name, tokens, seed)

    monkeypatch.setattr(stage, "objective", objective)
    got = streamed(model, tokens, *GATES)
    squares = [slopes(model, w, y, each=False) for w, y in zip(tokens, labels, strict=True)]
    magnitudes = [slopes(model, window, None, each=True) for window in tokens]
    for axis in linear_axes(model):
        fisher = torch.stack([one[axis.name].square() for one in squares]).sum(0) / labels.numel()
        entropy = torch.stack([one[axis.name].abs().sum(0) for one in magnitudes]).sum(0)
        entropy = entropy / labels.numel()
        for name, expected in (("gate_fisher", fisher), ("gate_entropy", entropy)):
            torch.testing.assert_close(
                got[axis.name][name], expected, rtol=1e-3, atol=1e-4 * float(expected.max())
            )


def test_experts_are_gated_by_unit(tokens: Tensor) -> None:
    """Of a stack of experts a gate is a column: its slope is the weight's times its gradient."""
    model = tiny_model("mixtral")
    axis = next(a for a in open_model(model).structure.axes if not a.consumer.linear)
    got = streamed(model, tokens, *GATES)[axis.name]
    weight = model.get_parameter(axis.consumer.tensor)
    one = tokens[:1]
    alone = streamed(model, one, "gate_entropy")[axis.name]["gate_entropy"]
    logs = model(one, use_cache=False).logits[0, :-1].float().log_softmax(dim=-1)
    (gradient,) = torch.autograd.grad(-(logs.exp() * logs).sum(), [weight])
    sums = axis.consumer.view(weight.detach() * gradient, axis.units).sum(dim=(1, 2))
    assert bool((sums.abs() / (one.shape[1] - 1) <= alone * (1 + 1e-4) + 1e-9).all())
    for need in GATES:
        assert got[need].shape == (axis.units,)
        assert float(got[need].max()) > 0


@torch.no_grad()
def test_half_of_it_is_the_kl_of_a_model_whose_gate_is_a_little_shut(tokens: Tensor) -> None:
    """KL(dense || gate at 1 - e) = e^2 score, by differences in fp64; many draws of few tokens."""
    window, often = tokens[0, :7], 200
    model = tiny_model(num_hidden_layers=2)
    got = streamed(model, window.repeat(often, 1), "gate_fisher", batch=often)
    model, shut = model.double(), 1e-3
    dense = model(window[None], use_cache=False).logits[0, :-1].log_softmax(dim=-1)
    axes = linear_axes(model)
    ratios = []
    for axis in axes:
        units = range(axis.units) if axis.kind == "attention" else range(0, axis.units, 9)
        found = score(IMPORTANCE["fisher"], axis, None, got[axis.name], seed=0)[:, 0]
        for unit in units:
            gates = {axis.name: torch.ones(axis.units, dtype=torch.float64)}
            gates[axis.name][unit] -= shut
            hooks = gated(model, [axis], gates)
            logs = model(window[None], use_cache=False).logits[0, :-1].log_softmax(dim=-1)
            for hook in hooks:
                hook.remove()
            apart = (dense.exp() * (dense - logs)).sum(dim=-1).mean() / shut**2
            ratios.append(float(found[unit]) / float(apart))
    # the standard error of a mean of squares of normal draws is sqrt(2 / 200), 10%
    assert all(abs(ratio - 1) < 0.45 for ratio in ratios)
    assert abs(sum(ratios) / len(ratios) - 1) < 0.1


def test_labels_are_those_of_their_seed_whatever_the_batch(tokens: Tensor) -> None:
    model = tiny_model()
    one, same, other = (
        streamed(model, tokens, "gate_fisher", seed=seed, batch=batch)
        for seed, batch in ((0, 4), (0, 1), (1, 4))
    )
    for axis, tally in one.tallies.items():
        torch.testing.assert_close(same[axis]["gate_fisher"], tally["gate_fisher"])
        assert not torch.equal(other[axis]["gate_fisher"], tally["gate_fisher"])


def test_terms_of_several_passes_come_together(tokens: Tensor) -> None:
    model = tiny_model()
    together = streamed(model, tokens, *GATES, "batch_first")
    for need in (*GATES, "batch_first"):
        alone = streamed(model, tokens, need)
        for axis, tally in alone.tallies.items():
            assert set(tally.terms) == {need}
            assert torch.equal(tally[need], together[axis][need])

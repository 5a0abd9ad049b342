"""Streamed statistics equal those of all tokens at once, streamed inputs the whole model's."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import ALL, tiny_model
from secateur.errors import SecateurError
from secateur.models import open_model
from secateur.stats import Activations, Gram, Moments, Norm, Walk, collect

NEEDS = ("input_mean", "input_var", "input_norm", "input_gram")


def batches(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    offset = torch.linspace(-50, 50, 7)  # a mean far from zero is what breaks naive sums
    sizes = (5, 1, 64, 13)
    return [(offset + torch.randn(n, 7, generator=generator)).to(dtype) for n in sizes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_streamed_moments_norm_and_gram_equal_the_two_pass_values(dtype: torch.dtype) -> None:
    seen = batches(dtype)
    moments, norm, gram = Moments.empty(7), Norm.empty(7), Gram.empty(7)
    for batch in seen:
        for accumulator in (moments, norm, gram):
            accumulator.update(batch)
    everything = torch.cat(seen).double()
    assert torch.allclose(moments.mean, everything.mean(0), rtol=1e-6)
    assert torch.allclose(moments.variance, everything.var(0, correction=0), rtol=1e-5)
    assert torch.allclose(norm.norm, everything.square().mean(0).sqrt(), rtol=1e-6)
    assert torch.allclose(gram.gram.double(), everything.T @ everything, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("kind", [Moments, Norm, Gram])
def test_what_is_kept_goes_on_as_if_nothing_had_happened(kind: Any) -> None:
    whole, part = kind.empty(7), kind.empty(7)
    for batch in batches():
        whole.update(batch)
        part.update(batch)
        part = kind.from_state(part.state())
    for name, value in whole.state().items():
        assert torch.equal(part.state()[name], value), name


def whole_model_inputs(model: Any, tokens: Tensor, modules: list[str]) -> dict[str, Any]:
    """The other route: hooks on the live model during its own forward.

    [token, channel]; for experts a list of that, computed again from what was routed to each.
    """
    seen: dict[str, Any] = {}

    def see(module: Any, args: tuple[Tensor, ...], name: str) -> None:
        inputs = args[0].flatten(0, -2)
        if hasattr(module, "num_experts"):
            chosen = [(args[1] == e).any(-1) for e in range(module.num_experts)]
            seen[name] = [expert_channels(module, inputs[rows], e) for e, rows in enumerate(chosen)]
        else:
            seen[name] = inputs

    handles = [
        model.get_submodule(name).register_forward_pre_hook(functools.partial(see, name=name))
        for name in modules
    ]
    with torch.no_grad():
        model(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def expert_channels(module: Any, x: Tensor, expert: int) -> Tensor:
    if hasattr(module, "gate_up_proj_bias"):
        both = x @ module.gate_up_proj[expert] + module.gate_up_proj_bias[expert]
        return module._apply_gate(both)
    gate, up = (x @ module.gate_up_proj[expert].T).chunk(2, dim=-1)
    return module.act_fn(gate) * up


@pytest.mark.parametrize(
    ("variant", "batch"),
    [*((name, 4) for name in ALL), *((n, b) for n in ("llama-gqa", "gpt_oss") for b in (1, 6))],
)
def test_streamed_statistics_equal_those_of_a_whole_model_forward(
    variant: str, batch: int, tokens: Tensor
) -> None:
    model = tiny_model(variant)
    opened = open_model(model)
    axes = opened.structure.axes
    walk = Walk(opened.streamed(device="cpu"), tokens, batch=batch)
    statistics = collect(walk, axes, NEEDS)
    inputs = whole_model_inputs(model, tokens, [axis.consumer.module for axis in axes])
    for axis in axes:
        seen, got = inputs[axis.consumer.module], statistics[axis.name]
        parts = seen if isinstance(seen, list) else [seen]
        mean = torch.cat([X.mean(0) for X in parts])
        variance = torch.cat([X.var(0, correction=0) for X in parts])
        norm = torch.cat([X.square().mean(0).sqrt() for X in parts])
        assert torch.allclose(got["input_mean"], mean, atol=1e-5)
        assert torch.allclose(got["input_var"], variance, rtol=1e-4, atol=1e-7)
        assert torch.allclose(got["input_norm"], norm, rtol=1e-4, atol=1e-7)
        gram = torch.block_diag(*[X.T @ X for X in parts])
        assert torch.allclose(got["input_gram"], gram, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variant", ["llama-gqa", "qwen2-sliding"])
def test_hidden_states_between_layers_equal_the_models_own(variant: str, tokens: Tensor) -> None:
    model = tiny_model(variant)
    with torch.no_grad():
        expected = model.model(tokens, output_hidden_states=True).hidden_states
    walk = Walk(open_model(model).streamed(device="cpu"), tokens, batch=4)
    states = walk.embed()
    assert torch.equal(states.tensor, expected[0])
    for step in walk.layers():
        step.run(states)
        if step.index < 2:  # transformers norms the last one
            assert torch.allclose(states.tensor, expected[step.index + 1], atol=1e-5)


def test_folder_and_live_module_stream_the_same(tiny_folder: Any, tokens: Tensor) -> None:
    def last(opened: Any) -> Tensor:
        walk = Walk(opened.streamed(device="cpu"), tokens, batch=4)
        states = walk.embed()
        for step in walk.layers():
            step.run(states)
        return states.tensor

    assert torch.equal(last(open_model(tiny_folder())), last(open_model(tiny_model())))


def test_only_one_layer_has_weights_at_a_time(tiny_folder: Any, tokens: Tensor) -> None:
    source = open_model(tiny_folder()).streamed(device="cpu")
    walk = Walk(source, tokens, batch=4)
    walk.embed()
    for step in walk.layers():
        full = {n.split(".")[2] for n, p in source.model.named_parameters() if not p.is_meta}
        assert full == {str(step.index)}
    assert all(p.is_meta for p in source.model.parameters())


def test_layers_are_also_visited_backwards_and_twice(tokens: Tensor) -> None:
    source = open_model(tiny_model()).streamed(device="cpu")
    walk = Walk(source, tokens, batch=4)
    states = walk.embed()
    inputs = [states]
    for step in walk.layers():
        after = states.clone()
        step.run(inputs[-1], into=after)
        inputs.append(after)
    for step in walk.layers(reverse=True):
        again = inputs[step.index].clone()
        step.run(again)
        assert torch.equal(again.tensor, inputs[step.index + 1].tensor)
    assert [step.index for step in walk.layers(reverse=True)] == [2, 1, 0]


def test_memory_mapped_hidden_states_change_nothing(tokens: Tensor) -> None:
    opened = open_model(tiny_model())
    axes = opened.structure.axes
    in_memory = collect(Walk(opened.streamed(device="cpu"), tokens, batch=4), axes, NEEDS)
    walk = Walk(opened.streamed(device="cpu"), tokens, batch=4, limit=0)
    assert walk.embed().mapped
    mapped = collect(walk, axes, NEEDS)
    for axis in axes:
        for name in NEEDS:
            assert torch.equal(in_memory[axis.name][name], mapped[axis.name][name])


def test_exactly_what_is_needed_is_collected(tokens: Tensor) -> None:
    opened = open_model(tiny_model())
    walk = Walk(opened.streamed(device="cpu"), tokens, batch=4)
    axes = [axis for axis in opened.structure.axes if axis.layer == 1]
    statistics = collect(walk, axes, ["input_norm"])
    assert set(statistics.tallies) == {"layers.1.attention", "layers.1.mlp"}
    assert all(set(t.accumulators) == {"norm"} for t in statistics.tallies.values())
    assert collect(walk, axes, []).tallies == {}


def test_hooks_are_gone_after_an_error(tokens: Tensor) -> None:
    model = tiny_model()
    model.model.layers[1].mlp.up_proj.weight.data.mul_(1e38)
    opened = open_model(model)
    source = opened.streamed(device="cpu")
    with pytest.raises(SecateurError, match=r"layers\.1\.mlp\.down_proj"):
        collect(Walk(source, tokens, batch=4), opened.structure.axes, ["input_var"])
    assert not any(module._forward_pre_hooks for module in source.model.modules())
    assert all(parameter.is_meta for parameter in source.model.parameters())


def test_activations_clone_is_independent() -> None:
    one = Activations((2, 3, 4), torch.float32)
    one.tensor.zero_()
    other = one.clone()
    other.tensor.fill_(1)
    assert one.tensor.sum() == 0


def test_a_batch_without_tokens_changes_nothing() -> None:
    """As an expert sees it that no token came to."""
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    whole = Moments.empty(3)
    for batch in (inputs[:0], inputs, inputs[:0]):
        whole.update(batch)
    assert torch.allclose(whole.mean.float(), inputs.mean(dim=0))
    assert torch.isfinite(whole.variance).all()


def test_layers_that_are_not_there_are_not_visited(tokens: torch.Tensor) -> None:
    source = open_model(tiny_model()).streamed(device="cpu")
    walk = Walk(source, tokens, batch=4, without={1})
    walk.embed()
    assert [step.index for step in walk.layers()] == [0, 2]
    assert [step.index for step in walk.layers(reverse=True)] == [2, 0]


@pytest.mark.parametrize("tokens", [1, 256, 600])
def test_a_gram_matrix_is_that_of_all_tokens_however_many_come_at_once(tokens: int) -> None:
    inputs = torch.randn(tokens, 5, generator=torch.Generator().manual_seed(0))
    gram = Gram.empty(5)
    gram.update(inputs)
    expected = inputs.double().T @ inputs.double()
    torch.testing.assert_close(gram.gram.double(), expected, rtol=1e-5, atol=1e-4)
    assert gram.count == tokens

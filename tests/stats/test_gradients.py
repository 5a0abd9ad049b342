"""Gradient terms of the streamed pass equal those of the whole model's own backward pass."""

import math
import weakref
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import EVERY_FAMILY_SLOWLY, tiny_model
from secateur.checkpoint import module_view
from secateur.errors import SecateurError
from secateur.models import StreamedModel, open_model
from secateur.stats import (
    GRADIENTS,
    Statistics,
    Taylor,
    Walk,
    collect,
    collect_gradients,
)
from secateur.stats import gradients as stage
from secateur.stats.gates import GATES
from secateur.stats.taylor import modules
from secateur.structure import Axis

# One of every layout: grouped queries, biases, sliding windows, norms of queries and keys.
LAYOUTS = [
    "llama-gqa", "llama-biased", "mistral-gqa", "qwen2-gqa", "qwen3-biased", "gemma2", "granite",
    "smollm3",
]  # fmt: skip
# What the whole-model route below spells out with the names of their linears.
HAND_MADE = [
    *LAYOUTS, "llama-mha", "llama-tied", "mistral-mha", "qwen2-sliding", "qwen3-gqa",
]  # fmt: skip
# The terms of the loss on the text; those of gates have tests of their own.
OF_LOSS = [name for name in GRADIENTS if name not in GATES]
MODULES = {"attention": "qkvo", "mlp": ("gate", "up", "down")}


def collected(
    model: Any, tokens: Tensor, *needs: str, dtype: str = "auto", **walk: Any
) -> Statistics:
    """The streamed terms of all axes."""
    opened = open_model(model)
    walk = {"batch": 4, **walk}
    return collect_gradients(
        Walk(opened.streamed(device="cpu", dtype=dtype), tokens, **walk),
        opened.structure.axes,
        needs,
    )


def loss(model: Any, tokens: Tensor) -> Tensor:
    """Mean next-token cross-entropy over all windows."""
    logits = model(tokens, use_cache=False).logits[:, :-1].flatten(0, 1).float()
    return torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())


def window_gradients(model: Any, tokens: Tensor) -> dict[str, Tensor]:
    """The other route: every parameter's gradient [window, ...] by plain autograd."""
    found: dict[str, list[Tensor]] = {}
    for window in tokens:
        model.zero_grad()
        loss(model, window[None]).backward()
        for name, parameter in model.named_parameters():
            found.setdefault(name, []).append(parameter.grad.float())
    model.zero_grad()
    return {name: torch.stack(gradients) for name, gradients in found.items()}


def products(model: Any, axis: Axis, gradients: dict[str, Tensor]) -> list[Tensor]:
    """w*g [window, unit, width, fan] of every module of `axis`, bias beside weight."""
    layer = f"model.layers.{axis.layer}."
    found = []
    for short in MODULES[axis.kind]:
        module = f"{layer}self_attn.{short}_proj" if len(short) == 1 else f"{layer}mlp.{short}_proj"
        weight = model.get_parameter(f"{module}.weight").detach().float()
        product = weight * gradients[f"{module}.weight"]
        if short in ("o", "down"):
            product = product.transpose(1, 2)
        elif f"{module}.bias" in gradients:
            bias = model.get_parameter(f"{module}.bias").detach().float()
            product = torch.cat([product, (bias * gradients[f"{module}.bias"])[..., None]], dim=2)
        found.append(product.unflatten(1, (axis.units, -1)))
    return found


def terms(p: Tensor, s: Tensor, channels: int) -> dict[str, Tensor]:
    """The definitions, for p and s [..., unit, width, fan]: [..., unit, channel]."""

    def fold(value: Tensor) -> Tensor:
        return value.unflatten(-1, (-1, channels)).sum(-2)

    return {
        "vector": fold(p.sum(-1).abs()),
        "coarse": p.sum((-1, -2)).abs()[..., None],
        "first": fold(p.abs().sum(-1)),
        "second": fold(s.sum(-1)),
        "mixed": fold((p - s / 2).abs().sum(-1)),
    }


def expected_terms(model: Any, axis: Axis, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """All terms of all modes; members in the order q, k, v, o and gate, up, down."""
    own = products(model, axis, gradients)
    return stacked_terms(own, min(p.shape[2] for p in own))


def stacked_terms(own: list[Tensor], channels: int) -> dict[str, Tensor]:
    """All terms of all modes, from w*g [window, unit, width, fan] of every member."""
    batch = [terms(p.mean(0), p.square().mean(0), channels) for p in own]
    windows = [terms(p, p.square(), channels) for p in own]
    found = {}
    for term in batch[0]:
        found[f"batch_{term}"] = torch.stack([each[term] for each in batch])
        found[f"per_sample_{term}"] = torch.stack([each[term].mean(0) for each in windows])
        found[f"samples_{term}"] = torch.stack([each[term].sum(-1) for each in windows]).sum(0)
    return found


def in_our_order(axis: Axis, found: Tensor) -> Tensor:
    """Members [member, ...] of a streamed term in the order of `MODULES`."""
    order = [m.module for m in axis.members if m.role == "producer" and m.parameter == "weight"]
    order.append(axis.consumer.module)
    names = [module.rpartition(".")[2].removesuffix("_proj") for module in order]
    return found[[names.index(name) for name in MODULES[axis.kind]]]


def close(got: Tensor, expected: Tensor) -> bool:
    """To 1e-5 of the largest value: small ones are differences of large ones."""
    return torch.allclose(got, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("variant", HAND_MADE)
def test_streamed_terms_equal_those_of_a_whole_model_backward(variant: str, tokens: Tensor) -> None:
    model = tiny_model(variant)
    statistics = collected(model, tokens, *OF_LOSS)
    gradients = window_gradients(model, tokens)
    for axis in open_model(model).structure.axes:
        for name, expected in expected_terms(model, axis, gradients).items():
            got = statistics[axis.name][name]
            assert got.shape == expected.shape, name
            got = got if name.startswith("samples") else in_our_order(axis, got)
            assert close(got, expected), (axis.name, name)


@pytest.mark.parametrize("variant", EVERY_FAMILY_SLOWLY)
def test_terms_of_every_family_are_those_of_its_members(variant: str, tokens: Tensor) -> None:
    """The whole model's gradients again, cut up by the members: experts, fused and interleaved."""
    model = tiny_model(variant)
    statistics = collected(model, tokens, *OF_LOSS)
    gradients = window_gradients(model, tokens)
    for axis in open_model(model).structure.axes:
        own = []
        for members in modules(axis):
            views = [
                torch.stack(
                    [
                        member.view(weight * gradient, axis.units)
                        for gradient in gradients[member.tensor]
                    ]
                )
                for member in members
                for weight in [model.get_parameter(member.tensor).detach().float()]
            ]
            own.append(torch.cat(views, dim=-1))
        channels = math.gcd(*(p.shape[2] for p in own))
        for name, expected in stacked_terms(own, channels).items():
            assert close(statistics[axis.name][name], expected), (axis.name, name)


def test_bf16_gradients_are_multiplied_and_summed_in_fp32(tokens: Tensor) -> None:
    """Equal up to the order of fp32 sums; of 17 tokens 16 are predicted, and 1/16 is exact."""
    model, tokens = tiny_model(), tokens[:, :17]
    frequencies = model.model.rotary_emb.inv_freq
    model.bfloat16().model.rotary_emb.inv_freq = frequencies  # a loaded model has them in fp32
    statistics = collected(model, tokens, *OF_LOSS, dtype="bfloat16")
    gradients = window_gradients(model, tokens)
    for axis in open_model(model).structure.axes:
        for name, expected in expected_terms(model, axis, gradients).items():
            got = statistics[axis.name][name]
            assert got.dtype == torch.float32
            got = got if name.startswith("samples") else in_our_order(axis, got)
            assert close(got, expected), (axis.name, name)


@pytest.mark.parametrize("variant", LAYOUTS)
@pytest.mark.parametrize("mode", ["batch", "per_sample"])
def test_coarse_is_at_most_vector_is_at_most_fine(mode: str, variant: str, tokens: Tensor) -> None:
    names = [f"{mode}_{term}" for term in ("coarse", "vector", "first")]
    statistics = collected(tiny_model(variant), tokens, *names)
    for tally in statistics.tallies.values():
        coarse, vector, fine = (tally[name].sum(dim=2) for name in names)
        assert (coarse <= vector * (1 + 1e-5)).all()
        assert (vector <= fine * (1 + 1e-5)).all()
        assert (coarse < 0.99 * fine).any()


def multiplier_gradients(model: Any, tokens: Tensor, axes: tuple[Axis, ...]) -> dict[str, Tensor]:
    """|dL/dm| for a multiplier m of one on what every unit hands to the consumer."""
    multipliers = {axis.name: torch.ones(axis.units, requires_grad=True) for axis in axes}

    def scaled(axis: Axis) -> Any:
        width = axis.consumer.blocks.width
        return lambda _, args: args[0] * multipliers[axis.name].repeat_interleave(width)

    hooks = [
        model.get_submodule(axis.consumer.module).register_forward_pre_hook(scaled(axis))
        for axis in axes
    ]
    found = torch.autograd.grad(loss(model, tokens), list(multipliers.values()))
    for hook in hooks:
        hook.remove()
    return {name: value.abs() for name, value in zip(multipliers, found, strict=True)}


@pytest.mark.parametrize("variant", LAYOUTS)
def test_what_writes_a_unit_and_what_reads_it_agree_with_its_multiplier(
    variant: str, tokens: Tensor
) -> None:
    """down = up = dL/dm of a channel, o = v = dL/dm of a KV group, q = k of a KV group."""
    model = tiny_model(variant)
    axes = open_model(model).structure.axes
    statistics = collected(model, tokens, "batch_coarse")
    multipliers = multiplier_gradients(model, tokens, axes)
    for axis in axes:
        coarse = in_our_order(axis, statistics[axis.name]["batch_coarse"])[:, :, 0]
        by_name = dict(zip(MODULES[axis.kind], coarse, strict=True))
        multiplier = multipliers[axis.name]
        near = {"rtol": 1e-3, "atol": 1e-5 * coarse.max().item()}
        if axis.kind == "attention":
            assert torch.allclose(by_name["o"], multiplier, **near)
            assert torch.allclose(by_name["v"], multiplier, **near)
            assert torch.allclose(by_name["q"], by_name["k"], **near)
        else:
            assert torch.allclose(by_name["down"], multiplier, **near)
            assert torch.allclose(by_name["up"], multiplier, **near)
            assert not torch.allclose(by_name["gate"], multiplier, **near)


def test_memory_mapped_inputs_change_nothing(tokens: Tensor) -> None:
    in_memory = collected(tiny_model(), tokens, *GRADIENTS)
    mapped = collected(tiny_model(), tokens, *GRADIENTS, limit=0)
    assert equal(in_memory, mapped)


def test_the_limit_holds_for_the_inputs_of_all_layers_together(
    tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from secateur.stats import activations, gradients, stream

    mapped = []

    class Seen(activations.Activations):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            mapped.append(self.mapped)

    monkeypatch.setattr(stream, "Activations", Seen)
    monkeypatch.setattr(gradients, "Activations", Seen)
    one = tokens.numel() * 48 * 4
    for limit, expected in ((5 * one, False), (5 * one - 1, True)):  # and the gradient
        mapped.clear()
        collected(tiny_model(), tokens, "batch_first", limit=limit)
        assert mapped == [expected] * 5


@pytest.mark.parametrize("name", ["batch_vector", "batch_coarse", "batch_first"])
def test_linear_terms_do_not_depend_on_how_many_windows_go_at_once(
    name: str, tokens: Tensor
) -> None:
    one, many = (collected(tiny_model(), tokens, name, batch=batch) for batch in (1, 4))
    for axis, tally in one.tallies.items():
        assert close(many[axis][name], tally[name])


def test_terms_of_some_layers_are_those_of_all(tokens: Tensor) -> None:
    opened = open_model(tiny_model())
    axes = [axis for axis in opened.structure.axes if axis.layer == 1]
    source = opened.streamed(device="cpu")
    some = collect_gradients(Walk(source, tokens, batch=4), axes, GRADIENTS)
    assert set(some.tallies) == {"layers.1.attention", "layers.1.mlp"}
    whole = collected(tiny_model(), tokens, *GRADIENTS)
    for axis in axes:
        for name in GRADIENTS:
            assert torch.equal(some[axis.name][name], whole[axis.name][name])


def test_exactly_what_is_needed_is_collected(tokens: Tensor) -> None:
    statistics = collected(tiny_model(), tokens, "samples_coarse", "batch_first")
    for tally in statistics.tallies.values():
        assert set(tally.terms) == {"samples_coarse", "batch_first"}
    assert collected(tiny_model(), tokens).tallies == {}


def test_terms_live_beside_statistics(tokens: Tensor) -> None:
    opened = open_model(tiny_model())
    walk = Walk(opened.streamed(device="cpu"), tokens, batch=4)
    axes = opened.structure.axes
    statistics, norms = collect(walk, axes, ["input_norm"]), collect(walk, axes, ["input_norm"])
    terms = collect_gradients(walk, axes, GRADIENTS)
    statistics.include(terms)
    assert equal(statistics, terms)
    for axis in axes:
        assert torch.equal(statistics[axis.name]["input_norm"], norms[axis.name]["input_norm"])


def equal(one: Statistics, other: Statistics) -> bool:
    return all(
        torch.equal(tally[name], other[axis][name])
        for axis, tally in one.tallies.items()
        for name in GRADIENTS
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_of_the_pass_is_left_in_a_live_model(dtype: torch.dtype, tokens: Tensor) -> None:
    model = tiny_model().to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    opened = open_model(model)
    source = opened.streamed(device="cpu")
    collect_gradients(Walk(source, tokens, batch=4), opened.structure.axes, GRADIENTS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    for parameter in (*model.parameters(), *source.model.parameters()):
        assert parameter.grad is None
        assert not parameter._post_accumulate_grad_hooks
    assert all(parameter.is_meta for parameter in source.model.parameters())


@pytest.mark.parametrize("fails", [False, True])
def test_layers_that_stay_in_memory_are_frozen_again_on_errors_too(
    fails: bool, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model().requires_grad_(False)
    opened = open_model(model)
    axes, family = opened.structure.axes, opened.family
    source = StreamedModel(model, family, module_view(model), torch.device("cpu"))
    if fails:
        monkeypatch.setattr(Taylor, "end_windows", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        collect_gradients(Walk(source, tokens, batch=4), axes, GRADIENTS)
    for parameter in model.parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None
        assert not parameter._post_accumulate_grad_hooks


def test_a_gradient_that_is_not_finite_names_its_member_and_leaves_nothing(tokens: Tensor) -> None:
    model = tiny_model()
    model.model.layers[1].mlp.up_proj.weight.data.mul_(1e22)
    model.model.layers[1].mlp.down_proj.weight.data.mul_(1e-22)
    model.lm_head.weight.data.mul_(1e18)
    opened = open_model(model)
    source = opened.streamed(device="cpu")
    with pytest.raises(
        SecateurError, match=r"gradient of model\.layers\.1\.mlp\.down_proj\.weight"
    ):
        collect_gradients(Walk(source, tokens, batch=4), opened.structure.axes, ["batch_first"])
    assert all(parameter.is_meta for parameter in source.model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_loss_that_is_not_finite_names_the_head(tokens: Tensor) -> None:
    model = tiny_model()
    model.lm_head.weight.data.mul_(1e38)
    with pytest.raises(SecateurError, match=r"the loss \(the output of the head\)"):
        collected(model, tokens, "batch_first")


@pytest.mark.parametrize(
    ("windows", "need", "says"),
    [
        (slice(0, 6), "batch_frist", "Unknown gradient term 'batch_frist'. Did you mean 'batch_f"),
        (slice(0, 0), "batch_first", "at least one calibration window of two tokens"),
    ],
)
def test_wrong_input_is_told_what_was_expected(
    windows: slice, need: str, says: str, tokens: Tensor
) -> None:
    with pytest.raises(SecateurError, match=says):
        collected(tiny_model(), tokens[windows], need)


def test_windows_of_one_token_have_no_loss(tokens: Tensor) -> None:
    with pytest.raises(SecateurError, match="two tokens"):
        collected(tiny_model(), tokens[:, :1], "batch_first")


@pytest.fixture(scope="module")
def all_terms() -> dict[str, Statistics]:
    """By variant, what one pass finds of all terms."""
    return {}


@pytest.mark.parametrize("variant", ["llama-biased", "gpt2", "falcon", "qwen3_moe", "olmo2"])
@pytest.mark.parametrize("need", GRADIENTS)
def test_a_term_alone_is_what_it_is_beside_others(
    need: str, variant: str, tokens: Tensor, all_terms: dict[str, Statistics]
) -> None:
    model = tiny_model(variant)
    if variant not in all_terms:
        all_terms[variant] = collected(model, tokens, *GRADIENTS)
    alone = collected(model, tokens, need)
    for axis, tally in alone.tallies.items():
        assert close(tally[need], all_terms[variant][axis][need])


@pytest.mark.parametrize("need", ["batch_vector", "per_sample_coarse", "samples_vector"])
def test_signed_terms_need_no_gradient_of_a_weight(
    need: str, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama-gqa")
    expected = collected(model, tokens, need)
    monkeypatch.setattr("secateur.stats.linears._gradients", lambda *_: 1 / 0)
    assert collected(model, tokens, need).tallies.keys() == expected.tallies.keys()
    with pytest.raises(ZeroDivisionError):
        collected(model, tokens, "batch_first")


def test_a_module_that_looks_like_a_linear_and_is_none_is_left_to_autograd(tokens: Tensor) -> None:
    class Twice(torch.nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = tiny_model("llama-gqa")
    opened = open_model(model)
    source = opened.streamed(device="cpu")
    for layer in (*model.model.layers, *source.model.model.layers):
        layer.mlp.down_proj.__class__ = Twice
    walk = Walk(source, tokens, batch=4)
    statistics = collect_gradients(walk, opened.structure.axes, OF_LOSS)
    gradients = window_gradients(model, tokens)
    for axis in open_model(model).structure.axes:
        for name, expected in expected_terms(model, axis, gradients).items():
            got = statistics[axis.name][name]
            got = got if name.startswith("samples") else in_our_order(axis, got)
            assert close(got, expected), (axis.name, name)


@pytest.mark.parametrize("variant", ["llama-biased", "mixtral"])
@pytest.mark.parametrize("need", ["batch_vector", "per_sample_first"])
def test_the_graph_of_a_batch_is_gone_before_the_next_one_is_made(
    variant: str, need: str, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By linears, whose hooks keep what passed them, and by autograd."""
    forward = stage._forward
    outputs: list[weakref.ref[Tensor]] = []

    def watched(*args: Any) -> Tensor:
        assert not any(output() is not None for output in outputs)
        output: Tensor = forward(*args)
        outputs.append(weakref.ref(output))
        return output

    monkeypatch.setattr(stage, "_forward", watched)
    collected(tiny_model(variant), tokens, need, batch=2)
    assert len(outputs) > 3

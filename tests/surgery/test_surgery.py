"""Slicing equals masking; the bias repairs what is constant; an empty plan changes no bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import ALL, flap_biases, left_padded, masked, tiny_model
from secateur.export import Form, pruned_form
from secateur.export.proof import ragged_plan
from secateur.models import OpenModel, filled, open_model
from secateur.structure import Plan
from secateur.surgery import bias, pruned_view


def cut(opened: OpenModel, plan: Plan, added: dict[str, Tensor] | None = None) -> Form:
    weights = pruned_view(opened.weights, opened.structure, plan, added)
    return pruned_form(
        opened.family, opened.raw_config, opened.config, opened.structure, plan, weights
    )


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", ALL)
def test_slicing_equals_masking(variant: str, seed: int) -> None:
    dense = tiny_model(variant)
    opened = open_model(dense)
    plan = ragged_plan(opened.structure, seed)
    form = cut(opened, plan)
    sliced = filled(form.empty(), form.weights)
    inputs = left_padded()
    seen = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected_dense = dense(**inputs).logits
        got = sliced(**inputs).logits
        expected = masked(dense, opened.structure, plan)(**inputs).logits
    assert torch.allclose(got[seen], expected[seen], atol=1e-5)
    assert (got[seen] - expected_dense[seen]).abs().max() > 1e-2  # the cut did do something
    parameters = sum(p.numel() for p in sliced.parameters())
    assert parameters == opened.structure.parameters - plan.removed_cost(opened.structure)


@pytest.mark.parametrize("variant", ALL)
def test_an_empty_plan_gives_bit_equal_logits_and_a_stock_checkpoint(variant: str) -> None:
    dense = tiny_model(variant)
    opened = open_model(dense)
    plan = Plan({}, opened.structure.architecture, opened.structure.weights)
    form = cut(opened, plan)
    assert form.stock
    assert form.config["model_type"] == dense.config.model_type
    # one expert after the other, as the model that is filled; other kernels round otherwise
    dense.config._experts_implementation = "eager"
    with torch.no_grad():
        again = filled(form.empty(), form.weights)(**left_padded()).logits
        assert torch.equal(again, dense(**left_padded()).logits)


def test_a_removed_constant_input_is_repaired_exactly() -> None:
    """gate and up of MLP channels 3 and 9 are made constant: relu(0 x + 1) * (0 x + 2)."""
    dense = tiny_model("llama-biased", hidden_act="relu")
    mlp = dense.model.layers[1].mlp
    for channel in (3, 9):
        for linear, value in ((mlp.gate_proj, 1.0), (mlp.up_proj, 2.0)):
            linear.weight.data[channel] = 0
            linear.bias.data[channel] = value
    opened = open_model(dense)
    axis = opened.structure.by_name["layers.1.mlp"]
    kept = tuple(unit for unit in range(axis.units) if unit not in (3, 9))
    plan = Plan({axis.name: kept}, opened.structure.architecture, opened.structure.weights)
    tokens = left_padded()["input_ids"]
    form = cut(opened, plan, flap_biases(opened, plan, tokens))
    with torch.no_grad():
        got = filled(form.empty(), form.weights)(tokens).logits
        assert torch.allclose(got, dense(tokens).logits, atol=1e-5)


@pytest.mark.parametrize("variant", ["llama-gqa", "llama-biased", "qwen2-gqa"])
def test_the_bias_makes_the_mean_error_of_a_consumer_zero(variant: str, tokens: Tensor) -> None:
    dense = tiny_model(variant)
    opened = open_model(dense)
    axis = opened.structure.by_name["layers.0.mlp"]
    plan = Plan({axis.name: tuple(range(0, axis.units, 2))}, "", "")
    added = flap_biases(opened, plan, tokens)
    cut_weights = pruned_view(opened.weights, opened.structure, plan, added)
    inputs: list[Tensor] = []
    consumer = dense.model.layers[0].mlp.down_proj
    consumer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        dense(tokens)
    X = inputs[0]
    kept = plan.kept_tensor(axis)
    name = axis.consumer.module
    small = X[:, kept] @ cut_weights.tensor(f"{name}.weight").T + cut_weights.tensor(f"{name}.bias")
    full = torch.nn.functional.linear(X, consumer.weight, consumer.bias)
    assert (small - full).mean(0).abs().max() < 1e-6
    assert (small - full).abs().max() > 1e-3


def test_the_compensation_joins_an_existing_bias() -> None:
    opened = open_model(tiny_model("llama-biased"))
    name = "model.layers.0.mlp.down_proj.bias"
    plan = Plan({}, "", "")
    added = {name: torch.full((48,), 0.25, dtype=torch.float64)}
    new = pruned_view(opened.weights, opened.structure, plan, added).tensor(name)
    assert torch.allclose(new, opened.weights.tensor(name) + 0.25)


def test_the_bias_is_the_contribution_of_the_removed_channels() -> None:
    W, mean = torch.randn(5, 12), torch.randn(12)
    units = W.T.reshape(6, 2, 5)
    got = bias(units[[1, 4]], mean.view(6, 2)[[1, 4]])
    removed = [2, 3, 8, 9]
    assert torch.allclose(got.float(), W[:, removed] @ mean[removed], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_weights_are_bit_for_bit_those_of_the_checkpoint(
    dtype: torch.dtype, tiny_folder: Any
) -> None:
    folder: Path = tiny_folder("qwen3-biased", dtype=dtype)
    opened = open_model(folder)
    plan = ragged_plan(opened.structure, 0)
    pruned = pruned_view(opened.weights, opened.structure, plan)
    for axis in opened.structure.axes:
        for member in axis.members:
            kept = member.blocks.indices(plan.kept_tensor(axis)).flatten()
            expected = opened.weights.tensor(member.tensor).index_select(member.dims[0], kept)
            assert torch.equal(pruned.tensor(member.tensor), expected)
            assert pruned.specs[member.tensor].shape == tuple(expected.shape)
            assert pruned.tensor(member.tensor).dtype == dtype


def test_the_given_model_is_not_changed() -> None:
    dense = tiny_model()
    before = {name: p.clone() for name, p in dense.named_parameters()}
    opened = open_model(dense)
    form = cut(opened, ragged_plan(opened.structure, 0))
    filled(form.empty(), form.weights)
    assert all(torch.equal(p, before[name]) for name, p in dense.named_parameters())

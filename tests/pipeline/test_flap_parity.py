"""FLAP stage by stage against tensors that its public code produced (shared/golden/flap).

Given the golden statistics and unit costs, our pure functions must give its metrics, standardised
scores, masks, biases and pruned logits. Where the public code has a bug (an aliased variance, a
truncated head weight) its statistics and costs are fed in; none of that is in the product.
"""

import json
from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from conftest import shared
from secateur.checkpoint import View
from secateur.importance import IMPORTANCE, score
from secateur.models import filled, open_model
from secateur.search import SEARCHES, Removal, Request, rescaled, standardised
from secateur.stats import Walk, collect
from secateur.structure import Axis, Plan, Structure
from secateur.surgery import bias, pruned_view

METRICS = ("IFV", "WIFV", "WIFN")
STRUCTURES = ("UL-UM", "UL-MM", "AL-MM", "AL-AM")
LAYERS, HEADS, HEAD_DIM, HIDDEN, WIDTH = 4, 8, 8, 64, 160


@lru_cache
def golden() -> dict[str, Tensor]:
    return load_file(shared("golden/flap/golden.safetensors"))


@lru_cache
def scalars() -> dict[str, Any]:
    return json.loads(shared("golden/flap/scalars.json").read_text())


@lru_cache
def opened() -> Any:
    return open_model(shared("golden/flap"))


def structure() -> Structure:
    return opened().structure


def golden_statistics(axis: Axis) -> dict[str, Tensor]:
    linear = "o_proj" if axis.kind == "attention" else "down_proj"
    name = f"stats.layer{axis.layer}.{linear}"
    return {
        "input_mean": golden()[f"{name}.mean"],
        "input_var": golden()[f"{name}.fluc"],
        "input_norm": golden()[f"{name}.scaler_inp"].sqrt(),
    }


def channel_scores(metric: str) -> dict[str, Tensor]:
    """Our metric of every axis, [unit, width]; attention squared as the public code does."""
    found = {}
    for axis in structure().axes:
        weight = opened().weights.tensor(axis.consumer.tensor)
        value = score(IMPORTANCE[metric.lower()], axis, weight, golden_statistics(axis), seed=0)
        found[axis.name] = value.square() if axis.kind == "attention" else value
    return found


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_equal_the_public_ones(metric: str) -> None:
    for name, value in channel_scores(metric).items():
        layer, kind = int(name.split(".")[1]), name.split(".")[2]
        key = "attn_channel_sq_raw" if kind == "attention" else "mlp_raw"
        expected = golden()[f"metric.{metric}.{key}"][layer]
        assert torch.allclose(value.flatten(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("metric", METRICS)
def test_standardised_scores_equal_the_public_ones(metric: str) -> None:
    for name, value in channel_scores(metric).items():
        layer, kind = int(name.split(".")[1]), name.split(".")[2]
        key = "attn_head_std" if kind == "attention" else "mlp_std"
        expected = golden()[f"metric.{metric}.{key}"][layer]
        assert torch.allclose(standardised(value), expected, rtol=1e-5, atol=1e-5)


def golden_costs(variant: str) -> tuple[float, float]:
    """Cost of a head and of a channel as the public code counts them in AL-AM."""
    head = {"": 10, ".compw_literal170": 170, ".compw_float": 4 * HEAD_DIM / 3}[variant]
    return head, 1


def our_masks(
    metric: str, search: str, ratio: float, heads: int | None, costs: tuple[float, float] | None
) -> tuple[Tensor, Tensor]:
    """Kept heads [layer, head] and channels [layer, channel]; costs default to the true ones."""
    entry = SEARCHES[search]
    axes = structure().axes
    scores = channel_scores(metric)
    removals = {}
    for axis in axes:
        cost = axis.cost if costs is None else costs[0 if axis.kind == "attention" else 1]
        # floor 0: the public code lets a layer lose everything
        removal = Removal.plan(rescaled(scores[axis.name], entry.scale or "raw"), 3, floor=0)
        removals[axis.name] = Removal(removal.order, removal.ends, removal.scores, round(cost * 3))
    total = sum(len(r.order) * r.cost for r in removals.values())
    request = Request(ratio * total, ratio, heads)
    given = {"axes": axes, "removals": removals, "request": request, "budget": request.budget}
    given["share"] = ratio
    steps = entry.function(**{need: given[need] for need in entry.needs})
    heads_kept = torch.ones(LAYERS, HEADS, dtype=torch.uint8)
    channels_kept = torch.ones(LAYERS, WIDTH, dtype=torch.uint8)
    for axis in axes:
        kept = heads_kept if axis.kind == "attention" else channels_kept
        kept[axis.layer, list(removals[axis.name].units(steps[axis.name]))] = 0
    return heads_kept, channels_kept


@pytest.mark.parametrize("ratio", [0.2, 0.5])
@pytest.mark.parametrize("search", STRUCTURES[:3])
@pytest.mark.parametrize("metric", METRICS)
def test_masks_of_the_uniform_and_manual_searches_are_exact(
    metric: str, search: str, ratio: float
) -> None:
    heads = scalars()["remove_heads"].get(f"{search}.p{ratio}") if "MM" in search else None
    kept = our_masks(metric, search, ratio, heads, None)
    for mask, name in zip(kept, ("attn_mask", "mlp_mask"), strict=True):
        assert torch.equal(mask, golden()[f"{metric}.{search}.p{ratio}.{name}"])


@pytest.mark.parametrize("variant", ["", ".compw_float", ".compw_literal170"])
@pytest.mark.parametrize("ratio", [0.2, 0.5])
@pytest.mark.parametrize("metric", METRICS)
def test_masks_of_the_adaptive_search_are_exact_up_to_the_unit_it_drops(
    metric: str, ratio: float, variant: str
) -> None:
    """The public rule keeps scores ABOVE that of the unit nearest to the budget: one fewer."""
    key = f"{metric}.AL-AM.p{ratio}{variant}"
    ours = our_masks(metric, "AL-AM", ratio, None, golden_costs(variant))
    theirs = (golden()[f"{key}.attn_mask"], golden()[f"{key}.mlp_mask"])
    extra = sum(
        int((a.int() - b.int()).clamp(min=0).sum()) for a, b in zip(ours, theirs, strict=True)
    )
    lacking = sum(
        int((b.int() - a.int()).clamp(min=0).sum()) for a, b in zip(ours, theirs, strict=True)
    )
    assert lacking == 0
    assert extra == 1


def golden_plan(key: str) -> Plan:
    keep = {}
    for axis in structure().axes:
        name = "attn_mask" if axis.kind == "attention" else "mlp_mask"
        keep[axis.name] = tuple(golden()[f"{key}.{name}"][axis.layer].nonzero().flatten().tolist())
    return Plan(keep, structure().architecture, structure().weights)


@pytest.mark.parametrize("ratio", [0.2, 0.5])
@pytest.mark.parametrize("search", STRUCTURES)
@pytest.mark.parametrize("metric", METRICS)
def test_biases_and_pruned_logits_equal_the_public_ones(
    metric: str, search: str, ratio: float
) -> None:
    key = f"{metric}.{search}.p{ratio}"
    plan = golden_plan(key)
    added = {}
    for axis in structure().axes:
        weight = opened().weights.tensor(axis.consumer.tensor)
        units, removed = axis.consumer.view(weight, axis.units), plan.removed_tensor(axis)
        mean = golden_statistics(axis)["input_mean"].view(axis.units, -1)
        name = "o_proj_bias" if axis.kind == "attention" else "down_proj_bias"
        value = bias(units[removed], mean[removed])
        assert torch.allclose(value.float(), golden()[f"{key}.{name}"][axis.layer], atol=1e-4)
        added[f"{axis.consumer.module}.bias"] = value
    weights = pruned_view(opened().weights, structure(), plan, added)
    if all(plan.kept(axis) for axis in structure().axes):
        assert torch.allclose(_logits(weights, plan), golden()[f"{key}.eval_logits"], atol=1e-4)


def _logits(weights: View, plan: Plan) -> Tensor:
    from secateur.export import pruned_form

    own = opened()
    form = pruned_form(own.family, own.raw_config, own.config, structure(), plan, weights)
    model = filled(form.empty(), form.weights)
    ids = load_file(shared("golden/flap/eval_ids.safetensors"))["eval_ids"]
    with torch.no_grad():
        return model(ids).logits


def test_our_mean_and_variance_equal_the_two_pass_values() -> None:
    ids = load_file(shared("golden/flap/calib_ids.safetensors"))["calib_ids"]
    walk = Walk(opened().streamed(device="cpu"), ids, batch=5)
    statistics = collect(walk, structure().axes, ["input_mean", "input_var"])
    for axis in structure().axes:
        linear = "o_proj" if axis.kind == "attention" else "down_proj"
        name = f"true_stats.layer{axis.layer}.{linear}"
        for ours, theirs in (("input_mean", "mean"), ("input_var", "var_pop")):
            got, expected = statistics[axis.name][ours], golden()[f"{name}.{theirs}"]
            assert torch.allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_dense_logits_equal_the_public_ones() -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(shared("golden/flap"))
    ids = load_file(shared("golden/flap/eval_ids.safetensors"))["eval_ids"]
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, golden()["dense.eval_logits"], atol=1e-4)


@pytest.mark.parametrize("ratio", [0.2, 0.5])
@pytest.mark.parametrize("method", ["wanda_sp", "mag_sp"])
def test_baseline_masks_of_one_layer_follow_from_the_golden_statistics(
    method: str, ratio: float
) -> None:
    """Wanda-sp and magnitude rank within a layer and remove int(ratio * units) of each kind."""
    for axis in structure().axes:
        weight = opened().weights.tensor(axis.consumer.tensor)
        if method == "wanda_sp":
            linear = "o_proj" if axis.kind == "attention" else "down_proj"
            seen = golden()[f"wanda_sp.p{ratio}.{linear}_scaler_row"][axis.layer]
            value = score(IMPORTANCE["wanda-sp"], axis, weight, {"input_norm": seen.sqrt()}, seed=0)
        else:
            value = score(IMPORTANCE["magnitude-l2"], axis, weight, {}, seed=0).sqrt()
        removed = value.sum(1).argsort()[: int(ratio * axis.units)]
        name = "attn_mask" if axis.kind == "attention" else "mlp_mask"
        mask = golden()[f"{method}.p{ratio}.{name}"][axis.layer]
        assert (mask == 0).nonzero().flatten().tolist() == sorted(removed.tolist())

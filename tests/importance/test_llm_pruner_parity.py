"""Taylor and magnitude scores against those of LLM-Pruner's public code (shared/golden/llm_pruner).

Gradients are ours, of the streamed pass over its calibration ids; importances must agree to 1e-5,
and what it removed must be what scores lowest here. Its reductions `first` and `second` go by its
own order of members, [q, o, v, k] and [gate, up, down].
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conftest import shared
from secateur.export import pruned_form
from secateur.importance import IMPORTANCE, REDUCTIONS, score
from secateur.models import filled, open_model
from secateur.search import Limits, search
from secateur.stats import Statistics, Walk, collect_gradients
from secateur.stats.taylor import modules
from secateur.structure import Axis, Plan
from secateur.surgery import pruned_view

TERMS = {
    "vectorize": "vector",
    "param_first": "first",
    "param_second": "second",
    "param_mix": "mixed",
}
VARIANTS = [(term, "sum") for term in TERMS] + [
    ("param_first", reduction) for reduction in ("max", "mean", "prod", "first", "second")
]
RATIO = 0.25


@lru_cache
def golden() -> dict[str, Tensor]:
    return load_file(shared("golden/llm_pruner/golden.safetensors"))


@lru_cache
def opened() -> Any:
    return open_model(shared("golden/llm_pruner"))


@lru_cache
def statistics() -> Statistics:
    return gradients_of(opened())


def gradients_of(model: Any) -> Statistics:
    ids = load_file(shared("golden/llm_pruner/calib_ids.safetensors"))["calib_ids"][:10, :64]
    walk = Walk(model.streamed(device="cpu"), ids, batch=4)
    needs = [f"batch_{term}" for term in TERMS.values()]
    return collect_gradients(walk, model.structure.axes, needs)


def cut(model: Any, removed: Mapping[str, Sequence[int]]) -> Any:
    """The model without the units `removed` by axis name, as a module of its own."""
    names = {axis.granularity for axis in model.structures.axes if axis.name in removed}
    structure = model.structures.select(sorted(names))
    keep = {
        axis.name: tuple(sorted(set(range(axis.units)) - set(removed[axis.name])))
        for axis in structure.axes
        if axis.name in removed
    }
    plan = Plan(keep, structure.architecture, structure.weights)
    weights = pruned_view(model.weights, structure, plan)
    form = pruned_form(model.family, model.raw_config, model.config, structure, plan, weights)
    return filled(form.empty(), form.weights)


def removed_units(model: Any, tag: str, key: str = "pruned_idx") -> dict[str, list[int]]:
    """The units whose channels the public code removed, by axis; whole heads only."""
    found = {}
    for axis in model.structure.axes:
        channels = golden().get(f"{tag}.{key}.{root(axis)}")
        if channels is not None:
            width = axis.consumer.blocks.width
            units = channels.view(-1, width)[:, 0] // width
            assert axis.consumer.blocks.indices(units).flatten().equal(channels)
            found[axis.name] = units.tolist()
    return found


def near_logits(module: Any, tag: str) -> bool:
    """Whether the logits on the evaluation tokens are the public ones, to 1e-4."""
    ids = load_file(shared("golden/llm_pruner/eval_ids.safetensors"))["eval_ids"]
    with torch.no_grad():
        logits = module(ids).logits
    return torch.allclose(logits, golden()[f"{tag}.eval_logits"], rtol=0, atol=1e-4)


def root(axis: Axis) -> str:
    """The module that the public code names the group by."""
    part = "self_attn.q_proj" if axis.kind == "attention" else "mlp.gate_proj"
    return f"model.layers.{axis.layer}.{part}"


def by_channel(axis: Axis, term: str, reduction: str) -> Tensor:
    """Our importance [unit, channel] under one of its reductions."""
    terms = statistics()[axis.name][f"batch_{TERMS[term]}"]
    if reduction not in ("first", "second"):
        return REDUCTIONS[reduction](terms)
    groups = json.loads(shared("golden/llm_pruner/groups.json").read_text())["groups"]
    wanted = groups[root(axis)][("first", "second").index(reduction)][0]
    return terms[[members[0].module for members in modules(axis)].index(wanted)]


def lowest(axis: Axis, importance: Tensor) -> list[int]:
    """The channels of the units that score lowest, as many as the public code removes."""
    units = importance.argsort()[: int(RATIO * axis.units)]
    return sorted(axis.consumer.blocks.indices(units).flatten().tolist())


def terms_of(term: str, name: str) -> Tensor | None:
    """What is as large as the terms of a score whose terms cancel."""
    return golden()[f"taylor.param_first.{name}"] if term == "vectorize" else None


def close(got: Tensor, expected: Tensor, terms: Tensor | None = None) -> bool:
    """To 1e-5 relative, above the rounding of the `terms` that were added up.

    `vector` is a difference of larger numbers: its terms are as large as `first` of the same.
    """
    floor = 1e-6 * (expected if terms is None else terms).abs().max().item()
    return torch.allclose(got.flatten(), expected.flatten(), rtol=1e-5, atol=floor)


@pytest.mark.parametrize(("term", "reduction"), VARIANTS)
def test_importances_equal_the_public_ones(term: str, reduction: str) -> None:
    for axis in opened().structure.axes:
        got = by_channel(axis, term, reduction)
        own = f"{reduction}.imp.{root(axis)}"
        assert close(got, golden()[f"taylor.{term}.{own}"], terms_of(term, own))
        if axis.kind == "attention":
            expected = golden()[f"taylor.{term}.{reduction}.imp_head.{root(axis)}"]
            assert close(got.sum(dim=1), expected)


@pytest.mark.parametrize(("term", "reduction"), VARIANTS)
def test_what_scores_lowest_is_what_the_public_code_removed(term: str, reduction: str) -> None:
    for axis in opened().structure.axes:
        got = by_channel(axis, term, reduction).sum(dim=1)
        expected = golden()[f"taylor.{term}.{reduction}.pruned_idx.{root(axis)}"]
        assert lowest(axis, got) == expected.tolist()


@pytest.mark.parametrize(("term", "members"), [v for v in VARIANTS if v[1] in REDUCTIONS])
def test_registered_scores_are_the_public_importances(term: str, members: str) -> None:
    name = f"taylor-{TERMS[term]}"
    for axis in opened().structure.axes:
        tally = statistics()[axis.name]
        got = score(IMPORTANCE[name], axis, None, tally, seed=0, members=members)
        kind = "imp_head" if axis.kind == "attention" else "imp"
        own = f"{members}.{kind}.{root(axis)}"
        assert close(got, golden()[f"taylor.{term}.{own}"], terms_of(term, own))


def test_last_is_the_public_second_for_attention() -> None:
    for axis in opened().structure.axes:
        if axis.kind == "attention":
            terms = statistics()[axis.name]["batch_first"]
            expected = golden()[f"taylor.param_first.second.imp.{root(axis)}"]
            assert close(REDUCTIONS["last"](terms), expected)


def test_a_global_ranking_of_raw_scores_removes_what_the_public_one_did() -> None:
    """One unit a head and one a channel, whatever they cost: no head goes, 168 channels do."""
    tag = "taylor.param_first.sum.global"
    axes = [axis for axis in opened().structure.axes if f"{tag}.imp.{root(axis)}" in golden()]
    scores = {axis.name: by_channel(axis, "param_first", "sum").sum(dim=1) for axis in axes}
    everything = torch.cat(list(scores.values()))
    removed = len(everything) - int(len(everything) * (1 - RATIO))
    threshold = everything.sort().values[removed - 1]
    for axis in axes:
        units = (scores[axis.name] <= threshold).nonzero().flatten()
        expected = golden().get(f"{tag}.pruned_idx.{root(axis)}", torch.tensor([]))
        assert axis.consumer.blocks.indices(units).flatten().tolist() == expected.tolist()


TAGS = [f"taylor.{term}.{reduction}" for term, reduction in VARIANTS] + [
    "taylor.param_first.sum.layers1to3",
    "taylor.param_first.sum.global",
    "l1",
    "l2",
]


@pytest.mark.parametrize("tag", TAGS)
def test_the_cut_model_gives_the_public_logits(tag: str) -> None:
    assert near_logits(cut(opened(), removed_units(opened(), tag)), tag)


def test_a_range_of_layers_loses_what_the_public_code_removed_there() -> None:
    """Layers 1 and 2 of 4, by our own search: heads and channels, one share of each layer."""
    axes = opened().structure.axes
    scores = {axis.name: by_channel(axis, "param_first", "sum") for axis in axes}
    limits = Limits(layers=(1, 2))
    budget = RATIO * sum(axis.units * axis.cost for axis in limits.selected(axes))
    removed = search("uniform", axes, scores, budget, limits=limits)
    expected = removed_units(opened(), "taylor.param_first.sum.layers1to3")
    assert {name: sorted(units) for name, units in removed.items() if units} == expected


def test_pruning_in_two_steps_goes_as_the_public_code_goes() -> None:
    """A quarter, gradients of what is left, and a quarter of the whole once more."""
    tag = "taylor.param_mix.sum.iter2"
    first = cut(opened(), removed_units(opened(), tag))
    once = open_model(first)
    terms = gradients_of(once)
    for axis in once.structure.axes:
        got = REDUCTIONS["sum"](terms[axis.name]["batch_mixed"])
        assert close(got, golden()[f"{tag}.imp_step2.{root(axis)}"])
        count = int(RATIO * opened().structure.by_name[axis.name].units)
        units = got.sum(dim=1).argsort()[:count]
        channels = sorted(axis.consumer.blocks.indices(units).flatten().tolist())
        assert channels == golden()[f"{tag}.pruned_idx_step2.{root(axis)}"].tolist()
    twice = cut(once, removed_units(once, tag, "pruned_idx_step2"))
    assert near_logits(twice, tag)


def test_without_sixteen_hidden_channels_the_logits_are_the_public_ones() -> None:
    tag = "channel_wise.param_first"
    removed = golden()[f"{tag}.pruned_idx.model.norm"].tolist()
    assert near_logits(cut(opened(), {"hidden": removed}), tag)


def test_hidden_channels_own_what_the_public_group_sums_over() -> None:
    """|w g| of all 39 members, with the public gradients: embedding, norms, every linear, head."""
    axis = opened().structures.by_name["hidden"]
    assert len(axis.members) == 39
    total = torch.zeros(axis.units)
    for member in axis.members:
        weight, gradient = opened().weights.tensor(member.tensor), golden()[f"grad.{member.tensor}"]
        total += member.view(weight * gradient, axis.units).abs().flatten(1).sum(dim=1)
    assert close(total, golden()["channel_wise.param_first.imp.model.norm"])

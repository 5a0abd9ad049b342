"""Taylor and magnitude scores against those of LLM-Pruner's public code (shared/golden/llm_pruner).

Gradients are ours, of the streamed pass over its calibration ids; importances must agree to 1e-5,
and what it removed must be what scores lowest here. Its reductions `first` and `second` go by its
own order of members, [q, o, v, k] and [gate, up, down].
"""

import json
from functools import lru_cache
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conftest import shared
from secateur.importance import IMPORTANCE, REDUCTIONS, score
from secateur.importance.magnitude import group_magnitude
from secateur.models import open_model
from secateur.stats import Statistics, Walk, collect_gradients
from secateur.stats.taylor import modules
from secateur.structure import Axis

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
    ids = load_file(shared("golden/llm_pruner/calib_ids.safetensors"))["calib_ids"][:10, :64]
    walk = Walk(opened().streamed(device="cpu"), ids, batch=4)
    needs = [f"batch_{term}" for term in TERMS.values()]
    return collect_gradients(walk, opened().structure.axes, needs)


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


def close(got: Tensor, expected: Tensor) -> bool:
    """To 1e-5 relative; `vector` is a difference of larger numbers, hence the floor."""
    floor = 1e-6 * expected.abs().max().item()
    return torch.allclose(got.flatten(), expected.flatten(), rtol=1e-5, atol=floor)


@pytest.mark.parametrize(("term", "reduction"), VARIANTS)
def test_importances_equal_the_public_ones(term: str, reduction: str) -> None:
    for axis in opened().structure.axes:
        got = by_channel(axis, term, reduction)
        assert close(got, golden()[f"taylor.{term}.{reduction}.imp.{root(axis)}"])
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
        assert close(got, golden()[f"taylor.{term}.{members}.{kind}.{root(axis)}"])


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


@pytest.mark.parametrize("power", [1, 2])
def test_magnitudes_of_whole_groups_equal_the_public_ones(power: int) -> None:
    for axis in opened().structure.axes:
        weights = [
            member.view(opened().weights.tensor(member.tensor), axis.units)
            for member in axis.members
        ]
        got = group_magnitude(weights, power)
        kind = "imp_head" if axis.kind == "attention" else "imp"
        assert close(got, golden()[f"l{power}.{kind}.{root(axis)}"])
        assert lowest(axis, got) == golden()[f"l{power}.pruned_idx.{root(axis)}"].tolist()

"""Structures are data: index maps, costs, and files that give equal values back."""

import json
import re

import pytest
import torch

from conftest import ALL, EVERY_FAMILY, tiny_model
from secateur.errors import SecateurError
from secateur.models import open_model
from secateur.structure import (
    Axis,
    Blocks,
    Coupling,
    Member,
    Plan,
    Slice,
    Structure,
    format_ranges,
    parse_ranges,
)
from secateur.structure.size import ONE


def structure_of(variant: str) -> Structure:
    return open_model(tiny_model(variant)).structure


def test_blocks_cover_contiguous_fused_and_interleaved_layouts() -> None:
    units = torch.tensor([0, 2])
    assert Blocks(0, 4, 4).indices(units).tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    # the k part of a fused [q; k; v] of width 12 + 6 + 6
    assert Blocks(12, 2, 2).indices(units).tolist() == [[12, 13], [16, 17]]
    # the v part of a projection interleaved per head as [q k v] of width 2
    assert Blocks(4, 6, 2).indices(units).tolist() == [[4, 5], [16, 17]]


def test_a_member_sees_rows_and_columns_in_the_same_shape() -> None:
    weight = torch.arange(24.0).view(6, 4)
    rows = Member("m", "weight", (0,), Blocks(0, 2, 2), "producer").view(weight, 3)
    columns = Member("m", "weight", (1,), Blocks(0, 2, 2), "consumer").view(weight, 2)
    assert rows.shape == (3, 2, 4)
    assert columns.shape == (2, 2, 6)
    assert torch.equal(rows[1, 0], weight[2])
    assert torch.equal(columns[1, 0], weight[:, 2])


@pytest.mark.parametrize("variant", ALL)
def test_every_parameter_of_the_decoder_linears_belongs_to_exactly_one_unit(variant: str) -> None:
    model = tiny_model(variant)
    structure = open_model(model).structures
    owned = {name: torch.zeros(p.shape, dtype=torch.int) for name, p in model.named_parameters()}
    for axis in structure.axes:
        if axis.granularity not in ("kv_group", "channel", "expert_channel"):
            continue
        for member in axis.members:
            indices = member.blocks.indices(torch.arange(axis.units)).flatten()
            front = tuple(range(len(member.dims)))
            moved = owned[member.tensor].movedim(member.dims, front)
            flat = moved.flatten(0, len(front) - 1).clone()
            flat[indices] += 1
            owned[member.tensor] = flat.view(moved.shape).movedim(front, member.dims)
    for name, counts in owned.items():
        assert (counts == int(belongs(name, counts.shape))).all(), name
    assert structure.prunable == sum(int(counts.sum()) for counts in owned.values())


def belongs(name: str, shape: torch.Size) -> bool:
    """Whether a parameter is a linear's of a layer, a producer's bias, or a whole-width norm's."""
    inside = re.search(r"attn|attention\.|mlp|ffn|fc1|fc2", name) is not None
    gate = re.search(r"mlp\.(gate|router)\.", name) is not None
    norm = "norm" in name or "ln_" in name
    own_norm = re.search(r"[qk]_norm", name) is not None and shape[0] != 10
    consumer = re.search(
        r"(o_proj|down_proj|out_proj|dense|fc2|c_proj|4h_to_h|fc_out)[._]bias", name
    )
    return (inside and not gate and not norm and not consumer) or (own_norm and not gate)


def test_costs_are_those_of_the_method_contract() -> None:
    D, d, r = 48, 10, 2  # hidden, head_dim, query heads a KV head
    attention, mlp = structure_of("llama-gqa").axes[:2]
    assert attention.cost == D * d * (2 * r + 2)
    assert mlp.cost == 3 * D
    attention, mlp = structure_of("llama-biased").axes[:2]
    assert attention.cost == D * d * (2 * r + 2) + d * (r + 2)
    assert mlp.cost == 3 * D + 2


def test_fingerprints_tell_architectures_and_weights_apart() -> None:
    one, same = (open_model(tiny_model(seed=0)).structure for _ in range(2))
    tuned = open_model(tiny_model(seed=1)).structure
    other = open_model(tiny_model(intermediate_size=60)).structure
    assert (one.architecture, one.weights) == (same.architecture, same.weights)
    assert one.architecture == tuned.architecture
    assert one.weights != tuned.weights
    assert one.architecture != other.architecture


def test_ranges_are_written_for_people_and_read_back() -> None:
    assert format_ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert parse_ranges("0-2, 5,7-8", what="x", size=9) == (0, 1, 2, 5, 7, 8)
    assert parse_ranges(format_ranges([]), what="x", size=9) == ()


@pytest.mark.parametrize("text", ["3-1", "5,5", "4,2", "0-9", "9", "a", "1-", "-1", "1.5"])
def test_bad_ranges_say_what_was_expected(text: str) -> None:
    with pytest.raises(SecateurError, match=r"expected ascending|number or a range"):
        parse_ranges(text, what="--layers", size=9)


def test_plan_survives_json_and_editing() -> None:
    structure = structure_of("llama-gqa")
    keep = {axis.name: tuple(range(1, axis.units)) for axis in structure.axes}
    plan = Plan(
        keep, structure.architecture, structure.weights, "bias", {"seed": 3}, {"ratio": 0.2}
    )
    text = plan.to_json(structure)
    assert Plan.from_json(text) == plan
    raw = json.loads(text)
    raw["axes"][0]["keep"] = "0,2"
    edited = Plan.from_json(json.dumps(raw))
    assert edited.kept(structure.axes[0]) == (0, 2)
    assert edited.removed(structure.axes[0]) == (1,)
    removed = sum(len(plan.removed(axis)) * axis.cost for axis in structure.axes)
    assert json.loads(text)["removed_parameters"] == removed


@pytest.mark.parametrize("variant", EVERY_FAMILY)
def test_query_heads_are_what_their_kv_group_owns_but_for_k_and_v(variant: str) -> None:
    """Of what reads, the heads of a group own all of it; of the rest a part of the group's."""
    by_name = open_model(tiny_model(variant)).structures.by_name
    for heads in by_name.values():
        if heads.granularity != "query_head":
            continue
        groups = by_name[f"layers.{heads.layer}.attention"]
        assert heads.units == groups.units * groups.per_unit
        assert heads.consumer.tensor == groups.consumer.tensor
        own, all_of = (indices_by_group(axis, groups.units) for axis in (heads, groups))
        for tensor, parts in own.items():
            for part, whole in zip(parts, all_of[tensor], strict=True):
                assert part == whole if tensor == heads.consumer.tensor else part <= whole
        assert sum(len(part) for parts in own.values() for part in parts) < sum(
            len(part) for parts in all_of.values() for part in parts
        )


def indices_by_group(axis: Axis, groups: int) -> dict[str, list[set[int]]]:
    found: dict[str, list[set[int]]] = {}
    for member in axis.members:
        rows = member.blocks.indices(torch.arange(axis.units)).reshape(groups, -1).tolist()
        known = found.setdefault(member.tensor, [set() for _ in rows])
        found[member.tensor] = [one | set(row) for one, row in zip(known, rows, strict=True)]
    return found


def test_a_slice_without_a_width_is_an_equal_share() -> None:
    shapes = {"l.up.weight": (12, 5), "l.down.weight": (5, 12)}
    reader = Slice("down", "weight", (1,), "consumer", ONE)
    stated, shared = (
        Coupling("mlp", "channel", (Slice("up", "weight", (0,), "producer", width), reader)).axis(
            0, "l", {"I": 12}, shapes
        )
        for width in (ONE, None)
    )
    assert stated == shared
    assert stated.cost == 10


def test_a_share_of_less_than_one_is_refused() -> None:
    coupling = Coupling("mlp", "channel", (Slice("down", "weight", (1,), "consumer"),))
    with pytest.raises(SecateurError, match="the layout needs 12 for 12 units"):
        coupling.axis(0, "l", {"I": 12}, {"l.down.weight": (5, 7)})

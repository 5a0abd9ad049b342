"""Searches meet their budget, keep their floors, and remove more when more is asked for."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import tiny_model
from secateur.errors import SecateurError
from secateur.models import open_model
from secateur.search import SEARCHES, Limits, removable, search, standardised
from secateur.search.across_layers import al_am
from secateur.search.removal import Removal, remove_lowest
from secateur.structure import Axis

ALL = [name for name, mode in SEARCHES.items() if "by_sample" not in mode.needs]


def lost(gone: Sequence[Mapping[str, tuple[int, ...]]], tokens: int | None) -> Tensor:
    """In place of a divergence, the square of how much each axis loses."""
    sums = [sum(len(units) ** 2 for units in one.values()) for one in gone]
    return torch.tensor(sums, dtype=torch.float64)


def pulled(gates: Mapping[str, Tensor], tokens: int, turn: int) -> tuple[float, dict[str, Tensor]]:
    """In place of a divergence by gates, the sum of squares of what is gone."""
    gone = {name: 1 - gate for name, gate in gates.items()}
    value = sum(float(own.square().sum()) for own in gone.values())
    return value, {name: -2 * own for name, own in gone.items()}


ASKED: dict[str, Any] = {"divergence": lost, "gradient": pulled}


def axes_of(variant: str = "llama-gqa") -> tuple[Axis, ...]:
    return open_model(tiny_model(variant)).structure.axes


def random_scores(axes: tuple[Axis, ...], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        axis.name: torch.rand(axis.units, axis.consumer.blocks.width, generator=generator) ** 3
        for axis in axes
    }


def cost(axes: tuple[Axis, ...], removed: dict[str, tuple[int, ...]]) -> int:
    return sum(len(removed.get(axis.name, ())) * axis.cost for axis in axes)


@pytest.mark.parametrize("align", [1, 8])
@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.5, 0.7])
@pytest.mark.parametrize("name", ["AL-AM", "AL-MM", "uniform", "gates"])
def test_the_budget_is_met_to_within_one_step(name: str, ratio: float, align: int) -> None:
    axes = axes_of()
    budget = ratio * sum(axis.units * axis.cost for axis in axes)
    limits = Limits(align=align)
    removed = search(name, axes, random_scores(axes), budget, limits=limits, **ASKED)
    steps = {"attention": axes[0].cost, "mlp": align * axes[1].cost}
    within = max(steps.values()) if name in ("AL-AM", "gates") else steps["mlp"]
    if name == "uniform":
        within *= 3  # one step in each of three layers
    assert abs(cost(axes, removed) - budget) <= within


@pytest.mark.parametrize("name", ["UL-UM", "UL-MM"])
def test_the_searches_that_round_down_stay_below_the_budget(name: str) -> None:
    axes = axes_of()
    for ratio in (0.1, 0.2, 0.5, 0.7):
        budget = ratio * sum(axis.units * axis.cost for axis in axes)
        assert cost(axes, search(name, axes, random_scores(axes), budget)) <= budget


@pytest.mark.parametrize("align", [1, 8])
@pytest.mark.parametrize("name", ALL)
def test_no_layer_is_emptied_and_widths_stay_on_the_grid(name: str, align: int) -> None:
    axes = axes_of()
    scores = random_scores(axes)
    scores["layers.1.mlp"] *= 1e-9  # everything in this layer looks useless
    scores["layers.2.attention"] *= 0
    limits = Limits(align=align)
    for budget in torch.linspace(0, removable(axes, limits), 7).tolist():
        removed = search(name, axes, scores, budget, limits=limits, **ASKED)
        for axis in axes:
            kept = axis.units - len(removed[axis.name])
            grid = limits.grid(axis)
            assert kept >= grid
            assert kept == axis.units or kept % grid == 0


@pytest.mark.parametrize("name", ALL)
def test_a_larger_ratio_removes_a_superset(name: str) -> None:
    axes = axes_of()
    total = sum(axis.units * axis.cost for axis in axes)
    scores = random_scores(axes)
    plans = [search(name, axes, scores, ratio * total, **ASKED) for ratio in (0, 0.2, 0.4, 0.6)]
    for small, large in itertools.pairwise(plans):
        if name in ("AL-MM", "uniform", "UL-MM", "kl", "gates"):
            continue  # what is left for the MLP can shrink as attention rounds up; or it asks
        assert all(set(small[axis.name]) <= set(large[axis.name]) for axis in axes)
    assert cost(axes, plans[0]) == 0
    assert cost(axes, plans[3]) > cost(axes, plans[2]) > cost(axes, plans[1]) > 0


@pytest.mark.parametrize("name", ALL)
def test_within_an_axis_the_lowest_scores_go(name: str) -> None:
    if SEARCHES[name].asks_gradient:
        pytest.skip("scores are where it begins, and gates the order")
    axes = axes_of()
    scores = random_scores(axes)
    budget = 0.4 * sum(axis.units * axis.cost for axis in axes)
    removed = search(name, axes, scores, budget, **ASKED)
    for axis in axes:
        total = scores[axis.name].sum(1)
        gone = list(removed[axis.name])
        kept = sorted(set(range(axis.units)) - set(gone))
        if gone:
            assert total[gone].max() <= total[kept].min()


def test_layers_outside_the_range_stay_whole() -> None:
    axes = axes_of()
    limits = Limits(layers=(1,))
    budget = 0.2 * sum(axis.units * axis.cost for axis in axes)
    for name in ALL:
        removed = search(name, axes, random_scores(axes), budget, limits=limits, **ASKED)
        assert all(name.startswith("layers.1.") for name in removed)


def test_uniform_removes_the_same_from_every_layer() -> None:
    axes = axes_of()
    budget = 0.3 * sum(axis.units * axis.cost for axis in axes)
    removed = search("uniform", axes, random_scores(axes), budget)
    for kind in ("attention", "mlp"):
        assert len({len(removed[axis.name]) for axis in axes if axis.kind == kind}) == 1


def test_uniform_takes_the_nearest_number_of_heads_of_grouped_queries() -> None:
    """One head goes from each of the groups, or none: whichever is nearer."""
    structure = open_model(tiny_model("llama-gqa")).structures
    axes = structure.select(["query_head", "channel"]).axes
    heads = [axis for axis in axes if axis.granularity == "query_head"]
    groups, of_each = heads[0].groups, heads[0].units // heads[0].groups
    assert groups > 1
    for share in (0.2, 0.3, 0.4, 0.55):
        budget = share * sum(axis.units * axis.cost for axis in axes)
        removed = search("uniform", axes, random_scores(axes), budget)
        nearest = min(round(share * of_each), of_each - 1) * groups
        assert all(len(removed[axis.name]) == nearest for axis in heads)


def test_the_number_of_attention_units_can_be_given() -> None:
    axes = axes_of()
    budget = 0.5 * sum(axis.units * axis.cost for axis in axes)
    for name, wanted in (("AL-MM", 2), ("UL-MM", 3), ("uniform", 3)):
        removed = search(name, axes, random_scores(axes), budget, attention_units=wanted)
        assert sum(len(removed[a.name]) for a in axes if a.kind == "attention") == wanted


def test_a_share_that_is_a_whole_number_of_units_takes_that_number() -> None:
    """Rounded down, a share may lose a unit to the last bit of a division."""
    structure = open_model(tiny_model(intermediate_size=49)).structure  # 49 does, 56 does not
    axes = tuple(axis for axis in structure.axes if axis.kind == "mlp")
    units, total = axes[0].units, sum(axis.units * axis.cost for axis in axes)
    for count in range(1, units):
        removed = search("UL-UM", axes, random_scores(axes), count / units * total)
        assert {len(gone) for gone in removed.values()} == {count}


@pytest.mark.parametrize("name", ["UL-MM", "uniform"])
def test_a_number_of_units_goes_by_the_layers_that_have_some_to_lose(name: str) -> None:
    axes = axes_of()
    budget = 0.3 * sum(axis.units * axis.cost for axis in axes)
    limits = Limits(attention_layers=(0, 1))
    removed = search(name, axes, random_scores(axes), budget, limits=limits, attention_units=2)
    lost = {a.layer: len(removed.get(a.name, ())) for a in axes if a.kind == "attention"}
    assert lost == {0: 1, 1: 1, 2: 0}


@pytest.mark.parametrize("name", ["AL-MM", "UL-MM", "uniform"])
def test_attention_loses_its_own_share_and_the_mlps_give_the_rest(name: str) -> None:
    axes = axes_of()
    attention = [axis for axis in axes if axis.kind == "attention"]
    budget = 0.4 * sum(axis.units * axis.cost for axis in axes)
    for ratio, expected in ((0.0, 0), (0.34, 3)):  # none, or one of three in each of three layers
        removed = search(name, axes, random_scores(axes), budget, attention_ratio=ratio)
        assert sum(len(removed[axis.name]) for axis in attention) == expected
        assert cost(axes, removed) == pytest.approx(budget, abs=len(axes) * axes[0].cost)


def test_each_kind_has_its_own_range_of_layers() -> None:
    axes = axes_of()
    limits = Limits(layers=(0, 1), attention_layers=(2,))
    budget = 0.2 * sum(axis.units * axis.cost for axis in axes)
    for name in ALL:
        removed = search(name, axes, random_scores(axes), budget, limits=limits, **ASKED)
        assert set(removed) == {"layers.0.mlp", "layers.1.mlp", "layers.2.attention"}


def test_attention_shares_that_miss_the_budget_are_refused() -> None:
    axes = axes_of()
    total = sum(axis.units * axis.cost for axis in axes)
    with pytest.raises(SecateurError, match="--attention-ratio"):
        search("AL-MM", axes, random_scores(axes), 0.1 * total, attention_ratio=0.7)
    with pytest.raises(SecateurError, match="--attention-ratio"):
        search("uniform", axes, random_scores(axes), 0.7 * total, attention_ratio=0.0)
    with pytest.raises(SecateurError, match="--search AL-MM"):
        search("AL-AM", axes, random_scores(axes), 0.2 * total, attention_ratio=0.2)


def test_nothing_goes_for_less_than_nothing() -> None:
    removal = Removal.plan(torch.arange(4.0), 10)
    assert remove_lowest({"a": removal}, -5.0, nearest=False) == {"a": 0}


def test_more_than_can_go_is_refused_with_how_much_can() -> None:
    axes = axes_of()
    total = sum(axis.units * axis.cost for axis in axes)
    with pytest.raises(SecateurError, match=r"at most [\d,]+ can go \(\d+\.\d%"):
        search("AL-AM", axes, random_scores(axes), 0.99 * total, limits=Limits(align=8))


def test_adaptive_search_equals_plain_sorting_of_all_units() -> None:
    """Two routes: the vectorised steps, and a list of (score, cost) taken from the bottom."""
    axes = axes_of()
    scores = random_scores(axes)
    total = sum(axis.units * axis.cost for axis in axes)
    removals = {a.name: Removal.plan(standardised(scores[a.name]), a.cost, floor=0) for a in axes}
    steps = al_am(removals, 0.35 * total)
    ranked = sorted(
        (value.item(), axis.cost, axis.name, unit)
        for axis in axes
        for unit, value in enumerate(standardised(scores[axis.name]))
    )
    spent = [0, *itertools.accumulate(entry[1] for entry in ranked)]
    taken = min(range(len(spent)), key=lambda count: abs(spent[count] - 0.35 * total))
    expected = {(name, unit) for _, _, name, unit in ranked[:taken]}
    got = {(name, unit) for name, count in steps.items() for unit in removals[name].units(count)}
    assert got == expected


def test_steps_of_a_width_off_the_grid_lead_onto_it() -> None:
    removal = Removal.plan(torch.rand(172), 5, align=8, floor=8)
    widths = [172, *(172 - removal.ends).tolist()]
    assert widths[:3] == [172, 168, 160]
    assert widths[-1] == 8
    assert removal.costs[:2].tolist() == [20, 40]


def test_ties_go_by_the_order_of_axes_and_units() -> None:
    removals = {name: Removal.plan(torch.zeros(4), 1, floor=0) for name in ("a", "b")}
    steps = remove_lowest(removals, 5, nearest=True)
    assert steps == {"a": 4, "b": 1}
    assert removals["a"].units(2) == (0, 1)


def test_standardised_scores_ignore_scale_and_offset() -> None:
    scores = torch.rand(5, 3)
    assert torch.allclose(standardised(scores * 70 + 3), standardised(scores), atol=1e-4)
    assert torch.equal(standardised(torch.full((4, 2), 3.0)), torch.zeros(4))
    assert torch.equal(standardised(torch.full((1, 1), 3.0)), torch.zeros(1))


@pytest.mark.parametrize(("name", "units"), [("uniform", 4), ("AL-MM", 8), ("UL-MM", 1)])
def test_attention_units_that_cannot_go_are_refused(name: str, units: int) -> None:
    """Nine units in three layers: six can go, and the same number from each by two of the three."""
    axes = axes_of()
    budget = 0.5 * sum(axis.units * axis.cost for axis in axes)
    with pytest.raises(SecateurError, match=f"{units} of the 9 attention units"):
        search(name, axes, random_scores(axes), budget, attention_units=units)
    with pytest.raises(SecateurError, match="can: each layer keeps one"):
        search("AL-MM", axes, random_scores(axes), budget, attention_ratio=0.99)


def test_attention_may_lose_less_than_asked_where_a_search_rounds_down() -> None:
    """Asked for 2.9 of each layer's three units, UL-MM takes two."""
    axes = axes_of()
    budget = 0.5 * sum(axis.units * axis.cost for axis in axes)
    ratio = 2.9 / 3
    removed = search("UL-MM", axes, random_scores(axes), budget, attention_ratio=ratio)
    assert [len(removed[axis.name]) for axis in axes if axis.kind == "attention"] == [2, 2, 2]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_where_all_units_are_worth_the_same_tempered_takes_the_same_share_of_each(
    share: float,
) -> None:
    axes = tuple(axis for axis in axes_of() if axis.kind == "mlp")
    total = sum(axis.units * axis.cost for axis in axes)
    alike = {axis.name: torch.full((axis.units, 1), float(axis.cost)) for axis in axes}
    removed = search("tempered", axes, alike, share * total)
    for axis in axes:
        assert abs(len(removed[axis.name]) - share * axis.units) <= 1

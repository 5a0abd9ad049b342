"""A whole block as the last step of its units: what it costs, what it scores, what it becomes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import tiny_model
from secateur.models import open_model
from secateur.search import SEARCHES, Limits, Removal, remove_lowest, search
from secateur.search.joined import blocks_of, joined, parted

NAMES = ("kv_group", "channel", "attention_block", "mlp_block")


def mixed(*names: str) -> tuple[Any, ...]:
    return (
        open_model(tiny_model())
        .structure.__class__.select(open_model(tiny_model()).structures, names or NAMES)
        .axes
    )


def unit_scores(axes: tuple[Any, ...], seed: int = 0) -> dict[str, Tensor]:
    """Of blocks, the sums of their units'."""
    generator = torch.Generator().manual_seed(seed)
    found = {a.name: torch.rand(a.units, 1, generator=generator) for a in axes if not a.of}
    return found | {a.name: found[a.of[0]].sum()[None, None] for a in axes if a.of}


def test_blocks_are_those_of_all_units_of_an_axis_that_is_there() -> None:
    axes = mixed()
    assert len(blocks_of(axes)) == len([a for a in axes if a.of]) > 3
    assert blocks_of(mixed("attention_block", "mlp_block")) == {}
    assert blocks_of(mixed("kv_group", "channel", "layer")) == {}
    assert set(blocks_of(mixed("kv_group", "channel", "mlp_block")).values()) == {
        a.name for a in axes if a.granularity == "mlp_block"
    }


@pytest.mark.parametrize(("align", "floor"), [(1, 1), (8, 8), (5, 10)])
def test_steps_and_their_scores_add_up_to_the_block(align: int, floor: int) -> None:
    scores = torch.rand(56, generator=torch.Generator().manual_seed(1))
    fine = Removal.plan(scores, 10, align=align, floor=floor)
    block = Removal.plan(scores.sum()[None], 560, floor=0)
    one = joined({"mlp": fine, "block": block}, {"mlp": "block"})["mlp"]
    assert one.ends.tolist() == [*fine.ends.tolist(), 56]
    assert int(one.costs.sum()) == 560
    counts = torch.diff(one.ends, prepend=one.ends.new_zeros(1))
    assert float((one.scores * counts).sum()) == pytest.approx(float(scores.sum()), rel=1e-5)
    assert bool((one.scores.diff() >= 0).all())
    assert remove_lowest({"mlp": one}, 560, nearest=True) == {"mlp": len(one.ends)}


def test_an_axis_loses_units_or_its_block() -> None:
    removals = {"a": Removal.plan(torch.rand(6), 1), "b": Removal.plan(torch.rand(6), 1)}
    gone = {"a": tuple(range(6)), "b": (1, 2)}
    assert parted(gone, removals, {"a": "A", "b": "B"}) == {
        "a": (), "A": (0,), "b": (1, 2), "B": (),
    }  # fmt: skip
    assert parted(gone, removals, {}) == gone


def test_kl_takes_whole_blocks_where_these_are_cheap() -> None:
    """All MLPs do nothing: whole ones go, beside a few units of attention, and nothing twice."""
    axes = mixed()
    scores = unit_scores(axes)
    by_name = {axis.name: axis for axis in axes}

    def divergence(choices: Any, tokens: int | None) -> Tensor:
        sums = []
        for units in choices:
            assert not any(by_name[name].of for name, gone in units.items() if gone)
            losses = [
                len(gone) / by_name[name].units * (0.001 if by_name[name].kind == "mlp" else 1)
                for name, gone in units.items()
            ]
            sums.append(sum(losses) + 1e-9)
        return torch.tensor(sums, dtype=torch.float64)

    mlps = sum(a.cost for a in axes if a.granularity == "mlp_block")
    gone = search("kl", axes, scores, 1.02 * mlps, limits=Limits(), divergence=divergence)
    assert SEARCHES["kl"].joins
    for axis in axes:
        if axis.granularity == "mlp_block":
            assert gone[axis.name] == (0,)
            assert gone[axis.of[0]] == ()
    lost = sum(len(gone[a.name]) * a.cost for a in axes)
    step = next(a.cost for a in axes if a.granularity == "kv_group")
    assert abs(lost - 1.02 * mlps) <= step

"""Laws of the searches by stability, and of the scales that a ranking over layers can have."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from conftest import tiny_model
from secateur.errors import SecateurError, SecateurWarning
from secateur.models import open_model
from secateur.search import (
    SCALES,
    Limits,
    channel_sum,
    fluctuation,
    instability,
    rescaled,
    search,
    standardised,
)
from secateur.structure import Axis

BY_SAMPLE = ["two_stage", "joint", "stability"]

pytestmark = pytest.mark.filterwarnings("ignore:The search 'stability' ignores importance")


def axes_of() -> tuple[Axis, ...]:
    return open_model(tiny_model()).structure.axes


def samples_of(axes: tuple[Axis, ...], count: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        axis.name: torch.rand(axis.units, generator=generator)
        * torch.rand(count, axis.units, generator=generator)
        for axis in axes
    }


def means(samples: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.mean(0)[:, None] for name, values in samples.items()}


def total_of(axes: tuple[Axis, ...]) -> int:
    return sum(axis.units * axis.cost for axis in axes)


def test_fluctuation_does_not_see_scale_and_is_zero_for_identical_samples() -> None:
    samples = torch.rand(5, 20, generator=torch.Generator().manual_seed(0))
    plain = fluctuation(samples)
    assert torch.allclose(fluctuation(1e-20 * samples.double()), plain, rtol=1e-5)
    by_hand = fluctuation(torch.tensor([[1.0], [3.0]]))  # the spread of a sample: sqrt(2) over 2
    assert float(by_hand) == pytest.approx(0.5**0.5)
    by_unit = torch.linspace(0.01, 100, 20)
    assert torch.allclose(fluctuation(samples * by_unit), plain, rtol=1e-5)
    same = fluctuation(samples[:1].expand(4, 20))
    assert torch.equal(same, torch.zeros(20, dtype=torch.float64))
    assert torch.equal(fluctuation(torch.zeros(4, 20)), torch.zeros(20, dtype=torch.float64))


def test_instability_is_standard_within_its_scope_and_follows_fluctuation() -> None:
    samples = torch.rand(5, 200, generator=torch.Generator().manual_seed(0))
    samples[:, 3] = 0.25  # never varies: the steadiest, and finite
    value = instability(samples)
    assert torch.isfinite(value).all()
    assert value.mean().abs() < 1e-5
    assert value.std() == pytest.approx(1, rel=1e-4)
    assert value.argmin() == 3
    assert value.argsort().tolist() == fluctuation(samples).argsort().tolist()


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("align", [1, 8])
@pytest.mark.parametrize("name", [*BY_SAMPLE, "global"])
def test_the_budget_is_met_to_within_one_step(name: str, align: int, ratio: float) -> None:
    axes = axes_of()
    samples = samples_of(axes)
    budget = ratio * total_of(axes)
    removed = search(
        name, axes, means(samples), budget, limits=Limits(align=align), by_sample=samples
    )
    spent = sum(len(removed[axis.name]) * axis.cost for axis in axes)
    assert abs(spent - budget) <= max(axes[0].cost, align * axes[1].cost)


@pytest.mark.parametrize("name", [*BY_SAMPLE, "global"])
def test_a_larger_ratio_removes_a_superset(name: str) -> None:
    axes = axes_of()
    samples = samples_of(axes)
    plans = [
        search(name, axes, means(samples), ratio * total_of(axes), by_sample=samples)
        for ratio in (0.0, 0.15, 0.4, 0.6)
    ]
    for small, large in itertools.pairwise(plans):
        assert all(set(small[axis.name]) <= set(large[axis.name]) for axis in axes)


def test_two_stage_counts_by_instability_and_picks_by_importance() -> None:
    axes = axes_of()
    samples = samples_of(axes)
    budget = 0.4 * total_of(axes)
    picked = search("two_stage", axes, means(samples), budget, by_sample=samples)
    by_volatility = search("stability", axes, means(samples), budget, by_sample=samples)
    for axis in axes:
        assert len(picked[axis.name]) == len(by_volatility[axis.name])
        order = samples[axis.name].mean(0).argsort(stable=True).tolist()
        assert set(picked[axis.name]) == set(order[: len(picked[axis.name])])


def test_stability_removes_the_most_volatile_and_says_that_it_is_poor() -> None:
    axes = axes_of()
    samples = samples_of(axes)
    with pytest.warns(SecateurWarning, match="two_stage keeps it"):
        removed = search("stability", axes, means(samples), 0.3 * total_of(axes), by_sample=samples)
    for axis in axes:
        value = instability(samples[axis.name])
        gone = list(removed[axis.name])
        kept = sorted(set(range(axis.units)) - set(gone))
        if gone:
            assert value[gone].min() >= value[kept].max()


def test_joint_is_importance_where_all_are_equally_steady() -> None:
    axes = axes_of()
    scores = means(samples_of(axes))
    factors = torch.tensor([[0.5], [1.0], [1.5]])
    samples = {name: factors * value[:, 0] for name, value in scores.items()}
    budget = 0.4 * total_of(axes)
    joint = search("joint", axes, scores, budget, by_sample=samples)
    assert joint == search("AL-AM", axes, scores, budget)


@pytest.mark.parametrize("name", BY_SAMPLE)
def test_without_two_samples_the_cure_is_told(name: str) -> None:
    axes = axes_of()
    scores = means(samples_of(axes))
    with pytest.raises(SecateurError, match=f"'{name}' compares .*\nType --search AL-AM"):
        search(name, axes, scores, 100.0)
    with pytest.raises(SecateurError, match=r"there is 1\.\nType --samples 2"):
        search(name, axes, scores, 100.0, by_sample=samples_of(axes, count=1))


@pytest.mark.parametrize("how", list(SCALES))
def test_every_scale_keeps_the_order_within_an_axis(how: str) -> None:
    scores = torch.rand(30, 4, generator=torch.Generator().manual_seed(0))
    order = channel_sum(scores).argsort().tolist()
    assert rescaled(scores, how).argsort().tolist() == order
    assert torch.isfinite(rescaled(torch.zeros(3, 2), how)).all()
    assert torch.isfinite(rescaled(torch.tensor([[0.0], [1.0], [2.0]]), how)).all()


def test_the_logarithmic_scale_does_not_see_the_size_of_an_axis() -> None:
    scores = torch.rand(30, 4, generator=torch.Generator().manual_seed(0)) + 0.01
    assert torch.allclose(rescaled(1e3 * scores, "log"), rescaled(scores, "log"), atol=1e-5)
    assert rescaled(scores, "log").mean().abs() < 1e-6
    assert torch.equal(rescaled(scores, "standardised"), standardised(scores))
    with pytest.raises(SecateurError, match=r"Unknown scale 'logs'. Did you mean 'log'"):
        rescaled(scores, "logs")


def test_global_is_one_ranking_per_parameter_and_the_scale_can_be_another() -> None:
    """A layer a thousand times less important loses first by raw scores, not by the other two."""
    axes = axes_of()
    scores = {name: 0.5 + value for name, value in means(samples_of(axes)).items()}
    scores["layers.1.mlp"] = scores["layers.1.mlp"] * 1e-3
    budget = 40 * axes[1].cost
    raw = search("global", axes, scores, budget, scale="raw")
    assert {name: len(gone) for name, gone in raw.items() if gone} == {"layers.1.mlp": 40}
    assert search("global", axes, scores, budget) == search(
        "global", axes, scores, budget, scale="per-parameter"
    )
    for scale in ("standardised", "log"):
        assert search("global", axes, scores, budget, scale=scale) != raw
    assert search("global", axes, scores, budget, scale="standardised") == search(
        "AL-AM", axes, scores, budget
    )
    assert search("AL-AM", axes, scores, budget, scale="raw") == raw


def test_per_parameter_is_the_order_of_a_knapsack() -> None:
    """Of two units worth the same, the one that frees more parameters goes first."""
    axes = axes_of()
    scores = {axis.name: torch.full((axis.units, 1), 1.0) for axis in axes}
    cost = {axis.kind: axis.cost for axis in axes}
    assert cost["attention"] > cost["mlp"]
    budget = 6 * cost["attention"]
    removed = search("global", axes, scores, budget)
    assert {axis.kind for axis in axes if removed[axis.name]} == {"attention"}
    assert torch.equal(rescaled(torch.ones(2, 3), "per-parameter", 6), torch.full((2,), 0.5))


def test_instability_and_joint_are_their_equations() -> None:
    """Two units worth the same: the less steady one goes first."""
    generator = torch.Generator().manual_seed(3)
    samples = torch.rand(7, 5, generator=generator, dtype=torch.float64) + torch.arange(5.0)
    cv = (samples.std(dim=0) / samples.mean(dim=0)).log()
    expected = (cv - cv.mean()) / cv.std()
    assert torch.allclose(instability(samples).double(), expected, atol=1e-5)
    joint = standardised(samples.mean(dim=0)[:, None]).double() - 0.1 * expected
    assert order_by_joint(samples) == joint.argsort().tolist()


def order_by_joint(samples: Tensor) -> list[int]:
    """The order in which `joint` takes the units of an axis that is alone."""
    axis = replace(axes_of()[1], units=samples.shape[1])
    own, by_sample = {axis.name: samples.mean(dim=0)[:, None]}, {axis.name: samples}
    gone = [
        set(search("joint", [axis], own, count * axis.cost, by_sample=by_sample)[axis.name])
        for count in range(axis.units)
    ]
    return [min(more - less) for less, more in itertools.pairwise([*gone, set(range(axis.units))])]

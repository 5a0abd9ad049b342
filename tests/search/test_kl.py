"""The search by KL: its knapsack against brute force, its moves against a model that is known."""

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from secateur.search import Removal, Rounds, cost_of
from secateur.search.kl import (
    MOVED_ON,
    PRICED_ON,
    cheapest,
    grids_of,
    kl,
    lines,
    nearest,
    priced,
)


def some(seed: int, sizes: Sequence[tuple[int, int, int]]) -> dict[str, Removal]:
    """Removals of axes with so many units, of a cost, in steps of so many."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layers.{i}": Removal.plan(torch.rand(units, generator=generator), cost, align=align)
        for i, (units, cost, align) in enumerate(sizes)
    }


SIZES = ((4, 7, 1), (6, 3, 2), (5, 5, 1), (9, 2, 3))


def rising(removals: dict[str, Removal], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(len(one.ends) + 1, generator=generator).double().cumsum(0)
        for name, one in removals.items()
    }


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget", [10.0, 23.0, 41.0])
def test_the_knapsack_is_the_best_of_all_choices_that_cost_as_much(
    seed: int, budget: float
) -> None:
    removals = some(seed, SIZES)
    prices = rising(removals, seed)
    found = cheapest(prices, removals, budget)
    spent = cost_of(found, removals)
    every = itertools.product(*(range(len(one.ends) + 1) for one in removals.values()))
    alike = [
        steps
        for steps in (dict(zip(removals, counts, strict=True)) for counts in every)
        if cost_of(steps, removals) == spent
    ]
    best = min(float(sum(prices[n][s] for n, s in steps.items())) for steps in alike)
    assert float(sum(prices[n][s] for n, s in found.items())) == pytest.approx(best)
    most = max(int(one.costs.max()) for one in removals.values())
    assert budget - most < spent <= budget + 1


@pytest.mark.parametrize("budget", [0.0, 17.0, 60.0, 1000.0])
def test_steps_come_as_near_to_the_budget_as_one_step_more_or_less(budget: float) -> None:
    removals = some(0, SIZES)
    steps = nearest(dict.fromkeys(removals, 1), rising(removals, 0), removals, budget)
    off = abs(budget - cost_of(steps, removals))
    for name, one in removals.items():
        for way in (-1, 1):
            if 0 <= steps[name] + way <= len(one.ends):
                other = {**steps, name: steps[name] + way}
                assert abs(budget - cost_of(other, removals)) >= off


def known(weights: dict[str, float], asked: list[int | None]) -> Callable[..., Tensor]:
    """A divergence that is a sum of squares, and worse where neighbours lose much together."""

    def divergence(choices: Sequence[dict[str, int]], tokens: int | None) -> Tensor:
        asked.append(tokens)
        sums = []
        for steps in choices:
            own = [weights[name] * steps.get(name, 0) ** 2 for name in weights]
            both = sum(a * b for a, b in itertools.pairwise(own))
            sums.append(sum(own) + both)
        return torch.tensor(sums, dtype=torch.float64)

    return divergence


def all_prices(
    removals: dict[str, Removal], divergence: Callable[..., Tensor]
) -> dict[str, Tensor]:
    found = [priced(grid, divergence) for grid in grids_of(removals)]
    return lines({level: price for one in found for level, price in one.items()}, removals)


def test_moves_find_what_prices_of_single_axes_do_not_say() -> None:
    removals = some(1, [(41, 10, 1)] * 6)
    weights = {name: 0.01 * (1 + i) for i, name in enumerate(removals)}
    asked: list[int | None] = []
    divergence = known(weights, asked)
    budget = 600.0
    prices = all_prices(removals, divergence)
    assert set(asked) == {PRICED_ON}
    start = nearest(cheapest(prices, removals, budget), prices, removals, budget)
    end = kl(removals, budget, divergence, torch.Generator().manual_seed(0), Rounds())
    assert set(asked) == {PRICED_ON, MOVED_ON, None}
    assert cost_of(start, removals) == cost_of(end, removals) == budget
    before, after = divergence([start, end], None).tolist()
    assert after < 0.97 * before


def test_prices_are_asked_at_some_steps_and_lie_on_lines_between() -> None:
    removals = some(2, [(3, 10, 1), (64, 1, 1)])
    prices = all_prices(removals, known(dict.fromkeys(removals, 0.1), []))
    first, second = prices.values()
    assert first.tolist() == pytest.approx([0.0, 0.1, 0.4])
    assert len(second) == len(removals["layers.1"].ends) + 1
    assert bool((second.diff() >= 0).all())
    exact = 0.1 * torch.arange(len(second)).double() ** 2
    assert float((second - exact).min()) >= -1e-9  # a chord of what curves upwards lies above it


def test_the_same_seed_gives_the_same_choice() -> None:
    removals = some(3, [(20, 10, 1)] * 4)
    divergence = known(dict.fromkeys(removals, 0.1), [])
    one, other = (
        kl(removals, 200.0, divergence, torch.Generator().manual_seed(5), Rounds())
        for _ in range(2)
    )
    assert one == other
    assert cost_of(one, removals) == 200


@pytest.mark.parametrize("ratio", [0.0, 0.4])
def test_a_single_axis_is_weighed_against_nothing(ratio: float) -> None:
    removals = some(4, [(20, 10, 1)])
    asked: list[int | None] = []
    divergence = known(dict.fromkeys(removals, 0.1), asked)
    found = kl(removals, ratio * 200, divergence, torch.Generator().manual_seed(0), Rounds())
    assert cost_of(found, removals) == ratio * 200
    assert not asked


def test_every_level_is_in_one_round_and_the_first_has_the_ends() -> None:
    removals = some(5, [(3, 10, 1), (64, 1, 1), (40, 2, 8), (1, 5, 1)])
    coarse, *finer = grids_of(removals)
    every = [level for grid in (coarse, *finer) for level in grid]
    assert len(every) == len(set(every))
    for name, one in removals.items():
        steps = len(one.ends)
        assert (name, steps) in coarse or steps == 0
        assert all(0 < level <= steps for own, level in every if own == name)
    assert len(coarse) > max(map(len, finer)) > 0


def test_no_round_ends_with_worse_than_the_one_before() -> None:
    """On what is asked of both; a search of fewer rounds is the beginning of one of more."""
    removals = some(1, [(41, 10, 1)] * 6)
    divergence = known({name: 0.01 * (1 + i) for i, name in enumerate(removals)}, [])
    ends = []
    for most in range(1, 17):
        rounds = Rounds(most=most)
        steps = kl(removals, 600.0, divergence, torch.Generator().manual_seed(0), rounds)
        assert (rounds.done, rounds.all) == (most, 16)
        assert float(divergence([steps], None)) == rounds.divergence
        assert cost_of(steps, removals) == 600
        ends.append(float(rounds.divergence))
    assert ends == sorted(ends, reverse=True)
    assert ends[-1] < ends[0]

"""Gates that are trained: toys whose answers are known."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from secateur.search import SEARCHES, Removal, cost_of
from secateur.search.gates import STEPS, TOKENS, Order, downwards, gates, within

Toy = Callable[[Mapping[str, Tensor], int, int], tuple[float, dict[str, Tensor]]]
COSTS = {"layers.0.attention": 40, "layers.0.mlp": 3, "layers.1.mlp": 2}
COUNTS = {"layers.0.attention": 6, "layers.0.mlp": 60, "layers.1.mlp": 80}


def removals_of(scores: Mapping[str, Tensor]) -> dict[str, Removal]:
    return {name: Removal.plan(own, COSTS[name]) for name, own in scores.items()}


def search(scores: Mapping[str, Tensor], budget: float, toy: Toy) -> dict[str, tuple[int, ...]]:
    found = gates(removals_of(scores), budget, toy, removals_of)
    return dict(found)


def drawn(seed: int) -> dict[str, Tensor]:
    """What every unit is worth: a parameter of some is worth much more than of others."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: COSTS[name] * torch.randn(count, generator=generator).exp()
        for name, count in COUNTS.items()
    }


def differentiable(value: Callable[[dict[str, Tensor]], Tensor], asked: list[int]) -> Toy:
    def toy(gates: Mapping[str, Tensor], tokens: int, turn: int) -> tuple[float, dict[str, Tensor]]:
        asked.append(tokens)
        leaves = {name: gate.clone().requires_grad_() for name, gate in gates.items()}
        total = value(leaves)
        return total.item(), dict(
            zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True)
        )

    return toy


def gone(worth: Mapping[str, Tensor], units: Mapping[str, tuple[int, ...]]) -> float:
    return sum(float(worth[name][list(own)].sum()) for name, own in units.items())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_of_units_that_add_up_those_worth_least_for_their_cost_go(seed: int, ratio: float) -> None:
    """Whatever the scores said."""
    worth, asked = drawn(seed), list[int]()
    toy = differentiable(
        lambda gates: sum(
            (0.5 * worth[name] * (1 - gate) ** 2).sum() for name, gate in gates.items()
        ),
        asked,
    )
    budget = ratio * sum(COSTS[name] * count for name, count in COUNTS.items())
    scores = drawn(seed + 100)  # as good as none
    found, best = search(scores, budget, toy), search(worth, budget, toy)
    start = {n: removals_of(scores)[n].units(c) for n, c in by_score(scores, budget).items()}
    assert gone(worth, found) < gone(worth, best) + 0.15 * (gone(worth, start) - gone(worth, best))
    assert abs(cost_of(found, removals_of(scores)) - budget) <= max(COSTS.values())
    assert len(asked) == 2 * (STEPS + 2)
    assert asked[0] == TOKENS


def by_score(scores: Mapping[str, Tensor], budget: float) -> dict[str, int]:
    one = {"removals": removals_of(scores), "budget": budget}
    scaled = {n: Removal.plan(s / COSTS[n], COSTS[n]) for n, s in scores.items()}
    return dict(SEARCHES["global"].function(**{**one, "removals": scaled}))


def test_of_units_that_stand_in_for_one_another_one_stays() -> None:
    """Each alone is worth nothing, so that no score of single units knows it."""
    worth = drawn(0)

    def value(gates: dict[str, Tensor]) -> Tensor:
        total = torch.zeros(())
        for name, gate in gates.items():
            missing = (1 - gate.view(-1, 2).sum(dim=1)).relu()
            total = total + (worth[name].view(-1, 2)[:, 0] * missing**2).sum()
        return total

    budget = 0.4 * sum(COSTS[name] * count for name, count in COUNTS.items())
    alike = {name: own.view(-1, 2)[:, :1].expand(-1, 2).flatten() for name, own in worth.items()}
    toy = differentiable(value, [])
    order = Order.of(removals_of(alike))
    found = search(alike, budget, toy)
    both = {n: torch.tensor([2 * p in u and 2 * p + 1 in u for p in range(COUNTS[n] // 2)])
            for n, u in found.items()}  # fmt: skip
    assert sum(int(own.sum()) for own in both.values()) < 0.1 * sum(COUNTS.values()) / 2
    start = {n: removals_of(alike)[n].units(c) for n, c in by_score(alike, budget).items()}
    assert toy(order.without(found), 1, 0)[0] < 0.1 * toy(order.without(start), 1, 0)[0]


def test_the_same_gradients_give_the_same_choice() -> None:
    worth = drawn(1)
    toy = differentiable(
        lambda gates: sum((worth[n] * (1 - gate) ** 2).sum() for n, gate in gates.items()), []
    )
    assert search(drawn(2), 150.0, toy) == search(drawn(2), 150.0, toy)


def test_what_is_no_nearer_than_the_choice_of_the_scores_is_dropped() -> None:
    """A gradient that points the wrong way."""
    worth = drawn(3)

    def toy(gates: Mapping[str, Tensor], tokens: int, turn: int) -> tuple[float, dict[str, Tensor]]:
        value = sum(float((worth[n] * (1 - gate)).sum()) for n, gate in gates.items())
        return value, dict(worth)

    even = differentiable(lambda gates: sum(gate.sum() * 0 for gate in gates.values()), [])
    assert search(worth, 200.0, toy) == search(worth, 200.0, even)
    assert any(search(worth, 200.0, toy).values())


def test_for_no_budget_nothing_is_asked() -> None:
    asked: list[int] = []
    found = search(drawn(0), 0.0, differentiable(lambda gates: torch.zeros(()), asked))
    assert not any(found.values())
    assert not asked


@pytest.mark.parametrize("temperature", [0.1, 0.002])
@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.9])
def test_gates_take_away_what_the_budget_asks_for(ratio: float, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(50, generator=generator).double()
    costs = torch.randint(1, 40, (50,), generator=generator).double()
    opened = within(places, costs, ratio * float(costs.sum()), temperature)
    assert float((costs * (1 - opened)).sum()) == pytest.approx(ratio * float(costs.sum()))
    assert bool((opened[places.argsort()].diff() >= 0).all())


def test_at_the_margin_what_is_worth_less_than_its_cost_gives_way() -> None:
    costs = torch.tensor([1.0, 10.0, 1.0, 10.0]).double()
    by_gate = -torch.tensor([1.0, 10.0, 4.0, 5.0]).double()  # worth 1, 1, 4 and a half
    way = downwards(by_gate, torch.full((4,), 0.5).double(), costs)
    assert float(way[0]) == pytest.approx(float(way[1]))
    assert float(way[2]) < float(way[0]) < float(way[3])
    assert float((way * costs).sum()) == pytest.approx(0)  # the budget is kept
    assert not downwards(by_gate, torch.ones(4).double(), costs).any()


def test_units_that_stay_whatever_happens_come_last() -> None:
    removals = {"layers.0.mlp": Removal.plan(torch.arange(10.0), 3, align=4, floor=4)}
    places = Order.of(removals).places
    assert places.argsort()[-4:].tolist() == [6, 7, 8, 9]
    assert float(places.max()) < 1

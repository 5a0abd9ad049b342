"""How much each layer loses, by what that does to the model's predictions.

    price of an axis at a level    KL(dense || that axis alone cut and fitted)
    start                          the choice within the budget whose prices have the least sum, or
                                   that of the scores (`global`): the one whose KL is less
    moves                          an axis loses more, another as much less; kept where the KL of
                                   the whole choice falls

Prices of single axes do not add up, least of all where much goes, so that they are a start and not
the answer. Each KL is that of a model whose consumers were fitted at once, on an eighth of the
windows (which scores and fits have seen, and by which no method is judged): prices on a few, moves
on more, the last ones on all.

Where whole blocks may go beside finer units (`--granularity kv_group,channel,mlp_block`), a block
is one step more of its axis (`joined`): it has a price, and takes part in moves.

The search goes in rounds (`rounds`), each of which ends with the best so far: prices on a coarse
grid of levels, those of one level more a round, then moves. So it can end after any of them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from .registry import Divergence, register_search
from .removal import Removal, cost_of, remove_lowest
from .rounds import Rounds

# Shares of its units at which an axis is priced: at first, and those that each round adds. Of one
# with few steps, each step is a level at once.
COARSE, FINER = (0.17, 0.42, 0.8), (0.28, 0.08, 0.6)
FEW_STEPS = 4
# Tokens that prices and moves are taken on, rounds of moves, and candidates of a round.
PRICED_ON, MOVED_ON = 2**11, 2**12
ROUNDS, MOVES = 12, 16
# What a round of moves asks: its candidates, and on how many tokens.
MOVES_ASKED = tuple((1 + MOVES, None if n >= ROUNDS * 3 // 4 else MOVED_ON) for n in range(ROUNDS))
# Candidates that are asked about together, and parts that the budget is divided into.
_AT_ONCE, _PARTS = 64, 2000
# The largest move, as a share of the budget; later ones are smaller.
_LARGEST = 1 / 16

Steps = dict[str, int]
Prices = Mapping[str, Tensor]
# Levels of axes, a number of steps each, and what was found of some.
Levels = Sequence[tuple[str, int]]
Known = Mapping[tuple[str, int], float]


@register_search("kl", paper="https://arxiv.org/abs/2302.04089", scale="raw", joins=True)
def kl(
    removals: Mapping[str, Removal],
    budget: float,
    divergence: Divergence,
    generator: torch.Generator,
    rounds: Rounds,
) -> Steps:
    """Prices of single layers by the KL to the dense model, then moves between layers."""
    best = by_scores(removals, budget)
    if len(removals) < 2 or budget <= 0:  # there is nothing to weigh
        return best
    grids, known = grids_of(removals), dict[tuple[str, int], float]()
    prices = lines(known, removals)
    for number in rounds.of([*((len(grid) + 3, PRICED_ON) for grid in grids), *MOVES_ASKED]):
        tokens: int | None = MOVED_ON
        if number < len(grids):
            known |= priced(grids[number], divergence)
            prices = lines(known, removals)
            starts = cheapest(prices, removals, budget), by_scores(removals, budget)
            tried = [nearest(steps, prices, removals, budget) for steps in starts]
        else:
            turn = number - len(grids)
            tried = moves(turn, best, prices, removals, budget, generator)
            _, tokens = MOVES_ASKED[turn]
        tried = [best, *(steps for steps in tried if steps != best)]
        found = divergence(tried, tokens)
        best = tried[int(found.argmin())]
        rounds.found(float(found.min()))
    return best


def by_scores(removals: Mapping[str, Removal], budget: float) -> Steps:
    """The steps whose scores are lowest, each at its cost in parameters."""
    by_cost = {name: replace(one, scores=one.scores / one.cost) for name, one in removals.items()}
    return remove_lowest(by_cost, budget, nearest=True)


def grids_of(removals: Mapping[str, Removal]) -> list[Levels]:
    """The levels at which axes are priced, round by round; the first has each axis' last one."""
    grids: list[list[tuple[str, int]]] = [[] for _ in range(1 + len(FINER))]
    for name, removal in removals.items():
        steps, units = len(removal.ends), len(removal.order)
        there: set[int] = set()
        for grid, shares in zip(grids, (COARSE, *((share,) for share in FINER)), strict=True):
            levels = {max(1, removal.steps_for(round(share * units))) for share in shares}
            if steps <= FEW_STEPS:
                levels = set(range(1, steps + 1))
            elif not there:
                levels.add(steps)
            grid += [(name, level) for level in sorted(levels - there)]
            there |= levels
    return [grid for grid in grids if grid]


def priced(levels: Levels, divergence: Divergence) -> dict[tuple[str, int], float]:
    """What axes cost alone at these levels."""
    found: list[float] = []
    for start in range(0, len(levels), _AT_ONCE):
        asked = [{name: level} for name, level in levels[start : start + _AT_ONCE]]
        found += divergence(asked, PRICED_ON).tolist()
    return dict(zip(levels, found, strict=True))


def lines(known: Known, removals: Mapping[str, Removal]) -> dict[str, Tensor]:
    """What each number of steps of an axis costs alone, [1 + step] fp64; between levels, a line."""
    prices = {}
    for name, removal in removals.items():
        own = {0: 0.0, **{level: found for (axis, level), found in known.items() if axis == name}}
        at = sorted(own)
        values = torch.tensor([own[level] for level in at], dtype=torch.float64)
        prices[name] = _line(at, values.cummax(dim=0).values, len(removal.ends))
    return prices


def _line(at: Sequence[int], values: Tensor, steps: int) -> Tensor:
    """Values at 0, 1, ... `steps`, of those that are known at some of them."""
    found = torch.zeros(steps + 1, dtype=torch.float64)
    for (left, right), (low, high) in zip(pairwise(at), pairwise(values), strict=True):
        places = torch.arange(left, right + 1)
        found[left : right + 1] = low + (high - low) * (places - left) / (right - left)
    return found


def cheapest(prices: Prices, removals: Mapping[str, Removal], budget: float) -> Steps:
    """The steps with the least sum of prices, of those that cost the budget: a knapsack.

    Costs are counted in parts of the budget, so that it is met nearly.
    """
    part = max(budget / _PARTS, 1.0)
    parts = round(budget / part)
    best = torch.full((parts + 1,), math.inf, dtype=torch.float64)
    best[0] = 0.0
    chosen: dict[str, Tensor] = {}
    costs = {name: _in_parts(removal, part) for name, removal in removals.items()}
    for name, own in costs.items():
        options = torch.full((len(own), parts + 1), math.inf, dtype=torch.float64)
        for step, cost in enumerate(own):
            if cost <= parts:
                options[step, cost:] = best[: parts + 1 - cost] + prices[name][step]
        best, chosen[name] = options.min(dim=0)
    left = int(best.isfinite().nonzero()[-1])
    found: Steps = {}
    for name, steps in reversed(chosen.items()):
        found[name] = int(steps[left])
        left -= costs[name][found[name]]
    return {name: found[name] for name in removals}


def _in_parts(removal: Removal, part: float) -> list[int]:
    """What each number of steps costs, in parts."""
    sums = torch.cat([removal.costs.new_zeros(1), removal.costs.cumsum(0)])
    found: list[int] = (sums.double() / part).round().long().tolist()
    return found


def nearest(steps: Steps, prices: Prices, removals: Mapping[str, Removal], budget: float) -> Steps:
    """The steps brought nearer to the budget, one at a time, the cheapest of them first."""
    steps = dict(steps)
    while True:
        short = budget - cost_of(steps, removals)
        way = 1 if short > 0 else -1
        rates: dict[str, float] = {}
        for name, removal in removals.items():
            after = steps[name] + way
            if not 0 <= after <= len(removal.ends):
                continue
            cost = int(removal.costs[max(after, steps[name]) - 1])
            if abs(short - way * cost) < abs(short):
                change = float(prices[name][after] - prices[name][steps[name]])
                rates[name] = change / cost
        if not rates:
            return steps
        steps[min(rates, key=rates.__getitem__)] += way


def moves(
    turn: int,
    steps: Steps,
    prices: Prices,
    removals: Mapping[str, Removal],
    budget: float,
    generator: torch.Generator,
) -> list[Steps]:
    """What moves between axes make of `steps`, in this turn of moves."""
    share = _LARGEST / 2 ** (turn * 4 // ROUNDS)
    tried: list[Steps] = []
    for _ in range(MOVES):
        one = _move(steps, removals, share * budget, generator)
        one = nearest(one, prices, removals, budget)
        if one not in tried:
            tried.append(one)
    return tried


def _move(
    steps: Steps, removals: Mapping[str, Removal], most: float, generator: torch.Generator
) -> Steps:
    """An axis loses about as much more as another loses less; which and how much is drawn."""
    names = list(removals)
    more, less = (names[i] for i in torch.randperm(len(names), generator=generator)[:2].tolist())
    amount = most * float(torch.rand((), generator=generator))
    return {
        **steps,
        more: _shifted(removals[more], steps[more], amount),
        less: _shifted(removals[less], steps[less], -amount),
    }


def _shifted(removal: Removal, steps: int, amount: float) -> int:
    """So many steps that an axis loses about `amount` parameters more: one step at least."""
    each = float(removal.costs.double().mean()) if len(removal.ends) else 1.0
    change = max(round(abs(amount) / each), 1) * (1 if amount > 0 else -1)
    return min(max(steps + change, 0), len(removal.ends))

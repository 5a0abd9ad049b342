"""How long models take to the first token and for each after it, in turns, within a stated time.

    speedup of a round = seconds of the last model / seconds of the first

In a round every model takes one prompt, or decodes one token, in one order and then in the other:
whatever else the machine does is shared. One round that counts for nothing warms code and memory. A
speedup is taken round by round; told are medians and quartiles over the rounds.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..budgets import decoding, prompting

Stage = Literal["prompt", "decoding"]

# Rounds of a case that count, at most: as many as there is time for.
MOST: dict[Stage, int] = {"prompt": 15, "decoding": 60}


@dataclass(frozen=True, slots=True)
class Case:
    """What is timed: a prompt of `context` tokens, or decoding with so many in the cache.

    `macs` are about those of all models together.
    """

    stage: Stage
    batch: int
    context: int
    macs: int


@dataclass(frozen=True)
class Timed:
    """Seconds of each model in each round [round][model]; none if there was no time for the case.

    Of decoding, the seconds are those of one token of every sequence.
    """

    case: Case
    rounds: tuple[tuple[float, ...], ...]

    def seconds(self, model: int) -> list[float]:
        """Those of one model, by round."""
        return [one[model] for one in self.rounds]

    @property
    def speedups(self) -> list[float]:
        """How many times as fast the first model is as the last, by round."""
        return [one[-1] / max(one[0], 1e-12) for one in self.rounds]


# Gives the seconds that a model takes for a case, whenever it is called.
Run = Callable[[], float]


@dataclass
class Allowance:
    """`seconds` of work in all, and how long work of each stage took so far."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    rates: dict[Stage, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._end = self.clock() + self.seconds

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self._end - self.clock()

    def expected(self, case: Case) -> float:
        """Seconds that a round of `case` takes by what was seen of its stage; 0 before anything."""
        return self.rates.get(case.stage, 0.0) * case.macs

    def learn(self, case: Case, seconds: float) -> None:
        """A round of `case` took so long."""
        self.rates[case.stage] = seconds / max(case.macs, 1)


def timed_case(runs: Sequence[Run], case: Case, allowance: Allowance, left: int) -> Timed:
    """The rounds of `case` for which its share of the time is enough; `left` cases share the rest.

    `runs` has one of each model. No round begins that is not expected to end in time: then there
    is none.
    """
    if allowance.left <= 2 * allowance.expected(case):
        return Timed(case, ())
    end = allowance.left * (1 - 1 / left)
    rounds: list[tuple[float, ...]] = []
    while len(rounds) <= MOST[case.stage]:
        began = allowance.left
        rounds.append(one_round(runs, len(rounds)))
        took = began - allowance.left
        allowance.learn(case, took)
        if allowance.left < took or (len(rounds) > 1 and allowance.left - took < end):
            break
    return Timed(case, tuple(rounds[1:]))


def one_round(runs: Sequence[Run], number: int) -> tuple[float, ...]:
    """Seconds of each; odd rounds go from the last to the first."""
    order = range(len(runs))
    found = {at: runs[at]() for at in (reversed(order) if number % 2 else order)}
    return tuple(found[at] for at in order)


def run_of(model: Any, case: Case) -> Run:
    """What `model` takes for a case here: to the first token, or for one token more."""
    make = prompting if case.stage == "prompt" else decoding
    return make(model, case.context, case.batch)


@dataclass(frozen=True, slots=True)
class Spread:
    """A median between its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of values, one at least."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

"""Rounds of a search: how many a clock has time for, with a clock that is told the time."""

import pytest

from secateur.search import Rounds

ASKS = [(10, 100), (5, 100), (5, 100), (5, None)]


class Clock:
    """A clock that a test turns on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def made(rounds: Rounds, clock: Clock, pace: float) -> list[int]:
    """The rounds that are made where a candidate's token takes `pace` seconds."""
    found = []
    for number in rounds.of(ASKS):
        count, tokens = ASKS[number]
        clock.now += pace * count * (tokens or 400)
        found.append(number)
    return found


@pytest.mark.parametrize(
    ("seconds", "expected"), [(None, 4), (0.1, 1), (14.9, 1), (15, 2), (39, 3), (40.1, 4)]
)
def test_a_round_begins_if_there_is_time_for_it(seconds: float | None, expected: int) -> None:
    """Of 10, 5, 5 and 20 seconds; the first is always made."""
    clock, told = Clock(), list[str]()
    minutes = None if seconds is None else seconds / 60
    rounds = Rounds(minutes, tokens=400, clock=clock, tell=told.append)
    assert made(rounds, clock, 0.01) == list(range(expected))
    assert (rounds.done, rounds.all) == (expected, 4)
    assert len(told) == expected


def test_a_search_for_another_budget_makes_as_many_rounds_whatever_the_time() -> None:
    clock = Clock()
    rounds = Rounds(0.3, tokens=400, clock=clock)
    first = made(rounds, clock, 0.01)
    assert len(first) == 2
    assert made(rounds, clock, 10.0) == first


def test_so_many_rounds_ask_no_clock() -> None:
    rounds = Rounds(most=3)
    assert list(rounds.of(ASKS)) == [0, 1, 2]
    assert list(Rounds(most=9).of(ASKS)) == [0, 1, 2, 3]


def test_it_is_told_how_it_stands() -> None:
    clock, told = Clock(), list[str]()
    rounds = Rounds(1.0, tokens=400, clock=clock, tell=told.append)
    for _ in rounds.of(ASKS[:2]):
        rounds.found(0.5)
        clock.now += 6.0
    assert told[0] == "KL 0.5, 0.9 minutes left at most"

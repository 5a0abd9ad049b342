"""Turns, spreads and a stated time, on a clock that the test moves."""

from collections.abc import Callable
from functools import partial

from secateur.benchmark import Allowance, Case, Spread, timed_case
from secateur.benchmark.timing import MOST, one_round


class Clock:
    """Time passes only where models run: the small one, and a dense one of twice its time."""

    def __init__(self) -> None:
        self.now, self.pace = 0.0, 1.0
        self.ran: list[str] = []

    def __call__(self) -> float:
        return self.now

    def runs(self, case: Case) -> list[Callable[[], float]]:
        return [partial(self.run, name, share * case.macs) for name, share in SHARES.items()]

    def run(self, name: str, seconds: float) -> float:
        self.ran.append(name)
        self.now += seconds * self.pace
        return seconds * self.pace


SHARES = {"small": 0.5, "dense": 1.0}
CASE = Case("decoding", 1, 8, 2)


def test_models_take_turns_in_both_orders() -> None:
    clock = Clock()
    for number in range(2):
        assert one_round(clock.runs(CASE), number) == (1.0, 2.0)
    assert clock.ran == ["small", "dense", "dense", "small"]


def test_the_first_round_counts_for_nothing_and_a_slow_spell_leaves_the_ratio() -> None:
    clock = Clock()

    def slower_by_round(run: Callable[[], float]) -> float:
        number = len(clock.ran) // 2
        clock.pace = 9.0 if number == 0 else 1.0 + 2.0 * (number % 2)
        return run()

    runs = [partial(slower_by_round, run) for run in clock.runs(CASE)]
    found = timed_case(runs, CASE, Allowance(1e6, clock), 1)
    assert len(found.rounds) == MOST["decoding"]
    assert set(found.seconds(0)) == {1.0, 3.0}
    assert set(found.speedups) == {2.0}


def test_timing_ends_within_the_time_that_is_stated() -> None:
    for seconds in (0.5, 3.0, 10.0, 50.0, 1000.0):
        for count in (1, 2, 4):
            clock = Clock()
            allowance = Allowance(seconds, clock)
            cases = [Case("prompt", 1, 8, macs) for macs in (1, 2, 40, 400)][:count]
            found = [
                timed_case(clock.runs(case), case, allowance, count - at)
                for at, case in enumerate(cases)
            ]
            # what the first round takes, nobody knows
            assert clock.now <= max(seconds, 1.5)
            assert len(found) == count
            if seconds > 100:
                assert len(found[0].rounds) == MOST["prompt"]


def test_cases_share_the_time() -> None:
    clock = Clock()
    allowance = Allowance(90.0, clock)
    for at in range(3):
        timed_case(clock.runs(CASE), CASE, allowance, 3 - at)
        assert 30.0 * at < clock.now <= 30.0 * (at + 1)


def test_a_spread_is_a_median_between_its_quartiles() -> None:
    assert Spread.of([4.0]) == Spread(4.0, 4.0, 4.0)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0)

"""Turns, spreads and a stated time, on a clock that the test moves."""

from secateur.benchmark import Allowance, Case, Spread, timed_case
from secateur.benchmark.timing import MOST, one_round


class Clock:
    """Time passes only where models run."""

    def __init__(self) -> None:
        self.now, self.ran = 0.0, []  # type: tuple[float, list[str]]

    def __call__(self) -> float:
        return self.now

    def run(self, model: str, case: Case) -> float:
        self.ran.append(model)
        seconds = case.macs * (1.0 if model == "dense" else 0.5)
        self.now += seconds
        return seconds


CASE = Case("decoding", 1, 8, 2)


def test_models_take_turns_in_both_orders() -> None:
    clock = Clock()
    assert one_round(["small", "dense"], CASE, 0, clock.run) == (1.0, 2.0)
    assert one_round(["small", "dense"], CASE, 1, clock.run) == (1.0, 2.0)
    assert clock.ran == ["small", "dense", "dense", "small"]


def test_the_first_round_counts_for_nothing_and_a_slow_spell_leaves_the_ratio() -> None:
    clock = Clock()
    slow = iter([9.0, *[1.0, 3.0] * MOST])
    pace: list[float] = []

    def run(model: str, case: Case) -> float:
        if len(clock.ran) % 2 == 0:
            pace[:] = [next(slow)]
        return pace[0] * clock.run(model, case)

    found = timed_case(["small", "dense"], CASE, Allowance(1e6, clock), 1, run)
    assert len(found.rounds) == MOST
    assert max(found.seconds(0)) == 3.0
    assert set(found.speedups) == {2.0}


def test_timing_ends_within_the_time_that_is_stated() -> None:
    for seconds in (0.5, 3.0, 10.0, 50.0, 1000.0):
        for count in (1, 2, 4):
            clock = Clock()
            allowance = Allowance(seconds, clock)
            cases = [Case("decoding", 1, 8, macs) for macs in (1, 2, 40, 400)][:count]
            found = [
                timed_case(["small", "dense"], case, allowance, count - at, clock.run)
                for at, case in enumerate(cases)
            ]
            # what the first round takes, nobody knows
            assert clock.now <= max(seconds, 1.5)
            assert len(found) == count
            if seconds > 100:
                assert len(found[0].rounds) == MOST


def test_cases_share_the_time() -> None:
    clock = Clock()
    allowance = Allowance(90.0, clock)
    cases = [Case("decoding", 1, 8, 2)] * 3
    for at, case in enumerate(cases):
        timed_case(["small", "dense"], case, allowance, 3 - at, clock.run)
        assert clock.now <= 30.0 * (at + 1)


def test_a_spread_is_a_median_between_its_quartiles() -> None:
    assert Spread.of([4.0]) == Spread(4.0, 4.0, 4.0)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0)

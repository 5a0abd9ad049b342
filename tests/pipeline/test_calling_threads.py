"""Calls from several threads of one process."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import secateur
from secateur.arguments import a_progress, a_whole, others_go_on, public
from secateur.data.sources import embedded_folder
from secateur.errors import SecateurError
from secateur.progress import Quiet


def test_calls_of_several_threads_take_turns_and_say_that_they_wait() -> None:
    inside: list[int] = []
    most: list[int] = []

    @public(number=a_whole, progress=a_progress)
    def slow(number: int, *, progress: Any = None) -> int:
        inside.append(number)
        most.append(len(inside))
        time.sleep(0.05)
        inside.remove(number)
        return number

    class Noted(Quiet):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, message: str) -> None:
            self.notes.append(message)

    told = [Noted() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda i: slow(i, progress=told[i]), range(3))) == [0, 1, 2]
    assert max(most) == 1
    assert sum(len(one.notes) for one in told) == 2
    assert all("take turns" in text for one in told for text in one.notes)


def test_a_call_within_a_call_does_not_wait_and_one_that_fails_leaves_nothing_locked() -> None:
    @public()
    def inner(fails: bool) -> str:
        if fails:
            raise SecateurError("No.")
        return "done"

    @public()
    def outer(fails: bool) -> str:
        return inner(fails)

    with pytest.raises(SecateurError):
        outer(fails=True)
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(outer(fails=False)), daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert found == ["done"]


def test_a_call_that_waits_for_calls_of_other_threads_lets_them_in() -> None:
    @public(number=a_whole)
    def inner(number: int) -> int:
        return number

    @public()
    def outer() -> list[int]:
        with others_go_on(), ThreadPoolExecutor(2) as pool:
            return list(pool.map(inner, range(4)))

    found: list[list[int]] = []
    thread = threading.Thread(target=lambda: found.append(outer()), daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert found == [[0, 1, 2, 3]]
    with others_go_on():  # of no call
        assert inner(7) == 7


@pytest.mark.slow
def test_comparisons_in_several_threads_are_those_of_one() -> None:
    """A model that is built in one thread must not change the dtypes of another."""

    def rows(seed: int) -> Any:
        found = secateur.compare(
            str(embedded_folder()), methods=["flap", "magnitude"], ratios=[0.2], samples=4,
            length=32, evaluate_tokens=500, dtype=("bfloat16", "float32")[seed % 2],
        )  # fmt: skip
        return [row["perplexity"] for row in found]

    alone = [rows(0), rows(1)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(rows, range(4))) == alone * 2

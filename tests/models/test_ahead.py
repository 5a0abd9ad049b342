"""What is read ahead: by one thread, which ends whatever becomes of it."""

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.models.ahead import Ahead


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "secateur-ahead"]


def some(value: float) -> Iterator[tuple[str, Tensor]]:
    assert threading.current_thread() is not threading.main_thread()
    yield "one", torch.full((2,), value)
    yield "two", torch.full((3,), value)


def test_what_was_expected_comes_once() -> None:
    ahead = Ahead()
    ahead.expect(3, lambda: some(3.0))
    found = ahead.take(3)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "one": [3.0, 3.0],
        "two": [3.0, 3.0, 3.0],
    }
    assert ahead.take(3) == {}
    assert not threads()


def test_what_was_not_expected_does_not_come() -> None:
    ahead = Ahead()
    assert ahead.take(0) == {}
    ahead.expect(1, lambda: some(1.0))
    assert ahead.take(2) == {}
    ahead.expect(2, lambda: some(2.0))  # in the place of 1
    assert ahead.take(1) == {}
    assert ahead.take(2)["one"].tolist() == [2.0, 2.0]
    assert not threads()


def test_what_the_thread_raised_is_raised_where_it_is_needed() -> None:
    def broken() -> Iterator[tuple[str, Tensor]]:
        yield "one", torch.zeros(1)
        raise SecateurError("model.safetensors is truncated")

    ahead = Ahead()
    ahead.expect(1, broken)
    with pytest.raises(SecateurError, match="truncated"):
        ahead.take(1)
    assert ahead.take(1) == {}
    ahead.expect(1, broken)
    ahead.leave_off()  # nobody needs it: nothing is wrong
    assert not threads()


def test_leaving_off_ends_the_thread_after_the_tensor_that_it_is_at() -> None:
    read, go = [], threading.Event()

    def long() -> Iterator[tuple[str, Tensor]]:
        for number in range(1000):
            read.append(number)
            go.wait(1)
            yield str(number), torch.zeros(1)

    ahead = Ahead()
    ahead.expect(1, long)
    stopping = threading.Thread(target=ahead.leave_off)
    stopping.start()
    while not ahead._job._stop.is_set():  # type: ignore[union-attr]
        pass
    go.set()
    stopping.join()
    assert not threads()
    assert len(read) <= 2

"""Ranks that are threads of one process: what they do together without torch.distributed."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.ranks import Ranks, joined_as

T = TypeVar("T")


@dataclass
class _Table:
    """Where the ranks lay what they have."""

    count: int
    places: list[Any] = field(init=False)
    barrier: threading.Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.places = [None] * self.count
        self.barrier = threading.Barrier(self.count, timeout=60)


@dataclass(frozen=True)
class Thread(Ranks):
    """One of them."""

    table: Any = None

    def _all(self, what: str, value: Any) -> list[Any]:
        self.table.places[self.index] = what, value
        self.table.barrier.wait()
        found = list(self.table.places)
        self.table.barrier.wait()
        assert {about for about, _ in found} == {what}, "all are about the same"
        return [one for _, one in found]

    def summed(self, what: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        rows = self._all(what, [tensor.clone() for tensor in tensors])
        return [torch.stack(list(parts)).sum(dim=0) for parts in zip(*rows, strict=True)]

    def add_up(self, what: str, tensors: Sequence[Tensor]) -> None:
        for one, total in zip(tensors, self.summed(what, tensors), strict=True):
            one.copy_(total)

    def gathered(self, what: str, rows: Tensor) -> Tensor:
        return torch.cat(self._all(what, rows.clone()))

    def each(self, what: str, value: T) -> list[T]:
        return self._all(what, value)

    def told(self, what: str, make: Callable[[], T]) -> T:
        said: Any = None
        if self.first:
            try:
                said = make(), None
            except SecateurError as error:
                said = None, str(error)
        (value, error), *_ = self._all(what, said)
        if error is not None:
            raise SecateurError(error)
        return value

    def sent(self, what: str, make: Callable[[], Tensor]) -> Tensor:
        return self.told(what, make).clone()


def side_by_side(count: int, work: Callable[[], T]) -> list[T]:
    """What `work` gives on each of `count` ranks."""
    table = _Table(count)

    def one(index: int) -> T:
        try:
            with joined_as(Thread(index, count, table)):
                return work()
        except BaseException:
            table.barrier.abort()
            raise

    with ThreadPoolExecutor(count) as pool:
        done = [pool.submit(one, index) for index in range(count)]
    errors = [error for each in done if (error := each.exception()) is not None]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):  # the others wait no longer
            raise error
    return [each.result() for each in done]

"""What the processes of one run, its ranks, do together; one process does it alone.

    ranks = this()
    ranks.share(7)                     # this rank's part of seven windows: slice(3, 7) of rank 1
    ranks.summed("grams", [gram])      # the sums over all ranks, the same bits on each
    ranks.gathered("losses", losses)   # the rows of all ranks, one after the other
    ranks.add_up("step", gradients)    # the same in place, many tensors in few exchanges
    ranks.told("clock", time.time)     # what the first rank makes
    ranks.sent("best", read)           # the same of a tensor

All ranks call these in the same order: each names what it is about, and where two ranks are about
different things, both say so instead of waiting for ever. Whatever is decided is decided by every
rank, from numbers that are the same; only what differs from process to process (time, memory, disk)
is told by the first. A process alone imports nothing for all this.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Rank `index` of `count`; of one alone, everything is what it was."""

    index: int = 0
    count: int = 1

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.index == 0

    def share(self, windows: int) -> slice:
        """The part of this rank in so many windows, in order of ranks; parts differ by one."""
        ends = [windows * index // self.count for index in (self.index, self.index + 1)]
        return slice(*ends)

    def summed(self, what: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sum over all ranks of each of `tensors`, which may be changed in place."""
        return list(tensors)

    def add_up(self, what: str, tensors: Sequence[Tensor]) -> None:
        """Make each of `tensors` its sum over all ranks, the same bits on each."""

    def gathered(self, what: str, rows: Tensor) -> Tensor:
        """The rows of all ranks, in order of ranks, on the CPU if there are several."""
        return rows

    def each(self, what: str, value: T) -> list[T]:
        """The values of all ranks, which JSON can say."""
        return [value]

    def told(self, what: str, make: Callable[[], T]) -> T:
        """What the first rank makes, which JSON can say; the others make nothing.

        Raises:
            SecateurError: it did there.
        """
        return make()

    def sent(self, what: str, make: Callable[[], Tensor]) -> Tensor:
        """The tensor that the first rank makes, on the CPU if there are several.

        Raises:
            SecateurError: it raised one there.
        """
        return make()

    def linked(self) -> AbstractContextManager[None]:
        """While entered, ranks may exchange by other ways than these; one that is lost is named."""
        return nullcontext()


ALONE = Ranks()
_THIS: ContextVar[Ranks] = ContextVar("ranks", default=ALONE)


def this() -> Ranks:
    """The ranks that share what is running now, as this one of them."""
    return _THIS.get()


@contextmanager
def joined_as(ranks: Ranks) -> Iterator[None]:
    """While entered, this process is one of `ranks`."""
    token = _THIS.set(ranks)
    try:
        yield
    finally:
        _THIS.reset(token)


@contextmanager
def by_first(what: str, context: Callable[[], AbstractContextManager[T]]) -> Iterator[T | None]:
    """While entered, the first rank is in a context; the others get None.

    Raises:
        SecateurError: on all ranks, where the first cannot enter.
    """
    with ExitStack() as stack:
        entered: list[T] = []

        def enter() -> Any:
            entered.append(stack.enter_context(context()))

        this().told(what, enter)
        yield entered[0] if entered else None

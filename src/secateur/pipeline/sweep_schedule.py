"""Which cells of a sweep are made where and when, and what happens when a process dies.

Cells of one model and seed are made in one process; where that is too few for the workers, those of
each method in one. Of a process that died, the cell that it was making (or would have made first)
is tried again alone and last, a stated number of times; the others go on.
"""

import queue
import threading
from collections import Counter, deque
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..progress import note, status
from .carriers import Carrier, DiedError
from .cells import Cell, together
from .sweep_folder import Outcome
from .sweep_share import Event, Share


@dataclass(frozen=True)
class Work:
    """The cells of a model and seed, and the numbers of those that one process makes."""

    cells: tuple[Cell, ...]
    make: tuple[int, ...]

    def only(self, *numbers: int) -> "Work":
        """The same with fewer to make."""
        return Work(self.cells, numbers)


@dataclass(frozen=True)
class Asking:
    """How a process is asked for its share: where passes are kept, and whether to look anew."""

    store: Path
    fresh: bool = False

    def share(self, work: Work) -> Share:
        """What is asked for."""
        cells = tuple(cell.config.model_dump(exclude_unset=True) for cell in work.cells)
        return Share(cells, work.make, str(self.store.absolute()), self.fresh, str(Path.cwd()))


def divided(cells: Sequence[Cell], done: Collection[str], workers: int) -> list[Work]:
    """What is left to make, in shares for so many workers."""
    groups = [Work(tuple(own), _left(own, done)) for own in together(cells)]
    groups = [work for work in groups if work.make]
    if len(groups) >= workers:
        return groups
    return [part for work in groups for part in _by_method(work)]


def _left(cells: Sequence[Cell], done: Collection[str]) -> tuple[int, ...]:
    return tuple(number for number, cell in enumerate(cells) if cell.key not in done)


def _by_method(work: Work) -> list[Work]:
    methods = dict.fromkeys(work.cells[number].config.method for number in work.make)
    return [
        work.only(*(n for n in work.make if work.cells[n].config.method == method))
        for method in methods
    ]


@dataclass
class _Running:
    """A share that is under way: which cells are left of it, and which is being made."""

    work: Work
    left: list[int] = field(default_factory=list)
    current: int | None = None

    @property
    def to_blame(self) -> int:
        """The cell that a process died of."""
        return self.left[0] if self.current is None else self.current


class Schedule:
    """Makes the cells of `works` by a carrier."""

    def __init__(
        self,
        works: Sequence[Work],
        carrier: Carrier,
        asking: Asking,
        *,
        retries: int,
    ) -> None:
        self._waiting, self._carrier, self._asking = deque(works), carrier, asking
        self._retries = retries
        self._deaths: Counter[str] = Counter()
        self._told: set[str] = set()
        self._running: list[_Running] = []
        self._events: queue.SimpleQueue[tuple[_Running, Event | BaseException]] = (
            queue.SimpleQueue()
        )

    def outcomes(self) -> Generator[tuple[Cell, Outcome], None, None]:
        """What becomes of each cell, as soon as it is known."""
        try:
            while self._waiting or self._running:
                while self._waiting and len(self._running) < self._carrier.workers:
                    self._start(self._waiting.popleft())
                running, event = self._events.get()
                yield from self._happened(running, event)
        finally:
            self._carrier.close()

    def _start(self, work: Work) -> None:
        running = _Running(work, list(work.make))
        self._running.append(running)
        threading.Thread(target=self._follow, args=(running,), daemon=True).start()

    def _follow(self, running: _Running) -> None:
        try:
            for event in self._carrier.events(self._asking.share(running.work)):
                self._events.put((running, event))
        except BaseException as error:
            self._events.put((running, error))
        else:
            self._events.put((running, {"over": True}))

    def _happened(
        self, running: _Running, event: Event | BaseException
    ) -> Iterator[tuple[Cell, Outcome]]:
        if isinstance(event, DiedError):
            yield from self._died(running, str(event))
        elif isinstance(event, BaseException):
            raise event
        elif "over" in event:
            self._running.remove(running)
            status("")
            if running.left:
                self._waiting.appendleft(running.work.only(*running.left))
        elif "note" in event:
            self._note(f"{running.work.cells[0].model}: {event['note']}")
        elif "begun" in event:
            running.current = event["begun"]
            status(running.work.cells[event["begun"]].about)
        elif "stage" in event:
            number = running.to_blame if running.left else running.work.make[-1]
            status(f"{running.work.cells[number].about}, {event['stage']}")
        elif "made" in event or "refused" in event:
            yield self._ended(running, event)

    def _ended(self, running: _Running, event: Event) -> tuple[Cell, Outcome]:
        number: int = event["made"] if "made" in event else event["refused"]
        running.left.remove(number)
        running.current = None
        cell = running.work.cells[number]
        if "refused" in event:
            return cell, Outcome(refused=event["why"])
        names = ("row", "part", "settings", "notes")
        parts: dict[str, Any] = {name: event[name] for name in names}
        return cell, Outcome(**parts)

    def _died(self, running: _Running, how: str) -> Iterator[tuple[Cell, Outcome]]:
        self._running.remove(running)
        if not running.left:  # all was said by then
            return
        number = running.to_blame
        cell = running.work.cells[number]
        self._deaths[cell.key] += 1
        times = self._deaths[cell.key]
        others = [one for one in running.left if one != number]
        if others:
            self._waiting.appendleft(running.work.only(*others))
        if times <= self._retries:
            note(f"{cell.about}: its process died ({how}); it is tried again")
            self._waiting.append(running.work.only(number))
            return
        why = f"its process died {times} times, the last time: {how}"
        note(f"{cell.about}: {why}")
        yield cell, Outcome(died=why)

    def _note(self, message: str) -> None:
        """Once is enough: cells have much in common."""
        if message not in self._told:
            self._told.add(message)
            note(message)

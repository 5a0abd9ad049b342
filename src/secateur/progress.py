"""What long work tells about itself; the command line draws it, Python callers find it logged."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")

# What a run does before its first stage.
READING = "reading the model and the text"


@runtime_checkable
class Progress(Protocol):
    """Receives the course of one long stage after another."""

    def track(self, items: Iterable[T], stage: str, total: int, unit: str) -> Iterator[T]:
        """Yield `items`, showing `stage` and how many of `total` (counted in `unit`) are done.

        `total` is 0 where nobody knows it.
        """
        ...

    def status(self, message: str) -> None:
        """Show beside the running stage what it says of itself (its loss)."""
        ...

    def note(self, message: str) -> None:
        """Show one line that the user should read (a fallback taken, fewer samples than asked)."""
        ...


class Quiet:
    """A `Progress` that shows nothing."""

    def track(self, items: Iterable[T], stage: str, total: int, unit: str) -> Iterator[T]:
        """Yield `items` unchanged."""
        yield from items

    def status(self, message: str) -> None:
        """Drop the message."""

    def note(self, message: str) -> None:
        """Drop the message."""


class Lines:
    """The course of long stages in lines, for where nothing can be drawn.

    A stage says where it is after two seconds, then at every item, but at most once in ten seconds
    and at least once in thirty: a stage that is soon over says nothing. `say` gets the lines.
    """

    FIRST, OFTEN, SELDOM = 2.0, 10.0, 30.0

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._status = say, ""
        self._over = threading.Event()  # of the running stage

    def begin(self, stage: str, spent: float = 0.0) -> None:
        """Watch a stage that nobody can count, until the first one that is tracked.

        It began `spent` seconds ago.
        """
        self._watched(_Course(stage, 0, "", spent))

    def track(self, items: Iterable[T], stage: str, total: int, unit: str) -> Iterator[T]:
        """Yield `items`."""
        course = _Course(stage, total, unit)
        over = self._watched(course)
        try:
            for item in items:
                yield item
                course.done += 1
        finally:
            over.set()

    def status(self, message: str) -> None:
        """What the stage says of itself stands in its next line."""
        self._status = message

    def close(self) -> None:
        """No line more of the running stage, however it ended."""
        self._over.set()

    def _watched(self, course: "_Course") -> threading.Event:
        """Start the clock of a stage; the one before it is over."""
        self.close()
        over = self._over = threading.Event()
        self._status = ""
        threading.Thread(target=self._watch, args=(course, over), daemon=True).start()
        return over

    def _watch(self, course: "_Course", over: threading.Event) -> None:
        said, last = -1, time.monotonic()
        wait = max(self.FIRST - course.spent, 0.0)
        while not over.wait(wait):
            wait = self.OFTEN
            if course.done != said or time.monotonic() - last >= self.SELDOM:
                said, last = course.done, time.monotonic()
                self._say(course.line(self._status))


class _Course:
    """How far a stage is."""

    def __init__(self, stage: str, total: int, unit: str, spent: float = 0.0) -> None:
        self.stage, self.total, self.unit, self.done = stage, total, unit, 0
        self._started = time.monotonic() - spent

    @property
    def spent(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._started

    def line(self, status: str) -> str:
        """The stage, what is done of it, and about how long the rest takes."""
        spent = self.spent
        if not self.total:
            done = f"{self.unit} {self.done}, " if self.done else ""
            return f"{self.stage}: {done}{_clock(spent)} so far"
        left = ""
        if self.done:
            rest = spent / self.done * max(self.total - self.done, 0)
            left = f", about {_clock(rest)} left"
        more = f", {status}" if status else ""
        return f"{self.stage}: {self.unit} {self.done} of {self.total}{left}{more}"


def _clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{round(seconds) // 60}:{round(seconds) % 60:02}"


class Logged(Lines):
    """Lines and notes to the logger `secateur`, at the level INFO: what Python callers get."""

    def __init__(self) -> None:
        super().__init__(self.note)
        self.begin(READING)

    def note(self, message: str) -> None:
        """Log one line."""
        logging.getLogger("secateur").info("%s", message)

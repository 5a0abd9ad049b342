"""What long work tells about itself; the command line draws it, Python callers find it logged.

An entry function opens a telling, and whatever runs inside it tells there, as with `logging`:

    with telling(progress) as told:
        ...                     # anywhere below: note("..."), track(items, "stage", total, "layer")
    told.notes, told.seconds

So no function of the mathematics takes or passes on where to tell. Outside a telling nothing is
heard.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")

# What a run does before its first stage.
READING = "starting to read the model and the text"


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


# Takes a step and its numbers by name.
Curve = Callable[[int, Mapping[str, float]], None]


class Told:
    """What a run has told: its notes, and the wall time of its stages in seconds.

    Where several are compared, `about` says in front of every note which one it is of.
    """

    def __init__(self, progress: Progress | None = None, about: str = "") -> None:
        self.progress, self._about = progress or Quiet(), about
        self.notes: list[str] = []
        self.curve: Curve | None = None
        self._started = time.monotonic()
        self._stages: dict[str, float] = {}

    @property
    def seconds(self) -> dict[str, float]:
        """Those of each stage so far, and the total."""
        return {**self._stages, "total": time.monotonic() - self._started}

    def note(self, message: str) -> None:
        """Keep a note and pass it on."""
        message = f"{self._about}: {message}" if self._about else message
        self.notes.append(message)
        self.progress.note(message)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall time of a stage."""
        started = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - started
            self._stages[stage] = self._stages.get(stage, 0.0) + spent


_TOLD: ContextVar[Told] = ContextVar("told")


@contextmanager
def telling(progress: Progress | None = None, about: str = "") -> Iterator[Told]:
    """While it is entered, what is told goes to `progress`, and is kept."""
    told = Told(progress, about)
    token = _TOLD.set(told)
    try:
        yield told
    finally:
        _TOLD.reset(token)


def _told() -> Told:
    return _TOLD.get(None) or Told()


def track(items: Iterable[T], stage: str, total: int, unit: str) -> Iterator[T]:
    """Yield `items`, and tell how many of `total` (counted in `unit`) are done in `stage`."""
    return _told().progress.track(items, stage, total, unit)


def status(message: str) -> None:
    """Tell what the running stage says of itself."""
    _told().progress.status(message)


def note(message: str) -> None:
    """Tell the user one line, now and in the result."""
    _told().note(message)


@contextmanager
def drawing(curve: Curve) -> Iterator[None]:
    """While it is entered, the numbers of steps go to `curve`."""
    told = _told()
    before, told.curve = told.curve, curve
    try:
        yield
    finally:
        told.curve = before


def draw(step: int, **values: float) -> None:
    """Tell the numbers of a step, where somebody draws them."""
    curve = _told().curve
    if curve is not None:
        curve(step, values)


@contextmanager
def within_a_stage() -> Iterator[None]:
    """While it is entered, stages are parts of the one that is shown, and show nothing."""
    told = _told()
    shown = told.progress
    told.progress = _Parts(shown)
    try:
        yield
    finally:
        told.progress = shown


class _Parts(Quiet):
    """Notes alone."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown

    def note(self, message: str) -> None:
        """Pass it on."""
        self._shown.note(message)


def timed(stage: str) -> AbstractContextManager[None]:
    """Count the wall time of what it surrounds as that of `stage`."""
    return _told().timed(stage)


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

"""What long work tells about itself; the command line draws it, everything else stays quiet."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@runtime_checkable
class Progress(Protocol):
    """Receives the course of one long stage after another."""

    def track(self, items: Iterable[T], stage: str, total: int, unit: str) -> Iterator[T]:
        """Yield `items`, showing `stage` and how many of `total` (counted in `unit`) are done."""
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

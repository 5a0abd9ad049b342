"""What the terminal shows: progress bars, notes, tables."""

import json
import math
import textwrap
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any, TypeVar

import click
import psutil
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ..progress import READING, Lines
from ..shown import one_line, printable

T = TypeVar("T")

# Texts of no more characters are names.
_NAME = 16


class Screen:
    """Progress on standard error: bars if that is a terminal, else a line now and then; notes.

    `reading`: a line says so, too, before there is anything to count.
    """

    def __init__(self, *, reading: bool = True) -> None:
        self.console = Console(stderr=True, highlight=False, quiet=bool(_hushed))
        self._bar: Progress | None = None
        self._lines = _waiting.pop() if _waiting else _reading() if reading else _lines()
        _open.append(self)

    def track(self, items: Iterable[T], stage: str, total: int, unit: str) -> Iterator[T]:
        """Show a bar with stage, count, time left and memory while `items` are worked through."""
        if not self.console.is_terminal:
            yield from self._lines.track(items, stage, total, unit)
            return
        self._lines.close()
        columns = (
            TextColumn("{task.description:<22}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            _Memory(),
            TextColumn("{task.fields[status]}", markup=False),
        )
        with Progress(*columns, console=self.console) as bar:
            self._bar = bar
            task = bar.add_task(stage, total=total or None, status="")
            yield from bar.track(items, task_id=task)
            self._bar = None

    def close(self) -> None:
        """No line more."""
        self._lines.close()

    def status(self, message: str) -> None:
        """Show beside the bar what its stage says of itself."""
        self._lines.status(message)
        for task in self._bar.task_ids if self._bar else ():
            assert self._bar is not None
            self._bar.update(task, status=message)

    def note(self, message: str) -> None:
        """Show one line that the user should read."""
        text = printable(f"Note: {message}")
        self.console.print(text, style="yellow", soft_wrap=True, markup=False)


_open: list[Screen] = []
_hushed: list[bool] = []  # not empty where another process speaks
_started: list[float] = []  # when the process began, if it is one command
_waiting: list[Lines] = []  # begun before the command was imported


def count_from(started: float, *, reads: bool) -> None:
    """Imports are a part of the command: it began at `started` (of time.monotonic).

    One that `reads` a model says so while they last: they may take longer than anybody waits.
    """
    _started[:] = [started]
    if reads:
        _waiting[:] = [_reading()]


def elapsed() -> float:
    """Seconds since the command began, imports included."""
    return sum(time.monotonic() - began for began in _started)


def hush(silent: bool = True) -> None:
    """Say nothing from here on, or something again: another process speaks for all, or this one."""
    _hushed[:] = [True] if silent else []


def close_screens() -> None:
    """End the lines of commands that are over."""
    while _open:
        _open.pop().close()
    while _waiting:
        _waiting.pop().close()


def _lines() -> Lines:
    return Lines(lambda line: say(line, error=True))


def _reading() -> Lines:
    """Lines that tell of what there is before anything can be counted."""
    lines = _lines()
    lines.begin(READING, sum(time.monotonic() - began for began in _started))
    return lines


class _Memory(ProgressColumn):
    """Resident memory of this process."""

    def render(self, task: Task) -> Text:
        return Text(f"{psutil.Process().memory_info().rss / 2**30:.2f} GiB", style="cyan")


def say(text: str, *, error: bool = False) -> None:
    """Print lines on standard output (or error) as they are, but for what a terminal would obey."""
    if not _hushed:
        click.echo(printable(text), err=error)


def print_json(value: Any) -> None:
    """Print `value` as JSON on standard output; what is NaN or infinite, JSON has only null for."""
    say(json.dumps(_finite(value), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def table(
    title: str,
    columns: Iterable[str],
    rows: Iterable[Iterable[Any]],
    *,
    texts: Collection[int] = (0,),
    lines: bool = False,
) -> None:
    """Print a table on standard output; all columns but the `texts` are numbers.

    Names are not broken. Where the terminal is too narrow, headings are, between words, to keep
    columns no wider than their cells.
    """
    console = Console(highlight=False, quiet=bool(_hushed))
    heads = [printable(head) for head in columns]  # both may have lines of ours
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    longest = [max((len(row[i]) for row in cells), default=0) for i in range(len(heads))]
    broken = [
        "\n".join(textwrap.wrap(head, max([width, 1, *map(len, head.split())])))
        for head, width in zip(heads, longest, strict=True)
    ]

    def made(heads: Iterable[str]) -> Table:
        made = Table(
            title=Text(one_line(title), style="table.title"), title_justify="left", show_lines=lines
        )
        for index, head in enumerate(heads):
            text = index in texts
            made.add_column(
                Text(head),
                justify="left" if text else "right",
                overflow="fold",
                no_wrap=text and longest[index] <= _NAME,
            )
        for row in cells:
            made.add_row(*map(Text, row))  # not markup: a name may be [anything]
        return made

    wide = made(heads)
    unbounded = console.options.update(max_width=10_000)  # a measure stops at the console's width
    fits = console.measure(wide, options=unbounded).maximum <= console.width
    console.print(wide if fits else made(broken))

"""What a page is made of: sections with plots and tables, and the cells of these."""

from dataclasses import dataclass, field
from typing import Any

from ..shown import one_line
from .plotting import Plot

# Rows that a table shows at once.
_MANY = 12


@dataclass(frozen=True)
class Cell:
    """What a cell shows, by what it is sorted, and how long a bar in it is, as a share."""

    text: str
    by: float | None = None
    bar: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells; rows in `best` are marked. One of many rows is folded, unless it is `open`;
    one that `folds` is in any case.
    """

    caption: str
    columns: tuple[str, ...]
    rows: list[list[Cell]]
    best: frozenset[int] = frozenset()
    open: bool = False
    folds: bool = False

    @property
    def folded(self) -> bool:
        """Whether only its caption shows at first."""
        return self.folds or (not self.open and len(self.rows) > _MANY)


@dataclass(frozen=True)
class Section:
    """A part of the page. One without plots, tables and samples says in `lead` why it is empty."""

    name: str
    title: str
    lead: str
    plots: list[Plot] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    samples: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.plots or self.tables or self.samples)


def cell(value: Any, shown: str | None = None, bar: float | None = None) -> Cell:
    """A cell that is sorted by its value, where that is a number."""
    number = float(value) if isinstance(value, int | float) else None
    return Cell(one_line(str(value)) if shown is None else shown, number, bar)


def short(value: float | None) -> str:
    """Three digits."""
    return "not finite" if value is None else f"{value:.3g}"


def percent(value: float | None) -> str:
    """A share."""
    return "not finite" if value is None else f"{value:.1%}"
